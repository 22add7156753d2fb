"""One run: against the textbook loop and closed forms; records, tests, status, freezing, retracing, bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.training.loop import Loop
from jaxsign.training.mode import Mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import begin
from jaxsign.training.train import make_train

STEPS = 200
ETA = 2.0**-11  # steps that are exact in binary: rounding does not pile up over equal steps
OPTIMIZERS = {
    "sign_gd": js.sign_gd(ETA),
    "adam": optax.adam(ETA, eps=1e-15),
    "sgd": optax.sgd(0.05),
    "adamw": optax.adamw(ETA, weight_decay=0.1),  # reads parameters: the full tree is trained
}


@pytest.fixture(scope="module")
def trained(problem, hyper):
    """The two-layer system trained once by each optimizer: name -> (run, start)."""
    task = js.two_layer(problem)

    @functools.cache
    def run(name):
        start = jax.jit(functools.partial(begin, task))(jax.random.key(3), hyper)
        seen = None if name == "sign_gd" else ["train_loss"]
        return js.train(
            jax.random.key(3), task, hyper, OPTIMIZERS[name], steps=STEPS, record=10, test_every=50, observables=seen
        ), start

    return run


def textbook(x, y, weights, transform):
    """The usual loop on X (n, L, d) and the full W_V: (loss at every step, final weights)."""

    def loss(weights):
        w_q, w_k, w_v = weights
        query, key = (jnp.einsum("rd,nld->nrl", w, x) for w in (w_q, w_k))
        attention = jax.nn.softmax(jnp.einsum("nrl,nra->nla", query, key), axis=-1)
        outputs = jnp.einsum("jrd,nad,nla->nj", w_v, x, attention) / w_v.shape[1]
        return jnp.mean(jax.nn.softplus(-y * (outputs[:, 0] - outputs[:, 1])))

    def step(carry, _):
        weights, state = carry
        value, gradient = jax.value_and_grad(loss)(weights)
        updates, state = transform.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    @jax.jit
    def loop(weights):
        (weights, _), values = jax.lax.scan(step, (weights, transform.init(weights)), length=STEPS)
        return jnp.append(values, loss(weights)), weights

    with jax.numpy_dtype_promotion("standard"):
        return loop(weights)


@pytest.mark.parametrize("name", [pytest.param("sign_gd", marks=pytest.mark.x64), "adam", "sgd", "adamw"])
def test_a_run_is_the_textbook_loop(trained, oracle, eps, name):
    run, start = trained(name)
    weights = (start.params.w_q, start.params.w_k, start.params.w_v)
    losses, expected = textbook(jnp.asarray(oracle.inputs(start.data)), start.data.y, weights, OPTIMIZERS[name])
    np.testing.assert_allclose(run.trace["train_loss"], losses[::10], rtol=1e-6 if eps > 1e-10 else 1e-12)
    assert losses[-1] < 0.5 * losses[0]
    assert run.trace["train_loss"].shape == (21,)
    assert (run.status, run.first_bad_step, run.seed) == (0, -1, 3)
    for mine, theirs in zip((run.params.w_q, run.params.w_k, run.params.w_v), expected):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 if name == "sgd" else 4 * ETA)  # sign amplifies
        assert np.mean(np.abs(mine - theirs) > 1e-5) < 0.05
    np.testing.assert_allclose(run.constants["noise_l1"], np.abs(np.asarray(start.data.xi)[:, 1:]).sum(1), rtol=1e-5)


def test_a_run_has_the_names_and_dims_of_a_sweep_of_one(trained):
    ds = trained("sign_gd")[0].to_xarray()
    run, step = ("optimizer", "seed"), ("optimizer", "seed", "step")
    expected = {
        **dict.fromkeys(["train_loss", "test_loss", "test_error", "value_signal"], step),
        "value_noise": (*step, "sample"),
        **dict.fromkeys(["query_noise", "key_noise"], (*step, "row", "sample")),
        **dict.fromkeys(["query_signal", "key_signal"], (*step, "row")),
        **dict.fromkeys(["s11", "s21"], (*step, "head", "sample")),
        **dict.fromkeys(["status", "first_bad_step", "first_frozen_step"], run),
        **dict.fromkeys(["noise_l1", "noise_l2"], (*run, "sample")),
    }
    assert {name: ds[name].dims for name in expected} == expected
    assert dict(ds.sizes) == {"optimizer": 1, "seed": 1, "step": 21, "row": 4, "sample": 6, "head": 1}
    assert ds.step.values.tolist() == list(range(0, 201, 10))
    assert ds.seed.values.tolist() == [3]
    assert ds.sample.values.tolist() == list(range(6))
    assert (ds.status.dtype, ds.first_bad_step.dtype) == (np.int8, np.int32)
    assert all("long_name" in ds[name].attrs and "units" in ds[name].attrs for name in expected)
    tested = np.isfinite(ds.test_error.values[0, 0])
    assert ds.step.values[tested].tolist() == [0, 50, 100, 150, 200]


def test_a_run_shows_itself_in_two_lines(trained):
    run = trained("adam")[0]
    loss = float(run.trace["train_loss"][-1])
    assert repr(run) == (
        f"Run(seed=3, 21 recorded steps up to 200, finished, train_loss={loss:.6g},\n    observables: train_loss)"
    )
    gone = dataclasses.replace(run, status=1, first_bad_step=7, trace={}, steps=run.steps[:2])
    assert repr(gone) == "Run(seed=3, 2 recorded steps up to 10, diverged at step 7,\n    observables: none)"


def test_frozen_parameters_stay_bit_equal_and_equal_tasks_do_not_retrace(problem, hyper):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    key = jax.random.key(3)
    runs, counts = [], []
    for seed, sigma_p in ((3, 2.0), (3, 2.0), (4, 1.5)):
        task = js.two_layer(js.Problem(**dataclasses.asdict(problem)))
        numbers = dataclasses.replace(hyper, sigma_p=sigma_p)
        settings = {"trainable": ("w_v",), "observables": ["train_loss", "query_noise"]}
        seed_key, optimizer = jax.random.key(seed), js.sign_gd(1e-3)
        counts.append(len(compiled))
        runs.append(js.train(seed_key, task, numbers, optimizer, steps=30, **settings))
    assert counts[1] > counts[0]
    assert counts[2] == counts[1] == len(compiled)
    start = jax.jit(functools.partial(begin, js.two_layer(problem)))(key, hyper)
    np.testing.assert_array_equal(runs[0].params.w_q, start.params.w_q)
    np.testing.assert_array_equal(runs[0].params.w_k, start.params.w_k)
    assert np.all(runs[0].params.w_v[:, :, 0] != start.params.w_v[:, :, 0])
    assert set(runs[0].trace) == {"train_loss", "query_noise"}
    np.testing.assert_array_equal(runs[0].trace["train_loss"], runs[1].trace["train_loss"])
    assert not np.any(runs[0].trace["train_loss"] == runs[2].trace["train_loss"])


def test_mapped_runs_share_a_trace_a_symmetry_and_no_trouble(problem, hyper):
    """One compiled program: scale symmetry, one trace for many learning rates, underflow alarm, divergence."""
    task, traced, key = js.two_layer(problem), [], jax.random.key(3)
    counting = dataclasses.replace(task, loss=lambda *args: traced.append(1) or task.loss(*args))
    schedule = Schedule.build(60, 10, 50)
    one = make_train(Loop(Mode(counting, compact=True), js.sign_gd, ["train_loss", "s21"]), schedule)
    program = jax.jit(jax.vmap(lambda start, hyper, rate: one(key, start, hyper, {"learning_rate": rate})))
    starting = jax.jit(functools.partial(begin, task))

    def lanes(settings):
        hypers = [js.Hyper(mu=c * 1.0, sigma_p=c * 2.0, sigma_0=0.05 / c) for c, _ in settings]
        hypers = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), h) for h in hypers]
        stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
        starts = stack(*(starting(key, h) for h in hypers))
        return program(starts, stack(*hypers), jnp.array([rate for _, rate in settings], jnp.float32))

    eta = 2.0**-10
    scaled = lanes([(1.0, eta), (2.0, eta / 2), (4.0, eta / 4), (1.0, 0.02)])
    count = len(traced)
    loss = np.asarray(scaled["trace"]["train_loss"])
    assert loss[0, -1] < 0.6 * loss[0, 0]
    for lane in (1, 2):  # (mu, sigma_p, sigma_0, eta) -> (c mu, c sigma_p, sigma_0/c, eta/c), bit for bit
        np.testing.assert_array_equal(loss[lane], loss[0])
    # Sharp attention underflows and says when; the others never do.
    frozen = np.asarray(scaled["watch"]["first_frozen_step"])
    assert frozen[:3].tolist() == [-1, -1, -1]
    assert 0 < frozen[3] < 60
    s21 = np.asarray(scaled["trace"]["s21"])[3, :, 0].min(-1)
    records = np.arange(0, 61, 10)
    assert s21[records < frozen[3]].min() > 0
    assert s21[records >= frozen[3]].max() < 1e-20
    # A diverging neighbour is marked and changes nothing.
    beside = lanes([(1.0, eta), (1.0, 1e30), (4.0, eta / 4), (1.0, 0.02)])
    assert len(traced) == count
    assert beside["status"].tolist() == [0, 1, 0, 0]
    assert beside["first_bad_step"].tolist() == [-1, 1, -1, -1]
    lost = np.asarray(beside["trace"]["train_loss"])
    assert np.isfinite(lost[1, 0])
    assert np.isnan(lost[1, 1:]).all()
    for lane in (0, 2, 3):
        for a, b in zip(jax.tree.leaves(beside), jax.tree.leaves(scaled)):
            np.testing.assert_array_equal(a[lane], b[lane])


# Closed forms: descent on c w^2 / 2 multiplies w by (1 - rate c) a step.
RATE, CURVATURE = 0.1, 0.5


def observe(params, data, test, hyper):
    fresh = {} if test is None else {"gap": test - params["w"][0], "gaps": test - params["w"]}
    return {"w": params["w"], "size": jnp.sum(jnp.abs(params["w"])), **fresh}


BOWL = js.Task(
    sample=lambda key, hyper, shared: 1 + jax.random.uniform(key, (3,)),
    sample_test=lambda key, hyper, shared: jax.random.normal(key, ()),
    init=lambda key, data, hyper: {"w": data, "idle": jnp.ones(2)},
    loss=lambda params, data, hyper: 0.5 * hyper["c"] * jnp.sum(params["w"] ** 2),
    observe=observe,
    dims={"w": ("coordinate",)},
)
SGD = optax.sgd(RATE)


def roll(optimizer=SGD, steps=23, **settings):
    return js.train(jax.random.key(0), BOWL, {"c": CURVATURE}, optimizer, steps=steps, **settings)


def closed_form(steps):
    start = 1 + jax.random.uniform(js.stream(jax.random.key(0), "data"), (3,))
    return np.asarray(start) * (1 - RATE * CURVATURE) ** np.asarray(steps, float)[..., None]


@pytest.mark.parametrize(
    ("record", "steps"),
    [(5, [0, 5, 10, 15, 20]), (23, [0, 23]), ([0], [0]), ([0, 1, 7, 23], [0, 1, 7, 23]), (np.array([3, 4]), [3, 4])],
    ids=str,
)
def test_records_are_taken_where_asked_and_all_steps_are_trained(record, steps):
    run = roll(record=record)
    assert run.steps.tolist() == steps
    np.testing.assert_allclose(run.trace["w"], closed_form(steps), rtol=1e-5)
    np.testing.assert_allclose(run.params["w"], closed_form(23), rtol=1e-5)
    assert set(run.trace) == {"w", "size", "gap", "gaps"}
    np.testing.assert_array_equal(run.params["idle"], 1)


@pytest.mark.parametrize(
    ("test_every", "tested"),
    [(10, [0, 10, 20]), (7, [0, 10, 15]), (1, [0, 5, 10, 15, 20]), (20, [0, 20]), ([5, 20], [5, 20])],
    ids=str,
)
def test_test_quantities_are_nan_between(test_every, tested):
    run = roll(record=5, test_every=test_every)
    fresh = float(jax.random.normal(js.stream(jax.random.key(0), "test"), ()))
    expected = np.where(np.isin(run.steps, tested)[:, None], fresh - closed_form(run.steps), np.nan)
    np.testing.assert_allclose(run.trace["gaps"], expected, rtol=1e-5)
    np.testing.assert_allclose(run.trace["gap"], expected[:, 0], rtol=1e-5)
    assert np.isfinite(run.trace["w"]).all()


def test_log_steps_are_even_on_a_log_axis():
    steps = js.log_steps(1500, per_decade=20)
    assert (steps[0], steps[1], steps[-1]) == (0, 1, 1500)
    assert np.issubdtype(steps.dtype, np.integer)
    assert np.all(np.diff(steps) > 0)
    late = steps[steps > 50]
    np.testing.assert_allclose(np.diff(np.log10(late)), np.log10(1500) / np.ceil(20 * np.log10(1500)), rtol=0.2)
    assert js.log_steps(1).tolist() == [0, 1]
    assert roll(record=js.log_steps(23)).steps[-1] == 23
    for bad in (0, 2.0, True):
        with pytest.raises(ValueError, match="must be an int >= 1"):
            js.log_steps(bad)


def test_observables_summary_and_trace():
    def double(params, data, test, hyper):
        return 2 * params["w"] + 0 * test

    run = roll(record=5, observables=[double, "size"])
    assert list(run.trace) == ["double", "size"]
    np.testing.assert_allclose(run.trace["double"], 2 * closed_form(run.steps), rtol=1e-5)
    ds = run.to_xarray()
    assert ds.double.dims == ("optimizer", "seed", "step", "double_dim0")

    def last(trace):
        return {"last_size": trace["size"][-1], "last_step": trace["step"][-1]}

    short = roll(record=5, summary=last, keep_trace=False)
    assert short.trace == {}
    assert int(short.summary["last_step"]) == 20
    np.testing.assert_allclose(short.summary["last_size"], closed_form(20).sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="functions of different names"):
        roll(observables=[lambda *state: state[0]["w"], lambda *state: state[1]])

    def size(params, data, test, hyper):
        return params["w"]

    with pytest.raises(ValueError, match="named 'size', which is taken"):
        roll(observables=[size])
    both = roll(record=5, summary=last)
    np.testing.assert_array_equal(both.trace["size"][-1], both.summary["last_size"])
    assert set(roll(record=5).to_xarray().w.dims) == {"optimizer", "seed", "step", "coordinate"}


def poisoned(field, at):
    """SGD whose update of one field is NaN at one step."""

    def update(updates, count, params=None):
        poison = jnp.where(count == at, jnp.nan, -RATE)
        return {name: (poison if name == field else -RATE) * g for name, g in updates.items()}, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


@pytest.mark.parametrize(
    ("optimizer", "bad", "blank"),
    [
        (optax.sgd(1e30), 1, [5, 10, 15, 20]),
        (poisoned("w", 7), 8, [10, 15, 20]),  # the loss shows it at once
        (poisoned("idle", 7), 10, [10, 15, 20]),  # the loss never shows it: seen at the next record
        (poisoned("w", 22), 23, []),  # after the last record
        (poisoned("idle", 22), 23, []),
        (poisoned("w", 4), 5, [5, 10, 15, 20]),
    ],
    ids=["rate", "loss", "parameter", "last loss", "last parameter", "on a record"],
)
def test_divergence_is_dated_and_blanked(optimizer, bad, blank):
    run = roll(optimizer, record=5)
    assert (run.status, run.first_bad_step) == (1, bad)
    lost = np.isin(run.steps, blank)
    np.testing.assert_array_equal(np.isnan(run.trace["size"]), lost)
    np.testing.assert_array_equal(np.isnan(run.trace["w"]), np.repeat(lost[:, None], 3, 1))
    ds = run.to_xarray()
    assert (int(ds.status[0, 0]), int(ds.first_bad_step[0, 0])) == (1, bad)


def test_a_last_loss_that_overflows_is_seen_while_the_parameters_are_finite():
    run = roll(optax.sgd(1e25), steps=1, record=[0])
    assert np.isfinite(run.params["w"]).all()
    assert (run.status, run.first_bad_step) == (1, 1)
    assert np.isfinite(run.trace["size"]).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, ["steps must be an int >= 1", "steps=0"]),
        ({"steps": 23.0}, ["steps must be an int >= 1", "steps=23.0"]),
        ({"steps": 2.5}, ["steps must be an int >= 1", "steps=2.5"]),
        ({"steps": True}, ["steps must be an int >= 1", "steps=True"]),
        ({"record": 0}, ["record must be an int >= 1", "record=0"]),
        ({"record": 24}, ["record must be an int in [1, steps=23]", "record=24", "record=[0]"]),
        ({"test_every": 21}, ["test_every must be an int in [1, 20], the last recorded step", "test_every=21"]),
        ({"record": 5.0}, ["record must be an int >= 1", "record=5.0"]),
        ({"record": [0, 5, 3]}, ["record", "strictly increasing", "[0, 23]", "[0, 5, 3]"]),
        ({"record": [0, 5, 5]}, ["record", "strictly increasing", "[0, 5, 5]"]),
        ({"record": [0, 24]}, ["record", "[0, 23]", "[0, 24]"]),
        ({"record": [-1, 3]}, ["record", "[0, 23]", "[-1, 3]"]),
        ({"record": []}, ["record", "non-empty", "[]"]),
        ({"record": [0.0, 1.0]}, ["record", "ints", "[0.0, 1.0]"]),
        ({"test_every": 0}, ["test_every must be an int >= 1", "test_every=0"]),
        ({"test_every": [0, 7]}, ["test_every", "recorded steps", "step 7"]),
        ({"observables": ["sise"]}, ["observable", "'sise'", "did you mean 'size'"]),
        ({"observables": []}, ["observables", "at least one of"]),
        ({"trainable": ("idel",)}, ["trainable", "'idel'", "did you mean 'idle'", "'w'"]),
        ({"trainable": ()}, ["trainable", "non-empty", "()"]),
        ({"keep_trace": False}, ["keep_trace=False", "summary"]),
        ({"trainable": "w_v"}, ["trainable", "tuple of names", "'w_v'"]),
        ({"observables": "train_loss"}, ["observables", "tuple of names", "'train_loss'"]),
    ],
    ids=str,
)
def test_bad_input_names_field_value_and_range(settings, words):
    with pytest.raises(ValueError) as caught:
        roll(**{"record": 5} | settings)
    for word in words:
        assert word in str(caught.value)


def test_bad_keys_tasks_optimizers_and_numbers(problem, hyper):
    for key in (0, np.zeros(2, np.uint32), jax.random.split(jax.random.key(0))):
        with pytest.raises(ValueError, match="key must be ONE typed key"):
            js.train(key, BOWL, {"c": 1.0}, SGD, steps=3)
    with pytest.raises(ValueError, match=r"optimizer must be an optax.GradientTransformation, got <function"):
        js.train(jax.random.key(0), BOWL, {"c": 1.0}, js.sign_gd, steps=3)
    with pytest.raises(ValueError, match=r"task must be a js.Task, got function"):
        js.train(jax.random.key(0), js.two_layer, hyper, SGD, steps=3)
    with pytest.raises(ValueError, match=r"sigma_p must be .* got sigma_p=-1"):
        js.train(jax.random.key(0), js.two_layer(problem), dataclasses.replace(hyper, sigma_p=-1.0), SGD, steps=3)


def test_parameters_may_be_one_bare_array():
    task = js.Task(
        sample=lambda key, hyper, shared: jnp.ones(2),
        init=lambda key, data, hyper: jnp.zeros(2),
        loss=lambda params, data, hyper: jnp.sum((params - data) ** 2),
        observe=lambda params, data, test, hyper: {"x": params[0]},
    )
    run = js.train(jax.random.key(0), task, None, optax.sgd(0.25), steps=3)
    np.testing.assert_allclose(run.params, 0.875)


FACTOR = 2.0


def scaled(params, data, test, hyper):
    return FACTOR * hyper.sigma_p


def last(trace):
    return {"last": FACTOR * trace["train_loss"][-1]}


def descent():
    return optax.sgd(0.01 * FACTOR)


@pytest.mark.parametrize("made", [
    lambda: {"observables": ["train_loss", scaled]},
    lambda: {"summary": last, "observables": ["train_loss"]},
    lambda: {"optimizer": js.grid(descent), "observables": ["train_loss"]},
    lambda: {"optimizer": js.grid(optax.sgd, learning_rate=lambda step: 0.01 * FACTOR), "observables": ["train_loss"]},
], ids=["observable", "summary", "factory", "schedule"])  # fmt: skip
def test_a_users_function_is_traced_anew_by_every_call(problem, hyper, made, monkeypatch):
    """The same function objects, and a global that they read has changed."""
    chosen, task = made(), js.two_layer(problem)
    optimizer = chosen.pop("optimizer", js.sign_gd(1e-2))

    def numbers():
        run = js.train(jax.random.key(0), task, hyper, optimizer, steps=5, record=1, **chosen)
        return np.concatenate([np.ravel(np.asarray(x)) for x in (*run.trace.values(), *run.summary.values())])

    first, again = numbers(), numbers()
    np.testing.assert_array_equal(first, again)
    monkeypatch.setitem(globals(), "FACTOR", 4.0)
    assert not np.array_equal(numbers(), first, equal_nan=True)

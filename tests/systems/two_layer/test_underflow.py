"""What is exactly 0 because floats cannot hold it: votes that never are, and alarms for everything else."""

import dataclasses
import decimal
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign import plot
from jaxsign.claims.claim import Claim
from jaxsign.systems.two_layer import underflow
from jaxsign.systems.two_layer.feature_gradient import value_and_gradient
from jaxsign.systems.two_layer.features import FeatureData, FeatureParams, Inner
from jaxsign.systems.two_layer.task import dense
from jaxsign.systems.two_layer.underflow import QUANTITIES
from jaxsign.theory import steps as laws
from jaxsign.training.loop import Loop
from jaxsign.training.mode import Mode, choose_mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import begin
from jaxsign.training.train import make_train

WIDE = jax.config.jax_enable_x64
HYPER = js.Hyper(sigma_p=2.0, sigma_0=3e-3)
PROBLEM = js.Problem(n=4, d=200, s=6, m_k=3, m_v=2, n_test=1, supports="disjoint")
ALARMS = ["first_frozen_step", *(f"first_frozen_{name}" for name in QUANTITIES)]


def widened(x):
    """A 32-bit array with 64 bits; others as they are."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype == np.float32 else x


def both_widths(problem, rate, steps, seeds, names, every):
    """SignGD's traces in feature space in 32 and in 64 bits, from the same draws."""
    task = js.two_layer(problem, engine="feature_space")
    train = make_train(Loop(Mode(task, signs=True), js.sign_gd, names), Schedule.build(steps, every, steps))
    hyper = jax.tree.map(jnp.float32, js.presets.disjoint()[1])
    keys = jax.vmap(lambda s: jax.random.key(s))(jnp.arange(seeds))
    start = jax.jit(jax.vmap(lambda key: begin(task, key, hyper, None, jnp.float32(0))))(keys)

    def run(start, hyper, rate):
        return jax.jit(jax.vmap(lambda k, s: train(k, s, hyper, {"learning_rate": rate})))(keys, start)

    narrow = run(start, hyper, jnp.float32(rate))
    with jax.enable_x64(True):
        wide = run(jax.tree.map(widened, start), jax.tree.map(widened, hyper), np.float64(rate))
    return narrow, wide


FEATURES = ["query_noise", "key_noise", "value_noise", "query_signal", "key_signal", "value_signal"]


def compare(narrow, wide, tolerance):
    for name in FEATURES:
        a, b = (np.asarray(out["trace"][name], float) for out in (narrow, wide))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)
        for values in (a, b):  # no record is that of the one before
            flat = values.reshape(*values.shape[:2], -1)
            assert np.all(np.any(flat[:, 1:] != flat[:, :-1], axis=2)), name
    value = np.asarray(wide["trace"]["value_signal"])
    assert np.all(np.diff(value, axis=1)[:, 1:] > 0)


def test_32_bits_follow_64_where_the_attention_on_the_signal_underflows():
    """The value signal's votes p_i (s_11 + s_21) fall below 1e-38 within the run, as log s_21 and the loss say."""
    problem = dataclasses.replace(PROBLEM, n=3, m_k=6)
    narrow, wide = both_widths(problem, 1e-2, 400, 3, [*FEATURES, "train_loss", "s11", "s21"], 40)
    assert np.all(np.asarray(narrow["trace"]["s11"])[:, -1] == 0)
    assert np.all(np.asarray(narrow["trace"]["s21"])[:, -1] == 0)
    compare(narrow, wide, 2e-3)
    for name in ALARMS:
        assert np.all(np.asarray(narrow["watch"][name]) == -1)


@pytest.mark.slow
def test_32_bits_follow_64_to_step_20000():
    """Disjoint preset, six seeds: the votes for the value signal are below 32 bits from t = 2,884 on, 64 from 8,252."""
    problem = dataclasses.replace(js.presets.disjoint()[0], n_test=1)
    narrow, wide = both_widths(problem, 1e-4, 20_000, 6, FEATURES, 200)
    compare(narrow, wide, 4e-4)
    signal = np.asarray(narrow["trace"]["value_signal"], float)
    np.testing.assert_allclose(signal[:, -1] - signal[:, 0], 20_000 * 2e-4, rtol=2e-3)  # every vote the same way


def draw(seed, heads=1, alpha=0.0, scale=1.0, n=5, size=1.0):
    """Random features, (n,) examples, of which the last has no weight."""
    rng, dtype = np.random.default_rng(seed), jnp.zeros(()).dtype
    one = jnp.ones((), dtype)

    def inner(*shape):
        signal, noise = size * scale * rng.standard_normal(shape), size * scale * rng.standard_normal((*shape, n, 1))
        return Inner(jnp.asarray(signal, dtype), jnp.asarray(noise, dtype), one)

    y = rng.choice([-1.0, 1.0], n)
    weight = np.where(np.arange(n) < n - 1, 1 / (n - 1), 0)
    data = FeatureData(
        y=jnp.asarray(y, dtype), y_clean=jnp.asarray(y * rng.choice([-1.0, 1.0], n), dtype),
        signal_slot=jnp.zeros(n, jnp.int32), mu=one, alpha=jnp.asarray(alpha, dtype), metric=jnp.ones((n, 1), dtype),
        value_metric=one, weight=jnp.asarray(weight, dtype),
    )  # fmt: skip
    return FeatureParams(inner(2 * heads), inner(2 * heads), inner(), heads=heads), data


def numbers(x):
    """Numbers of an array as decimals."""
    flat = np.asarray(x, float)
    return np.array([decimal.Decimal(float(v)) for v in flat.ravel()], object).reshape(flat.shape)


@functools.cache
def drawn_with_attention(seed, heads, alpha, size):
    """What `draw` gives, its features as decimals, and the attention on the signal: 700 digits of it take a while."""
    decimal.getcontext().prec = 700
    params, data = draw(seed, heads, alpha, size=size)
    mu, clean = decimal.Decimal(float(data.mu)), numbers(data.y_clean)
    c, a = clean * mu, clean * mu * decimal.Decimal(float(data.alpha))
    q_mu, k_mu, v_mu = (numbers(m.signal) for m in (params.w_q, params.w_k, params.w_v))
    q, k = (numbers(m.noise)[..., 0] - mu[:, None] * a for m, mu in ((params.w_q, q_mu), (params.w_k, k_mu)))
    v, v_mu, rows, n = numbers(params.w_v.noise)[:, 0] - v_mu * a, v_mu[()], len(q_mu), data.weight.size
    head = np.arange(rows) * heads // rows
    s = np.array([[[1 / (1 + (-sum(
        (c[i] * q_mu[r] if token == 0 else q[r, i]) * (c[i] * k_mu[r] - k[r, i]) for r in range(rows) if head[r] == h
    )).exp()) for i in range(n)] for h in range(heads)] for token in (0, 1)], object)  # fmt: skip
    return params, data, (c, a, q_mu, k_mu, v_mu, q, k, v, head, s)


def by_hand(data, features, residual):
    """Signs of all derivatives with 700 digits: 1 - exp(-900) is not 1, and nothing underflows."""
    decimal.getcontext().prec = 700
    c, a, q_mu, k_mu, v_mu, q, k, v, head, (s11, s21) = features
    y, w = numbers(data.y), numbers(data.weight)
    in_a, in_b = (x * (1 - x) for x in (s11, s21))
    r = decimal.Decimal(float(residual))
    m, on = r + (s11 + s21).sum(0), r + (2 - s11 - s21).sum(0)
    p = np.array([1 / (1 + x.exp()) for x in y * (m * c * v_mu + on * v)], object)
    e, gap = -w * y * (c * v_mu - v), c * k_mu[:, None] - k
    pull = in_a[head] * c * q_mu[:, None] + in_b[head] * q

    def sign(x):
        return np.vectorize(lambda one: float((one > 0) - (one < 0)))(x)

    return {
        "w_q": (sign((p * e * (c * in_a - a * in_b)[head] * gap).sum(1)), sign(p * e * in_b[head] * gap)),
        "w_k": (sign((p * e * (c + a) * pull).sum(1)), sign(-p * e * pull)),
        "w_v": (sign((-w * y * p * (c * m - a * on)).sum()), sign(-w * y * p * on)),
    }


CASES = [
    (heads, alpha, residual, size)
    for heads, alpha in ((1, 0.0), (2, 0.0), (2, 0.3))
    for residual in (0.0, -1.0, -2.0 * heads, 0.4)
    for size in (0.5, 4.0, 12.0)
]


votes = jax.jit(value_and_gradient, static_argnums=2)


@pytest.mark.parametrize(("heads", "alpha", "residual", "size"), CASES)
def test_every_vote_is_that_of_exact_arithmetic(heads, alpha, residual, size):
    """Attention saturated on either token, r that cancels whole attentions, label and feature noise, padding."""
    for seed in range(3):
        params, data, features = drawn_with_attention(seed, heads, alpha, size)
        slope = votes(params, data, True, residual)[1]
        for name, (signal, noise) in by_hand(data, features, residual).items():
            mine = getattr(slope, name)
            np.testing.assert_array_equal(np.sign(mine.signal).ravel(), np.ravel(signal), err_msg=f"{name} {seed}")
            np.testing.assert_array_equal(np.sign(mine.noise).ravel(), np.ravel(noise), err_msg=f"{name} {seed}")


def test_votes_do_not_depend_on_the_size_of_what_is_small():
    """Features of 1e-30: products of two of them are below 32 bits at the first step already."""
    params, data = draw(3, scale=1e-30)
    large, _ = draw(3, scale=1e-3)
    small, plain = (votes(p, data, True)[1] for p in (params, large))
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(plain)):
        np.testing.assert_array_equal(np.sign(a), np.sign(b))
    zero = jax.tree.map(np.zeros_like, params)
    slope = votes(zero, data, True)[1]
    assert not np.any(np.asarray(slope.w_q.signal))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_each_step_is_the_law_of_that_step():
    """The trained features move by `jaxsign.theory.steps`, where floats hold the law's factors."""
    task = js.two_layer(PROBLEM, engine="feature_space")
    names = ["query_noise", "key_noise", "value_noise", "query_signal", "key_signal", "value_signal", "s11", "s21"]
    hyper = dataclasses.replace(HYPER, label_noise=0.5)
    run = js.train(jax.random.key(1), task, hyper, js.sign_gd(1e-3), steps=60, record=1, observables=names)
    t, l1 = {n: np.asarray(v, float) for n, v in run.trace.items()}, np.asarray(run.constants["noise_l1"], float)
    data = jax.jit(task.sample)(js.stream(jax.random.key(1), "data"), jax.tree.map(jnp.asarray, hyper))
    c = np.asarray(data.y_clean * data.y, float)
    assert set(c) == {-1.0, 1.0}
    for i in range(60):
        s11, s21, v, v_mu = t["s11"][i, 0], t["s21"][i, 0], t["value_noise"][i], t["value_signal"][i]
        on_signal = s11 + s21
        margin = on_signal * c * v_mu + (2 - on_signal) * v
        p, g, a, b = 1 / (1 + np.exp(margin)), v - c * v_mu, s11 * (1 - s11), s21 * (1 - s21)
        q, k, q_mu, k_mu = (t[n][i] for n in ("query_noise", "key_noise", "query_signal", "key_signal"))
        moves = {
            "value_noise": laws.value_noise_step(1e-3, l1),
            "value_signal": laws.value_signal_step(1e-3, 1.0, p, on_signal, c),
            "query_noise": laws.query_noise_step(1e-3, l1, g, c, k, k_mu),
            "key_noise": laws.key_noise_step(1e-3, l1, g, c, a, b, q, q_mu),
            "query_signal": laws.query_signal_step(1e-3, 1.0, p, g, c, a, k, k_mu),
            "key_signal": laws.key_signal_step(1e-3, 1.0, p, g, c, a, b, q, q_mu),
        }
        for name, move in moves.items():
            np.testing.assert_allclose(t[name][i + 1] - t[name][i], move, atol=2e-5, err_msg=f"{name} at {i}")


def gradient_of(task, params, batch, hyper):
    """The gradient of what is trained, in the params' own form; the rest of the tree is left as it is."""

    def loss(trained):
        return task.loss(dataclasses.replace(params, **trained), batch, hyper)

    trained = {name: getattr(params, name) for name in ("w_q", "w_k", "w_v")}
    return dataclasses.replace(params, **jax.grad(loss)(trained))


@functools.cache
def looks(task):
    """`(params, batch, hyper, gradient) -> {name of an alarm: whether it rings}`, as one program."""
    return jax.jit(lambda *seen: {name: alarm(*seen) for name, alarm in task.watch.items()})


def ringing(alarms):
    """Names of the alarms that ring."""
    return {name for name, rang in alarms.items() if rang}


@functools.cache
def start_of(task, engine):
    """The weights of a task's start in the form that is trained, and its data: one program."""

    @jax.jit
    def start(key):
        made = begin(task, key, HYPER, None, jnp.ones(()))
        if task.reduction.compact is not None and engine == "support":
            return task.reduction.compact(made.params, made.data), made.data
        return made.params, made.data

    return start(jax.random.key(0))


def started(engine="dense", kernel="softmax", **changes):
    """A task, the weights of its start in the form that is trained, and its data, which all kernels draw alike."""
    shared = {"supports": "independent", "d": 40} if engine == "hybrid" else {}  # most coordinates have several users
    problem = dataclasses.replace(PROBLEM, **shared, **changes)
    task = js.two_layer(dataclasses.replace(problem, kernel=kernel), engine=engine)
    return task, *start_of(js.two_layer(problem, engine=engine), engine), jax.tree.map(jnp.asarray, HYPER)


@pytest.mark.parametrize("engine", ["dense", "support", "feature_space", "hybrid"])
@pytest.mark.parametrize(("kernel", "context"), [("softmax", 2), ("softmax", 3), ("gaussian", 2), ("linear", 2)])
def test_every_engine_and_kernel_has_an_alarm_for_every_quantity(engine, kernel, context):
    task, params, data, hyper = started(engine, kernel, context=context)
    assert sorted(task.watch) == sorted(ALARMS)
    fields = {"w_q": "query", "w_k": "key", "w_v": "value"}

    @jax.jit
    def look(params, data, hyper):
        """What the alarms say of the gradient, of one with a field of zeros, and of one without a field."""
        moved = gradient_of(task, params, data, hyper)

        def changed(change):
            return {
                field: looks(task)(
                    params,
                    data,
                    hyper,
                    dataclasses.replace(moved, **{field: jax.tree.map(change, getattr(moved, field))}),
                )
                for field in fields
            }

        missing = changed(lambda x: None)  # as if not trained
        return looks(task)(params, data, hyper, moved), changed(jnp.zeros_like), missing

    plain, gone, missing = look(params, data, hyper)
    assert not ringing(plain)
    for field, name in fields.items():
        assert ringing(gone[field]) == {
            "first_frozen_step", f"first_frozen_{name}_noise", f"first_frozen_{name}_signal"
        }  # fmt: skip
        assert not ringing(missing[field])


def test_noise_and_signal_are_told_apart():
    task, params, data, hyper = started()
    slopes = jax.jit(functools.partial(gradient_of, task))
    slope = slopes(params, data, hyper)
    used = int(data.support[0, 0, 0])
    unused = next(j for j in range(1, PROBLEM.d) if j not in set(np.asarray(data.support).ravel().tolist()))
    for column, expected in ((0, {"query_signal"}), (used, {"query_noise"}), (unused, set())):
        w_q = np.array(slope.w_q)
        w_q[1, column] = 0
        found = ringing(looks(task)(params, data, hyper, dataclasses.replace(slope, w_q=w_q)))
        assert found == ({f"first_frozen_{n}" for n in expected} | ({"first_frozen_step"} if expected else set()))
    zero = jax.tree.map(np.zeros_like, params)  # sigma_0 = 0: the law itself says 0
    masked = dataclasses.replace(data, weight=data.weight * np.float32(np.arange(PROBLEM.n) > 0))  # a mini-batch
    for own, examples in ((zero, data), (params, masked)):
        assert not ringing(looks(task)(own, examples, hyper, slopes(own, examples, hyper)))


@pytest.mark.parametrize("engine", ["dense", "support", "feature_space", "hybrid"])
def test_an_alarm_says_when_the_loss_is_gone(engine):
    """A large value vector fits every label: p_i underflows, and everything that is trained freezes."""
    task, params, data, hyper = started(engine)
    y, shift = np.asarray(data.y), 1e5 if WIDE else 1e3
    featured = engine in ("feature_space", "hybrid")
    if not featured:
        noise = np.asarray(data.basis)[1:]
        push = shift * y @ noise / np.sum(noise**2, 1).mean()
        if engine == "support":
            push = push[np.asarray(params.active)]

    @jax.jit
    def look(params, data, hyper):
        if featured:
            value = params.w_v._replace(noise=params.w_v.noise + shift * y[:, None])
        elif engine == "support":
            value = params.w_v._replace(moved=params.w_v.moved.at[0].add(push))
        else:
            value = params.w_v.at[0].add(push)
        params = dataclasses.replace(params, w_v=value)
        slope = task.gradient(params, data, hyper, False)[1] if featured else gradient_of(task, params, data, hyper)
        return task.loss(params, data, hyper), looks(task)(params, data, hyper, slope)

    loss, alarms = look(params, data, hyper)
    assert loss == 0
    assert ringing(alarms) == set(ALARMS)


def test_values_alone_ring_for_values_alone():
    """Queries and keys that are not trained cannot freeze, whatever their gradients are."""
    task = js.two_layer(dataclasses.replace(PROBLEM, supports="independent"))
    rate = js.sign_gd(20.0 if WIDE else 1.0)
    run = js.train(
        jax.random.key(0), task, HYPER, rate, steps=60, record=20, trainable=("w_v",), observables=["train_loss"]
    )
    assert run.watch["first_frozen_step"] == run.watch["first_frozen_value_noise"] > 0
    for name in ("query_noise", "query_signal", "key_noise", "key_signal"):
        assert run.watch[f"first_frozen_{name}"] == -1


@pytest.mark.parametrize("engine", ["support", "feature_space", "hybrid"])
def test_optimizers_that_read_magnitudes_freeze_and_say_so(engine):
    """Signum reads magnitudes, which underflow in every engine; SignGD's signs do not where features are trained."""
    supports = "independent" if engine == "hybrid" else "disjoint"
    task, steps = js.two_layer(dataclasses.replace(PROBLEM, supports=supports), engine=engine), 400
    given = {"steps": steps, "record": steps, "observables": ["train_loss"]}
    trained = [js.train(jax.random.key(0), task, HYPER, one(1e-1 if WIDE else 3e-2), **given)
               for one in (lambda rate: js.signum(rate, beta=0.5), js.sign_gd)]  # fmt: skip
    for run, magnitudes in zip(trained, (True, engine == "support")):
        frozen = [run.watch[f"first_frozen_{name}"] for name in QUANTITIES]
        assert run.watch["first_frozen_step"] == (min(step for step in frozen if step >= 0) if magnitudes else -1)
        assert (max(frozen) > 0) == magnitudes


def test_deep_layers_have_their_own_alarms():
    problem = js.DeepProblem(n=4, d=60, s=5, m_k=3, m_v=3, n_test=5, depth=2)
    task, hyper = js.deep_transformer(problem), dataclasses.replace(HYPER, residual=1.0)
    hyper = jax.tree.map(jnp.asarray, hyper)
    assert set(task.watch) == {"first_frozen_step", "first_frozen_layer_1", "first_frozen_layer_2"}
    start = jax.jit(lambda key: begin(task, key, hyper, None))(jax.random.key(0))

    @jax.jit
    def look(params, data):
        whole = {n: w for n, w in params.items() if n.startswith("attention")}
        slope = jax.grad(lambda w, p: task.loss({**p, **w}, data, hyper))(whole, params)
        slope = {n: slope.get(n) for n in params}
        gone = {**slope, "attention_2/w_k": slope["attention_2/w_k"].at[0, 0].set(0)}
        return [looks(task)(params, data, hyper, gradient) for gradient in (slope, gone)]

    for params in (start.params, jax.jit(task.reduction.compact)(start.params, start.data)):
        plain, gone = look(params, start.data)
        assert not ringing(plain)
        assert ringing(gone) == {"first_frozen_step", "first_frozen_layer_2"}
    names = sorted(task.watch)
    run = js.train(jax.random.key(0), task, HYPER, js.sign_gd(1e-2), steps=5, record=5, observables=["train_loss"])
    assert sorted(run.watch) == names
    assert set(run.watch.values()) <= {-1, *range(6)}


def result(**frozen):
    """A Dataset of one optimizer with what a horizon reads."""
    import xarray as xr

    steps = {name: (("optimizer", "seed"), np.array([[value, -1]], np.int32)) for name, value in frozen.items()}
    more = {"status": (("optimizer", "seed"), np.zeros((1, 2), np.int8))}
    return xr.Dataset({**steps, **more}, {"family": ("optimizer", ["sign_gd"]), "step": [0, 100], "seed": [0, 1]})


def test_a_horizon_reads_what_its_claim_is_made_of():
    part = js.Part("x", lambda ds: ds["train_loss"], (0.0, 1.0))
    claim = Claim(id="X", statement="", source="ours", family="sign_gd", parts=(part,), trusted_until=50)
    never = dict.fromkeys(ALARMS, -1)
    claim.select(result(**never))
    claim.select(result(**{**never, "first_frozen_value_signal": 10, "first_frozen_step": 10}))
    claim.select(result(**{**never, "first_frozen_key_noise": 51, "first_frozen_step": 51}))
    for name, words in (("query_noise", "query-noise"), ("key_noise", "key-noise"), ("query_signal", "query-signal")):
        with pytest.raises(
            js.CannotDecide, match=f"{words} gradients underflow from step 50 on, before the horizon 50"
        ):
            claim.select(result(**{**never, f"first_frozen_{name}": 50, "first_frozen_step": 50}))
    claim.select(result(first_frozen_step=-1))  # stored by a version that watched query noise alone
    with pytest.raises(js.CannotDecide, match="query-noise gradients underflow from step 7"):
        claim.select(result(first_frozen_step=7))
    with pytest.raises(js.CannotDecide, match="does not say"):
        claim.select(result())


def test_figures_hatch_what_is_frozen_and_say_so_in_the_panel():
    from matplotlib.figure import Figure

    def hatched(name, **frozen):
        ax = Figure().subplots()
        ax.set_xlim(0, 100)
        plot.hatch_underflow(ax, result(**frozen), name)
        spans = [patch for patch in ax.patches if patch.get_hatch()]
        assert len(ax.get_legend_handles_labels()[1]) == len(spans)
        return spans[0].get_x() if spans else None

    never = dict.fromkeys(ALARMS, -1)
    own = {**never, "first_frozen_key_noise": 30, "first_frozen_query_noise": 60, "first_frozen_step": 30}
    assert [hatched(n, **own) for n in ("key_noise", "query_noise", "s21", "s11")] == [30, 60, 30, 30]
    assert hatched("value_noise", **own) is hatched("train_loss", **own) is hatched("query_noise", **never) is None
    assert hatched("query_noise", first_frozen_step=40) == hatched("s21", first_frozen_step=40) == 40
    assert hatched("key_noise", first_frozen_step=40) is None  # an older version did not look at it
    assert hatched("key_noise", **{**never, "first_frozen_key_noise": 100}) is None


def test_an_older_store_is_extended_without_the_alarms_that_it_lacks(tmp_path, monkeypatch):
    """-1 would say "never" of the stored runs, which nobody watched."""

    def sweep(seeds):
        return js.Sweep(
            system=js.two_layer, problem=PROBLEM, hyper=HYPER, axes={"seed": seeds},
            steps=4, record=2, test_every=4, observables=["train_loss"],
            optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])},
        )  # fmt: skip

    with monkeypatch.context() as older:
        older.setattr(underflow, "alarms", lambda find, now=underflow.alarms: dict(list(now(find).items())[:1]))
        dense.cache_clear()
        js.run_sweep(sweep(2), out=tmp_path / "r")
    dense.cache_clear()
    ds = js.run_sweep(sweep(3), out=tmp_path / "r").load()
    assert ds.sizes["seed"] == 3
    assert [str(n) for n in ds.data_vars if str(n).startswith("first_frozen")] == ["first_frozen_step"]
    assert np.all(ds["first_frozen_step"] == -1)
    assert np.all(ds["status"] == 0)
    new = js.run_sweep(sweep(3), out=tmp_path / "new").load()
    assert {str(n) for n in new.data_vars if str(n).startswith("first_frozen")} == set(ALARMS)
    np.testing.assert_array_equal(new["train_loss"], ds["train_loss"])


def test_the_signs_mode_is_what_sign_gd_is_trained_with():
    task = js.two_layer(PROBLEM, engine="feature_space")
    assert choose_mode(task, js.sign_gd, [{"learning_rate": 1e-3}], HYPER).mode.signs

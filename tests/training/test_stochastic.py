"""Random numbers of an optimizer and of a loss belong to one run, wherever it runs; seeds never share them."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.optimizers.draws import draws
from jaxsign.optimizers.grid import Grid, as_grid
from jaxsign.store import checkpoints
from jaxsign.sweep import execute as blocks
from jaxsign.sweep.identity.definition import definition
from jaxsign.training.mode import choose_mode
from jaxsign.training.task import Padding, Reduction

HYPER, STEPS, RATE = {"slope": 1.0}, 6, 0.5
LIKE = {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32), "b": jax.ShapeDtypeStruct((5,), jnp.float32)}


@functools.cache
def constant(problem):
    """A loss whose gradient is `slope` everywhere: what is left of an update is noise."""
    return js.Task(
        sample=lambda key, hyper, shared: jnp.ones(4),
        init=lambda key, data, hyper: {"w": jnp.zeros(4), "b": jnp.zeros(2)},
        loss=lambda params, data, hyper: hyper["slope"] * (jnp.sum(params["w"] * data) + jnp.sum(params["b"])),
        observe=lambda params, data, test, hyper: {"train_loss": jnp.sum(params["w"]), **params},
        name="constant",
    )


def sweep(optimizers, seeds=4, **changes):
    base = {
        "system": constant, "problem": None, "hyper": HYPER, "optimizers": optimizers, "axes": {"seed": seeds},
        "steps": STEPS, "record": 1, "observables": ["train_loss", "w", "b"],
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def noisy(**keywords):
    return js.grid(optax.noisy_sgd, learning_rate=RATE, **keywords)


def by_hand(seed, key=None, eta=0.01, gamma=0.55, rate=RATE, steps=STEPS):
    """{name: (steps + 1, ...)} of noisy_sgd on `constant`: one normal draw a leaf and step, leaves in order of name."""
    key = js.stream(jax.random.key(seed), "optimizer") if key is None else key
    out = {"b": [np.zeros(2)], "w": [np.zeros(4)]}
    for t in range(steps):
        key, now = jax.random.split(key)
        for one, name in zip(jax.random.split(now, 2), out):
            noise = np.asarray(jax.random.normal(one, out[name][0].shape), float)
            out[name].append(out[name][-1] - rate * (1 + np.sqrt(eta / (1 + t) ** gamma) * noise))
    return {name: np.stack(values) for name, values in out.items()}


@pytest.fixture(scope="module")
def four():
    """Noisy SGD at two learning rates, four seeds."""
    return js.run_sweep(sweep({"noisy": js.grid(optax.noisy_sgd, learning_rate=[RATE, 2 * RATE], eta=0.04)}))


@pytest.mark.x64
def test_a_sweep_s_noise_is_the_one_drawn_by_hand_from_each_seed_s_stream(four):
    for seed in range(4):
        for place, rate in enumerate((RATE, 2 * RATE)):  # paired: both rates see the same draws
            for name, wanted in by_hand(seed, eta=0.04, rate=rate).items():
                np.testing.assert_allclose(four[name].isel(optimizer=place, seed=seed), wanted, rtol=1e-6, atol=1e-6)
    ends = four["w"].isel(optimizer=0, step=-1).values
    assert np.ptp(ends, axis=0).min() > 0.1  # seeds differ in every coordinate
    assert not {"key", "optimizer_key", "optimizer_seed"} & set(four.coords)  # the keyword is no number of the grid
    assert four["optimizer"].values.tolist() == ["noisy(learning_rate=0.5)", "noisy(learning_rate=1)"]


def test_the_optimizer_s_stream_is_the_fifth_and_leaves_the_others_alone():
    key = jax.random.key(3)
    for number, name in enumerate(["data", "init", "train", "test", "optimizer"]):
        wanted = jax.random.key_data(jax.random.fold_in(key, number))
        np.testing.assert_array_equal(jax.random.key_data(js.stream(key, name)), wanted)


def test_noise_does_not_depend_on_place_width_extension_or_neighbours(four, tmp_path):
    def same(ds, seeds):
        for place, seed in enumerate(seeds):
            for name in "wb":
                whole, part = (d[name].isel(optimizer=0, seed=s) for d, s in ((four, seed), (ds, place)))
                np.testing.assert_array_equal(whole, part)

    first = noisy(eta=0.04)
    same(js.run_sweep(sweep({"noisy": first}), lane_width=1), range(4))
    same(js.run_sweep(sweep({"noisy": first}, seeds=[3, 1])), [3, 1])
    js.run_sweep(sweep({"noisy": first}, seeds=2), tmp_path / "out")
    same(js.run_sweep(sweep({"noisy": first}, seeds=4), tmp_path / "out"), range(4))
    run = js.train(jax.random.key(3), constant(None), HYPER, first, steps=STEPS, record=1)
    np.testing.assert_array_equal(run.trace["w"], four["w"].isel(optimizer=0, seed=3))


@pytest.mark.x64
def test_noise_goes_on_where_a_run_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "FIRST_STEPS", 5)
    long = functools.partial(sweep, {"noisy": noisy()}, steps=40)
    save, load, resumed = checkpoints.save, checkpoints.load, []

    def cut(folder, step, *rest):
        save(folder, step, *rest)
        raise KeyboardInterrupt

    def loading(*arguments):
        found = load(*arguments)
        resumed.append(found and found[0])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            js.run_sweep(long(), tmp_path / "out", checkpoint_every=1e-9, lane_width=2)
    monkeypatch.setattr(checkpoints, "load", loading)
    again = js.run_sweep(long(), tmp_path / "out", lane_width=2)
    assert resumed
    assert 0 < resumed[0] < 40  # it went on in the middle, with the key of its state
    np.testing.assert_array_equal(again["w"], js.run_sweep(long(), lane_width=2)["w"])
    for seed in range(4):
        wanted = by_hand(seed, steps=40)["w"]
        np.testing.assert_allclose(again["w"].isel(optimizer=0, seed=seed), wanted, rtol=1e-5, atol=1e-5)


def needs_key(learning_rate, key):
    return optax.noisy_sgd(learning_rate, key=key)


def only_by_name(learning_rate, *, key=None, nesterov=False):
    return optax.chain(optax.add_noise(0.01, 0.55, key), optax.sgd(learning_rate, nesterov=nesterov))


def default_seed(learning_rate, seed=0):
    return optax.chain(optax.add_noise(0.01, 0.55, jax.random.key(seed)), optax.sgd(learning_rate))


def both(learning_rate, seed=7, key=None):
    return optax.noisy_sgd(learning_rate, key=seed if key is None else key)


class Noisy(optax.GradientTransformation):
    """A class as a factory."""

    def __new__(cls, learning_rate, key):
        return super().__new__(cls, *optax.noisy_sgd(learning_rate, key=key))


@dataclasses.dataclass
class Unhashable:
    """A factory that has no hash."""

    learning_rate: float

    def __call__(self, key):
        return optax.noisy_sgd(self.learning_rate, key=key)


def words(learning_rate, key):
    """Keeps a key of the old kind, two words."""

    def update(updates, state, params=None):
        inner = optax.AddNoiseState(state[0], jax.random.wrap_key_data(state[1]))
        updates, inner = noise.update(updates, inner, params)
        scaled = jax.tree.map(lambda u: -learning_rate * u, updates)
        return scaled, (inner.count, jax.random.key_data(inner.rng_key))

    noise = optax.add_noise(0.01, 0.55, key)
    return optax.GradientTransformation(lambda params: (jnp.zeros([], jnp.int32), jax.random.key_data(key)), update)


def integer(seed):
    """The key that a factory makes of the integer it is handed as `seed`."""
    return jax.random.key(jax.random.bits(js.stream(jax.random.key(seed), "optimizer"), dtype=jnp.uint32))


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (js.grid(needs_key, learning_rate=RATE), None),
        (functools.partial(needs_key, RATE), None),
        (js.grid(functools.partial(optax.noisy_sgd, eta=0.01), learning_rate=RATE), None),
        (js.grid(only_by_name, learning_rate=RATE, nesterov=False), None),
        (js.grid(default_seed, learning_rate=RATE), integer),
        (js.grid(both, learning_rate=RATE), None),
        (js.grid(Noisy, learning_rate=RATE), None),
        (js.grid(words, learning_rate=RATE), None),
        (js.grid(Unhashable(RATE)), None),
    ],
    ids=["required", "partial", "partial grid", "by name", "seed", "key before seed", "class", "two words", "no hash"],
)
def test_factories_of_every_form_get_the_run_s_key_or_an_integer_drawn_from_it(entry, key):
    ds = js.run_sweep(sweep({"x": entry}, seeds=2))
    for seed in range(2):
        for name, wanted in by_hand(seed, key and key(seed)).items():
            np.testing.assert_allclose(ds[name].isel(optimizer=0, seed=seed), wanted, rtol=1e-6, atol=1e-6)
    grid = as_grid(entry)
    run = js.train(jax.random.key(1), constant(None), HYPER, grid, steps=STEPS, record=1, observables=["w", "b"])
    np.testing.assert_array_equal(run.trace["w"], ds["w"].isel(optimizer=0, seed=1))


def stateless(update):
    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def ignores_its_key(learning_rate, key=None):
    return optax.noisy_sgd(learning_rate, key=0)


def passes_anything_on(learning_rate, **rest):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optax's own, that it will soon ask for a key
        return optax.noisy_sgd(learning_rate, **rest)


def one_of_two(learning_rate, key):
    return optax.chain(optax.add_noise(0.1, 0.5, key), optax.add_noise(0.1, 0.5, 0), optax.sgd(learning_rate))


def loses_its_key(learning_rate, key):
    def update(updates, state, params=None):
        drawn = jax.tree.map(lambda u: learning_rate * jax.random.normal(state, u.shape), updates)
        return drawn, jax.random.key(0, impl="threefry2x32")

    return optax.GradientTransformation(lambda params: key, update)


def counts_from_a_fixed_key(learning_rate, key):
    def update(updates, count, params=None):
        now = jax.random.fold_in(jax.random.key(0), count)
        return jax.tree.map(lambda u: learning_rate * jax.random.normal(now, u.shape), updates), count + 1

    return stateless(jax.jit(update))


def unchanged(updates, state, params=None):
    return updates, state


def typed_key(params):
    return jax.random.key(0)


def two_words(params):
    return jax.random.PRNGKey(0)


def random_start(params):
    return jax.tree.map(lambda p: jax.random.gamma(jax.random.key(0), 2.0, p.shape), params)


def now_and_then(learning_rate):
    def drawn(updates):
        return jax.tree.map(lambda u: learning_rate * jax.random.normal(jax.random.key(0), u.shape), updates)

    def update(updates, count, params=None):
        return jax.lax.cond(count > 10, drawn, lambda updates: updates, updates), count + 1

    return stateless(update)


GENERATOR = np.random.default_rng(0)


def in_numpy(learning_rate):
    def update(updates, count, params=None):
        return jax.tree.map(
            lambda u: u + learning_rate * GENERATOR.standard_normal(u.shape).astype(u.dtype), updates
        ), count

    return stateless(update)


def another_generator(learning_rate, seed):
    def update(updates, count, params=None):
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), count)
        return jax.tree.map(lambda u: learning_rate * jax.random.normal(key, u.shape), updates), count + 1

    return stateless(update)


SAME, RATES = "from a key that is the same for every seed", {"learning_rate": RATE}
SHARED = {
    "bare": (optax.noisy_sgd(RATE, key=0), SAME),
    "key in the grid": (noisy(key=[0, 1]), SAME),
    "seed in the grid": (js.grid(default_seed, learning_rate=RATE, seed=[0, 1]), SAME),
    "key bound": (js.grid(functools.partial(optax.noisy_sgd, key=0), **RATES), SAME),
    "key bound by place": (js.grid(functools.partial(optax.noisy_sgd, RATE, 0.01, 0.55, 0)), SAME),
    "passes anything on": (js.grid(passes_anything_on, **RATES), SAME),
    "in its own way": (js.grid(ignores_its_key, **RATES), SAME),
    "one of two": (js.grid(one_of_two, **RATES), SAME),
    "loses its key": (js.grid(loses_its_key, **RATES), SAME),
    "fixed key and a count": (js.grid(counts_from_a_fixed_key, **RATES), SAME),
    "holds a key": (optax.GradientTransformation(typed_key, unchanged), SAME),
    "holds two words": (optax.GradientTransformation(two_words, unchanged), SAME),
    "random start": (optax.GradientTransformation(random_start, unchanged), SAME),
    "now and then": (js.grid(now_and_then, **RATES), SAME),
    "numpy": (js.grid(in_numpy, **RATES), "in Python while it is traced, once for all seeds and steps"),
    "rbg": (js.grid(another_generator, **RATES), "another generator than threefry2x32"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_noise_that_seeds_share_is_refused_in_one_line_with_the_remedy(name, tmp_path):
    entry, words = SHARED[name]
    calls = [lambda: js.run_sweep(sweep({"x": entry}), tmp_path / "out")]
    if isinstance(entry, optax.GradientTransformation) or len(entry.points) == 1:
        calls.append(lambda: js.train(jax.random.key(3), constant(None), HYPER, entry, steps=2))
    for call in calls:
        with pytest.raises(ValueError, match="must draw from the key of each run: it draws .*" + words) as caught:
            call()
        assert "give js.grid a factory that draws with jax.random from its keyword key (or seed)" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_draws_inside_wrappers_loops_and_conditions_count_as_the_run_s():
    def looped(key):
        def update(updates, count, params=None):
            def body(i, tree):
                return jax.tree.map(lambda u: u + jax.random.normal(jax.random.fold_in(key, i), u.shape), tree)

            return jax.lax.fori_loop(0, count, body, updates), count + 1

        return stateless(jax.jit(update))

    def poisson(seed):
        def update(updates, count, params=None):
            now = jax.random.fold_in(jax.random.key(seed), count)
            return jax.tree.map(lambda u: u * jax.random.poisson(now, 2.0, u.shape), updates), count + 1

        return stateless(update)

    inner = functools.partial(optax.noisy_sgd, RATE)
    good = [
        lambda key: optax.MultiSteps(inner(key=key), 2).gradient_transformation(),
        lambda key: optax.apply_if_finite(inner(key=key), 2),
        lambda key: optax.partition({"a": inner(key=key), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
        lambda key: optax.masked(inner(key=key), {"w": True, "b": False}),
        looped,
        poisson,
    ]
    assert [draws(factory, [{}], LIKE) for factory in good] == [[(True, "")]] * len(good)
    plain = [optax.sgd, optax.adam, optax.contrib.muon, optax.lion, optax.adafactor]
    assert [draws(factory, [RATES], LIKE) for factory in plain] == [[(False, "")]] * len(plain)
    assert draws(optax.lbfgs, [{}], LIKE) == [(False, "")]


def test_a_size_of_the_parameters_is_not_taken_for_a_number_of_runs():
    like = {"w": jax.ShapeDtypeStruct((10007,), jnp.float32)}

    def one_key_an_entry():
        def update(updates, count, params=None):
            keys = jax.random.split(jax.random.key(0), 10007)
            return jax.tree.map(lambda u: u + jax.vmap(jax.random.normal)(keys), updates), count + 1

        return stateless(update)

    assert SAME in draws(one_key_an_entry, [{}], like)[0].reason


@pytest.mark.parametrize(
    "key", [jax.random.key(0), [jax.random.key(0)], jax.random.PRNGKey(0)], ids=["0-d", "list", "words"]
)
def test_a_key_among_a_grid_s_values_is_refused_when_it_is_built(key):
    with pytest.raises(ValueError, match=r"^noisy_sgd\(key\) must be left out of js.grid, got a random key") as caught:
        noisy(key=key)
    assert "\n" not in str(caught.value)


def mask_of_numpy(learning_rate, seed=0):
    kept = np.random.default_rng(seed).random(4) < 0.5
    mask = {"w": jnp.asarray(kept, float), "b": 1.0}
    return optax.chain(optax.sgd(learning_rate), optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, mask)))


def of_the_old_kind(learning_rate, key):
    return optax.noisy_sgd(learning_rate, key=jax.random.PRNGKey(key))


@pytest.mark.parametrize(
    ("factory", "words"), [(mask_of_numpy, "'seed', a traced integer"), (of_the_old_kind, "'key', a tr")]
)
def test_a_factory_that_cannot_take_what_runs_pass_is_told_so_when_its_grid_is_built(factory, words):
    with pytest.raises(
        ValueError, match=f"^{factory.__name__} cannot be built with what every run passes as"
    ) as caught:
        js.grid(factory, learning_rate=RATE)
    assert words in str(caught.value)
    assert f"js.grid(functools.partial({factory.__name__}, " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_seed_that_makes_constants_stays_a_number_that_all_runs_share():
    bound = js.run_sweep(sweep({"x": js.grid(functools.partial(mask_of_numpy, seed=1), **RATES)}, seeds=2))
    given = js.run_sweep(sweep({"x": js.grid(mask_of_numpy, **RATES, seed=[1, 2])}, seeds=2))
    kept = np.random.default_rng(1).random(4) < 0.5
    for ds in (bound, given):
        np.testing.assert_allclose(ds["w"].isel(optimizer=0, step=-1), [-RATE * STEPS * kept] * 2)
    assert given["optimizer_seed"].values.tolist() == [1, 2]


def named_field(learning_rate, key="w"):
    return optax.masked(optax.scale(-learning_rate), {"w": key == "w", "b": key == "b"})


def test_a_keyword_of_another_meaning_is_left_alone():
    assert js.grid(named_field, learning_rate=RATE).per_run is None
    ds = js.run_sweep(sweep({"x": js.grid(named_field, learning_rate=RATE, key=["w", "b"])}, seeds=1))
    np.testing.assert_allclose(
        ds["w"].isel(step=-1, seed=0)[:, 0], [-RATE * STEPS, STEPS]
    )  # unmasked: plus the gradient


def test_a_single_run_takes_a_grid_of_one_point():
    for entry, bare in [
        (js.grid(optax.sgd, learning_rate=0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
        (js.grid(optax.adam, learning_rate=0.1), optax.adam(0.1)),
    ]:
        one, two = (js.train(jax.random.key(1), constant(None), HYPER, o, steps=STEPS, record=1) for o in (entry, bare))
        np.testing.assert_allclose(one.trace["w"], two.trace["w"], rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"optimizer must be a js.grid of one point, got a js.grid of sgd with 2 points"
    ):
        js.train(jax.random.key(1), constant(None), HYPER, js.grid(optax.sgd, learning_rate=[0.1, 0.2]), steps=2)


TINY = {"learning_rate": 0.1, "eta": 1e-38}  # measured, this noise would pass for none


@pytest.mark.parametrize("keywords", [{"learning_rate": 0.1}, TINY], ids=["noise", "tiny noise"])
def test_reduced_engines_refuse_noise_however_small_and_auto_passes_them_over(keywords):
    problem = js.Problem(n=4, d=60, s=5, m_k=3, m_v=3, n_test=10, supports="disjoint")
    for engine in ("support", "feature_space", "hybrid"):
        with pytest.raises(
            ValueError, match="it draws random numbers, and a smaller set of parameters would get others"
        ):
            choose_mode(js.two_layer(problem, engine=engine), optax.noisy_sgd, [keywords], js.Hyper(sigma_p=2.0))
    how = choose_mode(js.two_layer(problem, engine="auto"), optax.noisy_sgd, [keywords], js.Hyper(sigma_p=2.0))
    assert how.task is js.two_layer(problem, engine="dense")
    assert how.why.count("it draws random numbers") == 2


def test_a_probe_of_a_built_transform_sees_noise_however_small():
    assert js.degree(optax.noisy_sgd(0.1, eta=1e-38, key=0)).coordinatewise is False


def test_a_larger_task_s_program_never_draws_for_a_smaller_one():
    task = constant(None)
    padded = dataclasses.replace(task, reduction=Reduction(padding=Padding(task, lambda hyper: hyper, {})))
    assert choose_mode(padded, optax.sgd, [RATES], HYPER, pad=True).padded
    assert not choose_mode(padded, optax.noisy_sgd, [RATES], HYPER, pad=True).padded


def test_results_of_shared_noise_are_not_extended_with_noise_of_each_run(tmp_path, monkeypatch):
    """A directory from before runs had keys: its definition does not say that they have."""
    with monkeypatch.context() as patch:
        patch.setattr(Grid, "per_run", None)
        js.run_sweep(sweep({"noisy": noisy()}, seeds=2), tmp_path / "out")
    with pytest.raises(ValueError, match=r"another definition: optimizers.noisy: per_run null -> .key"):
        js.run_sweep(sweep({"noisy": noisy()}, seeds=4), tmp_path / "out")
    plain = definition(sweep({"gd": js.grid(optax.sgd, learning_rate=RATE)}))
    assert "per_run" not in plain["optimizers"]["gd"]["factory"]  # what draws nothing stays what it was


def test_key_is_no_number_of_the_optimizer_to_be_swept():
    with pytest.raises(ValueError, match="unknown axis 'key'"):
        sweep({"noisy": noisy()}, axes={"key": [1, 2], "seed": 2})


# ------------------------------------------------------------------------------------------- noise inside the loss


def dropped(params, batch, hyper):
    """Mean square with half of the inputs dropped; without a key nothing is."""
    x, key = batch
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0.0)
    return jnp.mean((x @ params["w"] - hyper["slope"]) ** 2)


def clean(params, data, test, hyper):
    seen = {"train_loss": dropped(params, (data, None), hyper), "w": params["w"]}
    return seen if test is None else seen | {"test_loss": dropped(params, (test, None), hyper)}


@functools.cache
def dropout(problem):
    """The step's key in the batch, as the documentation says."""
    return js.Task(
        sample=lambda key, hyper, shared: jax.random.normal(key, (6, 4)),
        sample_test=lambda key, hyper, shared: jax.random.normal(key, (5, 4)),
        init=lambda key, data, hyper: {"w": jnp.zeros(4)},
        batch=lambda key, data, hyper: (data, key),
        loss=dropped,
        observe=clean,
        watch={"noisy": lambda params, batch, hyper, gradient: dropped(params, batch, hyper) > 1.01},
        name="dropout",
    )


@functools.cache
def with_gradient(problem):
    """The same with its gradient in closed form, which draws the same mask from the batch."""

    def gradient(params, batch, hyper, signs):
        x, key = batch
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0.0)
        off = x @ params["w"] - hyper["slope"]
        return jnp.mean(off**2), {"w": 2 * off @ x / off.size}

    return dataclasses.replace(dropout(None), gradient=gradient, name="with_gradient")


def dropout_by_hand(seed, steps, rate):
    """(weights (steps + 1, 4), clean losses, test losses, first step whose noisy loss is above 1.01) in NumPy."""
    key = jax.random.key(seed)
    x, test = (
        np.asarray(jax.random.normal(js.stream(key, name), (n, 4)), float) for name, n in (("data", 6), ("test", 5))
    )
    w, alarm = [np.zeros(4)], -1
    for t in range(steps):
        kept = jax.random.bernoulli(jax.random.fold_in(js.stream(key, "train"), t), 0.5, x.shape)
        inputs = np.where(kept, 2 * x, 0.0)
        off = inputs @ w[-1] - 1.0
        if alarm < 0 and np.mean(off**2) > 1.01:
            alarm = t
        w.append(w[-1] - rate * 2 * off @ inputs / off.size)
    w = np.stack(w)
    return w, *(np.mean((w @ a.T - 1.0) ** 2, axis=1) for a in (x, test)), alarm


@pytest.mark.x64
@pytest.mark.parametrize("system", [dropout, with_gradient])
def test_dropout_is_drawn_from_the_key_of_seed_and_step_alone(system, tmp_path):
    asked = {
        "system": system, "problem": None, "hyper": HYPER, "steps": 12, "record": 1, "test_every": 1,
        "optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.1, 0.3])},
        "observables": ["train_loss", "test_loss", "w"],
    }  # fmt: skip
    ds = js.run_sweep(js.Sweep(axes={"seed": 3}, **asked))
    alarms = []
    for seed in range(3):
        for place, rate in enumerate((0.1, 0.3)):
            one = ds.isel(optimizer=place, seed=seed)
            w, loss, test, alarm = dropout_by_hand(seed, 12, rate)
            for name, wanted in (("w", w), ("train_loss", loss), ("test_loss", test)):
                np.testing.assert_allclose(one[name], wanted, rtol=1e-4, atol=1e-5)
            assert int(one["noisy"]) == alarm
            alarms.append(alarm)
    assert max(alarms) > 0
    js.run_sweep(js.Sweep(axes={"seed": 1}, **asked), tmp_path / "out")
    extended = js.run_sweep(js.Sweep(axes={"seed": 3}, **asked), tmp_path / "out")
    for name in asked["observables"]:
        np.testing.assert_array_equal(extended[name], ds[name])


def test_an_optimizer_that_evaluates_the_loss_sees_the_step_s_own_noise():
    def update(updates, state, params=None, *, value, value_fn, **rest):
        return jax.tree.map(lambda u: 0.0 * u + value - value_fn(params), updates), state

    asks = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    run = js.train(jax.random.key(0), dropout(None), HYPER, asks, steps=5, record=1)
    np.testing.assert_allclose(run.trace["w"], 0.0, atol=1e-6)


def test_two_steps_and_two_seeds_drop_other_inputs_and_one_seed_repeats_to_the_bit():
    fixed = dataclasses.replace(
        dropout(None), sample=lambda key, hyper, shared: jnp.ones((6, 4))
    )  # noise is all that differs
    one, again, other = (
        js.train(jax.random.key(seed), fixed, HYPER, optax.sgd(0.1), steps=12, record=1) for seed in (4, 4, 5)
    )
    for name, values in one.trace.items():
        np.testing.assert_array_equal(values, again.trace[name])
    assert np.abs(np.asarray(one.trace["w"] - other.trace["w"]))[1:].max(1).min() > 0
    moves = np.diff(np.asarray(one.trace["w"]), axis=0)
    assert len({tuple(move) for move in np.round(moves, 6)}) == 12
    mixed = js.train(
        jax.random.key(4), fixed, HYPER, noisy(eta=0.04), steps=12, record=1
    )  # two streams, both the run's
    assert not np.allclose(mixed.trace["w"], one.trace["w"])


@functools.cache
def key_in_the_data(problem):
    """One mask for the whole run, drawn from a key that `sample` keeps."""

    def observe(params, data, test, hyper):
        return {"train_loss": dropped(params, data, hyper), "w": params["w"]}

    return js.Task(
        sample=lambda key, hyper, shared: (jnp.ones((6, 4)), jax.random.fold_in(key, 1)),
        init=lambda key, data, hyper: {"w": jnp.zeros(4)},
        loss=dropped,
        observe=observe,
        name="key_in_the_data",
    )


def test_a_key_may_lie_in_the_data_also_where_trajectories_are_kept(tmp_path):
    made = js.Sweep(
        system=key_in_the_data, problem=None, hyper=HYPER, optimizers={"gd": js.grid(optax.sgd, learning_rate=0.1)},
        axes={"seed": 3}, steps=4, record=1, observables=["w"], trajectory="log2",
    )  # fmt: skip
    ds = js.run_sweep(made, tmp_path / "out")
    for seed in range(3):
        key = jax.random.fold_in(js.stream(jax.random.key(seed), "data"), 1)
        x, w = np.where(jax.random.bernoulli(key, 0.5, (6, 4)), 2.0, 0.0), [np.zeros(4)]
        for _ in range(4):
            w.append(w[-1] - 0.1 * 2 * (x @ w[-1] - 1) @ x / 6)
        np.testing.assert_allclose(ds["w"].isel(optimizer=0, seed=seed), w, rtol=1e-5, atol=1e-6)
    kept = js.open_trajectory(tmp_path / "out", sweep=made).sel(seed=2)
    np.testing.assert_allclose(kept.params(4)["w"], w[4], rtol=1e-5, atol=1e-6)

"""Schedules, peaks and warm-up lengths in one sweep: every run is that of its own transform."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js

STEPS = 12
LINE = js.Task(
    sample=lambda key, hyper, shared: jax.random.normal(key, (8, 3)),
    init=lambda key, data, hyper: {"w": jnp.ones(3)},
    loss=lambda params, x, hyper: jnp.mean((x @ params["w"]) ** 2),
    observe=lambda params, data, test, hyper: {"size": jnp.sum(jnp.abs(params["w"]))},
    name="line",
)


def warm(peak, warmup, shape):
    """SGD whose rate rises to a peak, and falls by one of two shapes; Optax branches on the peak in Python."""
    if shape == "cosine":
        return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, peak, warmup, STEPS))
    return optax.sgd(optax.warmup_exponential_decay_schedule(0.0, peak, warmup, 4, 0.5))


def rate(peak, warmup, shape, t):
    """The rate of step t, by hand."""
    if t < warmup:
        return peak * t / warmup
    if shape == "cosine":
        return peak * (1 + np.cos(np.pi * min((t - warmup) / (STEPS - warmup), 1))) / 2
    return peak * 0.5 ** ((t - warmup) / 4)


def sizes(seed, peak, warmup, shape):
    """The sum of |w| of one run, in NumPy."""
    x = np.asarray(jax.random.normal(js.stream(jax.random.key(seed), "data"), (8, 3)), np.float64)
    w, out = np.ones(3), []
    for t in range(STEPS + 1):
        out.append(np.abs(w).sum())
        w = w - rate(peak, warmup, shape, t) * 2 * x.T @ (x @ w) / 8
    return out


def sweep(optimizers, **changes):
    base = {"system": LINE, "problem": None, "hyper": None, "steps": STEPS, "record": 1, "axes": {"seed": 2}}
    return js.Sweep(optimizers=optimizers, **(base | changes))


PEAKS, WARMUPS, FALLS = [0.01, 0.03, 0.1], [2, 5], ["cosine", "exponential"]


def test_two_schedules_three_peaks_and_warm_up_lengths_are_one_sweep(tmp_path, capsys):
    grid = js.grid(warm, peak=PEAKS, warmup=WARMUPS, shape=FALLS)
    assert (grid.needed, grid.floats, grid.programs) == (("peak",), (), 12)
    ds = js.run_sweep(sweep({"warm": grid}), tmp_path, progress=False)
    assert "optimizers['warm']: its factory needs 'peak' in Python" in (said := capsys.readouterr().err)
    assert "(12 programs)" in said
    assert (ds["peak"].dtype, ds["warmup"].dtype) == (float, int)
    assert set(ds["peak"].values) == set(PEAKS)
    for i, point in enumerate(itertools.product(PEAKS, WARMUPS, FALLS)):
        for seed in range(2):
            np.testing.assert_allclose(ds["size"].isel(optimizer=i).sel(seed=seed), sizes(seed, *point), rtol=2e-5)
    again = js.run_sweep(sweep({"warm": grid}), tmp_path, progress=False)
    assert "programs" not in capsys.readouterr().err
    np.testing.assert_array_equal(again["size"], ds["size"])


def test_schedules_themselves_are_values_with_names_of_their_own(tmp_path):
    cosine, linear = optax.cosine_decay_schedule(0.1, STEPS), optax.linear_schedule(0.1, 0.0, STEPS)
    made = sweep({"gd": js.grid(optax.sgd, learning_rate=[cosine, linear])})
    ds = js.run_sweep(made, tmp_path, progress=False)
    assert ds["learning_rate"].values.tolist() == ["cosine(0.1)", "polynomial(0.1)"]
    assert ds["optimizer"].values.tolist() == ["gd(learning_rate=cosine(0.1))", "gd(learning_rate=polynomial(0.1))"]
    named = js.grid(optax.sgd, learning_rate={"wave": cosine, "line": linear, "flat": optax.constant_schedule(0.1)})
    more = js.run_sweep(sweep({"gd": named}), tmp_path, progress=False)  # names are no part of the definition
    assert more["optimizer"].values.tolist() == [f"gd(learning_rate={name})" for name in ("wave", "line", "flat")]
    assert more["learning_rate"].values.tolist() == ["wave", "line", "flat"]
    np.testing.assert_array_equal(more["size"].values[:2], ds["size"].values)
    one = js.train(jax.random.key(1), LINE, None, optax.sgd(linear), steps=STEPS, record=1)
    np.testing.assert_allclose(more["size"].sel(seed=1).values[1], one.trace["size"], rtol=1e-5)


def test_numbers_stay_numbers_beside_schedules(tmp_path):
    named = js.grid(optax.sgd, learning_rate={"wave": optax.cosine_decay_schedule(0.1, STEPS)})
    alone = js.run_sweep(sweep({"gd": named}), tmp_path, progress=False)
    assert alone["learning_rate"].values.tolist() == ["wave"]
    assert "learning_rate_name" not in alone.coords
    both = {"gd": named, "adam": js.grid(optax.adam, learning_rate=[0.1, 0.3]), "plain": optax.sgd(0.1)}
    made = js.run_sweep(sweep(both), tmp_path, progress=False)
    for ds in (made, js.open_results(tmp_path)):
        np.testing.assert_array_equal(ds["learning_rate"], [np.nan, 0.1, 0.3, np.nan])
        assert ds["learning_rate_name"].values.tolist() == ["wave", "", "", ""]
        assert ds.isel(optimizer=ds.learning_rate == 0.3)["family"].values.tolist() == ["adam"]
        assert ds.isel(optimizer=ds.learning_rate_name == "wave")["family"].values.tolist() == ["gd"]
    np.testing.assert_array_equal(made["size"].isel(optimizer=[0]), alone["size"])


def test_constants_and_traced_numbers_are_one_definition_and_agree(tmp_path, capsys):
    traced = js.run_sweep(sweep({"gd": js.grid(optax.sgd, learning_rate=[0.01, 0.1])}), tmp_path, progress=False)
    static = sweep({"gd": js.grid(optax.sgd, learning_rate=js.static([0.01, 0.1]))})
    np.testing.assert_array_equal(js.run_sweep(static, tmp_path, progress=False)["size"], traced["size"])
    assert "finished before" in capsys.readouterr().err
    np.testing.assert_allclose(js.run_sweep(static, progress=False)["size"], traced["size"], rtol=1e-6)
    assert "programs" not in capsys.readouterr().err  # they were asked for


@pytest.mark.parametrize("engine", ["dense", "support", "auto"])
def test_engines_find_what_a_number_that_is_not_traced_allows(engine):
    def stepped(peak):
        return js.sign_gd(optax.warmup_cosine_decay_schedule(0.0, peak, 3, STEPS))

    settings = {"system": js.two_layer, "problem": js.Problem(n=4, d=60, s=4, m_k=2, m_v=2, n_test=4)}
    made = {**settings, "hyper": js.Hyper(sigma_p=2.0), "engine": engine}
    ds = js.run_sweep(sweep({"warm": js.grid(stepped, peak=[1e-3, 1e-2])}, **made), progress=False)
    for i, peak in enumerate([1e-3, 1e-2]):
        task = js.two_layer(made["problem"], engine=engine)
        run = js.train(jax.random.key(1), task, made["hyper"], stepped(peak), steps=STEPS, record=1)
        np.testing.assert_allclose(ds["train_loss"].isel(optimizer=i, seed=1), run.trace["train_loss"], rtol=1e-5)

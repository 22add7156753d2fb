"""Data quality: laws of the noise, its engines, the laws solved for the SNR, claims on made-up Datasets, the figure."""

import dataclasses
import functools
import json
import math
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from conftest import with_levels
from scipy import stats

import jaxsign as js
from jaxsign import theory
from jaxsign.claims import data_quality as quality
from jaxsign.claims import dynamics as two_layer
from jaxsign.sweep.identity.definition import plain
from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer.problem import NOISES

ROOT = Path(__file__).parents[2]
ALARM = 1e-3  # seeds are fixed: a p-value below this is a wrong law, not bad luck
SEEDS, STEPS = 40, np.array([0, 100, 200, 300])
FAMILIES = ("sign_gd", "adam", "gd")
SNR = np.array([0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5])
EXACT = {"gaussian": stats.norm(), "laplace": stats.laplace(scale=0.5**0.5), "student_t": stats.t(3, scale=3**-0.5)}


@pytest.mark.parametrize("law", NOISES)
def test_noise_follows_its_law_at_variance_one(law):
    draws = np.asarray(signal_noise.standard_noise(jax.random.key(3), (40000,), law), float)
    assert stats.kstest(draws, EXACT[law].cdf).pvalue > ALARM
    assert EXACT[law].var() == pytest.approx(1)
    if law == "laplace":
        assert stats.kurtosis(draws, fisher=False) == pytest.approx(6, abs=0.5)
    if law == "student_t":  # no fourth moment: the weight of the tail instead
        assert np.mean(np.abs(draws) > 4) == pytest.approx(2 * EXACT[law].sf(4), rel=0.3)
        assert np.mean(np.abs(draws) > 4) > 50 * 2 * stats.norm.sf(4)


def test_gaussian_noise_is_what_it_was(problem, hyper):
    """The draws before there was a choice, written out."""

    @jax.jit
    def drawn(key):
        return signal_noise.sample(key, problem, hyper).noise, signal_noise.sample_test(key, problem, hyper).values

    @jax.jit
    def by_hand(key):
        keys = [jax.random.split(jax.random.fold_in(key, i), 3)[2] for i in range(problem.n)]
        noise = jnp.stack([jax.random.normal(k, (problem.patches, problem.s)) for k in keys])
        return noise, jax.random.normal(jax.random.split(key, 3)[2], (problem.n_test, problem.patches, problem.s))

    key = jax.random.key(0)
    for found, normal in zip(drawn(key), by_hand(key)):
        np.testing.assert_array_equal(found, np.asarray(normal) * np.float32(hyper.sigma_p))


@pytest.mark.parametrize("law", NOISES[1:])
def test_engines_draw_the_same_noise(problem, hyper, law):
    other = dataclasses.replace(problem, noise=law, supports="disjoint")
    dense, *others = (js.two_layer(other, engine=e) for e in ("dense", "support", "feature_space", "feature_space_law"))

    @functools.partial(jax.jit, static_argnums=0)
    def drawn(task, key):
        test = task.sample_test(key, hyper, None)
        return task.sample(key, hyper, None).noise, getattr(test, "drawn", test).values

    key = jax.random.key(1)
    noise, values = drawn(dense, key)
    gaussian, _ = drawn(js.two_layer(dataclasses.replace(other, noise="gaussian")), key)
    assert not np.any(np.asarray(noise) == np.asarray(gaussian))
    for task in others:
        mine, fresh = drawn(task, key)
        np.testing.assert_array_equal(mine, noise)
        np.testing.assert_array_equal(fresh, values)


@pytest.mark.slow
@pytest.mark.parametrize("law", NOISES[1:])
def test_engines_agree_on_every_law_of_the_noise(problem, hyper, eps, law):
    other = dataclasses.replace(problem, noise=law, supports="disjoint")
    runs = {
        engine: js.train(
            jax.random.key(1), js.two_layer(other, engine=engine), hyper, js.sign_gd(0.01), steps=4, record=2,
            test_every=4,
        ).to_xarray()
        for engine in ("dense", "support", "feature_space")
    }  # fmt: skip
    for engine in ("support", "feature_space"):
        for name in ("train_loss", "test_loss"):
            np.testing.assert_allclose(runs[engine][name], runs["dense"][name], rtol=300 * eps)


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match=r"unknown noise 'cauchy'.*'gaussian', 'laplace', 'student_t'"):
        js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, noise="cauchy")


def test_results_from_before_the_choice_stay_recognised():
    problem = js.presets.paper_like()[0]
    assert "noise" not in plain("problem", problem)
    assert plain("problem", dataclasses.replace(problem, noise="laplace"))["noise"] == "laplace"


@pytest.mark.parametrize("error", [0.05, 0.1, 0.3])
def test_boundaries_invert_the_laws(error):
    for n in (5, 40):
        problem = dataclasses.replace(js.presets.paper_like()[0], n=n)
        for law, solved in ((theory.sign_test_error, theory.sign_boundary), (theory.gd_test_error, theory.gd_boundary)):
            snr = solved(problem, error)
            assert float(law(problem, snr, problem.s**-0.5)) == pytest.approx(error, abs=1e-9)


def test_boundaries_at_their_ends():
    problem, _ = js.presets.disjoint()
    assert theory.sign_boundary(problem) == theory.gd_boundary(problem) == 0
    few = js.Problem(n=1, d=2000, s=2, m_k=1, m_v=1)  # most test patches share nothing: the error is below .1 anyhow
    assert theory.sign_boundary(few) == 0
    for law in (theory.sign_boundary, theory.gd_boundary):
        for error in (0.0, 0.6, math.nan):
            with pytest.raises(ValueError, match=r"error must be a finite number in \(0, 0.5\], got error="):
                law(problem, error)


def test_crossings_by_hand():
    snr = [1.0, 4.0, 16.0]
    found = quality.crossing(snr, [[0.3, 0.2, 0.0], [0.2, 0.0, 0.0], [0.0, 0.2, 0.0], [0.2, 0.2, 0.2], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(found, [8, 2, 8, np.nan, np.nan])  # the last crossing counts
    assert np.isnan(quality.crossing(snr, [0.3, np.nan, 0.0]))


def dataset(axes, error, trainable=None):
    """Runs that pass a loss of .1 at step 200 with these errors, over (axes, optimizer, seed)."""
    problem, hyper = js.presets.paper_like()
    names = [name for name, (dims, _) in axes.items() if dims == name]
    shape = [len(axes[name][1]) for name in names]
    error = np.broadcast_to(error, (*shape, len(FAMILIES), SEEDS))[..., None] * np.ones(STEPS.size)
    dims = (*names, "optimizer", "seed", "step")
    definition = {
        "problem": plain("problem", problem), "hyper": dataclasses.asdict(hyper), "trainable": trainable,
        "system": {"name": "jaxsign.two_layer"}, "dtype": "float32", "engine": "support",
    }  # fmt: skip
    loss = np.broadcast_to([0.7, 0.3, 0.05, 0.002], error.shape)
    ds = xr.Dataset(
        {"train_loss": (dims, loss), "test_error": (dims, error), "status": (dims[:-1], np.zeros(error.shape[:-1]))},
        {"optimizer": list(FAMILIES), "family": ("optimizer", list(FAMILIES)), "seed": np.arange(SEEDS), "step": STEPS}
        | axes, {"manifest": json.dumps({"definition": definition})},
    )  # fmt: skip
    return with_levels(ds, (0.1, 0.01))


def noisy(values):
    """The same for every seed up to a little, last dimension."""
    return np.asarray(values, float)[..., None] * (1 + 0.02 * np.random.default_rng(0).standard_normal(SEEDS))


@functools.cache  # no claim and no figure changes what it reads
def over_grid(stretch=(1.0, 1.0, 1.0), flat=False, trainable=()):
    """Errors of the laws over n and SNR, their SNR stretched for each optimizer; `flat`: those of n = 20 for all n."""
    base, mu = js.presets.paper_like()[0], SNR * 2 * 40**0.5
    rows = []
    for n in quality.EXAMPLES:
        problem = dataclasses.replace(base, n=20 if flat else n)
        laws = (theory.sign_test_error, theory.sign_test_error, theory.gd_test_error)
        rows.append(np.stack([law(problem, mu / factor, 2.0) for law, factor in zip(laws, stretch)], -1))
    axes = {"n": ("n", list(quality.EXAMPLES)), "snr": ("snr", SNR), "mu": ("snr", mu)}
    return dataset(axes, noisy(rows), list(trainable) or None)


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_settings_say_what_is_swept_and_what_is_trained():
    assert str(two_layer.setting_of(over_grid())) == quality.settings("n, snr")[0]
    assert str(two_layer.setting_of(over_grid(trainable=("w_v",)))) == quality.settings("n, snr")[1]


def test_the_laws_themselves_satisfy_every_claim_about_the_boundary():
    for trainable, first in (((), 1), (("w_v",), 3)):  # the control has too few seeds for claims about their share
        table = js.check(over_grid(trainable=trainable), [f"Q{i}" for i in range(first, 7)])
        assert [row.verdict for row in table.rows] == ["HOLDS"] * (7 - first)
        assert not table.missing


@pytest.mark.parametrize(
    ("claim", "changed"),
    [
        ("Q1", {"stretch": (0.05, 1.0, 1.0)}),
        ("Q2", {"stretch": (1.0, 0.05, 1.0)}),
        ("Q1", {"stretch": (1.0, 1.0, 1e3)}),  # GD's error never falls: no boundary inside the axis
        ("Q3", {"stretch": (1.4, 1.0, 1.0)}),
        ("Q4", {"stretch": (1.0, 1.0, 1.4)}),
        ("Q5", {"flat": True}),
        ("Q6", {"flat": True}),
    ],
)
def test_claims_about_the_boundary_fail_where_it_lies_elsewhere(claim, changed):
    assert word(over_grid(**changed), claim) == "FAILS"


def test_a_boundary_beyond_the_axis_counts_from_the_axis_end_for_the_optimizer_that_needs_more():
    ds = over_grid(stretch=(1.0, 30.0, 1.0))  # Adam's error never falls below .1
    assert np.isnan(quality.boundary(ds, "adam")).all()
    assert word(ds, "Q2") == "HOLDS"
    at_least = SNR[-1] / quality.boundary(ds, "gd").max("n")
    np.testing.assert_allclose(quality._ratio(ds, "adam"), at_least)
    assert word(over_grid(stretch=(1.0, 30.0, 1e3)), "Q2") == "FAILS"  # GD's is not known either


def other(axis, values, errors, **riding):
    """Runs over one axis with errors (axis, optimizer)."""
    return dataset({axis: (axis, values)} | {name: (axis, v) for name, v in riding.items()}, noisy(errors))


def test_claims_about_other_noise():
    rates, alphas = [0.0, 0.05, 0.1, 0.2, 0.3], [0.0, 0.5, 1.0]
    good, bad = [0.4, 0.4, 0.2], [0.2, 0.4, 0.2001]
    assert word(other("label_noise", rates, [good] * 5), "Q7") == "HOLDS"
    assert word(other("label_noise", rates, [good] * 4 + [[0.2, 0.4, 0.3]]), "Q7") == "FAILS"
    assert word(other("alpha", alphas, [good, good, [0.5, 0.5, 0.5]]), "Q8") == "HOLDS"
    assert word(other("alpha", alphas, [good, good, [0.5, 0.5, 0.3]]), "Q8") == "FAILS"
    snr = {"snr": ("snr", SNR[2:5:2]), "mu": ("snr", SNR[2:5:2] * 2 * 40**0.5)}
    noise = {"noise": ("noise", list(NOISES)), **snr}
    assert word(dataset(noise, noisy([[good, bad]] * 3)), "Q10") == "HOLDS"
    assert word(dataset(noise, noisy([[good, bad], [good, bad], [[0.1, 0.4, 0.2], bad]])), "Q10") == "FAILS"
    dense = {"s": ("s", [40, 1999]), "sigma_p": ("s", [2.0, 0.283]), "mu": ("mu", [1.0, 4.4])}
    assert word(dataset(dense, noisy([[good, bad], [good, good]])), "Q9") == "HOLDS"
    assert word(dataset(dense, noisy([[good, good], [good, bad]])), "Q9") == "FAILS"


def test_what_is_lacking_is_said():
    ds = over_grid()
    lacking = {
        "several n": lambda: quality._exponent(ds.isel(n=[0]), "gd"),
        "n = 5": lambda: quality._to_law(ds.isel(n=[1, 2]), "gd", 5),
        "axis alpha": lambda: quality._at(quality.error_of(ds, "gd"), alpha=1.0),
        "snr = 7": lambda: quality._at(quality.error_of(ds, "gd"), snr=7.0),
        "the optimizer gd": lambda: quality.error_of(ds.isel(optimizer=[0]), "gd"),
        "axes n and snr": lambda: quality.boundary(ds.isel(n=0), "gd"),
        "axes s and mu": lambda: quality._dense_change(ds, "gd", 0),
    }
    for words, ask in lacking.items():
        with pytest.raises(js.CannotDecide, match=words):
            ask()


def test_of_two_learning_rates_a_run_is_read_at_the_smallest_that_gets_to_the_loss():
    """The fast one leaps over the level in the first run, the slow one never gets there in the second."""
    loss = np.array([[[0.7, 1e-6, 1e-6], [0.7, 0.4, 0.05]], [[0.7, 0.2, 0.05], [0.7, 0.6, 0.5]]])
    error = np.array([[[0.5, 0.0, 0.0], [0.5, 0.4, 0.4]], [[0.5, 0.1, 0.1], [0.5, 0.5, 0.5]]])
    ds = xr.Dataset(
        {"train_loss": (("optimizer", "seed", "step"), loss), "test_error": (("optimizer", "seed", "step"), error)},
        {"step": [0, 1, 2], "family": ("optimizer", ["gd", "gd"]), "learning_rate": ("optimizer", [0.3, 0.01])},
    )
    np.testing.assert_allclose(quality.error_of(ds, "gd"), [0.1, 0.4], atol=1e-12)
    assert np.isnan(quality.error_of(ds.isel(optimizer=[0]), "gd")[0])
    with pytest.raises(js.CannotDecide, match="learning rates of 2"):
        quality.error_of(ds.drop_vars("learning_rate"), "gd")


def test_the_mean_boundary_lies_inside_its_interval():
    middle, low, high = quality.mean_boundary(over_grid(), "sign_gd", resamples=50)
    assert np.all((low <= middle) & (middle <= high))
    np.testing.assert_allclose(middle, quality.law_boundary(over_grid(), "sign_gd"), rtol=0.05)


def draw(results, out, monkeypatch):
    """The lines that the figure wrote."""
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(results), "--out", str(out)])
    runpy.run_path(str(ROOT / "figures" / "data_quality.py"))["main"]()
    assert {path.suffix for path in out.iterdir()} == {".png", ".pdf", ".svg", ".csv"}
    return (out / "data_quality.csv").read_text().splitlines()


def test_the_figure_shows_the_datasets_numbers(tmp_path, monkeypatch):
    good = [0.4, 0.4, 0.2]
    two = {"snr": ("snr", SNR[2:5:2]), "mu": ("snr", SNR[2:5:2] * 2 * 40**0.5)}
    made = {
        "n_snr": over_grid(),
        "label_noise": other("label_noise", [0.0, 0.3], [good] * 2),
        "alpha": other("alpha", [0.0, 1.0], [good] * 2),
        "dense": dataset(
            {"s": ("s", [40, 1999]), "sigma_p": ("s", [2.0, 0.283]), "mu": ("mu", [1.0, 4.4])}, noisy(good)
        ),
        "tails": dataset({"noise": ("noise", list(NOISES)), **two}, noisy(good)),
    }
    for name in made:
        for path in (name, f"{name}_frozen"):
            (tmp_path / "data_quality" / path).mkdir(parents=True)
    monkeypatch.setattr("jaxsign.plot.script.open_dataset", lambda path: made[path.name.removesuffix("_frozen")])
    rows = [line.split(",") for line in draw(tmp_path, tmp_path / "figures", monkeypatch)]
    panels = dict.fromkeys(row[0] for row in rows[1:])
    assert len(panels) == 9
    drawn = {float(row[2]): float(row[3]) for row in rows if row[0].startswith("(d)") and row[1] == "GD"}
    assert drawn[20.0] == pytest.approx(float(quality.boundary(made["n_snr"], "gd").sel(n=20).median()), rel=1e-5)
    law = [float(row[3]) for row in rows if row[0].startswith("(f)") and row[1] == "law of GD"]
    assert law == pytest.approx([0.106, stats.norm.cdf(stats.norm.ppf(0.1058) * 0.4)], abs=1e-3)


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tmp_path, monkeypatch):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "data_quality.py"))
    assert experiment["main"](["--tiny", "--out", str(tmp_path / "data_quality")]) == 0
    for path in (tmp_path / "data_quality").iterdir():
        assert np.isfinite(js.open_results(path)["train_loss"]).all()
    frozen = js.open_results(tmp_path / "data_quality" / "n_snr_frozen")
    assert json.loads(frozen.attrs["manifest"])["definition"]["trainable"] == ["w_v"]
    assert len(draw(tmp_path, tmp_path / "figures", monkeypatch)) > 100

"""Adam beside SignGD: its laws against scalar descent, update signs against an oracle, claims, tiny mode, figure."""

import json
import math
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import xarray as xr

import jaxsign as js
from jaxsign import theory
from jaxsign.claims import adam
from jaxsign.claims.catalogue import known_system, setting_of

ROOT = Path(__file__).parents[2]
SEEDS = 40
ETA, NORM = 1e-4, 50.0
STEPS = np.unique([0, 2, 20, *adam.STRETCHES, *adam.MEMORIES])
PROBLEM = js.Problem(n=3, d=40, s=4, m_k=2, m_v=2, n_test=4, supports="disjoint")
HYPER = js.Hyper(sigma_p=2.0, sigma_0=0.05)


def descend(b1, b2, steps, speed=4 * ETA * NORM):
    """Losses of one example's late dynamics under Adam, y F -> y F + speed * m/sqrt(v), in plain Python."""
    margin, m, v, losses = 0.0, 0.0, 0.0, []
    for t in range(1, steps + 1):
        losses.append(math.log1p(math.exp(-margin)))
        g = -1 / (1 + math.exp(margin))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        margin -= speed * (m / (1 - b1**t)) / math.sqrt(v / (1 - b2**t))
    return losses


@pytest.mark.parametrize(("b1", "b2"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.9), (0.9, 0.5), (0.9, 0.9), (0.5, 0.99)])
def test_late_rate_is_the_one_scalar_descent_ends_at(b1, b2):
    losses = descend(b1, b2, 1500)
    law = theory.adam_loss_rate(ETA, np.array([NORM, 2 * NORM]), b1, b2)
    assert law == pytest.approx(math.log(losses[1000] / losses[1499]) / 499, rel=5e-3)


def test_late_rate_has_its_limits_and_says_where_there_is_none():
    norms = np.array([[NORM], [0.01 * NORM]])
    assert theory.adam_loss_rate(ETA, norms, 0.0, 0.0).tolist() == pytest.approx([0.02, 0.0002])
    assert theory.adam_loss_rate(ETA, norms[1], 0.9, 0.5) == pytest.approx(0.0002, rel=0.01)  # far below ln(1/b2)/2
    assert theory.adam_loss_rate(ETA, norms[0], 0.9, 0.999) == pytest.approx(
        theory.adam_late_loss_rate(0.999), rel=1e-3
    )
    found = {(b1, b2): float(theory.adam_loss_rate(ETA, norms[0], b1, b2)) for b1 in adam.BETAS for b2 in adam.BETAS}
    assert all(np.isfinite(found[pair]) for pair in adam.BOUNDED)
    assert {pair for pair, value in found.items() if np.isnan(value)} == {
        (b1, b2) for b1, b2 in found if b1 >= 0.99 and b1 > b2
    }


def test_sublinear_law_is_that_of_scalar_descent():
    losses = descend(0.0, 0.999, 4001)
    for low, high in ((1000, 2000), (2000, 4000)):
        law = np.mean(theory.adam_sublinear_rate(np.arange(low, high), 0.999))
        assert math.log(losses[low] / losses[high]) / (high - low) == pytest.approx(law, rel=0.05)
    assert theory.adam_sublinear_rate(np.array([1.0, 1e5]), 0.999) == pytest.approx([1.5, 5e-4], rel=2e-3)


@pytest.fixture(scope="module")
def engines():
    """One run of Adam on coordinates and in feature space, update signs of three steps."""
    options = {"steps": 6, "record": [0, 2, 4, 6], "test_every": [0]}
    transform = optax.adam(1e-2, b1=0.9, b2=0.9, eps=1e-15)
    tasks = {name: js.two_layer_updates(PROBLEM, engine=name) for name in ("support", "feature_space")}
    return {name: js.train(jax.random.key(5), task, HYPER, transform, **options) for name, task in tasks.items()}


@pytest.mark.parametrize("group", ["q", "k", "v"])
def test_engines_count_the_same_coordinates(engines, group):
    name = f"update_agreement_{group}"
    mine, theirs = (engines[engine].trace for engine in ("feature_space", "support"))
    assert np.isnan(theirs[name][0])
    assert (np.asarray(theirs[name][1:]) <= 1).all()
    np.testing.assert_allclose(mine[name], theirs[name], atol=1e-6)
    np.testing.assert_allclose(mine["train_loss"], theirs["train_loss"], rtol=1e-4)


def test_update_agreement_is_the_oracles(oracle):
    task = js.two_layer_updates(PROBLEM)
    before, data, _ = oracle.draw(PROBLEM, 2)
    slopes = oracle.gradient(before, oracle.inputs(data), data.y)
    rng = np.random.default_rng(0)
    moves = [np.asarray(1e-2 * rng.choice([-1, 0, 1], slope.shape), before.w_q.dtype) for slope in slopes]
    after = js.Params(*(w + move for w, move in zip((before.w_q, before.w_k, before.w_v), moves)))
    found = jax.jit(task.observe_step)(after, before, data, HYPER)
    for group, slope, move in zip("qkv", slopes, moves):
        used = np.abs(slope) > 1e-12 * np.abs(slope).max()
        expected = np.mean(np.sign(move[used]) == -np.sign(slope[used]))
        assert 0.1 < expected < 0.6
        np.testing.assert_allclose(found[f"update_agreement_{group}"], expected, atol=1e-6)


def test_what_is_no_problem_or_engine_is_refused():
    with pytest.raises(ValueError, match=r"problem must be a js.Problem, got problem='disjoint'"):
        js.two_layer_updates("disjoint")
    with pytest.raises(ValueError, match=r"unknown engine 'auto'"):
        js.two_layer_updates(PROBLEM, engine="auto")


def adam_loss(t, b1, b2, law):
    """Logarithm of the loss of made-up runs: by the sublinear law where that is slow enough, else by the late one."""
    if b2 < 0.95:
        return -law * t
    x = np.sqrt(np.expm1(np.maximum(t, 1) * math.log(1 / b2)))
    slow = np.log(x - np.arctan(x))
    return slow[np.searchsorted(t, 100)] - slow - 0.01 * np.maximum(t - 100, 0) * (t < 100)


def made_up(kind="betas", preset="disjoint"):
    """Runs of an entry of the sweep that satisfy every claim about it."""
    adams = [("adam", {"b1": b1, "b2": b2}) for b1 in adam.BETAS for b2 in adam.BETAS]
    if kind == "eps":
        adams = [("adam", {"b1": 0.9, "b2": b2, "eps": e}) for b2 in (0.9, 0.999) for e in (1e-15, 1e-8, 1e-3, 1e-2)]
    if kind == "signum":
        adams = [("signum", {"beta": beta}) for beta in adam.BETAS]
    points = [("sign_gd", {}), *adams]
    norms = NORM * (1 + 0.002 * np.arange(SEEDS))
    laws = {
        i: theory.adam_loss_rate(ETA, norms[:, None], p.get("b1", 0.0), p.get("b2", 0.0))
        for i, (_, p) in enumerate(points)
    }
    logs = np.stack([
        np.stack([adam_loss(STEPS, p.get("b1", 0.0), p.get("b2", 0.0), law) for law in np.nan_to_num(laws[i], nan=0.1)])
        for i, (_, p) in enumerate(points)
    ])  # fmt: skip
    problem, hyper = getattr(js.presets, preset)()
    slope = np.ones(len(points))
    turned = np.ones(len(points))
    for i, (_, p) in enumerate(points):
        if kind == "eps":
            slope[i] = made_up_slope(p.get("eps", 1e-15), problem, hyper)
            logs[i] = -STEPS * (0.002 if p.get("eps") == 1e-8 and p["b2"] == 0.9 else 0.01)
        slow = p.get("b2", 0.0) >= 0.9 or p.get("beta", 0.0) >= 0.9
        turned[i] = -1 if slow else 1
    dims = ("optimizer", "seed", "step")
    wide = np.ones((len(points), SEEDS, STEPS.size))
    opposed = np.where(STEPS <= 100, -1, turned[:, None])[:, None] * wide
    variables = {
        "train_loss": (dims, np.exp(logs)),
        "noise_l1": (("optimizer", "seed", "sample"), np.broadcast_to(norms[None, :, None], (len(points), SEEDS, 1))),
        "value_noise": ((*dims, "sample"), (slope[:, None, None] * STEPS * wide)[..., None]),
        "query_signal": ((*dims, "row"), wide[..., None]),
        "query_noise": ((*dims, "row", "sample"), opposed[..., None, None]),
        "key_noise": ((*dims, "row", "sample"), opposed[..., None, None]),
        "status": (("optimizer", "seed"), np.zeros((len(points), SEEDS), np.int8)),
    }
    keys = dict.fromkeys(k for _, p in points for k in p)
    coords = {
        "optimizer": np.arange(len(points)), "family": ("optimizer", [name for name, _ in points]),
        "seed": np.arange(SEEDS), "step": STEPS, "learning_rate": ("optimizer", np.full(len(points), ETA)),
        **{k: ("optimizer", [p.get(k, np.nan) for _, p in points]) for k in keys},
    }  # fmt: skip
    definition = {"problem": vars(problem), "hyper": vars(hyper), "system": {"name": "jaxsign.two_layer_updates"}}
    return xr.Dataset(variables, coords, {"manifest": json.dumps({"definition": definition})})


def made_up_slope(eps, problem, hyper):
    """The law of V4 by Monte Carlo."""
    x = np.abs(float(hyper.sigma_p) * np.random.default_rng(0).standard_normal(20_000))
    g = x / (2 * problem.n * problem.m_v)
    return np.sum(x * g / (g + eps)) / np.sum(x)


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def scaled(ds, factor, **numbers):
    """The same runs with the loss's logarithm of some optimizers scaled."""
    chosen = xr.ones_like(ds["family"], bool)
    for name, number in numbers.items():
        chosen = chosen & (ds[name] == number)
    return ds.assign(
        train_loss=xr.where(chosen, ds["train_loss"] ** factor, ds["train_loss"]).transpose(*ds["train_loss"].dims)
    )


@pytest.fixture(scope="module")
def runs():
    return {"betas": made_up(), "signum": made_up("signum"), "eps": made_up("eps", "paper_like")}


@pytest.mark.parametrize(
    ("claim", "entry", "factor", "numbers"),
    [
        ("A2'", "betas", 1.2, {"b1": 0.9, "b2": 0.999}),
        ("A2'f", "betas", 1.2, {"b1": 0.9, "b2": 0.99}),
        ("V1l", "betas", 1.2, {"b1": 0.5, "b2": 0.999}),
        ("V1", "betas", 1.2, {"b1": 0.5, "b2": 0.9}),
        ("V2", "betas", 1.2, {"b1": 0.9, "b2": 0.999}),
        ("V3", "betas", 0.4, {"b1": 0.9, "b2": 0.9}),
        ("V3", "betas", 9.0, {"b1": 0.9, "b2": 0.999}),
        ("V5", "eps", 6.0, {"b2": 0.9, "eps": 1e-8}),
        ("V5", "eps", 0.8, {"b2": 0.999, "eps": 1e-8}),
        ("V6", "signum", 1.2, {"beta": 0.99}),
    ],
)
def test_claims_about_rates(runs, claim, entry, factor, numbers):
    assert word(runs[entry], claim) == "HOLDS"
    assert word(scaled(runs[entry], factor, **numbers), claim) == "FAILS"


def test_claims_about_noise_and_slopes(runs):
    for claim, entry in (("A3m", "betas"), ("V7", "signum")):
        ds = runs[entry]
        assert word(ds, claim) == "HOLDS"
        assert word(ds.assign(query_noise=np.abs(ds["query_noise"]).where(ds["step"] > 100, -1)), claim) == "FAILS"
        assert word(ds.assign(query_noise=-np.abs(ds["query_noise"])), claim) == "FAILS"
    assert word(runs["eps"], "V4") == "HOLDS"
    flat = runs["eps"]["value_noise"].isel(optimizer=[0]).squeeze(drop=True) * xr.ones_like(runs["eps"]["value_noise"])
    assert word(runs["eps"].assign(value_noise=flat), "V4") == "FAILS"


def test_claims_say_what_is_missing(runs):
    assert known_system(runs["betas"]) == "two_layer_updates"
    assert str(setting_of(runs["eps"])) == "paper_like"
    table = js.check(runs["betas"].isel(optimizer=[0, 1]), ["V1"])
    assert table.missing[0][2] == "needs exactly one adam optimizer with b1=0, b2=0.5, got 0"
    faster = runs["betas"].assign_coords(learning_rate=("optimizer", np.full(26, 1e-3)))
    assert "needs the learning rate 1e-4" in js.check(faster, ["V1"]).missing[0][2]
    assert js.check(runs["betas"].drop_vars("query_noise"), ["A3m"]).missing


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("adam")
    experiment = runpy.run_path(str(ROOT / "sweeps" / "adam.py"))
    assert experiment["main"](["--tiny", "--out", str(out / "adam")]) == 0
    return out


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tiny, monkeypatch):
    ds = js.open_results(tiny / "adam" / "betas")
    exact = ds.isel(optimizer=[0, 1])  # SignGD, and Adam without memory
    assert exact["b2"].values[1] == 0
    np.testing.assert_allclose(exact["train_loss"][1], exact["train_loss"][0], rtol=1e-4)
    assert (exact["update_agreement_q"].isel(step=slice(1, None)) == 1).all()
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tiny), "--out", str(tiny / "figures")])
    runpy.run_path(str(ROOT / "figures" / "adam.py"))["main"]()
    assert {path.suffix for path in (tiny / "figures").iterdir()} == {".png", ".pdf", ".svg", ".csv"}
    lines = {name: len((tiny / "figures" / f"{name}.csv").read_text().splitlines()) for name in ("adam", "adam_betas")}
    assert lines["adam"] > 100
    assert lines["adam_betas"] > 20


def test_the_experiment_wants_64_bit(tmp_path, capsys):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "adam.py"))
    assert experiment["main"](["--out", str(tmp_path / "x")]) == 2
    assert "adam needs 64-bit floats: give --x64" in capsys.readouterr().err

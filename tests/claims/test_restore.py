"""The mini-batch and smooth-sign laws against NumPy simulations; the claims about what restores generalisation."""

import csv
import dataclasses
import json
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign import theory
from jaxsign.analysis.runs import manifest
from jaxsign.claims import restore

ROOT = Path(__file__).parents[2]
SMALL = js.Problem(n=12, d=600, s=30, m_k=2, m_v=3)


def simulated(problem, draws, rule, steps=600, batch=None, seed=0):
    """Test error of a linear model trained on labelled patches, over training sets; all examples weigh 1/2.

    `rule` is "sign", "adam" or a function of the gradient of one value row.
    """
    rng = np.random.default_rng(seed)

    def patches(count):
        out = np.zeros((count, problem.d))
        places = rng.permuted(np.tile(np.arange(1, problem.d), (count, 1)), axis=1)[:, : problem.s]
        np.put_along_axis(out, places, 2.0 * rng.standard_normal((count, problem.s)), 1)
        out[:, 0] = 1.0
        return out

    errors = []
    for _ in range(draws):
        data = patches(problem.n)
        w, m, v = np.zeros((3, problem.d))
        for t in range(1, steps + 1):
            chosen = rng.permutation(problem.n)[: batch or problem.n]
            g = 0.5 * data[chosen].mean(0) / problem.m_v
            if rule == "adam":
                m, v = 0.9 * m + 0.1 * g, 0.9999 * v + 0.0001 * g * g
                w += m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.9999**t)) + 1e-30)
            else:
                w += np.sign(g) if rule == "sign" else rule(g)
        errors.append((patches(400) @ w <= 0).mean())
    return np.mean(errors), np.std(errors) / np.sqrt(draws)


@pytest.mark.parametrize(("rule", "batch"), [("sign", 4), ("sign", 1), ("adam", 3)])
def test_mini_batch_laws_are_those_of_a_simulation(rule, batch):
    steps = 150 if rule == "sign" else 600
    share = theory.sign_batch_share(SMALL, batch, steps) if rule == "sign" else theory.adam_batch_share(SMALL, batch)
    rate, error = simulated(SMALL, 40, rule, steps, batch)
    law = float(theory.shared_test_error(SMALL, 1.0, 2.0, share))
    assert abs(rate - law) < 4 * error + 0.01  # the share is a mean over a patch's coordinates
    assert abs(law - theory.sign_test_error(SMALL, 1.0, 2.0)) > 0.03


@pytest.mark.parametrize("temperature", [1e-9, 0.02, 10.0])
def test_the_smooth_signs_law_is_that_of_a_simulation(temperature):
    share = theory.smooth_sign_share(SMALL, 1.0, 2.0, temperature)
    rate, error = simulated(SMALL, 60, lambda g: np.tanh(g / temperature), steps=1)
    assert abs(rate - float(theory.shared_test_error(SMALL, 1.0, 2.0, share))) < 4 * error + 0.01


def test_the_laws_end_at_those_of_sign_gd_and_gd():
    problem, _ = js.presets.paper_like()
    sign, gd = theory.sign_test_error(problem, 1.0, 2.0), theory.gd_test_error(problem, 1.0, 2.0)
    ends = [theory.sign_batch_share(problem, 20), theory.adam_batch_share(problem, 20),
            theory.smooth_sign_share(problem, 1.0, 2.0, 1e-9)]  # fmt: skip
    np.testing.assert_allclose(ends, theory.overlap_share(problem), rtol=1e-5)
    for share in ends:
        assert float(theory.shared_test_error(problem, 1.0, 2.0, share)) == pytest.approx(float(sign), abs=1e-5)
    linear = theory.smooth_sign_share(problem, 1.0, 2.0, 1e3)
    assert linear == pytest.approx((2.0**2) * 40 / 1999 / 20, rel=1e-3)  # E g_c^2 / g_1^2 = rho sigma_p^2 / n
    assert float(theory.shared_test_error(problem, 1.0, 2.0, linear)) == pytest.approx(float(gd), abs=0.01)
    for share in (theory.sign_batch_share, theory.adam_batch_share):
        assert np.all(np.diff([share(problem, batch) for batch in (1, 2, 5, 10, 20)]) > 0)
    # One example a batch: its coordinates move B/n as far, or sqrt(B/n), where nobody else uses them.
    alone = dataclasses.replace(problem, d=10**7)
    assert theory.sign_batch_share(alone, 1) / theory.overlap_share(alone) == pytest.approx(1 / 20**2, rel=1e-3)
    assert theory.adam_batch_share(alone, 1) / theory.overlap_share(alone) == pytest.approx(1 / 20, rel=1e-3)
    far = dataclasses.replace(problem, overlap="none")
    assert theory.shared_test_error(far, 1.0, 2.0, 0.1) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: theory.sign_batch_share(p, 13), r"batch_size must be an int in \[1, n\] = \[1, 12\], got batch_"),
        (lambda p: theory.adam_batch_share(p, 0), "batch_size must be an int >= 1, got batch_size=0"),
        (lambda p: theory.sign_batch_share(p, 2, 0), "steps must be an int >= 1, got steps=0"),
        (lambda p: theory.smooth_sign_share(p, 1.0, 2.0, 0.0), "temperature must be"),
        (lambda p: theory.shared_test_error(p, 1.0, 2.0, 0.0), "share must be"),
        (lambda p: theory.adam_batch_share(dataclasses.replace(p, context=3), 2), "context=2, got context=3"),
        (lambda p: theory.adam_batch_share(dataclasses.replace(p, supports="disjoint"), 2), "got 'disjoint'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(SMALL)
    assert "\n" not in str(caught.value)


def experiment():
    return runpy.run_path(str(ROOT / "sweeps" / "restore.py"))


@pytest.fixture(scope="module")
def script():
    """The sweep's functions."""
    return experiment()


def args(**changed):
    return Namespace(**{"seeds": None, "steps": None, "engine": None, "tiny": False, "x64": False, **changed})


def test_smooth_sign_goes_from_sign_gd_to_gd(script):
    gradient = np.array([0.025, -0.001], np.float32)

    def update(temperature):
        transform = script["smooth_sign_gd"](1e-4, temperature, 0.3)
        return np.asarray(transform.update(gradient, transform.init(gradient))[0])

    np.testing.assert_allclose(update(1e-9), [-1e-4, 1e-4], rtol=1e-5)
    np.testing.assert_allclose(update(1.0), -0.3 * gradient, rtol=1e-3)


def test_decay_is_decoupled_or_coupled(script):
    gradient, weight = np.array([0.1, 0.0], np.float32), np.array([-2.0, 0.5], np.float32)

    def update(transform):
        with jax.numpy_dtype_promotion("standard"):  # as where it is used
            return np.asarray(transform.update(gradient, transform.init(weight), weight)[0])

    np.testing.assert_allclose(
        update(script["decoupled_sign_gd"](0.1, 0.5)), [-0.1 * (1 - 1.0), -0.1 * 0.25], atol=1e-7
    )
    np.testing.assert_allclose(update(script["coupled_sign_gd"](0.1, 0.5)), [0.1, -0.1], rtol=1e-6)  # .1 - 1 < 0
    coupled = script["coupled_adam"](0.1, 0.5, 0.9, 0.999, 1e-15)
    np.testing.assert_allclose(update(coupled), [0.1, -0.1], rtol=1e-5)  # Adam's first step is a sign


def test_coupled_decay_is_refused_where_it_is_not_exact(script):
    problem = js.Problem(n=4, d=120, s=6, m_k=2, m_v=2, n_test=10)
    transform = script["coupled_sign_gd"](1e-3, 0.01)
    with pytest.raises(ValueError, match="support"):
        js.train(jax.random.key(0), js.two_layer(problem, engine="support"), js.Hyper(sigma_p=2.0), transform, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, 2])
def test_support_engine_is_the_dense_one_with_decoupled_decay_and_mini_batches(script, batch):
    problem = js.Problem(n=4, d=120, s=6, m_k=3, m_v=3, n_test=50, batch_size=batch)
    for transform in (script["decoupled_sign_gd"](1e-3, 10.0), optax.adamw(1e-3, weight_decay=10.0, eps=1e-12)):
        traces = [
            js.train(
                jax.random.key(1), js.two_layer(problem, engine=engine), js.Hyper(sigma_p=2.0), transform, steps=60,
                test_every=20,
            ).trace
            for engine in ("support", "dense")
        ]  # fmt: skip
        for name in ("train_loss", "test_loss"):
            np.testing.assert_allclose(traces[0][name], traces[1][name], rtol=1e-4)


def test_full_size_sweeps_name_their_settings(script):
    sweeps = script["build"](args())
    assert list(sweeps) == ["rules", "batch", "batch_frozen", "rules_frozen", "feature_noise"]
    assert {sweeps[name].trainable for name in ("batch_frozen", "rules_frozen")} == {("w_v",)}
    assert all(len(sweep.seeds) >= 10 for sweep in sweeps.values())
    assert {family for _, family, _ in sweeps["batch"].optimizer_points} == {"sign_gd", "adam", "gd"}


STEPS = np.array([0, 1, 10, 100, 300, 1000])
LOSS = np.array([0.69, 0.68, 0.4, 0.2, 0.05, 0.005])
SEEDS = 20
LEVELS = (0.5, 0.3, 0.1, 0.01)


def made(families, axis=None, trainable=None, problem=None, hyper=None, **coords):
    """A Dataset whose test error is constant in time: {family: error, or one an axis point}."""
    rng = np.random.default_rng(0)
    base, numbers = js.presets.paper_like()
    problem, hyper = dataclasses.asdict(problem or base), dataclasses.asdict(hyper or numbers)
    dims = (*(("batch_size",) if axis else ()), "optimizer", "seed", "step")
    shape = (*((len(axis),) if axis else ()), len(families), SEEDS, STEPS.size)
    errors = np.stack([np.broadcast_to(e, shape[:-3] or ()) for _, e in families], -1)[..., None, None]
    errors = errors + 0.005 * rng.standard_normal((SEEDS, 1)) + np.zeros(shape)
    names = [name for name, _ in families]
    labels = [f"{name}{i}" for i, name in enumerate(names)]
    data = {
        "train_loss": (dims, np.broadcast_to(LOSS, shape)), "test_error": (dims, errors),
        "validation_error": (dims, errors + 0.01 * (STEPS < 100)), "status": (dims[:-1], np.zeros(shape[:-1], np.int8)),
        "test_loss": (dims, np.ones(shape)),
    }  # fmt: skip
    own = {name: ("optimizer", np.array(values, float)) for name, values in coords.items()}
    rates = ("optimizer", np.full(len(names), 1e-4))
    coords = {"optimizer": labels, "family": ("optimizer", names), "seed": np.arange(SEEDS), "step": STEPS,
              "learning_rate": rates, **own, **({"batch_size": axis} if axis else {})}  # fmt: skip
    definition = {"problem": problem, "hyper": hyper, "system": {"name": "jaxsign.two_layer"}, "trainable": trainable}
    return with_levels(xr.Dataset(data, coords, {"manifest": json.dumps({"definition": definition})}), LEVELS)


BATCHES = [20, 5, 2, 1]


def over_batches(sign=(0.44, 0.3, 0.12, 0.02), adam=(0.44, 0.39, 0.33, 0.27), gd=0.11, **more):
    return made([("sign_gd", sign), ("adam", adam), ("gd", gd)], BATCHES, **more)


def rules(decoupled=0.43, coupled=0.15, smooth=(0.44, 0.4, 0.11), **more):
    families = [("sign_gd", 0.44), ("adam", 0.44), ("gd", 0.11)]
    families += [(f"{family}_decoupled", decoupled) for family in ("sign_gd", "adam") for _ in range(2)]
    families += [(f"{family}_coupled", error) for family in ("sign_gd", "adam") for error in (0.44, coupled)]
    families += [("smooth_sign_gd", error) for error in smooth]
    gone, decays = [np.nan] * 3, [1.0, 10.0, 1.0, 10.0, 1e-3, 1e-2, 1e-3, 1e-2]
    temperatures = [*gone, *[np.nan] * 8, 1e-9, 1e-3, 1.0]
    return made(families, temperature=temperatures, weight_decay=[*gone, *decays, *gone], **more)


def with_feature_noise(adam, alpha=0.2):
    problem = js.Problem(n=200, d=1000, s=100, m_k=20, m_v=20)
    hyper = js.Hyper(sigma_p=0.1, alpha=alpha)
    return made([("adam", adam)], [200, 2], problem=problem, hyper=hyper)


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


@pytest.mark.parametrize(
    ("claim", "holds", "fails"),
    [
        ("M1", {}, {"sign": (0.44, 0.42, 0.4, 0.3)}),
        ("M2", {}, {"adam": (0.44, 0.2, 0.15, 0.1)}),
        ("M2", {}, {"adam": (0.44, 0.46, 0.47, 0.5)}),
        ("M8", {}, None),
    ],
)
def test_claims_about_batches(claim, holds, fails):
    assert word(over_batches(**holds), claim) == "HOLDS"
    if fails:
        assert word(over_batches(**fails), claim) == "FAILS"


def test_early_stopping_that_helps_fails_its_claim():
    ds = over_batches()
    early = xr.where(ds["step"] == 10, 0.15, ds["test_error"]).transpose(*ds["test_error"].dims)
    assert word(ds.assign(test_error=early, validation_error=early), "M8") == "FAILS"
    best = restore.stopped(ds.assign(test_error=early, validation_error=early))
    np.testing.assert_allclose(best.isel(batch_size=0, optimizer=0), 0.15)


def test_claims_about_the_laws_want_frozen_attention():
    problem, _ = js.presets.paper_like()
    laws = {
        family: tuple(float(theory.shared_test_error(problem, 1.0, 2.0, share(problem, b))) for b in BATCHES)
        for family, share in (("sign", theory.sign_batch_share), ("adam", theory.adam_batch_share))
    }
    followed, missed = (
        over_batches(**{k: np.array(v) + off for k, v in laws.items()}, trainable=["w_v"]) for off in (0, 0.06)
    )
    for claim in ("M3", "M4"):
        assert word(followed, claim) == "HOLDS"
        assert word(missed, claim) == "FAILS"
        assert not js.check(over_batches(), [claim]).rows
    assert not js.check(followed, ["M1"]).rows
    predicted = js.check(over_batches(), ["M1"]).rows[0].parts[0].predicted
    assert predicted == pytest.approx(1.01, abs=0.02)


@pytest.mark.parametrize(
    ("claim", "fails"),
    [
        ("M5", {"decoupled": 0.2}), ("M6", {"coupled": 0.4}), ("M7", {"smooth": (0.44, 0.4, 0.3)}),
        ("M7", {"smooth": (0.44, 0.05, 0.11)}), ("M7", {"smooth": (0.3, 0.2, 0.11)}),
    ],
)  # fmt: skip
def test_claims_about_decay_and_temperature(claim, fails):
    assert word(rules(), claim) == "HOLDS"
    assert word(rules(**fails), claim) == "FAILS"


def test_what_is_not_there_is_said():
    lacking = js.check(made([("sign_gd", 0.4), ("adam", 0.4)], BATCHES), ["M1"])
    assert not lacking.rows
    assert "needs runs of gd" in lacking.missing[0][2]
    never = with_levels(rules().assign(train_loss=rules()["train_loss"] * 0 + 0.6), LEVELS)
    assert "ends at a training loss of 0.1 or less" in js.check(never, ["M6"]).missing[0][2]
    assert "gets all seeds to a training loss of 0.1" in js.check(never, ["M5"]).missing[0][2]


def test_the_figure_draws_every_panel(tmp_path, monkeypatch):
    made_up = {
        "batch": over_batches(), "batch_frozen": over_batches(trainable=["w_v"]), "rules": rules(),
        "rules_frozen": rules(trainable=["w_v"]), "feature_noise": with_feature_noise((0.9, 0.01)),
    }  # fmt: skip
    for name in made_up:
        (tmp_path / "restore" / name).mkdir(parents=True)
    monkeypatch.setattr("jaxsign.plot.script.open_dataset", lambda path: made_up[path.name])
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "figures" / "restore.py"))["main"]()
    with open(tmp_path / "restore.csv", newline="") as file:
        drawn = {row["panel"] for row in csv.DictReader(file)}
    assert {panel[:3] for panel in drawn} == {f"({letter})" for letter in "abcdefg"}


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tmp_path, monkeypatch, script):
    assert script["main"](["--tiny", "--out", str(tmp_path / "restore")]) == 0
    ds = js.open_results(tmp_path / "restore" / "batch")
    half = ds["validation_error"] * 10
    np.testing.assert_allclose(half, np.round(half), atol=1e-5)  # of 10 examples
    assert manifest(js.open_results(tmp_path / "restore" / "batch_frozen"))["definition"]["trainable"] == ["w_v"]
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    runpy.run_path(str(ROOT / "figures" / "restore.py"))["main"]()
    assert len((tmp_path / "figures" / "restore.csv").read_text().splitlines()) > 50

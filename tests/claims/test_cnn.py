"""Claims about the CNN: runs for which each holds and fails; the experiment, tiny."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign.claims import cnn as claims
from jaxsign.claims.catalogue import known_system

ROOT = Path(__file__).parents[2]
STEPS = np.array([0, 5000, 10_000, 15_000])
FULL = [("adam", 0.0), ("adam", 1e-5), ("adam", 1e-4), ("adamw", 1.0), ("sign_gd", np.nan), ("gd", np.nan)]
MINI = [("adam", 0.0), ("adam", 1e-5), ("sign_gd", np.nan)]


def load(folder, name):
    spec = importlib.util.spec_from_file_location(f"cnn_{folder}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runs(optimizers, error, batch_size=None, loss=0.01, **problem):
    """A Dataset of the CNN: `error` of every optimizer, at all steps but the first; the loss falls to `loss`."""
    optimizers = list(optimizers)
    rng = np.random.default_rng(0)
    shape = (len(optimizers), 4, STEPS.size)
    errors = np.broadcast_to(np.asarray(error, float)[:, None, None], shape) + 1e-4 * rng.standard_normal(shape)
    train = np.broadcast_to(np.array([0.7, 0.3, 0.1, 0.01]), shape).copy()
    train[..., -1] = np.broadcast_to(np.asarray(loss, float), shape[:1])[:, None]
    definition = {
        "problem": {"n": 200, "d": 1000, "batch_size": batch_size, "n_test": 1000, **problem}, "hyper": {"alpha": 0.2},
        "system": {"name": "jaxsign.systems.cnn.two_layer_cnn"},
    }  # fmt: skip
    dims = ("optimizer", "seed", "step")
    ds = xr.Dataset(
        {"train_loss": (dims, train), "test_error": (dims, np.abs(errors)),
         "status": (dims[:2], np.zeros(shape[:2], np.int8))},
        {"optimizer": np.arange(shape[0]), "family": ("optimizer", [name for name, _ in optimizers]),
         "weight_decay": ("optimizer", [decay for _, decay in optimizers]),
         "learning_rate": ("optimizer", np.full(shape[0], 5e-5)), "seed": np.arange(4), "step": STEPS},
        {"manifest": json.dumps({"definition": definition})},
    )  # fmt: skip
    return with_levels(ds, (0.1,))


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_settings_say_how_many_examples_a_step_sees():
    assert known_system(runs(MINI, [0, 0, 0])) == "two_layer_cnn"
    assert str(claims.setting_of(runs(MINI, [0, 0, 0]))) == "all examples"
    assert str(claims.setting_of(runs(MINI, [0, 0, 0], batch_size=2, d=50))) == "mini-batches of 2, d=50"


@pytest.mark.parametrize(
    ("claim", "holds", "fails"),
    [
        ("W1", [0.7, 0.95, 0.9, 0.8, 0.9, 0.01], [0.95, 0.8, 0.95, 0.95, 0.9, 0.01]),
        ("W3", [0.7, 0.95, 0.1, 0.1, 0.1, 0.01], [0.3, 0.95, 0.9, 0.9, 0.9, 0.01]),
        ("W5", [0.1, 0.1, 0.1, 0.6, 0.1, 0.01], [0.9, 0.9, 0.9, 0.4, 0.9, 0.01]),
        ("W6", [0.1, 0.1, 0.1, 0.1, 0.6, 0.01], [0.9, 0.9, 0.9, 0.9, 0.4, 0.01]),
        ("W8", [0.9, 0.9, 0.9, 0.9, 0.9, 0.01], [0.0, 0.0, 0.0, 0.0, 0.0, 0.2]),
    ],
)
def test_claims_about_all_examples(claim, holds, fails):
    assert word(runs(FULL, holds), claim) == "HOLDS"
    assert word(runs(FULL, fails), claim) == "FAILS"
    assert not js.check(runs(FULL, holds, batch_size=2), [claim]).rows


@pytest.mark.parametrize(
    ("claim", "holds", "fails"),
    [
        ("W2", [0.5, 0.0, 0.5], [0.0, 0.1, 0.0]), ("W4", [0.0, 0.5, 0.5], [0.2, 0.0, 0.0]),
        ("W7", [0.5, 0.5, 0.0], [0.0, 0.0, 0.2]),
    ],
)  # fmt: skip
def test_claims_about_mini_batches(claim, holds, fails):
    assert word(runs(MINI, holds, batch_size=2), claim) == "HOLDS"
    assert word(runs(MINI, fails, batch_size=2), claim) == "FAILS"
    assert not js.check(runs(MINI, holds), [claim]).rows


def test_only_strengths_that_fit_their_data_count():
    two = [*FULL, ("adamw", 10.0)]
    error = [0.9, 0.9, 0.9, 0.8, 0.9, 0.01, 0.1]
    assert word(runs(two, error), "W5") == "FAILS"
    assert word(runs(two, error, loss=[0.01] * 6 + [0.5]), "W5") == "HOLDS"
    none = runs(two, error, loss=[0.01] * 3 + [0.5] + [0.01] * 2 + [0.5])
    assert "no strength of adamw ends at a training loss of 0.1" in js.check(none, ["W5"]).missing[0][2]
    with pytest.raises(js.CannotDecide, match="step 7 is not recorded"):
        claims.errors(none, "gd", 7)


def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tmp_path, monkeypatch):
    assert load("sweeps", "cnn").main(["--tiny", "--steps", "12", "--out", str(tmp_path / "cnn")]) == 0
    full, mini = (js.open_results(tmp_path / "cnn" / name).load() for name in ("full", "mini"))
    for ds in (full, mini):
        assert bool((ds["status"] == 0).all())
        assert not np.allclose(ds["memorised"].isel(seed=0), ds["memorised"].isel(seed=1))
    same = full["test_error"].isel(step=0, optimizer=0) == mini["test_error"].isel(step=0, optimizer=0)
    assert bool(same.all())  # the same data and weights
    assert (full["memorised"].isel(step=-1, optimizer=0) != mini["memorised"].isel(step=-1, optimizer=0)).any()
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    load("figures", "cnn").main()
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".pdf", ".svg", ".csv"}

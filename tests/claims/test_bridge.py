"""The bridge's claims on Datasets built to satisfy and to violate them, its settings' names, its tiny mode."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign.claims import bridge, linear_attention, residual
from jaxsign.claims import dynamics as two_layer
from jaxsign.claims.catalogue import known_system

ROOT = Path(__file__).parents[2]
SEEDS = 40
STEPS = np.array([0, 50, 100, 150, 200, 300])
FALL = {"sign_gd": 0.05, "adam": 0.04, "gd": 0.02}  # rates of the loss


def dataset(system, variables, families, problem, hyper, steps=STEPS):
    definition = {"problem": problem, "hyper": hyper, "system": {"name": f"jaxsign.{system}"}}
    coords = {
        "optimizer": list(families), "family": ("optimizer", list(families)), "seed": np.arange(SEEDS), "step": steps,
        "learning_rate": ("optimizer", np.full(len(families), 1e-4)),
    }  # fmt: skip
    ds = xr.Dataset(variables, coords, {"manifest": json.dumps({"definition": definition})})
    return ds.assign(status=(("optimizer", "seed"), np.zeros((len(families), SEEDS), np.int8)))


def paper_runs(system="two_layer", kernel="softmax", path=0.0, preset="paper_like", **changed):
    """SignGD, Adam and GD as the claims want them: fast, noise on noise, less curvature and a worse test error."""
    problem, hyper = getattr(js.presets, preset)()
    wide = np.ones((3, SEEDS, 1))
    loss = np.log(2) * np.exp(-np.array(list(FALL.values()))[:, None, None] * STEPS * wide)
    share = np.where(STEPS < 100, 0.5, 0.99)[:, None, None]
    values = {
        "train_loss": loss, "s22": share * wide[..., None, None], "s21": (1 - share) * wide[..., None, None],
        "test_error": np.array([0.4, 0.4, 0.1])[:, None, None] * np.ones_like(loss),
        "directional_smoothness": np.array([1.0, 1.5, 3.0])[:, None, None] * np.ones_like(loss),
        "robust_condition": np.array([5.0, 6.0, 9.0])[:, None, None] * np.ones_like(loss),
        "robust_condition_eigen": np.array([5.0, 6.0, 9.0])[:, None, None] * np.ones_like(loss),
    }  # fmt: skip
    values |= {name: np.broadcast_to(value, values[name].shape) for name, value in changed.items()}
    variables = {
        name: (("optimizer", "seed", "step", *(("head", "sample") if v.ndim == 5 else ())), v)
        for name, v in values.items()
    }
    problem, hyper = dataclasses.replace(problem, kernel=kernel), dataclasses.replace(hyper, residual=path)
    return with_levels(
        dataset(system, variables, FALL, dataclasses.asdict(problem), dataclasses.asdict(hyper)), bridge.LEVELS
    )


def other_runs(system, speed):
    """Exponential losses at these speeds, on the axes of the bridge's entry of a system."""
    steps = np.arange(0, 401, 2)
    spread = 1 + 0.01 * np.arange(SEEDS)[:, None]
    loss = np.stack([np.exp(-rate * steps * spread) for rate in speed.values()])
    problem = js.RegressionProblem() if system == "linear_attention" else js.ResidualProblem()
    hyper = js.RegressionHyper() if system == "linear_attention" else js.ResidualHyper()
    ds = dataset(
        system, {"train_loss": (("optimizer", "seed", "step"), loss)}, speed, dataclasses.asdict(problem),
        dataclasses.asdict(hyper), steps,
    )  # fmt: skip
    if system == "residual_attention":
        ds = xr.concat([ds, ds], xr.DataArray([1.0, 0.0], dims="attention_residual", name="attention_residual"))
        ds = ds.assign_coords(ffn_residual=("attention_residual", [1.0, 0.0]))
    return ds


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_settings_name_the_kernel_and_the_path():
    assert str(two_layer.setting_of(paper_runs())) == "paper_like"
    assert str(two_layer.setting_of(paper_runs(kernel="gaussian", preset="disjoint"))) == "gaussian kernel, disjoint"
    assert str(two_layer.setting_of(paper_runs(path=1.0))) == "residual 1, paper_like"
    named = {
        str(two_layer.setting_of(paper_runs(kernel=kernel, path=path, preset=preset)))
        for kernel in ("softmax", "gaussian", "linear") for path in (0.0, 1.0) for preset in ("paper_like", "disjoint")
    }  # fmt: skip
    assert named == {*bridge.PAPER_LIKE, *bridge.DISJOINT}
    assert known_system(paper_runs("two_layer_curvature")) == "two_layer_curvature"
    assert str(linear_attention.setting_of(other_runs("linear_attention", FALL))) == "normal, n=20, optimizers"
    assert str(residual.setting_of(other_runs("residual_attention", FALL))) == "depth 1, optimizers"


@pytest.mark.parametrize(
    ("claim", "changed"),
    [("B1", {"train_loss": 0.5}), ("B2", {"s21": 0.5}), ("B3", {"test_error": 0.2})],
)
def test_claims_about_the_papers_system(claim, changed):
    kernel = {"kernel": "gaussian", "path": 1.0}
    assert word(paper_runs(**kernel), claim) == "HOLDS"
    assert word(paper_runs(**kernel, **changed), claim) == "FAILS"


@pytest.mark.parametrize(
    ("claim", "name", "values"),
    [
        ("B4", "directional_smoothness", (1.0, 4.0, 3.0)),
        ("B4", "directional_smoothness", (4.0, 1.0, 3.0)),
        ("B5", "robust_condition", (5.0, 12.0, 9.0)),
        ("B5", "robust_condition", (12.0, 5.0, 9.0)),
    ],
)
def test_claims_about_curvature_need_both_optimizers(claim, name, values):
    assert word(paper_runs("two_layer_curvature"), claim) == "HOLDS"
    turned = {name: np.array(values)[:, None, None]}
    assert word(paper_runs("two_layer_curvature", **turned), claim) == "FAILS"


@pytest.mark.parametrize(
    ("claim", "system", "slow"),
    [
        ("B6", "linear_attention", {"sign_gd": 0.01, "adam": 0.05, "gd": 0.005}),
        ("B6", "linear_attention", {"sign_gd": 0.05, "adam": 0.05, "gd": 0.06}),
        ("B7", "residual_attention", {"sign_gd": 0.02, "adam": 0.05, "gd": 0.05}),
    ],
)
def test_claims_about_the_other_systems(claim, system, slow):
    assert word(other_runs(system, FALL), claim) == "HOLDS"
    assert word(other_runs(system, slow), claim) == "FAILS"


def test_runs_that_never_get_there_are_slower_than_those_that_do():
    ds = other_runs("residual_attention", {"sign_gd": 0.05, "adam": 0.05, "gd": 1e-6})
    assert word(ds, "B7") == "HOLDS"
    never = other_runs("residual_attention", {"sign_gd": 1e-6, "adam": 1e-6, "gd": 1e-6})
    assert word(never, "B7") == "FAILS"  # a tie is no advantage


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tmp_path, monkeypatch):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "bridge.py"))
    assert experiment["main"](["--tiny", "--out", str(tmp_path / "bridge")]) == 0
    ds = js.open_results(tmp_path / "bridge" / "curvature")
    assert np.isfinite(ds["directional_smoothness"].isel(step=slice(1, None))).all()
    assert np.isfinite(ds["robust_condition"]).all()
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    runpy.run_path(str(ROOT / "figures" / "bridge.py"))["main"]()
    assert len((tmp_path / "figures" / "bridge.csv").read_text().splitlines()) > 100

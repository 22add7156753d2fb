"""Claims about attention kernels: runs for which each holds and fails; the kernels experiment, tiny."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.claims import kernels as claims
from jaxsign.claims import verdicts

ROOT = Path(__file__).parents[2]


SEEDS = 64


def runs(trainable, axes, points, names, targets="random"):
    """A Dataset of one optimizer as a sweep stores it: `points(name, **labels)` is the number at the start and end."""
    definition = {
        "problem": {"samples": 8, "tokens": 4, "heads": 1, "d": 4, "targets": targets},
        "trainable": trainable,
    }
    shape = tuple(len(values) for values in axes.values())
    steps = np.array([0, 500, 1500])
    variables = {}
    for name in names:
        values = np.zeros((*shape, 1, SEEDS, 3))
        for place in np.ndindex(shape):
            start, end = points(name, **{axis: values[i] for (axis, values), i in zip(axes.items(), place)})
            values[place] = np.array([start, end, end])
        variables[name] = ((*axes, "optimizer", "seed", "step"), values)
    variables["status"] = ((*axes, "optimizer", "seed"), np.zeros((*shape, 1, SEEDS), np.int8))
    coords = {**axes, "family": ("optimizer", ["gd"]), "optimizer": ["gd"], "seed": np.arange(SEEDS), "step": steps}
    return xr.Dataset(variables, coords, {"manifest": json.dumps({"definition": definition, "system": ""})})


def query_runs(gaussian):
    """W_Q alone; `gaussian(init_scale, d)` is the Gaussian kernel's final loss, softmax's is 1, both start at 2."""

    def points(name, kernel, d, init_scale, c_scale):
        if name == "gradient_norm":
            return (1e-6, 0) if kernel == "gaussian" else (1.0, 0)
        return (2.0, gaussian(init_scale, d) if kernel == "gaussian" else 1.0)

    axes = {"kernel": ["softmax", "gaussian"], "d": [4, 16], "init_scale": [0.5, 3.0], "c_scale": [1.0, 4.0]}
    return runs(["w_q"], axes, points, ["train_loss", "train_ratio", "gradient_norm"])


@pytest.mark.parametrize(
    ("id", "value", "word"),
    [("K4", 0.5, "HOLDS"), ("K4", 1.5, "FAILS"), ("K4f", 0.5, "HOLDS"), ("K5", 1.5, "HOLDS"), ("K5", 0.5, "FAILS"),
     ("K5f", 0.5, "FAILS"), ("K6", 0.5, "HOLDS")],
)  # fmt: skip
def test_regimes_are_judged_by_their_own_point(id, value, word):
    small = id.startswith("K4")
    ds = query_runs(lambda init_scale, d: value if (init_scale, d) == ((0.5, 4) if small else (3.0, 16)) else 77.0)
    claim = next(claim for claim in claims.CLAIMS if claim.id == id)
    assert str(claims.setting_of(ds)) == "query"
    assert verdicts._decide(claim, claims.setting_of(ds), ds).verdict == word


def test_claims_compare_each_kernel_at_its_best_rate_and_leave_diverged_runs_out():
    ds = query_runs(lambda init_scale, d: 0.5)
    worse = ds.assign_coords(optimizer=["gd 2"]).copy(deep=True)
    worse["train_loss"][:] = 0.0
    worse["train_ratio"][:] = 0.0
    worse["status"][:] = 1
    both = xr.concat([ds, worse], "optimizer")
    at = claims.at(both, kernel="gaussian", d=4, init_scale=0.5, c_scale=1.0)
    assert claims.at_end(at, "train_loss").values.tolist() == [0.5] * SEEDS
    none = at.assign(status=xr.ones_like(at["status"]))
    assert np.isnan(claims.at_end(none, "train_loss")).all()


def test_claims_say_what_a_dataset_lacks():
    ds = query_runs(lambda init_scale, d: 0.5)
    with pytest.raises(js.CannotDecide, match="needs runs at init_scale=2"):
        claims.at(ds, init_scale=2)
    with pytest.raises(js.CannotDecide, match="several on"):
        claims.at(ds, init_scale=0.5)
    with pytest.raises(js.CannotDecide, match="step 1500 is not recorded"):
        claims.CLAIMS[0].select(ds.isel(step=[0, 1]))


def test_settings_are_called_after_what_is_trained():
    assert str(claims.setting_of(runs(None, {}, None, []))) == "all"
    assert str(claims.setting_of(runs(None, {}, None, [], "retrieval"))) == "retrieval"
    assert str(claims.setting_of(runs(["w_v", "w_q"], {}, None, []))) == "two_stage"
    assert str(claims.setting_of(runs(["w_o"], {}, None, []))) == "custom"
    assert len({claim.id for claim in claims.CLAIMS}) == len(claims.CLAIMS)


def load(path):
    spec = importlib.util.spec_from_file_location(f"script_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_two_stages_train_the_values_first_and_the_rest_after():
    two_stage = load(ROOT / "sweeps" / "kernels.py").two_stage(learning_rate=0.2, value_rate=0.5, switch=2)
    params = {"w_v": jnp.zeros(()), "w_q": jnp.zeros(())}
    state, seen = two_stage.init(params), []
    for _ in range(4):
        updates, state = two_stage.update({"w_v": jnp.ones(()), "w_q": jnp.ones(())}, state, params)
        seen.append([round(float(updates[name]), 6) for name in ("w_v", "w_q")])
    assert seen == [[-0.5, 0.0], [-0.5, 0.0], [0.0, -0.2], [0.0, -0.2]]


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_shows_its_numbers(tmp_path, monkeypatch):
    assert load(ROOT / "sweeps" / "kernels.py").main(["--tiny", "--out", str(tmp_path / "kernels")]) == 0
    argv = ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "argv", argv)
    load(ROOT / "figures" / "kernels.py").main()
    assert {p.suffix for p in (tmp_path / "figures").iterdir()} == {".png", ".pdf", ".svg", ".csv"}
    with open(tmp_path / "figures" / "kernels_landscapes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    seen = js.open_results(tmp_path / "kernels" / "two_stage")["landscape"].isel(step=-1).sel(kernel="gaussian", seed=0)
    drawn = {float(r["y"]) for r in rows if r["panel"].startswith("Gaussian: ") and r["line"] == "a=-1"}
    assert any(drawn == {float(f"{v:.6g}") for v in seen.isel(optimizer=i, first=0).values} for i in range(6))

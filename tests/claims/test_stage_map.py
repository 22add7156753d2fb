"""The claims of the stage map on runs made to satisfy and to violate them, its laws, its tiny mode and figure."""

import csv
import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign import theory
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import stage_map

ROOT = Path(__file__).parents[2]
SEEDS = 8
AXES = {"mu": [0.1, 1.0, 3.16], "sigma_0": [3e-4, 1e-3, 3e-3, 1e-2, 1e-1], "learning_rate": [1e-6, 1e-5, 3e-5, 1e-3]}
NUMBERS = {
    "key_memory": 0.97, "agreement_start": 0.5, "votes_followed": 1.0, "signals_opposite": 1.0, "s11_at_IV": 0.48,
    "s21_exponent": 1.5,
}  # fmt: skip


def dataset(axes, **changed):
    """Runs whose stages end where the laws say, a little apart over seeds."""
    problem, hyper = js.presets.disjoint()
    rates = axes["learning_rate"]
    dims = {name: values for name, values in axes.items() if name != "learning_rate"}
    coords = {
        **dims, "optimizer": [f"sign_gd {eta:g}" for eta in rates], "family": ("optimizer", ["sign_gd"] * len(rates)),
        "learning_rate": ("optimizer", rates), "seed": np.arange(SEEDS),
    }  # fmt: skip
    order = (*dims, "optimizer", "seed")
    shape = [len(coords[name]) for name in order]
    definition = {
        "problem": dataclasses.asdict(problem), "hyper": dataclasses.asdict(hyper),
        "system": {"name": "jaxsign.two_layer"},
    }  # fmt: skip
    ds = xr.Dataset(coords=coords, attrs={"manifest": json.dumps({"definition": definition})})
    ds["status"] = order, np.zeros(shape, np.int8)
    for name in stage_map.ENDS:
        ds[name] = order, np.ones(shape)
    law = stage_map.laws(stage_map.runs_of(ds))
    spread = xr.DataArray(1 + 0.01 * np.linspace(-1, 1, SEEDS), dims="seed")
    for name in stage_map.ENDS:
        ds[name] = (order, (law[name] * spread).transpose(*dims, "learning_rate", "seed").values)
    for name, value in NUMBERS.items():
        ds[name] = order, np.full(shape, value)
    ds["value_growth"] = (order, np.broadcast_to(np.array(rates)[:, None], shape).copy())
    for name, change in changed.items():
        ds[name] = change(ds[name])
    return ds


@pytest.fixture(scope="module")
def whole():
    return dataset(AXES)


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_laws_and_groups_at_one_cell(whole):
    law = stage_map.laws(stage_map.runs_of(whole))
    one = law.sel(mu=3.16, sigma_0=1e-3, learning_rate=1e-5)
    problem, hyper = js.presets.disjoint()
    hyper = dataclasses.replace(hyper, mu=3.16, sigma_0=1e-3)
    assert float(one["t_II"]) == np.ceil(theory.stage_two_time(problem, hyper, 1e-5))
    assert float(one["t_V"]) == np.ceil(theory.stage_five_time(problem, hyper, 1e-5)[1])
    assert float(one["start"]) == pytest.approx(1e-3 * 2 * 40**0.5)
    assert float(one["step_size"]) == pytest.approx(1e-5 * 63.83, rel=1e-3)
    assert float(one["snr"]) == pytest.approx(0.25, rel=1e-3)
    assert bool(one["in_range"])
    assert not bool(law["in_range"].sel(sigma_0=1e-1).any())
    assert not bool(law["in_range"].sel(sigma_0=1e-3, learning_rate=1e-3).any())


@pytest.mark.parametrize("claim", ["T1", "T2", "T3", "T4", "T5", "T6", "T7"])
def test_runs_as_the_laws_say_satisfy_the_claims(whole, claim):
    assert word(whole, claim) == "HOLDS"


@pytest.mark.parametrize(
    ("claim", "name", "change"),
    [
        ("T1", "value_growth", lambda v: 1.1 * v),
        ("T1", "t_I", lambda v: 1.4 * v),
        ("T1", "key_memory", lambda v: 0 * v + 0.8),
        ("T2", "agreement_start", lambda v: 0 * v + 0.7),
        ("T2", "t_II", lambda v: 1.3 * v),
        ("T3", "votes_followed", lambda v: 0.9 * v),
        ("T3", "signals_opposite", lambda v: 0.9 * v),
        ("T3", "t_III", lambda v: 0.7 * v),
        ("T4", "s11_at_IV", lambda v: 0.5 * v),
        ("T4", "s21_exponent", lambda v: 0 * v + 0.9),
        ("T4", "t_IV", lambda v: 0.7 * v),
        ("T5", "t_key", lambda v: 3 * v),
        ("T5", "t_V", lambda v: 1.3 * v),
        ("T6", "t_V", lambda v: 0 * v),
        ("T7", "t_V", lambda v: 0 * v),
    ],
)
def test_each_claim_can_fail(claim, name, change):
    assert word(dataset(AXES, **{name: change}), claim) == "FAILS"


def test_only_held_out_cells_decide(whole):
    there = held_out(stage_map.runs_of(whole), *stage_map.MAP).values[..., None]
    for cells, expected in ((there, "HOLDS"), (~there, "FAILS")):
        assert word(whole.assign(t_IV=whole["t_IV"].where(cells, 1.0)), "T4") == expected


def test_a_boundary_that_is_never_reached_leaves_its_time_undecided_and_its_order_false(whole):
    ds = whole.assign(t_II=whole["t_II"] * np.nan)
    assert word(ds, "T2") == "UNDECIDED"
    assert word(ds, "T6") == "FAILS"


def test_runs_that_have_not_run_decide_nothing(whole):
    ds = whole.assign(status=xr.full_like(whole["status"], -1))
    table = js.check(ds, ["T6", "T7"])
    assert not table.rows
    assert {reason for _, _, reason in table.missing} == {
        f"{ds['status'].size} of {ds['status'].size} runs are not run yet, some of every seed"
    }


def test_claims_say_what_they_lack(whole):
    lost = whole.drop_vars("t_key")
    assert "without ['t_key']" in js.check(lost, ["T5"]).missing[0][2]
    outside = whole.sel(sigma_0=[1e-1, 3e-3]).isel(sigma_0=[0, 0]).assign_coords(sigma_0=[1e-1, 2e-1])
    assert "no held-out cell" in js.check(outside, ["T6"]).missing[0][2]


def test_shapes_are_asked_one_at_a_time():
    ds = dataset({"m_k": [20, 40], "learning_rate": [1e-4]})
    assert word(ds, "T8") == "HOLDS"
    assert word(ds.assign(t_V=2 * ds["t_V"]), "T8") == "FAILS"
    assert word(ds.assign(t_II=0 * ds["t_II"]), "T8") == "FAILS"


def test_the_order_is_kept_up_to_a_start_that_goes_with_the_rows():
    starts = [0.6 / (4 * 10**0.5 * 320**0.5) * 2 ** (i / 4) for i in range(16)]
    ds = dataset({"m_k": [10, 20, 80, 160, 320], "sigma_0": starts, "learning_rate": [3e-5]})
    product = ds["sigma_0"] * 4 * 10**0.5 * ds["m_k"] ** 0.5
    kept = ds.assign({name: xr.zeros_like(ds[name]) + place for place, name in enumerate(stage_map.ENDS)})
    swapped = {"t_I": kept["t_V"]}
    assert word(kept.where(product < 1, kept.assign(swapped)), "T9") == "HOLDS"
    by_start = ds["sigma_0"] * 4 * 10**0.5 < 0.22  # as it would be if sigma_0 counted: right for m_k = 20 alone
    assert word(kept.where(by_start, kept.assign(swapped)), "T9") == "FAILS"
    cut = kept.assign(status=kept["status"].where(ds["seed"] > 0, -1))
    (row,) = js.check(cut.where(product < 1, cut.assign(swapped)), ["T9"]).rows
    assert (row.seeds, row.verdict) == (SEEDS - 1, "HOLDS")


def test_exponents_are_those_of_powers_and_leave_held_out_cells_out(whole):
    runs = stage_map.runs_of(whole)
    times = 3.0 * runs["sigma_0"] ** 0.5 / runs["learning_rate"] * (1 + runs["mu"])
    times = (times * xr.ones_like(runs["t_II"])).where(~held_out(runs, *stage_map.MAP), 1e6)
    np.testing.assert_allclose(
        stage_map.exponents(times, stage_map.laws(runs)), np.tile([0.5, -1.0], (SEEDS, 1)), atol=1e-9
    )


@pytest.mark.slow
def test_the_experiment_runs_tiny(tmp_path, monkeypatch):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "atlas_stages.py"))
    assert experiment["main"](["--tiny", "--out", str(tmp_path / "atlas_stages")]) == 0
    ds = js.open_results(tmp_path / "atlas_stages" / "map")
    assert "query_noise" not in ds
    assert np.isfinite(ds["t_I"]).all()


def test_the_figure_shows_the_datasets_numbers(tmp_path, monkeypatch):
    made = {"map": dataset(AXES), "m_k": dataset({"m_k": [10, 40], "learning_rate": [1e-4]})}
    for name in made:
        (tmp_path / "atlas_stages" / name).mkdir(parents=True)
    monkeypatch.setattr("jaxsign.plot.script.open_dataset", lambda path: made[path.name])
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    runpy.run_path(str(ROOT / "figures" / "atlas_stages.py"))["main"]()
    shown = {}
    for name, panels in (("atlas_stages", 4), ("atlas_stages_ends", 5)):
        with open(tmp_path / "figures" / f"{name}.csv", newline="", encoding="utf-8") as file:
            shown[name] = list(csv.reader(file))[1:]
        assert len({row[0] for row in shown[name] if row[0].startswith("(")}) == panels
    fourth = [float(row[3]) for row in shown["atlas_stages_ends"] if row[0].startswith("(c)") and row[1] != "preset"]
    np.testing.assert_allclose(fourth, 1.0, atol=0.011)

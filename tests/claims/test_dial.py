"""The dial's claims on Datasets built from the law and on ones that violate it; its sweep and figure, tiny."""

import dataclasses
import functools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import atlas, dial
from jaxsign.claims.dynamics import setting_of

ROOT = Path(__file__).parents[2]
SEEDS = 10
SNRS = (0.025, 0.04, 1 / (2 * 40**0.5), 0.13, 0.2)
POWERS = np.linspace(0, 1, 11).round(6)
#: Where every family that is not on the main dial stands on it.
OTHERS = {
    "signum": ({"beta": [0.0, 0.5, 0.9, 0.99]}, 0.0), "rmsprop": ({"decay": [0.9]}, 0.0), "tensor_gd": ({}, 1.0),
    "row_gd": ({}, 1.0), "muon": ({}, 1.0),
}  # fmt: skip


@functools.cache
def law_at(preset, snr, power):
    """The law's errors at the recorded losses of a cell: the same in all Datasets below."""
    problem, hyper = getattr(js.presets, preset)()
    mu = snr * 2 * 40**0.5
    here = dataclasses.replace(hyper, mu=mu, sigma_0=3e-3 / mu)
    first, last = (js.theory.error_at_loss(problem, here, level, power).error for level in (0.1, 0.01))
    return np.array([first, first, last])  # of the loss at every recorded step, the first one not read


def dataset(preset="paper_like", attention=0.01, shift=None, families=("power",)):
    """Runs with the law's errors, `attention` more under softmax; `shift(error, p, kernel)` changes them."""
    problem, hyper = getattr(js.presets, preset)()
    mu = [snr * 2 * 40**0.5 for snr in SNRS]
    rows = [("power", {"p": p}, p) for p in POWERS] if "power" in families else []
    for family, (keywords, power) in OTHERS.items():
        if family in families:
            word, values = next(iter(keywords.items()), (None, [None]))
            rows += [(family, {} if word is None else {word: value}, power) for value in values]
    law = {(power, i): law_at(preset, snr, power) for power in {row[2] for row in rows} for i, snr in enumerate(SNRS)}
    error = np.empty((2, len(mu), len(rows), SEEDS, 3))
    for k, kernel in enumerate(("softmax", "uniform")):
        for i in range(len(mu)):
            for j, (_, _, power) in enumerate(rows):
                value = law[power, i] + (attention if kernel == "softmax" else 0)
                error[k, i, j] = value if shift is None else shift(value, power, kernel)
    error += 0.01 * np.random.default_rng(0).standard_normal(error.shape)[..., :1]
    dims = ("kernel", "mu", "optimizer", "seed", "step")
    names = sorted({name for row in rows for name in row[1]})
    keywords = {name: ("optimizer", [row[1].get(name, np.nan) for row in rows]) for name in names}
    definition = {
        "problem": {k: v for k, v in dataclasses.asdict(problem).items() if k != "kernel"},
        "hyper": {k: float(v) for k, v in dataclasses.asdict(hyper).items() if k not in ("mu", "sigma_0")},
        "system": {"name": "jaxsign.two_layer"},
    }  # fmt: skip
    ds = xr.Dataset(
        {
            "train_loss": (dims, np.broadcast_to([0.7, 0.0999, 0.00999], error.shape)), "test_error": (dims, error),
            "status": (dims[:-1], np.zeros(error.shape[:-1], np.int8)),
        },
        {
            "kernel": ["softmax", "uniform"], "mu": mu, "sigma_0": ("mu", [3e-3 / m for m in mu]),
            "step": [0, 100, 200], "seed": np.arange(SEEDS),
            "optimizer": [f"{row[0]} {i}" for i, row in enumerate(rows)],
            "family": ("optimizer", [row[0] for row in rows]), **keywords,
        }, {"manifest": json.dumps({"definition": definition})},
    )  # fmt: skip
    return with_levels(ds, (0.1, 0.01))


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_cells_are_those_that_the_rule_holds_out():
    table = xr.Dataset(coords={"p": POWERS, "mu": [snr * 2 * 40**0.5 for snr in SNRS]})
    chosen = np.argwhere(held_out(table, "p", "mu").values)
    np.testing.assert_allclose([(POWERS[i], SNRS[j]) for i, j in chosen], dial.CELLS, rtol=1e-3)


def test_half_of_the_gap_by_hand():
    powers = [0.0, 0.5, 1.0]
    errors = np.array([[0.4, 0.4, np.nan], [0.3, 0.1, 0.1], [0.2, 0.0, 0.0]])
    np.testing.assert_allclose(dial.half(powers, errors), [0.5, 1 / 3, np.nan])


def test_settings_are_those_of_the_claims():
    assert str(setting_of(dataset())) == dial.OVERLAP
    assert str(setting_of(dataset("disjoint"))) == dial.LIMIT


def test_the_law_satisfies_the_claims_about_it():
    for preset in ("paper_like", "disjoint"):
        assert [word(dataset(preset), claim) for claim in ("DM1", "DM2")] == ["HOLDS"] * 2
    assert word(dataset(), "DM3") == word(dataset(), "DM4") == "HOLDS"


def test_claims_about_the_main_dial_fail_elsewhere():
    off = dataset(shift=lambda error, p, kernel: error + 0.1)
    assert word(off, "DM1") == word(off, "DM2") == "FAILS"
    assert word(dataset(shift=lambda error, p, kernel: 0.4 - 0.3 * p**4), "DM3") == "FAILS"
    assert word(dataset(attention=0.1), "DM4") == "FAILS"
    assert word(dataset(attention=0.1), "DM5") == "FAILS"  # SignGD's share is to be small
    grows = dataset(attention=0.0, shift=lambda error, p, kernel: error + 0.05 * p**2 * (kernel == "softmax"))
    assert word(grows, "DM5") == "FAILS"  # .025 at p = .7
    more = dataset(attention=0.0, shift=lambda error, p, kernel: error + 0.12 * p * (kernel == "softmax"))
    assert word(more, "DM5") == "HOLDS"
    assert word(dataset("disjoint", attention=0.1), "DM6") == "HOLDS"
    assert word(dataset("disjoint", attention=0.0), "DM6") == "FAILS"


def test_claims_about_memory_and_norms():
    ds = dataset(families=tuple(OTHERS))
    assert word(ds, "DM8") == word(ds, "DM9") == "HOLDS"
    off = dataset(families=tuple(OTHERS), shift=lambda error, p, kernel: np.where(p == 1, error + 0.1, error))
    assert word(off, "DM9") == "FAILS"
    assert word(ds, "DM11") == "FAILS"  # attention adds .01 alone
    norms = tuple(family for family in OTHERS if OTHERS[family][1] == 1)
    assert word(dataset(families=norms, attention=0.3), "DM11") == "HOLDS"
    far = ds.assign(test_error_at_level=ds["test_error_at_level"] + 0.1 * (ds["family"] == "rmsprop"))
    assert word(far, "DM8") == "FAILS"


@pytest.mark.parametrize(
    ("middle", "expected"),
    [((0.64, 0.57, 0.48, 0.63), "HOLDS"), ((0.64, 0.57, 0.62, 0.63), "FAILS"), ((0.64, 0.57, 0.48, 0.5), "FAILS")],
)
def test_where_half_is_lost_depends_on_the_dimension(middle, expected):
    powers = np.linspace(0, 1, 11)
    ds = dataset().sel(kernel="softmax", drop=True).isel(mu=[0] * 4, optimizer=slice(0, powers.size)).rename(mu="d")
    error = np.stack([0.4 - 0.3 * np.interp(powers, [0, p, 1], [0, 0.5, 1]) for p in middle])
    own = 0.002 * np.random.default_rng(0).standard_normal(SEEDS)
    table = xr.DataArray(error, dims=("d", "optimizer")) + xr.DataArray(own, dims="seed")
    manifest = json.loads(ds.attrs["manifest"])
    manifest["definition"]["problem"]["kernel"] = "softmax"
    manifest["definition"]["problem"].pop("d")
    manifest["definition"]["hyper"]["mu"] = 1.0
    at_level = (ds["test_error_at_level"] * 0 + table).transpose(*ds["test_error_at_level"].dims)
    ds = ds.isel(level=[0, 0, 1]).assign(test_error_at_level=at_level.isel(level=[0, 0, 1])).assign_coords(
        d=[2000, 4000, 8000, 2000], sigma_0=("d", [3e-3, 3e-3, 3e-3, 3e-4]), p=("optimizer", powers),
        level=[0.5, 0.1, 0.01],
    ).assign_attrs(manifest=json.dumps(manifest))  # fmt: skip
    assert word(ds, "DM12") == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "HOLDS"),
        ({("muon_apart", 0.1): 0.4}, "FAILS"),
        ({("gd_apart", 10.0): 0.12}, "FAILS"),
        ({("row_apart", 0.1): 0.3}, "FAILS"),
    ],
)
def test_a_norm_harms_through_the_speed_of_queries_and_keys(changed, expected):
    errors = {
        ("tensor_apart", 0.1): 0.11, ("tensor_apart", 1.0): 0.28, ("row_apart", 0.1): 0.11, ("row_apart", 1.0): 0.23,
        ("muon_apart", 0.1): 0.2, ("muon_apart", 1.0): 0.4, ("gd_apart", 1.0): 0.12, ("gd_apart", 10.0): 0.25,
        ("gd_apart", 100.0): 0.43, **changed,
    }  # fmt: skip
    own = xr.DataArray(0.002 * np.random.default_rng(0).standard_normal(SEEDS), dims="seed")
    ds = dataset().isel(mu=1, drop=True).isel(optimizer=[0] * len(errors))
    table = xr.DataArray([list(errors.values()), [0.1] * len(errors)], dims=("kernel", "optimizer")) + own
    families, shares = zip(*errors)
    manifest = json.loads(ds.attrs["manifest"])
    manifest["definition"]["hyper"] |= {"mu": 1.0, "sigma_0": 3e-3}
    at_level = (ds["test_error_at_level"] * 0 + table).transpose(*ds["test_error_at_level"].dims)
    ds = ds.drop_vars("sigma_0", errors="ignore").assign(test_error_at_level=at_level).assign_coords(
        optimizer=np.arange(len(errors)), family=("optimizer", list(families)), share=("optimizer", list(shares))
    ).assign_attrs(manifest=json.dumps(manifest))  # fmt: skip
    assert word(ds, "DM13") == expected


def test_what_is_lacking_is_said():
    ds = dataset()
    for words, ask in {
        "the SNR 0.5": lambda: dial.reading(ds, "power", 0.1, 0.5, kernel="uniform", p=0.0),
        "exactly one power": lambda: dial.reading(ds, "power", 0.1, 0.04, kernel="uniform", p=0.05),
        "axis mu": lambda: atlas.snr_of(ds.isel(mu=0, drop=True)),
    }.items():
        with pytest.raises(js.CannotDecide, match=words):
            ask()


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tmp_path, monkeypatch):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "atlas_dial.py"))
    assert experiment["main"](["--tiny", "--out", str(tmp_path / "atlas_dial")]) == 0
    for path in (tmp_path / "atlas_dial").iterdir():
        assert np.isfinite(js.open_results(path)["train_loss"]).all()
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    runpy.run_path(str(ROOT / "figures" / "atlas_dial.py"))["main"]()
    assert len((tmp_path / "figures" / "atlas_dial.csv").read_text().splitlines()) > 100

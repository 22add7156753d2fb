"""The betas' claims on Datasets that satisfy and that violate them; the sweep and its figure, tiny."""

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
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import betas
from jaxsign.claims.dynamics import setting_of

ROOT = Path(__file__).parents[2]
SEEDS = 8
BETAS = (0.0, 0.5, 0.9, 0.99, 0.999)
MU = [snr * 2 * 40**0.5 for snr in (0.04, 1 / (2 * 40**0.5), 0.2)]
#: SignGD's error at a SNR, and what a second moment of 100 or more steps adds at loss .1, .01 and 1e-4.
SIGN, LONG = (0.22, 0.1, 0.1), (0.06, 0.14, 0.2)


def error(b1, b2, mu, kernel):
    """Errors at the three levels, as the claims want them."""
    if kernel == "uniform":
        return np.full(3, SIGN[mu])
    if b1 > b2:
        return np.full(3, SIGN[mu] - 0.06)
    scale = (1.0, 0.5, 0.2)[mu]
    return SIGN[mu] + (scale * np.array(LONG) if b2 >= 0.99 and b1 < b2 else np.zeros(3))


def dataset(preset="disjoint", of=error):
    problem, hyper = getattr(js.presets, preset)()
    kernels = ["softmax", "uniform"] if preset == "disjoint" else ["softmax"]
    rows = [(np.nan, np.nan), *((b1, b2) for b1 in BETAS for b2 in BETAS)]
    table = np.empty((len(kernels), len(MU), len(rows), SEEDS, 4))
    for k, kernel in enumerate(kernels):
        for m in range(len(MU)):
            for j, (b1, b2) in enumerate(rows):
                here = np.full(3, SIGN[m]) if np.isnan(b1) else of(b1, b2, m, kernel)
                table[k, m, j] = [0.5, *here]
    table += 0.002 * np.random.default_rng(0).standard_normal(table.shape)[..., :1]
    dims = ("kernel", "mu", "optimizer", "seed", "step")
    definition = {
        "problem": {k: v for k, v in dataclasses.asdict(problem).items() if k != "kernel"},
        "hyper": {k: float(v) for k, v in dataclasses.asdict(hyper).items() if k not in ("mu", "sigma_0")},
        "system": {"name": "jaxsign.two_layer"},
    }  # fmt: skip
    ds = xr.Dataset(
        {
            "train_loss": (dims, np.broadcast_to([0.7, 0.0999, 0.00999, 0.0000999], table.shape)),
            "test_error": (dims, table), "s11": (dims, np.broadcast_to([0.5, 0.4, 0.2, 0.1], table.shape)),
            "status": (dims[:-1], np.zeros(table.shape[:-1], np.int8)),
        },
        {
            "kernel": kernels, "mu": MU, "sigma_0": ("mu", [3e-3 / m for m in MU]), "step": [0, 100, 200, 300],
            "seed": np.arange(SEEDS), "optimizer": [f"{i}" for i in range(len(rows))],
            "family": ("optimizer", ["sign_gd", *["adam"] * (len(rows) - 1)]),
            "b1": ("optimizer", [row[0] for row in rows]), "b2": ("optimizer", [row[1] for row in rows]),
        }, {"manifest": json.dumps({"definition": definition})},
    )  # fmt: skip
    return with_levels(ds, (0.1, 0.01, 1e-4))


@pytest.fixture(scope="module")
def limit():
    return dataset()


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_cells_are_those_that_the_rule_holds_out():
    table = xr.Dataset(coords={"b1": list(BETAS), "b2": list(BETAS), "mu": MU})
    snr = [0.04, betas.OWN, 0.2]
    chosen = np.argwhere(held_out(table, "b1", "b2", "mu").values)
    assert [(BETAS[i], BETAS[j], snr[k]) for i, j, k in chosen] == list(betas.CELLS)


def test_claims_hold_and_fail(limit):
    assert str(setting_of(limit)) == betas.LIMIT
    assert [word(limit, f"BM{i}") for i in range(1, 6)] == ["HOLDS"] * 5
    same = limit.assign(test_error_at_level=limit["test_error_at_level"] * 0 + 0.22)
    assert [word(same, f"BM{i}") for i in (2, 3, 5)] == ["FAILS"] * 3
    rng = np.random.default_rng(1)
    shift = 0.1 * (limit["family"] == "adam")
    off = limit.assign(test_error_at_level=limit["test_error_at_level"] + shift + rng.normal(0, 1e-3, 1)[0])
    assert word(off, "BM1") == word(off, "BM4") == "FAILS"


def test_claims_at_finite_dimension():
    overlap = dataset("paper_like")
    assert str(setting_of(overlap)) == betas.OVERLAP
    assert word(overlap, "BM8") == word(overlap, "BM6") == word(overlap, "BM7") == "HOLDS"
    off = dataset("paper_like", lambda b1, b2, mu, kernel: np.full(3, SIGN[mu] + (0.1 if mu == 1 else 0.0)))
    assert word(off, "BM6") == word(off, "BM7") == word(off, "BM8") == "FAILS"


def memory_runs(of):
    """Runs over eta and b2 at two SNRs, of which Adam's exceed SignGD's error of .15 by of(eta, b2)."""
    rates, b2 = (1e-5, 1e-4, 1e-3), (0.9, 0.99, 0.999, 0.9999)
    rows = [*((eta, np.nan) for eta in rates), *((eta, b) for eta in rates for b in b2)]
    ds = dataset().sel(kernel="softmax", drop=True).isel(mu=[0, 2], optimizer=[0] * len(rows))
    manifest = json.loads(ds.attrs["manifest"])
    manifest["definition"]["problem"]["kernel"] = "softmax"
    mu = [snr * 2 * 40**0.5 for snr in (0.04, 0.06)]
    families = ["sign_gd"] * 3 + ["adam"] * (len(rows) - 3)
    added = [0.0 if np.isnan(b) else of(eta, b) for eta, b in rows]
    ds = ds.assign_coords(
        mu=mu, sigma_0=("mu", [3e-3 / m for m in mu]), optimizer=[f"{i}" for i in range(len(rows))],
        family=("optimizer", families), b1=("optimizer", [np.nan if np.isnan(b) else 0.0 for _, b in rows]),
        b2=("optimizer", [b for _, b in rows]), learning_rate=("optimizer", [eta for eta, _ in rows]),
    ).assign_attrs(manifest=json.dumps(manifest))  # fmt: skip
    own = 0.002 * xr.DataArray(np.random.default_rng(2).standard_normal((len(rows), SEEDS)), dims=("optimizer", "seed"))
    error = ds["test_error_at_level"] * 0 + 0.15 + xr.DataArray(added, dims="optimizer") + own
    return ds.assign(test_error_at_level=error.transpose(*ds["test_error_at_level"].dims))


def test_excess_belongs_to_the_memory_against_the_length_of_training():
    by_memory = memory_runs(lambda eta, b2: 0.15 / (1 + (1 - b2) / eta / 200))
    assert str(setting_of(by_memory)) == betas.MEMORY
    assert word(by_memory, "BM9") == word(by_memory, "BM10") == "HOLDS"
    by_beta = memory_runs(lambda eta, b2: 0.15 / (1 + (1 - b2) / 0.02))
    assert word(by_beta, "BM9") == word(by_beta, "BM10") == "FAILS"


def runs_around(of):
    """Runs in the cells of entry `around`, of which `of(family, SNR, sigma_0, eta, b1)` exceed SignGD's error of .2."""
    rows = [
        ("sign_gd", 1e-4, np.nan), ("sign_gd", 1e-3, np.nan), ("adam", 1e-4, 0.0), ("adam_on_attention", 1e-4, np.nan),
        ("adam_on_signal", 1e-4, np.nan), ("adam_on_noise", 1e-4, np.nan), ("fast", 1e-3, 0.9), ("fast", 1e-3, 0.99),
    ]  # fmt: skip
    cells = [(0.025, 3e-3), (0.04, 3e-3), (0.06, 3e-3), (0.1, 3e-3), (0.04, 3e-4), (0.04, 1e-3), (0.04, 1e-2)]
    ds = dataset().sel(kernel="softmax", drop=True).isel(mu=[0] * len(cells), optimizer=[0] * len(rows))
    manifest = json.loads(ds.attrs["manifest"])
    manifest["definition"]["problem"]["kernel"] = "softmax"
    mu = [snr * 2 * 40**0.5 for snr, _ in cells]
    families, rates, b1 = zip(*rows)
    ds = ds.assign_coords(
        mu=mu, sigma_0=("mu", [start / m for (_, start), m in zip(cells, mu)]),
        optimizer=[f"{i}" for i in range(len(rows))], family=("optimizer", list(families)),
        b1=("optimizer", list(b1)), learning_rate=("optimizer", list(rates)),
    ).assign_attrs(manifest=json.dumps(manifest))  # fmt: skip
    excess = [[0.0 if row[0] == "sign_gd" else of(row[0], *cell, *row[1:]) for row in rows] for cell in cells]
    own = 0.001 * xr.DataArray(np.random.default_rng(3).standard_normal((len(rows), SEEDS)), dims=("optimizer", "seed"))
    error = ds["test_error_at_level"] * 0 + 0.2 + xr.DataArray(excess, dims=("mu", "optimizer")) + own
    return ds.assign(test_error_at_level=error.transpose(*ds["test_error_at_level"].dims))


def around(family, snr, start, eta, b1):
    """Excesses as BM11 to BM13 say."""
    usual = {"adam_on_attention": 0.0, "adam_on_signal": 0.2, "adam_on_noise": -0.1, "fast": 0.03 if b1 == 0.9 else 0.0}
    if family != "adam":
        return usual[family]
    return {0.025: 0.05, 0.1: 0.0}.get(snr, {3e-4: 0.0, 3e-3: 0.11}.get(start, 0.05))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ["HOLDS", "HOLDS", "HOLDS"]),
        ({"adam_on_attention": 0.1}, ["FAILS", "HOLDS", "HOLDS"]),
        ({"adam_on_signal": 0.0}, ["FAILS", "HOLDS", "HOLDS"]),
        ({"adam": 0.1}, ["HOLDS", "FAILS", "HOLDS"]),
        ({"fast": 0.05}, ["HOLDS", "HOLDS", "FAILS"]),
    ],
)
def test_the_excess_is_of_its_part_and_its_setting(changed, expected):
    ds = runs_around(lambda family, *where: changed.get(family, around(family, *where)))
    assert str(setting_of(ds)) == betas.MEMORY
    assert [word(ds, f"BM{i}") for i in (11, 12, 13)] == expected
    with pytest.raises(js.CannotDecide, match="SNR"):
        betas.excess(ds, 0.01, 0.04, 1e-4, 0.99)


def test_distances_by_hand(limit):
    table = betas.attention_distance(limit, 0.04, 0.01)
    assert table.dims == ("b1", "b2", "seed")
    np.testing.assert_allclose(table, 0, atol=1e-12)
    fast = limit["train_loss"] * xr.where((limit["b1"] == 0.9) & (limit["b2"] == 0.99), 0.1, 1.0)
    distance = betas.trace_distance(limit.assign(train_loss=fast.transpose(*limit["train_loss"].dims)), 0.04)
    assert float(distance.sel(b1=0.9, b2=0.99).max()) == pytest.approx(1)
    assert float(distance.sum()) == pytest.approx(SEEDS)


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tmp_path, monkeypatch):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "atlas_betas.py"))
    assert experiment["main"](["--tiny", "--out", str(tmp_path / "atlas_betas")]) == 0
    assert np.isfinite(js.open_results(tmp_path / "atlas_betas" / "limit")["train_loss"]).all()
    memory = js.open_results(tmp_path / "atlas_betas" / "memory")
    assert memory.sizes["optimizer"] == 9
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    runpy.run_path(str(ROOT / "figures" / "atlas_betas.py"))["main"]()
    assert len((tmp_path / "figures" / "atlas_betas.csv").read_text().splitlines()) > 30

"""Claims about residual connections: rates of known curves, the points that are compared; the experiment, tiny."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsign as js
from jaxsign.claims import residual as claims
from jaxsign.systems.residual import ResidualHyper, ResidualProblem

ROOT = Path(__file__).parents[2]


def load(folder, name):
    spec = importlib.util.spec_from_file_location(f"residual_{folder}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(steps, loss, sigma, rates):
    """A Dataset of one seed with both residuals, as `_rates` reads it."""
    import xarray as xr

    dims = ("optimizer", "seed", "step")
    return xr.Dataset(
        {"train_loss": (dims, loss[:, None]), "feature_sigma_min": (dims, sigma[:, None])},
        coords={"step": steps, "seed": [0], "learning_rate": ("optimizer", rates)},
    )


def test_rates_of_the_claims_on_curves_whose_rates_are_known():
    steps, rates = np.arange(0, 401, 10), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    linear, power = np.exp(-0.03 * steps), (1.0 + steps) ** -2.0
    worse = np.ones_like(linear)
    sigma = np.full((5, steps.size), 0.2)
    ds = made(steps, np.stack([worse, linear, worse, worse * np.nan, worse]), sigma, rates)
    assert claims.best(ds)["learning_rate"].item() == 0.2
    assert claims._rates(ds, claims._late).item() == pytest.approx(0.03)
    assert claims._rates(ds, claims._late_over_early).item() == pytest.approx(1)
    assert claims._rates(ds, claims._late_over_predicted).item() == pytest.approx(0.03 / -np.log1p(-0.2 * 0.04))
    ds = made(steps, np.stack([worse, power, worse, worse, worse]), sigma, rates)
    assert claims._rates(ds, claims._late_over_early).item() == pytest.approx(0.25, abs=0.03)
    fast = np.maximum(np.exp(-0.5 * steps), 1e-30)  # at the rounding floor from step 140 on, where nothing is fitted
    ds = made(steps, np.stack([worse, fast, worse, worse, worse]), sigma, rates)
    assert claims._rates(ds, claims._late).item() == pytest.approx(0.5)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The tiny mode of the sweep, laid out as the figure wants it."""
    root = tmp_path_factory.mktemp("residual")
    assert load("sweeps", "residual").main(["--tiny", "--out", str(root / "residual")]) == 0
    return root


def test_tiny_sweep_runs_and_its_figure_is_drawn(results, tmp_path, monkeypatch):
    ds = js.open_results(results / "residual" / "depth_1")
    assert ds["attention_condition"].dims == (
        "attention_residual",
        "ffn_residual",
        "optimizer",
        "seed",
        "step",
        "layer",
    )
    assert bool((ds["status"].sel(attention_residual=1) == 0).isel(optimizer=0).all())
    monkeypatch.setattr(sys, "argv", ["residual", "--results", str(results), "--out", str(tmp_path)])
    load("figures", "residual").main()
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".pdf", ".svg", ".csv"}
    assert len((tmp_path / "residual.csv").read_text().splitlines()) > 50


def test_sweep_wants_64_bit(tmp_path, capsys, monkeypatch):
    if jax.config.jax_enable_x64:
        pytest.skip("64-bit floats are on")
    assert load("sweeps", "residual").main(["--out", str(tmp_path / "x")]) == 2
    assert "--x64" in capsys.readouterr().err


def test_claims_read_the_points_they_compare(results):
    ds = js.open_results(results / "residual" / "depth_1").load()
    both, none = claims.ablated(ds, 1, 1), claims.ablated(ds, 0, 0)
    picked = ds["attention_sigma_min"].sel(attention_residual=1, ffn_residual=1, step=0).isel(optimizer=0, layer=0)
    other = ds["attention_sigma_min"].sel(attention_residual=0, ffn_residual=0, step=0).isel(optimizer=0, layer=0)
    part = next(c for c in claims.CLAIMS if c.id == "R4").parts[0]
    np.testing.assert_allclose(part.measure(ds), picked / other)
    assert both["train_loss"].dims == none["train_loss"].dims == ("optimizer", "seed", "step")
    assert str(claims.setting_of(ds)) == "custom"  # the tiny sizes
    with pytest.raises(js.CannotDecide, match="residuals"):
        claims.ablated(ds, 2, 0)
    with pytest.raises(js.CannotDecide, match="64-bit"):
        claims._margin(1e-3)(js.open_results(results / "residual" / "bound"))


def test_settings_are_named_by_what_is_varied():
    def setting(problem=None, **coords):
        import json

        import xarray as xr

        definition = {
            "problem": dataclasses.asdict(problem or ResidualProblem()), "hyper": dataclasses.asdict(ResidualHyper())
        }  # fmt: skip
        ds = xr.Dataset(coords={k: (k, v) for k, v in coords.items()})
        return str(claims.setting_of(ds.assign_attrs(manifest=json.dumps({"definition": definition}))))

    assert setting(attention_residual=[1.0, 0.0]) == "depth 1"
    assert setting(ResidualProblem(depth=4)) == "depth 4"
    assert setting(depth=[1, 2, 4]) == "depths 1, 2, 4"
    assert setting(temperature=[0.1, 1.0]) == "depth 1, temperatures"
    assert setting(n=[8, 16]) == "depth 1, n/d"
    assert setting(ResidualProblem(d=20)) == setting(temperature=[2.0]) == "custom"

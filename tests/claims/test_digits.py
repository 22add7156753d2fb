"""Claims about noisy digits: runs for which each holds and fails, how rates are chosen; the experiment, tiny."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign.claims import digits as claims
from jaxsign.claims.catalogue import known_system

ROOT = Path(__file__).parents[2]


def load(folder, name):
    spec = importlib.util.spec_from_file_location(f"digits_{folder}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCALES = np.array([0.25, 0.5, 0.7, 1.0, 2.0])


STEPS = np.array([0, 10, 20])


def runs(loss=None, trainable=None, rates=2, **changed):
    """SignGD, Adam and GD at two rates: the test loss falls with the scale, rises from .5 to .7, and GD's is lowest."""
    rng = np.random.default_rng(0)
    families = np.repeat(["sign_gd", "adam", "gd"], rates)
    curve = np.array([1.0, 0.5, 0.6, 0.3, 0.1]) if loss is None else np.asarray(loss)
    shift = np.repeat([0.2, 0.1, 0.0], rates) + np.tile(np.arange(rates) * 0.01, 3)
    noise = 0.01 * rng.standard_normal((SCALES.size, families.size, 12))
    test = curve[:, None, None] + shift[None, :, None] + noise
    train = np.broadcast_to(np.array([0.7, 0.1, 0.01]), (*test.shape, 3))
    values = {"train_loss": train} | {
        name: np.repeat(factor * test[..., None], 3, axis=-1)
        for name, factor in dict.fromkeys(claims._VARIABLES, 1.0).items()
    }
    values["test_error"] = values["test_loss"] / 4
    values |= {name: np.broadcast_to(value, test.shape)[..., None] * np.ones(3) for name, value in changed.items()}
    dims = ("scale", "optimizer", "seed", "step")
    definition = {
        "problem": {"model": "vit", "classes": [3, 7]}, "hyper": {}, "trainable": trainable,
        "system": {"name": "jaxsign.systems.digits.task.noisy_digits"},
    }  # fmt: skip
    coords = {
        "scale": SCALES, "optimizer": np.arange(families.size), "family": ("optimizer", families),
        "seed": np.arange(12), "step": STEPS,
        "learning_rate": ("optimizer", np.tile(10.0 ** -np.arange(1, rates + 1), 3)),
    }  # fmt: skip
    ds = xr.Dataset(
        {name: (dims, v) for name, v in values.items()}, coords, {"manifest": json.dumps({"definition": definition})}
    )
    return with_levels(ds.assign(status=(dims[:3], np.zeros(test.shape, np.int8))), (0.1,))


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_settings_say_model_classes_and_control():
    assert known_system(runs()) == "noisy_digits"
    assert str(claims.setting_of(runs())) == "ViT 3 vs 7 over scale"
    assert str(claims.setting_of(runs(trainable=["w_v"]).isel(scale=0))) == "ViT 3 vs 7, attention frozen"


def test_claims_hold_and_fail():
    for claim in ("F2d-1", "F2d-2", "F2d-3", "F2d-4"):
        assert word(runs(), claim) == "HOLDS"
    assert word(runs(loss=[0.1, 0.5, 0.6, 0.3, 0.9]), "F2d-1") == "FAILS"
    sign = (np.arange(6) >= 4)[None, :, None]  # GD's alone
    assert word(runs(test_loss=np.where(sign, 2.0, 1.0)), "F2d-2") == "FAILS"
    assert word(runs(test_error=np.where(sign, 0.2, 0.1)), "F2d-3") == "FAILS"
    assert word(runs(loss=[1.0, 0.5, 0.4, 0.3, 0.1]), "F2d-4") == "FAILS"


def test_the_rise_is_seen_by_other_seeds():
    rng = np.random.default_rng(1)
    scales = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    flat = xr.DataArray(rng.standard_normal((6, 400)), dims=("scale", "seed"), coords={"scale": scales})
    assert float(flat.diff("scale").max("scale").mean()) > 1  # what a seed sees in its own noise
    assert abs(float(claims.rise(flat).mean())) < 0.2
    bump = flat + 3 * xr.DataArray([0, 0, 1, 1, 0, 0], dims="scale")
    assert float(claims.rise(bump).mean()) == pytest.approx(3, abs=0.2)
    assert float(claims.rise(bump, -bump).mean()) == pytest.approx(-3, abs=0.2)
    with pytest.raises(js.CannotDecide, match="two scales or more"):
        claims.rise(flat.isel(scale=[0]))


def test_rates_are_chosen_on_validation_images_alone():
    ds = runs()
    best = claims.tuned(ds, "sign_gd", "end")
    assert best["learning_rate"].values.tolist() == [0.1] * 5
    worse = ds.assign(val_loss=ds["val_loss"] + 0.5 * ((ds["optimizer"] == 0) & (ds["scale"] == 0.5)))
    assert claims.tuned(worse, "sign_gd", "end")["learning_rate"].values.tolist() == [0.1, 0.01, 0.1, 0.1, 0.1]
    assert float(claims.tuned(worse, "sign_gd", "end", each=False)["learning_rate"]) == 0.01
    same = ds.assign(test_loss=ds["test_loss"] + 9 * (ds["optimizer"] == 0))
    assert claims.tuned(same, "sign_gd", "end")["learning_rate"].values.tolist() == [0.1] * 5
    slow = ds.assign(train_loss=ds["train_loss"] + 1.0 * ((ds["optimizer"] == 0) & (ds["seed"] == 3)))
    slow = with_levels(slow, (0.1,))
    assert (
        claims.tuned(slow, "sign_gd", "loss")["learning_rate"].values.tolist() == [0.01] * 5
    )  # one seed never gets there
    never = with_levels(ds.assign(train_loss=ds["train_loss"] + 1.0), (0.1,))
    assert claims.tuned(never, "sign_gd", "loss")["test_loss"].isnull().all()
    early = ds.assign(val_loss=ds["val_loss"] + 1.0 * (ds["step"] != 10), test_loss=ds["test_loss"] + ds["step"])
    found, usual = (claims.tuned(one, "gd", "best")["test_loss"] for one in (early, ds))
    np.testing.assert_allclose(found, usual + 10)
    with pytest.raises(js.CannotDecide, match="needs runs of momentum"):
        claims.tuned(ds, "momentum", "end")
    with pytest.raises(js.CannotDecide, match="needs runs of gd"):
        claims.tuned(ds.assign(status=ds["status"].where(ds["family"] != "gd", -1)), "gd", "end")
    with pytest.raises(js.CannotDecide, match="needs a sweep over the image scale"):
        claims.tuned(ds.isel(scale=0), "gd", "end")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One entry of the tiny mode, laid out as two: the figure wants a second one."""
    root = tmp_path_factory.mktemp("results") / "digits"
    assert load("sweeps", "digits").main(["--tiny", "--out", str(root), "--only", "two_layer_3_7"]) == 0
    shutil.copytree(root / "two_layer_3_7", root / "two_layer_0_1")
    return root.parent


def test_the_tiny_sweep_runs_and_its_figures_are_drawn(results, tmp_path, monkeypatch):
    ds = js.open_results(results / "digits" / "two_layer_3_7")
    assert bool((ds["status"] == 0).all())
    for name in ("train_loss", "test_error", "calibrated_loss", "temperature", "image_norm", "class_mean_error"):
        assert np.isfinite(ds[name]).all()
    np.testing.assert_allclose(2 * ds["image_norm"].sel(scale=0.5), ds["image_norm"].sel(scale=1.0), rtol=1e-5)
    assert not np.allclose(ds["train_loss"].isel(seed=0), ds["train_loss"].isel(seed=1))
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(results), "--out", str(tmp_path)])
    load("figures", "digits").main()
    names = ("digits", *(f"digits_{of}" for of in ("end", "best", "rates", "0_1_loss", "0_1_end")))
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "svg", "csv")
    }
    assert sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*.csv")) > 90


def test_bad_input_is_one_line(tmp_path, capsys):
    main = load("sweeps", "digits").main
    assert main(["--tiny", "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train-images-idx3-ubyte is missing, plain and as train-images-idx3-ubyte.gz" in error
    with pytest.raises(ValueError, match=r"scale must be a finite number in \(0, inf\), got scale=0.0"):
        js.Sweep(
            system=js.noisy_digits, problem=js.DigitsProblem(), hyper=js.DigitsHyper(), steps=1,
            optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=0.1)}, axes={"scale": [0.0]},
        )  # fmt: skip


@pytest.mark.slow
def test_all_entries_run_tiny_and_controls_share_their_seeds(tmp_path):
    assert load("sweeps", "digits").main(["--tiny", "--out", str(tmp_path)]) == 0
    runs = {path.name: js.open_results(path).load() for path in tmp_path.iterdir()}
    assert all(bool((ds["status"] == 0).all()) for ds in runs.values())
    assert {str(claims.setting_of(ds)) for ds in runs.values()} == {
        "two-layer 3 vs 7 over scale", "two-layer 3 vs 7, attention frozen over scale", "ViT 3 vs 7 over scale",
        "two-layer ten classes over scale", "ViT ten classes over scale",
    }  # fmt: skip
    free, frozen = (runs[f"two_layer_3_7{control}"]["test_loss"] for control in ("", "_frozen"))
    start, end = {"step": 0, "optimizer": 0}, {"step": -1, "optimizer": 1}
    np.testing.assert_array_equal(free.isel(start), frozen.isel(start))
    assert (free.isel(end) != frozen.isel(end)).any()

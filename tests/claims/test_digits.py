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
from scipy.stats import norm

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
FAMILIES = np.repeat(["sign_gd", "adam", "gd"], 2)


def dataset(samples, scales, test_loss, test_error, trainable=None, model="vit", law=None):
    """Runs of SignGD, Adam and GD at two rates; both numbers broadcast to (n_train, scale, optimizer)."""
    rng = np.random.default_rng(0)
    shape = (len(samples), len(scales), FAMILIES.size, 12)
    noise = 0.01 * rng.standard_normal(shape)
    loss = np.asarray(test_loss, float)[..., None] + noise
    error = np.asarray(test_error, float)[..., None] + noise / 4
    train = np.broadcast_to(np.array([0.7, 0.1, 0.01]), (*shape, 3))
    values = {"val_loss": loss, "val_error": error, "test_loss": loss, "test_error": error, "calibrated_loss": loss}
    values = {name: np.repeat(value[..., None], 3, axis=-1) for name, value in values.items()} | {"train_loss": train}
    dims = ("n_train", "scale", "optimizer", "seed", "step")
    definition = {
        "problem": {"model": model, "classes": [3, 7]}, "hyper": {}, "trainable": trainable,
        "system": {"name": "jaxsign.systems.digits.task.noisy_digits"},
    }  # fmt: skip
    coords = {
        "n_train": list(samples), "scale": list(scales), "optimizer": np.arange(FAMILIES.size),
        "family": ("optimizer", FAMILIES), "seed": np.arange(12), "step": STEPS,
        "learning_rate": ("optimizer", np.tile([0.1, 0.01], 3)),
    }  # fmt: skip
    ds = xr.Dataset(
        {name: (dims, v) for name, v in values.items()}, coords, {"manifest": json.dumps({"definition": definition})}
    )
    for name, sign in (("sign_step_error", 1), ("gd_step_error", -1)):
        half = np.broadcast_to(0.0 if law is None else sign * np.asarray(law)[..., None, None] / 2, shape)
        ds[name] = (dims[:4], 0.2 + half)
    return with_levels(ds.assign(status=(dims[:4], np.zeros(shape, np.int8))), (0.1,))


def over_scales(loss=(1.0, 0.5, 0.6, 0.3, 0.1), gap=(0.2, 0.2, 0.1, 0.1, 0.0, 0.0), **more):
    """50 images: the test loss falls with the scale but rises from .5 to .7, and GD's is the lowest."""
    test = np.asarray(loss)[:, None] + np.asarray(gap)[None] + np.tile([0, 0.01], 3)
    return dataset([50], SCALES, test[None], test[None] / 4, **more)


CELLS = np.array([20, 50, 100, 400, 1000]), np.array([0.25, 0.5, 1.0])
#: What the first-step law says: few images and a low scale favour SignGD.
LAW = 0.05 * np.sign(CELLS[0][:, None] * CELLS[1][None] ** 2 - 30.0)


def over_samples(gap=LAW, **more):
    """Two layers over n and the scale: `gap` is SignGD's and Adam's error minus GD's."""
    of = np.array([1, 1, 1, 1, 0, 0])
    error = 0.2 + np.asarray(gap)[..., None] * of + np.tile([0, 0.01], 3)
    return dataset(*CELLS, error, error, model="two_layer", law=LAW, **more)


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


def test_settings_say_model_classes_control_and_axes():
    assert known_system(over_scales()) == "noisy_digits"
    assert str(claims.setting_of(over_scales())) == "ViT 3 vs 7 over scale"
    assert str(claims.setting_of(over_samples())) == "two-layer 3 vs 7 over n_train, scale"
    assert str(claims.setting_of(over_scales(trainable=["w_v"]).isel(scale=[0]))) == "ViT 3 vs 7, attention frozen"


def test_claims_over_scales_hold_and_fail():
    for claim in ("F2d-1", "F2d-2", "F2d-3", "F2d-4"):
        assert word(over_scales(), claim) == "HOLDS"
    assert word(over_scales(loss=[0.1, 0.5, 0.6, 0.3, 0.9]), "F2d-1") == "FAILS"
    for claim in ("F2d-2", "F2d-3"):
        assert word(over_scales(gap=[0.2, 0.2, 0.0, 0.0, 0.1, 0.1]), claim) == "FAILS"  # Adam's is the lowest
    assert word(over_scales(loss=[1.0, 0.5, 0.4, 0.3, 0.1]), "F2d-4") == "FAILS"


def test_claims_over_images_hold_and_fail():
    for claim in ("F2d-5", "F2d-6", "F2d-7", "F2d-8", "F2d-9", "F2d-10"):
        assert word(over_samples(), claim) == "HOLDS"
        assert word(over_samples(gap=-LAW), claim) == "FAILS"
    assert word(over_samples(trainable=["w_v"]), "F2d-7") == "HOLDS"
    one = np.where(CELLS[0][:, None] == 400, -LAW, LAW)  # of the cells that decide, three in eleven are off
    assert word(over_samples(gap=one), "F2d-10") == "FAILS"
    late = dataset([100, 200], [0.5], 0.2 + 0.1 * (FAMILIES == "sign_gd"), 0.2 + 0.1 * (FAMILIES == "sign_gd"))
    assert word(late, "F2d-11") == "HOLDS"
    early = dataset([100, 200], [0.5], 0.3 - 0.1 * (FAMILIES == "sign_gd"), 0.3 - 0.1 * (FAMILIES == "sign_gd"))
    assert word(early, "F2d-11") == "FAILS"


def test_claims_about_the_limits_of_the_law_hold_and_fail():
    def over(samples, scales, gap, place="border"):
        error = 0.3 + np.asarray(gap)[..., None] * (FAMILIES == "sign_gd")
        ds = dataset(samples, scales, error, error, model="two_layer")
        manifest = json.loads(ds.attrs["manifest"])
        manifest["definition"]["problem"]["noise_on"] = place
        return ds.assign_attrs(manifest=json.dumps(manifest))

    many = [400, 700, 1000]
    assert word(over(many, [0.15], [[-0.05], [0.0], [0.05]]), "F2d-12") == "HOLDS"
    assert word(over(many, [0.15], [[-0.05], [0.0], [-0.05]]), "F2d-12") == "FAILS"
    assert word(over(many, [0.15], [[0.05], [0.0], [0.05]]), "F2d-12") == "FAILS"
    more = np.full((3, 2), 0.04)
    ds = over([20, 100, 400], [0.5, 1.0], more, "image")
    assert str(claims.setting_of(ds)) == "two-layer 3 vs 7, noise on every pixel over n_train, scale"
    assert word(ds, "F2d-13") == "HOLDS"
    assert word(over([20, 100, 400], [0.5, 1.0], more * [[-1], [1], [1]], "image"), "F2d-13") == "FAILS"


def over_splits(error):
    """Two layers, with noise 0 and 1 in training and in test images: `error(n, noise, test noise)` is SignGD's gap."""

    def at(noise, test_noise):
        of = 0.2 + np.array([[[error(n, noise, test_noise)] for n in (20, 400)]][0]) * (FAMILIES == "sign_gd")
        return dataset([20, 400], [0.5], of[:, None], of[:, None], model="two_layer")

    rows = [xr.concat([at(noise, other) for other in (0.0, 1.0)], "test_noise") for noise in (0.0, 1.0)]
    ds = xr.concat(rows, "noise").assign_coords(noise=[0.0, 1.0], test_noise=[0.0, 1.0])
    return ds.transpose("n_train", "scale", "noise", "test_noise", "optimizer", "seed", ...)


def test_claims_about_noise_in_one_split_hold_and_fail():
    ds = over_splits(lambda n, noise, test_noise: 0.05 * test_noise - 0.1 * noise * test_noise * (n == 20))
    assert str(claims.setting_of(ds)) == "two-layer 3 vs 7 over n_train, noise, test_noise"
    other = over_splits(lambda n, noise, test_noise: 0.05 * noise - 0.05 * test_noise + 0.1 * noise * test_noise)
    for claim in ("FS1", "FS2", "FS3"):
        assert word(ds, claim) == "HOLDS"
        assert word(other, claim) == "FAILS"
    with pytest.raises(js.CannotDecide, match="needs test_noise=1"):
        claims.split_gap(ds.isel(test_noise=[0]), "sign_gd", 0.0, 1.0)


def test_cells_that_had_been_looked_at_do_not_decide():
    seen = ~claims.unseen(over_samples())
    assert int(seen.sum()) == 4
    wrong = np.where(seen.values, -LAW, LAW)
    assert float(claims._as_the_law(over_samples(gap=wrong)).mean()) == pytest.approx(1.0, abs=0.02)
    with pytest.raises(js.CannotDecide, match="two unseen cells or more"):
        claims._as_the_law(over_samples().isel(n_train=[1]))


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


def test_rates_are_chosen_on_validation_images_and_runs_that_have_learned():
    ds = over_scales()
    first, scales = ds["optimizer"] == 0, {"n_train": 0}
    best = claims.tuned(ds, "sign_gd", "end").isel(scales)
    assert best["learning_rate"].values.tolist() == [0.1] * 5
    assert bool(best["edge"].all())  # of two rates each is at an edge
    worse = ds.assign(val_error=ds["val_error"] + 0.5 * (first & (ds["scale"] == 0.5)))
    chosen = claims.tuned(worse, "sign_gd", "end").isel(scales)["learning_rate"]
    assert chosen.values.tolist() == [0.1, 0.01, 0.1, 0.1, 0.1]
    same = ds.assign(test_error=ds["test_error"] + 9 * first, val_loss=ds["val_loss"] + 9 * first)
    assert claims.tuned(same, "sign_gd", "end").isel(scales)["learning_rate"].values.tolist() == [0.1] * 5
    for point in claims.POINTS:  # one seed has not learned: its rate does not count, good as its validation error is
        slow = ds.assign(
            train_loss=ds["train_loss"] + 1.0 * (first & (ds["seed"] == 3)), val_error=ds["val_error"] - 0.1 * first
        )
        chosen = claims.tuned(with_levels(slow, (0.1,)), "sign_gd", point).isel(scales)["learning_rate"]
        assert chosen.values.tolist() == [0.01] * 5
        never = with_levels(ds.assign(train_loss=ds["train_loss"] + 1.0), (0.1,))
        assert claims.tuned(never, "sign_gd", point)["test_loss"].isnull().all()
    with pytest.raises(js.CannotDecide, match="needs runs of momentum"):
        claims.tuned(ds, "momentum", "end")
    with pytest.raises(js.CannotDecide, match="needs runs of gd"):
        claims.tuned(ds.assign(status=ds["status"].where(ds["family"] != "gd", -1)), "gd", "end")
    with pytest.raises(js.CannotDecide, match="needs the axes n_train and scale"):
        claims.tuned(ds.isel(scale=0), "gd", "end")
    with pytest.raises(ValueError, match="best"):
        claims.tuned(ds, "gd", "best")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One entry of the tiny mode over images, and the same over scales."""
    root = tmp_path_factory.mktemp("results") / "digits"
    assert load("sweeps", "digits").main(["--tiny", "--out", str(root), "--only", "two_layer"]) == 0
    shutil.copytree(root / "two_layer", root / "two_layer_scales")
    return root.parent


def test_the_tiny_sweep_runs_and_its_figures_are_drawn(results, tmp_path, monkeypatch):
    ds = js.open_results(results / "digits" / "two_layer")
    assert bool((ds["status"] == 0).all())
    constants = ("image_norm", "class_mean_error", "sign_step_error", "gd_step_error")
    for name in ("train_loss", "test_error", "val_error", "calibrated_loss", "temperature", *constants):
        assert np.isfinite(ds[name]).all()
    np.testing.assert_allclose(2 * ds["image_norm"].sel(scale=0.5), ds["image_norm"].sel(scale=1.0), rtol=1e-5)
    # A scale s multiplies the margin of one step of SignGD by s, and that of GD by s^2.
    for name, power in (("sign_step_error", 1), ("gd_step_error", 2)):
        half, whole = (norm.ppf(ds[name].sel(scale=scale).values) for scale in (0.5, 1.0))
        np.testing.assert_allclose(2**power * half, whole, rtol=1e-3)
    assert not np.allclose(ds["train_loss"].isel(seed=0), ds["train_loss"].isel(seed=1))
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(results), "--out", str(tmp_path)])
    load("figures", "digits").main()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{suffix}" for name in ("digits", "digits_variants") for suffix in ("png", "pdf", "svg", "csv")
    }


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
    found = {str(claims.setting_of(ds)) for ds in runs.values()}
    assert found == {*claims.OVER_SCALES, *claims.OVER_SAMPLES, *claims.VIT_OVER_SAMPLES}
    free, frozen = (
        runs[name]["test_loss"].isel(optimizer=runs[name]["family"] == "gd")
        for name in ("two_layer", "two_layer_frozen")
    )
    start, end = {"step": 0, "optimizer": 0}, {"step": -1, "optimizer": 1}
    np.testing.assert_array_equal(free.isel(start), frozen.isel(start))
    assert (free.isel(end) != frozen.isel(end)).any()

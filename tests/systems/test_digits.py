"""Noisy digits: models against NumPy by hand, the temperature against scipy, claims that hold and fail, tiny sweep."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign.claims import digits as claims
from jaxsign.claims.catalogue import known_system
from jaxsign.systems.digits import calibration, class_means, patch_attention, vision
from jaxsign.systems.digits.data import Held, Patches

ROOT = Path(__file__).parents[2]
SMALL = {"n_train": 6, "n_val": 6, "n_test": 6, "patch": 14, "width": 4, "heads": 2, "hidden": 5}


def load(folder, name):
    spec = importlib.util.spec_from_file_location(f"digits_{folder}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def patches(problem, seed=0, count=3):
    return np.random.default_rng(seed).standard_normal((count, problem.tokens, problem.patch**2))


def two_layer_by_hand(w_q, w_k, w_v, x, heads):
    """F_j of one example, query by query and row by row."""
    rows = len(w_q) // heads
    out = np.zeros(len(w_v))
    for head in range(heads):
        own = slice(head * rows, (head + 1) * rows)
        for query in x:
            weight = softmax(np.array([np.dot(w_k[own] @ key, w_q[own] @ query) for key in x]))
            seen = sum(a * key for a, key in zip(weight, x))
            for j, values in enumerate(w_v):
                out[j] += np.mean([row @ seen for row in values])
    return out


def vit_by_hand(p, x, heads):
    """Logits of one example in float64."""

    def norm(u, name):
        centred = u - u.mean(-1, keepdims=True)
        return p[name]["scale"] * centred / np.sqrt(u.var(-1, keepdims=True) + 1e-6) + p[name]["bias"]

    def dense(u, name):
        return u @ p[name]["kernel"] + p[name].get("bias", 0.0)

    u = dense(x, "embed") + p["position"]
    q, k, v = (dense(norm(u, "norm_1"), name) for name in ("query", "key", "value"))
    size = u.shape[1] // heads
    mixed = np.zeros_like(u)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        mixed[:, own] = softmax(q[:, own] @ k[:, own].T / np.sqrt(size)) @ v[:, own]
    u = u + dense(mixed, "out")
    h = dense(norm(u, "norm_2"), "hidden")
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    u = u + dense(gelu, "shrink")
    return dense(norm(u, "norm_3").mean(0), "head")


@pytest.mark.x64
@pytest.mark.parametrize("classes", [(3, 7), (0, 4, 9)])
def test_two_layer_logits_are_those_by_hand_and_of_the_papers_model(eps, classes):
    problem = js.DigitsProblem(classes=classes, model="two_layer", **SMALL)
    params = patch_attention.init(jax.random.key(0), problem, js.DigitsHyper(sigma_0=0.3))
    x = patches(problem)
    given = jnp.asarray(x, jnp.zeros(()).dtype)
    found = np.asarray(jax.jit(patch_attention.logits, static_argnums=2)(params, given, 2))
    weights = [np.asarray(w, float) for w in params]
    count, d = x.shape[1:]
    weights = [w.reshape(*w.shape[:-2], count * d) for w in weights]
    placed = np.zeros((len(x), count, count, d))  # every patch in its place, the other pixels 0
    placed[:, np.arange(count), np.arange(count)] = x
    placed = placed.reshape(len(x), count, count * d)
    wanted = np.stack([two_layer_by_hand(*weights, one, 2) for one in placed])
    np.testing.assert_allclose(found, wanted, rtol=1e4 * eps, atol=1e3 * eps)
    if len(classes) == 2:
        dtype = given.dtype
        paper = js.Params(*(jnp.asarray(w, dtype) for w in weights), heads=2)
        given = jnp.asarray(placed, dtype)
        np.testing.assert_allclose(found[:, 0] - found[:, 1], [js.apply(paper, one) for one in given], rtol=1e5 * eps)


@pytest.mark.x64
def test_vit_logits_are_those_by_hand(eps):
    problem = js.DigitsProblem(classes=(3, 7, 8), model="vit", **SMALL)
    shapes = jax.eval_shape(lambda key: vision.init(key, problem, js.DigitsHyper()), jax.random.key(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.zeros(()).dtype}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    x = patches(problem)
    found = jax.jit(lambda p, x: vision.logits(p, x, problem))(params, jnp.asarray(x, jnp.zeros(()).dtype))
    weights = jax.tree.map(lambda w: np.asarray(w, float), params)
    wanted = np.stack([vit_by_hand(weights, one, 2) for one in x])
    np.testing.assert_allclose(found, wanted, rtol=1e5 * eps, atol=1e4 * eps)


def test_queries_and_keys_alone_have_the_size_sigma_0():
    problem = js.DigitsProblem(width=64, heads=2)
    init = jax.jit(lambda s: vision.init(jax.random.key(0), problem, js.DigitsHyper(sigma_0=s)))
    small, large = init(0.01), init(0.1)
    small, large = (jax.tree.map(np.asarray, params) for params in (small, large))
    for name in small:
        factor = 10 if name in ("query", "key") else 1
        jax.tree.map(lambda a, b, f=factor: np.testing.assert_allclose(f * a, b, rtol=1e-5), small[name], large[name])
    assert float(np.std(small["query"]["kernel"])) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("kind", ["good", "separated", "useless", "shrunk"])
def test_the_temperature_is_the_best_one_by_scipy(classes, kind):
    from scipy.optimize import minimize_scalar

    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, 60)
    z = rng.standard_normal((60, classes)) * 3
    if kind in ("good", "shrunk"):
        z[np.arange(60), y] += 3
    if kind == "separated":
        z[np.arange(60), y] = z.max(1) + 1
    if kind == "shrunk":
        z *= 1e-3
    wanted = (60 * np.eye(classes)[y] + 1) / (60 + classes)

    def loss(log_b):
        scores = np.exp(log_b) * z
        top = scores.max(1, keepdims=True)
        return -np.mean(np.sum(wanted * (scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True))), 1))

    best = minimize_scalar(loss, bounds=(-12, 12), method="bounded", options={"xatol": 1e-8})
    found = float(jax.jit(calibration.temperature)(jnp.asarray(z, jnp.float32), jnp.asarray(y)))
    assert loss(-np.log(found)) == pytest.approx(best.fun, abs=2e-5)
    if kind != "useless":
        assert -np.log(found) == pytest.approx(best.x, abs=2e-3)


def test_losses_and_margins_are_those_by_hand():
    z = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 3.0], [1.0, 0.0, -4.0]])
    y = np.array([0, 2, 1])
    loss = np.mean([-np.log(softmax(row)[label]) for row, label in zip(z, y)])
    given = jnp.asarray(z, jnp.float32), jnp.asarray(y)
    assert float(calibration.cross_entropy(*given)) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(calibration.margins(*given), [1.5, 0.0, -1.0])
    two = jnp.asarray([[0.3], [-2.0]], jnp.float32) * jnp.asarray([[1.0, -1.0]], jnp.float32)
    logistic = np.mean(np.logaddexp(0, -np.array([1, -1]) * np.asarray(two[:, 0] - two[:, 1], float)))
    assert float(calibration.cross_entropy(two, jnp.array([0, 1]))) == pytest.approx(logistic, rel=1e-6)


def test_observables_of_a_run_are_those_of_its_logits():
    problem = js.DigitsProblem(classes=(0, 1), model="two_layer", **SMALL)
    task = js.noisy_digits(problem)
    assert task is js.noisy_digits(js.DigitsProblem(classes=(0, 1), model="two_layer", **SMALL))
    rng = np.random.default_rng(0)
    params = patch_attention.init(jax.random.key(0), problem, js.DigitsHyper(sigma_0=0.5))
    parts = [
        Patches(jnp.asarray(patches(problem, seed, 6), jnp.float32), jnp.asarray(rng.integers(0, 2, 6)))
        for seed in range(3)
    ]
    seen = jax.jit(lambda *args: task.observe(*args, js.DigitsHyper()))(params, parts[0], Held(*parts[1:]))
    z = [np.asarray(patch_attention.logits(params, part.x, 2), float) for part in parts]
    y = [np.asarray(part.y) for part in parts]
    for name, logits, label in zip(("train", "val", "test"), z, y):
        margin = logits[np.arange(6), label] - logits[np.arange(6), 1 - label]
        assert float(seen[f"{name}_loss"]) == pytest.approx(np.mean(np.logaddexp(0, -margin)), rel=1e-5)
        assert float(seen[f"{name}_error"]) == pytest.approx(np.mean(margin <= 0))
    assert float(seen["test_margin"]) == pytest.approx(margin.mean(), rel=1e-5)
    assert float(seen["test_margin_std"]) == pytest.approx(margin.std(), rel=1e-5)
    scaled = margin / float(seen["temperature"])
    assert float(seen["calibrated_loss"]) == pytest.approx(np.mean(np.logaddexp(0, -scaled)), rel=1e-5)
    names = jax.eval_shape(lambda params: task.observe(params, parts[0], None, js.DigitsHyper()), params)
    assert set(names) == {"train_loss", "train_error"}


def test_margins_of_a_first_step_are_those_of_equal_images_in_noise():
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    n, mask = 40, np.zeros((28, 28), bool)
    mask[:12] = True
    mu = np.where(mask, 0, rng.standard_normal((28, 28))) * 0.15
    labels = np.repeat([0, 1], n // 2)
    y = 1 - 2 * labels
    images = y[:, None, None] * mu + rng.uniform(0, 1, (28, 28)) * ~mask
    errors = []
    for _ in range(30):
        noise = 2.0 * rng.standard_normal((n, 28, 28)) * mask
        total = np.tensordot(y, images + noise, 1)
        fresh = 2.0 * rng.standard_normal((200, 28, 28)) * mask
        errors.append([np.mean(np.tensordot(mu + fresh, w, 2) <= 0) for w in (np.sign(total), total)])
    given = (jnp.asarray(images, jnp.float32), jnp.asarray(labels), jnp.asarray(noise, jnp.float32))
    margins = class_means.one_step_margins(*given)
    np.testing.assert_allclose(np.mean(errors, 0), norm.cdf(-np.array(margins)), atol=0.02)
    assert (np.mean(errors, 0) > 0.02).all()
    double = class_means.one_step_margins(2 * given[0], *given[1:])
    np.testing.assert_allclose(double, np.array(margins) * [2, 4], rtol=1e-5)


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
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{suffix}" for name in ("digits", "digits_variants") for suffix in ("png", "pdf", "svg", "csv")
    }
    assert len((tmp_path / "digits.csv").read_text().splitlines()) > 50


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


def test_a_model_too_large_for_memory_is_refused_before_anything_is_computed():
    problem = js.DigitsProblem(model="two_layer", width=2 * 10**9)
    sweep = js.Sweep(
        system=js.noisy_digits, problem=problem, hyper=js.DigitsHyper(), steps=1, shared=js.load_digits(),
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=0.1)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"too large for the memory: one run of noisy_digits has .* bytes") as refusal:
        js.run_sweep(sweep)
    assert "\n" not in str(refusal.value)


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

"""Noisy digits: models against NumPy by hand, the temperature against scipy, observables of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems.digits import calibration, models
from jaxsign.systems.digits.data import Held, Patches

SMALL = {"n_train": 6, "n_val": 6, "n_test": 6, "patch": 14, "width": 4, "heads": 2, "hidden": 5}


def drawn(problem, sigma_0):
    """Two-layer weights, drawn by one program."""
    return jax.jit(lambda key: models.init_two_layer(key, problem, js.DigitsHyper(sigma_0=sigma_0)))(jax.random.key(0))


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
    params = drawn(problem, 0.3)
    x = patches(problem)
    given = jnp.asarray(x, jnp.zeros(()).dtype)
    found = np.asarray(jax.jit(models.two_layer_logits, static_argnums=2)(params, given, 2))
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
        theirs = jax.jit(jax.vmap(js.apply, (None, 0)))(paper, jnp.asarray(placed, dtype))
        np.testing.assert_allclose(found[:, 0] - found[:, 1], theirs, rtol=1e5 * eps)


@pytest.mark.x64
def test_vit_logits_are_those_by_hand(eps):
    problem = js.DigitsProblem(classes=(3, 7, 8), model="vit", **SMALL)
    shapes = jax.eval_shape(lambda key: models.init_vit(key, problem, js.DigitsHyper()), jax.random.key(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.zeros(()).dtype}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    x = patches(problem)
    found = jax.jit(lambda p, x: models.vit_logits(p, x, problem))(params, jnp.asarray(x, jnp.zeros(()).dtype))
    weights = jax.tree.map(lambda w: np.asarray(w, float), params)
    wanted = np.stack([vit_by_hand(weights, one, 2) for one in x])
    np.testing.assert_allclose(found, wanted, rtol=1e5 * eps, atol=1e4 * eps)


def test_queries_and_keys_alone_have_the_size_sigma_0():
    problem = js.DigitsProblem(width=64, heads=2)
    init = jax.jit(lambda s: models.init_vit(jax.random.key(0), problem, js.DigitsHyper(sigma_0=s)))
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
    cross_entropy = jax.jit(calibration.cross_entropy)
    assert float(cross_entropy(*given)) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(jax.jit(calibration.margins)(*given), [1.5, 0.0, -1.0])
    two = np.asarray([[0.3], [-2.0]], np.float32) * np.asarray([[1.0, -1.0]], np.float32)
    logistic = np.mean(np.logaddexp(0, -np.array([1, -1]) * (two[:, 0] - two[:, 1]).astype(float)))
    assert float(cross_entropy(jnp.asarray(two), jnp.asarray(np.array([0, 1])))) == pytest.approx(logistic, rel=1e-6)


def test_observables_of_a_run_are_those_of_its_logits():
    problem = js.DigitsProblem(classes=(0, 1), model="two_layer", **SMALL)
    task = js.noisy_digits(problem)
    assert task is js.noisy_digits(js.DigitsProblem(classes=(0, 1), model="two_layer", **SMALL))
    rng = np.random.default_rng(0)
    params = drawn(problem, 0.5)
    parts = [
        Patches(jnp.asarray(patches(problem, seed, 6), jnp.float32), jnp.asarray(rng.integers(0, 2, 6)))
        for seed in range(3)
    ]
    seen = jax.jit(lambda *args: task.observe(*args, js.DigitsHyper()))(params, parts[0], Held(*parts[1:]))
    logits_of = jax.jit(models.two_layer_logits, static_argnums=2)
    z = [np.asarray(logits_of(params, part.x, 2), float) for part in parts]
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
    one_step = jax.jit(models.one_step_margins)
    margins = one_step(*given)
    np.testing.assert_allclose(np.mean(errors, 0), norm.cdf(-np.array(margins)), atol=0.02)
    assert (np.mean(errors, 0) > 0.02).all()
    double = one_step(2 * np.asarray(given[0]), *given[1:])
    np.testing.assert_allclose(double, np.array(margins) * [2, 4], rtol=1e-5)


def test_a_model_too_large_for_memory_is_refused_before_anything_is_computed():
    problem = js.DigitsProblem(model="two_layer", width=2 * 10**9)
    sweep = js.Sweep(
        system=js.noisy_digits, problem=problem, hyper=js.DigitsHyper(), steps=1, shared=js.load_digits(),
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=0.1)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"too large for the memory: one run of noisy_digits has .* bytes") as refusal:
        js.run_sweep(sweep)
    assert "\n" not in str(refusal.value)

"""The two-layer transformer against float64 NumPy written from the formula: values, gradients, invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems import attention as kernels
from jaxsign.systems.two_layer import model as model
from jaxsign.systems.two_layer.features import to_features

HYPER = js.Hyper(sigma_p=2.0)
SHAPES = pytest.mark.parametrize(("heads", "context"), [(1, 2), (2, 3)])


@pytest.fixture(scope="module")
def system(problem, oracle):
    """(heads, context) -> (task, params, data, x, test) at random attention, with feature noise and flipped labels."""

    def build(heads, context, engine="dense"):
        sizes = dataclasses.replace(problem, heads=heads, context=context)
        params, data, test = oracle.draw(sizes, 7, sigma_0=0.2, mu=1.5, alpha=0.3, label_noise=0.3)
        return js.two_layer(sizes, engine=engine), params, data, jnp.asarray(oracle.inputs(data)), test

    return build


@pytest.mark.x64
@SHAPES
def test_logits_are_the_formula(system, oracle, eps, heads, context):
    _, params, data, xs, test = system(heads, context)
    one_by_one = jax.jit(jax.vmap(js.apply, (None, 0)))
    close = functools.partial(np.testing.assert_allclose, rtol=300 * eps, atol=50 * eps)
    expected = [oracle.logit(params, x) for x in xs]
    close(one_by_one(params, xs), expected)
    close(jax.jit(lambda p: model.logits(p.features(data), data.y_clean * data.mu, heads))(params), expected)
    dense = oracle.dense(test, data.basis.shape[1])
    expected = [oracle.logit(params, x) for x in dense]
    close(one_by_one(params, jnp.asarray(dense, xs.dtype)), expected)
    close(jax.jit(lambda p: model.logits(p.fresh_features(test), test.y * test.mu, heads))(params), expected)


def weights_of(kind, query, key):
    """Attention of one query on all keys, from direct sums."""
    distance, product = ((query[None] - key) ** 2).sum(1), (query[None] * key).sum(1)
    score = {
        "softmax": np.exp(product), "gaussian": np.exp(-distance / 2), "linear": product, "uniform": np.ones(len(key))
    }[kind]  # fmt: skip
    return score / score.sum() if kind in ("softmax", "uniform") else score


@pytest.mark.x64
@pytest.mark.parametrize("kind", ["softmax", "gaussian", "linear", "uniform"])
@pytest.mark.parametrize(("engine", "heads", "context"), [("dense", 2, 3), ("support", 1, 2), ("feature_space", 2, 2)])
def test_other_kernels_and_a_residual_path_are_direct_sums(problem, oracle, eps, kind, engine, heads, context):
    sizes = dataclasses.replace(
        problem, heads=heads, context=context, kernel=kind, n=4, supports="disjoint", overlap="none"
    )
    hyper = js.Hyper(sigma_p=2.0, mu=1.5, sigma_0=0.2, alpha=0.3, residual=0.7)
    params, data, test = oracle.draw(sizes, 5, sigma_p=2.0, mu=1.5, sigma_0=0.2, alpha=0.3)
    xs, full = oracle.inputs(data), params
    if engine == "feature_space":
        data, _, params = jax.jit(to_features, static_argnums=4)(data, test, params, jnp.zeros(()), True)
    elif engine == "support":
        params = jax.jit(js.two_layer(sizes, engine).reduction.compact)(params, data)
    task = js.two_layer(sizes, engine)
    loss, seen = jax.jit(lambda p: (task.loss(p, data, hyper), task.observe(p, data, None, hyper)))(params)
    w_q, w_k, v = (np.asarray(a, float) for a in (full.w_q, full.w_k, full.value()))
    m_k, expected, on_signal = len(w_q) // heads, [], []
    for i, x in enumerate(np.asarray(xs, float)):
        total, slot, mine = 0.7 * (x @ v).sum(), int(data.signal_slot[i]), np.zeros((heads, context))
        for head in range(heads):
            own = slice(head * m_k, (head + 1) * m_k)
            for query, patch in enumerate(x):
                s = weights_of(kind, w_q[own] @ patch, x @ w_k[own].T)
                total, mine[head, query] = total + s @ (x @ v), s[slot]
        expected.append(total)
        on_signal.append(np.delete(mine, slot, axis=1))
    margin = np.asarray(data.y, float) * expected
    np.testing.assert_allclose(loss, np.mean(np.logaddexp(0, -margin)), rtol=300 * eps)
    np.testing.assert_allclose(seen["train_loss"], loss, rtol=20 * eps)
    s21 = np.stack(on_signal, 1)
    np.testing.assert_allclose(seen["s21"].reshape(s21.shape), s21, rtol=2000 * eps, atol=100 * eps)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(seen["log_s21"].reshape(s21.shape), np.log(s21), rtol=5000 * eps, atol=1000 * eps)
    one_by_one = jax.jit(jax.vmap(lambda x: js.apply(full, x, kernel=kind, residual=0.7)))
    np.testing.assert_allclose(one_by_one(jnp.asarray(xs)), expected, rtol=300 * eps, atol=50 * eps)


@pytest.mark.x64
@SHAPES
def test_gradient_is_the_hand_derived_one(system, oracle, eps, heads, context):
    task, params, data, xs, _ = system(heads, context)
    loss, gradient = jax.jit(jax.value_and_grad(task.loss))(params, data, HYPER)
    np.testing.assert_allclose(loss, oracle.loss(params, xs, data.y), rtol=100 * eps)
    expected = oracle.gradient(params, xs, data.y)
    for got, hand in zip((gradient.w_q, gradient.w_k, gradient.w_v), expected):
        np.testing.assert_allclose(got, hand, rtol=1000 * eps, atol=50 * eps * np.abs(hand).max())


@pytest.mark.x64
@SHAPES
def test_gradient_is_the_finite_difference(system, oracle, eps, heads, context):
    task, params, data, xs, _ = system(heads, context)
    rng = np.random.default_rng(1)
    tangent = jax.tree.map(lambda w: jnp.asarray(rng.standard_normal(w.shape), w.dtype), params)
    size = 1e-4
    forward, backward = (
        oracle.loss(
            jax.tree.map(lambda w, t, h=h: np.asarray(w, float) + h * np.asarray(t, float), params, tangent), xs, data.y
        )
        for h in (size, -size)
    )
    slope = jax.jit(lambda p, t: jax.jvp(lambda p: task.loss(p, data, HYPER), (p,), (t,))[1])(params, tangent)
    np.testing.assert_allclose(slope, (forward - backward) / (2 * size), rtol=max(1e-6, 500 * eps))


def inner(matrix):
    """The array of one compact matrix."""
    return getattr(matrix, "moved", matrix)


@pytest.mark.x64
@pytest.mark.parametrize(("engine", "heads", "context"), [("dense", 1, 2), ("support", 2, 3)])
def test_compact_weights_are_the_same_function_with_a_rows_gradient(system, eps, engine, heads, context):
    task, params, data, *_ = system(heads, context, engine)
    start = jax.jit(task.reduction.compact)(params, data)
    slopes, expand = jax.jit(jax.value_and_grad(task.loss, allow_int=True)), jax.jit(task.reduction.expand)
    columns = np.asarray(getattr(start, "active", np.arange(params.w_q.shape[1])))
    assert set(np.flatnonzero(np.abs(data.basis).sum(0))) <= set(columns)
    assert expand(start).w_v.shape == params.w_v.shape
    moves = jnp.asarray(np.random.default_rng(2).normal(size=inner(start.w_v).shape), params.w_v.dtype)
    moved_start = dataclasses.replace(start, w_v=start.w_v._replace(moved=moves) if engine == "support" else moves)
    for compact in (start, moved_start):
        full = expand(compact)
        moved = np.asarray(params.w_v).copy()
        moved[:, :, columns] += np.asarray(inner(compact.w_v))[:, None]
        np.testing.assert_array_equal(full.w_v, moved)
        (loss, slope), (expected, rows) = (slopes(p, data, HYPER) for p in (compact, full))
        np.testing.assert_allclose(loss, expected, rtol=20 * eps)
        for name in ("w_q", "w_k", "w_v"):
            mine, theirs = np.asarray(inner(getattr(slope, name))), np.asarray(getattr(rows, name))
            tolerance = {"rtol": 1000 * eps, "atol": 20 * eps * np.abs(theirs).max()}
            for row in theirs.transpose(1, 0, 2) if name == "w_v" else [theirs]:
                np.testing.assert_allclose(mine, row[:, columns], **tolerance)
                assert not np.delete(row, columns, axis=-1).any()
            if engine == "support":
                assert getattr(slope, name).kept == 0  # weight decay alone moves it
    for a, b in zip(jax.tree.leaves(expand(start)), jax.tree.leaves(params)):
        np.testing.assert_array_equal(a, b)


@SHAPES
def test_invariances(system, eps, heads, context):
    task, params, data, x, _ = system(heads, context)
    logit, loss = jax.jit(jax.vmap(js.apply, (None, 0))), jax.jit(task.loss)
    f = logit(params, x)
    # Turning every patch turns the logit, so flipping (y, X) together leaves the loss as it is.
    np.testing.assert_array_equal(logit(params, -x), -f)
    flipped = dataclasses.replace(
        data, y=-data.y, y_clean=-data.y_clean, basis=jnp.concatenate([data.basis[:1], -data.basis[1:]])
    )
    np.testing.assert_array_equal(loss(params, flipped, HYPER), loss(params, data, HYPER))
    # Slots do not matter, and neither does the order of the heads.
    np.testing.assert_allclose(logit(params, x[:, ::-1]), f, rtol=200 * eps, atol=20 * eps)
    swapped = dataclasses.replace(params, w_q=jnp.flip(params.w_q, 0), w_k=jnp.flip(params.w_k, 0))
    np.testing.assert_allclose(logit(swapped, x), f, rtol=200 * eps, atol=20 * eps)
    # SignGD does not see a positive factor on the loss.
    slope = jax.jit(jax.grad(lambda p, c: c * task.loss(p, data, HYPER)))
    plain, scaled = (slope(params, c) for c in (1.0, 4.0))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(scaled)):
        np.testing.assert_array_equal(np.sign(a), np.sign(b))


@pytest.mark.x64
@pytest.mark.parametrize("scores", [[0.0, -60.0], [60.0, 0.0], [0.0, -30.0, -45.0], [-30.0, 0.0, -30.0]], ids=str)
def test_softmax_derivative_keeps_its_relative_accuracy(scores, eps):
    z = np.array(scores)
    s = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    rest = np.array([sum(s[b] for b in range(len(s)) if b != a) for a in range(len(s))])  # 1 - s_a, not cancelled
    expected = np.where(np.eye(len(s), dtype=bool), np.diag(s * rest), -np.outer(s, s))
    point = jnp.asarray(scores)
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(jacobian(kernels.softmax))(point), expected, rtol=30 * eps)


def test_softmax_is_softmax_to_second_order(eps):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    ours, theirs = jax.jit(lambda z: (kernels.softmax(z), jax.nn.softmax(z, axis=-1)))(z)
    np.testing.assert_array_equal(ours, theirs)

    def one(softmax):
        return lambda z: jnp.sum(jnp.sin(3 * softmax(z)))

    for derivative in (jax.grad, jax.hessian):
        ours, theirs = (jax.jit(derivative(one(f)))(z) for f in (kernels.softmax, jax.nn.softmax))
        np.testing.assert_allclose(ours, theirs, rtol=100 * eps, atol=10 * eps)
    tangent = jnp.cos(z)
    ours, theirs = (
        jax.jit(lambda z, t, f=f: jax.jvp(f, (z,), (t,))[1])(z, tangent) for f in (kernels.softmax, jax.nn.softmax)
    )
    np.testing.assert_allclose(ours, theirs, rtol=100 * eps, atol=10 * eps)


def test_init_draws_every_weight_from_one_normal():
    sizes = js.Problem(n=2, d=400, s=2, m_k=10, m_v=5, heads=2)
    params = jax.jit(lambda key: model.init(key, sizes, js.Hyper(sigma_p=1.0, sigma_0=0.25)))(jax.random.key(0))
    shapes = [(20, 400), (20, 400), (2, 5, 400)]
    assert [w.shape for w in (params.w_q, params.w_k, params.w_v)] == shapes
    weights = np.concatenate([np.ravel(w) for w in (params.w_q, params.w_k, params.w_v)])
    from scipy.stats import kstest

    assert kstest(weights / 0.25, "norm").pvalue > 1e-3
    assert len(np.unique(weights)) > 0.99 * weights.size
    np.testing.assert_allclose(
        params.value(), np.asarray(params.w_v[0]).mean(0) - np.asarray(params.w_v[1]).mean(0), rtol=1e-4, atol=1e-6
    )


def test_apply_takes_one_example(system):
    _, params, _, xs, _ = system(1, 2)
    with pytest.raises(ValueError, match=r"ONE example \(context, d\), got shape \(6, 2, 60\).*jax.vmap"):
        js.apply(params, xs)

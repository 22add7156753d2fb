"""Curvature of the two-layer system through its features, against the Hessian over all weights."""

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxsign as js

PROBLEM = js.Problem(n=3, d=14, s=3, m_k=2, m_v=3, n_test=4)
HYPER = js.Hyper(sigma_p=2.0, mu=1.5, sigma_0=0.3, alpha=0.2, residual=0.4)


def dense_hessian(task, params, data, hyper):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda w: task.loss(unravel(w), data, hyper)))(flat))


def ratio(values):
    return np.abs(values).max() / np.median(np.abs(values))


@pytest.mark.x64
@pytest.mark.parametrize(("heads", "context", "kernel"), [(1, 2, "softmax"), (2, 3, "gaussian")])
def test_curvature_is_that_of_all_weights(oracle, eps, heads, context, kernel):
    problem = js.Problem(
        n=3, d=14, s=3, m_k=2, m_v=3, n_test=4, heads=heads, context=context, kernel=kernel
    )  # fmt: skip
    task = js.two_layer_curvature(problem)
    params, data, test = oracle.draw(problem, 4, sigma_p=2.0, mu=1.5, sigma_0=0.3, alpha=0.2)
    seen = jax.jit(task.observe)(params, data, test, HYPER)
    full = dense_hessian(task, params, data, HYPER)
    used = np.concatenate([
        np.broadcast_to(np.any(np.asarray(data.basis) != 0, 0), leaf.shape).ravel() for leaf in jax.tree.leaves(params)
    ])  # fmt: skip
    tolerance = max(2e-3, 1e5 * eps) if eps > 1e-10 else 1e-9
    np.testing.assert_allclose(seen["robust_condition"], ratio(np.diag(full)[used]), rtol=tolerance)
    features = (problem.n * problem.patches + 1) * (2 * problem.rows + 1)
    spectrum = np.sort(np.abs(np.linalg.eigvalsh(full)))[::-1]
    rank = min(features, spectrum.size)
    if eps < 1e-10:  # the middle eigenvalue is small
        np.testing.assert_allclose(seen["robust_condition_eigen"], ratio(spectrum[:rank]), rtol=1e-6)
    rng = np.random.default_rng(0)
    move = jax.tree.map(lambda leaf: np.asarray(1e-3 * rng.standard_normal(leaf.shape), leaf.dtype), params)
    after = jax.tree.map(np.add, params, move)
    along = np.concatenate([
        np.ravel(a - np.asarray(b)) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params))
    ]).astype(float)  # fmt: skip
    step, gradient = jax.jit(lambda after, before: (
        task.observe_step(after, before, data, HYPER), ravel_pytree(jax.grad(task.loss)(before, data, HYPER))[0]
    ))(after, params)  # fmt: skip
    np.testing.assert_allclose(
        step["directional_smoothness"], along @ full @ along / (along @ along), rtol=1e4 * eps, atol=1e3 * eps
    )
    np.testing.assert_allclose(step["gradient_before"], np.linalg.norm(gradient), rtol=100 * eps)


def test_training_is_that_of_the_dense_system():
    keys = jax.random.key(1)
    names, kept = ["train_loss", "test_error", "query_noise"], {"steps": 12, "record": 3, "test_every": 6}
    for optimizer in (js.sign_gd(1e-2), optax.sgd(0.1)):  # sign_gd trains the tied form
        plain = js.train(keys, js.two_layer(PROBLEM), HYPER, optimizer, observables=names, **kept)
        more = [*names, "directional_smoothness", "robust_condition"]
        curved = js.train(keys, js.two_layer_curvature(PROBLEM), HYPER, optimizer, observables=more, **kept)
        np.testing.assert_array_equal(curved.params.w_q, plain.params.w_q)
        for name in names:
            np.testing.assert_allclose(curved.trace[name], plain.trace[name], rtol=1e-5)
        assert np.isnan(curved.trace["directional_smoothness"][0])
        assert np.isfinite(curved.trace["directional_smoothness"][1:]).all()
        np.testing.assert_array_equal(np.isfinite(curved.trace["robust_condition"]), [True, False, True, False, True])


def test_what_is_no_problem_is_refused():
    with pytest.raises(ValueError, match=r"problem must be a js.Problem, got problem='disjoint'"):
        js.two_layer_curvature("disjoint")

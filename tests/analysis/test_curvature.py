"""Hessians against jax.hessian and finite differences, condition numbers by hand, tails against known laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats

import jaxsign as js
from jaxsign.analysis import curvature

pytestmark = pytest.mark.x64
X64 = jax.config.jax_enable_x64


@pytest.fixture(scope="module")
def network():
    """A small network with a nested tree of parameters: (loss, params)."""
    x = jax.random.normal(jax.random.key(1), (9, 3))

    def loss(params):
        hidden = jnp.tanh(x @ params["w"] + params["b"]["in"][None])
        return jnp.mean((hidden @ params["out"] - 1) ** 2)

    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (3, 4), (4,), (4,)
    w, b, out = (jax.random.normal(k, shape) for k, shape in zip(keys, shapes))
    return loss, {"w": w, "b": {"in": b}, "out": out}


def dense(loss, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda w: loss(unravel(w)))(flat))


def test_the_hessian_is_that_of_jax(network):
    np.testing.assert_allclose(curvature.hessian(*network), dense(*network), atol=1e-12 if X64 else 1e-5)


def test_more_parameters_than_columns_at_a_time():
    def loss(w):
        return jnp.sum(w**4) + jnp.prod(w[:3])

    w = jnp.linspace(0.1, 1, curvature.COLUMNS + 5)
    np.testing.assert_allclose(curvature.hessian(loss, w), dense(loss, w), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(curvature.hessian_diagonal(loss, w), 12 * w**2, rtol=1e-5)


def test_the_diagonal_comes_as_a_tree_of_parameters(network):
    found = curvature.hessian_diagonal(*network)
    assert jax.tree.structure(found) == jax.tree.structure(network[1])
    np.testing.assert_allclose(ravel_pytree(found)[0], np.diag(dense(*network)), atol=1e-12 if X64 else 1e-5)


@pytest.mark.x64(only=True)
def test_products_with_the_hessian_are_finite_differences_of_the_gradient(network):
    loss, params = network
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    up, down = (jax.grad(loss)(jax.tree.map(lambda w, u, h=h: w + h * u, params, direction)) for h in (1e-5, -1e-5))
    differences = jax.tree.map(lambda a, b: (a - b) / 2e-5, up, down)
    for mine, theirs in zip(jax.tree.leaves(curvature.hvp(loss, params, direction)), jax.tree.leaves(differences)):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)


def test_condition_numbers_by_hand(network):
    full = dense(*network)
    diagonal, eigenvalues = np.abs(np.diag(full)), np.abs(np.linalg.eigvalsh(full))
    for by, sizes in {"diagonal": diagonal, "eigenvalues": eigenvalues}.items():
        found = float(curvature.robust_condition_number(*network, by=by))
        np.testing.assert_allclose(found, sizes.max() / np.median(sizes), rtol=1e-9 if X64 else 1e-2)


def test_smoothness_is_the_quotient_of_rayleigh_whatever_the_length_of_the_step(network):
    loss, params = network
    flat, unravel = ravel_pytree(params)
    u = np.cos(np.arange(flat.size))
    expected = u @ dense(*network) @ u / (u @ u)
    for length in (1.0, 1e-25):
        found = curvature.directional_smoothness(loss, params, unravel(jnp.asarray(length * u, flat.dtype)))
        np.testing.assert_allclose(found, expected, rtol=1e-9 if X64 else 1e-3)


def test_smoothness_along_eigenvectors_is_the_eigenvalue():
    matrix = jnp.diag(jnp.array([1.0, 5.0, -2.0]))
    for i, value in enumerate((1.0, 5.0, -2.0)):
        found = curvature.directional_smoothness(lambda w: w @ matrix @ w / 2, jnp.ones(3), jnp.eye(3)[i])
        np.testing.assert_allclose(found, value, rtol=1e-6)


def test_noise_of_normal_gradients_has_the_chi_law():
    def gradient(key):
        return {"a": 2.0 + jax.random.normal(key, (4,))}

    norms = curvature.gradient_noise(gradient, {"a": jnp.full(4, 2.0)}, jax.random.key(0), 2000)
    assert stats.kstest(np.asarray(norms, np.float64), stats.chi(4).cdf).pvalue > 1e-3


def test_kurtosis_is_that_of_scipy():
    x = np.random.default_rng(0).standard_t(5, 500)
    np.testing.assert_allclose(curvature.kurtosis(jnp.asarray(x)), stats.kurtosis(x, fisher=False), rtol=1e-4)


@pytest.mark.parametrize("exponent", [1.5, 3.0])
def test_the_tail_of_a_pareto_sample_has_its_exponent(exponent):
    x = jnp.asarray(np.random.default_rng(1).pareto(exponent, 20000) + 1)
    assert abs(float(curvature.tail_index(x)) - exponent) < 4 * exponent / np.sqrt(1000)  # its standard error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.robust_condition_number(jnp.sum, jnp.ones(2), by="trace"), "unknown by 'trace'"),
        (lambda: curvature.tail_index(jnp.ones(10), share=0.01), "share must leave between 1 and 9 of 10 values"),
        (lambda: curvature.tail_index(jnp.ones(10), share=0.0), r"share must be a finite number in \(0, 1\]"),
        (lambda: curvature.gradient_noise(lambda key: 0.0, 0.0, jax.random.key(0), 0), "draws must be an int >= 1"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_curvature_of_the_papers_loss():
    """Any loss: the two-layer system's, at its own parameters and data."""
    problem = js.Problem(n=3, d=12, s=2, m_k=2, m_v=2, n_test=4)
    task, hyper = js.two_layer(problem), js.Hyper(sigma_p=2.0, sigma_0=0.3)
    data = task.sample(js.stream(jax.random.key(0), "data"), hyper, None)
    params = task.init(js.stream(jax.random.key(0), "init"), data, hyper)

    def loss(w):
        return task.loss(w, data, hyper)

    np.testing.assert_allclose(curvature.hessian(loss, params), dense(loss, params), atol=1e-6)


def test_a_whole_hessian_is_no_list_of_curvatures():
    with pytest.raises(
        ValueError, match=r"values must be \(N,\), a Hessian's diagonal or eigenvalues, got shape \(2, 2\)"
    ):
        curvature.robust_condition(jnp.eye(2))

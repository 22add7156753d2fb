"""Hessians against jax.hessian and finite differences, condition numbers by hand, tails against known laws."""

import functools

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
    return np.asarray(jax.jit(jax.hessian(lambda w: loss(unravel(w))))(flat))


@pytest.fixture(scope="module")
def full(network):
    """JAX's Hessian of the network."""
    return dense(*network)


def jitted(function, loss, *arguments):
    """`function(loss, *arguments)` as one program: operation by operation it would be a hundred small ones."""
    return jax.jit(lambda *arguments: function(loss, *arguments))(*arguments)


def test_the_hessian_is_that_of_jax(network, full):
    np.testing.assert_allclose(jitted(curvature.hessian, *network), full, atol=1e-12 if X64 else 1e-5)


def test_more_parameters_than_columns_at_a_time():
    def loss(w):
        return jnp.sum(w**4) + jnp.prod(w[:3])

    w = jnp.linspace(0.1, 1, curvature.COLUMNS + 5)
    np.testing.assert_allclose(jitted(curvature.hessian, loss, w), dense(loss, w), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jitted(curvature.hessian_diagonal, loss, w), 12 * np.asarray(w) ** 2, rtol=1e-5)


def test_the_diagonal_comes_as_a_tree_of_parameters(network, full):
    found = jitted(curvature.hessian_diagonal, *network)
    assert jax.tree.structure(found) == jax.tree.structure(network[1])
    np.testing.assert_allclose(ravel_pytree(found)[0], np.diag(full), atol=1e-12 if X64 else 1e-5)


@pytest.mark.x64(only=True)
def test_products_with_the_hessian_are_finite_differences_of_the_gradient(network):
    loss, params = network
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    slope = jax.jit(lambda h: jax.grad(loss)(jax.tree.map(lambda w, u: w + h * u, params, direction)))
    differences = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / 2e-5, slope(1e-5), slope(-1e-5))
    found = jitted(curvature.hvp, loss, params, direction)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(differences)):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)


def test_condition_numbers_by_hand(network, full):
    diagonal, eigenvalues = np.abs(np.diag(full)), np.abs(np.linalg.eigvalsh(full))
    for by, sizes in {"diagonal": diagonal, "eigenvalues": eigenvalues}.items():
        found = float(jitted(functools.partial(curvature.robust_condition_number, by=by), *network))
        np.testing.assert_allclose(found, sizes.max() / np.median(sizes), rtol=1e-9 if X64 else 1e-2)


def test_smoothness_is_the_quotient_of_rayleigh_whatever_the_length_of_the_step(network, full):
    loss, params = network
    flat, unravel = ravel_pytree(params)
    u = np.cos(np.arange(flat.size))
    expected = u @ full @ u / (u @ u)
    smoothness = jax.jit(lambda move: curvature.directional_smoothness(loss, params, move))
    for length in (1.0, 1e-25):
        found = smoothness(unravel(jnp.asarray(length * u, flat.dtype)))
        np.testing.assert_allclose(found, expected, rtol=1e-9 if X64 else 1e-3)


def test_smoothness_along_eigenvectors_is_the_eigenvalue():
    matrix = jnp.asarray(np.diag([1.0, 5.0, -2.0]))
    smoothness = jax.jit(lambda u: curvature.directional_smoothness(lambda w: w @ matrix @ w / 2, jnp.ones(3), u))
    for i, value in enumerate((1.0, 5.0, -2.0)):
        found = smoothness(jnp.asarray(np.eye(3)[i]))
        np.testing.assert_allclose(found, value, rtol=1e-6)


def test_noise_of_normal_gradients_has_the_chi_law():
    def gradient(key):
        return {"a": 2.0 + jax.random.normal(key, (4,))}

    mean = {"a": np.full(4, 2.0, jnp.zeros(()).dtype)}
    norms = jitted(lambda gradient, mean, key: curvature.gradient_noise(gradient, mean, key, 2000), gradient, mean,
                   jax.random.key(0))  # fmt: skip
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

"""How curved is the loss of the two-layer system along a run? Exact, through the features of the patches."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsign.analysis import curvature
from jaxsign.systems import system
from jaxsign.systems.two_layer import task as two_layer
from jaxsign.systems.two_layer.model import HIGHEST, Features, Params, SeenParams
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.training.task import Task
from jaxsign.validation.values import instance

Array = jax.Array
ATTRS = {
    "gradient_before": {"long_name": "gradient norm where the last step began", "units": "1"},
    "directional_smoothness": {"long_name": "curvature along the last step, where it began", "units": "1"},
    "robust_condition": {"long_name": "max / median of the Hessian's diagonal, coordinates in use", "units": "1"},
    "robust_condition_eigen": {"long_name": "max / median of the Hessian's eigenvalues, 0 left out", "units": "1"},
}


#: One matrix at a time, as in `curvature.eigenvalues`.
_cholesky = jax.custom_batching.sequential_vmap(jnp.linalg.cholesky)


class _Blocks:
    """Where the features of each weight row lie in the order of `ravel_pytree`: (rows, 1 + patches), signal first."""

    def __init__(self, features: Features) -> None:
        places = ravel_pytree(features)[1](jnp.arange(ravel_pytree(features)[0].size, dtype=features.q.dtype))
        places = jax.tree.map(lambda x: x.astype(jnp.int32), places)

        def rows(signal: Array, noise: Array) -> Array:
            count = signal.size
            return jnp.concatenate([signal.reshape(count, 1), noise.reshape(count, -1)], axis=1)

        self.query = rows(places.q_mu, places.q)
        self.key = rows(places.k_mu, places.k)
        self.value = rows(places.v_mu, places.v)


def weight_diagonal(features: Features, full: Array, basis: Array, m_v: int) -> tuple[Array, Array, Array]:
    """Diagonal of the Hessian over the weights, from the Hessian over the features of the patches.

        d^2L/dw_rj^2 = sum_ab b_aj H_ra,rb b_bj

    since features are linear in the weights; a value row counts 1/m_v in the value vector.

    Args:
      features: Features, for their places in `full`.
      full: (N, N) Hessian over all features in the order of `ravel_pytree`.
      basis: (1 + patches, d): e_1 and the noise patches.
      m_v: value rows of a sign.

    Returns:
      The diagonals for W_Q (rows, d), W_K (rows, d) and, equal for all of them, a value row (1, d).
    """
    blocks = _Blocks(features)

    def diagonal(places: Array) -> Array:
        square = full[places[:, :, None], places[:, None, :]]
        return jnp.einsum("aj,rab,bj->rj", basis, square, basis, precision=HIGHEST)

    return diagonal(blocks.query), diagonal(blocks.key), diagonal(blocks.value) / m_v**2


def weight_eigenvalues(features: Features, full: Array, basis: Array, m_v: int) -> Array:
    """All eigenvalues of the Hessian over the weights that may differ from 0, as many as there are features.

        W -> features is linear, f = J w:   eig(J^T H J) = eig(L^T H L) and zeros,   L L^T = J J^T

    Args:
      features: Features, for their places in `full`.
      full: (N, N) Hessian over all features in the order of `ravel_pytree`.
      basis: (1 + patches, d), of full row rank.
      m_v: value rows of a sign; the value vector is a difference of two means over them.

    Returns:
      (N,), ascending.
    """
    blocks, size = _Blocks(features), full.shape[0]
    root = _cholesky(jnp.matmul(basis, basis.T, precision=HIGHEST))

    def placed(places: Array, factor: Array | float) -> Array:
        rows = jnp.broadcast_to(factor * root, (places.shape[0], *root.shape))
        whole = jnp.zeros((size, size), full.dtype)
        return whole.at[places[:, :, None], places[:, None, :]].set(rows)

    lower = placed(blocks.query, 1.0) + placed(blocks.key, 1.0) + placed(blocks.value, (2 / m_v) ** 0.5)
    half = jnp.matmul(lower.T, full, precision=HIGHEST)
    return curvature.eigenvalues(jnp.matmul(half, lower, precision=HIGHEST))


@system(Problem, Hyper)
@functools.cache
def two_layer_curvature(problem: Problem) -> Task:
    """The two-layer transformer of the paper, with the curvature of its training loss among the observables.

    `directional_smoothness` is u^T H u / ||u||^2 for the update u that led to a recorded step, over all weights. At the
    test steps, `robust_condition` is max / median of the Hessian's diagonal over the coordinates that some training
    patch uses (all others have curvature 0), and `robust_condition_eigen` is max / median of the eigenvalues that are
    not 0 by construction. All are exact: the loss depends on the weights through their products with the patches, a few
    hundred numbers. The dense system is trained, with any optimizer.

    Args:
      problem: a Problem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no Problem.

    Examples:
      >>> import jaxsign as js
      >>> task = js.two_layer_curvature(Problem(n=3, d=20, s=3, m_k=2, m_v=2, n_test=4))
      >>> run = js.train(jax.random.key(0), task, Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=20, record=10)
      >>> run.trace["directional_smoothness"].shape
      (3,)

    References:
      arXiv 2410.04870 for the system; arXiv 2310.01082 for the measures; their form over features is derived here.
    """
    instance("problem", problem, Problem)
    plain = two_layer.dense(problem)

    def seen_loss(features: Features, data: Any, hyper: Hyper) -> Array:
        return plain.loss(SeenParams(features, heads=problem.heads), data, hyper)

    def observe(params: Any, data: Any, test: Any, hyper: Hyper) -> dict[str, Array]:
        observables = plain.observe(params, data, test, hyper)
        if test is not None:  # costly, so at test steps only
            features = params.features(data)
            full = curvature.hessian(lambda f: seen_loss(f, data, hyper), features)
            query, key, value = weight_diagonal(features, full, data.basis, problem.m_v)
            rows = jnp.concatenate([query, key, jnp.broadcast_to(value, (2 * problem.m_v, value.shape[1]))])
            used = jnp.any(data.basis != 0, axis=0)[None]
            size = jnp.where(used, jnp.abs(rows), jnp.nan)
            observables["robust_condition"] = jnp.nanmax(size) / jnp.nanmedian(size)
            spectrum = weight_eigenvalues(features, full, data.basis, problem.m_v)
            observables["robust_condition_eigen"] = curvature.robust_condition(spectrum)
        return observables

    def observe_step(params: Any, before: Any, data: Any, hyper: Hyper) -> dict[str, Array]:
        def here(weights: Params) -> Array:
            return plain.loss(weights, data, hyper)

        start = before.full()
        move = jax.tree.map(jnp.subtract, params.full(), start)
        return {
            "directional_smoothness": curvature.directional_smoothness(here, start, move),
            "gradient_before": jnp.linalg.norm(ravel_pytree(jax.grad(here)(start))[0]),
        }

    return dataclasses.replace(
        plain, observe=observe, observe_step=observe_step, attrs={**plain.attrs, **ATTRS}, name="two_layer_curvature"
    )

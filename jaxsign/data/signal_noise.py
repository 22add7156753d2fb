"""The signal + sparse-noise data of the two-layer paper, exact to its definition."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.problem import Hyper, Problem, field_names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training examples, kept by their structure: signal patches are multiples of e_1, noise patches are dense.

    Args:
      basis: (1 + n*(context-1), d), e_1 and below it the noise patches; every inner product of the model with a
        patch is linear in its rows.
      support: (n, context-1, s) int32, coordinates of the noise.
      y: (n,) observed labels, +-1, flipped with probability label_noise.
      y_clean: (n,) labels that the signal patches carry, +-1.
      signal_slot: (n,) int32 in [0, context), the slot of the signal patch.
      mu: (), norm of the signal patch.

    References:
      arXiv 2410.04870, data model.
    """

    basis: Array
    support: Array
    y: Array
    y_clean: Array
    signal_slot: Array
    mu: Array

    @property
    def patches(self) -> Array:
        """Noise patches, (n, context-1, d)."""
        return self.basis[1:].reshape(*self.support.shape[:2], -1)

    @property
    def xi(self) -> Array:
        """Noise patches: (n, d) for context 2, (n, context-1, d) for longer contexts."""
        return self.patches[:, 0] if self.support.shape[1] == 1 else self.patches

    @property
    def x(self) -> Array:
        """Inputs in their slots, (n, context, d): y_clean*mu*e_1 in `signal_slot`, noise patches elsewhere in order."""
        signal = (self.y_clean * self.mu)[:, None] * self.basis[:1]
        tokens = jnp.concatenate([signal[:, None], self.patches], axis=1)
        context = tokens.shape[1]
        slots = jnp.arange(context, dtype=jnp.int32)[None, :]
        slot = self.signal_slot[:, None]
        token = jnp.where(slots == slot, 0, jnp.where(slots < slot, slots + 1, slots))
        return jnp.take_along_axis(tokens, token[:, :, None], axis=1)


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Fresh examples with clean labels, noise kept as (indices, values): never an (n_test, d) array.

    Args:
      indices: (n_test, context-1, s) int32 coordinates in [1, d).
      values: (n_test, context-1, s) values of the noise there.
      y: (n_test,) labels, +-1.
      mu: (), norm of the signal patch.
      alpha: (), feature noise.
    """

    __test__ = False  # not a pytest class

    indices: Array
    values: Array
    y: Array
    mu: Array
    alpha: Array


for _record in (Dataset, TestSet):
    jax.tree_util.register_dataclass(_record, data_fields=field_names(_record), meta_fields=[])


def subset(key: Array, size: Any, s: int) -> Array:
    """S distinct integers of {0, ..., size-1}, every subset equally likely, by Floyd's algorithm.

    O(s^2) operations and O(s) memory, whatever the size; the *order* is not uniform, the set is.

    Args:
      key: typed key, shape ().
      size: int >= s, may be traced.
      s: how many, static int >= 1.

    Returns:
      (s,) int32, distinct.

    Examples:
      >>> import jax
      >>> sorted(subset(jax.random.key(0), 3, 3).tolist())
      [0, 1, 2]

    References:
      Bentley and Floyd, "Programming pearls: a sample of brilliance", CACM 1987.
    """
    last = size - s + jnp.arange(s, dtype=jnp.int32)
    draws = jax.random.randint(key, (s,), 0, last + 1, dtype=jnp.int32)
    place = jnp.arange(s, dtype=jnp.int32)

    def pick(i: Array, chosen: Array) -> Array:
        taken = jnp.any((chosen == draws[i]) & (place < i))
        return jnp.where(place == i, jnp.where(taken, last[i], draws[i]), chosen)

    return jax.lax.fori_loop(0, s, pick, jnp.full((s,), -1, jnp.int32))


def _example_keys(key: Array, count: int) -> Array:
    """(count,) keys, one an example."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count, dtype=jnp.uint32))


def _sign(uniform: Array) -> Array:
    """A fair sign, +-1, from a uniform draw on [0, 1)."""
    return jnp.where(uniform < 0.5, 1.0, -1.0).astype(uniform.dtype)


def _supports(key: Array, example_keys: Array, problem: Problem) -> Array:
    """(n, context-1, s) int32 coordinates in [1, d) of the training noise."""
    shape = (problem.n, problem.patches, problem.s)
    if problem.supports == "independent":
        if problem.patches > 1:
            example_keys = jax.vmap(lambda k: jax.random.split(k, problem.patches))(example_keys).reshape(-1)
        return 1 + jax.vmap(subset, (0, None, None))(example_keys, problem.d - 1, problem.s).reshape(shape)
    # Disjoint: cut one random order of all coordinates into supports. One O(d) array a run, none an example.
    order = jax.random.permutation(key, jnp.arange(1, problem.d, dtype=jnp.int32))
    return order[: problem.n * problem.patches * problem.s].reshape(shape)


def sample(key: Array, problem: Problem, hyper: Hyper) -> Dataset:
    """Draws a training set: signal patch y*mu*e_1, noise patches xi with s coordinates N(0, sigma_p^2).

        x = [y mu e_1, xi_1, ..., xi_{context-1}] with the signal in a uniform slot,
        xi <- xi - alpha y mu e_1,   observed label = y, flipped with probability label_noise.

    Args:
      key: key of the stream "data".
      problem: shapes.
      hyper: numbers, may be traced; standard draws do not depend on them.

    Returns:
      The Dataset.

    Examples:
      >>> import jax
      >>> problem = Problem(n=4, d=30, s=3, m_k=2, m_v=2)
      >>> sample(jax.random.key(0), problem, Hyper(sigma_p=2.0)).x.shape
      (4, 2, 30)

    References:
      arXiv 2410.04870, data model.
    """
    n, patches, s, d = problem.n, problem.patches, problem.s, problem.d
    # The keys of an example do not depend on n: the first examples of a larger training set are the smaller one.
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(_example_keys(key, n))
    u = jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys[:, 0])  # label, slot, flip
    y_clean = _sign(u[:, 0])
    slot = jnp.floor(u[:, 1] * problem.context).astype(jnp.int32)
    flip = u[:, 2] < hyper.label_noise
    support = _supports(key, keys[:, 1], problem)
    noise = jax.vmap(lambda k: jax.random.normal(k, (patches, s)))(keys[:, 2]) * hyper.sigma_p
    row = jnp.arange(n * patches, dtype=jnp.int32)[:, None]
    xi = jnp.zeros((n * patches, d), noise.dtype).at[row, support.reshape(-1, s)].set(noise.reshape(-1, s))
    xi = xi.at[:, 0].set(-hyper.alpha * hyper.mu * jnp.repeat(y_clean, patches))
    e_1 = jnp.zeros((1, d), xi.dtype).at[0, 0].set(1.0)
    return Dataset(
        basis=jnp.concatenate([e_1, xi]),
        support=support,
        y=jnp.where(flip, -y_clean, y_clean),
        y_clean=y_clean,
        signal_slot=slot,
        mu=jnp.asarray(hyper.mu, xi.dtype),
    )


def settle(test: TestSet, data: Dataset) -> TestSet:
    """For overlap="none": turns the ranks drawn by `sample_test` into coordinates off every training support.

    Args:
      test: TestSet whose indices are ranks among the free coordinates.
      data: the training set it must avoid.

    Returns:
      A TestSet with coordinates in [1, d).
    """
    d = data.basis.shape[1]
    used = jnp.zeros((d,), bool).at[0].set(True).at[data.support.reshape(-1)].set(True)
    free_first = jnp.argsort(used, stable=True).astype(jnp.int32)
    return dataclasses.replace(test, indices=free_first[test.indices])


def sample_test(key: Array, problem: Problem, hyper: Hyper) -> TestSet:
    """Draws n_test fresh examples with clean labels and sparse noise patches.

    With overlap="none" the indices are ranks among the coordinates that no training patch uses, of which there are at
    least d-1-n*(context-1)*s; `settle` turns them into coordinates once the training set is known.

    Args:
      key: key of the stream "test".
      problem: shapes and the overlap law.
      hyper: numbers, may be traced.

    Returns:
      The TestSet.

    Examples:
      >>> import jax
      >>> problem = Problem(n=4, d=30, s=3, m_k=2, m_v=2, n_test=5)
      >>> sample_test(jax.random.key(0), problem, Hyper(sigma_p=2.0)).indices.shape
      (5, 1, 3)

    References:
      arXiv 2410.04870, data model.
    """
    labels, supports, values = jax.random.split(key, 3)
    shape = (problem.n_test, problem.patches, problem.s)
    keys = jax.random.split(supports, problem.n_test * problem.patches)
    draw = jax.vmap(subset, (0, None, None))
    if problem.overlap == "exact":
        indices = 1 + draw(keys, problem.d - 1, problem.s)
    else:
        indices = draw(keys, problem.d - 1 - problem.n * problem.patches * problem.s, problem.s)
    noise = jax.random.normal(values, shape)
    return TestSet(
        indices=indices.reshape(shape),
        values=noise * hyper.sigma_p,
        y=_sign(jax.random.uniform(labels, (problem.n_test,))),
        mu=jnp.asarray(hyper.mu, noise.dtype),
        alpha=jnp.asarray(hyper.alpha, noise.dtype),
    )

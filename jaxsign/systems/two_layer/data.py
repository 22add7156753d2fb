"""How are the training and test sets of the two-layer system drawn? Signal patches, sparse noise, mini-batches."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.validation.values import field_names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Training examples, kept by their structure: signal patches are multiples of e_1, noise patches are dense.

    Args:
      basis: (1 + n*(context-1), d), e_1 and below it the noise patches; every inner product of the model with a
        patch is linear in its rows.
      support: (n, context-1, s) int32, coordinates of the noise.
      y: (n,) observed labels, +-1, flipped with probability label_noise.
      y_clean: (n,) labels that the signal patches carry, +-1.
      signal_slot: (n,) int32 in [0, context), the slot of the signal patch.
      mu: (), norm of the signal patch.
      weight: (n,), share of each example in the mean loss: 1/n, or 1/B in a mini-batch of size B; 0 for padding.

    References:
      arXiv 2410.04870, data model.
    """

    basis: Array
    support: Array
    y: Array
    y_clean: Array
    signal_slot: Array
    mu: Array
    weight: Array

    @property
    def patches(self) -> Array:
        """Noise patches, (n, context-1, d)."""
        return self.basis[1:].reshape(*self.support.shape[:2], -1)

    @property
    def noise(self) -> Array:
        """Values of the noise on its support, (n, context-1, s)."""
        return jnp.take_along_axis(self.patches, self.support, axis=2)

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


#: The old name of TrainingSet.
Dataset = TrainingSet

for _record in (TrainingSet, TestSet):
    jax.tree_util.register_dataclass(_record, data_fields=field_names(_record), meta_fields=[])


def subsets(keys: Array, size: Any, s: int) -> Array:
    """For every key S distinct integers of {0, ..., size-1}, every subset equally likely, by Floyd's algorithm.

    O(s^2) operations and O(s) memory each, whatever the size; the *order* is not uniform, the set is.

    Args:
      keys: (count,) typed keys.
      size: int >= s, may be traced.
      s: how many, static int >= 1.

    Returns:
      (count, s) int32, distinct in every row.

    Examples:
      >>> import jax
      >>> sorted(subsets(jax.random.key(0)[None], 3, 3)[0].tolist())
      [0, 1, 2]

    References:
      Bentley and Floyd, "Programming pearls: a sample of brilliance", CACM 1987.
    """
    last = size - s + jnp.arange(s, dtype=jnp.int32)
    draws = jax.vmap(lambda key: jax.random.randint(key, (s,), 0, last + 1, dtype=jnp.int32))(keys).T

    def pick(i: Array, chosen: Array) -> Array:
        """Takes the i-th draw, or the last integer in reach if that is taken; the subsets lie along the last axis."""
        draw = jax.lax.dynamic_index_in_dim(draws, i, 0)
        taken = jnp.any(chosen == draw, axis=0, keepdims=True)
        return jax.lax.dynamic_update_index_in_dim(chosen, jnp.where(taken, last[i], draw), i, 0)

    return jax.lax.fori_loop(0, s, pick, jnp.full(draws.shape, -1, jnp.int32)).T


def example_keys(key: Array, count: int) -> Array:
    """(count,) keys, one an example."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count, dtype=jnp.uint32))


def fair_sign(uniform: Array) -> Array:
    """A fair sign, +-1, from a uniform draw on [0, 1)."""
    return jnp.where(uniform < 0.5, 1.0, -1.0).astype(uniform.dtype)


def standard_noise(key: Array, shape: tuple[int, ...], law: str) -> Array:
    """Independent draws of mean 0 and variance 1.

        gaussian:   z                  laplace:   density exp(-sqrt(2) |x|) / sqrt(2)
        student_t:  z_0 / sqrt(z_1^2 + z_2^2 + z_3^2), which is t_3 / sqrt(3), for standard normal z

    Args:
      key: typed key.
      shape: of the result.
      law: one of `problem.NOISES`.

    Returns:
      Draws of that shape in default floats.

    Examples:
      >>> import jax
      >>> standard_noise(jax.random.key(0), (2, 3), "laplace").shape
      (2, 3)
    """
    if law == "laplace":
        return jax.random.laplace(key, shape) / math.sqrt(2)
    if law == "student_t":
        z = jax.random.normal(key, (4, *shape))
        return z[0] / jnp.sqrt(jnp.sum(z[1:] ** 2, axis=0))
    return jax.random.normal(key, shape)


class PaddedSize(NamedTuple):
    """A static number of slots and the true sizes, so that one program serves several n, and several d in law."""

    size: int  # slots for examples, static; those behind the examples are padding
    count: Any  # examples, may be traced
    d: Any  # dimension of a patch; may be traced where no array has that size


@dataclasses.dataclass(frozen=True)
class Examples:
    """Training examples without the coordinates of their noise: everything that is drawn except the supports.

    Args:
      noise: (n, context-1, s), values of the noise on its support; 0 for padding.
      y: (n,) observed labels, +-1.
      y_clean: (n,) labels that the signal patches carry, +-1.
      signal_slot: (n,) int32.
      mu: (), norm of the signal patch.
      weight: (n,), share of each example in the mean loss; 0 for padding.
    """

    noise: Array
    y: Array
    y_clean: Array
    signal_slot: Array
    mu: Array
    weight: Array


jax.tree_util.register_dataclass(Examples, data_fields=field_names(Examples), meta_fields=[])


def examples(key: Array, problem: Problem, hyper: Hyper, padded: PaddedSize | None = None) -> tuple[Examples, Array]:
    """Draws labels, slots and the values of the noise.

    Args:
      key: key of the stream "data".
      problem: shapes.
      hyper: numbers, may be traced.
      padded: slots for examples, and how many examples there are; None: problem.n of both.

    Returns:
      (Examples, (n,) keys of the examples' supports). The draws of an example do not depend on n: a smaller training
      set is the beginning of a larger one.
    """
    size, count = (problem.n, problem.n) if padded is None else padded[:2]
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(example_keys(key, size))
    u = jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys[:, 0])  # label, slot, flip
    y_clean = fair_sign(u[:, 0])
    y = jnp.where(u[:, 2] < hyper.label_noise, -y_clean, y_clean)
    total = jnp.asarray(count, u.dtype)
    weight = jnp.where(jnp.arange(size, dtype=u.dtype) < total, 1 / total, 0)
    values = (problem.patches, problem.s)
    noise = jax.vmap(lambda k: standard_noise(k, values, problem.noise))(keys[:, 2]) * hyper.sigma_p
    noise = jnp.where((weight > 0)[:, None, None], noise, 0)
    slot = jnp.floor(u[:, 1] * problem.context).astype(jnp.int32)
    return Examples(noise, y, y_clean, slot, jnp.asarray(hyper.mu, u.dtype), weight), keys[:, 1]


def mini_batch(key: Array, size: int, data: Any) -> Any:
    """The same examples with the weights of a mini-batch: 1/B for B of them, every subset equally likely.

    Args:
      key: key of the step.
      size: B, int in [1, n].
      data: a record with `weight`, (n,).

    Returns:
      The record with other weights: examples outside the batch have weight 0.
    """
    chosen = subsets(key[None], jnp.sum(data.weight > 0, dtype=jnp.int32), size)[0]
    places = jnp.arange(data.weight.size, dtype=jnp.int32)
    in_batch = jnp.any(chosen[:, None] == places[None], axis=0)
    return dataclasses.replace(data, weight=in_batch.astype(data.weight.dtype) / size)


def _supports(key: Array, example_keys: Array, problem: Problem) -> Array:
    """(n, context-1, s) int32 coordinates in [1, d) of the training noise; arbitrary for padding."""
    shape = (example_keys.shape[0], problem.patches, problem.s)
    if problem.supports == "independent":
        if problem.patches > 1:
            example_keys = jax.vmap(lambda k: jax.random.split(k, problem.patches))(example_keys).reshape(-1)
        return 1 + subsets(example_keys, problem.d - 1, problem.s).reshape(shape)
    # Disjoint supports are slices of one random order of all coordinates: one array of size d a run, none an example.
    order = jax.random.permutation(key, jnp.arange(1, problem.d, dtype=jnp.int32))
    place = jnp.arange(math.prod(shape), dtype=jnp.int32)
    return order[jnp.minimum(place, problem.d - 2)].reshape(shape)


def sample(key: Array, problem: Problem, hyper: Hyper, padded: PaddedSize | None = None) -> TrainingSet:
    """Draws a training set: signal patch y*mu*e_1, noise patches xi with s coordinates N(0, sigma_p^2).

        x = [y mu e_1, xi_1, ..., xi_{context-1}] with the signal in a uniform slot,
        xi <- xi - alpha y mu e_1,   observed label = y, flipped with probability label_noise.

    Args:
      key: key of the stream "data".
      problem: shapes.
      hyper: numbers, may be traced; standard draws do not depend on them.
      padded: slots for examples, and how many examples there are; None: problem.n of both. The other slots are
        padding: weight 0, and noise 0 on coordinate 0.

    Returns:
      The TrainingSet.

    Examples:
      >>> import jax
      >>> problem = Problem(n=4, d=30, s=3, m_k=2, m_v=2)
      >>> sample(jax.random.key(0), problem, Hyper(sigma_p=2.0)).x.shape
      (4, 2, 30)

    References:
      arXiv 2410.04870, data model.
    """
    n, patches, s, d = padded.size if padded else problem.n, problem.patches, problem.s, problem.d
    drawn, keys = examples(key, problem, hyper, padded)
    valid = drawn.weight > 0
    support = jnp.where(valid[:, None, None], _supports(key, keys, problem), 0)
    shift = jnp.where(valid, hyper.alpha * hyper.mu * drawn.y_clean, 0)
    row = jnp.arange(n * patches, dtype=jnp.int32)[:, None]
    noise = drawn.noise.reshape(-1, s)
    xi = jnp.zeros((n * patches, d), noise.dtype).at[row, support.reshape(-1, s)].set(noise)
    xi = xi.at[:, 0].set(-jnp.repeat(shift, patches))
    e_1 = jnp.zeros((1, d), xi.dtype).at[0, 0].set(1.0)
    return TrainingSet(
        basis=jnp.concatenate([e_1, xi]),
        support=support,
        y=drawn.y,
        y_clean=drawn.y_clean,
        signal_slot=drawn.signal_slot,
        mu=drawn.mu,
        weight=drawn.weight,
    )


def assign_coordinates(test: TestSet, data: TrainingSet) -> TestSet:
    """For overlap="none": turns the ranks drawn by `sample_test` into coordinates outside every training support.

    Args:
      test: TestSet whose indices are ranks among the free coordinates.
      data: the training set, whose coordinates must be avoided.

    Returns:
      A TestSet with coordinates in [1, d).
    """
    d = data.basis.shape[1]
    used = jnp.zeros((d,), bool).at[0].set(True).at[data.support.reshape(-1)].set(True)
    free_first = jnp.argsort(used, stable=True).astype(jnp.int32)
    return dataclasses.replace(test, indices=free_first[test.indices])


def sample_test(key: Array, problem: Problem, hyper: Hyper, padded: PaddedSize | None = None) -> TestSet:
    """Draws n_test fresh examples with clean labels and sparse noise patches.

    With overlap="none" the indices are ranks among the coordinates that no training patch uses, of which there are at
    least d-1-n*(context-1)*s; `assign_coordinates` turns them into coordinates once the training set is known.

    Args:
      key: key of the stream "test".
      problem: shapes and the overlap law.
      hyper: numbers, may be traced.
      padded: how many training examples and dimensions there are; None: problem's.

    Returns:
      The TestSet.

    Examples:
      >>> import jax
      >>> problem = Problem(n=4, d=30, s=3, m_k=2, m_v=2, n_test=4)
      >>> sample_test(jax.random.key(0), problem, Hyper(sigma_p=2.0)).indices.shape
      (4, 1, 3)

    References:
      arXiv 2410.04870, data model.
    """
    labels, supports, values = jax.random.split(key, 3)
    shape = (problem.n_test, problem.patches, problem.s)
    keys = jax.random.split(supports, problem.n_test * problem.patches)
    d = problem.d if padded is None else padded.d
    if problem.overlap == "exact":
        indices = 1 + subsets(keys, d - 1, problem.s)
    else:
        taken = problem.n if padded is None else jnp.asarray(padded.count).astype(jnp.int32)
        indices = subsets(keys, d - 1 - taken * problem.patches * problem.s, problem.s)
    noise = standard_noise(values, shape, problem.noise)
    return TestSet(
        indices=indices.reshape(shape),
        values=noise * hyper.sigma_p,
        y=fair_sign(jax.random.uniform(labels, (problem.n_test,))),
        mu=jnp.asarray(hyper.mu, noise.dtype),
        alpha=jnp.asarray(hyper.alpha, noise.dtype),
    )

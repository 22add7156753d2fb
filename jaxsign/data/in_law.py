"""Draws of the two-layer system in law: inner products instead of patches and weights, nothing of size d."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxsign.data import signal_noise
from jaxsign.problem import Hyper, Problem, field_names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LawData:
    """A training set without coordinates: which ones its disjoint supports hold does not matter in law.

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


@dataclasses.dataclass(frozen=True)
class LawTest:
    """A test set without coordinates beside those that it shares with training patches.

    Args:
      owner: (n_test*(context-1), s) int32, the training patch that owns each coordinate; -1: none. None if no
        coordinate can be shared.
      place: (n_test*(context-1), s) int32, the place of the coordinate in that patch; None likewise.
      values: (n_test, context-1, s), values of the noise.
      y: (n_test,) labels.
      mu: ().
      alpha: ().
      standard: (2*rows + 1, n_test, context-1) standard normal draws, for what the initial features of a test patch
        do not owe to the training patches.
    """

    owner: Array | None
    place: Array | None
    values: Array
    y: Array
    mu: Array
    alpha: Array
    standard: Array


for _record in (LawData, LawTest):
    jax.tree_util.register_dataclass(_record, data_fields=field_names(_record), meta_fields=[])


def sample(key: Array, problem: Problem, hyper: Hyper, room: signal_noise.Room) -> LawData:
    """Draws a training set with disjoint supports: labels, slots and the values of the noise.

    Args:
      key: key of the stream "data".
      problem: shapes.
      hyper: numbers, may be traced.
      room: slots for examples and how many there are.

    Returns:
      LawData; labels, slots and values are those of `signal_noise.sample` with the same key.

    References:
      arXiv 2410.04870, data model.
    """
    drawn, keys = signal_noise.labels(key, problem, hyper, room)
    shape = (problem.patches, problem.s)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys[:, 1]) * hyper.sigma_p
    noise = jnp.where((drawn.weight > 0)[:, None, None], noise, 0)
    return LawData(noise, drawn.y, drawn.y_clean, drawn.signal_slot, jnp.asarray(hyper.mu, noise.dtype), drawn.weight)


def sample_test(key: Array, problem: Problem, hyper: Hyper, room: signal_noise.Room) -> LawTest:
    """Draws n_test fresh examples: which coordinates they share with training patches, and standard draws.

    With disjoint supports of exchangeable coordinates, the training patches may be given the first coordinates in
    order: a coordinate of a fresh support is shared if it is one of these. O(s^2) a patch, whatever d is.

    Args:
      key: key of the stream "test".
      problem: shapes and the overlap law.
      hyper: numbers, may be traced.
      room: how many training examples there are.

    Returns:
      LawTest; labels and values are those of `signal_noise.sample_test` with the same key.

    References:
      arXiv 2410.04870, data model.
    """
    patches, s = problem.patches, problem.s
    keys = jax.random.split(key, 3)
    values = jax.random.normal(keys[2], (problem.n_test, patches, s)) * hyper.sigma_p
    owner = place = None
    if problem.overlap == "exact":
        indices = signal_noise.subsets(jax.random.split(keys[1], problem.n_test * patches), problem.d - 1, s)
        patch = indices // s
        owner = jnp.where(patch < jnp.asarray(room.count).astype(jnp.int32) * patches, patch, -1)
        place = indices % s
    rows = 2 * problem.rows + 1
    return LawTest(
        owner, place, values, signal_noise.fair_sign(jax.random.uniform(keys[0], (problem.n_test,))),
        jnp.asarray(hyper.mu, values.dtype), jnp.asarray(hyper.alpha, values.dtype),
        jax.random.normal(jax.random.fold_in(key, 1), (rows, problem.n_test, patches)),
    )  # fmt: skip

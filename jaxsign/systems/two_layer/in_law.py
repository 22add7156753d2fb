"""Draws of the two-layer system in law: values of the noise instead of patches, nothing of size d."""

import dataclasses

import jax

from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.validation.values import field_names

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LawTest:
    """A test set, and what its initial features do not owe to the training patches.

    Args:
      drawn: the test set of the same key; with overlap="none" its indices are not used.
      standard: (2*rows + 1, n_test, context-1) standard normal draws.
    """

    drawn: signal_noise.TestSet
    standard: Array


jax.tree_util.register_dataclass(LawTest, data_fields=field_names(LawTest), meta_fields=[])


def sample(key: Array, problem: Problem, hyper: Hyper, room: signal_noise.Room) -> signal_noise.Examples:
    """Draws a training set with disjoint supports; which coordinates they hold does not matter in law.

    Args:
      key: key of the stream "data".
      problem: shapes.
      hyper: numbers, may be traced.
      room: slots for examples and how many there are.

    Returns:
      Examples, those of `signal_noise.sample` with the same key.

    References:
      arXiv 2410.04870, data model.
    """
    return signal_noise.examples(key, problem, hyper, room)[0]


def sample_test(key: Array, problem: Problem, hyper: Hyper, room: signal_noise.Room) -> LawTest:
    """Draws n_test fresh examples and standard draws. O(s^2) a patch, whatever d is.

    Args:
      key: key of the stream "test".
      problem: shapes and the overlap law.
      hyper: numbers, may be traced.
      room: how many training examples there are.

    Returns:
      LawTest; its test set is that of `signal_noise.sample_test` with the same key.

    References:
      arXiv 2410.04870, data model.
    """
    shape = (2 * problem.rows + 1, problem.n_test, problem.patches)
    standard = jax.random.normal(jax.random.fold_in(key, 1), shape)
    return LawTest(signal_noise.sample_test(key, problem, hyper, room), standard)

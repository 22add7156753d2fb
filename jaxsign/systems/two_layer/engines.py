"""Which engines train the two-layer system, and which of them does "auto" choose from?"""

import dataclasses
import functools
from collections.abc import Callable

from jaxsign.systems import system
from jaxsign.systems.two_layer import feature_task as features
from jaxsign.systems.two_layer import task as tasks
from jaxsign.systems.two_layer.overlaps import shared_slots
from jaxsign.systems.two_layer.problem import OVERLAPS, Hyper, Problem
from jaxsign.training.task import Task
from jaxsign.validation.values import instance, known


@functools.cache
def _auto(problem: Problem) -> Task:
    """The dense system, run by the fastest task that is exact for the optimizer: "auto"."""
    dense, used = tasks.dense(problem), problem.n * problem.patches * problem.s + 1
    choices = list(dict.fromkeys([tasks.with_weights(problem), dense]))
    if problem.supports == "disjoint":
        choices.insert(0, features.feature_space(problem))
    elif 2 * shared_slots(problem, problem.n * problem.patches) < min(used, problem.d):  # else as many as are active
        choices.insert(0, features.hybrid(problem))
    reduction = dataclasses.replace(dense.reduction, choices=tuple(choices))
    return dataclasses.replace(dense, reduction=reduction, name="two_layer_auto")


ENGINES: dict[str, Callable[[Problem], Task]] = {
    "dense": tasks.dense,
    "support": tasks.support,
    "hybrid": features.hybrid,
    "feature_space": features.feature_space,
    "feature_space_law": functools.partial(features.feature_space, law=True),
    "auto": _auto,
}


@system(Problem, Hyper)
def two_layer(problem: Problem, engine: str = "dense", overlap: str | None = None) -> Task:
    """The two-layer transformer of the paper as a Task.

    Args:
      problem: a Problem.
      engine: "dense" trains all d coordinates with any optimizer; "support" trains only the coordinates that training
        patches use, exact for optimizers that move each coordinate by its own gradients and decoupled weight decay;
        "hybrid" trains the inner products with the patches on each patch's own coordinates and the weights of the
        coordinates that several patches share, exact for optimizers that are odd and homogeneous as well;
        "feature_space" is "hybrid" for disjoint supports, which share none. All four train on the same draws of a seed
        and refuse other optimizers. "auto" picks the fastest of the four that is exact for the optimizer.
        "feature_space_law" draws the inner products themselves: equal to the others in distribution only, and its cost
        does not depend on d; it needs disjoint supports.
      overlap: "exact" or "none", replaces problem.overlap; None keeps it.

    Returns:
      The Task; equal arguments give the identical object, so nothing retraces.

    Raises:
      ValueError: for an unknown engine or overlap, a problem too small for overlap="none", or one that the engine
        is not exact for.

    Examples:
      >>> problem = Problem(n=4, d=30, s=3, m_k=2, m_v=2)
      >>> two_layer(problem) is two_layer(problem, engine="dense", overlap="exact")
      True

    References:
      arXiv 2410.04870.
    """
    instance("problem", problem, Problem)
    known("engine", engine, ENGINES)
    if overlap is not None and overlap != problem.overlap:
        problem = dataclasses.replace(problem, overlap=known("overlap", overlap, OVERLAPS))
    return ENGINES[engine](problem)

"""Engine names -> tasks of the two-layer system."""

import dataclasses

from jaxsign.problem import OVERLAPS, Problem
from jaxsign.task import Task
from jaxsign.tasks import two_layer as tasks
from jaxsign.validation import known

ENGINES = {"dense": tasks.dense, "support": tasks.support, "feature_space": tasks.feature_space}


def two_layer(problem: Problem, engine: str = "dense", overlap: str | None = None) -> Task:
    """The two-layer transformer of the paper as a Task.

    Args:
      problem: a Problem.
      engine: "dense" trains all d coordinates with any optimizer; "support" trains only the coordinates that training
        patches use, exact for optimizers that move each coordinate by its own gradients only; "feature_space" trains
        the inner products with the patches, exact for disjoint supports and optimizers that are odd and homogeneous
        besides. Both run the same seed's draws, and refuse what they are not exact for.
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
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a js.Problem, got problem={problem!r}")
    known("engine", engine, ENGINES)
    if overlap is not None and overlap != problem.overlap:
        problem = dataclasses.replace(problem, overlap=known("overlap", overlap, OVERLAPS))
    return ENGINES[engine](problem)

"""How often does an optimizer of the two-layer system move a coordinate in the direction that SignGD would?"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems import system
from jaxsign.systems.two_layer import task as two_layer
from jaxsign.systems.two_layer.feature_task import feature_space
from jaxsign.systems.two_layer.features import FeatureParams
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.training.task import Task
from jaxsign.validation.values import instance, known

Array = jax.Array
ENGINES: dict[str, Callable[[Problem], Task]] = {
    "dense": two_layer.dense,
    "support": two_layer.support,
    "feature_space": feature_space,
}
#: Fields of the weights, and the last letter of their observables' names.
GROUPS = {"w_q": "q", "w_k": "k", "w_v": "v"}
ATTRS = {
    f"update_agreement_{name}": {
        "long_name": f"share of coordinates of {field.upper()} that moved as SignGD would have moved them",
        "units": "1",
    }
    for field, name in GROUPS.items()
}


@system(Problem, Hyper)
def two_layer_updates(problem: Problem, engine: str = "dense") -> Task:
    """The two-layer transformer of the paper, with the sign agreement of updates among the observables.

        update_agreement = share of coordinates with sgn(W_t - W_(t-1)) = -sgn(grad L(W_(t-1))), of those with grad != 0

    for queries (`update_agreement_q`), keys (`_k`) and values (`_v`). It compares the update that led to a recorded
    step with SignGD's update from the same parameters and the gradient of the full training set. It is 1 for SignGD; an
    update that is lost to rounding counts as a disagreement. In feature space all s coordinates of a noise patch
    move alike, so that its feature counts s times, and the signs come from the closed form, which does not underflow.

    Args:
      problem: a Problem.
      engine: "dense", "support" or "feature_space", as of `js.two_layer`.

    Returns:
      The Task; equal arguments give the identical object.

    Raises:
      ValueError: if it is no Problem, for an unknown engine, or a problem that the engine is not exact for.

    Examples:
      >>> import jaxsign as js
      >>> task = js.two_layer_updates(Problem(n=3, d=20, s=3, m_k=2, m_v=2, n_test=4))
      >>> run = js.train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=20, record=10)
      >>> run.trace["update_agreement_q"].tolist()
      [nan, 1.0, 1.0]

    References:
      arXiv 2410.04870 for the system; the observable is ours.
    """
    instance("problem", problem, Problem)
    return _observing(ENGINES[known("engine", engine, ENGINES)](problem), problem.s)


@functools.cache
def _observing(plain: Task, s: int) -> Task:
    """A task of the two-layer system with the observable, in the larger task that may run it as well."""

    def gradient(before: Any, data: Any, hyper: Any) -> Any:
        if plain.gradient is not None:
            return plain.gradient(before, data, hyper, True)[1]

        def loss(weights: dict[str, Any]) -> Array:
            return plain.loss(dataclasses.replace(before, **weights), data, hyper)

        return dataclasses.replace(before, **jax.grad(loss)({field: getattr(before, field) for field in GROUPS}))

    def observe_step(params: Any, before: Any, data: Any, hyper: Any) -> dict[str, Array]:
        slope, coordinates = gradient(before, data, hyper), s if isinstance(before, FeatureParams) else 1
        return {
            f"update_agreement_{name}": agreement(
                getattr(params, field), getattr(before, field), getattr(slope, field), coordinates
            )
            for field, name in GROUPS.items()
        }

    reduction = plain.reduction
    if reduction.padding is not None:
        padding = dataclasses.replace(reduction.padding, task=_observing(reduction.padding.task, s))
        reduction = dataclasses.replace(reduction, padding=padding)
    if reduction.weights is not None:
        weights = dataclasses.replace(reduction.weights, task=_observing(reduction.weights.task, s))
        reduction = dataclasses.replace(reduction, weights=weights)
    return dataclasses.replace(
        plain, observe_step=observe_step, attrs={**plain.attrs, **ATTRS}, reduction=reduction,
        name=plain.name.replace("two_layer", "two_layer_updates"),
    )  # fmt: skip


def agreement(after: Any, before: Any, slope: Any, coordinates: int = 1) -> Array:
    """Share of coordinates that moved against the sign of their gradient, of those that have one.

    Args:
      after: one weight matrix in any form after a step.
      before: the same before it.
      slope: the gradient there.
      coordinates: how many coordinates an entry of a noise feature stands for; entries of other forms are coordinates.

    Returns:
      (), NaN where no coordinate has a gradient.
    """
    counts = []
    names = getattr(slope, "_fields", ("",))
    for name, a, b, g in zip(names, *(jax.tree.leaves(tree) for tree in (after, before, slope))):
        weight = coordinates if name == "noise" else 1
        moving = g != 0
        right = moving & (jnp.sign(a - b) == -jnp.sign(g))
        counts.append(weight * jnp.stack([jnp.sum(right, dtype=g.dtype), jnp.sum(moving, dtype=g.dtype)]))
    agreeing, total = sum(counts[1:], start=counts[0])
    return agreeing / total

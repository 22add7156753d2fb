"""Which coordinates do several noise patches use, and how many can there be?"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer.data import TrainingSet
from jaxsign.systems.two_layer.problem import Problem

Array = jax.Array
#: Slots for shared coordinates come in multiples of this many: two vectors of 16 numbers.
SLOTS = 32
#: Bound on the probability that a seed's shared coordinates do not fit into the slots.
EXCEEDANCE = 1e-6


@functools.cache
def shared_slots(problem: Problem, patches: int) -> int:
    """S, a number of coordinates that more than one training patch uses which is practically never exceeded.

        P(X >= k) <= exp(-m KL(k/m || p)),   m = d - 1,   p = P(Binomial(N, s/m) >= 2)

    X is the number of shared coordinates. Draws without replacement are negatively associated, and so are increasing
    functions of separate coordinates, so that Chernoff's bound holds as for independent coordinates. S is the
    largest k whose bound is above EXCEEDANCE, rounded up to a multiple of SLOTS, and at most N s / 2. Since the bound
    ignores that X varies less than a binomial number, the true probability is far smaller: 1e-12 at the preset.

    Args:
      problem: gives d, s and the law of supports.
      patches: N, int >= 1, training patches.

    Returns:
      S, int >= 0; 0 where no coordinate can be shared.

    Examples:
      >>> shared_slots(Problem(n=20, d=2000, s=40, m_k=20, m_v=20), 20)
      192

    References:
      Joag-Dev and Proschan, "Negative association of random variables", Annals of Statistics 1983.
    """
    m = problem.d - 1
    most = 0 if problem.supports == "disjoint" else min(m, patches * problem.s // 2)
    if patches < 2 or most == 0:
        return 0
    share = problem.s / m
    if share == 1:
        return most
    none, one = patches * math.log1p(-share), math.log(patches * share) + (patches - 1) * math.log1p(-share)
    p = max(0.0, -math.expm1(none) - math.exp(one))
    k = max(1, math.ceil(m * p))
    while k < most and m * _divergence((k + 1) / m, p) < -math.log(EXCEEDANCE):
        k += 1
    return min(most, -(-k // SLOTS) * SLOTS)


def _divergence(a: float, p: float) -> float:
    """KL(a || p) of two Bernoulli variables; infinite where p = 0 < a."""
    if a >= 1:
        return -math.log(p) if p else math.inf
    return a * math.log(a / p) + (1 - a) * (math.log1p(-a) - math.log1p(-p)) if p else math.inf


class Shared(NamedTuple):
    """The shared coordinates of a training set."""

    coordinate: Array  # (S,) int32, in order, then 0
    used: Array  # (S,) bool, which slots hold one
    slot: Array  # (d,) int32, the slot of every coordinate; S for those that are not shared
    fit: Array  # () bool, whether S slots hold all of them


def shared_coordinates(data: TrainingSet, slots: int) -> Shared:
    """The coordinates that more than one training patch uses, coordinate 0 aside.

    Args:
      data: training set; padding uses coordinate 0 only.
      slots: S.

    Returns:
      Shared.
    """
    d = data.basis.shape[1]
    users = jnp.zeros((d,), jnp.int32).at[data.support.reshape(-1)].add(1).at[0].set(0)
    shared = users > 1
    count = jnp.cumsum(shared, dtype=jnp.int32)
    slot = jnp.where(shared, jnp.minimum(count - 1, slots), slots)
    coordinate = jnp.zeros((slots,), jnp.int32).at[slot].set(jnp.arange(d, dtype=jnp.int32), mode="drop")
    return Shared(coordinate, jnp.arange(slots, dtype=jnp.int32) < count[-1], slot, count[-1] <= slots)

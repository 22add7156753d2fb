"""Which coordinates do several noise patches use, and how many can there be?"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer.data import TrainingSet
from jaxsign.systems.two_layer.problem import Problem

Array = jax.Array
#: Slots for shared coordinates come in multiples of this many, a vector of 32-bit numbers (AVX-512).
SLOTS = 16
#: About the probability that a seed's shared coordinates do not fit into the slots.
EXCEEDANCE = 1e-9


@functools.cache
def shared_slots(problem: Problem, patches: int) -> int:
    """S, a number of coordinates that more than one training patch uses which is practically never exceeded.

        sigma^2 h((S - mean) / sigma^2) >= -ln EXCEEDANCE,   h(u) = (1 + u) ln(1 + u) - u

    Mean and sigma^2 are those of the number X of shared coordinates. The left side bounds -ln P(X > S) for a sum of
    independent indicators with this variance (Bennett); the indicators of X are negatively associated, so that it is an
    estimate here. S is a multiple of SLOTS, or the largest possible X, min(d - 1, N s / 2), if that is smaller.

    Args:
      problem: gives d, s and the law of supports.
      patches: N, int >= 1, training patches.

    Returns:
      S, int >= 0; 0 where no coordinate can be shared.

    Examples:
      >>> shared_slots(Problem(n=20, d=2000, s=40, m_k=20, m_v=20), 20)
      176

    References:
      Boucheron, Lugosi and Massart, "Concentration inequalities", 2013, theorem 2.9.
    """
    most = 0 if problem.supports == "disjoint" else min(problem.d - 1, patches * problem.s // 2)
    if patches < 2 or most == 0:
        return 0
    mean, variance = shared_moments(problem.d - 1, problem.s, patches)
    k = max(1, math.ceil(mean))
    while k < most and _bennett(k - mean, variance) < -math.log(EXCEEDANCE):
        k += 1
    return min(most, -(-k // SLOTS) * SLOTS)


def shared_moments(m: int, s: int, patches: int) -> tuple[float, float]:
    """Mean and variance of the number of coordinates, out of m, that more than one of N patches of s uses.

    Args:
      m: coordinates, int >= s.
      s: coordinates of a patch, int >= 1.
      patches: N, int >= 1.

    Returns:
      (mean, variance).

    Examples:
      >>> shared_moments(2, 1, 2)  # both patches use the same one of two, or not
      (0.5, 0.25)
    """
    # Fractions, since the variance is a difference of numbers as large as m^2. A patch uses a given coordinate or
    # leaves it; of two given ones it leaves both, uses the first alone, or uses both.
    n, pairs = patches, max(m * (m - 1), 1)
    use, leave = Fraction(s, m), Fraction(m - s, m)
    neither, alone, both = (Fraction(k, pairs) for k in ((m - s) * (m - s - 1), s * (m - s), s * (s - 1)))
    few = leave**n + n * use * leave ** (n - 1)  # at most one patch uses a coordinate
    few_both = neither**n + n * (2 * alone + both) * neither ** (n - 1)  # and another one
    few_both += n * (n - 1) * alone**2 * neither ** max(n - 2, 0)
    return float(m * (1 - few)), float(m * few * (1 - few) + m * (m - 1) * (few_both - few**2))


def _bennett(excess: float, variance: float) -> float:
    """sigma^2 h(t / sigma^2); 0 below the mean, infinite if nothing varies."""
    if excess <= 0:
        return 0.0
    u = excess / variance if variance else math.inf
    return variance * ((1 + u) * math.log1p(u) - u) if variance else math.inf


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

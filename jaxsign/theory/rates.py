"""How fast does the training loss of SignGD and Adam fall, late and on the way to its late rate?"""

import math
from typing import Any

import jax
import numpy as np

Array = jax.Array


def late_loss_rate(eta: Any, noise_l1: Any) -> Any:
    """Late linear rate of SignGD's training loss:  -d ln L/dt  =  4 eta min_i ||xi_i||_1.

    Once all attention is on the noise, y_i F_i grows by 2 * 2 eta ||xi_i||_1 a step, and the slowest example dominates.

    Args:
      eta: learning rate.
      noise_l1: (..., n) l1 norms.

    Returns:
      (...) rate in nat per step.

    Examples:
      >>> float(late_loss_rate(0.25, np.array([3.0, 2.0])))
      2.0

    References:
      Derived here; the paper proves linear convergence.
    """
    return 4 * eta * np.min(np.asarray(noise_l1), axis=-1)


def adam_late_loss_rate(b2: float) -> float:
    """Late linear rate of Adam's training loss beyond 2/(1-b2) steps:  -d ln L/dt = ln(1/b2)/2.

    Args:
      b2: second-moment decay, in (0, 1).

    Returns:
      Rate in nat per step.

    References:
      Derived here: sqrt(v) cannot fall faster than sqrt(b2) a step.
    """
    return math.log(1 / b2) / 2


def adam_loss_rate(eta: float, noise_l1: Any, b1: float, b2: float) -> np.ndarray:
    """Late linear rate of Adam's training loss for any betas, eps -> 0: the fixed point of its step size.

    While an example's gradient falls by e^-r a step, m and sqrt(v) are geometric sums of it, and a step has the size

        u(r) = (1-b1)/(1 - b1 e^r) * sqrt((1 - b2 e^2r)/(1-b2))        in units of eta

    which makes the loss fall at r = R u(r), R = 4 eta min_i ||xi_i||_1. Limits: r = R (SignGD) where R is well below
    ln(1/b2)/2, and ln(1/b2)/2 where R is well above. For b1^2 < b2 the root exists. Otherwise |m|/sqrt(v) has no
    bound, u diverges at r = ln(1/b1), and for large R there is no root: steps grow until the run breaks down.

    Args:
      eta: learning rate.
      noise_l1: (..., n) l1 norms.
      b1: first-moment decay, in [0, 1).
      b2: second-moment decay, in [0, 1).

    Returns:
      (...) the smallest root, in nat per step; NaN where there is none.

    Examples:
      >>> adam_loss_rate(1e-4, np.array([50.0]), 0.0, 0.0).item()
      0.02
      >>> round(adam_loss_rate(1e-4, np.array([50.0]), 0.9, 0.999).item() / adam_late_loss_rate(0.999), 3)
      0.999

    References:
      Derived here; the bound on |m|/sqrt(v) is Cauchy and Schwarz's.
    """
    sign = np.asarray(late_loss_rate(eta, noise_l1), float)
    if b1 == b2 == 0:
        return sign
    ends = [0.5 * math.log(1 / b2) if b2 > 0 else math.inf, math.log(1 / b1) if b1 > 0 else math.inf]
    rate = np.full(sign.shape, np.nan)
    for place, speed in np.ndenumerate(sign):
        last = min(*ends, 10 * float(speed))

        def ahead(r: Any, speed: float = float(speed)) -> Any:
            """Excess of the loss's rate over r, for gradients that fall at rate r."""
            pull = np.sqrt(np.maximum(1 - b2 * np.exp(2 * r), 0) / (1 - b2))
            return speed * (1 - b1) * pull - r * (1 - b1 * np.exp(r))

        rates = np.linspace(0, last, 4001)
        below = np.flatnonzero(ahead(rates[1:-1]) < 0)
        if not below.size and last != ends[0]:
            continue
        low, high = (rates[below[0]], rates[below[0] + 1]) if below.size else (rates[-2], last)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if ahead(middle) > 0 else (low, middle)
        rate[place] = middle
    return rate


def adam_sublinear_rate(t: Any, b2: float) -> np.ndarray:
    """Local rate of Adam's training loss before its late rate, where SignGD's rate is much larger.

        -d ln L/dt = ln(1/b2) x / (2 (x - arctan x)),   x = sqrt(b2^-t - 1)

    Once gradients have fallen, v_hat is their first squares' average, C (1-b2) b2^t / (1-b2^t), so that
    d(1/L)/dt ~ sqrt(b2^-t - 1). It depends on b2 through t (1-b2) alone: 3/(2t) for t << 1/(1-b2), when the loss
    falls like t^(-3/2), and ln(1/b2)/2 for t >> 1/(1-b2).

    Args:
      t: (...) steps, > 0.
      b2: second-moment decay, in (0, 1).

    Returns:
      (...) rate in nat per step.

    Examples:
      >>> [round(float(t * adam_sublinear_rate(t, 0.999)), 2) for t in (10, 3000)]
      [1.5, 2.17]

    References:
      Derived here; arXiv 2410.04870 calls Adam's training loss sublinear.
    """
    x = np.sqrt(np.expm1(np.asarray(t, float) * math.log(1 / b2)))
    return math.log(1 / b2) * x / (2 * (x - np.arctan(x)))

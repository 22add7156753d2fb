"""When do the four stages of SignGD end? From its one-step laws."""

import math

import jax

from jaxsign.systems.two_layer.problem import Hyper, Problem

Array = jax.Array


def _noise_scales(problem: Problem, hyper: Hyper) -> tuple[float, float]:
    """Typical ||xi||_1 = s sigma_p sqrt(2/pi) and ||xi||_2 = sigma_p sqrt(s)."""
    sigma_p = float(hyper.sigma_p)
    return problem.s * sigma_p * math.sqrt(2 / math.pi), sigma_p * math.sqrt(problem.s)


def stage_one_time(problem: Problem, hyper: Hyper, eta: float) -> float:
    """Stage I ends when all mean value noise is positive; typical step.

        t_I = E max_i (-v_i(0))_+ / (2 eta ||xi_i||_1),   v_i(0) ~ N(0, (2 sigma_0^2/m_v) ||xi_i||_2^2)

    with E max over n half-normal tails taken at the median of the maximum, Phi^-1(2^(-1/n)).

    Args:
      problem: shapes.
      hyper: concrete numbers.
      eta: SignGD's learning rate.

    Returns:
      Steps.

    References:
      Derived here from the value-noise law.
    """
    from scipy.stats import norm

    l1, l2 = _noise_scales(problem, hyper)
    worst = norm.ppf(2 ** (-1 / problem.n)) * math.sqrt(2 / problem.m_v) * float(hyper.sigma_0) * l2
    return float(worst / (2 * eta * l1))


def stage_two_time(problem: Problem, hyper: Hyper, eta: float, agreement: float = 0.99) -> float:
    """Stage II ends when the signs of query and key noise agree; typical step.

    After stage I a pair that agrees grows and a pair that disagrees shrinks by eta ||xi||_1 a step until the smaller
    of the two crosses 0, so the share that still disagrees is (1/2) (2 Phi(-x))^2 with
    x = (t - t_I) eta ||xi||_1 / (sigma_0 ||xi||_2):

        t_II = t_I + x sigma_0 ||xi||_2 / (eta ||xi||_1),   2 Phi(-x) = sqrt(2 (1 - agreement))

    Args:
      problem: shapes.
      hyper: concrete numbers.
      eta: SignGD's learning rate.
      agreement: share of pairs, in (1/2, 1).

    Returns:
      Steps.

    References:
      Derived here from the query- and key-noise laws.
    """
    from scipy.stats import norm

    l1, l2 = _noise_scales(problem, hyper)
    x = -norm.ppf(math.sqrt(2 * (1 - agreement)) / 2)
    return stage_one_time(problem, hyper, eta) + float(x * float(hyper.sigma_0) * l2 / (eta * l1))


def stage_three_time(problem: Problem, hyper: Hyper, eta: float) -> float:
    """Stage III ends when the last query signal has turned to its majority vote; typical step.

    About half of the rows start with the wrong sign and move by eta ||mu|| a step from |q_mu(0)| ~ sigma_0 ||mu|| |N|:

        t_III = t_II + (sigma_0/eta) Phi^-1((1 + 2^(-2/rows))/2)      (median of the largest of rows/2 half-normals)

    Args:
      problem: shapes.
      hyper: concrete numbers.
      eta: SignGD's learning rate.

    Returns:
      Steps.

    References:
      Derived here from the query-signal law.
    """
    from scipy.stats import norm

    largest = norm.ppf((1 + 2 ** (-2 / problem.rows)) / 2)
    return stage_two_time(problem, hyper, eta) + float(hyper.sigma_0) / eta * float(largest)


def stage_four_time(problem: Problem, hyper: Hyper, eta: float, level: float = 0.01) -> float:
    """Stage IV ends when s_21 has decayed to `level`; typical step.

    With aligned rows the noise-noise score grows as m_k (eta ||xi||_1 (t - t_I) + sigma_0 ||xi||_2 sqrt(2/pi))^2:

        t_IV = t_I + ( sqrt(ln(1/level - 1)/m_k) - sigma_0 ||xi||_2 sqrt(2/pi) )_+ / (eta ||xi||_1)

    Args:
      problem: shapes.
      hyper: concrete numbers.
      eta: SignGD's learning rate.
      level: s_21, in (0, 1/2).

    Returns:
      Steps. No closed form is known for t_V, where query noise flips.

    References:
      Derived here from the query- and key-noise laws.
    """
    l1, l2 = _noise_scales(problem, hyper)
    needed = math.sqrt(math.log(1 / level - 1) / problem.m_k)
    head_start = float(hyper.sigma_0) * l2 * math.sqrt(2 / math.pi)
    return stage_one_time(problem, hyper, eta) + max(needed - head_start, 0.0) / (eta * l1)

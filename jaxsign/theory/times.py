"""When do the stages of SignGD end? From its one-step laws.

Two numbers rule: the step of a noise feature, h = eta ||xi||_1, and its initial size, a = sigma_0 ||xi||_2. A feature
crosses its initial size in a/h steps, and attention memorises noise when features have grown to about 1/sqrt(m_k).
"""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from jaxsign.systems.two_layer.problem import Hyper, Problem

Array = jax.Array
#: Quantiles of a half-normal law over which the laws average.
QUANTILES = 32


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

    After stage I a pair that agrees grows and a pair that disagrees shrinks by h = eta ||xi||_1 a step until the
    smaller of the two crosses 0. If both cross 0 in one step, they step back together in the next: where supports are
    disjoint the pair alternates until one of the signals that they are compared with exceeds what one of the two lacks.
    The share that disagrees tau = t - t_I steps after stage I is

        1/2 P(|N| a > h tau)^2 + 1/2 sum_(j < tau) P(jh + delta < |N| a < (j+1) h) P(jh < |N| a < (j+1) h - delta')

    with a = sigma_0 ||xi||_2, delta = eta mu tau of the key signal, delta' = (A/B) delta of the query signal, where
    A/B = cosh(m_k M(h tau)/2)^2 with M of `stage_four_time`. t_II is where it is 1 - agreement. Independent supports
    lack the second term: features that share coordinates do not return to where they were.

    Args:
      problem: shapes.
      hyper: concrete numbers.
      eta: SignGD's learning rate.
      agreement: share of pairs, in (1/2, 1).

    Returns:
      Steps.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20, supports="disjoint")
      >>> [round(stage_two_time(problem, Hyper(sigma_p=2.0, sigma_0=3e-3), eta)) for eta in (1e-4, 1e-5)]
      [33, 105]

    References:
      Derived here from the query- and key-noise laws.
    """
    l1, l2 = _noise_scales(problem, hyper)
    step, start, drift = eta * l1, float(hyper.sigma_0) * l2, eta * float(hyper.mu)
    if problem.supports == "independent":
        return stage_one_time(problem, hyper, eta) + _aligned(agreement) * start / step
    cell = np.arange(math.ceil(min(6 * start / step, 1e6)) + 1) * step

    def disagree(tau: float) -> float:
        ratio = math.cosh(min(problem.m_k * _product(step * tau, start) / 2, 100.0)) ** 2
        shifts, crossed = (drift * tau, ratio * drift * tau), cell[cell < step * tau]
        stays = _between(crossed + shifts[0], crossed + step, start)
        stays = stays * _between(crossed, crossed + step - shifts[1], start)
        return float(0.5 * _between(np.array(step * tau), np.array(np.inf), start) ** 2 + 0.5 * np.sum(stays))

    return stage_one_time(problem, hyper, eta) + _first_below(disagree, 1 - agreement)


def _aligned(agreement: float) -> float:
    """The x with (1/2) P(|N| > x)^2 = 1 - agreement."""
    from scipy.stats import norm

    return float(-norm.ppf(math.sqrt(2 * (1 - agreement)) / 2))


def _between(low: np.ndarray, high: np.ndarray, scale: float) -> np.ndarray:
    """P(low < |N| scale < high) for low >= 0, 0 where low >= high."""
    from scipy.special import erf

    if scale == 0:
        return np.zeros(np.shape(low))
    return np.maximum(erf(high / scale / math.sqrt(2)) - erf(low / scale / math.sqrt(2)), 0)


def _first_below(fall: Callable[[float], float], level: float) -> float:
    """Where a falling function of t >= 0 gets to a level."""
    low, high = 0.0, 1.0
    while fall(high) > level:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fall(middle) > level else (low, middle)
    return high


def stage_three_time(problem: Problem, hyper: Hyper, eta: float) -> float:
    """Stage III ends when the last query signal has turned to its majority vote; typical step.

    About half of the rows start with the wrong sign and move by eta ||mu|| a step from |q_mu(0)| ~ sigma_0 ||mu|| |N|,
    as soon as signs are aligned, t_a. If all of them arrive, the last one does at

        t_III = t_a + (sigma_0/eta) Phi^-1((1 + 2^(-2/rows))/2)      (median of the largest of rows/2 half-normals)

    From t_* of `stage_five_time` on key noise turns to its query signal, instead of the other way round. The vote is
    the sum of key noise. A majority of size (1 + m)/2, which shrinks while the minority grows, loses it at
    t_* + m Q/h, and rows that arrive later do not turn. With F(t) = P(|N| < (t - t_a) eta/sigma_0) in general

        E_m (F(t_* + m Q/h) - F(t_III))_+ = 1 - 2^(-2/rows),     m = |2 Binomial(n, 1/2)/n - 1|

    Args:
      problem: shapes.
      hyper: concrete numbers.
      eta: SignGD's learning rate.

    Returns:
      Steps; 0 where no query signal turns. At an SNR of 1/sqrt(n) or more the initial key signal outvotes the noise, so
      that the smaller of query and key signal turns, in about half of the time.

    References:
      Derived here from the query-signal law.
    """
    from scipy.special import erf
    from scipy.stats import binom

    l1, l2 = _noise_scales(problem, hyper)
    start, wait = float(hyper.sigma_0) * l2, float(hyper.sigma_0) / eta * math.sqrt(2)
    aligned = stage_one_time(problem, hyper, eta) + _aligned(0.99) * start / (eta * l1)
    turning, votes = _turning(problem, hyper), np.arange(problem.n + 1)
    margin, chance = np.abs(2 * votes / problem.n - 1), binom.pmf(votes, problem.n, 0.5)
    end = (turning + margin * (turning + start * math.sqrt(2 / math.pi))) / (eta * l1)

    def arrived(t: np.ndarray) -> np.ndarray:
        return np.asarray(erf(np.maximum(t - aligned, 0) / wait))

    def still(t: float) -> float:
        return float(np.sum(chance * np.maximum(arrived(end) - arrived(np.array(t)), 0)))

    level = 1 - 2 ** (-2 / problem.rows)
    return _first_below(still, level) if still(0.0) > level else 0.0


def stage_four_time(problem: Problem, hyper: Hyper, eta: float, level: float = 0.01) -> float:
    """Stage IV ends when the mean of s_21 has decayed to `level`; typical step.

        E 1/(1 + exp(m_k M(x ||xi_i||_1/||xi||_1))) = level,   t_IV = x / (eta ||xi||_1)

    with the mean over the norms of the noise patches, of which the small ones are late. M(x) is the mean product of
    query and key noise after each has moved by x. With sizes (b, c) of start, b >= c, half-normal times sigma_0
    ||xi||_2, it is (b + x)(c + x) for a pair that agrees; one that does not first meets 0:

        -(b - x)(c - x)  for x < c,     (x - c)(b - 2c + x)  from there on

    Args:
      problem: shapes.
      hyper: concrete numbers.
      eta: SignGD's learning rate.
      level: s_21, in (0, 1/2).

    Returns:
      Steps.

    References:
      Derived here from the query- and key-noise laws.
    """
    l1, l2 = _noise_scales(problem, hyper)
    return _decayed(problem.m_k, problem.s, float(hyper.sigma_0) * l2, level) / (eta * l1)


def stage_five_time(problem: Problem, hyper: Hyper, eta: float, share: float = 0.9) -> tuple[float, float]:
    """When negative key noise, and later negative query noise, have turned to the query signal; typical steps.

    Key noise follows A q_mu + B q_i. B = s_21 s_22 decays, A stays near 1/4, and the query signal wins where

        exp(-m_k M(x)) (x + a sqrt(2/pi)) = (1/4) ||mu|| x/||xi||_1,    x = eta ||xi||_1 t_*     (M: `stage_four_time`)

    From then on opposed key noise of size Q = x + a sqrt(2/pi) moves back by h = eta ||xi||_1 a step. Query noise
    follows k_i - c_i k_mu, where the key signal has moved by eta ||mu|| a step:

        t_key = t_* + Q/h,    t_q = (Q + h t_*)/(h + eta ||mu||),    t_V = t_q + (Q + h (t_q - t_*))/h

    so that t_V is about 4 t_* and twice t_key. Samples of small norm are late: all times are over ||xi_i||_1/||xi||_1
    at its quantile 1 - share.

    Args:
      problem: shapes.
      hyper: concrete numbers, mu > 0.
      eta: SignGD's learning rate.
      share: of the opposed noise that has turned, in (0, 1).

    Returns:
      (t_key, t_V), steps.

    References:
      Derived here from the one-step laws.
    """
    from scipy.stats import norm

    l1, l2 = _noise_scales(problem, hyper)
    turning, drift = _turning(problem, hyper), float(hyper.mu) / l1  # in units of h
    size = turning + float(hyper.sigma_0) * l2 * math.sqrt(2 / math.pi)
    query = (size + turning) / (1 + drift)
    norms = 1 + _spread_of_norms(problem.s) * float(norm.ppf(1 - share))
    key, end = turning + size, query + size + query - turning
    return key / (norms * eta * l1), end / (norms * eta * l1)


def _spread_of_norms(s: int) -> float:
    """Standard deviation of ||xi_i||_1 over its mean."""
    return math.sqrt((math.pi / 2 - 1) / s)


@functools.cache
def _pairs() -> tuple[np.ndarray, np.ndarray]:
    """(larger, smaller) of two half-normal values, on a grid of quantiles."""
    from scipy.stats import norm

    one = norm.ppf(0.5 + (np.arange(QUANTILES) + 0.5) / (2 * QUANTILES))
    return np.maximum(one[:, None], one[None]), np.minimum(one[:, None], one[None])


def _product(x: float, start: float) -> float:
    """M(x) of `stage_four_time`."""
    large, small = (start * one for one in _pairs())
    opposed = np.where(x < small, -(large - x) * (small - x), (x - small) * (large - 2 * small + x))
    return float(np.mean((large + x) * (small + x) + opposed)) / 2


@functools.cache
def _decayed(m_k: int, s: int, start: float, level: float) -> float:
    """The x of `stage_four_time`."""
    from scipy.special import expit
    from scipy.stats import norm

    place = (np.arange(QUANTILES) + 0.5) / QUANTILES
    norms = np.maximum(1 + _spread_of_norms(s) * norm.ppf(place), 0.0)

    def attention(x: float) -> float:
        return float(np.mean(expit([-m_k * _product(x * one, start) for one in norms])))

    return _first_below(attention, level)


def _turning(problem: Problem, hyper: Hyper) -> float:
    """The x of `stage_five_time`: eta ||xi||_1 t_*."""
    l1, l2 = _noise_scales(problem, hyper)
    return _overtaken(problem.m_k, float(hyper.sigma_0) * l2, float(hyper.mu) / l1)


@functools.cache
def _overtaken(m_k: int, start: float, drift: float) -> float:
    def ahead(x: float) -> float:
        """Logarithm of B |q_i| over A |q_mu|."""
        return math.log(4 * (x + start * math.sqrt(2 / math.pi)) / (drift * x)) - m_k * _product(x, start)

    low, high = 1e-9, 1.0
    while ahead(high) > 0:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if ahead(middle) > 0 else (low, middle)
    return high

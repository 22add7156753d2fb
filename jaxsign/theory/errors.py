"""What is the test error before attention moves, if a fresh patch shares coordinates with training patches?"""

import math
from typing import Any

import numpy as np

from jaxsign.systems.two_layer.problem import Problem
from jaxsign.validation.values import real


def overlap_share(problem: Problem) -> float:
    """Share U of coordinates that some training noise patch uses.

        U = 1 - (1 - s/(d-1))^(n (context-1))  independent supports
        U = n (context-1) s/(d-1)              disjoint supports
        U = 0                                  without overlap

    Args:
      problem: shapes, supports and overlap.

    Returns:
      U in [0, 1].

    References:
      Derived here from the data model.
    """
    if problem.overlap == "none":
        return 0.0
    patches, density = problem.n * problem.patches, problem.s / (problem.d - 1)
    return patches * density if problem.supports == "disjoint" else 1 - (1 - density) ** patches


def sign_test_error(problem: Problem, mu: Any, sigma_p: Any) -> np.ndarray:
    """SignGD's test error before attention moves, due to the coordinates that a fresh patch shares with training.

        err = E_K Phi(-||mu|| / (sigma_p sqrt(K))),   K ~ Binomial(s (context-1), U)

    The context-1 noise patches of a fresh example contain K coordinates that training has moved, each by as much as the
    signal's coordinate. Uniform attention gives all patches the same weight, so the number of heads does not matter.

    Args:
      problem: shapes. U = `overlap_share`.
      mu: norm(s) of the signal patch.
      sigma_p: noise standard deviation(s), broadcast against mu.

    Returns:
      Test error, shape of the broadcast; 0 without overlap (d -> infinity).

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> round(float(sign_test_error(problem, 1.0, 2.0)), 3)
      0.444

    References:
      Derived here; a statement at finite d that names d, s, n and the overlap law.
    """
    from scipy.stats import binom, norm

    coordinates = problem.s * problem.patches
    shared = np.arange(1, coordinates + 1)
    weight = binom.pmf(shared, coordinates, overlap_share(problem))
    ratio = np.asarray(mu, float) / np.asarray(sigma_p, float)
    return np.sum(weight * norm.cdf(-ratio[..., None] / np.sqrt(shared)), -1)


def gd_test_error(problem: Problem, mu: Any, sigma_p: Any) -> np.ndarray:
    """GD's test error before attention moves.

        err = Phi( -sqrt(n (d-1)) ||mu||^2 / (sigma_p^2 s (context-1)) )      (0 without overlap)

    The value vector is the sum of all signed training patches: n ||mu||^2 along the signal, and on each of the
    s (context-1) noisy coordinates of a fresh example a variance of n (context-1) s sigma_p^2/(d-1).

    Args:
      problem: shapes.
      mu: norm(s) of the signal patch.
      sigma_p: noise standard deviation(s), broadcast against mu.

    Returns:
      Test error, shape of the broadcast.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> round(float(gd_test_error(problem, 1.0, 2.0)), 3)
      0.106

    References:
      Derived here; a statement at finite d that names d, s, n and the overlap law.
    """
    from scipy.stats import norm

    ratio = np.asarray(mu, float) / np.asarray(sigma_p, float)
    if problem.overlap == "none":
        return np.zeros_like(ratio)
    return norm.cdf(-math.sqrt(problem.n * (problem.d - 1)) * ratio**2 / (problem.s * problem.patches))


def sign_boundary(problem: Problem, error: float = 0.1) -> float:
    """The SNR at which SignGD's test error is `error` before attention moves: `sign_test_error` solved for the SNR.

        E_K Phi(-SNR sqrt(s/K)) = error,   K ~ Binomial(s (context-1), U)

    It is about -Phi^-1(error) sqrt(U): the more coordinates fresh noise shares with training, the larger the SNR.

    Args:
      problem: shapes.
      error: test error, in (0, 1/2].

    Returns:
      SNR = mu / (sigma_p sqrt(s)); 0 where the error is smaller at every SNR.

    Raises:
      ValueError: for an illegal error.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> round(sign_boundary(problem), 3)
      0.733

    References:
      Derived here; a statement at finite d that names d, s, n and the overlap law.
    """
    from scipy.optimize import brentq

    error, scale = real("error", error, low=0.0, high=0.5, open_low=True), math.sqrt(problem.s)

    def excess(snr: float) -> float:
        return float(sign_test_error(problem, snr * scale, 1.0)) - error

    if excess(1e-9) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 1e-9, high, xtol=1e-12))


def gd_boundary(problem: Problem, error: float = 0.1) -> float:
    """The SNR at which GD's test error is `error` before attention moves: `gd_test_error` solved for the SNR.

        SNR^2 = -Phi^-1(error) (context-1) / sqrt(n (d-1))      (0 without overlap)

    Args:
      problem: shapes.
      error: test error, in (0, 1/2].

    Returns:
      SNR = mu / (sigma_p sqrt(s)).

    Raises:
      ValueError: for an illegal error.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> round(gd_boundary(problem), 4)
      0.0801

    References:
      Derived here; a statement at finite d that names d, s, n and the overlap law.
    """
    from scipy.stats import norm

    error = real("error", error, low=0.0, high=0.5, open_low=True)
    if problem.overlap == "none":
        return 0.0
    return math.sqrt(-float(norm.ppf(error)) * problem.patches / math.sqrt(problem.n * (problem.d - 1)))

"""The exact laws of SignGD and the closed forms that follow from them, one function a law.

Notation (token 1 signal, token 2 noise; disjoint supports, context 2, alpha = 0; attention and features per head):
c_i = y_i * (sign of the signal patch), A_i = s_11 s_12, B_i = s_21 s_22, S_i = s_11 + s_21,
g_i = y_i <v, xi_i> - c_i <v, mu>, p_i = 1/(1 + exp(y_i F_i)); noises carry the observed label, signals are <w, mu>.
Host functions (late rates, stage times, test error) return NumPy floats; the one-step laws accept tracers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.problem import Hyper, Problem

Array = jax.Array


def value_noise_step(eta: Any, noise_l1: Array) -> Array:
    """One SignGD step of the mean value noise:  y_i <v, xi_i>  +=  2 eta ||xi_i||_1.

    Args:
      eta: learning rate.
      noise_l1: (n,) l1 norms of the noise patches.

    Returns:
      (n,) increments.

    Examples:
      >>> value_noise_step(0.5, jnp.array([2.0])).tolist()
      [2.0]

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return 2 * eta * noise_l1


def value_signal_step(eta: Any, mu: Any, p: Array, s: Array, c: Array) -> Array:
    """One SignGD step of the mean value signal:  <v, mu>  +=  2 eta ||mu||_1 sgn(sum_i p_i S_i c_i).

    Args:
      eta: learning rate.
      mu: norm of the signal patch.
      p: (n,) loss weights p_i.
      s: (n,) S_i summed over heads.
      c: (n,) signs c_i.

    Returns:
      () increment.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return 2 * eta * mu * jnp.sign(jnp.sum(p * s * c))


def query_noise_step(eta: Any, noise_l1: Array, g: Array, c: Array, key_noise: Array, key_signal: Array) -> Array:
    """One SignGD step of the query noise:  q_i  +=  eta ||xi_i||_1 sgn(g_i) sgn(k_i - c_i k_mu).

    Args:
      eta: learning rate.
      noise_l1: (n,).
      g: (n,).
      c: (n,).
      key_noise: (row, n).
      key_signal: (row,).

    Returns:
      (row, n) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return eta * (noise_l1 * jnp.sign(g))[None] * jnp.sign(key_noise - c[None] * key_signal[:, None])


def key_noise_step(
    eta: Any, noise_l1: Array, g: Array, c: Array, a: Array, b: Array, query_noise: Array, query_signal: Array
) -> Array:
    """One SignGD step of the key noise:  k_i  +=  eta ||xi_i||_1 sgn(g_i) sgn(A_i c_i q_mu + B_i q_i).

    Args:
      eta: learning rate.
      noise_l1: (n,).
      g: (n,).
      c: (n,).
      a: (n,) A_i of the head.
      b: (n,) B_i of the head.
      query_noise: (row, n) of the head.
      query_signal: (row,) of the head.

    Returns:
      (row, n) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return (
        eta * (noise_l1 * jnp.sign(g))[None] * jnp.sign((a * c)[None] * query_signal[:, None] + b[None] * query_noise)
    )


def query_signal_step(
    eta: Any, mu: Any, p: Array, g: Array, c: Array, a: Array, key_noise: Array, key_signal: Array
) -> Array:
    """One SignGD step of the query signal, a majority vote of the key noise.

        q_mu  +=  eta ||mu||_1 sgn( sum_i c_i p_i A_i g_i (k_i - c_i k_mu) )

    Args:
      eta: learning rate.
      mu: norm of the signal patch.
      p: (n,).
      g: (n,).
      c: (n,).
      a: (n,) A_i of the head.
      key_noise: (row, n) of the head.
      key_signal: (row,) of the head.

    Returns:
      (row,) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    return eta * mu * jnp.sign(jnp.sum((c * p * a * g)[None] * (key_noise - c[None] * key_signal[:, None]), -1))


def key_signal_step(
    eta: Any, mu: Any, p: Array, g: Array, c: Array, a: Array, b: Array, query_noise: Array, query_signal: Array
) -> Array:
    """One SignGD step of the key signal, minus the majority vote of the query noise.

        k_mu  -=  eta ||mu||_1 sgn( sum_i c_i p_i g_i (A_i c_i q_mu + B_i q_i) )

    Args:
      eta: learning rate.
      mu: norm of the signal patch.
      p: (n,).
      g: (n,).
      c: (n,).
      a: (n,) A_i of the head.
      b: (n,) B_i of the head.
      query_noise: (row, n) of the head.
      query_signal: (row,) of the head.

    Returns:
      (row,) increments.

    References:
      Exact one-step law, derived here from the model of arXiv 2410.04870.
    """
    votes = (c * p * g)[None] * ((a * c)[None] * query_signal[:, None] + b[None] * query_noise)
    return -eta * mu * jnp.sign(jnp.sum(votes, -1))


def late_loss_rate(eta: Any, noise_l1: Any) -> Any:
    """Late linear rate of SignGD's training loss:  -d ln L/dt  =  4 eta min_i ||xi_i||_1.

    Once attention sits on the noise, y_i F_i grows by 2 * 2 eta ||xi_i||_1 a step and the slowest example rules.

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

    About half of the rows start against their vote and move by eta ||mu|| a step from |q_mu(0)| ~ sigma_0 ||mu|| |N|:

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
    """SignGD's test error before attention moves: an effect of the coordinates a fresh patch shares with training.

        err = E_K Phi(-||mu|| / (sigma_p sqrt(K))),   K ~ Binomial(s (context-1), U)

    A fresh example's context-1 noise patches together meet K coordinates that training has moved, each by as much as
    the signal's; attention that is uniform weighs all patches alike, and the number of heads does not matter.

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

    met = problem.s * problem.patches
    shared = np.arange(1, met + 1)
    weight = binom.pmf(shared, met, overlap_share(problem))
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

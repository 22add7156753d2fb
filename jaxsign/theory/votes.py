"""What are the test errors between SignGD's and GD's, with mini-batches and with the smooth sign?

Before attention moves, training is a linear model: after t steps the mean value vector is v_1 on the signal and w_c on
noise coordinate c, and a fresh patch shares K ~ Binomial(s, U) coordinates with training. SignGD's law,
E_K Phi(-||mu||/(sigma_p sqrt(K))), takes |w_c| = |v_1| on all of them. If noise coordinates move less than the signal,
the error is smaller. It depends on one number, the mean square of their motion relative to the signal's:

    err = E_K Phi( -||mu|| / (sigma_p sqrt(K r2/U)) ),   r2 = E (w_c/v_1)^2, untouched coordinates included

A mini-batch of B contains an example with probability B/n and always votes for the signal. Relative to full batches a
noise coordinate therefore moves B/n as far under SignGD, sqrt(B/n) as far under Adam (which divides by the root of
E g^2), and equally far under GD.
"""

import functools
import math
from typing import Any

import numpy as np

from jaxsign.systems.two_layer.problem import Problem
from jaxsign.theory.errors import overlap_share
from jaxsign.validation.values import positive_int, real


def sign_batch_share(problem: Problem, batch_size: int, steps: int | None = None) -> float:
    """Mean square of SignGD's noise steps relative to its signal steps, with mini-batches.

        r2 = P(a>0)/t + (1 - 1/t) E[ (2/pi) arcsin( c / sqrt(a b) ) ]

    a and b count the users of a coordinate in two independent mini-batches, and c the users in both. The votes are
    signs of sums of a and b normal values with c in common; the orthant formula gives the probability that they agree.

    Args:
      problem: shapes; context 2, independent supports.
      batch_size: B, int in [1, n].
      steps: t, int >= 1; the random walk of the votes contributes 1/t. None: t -> infinity.

    Returns:
      r2 in [0, U].

    Raises:
      ValueError: for other shapes, or numbers outside their range.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> round(sign_batch_share(problem, 20), 4), round(sign_batch_share(problem, 2), 4)
      (0.3325, 0.0039)

    References:
      Derived here: full batches give U, and so SignGD's law.
    """
    from scipy.stats import binom, hypergeom

    density, size = _density(problem, batch_size)
    total = 0.0
    for both in range(max(0, 2 * size - problem.n), size + 1):
        only_one = np.arange(size - both + 1)
        c, a, b = np.meshgrid(np.arange(both + 1), only_one, only_one, indexing="ij", sparse=True)
        weight = binom.pmf(c, both, density) * binom.pmf(a, size - both, density) * binom.pmf(b, size - both, density)
        agree = np.where(c > 0, c / np.sqrt(np.maximum((c + a) * (c + b), 1)), 0.0)
        total += hypergeom.pmf(both, problem.n, size, size) * np.sum(weight * np.arcsin(np.minimum(agree, 1)))
    lasting = float(2 / math.pi * total)
    if steps is None:
        return lasting
    inverse = 1 / positive_int("steps", steps)
    return (1 - (1 - density) ** size) * inverse + (1 - inverse) * lasting


def adam_batch_share(problem: Problem, batch_size: int) -> float:
    """Mean square of Adam's noise steps relative to its signal steps, with mini-batches, for b2 -> 1.

        r2 = E_k[ (B/n) k beta / (1 - kappa + kappa k beta) ],   kappa = (B-1)/(n-1),   beta ~ Beta(1/2, (k-1)/2)

    for k ~ Binomial(n, s/(d-1)) users of a coordinate: Adam moves by E g / sqrt(E g^2), and k beta = (sum z)^2/sum z^2
    for the k normal values z.

    Args:
      problem: shapes; context 2, independent supports.
      batch_size: B, int in [1, n].

    Returns:
      r2 in [0, U]; U with full batches.

    Raises:
      ValueError: for other shapes, or a batch size outside its range.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> round(adam_batch_share(problem, 20), 4), round(adam_batch_share(problem, 2), 4)
      (0.3325, 0.0331)

    References:
      Derived here; t far below 1/(1-b2) and far above 1/(1-b1), gradients of constant size.
    """
    from scipy.stats import binom

    density, size = _density(problem, batch_size)
    kappa = (size - 1) / (problem.n - 1) if problem.n > 1 else 1.0
    nodes, weights = _legendre(200)
    total = binom.pmf(1, problem.n, density)  # one user: beta = 1
    # beta = cos^2 of a coordinate's angle on the sphere in k dimensions, whose density is sin^(k-2).
    angle = (nodes + 1) * math.pi / 4
    for users in range(2, problem.n + 1):
        mass = weights * np.sin(angle) ** (users - 2)
        sums = users * np.cos(angle) ** 2
        share = np.sum(mass * sums / np.maximum(1 - kappa + kappa * sums, 1e-300)) / np.sum(mass)
        total += binom.pmf(users, problem.n, density) * share
    return float(size / problem.n * total)


def smooth_sign_share(problem: Problem, mu: float, sigma_p: float, temperature: float, p: float = 0.5) -> float:
    """Mean square of tanh(g/tau) on noise relative to the signal, full batch: from SignGD's U to GD's.

        r2 = E tanh(g_c/tau)^2 / tanh(g_1/tau)^2,   g_1 = p ||mu||/m_v,   g_c ~ N(0, k (p sigma_p/(n m_v))^2)

    Args:
      problem: shapes; context 2, independent supports.
      mu: norm of the signal patch, > 0.
      sigma_p: noise standard deviation, > 0.
      temperature: tau, > 0.
      p: loss weight 1/(1 + exp(yF)) of all examples, in (0, 1); 1/2 at the start.

    Returns:
      r2 > 0.

    Raises:
      ValueError: for other shapes, or numbers outside their range.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> round(smooth_sign_share(problem, 1.0, 2.0, 1e-9), 4), round(smooth_sign_share(problem, 1.0, 2.0, 1.0), 4)
      (0.3325, 0.004)

    References:
      Derived here from the gradient of the mean logistic loss at attention 1/2.
    """
    from scipy.stats import binom

    density, _ = _density(problem, 1)
    for name, value in (("mu", mu), ("sigma_p", sigma_p), ("temperature", temperature), ("p", p)):
        real(name, value, low=0.0, open_low=True)
    nodes, weights = _legendre(400)
    nodes = 4 * (nodes + 1)  # half a normal density, [0, 8]
    users = np.arange(1, problem.n + 1)[:, None]
    noise = np.sqrt(users) * p * sigma_p / (problem.n * problem.m_v) * nodes
    density_at = 8 / math.sqrt(2 * math.pi) * weights * np.exp(-(nodes**2) / 2)
    square = np.sum(density_at * np.tanh(noise / temperature) ** 2, 1)
    signal = math.tanh(p * mu / problem.m_v / temperature)
    return float(np.sum(binom.pmf(users[:, 0], problem.n, density) * square) / signal**2)


def shared_test_error(problem: Problem, mu: Any, sigma_p: Any, share: float) -> np.ndarray:
    """Test error before attention moves, from the mean square of noise steps relative to signal steps.

        err = E_K Phi(-||mu|| / (sigma_p sqrt(K r2/U))),   K ~ Binomial(s, U)

    Args:
      problem: shapes; context 2, independent supports.
      mu: norm(s) of the signal patch.
      sigma_p: noise standard deviation(s), broadcast against mu.
      share: r2 > 0, such as `sign_batch_share`; U gives SignGD's law.

    Returns:
      Test error, shape of the broadcast; 0 without overlap.

    Raises:
      ValueError: for other shapes, or an illegal share.

    Examples:
      >>> problem = Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
      >>> [round(float(shared_test_error(problem, 1.0, 2.0, sign_batch_share(problem, b))), 2) for b in (20, 5, 2, 1)]
      [0.44, 0.3, 0.1, 0.01]

    References:
      Derived here; a statement at finite d that names d, s, n and the overlap law.
    """
    from scipy.stats import binom, norm

    _density(problem, 1)
    real("share", share, low=0.0, open_low=True)
    ratio = np.asarray(mu, float) / np.asarray(sigma_p, float)
    used = overlap_share(problem)
    if used == 0:
        return np.zeros_like(ratio)
    shared = np.arange(1, problem.s + 1)
    weight = binom.pmf(shared, problem.s, used)
    return np.sum(weight * norm.cdf(-ratio[..., None] / np.sqrt(shared * share / used)), -1)


@functools.cache
def _legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss's quadrature on [-1, 1]: an eigenvalue problem, so solved once."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes.flags.writeable = weights.flags.writeable = False
    return nodes, weights


def _density(problem: Problem, batch_size: int) -> tuple[float, int]:
    """(s/(d-1), B), checked.

    Raises:
      ValueError: naming field, value and legal range.
    """
    if problem.context != 2:
        raise ValueError(f"the mini-batch laws are derived for context=2, got context={problem.context}")
    if problem.supports != "independent":
        raise ValueError(f'the mini-batch laws are derived for supports="independent", got {problem.supports!r}')
    size = positive_int("batch_size", batch_size)
    if size > problem.n:
        raise ValueError(f"batch_size must be an int in [1, n] = [1, {problem.n}], got batch_size={size}")
    return problem.s / (problem.d - 1), size

"""What is the test error when the training loss reaches a level, as long as attention stays uniform?

With attention at 1/context the model is linear, F = <v, x_1 + x_2>, and training moves v only. Write the optimizer as
u(g) = |g|^p sgn(g): p = 0 is SignGD, and Adam while its gradients keep their size; p = 1 is GD. One example moves a
noise coordinate and all n move the signal, so that the noise's share of the motion is n^-p. Two things compete with the
learned signal on a fresh example: coordinates that its noise shares with training, and its noise's product with the
initial weights.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.theory.errors import overlap_share
from jaxsign.theory.votes import sign_batch_share
from jaxsign.validation.values import real

#: Examples of the mean field: quantiles of initial margins and of noise norms, paired at random once and for all.
EXAMPLES = 256
#: Draws of what a fresh patch shares with training, of the same numbers in every call.
DRAWS = 256
#: How far the mean margin moves in one step of the law of a rule.
STRIDE = 0.02


@dataclasses.dataclass(frozen=True)
class ErrorAtLoss:
    """The test error at a level of the training loss, and what it is made of.

    Args:
      error: test 0-1 error, in [0, 1/2].
      signal: what training has added to the margin of every example through the signal.
      overlap: standard deviation of a fresh margin due to coordinates that training has moved.
      initial: standard deviation of a fresh margin due to the initial weights.
      distance: learning rate times steps that it took, each step weighted by its loss weights (1 for p = 0).
    """

    error: float
    signal: float
    overlap: float
    initial: float
    distance: float


def error_at_loss(problem: Problem, hyper: Hyper, level: float, power: float = 0.0) -> ErrorAtLoss:
    """Test error when the training loss reaches a level, for the optimizer |g|^p sgn(g) at uniform attention.

        err = E Phi( -signal / sqrt(sum_(j<=K) overlap_j^2 + initial^2) ),     K ~ Binomial(s, U)
        signal = 2 ||mu||^(1+p) T,   overlap_j = 2 sigma_p^(1+p) |N_j|^p k_j^(p/2) T / n^p,
        initial^2 = (2 sigma_0^2/m_v) (s sigma_p^2 + ||mu||^2),   T = eta t / m_v^p times the mean of p_i^p

    for k ~ Binomial(n, s/(d-1)) users of a coordinate (k = 1 for disjoint supports). T is where the mean loss of the
    training margins is the level; they grow by

        2 eta/m_v^p ( ||mu||^(1+p) mean(p_j)^p + n^-p s sigma_p^(1+p) E|N|^(1+p) E[k^((p-1)/2)] p_i^p )     a step

    from N(0, initial^2), with p_i = 1/(1 + exp(margin)), which is integrated over quantiles of the initial margins and
    of the noise norms. Mini-batches of B contain a user with probability B/n and divide by B: n^-p becomes B^(1-p)/n;
    for independent supports and p = 0 the overlap is that of `sign_batch_share`.

    Args:
      problem: shapes, overlap law and batch size; context 2.
      hyper: concrete numbers; alpha, label_noise and residual 0.
      level: training loss, in (0, ln 2).
      power: p, in [0, 1]: 0 for SignGD, and for Adam with eps -> 0 before its gradients fall; 1 for GD. Mini-batches of
        patches that share coordinates: 0 or 1.

    Returns:
      ErrorAtLoss.

    Raises:
      ValueError: for other shapes, or numbers outside their range.

    Examples:
      >>> problem, hyper = Problem(n=20, d=2000, s=40, m_k=20, m_v=20), Hyper(sigma_p=2.0, sigma_0=3e-3)
      >>> [round(error_at_loss(problem, hyper, 0.1, p).error, 2) for p in (0.0, 1.0)]
      [0.44, 0.09]

    References:
      Derived here; arXiv 2410.04870 has the model. A statement that names n, d, s, SNR, sigma_0 and the level.
    """
    from scipy.stats import binom

    power = real("power", power, low=0.0, high=1.0)
    real("level", level, low=0.0, high=math.log(2), open_low=True, open_high=True)
    _check(problem, hyper, power)
    mu, sigma_p, initial = float(hyper.mu), float(hyper.sigma_p), _initial(problem, hyper)
    size = problem.n if problem.batch_size is None else problem.batch_size
    density = _density(problem)
    others = np.arange(size)
    users = 1 + others, binom.pmf(others, size - 1, density)  # of a coordinate of a patch that is in the batch
    crowd = float(np.sum(users[1] * users[0] ** ((power - 1) / 2)))
    alone = size ** (1 - power) / problem.n

    norms, scale = _noise_norms(problem.s, power), 2 * sigma_p ** (1 + power)
    signal, reaches, distance = _train(2 * mu ** (1 + power), scale * alone * crowd * norms, initial, level, power)
    used = overlap_share(problem)
    if used and problem.batch_size is not None and power == 0 and density:
        squares = np.full((1, problem.s), sign_batch_share(problem, size) / used * np.mean(reaches**2))
    else:
        squares = (alone * _motion(problem.s, power, norms, reaches, *_users(problem))) ** 2
    return _error(problem, signal, scale**2 * squares, initial, distance)


def rule_error_at_loss(
    problem: Problem, hyper: Hyper, level: float, rule: Callable[[np.ndarray], np.ndarray]
) -> ErrorAtLoss:
    """Test error when the training loss reaches a level, for a coordinate-wise rule u(g), at uniform attention.

        dR/dt = u( sqrt(k) |w| sigma_p p_i/(n m_v) ),   dS/dt = u( ||mu|| mean(p_j)/m_v ),   w ~ N(0, 1)
        M_i = M_i(0) + 2 ||mu|| S + 2 s sigma_p E_k E_w |w| R/sqrt(k),   k - 1 ~ Binomial(n-1, s/(d-1))
        err = E Phi( -2 ||mu|| S / sqrt(4 sigma_p^2 sum_(j<=K) R_j^2 + initial^2) ),   K ~ Binomial(s, U)

    R is how far a noise coordinate moves whose k users' patches sum to w sqrt(k) sigma_p there, S is how far the
    signal's moves. It is close to `error_at_loss` where u is a power, and the law of rules with a scale of their own,
    such as tanh(g/tau), or Adam with a long memory while its gradients last, g/(|g| + eps).

    Args:
      problem: shapes and overlap law; context 2, full batch.
      hyper: concrete numbers; alpha, label_noise and residual 0.
      level: training loss, in (0, ln 2).
      rule: u(g) for arrays of gradients >= 0; odd, increasing.

    Returns:
      ErrorAtLoss; its distance is the learning rate times steps.

    Raises:
      ValueError: for other shapes, or numbers outside their range.

    Examples:
      >>> problem, hyper = Problem(n=20, d=2000, s=40, m_k=20, m_v=20), Hyper(sigma_p=2.0, sigma_0=3e-3)
      >>> [round(rule_error_at_loss(problem, hyper, 0.1, lambda g: np.tanh(g / tau)).error, 2) for tau in (1e-6, 1.0)]
      [0.44, 0.1]

    References:
      Derived here, as `error_at_loss`.
    """
    from scipy.special import expit
    from scipy.stats import binom

    real("level", level, low=0.0, high=math.log(2), open_low=True, open_high=True)
    if problem.batch_size is not None:
        raise ValueError(f"the law of a rule is derived for the full batch, got batch_size={problem.batch_size}")
    _check(problem, hyper, 0.0)
    mu, sigma_p, initial = float(hyper.mu), float(hyper.sigma_p), _initial(problem, hyper)
    users, any_used = _users(problem)
    own = binom.pmf(users - 1, problem.n - 1, _density(problem))
    kept = own > 1e-6
    users, own, any_used = users[kept], own[kept], any_used[kept]
    nodes, weight = np.polynomial.hermite_e.hermegauss(24)
    nodes, weight = nodes[nodes > 0], weight[nodes > 0] / weight[nodes > 0].sum()

    norms = _noise_norms(problem.s, 0.0) / (problem.s * _moment(1.0))
    size = np.sqrt(users)[:, None] * nodes * sigma_p / (problem.n * problem.m_v)
    pull = 2 * problem.s * sigma_p * own[:, None] / np.sqrt(users)[:, None] * weight * nodes
    moved, signal, time, margins = np.zeros((EXAMPLES, *size.shape)), 0.0, 0.0, _start(initial)
    loss = float(np.mean(np.logaddexp(0, -margins)))
    last: tuple[Any, ...] = (loss, signal, time, moved)
    now = last
    while loss > level:
        loss_weight = expit(-margins)
        step, signal_step = (
            rule(loss_weight[:, None, None] * size),
            float(rule(mu * np.mean(loss_weight) / problem.m_v)),
        )
        on_noise = norms * np.sum(pull * step, (1, 2))
        rate = STRIDE / (2 * mu * signal_step + float(np.mean(on_noise)))
        moved, signal, time = moved + rate * step, signal + rate * signal_step, time + rate
        margins = margins + rate * (2 * mu * signal_step + on_noise)
        loss = float(np.mean(np.logaddexp(0, -margins)))
        last, now = now, (loss, signal, time, moved)
    part = math.log(last[0] / level) / math.log(last[0] / now[0])
    signal, time, moved = (a + part * (b - a) for a, b in zip(last[1:], now[1:]))
    rng = np.random.default_rng(1)
    cells = (any_used[:, None] / any_used.sum() * weight).ravel()
    place = rng.choice(cells.size, (DRAWS, problem.s), p=cells / cells.sum())
    reach = moved.reshape(EXAMPLES, -1)[rng.integers(0, EXAMPLES, place.shape), place]
    return _error(problem, 2 * mu * signal, (2 * sigma_p * reach) ** 2, initial, time)


def _initial(problem: Problem, hyper: Hyper) -> float:
    """Standard deviation of a margin due to the initial weights."""
    square = problem.s * float(hyper.sigma_p) ** 2 + float(hyper.mu) ** 2
    return float(hyper.sigma_0) * math.sqrt(2 / problem.m_v * square)


def _start(initial: float) -> np.ndarray:
    """Quantiles of the initial margins, in an order that has nothing to do with that of the noise norms."""
    from scipy.stats import norm

    return np.asarray(initial * norm.ppf((np.random.default_rng(0).permutation(EXAMPLES) + 0.5) / EXAMPLES))


def _density(problem: Problem) -> float:
    """Probability that another patch uses a coordinate of a patch."""
    return problem.s / (problem.d - 1) if problem.supports == "independent" else 0.0


def _users(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """How many patches use a coordinate that some patch uses: 1 to n, and their probabilities."""
    from scipy.stats import binom

    count, density = np.arange(1, problem.n + 1), _density(problem)
    chance = binom.pmf(count, problem.n, density) if density else np.asarray(count == 1, float)
    return count, chance / chance.sum()


def _error(problem: Problem, signal: float, squares: np.ndarray, initial: float, distance: float) -> ErrorAtLoss:
    """The error where a fresh margin has this signal, and each of K shared coordinates adds one of `squares` (., s)."""
    from scipy.stats import binom, norm

    used = overlap_share(problem)
    weight = binom.pmf(np.arange(problem.s + 1), problem.s, used)
    total = np.sqrt(np.insert(np.cumsum(squares, 1), 0, 0, 1) + initial**2)
    with np.errstate(divide="ignore"):
        error = float(np.sum(weight * np.mean(norm.cdf(-signal / total), 0)))
    return ErrorAtLoss(error, signal, math.sqrt(problem.s * used * np.mean(squares)), initial, distance)


def _check(problem: Problem, hyper: Hyper, power: float) -> None:
    """Raises ValueError for what the law is not derived for, and for numbers outside their range."""
    hyper.validate(problem)
    if problem.context != 2:
        raise ValueError(f"the law of the error at equal loss is derived for context=2, got context={problem.context}")
    if problem.noise != "gaussian":
        raise ValueError(f'the law of the error at equal loss is derived for noise="gaussian", got {problem.noise!r}')
    if problem.batch_size is not None and problem.supports == "independent" and power not in (0, 1):
        raise ValueError(f"mini-batches of patches that share coordinates need power=0 or power=1, got power={power:g}")
    for name in ("alpha", "label_noise", "residual"):
        if float(getattr(hyper, name)) != 0:
            raise ValueError(
                f"the law of the error at equal loss is derived for {name}=0, got {name}={getattr(hyper, name)}"
            )


def _moment(order: float) -> float:
    """E|N|^order of a standard normal N."""
    return 2 ** (order / 2) * math.gamma((order + 1) / 2) / math.sqrt(math.pi)


def _motion(
    s: int, power: float, norms: np.ndarray, reaches: np.ndarray, users: np.ndarray, chance: np.ndarray
) -> np.ndarray:
    """(DRAWS, s) how far coordinates move, |x|^p k^(p/2) R_i in units of sigma_p^p.

    For p > 0 that is heavy-tailed where s is small, so that its distribution counts and not only its mean square. x is
    a coordinate of a patch with its norm: x^2 is a Beta(1/2, (s-1)/2) share of it, exactly so for p = 1, and a patch
    with a small norm is trained for longer.
    """
    if power == 0:
        return np.full((1, s), math.sqrt(np.mean(reaches**2)))
    rng = np.random.default_rng(1)
    patch = rng.integers(0, EXAMPLES, (DRAWS, s))
    share = s * rng.beta(0.5, (s - 1) / 2, patch.shape) if s > 1 else np.ones(patch.shape)
    size = np.sqrt(share) * (norms / np.mean(norms))[patch] ** (1 / (1 + power))
    return np.asarray((size * np.sqrt(rng.choice(users, patch.shape, p=chance))) ** power * reaches[patch])


def _noise_norms(s: int, power: float) -> np.ndarray:
    """Quantiles of ||z||_(1+p)^(1+p) over s standard normals, by a gamma law with its mean and variance."""
    from scipy.stats import gamma

    mean = _moment(1 + power)
    variance = _moment(2 * (1 + power)) - mean**2
    place = (np.arange(EXAMPLES) + 0.5) / EXAMPLES
    return np.asarray(gamma.ppf(place, a=s * mean**2 / variance, scale=variance / mean))


def _train(
    on_signal: float, on_noise: np.ndarray, initial: float, level: float, power: float
) -> tuple[float, np.ndarray, float]:
    """(signal's part of the margins, (EXAMPLES,) the noise's motion per unit of `on_noise`, time) at the level.

    dM_i/dT = on_signal mean(p_j)^p + on_noise_i p_i^p
    """
    from scipy.integrate import solve_ivp
    from scipy.special import expit

    start = _start(initial)

    def margins(state: np.ndarray) -> np.ndarray:
        return np.asarray(start + on_signal * state[-1] + on_noise * state[:-1])

    def pull(_: float, state: np.ndarray) -> np.ndarray:
        weight = expit(-margins(state))
        return np.append(weight**power, np.mean(weight) ** power)

    def excess(_: float, state: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, -margins(state)))) - level

    excess.terminal = True  # type: ignore[attr-defined]
    scale = 1 / (on_signal + float(np.mean(on_noise)))
    end = solve_ivp(
        pull, (0, np.inf), np.zeros(EXAMPLES + 1), events=excess, rtol=1e-6, atol=1e-9 * scale, first_step=scale / 100
    )
    state = end.y[:, -1]
    return on_signal * float(state[-1]), np.asarray(state[:-1]), float(end.t[-1])

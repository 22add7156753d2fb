"""The exact one-step laws against autodiff and a sign step; the closed forms against NumPy simulations."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxsign as js
from jaxsign import theory

ETA = 0.01


@functools.cache
def stepped(task):
    """One SignGD step of the full weights, jitted."""

    def step(params, data):
        gradient = jax.grad(task.loss)(params, data, js.Hyper(sigma_p=2.0))
        return optax.apply_updates(params, jax.tree.map(lambda g: -ETA * jnp.sign(g), gradient))

    return jax.jit(step)


def noises(params, data, mu):
    """(q_i, k_i, q_mu, k_mu, v_i, v_mu) from the full weights, in float64 NumPy."""
    w_q, w_k, w_v, y = (np.asarray(a, float) for a in (params.w_q, params.w_k, params.w_v, data.y))
    xi, v = np.asarray(data.basis, float)[1:] * y[:, None], w_v[0].mean(0) - w_v[1].mean(0)
    return w_q @ xi.T, w_k @ xi.T, mu * w_q[:, 0], mu * w_k[:, 0], xi @ v, mu * v[0]


@pytest.mark.x64
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("label_noise", [0.0, 0.3])
def test_one_step_laws_are_the_sign_of_autodiff(problem, oracle, heads, label_noise):
    sizes = dataclasses.replace(problem, heads=heads, supports="disjoint")
    task, mu, spread = js.two_layer(sizes), 1.5, []
    for seed in range(6):
        params, data, _ = oracle.draw(sizes, seed, mu=mu, sigma_0=0.3, label_noise=label_noise)
        after = noises(stepped(task)(params, data), data, mu)
        q, k, q_mu, k_mu, v, v_mu = before = noises(params, data, mu)
        moved = [b - a for a, b in zip(before, after)]
        y, c = np.asarray(data.y, float), np.asarray(data.y * data.y_clean, float)
        noise = np.asarray(data.basis, float)[1:]
        xs = [np.stack([clean * mu * np.eye(60)[0], xi]) for clean, xi in zip(np.asarray(data.y_clean), noise)]
        attention = np.stack([oracle.attention(params, x) for x in xs], 1)
        p = np.array([1 / (1 + np.exp(label * oracle.logit(params, x))) for label, x in zip(y, xs)])
        g, l1 = v - c * v_mu, np.abs(noise).sum(1)
        s = (attention[:, :, 0, 0] + attention[:, :, 1, 0]).sum(0)
        a, b = attention[:, :, 0].prod(-1), attention[:, :, 1].prod(-1)
        l1, g, c, p, s, a, b, q, k, q_mu, k_mu = map(jnp.asarray, (l1, g, c, p, s, a, b, q, k, q_mu, k_mu))
        law = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-4 * ETA * float(l1.max()))
        law(moved[4], theory.value_noise_step(ETA, l1))
        law(moved[5], theory.value_signal_step(ETA, mu, p, s, c))
        for head in range(heads):
            own = slice(4 * head, 4 * head + 4)
            a_i, b_i = a[head], b[head]
            law(moved[0][own], theory.query_noise_step(ETA, l1, g, c, k[own], k_mu[own]))
            law(moved[1][own], theory.key_noise_step(ETA, l1, g, c, a_i, b_i, q[own], q_mu[own]))
            law(moved[2][own], theory.query_signal_step(ETA, mu, p, g, c, a_i, k[own], k_mu[own]))
            law(moved[3][own], theory.key_signal_step(ETA, mu, p, g, c, a_i, b_i, q[own], q_mu[own]))
        spread.append(attention[..., 0])
    assert np.min(spread) < 0.05  # attention was far from 1/2 in places
    assert np.max(spread) > 0.95


#: d -> test error of SignGD and GD at n=20, s=40, sigma_p=2, mu=1, as derived independently.
LAW = {1000: (0.458, 0.188), 2000: (0.444, 0.106), 8000: (0.383, 0.006), 20000: (0.278, 0.000)}


@pytest.mark.parametrize(("d", "expected"), LAW.items())
def test_test_error_laws_are_the_derived_table(d, expected):
    problem = dataclasses.replace(js.presets.paper_like()[0], d=d)
    laws = theory.sign_test_error(problem, 1.0, 2.0), theory.gd_test_error(problem, 1.0, 2.0)
    np.testing.assert_allclose(laws, expected, atol=6e-4)
    rng = np.random.default_rng(0)
    shared = rng.binomial(40, 1 - (1 - 40 / (d - 1)) ** 20, 200_000)
    error = stats.norm.cdf(-1.0 / (2.0 * np.sqrt(np.maximum(shared, 1e-300)))).mean()
    np.testing.assert_allclose(laws[0], error, atol=2e-3)


@pytest.mark.parametrize("context", [2, 4])
def test_test_errors_are_those_of_linear_classifiers(context):
    """With uniform attention the first step from v = 0 makes v the sign (SignGD) or the mean (GD) of y sum_a x_a."""
    n, d, s, sigma_p = 8, 301, 60 // (context - 1), 0.9
    problem, rng = js.Problem(n=n, d=d, s=s, m_k=1, m_v=1, context=context), np.random.default_rng(0)

    def patches(count):
        """The sum of an example's noise patches."""
        count *= context - 1
        chosen = rng.random((count, d - 1)).argsort(1)[:, :s]
        out = np.zeros((count, d))
        np.put_along_axis(out[:, 1:], chosen, sigma_p * rng.standard_normal((count, s)), 1)
        return out.reshape(-1, context - 1, d).sum(1)

    errors = []
    for _ in range(150):
        mean = patches(n).mean(0)  # y xi has the law of xi
        mean[0] = 1.0
        fresh = patches(100)
        fresh[:, 0] = 1.0
        errors.append([(fresh @ v <= 0).mean() for v in (np.sign(mean), mean)])
    rate, error = np.mean(errors, 0), np.std(errors, 0) / np.sqrt(len(errors))
    laws = np.array([theory.sign_test_error(problem, 1.0, sigma_p), theory.gd_test_error(problem, 1.0, sigma_p)])
    assert np.all(laws > 0.02)
    assert np.all(np.abs(rate - laws) < 4 * error + [0, 0.01])  # GD's law is Gaussian in the limit of large s


def test_overlap_and_its_limits():
    base = js.presets.paper_like()[0]
    assert theory.overlap_share(base) == pytest.approx(1 - (1 - 40 / 1999) ** 20)
    assert theory.overlap_share(dataclasses.replace(base, supports="disjoint")) == pytest.approx(800 / 1999)
    limit = js.presets.theory()[0]
    assert theory.overlap_share(limit) == 0
    assert theory.sign_test_error(limit, 1.0, 2.0) == theory.gd_test_error(limit, 1.0, 2.0) == 0
    grid = theory.sign_test_error(base, 1.0, np.array([0.5, 2.0, 8.0]))
    assert grid.shape == (3,)
    assert np.all(np.diff(grid) > 0)
    longer = dataclasses.replace(base, context=5)
    for law in (theory.sign_test_error, theory.gd_test_error):
        assert law(longer, 1.0, 2.0) > law(base, 1.0, 2.0)  # more noise to meet, and the same signal


def test_stage_times_meet_the_measured_ones():
    """5 %..95 % bands of an independent prototype at learning rate 1e-4, widened by a fifth."""
    measured = {
        theory.stage_one_time: (0.5, 3),
        theory.stage_two_time: (11, 16),
        theory.stage_three_time: (49, 111),
        theory.stage_four_time: (84, 92),
    }
    for stage, (low, high) in measured.items():
        assert 0.8 * low < stage(*js.presets.paper_like(), 1e-4) < 1.2 * high, stage.__name__
        assert 10 * stage(*js.presets.paper_like(), 1e-3) == pytest.approx(stage(*js.presets.paper_like(), 1e-4))
        if stage is not theory.stage_two_time:  # where supports are disjoint its alternating pairs count steps
            assert 10 * stage(*js.presets.theory(), 1e-3) == pytest.approx(stage(*js.presets.paper_like(), 1e-4))


def pairs_of_noise(start, step, drift, m_k, steps, count=200_000):
    """Share of (query, key) noise with opposite signs by the one-step laws, q_mu = -k_mu = drift t, and A/B by M."""
    rng = np.random.default_rng(0)
    q, k = start * rng.standard_normal((2, count))
    shares = []
    for t in range(steps):
        shares.append(np.mean(np.sign(q) != np.sign(k)))
        ratio = np.cosh(min(m_k * np.mean(q * k) / 2, 100)) ** 2
        q, k = q + step * np.sign(k + drift * t), k + step * np.sign(q + ratio * drift * t)
    return np.array(shares)


@pytest.mark.parametrize(("sigma_0", "eta", "mu"), [(3e-3, 1e-4, 1.0), (3e-3, 1e-4, 0.1), (3e-3, 1e-5, 1.0)])
def test_signs_align_when_simulated_pairs_do(sigma_0, eta, mu):
    problem, hyper = js.presets.theory()
    hyper = dataclasses.replace(hyper, sigma_0=sigma_0, mu=mu)
    l1, l2 = 40 * 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(40)
    shares = pairs_of_noise(sigma_0 * l2, eta * l1, eta * mu, problem.m_k, 800)
    simulated = np.flatnonzero(shares <= 0.01)[0]
    law = theory.stage_two_time(problem, hyper, eta) - theory.stage_one_time(problem, hyper, eta)
    assert law == pytest.approx(simulated, rel=0.15, abs=2)


@pytest.mark.parametrize(("mu", "sigma_0"), [(1.0, 1e-3), (5.0, 1e-3), (1.0, 3e-3)])
def test_opposed_noise_turns_when_simulated_noise_does(mu, sigma_0):
    """One pair opposed to q_mu = mu eta t = -k_mu, in an attention that aligned pairs make decay."""
    problem, hyper = js.presets.theory()
    hyper, eta = dataclasses.replace(hyper, sigma_0=sigma_0, mu=mu), 1e-5
    h, start = eta * 40 * 2 * math.sqrt(2 / math.pi), sigma_0 * 2 * math.sqrt(40)
    rows = start * np.random.default_rng(1).standard_normal((2, 4000))
    q = k = -start * math.sqrt(2 / math.pi)
    score, key, t = 0.0, 0, 0
    while q <= 0:
        t += 1
        if score < 100:
            score = problem.m_k * np.mean(rows[0] * rows[1])
            rows = rows + h * np.sign(rows[::-1])
        ratio = np.cosh(score / 2) ** 2
        q, k = q + h * np.sign(k + mu * eta * t), k + h * np.sign(ratio * mu * eta * t + q)
        key = t if not key and k > 0 else key
    np.testing.assert_allclose(theory.stage_five_time(problem, hyper, eta, share=0.5), (key, t), rtol=0.04)


def test_s21_decays_as_the_mean_over_simulated_rows_and_norms():
    problem, hyper = js.presets.theory()
    h, start = 1e-5 * 40 * 2 * math.sqrt(2 / math.pi), float(hyper.sigma_0) * 2 * math.sqrt(40)
    rng = np.random.default_rng(2)
    norms = np.abs(rng.standard_normal((4000, problem.s))).mean(1) * math.sqrt(math.pi / 2)
    late = round(theory.stage_four_time(problem, hyper, 1e-5))
    for steps, below in ((round(0.97 * late), False), (round(1.03 * late), True)):
        q, k = start * rng.standard_normal((2, 4000))
        for _ in range(steps):
            q, k = q + h * np.sign(k), k + h * np.sign(q)
        product = np.mean(q * k)  # for the mean norm; the others take norms times as many steps
        assert 0 < product < 1
        scores = problem.m_k * np.array([product * norm**2 for norm in norms])
        assert (np.mean(1 / (1 + np.exp(scores))) < 0.01) == below


def test_value_noise_grows_less_where_patches_share_coordinates():
    problem = js.Problem(n=8, d=101, s=30, m_k=2, m_v=2)
    rng, shares = np.random.default_rng(0), []
    for _ in range(300):
        noise = np.zeros((8, 100))
        for row in noise:
            row[rng.choice(100, 30, replace=False)] = rng.standard_normal(30)
        shares.append(np.sum(noise * np.sign(noise.sum(0)), 1) / np.abs(noise).sum(1))
    assert theory.value_noise_share(problem) == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / 2400**0.5)
    assert theory.value_noise_share(dataclasses.replace(problem, d=1001, supports="disjoint")) == 1.0
    assert theory.value_noise_share(dataclasses.replace(problem, n=1)) == 1.0
    with pytest.raises(ValueError, match="got noise='laplace'"):
        theory.value_noise_share(dataclasses.replace(problem, noise="laplace"))


def test_late_rates_are_those_of_scalar_descent():
    """Late, y_i F_i = 2 v_i: SignGD moves v_i by 2 eta l1_i a step; Adam's rate is ruled by sqrt(v)."""
    eta, l1 = 1e-2, np.array([3.0, 2.0, 5.0])
    loss = [np.log1p(np.exp(-2 * (2 * eta * l1 * t))).mean() for t in (400, 500)]
    assert theory.late_loss_rate(eta, l1) == pytest.approx(math.log(loss[0] / loss[1]) / 100, rel=0.01)
    np.testing.assert_allclose(theory.late_loss_rate(eta, np.stack([l1, 2 * l1])), [0.08, 0.16])
    for b2 in (0.9, 0.99):
        w, m, v, losses = 0.0, 0.0, 0.0, []
        for t in range(1, 3001):
            losses.append(np.logaddexp(0, -w))
            g = -1 / (1 + math.exp(w))
            m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g * g
            w -= 0.3 * (m / (1 - 0.9**t)) / math.sqrt(v / (1 - b2**t))
        assert theory.adam_late_loss_rate(b2) == pytest.approx(math.log(losses[1000] / losses[2500]) / 1500, rel=0.02)

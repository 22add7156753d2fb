"""The transformer with residuals: against NumPy by hand, and the contraction bound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.systems import residual as system
from jaxsign.systems.residual import ResidualHyper, ResidualProblem, residual_attention
from jaxsign.training.start import draw as draw_start

PROBLEM = ResidualProblem(n=4, d=6, d_ff=7, d_out=3, depth=2)
HYPER = ResidualHyper(attention_residual=0.7, ffn_residual=1.3, temperature=0.2)


def draw(problem=PROBLEM, seed=0):
    """(params, data) in float64 NumPy, from NumPy's own generator."""
    rng = np.random.default_rng(seed)
    d, f, layers = problem.d, problem.d_ff, problem.depth
    shapes = [(layers, d, d)] * 3 + [(layers, d, f), (layers, f, d), (d, problem.d_out)]
    params = [rng.standard_normal(s) / np.sqrt(s[-2]) for s in shapes]
    return params, (rng.standard_normal((problem.n, d)), rng.standard_normal((problem.n, problem.d_out)))


def by_hand(params, x, hyper):
    """([X W_V], [H], Z, F) token by token in float64."""
    w_q, w_k, w_v, w_1, w_2, w_u = params
    n, d = x.shape
    values, outputs = [], []
    for layer in range(len(w_q)):
        value = x @ w_v[layer]
        h = np.zeros_like(x)
        for i in range(n):
            score = [x[i] @ w_q[layer] @ w_k[layer].T @ x[j] / (hyper.temperature * d**0.5) for j in range(n)]
            weight = np.exp(np.array(score) - max(score))
            weight /= weight.sum()
            h[i] = sum(weight[j] * value[j] for j in range(n)) + hyper.attention_residual * x[i]
        hidden = np.where(h @ w_1[layer] > 0, h @ w_1[layer], 0)
        values.append(value)
        outputs.append(h)
        x = hidden @ w_2[layer] + hyper.ffn_residual * h
    return values, outputs, x, x @ w_u


def loss_by_hand(params, x, y, hyper):
    return 0.5 * np.sum((by_hand(params, x, hyper)[3] - y) ** 2)


def arrays(params, data):
    """The same as JAX arrays of the default float."""
    cast = [jnp.asarray(a, jnp.zeros(()).dtype) for a in (*params, *data)]
    return system.ResidualParams(*cast[:-2]), system.Tokens(*cast[-2:])


@pytest.mark.x64
def test_forward_loss_and_spectra_are_those_by_hand(eps):
    params, (x, y) = draw()
    values, outputs, features, output = by_hand(params, x, HYPER)
    task = residual_attention(PROBLEM)
    given, data = arrays(params, (x, y))
    flow = jax.jit(lambda p: system.forward(p, data.x, HYPER))(given)
    np.testing.assert_allclose(flow.output, output, rtol=1e3 * eps, atol=1e3 * eps)
    np.testing.assert_allclose(flow.values, values, rtol=1e3 * eps, atol=1e3 * eps)
    seen = jax.jit(lambda p: task.observe(p, data, None, HYPER))(given)
    np.testing.assert_allclose(seen["train_loss"], loss_by_hand(params, x, y, HYPER), rtol=1e3 * eps)
    for layer, h in enumerate(outputs):
        s = np.linalg.svd(h, compute_uv=False)
        np.testing.assert_allclose(seen["attention_singular_values"][layer], s, rtol=1e4 * eps)
        np.testing.assert_allclose(seen["attention_condition"][layer], s[0] / s[3], rtol=1e4 * eps)
        np.testing.assert_allclose(seen["attention_stable_rank"][layer], np.sum(h**2) / s[0] ** 2, rtol=1e4 * eps)
        v = np.linalg.svd(values[layer], compute_uv=False)
        np.testing.assert_allclose(seen["value_condition"][layer], v[0] / v[3], rtol=1e4 * eps)
    s = np.linalg.svd(features, compute_uv=False)
    np.testing.assert_allclose(seen["feature_singular_values"], s, rtol=1e4 * eps)
    np.testing.assert_allclose(seen["feature_sigma_min"], s[3], rtol=1e4 * eps)


@pytest.mark.x64(only=True)
def test_gradient_is_that_of_finite_differences_by_hand():
    params, (x, y) = draw()
    given, data = arrays(params, (x, y))
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(residual_attention(PROBLEM).loss))(given, data, HYPER))
    rng, h = np.random.default_rng(1), 1e-6
    for k, found in enumerate(gradient):
        for _ in range(5):
            place = tuple(rng.integers(0, size) for size in found.shape)
            sides = []
            for sign in (1, -1):
                moved = [w.copy() for w in params]
                moved[k][place] += sign * h
                sides.append(loss_by_hand(moved, x, y, HYPER))
            assert float(found[place]) == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-5, abs=1e-7)
    residual = by_hand(params, x, HYPER)[3] - y
    np.testing.assert_allclose(gradient.w_u, by_hand(params, x, HYPER)[2].T @ residual, rtol=1e-10)


def test_what_is_drawn_has_the_stated_scales():
    problem = ResidualProblem(n=60, d=80, d_ff=120, d_out=50, depth=2)

    @jax.jit
    def draw(data, init):
        sampled = residual_attention(problem).sample(js.stream(data, "data"), ResidualHyper(), None)
        return sampled, system.init(init, problem)

    data, params = jax.tree.map(np.asarray, draw(jax.random.key(0), jax.random.key(1)))
    assert np.mean(np.sum(data.x**2, axis=1)) == pytest.approx(1, abs=0.05)
    assert np.std(data.y) == pytest.approx(1, abs=0.05)
    for name, weight in params._asdict().items():
        fan_in = {"w_2": 120}.get(name, 80)
        assert np.std(weight) * fan_in**0.5 == pytest.approx(1, abs=0.05), name


def test_singular_values_of_what_is_not_finite_are_nan_and_leave_others_alone(capfd):
    a = np.stack([np.eye(2, 3), np.full((2, 3), np.nan), 2 * np.eye(2, 3)]).astype(np.float32)
    found = np.asarray(jax.jit(jax.vmap(system.singular_values))(a))
    np.testing.assert_allclose(found[[0, 2]], [[1, 1], [2, 2]])
    assert np.isnan(found[1]).all()
    assert capfd.readouterr().err == ""


@pytest.mark.x64(only=True)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("residual", [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_contraction_bound_is_never_violated_at_small_steps(depth, residual):
    eta, task = 1e-4, residual_attention(ResidualProblem(n=6, d=8, d_ff=10, d_out=3, depth=depth))
    run = js.train(
        jax.random.key(depth), task, ResidualHyper(*residual), optax.sgd(eta), steps=200, record=1,
        observables=["train_loss", "contraction", "sigma_before", "feature_sigma_min", "step_curvature"],
    )  # fmt: skip
    loss, sigma = np.asarray(run.trace["train_loss"]), np.asarray(run.trace["feature_sigma_min"])
    np.testing.assert_allclose(run.trace["contraction"][1:], loss[1:] / loss[:-1], rtol=1e-12)
    np.testing.assert_allclose(run.trace["sigma_before"][1:], sigma[:-1], rtol=1e-9, atol=1e-14)
    assert (eta * np.asarray(run.trace["step_curvature"])[1:]).max() < 1  # small steps, as the bound's proof wants
    assert (loss[1:] <= (1 - eta * sigma[:-1] ** 2) * loss[:-1]).all()


@pytest.mark.x64(only=True)
def test_the_bound_with_the_steps_curvature_is_sharp_about_when_it_holds():
    """It holds wherever eta c <= 1; some step with eta c > 2 raises the loss."""
    task = residual_attention(ResidualProblem(n=6, d=8, d_ff=10, d_out=3))
    seen = {"safe": 0, "rise": 0}
    for eta in (3e-3, 0.03, 0.1, 0.15):
        run = js.train(
            jax.random.key(2), task, ResidualHyper(), optax.sgd(eta), steps=60, record=1,
            observables=["train_loss", "contraction", "sigma_before", "step_curvature"],
        )  # fmt: skip
        ratio, sigma, c = (np.asarray(run.trace[k])[1:] for k in ("contraction", "sigma_before", "step_curvature"))
        there = np.isfinite(ratio) & (np.asarray(run.trace["train_loss"])[1:] > 1e-12)
        safe = there & (eta * c <= 1)
        assert (ratio[safe] <= 1 - eta * sigma[safe] ** 2).all()
        middle = there & (eta * c <= 2)
        assert (ratio[middle] <= 1 - 2 * (1 - eta * c[middle] / 2) * eta * sigma[middle] ** 2 + 1e-13).all()
        assert ((ratio > 1) == (eta * c > 2))[there].all()
        seen["safe"] += int(safe.sum())
        seen["rise"] += int((ratio[there] > 1).sum())
    assert min(seen.values()) > 0


@pytest.mark.x64(only=True)
def test_the_readout_alone_contracts_at_the_rates_of_the_singular_values():
    """With W_U alone trained every left singular direction of Z decays as (1 - eta sigma_i^2)^t."""
    task, eta, steps = residual_attention(PROBLEM), 0.02, 30
    key = jax.random.key(5)
    data, _, params, _ = jax.jit(lambda key: draw_start(task, key, HYPER))(key)
    _, _, features, output = by_hand([np.asarray(w) for w in params], np.asarray(data.x), HYPER)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    start = u.T @ (output - np.asarray(data.y))
    run = js.train(
        key, task, HYPER, optax.sgd(eta), steps=steps, record=1, trainable=("w_u",),
        observables=["train_loss", "attention_condition"],
    )  # fmt: skip
    law = [0.5 * np.sum((1 - eta * s[:, None] ** 2) ** (2 * t) * start**2) for t in range(steps + 1)]
    np.testing.assert_allclose(run.trace["train_loss"], law, rtol=1e-10)
    np.testing.assert_allclose(
        run.trace["attention_condition"], np.asarray(run.trace["attention_condition"])[:1].repeat(31, 0)
    )


def test_more_tokens_than_dimensions_have_no_bound():
    task = residual_attention(ResidualProblem(n=7, d=4, d_ff=5, d_out=2))
    run = js.train(jax.random.key(0), task, ResidualHyper(), optax.sgd(1e-3), steps=4, record=2)
    assert np.asarray(run.trace["sigma_before"])[1:].tolist() == [0, 0]
    assert run.trace["feature_singular_values"].shape == (3, 4)
    assert bool((run.trace["feature_sigma_min"] > 0).all())


def test_residuals_are_mapped_numbers_and_at_high_temperature_attention_is_the_mean(eps):
    params, data = arrays(*draw())
    traces = []

    @jax.jit
    def flow(hyper):
        traces.append(hyper)
        return system.forward(params, data.x, hyper)

    cast = lambda *numbers: ResidualHyper(*(jnp.asarray(v, jnp.zeros(()).dtype) for v in numbers))  # noqa: E731
    plain, added = flow(cast(0, 0, 1e9)), flow(cast(1, 0, 1e9))
    assert len(traces) == 1
    mean = np.asarray(plain.values)[0].mean(0)
    np.testing.assert_allclose(plain.attention[0], np.tile(mean, (4, 1)), rtol=1e3 * eps, atol=1e3 * eps)
    np.testing.assert_allclose(added.attention[0] - plain.attention[0], data.x, rtol=1e3 * eps, atol=1e3 * eps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualProblem(depth=0), "depth must be an int >= 1, got depth=0"),
        (lambda: ResidualProblem(d=0), "d must be an int >= 1, got d=0"),
        (lambda: ResidualProblem(n=2.0), "n must be an int >= 1, got n=2.0"),
        (lambda: ResidualHyper(temperature=0.0).validate(), "temperature must be a finite number in (0, inf)"),
        (lambda: ResidualHyper(temperature=-1).validate(), "got temperature=-1"),
        (lambda: ResidualHyper(ffn_residual=np.nan).validate(), "ffn_residual must be a finite number"),
        (lambda: residual_attention(js.Problem(n=2, d=9, s=2, m_k=1, m_v=1)), "problem must be a js.ResidualProblem"),
        (lambda: residual_attention(PROBLEM).validate(js.Hyper(2.0)), "hyper must be a js.ResidualHyper"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)

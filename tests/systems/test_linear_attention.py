"""The linear transformer against a NumPy loop and a closed form; laws of its data; what its task observes."""

import dataclasses
import functools
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxsign as js
from jaxsign.systems import linear_attention as system

X64 = jax.config.jax_enable_x64
HYPER = js.RegressionHyper(init_std=0.3)


def by_hand(p, q, z, softmax=False):
    """Z <- Z + (1/n) P Z M (Z^T Q Z) on one prompt in float64, sum by sum."""
    z, n = np.asarray(z, np.float64), z.shape[1] - 1
    for pl, ql in zip(np.asarray(p, np.float64), np.asarray(q, np.float64)):
        scores = np.array([[z[:, i] @ ql @ z[:, j] for j in range(n + 1)] for i in range(n + 1)])
        if softmax:
            scores = np.exp(scores) / np.exp(scores).sum(0)
        moved = np.zeros_like(z)
        for j in range(n + 1):
            for i in range(n):  # M leaves the last column out
                moved[:, j] += pl @ z[:, i] * scores[i, j]
        z = z + moved / n
    return -z[-1, -1]


#: One program each: operation by operation they would be fifty.
predict, forward = jax.jit(system.predict), jax.jit(system.forward, static_argnums=2)


def sampled(problem, key, count):
    return jax.jit(lambda key: system.sample_prompts(key, problem, HYPER, count))(jax.random.key(key))


@functools.cache
def draws(problem):
    @jax.jit
    def draw(data, init):
        params = system.init(init, problem, HYPER)
        return system.sample_prompts(data, problem, HYPER, 5), params, system.padded(params, problem.width)

    return draw(jax.random.key(1), jax.random.key(2))


def drawn(**fields):
    problem = js.RegressionProblem(d=3, n_context=7, **fields)
    return problem, *draws(problem)


@pytest.mark.x64
@pytest.mark.parametrize("form", ["sparse", "full"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_predictions_are_those_of_a_numpy_loop(form, depth):
    _, prompts, params, (p, q) = drawn(form=form, depth=depth)
    matrix = np.asarray(prompts.matrix())
    expected = [by_hand(p, q, matrix[..., b]) for b in range(5)]
    for found in (predict(params, prompts), forward(params, jnp.asarray(matrix))):
        np.testing.assert_allclose(found, expected, rtol=1e-12 if X64 else 1e-4, atol=1e-12 if X64 else 1e-5)


def test_softmax_attention_is_that_of_a_numpy_loop():
    _, prompts, params, (p, q) = drawn(attention="softmax", depth=2)
    matrix = np.asarray(prompts.matrix())
    expected = [by_hand(p, q, matrix[..., b], softmax=True) for b in range(5)]
    np.testing.assert_allclose(forward(params, jnp.asarray(matrix), "softmax"), expected, rtol=1e-4)


def test_the_sparse_form_is_the_full_one_with_its_zeros():
    _, prompts, params, whole = drawn(depth=3)
    assert params.p.shape == (3, 3, 3)
    assert whole.p.shape == (3, 4, 4)
    np.testing.assert_array_equal(np.asarray(whole.p)[:, 3], np.broadcast_to([0, 0, 0, 1], (3, 4)))
    np.testing.assert_array_equal(np.asarray(whole.q)[:, 3], 0)
    np.testing.assert_allclose(predict(whole, prompts), predict(params, prompts), rtol=1e-6)


@pytest.mark.x64(only=True)
def test_gradients_through_gram_matrices_are_those_of_the_definition():
    _, prompts, params, _ = drawn(depth=3)

    def loss(predict):
        return lambda p: jnp.mean((predict(p) - prompts.target) ** 2)

    mine = jax.jit(jax.grad(loss(lambda p: system.predict(p, prompts))))(params)
    theirs = jax.jit(jax.grad(loss(lambda p: system.forward(p, prompts.matrix()))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), mine, theirs)


@pytest.mark.x64
def test_one_layer_is_one_step_of_preconditioned_gradient_descent():
    """P' = 0, Q' = -A: the prediction is <A^T X^T y / n, x_q>, one step from w = 0 on the prompt's own loss."""
    problem, prompts, _, _ = drawn(depth=1)
    a = np.random.default_rng(0).standard_normal((3, 3))
    params = system.LinearParams(jnp.zeros((1, 3, 3)), jnp.asarray(-a)[None])
    x, labels = np.asarray(prompts.x, np.float64), np.asarray(prompts.y, np.float64)
    for b in range(5):
        context, question = x[:, :-1, b], x[:, -1, b]
        step = (
            context @ labels[:-1, b] / problem.n_context
        )  # minus the gradient of (1/2n) sum (<w, x_i> - y_i)^2 at w = 0
        found = predict(params, jax.tree.map(lambda leaf, b=b: np.asarray(leaf)[..., b : b + 1], prompts))
        np.testing.assert_allclose(found[0], step @ a @ question, rtol=1e-9 if X64 else 1e-4)


def test_the_best_single_layer_has_the_loss_of_the_closed_form():
    """For x ~ N(0, I) the best preconditioner is a I with a = n/(n+d+1), and its loss is d (1 - n/(n+d+1))."""
    d, n = 3, 8
    problem = js.RegressionProblem(d=d, n_context=n, depth=1, batch_size=1000, n_eval=20_000)
    schedule = optax.exponential_decay(0.05, 100, 0.5)
    run = js.train(
        jax.random.key(0), js.linear_attention(problem), HYPER, optax.adam(schedule), steps=700, record=700,
        observables=["train_loss"],
    )  # fmt: skip
    np.testing.assert_allclose(-run.params.q[0], n / (n + d + 1) * np.eye(3), atol=0.04)
    np.testing.assert_allclose(run.trace["train_loss"][-1], d * (1 - n / (n + d + 1)), rtol=0.05)


def test_inputs_have_their_laws():
    problem = js.RegressionProblem(d=4, n_context=3)
    draw = {
        name: np.asarray(sampled(dataclasses.replace(problem, inputs=name), 0, 3000).x, np.float64)
        for name in ("normal", "gamma", "spherical")
    }
    assert stats.kstest(draw["normal"].ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose((draw["spherical"] ** 2).sum(0), 1, rtol=1e-5)
    first = draw["spherical"][0].ravel()  # (x_1 + 1)/2 of a uniform direction is Beta((d-1)/2, (d-1)/2)
    assert stats.kstest((first + 1) / 2, stats.beta(1.5, 1.5).cdf).pvalue > 1e-3
    squares = (draw["gamma"] ** 2).sum(0).ravel()
    assert stats.kstest(squares[squares > 1e-9], lambda r: _above(stats.gamma(0.1, scale=10), r, 1e-9)).pvalue > 1e-3
    share = stats.gamma(0.1, scale=10).cdf(1e-9)
    assert abs(np.mean(squares <= 1e-9) - share) < 4 * np.sqrt(share / squares.size)


def _above(law, r, low):
    return (law.cdf(r) - law.cdf(low)) / law.sf(low)


@pytest.mark.x64
def test_linear_targets_are_linear_and_paired_with_those_of_a_relu_network():
    """In d = 3 the seven labels of the context determine the answer; the inputs are the same for both targets."""
    _, prompts, _, _ = drawn()
    x, y = np.asarray(prompts.x, np.float64), np.asarray(prompts.y, np.float64)
    for b in range(5):
        weights, *_ = np.linalg.lstsq(x[:, :-1, b].T, y[:-1, b], rcond=None)
        np.testing.assert_allclose(weights @ x[:, -1, b], y[-1, b], rtol=1e-9 if X64 else 1e-3)
    np.testing.assert_allclose(drawn(targets="relu")[1].x, x, rtol=1e-12 if X64 else 1e-6)


@pytest.mark.x64
def test_relu_targets_are_those_of_a_numpy_network():
    problem = js.RegressionProblem(d=3, n_context=4, targets="relu", hidden=6)
    found = jax.jit(lambda key: system.sample_prompts(key, problem, HYPER, 5))(jax.random.key(7))
    first, second = jax.random.split(jax.random.split(jax.random.key(7), 3)[1])
    v = np.asarray(jax.random.normal(first, (6, 3, 5)), np.float64)
    a = np.asarray(jax.random.normal(second, (6, 5)), np.float64)
    x = np.asarray(found.x, np.float64)
    for b in range(5):
        for i in range(5):
            y = sum(a[j, b] * max(0.0, v[j, :, b] @ x[:, i, b]) for j in range(6)) * np.sqrt(2 / 6)
            np.testing.assert_allclose(found.y[i, b], y, rtol=1e-12 if X64 else 1e-4, atol=1e-13 if X64 else 1e-5)


def test_both_targets_have_the_second_moment_of_the_inputs_length():
    """E y^2 = |x|^2, on spherical inputs 1; the mean of 4000 squares scatters by a few percent."""
    for targets in ("linear", "relu"):
        prompts = sampled(js.RegressionProblem(d=4, n_context=1, inputs="spherical", targets=targets), 5, 4000)
        assert abs(np.mean(np.asarray(prompts.y) ** 2) - 1) < 0.15
    assert np.abs(np.asarray(prompts.y).mean()) < 0.1


@pytest.mark.parametrize("shape", [0.1, 1.0, 4.5])
def test_gamma_draws_have_the_gamma_law(shape):
    found = np.asarray(jax.jit(lambda key, a: system.gamma(key, a, (20, 1000)))(jax.random.key(3), shape))
    values = found.astype(np.float64).ravel()
    values = values[values > 1e-12]
    assert stats.kstest(values, lambda r: _above(stats.gamma(shape), r, 1e-12)).pvalue > 1e-3
    assert abs(np.corrcoef(found.ravel()[:-1], found.ravel()[1:])[0, 1]) < 0.03


def test_every_step_has_fresh_prompts_and_seeds_are_paired():
    problem = js.RegressionProblem(d=2, n_context=3, depth=1, batch_size=4, n_eval=4)
    task = js.linear_attention(problem)
    batch = jax.jit(lambda key: task.batch(key, None, HYPER))
    first, second, again = (batch(jax.random.key(k)).x for k in (0, 1, 0))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


@pytest.fixture(scope="module")
def run():
    problem = js.RegressionProblem(d=2, n_context=4, depth=2, batch_size=16, n_eval=32, noise_draws=6, noise_mean=64)
    task = js.linear_attention(problem)
    return task, js.train(jax.random.key(0), task, HYPER, optax.sgd(0.05), steps=6, record=2, test_every=4)


def test_smoothness_is_measured_along_the_step_just_taken(run):
    """Against finite differences of the gradient, on parameters trained once more step by step."""
    task, found = run
    again = js.train(jax.random.key(0), task, HYPER, optax.sgd(0.05), steps=5, record=1, observables=["train_loss"])
    data = jax.jit(lambda key: task.sample(key, HYPER, None))(js.stream(jax.random.key(0), "data"))
    slope = jax.jit(lambda params: jax.grad(task.loss)(params, data, HYPER))
    last, move = jax.tree.map(np.asarray, again.params), jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b),
                                                                      found.params, again.params)  # fmt: skip
    half = [jax.tree.map(lambda p, u, h=h: p + np.float32(h) * u, last, move) for h in (0.5, -0.5)]
    up, down = (jax.tree.map(np.asarray, slope(p)) for p in half)
    inner = sum(np.vdot(u, a - b) for u, a, b in zip(*map(jax.tree.leaves, (move, up, down))))
    size = sum(np.vdot(u, u) for u in jax.tree.leaves(move))
    assert np.isnan(found.trace["directional_smoothness"][0])  # no step before the first
    np.testing.assert_allclose(found.trace["directional_smoothness"][-1], inner / size, rtol=0.02)
    before = map(np.asarray, jax.tree.leaves(slope(again.params)))
    np.testing.assert_allclose(
        found.trace["gradient_before"][-1], np.sqrt(sum(np.vdot(g, g) for g in before)), rtol=1e-4
    )


def test_costly_measures_come_at_test_steps_only(run):
    _, found = run
    for name in ("robust_condition", "robust_condition_eigen", "gradient_noise"):
        there = np.isfinite(np.asarray(found.trace[name])).reshape(4, -1).all(1)
        np.testing.assert_array_equal(there, [True, False, True, False])
    assert found.trace["gradient_noise"].shape == (4, 6)


def test_a_step_before_a_resumed_stretch_is_remembered(tmp_path):
    """What is observed of steps does not depend on where the runner cuts its calls."""
    problem = js.RegressionProblem(d=2, n_context=3, depth=1, batch_size=4, n_eval=8)
    names = ["train_loss", "directional_smoothness", "robust_condition"]
    sweep = js.Sweep(
        system=js.linear_attention, problem=problem, hyper=HYPER,
        optimizers={"sgd": js.grid(optax.sgd, learning_rate=0.1)},
        axes={"seed": 2}, steps=12, record=3, test_every=6, observables=names,
    )  # fmt: skip
    stored = js.run_sweep(sweep, tmp_path / "out").load()
    alone = js.train(
        jax.random.key(1), js.linear_attention(problem), HYPER, optax.sgd(0.1), steps=12, record=3, test_every=6,
        observables=names,
    )  # fmt: skip
    for name in names:
        np.testing.assert_allclose(stored[name].values[0, 1], alone.trace[name], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_context": 0}, "n_context must be an int >= 1, got n_context=0"),
        ({"d": 0}, "d must be an int >= 1"),
        ({"depth": 0}, "depth must be an int >= 1"),
        ({"inputs": "normall"}, "unknown inputs 'normall'; did you mean 'normal'"),
        ({"attention": "gauss"}, "unknown attention 'gauss'"),
        ({"targets": "quadratic"}, "unknown targets 'quadratic'"),
        ({"hidden": 0}, "hidden must be an int >= 1, got hidden=0"),
        ({"form": "dense"}, "unknown form 'dense'"),
        ({"noise_draws": -1}, "noise_draws must be an int >= 0"),
    ],
)
def test_bad_problems_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        js.RegressionProblem(**fields)
    assert "\n" not in str(caught.value)


def test_bad_numbers_and_systems_are_refused():
    task = js.linear_attention(js.RegressionProblem())
    with pytest.raises(ValueError, match=r"gamma_shape must be a finite number in \(0, inf\), got gamma_shape=0"):
        task.validate(js.RegressionHyper(gamma_shape=0.0))
    with pytest.raises(ValueError, match=r"hyper must be a js\.RegressionHyper"):
        task.validate(js.Hyper(sigma_p=1.0))
    with pytest.raises(ValueError, match=r"problem must be a js\.RegressionProblem"):
        js.linear_attention(js.Problem(n=2, d=9, s=2, m_k=1, m_v=1))


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figure_is_drawn(tmp_path, monkeypatch):
    root, out = Path(__file__).parents[2], tmp_path / "linear_attention"
    experiment = runpy.run_path(str(root / "sweeps" / "linear_attention.py"))
    assert experiment["main"](["--tiny", "--out", str(out)]) == 0
    curves, noise = (js.open_results(out / name) for name in ("normal_20", "noise"))
    assert np.isfinite(curves["robust_condition_eigen"].sel(step=0)).all()
    assert np.isfinite(noise["gradient_noise"]).all()
    assert {row.claim.id for row in js.check([curves, noise]).rows} >= {"L1", "L3", "L4", "L5"}
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    runpy.run_path(str(root / "figures" / "linear_attention.py"))["main"]()
    lines = {path.stem: len(path.read_text().splitlines()) for path in (tmp_path / "figures").glob("*.csv")}
    assert lines.keys() == {f"linear_attention{part}" for part in ("", "_curvature", "_noise", "_relu", "_variants")}
    assert sum(lines.values()) > 300

"""The transformer with residuals: against NumPy by hand, the contraction bound, its claims, its sweep and figure."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.claims import residual as claims
from jaxsign.systems.residual import data as data_of
from jaxsign.systems.residual import model as model
from jaxsign.systems.residual.problem import ResidualHyper, ResidualProblem
from jaxsign.systems.residual.task import residual_attention

ROOT = Path(__file__).parents[2]
PROBLEM = ResidualProblem(n=4, d=6, d_ff=7, d_out=3, depth=2)
HYPER = ResidualHyper(attention_residual=0.7, ffn_residual=1.3, temperature=0.2)


def load(folder, name):
    spec = importlib.util.spec_from_file_location(f"residual_{folder}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    return model.ResidualParams(*cast[:-2]), data_of.Tokens(*cast[-2:])


@pytest.mark.x64
def test_forward_loss_and_spectra_are_those_by_hand(eps):
    params, (x, y) = draw()
    values, outputs, features, output = by_hand(params, x, HYPER)
    task = residual_attention(PROBLEM)
    given, data = arrays(params, (x, y))
    flow = jax.jit(lambda p: model.forward(p, data.x, HYPER))(given)
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
    gradient = jax.grad(residual_attention(PROBLEM).loss)(given, data, HYPER)
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
    data = residual_attention(problem).sample(js.stream(jax.random.key(0), "data"), ResidualHyper(), None)
    assert float(jnp.mean(jnp.sum(data.x**2, axis=1))) == pytest.approx(1, abs=0.05)
    assert float(jnp.std(data.y)) == pytest.approx(1, abs=0.05)
    for name, weight in model.init(jax.random.key(1), problem)._asdict().items():
        fan_in = {"w_2": 120}.get(name, 80)
        assert float(jnp.std(weight)) * fan_in**0.5 == pytest.approx(1, abs=0.05), name


def test_singular_values_of_what_is_not_finite_are_nan_and_leave_others_alone(capfd):
    a = jnp.stack([jnp.eye(2, 3), jnp.full((2, 3), jnp.nan), 2 * jnp.eye(2, 3)])
    found = np.asarray(jax.vmap(model.singular_values)(a))
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
        run = js.train(jax.random.key(2), task, ResidualHyper(), optax.sgd(eta), steps=60, record=1)
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
    data = task.sample(js.stream(key, "data"), HYPER, None)
    params = task.init(js.stream(key, "init"), data, HYPER)
    _, _, features, output = by_hand([np.asarray(w) for w in params], np.asarray(data.x), HYPER)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    start = u.T @ (output - np.asarray(data.y))
    run = js.train(key, task, HYPER, optax.sgd(eta), steps=steps, record=1, trainable=("w_u",))
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
        return model.forward(params, data.x, hyper)

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


def made(steps, loss, sigma, rates):
    """A Dataset of one seed with both residuals, as `_rates` reads it."""
    import xarray as xr

    dims = ("optimizer", "seed", "step")
    return xr.Dataset(
        {"train_loss": (dims, loss[:, None]), "feature_sigma_min": (dims, sigma[:, None])},
        coords={"step": steps, "seed": [0], "learning_rate": ("optimizer", rates)},
    )


def test_rates_of_the_claims_on_curves_whose_rates_are_known():
    steps, rates = np.arange(0, 401, 10), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    linear, power = np.exp(-0.03 * steps), (1.0 + steps) ** -2.0
    worse = np.ones_like(linear)
    sigma = np.full((5, steps.size), 0.2)
    ds = made(steps, np.stack([worse, linear, worse, worse * np.nan, worse]), sigma, rates)
    assert claims.best(ds)["learning_rate"].item() == 0.2
    assert claims._rates(ds, claims._late).item() == pytest.approx(0.03)
    assert claims._rates(ds, claims._late_over_early).item() == pytest.approx(1)
    assert claims._rates(ds, claims._late_over_predicted).item() == pytest.approx(0.03 / -np.log1p(-0.2 * 0.04))
    ds = made(steps, np.stack([worse, power, worse, worse, worse]), sigma, rates)
    assert claims._rates(ds, claims._late_over_early).item() == pytest.approx(0.25, abs=0.03)
    fast = np.maximum(np.exp(-0.5 * steps), 1e-30)  # at the rounding floor from step 140 on, where nothing is fitted
    ds = made(steps, np.stack([worse, fast, worse, worse, worse]), sigma, rates)
    assert claims._rates(ds, claims._late).item() == pytest.approx(0.5)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The tiny mode of the sweep, laid out as the figure wants it."""
    root = tmp_path_factory.mktemp("residual")
    assert load("sweeps", "residual").main(["--tiny", "--out", str(root / "residual")]) == 0
    return root


def test_tiny_sweep_runs_and_its_figure_is_drawn(results, tmp_path, monkeypatch):
    ds = js.open_results(results / "residual" / "depth_1")
    assert ds["attention_condition"].dims == (
        "attention_residual",
        "ffn_residual",
        "optimizer",
        "seed",
        "step",
        "layer",
    )
    assert bool((ds["status"].sel(attention_residual=1) == 0).isel(optimizer=0).all())
    monkeypatch.setattr(sys, "argv", ["residual", "--results", str(results), "--out", str(tmp_path)])
    load("figures", "residual").main()
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".pdf", ".svg", ".csv"}
    assert len((tmp_path / "residual.csv").read_text().splitlines()) > 50


def test_sweep_wants_64_bit(tmp_path, capsys, monkeypatch):
    if jax.config.jax_enable_x64:
        pytest.skip("64-bit floats are on")
    assert load("sweeps", "residual").main(["--out", str(tmp_path / "x")]) == 2
    assert "--x64" in capsys.readouterr().err


def test_claims_read_the_points_they_compare(results):
    ds = js.open_results(results / "residual" / "depth_1").load()
    both, none = claims.ablated(ds, 1, 1), claims.ablated(ds, 0, 0)
    picked = ds["attention_sigma_min"].sel(attention_residual=1, ffn_residual=1, step=0).isel(optimizer=0, layer=0)
    other = ds["attention_sigma_min"].sel(attention_residual=0, ffn_residual=0, step=0).isel(optimizer=0, layer=0)
    part = next(c for c in claims.CLAIMS if c.id == "R4").parts[0]
    np.testing.assert_allclose(part.measure(ds), picked / other)
    assert both["train_loss"].dims == none["train_loss"].dims == ("optimizer", "seed", "step")
    assert str(claims.setting_of(ds)) == "custom"  # the tiny sizes
    with pytest.raises(js.CannotDecide, match="residuals"):
        claims.ablated(ds, 2, 0)
    with pytest.raises(js.CannotDecide, match="64-bit"):
        claims._margin(1e-3)(js.open_results(results / "residual" / "bound"))


def test_settings_are_named_by_what_is_varied():
    def setting(problem=None, **coords):
        import json

        import xarray as xr

        definition = {
            "problem": dataclasses.asdict(problem or ResidualProblem()), "hyper": dataclasses.asdict(ResidualHyper())
        }  # fmt: skip
        ds = xr.Dataset(coords={k: (k, v) for k, v in coords.items()})
        return str(claims.setting_of(ds.assign_attrs(manifest=json.dumps({"definition": definition}))))

    assert setting(attention_residual=[1.0, 0.0]) == "depth 1"
    assert setting(ResidualProblem(depth=4)) == "depth 4"
    assert setting(depth=[1, 2, 4]) == "depths 1, 2, 4"
    assert setting(temperature=[0.1, 1.0]) == "depth 1, temperatures"
    assert setting(n=[8, 16]) == "depth 1, n/d"
    assert setting(ResidualProblem(d=20)) == setting(temperature=[2.0]) == "custom"

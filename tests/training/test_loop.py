"""Rows are written in place without a scatter, and large test sets are evaluated run by run on a CPU only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.training import loop
from jaxsign.training.loop import Loop, one_by_one, write_row
from jaxsign.training.mode import choose_mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import begin
from jaxsign.training.train import make_train


def by_hand(buffer, place, row):
    buffer = np.array(buffer)
    buffer[int(place)] = row
    return buffer


@pytest.mark.parametrize(
    "mapped", [(0, None, 0), (0, 0, 0), (None, 0, 0), (0, None, None), (None, None, 0), (None, 0, None)]
)
def test_batches_of_each_kind(mapped):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(4, 5, 3)), np.array([0, 4, 2, 2]), rng.normal(size=(4, 3))]
    given = [part if axis == 0 else part[1] for part, axis in zip(parts, mapped)]
    got = jax.vmap(write_row, in_axes=mapped)(*map(jnp.asarray, given))
    pick = lambda k: [part[k] if axis == 0 else part for part, axis in zip(given, mapped)]  # noqa: E731
    np.testing.assert_array_equal(got, np.stack([by_hand(*pick(k)) for k in range(4)]).astype(np.float32))


def test_two_batches_share_a_place_without_a_scatter():
    buffer, row = jnp.zeros((2, 3, 6, 4)), jnp.arange(24.0).reshape(2, 3, 4)

    def filled(buffer, row):
        return jax.lax.fori_loop(1, 4, lambda i, buffer: write_row(buffer, i, row * i), buffer)

    program = jax.jit(jax.vmap(jax.vmap(filled)))
    got = program(buffer, row)
    for i in range(6):
        np.testing.assert_array_equal(got[:, :, i], row * i if 1 <= i < 4 else 0 * row)
    text = program.lower(buffer, row).as_text()
    assert "dynamic_update_slice" in text
    assert "scatter" not in text


def test_one_by_one_is_the_mapped_function_with_a_loop_on_a_cpu_only():
    def function(x, both):
        return {"product": x @ both["y"], "sum": x.sum() + both["shared"]}

    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(5, 3, 4))), jnp.asarray(rng.normal(size=(5, 4)))
    arguments, axes = (x, {"y": y, "shared": jnp.arange(2.0)}), (0, {"y": 0, "shared": None})
    got = jax.vmap(one_by_one(function), axes)(*arguments)
    np.testing.assert_allclose(got["product"], np.einsum("bij,bj->bi", x, y), rtol=1e-5)
    np.testing.assert_allclose(got["sum"], np.asarray(x.sum((1, 2)))[:, None] + np.arange(2.0), rtol=1e-5)
    np.testing.assert_array_equal(
        one_by_one(function)(x[0], {"y": y[0], "shared": jnp.zeros(2)})["product"], x[0] @ y[0]
    )
    program = jax.jit(jax.vmap(one_by_one(function), axes))
    loops = {
        platform: str(jax.export.export(program, platforms=[platform])(*arguments).mlir_module()).count(
            "stablehlo.while"
        )
        for platform in ("cpu", "cuda", "tpu")
    }
    assert loops == {"cpu": 1, "cuda": 0, "tpu": 0}


def test_runs_tested_one_by_one_have_the_metrics_of_runs_tested_together(hyper, monkeypatch, eps):
    """And a run that diverges costs its neighbours nothing."""
    task = js.two_layer(js.Problem(n=4, d=60, s=5, m_k=3, m_v=3, n_test=16, supports="disjoint"), "feature_space")
    mode = choose_mode(task, js.sign_gd, [{"learning_rate": 1e-3}], hyper).mode
    names = ["train_loss", "test_loss", "test_error"]
    rates = {"learning_rate": jnp.asarray([1e-2, jnp.inf, 1e-2])}
    starts = jax.jit(jax.vmap(lambda key: begin(task, key, hyper, None, 0.0)))(jax.random.split(jax.random.key(1), 3))
    traces = {}
    for limit in (2**60, 1):
        monkeypatch.setattr(loop, "ONE_BY_ONE", limit)
        train = make_train(Loop(mode, js.sign_gd, names), Schedule.build(20, 10, 20))
        mapped = jax.jit(jax.vmap(train, in_axes=(None, 0, None, 0)))
        traces[limit] = jax.device_get(mapped(jax.random.key(0), starts, hyper, rates)["trace"])
    together, apart = traces.values()
    assert np.isfinite(apart["test_loss"][[0, 2]][:, [0, 2]]).all()
    assert np.isnan(apart["test_loss"][:, 1]).all()  # no test step
    assert np.isnan(apart["test_loss"][1, 2])
    for name in names:
        np.testing.assert_allclose(apart[name], together[name], rtol=50 * eps, atol=50 * eps)

"""A Task of the test's own goes through the trainer like the paper's: data, batches, metric, alarms, shared arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsign as js
from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.training.task import Reduction


def logistic_regression(problem):
    """Logistic regression on the sum of the patches of the same data."""

    def sample(key, hyper, shared):
        data = signal_noise.sample(key, problem, hyper)
        return jnp.sum(data.patches, 1) + (data.y_clean * data.mu)[:, None] * data.basis[:1], data.y

    def loss(params, batch, hyper):
        x, y = batch
        return jnp.mean(jax.nn.softplus(-y * (x @ params["w"] + params["b"])))

    return js.Task(
        sample=sample,
        init=lambda key, data, hyper: {"w": jnp.zeros(problem.d), "b": jnp.zeros(())},
        loss=loss,
        observe=lambda params, data, test, hyper: {
            "train_loss": loss(params, data, hyper),
            "norm": jnp.abs(params["w"]),
        },
        describe=lambda data, test, hyper: {"x": data[0], "y": data[1]},
        dims={"norm": ("coordinate",)},
        name="logistic_regression",
    )


def test_logistic_regression_trains_like_numpy(problem, hyper):
    run = js.train(jax.random.key(1), logistic_regression(problem), hyper, optax.sgd(0.2), steps=40, record=10)
    x, y = (np.asarray(run.constants[name], float) for name in "xy")
    w, b, losses = np.zeros(problem.d), 0.0, []
    for _ in range(41):
        margin = y * (x @ w + b)
        losses.append(np.logaddexp(0, -margin).mean())
        slope = -y / (1 + np.exp(margin)) / len(y)
        w, b, last = w - 0.2 * slope @ x, b - 0.2 * slope.sum(), (w, b)
    np.testing.assert_allclose(run.trace["train_loss"], losses[::10], rtol=1e-5)
    np.testing.assert_allclose(run.params["w"], last[0], atol=1e-5)
    np.testing.assert_allclose(run.params["b"], last[1], atol=1e-5)
    assert run.to_xarray().norm.dims == ("optimizer", "seed", "step", "coordinate")
    assert losses[-1] < 0.5 * losses[0]


#: The loss is <w, batch>: its gradient is the batch.
LINEAR = js.Task(
    sample=lambda key, hyper, shared: jax.random.normal(key, (4,)),
    init=lambda key, data, hyper: {"w": jnp.zeros(4), "tail": {"u": jnp.zeros(2)}},
    loss=lambda params, batch, hyper: jnp.sum(params["w"] * batch) + jnp.sum(params["tail"]["u"]),
    observe=lambda params, data, test, hyper: {"w": params["w"]},
)
KEY, STEPS = jax.random.key(9), 6


def run(task, record=1, **settings):
    return js.train(KEY, task, {"rate": 0.5}, optax.sgd(0.5), steps=STEPS, record=record, **settings)


def test_every_step_has_its_own_batch_key():
    task = dataclasses.replace(LINEAR, batch=lambda key, data, hyper: data + jax.random.uniform(key, (4,)))
    fixed = np.asarray(jax.random.normal(js.stream(KEY, "data"), (4,)))
    draws = [
        fixed + np.asarray(jax.random.uniform(jax.random.fold_in(js.stream(KEY, "train"), t), (4,)))
        for t in range(STEPS)
    ]
    moves = -np.diff(np.asarray(run(task).trace["w"]), axis=0) / 0.5
    np.testing.assert_allclose(moves, draws, atol=1e-5)
    assert len({tuple(np.round(move, 3)) for move in moves}) == STEPS
    np.testing.assert_allclose(run(task, record=4).params["w"], -0.5 * np.sum(draws, 0), atol=1e-5)  # not the segment's


def test_scale_multiplies_the_updates_and_takes_numbers():
    def metric(data, hyper):
        return {"w": jnp.arange(4.0), "tail": {"u": 2 * jnp.ones(2) * hyper["rate"]}}

    plain, scaled = run(LINEAR), run(dataclasses.replace(LINEAR, scale=metric))
    np.testing.assert_allclose(scaled.params["w"], plain.params["w"] * np.arange(4.0), rtol=1e-6)
    np.testing.assert_allclose(plain.params["tail"]["u"], -0.5 * STEPS)
    np.testing.assert_allclose(scaled.params["tail"]["u"], plain.params["tail"]["u"] * 2 * 0.5)
    partly = run(dataclasses.replace(LINEAR, scale=metric), trainable=("w",))
    np.testing.assert_array_equal(partly.params["tail"]["u"], 0)
    np.testing.assert_array_equal(partly.params["w"], scaled.params["w"])


def test_alarms_keep_the_first_step_and_constants_are_stored():
    task = dataclasses.replace(
        LINEAR,
        watch={
            "moved": lambda params, batch, hyper, gradient: params["tail"]["u"][0] <= -1.5,
            "never": lambda params, batch, hyper, gradient: params["tail"]["u"][0] > 0,
        },
        describe=lambda data, test, hyper: {"twice": 2 * data},
    )
    found = run(task)
    assert found.watch == {"moved": 3, "never": -1}
    np.testing.assert_allclose(found.constants["twice"], 2 * jax.random.normal(js.stream(KEY, "data"), (4,)), rtol=1e-6)
    assert found.to_xarray().moved.dims == ("optimizer", "seed")


def test_shared_arrays_reach_the_sampler_and_frozen_fields_are_never_trained():
    images = jnp.arange(8.0).reshape(2, 4)
    reduction = Reduction(frozen=("tail",))
    task = dataclasses.replace(LINEAR, sample=lambda key, hyper, shared: shared[1], reduction=reduction)
    found = run(task, shared=images)
    np.testing.assert_allclose(found.params["w"], -0.5 * STEPS * np.arange(4.0, 8.0))
    np.testing.assert_array_equal(found.params["tail"]["u"], 0)


def test_parameters_may_be_one_array():
    plain = js.Task(
        sample=lambda key, hyper, shared: jnp.ones(3),
        init=lambda key, data, hyper: 2 * data,
        loss=lambda params, data, hyper: jnp.sum(params),
        observe=lambda params, data, test, hyper: {"sum": jnp.sum(params)},
    )
    np.testing.assert_allclose(run(plain).params, 2 - 0.5 * STEPS * np.ones(3))
    np.testing.assert_allclose(run(plain, trainable=("params",)).trace["sum"], 6 - 1.5 * np.arange(STEPS + 1))


def test_transforms_may_ask_for_the_loss():
    def update(updates, state, params=None, *, value, value_fn, **rest):
        return jax.tree.map(lambda g: -0.5 * g * (1 + 0 * value + 0 * value_fn(params)), updates), state

    picky = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    found = js.train(KEY, LINEAR, {"rate": 0.5}, picky, steps=STEPS, record=1)
    np.testing.assert_allclose(found.params["w"], run(LINEAR).params["w"], rtol=1e-6)

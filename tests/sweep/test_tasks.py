"""A Task is a system that ignores its problem; seeds that are one run and parameters that no loss reads are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js

LINE = js.Task(
    sample=lambda key, hyper, shared: jax.random.normal(key, (8, 3)),
    init=lambda key, data, hyper: {"w": jnp.ones(3)},
    loss=lambda params, x, hyper: jnp.mean((x @ params["w"]) ** 2),
    observe=lambda params, data, test, hyper: {"size": jnp.sum(jnp.abs(params["w"]))},
    name="line",
)


def sweep(system, **changes):
    base = {"problem": None, "hyper": {"rate": 1.0}, "optimizers": {"gd": optax.sgd(0.1)}, "steps": 4, "record": 2}
    return js.Sweep(system=system, **(base | {"axes": {"seed": 3}} | changes))


def test_a_task_runs_like_the_factory_that_returns_it(tmp_path):
    plain = js.run_sweep(sweep(lambda problem: LINE), progress=False)
    for out in (None, tmp_path / "out", tmp_path / "out"):  # in memory, stored, loaded
        ds = js.run_sweep(sweep(LINE), out, progress=False)
        np.testing.assert_array_equal(ds["size"].values, plain["size"].values)


def test_a_stored_task_is_known_by_what_its_functions_compute(tmp_path):
    js.run_sweep(sweep(LINE), tmp_path, progress=False)
    renamed = dataclasses.replace(LINE, loss=lambda weights, inputs, _: jnp.mean((inputs @ weights["w"]) ** 2))
    js.run_sweep(sweep(renamed), tmp_path, progress=False)
    other = dataclasses.replace(LINE, loss=lambda params, x, hyper: 2 * LINE.loss(params, x, hyper))
    with pytest.raises(ValueError, match="belongs to another definition: system"):
        js.run_sweep(sweep(other), tmp_path, progress=False)


def test_a_task_of_the_package_is_a_system_too(tmp_path):
    problem = js.Problem(n=4, d=60, s=4, m_k=2, m_v=2, n_test=10)
    settings = {"problem": problem, "hyper": js.Hyper(sigma_p=2.0), "optimizers": {"sign_gd": js.sign_gd(1e-3)}}
    one = js.run_sweep(sweep(js.two_layer(problem), **settings), tmp_path, progress=False)
    two = js.run_sweep(sweep(js.two_layer, **settings), progress=False)
    np.testing.assert_array_equal(one["train_loss"].values, two["train_loss"].values)


def test_what_a_task_cannot_follow_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Sizes:
        n: int = 8

    with pytest.raises(ValueError, match="axis 'n' changes nothing: system is the task 'line'"):
        sweep(LINE, problem=Sizes(), axes={"n": [4, 8]})
    with pytest.raises(ValueError, match="the task 'line' has no engines"):
        sweep(LINE, engine="dense")
    with pytest.raises(ValueError, match="system must be a function"):
        sweep("line")


def constant(key, hyper, shared):
    return jnp.ones((8, 3))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, False),
        ({"sample": constant}, True),
        ({"sample": lambda key, hyper, shared: jax.random.normal(jax.random.key(7), (8, 3))}, True),
        ({"sample": constant, "init": lambda key, data, hyper: {"w": jax.random.normal(key, (3,))}}, False),
        ({"sample": constant, "batch": lambda key, data, hyper: data[jax.random.permutation(key, 8)[:4]]}, False),
        ({"sample": lambda key, hyper, shared: (constant(key, hyper, shared), key)[0]}, True),
    ],
    ids=["own key", "constant", "fixed key", "own weights", "own batches", "key passed over"],
)
def test_seeds_that_are_one_run_are_reported(changes, same, capsys):
    task = dataclasses.replace(LINE, **changes)
    js.run_sweep(sweep(task), progress=False)
    assert ("all 3 seeds of line are the same run" in capsys.readouterr().err) == same
    js.run_sweep(sweep(task, axes={"seed": 1}), progress=False)
    noisy = {"noisy": js.grid(optax.noisy_sgd, learning_rate=0.1)}
    js.run_sweep(sweep(task, optimizers=noisy), progress=False)
    assert "same run" not in capsys.readouterr().err


def test_parameters_that_no_gradient_reaches_are_named(capsys):
    """As running means that a loss computes and throws away."""
    made = {"system": lambda problem: SPARE, "problem": None, "hyper": {"scale": 1.0}, "steps": 3}
    made |= {"optimizers": {"gd": optax.sgd(0.1)}, "axes": {"seed": 2}}
    js.run_sweep(js.Sweep(**made), progress=False)
    assert (
        "no gradient reaches 'mean' of spare, which its loss does not read: state=('mean',)" in capsys.readouterr().err
    )
    js.run_sweep(js.Sweep(**made, trainable=("w",)), progress=False)
    assert "no gradient" not in capsys.readouterr().err


SPARE = js.Task(
    sample=lambda key, hyper, shared: jax.random.normal(key, (4,)),
    init=lambda key, data, hyper: {"w": jnp.ones(4), "mean": jnp.zeros(())},
    loss=lambda params, data, hyper: jnp.mean((params["w"] * data - 0.9 * hyper["scale"]) ** 2),
    observe=lambda params, data, test, hyper: {"train_loss": jnp.mean((params["w"] * data - 0.9) ** 2)},
    name="spare",
)

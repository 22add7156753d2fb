"""Feature space is the dense system of the same seed, seen through its inner products."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import jaxsign as js

PROBLEM = js.Problem(n=5, d=300, s=7, m_k=4, m_v=3, n_test=20, supports="disjoint")
HYPER = js.Hyper(sigma_p=2.0, sigma_0=3e-3)


def decayed():
    return optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(2.0), optax.scale_by_learning_rate(1e-3))


OPTIMIZERS = {"signum": js.signum(1e-3, beta=0.9), "adam": optax.adam(1e-3, eps=1e-30)}
SIGN_GD = js.sign_gd(1e-3)
X64 = jax.config.jax_enable_x64
SYSTEMS = {
    "no overlap": (dataclasses.replace(PROBLEM, overlap="none"), HYPER, SIGN_GD),
    "smallest": (dataclasses.replace(PROBLEM, n=1, m_k=1, m_v=1, s=1), HYPER, SIGN_GD),
    "three patches, two heads, feature and label noise, decay": (
        dataclasses.replace(PROBLEM, context=3, heads=2),
        dataclasses.replace(HYPER, alpha=0.3, label_noise=0.3),
        decayed(),
    ),
}


def pair(problem, hyper, optimizer, steps, seed=1, **options):
    """Runs of the feature-space and the dense engine on the same draws."""
    for engine in ("feature_space", "dense"):
        task = js.two_layer(problem, engine=engine)
        yield js.train(
            jax.random.key(seed),
            task,
            hyper,
            optimizer,
            steps=steps,
            record=steps // 5,
            test_every=steps // 5,
            **options,
        )


def same(mine, theirs, eps):
    """Every observable agrees: to 1e-9 of its size in 64 bits."""
    tolerance = 1e-9 if eps < 1e-10 else 5e-4
    assert set(mine.trace) == set(theirs.trace)
    for name, expected in theirs.trace.items():
        size = np.nanmax(np.abs(expected))
        np.testing.assert_allclose(mine.trace[name], expected, rtol=0, atol=tolerance * size, err_msg=name)
    for name, expected in theirs.constants.items():
        np.testing.assert_array_equal(mine.constants[name], expected)


def steps_for(eps):
    """In 32 bits rounding flips a sign sooner or later."""
    return 200 if eps < 1e-10 else 20


@pytest.mark.x64
def test_every_power_runs_as_dense(eps):
    powers = js.grid(js.power_gd, learning_rate=1e-3, p=[0.0, 0.25, 0.5, 1.0])
    sweep = js.Sweep(
        system=js.two_layer, problem=PROBLEM, hyper=HYPER, optimizers={"power": powers}, steps=steps_for(eps),
        axes={"engine": ["feature_space", "dense"], "seed": 2}, record=steps_for(eps) // 5, test_every=20,
        observables=["train_loss", "test_loss", "test_error", "query_noise", "key_noise", "value_noise", "key_signal"],
    )  # fmt: skip
    ds = js.run_sweep(sweep)
    for name in ds.data_vars:
        mine, theirs = ds[name].values
        np.testing.assert_allclose(mine, theirs, atol=(1e-9 if X64 else 5e-4) * np.nanmax(np.abs(theirs)), err_msg=name)


@pytest.mark.x64(only=True)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_runs_as_dense(name, eps):
    same(*pair(PROBLEM, HYPER, OPTIMIZERS[name], steps_for(eps)), eps)


@pytest.mark.slow
@pytest.mark.x64(only=True)
@pytest.mark.parametrize("optimizer", [js.sign_gd(1e-4), optax.sgd(0.3)], ids=["sign_gd", "gd"])
def test_long_runs_of_the_preset_stay_together(optimizer, eps):
    same(*pair(*js.presets.theory(), optimizer, 600), eps)


@pytest.mark.x64(only=True)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_problem_runs_as_dense(name, eps):
    same(*pair(*SYSTEMS[name], steps_for(eps), seed=2), eps)


@pytest.mark.x64(only=True)
def test_one_matrix_can_be_trained_alone(eps):
    mine, theirs = pair(PROBLEM, HYPER, decayed(), steps_for(eps), trainable=("w_v",))
    same(mine, theirs, eps)
    np.testing.assert_array_equal(mine.trace["query_noise"][-1], mine.trace["query_noise"][0])


def test_a_sweep_runs_as_single_runs(eps):
    problem, hyper = PROBLEM, HYPER
    powers = js.grid(js.power_gd, learning_rate=1e-3, p=[0.25, 0.5])
    sweep = js.Sweep(
        system=js.two_layer, engine="feature_space", problem=problem, hyper=hyper, optimizers={"power": powers},
        axes={"seed": 3}, steps=20, record=10, test_every=10,
    )  # fmt: skip
    ds = js.run_sweep(sweep)
    task = js.two_layer(problem, engine="feature_space")
    for i, p in enumerate((0.25, 0.5)):
        run = js.train(jax.random.key(2), task, hyper, js.power_gd(1e-3, p=p), steps=20, record=10, test_every=10)
        for name in ("train_loss", "test_loss", "value_signal"):
            np.testing.assert_allclose(ds[name][i, 2], run.trace[name], rtol=1e4 * eps)
    assert '"p": 0.25' in ds.attrs["manifest"]


def test_what_it_is_not_exact_for_is_refused():
    with pytest.raises(ValueError, match=r'supports="disjoint", got supports=\'independent\''):
        js.two_layer(dataclasses.replace(PROBLEM, supports="independent"), engine="feature_space")
    task = js.two_layer(PROBLEM, engine="feature_space")
    for optimizer, words in (
        (optax.adam(1e-3), "exponent"),
        (optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9)), "not decoupled"),
        (optax.contrib.muon(1e-3), "two_layer_feature_space cannot run"),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "two_layer_feature_space cannot run"),
    ):
        with pytest.raises(ValueError, match=words):
            js.train(jax.random.key(0), task, HYPER, optimizer, steps=5)

"""Feature space is the dense system of the same seed, seen through its inner products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.systems.two_layer.model import logits
from jaxsign.training.loop import Loop
from jaxsign.training.mode import Mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import begin
from jaxsign.training.train import make_train

PROBLEM = js.Problem(n=5, d=300, s=7, m_k=4, m_v=3, n_test=20, supports="disjoint")
HYPER = js.Hyper(sigma_p=2.0, sigma_0=3e-3)


def decayed():
    return optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(2.0), optax.scale_by_learning_rate(1e-3))


OPTIMIZERS = {
    "adam": optax.adam(1e-3, eps=1e-30),
    "signum": js.signum(1e-3, beta=0.9),
    "momentum": optax.sgd(0.03, momentum=0.9),
    "schedule": js.sign_gd(optax.exponential_decay(1e-3, 50, 0.5)),
}
SIGN_GD = js.sign_gd(1e-3)
X64 = jax.config.jax_enable_x64
SYSTEMS = {
    "no overlap": (dataclasses.replace(PROBLEM, overlap="none"), HYPER, SIGN_GD),
    "mini-batches": (dataclasses.replace(PROBLEM, batch_size=2), HYPER, SIGN_GD),
    "mini-batches of GD, label noise": (
        dataclasses.replace(PROBLEM, batch_size=3),
        dataclasses.replace(HYPER, label_noise=0.3),
        optax.sgd(0.3),
    ),
    "smallest": (dataclasses.replace(PROBLEM, n=1, m_k=1, m_v=1, s=1), HYPER, SIGN_GD),
    "three patches, two heads, feature and label noise, decay": (
        dataclasses.replace(PROBLEM, context=3, heads=2),
        dataclasses.replace(HYPER, alpha=0.3, label_noise=0.3),
        decayed(),
    ),
}


def daily(cases, *names):
    """The names of all cases; those that are not named here are slow tests: each is two programs to compile."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in cases]


def pair(problem, hyper, optimizer, steps, seed=1, engine="feature_space", **options):
    """Runs of an engine and of the dense one on the same draws."""
    for name in (engine, "dense"):
        task = js.two_layer(problem, engine=name)
        numbers = {"steps": steps, "record": steps // 5, "test_every": steps // 5} | options
        yield js.train(jax.random.key(seed), task, hyper, optimizer, **numbers)


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
@pytest.mark.parametrize("name", daily(OPTIMIZERS))
def test_every_optimizer_runs_as_dense(name, eps):
    same(*pair(PROBLEM, HYPER, OPTIMIZERS[name], steps_for(eps)), eps)


LONG = {
    "SignGD": js.sign_gd(1e-4),
    "Signum": js.signum(1e-4, beta=0.9),
    "GD": optax.sgd(0.3),
    "momentum": optax.sgd(0.03, momentum=0.9),
    "power 1/4": js.power_gd(1e-3, p=0.25),
    "power 1/2": js.power_gd(1e-2, p=0.5),
    "decay": optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(1.0), optax.scale_by_learning_rate(1e-4)),
    "Adam": optax.adam(1e-4, eps=1e-30),
    "Adam, eps 1e-15": optax.adam(1e-4, eps=1e-15),
}
VARIED = {
    "mini-batches": ({"batch_size": 5}, {}),
    "feature noise": ({}, {"alpha": 0.2}),
    "finite overlap": ({"overlap": "exact"}, {}),
    "odd sizes": ({"n": 13, "m_k": 7, "m_v": 3}, {"label_noise": 0.2}),
}
CASES = [(name, "", 0) for name in LONG] + [("SignGD", name, 0) for name in VARIED] + [("GD", "mini-batches", 0)]
CASES += [("SignGD", "", 1), ("GD", "", 2)]


@pytest.mark.slow
@pytest.mark.x64(only=True)
@pytest.mark.parametrize(("name", "varied", "seed"), CASES)
def test_1500_steps_of_the_preset_stay_together(name, varied, seed):
    """In 64 bits, losses and every observable within 1e-9; Adam with eps=1e-15 is homogeneous to 1e-6 only.

    The dense engine's sign votes underflow 64 bits too, at t ~ 800: what follows of its query noise, and of the
    logarithm of s_21 that is made of it, is not compared.
    """
    problem, hyper = js.presets.disjoint()
    sizes, numbers = VARIED.get(varied, ({}, {}))
    problem, hyper = dataclasses.replace(problem, **sizes), dataclasses.replace(hyper, **numbers)
    mine, theirs = pair(problem, hyper, LONG[name], 1500, seed)
    frozen = theirs.watch["first_frozen_step"]
    for observable, expected in theirs.trace.items():
        seen = slice(None)
        made_of_it = {"query_noise", "sign_agreement", "log_s21"}
        if problem.overlap == "exact":  # fresh patches carry shares of the query noise
            made_of_it |= {"test_loss", "test_error"}
        if frozen >= 0 and observable in made_of_it:
            seen = slice(int(np.searchsorted(theirs.steps, frozen)))
        size = np.nanmax(np.abs(expected))
        tolerance = 1e-6 if "1e-15" in name else 1e-9
        np.testing.assert_allclose(
            mine.trace[observable][seen], expected[seen], rtol=0, atol=tolerance * size, err_msg=observable
        )


def test_32_bits_reproduce_64_bits_far_beyond_their_underflow():
    """Claim S5 and |query noise| at t = 900, where 97 % of SignGD's gradients are below what 32 bits hold."""
    problem, hyper = js.presets.disjoint()
    task = js.two_layer(dataclasses.replace(problem, n_test=1), engine="feature_space")
    names = ["train_loss", "query_noise", "query_signal"]
    train = jax.jit(make_train(Loop(Mode(task, signs=True), js.sign_gd, names), Schedule.build(900, 100, 900)))
    hyper = jax.tree.map(jnp.float32, hyper)
    start = jax.jit(lambda key: begin(task, key, hyper, None, jnp.float32(0)))(jax.random.key(0))
    narrow = train(jax.random.key(0), start, hyper, {"learning_rate": jnp.float32(1e-4)})
    with jax.enable_x64(True):  # the same draws, continued in 64 bits
        start, hyper = (jax.tree.map(widened, tree) for tree in (start, hyper))
        wide = train(jax.random.key(0), start, hyper, {"learning_rate": np.float64(1e-4)})
    (small, large) = (np.asarray(out["trace"]["query_noise"]) for out in (narrow, wide))
    assert (small.dtype, large.dtype) == (np.float32, np.float64)
    assert narrow["watch"]["first_frozen_step"] == wide["watch"]["first_frozen_step"] == -1
    assert np.abs(small[9]).mean() == pytest.approx(np.abs(large[9]).mean(), rel=0.01)
    np.testing.assert_allclose(small, large, atol=1e-3)  # a sixth of one step
    assert np.mean(np.sign(large[5]) == np.sign(wide["trace"]["query_signal"][5])[:, None, None][..., 0]) > 0.99
    np.testing.assert_allclose(narrow["trace"]["train_loss"], wide["trace"]["train_loss"], rtol=1e-3)


def widened(x):
    """A 32-bit array with 64 bits; others as they are."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype == np.float32 else x


@pytest.mark.x64(only=True)
@pytest.mark.parametrize("name", daily(SYSTEMS, "three patches, two heads, feature and label noise, decay"))
def test_every_problem_runs_as_dense(name, eps):
    same(*pair(*SYSTEMS[name], steps_for(eps), seed=2), eps)


@pytest.mark.slow
@pytest.mark.x64(only=True)
def test_one_matrix_can_be_trained_alone(eps):
    mine, theirs = pair(PROBLEM, HYPER, decayed(), steps_for(eps), trainable=("w_v",))
    same(mine, theirs, eps)
    np.testing.assert_array_equal(mine.trace["query_noise"][-1], mine.trace["query_noise"][0])


def fresh_logits(params, data, test, hyper):
    return logits(params.fresh_features(test), test.y * test.mu, params.heads)


@pytest.mark.x64(only=True)
@pytest.mark.parametrize(
    "optimizer", [SIGN_GD, pytest.param(optax.sgd(0.3), marks=pytest.mark.slow)], ids=["SignGD", "GD"]
)
def test_logits_of_fresh_examples_are_dense_to_1e_12(optimizer, eps):
    del eps
    problem = dataclasses.replace(PROBLEM, d=60)  # most of a fresh patch is shared
    mine, theirs = pair(problem, dataclasses.replace(HYPER, alpha=0.1), optimizer, 100, observables=[fresh_logits])
    expected = theirs.trace["fresh_logits"]
    assert np.abs(expected[-1]).max() > 0.1
    np.testing.assert_allclose(mine.trace["fresh_logits"], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_sweep_runs_as_single_runs(eps):
    problem, hyper, names = PROBLEM, HYPER, ["train_loss", "test_loss", "value_signal"]
    powers = js.grid(js.power_gd, learning_rate=1e-3, p=[0.25, 0.5])
    sweep = js.Sweep(
        system=js.two_layer, engine="feature_space", problem=problem, hyper=hyper, optimizers={"power": powers},
        axes={"seed": 3}, steps=20, record=10, test_every=10, observables=names,
    )  # fmt: skip
    ds = js.run_sweep(sweep)
    task = js.two_layer(problem, engine="feature_space")
    for i, p in [(1, 0.5)]:
        run = js.train(
            jax.random.key(2), task, hyper, js.power_gd(1e-3, p=p), steps=20, record=10, test_every=10,
            observables=names,
        )  # fmt: skip
        for name in names:
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

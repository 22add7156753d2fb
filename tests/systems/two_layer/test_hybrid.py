"""The hybrid engine is the dense system of the same seed: own coordinates as features, shared ones as weights."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_features import decayed, same, steps_for
from test_features import pair as pair_of

import jaxsign as js
from jaxsign.optimizers.rules import FAMILIES
from jaxsign.sweep.groups import make_groups
from jaxsign.systems.two_layer import feature_task
from jaxsign.systems.two_layer.features import to_features
from jaxsign.systems.two_layer.model import logits
from jaxsign.systems.two_layer.underflow import QUANTITIES
from jaxsign.training.loop import Loop
from jaxsign.training.mode import Mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import begin
from jaxsign.training.train import make_train

#: 35 uses of 59 coordinates: 11 of them are shared, some by three patches.
PROBLEM = js.Problem(n=5, d=60, s=7, m_k=4, m_v=3, n_test=20)
HYPER = js.Hyper(sigma_p=2.0, sigma_0=3e-3)
SIGN_GD = js.sign_gd(1e-3)


pair = functools.partial(pair_of, engine="hybrid")


def daily(cases, *names):
    """The names of all cases; those that are not named here are slow tests: each is two programs to compile."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in cases]


OPTIMIZERS = {
    "SignGD": SIGN_GD,
    "GD": optax.sgd(0.3),
    "adam": optax.adam(1e-3, eps=1e-30),
    "signum": js.signum(1e-3, beta=0.9),
    "momentum": optax.sgd(0.03, momentum=0.9),
    "power": js.power_gd(1e-2, p=0.5),
    "schedule": js.sign_gd(optax.exponential_decay(1e-3, 50, 0.5)),
    "lion, decay": optax.lion(1e-3, weight_decay=3.0),
}


@pytest.mark.x64(only=True)
@pytest.mark.parametrize("name", daily(OPTIMIZERS, "adam", "power"))
def test_every_optimizer_runs_as_dense(name, eps):
    same(*pair(PROBLEM, HYPER, OPTIMIZERS[name], steps_for(eps)), eps)


NOT_HOMOGENEOUS = {"smooth_sign_gd", "adamw", "rmsprop"}  # their eps or temperature is comparable to gradients


@pytest.mark.slow
@pytest.mark.x64(only=True)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_HOMOGENEOUS])
def test_every_homogeneous_family_runs_as_dense(name, eps):
    factory, numbers = FAMILIES[name]
    mine, theirs = pair(PROBLEM, HYPER, factory(**numbers), steps_for(eps))
    same(mine, theirs, 1e-16)


SYSTEMS = {
    "no overlap": (dataclasses.replace(PROBLEM, overlap="none"), HYPER, SIGN_GD),
    "mini-batches": (dataclasses.replace(PROBLEM, batch_size=2), HYPER, SIGN_GD),
    "mini-batches of GD, label noise": (
        dataclasses.replace(PROBLEM, batch_size=3), dataclasses.replace(HYPER, label_noise=0.3), optax.sgd(0.3),
    ),
    "one patch": (dataclasses.replace(PROBLEM, n=1, m_k=1, m_v=1, s=1), HYPER, SIGN_GD),
    "everything shared": (dataclasses.replace(PROBLEM, s=59), HYPER, SIGN_GD),
    "disjoint": (dataclasses.replace(PROBLEM, supports="disjoint"), HYPER, SIGN_GD),
    "two heads, feature and label noise, decay, a residual path": (
        dataclasses.replace(PROBLEM, heads=2, n=13, m_k=3), js.Hyper(2.0, 1.0, 3e-3, 0.3, 0.3, 0.5), decayed(),
    ),
    "three patches, two heads, feature and label noise, decay": (
        dataclasses.replace(PROBLEM, context=3, heads=2),
        dataclasses.replace(HYPER, alpha=0.3, label_noise=0.3),
        decayed(),
    ),
    "gaussian kernel, Laplace noise": (
        dataclasses.replace(PROBLEM, kernel="gaussian", noise="laplace"), HYPER, optax.sgd(0.1),
    ),
    "linear kernel": (dataclasses.replace(PROBLEM, kernel="linear"), HYPER, SIGN_GD),
}  # fmt: skip


@pytest.mark.x64(only=True)
@pytest.mark.parametrize(
    "name", daily(SYSTEMS, "two heads, feature and label noise, decay, a residual path", "everything shared")
)
def test_every_problem_runs_as_dense(name, eps):
    same(*pair(*SYSTEMS[name], steps_for(eps), seed=2), eps)


@pytest.mark.slow
@pytest.mark.x64(only=True)
def test_one_matrix_can_be_trained_alone(eps):
    mine, theirs = pair(PROBLEM, HYPER, decayed(), steps_for(eps), trainable=("w_v",))
    same(mine, theirs, eps)
    np.testing.assert_array_equal(mine.trace["query_noise"][-1], mine.trace["query_noise"][0])


LONG = {
    "SignGD": js.sign_gd(1e-4),
    "Signum": js.signum(1e-4, beta=0.9),
    "GD": optax.sgd(0.3),
    "momentum": optax.sgd(0.03, momentum=0.9),
    "power 1/4": js.power_gd(1e-3, p=0.25),
    "decay": optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(1.0), optax.scale_by_learning_rate(1e-4)),
    "Adam": optax.adam(1e-4, eps=1e-30),
    "Adam, eps 1e-15": optax.adam(1e-4, eps=1e-15),
}
VARIED = {
    "mini-batches": ({"batch_size": 5}, {}),
    "feature noise": ({}, {"alpha": 0.2}),
    "no overlap": ({"overlap": "none"}, {}),
    "odd sizes": ({"n": 13, "m_k": 7, "m_v": 3, "s": 41}, {"label_noise": 0.2}),
}
CASES = [(name, "", 0) for name in LONG] + [("SignGD", name, 0) for name in VARIED] + [("GD", "odd sizes", 1)]


@pytest.mark.slow
@pytest.mark.x64(only=True)
@pytest.mark.parametrize(("name", "varied", "seed"), CASES)
def test_1500_steps_of_the_preset_stay_together(name, varied, seed):
    """In 64 bits, losses and every observable within 1e-9; Adam with eps=1e-15 is homogeneous to 1e-6 only.

    The dense engine's sign votes underflow 64 bits too: what follows of its query noise is not compared.
    """
    problem, hyper = js.presets.paper_like()
    sizes, numbers = VARIED.get(varied, ({}, {}))
    problem, hyper = dataclasses.replace(problem, **sizes), dataclasses.replace(hyper, **numbers)
    mine, theirs = pair(problem, hyper, LONG[name], 1500, seed)
    frozen = theirs.watch["first_frozen_step"]
    for observable, expected in theirs.trace.items():
        seen = slice(None)
        if frozen >= 0 and observable in {"query_noise", "sign_agreement", "log_s21", "test_loss", "test_error"}:
            seen = slice(int(np.searchsorted(theirs.steps, frozen)))
        size = np.nanmax(np.abs(expected))
        tolerance = 1e-6 if "1e-15" in name else 1e-9
        np.testing.assert_allclose(
            mine.trace[observable][seen], expected[seen], rtol=0, atol=tolerance * size, err_msg=observable
        )


def fresh_logits(params, data, test, hyper):
    return logits(params.fresh_features(test), test.y * test.mu, params.heads)


@pytest.mark.x64(only=True)
def test_logits_of_fresh_examples_are_dense_to_1e_12(eps):
    del eps
    mine, theirs = pair(PROBLEM, dataclasses.replace(HYPER, alpha=0.1), SIGN_GD, 100, observables=[fresh_logits])
    expected = theirs.trace["fresh_logits"]
    assert np.abs(expected[-1]).max() > 0.1
    np.testing.assert_allclose(mine.trace["fresh_logits"], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def widened(x):
    """A 32-bit array with 64 bits; others as they are."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype == np.float32 else x


def test_32_bits_follow_64_where_the_votes_underflow():
    """|log s_21| reaches 300 within the run: products of attention weights are far below what 32 bits hold."""
    problem = dataclasses.replace(PROBLEM, n=3, d=40, m_k=6, n_test=1)
    task = js.two_layer(problem, engine="hybrid")
    names = ["train_loss", "query_noise", "key_noise", "value_noise", "query_signal", "key_signal", "log_s21"]
    train = jax.jit(make_train(Loop(Mode(task, signs=True), js.sign_gd, names), Schedule.build(400, 40, 400)))
    hyper = jax.tree.map(jnp.float32, HYPER)
    start = jax.jit(lambda key: begin(task, key, hyper, None, jnp.float32(0)))(jax.random.key(1))
    assert start.data.shared.any()
    narrow = train(jax.random.key(0), start, hyper, {"learning_rate": jnp.float32(1e-2)})
    with jax.enable_x64(True):  # the same draws, continued in 64 bits
        start, hyper = (jax.tree.map(widened, tree) for tree in (start, hyper))
        wide = train(jax.random.key(0), start, hyper, {"learning_rate": np.float64(1e-2)})
    log_s21 = np.asarray(narrow["trace"]["log_s21"])
    assert log_s21[-1].min() < -300
    for name in names:
        a, b = (np.asarray(out["trace"][name], float) for out in (narrow, wide))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * np.abs(b).max(), err_msg=name)
    moved = np.asarray(narrow["trace"]["query_noise"])
    assert np.all(np.any(moved[1:] != moved[:-1], axis=(1, 2)))  # it never freezes
    for name in ("first_frozen_step", *(f"first_frozen_{name}" for name in QUANTITIES)):
        assert narrow["watch"][name] == -1


def test_a_seed_that_does_not_fit_diverges_at_step_0(monkeypatch):
    """A bound below the number of shared coordinates: NaN everywhere, and no record that looks like a result."""
    seen = {}

    def few(data, test, params, degree, overlap, slots):
        seen["slots"] = slots
        return to_features(data, test, params, degree, overlap, 4)

    monkeypatch.setattr(feature_task, "to_features", few)
    task = js.two_layer(dataclasses.replace(PROBLEM, m_v=7), engine="hybrid")  # no other test has its programs
    run = js.train(jax.random.key(1), task, HYPER, SIGN_GD, steps=10, record=5, test_every=5)
    assert seen["slots"] > 4
    assert run.status == 1  # diverged
    assert run.first_bad_step == 0
    for name, values in run.trace.items():
        assert np.isnan(values).all(), name


def test_auto_picks_it_where_it_is_exact_and_smaller():
    optimizers = {"sign_gd": SIGN_GD, "adam": optax.adam(1e-3), "muon": optax.contrib.muon(1e-3)}
    made = js.Sweep(
        system=js.two_layer, problem=PROBLEM, hyper=HYPER, engine="auto", steps=20, record=10, test_every=10,
        optimizers=optimizers, axes={"seed": 2}, observables=["train_loss", "test_loss"],
    )  # fmt: skip
    chosen = [group.choice.task.name for group in make_groups(made)]
    assert chosen == ["two_layer_hybrid", "two_layer_support", "two_layer"]
    crowded = dataclasses.replace(made, problem=dataclasses.replace(PROBLEM, s=40), optimizers={"sign_gd": SIGN_GD})
    assert [group.choice.task.name for group in make_groups(crowded)] == ["two_layer"]
    signs = dataclasses.replace(
        made, trajectory="signs", optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}
    )
    (group,) = make_groups(signs)
    assert group.choice.task.name == "two_layer_support"
    assert "two_layer_hybrid: signs of weights' steps are kept" in group.choice.why
    ds, dense = js.run_sweep(made), js.run_sweep(dataclasses.replace(made, engine="dense"))
    assert [group["task"] for group in json.loads(ds.attrs["manifest"])["plan"]["groups"]] == chosen
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(ds[name], dense[name], rtol=2e-4)


@pytest.mark.slow
def test_an_n_axis_compiles_one_program_a_power_of_two_and_changes_no_run():
    sizes = [3, 4]
    made = js.Sweep(
        system=js.two_layer, problem=PROBLEM, hyper=dataclasses.replace(HYPER, alpha=0.3, label_noise=0.2),
        engine="hybrid", steps=20, record=10, test_every=10, axes={"n": sizes, "seed": 2},
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])},
        observables=["train_loss", "test_error", "test_loss", "sign_agreement", "key_noise", "s21"],
    )  # fmt: skip
    groups = make_groups(made)
    assert len({group.program_key for group in groups}) == 1
    ds = js.run_sweep(made)
    task = js.two_layer(dataclasses.replace(PROBLEM, n=3), engine="hybrid")
    run = js.train(jax.random.key(1), task, made.hyper, js.sign_gd(1e-3), steps=20, record=10, test_every=10)
    for name in made.observables:
        stored = ds[name].isel(n=0, optimizer=0, seed=1).values
        if "sample" in ds[name].dims:
            assert np.isnan(stored[..., 3:]).all()
            stored = stored[..., :3]
        np.testing.assert_allclose(stored, run.trace[name], rtol=0, atol=2e-5, err_msg=name)


def test_what_it_is_not_exact_for_is_refused():
    task = js.two_layer(PROBLEM, engine="hybrid")
    for optimizer, words in (
        (optax.adam(1e-3), "exponent"),
        (optax.contrib.muon(1e-3), "two_layer_hybrid cannot run"),
    ):
        with pytest.raises(ValueError, match=words):
            js.train(jax.random.key(0), task, HYPER, optimizer, steps=5)

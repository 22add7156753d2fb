"""Engines are one system: support runs every coordinate-wise optimizer, auto picks, several n share a program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.optimizers.rules import FAMILIES
from jaxsign.sweep.groups import make_groups

#: The sizes of test_hybrid.py: both train dense systems of them by the same programs.
PROBLEM = js.Problem(n=5, d=60, s=7, m_k=4, m_v=3, n_test=20, supports="disjoint")
HYPER = js.Hyper(sigma_p=2.0, sigma_0=0.02)


def runs(problem, engines, optimizer, **options):
    numbers = {"steps": 30, "record": 10, "test_every": 10} | options
    return [js.train(jax.random.key(3), js.two_layer(problem, engine=e), HYPER, optimizer, **numbers) for e in engines]


def same(mine, theirs, tolerance):
    for name, expected in theirs.trace.items():
        atol = tolerance * np.nanmax(np.abs(expected))
        np.testing.assert_allclose(mine.trace[name], expected, rtol=0, atol=atol, err_msg=name)
    for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(theirs.params)):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


DECAYING = {
    "adamw": optax.adamw(1e-3, weight_decay=3.0),
    "lion": optax.lion(1e-3, weight_decay=3.0),
    "sign with decay": optax.chain(
        optax.scale_by_sign(), optax.add_decayed_weights(3.0), optax.scale_by_learning_rate(1e-3)
    ),
}


DAILY = ("adam", "sign with decay")  # the others are slow tests: each is two programs to compile


@pytest.mark.x64
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in DAILY else pytest.mark.slow) for n in (*FAMILIES, *DECAYING)]
)
def test_support_is_dense_for_every_coordinatewise_family(name, eps):
    if name in DECAYING:
        optimizer = DECAYING[name]
    else:
        factory, numbers = FAMILIES[name]
        optimizer = factory(**numbers)
    problem = dataclasses.replace(PROBLEM, supports="independent")
    mine, theirs = runs(problem, ("support", "dense"), optimizer)
    same(mine, theirs, 1e4 * eps if eps < 1e-10 else 2e-4)


@pytest.mark.slow
def test_support_decays_one_matrix_alone():
    mine, theirs = runs(PROBLEM, ("support", "dense"), DECAYING["adamw"], trainable=("w_v",))
    same(mine, theirs, 1e-4)
    assert not np.array_equal(mine.params.w_v, theirs.params.w_v * 0)
    assert np.array_equal(mine.params.w_q, theirs.params.w_q)  # neither moved


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (optax.contrib.muon(1e-3), "more than that"),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "more than that"),
        (optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9)), "remembers the parameters"),
        (optax.chain(optax.add_decayed_weights(0.5), optax.scale_by_sign()), "another way than by decoupled"),
    ],
)
def test_support_refuses_what_it_is_not_exact_for(optimizer, words):
    with pytest.raises(ValueError, match=f"two_layer_support needs .* decoupled weight decay only.*{words}"):
        runs(PROBLEM, ("support",), optimizer)


AUTO = {
    "sign_gd": (js.sign_gd(1e-3), "two_layer_feature_space", ""),
    "adam": (optax.adam(1e-3), "two_layer_support", "two_layer_feature_space"),
    "muon": (optax.contrib.muon(1e-3), "two_layer", "two_layer_support needs"),
}


def test_auto_picks_the_fastest_exact_engine_of_every_group_and_says_why():
    made = js.Sweep(
        system=js.two_layer, problem=PROBLEM, hyper=HYPER, engine="auto", steps=20, record=10, test_every=10,
        optimizers={name: optimizer for name, (optimizer, _, _) in AUTO.items()},
        axes={"seed": 2}, observables=["train_loss", "test_loss"],
    )  # fmt: skip
    ds = js.run_sweep(made)
    groups = json.loads(ds.attrs["manifest"])["plan"]["groups"]
    for group, (_, task, why) in zip(groups, AUTO.values()):
        assert group["task"] == task
        assert why in group["passed_over"]
    dense = js.run_sweep(dataclasses.replace(made, engine="dense"))
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(ds[name], dense[name], rtol=2e-4)
    mixed = dataclasses.replace(made, axes={"supports": ["disjoint", "independent"]})
    chosen = [group.choice.task.name for group in make_groups(mixed)]
    assert chosen[3:] == ["two_layer_hybrid", "two_layer_support", "two_layer"]


def whole(params, data, test, hyper):
    return jnp.sum(params.w_v**2) + hyper.mu


def test_functions_see_full_weights_whatever_runs():
    auto, dense = runs(PROBLEM, ("auto", "dense"), js.sign_gd(1e-3), observables=["train_loss", whole])
    np.testing.assert_allclose(auto.trace["whole"], dense.trace["whole"], rtol=1e-5)
    expected = jnp.sum(dense.params.w_v**2) + 1
    np.testing.assert_allclose(dense.trace["whole"][-1], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["feature_space", "feature_space_law"])
def test_an_n_axis_compiles_one_program_a_power_of_two_and_changes_no_run(engine):
    sizes = [1, 3, 4]
    made = js.Sweep(
        system=js.two_layer, problem=PROBLEM, hyper=dataclasses.replace(HYPER, alpha=0.3, label_noise=0.2),
        engine=engine, steps=20, record=10, test_every=10, axes={"n": sizes, "seed": 2},
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])},
        observables=["train_loss", "test_error", "sign_agreement", "majority_agreement", "key_noise", "s21"],
    )  # fmt: skip
    groups = make_groups(made)
    assert len({group.program_key for group in groups}) == 2  # 1; 3 and 4
    ds = js.run_sweep(made)
    assert ds.sizes["sample"] == max(sizes)
    for i, n in [(1, 3)]:
        task = js.two_layer(dataclasses.replace(PROBLEM, n=n), engine=engine)
        run = js.train(jax.random.key(1), task, made.hyper, js.sign_gd(1e-3), steps=20, record=10, test_every=10)
        for name in made.observables:
            stored = ds[name].isel(n=i, optimizer=0, seed=1).values
            if "sample" in ds[name].dims:
                assert np.isnan(stored[..., n:]).all()
                stored = stored[..., :n]
            np.testing.assert_allclose(stored, run.trace[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("engine", ["dense", "feature_space"])
def test_mini_batches_are_uniform_subsets_of_the_step(engine):
    data = jax.jit(lambda key: js.two_layer(PROBLEM).sample(key, HYPER))(jax.random.key(0))
    task = js.two_layer(dataclasses.replace(PROBLEM, batch_size=2), engine=engine)
    keys = jax.random.split(jax.random.key(1), 4000)
    weight = np.asarray(jax.jit(jax.vmap(lambda key: task.batch(key, data, HYPER).weight))(keys))
    assert set(np.unique(weight)) == {0.0, 0.5}
    assert (weight.sum(1) == 1).all()
    pairs = np.zeros(1 << PROBLEM.n)
    np.add.at(pairs, (weight > 0) @ (1 << np.arange(PROBLEM.n)), 1)
    counts = pairs[pairs > 0]
    assert counts.size == 10  # every pair of five
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square, 9 degrees, p = .001


@pytest.mark.slow
def test_a_batch_of_all_is_the_full_batch():
    full, batch = (
        runs(dataclasses.replace(PROBLEM, batch_size=b), ("feature_space",), js.sign_gd(1e-3))[0] for b in (None, 5)
    )
    np.testing.assert_allclose(full.trace["train_loss"], batch.trace["train_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "batch_size must be an int >= 1"), (6, r"in \[1, n\] = \[1, 5\]"), (2.0, "batch_size must be an int")],
)
def test_illegal_batch_sizes_are_refused(value, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PROBLEM, batch_size=value)

"""Trajectories: every parameter of every step, equal to training's to the bit; refused where that cannot be."""

import dataclasses
import functools
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.store import trajectory
from jaxsign.store.results import UnusableData
from jaxsign.sweep import recorder
from jaxsign.training.task import Reduction, WeightsOf

PROBLEM = js.Problem(n=4, d=60, s=4, m_k=3, m_v=3, n_test=8)
HYPER = js.Hyper(sigma_p=2.0, sigma_0=0.05)


def w_q(params, data, test, hyper):
    return params.w_q


def w_k(params, data, test, hyper):
    return params.w_k


def w_v(params, data, test, hyper):
    return params.w_v


def falling(step):
    return -2e-3 / jnp.sqrt(1.0 + step)


#: Of each engine; every family is a program that takes seconds to compile.
OPTIMIZERS = {
    "dense": {
        "sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3, 3e-3]),
        "lion": js.grid(optax.lion, learning_rate=[1e-3], weight_decay=[0.0]),
    },
    "support": {
        "signum": js.grid(js.signum, learning_rate=[1e-3, 3e-3]),
        "scheduled": optax.chain(optax.scale_by_sign(), optax.scale_by_schedule(falling)),
    },
}


def sweep(**changes):
    base = {
        "system": js.two_layer, "problem": PROBLEM, "hyper": HYPER, "engine": "dense",
        "optimizers": OPTIMIZERS["dense"],
        "axes": {"snr": [0.2, 1.0], "seed": 2}, "steps": 90, "record": 1, "test_every": 30, "trajectory": "signs",
        "observables": ["train_loss", "test_error", "s11", w_q, w_k, w_v],
    }  # fmt: skip
    return js.Sweep(**(base | changes))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Several segments and keyframes in few steps."""
    monkeypatch.setattr(recorder, "KEYFRAME_EVERY", 40)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """`(engine) -> (directory, results)`: every parameter at every step, as training's own observables."""

    @functools.cache
    def run(engine):
        out = tmp_path_factory.mktemp(engine) / "out"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recorder, "KEYFRAME_EVERY", 40)
            return out, js.run_sweep(sweep(engine=engine, optimizers=OPTIMIZERS[engine]), out)

    return run


@pytest.mark.parametrize("engine", ["support", pytest.param("dense", marks=pytest.mark.slow)])
def test_every_parameter_of_every_step_is_training_s_to_the_bit_mapped_and_scheduled(kept, engine):
    path, ds = kept(engine)
    opened = js.open_trajectory(path)
    assert (len(opened), opened.kind) == (12, "signs")
    for run in opened:
        point = ds.isel(dict(zip(opened.dims, run.index)))
        wanted = [point[name].values for name in ("w_q", "w_k", "w_v")]
        steps = 0
        for t, params in run.iter():
            for leaf, values in zip((params.w_q, params.w_k, params.w_v), wanted):
                assert leaf.dtype == values.dtype
                np.testing.assert_array_equal(leaf, values[t])
            steps += 1
        assert steps == 91
    assert abs(ds["w_q"].diff("step")).max() > 0


def test_any_step_is_reached_from_any_side(kept):
    path, ds = kept("support")
    run = js.open_trajectory(path).sel(snr=1.0, optimizer="signum(learning_rate=0.003)", seed=1)
    point = ds.sel(snr=1.0, optimizer="signum(learning_rate=0.003)", seed=1)
    for t in (0, 1, 39, 40, 41, 80, 90):
        np.testing.assert_array_equal(run.params(t).w_k, point["w_k"].values[t])
    assert [t for t, _ in run.iter(start=37, stop=83, every=20)] == [37, 57, 77]
    for t, params in run.iter(start=37, stop=83, every=20):
        np.testing.assert_array_equal(params.w_v, point["w_v"].values[t])


def test_observables_of_old_runs_are_those_of_training(kept):
    path, ds = kept("support")
    again = js.replay(js.open_trajectory(path), ["train_loss", "test_error", "s11", w_q], record=15)
    assert again["s11"].dims == ds["s11"].dims
    for name in ("train_loss", "test_error", "s11", "w_q"):
        wanted = ds[name].sel(step=again["step"])
        known = np.isfinite(wanted.values)  # test metrics were looked at every 30 steps only
        np.testing.assert_allclose(again[name].values[known], wanted.values[known], rtol=1e-6)
        assert np.isfinite(again[name]).all()
    one = js.replay(js.open_trajectory(path).sel(snr=0.2, optimizer="scheduled", seed=0), [w_k], record=[7])
    assert one["w_k"].dims == ("step", "w_k_dim0", "w_k_dim1")
    np.testing.assert_array_equal(one["w_k"][0], ds["w_k"].sel(snr=0.2, optimizer="scheduled", seed=0, step=7))


def test_orbax_restores_any_step_as_a_plain_pytree(kept, tmp_path):
    from orbax.checkpoint import v1 as ocp

    path, ds = kept("support")
    js.open_trajectory(path)[5].export(33, tmp_path / "step")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax would rather be told where the arrays should go
        found = ocp.load(tmp_path / "step")
    point = ds.isel(dict(zip(ds["status"].dims, np.unravel_index(5, (2, 3, 2))), step=33))
    for name in ("w_q", "w_k", "w_v"):
        np.testing.assert_array_equal(found[name], point[name])
    with pytest.raises(ValueError, match="folder must be new"):
        js.open_trajectory(path)[5].export(33, tmp_path / "step")


def test_what_does_not_move_by_one_amplitude_is_refused_before_anything_is_written(tmp_path):
    cases = {
        "lion": (js.grid(optax.lion, learning_rate=[1e-3]), "dense", "lion"),  # for its weight decay
        "gd": (js.grid(optax.sgd, learning_rate=[0.1]), "dense", "sgd"),
        "law": (js.grid(js.sign_gd, learning_rate=[1e-3]), "feature_space_law", "are not known"),
    }
    disjoint = dataclasses.replace(PROBLEM, supports="disjoint")
    for name, (optimizer, engine, words) in cases.items():
        made = sweep(optimizers={name: optimizer}, engine=engine, problem=disjoint, observables=["train_loss"])
        with pytest.raises(ValueError, match=words) as caught:
            js.run_sweep(made, tmp_path / "out")
        assert "trajectory='signs'" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="needs out="):
        js.run_sweep(sweep())


def jump(step):
    """A rate at which one step in fifty is no sign step."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda updates, count, params: (
            jax.tree.map(lambda u: -jnp.sign(u) * jnp.where(count == step, jnp.arange(3.0), 1e-3), updates), count + 1,
        ),
    )  # fmt: skip


def test_the_device_refuses_a_step_that_no_probe_has_seen(tmp_path):
    made = user_sweep(optimizers={"jump": js.grid(jump, step=[50])}, axes={"seed": 2}, steps=90, hyper={"goal": 1e3})
    with pytest.raises(ValueError, match="took another one at step 50"):
        js.run_sweep(made, tmp_path / "out")
    assert js.open_results(tmp_path / "out")["status"].max() == -1


@functools.cache
def line(problem):
    """A system of a user: w runs to the hyper-parameter."""
    return js.Task(
        sample=lambda key, hyper, shared: jnp.ones(3),
        init=lambda key, data, hyper: {"w": jnp.zeros(3)},
        loss=lambda params, data, hyper: jnp.sum((params["w"] - hyper["goal"]) ** 2),
        observe=lambda params, data, test, hyper: {"train_loss": jnp.sum(params["w"]), "w": params["w"]},
        reduction=Reduction(project=lambda params, data: {"w": params["w"] * data}),
    )


def user_sweep(**changes):
    base = {
        "system": line, "problem": None, "hyper": {"goal": 1.0}, "optimizers": {"sign_gd": js.sign_gd(0.25)},
        "steps": 6, "record": 1, "trajectory": "signs", "observables": ["w"],
    }  # fmt: skip
    return js.Sweep(**(base | changes))


@functools.cache
def doubled(problem):
    """The line, trained on (2 w_0, -2 w_1), which move twice as far as w; the third weight stays where it is."""
    scale = jnp.array([2.0, -2.0])

    def loss(params, data, hyper):
        return jnp.sum((params["w"] / scale - hyper["goal"]) ** 2)

    def signs(params, data):
        still = jnp.zeros(1, jnp.int8)
        return lambda moves: {"w": jnp.concatenate([moves["w"] * jnp.array([1, -1], jnp.int8), still])}

    weights = dataclasses.replace(
        line(None), init=lambda key, data, hyper: {"w": jnp.array([0.0, 1.0, 7.0])}, reduction=Reduction()
    )
    return js.Task(
        sample=weights.sample,
        init=lambda key, data, hyper: {"w": jnp.array([0.0, -2.0]), "bias": jnp.zeros(2)},
        loss=loss,
        observe=lambda params, data, test, hyper: {"w": params["w"]},
        scale=lambda data, hyper: {"w": jnp.full(2, 2.0), "bias": jnp.ones(2)},
        reduction=Reduction(weights=WeightsOf(weights, signs)),
    )


def weights_of_line(params, data, test, hyper):
    return params["w"]


def test_a_task_that_names_its_weights_is_read_by_them(tmp_path):
    made = user_sweep(system=doubled, trainable=("w",), observables=["w"], hyper={"goal": 0.6})
    ds = js.run_sweep(made, tmp_path / "out")
    opened = js.open_trajectory(tmp_path / "out", made)
    found = js.replay(opened, [weights_of_line], record=1)["weights_of_line"].values[0, 0]
    by_hand = [[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [0.75, 0.75], [0.5, 0.5], [0.75, 0.75], [0.5, 0.5]]
    np.testing.assert_array_equal(found, [[*pair, 7.0] for pair in by_hand])
    np.testing.assert_array_equal(ds["w"].values[0, 0], found[:, :2] * [2, -2])
    unnamed = dataclasses.replace(doubled(None), reduction=Reduction())
    with pytest.raises(ValueError, match="those behind the parameters of task are not known"):
        js.run_sweep(dataclasses.replace(made, system=lambda problem: unnamed), tmp_path / "other")


def test_a_single_jitted_run_is_kept_to_the_bit(tmp_path):
    made = user_sweep(optimizers={"sign_gd": js.sign_gd(0.1)}, steps=30)
    js.run_sweep(made, tmp_path / "out", lane_width=1)
    run = js.open_trajectory(tmp_path / "out", made)[0]
    for steps in (1, 17, 30):
        alone = js.train(jax.random.key(0), line(None), {"goal": 1.0}, js.sign_gd(0.1), steps=steps).params
        np.testing.assert_array_equal(run.params(steps)["w"], alone["w"])


@pytest.mark.parametrize(
    ("kind", "steps"), [("log2", [0, 1, 2, 4, 8, 16, 32, 64, 90]), ([3, 64, 90], [3, 64, 90]), ([7], [7])]
)
def test_snapshots_of_any_optimizer_are_raw(tmp_path, kind, steps):
    optimizers = {"adam": js.grid(optax.adam, learning_rate=[1e-3]), "gd": optax.sgd(0.01)}
    made = user_sweep(optimizers=optimizers, trajectory=kind, axes={"seed": 2}, steps=90)
    ds = js.run_sweep(made, tmp_path / "out")
    opened = js.open_trajectory(tmp_path / "out", made)
    assert opened.kind == ("log2" if kind == "log2" else "steps")
    for run in opened:
        assert run.steps.tolist() == steps
        point = ds.isel(dict(zip(opened.dims, run.index)))
        for t, params in run.iter():
            np.testing.assert_array_equal(params["w"], point["w"].values[t])
        with pytest.raises(ValueError, match="one of the kept"):
            run.params(5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dense", "feature_space", "hybrid"])
def test_features_of_any_optimizer_give_every_observable_of_the_training_set(tmp_path, engine):
    names = ["train_loss", "s11", "query_noise", "key_signal", "value_noise"]
    made = sweep(
        optimizers={"adam": js.grid(optax.adam, learning_rate=[1e-3], eps=[1e-16])},
        axes={"seed": 2}, trajectory="features", engine=engine, observables=names,
        problem=dataclasses.replace(PROBLEM, supports="independent" if engine == "hybrid" else "disjoint"),
    )  # fmt: skip
    ds = js.run_sweep(made, tmp_path / "out")
    again = js.replay(js.open_trajectory(tmp_path / "out"), names, record=1)
    for name in names:
        np.testing.assert_allclose(again[name], ds[name], rtol=2e-6, atol=1e-8)
    if engine == "dense":
        with pytest.raises(ValueError, match="observable of the training set 'test_loss'"):
            js.replay(js.open_trajectory(tmp_path / "out"), ["test_loss"])
    with pytest.raises(ValueError, match="observables must be names"):
        js.replay(js.open_trajectory(tmp_path / "out"), [w_q])


def test_features_of_every_step_give_the_observables_of_the_training_set(tmp_path):
    optimizers = {"adam": js.grid(optax.adam, learning_rate=[1e-3]), "gd": optax.sgd(0.01)}
    made = user_sweep(optimizers=optimizers, trajectory="features", axes={"seed": 2}, steps=140)
    ds = js.run_sweep(made, tmp_path / "out")
    opened = js.open_trajectory(tmp_path / "out", made)
    again = js.replay(opened, record=1)
    for name in ("train_loss", "w"):
        np.testing.assert_allclose(again[name], ds[name] if name in ds else again["w"].sum("w_dim0"), rtol=1e-6)
    np.testing.assert_array_equal(opened[3].params(140)["w"], ds["w"].isel(optimizer=1, seed=1, step=140))
    with pytest.raises(ValueError, match="observables must be names"):
        js.replay(opened, [w_q])


def test_a_user_s_system_is_given_as_sweep(tmp_path):
    made = user_sweep()
    js.run_sweep(made, tmp_path / "out")
    run = js.open_trajectory(tmp_path / "out", made)[0]
    assert [float(params["w"][0]) for _, params in run.iter()] == [0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"belongs to another definition: steps: 6 -> 7"):
        js.open_trajectory(tmp_path / "out", dataclasses.replace(made, steps=7))


def test_a_user_s_system_without_a_problem_is_found_where_it_is_imported_and_the_same(tmp_path, monkeypatch):
    made = user_sweep()
    js.run_sweep(made, tmp_path / "out")
    one, two = (js.open_trajectory(tmp_path / "out", *given)[0] for given in ((), (made,)))
    np.testing.assert_array_equal(one.params(3)["w"], two.params(3)["w"])
    changed = dataclasses.replace(line(None), loss=lambda params, batch, hyper: jnp.sum(params["w"] ** 4))
    for other in (lambda problem: changed, None):
        with monkeypatch.context() as patch:
            patch.setitem(globals(), "line", other)
            with pytest.raises(ValueError, match=r"system 'test_trajectories\.line': give the sweep that made it as"):
                js.open_trajectory(tmp_path / "out")


def test_arguments_bound_to_a_system_are_read_from_the_definition(tmp_path):
    problem = js.Problem(n=4, d=200, s=4, m_k=2, m_v=2, n_test=4)
    plain = {
        "problem": problem, "hyper": js.Hyper(sigma_p=2.0), "optimizers": {"gd": optax.sgd(0.1)}, "steps": 4,
        "observables": ["train_loss"],  # nothing here looks at the others, and each is compiled
    }  # fmt: skip
    for overlap in ("none", "exact"):
        system = functools.partial(js.two_layer, overlap=overlap)
        sweep = js.Sweep(system=system, trajectory="log2", **plain)
        js.run_sweep(sweep, tmp_path / overlap, progress=False)
        opened = js.open_trajectory(tmp_path / overlap)[0]
        assert opened.source.task is system(problem)
        given = js.open_trajectory(tmp_path / overlap, sweep)[0]
        np.testing.assert_array_equal(opened.params(4).w_v, given.params(4).w_v)


def test_a_run_is_selected_by_its_optimizer_s_numbers(tmp_path):
    optimizers = {"gd": js.grid(optax.sgd, learning_rate=[0.1, 0.2]), "sign": js.grid(js.sign_gd, learning_rate=[0.2])}
    js.run_sweep(user_sweep(optimizers=optimizers, axes={"seed": 2}, trajectory="log2"), tmp_path, progress=False)
    opened = js.open_trajectory(tmp_path)
    assert opened.sel(family="gd", learning_rate=0.2, seed=1).index == (1, 1)
    assert opened.sel(learning_rate=0.1, seed=0).index == (0, 0)
    assert opened.sel(optimizer="sign", seed=0).index == (2, 0)
    for labels, words in [
        ({"learning_rate": 0.2, "seed": 0}, "sel needs optimizer, one of ['gd(learning_rate=0.2)', 'sign']"),
        ({"family": "sign", "learning_rate": 0.1, "seed": 0}, "learning_rate must be one of [0.2], got 0.1"),
        ({"seed": 5, "family": "sign"}, "seed must be one of [0, 1], got 5"),
        ({"sed": 1}, "unknown label of sel 'sed'; did you mean 'seed'?"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            opened.sel(**labels)


@pytest.mark.parametrize(
    ("system", "problem", "hyper"),
    [
        (js.linear_attention, js.RegressionProblem(d=3, n_context=4, depth=2, batch_size=8, n_eval=8, n_hessian=4),
         js.RegressionHyper()),
        (js.residual_attention, js.ResidualProblem(n=4, d=6, d_ff=8, d_out=2), js.ResidualHyper()),
    ],
)  # fmt: skip
def test_every_system_of_jaxsign_opens_without_its_sweep(tmp_path, system, problem, hyper):
    sweep = js.Sweep(
        system=system, problem=problem, hyper=hyper, optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 2},
        steps=6, record=3, trajectory=[0, 3, 6], observables=["train_loss"],
    )  # fmt: skip
    js.run_sweep(sweep, tmp_path / "out")
    run, same = js.open_trajectory(tmp_path / "out")[1], js.open_trajectory(tmp_path / "out", sweep)[1]
    jax.tree.map(np.testing.assert_array_equal, run.params(6), same.params(6))


def test_a_diverged_run_is_kept_up_to_where_it_diverged(tmp_path):
    rates = {"sign_gd": js.grid(js.sign_gd, learning_rate=[0.25, 1e30])}
    made = user_sweep(optimizers=rates, axes={"seed": 2}, steps=20)
    ds = js.run_sweep(made, tmp_path / "out")
    opened = js.open_trajectory(tmp_path / "out", made)
    run = opened.sel(optimizer="sign_gd(learning_rate=1e+30)", seed=1)
    bad = run.first_bad_step
    assert bad == 1
    assert [t for t, _ in run.iter()] == [0]
    np.testing.assert_array_equal(run.params(0)["w"], ds["w"].isel(optimizer=1, seed=1, step=0))
    with pytest.raises(ValueError, match="before the run diverged at step 1"):
        run.params(1)
    again = js.replay(opened, ["train_loss"], record=1)
    assert again["train_loss"].isel(optimizer=1).isnull().sum("step").values.tolist() == [20, 20]
    assert again["train_loss"].isel(optimizer=0).notnull().all()


def test_codes_of_any_shape_come_back_and_bad_bytes_do_not(kept, tmp_path):
    from jaxsign.training.tape import pack, unpack

    rng = np.random.default_rng(0)
    for shape in ((), (1,), (3,), (8,), (9,), (2, 5), (20, 7), (3, 4, 5)):
        signs = rng.integers(-1, 2, shape)
        there_and_back = jax.jit(lambda moves, shape=shape: unpack(pack(moves), shape))
        np.testing.assert_array_equal(there_and_back(np.float32(0.3) * signs.astype(np.float32)), signs)
    record = trajectory.Record()
    for dtype in (np.uint8, np.uint32):
        codes = rng.integers(0, 255, (9, 11)).astype(dtype)
        record.deltas(codes)
        (found,) = trajectory.decompress(record.compressed(), [(codes.shape, codes.dtype.str)])
        np.testing.assert_array_equal(trajectory.undo_deltas(found), codes)

    path = tmp_path / "copy"
    shutil.copytree(kept("support")[0], path)
    file = sorted(path.glob("trajectories/*/*.segment"))[1]
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 4
    file.write_bytes(raw)
    whole, lines = trajectory.stored(path)
    assert len(whole) == 11
    assert str(file) in lines[0]
    assert cli.main(["verify", str(path)]) == 1
    with pytest.raises(UnusableData, match="does not have the CRC"):
        [list(run.iter()) for run in js.open_trajectory(path)]
    js.run_sweep(sweep(engine="support", optimizers=OPTIMIZERS["support"]), path)  # mends it
    assert cli.main(["verify", str(path)]) == 0
    for one, other in zip(js.open_trajectory(path), js.open_trajectory(kept("support")[0])):
        np.testing.assert_array_equal(one.params(77).w_q, other.params(77).w_q)


@pytest.mark.parametrize("value", ["sign", [3, 3], [5, 2], [91], [], [1.5], 4, [True]])
def test_bad_kinds_are_refused_in_one_line(value):
    with pytest.raises(ValueError, match="trajectory must be one of 'signs', 'features', 'log2' or increasing steps"):
        sweep(trajectory=value)

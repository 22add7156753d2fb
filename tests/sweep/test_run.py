"""Mapped sweeps against loops of single runs: values, labels, padding, blocks, compiles and diverging runs."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.sweep import sizes


@dataclasses.dataclass(frozen=True)
class Points:
    n: int = 4
    shift: int = 0
    tag: str = ""


COUNTS = {}


def system(problem, engine="plain"):
    return least_squares(problem, engine)


@functools.cache
def least_squares(problem, engine):
    """Least squares on points that are cheap functions of the key: compiling random draws would take longer."""

    def points(key, shift):
        u = jax.random.key_data(key).astype(float) / 2.0**32
        x = jnp.sin(jnp.arange(problem.n * 3.0).reshape(problem.n, 3) * (1 + u[0]) + problem.shift + shift + u[1])
        return x, x @ jnp.array([1.0, -2.0, 0.5])

    def residual(params, data, hyper):
        return data[0] @ params["w"] + params["b"] - hyper["slope"] * data[1]

    def loss(params, data, hyper):
        COUNTS[problem.tag] = COUNTS.get(problem.tag, 0) + 1  # counts traces: a compiled program does not come by
        square = jnp.mean(residual(params, data, hyper) ** 2) + hyper["decay"] * jnp.sum(params["w"] ** 2)
        return 2 * square if engine == "doubled" else square

    def observe(params, data, test, hyper):
        out = {"train_loss": loss(params, data, hyper), "residual": residual(params, data, hyper)}
        return out if test is None else {**out, "test_loss": loss(params, test, hyper)}

    return js.Task(
        sample=lambda key, hyper, shared: points(key, 0.0),
        sample_test=lambda key, hyper, shared: points(key, 1.0),
        init=lambda key, data, hyper: {"w": jnp.full(3, 0.1), "b": jnp.zeros(())},
        loss=loss,
        observe=observe,
        describe=lambda data, test, hyper: {"size": jnp.sum(data[0] ** 2)},
        dims={"residual": ("sample",)},
        attrs={"train_loss": {"long_name": "mean square", "units": "1"}},
        name="least_squares",
    )


def sweep(**changes):
    base = {
        "system": system, "problem": Points(), "hyper": {"slope": 1.0, "decay": 0.01}, "steps": 12, "record": 3,
        "test_every": 6, "optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.05, 0.2])},
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def manifest(ds):
    return json.loads(ds.attrs["manifest"])


def single(made, index, optimizer, seed, **changes):
    """The same run by js.train."""
    settings = {"steps": 12, "record": 3, "test_every": 6} | changes
    return js.train(jax.random.key(seed), made.task(index), made.hyper_at(index), optimizer, **settings)


def same(left, right, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def families():
    optimizers = {
        "gd": js.grid(optax.sgd, learning_rate=0.1, momentum=0.5, nesterov=[False, True]),
        "adam": js.grid(optax.adam, learning_rate=[0.1], b2=[0.9, 0.99]),
        "mine": js.sign_gd(0.02),
    }
    names = ["train_loss", "residual", "test_loss"]
    made = sweep(optimizers=optimizers, axes={"slope": [1.0, 2.5], "seed": [5, 2]}, observables=names)
    return made, js.run_sweep(made)


def test_a_mapped_sweep_is_a_loop_of_single_runs(families):
    made, ds = families
    nesterov = optax.sgd(0.1, momentum=0.5, nesterov=True)
    for j, optimizer in ((1, nesterov), (3, optax.adam(0.1, b2=0.99)), (4, js.sign_gd(0.02))):
        for i in range(2):
            for k, seed in enumerate((5, 2)):
                run, point = single(made, (i,), optimizer, seed), ds.isel(slope=i, optimizer=j, seed=k)
                for name in ("train_loss", "residual", "test_loss"):
                    same(point[name], run.trace[name])
                same(point["size"], run.constants["size"])
    assert np.isfinite(ds["train_loss"]).all()
    assert (
        float(abs(ds["train_loss"].isel(step=-1, optimizer=0) - ds["train_loss"].isel(step=-1, optimizer=1)).min()) > 0
    )
    # test steps are the first records at or after 0, 6, 12; NaN between
    tested = np.isfinite(ds["test_loss"]).any(["slope", "optimizer", "seed"])
    assert tested.values.tolist() == [True, False, True, False, True]
    assert len({float(v) for v in ds["size"].values.ravel()}) == 2  # data differ by seed, not by optimizer or slope


def test_names_dims_and_coordinates(families):
    _, ds = families
    assert ds["residual"].dims == ("slope", "optimizer", "seed", "step", "sample")
    assert ds["train_loss"].dims == ("slope", "optimizer", "seed", "step")
    assert ds["size"].dims == ds["status"].dims == ("slope", "optimizer", "seed")
    assert ds["optimizer"].values.tolist() == [
        "gd(nesterov=False)", "gd(nesterov=True)", "adam(b2=0.9)", "adam(b2=0.99)", "mine",
    ]  # fmt: skip
    assert ds["family"].values.tolist() == ["gd", "gd", "adam", "adam", "mine"]
    np.testing.assert_array_equal(ds["learning_rate"], [0.1, 0.1, 0.1, 0.1, math.nan])
    np.testing.assert_array_equal(ds["momentum"], [0.5, 0.5, math.nan, math.nan, math.nan])
    np.testing.assert_array_equal(ds["b2"], [math.nan, math.nan, 0.9, 0.99, math.nan])
    assert ds["slope"].values.tolist() == [1.0, 2.5]
    assert ds["seed"].values.tolist() == [5, 2]
    assert ds["step"].values.tolist() == [0, 3, 6, 9, 12]
    assert ds["sample"].values.tolist() == [0, 1, 2, 3]
    assert float(ds["decay"]) == 0.01  # the numbers that no axis sets are scalar coordinates
    assert ds["train_loss"].attrs["units"] == "1"
    assert ds["train_loss"].attrs["long_name"] == "mean square"
    assert (ds["status"] == 0).all()
    assert (ds["first_bad_step"] == -1).all()
    assert ds["status"].dtype == np.int8
    assert ds["first_bad_step"].dtype == np.int32
    assert not [name for name, index in ds.indexes.items() if index.nlevels > 1]
    assert manifest(ds)["runs"] == {"total": 20, "finished": 20, "diverged": 0, "not_run": 0}


def test_a_zipped_static_axis_pads_with_nan_and_says_so():
    made = sweep(axes={("n", "shift"): [(4, 0), (2, 3)], "seed": 2}, observables=["residual"])
    ds = js.run_sweep(made)
    assert ds["residual"].dims == ("n", "optimizer", "seed", "step", "sample")
    assert ds.sizes["sample"] == 4
    assert ds["n"].values.tolist() == [4, 2]
    assert ds["shift"].dims == ("n",)
    assert ds["shift"].values.tolist() == [0, 3]
    for i, n in enumerate((4, 2)):
        assert ds["residual"].isel(n=i, sample=slice(n, None)).isnull().all()
        run = single(made, (i,), optax.sgd(0.2), 1, observables=["residual"])
        same(ds["residual"].isel(n=i, optimizer=1, seed=1, sample=slice(n)), run.trace["residual"])
    assert "padded with NaN" in ds["residual"].attrs["padded"]
    assert list(manifest(ds)["padded"]) == ["residual"]
    assert "padded" not in ds["size"].attrs


@pytest.mark.slow
def test_the_two_layer_system_over_snr_is_a_loop_of_single_runs(problem):
    settings = {"steps": 20, "test_every": 20, "observables": ["train_loss", "test_loss", "value_noise", "key_noise"]}
    made = js.Sweep(
        system=js.two_layer, problem=problem, hyper=js.Hyper(sigma_p=2.0, sigma_0=0.05), **settings,
        axes={"snr": [0.2, 1.0], "seed": 2}, optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3, 4e-3])},
    )  # fmt: skip
    ds = js.run_sweep(made)
    assert ds["key_noise"].dims == ("snr", "optimizer", "seed", "step", "row", "sample")
    assert ds["sigma_p"].dims == ("snr",)
    for i, snr in enumerate([0.2, 1.0]):
        hyper = js.Hyper(sigma_p=1 / (snr * math.sqrt(problem.s)), sigma_0=0.05)  # SNR = mu/(sigma_p sqrt s), mu = 1
        assert float(ds["sigma_p"][i]) == pytest.approx(hyper.sigma_p, rel=1e-12)
        run = js.train(jax.random.key(1), js.two_layer(problem), hyper, js.sign_gd(4e-3), **settings)
        point = ds.isel(snr=i, optimizer=1, seed=1)
        for name in settings["observables"]:
            same(point[name], run.trace[name])
        same(point["noise_l1"], run.constants["noise_l1"])
    assert float(abs(ds["train_loss"].diff("step")).min()) > 0
    # noise scales with sigma_p on the same standard draws: runs are paired over SNR
    ratio = ds["noise_l1"].isel(snr=0) / ds["noise_l1"].isel(snr=1)
    same(ratio, np.full(ratio.shape, 5.0), 1e-4)


def test_many_values_are_traced_as_often_as_one():
    counts = []
    for tag, count in (("one", 1), ("many", 7)):
        optimizers = {"gd": js.grid(optax.sgd, learning_rate=[0.1 / (i + 1) for i in range(count)])}
        axes = {"slope": [1.0 + i for i in range(count)], "seed": 2 * count}
        js.run_sweep(sweep(problem=Points(tag=tag), optimizers=optimizers, axes=axes))
        counts.append(COUNTS.pop(tag))
    assert counts[0] == counts[1] > 0


def test_blocks_do_not_change_a_bit(monkeypatch):
    axes = {"slope": [1.0, 2.0, 3.0], "decay": [0.0, 0.1], "seed": 7}
    results = []
    # lane, runs of a call at most, memory; extents of a block, records that are kept at a time
    cases = [
        (2, 64, None, [3, 2, 1, 7], 5),
        (2, 5, None, [1, 1, 1, 4], 5),
        (2, 64, 400, [1, 1, 1, 4], 2),
        (5, 64, None, [3, 2, 1, 7], 5),
    ]
    for lane, runs, memory, block, records in cases:
        monkeypatch.setattr(sizes, "lane_width", lambda state, runs, backend, lane=lane: lane)
        monkeypatch.setattr(sizes, "BLOCK_RUNS", runs)
        ds = js.run_sweep(sweep(axes=axes), memory=memory)
        assert manifest(ds)["plan"]["block"] == block
        assert manifest(ds)["plan"]["records"] == records
        assert [group["lane_width"] for group in manifest(ds)["plan"]["groups"]] == [lane]
        # padded, nothing dropped
        assert manifest(ds)["runs"] == {"total": 84, "finished": 84, "diverged": 0, "not_run": 0}
        assert (ds["status"] == 0).all()
        assert np.isfinite(ds["train_loss"]).all()
        results.append(ds.drop_attrs())
    assert results[1].identical(results[0])
    assert results[2].identical(results[0])
    same(results[3]["train_loss"], results[0]["train_loss"])


CHILD = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
sys.path.insert(0, sys.argv[2])
import jaxsign as js
import test_run
ds = js.run_sweep(test_run.sweep(axes={"slope": [1.0, 2.0, 3.0], "seed": 5}))
print(json.dumps([jax.local_device_count(), ds["train_loss"].values.tobytes().hex()]))
"""


def test_another_number_of_devices_does_not_change_a_bit():
    devices = 3 if jax.local_device_count() != 3 else 2
    here = js.run_sweep(sweep(axes={"slope": [1.0, 2.0, 3.0], "seed": 5}))["train_loss"].values
    arguments = [sys.executable, "-c", CHILD, str(devices), os.path.dirname(__file__)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [devices, here.tobytes().hex()]


@pytest.mark.x64
def test_a_diverging_run_is_marked_and_leaves_its_neighbours_alone(capsys):
    def pair(rate):
        optimizers = {"gd": js.grid(optax.sgd, learning_rate=[0.05, rate])}
        return js.run_sweep(sweep(optimizers=optimizers, axes={"slope": [1.0, 2.0], "seed": 3}, record=1))

    calm, wild = pair(0.2), pair(1e14)
    words = capsys.readouterr().err
    assert "6 of 12 runs diverged" in words
    assert "first_bad_step" in words
    bad, good = wild.isel(optimizer=1), wild.isel(optimizer=0)
    assert good.drop_vars("optimizer").identical(calm.isel(optimizer=0).drop_vars("optimizer").assign_attrs(good.attrs))
    assert (good["status"] == 0).all()
    assert (bad["status"] == 1).all()
    assert manifest(wild)["runs"] == {"total": 12, "finished": 6, "diverged": 6, "not_run": 0}
    # The loss grows by about (2 lr |x|^2)^2 a step: the first step whose loss overflows, by NumPy in the same precision
    task, dtype = system(Points()), wild["train_loss"].dtype
    for seed in range(3):
        x, y = (np.asarray(a) for a in task.sample(js.stream(jax.random.key(seed), "data"), None, None))
        w, b, step = np.full(3, 0.1, dtype), dtype.type(0), 0
        with np.errstate(all="ignore"):
            while np.isfinite(np.mean((r := x @ w + b - y) ** 2) + dtype.type(0.01) * np.sum(w**2)):
                w = w - dtype.type(1e14) * (2 * x.T @ r / 4 + dtype.type(0.02) * w)
                b, step = b - dtype.type(1e14) * 2 * np.mean(r), step + 1
        run = bad.isel(slope=0, seed=seed)
        assert int(run["first_bad_step"]) == step
        assert np.isfinite(run["train_loss"]).values.tolist() == [t < step for t in range(13)]


def test_engines_are_a_static_axis():
    gd = {"gd": js.grid(optax.sgd, learning_rate=[0.1, 0.2])}
    ds = js.run_sweep(sweep(axes={"engine": ["plain", "doubled"], "seed": 2}, optimizers=gd))
    assert ds["engine"].values.tolist() == ["plain", "doubled"]
    start = ds["train_loss"].isel(step=0)
    same(start.sel(engine="doubled"), 2 * start.sel(engine="plain"), 1e-6)
    # a doubled loss at half the rate is the same descent
    loss = ds["train_loss"].drop_vars("optimizer")
    same(loss.sel(engine="doubled").isel(optimizer=0), 2 * loss.sel(engine="plain").isel(optimizer=1))


def final(trace):
    return {"final": trace["train_loss"][-1], "when": trace["step"][jnp.argmin(trace["train_loss"])]}


def test_a_summary_is_kept_beside_the_trace_or_instead_of_it():
    axes = {"slope": [1.0, 2.0], "seed": 2}
    both = js.run_sweep(sweep(axes=axes, summary=final))
    only = js.run_sweep(sweep(axes=axes, summary=final, keep_trace=False))
    np.testing.assert_array_equal(both["final"], both["train_loss"].isel(step=-1))
    np.testing.assert_array_equal(both["when"], both["step"][both["train_loss"].argmin("step")])
    assert both["final"].dims == ("slope", "optimizer", "seed")
    same(only["final"], both["final"], 1e-6)
    assert set(only.data_vars) == {"final", "when", "size", "status", "first_bad_step"}


def norm(params, data, test, hyper):
    return jnp.sum(params["w"] ** 2) * hyper["slope"]


def test_functions_are_observed_under_their_name():
    made = sweep(observables=["train_loss", norm], axes={"slope": [1.0, 2.0], "seed": 2})
    ds = js.run_sweep(made)
    assert set(ds.data_vars) == {"train_loss", "norm", "size", "status", "first_bad_step"}
    run = single(made, (1,), optax.sgd(0.2), 1, observables=["train_loss", norm])
    same(ds["norm"].isel(slope=1, optimizer=1, seed=1), run.trace["norm"])
    same(ds["norm"].isel(step=0).sel(slope=2.0), np.full((2, 2), 2 * 3 * 0.1**2), 1e-6)


def test_a_system_without_problem_numbers_or_axes():
    task = js.Task(
        sample=lambda key, hyper, shared: shared * jnp.ones(2),
        init=lambda key, data, hyper: {"w": jnp.zeros(2)},
        loss=lambda params, data, hyper: jnp.sum((params["w"] - data) ** 2) / 2,
        observe=lambda params, data, test, hyper: {"first": params["w"][0]},
    )
    ds = js.run_sweep(
        js.Sweep(system=lambda problem: task, problem=None, hyper=None, optimizers={"gd": optax.sgd(0.5)}, steps=4,
                 record=[1, 3, 4], shared=jnp.array(3.0))
    )  # fmt: skip
    assert ds["first"].dims == ("optimizer", "seed", "step")
    same(ds["first"].values.ravel(), 3 * (1 - 0.5 ** np.array([1, 3, 4])), 1e-6)  # w_t = goal (1 - (1-lr)^t)
    assert ds["optimizer"].values.tolist() == ["gd"]


def weight(params, data, test, hyper):
    return params["w"]


def test_trainable_freezes_the_rest():
    ds = js.run_sweep(sweep(trainable=["b"], observables=["train_loss", weight], axes={"seed": 2}))
    same(ds["weight"], np.full(ds["weight"].shape, 0.1), 1e-7)
    assert ds["weight"].dims[-1] == "weight_dim0"
    run = js.train(
        jax.random.key(1), system(Points()), {"slope": 1.0, "decay": 0.01}, optax.sgd(0.2), steps=12, record=3,
        trainable=["b"],
    )  # fmt: skip
    same(ds["train_loss"].isel(optimizer=1, seed=1), run.trace["train_loss"])
    assert float(run.params["b"]) != 0


def test_nothing_is_printed_where_there_is_no_terminal(capfd):
    js.run_sweep(sweep(problem=Points(tag="quiet")))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"observables": ["trainloss"]}, "did you mean 'train_loss'"), ({"trainable": ["v"]}, "trainable parameter 'v'")],
)
def test_unknown_names_are_refused_before_anything_runs(changes, words):
    with pytest.raises(ValueError, match=words):
        js.run_sweep(sweep(**changes))
    with pytest.raises(ValueError, match=r"sweep must be a js\.Sweep, got dict"):
        js.run_sweep({})


@functools.cache
def two_tests(problem):
    """A system whose test set has a part that only an observable nobody asked for looks at."""
    del problem
    return dataclasses.replace(
        least_squares(Points(), "plain"),
        sample_test=lambda key, hyper, shared: {"seen": jnp.ones(3), "unseen": jax.random.key_data(key).astype(float)},
        observe=lambda params, data, test, hyper: {
            "train_loss": jnp.sum(params["w"] ** 2),
            **({} if test is None else {n: jnp.sum(params["w"]) * jnp.sum(v) for n, v in test.items()}),
        },
    )  # fmt: skip


def test_what_no_chosen_observable_looks_at_may_lie_on_several_devices():
    """XLA finds no use for it and would place it by itself."""
    made = js.Sweep(
        system=two_tests, problem=None, hyper={"slope": 1.0, "decay": 0.0}, optimizers={"gd": optax.sgd(0.1)},
        axes={"seed": 4}, steps=6, record=2, test_every=6, observables=["train_loss", "seen"],
    )  # fmt: skip
    ds = js.run_sweep(made)
    assert np.isfinite(ds["seen"].sel(step=6)).all()
    assert bool((ds["status"] == 0).all())


def test_a_summary_named_like_an_observable_is_refused():
    def last(trace):
        return {"train_loss": trace["train_loss"][-1]}

    with pytest.raises(ValueError, match=r"train_loss.*(twice|both|already)"):
        js.run_sweep(sweep(summary=last))


def test_keywords_named_like_a_hyper_field_or_a_dimension_keep_a_column_each():
    def mine(learning_rate, slope=1.0, seed=3.0):
        return optax.sgd(learning_rate * slope * seed / 3)

    ds = js.run_sweep(sweep(optimizers={"m": js.grid(mine, learning_rate=[0.1], slope=[1.0, 2.0], seed=[3.0, 4.0])}))
    columns = [name for name, values in ds.coords.items() if values.dims == ("optimizer",)]
    assert len(columns) == 5, columns  # optimizer, family, learning_rate, optimizer_slope, optimizer_seed

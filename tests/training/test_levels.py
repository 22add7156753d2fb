"""Observables captured where the training loss crosses a level: against runs of which every step is recorded."""

import dataclasses
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.store.levels import check_levels
from jaxsign.sweep import execute as blocks
from jaxsign.training.levels import Crossings

LEVELS = (0.6, 0.5, 0.3, 0.1, 0.03)
NAMES = ("train_loss", "test_loss", "test_error")
RATES = [1e-4, 1e-3, 1e-2]  # two decades


def momentum(learning_rate):
    return optax.sgd(learning_rate, momentum=0.9)


OPTIMIZERS = {
    "sign_gd": js.grid(js.sign_gd, learning_rate=RATES),
    "adam": js.grid(optax.adam, learning_rate=RATES, eps=1e-15),
    "gd": js.grid(optax.sgd, learning_rate=[0.1, 1.0, 10.0]),
    "momentum": js.grid(momentum, learning_rate=[0.01, 0.1, 1.0]),
}


def sweep(**changes):
    base = {
        "system": js.two_layer, "problem": js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=200),
        "hyper": js.Hyper(sigma_p=2.0, sigma_0=0.05), "optimizers": OPTIMIZERS, "observables": NAMES,
        "axes": {"snr": [0.1, 0.3, 1.0], "seed": 2}, "steps": 150,
    }  # fmt: skip
    return js.Sweep(**(base | changes))


@pytest.fixture(scope="module")
def every_step():
    """Every step recorded and tested, and levels captured; every call of the runner trains one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "FIRST_STEPS", 1)
        patch.setattr(blocks, "CALL_SECONDS", 1e-9)
        return js.run_sweep(sweep(record=1, test_every=1, levels=LEVELS))


@pytest.fixture(scope="module")
def by_default():
    """Levels captured at the cadence that a sweep has where none is asked for."""
    return js.run_sweep(sweep(levels=LEVELS))


def plain(ds):
    """The Dataset without what was captured."""
    return ds.drop_vars([name for name in ds.data_vars if name.endswith("_at_level")])


def read_quietly(ds, level):
    """(the reading, what it warned of)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = js.at_train_loss(ds, level, leaps=False)
    return read, [str(one.message) for one in caught]


def crossing(ds, level):
    """First step at or below a level of every run, -1 if there is none, in NumPy."""
    below = ds["train_loss"].transpose(..., "step").values <= np.float32(level)
    return np.where(below.any(-1), below.argmax(-1), -1)


def test_captured_values_are_those_of_the_step_before_the_crossing_and_of_its_own(every_step):
    ds = every_step
    crossed = 0
    for level in LEVELS:
        first = crossing(ds, level)
        at = ds.sel(level=level)
        np.testing.assert_array_equal(at["step_at_level"][..., 1], first)
        np.testing.assert_array_equal(at["step_at_level"][..., 0], np.where(first > 0, first - 1, -1))
        for name in NAMES:
            trace = ds[name].transpose(..., "step").values
            for side in (0, 1):
                there = first >= 1 - side
                expect = np.take_along_axis(trace, np.maximum(first + side - 1, 0)[..., None], -1)[..., 0]
                np.testing.assert_allclose(
                    at[f"{name}_at_level"][..., side], np.where(there, expect, np.nan), rtol=2e-6, atol=1e-7
                )
                crossed += there.sum()
    assert crossed > 900
    assert ds["test_error_at_level"].dims == ("snr", "optimizer", "seed", "level", "crossing")
    assert ds["level"].values.tolist() == list(LEVELS)
    assert ds["crossing"].values.tolist() == ["before", "at"]
    assert ds["test_error_at_level"].attrs["units"] == "1"


def test_a_reading_of_a_captured_level_is_that_of_every_step(every_step):
    for level in LEVELS:
        (captured, said), (expect, again) = read_quietly(every_step, level), read_quietly(plain(every_step), level)
        assert said == again
        assert bool(said) == bool(captured.attrs["leaps"])
        assert captured.attrs["leaps"] == expect.attrs["leaps"] < 36  # of 72, at rates up to 10
        assert set(captured.data_vars) == set(expect.data_vars)
        for name in ("step", *NAMES):
            np.testing.assert_allclose(captured[name], expect[name], rtol=1e-4, atol=1e-5)
            assert captured[name].dims == expect[name].dims
        assert captured.attrs["not_reached"] == expect.attrs["not_reached"]
        np.testing.assert_array_equal(captured["noise_l1"], every_step["noise_l1"])


@pytest.mark.parametrize(
    ("cadence", "least"),
    [({}, 300), ({"record": 10, "test_every": 50}, 0), ({"record": 5, "test_every": 10}, 10)],
    ids=["default", "10-50", "5-10"],
)
def test_at_any_cadence_a_reading_is_that_of_every_step_or_nan_with_a_warning(every_step, by_default, cadence, least):
    ds = js.run_sweep(sweep(**cadence)) if cadence else plain(by_default)
    given, refused = 0, 0
    for level in LEVELS:
        (expect, _), (read, said) = read_quietly(plain(every_step), level), read_quietly(ds, level)
        lost = read["test_error"].isnull() & expect["test_error"].notnull()
        assert len(said) == bool(read.attrs["too_coarse"] or read.attrs["leaps"])
        assert all((f"run with levels=({level:g},)" in one) == bool(read.attrs["too_coarse"]) for one in said)
        assert read.attrs["too_coarse"] >= int(lost.sum())
        for name in ("test_error", "test_loss"):
            assert not (abs(read[name] - expect[name]) >= 0.02).any()
            given += int(read[name].notnull().sum())
        refused += int(lost.sum())
    assert given >= least
    assert refused > 0


@pytest.mark.parametrize("cadence", [{}, {"record": 50, "test_every": 100}])
def test_what_is_captured_does_not_depend_on_the_cadence(every_step, by_default, cadence):
    ds = js.run_sweep(sweep(**cadence, levels=LEVELS)) if cadence else by_default
    for name in (*NAMES, "step"):
        np.testing.assert_allclose(
            ds[f"{name}_at_level"], every_step[f"{name}_at_level"], rtol=2e-6, atol=1e-7
        )  # the sign amplifies rounding: a run that differs in one step would differ by far more


def test_the_readme_example_reads_the_same_at_any_cadence():
    """At the defaults of the first version (10 and 50) SignGD's error was read as .49 instead of .38."""
    base = {
        "problem": js.Problem(n=10, d=500, s=20, m_k=10, m_v=10, n_test=200),
        "hyper": js.Hyper(sigma_p=2.0, mu=1.0, sigma_0=3e-3), "axes": {"snr": [0.2], "seed": 4}, "steps": 250,
        "optimizers": {"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])},
        "observables": ["train_loss", "test_error"],
    }  # fmt: skip
    read = [
        js.at_train_loss(js.run_sweep(sweep(**base, levels=(0.3,), **cadence)), 0.3)["test_error"].values
        for cadence in ({}, {"record": 10, "test_every": 50}, {"record": 1, "test_every": 1})
    ]
    np.testing.assert_allclose(read[0], read[1], rtol=1e-5)
    np.testing.assert_allclose(read[0], read[2], rtol=1e-5)


def test_one_run_captures_what_its_sweep_does(every_step, hyper):
    task = js.two_layer(sweep().problem)
    run = js.train(
        jax.random.key(1), task, js.Hyper.from_snr(sweep().problem, 0.3, sigma_0=0.05), js.sign_gd(1e-3), steps=150,
        levels=[0.1, 0.5], record=150, observables=NAMES,
    )  # fmt: skip
    ds = run.to_xarray("sign_gd", learning_rate=1e-3)
    assert ds["level"].values.tolist() == [0.5, 0.1]
    there = every_step.sel(snr=0.3, seed=1, level=[0.5, 0.1]).isel(optimizer=1)
    np.testing.assert_array_equal(ds["step_at_level"][0, 0], there["step_at_level"])
    for name in NAMES:
        np.testing.assert_allclose(run.captured[f"{name}_at_level"], there[f"{name}_at_level"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        js.at_train_loss(ds, 0.1)["test_error"][0, 0],
        read_quietly(every_step, 0.1)[0]["test_error"].sel(snr=0.3, seed=1)[1],
        atol=1e-5,
    )


def leaping(loss, error):
    """A run of which every step is recorded, plain and with the level .1 captured."""
    ds = xr.Dataset({"train_loss": ("step", loss), "test_error": ("step", error)}, {"step": np.arange(len(loss))})
    at = int(np.argmax(np.array(loss) <= 0.1))
    pairs = {"step": [at - 1, at], "train_loss": loss[at - 1 : at + 1], "test_error": error[at - 1 : at + 1]}
    captured = {f"{name}_at_level": (("level", "crossing"), [pair]) for name, pair in pairs.items()}
    return [
        ds,
        ds.assign(captured).assign_coords(level=[0.1]),
        ds.assign(captured).assign_coords(level=[0.1])[["step_at_level", "train_loss_at_level", "test_error_at_level"]],
    ]


@pytest.mark.parametrize("form", [0, 1, 2], ids=["records", "captured", "captured, without a trace"])
@pytest.mark.parametrize(
    ("loss", "error", "expect"),
    [
        ([0.7, 0.5, 1e-6], [0.5, 0.5, 0.0], None),  # one step from chance to nothing left: .44 would be a guess
        ([0.7, 0.5, 0.0], [0.5, 0.5, 0.0], None),
        ([0.7, 0.12, 0.09], [0.5, 0.5, 0.0], None),  # GD's first step may change the loss by little
        ([0.7, 0.5, 1e-6], [0.5, 0.01, 0.01], 0.01),  # what is read stays: no guess
        ([0.7, 0.4, 0.05], [0.5, 0.4, 0.32], 0.4 - 0.08 * np.log(4) / np.log(8)),  # a step like others
        ([0.7, 0.4, 0.05], [0.49, 0.50, 0.48], 0.5 - 0.02 * np.log(4) / np.log(8)),  # nothing but noise
    ],
)
def test_a_step_that_leaps_over_the_level_gives_no_reading(form, loss, error, expect):
    read, said = read_quietly(leaping(loss, error)[form], 0.1)
    if expect is not None:
        np.testing.assert_allclose(read["test_error"], expect, rtol=1e-12)
        assert (said, read.attrs["leaps"], int(read["reading"])) == ([], 0, 0)
        return
    assert np.isnan(read["test_error"])
    assert read.attrs["leaps"] == 1
    assert read.attrs["too_coarse"] == 0
    assert int(read["reading"]) == 4
    assert len(said) == 1
    assert "one step leaps over it" in said[0]
    assert "smaller learning rate" in said[0]
    assert 1 < read["step"] < 2  # where it leaps is known
    kept = js.at_train_loss(leaping(loss, error)[form], 0.1)
    assert error[-1] <= kept["test_error"] <= error[-2]
    assert (kept.attrs["leaps"], int(kept["reading"])) == (1, 4)


@functools.cache
def decay(problem=None):
    """L = exp(-w), for SignGD: w grows by the learning rate at every step."""
    return js.Task(
        sample=lambda key, hyper, shared: jax.random.normal(key, (3,)),
        init=lambda key, data, hyper: {"w": jnp.zeros(())},
        loss=lambda params, data, hyper: jnp.exp(-params["w"]),
        observe=lambda params, data, test, hyper: (
            {"train_loss": jnp.exp(-params["w"]), "w": params["w"]}
            | ({} if test is None else {"seen": test * params["w"]})
        ),
        sample_test=lambda key, hyper, shared: jnp.ones(()),
        name="decay",
    )


@pytest.mark.parametrize(("level", "step"), [(np.exp(-4.5), 5), (np.exp(-5.5), -1), (np.exp(-0.5), 1), (0.99, 1)])
def test_the_last_step_counts_and_the_first_one_too(level, step):
    run = js.train(jax.random.key(0), decay(), None, js.sign_gd(1.0), steps=5, record=[0], levels=[level])
    assert run.captured["step_at_level"].tolist() == [[step - 1 if step > 0 else -1, step]]
    around = [[step - 1, step]] if step > 0 else [[np.nan, np.nan]]
    np.testing.assert_array_equal(run.captured["seen_at_level"], around)
    np.testing.assert_array_equal(run.captured["w_at_level"], around)
    ds = js.run_sweep(
        js.Sweep(
            system=decay,
            problem=None,
            hyper=None,
            optimizers={"s": js.sign_gd(1.0)},
            steps=5,
            axes={"seed": 3},
            levels=[level],
        )
    )
    assert ds["step_at_level"].values.reshape(3, 2).tolist() == run.captured["step_at_level"].tolist() * 3


def test_a_run_that_starts_below_a_level_says_so():
    run = js.train(jax.random.key(0), decay(), None, js.sign_gd(1.0), steps=5, record=1, levels=[2.0])
    assert run.captured["step_at_level"].tolist() == [[-1, 0]]
    with pytest.warns(UserWarning, match="NaN at training loss 2: 1 of 1 runs are at or below it from their first"):
        at = js.at_train_loss(run.to_xarray(), 2.0)
    assert at["w"].isnull().all()
    assert at.attrs["below_at_start"] == 1


def test_a_level_that_was_not_captured_is_read_from_the_records():
    run = js.train(jax.random.key(0), decay(), None, js.sign_gd(1.0), steps=5, record=1, test_every=1, levels=[0.5])
    at = js.at_train_loss(run.to_xarray(), np.exp(-2.5))
    np.testing.assert_allclose(at["w"], 2.5, rtol=1e-6)
    np.testing.assert_allclose(at["seen"], 2.5, rtol=1e-6)


def test_test_sets_are_evaluated_at_records_and_crossings_alone():
    """Counted on the device: a lane looks at its test sets at records, and twice for each level where its runs end."""
    counts = {"test": 0}

    def count():
        counts["test"] += 1

    def observe(params, data, test, hyper):
        if test is None:
            return decay().observe(params, data, None, hyper)
        jax.debug.callback(count)
        return decay().observe(params, data, test, hyper)

    task = dataclasses.replace(decay(), observe=observe)
    rates = {"a": js.grid(js.sign_gd, learning_rate=[0.5, 1.0, 0.01])}
    done = js.run_sweep(
        js.Sweep(system=lambda problem: task, problem=None, hyper=None, optimizers=rates, axes={"seed": 4}, steps=40,
                 record=[40], test_every=[40], levels=[0.5, 0.1]),
        lane_width=4,
    )  # fmt: skip
    jax.effects_barrier()
    crossings = int((done["step_at_level"][..., 1] >= 0).sum())
    assert crossings == 4 * 2 * 2  # the slowest rate, 0.01, crosses neither
    assert counts["test"] == 4 * (1 + 2 * 2)  # four lanes, one record, two levels


def test_mini_batches_cross_by_the_training_loss_not_by_a_batch(every_step):
    problem = dataclasses.replace(sweep().problem, batch_size=2)
    ds = js.run_sweep(
        sweep(problem=problem, optimizers={"gd": js.grid(optax.sgd, learning_rate=[1.0])}, record=1, test_every=1,
              levels=(0.5, 0.1))
    )  # fmt: skip
    for level in (0.5, 0.1):
        np.testing.assert_array_equal(ds.sel(level=level)["step_at_level"][..., 1], crossing(ds, level))
    assert (ds["step_at_level"][..., 1] >= 0).all()


def test_a_task_on_batches_must_observe_its_training_loss():
    task = dataclasses.replace(
        decay(), batch=lambda key, data, hyper: data, observe=lambda params, data, test, hyper: {"w": params["w"]}
    )
    with pytest.raises(
        ValueError, match=r"levels=\(0.5,\) need the training loss at every step: decay trains on batches"
    ):
        js.train(jax.random.key(0), task, None, js.sign_gd(1.0), steps=5, levels=[0.5])


def test_a_diverged_run_keeps_what_it_crossed_before():
    def loss(params, data, hyper):
        return jnp.where(params["w"] > 2.5, jnp.nan, jnp.exp(-params["w"]))

    task = dataclasses.replace(
        decay(), loss=loss, observe=lambda params, data, test, hyper: {"train_loss": loss(params, data, hyper)}
    )
    run = js.train(
        jax.random.key(0), task, None, js.sign_gd(1.0), steps=6, record=1, levels=[np.exp(-1.5), np.exp(-4.5)]
    )
    assert (run.status, run.first_bad_step) == (1, 3)
    assert run.captured["step_at_level"].tolist() == [[1, 2], [-1, -1]]
    np.testing.assert_allclose(run.captured["train_loss_at_level"][0], np.exp([-1.0, -2.0]), rtol=1e-6)


def test_several_n_in_one_padded_program():
    """Observables with a sample dimension are cut to each n, and padded with NaN to the longest."""
    ds = js.run_sweep(
        sweep(problem=js.Problem(n=6, d=400, s=5, m_k=4, m_v=3, n_test=20, supports="disjoint"), engine="feature_space",
              optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}, axes={"n": [3, 5], "seed": 2},
              observables=["train_loss", "value_noise"], record=1, levels=(0.3,))
    )  # fmt: skip
    assert ds["value_noise_at_level"].dims == ("n", "optimizer", "seed", "level", "crossing", "sample")
    first = crossing(ds, 0.3)
    trace = np.moveaxis(ds["value_noise"].values, -2, -1)
    expect = np.take_along_axis(trace, first[..., None, None], -1)[..., 0]
    np.testing.assert_allclose(ds["value_noise_at_level"][..., 0, 1, :], expect, rtol=2e-6, atol=1e-7)
    assert np.isnan(expect[0, ..., 3:]).all()
    assert np.isfinite(expect[1]).all()


def test_on_disk_in_calls_of_few_steps_and_extended(tmp_path, monkeypatch):
    """What a checkpoint and a call hand on: the step before, its loss, and what has been captured."""
    one = functools.partial(sweep, optimizers={"adam": js.grid(optax.adam, learning_rate=[1e-3], eps=1e-15)})
    whole = js.run_sweep(one(levels=LEVELS), lane_width=1)
    monkeypatch.setattr(blocks.Pace, "allowed", lambda pace, group: 7)
    first = whole["step_at_level"].isel(seed=1, crossing=1).values
    assert {0, 1} <= set((first[first > 0] % 7).tolist())  # crossed by the last and by the first step of a call
    js.run_sweep(one(levels=LEVELS, axes={"snr": [0.1, 0.3, 1.0], "seed": 1}), tmp_path, lane_width=1)
    ds = js.run_sweep(one(levels=LEVELS), tmp_path, lane_width=1, checkpoint_every=1e-9)
    for name in ("step", *NAMES):
        np.testing.assert_array_equal(ds[f"{name}_at_level"], whole[f"{name}_at_level"])
    stored = json.loads((tmp_path / "manifest.json").read_text())["definition"]
    assert stored["levels"] == list(LEVELS)
    with pytest.raises(ValueError, match="levels"):
        js.run_sweep(one(levels=LEVELS[:2]), tmp_path)


def test_a_directory_keeps_its_cadence_where_none_is_asked_for(tmp_path):
    """What is recorded by default was steps 0, 10, 20, ... with a test every 50 in the first version."""
    base = functools.partial(
        js.Sweep, system=decay, problem=None, hyper=None, optimizers={"s": js.sign_gd(0.1)}, steps=60
    )
    js.run_sweep(base(axes={"seed": 1}, record=10, test_every=50), tmp_path)
    ds = js.run_sweep(base(axes={"seed": 2}), tmp_path)
    assert ds["step"].values.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert ds["seen"].notnull().values[0].tolist() == [[True, False, False, False, False, True, False]] * 2
    with pytest.raises(ValueError, match="record"):
        js.run_sweep(base(axes={"seed": 2}, record=20), tmp_path)


def test_without_levels_nothing_is_captured_and_the_definition_is_as_before():
    from jaxsign.sweep.identity.definition import definition

    assert "levels" not in definition(sweep())


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (0.5, "levels must be a list of training losses > 0, got levels=0.5"),
        ("0.5", "levels must be a list"),
        ([0.5, 0.5], "levels must be distinct training losses, got 0.5 twice"),
        ([0.0], r"levels must be a finite number in \(0, inf\)"),
        ([-1.0], "got levels=-1.0"),
        ([float("nan")], "got levels=nan"),
        ([1e-50], "levels=1e-50 becomes 0 in float32"),
        ([True], "got levels=True"),
        (["low"], "got levels='low'"),
        ([[0.5]], "levels must be a list"),
        ({0.5: 1}, "levels must be a list"),
    ],
)
def test_illegal_levels_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        sweep(levels=levels)


def test_levels_are_sorted_and_may_be_arrays():
    assert check_levels(np.array([0.1, 0.5])) == check_levels([0.5, 0.1]) == (0.5, 0.1)
    assert check_levels(jnp.array([0.25, 0.5])) == (0.5, 0.25)
    assert sweep(levels=()).crossed == ()


def penalised(problem=None):
    """Trained by a loss with a penalty; the training loss that is observed has none."""
    return dataclasses.replace(decay(), loss=lambda params, data, hyper: jnp.exp(-params["w"]) + 3.0)


def test_levels_are_those_of_the_training_loss_that_is_recorded():
    run = js.train(jax.random.key(0), penalised(), None, js.sign_gd(1.0), steps=5, record=1, levels=[np.exp(-2.5)])
    assert run.captured["step_at_level"].tolist() == [[2, 3]]
    np.testing.assert_allclose(run.captured["train_loss_at_level"][0], np.exp([-2.0, -3.0]), rtol=1e-6)


SYSTEMS = {
    "two_layer": (js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3)), js.Hyper(sigma_p=2.0)),
    "gaussian": (js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, kernel="gaussian")), js.Hyper(sigma_p=2.0)),
    "kernel": (js.kernel_attention(js.KernelProblem()), js.KernelHyper()),
    "residual": (js.residual_attention(js.ResidualProblem(n=4, d=8, d_ff=8, d_out=2)), js.ResidualHyper()),
    "deep": (js.deep_transformer(js.DeepProblem(n=4, d=50, s=5, m_k=3, m_v=3, depth=2)), js.Hyper(sigma_p=2.0)),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_of_ours_records_the_loss_that_it_is_trained_by(name):
    """So the loop reads the loss that it has computed anyway; a user's own task is asked for what it observes."""
    task, hyper = SYSTEMS[name]
    from jaxsign.training.start import begin

    start = jax.jit(functools.partial(begin, task))(jax.random.key(0), hyper)
    assert task.batch is None
    np.testing.assert_allclose(
        jax.jit(task.loss)(start.params, start.data, hyper),
        jax.jit(lambda start: task.observe(start.params, start.data, None, hyper)["train_loss"])(start), rtol=1e-5,
    )  # fmt: skip


def test_a_run_crosses_nothing_after_it_has_diverged():
    def observe(params, data, test, hyper):
        return {"train_loss": jnp.where((params["w"] > 1.5) & (params["w"] < 3.5), jnp.inf, jnp.exp(-params["w"]))}

    task = dataclasses.replace(
        decay(), observe=observe, loss=lambda params, data, hyper: observe(params, data, None, hyper)["train_loss"]
    )
    task = dataclasses.replace(
        task, gradient=lambda params, batch, hyper, signs: (task.loss(params, batch, hyper), {"w": -jnp.ones(())})
    )
    run = js.train(
        jax.random.key(0), task, None, js.sign_gd(1.0), steps=6, record=1, levels=[np.exp(-0.5), np.exp(-4.5)]
    )
    assert (run.status, run.first_bad_step) == (1, 2)
    assert run.captured["step_at_level"].tolist() == [[0, 1], [-1, -1]]


def test_what_is_observed_of_a_step_is_that_of_the_step_across_the_level():
    """In sweeps, too, whose runs are mapped: the change of w in a step is the learning rate."""
    task = dataclasses.replace(
        decay(), observe_step=lambda params, before, data, hyper: {"moved": params["w"] - before["w"]}
    )
    rates = {"a": js.grid(js.sign_gd, learning_rate=[0.5, 0.25])}
    ds = js.run_sweep(
        js.Sweep(system=lambda problem: task, problem=None, hyper=None, optimizers=rates, axes={"seed": 3}, steps=20,
                 record=[0, 20], levels=[0.3]), lane_width=3,
    )  # fmt: skip
    np.testing.assert_allclose(ds["moved_at_level"], np.broadcast_to([[[[0.5]]], [[[0.25]]]], (2, 3, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(js.at_train_loss(ds, 0.3)["moved"][:, 0], [0.5, 0.25], rtol=1e-6)


def test_names_that_levels_need_are_refused_where_they_are_given():
    def w_at_level(params, data, test, hyper):
        return params["w"]

    with pytest.raises(ValueError, match="observable 'w_at_level' must not end with '_at_level'"):
        js.train(jax.random.key(0), decay(), None, js.sign_gd(1.0), steps=2, observables=["train_loss", w_at_level])
    with pytest.raises(ValueError, match="summary 'best_at_level' must not end with '_at_level'"):
        js.train(
            jax.random.key(0),
            decay(),
            None,
            js.sign_gd(1.0),
            steps=2,
            summary=lambda trace: {"best_at_level": trace["w"][-1]},
        )
    named = dataclasses.replace(
        decay(), observe=lambda params, data, test, hyper: {"train_loss": params["w"], "level": params["w"]}
    )
    with pytest.raises(ValueError, match="'level'"):
        js.train(jax.random.key(0), named, None, js.sign_gd(1.0), steps=2, levels=[0.5])


@pytest.mark.parametrize("runs", [1, 3])
def test_runs_of_a_lane_copy_their_parameters_only_where_they_cross(runs):
    """XLA moves what a loop over the one run of a lane computes to before that loop: computed at every step then."""
    losses = np.linspace(1.0, 0.1, 6, dtype=np.float32)[None] ** np.arange(1, runs + 1, dtype=np.float32)[:, None]
    values = np.arange(1.0, runs + 1, dtype=np.float32)

    def one(losses, value):
        def step(t, crossings):
            return crossings.after((0.5,), t, losses[t], ({"w": value + t}, {"w": value + t + 1}))

        return jax.lax.fori_loop(0, losses.size, step, Crossings.none((0.5,), {"w": jnp.zeros(())}))

    program = str(jax.make_jaxpr(jax.vmap(one))(losses, values))
    assert ("cond[" in program) == (runs == 1)
    assert ("while[" in program) == (runs > 1)
    found = jax.jit(jax.vmap(one))(losses, values)
    after = (losses <= 0.5).argmax(1)
    np.testing.assert_array_equal(found.step[:, 0], np.stack([after - 1, after], 1))
    np.testing.assert_array_equal(found.sides["w"][:, 0], np.stack([values + after, values + after + 1], 1))
    np.testing.assert_array_equal(found.losses[:, 0, 1], losses[np.arange(runs), after])


def test_captures_are_not_copied_at_every_step():
    """XLA copied them all where a run's were read from what the loop over crossing runs had been given."""
    losses = np.linspace(1.0, 0.1, 6, dtype=np.float32)[None] ** np.arange(1, 4, dtype=np.float32)[:, None]

    def one(losses, w):
        def step(t, carry):
            w, before, crossings = carry
            crossings = crossings.after((0.5,), t, losses[t], (before, w))
            return 1.01 * w, jnp.where(crossings.waiting, w, before), crossings

        return jax.lax.fori_loop(0, losses.size, step, (w, w, Crossings.none((0.5,), w)))

    program = jax.jit(jax.vmap(one)).lower(losses, np.ones((3, 1000), np.float32)).compile().as_text()
    sides = [line for line in program.splitlines() if "f32[3,1,2,1000]" in line]
    assert any("dynamic-update-slice" in line for line in sides)
    assert not [line for line in sides if " copy(" in line]


def test_a_level_above_the_first_loss_is_said_once_the_runs_are_there(tmp_path, capsys):
    small = sweep(optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 3}, steps=4, record=4, levels=(0.9, 0.6))
    js.run_sweep(small, out=tmp_path, progress=False)
    line = "level 0.9: 3 of 3 runs begin at or below this training loss, and have no reading"
    assert line in capsys.readouterr().err.splitlines()
    js.run_sweep(dataclasses.replace(small, levels=(0.6,)), progress=False)
    assert "level" not in capsys.readouterr().err

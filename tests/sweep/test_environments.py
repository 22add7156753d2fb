"""Other machines and other settings of JAX: healthy runs run, or one line says what is in the way."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.cli.console import configure
from jaxsign.compilation import cores, each_undisturbed
from jaxsign.store.environment import physical_memory
from jaxsign.sweep.forecast import forecast
from jaxsign.sweep.identity.definition import definition
from jaxsign.sweep.plan import Limits


def sweep(problem, hyper, **changes):
    base = {
        "system": js.two_layer, "problem": problem, "hyper": hyper, "steps": 20, "record": 5, "axes": {"seed": 2},
        "optimizers": {"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}, "test_every": 10,
    }  # fmt: skip
    return js.Sweep(**(base | changes))


@pytest.fixture
def numbers():
    return js.Hyper(sigma_p=2.0)


@pytest.mark.parametrize(
    "steps",
    [
        [0, 5, 20], (0, 5, 20), np.array([0, 5, 20]), np.array([0, 5, 20], np.uint8), jnp.array([0, 5, 20]),
        [np.int64(0), 5, np.int8(20)], range(0, 21, 5), js.log_steps(20, per_decade=2),
    ],
    ids=lambda steps: type(steps).__name__,
)  # fmt: skip
def test_trajectories_take_arrays_of_steps_as_records_do(problem, numbers, steps):
    made = sweep(problem, numbers, trajectory=steps)
    whole = [int(step) for step in steps]
    assert made.trajectory == tuple(whole)
    assert definition(made)["trajectory"] == whole
    assert definition(made) == definition(sweep(problem, numbers, trajectory=whole))


@pytest.mark.parametrize(
    "steps",
    [
        np.array([5.0]), np.array(5), np.array([[0, 5]]), np.array([True]), np.array([], int), np.array([5, 5]),
        np.array([-1, 5]), np.array([21]), np.array(["signs"]), jnp.array([0.5]), b"signs", {5}, {5: 1}, object(),
    ],
    ids=lambda steps: f"{type(steps).__name__}-{steps!s:.20}" if type(steps) is not object else "object",
)  # fmt: skip
def test_other_trajectories_are_refused_in_one_line(problem, numbers, steps):
    with pytest.raises(ValueError, match=r"^trajectory must be one of 'signs', 'features', 'log2' or increasing steps"):
        sweep(problem, numbers, trajectory=steps)


@contextlib.contextmanager
def flagged():
    """All of JAX's flags that stop programs."""
    with jax.debug_nans(True), jax.debug_infs(True), jax.transfer_guard("disallow"):
        yield
        assert jax.config.jax_debug_nans  # the caller's again


def test_debugging_flags_leave_healthy_runs_and_their_numbers_alone(problem, numbers):
    task, key = js.two_layer(problem), jax.random.key(0)
    gone = {"gd": js.grid(optax.sgd, learning_rate=[1e30])}

    def numbers_of():
        run = js.train(key, task, numbers, js.sign_gd(1e-3), steps=20, record=5, test_every=10)
        yield run.trace
        ds = js.run_sweep(sweep(problem, numbers, axes={"seed": [0, 1]}), None)
        yield {name: np.asarray(ds[name]) for name in ("train_loss", "test_error", "status")}
        yield {"diverged": np.asarray(js.run_sweep(sweep(problem, numbers, optimizers=gone))["status"])}
        yield {"degree": np.asarray(js.degree(optax.adamw(1e-3)), float)}

    plain = list(numbers_of())
    with flagged():
        found = list(numbers_of())
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    assert np.isnan(plain[0]["test_error"]).any()
    assert (plain[2]["diverged"] == 1).all()


def test_debugging_flags_leave_trajectories_alone(problem, numbers, tmp_path):
    js.run_sweep(sweep(problem, numbers, trajectory="signs", axes={"seed": 1}), tmp_path / "out")
    plain = js.open_trajectory(tmp_path / "out")
    want = [np.asarray(plain[0].params(7).w_q), [np.asarray(p.w_q) for _, p in plain[0].iter(every=3)]]
    observed = js.replay(plain, record=5)
    with flagged():
        run = js.open_trajectory(tmp_path / "out")[0]
        found = [run.params(7).w_q, [p.w_q for _, p in run.iter(every=3)]]
        again = js.replay(run.whole, record=5)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    assert again.identical(observed)


def test_sweeps_and_forecasts_are_compiled_also_where_jit_is_switched_off(problem, numbers):
    plain = js.run_sweep(sweep(problem, numbers))
    with jax.disable_jit():
        assert js.run_sweep(sweep(problem, numbers))["train_loss"].equals(plain["train_loss"])
        assert forecast(sweep(problem, numbers), speed=1.0).runs == 2


def test_flags_are_the_callers_between_two_items():
    seen = []

    def items():
        for i in range(2):
            seen.append(jax.config.jax_debug_nans)
            yield i

    with jax.debug_nans(True):
        for _ in each_undisturbed(items()):
            seen.append(jax.config.jax_debug_nans)
    assert seen == [False, True, False, True]


def test_a_system_without_affinity_or_a_size_of_memory(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7
    configure()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
    if jax.local_devices()[0].platform != "cpu":
        return
    for answer in ({"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": -1}, {}):

        def sysconf(name, answer=answer):
            if name not in answer:
                raise ValueError("unrecognized configuration name")
            return answer[name]

        monkeypatch.setattr(os, "sysconf", sysconf)
        assert physical_memory() is None
        assert Limits().capacity() > 2**60


@pytest.mark.parametrize("platform", ["nonsense", "rocm"])
def test_a_platform_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path, platform):
    root = Path(js.__file__).parent.parent
    code = f"""
import sys
import jaxsign as js
from jaxsign import cli
sys.path.insert(0, {str(root / "sweeps")!r})
import snr
made = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
    hyper=js.Hyper(sigma_p=2.0), optimizers={{"sign_gd": js.sign_gd(1e-3)}}, steps=2)
for call in (lambda: js.run_sweep(made), lambda: js.run_sweep(made, "out"), lambda: js.degree(js.sign_gd(1e-3))):
    try:
        call()
    except ValueError as error:
        print(error, file=sys.stderr)
sys.argv[0] = "snr.py"
print(snr.main(["--tiny", "--out", "out2"]), cli.main(["plan", snr.__file__, "--tiny"]))
"""
    environment = os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 2"
    lines = [line for line in done.stderr.splitlines() if "compiling and measuring" not in line]
    assert len(lines) == 5
    for line in lines:
        assert f"JAX_PLATFORMS={platform} cannot be used on this machine: " in line
        assert line.endswith("; JAX_PLATFORMS=cpu can")
    assert os.listdir(tmp_path) == []

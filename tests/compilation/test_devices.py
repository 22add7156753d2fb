"""A sweep trains on every core unless JAX has started before; then the display says how many have nothing to do."""

import os
import subprocess
import sys

import numpy as np
import pytest

import jaxsign as js
from jaxsign.compilation import number
from jaxsign.store import environment
from jaxsign.store.manifest import read_manifest
from jaxsign.sweep import progress
from jaxsign.sweep.identity import versions

PROGRAM = """
import os
os.sched_getaffinity = lambda process: range(3)
import jax
{before}
import optax
import jaxsign as js
from jaxsign.sweep import progress
progress.FIRST_LINE = 0.0  # else a short sweep says nothing
ds = js.run_sweep(js.Sweep(
    system=js.two_layer, problem=js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=16), hyper=js.Hyper(2.0),
    optimizers={{"adam": js.grid(optax.adam, learning_rate=[1e-2])}}, axes={{"seed": 4}}, steps=4, record=2,
    observables=["train_loss"],
))
print(len(jax.local_devices()), ds["train_loss"].values.tobytes().hex())
"""


def ran(before=""):
    """(devices, the losses' bits, what was said on stderr) of a sweep in a process that has three cores."""
    program = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    devices, bits = done.stdout.split()
    return int(devices), bits, done.stderr


def test_a_sweep_starts_jax_on_every_core_and_no_bit_depends_on_how_many_there_are():
    devices, bits, said = ran()
    assert devices == 3
    assert "cores" not in said
    assert ran("jax.config.update('jax_num_cpu_devices', 2)")[:2] == (2, bits)
    devices, others, said = ran("jax.numpy.zeros(3)")
    assert devices == 1
    assert " on 1 of 3 cores, " in said.splitlines()[-1]
    one, several = (np.frombuffer(bytes.fromhex(text), np.float32) for text in (others, bits))
    np.testing.assert_allclose(one, several, rtol=1e-6)  # XLA rounds otherwise for one device


@pytest.mark.parametrize(
    ("before", "environment", "devices"),
    [
        ("", {}, 3), ("os.sched_getaffinity = lambda process: range(1)", {}, 2),
        ("jax.config.update('jax_num_cpu_devices', 2)", {}, 2), ("", {"JAX_NUM_CPU_DEVICES": "1"}, 1),
        ("", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
    ],
)  # fmt: skip
def test_what_the_user_has_said_stays(before, environment, devices):
    program = (
        f"import os; os.sched_getaffinity = lambda process: range(3); import jax; {before or 'pass'}\n"
        "from jaxsign.compilation import idle_cores, start_on_every_core\n"
        "start_on_every_core(); print(len(jax.local_devices()), idle_cores())"
    )
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    idle = devices < 3 and "affinity" not in before
    assert done.stdout.strip() == (f"{devices} {devices} of 3 cores" if idle else str(devices))


def test_a_sweep_that_goes_on_with_one_device_instead_of_several_says_that_it_may_round_otherwise(
    tmp_path, problem, capsys, monkeypatch
):
    def sweep(seeds):
        return js.Sweep(
            system=js.two_layer, problem=problem, hyper=js.Hyper(2.0), axes={"seed": seeds}, steps=2, record=1,
            optimizers={"sign_gd": js.sign_gd(1e-3)}, observables=["train_loss"],
        )  # fmt: skip

    with monkeypatch.context() as before:
        for module in (environment, versions):
            before.setattr(module, "number", lambda: "one")
        js.run_sweep(sweep(2), tmp_path / "out")
    assert read_manifest(tmp_path / "out")["devices"] == "one"
    js.run_sweep(sweep(3), tmp_path / "out")
    words = "stored with other versions, gone on with: devices one -> several; equal within rounding, not to the bit"
    assert words in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "out")
    assert [start["devices"] for start in manifest["starts"]] == ["one", "several"]
    assert manifest["resume"] == "statistically equal"
    assert number() == "several"


def test_a_display_names_idle_cores_while_runs_are_trained(monkeypatch):
    monkeypatch.setattr(progress, "idle_cores", lambda: "1 of 16 cores")
    shown = progress.Progress(8, 100, quiet=True)
    assert "cores" not in shown.words()[1]
    shown.training("sign_gd")
    assert shown.words()[1] == "0 of 8 runs, 1 of 16 cores, 0 s so far"

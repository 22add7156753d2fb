"""A sweep trains on every core unless JAX has started before; then the display says how many have nothing to do."""

import os
import subprocess
import sys

import pytest

from jaxsign.sweep import progress

PROGRAM = """
import os
os.sched_getaffinity = lambda process: range(3)
import jax
{before}
import jaxsign as js
from jaxsign.sweep import progress
progress.FIRST_LINE = 0.0  # else a short sweep says nothing
ds = js.run_sweep(js.Sweep(
    system=js.two_layer, problem=js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=16), hyper=js.Hyper(2.0),
    optimizers={{"sign_gd": js.sign_gd(1e-3)}}, axes={{"seed": 4}}, steps=4, record=2,
))
print(len(jax.local_devices()), ds["train_loss"].values.tobytes().hex())
"""


def ran(before=""):
    """(devices, the losses' bits, what was said on stderr) of a sweep in a process that has three cores."""
    program = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    devices, bits = done.stdout.split()
    return int(devices), bits, done.stderr


def test_a_sweep_starts_jax_on_every_core_and_no_bit_depends_on_it():
    devices, bits, said = ran()
    assert devices == 3
    assert "cores" not in said
    started, same, said = ran("jax.numpy.zeros(3)")
    assert (started, same) == (1, bits)
    assert " on 1 of 3 cores, " in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("before", "environment", "devices"),
    [
        ("", {}, 3), ("jax.config.update('jax_num_cpu_devices', 2)", {}, 2), ("", {"JAX_NUM_CPU_DEVICES": "1"}, 1),
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
    assert done.stdout.strip() == (f"{devices} {devices} of 3 cores" if devices < 3 else str(devices))


def test_a_display_names_idle_cores_while_runs_are_trained(monkeypatch):
    monkeypatch.setattr(progress, "idle_cores", lambda: "1 of 16 cores")
    shown = progress.Progress(8, 100, quiet=True)
    assert "cores" not in shown.words()[1]
    shown.training("sign_gd")
    assert shown.words()[1] == "0 of 8 runs, 1 of 16 cores, 0 s so far"

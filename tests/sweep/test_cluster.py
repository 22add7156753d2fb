"""Sweeps on a Dask cluster: a lost worker, a scheduler that does not answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_faults import LIMITS, child, sweep, until
from test_worker import LONG, SMALL, small_values

import jaxsign as js


def test_a_block_of_a_killed_worker_runs_on_another_one(tmp_path):
    pytest.importorskip("distributed")
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    dask, address = [sys.executable, "-m", "dask"], tmp_path / "scheduler.json"
    quiet = {"env": here, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", address],
        **quiet,
    )
    command = [*dask, "worker", "--scheduler-file", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    workers = [subprocess.Popen([*command, "--local-directory", tmp_path / f"w{i}"], **quiet) for i in range(2)]
    try:
        until(lambda: address.exists() and address.read_text().endswith("}"))
        where, out = json.loads(address.read_text())["address"], tmp_path / "out"
        changes = SMALL | LONG
        code = f"js.run_sweep(t.sweep(**{changes}), sys.argv[1], **t.LIMITS, scheduler=sys.argv[2])"
        driver = child(code, out, where)
        until(lambda: len({f.parent for f in out.glob("trajectories/*/*.segment")}) >= 2, driver)
        workers[0].kill()
        _, words = driver.communicate()
        assert driver.returncode == 0, words
        fresh = tmp_path / "fresh"
        js.run_sweep(sweep(**changes), fresh, **LIMITS)
        assert small_values(out, **LONG) == small_values(fresh, **LONG)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    from jaxsign.sweep import cluster

    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    with pytest.raises(
        ValueError, match=r"scheduler must be the address of a running Dask scheduler, got 'tcp://127"
    ) as e:
        js.run_sweep(sweep(**SMALL), tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []

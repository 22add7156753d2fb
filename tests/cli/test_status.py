"""jaxsign plan, status and verify: what they print, what they exit with, what they never touch."""

import json
import os
import re
import shutil
import socket

import numpy as np
import pytest
import xarray as xr
from line_experiment import RUNS, chunks, files, flip, load, refused, run, store, write

import jaxsign as js
from jaxsign.store import checkpoints, locks
from jaxsign.sweep import forecast
from jaxsign.sweep import timing as calibrate
from jaxsign.validation.messages import size_words


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def sweep(experiment):
    return load(experiment)


@pytest.fixture(scope="module")
def stored(sweep, tmp_path_factory):
    return store(sweep, tmp_path_factory.mktemp("stored"))


@pytest.fixture
def whole(stored, tmp_path):
    return shutil.copytree(stored[0], tmp_path / "whole")


@pytest.fixture
def half(stored, tmp_path):
    return shutil.copytree(stored[1], tmp_path / "half")


def test_plan_counts_what_the_manifest_counts(experiment, sweep, stored, capsys):
    status, out, said = run(capsys, "plan", experiment)
    assert status == 0
    assert said == "line: compiling and measuring; --quick or --seed-steps-per-second skips it\n"  # it may take minutes
    plan = json.loads((stored[0] / "manifest.json").read_text())["plan"]
    found = forecast.forecast(sweep, speed=1.0)
    assert [(g.family, g.task, g.width) for g in found.groups] == [
        (g["family"], g["task"], g["lane_width"]) for g in plan["groups"]
    ]
    assert [g.setting for g in found.groups] == [{"n": n} for n in "2244"]
    assert [g.runs for g in found.groups] == [12, 6, 12, 6]
    assert found.programs == 4
    assert (found.runs, found.call_runs) == (RUNS, 12)
    ds = js.open_results(stored[0])
    assert found.result_bytes == sum(v.nbytes for v in ds.data_vars.values())
    lines = out.splitlines()
    assert lines[0] == f"line: {RUNS} runs of 6 steps, 4 groups, 4 programs"
    assert [line.split()[:5] for line in lines[1:5]] == [
        [family, "line", f"n={n}", runs, "runs"] for n in (2, 4) for family, runs in (("gd", "12"), ("mine", "6"))
    ]
    assert all(re.search(r"  compiled in .* s +trained in .*", line) for line in lines[1:5])
    assert re.match(r"  compiled in .* s, trained in .*; a call holds up to 12 runs in ", lines[5])
    assert lines[6] == f"total: {RUNS} runs, 4 programs to compile"
    assert re.match(r"  compiling +[<\d].* s, measured now; partly while other programs run", lines[7])
    assert re.match(r"  time +[<\d].* of training on 2 cpu devices, measured now", lines[8])
    assert lines[-1].split(maxsplit=1) == ["command", f"python {experiment} --out DIR"]


def test_plan_counts_files_folders_and_blocks_of_the_disk(sweep, stored):
    found = forecast.forecast(sweep, speed=1.0)
    arrays = stored[0] / "results.zarr"
    # a variable's own folder and all below it, but for its zarr.json
    entries = sum(len(list((arrays / name).rglob("*"))) for name in js.open_results(stored[0]).data_vars)
    # chunks are tiny here: each takes one block, as a folder does
    assert (found.entries, found.disk_bytes) == (entries, entries * forecast.DISK_BLOCK)


def test_plan_takes_a_speed_from_elsewhere_and_trains_nothing(experiment, capsys, monkeypatch):
    monkeypatch.setattr(calibrate, "measure", None)
    monkeypatch.setattr(calibrate, "FEW_SEED_STEPS", 0)  # long sweeps measure lane widths when they are run
    monkeypatch.setattr(forecast, "run_seconds", None)
    argv = ["--seed-steps-per-second", "100", "--devices", "4", "--steps", "1000", "--seeds", "2", "--memory", "4000"]
    status, out, said = run(capsys, "plan", experiment, *argv)
    assert (status, said) == (0, "")
    assert "24 runs of 1000 steps" in out
    assert re.search(r"time +60 s of training on 4 devices of 100 seed-steps/s; compiling is extra", out)
    assert "compiled in" not in out
    assert f"python {experiment} --out DIR --seeds 2 --steps 1000 --memory 4000\n" in out


def test_a_quick_plan_counts_runs_programs_and_bytes_and_compiles_nothing(experiment, sweep, capsys, monkeypatch):
    monkeypatch.setattr(calibrate, "FEW_SEED_STEPS", 0)
    whole = forecast.forecast(sweep, speed=1.0)
    monkeypatch.setattr(calibrate, "measure", None)
    status, out, said = run(capsys, "plan", experiment, "--quick")
    assert (status, said) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"line: {RUNS} runs of 6 steps, 4 groups, 4 programs"
    assert f"results {size_words(whole.result_bytes)}, checkpoints {size_words(whole.checkpoint_bytes)}" in lines[5]
    assert lines[5].startswith("  a call holds up to 12 runs in ")
    assert [line.split()[0] for line in lines[6:]] == ["total:", "results", "checkpoints", "command"]
    refused(capsys, "--quick gives no times", "plan", experiment, "--quick", "--seed-steps-per-second", "10")


def test_plan_counts_shared_programs_once_and_every_call():
    problem = js.Problem(n=4, d=60, s=5, m_k=3, m_v=3, n_test=5, supports="disjoint")
    made = js.Sweep(
        system=js.two_layer, problem=problem, hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)},
        axes={"n": [5, 6, 7], "seed": 6}, steps=4, engine="feature_space", record=[0],
    )  # fmt: skip
    measured = [g.compile_seconds for g in forecast.forecast(made).groups]
    assert measured[0] > 0
    assert measured[1:] == [0, 0]  # the first group's programs are theirs, too
    whole = forecast.forecast(made, speed=10.0)
    assert whole.compile_seconds is None
    assert (len(whole.groups), whole.programs, whole.call_runs) == (3, 1, 6)
    assert whole.seconds == pytest.approx(18 * 4 / 10)
    one = whole.call_bytes // whole.groups[0].size
    found = forecast.forecast(made, memory=2 * one, speed=10.0)
    assert [(g.calls, g.size) for g in found.groups] == [(3, 6 // 3 * g.width) for g in found.groups]
    assert (found.call_runs, found.result_bytes) == (2, whole.result_bytes)
    assert found.checkpoint_bytes == pytest.approx(whole.checkpoint_bytes / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "FILE must be a Python file that exists"),
        ("x = 1", "defines no build(args)"),
        ("def build(args", "cannot be loaded: SyntaxError"),
        ("import nowhere", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(5)", "cannot be loaded: SystemExit: 5"),
        ("def build(args):\n    return {}", "must return {key: js.Sweep} with at least one sweep"),
        ("def build(args):\n    return {'a': 1}", "must return {key: js.Sweep}"),
    ],
)
def test_plan_refuses_files_without_sweeps(tmp_path, capsys, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    refused(capsys, message, "plan", file)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--engine", "x"], "there is no engine 'x'"),
        (["--seed-steps-per-second", "0"], "--seed-steps-per-second: must be a number > 0, got '0'"),
        (["--seed-steps-per-second", "1", "--memory", "1"], "memory must be at least"),
        (["--memory", "1e9"], "--memory: must be an int >= 1, got '1e9'"),
        (["--devices", "3"], "devices=3 cannot be set: JAX has already started"),
    ],
)
def test_plan_refuses_bad_numbers(experiment, capsys, argv, message):
    refused(capsys, message, "plan", experiment, *argv)


def test_status_says_where_every_sweep_stands_and_touches_nothing(stored, capsys):
    before = files(stored[0].parent)
    status, out, _ = run(capsys, "status", stored[0].parent)
    assert status == 0
    half, whole = out.split("\n\n")
    assert half.startswith(f"{stored[1]}\n")
    assert f"{RUNS}: 12 finished, 6 diverged, 18 not run" in half
    assert "run the sweep's own command again" in half
    assert f"{RUNS}: 24 finished, 12 diverged, 0 not run" in whole
    assert re.search(r"begun +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC, last worked on 20", whole)
    assert re.search(r"worked +\d.* in 1 session, compiling in \d.* of them$", whole, re.M)
    assert re.search(r"next +finished$", whole, re.M)
    assert "running" not in out
    assert files(stored[0].parent) == before


def test_status_sees_who_runs_a_sweep_and_what_was_cut_off(half, capsys):
    checkpoints.save(half / "checkpoints" / "block-000003", 4, {"w": np.ones(3)}, {})
    with locks.shard_lock(half, (1, 2)):
        _, out, _ = run(capsys, "status", half)
        assert re.search(rf"running +shard 1/2: process {os.getpid()} on {socket.gethostname()} since 20", out)
        assert re.search(r"next +wait", out)
        status, text, _ = run(capsys, "verify", half)
        assert status == 1
        assert "what is being written may look damaged: shard 1/2: process" in text
    assert re.search(r"checkpoint +block 3 at step 4 of 6", out)
    file = half / "locks" / "shard-1-of-2.lock"
    holder = {"pid": 2**22 + 1, "host": socket.gethostname(), "since": "2026-01-01T00:00:00Z"}
    file.write_text(json.dumps(holder))  # killed: a process that ends empties its lock
    _, out, _ = run(capsys, "status", half)
    assert re.search(r"cut off +shard 1/2: process \d+ on \S+ since 2026-01-01 00:00:00 UTC", out)
    assert re.search(r"next +run the sweep's own command again", out)
    file.write_text(json.dumps({**holder, "pid": os.getpid()}))  # the number is another process's by now
    assert "cut off" in run(capsys, "status", half)[1]
    file.write_text(json.dumps({**holder, "host": "elsewhere"}))
    assert re.search(r"running .*on elsewhere since .*, last sign of life .* ago", run(capsys, "status", half)[1])
    os.utime(file, (0, 0))
    assert re.search(r"cut off .*on elsewhere since", run(capsys, "status", half)[1])


def test_status_of_what_is_only_begun_or_has_no_manifest(whole, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    with locks.shard_lock(tmp_path / "begun", (0, 1)):
        status, out, _ = run(capsys, "status", tmp_path / "begun")
    assert status == 0
    assert "nothing is stored yet" in out
    assert "running  process" in out
    (whole / "manifest.json").write_text("{")
    (whole / "manifest.copy.json").write_text("{")
    status, out, _ = run(capsys, "status", tmp_path)
    assert status == 3
    assert "manifest.json is not a readable manifest" in out
    (whole / "manifest.json").unlink()
    (whole / "manifest.copy.json").unlink()
    assert run(capsys, "status", whole)[0] == 3


def test_verify_counts_what_it_read(stored, capsys):
    status, out, _ = run(capsys, "verify", stored[0])
    assert status == 0
    count = sum(f.is_file() for name in js.open_results(stored[0]).data_vars for f in chunks(stored[0], name))
    assert re.fullmatch(rf"{stored[0]}: good: {RUNS} runs, {count} chunks \(\S+ kB\) and 0 checkpoints read\n", out)


def test_verify_says_what_has_not_been_run(stored, capsys):
    before = files(stored[0].parent)
    status, out, _ = run(capsys, "verify", stored[0].parent)
    assert status == 1
    assert f"{stored[1]}: incomplete: {RUNS} runs" in out
    assert f"  incomplete: 18 of {RUNS} runs not run\n" in out
    assert f"{stored[0]}: good" in out
    assert "1 of 2 directories are good: " in out
    assert files(stored[0].parent) == before


@pytest.mark.parametrize("place", [0, "middle", -1])
@pytest.mark.parametrize("name", ["train_loss", "status", "seed", "learning_rate", "family"])
def test_verify_finds_a_flipped_byte(whole, capsys, name, place):
    file = chunks(whole, name)[0]
    flip(file, file.stat().st_size // 2 if place == "middle" else place)
    status, out, _ = run(capsys, "verify", whole)
    assert status == 1
    assert f"{whole}: damaged: {RUNS} runs" in out
    assert f"  {file} is damaged" in out
    assert "-> run the sweep's own command again" in out


@pytest.mark.parametrize("name", ["residual", "first_bad_step", "optimizer", "slope", "seed", "step", "sample"])
def test_verify_finds_a_file_that_is_gone(whole, capsys, name):
    file = chunks(whole, name)[-1]
    file.unlink()
    status, out, _ = run(capsys, "verify", whole)
    assert status == 1
    assert re.search(rf"  {file} is (damaged or )?missing", out)


def test_verify_finds_lost_status_and_changed_metadata(whole, capsys):
    lost = chunks(whole, "status")[1]
    lost.unlink()
    status, out, _ = run(capsys, "verify", whole)
    assert status == 1
    assert f"{whole}: damaged: " in out
    assert f"{lost} is missing, although its runs are stored" in out
    for name in ("zarr.json", "train_loss/zarr.json"):
        flip(whole / "results.zarr" / name)
        status, out, _ = run(capsys, "verify", whole)
        assert status == 1
        assert f"{whole / 'results.zarr' / name} is damaged or missing" in out
    shutil.rmtree(whole / "results.zarr")
    assert f"{whole / 'results.zarr'} is missing" in run(capsys, "verify", whole)[1]


def test_what_verify_finds_is_mended_by_the_sweep(whole, sweep, stored, capsys):
    for name in ("train_loss", "status", "count"):
        flip(chunks(whole, name)[0])
    chunks(whole, "residual")[-1].unlink()
    js.run_sweep(sweep, whole)
    assert run(capsys, "verify", whole)[0] == 0
    file = whole / "results.zarr" / "status" / "zarr.json"
    file.write_text(file.read_text().replace('"node_type"', '"node_type" '))  # the same JSON, other bytes
    assert run(capsys, "verify", whole)[0] == 1
    js.run_sweep(sweep, whole)
    assert run(capsys, "verify", whole)[0] == 0
    xr.testing.assert_equal(js.open_results(whole), js.open_results(stored[0]))


def test_verify_reads_checkpoints(whole, capsys):
    folder = whole / "checkpoints" / "block-000001"
    checkpoints.save(folder, 2, {"w": np.arange(40.0)}, {})
    checkpoints.save(folder, 4, {"w": np.arange(40.0)}, {})
    assert "and 2 checkpoints read" in run(capsys, "verify", whole)[1]
    record = folder / "2.json"
    record.write_text(record.read_text().replace('"step": 2', '"step": 3'))
    status, out, _ = run(capsys, "verify", whole)
    assert status == 1
    assert f"  {folder / '2'}: its record is damaged\n" in out
    assert "-> the next start passes over a damaged checkpoint" in out
    assert "own command" not in out


def test_a_manifest_that_cannot_be_read_does_not_end_verify(whole, half, tmp_path, capsys):
    flip(half / "manifest.json", 200)
    (half / "manifest.copy.json").unlink()
    status, out, _ = run(capsys, "verify", tmp_path)
    assert status == 1
    assert f"  {half / 'manifest.json'} is " in out
    assert "-> put manifest.json back" in out
    assert f"{whole}: good" in out
    (half / "manifest.json").unlink()
    assert f"  {half / 'manifest.json'} is missing" in run(capsys, "verify", half)[1]


@pytest.mark.parametrize("command", ["status", "verify", "export", "claims", "report"])
def test_directories_without_results_are_refused(tmp_path, capsys, command):
    (tmp_path / "manifest.json").write_text('{"name": "another program"}')
    options = {"export": ["--format", "netcdf"], "report": ["--out", tmp_path / "page.html"]}.get(command, [])
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "no" / "where", tmp_path / "manifest.json"):
        refused(capsys, "DIR must hold finished results or those of a sweep under way", command, path, *options)

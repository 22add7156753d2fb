"""jaxsign plan, status, verify and export: what they print, what they exit with, what they never touch."""

import json
import os
import re
import shutil
import socket

import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.cli import main as cli
from jaxsign.cli import netcdf
from jaxsign.store import checkpoints, locks
from jaxsign.sweep import forecast
from jaxsign.sweep import timing as calibrate

#: An experiment of a system of one number; `neighbour` is found only if its folder is on the path.
EXPERIMENT = """
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

import jaxsign as js
from neighbour import SLOPES


@dataclasses.dataclass(frozen=True)
class Line:
    n: int = 4


@functools.cache
def system(problem):
    def residual(params, data, hyper):
        return params["w"] * data - hyper["slope"] * data

    def observe(params, data, test, hyper):
        gap = residual(params, data, hyper)
        return {"train_loss": jnp.mean(gap**2), "residual": gap, "count": jnp.sum(gap > 0, dtype=jnp.int32)}

    return js.Task(
        sample=lambda key, hyper, shared: 1 + jnp.arange(1.0 * problem.n),
        init=lambda key, data, hyper: {"w": jnp.zeros(())},
        loss=lambda params, data, hyper: jnp.mean(residual(params, data, hyper) ** 2),
        observe=observe, dims={"residual": ("sample",)}, name="line",
    )


def build(args):
    if args.engine:
        assert not (args.help or args.out)  # sweep_cli hands these to build as well
        raise ValueError(f"there is no engine {args.engine!r}")
    seeds = args.seeds or 3
    sweep = js.Sweep(
        system=system, problem=Line(), hyper={"slope": 1.0, "tilt": 0.5}, steps=args.steps or 6, record=2,
        optimizers={"gd": js.grid(optax.sgd, learning_rate=[0.01, 1e30]), "mine": optax.sgd(0.03)},
        axes={"slope": SLOPES, "n": [2, 4], "seed": seeds}, observables=["train_loss", "residual", "count"],
    )
    return {"line": sweep}
"""
RUNS = 2 * 2 * 3 * 3


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "neighbour.py").write_text("SLOPES = [1.0, 2.0]\n")
    (folder / "line.py").write_text(EXPERIMENT)
    return folder / "line.py"


@pytest.fixture(scope="module")
def sweep(experiment):
    args = {"seeds": None, "steps": None, "engine": None, "tiny": False}
    return cli.load_build(str(experiment))(cli.argparse.Namespace(**args))["line"]


@pytest.fixture(scope="module")
def stored(sweep, tmp_path_factory):
    """(results of the whole sweep, results of one of its two shards)."""
    folder = tmp_path_factory.mktemp("stored")
    for name, shard in (("whole", None), ("half", (0, 2))):
        js.run_sweep(sweep, folder / name, shard=shard)
    return folder / "whole", folder / "half"


@pytest.fixture
def whole(stored, tmp_path):
    shutil.copytree(stored[0], tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def half(stored, tmp_path):
    shutil.copytree(stored[1], tmp_path / "half")
    return tmp_path / "half"


def run(capsys, *argv):
    """(exit status, stdout, stderr) of a command."""
    capsys.readouterr()
    try:
        status = cli.main(list(map(str, argv)))
    except SystemExit as stop:
        status = stop.code
    text = capsys.readouterr()
    return status, text.out, text.err


def refused(capsys, message, *argv, status=2):
    """A command that prints one line on stderr, with the message in it, and nothing else."""
    found, out, err = run(capsys, *argv)
    assert (found, out, err.count("\n")) == (status, "", 1), err
    assert message in err


def files(path):
    return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in path.rglob("*") if f.is_file()}


def flip(file, place=-1):
    raw = bytearray(file.read_bytes())
    raw[place] ^= 0x10
    file.write_bytes(bytes(raw))


def test_plan_counts_what_the_manifest_counts(experiment, sweep, stored, capsys):
    status, out, said = run(capsys, "plan", experiment)
    assert status == 0
    assert said == "line: compiling and measuring; --seed-steps-per-second skips it\n"  # it may take minutes
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
    assert "a call holds up to 12 runs in " in lines[5]
    assert lines[6] == f"total: {RUNS} runs, 4 programs to compile"
    assert re.match(r"  time +[<\d].* of training on 2 cpu devices, measured now", lines[7])
    assert lines[-1].split(maxsplit=1) == ["command", f"python {experiment} --out DIR"]


def test_plan_takes_a_speed_from_elsewhere_and_trains_nothing(experiment, capsys, monkeypatch):
    monkeypatch.setattr(calibrate, "measure", None)
    monkeypatch.setattr(calibrate, "FEW_SEED_STEPS", 0)  # long sweeps measure lane widths when they are run
    monkeypatch.setattr(forecast, "estimate", None)
    argv = ["--seed-steps-per-second", "100", "--devices", "4", "--steps", "1000", "--seeds", "2", "--memory", "4000"]
    status, out, said = run(capsys, "plan", experiment, *argv)
    assert (status, said) == (0, "")
    assert "24 runs of 1000 steps" in out
    assert re.search(r"time +60 s of training on 4 devices of 100 seed-steps/s", out)
    assert f"python {experiment} --out DIR --seeds 2 --steps 1000 --memory 4000\n" in out


def test_plan_counts_shared_programs_once_and_every_call():
    problem = js.Problem(n=4, d=60, s=5, m_k=3, m_v=3, n_test=5, supports="disjoint")
    made = js.Sweep(
        system=js.two_layer, problem=problem, hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)},
        axes={"n": [5, 6, 7], "seed": 6}, steps=4, engine="feature_space", record=10,
    )  # fmt: skip
    whole = forecast.forecast(made, speed=10.0)
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
    assert re.search(r"worked +\d.* in 1 session$", whole, re.M)
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


def chunks(path, name):
    return sorted(f for f in (path / "results.zarr" / name / "c").rglob("*") if f.is_file())


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


@pytest.mark.parametrize("command", ["status", "verify", "export"])
def test_directories_without_results_are_refused(tmp_path, capsys, command):
    (tmp_path / "manifest.json").write_text('{"name": "another program"}')
    options = ["--format", "netcdf"] if command == "export" else []
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "manifest.json"):
        refused(capsys, "DIR must hold finished results or those of a sweep under way", command, path, *options)


def same(found, ds):
    """Bit-equal values of all variables, coordinates among the coordinates."""
    assert set(found.coords) == set(ds.coords)
    assert set(found.data_vars) == set(ds.data_vars)
    for name in ds.variables:
        assert found[name].dims == ds[name].dims
        assert {k: v for k, v in found[name].attrs.items() if k != "_FillValue"} == ds[name].attrs
        if ds[name].dtype.kind == "f":
            assert found[name].dtype == ds[name].dtype
            assert found[name].values.tobytes() == ds[name].values.tobytes()
        else:
            np.testing.assert_array_equal(found[name].values, ds[name].values)


def test_export_comes_back_equal(whole, half, tmp_path, capsys):
    status, out, _ = run(capsys, "export", tmp_path, "--format", "netcdf")
    assert status == 0
    lines = out.splitlines()
    assert re.fullmatch(rf"{half / 'results.nc'}: \S+ kB, {RUNS} runs; 18 of {RUNS} runs not run: status -1", lines[0])
    assert re.fullmatch(rf"{whole / 'results.nc'}: \S+ kB, {RUNS} runs", lines[1])
    for path in (whole, half):
        ds = js.open_results(path)
        with xr.open_dataset(path / "results.nc") as found:
            same(found, ds)
            assert found["status"].dtype == np.int8
            assert json.loads(found.attrs["manifest"]) == json.loads((path / "manifest.json").read_text())
    assert run(capsys, "export", whole, "--format", "netcdf")[0] == 0  # over an earlier export
    assert run(capsys, "export", whole, "--format", "netcdf", "--out", tmp_path / "mine.nc")[0] == 0
    assert (tmp_path / "mine.nc").read_bytes() == (whole / "results.nc").read_bytes()
    assert not list(tmp_path.rglob("*.partial"))
    assert run(capsys, "verify", whole)[0] == 0


def test_export_converts_what_netcdf_cannot_hold_and_refuses_what_it_would_change():
    held = {
        name: netcdf._held(name, xr.DataArray(np.array(values, dtype)))
        for name, values, dtype in [
            ("small", [1, 2], "int64"), ("wide", [2**40], "int64"), ("bytes", [255], "uint8"), ("half", [0.5], "f2"),
        ]
    }  # fmt: skip
    assert {k: str(v.dtype) for k, v in held.items()} == {
        "small": "int32", "wide": "float64", "bytes": "int32", "half": "float32",
    }  # fmt: skip
    assert held["wide"].item() == 2**40
    for values, message in (([2**60], r"mine holds integers beyond 2\^53"), ([1j], "mine is of dtype complex128")):
        with pytest.raises(ValueError, match=message):
            netcdf._held("mine", xr.DataArray(values))


def test_export_refuses_and_leaves_everything_as_it_is(whole, half, tmp_path, capsys, monkeypatch):
    command = ["export", whole, "--format", "netcdf"]
    refused(capsys, "--out FILE is for one results directory", "export", tmp_path, *command[2:], "--out", "x.nc")
    refused(capsys, "invalid choice: 'hdf'", "export", whole, "--format", "hdf")
    refused(capsys, "cannot be written: No such file or directory", *command, "--out", tmp_path / "no" / "x.nc")
    ds = xr.Dataset({"a": 1.0})
    ds.to_netcdf(tmp_path / "other.nc", engine="scipy")
    (tmp_path / "thesis.tex").write_text("mine")
    before = files(tmp_path)
    for file in ("other.nc", "thesis.tex"):
        refused(capsys, "is not a file that jaxsign export has made", *command, "--out", tmp_path / file)
    monkeypatch.setattr(netcdf, "NETCDF_BYTES", 1000)
    refused(capsys, "residual takes 2.3 kB, and a variable of a netCDF 3 file at most 1.0 kB", *command)
    assert files(tmp_path) == before
    monkeypatch.undo()
    flip(chunks(whole, "train_loss")[0])
    refused(capsys, f"{chunks(whole, 'train_loss')[0]} is damaged", *command, status=3)
    refused(capsys, f"{chunks(whole, 'train_loss')[0]} is damaged", "claims", whole, status=3)


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """Results that decide S2, and their claims table."""
    folder = tmp_path_factory.mktemp("decided")
    sweep = js.Sweep(
        system=js.two_layer, problem=js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=16), hyper=js.Hyper(sigma_p=2.0),
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}, axes={"seed": 12}, steps=20, record=1,
        observables=["train_loss", "sign_agreement"],
    )  # fmt: skip
    js.run_sweep(sweep, folder / "runs")
    js.check(js.open_results(folder / "runs"), ["S2"]).to_csv(folder / "claims.csv")
    return folder


def test_claims_are_compared_with_a_reference_before_it_can_be_replaced(decided, tmp_path, capsys):
    reference = tmp_path / "reference.csv"
    text = (decided / "claims.csv").read_text()
    word = next(word for word in ("HOLDS", "FAILS", "UNDECIDED") if word in text)
    other = "FAILS" if word == "HOLDS" else "HOLDS"
    reference.write_text(text.replace(word, other))
    before = files(tmp_path)
    command = ["claims", decided / "runs", "--claim", "S2"]
    (tmp_path / "soft.csv").symlink_to(reference)
    os.link(reference, tmp_path / "hard.csv")
    for name in ("reference.csv", "soft.csv", "hard.csv", "../" + tmp_path.name + "/reference.csv"):
        argv = [*command, "--csv", tmp_path / name, "--against", reference]
        refused(capsys, "would replace the table that --against compares with", *argv)
        refused(capsys, "would replace the table that", *command, "--csv", reference, "--against", tmp_path / name)
    assert files(tmp_path)[reference] == before[reference]
    status, out, _ = run(capsys, *command, "--against", reference, "--csv", tmp_path / "new.csv")
    assert status == 0
    assert f"differs from {reference}: S2 custom: {other} -> {word}\n" in out
    assert "all verdicts" not in out
    assert (tmp_path / "new.csv").read_text() == text
    assert run(capsys, *command, "--against", reference, "--strict")[0] == 1  # documented: a difference counts
    _, out, _ = run(capsys, *command, "--against", tmp_path / "new.csv")
    assert f"all verdicts are those of {tmp_path / 'new.csv'}\n" in out


def test_claims_say_what_the_reference_had_and_they_have_not(decided, tmp_path, capsys):
    reference = tmp_path / "reference.csv"
    text = (decided / "claims.csv").read_text()
    reference.write_text(text + "ZZ,elsewhere" + "," * (text.splitlines()[0].count(",") - 1) + "HOLDS\n")
    command = ["claims", decided / "runs", "--against", reference]
    status, out, _ = run(capsys, *command)
    assert status == 0
    assert "ZZ elsewhere: HOLDS -> not decided" in out
    assert "all verdicts" not in out
    _, out, _ = run(capsys, *command, "--claim", "S2")
    assert "ZZ" not in out
    assert "all verdicts are those of" in out
    _, out, _ = run(capsys, "claims", decided / "runs", "--against", decided / "claims.csv", "--claim", "S1")
    assert "holds no verdict on these claims" in out
    assert "all verdicts" not in out
    reference.write_text(text.replace("S2,custom", "S1,custom"))  # nothing is decided: that is no agreement either
    status, out, _ = run(capsys, *command, "--claim", "S1")
    assert status == 0
    assert "no claim can be decided from" in out
    assert "all verdicts" not in out
    assert run(capsys, *command, "--claim", "S1", "--strict")[0] == 1
    reference.write_text(text.splitlines()[0] + "\n")
    _, out, _ = run(capsys, *command, "--claim", "S2")
    assert "S2 custom: new, " in out
    assert f"{reference} holds no verdict on these claims\n" in out
    assert "all verdicts" not in out


def test_claims_refuse_files_before_anything_is_read(decided, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "check", None)  # minutes are not spent first
    (tmp_path / "notes.txt").write_text("mine\n")
    (tmp_path / "empty.csv").write_text("")
    before = files(tmp_path)
    command = ["claims", decided / "runs"]
    refused(capsys, "is not a claims table of jaxsign", *command, "--csv", tmp_path / "notes.txt")
    refused(capsys, "must be in a folder that exists", *command, "--csv", tmp_path / "no" / "x.csv")
    refused(capsys, "must be a file, got the directory", *command, "--csv", tmp_path)
    refused(capsys, "--csv='': an empty path", *command, "--csv", "")
    for name in ("empty.csv", "notes.txt", "missing.csv", "", "x" * 300):
        refused(capsys, name[:20], *command, "--against", tmp_path / name)
    refused(capsys, "--against='': an empty path", *command, "--against", "")
    assert files(tmp_path) == before


@pytest.mark.parametrize("argv", [["report"], ["export", "--format", "netcdf"], ["claims"]], ids=lambda argv: argv[0])
def test_files_that_are_written_are_never_pipes_or_empty_files_of_others(decided, tmp_path, capsys, argv):
    os.mkfifo(tmp_path / "pipe")  # opened to look into it, it would wait for ever
    (tmp_path / "empty").write_text("")
    option = "--csv" if argv[0] == "claims" else "--out"
    for name in ("pipe", "empty"):
        refused(capsys, f"{name}'", argv[0], decided / "runs", *argv[1:], option, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "pipe"]

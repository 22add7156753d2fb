"""Scripts: every experiment defines a smoke test; those of `make reproduce` run, and their figures are drawn."""

import argparse
import ast
import csv
import dataclasses
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.cli.experiment import build_options, load_build

ROOT = Path(__file__).parent.parent
ATLAS = (ROOT / "docs" / "atlas.md").read_text()


def load(path):
    """The module of a script, without running it as one."""
    spec = importlib.util.spec_from_file_location(f"script_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPERIMENTS = [path for path in sorted((ROOT / "sweeps").glob("*.py")) if path.stem != "presets"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_defines_a_smoke_test_and_says_its_command_and_cost(path):
    parser = argparse.ArgumentParser()
    build_options(parser)
    sweeps = load_build(str(path))(argparse.Namespace(**vars(parser.parse_args(["--tiny"])), help=False))
    assert all(sweep.size > 0 for sweep in sweeps.values())
    description = ast.get_docstring(ast.parse(path.read_text()))
    assert "Command: " in description
    assert "Cost: " in description


def refused(main, argv, message, capsys):
    """A command that ends in exit status 2 and one line on stderr that holds the message."""
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of the tiny modes of all sweeps, laid out as `make reproduce` does."""
    root = tmp_path_factory.mktemp("results")
    for name, at in (("dynamics", "dynamics/paper_like"), ("query_noise", "query_noise"), ("snr", "snr/snr")):
        assert load(ROOT / "sweeps" / f"{name}.py").main(["--tiny", "--out", str(root / at)]) == 0
    shutil.copytree(root / "dynamics" / "paper_like", root / "dynamics" / "disjoint")  # the figure shows both presets
    return root


def test_tiny_results_are_finite_labelled_and_rerun_as_no_op(results, capsys):
    ds = js.open_results(results / "dynamics" / "paper_like")
    assert ds["train_loss"].dims == ("optimizer", "seed", "step")
    assert bool((ds["status"] == 0).all())
    assert np.isfinite(ds["train_loss"]).all()
    assert ds["family"].values.tolist() == ["sign_gd", "adam", "gd"]
    before = {f: f.stat().st_mtime_ns for f in results.rglob("*") if f.is_file()}
    assert load(ROOT / "sweeps" / "snr.py").main(["--tiny", "--out", str(results / "snr" / "snr")]) == 0
    assert "loaded" in capsys.readouterr().err
    assert before == {f: f.stat().st_mtime_ns for f in results.rglob("*") if f.is_file()}


@pytest.mark.parametrize("name", ["figure1", "optimizers", "snr"])
def test_figures_draw_and_save_their_numbers(results, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [name, "--results", str(results), "--out", str(tmp_path)])
    load(ROOT / "figures" / f"{name}.py").main()
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".pdf", ".svg", ".csv"}
    lines = (tmp_path / f"{name}.csv").read_text().splitlines()
    assert lines[0] == "panel,line,x,y,q05,q95"
    assert len(lines) > 20


def test_figure_numbers_are_the_datasets(results, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(results), "--out", str(tmp_path)])
    load(ROOT / "figures" / "optimizers.py").main()
    rows = [line.split(",") for line in (tmp_path / "optimizers.csv").read_text().splitlines()[1:]]
    drawn = {float(r[2]): float(r[3]) for r in rows if r[0] == "paper-like: training loss" and r[1] == "GD"}
    ds = js.open_results(results / "dynamics" / "paper_like")
    loss = ds["train_loss"].isel(optimizer=2).median("seed")
    assert drawn[100.0] == pytest.approx(float(loss.sel(step=100)), rel=1e-5)


def test_a_cell_of_a_map_opens_as_its_page_says_and_runs_again(tmp_path, monkeypatch):
    """The page's own lines, on the tiny map: the run again has the loss that the map holds."""
    block = re.search(r"^```\{code-block\} python\n:name: open-a-cell\n(.*?)^```$", ATLAS, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    out = "results/atlas_error"
    assert load(ROOT / "sweeps" / "atlas_error.py").main(["--tiny", "--only", "error", "--out", out]) == 0
    names: dict = {}
    exec(block[1], names)
    stored = names["cell"]["train_loss"].sel(seed=1, step=60).item()
    assert 0 < stored < 0.69
    assert names["run"].to_xarray()["train_loss"].sel(step=60).item() == pytest.approx(stored, rel=1e-4)


@pytest.mark.slow
def test_claims_from_many_seeds_run_tiny(tmp_path):
    assert load(ROOT / "sweeps" / "claims.py").main(["--tiny", "--out", str(tmp_path)]) == 0
    ds = js.open_results(tmp_path / "paper_like_sign_gd")
    assert np.isfinite(ds["sign_agreement_20"]).all()
    assert "train_loss" not in ds


@pytest.mark.parametrize("name", ["claims", "dynamics", "query_noise", "snr"])
def test_help_lists_every_axis_without_running(name, capsys):
    module = load(ROOT / "sweeps" / f"{name}.py")
    assert module.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "optimizer: " in text
    assert "seed: " in text
    listed = [line.strip() for line in text.splitlines() if "learning_rate" in line or "64 seeds" in line]
    assert len(listed) == len(set(listed))  # what all sweeps of an experiment share is listed once
    assert ("snr: 0.02" in text) == (name == "snr")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--out DIR is needed"),
        (["--out", "x", "--seeds", "0"], "--seeds: must be an int >= 1, got '0'"),
        (["--out", "x", "--steps", "2.5"], "--steps: must be an int >= 1, got '2.5'"),
        (["--out", "x", "--engine", "sparse"], "unknown engine 'sparse'"),
        (["--out", "x", "--sedes", "3"], "unrecognized arguments: --sedes"),
        (["--out", "x", "--only", "disjoint,disjiont"], "unknown sweep 'disjiont'; did you mean 'disjoint'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = load(ROOT / "sweeps" / "dynamics.py").main
    refused(main, argv, message, capsys)
    assert not list(tmp_path.iterdir())


def test_out_that_is_something_else_is_refused_untouched(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert load(ROOT / "sweeps" / "query_noise.py").main(["--tiny", "--out", str(tmp_path)]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_query_noise_wants_64_bit(tmp_path, capsys):
    assert load(ROOT / "sweeps" / "query_noise.py").main(["--out", str(tmp_path / "x")]) == 2
    assert "--x64" in capsys.readouterr().err


def test_claims_command_prints_writes_and_compares(results, tmp_path, capsys):
    table = tmp_path / "claims.csv"
    assert cli.main(["claims", str(results), "--csv", str(table)]) == 0
    assert "S2" in capsys.readouterr().out
    assert cli.main(["claims", str(results), "--against", str(table)]) == 0
    assert "all verdicts are those of" in capsys.readouterr().out
    edited = table.read_text().replace("UNDECIDED", "HOLDS").replace("FAILS", "HOLDS")
    table.write_text(edited)
    assert cli.main(["claims", str(results), "--against", str(table)]) == 0
    assert "HOLDS -> UNDECIDED" in capsys.readouterr().out


def test_claims_command_says_why_nothing_is_decided(results, tmp_path, capsys):
    table = tmp_path / "claims.csv"
    table.write_text("claim,setting,verdict\nG1,paper_like,HOLDS\n")
    command = ["claims", str(results / "snr"), "--claim", "G1", "--claim", "S1", "--against", str(table)]
    assert cli.main(command) == 0
    start = f"no claim can be decided from {results / 'snr'}: "
    assert capsys.readouterr().out.splitlines() == [
        f"{start}G1 custom: needs one point of every axis, got several on ['snr']: choose one with ds.sel(snr=...), in "
        "a claim of your own with runs=lambda ds: ds.sel(snr=...)",
        f"{start}S1 custom: step 6 is not recorded",
    ]


def test_claims_strict_exits_1_on_a_fails(results, monkeypatch, capsys):
    import jaxsign.claims.verdicts as verdicts

    assert cli.main(["claims", str(results), "--strict"]) == 0
    monkeypatch.setattr(verdicts, "SHARE", 1.01)  # no share can reach it: every claim fails
    assert cli.main(["claims", str(results), "--strict"]) == 1


def test_claims_command_on_bad_and_damaged_directories(results, tmp_path, capsys):
    assert cli.main(["claims", str(tmp_path)]) == 2
    assert "DIR must hold finished results" in capsys.readouterr().err
    assert cli.main(["claims", str(results), "--claim", "S9"]) == 2
    assert "unknown claim 'S9'" in capsys.readouterr().err
    shutil.copytree(results / "query_noise", tmp_path / "copy")
    for name in ("manifest.json", "manifest.copy.json"):
        (tmp_path / "copy" / name).write_text("{")
    assert cli.main(["claims", str(tmp_path / "copy")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_the_package_runs_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxsign", "--help"])
    monkeypatch.delitem(sys.modules, "jaxsign.__main__", raising=False)  # the doctests import it
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("jaxsign", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: jaxsign ")


@pytest.fixture(scope="module")
def bench():
    """Loads a benchmark, which imports its neighbours in sweeps/bench/ as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "sweeps" / "bench"))
        yield lambda name: load(ROOT / "sweeps" / "bench" / f"{name}.py")


@pytest.fixture(scope="module")
def throughput(bench):
    return bench("throughput")


@pytest.mark.slow
def test_throughput_benchmark_runs_tiny_agrees_and_is_drawn(throughput, tmp_path, capsys, monkeypatch):
    out = tmp_path / "throughput"
    found = importlib.util.find_spec  # the same with and without PyTorch
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    # The textbook model is written as the field writes it.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert throughput.main(["--tiny", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("last losses differ") == 2
    assert "PyTorch is left out, torch is not installed: pip install" in text
    with open(out / "throughput.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    engines = {"dense", "support", "feature_space", "feature_space_law", "hybrid"}
    assert {row["contender"] for row in rows} == {"textbook", *engines}
    assert {row["contender"] for row in rows if row["part"] == "sharing"} == {"support", "hybrid"}
    assert {row["test_eval"] for row in rows} == {"0", "1"}
    assert all(float(row["seed_steps_per_s"]) > 0 for row in rows)
    assert set(json.loads((out / "machine.json").read_text())["limits"]) == {"gflops", "gbs"}
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    load(ROOT / "figures" / "throughput.py").main()
    assert {p.suffix for p in (tmp_path / "figures").iterdir()} == {".png", ".pdf", ".svg", ".csv"}


def test_throughput_benchmark_refuses_contenders_that_disagree(throughput):
    same, other = ({"train_loss": np.full((2, 3), loss)} for loss in (0.5, 0.6))
    assert throughput.agreement({"textbook": same, "dense": same}) == 0
    with pytest.raises(RuntimeError, match=r"last losses of dense and textbook differ by 1\.0e-01 > 0\.0001"):
        throughput.agreement({"textbook": same, "dense": other})
    with pytest.raises(RuntimeError, match="differ by nan"):
        throughput.agreement({"textbook": same, "dense": {"train_loss": np.full((2, 3), np.nan)}})


def test_throughput_arithmetic_is_the_documented_one(throughput):
    problem = js.Problem(n=20, d=2000, s=40, m_k=20, m_v=20)
    assert throughput.arithmetic("dense", problem).flops == 2000 * (4 * 21 * 41 + 2 * 42)
    assert throughput.arithmetic("dense", problem, moments=2).bytes == 4 * 2000 * (2 * 21 + 9 * 42)
    assert throughput.arithmetic("support", problem).flops == 832 * (4 * 21 * 41 + 2 * 42)
    disjoint = dataclasses.replace(problem, supports="disjoint")
    assert throughput.arithmetic("feature_space", disjoint).bytes == 4 * 5 * 41 * 21
    assert throughput.arithmetic("hybrid", problem).bytes == 4 * (5 * 41 * (21 + 176) + 2 * 20 * 176)
    assert throughput.arithmetic("hybrid", disjoint) == throughput.arithmetic("feature_space", disjoint)
    assert throughput.arithmetic("another", problem) is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "120"], "--steps: must be a multiple of 50, got 120"),
        (["--steps", "x"], "must be an int >= 1, got 'x'"),
        (["--devices", "0"], "must be an int >= 1, got '0'"),
        (["--only", "all"], "invalid choice: 'all'"),
    ],
)
def test_throughput_benchmark_refuses_bad_input(throughput, argv, message, tmp_path, capsys):
    refused(throughput.main, [*argv, "--out", str(tmp_path / "out")], message, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_step_with_the_runs_last_is_the_engines(bench, capsys):
    assert bench("step").main(["--tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["engine", "engine, 512 bits", "runs last", "runs last, kept"]
    for line in lines:
        assert float(line.rsplit(" ", 1)[1]) <= 1e-6, line


@pytest.mark.slow
def test_device_check_runs_tiny_and_everything_holds(tmp_path):
    command = [sys.executable, str(ROOT / "sweeps" / "bench" / "device.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--platform", "cpu"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "device.json").read_text())
    assert {row["part"] for row in rows} == {"device", "equal", "resume", "votes", "speed", "size", "law"}
    assert {row["verdict"] for row in rows} == {"ok", "info"}
    checked = [row["check"] for row in rows if row["verdict"] == "ok"]
    for engine in ("support", "feature_space", "textbook", "dense on a CPU"):
        assert f"{engine} = dense: SignGD, disjoint" in checked
    assert "resumed sweep, variables that differ" in checked
    with open(tmp_path / "device.csv", newline="") as file:
        assert [row["check"] for row in csv.DictReader(file)] == [row["check"] for row in rows]
    command += ["--platform", "tpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "JAX has cpu, --platform tpu was given" in done.stdout


#: What stands in for the checks of a device: one that holds, one that does not, a crash, a hang, and one after them.
PARTS_OF_A_BAD_DAY = """
import json, os, sys, time
part = sys.argv[1]
verdict = "FAIL" if part == "wrong" else "ok"
print(json.dumps({"check": part, "verdict": verdict, "value": 2.0, "limit": 1.0}), flush=True)
if part == "crash":
    print("out of something", file=sys.stderr, flush=True)
    os.abort()
if part == "hang":
    time.sleep(60)
"""


def test_device_check_goes_on_after_failures_crashes_and_hangs(bench, tmp_path, capsys, monkeypatch):
    device = bench("device")
    checks = tmp_path / "checks.py"
    checks.write_text(PARTS_OF_A_BAD_DAY)
    monkeypatch.setattr(device, "CHECKS", checks)

    def verdicts(*names, minutes="1"):
        parts = [device.Part(name, name, 0.0, 1.0 if name == "hang" else 30.0) for name in names]
        monkeypatch.setattr(device, "PARTS", parts)
        status = device.main(["--out", str(tmp_path / "out"), "--minutes", minutes])
        rows = json.loads((tmp_path / "out" / "device.json").read_text())
        return status, [(row["part"], row["verdict"]) for row in rows], rows

    assert verdicts("fine", "after")[:2] == (0, [("fine", "ok"), ("after", "ok")])
    assert verdicts("wrong", "after")[:2] == (1, [("wrong", "FAIL"), ("after", "ok")])
    status, found, rows = verdicts("crash", "hang", "after")
    assert status == 1
    both = [("crash", "ok"), ("crash", "ERROR"), ("hang", "ok"), ("hang", "ERROR"), ("after", "ok")]
    assert found == both
    assert rows[1]["note"] == "ended with status -6: out of something"
    assert rows[3]["note"] == "no end after 1 s"
    # A part that the whole time cuts off is no error, and neither is one that cannot begin.
    part = device.Part
    monkeypatch.setattr(device, "Part", lambda name, runs, least, most: part(name, runs, 0.1, 60.0))
    assert verdicts("hang", "after", minutes="0.03")[0] == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("1 ok, 0 FAIL, 0 ERROR, 2 skipped; ")


def test_device_check_measures_differences_and_judges_them(bench, tmp_path, capsys):
    checks = bench("device_checks")
    nan = float("nan")
    assert checks.apart([1.0, nan], [1.5, nan]) == pytest.approx(1 / 3)
    assert checks.apart([1.0, nan], [1.0, 1.0]) == checks.apart([1.0], [1.0, 1.0]) == np.inf
    assert checks.furthest({"a": [1.0], "b": [1.0], "c": [9.0]}, {"a": [1.0], "b": [2.0]}) == (0.5, "b")
    assert checks.engines(js.Problem(n=4, d=60, s=5, m_k=3, m_v=3))[:2] == ["dense", "support"]
    report = checks.Report(10.0, True, tmp_path)
    for value, limit in ((1.0, 1.0), (1.1, 1.0), (nan, 1.0), (5.0, None)):
        report.add("check", value, limit=limit)
    with report.checking("check"):
        raise ValueError("two\nlines")
    assert not report.fits("check", 11.0)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["verdict"] for row in rows] == ["ok", "FAIL", "FAIL", "info", "ERROR", "skipped"]
    assert rows[4]["note"] == "ValueError: two lines"


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["--minutes", "0"], "must be > 0 minutes, got 0"), (["--platform", "gpus"], "invalid choice")],
)
def test_device_check_refuses_bad_input(bench, argv, message, capsys):
    refused(bench("device").main, argv, message, capsys)


@pytest.mark.slow
def test_latency_benchmark_runs_tiny_and_is_drawn(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "sweeps" / "bench"))
        latency = load(ROOT / "sweeps" / "bench" / "latency.py")
        assert latency.main(["--tiny", "--out", str(tmp_path / "latency")]) == 0
    with open(tmp_path / "latency" / "latency.csv", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(latency.CASES)
    assert all(float(row["wall"]) > 0 for row in rows.values())
    assert {path.name for path in (tmp_path / "latency").iterdir()} == {"latency.csv"}
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    load(ROOT / "figures" / "latency.py").main()
    assert {p.suffix for p in (tmp_path / "figures").iterdir()} == {".png", ".pdf", ".svg", ".csv"}


@pytest.mark.slow
def test_overhead_benchmark_runs_tiny(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "sweeps" / "bench"))
    overhead = load(ROOT / "sweeps" / "bench" / "overhead.py")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert overhead.main(["--tiny", "--out", str(tmp_path), "--part", "runner", "--part", "signs"]) == 0
    with open(tmp_path / "overhead.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["figure"].startswith("runner overhead, processor time") for row in rows) == 2
    assert all(np.isfinite(float(row["value"])) for row in rows)

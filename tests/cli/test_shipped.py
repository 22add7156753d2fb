"""Scripts that come with jaxsign: listed, run in place of the command, drawn, copied, and inside the wheel."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.cli import shipped

ROOT = Path(__file__).parents[2]


def test_the_version_is_said_once(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxsign {js.__version__}\n"


@pytest.mark.parametrize(("command", "folder"), [("run", "sweeps"), ("figures", "figures")])
def test_every_script_is_listed_with_its_first_line(command, folder, capsys):
    assert cli.main([command, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(
        file.stem for file in (ROOT / folder).glob("*.py") if file.stem != "presets"
    )
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("options", "out"),
    [
        (["--seeds", "2"], ["--out", "results/snr"]),
        (["--tiny"], ["--out", "results/tiny/snr"]),
        (["--out", "here"], []),
        (["--out=here", "--tiny"], []),
        (["--help"], []),
    ],
)
def test_run_hands_over_to_the_script(options, out, monkeypatch):
    handed = []
    monkeypatch.setattr(os, "execv", lambda program, argv: handed.append((program, argv)) or 0)
    shipped.run("snr", options)
    assert handed == [(sys.executable, [sys.executable, str(ROOT / "sweeps" / "snr.py"), *options, *out])]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run"], "NAME of an experiment is needed"),
        (["run", "dynamiks"], "unknown experiment 'dynamiks'; did you mean 'dynamics'"),
        (["figures", "figure9"], "unknown figure 'figure9'; did you mean 'figure1'"),
        (["plan", "dynamiks"], "unknown experiment 'dynamiks'"),
        (["experiments", "copy", "."], "DIR must be a new or empty folder"),
    ],
)
def test_mistakes_end_in_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_scripts_are_copied_with_what_they_import(tmp_path, capsys):
    assert cli.main(["experiments", "copy", str(tmp_path / "mine")]) == 0
    for kind in ("sweeps", "figures"):
        copied = {file.name: file.read_bytes() for file in (tmp_path / "mine" / kind).iterdir()}
        assert copied == {file.name: file.read_bytes() for file in (ROOT / kind).glob("*.py")}


def test_a_figure_without_its_results_says_what_makes_them(tmp_path, capfd):
    assert cli.main(["figures", "figure1", "--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    line = f"figure1.py: --results: '{tmp_path}/dynamics/paper_like' is not there: the experiment dynamics makes it\n"
    assert capfd.readouterr().err.endswith(line)


def test_figures_without_results_are_left_out_in_one_line(tmp_path, monkeypatch, capsys):
    names = ("snr", "figure1", "noisy_splits")
    monkeypatch.setattr(shipped, "scripts", lambda kind: {name: ROOT / kind / f"{name}.py" for name in names})
    (tmp_path / "snr").mkdir()
    (tmp_path / "tiny").mkdir()
    assert cli.main(["figures", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"left out, no results in {tmp_path} (jaxsign run NAME makes them): figure1, noisy_splits",
        f"those of --tiny: jaxsign figures --results {tmp_path}/tiny",
        f"left out: snr: --results: '{tmp_path}/snr/snr' is not there: the experiment snr makes it",
    ]


def test_every_figure_says_which_results_it_reads(tmp_path):
    for name, file in shipped.scripts("figures").items():
        assert not shipped._has_results(file, tmp_path), name


def test_figures_go_beside_their_results(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(
        shipped.subprocess, "run", lambda command, **options: commands.append(command) or SimpleNamespace(returncode=0)
    )
    for out in (None, str(tmp_path / "here")):
        assert shipped.draw(["snr"], str(tmp_path), out) == 0
    assert [command[-1] for command in commands] == [str(tmp_path / "figures"), str(tmp_path / "here")]


def test_scripts_inside_the_package_come_first(tmp_path, monkeypatch):
    """As in a wheel, where there is nothing beside the package."""
    inside = tmp_path / "jaxsign" / "experiments" / "sweeps"
    inside.mkdir(parents=True)
    (inside / "mine.py").write_text('"""Mine."""\n')
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "jaxsign")
    assert shipped.scripts("sweeps") == {"mine": inside / "mine.py"}
    with pytest.raises(ValueError, match="no figures come with this installation"):
        shipped.scripts("figures")

"""Scripts that come with jaxsign: listed, run in place of the command, drawn, copied, and inside the wheel."""

import os
import sys
from pathlib import Path

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
    monkeypatch.setattr(
        shipped, "scripts", lambda kind: {"snr": ROOT / kind / "snr.py", "figure1": ROOT / kind / "figure1.py"}
    )
    assert cli.main(["figures", "--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    made_by = "is not there: the experiment {} makes it"
    assert capsys.readouterr().out.splitlines() == [
        f"left out: snr: --results: '{tmp_path}/snr/snr' {made_by.format('snr')}",
        f"left out: figure1: --results: '{tmp_path}/dynamics/paper_like' {made_by.format('dynamics')}",
    ]


def test_scripts_inside_the_package_come_first(tmp_path, monkeypatch):
    """As in a wheel, where there is nothing beside the package."""
    inside = tmp_path / "jaxsign" / "experiments" / "sweeps"
    inside.mkdir(parents=True)
    (inside / "mine.py").write_text('"""Mine."""\n')
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "jaxsign")
    assert shipped.scripts("sweeps") == {"mine": inside / "mine.py"}
    with pytest.raises(ValueError, match="no figures come with this installation"):
        shipped.scripts("figures")

"""jaxsign claims and report: which files they compare, refuse and replace."""

import os

import pytest
from line_experiment import files, refused, run

import jaxsign as js
from jaxsign.cli import command as cli


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

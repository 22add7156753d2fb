"""jaxsign claims and report: which files they compare, refuse and replace."""

import html
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
    monkeypatch.setattr(cli, "decide", None)  # minutes are not spent first
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


MINE = """
import jaxsign as js
from helper import END

def last(ds):
    return ds["train_loss"].sel(step=END).isel(optimizer=0)

CLAIMS = [
    js.Claim(id="MINE", statement="The loss is below 9.", source="ours", steps=(20,), judge="mean",
             parts=(js.Part("loss at t=20", last, (0.0, 9.0)),)),
    "S2",
]
"""


def test_claims_of_ones_own_are_decided_in_place_of_those_of_jaxsign(decided, tmp_path, capsys):
    (tmp_path / "helper.py").write_text("END = 20\n")  # beside the file, as for a script
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    status, out, _ = run(capsys, "claims", decided / "runs", "--claims", mine, "--csv", tmp_path / "mine.csv")
    assert status == 0, out
    rows = [line.split(",")[0] for line in (tmp_path / "mine.csv").read_text().splitlines()[1:]]
    assert (status, dict.fromkeys(rows)) == (0, dict.fromkeys(["MINE", "S2"]))
    assert "MINE" in out
    _, out, _ = run(capsys, "claims", decided / "runs", "--claims", mine, "--claim", "MINE", "--strict")
    assert "MINE" in out
    assert "S2" not in out
    page = tmp_path / "page.html"
    assert run(capsys, "report", decided / "runs", "--out", page, "--claims", mine)[0] == 0
    assert "The loss is below 9." in page.read_text()
    mine.write_text(MINE.replace("(20,)", "(21,)").replace('"S2",', ""))
    _, out, _ = run(capsys, "claims", decided / "runs", "--claims", mine)
    assert "no claim can be decided" in out
    assert "MINE" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "FILE must be a Python file that exists and ends in .py"),
        ("claims = []", "must define CLAIMS = [...] with at least one js.Claim, got None"),
        ("CLAIMS = []", "must define CLAIMS = [...] with at least one js.Claim, got []"),
        ("CLAIMS = [3]", "must hold js.Claim or ids of jaxsign's claims, got 3"),
        ("CLAIMS = ['S2', 'S2']", "must have different ids, got two of 'S2'"),
        ("CLAIMS = ['S222']", "claim"),
        (MINE.replace("MINE", "S1").replace("from helper import END", "END = 20"), "must not use the id of a claim of"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_without_claims_is_refused_in_one_line(decided, tmp_path, capsys, text, words):
    mine = tmp_path / "mine.py"
    if text is not None:
        mine.write_text(text)
    refused(capsys, words, "claims", decided / "runs", "--claims", mine)
    refused(capsys, words, "report", decided / "runs", "--out", tmp_path / "page.html", "--claims", mine)


def test_a_claim_of_another_system_says_what_to_write(decided, tmp_path, capsys):
    (tmp_path / "helper.py").write_text("END = 20\n")
    mine = tmp_path / "mine.py"
    mine.write_text(MINE.replace('judge="mean"', 'judge="mean", system="bn"').replace('"S2",', ""))
    status, out, _ = run(capsys, "claims", decided / "runs", "--claims", mine)
    words = "MINE everywhere: system must name what made these results: write system='two_layer', got 'bn'"
    assert (status, out) == (0, f"no claim can be decided from {decided / 'runs'}: {words}\n")


def test_a_claim_that_raises_is_named_and_the_rest_is_decided(decided, tmp_path, capsys):
    (tmp_path / "helper.py").write_text("END = 20\n")
    mine = tmp_path / "mine.py"
    gap = 'js.Claim(id="GAP", statement="", source="ours", parts=(js.Part("gap", PLACE, (0.0, 9.0)),)),\n    "S2",'
    mine.write_text(MINE.replace('"S2",', gap).replace("PLACE", 'lambda ds: ds["train_loss"].isel(optimizer=7)'))
    words = "claim GAP in the setting custom, the measure of 'gap' has failed: IndexError: "
    page = tmp_path / "page.html"
    status, out, err = run(capsys, "report", decided / "runs", "--out", page, "--claims", mine)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert err.startswith(f"{mine}: on runs: {words}")
    assert out.startswith(f"{page}: ")
    text = html.unescape(page.read_text())
    assert "The loss is below 9." in text
    assert "GAP custom: the measure of 'gap' has failed: IndexError: " in text
    status, out, err = run(capsys, "claims", decided / "runs", "--claims", mine)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert err.startswith(f"{mine}: on {decided / 'runs'}: {words}")
    assert "\nMINE " in out
    assert "not decided here: GAP custom: the measure of 'gap' has failed: IndexError: " in out

"""Verdicts from the exact interval, and tables that come back from Markdown, LaTeX, HTML, CSV and pandas."""

import csv
import dataclasses
import html.parser
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import xarray as xr
from scipy.stats import beta

import jaxsign as js
from jaxsign.analysis.runs import need
from jaxsign.claims import tables
from jaxsign.claims.claim import above
from jaxsign.claims.verdicts import HEADER, verdict


def clopper_pearson(inside, seeds):
    """The exact 95 % interval from quantiles of the beta distribution."""
    low = 0.0 if inside == 0 else beta.ppf(0.025, inside, seeds - inside + 1)
    high = 1.0 if inside == seeds else beta.ppf(0.975, inside + 1, seeds - inside)
    return low, high


@pytest.mark.parametrize("seeds", [1, 8, 35, 36, 64, 128])
def test_verdicts_follow_the_exact_interval(seeds):
    for inside in range(seeds + 1):
        word, low, high = verdict(inside, seeds)
        assert (low, high) == pytest.approx(clopper_pearson(inside, seeds), abs=1e-9)
        assert word == ("HOLDS" if low > 0.9 else "FAILS" if high < 0.9 else "UNDECIDED")


def test_how_many_seeds_a_verdict_takes():
    # all of n seeds inside: the lower end is .025^(1/n), above .9 from n = 36 on; none inside: the upper end is
    # 1 - .025^(1/n), below .9 from n = 2 on
    assert [n for n in range(1, 60) if verdict(n, n)[0] == "HOLDS"] == list(range(36, 60))
    assert [n for n in range(1, 60) if verdict(0, n)[0] == "FAILS"] == list(range(2, 60))
    # of 64 seeds: lower ends .916 at 63 and .892 at 62, upper ends .911 at 53 and .899 at 52
    assert [verdict(k, 64)[0] for k in (64, 63, 62, 53, 52)] == ["HOLDS", "HOLDS", "UNDECIDED", "UNDECIDED", "FAILS"]


def runs(values, preset="paper_like", n=20, **families):
    """One number per seed, recorded at step 0 of SignGD."""
    problem, hyper = getattr(js.presets, preset)()
    definition = {"problem": {**problem.__dict__, "n": n}, "hyper": hyper.__dict__}
    values = np.asarray(values, float)[None, :, None]
    return xr.Dataset(
        {
            "number": (("optimizer", "seed", "step"), values),
            "status": (("optimizer", "seed"), np.zeros(values.shape[:2])),
        },
        {
            "optimizer": ["sign_gd"],
            "family": ("optimizer", ["sign_gd"]),
            "seed": np.arange(values.shape[1]),
            "step": [0],
        },
        {"manifest": json.dumps({"definition": definition})},
    )


def measure(ds):
    return ds["number"].isel(step=0)


def claim(name="X1", interval=(0.0, 1.0), labels=("the number",), predict=None, steps=(0,), measure=measure, **more):
    parts = tuple(js.Part(label, measure, interval, predict) for label in labels)
    return js.Claim(
        id=name, statement="A number lies inside", source="ours", family="sign_gd", steps=steps, parts=parts, **more
    )


def test_both_ends_of_an_interval_are_inside_and_nan_is_outside():
    values = [0.0, 1.0, 0.5, math.nan, -1e-12, 1 + 1e-12, math.inf]
    (row,) = js.check(runs(values), [claim()]).rows
    assert (row.inside, row.seeds) == (3, 7)
    assert row.share == pytest.approx(clopper_pearson(3, 7))
    (row,) = js.check(runs([math.nan] * 8), [claim()]).rows
    assert (row.inside, row.verdict) == (0, "FAILS")
    assert math.isnan(row.parts[0].median)
    (row,) = js.check(runs(values), [claim(interval=(-math.inf, math.inf))]).rows
    assert row.inside == 6


def test_a_seed_is_inside_if_all_judged_parts_are():
    def doubled(ds):
        return 2 * measure(ds)

    parts = (
        js.Part("number", measure, (0.0, 1.0)),
        js.Part("doubled", doubled, (0.5, 3.0)),
        js.Part("unjudged", lambda ds: measure(ds) + 100, None),
    )
    asked = js.Claim(id="X", statement="", source="ours", family="sign_gd", steps=(0,), parts=parts)
    (row,) = js.check(runs([0.1, 0.3, 0.9, 1.1, 2.0]), [asked]).rows
    assert row.inside == 2
    assert [part.median for part in row.parts] == pytest.approx([0.9, 1.8, 100.9])


def test_medians_and_bands_are_quantiles_over_the_seeds():
    values = np.random.default_rng(0).standard_normal(64)
    (row,) = js.check(runs(values), [claim(predict=lambda ds: 0.25)]).rows
    ordered = np.sort(values)
    part = row.parts[0]
    assert part.median == pytest.approx((ordered[31] + ordered[32]) / 2)
    assert part.low == pytest.approx(ordered[3] + 0.15 * (ordered[4] - ordered[3]))  # .05 * 63 = 3.15
    assert part.high == pytest.approx(ordered[59] + 0.85 * (ordered[60] - ordered[59]))
    assert part.predicted == 0.25


@pytest.fixture
def table():
    """Four rows in two settings: labels with every character that some format treats as its own."""
    hard = claim(
        "X1",
        labels=("100 % of a_b & {c}^2 <d> e", "second part"),
        predict=lambda ds: 0.5,
        explanations={"disjoint": "-"},
    )
    open_end = claim("X2", interval=(0.7, math.inf), explanations={"disjoint": "It is not meant to."})
    datasets = [runs([0.5] * 64), runs([0.5, 1e-5] * 32, preset="disjoint")]
    return js.check(datasets, [hard, open_end, claim("X3", steps=(5,))])


def test_rows_are_claims_with_their_settings_below_each_other(table):
    assert [(row.claim.id, row.setting, row.verdict) for row in table.rows] == [
        ("X1", "paper_like", "HOLDS"), ("X1", "disjoint", "HOLDS"),
        ("X2", "paper_like", "FAILS"), ("X2", "disjoint", "FAILS"),
    ]  # fmt: skip
    assert table.missing == (
        ("X3", "paper_like", "step 5 is not recorded"),
        ("X3", "disjoint", "step 5 is not recorded"),
    )
    assert [row.explanation for row in table.rows] == ["", "", "", "It is not meant to."]
    lines = table.lines()
    assert len(lines) == 6
    assert lines[0] == (
        "X1", "paper_like", "100 % of a_b & {c}^2 <d> e", "0.500", "0.500 [0.500, 0.500]", "[0, 1]",
        "64/64 seeds [0.94, 1.00]", "HOLDS",
    )  # fmt: skip
    assert (lines[1][:3], lines[1][-2:]) == (("", "", "second part"), ("", ""))
    assert lines[5][3:6] == ("", "0.250 [1.0e-05, 0.500]", ">= 0.7")


def test_plain_text_shows_everything(table):
    text = str(table)
    assert text == repr(table)
    lines = text.splitlines()
    assert set(lines[1]) == {"-"}
    assert len(lines) == 2 + 6 + 1 + 2
    columns = [lines[0].index(name) for name in HEADER]
    for line, cells in zip(lines[2:], table.lines()):
        assert all(line[column:].startswith(cell) for column, cell in zip(columns, cells))
    assert "note on the full experiment: X2 disjoint: It is not meant to." in lines
    assert "not decided here: X3 disjoint: step 5 is not recorded" in lines


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (above(0.0), "> 0"), (above(0.5), "> 0.5"), ((0.5, math.inf), ">= 0.5"), ((-math.inf, 0.1), "<= 0.1"),
        ((-math.inf, math.nextafter(0.0, -1.0)), "< 0"), ((-math.inf, math.nextafter(0.3, -1.0)), "< 0.3"),
        ((above(0.0)[0], 2.0), "(0, 2]"), ((0.1, 0.3), "[0.1, 0.3]"), ((0.0, math.inf), ">= 0"),
        ((-0.05, 0.0), "[-0.05, 0]"),
    ],
)  # fmt: skip
def test_open_ends_of_intervals_are_shown_as_such(interval, text):
    (line,) = js.check([runs([0.7] * 40)], [claim("X1", interval=interval)]).lines()
    assert line[5] == text


def test_a_claim_about_another_setting_says_which(table):
    (reason,) = js.check([runs([0.5] * 4)], ["E1"]).reasons()
    other = "paper_like, disjoint supports over kernel, d, mu"
    assert reason == f"E1 everywhere: it is about {other!r}, these results are of 'paper_like'"


def test_markdown_comes_back(table):
    head, rule, *body = table.to_markdown().splitlines()
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in (head, *body)]
    assert cells == [HEADER, *table.lines()]
    assert rule.strip("|").split("|") == [" --- "] * len(HEADER)


def test_latex_comes_back(table):
    begin, top, head, mid, *body, bottom, end = table.to_latex().splitlines()
    assert begin == r"\begin{tabular}{" + "l" * len(HEADER) + "}"
    assert (top, mid, bottom, end) == (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")
    plain = {r"\%": "%", r"\_": "_", r"\{": "{", r"\}": "}", r"\^{}": "^", "$<$": "<", "$>$": ">", r"\&": "\0"}
    for line, cells in zip((head, *body), (HEADER, *table.lines())):
        assert line.endswith(r" \\")
        text = line.removesuffix(r" \\")
        for escaped, char in plain.items():
            text = text.replace(escaped, char)
        assert [cell.strip().replace("\0", "&") for cell in text.split("&")] == list(cells)


def test_html_comes_back(table):
    class Reader(html.parser.HTMLParser):
        rows, cell = [], None

        def handle_starttag(self, tag, attrs):
            if tag == "tr":
                self.rows.append([])
            elif tag in ("td", "th"):
                self.cell = ""

        def handle_data(self, data):
            self.cell += data

        def handle_endtag(self, tag):
            if tag in ("td", "th"):
                self.rows[-1].append(self.cell)

    reader = Reader()
    reader.feed(table._repr_html_())
    assert [tuple(row) for row in reader.rows] == [HEADER, *table.lines()]


def test_frames_and_csv_hold_numbers(table, tmp_path):
    frame = table.to_dataframe()
    assert len(frame) == 6
    assert frame["median"].tolist() == pytest.approx([0.5, 0.5, 0.250005, 0.250005, 0.5, 0.250005])
    assert frame["verdict"].tolist() == ["HOLDS"] * 4 + ["FAILS"] * 2
    assert frame["interval_low"].tolist() == [0.0] * 4 + [0.7] * 2
    assert frame["inside"].tolist() == [64] * 4 + [0] * 2
    table.to_csv(tmp_path / "claims.csv")
    with open(tmp_path / "claims.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [list(frame.columns)] * 6
    for row, record in zip(rows, table.records()):
        for name, value in record.items():
            if isinstance(value, float):
                assert float(row[name]) == pytest.approx(value, rel=1e-5)
            else:
                assert row[name] == ("" if value is None else str(value))


def test_changes_are_pointed_out_and_nothing_else_is(table, tmp_path):
    before = tmp_path / "claims.csv"
    table.to_csv(before)
    assert table.changes(before) == []
    now = js.check([runs([2.0] * 64), runs([0.5] * 64, preset="disjoint")], [claim("X1"), claim("X4")])
    assert now.changes(before) == [
        "X1 paper_like: HOLDS -> FAILS", "X4 paper_like: new, FAILS", "X4 disjoint: new, HOLDS",
    ]  # fmt: skip
    before.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns claim, setting, verdict") as caught:
        now.changes(before)
    assert str(before) in str(caught.value)
    before.unlink()  # changed above: no table any more
    js.check([], ["S1"]).to_csv(before)
    assert js.check([], ["S1"]).changes(before) == []


def test_the_first_dataset_of_a_setting_that_can_answer_does():
    silent, full = runs([2.0] * 64).drop_vars("number"), runs([0.5] * 64)

    def needed(ds):
        need(ds, "number")
        return measure(ds)

    asked = claim("X", measure=needed)
    table = js.check([silent, full], [asked])
    assert [row.verdict for row in table.rows] == ["HOLDS"]
    assert table.missing == ()
    ((_, _, reason),) = js.check([silent, silent], [asked]).missing
    assert reason == "ds must hold the observables ['number'], got a Dataset without ['number']"  # said once


def test_of_several_datasets_of_a_setting_the_one_with_the_most_seeds_answers():
    asked = claim("X")
    few, many = runs([2.0] * 12), runs([0.5] * 64)
    assert [(row.seeds, row.verdict) for row in js.check([few, many], [asked]).rows] == [(64, "HOLDS")]


def test_a_variation_of_a_preset_answers_what_it_can():
    varied = runs([0.5] * 64, n=21)
    table = js.check([varied], [claim("X1"), claim("X2", steps=(7,))])
    assert [(row.claim.id, row.setting) for row in table.rows] == [("X1", "paper_like, n=21")]
    assert table.missing == ()


def test_where_nothing_is_decided_every_reason_is_there():
    asked = [claim("X1", steps=(7,)), claim("X2", steps=(7,)), claim("X3", steps=(9,))]
    table = js.check([runs([0.5] * 8, n=21)], asked)
    assert table.rows == ()
    assert table.reasons() == [
        "X1, X2 paper_like, n=21: step 7 is not recorded", "X3 paper_like, n=21: step 9 is not recorded",
    ]  # fmt: skip


def test_bad_requests_are_refused_by_name():
    ds = runs([0.5] * 8)
    with pytest.raises(ValueError, match=r"unknown claim 'c2e'; did you mean 'C2e'\?.*'S1'"):
        js.check(ds, ["c2e"])
    with pytest.raises(ValueError, match=r"claims must name at least one of .*'S1'.*got \[\]"):
        js.check(ds, [])
    with pytest.raises(ValueError, match="got no manifest"):
        js.check(ds.drop_attrs(), ["S1"])
    assert js.check([], ["S1"]).rows == ()
    assert len(js.check([]).missing) == 0


def test_a_table_that_calls_a_preset_by_its_old_name_is_compared_by_the_new_one(table, tmp_path):
    before = tmp_path / "claims.csv"
    table.to_csv(before)
    before.write_text(before.read_text().replace("disjoint", "theory"))
    assert set(before.read_text().split(",")) >= {"theory"}
    assert table.changes(before) == []


def test_what_is_no_longer_decided_is_a_difference(table, tmp_path):
    before = tmp_path / "claims.csv"
    table.to_csv(before)
    now = js.check([runs([0.5] * 64)], [claim("X1"), claim("X2", steps=(7,))])
    assert now.changes(before) == [
        "X1 disjoint: HOLDS -> not decided", "X2 paper_like: FAILS -> not decided", "X2 disjoint: FAILS -> not decided",
    ]  # fmt: skip
    everything = dataclasses.replace(now, asked=None)  # as where no claim is named: those that are gone count
    before.write_text(before.read_text().replace("X2,disjoint", "GONE,disjoint"))
    assert "GONE disjoint: FAILS -> not decided" in everything.changes(before)
    assert not [line for line in now.changes(before) if "GONE" in line]
    js.check([], ["S1"]).to_csv(before)  # no verdict at all
    assert now.changes(before) == ["X1 paper_like: new, HOLDS"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "first line ''"),
        (b"a,b\n1,2\n", "first line 'a,b'"),
        (b"claim;setting;verdict\nX1;here;HOLDS\n", "first line 'claim;setting;verdict'"),
        (
            b"claim,setting,verdict\nX1,here,holds\n",
            "line 2 .* one of the verdicts HOLDS, FAILS, UNDECIDED, got 'holds'",
        ),
        (b"claim,setting,verdict\nX1,here\n", "got None"),
        (b"claim,setting,verdict\n,here,HOLDS\n", "line 2 .* must name a claim and a setting"),
        (
            b"claim,setting,verdict\nX1,here,HOLDS\nX1,here,FAILS\n",
            "line 3 .* gives X1 here the verdict FAILS, an earlier",
        ),
        (b"\x00\xff\x13binary", "no such text"),
        ("claim,setting,verdict\nX1,here,HOLDS\n".encode("utf-16"), "no such text"),
        (b'claim,setting,verdict\n"X1,here,HOLDS\n', "no such text"),
    ],
)
def test_a_reference_that_is_no_claims_table_is_refused(content, words, table, tmp_path):
    file = tmp_path / "reference.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        table.changes(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reference_may_come_from_another_program(table, tmp_path):
    file = tmp_path / "claims.csv"
    table.to_csv(file)
    rows = file.read_bytes()
    for changed in (
        b"\xef\xbb\xbf" + rows,
        rows.replace(b"\r\n", b"\n"),
        rows + rows.split(b"\r\n")[1],
        rows + b"\r\n\r\n",
    ):
        file.write_bytes(changed)
        assert table.changes(file) == []
    names = ("claim", "setting", "verdict")
    few = [",".join(names), *(",".join(str(record[name]) for name in names) for record in table.records())]
    file.write_text("\n".join(few))
    assert table.changes(file) == []


def test_a_table_is_known_again_and_replaced_in_one_move(table, tmp_path):
    mine = tmp_path / "claims.csv"
    for _ in range(2):
        table.to_csv(mine)
    content = mine.read_bytes()
    mine.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\r\n", b"\n"))  # saved by a spreadsheet: still a table
    assert tables.check_file(mine) == mine.resolve()
    (tmp_path / "link.csv").symlink_to(mine)
    table.to_csv(tmp_path / "link.csv")
    assert mine.read_bytes() == content
    assert (tmp_path / "link.csv").is_symlink()
    (tmp_path / "old.csv").write_text("claim,setting,verdict\n")
    assert tables.check_file(tmp_path / "old.csv") == (tmp_path / "old.csv").resolve()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    foreign = {
        "notes.txt": b"mine\n", "empty": b"", "data.csv": b"claim,setting,price\n1,2,3\n", "binary": b"\x00\xff" * 5000,
        "more.csv": b"claim,setting,verdict,mine\n", "claim": b"claim",
    }  # fmt: skip
    for name, text in foreign.items():
        (tmp_path / name).write_bytes(text)
    for name in (*foreign, "pipe", "circle", ".", "nowhere/x.csv", "notes.txt/x.csv", "x" * 300):
        with pytest.raises(ValueError, match=r"claims table|cannot be written") as caught:
            tables.check_file(tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=r"claims table|cannot be written"):
            table.to_csv(tmp_path / name)
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_leaves_the_earlier_table(table, tmp_path, monkeypatch):
    table.to_csv(tmp_path / "claims.csv")
    before = (tmp_path / "claims.csv").read_bytes()

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        js.check([], ["S1"]).to_csv(tmp_path / "claims.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["claims.csv"]
    assert (tmp_path / "claims.csv").read_bytes() == before


def test_columns_are_those_of_the_records(table):
    assert all(tuple(record) == tables.COLUMNS for record in table.records())


def test_labels_with_latex_specials_are_escaped():
    text = js.check(runs([0.5] * 64), [claim(labels=(r"a # b $ c \ d",))]).to_latex()
    assert r"\#" in text
    assert r"\$" in text
    assert r"\textbackslash" in text


def test_chance_is_the_binomial_tail_at_a_share_of_nine_tenths():
    """64 of 64 seeds by chance: .9^64; 63 or more: .9^64 + 64 .1 .9^63."""
    (row,) = js.check(runs([0.5] * 64), [claim()]).rows
    assert row.chance == pytest.approx(0.9**64)
    (row,) = js.check(runs([0.5] * 63 + [2.0]), [claim()]).rows
    assert row.chance == pytest.approx(0.9**64 + 64 * 0.1 * 0.9**63)


def test_chance_of_a_mean_is_that_of_the_nearer_end():
    values = np.random.default_rng(1).normal(0.1, 0.2, 20)
    (row,) = js.check(runs(values), [claim(judge="mean", interval=(0.0, 9.0))]).rows
    assert row.chance == pytest.approx(scipy.stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)


def test_holms_correction_counts_the_rows():
    """Of 64 seeds p = .9^64 = .0012 is beyond chance in a table of 40 rows, .05/40 = .00125, and not in one of 43."""
    claims = [claim(f"X{i}") for i in range(43)]
    small = js.check(runs([0.5] * 64), claims[:40])
    assert small.beyond_chance() == {(f"X{i}", "paper_like") for i in range(40)}
    large = js.check(runs([0.5] * 64), claims)
    assert large.beyond_chance() == set()
    assert large.chances().startswith("43 rows, 43 HOLDS. If no claim quite held, at most 2.5% of the rows, 1.1,")
    assert "X42 paper_like, which need more seeds." in large.chances()
    failing = js.check(runs([0.5] * 64), [*claims[:40], claim("X", interval=(0.7, 1.0))])
    assert len(failing.beyond_chance()) == 40  # .05/41 = .00122 is above .9^64 = .00118, and a row that fails counts
    assert [record["beyond_chance"] for record in failing.records()] == [True] * 40 + [False]
    assert {record["judge"] for record in failing.records()} == {"seeds"}


def test_what_is_undecided_is_never_beyond_chance():
    """Alone in a table, a mean 1.9 standard errors inside has p = .03, below Holm's .05: its interval ends at .025."""
    values = np.linspace(-1, 1, 64)
    values = 1.9 * values.std(ddof=1) / 8 + values  # the mean is 1.9 standard errors above 0
    table = js.check(runs(values), [claim(interval=(0.0, 9.0), judge="mean")])
    (row,) = table.rows
    assert row.chance == pytest.approx(scipy.stats.t.sf(1.9, 63))
    assert 0.025 < row.chance < 0.05
    assert (row.verdict, table.beyond_chance()) == ("UNDECIDED", set())
    assert [record["beyond_chance"] for record in table.records()] == [False]
    assert table.chances() == (
        "1 row, 0 HOLDS. If no claim quite held, at most 2.5% of the rows, 0.0, would read HOLDS by chance. "
        "0 HOLDS are beyond chance over the whole table (Holm, 5 %)."
    )
    assert "1 HOLDS is beyond chance" in js.check(runs([0.5] * 64), [claim()]).chances()


def of_own(name, seeds=64):
    """Runs of a task of one's own."""
    definition = {"system": {"name": f"mine.{name}"}, "problem": {"n": 4}, "hyper": {"slope": 1.0}}
    return runs([0.5] * seeds).assign_attrs(manifest=json.dumps({"definition": definition}))


def test_a_claim_names_the_task_of_ones_own_that_it_is_about():
    table = js.check([of_own("bn"), of_own("line", 40)], [claim(system="bn"), claim("X2", system="line"), claim("X3")])
    found = [(row.claim.id, row.setting, row.seeds, row.verdict) for row in table.rows]
    bn, line = ("bn", 64, "HOLDS"), ("line", 40, "HOLDS")
    assert found == [("X1", *bn), ("X2", *line), ("X3", *bn), ("X3", *line)]  # X3 names none: each task decides it
    assert table.missing == ()
    table = js.check([of_own("bn"), runs([0.5] * 64)], [claim(system="bn")])
    assert [(row.claim.id, row.setting) for row in table.rows] == [("X1", "bn")]


def test_claims_of_jaxsign_are_not_listed_for_a_task_of_ones_own_beside_other_results():
    alone = js.check(of_own("bn"))
    assert {setting for _, setting, _ in alone.missing} == {"bn"}
    both = js.check([of_own("bn"), runs([0.5] * 64)], [claim(), "S1", "G1"])
    assert [(row.claim.id, row.setting) for row in both.rows] == [("X1", "bn"), ("X1", "paper_like")]
    assert {setting for _, setting, _ in both.missing} == {"paper_like"}


def test_one_claim_and_the_tree_of_a_folder_are_taken_and_ids_are_different():
    ds = of_own("bn")
    tree = xr.DataTree.from_dict({"/a/one": ds, "/b": of_own("line", 40)})
    (row,) = js.check(ds, claim()).rows
    assert row.verdict == "HOLDS"
    assert [(row.setting, row.seeds) for row in js.check(tree, claim()).rows] == [("bn", 64), ("line", 40)]
    with pytest.raises(ValueError, match="claims must have different ids, got two of 'X1'"):
        js.check(ds, [claim(), claim("X2"), claim()])
    for interval in ((5.0, 1.0), (0.0, math.nan), (1.0,)):
        with pytest.raises(ValueError, match=r"interval of 'x' must be \(low, high\) with low <= high"):
            js.Part("x", lambda ds: ds["x"], interval)


@pytest.mark.parametrize("judge", ["seeds", "mean"])
def test_runs_that_are_not_run_yet_are_no_numbers_outside(judge):
    ds = of_own("bn").assign(status=lambda ds: ds["status"].where(ds["seed"] > 3, -1))
    ds = ds.assign({name: v.where(ds["status"] == 0) for name, v in ds.data_vars.items() if name != "status"})
    (row,) = js.check(ds, [claim(judge=judge)]).rows  # decided from the seeds that are there
    assert (row.verdict, row.inside, row.seeds) == ("HOLDS", 60, 60)
    table = js.check(ds.isel(seed=slice(0, 4)), [claim(judge=judge)])
    assert (table.rows, table.missing) == ((), (("X1", "bn", "4 of 4 runs are not run yet, some of every seed"),))


def test_a_claim_about_none_of_the_results_says_what_to_write():
    words = "system must name what made these results: write system='bn' or 'two_layer', got "
    table = js.check(
        [of_own("bn"), runs([0.5] * 64)], [claim(), claim("X2", system="bm"), claim("X3", system="noisy_text")]
    )
    assert [row.claim.id for row in table.rows] == ["X1", "X1"]
    assert table.missing == (("X2", "everywhere", f"{words}'bm'"), ("X3", "everywhere", f"{words}'noisy_text'"))
    table = js.check(of_own("bn"), [claim(system="bn", settings=("paper_like",))])
    assert table.reasons() == [
        "X1 everywhere: settings must hold one of those of these results, 'bn', got ('paper_like',)"
    ]
    assert js.check(of_own("bn"), ["D1"]).missing == js.check([], [claim(system="bn")]).missing == ()


def test_a_task_in_the_place_of_a_function_has_its_own_name():
    task = js.Task(
        sample=lambda key, hyper, shared: jax.random.normal(key, (4,)), init=lambda key, data, hyper: jnp.zeros(()),
        loss=lambda params, data, hyper: jnp.mean((params - data) ** 2),
        observe=lambda params, data, test, hyper: {"train_loss": jnp.mean((params - data) ** 2)}, name="bn",
    )  # fmt: skip
    last = js.Part("loss", lambda ds: ds["train_loss"].isel(step=-1, optimizer=0), (0.0, 99.0))
    mine = [
        js.Claim(id=name, statement="", source="ours", parts=(last,), system=name) for name in ("bn", "maker", "two")
    ]

    def maker(problem):
        return task

    for system, name in ((task, "bn"), (maker, "maker"), (dataclasses.replace(task, name="noisy_text"), "two_layer")):
        sweep = js.Sweep(
            system=system, problem=None, hyper=None, optimizers={"gd": optax.sgd(0.1)}, axes={"seed": 2},
            steps=2, record=2,
        )  # fmt: skip
        table = js.check(js.run_sweep(sweep), mine)
        assert [row.claim.id for row in table.rows] == [name for one in mine if one.id == name]
        assert {reason.split("write ")[1].split(",")[0] for _, _, reason in table.missing} == {f"system={name!r}"}


def test_several_points_of_an_axis_are_refused_with_the_cure_that_works():
    ds = xr.concat([runs([0.5] * 64), runs([2.0] * 64)], "snr").assign_coords(snr=[0.1, 1.0])
    several = dataclasses.replace(claim(), runs=js.Claim.runs)
    words = js.check(ds, [several]).missing[0][2]
    assert words == (
        "needs one point of every axis, got several on ['snr']: choose one with ds.sel(snr=...), in a claim of your "
        "own with runs=lambda ds: ds.sel(snr=...)"
    )
    for snr, word in ((0.1, "HOLDS"), (1.0, "FAILS")):
        chosen = dataclasses.replace(several, runs=lambda ds, snr=snr: ds.sel(snr=snr))
        assert [row.verdict for row in js.check(ds, [chosen]).rows] == [word]

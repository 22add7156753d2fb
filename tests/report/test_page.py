"""The report: what is drawn of a Dataset, what the page says, that it needs nothing else, how a browser shows it."""

import base64
import csv
import dataclasses
import functools
import html
import json
import os
import re
import shutil
import time
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign import plot
from jaxsign.cli import command as cli
from jaxsign.report.drawings import drawings

TRACES = [
    "train_loss", "test_loss", "test_error", "value_signal", "value_noise", "query_noise", "key_noise", "query_signal",
    "s11", "s21", "sign_agreement",
]  # fmt: skip
NASTY = '<script>alert("x")</script>'


@dataclasses.dataclass(frozen=True)
class Line:
    n: int = 4


@functools.cache
def line(problem):
    """Least squares on a line: a system that is none of ours."""

    def residual(params, data, hyper):
        return params["w"] * data - hyper["slope"] * data

    def observe(params, data, test, hyper):
        gap = residual(params, data, hyper)
        return {"train_loss": jnp.mean(gap**2), "gap": gap, "mean gap": jnp.mean(gap)}

    return js.Task(
        sample=lambda key, hyper, shared: 1 + jnp.arange(1.0 * problem.n),
        init=lambda key, data, hyper: {"w": jnp.zeros(())},
        loss=lambda params, data, hyper: jnp.mean(residual(params, data, hyper) ** 2),
        observe=observe, dims={"gap": ("sample",)}, name="line",
    )  # fmt: skip


def of_line(seeds=3):
    return js.Sweep(
        system=line, problem=Line(), hyper={"slope": 1.0}, steps=6, record=2,
        optimizers={"gd": js.grid(optax.sgd, learning_rate=[0.01, 1e30]), NASTY: optax.sgd(0.03)},
        axes={"slope": [1.0, 2.0], "seed": seeds}, observables=["train_loss", "gap", "mean gap"],
    )  # fmt: skip


def made_up(values, steps, **coords):
    """A Dataset of the paper's system from {name: (own dims, array (optimizer, seed, step, own))}."""
    problem, hyper = js.presets.paper_like()
    definition = {
        "problem": dataclasses.asdict(problem), "hyper": dataclasses.asdict(hyper), "system": {"name": "js.two_layer"},
    }  # fmt: skip
    dims = ("optimizer", "seed", "step")
    shape = values["train_loss"][1].shape[:2]
    return xr.Dataset(
        {name: ((*dims, *own), array) for name, (own, array) in values.items()}
        | {"status": (dims[:2], np.zeros(shape, np.int8))},
        {"seed": np.arange(shape[1]), "step": steps, **coords}, {"manifest": json.dumps({"definition": definition})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def stages():
    """SignGD and GD, each with the traces that stages are read off."""
    rng, steps = np.random.default_rng(0), np.arange(0, 401, 10)
    t, runs = steps / 100, np.ones((2, 3, 1))
    row = rng.choice([-1.0, 1.0], (2, 3, 1, 4))
    sample = rng.choice([-1.0, 1.0], (2, 3, 1, 4, 5))
    values = {
        "train_loss": ((), np.exp(-t) * runs), "test_loss": ((), (1 + t) * runs),
        "test_error": ((), 0.4 / (1 + t) * runs), "sign_agreement": ((), np.minimum(0.5 + t, 1) * runs),
        "value_noise": (("sample",), (t - 0.05)[:, None] * np.ones((2, 3, 1, 5))),
        "query_noise": (("row", "sample"), sample * t[:, None, None] + 2 * row[..., None] * (t > 3)[:, None, None]),
        "query_signal": (("row",), row * t[:, None]),
        "s21": (("head", "sample"), 0.5 * np.exp(-2 * t)[:, None, None] * np.ones((2, 3, 1, 1, 5))),
    }  # fmt: skip
    families = ("optimizer", ["sign_gd", "gd"])
    ds = made_up(values, steps, optimizer=families[1], family=families, learning_rate=("optimizer", [1e-4, 0.3]))
    return with_levels(ds, (0.5, 0.1))


@pytest.fixture(scope="module")
def snr():
    """Two learning rates of SignGD, the larger one faster, and GD along an axis of SNR."""
    steps, values = np.arange(0, 101, 10), np.array([0.05, 0.1])
    loss = np.exp(-0.05 * np.array([1, 2, 3])[:, None, None] * steps) * np.ones((3, 4, 1))
    error = np.array([0.4, 0.41, 0.1])[:, None, None] * np.ones_like(loss)
    ds = made_up(
        {"train_loss": ((), loss), "test_loss": ((), 2 * error), "test_error": ((), error)}, steps,
        optimizer=["a", "b", "c"], family=("optimizer", ["sign_gd", "sign_gd", "gd"]),
        learning_rate=("optimizer", [1e-4, 1e-3, 0.3]),
    )  # fmt: skip
    ds = with_levels(ds, (0.5, 0.1)).expand_dims(snr=values).copy()
    return ds.assign_coords(sigma_p=("snr", 1 / (values * np.sqrt(40.0))))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with two results directories of a system that is none of ours, along an axis."""
    folder = tmp_path_factory.mktemp("results")
    js.run_sweep(of_line(), folder / "line")
    shutil.copytree(folder / "line", folder / "again")
    return folder


@pytest.fixture(scope="module")
def datasets(results, stages):
    return {"stages": stages, "line": js.open_results(results / "line")}


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """A folder with one figure as `plot.save` writes it, and one that is a picture only."""
    from matplotlib.figure import Figure

    folder = tmp_path_factory.mktemp("figures")
    fig = Figure()
    fig.subplots().plot([0, 1], [2, 3])
    plot.save(fig, folder, "drawn")
    fig.savefig(folder / "pixels.png")
    return folder


@pytest.fixture(scope="module")
def page(datasets, figures):
    return js.report.render(datasets, figures)


@pytest.fixture
def quick(monkeypatch):
    """Everything is drawn but nothing rendered."""
    monkeypatch.setattr(plot, "svg", lambda fig: "<svg/>")


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed where it must be; what it refers to is kept."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.fetched, self.text = [], [], [], [], []
        self.styles = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href"):
                (self.references if value.startswith("#") else self.fetched).append(value.removeprefix("#"))
            elif "url(" in (value or ""):
                assert re.fullmatch(r"(url\(#[^)]*\)[^(]*)", value), value
                self.references += re.findall(r"url\(#([^)]*)\)", value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] in ("style", "script") else self.text).append(data)


def titles(found):
    """{group: titles} of drawings."""
    return {group: [d.title for d in found if d.group == group] for group in dict.fromkeys(d.group for d in found)}


def test_everything_that_can_be_drawn_of_the_papers_system_is_drawn(stages, quick):
    found = titles(drawings(stages, "a"))
    assert list(found) == ["Losses", "Other scalars", "Stages of SignGD", "Stages of GD"]
    assert found["Losses"] == ["training loss", "test loss", "test error against training loss"]
    assert found["Other scalars"] == ["sign agreement", "test error"]
    assert found["Stages of SignGD"] == ["stage boundaries", "value noise", "query noise", "query signal", "s21"]
    assert found["Stages of GD"] == found["Stages of SignGD"]


def test_a_sweep_over_snr_is_drawn_at_its_points_and_along_the_axis(snr, quick):
    found = titles(drawings(snr, "a"))
    assert found["Losses"][:2] == ["training loss, snr=0.05, sigma_p=3.16", "test loss, snr=0.05, sigma_p=3.16"]
    assert len(found["Losses"]) == 2 * 3
    assert found["Against snr"] == [
        "test error at training loss 0.1", "test loss at training loss 0.1", "training loss at step 100",
    ]  # fmt: skip
    # Of two learning rates of a family the one with the lower loss; the middle point stands for the axis.
    (scalar,) = [drawing for drawing in drawings(snr, "a") if drawing.group == "Other scalars"]
    assert (scalar.title, scalar.caption) == (
        "test error, snr=0.05, sigma_p=3.16", "b (the lowest last training loss of 2), c; median and 5-95 % of 4 seeds",
    )  # fmt: skip


def test_six_of_many_points_are_drawn(snr, quick):
    many = snr.isel(snr=np.zeros(50, int)).assign_coords(snr=np.geomspace(0.01, 1, 50))
    found = [title for title in titles(drawings(many, "a"))["Losses"] if title.startswith("training loss")]
    assert len(found) == 6
    assert "snr=0.01," in found[0]
    assert "snr=1," in found[-1]


def test_another_system_has_losses_scalars_and_traces(datasets, quick):
    found = titles(drawings(datasets["line"], "a"))
    assert found["Losses"] == ["training loss, slope=1", "training loss, slope=2"]
    assert found["Against slope"] == ["training loss at step 6"]
    assert found["Other scalars"] == ["mean gap, slope=1"]
    assert found["Traces of GD"] == ["gap, slope=1"]


@pytest.mark.parametrize("status", [-1, 1])
def test_nothing_is_drawn_of_runs_that_have_not_finished(datasets, status):
    ds = datasets["line"].assign(status=xr.full_like(datasets["line"]["status"], status))
    assert drawings(ds, "a") == []
    page = js.report.render({"none": ds})
    assert "No figure: no run has finished." in page


def test_many_dots_become_pixels(stages):
    many = stages.isel(optimizer=[0], seed=np.zeros(1200, int)).assign_coords(seed=np.arange(1200))
    drawn = drawings(many[["value_noise", "sign_agreement", "query_signal", "s21", "query_noise", "status"]], "a")
    (boundaries,) = (drawing.svg for drawing in drawn if drawing.title == "stage boundaries")
    assert "data:image/png" in boundaries
    assert max(len(drawing.svg) for drawing in drawn) < 60_000


def test_the_page_says_every_claim_its_numbers_and_its_verdict(page, datasets):
    table, text = js.check(list(datasets.values())), html.unescape(" ".join(Page(page).text))
    assert table.rows
    for row in table.rows:
        assert row.claim.statement in text
        assert row.explanation in text
    for cell in {cell for line in table.lines() for cell in line}:
        assert cell in text
    for reason in table.reasons():
        assert reason in text
    for word in ("HOLDS", "FAILS", "UNDECIDED"):
        assert page.count(f'<span class="verdict {word.lower()}">{word}</span>') == 1 + sum(
            row.verdict == word for row in table.rows
        )


def test_the_page_says_how_every_directory_was_made(page, datasets):
    text = " ".join(" ".join(Page(page).text).split())
    made = json.loads(datasets["line"].attrs["manifest"])
    command = " ".join(made["sessions"][0]["command"].split())
    for word in (*datasets, made["hash"], f"jax {made['versions']['jax']}", command):
        assert word in text
    for key, value in made.items():
        assert f"{key} {' '.join(json.dumps(value).split())}" in text
    assert "12 finished, 6 diverged, 0 not run; 18 in all" in text
    assert re.search(r"2 results directories, 24 runs, of \d{4}-\d\d-\d\d\.", text)
    assert "The command is not recorded in this manifest." in text  # of runs that were made up


def test_the_page_needs_nothing_but_itself(page, datasets):
    read = Page(page)
    assert len(read.ids) == len(set(read.ids)) > 20
    assert set(read.references) <= set(read.ids)
    assert all(source.startswith(("data:image/", "data:text/csv;base64,", "data:,")) for source in read.fetched)
    for style in read.styles:
        assert "url(" not in style
        assert "@import" not in style
        assert "fetch(" not in style
    assert page.count("<svg") == 15 + 6
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("default-src 'none'") == 1


def test_names_are_text_and_not_markup(datasets, quick):
    page = js.report.render({f"a & {NASTY}": datasets["line"]})
    assert page.count("<script>") == 1  # the page's own
    assert NASTY in html.unescape("".join(Page(page).text))


def test_the_same_results_make_the_same_bytes(page, datasets):
    again = js.report.render({"stages": datasets["stages"]})
    begin, end = ('<section class="directory" id="run-1">', "</section>")
    assert again.split(begin)[1].split(end)[0] == page.split(begin)[1].split(end)[0]


def test_finished_figures_are_shown_with_their_numbers(page, figures):
    read = Page(page)
    data = {source.split(";")[0]: base64.b64decode(source.split(",")[1]) for source in read.fetched if "64," in source}
    assert data["data:image/svg+xml"] == (figures / "drawn.svg").read_bytes()
    assert data["data:image/png"] == (figures / "pixels.png").read_bytes()
    assert data["data:text/csv"] == (figures / "drawn.csv").read_bytes()
    assert next(csv.reader(data["data:text/csv"].decode().splitlines())) == ["panel", "line", "x", "y", "q05", "q95"]


def run(arguments, capsys):
    status = cli.main(["report", *map(str, arguments)])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_the_command_writes_one_page_about_all_below(results, figures, tmp_path, capsys):
    out = tmp_path / "report.html"
    status, said, error = run([results, results / "line", "--out", out, "--figures", figures], capsys)
    assert (status, error) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(out))}: [\d.]+ kB, 2 sweeps\n", said)
    assert f"<h3>{results.name}/line</h3>" in out.read_text()
    ids = Page(out.read_text()).ids
    assert [name for name in ids if name.startswith("run-") and name.count("-") == 1] == ["run-1", "run-2"]
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_unfinished_directory_is_reported_as_such(quick, tmp_path, capsys):
    js.run_sweep(of_line(seeds=4), tmp_path / "part", shard=(0, 2), memory=100)
    capsys.readouterr()
    status, _, error = run([tmp_path / "part", "--out", tmp_path / "report.html"], capsys)
    assert (status, error) == (0, "")
    text = " ".join(" ".join(Page((tmp_path / "report.html").read_text()).text).split())
    assert re.search(r"Not complete: .*part lacks \d+ of 24 runs\. What is there is shown\.", text)


def test_a_page_is_written_again_until_its_sweep_is_finished(quick, tmp_path, capsys, monkeypatch):
    """The half of a sweep is there at first; while the command waits the rest is run."""
    out, file = tmp_path / "part", tmp_path / "report.html"
    pages, waited = [], []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 1:  # a sweep that compiles has no directory yet
            assert not file.exists()
            js.run_sweep(of_line(seeds=4), out, shard=(0, 2), memory=100)
        else:
            pages.append(file.read_text())
            js.run_sweep(of_line(seeds=4), out)

    monkeypatch.setattr(time, "sleep", sleep)
    status, _, said = run([out, "--out", file, "--watch", "30"], capsys)
    assert (status, waited) == (0, [30, 30])
    assert said.startswith("waiting: DIR must hold finished results or those of a sweep under way")
    text = " ".join(" ".join(Page(pages[0]).text).split())
    assert re.search(r"Not finished, and nothing is running, as of .* read again every 30 s", text)
    assert re.search(r"runs 24: \d+ finished, \d+ diverged, \d+ not run", text)
    assert '<meta http-equiv="refresh" content="30">' in pages[0]
    assert re.search(r"median and 5-95 % of [1-3]( to [1-4])? of 4 seeds", pages[0])
    last = file.read_text()
    assert "refresh" not in last
    assert "as of" not in last
    assert "median and 5-95 % of 4 seeds" in last
    assert "of 4 seeds" not in last.replace("% of 4 seeds", "")


def test_a_page_about_nothing_yet_says_what_it_waits_for(tmp_path):
    live = js.report.Live(15, [("results/mine", [("runs", "nothing is stored yet")])], "2026-01-31 12:00:00 UTC")
    text = " ".join(" ".join(Page(js.report.render({}, live=live)).text).split())
    assert "results/mine runs nothing is stored yet" in text
    assert "Not finished, and nothing is running, as of 2026-01-31 12:00:00 UTC" in text
    running = js.report.Live(15, [("results/mine", [("running", "process 7 on here")])], "2026-01-31 12:00:00 UTC")
    assert "Under way, as of 2026-01-31" in js.report.render({}, live=running)


def test_losses_of_one_point_are_shown_at_a_time(snr, quick):
    """Marked for the page's selector: as many figures at every point, and none of the other groups."""
    found = drawings(snr, "a")
    choices = [drawing.choice for drawing in found if drawing.group == "Losses"]
    assert choices == ["snr=0.05, sigma_p=3.16"] * 3 + [choices[-1]] * 3
    assert not any(drawing.choice for drawing in found if drawing.group != "Losses")
    page = js.report.render({"snr": snr})
    assert page.count(f'data-choice="{choices[0]}"') == 3


def test_claims_of_other_systems_are_not_listed_for_a_task_of_ones_own(datasets):
    page = " ".join(Page(js.report.render({"line": datasets["line"]})).text)
    assert "No claim can be decided" in page
    assert not re.search(r"\bS1\b|\bG1\b|Not decided here", page)


BAD = {
    "no directory": (["nowhere"], "report.html", 2, "DIR must hold finished results"),
    "nothing in it": (["empty"], "report.html", 2, "DIR must hold finished results"),
    "one of two": (["good", "empty"], "report.html", 2, "DIR must hold finished results"),
    "no folder": (["good"], "nowhere/report.html", 2, "in a folder that exists"),
    "a directory": (["good"], "empty", 2, "must be a file, got the directory"),
    "somebody's file": (["good"], "notes.txt", 2, "not a page that jaxsign report has made"),
    "damaged": (["damaged"], "report.html", 3, "jaxsign verify lists all damage"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, results, tmp_path, capsys):
    directories, out, status, words = BAD[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    shutil.copytree(results / "line", tmp_path / "good")
    shutil.copytree(results / "line", tmp_path / "damaged")
    chunk = next(f for f in (tmp_path / "damaged" / "results.zarr" / "gap" / "c").rglob("*") if f.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    before = sorted(os.listdir(tmp_path))
    found, said, error = run([*(tmp_path / d for d in directories), "--out", tmp_path / out], capsys)
    assert (found, said) == (status, "")
    assert error.count("\n") == 1
    assert words in error
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (None, b"", "figures must be a folder that exists"), ("a.txt", b"", "with SVG or PNG files"),
        ("a.png", b"GIF", "not a PNG picture"), ("a.svg", b"<svg", "not an SVG picture"),
        ("b.svg", b"<html/>", "not an SVG picture"), ("c.svg", None, "cannot be read: Is a directory"),
    ],
)  # fmt: skip
def test_a_folder_without_pictures_is_refused(name, content, words, results, tmp_path, capsys):
    folder = tmp_path / "figures"
    if name:
        folder.mkdir()
        (folder / name).write_bytes(content) if content is not None else (folder / name).mkdir()
    status, _, error = run([results / "line", "--out", tmp_path / "report.html", "--figures", folder], capsys)
    assert status == 2
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "report.html").exists()


def test_no_dataset_is_refused():
    with pytest.raises(ValueError, match="at least one Dataset"):
        js.report.render({})


def test_an_earlier_page_is_replaced_and_a_full_disk_leaves_it(datasets, quick, tmp_path, monkeypatch):
    js.report.write(tmp_path / "report.html", {"a": datasets["line"]})
    file = js.report.write(tmp_path / "report.html", {"b": datasets["line"]})
    before = file.read_bytes()
    assert b"<h3>b</h3>" in before

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        js.report.write(file, {"c": datasets["line"]})
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.fixture(scope="module")
def browser():
    """The machine's Chromium, driven by Playwright; nothing is downloaded."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser to look at the report with: none of {', '.join(names)} is installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found)
        yield started
        started.close()


def soon(look, wanted):
    """Waits for what a browser is about to show."""
    end = time.monotonic() + 10
    while not wanted(look()) and time.monotonic() < end:
        time.sleep(0.05)
    assert wanted(look())


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_browser_shows_it(browser, page, tmp_path, width, scheme):
    (tmp_path / "report.html").write_text(page)
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
    shown, said, asked = context.new_page(), [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(f"file://{tmp_path / 'report.html'}")
    shown.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    sizes = shown.evaluate(
        """[...document.querySelectorAll('.drawing > *')].map(e => e.getBoundingClientRect())
        .map(r => [r.width, r.height])"""
    )
    assert len(sizes) == len(re.findall(r"<figure\b", page))
    hidden = shown.locator("figure.other").count()  # of other points of an axis than the chosen one
    sizes = [size for size in sizes if size != [0, 0]]
    assert len(sizes) == len(re.findall(r"<figure\b", page)) - hidden
    assert np.min(sizes) > 100
    texts = shown.evaluate(  # none is drawn outside of its figure
        """[...document.querySelectorAll('.drawing svg text')].filter(t => {
          const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect()
          return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2
        }).map(t => t.textContent)"""
    )
    assert texts == []
    shown.screenshot(path=tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000

    zoom, figure = shown.locator("dialog"), shown.locator(".panels .drawing").first
    for how in ("click", "key"):
        figure.click() if how == "click" else figure.press("Enter")
        assert zoom.is_visible()
        large = zoom.locator("svg").bounding_box()
        assert large["width"] > 0.9 * width
        shown.mouse.move(width / 2, 200)
        shown.mouse.wheel(0, -500)
        shown.keyboard.press("+")
        shown.mouse.down()
        shown.mouse.move(width / 2 + 30, 220)
        shown.mouse.up()
        soon(lambda: zoom.locator("svg").get_attribute("style"), lambda style: "scale(3" in style)
        shown.keyboard.press("0")
        assert zoom.locator("svg").evaluate("e => e.style.transform") == "translate(0px, 0px) scale(1)"
        zoom.get_by_text("Close").click() if how == "click" else shown.keyboard.press("Escape")
        assert not zoom.is_visible()
        assert figure.locator("svg").count() == 1
        assert figure.evaluate("e => e === document.activeElement")
    copy = shown.locator(".copy").first
    copy.click()
    soon(copy.inner_text, lambda text: text in ("Copied", "Selected"))
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [f"file://{tmp_path / 'report.html'}"]
    context.close()


def test_a_reader_chooses_the_point_whose_losses_are_shown(browser, snr, tmp_path):
    (tmp_path / "report.html").write_text(js.report.render({"snr": snr}))
    context = browser.new_context()
    shown = context.new_page()
    shown.goto(f"file://{tmp_path / 'report.html'}")
    visible = (
        "[...document.querySelectorAll('figure[data-choice]')].filter(f => f.offsetHeight).map(f => f.dataset.choice)"
    )
    first, last = shown.locator(".choose option").all_inner_texts()
    assert shown.evaluate(visible) == [first] * 3
    shown.locator(".choose select").select_option(last)
    assert shown.evaluate(visible) == [last] * 3
    shown.reload()  # as a page under way does
    assert shown.evaluate(visible) == [last] * 3
    shown.emulate_media(media="print")
    assert len(shown.evaluate(visible)) == 6
    context.close()


def test_a_browser_without_scripts_shows_the_figures(browser, page, tmp_path):
    (tmp_path / "report.html").write_text(page)
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(f"file://{tmp_path / 'report.html'}")
    assert shown.locator(".drawing svg").first.bounding_box()["height"] > 100
    assert not shown.locator(".copy").first.is_visible()
    context.close()

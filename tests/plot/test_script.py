"""The command line of figures: which inputs `draw` gets, which files are written, and how an error ends."""

import csv

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign import plot


def main_of(draw, reads):
    """A figure whose directories are opened as their names."""
    return plot.figure_script(draw, "A figure.", reads=reads, opens=lambda path: path.name)


def figure(label="loss"):
    with plot.style():
        fig, ax = plt.subplots(figsize=(3, 2))
    (line,) = ax.plot([1, 2], [0.5, 0.25], label=label)
    plot.keep_band(line, [0.4, 0.2], [0.6, 0.3])
    ax.set(xlabel="step t", ylabel="loss")
    ax.set_title("panel", loc="left")
    fig.legend(loc="upper right")
    return fig


def test_a_pattern_is_a_dict_in_the_order_of_names_and_a_path_is_one_input(tmp_path, capsys):
    for name in ("b", "a"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("no directory")
    inputs = []

    def draw(*given):
        inputs.extend(given)
        return figure()

    main = main_of(draw, ("runs/*", "runs/b", "none/*"))
    main(["--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert inputs == [{"a": "a", "b": "b"}, "b", {}]
    assert list(inputs[0]) == ["a", "b"]
    paths = [str(tmp_path / "out" / f"test_script.{suffix}") for suffix in ("png", "pdf", "svg", "csv")]
    assert capsys.readouterr().out.split() == paths


def test_several_figures_are_saved_under_their_names(tmp_path):
    (tmp_path / "runs").mkdir()
    main = main_of(lambda runs: {"one": figure(), "two": figure()}, "runs")
    main(["--results", str(tmp_path), "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["one.csv", "two.csv"]


def test_an_error_of_reading_or_writing_is_one_line_and_exit_1(tmp_path):
    main = main_of(lambda runs: figure(), "runs/*")
    with pytest.raises(SystemExit, match="holds nothing that matches runs/") as stop:
        main(["--results", str(tmp_path), "--out", str(tmp_path)])
    assert "\n" not in str(stop.value)  # a text is printed to stderr, with exit status 1
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SystemExit, match="file"):
        main(["--results", str(tmp_path), "--out", str(tmp_path / "file")])


def test_a_point_that_results_lack_is_one_line_and_exit_1(tmp_path):
    (tmp_path / "runs").mkdir()

    def draw(runs):
        xr.Dataset(coords={"injected": [2, 4]}).sel(injected=0)

    with pytest.raises(
        SystemExit, match=r"lack a point that this figure shows.*'injected'.*in full, neither --tiny"
    ) as stop:
        main_of(draw, "runs")(["--results", str(tmp_path), "--out", str(tmp_path)])
    assert "\n" not in str(stop.value)


def test_the_results_of_an_only_entry_are_found_in_its_experiments_folder(tmp_path):
    (tmp_path / "snr").mkdir()
    (tmp_path / "snr" / "manifest.json").write_text("{}")
    inputs = []
    main = main_of(lambda runs: inputs.append(runs) or figure(), "snr/snr")
    main(["--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert inputs == ["snr"]


def test_a_log_axis_without_a_positive_number_is_drawn(tmp_path):
    (tmp_path / "runs").mkdir()

    def draw(runs):
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.set(xlabel="step", ylabel="loss", ylim=(-0.05, 0.05))
        ax.plot([1.0, 2.0], [np.nan, np.nan], label="loss")
        ax.set_yscale("log")
        return fig

    main_of(draw, "runs")(["--results", str(tmp_path), "--out", str(tmp_path)])


def test_results_that_lack_what_a_figure_shows_are_one_line_and_exit_1(tmp_path):
    (tmp_path / "runs").mkdir()

    def draw(runs):
        raise js.CannotDecide("ds must hold the observables ['test_error']")

    with pytest.raises(SystemExit, match=r"ds must hold the observables \['test_error'\]$"):
        main_of(draw, "runs")(["--results", str(tmp_path), "--out", str(tmp_path)])


def test_an_error_of_drawing_is_no_message(tmp_path):
    (tmp_path / "runs").mkdir()

    def draw(runs):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        main_of(draw, "runs")(["--results", str(tmp_path), "--out", str(tmp_path)])


def test_bands_and_maps_are_in_the_table_lines_first(tmp_path):
    fig = figure()
    plot.keep_map(fig.axes[0], ["a=0", "a=1"], [0, 1], [[1.0, 2.0], [3.0, float("nan")]])
    plot.save(fig, tmp_path, "x")
    with open(tmp_path / "x.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert rows == [
        ["panel", "loss", "1", "0.5", "0.4", "0.6"], ["panel", "loss", "2", "0.25", "0.2", "0.3"],
        ["panel", "a=0", "0", "1", "", ""], ["panel", "a=0", "1", "2", "", ""],
        ["panel", "a=1", "0", "3", "", ""], ["panel", "a=1", "1", "", "", ""],
    ]  # fmt: skip

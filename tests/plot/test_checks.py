"""What keeps a reader from reading a figure is found, each kind on a figure that has nothing else wrong."""

import itertools

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxsign import plot
from jaxsign.plot import colours
from jaxsign.plot.checks import SEED


@pytest.fixture
def figure():
    """A figure of two panels that can be read, and its axes."""
    with plot.style():
        fig, axes = plt.subplots(1, 2, figsize=(plot.WIDE, 2.5), sharey=True)
        for ax in axes:
            ax.plot([0, 1], [0, 1], label="loss", color="#0072B2")
            ax.set(xlabel="step t", title="panel")
        axes[0].set_ylabel("loss")
        plot.key(fig)
        yield fig, axes
    plt.close(fig)


def test_a_figure_that_can_be_read_has_no_faults(figure):
    fig, axes = figure
    plot.level_line(axes[0])
    axes[0].plot([0, 1], [0.2, 0.3], color="#D55E00", gid=SEED)
    axes[1].plot([0, 1], [0.2, 0.3], color="#D55E00")
    axes[1].text(0.5, 0.1, "named in the panel", color="#D55E00")
    assert plot.faults(fig) == []


def _small(fig, axes):
    axes[0].tick_params(labelsize=6)


def _wide(fig, axes):
    fig.set_figwidth(1.2 * plot.WIDE)


def _on_another(fig, axes):
    for words in ("one", "two"):
        axes[0].text(0.8, 0.2, words)


def _outside(fig, axes):
    axes[1].text(0.9, 0.1, "far too long for what is left of the panel").set_in_layout(False)


def _unnamed(fig, axes):
    axes[0].plot([0, 1], [0.3, 0.3], color="#009E73")


def _other_style(fig, axes):
    axes[0].plot([0, 1], [0.3, 0.3], color="#0072B2", ls=":")


def _two_names(fig, axes):
    axes[0].plot([0, 1], [0.9, 1], color="#0072B2", label="error")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.3, 1))


def _twice(fig, axes):
    axes[0].plot([0, 1], [0.9, 1], color="#009E73", label="loss")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.3, 1))


def _law(fig, axes):
    axes[0].plot([0, 1], [0.1, 0.1], color="#D55E00", ls="--", label="law")
    plot.key(fig, loc="outside lower center")


def _no_label(fig, axes):
    axes[0].set_ylabel("")


def _struck(fig, axes):
    axes[0].text(0.4, 0.5, "on the line", va="center")


def _crossing(fig, axes):
    axes[0].legend(loc="center left", bbox_to_anchor=(0.9, 0.3))


FAULTS = {
    _small: "is 6 pt large in print", _wide: "5.8 pt large in print", _on_another: "'one' overlaps 'two'",
    _outside: "leaves the figure", _unnamed: "panel: a line has no name in a legend",
    _other_style: "panel: a line has no name in a legend", _two_names: "one look has 2 names: error, loss",
    _twice: "a legend names 2 lines 'loss'", _law: "a law is dashed in black or grey: law",
    _no_label: "panel: the y axis has no label",
    _struck: "panel: a line goes through 'on the line'", _crossing: "panel: the legend crosses the edge of a panel",
}  # fmt: skip


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_every_kind_of_fault_is_found(figure, spoil):
    spoil(*figure)
    found = plot.faults(figure[0])
    assert any(FAULTS[spoil] in fault for fault in found), found


def test_styles_may_be_named_apart_from_colours(figure):
    fig, axes = figure
    axes[1].plot([0, 1], [0.2, 0.3], color="#0072B2", ls=":")
    assert len(plot.faults(fig)) == 1
    plot.style_key(axes[0], "frozen", ls=":")
    fig.legends[0].remove()
    plot.key(fig)
    assert plot.faults(fig) == []


def test_more_than_nine_panels_are_too_many():
    with plot.style():
        fig, axes = plt.subplots(2, 5, figsize=(5, 4))
        assert "10 panels, at most 9 can be read" in plot.faults(fig)
        axes[0, 0].set_axis_off()
        assert not any("panels," in fault for fault in plot.faults(fig))


def test_a_colour_has_one_meaning():
    tables = (
        colours.COLOURS.values(), colours.KERNELS.values(), colours.RESIDUALS.values(), colours.GROUPS.values(),
        (colour for colour, _ in colours.ENGINES.values()), colours.SECONDS.values(), plot.shades(2),
        colours.OTHERS, (colours.POSITIVE, colours.NEGATIVE, colours.NEUTRAL, colours.LAW, colours.LAW_OF_GD),
        (place["color"] for place in colours.PLACES),
    )  # fmt: skip
    every = [np.array(to_rgb(colour)) for table in tables for colour in table]
    apart = [np.abs(one - other).max() for one, other in itertools.combinations(every, 2)]
    assert min(apart) > 0.02
    hues = [colour for colour in every if np.ptp(colour) > 0.2]  # greys are told apart by their markers
    assert len(hues) > 20
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(hues, 2)) > 0.1


def test_log_axes_of_less_than_two_decades_have_plain_numbers_and_no_others():
    with plot.style():
        fig, ax = plt.subplots()
        ax.set(xscale="log", yscale="log", xlim=(0.03, 0.6), ylim=(0.41, 0.66))
        for axis in (ax.xaxis, ax.yaxis):
            plot.tick_log(axis)
        fig.draw_without_rendering()
    shown = [[tick.get_text() for tick in axis.get_ticklabels(which="both")] for axis in (ax.xaxis, ax.yaxis)]
    assert [name for name in shown[0] if name] == ["0.05", "0.1", "0.2", "0.5"]
    assert len([name for name in shown[1] if name]) > 1


def test_few_seeds_are_drawn_one_by_one_with_their_median(figure):
    xr = pytest.importorskip("xarray")
    values = xr.DataArray([[1.0, 2.0], [3.0, 4.0], [8.0, 9.0]], dims=("seed", "step"))
    ax = figure[1][0]
    before = len(ax.lines)
    plot.traces(ax, [0, 1], values, "median", color="#0072B2")
    median, *seeds = ax.lines[before:]
    np.testing.assert_array_equal(median.get_ydata(), [3, 4])
    np.testing.assert_array_equal([line.get_ydata() for line in seeds], values)
    assert {line.get_gid() for line in seeds} == {SEED}


def test_dots_are_intervals_in_the_table(figure, tmp_path):
    fig, axes = figure
    plot.dots(axes[1], [1.0, 2.0], [0.5, 0.6], [0.4, 0.5], [0.7, 0.8], "error", color="#009E73", marker="o")
    plot.save(fig, tmp_path, "x")
    assert "panel,error,1,0.5,0.4,0.7" in (tmp_path / "x.csv").read_text()

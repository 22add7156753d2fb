"""Can the lines of several optimizers be told apart? Grid points of one family, and families without a colour."""

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from jaxsign import plot
from jaxsign.plot.colours import LAW, LAW_OF_GD

xr = pytest.importorskip("xarray")
MINE = [("mine", f"mine(peak={peak})") for peak in (0.02, 0.1, 0.5)]
SIGNS = [("sign_gd", f"sign_gd(learning_rate={rate})") for rate in (0.001, 0.003)]


def runs(points, steps=(0, 50, 100)):
    """A loss that falls at a rate of its own for every optimizer, for 2 seeds."""
    fall = 0.7 * np.exp(-np.arange(1, len(points) + 1)[:, None] * np.asarray(steps) / 100)
    families, labels = zip(*points)
    return xr.Dataset(
        {
            "train_loss": (("optimizer", "seed", "step"), np.stack([fall, 1.1 * fall], 1)),
            "status": (("optimizer", "seed"), np.zeros((len(points), 2), np.int8)),
        },
        {"optimizer": list(labels), "family": ("optimizer", list(families)), "seed": [0, 1], "step": list(steps)},
    )


@pytest.fixture
def drawn():
    """Draws losses and returns the lines with their names, and what stands in a reader's way in legends."""

    def draw(ds):
        with plot.style():
            ax = plot.loss(ds)
        handles, names = ax.get_legend_handles_labels()
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == list(dict.fromkeys(names))
        faults = [fault for fault in plot.faults(ax.figure) if "one look" in fault or "legend names" in fault]
        return dict(zip(names, handles)), faults

    yield draw
    plt.close("all")


def test_grid_points_of_a_family_differ_in_look_and_name(drawn):
    lines, faults = drawn(runs([*MINE, *SIGNS]))
    assert list(lines) == [
        "mine, peak=0.02", "mine, peak=0.1", "mine, peak=0.5", "SignGD, learning_rate=0.001",
        "SignGD, learning_rate=0.003",
    ]  # fmt: skip
    colours = [line.get_color().upper() for line in lines.values()]
    assert len(set(colours)) == 5
    assert not {LAW, LAW_OF_GD, "#000000", "#999999"} & set(colours)
    assert {line.get_linestyle() for line in lines.values()} == {"-"}
    assert faults == []


def test_the_law_of_several_rates_is_named_once(drawn):
    rates = [float("nan"), *[0.001] * 2]
    ds = runs([("mine", "mine"), *SIGNS], (0, 1000, 2000)).assign_coords(learning_rate=("optimizer", rates))
    lines, faults = drawn(ds.assign(noise_l1=(("optimizer", "seed"), np.ones((3, 2)))))
    assert sum("law" in name for name in lines) == 1
    assert faults == []


def test_one_point_a_family_keeps_its_colour_and_plain_name(drawn):
    lines, _ = drawn(runs([("adam", "adam"), ("sign_gd", "sign_gd(learning_rate=0.001)")]))
    assert {name: line.get_color() for name, line in lines.items()} == {
        "Adam": plot.COLOURS["adam"], "SignGD": plot.COLOURS["sign_gd"]
    }  # fmt: skip


def test_many_families_and_points_differ():
    own = [(f"own {i}", f"own {i}") for i in range(9)]
    grid = [("gd", f"gd(learning_rate={rate})") for rate in range(12)]
    ds = runs([*own, *grid, ("momentum", "momentum")])
    places, names, every = zip(*plot.looks(ds))
    looks = [(look["color"], look["linestyle"]) for look in every]
    assert places == tuple(range(22))
    assert len(set(names)) == len(set(looks)) == 22
    assert not {"#000000", LAW, LAW_OF_GD} & {colour.upper() for colour, _ in looks}


def test_results_put_together_have_names_of_their_own(drawn):
    ds = runs([("gd", "gd"), ("adam", "adam"), ("gd", "gd")])
    assert list(drawn(ds)[0]) == ["GD, optimizer 0", "Adam", "GD, optimizer 2"]


def test_a_family_as_one_line_has_one_look():
    looks = plot.looks(runs([*MINE, *SIGNS]), one_a_family=True)
    assert [(i, name) for i, name, _ in looks] == [(0, "mine"), (3, "SignGD")]
    assert [look["color"] for _, _, look in looks] == [plot.OTHERS[0], plot.COLOURS["sign_gd"]]

"""Towards the theorem's regime: test error and loss of SignGD, Adam and GD; and test loss over a whole training.

Reads DIR/atlas_regime (sweeps/atlas_regime.py).
Command: python figures/atlas_regime.py --results results --out results/figures
"""

import math

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.reading import CannotDecide
from jaxsign.claims import atlas
from jaxsign.claims.regime import constant_of

LEVEL = 0.1
LINES = {4: "-", 8: "--", 16: ":"}


def towards(ax, ds, name):
    """A test quantity at training loss .1 against sigma_p / (d^(1/4) n^3), a line an optimizer and n."""
    constant, n = constant_of(ds), ds["n"].values
    for family in atlas.POWERS:
        values = atlas.errors(ds, family, LEVEL, name)
        for size in np.unique(n):
            some = np.flatnonzero(n == size)
            plot.band(
                ax, constant[some], values.isel(n=some).transpose("seed", "n"), f"{plot.NAMES[family]}, n = {size}",
                color=plot.COLOURS[family], ls=LINES.get(int(size), "-"),
            )  # fmt: skip
    ax.set(xscale="log", xlabel=r"$\sigma_p\,/\,(d^{1/4} n^3)$")


def whole(ax, ds, family):
    """Test loss against training loss, both on their way down, a line an SNR; ln 2 is guessing without confidence."""
    snr = atlas.snr_of(ds).values
    levels = np.atleast_1d(ds["level"].values)
    colours = plot.shades(snr.size)
    reached, tables = [], []
    for level in levels:
        try:
            tables.append(atlas.errors(ds, family, float(level), "test_loss"))
            reached.append(level)
        except CannotDecide:
            continue
    for place, value in enumerate(snr):
        rows = np.stack([table.isel(mu=place).values for table in tables], 1)
        table = tables[0].isel(mu=place).expand_dims(level=reached).transpose("seed", "level").copy(data=rows)
        plot.band(ax, reached, table, f"SNR {value:.2g}", color=colours[place])
    ax.axhline(math.log(2), **plot.law_look("gd"), label="ln 2: guessing")
    ax.axhline(0.1, **plot.law_look(), label=".1: claim C2r")
    ax.set(xscale="log", yscale="log", xlabel="training loss", ylabel="test loss")
    low, high = (math.floor(math.log10(end)) for end in (min(reached), max(reached)))
    ticks = [10.0**power for power in range(low, high + 1) if (high - power) % 3 == 0]
    ax.set_xticks(ticks, [plot.cell_name(tick) for tick in ticks])
    ax.minorticks_off()
    ax.invert_xaxis()


def draw(entries):
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 6.2))
    for row, name, words in ((0, "test_error", "test error"), (1, "test_loss", "test loss")):
        for column, entry in enumerate(("regime", "regime_small_start")):
            towards(axes[row, column], entries[entry], name)
        axes[row, 0].set_ylabel(f"{words} at loss .1")
        axes[row, 1].set_ylabel(words)
        for ax in axes[row, :2]:
            ax.set_xticks([1e-4, 1e-2, 1], ["$10^{-4}$", "$10^{-2}$", "1"])
            ax.minorticks_off()
    for ax in axes[1, :2]:
        ax.set_yscale("log")
    for ax, family in zip(axes[2], atlas.POWERS):
        whole(ax, entries["whole_training"], family)
    plot.key(fig, ncols=1, axes=[axes[0, 0]], at=axes[0, 2])
    plot.key(fig, ncols=1, axes=[axes[2, 0]], at=axes[1, 2])
    titles = ("preset's start", "small start", "preset's start", "small start", "SignGD", "Adam", "GD")
    plot.letter_panels([*axes[0, :2], *axes[1, :2], *axes[2]], titles)
    return fig


main = plot.figure_script(draw, __doc__, reads="atlas_regime/*")

if __name__ == "__main__":
    main()

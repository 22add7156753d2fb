"""Which of Adam's betas train, and which generalise, like SignGD? Maps over b1 and b2.

Reads DIR/atlas_betas (sweeps/atlas_betas.py).
Command: python figures/atlas_betas.py --results results --out results/figures
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.claims import betas, dial

#: The SNR of the maps in each setting, as on page 3.
SHOWN = {"overlap": dial.OWN, "limit": 0.04}


def short(value, digits):
    """A number without the 0 before its point, a dash where there is none."""
    text = f"{value:.{digits}f}"
    return "\N{EN DASH}" if np.isnan(value) else text.removeprefix("0") if digits else text


def map_of(ax, table, limits, digits=2, repeats=True):
    """A map over (b1, b2) with its numbers in the cells; a dash where no seed has one.

    `repeats` False leaves out b2 = 0 with b1 > 0: a moment over the last gradient alone has no bound, and rounding
    alone gives other numbers (docs/atlas/betas.md).
    """
    shown = table.median("seed").transpose("b1", "b2")
    if not repeats:
        shown = shown.where((shown["b2"] > 0) | (shown["b1"] == 0))
    names = [[f"{value:g}".replace("0.", ".") for value in shown[name].values] for name in ("b1", "b2")]
    plot.heat_map(ax, shown, limits, names=names)
    for row, column in np.ndindex(*shown.shape):
        value = float(shown[row, column])
        dark = np.isfinite(value) and value < sum(limits) / 2
        ax.text(column, row, short(value, digits), ha="center", va="center", fontsize=7, color="w" if dark else "k")


def draw(overlap, limit):
    warnings.simplefilter("ignore", RuntimeWarning)  # medians of cells that no seed reaches
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 5.4), sharex=True, sharey=True)
    limit = limit.sel(kernel="softmax")
    snr = dial.nearest_snr(overlap, SHOWN["overlap"])
    map_of(axes[0, 0], betas.trace_distance(overlap, snr), (0, 4), 1, repeats=False)
    map_of(axes[0, 1], betas.attention_distance(overlap, snr, 0.01), (0, 0.5), repeats=False)
    steps = betas.over_betas(overlap, 1e-4, snr, "step") / betas.of_sign(overlap, 1e-4, snr, "step")
    map_of(axes[0, 2], steps, (0.5, 4), 1, repeats=False)
    titles, notes = ["loss traces apart", "attention apart", "steps / SignGD's"], []
    for row, (ds, place) in enumerate(((overlap, "overlap"), (limit, "limit")), 1):
        snr, sign = dial.nearest_snr(ds, SHOWN[place]), []
        words = {"overlap": "d = 2000", "limit": r"d $\to\infty$"}[place]
        for column, level in enumerate((0.1, 0.01, 1e-4)):
            errors = betas.over_betas(ds, level, snr, "test_error")
            map_of(axes[row, column], errors, (0, 0.5), repeats=place == "limit" and level > 1e-4)
            sign.append(short(float(betas.of_sign(ds, level, snr, "test_error").median()), 2))
            titles.append(f"{words}, loss {plot.cell_name(level)}")
        notes.append(f"{words}, SNR {float(snr):.3g}: SignGD {', '.join(sign)}")
    plot.letter_panels(axes.flat, titles)
    for ax in axes[:, 0]:
        ax.set_ylabel("$b_1$")
    for ax in axes[-1]:
        ax.set_xlabel("$b_2$")
    plot.small_print(
        fig,
        "(a) to (c) at d = 2000; (d) to (i) test errors; a dash: not reached or, at b2 = 0, other numbers at every run "
        f"of the command. {'; '.join(notes)}.",
    )
    return fig


main = plot.figure_script(draw, __doc__, reads=("atlas_betas/overlap", "atlas_betas/limit"))

if __name__ == "__main__":
    main()

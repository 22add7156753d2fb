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


def map_of(ax, table, limits, form="{:.2f}", held=None):
    """A map over (b1, b2) with its numbers in the cells; a dash where no seed has one."""
    middle = table.median("seed")
    shown = middle.transpose("b1", "b2")
    plot.heat_map(ax, shown, limits, held_out=held)
    for row, column in np.ndindex(*shown.shape):
        value = float(shown[row, column])
        dark = np.isfinite(value) and value < sum(limits) / 2
        text = form.format(value) if np.isfinite(value) else "–"
        ax.text(column, row + 0.08, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    ax.set(xlabel="$b_2$", ylabel="$b_1$")


def draw(overlap, limit):
    warnings.simplefilter("ignore", RuntimeWarning)  # medians of cells that no seed reaches
    fig, axes = plt.subplots(3, 3, figsize=(7.2, 6.6))
    limit = limit.sel(kernel="softmax")
    snr = betas.nearest(overlap, SHOWN["overlap"])
    map_of(axes[0, 0], betas.trace_distance(overlap, snr), (0, 4), "{:.2f}")
    map_of(axes[0, 1], betas.attention_distance(overlap, snr, 0.01), (0, 0.5), "{:.2f}")
    steps = betas.over_betas(overlap, 1e-4, snr, "step") / betas.of_sign(overlap, 1e-4, snr, "step")
    map_of(axes[0, 2], steps, (0.5, 4), "{:.1f}")
    titles = ["distance of traces", "distance of attention", "steps to 1e-4 / SignGD's"]
    for row, (ds, place) in enumerate(((overlap, "overlap"), (limit, "limit")), 1):
        snr = betas.nearest(ds, SHOWN[place])
        for column, level in enumerate((0.1, 0.01, 1e-4)):
            errors = betas.over_betas(ds, level, snr, "test_error")
            sign = float(betas.of_sign(ds, level, snr, "test_error").median())
            law = betas.law(ds, level, snr)
            map_of(axes[row, column], errors, (0, 0.5), "{:.3f}")
            word = "d 2000" if place == "overlap" else "limit"
            titles.append(f"{word}, {level:g}; SignGD {sign:.2f}, law {law:.2f}")
    plot.letter_panels(axes.flat, titles, fontsize=7)
    return fig


main = plot.figure_script(draw, __doc__, reads=("atlas_betas/overlap", "atlas_betas/limit"))

if __name__ == "__main__":
    main()

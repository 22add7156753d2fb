"""The error map: test error at equal training loss over SNR and d, its law, and what it is made of.

Reads DIR/atlas_error (sweeps/atlas_error.py).
Command: python figures/atlas_error.py --results results --out results/figures
"""

import math

import matplotlib.pyplot as plt

from jaxsign import plot
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import atlas

#: {figure: training loss}
PAGES = {"atlas_error": 0.1, "atlas_error_late": 0.01}
CONTOURS = (0.05, 0.45)
ERROR, SHARE = (0.0, 0.5), (-0.05, 0.3)


def labelled(table, ds):
    """A table (d, mu) with its rows and columns named by d and SNR."""
    snr = atlas.snr_of(ds).values
    columns = [plot.cell_name(value) if abs(math.log10(value) % 1 - 0.5) > 0.49 else "" for value in snr]
    sizes = ds["d"].values
    overlap = ds["overlap"].values
    rows = [r"$\infty$" if law == "none" else plot.cell_name(int(d)) for d, law in zip(sizes, overlap)]
    return table.transpose("d", "mu").assign_coords(mu=snr), (rows, columns)


def page(ds, level):
    """One figure: nine maps at one training loss."""
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 5.6), sharex=True, sharey=True)
    mean = {family: atlas.errors(ds, family, level).mean("seed") for family in families(ds)}
    trained, uniform = ({f: t.sel(kernel=k) for f, t in mean.items()} for k in ("softmax", "uniform"))
    law = {family: atlas.laws(ds, level, atlas.POWERS[family]) for family in mean}
    chosen = held_out(ds, "d", "mu")
    look = {
        family: {"contours": CONTOURS, "of": law[family], "held_out": chosen} for family in mean
    }  # fmt: skip
    panels = [
        *(
            (
                f"error, {plot.NAMES[f]}",
                trained[f],
                ERROR,
                {**look[f], "hatched": abs(trained[f] - law[f]) > atlas.CLOSE},
            )
            for f in mean
        ),
        *((f"attention, {plot.NAMES[f]}", trained[f] - uniform[f], SHARE, {}) for f in mean),
        (r"SignGD $-$ GD", trained["sign_gd"] - trained["gd"], ERROR, {}),
        ("law, overlap", atlas.laws(ds, level, 0.0, initial=False), ERROR, {"contours": CONTOURS}),
        ("law, initial", atlas.laws(ds, level, 0.0, overlap=False), ERROR, {"contours": CONTOURS}),
    ]
    images = []
    for ax, (_, table, limits, marks) in zip(axes.flat, panels):
        cells, names = labelled(table, ds)
        images.append(plot.heat_map(ax, cells, limits, names=names, **marks))
    for row, label in enumerate(("test error", "raised by attention", "test error")):
        fig.colorbar(images[3 * row], ax=axes[row], pad=0.01, aspect=18, label=label)
    plot.letter_panels(axes.flat, [title for title, *_ in panels])
    for ax in axes[:, 0]:
        ax.set_ylabel("dimension d")
    for ax in axes[-1]:
        ax.set_xlabel("SNR")
    words = f"training loss {level:g}, means of {ds.sizes['seed']} seeds; white: law's error; hatched: law off by .05"
    words += "; dots: held out"
    unread = any(bool(table.isnull().any()) for table in trained.values())
    plot.small_print(fig, words + ("; grey: loss not reached" if unread else ""))
    return fig


def families(ds):
    """Families of a Dataset, in the order of `atlas.POWERS`."""
    return [family for family in atlas.POWERS if family in set(ds["family"].values.tolist())]


def draw(ds):
    return {name: page(ds, level) for name, level in PAGES.items()}


main = plot.figure_script(draw, __doc__, reads="atlas_error/error")

if __name__ == "__main__":
    main()

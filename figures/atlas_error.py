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
CONTOURS = (0.05, 0.25, 0.45)
ERROR, GAP, SHARE = (0.0, 0.5), (-0.1, 0.5), (-0.05, 0.3)


def labelled(table, ds):
    """A table (d, mu) with its rows and columns named by d and SNR."""
    snr = atlas.snr_of(ds).values
    columns = [plot.cell_name(value) if abs(math.log10(value) % 1 - 0.5) > 0.49 else "" for value in snr]
    sizes = ds["d"].values
    overlap = ds["overlap"].values
    rows = [r"$\infty$" if law == "none" else plot.cell_name(int(d)) for d, law in zip(sizes, overlap)]
    return table.transpose("d", "mu"), (rows, columns)


def page(ds, level):
    """One figure: nine maps at one training loss."""
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE * 1.35, 6.6), sharex=True, sharey=True)
    mean = {family: atlas.errors(ds, family, level).mean("seed") for family in families(ds)}
    trained, uniform = ({f: t.sel(kernel=k) for f, t in mean.items()} for k in ("softmax", "uniform"))
    law = {family: atlas.laws(ds, level, atlas.POWERS[family]) for family in mean}
    chosen = held_out(ds, "d", "mu")
    panels = []
    for family in mean:
        off = abs(trained[family] - law[family]) > atlas.CLOSE
        panels.append((f"error of {plot.NAMES[family]}", trained[family], ERROR, law[family], off))
    panels += [
        ("error(SignGD) $-$ error(GD)", trained["sign_gd"] - trained["gd"], GAP, law["sign_gd"] - law["gd"], None),
        *(
            (f"{plot.NAMES[family]}: attention's share", trained[family] - uniform[family], SHARE, None, None)
            for family in mean
        ),
        ("SignGD's law, overlap alone", atlas.laws(ds, level, 0.0, initial=False), ERROR, None, None),
        ("SignGD's law, initial weights alone", atlas.laws(ds, level, 0.0, overlap=False), ERROR, None, None),
    ]
    for ax, (_, table, limits, contours, off) in zip(axes.flat, panels):
        cells, names = labelled(table, ds)
        image = plot.heat_map(
            ax, cells, limits, contours=CONTOURS if limits == ERROR else (), of=contours, hatched=off,
            held_out=chosen if limits == ERROR else None, names=names,
        )  # fmt: skip
        fig.colorbar(image, ax=ax, pad=0.02, aspect=12)
    plot.letter_panels(axes.flat, [title for title, *_ in panels])
    for ax in axes[:, 0]:
        ax.set_ylabel("dimension d")
    for ax in axes[-1]:
        ax.set_xlabel("SNR")
    return fig


def families(ds):
    """Families of a Dataset, in the order of `atlas.POWERS`."""
    return [family for family in atlas.POWERS if family in set(ds["family"].values.tolist())]


def draw(ds):
    return {name: page(ds, level) for name, level in PAGES.items()}


main = plot.figure_script(draw, __doc__, reads="atlas_error/error")

if __name__ == "__main__":
    main()

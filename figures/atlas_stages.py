"""The stage map: where the stages of SignGD are in order, and the end of each against its law.

Reads DIR/atlas_stages/* (sweeps/atlas_stages.py).
Command: python figures/atlas_stages.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import stage_map

#: The preset, in the map's coordinates.
MU, SIGMA_0, ETA = 1.0, 3e-3, 1e-4
LABELS = {
    "mu": r"$\mu$ at $\sigma_p=2$", "sigma_0": r"initial scale $\sigma_0$", "learning_rate": r"learning rate $\eta$",
}  # fmt: skip
SYMBOLS = {
    "t_I": r"$t_I$", "t_II": r"$t_{II}$", "t_III": r"$t_{III}$", "t_IV": r"$t_{IV}$", "t_key": r"$t_{key}$",
    "t_V": r"$t_V$",
}  # fmt: skip
RATIO = (0.5, 2.0)


def panel(fig, ax, values, limits, *, of, held, label):
    """One map with its colour bar, axis labels, the law's or the range's border dashed, the preset starred."""
    y, x = values.dims
    image = plot.heat_map(ax, values, limits, contours=(0.5,), of=of, held_out=held)
    for text in list(ax.texts):  # the level of a border of yes and no says nothing
        text.remove()
    own = {"mu": MU, "sigma_0": SIGMA_0, "learning_rate": ETA}
    place = [int(np.argmin(abs(np.log(values[dim].values / own[dim])))) for dim in (x, y)]
    if all(np.isclose(values[dim].values[i], own[dim], rtol=0.01) for dim, i in zip((x, y), place)):
        ax.plot(*place, "*", color="w", mec="k", mew=0.5, ms=7, label="preset")
    ax.set(xlabel=LABELS[x], ylabel=LABELS[y])
    ax.tick_params(axis="x", rotation=45)
    bar = fig.colorbar(image, ax=ax, label=label)
    bar.ax.tick_params(length=2)


def order(fig, ax, runs, law, point):
    """Share of seeds in order at one point of the third axis, with the laws' border."""
    here, there = (one.sel(point, method="nearest") for one in (runs, law))
    dims = ("sigma_0", "learning_rate" if "mu" in point else "mu")
    share, foretold = stage_map.in_order(here).mean("seed"), stage_map.in_order(there).astype(float)
    held = held_out(law, *stage_map.MAP).sel(point, method="nearest")
    panel(
        fig, ax, share.transpose(*dims), (0, 1), of=foretold.transpose(*dims), held=held.transpose(*dims),
        label="share of seeds in order",
    )  # fmt: skip


def ratio(fig, ax, runs, law, name):
    """Median end of a stage over its law at mu = 1, with the border of the claimed range."""
    here, there = (one.sel(mu=MU) for one in (runs, law))
    dims = ("sigma_0", "learning_rate")
    values = here[name].median("seed", skipna=False) / there[name].where(there[name] > 0)
    panel(
        fig, ax, values.transpose(*dims), RATIO, of=there["in_range"].astype(float).transpose(*dims), held=None,
        label=f"{SYMBOLS[name]} / law",
    )  # fmt: skip


def powers(ax, runs, law):
    """Fitted powers of sigma_0 and eta with 95 % bootstrap intervals over seeds, and those of the laws' own numbers."""
    names = ("t_I", "t_II", "t_III", "t_IV", "t_key", "t_V")
    laws = law.expand_dims(seed=[0])
    draws = np.random.default_rng(0).integers(0, runs.sizes["seed"], (2000, runs.sizes["seed"]))
    for of, colour, marker in (("sigma_0", plot.POSITIVE, "o"), ("learning_rate", plot.NEGATIVE, "s")):
        fitted = [stage_map.exponents(runs[name], law).sel(of=of).values for name in names]
        means = np.array([one.mean() for one in fitted])
        ends = np.array([np.quantile(one[draws].mean(1), [0.025, 0.975]) for one in fitted])
        label = r"power of $\sigma_0$" if of == "sigma_0" else r"power of $\eta$"
        place = np.arange(len(names)) + (0.12 if of == "sigma_0" else -0.12)
        (line,) = ax.plot(place, means, marker, color=colour, ms=3, label=label)
        ax.vlines(place, ends[:, 0], ends[:, 1], color=colour, lw=1)
        plot.keep_band(line, ends[:, 0], ends[:, 1])
        own = [float(stage_map.exponents(laws[name], law).sel(of=of).mean()) for name in names]
        ax.plot(place, own, "_", color="k", ms=8, label="of the law" if of == "sigma_0" else "_law")
    ax.set_xticks(range(len(names)), [SYMBOLS[name] for name in names])
    ax.set(ylabel="power", ylim=(-1.3, 1.5))
    ax.legend(fontsize=7, loc="upper right", ncols=1, borderpad=0.2)


def shapes(ax, every):
    """Share in order as bars, and t_IV and t_V over their laws, for every shape that was varied alone."""
    rows = []
    for name in stage_map.SHAPES:
        if name not in every:
            continue
        runs = stage_map.runs_of(every[name]).isel(learning_rate=0)
        law = stage_map.laws(stage_map.runs_of(every[name])).isel(learning_rate=0)
        for i, value in enumerate(runs[name].values):
            one, own = runs.isel({name: i}), law.isel({name: i})
            late = [float(one[end].median("seed")) / float(own[end]) for end in ("t_IV", "t_V")]
            label = f"${name}={value}$" if name != "heads" else f"heads {value}"
            rows.append((label, float(stage_map.in_order(one).mean()), bool(stage_map.in_order(own)), *late))
    labels, share, foretold, four, five = (list(column) for column in zip(*rows))
    place = np.arange(len(rows))
    colours = [plot.NEUTRAL if one else "w" for one in foretold]
    ax.bar(place, share, color=colours, alpha=0.4, edgecolor="k", lw=0.5, label="share in order (white: law says no)")
    ax.plot(place, four, "o", color=plot.POSITIVE, ms=3, label=f"{SYMBOLS['t_IV']} / law")
    ax.plot(place, five, "s", color=plot.NEGATIVE, ms=3, label=f"{SYMBOLS['t_V']} / law")
    ax.axhline(1, color="k", lw=0.5)
    ax.set_xticks(place, labels, rotation=90)
    ax.set(ylim=(0, 2.2), ylabel="share, or measured / law")
    ax.legend(fontsize=7, loc="upper left", borderpad=0.2)
    plot.keep_map(ax, ["share in order"], place, [share])


def draw(every):
    runs = stage_map.runs_of(every["map"])
    law = stage_map.laws(runs)
    fig, axes = plt.subplots(3, 3, figsize=(9.6, 9.0))
    order(fig, axes[0, 0], runs, law, {"mu": MU})
    order(fig, axes[0, 1], runs, law, {"learning_rate": ETA})
    order(fig, axes[0, 2], runs, law, {"learning_rate": 1e-5})
    for ax, name in zip(axes.flat[3:7], ("t_II", "t_III", "t_IV", "t_V")):
        ratio(fig, ax, runs, law, name)
    powers(axes[2, 1], runs, law)
    shapes(axes[2, 2], every)
    titles = (
        r"stages in order, $\mu=1$", r"stages in order, $\eta=10^{-4}$", r"stages in order, $\eta=10^{-5}$",
        "end of stage II", "end of stage III", "end of stage IV", "query noise has turned",
        "powers in the claimed range", "shapes at the preset",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles, fontsize=8)
    text = (
        f"{runs.sizes['seed']} seeds, {plot.sizes(every['map'], 'n', 's', 'm_k', 'm_v')}, disjoint supports, medians · "
        "dashed: in a-c where the laws put the border of order, in d-g the border of the claimed range · star: preset, "
        "dot: held out, grey: not reached · reconstructed"
    )
    fig.supxlabel(text, fontsize=7, wrap=True)
    return fig


main = plot.figure_script(draw, __doc__, reads="atlas_stages/*")

if __name__ == "__main__":
    main()

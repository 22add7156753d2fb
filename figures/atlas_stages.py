"""The stage map: where the stages of SignGD are in order, up to which start, and the end of each against its law.

Reads DIR/atlas_stages/* (sweeps/atlas_stages.py).
Command: python figures/atlas_stages.py --results results --out results/figures
"""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from jaxsign import plot
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import stage_map

#: The preset, in the map's coordinates.
MU, SIGMA_0, ETA = 1.0, 3e-3, 1e-4
LABELS = {"mu": "SNR", "sigma_0": r"initial scale $\sigma_0$", "learning_rate": r"learning rate $\eta$"}
SYMBOLS = {
    "t_I": r"$t_I$", "t_II": r"$t_{II}$", "t_III": r"$t_{III}$", "t_IV": r"$t_{IV}$", "t_key": r"$t_{key}$",
    "t_V": r"$t_V$",
}  # fmt: skip
#: Ends whose maps are drawn, with their titles.
MAPS = {"t_II": "end of stage II", "t_III": "end of stage III", "t_IV": "end of stage IV", "t_V": "end of stage V"}
RATIO = (0.5, 2.0)


def ticks(axis, values):
    """Labels the powers of ten between the cells of a map, where they are far enough apart."""
    places = np.log10(values)
    powers = np.arange(math.ceil(places[0] - 1e-6), math.floor(places[-1] + 1e-6) + 1)
    shown = {}
    for place, power in zip(np.interp(powers, places, np.arange(places.size)), powers):
        if not shown or place - max(shown) > 0.22 * places.size:
            shown[place] = f"$10^{{{power}}}$" if power < -2 else f"{10.0**power:g}"
    axis.set_ticks(list(shown), list(shown.values()))


def panel(ax, values, law, limits, *, of, held=None):
    """One map with its axis labels, the law's or the range's border dashed, the preset starred."""
    y, x = values.dims
    snr = law["snr"].isel({dim: 0 for dim in law["snr"].dims if dim != "mu"}).values
    image = plot.heat_map(ax, values.assign_coords(mu=snr) if x == "mu" else values, limits, held_out=held)
    # Not heat_map's contours, whose labels break the line: the level of a border of yes and no says nothing.
    ax.contour(of.values, levels=[0.5], colors="w", linewidths=0.9, linestyles="--")
    own = {"mu": MU, "sigma_0": SIGMA_0, "learning_rate": ETA}
    place = [int(np.argmin(abs(np.log(values[dim].values / own[dim])))) for dim in (x, y)]
    if all(np.isclose(values[dim].values[i], own[dim], rtol=0.01) for dim, i in zip((x, y), place)):
        ax.plot(*place, "*", color="w", mec="k", mew=0.5, ms=7, label="preset")
    for axis, dim in ((ax.xaxis, x), (ax.yaxis, y)):
        ticks(axis, snr if dim == "mu" else values[dim].values)
    ax.set_xlabel(LABELS[x])
    return image


def order(ax, runs, law, point):
    """Share of seeds in order at one point of the third axis, with the laws' border."""
    here, there = (one.sel(point, method="nearest") for one in (runs, law))
    dims = ("sigma_0", "learning_rate" if "mu" in point else "mu")
    share, foretold = stage_map.in_order(here).mean("seed"), stage_map.in_order(there).astype(float)
    held = held_out(law, *stage_map.MAP).sel(point, method="nearest")
    share, foretold, held = (one.transpose(*dims) for one in (share, foretold, held))
    return panel(ax, share, law, (0, 1), of=foretold, held=held)


def ratio(ax, runs, law, name):
    """Median end of a stage over its law at mu = 1, with the border of the claimed range."""
    here, there = (one.sel(mu=MU) for one in (runs, law))
    dims = ("sigma_0", "learning_rate")
    values = here[name].median("seed", skipna=False) / there[name].where(there[name] > 0)
    border = there["in_range"].astype(float).transpose(*dims)
    image = panel(ax, values.transpose(*dims), law, RATIO, of=border)
    image.set_norm(LogNorm(*RATIO))
    return image


def powers(ax, runs, law):
    """Fitted powers of sigma_0 and eta with 95 % bootstrap intervals over seeds, and those of the laws' own numbers."""
    laws = law.expand_dims(seed=[0])
    draws = np.random.default_rng(0).integers(0, runs.sizes["seed"], (2000, runs.sizes["seed"]))
    looks = (
        ("sigma_0", r"power of $\sigma_0$", plot.OTHERS[0], "o"),
        ("learning_rate", r"power of $\eta$", plot.OTHERS[1], "s"),
    )
    for of, label, colour, marker in looks:
        fitted = [stage_map.exponents(runs[name], law).sel(of=of).values for name in SYMBOLS]
        ends = np.array([np.quantile(one[draws].mean(1), [0.025, 0.975]) for one in fitted])
        places, means = np.arange(len(SYMBOLS)), [one.mean() for one in fitted]
        plot.dots(ax, places, means, *ends.T, label, color=colour, marker=marker)
        own = [float(stage_map.exponents(laws[name], law).sel(of=of).mean()) for name in SYMBOLS]
        x, y = places[:, None] + [-0.42, 0.42, np.nan], np.repeat(own, 3)
        ax.plot(x.ravel(), y, label="law", zorder=1.5, **plot.law_look())
    ax.set_xticks(range(len(SYMBOLS)), list(SYMBOLS.values()))
    ax.set_yticks([-1, 0, 1])
    ax.set(xlabel="end of a stage", ylabel="power", ylim=(-1.3, 1.3))


def shapes(ax, every):
    """Share in order as bars, and t_IV and t_V over their laws, for every shape that was varied alone."""
    start, rows = 0.0, []
    for name in (name for name in stage_map.SHAPES if name in every):
        runs = stage_map.runs_of(every[name]).isel(learning_rate=0)
        law = stage_map.laws(stage_map.runs_of(every[name])).isel(learning_rate=0)
        share, values = stage_map.in_order(runs).mean("seed").values, runs[name].values
        late = [(runs[end].median("seed") / law[end]).values for end in ("t_IV", "t_V")]
        places = start + np.arange(values.size)
        rows += zip(places, values, share, stage_map.in_order(law).values, *late)
        words = name if name == "heads" else f"${name}$"
        ax.text(places.mean(), -0.15, words, transform=ax.get_xaxis_transform(), ha="center", va="top")
        plot.keep_map(ax, [f"share in order, {name}"], values, [share])
        start = places[-1] + 1.6
    place, value, share, foretold, four, five = (np.array(column) for column in zip(*rows))
    ax.bar(place, share, color="0.85", edgecolor="0.5", lw=0.5, label="share in order")
    for one in place[~foretold]:
        ax.text(one, 0.04, "no", ha="center")
    for late, end, look in ((four, "t_IV", plot.PLACES[0]), (five, "t_V", plot.PLACES[1])):
        ax.plot(place, late, ls="none", ms=3.5, label=f"measured {SYMBOLS[end]}", **look)
    plot.level_line(ax, 1)
    ax.set_xticks(place, [str(one) for one in value])
    ax.tick_params(axis="x", length=2)
    ax.set(ylim=(0, 1.3), ylabel="share, or\nmeasured / law", yticks=[0, 0.5, 1])
    ax.set_xlabel("shape, one changed at a time", labelpad=12)


def where(every, runs, law):
    """The figure of the order: three maps and the shapes."""
    layout = {"height_ratios": [1.25, 1]}
    fig, axes = plt.subplot_mosaic("abc;ddd", figsize=(plot.WIDE, 4.6), gridspec_kw=layout)
    for name, point in (("a", {"mu": MU}), ("b", {"learning_rate": ETA}), ("c", {"learning_rate": 1e-5})):
        image = order(axes[name], runs, law, point)
        if name != "a":
            axes[name].sharey(axes["a"])
            axes[name].tick_params(labelleft=False)
    axes["a"].set_ylabel(LABELS["sigma_0"])
    maps = [axes[name] for name in "abc"]
    fig.colorbar(image, ax=maps, pad=0.01, aspect=14, label="share of seeds in order", ticks=[0, 0.5, 1])
    shapes(axes["d"], every)
    snr = float(law["snr"].sel(mu=MU).mean())
    titles = (f"SNR {snr:.2g}", r"$\eta=10^{-4}$", r"$\eta=10^{-5}$", "shapes at the preset")
    plot.letter_panels(axes.values(), titles)
    plot.key(fig)
    text = f"{runs.sizes['seed']} seeds, {plot.sizes(every['map'], 'n', 's', 'm_k', 'm_v')}, disjoint supports"
    marks = "dots: held out; dashed: the laws' border of order; no: out of order by the laws; reconstructed"
    plot.small_print(fig, f"{text}; {marks}")
    return fig


def when(every, runs, law):
    """The figure of the ends: four maps against the laws, and powers."""
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.4), width_ratios=[1, 1, 1.35])
    maps = axes[:, :2].ravel()
    for ax, name in zip(maps, MAPS):
        image = ratio(ax, runs, law, name)
        if ax is not maps[0]:
            ax.sharex(maps[0])
            ax.sharey(maps[0])
    for ax in axes[:, 0]:
        ax.set_ylabel(LABELS["sigma_0"])
    for ax in axes[:, 1]:
        ax.tick_params(labelleft=False)
    for ax in axes[0, :2]:
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
    bar = fig.colorbar(image, ax=list(maps), pad=0.01, aspect=28, label="measured / law", extend="both")
    bar.set_ticks([0.5, 1, 2], labels=["0.5", "1", "2"])
    bar.ax.minorticks_off()
    powers(axes[1, 2], runs, law)
    plot.letter_panels([*maps, axes[1, 2]], (*MAPS.values(), "powers in the range"))
    plot.key(fig, ncols=1, at=axes[0, 2])
    sizes = plot.sizes(every["map"], "n", "s", "m_k", "m_v")
    text = f"medians of {runs.sizes['seed']} seeds, {sizes}, disjoint supports"
    marks = f"SNR {float(law['snr'].sel(mu=MU).mean()):.2g} in a-d; dashed: border of the claimed range"
    plot.small_print(fig, f"{text}; {marks}; grey: not reached; reconstructed")
    return fig


def starts(ds):
    """The figure of the largest start: share in order against it, and against it times sqrt(m_k)."""
    runs = stage_map.runs_of(ds).isel(learning_rate=0)
    share, start = stage_map.in_order(runs).mean("seed"), stage_map.start_of(stage_map.runs_of(ds))
    fig, axes = plt.subplots(1, 2, figsize=(plot.WIDE, 2.2), sharey=True)
    rows = share["m_k"].values
    for one, colour, marker in zip(rows, plot.shades(rows.size), "ovDs^"):
        for ax, factor in zip(axes, (1, one**0.5)):
            ax.plot(
                start * factor,
                share.sel(m_k=one),
                color=colour,
                marker=marker,
                ms=3,
                label=f"$m_k$ = {one}",
                clip_on=False,
            )
    for ax, label in zip(axes, ("initial size of a noise feature $a$", r"$a\,\sqrt{m_k}$")):
        ax.set(xscale="log", xlabel=label)
    axes[1].axvline(1, color=plot.NEUTRAL, lw=0.8, ls=":")
    axes[0].set(ylabel="share of seeds in order", yticks=[0, 0.5, 1])
    plot.letter_panels(axes, ("the start", "the start against $1/\\sqrt{m_k}$"))
    plot.key(fig, ncols=5)
    sizes = plot.sizes(ds, "n", "s", "m_v")
    text = f"{runs.sizes['seed']} seeds, {sizes}, disjoint supports, $\\eta$ = {float(runs['learning_rate']):g}"
    plot.small_print(fig, f"{text}; dotted: 1; reconstructed")
    return fig


def draw(every):
    runs = stage_map.runs_of(every["map"])
    law = stage_map.laws(runs)
    figures = {"atlas_stages": where(every, runs, law), "atlas_stages_ends": when(every, runs, law)}
    return figures | ({"atlas_stages_starts": starts(every["starts"])} if "starts" in every else {})


main = plot.figure_script(draw, __doc__, reads="atlas_stages/*")

if __name__ == "__main__":
    main()

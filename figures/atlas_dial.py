"""Test error at equal training loss along the dials between SignGD and GD; attention's share, and where the gap goes.

Reads DIR/atlas_dial (sweeps/atlas_dial.py).
Command: python figures/atlas_dial.py --results results --out results/figures
"""

import functools

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from jaxsign import plot
from jaxsign.analysis.runs import numbers_of, optimizers_of
from jaxsign.claims import atlas, dial
from jaxsign.plot.colours import NEUTRAL, OTHERS

KERNELS = {"softmax": "-", "uniform": ":"}
KERNEL_MARKERS = {"softmax": "o", "uniform": "x"}
LAW = "law, uniform"
LEVELS = {0.1: "-", 0.01: ":"}
#: What overlap and initial noise leave to see: the SNR that the panels of other dials show in each setting.
SHOWN = {"overlap": dial.OWN, "limit": 0.04}
PLACES = {"overlap": "d = 2000", "limit": r"$d\to\infty$"}
PLACE_COLOURS = dict(zip(PLACES, OTHERS))
#: Rules u(g) with a scale; Adam's holds while its gradients keep their size.
RULES = {"smooth": lambda g, scale: np.tanh(g / scale), "adam": lambda g, scale: g / (g + scale)}
POWER = "p of $|g|^p$ sgn g"


def names(fig, entries, ncols):
    """One legend above the figure: (label, look) of every entry."""
    handles = [Line2D([], [], label=label, **{"color": NEUTRAL, "ms": 4, **look}) for label, look in entries]
    fig.legend(handles=handles, loc="outside upper center", ncols=ncols, columnspacing=1.2)


def kernel_names():
    """Legend entries of the attention maps and of the law."""
    return [*((kernel, {"ls": line}) for kernel, line in KERNELS.items()), (LAW, plot.law_look())]


def place_names():
    """Legend entries of the two settings."""
    return [(f"{words}, SNR {SHOWN[p]:.2g}", {"color": PLACE_COLOURS[p]}) for p, words in PLACES.items()]


def along_p(ax, ds, level, name, law=False):
    """An observable over p: one shade an SNR, softmax solid and uniform dotted, the law dashed."""
    snrs = atlas.snr_of(ds).values
    for snr, colour in zip(snrs, plot.shades(len(snrs))):
        for kernel, line in KERNELS.items():
            values = dial.curve(ds, level, snr, kernel, name)
            plot.band(ax, values["p"], values, f"SNR {snr:.2g}, {kernel}", color=colour, ls=line)
        if law:
            powers = np.linspace(0, 1, 11)
            ax.plot(powers, [dial.law(ds, level, snr, p) for p in powers], label=LAW, **plot.law_look())
    ax.set(xlabel=POWER, xlim=(-0.02, 1.02))


def halves(ax, ds, level=0.1):
    """The p at which half of the gap is lost, over the SNR."""
    snrs = atlas.snr_of(ds).values
    for kernel, line in KERNELS.items():
        table = xr.concat([dial.half_of(ds, level, snr, kernel) for snr in snrs], "x")
        plot.band(ax, snrs, table, kernel, color=NEUTRAL, ls=line)
    ax.plot(snrs, [dial.law_half(ds, level, snr) for snr in snrs], label=LAW, **plot.law_look())
    ax.set(xscale="log", xlabel="SNR", ylabel="p of half the gap", ylim=(0, 1))
    ax.set_xticks(snrs, [f"{snr:.2g}" for snr in snrs])
    ax.minorticks_off()


def main_dial(inputs):
    """The figure of |g|^p sgn g: errors in both settings, test loss, and where half of the gap is lost."""
    fig, axes = plt.subplots(2, 2, figsize=(plot.WIDE, 4.9))
    overlap, limit = inputs["power", "overlap"], inputs["power", "limit"]
    along_p(axes[0, 0], overlap, 0.1, "test_error", law=True)
    along_p(axes[0, 1], limit, 0.1, "test_error", law=True)
    along_p(axes[1, 0], overlap, 0.1, "test_loss")
    halves(axes[1, 1], overlap)
    for ax in axes[0]:
        ax.set(ylabel="test error", ylim=(-0.01, 0.52))
    axes[1, 0].set(ylabel="test loss", ylim=(0, None))
    snrs = atlas.snr_of(overlap).values
    shades = [(f"SNR {snr:.2g}", {"color": c}) for snr, c in zip(snrs, plot.shades(len(snrs)))]
    names(fig, [*shades, *kernel_names()], 4)
    titles = ("error, d = 2000", r"error, $d\to\infty$", "test loss, d = 2000", "half of the gap, d = 2000")
    plot.letter_panels(axes.flat, titles)
    plot.small_print(fig, f"training loss .1; medians and 5-95 % of {overlap.sizes['seed']} seeds")
    return fig


def other_dial(ax, inputs, kind, family, word):
    """The error at loss .1 over an optimizer's keyword, in both settings."""
    for place, snr in SHOWN.items():
        if (kind, place) not in inputs:
            continue
        ds = inputs[kind, place]
        here = dial.nearest_snr(ds, snr)
        values = sorted(numbers_of(ds, word)[optimizers_of(ds, family)])
        for kernel, line in KERNELS.items():
            errors = [dial.reading(ds, family, 0.1, here, kernel=kernel, **{word: v}) for v in values]
            errors = xr.concat([one.reset_coords(drop=True) for one in errors], "x")
            plot.band(ax, values, errors, f"{PLACES[place]}, {kernel}", color=PLACE_COLOURS[place], ls=line)
        law = [dial.law(ds, 0.1, here, rule=functools.partial(RULES[family], scale=v)) for v in values]
        ax.plot(values, law, label=LAW, **plot.law_look())
    ax.set(xscale="log", xlim=(5e-6, 0.2), ylabel="test error", ylim=(-0.01, 0.5))


def batches(ax, inputs, power):
    """The error at loss .1 against the batch size, at one end of the dial."""
    for place, snr in SHOWN.items():
        if ("batch", place) not in inputs:
            continue
        ds, full = inputs["batch", place], inputs["power", place]
        sizes, n = ds["batch_size"].values.tolist(), int(dial.problem_of(full.isel(kernel=0, mu=0))[0].n)
        cells = [*((ds, {"batch_size": b}) for b in sizes), (full.sel(seed=full["seed"].isin(ds["seed"])), {})]
        for kernel, line in KERNELS.items():
            errors = [
                dial.reading(runs, "power", 0.1, dial.nearest_snr(runs, snr), kernel=kernel, p=power, **at)
                for runs, at in cells
            ]
            errors = xr.concat([one.reset_coords(drop=True) for one in errors], "x")
            label = f"{PLACES[place]}, {kernel}"
            plot.band(ax, [*sizes, n], errors, label, color=PLACE_COLOURS[place], ls=line)
        law = [dial.law(runs, 0.1, dial.nearest_snr(runs, snr), power, **at) for runs, at in cells]
        ax.plot([*sizes, n], law, label=LAW, **plot.law_look())
        ax.set_xscale("log")
        ax.set_xticks([*sizes, n], [str(b) for b in (*sizes, n)])
    ax.minorticks_off()
    ax.set(xlabel="batch size", ylabel="test error", ylim=(-0.01, 0.5))


def other_dials(inputs):
    """The figure of the scales of a smooth sign and of Adam, and of mini-batches."""
    fig, axes = plt.subplots(2, 2, figsize=(plot.WIDE, 4.9))
    other_dial(axes[0, 0], inputs, "smooth", "smooth", "temperature")
    axes[0, 0].set_xlabel(r"$\tau$ of tanh$(g/\tau)$")
    other_dial(axes[0, 1], inputs, "smooth", "adam", "eps")
    axes[0, 1].set_xlabel(r"Adam's $\epsilon$")
    batches(axes[1, 0], inputs, 0.0)
    batches(axes[1, 1], inputs, 1.0)
    names(fig, [*place_names(), *kernel_names()], 5)
    plot.letter_panels(axes.flat, ("smooth sign", "Adam", "mini-batches, SignGD", "mini-batches, GD"))
    plot.small_print(fig, "training loss .1; medians and 5-95 % of 8 seeds")
    return fig


def shares(ax, inputs):
    """What attention adds to the error along p, at both losses."""
    for place, snr in SHOWN.items():
        ds = inputs["power", place]
        for level, line in LEVELS.items():
            softmax, uniform = (dial.curve(ds, level, dial.nearest_snr(ds, snr), kernel) for kernel in KERNELS)
            label = f"{PLACES[place]}, SNR {snr:.2g}, loss {level:g}"
            plot.band(ax, softmax["p"], softmax - uniform, label, color=PLACE_COLOURS[place], ls=line)
    ax.set(xlabel=POWER, ylabel="error, softmax $-$ uniform")


def points(ax, inputs):
    """The error at loss .1 of optimizers with a memory or a norm, between SignGD's and GD's."""
    rows = [
        ("SignGD", "memory", "signum", {"beta": 0.0}), (r"Signum, $\beta=.9$", "memory", "signum", {"beta": 0.9}),
        (r"Signum, $\beta=.99$", "memory", "signum", {"beta": 0.99}),
        ("RMSprop, .9", "memory", "rmsprop", {"decay": 0.9}), ("RMSprop, .99", "memory", "rmsprop", {"decay": 0.99}),
        ("norm of tensor", "norm", "tensor_gd", {}), ("norm of row", "norm", "row_gd", {}),
        ("Muon", "norm", "muon", {}), ("GD", "power", "power", {"p": 1.0}),
    ]  # fmt: skip
    for place, snr in SHOWN.items():
        for kernel, mark in KERNEL_MARKERS.items():
            means = {}
            for row, (_, kind, family, point) in enumerate(rows):
                if (kind, place) in inputs:
                    ds = inputs[kind, place]
                    values = dial.reading(ds, family, 0.1, dial.nearest_snr(ds, snr), kernel=kernel, **point)
                    means[row] = float(values.mean())
            label = f"{PLACES[place]}, {kernel}"
            look = {"ls": "none", "marker": mark, "ms": 4, "color": PLACE_COLOURS[place]}
            ax.plot(list(means.values()), list(means), label=label, **look)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.invert_yaxis()
    ax.set(xlabel="test error", ylabel="optimizer", xlim=(-0.02, 0.5))


def attention(inputs):
    """The figure of attention's share along p, and of memory and norms."""
    fig, axes = plt.subplots(1, 2, figsize=(plot.WIDE, 3.0))
    shares(axes[0], inputs)
    points(axes[1], inputs)
    losses = [(f"(a) loss {level:g}", {"ls": line}) for level, line in LEVELS.items()]
    marks = [(f"(b) {kernel}", {"ls": "", "marker": mark}) for kernel, mark in KERNEL_MARKERS.items()]
    names(fig, [*place_names(), *losses, *marks], 3)
    plot.letter_panels(axes, ("attention's share", "memory and norms, loss .1"))
    plot.small_print(fig, "(a) medians and 5-95 % of 16 seeds; (b) means of 8 seeds, of GD 16")
    return fig


def draw(entries):
    inputs = {tuple(name.rsplit("_", 1)): ds for name, ds in entries.items()}
    return {
        "atlas_dial": main_dial(inputs), "atlas_dial_rules": other_dials(inputs),
        "atlas_dial_attention": attention(inputs),
    }  # fmt: skip


main = plot.figure_script(draw, __doc__, reads="atlas_dial/*")

if __name__ == "__main__":
    main()

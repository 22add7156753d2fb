"""Test error at equal training loss along the dials between SignGD and GD; attention's share, and where the gap goes.

Reads DIR/atlas_dial (sweeps/atlas_dial.py).
Command: python figures/atlas_dial.py --results results --out results/figures
"""

import functools

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.runs import numbers_of, optimizers_of
from jaxsign.claims import dial

#: One colour an SNR, dark to light.
COLOURS = ("#00204D", "#414D6B", "#7C7B78", "#B9A94B", "#E8C400")
LINES = {"softmax": "-", "uniform": "--"}
#: What overlap and initial noise leave to see: the SNR that the panels of other dials show in each setting.
SHOWN = {"overlap": dial.OWN, "limit": 0.04}
PLACES = {"overlap": "d = 2000", "limit": r"$d\to\infty$"}
#: Rules u(g) with a scale; Adam's holds while its gradients keep their size.
RULES = {"smooth": lambda g, scale: np.tanh(g / scale), "adam": lambda g, scale: g / (g + scale)}
PLACE_COLOURS = {"overlap": "#0072B2", "limit": "#D55E00"}


def along_p(ax, ds, level, name, law=False):
    """An observable over p, one colour an SNR, softmax solid and uniform dashed, the law as dots."""
    for i, snr in enumerate(dial.snr_of(ds)):
        colour = COLOURS[i * (len(COLOURS) - 1) // max(ds.sizes["mu"] - 1, 1)]
        for kernel, line in LINES.items():
            values = dial.curve(ds, level, snr, kernel, name)
            label = f"SNR {snr:.2g}" if kernel == "softmax" else None
            plot.band(ax, values["p"], values.transpose("seed", "p"), label, color=colour, ls=line)
        if law:
            points = np.linspace(0, 1, 11)
            ax.plot(
                points, [dial.law(ds, level, snr, p) for p in points], ls="none", marker="o", ms=2.2, color=colour,
                label="law, uniform" if i == 0 else None,
            )  # fmt: skip
    ax.set(xlabel="p of $|g|^p$ sgn g", xlim=(-0.02, 1.02))


def shares(ax, ds, level, snr, place):
    """What attention adds to the error along p."""
    gap = dial.curve(ds, level, snr, "softmax") - dial.curve(ds, level, snr, "uniform")
    label = f"{PLACES[place]}, SNR {snr:.2g}, loss {level:g}"
    plot.band(
        ax, gap["p"], gap.transpose("seed", "p"), label, color=PLACE_COLOURS[place], ls="-" if level == 0.1 else ":"
    )


def halves(ax, ds, level=0.1):
    """The p at which half of the gap is lost, over the SNR."""
    snrs = dial.snr_of(ds)
    ax.plot(snrs, [dial.law_half(ds, level, snr) for snr in snrs], "k:", marker="o", ms=2.5, label="law, uniform")
    for kernel, line in LINES.items():
        table = np.stack([dial.half_of(ds, level, snr, kernel).values for snr in snrs])
        middle, spread = np.nanmean(table, 1), np.nanstd(table, 1) / np.sqrt(table.shape[1])
        ax.errorbar(snrs, middle, 2 * spread, color="#0072B2", ls=line, capsize=2, label=f"{kernel}, mean")
    ax.set(xscale="log", xlabel="SNR", ylabel="p of half the gap", ylim=(0, 1))
    ax.set_xticks(snrs, [f"{snr:.2g}" for snr in snrs])
    ax.minorticks_off()


def other_dial(ax, inputs, kind, family, word):
    """The error at loss .1 over an optimizer's keyword, in both settings."""
    for place, snr in shown(inputs, kind):
        ds = inputs[kind, place]
        values = sorted(numbers_of(ds, word)[optimizers_of(ds, family)])
        for kernel, line in LINES.items():
            means = [
                float(dial.reading(ds, family, 0.1, nearest(ds, snr), kernel=kernel, **{word: v}).mean())
                for v in values
            ]
            ax.plot(values, means, color=PLACE_COLOURS[place], ls=line, marker="o", ms=2, label=f"{place}, {kernel}")
        law = [dial.law(ds, 0.1, nearest(ds, snr), rule=functools.partial(RULES[family], scale=v)) for v in values]
        ax.plot(values, law, "x", ms=4, color=PLACE_COLOURS[place], label=f"{place}, law")
    ax.set(xscale="log", xlim=(2e-6, None))


def shown(inputs, kind):
    """(setting, its SNR) of the settings that an entry was run in."""
    return [(place, snr) for place, snr in SHOWN.items() if (kind, place) in inputs]


def nearest(ds, snr):
    """The Dataset's SNR nearest to one."""
    snrs = dial.snr_of(ds)
    return float(snrs[np.argmin(abs(np.log(snrs / snr)))])


def batches(ax, inputs):
    """The error at loss .1 against the batch size, SignGD and GD, with the law."""
    for place, snr in shown(inputs, "batch"):
        ds, full = inputs["batch", place], inputs["power", place]
        sizes = [*ds["batch_size"].values.tolist(), int(dial.problem_of(full.isel(kernel=0, mu=0))[0].n)]
        for power, mark in ((0.0, "o"), (1.0, "^")):
            for kernel, line in LINES.items():
                where = {"level": 0.1, "kernel": kernel, "p": power}
                means = [
                    float(dial.reading(ds, "power", snr=nearest(ds, snr), batch_size=b, **where).mean())
                    for b in sizes[:-1]
                ]
                means.append(float(dial.reading(full, "power", snr=nearest(full, snr), **where).mean()))
                ax.plot(sizes, means, color=PLACE_COLOURS[place], ls=line, marker=mark, ms=3)
            law = [dial.law(ds, 0.1, nearest(ds, snr), power, batch_size=b) for b in sizes[:-1]]
            ax.plot([b * 1.1 for b in sizes[:-1]], law, "x", ms=4, color=PLACE_COLOURS[place])
    ax.set(xscale="log", xlabel="batch size (o p=0, ^ p=1, x law)")
    ax.set_xticks([1, 5, 20], ["1", "5", "20"])
    ax.minorticks_off()


def points(ax, inputs):
    """The error at loss .1 of optimizers with a memory or a norm, between SignGD's and GD's."""
    rows = [
        ("SignGD", "memory", "signum", {"beta": 0.0}), (r"Signum $\beta=.9$", "memory", "signum", {"beta": 0.9}),
        (r"Signum $\beta=.99$", "memory", "signum", {"beta": 0.99}),
        ("RMSprop .9", "memory", "rmsprop", {"decay": 0.9}), ("RMSprop .99", "memory", "rmsprop", {"decay": 0.99}),
        ("norm of tensor", "norm", "tensor_gd", {}), ("norm of row", "norm", "row_gd", {}),
        ("Muon", "norm", "muon", {}), ("GD", "power", "power", {"p": 1.0}),
    ]  # fmt: skip
    for place, snr in SHOWN.items():
        for kernel, face in (("softmax", PLACE_COLOURS[place]), ("uniform", "w")):
            means = {}
            for row, (_, kind, family, point) in enumerate(rows):
                if (kind, place) in inputs:
                    ds = inputs[kind, place]
                    values = dial.reading(ds, family, 0.1, nearest(ds, snr), kernel=kernel, **point)
                    means[row] = float(values.mean())
            ax.plot(
                list(means.values()),
                list(means),
                "o",
                ms=3.5,
                color=PLACE_COLOURS[place],
                mfc=face,
                label=f"{place}, {kernel}",
            )
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.invert_yaxis()
    ax.set(xlabel="test error, loss .1")


def draw(entries):
    inputs = {tuple(name.rsplit("_", 1)): ds for name, ds in entries.items()}
    fig, axes = plt.subplots(3, 3, figsize=(7.2, 7.0))
    overlap, limit = inputs["power", "overlap"], inputs["power", "limit"]
    along_p(axes[0, 0], overlap, 0.1, "test_error", law=True)
    along_p(axes[0, 1], limit, 0.1, "test_error", law=True)
    along_p(axes[0, 2], overlap, 0.1, "test_loss")
    axes[0, 0].set_ylabel("test error")
    axes[0, 1].set_ylabel("test error")
    axes[0, 2].set(ylabel="test loss", ylim=(0, None))
    axes[0, 2].legend(fontsize=7, handlelength=1.2, loc="lower left")
    for words, look in (
        ("softmax", {"ls": "-"}),
        ("uniform", {"ls": "--"}),
        ("law, uniform", {"ls": "", "marker": "o"}),
    ):
        axes[0, 1].plot([], [], color="k", ms=2.2, label=words, **look)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    axes[0, 1].legend(handles[-3:], labels[-3:], fontsize=7, ncols=2, loc="upper right")
    axes[0, 1].set_ylim(None, 0.62)
    for place, ds in (("overlap", overlap), ("limit", limit)):
        for level in (0.1, 0.01):
            shares(axes[1, 0], ds, level, nearest(ds, SHOWN[place]), place)
    axes[1, 0].set(xlabel="p of $|g|^p$ sgn g", ylabel="error, softmax - uniform")
    axes[1, 0].set_ylim(None, 0.24)
    axes[1, 0].legend(fontsize=7, handlelength=1.2, loc="upper left")
    halves(axes[1, 1], overlap)
    axes[1, 1].legend(fontsize=7)
    other_dial(axes[1, 2], inputs, "smooth", "smooth", "temperature")
    axes[1, 2].set(xlabel=r"$\tau$ of tanh$(g/\tau)$", ylabel="test error, loss .1")
    other_dial(axes[2, 0], inputs, "smooth", "adam", "eps")
    axes[2, 0].set(xlabel=r"Adam's $\epsilon$", ylabel="test error, loss .1")
    if axes[2, 0].lines:
        axes[2, 0].legend(fontsize=7, handlelength=1.5)
    batches(axes[2, 1], inputs)
    axes[2, 1].set_ylabel("test error, loss .1")
    points(axes[2, 2], inputs)
    titles = (
        "d = 2000, loss .1", "no overlap, loss .1", "d = 2000, loss .1", "attention's share",
        "half of the gap, loss .1", "smooth sign", "Adam", "mini-batches", "memory and norms",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles, fontsize=8)
    return fig


main = plot.figure_script(draw, __doc__, reads="atlas_dial/*")

if __name__ == "__main__":
    main()

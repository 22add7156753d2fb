"""Kernel attention: what W_V fits, softmax against Gaussian over init scale and constant, retrieval; and landscapes.

Reads DIR/kernels (sweeps/kernels.py). Draws `kernels` and `kernels_landscapes`, the loss on planes through solutions.
Command: python figures/kernels.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from jaxsign import plot
from jaxsign.analysis.runs import best_rate, manifest
from jaxsign.plot.checks import FRAME

NAMES = {"softmax": "softmax", "gaussian": "Gaussian", "linear": "linear"}
MARKERS = {"softmax": "o", "gaussian": "s", "linear": "^"}
CONSTANT_STYLES = ("-", ":", "-.")
#: Where a loss of 0 is drawn on a logarithmic axis.
FLOOR = 1e-7


def best_end(ds):
    """The end of training at each seed's own best learning rate, dims (axes, seed, ...)."""
    end = ds.isel(step=-1)
    end = end.where(end["status"] == 0)
    return best_rate(end, by=end["train_ratio"])


def fitted(ax, ds):
    """Training W_V alone: the exact least loss and where gradient descent ends, against the width, by kernel."""
    end, exact = best_end(ds), ds["best_ratio"].isel(step=0, optimizer=0)
    places = np.arange(ds.sizes["embed"])
    for shift, kernel in zip((-0.12, 0.12), ds["kernel"].values):
        for values, mark, label in ((exact, "o", "exact optimum"), (end["train_ratio"], "^", "gradient descent")):
            low, middle, high = np.nanquantile(values.sel(kernel=kernel).transpose("seed", ...), [0.05, 0.5, 0.95], 0)
            drawn = np.maximum([middle, low, high], FLOOR)
            look = {"color": plot.KERNELS[kernel], "marker": mark, "fillstyle": "none" if mark == "^" else "full"}
            plot.dots(ax, places + shift, *drawn, f"{NAMES[kernel]}, {label}", **look)
            floored = places[middle <= FLOOR] + shift
            ax.plot(floored, np.full(floored.size, FLOOR / 3), ls="none", marker="$\u2193$", color=plot.NEUTRAL, ms=5)
    rows = manifest(ds)["definition"]["problem"]
    rows = rows["samples"] * rows["tokens"]
    sizes = list(zip(ds["embed"].values, ds["d_out"].values))
    ax.set_xticks(places, [f"{e}\n{o}" for e, o in sizes])
    ax.set_xlabel("$HD$ (above) and $d_{out}$ (below)")
    ax.set(yscale="log", ylim=(FLOOR / 10, 10), ylabel="training loss / zero output")
    plot.level_line(ax, 1)
    plot.style_key(ax, "0: below the axis", ls="none", marker="$\u2193$", ms=5)


def regimes(ax, ds, d):
    """Training W_Q alone: where it ends against g sqrt(c), which is all that scale and constant matter by."""
    end = best_end(ds.sel(d=d))["train_ratio"]
    for kernel in ds["kernel"].values:
        for style, c in zip(CONSTANT_STYLES, ds["c_scale"].values):
            values = end.sel(kernel=kernel, c_scale=c).transpose("seed", "init_scale")
            look = {"color": plot.KERNELS[kernel], "linestyle": style, "marker": MARKERS[kernel], "ms": 2.5}
            x = ds["init_scale"] * np.sqrt(c)
            if c == 1:
                plot.band(ax, x, values, NAMES[kernel], **look)
            else:  # one law for all three: their bands would lie on each other
                ax.plot(x, values.median("seed"), **look)
    plot.level_line(ax, 1)
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(0.002, 8),
        xlabel=r"init scale $g\,\sqrt{c\,/\,c_0}$",
        ylabel="training loss / zero output",
    )
    ax.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    ax.minorticks_off()


def landscapes(axes, ds, seed=0):
    """The loss in W_Q on a plane through the solution of two-stage training, one panel a kernel, one colour scale."""
    end = best_end(ds)
    one = [end.sel(kernel=kernel, seed=seed) for kernel in ds["kernel"].values]
    low, high = (float(f(e["landscape"].values)) for f, e in ((min_positive, one[0]), (np.nanmax, one[0])))
    for e in one[1:]:
        low, high = min(low, min_positive(e["landscape"].values)), max(high, float(np.nanmax(e["landscape"].values)))
    for ax, e, kernel in zip(axes, one, ds["kernel"].values):
        table = e["landscape"].transpose("first", "second").values
        side = np.linspace(-1, 1, table.shape[0])
        image = ax.pcolormesh(side, side, table.T, norm=LogNorm(low, high), cmap="cividis", rasterized=True)
        ax.contour(side, side, table.T, levels=np.geomspace(low, high, 12), colors="white", linewidths=0.3)
        ax.plot([0], [0], "+", color="white", ms=5, gid=FRAME)
        values = [float(end.sel(kernel=kernel)[n].median("seed")) for n in ("roughness", "mean_curvature")]
        ax.set_title(f"{NAMES[kernel]}: roughness {values[0]:.3f},\ncurvature {values[1]:.4f}")
        ax.set(xlabel=r"$a$ / $\Vert W_Q\Vert$", ylabel=r"$b$ / $\Vert W_Q\Vert$", aspect="equal")
        plot.keep_map(ax, [f"a={a:g}" for a in side], side, table)
    axes[-1].figure.colorbar(image, ax=axes[-1], label="training loss", pad=0.02, shrink=0.65)


def min_positive(values):
    """The smallest positive number: what a logarithmic colour scale may begin with."""
    return float(np.min(values[values > 0]))


def retrieved(ax, ds, count):
    """The learned task with `count` samples: training loss over steps and loss on fresh samples, at the best rate."""
    finished = ds.where(ds["status"] == 0)
    best = best_rate(finished, by=finished["train_ratio"].isel(step=-1, drop=True))
    for kernel in ds["kernel"].values:
        one = best.sel(kernel=kernel, samples=count).transpose("seed", "step", ...)
        look = {"color": plot.KERNELS[kernel], "marker": MARKERS[kernel]}
        plot.band(ax, ds["step"], one["train_ratio"], NAMES[kernel], **look, ms=2.5, markevery=0.25)
        fresh = one["test_ratio"].dropna("step", how="all")
        low, middle, high = np.nanquantile(fresh, [0.05, 0.5, 0.95], 0)
        plot.dots(ax, fresh["step"], middle, low, high, color=plot.KERNELS[kernel], marker="X", ms=4)
    plot.level_line(ax, 1)
    ax.set(yscale="log", ylim=(1e-7, 30), xlabel="step t", ylabel="loss / zero output")


def draw_losses(value, query, learned):
    """What W_V fits, regimes of W_Q, and retrieval."""
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.9))
    fitted(axes[0, 0], value)
    dims = query["d"].values[0], query["d"].values[-1]
    for ax, d in zip(axes[0, 1:], dims):
        regimes(ax, query, d)
    counts = learned["samples"].values[::-1]
    for ax, count in zip(axes[1], counts):
        retrieved(ax, learned, count)
    for ax in axes[1, len(counts) :]:
        ax.set_axis_off()
    sizes = manifest(value)["definition"]["problem"]
    titles = (
        f"$W_V$ alone, $Nn={sizes['samples'] * sizes['tokens']}$", *(f"$W_Q$ alone, $d={d}$" for d in dims),
        *(f"retrieval, $N={count}$" for count in counts),
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles)
    for style, c in zip(CONSTANT_STYLES, query["c_scale"].values):
        plot.style_key(axes[0, 1], f"$c={c:g}\\,c_0$", ls=style)
    plot.style_key(axes[0, 1], "on fresh samples", ls="none", marker="X", ms=4)
    plot.key(fig, ncols=1, at=axes[1, 2])
    seeds = {name: ds.sizes["seed"] for name, ds in (("W_V", value), ("W_Q", query), ("retrieval", learned))}
    p, r = (manifest(ds)["definition"]["problem"] for ds in (query, learned))
    text = (
        f"median and 5-95 % over seeds ({', '.join(f'{name} {n}' for name, n in seeds.items())}), each at its best "
        f"learning rate · reconstructed: N={p['samples']} n={p['tokens']} D={p['embed']} H={p['heads']}, a: d=4, "
        f"targets N(0, .25), c0 = 1/(2 sqrt d) · retrieval: n={r['tokens']} D={r['embed']} d={r['d']}"
    )
    plot.small_print(fig, text)
    return fig


def draw(value, query, stages, learned):
    fig, axes = plt.subplots(1, stages.sizes["kernel"], figsize=(plot.WIDE, 3.1))
    landscapes(axes, stages)
    problem = manifest(stages)["definition"]["problem"]
    text = (
        f"D={problem['embed']}, W_V for {int(stages['step'][-1]) // 3} steps, then W_Q; two random orthonormal "
        f"directions of W_Q, seed 0; numbers: medians of {stages.sizes['seed']} seeds · cross: the solution"
    )
    plot.small_print(fig, text)
    return {"kernels": draw_losses(value, query, learned), "kernels_landscapes": fig}


main = plot.figure_script(
    draw, __doc__, reads=("kernels/value", "kernels/query", "kernels/two_stage", "kernels/retrieval")
)

if __name__ == "__main__":
    main()

"""Kernel attention: what W_V fits, softmax against Gaussian over init scale and constant, landscapes, retrieval.

Reads DIR/kernels (sweeps/kernels.py). Command: python figures/kernels.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from jaxsign import plot
from jaxsign.analysis.runs import best_rate, manifest

NAMES = {"softmax": "softmax", "gaussian": "Gaussian", "linear": "linear"}
COLOURS = {"softmax": "#0072B2", "gaussian": "#D55E00", "linear": "#009E73"}
MARKERS = {"softmax": "o", "gaussian": "s", "linear": "^"}
CONSTANT_STYLES = ("-", "--", ":")
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
            drawn = np.maximum([low, middle, high], FLOOR)
            ax.errorbar(
                places + shift, drawn[1], (drawn[1] - drawn[0], drawn[2] - drawn[1]), fmt=mark, ms=3, lw=0.8,
                color=COLOURS[kernel], mfc=COLOURS[kernel] if mark == "o" else "white",
                label=f"{NAMES[kernel]}, {label}",
            )  # fmt: skip
    rows = manifest(ds)["definition"]["problem"]
    rows = rows["samples"] * rows["tokens"]
    sizes = list(zip(ds["embed"].values, ds["d_out"].values))
    ax.set_xticks(places, [f"{e}\n{o}" for e, o in sizes])
    ax.set_xlabel("$HD$ (above) and $d_{out}$ (below)")
    ax.set(yscale="log", ylim=(FLOOR / 3, 10), ylabel="training loss / zero output")
    ax.axhline(1, color="0.6", lw=0.5)
    ax.legend(loc="center", bbox_to_anchor=(0.5, 0.4), fontsize=5.5)
    ax.set_title(f"$W_V$ alone, $Nn={rows}$, $d=4$")


def regimes(ax, ds, d):
    """Training W_Q alone: where it ends against g sqrt(c), which is all that scale and constant matter by."""
    end = best_end(ds.sel(d=d))["train_ratio"]
    for kernel in ds["kernel"].values:
        for style, c in zip(CONSTANT_STYLES, ds["c_scale"].values):
            values = end.sel(kernel=kernel, c_scale=c).transpose("seed", "init_scale")
            look = {"color": COLOURS[kernel], "linestyle": style, "marker": MARKERS[kernel], "ms": 2.5}
            x, label = ds["init_scale"] * np.sqrt(c), f"{NAMES[kernel]}, $c={c:g}\\,c_0$"
            if c == 1:
                plot.band(ax, x, values, label, **look)
            else:  # one law for all three: their bands would lie on each other
                ax.plot(x, values.median("seed"), label=label, **look)
    ax.axhline(1, color="0.6", lw=0.5)
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(0.002, 8),
        xlabel=r"init scale $g\,\sqrt{c\,/\,c_0}$",
        ylabel="training loss / zero output",
    )
    ax.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    ax.minorticks_off()
    ax.set_title(f"$W_Q$ alone, $d={d}$")


def explain(ax, ds):
    """The legend of `regimes`: colours are kernels, line styles are constants."""
    for kernel in ds["kernel"].values:
        ax.plot([], [], color=COLOURS[kernel], marker=MARKERS[kernel], ms=2.5, ls="", label=NAMES[kernel])
    for style, c in zip(CONSTANT_STYLES, ds["c_scale"].values):
        ax.plot([], [], color="0.3", ls=style, label=f"$c={c:g}\\,c_0$")
    count = ds.sizes["kernel"] + ds.sizes["c_scale"]
    ax.legend(handles=ax.lines[-count:], fontsize=5.5, ncols=2, loc="lower left", columnspacing=1)


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
        ax.plot([0], [0], "+", color="white", ms=5)
        values = [float(end.sel(kernel=kernel)[n].median("seed")) for n in ("roughness", "mean_curvature")]
        ax.set_title(f"{NAMES[kernel]}: roughness {values[0]:.3f},\ncurvature {values[1]:.4f}")
        ax.set(xlabel=r"$a$ / $\Vert W_Q\Vert$", ylabel=r"$b$ / $\Vert W_Q\Vert$", aspect="equal")
        plot.keep_map(ax, [f"a={a:g}" for a in side], side, table)
    axes[-1].figure.colorbar(image, ax=axes[-1], label="training loss", pad=0.02)


def min_positive(values):
    """The smallest positive number: what a logarithmic colour scale may begin with."""
    return float(np.min(values[values > 0]))


def retrieved(ax, ds):
    """The learned task: training loss over steps, and the loss on fresh samples at the end, at the best rate."""
    finished = ds.where(ds["status"] == 0)
    best = best_rate(finished, by=finished["train_ratio"].isel(step=-1, drop=True))
    for kernel in ds["kernel"].values:
        for style, count in zip(("-", ":"), ds["samples"].values[::-1]):
            one = best.sel(kernel=kernel, samples=count).transpose("seed", "step", ...)
            label = f"{NAMES[kernel]}, N={count}"
            plot.band(ax, ds["step"], one["train_ratio"], label, color=COLOURS[kernel], ls=style)
            look = {"marker": MARKERS[kernel], "ls": "", "ms": 4, "mfc": COLOURS[kernel] if style == "-" else "white"}
            plot.band(ax, ds["step"], one["test_ratio"], None, color=COLOURS[kernel], **look)
    ax.plot([], [], "o", color="0.3", ms=4, label="fresh samples")
    ax.axhline(1, color="0.6", lw=0.5)
    ax.set(yscale="log", ylim=(1e-7, 30), xlabel="step t", ylabel="loss / zero output")
    ax.legend(fontsize=5.5, loc="lower left")
    ax.set_title("retrieval, all weights")


def draw(value, query, stages, learned):
    fig, axes = plt.subplots(2, 3, figsize=(7.5, 4.9))
    fitted(axes[0, 0], value)
    for ax, d in zip(axes[0, 1:], (query["d"].values[0], query["d"].values[-1])):
        regimes(ax, query, d)
    explain(axes[0, 1], query)
    landscapes(axes[1, :2], stages)
    retrieved(axes[1, 2], learned)
    sizes = {name: ds.sizes["seed"] for name, ds in (("W_V", value), ("W_Q", query), ("retrieval", learned))}
    p, q, r = (manifest(ds)["definition"]["problem"] for ds in (query, stages, learned))
    text = (
        f"median and 5-95 % over seeds ({', '.join(f'{name} {n}' for name, n in sizes.items())}), each at its best "
        f"learning rate · reconstructed: N={p['samples']} n={p['tokens']} D={p['embed']} H={p['heads']}, targets "
        f"N(0, .25), c0 = 1/(2 sqrt d) · landscapes: D={q['embed']}, W_V for {int(stages['step'][-1]) // 3} "
        f"steps, then W_Q; two random orthonormal directions of W_Q, seed 0; numbers: medians of "
        f"{stages.sizes['seed']} seeds · retrieval: n={r['tokens']} D={r['embed']} d={r['d']}"
    )
    plot.small_print(fig, text, 170)
    return fig


main = plot.figure_script(
    draw, __doc__, reads=("kernels/value", "kernels/query", "kernels/two_stage", "kernels/retrieval")
)

if __name__ == "__main__":
    main()

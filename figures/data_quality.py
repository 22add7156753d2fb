"""Data quality: test error over n x SNR, every optimizer's boundary, label and feature noise, dense and heavy tails.

Reads DIR/data_quality (sweeps/data_quality.py). Command: python figures/data_quality.py --results results --out
results/figures
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from jaxsign import plot, theory
from jaxsign.analysis.runs import manifest
from jaxsign.claims import data_quality as quality
from jaxsign.claims.dynamics import problem_of

FAMILIES = ("sign_gd", "adam", "gd")
#: From few training examples to many.
SHADES = ("#9ECAE1", "#6BAED6", "#2171B5", "#08306B")
LAWS = {"sign_gd": theory.sign_test_error, "gd": theory.gd_test_error}
SHORT = {"gaussian": "Gauss", "laplace": "Laplace", "student_t": "$t_3$"}


def over_snr(ax, ds, family):
    """Test error over the SNR, one line for every n, with the law of the optimizer, or of SignGD for Adam, dashed."""
    error = quality.error_of(ds, family)
    law = LAWS.get(family, theory.sign_test_error)
    grid = np.geomspace(float(ds["snr"].min()), float(ds["snr"].max()), 60)
    for i, colour in zip(range(ds.sizes["n"]), SHADES):
        n = int(ds["n"][i])
        plot.band(ax, ds["snr"], error.isel(n=i).transpose("seed", "snr"), f"n = {n}", color=colour)
        problem, hyper = problem_of(ds.isel(n=i, snr=0))
        mu = grid * hyper.sigma_p * problem.s**0.5
        ax.plot(grid, law(problem, mu, hyper.sigma_p), color=colour, lw=0.7, ls="--")
    ax.axhline(quality.ERROR, color="0.6", lw=0.5)
    ax.set(xscale="log", xlabel="SNR", ylim=(-0.01, 0.52))


def boundaries(ax, ds, frozen):
    """SNR* over n of every optimizer, that with attention frozen dotted and hollow, the laws dashed.

    Arrows: some seeds have it beyond the axis, and are drawn at the axis's end.
    """
    for family in FAMILIES:
        colour, marker = plot.COLOURS[family], plot.MARKERS[family]
        snr = quality.at_least(ds, family).transpose("seed", "n")
        plot.band(ax, ds["n"], snr, plot.NAMES[family], color=colour, marker=marker, ms=3)
        last = float(ds["snr"].max())
        for n in ds["n"].values[(snr == last).any("seed").values]:
            ax.annotate(
                "", (n, 1.6 * last), (n, last), annotation_clip=False, arrowprops={"arrowstyle": "->", "color": colour}
            )
        still = quality.at_least(frozen, family).median("seed")
        label = f"{plot.NAMES[family]}, attention frozen"
        ax.plot(frozen["n"], still, label=label, color=colour, marker=marker, ms=5, mfc="none", ls=":", lw=0.7)
        if family in LAWS:
            law = quality.law_boundary(ds, family)
            ax.plot(ds["n"], law, color=colour, lw=0.7, ls="--", label=f"law of {plot.NAMES[family]}")
    ax.set(xscale="log", yscale="log", xlabel="training examples n")
    ax.set_yticks([0.05, 0.1, 0.2, 0.5, 1.0], ["0.05", "0.1", "0.2", "0.5", "1"])
    _examples(ax, ds)


def to_laws(ax, ds, frozen):
    """SNR* of the mean error over that of the law, with its bootstrap interval; hollow with attention frozen."""
    for shift, family in zip((0.94, 1.0, 1.06), FAMILIES):
        for runs, fill, move in ((ds, None, 0.985), (frozen, "none", 1.015)):
            middle, low, high = quality.mean_boundary(runs, family) / quality.law_boundary(runs, family)
            x = runs["n"].values * shift * move
            (line,) = ax.plot(
                x, middle, plot.MARKERS[family], ms=3, mfc=fill, color=plot.COLOURS[family],
                label=f"{plot.NAMES[family]}{'' if fill is None else ', attention frozen'}",
            )  # fmt: skip
            ax.vlines(x, low, high, color=plot.COLOURS[family], lw=0.8)
            plot.keep_band(line, low, high)
    ax.axhline(1, color="0.25", lw=0.7, ls="--")
    ax.axhspan(*quality.FACTOR, color="0.92", lw=0, zorder=0)
    ax.set(xscale="log", xlabel="training examples n")
    _examples(ax, ds)


def _examples(ax, ds):
    ax.set_xticks(ds["n"].values, [str(n) for n in ds["n"].values])
    ax.minorticks_off()


def over(ax, runs, name, axis, laws=None, log=False, **point):
    """Test error over one axis: bands, the frozen control dotted, laws `family, value -> error` dashed."""
    for family in FAMILIES:
        colour = plot.COLOURS[family]
        for key, look in (
            (name, {}),
            (f"{name}_frozen", {"ls": ":", "marker": "o", "mfc": "none", "ms": 3, "lw": 0.7}),
        ):
            error = quality.error_of(runs[key], family).isel(point)
            x = error[axis].values if error[axis].dtype.kind in "if" else np.arange(error.sizes[axis])
            if look:
                ax.plot(x, error.median("seed"), color=colour, label=f"{plot.NAMES[family]}, frozen", **look)
            else:
                plot.band(
                    ax, x, error.transpose("seed", axis), plot.NAMES[family], color=colour, ls=plot.STYLES[family]
                )
        if laws and family in LAWS:
            values = [float(laws(family, i)) for i in range(error.sizes[axis])]
            ax.plot(x, values, color=colour, lw=0.7, ls="--", label=f"law of {plot.NAMES[family]}")
    ax.set(ylim=(-0.01, 0.56), **({"xscale": "log"} if log else {}))


def label_law(ds):
    """The laws with flipped labels: GD sums c_i, and loses the flipped ones twice; SignGD takes the sign of the sum."""

    def law(family, i):
        problem, hyper = problem_of(ds.isel(label_noise=i))
        kept = max(1 - 2 * hyper.label_noise, 0.0) ** 0.5 if family == "gd" else 1.0
        return LAWS[family](problem, hyper.mu * kept, hyper.sigma_p)

    return law


def feature_law(ds):
    """The laws with feature noise, which takes the share alpha off every signal: mu becomes (1 - alpha) mu."""

    def law(family, i):
        problem, hyper = problem_of(ds.isel(alpha=i))
        return LAWS[family](problem, hyper.mu * (1 - hyper.alpha), hyper.sigma_p)

    return law


def plain_law(ds, **point):
    """The laws at each value of the first axis."""

    def law(family, i):
        problem, hyper = problem_of(ds.isel({**point, ds["status"].dims[0]: i}))
        return LAWS[family](problem, hyper.mu, hyper.sigma_p)

    return law


def unreached(ds):
    """Runs of a Dataset that never get to the training loss that all are compared at."""
    return int(xr.concat([quality.error_of(ds, family) for family in FAMILIES], "family").isnull().sum())


def draw(runs):
    grid, frozen = runs["n_snr"], runs["n_snr_frozen"]
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 5.8))
    for ax, family in zip(axes[0], FAMILIES):
        over_snr(ax, grid, family)
    axes[0, 2].legend(fontsize=5.5, handlelength=1.3, loc="upper right", borderpad=0)
    axes[0, 0].set_ylabel("test error")
    boundaries(axes[1, 0], grid, frozen)
    axes[1, 0].set_ylabel("SNR*")
    to_laws(axes[1, 1], grid, frozen)
    over(axes[1, 2], runs, "label_noise", "label_noise", label_law(runs["label_noise"]))
    axes[1, 2].set_xlabel("flipped training labels")
    over(axes[2, 0], runs, "alpha", "alpha", feature_law(runs["alpha"]))
    axes[2, 0].set(xlabel=r"feature noise $\alpha$", ylabel="test error")
    over(axes[2, 1], runs, "dense", "s", plain_law(runs["dense"], mu=-1), log=True, mu=-1)
    axes[2, 1].set_xlabel("non-zero coordinates s")
    over(axes[2, 2], runs, "tails", "noise", plain_law(runs["tails"], snr=0), snr=0)
    axes[2, 2].set_xticks(range(runs["tails"].sizes["noise"]), [SHORT[str(n)] for n in runs["tails"]["noise"].values])
    axes[2, 2].set_xlabel("law of the noise")
    snrs = runs["tails"]["snr"].values
    titles = (
        "SignGD", "Adam", "GD", "SNR* where the error is .1", "SNR* / law", "label noise", "feature noise",
        f"dense noise, SNR {snrs[-1]:.2g}", f"heavy tails, SNR {snrs[0]:.2g}",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles, fontsize=7)
    lines = dict(zip(*reversed(axes[1, 0].get_legend_handles_labels())))
    names = sorted(lines, key=lambda name: name.startswith("law"))  # an optimizer, its control, ..., the laws
    fig.legend([lines[name] for name in names], names, loc="outside upper center", ncols=4, fontsize=6)
    sigma_p = manifest(grid)["definition"]["hyper"]["sigma_p"]
    lost = {name: unreached(ds) for name, ds in runs.items()}
    text = (
        f"all at training loss {quality.LOSS:g} · {grid.sizes['seed']} seeds, f, g, i and the control "
        f"{frozen.sizes['seed']}, h {runs['dense'].sizes['seed']} · paper-like (reconstructed): "
        f"{plot.sizes(grid, 'n', 'd', 's', 'm_k')}, SNR set through mu at sigma_p={sigma_p:g}; median and 5-95 % over "
        "seeds, arrows: beyond the axis for some, e: mean with 95 % bootstrap interval, shaded: a factor of 1.2 · f, "
        f"g, i: SNR {snrs[0]:.2g} · dashed: laws before attention moves; Adam is held against SignGD's · dotted, "
        f"hollow: attention frozen at 1/2 · left out, without a reading there: {lost.pop('label_noise')} runs "
        f"with label noise, {sum(lost.values())} others"
    )  # fmt: skip
    plot.small_print(fig, text, 130)
    return fig


main = plot.figure_script(draw, __doc__, reads="data_quality/*")

if __name__ == "__main__":
    main()

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
LAWS = {"sign_gd": theory.sign_test_error, "gd": theory.gd_test_error}
SHORT = {"gaussian": "Gauss", "laplace": "Laplace", "student_t": "$t_3$"}


def over_snr(ax, ds, family):
    """Test error over the SNR, one line for every n, with the law of the optimizer, or of SignGD for Adam, dashed."""
    error = quality.error_of(ds, family)
    law = LAWS.get(family, theory.sign_test_error)
    grid = np.geomspace(float(ds["snr"].min()), float(ds["snr"].max()), 60)
    for i, colour in enumerate(plot.shades(ds.sizes["n"])):
        n = int(ds["n"][i])
        marker = {"marker": "ovPX"[i], "ms": 3}
        plot.band(ax, ds["snr"], error.isel(n=i).transpose("seed", "snr"), f"n = {n} (a-c)", color=colour, **marker)
        problem, hyper = problem_of(ds.isel(n=i, snr=0))
        mu = grid * hyper.sigma_p * problem.s**0.5
        look = {**plot.law_look(family), "lw": 0.5}
        ax.plot(grid, law(problem, mu, hyper.sigma_p), label=f"law of {plot.NAMES[law_of(family)]}", **look)
    plot.level_line(ax, quality.ERROR)
    ax.set(xscale="log", xlabel="SNR", ylim=(-0.01, 0.52), ylabel="test error")


def law_of(family):
    """The optimizer whose law an optimizer is held against: Adam against SignGD's."""
    return family if family in LAWS else "sign_gd"


def dotted(ax, x, values, family):
    """The median with attention frozen."""
    ax.plot(x, values, color=plot.COLOURS[family], marker=plot.MARKERS[family], ms=4, fillstyle="none", ls=":", lw=0.7)


def boundaries(ax, ds, frozen):
    """SNR* over n of every optimizer, that with attention frozen dotted and hollow, the laws dashed.

    An arrow at the largest SNR says that half of the seeds or more have it beyond.
    """
    for family in FAMILIES:
        colour, marker = plot.COLOURS[family], plot.MARKERS[family]
        snr = quality.at_least(ds, family).transpose("seed", "n")
        last = float(ds["snr"].max())
        inside = snr.median("seed") < last
        plot.band(ax, ds["n"], snr.where(inside), plot.NAMES[family], color=colour, marker=marker, ms=3)
        beyond = ds["n"].values[~inside.values]
        ax.plot(beyond, np.full(beyond.size, last), color=colour, marker="$\u2191$", ms=6, ls="none")
        dotted(ax, frozen["n"], quality.at_least(frozen, family).median("seed"), family)
        if family in LAWS:
            law = quality.law_boundary(ds, family)
            ax.plot(ds["n"], law, label=f"law of {plot.NAMES[family]}", **plot.law_look(family))
    ax.set(xscale="log", yscale="log", xlabel="training examples n", ylabel="SNR* at error .1")
    ax.set_yticks([0.05, 0.1, 0.2, 0.5, 1.0], ["0.05", "0.1", "0.2", "0.5", "1"])
    _examples(ax, ds)


def to_laws(ax, ds, frozen):
    """SNR* of the mean error over that of the law, with its bootstrap interval; hollow with attention frozen."""
    for shift, family in zip((0.94, 1.0, 1.06), FAMILIES):
        for runs, fill, move in ((ds, None, 0.985), (frozen, "none", 1.015)):
            middle, low, high = quality.mean_boundary(runs, family) / quality.law_boundary(runs, family)
            x = runs["n"].values * shift * move
            look = {"marker": plot.MARKERS[family], "mfc": fill, "color": plot.COLOURS[family]}
            plot.dots(ax, x, middle, low, high, **look)
    plot.level_line(ax, 1)
    ax.axhspan(*quality.FACTOR, color="0.92", lw=0, zorder=0, label="a factor of 1.2 (e)")
    ax.set(xscale="log", xlabel="training examples n", ylabel="SNR* / law")
    _examples(ax, ds)


def _examples(ax, ds):
    ax.set_xticks(ds["n"].values, [str(n) for n in ds["n"].values])
    ax.minorticks_off()


def over(ax, runs, name, axis, laws=None, log=False, **point):
    """Test error over one axis: bands, the frozen control dotted, laws `family, value -> error` dashed."""
    for family in FAMILIES:
        for key in (name, f"{name}_frozen"):
            error = quality.error_of(runs[key], family).isel(point)
            x = error[axis].values if error[axis].dtype.kind in "if" else np.arange(error.sizes[axis])
            if key != name:
                dotted(ax, x, error.median("seed"), family)
            else:
                look = {"color": plot.COLOURS[family], "marker": plot.MARKERS[family], "ms": 3}
                plot.band(ax, x, error.transpose("seed", axis), plot.NAMES[family], **look)
        if laws and family in LAWS:
            values = [float(laws(family, i)) for i in range(error.sizes[axis])]
            ax.plot(x, values, label=f"law of {plot.NAMES[family]}", **plot.law_look(family))
    ax.set(ylim=(-0.01, 0.56), ylabel="test error", **({"xscale": "log"} if log else {}))


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
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 6.8))
    for ax, family in zip(axes[0], FAMILIES):
        over_snr(ax, grid, family)
    boundaries(axes[1, 0], grid, frozen)
    to_laws(axes[1, 1], grid, frozen)
    over(axes[1, 2], runs, "label_noise", "label_noise", label_law(runs["label_noise"]))
    axes[1, 2].set_xlabel("flipped training labels")
    over(axes[2, 0], runs, "alpha", "alpha", feature_law(runs["alpha"]))
    axes[2, 0].set_xlabel(r"feature noise $\alpha$")
    over(axes[2, 1], runs, "dense", "s", plain_law(runs["dense"], mu=-1), log=True, mu=-1)
    axes[2, 1].set_xlabel("non-zero coordinates s")
    over(axes[2, 2], runs, "tails", "noise", plain_law(runs["tails"], snr=0), snr=0)
    axes[2, 2].set_xticks(range(runs["tails"].sizes["noise"]), [SHORT[str(n)] for n in runs["tails"]["noise"].values])
    axes[2, 2].set_xlabel("law of the noise")
    snrs = runs["tails"]["snr"].values
    titles = (
        "SignGD", "Adam", "GD", "boundary", "boundary / law", "label noise", "feature noise",
        f"dense, SNR {snrs[-1]:.2g}", f"tails, SNR {snrs[0]:.2g}",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles)
    plot.style_key(axes[1, 0], "attention frozen at 1/2", ls=":")
    plot.style_key(axes[1, 0], "beyond the largest SNR (d)", ls="none", marker="$\u2191$", ms=6)
    plot.key(fig, ncols=4)
    sigma_p = manifest(grid)["definition"]["hyper"]["sigma_p"]
    lost = {name: unreached(ds) for name, ds in runs.items()}
    text = (
        f"all at training loss {quality.LOSS:g} · {grid.sizes['seed']} seeds, f, g, i and the control "
        f"{frozen.sizes['seed']}, h {runs['dense'].sizes['seed']} · paper-like (reconstructed): "
        f"{plot.sizes(grid, 'n', 'd', 's', 'm_k')}, SNR set through mu at sigma_p={sigma_p:g}; median and 5-95 %, e: "
        f"mean with 95 % bootstrap interval · f, g, i: SNR {snrs[0]:.2g} · laws: before attention moves; Adam is held "
        f"against SignGD's · without a reading there: {lost.pop('label_noise')} runs with label noise, "
        f"{sum(lost.values())} others"
    )  # fmt: skip
    plot.small_print(fig, text)
    return fig


main = plot.figure_script(draw, __doc__, reads="data_quality/*")

if __name__ == "__main__":
    main()

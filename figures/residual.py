"""Residuals and the speed of gradient descent: loss, contraction, spectra; against depth, temperature and n/d.

Reads DIR/residual (sweeps/residual.py). Command: python figures/residual.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from jaxsign import plot
from jaxsign.analysis.runs import manifest
from jaxsign.claims.residual import ablated, best

#: (attention residual, FFN residual) of every variant, its name, colour and line style.
VARIANTS = {
    (1, 1): ("both residuals", plot.RESIDUALS["both"], "-"),
    (1, 0): ("attention residual only", plot.RESIDUALS["attention"], (0, (3, 1, 1, 1))),
    (0, 1): ("FFN residual only", plot.RESIDUALS["ffn"], "-"),
    (0, 0): ("no residual", plot.RESIDUALS["none"], ":"),
}
MARKS = {(1, 1): "o", (1, 0): "^", (0, 1): "s", (0, 0): "D"}


def look(variant):
    name, colour, line = VARIANTS[variant]
    return {
        "label": name, "color": colour, "linestyle": line, "marker": MARKS[variant], "ms": 3, "markevery": 0.25,
    }  # fmt: skip


def shrunk(runs):
    """Last loss over first at every seed's best learning rate."""
    loss = best(runs)["train_loss"]
    return loss.isel(step=-1) / loss.isel(step=0)


def losses(ax, ds):
    """Loss at the best learning rate, and with both residuals the predicted contraction, dashed."""
    for variant in VARIANTS:
        runs = best(ablated(ds, *variant))
        plot.band(
            ax, ds.step, (runs.train_loss / runs.train_loss.isel(step=0)).transpose("seed", "step"), **look(variant)
        )
    runs = best(ablated(ds, 1, 1))
    gap = np.diff(ds.step.values, prepend=0)
    rate = np.log1p(-runs.learning_rate * runs.feature_sigma_min.shift(step=1, fill_value=0.0) ** 2)
    law = np.exp((rate * xr.DataArray(gap, dims="step")).cumsum("step")).median("seed")
    ax.plot(ds.step, law, label=r"law $\prod(1-\eta\,\sigma_{\min}^2)$, both residuals", **plot.law_look())
    ax.set(yscale="log", xlabel="step t", ylim=(1e-20, 10), ylabel="L(t) / L(0)")


def contraction(ax, bound):
    """Decrease of every step at eta = 1e-5 over the bound's, for both residuals and every depth: never below 1."""
    for depth, colour in zip(bound.depth.values, plot.shades(bound.sizes["depth"])):
        runs = ablated(bound.sel(depth=depth), 1, 1).isel(step=slice(1, None))
        runs = runs.isel(optimizer=int(np.argmin(runs.learning_rate.values)))
        ratio = np.log(runs.contraction) / np.log1p(-runs.learning_rate * runs.sigma_before**2)
        plot.band(ax, runs.step, ratio.transpose("seed", "step"), f"depth {int(depth)} (b)", color=colour)
    ax.axhline(1, label="bound (b)", **{**plot.law_look(), "ls": "-."})
    ax.axhline(2, label="gradient flow (b)", **{**plot.law_look("gd"), "ls": "-."})
    ax.set(yscale="log", xlabel="step t", ylim=(0.5, None), ylabel="decrease / bound's")


def condition(ax, ds):
    """Condition number of H over time at the best learning rate."""
    for variant in VARIANTS:
        runs = best(ablated(ds, *variant))
        plot.band(ax, ds.step, runs.attention_condition.max("layer").transpose("seed", "step"), **look(variant))
    ax.set(yscale="log", xlabel="step t", ylabel=r"$\kappa(H)$")


def spectrum(ax, ds):
    """Singular values of H at the start, relative to the largest; at depth 1 only the attention residual matters."""
    for variant in ((1, 1), (0, 0)):
        values = ablated(ds, *variant).attention_singular_values.isel(optimizer=0, step=0, layer=0)
        values = (values / values.isel(index=0)).transpose("seed", "index")
        plot.band(ax, np.arange(1, values.sizes["index"] + 1), values, **look(variant))
    ax.set(yscale="log", xlabel="index i", ylabel=r"$\sigma_i/\sigma_1$ of $H$")


def against(ax, x, values, variant):
    """A number per seed over an axis: median and band with markers."""
    plot.band(ax, x, values, **{**look(variant), "markevery": None})


def footer(fig, one, bound, width):
    """Sizes, seeds and settings below the figure."""
    definition = manifest(one)["definition"]
    rates = ", ".join(f"{rate:g}" for rate in one.learning_rate.values)
    text = (
        f"{one.sizes['seed']} seeds at depth 1, {bound.sizes['seed']} in b, f, g and at other depths, "
        f"{width.sizes['seed']} in h, i; median and 5-95 % · reconstructed: "
        f"{plot.sizes(one, 'n', 'd', 'd_ff', 'd_out')}, depth 1 where not said · {definition['dtype']} · "
        f"GD, {int(one.step[-1])} steps, each seed's best learning rate of {rates}; b: 1e-5"
    )
    plot.small_print(fig, text)


def draw(depths, bound, temperature, width):
    depths = {int(name.removeprefix("depth_")): ds for name, ds in depths.items()}
    one = depths[1]
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 6.2))
    losses(axes[0, 0], one)
    contraction(axes[0, 1], bound)
    condition(axes[0, 2], one)
    spectrum(axes[1, 0], one)
    for variant in VARIANTS:
        final = xr.concat([shrunk(ablated(ds, *variant)) for ds in depths.values()], "depth", join="outer")
        against(axes[1, 1], list(depths), final.transpose("seed", "depth"), variant)
    for variant in ((1, 1), (0, 0)):
        hot, wide = ablated(temperature, *variant), ablated(width, *variant)
        start = {"optimizer": 0, "step": 0}
        kappa = hot.attention_condition.isel(**start, layer=0).transpose("seed", "temperature")
        against(axes[1, 2], hot.temperature, kappa, variant)
        against(axes[2, 0], hot.temperature, shrunk(hot).transpose("seed", "temperature"), variant)
        ratio = wide.n / manifest(wide)["definition"]["problem"]["d"]
        sigma = wide.feature_sigma_min.isel(**start).transpose("seed", "n")
        against(axes[2, 1], ratio, sigma, variant)
        against(axes[2, 2], ratio, shrunk(wide).transpose("seed", "n"), variant)
    titles = (
        "loss, depth 1", "contraction", "condition, depth 1", "spectrum, t = 0", "depth", "condition, t = 0",
        "temperature", "features, t = 0", "width",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles)
    axes[1, 1].set(yscale="log", xlabel="depth", xticks=list(depths), ylabel="last / first loss")
    for ax, label in ((axes[1, 2], r"$\kappa(H)$"), (axes[2, 0], "last / first loss")):
        ax.set(xscale="log", yscale="log", xlabel="temperature", ylabel=label)
    for ax, label in ((axes[2, 1], r"$\sigma_{\min}(Z)$"), (axes[2, 2], "last / first loss")):
        ax.set(yscale="log", xlabel="n/d", ylabel=label)
    plot.key(fig, ncols=3, axes=axes.flat[:2])
    footer(fig, one, bound, width)
    return fig


main = plot.figure_script(
    draw, __doc__, reads=("residual/depth_*", "residual/bound", "residual/temperature", "residual/width")
)

if __name__ == "__main__":
    main()

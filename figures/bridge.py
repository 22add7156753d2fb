"""The bridge: SignGD under other kernels and a residual path, curvature of the four optimizers, two other systems.

Reads DIR/bridge (sweeps/bridge.py). Command: python figures/bridge.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.equal_loss import levels_of
from jaxsign.analysis.runs import best_rate, family_runs, select
from jaxsign.claims.bridge import noise_share
from jaxsign.claims.residual import ablated

SHORT = {"softmax": "soft", "gaussian": "Gauss", "linear": "lin."}
PATHS = {"": "-", "_residual": ":"}
#: With fewer seeds than this every seed is drawn: quantiles would be single runs.
FEW = 8
FAMILIES = ("sign_gd", "signum", "adam", "gd")


def models(runs, preset):
    """(kernel, path, Dataset) of every model of the paper's system that was run with a preset."""
    for kernel in plot.KERNELS:
        for path in PATHS:
            if f"{preset}_{kernel}{path}" in runs:
                yield kernel, path, runs[f"{preset}_{kernel}{path}"]


def of_models(ax, runs, preset, measure, ylabel):
    """A number of SignGD's runs over steps for every model."""
    for kernel, path, ds in models(runs, preset):
        values = measure(select(ds, "sign_gd")).dropna("step", how="all")
        look = {"color": plot.KERNELS[kernel], "ls": PATHS[path]}
        plot.band(ax, values["step"], values.transpose("seed", "step"), None if path else f"{kernel} (a-c)", **look)
    ax.set(xlabel="step t", ylabel=ylabel)


def errors(ax, runs, preset):
    """Test error at training loss .1 of every model and optimizer."""
    places = []
    for place, (kernel, path, ds) in enumerate(models(runs, preset)):
        places.append(f"{SHORT[kernel]}{' + res.' if path else ''}")
        at = js.at_train_loss(ds, 0.1, ["test_error"], leaps=False)
        for shift, name in zip((-0.24, -0.08, 0.08, 0.24), FAMILIES):
            values = select(at, name)["test_error"].transpose("seed")
            if not bool(values.notnull().any()):  # no run gets to that loss
                continue
            low, middle, high = np.nanquantile(values, [0.05, 0.5, 0.95])
            plot.dots(ax, place + shift, middle, low, high, **look(name), ms=2.5)
    ax.set_xticks(range(len(places)), places, rotation=90)
    ax.set(ylabel="test error at loss .1", xlabel="attention map")


def look(name):
    """Colour and marker of an optimizer."""
    return {"color": plot.COLOURS[name], "marker": plot.MARKERS[name]}


def at_losses(ax, ds, name, ylabel):
    """An observable of the four optimizers against the training loss, where it is positive in every seed."""
    levels = levels_of(ds, np.geomspace(0.6, 1e-3, 25))
    at = js.at_train_loss(ds, levels, [name], leaps=False)
    for one in FAMILIES:
        values = select(at, one)[name].transpose("seed", "level")
        values = values.where((values > 0).all("seed") | values.isnull().all("seed"))
        plot.band(ax, levels, values, **look(one), ms=3, markevery=0.25)
    ax.set(xscale="log", yscale="log", xlabel="training loss", ylabel=ylabel)


def losses(ax, ds):
    """Loss over its first value for the four optimizers, each at the learning rate whose median ends lowest."""
    for one in FAMILIES:
        loss = family_runs(ds, one)["train_loss"]
        relative = loss / loss.isel(step=0)
        best = best_rate(relative, by=relative.isel(step=-1, drop=True).median("seed"))
        draw = plot.traces if ds.sizes["seed"] < FEW else plot.band
        draw(ax, ds["step"], best.transpose("seed", "step"), plot.NAMES[one], **look(one), ms=3, markevery=0.25)
    ax.set(yscale="log", xlabel="step t", ylabel="L(t) / L(0)")


def draw(runs):
    preset = "paper_like" if any(name.startswith("paper_like") for name in runs) else "disjoint"
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 6.6))
    of_models(axes[0, 0], runs, preset, lambda ds: ds["train_loss"], "training loss")
    axes[0, 0].set(yscale="log", ylim=(1e-8, 2))
    of_models(axes[0, 1], runs, preset, noise_share, "noise query on noise")
    axes[0, 1].set(xlim=(0, 320), ylim=(0.3, 1.03))
    of_models(axes[0, 2], runs, preset, lambda ds: ds["sign_agreement"], "sign agreement")
    axes[0, 2].set(xlim=(0, 320), ylim=(0.3, 1.03))
    errors(axes[1, 0], runs, preset)
    at_losses(axes[1, 1], runs["curvature"], "directional_smoothness", "smoothness of the step")
    at_losses(axes[1, 2], runs["curvature"], "robust_condition", "robust condition number")
    losses(axes[2, 0], runs["regression"])
    losses(axes[2, 1], ablated(runs["residual"], 1, 1))
    losses(axes[2, 2], ablated(runs["residual"], 0, 0))
    titles = (
        "SignGD, loss", "SignGD, attention", "SignGD, agreement", "equal loss", "softmax", "softmax", "regression",
        "both residuals", "no residuals",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles)
    plot.style_key(axes[0, 0], "+ residual path (a-c)", ls=":")
    plot.key(fig, ncols=4, axes=[axes[0, 0], axes[2, 0]])
    one = runs[next(name for name in runs if name.startswith(preset))]
    text = (
        f"a-d: {one.sizes['seed']} seeds, {preset}: {plot.sizes(one, 'n', 'd', 's', 'm_k')}, residual path of weight "
        f"1, learning rates 1e-4 and GD .3 · e, f: {runs['curvature'].sizes['seed']} seeds, at equal training loss, "
        f"left out where negative in a seed · g: {runs['regression'].sizes['seed']} seeds, linear attention, best of "
        f"three learning rates · h, i: {runs['residual'].sizes['seed']} seeds, best of five · median and 5-95 % (thin "
        f"lines: under {FEW} seeds, each), reconstructed"
    )
    plot.small_print(fig, text)
    return fig


main = plot.figure_script(draw, __doc__, reads="bridge/*")

if __name__ == "__main__":
    main()

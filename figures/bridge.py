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

KERNELS = {"softmax": "#0072B2", "gaussian": "#D55E00", "linear": "#009E73"}
SHORT = {"softmax": "soft", "gaussian": "Gauss", "linear": "lin."}
PATHS = {"": ("-", "o"), "_residual": (":", "s")}
FAMILIES = ("sign_gd", "signum", "adam", "gd")


def models(runs, preset):
    """(kernel, path, Dataset) of every model of the paper's system that was run with a preset."""
    for kernel in KERNELS:
        for path in PATHS:
            if f"{preset}_{kernel}{path}" in runs:
                yield kernel, path, runs[f"{preset}_{kernel}{path}"]


def of_models(ax, runs, preset, measure, labels=False):
    """A number of SignGD's runs over steps for every model."""
    for kernel, path, ds in models(runs, preset):
        values = measure(select(ds, "sign_gd")).dropna("step", how="all")
        label = kernel + (" + residual" if path else "") if labels else None
        plot.band(ax, values["step"], values.transpose("seed", "step"), label, color=KERNELS[kernel], ls=PATHS[path][0])
    ax.set_xlabel("step t")


def errors(ax, runs, preset):
    """Test error at training loss .1 of every model and optimizer."""
    places = []
    for place, (kernel, path, ds) in enumerate(models(runs, preset)):
        places.append(f"{SHORT[kernel]}\n{'+ res.' if path else ''}")
        at = js.at_train_loss(ds, 0.1, ["test_error"], leaps=False)
        for shift, name in zip((-0.24, -0.08, 0.08, 0.24), FAMILIES):
            values = select(at, name)["test_error"].transpose("seed")
            if not bool(values.notnull().any()):  # no run gets to that loss
                continue
            low, middle, high = np.nanquantile(values, [0.05, 0.5, 0.95])
            ax.errorbar(
                place + shift, middle, ([middle - low], [high - middle]), fmt=plot.MARKERS[name], ms=2.5, lw=0.8,
                color=plot.COLOURS[name],
            )  # fmt: skip
    ax.set_xticks(range(len(places)), places, fontsize=5)
    ax.set_ylabel("test error")


def at_losses(ax, ds, name):
    """An observable of the four optimizers against the training loss, which falls from left to right."""
    levels = levels_of(ds, np.geomspace(0.6, 1e-3, 25))
    at = js.at_train_loss(ds, levels, [name], leaps=False)
    for one in FAMILIES:
        values = select(at, one)[name].transpose("seed", "level")
        plot.band(ax, levels, values, color=plot.COLOURS[one], ls=plot.STYLES[one])
    ax.set(xscale="log", yscale="log", xlabel="training loss")
    ax.invert_xaxis()


def losses(ax, ds, labels=False):
    """Loss over its first value for the four optimizers, each at the learning rate whose median ends lowest."""
    for one in FAMILIES:
        loss = family_runs(ds, one)["train_loss"]
        relative = loss / loss.isel(step=0)
        best = best_rate(relative, by=relative.isel(step=-1, drop=True).median("seed"))
        label = f"{plot.NAMES[one]}" if labels else None
        plot.band(ax, ds["step"], best.transpose("seed", "step"), label, color=plot.COLOURS[one], ls=plot.STYLES[one])
    ax.set(yscale="log", xlabel="step t")


def draw(runs):
    preset = "paper_like" if any(name.startswith("paper_like") for name in runs) else "theory"
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 5.6))
    of_models(axes[0, 0], runs, preset, lambda ds: ds["train_loss"], labels=True)
    axes[0, 0].set(yscale="log", ylim=(1e-8, 2))
    of_models(axes[0, 1], runs, preset, noise_share)
    axes[0, 1].set(xlim=(0, 320), ylim=(0.3, 1.03))
    of_models(axes[0, 2], runs, preset, lambda ds: ds["sign_agreement"])
    axes[0, 2].set(xlim=(0, 320), ylim=(0.3, 1.03))
    errors(axes[1, 0], runs, preset)
    at_losses(axes[1, 1], runs["curvature"], "directional_smoothness")
    axes[1, 1].set_ylim(1e-3, 0.3)  # negative where a run begins
    at_losses(axes[1, 2], runs["curvature"], "robust_condition")
    losses(axes[2, 0], runs["regression"], labels=True)
    losses(axes[2, 1], ablated(runs["residual"], 1, 1))
    losses(axes[2, 2], ablated(runs["residual"], 0, 0))
    titles = (
        "training loss, SignGD", "noise query on noise", "signs of q and k agree", "test error at loss .1",
        "smoothness of the step", "robust condition number", "regression, L(t)/L(0)", "both residuals, L(t)/L(0)",
        "no residuals, L(t)/L(0)",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles, fontsize=7)
    axes[0, 0].legend(fontsize=4.5, handlelength=1.3, loc="upper right", borderpad=0)
    handles = axes[2, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside upper center", ncols=4, fontsize=6.5)
    one = runs[next(name for name in runs if name.startswith(preset))]
    text = (
        f"a-d: {one.sizes['seed']} seeds, {preset}: {plot.sizes(one, 'n', 'd', 's', 'm_k')}, residual path of weight "
        f"1, learning rates 1e-4 and GD .3 · e, f: {runs['curvature'].sizes['seed']} seeds, softmax, at equal training "
        f"loss · g: {runs['regression'].sizes['seed']} seeds, linear attention, best of three learning rates · h, i: "
        f"{runs['residual'].sizes['seed']} seeds, best of five · median and 5-95 %, reconstructed"
    )
    plot.small_print(fig, text, 130)
    return fig


main = plot.figure_script(draw, __doc__, reads="bridge/*")

if __name__ == "__main__":
    main()

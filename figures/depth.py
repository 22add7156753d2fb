"""Deep transformers with residual connections and without: the stages layer by layer, and how erratic training is.

Reads DIR/architecture (sweeps/architecture.py).
Command: python figures/depth.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.runs import manifest
from jaxsign.claims.architecture import connected, excess_variation, most, time_to, turns

#: Training loss at which layers are compared (claim D2).
LEVEL = 0.1
#: Of depths.
SHADES = plot.shades(4)
KINDS = {
    1.0: ("residual connections", plot.RESIDUALS["both"], "o", "-"), 0.0: ("plain", plot.RESIDUALS["none"], "s", ":"),
}  # fmt: skip
SHORT = {"mlp": "M", "norm": "N", "mlp_norm": "MN"}


def layer_band(ax, runs, values, layers, until, label, **look):
    """A band over steps, pale from the median step on at which a gradient of these layers is exactly 0."""
    values = values.sel(step=slice(0, until)).transpose("seed", "step")
    ends = [runs[name] for name in (f"first_frozen_layer_{layer}" for layer in layers) if name in runs]
    ends = [float(end.where(end >= 0, np.inf).median()) for end in ends]
    end = min(ends, default=np.inf)
    steps = values["step"]
    plot.band(ax, steps[steps <= end], values[:, steps.values <= end], label, **look)
    if bool((steps > end).any()):
        late = steps.values >= steps.values[steps.values <= end][-1]
        plot.band(ax, steps[late], values[:, late], alpha=0.3, **look)


def over_depths(ax, runs, measure, until, ylabel, layers=()):
    """A number over steps for every depth, with residual connections solid, without dotted."""
    for depth, colour in zip((1, 2, 3, 4), SHADES):
        for residual, (_, _, _, line) in KINDS.items():
            if f"depth_{depth}" in runs:
                one = connected(runs[f"depth_{depth}"], residual)
                label = f"depth {depth} (a-c)" if residual else None
                layer_band(ax, one, measure(one), layers, until, label, color=colour, ls=line)
    ax.set(xlabel="step t", xlim=(0, until), ylabel=ylabel)


def over_layers(ax, ds, residual, name, until, ylabel):
    """An observable over steps in every layer."""
    runs = connected(ds, residual)
    for layer in range(runs.sizes["layer"]):
        values = runs[name].isel(layer=layer)
        values = values.mean([dim for dim in values.dims if dim not in ("seed", "step")])
        look = {**plot.PLACES[layer], "ms": 3, "markevery": 0.2}
        layer_band(ax, runs, values, [layer + 1], until, f"layer {layer + 1} (d-f)", **look)
    fitted = float(js.at_train_loss(runs, LEVEL, ["train_loss"])["step"].median("seed", skipna=False))
    if np.isfinite(fitted):  # every seed gets there
        ax.axvline(fitted, color=plot.NEUTRAL, lw=0.8, ls="--", label=f"training loss {LEVEL:g} (d-f)")
    ax.set(xlabel="step t", xlim=(0, until), ylabel=ylabel)


def layer_one(name):
    """An observable of layer 1 over steps, averaged over what is its own."""

    def measure(runs):
        values = runs[name].isel(layer=0)
        return values.mean([dim for dim in values.dims if dim not in ("seed", "step")])

    return measure


def beside(ax, runs, measure):
    """A number per seed for every model, with residual connections and without: median and 5-95 %."""
    for place, name in enumerate(runs):
        for residual, (word, colour, mark, _) in KINDS.items():
            values = np.asarray(measure(connected(runs[name], residual)), float)
            finite = values[np.isfinite(values)]
            x = place + (-0.13 if residual else 0.13)
            if finite.size < values.size / 2:
                ax.text(x, 0.97, "never", transform=ax.get_xaxis_transform(), rotation=90, fontsize=7, ha="center",
                        va="top", color=colour)  # fmt: skip
                continue
            middle, low, high = np.quantile(finite, [0.5, 0.05, 0.95])
            plot.dots(ax, x, middle, low, high, f"{word} (g-i)", color=colour, marker=mark)
    ax.set_xticks(range(len(runs)), [label(name) for name in runs])
    ax.set(xlim=(-0.5, len(runs) - 0.5), xlabel="depth")


def label(name):
    """depth_4_mlp -> "4" over "M"."""
    depth, _, added = name.removeprefix("depth_").partition("_")
    return f"{depth}\n{SHORT.get(added, '')}"


def draw(runs):
    runs = {name: runs[name] for name in sorted(runs, key=lambda name: (name[:7], len(name), name))}
    deepest = runs.get("depth_4", list(runs.values())[-1])
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 6.8))
    over_depths(axes[0, 0], runs, lambda one: one["train_loss"], 400, "training loss")
    axes[0, 0].set(yscale="log", ylim=(1e-8, 2))
    over_depths(axes[0, 1], runs, layer_one("sign_agreement"), 60, "sign agreement", [1])
    axes[0, 1].set_ylim(0.35, 1.03)
    over_depths(axes[0, 2], runs, layer_one("s21"), 300, "$s_{21}$", [1])
    over_layers(axes[1, 0], deepest, 1.0, "s21", 400, "$s_{21}$")
    over_layers(axes[1, 1], deepest, 0.0, "s21", 400, "$s_{21}$")
    for ax in (axes[0, 2], axes[1, 0], axes[1, 1]):
        ax.set(yscale="log", ylim=(1e-8, 2))
    over_layers(axes[1, 2], deepest, 0.0, "sign_agreement", 400, "sign agreement")
    axes[1, 2].set_ylim(0.35, 1.03)
    measures = (
        (most(excess_variation), "excess variation of $s_{21}$"), (most(turns), "turns of query signal"),
        (time_to, "steps to loss .1"),
    )  # fmt: skip
    for ax, (measure, ylabel) in zip(axes[2], measures):
        beside(ax, runs, measure)
        ax.set_ylabel(ylabel)
    axes[2, 2].set_ylim(0, None)
    titles = (
        "every depth", "layer 1", "layer 1", "deepest, residual", "deepest, plain", "deepest, plain", "variation",
        "turns", "speed",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles)
    for name, _, _, line in KINDS.values():
        plot.style_key(axes[0, 0], f"{name} (a-c)", ls=line)
    axes[0, 0].plot([], [], color="0.8", lw=3, label="pale: gradient of layer is 0 (b-f)")
    plot.key(fig, ncols=3)
    text = (
        f"{deepest.sizes['seed']} seeds, SignGD, eta 1e-4, {int(deepest.step[-1])} steps · median and 5-95 % · "
        f"reconstructed: {plot.sizes(deepest, 'n', 'd', 's', 'm_k', 'm_v')}, sigma_0 3e-3, residual weight 1 or 0 · "
        f"{manifest(deepest)['definition']['dtype']} · g: total variation of s_21 less |end - start| · h: "
        "sign changes a row after t=100, both of the layer where they are largest · i: recorded every 10 "
        "steps · M: with MLP, N: with layer norm, MN: with both"
    )
    plot.small_print(fig, text)
    return fig


main = plot.figure_script(draw, __doc__, reads="architecture/depth_*")

if __name__ == "__main__":
    main()

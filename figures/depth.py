"""Deep transformers with residual connections and without: the stages layer by layer, and how erratic training is.

Reads DIR/architecture (sweeps/architecture.py).
Command: python figures/depth.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.runs import manifest
from jaxsign.claims.architecture import connected, excess_variation, most, time_to, turns

#: Okabe and Ito's colours, dark to light, one a depth or a layer.
SHADES = ("#000000", "#0072B2", "#D55E00", "#56B4E9")
KINDS = {1.0: ("residual", "#0072B2", "o", "-"), 0.0: ("plain", "#D55E00", "s", ":")}
SHORT = {"mlp": "mlp", "norm": "norm", "mlp_norm": "both"}


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


def over_depths(ax, runs, measure, until, layers=()):
    """A number over steps for every depth, with residual connections solid, without dotted."""
    for depth, colour in zip((1, 2, 3, 4), SHADES):
        for residual, (_, _, _, line) in KINDS.items():
            if f"depth_{depth}" in runs:
                one = connected(runs[f"depth_{depth}"], residual)
                label = f"depth {depth}" if residual else None
                layer_band(ax, one, measure(one), layers, until, label, color=colour, ls=line)
    ax.set(xlabel="step t", xlim=(0, until))


def over_layers(ax, ds, residual, name, until):
    """An observable over steps in every layer."""
    runs = connected(ds, residual)
    for layer in range(runs.sizes["layer"]):
        values = runs[name].isel(layer=layer)
        values = values.mean([dim for dim in values.dims if dim not in ("seed", "step")])
        line = ("-", "--", "-.", ":")[layer]
        layer_band(ax, runs, values, [layer + 1], until, f"layer {layer + 1}", color=SHADES[layer], ls=line)
    ax.set(xlabel="step t", xlim=(0, until))


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
                ax.text(x, 0.97, "never", transform=ax.get_xaxis_transform(), rotation=90, fontsize=5, ha="center",
                        va="top", color=colour)  # fmt: skip
                continue
            middle, low, high = np.quantile(finite, [0.5, 0.05, 0.95])
            bars = ax.errorbar(
                x, middle, ([middle - low], [high - middle]), fmt=mark, ms=3, lw=0.9, color=colour,
                label=f"{word} {name}",
            )  # fmt: skip
            plot.keep_band(bars.lines[0], [low], [high])
    ax.set_xticks(range(len(runs)), [label(name) for name in runs], fontsize=5)
    ax.set_xlim(-0.5, len(runs) - 0.5)


def label(name):
    """depth_4_mlp -> "4" over "mlp"."""
    depth, _, added = name.removeprefix("depth_").partition("_")
    return f"{depth}\n{SHORT.get(added, '')}"


def draw(runs):
    runs = {name: runs[name] for name in sorted(runs, key=lambda name: (name[:7], len(name), name))}
    deepest = runs.get("depth_4", list(runs.values())[-1])
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 5.6))
    over_depths(axes[0, 0], runs, lambda one: one["train_loss"], 400)
    axes[0, 0].set(yscale="log", ylim=(1e-8, 2))
    over_depths(axes[0, 1], runs, layer_one("sign_agreement"), 60, [1])
    axes[0, 1].set_ylim(0.35, 1.03)
    over_depths(axes[0, 2], runs, layer_one("s21"), 300, [1])
    over_layers(axes[1, 0], deepest, 1.0, "s21", 400)
    over_layers(axes[1, 1], deepest, 0.0, "s21", 400)
    for ax in (axes[0, 2], axes[1, 0], axes[1, 1]):
        ax.set(yscale="log", ylim=(1e-8, 2))
    over_layers(axes[1, 2], deepest, 0.0, "sign_agreement", 400)
    axes[1, 2].set_ylim(0.35, 1.03)
    beside(axes[2, 0], runs, most(excess_variation))
    beside(axes[2, 1], runs, most(turns))
    beside(axes[2, 2], runs, time_to)
    axes[2, 2].set_ylim(0, None)
    for ax in axes[2]:
        ax.set_xlabel("depth")
    titles = (
        "training loss", "agreement, layer 1", r"$s_{21}$, layer 1", r"$s_{21}$, deepest, residual",
        r"$s_{21}$, deepest, plain", "agreement, deepest, plain", r"excess variation of $s_{21}$",
        "turns of a query signal", "steps to loss .1",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles, fontsize=6.5)
    axes[1, 0].legend(fontsize=5.5, handlelength=2.2, loc="center right", borderaxespad=0)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for name, _, _, line in KINDS.values():
        handles.append(plt.Line2D([], [], color="0.3", ls=line))
        labels.append(f"{name} (a-c)")
    handles.append(plt.Line2D([], [], color="0.3", alpha=0.3))
    labels.append("pale: frozen, a gradient of\nthe layer is 0 in the floats (b-f)")
    for name, colour, mark, _ in KINDS.values():
        handles.append(plt.Line2D([], [], color=colour, marker=mark, ls="", ms=3))
        labels.append(f"{name} (g-i)")
    fig.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=6)
    text = (
        f"{deepest.sizes['seed']} seeds, SignGD, eta 1e-4, {int(deepest.step[-1])} steps · median and 5-95 % · "
        f"reconstructed: {plot.sizes(deepest, 'n', 'd', 's', 'm_k', 'm_v')}, sigma_0 3e-3, residual weight 1 or 0 · "
        f"{manifest(deepest)['definition']['dtype']} · g: total variation of s_21 less |end - start| · h: "
        "sign changes a row after t=100, both of the layer where they are largest · i: recorded every 10 "
        "steps · norm: layer norm"
    )
    plot.small_print(fig, text, 130)
    return fig


main = plot.figure_script(draw, __doc__, reads="architecture/depth_*")

if __name__ == "__main__":
    main()

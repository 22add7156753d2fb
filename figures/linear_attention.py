"""Linear attention: SGD against Adam in four settings, curvature along the runs, gradient noise, depth, softmax.

Reads DIR/linear_attention (sweeps/linear_attention.py). Draws `linear_attention` (losses and learning rates),
`linear_attention_curvature` and `linear_attention_noise` (gradient noise, smoothness, depth, softmax).
Command: python figures/linear_attention.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.runs import best_rate, family_runs, manifest, select

SETTINGS = {
    "normal_20": "normal, n=20",
    "normal_5": "normal, n=5",
    "gamma_20": "gamma, n=20",
    "spherical_20": "spherical, n=20",
}
FAMILIES = {
    "sgd": {"label": "SGD, momentum .9", "color": plot.COLOURS["momentum"], "marker": "D"},
    "adam": {"label": "Adam", "color": plot.COLOURS["adam"], "marker": plot.MARKERS["adam"]},
}
#: Distributions of the inputs.
INPUTS = dict(zip(("normal", "gamma", "spherical"), plot.PLACES))
#: The published learning rates of SGD and Adam, marked in the tuning panels.
PUBLISHED = {"normal_20": (0.02, 0.02), "normal_5": (0.01, 0.005), "gamma_20": (0.02, 0.02), "spherical_20": (5.0, 0.1)}


def over_steps(ax, ds, name, ylabel):
    """An observable of both optimizers over the steps at which it was measured."""
    for family, look in FAMILIES.items():
        values = select(ds, family)[name].dropna("step", how="all")
        plot.traces(ax, values["step"], values.transpose("seed", "step"), **look, ms=3, markevery=0.3)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines if plot.has_band(line)])
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]  # single seeds spike, medians are what is compared
    ax.set(yscale="log", xlabel="step t", ylabel=ylabel, ylim=(drawn.min() / 3, 5 * drawn.max()))


def tuning(ax, ds, published):
    """Last loss over the learning rate; the published one is marked by a vertical line of the family's colour."""
    for (family, look), rate in zip(FAMILIES.items(), published):
        runs = family_runs(ds, family)
        last = runs["train_loss"].where(runs["status"] == 0).isel(step=-1).transpose("seed", "optimizer")
        plot.traces(ax, runs["learning_rate"], last, **look, ms=3)
        ax.axvline(rate, color=look["color"], lw=0.8, ls=":")
    start = float(ds["train_loss"].isel(step=0).median())
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss at the end", ylim=(None, 3 * start))


def tails(ax, noise):
    """Share of the batches whose gradient noise exceeds x times its median."""
    for inputs, look in INPUTS.items():
        if inputs in noise["inputs"].values:
            norms = noise["gradient_noise"].sel(inputs=inputs).isel(optimizer=0, step=0).transpose("seed", "draw")
            share = 10.0 ** -np.linspace(0.02, 3.5, 60)
            x = np.quantile(norms / norms.median("draw"), 1 - share, axis=1).T
            ax.plot(np.median(x, 0), share, label=f"{inputs} inputs", **look, ms=3, markevery=0.25)
    ax.set(yscale="log", xlabel="noise / its median", ylabel="share above")


def quantiles(ax, noise):
    """Quantiles of the standardised noise against those of a normal law."""
    from scipy.stats import norm

    share = np.concatenate([10.0 ** -np.linspace(3.3, 0.31, 30), 1 - 10.0 ** -np.linspace(0.31, 3.3, 30)])
    for inputs, look in INPUTS.items():
        if inputs in noise["inputs"].values:
            norms = noise["gradient_noise"].sel(inputs=inputs).isel(optimizer=0, step=0).transpose("seed", "draw")
            standard = (norms - norms.mean("draw")) / norms.std("draw")
            ax.plot(norm.ppf(share), np.median(np.quantile(standard, share, axis=1), 1), **look, ms=3, markevery=0.25)
    ax.plot([-3.3, 3.3], [-3.3, 3.3], label="normal law", **plot.law_look())
    ax.set(xlabel="normal quantile", ylabel="noise quantile", ylim=(-4, 12))


def scatter(ax, ds):
    """Gradient norm and smoothness along the step that it led to, Adam, t < 2000, a dot a step of every seed."""
    runs = select(ds, "adam").sel(step=slice(1, 1999))
    for seed in range(runs.sizes["seed"]):
        x, y = (runs[name].isel(seed=seed) for name in ("gradient_before", "directional_smoothness"))
        positive = y > 0
        ax.plot(x[positive], y[positive], ".", ms=1.5, color=plot.COLOURS["adam"], label="Adam, a dot a step")
    ax.set(xscale="log", yscale="log", xlabel="gradient norm", ylabel="smoothness of the step")


def depths(ax, ds):
    """Ln of SGD's last loss over Adam's, each at its best learning rate, against the depth."""
    families = (family_runs(ds, family) for family in FAMILIES)
    sgd, adam = (f["train_loss"].where(f["status"] == 0).isel(step=-1).min("optimizer") for f in families)
    gap = np.log(sgd / adam).transpose("seed", "depth")
    plot.traces(ax, ds["depth"], gap, "ln of SGD's loss / Adam's", color=plot.NEUTRAL)
    plot.level_line(ax)
    ax.set(xlabel="depth L", ylabel="ln(SGD / Adam)", xticks=ds["depth"].values)


def kinds(ax, softmax, full):
    """Adam's loss with linear and softmax attention at the better learning rate, and with all of P and Q trained."""
    for kind, marker in (("linear", "^"), ("softmax", "o")):
        runs = softmax.sel(attention=kind)
        if not np.isfinite(runs["train_loss"]).any():
            continue  # not run yet
        best = best_rate(runs, by=runs["train_loss"].isel(step=-1, drop=True).median("seed"))
        look = {"color": plot.KERNELS[kind], "marker": marker, "ms": 3}
        plot.traces(ax, runs["step"], best["train_loss"].transpose("seed", "step"), f"{kind} attention", **look)
    runs = select(full, "adam").sel(step=slice(0, int(softmax["step"][-1])))
    look = {"color": plot.KERNELS["linear"], "ls": ":", "marker": "^", "ms": 3}
    plot.traces(ax, runs["step"], runs["train_loss"].transpose("seed", "step"), "linear, all of P and Q", **look)
    ax.set(yscale="log", xlabel="step t", ylabel="loss")


def grid_of(runs, name):
    """The runs over learning rates of a setting."""
    grids = runs["tuning_spherical" if name == "spherical_20" and "tuning_spherical" in runs else "tuning"]
    if "inputs" in grids.dims:
        problem = manifest(runs[name])["definition"]["problem"]
        here = (grids["inputs"] == problem["inputs"]) & (grids["n_context"] == problem["n_context"])
        grids = grids.isel(inputs=int(np.flatnonzero(here.values)[0]))
    return grids


def in_settings(runs, left, right):
    """A row a setting, of two panels each, drawn by `left` and `right` from the runs and the setting's name."""
    names = [name for name in SETTINGS if name in runs]
    fig, axes = plt.subplots(len(names), 2, figsize=(plot.WIDE, 1.0 + 1.6 * len(names)), squeeze=False)
    for row, name in zip(axes, names):
        left(row[0], name)
        right(row[1], name)
    plot.letter_panels(axes.flat, [SETTINGS[name] for name in names for _ in range(2)])
    return fig


def footer(fig, runs, seeds):
    """Seeds and settings below a figure."""
    one = manifest(runs["normal_20"])["definition"]["problem"]
    text = (
        f"{seeds}; median thick, every seed thin · published: d={one['d']} L={one['depth']}, batch "
        f"{one['batch_size']}, clipping, learning rates · reconstructed: losses on {one['n_eval']} and Hessians on "
        f"{one['n_hessian']} fixed prompts, the grid of rates, depth and attention at lr .005 and .02"
    )
    plot.small_print(fig, text)


def draw(runs):
    condition, smooth = r"max / median $|H_{ii}|$", r"$u^\top Hu/\|u\|^2$"
    losses = in_settings(
        runs, lambda ax, name: over_steps(ax, runs[name], "train_loss", "loss"),
        lambda ax, name: tuning(ax, grid_of(runs, name), PUBLISHED[name]),
    )  # fmt: skip
    plot.style_key(losses.axes[0], "published learning rate", ls=":", lw=0.8)
    curvature = in_settings(
        runs, lambda ax, name: over_steps(ax, runs[name], "robust_condition", condition),
        lambda ax, name: over_steps(ax, runs[name], "directional_smoothness", smooth),
    )  # fmt: skip
    noise, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.2))
    tails(axes[0, 0], runs["noise"])
    quantiles(axes[0, 1], runs["noise"])
    scatter(axes[0, 2], runs["normal_20"])
    depths(axes[1, 0], runs["depth"])
    kinds(axes[1, 1], runs["softmax"], runs["full"])
    plot.letter_panels(axes.flat, ("noise, t = 0", "the same, QQ", "(L0, L1)", "gap and depth", "attention"))
    plot.key(noise, ncols=1, at=axes[1, 2])
    last = [name for name in SETTINGS if name in runs][-1]
    own = f"{runs['normal_20'].sizes['seed']} seeds (last row: {runs[last].sizes['seed']}"
    for fig, seeds in ((losses, f"{own}, learning rates: {runs['tuning'].sizes['seed']})"), (curvature, f"{own})")):
        plot.key(fig, ncols=3)
        footer(fig, runs, seeds)
    footer(noise, runs, f"{runs['noise'].sizes['seed']} seeds, c: {runs['normal_20'].sizes['seed']}")
    return {"linear_attention": losses, "linear_attention_curvature": curvature, "linear_attention_noise": noise}


main = plot.figure_script(draw, __doc__, reads="linear_attention/*")

if __name__ == "__main__":
    main()

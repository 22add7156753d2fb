"""Linear attention: SGD against Adam in four settings, curvature along the runs, gradient noise, depth, softmax.

Reads DIR/linear_attention (sweeps/linear_attention.py).
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
    "sgd": {"label": "SGD, momentum .9", "color": plot.COLOURS["gd"], "ls": (0, (3, 1, 1, 1))},
    "adam": {"label": "Adam", "color": plot.COLOURS["adam"], "ls": "-"},
}
INPUTS = {
    "normal": {"color": "#0072B2", "ls": "-"},
    "gamma": {"color": "#D55E00", "ls": (0, (5, 1))},
    "spherical": {"color": "#009E73", "ls": ":"},
}
#: The published learning rates of SGD and Adam, marked in the tuning panels.
PUBLISHED = {"normal_20": (0.02, 0.02), "normal_5": (0.01, 0.005), "gamma_20": (0.02, 0.02), "spherical_20": (5.0, 0.1)}


def over_steps(ax, ds, name, labels=False):
    """An observable of both optimizers over the steps at which it was measured."""
    for family, look in FAMILIES.items():
        runs = select(ds, family)
        values = runs[name].dropna("step", how="all")
        shown = look if labels else {**look, "label": None}
        plot.band(ax, values["step"], values.transpose("seed", "step"), **shown)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]  # bands spike, medians are what is compared
    ax.set(yscale="log", xlabel="step t", ylim=(drawn.min() / 3, 5 * drawn.max()))


def tuning(ax, ds, published):
    """Last loss over the learning rate; the published one is marked by a vertical line of the family's colour."""
    for (family, look), rate in zip(FAMILIES.items(), published):
        runs = family_runs(ds, family)
        last = runs["train_loss"].where(runs["status"] == 0).isel(step=-1).transpose("seed", "optimizer")
        plot.band(ax, runs["learning_rate"], last, marker="o", ms=2, **{**look, "label": None})
        ax.axvline(rate, color=look["color"], lw=0.8, ls="--")
    start = float(ds["train_loss"].isel(step=0).median())
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylim=(None, 3 * start))


def tails(ax, noise):
    """Share of the batches whose gradient noise exceeds x times its median."""
    for inputs, look in INPUTS.items():
        if inputs in noise["inputs"].values:
            norms = noise["gradient_noise"].sel(inputs=inputs).isel(optimizer=0, step=0).transpose("seed", "draw")
            share = 10.0 ** -np.linspace(0.02, 3.5, 60)
            x = np.quantile(norms / norms.median("draw"), 1 - share, axis=1).T
            ax.plot(np.median(x, 0), share, label=inputs, **look)
    ax.set(yscale="log", xlabel="noise / its median", ylabel="share above")
    ax.legend(fontsize=5)


def quantiles(ax, noise):
    """Quantiles of the standardised noise against those of a normal law."""
    from scipy.stats import norm

    share = np.concatenate([10.0 ** -np.linspace(3.3, 0.31, 30), 1 - 10.0 ** -np.linspace(0.31, 3.3, 30)])
    for inputs, look in INPUTS.items():
        if inputs in noise["inputs"].values:
            norms = noise["gradient_noise"].sel(inputs=inputs).isel(optimizer=0, step=0).transpose("seed", "draw")
            standard = (norms - norms.mean("draw")) / norms.std("draw")
            ax.plot(norm.ppf(share), np.median(np.quantile(standard, share, axis=1), 1), **look)
    ax.plot([-3.3, 3.3], [-3.3, 3.3], color="0.5", lw=0.6)
    ax.set(xlabel="normal quantile", ylabel="noise quantile", ylim=(-4, 12))


def scatter(ax, ds):
    """Gradient norm and smoothness along the step that it led to, Adam, t < 2000, one seed a shade."""
    runs = select(ds, "adam").sel(step=slice(1, 1999))
    for seed in range(runs.sizes["seed"]):
        x, y = (runs[name].isel(seed=seed) for name in ("gradient_before", "directional_smoothness"))
        positive = y > 0
        shade = plt.get_cmap("viridis")(seed / max(runs.sizes["seed"] - 1, 1))
        ax.plot(x[positive], y[positive], ".", ms=1.5, color=shade, label=f"seed {seed}")
    ax.set(xscale="log", yscale="log", xlabel="gradient norm", ylabel="smoothness")


def depths(ax, ds):
    """Ln of SGD's last loss over Adam's, each at its best learning rate, against the depth."""
    families = (family_runs(ds, family) for family in FAMILIES)
    sgd, adam = (f["train_loss"].where(f["status"] == 0).isel(step=-1).min("optimizer") for f in families)
    plot.band(ax, ds["depth"], np.log(sgd / adam).transpose("seed", "depth"), color=plot.NEUTRAL, marker="o", ms=3)
    ax.axhline(0, color="0.6", lw=0.5)
    ax.set(xlabel="depth L", ylabel="ln(SGD / Adam)", xticks=ds["depth"].values)


def kinds(ax, softmax, full):
    """Adam's loss with linear and softmax attention at the better learning rate, and with all of P and Q trained."""
    for kind, look in (("linear", {"color": "#0072B2"}), ("softmax", {"color": "#CC79A7", "ls": ":"})):
        runs = softmax.sel(attention=kind)
        if not np.isfinite(runs["train_loss"]).any():
            continue  # not run yet
        best = best_rate(runs, by=runs["train_loss"].isel(step=-1, drop=True).median("seed"))
        plot.band(ax, runs["step"], best["train_loss"].transpose("seed", "step"), kind, **look)
    runs = select(full, "adam").sel(step=slice(0, int(softmax["step"][-1])))
    plot.band(ax, runs["step"], runs["train_loss"].transpose("seed", "step"), "linear, full", color="k", ls="--")
    ax.set(yscale="log", xlabel="step t", ylabel="loss")
    ax.legend(fontsize=5, loc="upper right", bbox_to_anchor=(1, 0.9))


def draw(runs):
    names = [name for name in SETTINGS if name in runs]
    fig = plt.figure(figsize=(7.0, 8.0))
    above, below = fig.subfigures(2, 1, height_ratios=[4, 1.15])
    grid = above.subplots(4, len(names), squeeze=False)
    for column, name in enumerate(names):
        rows = grid[:, column]
        for ax, observable in zip(rows, ("train_loss", "robust_condition", "directional_smoothness")):
            over_steps(ax, runs[name], observable, labels=ax is grid[0, 0])
        grids = runs["tuning_spherical" if name == "spherical_20" and "tuning_spherical" in runs else "tuning"]
        if "inputs" in grids.dims:
            problem = manifest(runs[name])["definition"]["problem"]
            here = (grids["inputs"] == problem["inputs"]) & (grids["n_context"] == problem["n_context"])
            grids = grids.isel(inputs=int(np.flatnonzero(here.values)[0]))
        tuning(rows[3], grids, PUBLISHED[name])
        for letter, ax, title in zip("abcd", rows, (SETTINGS[name], "condition", "smoothness", "learning rates")):
            ax.set_title(f"({letter}{column + 1}) {title}", fontsize=7)
    for ax, label in zip(grid[:, 0], ("loss", r"max / median $|H_{ii}|$", r"$u^\top Hu/\|u\|^2$", "loss at the end")):
        ax.set_ylabel(label)
    last = below.subplots(1, 5)
    tails(last[0], runs["noise"])
    quantiles(last[1], runs["noise"])
    scatter(last[2], runs["normal_20"])
    depths(last[3], runs["depth"])
    kinds(last[4], runs["softmax"], runs["full"])
    titles = ("noise, t = 0", "the same, QQ", "(L0, L1), Adam", "gap and depth", "attention")
    for i, (ax, title) in enumerate(zip(last, titles), 1):
        ax.set_title(f"(e{i}) {title}", fontsize=7)
        ax.xaxis.label.set_size(7)
        ax.yaxis.label.set_size(7)
    first = grid[0, 0]
    fig.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=7)
    one = manifest(runs["normal_20"])["definition"]["problem"]
    text = (
        f"{runs['normal_20'].sizes['seed']} seeds (a4-c4: {runs[names[-1]].sizes['seed']}, d: "
        f"{runs['tuning'].sizes['seed']}, e but e3: {runs['noise'].sizes['seed']}); median and 5-95 % · published: "
        f"d={one['d']} L={one['depth']}, batch {one['batch_size']}, clipping, learning rates (dashed in d) · "
        f"reconstructed: losses on {one['n_eval']} and Hessians on {one['n_hessian']} fixed prompts, the grid of "
        f"rates, depth and attention at lr .005 and .02"
    )
    plot.small_print(fig, text, 165)
    return fig


main = plot.figure_script(draw, __doc__, reads="linear_attention/*")

if __name__ == "__main__":
    main()

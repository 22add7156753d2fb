"""Linear attention: SGD against Adam in four settings, curvature, gradient noise, ReLU targets, depth, softmax.

Reads DIR/linear_attention (sweeps/linear_attention.py). Draws `linear_attention` (losses and learning rates),
`linear_attention_curvature`, `linear_attention_noise` (gradient noise, smoothness), `linear_attention_relu` (ReLU
targets) and `linear_attention_variants` (depth, attention); of a part of the entries, the figures that it suffices for.
Command: python figures/linear_attention.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.reading import CannotDecide
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
PUBLISHED = {
    "normal_20": (0.02, 0.02), "normal_5": (0.01, 0.005), "gamma_20": (0.02, 0.02), "spherical_20": (5.0, 0.1),
    "relu_20": (0.05, 0.01),
}  # fmt: skip
#: Entries that each figure reads, besides the settings that are there.
NOISE, RELU, VARIANTS = ("noise", "normal_20"), ("relu_20", "relu_rates"), ("depth", "softmax", "full")
CONDITION, SMOOTHNESS = r"max / median $|H_{ii}|$", r"$u^\top Hu/\|u\|^2$"


def over_steps(ax, ds, name, ylabel):
    """An observable of both optimizers over the steps at which it was measured."""
    for family, look in FAMILIES.items():
        values = select(ds, family)[name].dropna("step", how="all")
        plot.traces(ax, values["step"], values.transpose("seed", "step"), **look, ms=3, markevery=0.3)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines if plot.has_band(line)])
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]  # single seeds spike, medians are what is compared
    ax.set(yscale="log", xlabel="step t", ylabel=ylabel, ylim=(drawn.min() / 3, 5 * drawn.max()))


def over_rates(ax, runs, look, height):
    """Last loss over the learning rate; a cross at a height of the axes where a seed or more diverged."""
    last = runs["train_loss"].where(runs["status"] == 0).isel(step=-1).transpose("seed", "optimizer")
    plot.traces(ax, runs["learning_rate"], last, **look, ms=3)
    lost = (runs["status"] == 1).any("seed").values
    x = runs["learning_rate"].values[lost]
    ax.plot(x, np.full(x.size, height), "x", color=look["color"], ms=4, transform=ax.get_xaxis_transform())


def tuning(ax, ds, published):
    """Last loss over the learning rate; the published one is marked by a vertical line of the family's colour."""
    for height, (family, look), rate in zip((0.95, 0.87), FAMILIES.items(), published):
        over_rates(ax, family_runs(ds, family), look, height)
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
    """Ln of SGD's last loss over Adam's, each at its best learning rate, and how many runs diverged at each depth."""
    families = (family_runs(ds, family) for family in FAMILIES)
    sgd, adam = (f["train_loss"].where(f["status"] == 0).isel(step=-1).min("optimizer") for f in families)
    gap = np.log(sgd / adam).transpose("seed", "depth")
    plot.traces(ax, ds["depth"], gap, "ln of SGD's loss / Adam's", color=plot.NEUTRAL)
    plot.level_line(ax)
    status = ds["status"].transpose("depth", ...)
    lost = (status == 1).sum(status.dims[1:]).values
    ax.set(ylabel="ln(SGD / Adam)", xlabel=f"depth L\n(diverged, of {status[0].size} runs)")
    ax.set_xticks(ds["depth"].values, [f"{depth}\n{count}" for depth, count in zip(ds["depth"].values, lost)])


def kind_look(kind):
    """How a kind of attention is drawn."""
    return {"color": plot.KERNELS[kind], "marker": {"linear": "^", "softmax": "o"}[kind]}


def kinds(ax, softmax, full):
    """Adam's loss with linear and softmax attention, each at its best learning rate, and with all of P and Q."""
    for kind in ("linear", "softmax"):
        runs = softmax.sel(attention=kind)
        if not np.isfinite(runs["train_loss"]).any():
            continue  # not run yet
        best = best_rate(runs, by=runs["train_loss"].isel(step=-1, drop=True).median("seed"))
        losses = best["train_loss"].transpose("seed", "step")
        plot.traces(ax, runs["step"], losses, f"{kind} attention", **kind_look(kind), ms=3)
    runs = select(full, "adam").sel(step=slice(0, int(softmax["step"][-1])))
    look = {"color": plot.KERNELS["linear"], "ls": ":", "marker": "^", "ms": 3}
    plot.traces(ax, runs["step"], runs["train_loss"].transpose("seed", "step"), "linear, all of P and Q", **look)
    ax.set(yscale="log", xlabel="step t", ylabel="loss")


def kinds_over_rates(ax, softmax):
    """Adam's last loss over the learning rate, for either kind of attention."""
    for kind, height in (("linear", 0.95), ("softmax", 0.87)):
        over_rates(ax, softmax.sel(attention=kind), kind_look(kind), height)
    start = float(softmax["train_loss"].isel(step=0).median())
    ax.set(
        xscale="log", yscale="log", xlabel="learning rate of Adam", ylabel="loss at the end", ylim=(None, 30 * start)
    )


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


def footer(fig, ds, seeds, reconstructed):
    """Seeds and settings below a figure."""
    one = manifest(ds)["definition"]["problem"]
    text = (
        f"{seeds}; median thick, every seed thin · published: d={one['d']} L={one['depth']}, batch "
        f"{one['batch_size']}, clipping, learning rates · reconstructed: losses on {one['n_eval']} fixed prompts"
        f"{reconstructed}"
    )
    plot.small_print(fig, text)


def cross_key(ax):
    """Names the crosses of the panels over learning rates."""
    plot.style_key(ax, "a seed or more diverged", marker="x", ls="none", ms=4)


def draw_settings(runs):
    """{name: figure} of the settings: losses beside learning rates, and curvature."""
    losses = in_settings(
        runs, lambda ax, name: over_steps(ax, runs[name], "train_loss", "loss"),
        lambda ax, name: tuning(ax, grid_of(runs, name), PUBLISHED[name]),
    )  # fmt: skip
    plot.style_key(losses.axes[0], "published learning rate", ls=":", lw=0.8)
    cross_key(losses.axes[0])
    curvature = in_settings(
        runs, lambda ax, name: over_steps(ax, runs[name], "robust_condition", CONDITION),
        lambda ax, name: over_steps(ax, runs[name], "directional_smoothness", SMOOTHNESS),
    )  # fmt: skip
    seeds = f"{runs['normal_20'].sizes['seed']} seeds"
    for fig, more in ((losses, ", the grid of rates"), (curvature, "")):
        plot.key(fig, ncols=2 if more else 3)
        prompts = manifest(runs["normal_20"])["definition"]["problem"]["n_hessian"]
        footer(fig, runs["normal_20"], seeds, more or f", Hessians on {prompts} of them")
    return {"linear_attention": losses, "linear_attention_curvature": curvature}


def draw_noise(runs):
    """Gradient noise at the start, and smoothness against the gradient norm."""
    fig, axes = plt.subplots(2, 2, figsize=(plot.WIDE, 4.6))
    tails(axes[0, 0], runs["noise"])
    quantiles(axes[0, 1], runs["noise"])
    scatter(axes[1, 0], runs["normal_20"])
    plot.letter_panels(axes.flat, ("gradient noise, t = 0", "the same, QQ", "(L0, L1), normal inputs, n=20"))
    plot.key(fig, ncols=1, at=axes[1, 1])
    footer(fig, runs["normal_20"], f"{runs['noise'].sizes['seed']} seeds", "")
    return fig


def draw_relu(runs):
    """Targets of a ReLU network: loss, learning rates, curvature."""
    fig, axes = plt.subplots(2, 2, figsize=(plot.WIDE, 4.6))
    over_steps(axes[0, 0], runs["relu_20"], "train_loss", "loss")
    tuning(axes[0, 1], runs["relu_rates"], PUBLISHED["relu_20"])
    over_steps(axes[1, 0], runs["relu_20"], "robust_condition", CONDITION)
    over_steps(axes[1, 1], runs["relu_20"], "directional_smoothness", SMOOTHNESS)
    end = int(runs["relu_rates"]["step"][-1])
    titles = ("loss, published rates", f"loss at t = {end}, published grid", "condition", "smoothness of the step")
    plot.letter_panels(axes.flat, titles)
    plot.style_key(axes[0, 1], "published learning rate", ls=":", lw=0.8)
    cross_key(axes[0, 1])
    plot.key(fig, ncols=2)
    hidden = manifest(runs["relu_20"])["definition"]["problem"]["hidden"]
    more = f", the network's {hidden} hidden units · normal inputs, n=20"
    footer(fig, runs["relu_20"], f"targets of a ReLU network, {runs['relu_20'].sizes['seed']} seeds", more)
    return fig


def draw_variants(runs):
    """Depth, and softmax attention."""
    fig, axes = plt.subplots(2, 2, figsize=(plot.WIDE, 4.6))
    depths(axes[0, 0], runs["depth"])
    kinds(axes[0, 1], runs["softmax"], runs["full"])
    kinds_over_rates(axes[1, 0], runs["softmax"])
    end = int(runs["softmax"]["step"][-1])
    titles = (f"gap and depth, t = {end}", "attention, each at its best rate", f"attention, t = {end}")
    plot.letter_panels(axes.flat, titles)
    cross_key(axes[1, 0])
    plot.key(fig, ncols=1, at=axes[1, 1])
    more = ", depths, rates, attention · normal inputs, n=20"
    footer(fig, runs["softmax"], f"{runs['softmax'].sizes['seed']} seeds", more)
    return fig


def draw(runs):
    figures = {}
    if "normal_20" in runs and "tuning" in runs:
        figures |= draw_settings(runs)
    if all(name in runs for name in NOISE):
        figures["linear_attention_noise"] = draw_noise(runs)
    if all(name in runs for name in RELU):
        figures["linear_attention_relu"] = draw_relu(runs)
    if all(name in runs for name in VARIANTS):
        figures["linear_attention_variants"] = draw_variants(runs)
    if not figures:
        raise CannotDecide(f"needs the entries normal_20 and tuning, {NOISE}, {RELU} or {VARIANTS}, got {[*runs]}")
    return figures


main = plot.figure_script(draw, __doc__, reads="linear_attention/*")

if __name__ == "__main__":
    main()

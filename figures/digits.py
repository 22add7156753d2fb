"""Noisy digits: what an image looks like; test error, loss and calibrated loss against its scale; the disputed curve.

Reads DIR/digits (sweeps/digits.py). Draws `digits`, 3 vs 7, and `digits_variants`, the other classes and the controls.
Command: python figures/digits.py --results results --out results/figures
"""

import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.runs import family_runs, manifest, optimizers_of
from jaxsign.claims.digits import DISPUTED, LEVEL, MODELS, compared, setting_of, tuned
from jaxsign.systems.digits import data as data_of
from jaxsign.systems.digits.models import one_step_margins

FAMILIES = {
    "sign_gd": {"label": "SignGD", "color": plot.COLOURS["sign_gd"], "ls": "-", "marker": "o"},
    "adam": {"label": "Adam", "color": plot.COLOURS["adam"], "ls": plot.STYLES["adam"], "marker": "s"},
    "gd": {"label": "GD", "color": plot.COLOURS["gd"], "ls": plot.STYLES["gd"], "marker": "^"},
    "momentum": {"label": "GD, momentum .9", "color": plot.COLOURS["signum"], "ls": ":", "marker": "D"},
}
NAMES = {"test_error": "test error", "test_loss": "test loss", "calibrated_loss": "calibrated loss"}
POINTS = {"loss": f"at training loss {LEVEL:g}", "end": "at the end", "best": "at the best step"}
SHOWN = (0.25, 0.5, 1.0, 2.0, 4.0)


def examples(axes, ds):
    """One training image of seed 0 at several scales, with the ratio of its norm to the noise's, all images' mean."""
    fields = manifest(ds)["definition"]["problem"]
    problem = js.DigitsProblem(**{**fields, "classes": tuple(fields["classes"])})
    images, key = js.load_digits(), js.stream(jax.random.key(0), "data")
    for ax, scale in zip(axes, SHOWN):
        draw = data_of.sample(key, problem, js.DigitsHyper(scale=scale), images)
        ax.imshow(np.asarray(draw.images[0] + draw.noise[0]), cmap="gray", vmin=-2.5, vmax=2.5)
        norms = [float(np.linalg.norm(part[: problem.n_train].reshape(problem.n_train, -1), axis=1).mean())
                 for part in (np.asarray(draw.images), np.asarray(draw.noise))]  # fmt: skip
        ax.set_title(f"scale {scale:g}, ratio {norms[0] / norms[1]:.2g}", fontsize=6, loc="center")
        ax.set_axis_off()


def plain_log(ax):
    """A logarithmic y axis with a few plain numbers instead of powers."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = [m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    if len(ticks) < 2:
        ticks = [m * 10.0**e for e in range(-4, 3) for m in (1, 1.5, 2, 3, 4, 6, 8) if low <= m * 10.0**e <= high]
    ticks = ticks if len(ticks) <= 6 else [tick for tick in ticks if f"{tick:e}"[0] == "1"]
    ax.set_yticks(ticks, [f"{tick:g}".replace("0.", ".") for tick in ticks])
    ax.minorticks_off()


def crossing(ds):
    """The scale above which a first step of GD errs less than one of SignGD, median over the seeds; two classes."""
    fields = manifest(ds)["definition"]["problem"]
    problem = js.DigitsProblem(**{**fields, "classes": tuple(fields["classes"])})
    images, crossings = js.load_digits(), []
    for seed in ds["seed"].values.tolist():
        draw = data_of.sample(js.stream(jax.random.key(seed), "data"), problem, js.DigitsHyper(), images)
        sign, gd = one_step_margins(draw.images[: problem.n_train], draw.labels[: problem.n_train], draw.noise)
        crossings.append(float(sign / gd))
    return float(np.median(crossings))


def against_scale(ax, ds, name, point, labels=False, reference=False):
    """A number of every optimizer at its tuned rates against the image scale."""
    for family, look in FAMILIES.items():
        if not bool((ds["status"].isel(optimizer=optimizers_of(ds, family)) == 0).any()):
            continue
        runs = tuned(ds, family, point)
        values = runs[name].transpose("seed", "scale")
        plot.band(ax, ds["scale"], values, **{**look, "label": look["label"] if labels else None}, ms=2, lw=0.9)
    if reference and "class_mean_error" in ds:
        mean = ds["class_mean_error"]
        mean = mean.isel(optimizer=0) if "optimizer" in mean.dims else mean
        label = "nearest class mean (reference)" if labels else None
        ax.plot(ds["scale"], mean.median("seed"), color="0.45", lw=0.7, ls="--", label=label)
    ax.set_xscale("log")
    ax.set_xticks([0.25, 0.5, 1, 2, 4], [".25", ".5", "1", "2", "4"])
    ax.set_xlim(0.21, 4.8)
    ax.minorticks_off()
    if name != "test_error":
        plain_log(ax)
    ax.tick_params(labelsize=5.5)


def each_rate(ax, ds):
    """SignGD's test loss at the end, one line per learning rate, the disputed range shaded."""
    sign_gd = family_runs(ds, "sign_gd")
    runs = compared(sign_gd, "end")["test_loss"]
    for i, shade in enumerate(np.linspace(0.25, 0.9, sign_gd.sizes["optimizer"])):
        rate = float(sign_gd["learning_rate"][i])
        values = runs.isel(optimizer=i).transpose("seed", "scale")
        look = {"color": plt.get_cmap("viridis")(shade), "marker": "o", "ms": 2, "lw": 0.9}
        plot.band(ax, runs["scale"], values, f"{rate:.1g}", **look)
    chosen = tuned(ds, "sign_gd", "end")["test_loss"]
    ax.plot(chosen["scale"], chosen.median("seed"), color="k", lw=0.7, ls=":", label="tuned")
    ax.axvspan(*DISPUTED, color="0.93", zorder=0)
    ax.set_xscale("log")
    ax.set_xlabel("image scale", fontsize=6)
    ax.set_xticks([0.25, 0.5, 1, 2, 4], [".25", ".5", "1", "2", "4"])
    plain_log(ax)
    ax.tick_params(labelsize=5.5)


def rises(ax, ds, family):
    """Change from one scale to the next at the end: mean over seeds with its 95 % interval, disputed range shaded."""
    from scipy.stats import t

    runs = tuned(ds, family, "end")
    scales = runs["scale"].values
    inside = np.flatnonzero((scales[:-1] > DISPUTED[0] - 1e-9) & (scales[1:] < DISPUTED[1] + 1e-9))
    ax.axvspan(inside.min() - 0.5, inside.max() + 0.5, color="0.93", zorder=0)
    looks = {"test_loss": ("k", "o"), "calibrated_loss": ("#E69F00", "s"), "test_error": ("#56B4E9", "^")}
    for shift, (name, (colour, marker)) in zip((-0.18, 0.0, 0.18), looks.items()):
        steps = np.diff(runs[name].transpose("scale", "seed").values, axis=0)
        half = t.ppf(0.975, steps.shape[1] - 1) * steps.std(1, ddof=1) / np.sqrt(steps.shape[1])
        ax.errorbar(
            np.arange(len(steps)) + shift, steps.mean(1), half, fmt=marker, ms=2.5, lw=0.8, color=colour,
            label=NAMES[name],
        )  # fmt: skip
    ax.axhline(0, color="0.6", lw=0.5)
    places = [f"{a:g}\n{b:g}".replace("0.", ".") for a, b in itertools.pairwise(scales)]
    ax.set_xticks(range(len(places)), places)
    ax.set_xlim(-0.6, len(places) - 0.4)
    ax.tick_params(labelsize=5.5)


def foot(fig, runs, width, dotted=""):
    """Seeds, sizes and rates below a figure."""
    one = next(iter(runs.values()))
    p = manifest(one)["definition"]["problem"]
    sizes = p["n_train"], int(one["step"][-1])
    last = list(runs.values())[-1]
    ten = manifest(last)["definition"]["problem"]
    more = f"; ten classes {ten['n_train']} and {int(last['step'][-1])}" if len(ten["classes"]) == 10 else ""
    text = (
        f"{one.sizes['seed']} seeds, median and 5-95 % · MNIST digits, noise N(0, 1) in a border of width 5; two "
        f"classes {sizes[0]} training images and {sizes[1]} full-batch steps, {p['n_val']} validation and "
        f"{p['n_test']} test images a run, patches of {p['patch']} x {p['patch']}, width {p['width']}, {p['heads']} "
        f"heads{more} · each optimizer and scale at the learning rate of four with the best mean validation loss where "
        f"shown{dotted} · "
        "calibrated: one temperature fitted on the validation images · all reconstructed; the scale is a factor of the "
        "image and no ratio of norms"
    )
    plot.small_print(fig, text, width)


def main_figure(runs):
    """3 vs 7: examples, three points of comparison for both models, and the disputed range."""
    fig = plt.figure(figsize=(7.0, 8.2))
    strip, grid, last = fig.subfigures(3, 1, height_ratios=[1.15, 4.6, 2.1])
    examples(strip.subplots(1, len(SHOWN)), next(iter(runs.values())))
    blocks = grid.subfigures(1, len(runs), squeeze=False)[0]
    crossings = {model: crossing(ds) for model, ds in runs.items() if model == "two_layer"}
    for block, (model, ds) in enumerate(runs.items()):
        axes = blocks[block].subplots(3, 3)
        blocks[block].suptitle(f"{MODELS[model]}, 3 vs 7", fontsize=7.5)
        for row, (point, words) in enumerate(POINTS.items()):
            for column, name in enumerate(NAMES):
                ax = axes[row, column]
                against_scale(ax, ds, name, point, labels=row + column == 0, reference=name == "test_error")
                if name == "test_error" and model == "two_layer":
                    ax.axvline(crossings[model], color="0.2", lw=0.6, ls=":")
                ax.set_title(f"({'abc'[row]}{3 * block + column + 1}) {NAMES[name]}", fontsize=6)
                if row == 2:
                    ax.set_xlabel("image scale", fontsize=6)
            axes[row, 0].set_ylabel(words, fontsize=6.5)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=6)
    below = last.subplots(1, 2 * len(runs))
    for block, (model, ds) in enumerate(runs.items()):
        each_rate(below[block], ds)
        below[block].set_title(f"(d{block + 1}) {MODELS[model]}: SignGD's rates", fontsize=6)
        rises(below[len(runs) + block], ds, "sign_gd")
        below[len(runs) + block].set_title(f"(d{len(runs) + block + 1}) {MODELS[model]}: SignGD tuned", fontsize=6)
        below[len(runs) + block].set_xlabel("change from scale to scale", fontsize=6)
    below[0].set_ylabel("test loss at the end", fontsize=6.5)
    for ax in below[: len(runs)]:
        ax.set_ylim(top=5 * ax.get_ylim()[1])
        ax.legend(fontsize=4.5, handlelength=1.2, ncols=3, loc="upper right", borderpad=0)
    below[len(runs)].legend(fontsize=4.5, handlelength=1.0)
    foot(fig, runs, 160, " · dotted: where the laws of a first step of SignGD and of GD on equal images cross")
    return fig


def variants_figure(runs):
    """The other classes and the frozen controls: a row each, at equal training loss and at the end."""
    columns = [(point, name) for point in ("loss", "end") for name in NAMES]
    fig, axes = plt.subplots(len(runs), 6, figsize=(7.0, 1.15 * len(runs) + 0.8), squeeze=False)
    for row, (_, ds) in enumerate(runs.items()):
        setting = str(setting_of(ds)).removesuffix(" over scale")
        for column, (point, name) in enumerate(columns):
            ax = axes[row, column]
            first = row + column == 0
            against_scale(ax, ds, name, point, labels=first, reference=name == "test_error")
            where = f"loss {LEVEL:g}" if point == "loss" else "end"
            ax.set_title(
                f"({'abcdefghij'[row]}{column + 1}) {NAMES[name].replace('calibrated loss', 'calibrated')}, {where}",
                fontsize=5.5,
            )
            if row == len(runs) - 1:
                ax.set_xlabel("image scale", fontsize=6)
        axes[row, 0].set_ylabel(setting.replace(", ", ",\n"), fontsize=5.5)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=6)
    foot(fig, runs, 160)
    return fig


def draw(runs):
    names = [f"{model}_{rest}" for rest in ("3_7", "3_7_frozen", "0_1", "ten") for model in MODELS]
    # A sweep that has only begun has no finished run to draw.
    runs = {name: runs[name] for name in names if name in runs and bool((runs[name]["status"] == 0).any())}
    pair = {name.removesuffix("_3_7"): ds for name, ds in runs.items() if name.endswith("_3_7")}
    variants = {name: ds for name, ds in runs.items() if not name.endswith("_3_7")}
    return {"digits": main_figure(pair)} | ({"digits_variants": variants_figure(variants)} if variants else {})


main = plot.figure_script(draw, __doc__, reads="digits/*")

if __name__ == "__main__":
    main()

"""Noisy digits: test error against the number of training images, with laws and controls; and against the image scale.

Reads DIR/digits (sweeps/digits.py). Draws `digits`, over 20 to 1,000 images, and `digits_variants`, over scales.
Command: python figures/digits.py --results results --out results/figures
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.runs import manifest, optimizers_of
from jaxsign.claims.digits import DISPUTED, LEVEL, MODELS, gap, law_gap, tuned
from jaxsign.systems.digits import data as data_of

FAMILIES = ("sign_gd", "adam", "gd")
NAMES = {"test_error": "test error", "test_loss": "test loss", "calibrated_loss": "calibrated loss"}
POINTS = {"loss": f"loss {LEVEL:g}", "end": "at the end"}
SHOWN = (0.25, 0.5, 1.0, 2.0, 4.0)
TRAINED, FROZEN = {"ls": "-", "ms": 2.5}, {"ls": ":", "ms": 3, "fillstyle": "none", "lw": 0.8}
CLASS_MEAN = {"color": plot.NEUTRAL, "lw": 0.9, "ls": "-."}


def families(ds):
    """The optimizers that a sweep has finished runs of."""
    return [name for name in FAMILIES if bool((ds["status"].isel(optimizer=optimizers_of(ds, name)) == 0).any())]


def curve(ax, ds, axis, name, point, look, labels=True, **place):
    """A number of every optimizer at its tuned rates against one axis, the other at one place."""
    for family in families(ds):
        values = tuned(ds, family, point)[name].sel(**place, method="nearest").transpose("seed", axis)
        optimizer = {"color": plot.COLOURS[family], "marker": plot.MARKERS[family]}
        plot.band(ax, ds[axis], values, plot.NAMES[family] if labels else None, **optimizer, **look)


def references(ax, ds, axis, **place):
    """The nearest class mean and, of two layers, the first-step laws: no training changes them; medians over seeds."""
    runs = ds.isel(optimizer=0, missing_dims="ignore").sel(**place, method="nearest")
    for family in ("sign_gd", "gd") if manifest(ds)["definition"]["problem"]["model"] == "two_layer" else ():
        name = f"{family.removesuffix('_gd')}_step_error"
        law = runs[name].median("seed")
        ax.plot(ds[axis], law, label=f"first-step law, {plot.NAMES[family]}", **plot.law_look(family))
    ax.plot(ds[axis], runs["class_mean_error"].median("seed"), label="nearest class mean", **CLASS_MEAN)


def samples_axis(ax, ds, ylabel):
    ax.set(xscale="log", xlabel="training images n", ylabel=ylabel)
    ticks = [tick for tick in (20, 50, 100, 200, 400, 1000) if tick in ds["n_train"].values] or ds[
        "n_train"
    ].values.tolist()
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()


def over_samples(ax, runs, model, scale, point):
    """Test error against the number of images at one scale, attention trained and frozen."""
    for control, look in (("", TRAINED), ("_frozen", FROZEN)):
        if f"{model}{control}" in runs:
            curve(ax, runs[f"{model}{control}"], "n_train", "test_error", point, look, not control, scale=scale)
    references(ax, runs[model], "n_train", scale=scale)
    samples_axis(ax, runs[model], "test error")
    ax.set_ylim(0, 0.52)


def gaps(ax, ds):
    """error(SignGD) - error(GD) at training loss .1 against n, one shade a scale, and the law's."""
    from scipy.stats import t

    measured, law = gap(ds, "sign_gd"), law_gap(ds)
    student = t.ppf(0.975, ds.sizes["seed"] - 1)
    for scale, colour, marker in zip(ds["scale"].values, plot.shades(ds.sizes["scale"]), "osD"):
        place = {"scale": scale}
        mean = measured.sel(place).mean("seed")
        half = student * measured.sel(place).std("seed", ddof=1) / np.sqrt(ds.sizes["seed"])
        plot.dots(ax, ds["n_train"], mean, mean - half, mean + half, f"scale {scale:g}", color=colour, marker=marker)
        ax.plot(ds["n_train"], law.sel(place).median("seed"), color=colour, lw=0.8, ls="--",
                label=f"first step, scale {scale:g}")  # fmt: skip
    plot.level_line(ax)
    samples_axis(ax, ds, "error(SignGD) - error(GD)")
    ax.set_ylim(-0.25, 0.25)


def examples(ax, ds):
    """One training image of seed 0 at several scales, with the ratio of its norm to the noise's, all images' mean."""
    fields = manifest(ds)["definition"]["problem"]
    problem = js.DigitsProblem(**{**fields, "classes": tuple(fields["classes"])})
    images, key = js.load_digits(), js.stream(jax.random.key(0), "data")
    tiles = []
    for place, scale in enumerate(SHOWN):
        draw = data_of.sample(key, problem, js.DigitsHyper(scale=scale), images)
        tiles.append(np.asarray(draw.images[0] + draw.noise[0]))
        norms = [float(np.linalg.norm(part[: problem.n_train].reshape(problem.n_train, -1), axis=1).mean())
                 for part in (np.asarray(draw.images), np.asarray(draw.noise))]  # fmt: skip
        ax.text((place + 0.5) / len(SHOWN), 1.03, f"scale {scale:g}\nnorm / noise {norms[0] / norms[1]:.2g}",
                transform=ax.transAxes, ha="center", va="bottom")  # fmt: skip
    gap_between = np.full((len(tiles[0]), 6), np.nan)
    tiled = np.hstack([part for tile in tiles for part in (gap_between, tile, gap_between)])
    ax.imshow(tiled, cmap="gray", vmin=-2.5, vmax=2.5)
    ax.set_axis_off()


def over_scales(ax, ds, name, point):
    """A number of every optimizer at its tuned rates against the image scale."""
    curve(ax, ds, "scale", name, point, TRAINED, n_train=int(ds["n_train"][0]))
    if name == "test_error":
        references(ax, ds, "scale", n_train=int(ds["n_train"][0]))
    else:
        ax.set_yscale("log")
    ax.set(xscale="log", xlim=(0.21, 4.8), xlabel="image scale", ylabel=NAMES[name])
    ax.set_xticks([0.25, 0.5, 1, 2, 4], [".25", ".5", "1", "2", "4"])
    ax.minorticks_off()


def small_print(fig, runs, names, text):
    """Seeds, sizes and steps below a figure."""
    one = manifest(runs[names[0]])["definition"]["problem"]
    steps = " and ".join(f"{int(runs[name]['step'][-1])} ({MODELS[name.removesuffix('_scales')]})" for name in names)
    plot.small_print(
        fig,
        f"{runs[names[0]].sizes['seed']} seeds, {text} · MNIST digits 3 and 7, noise N(0, 1) in a border of width 5 · "
        f"{steps} full-batch steps · each optimizer, n and scale at the learning rate of five with the smallest "
        f"validation error ({one['n_val']} images; {one['n_test']} test images) among those with which all seeds fit "
        f"their training images to a loss of {LEVEL:g} · reconstructed; the scale is a factor of the image",
    )


def samples_figure(runs):
    fig, axes = plt.subplots(3, 3, figsize=(plot.WIDE, 6.6))
    scales = runs["two_layer"]["scale"].values.tolist()
    titles = []
    for row, (point, words) in zip(axes, POINTS.items()):
        for ax, scale in zip(row, scales):
            over_samples(ax, runs, "two_layer", scale, point)
            titles.append(f"scale {scale:g}, {words}")
        for ax in row[len(scales) :]:
            ax.set_axis_off()
    gaps(axes[2, 0], runs["two_layer"])
    titles.append("gap at loss 0.1")
    drawn = [ax for row in axes[:2] for ax in row[: len(scales)]] + [axes[2, 0]]
    if "vit" in runs:
        for ax, (point, words) in zip(axes[2, 1:], POINTS.items()):
            over_samples(ax, runs, "vit", 0.5, point)
            titles.append(f"ViT, {words}")
            drawn.append(ax)
    else:
        for ax in axes[2, 1:]:
            ax.set_axis_off()
    plot.style_key(axes[0, 0], "attention frozen", ls=":")
    plot.letter_panels(drawn, titles)
    plot.key(fig, ncols=4, axes=[axes[0, 0], axes[2, 0]])
    names = [name for name in MODELS if name in runs]
    small_print(
        fig, runs, names, "a-g: two-layer; h, i: ViT at scale .5; median and 5-95 % (g: mean and its 95 % interval)"
    )
    return fig


def scales_figure(runs):
    grid = [["images"] * 3] + [[f"{model} {name}" for name in NAMES] for model in runs]
    grid.append([f"{model} end" for model in runs] + ["key"] * (3 - len(runs)))
    fig, axes = plt.subplot_mosaic(grid, figsize=(plot.WIDE, 1.4 + 1.65 * len(grid)))
    examples(axes["images"], next(iter(runs.values())))
    titles, drawn = [], []
    for model, ds in runs.items():
        for name in NAMES:
            over_scales(axes[f"{model} {name}"], ds, name, "loss")
            titles.append(f"{MODELS[model]}, {POINTS['loss']}")
            drawn.append(axes[f"{model} {name}"])
    for model, ds in runs.items():
        ax = axes[f"{model} end"]
        over_scales(ax, ds, "test_loss", "end")
        ax.axvspan(*DISPUTED, color="0.93", zorder=0, label="disputed range of scales")
        titles.append(f"{MODELS[model]}, {POINTS['end']}")
        drawn.append(ax)
    plot.letter_panels(drawn, titles)
    plot.key(fig, ncols=1, axes=[drawn[0], drawn[-1]], at=axes["key"])
    small_print(fig, {f"{model}_scales": ds for model, ds in runs.items()}, [f"{model}_scales" for model in runs],
                "50 images, median and 5-95 %")  # fmt: skip
    return fig


def draw(runs):
    # A sweep that has only begun has no finished run to draw.
    runs = {name: ds for name, ds in runs.items() if bool((ds["status"] == 0).any())}
    figures = {}
    if "two_layer" in runs:
        figures["digits"] = samples_figure(runs)
    if scales := {model: runs[f"{model}_scales"] for model in MODELS if f"{model}_scales" in runs}:
        figures["digits_variants"] = scales_figure(scales)
    return figures


main = plot.figure_script(draw, __doc__, reads="digits/*")

if __name__ == "__main__":
    main()

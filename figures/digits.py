"""Noisy digits: test error, loss and calibrated loss against the image scale, and the disputed range of scales.

Reads DIR/digits (sweeps/digits.py). Draws, of 3 vs 7, `digits` (examples, and the models at equal training loss),
`digits_end`, `digits_best` (at the best step) and `digits_rates` (the disputed range); of 3 vs 7 with frozen attention,
0 vs 1 and ten classes `digits_frozen_loss`, `digits_frozen_end`, `digits_0_1_loss` and so on.
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
    name: {
        "label": words, "color": plot.COLOURS[name], "ls": plot.STYLES.get(name, ":"),
        "marker": plot.MARKERS.get(name, "D"),
    }
    for name, words in {**plot.NAMES, "momentum": "GD, momentum .9"}.items() if name != "signum"
}  # fmt: skip
NAMES = {"test_error": "test error", "test_loss": "test loss", "calibrated_loss": "calibrated loss"}
POINTS = {"loss": f"at training loss {LEVEL:g}", "end": "at the end", "best": "at the best step"}
VARIANTS = {"3_7_frozen": "frozen", "0_1": "0_1", "ten": "ten"}
SHOWN = (0.25, 0.5, 1.0, 2.0, 4.0)


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
    gap = np.full((len(tiles[0]), 6), np.nan)
    ax.imshow(np.hstack([part for tile in tiles for part in (gap, tile, gap)]), cmap="gray", vmin=-2.5, vmax=2.5)
    ax.set_axis_off()


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


def against_scale(ax, ds, name, point):
    """A number of every optimizer at its tuned rates against the image scale."""
    for family, look in FAMILIES.items():
        if not bool((ds["status"].isel(optimizer=optimizers_of(ds, family)) == 0).any()):
            continue
        runs = tuned(ds, family, point)
        values = runs[name].transpose("seed", "scale")
        plot.band(ax, ds["scale"], values, **look, ms=2, lw=0.9)
    if name == "test_error" and "class_mean_error" in ds:
        mean = ds["class_mean_error"]
        mean = mean.isel(optimizer=0) if "optimizer" in mean.dims else mean
        ax.plot(ds["scale"], mean.median("seed"), color="0.45", lw=0.9, ls=":", label="nearest class mean")
    ax.set_xscale("log")
    ax.set_xticks([0.25, 0.5, 1, 2, 4], [".25", ".5", "1", "2", "4"])
    ax.set(xlim=(0.21, 4.8), xlabel="image scale", ylabel=NAMES[name])
    ax.minorticks_off()
    if name != "test_error" and any(line.get_xdata().size for line in ax.lines):
        ax.set_yscale("log")


def each_rate(ax, ds, colours):
    """SignGD's test loss at the end, one line per learning rate, the disputed range shaded."""
    sign_gd = family_runs(ds, "sign_gd")
    runs = compared(sign_gd, "end")["test_loss"]
    for i, rate in enumerate(sign_gd["learning_rate"].values.tolist()):
        values = runs.isel(optimizer=i).transpose("seed", "scale")
        plot.band(
            ax,
            runs["scale"],
            values,
            f"SignGD, learning rate {rate:.1g}",
            color=colours[rate],
            marker="o",
            ms=2,
            lw=0.9,
        )
    chosen = tuned(ds, "sign_gd", "end")["test_loss"]
    ax.plot(chosen["scale"], chosen.median("seed"), color="k", lw=1.2, ls=":", label="SignGD, tuned")
    ax.axvspan(*DISPUTED, color="0.93", zorder=0, label="disputed range of scales")
    ax.set(xscale="log", xlabel="image scale", ylabel="test loss at the end")
    ax.set_xticks([0.25, 0.5, 1, 2, 4], [".25", ".5", "1", "2", "4"])
    ax.set_yscale("log")


def rises(ax, ds, family):
    """Change from one scale to the next at the end: mean over seeds with its 95 % interval, disputed range shaded."""
    from scipy.stats import t

    runs = tuned(ds, family, "end")
    scales = runs["scale"].values
    inside = np.flatnonzero((scales[:-1] > DISPUTED[0] - 1e-9) & (scales[1:] < DISPUTED[1] + 1e-9))
    ax.axvspan(inside.min() - 0.5, inside.max() + 0.5, color="0.93", zorder=0)
    for shift, name, look in zip((-0.18, 0.0, 0.18), ("test_loss", "calibrated_loss", "test_error"), plot.PLACES[1:]):
        steps = np.diff(runs[name].transpose("scale", "seed").values, axis=0)
        mean = steps.mean(1)
        half = t.ppf(0.975, steps.shape[1] - 1) * steps.std(1, ddof=1) / np.sqrt(steps.shape[1])
        plot.dots(ax, np.arange(len(steps)) + shift, mean, mean - half, mean + half, f"{NAMES[name]}, tuned", **look)
    plot.level_line(ax)
    places = [f"{a:g}\n{b:g}".replace("0.", ".") for a, b in itertools.pairwise(scales)]
    ax.set_xticks(range(len(places)), places)
    ax.set(xlim=(-0.6, len(places) - 0.4), xlabel="from one scale (above) to the next", ylabel="mean change, 95 %")


def foot(fig, runs):
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
        f"heads{more} · each optimizer and scale at the learning rate of four with the best mean validation loss · "
        "calibrated: one temperature fitted on the validation images · all reconstructed; the scale is a factor of the "
        "image and no ratio of norms"
    )
    plot.small_print(fig, text)


def compare(runs, point, show=False):
    """A row a model: test error, loss and calibrated loss at one point of training, and example images above."""
    grid = [["images"] * 3] * show + [[f"{model} {name}" for name in NAMES] for model in runs]
    fig, axes = plt.subplot_mosaic(grid, figsize=(plot.WIDE, 1.5 + 1.6 * len(runs) + 1.2 * show))
    if show:
        examples(axes["images"], next(iter(runs.values())))
    panels = [axes[name] for row in grid[show:] for name in row]
    for place, (model, ds) in enumerate(runs.items()):
        for ax, name in zip(panels[3 * place :], NAMES):
            against_scale(ax, ds, name, point)
        if model == "two_layer" and len(manifest(ds)["definition"]["problem"]["classes"]) == 2:
            law = "law: one-step SignGD and GD cross"
            panels[3 * place].axvline(crossing(ds), label=law, **plot.law_look())
    plot.letter_panels(panels, [MODELS[model] for model in runs for _ in NAMES])
    plot.key(
        fig,
        ncols=3,
        axes=panels,
        title=f"{str(setting_of(ds)).removesuffix(' over scale').split(' ', 1)[1]}, {POINTS[point]}",
    )
    foot(fig, runs)
    return fig


def disputed(runs):
    """SignGD's test loss at each learning rate, and how its tuned test quantities change from scale to scale."""
    fig, axes = plt.subplots(2, len(runs), figsize=(plot.WIDE, 4.9), squeeze=False)
    rates = sorted({float(rate) for ds in runs.values() for rate in family_runs(ds, "sign_gd")["learning_rate"]})
    for column, ds in zip(axes.T, runs.values()):
        each_rate(column[0], ds, dict(zip(rates, plot.shades(len(rates)))))
        rises(column[1], ds, "sign_gd")
    plot.letter_panels(axes.flat, [MODELS[model] for model in runs] * 2)
    plot.key(fig, ncols=2)
    foot(fig, runs)
    return fig


def draw(runs):
    # A sweep that has only begun has no finished run to draw.
    runs = {name: ds for name, ds in runs.items() if bool((ds["status"] == 0).any())}
    of = {rest: {m: runs[f"{m}_{rest}"] for m in MODELS if f"{m}_{rest}" in runs} for rest in ("3_7", *VARIANTS)}
    figures = {}
    if pair := of.pop("3_7"):
        figures = {"digits": compare(pair, "loss", show=True), "digits_rates": disputed(pair)}
        figures |= {f"digits_{point}": compare(pair, point) for point in ("end", "best")}
    for rest, models in of.items():
        if models:
            figures |= {f"digits_{VARIANTS[rest]}_{point}": compare(models, point) for point in ("loss", "end")}
    return figures


main = plot.figure_script(draw, __doc__, reads="digits/*")

if __name__ == "__main__":
    main()

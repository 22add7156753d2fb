"""Real sentences with injected noise: test errors at equal training loss, and how much larger SignGD's are than GD's.

Reads DIR/text (sweeps/text.py); entries that have not run have no panel.
Command: python figures/text.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import drop_labels
from jaxsign.claims.text import LEVEL, NAMES, OPTIMIZERS, tuned

LOOK = {
    name: {
        "label": words, "color": plot.COLOURS[name], "marker": plot.MARKERS.get(name, "v"), "ms": 3, "lw": 0.9,
        "ls": plot.STYLES.get(name, ":"),
    }
    for name, words in NAMES.items()
}  # fmt: skip
WORDS = {"imdb": "IMDb", "amazon": "Amazon", "yelp": "Yelp", "sst2": "SST-2"}


def at(ds, **point):
    """The runs at a point of some axes."""
    return ds.sel(point)


def interval(values):
    """Mean over the seeds and its 95 % interval, (3, x)."""
    from scipy.stats import t

    table = np.atleast_2d(np.asarray(values.transpose("seed", ...).values, float).T)
    mean = table.mean(1)
    half = t.ppf(0.975, table.shape[1] - 1) * table.std(1, ddof=1) / np.sqrt(table.shape[1])
    return np.stack([mean, mean - half, mean + half])


def number(ds, name, variable="test_error"):
    """A number of every seed at the tuned rate, without the rate; NaN draws nothing where none has finished."""
    try:
        return drop_labels(tuned(ds, name)[variable])
    except CannotDecide:
        return drop_labels(ds["status"].isel(optimizer=0, drop=True).astype(float).where(False))


def gaps(ax, x, runs, shift=0.0, names=("sign_gd", "adam", "momentum"), **look):
    """Error of some optimizers above GD's, one point for every Dataset, at places x."""
    present = [name for name in names if has(runs[0], name)]
    for i, name in enumerate(present):
        rows = np.concatenate([interval(number(ds, name) - number(ds, "gd")) for ds in runs], axis=1)
        moved = np.asarray(x, float) + shift + 0.12 * (i - (len(present) - 1) / 2)
        plot.dots(ax, moved, *rows, **{**LOOK[name], "ls": "none", **look})
    plot.level_line(ax)


def has(ds, name):
    family, _ = OPTIMIZERS[name]
    return family in ds["family"].values


def places(ax, names, **words):
    """Names the places 0, 1, ... of an axis."""
    ax.set_xticks(range(len(names)), names)
    ax.set(xlim=(-0.5, len(names) - 0.5), **words)


def against_injected(ax, ds, variable):
    """A number of every optimizer against the number of injected words, softmax attention."""
    ds = at(ds, kernel="softmax")
    for i, (name, look) in enumerate(LOOK.items()):
        rows = interval(number(ds, name, variable).transpose("seed", "injected"))
        plot.dots(ax, np.arange(ds.sizes["injected"]) + 0.12 * (i - 1.5), *rows, **look)
    places(ax, [str(k) for k in ds["injected"].values], xlabel="injected words K")


def errors(ax, runs):
    against_injected(ax, runs["tokens"], "test_error")
    ax.axhline(0.5, color="0.45", lw=0.8, ls=":", label="guessing")
    ax.set(ylabel="test error")


def difference(ax, runs):
    ds = at(runs["tokens"], kernel="softmax")
    gaps(ax, range(ds.sizes["injected"]), [at(ds, injected=k) for k in ds["injected"].values])
    places(ax, [str(k) for k in ds["injected"].values], xlabel="injected words K", ylabel="error - GD's error")


def frozen(ax, runs):
    ds = at(runs["tokens"], kernel="uniform")
    gaps(ax, range(ds.sizes["injected"]), [at(ds, injected=k) for k in ds["injected"].values])
    places(ax, [str(k) for k in ds["injected"].values], xlabel="injected words K", ylabel="error - GD's error")


def attention(ax, runs):
    """Attention on the injected words of training sentences above their share of the tokens."""
    ds = at(runs["tokens"], kernel="softmax").isel(injected=slice(1, None))
    for i, (name, look) in enumerate(LOOK.items()):
        for variable, fill in (("injected_attention", "full"), ("test_injected_attention", "none")):
            share = ds["injected_share"].isel(optimizer=0, drop=True)
            values = number(ds, name, variable).transpose("seed", "injected") - share.transpose("seed", "injected")
            label = look["label"] if fill == "full" else None
            moved = np.arange(ds.sizes["injected"]) + 0.12 * (i - 1.5)
            plot.dots(ax, moved, *interval(values), **{**look, "label": label, "fillstyle": fill, "ls": "none"})
    plot.level_line(ax)
    plot.style_key(ax, "on test sentences", marker="o", ls="none", fillstyle="none", ms=3)
    places(ax, [str(k) for k in ds["injected"].values], xlabel="injected words K", ylabel="attention - share")


def samples(ax, runs):
    """The difference against n, where an entry has it: K = 12 filled, K = 0 open."""
    found = {}
    if "samples" in runs:
        found |= {int(n): at(runs["samples"], n_train=n) for n in runs["samples"]["n_train"].values}
    if "kernels" in runs:
        found[200] = at(runs["kernels"], kernel="softmax")
    if "tokens" in runs:
        found[500] = at(runs["tokens"], kernel="softmax")
    sizes = sorted(found)
    for injected, fill, shift in ((12, "full", 0.06), (0, "none", -0.06)):
        gaps(ax, range(len(sizes)), [at(found[n], injected=injected) for n in sizes], shift, ("sign_gd", "momentum"),
             fillstyle=fill, **({} if fill == "full" else {"label": None}))  # fmt: skip
    plot.style_key(ax, "clean, K = 0", marker="D", ls="none", fillstyle="none", ms=3)
    places(ax, [str(n) for n in sizes], xlabel="training sentences n", ylabel="error - GD's error")


def noises(ax, runs):
    """The difference at each size of the other two kinds of noise."""
    found = {}
    for key, axis, words in (("label_noise", "label_noise", "flip"), ("embedding_noise", "embedding_noise", "std")):
        if key in runs:
            found |= {f"{words}\n{v:g}".replace("0.", "."): at(runs[key], **{axis: v}) for v in runs[key][axis].values}
    gaps(ax, range(len(found)), list(found.values()))
    places(ax, list(found), xlabel="share, or std", ylabel="error - GD's error")


def sources(ax, runs):
    """The difference on the source that is not trained on: K = 12 filled, K = 0 open."""
    ds = runs["source"]
    names = ds["held_out"].values.tolist()
    for injected, fill, shift in ((12, "full", 0.06), (0, "none", -0.06)):
        some = [at(ds, held_out=name, injected=injected) for name in names]
        gaps(ax, range(len(names)), some, shift, fillstyle=fill, **({} if fill == "full" else {"label": None}))
    places(ax, [WORDS[name] for name in names], xlabel="tested on, not trained on", ylabel="error - GD's error")


def models(ax, runs):
    """The difference with other kernels, the two-layer model and small vocabularies: K = 12 filled, K = 0 open."""
    found = {}
    if "kernels" in runs:
        found |= {str(name): at(runs["kernels"], kernel=name) for name in runs["kernels"]["kernel"].values}
    if "kernels_linear" in runs:
        found["linear"] = runs["kernels_linear"]
    if "two_layer" in runs:
        found["two-layer"] = runs["two_layer"]
    if "vocabulary" in runs:
        found |= {f"{n} words": at(runs["vocabulary"], vocabulary=n) for n in runs["vocabulary"]["vocabulary"].values}
    for injected, fill, shift in ((12, "full", 0.06), (0, "none", -0.06)):
        some = {i: at(ds, injected=injected) if "injected" in ds.dims else ds
                for i, ds in enumerate(found.values()) if injected or "injected" in ds.dims}  # fmt: skip
        gaps(ax, list(some), list(some.values()), shift, ("sign_gd", "momentum"), fillstyle=fill,
             **({} if fill == "full" else {"label": None}))  # fmt: skip
    places(ax, list(found), xlabel="model or vocabulary", ylabel="error - GD's error")
    ax.tick_params("x", labelsize=7, rotation=90)


#: {title: (entries of which one is needed, what is drawn)}.
PANELS = {
    "softmax, n = 500": (("tokens",), errors),
    "difference to GD, softmax": (("tokens",), difference),
    "difference, uniform": (("tokens",), frozen),
    "attention on injected words": (("tokens",), attention),
    "sample size": (("samples", "kernels"), samples),
    "other noise, n = 200": (("label_noise", "embedding_noise"), noises),
    "held out, n = 200": (("source",), sources),
    "other models, n = 200": (("kernels", "kernels_linear", "two_layer", "vocabulary"), models),
}


def draw(runs):
    # A sweep that has only begun has no finished run to draw.
    runs = {key: ds for key, ds in runs.items() if bool((ds["status"] == 0).any())}
    panels = {title: paint for title, (needed, paint) in PANELS.items() if any(key in runs for key in needed)}
    if not panels:
        raise CannotDecide("DIR/text has no finished runs of sweeps/text.py")
    rows = -(-len(panels) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(plot.WIDE, 0.9 + 1.75 * rows), squeeze=False)
    flat = list(axes.flat)
    for ax, paint in zip(flat, panels.values()):
        paint(ax, runs)
    for ax in flat[len(panels) :]:
        ax.set_axis_off()
    plot.letter_panels(flat, list(panels))
    plot.key(fig, ncols=4, axes=flat[: len(panels)])
    seeds = next(iter(runs.values())).sizes["seed"]
    plot.small_print(
        fig,
        f"{seeds} seeds, mean and its 95 % interval, at training loss {LEVEL:g}, each optimizer at the learning rate "
        "of four with the smallest validation error · sentences of IMDb, Amazon and Yelp reviews, n for training, "
        "one attention layer, K random words of the vocabulary in every training, validation and test sentence; "
        "filled K = 12, open K = 0 where both are drawn; blank: a rate that brings all seeds there is missing · all "
        "reconstructed",
    )
    return fig


main = plot.figure_script(draw, __doc__, reads="text/*")

if __name__ == "__main__":
    main()

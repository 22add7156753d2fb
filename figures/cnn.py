"""A follow-up's two-layer CNN: test error over steps with all examples and with 2, by rule and decay; what it learns.

Reads DIR/cnn (sweeps/cnn.py). Command: python figures/cnn.py --results results --out results/figures
"""

import matplotlib.pyplot as plt

from jaxsign import plot
from jaxsign.analysis.runs import family_runs, optimizers_of
from jaxsign.claims.cnn import DECAY

ENTRIES = {"full": "all examples", "mini": "batches of 2"}
#: Published test errors: Adam with all examples, and with mini-batches of 2 and decay 1e-5.
PUBLISHED = {"full": 0.95, "mini": 0.0}
RESPONSES = {
    "memorised": ("own noise patch", plot.NEUTRAL, "s"),
    "signal": ("own class's signal", plot.POSITIVE, "o"),
    "counter_signal": ("other class's signal", plot.NEGATIVE, "^"),
}


def over_steps(ax, ds, place, name, label, **look):
    """A number of one optimizer over the steps: median and range of the seeds."""
    values = ds[name].isel(optimizer=int(place), step=slice(1, None)).transpose("seed", "step")
    plot.band(ax, ds["step"][1:], values, label, **look)


def strengths(ax, runs, entry, family, look, words):
    """Test error of every strength of weight decay of a family, the stronger the darker; one shade a strength."""
    every = {float(decay) for ds in runs.values() for decay in family_runs(ds, family)["weight_decay"]}
    colours = dict(zip(sorted(every), plot.shades(len(every))))
    ds = runs[entry]
    for place in optimizers_of(ds, family):
        decay = float(ds["weight_decay"][int(place)])
        over_steps(ax, ds, place, "test_error", f"{words}, decay {decay:g}", color=colours[decay], **look)


def error_axis(ax):
    ax.set(xscale="log", xlabel="step t", ylabel="test error", ylim=(-0.03, 1.03))


def by_adam(ax, runs, entry):
    strengths(ax, runs, entry, "adam", {"lw": 1}, "Adam")
    ax.axhline(PUBLISHED[entry], label="published", **plot.law_look())
    error_axis(ax)


def by_others(ax, runs, entry):
    ds = runs[entry]
    strengths(ax, runs, entry, "adamw", {"ls": ":"}, "AdamW")
    for family in ("sign_gd", "gd"):
        for place, marker in zip(optimizers_of(ds, family), (plot.MARKERS[family], "v")):
            eta = float(ds["learning_rate"][int(place)])
            look = {"color": plot.COLOURS[family], "marker": marker, "markevery": 0.2, "ms": 2.5}
            over_steps(ax, ds, place, "test_error", f"{plot.NAMES[family]}, rate {eta:g}", **look)
    error_axis(ax)


def learned(ax, ds):
    """What the filters answer to, under Adam with the published decay."""
    place = optimizers_of(ds, "adam", weight_decay=DECAY)[0]
    for name, (label, colour, marker) in RESPONSES.items():
        over_steps(ax, ds, place, name, label, color=colour, marker=marker, markevery=0.2, ms=2.5)
    plot.level_line(ax)
    ax.set(xscale="log", xlabel="step t", ylabel="largest response")


def draw(runs):
    runs = {name: runs[name] for name in ENTRIES if name in runs and bool((runs[name]["status"] == 0).any())}
    fig, axes = plt.subplots(3, 2, figsize=(0.8 * plot.WIDE, 6.4), squeeze=False)
    titles = []
    for place, (row, words) in enumerate(zip(axes, ("Adam", "others", "filters"))):
        for ax, (entry, batches) in zip(row, ENTRIES.items()):
            titles.append(f"{words}, {batches}")
            if entry not in runs:
                ax.set_axis_off()
            elif place == 0:
                by_adam(ax, runs, entry)
            elif place == 1:
                by_others(ax, runs, entry)
            else:
                learned(ax, runs[entry])
    plot.letter_panels(axes.flat, titles)
    for row in axes:
        handles = dict(pair for ax in row for pair in zip(*reversed(ax.get_legend_handles_labels())))
        row[1].legend(handles.values(), handles, loc="center left", bbox_to_anchor=(1.02, 0.5))
    one = next(iter(runs.values()))
    plot.small_print(
        fig,
        f"{one.sizes['seed']} seeds, median and 5-95 %; e, f: Adam with decay 1e-5 · "
        f"{plot.sizes(one, 'n', 'd', 's', 'q', 'sigma_p', 'alpha')}, rate 5e-5 but for GD: published in arXiv "
        f"2510.11354 · {plot.sizes(one, 'width', 'sigma_0')} and all else reconstructed · Adam's decay is a penalty of "
        "the loss, AdamW's is decoupled",
    )
    return fig


main = plot.figure_script(draw, __doc__, reads="cnn/*")

if __name__ == "__main__":
    main()

"""SignGD against Adam against GD on both presets: attention, training loss, and test error at equal training loss.

Reads DIR/dynamics (sweeps/dynamics.py). Command: python figures/optimizers.py --results results --out results/figures
"""

import matplotlib.pyplot as plt

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.equal_loss import levels_of, with_captured

#: Training losses of runs that captured none.
LEVELS = (0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 1e-4)


def attention(ax, ds):
    """Attention of the noise query on the signal, one band per optimizer."""
    for i, family in enumerate(ds.family.values):
        mean = ds.s21.isel(optimizer=i).mean(["head", "sample"]).transpose("seed", "step")
        plot.band(ax, ds.step, mean, plot.NAMES[family], color=plot.COLOURS[family], linestyle=plot.STYLES[family])
    ax.set(xlabel="step t", xscale="symlog", xlim=(0, None), ylabel="$s_{21}$, noise query on signal")
    ax.set_xticks([0, 1, 10, 100, 1000])


def draw(paper_like, disjoint):
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.1))
    for row, preset, ds in zip(axes, ("paper-like", "disjoint"), (paper_like, disjoint)):
        ds = ds[with_captured(ds, ["train_loss", "test_error", "test_loss", "s21", "noise_l1", "status"])].load()
        attention(row[0], ds)
        plot.loss(ds, row[1])
        # At .6 GD is between its first two steps, and a reading there is neither's: a drop that no run goes through.
        plot.error_at_loss(ds, row[2], [level for level in levels_of(ds, LEVELS) if level <= 0.5])
        row[1].set_ylabel("training loss")
        for ax, title in zip(row, ("attention", "training loss", "test error")):
            ax.set_title(f"{preset}: {title}")
        for ax in row[1:]:
            ax.get_legend().remove()
    plot.key(fig, ncols=3)
    plot.footer(fig, ds, "disjoint; paper_like differs in independent supports and exact overlap")
    return fig


main = plot.figure_script(draw, __doc__, reads=("dynamics/paper_like", "dynamics/disjoint"), opens=js.open_results)

if __name__ == "__main__":
    main()

"""SignGD against Adam against GD on both presets: attention, training loss, and test error at equal training loss.

Reads DIR/dynamics (sweeps/dynamics.py). Command: python figures/optimizers.py --results results --out results/figures
"""

import matplotlib.pyplot as plt

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.equal_loss import with_captured


def attention(ax, ds):
    """Attention of the noise query on the signal, one band per optimizer."""
    for i, family in enumerate(ds.family.values):
        mean = ds.s21.isel(optimizer=i).mean(["head", "sample"]).transpose("seed", "step")
        plot.band(ax, ds.step, mean, plot.NAMES[family], color=plot.COLOURS[family], linestyle=plot.STYLES[family])
    ax.set(xlabel="step t", xscale="symlog", xlim=(0, None))


def draw(paper_like, theory):
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 3.6))
    for row, preset, ds in zip(axes, ("paper-like", "theory"), (paper_like, theory)):
        ds = ds[with_captured(ds, ["train_loss", "test_error", "test_loss", "s21", "noise_l1", "status"])].load()
        attention(row[0], ds)
        plot.loss(ds, row[1])
        plot.error_at_loss(ds, row[2])
        for ax, title in zip(row, ("$s_{21}$", "training loss", "error at equal loss")):
            ax.set_title(f"{preset}: {title}", fontsize=7)
            ax.set_ylabel("")
        row[2].get_legend().remove()
    axes[0, 0].legend()
    axes[0, 1].get_legend().remove()
    axes[1, 1].legend(loc="lower left", fontsize=6)
    plot.footer(fig, ds, "theory; paper_like differs in independent supports and exact overlap")
    return fig


main = plot.figure_script(draw, __doc__, reads=("dynamics/paper_like", "dynamics/theory"), opens=js.open_results)

if __name__ == "__main__":
    main()

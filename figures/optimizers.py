"""SignGD against Adam against GD on both presets: attention, training loss, and test error at equal training loss.

Reads DIR/dynamics (sweeps/dynamics.py). Command: python figures/optimizers.py --results results --out results/figures
"""

import argparse
from pathlib import Path

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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results")
    parser.add_argument("--out", default="results/figures")
    args = parser.parse_args()
    with plot.style():
        fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 3.6))
        for row, preset in zip(axes, ("paper_like", "theory")):
            ds = js.open_results(Path(args.results) / "dynamics" / preset)
            ds = ds[with_captured(ds, ["train_loss", "test_error", "test_loss", "s21", "noise_l1", "status"])].load()
            attention(row[0], ds)
            plot.loss(ds, row[1])
            plot.error_at_loss(ds, row[2])
            for ax, title in zip(row, ("$s_{21}$", "training loss", "error at equal loss")):
                ax.set_title(f"{preset.replace('_', '-')}: {title}", fontsize=7)
                ax.set_ylabel("")
            row[2].get_legend().remove()
        axes[0, 0].legend()
        axes[0, 1].get_legend().remove()
        axes[1, 1].legend(loc="lower left", fontsize=6)
        plot.footer(fig, ds, "theory; paper_like differs in independent supports and exact overlap")
        for path in plot.save(fig, args.out, "optimizers"):
            print(path)


if __name__ == "__main__":
    main()

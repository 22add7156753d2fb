"""Test error and test loss at equal training loss against SNR, bands over seeds and learning rates, laws dashed.

Reads DIR/snr/snr (sweeps/snr.py). Command: python figures/snr.py --results results --out results/figures
"""

import matplotlib.pyplot as plt

from jaxsign import plot

LEVEL = 0.1


def draw(ds):
    fig, axes = plt.subplots(1, 2, figsize=(plot.WIDE, 2.7))
    plot.snr(ds, axes[0], LEVEL, "test_error")
    plot.snr(ds, axes[1], LEVEL, "test_loss")
    for ax in axes:
        ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
        ax.minorticks_off()
        ax.get_legend().remove()
    plot.key(fig, ncols=5)
    for ax, title in zip(axes, ("test error", "test loss")):
        ax.set_title(f"{title} at training loss {LEVEL:g}")
    plot.footer(fig, ds, "paper_like")
    return fig


main = plot.figure_script(draw, __doc__, reads="snr/snr")

if __name__ == "__main__":
    main()

"""Do SignGD and Adam need cleaner data? How much more they err than GD on synthetic patches, real digits and real text.

Reads DIR/snr/snr, DIR/digits/two_layer and DIR/text/tokens (sweeps/snr.py, digits.py, text.py).
Command: python figures/cleaner_data.py --results results --out results/figures
"""

import matplotlib.pyplot as plt

from jaxsign import plot
from jaxsign.claims import atlas, digits, text

LEVEL = 0.1
FAMILIES = ("sign_gd", "adam")
#: {image scale: line style}
SCALES = {0.25: ":", 0.5: "--", 1.0: "-"}


def synthetic(ax, ds):
    """Error minus GD's against SNR, each optimizer at its worst learning rate."""
    for family in FAMILIES:
        gap = atlas.errors(ds, family, LEVEL) - atlas.errors(ds, "gd", LEVEL)
        look = {"color": plot.COLOURS[family], "marker": plot.MARKERS[family], "ms": 3}
        plot.band(ax, ds["snr"], gap.transpose("seed", "snr"), plot.NAMES[family], **look)
    ax.set(xscale="log", xlabel="SNR")


def images(ax, ds):
    """SignGD's error minus GD's against the number of images, a line a scale."""
    for scale, style in SCALES.items():
        gap = digits.gap(ds, "sign_gd", scale=scale)
        look = {"color": plot.COLOURS["sign_gd"], "ls": style}
        plot.band(ax, gap["n_train"], gap.transpose("seed", "n_train"), f"scale {scale:g}", **look)
    ax.set(xscale="log", xlabel="training images")


def sentences(ax, ds):
    """Error minus GD's without and with injected words."""
    counts = [0, 12]
    for shift, family in zip((-0.06, 0.06), FAMILIES):
        gaps = [text.gap(family, kernel="softmax", injected=count)(ds) for count in counts]
        middle, low, high = zip(*([float(gap.quantile(q)) for q in (0.5, 0.05, 0.95)] for gap in gaps))
        places = [place + shift for place in range(len(counts))]
        look = {"color": plot.COLOURS[family], "marker": plot.MARKERS[family], "ms": 4, "ls": "none"}
        plot.dots(ax, places, middle, low, high, plot.NAMES[family], **look)
    ax.set_xticks(range(len(counts)), [str(count) for count in counts])
    ax.set(xlabel="injected words", xlim=(-0.5, len(counts) - 0.5))


def draw(patches, real_digits, real_text):
    fig, axes = plt.subplots(1, 3, figsize=(plot.WIDE, 2.7))
    synthetic(axes[0], patches)
    images(axes[1], real_digits)
    sentences(axes[2], real_text)
    for ax in axes:
        plot.level_line(ax)
        ax.set_ylabel("test error minus GD's")
    axes[0].legend(loc="lower right")
    axes[1].legend(loc="lower right")
    axes[2].legend(loc="upper left")
    axes[1].set_ylim(-0.27, None)  # room for the key
    plot.letter_panels(axes, ["synthetic, n = 20", "digits, SignGD", "sentences, n = 500"])
    plot.small_print(fig, f"training loss {LEVEL:g}; medians and 5 to 95 % of seeds; above 0: GD errs less")
    return fig


main = plot.figure_script(draw, __doc__, reads=("snr/snr", "digits/two_layer", "text/tokens"))

if __name__ == "__main__":
    main()

"""Initial weights and the level: test error at equal training loss over sigma_0, SignGD and GD, with the law.

Reads DIR/atlas_error/start (sweeps/atlas_error.py).
Command: python figures/atlas_start.py --results results --out results/figures
"""

import matplotlib.pyplot as plt

from jaxsign import plot
from jaxsign.claims import atlas

LEVELS = (0.5, 0.1, 0.01)
FAMILIES = ("sign_gd", "gd")


def draw(ds):
    fig, axes = plt.subplots(2, 2, figsize=(plot.WIDE, 4.4), sharex=True, sharey=True)
    colours = plot.shades(len(LEVELS))
    snr = atlas.snr_of(ds).values
    places = [(family, place) for place in range(snr.size) for family in FAMILIES]
    for ax, (family, place) in zip(axes.flat, places):
        for level, colour in zip(LEVELS, colours):
            errors = atlas.errors(ds, family, level).sel(kernel="softmax").isel(d=-1, mu=place)
            plot.band(ax, ds["sigma_0"], errors.transpose("seed", "sigma_0"), f"training loss {level:g}", color=colour)
            law = atlas.laws(ds, level, atlas.POWERS[family]).isel(d=-1, mu=place)
            label = "law, uniform attention" if level == LEVELS[-1] else None
            ax.plot(ds["sigma_0"], law, **plot.law_look(), label=label)
        ax.set(xscale="log", ylim=(0, 0.52))
    for ax in axes[1]:
        ax.set_xlabel(r"initial standard deviation $\sigma_0$")
    for ax in axes[:, 0]:
        ax.set_ylabel("test error")
    axes[1, 1].legend(loc="upper left")
    plot.letter_panels(axes.flat, [f"{plot.NAMES[family]}, SNR {snr[place]:.2g}" for family, place in places])
    words = f"d to infinity, disjoint supports, attention trained, {ds.sizes['seed']} seeds; reconstructed"
    plot.small_print(fig, words)
    return fig


main = plot.figure_script(draw, __doc__, reads="atlas_error/start")

if __name__ == "__main__":
    main()

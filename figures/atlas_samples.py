"""More data: test errors of SignGD and GD over n and SNR, the boundaries between guessing and learning, and a collapse.

Reads DIR/atlas_samples (sweeps/atlas_samples.py).
Command: python figures/atlas_samples.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot, theory
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import atlas
from jaxsign.claims.dynamics import problem_of
from jaxsign.claims.sample_size import LEVEL, boundary

FAMILIES = ("sign_gd", "gd")
CONTOURS = (0.05, 0.45)
#: Lines by what fresh patches share with training.
OVERLAPS = {"exact": ("-", "d = 20,000"), "none": (":", r"d $\to\infty$")}


def maps(fig, axes, ds):
    """Test error over n and SNR with the law's contours, hatched where it is off."""
    snr = atlas.snr_of(ds).values
    marked = {int(np.argmin(np.abs(np.log(snr / value)))): value for value in (0.01, 0.1, 1.0)}
    columns = [plot.cell_name(marked[place]) if place in marked else "" for place in range(snr.size)]
    chosen = held_out(ds, "mu", "n").transpose("n", "mu")
    for ax, family in zip(axes, FAMILIES):
        mean = atlas.errors(ds, family, LEVEL).mean("seed").transpose("n", "mu")
        law = atlas.laws(ds, LEVEL, atlas.POWERS[family]).transpose("n", "mu")
        image = plot.heat_map(
            ax, mean.assign_coords(mu=snr), (0.0, 0.5),
            contours=CONTOURS, of=law, hatched=abs(mean - law) > atlas.CLOSE, held_out=chosen,
            names=([str(n) for n in ds["n"].values], columns),
        )  # fmt: skip
        ax.set(xlabel="SNR", ylabel="examples n")
    fig.colorbar(image, ax=axes, pad=0.01, aspect=14, label="test error")


def boundaries(ax, entries):
    """SNR at which the error is .25 against n: bands over seeds, laws dashed."""
    for overlap, (line, words) in OVERLAPS.items():
        ds = entries[overlap]
        snr, n = atlas.snr_of(ds).values, ds["n"].values
        for family in FAMILIES:
            b = boundary(atlas.errors(ds, family, LEVEL), snr)
            label = f"{plot.NAMES[family]}, {words}"
            plot.band(ax, n, b.transpose("seed", "n"), label, color=plot.COLOURS[family], ls=line)
            law = boundary(atlas.laws(ds, LEVEL, atlas.POWERS[family]), snr)
            ax.plot(n, law, label=f"law, {plot.NAMES[family]}", **plot.law_look(family))
    ax.set(xscale="log", xlabel="examples n", ylabel="SNR at error .25")
    if any(np.isfinite(line.get_ydata()).any() for line in ax.lines):  # on a tiny map no error comes to .25
        ax.set_yscale("log")
    ax.set_xticks([4, 16, 64, 128], ["4", "16", "64", "128"])
    ax.minorticks_off()


def collapse(ax, ds, family):
    """Errors at every n against the variable that the law of overlap alone depends on."""
    ds = ds.isel(n=slice(None, None, 2))
    problems = [problem_of(ds.isel(n=place, mu=0, optimizer=0, seed=0))[0] for place in range(ds.sizes["n"])]
    snr, mean = atlas.snr_of(ds).values, atlas.errors(ds, family, LEVEL).mean("seed")
    colours = plot.shades(len(problems))
    for place, problem in enumerate(problems):
        if family == "sign_gd":
            x = snr / np.sqrt(theory.overlap_share(problem))
        else:
            x = snr**2 * np.sqrt(problem.n * problem.d)
        ax.plot(x, mean.isel(n=place).transpose("mu"), color=colours[place], label=f"n = {problem.n}")
    words = {"sign_gd": r"SNR / $\sqrt{U}$", "gd": r"SNR$^2\sqrt{n d}$"}
    ax.set(xscale="log", xlabel=words[family], ylabel="test error")


def draw(entries):
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.4))
    maps(fig, axes[0, :2], entries["exact"])
    boundaries(axes[0, 2], entries)
    collapse(axes[1, 0], entries["exact"], "sign_gd")
    collapse(axes[1, 1], entries["exact"], "gd")
    plot.key(fig, ncols=1, axes=[axes[0, 2], axes[1, 0]], at=axes[1, 2])
    titles = ("SignGD", "GD", "boundaries", "SignGD: collapse?", "GD: collapse?")
    plot.letter_panels([*axes[0], *axes[1, :2]], titles)
    return fig


main = plot.figure_script(draw, __doc__, reads="atlas_samples/*")

if __name__ == "__main__":
    main()

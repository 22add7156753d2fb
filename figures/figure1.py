"""The paper's Figure 1 with bands over seeds: the four stages of SignGD, boundaries marked, underflow hatched.

Reads DIR/dynamics/paper_like (sweeps/dynamics.py), and for the query noise DIR/query_noise/paper_like
(sweeps/query_noise.py), which has 64 bits; without it panel (d) is drawn from 32 bits.
Command: python figures/figure1.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

import jaxsign as js
from jaxsign import plot
from jaxsign.analysis.runs import family_runs


def early(ax, ds, until):
    """Key noise of one row and mean value noise of every sample of seed 0, with the value-noise law dashed."""
    one = ds.isel(seed=0).sel(step=slice(0, until))
    ax.plot(one.step, one.key_noise.isel(row=0).transpose("step", "sample"), color=plot.NEGATIVE, lw=0.5, alpha=0.6)
    ax.plot(one.step, one.value_noise.transpose("step", "sample"), color=plot.POSITIVE, lw=0.5, alpha=0.6)
    start = float(one.value_noise.isel(step=0).mean())
    law = start + js.theory.value_noise_step(float(one.learning_rate), float(one.noise_l1.mean())) * one.step.values
    ax.plot(one.step, law, color="k", lw=0.8, ls="--")
    ax.plot([], [], color=plot.POSITIVE, label="mean value noise")
    ax.plot([], [], color=plot.NEGATIVE, label="key noise, row 0")
    ax.plot([], [], color="k", lw=0.8, ls="--", label=r"$2\eta\,\|\xi\|_1 t$")
    ax.set(xlabel="step t", xlim=(0, until))


def signals(ax, ds, until):
    """Query signal of the rows that are positive and negative at t = 100."""
    ds = ds.sel(step=slice(0, until))
    sign = np.sign(ds.query_signal.sel(step=100))
    for value, colour, label in ((1, plot.POSITIVE, "positive at t=100"), (-1, plot.NEGATIVE, "negative at t=100")):
        mean = ds.query_signal.where(sign == value).mean("row")
        plot.band(ax, ds.step, mean.transpose("seed", "step"), label, color=colour)
    ax.axhline(0, color="0.6", lw=0.5)
    ax.set(xlabel="step t")


def draw(every, wide):
    ds = family_runs(every, "sign_gd").load()
    one = ds.isel(optimizer=0)
    queries = wide["paper_like"].load() if wide else ds
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 3.6))
    for ax, until in zip(axes[0], (2, 10)):
        early(ax, one, until)
        plot.mark_stages(ax, ds, until)
    axes[0, 1].legend(fontsize=5.5, loc="upper left")
    axes[0, 1].set_ylim(None, 0.24)
    until = min(900, int(ds.step[-1]))
    for name, label, colour in (("s11", r"$s_{11}$", plot.NEUTRAL), ("s21", r"$s_{21}$", plot.POSITIVE)):
        mean = one[name].sel(step=slice(0, until)).mean(["head", "sample"])
        plot.band(axes[0, 2], mean.step, mean.transpose("seed", "step"), label, color=colour)
    axes[0, 2].set(xlabel="step t")
    plot.dynamics(queries, "query_noise", axes[1, 0], until)
    plot.dynamics(ds, "key_noise", axes[1, 1], until)
    signals(axes[1, 2], one, until)
    shown = ((axes[0, 2], ds, "s11"), (axes[1, 0], queries, "query_noise"), (axes[1, 1], ds, "key_noise"),
             (axes[1, 2], ds, "query_signal"))  # fmt: skip
    for ax, source, name in shown:
        plot.mark_stages(ax, ds, until)
        ax.set_xlim(0, until)
        ax.set_xticks(range(0, until + 1, 300))
        if name in ("query_noise", "key_noise"):  # room for the key above the curves
            ax.set_ylim(top=1.45 * ax.get_ylim()[1])
        plot.hatch_underflow(ax, source, name)
        ax.legend(fontsize=5.5, loc="center right" if ax in (axes[0, 2], axes[1, 2]) else "upper left")
        ax.set_ylabel("")
    bits = " (64 bit)" if wide else ""
    titles = "start, t ≤ 2", "start, t ≤ 10", "softmax outputs", f"query noise{bits}", "key noise", "query signal"
    plot.letter_panels(axes.flat, titles, pad=9)
    plot.footer(fig, ds)
    return fig


main = plot.figure_script(
    draw, __doc__, reads=("dynamics/paper_like", "query_noise/paper_like*"), opens=js.open_results
)

if __name__ == "__main__":
    main()

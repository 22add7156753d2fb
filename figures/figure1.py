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
from jaxsign.analysis.stages import BOUNDARIES
from jaxsign.plot.checks import SEED

#: One name for the lines of a colour, in (d), (e) and (f).
SIGNS = {"same sign": "same sign, f: positive at t = 100", "opposed": "opposed, f: negative at t = 100"}


def early(ax, ds, until):
    """Key noise of one row and mean value noise of every sample of seed 0, with the value-noise law dashed."""
    one = ds.isel(seed=0).sel(step=slice(0, until))
    for name, noise in (("key", one.key_noise.isel(row=0)), ("value", one.value_noise)):
        ax.plot(one.step, noise.transpose("step", "sample"), color=plot.GROUPS[name], lw=0.5, gid=SEED)
    ax.plot([], [], color=plot.GROUPS["key"], label="key noise of row 0, every sample")
    ax.plot([], [], color=plot.GROUPS["value"], label="value noise, every sample")
    start = float(one.value_noise.isel(step=0).mean())
    law = start + js.theory.value_noise_step(float(one.learning_rate), float(one.noise_l1.mean())) * one.step.values
    ax.plot(one.step, law, label=r"law of value noise, $2\eta\,\|\xi\|_1 t$", **plot.law_look())
    ax.set(xlabel="step t", xlim=(0, until), ylabel="noise, seed 0")


def outputs(ax, ds):
    """Softmax outputs on the signal, of the signal's query and of the noise's."""
    for name, query, colour in (("11", "signal", "#000000"), ("21", "noise", "#949494")):
        mean = ds[f"s{name}"].mean(["head", "sample"])
        label = f"$s_{{{name}}}$, of the {query} query"
        plot.band(ax, mean.step, mean.transpose("seed", "step"), label, color=colour)
    ax.set(xlabel="step t", ylabel="output on signal")


def signals(ax, ds):
    """Query signal of the rows that are positive and negative at t = 100."""
    sign = np.sign(ds.query_signal.sel(step=100))
    for value, colour, label in zip((1, -1), (plot.POSITIVE, plot.NEGATIVE), SIGNS.values()):
        mean = ds.query_signal.where(sign == value).mean("row")
        plot.band(ax, ds.step, mean.transpose("seed", "step"), label, color=colour)
    plot.level_line(ax)
    ax.set(xlabel="step t", ylabel="query signal")


def draw(every, wide):
    ds = family_runs(every, "sign_gd").load()
    one = ds.isel(optimizer=0)
    queries = wide["paper_like"].load() if wide else ds
    until = min(900, int(ds.step[-1]))
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.3))
    for ax, last in zip(axes[0], (2, 10)):
        early(ax, one, last)
    outputs(axes[0, 2], one.sel(step=slice(0, until)))
    plot.dynamics(queries, "query_noise", axes[1, 0], until)
    plot.dynamics(ds, "key_noise", axes[1, 1], until)
    signals(axes[1, 2], one.sel(step=slice(0, until)))
    stages = js.find_stages(one)
    for ax in axes.flat:
        plot.mark_stages(ax, ds, 10 if ax is axes[0, 1] else 2 if ax is axes[0, 0] else until, stages)
    for ax, source, name in zip(
        axes.flat[2:], (ds, queries, ds, ds), ("s11", "query_noise", "key_noise", "query_signal")
    ):
        ax.set(xlim=(0, until), xticks=range(0, until + 1, 300))
        plot.hatch_underflow(ax, source, name)
    for ax, name in ((axes[1, 0], "query"), (axes[1, 1], "key")):
        ax.set_ylabel(f"{name} noise · sgn(query signal)", fontsize=7)
        for line in ax.lines:
            line.set_label(SIGNS.get(line.get_label(), line.get_label()))
    bits = ", 64 bit" if wide else ""
    titles = "first steps", "first 10 steps", "softmax outputs", f"query noise{bits}", "key noise", "query signal"
    plot.letter_panels(axes.flat, titles, pad=17)
    ends = [f"{name[2:]} {float(stages[name].median()):g}" for name in BOUNDARIES if stages[name].notnull().any()]
    words = (
        f"median ends of the stages: {', '.join(ends)}\n(I to IV are the paper's, V is ours: query noise has turned)"
    )
    axes[0, 0].plot([], [], color="0.35", lw=0.6, ls=":", label=words)
    plot.key(fig, ncols=2, axes=[axes[0, 0], axes[0, 2], *axes[1]])
    plot.footer(fig, ds)
    return fig


main = plot.figure_script(
    draw, __doc__, reads=("dynamics/paper_like", "query_noise/paper_like*"), opens=js.open_results
)

if __name__ == "__main__":
    main()

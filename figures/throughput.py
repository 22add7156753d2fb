"""Seed-steps per second against the number of runs, and time per seed-step against d, n, s and m_k, with SignGD.

Reads DIR/throughput (sweeps/bench/throughput.py).
Command: python figures/throughput.py --results results --out results/figures
"""

import csv
import json

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from jaxsign import plot

LOOKS = {name: {"color": colour, "marker": marker} for name, (colour, marker) in plot.ENGINES.items()}
OTHER = {"color": plot.NEUTRAL, "marker": "X"}
#: Of the repeats: their median, slowest and fastest.
RATES = ("seed_steps_per_s", "slowest_per_s", "fastest_per_s")
AXES = {"d": "dimension d", "n": "examples n", "s": "sparsity s", "m_k": "rows $m_k$"}


def read(directory):
    """(rows with numbers in place of text, machine)."""
    numbers = {"runs", "test_eval", "devices", "n", "d", "s", "m_k", *RATES}
    with open(directory / "throughput.csv", newline="", encoding="utf-8") as file:
        rows = [{k: float(v) if k in numbers else v for k, v in row.items()} for row in csv.DictReader(file)]
    rows = [row for row in rows if row["optimizer"] == "SignGD"]
    return rows, json.loads((directory / "machine.json").read_text(encoding="utf-8"))


def lines(ax, rows, x, cost):
    """One line a contender, with bars from the slowest to the fastest repeat: seed-steps per second, or µs a step."""
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = sorted((row for row in rows if row["contender"] == name), key=lambda row: row[x])
        places = [row[x] for row in own]
        rates = np.array([[row[of] for row in own] for of in RATES])
        values = 1e6 / rates if cost else rates
        look = {"lw": 0.9, "ls": "-", **LOOKS.get(name, OTHER)}
        plot.dots(ax, places, *values, None if cost else name, **look)
    ax.set(xscale="log", yscale="log")


def footer(fig, rows, machine):
    first, versions = rows[0], machine["versions"]
    tools = ", ".join(f"{name} {versions[name]}" for name in ("jax", "optax", "torch", "python") if name in versions)
    text = (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average_before']:g} at the start · {tools} · "
        f"float32, supports disjoint: n={first['n']:g} d={first['d']:g} s={first['s']:g} m_k={first['m_k']:g}, SignGD, "
        "the loss at every step, four scalars every 50, no test metrics; compilation and drawing outside the clock; "
        "bars: slowest to fastest repeat"
    )
    plot.small_print(fig, text)


def draw(measured):
    rows, machine = measured
    cells = [row for row in rows if row["part"] == "table" and not row["test_eval"]]
    base = [row for row in rows if row["part"] == "base" and row["devices"] == machine["devices"]]
    fig, axes = plt.subplot_mosaic([["runs", "d", "n"], ["runs", "s", "m_k"]], figsize=(plot.WIDE, 3.8),
                                   width_ratios=[2.2, 1, 1])  # fmt: skip
    lines(axes["runs"], cells, "runs", cost=False)
    counts = sorted({int(row["runs"]) for row in cells})
    axes["runs"].set_xticks(counts, [str(count) for count in counts])
    axes["runs"].xaxis.set_minor_locator(NullLocator())
    axes["runs"].set(xlabel="runs", ylabel="seed-steps per second")
    for name, label in AXES.items():
        ax = axes[name]
        scan = [row for row in rows if row["part"] == name] + base
        lines(ax, scan, name, cost=True)
        values = sorted({int(row[name]) for row in scan})
        ax.set_xticks(values, [str(value) for value in values])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(LogLocator(numticks=9))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel=label, ylabel="µs a step")
    limits = [axes[name].get_ylim() for name in AXES]
    for name in AXES:  # one scale, so that the four can be compared
        axes[name].set_ylim(min(low for low, _ in limits) / 1.2, max(high for _, high in limits) * 1.2)
    plot.letter_panels(
        axes.values(), ["speed against runs", *(f"cost, {name}".replace("m_k", "$m_k$") for name in AXES)]
    )
    plot.key(fig, ncols=3, axes=[axes["runs"]])
    footer(fig, cells, machine)
    return fig


main = plot.figure_script(draw, __doc__, reads="throughput", opens=read)

if __name__ == "__main__":
    main()

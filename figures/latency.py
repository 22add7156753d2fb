"""How long a user waits for the first numbers and for the next ones, beside their targets.

Reads DIR/latency (sweeps/bench/latency.py).
Command: python figures/latency.py --results results --out results/figures
"""

import csv

import matplotlib.pyplot as plt

from jaxsign import plot


def read(directory):
    """Rows of the table with numbers in place of text."""
    with open(directory / "latency.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = ("wall", "cpu", "lowest", "highest")
    return [row | {name: float(row[name]) for name in numbers} for row in rows if row["of"] != "ratio"]


def draw(rows):
    fig, ax = plt.subplots(figsize=(plot.WIDE, 0.36 * len(rows) + 0.7))
    for place, row in enumerate(reversed(rows)):
        for shift, of in ((0.17, "wall"), (-0.17, "cpu")):
            label = f"{of if of == 'wall' else 'CPU'} seconds, median" if place == 0 else None
            ax.barh(place + shift, row[of], 0.3, color=plot.SECONDS[of], label=label)
            if row["of"] == of:
                spread = [row["lowest"], row["highest"]]
                label = "lowest to highest" if place == 0 else None
                ax.plot(spread, [place + shift] * 2, color=plot.NEUTRAL, lw=0.8, label=label)
            judged = row["of"] == of
            end = max(row[of], judged * row["highest"], judged * float(row["bar"] or 0))  # clear of spread and target
            ax.annotate(
                f"{row[of]:.2g}", (end, place + shift), xytext=(3, 0), textcoords="offset points", va="center",
                fontsize=7,
            )  # fmt: skip
        if row["bar"]:
            shift = 0.17 if row["of"] == "wall" else -0.17
            ax.plot(
                [float(row["bar"])] * 2, [place + shift - 0.17, place + shift + 0.17], color="k", lw=1.6,
                label="target for this time" if row["case"] == "warm" else None,
            )  # fmt: skip
    ax.set_yticks(range(len(rows)), [row["what"] for row in reversed(rows)])
    ax.set(xscale="log", xlabel="seconds", ylabel="what is waited for")
    ax.margins(x=0.12)
    plot.key(fig, ncols=4)
    return fig


main = plot.figure_script(draw, __doc__, reads="latency", opens=read)

if __name__ == "__main__":
    main()

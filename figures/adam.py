"""Adam beside SignGD: losses, rates, signs of updates, eps, Signum's momentum; and, over both betas, maps of distances.

Reads DIR/adam (sweeps/adam.py). Draws `adam`, lines, and `adam_betas`, maps over b1 and b2.
Command: python figures/adam.py --results results --out results/figures
"""

import itertools
import warnings

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import jaxsign as js
from jaxsign import plot, theory
from jaxsign.analysis.runs import optimizers_of, select
from jaxsign.analysis.stages import flipped
from jaxsign.claims import adam

#: Of Adam's b2 and of Signum's beta, told apart by markers, too.
BETAS = (0.0, 0.5, 0.9, 0.99, 0.999)
LOOKS = {
    beta: {"color": colour, "marker": marker, "ms": 3, "markevery": 0.2}
    for beta, colour, marker in zip(BETAS, plot.shades(len(BETAS)), "Ds^vo")
}
UNTIL = 2000


def pairs(ds):
    """(place, b1, b2) of every run of Adam."""
    return [(int(i), float(ds["b1"][i]), float(ds["b2"][i])) for i in optimizers_of(ds, "adam")]


def medians(ds, measure):
    """{(b1, b2): (median over the seeds that have it, share of them, word if none has)} of `measure(runs, b1, b2)`."""
    cells = {}
    for place, b1, b2 in pairs(ds):
        runs = ds.isel(optimizer=place)
        values = np.asarray(measure(runs, b1, b2).transpose("seed"), float)
        finite = np.isfinite(values)
        middle = float(np.median(values[finite])) if finite.any() else np.nan
        ran_away = (runs["train_loss"].isel(step=-1) == 0).mean() >= 0.5
        word = "div." if (runs["status"] == 1).mean() >= 0.5 else "away" if ran_away else "none"
        cells[b1, b2] = (middle, float(finite.mean()), word)
    return cells


def heat(ax, cells, limits, form="{:.2f}", log=False):
    """A map over (b1, b2) with its numbers in the cells; in brackets if under half of the seeds have it."""
    betas = [sorted({key[axis] for key in cells}) for axis in (0, 1)]
    table = np.array([[cells[b1, b2][0] for b2 in betas[1]] for b1 in betas[0]])
    shown = np.clip(np.log10(np.maximum(table, 1e-300)) if log else table, *limits)
    ax.imshow(shown, cmap="cividis", vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
    for row, b1 in enumerate(betas[0]):
        for column, b2 in enumerate(betas[1]):
            value, share, word = cells[b1, b2]
            dark = np.isnan(value) or shown[row, column] < sum(limits) / 2
            text = (form if share >= 0.5 else "(" + form + ")").format(value)
            if np.isnan(value):
                text = word
                ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, color="0.35", lw=0))
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
        # This line is invisible: `plot.save` writes the numbers of lines.
        ax.plot(betas[1], table[row], ls="none", label=f"b1={b1:g}", scalex=False, scaley=False)
    names = [[f"{b:g}".replace("0.", ".") for b in one] for one in betas]
    ax.set_xticks(range(len(names[1])), names[1])
    ax.set_yticks(range(len(names[0])), names[0])
    ax.set_xlabel("$b_2$", labelpad=1)
    ax.set_ylabel("$b_1$", labelpad=1)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def trace_distance(ds, runs):
    """Mean over steps, evenly spaced in ln t, of |log10 L - log10 L(SignGD)| of the same seed up to UNTIL."""
    steps = ds["step"].values
    grid = np.unique(np.geomspace(20, min(UNTIL, steps[-1]), 40).astype(int))
    places = np.unique(np.searchsorted(steps, grid))
    sign = select(ds, "sign_gd")
    gap = np.log10(runs["train_loss"]) - np.log10(sign["train_loss"])
    return np.abs(gap).isel(step=places[places < steps.size]).mean("step", skipna=False)


def late_ratio(runs, b1, b2):
    """Late rate over the law; over nothing where the law has no root, or the run no late steps."""
    window = adam.late_window(b2)
    if not set(window) <= set(runs["step"].values.tolist()):
        return runs["status"] * np.nan
    law = adam.late_law(runs, b1, b2)
    return adam.rate(runs, *window) / law


def departure(ds, b1, b2):
    """First step at which Adam's local rate is below half of SignGD's."""
    if not set(adam.STRETCHES) <= set(ds["step"].values.tolist()):
        return ds["status"].isel(optimizer=0) * np.nan
    return adam.departure(ds, b1, b2)


def lines(betas, late, b2s):
    """(b2, runs) with b1 = .9, from the sweep that follows them longest."""
    for b2 in b2s:
        ds = late if b2 == 0.999 else betas
        if (0.9, b2) in {(one, other) for _, one, other in pairs(ds)}:
            yield b2, select(ds, "adam", b1=0.9, b2=b2)


def local_rates(ax, betas, late):
    """Local rate over 1-b2 against t (1-b2): one law for all b2 whose late rate is far below SignGD's."""
    for b2, runs in lines(betas, late, (0.99, 0.999)):
        steps = [t for t in runs["step"].values.tolist() if 100 <= t <= 10.5 / (1 - b2) and t % 50 == 0]
        if len(steps) < 2:
            continue
        table = xr.concat([adam.rate(runs, *pair) for pair in itertools.pairwise(steps)], "step")
        x = np.array([(a + b) / 2 for a, b in itertools.pairwise(steps)]) * (1 - b2)
        plot.band(ax, x, table.transpose("seed", "step") / (1 - b2), f"$b_2$ or $\\beta$ = {b2:g}", **LOOKS[b2])
    x = np.geomspace(0.1, 10, 100)
    ax.plot(x, theory.adam_sublinear_rate(x * 1e6, 1 - 1e-6) * 1e6, label="law (b, d)", **plot.law_look())
    ax.axhline(0.5, label=r"law of late $t$, $\ln(1/b_2)/2$", **plot.law_look("gd"))
    ax.set(xscale="log", yscale="log", xlabel="$t\\,(1-b_2)$", ylabel="rate / $(1-b_2)$")


def losses(ax, betas, late):
    """Training loss of SignGD and of Adam with b1 = .9."""
    sign = select(late, "sign_gd")
    plot.band(ax, sign["step"], sign["train_loss"].transpose("seed", "step"), "SignGD", color=plot.COLOURS["sign_gd"])
    for b2, runs in lines(betas, late, (0.5, 0.9, 0.99, 0.999)):
        values = runs["train_loss"].transpose("seed", "step")
        plot.band(ax, runs["step"], values, f"$b_2$ or $\\beta$ = {b2:g}", **LOOKS[b2])
    ax.set(xscale="log", yscale="log", xlim=(50, None), ylim=(1e-18, 3), xlabel="step t", ylabel="training loss")


def agreements(ax, ds):
    """Share of coordinates that a step moves as SignGD would, b1 = b2 = .9 and .9, .999; queries, keys, values."""
    for b2, line in ((0.999, "-"), (0.9, ":")):
        if (0.9, b2) not in {(b1, b2) for _, b1, b2 in pairs(ds)}:
            continue
        runs = select(ds, "adam", b1=0.9, b2=b2)
        for name, colour in plot.GROUPS.items():
            values = runs[f"update_agreement_{name[0]}"].transpose("seed", "step")
            plot.band(ax, ds["step"], values, f"{name} weights", color=colour, ls=line)
    ax.set(xscale="log", xlim=(1, UNTIL), ylim=(0.5, 1.02), xlabel="step t", ylabel="signs as SignGD's")


def eps_panel(ax, ds):
    """What eps leaves of the value layer's first slope and of the late rate, over eps."""
    late = {1100, 1500} <= set(ds["step"].values.tolist())
    values = sorted({float(e) for e in ds["eps"].values if np.isfinite(e)})
    measures = {"value slope": lambda b2, eps: adam.value_slope(ds, b2, eps)}
    if late:
        measures["late rate"] = lambda b2, eps: adam.rate(select(ds, "adam", b2=b2, eps=eps), 1100, 1500)
    for b2, fill in ((0.999, "full"), (0.9, "none")):
        looks = plot.PLACES[0], {"color": plot.NEUTRAL, "marker": "x"}
        for (name, measure), look in zip(measures.items(), looks if b2 in ds["b2"].values else ()):
            table = xr.concat([measure(b2, eps) for eps in values], "eps")
            share = (table if name == "value slope" else table / table.isel(eps=0)).transpose("seed", "eps")
            look = {**look, "ms": 3, "fillstyle": fill, "ls": "-" if fill == "full" else ":"}
            plot.band(ax, values, share, name, **look)
    grid = np.geomspace(1e-8, 1e-2, 60)
    ax.plot(grid, [adam.value_slope_law(ds, eps) for eps in grid], label="law (b, d)", **plot.law_look())
    ax.set(xscale="log", xlabel=r"$\epsilon$", ylabel=r"over that at $10^{-15}$", ylim=(-0.05, 1.25))


def signum_panel(ax, ds):
    """Share of opposed query noise (lines) that has turned under Signum."""
    for beta in sorted(set(ds["beta"].values.tolist())):
        runs = select(ds, "signum", beta=beta)
        turned = flipped(runs, "query_noise").sel(step=slice(100, UNTIL)) if 100 in ds["step"] else None
        if turned is not None:
            plot.band(
                ax, turned["step"], turned.transpose("seed", "step"), f"$b_2$ or $\\beta$ = {beta:g}", **LOOKS[beta]
            )
    ax.set(xlabel="step t", ylabel="turned query noise", ylim=(-0.04, 1.04), xlim=(100, 1000))


def signum_times(ax, ds):
    """Stage times over those without momentum, and the late rate over SignGD's law, against the momentum."""
    betas = sorted(set(ds["beta"].values.tolist()))
    stages = js.find_stages(ds)
    for name, look in zip(("t_II", "t_III", "t_IV"), plot.PLACES[1:]):
        times = xr.concat([select(stages.assign(status=ds["status"]), "signum", beta=b)[name] for b in betas], "beta")
        ratio = (times / times.isel(beta=0)).transpose("seed", "beta")
        plot.band(ax, range(len(betas)), ratio, rf"$t_\mathrm{{{name[2:]}}}$ / that of $\beta=0$", **look, ms=3)
    if {1100, 1500} <= set(ds["step"].values.tolist()):
        runs = [select(ds, "signum", beta=beta) for beta in betas]
        rates = xr.concat([adam.rate(one, 1100, 1500) / adam.late_law(one) for one in runs], "beta")
        plot.band(ax, range(len(betas)), rates.transpose("seed", "beta"), "late rate / predicted", color=plot.NEUTRAL)
    ax.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    ax.set(xlabel=r"$\beta$", yscale="log", ylim=(0.2, 60), ylabel="ratio")


def draw_lines(betas, late, signum, eps):
    """Losses, rates, signs of updates, eps, and Signum's momentum."""
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 5.8))
    losses(axes[0, 0], betas, late)
    local_rates(axes[0, 1], betas, late)
    agreements(axes[0, 2], betas)
    eps_panel(axes[1, 0], eps)
    signum_panel(axes[1, 1], signum)
    signum_times(axes[1, 2], signum)
    titles = "Adam, $b_1=.9$", "Adam, $b_1=.9$", "Adam, $b_1=.9$", "Adam, $b_1=.9$", "Signum", "Signum"
    plot.letter_panels(axes.flat, titles)
    plot.style_key(axes[1, 2], "$b_2=.9$ (c, d; solid: .999)", ls=":")
    plot.key(fig, ncols=3)
    text = (
        f"{betas.sizes['seed']} seeds, disjoint; d: {eps.sizes['seed']} seeds, paper_like; both reconstructed, "
        f"{plot.sizes(betas, 'n', 'd', 's', 'm_k')}, eta=1e-4, float64; median and 5-95 %"
    )
    plot.small_print(fig, text)
    return fig


#: What stands in a cell in place of a number.
CODES = (
    ("away", "the loss reaches 0 in 64 bit: steps grow without bound"), ("none", "no seed has the number"),
    ("div.", "runs diverge"), ("(1)", "fewer than half of the seeds have it"),
)  # fmt: skip


def draw_maps(betas, late):
    """Six numbers over b1 and b2."""
    last = int(betas["step"][-1])
    stages = js.find_stages(betas)
    delay = stages["t_II"] / stages["t_II"].isel(optimizer=int(optimizers_of(betas, "sign_gd")[0]))
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.9))
    distances = medians(betas, lambda runs, b1, b2: trace_distance(betas, runs))
    heat(axes[0, 0], distances, (-1.5, 1.2), "{:.2f}", log=True)
    heat(axes[0, 1], medians(betas.assign(delay=delay), lambda runs, b1, b2: runs["delay"]), (0.5, 4), "{:.2g}")
    heat(axes[0, 2], medians(betas, late_ratio) | medians(late, late_ratio), (0.5, 1.5))
    for ax, name in zip(axes[1], ("query_noise", "key_noise")):
        heat(ax, medians(betas, lambda runs, b1, b2, name=name: flipped(runs, name, last)), (0, 1))
    heat(axes[1, 2], medians(betas, lambda runs, b1, b2: departure(betas, b1, b2)), (100, 500), "{:.0f}")
    titles = (
        "distance in $\\log_{10}L$", r"$t_\mathrm{II}$ / SignGD's", "late rate / law", "turned query noise",
        "turned key noise", "step: rate halved",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles)
    words = [plt.Line2D([], [], ls="none", label=f"{code}: {meaning}") for code, meaning in CODES]
    fig.legend(handles=words, loc="outside upper center", ncols=2, handlelength=0, handletextpad=0)
    text = (
        f"{betas.sizes['seed']} seeds, disjoint, reconstructed, {plot.sizes(betas, 'n', 'd', 's', 'm_k')}, eta=1e-4, "
        f"float64; median over the seeds that have the number; d, e: at t = {last}; f: first step with under half of "
        "SignGD's local rate"
    )
    plot.small_print(fig, text)
    return fig


def draw(betas, late, signum, eps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # logarithms of what diverged
        return {"adam": draw_lines(betas, late, signum, eps), "adam_betas": draw_maps(betas, late)}


main = plot.figure_script(draw, __doc__, reads=("adam/betas", "adam/late", "adam/signum", "adam/eps"))

if __name__ == "__main__":
    main()

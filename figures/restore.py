"""What restores generalisation: test error against batch size, weight decay, temperature and step, laws dashed.

Reads DIR/restore (sweeps/restore.py). Command: python figures/restore.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

import jaxsign as js
from jaxsign import plot, theory
from jaxsign.analysis.equal_loss import levels_of
from jaxsign.analysis.runs import family_runs, select
from jaxsign.claims.dynamics import problem_of
from jaxsign.claims.restore import batch_law, whole_batch

LEVEL = 0.1
FAMILIES = ("sign_gd", "adam", "gd")
#: Attention trained, attention frozen at 1/2.
TRAINED, FROZEN = {"ls": "-", "ms": 3}, {"ls": ":", "ms": 3, "fillstyle": "none", "lw": 0.8}
#: All examples a step, two examples.
SIZES = ((None, {"markevery": 0.3, "ms": 3}), (2, {"marker": "x", "markevery": 0.15, "ms": 3}))


def optimizer(family):
    return {"color": plot.COLOURS[family], "marker": plot.MARKERS[family]}


def level(ax, values, family):
    """A horizontal band: median and 5-95 % of one optimizer's runs."""
    values = values.values[np.isfinite(values.values)]
    if values.size:
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        ax.axhline(middle, color=plot.COLOURS[family], lw=0.7)
        ax.axhspan(low, high, color=plot.COLOURS[family], alpha=0.12, lw=0)


def against_batch(ax, runs, name):
    """A test quantity at training loss .1 over batch sizes, with the laws of the error."""
    for entry, look in (("batch", TRAINED), ("batch_frozen", FROZEN)):
        at = js.at_train_loss(runs[entry], LEVEL, [name], leaps=False)
        for family in [f for f in FAMILIES if f in at["family"].values]:
            values = select(at, family)[name].transpose("seed", "batch_size")
            label = plot.NAMES[family] if entry == "batch" else None
            plot.band(ax, at["batch_size"], values, label, **optimizer(family), **look)
    if name == "test_error":
        sizes = np.arange(1, whole_batch(runs["batch"]) + 1)
        for family in ("sign_gd", "adam"):
            law = [batch_law(runs["batch"], family, int(size)) for size in sizes]
            ls = "--" if family == "sign_gd" else "-."
            ax.plot(sizes, law, label=f"law of {plot.NAMES[family]}", **{**plot.law_look(), "ls": ls}, zorder=3)
        problem, hyper = problem_of(runs["batch"].isel(batch_size=0))
        law = float(theory.gd_test_error(problem, hyper.mu, hyper.sigma_p))
        ax.axhline(law, label="law of GD", **plot.law_look("gd"))
    ax.set(xscale="log", xlabel="mini-batch size B", ylabel=name.replace("_", " "))
    ticks = runs["batch"]["batch_size"].values
    ax.set_xticks(ticks, [str(size) for size in ticks])
    ax.minorticks_off()


def against_decay(ax, runs, kind):
    """Test error at the last step over strengths of one kind of decay where the loss is .1 or less."""
    for entry, look in (("rules", TRAINED), ("rules_frozen", FROZEN)):
        ends = runs[entry].isel(step=-1)
        for family in ("sign_gd", "adam"):
            if f"{family}_{kind}" in ends["family"].values:
                decayed = family_runs(ends, f"{family}_{kind}")
                fits = decayed["train_loss"].mean("seed") <= LEVEL
                values = decayed["test_error"].where(fits).transpose("seed", "optimizer")
                strengths = decayed["weight_decay"].values
                plot.band(ax, strengths, values, **optimizer(family), **look)
                ax.set_xlim(strengths.min() / 2, 2 * strengths.max())  # also where no run fits
    ends = runs["rules"].isel(step=-1)
    for family in ("sign_gd", "gd"):
        level(ax, select(ends, family)["test_error"], family)
    ax.set(xscale="log", xlabel=rf"{kind} decay $\lambda$", ylabel="test error")


def against_temperature(ax, runs):
    """Test error at training loss .1 over temperatures, with the law at the start and at p = .1."""
    for entry, look in (("rules", TRAINED), ("rules_frozen", FROZEN)):
        smooth = family_runs(js.at_train_loss(runs[entry], LEVEL, ["test_error"], leaps=False), "smooth_sign_gd")
        values = smooth["test_error"].transpose("seed", "optimizer")
        label = "smooth sign" if entry == "rules" else None
        plot.band(ax, smooth["temperature"], values, label, color=plot.COLOURS["smooth_sign_gd"], marker="D", **look)
    problem, hyper = problem_of(runs["rules"])
    grid = np.geomspace(float(smooth["temperature"].min()), float(smooth["temperature"].max()), 60)
    for p, ls in ((0.5, "-."), (0.1, ":")):
        shares = [theory.smooth_sign_share(problem, hyper.mu, hyper.sigma_p, tau, p) for tau in grid]
        law = [float(theory.shared_test_error(problem, hyper.mu, hyper.sigma_p, share)) for share in shares]
        ax.plot(grid, law, label=f"law of smooth sign, p = {p:g}", **{**plot.law_look("gd"), "ls": ls})
    at = js.at_train_loss(runs["rules"], LEVEL, ["test_error"], leaps=False)
    for family in ("sign_gd", "gd"):
        level(ax, select(at, family)["test_error"], family)
    ax.set(xscale="log", xlabel=r"$\tau$ of tanh$(g/\tau)$", ylabel="test error")


def against_step(ax, runs):
    """Test error over steps with all examples and with 2."""
    ds = runs["batch"]
    for size, look in SIZES:
        for family in FAMILIES:
            values = (
                select(ds, family, batch_size=size or whole_batch(ds))["test_error"]
                .transpose("seed", "step")
                .isel(step=slice(1, None))
            )
            plot.band(ax, ds["step"][1:], values, **{**optimizer(family), **look})
    ax.set(xscale="log", xlabel="step t", ylabel="test error")


def with_feature_noise(ax, ds):
    """Test error over training loss on the follow-up's data, with all examples and with 2."""
    levels = levels_of(ds, np.geomspace(0.65, 1e-3, 30))
    errors = js.at_train_loss(ds, levels, ["test_error"], leaps=False)["test_error"]
    errors = errors.assign_coords(family=ds["family"]).to_dataset(name="test_error")
    for size, look in SIZES:
        values = select(errors, "adam", batch_size=size or whole_batch(ds))["test_error"].transpose("seed", "level")
        plot.band(ax, levels, values, **{**optimizer("adam"), **look})
    ax.set(xscale="log", xlabel="training loss", ylabel="test error")
    ax.set_xticks([0.5, 0.1, 0.02], ["0.5", "0.1", "0.02"])
    ax.minorticks_off()


def draw(runs):
    fig, axes = plt.subplot_mosaic("abc;def;gkk", figsize=(plot.WIDE, 5.6))
    against_batch(axes["a"], runs, "test_error")
    against_batch(axes["b"], runs, "test_loss")
    against_step(axes["c"], runs)
    against_decay(axes["d"], runs, "coupled")
    against_decay(axes["e"], runs, "decoupled")
    against_temperature(axes["f"], runs)
    with_feature_noise(axes["g"], runs["feature_noise"])
    titles = (
        "mini-batches", "mini-batches", "over steps", "weight decay", "weight decay", "smooth sign", "feature noise",
    )  # fmt: skip
    plot.letter_panels([axes[letter] for letter in "abcdefg"], titles)
    for letter in "acdef":
        axes[letter].set_ylim(-0.01, 0.58)
    axes["g"].set_ylim(-0.02, 1.02)
    plot.style_key(axes["g"], "attention frozen at 1/2", ls=":")
    plot.style_key(axes["g"], "mini-batches of B = 2 (c, g)", marker="x", ms=3)
    plot.style_key(axes["g"], "all examples, no decay (d-f)", lw=0.7)
    plot.key(fig, ncols=2, axes=[axes[letter] for letter in "afg"], at=axes["k"])
    text = (
        f"a-f: {runs['batch'].sizes['seed']} seeds, paper_like: "
        + plot.sizes(runs["batch"], "n", "d", "s", "m_k")
        + ", learning rates 1e-4 and GD .3; a, b, f at training loss .1, d, e at the last step if its loss is .1 or "
        f"less · g: {runs['feature_noise'].sizes['seed']} seeds, two-layer attention on a follow-up's data: "
        + plot.sizes(runs["feature_noise"], "n", "d", "s", "sigma_p", "alpha")
        + ", Adam with decay 1e-5 · median and 5-95 %, reconstructed"
    )
    plot.small_print(fig, text)
    return fig


main = plot.figure_script(draw, __doc__, reads="restore/*")

if __name__ == "__main__":
    main()

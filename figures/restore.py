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
#: Attention trained, attention frozen at 1/2, law.
TRAINED, FROZEN = {"ls": "-", "ms": 3}, {"ls": ":", "ms": 2.5, "mfc": "white", "lw": 0.8}


def level(ax, values, family, label=None):
    """A horizontal band: median and 5-95 % of one optimizer's runs."""
    values = values.values[np.isfinite(values.values)]
    if values.size:
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        ax.axhline(middle, color=plot.COLOURS[family], lw=0.7, ls=plot.STYLES[family], label=label)
        ax.axhspan(low, high, color=plot.COLOURS[family], alpha=0.12, lw=0)


def against_batch(ax, runs, name):
    """A test quantity at training loss .1 over batch sizes, with the laws of the error."""
    for entry, look in (("batch", TRAINED), ("batch_frozen", FROZEN)):
        at = js.at_train_loss(runs[entry], LEVEL, [name], leaps=False)
        for family in [f for f in FAMILIES if f in at["family"].values]:
            values = select(at, family)[name].transpose("seed", "batch_size")
            label = plot.NAMES[family] if entry == "batch" else None
            plot.band(
                ax, at["batch_size"], values, label, color=plot.COLOURS[family], marker=plot.MARKERS[family], **look
            )  # fmt: skip
    if name == "test_error":
        sizes = np.arange(1, whole_batch(runs["batch"]) + 1)
        for family in ("sign_gd", "adam"):
            law = [batch_law(runs["batch"], family, int(size)) for size in sizes]
            ax.plot(sizes, law, color="0.25", lw=0.7, ls="--", zorder=3)
        problem, hyper = problem_of(runs["batch"].isel(batch_size=0))
        ax.axhline(float(theory.gd_test_error(problem, hyper.mu, hyper.sigma_p)), color="0.25", lw=0.7, ls="--")
    ax.set(xscale="log", xlabel="mini-batch size B")
    ticks = runs["batch"]["batch_size"].values
    ax.set_xticks(ticks, [str(size) for size in ticks])
    ax.minorticks_off()


def against_decay(ax, runs):
    """Test error at the last step over strengths of decay where the loss is .1 or less, coupled and decoupled."""
    for entry, look in (("rules", TRAINED), ("rules_frozen", FROZEN)):
        ends = runs[entry].isel(step=-1)
        families = set(ends["family"].values.tolist())
        for family in ("sign_gd", "adam"):
            for kind in [kind for kind in ("coupled", "decoupled") if f"{family}_{kind}" in families]:
                decayed = family_runs(ends, f"{family}_{kind}")
                fits = decayed["train_loss"].mean("seed") <= LEVEL
                values = decayed["test_error"].where(fits).transpose("seed", "optimizer")
                plot.band(
                    ax, decayed["weight_decay"], values, f"{plot.NAMES[family]}, {kind}" if entry == "rules" else None,
                    color=plot.COLOURS[family], marker=plot.MARKERS[family], **look,
                )  # fmt: skip
    ends = runs["rules"].isel(step=-1)
    for family in ("sign_gd", "gd"):
        level(ax, select(ends, family)["test_error"], family)
    ax.axvline(0.2, color="0.7", lw=0.5)
    ax.text(0.25, 0.98, "coupled", transform=ax.transAxes, fontsize=6, ha="center", va="bottom")
    ax.text(0.78, 0.98, "decoupled", transform=ax.transAxes, fontsize=6, ha="center", va="bottom")
    ax.set(xscale="log", xlabel=r"weight decay $\lambda$")


def against_temperature(ax, runs):
    """Test error at training loss .1 over temperatures, with the law at the start and at p = .1."""
    for entry, look in (("rules", TRAINED), ("rules_frozen", FROZEN)):
        smooth = family_runs(js.at_train_loss(runs[entry], LEVEL, ["test_error"], leaps=False), "smooth_sign_gd")
        values = smooth["test_error"].transpose("seed", "optimizer")
        label = "attention trained" if entry == "rules" else "frozen at 1/2"
        plot.band(ax, smooth["temperature"], values, label, color="#CC79A7", marker="D", **look)
    problem, hyper = problem_of(runs["rules"])
    grid = np.geomspace(float(smooth["temperature"].min()), float(smooth["temperature"].max()), 60)
    for p, width in ((0.5, 0.9), (0.1, 0.5)):
        shares = [theory.smooth_sign_share(problem, hyper.mu, hyper.sigma_p, tau, p) for tau in grid]
        law = [float(theory.shared_test_error(problem, hyper.mu, hyper.sigma_p, share)) for share in shares]
        ax.plot(grid, law, color="0.25", lw=width, ls="--", label="laws" if p == 0.5 else None)
    at = js.at_train_loss(runs["rules"], LEVEL, ["test_error"], leaps=False)
    for family in ("sign_gd", "gd"):
        level(ax, select(at, family)["test_error"], family)
    ax.set(xscale="log", xlabel=r"temperature $\tau$ of tanh$(g/\tau)$")


def against_step(ax, runs):
    """Test error over steps with all examples (solid) and with 2 (dotted)."""
    ds = runs["batch"]
    for size, ls in ((whole_batch(ds), "-"), (2, ":")):
        for family in FAMILIES:
            values = (
                select(ds, family, batch_size=size)["test_error"].transpose("seed", "step").isel(step=slice(1, None))
            )
            plot.band(ax, ds["step"][1:], values, color=plot.COLOURS[family], ls=ls)
    ax.set(xscale="log", xlabel="step t")


def with_feature_noise(ax, ds):
    """Test error over training loss on the follow-up's data, all examples solid, mini-batches of 2 dotted."""
    levels = levels_of(ds, np.geomspace(0.65, 1e-3, 30))
    errors = js.at_train_loss(ds, levels, ["test_error"], leaps=False)["test_error"]
    errors = errors.assign_coords(family=ds["family"]).to_dataset(name="test_error")
    for size, ls in ((whole_batch(ds), "-"), (2, ":")):
        values = select(errors, "adam", batch_size=size)["test_error"].transpose("seed", "level")
        plot.band(ax, levels, values, f"B={size}", color=plot.COLOURS["adam"], ls=ls)
    ax.set(xscale="log", xlabel="training loss")
    ax.set_xticks([0.5, 0.1, 0.02], ["0.5", "0.1", "0.02"])
    ax.minorticks_off()
    ax.invert_xaxis()


def draw(runs):
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.0))
    against_batch(axes[0, 0], runs, "test_error")
    against_batch(axes[0, 1], runs, "test_loss")
    against_step(axes[0, 2], runs)
    against_decay(axes[1, 0], runs)
    against_temperature(axes[1, 1], runs)
    with_feature_noise(axes[1, 2], runs["feature_noise"])
    titles = (
        "error, mini-batches", "test loss, mini-batches", "error over steps", "error, weight decay",
        "error, smooth sign", "error, feature noise",
    )  # fmt: skip
    plot.letter_panels(axes.flat, titles, fontsize=7, pad=4)
    axes[1, 0].set_title(axes[1, 0].get_title(loc="left"), fontsize=7, pad=9)  # above the kinds of decay
    for ax in (axes[0, 0], axes[0, 2], axes[1, 0], axes[1, 1]):
        ax.set_ylim(-0.01, 0.58)
    axes[1, 2].set_ylim(-0.02, 1.02)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=6.5)
    text = (
        f"a-e: {runs['batch'].sizes['seed']} seeds, paper_like: "
        + plot.sizes(runs["batch"], "n", "d", "s", "m_k")
        + ", learning rates 1e-4 and GD .3; a, b, e at training loss .1, d at the last step if its loss is .1 or "
        "less; solid: attention trained, dotted, open marks: frozen at 1/2, dashed: laws (e: p = 1/2, thin .1); "
        "horizontal bands: SignGD and GD with all examples; c, f: solid all examples, dotted B=2 · "
        f"f: {runs['feature_noise'].sizes['seed']} seeds, two-layer attention on a follow-up's data: "
        + plot.sizes(runs["feature_noise"], "n", "d", "s", "sigma_p", "alpha")
        + ", Adam with decay 1e-5 · median and 5-95 %, reconstructed"
    )
    plot.small_print(fig, text, 130)
    return fig


main = plot.figure_script(draw, __doc__, reads="restore/*")

if __name__ == "__main__":
    main()

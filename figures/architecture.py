"""Several heads and longer contexts: stage times, attention, sign agreement, test errors with controls and laws.

Reads DIR/architecture (sweeps/architecture.py).
Command: python figures/architecture.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import xarray as xr

import jaxsign as js
from jaxsign import plot, theory
from jaxsign.analysis.runs import select
from jaxsign.claims.architecture import context_of
from jaxsign.claims.dynamics import problem_of

STAGES = dict(zip(("t_I", "t_II", "t_III", "t_IV"), plot.PLACES))
LEVEL = 0.1


def entries(runs, preset, axis, suffix=""):
    """{number of heads or patches: Dataset} of a preset; its own one head and two patches belong to both."""
    numbers = {int(name.split("_")[-1 - bool(suffix)]): name for name in runs if keep(name, preset, axis, suffix)}
    if axis == "context" and f"{preset}_heads_1{suffix}" in runs:
        numbers[2] = f"{preset}_heads_1{suffix}"
    return {number: runs[numbers[number]] for number in sorted(numbers)}


def keep(name, preset, axis, suffix):
    """Whether an entry belongs to a preset and an axis, with or without frozen attention."""
    return name.startswith(f"{preset}_{axis}_") and name.endswith("_frozen") == bool(suffix)


def ranked(number, axis):
    """The look of a number of heads, 1, 2, 4, 8, or of patches, twice as many."""
    rank = int(number).bit_length() - 1 - (axis == "context")
    return {"color": plot.shades(4)[rank], "marker": "vP*X"[rank], "ms": 3, "markevery": 0.2}


def numbered(ax, datasets):
    """An x axis of a few numbers, each a factor 2 from the last."""
    ax.set(xscale="log", xlim=(min(datasets, default=1) / 1.3, max(datasets, default=1) * 1.3))
    ax.set_xticks(list(datasets), [str(number) for number in datasets])
    ax.minorticks_off()


def times(ax, runs, axis):
    """Stage boundaries against heads or context: disjoint solid, paper-like dotted."""
    drawn = {}
    for preset, line, fill in (("disjoint", "-", "full"), ("paper_like", ":", "none")):
        stages = {number: js.find_stages(select(ds, "sign_gd")) for number, ds in entries(runs, preset, axis).items()}
        drawn |= stages
        for name, look in STAGES.items() if stages else ():
            values = [one[name] for one in stages.values()]
            values = [one.where(one.notnull().mean("seed") > 0.5) for one in values]  # most seeds get there
            values = xr.concat(values, "x", join="outer").transpose("seed", "x")
            label = rf"$t_\mathrm{{{name[2:]}}}$" if preset == "disjoint" else None
            plot.band(ax, list(stages), values, label, **look, ls=line, ms=3, fillstyle=fill)
    numbered(ax, dict(sorted(drawn.items())))
    ax.set(yscale="log", ylim=(0.7, 800), ylabel="step t")


def over_steps(ax, runs, axis, measure, until):
    """A number of the disjoint preset's runs over steps for every number of heads or patches."""
    for number, ds in entries(runs, "disjoint", axis).items():
        values = measure(select(ds, "sign_gd")).sel(step=slice(0, until))
        heads = number if axis == "heads" else number // 2
        label = f"{heads} head{'s' * (heads > 1)}, {2 * heads} patches"
        plot.band(ax, values["step"], values.transpose("seed", "step"), label, **ranked(number, axis))
    ax.set(xlabel="step t", xlim=(0, until))


def targets(ax, ds):
    """Agreement of noise queries with the key of the patch that they attend to, dotted, for every context."""
    ds = ds.isel(optimizer=0).sel(step=slice(0, 60))
    for context in ds["context"].values:
        values = ds["target_agreement"].sel(context=context).transpose("seed", "step")
        plot.band(ax, ds["step"], values, ls=":", **ranked(context, "context"))


def relative_s21(ds):
    """Attention of noise queries on the signal in units of 1/context."""
    s21 = ds["s21"]
    return s21.mean([dim for dim in ("head", "sample", "patch") if dim in s21.dims]) * context_of(ds)


def errors(ax, runs, axis):
    """Test error at training loss .1 of both optimizers, with attention trained and frozen, and the laws."""
    drawn = {}
    for family in ("sign_gd", "gd"):
        for suffix, look in (("", {}), ("_frozen", {"ls": ":", "fillstyle": "none"})):
            datasets = entries(runs, "paper_like", axis, suffix)
            datasets = {number: ds for number, ds in datasets.items() if family in ds["family"].values}
            if not datasets:
                continue
            values = [
                js.at_train_loss(select(ds, family), LEVEL, ["test_error"], leaps=False)["test_error"]
                for ds in datasets.values()
            ]
            values = xr.concat(values, "x", join="outer")
            label = plot.NAMES[family] + (", attention frozen" if suffix else "")
            look = {"ls": "-", "ms": 3.5, "marker": plot.MARKERS[family], **look}
            plot.band(ax, list(datasets), values.transpose("seed", "x"), label, color=plot.COLOURS[family], **look)
            drawn |= datasets
    for law, family in ((theory.sign_test_error, "sign_gd"), (theory.gd_test_error, "gd")):
        problems = {number: problem_of(drawn[number]) for number in sorted(drawn)}
        values = [float(law(problem, hyper.mu, hyper.sigma_p)) for problem, hyper in problems.values()]
        ax.plot(list(problems), values, label=f"law of {plot.NAMES[family]}", **plot.law_look(family))
    numbered(ax, dict(sorted(drawn.items())))
    ax.set_ylim(0, 0.55)


def draw(paper_like, disjoint, attended):
    runs = paper_like | disjoint
    fig, axes = plt.subplots(4, 2, figsize=(plot.WIDE, 7.4))
    for column, axis, name in zip(axes.T, ("heads", "context"), ("heads", "patches")):
        times(column[0], runs, axis)
        over_steps(column[1], runs, axis, relative_s21, 300)
        column[1].set(yscale="log", ylim=(1e-8, 3), ylabel=r"$s_{21}$ in 1/context")
        over_steps(column[2], runs, axis, lambda ds: ds["sign_agreement"], 60)
        column[2].set(ylim=(0.35, 1.05), ylabel="signs of q, k agree")
        errors(column[3], runs, axis)
        column[3].set_ylabel("test error at loss .1")
        for ax in column[::3]:
            ax.set_xlabel(name)
    targets(axes[2, 1], attended)
    titles = [f"{title}, {words}" for title in ("stage times", "attention", "agreement", "test error")
              for words in ("heads", "context")]  # fmt: skip
    plot.letter_panels(axes.flat, titles)
    plot.style_key(axes[3, 1], "a, b: paper-like; f: the attended key", ls=":")
    plot.key(fig, ncols=3)
    seeds = sorted({ds.sizes["seed"] for ds in runs.values()})
    few = [
        f"{name[11:].replace('_', ' ')}: {ds.sizes['seed']}"
        for name, ds in runs.items()
        if ds.sizes["seed"] < seeds[-1]
    ]
    problem = next(problem_of(ds)[0] for ds in runs.values())
    sizes = " ".join(f"{name}={getattr(problem, name)}" for name in ("n", "s", "m_k", "m_v"))
    sizes += f" d={problem.d // problem.patches}"
    text = (
        f"{seeds[-1]} seeds" + (f" (paper-like {', '.join(few)})" if few else "") + " · median and 5-95 % · "
        f"reconstructed: {sizes}, d in proportion to context-1, m_k rows a head · eta 1e-4, GD .3 · a, b: left out "
        f"where most seeds do not get there · c-f: disjoint; attended keys: {attended.sizes['seed']} seeds · g, h: "
        "paper-like; attention frozen: only w_v trained"
    )
    plot.small_print(fig, text)
    return fig


main = plot.figure_script(
    draw, __doc__, reads=("architecture/paper_like_*", "architecture/disjoint_*", "architecture/targets")
)

if __name__ == "__main__":
    main()

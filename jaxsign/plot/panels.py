"""One panel of a figure from a Dataset, and the marks, captions and footers that figures share."""

import math
import string
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign import theory
from jaxsign.analysis.equal_loss import at_train_loss, levels_of
from jaxsign.analysis.measures import GROUPING_STEP
from jaxsign.analysis.runs import manifest, need, numbers_of, one_point
from jaxsign.analysis.stages import BOUNDARIES, find_stages
from jaxsign.claims.dynamics import problem_of, setting_of
from jaxsign.plot.files import COLOURS, style
from jaxsign.plot.numbers import has_band, keep_band
from jaxsign.validation.values import known

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Column and text width of a paper, in inches.
NARROW, WIDE = 3.25, 5.5
NAMES = {"sign_gd": "SignGD", "adam": "Adam", "gd": "GD", "signum": "Signum"}
STYLES = {"sign_gd": "-", "adam": (0, (5, 1)), "gd": (0, (3, 1, 1, 1)), "signum": ":"}
MARKERS = {"sign_gd": "o", "adam": "s", "gd": "^", "signum": "D"}
POSITIVE, NEGATIVE, NEUTRAL = "#B2182B", "#2166AC", "#4D4D4D"
#: Of observables that are no feature themselves: the features whose products or signs they are.
_FIRST, _SECOND = ("query_signal", "key_signal", "key_noise"), ("query_noise", "key_noise", "key_signal")
MADE_OF = {
    "s11": _FIRST, "s21": _SECOND, "log_s21": _SECOND, "s22": _SECOND, "sign_agreement": ("query_noise", "key_noise"),
    "majority_agreement": ("query_signal", "key_noise"),
}  # fmt: skip


def _axes(ax: Any, width: float = NARROW) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    with style():
        return plt.subplots(figsize=(width, 0.72 * width))[1]


def _look(family: str) -> dict[str, Any]:
    if family in COLOURS:
        return {"color": COLOURS[family], "linestyle": STYLES[family]}
    return {}


def legend_name(family: Any) -> str:
    """An optimizer's name as matplotlib shows it letter by letter: a `$` begins no formula, a "_" hides no line.

    Examples:
      >>> legend_name("sign_gd"), legend_name("_mine")
      ('SignGD', ' _mine')
    """
    words = literal(NAMES.get(str(family), str(family)))
    return f" {words}" if words.startswith("_") else words


def literal(name: str) -> str:
    """A name without a formula in it, for labels."""
    return name.replace("$", r"\$")


def _over_runs(values: Any) -> np.ndarray:
    """Median, 5 % and 95 % quantile over seeds, (3, x); NaN where every seed is NaN."""
    table = np.asarray(values.transpose("seed", ...).values, float)
    out = np.full((3, *table.shape[1:]), np.nan)
    there = np.isfinite(table).any(axis=0)
    if there.any():
        out[:, there] = np.nanquantile(table[:, there], [0.5, 0.05, 0.95], axis=0)
    return out


def _drawn(ax: Any, axis: str) -> np.ndarray:
    """The finite coordinates on one axis of what `band` has drawn."""
    lines = [line for line in ax.lines if has_band(line)]
    values = np.concatenate([np.empty(0), *(np.asarray(getattr(line, f"get_{axis}data")(), float) for line in lines)])
    return values[np.isfinite(values)]


def _log_scale(ax: Any, axis: str, empty: str, span: Sequence[float] = (0.1, 1.0)) -> None:
    """Sets a log scale; where no band has a positive number on it, says so in the panel and shows `span`.

    Args:
      ax: Axes that `band` has drawn on.
      axis: "x" or "y".
      empty: why nothing can be seen, if nothing can.
      span: the lower and upper end of the axis then, both positive.
    """
    if not (_drawn(ax, axis) > 0).any():
        low, high = min(span), max(span)
        getattr(ax, f"set_{axis}lim")(*((low, high) if 0 < low < high else (0.1, 1)))
        _say(ax, empty)
    getattr(ax, f"set_{axis}scale")("log")


def _say(ax: Any, empty: str) -> None:
    """Writes into a panel why nothing is drawn in it, once."""
    if empty not in [text.get_text() for text in ax.texts]:
        ax.text(0.5, 0.5, empty, transform=ax.transAxes, ha="center", va="center", color="0.5", wrap=True)


def _why(ds: Any, what: str) -> str:
    """Why a trace cannot be drawn: what its runs have come to."""
    status = np.asarray(ds["status"].values if "status" in ds else [])
    kinds = {"diverged": status == 1, "not run": status < 0}
    words = [f"{int(which.sum())} {kind}" for kind, which in kinds.items() if which.any()]
    return f"{what}\n({', '.join(words)}, of {status.size} runs)" if words else what


def band(ax: Any, x: Any, values: Any, label: str | None = None, **look: Any) -> None:
    """Draws median and 5-95 % band over the dimension `seed`.

    Args:
      ax: Axes.
      x: (x,) positions.
      values: DataArray (seed, x); x positions without a finite seed are left out.
      label: legend entry.
      **look: passed to `ax.plot`.
    """
    middle, low, high = _over_runs(values)
    finite = np.isfinite(middle)
    x, middle, low, high = np.asarray(x)[finite], middle[finite], low[finite], high[finite]
    (line,) = ax.plot(x, middle, label=label, **look)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    keep_band(line, low, high)


def dynamics(ds: Any, name: str = "query_noise", ax: Any = None, until: int | None = None, group: bool = True) -> Any:
    """One observable over steps, for one optimizer: median and band over seeds, grouped by sign at t = 100.

    Noise is averaged over the rows and samples of a group inside a seed. Groups compare the observable's sign with the
    sign of its row's query signal at t = 100: "same" and "opposed".

    Args:
      ds: Dataset of one optimizer at one point of every axis.
      name: an observable.
      ax: Axes, or None for new ones.
      until: last step drawn.
      group: whether row-wise noise is split by sign; other observables are averaged.

    Returns:
      The Axes.

    Raises:
      ValueError: for an observable that is not there, with the nearest one, or a Dataset of several optimizers.
    """
    known("observable", name, [n for n, v in ds.data_vars.items() if "step" in v.dims])
    ds = _one_optimizer(ds)
    ax = _axes(ax)
    if until is not None:
        ds = ds.sel(step=slice(None, until))
    values = ds[name]
    own = [dim for dim in values.dims if dim not in ("seed", "step")]
    if group and name in ("query_noise", "key_noise") and GROUPING_STEP in ds["step"]:
        need(ds, "query_signal")
        reference = np.sign(ds["query_signal"].sel(step=GROUPING_STEP))
        aligned = np.sign(values.sel(step=GROUPING_STEP)) == reference
        relative = values * reference
        for mask, label, colour in ((aligned, "same sign", POSITIVE), (~aligned, "opposed", NEGATIVE)):
            band(ax, ds["step"], relative.where(mask).mean(own).transpose("seed", "step"), label, color=colour)
        ax.axhline(0, color="0.6", lw=0.5)
        ax.set_ylabel(f"{name.replace('_', ' ')} · sgn(query signal)")
    else:
        band(ax, ds["step"], values.mean(own).transpose("seed", "step"), color=NEUTRAL)
        ax.set_ylabel(literal(name.replace("_", " ")))
    if not _drawn(ax, "y").size:
        _say(ax, _why(ds, f"no finite {name.replace('_', ' ')}"))
    ax.set_xlabel("step t")
    return ax


def _one_optimizer(ds: Any) -> Any:
    if "optimizer" in ds.dims and ds.sizes["optimizer"] > 1:
        count = ds.sizes["optimizer"]
        raise ValueError(f"ds must hold one optimizer, got {count}: ds.sel(optimizer=[...]) chooses one")
    ds = ds.isel(optimizer=0) if "optimizer" in ds.dims else ds
    return ds.isel({dim: 0 for dim in ds["status"].dims if dim != "seed" and ds.sizes[dim] == 1})


def loss(ds: Any, ax: Any = None, name: str = "train_loss") -> Any:
    """A loss over steps on a log scale, one line per optimizer, with the late law of SignGD dashed.

    Args:
      ds: Dataset at one point of every axis.
      ax: Axes, or None.
      name: "train_loss" or "test_loss".

    Returns:
      The Axes.

    Raises:
      ValueError: if the loss is not there.
    """
    need(ds, name)
    ds, ax = one_point(ds), _axes(ax)
    for i, family in enumerate(ds["family"].values):
        values = ds[name].isel(optimizer=i).transpose("seed", "step")
        band(ax, ds["step"], values, legend_name(family), **_look(str(family)))
        law = family == "sign_gd" and name == "train_loss" and {"noise_l1", "learning_rate"} <= set(ds.variables)
        if law and int(ds["step"][-1]) >= 1000 and math.isfinite(eta := numbers_of(ds, "learning_rate")[i]):
            rate = float(theory.late_loss_rate(float(eta), ds["noise_l1"].isel(optimizer=i)).mean())
            start = float(values.sel(step=1000, method="nearest").median())
            t = ds["step"].values[ds["step"].values >= 1000]
            late = start * np.exp(-rate * (t - 1000))
            ax.plot(t, late, color="0.25", lw=0.7, ls="--", label=r"$4\eta\,\min\|\xi\|_1$")
    _log_scale(ax, "y", _why(ds, f"no positive {name.replace('_', ' ')}"))
    ax.set(xlabel="step t", ylabel=ds[name].attrs.get("long_name", name))
    ax.legend()
    return ax


def error_at_loss(ds: Any, ax: Any = None, levels: Sequence[float] | None = None) -> Any:
    """Test error against training loss, one line per optimizer, with the closed-form laws dashed.

    Args:
      ds: Dataset at one point of every axis, with train_loss and test_error.
      ax: Axes, or None.
      levels: training losses in nat at which runs are compared; default those that were captured, else .6 ... 1e-4.

    Returns:
      The Axes; time runs from left to right, so the x axis is inverted.

    Raises:
      ValueError: if an observable is not there.
    """
    need(ds, "train_loss", "test_error")
    ds, ax = one_point(ds), _axes(ax)
    levels = list(levels if levels is not None else levels_of(ds, np.geomspace(0.6, 1e-4, 24)))
    errors = _at_losses(ax, ds, levels, "test_error")
    for i, family in enumerate(ds["family"].values):
        label = legend_name(family)
        band(ax, levels, errors.isel(optimizer=i).transpose("seed", "level"), label, **_look(str(family)))
    problem, hyper = problem_of(ds)
    for law, family in ((theory.sign_test_error, "sign_gd"), (theory.gd_test_error, "gd")):
        ax.axhline(float(law(problem, hyper.mu, hyper.sigma_p)), color=COLOURS[family], lw=0.7, ls="--")
    _log_scale(
        ax, "x", _why(ds, f"no run has a test error at a training loss of {min(levels):g} to {max(levels):g}"), levels
    )
    ax.set(xlabel="training loss", ylabel="test error", ylim=(-0.01, 0.55))
    if ax.get_xlim()[0] < ax.get_xlim()[1]:
        ax.invert_xaxis()
    ax.legend()
    return ax


def _at_losses(ax: Any, ds: Any, level: float | Sequence[float], name: str) -> Any:
    """A quantity at one training loss or several; the panel says which readings are left out, and why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said in the panel
        at = at_train_loss(ds, level, [name], leaps=False)
    why = {"too_coarse": "with records too far apart,\nrun with levels=", "leaps": "leap over the loss"}
    counts = {reason: at.attrs[key] for key, reason in why.items() if at.attrs[key]}
    if counts:
        few = "\n".join(f"left out: {count} of {at[name].size} {reason}" for reason, count in counts.items())
        ax.text(0.98, 0.99, few, transform=ax.transAxes, fontsize=5, color="0.4", va="top", ha="right")
    return at[name]


def snr(ds: Any, ax: Any = None, level: float = 0.1, name: str = "test_error") -> Any:
    """A test quantity at equal training loss against SNR: band over seeds and learning rates, laws dashed.

    Args:
      ds: Dataset with an axis snr.
      ax: Axes, or None.
      level: training loss in nat.
      name: "test_error" or "test_loss".

    Returns:
      The Axes.

    Raises:
      ValueError: if the axis or an observable is not there.
    """
    need(ds, "train_loss", name)
    if "snr" not in ds.dims:
        raise ValueError(f"ds must have an axis snr, got the dimensions {list(ds.dims)}")
    ax = _axes(ax)
    values = _at_losses(ax, ds, level, name)
    for family in dict.fromkeys(ds["family"].values.tolist()):
        rates = values.isel(optimizer=np.flatnonzero(ds["family"].values == family))
        runs = rates.stack(run=("optimizer", "seed")).reset_index("run", drop=True).rename(run="seed")
        look = {**_look(family), "marker": MARKERS.get(family, "o"), "ms": 3}
        band(ax, ds["snr"], runs.transpose("seed", "snr"), legend_name(family), **look)
    if name == "test_error":
        problem, hyper = problem_of(ds.isel(snr=0))
        grid = np.geomspace(float(ds["snr"].min()), float(ds["snr"].max()), 100)
        sigma_p = hyper.mu / (grid * math.sqrt(problem.s))
        for law, family in ((theory.sign_test_error, "sign_gd"), (theory.gd_test_error, "gd")):
            ax.plot(grid, law(problem, hyper.mu, sigma_p), color=COLOURS[family], lw=0.7, ls="--")
    _log_scale(ax, "x", _why(ds, f"no run has a {name.replace('_', ' ')} at training loss {level:g}"), ds["snr"].values)
    ax.set(xlabel=r"SNR $\|\mu\|/(\sigma_p\sqrt{s})$", ylabel=ds[name].attrs.get("long_name", name))
    ax.legend()
    return ax


def phase(ds: Any, ax: Any = None) -> Any:
    """Stage boundaries of every run: one row per boundary, one dot per seed, median as a bar.

    Args:
      ds: Dataset of one optimizer, as `js.find_stages` wants it.
      ax: Axes, or None.

    Returns:
      The Axes.

    Raises:
      ValueError: if an observable is not there.
    """
    stages, ax = find_stages(_one_optimizer(ds)), _axes(ax)
    for row, name in enumerate(BOUNDARIES):
        values = stages[name].values.ravel()
        reached = values[np.isfinite(values)]
        spread = row + np.linspace(-0.25, 0.25, max(reached.size, 1))[: reached.size]
        ax.plot(reached, spread, ".", ms=2, color=NEUTRAL, alpha=0.5)
        if reached.size:
            ax.plot([np.median(reached)] * 2, [row - 0.4, row + 0.4], color=NEGATIVE)
        else:
            ax.text(0.02, row, "never reached", transform=ax.get_yaxis_transform(), va="center", color="0.5")
    ax.set_yticks(range(len(BOUNDARIES)), [r"$t_\mathrm{" + name[2:] + "}$" for name in BOUNDARIES])
    some = any(bool(stages[name].notnull().any()) for name in BOUNDARIES)
    ax.set(xscale="symlog", xlabel="step t", xlim=(0, None if some else max(1, int(ds["step"][-1]))))
    ax.invert_yaxis()
    return ax


def mark_stages(ax: Any, ds: Any, until: int, stages: Any = None) -> None:
    """Marks the median stage boundaries up to `until` on an Axes whose x axis is the step; close labels move right.

    Where many Axes are marked, `stages` are the boundaries that `js.find_stages` has found in `ds` once for all.
    """
    stages = find_stages(_one_optimizer(ds)) if stages is None else stages
    reached = {name[2:]: float(stages[name].median()) for name in BOUNDARIES if bool(stages[name].notnull().any())}
    right = -float("inf")
    for name, t in reached.items():
        if t > until:
            continue
        ax.axvline(t, color="0.35", lw=0.6, ls=":")
        half = 0.014 * until * (1 + len(name))
        x = max(t, right + half)
        right = x + half
        ax.text(x, 1.0, name, transform=ax.get_xaxis_transform(), fontsize=5.5, color="0.25", va="bottom", ha="center")


def alarms_of(ds: Any, name: str) -> list[str]:
    """The alarms of a Dataset that say when an observable is no longer to be trusted.

    Args:
      ds: Dataset.
      name: an observable; attentions and agreements are frozen as soon as something that they are made of is.

    Returns:
      Names of variables; results of a version that watched query noise alone have `first_frozen_step` for it.

    Examples:
      >>> import xarray as xr
      >>> alarms_of(xr.Dataset({"first_frozen_key_noise": 3, "first_frozen_query_noise": 2}), "sign_agreement")
      ['first_frozen_query_noise', 'first_frozen_key_noise']
    """
    made_of = MADE_OF.get(name, (name,))
    found = [f"first_frozen_{one}" for one in made_of if f"first_frozen_{one}" in ds]
    old = not found and "query_noise" in made_of and "first_frozen_step" in ds
    return ["first_frozen_step"] if old else found


def hatch_underflow(ax: Any, ds: Any, name: str = "query_noise") -> None:
    """Hatches the steps after the median first underflow of what an observable is made of: it is frozen there.

    The hatching has an entry of its own in the legend, which is drawn after it.

    Args:
      ax: Axes whose x axis is the step, with its limits.
      ds: Dataset of one optimizer; without alarms of the observable nothing is hatched.
      name: the observable.
    """
    ds, ends = _one_optimizer(ds), []
    for alarm in alarms_of(ds, name):
        steps = ds[alarm].where(ds[alarm] >= 0)
        if bool(steps.notnull().any()):
            ends.append(float(steps.median()))
    low, high = min(ends, default=float("inf")), ax.get_xlim()[1]
    if low < high:
        ax.axvspan(low, high, facecolor="none", edgecolor="0.6", hatch="////", lw=0, label="frozen: underflow")


def footer(fig: Any, ds: Any, preset: str = "") -> None:
    """Writes seeds, preset, d, n, s, dtype, engine and learning rates below a figure."""
    definition = manifest(ds)["definition"]
    problem, hyper = definition["problem"], definition["hyper"]
    rates: dict[str, list[str]] = {}
    for family, rate in zip(np.atleast_1d(ds["family"].values), np.atleast_1d(ds["learning_rate"].values)):
        rates.setdefault(legend_name(family).strip(), []).append(f"{float(rate):g}")
    shown = "; ".join(f"{name} {', '.join(values)}" for name, values in rates.items())
    text = (
        f"{ds.sizes['seed']} seeds · {preset or setting_of(ds)} (reconstructed): n={problem['n']} d={problem['d']} "
        f"s={problem['s']} m_k={problem['m_k']} m_v={problem['m_v']} sigma_0={hyper['sigma_0']:g}, supports "
        f"{problem['supports']}, test overlap {problem['overlap']} · {definition['dtype']} · engine "
        f"{definition['engine']} · eta: {shown}"
    )
    small_print(fig, text, int(25 * fig.get_size_inches()[0]))


def small_print(fig: Any, text: str, width: int) -> None:
    """Writes seeds, settings and whatever else a reader must know below a figure, in lines of `width` characters."""
    fig.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize=5, color="0.35")


def letter_panels(axes: "Iterable[Axes]", titles: Sequence[str], **look: Any) -> None:
    """Gives panels their titles, after "(a)", "(b)", ... in their order.

    Args:
      axes: Axes, one a title.
      titles: what each panel shows.
      **look: passed to `ax.set_title`, such as fontsize=7.
    """
    for letter, ax, title in zip(string.ascii_lowercase, axes, titles):
        ax.set_title(f"({letter}) {title}", **look)


def sizes(ds: "xr.Dataset", *names: str) -> str:
    """Fields of a Dataset's problem and hyperparameters for a caption: "n=20 d=2000".

    Args:
      ds: Dataset with its manifest.
      *names: fields of the problem or of the hyperparameters.
    """
    definition = manifest(ds)["definition"]
    fields = {**definition["problem"], **definition["hyper"]}
    return " ".join(f"{name}={fields[name]}" for name in names)

"""How is a Dataset drawn on one panel? Its curves, and the marks, titles and captions that figures share."""

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
from jaxsign.plot.checks import FRAME, PRINTED, SEED
from jaxsign.plot.colours import COLOURS, LAW, LAW_OF_GD, NEGATIVE, NEUTRAL, OTHERS, POSITIVE, tints
from jaxsign.plot.files import style
from jaxsign.plot.numbers import has_band, keep_band
from jaxsign.validation.values import known

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: Column and text width of a paper, in inches.
NARROW, WIDE = 3.25, PRINTED
NAMES = {"sign_gd": "SignGD", "adam": "Adam", "gd": "GD", "signum": "Signum"}
STYLES = {"sign_gd": "-", "adam": (0, (5, 1)), "gd": (0, (3, 1, 1, 1)), "signum": ":"}
MARKERS = {"sign_gd": "o", "adam": "s", "gd": "^", "signum": "D"}
#: {observable: the features from whose products or signs it is computed}.
_FIRST, _SECOND = ("query_signal", "key_signal", "key_noise"), ("query_noise", "key_noise", "key_signal")
MADE_OF = {
    "s11": _FIRST, "s21": _SECOND, "log_s21": _SECOND, "s22": _SECOND, "sign_agreement": ("query_noise", "key_noise"),
    "majority_agreement": ("query_signal", "key_noise"),
}  # fmt: skip


def _axes(ax: "Axes | None", width: float = NARROW) -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    with style():
        return plt.subplots(figsize=(width, 0.72 * width))[1]


def looks(ds: "xr.Dataset", one_a_family: bool = False) -> list[tuple[int, str, dict[str, Any]]]:
    """Place, legend name and look of every optimizer that a panel draws: none is drawn like another.

    A family has its colour of `js.plot.COLOURS`, or else one of `js.plot.OTHERS` in turn; after the last, with another
    line style, for up to 16 families. Its grid points are tints of that colour, in the order of the grid, and their
    names say the keywords that differ, as the label on `optimizer` does.

    Args:
      ds: Dataset with the dimension optimizer and the coordinate family.
      one_a_family: whether a family is one line, such as the best or all of its grid points: the place is its first.

    Returns:
      [(place along optimizer, legend name, {"color", "linestyle"})], in the order of the optimizers.

    Examples:
      >>> import xarray as xr
      >>> labels = ["gd", "adam(b2=0.9)", "adam(b2=0.99)"]
      >>> ds = xr.Dataset(coords={"optimizer": labels, "family": ("optimizer", ["gd", "adam", "adam"])})
      >>> [name for _, name, _ in looks(ds)]
      ['GD', 'Adam, b2=0.9', 'Adam, b2=0.99']
    """
    families = [str(family) for family in np.atleast_1d(ds["family"].values)]
    labels = [str(label) for label in np.atleast_1d(ds["optimizer"].values)]
    free = [family for family in dict.fromkeys(families) if family not in COLOURS]
    out = []
    for family in dict.fromkeys(families):
        places = [i for i, one in enumerate(families) if one == family][: 1 if one_a_family else None]
        number = free.index(family) if family in free else 0
        colour = COLOURS.get(family, OTHERS[number % len(OTHERS)])
        turn = ("-", "-.", ":", (0, (1, 3)))[number // len(OTHERS) % 4]
        words = [labels[i].removeprefix(f"{family}(").removesuffix(")") for i in places]
        if len(set(words)) < len(words):  # results put together, whose labels do not tell them apart
            words = [f"optimizer {i}" for i in places]
        for i, word, tint in zip(places, words, tints(colour, len(places))):
            name = legend_name(family) + (f", {literal(word)}" if len(places) > 1 else "")
            out.append((i, name, {"color": tint, "linestyle": STYLES.get(family, turn)}))
    return sorted(out, key=lambda entry: entry[0])


def _legend(ax: "Axes") -> None:
    """Draws the legend of a panel: every name once."""
    handles, names = ax.get_legend_handles_labels()
    entries = dict(zip(reversed(names), reversed(handles)))
    ax.legend([entries[name] for name in dict.fromkeys(names)], list(dict.fromkeys(names)))


def legend_name(family: Any) -> str:
    """An optimizer's name for a legend, in which a `$` begins no formula and a leading "_" hides no line.

    Examples:
      >>> legend_name("sign_gd"), legend_name("_mine")
      ('SignGD', ' _mine')
    """
    words = literal(NAMES.get(str(family), str(family)))
    return f" {words}" if words.startswith("_") else words


def literal(name: str) -> str:
    """A name without a formula in it, for labels."""
    return name.replace("$", r"\$")


def _over_runs(values: "xr.DataArray") -> np.ndarray:
    """Median, 5 % and 95 % quantile over seeds, (3, x); NaN where no seed is finite."""
    table = np.asarray(values.transpose("seed", ...).values, float)
    out = np.full((3, *table.shape[1:]), np.nan)
    finite = np.isfinite(table).any(axis=0)
    if finite.any():
        out[:, finite] = np.nanquantile(table[:, finite], [0.5, 0.05, 0.95], axis=0)
    return out


def _drawn(ax: "Axes", axis: str) -> np.ndarray:
    """The finite coordinates, on one axis, of the lines that `band` has drawn."""
    lines = [line for line in ax.lines if has_band(line)]
    values = np.concatenate([np.empty(0), *(np.asarray(getattr(line, f"get_{axis}data")(), float) for line in lines)])
    return values[np.isfinite(values)]


def _log_scale(ax: "Axes", axis: str, empty: str, span: Sequence[float] | np.ndarray = (0.1, 1.0)) -> None:
    """Sets a log scale; if no band has a positive number, the panel shows `span` and says why it is empty.

    Args:
      ax: Axes that `band` has drawn on.
      axis: "x" or "y".
      empty: why the panel is empty, if it is.
      span: lower and upper end of the axis of an empty panel, both positive.
    """
    if not (_drawn(ax, axis) > 0).any():
        low, high = min(span), max(span)
        getattr(ax, f"set_{axis}lim")(*((low, high) if 0 < low < high else (0.1, 1)))
        _say(ax, empty)
    getattr(ax, f"set_{axis}scale")("log")


def _say(ax: "Axes", empty: str) -> None:
    """Writes into a panel, once, why it is empty."""
    if empty not in [text.get_text() for text in ax.texts]:
        ax.text(0.5, 0.5, empty, transform=ax.transAxes, ha="center", va="center", color="0.5", wrap=True)


def _why(ds: "xr.Dataset", what: str) -> str:
    """Why a trace cannot be drawn: how many of its runs diverged or have not run."""
    status = np.asarray(ds["status"].values if "status" in ds else [])
    kinds = {"diverged": status == 1, "not run": status < 0}
    words = [f"{int(which.sum())} {kind}" for kind, which in kinds.items() if which.any()]
    return f"{what}\n({', '.join(words)}, of {status.size} runs)" if words else what


def band(ax: "Axes", x: Any, values: "xr.DataArray", label: str | None = None, **look: Any) -> None:
    """Draws median and 5-95 % band over the dimension `seed`: of one position, a marker with its interval.

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
    if x.size == 1 and "marker" not in look:  # a line and a band through one point show nothing
        look |= {"marker": "o"} if {"ms", "markersize"} & {*look} else {"marker": "o", "ms": 3}
        (point,) = ax.plot(x, middle, label=label, **look)
        ax.vlines(x, low, high, color=point.get_color(), lw=0.8)
        keep_band(point, low, high)
        return
    (line,) = ax.plot(x, middle, label=label, **look)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    keep_band(line, low, high)


def traces(ax: "Axes", x: Any, values: "xr.DataArray", label: str | None = None, **look: Any) -> None:
    """Draws the median over the dimension `seed` and every seed as a thin line: for few seeds, whose band says little.

    Args:
      ax: Axes.
      x: (x,) positions.
      values: DataArray (seed, x).
      label: legend entry of the median.
      **look: passed to `ax.plot`.
    """
    middle, low, high = _over_runs(values)
    (line,) = ax.plot(np.asarray(x), middle, label=label, **look)
    keep_band(line, low, high)
    seeds = np.asarray(values.transpose("seed", ...).values, float).T
    ax.plot(np.asarray(x), seeds, color=line.get_color(), lw=0.4, alpha=0.5, gid=SEED, zorder=1.5)


def dots(ax: "Axes", x: Any, middle: Any, low: Any, high: Any, label: str | None = None, **look: Any) -> None:
    """Draws markers with vertical intervals, which `save` writes beside them.

    Args:
      ax: Axes.
      x: (x,) positions.
      middle: (x,) numbers that are marked.
      low: (x,) lower ends.
      high: (x,) upper ends.
      label: legend entry.
      **look: passed to `ax.plot`, with a marker.
    """
    x, middle, low, high = (np.atleast_1d(np.asarray(values, float)) for values in (x, middle, low, high))
    (line,) = ax.plot(x, middle, label=label, **{"ls": "none", "ms": 3, **look})
    ax.vlines(x, low, high, color=line.get_color(), lw=0.8)
    keep_band(line, low, high)


def law_look(family: str = "sign_gd") -> dict[str, Any]:
    """How the law of an optimizer is drawn: dashed in black, that of GD in grey.

    Examples:
      >>> law_look("gd")["ls"]
      '--'
    """
    return {"color": LAW_OF_GD if family == "gd" else LAW, "lw": 0.8, "ls": "--"}


def level_line(ax: "Axes", y: float = 0.0) -> None:
    """Draws a thin horizontal line that belongs to the axes, such as at 0: it needs no name."""
    ax.axhline(y, color="0.6", lw=0.5, gid=FRAME)


def dynamics(
    ds: "xr.Dataset", name: str = "query_noise", ax: "Axes | None" = None, until: int | None = None, group: bool = True
) -> "Axes":
    """One observable over steps, for one optimizer: median and band over seeds, grouped by sign at t = 100.

    Query and key noise is split into two groups by its sign at t = 100: "same" as the sign of its row's query signal,
    and "opposed". Inside a seed, noise is averaged over the rows and samples of a group.

    Args:
      ds: Dataset of one optimizer at one point of every axis.
      name: an observable.
      ax: Axes, or None for new ones.
      until: last step drawn.
      group: whether row-wise noise is split by sign; other observables are averaged.

    Returns:
      The Axes.

    Raises:
      ValueError: for an unknown observable, with the nearest name, or a Dataset of several optimizers.
    """
    known("observable", name, [str(key) for key, values in ds.data_vars.items() if "step" in values.dims])
    ds = _one_optimizer(ds)
    ax = _axes(ax)
    if until is not None:
        ds = ds.sel(step=slice(None, until))
    values = ds[name]
    members = [dim for dim in values.dims if dim not in ("seed", "step")]
    if group and name in ("query_noise", "key_noise") and GROUPING_STEP in ds["step"]:
        need(ds, "query_signal")
        reference = np.sign(ds["query_signal"].sel(step=GROUPING_STEP))
        aligned = np.sign(values.sel(step=GROUPING_STEP)) == reference
        relative = values * reference
        for mask, label, colour in ((aligned, "same sign", POSITIVE), (~aligned, "opposed", NEGATIVE)):
            band(ax, ds["step"], relative.where(mask).mean(members).transpose("seed", "step"), label, color=colour)
        level_line(ax)
        ax.set_ylabel(f"{name.replace('_', ' ')} · sgn(query signal)")
    else:
        band(ax, ds["step"], values.mean(members).transpose("seed", "step"), color=NEUTRAL)
        ax.set_ylabel(literal(name.replace("_", " ")))
    if not _drawn(ax, "y").size:
        _say(ax, _why(ds, f"no finite {name.replace('_', ' ')}"))
    ax.set_xlabel("step t")
    return ax


def _one_optimizer(ds: "xr.Dataset") -> "xr.Dataset":
    if "optimizer" in ds.dims and ds.sizes["optimizer"] > 1:
        count = ds.sizes["optimizer"]
        raise ValueError(f"ds must hold one optimizer, got {count}: ds.sel(optimizer=[...]) chooses one")
    ds = ds.isel(optimizer=0) if "optimizer" in ds.dims else ds
    return ds.isel({dim: 0 for dim in ds["status"].dims if dim != "seed" and ds.sizes[dim] == 1})


def loss(ds: "xr.Dataset", ax: "Axes | None" = None, name: str = "train_loss") -> "Axes":
    """A loss over steps on a log scale, one line per optimizer, with the late law of SignGD dashed.

    Grid points of one family are tints of its colour, named by the keywords that differ, see `js.plot.looks`.

    Args:
      ds: Dataset at one point of every axis.
      ax: Axes, or None.
      name: "train_loss" or "test_loss".

    Returns:
      The Axes.

    Raises:
      ValueError: if the Dataset lacks the loss.
    """
    need(ds, name)
    ds, ax = one_point(ds), _axes(ax)
    for i, label, look in looks(ds):
        values = ds[name].isel(optimizer=i).transpose("seed", "step")
        band(ax, ds["step"], values, label, **look)
        law = (
            ds["family"].values[i] == "sign_gd"
            and name == "train_loss"
            and {"noise_l1", "learning_rate"} <= set(ds.variables)
        )
        if law and int(ds["step"][-1]) >= 1000 and math.isfinite(eta := numbers_of(ds, "learning_rate")[i]):
            rate = float(theory.late_loss_rate(float(eta), ds["noise_l1"].isel(optimizer=i)).mean())
            start = float(values.sel(step=1000, method="nearest").median())
            t = ds["step"].values[ds["step"].values >= 1000]
            late = start * np.exp(-rate * (t - 1000))
            ax.plot(t, late, label=r"law of the late rate, $4\eta\,\min\|\xi\|_1$", **{**law_look(), "ls": "-."})
    _log_scale(ax, "y", _why(ds, f"no positive {name.replace('_', ' ')}"))
    ax.set(xlabel="step t", ylabel=ds[name].attrs.get("long_name", name))
    _legend(ax)
    return ax


def error_at_loss(ds: "xr.Dataset", ax: "Axes | None" = None, levels: Sequence[float] | None = None) -> "Axes":
    """Test error against training loss, one line per optimizer, with the closed-form laws dashed.

    Grid points of one family are tints of its colour, named by the keywords that differ, see `js.plot.looks`.

    Args:
      ds: Dataset at one point of every axis, with train_loss and test_error.
      ax: Axes, or None.
      levels: training losses in nat at which runs are compared; default those that were captured, else .6 ... 1e-4.

    Returns:
      The Axes; runs pass through it from right to left.

    Raises:
      ValueError: if the Dataset lacks an observable.
    """
    need(ds, "train_loss", "test_error")
    ds, ax = one_point(ds), _axes(ax)
    levels = list(levels if levels is not None else levels_of(ds, np.geomspace(0.6, 1e-4, 24)))
    errors, note = _at_losses(ds, levels, "test_error")
    for i, label, look in looks(ds):
        band(ax, levels, errors.isel(optimizer=i).transpose("seed", "level"), label, **look)
    problem, hyper = problem_of(ds)
    for law, family in ((theory.sign_test_error, "sign_gd"), (theory.gd_test_error, "gd")):
        ax.axhline(
            float(law(problem, hyper.mu, hyper.sigma_p)), label=f"law of {legend_name(family)}", **law_look(family)
        )
    _log_scale(
        ax, "x", _why(ds, f"no run has a test error at a training loss of {min(levels):g} to {max(levels):g}"), levels
    )
    ax.set(xlabel=f"training loss{note}", ylabel="test error", ylim=(-0.01, 0.55))
    ax.legend()
    return ax


def _at_losses(ds: "xr.Dataset", level: float | Sequence[float], name: str) -> "tuple[xr.DataArray, str]":
    """A quantity at one training loss or several, and how many readings are left out, and why, below an axis' label."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said below the panel
        at = at_train_loss(ds, level, [name], leaps=False)
    why = {"too_coarse": "records too far apart:\nrun with levels=", "leaps": "leaps over the loss"}
    counts = {reason: at.attrs[key] for key, reason in why.items() if at.attrs[key]}
    return at[name], "".join(f"\n(left out: {count} of {at[name].size},\n{reason})" for reason, count in counts.items())


def snr(ds: "xr.Dataset", ax: "Axes | None" = None, level: float = 0.1, name: str = "test_error") -> "Axes":
    """A test quantity at equal training loss against SNR: band over seeds and learning rates, laws dashed.

    Args:
      ds: Dataset with an axis snr.
      ax: Axes, or None.
      level: training loss in nat.
      name: "test_error" or "test_loss".

    Returns:
      The Axes.

    Raises:
      ValueError: if the Dataset lacks the axis or an observable.
    """
    need(ds, "train_loss", name)
    if "snr" not in ds.dims:
        raise ValueError(f"ds must have an axis snr, got the dimensions {list(ds.dims)}")
    ax = _axes(ax)
    values, note = _at_losses(ds, level, name)
    for i, label, look in looks(ds, one_a_family=True):
        family = ds["family"].values[i]
        rates = values.isel(optimizer=np.flatnonzero(ds["family"].values == family))
        runs = rates.stack(run=("optimizer", "seed")).reset_index("run", drop=True).rename(run="seed")
        look = {**look, "marker": MARKERS.get(family, "o"), "ms": 3}
        band(ax, ds["snr"], runs.transpose("seed", "snr"), label, **look)
    if name == "test_error":
        problem, hyper = problem_of(ds.isel(snr=0))
        grid = np.geomspace(float(ds["snr"].min()), float(ds["snr"].max()), 100)
        sigma_p = hyper.mu / (grid * math.sqrt(problem.s))
        for law, family in ((theory.sign_test_error, "sign_gd"), (theory.gd_test_error, "gd")):
            errors = law(problem, hyper.mu, sigma_p)
            ax.plot(grid, errors, label=f"law of {legend_name(family)}", **law_look(family))
    _log_scale(ax, "x", _why(ds, f"no run has a {name.replace('_', ' ')} at training loss {level:g}"), ds["snr"].values)
    ax.set(xlabel=r"SNR $\|\mu\|/(\sigma_p\sqrt{s})$" + note, ylabel=ds[name].attrs.get("long_name", name))
    ax.legend()
    return ax


def phase(ds: "xr.Dataset", ax: "Axes | None" = None) -> "Axes":
    """Stage boundaries of every run: one row per boundary, one dot per seed, median as a bar.

    Args:
      ds: Dataset of one optimizer, as `js.find_stages` wants it.
      ax: Axes, or None.

    Returns:
      The Axes.

    Raises:
      ValueError: if the Dataset lacks an observable.
    """
    stages, ax = find_stages(_one_optimizer(ds)), _axes(ax)
    for row, name in enumerate(BOUNDARIES):
        values = stages[name].values.ravel()
        reached = values[np.isfinite(values)]
        spread = row + np.linspace(-0.25, 0.25, max(reached.size, 1))[: reached.size]
        ax.plot(reached, spread, ".", ms=2, color=NEUTRAL, alpha=0.5)
        if reached.size:
            ax.plot([np.median(reached)] * 2, [row - 0.4, row + 0.4], color="k")
        else:
            ax.text(0.02, row, "never reached", transform=ax.get_yaxis_transform(), va="center", color="0.5")
    ax.set_yticks(range(len(BOUNDARIES)), [r"$t_\mathrm{" + name[2:] + "}$" for name in BOUNDARIES])
    some = any(bool(stages[name].notnull().any()) for name in BOUNDARIES)
    ax.set(xscale="symlog", xlabel="step t", xlim=(0, None if some else max(1, int(ds["step"][-1]))))
    ax.invert_yaxis()
    return ax


def mark_stages(ax: "Axes", ds: "xr.Dataset", until: int, stages: "xr.Dataset | None" = None) -> None:
    """Marks the median stage boundaries up to `until` on an Axes whose x axis is the step.

    Boundaries that lie close together share a label, "III, IV", above the middle of their lines; labels that would
    touch stand in two rows. A caller that marks many Axes gives `stages`, what `js.find_stages` returns for `ds`.
    """
    stages = find_stages(_one_optimizer(ds)) if stages is None else stages
    reached = {name[2:]: float(stages[name].median()) for name in BOUNDARIES if bool(stages[name].notnull().any())}
    groups: list[dict[str, float]] = []
    for name, t in sorted(reached.items(), key=lambda item: item[1]):
        if t > until:
            continue
        ax.axvline(t, color="0.35", lw=0.6, ls=":", gid=FRAME)
        close = groups and t - max(groups[-1].values()) < 0.04 * until
        groups = [*groups[:-1], {**groups[-1], name: t}] if close else [*groups, {name: t}]
    right = -float("inf")
    for group in groups:
        words, x = ", ".join(group), sum(group.values()) / len(group)
        half = 0.02 * until * len(words)
        above = 7 if x - half < right else 0
        right = x + half
        ax.annotate(
            words, (x, 1.0), xycoords=ax.get_xaxis_transform(), xytext=(0, above), textcoords="offset points",
            fontsize=7, color="0.35", va="bottom", ha="center",
        )  # fmt: skip


def alarms_of(ds: "xr.Dataset", name: str) -> list[str]:
    """The alarms of a Dataset that say from which step on an observable is frozen.

    Args:
      ds: Dataset.
      name: an observable; an attention or an agreement is frozen as soon as one of its features is.

    Returns:
      Names of variables. Older results have `first_frozen_step`, the alarm of query noise.

    Examples:
      >>> import xarray as xr
      >>> alarms_of(xr.Dataset({"first_frozen_key_noise": 3, "first_frozen_query_noise": 2}), "sign_agreement")
      ['first_frozen_query_noise', 'first_frozen_key_noise']
    """
    features = MADE_OF.get(name, (name,))
    alarms = [f"first_frozen_{feature}" for feature in features if f"first_frozen_{feature}" in ds]
    old = not alarms and "query_noise" in features and "first_frozen_step" in ds
    return ["first_frozen_step"] if old else alarms


def hatch_underflow(ax: "Axes", ds: "xr.Dataset", name: str = "query_noise") -> None:
    """Hatches the steps at which an observable is frozen: those after the median first underflow of its features.

    The hatching has its own entry in the legend, so draw the legend after it.

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


def footer(fig: "Figure", ds: "xr.Dataset", preset: str = "") -> None:
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
    small_print(fig, text)


def small_print(fig: "Figure", text: str) -> None:
    """Writes a caption with seeds and settings below a figure, in lines as wide as the figure."""
    fig.supxlabel("\n".join(textwrap.wrap(text, int(19 * fig.get_figwidth()))), fontsize=7, color="0.35")


def tick_log(axis: "Axis") -> None:
    """Labels a log axis of less than two decades with a few plain numbers, where matplotlib's own collide.

    Args:
      axis: matplotlib axis; one that is not logarithmic, or whose ticks are given, stays as it is. One without a
        positive number, of which matplotlib refuses to draw ticks, becomes linear.
    """
    from matplotlib.ticker import FixedLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() == "log" and low <= 0 and not math.isfinite(axis.get_minpos()):
        ax = axis.axes
        (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("linear")
    if axis.get_scale() != "log" or low <= 0 or isinstance(axis.get_major_locator(), FixedLocator):
        return
    axis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        for digits in (
            (1,) if high > 20 * low else (1, 2, 5),
            (1, 2, 5),
            (1, 1.5, 2, 3, 4, 6, 8),
            np.arange(1, 10, 0.1),
        ):
            ticks = [tick for power in powers for d in digits if low <= (tick := d * 10.0**power) <= high]
            if len(ticks) > 1:
                break
        ticks = ticks[:: -(-len(ticks) // 6)]
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])


def key(
    fig: "Figure", ncols: int = 4, axes: "Iterable[Axes] | None" = None, at: "Axes | None" = None, **look: Any
) -> None:
    """Draws one legend for the lines of all panels, above the figure: every name once, in the order of the panels.

    Args:
      fig: matplotlib Figure.
      ncols: columns of the legend.
      axes: panels whose lines it names; default all.
      at: an empty panel that holds the legend.
      **look: passed to `fig.legend`.
    """
    entries: dict[str, Any] = {}
    for ax in fig.axes if axes is None else axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    look = {"columnspacing": 1.2, "ncols": ncols, "loc": "outside upper center" if at is None else "center", **look}
    if at is not None:
        at.set_axis_off()
    (fig if at is None else at).legend(list(entries.values()), list(entries), **look)


def style_key(ax: "Axes", label: str, **look: Any) -> None:
    """Names a style that lines of several colours have, by a neutral line in the legend.

    Args:
      ax: Axes whose legend entries `key` collects.
      label: what the style means.
      **look: the style, such as ls=":" or marker="x".
    """
    ax.plot([], [], color=NEUTRAL, label=label, **look)


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

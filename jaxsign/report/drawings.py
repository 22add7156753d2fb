"""Which panels can be drawn of one Dataset? Each as SVG that can stand on one page with others."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign import plot
from jaxsign.analysis.equal_loss import levels_of, with_captured
from jaxsign.analysis.measures import GROUPING_STEP
from jaxsign.analysis.reading import CannotDecide, reading
from jaxsign.analysis.runs import system_of
from jaxsign.analysis.stages import BOUNDARIES, find_stages
from jaxsign.claims.dynamics import problem_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Points of the axes that are drawn one by one; of more points, this many are chosen evenly.
POINTS = 6
#: Coordinate of an optimizer that stands for several of its family: of how many, and why this one.
CHOSEN = "chosen"
#: Recorded steps that a line of noise is drawn from: more cannot be seen on 5 cm.
STEPS = 150
#: More dots than these are drawn as one picture of pixels.
DOTS = 1000
#: Systems with closed-form laws of the test error; a single run has no system's name.
WITH_LAWS = ("two_layer", "two_layer_curvature", "")
#: Traces that come first, in the order of the stages.
FIRST = ("value_noise", "query_noise", "key_noise", "query_signal", "key_signal", "s11", "s21", "s22")
LOSSES = ("train_loss", "test_loss")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One panel.

    Args:
      group: heading of the drawings that it stands among.
      title: what is drawn.
      caption: of which runs.
      svg: an <svg> element whose ids begin with the prefix that `drawings` was given.
      choice: the point of the axes, of drawings of which the page shows those of one point at a time; else "".
    """

    group: str
    title: str
    caption: str
    svg: str
    choice: str = ""


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A panel before it is drawn; `draw` raises CannotDecide if the Dataset lacks something."""

    group: str
    title: str
    caption: str
    draw: Callable[["Axes"], Any]
    choice: str = ""


def drawings(ds: "xr.Dataset", prefix: str) -> list[Drawing]:
    """Losses, scalars, SNR curves and stages of a Dataset of any system, in this order.

    Args:
      ds: Dataset of `js.run_sweep`, `js.open_results` or `Run.to_xarray`.
      prefix: what ids begin with, unique on the page.

    Returns:
      The drawings; none if no run has finished or the Dataset has no traces. A picture is left out if the Dataset lacks
      something that it shows.

    Raises:
      Defect: if drawing fails, naming the picture.

    Examples:
      >>> import jax, jaxsign as js
      >>> task = js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10))
      >>> run = js.train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=120, record=10,
      ...     levels=[0.6, 0.5])
      >>> [drawing.title for drawing in drawings(run.to_xarray(), "a")][:3]
      ['training loss', 'test loss', 'test error against training loss']
    """
    out: list[Drawing] = []
    for panel in _panels(ds):
        svg = ""
        with contextlib.suppress(CannotDecide), reading(f"the drawing {panel.title!r} in {panel.group!r}"):
            svg = _drawn(panel.draw)
        if svg:
            out.append(
                Drawing(panel.group, panel.title, panel.caption, _inline(svg, f"{prefix}-{len(out)}-"), panel.choice)
            )
    return out


def _panels(ds: "xr.Dataset") -> Iterator[_Panel]:
    """The panels that a Dataset may have."""
    if ds.sizes.get("step", 0) < 2 or not bool((ds["status"] == 0).any()):
        return
    axes = {str(dim): ds.sizes[dim] for dim in ds["status"].dims if dim not in ("optimizer", "seed")}
    whole = np.array(list(np.ndindex(*axes.values())))
    places = whole[np.unique(np.linspace(0, len(whole) - 1, min(POINTS, len(whole))).round().astype(int))]
    for place in places:
        point = _point(ds, dict(zip(axes, place.tolist())))
        if point.sizes["optimizer"]:
            words = _words(ds, point)
            yield from (dataclasses.replace(panel, choice=words) for panel in _of_losses(point, words))
    middle = {axis: (size - 1) // 2 for axis, size in axes.items()}
    for axis, size in axes.items():
        if size > 1:
            yield from _over_axis(ds, axis, {other: place for other, place in middle.items() if other != axis})
    point = _point(ds, middle)
    words = _words(ds, point)
    if point.sizes["optimizer"]:
        yield from _of_scalars(point, words)
    for i in range(point.sizes["optimizer"]):
        yield from _of_traces(point.isel(optimizer=[i]), words)


def _point(ds: "xr.Dataset", place: dict[str, int]) -> "xr.Dataset":
    """One point of every axis with one optimizer of every family: the one whose median training loss ends lowest.

    Families without a finished run are left out.
    """
    point = ds.isel(place)
    finished = (point["status"].transpose("optimizer", "seed").values == 0).any(axis=1)
    families = np.atleast_1d(point["family"].values)
    ends = np.zeros(families.size)
    if "train_loss" in point:
        last = point["train_loss"].isel(step=-1).transpose("optimizer", "seed").values.astype(float)
        ends = np.median(np.where(np.isfinite(last), last, np.inf), axis=1)
    chosen, words = [], []
    why = "the lowest last training loss of" if "train_loss" in point else "the first of"
    for family in dict.fromkeys(families.tolist()):
        candidates = [i for i in np.flatnonzero(families == family) if finished[i]]
        chosen += [min(candidates, key=lambda i: ends[i])] if candidates else []
        words += [f" ({why} {len(candidates)})" if len(candidates) > 1 else ""] if candidates else []
    return point.isel(optimizer=chosen).assign_coords({CHOSEN: ("optimizer", words)})


def _words(ds: "xr.Dataset", point: "xr.Dataset") -> str:
    """A point's coordinates on the axes of the Dataset, in words; empty if it is the only point."""
    names = [name for name in ds.coords if ds[name].ndim == 1 and name in point.coords and point[name].ndim == 0]
    names = sorted((str(name) for name in names if ds[name].size > 1), key=lambda name: (name not in ds.dims, name))
    return ", ".join(f"{name}={_short(point[name].item())}" for name in names)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _titled(title: str, words: str) -> str:
    return f"{title}, {words}" if words else title


def _caption(point: "xr.Dataset", optimizers: str = "") -> str:
    """Which runs a panel is of; of a sweep under way, how many seeds of each optimizer have finished."""
    seeds = point.sizes["seed"]
    run = (point["status"] >= 0).sum("seed").values
    some = f"{run.min()}" if run.min() == run.max() else f"{run.min()} to {run.max()}"
    counted = str(seeds) if run.min() == seeds else f"{some} of {seeds}"
    band = f"median and 5-95 % of {counted} seeds" if seeds > 1 else "1 seed"
    labels = [str(label) for label in np.atleast_1d(point["optimizer"].values)]
    if CHOSEN in point.coords:
        labels = [label + words for label, words in zip(labels, np.atleast_1d(point[CHOSEN].values).tolist())]
    return f"{optimizers or ', '.join(labels)}; {band}"


def _of_losses(point: "xr.Dataset", words: str) -> Iterator[_Panel]:
    """Losses over steps, and test error at equal training loss."""
    late = ("noise_l1",) if _late_law(point) else ()
    held = point[with_captured(point, (*LOSSES, "test_error", "status", *late))].load()
    caption = _caption(point)
    for name, title in zip(LOSSES, ("training loss", "test loss")):
        if name in held:
            yield _Panel("Losses", _titled(title, words), caption, partial(_loss, held, name))
    if system_of(point) in WITH_LAWS:
        title = _titled("test error against training loss", words)
        yield _Panel("Losses", title, f"{caption}; laws dashed", partial(plot.error_at_loss, held))


def _late_law(point: "xr.Dataset") -> bool:
    """Whether the late loss of SignGD follows the law that `plot.loss` draws.

    That is so with softmax attention and no residual path, as long as no loss is too small for its floats.
    """
    try:
        problem, hyper = problem_of(point)
    except CannotDecide:
        return False
    if problem.kernel != "softmax" or hyper.residual or not {"train_loss", "learning_rate"} <= set(point.variables):
        return False
    return float(point["train_loss"].min()) > np.finfo(point["train_loss"].dtype).tiny


def _loss(held: "xr.Dataset", name: str, ax: "Axes") -> None:
    """A loss over steps, on a log scale if it spans a decade."""
    plot.loss(held, ax, name)
    ax.set_ylabel(name.replace("_", " "))  # the long name is the title
    positive = held[name].where(held[name] > 0)
    if _spans(positive.values) and not bool((held[name] < 0).any()):
        ax.set_ylim(float(positive.min()) / 2, None)  # the law may go on where numbers end
    else:
        ax.set_yscale("linear")


def _scalar(held: "xr.Dataset", name: str, ax: "Axes") -> None:
    """A scalar over steps, one line per optimizer, on a log scale if it is positive and spans a decade."""
    for i, label, look in plot.looks(held):
        values = held[name].isel(optimizer=i).transpose("seed", "step")
        plot.band(ax, held["step"], values, label, **look)
    if _spans(held[name].values):
        ax.set_yscale("log")
    ax.set(xlabel="step t", ylabel=plot.literal(name.replace("_", " ")))
    ax.legend()


def _spans(values: np.ndarray) -> bool:
    """Whether numbers are positive and span a decade; those that are not finite do not count."""
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() >= 10 * values.min())


def _of_scalars(point: "xr.Dataset", words: str) -> Iterator[_Panel]:
    """Every other observable that is one number a step."""
    names = [str(name) for name, v in point.data_vars.items() if set(v.dims) == {"optimizer", "seed", "step"}]
    for name in sorted(set(names) - set(LOSSES)):
        held = point[[name, "status"]].load()
        title = str(held[name].attrs.get("long_name", name.replace("_", " ")))
        title = _titled(title, words)
        yield _Panel("Other scalars", title, _caption(point), partial(_scalar, held, name))


def _over_axis(ds: "xr.Dataset", axis: str, place: dict[str, int]) -> Iterator[_Panel]:
    """Test quantities at equal training loss against SNR; the end of training against any axis of numbers."""
    along = ds.isel(place)
    group, words = f"Against {axis}", _words(ds, along)
    if axis == "snr":
        held = along[with_captured(along, (*LOSSES, "test_error"))].load()
        level = min(levels_of(along, [0.1]), key=lambda level: abs(np.log(level / 0.1)))
        for name, title in (("test_error", "test error"), ("test_loss", "test loss")):
            title = _titled(f"{title} at training loss {level:g}", words)
            caption = _caption(along, f"all {along.sizes['optimizer']} optimizers")
            yield _Panel(group, title, caption, partial(plot.snr, held, level=level, name=name))
    if np.issubdtype(ds[axis].dtype, np.number) and "train_loss" in along:
        ends = along["train_loss"].isel(step=-1).load()
        title = _titled(f"training loss at step {int(ds['step'][-1])}", words)
        caption = _caption(along, "at each point the optimizer of a family whose median is lowest")
        families = np.atleast_1d(along["family"].values)
        yield _Panel(group, title, caption, partial(_ends, ends, axis, families))


def _ends(ends: "xr.DataArray", axis: str, families: np.ndarray, ax: "Axes") -> None:
    """The last loss of every family against an axis, at each of its points the optimizer whose median ends lowest."""
    medians = ends.where(np.isfinite(ends), np.inf).median("seed")
    for i, label, look in plot.looks(ends.coords.to_dataset(), one_a_family=True):
        places = np.flatnonzero(families == families[i])
        best = ends.isel(optimizer=places).isel(optimizer=medians.isel(optimizer=places).argmin("optimizer"))
        marker = plot.MARKERS.get(families[i], "o")
        plot.band(ax, ends[axis], best.transpose("seed", axis), label, marker=marker, ms=3, **look)
    for scale, values in ((ax.set_yscale, ends.values), (ax.set_xscale, ends[axis].values)):
        if _spans(values):
            scale("log")
    ax.set(xlabel=plot.literal(axis), ylabel="training loss")
    ax.legend()


def _of_traces(one: "xr.Dataset", words: str) -> Iterator[_Panel]:
    """The stages of one optimizer's runs: their boundaries, and every observable with further dimensions."""
    family = str(np.atleast_1d(one["family"].values)[0])
    family, caption = plot.NAMES.get(family, family), _caption(one)
    names = [str(n) for n, v in one.data_vars.items() if "step" in v.dims and len(v.dims) > 3]
    names = sorted(names, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))
    alarms = [str(n) for n in one.data_vars if str(n).startswith("first_frozen_")]
    beside = [*(n for n in ("query_signal", "sign_agreement", "status") if n in one), *alarms]
    if not names:
        return
    held = one[list(dict.fromkeys([*names, *beside]))].load()
    group, until, stages = f"Stages of {family}", int(held["step"][-1]), None
    try:
        stages = find_stages(held)
        ends = [float(stages[name].median()) for name in BOUNDARIES]
        reached = [end for end in ends if np.isfinite(end)]
        until = min(until, max(GROUPING_STEP, round(1.25 * max(reached)))) if reached else until
    except CannotDecide:
        group = f"Traces of {family}"
    else:
        yield _Panel(group, _titled("stage boundaries", words), f"{caption}; a dot a seed", partial(_boundaries, held))

    def trace(name: str, ax: "Axes") -> None:
        plot.dynamics(_thinned(held, until), name, ax)
        ax.set_xlim(0, until)
        if stages is not None:
            plot.mark_stages(ax, held, until, stages)
        plot.hatch_underflow(ax, held, name)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()

    for name in names:
        title = str(held[name].attrs.get("long_name", name.replace("_", " ")))
        members = " and ".join(str(dim) for dim in held[name].dims if dim not in ("optimizer", "seed", "step"))
        title = _titled(title, words)
        yield _Panel(group, title, f"{caption}; averaged over {members}", partial(trace, name))


def _boundaries(held: "xr.Dataset", ax: "Axes") -> None:
    plot.phase(held, ax)
    for line in ax.lines:
        line.set_rasterized(line.get_marker() == "." and np.size(line.get_xdata()) > DOTS)


def _thinned(ds: "xr.Dataset", until: int) -> "xr.Dataset":
    """A Dataset up to a step, at STEPS of its recorded steps or fewer, and at the step whose signs group noise."""
    steps = ds["step"].values[ds["step"].values <= until]
    kept = np.unique(np.linspace(0, steps.size - 1, min(STEPS, steps.size)).round().astype(int))
    return ds.isel(step=np.union1d(kept, np.flatnonzero(steps == GROUPING_STEP)))


def _drawn(draw: Callable[["Axes"], Any]) -> str:
    """A panel as an SVG document; empty if there is no line of two points on it, and no dot."""
    from matplotlib.figure import Figure

    with plot.style():
        fig = Figure(figsize=(plot.NARROW, 0.7 * plot.NARROW))
        ax = fig.subplots()
        draw(ax)
        lines = [np.size(line.get_xdata()) for line in ax.lines if plot.has_band(line)]  # not those of laws
        dots = [np.size(line.get_xdata()) for line in ax.lines if line.get_marker() == "."]
        if max(lines, default=0) < 2 and not any(dots):
            return ""
        for axis in (ax.xaxis, ax.yaxis):
            plot.tick_log(axis)
        handles, labels = ax.get_legend_handles_labels()
        if len(labels) > 5 and (legend := ax.get_legend()):
            legend.remove()
            fig.set_figheight(fig.get_figheight() + 0.12 * -(-len(labels) // 3))
            fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=5.5)
        return plot.svg(fig)


_REFERENCE = re.compile(r"#([\w.:-]+)")
_LONG = re.compile(r"-?\d+\.\d{3,}")


def _inline(document: str, prefix: str) -> str:
    """An SVG document as an element of an HTML page.

    Ids that something refers to get the prefix, since matplotlib gives equal shapes the same id in all figures; others
    are removed. So are the style sheet, which would apply to the whole page, and the size, which the page's own style
    sheet sets. Coordinates are rounded to a hundredth of a point.
    """
    from xml.etree import ElementTree

    root = ElementTree.fromstring(document)
    referenced = set(_REFERENCE.findall(document))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (text.strip() if text else None for text in (element.text, element.tail))
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            name = key.rpartition("}")[2]
            if name == "id":
                if value not in referenced:
                    continue
                value = prefix + value
            elif name == "href" or "url(" in value:
                value = _REFERENCE.sub(lambda match: f"#{prefix}{match[1]}", value)
            elif name in ("d", "x", "y", "points"):
                value = _LONG.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
                value = value.replace(" \n", "\n").replace("\n", " ").strip()
            element.set(name, value)
    for parent in root.iter():
        for child in [c for c in parent if c.tag in ("style", "metadata")]:
            parent.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return ElementTree.tostring(root, encoding="unicode")

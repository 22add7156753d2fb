"""Can a reader read a figure? What stands in the way: too many panels, names that are missing, text that collides."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.plot.colours import LAW, LAW_OF_GD, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

#: Width of a paper's text in inches: a wider figure is shrunk to it when printed.
PRINTED = 5.5
#: A figure may have this many panels; its smallest text is this large in print, in points.
PANELS, POINTS = 9, 7.0
#: Text may touch, as tick labels do, by this many points.
TOUCH = 0.75
#: The `gid` of lines that need no name: a seed's trace beside the median that is named, and the line of an axis.
SEED, FRAME = "seed", "frame"


def faults(fig: "Figure") -> list[str]:
    """What keeps a reader from reading a figure at the width of a paper's text, 5.5 inches; empty if nothing does.

    A figure has at most 9 panels. Every panel names both axes, or shares an axis with a panel that names it. Every text
    is at least 7 pt large in print, lies inside the figure and overlaps no other. Every line is named: in a legend
    of the figure, its colour and its style apart where the style is shown by a line of the colour `NEUTRAL`, by a text
    of its colour in the panel, or by its gid as a seed's trace ("seed") or an axis ("frame").
    One look has one name, a legend names no two lines alike, and a law is dashed in black or grey. A legend lies inside
    its panel or outside of all, and neither it nor another text in a panel lies on a line.

    Args:
      fig: matplotlib Figure, which is laid out and drawn, but not shown.

    Returns:
      One sentence a fault, naming the panel by its title.

    Examples:
      >>> from matplotlib.figure import Figure
      >>> ax = Figure(figsize=(3, 2), layout="constrained").subplots()
      >>> _ = ax.plot([1, 2], label="loss")
      >>> _ = ax.set(xlabel="step t", title="(a)")
      >>> for fault in faults(ax.figure):
      ...     print(fault)
      (a): the y axis has no label
      (a): a line has no name in a legend: 'loss'
    """
    fig.draw_without_rendering()
    panels = [ax for ax in fig.axes if ax.axison and ax.get_visible() and ax.get_label() != "<colorbar>"]
    out = [f"{len(panels)} panels, at most {PANELS} can be read"] if len(panels) > PANELS else []
    found = _unlabelled(panels), _unnamed(fig, panels), _bad_texts(fig), _crossing_legends(panels), _struck(panels)
    return [*out, *itertools.chain(*found)]


def _title(ax: Any) -> str:
    """What a message calls a panel."""
    return ax.get_title(loc="left") or ax.get_title() or "panel"


def _unlabelled(panels: "list[Axes]") -> Iterator[str]:
    """Axes without a label of their own or of a panel that shares them."""
    for ax, name in itertools.product(panels, "xy"):
        shared = getattr(ax, f"get_shared_{name}_axes")()
        if not any(getattr(one, f"get_{name}label")() for one in panels if one is ax or shared.joined(one, ax)):
            yield f"{_title(ax)}: the {name} axis has no label"


def _hex(colour: Any) -> str:
    """A colour in whatever form, as hexadecimal digits."""
    from matplotlib.colors import to_hex

    return to_hex(colour)


def _look(line: "Line2D") -> tuple[str, str, str]:
    """What a reader tells a line by: colour, whether it is solid, dashed or dotted, marker."""
    shown = line.get_linewidth() > 0 and str(line.get_linestyle()) not in ("None", " ", "")
    return _hex(line.get_color()), str(line.get_linestyle()) if shown else "", str(line.get_marker() or "None")


def _visible(line: "Line2D") -> bool:
    """Whether a line draws anything."""
    _, style, marker = _look(line)
    points = np.asarray(line.get_xydata(), float)
    return line.get_visible() and (style != "" or marker != "None") and bool(np.isfinite(points).all(-1).any())


def _unnamed(fig: "Figure", panels: "list[Axes]") -> Iterator[str]:
    """Lines that no legend and no text names, looks with two names, and laws that do not look like laws."""
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

    names: dict[tuple[str, str, str], set[str]] = {}
    for legend in fig.findobj(Legend):
        shown = [text.get_text() for text in legend.get_texts()]
        shown = [name for name, handle in zip(shown, legend.legend_handles) if isinstance(handle, Line2D) and name]
        for name in sorted({name for name in shown if shown.count(name) > 1}):
            yield f"a legend names {shown.count(name)} lines {name!r}"
        for handle, text in zip(legend.legend_handles, legend.get_texts()):
            if isinstance(handle, Line2D) and _look(handle)[1:] != ("", "None"):  # words alone show no look
                names.setdefault(_look(handle), set()).add(text.get_text())
    for look, called in names.items():
        if len(called) > 1:
            yield f"one look has {len(called)} names: {', '.join(sorted(called))}"
        law = any("law" in name.split() for name in called)
        if law and not (look[0].upper() in (LAW, LAW_OF_GD) and look[1] in ("--", "-.", ":")):
            yield f"a law is dashed in black or grey: {', '.join(sorted(called))}"
    # A key may name colours and styles apart: what a style means, for all colours, is shown by a neutral line.
    colours = {look[0] for look in names}
    styles = {look[1:] for look in names if look[0].upper() == NEUTRAL}
    marked = {(look[0], look[2]) for look in names}

    def named(line: "Line2D", said: set[str]) -> bool:
        look = _look(line)
        apart = look[0] in colours and (look[1:] in styles or (look[1], "None") in styles)
        alone = look[1] == "" and (look[0], look[2]) in marked  # a marker without its line
        return line.get_gid() in (SEED, FRAME) or look in names or apart or alone or look[0] in said

    for ax in panels:
        said = {_hex(text.get_color()) for text in ax.texts if text.get_text()}
        for line in ax.lines:
            if _visible(line) and not named(line, said):
                yield f"{_title(ax)}: a line has no name in a legend: {line.get_label()!r}"


def _texts(fig: "Figure") -> "Iterator[tuple[str, Text]]":
    """Every text that is drawn, with the panel that it belongs to: of ticks only those inside the axis."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    of_axes: set[Text] = set()  # of ticks, and of axes that are switched off
    for axis in fig.findobj(Axis):
        place = axis.get_transform().transform
        low, high = sorted(place(axis.get_view_interval()))
        slack = 1e-9 * (high - low)
        drawn = axis.axes.axison and axis.axes.get_visible()
        of_axes |= set() if drawn else {axis.label, axis.offsetText}
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            of_axes |= {tick.label1, tick.label2}
            if drawn and low - slack <= place(tick.get_loc()) <= high + slack:
                for label in (tick.label1, tick.label2):
                    if label.get_visible() and label.get_text():
                        yield _title(axis.axes), label
    for text in fig.findobj(Text):
        shown = text.get_visible() and (text.axes is None or text.axes.get_visible())
        if text not in of_axes and shown and text.get_text().strip():
            yield (_title(text.axes) if text.axes is not None else "figure"), text


def _bad_texts(fig: "Figure") -> Iterator[str]:
    """Texts that are too small, leave the figure or lie on one another."""
    shrunk = min(1.0, PRINTED / fig.get_figwidth())
    pixel = fig.dpi / 72
    boxes: list[tuple[str, str, Any]] = []
    for where, text in _texts(fig):
        words = text.get_text().replace("\n", " ")
        if (size := float(text.get_fontsize()) * shrunk) < POINTS - 1e-6:
            yield f"{where}: {words!r} is {size:.2g} pt large in print, at least {POINTS:g} can be read"
        box = text.get_window_extent()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > fig.bbox.x1 + 1 or box.y1 > fig.bbox.y1 + 1:
            yield f"{where}: {words!r} leaves the figure"
        boxes.append((where, words, box.padded(-TOUCH * pixel)))
    corners = np.array([(box.x0, box.y0, box.x1, box.y1) for _, _, box in boxes]).reshape(-1, 4)
    for i, (where, words, box) in enumerate(boxes):
        rest = corners[i + 1 :]
        both = (rest[:, 0] < box.x1) & (rest[:, 2] > box.x0) & (rest[:, 1] < box.y1) & (rest[:, 3] > box.y0)
        for other in np.flatnonzero(both) + i + 1:
            yield f"{where}: {words!r} overlaps {boxes[other][1]!r}"


def _crossing_legends(panels: "list[Axes]") -> Iterator[str]:
    """Legends that cross the edge of a panel."""
    for ax in panels:
        legend = ax.get_legend()
        if legend is not None and legend.get_visible():
            box, edge = legend.get_window_extent(), ax.get_window_extent().padded(1)
            inside = edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1
            if not inside and any(box.overlaps(one.get_window_extent()) for one in panels):
                yield f"{_title(ax)}: the legend crosses the edge of a panel"


def _struck(panels: "list[Axes]") -> Iterator[str]:
    """Texts in a panel and its legend through which a line goes."""
    for ax in panels:
        legend = ax.get_legend()
        texts = [*ax.texts, *(legend.get_texts() if legend is not None and legend.get_visible() else ())]
        for line in ax.lines:
            if _visible(line) and line.get_gid() != FRAME and _look(line)[1]:
                path = line.get_transform().transform_path(line.get_path()).cleaned(remove_nans=True)
                for text in texts:
                    if text.get_text() and path.intersects_bbox(text.get_window_extent(), filled=False):
                        yield f"{_title(ax)}: a line goes through {text.get_text()!r}"

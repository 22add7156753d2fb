"""Which numbers does a figure show? Its lines, the bands around them and its maps, as rows of one table."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: Of the table.
COLUMNS = ("panel", "line", "x", "y", "q05", "q95")
# Matplotlib knows a line and the area around it as two artists, and a map as pixels: what belongs together is kept here
# for as long as the figure lives.
_BANDS: "WeakKeyDictionary[Line2D, tuple[np.ndarray, np.ndarray]]" = WeakKeyDictionary()
_MAPS: "WeakKeyDictionary[Axes, list[tuple[str, np.ndarray, np.ndarray]]]" = WeakKeyDictionary()


def keep_band(line: "Line2D", low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> None:
    """Keeps the band around a line for the table that `save` writes.

    Args:
      line: matplotlib line.
      low: lower end of the band at every point of the line.
      high: upper end.
    """
    _BANDS[line] = (np.asarray(low, float), np.asarray(high, float))


def has_band(line: "Line2D") -> bool:
    """Whether a line was drawn with a band around it."""
    return line in _BANDS


def keep_map(
    ax: "Axes", labels: Sequence[str], x: Sequence[float] | np.ndarray, values: Sequence[Sequence[float]] | np.ndarray
) -> None:
    """Keeps the numbers of a map, which shows them as colours, for the table that `save` writes.

    Args:
      ax: Axes of the map.
      labels: name of every row of the map.
      x: position of every column.
      values: (labels, x) numbers.
    """
    rows = [(label, np.asarray(x, float), np.asarray(row, float)) for label, row in zip(labels, values)]
    _MAPS.setdefault(ax, []).extend(rows)


def table(fig: "Figure") -> Iterator[list[str]]:
    """The rows of a figure's table, all lines first: the title of the panel, the label of the line, and the numbers.

    Examples:
      >>> from matplotlib.figure import Figure
      >>> ax = Figure().subplots()
      >>> _ = ax.plot([1, 2], [0.5, 0.25], label="loss")
      >>> next(table(ax.figure))
      ['0', 'loss', '1', '0.5', '', '']
    """
    panels = [(ax.get_title(loc="left") or str(number), ax) for number, ax in enumerate(fig.axes)]
    for panel, ax in panels:
        for index, line in enumerate(ax.lines):
            x, y = (np.asarray(values, float) for values in line.get_data())
            missing = np.full_like(y, np.nan)
            low, high = _BANDS.get(line, (missing, missing))
            name = str(line.get_label())
            label = f"line {index}" if name.startswith("_") else name
            yield from _rows(panel, label.strip().replace(r"\$", "$"), x, y, low, high)
    for panel, ax in panels:
        for label, x, y in _MAPS.get(ax, ()):
            missing = np.full_like(y, np.nan)
            yield from _rows(panel, label, x, y, missing, missing)


def _rows(panel: str, label: str, *columns: np.ndarray) -> Iterator[list[str]]:
    """One row a point; NaN is an empty cell."""
    for numbers in zip(*columns):
        yield [panel, label, *("" if math.isnan(number) else f"{number:.6g}" for number in numbers)]

"""How is a number over two axes drawn? As a map with contours, hatched where it is not to be trusted."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.plot.numbers import keep_map

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

#: Perceptually uniform, and the same order in grey print and for colour-blind readers.
COLOUR_MAP = "cividis"


def heat_map(
    ax: "Axes",
    values: "xr.DataArray",
    limits: tuple[float, float],
    *,
    contours: "Sequence[float]" = (),
    of: "xr.DataArray | None" = None,
    hatched: "xr.DataArray | None" = None,
    held_out: "xr.DataArray | None" = None,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
) -> "AxesImage":
    """Draws a table as a map of evenly spaced cells, one a point of its two coordinates.

    Args:
      ax: Axes.
      values: DataArray (y, x), with a coordinate for each dimension; NaN cells are grey.
      limits: the values at both ends of the colours.
      contours: levels at which contours are drawn and labelled, such as (0.1, 0.25).
      of: DataArray (y, x) whose contours are drawn, such as a law's; default `values`.
      hatched: bool DataArray (y, x), cells not to be trusted, drawn hatched.
      held_out: bool DataArray (y, x), cells kept out of every fit, drawn with a dot.
      names: labels of the rows and columns, "" for none; default the coordinates. At most nine are shown.

    Returns:
      The image, for `fig.colorbar`.

    Examples:
      >>> import xarray as xr
      >>> from matplotlib.figure import Figure
      >>> cells = xr.DataArray([[0.1, 0.5]], dims=("d", "mu"), coords={"d": [100], "mu": [0.1, 1.0]})
      >>> heat_map(Figure().subplots(), cells, (0.0, 0.5)).get_clim()
      (0.0, 0.5)
    """
    from matplotlib.patches import Rectangle

    y, x = values.dims
    rows, columns = names or tuple([cell_name(value) for value in values[dim].values] for dim in (y, x))
    table = np.asarray(values.values, float)
    ax.set_facecolor("0.75")
    image = ax.imshow(table, cmap=COLOUR_MAP, vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
    if len(contours) and min(table.shape) > 1:
        levels = np.asarray((values if of is None else of).transpose(y, x).values, float)
        look: Any = {"colors": "w", "linewidths": 0.9, "linestyles": "-" if of is None else "--"}
        lines = ax.contour(levels, levels=sorted(contours), **look)
        ax.clabel(lines, fontsize=7, fmt="%g")
    if hatched is not None:
        for row, column in np.argwhere(np.asarray(hatched.transpose(y, x).values, bool)):
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, hatch="////", edgecolor="w", facecolor="none", lw=0)
            ax.add_patch(cell)
    if held_out is not None:
        where = np.argwhere(np.asarray(held_out.transpose(y, x).values, bool))
        ax.scatter(where[:, 1], where[:, 0], s=5, color="w", edgecolors="k", linewidths=0.4, zorder=3)
    for axis, labels in ((ax.xaxis, columns), (ax.yaxis, rows)):
        shown = [place for place, label in enumerate(labels) if label]
        shown = shown[:: math.ceil(len(shown) / 9) or 1]
        axis.set_ticks(shown, [labels[place] for place in shown])
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))
    ax.tick_params(length=2)
    ax.spines[:].set_visible(False)
    numeric = np.issubdtype(values[x].dtype, np.number)
    keep_map(ax, [str(name) for name in rows], values[x].values if numeric else np.arange(len(columns)), table)
    return image


def cell_name(value: object) -> str:
    """A coordinate's value as the label of a row or column.

    Examples:
      >>> cell_name(1e-3), cell_name(2000), cell_name(0.25), cell_name("none")
      ('$10^{-3}$', '2000', '0.25', 'none')
    """
    if not isinstance(value, (int, float, np.number)):
        return str(value)
    number = float(value)
    if number > 0 and not 0.01 <= number < 100_000:
        power = math.log10(number)
        if abs(power - round(power)) < 1e-6:
            return f"$10^{{{round(power)}}}$"
        return rf"${number / 10 ** math.floor(power):.1f}\cdot 10^{{{math.floor(power)}}}$"
    return f"{number:.3g}" if number < 100 else f"{number:g}"

"""Which cells of a map are kept out of every fit, so that they can decide its claims?"""

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

#: One cell in so many is held out.
ONE_IN = 10


def held_out(ds: "xr.Dataset | xr.DataArray", *dims: str) -> "xr.DataArray":
    """A tenth of a map's cells, chosen by their coordinates alone: no result can change the choice.

    Args:
      ds: Dataset or DataArray with a coordinate for every dimension.
      *dims: the map's dimensions, such as "mu", "d".

    Returns:
      bool DataArray over `dims`: whether a cell is held out. A cell stays held out, or not, when the map grows.

    Raises:
      ValueError: for no dimension, or one without a coordinate.

    Examples:
      >>> import xarray as xr
      >>> cells = xr.Dataset(coords={"mu": np.geomspace(0.01, 1, 20), "d": [1000, 2000, 4000]})
      >>> int(held_out(cells, "mu", "d").sum())
      5
    """
    import xarray as xr

    missing = [dim for dim in dims if dim not in ds.coords]
    if not dims or missing:
        raise ValueError(f"dims must name dimensions with a coordinate, got {', '.join(map(repr, missing)) or 'none'}")
    values = [[_text(value) for value in ds[dim].values] for dim in dims]
    chosen = np.zeros([len(one) for one in values], bool)
    for index in np.ndindex(chosen.shape):
        cell = ",".join(f"{dim}={one[i]}" for dim, one, i in zip(dims, values, index))
        chosen[index] = zlib.crc32(cell.encode()) % ONE_IN == 0
    return xr.DataArray(chosen, dims=dims, coords={dim: ds[dim] for dim in dims})


def _text(value: object) -> str:
    """A coordinate's value, numbers to the digits that 32-bit floats hold."""
    return f"{value:.5g}" if isinstance(value, (float, int, np.number)) else str(value)

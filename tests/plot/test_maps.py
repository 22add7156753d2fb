"""Maps: what is drawn where, which cells are marked, and the table that goes with them."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from jaxsign import plot
from jaxsign.analysis.held_out import held_out
from jaxsign.plot.numbers import table


@pytest.fixture
def cells():
    values = np.arange(12.0).reshape(3, 4) / 12
    return xr.DataArray(values, dims=("d", "mu"), coords={"d": [10, 100, 10**9], "mu": [1e-3, 2e-3, 0.25, 1.0]})


def test_cells_lie_at_their_coordinates_and_go_into_the_table(cells):
    ax = Figure().subplots()
    image = plot.heat_map(ax, cells, (0.0, 1.0), contours=(0.5,))
    np.testing.assert_array_equal(image.get_array(), cells)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["10", "100", "$10^{9}$"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["$10^{-3}$", r"$2.0\cdot 10^{-3}$", "0.25", "1"]
    rows = [row for row in table(ax.figure) if row[1] == "100"]
    found = [[float(row[2]), float(row[3])] for row in rows]
    np.testing.assert_allclose(found, np.stack([cells.mu, cells[1]], 1), rtol=1e-5)


def test_marks_are_at_the_cells_that_are_marked(cells):
    ax = Figure().subplots()
    mask = cells > 0.9
    plot.heat_map(ax, cells, (0.0, 1.0), hatched=mask.transpose("mu", "d"), held_out=cells == 0)
    (patch,) = ax.patches
    assert (patch.get_x(), patch.get_y(), patch.get_hatch()) == (2.5, 1.5, "////")
    np.testing.assert_array_equal(ax.collections[-1].get_offsets(), [[0, 0]])


def test_a_cell_stays_held_out_when_the_map_grows(cells):
    wide = xr.Dataset(coords={"d": np.geomspace(10, 1e6, 30), "mu": np.geomspace(1e-4, 1, 40)})
    chosen = held_out(wide, "d", "mu")
    assert 0.05 < float(chosen.mean()) < 0.15
    part = wide.isel(d=slice(5, 9), mu=[3, 1, 7])
    xr.testing.assert_equal(held_out(part, "d", "mu"), chosen.isel(d=slice(5, 9), mu=[3, 1, 7]))
    rounded = wide.assign_coords(mu=wide.mu.values.astype(np.float32))
    np.testing.assert_array_equal(held_out(rounded, "d", "mu"), chosen)


@pytest.mark.parametrize("dims", [(), ("mu", "seed")])
def test_dimensions_without_coordinates_are_refused(cells, dims):
    with pytest.raises(ValueError, match=r"dims must name dimensions with a coordinate, got (none|'seed')"):
        held_out(cells, *dims)

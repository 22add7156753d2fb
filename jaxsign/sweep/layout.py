"""Where every run is stored: the order of the points, the grid of blocks, and the variables of the results."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsign.store.labels import RUN_VARIABLES, coordinates, own_dims, stored_as
from jaxsign.store.levels import DIMS, captured_names, observable
from jaxsign.store.results import Slices, Variable, blocks
from jaxsign.sweep.groups import Group, Index
from jaxsign.sweep.sweep import Sweep

#: {number of a block: which of its runs are meant}, such as those that are missing.
BlockRuns = Mapping[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the runs of a sweep are stored. An extended sweep has its new points after the old ones.

    Args:
      order: for every dimension of (axes, optimizer, seed), the definition's index of every stored point; -1 if the
        definition is a part of the stored one and lacks that point.
      extents: runs of a block along every dimension; a block is a chunk of the store.
      records: recorded steps of a chunk.
      runs: maximum runs of one call.
    """

    order: tuple[tuple[int, ...], ...]
    extents: tuple[int, ...]
    records: int
    runs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the runs' dimensions."""
        return tuple(map(len, self.order))

    def blocks(self) -> list[Slices]:
        """All blocks, in the order of their numbers."""
        return blocks(self.shape, self.extents)

    def all_runs(self) -> dict[int, np.ndarray]:
        """{number of a block: all of its runs}."""
        return {number: np.ones([s.stop - s.start for s in box], bool) for number, box in enumerate(self.blocks())}

    def requested(self) -> np.ndarray:
        """Which stored runs the definition has, in stored order."""
        return requested_runs(self.order)

    def members(self, box: Slices, mine: np.ndarray) -> list[Index]:
        """The definition's indices of those runs of a block that `mine` selects, in C order."""
        stored = itertools.product(*(indices[s] for indices, s in zip(self.order, box)))
        return [index for index, selected in zip(stored, mine.ravel()) if selected]


def requested_runs(order: Sequence[Sequence[int]]) -> np.ndarray:
    """Which stored runs a definition has, from its index of every stored point, -1 where it has none."""
    return np.all(np.meshgrid(*(np.array(indices) >= 0 for indices in order), indexing="ij"), axis=0)


class WorkUnit(NamedTuple):
    """Runs that are trained together: the missing runs of some blocks of one group.

    Args:
      group: number of the group.
      number: number of its first block.
      boxes: its blocks.
      mine: for every block, which of its runs are trained.
      members: the definition's indices of these runs.
    """

    group: int
    number: int
    boxes: tuple[Slices, ...]
    mine: tuple[np.ndarray, ...]
    members: tuple[Index, ...]


def owners(groups: Sequence[Group], layout: Layout) -> list[int]:
    """The number of every block's group, -1 for a block without requested runs."""
    static = [i for i, axis in enumerate(groups[0].sweep.grid_axes) if axis.static]
    table = {
        (*(group.fixed[i] for i in static), optimizer): number
        for number, group in enumerate(groups)
        for optimizer in group.optimizers
    }
    # All runs of a block are of one group.
    first = [[max(layout.order[i][s]) for i, s in enumerate(box)] for box in layout.blocks()]
    return [table.get((*(index[i] for i in static), index[-2]), -1) for index in first]


def work_units(groups: Sequence[Group], layout: Layout, missing: BlockRuns) -> list[WorkUnit]:
    """The work to do, group by group: missing runs of consecutive blocks, at most `layout.runs` in a unit.

    Args:
      groups: the groups of the sweep.
      layout: where runs are stored, and how many of them a call trains.
      missing: {number of a block: which of its runs are missing}.
    """
    boxes, owner = layout.blocks(), owners(groups, layout)
    out = []
    for number in range(len(groups)):
        waiting: list[tuple[int, np.ndarray]] = []
        count = 0
        for block in [b for b in missing if owner[b] == number]:
            for piece in _pieces(missing[block], layout.runs):
                size = int(piece.sum())
                if waiting and count + size > layout.runs:
                    out.append(_unit(number, waiting, boxes, layout))
                    waiting, count = [], 0
                waiting.append((block, piece))
                count += size
        if waiting:
            out.append(_unit(number, waiting, boxes, layout))
    return out


def _pieces(missing: np.ndarray, runs: int) -> list[np.ndarray]:
    """Missing runs of one block, at most `runs` a piece: a call holds less than a block after memory ran out."""
    places = np.flatnonzero(missing)
    out = []
    for first in range(0, places.size, runs):
        piece = np.zeros(missing.size, bool)
        piece[places[first : first + runs]] = True
        out.append(piece.reshape(missing.shape))
    return out


def _unit(group: int, waiting: list[tuple[int, np.ndarray]], boxes: list[Slices], layout: Layout) -> WorkUnit:
    numbers, mine = zip(*waiting)
    blocks = tuple(boxes[number] for number in numbers)
    members = tuple(index for box, which in zip(blocks, mine) for index in layout.members(box, which))
    return WorkUnit(group, numbers[0], blocks, mine, members)


def result_variables(
    groups: Sequence[Group], shapes: Sequence[Mapping[str, Any]], layout: Layout
) -> tuple[dict[str, Variable], dict[str, str]]:
    """{name: Variable} of the results, and notes on padded ones.

    If a static axis changes an observable's length, shorter ones are padded with NaN to the longest.

    Args:
      groups: the groups of the sweep.
      shapes: for every group, {name: abstract array} of one run's results.
      layout: where runs are stored.
    """
    sweep, task, traces = groups[0].sweep, groups[0].task, groups[0].observables
    names = dict.fromkeys(name for results in shapes for name in results)
    # Constants, summaries, monitors and the status have no step dimension.
    stepped = set(traces) if sweep.keep_trace else set()
    captured = captured_names(traces) if sweep.crossed else set()
    out, notes = {}, {}
    for name in names:
        infos = [results[name] for results in shapes if name in results]
        lengths = {info.shape for info in infos}
        if len({len(shape) for shape in lengths}) > 1:
            raise ValueError(f"observable {name!r} changes its rank along a static axis")
        longest = tuple(map(max, zip(*lengths))) if lengths != {()} else ()
        dims: tuple[str, ...] = ("step",) if name in stepped else DIMS if name in captured else ()
        chunk = (min(layout.records, longest[0]), *longest[1:]) if name in stepped else longest
        base = observable(name) if name in captured else name
        dims = (*sweep.dims, *dims, *own_dims(base, len(longest) - len(dims), task.dims))
        dtype, fill, note = stored_as(infos[0].dtype)
        attrs = dict(RUN_VARIABLES[name][2] if name in RUN_VARIABLES else task.attrs.get(base, {"long_name": base}))
        attrs |= note
        if base in traces and np.issubdtype(traces[base].dtype, np.integer):
            attrs["computed_as"] = f"{traces[base].dtype}; NaN where {dtype} does not hold the integer"
        if len(lengths) > 1:
            notes[name] = attrs["padded"] = "padded with NaN to the longest value of a static axis"
        shape, chunks = (*layout.shape, *longest), (*layout.extents, *chunk)
        out[name] = Variable(dims, shape, dtype, fill, chunks, attrs)
        if (size := math.prod(shape) * dtype.itemsize) >= 2**62:
            raise ValueError(f"{name!r} would take {size:,} bytes: {dict(zip(dims, shape))}")
    return out, notes


def stored_coordinates(sweep: Sweep, layout: Layout, variables: Mapping[str, Variable]) -> dict[str, tuple]:
    """The coordinates of the results in stored order; a dimension without coordinates is numbered from 0."""
    order = dict(zip(sweep.dims, layout.order))
    out: dict[str, tuple] = {}
    for name, (dims, values, attrs) in coordinates(sweep).items():
        for axis, dim in enumerate(dims):
            if dim in order:
                values = np.take(values, order[dim], axis=axis)
        out[name] = (dims, values, attrs)
    for variable in variables.values():
        for dim, size in zip(variable.dims, variable.shape):
            out.setdefault(dim, ((dim,), np.arange(size), {}))
    return out


def unpadded_shape(group: Group, name: str, info: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a result without a larger program's padding."""
    index = group.unpadded(name, info.shape)
    return jax.ShapeDtypeStruct(tuple(len(range(n)[kept]) for n, kept in zip(info.shape, index)), info.dtype)

"""Where every run's numbers go: stored order, the grid of blocks, and the variables of the results."""

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
from jaxsign.sweep.groups import Group
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import observers

Index = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a sweep's runs lie in the store. A sweep that was extended holds its new points after the old ones.

    Args:
      order: for every dimension of (axes, optimizer, seed), the definition's index at every stored place; -1 where the
        definition is a part of what is stored and does not have it.
      extents: runs of a block along every dimension; a block is a chunk of the store.
      records: recorded steps of a chunk.
      runs: runs of one call at most.
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

    def asked(self) -> np.ndarray:
        """Which stored runs the definition has, in stored order."""
        return np.all(np.meshgrid(*(np.array(own) >= 0 for own in self.order), indexing="ij"), axis=0)

    def members(self, box: Slices, mine: np.ndarray) -> list[Index]:
        """The definition's indices of those runs of a block that `mine` selects, in C order."""
        stored = itertools.product(*(own[s] for own, s in zip(self.order, box)))
        return [index for index, wanted in zip(stored, mine.ravel()) if wanted]


class Unit(NamedTuple):
    """Runs that one call trains: what is missing of some blocks of one group.

    Args:
      group: number of the group.
      number: number of its first block.
      boxes: its blocks.
      mine: for every block, which of its runs are computed.
      members: the definition's indices of these runs.
    """

    group: int
    number: int
    boxes: tuple[Slices, ...]
    mine: tuple[np.ndarray, ...]
    members: tuple[Index, ...]


def owners(sweep: Sweep, groups: Sequence[Group], layout: Layout) -> list[int]:
    """The group of every block."""
    static = [i for i, axis in enumerate(sweep.grid_axes) if axis.static]
    table = {
        (*(group.fixed[i] for i in static), optimizer): number
        for number, group in enumerate(groups)
        for optimizer in group.optimizers
    }
    # All runs of a block are of one group; -1 if none of them is asked for.
    first = [[max(layout.order[i][s]) for i, s in enumerate(box)] for box in layout.blocks()]
    return [table.get((*(index[i] for i in static), index[-2]), -1) for index in first]


def units(sweep: Sweep, groups: Sequence[Group], layout: Layout, missing: Mapping[int, np.ndarray]) -> list[Unit]:
    """What is to be done, group by group: missing runs of consecutive blocks, together at most `layout.runs` a unit.

    Args:
      sweep: the sweep.
      groups: its groups.
      layout: where runs are stored, and how many of them a call trains.
      missing: {number of a block: which of its runs are missing}.
    """
    boxes, owner = layout.blocks(), owners(sweep, groups, layout)
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
    """Missing runs of one block, at most so many a piece: a call may hold less than a block after memory ran out."""
    places = np.flatnonzero(missing)
    out = []
    for first in range(0, places.size, runs):
        piece = np.zeros(missing.size, bool)
        piece[places[first : first + runs]] = True
        out.append(piece.reshape(missing.shape))
    return out


def _unit(group: int, waiting: list[tuple[int, np.ndarray]], boxes: list[Slices], layout: Layout) -> Unit:
    own, mine = tuple(boxes[number] for number, _ in waiting), tuple(piece for _, piece in waiting)
    members = tuple(index for box, which in zip(own, mine) for index in layout.members(box, which))
    return Unit(group, waiting[0][0], own, mine, members)


def variables(
    sweep: Sweep, groups: Sequence[Group], shapes: Sequence[Mapping[str, Any]], layout: Layout
) -> tuple[dict[str, Variable], dict[str, str]]:
    """{name: Variable} of the results, and notes on padded ones.

    A static axis that changes an observable's length pads it with NaN to the longest.

    Args:
      sweep: the sweep.
      groups: its groups.
      shapes: for every group, {name: abstract array} of one run's results.
      layout: where runs are stored.
    """
    task = groups[0].task
    names = dict.fromkeys(name for found in shapes for name in found)
    # Constants, summaries, alarms and the status have no step dimension.
    hyper = sweep.hyper_at(first_index(sweep, groups[0]))
    traces = observers(task, groups[0].start, groups[0].choice.case(hyper), sweep.observables, scalars=True)[0]
    stepped = set(traces) if sweep.keep_trace else set()
    captured = captured_names(traces) if sweep.crossed else set()
    out, notes = {}, {}
    for name in names:
        found = [s[name] for s in shapes if name in s]
        own = {f.shape for f in found}
        if len({len(shape) for shape in own}) > 1:
            raise ValueError(f"observable {name!r} changes its rank along a static axis")
        longest = tuple(map(max, zip(*own))) if own != {()} else ()
        dims: tuple[str, ...] = ("step",) if name in stepped else DIMS if name in captured else ()
        chunk = (min(layout.records, longest[0]), *longest[1:]) if name in stepped else longest
        base = observable(name) if name in captured else name
        dims = (*sweep.dims, *dims, *own_dims(base, len(longest) - len(dims), task.dims))
        dtype, fill, note = stored_as(found[0].dtype)
        attrs = dict(RUN_VARIABLES[name][2] if name in RUN_VARIABLES else task.attrs.get(base, {"long_name": base}))
        attrs |= note
        if base in traces and np.issubdtype(traces[base].dtype, np.integer):
            attrs["computed_as"] = f"{traces[base].dtype}; NaN where {dtype} does not hold the integer"
        if len(own) > 1:
            notes[name] = attrs["padded"] = "padded with NaN to the longest value of a static axis"
        shape, chunks = (*layout.shape, *longest), (*layout.extents, *chunk)
        out[name] = Variable(dims, shape, dtype, fill, chunks, attrs)
        if (size := math.prod(shape) * dtype.itemsize) >= 2**62:
            raise ValueError(f"{name!r} would take {size:,} bytes: {dict(zip(dims, shape))}")
    return out, notes


def stored_coordinates(sweep: Sweep, layout: Layout, found: Mapping[str, Variable]) -> dict[str, tuple]:
    """The coordinates of the results in stored order; every dimension without one is numbered from 0."""
    order = dict(zip(sweep.dims, layout.order))
    out: dict[str, tuple] = {}
    for name, (dims, values, attrs) in coordinates(sweep).items():
        for axis, dim in enumerate(dims):
            if dim in order:
                values = np.take(values, order[dim], axis=axis)
        out[name] = (dims, values, attrs)
    for variable in found.values():
        for dim, size in zip(variable.dims, variable.shape):
            out.setdefault(dim, ((dim,), np.arange(size), {}))
    return out


def first_index(sweep: Sweep, group: Group) -> Index:
    """Index of the first point of the axes that belongs to a group."""
    return tuple(group.fixed.get(i, 0) for i in range(len(sweep.grid_axes)))


def cut(group: Group, name: str, info: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a result without a larger program's padding."""
    kept = group.kept(name, info.shape)
    return jax.eval_shape(lambda x: x[kept], jax.ShapeDtypeStruct(info.shape, info.dtype))

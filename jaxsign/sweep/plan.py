"""How a sweep is cut: groups that share one program, boxes of runs that share one call, lanes inside a call."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsign.exactness import Fit, fit
from jaxsign.start import Start, abstract_start
from jaxsign.sweep.grid import Sweep
from jaxsign.task import Task
from jaxsign.training import observers

#: Runs of one block at most, and the bytes that their records, data and parameters may take together.
BLOCK_RUNS, BLOCK_BYTES = 1024, 256 * 2**20
#: A lane's state should stay inside a core's second-level cache.
LANE_BYTES = 2**21


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one task and one optimizer family, which one compiled program serves.

    Args:
      fit: the task that is trained, and how.
      factory: optimizer factory with its static keywords bound by `static`.
      static: static keywords.
      floats: names of the traced keywords.
      family: name of the optimizer family.
      optimizers: indices on the optimizer dimension.
      fixed: {axis position: index} of the static axes.
      start: shapes and dtypes of one run's start.
    """

    fit: Fit
    factory: Any
    static: Mapping[str, Any]
    floats: tuple[str, ...]
    family: str
    optimizers: tuple[int, ...]
    fixed: Mapping[int, int]
    start: Start

    @property
    def task(self) -> Task:
        """The task whose program runs the group."""
        return self.fit.program

    @property
    def program_key(self) -> tuple[Any, ...]:
        """What the compiled program depends on: groups with equal keys share it."""
        how = (self.fit.compact, self.fit.decays, self.fit.signs)
        return self.task, self.family, repr(sorted(self.static.items(), key=repr)), self.floats, *how

    def degree(self, optimizer: int) -> float:
        """The degree of one optimizer of the group, 0 where the task does not ask."""
        degrees = self.fit.degrees
        return degrees[self.optimizers.index(optimizer)].p if degrees else 0.0

    def kept(self, name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The index that cuts the padding of a larger program off an observable's array, its own dimensions last."""
        padding, own = self.fit.task.padding if self.fit.padded else None, self.fit.task.dims.get(name, ())
        if padding is None or len(own) > len(shape):
            return tuple(map(slice, shape))
        return (*map(slice, shape[: len(shape) - len(own)]), *padding.kept(own))


@dataclasses.dataclass(frozen=True)
class Box:
    """A block of runs: a slice of every dimension of (axes, optimizer, seed)."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of every dimension."""
        return tuple(b - a for a, b in zip(self.start, self.stop))

    def members(self) -> list[tuple[int, ...]]:
        """Index tuples of the runs, in C order."""
        return list(itertools.product(*(range(a, b) for a, b in zip(self.start, self.stop))))


def groups(sweep: Sweep) -> list[Group]:
    """The programs that a sweep needs: one per point of the static axes, family and static keywords."""
    static_axes = [i for i, axis in enumerate(sweep.grid_axes) if axis.static]
    points = itertools.product(*(range(len(sweep.grid_axes[i].values)) for i in static_axes))
    families: dict[tuple[str, str], list[int]] = {}
    first = 0
    for family, grid in sweep.grids.items():
        for i in range(len(grid.points)):
            families.setdefault((family, repr(grid.static(i))), []).append(first + i)
        first += len(grid.points)
    out = []
    functions = any(map(callable, sweep.observables or ()))
    # Room for more pays where several static points can share a program; functions of a run must not see it.
    pad = math.prod(len(sweep.grid_axes[i].values) for i in static_axes) > 1 and not functions and not sweep.summary
    for point in points:
        fixed = dict(zip(static_axes, point))
        index = tuple(fixed.get(i, 0) for i in range(len(sweep.grid_axes)))
        task, hyper = sweep.task(index), sweep.hyper_at(index)
        for (family, _), members in families.items():
            grid = sweep.grids[family]
            keywords = [sweep.optimizer_points[i][2] for i in members]
            static = {k: v for k, v in keywords[0].items() if k not in grid.floats}
            label = None if grid.keywords else f"optimizer {family!r}"
            how = fit(task, grid.factory, keywords, hyper, sweep.shared, sweep.trainable, functions, label, pad)
            start = abstract_start(how.program, how.case(hyper), sweep.shared)
            out.append(Group(how, grid.factory, static, grid.floats, family, tuple(members), fixed, start))
    return out


def chunk_shape(sweep: Sweep, group_count: int, bytes_per_run: int) -> tuple[int, ...]:
    """Extent of a block on every dimension of (axes, optimizer, seed): at most BLOCK_RUNS runs of one group.

    Blocks fill the seeds first, then the optimizer (if one program serves them all), then the mapped axes from the
    innermost outwards.

    Args:
      sweep: the sweep.
      group_count: how many groups it has.
      bytes_per_run: bytes that one run keeps while its block runs.

    Returns:
      One extent per dimension.
    """
    room = max(1, min(BLOCK_RUNS, BLOCK_BYTES // max(bytes_per_run, 1)))
    sizes = sweep.shape
    free = [not axis.static for axis in sweep.grid_axes] + [group_count == 1, True]
    extents = [1] * len(sizes)
    for i in reversed(range(len(sizes))):
        if free[i]:
            extents[i] = min(sizes[i], room)
            room //= extents[i]
        if room <= 1:
            break
    return tuple(extents)


def boxes(sweep: Sweep, group: Group, extents: Sequence[int]) -> list[Box]:
    """The blocks of one group, on the grid of chunks that `extents` lays over the sweep."""
    ranges: list[list[tuple[int, int]]] = []
    last = len(sweep.shape) - 2
    for i, (size, extent) in enumerate(zip(sweep.shape, extents)):
        if i in group.fixed:
            ranges.append([(group.fixed[i], group.fixed[i] + 1)])
        elif i == last and extent == 1:
            ranges.append([(j, j + 1) for j in group.optimizers])
        else:
            ranges.append([(a, min(a + extent, size)) for a in range(0, size, extent)])
    return [Box(tuple(a for a, _ in box), tuple(b for _, b in box)) for box in itertools.product(*ranges)]


def run_bytes(group: Group, hyper: Any, sweep: Sweep) -> tuple[int, int]:
    """(bytes that one run records, bytes of its data and parameters), from abstract shapes."""
    task, start = group.task, group.start
    shapes, _, _ = observers(task, start, group.fit.case(hyper), sweep.observables, scalars=True)
    records = sum(_bytes(shape) for shape in shapes.values()) * sweep.schedule.record.size if sweep.keep_trace else 0
    compact = task.compact if group.fit.compact else None
    params = start.params if compact is None else jax.eval_shape(compact, start.params, start.data)
    return records, sum(map(_bytes, jax.tree.leaves((start.data, params))))


def _bytes(shape: Any) -> int:
    return math.prod(shape.shape) * np.dtype(shape.dtype).itemsize


def lane_width(state_bytes: int, backend: str) -> int:
    """Runs that one lane maps together: as many powers of two as keep the state in cache on a CPU, 64 elsewhere.

    Examples:
      >>> lane_width(600_000, "cpu"), lane_width(1_000, "cpu"), lane_width(10**8, "cpu")
      (2, 64, 1)
    """
    if backend != "cpu":
        return 64
    return int(2 ** np.clip(np.floor(np.log2(LANE_BYTES / max(state_bytes, 1))), 0, 6))

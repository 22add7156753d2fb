"""How a sweep is cut: groups that share one program, runs and records of one call, lanes inside a call."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsign.optimizers.grid import static_word
from jaxsign.store.levels import observable
from jaxsign.sweep.naming import check_numbers, check_outputs
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import observers
from jaxsign.training.mode import Choice, choose_mode
from jaxsign.training.start import Start, abstract_start
from jaxsign.training.task import Task

#: Runs of one call at most, and the bytes that their records, data and parameters may take together on a CPU.
BLOCK_RUNS, BLOCK_BYTES = 1024, 256 * 2**20
#: A lane's state should stay inside a core's second-level cache.
LANE_BYTES = 2**21


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one task and one optimizer family, which one compiled program serves.

    Args:
      choice: the task that is trained, and how.
      factory: optimizer factory with its static keywords bound by `static`.
      static: static keywords.
      floats: names of the traced keywords.
      family: name of the optimizer family.
      optimizers: indices on the optimizer dimension.
      fixed: {axis position: index} of the static axes.
      start: shapes and dtypes of one run's start.
    """

    choice: Choice
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
        return self.choice.mode.task

    @property
    def program_key(self) -> tuple[Any, ...]:
        """What the compiled program depends on: groups with equal keys share it."""
        return self.choice.mode, self.family, repr(sorted(self.static.items(), key=repr)), self.floats

    def degree(self, optimizer: int) -> float:
        """The degree of one optimizer of the group, 0 where the task does not ask."""
        degrees = self.choice.degrees
        return degrees[self.optimizers.index(optimizer)].p if degrees else 0.0

    def kept(self, name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The index that cuts the padding of a larger program off an observable's array, its own dimensions last."""
        padding, dims = self.choice.task.reduction.padding if self.choice.padded else None, self.choice.task.dims
        own = dims.get(name, dims.get(observable(name), ()))
        if padding is None or len(own) > len(shape):
            return tuple(map(slice, shape))
        return (*map(slice, shape[: len(shape) - len(own)]), *padding.kept(own))


def groups(sweep: Sweep) -> list[Group]:
    """The programs that a sweep needs: one per point of the static axes, family and static keywords.

    Raises:
      ValueError: for a result or number that cannot be kept as it is, see `jaxsign.sweep.naming`.
    """
    check_numbers(sweep)  # once more: 64-bit floats may have been turned on or off since the sweep was built
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
    pad = pad and sweep.trajectory is None
    for point in points:
        fixed = dict(zip(static_axes, point))
        index = tuple(fixed.get(i, 0) for i in range(len(sweep.grid_axes)))
        task, hyper = sweep.task(index), sweep.hyper_at(index)
        for (family, _), members in families.items():
            grid = sweep.grids[family]
            keywords = [sweep.optimizer_points[i][2] for i in members]
            static = {k: v for k, v in keywords[0].items() if k not in grid.floats}
            label = None if grid.keywords else f"optimizer {family!r}"

            def fitted(
                points: list, task: Task = task, hyper: Any = hyper, grid: Any = grid, label: Any = label
            ) -> Choice:
                return choose_mode(
                    task, grid.factory, points, hyper, sweep.shared, sweep.trainable, functions, label, pad
                )

            for how, own in _alike(task, fitted, list(zip(members, keywords))):
                start = abstract_start(how.mode.task, how.case(hyper), sweep.shared)
                out.append(Group(how, grid.factory, static, grid.floats, family, own, fixed, start))
    check_outputs(sweep, out)
    return out


def _alike(
    task: Task, fitted: Callable[[list], Choice], points: list[tuple[int, Mapping[str, Any]]]
) -> list[tuple[Choice, tuple[int, ...]]]:
    """Points of one optimizer, those that are trained alike together: (how, their indices on the optimizer dimension).

    How a point is trained must not depend on what else there is, or a sweep that gets more points would change.
    """
    joint = fitted([point for _, point in points])
    first, compact = (task.reduction.choices or (task,))[0], joint.task.reduction.compact
    best = joint.task is first and joint.mode.compact == (compact is not None)
    if best and len({(found.decays, found.signs) for found in joint.degrees}) <= 1:  # what holds for all holds for each
        return [(joint, tuple(i for i, _ in points))]
    alike: dict[Any, list[tuple[int, Choice]]] = {}
    for i, point in points:
        how = fitted([point])
        alike.setdefault(how.mode, []).append((i, how))
    out = []
    for own in alike.values():
        degrees = tuple(found for _, how in own for found in how.degrees)
        out.append((own[0][1]._replace(degrees=degrees), tuple(i for i, _ in own)))
    return out


def block_shape(sweep: Sweep, room: int) -> tuple[int, ...]:
    """Extent of a block on every dimension of (axes, optimizer, seed): at most `room` runs of one optimizer.

    Blocks fill the seeds first, then the mapped axes from the innermost outwards, in even parts. The optimizers stay
    apart, so that another one can join later.

    Args:
      sweep: the sweep.
      room: runs of a block at most, int >= 1.

    Returns:
      One extent per dimension.
    """
    sizes = sweep.shape
    free = [not axis.static for axis in sweep.grid_axes] + [False, True]
    extents = [1] * len(sizes)
    for i in reversed(range(len(sizes))):
        if free[i]:
            # Even parts: a call costs what the largest one does.
            extents[i] = -(-sizes[i] // -(-sizes[i] // min(sizes[i], room)))
            room //= extents[i]
        if room <= 1:
            break
    return tuple(extents)


def run_count(sweep: Sweep, group: Group) -> int:
    """Runs of one group."""
    mapped = [len(axis.values) for i, axis in enumerate(sweep.grid_axes) if i not in group.fixed]
    return math.prod(mapped) * len(group.optimizers) * len(sweep.seeds)


class Cost(NamedTuple):
    """Bytes of one run while it is under way.

    Args:
      row: what a recorded step keeps.
      state: its data and parameters.
      tape: what waits to be written of its trajectory.
      levels: what capturing at levels keeps: the parameters one step earlier, and what was captured. It does not count
        for the lane's width: narrower lanes cost more than what it takes of the cache.
    """

    row: int
    state: int
    tape: int = 0
    levels: int = 0

    @property
    def call(self) -> int:
        """Bytes of one run of a call, without its records."""
        return self.state + self.tape + self.levels


def run_cost(group: Group, hyper: Any, sweep: Sweep) -> Cost:
    """Bytes of one run of a group, from abstract shapes."""
    task, start = group.task, group.start
    shapes, _, _ = observers(task, start, group.choice.case(hyper), sweep.observables, scalars=True)
    compact = task.reduction.compact if group.choice.mode.compact else None
    params = start.params if compact is None else jax.eval_shape(compact, start.params, start.data)
    row, state = sum(map(_bytes, shapes.values())), sum(map(_bytes, jax.tree.leaves((start.data, params))))
    levels = len(sweep.crossed)
    captured = sum(map(_bytes, jax.tree.leaves(params))) + 2 * levels * row if levels else 0
    return Cost(row, state, levels=captured)


def room(costs: Sequence[Cost], sweep: Sweep, lanes: int, budget: int, firm: bool = True) -> tuple[int, int]:
    """(runs of one call, recorded steps that are kept at a time) within a memory budget.

    All recorded steps are kept where `lanes` runs fit with them, and always where a summary reads them; otherwise as
    many as fit, and results are written chunk by chunk.

    Args:
      costs: of every group; the largest counts.
      sweep: the sweep.
      lanes: runs of a call at least: a lane on every device.
      budget: bytes.
      firm: whether the budget was asked for; otherwise one run always fits.

    Raises:
      ValueError: if not even one run fits into a firm budget.
    """
    row, state = max(c.row for c in costs), max(c.call for c in costs)
    total = sweep.schedule.record.size
    records = total
    if sweep.summary is None and lanes * (row * total + state) > budget:
        records = min(total, max(2, (budget // lanes - state) // max(row, 1)))
    one = row * records + state
    if one > budget and firm:
        raise ValueError(f"memory must be at least {one} bytes, which one run needs, got memory={budget}")
    return max(1, min(BLOCK_RUNS, budget // max(one, 1))), records


def _bytes(shape: Any) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize  # of a typed key, too


def lane_width(state_bytes: int, backend: str) -> int:
    """Runs that one lane maps together: as many powers of two as keep the state in cache on a CPU, 64 elsewhere.

    Examples:
      >>> lane_width(600_000, "cpu"), lane_width(1_000, "cpu"), lane_width(10**8, "cpu")
      (2, 64, 1)
    """
    if backend != "cpu":
        return 64
    return int(2 ** np.clip(np.floor(np.log2(LANE_BYTES / max(state_bytes, 1))), 0, 6))


def identity(sweep: Sweep, group: Group) -> dict[str, Any]:
    """What names a group whatever the order of axes' values: family, static keywords and points, how it is trained."""
    fixed = {sweep.grid_axes[i].name: [str(v) for v in sweep.grid_axes[i].values[k]] for i, k in group.fixed.items()}
    mode = group.choice.mode
    how = [group.choice.task.name, mode.compact, mode.decays, mode.signs]
    static = {k: static_word(v) if callable(v) else str(v) for k, v in group.static.items()}
    return {"family": group.family, "static": static, "fixed": fixed, "how": how}


def summary(group: Group) -> dict[str, Any]:
    """How a group is run, for the manifest."""
    return {
        "task": group.choice.task.name, "passed_over": group.choice.why, "compact": group.choice.mode.compact,
        "optimizers": len(group.optimizers), "signs_only": group.choice.mode.signs,
        "degrees": [dataclasses.asdict(found) for found in group.choice.degrees],
    }  # fmt: skip

"""How much of a sweep is trained at a time: bytes of a run, runs of a call and of a block, runs of a lane."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxsign.sweep import recorder
from jaxsign.sweep.groups import Group
from jaxsign.sweep.sweep import Sweep

#: Maximum runs of one call, and the bytes that their records, data and parameters may take together on a CPU.
BLOCK_RUNS, BLOCK_BYTES = 1024, 256 * 2**20
#: Maximum parts of a call. Each is a call of the program, which costs as much as a step or two.
PARTS = 64
#: A lane's state should stay inside a core's second-level cache.
LANE_BYTES = 2**21


class Cost(NamedTuple):
    """Bytes of one run while it is trained.

    Args:
      row: observables of one recorded step.
      state: its data and parameters.
      tape: what waits to be written of its trajectory.
      levels: what capturing at levels keeps: the parameters one step earlier and at both sides of every level, and
        what they show. The lane width ignores them: they are written once, not at every step.
    """

    row: int
    state: int
    tape: int = 0
    levels: int = 0

    @property
    def call(self) -> int:
        """Bytes of one run of a call, without its records."""
        return self.state + self.tape + self.levels


def run_cost(group: Group) -> Cost:
    """Bytes of one run of a group, from abstract shapes."""
    start = group.start
    params = jax.eval_shape(group.choice.mode.reduced, start.params, start.data)
    row, state = sum(map(_bytes, group.observables.values())), sum(map(_bytes, jax.tree.leaves((start.data, params))))
    levels = len(group.sweep.crossed)
    captured = (2 * levels + 1) * sum(map(_bytes, jax.tree.leaves(params))) + 2 * levels * row if levels else 0
    return Cost(row, state, recorder.tape_bytes(group), captured)


def _bytes(shape: Any) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize  # of a typed key, too


def call_size(costs: Sequence[Cost], sweep: Sweep, lanes: int, budget: int, firm: bool = True) -> tuple[int, int]:
    """(runs of one call, recorded steps that are kept at a time) within a memory budget.

    All recorded steps are kept if `lanes` runs fit with them, and always if a summary reads them. Otherwise as many as
    fit are kept, and results are written chunk by chunk.

    Args:
      costs: of every group; the largest counts.
      sweep: the sweep.
      lanes: minimum runs of a call: a lane on every device.
      budget: bytes.
      firm: whether the user gave the budget; otherwise one run always fits.

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
    return max(1, min(BLOCK_RUNS, PARTS * lanes, budget // max(one, 1))), records


def block_shape(sweep: Sweep, runs: int) -> tuple[int, ...]:
    """Extent of a block on every dimension of (axes, optimizer, seed): at most `runs` runs of one optimizer.

    Blocks fill the seeds first, then the mapped axes from the innermost outwards, in even parts. No block holds two
    optimizers, so that another one can join later.

    Args:
      sweep: the sweep.
      runs: maximum runs of a block, int >= 1.

    Returns:
      One extent per dimension.
    """
    sizes = sweep.shape
    free = [not axis.static for axis in sweep.grid_axes] + [False, True]
    extents = [1] * len(sizes)
    for i in reversed(range(len(sizes))):
        if free[i]:
            # Even parts, because a call costs as much as the largest one.
            extents[i] = -(-sizes[i] // -(-sizes[i] // min(sizes[i], runs)))
            runs //= extents[i]
        if runs <= 1:
            break
    return tuple(extents)


#: Widths that are tried from the widest to the narrowest. Few of them, so that sweeps of many sizes share programs.
WIDTHS = (64, 8, 4, 2, 1)


def lane_width(state_bytes: int, runs: int, backend: str) -> int:
    """Runs that one lane maps together: as many of `WIDTHS` as keep the state in cache on a CPU, 64 elsewhere.

    There are two lanes at least, for two devices, and at most a third of their places is padding.

    Args:
      state_bytes: data and parameters of a run.
      runs: how many there are.
      backend: "cpu", "gpu" or "tpu".

    Examples:
      >>> [lane_width(1_000, runs, "cpu") for runs in (1, 3, 12, 1024)]
      [1, 2, 8, 64]
      >>> lane_width(600_000, 1024, "cpu"), lane_width(10**8, 1024, "cpu"), lane_width(600_000, 1024, "gpu")
      (2, 1, 64)
    """
    fits = WIDTHS[0] if backend != "cpu" else LANE_BYTES // max(state_bytes, 1)
    return next((w for w in WIDTHS if w <= fits and w < runs and 2 * (-runs % w) <= runs), 1)

"""How a sweep is run on this machine: limits, lane widths, blocks and programs, new or as a manifest has them."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsign.store.environment import physical_memory
from jaxsign.sweep import groups as plan
from jaxsign.sweep import recorder
from jaxsign.sweep.groups import Group
from jaxsign.sweep.identity.definition import plain_point, skeleton
from jaxsign.sweep.layout import Layout, Unit, first_index, units
from jaxsign.sweep.programs import Compiled, Compiler, Program, local_mesh
from jaxsign.sweep.sweep import Sweep
from jaxsign.sweep.timing import lane_widths
from jaxsign.validation.messages import say
from jaxsign.validation.values import LONGEST, positive_int

Missing = Mapping[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a run of a sweep may use: bytes of a call, runs of a lane, seconds between checkpoints.

    Raises:
      ValueError: naming field, value and legal range.
    """

    memory: int | None = None
    lane_width: int | None = None
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        if self.memory is not None:
            positive_int("memory", self.memory)
        if self.lane_width is not None:
            positive_int("lane_width", self.lane_width)
            if self.lane_width > LONGEST:
                raise ValueError(f"lane_width must be an int in [1, {LONGEST}], got lane_width={self.lane_width}")
        if not 0 < self.checkpoint_every < math.inf:
            raise ValueError(f"checkpoint_every must be > 0 seconds, got {self.checkpoint_every!r}")

    def bytes(self) -> int:
        """The memory budget on this machine."""
        if self.memory is not None:
            return self.memory
        device = jax.local_devices()[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        return stats["bytes_limit"] // 2 * len(jax.local_devices()) if stats else plan.BLOCK_BYTES

    def there(self) -> int:
        """Bytes of the memory that one run must fit into: the device's, a CPU's being the machine's."""
        device = jax.local_devices()[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        return int(stats["bytes_limit"]) if stats else physical_memory() or sys.maxsize


def begin_layout(
    sweep: Sweep, groups: Sequence[Group], limits: Limits, measured: bool = True
) -> tuple[Layout, list[int]]:
    """(layout of a new directory, lane width of every group): the cache's, or a timed one if `measured` and it pays.

    Raises:
      ValueError: if one run does not fit into the memory.
    """
    costs = [
        plan.run_cost(g, sweep.hyper_at(first_index(sweep, g)), sweep)._replace(tape=recorder.tape_bytes(sweep, g))
        for g in groups
    ]
    for group, cost in zip(groups, costs):
        if cost.state > limits.there():
            raise ValueError(
                f"problem is too large for the memory: one run of {group.choice.task.name} has {cost.state:,} bytes of "
                f"data and parameters, this machine has {limits.there():,}"
            )
    devices = jax.local_devices()
    widths = []
    for group, cost in zip(groups, costs):
        # Two lanes at least, for two devices; never more than there are runs for.
        few = max(1, min(plan.BLOCK_RUNS, plan.run_count(sweep, group)) // 2)
        widths.append(limits.lane_width or min(plan.lane_width(cost.state, devices[0].platform), few))

    def layout() -> Layout:
        runs, records = plan.room(costs, sweep, max(widths) * len(devices), limits.bytes(), limits.memory is not None)
        order = tuple(tuple(range(size)) for size in sweep.shape)
        return Layout(order, plan.block_shape(sweep, runs), records, runs)

    if measured and limits.lane_width is None:
        found = layout()
        programs = make_programs(sweep, groups, found, widths)
        widths = lane_widths(sweep, groups, programs, programs[0].slots)
    return layout(), widths


def stored_layout(
    sweep: Sweep, groups: Sequence[Group], stored: Mapping[str, Any], order: Sequence[Sequence[int]], limits: Limits
) -> tuple[Layout, list[int]]:
    """(layout, lane widths) of a directory that was begun before; only a new group's width is chosen now."""
    record = stored["plan"]
    layout = Layout(tuple(map(tuple, order)), tuple(record["block"]), record["records"], record["runs"])
    known = {text: entry["lane_width"] for entry in record["groups"] for text in _texts(entry, entry["points"])}
    asked, begun = limits.lane_width, sorted(set(known.values()))
    if asked is not None and begun != [asked]:
        say(f"lane_width={asked} is for new groups only: this sweep was begun with lanes of {begun}")
    kept = []
    for group in groups:
        texts = _texts(plan.identity(sweep, group), _group_points(sweep, group))
        kept.append(next((known[text] for text in texts if text in known), 0))
    fresh = kept if all(kept) else begin_layout(sweep, groups, limits)[1]
    return layout, [width or new for width, new in zip(kept, fresh)]


def _texts(entry: Mapping[str, Any], points: Sequence[Any]) -> list[str]:
    """What the points of a group are recognised by in a manifest."""
    own = [entry[name] for name in ("family", "fixed", "how")]
    return [json.dumps([*own, skeleton(point)], sort_keys=True) for point in points]


def _group_points(sweep: Sweep, group: Group) -> list[dict[str, Any]]:
    return [plain_point(group.family, sweep.optimizer_points[i][2]) for i in group.optimizers]


def plan_record(
    sweep: Sweep, groups: Sequence[Group], layout: Layout, widths: Sequence[int], limits: Limits
) -> dict[str, Any]:
    """How a sweep is run, for the manifest."""
    return {
        "block": list(layout.extents), "runs": layout.runs, "records": layout.records, "memory": limits.bytes(),
        "devices": jax.local_device_count(),
        "groups": [
            {
                **plan.identity(sweep, group), **plan.summary(group), "lane_width": width,
                "points": _group_points(sweep, group),
            }
            for group, width in zip(groups, widths)
        ],
    }  # fmt: skip


def make_programs(sweep: Sweep, groups: Sequence[Group], layout: Layout, widths: Sequence[int]) -> list[Program]:
    """The programs of every group on this process's devices."""
    mesh, slots = local_mesh(), recorder.most_stops(sweep, min(layout.records, sweep.schedule.record.size) + 1)
    return [
        Program(sweep, group, width, slots, mesh, recorder.make_tape(sweep, group))
        for group, width in zip(groups, widths)
    ]


def everything(layout: Layout) -> dict[int, np.ndarray]:
    """{number of a block: all of its runs}."""
    return {number: np.ones([s.stop - s.start for s in box], bool) for number, box in enumerate(layout.blocks())}


def compile_units(
    sweep: Sweep, programs: Sequence[Program], layout: Layout, missing: Missing, compiler: Compiler, every: bool = True
) -> tuple[list[Unit], dict[int, Compiled]]:
    """(what is to be done, the programs for it); with `every`, programs also of groups with nothing to do."""
    todo = units(sweep, [program.group for program in programs], layout, missing)
    compiled: dict[int, Compiled] = {}
    for number, program in enumerate(programs):
        sizes = [len(unit.members) for unit in todo if unit.group == number]
        if sizes or every:
            group = program.group
            member = (*first_index(sweep, group), group.optimizers[0], 0)
            compiled[number] = compiler.compile(program, [member], program.padded(max(sizes, default=1)))
    return todo, compiled


def fitting(attempt: Callable[[int], None], runs: int) -> None:
    """Calls `attempt(runs)`, and once more with half of the runs of a call if the device has no memory for them.

    Raises:
      ValueError: if half of them do not fit either.
    """
    try:
        attempt(runs)
    except jax.errors.JaxRuntimeError as error:
        if not _out_of_memory(error):
            raise
        say(f"out of memory with {runs} runs a call: going on with {max(1, runs // 2)}")
        try:
            attempt(max(1, runs // 2))
        except jax.errors.JaxRuntimeError as again:
            if not _out_of_memory(again):
                raise
            raise ValueError(
                f"memory must be less than half of what was tried: {max(1, runs // 2)} runs a call do not fit either"
            ) from None


def _out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)

"""What a sweep will take, before it is run: groups and programs, memory of a call, time, bytes on disk."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from jaxsign.compilation import undisturbed
from jaxsign.optimizers.grid import static_word
from jaxsign.store import checkpoints
from jaxsign.sweep import groups as plan
from jaxsign.sweep import recorder
from jaxsign.sweep.layout import Layout, first_index, units, variables
from jaxsign.sweep.plan import Limits, begin_layout, everything, make_programs
from jaxsign.sweep.programs import Compiled, Compiler, Program
from jaxsign.sweep.sweep import Sweep
from jaxsign.sweep.timing import estimate
from jaxsign.validation.values import real


@dataclasses.dataclass(frozen=True)
class GroupForecast:
    """What one group of runs will take.

    Args:
      family: optimizer family.
      task: name of the task that is trained.
      setting: {axis or static keyword: value} that the group is compiled for.
      runs: its runs.
      calls: calls that train them.
      size: runs of one call, those that only fill its lanes up included.
      width: runs of a lane.
      seconds: time that the calls take.
    """

    family: str
    task: str
    setting: Mapping[str, str]
    runs: int
    calls: int
    size: int
    width: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a sweep will take.

    Args:
      runs: number of runs.
      steps: optimizer steps of each.
      groups: its groups.
      programs: how many training programs are compiled; groups that differ in numbers only share one.
      call_runs: runs of the largest call.
      call_bytes: bytes of the call that takes most, as `memory` counts them: data, parameters and records.
      result_bytes: bytes of the results on disk, uncompressed.
      checkpoint_bytes: bytes on disk of the checkpoints that are kept at a time.
      trajectory_bytes: bytes on disk of the trajectories, about.
    """

    runs: int
    steps: int
    groups: tuple[GroupForecast, ...]
    programs: int
    call_runs: int
    call_bytes: int
    result_bytes: int
    checkpoint_bytes: int
    trajectory_bytes: int

    @property
    def seconds(self) -> float:
        """Time that the training of all groups takes, without compiling."""
        return sum(group.seconds for group in self.groups)


@undisturbed()
@jax.disable_jit(False)
def forecast(sweep: Sweep, memory: int | None = None, speed: float | None = None, devices: int = 1) -> Forecast:
    """What a sweep will take when it is run with these devices and this memory.

    Without `speed` every program is compiled for one lane a device and trained for some tenths of a second; with it,
    programs are traced only.

    Args:
      sweep: a Sweep.
      memory: as in `run_sweep`.
      speed: seed-steps per second of one device, measured elsewhere, > 0; None measures here.
      devices: devices of that speed, int >= 1.

    Raises:
      ValueError: if one run does not fit into the memory.

    Examples:
      >>> import jaxsign as js
      >>> sweep = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 8}, steps=20)
      >>> found = forecast(sweep, speed=100.0, devices=2)
      >>> found.runs, found.programs, found.seconds, [group.family for group in found.groups]
      (8, 1, 0.8, ['sign_gd'])
    """
    if speed is not None:
        real("speed", speed, 0.0, open_low=True)
    groups = plan.groups(sweep)
    layout, widths = begin_layout(sweep, groups, Limits(memory), measured=speed is None)
    programs = make_programs(sweep, groups, layout, widths)
    counts: list[list[int]] = [[] for _ in groups]
    for unit in units(sweep, groups, layout, everything(layout)):
        counts[unit.group].append(len(unit.members))
    sizes = [program.padded(max(own)) for program, own in zip(programs, counts)]
    with Compiler() as compiler:
        if speed is not None:
            compiler.threads = _Never()
        compiled = [_lane(program, compiler) for program in programs]
        if speed is None:
            costs = _measured(sweep, compiled)
            seconds = [len(own) * size * cost for own, size, cost in zip(counts, sizes, costs)]
        else:
            seconds = [sum(own) * sweep.schedule.steps / (speed * devices) for own in counts]
    found, _ = variables(sweep, groups, [c.results for c in compiled], layout)
    lines = [
        GroupForecast(
            group.family, group.choice.task.name, _setting(sweep, group), sum(own), len(own), size, width, duration
        )
        for group, own, size, width, duration in zip(groups, counts, sizes, widths, seconds)
    ]
    keys = {(group.program_key, width, size) for group, width, size in zip(groups, widths, sizes)}
    return Forecast(
        runs=sweep.size, steps=sweep.schedule.steps, groups=tuple(lines), programs=len(keys),
        call_runs=max(map(max, counts)), call_bytes=max(map(_call_bytes, compiled, sizes, [layout] * len(sizes))),
        result_bytes=sum(math.prod(v.shape) * v.dtype.itemsize for v in found.values()),
        checkpoint_bytes=checkpoints.KEPT * max(_saved_bytes(c, max(own), layout) for c, own in zip(compiled, counts)),
        trajectory_bytes=sum(sum(own) * recorder.disk_bytes(sweep, group) for group, own in zip(groups, counts)),
    )  # fmt: skip


class _Never(ThreadPoolExecutor):
    """Threads that never begin: what a Compiler traces is not compiled."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)

    def submit(self, function: Callable, /, *args: Any, **keywords: Any) -> Future:
        """A future that stays open."""
        return Future()


def _lane(program: Program, compiler: Compiler) -> Compiled:
    """A group's programs for one lane on every device."""
    member = (*first_index(program.sweep, program.group), program.group.optimizers[0], 0)
    return compiler.compile(program, [member], program.quantum)


def _measured(sweep: Sweep, compiled: list[Compiled]) -> list[float]:
    """Seconds of one run of every group; groups that share a program are measured once."""
    first = {id(c.advance): c for c in reversed(compiled)}
    own = dict(enumerate(first.values()))
    speeds, _ = estimate(sweep, own, [c.program.group for c in own.values()])
    costs = dict(zip(first, (speed.run(sweep) for speed in speeds)))
    return [float(costs[id(c.advance)]) for c in compiled]


def _setting(sweep: Sweep, group: plan.Group) -> dict[str, str]:
    """What a group is compiled for: its point of the static axes and its static keywords."""
    fixed: dict[str, str] = {}
    for axis, place in group.fixed.items():
        members = zip(sweep.grid_axes[axis].members, sweep.grid_axes[axis].values[place])
        fixed |= {name: str(value) for name, value in members}
    return fixed | {name: static_word(value) for name, value in group.static.items()}


def _cost(sweep: Sweep, group: plan.Group) -> plan.Cost:
    """Bytes of one run of a group while it is under way."""
    cost = plan.run_cost(group, sweep.hyper_at(first_index(sweep, group)), sweep)
    return cost._replace(tape=recorder.tape_bytes(sweep, group))


def _call_bytes(compiled: Compiled, size: int, layout: Layout) -> int:
    """Bytes that the runs of one call take, as the plan counts them."""
    sweep = compiled.program.sweep
    cost = _cost(sweep, compiled.program.group)
    return size * (cost.row * min(layout.records, sweep.schedule.record.size) + cost.call)


def _saved_bytes(compiled: Compiled, runs: int, layout: Layout) -> int:
    """Bytes of one checkpoint: the state of its runs, and the records of the chunk that is being filled."""
    records = min(layout.records, compiled.program.sweep.schedule.record.size)
    state = sum(math.prod(x.shape[1:]) * _itemsize(x) for x in jax.tree.leaves(compiled.state))
    return runs * (state + records * sum(math.prod(x.shape) * _itemsize(x) for x in compiled.rows.values()))


def _itemsize(shape: Any) -> int:
    """Bytes of an entry; a typed key is its two words."""
    return int(shape.dtype.itemsize)

"""The cost of a sweep before it is run: programs, memory of a call, time, bytes on disk."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from jaxsign.compilation import kept_on_disk, undisturbed
from jaxsign.optimizers.words import static_word
from jaxsign.store import checkpoints
from jaxsign.store.watched import Variable
from jaxsign.sweep.groups import Group
from jaxsign.sweep.plan import Limits, Plan
from jaxsign.sweep.programs import Compiled, Compiler
from jaxsign.sweep.recorder import disk_bytes
from jaxsign.sweep.sizes import run_cost
from jaxsign.sweep.sweep import Sweep
from jaxsign.sweep.tasks import check_tasks
from jaxsign.sweep.timing import run_seconds
from jaxsign.validation.values import real

#: Bytes of a block of most disks: what a small file or a folder takes.
DISK_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class GroupForecast:
    """The cost of one group of runs.

    Args:
      family: optimizer family.
      task: name of the task that is trained.
      setting: {axis or static keyword: value} that the group is compiled for.
      runs: its runs.
      calls: calls that train them.
      size: runs of one call, including those that only pad its lanes.
      width: runs of a lane.
      seconds: time of all calls; None if it is not known.
      compile_seconds: time to trace and compile its programs; 0 if an earlier group has them, None if not measured.
    """

    family: str
    task: str
    setting: Mapping[str, str]
    runs: int
    calls: int
    size: int
    width: int
    seconds: float | None
    compile_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The cost of a sweep.

    Args:
      runs: number of runs.
      steps: optimizer steps of each.
      groups: its groups.
      programs: how many training programs are compiled; groups that differ in numbers only share one.
      call_runs: runs of the largest call.
      call_bytes: bytes of the largest call, as `memory` counts them: data, parameters and records.
      result_bytes: bytes of the results on disk, uncompressed.
      entries: files and folders that hold them: every chunk is a file, and every part of its place a folder.
      disk_bytes: bytes that these take on a disk of DISK_BLOCK bytes a block, uncompressed.
      checkpoint_bytes: bytes on disk of the checkpoints that exist at the same time.
      trajectory_bytes: estimated bytes on disk of the trajectories.
      compile_seconds: wall time to trace and compile everything, two programs at a time; None if not measured.
    """

    runs: int
    steps: int
    groups: tuple[GroupForecast, ...]
    programs: int
    call_runs: int
    call_bytes: int
    result_bytes: int
    entries: int
    disk_bytes: int
    checkpoint_bytes: int
    trajectory_bytes: int
    compile_seconds: float | None

    @property
    def seconds(self) -> float | None:
        """Time to train all groups, without compiling; None if it is not known."""
        known = [group.seconds for group in self.groups if group.seconds is not None]
        return sum(known) if known else None


@undisturbed()
@kept_on_disk()
@jax.disable_jit(False)
def forecast(
    sweep: Sweep, memory: int | None = None, speed: float | None = None, devices: int = 1, measure: bool = True
) -> Forecast:
    """The cost of a sweep with these devices and this memory.

    Without `speed` every program is compiled for one lane per device and trained for some tenths of a second. With it,
    or without `measure`, programs are only traced. Compiling takes less where this process or JAX's compilation cache
    has a program: its time is the one that it took here and now.

    Args:
      sweep: a Sweep.
      memory: as in `run_sweep`.
      speed: seed-steps per second of one device, measured elsewhere, > 0; None measures here.
      devices: devices of that speed, int >= 1.
      measure: False without `speed` leaves all times away.

    Raises:
      ValueError: if one run does not fit into the memory.

    Examples:
      >>> import jaxsign as js
      >>> sweep = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 8}, steps=20)
      >>> cost = forecast(sweep, speed=100.0, devices=2)
      >>> cost.runs, cost.programs, cost.seconds, [group.family for group in cost.groups]
      (8, 1, 0.8, ['sign_gd'])
    """
    if speed is not None:
        real("speed", speed, 0.0, open_low=True)
    check_tasks(sweep)
    measured = speed is None and measure
    total: float | None = None
    with Compiler(compile=measured) as compiler:
        plan = Plan.new(sweep, Limits(memory), compiler=compiler if measured else None)
        counts: list[list[int]] = [[] for _ in plan.groups]  # runs of every call
        for unit in plan.units(plan.layout.all_runs()):
            counts[unit.group].append(len(unit.members))
        sizes = [program.padded(max(runs)) for program, runs in zip(plan.programs, counts)]
        seconds: list[float | None] = [None] * len(plan.groups)
        compiling: list[float | None] = [None] * len(plan.groups)
        compiled = [compiler.compile(program) for program in plan.programs]
        if measured:
            costs = zip(counts, sizes, run_seconds(compiled))
            seconds = [len(runs) * size * one_run for runs, size, one_run in costs]
            compiler.wait()
            taken = dict(compiler.log.taken)  # of a program, with the first of its groups
            compiling = [taken.pop(compiler.key(program), 0.0) for program in plan.programs]
            total = compiler.log.seconds
        elif speed is not None:
            seconds = [sum(runs) * sweep.schedule.steps / (speed * devices) for runs in counts]
    variables, _ = plan.variables(dict(enumerate(compiled)))
    groups = tuple(
        GroupForecast(
            group.family, group.choice.task.name, _setting(group), sum(runs), len(runs), size, width, duration, wait
        )
        for group, runs, size, width, duration, wait in zip(
            plan.groups, counts, sizes, plan.widths, seconds, compiling
        )
    )  # fmt: skip
    programs = {(group.program_key, width) for group, width in zip(plan.groups, plan.widths)}
    records = min(plan.layout.records, sweep.schedule.record.size)
    return Forecast(
        runs=sweep.size, steps=sweep.schedule.steps, groups=groups, programs=len(programs),
        call_runs=max(map(max, counts)),
        call_bytes=max(_call_bytes(group, size, records) for group, size in zip(plan.groups, sizes)),
        result_bytes=sum(math.prod(v.shape) * v.dtype.itemsize for v in variables.values()),
        checkpoint_bytes=checkpoints.KEPT * max(_saved_bytes(c, max(n), records) for c, n in zip(compiled, counts)),
        entries=sum(files + folders for files, folders in map(_entries, variables.values())),
        disk_bytes=sum(map(_disk_bytes, variables.values())),
        trajectory_bytes=sum(sum(runs) * disk_bytes(group) for group, runs in zip(plan.groups, counts)),
        compile_seconds=total,
    )  # fmt: skip


def _entries(variable: Variable) -> tuple[int, int]:
    """(files, folders) of a variable: the folder of its chunks and, in it, one for every part of a chunk's place."""
    grid = [-(-extent // chunk) for extent, chunk in zip(variable.shape, variable.chunks)]
    return math.prod(grid), 2 + sum(math.prod(grid[:depth]) for depth in range(1, len(grid)))


def _disk_bytes(variable: Variable) -> int:
    """Bytes of a variable's files and folders in whole blocks of a disk."""
    files, folders = _entries(variable)
    blocks = -(-math.prod(variable.chunks) * variable.dtype.itemsize // DISK_BLOCK)
    return (files * blocks + folders) * DISK_BLOCK


def _setting(group: Group) -> dict[str, str]:
    """The point of the static axes and the static keywords that a group is compiled for."""
    axes = group.sweep.grid_axes
    fixed: dict[str, str] = {}
    for axis, place in group.fixed.items():
        fixed |= {name: str(value) for name, value in zip(axes[axis].members, axes[axis].values[place])}
    return fixed | {name: static_word(value) for name, value in group.static.items()}


def _call_bytes(group: Group, size: int, records: int) -> int:
    """Bytes of one call of `size` runs, as the plan counts them."""
    cost = run_cost(group)
    return size * (cost.row * records + cost.call)


def _saved_bytes(compiled: Compiled, runs: int, records: int) -> int:
    """Bytes of one checkpoint: the state of its runs, and the records of the chunk that is being filled."""
    state = sum(math.prod(x.shape[1:]) * _itemsize(x) for x in jax.tree.leaves(compiled.state))
    return runs * (state + records * sum(math.prod(x.shape) * _itemsize(x) for x in compiled.rows.values()))


def _itemsize(shape: Any) -> int:
    """Bytes of an entry; a typed key is its two words."""
    return int(shape.dtype.itemsize)

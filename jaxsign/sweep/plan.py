"""How a sweep is run: its groups, where every run is stored, the lane width of every group, and the limits."""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxsign.store.environment import physical_memory
from jaxsign.store.results import Variable
from jaxsign.sweep import sizes
from jaxsign.sweep.groups import Group, make_groups
from jaxsign.sweep.identity.definition import plain_point, skeleton
from jaxsign.sweep.layout import BlockRuns, Layout, WorkUnit, result_variables, stored_coordinates, work_units
from jaxsign.sweep.programs import Compiled, Compiler, Program, local_mesh
from jaxsign.sweep.recorder import make_tape, most_stops
from jaxsign.sweep.sweep import Sweep
from jaxsign.sweep.timing import lane_widths
from jaxsign.validation.messages import say
from jaxsign.validation.values import LONGEST, positive_int

#: Stops of one call. The same for all sweeps, whatever they record, so that they share their programs.
SLOTS = 64


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a run of a sweep: bytes of a call, runs of a lane, seconds between checkpoints.

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

    def budget(self) -> int:
        """Bytes that the runs of one call may take together on this machine."""
        if self.memory is not None:
            return self.memory
        device_bytes = _device_bytes()
        return device_bytes // 2 * len(jax.local_devices()) if device_bytes else sizes.BLOCK_BYTES

    def capacity(self) -> int:
        """Bytes of the memory that one run must fit into: of the device, or of the machine if that is a CPU."""
        return _device_bytes() or physical_memory() or sys.maxsize


def _device_bytes() -> int | None:
    """Bytes of the first device's own memory; None on a CPU and where the device does not say."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return int(stats["bytes_limit"]) if stats else None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a sweep is run on this machine.

    Args:
      sweep: the sweep.
      groups: its groups, each of which is trained by one program.
      layout: where every run is stored, and how many runs a call trains.
      widths: lane width of every group.
      limits: memory, lane width and time between checkpoints that the user asked for.

    Examples:
      >>> import jaxsign as js
      >>> sweep = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 8}, steps=20)
      >>> plan = Plan.new(sweep, Limits(lane_width=4))
      >>> len(plan.groups), plan.widths, [len(unit.members) for unit in plan.units(plan.layout.all_runs())]
      (1, (4,), [8])
    """

    sweep: Sweep
    groups: tuple[Group, ...]
    layout: Layout
    widths: tuple[int, ...]
    limits: Limits

    @classmethod
    def new(
        cls, sweep: Sweep, limits: Limits, groups: Sequence[Group] | None = None, compiler: Compiler | None = None
    ) -> "Plan":
        """The plan of new results.

        Args:
          sweep: the sweep.
          limits: limits of the run.
          groups: the groups of the sweep, if they are known.
          compiler: measures lane widths for a long sweep, which takes some seconds; None takes those that fit the
            cache.

        Raises:
          ValueError: if one run does not fit into the memory.
        """
        groups = tuple(groups or make_groups(sweep))
        costs = [sizes.run_cost(group) for group in groups]
        for group, cost in zip(groups, costs):
            if cost.state > limits.capacity():
                name, capacity = group.choice.task.name, limits.capacity()
                raise ValueError(
                    f"problem is too large for the memory: one run of {name} has {cost.state:,} bytes of data and "
                    f"parameters, this machine has {capacity:,}"
                )
        widths = tuple(limits.lane_width or _cache_width(group, cost) for group, cost in zip(groups, costs))
        plan = cls(sweep, groups, _new_layout(sweep, costs, widths, limits), widths, limits)
        if compiler is None or limits.lane_width is not None:
            return plan
        widths = tuple(lane_widths(plan.programs, compiler))
        if widths == plan.widths:
            return plan
        return cls(sweep, groups, _new_layout(sweep, costs, widths, limits), widths, limits)

    @classmethod
    def stored(
        cls,
        sweep: Sweep,
        manifest: Mapping[str, Any],
        order: Sequence[Sequence[int]],
        limits: Limits,
        groups: Sequence[Group] | None = None,
        compiler: Compiler | None = None,
    ) -> "Plan":
        """The plan of results that exist already; only the lane width of a new group is chosen now.

        Args:
          sweep: the sweep.
          manifest: of the results.
          order: for every dimension of (axes, optimizer, seed), the sweep's index of every stored point, or -1.
          limits: limits of the run.
          groups: the groups of the sweep, if they are known.
          compiler: as in `new`.
        """
        groups, record = tuple(groups or make_groups(sweep)), manifest["plan"]
        layout = Layout(tuple(map(tuple, order)), tuple(record["block"]), record["records"], record["runs"])
        known = {text: entry["lane_width"] for entry in record["groups"] for text in _texts(entry, entry["points"])}
        begun = sorted(set(known.values()))
        if limits.lane_width is not None and begun != [limits.lane_width]:
            say(f"lane_width={limits.lane_width} is for new groups only: this sweep was begun with lanes of {begun}")
        begun_widths = [
            next((known[text] for text in _texts(group.identity(), _points(group)) if text in known), 0)
            for group in groups
        ]
        new = begun_widths if all(begun_widths) else cls.new(sweep, limits, groups, compiler).widths
        widths = tuple(width or chosen for width, chosen in zip(begun_widths, new))
        return cls(sweep, groups, layout, widths, limits)

    @functools.cached_property
    def programs(self) -> list[Program]:
        """The programs of every group on the devices of this process."""
        slots, mesh = most_stops(self.sweep, SLOTS), local_mesh()
        return [Program(group, width, slots, mesh, make_tape(group)) for group, width in zip(self.groups, self.widths)]

    def units(self, missing: BlockRuns) -> list[WorkUnit]:
        """The missing runs, in units that are trained together.

        Args:
          missing: {number of a block: which of its runs are missing}.
        """
        return work_units(self.groups, self.layout, missing)

    def compiled(self, units: Sequence[WorkUnit], compiler: Compiler, every: bool = True) -> dict[int, Compiled]:
        """{number of a group: its programs for some units}, being compiled.

        Args:
          units: from `units`.
          compiler: traces the programs and has them compiled.
          every: whether groups without a unit are compiled as well.
        """
        wanted = {unit.group for unit in units}
        chosen = {number: one for number, one in enumerate(self.programs) if every or number in wanted}
        compiler.log.expect(map(compiler.key, chosen.values()))
        return {number: compiler.compile(program) for number, program in chosen.items()}

    def variables(self, compiled: Mapping[int, Compiled]) -> tuple[dict[str, Variable], dict[str, str]]:
        """{name: Variable} of the results, and notes on padded ones, from the programs of every group."""
        return result_variables(self.groups, [compiled[g].results for g in range(len(self.groups))], self.layout)

    def coordinates(self, variables: Mapping[str, Variable]) -> dict[str, tuple]:
        """{name: (dims, values, attrs)} of the coordinates of the results, in stored order."""
        return stored_coordinates(self.sweep, self.layout, variables)

    def with_call_size(self, runs: int) -> "Plan":
        """The same plan with at most so many runs per call."""
        return dataclasses.replace(self, layout=dataclasses.replace(self.layout, runs=runs))

    def record(self) -> dict[str, Any]:
        """The plan as plain JSON, for the manifest."""
        layout = self.layout
        return {
            "block": list(layout.extents), "runs": layout.runs, "records": layout.records,
            "memory": self.limits.budget(), "devices": jax.local_device_count(),
            "groups": [
                {**group.identity(), **group.summary(), "lane_width": width, "points": _points(group)}
                for group, width in zip(self.groups, self.widths)
            ],
        }  # fmt: skip


def _cache_width(group: Group, cost: sizes.Cost) -> int:
    """The lane width that keeps a group's state in the cache."""
    return sizes.lane_width(cost.state, min(sizes.BLOCK_RUNS, group.size), jax.local_devices()[0].platform)


def _new_layout(sweep: Sweep, costs: Sequence[sizes.Cost], widths: Sequence[int], limits: Limits) -> Layout:
    """The layout of new results."""
    lanes = max(widths) * len(jax.local_devices())
    runs, records = sizes.call_size(costs, sweep, lanes, limits.budget(), limits.memory is not None)
    order = tuple(tuple(range(size)) for size in sweep.shape)
    return Layout(order, sizes.block_shape(sweep, runs), records, runs)


def _texts(entry: Mapping[str, Any], points: Sequence[Any]) -> list[str]:
    """Texts by which the points of a group are recognised in a manifest."""
    names = [entry[name] for name in ("family", "fixed", "how")]
    return [json.dumps([*names, skeleton(point)], sort_keys=True) for point in points]


def _points(group: Group) -> list[dict[str, Any]]:
    """The points of a group's optimizers as plain JSON."""
    return [plain_point(group.family, group.sweep.optimizer_points[i][2]) for i in group.optimizers]

"""Which runs of a sweep share one compiled program."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jaxsign.compilation import collecting_later
from jaxsign.optimizers.adapters import evaluated
from jaxsign.optimizers.factories import build
from jaxsign.optimizers.words import static_word
from jaxsign.store.levels import observable
from jaxsign.sweep.naming import check_numbers, check_outputs
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import observers
from jaxsign.training.mode import Choice, choose_mode
from jaxsign.training.rng import seed_key
from jaxsign.training.start import Start, abstract_start
from jaxsign.training.task import Task

Index = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one task and one optimizer family that one compiled program trains.

    Args:
      sweep: the sweep.
      choice: the task and the mode in which it is trained.
      factory: optimizer factory with its static keywords bound by `static`.
      static: static keywords.
      floats: names of the traced keywords.
      family: name of the optimizer family.
      optimizers: indices on the optimizer dimension.
      fixed: {axis position: index} of the static axes.
      start: shapes and dtypes of one run's start.
    """

    sweep: Sweep
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
        """The task whose program trains the group."""
        return self.choice.mode.task

    @property
    def program_key(self) -> tuple[Any, ...]:
        """Everything that the compiled program depends on: groups with equal keys share it."""
        return self.choice.mode, self.family, repr(sorted(self.static.items(), key=repr)), self.floats

    @property
    def first_point(self) -> Index:
        """Index of the first point of the axes that belongs to the group."""
        return tuple(self.fixed.get(i, 0) for i in range(len(self.sweep.grid_axes)))

    @property
    def first_run(self) -> Index:
        """Index of the group's first run on (axes, optimizer, seed)."""
        return (*self.first_point, self.optimizers[0], 0)

    @property
    def hyper(self) -> Any:
        """Numbers of the first point, as the program takes them."""
        return self.choice.case(self.sweep.hyper_at(self.first_point))

    @functools.cached_property
    def observables(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{name: abstract array} of the observables of one run."""
        return observers(self.task, self.start, self.hyper, self.sweep.observables, scalars=True).shapes

    @property
    def size(self) -> int:
        """Number of runs."""
        mapped = [len(axis.values) for i, axis in enumerate(self.sweep.grid_axes) if i not in self.fixed]
        return math.prod(mapped) * len(self.optimizers) * len(self.sweep.seeds)

    def degree(self, optimizer: int) -> float:
        """Homogeneity degree of one optimizer of the group, 0 if the task does not need it."""
        degrees = self.choice.degrees
        return degrees[self.optimizers.index(optimizer)].p if degrees else 0.0

    def unpadded(self, name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The index that cuts the padding of a larger program off an observable's array, its own dimensions last."""
        task, dims = self.choice.task, self.choice.task.dims
        padding = task.reduction.padding if self.choice.padded else None
        own_dims = dims.get(name, dims.get(observable(name), ()))
        if padding is None or len(own_dims) > len(shape):
            return tuple(map(slice, shape))
        return (*map(slice, shape[: len(shape) - len(own_dims)]), *padding.kept(own_dims))

    def identity(self) -> dict[str, Any]:
        """What names the group whatever the order of axes' values: family, static keywords and axes, training mode."""
        axes, mode = self.sweep.grid_axes, self.choice.mode
        fixed = {axes[i].name: [str(v) for v in axes[i].values[k]] for i, k in self.fixed.items()}
        form = [self.choice.task.name, mode.compact, mode.decays, mode.signs]
        static = {k: static_word(v) if callable(v) else str(v) for k, v in self.static.items()}
        return {"family": self.family, "static": static, "fixed": fixed, "how": form}

    def summary(self) -> dict[str, Any]:
        """How the group is trained, for the manifest."""
        choice = self.choice
        return {
            "task": choice.task.name, "passed_over": choice.why, "compact": choice.mode.compact,
            "optimizers": len(self.optimizers), "signs_only": choice.mode.signs,
            "degrees": [dataclasses.asdict(degree) for degree in choice.degrees],
        }  # fmt: skip


@collecting_later()
def make_groups(sweep: Sweep) -> list[Group]:
    """The groups of a sweep: one per point of the static axes, optimizer family, static keywords and training mode.

    Raises:
      ValueError: for a result or number that cannot be stored unchanged, see `jaxsign.sweep.naming`.
    """
    check_numbers(sweep)  # once more: 64-bit floats may have been turned on or off since the sweep was built
    static_axes = [i for i, axis in enumerate(sweep.grid_axes) if axis.static]
    points = list(itertools.product(*(range(len(sweep.grid_axes[i].values)) for i in static_axes)))
    # Pad only if several static points can share a program and no user function would see the padding.
    functions = any(map(callable, sweep.observables or ()))
    pad = len(points) > 1 and not functions and not sweep.summary and sweep.trajectory is None
    groups = []
    for fixed in (dict(zip(static_axes, point)) for point in points):
        index = tuple(fixed.get(i, 0) for i in range(len(sweep.grid_axes)))
        task, hyper = sweep.task(index), sweep.hyper_at(index)
        for family, members in _same_static_keywords(sweep):
            grid = sweep.grids[family]
            keywords = [sweep.optimizer_points[i][2] for i in members]
            static = {k: v for k, v in keywords[0].items() if k not in grid.floats}
            _check_observed(sweep, family, keywords[0])
            label = None if grid.keywords else f"optimizer {family!r}"

            def choose(
                points: list, task: Task = task, hyper: Any = hyper, grid: Any = grid, label: Any = label
            ) -> Choice:
                return choose_mode(
                    task, grid.factory, points, hyper, sweep.shared, sweep.trainable, functions, label, pad,
                    sweep.trajectory == "signs",
                )  # fmt: skip

            for choice, optimizers in _by_mode(task, choose, list(zip(members, keywords))):
                start = abstract_start(choice.mode.task, choice.case(hyper), sweep.shared)
                groups.append(Group(sweep, choice, grid.factory, static, grid.floats, family, optimizers, fixed, start))
    check_outputs(groups)
    return groups


def _check_observed(sweep: Sweep, family: str, keywords: Mapping[str, Any]) -> None:
    """Raises ValueError if an optimizer observes another iterate and the sweep needs the trained parameters."""
    what = f"levels={list(sweep.crossed)}" if sweep.crossed else f"trajectory={sweep.trajectory!r}"
    needed = sweep.crossed or sweep.trajectory is not None
    if needed and evaluated(build(sweep.grids[family].factory, keywords, seed_key(0))) is not None:
        raise ValueError(
            f"{what} needs the trained parameters, and optimizer {family!r} observes others (js.observed_at): leave "
            f"one of the two away, or give {family!r} a sweep of its own"
        )


def _same_static_keywords(sweep: Sweep) -> Iterator[tuple[str, list[int]]]:
    """(family, indices on the optimizer dimension) of the points of one family with equal static keywords."""
    first = 0
    for family, grid in sweep.grids.items():
        alike: dict[str, list[int]] = {}
        for i in range(len(grid.points)):
            alike.setdefault(repr(grid.static(i)), []).append(first + i)
        first += len(grid.points)
        yield from ((family, members) for members in alike.values())


def _by_mode(
    task: Task, choose: Callable[[list], Choice], points: list[tuple[int, Mapping[str, Any]]]
) -> list[tuple[Choice, tuple[int, ...]]]:
    """(choice, indices on the optimizer dimension) of the points of one optimizer that are trained in one mode.

    The mode of a point must not depend on the other points, or a sweep that gets more points would change.
    """
    joint = choose([point for _, point in points])
    first, compact = (task.reduction.choices or (task,))[0], joint.task.reduction.compact
    best = joint.task is first and joint.mode.compact == (compact is not None)
    if best and len({(degree.decays, degree.signs) for degree in joint.degrees}) <= 1:  # holds for each point alone
        return [(joint, tuple(i for i, _ in points))]
    alike: dict[Any, list[tuple[int, Choice]]] = {}
    for i, point in points:
        choice = choose([point])
        alike.setdefault(choice.mode, []).append((i, choice))
    out = []
    for members in alike.values():
        degrees = tuple(degree for _, choice in members for degree in choice.degrees)
        out.append((members[0][1]._replace(degrees=degrees), tuple(i for i, _ in members)))
    return out

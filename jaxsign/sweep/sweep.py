"""The definition of a sweep: a system, its numbers, axes and optimizers, checked before anything is compiled."""

import dataclasses
import functools
import inspect
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxsign.compilation import undisturbed
from jaxsign.optimizers.factories import PER_RUN
from jaxsign.optimizers.grid import NUMBERS, Grid, as_grid, point_label, shown
from jaxsign.store.levels import check_levels
from jaxsign.sweep.naming import check_names, check_numbers
from jaxsign.training.rng import seed_words
from jaxsign.training.schedule import Schedule
from jaxsign.training.task import Task
from jaxsign.validation.messages import counted, table
from jaxsign.validation.names import text_value, word
from jaxsign.validation.values import (
    LONGEST,
    RUNS,
    hashed,
    known,
    length_of,
    name_tuple,
    one_line,
    plain_number,
    plain_record,
    positive_int,
    real,
    short_enough,
)

#: Kinds of trajectories that have a name.
TRAJECTORIES = ("signs", "features", "log2")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One dimension of a sweep.

    Args:
      members: names zipped into the dimension; the first one names it.
      values: one tuple of member values per point.
      static: whether some member changes shapes, so that each point compiles its own program.
    """

    members: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    static: bool

    @property
    def name(self) -> str:
        """The dimension's name."""
        return self.members[0]


@dataclasses.dataclass(frozen=True)
class OneTask:
    """A system that is one Task, whatever the problem: what `Sweep(system=task)` stands for.

    Args:
      task: the task.
    """

    task: Task

    def __call__(self, problem: Any) -> Task:
        """The task."""
        return self.task

    def __repr__(self) -> str:
        return f"the task {self.task.name!r}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The definition of a sweep: a system, its numbers, optimizers and axes. Checked when built.

    Args:
      system: `(problem, engine=...) -> Task`, such as `js.two_layer`; called without engine if `engine` is None. Or
        a Task, which no axis of the problem can change.
      problem: a frozen dataclass that fixes the shapes, or None for a system without one.
      hyper: the system's numbers (a dataclass or dict of floats), or None.
      optimizers: {family: js.grid(...), an Optax transform, or a factory without required keywords}. A factory that
        takes a keyword `key` or `seed` gets one per run; an optimizer that draws the same for every seed is refused.
      axes: {name: values}. Names are fields of hyper or derived ones such as "snr" (mapped, never recompiled), fields
        of problem or "engine" (static), or "seed" (an int N for 0..N-1, or a list of ints). A tuple of names with a
        list of tuples is zipped into one dimension named by its first member. Full product. The axis
        snr = mu / (sigma_p sqrt(s)) sets sigma_p = mu / (snr sqrt(s)), with each run's own mu and s.
      steps: optimizer steps, int >= 1, the same for all runs.
      record: int k for steps 0, k, 2k, ..., or an increasing array of steps; default `js.log_steps(steps)`
        and powers of ten.
      test_every: int or array of recorded steps; test quantities are NaN between; default the first recorded steps
        at or after the default ones.
      levels: training losses in nat, > 0. All observables, test quantities included, are captured at the first step
        whose training loss is at or below each level and at the step before it, whatever record and test_every are;
        `js.at_train_loss` reads them.
      observables: names or functions; default the scalar observables.
      engine: passed to `system`, or None.
      trainable: names of trained parameters; default all.
      summary: pure function of a run's trace to {name: scalar}.
      keep_trace: False stores the summary only.
      shared: arrays common to all runs.
      trajectory: parameters stored beside the results, for `js.open_trajectory`: "signs" every parameter at every step,
        for optimizers that move by amplitude * {-1, 0, +1}; where features are trained (engines "hybrid" and
        "feature_space") these are the weights behind them. "features": their features on the training set at every
        step; "log2" or a list or array of steps: the raw parameters at steps 0, 1, 2, 4, ..., or at these steps.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> import jaxsign as js
      >>> sweep = js.Sweep(
      ...     system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3), hyper=js.Hyper(sigma_p=2.0),
      ...     optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-4, 1e-3])},
      ...     axes={"snr": [0.1, 1.0], "seed": 8}, steps=20,
      ... )
      >>> sweep.size
      32
    """

    system: Callable[..., Task] | Task
    problem: Any
    hyper: Any
    optimizers: Mapping[str, Any]
    steps: int
    axes: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    record: Any = None
    test_every: Any = None
    levels: Sequence[float] = ()
    observables: Sequence[str | Callable] | None = None
    engine: str | None = None
    trainable: Sequence[str] | None = None
    summary: Callable | None = None
    keep_trace: bool = True
    shared: Any = None
    trajectory: Any = None

    @undisturbed()
    def __post_init__(self) -> None:
        if not isinstance(self.axes, Mapping):
            raise ValueError(f"axes must be a dict of name: values, got axes={self.axes!r}")
        # An iterator would be empty when the sweep is copied with changes.
        axes = {
            key: list(itertools.islice(values, LONGEST + 1)) if isinstance(values, Iterator) else values
            for key, values in self.axes.items()
        }
        _check_sizes(axes)
        if not callable(self.system) and not isinstance(self.system, Task):
            raise ValueError(f"system must be a function (problem) -> js.Task, or a js.Task, got {self.system!r}")
        for name in ("problem", "hyper"):
            if isinstance(value := getattr(self, name), type):
                raise ValueError(f"{name} must be an object, not a class: write {name}={value.__name__}(...)")
        system = OneTask(self.system) if isinstance(self.system, Task) else self.system
        for field, value in {
            "system": system, "axes": axes, "hyper": plain_record(self.hyper),
            "observables": name_tuple("observables", self.observables),
            "trainable": name_tuple("trainable", self.trainable),
        }.items():  # fmt: skip
            object.__setattr__(self, field, value)
        object.__setattr__(self, "trajectory", _trajectory(self.trajectory, positive_int("steps", self.steps)))
        for name in (*_names(self.problem), *_names(self.hyper)):
            word("field of problem or hyper", name)
        for name in _names(self.hyper):
            value = self.hyper[name] if isinstance(self.hyper, Mapping) else getattr(self.hyper, name)
            if value is None or isinstance(value, (str, bytes, complex)) or type(value) is int:
                real(name, value)
        _ = self.schedule, self.crossed, self.seeds, self.optimizer_points
        runs = math.prod(self.shape)
        if runs > RUNS:
            sizes = ", ".join(f"{name}: {size:,}" for name, size in zip(self.dims, self.shape))
            raise ValueError(f"a sweep must have at most {RUNS:,} runs, got {runs:,} ({sizes})")
        if self.summary is not None and not callable(self.summary):
            raise ValueError(f"summary must be a function of a run's trace, or None, got summary={self.summary!r}")
        if not self.keep_trace and self.summary is None:
            raise ValueError("keep_trace=False needs summary=, got summary=None: nothing would be kept")
        for combination in self.combinations():
            task = self.task(combination)
            if task.validate is not None:
                task.validate(self.hyper_at(combination))
        check_names(self)
        check_numbers(self)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in zip(self.dims, self.shape))
        return f"Sweep({self._system_name}, {counted(self.size, 'run')} of {self.steps} steps, {sizes})"

    def _repr_html_(self) -> str:
        axes = [(name, f"{axis.values[0][i]!r} ... {axis.values[-1][i]!r} ({len(axis.values)})")
                for axis in self.grid_axes for i, name in enumerate(axis.members)]  # fmt: skip
        labels = ", ".join(label for label, _, _ in self.optimizer_points[:8]) + ", ..." * (
            len(self.optimizer_points) > 8
        )
        head = [("system", self._system_name), ("problem", self.problem), ("hyper", self.hyper)]
        counts = [("seeds", len(self.seeds)), ("steps", self.steps), ("runs", self.size)]
        return table([*head, *axes, ("optimizers", labels), *counts])

    @property
    def _system_name(self) -> str:
        system = self.system.func if isinstance(self.system, functools.partial) else self.system
        return system.task.name if isinstance(system, OneTask) else getattr(system, "__name__", type(system).__name__)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """Recorded steps and test steps."""
        return Schedule.build(self.steps, self.record, self.test_every)

    def at_cadence_of(self, stored: Mapping[str, Any]) -> "Sweep":
        """The sweep with the recorded steps and test steps of a stored definition if none were given.

        The default steps have changed since the first version, and may change again.
        """
        changes: dict[str, Any] = {}
        if stored.get("steps") == self.steps:
            if self.record is None:
                changes["record"] = stored["record"]
            if self.test_every is None and {*stored["test"]} <= {*changes.get("record", self.schedule.record.tolist())}:
                changes["test_every"] = stored["test"]
        return dataclasses.replace(self, **changes) if changes else self

    @functools.cached_property
    def crossed(self) -> tuple[float, ...]:
        """The levels of the training loss that are captured, highest first."""
        return check_levels(self.levels)

    @functools.cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        given = self.axes.get("seed", 1)
        if not isinstance(given, (list, tuple)) and np.ndim(given) == 0:
            return tuple(range(positive_int("seed", given)))
        given = np.asarray(given) if hasattr(given, "dtype") else given  # going through a JAX array is slow
        seeds = [positive_int("seed", seed, minimum=0) for seed in given]
        _check_values("seed", [(seed,) for seed in seeds])
        for seed in seeds:
            seed_words(seed)
        return tuple(seeds)

    @functools.cached_property
    def grid_axes(self) -> tuple[Axis, ...]:
        """All axes but seed, in the order given."""
        out = []
        static_names = [*_names(self.problem), "engine"]
        derived = getattr(type(self.hyper), "derived", {})
        hyper_names = [*_names(self.hyper), *derived]
        for key, values in self.axes.items():
            if key == "seed":
                continue
            members = key if isinstance(key, tuple) else (key,)
            if not members:
                raise ValueError("axis () has no name")
            for name in members:
                legal = [*hyper_names, *static_names, "seed"]
                if name not in legal and name in self._optimizer_numbers():
                    raise ValueError(
                        f"axis {name!r} is a keyword of an optimizer, and these are no axes: give it in optimizers "
                        f"as js.grid(factory, {name}=[...]) (legal: {', '.join(map(repr, legal))})"
                    )
                known("axis", name, legal)
                if name == "seed":
                    raise ValueError('"seed" is an axis of its own and cannot be zipped')
            if isinstance(values, (str, bytes, Mapping)) or not np.iterable(values):
                raise ValueError(f"axis {key!r} must be a list of values, got {one_line(values)}")
            if isinstance(values, (set, frozenset)):
                raise ValueError(f"axis {key!r} must be in an order, got the set {values!r}")
            points = list(np.asarray(values) if isinstance(values, jax.Array) else values)
            if isinstance(key, tuple):
                for point in points:
                    if isinstance(point, (str, bytes)) or not np.iterable(point) or len(tuple(point)) != len(members):
                        raise ValueError(f"axis {key!r} needs {len(members)} values a point, got {one_line(point)}")
            points = [tuple(point) if isinstance(key, tuple) else (point,) for point in points]
            points = [
                tuple(self._axis_value(name, v, name in hyper_names) for name, v in zip(members, point))
                for point in points
            ]
            _check_values(key, points)
            out.append(Axis(members, tuple(points), any(name in static_names for name in members)))
        changing = [name for axis in out for name in axis.members if name in static_names]
        if changing and isinstance(self.system, OneTask):
            raise ValueError(
                f"axis {changing[0]!r} changes nothing: system is {self.system!r}, give a function (problem) -> js.Task"
            )
        used = [name for axis in out for name in axis.members]
        for name in used:
            if used.count(name) > 1:
                raise ValueError(f"axis {name!r} is given twice")
            if derived.get(name) in used:
                raise ValueError(f"axis {name!r} computes {derived[name]!r}: give one of them, got both")
        return tuple(out)

    def _axis_value(self, name: str, value: Any, number: bool) -> Any:
        """One value of an axis as a plain number or word.

        Raises:
          ValueError: naming axis and value: for arrays, for integers beyond 64 bits, and for anything but real
            numbers on an axis of numbers.
        """
        if np.ndim(value) if hasattr(value, "dtype") else False:
            raise ValueError(f"axis {name!r} must be a list of single values, got {one_line(value)} in it")
        value = plain_number(f"axis {name!r}: {name}", value)
        text_value(f"axis {name!r}", value)
        if number:
            field = self.hyper.get(name) if isinstance(self.hyper, Mapping) else getattr(self.hyper, name, None)
            flag = isinstance(value, bool) and not isinstance(field, bool)
            if flag or not isinstance(value, (int, float)):
                raise ValueError(f"axis {name!r} must be a list of numbers, got {one_line(value)} in it")
            if isinstance(value, int) and abs(value) >= 2**63:
                value = real(f"axis {name!r}: {name}", value)
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"axis {name!r} must be a list of integers of 64 bits at most, got {value!r} in it")
        return value

    @functools.cached_property
    def grids(self) -> dict[str, Grid]:
        """The optimizers as grids."""
        if not isinstance(self.optimizers, Mapping) or not self.optimizers:
            raise ValueError(f"optimizers must be a dict of at least one optimizer, got {shown(self.optimizers)}")
        spelled: dict[str, str] = {}
        for family in self.optimizers:
            same = unicodedata.normalize("NFC", word("optimizers: the key", family))
            if same in spelled:
                raise ValueError(
                    f"optimizers has two keys that look the same, {spelled[same]!r} and {family!r}: rename one"
                )
            spelled[same] = family
        return {family: _family_grid(family, entry) for family, entry in self.optimizers.items()}

    def _optimizer_numbers(self) -> set[str]:
        """Names that belong to optimizers: their factories' keywords and the usual ones of built transforms."""
        keywords = ({*inspect.signature(grid.factory).parameters} - {*PER_RUN} for grid in self.grids.values())
        return {*NUMBERS, *itertools.chain(*keywords)}

    @functools.cached_property
    def optimizer_points(self) -> tuple[tuple[str, str, dict[str, Any]], ...]:
        """(label, family, keywords) of every point of the optimizer dimension."""
        points = []
        for family, grid in self.grids.items():
            varying = [k for k in grid.keywords if len({repr(point[k]) for point in grid.points}) > 1]
            labels = [point_label(family, words, varying) for words in grid.words]
            points += [(label, family, dict(point)) for label, point in zip(labels, grid.points)]
        families: dict[str, str] = {}
        for label, family, _ in points:
            if label in families:
                raise ValueError(
                    f"optimizer labels must be unique, got {label!r} of optimizers[{families[label]!r}] and of "
                    f"optimizers[{family!r}]: rename one, or name the values of a keyword by a dict, "
                    'js.grid(factory, keyword={"name": value, ...})'
                )
            families[label] = family
        return tuple(points)

    @functools.cached_property
    def optimizer_words(self) -> tuple[Mapping[str, str], ...]:
        """{keyword: its value in words} of every point of the optimizer dimension."""
        return tuple(words for grid in self.grids.values() for words in grid.words)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions (axes, optimizer, seed)."""
        return (*(len(axis.values) for axis in self.grid_axes), len(self.optimizer_points), len(self.seeds))

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions (axes, optimizer, seed)."""
        return (*(axis.name for axis in self.grid_axes), "optimizer", "seed")

    @property
    def size(self) -> int:
        """Number of runs."""
        return int(np.prod(self.shape))

    def combinations(self) -> list[tuple[int, ...]]:
        """Index tuples of all points of the axes, in order."""
        return list(itertools.product(*(range(len(axis.values)) for axis in self.grid_axes)))

    def setting(self, index: tuple[int, ...]) -> dict[str, Any]:
        """{member of an axis: its value} at one point of the axes."""
        return {
            name: value for axis, i in zip(self.grid_axes, index) for name, value in zip(axis.members, axis.values[i])
        }

    def problem_at(self, index: tuple[int, ...]) -> Any:
        """The problem at one point of the axes."""
        changes = {name: v for name, v in self.setting(index).items() if name in _names(self.problem)}
        return dataclasses.replace(self.problem, **changes) if changes else self.problem

    def task(self, index: tuple[int, ...]) -> Task:
        """The task at one point of the axes; equal problems and engines give the identical one."""
        assert not isinstance(self.system, Task)  # it has become OneTask
        engine = self.setting(index).get("engine", self.engine)
        problem = self.problem_at(index)
        if engine is not None and "engine" not in inspect.signature(self.system).parameters:
            raise ValueError(f"system {self.system!r} has no engines, got engine={engine!r}")
        task = self.system(problem) if engine is None else self.system(problem, engine=engine)
        if not isinstance(task, Task):
            raise ValueError(f"system must return a js.Task, got {type(task).__name__}")
        return task

    def hyper_at(self, index: tuple[int, ...]) -> Any:
        """The numbers at one point of the axes; plain fields are set before derived ones."""
        problem, hyper, setting = self.problem_at(index), self.hyper, self.setting(index)
        fields = _names(hyper)
        derived = getattr(type(hyper), "derived", {})
        plain = {name: value for name, value in setting.items() if name in fields}
        if plain:
            hyper = {**hyper, **plain} if isinstance(hyper, Mapping) else dataclasses.replace(hyper, **plain)
        for name in (name for name in setting if name in derived):
            hyper = hyper.with_axis(problem, name, setting[name])
        return hyper


def _family_grid(family: Any, entry: Any) -> Grid:
    """One entry of `optimizers` as a grid.

    Raises:
      ValueError: naming the family and the entry.
    """
    if not isinstance(entry, (Grid, optax.GradientTransformation, optax.MultiSteps)) and not callable(entry):
        raise ValueError(
            f"optimizers[{family!r}] must be js.grid(factory, ...), an Optax transform or a factory without required "
            f"keywords, got {shown(entry)}"
        )
    try:
        return as_grid(entry)
    except ValueError as error:
        raise ValueError(f"optimizers[{family!r}]: {error}") from None


def _trajectory(trajectory: Any, steps: int) -> str | tuple[int, ...] | None:
    """One of the kinds, or steps in increasing order as a tuple of ints.

    Raises:
      ValueError: naming the value and what is legal.
    """
    if trajectory is None or (isinstance(trajectory, str) and trajectory in TRAJECTORIES):
        return trajectory
    short_enough("trajectory", length_of(trajectory))
    legal = f"trajectory must be one of {', '.join(map(repr, TRAJECTORIES))} or increasing steps in [0, {steps}]"
    whole = np.asarray(trajectory) if hasattr(trajectory, "dtype") else None
    odd = isinstance(trajectory, (str, bytes, Mapping, set)) or not np.iterable(trajectory)
    if odd or (whole is not None and (whole.ndim != 1 or not np.issubdtype(whole.dtype, np.integer))):
        raise ValueError(f"{legal}, got trajectory={trajectory!r}")
    kept_steps: list[int] = []
    for step in trajectory if whole is None else whole.tolist():
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or not 0 <= step <= steps:
            raise ValueError(f"{legal}, got {step!r} in it")
        if kept_steps and step <= kept_steps[-1]:
            raise ValueError(f"{legal}, got {step!r} after {kept_steps[-1]}")
        kept_steps.append(int(step))
    if not kept_steps:
        raise ValueError(f"{legal}, got trajectory={trajectory!r}")
    return tuple(kept_steps)


def _names(record: Any) -> list[str]:
    """Field names of a dataclass, keys of a dict, nothing of None."""
    if record is None:
        return []
    if isinstance(record, Mapping):
        return list(record)
    if not dataclasses.is_dataclass(record):
        raise ValueError(f"problem and hyper must be dataclasses, dicts or None, got {record!r}")
    return [field.name for field in dataclasses.fields(record)]


def _check_sizes(axes: Mapping[Any, Any]) -> None:
    """Checks how many values the axes have, before any list of them is made.

    Raises:
      ValueError: naming axis, number and limit.
    """
    for key, values in axes.items():
        plain = plain_number("seed", values) if key == "seed" else values
        if type(plain) is int:
            short_enough("axis 'seed'", plain, f'the one seed of this number is {{"seed": [{plain}]}}')
        short_enough(f"axis {key!r}", length_of(values))


def _check_values(name: Any, points: list[tuple[Any, ...]]) -> None:
    if not points:
        raise ValueError(f"axis {name!r} must have at least one value, got an empty list")
    shown = [point if isinstance(name, tuple) else point[0] for point in points]
    distinct = set()
    for point in shown:
        if hashed(point) in distinct:
            raise ValueError(f"axis {name!r} has a duplicate value, got {point!r} twice")
        distinct.add(hashed(point))

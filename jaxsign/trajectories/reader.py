"""What were a run's parameters at any stored step? Those of its training to the bit, or the weights behind features."""

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.compilation import each_undisturbed, kept_on_disk, start_on_every_core, undisturbed
from jaxsign.store import checkpoints, results, trajectory
from jaxsign.store.manifest import UnusableData, read_manifest
from jaxsign.store.trajectory import EVERY_STEP, StoredUnit
from jaxsign.sweep.identity.definition import describe, neutral, short_name
from jaxsign.sweep.identity.match import compare
from jaxsign.sweep.programs import drawing, local_mesh, runs_drawn
from jaxsign.sweep.recorder import start_crcs
from jaxsign.sweep.sweep import Sweep
from jaxsign.systems import by_public_name
from jaxsign.training.loop import Loop
from jaxsign.training.mode import Mode
from jaxsign.training.rng import seed_key, seed_words
from jaxsign.training.start import Start, abstract_start
from jaxsign.training.task import Task
from jaxsign.trajectories.decode import (
    after_every_step,
    after_steps,
    at,
    bits_of,
    code_bytes,
    codes_of_weights,
    padded,
    read,
)
from jaxsign.validation.values import known, local_path, positive_int

if TYPE_CHECKING:
    import xarray as xr

PyTree = Any
Index = tuple[int, ...]
#: If more steps of a segment than this are wanted, all of it is decoded at once.
FEW = 8
#: Steps of which full parameters are computed in one call.
TOGETHER = 16


class Source(NamedTuple):
    """The task, numbers and seed that one run's start is drawn from.

    Args:
      task: the task whose parameters are read: the one that was trained, or that of the weights behind its features.
      compact: whether they are read in their compact form.
      loop: its training loop, which knows the forms of its parameters.
      hyper: the run's numbers.
      degree: the optimizer's degree.
      seed: the run's seed.
      recorded: the training loop of the task that was trained: `loop` itself unless weights are read behind features.
    """

    task: Task
    compact: bool
    loop: Loop
    hyper: Any
    degree: float
    seed: int
    recorded: Loop


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The trajectories of a results directory: `trajectory[i]` is run i of the definition in C order.

    Args:
      path: results directory.
      kind: "signs", "features", "log2" or "steps".
      dataset: the results; their coordinates label the runs.
      sweep: the system and the axes.
      groups: the manifest's groups.
      optimizers: [family, keywords] of every point of the optimizer dimension.
      units: {stored place: every (unit, number of the run in it), the latest first}.
      damage: a line for every unit that cannot be read.
      order: for every dimension, the definition's index at every stored place.
    """

    path: Path
    kind: str
    dataset: "xr.Dataset"
    sweep: Sweep
    groups: Sequence[Mapping[str, Any]]
    optimizers: Sequence[tuple[str, Mapping[str, Any]]]
    units: Mapping[tuple[int, ...], Sequence[tuple[StoredUnit, int]]]
    damage: Sequence[str]
    order: Sequence[Sequence[int]]

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the runs' dimensions: the axes, optimizer, seed."""
        return tuple(map(str, self.dataset["status"].dims))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the runs' dimensions."""
        return tuple(self.dataset["status"].shape)

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def __iter__(self) -> Iterator["RunTrajectory"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in zip(self.dims, self.shape))
        return f"Trajectory({self.kind!r}, {len(self)} runs ({sizes}), {self.sweep.schedule.steps} steps)"

    def __getitem__(self, run: int | Index) -> "RunTrajectory":
        """One run, by its number in C order or by its index on every dimension.

        Raises:
          IndexError: if there is none.
        """
        if isinstance(run, tuple):
            if len(run) != len(self.shape) or not all(0 <= i < size for i, size in zip(run, self.shape)):
                raise IndexError(f"run must be an index into {dict(zip(self.dims, self.shape))}, got {run!r}")
            return RunTrajectory(self, run)
        if not 0 <= run < len(self):
            raise IndexError(f"run must be in [0, {len(self)}), got {run!r}")
        return RunTrajectory(self, tuple(map(int, np.unravel_index(run, self.shape))))

    def sel(self, **labels: Any) -> "RunTrajectory":
        """One run by its labels, such as `sel(snr=0.1, seed=3)`; dimensions of one value may be left out.

        An optimizer is named by its label, or by its family and numbers: `sel(family="gd", learning_rate=0.1, seed=3)`.

        Raises:
          ValueError: if the labels do not name one run.
        """
        coords = {
            str(name): c for name, c in self.dataset.coords.items() if len(c.dims) == 1 and c.dims[0] in self.dims
        }
        for name in labels:
            known("label of sel", name, coords)
        index = []
        for dim, size in zip(self.dims, self.shape):
            places = list(range(size))
            for name, label in labels.items():
                if coords[name].dims != (dim,):
                    continue
                values = coords[name].values.tolist()
                left = [values[i] for i in places]
                places = [i for i in places if values[i] == label]
                if not places:
                    raise ValueError(f"{name} must be one of {list(dict.fromkeys(left))}, got {label!r}")
            if len(places) > 1:
                raise ValueError(f"sel needs {dim}, one of {self.dataset[dim].values[places].tolist()}")
            index.append(places[0])
        return RunTrajectory(self, tuple(index))

    def source(self, index: Index) -> Source:
        """The task, numbers and seed that one run's start is drawn from.

        Raises:
          UnusableData: if the manifest names no group for the run.
        """
        *axes, optimizer, seed = index
        system_task, hyper = self.sweep.task(tuple(axes)), self.sweep.hyper_at(tuple(axes))
        family, keywords = self.optimizers[optimizer]
        for group in self.groups:
            fixed = all(
                group["fixed"].get(axis.name, texts) == texts
                for axis, i in zip(self.sweep.grid_axes, axes)
                for texts in [[str(v) for v in axis.values[i]]]
            )
            points = group["points"]
            tasks = [t for t in system_task.reduction.choices or (system_task,) if t.name == group["task"]]
            if fixed and family == group["family"] and keywords in points and tasks:
                task = tasks[0]
                degrees = group["degrees"]
                degree = degrees[points.index(keywords)]["p"] if degrees else 0.0
                compact, seeds = group["compact"], self.sweep.seeds
                loop = recorded = _loop(task, compact, self.sweep.trainable)
                if self.kind == "signs" and task.reduction.weights is not None:
                    task, compact = task.reduction.weights.task, True
                    loop = _loop(task, compact, self.sweep.trainable)
                return Source(task, compact, loop, hyper, degree, seeds[seed], recorded)
        raise UnusableData(f"{self.path}: the manifest names no group for run {index}")


@functools.lru_cache(maxsize=32)
def _loop(task: Task, compact: bool, trainable: Any) -> Loop:
    return Loop(Mode(task, compact), optax.identity, trainable=trainable)


@dataclasses.dataclass(frozen=True, eq=False)
class RunTrajectory:
    """The trajectory of one run.

    Args:
      whole: the trajectories of all runs.
      index: its index on every dimension of (axes, optimizer, seed).
    """

    whole: Trajectory
    index: Index

    def __repr__(self) -> str:
        labels = {d: self.whole.dataset[d].values[i] for d, i in zip(self.whole.dims, self.index)}
        return f"RunTrajectory({self.whole.kind!r}, {', '.join(f'{k}={v}' for k, v in labels.items())})"

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Steps whose parameters are kept: every step, or those of the snapshots."""
        if self.whole.kind in EVERY_STEP:
            return np.arange(self.whole.sweep.schedule.steps + 1)
        return np.array([segment.start for segment in self._place[0].segments])

    @functools.cached_property
    def first_bad_step(self) -> int:
        """The step at which the run diverged, -1 if it did not; no parameters are returned from that step on."""
        return int(self.whole.dataset["first_bad_step"].values[self.index])

    @functools.cached_property
    def source(self) -> Source:
        """The task, numbers and seed that the run's start is drawn from."""
        return self.whole.source(self.index)

    @functools.cached_property
    def start(self) -> Start:
        """The run's start, drawn again and compared with the CRC of the start of its training.

        Raises:
          UnusableData: if the two are not equal to the bit.
        """
        with undisturbed(), kept_on_disk(), jax.disable_jit(False):
            return self._drawn()

    def _drawn(self) -> Start:
        trained, unit, run = self.source.recorded.mode.task, *self._place
        drawn = self._draw(trained)
        if start_crcs((drawn.data, drawn.params))[0] != unit.about["start"][run]:
            raise UnusableData(
                f"{unit.folder}: the data and initial parameters of run {self.index} that are drawn here are not those "
                "of its training to the bit: open it with the versions and the device that its manifest names"
            )
        if self.source.task is not trained:
            drawn = self._draw(self.source.task)
        return jax.tree.map(_first, drawn)

    def _draw(self, task: Task) -> Start:
        """The start of the run as a task draws it, the first of a block."""
        _, _, _, hyper, degree, seed, _ = self.source
        mesh = local_mesh()
        # As many as the sweep drew at once: the same program, which is compiled already.
        count, dtype = runs_drawn(self.whole.sweep, mesh), jnp.zeros(()).dtype
        hypers = jax.tree.map(lambda leaf: np.full(count, leaf, dtype), hyper)
        seeds = np.stack([seed_words(seed)] * count)
        return drawing(task, mesh)(seeds, hypers, np.full(count, degree, dtype), self.whole.sweep.shared)

    @functools.cached_property
    def _place(self) -> tuple[StoredUnit, int]:
        """(unit, number in it) of an undamaged copy of the run; the latest one if all are damaged."""
        place = tuple(list(order).index(i) for order, i in zip(self.whole.order, self.index))
        copies = self.whole.units.get(place, ())
        if not copies:
            lost = f": {self.whole.damage[0]}" if self.whole.damage else ""
            raise UnusableData(
                f"{self.whole.path} holds no trajectory of run {self.index}{lost}; the sweep's own command computes it"
            )
        return trajectory.newest_whole(copies)

    def _check(self, step: int) -> int:
        last = self.whole.sweep.schedule.steps
        if positive_int("step", step, minimum=0) > last:
            raise ValueError(f"step must be in [0, {last}], got {step}")
        if 0 <= self.first_bad_step <= step:
            raise ValueError(f"step must be before the run diverged at step {self.first_bad_step}, got {step}")
        if step not in self.steps:
            raise ValueError(f"step must be one of the kept {self.steps.tolist()}, got {step}")
        return int(step)

    def params(self, step: int) -> PyTree:
        """The parameters before optimizer step `step`, equal to the training run's to the bit.

        Where "signs" were kept of an engine that trains features, they are the weights behind them: the start's, and
        the very steps of the run added one after the other. Their features agree with the trained ones up to the
        rounding of every step.

        Args:
          step: one of `steps`; the number of steps trained is the end.

        Returns:
          The system's full parameters; for "features", the features that the training set sees.

        Raises:
          ValueError: for a step that is not kept, or at which the run had diverged.
          UnusableData: if the bytes are damaged.
        """
        step = self._check(step)
        with undisturbed(), kept_on_disk():
            trained = next(iter(self.trained([step])))[1]
            return self._full(trained)

    def iter(self, start: int = 0, stop: int | None = None, every: int = 1) -> Iterator[tuple[int, PyTree]]:
        """(step, parameters) of every kept step from `start` to `stop`, both included; the segments are decoded once.

        Args:
          start: first step.
          stop: last step; None: the end, or the last one before the run diverged.
          every: int >= 1, only every `every`-th kept step.
        """
        last = self.whole.sweep.schedule.steps if self.first_bad_step < 0 else self.first_bad_step - 1
        wanted = [t for t in self.steps.tolist() if start <= t <= (last if stop is None else stop)]
        wanted = wanted[:: positive_int("every", every)]
        for step in wanted[:1] + wanted[-1:]:
            self._check(step)
        return each_undisturbed(self._fulls(self.trained(wanted)))

    def export(self, step: int, folder: str | os.PathLike) -> None:
        """Saves one step's parameters with Orbax, as `orbax.checkpoint.v1.load(folder)` reads them.

        Raises:
          ValueError: if `folder` exists, cannot be made, or has a path that Orbax itself would not find again.
        """
        checkpoints.export(local_path("folder", folder), self.params(step))

    def _full(self, trained: PyTree) -> PyTree:
        if self.whole.kind == "features":
            return trained
        return _params(self.source.loop)(self.start, trained)

    def _fulls(self, steps: Iterator[tuple[int, PyTree]]) -> Iterator[tuple[int, PyTree]]:
        """(step, full parameters) of every (step, trained parameters), `TOGETHER` steps a call."""
        if self.whole.kind == "features":
            yield from steps
            return
        while batch := list(itertools.islice(steps, TOGETHER)):
            filled = [trained for _, trained in batch] + [batch[-1][1]] * (TOGETHER - len(batch))
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)
            full = jax.tree.map(np.asarray, _many_params(self.source.loop)(self.start, stacked))
            for i, (step, _) in enumerate(batch):
                yield step, jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), full)

    def trained(self, wanted: Sequence[int]) -> Iterator[tuple[int, PyTree]]:
        """(step, trained parameters) of steps in increasing order."""
        return each_undisturbed(self._trained(wanted))

    def _trained(self, wanted: Sequence[int]) -> Iterator[tuple[int, PyTree]]:
        unit, run = self._place
        if self.whole.kind == "features":
            yield from self._features(unit, run, wanted)
        elif self.whole.kind == "signs":
            yield from self._updated(unit, run, wanted)
        else:
            yield from self._snapshots(unit, run, wanted)

    def _snapshots(self, unit: StoredUnit, run: int, wanted: Sequence[int]) -> Iterator[tuple[int, PyTree]]:
        first, leaves = initially(self.source.loop)(self.start), _leaves(unit)
        for segment in unit.segments:
            if segment.start in wanted:
                yield segment.start, self._keyframe(first, read(segment, run, bits_of(leaves)))

    def _updated(self, unit: StoredUnit, run: int, wanted: Sequence[int]) -> Iterator[tuple[int, PyTree]]:
        """The steps of "signs": the last keyframe before them, and the updates of the steps since."""
        first, leaves = initially(self.source.loop)(self.start), _leaves(unit)
        targets, params, i = list(wanted), first, 0
        while targets:
            i = max([i, *(j for j, s in enumerate(unit.segments) if s.keyframe and s.start <= targets[0])])
            segment = unit.segments[i]
            steps = segment.stop - segment.start
            updates = [*bits_of([((steps, len(leaves)), leaves[0][1])]), ((steps, code_bytes(leaves)), "|u1")]
            *raw, sizes, signs = read(segment, run, [*(bits_of(leaves) if segment.keyframe else []), *updates])
            if segment.keyframe:
                params = self._keyframe(first, raw)
            codes: Any = padded(trajectory.undo_deltas(signs))
            amplitude: Any = padded(trajectory.undo_deltas(sizes).view(leaves[0][1]))
            if self.source.recorded is not self.source.loop:
                convert = codes_of_weights(self.source.recorded, self.source.loop)
                codes, amplitude = convert(self.start, self._still, codes, amplitude)
            inside = [t for t in targets if t <= segment.stop]
            if len(inside) > FEW:
                # One program for all steps; its arrays are read on the host, where slicing them costs nothing.
                after = jax.tree.map(np.asarray, after_every_step(params, codes, amplitude))
                for step in inside:
                    yield step, params if step == segment.start else at(after, step - segment.start - 1)
                params = at(after, steps - 1)
            else:
                done = 0
                for step in inside:
                    params = after_steps(params, codes, amplitude, done, step - segment.start)
                    done = step - segment.start
                    yield step, params
                if len(inside) < len(targets):
                    params = after_steps(params, codes, amplitude, done, steps)
            targets, i = targets[len(inside) :], i + 1

    @functools.cached_property
    def _still(self) -> PyTree:
        """The signs 0 of all parameters of the task whose steps were kept, in the form that was trained."""
        mode = self.source.recorded.mode
        start = abstract_start(mode.task, self.source.hyper, self.whole.sweep.shared)
        params = jax.eval_shape(mode.reduced, start.params, start.data)
        return jax.tree.map(lambda x: np.zeros(x.shape, np.int8), params)

    def _keyframe(self, first: PyTree, raw: Sequence[np.ndarray]) -> PyTree:
        """Parameters from their bits, which are stored as differences (XOR) from the initial ones."""
        leaves = [
            jnp.asarray((np.asarray(x).view(f"u{x.dtype.itemsize}") ^ bits).view(x.dtype))
            for x, bits in zip(jax.tree.leaves(first), raw)
        ]
        return jax.tree.unflatten(jax.tree.structure(first), leaves)

    def _features(self, unit: StoredUnit, run: int, wanted: Sequence[int]) -> Iterator[tuple[int, PyTree]]:
        like = self.projection
        structure, shapes = jax.tree.structure(like), jax.tree.leaves(like)
        for segment in unit.segments:
            inside = [t for t in wanted if segment.start <= t < max(segment.stop, segment.start + 1)]
            if not inside:
                continue
            count = max(segment.stop - segment.start, 1)
            deltas = read(segment, run, bits_of([((count, *x.shape), x.dtype.str) for x in shapes]))
            values = [trajectory.undo_deltas(bits).view(x.dtype) for bits, x in zip(deltas, shapes)]
            for step in inside:
                yield step, jax.tree.unflatten(structure, [jnp.asarray(v[step - segment.start]) for v in values])

    @functools.cached_property
    def projection(self) -> PyTree:
        """The features that the training set sees, as abstract arrays."""
        task, _, loop, hyper, *_ = self.source
        project = task.reduction.project
        assert project is not None

        def features(start: Start) -> PyTree:
            return project(loop.merged(start, loop.init(seed_key(0), start, None, {}).trained), start.data)

        return jax.eval_shape(features, abstract_start(task, hyper, self.whole.sweep.shared))


def _leaves(unit: StoredUnit) -> list[tuple[tuple[int, ...], str]]:
    """(shape, dtype) of every trained leaf."""
    return [(tuple(shape), dtype) for _, shape, dtype in unit.about["leaves"]]


def _first(x: jax.Array) -> jax.Array:
    """The first run of a block's array, copied through the host; typed keys stay keys."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(np.asarray(jax.random.key_data(x))[0], impl=jax.random.key_impl(x))
    return jnp.asarray(np.asarray(x)[0])


@functools.lru_cache(maxsize=32)
def initially(loop: Loop) -> Callable[[Start], PyTree]:
    """The jitted `start -> trained parameters` of step 0."""
    return jax.jit(lambda start: loop.init(seed_key(0), start, None, {}).trained)


@functools.lru_cache(maxsize=32)
def _params(loop: Loop) -> Callable[[Start, PyTree], PyTree]:
    return jax.jit(loop.params)


@functools.lru_cache(maxsize=32)
def _many_params(loop: Loop) -> Callable[[Start, PyTree], PyTree]:
    return jax.jit(jax.vmap(loop.params, (None, 0)))


@undisturbed()
def open_trajectory(out: str | os.PathLike, sweep: Sweep | None = None) -> Trajectory:
    """Opens the trajectories of a results directory; nothing is decoded yet.

    Where JAX has not started, it will start with a device per core, as in `js.run_sweep`: the start of a run is drawn
    again by the program of its sweep.

    Args:
      out: a results directory of a sweep with `trajectory=`.
      sweep: the sweep; it may be left out for a system of jaxsign, also one with arguments bound by
        `functools.partial`, and for one of your own that is imported already and has no problem. Nothing that a file
        names is imported, and `shared=` arrays are not stored.

    Returns:
      Trajectory; `trajectory[i]`, `trajectory.sel(seed=3)` give one run.

    Raises:
      ValueError: if `out` is no results directory, holds no trajectories, needs `sweep=`, or is of another float type.
      UnusableData: if its manifest is damaged.

    Examples:
      >>> import jaxsign as js, tempfile
      >>> sweep = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 2}, steps=20,
      ...     trajectory="signs")
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = js.run_sweep(sweep, out)
      ...     js.open_trajectory(out).sel(seed=1).params(7).w_q.shape
      (3, 50)
    """
    path = local_path("out", out).absolute()
    start_on_every_core()  # as the sweep did, whose programs then serve again
    dataset = results.opened(path)
    manifest = read_manifest(path)
    assert manifest is not None
    stored = manifest["definition"]
    if stored.get("trajectory") is None:
        raise ValueError(f"out must hold trajectories: {str(path)!r} was run without trajectory=")
    dtype = np.dtype(jnp.zeros(()).dtype).name
    if stored["dtype"] != dtype:
        raise ValueError(f"out={str(path)!r} was trained in {stored['dtype']}, this process computes in {dtype}")
    if sweep is None:
        sweep = _rebuilt(path, stored)
    else:
        sweep = sweep.at_cadence_of(stored)
        match = compare(str(path), manifest, sweep)
        if match.part or match.grown(manifest):
            raise ValueError(f"out={str(path)!r}: sweep= must be the stored sweep, not a part or an extension of it")
    units = list(trajectory.units(path))
    copies = trajectory.copies_of_runs(trajectory.newest_first(units))
    damage = [unit for unit in units if isinstance(unit, str)]
    points = [(family, point) for family, entry in stored["optimizers"].items() for point in entry["points"]]
    kind = stored["trajectory"] if isinstance(stored["trajectory"], str) else "steps"
    groups = manifest["plan"]["groups"]
    return Trajectory(path, kind, dataset, sweep, groups, points, copies, damage, manifest["order"])


def _rebuilt(path: Path, stored: Mapping[str, Any]) -> Sweep:
    """A sweep with the system and the axes of a stored definition; reading needs no optimizers.

    Raises:
      ValueError: if the system, its problem or its arrays are not known here.
    """
    system, problem, hyper = _system(path, stored)
    axes: dict[Any, Any] = {"seed": stored["seeds"]}
    for axis in stored["axes"]:
        one = len(axis["members"]) == 1
        axes[axis["members"][0] if one else tuple(axis["members"])] = [
            v[0] if one else tuple(v) for v in axis["values"]
        ]
    return Sweep(
        system=system, problem=problem, hyper=hyper, engine=stored["engine"], axes=axes,
        optimizers={"any": optax.identity()}, steps=stored["steps"], record=stored["record"],
        trainable=stored["trainable"],
    )  # fmt: skip


def _system(path: Path, stored: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(system, problem, hyper) of a stored definition.

    Raises:
      ValueError: naming what is not known here.
    """
    described, problem, hyper = stored["system"], stored["problem"], stored["hyper"]
    name, systems = short_name(described["name"]), by_public_name()
    reason = "shared=" if stored["shared"] is not None else f"the system {name!r}"
    args, keywords = described.get("args", []), described.get("keywords", {})  # bound by functools.partial
    plain = not any(isinstance(value, (list, Mapping)) for value in (*args, *keywords.values()))
    if name in systems and stored["shared"] is None and plain:
        kind = systems[name]
        bound = functools.partial(kind.build, *args, **keywords) if args or keywords else kind.build
        return bound, kind.problem(**problem), kind.hyper(**hyper)
    if problem is None and stored["shared"] is None and (hyper is None or isinstance(hyper, Mapping)):
        module, _, function = described["name"].rpartition(".")
        known_here = getattr(sys.modules.get(module), function, None)
        if callable(known_here) and neutral(describe("system", known_here)) == neutral(described):
            return known_here, None, hyper
    raise ValueError(f"out={str(path)!r} has {reason}: give the sweep that made it as sweep=")

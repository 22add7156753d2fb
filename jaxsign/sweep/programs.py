"""The compiled programs of one group: from a part of a unit's runs to their state and records."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsign.compilation import collecting_later, compiler_options, content
from jaxsign.sweep.compile_log import CompileLog
from jaxsign.sweep.groups import Group, Index
from jaxsign.sweep.layout import unpadded_shape
from jaxsign.sweep.leaving import abandon
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import Loop, State, Stops, Tape
from jaxsign.training.outputs import outputs
from jaxsign.training.rng import seed_words
from jaxsign.training.start import Start, begin
from jaxsign.training.task import Task, packaged

RUNS, ALL = PartitionSpec("run"), PartitionSpec()
#: Runs that one call of a drawing program draws on a device, in small sweeps and in those of more than MANY runs.
#: At least 2, since XLA inlines loops of one turn.
DRAWN, DRAWN_MANY, MANY = 4, 16, 256


class Arguments(NamedTuple):
    """Where the runs of a part differ, one entry per run: words of the keys, numbers, optimizer floats, degrees."""

    seeds: np.ndarray
    hyper: Any
    floats: dict[str, np.ndarray]
    degrees: np.ndarray


class Functions(NamedTuple):
    """What a group's programs compute, jitted: each maps the runs of one part."""

    init: jax.stages.Wrapped
    advance: jax.stages.Wrapped
    summarise: jax.stages.Wrapped
    project: jax.stages.Wrapped


def local_mesh() -> jax.sharding.Mesh:
    """The devices of this process as a mesh with the axis "run"."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("run",), axis_types=(AxisType.Auto,), devices=devices)


def runs_drawn(sweep: Sweep, mesh: jax.sharding.Mesh) -> int:
    """Runs that one call of a drawing program draws on all devices."""
    return (DRAWN_MANY if sweep.size > MANY else DRAWN) * mesh.size


class Program:
    """The programs of one group: `begin` draws (shared by all groups of a task), `init`, `advance`, `summarise`, and
    `project`, which computes the features.

    Runs are trained in lanes, a vmap of fixed width. A *part* is a lane on every device, and one call of a program
    trains one part; more runs are more parts. So the programs do not depend on how many runs a sweep has, and neither
    the number of parts nor the device changes a bit of a run.

    Args:
      group: the group.
      width: runs of a lane.
      slots: stops of one call, at least 2: XLA inlines loops of one turn, which rounds differently.
      mesh: local devices as a mesh with the axis "run".
      tape: records every step, or None.
    """

    def __init__(self, group: Group, width: int, slots: int, mesh: jax.sharding.Mesh, tape: Tape | None = None):
        self.group, self.width, self.slots = group, width, max(slots, 2)
        self.mesh, self.tape, self.part = mesh, tape, width * mesh.size
        self.drawn = runs_drawn(group.sweep, mesh)
        self.begin = drawing(group.task, mesh)
        self.init, self.advance, self.summarise, self.project = _functions(group, tape, mesh)

    def with_width(self, width: int) -> "Program":
        """The same programs for lanes of another width."""
        return Program(self.group, width, self.slots, self.mesh, self.tape)

    def parts(self, count: int) -> list[slice]:
        """The parts of so many runs; the last one may be filled only partly."""
        return [slice(first, min(first + self.part, count)) for first in range(0, count, self.part)]

    def padded(self, count: int) -> int:
        """`count` rounded up to whole parts."""
        return -(-count // self.part) * self.part

    def arguments(self, members: Sequence[Index], size: int | None = None) -> Arguments:
        """The arguments of some runs, padded to `size` (default: one part) with the last run."""
        sweep, size = self.group.sweep, self.part if size is None else size
        padded = [*members, *[members[-1]] * (size - len(members))]
        dtype = jax.dtypes.canonicalize_dtype(float)  # not of an array, which would wait for the device
        seeds = np.stack([seed_words(sweep.seeds[m[-1]]) for m in padded])
        hypers = [self.group.choice.case(sweep.hyper_at(m[:-2])) for m in padded]
        hyper = jax.tree.map(lambda *leaves: np.asarray(leaves, dtype), *hypers)
        points = [sweep.optimizer_points[m[-2]][2] for m in padded]
        floats = {name: np.asarray([p[name] for p in points], dtype) for name in self.group.floats}
        degrees = np.asarray([self.group.degree(m[-2]) for m in padded], dtype)
        return Arguments(seeds, hyper, floats, degrees)


def _functions(group: Group, tape: Tape | None, mesh: jax.sharding.Mesh) -> Functions:
    """The functions of a group's programs: those of an earlier sweep where they compute the same.

    JAX keeps what it has traced and compiled with the function, so an equal program is neither traced nor compiled
    again in this process. A program that reaches a user's function is always traced anew, since what that function
    reads may have changed; its compiled code is found in the cache of `jaxsign.compilation` if nothing has.
    """
    sweep, mode, static = group.sweep, group.choice.mode, dict(group.static)
    loop = Loop(
        mode, group.factory, sweep.observables, scalars=True, trainable=sweep.trainable, levels=sweep.crossed, tape=tape
    )  # fmt: skip
    recorded = tuple(sweep.schedule.record.tolist()) if sweep.summary is not None else ()
    key = content(
        mode, group.factory, static, sweep.observables, sweep.trainable, sweep.crossed, sweep.trajectory,
        sweep.summary, recorded,
    )  # fmt: skip
    if key is None:
        return _jitted(loop, static, sweep.summary, recorded, mesh)
    known = _KNOWN.pop((key, mesh), None) or _jitted(loop, static, sweep.summary, recorded, mesh)
    _KNOWN[key, mesh] = known  # the one that was used last stands last
    while len(_KNOWN) > KEPT:
        del _KNOWN[next(iter(_KNOWN))]
    return known


#: Programs that this process keeps, and how many: as many as a large sweep over static axes has groups.
_KNOWN: dict[tuple[Hashable, jax.sharding.Mesh], Functions] = {}
KEPT = 64


def _jitted(
    loop: Loop, static: Mapping[str, Any], summary: Callable | None, record: Sequence[int], mesh: jax.sharding.Mesh
) -> Functions:
    """The functions of a program, jitted for the devices of a mesh."""
    recorded, task = jnp.asarray(np.asarray(record, np.int32)), loop.mode.task

    def init(seed: jax.Array, start: Start, hyper: Any, floats: dict[str, jax.Array]) -> State:
        return loop.init(_key(seed), start, hyper, {**static, **floats})

    def advance(seeds: Any, start: Start, hyper: Any, floats: Any, state: State, stops: Stops) -> Any:
        def one(seed: Any, start: Start, hyper: Any, floats: Any, state: State) -> Any:
            return loop.advance(_key(seed), start, hyper, {**static, **floats}, state, stops)

        return jax.vmap(one)(seeds, start, hyper, floats, state)

    def summarise(constants: dict[str, jax.Array], trace: dict[str, jax.Array]) -> dict[str, jax.Array]:
        assert summary is not None
        return outputs("summary", summary({**constants, **trace, "step": recorded}))

    def project(start: Start, trained: Any) -> Any:
        assert task.reduction.project is not None
        return task.reduction.project(loop.merged(start, trained), start.data)

    options = compiler_options(mesh.devices.flat[0].platform)

    def compiled(function: Callable, *specs: Any, on: Sequence[int] = (), donate: Any = ()) -> jax.stages.Wrapped:
        """`on`: the arguments that are on the devices. Their sharding must be given: XLA would choose another one
        for an argument that the program does not use, and then refuse ours. Host arrays must not get one.
        """
        shardings = tuple(NamedSharding(mesh, spec) if i in on else None for i, spec in enumerate(specs))
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=RUNS, check_vma=False)
        return jax.jit(mapped, in_shardings=shardings, compiler_options=options, donate_argnums=donate)

    return Functions(
        compiled(jax.vmap(init), *[RUNS] * 4, on=(1,)),
        compiled(advance, *[RUNS] * 5, ALL, on=(1, 4), donate=(4,)),
        compiled(jax.vmap(summarise), RUNS, RUNS),
        compiled(jax.vmap(project), RUNS, RUNS, on=(0, 1)),
    )


class Compiled(NamedTuple):
    """A group's programs, compiled or being compiled, and the shapes of their results.

    Args:
      program: the group's Program.
      begin, init, advance: futures of the compiled programs; None where they are only traced. `begin` draws
        `program.drawn` runs, the others take a part.
      summarise: the same; None also without a summary.
      start: abstract Start of the runs that one call of `begin` draws.
      state: abstract State of a part's runs.
      rows: {observable: abstract array} of one run's record, without padding.
      results: {name: abstract array} of one run's results, without padding.
    """

    program: Program
    begin: Future | None
    init: Future | None
    advance: Future | None
    summarise: Future | None
    start: Start
    state: Any
    rows: dict[str, Any]
    results: dict[str, Any]

    def ready(self, seconds: float) -> bool:
        """Whether `begin`, `init` and `advance` are compiled, waiting for them for some seconds at most."""
        pending = [future for future in (self.begin, self.init, self.advance) if future is not None]
        return not futures.wait(pending, seconds).not_done

    def wait(self) -> tuple[Callable, Callable, Callable]:
        """The compiled `begin`, `init` and `advance`, as soon as all of them are compiled."""
        assert self.begin and self.init and self.advance, "the programs are only traced"  # noqa: PT018
        return self.begin.result(), self.init.result(), self.advance.result()


class Compiler:
    """Compiles ahead in two threads, while other programs are traced and while they run.

    Groups that differ in numbers only, such as those of an n-axis in feature space, share their programs.

    Args:
      compile: False only traces the programs.
      log: counts programs and seconds; None: one of its own.
    """

    def __init__(self, compile: bool = True, log: CompileLog | None = None) -> None:
        self.log = log or CompileLog()
        self.threads = ThreadPoolExecutor(max_workers=2) if compile else None
        self.starts: dict[Any, tuple[Any, Future | None]] = {}
        self.rest: dict[Any, tuple] = {}

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Ends the threads; after an interruption without waiting for the programs that are being compiled."""
        if self.threads is None:
            return
        interrupted = isinstance(error, KeyboardInterrupt)
        self.threads.shutdown(wait=not interrupted, cancel_futures=True)
        if interrupted:
            abandon(self._submitted())
            self.threads = None

    def wait(self) -> None:
        """Returns as soon as everything that was traced is compiled."""
        futures.wait(self._submitted())

    def _submitted(self) -> list[Future]:
        """Everything that was handed to the threads."""
        everything = [f for _, f in self.starts.values()] + [f for entry in self.rest.values() for f in entry[:3]]
        return [future for future in everything if future is not None]

    @staticmethod
    def key(program: Program) -> tuple[Any, ...]:
        """Groups with equal keys share their programs."""
        return program.group.program_key, program.width, program.slots

    def _submit(self, traced: jax.stages.Lowered, key: Hashable, family: str) -> Future | None:
        """Has a traced program compiled, unless programs are only traced."""
        if self.threads is None:
            return None

        def compile() -> jax.stages.Compiled:
            with self.log.working(key, family, submitted=True):
                return traced.compile()

        self.log.submitted(key)
        return self.threads.submit(compile)

    def compile(self, program: Program) -> Compiled:
        """Traces a group's programs and has them compiled."""
        with self.log.working(self.key(program), program.group.family), collecting_later():
            return self._compile(program)

    def _compile(self, program: Program) -> Compiled:
        group, mesh, key = program.group, program.mesh, self.key(program)
        submit = functools.partial(self._submit, key=key, family=group.family)
        sweep = group.sweep
        if group.task not in self.starts:
            drawn = program.arguments([group.first_run], program.drawn)
            traced = program.begin.lower(drawn.seeds, drawn.hyper, drawn.degrees, sweep.shared)
            self.starts[group.task] = traced.out_info, submit(traced)
        drawn_start, begin = self.starts[group.task]
        if key not in self.rest:
            sharding = NamedSharding(mesh, RUNS)
            start = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((program.part, *x.shape[1:]), x.dtype, sharding=sharding), drawn_start
            )
            seeds, hyper, floats, _ = program.arguments([group.first_run])
            initial = program.init.lower(seeds, start, hyper, floats)
            state = initial.out_info
            advance = program.advance.lower(seeds, start, hyper, floats, state, no_stops(program.slots))
            compiling = [submit(advance), submit(initial)]
            total = sweep.schedule.record.size
            rows = {
                name: jax.ShapeDtypeStruct((x.shape[0], total, *x.shape[2:]), x.dtype)
                for name, x in advance.out_info[1].items()
            }
            summary = program.summarise.lower(start.constants, rows) if sweep.summary else None
            last = {"status": jax.ShapeDtypeStruct((program.part,), np.int8), "first_bad_step": state.bad}
            results = disjoint(
                rows if sweep.keep_trace else {}, summary.out_info if summary else {}, state.rang, advance.out_info[2],
                start.constants, last,
            )  # fmt: skip
            compiling.append(submit(summary) if summary else None)
            self.rest[key] = (*compiling, state, rows, results)
        advance, init, summarise, state, rows, results = self.rest[key]

        def unpadded(arrays: Mapping[str, Any], leading: int) -> dict[str, Any]:
            """The arrays of one run: without leading dimensions, and without the padding of a larger program."""
            one = {name: jax.ShapeDtypeStruct(x.shape[leading:], x.dtype) for name, x in arrays.items()}
            return {name: unpadded_shape(group, name, info) for name, info in one.items()}

        return Compiled(
            program, begin, init, advance, summarise, drawn_start, state, unpadded(rows, 2), unpadded(results, 1)
        )


def no_stops(slots: int) -> Stops:
    """Stops that do nothing, for tracing and padding."""
    zeros, off = np.zeros(slots, np.int32), np.zeros(slots, bool)
    return Stops(zeros, zeros, off, off, off)


def joined(parts: Sequence[Any], count: int) -> Any:
    """The arrays of all parts on the host, copied, without the padding of the last one; a typed key stays a key."""

    def whole(*arrays: Any) -> Any:
        if jax.dtypes.issubdtype(arrays[0].dtype, jax.dtypes.prng_key):
            words: Any = np.concatenate([np.asarray(jax.random.key_data(x)) for x in arrays])[:count]
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(arrays[0]))
        return np.concatenate([np.asarray(x) for x in arrays])[:count]

    return jax.tree.map(whole, *parts)


def disjoint(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The union of a run's results.

    Raises:
      ValueError: if two of them have the same name.
    """
    names = [name for part in parts for name in part]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"results must have different names, got {name!r} twice (observables, summary, constants)")
    return {name: value for part in parts for name, value in part.items()}


def drawing(task: Task, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """The jitted `(seeds, hyper, degrees, shared) -> Start` of a block.

    It is cached for this package's own systems only: a user's functions may read globals that have changed since.
    """
    cacheable = packaged(task.sample, task.sample_test, task.init, task.prepare, task.describe)
    return _cached_drawing(task, mesh) if cacheable else _drawing(task, mesh)


def _drawing(task: Task, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """`drawing`, uncached. It draws one run after the other, since compiling draws under vmap takes longer."""

    def block(seeds: jax.Array, hyper: Any, degrees: jax.Array, shared: Any) -> Start:
        return jax.lax.map(lambda args: begin(task, _key(args[0]), args[1], shared, args[2]), (seeds, hyper, degrees))

    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=(RUNS, RUNS, RUNS, ALL), out_specs=RUNS, check_vma=False))


_cached_drawing = functools.lru_cache(maxsize=32)(_drawing)


def _key(words: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(words, impl="threefry2x32")

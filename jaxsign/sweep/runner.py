"""The block loop: plan, compile one program a group, run box after box, write results."""

import dataclasses
import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from jaxsign.compilation import compiler_options
from jaxsign.labelled import RUN_VARIABLES, base_coordinates, coordinates, manifest_text, own_dims
from jaxsign.rng import seed_words
from jaxsign.start import Start, begin
from jaxsign.store import results
from jaxsign.sweep import plan
from jaxsign.sweep.definition import content_hash, definition, differences
from jaxsign.sweep.grid import Sweep
from jaxsign.task import Task
from jaxsign.training import make_train, observers


def run_sweep(sweep: Sweep, out: str | os.PathLike | None = None) -> Any:
    """Runs every run of a sweep and returns one labelled Dataset.

    Static axes and optimizer families are grouped and compiled once per value; everything else is mapped. Runs go in
    blocks over all local devices, so memory is bounded by the block and not by the grid.

    Args:
      sweep: a Sweep.
      out: results directory, new, empty, or holding this very definition (then it is loaded); None keeps the results
        in memory.

    Returns:
      xarray.Dataset with dims (axes in order, optimizer, seed, step, the observable's own), lazy when `out` is given.
      attrs["manifest"] is the manifest as JSON text.

    Raises:
      ValueError: if `out` is not writable or belongs to another definition; nothing is written then.

    Examples:
      >>> import jaxsign as js
      >>> ds = js.run_sweep(js.Sweep(
      ...     system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-4, 1e-3])},
      ...     axes={"snr": [0.1, 1.0], "seed": 3}, steps=20))
      >>> dict(ds["train_loss"].sizes)
      {'snr': 2, 'optimizer': 2, 'seed': 3, 'step': 3}
    """
    if not isinstance(sweep, Sweep):
        raise ValueError(f"sweep must be a js.Sweep, got {type(sweep).__name__}")
    if out is None:
        arrays, manifest = _run(sweep, None, {"definition": _definition_or_none(sweep)})
        ds = arrays.memory_dataset().assign_coords(base_coordinates(sweep))
        ds.attrs["manifest"] = manifest_text(manifest)
        return ds
    path = results.directory(out)
    named = definition(sweep)
    stored = results.read_manifest(path) if path.exists() else None
    if stored is not None:
        changed = differences(stored["definition"], named)
        if changed:
            raise ValueError(f"out={str(path)!r} belongs to another definition: {'; '.join(changed)}")
        print(f"{path}: finished before, loaded", file=sys.stderr)
        return results.open_results(path)
    with results.unfinished(path) as partial:
        _, manifest = _run(sweep, partial, {"definition": named, "hash": content_hash(named)})
        results.finish(path, manifest)
    return results.open_results(path)


def _definition_or_none(sweep: Sweep) -> dict[str, Any]:
    """The definition for the manifest of an in-memory sweep, where lambdas are welcome."""
    try:
        return definition(sweep)
    except ValueError as reason:
        fields = {"problem": sweep.problem, "hyper": sweep.hyper}
        return {"not_storable": str(reason), **{k: getattr(v, "__dict__", None) for k, v in fields.items()}}


def _run(sweep: Sweep, path: Path | None, manifest: dict[str, Any]) -> tuple[results.Arrays, dict[str, Any]]:
    """Runs the whole grid into arrays in memory (path None) or at `path`; returns them and the manifest."""
    from tqdm import tqdm

    started = time.time()
    groups = plan.groups(sweep)
    sizes = [plan.run_bytes(g, sweep.hyper_at(_first_index(sweep, g)), sweep) for g in groups]
    extents = plan.chunk_shape(sweep, len(groups), max(map(sum, sizes)))
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("run",), axis_types=(AxisType.Auto,), devices=devices)
    programs = []
    for group, (_, state) in zip(groups, sizes):
        # Two lanes a block at least, for two devices.
        width = min(plan.lane_width(state, devices[0].platform), max(1, int(np.prod(extents)) // 2))
        programs.append(Program(sweep, group, width, mesh))
    block = int(np.prod(extents))
    statuses: list[np.ndarray] = []
    pending: list[tuple[plan.Group, plan.Box, Any]] = []

    def collect() -> None:
        group, box, out = pending.pop(0)
        host = jax.device_get(out)
        count = len(box.members())
        for name, value in host.items():
            value = value[:count][group.kept(name, value[:count].shape)]
            arrays.write(name, box.slices, value.reshape(*box.shape, *value.shape[1:]))
        statuses.append(host["status"][:count])
        bar.update(count)

    # Two threads compile ahead, while programs are traced and while they run.
    with ThreadPoolExecutor(max_workers=2) as compiler:
        compiled, shapes = _compile_ahead(programs, block, compiler)
        variables, notes = _variables(sweep, groups, shapes, extents)
        coords = coordinates(sweep)
        for dim, size in _own_sizes(variables).items():
            coords.setdefault(dim, ((dim,), np.arange(size), {}))
        arrays = results.Arrays(variables, coords, path)
        # disable=None: the bar is drawn on a terminal only.
        with tqdm(total=sweep.size, unit="run", disable=None, leave=False, dynamic_ncols=True) as bar:
            for program, group, (starting, training) in zip(programs, groups, compiled):
                bar.set_description(f"{group.family}: compiling")
                begin_runs, train_runs = starting.result(), training.result()
                bar.set_description(group.family)
                for box in plan.boxes(sweep, group, extents):
                    # Dispatched before the last block is fetched.
                    pending.append((group, box, program.run(begin_runs, train_runs, box, block)))
                    if len(pending) > 1:
                        collect()
                while pending:
                    collect()
    done = np.concatenate(statuses)
    diverged = int((done == 1).sum())
    if diverged:
        print(f"{diverged} of {done.size} runs diverged; their traces are NaN from first_bad_step on", file=sys.stderr)
    manifest |= {
        **_environment(),
        "wall_seconds": round(time.time() - started, 3),
        "runs": {"total": int(done.size), "finished": int((done == 0).sum()), "diverged": diverged},
        "plan": {
            "block": list(extents),
            "devices": len(devices),
            "groups": [_summary(group, program) for group, program in zip(groups, programs)],
        },
        "base": base_coordinates(sweep),
        "padded": notes,
    }  # fmt: skip
    return arrays, manifest


def _compile_ahead(
    programs: list["Program"], block: int, compiler: ThreadPoolExecutor
) -> tuple[list[tuple[Future, Future]], list[dict[str, Any]]]:
    """(the two programs of each group, being compiled; the shapes of its results).

    Groups that differ in numbers only, such as those of an n-axis in feature space, share their programs.
    """
    starting: dict[Task, tuple[Any, Future]] = {}
    training: dict[Any, tuple[Any, Future]] = {}
    compiled, shapes = [], []
    for program in programs:
        group, key = program.group, (program.group.program_key, program.width)
        if group.task not in starting:
            traced = program.lower_begin(block)
            starting[group.task] = traced.out_info, compiler.submit(traced.compile)
        start, beginning = starting[group.task]
        if key not in training:
            traced = program.lower(block, start)
            training[key] = traced.out_info, compiler.submit(traced.compile)
        compiled.append((beginning, training[key][1]))
        shapes.append({name: _cut(group, name, info) for name, info in training[key][0].items()})
    return compiled, shapes


def _cut(group: plan.Group, name: str, info: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a result without a larger program's padding."""
    return jax.eval_shape(lambda x: x[group.kept(name, x.shape)], jax.ShapeDtypeStruct(info.shape, info.dtype))


def _summary(group: plan.Group, program: "Program") -> dict[str, Any]:
    """How a group was run, for the manifest."""
    return {
        "family": group.family, "task": group.fit.task.name, "passed_over": group.fit.why, "compact": group.fit.compact,
        "lane_width": program.width, "optimizers": len(group.optimizers), "signs_only": group.fit.signs,
        "degrees": [dataclasses.asdict(found) for found in group.fit.degrees],
        "fixed": {str(k): v for k, v in group.fixed.items()},
    }  # fmt: skip


def _first_index(sweep: Sweep, group: plan.Group) -> tuple[int, ...]:
    return tuple(group.fixed.get(i, 0) for i in range(len(sweep.grid_axes)))


class Program:
    """The compiled programs of one group: a block of runs in, flat results out.

    Two programs: one starts the runs (shared by all groups of a task), one trains them.

    Args:
      sweep: the sweep.
      group: its group.
      width: runs that one lane maps together.
      mesh: local devices as a mesh with the axis "run"; lanes are dealt out to them in order.
    """

    def __init__(self, sweep: Sweep, group: plan.Group, width: int, mesh: jax.sharding.Mesh):
        self.sweep, self.group, self.width = sweep, group, width
        self.quantum = width * mesh.size
        train = make_train(
            group.task, group.factory, sweep.schedule, observables=sweep.observables, scalars=True,
            trainable=sweep.trainable, compact=group.fit.compact, decays=group.fit.decays, signs=group.fit.signs,
            summary=sweep.summary, keep_trace=sweep.keep_trace, keep_params=False,
        )  # fmt: skip
        static = dict(group.static)

        def one(seed: jax.Array, start: Start, hyper: Any, floats: dict[str, jax.Array]) -> dict[str, Any]:
            out = train(_key(seed), start, hyper, {**static, **floats})
            last = {"status": out["status"], "first_bad_step": out["first_bad_step"]}
            return _disjoint(out["trace"], out["summary"], out["watch"], start.constants, last)

        def lanes(*block: Any) -> dict[str, Any]:
            cut = jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), block)
            out = jax.lax.map(lambda lane: jax.vmap(one)(*lane), cut)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

        runs = PartitionSpec("run")
        mapped = jax.shard_map(lanes, mesh=mesh, in_specs=runs, out_specs=runs, check_vma=False)
        self.train = jax.jit(mapped, compiler_options=compiler_options(mesh.devices.flat[0].platform))
        self.begin = _begin(group.task, mesh)

    def arguments(self, members: list[tuple[int, ...]], block: int) -> tuple[Any, Any, Any, Any]:
        """(seeds' key data, hyper, optimizer floats, degrees) of a block's runs, padded with its last run."""
        padded = members + [members[-1]] * (-(-block // self.quantum) * self.quantum - len(members))
        dtype = jnp.zeros(()).dtype
        seeds = np.stack([seed_words(self.sweep.seeds[m[-1]]) for m in padded])
        hypers = [self.group.fit.case(self.sweep.hyper_at(m[:-2])) for m in padded]
        hyper = jax.tree.map(lambda *leaves: np.asarray(leaves, dtype), *hypers)
        points = [self.sweep.optimizer_points[m[-2]][2] for m in padded]
        floats = {name: np.asarray([p[name] for p in points], dtype) for name in self.group.floats}
        degrees = np.asarray([self.group.degree(m[-2]) for m in padded], dtype)
        return seeds, hyper, floats, degrees

    def _some_arguments(self, block: int) -> tuple[Any, Any, Any, Any]:
        return self.arguments([(*_first_index(self.sweep, self.group), self.group.optimizers[0], 0)], block)

    def lower_begin(self, block: int) -> Any:
        """The starting program traced for blocks of this many runs; it is the same for all groups of a task."""
        seeds, hyper, _, degrees = self._some_arguments(block)
        return self.begin.lower(seeds, hyper, degrees, self.sweep.shared)

    def lower(self, block: int, start: Start) -> Any:
        """The training program traced for such blocks; `start` and `.out_info` have shapes of its input and results."""
        seeds, hyper, floats, _ = self._some_arguments(block)
        return self.train.lower(seeds, start, hyper, floats)

    def run(self, begin_runs: Callable, train_runs: Callable, box: plan.Box, block: int) -> dict[str, jax.Array]:
        """Starts a block with the compiled programs; returns at once with arrays on the devices."""
        seeds, hyper, floats, degrees = self.arguments(box.members(), block)
        return train_runs(seeds, begin_runs(seeds, hyper, degrees, self.sweep.shared), hyper, floats)


def _disjoint(*parts: dict[str, Any]) -> dict[str, Any]:
    """The union of a run's results.

    Raises:
      ValueError: if two of them have the same name.
    """
    names = [name for part in parts for name in part]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"results must have different names, got {name!r} twice (observables, summary, constants)")
    return {name: value for part in parts for name, value in part.items()}


@functools.lru_cache(maxsize=32)
def _begin(task: Task, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """The jitted `(seeds, hyper, degrees, shared) -> Start` of a block; one run after the other, since compiling draws
    under vmap takes longer than drawing.
    """

    def block(seeds: jax.Array, hyper: Any, degrees: jax.Array, shared: Any) -> Start:
        return jax.lax.map(lambda args: begin(task, _key(args[0]), args[1], shared, args[2]), (seeds, hyper, degrees))

    runs = PartitionSpec("run")
    specs = (runs, runs, runs, PartitionSpec())
    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=runs, check_vma=False))


def _key(words: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _variables(
    sweep: Sweep, groups: list[plan.Group], shapes: list[dict[str, Any]], extents: tuple[int, ...]
) -> tuple[dict[str, tuple], dict[str, str]]:
    """{name: (dims, shape, dtype, fill, chunks, attrs)} of the results, and notes on padded ones.

    A static axis that changes an observable's length pads it with NaN to the longest.
    """
    task = groups[0].task
    known = dict.fromkeys(name for found in shapes for name in found)
    # Constants, summaries, alarms and the status have no step dimension.
    hyper = sweep.hyper_at(_first_index(sweep, groups[0]))
    traces = observers(task, groups[0].start, groups[0].fit.case(hyper), sweep.observables, scalars=True)[0]
    per_run = set(known) - (set(traces) if sweep.keep_trace else set())
    out, notes = {}, {}
    for name in known:
        found = [s[name] for s in shapes if name in s]
        own = {f.shape[1:] for f in found}
        if len({len(shape) for shape in own}) > 1:
            raise ValueError(f"observable {name!r} changes its rank along a static axis")
        longest = tuple(map(max, zip(*own))) if own != {()} else ()
        dims: tuple[str, ...] = () if name in per_run else ("step",)
        dims = (*sweep.dims, *dims, *own_dims(name, len(longest) - len(dims), task.dims))
        dtype = np.dtype(found[0].dtype)
        fill = RUN_VARIABLES[name][1] if name in RUN_VARIABLES else (np.nan if dtype.kind == "f" else -1)
        attrs = dict(RUN_VARIABLES[name][2] if name in RUN_VARIABLES else task.attrs.get(name, {"long_name": name}))
        if len(own) > 1:
            notes[name] = attrs["padded"] = "padded with NaN to the longest value of a static axis"
        out[name] = (dims, (*sweep.shape, *longest), dtype, fill, (*extents, *longest), attrs)
    return out, notes


def _own_sizes(variables: dict[str, tuple]) -> dict[str, int]:
    return {dim: size for dims, shape, *_ in variables.values() for dim, size in zip(dims, shape)}


def _environment() -> dict[str, Any]:
    """Where and with what a sweep ran: versions, device, dtype, precision, flags."""
    device = jax.local_devices()[0]
    versions: dict[str, str | None] = {
        name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "orbax-checkpoint")
    }
    versions["jaxsign"] = _own_version()
    return {
        "versions": {"python": platform.python_version(), **versions, "commit": _commit()},
        "device": {"platform": device.platform, "kind": device.device_kind},
        "dtype": np.dtype(jnp.zeros(()).dtype).name,
        "matmul_precision": "highest",
        "flags": {"XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "x64": jnp.zeros(()).dtype == jnp.float64},
        "compiler_options": compiler_options(device.platform),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    """The git commit of this code, None where there is no git or no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def _own_version() -> str | None:
    try:
        return metadata.version("jaxsign")
    except metadata.PackageNotFoundError:
        return None

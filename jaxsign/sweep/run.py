"""run_sweep: runs a sweep here, in shards or on a cluster, and loads it if it is finished."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxsign.compilation import kept_on_disk, start_on_every_core, undisturbed
from jaxsign.store import files, locks, results
from jaxsign.store.environment import environment
from jaxsign.store.labels import attributes, base_coordinates, coordinates
from jaxsign.store.manifest import inspect_manifest, read_manifest, restore
from jaxsign.store.results import Memory
from jaxsign.sweep.execute import Blocks, retry_on_oom
from jaxsign.sweep.identity.definition import content_hash, definition
from jaxsign.sweep.identity.match import Match, compare, fingerprints
from jaxsign.sweep.identity.versions import other_versions
from jaxsign.sweep.layout import requested_runs
from jaxsign.sweep.plan import Limits, Plan
from jaxsign.sweep.programs import Compiler
from jaxsign.sweep.progress import Progress, listening
from jaxsign.sweep.sweep import Sweep
from jaxsign.sweep.tasks import check_tasks, say_if_below, say_if_seeds_agree, say_if_unused
from jaxsign.sweep.worker import Session, Shard, compile_entries, count_statuses, has_work_left
from jaxsign.validation.messages import occupy_closed_streams, say
from jaxsign.validation.values import positive_int

if TYPE_CHECKING:
    import xarray as xr


@undisturbed()
@kept_on_disk()
@jax.disable_jit(False)
def run_sweep(
    sweep: Sweep,
    out: str | os.PathLike | None = None,
    *,
    shard: Shard | str | None = None,
    scheduler: str | None = None,
    memory: int | None = None,
    lane_width: int | None = None,
    checkpoint_every: float = 60.0,
    accept: str | None = None,
    wait_for_workers: float = 300.0,
    links: Sequence[str] = (),
    progress: bool = True,
) -> "xr.Dataset":
    """Runs every run of a sweep that is not stored yet and returns one labelled Dataset.

    Static axes and optimizer families are grouped and compiled once per value; everything else is mapped. Runs go in
    blocks over all local devices, so memory is bounded by the block and not by the grid. With `out`, the same call
    resumes an interrupted sweep and loads a finished one. A definition with more values on an axis, more seeds or
    another optimizer extends the stored one, and a definition with fewer loads a part of it. Any other change is
    refused. Functions are compared by what they compute: comments, formatting, names and files do not matter. SIGINT,
    SIGTERM, SIGHUP, SIGUSR1 and SIGXCPU end it after the steps under way; a program that is compiled is not waited for.

    On a CPU JAX starts with one device per core, two at least, if this call is what starts it. Where it has started
    before, with one device, one core trains, and the display says so; `jax.config.update("jax_num_cpu_devices", N)`
    before the first array, or the environment variable JAX_NUM_CPU_DEVICES, sets another number. No bit of a run
    depends on it, but one device may round otherwise than several.

    Args:
      sweep: a Sweep.
      out: results directory, new, empty, or holding this definition or a part of its grid; None keeps the results in
        memory.
      shard: (index, count): run only the blocks b = index mod count, beside other processes in the same `out`; "auto"
        takes both from `jax.distributed`, which it starts if need be.
      scheduler: address of a Dask scheduler, such as `"tcp://node1:8786"`: its workers, which see the same `out`, run
        the blocks as tasks; a block whose worker dies is run by another one. Needs the extra `cluster`.
      memory: bytes that the runs of one call may take together; default 256 MiB on a CPU, half of the memory of any
        other device. The value of the first call is stored in the directory and kept.
      lane_width: runs that one vmap holds, int >= 1; by default as many as fit a core's cache, or the fastest width if
        the sweep is long enough to measure it. The value of the first call is stored in the directory and kept, since
        another width rounds differently.
      checkpoint_every: seconds between checkpoints of the runs under way, > 0.
      accept: reason, in words, for which a change of code is accepted: stored runs stay, and missing ones are run with
        the code as it is now. The manifest records the reason, the difference and the date. A change of values cannot
        be accepted.
      wait_for_workers: seconds for which a scheduler may be without workers, at the beginning or later, > 0.
      links: "trajectories" or "checkpoints" if that folder of `out` is a link to another disk. The manifest records
        the target, so that `links` is given only once; any other link in `out` is refused.
      progress: whether to show on stderr what is planned, compiled and trained, with counts and times: as a bar on a
        terminal and in a notebook (a widget if ipywidgets is installed), elsewhere in lines, the first within a second
        and then ever more seldom, down to one a minute; and in a last line about the whole. False: only messages.

    Returns:
      xarray.Dataset with dims (axes in order, optimizer, seed, step, the observable's own), lazy when `out` is given.
      attrs["manifest"] is the manifest as JSON text. Runs of other shards that have not run have status -1.

    Raises:
      ValueError: if `out` is not writable, belongs to another definition or is being run by another process, or the
        scheduler does not answer; nothing is written then. Also if a scheduler or all its workers are lost.
      UnusableData: if `out` is damaged so that a run cannot mend it, or contains a link that was not allowed, or if it
        was moved, removed, begun anew or extended by others while it ran.
      Exception: any exception of the system, the optimizers or the observed functions, unchanged.
      KeyboardInterrupt: after such a signal; finished runs are stored, and the same call resumes the others.

    Examples:
      >>> import jaxsign as js
      >>> ds = js.run_sweep(js.Sweep(
      ...     system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-4, 1e-3])},
      ...     axes={"snr": [0.1, 1.0], "seed": 3}, steps=20, record=10))
      >>> dict(ds["train_loss"].sizes)
      {'snr': 2, 'optimizer': 2, 'seed': 3, 'step': 3}
    """
    if not isinstance(sweep, Sweep):
        raise ValueError(f"sweep must be a js.Sweep, got {type(sweep).__name__}")
    occupy_closed_streams()
    limits = Limits(memory, lane_width, checkpoint_every)
    if not 0 < wait_for_workers < math.inf:
        raise ValueError(f"wait_for_workers must be > 0 seconds, got {wait_for_workers!r}")
    if not isinstance(progress, bool):
        raise ValueError(f"progress must be True or False, got progress={progress!r}")
    start_on_every_core()
    check_tasks(sweep)
    say_if_seeds_agree(sweep)
    say_if_unused(sweep)
    with Progress(sweep.size, sweep.schedule.steps, quiet=not progress) as shown:
        if out is None:
            _refuse_without_out(sweep, shard, scheduler, accept, links)
            ds = _in_memory(sweep, limits, shown)
        else:
            ds = _in_directory(
                sweep, out, shard, scheduler, limits, _reason(accept), wait_for_workers, links, shown
            )  # fmt: skip
    say_if_below(ds)
    return ds


def _in_directory(
    sweep: Sweep, out: str | os.PathLike, shard: Any, scheduler: str | None, limits: Limits, accept: str | None,
    wait_for_workers: float, links: Sequence[str], progress: Progress,
) -> "xr.Dataset":  # fmt: skip
    """Runs what is missing in a results directory, and opens it."""
    links = (links,) if isinstance(links, str) else tuple(links)
    path, checked_shard = files.directory(out, links), check_shard(shard)
    if scheduler is not None and checked_shard != (0, 1):
        raise ValueError(f"scheduler={scheduler!r} shares the blocks out itself: leave shard={shard!r} away")
    stored, damage = inspect_manifest(path)
    allowed = files.links_of(path, stored, links)
    if stored and not links:
        files.refuse_links(path, stored)
    sweep = sweep.at_cadence_of(stored["definition"]) if stored else sweep
    # Refused before anything is written, loaded without a lock if no work is left.
    computation = fingerprints(sweep, definition(sweep))
    match = compare(os.fsdecode(out), stored, sweep, accept, computation) if stored else None
    _mend_manifest(path, damage)
    if accept and not (match and match.changed):
        say(f"{path}: accept={accept!r} is not kept: no code differs from what is stored")
    if stored and match and allowed == stored.get("links", {}) and _is_complete(path, stored, match):
        _say_loaded(path, sweep, match, stored)
        return _opened(path, sweep, match)
    from jaxsign.sweep import cluster

    files.writable(path)
    if stored and match:
        _say_versions(path, stored, match)
    new_folders = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with files.explain_os_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with cluster.connected(scheduler) as client:
            match = _run_shard(
                sweep, path, checked_shard, limits, client, accept, computation, wait_for_workers, links, progress
            )  # fmt: skip
    except BaseException:
        for folder in new_folders:  # innermost first; one that holds something stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return _opened(path, sweep, match)


def _refuse_without_out(sweep: Sweep, shard: Any, scheduler: Any, accept: Any, links: Any) -> None:
    """Refuses arguments that need a results directory.

    Raises:
      ValueError: naming the argument.
    """
    if sweep.trajectory is not None:
        raise ValueError(f"trajectory={sweep.trajectory!r} needs out=: trajectories are kept on disk")
    if shard is not None or scheduler is not None:
        raise ValueError(f"shard={shard!r} and scheduler={scheduler!r} need out=: processes share results on disk")
    if accept is not None:
        raise ValueError(f"accept={accept!r} needs out=: it is about results that are stored")
    if links:
        raise ValueError(f"links={links!r} needs out=: it is about folders in it")


def _mend_manifest(path: Path, damage: Mapping[str, str]) -> None:
    """Reports damage of the manifest, and restores it from its copy if the directory is writable."""
    for line in damage.values():
        say(f"{line}: the other of its two files is taken")
    if damage and os.access(path, os.W_OK):
        with results.explain_os_errors(path), locks.manifest_lock(path):
            restore(path)


def _reason(accept: Any) -> str | None:
    """A reason in words, on one line.

    Raises:
      ValueError: if it has no words.
    """
    if accept is None:
        return None
    if not isinstance(accept, str) or not accept.strip():
        raise ValueError(f"accept must be the reason for a change in words, got accept={accept!r}")
    return " ".join(accept.split())


def _is_complete(path: Path, stored: Mapping[str, Any], match: Match) -> bool:
    """Whether every run of the sweep is stored, and the directory needs no change."""
    if match.changed or match.grown(stored):
        return False
    return not has_work_left(path, stored, requested_runs(match.order) if match.part else None)


def _say_loaded(path: Path, sweep: Sweep, match: Match, stored: Mapping[str, Any]) -> None:
    """One line on stderr for results that are loaded without running anything."""
    loaded = "loaded"
    if match.part:
        loaded = f"loaded in part: {sweep.size} of {math.prod(map(len, stored['order']))} runs"
    mixed = [f"runs before {note['date']} are of other code: {note['reason']}" for note in stored.get("accepted", ())]
    say("; ".join([f"{path}: finished before, {loaded}", *mixed]))


def _say_versions(path: Path, stored: Mapping[str, Any], match: Match) -> None:
    """One line on stderr if results of other versions are continued."""
    here = environment()
    others = other_versions(stored, here["versions"], here["flags"])
    if others or match.notes:
        words = f"stored with other versions, gone on with: {', '.join(others)}" if others else ""
        words += "; equal within rounding, not to the bit" * bool(others)
        say(f"{path}: {'; '.join([words] * bool(words) + match.notes)}")


def _say_programs(sweep: Sweep) -> None:
    """One line on stderr for every optimizer with a number that cannot be traced."""
    for family, grid in sweep.grids.items():
        if grid.needed and grid.programs > 1:
            names = ", ".join(map(repr, grid.needed))
            say(
                f"optimizers[{family!r}]: its factory needs {names} in Python (a branch, float() or NumPy), so every "
                f"value is compiled on its own ({grid.programs} programs)"
            )


def _opened(path: Path, sweep: Sweep, match: Match | None) -> "xr.Dataset":
    """The results of a directory, lazily: all of them, or the runs of the sweep in its order if it is a part."""
    ds = results.open_dataset(path)
    if match is None or not match.part:
        return ds
    selection, stored = {}, read_manifest(path)
    assert stored is not None
    for dim, requested, order in zip(sweep.dims, match.order, stored["order"]):
        index = {i: order[place] for place, i in enumerate(requested) if i >= 0}
        selection[dim] = [index[i] for i in range(len(index))]
    ds = ds.isel(selection)
    ds = ds.drop_vars([name for name, c in ds.coords.items() if set(c.dims) & set(sweep.dims)])
    for name, (dims, values, attrs) in coordinates(sweep).items():
        ds = ds.assign_coords({name: (dims, values, attrs)})
    described = definition(sweep)
    manifest = {
        **stored, "definition": described, "hash": content_hash(described), "part_of": stored["hash"],
        "runs": count_statuses(ds["status"].values),
    }  # fmt: skip
    ds.attrs |= attributes(manifest)
    return ds


def check_shard(shard: Any) -> Shard:
    """(index, count) of a shard; the whole for None, this process's of `jax.distributed` for "auto".

    Examples:
      >>> check_shard("2/16"), check_shard((2, 16)), check_shard(None)
      ((2, 16), (2, 16), (0, 1))

    Raises:
      ValueError: unless 0 <= index < count, or if `jax.distributed` cannot be started.
    """
    if shard is None:
        return (0, 1)
    if shard == "auto":
        return _distributed()
    if isinstance(shard, str):  # as --shard has it
        index, _, count = shard.partition("/")
        if not (index.isdigit() and count.isdigit()):
            raise ValueError(f"shard must be I/N with 0 <= I < N, or auto, got {shard!r}")
        return check_shard((int(index), int(count)))
    if not (isinstance(shard, (tuple, list)) and len(shard) == 2):
        raise ValueError(f"shard must be (index, count), 'I/N' or 'auto', got {shard!r}")
    index, count = shard
    positive_int("shard count", count)
    if not 0 <= positive_int("shard index", index, minimum=0) < count:
        raise ValueError(f"shard must be I/N with 0 <= I < N, got {index}/{count}")
    return int(index), int(count)


def _distributed() -> Shard:
    """(process index, process count) of this job."""
    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"shard='auto' needs a job that jax.distributed knows (TPU pod, SLURM, ...), or one that has been "
                f"initialised: {' '.join(str(error).split())}; otherwise give shard=(index, count)"
            ) from None
    return jax.process_index(), jax.process_count()


def _run_shard(
    sweep: Sweep, path: Path, shard: Shard, limits: Limits, client: Any, accept: Any, computation: Any,
    patience: float, links: Sequence[str], progress: Progress,
) -> Match | None:  # fmt: skip
    """Runs one shard's missing blocks of a results directory, which is made or extended if need be.

    Returns how the sweep relates to the one that was stored before, None for a new directory.
    """
    from jaxsign.sweep import cluster

    started = time.time()
    with locks.shard_lock(path, shard) as held, listening() as stop:
        stop.preparing = True
        if held.gone:
            say(held.gone)
        session = Session(sweep, path, shard, held, limits, accept, computation, links, progress.log)
        try:
            with files.explain_os_errors(path):
                missing = session.missing()
            progress.expect(sum(int(runs.sum()) for runs in missing.values()))
            if missing:
                _say_programs(sweep)
            if client is None:
                session.run(missing, stop, progress)
            else:
                stop.preparing = False  # workers may train
                cluster.run(client, session, held, missing, stop, progress, patience)
        except KeyboardInterrupt as stopped:
            session.compiler.close(stopped)
            raise
        finally:
            session.close(time.time() - started)
    return session.match


def _in_memory(sweep: Sweep, limits: Limits, progress: Progress) -> "xr.Dataset":
    """Runs the whole grid into arrays in memory."""
    started = time.time()
    _say_programs(sweep)
    with listening(kept=False) as stop, Compiler(log=progress.log) as compiler:
        stop.preparing = True
        plan = Plan.new(sweep, limits, compiler=compiler)

        def attempt(runs: int) -> tuple[Memory, dict[str, str]]:
            sized = plan.with_call_size(runs)
            units = sized.units(sized.layout.all_runs())
            compiled = sized.compiled(units, compiler)
            variables, notes = sized.variables(compiled)
            size = sum(math.prod(v.shape) * v.dtype.itemsize for v in variables.values())
            if size > limits.capacity():
                raise ValueError(
                    f"out= is needed: the results take {size:,} bytes, this machine has {limits.capacity():,}"
                )
            sink = Memory(variables)
            progress.expect(sweep.size)
            threading.Thread(target=results.import_xarray, daemon=True).start()  # XLA compiles and trains meanwhile
            Blocks(sized.layout, sink, None, "", stop, progress, limits.checkpoint_every).run(units, compiled)
            return sink, notes

        sink, notes = retry_on_oom(attempt, plan.layout.runs)
    counts = count_statuses(sink.arrays["status"])
    ds = sink.dataset(plan.coordinates(sink.variables)).assign_coords(base_coordinates(sweep))
    manifest = {
        "definition": _definition_or_none(sweep), **environment(), "wall_seconds": round(time.time() - started, 3),
        **compile_entries(progress.log), "runs": counts, "padded": notes, "base": base_coordinates(sweep),
        "plan": plan.record(),
    }  # fmt: skip
    ds.attrs |= attributes(manifest)
    return ds


def _definition_or_none(sweep: Sweep) -> dict[str, Any]:
    """The definition for the manifest of an in-memory sweep, which may hold lambdas."""
    try:
        return definition(sweep)
    except ValueError as reason:
        fields = {"problem": sweep.problem, "hyper": sweep.hyper}
        return {"not_storable": str(reason), **{k: getattr(v, "__dict__", None) for k, v in fields.items()}}

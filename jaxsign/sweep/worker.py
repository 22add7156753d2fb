"""One process at work on a results directory: opens, extends or mends it, and trains its missing runs."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsign.store import checkpoints, files, locks, results, trajectory, watched
from jaxsign.store.environment import environment
from jaxsign.store.files import explain_os_errors
from jaxsign.store.labels import base_coordinates
from jaxsign.store.lease import Lease, Stale, identity
from jaxsign.store.manifest import begun_anew, check_fit, read_manifest, write_manifest
from jaxsign.store.results import Store, Variable
from jaxsign.sweep.compile_log import CompileLog
from jaxsign.sweep.execute import Blocks, retry_on_oom
from jaxsign.sweep.groups import make_groups
from jaxsign.sweep.identity.definition import content_hash, definition
from jaxsign.sweep.identity.match import Match, accepted, checkpoint_base, compare, fingerprints
from jaxsign.sweep.identity.versions import starts
from jaxsign.sweep.layout import BlockRuns
from jaxsign.sweep.plan import Limits, Plan
from jaxsign.sweep.programs import Compiled, Compiler
from jaxsign.sweep.progress import Progress, Stop
from jaxsign.sweep.recorder import check_recordable
from jaxsign.sweep.sweep import Sweep
from jaxsign.validation.messages import say

Shard = tuple[int, int]


class Joined(NamedTuple):
    """Tells a worker of a cluster which directory its driver has opened.

    Args:
      id: of the manifest.
      epoch: of the manifest.
      lock: name of the driver's lock.
      text: content of the lock as long as the driver holds it.
    """

    id: str | None
    epoch: int
    lock: str
    text: str


class Session:
    """A results directory opened for work: it is made, extended or mended if need be.

    Args:
      sweep: the sweep.
      path: results directory; it must exist.
      shard: (index, count).
      by: the shard's lock, which the caller holds; in a worker, the lock of its driver.
      limits: limits of the run.
      accept: reason for which changes of code are accepted, or None.
      computation: the sweep's `fingerprints`, if they are known.
      links: names of folders that the user allows to be links from now on.
      log: counts programs and the seconds that compiling takes; None: one of its own.

    Raises:
      ValueError: if the directory belongs to another definition, or cannot be written.
      Stale: if the caller's lock of the directory was lost.
      UnusableData: if the directory contains a link that nobody has allowed.
    """

    def __init__(
        self, sweep: Sweep, path: Path, shard: Shard, by: locks.Held | Joined, limits: Limits,
        accept: str | None = None, computation: Any = None, links: Sequence[str] = (), log: CompileLog | None = None,
    ):  # fmt: skip
        self.sweep, self.path, self.shard, self.accept = sweep, path, shard, accept
        self.computation, self.links = computation or fingerprints(sweep, definition(sweep)), links
        # Before the directory is locked, since this takes some seconds.
        self.groups = make_groups(sweep)
        check_recordable(self.groups)
        self.match: Match | None = None  # with the stored sweep
        self.compiler = Compiler(log=log)
        try:
            try:
                variables = self._locked(by, limits)
            except locks.Busy:
                locks.watch(path)  # without the manifest's lock, which live processes need
                variables = self._locked(by, limits)
        except BaseException as error:
            self.compiler.close(error)
            raise
        with explain_os_errors(path):
            self.store = Store(path, variables, owned=self.lease.writing)
        self.base = checkpoint_base(self._manifest())

    def _locked(self, by: locks.Held | Joined, limits: Limits) -> dict[str, Variable]:
        """Opens the directory while holding the manifest's lock; returns the variables of the store."""
        path = self.path
        with locks.manifest_lock(path):
            self._allow_links()
            stored = read_manifest(path)
            if isinstance(by, Joined):
                held = {path / locks.FOLDER / by.lock: by.text}
                if stored is None or identity(stored) != (by.id, by.epoch):
                    raise Stale(
                        f"out={str(path)!r} on {socket.gethostname()} is not the directory that the driver has opened: "
                        "workers must see the same file system, and a sweep that was begun anew is started again"
                    )
            elif reason := by.lost():
                raise Stale(f"out={str(path)!r} {reason} while this process started: start it again")
            variables = self._open(stored, limits)
            if self.links:  # of a new directory, which has its id by now
                self._allow_links()
            if isinstance(by, locks.Held):
                by.works_by(identity(self._manifest())[1])
                held = {by.file: by.text}
            self.lease = Lease(path, path / results.ARRAYS, held)
        return variables

    def _allow_links(self) -> None:
        """Records in the manifest which links the user has allowed, and refuses all others."""
        stored = read_manifest(self.path)
        with explain_os_errors(self.path):
            if stored is not None and (links := files.links_of(self.path, stored, self.links)):
                if links != stored.get("links") or "id" not in stored:
                    anew = {} if "id" in stored else begun_anew(stored)
                    stored = write_manifest(self.path, {**stored, **anew, "links": links})
                files.mark_links(self.path, stored, self.links)
            if stored is not None:
                files.refuse_links(self.path, stored)

    def _open(self, stored: dict[str, Any] | None, limits: Limits) -> dict[str, Variable]:
        """Makes the plan, and makes, extends or mends the store if need be; returns the variables of the store."""
        sweep, path = self.sweep, self.path
        if stored is None:
            self.plan = Plan.new(sweep, limits, self.groups, self.compiler)
            return self._write_store({"definition": definition(sweep), "computation": self.computation})
        self.match = match = compare(str(path), stored, sweep, self.accept, self.computation)
        self.plan = Plan.stored(sweep, stored, match.order, limits, self.groups, self.compiler)
        grown = match.grown(stored)
        # Those that have not read the manifest yet will work by the new one.
        if (grown or match.changed) and (busy := locks.others(path, self.shard, identity(stored)[1])):
            change = "extended" if grown else "changed"
            raise locks.Busy(f"out={str(path)!r} cannot be {change} while others run it: {'; '.join(busy)}")
        damaged = results.damaged_metadata(path, stored["crc32"])
        if not damaged:
            check_fit(stored, path / results.ARRAYS)
        if damaged and (grown or match.part or match.changed):
            raise results.UnusableData(f"{damaged[0]}; run the stored definition first, which mends it")
        entries = {"definition": match.definition, "computation": match.computation}
        if match.changed:
            entries |= self._accepted(stored, match)
        if grown or damaged:
            return self._write_store(entries, stored, match, bool(damaged))
        return self._keep_store(entries, stored, match)

    def _keep_store(self, entries: dict[str, Any], stored: dict[str, Any], match: Match) -> dict[str, Variable]:
        """Leaves the arrays as they are and brings the manifest up to date; returns the variables of the store."""
        path, variables = self.path, results.stored_variables(self.path)
        if match.changed:
            self._check_variables(variables)
        if match.changed or ("computation" not in stored and not match.part):
            record = {**stored, **entries, "hash": content_hash(match.definition)}
            if not match.part:  # points are written as in the definition
                record["plan"] = {**self.plan.record(), "memory": stored["plan"]["memory"]}
            base = entries.get("base_hash", checkpoint_base(stored))
            anew = begun_anew(stored) if match.changed else {}
            with explain_os_errors(path):
                stored = write_manifest(path, {**record, "base_hash": base, **anew})
        here = starts(stored, environment())
        if here["starts"] != stored.get("starts"):
            with explain_os_errors(path):
                write_manifest(path, {**stored, **here})
        return variables

    def _write_store(
        self, entries: dict[str, Any], stored: dict[str, Any] | None = None, match: Match | None = None,
        damaged: bool = False,
    ) -> dict[str, Variable]:  # fmt: skip
        """Writes the arrays of a new, extended or damaged store and its manifest; returns the variables of the store.

        Args:
          entries: definition, fingerprints and accepted changes for the manifest.
          stored: the manifest so far, None for a new directory.
          match: how the sweep relates to the stored one, None for a new directory.
          damaged: whether the metadata of the arrays are damaged.
        """
        path, plan = self.path, self.plan
        grown = stored is not None and match is not None and match.grown(stored)
        # Tracing the programs gives the shapes of the results, and compiles what this process will run.
        mine = {number: runs for number, runs in plan.layout.all_runs().items() if self._owns(number)}
        compiled = plan.compiled(plan.units(mine), self.compiler)
        variables, notes = plan.variables(compiled)
        if stored is not None and match is not None:
            variables = self._variables_of(stored, match, variables, compiled, damaged)
        # Arrays that are mended unchanged leave everything that other shards have written in place.
        anew = stored is None or grown or bool(match and match.changed) or set(variables) != set(stored["chunks"])
        with explain_os_errors(path):
            files.remove_partial(path)
        with explain_os_errors(path), results.prepared(path, variables, plan.coordinates(variables)) as (folder, crcs):
            manifest = {
                "runs": {}, "wall_seconds": 0.0, "sessions": [], **(stored or {"sealed": True}), **environment(),
                **starts(stored, environment()), **(begun_anew(stored) if anew else {}), **entries,
                "hash": content_hash(entries["definition"]),
                "base_hash": entries.get("base_hash", checkpoint_base(stored or entries)),
                "order": [list(indices) for indices in plan.layout.order],
                "plan": plan.record(), "padded": notes,
                "base": base_coordinates(self.sweep), "crc32": crcs,
                "chunks": {name: list(v.chunks) for name, v in variables.items()},
            }  # fmt: skip
            if grown:
                results.fill_new_chunks(path, folder, variables, manifest)
            # The manifest comes first, since it describes the arrays: after a crash here the next start mends them.
            write_manifest(path, manifest)
            results.put_in_place(path, folder)
        return variables

    def _variables_of(
        self, stored: Mapping[str, Any], match: Match, traced: dict[str, Variable], compiled: Mapping[int, Compiled],
        damaged: bool,
    ) -> dict[str, Variable]:  # fmt: skip
        """The traced variables of a sweep as an existing store holds them: its names, chunks and dtypes."""
        # A monitor that the version of the stored runs lacked is left out: its "never" would be wrong for them.
        monitors = {name for programs in compiled.values() for name in programs.state.rang}
        variables = {name: v for name, v in traced.items() if name in stored["chunks"] or name not in monitors}
        readable = match.changed or match.grown(stored) or not damaged
        old = results.stored_variables(self.path) if readable else {}
        if match.changed:
            self._same_variables(variables, old)
        elif match.grown(stored):
            self._same_names(variables, old)
        # Chunks stay as they are, also where an observable has become longer since.
        chunks = {name: tuple(chunk) for name, chunk in stored["chunks"].items()}
        variables = {name: v._replace(chunks=chunks.get(name, v.chunks)) for name, v in variables.items()}
        if not damaged:  # earlier versions stored some dtypes differently
            variables = {name: v.stored_like(old[name]) if name in old else v for name, v in variables.items()}
        return variables

    def _accepted(self, stored: Mapping[str, Any], match: Match) -> dict[str, Any]:
        """The manifest's entries for an accepted change; checkpoints of the code before it are not used."""
        assert self.accept is not None
        notes = [*stored.get("accepted", ()), accepted(self.accept, match.changed, environment()["versions"], stored)]
        base = content_hash({"before": checkpoint_base(stored), "accepted": notes})
        return {"accepted": notes, "base_hash": base}

    def _check_variables(self, stored: Mapping[str, Variable]) -> None:
        """Traces the variables that the code gives now, and compares them with the stored ones.

        Raises:
          ValueError: if they differ.
        """
        plan, requested = self.plan, self.plan.layout.requested()
        runs = {n: requested[box] for n, box in enumerate(plan.layout.blocks()) if requested[box].any()}
        variables, _ = plan.variables(plan.compiled(plan.units(runs), self.compiler))
        self._same_variables(variables, stored)

    def _same_names(self, new: Mapping[str, Variable], old: Mapping[str, Variable]) -> None:
        for name in sorted(set(new) ^ set(old)):
            raise ValueError(
                f"out={str(self.path)!r} cannot be extended: its runs {'have' if name in old else 'lack'} the result "
                f"{name!r}, which the new ones {'lack' if name in old else 'have'}"
            )

    def _same_variables(self, new: Mapping[str, Variable], old: Mapping[str, Variable]) -> None:
        runs = len(self.sweep.dims)

        def shown(variables: Mapping[str, Variable], name: str) -> str:
            if name not in variables:
                return "nothing"
            variable = variables[name]
            longer = [max(a, b) for a, b in zip(variable.shape[runs:], old[name].shape[runs:])] if name in old else []
            return f"{variable.dtype}{longer or list(variable.shape[runs:])} over {variable.dims}"

        for name in dict.fromkeys([*old, *new]):
            was, now = shown(old, name), shown(new, name)
            if was != now:
                raise ValueError(f"out={str(self.path)!r}: accept= cannot change what is stored: {name} {was} -> {now}")

    def _owns(self, number: int) -> bool:
        return number % self.shard[1] == self.shard[0]

    def missing(self) -> dict[int, np.ndarray]:
        """{number of a block: which of its runs are missing} of this shard.

        Damaged blocks are reported, and all of their runs are missing.
        """
        layout = self.plan.layout
        unrecorded = _unrecorded(self.path, layout.shape, self.sweep.trajectory)
        out, requested = {}, layout.requested()
        accepted = self._manifest().get("accepted", ())
        anew = f" with the code as it is now, not that of before {accepted[-1]['date']}" if accepted else ""
        for number, box in enumerate(layout.blocks()):
            if not self._owns(number) or not requested[box].any():
                continue
            if not requested[box].all() and (line := self.store.lost(box)):
                raise results.UnusableData(f"{line}; run the stored definition first, which mends it")
            missing = self.store.missing(box)
            if not missing.all():
                lines = self.store.damage(box)
                if lines and not requested[box].all():
                    raise results.UnusableData(f"{lines[0]}; run the stored definition first, which mends it")
                for line in lines:
                    say(f"{line}: its block is run again{anew}")
                if lines:
                    self.store.forget(box)
                missing = np.ones_like(missing) if lines else missing | unrecorded[box]
            missing = missing & requested[box]
            if missing.any():
                out[number] = missing
        return out

    def run(self, missing: BlockRuns, stop: Stop, progress: Progress) -> None:
        """Trains the missing runs.

        Raises:
          Interrupted: after a signal, with a checkpoint of the unit that was being trained.
        """
        blocks = Blocks(
            self.plan.layout, self.store, self.path, self.base, stop, progress, self.plan.limits.checkpoint_every,
            self.lease.writing,
        )  # fmt: skip

        def attempt(runs: int) -> None:
            remaining = missing
            if runs != self.plan.layout.runs:
                self._reduce_call_size(runs)
                boxes = self.plan.layout.blocks()
                remaining = {n: m & self.store.missing(boxes[n]) for n, m in missing.items()}
            units = self.plan.units(remaining)
            blocks.run(units, self.plan.compiled(units, self.compiler, every=False))

        retry_on_oom(attempt, self.plan.layout.runs)

    def _reduce_call_size(self, runs: int) -> None:
        """Trains fewer runs per call from now on, and after every resume."""
        self.plan = self.plan.with_call_size(runs)
        with self.lease.writing(exclusive=True), explain_os_errors(self.path):
            stored = self._manifest()
            write_manifest(self.path, {**stored, "plan": {**stored["plan"], "runs": runs}})

    def _manifest(self) -> dict[str, Any]:
        """The manifest as it is now.

        Raises:
          UnusableData: if it was removed meanwhile.
        """
        stored = read_manifest(self.path)
        if stored is None:
            raise results.UnusableData(f"{self.path}: manifest.json was removed while the sweep ran; start it again")
        return stored

    def pieces(self, missing: BlockRuns) -> list[dict[int, np.ndarray]]:
        """The missing runs, cut into pieces of one unit each."""
        numbers = {str(box): number for number, box in enumerate(self.plan.layout.blocks())}
        return [
            {numbers[str(box)]: mine for box, mine in zip(unit.boxes, unit.mine)} for unit in self.plan.units(missing)
        ]

    def close(self, seconds: float) -> None:
        """Updates the manifest's counts of runs, and adds this session to it.

        Raises:
          Stale: if the directory is not the one that was opened: its files belong to another process then.
        """
        try:
            if self.lease.reason is None:  # otherwise the loss was reported
                self._account(seconds)
        finally:
            self.release()

    def release(self) -> None:
        """Closes the lease and the compiler, without touching the directory."""
        self.lease.close()
        self.compiler.close()

    def _account(self, seconds: float) -> None:
        with self.lease.writing(exclusive=True), explain_os_errors(self.path):
            stored = self._manifest()
            entry = {}
            try:
                status = results.read_status(self.path)
                counts = count_statuses(status)
                entry = {"stored_blocks": watched.stored_blocks_entry(self.path, stored, status)}
            except results.UnusableData as error:  # of another shard, whose process reports and mends it
                counts = {**stored["runs"], "not_run": stored["runs"].get("not_run", 1)}
                say(error)
            where = environment()
            session = {
                "seconds": round(seconds, 3), **compile_entries(self.compiler.log),
                "shard": f"{self.shard[0]}/{self.shard[1]}", "pid": os.getpid(),
                **{k: where[k] for k in ("host", "command", "finished", "versions", "device", "devices", "cpu")},
                "flags": where["flags"],
            }  # fmt: skip
            write_manifest(self.path, {
                **stored, **entry, "runs": counts, "wall_seconds": round(stored["wall_seconds"] + seconds, 3),
                "compile_seconds": round(stored.get("compile_seconds", 0.0) + self.compiler.log.seconds, 3),
                "sessions": [*stored["sessions"], session],
            })  # fmt: skip
        if counts["not_run"]:
            say(f"{self.path}: {counts['not_run']} of {counts['total']} runs are still to be run")
            return
        if locks.others(self.path, self.shard):
            locks.watch(self.path)  # without the manifest's lock, which live processes need
        with self.lease.writing(exclusive=True), explain_os_errors(self.path):
            if not locks.others(self.path, self.shard):
                trajectory.remove_leftovers(self.path)
                checkpoints.remove_all(self.path / checkpoints.FOLDER)


def compile_entries(log: CompileLog) -> dict[str, Any]:
    """What a session says in the manifest about compiling: seconds, by optimizer family, and programs."""
    families = {family: round(seconds, 3) for family, seconds in log.by_family().items()}
    return {"compile_seconds": round(log.seconds, 3), "compiled": {"programs": log.compiled, "families": families}}


def has_work_left(path: Path, stored: Mapping[str, Any], requested: np.ndarray | None = None) -> bool:
    """Whether a directory has runs to train, damage to mend or leftovers to remove; `requested`: among these runs."""
    if not results.is_results(path) or results.damaged_metadata(path, stored["crc32"]):
        return True
    check_fit(stored, path / results.ARRAYS)
    variables = results.stored_variables(path)
    try:
        status = results.read_status(path)
    except results.UnusableData:
        return True
    due = (status < 0) | _unrecorded(path, status.shape, stored["definition"]["trajectory"])
    if (due if requested is None else due & requested).any():
        return True
    # A process that was killed after its last run has neither removed its checkpoints nor counted its runs.
    untidy = stored["runs"].get("not_run", 1) or files.own_folders(path / checkpoints.FOLDER)
    if untidy and requested is None and os.access(path, os.W_OK):
        return True
    store = Store(path, variables, mode="r")
    boxes = results.blocks(status.shape, variables["status"].chunks)
    return any(store.damage(box) for box in boxes if requested is None or requested[box].any())


def _unrecorded(path: Path, shape: Sequence[int], kind: Any) -> np.ndarray:
    """Which runs lack a whole trajectory although the sweep keeps trajectories; damage is reported."""
    unrecorded = np.full(shape, kind is not None)
    if kind is None:
        return unrecorded
    whole, lines = trajectory.stored(path)
    for line in lines:
        say(f"{line}: its runs are run again")
    for place in whole:
        if len(place) == unrecorded.ndim and all(i < size for i, size in zip(place, shape)):
            unrecorded[place] = False
    return unrecorded


def count_statuses(status: np.ndarray) -> dict[str, int]:
    """Counts of runs by status; a line on stderr says how many have diverged."""
    counts = {
        "total": int(status.size), "finished": int((status == 0).sum()), "diverged": int((status == 1).sum()),
        "not_run": int((status < 0).sum()),
    }  # fmt: skip
    if counts["diverged"]:
        words = f"{counts['diverged']} of {counts['total']} runs diverged"
        say(f"{words}; their traces are NaN from first_bad_step on")
    return counts

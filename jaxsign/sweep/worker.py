"""One process's work on a results directory: open, extend or mend the store, run what is missing, say what was done."""

import dataclasses
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
from jaxsign.sweep import groups as plan
from jaxsign.sweep import recorder
from jaxsign.sweep.execute import Blocks
from jaxsign.sweep.identity.definition import content_hash, definition
from jaxsign.sweep.identity.match import Match, accepted, checkpoint_base, compare, fingerprints, starts
from jaxsign.sweep.layout import Layout, stored_coordinates, units, variables
from jaxsign.sweep.plan import (
    Limits,
    Missing,
    begin_layout,
    compile_units,
    everything,
    fitting,
    make_programs,
    plan_record,
    stored_layout,
)
from jaxsign.sweep.programs import Compiler, Program
from jaxsign.sweep.progress import Progress, Stop
from jaxsign.sweep.sweep import Sweep
from jaxsign.validation.messages import say

Shard = tuple[int, int]


class Joined(NamedTuple):
    """What a worker of a cluster is told about the directory that its driver has opened.

    Args:
      id: of the manifest.
      epoch: of the manifest.
      lock: name of the driver's lock.
      text: what it says as long as the driver holds it.
    """

    id: str | None
    epoch: int
    lock: str
    text: str


class Session:
    """A results directory opened for work: made, extended or mended where need be.

    Args:
      sweep: the sweep.
      path: results directory; it must exist.
      shard: (index, count).
      by: the shard's lock, which the caller holds; or, in a worker, what it was told by the process that does.
      limits: what it may use.
      accept: reason for which changes of code are accepted, or None.
      computation: the sweep's `fingerprints`, if they are known.
      links: names of folders that the user allows to be links from now on.

    Raises:
      ValueError: if the directory belongs to another definition, or cannot be written.
      Stale: if it is not the caller's any more.
      UnusableData: if something in it is a link that nobody has allowed.
    """

    def __init__(
        self, sweep: Sweep, path: Path, shard: Shard, by: locks.Held | Joined, limits: Limits,
        accept: str | None = None, computation: Any = None, links: Sequence[str] = (),
    ):  # fmt: skip
        self.sweep, self.path, self.shard, self.limits, self.accept = sweep, path, shard, limits, accept
        self.computation, self.links = computation or fingerprints(sweep, definition(sweep)), links
        self.groups = plan.groups(sweep)
        recorder.check(sweep, self.groups)
        self.match: Match | None = None  # with what was stored
        self.compiler = Compiler()
        try:
            try:
                found = self._locked(by)
            except locks.Busy:
                locks.watch(path)  # without the manifest's lock, which those who live need
                found = self._locked(by)
        except BaseException:
            self.compiler.close()
            raise
        with explain_os_errors(path):
            self.store = Store(path, found, owned=self.lease.writing)
        self.base = checkpoint_base(self._manifest())

    def _locked(self, by: locks.Held | Joined) -> dict[str, Variable]:
        """Opens the directory with the manifest's lock held; returns the variables of the store."""
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
            self.layout, self.programs, found = self._open(stored)
            if self.links:  # of a new directory, which has its id by now
                self._allow_links()
            if isinstance(by, locks.Held):
                by.works_by(identity(self._manifest())[1])
                held = {by.file: by.text}
            self.lease = Lease(path, path / results.ARRAYS, held)
        return found

    def _allow_links(self) -> None:
        """Keeps in the manifest which links the user has allowed, and refuses all others."""
        stored = read_manifest(self.path)
        with explain_os_errors(self.path):
            if stored is not None and (links := files.links_of(self.path, stored, self.links)):
                if links != stored.get("links") or "id" not in stored:
                    anew = {} if "id" in stored else begun_anew(stored)
                    stored = write_manifest(self.path, {**stored, **anew, "links": links})
                files.mark_links(self.path, stored, self.links)
            if stored is not None:
                files.refuse_links(self.path, stored)

    def _open(self, stored: dict[str, Any] | None) -> tuple[Layout, list[Program], dict[str, Variable]]:
        """The layout, programs and variables of the store."""
        sweep, path, groups = self.sweep, self.path, self.groups
        grown = False
        if stored is None:
            layout, widths = begin_layout(sweep, groups, self.limits)
            described = {"definition": definition(sweep), "computation": self.computation}
        else:
            self.match = match = compare(str(path), stored, sweep, self.accept, self.computation)
            layout, widths = stored_layout(sweep, groups, stored, match.order, self.limits)
            grown = match.grown(stored)
            # Those that have not read the manifest yet will work by the new one.
            if (grown or match.changed) and (busy := locks.others(path, self.shard, identity(stored)[1])):
                what = "extended" if grown else "changed"
                raise locks.Busy(f"out={str(path)!r} cannot be {what} while others run it: {'; '.join(busy)}")
            damaged = results.damaged_metadata(path, stored["crc32"])
            if not damaged:
                check_fit(stored, path / results.ARRAYS)
            if damaged and (grown or match.part or match.changed):
                raise results.UnusableData(f"{damaged[0]}; run the stored definition first, which mends it")
            described = {"definition": match.definition, "computation": match.computation}
            if match.changed:
                described |= self._accepted(stored, match)
            if not grown and not damaged:
                programs, found = make_programs(sweep, groups, layout, widths), results.stored_variables(path)
                if match.changed:
                    self._check_variables(layout, programs, found)
                if match.changed or ("computation" not in stored and not match.part):
                    record = {**stored, **described, "hash": content_hash(match.definition)}
                    if not match.part:  # points are written as in the definition
                        kept = {"memory": stored["plan"]["memory"]}
                        record["plan"] = {**plan_record(sweep, groups, layout, widths, self.limits), **kept}
                    base = described.get("base_hash", checkpoint_base(stored))
                    entries = begun_anew(stored) if match.changed else {}
                    with explain_os_errors(path):
                        stored = write_manifest(path, {**record, "base_hash": base, **entries})
                here = starts(stored, environment())
                if here["starts"] != stored.get("starts"):
                    with explain_os_errors(path):
                        write_manifest(path, {**stored, **here})
                return layout, programs, found
        programs = make_programs(sweep, groups, layout, widths)
        # What this process will run is compiled on the way: tracing it tells what the results look like.
        mine = {number: runs for number, runs in everything(layout).items() if self._owns(number)}
        _, compiled = compile_units(sweep, programs, layout, mine, self.compiler)
        found, notes = variables(sweep, groups, [compiled[g].results for g in range(len(groups))], layout)
        if stored:  # an alarm that the version of the stored runs did not have: they would say -1, never
            alarms = {name for g in range(len(groups)) for name in compiled[g].state.rang}
            found = {name: v for name, v in found.items() if name in stored["chunks"] or name not in alarms}
        if stored and match.changed:
            self._same_variables(found, results.stored_variables(path))
        elif stored and grown:
            self._same_names(found, results.stored_variables(path))
        if stored:  # chunks stay as they are, also where an observable has grown longer since
            kept = {name: tuple(chunks) for name, chunks in stored["chunks"].items()}
            found = {name: v._replace(chunks=kept.get(name, v.chunks)) for name, v in found.items()}
            if not damaged:  # earlier versions stored some dtypes in another way
                old = results.stored_variables(path)
                found = {name: v.stored_like(old[name]) if name in old else v for name, v in found.items()}
        # Arrays that are mended as they were leave what other shards write where it is.
        anew = stored is None or grown or bool(match.changed) or set(found) != set(stored["chunks"])
        with explain_os_errors(path):
            files.remove_partial(path)
        coords = stored_coordinates(sweep, layout, found)
        with explain_os_errors(path), results.prepared(path, found, coords) as (folder, crcs):
            manifest = {
                "runs": {}, "wall_seconds": 0.0, "sessions": [], **(stored or {"sealed": True}), **environment(),
                **starts(stored, environment()), **(begun_anew(stored) if anew else {}), **described,
                "hash": content_hash(described["definition"]),
                "base_hash": described.get("base_hash", checkpoint_base(stored or described)),
                "order": [list(own) for own in layout.order],
                "plan": plan_record(sweep, groups, layout, widths, self.limits), "padded": notes,
                "base": base_coordinates(sweep), "crc32": crcs,
                "chunks": {name: list(v.chunks) for name, v in found.items()},
            }  # fmt: skip
            if stored and grown:
                results.fill_new_chunks(path, folder, found, manifest)
            # The manifest first: it says what the arrays must be, so that a cut here is mended by the next start.
            write_manifest(path, manifest)
            results.put_in_place(path, folder)
        return layout, programs, found

    def _accepted(self, stored: Mapping[str, Any], match: Match) -> dict[str, Any]:
        """What an accepted change adds to the manifest; checkpoints of the code before it are passed over."""
        assert self.accept is not None
        notes = [*stored.get("accepted", ()), accepted(self.accept, match.changed, environment()["versions"], stored)]
        base = content_hash({"before": checkpoint_base(stored), "accepted": notes})
        return {"accepted": notes, "base_hash": base}

    def _check_variables(self, layout: Layout, programs: list[Program], found: Mapping[str, Variable]) -> None:
        """Traces what would be stored now, and compares it with what is.

        Raises:
          ValueError: if the code that is to be accepted gives other variables.
        """
        asked = layout.asked()
        everything_asked = {n: asked[box] for n, box in enumerate(layout.blocks()) if asked[box].any()}
        _, compiled = compile_units(self.sweep, programs, layout, everything_asked, self.compiler)
        new, _ = variables(self.sweep, self.groups, [compiled[g].results for g in range(len(self.groups))], layout)
        self._same_variables(new, found)

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
        """{number: which runs are missing} of this shard; damaged blocks are reported and run again as a whole."""
        unkept = _unkept(self.path, self.layout.shape, self.sweep.trajectory)
        out, asked = {}, self.layout.asked()
        accepted = self._manifest().get("accepted", ())
        anew = f" with the code as it is now, not that of before {accepted[-1]['date']}" if accepted else ""
        for number, box in enumerate(self.layout.blocks()):
            if not self._owns(number) or not asked[box].any():
                continue
            if not asked[box].all() and (line := self.store.lost(box)):
                raise results.UnusableData(f"{line}; run the stored definition first, which mends it")
            missing = self.store.missing(box)
            if not missing.all():
                lines = self.store.damage(box)
                if lines and not asked[box].all():
                    raise results.UnusableData(f"{lines[0]}; run the stored definition first, which mends it")
                for line in lines:
                    say(f"{line}: its block is run again{anew}")
                if lines:
                    self.store.forget(box)
                missing = np.ones_like(missing) if lines else missing | unkept[box]
            missing = missing & asked[box]
            if missing.any():
                out[number] = missing
        return out

    def run(self, missing: Missing, stop: Stop, progress: Progress) -> None:
        """Runs what is missing.

        Raises:
          Interrupted: after a signal, with a checkpoint of what was under way.
        """
        blocks = Blocks(
            self.layout, self.store, self.path, self.base, stop, progress, self.limits.checkpoint_every,
            self.lease.writing,
        )  # fmt: skip

        def attempt(runs: int) -> None:
            left = missing
            if runs != self.layout.runs:
                self._smaller(runs)
                left = {n: m & self.store.missing(self.layout.blocks()[n]) for n, m in missing.items()}
            todo, compiled = compile_units(self.sweep, self.programs, self.layout, left, self.compiler, every=False)
            blocks.run(todo, compiled)

        fitting(attempt, self.layout.runs)

    def _smaller(self, runs: int) -> None:
        """Fewer runs a call from now on, and on every resume."""
        self.layout = dataclasses.replace(self.layout, runs=runs)
        with self.lease.writing(exclusive=True), explain_os_errors(self.path):
            stored = self._manifest()
            write_manifest(self.path, {**stored, "plan": {**stored["plan"], "runs": runs}})

    def _manifest(self) -> dict[str, Any]:
        """The manifest that this process began with.

        Raises:
          UnusableData: if somebody has removed it meanwhile.
        """
        stored = read_manifest(self.path)
        if stored is None:
            raise results.UnusableData(f"{self.path}: manifest.json was removed while the sweep ran; start it again")
        return stored

    def pieces(self, missing: Missing) -> list[dict[int, np.ndarray]]:
        """What is missing, cut into the pieces that one call trains each."""
        numbers = {str(box): number for number, box in enumerate(self.layout.blocks())}
        return [
            {numbers[str(box)]: mine for box, mine in zip(unit.boxes, unit.mine)}
            for unit in units(self.sweep, self.groups, self.layout, missing)
        ]

    def close(self, seconds: float) -> None:
        """Writes into the manifest what is there now, and what this process did.

        Raises:
          Stale: if the directory is not the one that was opened; its manifest and files are another's then.
        """
        try:
            if self.lease.reason is None:  # otherwise it was said
                self._account(seconds)
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of what is open."""
        self.lease.close()
        self.compiler.close()

    def _account(self, seconds: float) -> None:
        with self.lease.writing(exclusive=True), explain_os_errors(self.path):
            stored = self._manifest()
            entry = {}
            try:
                status = results.read_status(self.path)
                counts = tell(status)
                entry = {"stored_blocks": watched.stored_blocks_entry(self.path, stored, status)}
            except results.UnusableData as error:  # of another shard: its own process reports and mends it
                counts = {**stored["runs"], "not_run": stored["runs"].get("not_run", 1)}
                say(error)
            where = environment()
            session = {
                "seconds": round(seconds, 3), "shard": f"{self.shard[0]}/{self.shard[1]}", "pid": os.getpid(),
                **{k: where[k] for k in ("host", "command", "finished", "versions", "device", "cpu", "flags")},
            }  # fmt: skip
            write_manifest(self.path, {
                **stored, **entry, "runs": counts, "wall_seconds": round(stored["wall_seconds"] + seconds, 3),
                "sessions": [*stored["sessions"], session],
            })  # fmt: skip
        if counts["not_run"]:
            say(f"{self.path}: {counts['not_run']} of {counts['total']} runs are still to be run")
            return
        if locks.others(self.path, self.shard):
            locks.watch(self.path)  # without the manifest's lock, which those who live need
        with self.lease.writing(exclusive=True), explain_os_errors(self.path):
            if not locks.others(self.path, self.shard):
                trajectory.remove_leftovers(self.path)
                checkpoints.remove_all(self.path / checkpoints.FOLDER)


def left(path: Path, stored: Mapping[str, Any], asked: np.ndarray | None = None) -> bool:
    """Whether a directory has runs to do, damage to mend or something to put away; `asked`: among these runs."""
    if not results.is_results(path) or results.damaged_metadata(path, stored["crc32"]):
        return True
    check_fit(stored, path / results.ARRAYS)
    found = results.stored_variables(path)
    try:
        status = results.read_status(path)
    except results.UnusableData:
        return True
    due = (status < 0) | _unkept(path, status.shape, stored["definition"]["trajectory"])
    if (due if asked is None else due & asked).any():
        return True
    # A process that was killed after its last run has not put its things away, nor counted what is there.
    untidy = stored["runs"].get("not_run", 1) or files.own_folders(path / checkpoints.FOLDER)
    if untidy and asked is None and os.access(path, os.W_OK):
        return True
    store = Store(path, found, mode="r")
    boxes = results.blocks(status.shape, found["status"].chunks)
    return any(store.damage(box) for box in boxes if asked is None or asked[box].any())


def _unkept(path: Path, shape: Sequence[int], kind: Any) -> np.ndarray:
    """Which runs have no whole trajectory although the sweep keeps them; damage is reported."""
    unkept = np.full(shape, kind is not None)
    if kind is None:
        return unkept
    whole, lines = trajectory.stored(path)
    for line in lines:
        say(f"{line}: its runs are run again")
    for place in whole:
        if len(place) == unkept.ndim and all(i < size for i, size in zip(place, shape)):
            unkept[place] = False
    return unkept


def tell(status: np.ndarray) -> dict[str, int]:
    """Counts of runs by status; diverged ones are mentioned on stderr."""
    counts = {
        "total": int(status.size), "finished": int((status == 0).sum()), "diverged": int((status == 1).sum()),
        "not_run": int((status < 0).sum()),
    }  # fmt: skip
    if counts["diverged"]:
        words = f"{counts['diverged']} of {counts['total']} runs diverged"
        say(f"{words}; their traces are NaN from first_bad_step on")
    return counts

"""One process's work on a results directory: open, extend or mend the store, run what is missing, say what was done."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxsign.labelled import base_coordinates
from jaxsign.store import checkpoints, locks, results, trajectory
from jaxsign.store.manifest import read_manifest, write_manifest
from jaxsign.store.results import Store, Variable
from jaxsign.sweep import plan, recorder
from jaxsign.sweep.blocks import Blocks
from jaxsign.sweep.definition import content_hash, definition, extension
from jaxsign.sweep.environment import environment
from jaxsign.sweep.grid import Sweep
from jaxsign.sweep.layout import Layout, stored_coordinates, units, variables
from jaxsign.sweep.opening import (
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

Shard = tuple[int, int]


class Session:
    """A results directory opened for work: made, extended or mended where need be.

    Args:
      sweep: the sweep.
      path: results directory; it must exist, and the caller holds the shard's lock or works for one who does.
      shard: (index, count).
      limits: what it may use.

    Raises:
      ValueError: if the directory belongs to another definition, or cannot be written.
    """

    def __init__(self, sweep: Sweep, path: Path, shard: Shard, limits: Limits):
        self.sweep, self.path, self.shard, self.limits = sweep, path, shard, limits
        self.described = definition(sweep)
        self.groups = plan.groups(sweep)
        recorder.check(sweep, self.groups)
        self.compiler = Compiler()
        try:
            with locks.manifest_lock(path):
                self.layout, self.programs, found = self._open()
        except BaseException:
            self.compiler.close()
            raise
        self.store = Store(path, found)
        # Hash of what all runs have in common, for checkpoints.
        rest = {k: v for k, v in self.described.items() if k not in ("axes", "optimizers", "seeds")}
        self.base = content_hash(rest)

    def _open(self) -> tuple[Layout, list[Program], dict[str, Variable]]:
        """The layout, programs and variables of the store."""
        sweep, path, groups = self.sweep, self.path, self.groups
        stored, grown = read_manifest(path), False
        if stored is None:
            layout, widths = begin_layout(sweep, groups, self.limits)
        else:
            order = extension(str(path), stored, self.described)
            layout, widths = stored_layout(sweep, groups, stored, order, self.limits)
            grown = order != stored["order"]
            if grown and (busy := locks.others(path, self.shard)):
                raise ValueError(f"out={str(path)!r} cannot be extended while others run it: {'; '.join(busy)}")
            damaged = results.damaged_metadata(path, stored["crc32"])
            if grown and damaged:
                raise results.UnusableData(
                    f"{damaged[0]}; run the stored definition, which mends it, before you extend it"
                )
            if not grown and not damaged:
                return layout, make_programs(sweep, groups, layout, widths), results.stored_variables(path)
        programs = make_programs(sweep, groups, layout, widths)
        # What this process will run is compiled on the way: tracing it tells what the results look like.
        mine = {number: runs for number, runs in everything(layout).items() if self._owns(number)}
        _, compiled = compile_units(sweep, programs, layout, mine, self.compiler)
        found, notes = variables(sweep, groups, [compiled[g].results for g in range(len(groups))], layout)
        if stored:  # an alarm that the version of the stored runs did not have: they would say -1, never
            alarms = {name for g in range(len(groups)) for name in compiled[g].state.rang}
            found = {name: v for name, v in found.items() if name in stored["chunks"] or name not in alarms}
        if stored:  # chunks stay as they are, also where an observable has grown longer since
            kept = {name: tuple(chunks) for name, chunks in stored["chunks"].items()}
            found = {name: v._replace(chunks=kept.get(name, v.chunks)) for name, v in found.items()}
        results.remove_partial(path)
        coords = stored_coordinates(sweep, layout, found)
        with results.named(path), results.prepared(path, found, coords) as (folder, crcs):
            manifest = {
                "runs": {}, "wall_seconds": 0.0, "sessions": [], **(stored or {}), **environment(),
                "definition": self.described, "hash": content_hash(self.described),
                "order": [list(own) for own in layout.order],
                "plan": plan_record(sweep, groups, layout, widths, self.limits), "padded": notes,
                "base": base_coordinates(sweep), "crc32": crcs,
                "chunks": {name: list(v.chunks) for name, v in found.items()},
            }  # fmt: skip
            if stored and grown:
                results.fill_new_chunks(path, folder, found)
            # The manifest first: it says what the arrays must be, so that a cut here is mended by the next start.
            write_manifest(path, manifest)
            results.put_in_place(path, folder)
        return layout, programs, found

    def _owns(self, number: int) -> bool:
        return number % self.shard[1] == self.shard[0]

    def missing(self) -> dict[int, np.ndarray]:
        """{number: which runs are missing} of this shard's blocks; damaged blocks are reported and run again."""
        unkept = _unkept(self.path, self.layout.shape, self.sweep.trajectory)
        out = {}
        for number, box in enumerate(self.layout.blocks()):
            if not self._owns(number):
                continue
            missing = self.store.missing(box)
            if not missing.all():
                lines = self.store.damage(box)
                for line in lines:
                    print(f"{line}: its block is run again", file=sys.stderr)
                missing = np.ones_like(missing) if lines else missing | unkept[box]
            if missing.any():
                out[number] = missing
        return out

    def run(self, missing: Missing, stop: Stop, progress: Progress) -> None:
        """Runs what is missing.

        Raises:
          Interrupted: after a signal, with a checkpoint of what was under way.
        """
        blocks = Blocks(
            self.layout, self.store, self.path, self.base, stop, progress, self.limits.checkpoint_every
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
        with locks.manifest_lock(self.path):
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
        """Writes into the manifest what is there now, and what this process did."""
        with locks.manifest_lock(self.path):
            stored = self._manifest()
            try:
                counts = tell(results.read_status(self.path))
            except results.UnusableData as error:  # of another shard: its own process reports and mends it
                counts = {**stored["runs"], "not_run": stored["runs"].get("not_run", 1)}
                print(error, file=sys.stderr)
            where = environment()
            session = {
                "seconds": round(seconds, 3), "shard": f"{self.shard[0]}/{self.shard[1]}", "pid": os.getpid(),
                **{k: where[k] for k in ("host", "command", "finished", "versions", "device")},
            }  # fmt: skip
            write_manifest(self.path, {
                **stored, "runs": counts, "wall_seconds": round(stored["wall_seconds"] + seconds, 3),
                "sessions": [*stored["sessions"], session],
            })  # fmt: skip
            if counts["not_run"]:
                print(
                    f"{self.path}: {counts['not_run']} of {self.sweep.size} runs are still to be run", file=sys.stderr
                )
            elif not locks.others(self.path, self.shard):
                trajectory.remove_leftovers(self.path)
                checkpoints.remove_all(self.path / checkpoints.FOLDER)
        self.compiler.close()


def left(path: Path, stored: Mapping[str, Any]) -> bool:
    """Whether a directory of this very definition has runs to do, damage to mend or something to put away."""
    if not results.is_results(path) or results.damaged_metadata(path, stored["crc32"]):
        return True
    found = results.stored_variables(path)
    try:
        status = results.read_status(path)
    except results.UnusableData:
        return True
    if (status < 0).any() or _unkept(path, status.shape, stored["definition"]["trajectory"]).any():
        return True
    # A process that was killed after its last run has not put its things away, nor counted what is there.
    untidy = stored["runs"].get("not_run", 1) or (path / checkpoints.FOLDER).exists()
    if untidy and os.access(path, os.W_OK):
        return True
    store = Store(path, found, mode="r")
    return any(store.damage(box) for box in results.blocks(status.shape, found["status"].chunks))


def _unkept(path: Path, shape: Sequence[int], kind: Any) -> np.ndarray:
    """Which runs have no whole trajectory although the sweep keeps them; damage is reported."""
    unkept = np.full(shape, kind is not None)
    if kind is None:
        return unkept
    whole, lines = trajectory.stored(path)
    for line in lines:
        print(f"{line}: its runs are run again", file=sys.stderr)
    if whole:
        unkept[tuple(np.array(sorted(whole)).T)] = False
    return unkept


def tell(status: np.ndarray) -> dict[str, int]:
    """Counts of runs by status; diverged ones are mentioned on stderr."""
    counts = {
        "total": int(status.size), "finished": int((status == 0).sum()), "diverged": int((status == 1).sum()),
        "not_run": int((status < 0).sum()),
    }  # fmt: skip
    if counts["diverged"]:
        words = f"{counts['diverged']} of {counts['total']} runs diverged"
        print(f"{words}; their traces are NaN from first_bad_step on", file=sys.stderr)
    return counts

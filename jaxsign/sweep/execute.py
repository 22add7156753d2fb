"""The block loop: a unit of runs, stretch by stretch, to a store; checkpoints, signals and progress in between."""

import contextlib
import functools
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsign.store import checkpoints
from jaxsign.store.binding import Binding
from jaxsign.store.files import explain_os_errors
from jaxsign.store.results import Memory, Owned, Store
from jaxsign.sweep.layout import Layout, Unit
from jaxsign.sweep.programs import Compiled
from jaxsign.sweep.progress import Interrupted, Progress, Stop
from jaxsign.sweep.recorder import Recorder, Taken
from jaxsign.sweep.stretches import Place, Stretch, stretch
from jaxsign.training.loop import State
from jaxsign.validation.messages import say

#: A call aims at this many seconds: two of them may be under way when a signal arrives.
CALL_SECONDS = 2.0
#: Steps of a group's first call, before anything is known of its speed.
FIRST_STEPS = 32


class Pace:
    """How many steps a call of a group should train, from the time that its calls took."""

    def __init__(self) -> None:
        self.steps: dict[int, int] = {}
        self.ready = 0.0

    def allowed(self, group: int) -> int:
        """Steps of the next call."""
        return self.steps.get(group, FIRST_STEPS)

    def took(self, group: int, steps: int, dispatched: float) -> None:
        """A call was fetched."""
        now = time.monotonic()
        seconds = max(now - max(dispatched, self.ready), 1e-6)
        self.ready = now
        if steps:
            wanted = int(CALL_SECONDS / seconds * steps)
            self.steps[group] = int(np.clip(wanted, 1, 8 * max(steps, self.allowed(group))))


class Work:
    """One unit under way: its programs, and the records of the chunk that is being filled.

    Args:
      unit: the unit.
      compiled: its group's programs.
      layout: where runs are stored.
      sink: where results go.
    """

    def __init__(self, unit: Unit, compiled: Compiled, layout: Layout, sink: Memory):
        self.unit, self.compiled, self.sink = unit, compiled, sink
        self.sweep, self.group = compiled.program.sweep, compiled.program.group
        self.count, self.total = len(unit.members), self.sweep.schedule.record.size
        self.records = min(layout.records, self.total)
        self.rows = {
            name: np.full((self.count, self.records, *info.shape), np.nan, info.dtype)
            for name, info in compiled.rows.items()
        }

    def take(self, part: Stretch, rows: Mapping[str, Any]) -> None:
        """Puts a stretch's records into the chunk that is being filled, and that into the store when it is full."""
        first = part.before.record // self.records * self.records
        for name, value in jax.device_get(rows).items():
            value = value[: self.count, part.slots]
            value = value[self.group.kept(name, value.shape)]
            self.rows[name][:, part.before.record - first : part.after.record - first] = value
        last = part.after.record
        if last > part.before.record and (last == self.total or last % self.records == 0) and self.sweep.keep_trace:
            for name, value in self.rows.items():
                self._write(name, value[:, : last - first], slice(first, last))

    def finish(self, state: State, constants: Mapping[str, Any]) -> int:
        """Stores the numbers of finished runs, the status last; returns how many of them diverged."""
        captured = state.crossings.results() if state.crossings else {}
        # A store of an older version may lack alarms.
        rang = {name: step for name, step in state.rang.items() if name in self.sink.variables}
        values = {**rang, **captured, **constants, "first_bad_step": state.bad}
        if self.compiled.summarise is not None:
            padded = {name: _padded(x, self.compiled.size) for name, x in self.rows.items()}
            values |= self.compiled.summarise.result()(constants, padded)
        found = {name: np.asarray(value)[: self.count] for name, value in jax.device_get(values).items()}
        bad = found["first_bad_step"] >= 0
        for name, value in found.items():
            self._write(name, value[self.group.kept(name, value.shape)])
        self._write("status", np.where(bad, 1, 0).astype(np.int8))
        return int(bad.sum())

    def _write(self, name: str, values: np.ndarray, records: slice | None = None) -> None:
        done = 0
        for box, mine in zip(self.unit.boxes, self.unit.mine):
            count = int(mine.sum())
            self.sink.write(name, box, values[done : done + count], mine, records)
            done += count

    def saved(self, place: Place, state: State) -> dict[str, Any]:
        """What a checkpoint holds: nothing of padding, so that it serves any number of devices."""
        # Copies: the next call may write over the device's own memory.
        own = jax.tree.map(lambda x: _host(x)[: self.count], state)
        return {"place": np.array(place, np.int32), "state": own, "rows": self.rows}

    def abstract(self) -> dict[str, Any]:
        """Shapes and dtypes of what `saved` returns."""
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.count, *x.shape[1:]), x.dtype), self.compiled.state)
        return {"place": np.zeros(2, np.int32), "state": own, "rows": self.rows}

    def restore(self, saved: Mapping[str, Any]) -> tuple[Place, State] | None:
        """Goes on from what `saved` returned; None if chunks before it are not in the store, or damaged."""
        place = Place(*map(int, saved["place"]))
        first = place.record // self.records * self.records
        if first and self.sweep.keep_trace and isinstance(self.sink, Store):
            lines = [line for box in self.unit.boxes for line in self.sink.damage(box, first)]
            if lines:
                say(f"{lines[0]}: its runs begin again")
                return None
        self.rows = {name: np.array(value) for name, value in saved["rows"].items()}
        return place, jax.tree.map(lambda x: _padded(x, self.compiled.size), saved["state"])

    def about(self, base: str, binding: Binding) -> dict[str, Any]:
        """What a checkpoint belongs to: these runs of this sweep, in this directory; neither devices nor the size of a
        call matter.
        """
        sweep, runs = self.sweep, []
        for member in self.unit.members:
            _, family, keywords = sweep.optimizer_points[member[-2]]
            points = [axis.values[i] for axis, i in zip(sweep.grid_axes, member)]
            runs.append([points, family, sorted(keywords.items()), sweep.seeds[member[-1]]])
        digest = hashlib.sha256(json.dumps(runs, default=str).encode()).hexdigest()
        width = self.compiled.program.width
        # The id, since an extension leaves what is under way as it is; earlier versions wrote none.
        own = {"directory": binding.known[0]} if binding.sealed else {}
        return {"sweep": base, "runs": digest, "lane_width": width, "records": self.records, **own}


def _host(x: Any) -> Any:
    """A copy on the host; typed keys stay keys."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words: Any = np.array(jax.random.key_data(x))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    return np.array(x)


def _padded(x: Any, size: int) -> Any:
    """Rows for every run of a call, the last one repeated."""
    return x[np.minimum(np.arange(size), len(x) - 1)]


class Blocks:
    """Runs units one after the other; the next call is dispatched before the last one's results are fetched.

    Args:
      layout: where runs are stored.
      sink: where results go.
      path: results directory, or None for memory.
      base: hash of what all runs of the sweep have in common, for checkpoints.
      stop: whether a signal has arrived.
      progress: what is said.
      every: seconds between checkpoints.
      owned: `owned(exclusive)` keeps the directory this process's while something is written into it, or raises.
    """

    def __init__(
        self, layout: Layout, sink: Memory, path: Path | None, base: str, stop: Stop, progress: Progress, every: float,
        owned: Owned = contextlib.nullcontext,
    ):  # fmt: skip
        self.layout, self.sink, self.path, self.base = layout, sink, path, base
        self.stop, self.progress, self.every = stop, progress, every
        self.owned, self.pace, self.last_save = owned, Pace(), time.monotonic()
        self.pending: deque[Callable[[], None]] = deque()
        self.binding = sink.expected.binding if isinstance(sink, Store) else Binding(None, None)

    def run(self, units: Sequence[Unit], compiled: Mapping[int, Compiled]) -> None:
        """Trains units and stores their results.

        Raises:
          Interrupted: after a signal, with a checkpoint of what was under way.
        """
        try:
            for unit in units:
                self._run(Work(unit, compiled[unit.group], self.layout, self.sink))
                if self.stop.asked:
                    break
            self._drain()
        finally:
            self.sink.commit()
            self.sink.flush()  # the manifest may count it now
        if self.stop.asked:
            raise Interrupted(self.stop.asked)

    def _run(self, work: Work) -> None:
        compiled, program, schedule = work.compiled, work.compiled.program, work.sweep.schedule
        self.progress.doing(f"{work.group.family}: compiling")
        begin, init, advance = (f.result() for f in (compiled.begin, compiled.init, compiled.advance))
        self.progress.doing(work.group.family)
        seeds, hyper, floats, degrees = program.arguments(work.unit.members, compiled.size)
        start = begin(seeds, hyper, degrees, work.sweep.shared)
        initial = init(seeds, start, hyper, floats)
        recorder = None
        if self.path is not None and work.sweep.trajectory is not None:
            recorder = Recorder(work.sweep, work.unit, self.path, self.binding, start, initial.trained)
        place, state = self._restored(work, recorder) or (Place(), initial)
        while not place.done(schedule):
            steps, before = self.pace.allowed(work.unit.group), None
            if recorder is not None:
                steps, before = min(steps, recorder.limit(place.step)), recorder.before(place.step, state.trained)
            part = stretch(schedule, place, program.slots, steps, work.records)
            now = time.monotonic()
            state, rows, taped = advance(seeds, start, hyper, floats, state, part.stops)
            taken = Taken(part.before.step, part.after.step, taped, before) if recorder is not None else None
            self._later(functools.partial(self._take, work, part, rows, now, recorder, taken))
            place = part.after
            due = self.stop.asked or time.monotonic() - self.last_save >= self.every
            if self.path is not None and due and not place.done(schedule):
                self._drain()
                self.sink.commit()
                self._flush(recorder)
                saved, about = work.saved(place, state), work.about(self.base, self.binding)
                with self.owned(False), explain_os_errors(self.path):
                    checkpoints.save(self._folder(work), place.step, saved, about)
                self.last_save = time.monotonic()
            if self.stop.asked and not place.done(schedule):
                return
        seen = program.seen(start, state.trained) if work.sweep.trajectory == "features" and recorder else None
        self._later(functools.partial(self._finish, work, state, start.constants, recorder, seen))

    def _restored(self, work: Work, recorder: Recorder | None) -> tuple[Place, State] | None:
        found = None
        if self.path is not None and self._folder(work).is_dir():
            abstract, about = work.abstract(), work.about(self.base, self.binding)
            with explain_os_errors(self.path):
                found = checkpoints.load(self._folder(work), abstract, about)
        going = work.restore(found[1]) if found else None
        if recorder is not None:
            with self.owned(False), explain_os_errors(self.path or Path()):
                if not recorder.going_on(going[0].step if going else 0):
                    say(f"{recorder.folder}: its segments are not whole: its runs begin again")
                    going = None
                    recorder.going_on(0)
        if going:
            self.progress.trained(work.count, going[0].step, before=True)
        return going

    def _flush(self, recorder: Recorder | None) -> None:
        """Waits until what a checkpoint goes on from is on the disk."""
        with explain_os_errors(self.path or Path()):
            self.sink.flush()
            if recorder is not None:
                recorder.flush()

    def _later(self, fetch: Callable[[], None]) -> None:
        self.pending.append(fetch)
        if len(self.pending) > 1:
            self.pending.popleft()()

    def _drain(self) -> None:
        while self.pending:
            self.pending.popleft()()

    def _take(
        self, work: Work, part: Stretch, rows: Mapping[str, Any], dispatched: float, recorder: Recorder | None,
        taken: Taken | None,
    ) -> None:  # fmt: skip
        jax.block_until_ready(rows)
        steps = part.after.step - part.before.step
        self.pace.took(work.unit.group, steps, dispatched)
        if recorder is not None and taken is not None and steps:
            with self.owned(False), explain_os_errors(self.path or Path()):
                recorder.take(taken)
        work.take(part, rows)
        self.sink.commit_due()
        self.progress.trained(work.count, steps)

    def _finish(
        self, work: Work, state: State, constants: Mapping[str, Any], recorder: Recorder | None, seen: Any
    ) -> None:
        if recorder is not None:  # before the status, which is a run's last word
            with self.owned(False), explain_os_errors(self.path or Path()):
                recorder.finish(state.trained, seen)
        diverged = work.finish(state, constants)
        if self.path is not None and self._folder(work).is_dir():
            self.sink.commit()  # what the checkpoints are for is on the disk before they go
            with self.owned(False):
                checkpoints.remove(self._folder(work))
        self.progress.finished(work.count, diverged)

    def _folder(self, work: Work) -> Path:
        assert self.path is not None
        return self.path / checkpoints.FOLDER / f"block-{work.unit.number:06d}"

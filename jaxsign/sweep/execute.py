"""Trains units of runs call by call and stores their results; saves checkpoints and listens to signals in between."""

import contextlib
import functools
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxsign.store import checkpoints
from jaxsign.store.binding import Binding
from jaxsign.store.files import explain_os_errors
from jaxsign.store.results import Memory, Owned, Store
from jaxsign.sweep.identity.definition import describe
from jaxsign.sweep.layout import Layout, WorkUnit
from jaxsign.sweep.leaving import Interrupted
from jaxsign.sweep.programs import Compiled, joined
from jaxsign.sweep.progress import TICK, Progress, Stop
from jaxsign.sweep.recorder import Recorder, TapedCall
from jaxsign.sweep.starts import Starts
from jaxsign.training.loop import State, Stops
from jaxsign.training.schedule import Schedule
from jaxsign.validation.messages import say

T = TypeVar("T")
#: Seconds that a call should take: two calls may be under way when a signal arrives.
CALL_SECONDS = 1.25
#: Steps of a group's first call, before its speed is known: few, so that a display moves soon where steps are slow.
FIRST_STEPS = 2


class Cursor(NamedTuple):
    """Progress of a run: steps trained, recorded steps stored."""

    step: int = 0
    record: int = 0

    def done(self, schedule: Schedule) -> bool:
        """Whether the run is finished."""
        return self.step == schedule.steps and self.record == schedule.record.size


class Call(NamedTuple):
    """The part of a run that one call of the program trains.

    Args:
      stops: where the call stops to record, padded with stops that do nothing.
      slots: which of the stops hold records, in order.
      before: progress of the run before the call.
      after: progress of the run after the call.
    """

    stops: Stops
    slots: np.ndarray
    before: Cursor
    after: Cursor


def next_call(schedule: Schedule, cursor: Cursor, slots: int, steps: int, records: int) -> Call:
    """The next call: at most `slots` stops and `steps` steps, not beyond the end of a chunk of `records` records.

    Args:
      schedule: the sweep's steps and recorded steps.
      cursor: progress of the run.
      slots: stops of the program.
      steps: maximum steps, int >= 1.
      records: recorded steps of a chunk of the store.

    Examples:
      >>> schedule = Schedule.build(10, 4, 8)
      >>> first = next_call(schedule, Cursor(), slots=4, steps=6, records=99)
      >>> first.stops.end.tolist(), first.stops.record.tolist(), first.after
      ([0, 4, 6, 6], [True, True, False, False], Cursor(step=6, record=2))
      >>> next_call(schedule, first.after, slots=4, steps=6, records=99).after.done(schedule)
      True
    """
    t, r = cursor
    chunk_end = min((r // records + 1) * records, schedule.record.size)
    budget = steps
    stops: list[tuple[int, int, bool, bool]] = []  # start, end, whether to record, whether to evaluate the test set
    while len(stops) < slots and (r < chunk_end or (r == schedule.record.size and t < schedule.steps)):
        goal = int(schedule.record[r]) if r < schedule.record.size else schedule.steps
        if goal - t > budget:
            if budget:
                stops.append((t, t + budget, False, False))
                t += budget
            break
        recorded = r < schedule.record.size
        stops.append((t, goal, recorded, recorded and bool(schedule.test[r])))
        budget, t, r = budget - (goal - t), goal, r + recorded
    recording = np.flatnonzero([record for *_, record, _ in stops])
    stops += [(t, t, False, False)] * (slots - len(stops))
    start, end, record, test = zip(*stops)
    ends = np.array(end, np.int32)
    flags = np.array(record, bool), np.array(test, bool), ends == schedule.steps
    return Call(Stops(np.array(start, np.int32), ends, *flags), recording, cursor, Cursor(t, r))


class Pace:
    """How many steps a call of a group should train, from the times of its earlier calls."""

    def __init__(self) -> None:
        self.steps: dict[int, int] = {}
        self.ready = 0.0

    def allowed(self, group: int) -> int:
        """Steps of the next call."""
        return self.steps.get(group, FIRST_STEPS)

    def fetched(self, group: int, steps: int, dispatched: float) -> None:
        """Learns from a call whose results have just been fetched."""
        now = time.monotonic()
        seconds = max(now - max(dispatched, self.ready), 1e-6)
        self.ready = now
        if steps:
            ideal = int(CALL_SECONDS / seconds * steps)
            self.steps[group] = int(np.clip(ideal, 1, 8 * max(steps, self.allowed(group))))


class Work:
    """One unit that is being trained: its programs, and the records of the chunk that is being filled.

    Args:
      unit: the unit.
      compiled: its group's programs.
      layout: where runs are stored.
      sink: stores the results.
    """

    def __init__(self, unit: WorkUnit, compiled: Compiled, layout: Layout, sink: Memory):
        self.unit, self.compiled, self.sink = unit, compiled, sink
        self.group = compiled.program.group
        self.sweep = self.group.sweep
        self.count, self.total = len(unit.members), self.sweep.schedule.record.size
        self.parts = compiled.program.parts(self.count)
        self.records = min(layout.records, self.total)
        self.rows = {
            name: np.full((self.count, self.records, *info.shape), np.nan, info.dtype)
            for name, info in compiled.rows.items()
        }

    def take(self, call: Call, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds a call's records of every part to the chunk that is being filled; stores the chunk when it is full."""
        first = call.before.record // self.records * self.records
        for name in self.rows:
            value = np.concatenate([np.asarray(part[name])[:, call.slots] for part in rows])[: self.count]
            value = value[self.group.unpadded(name, value.shape)]
            self.rows[name][:, call.before.record - first : call.after.record - first] = value
        last = call.after.record
        if last > call.before.record and (last == self.total or last % self.records == 0) and self.sweep.keep_trace:
            for name, value in self.rows.items():
                self._write(name, value[:, : last - first], slice(first, last))

    def finish(
        self, states: Sequence[State], captures: Sequence[Mapping[str, Any]], constants: Sequence[Mapping[str, Any]]
    ) -> int:
        """Stores the results of finished runs, the status last; returns how many of them diverged."""
        parts = []
        for part, state, captured, constant in zip(self.parts, states, captures, constants):
            # Results of an older version may lack monitors.
            triggered = {name: step for name, step in state.rang.items() if name in self.sink.variables}
            values = {**triggered, **captured, **constant, "first_bad_step": state.bad}
            if self.compiled.summarise is not None:
                padded = {name: _padded(x[part], self.compiled.program.part) for name, x in self.rows.items()}
                values |= self.compiled.summarise.result()(constant, padded)
            parts.append(values)
        results = joined(parts, self.count)
        bad = results["first_bad_step"] >= 0
        for name, value in results.items():
            self._write(name, value[self.group.unpadded(name, value.shape)])
        self._write("status", np.where(bad, 1, 0).astype(np.int8))
        return int(bad.sum())

    def _write(self, name: str, values: np.ndarray, records: slice | None = None) -> None:
        done = 0
        for box, mine in zip(self.unit.boxes, self.unit.mine):
            count = int(mine.sum())
            self.sink.write(name, box, values[done : done + count], mine, records)
            done += count

    def checkpoint(self, cursor: Cursor, states: Sequence[State]) -> dict[str, Any]:
        """The content of a checkpoint, without padding, so that any number of devices can resume from it."""
        runs = joined(states, self.count)
        return {"place": np.array(cursor, np.int32), "state": runs, "rows": self.rows}

    def abstract(self) -> dict[str, Any]:
        """The content of a checkpoint with shapes and dtypes in place of the state."""
        runs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.count, *x.shape[1:]), x.dtype), self.compiled.state)
        return {"place": np.zeros(2, np.int32), "state": runs, "rows": self.rows}

    def restore(self, saved: Mapping[str, Any]) -> tuple[Cursor, list[State]] | None:
        """Resumes from the content of a checkpoint; None if chunks before it are missing or damaged."""
        cursor = Cursor(*map(int, saved["place"]))
        first = cursor.record // self.records * self.records
        if first and self.sweep.keep_trace and isinstance(self.sink, Store):
            lines = [line for box in self.unit.boxes for line in self.sink.damage(box, first)]
            if lines:
                say(f"{lines[0]}: its runs begin again")
                return None
        self.rows = {name: np.array(value) for name, value in saved["rows"].items()}
        size, state = self.compiled.program.part, saved["state"]
        return cursor, [jax.tree.map(lambda x, part=part: _padded(x[part], size), state) for part in self.parts]

    def about(self, base: str, binding: Binding) -> dict[str, Any]:
        """Identifies the runs, sweep and directory of a checkpoint; neither devices nor the size of a call matter."""
        sweep, runs = self.sweep, []
        for member in self.unit.members:
            _, family, keywords = sweep.optimizer_points[member[-2]]
            points = [axis.values[i] for axis, i in zip(sweep.grid_axes, member)]
            runs.append([points, family, sorted(keywords.items()), sweep.seeds[member[-1]]])
        digest = hashlib.sha256(json.dumps(runs, default=_words).encode()).hexdigest()
        width = self.compiled.program.width
        # Only the id of the directory, since checkpoints stay valid when it is extended.
        directory = {"directory": binding.known[0]} if binding.sealed else {}
        return {"sweep": base, "runs": digest, "lane_width": width, "records": self.records, **directory}


def _words(value: Any) -> Any:
    """A keyword that is no number as plain JSON, the same in every process: a schedule has no address in it."""
    return describe("", value) if callable(value) else str(value)


def _padded(x: Any, size: int) -> Any:
    """An array of runs padded to the `size` runs of a part with the last one."""
    return x[np.minimum(np.arange(size), len(x) - 1)]


class Blocks:
    """Trains units one after the other; a call is dispatched before the results of the one before it are fetched.

    Args:
      layout: where runs are stored.
      sink: stores the results.
      path: results directory, or None for memory.
      base: hash of everything that all runs of the sweep share, for checkpoints.
      stop: the signal that has arrived.
      progress: counts runs and steps.
      every: seconds between checkpoints.
      owned: `owned(exclusive)` is a context that reserves the directory for a write of this process, or raises.
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
        self.starts = Starts()
        #: (block, step, steps) of the checkpoint that a stop has left.
        self.saved: tuple[int, int, int] | None = None

    def run(self, units: Sequence[WorkUnit], compiled: Mapping[int, Compiled]) -> None:
        """Trains units and stores their results.

        Raises:
          Interrupted: after a signal, with a checkpoint of the unit that was being trained.
        """
        self.stop.preparing = False
        try:
            for unit in units:
                self._run(Work(unit, compiled[unit.group], self.layout, self.sink))
                if self.stop.signal:
                    break
            self._drain()
        finally:
            self.sink.commit()
            self.sink.flush()  # the manifest may count it now
        if self.stop.signal:
            raise Interrupted(f"{self.stop.signal}: {self._kept()}")

    def _kept(self) -> str:
        """What a stop leaves behind, in words."""
        if self.path is None:
            return "without out= nothing is kept"
        if self.saved is None:
            return "the next start goes on with the runs that are left"
        block, step, steps = self.saved
        return f"the next start goes on from step {step} of {steps} of block {block}"

    def _run(self, work: Work) -> None:
        compiled, program, schedule = work.compiled, work.compiled.program, work.sweep.schedule
        with self.progress.compiling():
            while not self.stop.signal and not compiled.ready(TICK):
                pass
        if self.stop.signal:  # what was trained before is stored; XLA cannot be interrupted
            return
        _, init, advance = compiled.wait()
        self.progress.doing(f"drawing data for {work.group.family}")
        given = [program.arguments(work.unit.members[part]) for part in work.parts]
        starts = self.starts.parts(compiled, work.unit.members)
        states = [init(g.seeds, start, g.hyper, g.floats) for g, start in zip(given, starts)]
        self.progress.training(work.group.family)
        recorder = None
        if self.path is not None and work.sweep.trajectory is not None:
            trained = [state.trained for state in states]
            recorder = Recorder(work.group, work.unit, self.path, self.binding, starts, trained)
        cursor, states = self._resume(work, recorder) or (Cursor(), states)
        while not cursor.done(schedule):
            steps, before = self.pace.allowed(work.unit.group), None
            if recorder is not None:
                steps = min(steps, recorder.limit(cursor.step))
                before = recorder.before(cursor.step, [state.trained for state in states])
            call = next_call(schedule, cursor, program.slots, steps, work.records)
            now = time.monotonic()
            calls = [
                advance(g.seeds, start, g.hyper, g.floats, state, call.stops)
                for g, start, state in zip(given, starts, states)
            ]
            states, rows, captures, tapes = map(list, zip(*calls))
            taped = TapedCall(call.before.step, call.after.step, tapes, before) if recorder is not None else None
            self._later(functools.partial(self._take, work, call, rows, now, recorder, taped))
            cursor = call.after
            due = self.stop.signal or time.monotonic() - self.last_save >= self.every
            if due and not cursor.done(schedule):
                self._save(work, cursor, states, recorder)
            if self.stop.signal and not cursor.done(schedule):
                self.saved = work.unit.number, cursor.step, schedule.steps
                return
        features = None
        if work.sweep.trajectory == "features" and recorder:
            features = [program.project(start, state.trained) for start, state in zip(starts, states)]
        constants = [start.constants for start in starts]
        self._later(functools.partial(self._finish, work, states, captures, constants, recorder, features))

    def _resume(self, work: Work, recorder: Recorder | None) -> tuple[Cursor, list[State]] | None:
        """Progress and state of a unit's checkpoint; None if it has no usable one."""
        checkpoint = None
        if self.path is not None and self._folder(work).is_dir():
            abstract, about = work.abstract(), work.about(self.base, self.binding)
            with explain_os_errors(self.path):
                checkpoint = checkpoints.load(self._folder(work), abstract, about)
        resumed = work.restore(checkpoint[1]) if checkpoint else None
        if recorder is not None:
            with self.owned(False), explain_os_errors(self.path or Path()):
                if not recorder.resume(resumed[0].step if resumed else 0):
                    say(f"{recorder.folder}: its segments are not whole: its runs begin again")
                    resumed = None
                    recorder.resume(0)
        if resumed:
            self.progress.trained(work.count, resumed[0].step, resumed[0].step, before=True)
        return resumed

    def _save(self, work: Work, cursor: Cursor, states: Sequence[State], recorder: Recorder | None) -> None:
        """Saves a checkpoint of a unit, after everything that it relies on is on the disk."""
        if self.path is None:
            return
        self._drain()
        self.sink.commit()
        with explain_os_errors(self.path):
            self.sink.flush()
            if recorder is not None:
                recorder.flush()
        checkpoint, about = work.checkpoint(cursor, states), work.about(self.base, self.binding)
        with self.owned(False), explain_os_errors(self.path):
            checkpoints.save(self._folder(work), cursor.step, checkpoint, about)
        self.last_save = time.monotonic()

    def _later(self, fetch: Callable[[], None]) -> None:
        """Fetches the results of all earlier calls, and those of this one later."""
        self.pending.append(fetch)
        if len(self.pending) > 1:
            self.pending.popleft()()

    def _drain(self) -> None:
        while self.pending:
            self.pending.popleft()()

    def _take(
        self, work: Work, call: Call, rows: Sequence[Mapping[str, Any]], dispatched: float,
        recorder: Recorder | None, taped: TapedCall | None,
    ) -> None:  # fmt: skip
        """Fetches the results of a call of every part and stores them."""
        jax.block_until_ready(rows)
        steps = call.after.step - call.before.step
        self.pace.fetched(work.unit.group, steps, dispatched)
        if recorder is not None and taped is not None and steps:
            with self.owned(False), explain_os_errors(self.path or Path()):
                recorder.take(taped)
        work.take(call, rows)
        self.sink.commit_due()
        self.progress.trained(work.count, steps, call.after.step)

    def _finish(
        self, work: Work, states: Sequence[State], captures: Sequence[Mapping[str, Any]],
        constants: Sequence[Mapping[str, Any]], recorder: Recorder | None, features: Sequence[Any] | None,
    ) -> None:  # fmt: skip
        """Stores the results of a finished unit and removes its checkpoints."""
        if recorder is not None:  # before the status, which says that everything of a run is stored
            with self.owned(False), explain_os_errors(self.path or Path()):
                recorder.finish([state.trained for state in states], features)
        diverged = work.finish(states, captures, constants)
        if self.path is not None and self._folder(work).is_dir():
            self.sink.commit()  # results must be on the disk before their checkpoints are removed
            with self.owned(False):
                checkpoints.remove(self._folder(work))
        self.progress.finished(work.count, diverged)

    def _folder(self, work: Work) -> Path:
        assert self.path is not None
        return self.path / checkpoints.FOLDER / f"block-{work.unit.number:06d}"


def retry_on_oom(attempt: Callable[[int], T], runs: int) -> T:
    """Calls `attempt(runs)`, and once more with half of the runs of a call if the device has no memory for them.

    Raises:
      ValueError: if half of them do not fit either.
    """
    try:
        return attempt(runs)
    except jax.errors.JaxRuntimeError as error:
        if not _out_of_memory(error):
            raise
        say(f"out of memory with {runs} runs a call: going on with {max(1, runs // 2)}")
        try:
            return attempt(max(1, runs // 2))
        except jax.errors.JaxRuntimeError as again:
            if not _out_of_memory(again):
                raise
            raise ValueError(
                f"memory must be less than half of what was tried: {max(1, runs // 2)} runs a call do not fit either"
            ) from None


def _out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)

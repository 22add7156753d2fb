"""Calls of a run: from step 0 to the end, every step once, every recorded step once and in order; lack of memory."""

import json

import jax
import numpy as np
import optax
import pytest
from test_faults import LIMITS, sweep
from test_worker import SMALL, small_values

import jaxsign as js
from jaxsign.sweep.execute import Blocks, Cursor, _words, next_call
from jaxsign.training.schedule import Schedule, log_steps


def random_schedule(rng):
    steps = int(rng.integers(1, 60))
    kind = rng.integers(4)
    if kind == 0:
        record = int(rng.integers(1, steps + 1))
    elif kind == 1:
        record = log_steps(steps, per_decade=int(rng.integers(1, 20)))
    else:  # recording may begin after step 0 and end before the last one
        record = np.sort(rng.choice(steps + 1, int(rng.integers(1, steps + 2)), replace=False))
    last = Schedule.build(steps, record).record[-1]
    return Schedule.build(steps, record, int(rng.integers(1, max(last, 1) + 1)))


def chain(schedule, slots, records, allowed):
    """All calls of a run; `allowed()` is how many steps the next one may have."""
    cursor, out = Cursor(), []
    while not cursor.done(schedule):
        out.append(next_call(schedule, cursor, slots, allowed(), records))
        assert out[-1].before == cursor
        cursor = out[-1].after
    return out


@pytest.mark.parametrize("trial", range(200))
def test_calls_cover_a_run_once_within_the_limits(trial):
    rng = np.random.default_rng(trial)
    schedule = random_schedule(rng)
    slots, records = int(rng.integers(2, 9)), int(rng.integers(1, 12))
    most, limits = int(rng.integers(1, 40)), []

    def allowed():
        limits.append(int(rng.integers(1, most + 1)))
        return limits[-1]

    trained, recorded, tested, cursor = [], [], [], Cursor()
    for call, limit in zip(chain(schedule, slots, records, allowed), limits, strict=True):
        stops = call.stops
        assert all(len(field) == slots for field in stops)
        assert call.after != call.before  # it always leads on
        assert call.after.step - call.before.step <= limit
        # stops follow each other without a gap
        assert stops.start[0] == call.before.step
        assert (stops.start[1:] == stops.end[:-1]).all()
        assert stops.end[-1] == call.after.step
        assert (stops.end >= stops.start).all()
        trained += [t for a, b in zip(stops.start, stops.end) for t in range(a, b)]
        # what `slots` names is what is recorded, and `before` counts it
        assert call.slots.tolist() == np.flatnonzero(stops.record).tolist()
        assert call.before.record == len(recorded)
        recorded += stops.end[stops.record].tolist()
        tested += stops.test[stops.record].tolist()
        assert call.after.record == len(recorded)
        assert not stops.test[~stops.record].any()
        # one chunk of records at a time
        assert call.before.record // records == (max(call.after.record - 1, call.before.record)) // records
        assert stops.last.tolist() == (stops.end == schedule.steps).tolist()
        cursor = call.after
    assert cursor == (schedule.steps, schedule.record.size)
    assert trained == list(range(schedule.steps))
    assert recorded == schedule.record.tolist()
    assert tested == schedule.test.tolist()


@pytest.mark.parametrize("trial", range(40))
def test_a_call_depends_on_its_cursor_only(trial):
    rng = np.random.default_rng(1000 + trial)
    schedule, slots, records = random_schedule(rng), int(rng.integers(2, 9)), int(rng.integers(1, 12))
    for call in chain(schedule, slots, records, lambda: int(rng.integers(1, 9))):
        steps = max(call.after.step - call.before.step, 1)
        again = next_call(schedule, Cursor(*call.before), slots, steps, records)
        np.testing.assert_equal(again._asdict(), call._asdict())


def test_a_run_that_fits_is_one_call():
    schedule = Schedule.build(10, 4, 8)  # records at 0, 4, 8, test at 0 and 8
    (call,) = chain(schedule, 4, 3, lambda: 10)
    assert call.stops.start.tolist() == [0, 0, 4, 8]
    assert call.stops.end.tolist() == [0, 4, 8, 10]
    assert call.stops.record.tolist() == [True, True, True, False]
    assert call.stops.test.tolist() == [True, False, True, False]
    assert call.stops.last.tolist() == [False, False, False, True]
    assert call.slots.tolist() == [0, 1, 2]
    assert (call.before, call.after) == ((0, 0), (10, 3))


def test_a_cursor_is_done_after_the_last_step_and_the_last_record():
    schedule = Schedule.build(10, 5, 5)
    assert [Cursor(*p).done(schedule) for p in [(0, 0), (10, 2), (9, 3), (10, 3)]] == [False, False, False, True]


def test_step_0_is_recorded_before_any_step_is_trained():
    schedule = Schedule.build(100, 50, 50)
    first = next_call(schedule, Cursor(), slots=3, steps=1, records=9)
    assert first.slots.tolist() == [0]
    assert first.stops.end.tolist() == [0, 1, 1]
    assert first.after == (1, 1)


def test_the_call_is_halved_once_when_memory_runs_out(tmp_path, monkeypatch, capfd):
    js.run_sweep(sweep(**SMALL), tmp_path / "whole", **LIMITS)
    most, run = {"runs": 5}, Blocks._run

    def small_device(self, work):
        if len(work.unit.members) > most["runs"]:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return run(self, work)

    monkeypatch.setattr(Blocks, "_run", small_device)
    js.run_sweep(sweep(**SMALL), tmp_path / "out", **LIMITS)
    assert "out of memory with" in capfd.readouterr().err
    assert small_values(tmp_path / "out") == small_values(tmp_path / "whole")
    most["runs"] = 0
    with pytest.raises(ValueError, match="do not fit either"):
        js.run_sweep(sweep(**SMALL), tmp_path / "other", **LIMITS)


def test_schedules_name_the_runs_of_a_checkpoint_alike_in_every_process():
    made = [optax.cosine_decay_schedule(0.1, steps) for steps in (20, 20, 30)]
    one, same, other = (json.dumps(made, default=_words) for made in ([schedule] for schedule in made))
    assert one == same != other
    assert "0x" not in one

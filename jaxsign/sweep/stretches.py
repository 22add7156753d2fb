"""Where calls stop: a run cut into stretches of bounded length, for programs with a fixed number of stops."""

from typing import NamedTuple

import numpy as np

from jaxsign.training.loop import Stops
from jaxsign.training.schedule import Schedule


class Place(NamedTuple):
    """How far a run is: steps done, recorded steps done."""

    step: int = 0
    record: int = 0

    def done(self, schedule: Schedule) -> bool:
        """Whether nothing is left."""
        return self.step == schedule.steps and self.record == schedule.record.size


class Stretch(NamedTuple):
    """One call's part of a run.

    Args:
      stops: where it stops, padded with stops that do nothing.
      slots: which of the stops hold records, in order.
      before: the place that it starts from.
      after: the place that it leads to.
    """

    stops: Stops
    slots: np.ndarray
    before: Place
    after: Place


def stretch(schedule: Schedule, place: Place, slots: int, steps: int, records: int) -> Stretch:
    """The next stretch: at most `slots` stops and `steps` steps, not beyond the end of a chunk of `records` records.

    Args:
      schedule: the sweep's steps and recorded steps.
      place: where the run is.
      slots: stops of the program.
      steps: steps at most, int >= 1.
      records: recorded steps of a chunk of the store.

    Examples:
      >>> plan = Schedule.build(10, 4, 8)
      >>> first = stretch(plan, Place(), slots=4, steps=6, records=99)
      >>> first.stops.end.tolist(), first.stops.record.tolist(), first.after
      ([0, 4, 6, 6], [True, True, False, False], Place(step=6, record=2))
      >>> stretch(plan, first.after, slots=4, steps=6, records=99).after.done(plan)
      True
    """
    t, r = place
    chunk_end = min((r // records + 1) * records, schedule.record.size)
    budget = steps
    found: list[tuple[int, int, bool, bool]] = []
    while len(found) < slots and (r < chunk_end or (r == schedule.record.size and t < schedule.steps)):
        goal = int(schedule.record[r]) if r < schedule.record.size else schedule.steps
        if goal - t > budget:
            if budget:
                found.append((t, t + budget, False, False))
                t += budget
            break
        recorded = r < schedule.record.size
        found.append((t, goal, recorded, recorded and bool(schedule.test[r])))
        budget, t, r = budget - (goal - t), goal, r + recorded
    which = np.flatnonzero([record for *_, record, _ in found])
    found += [(t, t, False, False)] * (slots - len(found))
    start, end, record, test = zip(*found)
    ends = np.array(end, np.int32)
    flags = np.array(record, bool), np.array(test, bool), ends == schedule.steps
    stops = Stops(np.array(start, np.int32), ends, *flags)
    return Stretch(stops, which, place, Place(t, r))

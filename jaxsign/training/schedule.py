"""Which steps of a run are recorded, and at which of them the test set is evaluated."""

import dataclasses
from typing import Any

import numpy as np

from jaxsign.validation.values import length_of, positive_int, short_enough


def log_steps(steps: int, per_decade: int = 20) -> np.ndarray:
    """Recorded steps 0, 1, ... that are even on a log axis.

    Args:
      steps: last step, int >= 1.
      per_decade: points a decade, int >= 1.

    Returns:
      Increasing int array that starts with 0 and ends with `steps`.

    Raises:
      ValueError: if an argument is not a positive int.

    Examples:
      >>> log_steps(100, per_decade=2).tolist()
      [0, 1, 3, 10, 32, 100]
    """
    steps, per_decade = positive_int("steps", steps), positive_int("per_decade", per_decade)
    count = int(np.ceil(np.log10(steps) * per_decade)) + 1
    points = np.rint(np.logspace(0, np.log10(steps), max(count, 2))).astype(int)
    return np.unique(np.concatenate([[0], points]))


def usual_steps(steps: int) -> np.ndarray:
    """The steps that are recorded by default: `log_steps`, and powers of ten for claims to look up.

    Examples:
      >>> usual_steps(2000)[-3:].tolist(), 100 in usual_steps(2000), len(usual_steps(2000))
      ([1594, 1786, 2000], True, 60)
    """
    tens = 10 ** np.arange(1 + int(np.log10(steps)))
    return np.union1d(log_steps(steps), tens)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which steps of a run are recorded, and at which of these the test quantities are evaluated.

    Args:
      steps: number of optimizer steps, int >= 1.
      record: (R,) increasing steps in [0, steps].
      test: (R,) bool, a subset of the recorded steps.
    """

    steps: int
    record: np.ndarray
    test: np.ndarray

    @classmethod
    def build(cls, steps: Any, record: Any = None, test_every: Any = None) -> "Schedule":
        """Checks and expands `record` (an int k: steps 0, k, 2k, ...; or an array of steps) and `test_every`.

        An int m for `test_every` evaluates the test set at the first recorded step at or after every multiple of m;
        an array must be made of recorded steps. None records `usual_steps(steps)`, most of which lie where training
        begins, and evaluates the test set at the first recorded step at or after each of these.

        Raises:
          ValueError: naming field, value and legal range.
        """
        steps = positive_int("steps", steps)
        if steps >= 2**31:  # the loop counts in 32 bits
            raise ValueError(f"steps must be an int in [1, 2^31), got steps={steps}")
        recorded = usual_steps(steps) if record is None else _steps_array("record", record, steps)
        short_enough("test_every", length_of(test_every))
        if np.ndim(test_every) == 0:
            if test_every is None:
                passed = np.searchsorted(usual_steps(steps), recorded, side="right")  # how many at or before each
            else:
                every = positive_int("test_every", test_every)
                if every > recorded[-1] and recorded.size > 1:
                    raise ValueError(
                        f"test_every must be an int in [1, {recorded[-1]}], the last recorded step, or an array of "
                        f"recorded steps, got test_every={every}: test_every=[0] is the start alone"
                    )
                passed = recorded // every + 1
            test = np.diff(passed, prepend=0) > 0
        else:
            wanted = _steps_array("test_every", test_every, steps)
            stray = np.setdiff1d(wanted, recorded)
            if stray.size:
                raise ValueError(f"test_every must be made of recorded steps, got step {stray[0]} that is not recorded")
            test = np.isin(recorded, wanted)
        return cls(steps, recorded, test)


def _steps_array(field: str, value: Any, steps: int) -> np.ndarray:
    """An int k or an array of steps as a checked increasing int array."""
    short_enough(field, length_of(value))
    if np.ndim(value) == 0:
        every = positive_int(field, value)
        if every > steps:
            raise ValueError(
                f"{field} must be an int in [1, steps={steps}] or an array of steps, got {field}={every}: {field}=[0] "
                "is the start alone"
            )
        short_enough(f"{field}={every} of steps={steps}", steps // every + 1, "take a larger one, or an array of steps")
        return np.arange(0, steps + 1, every)
    array = np.asarray(value)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{field} must be an int >= 1 or a non-empty 1-d array of ints, got {value!r}")
    if array.min() < 0 or array.max() > steps or (np.diff(array) <= 0).any():
        raise ValueError(f"{field} must be strictly increasing steps in [0, {steps}], got {value!r}")
    return array

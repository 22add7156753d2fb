"""Claim and Part: a number per seed, the interval it must lie in, and how a Dataset is asked for both.

One number per *seed* (rows, heads and samples are averaged inside it) and an interval that follows from the claim's
words, committed before the first run. Optimizers are compared on the same seeds at equal training loss.
`jaxsign.verdicts` turns the numbers into HOLDS, FAILS or UNDECIDED.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxsign.stages import manifest
from jaxsign.validation import known

JUDGES = ("seeds", "mean")
#: What claims with a horizon are made of.
WATCHED = ("first_frozen_query_noise", "first_frozen_key_noise", "first_frozen_query_signal")


def above(number: float) -> tuple[float, float]:
    """The interval of everything strictly above a number.

    Examples:
      >>> low, high = above(0.5)
      >>> low > 0.5, high
      (True, inf)
    """
    return math.nextafter(number, math.inf), math.inf


class NotThere(Exception):
    """A Dataset cannot answer a claim; the message says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One number of a claim.

    Args:
      label: what is measured, in words.
      measure: Dataset -> DataArray over `seed`.
      interval: (low, high), both ends inside, or None: reported beside the claim but not judged.
      predict: Dataset -> predicted number, or None where there is no prediction.
    """

    label: str
    measure: Callable[[Any], Any]
    interval: tuple[float, float] | None
    predict: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about runs that a Dataset can decide.

    Args:
      id: short name.
      statement: the claim in one sentence.
      source: "paper" or "ours".
      family: the optimizer family whose runs are measured, or "" where the parts pick families themselves.
      steps: recorded steps it needs.
      parts: its numbers; a seed counts as inside if all judged parts are.
      trusted_until: step up to which no gradient of query noise, key noise or query signal may have underflowed, or
        None. Results of a version that watched query noise alone are read by that.
      explanations: {setting: sentence} for settings where the claim is known not to hold.
      system: name of the function that makes the tasks it is about.
      judge: "seeds": it holds if more than .9 of all seeds are inside; "mean", for claims about averages: if the 95 %
        interval of the mean over the seeds is.
      settings: the settings of its system that it is about; () for all.
    """

    id: str
    statement: str
    source: str
    family: str
    steps: tuple[int, ...]
    parts: tuple[Part, ...]
    trusted_until: int | None = None
    explanations: dict[str, str] = dataclasses.field(default_factory=dict)
    system: str = "two_layer"
    judge: str = "seeds"
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known("judge", self.judge, JUDGES)

    def need_steps(self, ds: Any) -> None:
        """Raises NotThere if a step that the claim needs is not recorded."""
        recorded = set(ds["step"].values.tolist())
        absent = [step for step in self.steps if step not in recorded]
        if absent:
            raise NotThere(f"step {absent[0]} is not recorded")

    def select(self, ds: Any) -> Any:
        """The runs that the parts measure.

        Raises:
          NotThere: saying what the Dataset lacks.
        """
        self.need_steps(ds)
        runs = one_family(ds, self.family) if self.family else one_point(ds)
        if self.trusted_until is not None:
            watched = [name for name in WATCHED if name in runs] or ["first_frozen_step"]
            for name in watched:
                if name not in runs:
                    raise NotThere("the Dataset does not say when query-noise gradients underflow")
                frozen = runs[name]
                early = frozen.where((frozen >= 0) & (frozen <= self.trusted_until))
                if bool(early.notnull().any()):
                    what = name.removeprefix("first_frozen_").replace("_", "-").replace("step", "query-noise")
                    raise NotThere(
                        f"{what} gradients underflow from step {int(early.min())} on, before the horizon "
                        f"{self.trusted_until}; run it with --x64"
                    )
        return runs


class WholeClaim(Claim):
    """A claim that compares points of the axes on the same seeds: its parts pick them."""

    def select(self, ds: Any) -> Any:
        """All runs.

        Raises:
          NotThere: saying what the Dataset lacks.
        """
        self.need_steps(ds)
        return ds


def one_point(ds: Any) -> Any:
    """The runs at the one point of every axis, dims (optimizer, seed, step, ...).

    Raises:
      NotThere: if an axis has several points.
    """
    if "status" not in ds:
        raise NotThere("the Dataset has no status")
    axes = [dim for dim in ds["status"].dims if dim not in ("optimizer", "seed")]
    long = [dim for dim in axes if ds.sizes[dim] > 1]
    if long:
        raise NotThere(f"needs one point of every axis, got several on {long}")
    return ds.isel(dict.fromkeys(axes, 0))


def one_family(ds: Any, family: str) -> Any:
    """The runs of one optimizer family that has one grid point, dims (seed, step, ...).

    Raises:
      NotThere: if there is not exactly one such optimizer.
    """
    chosen = np.flatnonzero(ds["family"].values == family)
    if chosen.size != 1:
        raise NotThere(f"needs exactly one {family} optimizer, got {chosen.size}")
    return one_point(ds).isel(optimizer=int(chosen[0]))


def system_of(ds: Any) -> str:
    """The name of the function that made the tasks of a Dataset, such as "two_layer"."""
    stored = manifest(ds)["definition"].get("system") or {}
    return str(stored.get("name", "")).rpartition(".")[2]

"""What is a claim? A number per seed, the interval it must lie in, and the runs that decide it.

One number per *seed* (rows, heads and samples are averaged inside it) and an interval that follows from the claim's
words, committed before the first run. Optimizers are compared on the same seeds at equal training loss.
`jaxsign.claims.verdicts` turns the numbers into HOLDS, FAILS or UNDECIDED.
"""

import dataclasses
import functools
import math
import numbers
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from jaxsign.analysis.equal_loss import at_train_loss
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import need, need_runs, one_point, optimizers_of
from jaxsign.claims.setting import Setting
from jaxsign.validation.values import known

if TYPE_CHECKING:
    import xarray as xr

#: Chooses the runs that a claim is about.
Runs: TypeAlias = Callable[["xr.Dataset"], "xr.Dataset"]
#: Measures runs: one number per seed.
PerSeed: TypeAlias = Callable[["xr.Dataset"], "xr.DataArray"]
JUDGES = ("seeds", "mean")
#: First steps at which a gradient that claims with a horizon depend on is 0.
WATCHED = ("first_frozen_query_noise", "first_frozen_key_noise", "first_frozen_query_signal")


def above(number: float) -> tuple[float, float]:
    """The interval of everything strictly above a number.

    Examples:
      >>> low, high = above(0.5)
      >>> low > 0.5, high
      (True, inf)
    """
    return math.nextafter(number, math.inf), math.inf


@dataclasses.dataclass(frozen=True)
class Part:
    """One number of a claim.

    Args:
      label: what is measured, in words.
      measure: Dataset -> DataArray over `seed`.
      interval: (low, high), both ends inside, or None: reported beside the claim but not judged.
      predict: the predicted number, or Dataset -> number; None where there is no prediction.

    Raises:
      ValueError: for an interval whose ends are not in order.
    """

    label: str
    measure: PerSeed
    interval: tuple[float, float] | None
    predict: float | Callable[["xr.Dataset"], Any] | None = None

    def __post_init__(self) -> None:
        ends: Any = self.interval
        numbers_alone = isinstance(ends, (tuple, list)) and all(isinstance(end, numbers.Real) for end in ends)
        if ends is not None and not (numbers_alone and len(ends) == 2 and ends[0] <= ends[1]):
            raise ValueError(
                f"interval of {self.label!r} must be (low, high) with low <= high, or None, got interval={ends!r}"
            )

    def prediction(self, ds: "xr.Dataset") -> Any:
        """The predicted number for these runs, None where there is no prediction."""
        return self.predict(ds) if callable(self.predict) else self.predict


def one_family(family: str) -> Runs:
    """Chooses the runs of one optimizer family that has one grid point, dims (seed, step, ...).

    The function that is returned raises CannotDecide if there is not exactly one such optimizer, or several points of
    an axis.
    """

    def runs(ds: "xr.Dataset") -> "xr.Dataset":
        places = optimizers_of(ds, family)
        if places.size != 1:
            raise CannotDecide(f"needs exactly one {family} optimizer, got {places.size}")
        return one_point(ds).isel(optimizer=int(places[0]))

    return runs


def all_runs(ds: "xr.Dataset") -> "xr.Dataset":
    """Chooses all runs, for claims that compare points of the axes on the same seeds: their parts pick them."""
    return ds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about runs that a Dataset can decide.

    Args:
      id: short name.
      statement: the claim in one sentence.
      source: "paper" or "ours".
      parts: its numbers; a seed counts as inside if all judged parts are.
      steps: recorded steps it needs.
      runs: Dataset -> the runs that the parts measure; default those at the one point of every axis.
      family: in place of `runs`, the optimizer family whose runs are measured, or "" where the parts pick families.
      trusted_until: step up to which no gradient of query noise, key noise or query signal may have underflowed, or
        None. Results of a version that watched query noise alone are read by that.
      explanations: {setting: sentence} for settings where the claim is known not to hold.
      system: name of the function that makes the tasks it is about, or of a `js.Task` that was swept itself; the
        default is also about every system that is not one of jaxsign's.
      judge: "seeds": it holds if more than .9 of all seeds are inside; "mean", for claims about averages: if the 95 %
        interval of the mean over the seeds is.
      settings: the settings of its system that it is about; () for all.

    Raises:
      ValueError: for an unknown judge, parts none of which has an interval, or both `runs` and `family`.
    """

    id: str
    statement: str
    source: str
    parts: tuple[Part, ...]
    steps: tuple[int, ...] = ()
    runs: Runs = one_point
    family: dataclasses.InitVar[str] = ""
    trusted_until: int | None = None
    explanations: dict[str, str] = dataclasses.field(default_factory=dict)
    system: str = "two_layer"
    judge: str = "seeds"
    settings: tuple[str, ...] = ()

    def __post_init__(self, family: str) -> None:
        known("judge", self.judge, JUDGES)
        if isinstance(self.parts, Part):
            object.__setattr__(self, "parts", (self.parts,))
        if all(part.interval is None for part in self.parts):
            raise ValueError(f"parts of claim {self.id!r} must hold at least one with an interval, got {self.parts!r}")
        if family:
            if self.runs is not one_point:
                raise ValueError(f"claim {self.id!r} must have runs or family, got both and family={family!r}")
            object.__setattr__(self, "runs", one_family(family))

    def __repr__(self) -> str:
        return f"Claim({self.id}: {self.statement})"

    def is_about(self, system: str, setting: Setting) -> bool:
        """Whether the claim says something about runs of a system in a setting."""
        return self.system == system and (not self.settings or str(setting) in self.settings)

    def explanation(self, setting: Setting) -> str:
        """Why the claim does not hold in a setting, "" where no reason is known."""
        return self.explanations.get(str(setting)) or self.explanations.get(setting.kind, "")

    def select(self, ds: "xr.Dataset") -> "xr.Dataset":
        """The runs that the parts measure, of the seeds whose runs have all run.

        Raises:
          CannotDecide: saying what the Dataset lacks.
        """
        need_runs(ds)
        self._need_steps(ds)
        runs = _whole_seeds(self.runs(ds))
        if self.trusted_until is not None:
            _need_gradients(runs, self.trusted_until)
        return runs

    def _need_steps(self, ds: "xr.Dataset") -> None:
        """Raises CannotDecide if a step that the claim needs is not recorded."""
        recorded = set(ds["step"].values.tolist()) if "step" in ds.dims else set()
        absent = [step for step in self.steps if step not in recorded]
        if absent:
            raise CannotDecide(f"step {absent[0]} is not recorded")


#: Claims about averages, whose parts pick their runs themselves.
mean_claim = functools.partial(Claim, runs=all_runs, judge="mean")


def _whole_seeds(runs: "xr.Dataset") -> "xr.Dataset":
    """The runs of the seeds that have no run left to do: numbers of others are unknown, not outside an interval.

    Raises:
      CannotDecide: if every seed has one.
    """
    if "status" not in runs or "seed" not in runs["status"].dims:
        return runs
    waiting = runs["status"] < 0
    open_seeds = waiting.any([dim for dim in waiting.dims if dim != "seed"]).values
    if open_seeds.all():
        raise CannotDecide(f"{int(waiting.sum())} of {waiting.size} runs are not run yet, some of every seed")
    return runs.isel(seed=~open_seeds) if open_seeds.any() else runs


def _need_gradients(runs: "xr.Dataset", horizon: int) -> None:
    """Raises CannotDecide if a gradient that the paper's claims are made of underflows up to a step."""
    for name in [name for name in WATCHED if name in runs] or ["first_frozen_step"]:
        if name not in runs:
            raise CannotDecide("the Dataset does not say when query-noise gradients underflow")
        frozen = runs[name]
        early = frozen.where((frozen >= 0) & (frozen <= horizon))
        if bool(early.notnull().any()):
            what = name.removeprefix("first_frozen_").replace("_", "-").replace("step", "query-noise")
            raise CannotDecide(
                f"{what} gradients underflow from step {int(early.min())} on, before the horizon {horizon}; "
                "run it with --x64"
            )


def at_level(ds: "xr.Dataset", level: float, *names: str, leaps: bool = False) -> "xr.Dataset":
    """`js.at_train_loss` of these observables, for claims: a number that is not known is no number outside an interval.

    Args:
      ds: Dataset with train_loss.
      level: training loss in nat, > 0.
      *names: observables that are read.
      leaps: whether runs of which one step leaps over the level are NaN, and no reason to refuse.

    Raises:
      CannotDecide: if one is missing, is NaN at every recorded step of every run, or lies between records that are too
        far apart to be read; if runs start below the level, or leap over it in one step.
    """
    need(ds, "train_loss", *names)
    unknown = [name for name in names if not bool(ds[name].notnull().any())]
    if unknown:
        raise CannotDecide(f"{unknown[0]} is NaN at every recorded step of every run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said by the exception
        at = at_train_loss(ds, level, names, leaps=False)
    if at.attrs["too_coarse"]:
        what = names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        raise CannotDecide(
            f"{what} at training loss {level:g} lies between records too far apart in "
            f"{at.attrs['too_coarse']} runs: run with levels=({level:g},)"
        )
    if at.attrs["leaps"] and not leaps:
        raise CannotDecide(
            f"one step leaps over training loss {level:g} in {at.attrs['leaps']} runs: take a smaller learning rate"
        )
    if at.attrs["below_at_start"]:
        raise CannotDecide(f"{at.attrs['below_at_start']} runs start at or below training loss {level:g}")
    return at


def real_numbers(values: Any) -> np.ndarray:
    """Real numbers as floats: `np.asarray(..., float)` would take None for NaN and drop imaginary parts.

    Raises:
      TypeError: for anything else.
    """
    values = np.asarray(values)
    if values.dtype == object:
        plain = all(isinstance(value, (numbers.Real, np.bool_)) for value in values.ravel())
    else:
        plain = np.can_cast(values.dtype, float)
    if not plain:
        raise TypeError(f"must return real numbers, got the type {values.dtype}: {values.ravel()[:3]!r}")
    return values.astype(float)

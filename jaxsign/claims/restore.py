"""What restores generalisation: mini-batches, weight decay, a smooth sign, early stopping? Claims M1 to M8.

Numbers are shares of the gap that is to be closed: error(SignGD, all examples) - error(GD), at equal training loss.
"""

import functools
import math
from typing import TYPE_CHECKING, Any, TypeVar

from jaxsign import theory
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import (
    best_rate,
    drop_labels,
    family_runs,
    manifest,
    need,
    numbers_of,
    select,
)  # fmt: skip
from jaxsign.claims.claim import Claim, Part, PerSeed, above, all_runs, at_level
from jaxsign.claims.dynamics import problem_of

if TYPE_CHECKING:
    import xarray as xr

#: An error of every seed, or the error that a law predicts.
Number = TypeVar("Number", "xr.DataArray", float)
INF = math.inf
#: Training loss, in nat, at which runs are compared; half-way up for the laws, which hold while all p_i are alike.
LEVEL, LAW_LEVEL = 0.1, 0.3
#: Runs without decay are compared with the last step of a run with decay, at this training loss or above.
LAST_LEVEL = 0.01
OVER_BATCHES = ("paper_like over batch_size",)
FROZEN_OVER_BATCHES = ("w_v alone trained, paper_like over batch_size",)
_HALF_OR_MORE, _LESS_THAN_HALF = (0.5, INF), (-INF, math.nextafter(0.5, 0.0))


def _one(ds: "xr.Dataset", family: str, batch: int | None = None) -> "xr.Dataset":
    """One optimizer's runs over the seeds, at one batch size where there is such an axis."""
    runs = family_runs(ds, family)
    if batch is None:
        return select(runs, family)
    if "batch_size" not in ds.dims:
        raise CannotDecide("needs an axis batch_size")
    return select(runs, family, batch_size=batch)


def whole_batch(ds: "xr.Dataset") -> int | None:
    """The batch size of runs that see all examples, None where there is no such axis."""
    return int(ds["batch_size"].max()) if "batch_size" in ds.dims else None


def closed(before: Number, after: Number, goal: Number) -> Number:
    """(before - after) / (before - goal): 0 if nothing is restored, 1 if GD's error is reached."""
    return (before - after) / (before - goal)


def frozen(ds: "xr.Dataset") -> bool:
    """Whether attention stayed at its start: only w_v was trained."""
    return manifest(ds)["definition"].get("trainable") == ["w_v"]


def _need_attention(ds: "xr.Dataset", trained: bool = True) -> None:
    """Raises CannotDecide unless attention was trained, or was frozen, and losses and errors are there."""
    need(ds, "train_loss", "test_error")
    if frozen(ds) == trained:
        raise CannotDecide(f"needs runs whose attention is {'trained' if trained else 'frozen'}")


def _ends(ds: "xr.Dataset", level: float = LEVEL) -> "tuple[xr.Dataset, xr.DataArray, xr.DataArray]":
    """(Dataset at a training loss, error of SignGD with all examples there, error of GD there)."""
    _need_attention(ds)
    at, whole = at_level(ds, level, "test_error"), whole_batch(ds)
    return at, _one(at, "sign_gd", whole)["test_error"], _one(at, "gd", whole)["test_error"]


def _by_mini_batches(ds: "xr.Dataset", family: str, batch: int) -> "xr.DataArray":
    at, _, goal = _ends(ds)
    return closed(
        _one(at, family, whole_batch(ds))["test_error"], _one(at, family, batch)["test_error"], goal
    )  # fmt: skip


def batch_law(ds: "xr.Dataset", family: str, batch: int, steps: int | None = None) -> float:
    """The law of the test error with mini-batches of this size, of SignGD or Adam."""
    point = ds.isel({dim: 0 for dim in ("batch_size",) if dim in ds.dims})
    problem, hyper = problem_of(point)
    if family == "sign_gd":
        share = theory.sign_batch_share(problem, batch, steps)
    else:
        share = theory.adam_batch_share(problem, batch)
    return float(theory.shared_test_error(problem, hyper.mu, hyper.sigma_p, share))


def _law_closed(ds: "xr.Dataset", family: str, batch: int) -> float:
    problem, hyper = problem_of(ds.isel(batch_size=0))
    before, goal = (float(f(problem, hyper.mu, hyper.sigma_p)) for f in (theory.sign_test_error, theory.gd_test_error))
    return closed(before, batch_law(ds, family, batch), goal)


def _off_law(ds: "xr.Dataset", family: str, batch: int) -> "xr.DataArray":
    """Test error minus law where the training loss falls below .3, attention frozen."""
    _need_attention(ds, trained=False)
    at = _one(at_level(ds, LAW_LEVEL, "test_error"), family, batch)
    steps = float(at["step"].mean())
    if not math.isfinite(steps):
        raise CannotDecide(f"no run with batch_size={batch} gets to a training loss of {LAW_LEVEL:g}")
    return at["test_error"] - batch_law(ds, family, batch, max(1, round(steps)))


def best_decay(ds: "xr.Dataset", family: str, level: float = LEVEL) -> "xr.Dataset":
    """The runs of the strength of decay with the smallest mean test error at a training loss that all its seeds reach.

    Raises:
      CannotDecide: if no strength gets all seeds there.
    """
    at = family_runs(at_level(ds, level, "test_error"), family)
    mean = at["test_error"].mean("seed", skipna=False)
    if not bool(mean.notnull().any()):
        raise CannotDecide(f"no strength of {family} gets all seeds to a training loss of {level:g}")
    return drop_labels(best_rate(at, by=mean))


def _by_decay(ds: "xr.Dataset", family: str, kind: str) -> "xr.DataArray":
    at, _, goal = _ends(ds)
    after = best_decay(ds, f"{family}_{kind}")["test_error"]
    return closed(_one(at, family)["test_error"], after, goal)


def end_of_best_decay(ds: "xr.Dataset", family: str) -> "tuple[xr.Dataset, float]":
    """The last step of the runs with the best strength of decay, and their mean training loss at it.

    The best strength has the smallest mean test error at the last step. Only strengths that end at a training loss of
    .1 or less count: more decay does not fit the data.

    Raises:
      CannotDecide: if there are none.
    """
    ends = family_runs(ds, family).isel(step=-1, drop=True)
    loss = ends["train_loss"].mean("seed", skipna=False)
    error = ends["test_error"].mean("seed", skipna=False).where(loss <= LEVEL)
    if not bool(error.notnull().any()):
        raise CannotDecide(f"no strength of {family} ends at a training loss of {LEVEL:g} or less")
    best = best_rate(ends.assign(mean_loss=loss), by=error)
    return drop_labels(best), float(best["mean_loss"])


def _by_decay_at_end(ds: "xr.Dataset", family: str, kind: str) -> "xr.DataArray":
    """Share of the gap that decay closes by the last step.

    SignGD, Adam and GD without decay are read at the training loss of that step, but not below .01. Where runs captured
    levels, they are read at the nearest level at or above it.
    """
    _need_attention(ds)
    end, loss = end_of_best_decay(ds, f"{family}_{kind}")
    loss = max(loss, LAST_LEVEL)
    above = [level for level in ds["level"].values.tolist() if level >= loss] if "level" in ds.coords else []
    at = at_level(ds, min(above, default=loss), "test_error")
    return closed(_one(at, family)["test_error"], end["test_error"], _one(at, "gd")["test_error"])


def smooth(ds: "xr.Dataset", level: float = LEVEL) -> "xr.DataArray":
    """Share of the gap that each temperature closes, dims (temperature, seed)."""
    at, before, goal = _ends(ds, level)
    runs = family_runs(at, "smooth_sign_gd")
    errors = drop_labels(runs["test_error"].assign_coords(optimizer=numbers_of(runs, "temperature")))
    return closed(before, errors.rename(optimizer="temperature").sortby("temperature"), goal)


def _largest_step_back(ds: "xr.Dataset") -> "xr.DataArray":
    """Every seed's change of the share between the two neighbouring temperatures where the mean falls most."""
    shares = smooth(ds)
    if shares.sizes["temperature"] < 2:
        raise CannotDecide("needs several temperatures")
    steps = shares.diff("temperature")
    return steps.isel(temperature=int(steps.mean("seed").argmin("temperature")))


def stopped(runs: "xr.Dataset") -> "xr.DataArray":
    """Error on the second half of the test set at the first step with the smallest error on the first half.

    Args:
      runs: test_error, and validation_error of the first half, over step; the halves are equally large.
    """
    need(runs, "test_error", "validation_error")
    held_out = 2 * runs["test_error"] - runs["validation_error"]
    measured = runs["validation_error"].notnull() & held_out.notnull() & (runs["step"] > 0)
    place = runs["validation_error"].where(measured, INF).argmin("step")
    return held_out.isel(step=place).where(measured.any("step")).drop_vars("step")


def _by_stopping(ds: "xr.Dataset", family: str) -> "xr.DataArray":
    """Share of the gap at training loss .1 that early stopping closes; all errors are of the held-out half."""
    _need_attention(ds)
    need(ds, "validation_error")
    whole = whole_batch(ds)
    at = _one(at_level(ds, LEVEL, "test_error", "validation_error"), family, whole)
    before = 2 * at["test_error"] - at["validation_error"]
    return closed(before, stopped(_one(ds, family, whole)), stopped(_one(ds, "gd", whole)))


def _claim(
    name: str,
    statement: str,
    settings: tuple[str, ...],
    *parts: tuple[str, PerSeed, Any, Any],
    why: str = "",
) -> Claim:
    return Claim(
        id=name, statement=statement, source="ours", runs=all_runs, parts=tuple(Part(*part) for part in parts),
        judge="mean", settings=settings, explanations=dict.fromkeys(settings, why) if why else {},
    )  # fmt: skip


_share = "share of the gap to GD that is closed at training loss .1"
_late = "the same at its last step, at equal training loss"

CLAIMS: tuple[Claim, ...] = (
    _claim(
        "M1",
        "Mini-batches of 2 close at least half of SignGD's gap in test error to GD",
        OVER_BATCHES,
        (
            f"SignGD, B=2: {_share}",
            functools.partial(_by_mini_batches, family="sign_gd", batch=2),
            _HALF_OR_MORE,
            functools.partial(_law_closed, family="sign_gd", batch=2),
        ),
        (
            "the same, B=1",
            functools.partial(_by_mini_batches, family="sign_gd", batch=1),
            None,
            functools.partial(_law_closed, family="sign_gd", batch=1),
        ),
    ),
    _claim(
        "M2",
        "They close some of Adam's (b2=.999), but less than half: its noise moves sqrt(B/n) as far, not B/n",
        OVER_BATCHES,
        (
            f"Adam, B=2: {_share}",
            functools.partial(_by_mini_batches, family="adam", batch=2),
            (above(0.0)[0], _LESS_THAN_HALF[1]),
            functools.partial(_law_closed, family="adam", batch=2),
        ),
        (
            "the same, B=1",
            functools.partial(_by_mini_batches, family="adam", batch=1),
            None,
            functools.partial(_law_closed, family="adam", batch=1),
        ),
    ),
    *(
        _claim(
            name,
            f"Attention frozen at 1/2, {words}'s test error follows the mini-batch law within .03",
            FROZEN_OVER_BATCHES,
            *(
                (
                    f"error - law at training loss {LAW_LEVEL:g}, B={batch}",
                    functools.partial(_off_law, family=family, batch=batch),
                    (-0.03, 0.03),
                    0.0,
                )
                for batch in (20, 5, 2, 1)
            ),
        )
        for name, words, family in (("M3", "SignGD", "sign_gd"), ("M4", "Adam", "adam"))
    ),
    _claim(
        "M5",
        "Decoupled weight decay restores next to nothing: all weights shrink alike, signs stay as they are",
        ("paper_like",),
        *(
            (
                f"{words}, best of four strengths: {when}",
                functools.partial(measure, family=family, kind="decoupled"),
                (-INF, 0.25),
                0.0,
            )
            for words, family in (("SignGD", "sign_gd"), ("Adam", "adam"))
            for when, measure in ((_share, _by_decay), (_late, _by_decay_at_end))
        ),
    ),
    _claim(
        "M6",
        "Coupled weight decay closes at least half of the gap in the end: weights stop at -g/lambda, as GD's would",
        ("paper_like",),
        *(
            (
                f"{words}, best of four strengths: {when}",
                functools.partial(measure, family=family, kind="coupled"),
                interval,
                None,
            )
            for words, family in (("SignGD", "sign_gd"), ("Adam", "adam"))
            for when, measure, interval in ((_late, _by_decay_at_end, _HALF_OR_MORE), (_share, _by_decay, None))
        ),
        why="the value layer does as said: with attention frozen at 1/2 SignGD ends at an error of .10 (lambda=.03; GD "
        ".10). But attention turns to the noise by t = 130, before weights settle, and stays there (s_21 = .03)",
    ),
    _claim(
        "M7",
        "With growing temperature the smooth sign's error goes from SignGD's to GD's",
        ("paper_like",),
        (
            "tau=1e-9: share of the gap closed at training loss .1",
            lambda ds: smooth(ds).isel(temperature=0, drop=True),
            (-0.1, 0.1),
            0.0,
        ),
        (
            "tau=1: the same",
            lambda ds: smooth(ds).isel(temperature=-1, drop=True),
            (0.9, 1.1),
            1.0,
        ),
        (
            "largest fall of the mean from one temperature to the next",
            _largest_step_back,
            (-0.1, INF),
            None,
        ),
    ),
    _claim(
        "M8",
        "Early stopping on validation error closes less than half of the gap to GD, stopped likewise",
        OVER_BATCHES,
        *(
            (
                f"{words}: share of the gap closed",
                functools.partial(_by_stopping, family=family),
                _LESS_THAN_HALF,
                None,
            )
            for words, family in (("SignGD", "sign_gd"), ("Adam", "adam"))
        ),
    ),
)

"""Which part of SignGD makes its test error rise, and which part of the model takes it? Claims DM1 to DM13.

Runs of sweeps/atlas_dial.py. Errors are read where the training loss first falls to a level; runs of which one step
leaps over it are left out. CELLS of the main dial were looked at in no exploration.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign import theory
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import family_runs, numbers_of, select
from jaxsign.claims.atlas import WITHIN, nearest, snr_of
from jaxsign.claims.claim import Claim, Part, at_level, mean_claim
from jaxsign.claims.dynamics import problem_of

if TYPE_CHECKING:
    import xarray as xr

#: The SNR of the presets.
OWN = 0.0791
#: (p, SNR) of the main dial that are held out: `analysis.held_out` over ("p", "mu").
CELLS = ((0.1, 0.13), (0.1, 0.2), (0.4, 0.04), (0.4, OWN))
OVERLAP, LIMIT = "paper_like over kernel, mu", "disjoint over kernel, mu"
BATCHES = tuple(f"{preset} over batch_size, kernel, mu" for preset in ("paper_like", "disjoint"))


def nearest_snr(ds: "xr.Dataset", snr: float) -> float:
    """The Dataset's SNR nearest to one."""
    return float(snr_of(ds)[nearest(ds, snr)])


def at_snr(ds: "xr.Dataset", snr: float) -> int:
    """The place of an SNR along mu, to 2 %."""
    places = np.flatnonzero(np.isclose(snr_of(ds).values, snr, rtol=0.02))
    if places.size != 1:
        raise CannotDecide(f"needs the SNR {snr:g}")
    return int(places[0])


def reading(
    ds: "xr.Dataset", family: str, level: float, snr: float, name: str = "test_error", **point: Any
) -> "xr.DataArray":
    """An observable at a training loss, one number a seed.

    Args:
      ds: runs over kernel, mu, optimizer and seed.
      family: optimizer family.
      level: training loss in nat.
      snr: SNR of the cell.
      name: observable.
      **point: kernel="softmax" or "uniform", the optimizer's keywords such as p=0.4, and batch_size.

    Returns:
      DataArray (seed); NaN for runs that never get there or leap over the level.

    Raises:
      CannotDecide: if the Dataset lacks the cell.
    """
    runs = select(ds.isel(mu=at_snr(ds, snr)), family, **point)
    return at_level(runs, level, name, leaps=True)[name]


def curve(ds: "xr.Dataset", level: float, snr: float, kernel: str, name: str = "test_error") -> "xr.DataArray":
    """An observable at a training loss along the main dial, dims (p, seed)."""
    return _over_powers(family_runs(ds, "power").isel(mu=at_snr(ds, snr)).sel(kernel=kernel), level, name)


def _over_powers(runs: "xr.Dataset", level: float, name: str) -> "xr.DataArray":
    """An observable of runs along the main dial at a training loss, dims (p, seed)."""
    at = at_level(runs, level, name, leaps=True)[name]
    values = at.assign_coords(p=("optimizer", numbers_of(runs, "p"))).swap_dims(optimizer="p")
    return values.reset_coords(drop=True).sortby("p").transpose("p", "seed")


def law(
    ds: "xr.Dataset",
    level: float,
    snr: float,
    power: float = 0.0,
    *,
    batch_size: int | None = None,
    rule: Callable[[np.ndarray], np.ndarray] | None = None,
) -> float:
    """`theory.error_at_loss` in a cell, the test error at uniform attention; of a rule in place of a power if given."""
    point = {"kernel": 0, "optimizer": 0, "mu": at_snr(ds, snr)}
    if batch_size is not None:
        point["batch_size"] = int(np.flatnonzero(ds["batch_size"].values == batch_size)[0])
    problem, hyper = problem_of(ds.isel({dim: i for dim, i in point.items() if dim in ds.dims}))
    if rule is not None:
        return theory.rule_error_at_loss(problem, hyper, level, rule).error
    return theory.error_at_loss(problem, hyper, level, power).error


def half(powers: Any, errors: Any) -> np.ndarray:
    """The p at which half of the difference between both ends of a curve over p is lost, interpolated linearly.

    Args:
      powers: (p,) increasing.
      errors: (p, ...) errors; a curve crosses its middle once where it falls.

    Returns:
      (...) values of p, at the first crossing; NaN where an error is.

    Examples:
      >>> round(float(half([0.0, 0.5, 1.0], [0.4, 0.3, 0.0])), 3)
      0.667
    """
    powers, errors = np.asarray(powers, float), np.asarray(errors, float)
    middle = (errors[0] + errors[-1]) / 2
    below = errors <= middle
    right = np.maximum(np.argmax(below, axis=0), 1)
    high, low = (np.take_along_axis(errors, place[None], 0)[0] for place in (right - 1, right))
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = (high - middle) / (high - low)
    return np.where(np.isfinite(errors).all(axis=0), powers[right - 1] + weight * np.diff(powers)[right - 1], np.nan)


def half_of(ds: "xr.Dataset", level: float, snr: float, kernel: str) -> "xr.DataArray":
    """`half` of every seed's error along the main dial."""
    values = curve(ds, level, snr, kernel)
    return values.isel(p=0, drop=True).copy(data=half(values["p"], values.values))


def half_at(ds: "xr.Dataset", level: float, d: int, start: float) -> "xr.DataArray":
    """`half` of every seed's error along the main dial at a size and a sigma_0 of entry sizes_overlap; (seed)."""
    if "sigma_0" not in ds.coords or "d" not in ds.dims:
        raise CannotDecide("needs the axes d and sigma_0")
    cell = np.flatnonzero((ds["d"].values == d) & np.isclose(ds["sigma_0"].values, start))
    if cell.size != 1:
        raise CannotDecide(f"needs d = {d} with sigma_0 = {start:g}")
    values = _over_powers(family_runs(ds, "power").isel(d=int(cell[0])), level, "test_error")
    return values.isel(p=0, drop=True).copy(data=half(values["p"], values.values))


def law_half(ds: "xr.Dataset", level: float, snr: float) -> float:
    """`half` of the law at uniform attention."""
    powers = np.linspace(0, 1, 21)
    return float(half(powers, [law(ds, level, snr, p) for p in powers]))


def _from_law(ds: "xr.Dataset", family: str, level: float, snr: float, power: float, **point: Any) -> "xr.DataArray":
    batch = point.get("batch_size")
    return reading(ds, family, level, snr, kernel="uniform", **point) - law(ds, level, snr, power, batch_size=batch)


def _attention(ds: "xr.Dataset", family: str, level: float, snr: float, **point: Any) -> "xr.DataArray":
    """What attention adds to the test error: softmax minus uniform, paired by seed."""
    softmax, uniform = (reading(ds, family, level, snr, kernel=one, **point) for one in ("softmax", "uniform"))
    return softmax - uniform


def _from_sign(ds: "xr.Dataset", family: str, snr: float, kernel: str, **point: Any) -> "xr.DataArray":
    """Error at loss .1 minus that of SignGD, which is Signum with beta = 0."""
    here = reading(ds, family, 0.1, snr, kernel=kernel, **point)
    return here - reading(ds, "signum", 0.1, snr, kernel=kernel, beta=0.0)


def _moved(ds: "xr.Dataset", d: int, start: float) -> "xr.DataArray":
    """The p of half the gap at training loss .1 at a size and sigma_0, minus that at the preset's; paired by seed."""
    return half_at(ds, 0.1, d, start) - half_at(ds, 0.1, 2000, 3e-3)


def _at_share(ds: "xr.Dataset", family: str, share: float, kernel: str = "softmax") -> "xr.DataArray":
    """Error at training loss .1 with queries and keys at a share of their speed; (seed)."""
    if "kernel" not in ds.dims or "share" not in ds.coords:
        raise CannotDecide("needs the axis kernel and the keyword share")
    return at_level(select(ds.sel(kernel=kernel), family, share=share), 0.1, "test_error", leaps=True)["test_error"]


def _apart(ds: "xr.Dataset", family: str, share: float, kernel: str = "softmax") -> "xr.DataArray":
    """`_at_share` minus the same at full speed, paired by seed."""
    return _at_share(ds, family, share, kernel) - _at_share(ds, family, 1.0, kernel)


def _than_gd(ds: "xr.Dataset", family: str) -> "xr.DataArray":
    """`_at_share` at a tenth of the speed minus GD's, paired by seed."""
    return _at_share(ds, family, 0.1) - _at_share(ds, "gd_apart", 1.0)


def _part(measure: Callable[..., Any], label: str, interval: tuple[float, float] | None, **fixed: Any) -> Part:
    return Part(label, functools.partial(measure, **fixed), interval)


_mean = functools.partial(mean_claim, source="ours")


def _at_cells(level: float) -> tuple[Part, ...]:
    return tuple(
        _part(
            _from_law, f"error - law, uniform attention, p={p:g}, SNR {snr:g}, loss {level:g}", WITHIN,
            family="power", level=level, snr=snr, power=p, p=p,
        )
        for p, snr in CELLS
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    _mean(
        id="DM1",
        statement="With uniform attention the test error along |g|^p sgn g at training loss .1 is within .05 of the "
        "law at every held-out cell",
        parts=_at_cells(0.1),
        settings=(OVERLAP, LIMIT),
    ),
    _mean(
        id="DM2",
        statement="So it is at training loss .01",
        parts=_at_cells(0.01),
        settings=(OVERLAP, LIMIT),
    ),
    _mean(
        id="DM3",
        statement="Half of the gap between SignGD and GD at training loss .1 is lost at the larger p, the smaller the "
        "SNR, with softmax and with uniform attention",
        parts=tuple(
            _part(
                half_of, f"p of half the gap, {kernel} attention, SNR {snr:.2g}", interval, level=0.1, snr=snr,
                kernel=kernel,
            )
            for snr, interval in ((OWN, (0.53, 0.7)), (0.13, (0.35, 0.58)), (0.2, (0.22, 0.38)))
            for kernel in ("softmax", "uniform")
        ),
        settings=(OVERLAP,),
    ),
    _mean(
        id="DM4",
        statement="At d = 2000 it is the value layer: attention adds at most .05 to the test error at training loss "
        ".1, for every p, where it was not explored",
        parts=tuple(
            _part(
                _attention, f"softmax - uniform, p={p:g}, SNR {snr:g}", (-0.02, 0.05), family="power", level=0.1,
                snr=snr, p=p,
            )
            for snr in (0.025, 0.13) for p in (0.0, 0.3, 0.6, 1.0)
        ),
        settings=(OVERLAP,),
    ),
    _mean(
        id="DM5",
        statement="What attention adds grows towards GD and as training goes on: at SNR .079 and training loss .01 at "
        "least .05 for p >= .7, at most .02 for SignGD",
        parts=(
            *(
                _part(
                    _attention, f"softmax - uniform, p={p:g}", (0.05, 0.2), family="power", level=0.01, snr=OWN, p=p
                )
                for p in (0.7, 0.9, 1.0)
            ),
            _part(_attention, "softmax - uniform, p=0", (-0.01, 0.02), family="power", level=0.01, snr=OWN, p=0.0),
        ),
        settings=(OVERLAP,),
    ),
    _mean(
        id="DM6",
        statement="Without overlap, at SNR .04 and training loss .1, attention adds at least .04 to the test error for "
        "every p <= .7, and at p = .6 more than the value layer has",
        parts=(
            *(
                _part(
                    _attention, f"softmax - uniform, p={p:g}", (0.04, 0.25), family="power", level=0.1, snr=0.04, p=p
                )
                for p in (0.0, 0.2, 0.4, 0.6, 0.7)
            ),
            _part(
                lambda ds, **where: _attention(ds, **where) - reading(ds, kernel="uniform", **where),
                "attention's share minus the value layer's, p=.6", (0.0, 0.5), family="power", level=0.1, snr=0.04,
                p=0.6,
            ),
        ),
        settings=(LIMIT,),
    ),
    _mean(
        id="DM7",
        statement="Mini-batches of 5: with uniform attention the error of SignGD and GD at training loss .1 is within "
        ".05 of the law",
        parts=tuple(
            _part(
                _from_law, f"error - law, uniform attention, B=5, p={p:g}, SNR {snr:.2g}", WITHIN, family="power",
                level=0.1, snr=snr, power=p, p=p, batch_size=5,
            )
            for p in (0.0, 1.0) for snr in (0.04, OWN)
        ),
        settings=BATCHES,
    ),
    _mean(
        id="DM8",
        statement="Memory is not it: Signum (beta <= .9) and RMSprop (decay .9) have SignGD's test error at training "
        "loss .1 within .05, with softmax and uniform attention",
        parts=tuple(
            _part(
                _from_sign, f"{family} - SignGD, {kernel}, {word}={number:g}", WITHIN, family=family, snr=OWN,
                kernel=kernel, **{word: number},
            )
            for family, word, number in (("signum", "beta", 0.5), ("signum", "beta", 0.9), ("rmsprop", "decay", 0.9))
            for kernel in ("softmax", "uniform")
        ),
        settings=(OVERLAP, LIMIT),
    ),
    _mean(
        id="DM9",
        statement="A norm is not it: with uniform attention descent along a gradient over its norm, of each tensor or "
        "row, and Muon have GD's test error at training loss .1 within .05",
        parts=tuple(
            _part(
                _from_law, f"error of {family} - GD's law, uniform attention, SNR {snr:.2g}", WITHIN, family=family,
                level=0.1, snr=snr, power=1.0,
            )
            for family in ("tensor_gd", "row_gd", "muon") for snr in (0.04, OWN)
        ),
        settings=(OVERLAP, LIMIT),
    ),
    _mean(
        id="DM10",
        statement="Scale is: with uniform attention tanh(g/tau) has SignGD's error at tau = 1e-5 and GD's at tau = .1, "
        "and Adam SignGD's at eps = 1e-15 and GD's at eps = .1, within .05",
        parts=tuple(
            _part(
                _from_law, f"error - law of {end}, {family}, {word}={number:g}, SNR .079", WITHIN, family=family,
                level=0.1, snr=OWN, power=power, **{word: number},
            )
            for family, word, ends in (
                ("smooth", "temperature", (1e-5, 0.1)), ("adam", "eps", (1e-15, 0.1)),
            )
            for number, power, end in ((ends[0], 0.0, "SignGD"), (ends[1], 1.0, "GD"))
        ),
        settings=(OVERLAP, LIMIT),
    ),
    _mean(
        id="DM11",
        statement="A norm lets attention catch up: with softmax attention the test error at training loss .1 is larger "
        "than with uniform attention by at least .05 (tensor, row) and .15 (Muon)",
        parts=tuple(
            _part(
                _attention, f"softmax - uniform, {family}, SNR .079", interval, family=family, level=0.1, snr=OWN
            )
            for family, interval in (("tensor_gd", (0.05, 0.5)), ("row_gd", (0.05, 0.5)), ("muon", (0.15, 0.5)))
        ),
        settings=(OVERLAP,),
    ),
    _mean(
        id="DM12",
        statement="Where half of the gap is lost depends on d and not on sigma_0: at SNR .079 and training loss .1 the "
        "p is smaller by .05 or more at d = 8000 than at 2000, between the two at 4000, and within .05 of it at 2000 "
        "with sigma_0 = 3e-4",
        parts=(
            _part(_moved, "p of half the gap, d = 8000 - 2000", (-0.3, -0.05), d=8000, start=3e-3),
            _part(_moved, "p of half the gap, d = 4000 - 2000", (-0.2, 0.0), d=4000, start=3e-3),
            _part(_moved, "p of half the gap, sigma_0 = 3e-4 - 3e-3", (-0.05, 0.05), d=2000, start=3e-4),
            *(
                _part(
                    half_at, f"p of half the gap, d = {d}, sigma_0 = {start:g}, loss {level:g}", None, level=level,
                    d=d, start=start,
                )
                for d, start in ((2000, 3e-3), (4000, 3e-3), (8000, 3e-3), (2000, 3e-4)) for level in (0.5, 0.1, 0.01)
            ),
        ),
        settings=("paper_like over d",),
    ),
    _mean(
        id="DM13",
        statement="In attention it is how fast queries and keys move: at SNR .079 and training loss .1, with softmax "
        "attention, rules with a norm whose queries and keys move at a tenth of the speed err as GD does within .05 "
        "(tensor, row) or less by .1 or more than at full speed (Muon), and GD whose queries and keys move 10 and 100 "
        "times as fast errs more by .05 and .2 or more; with uniform attention none of this happens",
        parts=(
            *(
                _part(_than_gd, f"error({name}, queries and keys at .1) - error(GD)", WITHIN, family=f"{name}_apart")
                for name in ("tensor", "row")
            ),
            _part(
                _apart, "error(Muon, queries and keys at .1) - error(Muon)", (-0.5, -0.1), family="muon_apart",
                share=0.1,
            ),
            *(
                _part(_apart, f"error(GD, queries and keys at {share:g}) - error(GD)", interval, family="gd_apart",
                      share=share)
                for share, interval in ((10.0, (0.05, 0.5)), (100.0, (0.2, 0.5)))
            ),
            *(
                _part(_apart, f"the same, uniform attention, {family.removesuffix('_apart')}, {share:g}", WITHIN,
                      family=family, share=share, kernel="uniform")
                for family, share in (("muon_apart", 0.1), ("gd_apart", 100.0))
            ),
            *(
                _part(_at_share, f"error({family.removesuffix('_apart')}, queries and keys at {share:g})", None,
                      family=family, share=share)
                for family, shares in (
                    ("tensor_apart", (1.0, 0.1)), ("row_apart", (1.0, 0.1)), ("muon_apart", (1.0, 0.1)),
                    ("gd_apart", (1.0, 10.0, 100.0)),
                )
                for share in shares
            ),
        ),
        settings=("paper_like over kernel",),
    ),
)  # fmt: skip

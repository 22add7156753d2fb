"""Does more data help SignGD? Claims N4 to N9 on the map of the number of examples."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jaxsign.analysis.reading import CannotDecide
from jaxsign.claims.atlas import CLOSE, POWERS, errors, from_law, laws, nearest, snr_of
from jaxsign.claims.claim import Claim, Part, PerSeed, mean_claim

if TYPE_CHECKING:
    import xarray as xr

#: At which training loss and test error the boundary is.
LEVEL, ERROR = 0.1, 0.25
#: From how many examples on the boundary's slope is taken: for fewer, initial weights decide and not overlap.
FROM = 16
MAP = ("paper_like, disjoint supports over n, mu",)
#: sigma_0 at mu = 1 of the preset, and those of N8.
START, SMALL_STARTS = 3e-3, (3e-4, 3e-5)
#: The setting of entry `wide`, whose dimension is an axis of its own.
WITH_D = ("paper_like, disjoint supports over n, d, mu",)


def boundary(error: "xr.DataArray", snr: np.ndarray) -> "xr.DataArray":
    """SNR at which the test error is .25, by a logistic fit error = 1/2 / (1 + (SNR/b)^(1/w)) for every n and seed.

    Args:
      error: test errors, with dimensions mu, n and seed, or mu and n for a law.
      snr: SNR of every point of mu.

    Returns:
      b, without the dimension mu; NaN where errors do not fall through .25.
    """
    import xarray as xr
    from scipy.optimize import least_squares
    from scipy.special import expit

    log_snr, table = np.log(snr), error.transpose("mu", ...)
    out = np.full(table.shape[1:], np.nan)
    for index in np.ndindex(out.shape):
        values = table.values[(slice(None), *index)]
        known = np.isfinite(values)
        if known.sum() < 3 or values[known].max() < ERROR or values[known].min() > ERROR:
            continue
        x, y = log_snr[known], values[known]

        def miss(at: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> np.ndarray:
            return np.asarray(0.5 * expit((at[0] - x) / np.exp(at[1])) - y)

        out[index] = np.exp(least_squares(miss, [x[np.argmin(np.abs(y - ERROR))], np.log(0.5)]).x[0])
    dims = [dim for dim in table.dims if dim != "mu"]
    return xr.DataArray(out, dims=dims, coords={dim: table[dim] for dim in dims})


def slope(b: "xr.DataArray") -> "xr.DataArray":
    """The slope of ln b over ln n, over the n from FROM on."""
    some: xr.DataArray = b.sel(n=b["n"] >= FROM)
    if some.sizes["n"] < 3:
        raise CannotDecide(f"needs three n from {FROM} on, got {some.sizes['n']}")
    logs = (some.copy(data=np.log(some.values))).assign_coords(n=np.log(some["n"].values))
    return logs.polyfit("n", 1)["polyfit_coefficients"].sel(degree=1, drop=True)


def started(ds: "xr.Dataset", start: float, d: int | None = None) -> "xr.Dataset":
    """The cells of a map with one sigma_0 at mu = 1, and with one dimension where d is an axis."""
    places = np.flatnonzero(np.isclose(ds["sigma_0"].values * ds["mu"].values, start, rtol=1e-4))
    if not places.size or not (d is None or d in ds["d"].values):
        raise CannotDecide(f"needs runs with sigma_0 = {start:g} at mu = 1" + (f" and d = {d}" if d else ""))
    chosen = ds.isel(mu=places)
    return chosen if d is None else chosen.isel(d=int(np.flatnonzero(chosen["d"].values == d)[0]))


def _slope(family: str, start: float = START, d: int | None = None) -> PerSeed:
    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        some = started(ds, start, d)
        return slope(boundary(errors(some, family, LEVEL), snr_of(some).values))

    return measure


def _law_slope(family: str, start: float = START, d: int | None = None) -> PerSeed:
    def predict(ds: "xr.Dataset") -> "xr.DataArray":
        some = started(ds, start, d)
        return slope(boundary(laws(some, LEVEL, POWERS[family]), snr_of(some).values))

    return predict


def _error(n: int) -> PerSeed:
    """GD's error at the smallest sigma_0, some n and the SNR nearest to .017."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        some = started(ds, SMALL_STARTS[-1])
        if n not in some["n"].values:
            raise CannotDecide(f"needs runs with n = {n}")
        return errors(some, "gd", LEVEL).isel(mu=nearest(some, 0.017)).sel(n=n)

    return measure


def _law_error(n: int) -> Callable[["xr.Dataset"], float]:
    def predict(ds: "xr.Dataset") -> float:
        some = started(ds, SMALL_STARTS[-1])
        return float(laws(some, LEVEL, POWERS["gd"]).isel(mu=nearest(some, 0.017)).sel(n=n))

    return predict


def _from_law(family: str) -> PerSeed:
    return lambda ds: from_law(started(ds, START), family, LEVEL, "mu", "n")


CLAIMS: tuple[Claim, ...] = (
    mean_claim(
        id="N4",
        statement="At d = 20,000 more data moves SignGD's boundary up: the SNR at which its error is .25 at training "
        "loss .1 grows with n from 16 to 128",
        source="ours",
        settings=MAP,
        parts=(Part("d ln(boundary)/d ln(n), SignGD", _slope("sign_gd"), (0.2, 0.8), _law_slope("sign_gd")),),
    ),
    mean_claim(
        id="N5",
        statement="There more data moves GD's boundary down",
        source="ours",
        settings=MAP,
        parts=(Part("d ln(boundary)/d ln(n), GD", _slope("gd"), (-0.8, -0.1), _law_slope("gd")),),
    ),
    mean_claim(
        id="N6",
        statement="The law of uniform attention gives SignGD's test error at every n and SNR there, attention trained",
        source="ours",
        settings=MAP,
        parts=(Part("rms(error - law) at held-out cells, SignGD", _from_law("sign_gd"), (0.0, CLOSE), 0.0),),
    ),
    mean_claim(
        id="N7",
        statement="The same of GD",
        source="ours",
        settings=MAP,
        parts=(Part("rms(error - law) at held-out cells, GD", _from_law("gd"), (0.0, CLOSE), 0.0),),
    ),
    mean_claim(
        id="N8",
        statement="With small initial weights more data does not move GD's boundary down: at d = 20,000, training loss "
        ".1 and sigma_0 = 3e-4 and 3e-5 at mu = 1 its slope from n = 16 to 128 is above -.08",
        source="ours",
        settings=MAP,
        parts=(
            *(
                Part(
                    f"d ln(boundary)/d ln(n), GD, sigma_0 {start:g} at mu = 1",
                    _slope("gd", start),
                    (-0.08, math.inf),
                    _law_slope("gd", start),
                )
                for start in SMALL_STARTS
            ),
            *(
                Part(f"error(GD), SNR .017, n = {n}, sigma_0 3e-05 at mu = 1", _error(n), None, _law_error(n))
                for n in (4, 32)
            ),
        ),
    ),
    mean_claim(
        id="N9",
        statement="SignGD's slope depends on d: at d = 200,000, training loss .1 and sigma_0 = .003 at mu = 1 it is "
        "below .3 from n = 16 to 128",
        source="ours",
        settings=WITH_D,
        parts=tuple(
            Part(
                f"d ln(boundary)/d ln(n), SignGD, d = {d:,}",
                _slope("sign_gd", d=d),
                (-math.inf, 0.3) if d == 200_000 else None,
                _law_slope("sign_gd", d=d),
            )
            for d in (200_000, 2_000_000)
        ),
    ),
)

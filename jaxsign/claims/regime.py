"""What happens towards the regime of the paper's theorem, and over a whole training? Claims C2r, N1 to N3, N10."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jaxsign.analysis.equal_loss import levels_of
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import manifest
from jaxsign.claims.atlas import NAMES, errors, nearest
from jaxsign.claims.claim import Claim, Part, PerSeed, mean_claim

if TYPE_CHECKING:
    import xarray as xr

INF = math.inf
#: sigma_p / (d^(1/4) n^3) from which on a point counts as in the theorem's regime.
CONSTANT = 0.1


def constant_of(ds: "xr.Dataset") -> np.ndarray:
    """The constant sigma_p / (d^(1/4) n^3) of every point, at mu = 1."""
    sigma_p = float(manifest(ds)["definition"]["hyper"]["sigma_p"]) / ds["mu"].values
    return np.asarray(sigma_p / (ds["d"].values.astype(float) ** 0.25 * ds["n"].values.astype(float) ** 3))


def _over_regime(ds: "xr.Dataset", family: str, name: str, small_start: bool) -> "xr.DataArray":
    """Test error or loss at training loss .1 at the points in the regime, for one of the two starts, dims (n, seed)."""
    starts = ds["sigma_0"].values * (1.0 if small_start else ds["mu"].values)
    if not np.allclose(starts, starts[0], rtol=1e-4):
        raise CannotDecide(f"needs runs with {'one sigma_0' if small_start else 'sigma_0 in proportion to 1/mu'}")
    inside = np.flatnonzero(constant_of(ds) >= CONSTANT * (1 - 1e-6))
    if not inside.size:
        raise CannotDecide(f"no point has sigma_p >= {CONSTANT} d^(1/4) n^3")
    return errors(ds, family, 0.1, name).isel(n=inside)


def _in_regime(family: str, name: str, small_start: bool = True) -> PerSeed:
    """The smallest over the points in the regime of those that are reached."""
    return lambda ds: _over_regime(ds, family, name, small_start).min("n", skipna=True)


def _reached(family: str, small_start: bool) -> PerSeed:
    """Share of the points in the regime at which a seed reaches training loss .1."""
    return lambda ds: _over_regime(ds, family, "test_error", small_start).notnull().mean("n")


def smallest_test_loss(ds: "xr.Dataset", family: str) -> "xr.DataArray":
    """Smallest test loss of a family over all levels of the training loss that it reaches, by SNR and seed."""
    reached = []
    for level in levels_of(ds, ()):
        try:
            reached.append(errors(ds, family, level, "test_loss"))
        except CannotDecide:
            continue
    if not reached:
        raise CannotDecide(f"{family} reaches no level")
    import xarray as xr

    return xr.concat(reached, "level").min("level", skipna=True)


def _smallest(family: str, snr: float) -> PerSeed:
    return lambda ds: smallest_test_loss(ds, family).isel(mu=nearest(ds, snr))


def _at_start(family: str, n: int, constant: float, start: float) -> PerSeed:
    """Test error at training loss .1 at one n and constant, with one sigma_0 at sigma_p = 2."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        cell = np.flatnonzero(
            (ds["n"].values == n)
            & np.isclose(constant_of(ds), constant, rtol=1e-4)
            & np.isclose(ds["sigma_0"].values, start, rtol=1e-4)
        )
        if cell.size != 1:
            raise CannotDecide(f"needs n = {n}, sigma_p = {constant:g} d^(1/4) n^3 and sigma_0 = {start:g}")
        return errors(ds, family, 0.1).isel(n=int(cell[0]))

    return measure


def _shares_that_reach(small_start: bool) -> tuple[Part, ...]:
    return tuple(
        Part(f"share of these points at which training loss .1 is reached, {name}", _reached(family, small_start), None)
        for family, name in NAMES.items()
    )


CLAIMS: tuple[Claim, ...] = (
    mean_claim(
        id="C2r",
        statement="In the disjoint preset at SNR .079 SignGD's test loss stays above .1 down to a training loss of "
        "1e-8; Adam's and GD's, at the training losses that they reach, are beside it",
        source="paper, restated over the whole training",
        settings=("disjoint over mu",),
        parts=(
            Part("smallest test loss over the levels, SignGD, SNR .079", _smallest("sign_gd", 0.079), (0.1, INF)),
            Part("the same, Adam", _smallest("adam", 0.079), None),
            Part("the same, GD", _smallest("gd", 0.079), None),
            Part("the same, SignGD, SNR .64", _smallest("sign_gd", 0.64), None),
            Part("the same, GD, SNR .64", _smallest("gd", 0.64), None),
        ),
    ),
    mean_claim(
        id="N1",
        statement="Towards the theorem's regime, sigma_p >= .1 d^(1/4) n^3 with n = 4 to 16, SignGD, Adam and GD all "
        "guess at training loss .1, initial features small, wherever they get there",
        source="ours",
        settings=("paper_like, disjoint supports over n",),
        parts=(
            *(
                Part(
                    f"smallest test error over these points, {name}", _in_regime(family, "test_error"), (0.4, 0.6), 0.5
                )
                for family, name in NAMES.items()
            ),
            *_shares_that_reach(small_start=True),
        ),
    ),
    mean_claim(
        id="N2",
        statement="There the test loss does not tell SignGD from GD either: both stay at ln 2 or above",
        source="paper for SignGD, ours for GD",
        settings=("paper_like, disjoint supports over n",),
        parts=tuple(
            Part(
                f"smallest test loss over these points, {NAMES[family]}",
                _in_regime(family, "test_loss"),
                (0.66, INF),
                math.log(2),
            )
            for family in ("sign_gd", "gd")
        ),
    ),
    mean_claim(
        id="N3",
        statement="N1 with the presets' sigma_0 = 3e-3, at which initial features are large",
        source="ours",
        settings=("paper_like, disjoint supports over n",),
        parts=(
            *(
                Part(
                    f"smallest test error over these points, {name}",
                    _in_regime(family, "test_error", small_start=False),
                    (0.4, 0.6),
                    0.5,
                )
                for family, name in NAMES.items()
            ),
            *_shares_that_reach(small_start=False),
        ),
    ),
    mean_claim(
        id="N10",
        statement="In the regime guessing is the initial weights' doing: at sigma_p = .3 and 1 times d^(1/4) n^3, n = "
        "4 and training loss .1 SignGD errs less than .1 once sigma_0 is 3e-7 at sigma_p = 2; GD still guesses there",
        source="ours",
        settings=("paper_like, disjoint supports over n",),
        parts=(
            *(
                Part(f"error of {name}, n = 4, c = {c:g}, sigma_0 = 3e-7", _at_start(family, 4, c, 3e-7), interval)
                for c in (0.3, 1.0)
                for family, name, interval in (("sign_gd", "SignGD", (-INF, 0.1)), ("gd", "GD", (0.4, 0.6)))
            ),
            Part("error of SignGD, n = 4, c = 1, sigma_0 = 3e-4", _at_start("sign_gd", 4, 1.0, 3e-4), (0.4, 0.6)),
            Part("the same, sigma_0 = 1e-5", _at_start("sign_gd", 4, 1.0, 1e-5), None),
            Part("the same, n = 8, sigma_0 = 3e-7", _at_start("sign_gd", 8, 1.0, 3e-7), (-INF, 0.2)),
        ),
    ),
)

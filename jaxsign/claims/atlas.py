"""Where does the test error at equal training loss come from? Claims E1 to E9 on the error map of the atlas."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jaxsign import theory
from jaxsign.analysis.held_out import held_out
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import manifest, numbers_of, optimizers_of
from jaxsign.claims.claim import Claim, Part, PerSeed, at_level, mean_claim
from jaxsign.claims.dynamics import problem_of
from jaxsign.systems.two_layer.problem import Hyper, Problem

if TYPE_CHECKING:
    import xarray as xr

INF = math.inf
#: The exponent p of |g|^p sgn(g) with whose law a family's error is compared.
POWERS = {"sign_gd": 0.0, "adam": 0.0, "gd": 1.0}
#: The families as sentences name them.
NAMES = {"sign_gd": "SignGD", "adam": "Adam", "gd": "GD"}
#: How far an error may be from the law for a cell to count as explained.
CLOSE = 0.05
#: Adam on all parts, as entry `exchanged` names it, and how far an error may be above another for none to be raised.
ADAM, AT_MOST = "adam_on_attention_signal_noise", (-INF, CLOSE)
WITHIN = (-CLOSE, CLOSE)
#: The map's setting, as claims name it.
MAP = ("paper_like, disjoint supports over kernel, d, mu",)


def errors(ds: "xr.Dataset", family: str, level: float, name: str = "test_error") -> "xr.DataArray":
    """Test error of every seed when the training loss reaches a level: the largest over a family's learning rates.

    Runs that do not reach the level, or leap over it in one step, are left out.

    Args:
      ds: Dataset of a map.
      family: optimizer family.
      level: training loss that was captured.
      name: "test_error" or "test_loss".

    Returns:
      DataArray over the axes of the map and seed; NaN where no learning rate has it.
    """
    runs = ds.isel(optimizer=optimizers_of(ds, family))
    if not runs.sizes["optimizer"]:
        raise CannotDecide(f"needs runs of {family}")
    return at_level(runs, level, name, leaps=True)[name].max("optimizer", skipna=True)


def snr_of(ds: "xr.Dataset") -> "xr.DataArray":
    """SNR = mu / (sigma_p sqrt(s)) along the axis mu."""
    if "mu" not in ds.dims:
        raise CannotDecide("needs the axis mu")
    definition = manifest(ds)["definition"]
    snr: xr.DataArray = ds["mu"] / (definition["hyper"]["sigma_p"] * math.sqrt(definition["problem"]["s"]))
    return snr


def nearest(ds: "xr.Dataset", snr: float) -> int:
    """The place along mu whose SNR is nearest to one."""
    return int(np.argmin(np.abs(np.log(snr_of(ds).values / snr))))


def laws(ds: "xr.Dataset", level: float, power: float, *, initial: bool = True, overlap: bool = True) -> "xr.DataArray":
    """The law of the error at equal training loss over a map's axes of problem and numbers.

    Args:
      ds: Dataset of a map; its axes but kernel, optimizer and seed are numbers or sizes of the two-layer system.
      level: training loss.
      power: p.
      initial: whether initial weights count.
      overlap: whether fresh patches share coordinates with training.

    Returns:
      DataArray over these axes.
    """
    import xarray as xr

    skipped = ("kernel", "optimizer", "seed")
    dims = [str(dim) for dim in ds["status"].dims if dim not in skipped]
    out = np.empty([ds.sizes[dim] for dim in dims])
    # Numbers and sizes are coordinates: a cell is chosen faster without the runs.
    flat = ds.drop_vars(ds.data_vars).isel({dim: 0 for dim in skipped if dim in ds["status"].dims})
    for index in np.ndindex(out.shape):
        problem, hyper = problem_of(flat.isel(dict(zip(dims, index))))
        if not initial:
            hyper = dataclasses.replace(hyper, sigma_0=0.0)
        if not overlap:
            problem = dataclasses.replace(problem, overlap="none", d=max(problem.d, (problem.n + 1) * problem.s + 1))
        out[index] = _law(
            problem, *(float(getattr(hyper, name)) for name in ("sigma_p", "mu", "sigma_0")), level, power
        )
    return xr.DataArray(out, dims=dims, coords={dim: ds[dim] for dim in dims})


@functools.lru_cache(maxsize=4096)
def _law(problem: Problem, sigma_p: float, mu: float, sigma_0: float, level: float, power: float) -> float:
    """The law of one cell: figures and claims ask for it again and again."""
    return theory.error_at_loss(problem, Hyper(sigma_p, mu, sigma_0), level, power).error


def from_law(ds: "xr.Dataset", family: str, level: float, *dims: str, **at: str) -> "xr.DataArray":
    """Root mean square distance of a family's error from its law over the held-out cells of a map, one number a seed.

    Args:
      ds: Dataset of a map.
      family: optimizer family.
      level: training loss that was captured.
      *dims: axes of the map.
      **at: points of other axes, such as kernel="uniform".

    Returns:
      DataArray (seed); cells that no run reached are left out.
    """
    away = errors(ds, family, level).sel(at) - laws(ds, level, POWERS[family])
    cells = held_out(away, *dims)
    if not bool(cells.any()):
        raise CannotDecide("no cell of the map is held out")
    return (away.where(cells) ** 2).mean(dims, skipna=True) ** 0.5


def _from_law(family: str, kernel: str, level: float) -> PerSeed:
    return lambda ds: from_law(ds, family, level, "d", "mu", kernel=kernel)


def _share(family: str, level: float, everywhere: bool = False) -> PerSeed:
    """Attention's mean share of the error over the cells where the law of SignGD lies between .05 and .45.

    Over those of them that are held out, or over all.
    """

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        error, law = errors(ds, family, level), laws(ds, level, 0.0)
        cells = (law > 0.05) & (law < 0.45)
        cells = cells if everywhere else cells & held_out(law, "d", "mu")
        if not bool(cells.any()):
            raise CannotDecide("no held-out cell has an error between chance and 0")
        return (error.sel(kernel="softmax") - error.sel(kernel="uniform")).where(cells).mean(("d", "mu"), skipna=True)

    return measure


def _limit(ds: "xr.Dataset") -> "xr.Dataset":
    """The runs without overlap, d -> infinity."""
    place = np.flatnonzero(ds["overlap"].values == "none")
    if place.size != 1:
        raise CannotDecide("needs one point without overlap")
    return ds.isel(d=place)


def _gap_without_overlap(level: float) -> PerSeed:
    """error(SignGD) - error(GD), attention trained, d -> infinity, at the SNR where the law puts it highest."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        limit = _limit(ds)
        law = (laws(limit, level, 0.0) - laws(limit, level, 1.0)).isel(d=0)
        at = {"d": 0, "mu": int(law.argmax("mu"))}
        one = limit.sel(kernel="softmax")
        return (errors(one, "sign_gd", level) - errors(one, "gd", level)).isel(at)

    return measure


def _predicted_gap(level: float) -> Callable[["xr.Dataset"], float]:
    def predict(ds: "xr.Dataset") -> float:
        limit = _limit(ds)
        return float((laws(limit, level, 0.0) - laws(limit, level, 1.0)).max())

    return predict


def _small_start_error(ds: "xr.Dataset") -> "xr.DataArray":
    """SignGD's error at training loss .1 in the limit d -> infinity, at the SNR nearest to 10^-1.5."""
    return errors(_limit(ds), "sign_gd", 0.1).isel(d=0, mu=nearest(ds, 10**-1.5))


def _from_law_over_starts(family: str, kernel: str, level: float) -> PerSeed:
    """Root mean square distance of a family's error from its law over sigma_0, SNR and d, one number a seed."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        away = errors(ds, family, level).sel(kernel=kernel) - laws(ds, level, POWERS[family])
        return (away**2).mean(("d", "mu", "sigma_0"), skipna=True) ** 0.5

    return measure


def _strong(ds: "xr.Dataset", family: str, level: float, **point: float) -> "xr.DataArray":
    """A family's error where the SNR is .3 or more, the mean over these SNRs; of the slowest learning rate."""
    at_strong = _chosen(ds, family, level, "test_error", **point).isel(mu=np.flatnonzero(snr_of(ds).values > 0.3))
    return at_strong.mean([dim for dim in at_strong.dims if dim != "seed"])


def _chosen(ds: "xr.Dataset", family: str, level: float, name: str, **point: float) -> "xr.DataArray":
    """An observable of a family at a training loss, at a point of its grid; of the slowest learning rate."""
    found = optimizers_of(ds, family)
    for keyword, number in point.items():
        found = found[np.isclose(numbers_of(ds.isel(optimizer=found), keyword), number)]
    if not found.size:
        raise CannotDecide(f"needs runs of {family}")
    runs = ds.isel(optimizer=found[np.argsort(ds["learning_rate"].values[found])[:1]])
    there: xr.DataArray = at_level(runs, level, name, leaps=True)[name].isel(optimizer=0)
    return there


def _above(one: str, other: str, level: float = 0.01, **point: float) -> PerSeed:
    """Error of one optimizer, at a point of its grid, minus that of another at equal training loss, paired by seed."""
    return lambda ds: _strong(ds, one, level, **point) - _strong(ds, other, level)


def _of(family: str, **point: float) -> PerSeed:
    return lambda ds: _strong(ds, family, 0.01, **point)


def _signal(family: str, **point: float) -> PerSeed:
    """<v, mu> at training loss .01 and the largest SNR."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        signal = _chosen(ds, family, 0.01, "value_signal", **point).isel(mu=int(np.argmax(snr_of(ds).values)))
        return signal.mean([dim for dim in signal.dims if dim != "seed"])

    return measure


def _at_uniform(family: str, overlap: bool) -> PerSeed:
    """Error of a rule minus SignGD's at training loss .01: where the SNR is .3 or more, or in the limit at SNR .032."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        runs = ds.isel(d=np.flatnonzero((ds["overlap"].values == "none") != overlap))
        runs = runs.isel(kernel=0) if "kernel" in runs.dims else runs
        gap = _chosen(runs, family, 0.01, "test_error") - _chosen(runs, "sign_gd", 0.01, "test_error")
        cells = np.flatnonzero(snr_of(ds).values > 0.3) if overlap else [nearest(ds, 10**-1.5)]
        return gap.isel(mu=cells).mean([dim for dim in gap.dims if dim != "seed"])

    return measure


def _between_shares(one: float, other: float) -> PerSeed:
    return lambda ds: _strong(ds, "slow_signal", 0.01, share=one) - _strong(ds, "slow_signal", 0.01, share=other)


def _between_memories(one: float, other: float) -> PerSeed:
    return lambda ds: _strong(ds, "adam_on_signal", 0.01, b2=one) - _strong(ds, "adam_on_signal", 0.01, b2=other)


CLAIMS: tuple[Claim, ...] = (
    mean_claim(
        id="E1",
        statement="With uniform attention the test error at equal training loss is Phi(-signal/sqrt(overlap^2 + "
        "initial^2)) at every SNR and d, for SignGD, Adam and GD",
        source="ours",
        settings=MAP,
        parts=tuple(
            Part(
                f"rms(error - law) at held-out cells, {NAMES[f]}, loss {level:g}",
                _from_law(f, "uniform", level),
                (0.0, 0.04),
                0.0,
            )
            for level in (0.1, 0.01)
            for f in POWERS
        ),
    ),
    mean_claim(
        id="E2",
        statement="With attention trained SignGD's test error at training loss .1 and .01 is still that of the law",
        source="ours",
        settings=MAP,
        parts=tuple(
            Part(
                f"rms(error - law) at held-out cells, loss {level:g}",
                _from_law("sign_gd", "softmax", level),
                (0.0, CLOSE),
                0.0,
            )
            for level in (0.1, 0.01)
        ),
    ),
    mean_claim(
        id="E3",
        statement="At training loss .01 attention raises Adam's test error by .05 or more on average where the law is "
        "between .05 and .45, and SignGD's by less than .05",
        source="ours",
        settings=MAP,
        parts=(
            Part("attention's mean share at held-out cells, Adam, loss .01", _share("adam", 0.01), (0.05, 0.5)),
            Part("the same, SignGD", _share("sign_gd", 0.01), (-0.05, 0.05)),
            Part("the same, GD", _share("gd", 0.01), None),
            Part("the same, Adam, loss .1", _share("adam", 0.1), None),
            *(
                Part(f"the same over all cells, {NAMES[family]}, loss .01", _share(family, 0.01, everywhere=True), None)
                for family in NAMES
            ),
        ),
    ),
    mean_claim(
        id="E4",
        statement="The gap between SignGD and GD does not need overlap: in the limit d -> infinity it is .1 or more at "
        "training loss .1, at the SNR where the law puts it highest",
        source="ours",
        settings=MAP,
        parts=(
            Part("error(SignGD) - error(GD) at loss .1", _gap_without_overlap(0.1), (0.1, 0.5), _predicted_gap(0.1)),
            Part("the same at loss .01", _gap_without_overlap(0.01), None, _predicted_gap(0.01)),
        ),
    ),
    mean_claim(
        id="E5",
        statement="Without overlap SignGD's error is due to initial weights: with sigma_0 = 3e-4 in place of .0075 it "
        "is below .05 at training loss .1 and SNR .0316, where the law gives .32 for the preset's",
        source="ours",
        settings=("paper_like, disjoint supports over d, mu",),
        parts=(Part("error(SignGD) at loss .1, d -> infinity, SNR .0316", _small_start_error, (-INF, 0.05), 0.0),),
    ),
    mean_claim(
        id="E6",
        statement="At d = 2000, SNR .3 to 1 and training loss .01 Adam's error above SignGD's is its rule for the "
        "value vector's product with the signal: exchanging the two rules there takes the excess away, or adds it; "
        "Adam's rule for attention or for value noise, or training as long as Adam, does not raise SignGD's by .05",
        source="ours",
        settings=("paper_like, disjoint supports over mu",),
        parts=(
            Part("error(Adam) - error(SignGD)", _above(ADAM, "sign_gd"), (0.1, 0.5)),
            Part("Adam but SignGD on the signal, above SignGD", _above("adam_on_attention_noise", "sign_gd"), AT_MOST),
            Part("SignGD but Adam on the signal, below Adam", _above(ADAM, "adam_on_signal"), AT_MOST),
            Part("SignGD but Adam on attention, above SignGD", _above("adam_on_attention", "sign_gd"), AT_MOST),
            Part("SignGD but Adam on value noise, above SignGD", _above("adam_on_noise", "sign_gd"), AT_MOST),
            Part("SignGD at a quarter of the rate, above SignGD", _above("slow_sign_gd", "sign_gd"), AT_MOST),
        ),
    ),
    mean_claim(
        id="E7",
        statement="The law gives the test error at equal training loss over three decades of sigma_0, at SNR .032 and "
        ".1, d = 2000 and d -> infinity: with attention trained for SignGD, with uniform attention for GD as well",
        source="ours",
        settings=("paper_like, disjoint supports over kernel, d, mu, sigma_0",),
        parts=tuple(
            Part(
                f"rms(error - law) over sigma_0, SNR, d, {NAMES[family]}, {kernel} attention, loss {level:g}",
                _from_law_over_starts(family, kernel, level),
                (0.0, CLOSE),
                0.0,
            )
            for family, kernel in (("sign_gd", "softmax"), ("sign_gd", "uniform"), ("gd", "uniform"))
            for level in (0.5, 0.1, 0.01)
        ),
    ),
    mean_claim(
        id="E8",
        statement="In the setting of E6 slowing that product is enough: SignGD at a constant .12 of its "
        "rate there raises its error by .1 or more, the less the larger the share, and with a shorter memory, b2 = .9, "
        "Adam's rule there raises it by .1 less than with .999",
        source="ours",
        settings=("paper_like, disjoint supports over mu",),
        parts=(
            Part("SignGD at .12 of the rate on the signal, above SignGD", _above("slow_signal", "sign_gd", share=0.12),
                 (0.1, 0.5)),
            Part("the same at .06, above .25", _between_shares(0.06, 0.25), (0.0, 0.5)),
            Part("the same at .25, above .5", _between_shares(0.25, 0.5), (0.0, 0.5)),
            Part("Adam's rule on the signal, b2 = .999, above SignGD", _above("adam_on_signal", "sign_gd", b2=0.999),
                 (0.1, 0.5)),
            Part("the same with .9, above .999", _between_memories(0.9, 0.999), (-0.5, -0.1)),
            Part("the same with .99, above .999", _between_memories(0.99, 0.999), (-0.5, 0.0)),
            Part("error(SignGD)", _of("sign_gd"), None),
            *(Part(f"the same at {share:g} of the rate on the signal", _of("slow_signal", share=share), None)
              for share in (0.5, 0.25, 0.12, 0.06)),
            *(Part(f"the same with Adam's rule there, b2 = {b2:g}", _of("adam_on_signal", b2=b2), None)
              for b2 in (0.9, 0.99, 0.999)),
            Part("<v, mu> at SNR 1, SignGD", _signal("sign_gd"), None),
            Part("the same, Adam's rule there, b2 = .999", _signal("adam_on_signal", b2=0.999), None),
            *(Part(f"the same, SignGD at {share:g} of the rate there", _signal("slow_signal", share=share), None)
              for share in (0.5, 0.25)),
        ),
    ),
    mean_claim(
        id="E9",
        statement="It does not need trained attention: with uniform attention and training loss .01 Adam's rule for "
        "the value vector's product with the signal alone raises the error by .05 or more, at d = 2000, SNR .3 to "
        "1, and without overlap at SNR .032; for the noise alone it lowers it; for both it changes it by less than .05",
        source="ours",
        settings=("uniform kernel, paper_like, disjoint supports over d, mu",),
        parts=tuple(
            Part(f"error({name}) - error(SignGD), {where}", _at_uniform(name, overlap), interval)
            for where, overlap in (("d = 2000, SNR .3 to 1", True), ("d -> infinity, SNR .032", False))
            for name, interval in (
                ("adam_on_signal", (0.05, 0.5)), ("adam_on_noise", (-0.5, -0.03)), ("adam_on_signal_noise", WITHIN),
            )
        ),
    ),
)  # fmt: skip

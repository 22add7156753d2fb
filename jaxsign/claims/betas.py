"""Do Adam's betas that train like SignGD also generalise like it? Claims BM1 to BM13.

Runs of sweeps/atlas_betas.py, read at equal training loss and paired by seed. CELLS are held out of every exploration.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign import theory
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import family_runs, need, numbers_of, select
from jaxsign.claims.atlas import snr_of
from jaxsign.claims.claim import Claim, Part, at_level, mean_claim
from jaxsign.claims.dial import OWN, at_snr
from jaxsign.claims.dynamics import problem_of

if TYPE_CHECKING:
    import xarray as xr

#: (b1, b2, SNR) that are held out: `analysis.held_out` over ("b1", "b2", "mu").
CELLS = (
    (0.0, 0.5, 0.2), (0.0, 0.99, 0.04), (0.5, 0.9, OWN), (0.5, 0.999, 0.2), (0.9, 0.99, OWN), (0.999, 0.9, OWN),
    (0.999, 0.999, 0.2),
)  # fmt: skip
OVERLAP, LIMIT, MEMORY = "paper_like over mu", "disjoint over kernel, mu", "disjoint over mu"
#: Steps of the distance between traces, evenly spaced in ln t: from stage II to the end of the traces in double floats.
FIRST, LAST = 20, 2000


def _runs(ds: "xr.Dataset", snr: float, kernel: str = "softmax") -> "xr.Dataset":
    runs = ds.isel(mu=at_snr(ds, snr))
    return runs.sel(kernel=kernel) if "kernel" in runs.dims else runs


def of_sign(ds: "xr.Dataset", level: float, snr: float, name: str, kernel: str = "softmax") -> "xr.DataArray":
    """An observable of SignGD's runs at a training loss, dims (seed)."""
    return _mean(at_level(select(_runs(ds, snr, kernel), "sign_gd"), level, *_names(name), leaps=True)[name])


def of_adam(
    ds: "xr.Dataset", level: float, snr: float, name: str, b1: float, b2: float, kernel: str = "softmax"
) -> "xr.DataArray":
    """An observable of Adam's runs at a training loss, dims (seed)."""
    runs = select(_runs(ds, snr, kernel), "adam", b1=b1, b2=b2)
    return _mean(at_level(runs, level, *_names(name), leaps=True)[name])


def _names(name: str) -> tuple[str, ...]:
    return ("test_error",) if name == "step" else (name,)


def _mean(values: "xr.DataArray") -> "xr.DataArray":
    """The mean over everything but axes: heads and samples."""
    return values.mean([dim for dim in values.dims if dim not in ("seed", "optimizer")], skipna=False)


def over_betas(ds: "xr.Dataset", level: float, snr: float, name: str, kernel: str = "softmax") -> "xr.DataArray":
    """An observable of all of Adam's runs at a training loss, dims (b1, b2, seed)."""
    runs = family_runs(_runs(ds, snr, kernel), "adam")
    return _table(runs, _mean(at_level(runs, level, *_names(name), leaps=True)[name]))


def _table(runs: "xr.Dataset", values: "xr.DataArray") -> "xr.DataArray":
    """Values over (optimizer, seed) as (b1, b2, seed)."""
    import xarray as xr

    b1, b2 = numbers_of(runs, "b1"), numbers_of(runs, "b2")
    axes = [np.unique(one) for one in (b1, b2)]
    out = np.full((axes[0].size, axes[1].size, runs.sizes["seed"]), np.nan)
    out[np.searchsorted(axes[0], b1), np.searchsorted(axes[1], b2)] = values.transpose("optimizer", "seed").values
    coords = {"b1": axes[0], "b2": axes[1], "seed": runs["seed"]}
    return xr.DataArray(out, dims=("b1", "b2", "seed"), coords=coords)


def trace_distance(ds: "xr.Dataset", snr: float, kernel: str = "softmax") -> "xr.DataArray":
    """Mean over steps of |log10 L - log10 L(SignGD)| of the same seed, as figures/adam.py draws it; (b1, b2, seed)."""
    need(ds, "train_loss")
    runs = _runs(ds, snr, kernel)
    steps = ds["step"].values
    places = np.flatnonzero((steps >= FIRST) & (steps <= LAST))
    if not places.size:
        raise CannotDecide(f"needs records from step {FIRST} to {LAST}")
    adam, sign = family_runs(runs, "adam"), select(runs, "sign_gd")
    with np.errstate(divide="ignore"):
        gap: Any = np.log10(adam["train_loss"]) - np.log10(sign["train_loss"])
    return _table(adam, abs(gap).isel(step=places).mean("step", skipna=False))


def attention_distance(ds: "xr.Dataset", snr: float, level: float, kernel: str = "softmax") -> "xr.DataArray":
    """|s11 - s11(SignGD)| at equal training loss, the attention of the signal on itself; (b1, b2, seed)."""
    return abs(over_betas(ds, level, snr, "s11", kernel) - of_sign(ds, level, snr, "s11", kernel))


def law(ds: "xr.Dataset", level: float, snr: float) -> float:
    """`theory.error_at_loss` of SignGD in a cell: the test error at uniform attention."""
    first = ds.isel({dim: 0 for dim in ("kernel", "optimizer") if dim in ds.dims})
    problem, hyper = problem_of(first.isel(mu=at_snr(ds, snr)))
    return theory.error_at_loss(problem, hyper, level).error


def _from_sign(
    ds: "xr.Dataset", level: float, snr: float, b1: float, b2: float, name: str = "test_error", kernel: str = "softmax"
) -> "xr.DataArray":
    """Adam minus SignGD at equal training loss, paired by seed."""
    return of_adam(ds, level, snr, name, b1, b2, kernel) - of_sign(ds, level, snr, name, kernel)


def _from_law(ds: "xr.Dataset", level: float, snr: float, b1: float, b2: float) -> "xr.DataArray":
    """Adam's error at uniform attention minus the law of SignGD."""
    return of_adam(ds, level, snr, "test_error", b1, b2, kernel="uniform") - law(ds, level, snr)


def excess(ds: "xr.Dataset", level: float, snr: float, eta: float, b2: float) -> "xr.DataArray":
    """Error of Adam with b1 = 0 minus SignGD's at one learning rate and equal training loss, paired by seed; (seed)."""
    runs = _runs(ds, snr)
    adam, sign = select(runs, "adam", learning_rate=eta, b2=b2), select(runs, "sign_gd", learning_rate=eta)
    one, other = (_mean(at_level(each, level, "test_error")["test_error"]) for each in (adam, sign))
    return one - other


def _between_rates(
    ds: "xr.Dataset", level: float, snr: float, one: tuple[float, float], other: tuple[float, float]
) -> "xr.DataArray":
    """`excess` of one (eta, b2) minus that of another."""
    return excess(ds, level, snr, *one) - excess(ds, level, snr, *other)


def _cell(ds: "xr.Dataset", snr: float, start: float) -> "xr.Dataset":
    """The runs at an SNR and a sigma_0 at mu = 1."""
    near = np.isclose(snr_of(ds).values, snr, rtol=0.02) & np.isclose(
        (ds["sigma_0"] * ds["mu"]).values, start, rtol=0.02
    )
    if np.flatnonzero(near).size != 1:
        raise CannotDecide(f"needs the SNR {snr:g} with sigma_0 = {start:g} at mu = 1")
    return ds.isel(mu=int(np.flatnonzero(near)[0]))


def around(
    ds: "xr.Dataset",
    level: float,
    family: str,
    snr: float = 0.04,
    start: float = 3e-3,
    eta: float = 1e-4,
    **point: float,
) -> "xr.DataArray":
    """Error of an optimizer minus SignGD's at its rate and equal training loss, in a cell of `around`; (seed)."""
    runs = _cell(ds, snr, start)
    one, sign = select(runs, family, learning_rate=eta, **point), select(runs, "sign_gd", learning_rate=eta)
    first, second = (_mean(at_level(each, level, "test_error", leaps=True)["test_error"]) for each in (one, sign))
    return first - second


def _less_than_preset(ds: "xr.Dataset", start: float) -> "xr.DataArray":
    """Excess of Adam 0, .99 at SNR .04 and loss .01 with one sigma_0, minus that with .003."""
    return around(ds, 0.01, "adam", start=start) - around(ds, 0.01, "adam")


def _excess(family: str, interval: tuple[float, float] | None, **where: float) -> Part:
    shown = {"snr": 0.04, "start": 3e-3, "eta": 1e-4, **where}
    label = f"error({family}) - error(SignGD)" + "".join(f", {name} {value:g}" for name, value in shown.items())
    return _part(around, f"{label}, loss 0.01", interval, level=0.01, family=family, **where)


def _of_sign_gd(ds: "xr.Dataset", snr: float, start: float) -> "xr.DataArray":
    """SignGD's error at loss .01 and eta = 1e-4 in a cell of `around`; (seed)."""
    runs = select(_cell(ds, snr, start), "sign_gd", learning_rate=1e-4)
    return _mean(at_level(runs, 0.01, "test_error", leaps=True)["test_error"])


def _sign(snr: float, start: float = 3e-3) -> Part:
    return _part(_of_sign_gd, f"error(SignGD), snr {snr:g}, start {start:g}, loss 0.01", None, snr=snr, start=start)


def _part(measure: Callable[..., Any], label: str, interval: tuple[float, float] | None, **fixed: Any) -> Part:
    return Part(label, functools.partial(measure, **fixed), interval)


_of_mean = functools.partial(mean_claim, source="ours")


def _gap(
    b1: float, b2: float, snr: float, level: float, interval: tuple[float, float] | None, kernel: str = "softmax"
) -> Part:
    label = f"error(Adam {b1:g}, {b2:g}) - error(SignGD), {kernel}, SNR {snr:.2g}, loss {level:g}"
    return _part(_from_sign, label, interval, level=level, snr=snr, b1=b1, b2=b2, kernel=kernel)


def _rates(one: tuple[float, float], other: tuple[float, float], snr: float, interval: tuple[float, float]) -> Part:
    shown = " - ".join(f"excess(eta {eta:g}, b2 {b2:g})" for eta, b2 in (one, other))
    return _part(
        _between_rates, f"{shown}, SNR {snr:g}, loss 0.01", interval, level=0.01, snr=snr, one=one, other=other
    )


#: Pairs of (eta, b2) at equal (1 - b2)/eta, of 1000, 100 and 10; a memory of one step is SignGD's and left out.
EQUAL = (
    ((1e-5, 0.99), (1e-4, 0.9)), ((1e-5, 0.999), (1e-4, 0.99)), ((1e-3, 0.9), (1e-4, 0.99)),
    ((1e-5, 0.9999), (1e-4, 0.999)), ((1e-3, 0.99), (1e-4, 0.999)),
)  # fmt: skip

CLAIMS: tuple[Claim, ...] = (
    _of_mean(
        id="BM1",
        statement="With uniform attention Adam generalises like SignGD wherever b1 <= b2, however far its traces are "
        "from SignGD's: at training losses .1 and .01 the errors differ by less than .02 at every held-out cell, and "
        "the law of p = 0 holds within .05",
        parts=(
            *(
                _gap(b1, b2, snr, level, (-0.02, 0.02), "uniform")
                for b1, b2, snr in CELLS if b1 <= b2 for level in (0.1, 0.01)
            ),
            _part(
                _from_law, "error(Adam 0, .99) - law, SNR .04, loss .1", (-0.05, 0.05), level=0.1, snr=0.04, b1=0.0,
                b2=0.99,
            ),
        ),
        settings=(LIMIT,),
    ),
    _of_mean(
        id="BM2",
        statement="With softmax attention a long second moment and little momentum generalise worse than SignGD, and "
        "the more so the longer it trains: b1 = 0, b2 = .99, SNR .04 (held out), no overlap",
        parts=(
            _gap(0.0, 0.99, 0.04, 0.1, (0.03, 0.11)), _gap(0.0, 0.99, 0.04, 0.01, (0.07, 0.2)),
            _gap(0.0, 0.99, 0.04, 1e-4, (0.1, 0.3)),
        ),
        settings=(LIMIT,),
    ),
    _of_mean(
        id="BM3",
        statement="So do the usual betas, .9 and .999: without overlap at SNR .04 their error is larger than SignGD's "
        "by .03 to .1 at training loss .1 and by .08 to .2 at .01",
        parts=(_gap(0.9, 0.999, 0.04, 0.1, (0.03, 0.1)), _gap(0.9, 0.999, 0.04, 0.01, (0.08, 0.2))),
        settings=(LIMIT,),
    ),
    _of_mean(
        id="BM4",
        statement="With b1 = b2 <= .9 Adam has SignGD's test error within .03 down to a training loss of 1e-4",
        parts=tuple(_gap(b, b, 0.04, level, (-0.03, 0.03)) for b in (0.0, 0.5, 0.9) for level in (0.1, 0.01, 1e-4)),
        settings=(LIMIT,),
    ),
    _of_mean(
        id="BM5",
        statement="Momentum much longer than the second moment generalises better than SignGD: without overlap at SNR "
        ".04 and training loss .01 the error is smaller by .05 or more for b1 >= .99, b2 <= .9, with SNR .079 and loss "
        ".1 by .005 or more in the held-out cell .999, .9",
        parts=(
            _gap(0.99, 0.9, 0.04, 0.01, (-0.3, -0.05)), _gap(0.999, 0.9, 0.04, 0.01, (-0.3, -0.05)),
            _gap(0.999, 0.9, OWN, 0.1, (-0.1, -0.005)),
        ),
        settings=(LIMIT,),
    ),
    _of_mean(
        id="BM6",
        statement="At d = 2000 it is the value layer that errs: at training loss .1 Adam's error is within .05 of "
        "SignGD's in the held-out cells at SNR .079 with b1 <= b2; not explored before",
        parts=tuple(_gap(b1, b2, snr, 0.1, (-0.05, 0.05)) for b1, b2, snr in CELLS if b1 <= b2 and snr == OWN),
        settings=(OVERLAP,),
    ),
    _of_mean(
        id="BM7",
        statement="Nor is the long second moment harmless there: at SNR .2 and training loss .01 the error of .5, .999 "
        "(held out) is larger than SignGD's by .01 or more; not explored before",
        parts=(_gap(0.5, 0.999, 0.2, 0.01, (0.01, 0.3)),),
        settings=(OVERLAP,),
    ),
    _of_mean(
        id="BM8",
        statement="At d = 2000, too, b1 = b2 <= .9 has SignGD's test error within .03 down to a training loss of 1e-4; "
        "not explored before",
        parts=tuple(_gap(b, b, OWN, level, (-0.03, 0.03)) for b in (0.5, 0.9) for level in (0.1, 0.01, 1e-4)),
        settings=(OVERLAP,),
    ),
    _of_mean(
        id="BM9",
        statement="What counts is the memory of squares against the length of training: without overlap, at sigma_0 "
        "= .003 (mu = 1), sigma_p = 2, b1 = 0 and training loss .01, Adam's error less SignGD's is the same within .02 "
        "at learning rates of 1e-5, 1e-4 and 1e-3 if (1 - b2)/eta is",
        parts=tuple(_rates(one, other, snr, (-0.02, 0.02)) for snr in (0.04, 0.06) for one, other in EQUAL),
        settings=(MEMORY,),
    ),
    _of_mean(
        id="BM10",
        statement="One b2 does not have one excess: in the setting of BM9 that of b2 = .99 is larger by .05 or more at "
        "eta = 1e-4 than at 1e-5",
        parts=tuple(_rates((1e-4, 0.99), (1e-5, 0.99), snr, (0.05, 0.3)) for snr in (0.04, 0.06)),
        settings=(MEMORY,),
    ),
    _of_mean(
        id="BM11",
        statement="Without overlap, too, it is the rule for the value vector's product with the signal: with Adam's "
        "rule, 0 and .99, there alone the error at training loss .01 is above SignGD's by .1 or more at SNR .04 and by "
        ".03 or more at .06; on attention alone it is SignGD's within .03; on value noise alone it is smaller by .05 "
        "or more at SNR .04",
        parts=(
            _excess("adam_on_signal", (0.1, 0.5)), _excess("adam_on_signal", (0.03, 0.5), snr=0.06),
            _excess("adam_on_attention", (-0.03, 0.03)), _excess("adam_on_attention", (-0.03, 0.03), snr=0.06),
            _excess("adam_on_noise", (-0.3, -0.05)), _excess("adam", (0.07, 0.2)),
            _excess("adam_on_noise", None, snr=0.06), _excess("adam", None, snr=0.06), _sign(0.04), _sign(0.06),
        ),
        settings=(MEMORY,),
    ),
    _of_mean(
        id="BM12",
        statement="The excess of b2 = .99 is of its setting: at training loss .01 and eta = 1e-4 it is smaller at SNR "
        ".025 than at .04 and gone at .1, and smaller with sigma_0 of 3e-4, .001 or .01 than with .003",
        parts=(
            _excess("adam", (0.02, 0.09), snr=0.025), _excess("adam", (-0.02, 0.02), snr=0.1),
            _excess("adam", (-0.02, 0.02), start=3e-4),
            *(
                _part(
                    _less_than_preset, f"the excess at SNR .04 with sigma_0 = {start:g}, less that with .003",
                    (-0.3, 0.0), start=start,
                )
                for start in (1e-3, 1e-2)
            ),
            *(_excess("adam", None, start=start) for start in (1e-3, 1e-2)), _sign(0.025), _sign(0.1),
            *(_sign(0.04, start) for start in (3e-4, 1e-3, 1e-2)),
        ),
        settings=(MEMORY,),
    ),
    _of_mean(
        id="BM13",
        statement="At eta = 1e-3 betas that are SignGD at 1e-4 are not: .9, .9 errs more by .01 or more at SNR .04 and "
        "training loss .01; and .99, .9 no longer errs less than SignGD, within .03 at SNR .04 and .06",
        parts=(
            _excess("fast", (0.01, 0.1), eta=1e-3, b1=0.9), _excess("fast", None, eta=1e-3, b1=0.9, snr=0.06),
            *(_excess("fast", (-0.03, 0.03), eta=1e-3, b1=0.99, snr=snr) for snr in (0.04, 0.06)),
        ),
        settings=(MEMORY,),
    ),
)  # fmt: skip

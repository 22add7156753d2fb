"""Does the paper's system train as the paper says? Claims S1 to S5, C1, C2e, A1 to A3 and G1, and their settings."""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxsign import theory
from jaxsign.analysis.measures import MEASURES
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import manifest, need, numbers_of, optimizers_of, select
from jaxsign.claims.claim import Claim, Part, PerSeed, above, at_level, one_family, real_numbers
from jaxsign.claims.setting import Setting
from jaxsign.systems.two_layer import presets
from jaxsign.systems.two_layer.problem import Hyper, Problem
from jaxsign.validation.values import field_names

if TYPE_CHECKING:
    import xarray as xr

Record = TypeVar("Record", Problem, Hyper)
INF = math.inf
#: Training losses, in nat, at which optimizers are compared.
LEVELS = (0.5, 0.1, 0.01, 0.001)


def problem_of(ds: "xr.Dataset") -> tuple[Problem, Hyper]:
    """The Problem and Hyper of the runs in a Dataset of the two-layer system, at its one point of every axis.

    Raises:
      CannotDecide: if an axis has several points, or the Dataset is of another system.
    """
    definition = manifest(ds)["definition"]
    fields = {"problem": dict(definition.get("problem") or {}), "hyper": dict(definition.get("hyper") or {})}
    for record, cls in zip(fields.values(), (Problem, Hyper)):
        names = field_names(cls)
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if not set(record) <= set(names) or not required <= {*record, *map(str, ds.coords)}:
            raise CannotDecide("needs runs of the two-layer system")
        for name in names:
            if name in ds.coords and "optimizer" not in ds[name].dims:  # else a keyword of that name
                if ds[name].size != 1:
                    raise CannotDecide(f"needs one point of every axis, got several on {name}")
                stored, value = record.get(name), ds[name].item()
                record[name] = value if stored is None else type(stored)(value)
    try:
        return Problem(**fields["problem"]), Hyper(**fields["hyper"])
    except ValueError as refusal:  # fields of the same names in a reader's own system, with other legal values
        raise CannotDecide(f"needs runs of the two-layer system: {refusal}") from None


def setting_of(ds: "xr.Dataset") -> Setting:
    """The preset a Dataset was run with, "custom" if it is none; n_test is free.

    The setting also says another n, kernel, residual path, number of heads, context or choice of trained weights:
    "disjoint, n=21",
    "gaussian kernel with residual 1, disjoint", "context 4, disjoint" (with d in proportion to the noise patches), "w_v
    alone trained, paper_like"; so are the axes of a sweep that leaves the preset: "paper_like over n, snr".
    """
    trained = manifest(ds)["definition"].get("trainable")  # without a manifest the Dataset is refused, not "custom"
    swept = _swept(ds)
    varied = {coordinate for coordinates in swept.values() for coordinate in coordinates}
    try:
        problem, hyper = problem_of(ds.isel(dict.fromkeys(swept, 0)))
    except CannotDecide:
        return Setting("custom")
    for name in ("paper_like", "disjoint"):
        preset, numbers = getattr(presets, name)()
        problem, hyper = _with(problem, preset, varied), _with(hyper, numbers, varied)
        if _has_sizes_of(name, problem, preset) and dataclasses.replace(numbers, residual=hyper.residual) == hyper:
            model = [f"{problem.kernel} kernel"] if problem.kernel != preset.kernel else []
            model += [f"residual {hyper.residual:g}"] if hyper.residual else []
            model += [f"heads {problem.heads}"] if problem.heads != preset.heads else []
            model += [f"context {problem.context}"] if problem.context != preset.context else []
            model += [f"{' and '.join(trained)} alone trained"] if trained else []
            changes = [f"n={problem.n}"] if problem.n != preset.n else []
            changes += [f"{problem.supports} supports"] if problem.supports != preset.supports else []
            return Setting(name, model=tuple(model), changes=tuple(changes), swept=tuple(swept))
    return Setting("custom")


def _has_sizes_of(name: str, problem: Problem, preset: Problem) -> bool:
    """Whether a Problem differs from a preset only in what the name of a setting says."""
    free: dict[str, Any] = {field: getattr(problem, field) for field in ("n", "n_test", "kernel", "heads")}
    if problem.context > 2 and problem.d == preset.d * problem.patches:
        free |= {"context": problem.context, "d": problem.d}
    if name == "paper_like":
        free["supports"] = problem.supports
    return _is_legal(preset, free) and dataclasses.replace(preset, **free) == problem


def _is_legal(problem: Problem, changes: dict[str, Any]) -> bool:
    """Whether a Problem may have these fields: 200 disjoint supports may find no room in a preset."""
    try:
        dataclasses.replace(problem, **changes)
    except ValueError:
        return False
    return True


def _with(one: Record, base: Record, names: set[str]) -> Record:
    """A record with these fields taken from another one of its kind."""
    return dataclasses.replace(one, **{field: value for field, value in vars(base).items() if field in names})


def _swept(ds: "xr.Dataset") -> dict[str, tuple[str, ...]]:
    """{axis with several points: all coordinates along it}, without optimizers and seeds."""
    axes = [dim for dim in ds.get("status", ds).dims if dim not in ("optimizer", "seed", "step") and ds.sizes[dim] > 1]
    return {str(axis): tuple(str(one) for one in ds.coords if axis in ds[one].dims) for axis in axes}


def _eta(ds: "xr.Dataset") -> float:
    rate = float(numbers_of(ds, "learning_rate"))
    if not math.isfinite(rate):
        raise CannotDecide(f"needs a number as the learning rate, got {ds['learning_rate'].item()!r}")
    return rate


def _measured(name: str) -> PerSeed:
    """Reads one of the claim numbers: stored by a sweep's summary, or computed from every seed's trace."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        import xarray as xr

        finished = ds["status"] == 0
        if name in ds:  # to the digits that 32 bits hold: a share of 19/20 is not less than .95
            digits = np.vectorize(lambda v: float(f"{v:.6g}"), otypes=[float])
            return ds[name].copy(data=digits(ds[name].values)).where(finished)
        number = MEASURES[name]
        need(ds, *number.needs)
        steps = ds["step"].values
        arrays = {n: ds[n].transpose("seed", *(("step",) if "step" in ds[n].dims else ()), ...) for n in number.needs}
        if set(number.steps) - set(steps.tolist()):
            raise CannotDecide(f"step {min(set(number.steps) - set(steps.tolist()))} is not recorded")
        values = {n: np.asarray(array.values) for n, array in arrays.items()}
        seeds = range(ds.sizes["seed"])
        with np.errstate(divide="ignore", invalid="ignore"):  # what diverged is NaN
            numbers = [number.number({"step": steps, **{n: v[i] for n, v in values.items()}}) for i in seeds]
        return xr.DataArray(real_numbers(numbers), dims="seed", coords={"seed": ds["seed"]}).where(finished)

    return measure


def _per_eta(name: str) -> PerSeed:
    return lambda ds: _measured(name)(ds) / _eta(ds)


def _sign_law(ds: "xr.Dataset") -> float:
    problem, hyper = problem_of(ds)
    return float(theory.sign_test_error(problem, hyper.mu, hyper.sigma_p))


def _noise_share(ds: "xr.Dataset") -> float:
    problem, _ = problem_of(ds)
    return theory.value_noise_share(problem) if problem.noise == "gaussian" else math.nan


def _gd_law(ds: "xr.Dataset") -> float:
    problem, hyper = problem_of(ds)
    return float(theory.gd_test_error(problem, hyper.mu, hyper.sigma_p))


def _distance_from_law(ds: "xr.Dataset") -> "xr.DataArray":
    """max_t |error - law| on [50, 500] beyond two standard errors of the finite test set."""
    law, count = _sign_law(ds), problem_of(ds)[0].n_test
    sampling = 2 * math.sqrt(law * (1 - law) / count)
    low, high = _measured("least_test_error")(ds), _measured("largest_test_error")(ds)
    distance: Any = np.maximum(np.maximum(abs(low - law), abs(high - law)) - sampling, 0)
    return distance


def _rate_ratio(family: str) -> PerSeed:
    """Local loss rate at t = 900 over the one at t = 300, each the slope over 100 steps around."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        runs = select(ds, family)
        return _measured("rate_900")(runs) / _measured("rate_300")(runs)

    return measure


def _error_gap(ds: "xr.Dataset", level: float) -> "xr.DataArray":
    """Smallest test error of SignGD minus GD over all pairs of learning rates, at one training loss.

    A learning rate that does not get to the loss, or with which one step leaps over it, has no error there.
    """
    sign, gd = _errors_of_rates(ds, level)
    return sign.min("optimizer") - gd.max("optimizer")


def _errors_of_rates(ds: "xr.Dataset", level: float) -> tuple["xr.DataArray", "xr.DataArray"]:
    """Test errors of SignGD's and of GD's learning rates at one training loss, NaN where there is none."""
    need(ds, "test_error")
    sign, gd = optimizers_of(ds, "sign_gd"), optimizers_of(ds, "gd")
    if min(sign.size, gd.size) < 5:
        raise CannotDecide(f"needs five learning rates each of sign_gd and gd, got {sign.size} and {gd.size}")
    error = at_level(ds, level, "test_error", leaps=True)["test_error"]
    return error.isel(optimizer=sign), error.isel(optimizer=gd)


def _rates_read(ds: "xr.Dataset", level: float) -> "xr.DataArray":
    """How many learning rates of SignGD and GD have an error at one training loss."""
    counted: Any = sum(error.notnull().sum("optimizer") for error in _errors_of_rates(ds, level))
    return counted


def _smallest_error_gap(ds: "xr.Dataset") -> "xr.DataArray":
    import xarray as xr

    return xr.concat([_error_gap(ds, level) for level in LEVELS], "level").min("level", skipna=False)


#: What other models do instead: settings of the bridge, see jaxsign.claims.bridge.
GAUSSIAN = {
    f"gaussian kernel{path}": "the kernel is not normalised and largest where queries equal keys: all weights go to 1, "
    "attention stays uniform over the two patches and has no stages; the value layer alone memorises the noise"
    for path in ("", " with residual 1")
}
LINEAR = {
    f"linear kernel{path}": "attention starts at 0 instead of 1/2 and grows without bound: its products of query and "
    "key, of either sign, are what memorises the noise"
    for path in ("", " with residual 1")
}
#: And what longer contexts do: settings of sweeps/architecture.py.
_LONG = ("context 4", "context 8", "context 16")
OTHER_KEYS = dict.fromkeys(
    _LONG,
    "all noise queries of an example come to attend to one of its noise patches, that of the largest ||xi||_1, and "
    "agree with that patch's key instead of their own (sweeps/architecture.py, entry targets; figure, panel g)",
)
ONE_VOTE = dict.fromkeys(
    _LONG,
    "an example has one vote, that of the noise patch that all its queries attend to: at context 4 the keys of the "
    "patches of largest ||xi||_1 alone are followed by 1.00 [1.00, 1.00] of the rows (disjoint), all keys by .95",
)
UNEQUAL_VOTES = dict.fromkeys(
    ("heads 4", "heads 8"),
    "with h heads logits are h times as large, and the votes' weights p_i become unequal before the query signals have "
    "turned: at t=70 by a factor of 3.5 with two heads, 14 with four and 204 with eight (disjoint, beside claim H1)",
)
ONE_SHARE = dict.fromkeys(_LONG, "attention starts at 1/context, not at 1/2; in units of 1/context it is claim H4")
LATE = {
    **{name: f"{why}; the loss is 0 in 32-bit floats before t = 1100" for name, why in LINEAR.items()},
    **{
        f"{kernel}residual 1": "a path of weight r adds r to the attention on noise, so that the law becomes "
        "2 (2 + r) eta min_i ||xi_i||_1, 3/2 of the one named"
        for kernel in ("", "gaussian kernel with ")
    },
}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="S1",
        statement="Stage I: mean value noise is linear in t after 2 steps at slope 2 eta ||xi||_1, key noise still at "
        "its start",
        source="paper",
        runs=one_family("sign_gd"),
        steps=(0, *range(2, 21)),
        parts=(
            Part(
                "slope of value noise on [2,20] / (2 eta ||xi||_1)",
                _per_eta("value_noise_rate"),
                (0.8, 1.2),
                _noise_share,
            ),
            Part("correlation of key noise at t=2 with t=0", _measured("key_noise_memory"), (0.9, 1.0), 1.0),
        ),
        explanations=LINEAR,
    ),
    Claim(
        id="S2",
        statement="Stage II: the signs of query and key noise align, from independence",
        source="paper",
        runs=one_family("sign_gd"),
        steps=(0, 20),
        parts=(
            Part("sign agreement at t=0", _measured("sign_agreement_0"), (0.4, 0.6), 0.5),
            Part("sign agreement at t=20", _measured("sign_agreement_20"), (0.95, 1.0), 1.0),
        ),
        explanations=GAUSSIAN | LINEAR | OTHER_KEYS,
    ),
    Claim(
        id="S3",
        statement="Stage III: the untied majority of sgn(key noise) at t=50 is sgn(query signal) from t=150 on, and "
        "query and key signal end opposite",
        source="paper",
        runs=one_family("sign_gd"),
        steps=(0, 50, 150, 200),
        parts=(
            Part(
                "share of untied rows that follow the vote for all t>=150",
                _measured("vote_followed"),
                (0.95, 1.0),
                1.0,
            ),
            Part(
                "share of rows with opposite query and key signal at t=200",
                _measured("opposite_signals"),
                (0.95, 1.0),
                1.0,
            ),
            Part("the same for rows whose vote was won by more than 2", _measured("clear_vote_followed"), None, 1.0),
            Part(
                "rival: share that keeps the query signal's own first sign",
                _measured("own_start_followed"),
                None,
                0.5,
            ),
            Part("share of tied rows, left out", _measured("tied_rows"), None),
        ),
        explanations={
            **GAUSSIAN,
            **LINEAR,
            **UNEQUAL_VOTES,
            **ONE_VOTE,
            "paper_like": "only rows whose vote was won by one or two samples do not follow it: the law weighs votes "
            "by p_i A_i g_i |k_i|, and where patches share coordinates the weights differ enough to turn a narrow vote",
        },
    ),
    Claim(
        id="S4",
        statement="Stage IV: s_21 decays at least exponentially while s_11 is still near 1/2",
        source="paper",
        runs=one_family("sign_gd"),
        steps=(50, 150, 300),
        parts=(
            Part("mean s_21 at t=150", _measured("s21_150"), (0.0, 0.01), 0.0),
            Part("mean s_11 at t=150", _measured("s11_150"), (0.4, 0.6), 0.5),
            Part("exponent a of -ln s_21 ~ t^a on [50,300]", _measured("s21_exponent"), (1.0, INF)),
        ),
        explanations=GAUSSIAN | LINEAR | ONE_SHARE,
    ),
    Claim(
        id="S5",
        statement="Then negative key noise, and later negative query noise, turn to the sign of the query signal",
        source="paper",
        runs=one_family("sign_gd"),
        steps=(100, 300, 500),
        parts=(
            Part("turned key noise at t=300", _measured("key_noise_turned_300"), (0.9, 1.0), 1.0),
            Part("turned query noise at t=500", _measured("query_noise_turned_500"), (0.9, 1.0), 1.0),
        ),
        trusted_until=500,
    ),
    Claim(
        id="C1",
        statement="SignGD's training loss converges linearly, late at the rate 4 eta min_i ||xi_i||_1",
        source="paper (linear), ours (rate)",
        runs=one_family("sign_gd"),
        steps=(1100, 1500),
        parts=(Part("rate on [1100,1500] / law", _per_eta("late_rate"), (0.9, 1.1), 1.0),),
        explanations=LATE,
    ),
    Claim(
        id="C2e",
        statement="SignGD's test error is within .03 of the overlap law for t in [50,500]",
        source="ours",
        runs=one_family("sign_gd"),
        steps=(50, 100, 500),
        parts=(
            Part("max |error - law| beyond 2 standard errors of the test set", _distance_from_law, (0.0, 0.03), 0.0),
            Part("test error at t=100", _measured("test_error_100"), None, _sign_law),
        ),
        explanations={
            "disjoint": "without overlap the law is 0, the limit of large t; at t = 50 the initial value weights on "
            "the fresh coordinates, <v(0), xi'> ~ N(0, 2 sigma_0^2 sigma_p^2 s/m_v), still compete with <v, mu> = "
            "2 eta t",
        },
    ),
    Claim(
        id="A1",
        statement="Adam shows the same stages: signs align, s_21 decays while s_11 is near 1/2",
        source="paper",
        runs=one_family("adam"),
        steps=(30, 150),
        parts=(
            Part("sign agreement at t=30", _measured("sign_agreement_30"), (0.95, 1.0), 1.0),
            Part("mean s_21 at t=150", _measured("s21_150"), (0.0, 0.01), 0.0),
            Part("mean s_11 at t=150", _measured("s11_150"), (0.4, 0.6), 0.5),
        ),
        explanations=GAUSSIAN
        | LINEAR
        | ONE_SHARE
        | {
            "heads 4": "signs align and s_11 stays near 1/2, but by t=150 s_21 has only come down to .010, not to .002 "
            "as with one head: the loss falls faster and Adam's steps shrink sooner"
        },
    ),
    Claim(
        id="A2",
        statement="For t <= 2/(1-b2) Adam's local rate -d ln L/dt falls (sublinear), SignGD's does not (linear)",
        source="paper",
        steps=(250, 300, 350, 850, 900, 950),
        parts=(
            Part("Adam: rate at t=900 / rate at t=300", _rate_ratio("adam"), (-INF, 0.5)),
            Part("SignGD: rate at t=900 / rate at t=300", _rate_ratio("sign_gd"), (0.7, INF)),
        ),
        explanations=LINEAR,
    ),
    Claim(
        id="A3",
        statement="Adam's negative query noise stays negative while its key noise turns",
        source="paper",
        runs=one_family("adam"),
        steps=(100, 2000),
        parts=(
            Part("turned query noise at t=2000", _measured("query_noise_turned_2000"), (0.0, 0.1), 0.0),
            Part("turned key noise at t=2000", _measured("key_noise_turned_2000"), (0.9, 1.0), 1.0),
        ),
        trusted_until=2000,
    ),
    Claim(
        id="G1",
        statement="GD has the smaller test error at equal training loss in {.5, .1, .01, .001}, whatever the learning "
        "rates, of those that come to this loss and do not leap over it in one step",
        source="paper, in words",
        steps=(0,),
        parts=(
            Part(
                "smallest error(SignGD) - error(GD) over levels and learning rates",
                _smallest_error_gap,
                above(0.0),
                lambda ds: _sign_law(ds) - _gd_law(ds),
            ),
            *(
                Part(f"smallest difference at loss {level:g}", functools.partial(_error_gap, level=level), None)
                for level in LEVELS
            ),
            *(
                Part(
                    f"learning rates that are read at loss {level:g}", functools.partial(_rates_read, level=level), None
                )
                for level in LEVELS
            ),
        ),
        explanations={
            "disjoint": "without overlap, at SNR .079, both errors go to 0 and no gap is left at loss .01 and .001 "
            "(one is left at SNR .032: E4); at loss .5, which GD with eta = 1 and 3 leaps over in its first step, from "
            "error .51 to 0, it is that of the other rates",
        },
    ),
)

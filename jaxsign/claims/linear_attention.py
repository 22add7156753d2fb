"""Does linear attention on in-context regression train as Transformers do? Claims L1 to L9 and their settings."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import family_runs, manifest, need, numbers_of, one_point, select
from jaxsign.claims.claim import Claim, Part, PerSeed, above, all_runs
from jaxsign.claims.setting import Setting

if TYPE_CHECKING:
    import xarray as xr

SYSTEM = "linear_attention"
#: Names of the settings of sweeps over an axis, by the axis.
AXES = {"inputs": "all inputs", "depth": "depths", "attention": "linear and softmax"}
INF = float("inf")


def setting_of(ds: "xr.Dataset") -> Setting:
    """The law of the inputs and the context length, such as "normal, n=20"; or which axis a sweep is about."""
    for axis, name in AXES.items():
        if axis in ds.dims:
            return Setting(name)
    problem = problem_fields(ds)
    changes = [f"n={problem['n_context']}"]
    changes += ["relu targets"] if problem.get("targets") == "relu" else []  # no field before there was a choice
    changes += [] if problem["form"] == "sparse" else [f"{problem['form']} form"]
    changes += [] if {*ds["family"].values.tolist()} <= {"sgd", "adam"} else ["optimizers"]
    return Setting(problem["inputs"], changes=tuple(changes))


def problem_fields(ds: "xr.Dataset") -> dict[str, Any]:
    """The fields of a Dataset's RegressionProblem."""
    return dict(manifest(ds)["definition"]["problem"])


def _both(ds: "xr.Dataset", name: str) -> "tuple[xr.DataArray, xr.DataArray]":
    """An observable of SGD and of Adam."""
    need(ds, name)
    return select(ds, "sgd")[name], select(ds, "adam")[name]


def _late_gap(ds: "xr.Dataset") -> "xr.DataArray":
    """ln(loss of SGD / loss of Adam), losses averaged over the last tenth of the recorded steps in log."""
    sgd, adam = _both(ds, "train_loss")
    late = ds["step"] >= 0.9 * float(ds["step"].max())
    log_ratio: Any = np.log(sgd) - np.log(adam)
    return log_ratio.where(late, drop=True).mean("step", skipna=False)


def _condition_ratio(step: int) -> PerSeed:
    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        sgd, adam = _both(ds, "robust_condition")
        return sgd.sel(step=step, drop=True) / adam.sel(step=step, drop=True)

    return measure


def _smoothness_gap(ds: "xr.Dataset") -> "xr.DataArray":
    """Share of recorded steps at which Adam's step meets less curvature than SGD's."""
    sgd, adam = _both(ds, "directional_smoothness")
    return (adam < sgd).isel(step=slice(1, None)).mean("step").astype(float)


def _l0_l1(ds: "xr.Dataset") -> "xr.DataArray":
    """Correlation of ln ||gradient|| with ln(smoothness along the step that it led to), Adam, t < 2000."""
    import xarray as xr

    need(ds, "gradient_before", "directional_smoothness")
    runs = select(ds, "adam").sel(step=slice(1, 1999))
    curvature = runs["directional_smoothness"]
    x: Any = np.log(runs["gradient_before"])
    y: Any = np.log(curvature.where(curvature > 0))
    return xr.corr(x, y, "step")


def _noise(number: Callable[[np.ndarray], float], heavy: str, light: str | None = None) -> PerSeed:
    """A number of the gradient noise at one law of inputs, or its ratio to the number at another law."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        import xarray as xr

        need(ds, "gradient_noise")
        if 0 not in ds["step"]:
            raise CannotDecide("step 0 is not recorded")
        places = ds["inputs"].values.tolist()
        context = ds["n_context"].values if "n_context" in ds.coords else problem_fields(ds)["n_context"]
        contexts = np.broadcast_to(context, len(places)).tolist()

        def at(name: str) -> "xr.DataArray":
            matches = [i for i, inputs in enumerate(places) if inputs == name and contexts[i] == 20]
            if not matches:
                raise CannotDecide(f"the inputs {name!r} with n_context=20 are not among the runs")
            norms = one_point(ds, "inputs")["gradient_noise"].isel(inputs=matches[0], optimizer=0).sel(step=0)
            return xr.apply_ufunc(number, norms, input_core_dims=[["draw"]], vectorize=True)

        values = at(heavy) if light is None else at(heavy) / at(light)
        return values.drop_vars([c for c in values.coords if c != "seed"])

    return measure


def _kurtosis(norms: np.ndarray) -> float:
    centred = (norms - norms.mean()) / norms.std()
    return float((centred**4).mean())


def _tail(norms: np.ndarray, share: float = 0.05) -> float:
    top = np.sort(norms)[::-1][: int(share * norms.size) + 1]
    return float(1 / np.log(top[:-1] / top[-1]).mean())


def _best(ds: "xr.Dataset", axis: str, family: str, **point: Any) -> "xr.DataArray":
    """The smallest last loss over the learning rates of a family, dims (axis, seed)."""
    need(ds, "train_loss")
    runs = family_runs(one_point(ds, axis), family)
    for name, value in point.items():
        if value not in ds[name].values:
            raise CannotDecide(f"needs {name} = {value}")
    return runs["train_loss"].isel(step=-1, drop=True).sel(**point, drop=True).min("optimizer")


def _diverged(axis: str, family: str, **point: Any) -> PerSeed:
    """How many runs of a family diverged, over its learning rates and the points of an axis."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        status = family_runs(one_point(ds, axis), family)["status"].sel(**point, drop=True)
        return (status == 1).sum([dim for dim in status.dims if dim != "seed"]).astype(float)

    return measure


def _best_rate(ds: "xr.Dataset", axis: str, family: str, **point: Any) -> "xr.DataArray":
    """The learning rate of `_best`, dims (seed,); NaN where every run diverged."""
    import xarray as xr

    need(ds, "train_loss")
    runs = family_runs(one_point(ds, axis), family).sel(**point, drop=True)
    last = runs["train_loss"].isel(step=-1, drop=True)
    rates = xr.DataArray(numbers_of(runs, "learning_rate"), dims="optimizer")
    best = rates.isel(optimizer=last.fillna(INF).argmin("optimizer"))
    found = best.where(last.notnull().any("optimizer"))
    return found.drop_vars([name for name in found.coords if name != "seed"])


def _rates_gap(ds: "xr.Dataset") -> "xr.DataArray":
    """ln(loss of SGD / loss of Adam) at the end, each at its best learning rate of several."""
    need(ds, "train_loss")
    last = {}
    for family in ("sgd", "adam"):
        runs = family_runs(one_point(ds), family)
        if runs.sizes["optimizer"] < 2:
            raise CannotDecide(f"needs several learning rates of {family}")
        last[family] = runs["train_loss"].isel(step=-1, drop=True).min("optimizer")
    gap: Any = np.log(last["sgd"]) - np.log(last["adam"])
    return gap


def _depth_slope(ds: "xr.Dataset") -> "xr.DataArray":
    """Least-squares slope over the depth of ln(loss of SGD / loss of Adam), each at its best learning rate."""
    if ds.sizes["depth"] < 2:
        raise CannotDecide("needs several depths")
    gap: Any = np.log(_best(ds, "depth", "sgd")) - np.log(_best(ds, "depth", "adam"))
    return gap.polyfit("depth", 1)["polyfit_coefficients"].sel(degree=1, drop=True)


def _rate_of(attention: str) -> PerSeed:
    return lambda ds: _best_rate(ds, "attention", "adam", attention=attention)


def _softmax_ratio(ds: "xr.Dataset") -> "xr.DataArray":
    """Last loss of softmax over the last loss of linear attention, each with Adam at its best learning rate."""
    softmax, linear = (_best(ds, "attention", "adam", attention=name) for name in ("softmax", "linear"))
    return softmax / linear


_SETTINGS = ("normal, n=20", "normal, n=5", "gamma, n=20", "spherical, n=20")
_RELU = "normal, n=20, relu targets"
_paper = functools.partial(Claim, source="paper", system=SYSTEM, judge="mean", settings=_SETTINGS)
_axis = functools.partial(Claim, source="paper", runs=all_runs, system=SYSTEM, judge="mean")

CLAIMS: tuple[Claim, ...] = (
    _paper(
        id="L1",
        statement="Adam's loss is below that of SGD with momentum",
        parts=(Part("ln(loss of SGD / loss of Adam), last tenth of the steps", _late_gap, (0.0, INF)),),
    ),
    _paper(
        id="L2",
        statement="the robust condition number is larger along SGD's run than along Adam's, on average",
        parts=(
            Part("R_med(SGD) / R_med(Adam) at t=750", _condition_ratio(750), (1.0, INF)),
            Part("R_med(SGD) / R_med(Adam) at t=1250", _condition_ratio(1250), (1.0, INF)),
        ),
        settings=_SETTINGS[:3],
        steps=(750, 1250),
    ),
    _paper(
        id="L3",
        statement="Adam's steps meet less curvature than SGD's",
        parts=(
            Part(
                "share of steps with smoothness(Adam) < smoothness(SGD)",
                _smoothness_gap,
                above(0.5),  # Student's interval of a share's mean may exceed 1
            ),
        ),
    ),
    _paper(
        id="L4",
        statement="log gradient norm and log smoothness are positively correlated along Adam's run",
        parts=(Part("correlation, t < 2000", _l0_l1, (0.0, 1.0)),),
    ),
    _axis(
        id="L5",
        statement="gradient noise at the start is heavy-tailed, the more so the heavier the tail of the inputs",
        parts=(
            Part("kurtosis of ||g_B - g||, normal inputs (3: normal law)", _noise(_kurtosis, "normal"), (3.0, INF)),
            Part("kurtosis of ||g_B - g||, gamma inputs", _noise(_kurtosis, "gamma"), (3.0, INF)),
            Part("kurtosis with gamma inputs / with normal ones", _noise(_kurtosis, "gamma", "normal"), (1.0, INF)),
            Part("tail index with gamma inputs / with normal ones", _noise(_tail, "gamma", "normal"), (0.0, 1.0)),
        ),
        settings=("all inputs",),
    ),
    _axis(
        id="L6",
        statement="the gap between Adam and SGD grows with depth",
        parts=(
            Part("slope of ln(loss of SGD / loss of Adam) over the depth", _depth_slope, (0.0, INF)),
            Part("runs of SGD that diverged, a seed", _diverged("depth", "sgd"), None),
            Part("runs of Adam that diverged, a seed", _diverged("depth", "adam"), None),
        ),
        settings=("depths",),
    ),
    _axis(
        id="L7",
        statement="linear attention trains much faster than softmax attention",
        parts=(
            Part("loss of softmax / loss of linear attention at the end, Adam", _softmax_ratio, (2.0, INF)),
            Part("best learning rate of softmax attention", _rate_of("softmax"), None),
            Part("best learning rate of linear attention", _rate_of("linear"), None),
            Part("runs of softmax that diverged, a seed", _diverged("attention", "adam", attention="softmax"), None),
            Part("runs of linear that diverged, a seed", _diverged("attention", "adam", attention="linear"), None),
        ),
        settings=("linear and softmax",),
    ),
    _paper(
        id="L8",
        statement="Adam's loss is below that of SGD with momentum on the targets of a ReLU network, published rates",
        parts=(Part("ln(loss of SGD / loss of Adam), last tenth of the steps", _late_gap, (0.0, INF)),),
        settings=(_RELU,),
    ),
    _paper(
        id="L9",
        statement="Adam's loss is below that of SGD with momentum on a ReLU network's targets, best rates of the grid",
        parts=(Part("ln(loss of SGD / loss of Adam) at the end, each at its best rate", _rates_gap, (0.0, INF)),),
        settings=(_RELU,),
    ),
)

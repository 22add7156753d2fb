"""Do residuals make a transformer well conditioned and its training linear? Claims R1 to R8, and their settings."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.analysis.measures import slope
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import best_rate, manifest, need, numbers_of
from jaxsign.claims.claim import Claim, Part, PerSeed, above, all_runs
from jaxsign.claims.setting import Setting
from jaxsign.systems.residual import ResidualHyper, ResidualProblem

if TYPE_CHECKING:
    import xarray as xr

INF = math.inf
#: Share of the first loss below which a run is at the rounding of 64-bit floats, and its rate says nothing.
FLOOR = 1e-20
#: The step that losses and condition numbers are read at.
LAST = 400
#: Learning rates of the contraction bound: the grid's smallest, and one that is small at every depth.
SMALL, TINY = 1e-3, 1e-5
#: Rounding of a 64-bit float.
EPS = float(np.finfo(np.float64).eps)
DEPTHS = ("depth 1", "depth 2", "depth 3", "depth 4")  # beyond 1 kappa without residuals is the rounding of 64 bits
#: Why the rate of convergence falls before it is constant.
_TRANSIENT = (
    "the loss goes to zero and its rate is constant from half-time on, but directions with large singular values die "
    "first and make the early rate larger"
)


def setting_of(ds: "xr.Dataset") -> Setting:
    """The depth of a Dataset with the standard sizes and what else it varies, such as "depth 1, temperatures".

    Anything of other sizes is "custom"; the residuals are free.
    """
    definition = manifest(ds)["definition"]
    fields = dict(definition.get("problem") or {}) | dict(definition.get("hyper") or {})
    standard = {**dataclasses.asdict(ResidualProblem()), **dataclasses.asdict(ResidualHyper())}
    if any(name not in ds.coords and name not in fields for name in standard):  # of an earlier version
        return Setting("custom")
    values = {name: np.unique(ds[name].values) if name in ds.coords else [fields[name]] for name in standard}
    depths = tuple(str(int(depth)) for depth in values["depth"])
    varied = []
    for name in standard:
        if name in ("depth", "attention_residual", "ffn_residual"):
            continue
        if len(values[name]) == 1 and values[name][0] != standard[name]:
            return Setting("custom")
        varied += [{"temperature": "temperatures", "n": "n/d"}.get(name, name)] if len(values[name]) > 1 else []
    varied += ["optimizers"] if "family" in ds.coords and np.unique(ds["family"]).size > 1 else []
    return Setting("depths" if len(depths) > 1 else "depth", values=depths, changes=tuple(varied))


def ablated(ds: "xr.Dataset", attention: float, ffn: float) -> "xr.Dataset":
    """The runs with these weights of the residuals.

    Args:
      ds: Dataset with the axes attention_residual and ffn_residual, or one zipped of them.
      attention: r_a.
      ffn: r_f.

    Returns:
      Dataset without these axes.

    Raises:
      CannotDecide: if there is no such point.
    """
    if "attention_residual" not in ds.dims:
        raise CannotDecide("needs an axis attention_residual")
    if "ffn_residual" in ds.dims:
        ds = ds.isel(ffn_residual=np.flatnonzero(ds["ffn_residual"].values == ffn))
        chosen = ds["attention_residual"].values == attention
    elif "ffn_residual" in ds.coords:
        chosen = (ds["attention_residual"].values == attention) & (ds["ffn_residual"].values == ffn)
    else:
        raise CannotDecide("needs an axis ffn_residual")
    ds = ds.isel(attention_residual=np.flatnonzero(chosen))
    if not ds.sizes["attention_residual"] or not ds.sizes.get("ffn_residual", 1):
        raise CannotDecide(f"needs the residuals ({attention:g}, {ffn:g})")
    return ds.isel({dim: 0 for dim in ("attention_residual", "ffn_residual") if dim in ds.dims})


def best(ds: "xr.Dataset") -> "xr.Dataset":
    """Every seed's runs at the learning rate of the grid that ends with its lowest loss.

    Args:
      ds: Dataset with train_loss and several learning rates.

    Returns:
      Dataset without the dimension `optimizer`, with a variable learning_rate.

    Raises:
      CannotDecide: without a grid of learning rates.
    """
    need(ds, "train_loss")
    if "learning_rate" not in ds.coords or ds.sizes["optimizer"] < 5:
        raise CannotDecide("needs a grid of at least five learning rates")
    labels = [name for name in ds.coords if name != "learning_rate" and "optimizer" in ds[name].dims]
    runs = ds.drop_vars(labels).reset_coords("learning_rate")
    return best_rate(runs, by=runs["train_loss"].isel(step=-1, drop=True))


def worst(ds: "xr.Dataset", name: str, step: int) -> "xr.DataArray":
    """The condition number or smallest singular value of H at one recorded step, of the layer where it is worst.

    Singular values below the rounding of the largest one count as that rounding, since rounding hides them.

    Args:
      ds: Dataset with attention_singular_values and `name`.
      name: "attention_condition" or "attention_sigma_min".
      step: a recorded step.

    Returns:
      DataArray without the dimension layer.
    """
    need(ds, name, "attention_singular_values")
    values, largest = (ds[one].sel(step=step) for one in (name, "attention_singular_values"))
    if name == "attention_condition":
        capped: Any = np.minimum(values.max("layer", skipna=False), 1 / EPS)
        return capped
    known: Any = np.maximum(values, EPS * largest.isel(index=0))
    return known.min("layer", skipna=False)


def _shrunk(ds: "xr.Dataset") -> "xr.DataArray":
    """L_400 / L_0 at the best learning rate."""
    loss = best(ds)["train_loss"]
    return loss.sel(step=LAST) / loss.sel(step=0)


def _rates(ds: "xr.Dataset", number: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> "xr.DataArray":
    """`number(steps, log loss, predicted rates)` of every seed at its best learning rate, above the rounding floor."""
    import xarray as xr

    runs = best(ds)
    need(runs, "feature_sigma_min")
    runs = runs.squeeze(
        [dim for dim in runs["train_loss"].dims if dim not in ("seed", "step") and runs.sizes[dim] == 1]
    )
    loss = runs["train_loss"].transpose("seed", "step").values.astype(float)
    sigma = runs["feature_sigma_min"].transpose("seed", "step").values.astype(float)
    eta, steps = runs["learning_rate"].transpose("seed").values, runs["step"].values
    out = np.full(len(loss), np.nan)
    for i in range(len(loss)):
        if not np.isfinite(loss[i]).all():
            continue
        under = np.flatnonzero(loss[i] < FLOOR * loss[i][0])
        end = int(under[0]) if under.size else steps.size
        if steps[end - 1] >= 40:  # windows from an eighth of the time on, several recorded steps each
            with np.errstate(divide="ignore", invalid="ignore"):
                predicted = -np.log1p(-eta[i] * sigma[i][:end] ** 2)
            out[i] = number(steps[:end], np.log(loss[i][:end]), predicted)
    return xr.DataArray(out, dims="seed", coords={"seed": runs["seed"]})


def _window(steps: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.flatnonzero((steps >= low * steps[-1]) & (steps <= high * steps[-1]))


def _late(steps: np.ndarray, log_loss: np.ndarray, predicted: np.ndarray) -> float:
    w = _window(steps, 0.5, 1.0)
    return -float(slope(steps[w], log_loss[w]))


def _late_over_early(steps: np.ndarray, log_loss: np.ndarray, predicted: np.ndarray) -> float:
    """1 for linear convergence; 1/4 for any power of time, since the windows are four times apart."""
    w = _window(steps, 0.125, 0.25)
    return _late(steps, log_loss, predicted) / -float(slope(steps[w], log_loss[w]))


def _last_over_third(steps: np.ndarray, log_loss: np.ndarray, predicted: np.ndarray) -> float:
    third, last = _window(steps, 0.5, 0.75), _window(steps, 0.75, 1.0)
    return float(slope(steps[last], log_loss[last])) / float(slope(steps[third], log_loss[third]))


def _late_over_predicted(steps: np.ndarray, log_loss: np.ndarray, predicted: np.ndarray) -> float:
    return _late(steps, log_loss, predicted) / float(np.mean(predicted[_window(steps, 0.5, 1.0)]))


def _at_start(name: str, attention: float, ffn: float) -> PerSeed:
    """The worst layer's number at the start, where it is the same at every learning rate."""
    return lambda ds: worst(ablated(ds.isel(optimizer=0), attention, ffn), name, 0)


def _between(name: str, over: tuple[float, float], under: tuple[float, float]) -> PerSeed:
    """That number with one choice of residuals over that with another."""
    return lambda ds: _at_start(name, *over)(ds) / _at_start(name, *under)(ds)


def _temperatures(ds: "xr.Dataset", *points: float) -> "xr.Dataset":
    """Runs without residuals at the start, over the temperatures, which must hold these points."""
    if "temperature" not in ds.dims:
        raise CannotDecide("needs an axis temperature")
    need(ds, "attention_condition", "value_condition")
    lost = [point for point in points if point not in ds["temperature"].values]
    if lost:
        raise CannotDecide(f"needs the temperature {lost[0]:g}")
    return ablated(ds.isel(optimizer=0), 0, 0).sel(step=0).isel(layer=0)


def _made_worse(ds: "xr.Dataset") -> "xr.DataArray":
    """kappa(S X W_V) / kappa(X W_V) at temperature 1."""
    runs = _temperatures(ds, 1.0).sel(temperature=1.0)
    return runs["attention_condition"] / runs["value_condition"]


def _per_temperature(ds: "xr.Dataset") -> "xr.DataArray":
    """The exponent a of kappa ~ temperature^a between 1 and 10."""
    condition = _temperatures(ds, 1.0, 10.0)["attention_condition"]
    decades: Any = np.log10(condition.sel(temperature=10.0) / condition.sel(temperature=1.0))
    return decades


def _steps(ds: "xr.Dataset", eta: float) -> "xr.Dataset":
    """The runs of one learning rate, every step from the first one on.

    Raises:
      CannotDecide: saying what the Dataset lacks.
    """
    need(ds, "contraction", "sigma_before", "step_curvature")
    if manifest(ds)["definition"]["dtype"] != "float64":
        raise CannotDecide("needs 64-bit floats: run it with --x64")
    if "learning_rate" not in ds.coords or eta not in (rates := numbers_of(ds, "learning_rate")):
        raise CannotDecide(f"needs the learning rate {eta:g}")
    if (np.diff(ds["step"].values) != 1).any():
        raise CannotDecide("needs every step recorded")
    return ds.isel(optimizer=int(np.flatnonzero(rates == eta)[0]), step=slice(1, None))


def _margin(eta: float, depth: int | None = None) -> PerSeed:
    """Smallest (1 - eta s^2) - L(t)/L(t-1) over every step, each residual on and off, and the depths."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        runs = _steps(ds, eta)
        if depth is not None:
            runs = runs.sel(depth=depth)
        margin = 1 - eta * runs["sigma_before"] ** 2 - runs["contraction"]
        return margin.min([dim for dim in margin.dims if dim != "seed"], skipna=False)

    return measure


def _curvature(eta: float) -> PerSeed:
    """Largest eta c over every step with both residuals: the bound is proved where it is at most 1."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        curvature = eta * ablated(_steps(ds, eta), 1, 1)["step_curvature"]
        return curvature.max([dim for dim in curvature.dims if dim != "seed"], skipna=False)

    return measure


def _claim(name: str, statement: str, source: str, steps: tuple[int, ...], *parts: Part, **more: Any) -> Claim:
    return Claim(
        id=name, statement=statement, source=source, runs=all_runs, steps=steps, parts=parts,
        system="residual_attention", **more,
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "R1",
        "With residuals the loss converges linearly, to below 1e-6 of its first value within 400 steps",
        "paper (linear), ours (400 steps)",
        (0, LAST),
        Part("L_400 / L_0 at the best learning rate", lambda ds: _shrunk(ablated(ds, 1, 1)), (0.0, 1e-6)),
        Part(
            "late rate / early rate (1/4 for a power of t)",
            lambda ds: _rates(ablated(ds, 1, 1), _late_over_early),
            (0.7, INF),
            1.0,
        ),
        Part(
            "rate of the last quarter / of the third (.71 for a power of t)",
            lambda ds: _rates(ablated(ds, 1, 1), _last_over_third),
            None,
            1.0,
        ),
        settings=DEPTHS,
        explanations={
            "depth 1": _TRANSIENT,
            "depth 2": _TRANSIENT,
            "depth 3": f"{_TRANSIENT}; at 5 of 36 seeds the loss has not yet come below 1e-6",
            "depth 4": "the best learning rates of the grid are at the edge of stability, where the loss falls in "
            "bursts, and at nearly half of the seeds it has not yet come below 1e-6; the early rate is larger, too",
        },
    ),
    _claim(
        "R2",
        "Its rate is at least that of the contraction 1 - eta sigma_min(Z_t)^2, at the best learning rate too",
        "paper (singular values set the rate), ours (bound)",
        (0, LAST),
        Part(
            "fitted rate / predicted rate, second half",
            lambda ds: _rates(ablated(ds, 1, 1), _late_over_predicted),
            (1.0, INF),
        ),
        Part("fitted rate", lambda ds: _rates(ablated(ds, 1, 1), _late), None),
        Part("best learning rate", lambda ds: best(ablated(ds, 1, 1))["learning_rate"], None),
        settings=DEPTHS,
    ),
    _claim(
        "R3",
        "At depth 1 the condition number of H is orders of magnitude larger without residuals, and the loss stays high",
        "paper",
        (0, LAST),
        Part(
            "kappa(H) without / with residuals at t=0, worst layer",
            _between("attention_condition", (0, 0), (1, 1)),
            (100.0, INF),
        ),
        Part("L_400 / L_0 without residuals, best learning rate", lambda ds: _shrunk(ablated(ds, 0, 0)), (0.1, INF)),
        Part(
            "kappa(H) with residuals at t=0",
            lambda ds: worst(ablated(ds.isel(optimizer=0), 1, 1), "attention_condition", 0),
            None,
        ),
        Part("L_400 / L_0, only the residual of attention", lambda ds: _shrunk(ablated(ds, 1, 0)), None),
        Part("L_400 / L_0, only the residual of the FFN", lambda ds: _shrunk(ablated(ds, 0, 1)), None),
        settings=DEPTHS[:1],
        explanations={
            "depth 1": "the condition number is about 6000 times larger and the loss stays high, but at 4 of 64 "
            "seeds it ends just below a tenth of its first value, at .06 to .10",
        },
    ),
    _claim(
        "R4",
        "At depth 1 the residuals raise the smallest singular value of H",
        "paper",
        (0,),
        Part(
            "sigma_min(H) with / without residuals at t=0, worst layer",
            _between("attention_sigma_min", (1, 1), (0, 0)),
            above(1.0),
        ),
        Part("the same, only the residual of attention", _between("attention_sigma_min", (1, 0), (0, 0)), None),
        Part("the same, only the residual of the FFN", _between("attention_sigma_min", (0, 1), (0, 0)), None),
        settings=DEPTHS[:1],
    ),
    _claim(
        "R5",
        "Softmax makes the attention output ill-conditioned",
        "paper",
        (0,),
        Part("kappa(S X W_V) / kappa(X W_V) at temperature 1", _made_worse, (10.0, INF)),
        settings=("depth 1, temperatures",),
    ),
    _claim(
        "R6",
        "L_(t+1) <= (1 - eta sigma_min(Z_t)^2) L_t at eta = 1e-3, at every step, with and without either residual",
        "ours",
        (0, 1, LAST),
        Part("smallest 1 - eta sigma_min^2 - L_(t+1)/L_t", _margin(SMALL), (0.0, INF)),
        *(Part(f"the same, depth {depth}", _margin(SMALL, depth), None) for depth in (1, 2, 3, 4)),
        Part("largest eta c with both residuals (<= 1: proved)", _curvature(SMALL), None),
        Part("at eta = 1e-5, where it is proved: smallest 1 - eta sigma_min^2 - L_(t+1)/L_t", _margin(TINY), None),
        settings=("depths 1, 2, 3, 4",),
        explanations={
            "depths 1, 2, 3, 4": "eta = 1e-3 is not small at depths 3 and 4: with residuals eta c settles at 2, the "
            "edge of stability, and the loss rises at times; wherever eta c <= 1, as the proof wants, no step violates "
            "the bound",
        },
    ),
    _claim(
        "R8",
        "Without residuals kappa(H) grows in proportion to the temperature",
        "ours",
        (0,),
        Part("d ln kappa / d ln temperature on [1,10]", _per_temperature, (0.9, 1.1), 1.0),
        settings=("depth 1, temperatures",),
        explanations={
            "depth 1": "proportionality is the limit of high temperatures, where softmax is linear in the scores; at "
            "temperature 1 its second order still competes with the smallest singular value of the first",
        },
    ),
)

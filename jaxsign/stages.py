"""Reads stage boundaries and equal-loss comparisons off a Dataset of runs. No training."""

import json
from typing import Any

import numpy as np

from jaxsign.measures import GROUPING_STEP
from jaxsign.validation import real

BOUNDARIES = ("t_I", "t_II", "t_III", "t_IV", "t_V")


def manifest(ds: Any) -> dict[str, Any]:
    """The manifest that a results Dataset carries in its attributes.

    Raises:
      ValueError: if there is none.
    """
    if "manifest" not in ds.attrs:
        raise ValueError("ds must be a Dataset of jaxsign (js.run_sweep or js.open_results), got no manifest")
    return json.loads(ds.attrs["manifest"])


def need(ds: Any, *names: str) -> None:
    """Raises ValueError naming the observables that `ds` lacks."""
    missing = [name for name in names if name not in ds]
    if missing:
        raise ValueError(f"ds must hold the observables {list(names)}, got a Dataset without {missing}")


def flipped(ds: Any, name: str, step: int | None = None) -> Any:
    """Share of initially opposed noise that has turned to the sign of its query signal.

    "Opposed" are the (row, sample) pairs whose noise has not the query signal's sign at t = 100.

    Args:
      ds: Dataset with `name` and query_signal.
      name: "query_noise" or "key_noise".
      step: one recorded step, or None for all.

    Returns:
      DataArray over the runs (and step); NaN where no pair is opposed.

    Raises:
      ValueError: if an observable or the grouping step is not there.

    References:
      arXiv 2410.04870, stages III and IV.
    """
    need(ds, name, "query_signal")
    if GROUPING_STEP not in ds.step:
        raise ValueError(f"step {GROUPING_STEP} must be recorded to group noise by sign, got steps {ds.step.values}")
    at = ds.sel(step=GROUPING_STEP)
    opposed = np.sign(at[name]) != np.sign(at["query_signal"])
    later = ds if step is None else ds.sel(step=step)
    agrees = np.sign(later[name]) == np.sign(later["query_signal"])
    within = [dim for dim in ("row", "sample", "patch") if dim in opposed.dims]
    count = opposed.sum(within)
    return ((agrees & opposed).sum(within) / count.where(count > 0)).where(ds["status"] == 0)


def _first(ds: Any, condition: Any) -> Any:
    """First recorded step at which a condition over (..., step) holds, NaN where it never does."""
    place = condition.argmax("step")
    return ds["step"].isel(step=place).drop_vars("step").astype(float).where(condition.any("step"))


def find_stages(ds: Any) -> Any:
    """Stage boundaries of every run.

        t_I    first t with y_i <v, xi_i> > 0 for all i
        t_II   first t with sign agreement of query and key noise >= .99
        t_III  last change of any sgn(query signal)
        t_IV   first t with mean s_21 < .01
        t_V    first t > t_III at which >= .9 of the opposed query noise has turned

    Args:
      ds: Dataset with value_noise, sign_agreement, query_signal, s21 and query_noise, and step 100 recorded.

    Returns:
      Dataset of t_I ... t_V over the runs, in steps at the resolution of the recorded steps, NaN where a boundary is
      never reached; `in_order` is true where t_I < t_II < t_III and t_II < t_IV < t_V.

    Raises:
      ValueError: if an observable is missing.

    Examples:
      >>> import jax, jaxsign as js
      >>> task = js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10))
      >>> run = js.train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=120, record=1)
      >>> sorted(js.find_stages(run.to_xarray()).data_vars)
      ['in_order', 't_I', 't_II', 't_III', 't_IV', 't_V']

    References:
      The stages are the paper's (arXiv 2410.04870); these boundaries are our reconstruction.
    """
    import xarray as xr

    need(ds, "value_noise", "sign_agreement", "query_signal", "s21", "query_noise")
    noise_dims = [dim for dim in ("sample", "patch") if dim in ds["value_noise"].dims]
    t_1 = _first(ds, (ds["value_noise"] > 0).all(noise_dims))
    t_2 = _first(ds, ds["sign_agreement"] >= 0.99)
    sign = np.sign(ds["query_signal"])
    same = (sign.isel(step=slice(1, None)).values == sign.isel(step=slice(None, -1)).values).all(
        axis=sign.get_axis_num("row")
    )
    change = ~xr.DataArray(same, dims=[dim for dim in sign.dims if dim != "row"])
    steps = ds["step"].values[1:]
    step_axis = change.get_axis_num("step")
    last = np.where(change.values, steps.reshape([-1 if i == step_axis else 1 for i in range(change.ndim)]), 0).max(
        step_axis, initial=0
    )
    t_3 = xr.DataArray(last.astype(float), dims=[dim for dim in change.dims if dim != "step"])
    t_3 = t_3.where(ds["status"] == 0)
    head_dims = [dim for dim in ("head", "sample", "patch") if dim in ds["s21"].dims]
    t_4 = _first(ds, ds["s21"].mean(head_dims) < 0.01)
    turned = (flipped(ds, "query_noise") >= 0.9) & (ds["step"] > t_3) & (ds["step"] >= GROUPING_STEP)
    t_5 = _first(ds, turned)
    out = xr.Dataset(dict(zip(BOUNDARIES, (t_1, t_2, t_3, t_4, t_5))))
    out["in_order"] = (out.t_I < out.t_II) & (out.t_II < out.t_III) & (out.t_II < out.t_IV) & (out.t_IV < out.t_V)
    for name, meaning in zip(BOUNDARIES, ("I", "II", "III", "IV", "V")):
        out[name].attrs = {"units": "step", "long_name": f"end of stage {meaning}"}
    out["in_order"].attrs = {"long_name": "t_I < t_II < t_III and t_II < t_IV < t_V"}
    return out


def at_train_loss(ds: Any, level: float) -> Any:
    """Every variable where the training loss first falls below a level: how optimizers are compared.

    Values are interpolated linearly in log(training loss) between the two recorded steps that enclose the crossing;
    a test quantity between the two test steps that do.

    Args:
      ds: Dataset with train_loss and a step dimension.
      level: training loss in nat, > 0.

    Returns:
      Dataset without the step dimension (which becomes the variable `step`); NaN where a run never gets there, and
      the attribute `not_reached` counts those runs.

    Raises:
      ValueError: for an illegal level or a Dataset without training loss.

    Examples:
      >>> import numpy as np, xarray as xr
      >>> ds = xr.Dataset({"train_loss": ("step", [1.0, 0.1, 0.01])}, {"step": [0, 10, 20]})
      >>> round(float(at_train_loss(ds, 0.1 ** 1.5)["step"]), 6)
      15.0
    """
    import xarray as xr

    level = real("level", level, low=0.0, open_low=True)
    need(ds, "train_loss")
    loss = ds["train_loss"].transpose(..., "step").values
    runs = ds["train_loss"].isel(step=0, drop=True)
    finite = np.where(np.isfinite(loss), np.maximum(loss, np.finfo(float).tiny), np.inf)
    log_loss = np.log(finite)
    below = log_loss <= np.log(level)
    reached = below.any(-1)
    first = np.argmax(below, -1)
    crossing = _crossing(log_loss, first, np.log(level))
    out = xr.Dataset(coords=runs.coords)
    table = {"step": ds["step"].astype(float), **{n: v for n, v in ds.data_vars.items() if "step" in v.dims}}
    for name, variable in table.items():
        own = [dim for dim in variable.dims if dim not in (*runs.dims, "step")]
        spread = variable.broadcast_like(ds["train_loss"]).transpose(*runs.dims, "step", *own)
        values = np.moveaxis(spread.values, len(runs.dims), -1)
        extra = (1,) * len(own)
        # A test quantity is known at some steps only: interpolate between the known ones around the crossing.
        seen = np.isfinite(values).reshape(*first.shape, -1, values.shape[-1]).any(axis=tuple(range(first.ndim + 1)))
        known = np.flatnonzero(seen)
        if known.size == 0:
            continue
        picked, at_known = values[..., known], log_loss[..., known]
        right = np.clip(np.searchsorted(known, np.ravel(first)), 0, known.size - 1).reshape(first.shape)
        left = np.maximum(right - 1, 0)
        low, high = (np.take_along_axis(at_known, i[..., None], -1)[..., 0] for i in (left, right))
        with np.errstate(invalid="ignore"):  # inf - inf of runs that have no loss at all
            span = np.where((left == right) | ~np.isfinite(low - high) | (low == high), 1.0, low - high)
            weight = np.where(left == right, 1.0, np.clip((low - crossing) / span, 0.0, 1.0))
        shape = first.shape + extra
        a = np.take_along_axis(picked, left.reshape((*shape, 1)), -1)[..., 0]
        b = np.take_along_axis(picked, right.reshape((*shape, 1)), -1)[..., 0]
        w = weight.reshape(shape)
        value = np.where(w == 1.0, b, np.where(w == 0.0, a, (1 - w) * a + w * b))
        if name == "train_loss":
            value = np.exp(crossing)  # the level itself, also between records
        seen_later = reached & (known[-1] >= first)  # nothing is read beyond the last test step
        value = np.where(seen_later.reshape(shape), value, np.nan)
        out[name] = xr.DataArray(value, dims=(*runs.dims, *own), attrs=variable.attrs)
    for name, variable in ds.data_vars.items():
        if "step" not in variable.dims:
            out[name] = variable
    out.attrs = {**ds.attrs, "train_loss_level": level, "not_reached": int((~reached).sum())}
    return out


def _crossing(log_loss: np.ndarray, first: np.ndarray, level: float) -> np.ndarray:
    """The log loss at which variables are read: the level, or the first record's loss if that lies below already."""
    start = log_loss[..., 0]
    return np.where(first == 0, start, level)

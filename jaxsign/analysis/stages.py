"""When does a run pass from one stage to the next?"""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.analysis.measures import GROUPING_STEP
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import need

if TYPE_CHECKING:
    import xarray as xr

BOUNDARIES = ("t_I", "t_II", "t_III", "t_IV", "t_V")
#: Dimensions that stage boundaries are read along.
STAGE_DIMS = {
    "value_noise": ("step",), "sign_agreement": ("step",), "query_signal": ("step", "row"), "s21": ("step",),
    "query_noise": ("step", "row"),
}  # fmt: skip


def flipped(ds: "xr.Dataset", name: str, step: int | None = None) -> "xr.DataArray":
    """Share of initially opposed noise that has turned to the sign of its query signal.

    "Opposed" are the (row, sample) pairs whose noise has not the query signal's sign at t = 100.

    Args:
      ds: Dataset with `name` and query_signal.
      name: "query_noise" or "key_noise".
      step: one recorded step, or None for all.

    Returns:
      DataArray over the runs (and step); NaN where no pair is opposed.

    Raises:
      CannotDecide: if an observable, the grouping step or `step` is missing.

    References:
      arXiv 2410.04870, stages III and IV.
    """
    need(ds, name, "query_signal")
    if GROUPING_STEP not in ds.step:
        steps = ds["step"].values
        raise CannotDecide(f"step {GROUPING_STEP} must be recorded to group noise by sign, got steps {steps}")
    if step is not None and step not in ds.step:
        raise CannotDecide(f"step {step} is not recorded")
    at = ds.sel(step=GROUPING_STEP)
    opposed = np.sign(at[name]) != np.sign(at["query_signal"])
    later = ds if step is None else ds.sel(step=step)
    agrees = np.sign(later[name]) == np.sign(later["query_signal"])
    within = [dim for dim in ("row", "sample", "patch") if dim in opposed.dims]
    count = opposed.sum(within)
    return ((agrees & opposed).sum(within) / count.where(count > 0)).where(ds["status"] == 0)


def _first(ds: "xr.Dataset", condition: "xr.DataArray") -> "xr.DataArray":
    """First recorded step at which a condition over (..., step) holds, NaN where it never does."""
    place = condition.argmax("step")
    return ds["step"].isel(step=place).drop_vars("step").astype(float).where(condition.any("step"))


def find_stages(ds: "xr.Dataset") -> "xr.Dataset":
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
      CannotDecide: if an observable or step 100 is missing, or an observable has other dimensions; a ValueError.

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
    need(ds, "status")  # apart: it is no observable
    for name, dims in STAGE_DIMS.items():
        lost = [dim for dim in dims if dim not in ds[name].dims]
        if lost:
            raise CannotDecide(f"{name} must have the dimensions {list(dims)}, got {list(ds[name].dims)}")
    noise_dims = [dim for dim in ("sample", "patch") if dim in ds["value_noise"].dims]
    t_1 = _first(ds, (ds["value_noise"] > 0).all(noise_dims))
    t_2 = _first(ds, ds["sign_agreement"] >= 0.99)
    sign: Any = np.sign(ds["query_signal"])
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

"""Which runs does a Dataset hold? Its manifest, its observables, the runs of one optimizer, the best of several."""

import json
import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxsign.analysis.reading import CannotDecide
from jaxsign.store.labels import system_name

if TYPE_CHECKING:
    import xarray as xr

Data = TypeVar("Data", "xr.Dataset", "xr.DataArray")
#: Variables that are no traces.
CONSTANTS = ("status", "noise_l1")


def check_dataset(ds: Any) -> None:
    """Raises ValueError unless it is given an xarray.Dataset."""
    import xarray as xr

    if not isinstance(ds, xr.Dataset):
        tree = ": one of its leaves is one, tree['NAME'].to_dataset()" if isinstance(ds, xr.DataTree) else ""
        kind = type(ds).__name__
        raise ValueError(f"ds must be an xarray.Dataset, of js.run_sweep or js.open_results, got a {kind}{tree}")


def manifest(ds: "xr.Dataset") -> dict[str, Any]:
    """The manifest that a results Dataset carries in its attributes.

    Raises:
      ValueError: if there is none.
    """
    check_dataset(ds)
    if "manifest" not in ds.attrs:
        raise ValueError("ds must be a Dataset of jaxsign (js.run_sweep or js.open_results), got no manifest")
    return json.loads(ds.attrs["manifest"])


def system_of(ds: "xr.Dataset") -> str:
    """The name of the function that made the tasks of a Dataset, such as "two_layer"; of the Task that was swept."""
    return system_name(manifest(ds)["definition"])


def need(ds: "xr.Dataset", *names: str, steps: bool = True) -> None:
    """Raises CannotDecide naming the observables that `ds` lacks, or holds without steps unless `steps` is False."""
    check_dataset(ds)
    missing = [name for name in names if name not in ds]
    if missing:
        raise CannotDecide(f"ds must hold the observables {list(names)}, got a Dataset without {missing}")
    flat = [name for name in names if name not in CONSTANTS and "step" not in ds[name].dims]
    if flat and steps:
        raise CannotDecide(f"ds must hold the observables {list(names)} over steps, got one number a run of {flat}")


def need_runs(ds: "xr.Dataset") -> None:
    """Raises CannotDecide unless a Dataset has what every Dataset of runs has: `ds.isel(seed=0)` loses a dimension."""
    if "status" not in ds:
        raise CannotDecide("the Dataset has no status")
    lost = [dim for dim in ("optimizer", "seed") if dim not in ds["status"].dims]
    if lost:
        raise CannotDecide(f"needs the dimensions optimizer and seed, got a Dataset without {lost}")
    if not ds.sizes["seed"]:
        raise CannotDecide("the Dataset has no seeds")
    if "family" not in ds.coords:
        raise CannotDecide("needs the coordinate family, which names each optimizer's family")


def one_point(ds: "xr.Dataset", *kept: str) -> "xr.Dataset":
    """The runs at the one point of every axis but the kept ones, dims (*kept, optimizer, seed, step, ...).

    Raises:
      CannotDecide: if another axis has several points.
    """
    need_runs(ds)
    axes = [dim for dim in ds["status"].dims if dim not in ("optimizer", "seed", *kept)]
    long = [dim for dim in axes if ds.sizes[dim] > 1]
    if long:
        which = "ds.sel(" + ", ".join(f"{dim}=..." for dim in long) + ")"
        raise CannotDecide(
            f"needs one point of every{' other' if kept else ''} axis, got several on {long}: choose one with {which}, "
            f"in a claim of your own with runs=lambda ds: {which}"
        )
    return ds.isel(dict.fromkeys(axes, 0))


def numbers_of(ds: "xr.Dataset", name: str) -> np.ndarray:
    """An optimizer's keyword, such as learning_rate, as floats over the optimizers; NaN where it is no number.

    In results of an earlier version, one schedule among the values has made all of them texts, numbers included.

    Raises:
      CannotDecide: if the keyword is no coordinate.
    """
    if name not in ds.coords:
        raise CannotDecide(f"needs the coordinate {name}: give the optimizer as js.grid(..., {name}=...)")
    return np.vectorize(_float, otypes=[float])(ds[name].values)


def _float(value: Any) -> float:
    try:
        return float(value)
    except ValueError:  # the name of a schedule, or ""
        return math.nan


def optimizers_of(ds: "xr.Dataset", family: str, **keywords: float) -> np.ndarray:
    """The places along `optimizer` of a family's grid points with these keywords; empty if there are none.

    Args:
      ds: Dataset of runs.
      family: name of an optimizer family, such as "adam".
      **keywords: keywords of the optimizer, such as b2=0.9; one that is no coordinate matches nothing.

    Examples:
      >>> import xarray as xr
      >>> optimizers_of(xr.Dataset(coords={"family": ("optimizer", ["gd", "adam", "gd"])}), "gd").tolist()
      [0, 2]
    """
    chosen = ds["family"].values == family
    for name, number in keywords.items():
        chosen = chosen & (np.isclose(numbers_of(ds, name), number, rtol=1e-9, atol=0) if name in ds.coords else False)
    return np.flatnonzero(chosen)


def family_runs(ds: "xr.Dataset", family: str) -> "xr.Dataset":
    """The runs of an optimizer family, dims (optimizer, ...) with its grid points.

    Raises:
      CannotDecide: if there are none.
    """
    places = optimizers_of(ds, family)
    if not places.size:
        raise CannotDecide(f"needs runs of {family}")
    return ds.isel(optimizer=places)


def select(ds: "xr.Dataset", family: str, **point: float) -> "xr.Dataset":
    """The runs of one optimizer, with no coordinates but those of dimensions.

    Numbers of two selections can be subtracted: their learning rates and labels, which differ, are gone.

    Args:
      ds: Dataset of runs.
      family: name of an optimizer family, such as "adam".
      **point: keywords of the optimizer, such as b2=0.9, and points of axes, such as batch_size=2.

    Returns:
      Dataset (seed, step, ...) and the axes that `point` does not name.

    Raises:
      CannotDecide: if there is not exactly one such optimizer, or no such point of an axis.

    Examples:
      >>> import xarray as xr
      >>> ds = xr.Dataset({"loss": ("optimizer", [1.0, 2.0])}, {"family": ("optimizer", ["gd", "adam"])})
      >>> select(ds, "adam")["loss"].item()
      2.0
    """
    axes = {name: value for name, value in point.items() if name in ds.dims}
    keywords = {name: value for name, value in point.items() if name not in axes}
    places = optimizers_of(ds, family, **keywords)
    if places.size != 1:
        shown = ", ".join(f"{name}={number:g}" for name, number in keywords.items())
        which = f"{family} optimizer with {shown}" if shown else f"{family} optimizer"
        raise CannotDecide(f"needs exactly one {which}, got {places.size}")
    runs = ds.isel(optimizer=int(places[0]))
    for name, value in axes.items():
        if value not in runs[name].values:
            raise CannotDecide(f"needs {name}={value}")
        runs = runs.sel({name: value})
    return drop_labels(runs)


def drop_labels(data: Data) -> Data:
    """Data without the coordinates that are no dimensions, such as the learning rate of a chosen optimizer."""
    return data.drop_vars([name for name in data.coords if name not in data.dims])


def best_rate(ds: "xr.Dataset", *, by: "xr.DataArray") -> "xr.Dataset":
    """The runs at the optimizer with the smallest score: at every seed's own one, or at one for all seeds.

    Args:
      ds: Dataset of runs whose optimizers differ in their learning rate, or in another keyword.
      by: score of every optimizer, dims (optimizer, ...): over seeds too, every seed has its own optimizer; averaged
        over them, all have the same. NaN is the worst; where all scores are NaN the first optimizer is taken.

    Returns:
      Dataset without the dimension `optimizer`; the optimizer's coordinates say which was taken.

    Examples:
      >>> import xarray as xr
      >>> loss = ("optimizer", "seed"), [[1.0, 4.0], [2.0, 3.0]]
      >>> ds = xr.Dataset({"loss": loss}, {"learning_rate": ("optimizer", [0.1, 0.2])})
      >>> best_rate(ds, by=ds["loss"])["learning_rate"].values.tolist()
      [0.1, 0.2]
      >>> best_rate(ds, by=ds["loss"].mean("seed"))["learning_rate"].item()
      0.1
    """
    return ds.isel(optimizer=by.fillna(np.inf).argmin("optimizer"))

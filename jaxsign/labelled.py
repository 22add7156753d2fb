"""Names, dimensions, coordinates and units of results: arrays -> xarray."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsign.optim import static_word
from jaxsign.problem import field_names

#: Variables that every run has.
RUN_VARIABLES: Mapping[str, tuple[str, Any, Mapping[str, str]]] = {
    "status": ("int8", -1, {"long_name": "-1 not run, 0 finished, 1 diverged", "units": "1"}),
    "first_bad_step": ("int32", -1, {"long_name": "first step with a non-finite loss or parameter", "units": "step"}),
}


def own_dims(name: str, rank: int, dims: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Dimension names of one observable, without the runs' and the step's.

    Examples:
      >>> own_dims("s11", 2, {"s11": ("head", "sample")}), own_dims("mine", 1, {})
      (('head', 'sample'), ('mine_dim0',))
    """
    named = tuple(dims.get(name, ()))
    return named if len(named) == rank else tuple(f"{name}_dim{i}" for i in range(rank))


def run_dataset(run: Any, family: str, keywords: Mapping[str, float]) -> Any:
    """One js.Run as an xarray.Dataset with dims (optimizer, seed, step, ...), the first two of length 1.

    Args:
      run: a Run.
      family: name of its optimizer.
      keywords: the optimizer's numbers, as coordinates.

    Returns:
      xarray.Dataset; attrs["manifest"] holds the run's problem and numbers.
    """
    import xarray as xr

    def lift(name: str, value: Any, step: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        array = np.asarray(value)
        dims = ("optimizer", "seed", *step, *own_dims(name, array.ndim - len(step), run.dims))
        return dims, array[None, None], dict(run.attrs.get(name, {}))

    variables = {name: lift(name, value, ("step",)) for name, value in run.trace.items()}
    for name, value in {**run.constants, **run.summary, **run.watch}.items():
        variables[name] = lift(name, value, ())
    for name, (dtype, _, attrs) in RUN_VARIABLES.items():
        variables[name] = (("optimizer", "seed"), np.full((1, 1), getattr(run, name), dtype), dict(attrs))
    coords: dict[str, Any] = {"optimizer": [family], "seed": [run.seed], "step": run.steps}
    coords["family"] = ("optimizer", np.array([family], object))
    coords |= {name: ("optimizer", np.array([float(value)])) for name, value in keywords.items()}
    records = {"problem": run.problem, "hyper": run.hyper}
    plain = {
        name: {field: getattr(record, field) for field in field_names(type(record))}
        for name, record in records.items()
        if dataclasses.is_dataclass(record)
    }
    ds = xr.Dataset(variables, coords, {"manifest": json.dumps({"definition": plain}, default=float)})
    return ds.assign_coords({d: np.arange(n) for d, n in ds.sizes.items() if d not in coords})


def coordinates(sweep: Any) -> dict[str, tuple[tuple[str, ...], Any, dict[str, str]]]:
    """Coordinates of a sweep's Dataset: axes and their zipped members, derived fields, optimizer keywords, seed, step.

    Args:
      sweep: a Sweep.

    Returns:
      {name: (dims, values, attrs)}.
    """
    out: dict[str, tuple[tuple[str, ...], Any, dict[str, str]]] = {}
    for axis in sweep.grid_axes:
        for i, name in enumerate(axis.members):
            out[name] = ((axis.name,), _column([point[i] for point in axis.values]), _AXIS_ATTRS.get(name, {}))
    derived = getattr(type(sweep.hyper), "derived", {})
    for name, field in derived.items():
        if name in out:
            out[field] = _dependent(sweep, field)
    taken = {*out, *base_coordinates(sweep), *sweep.dims, "family", "step"}
    labels, families, points = zip(*sweep.optimizer_points)
    out["optimizer"] = (("optimizer",), np.array(labels, object), {"long_name": "optimizer"})
    out["family"] = (("optimizer",), np.array(families, object), {"long_name": "optimizer family"})
    for keyword in dict.fromkeys(k for point in points for k in point):
        values = [point.get(keyword) for point in points]
        name = f"optimizer_{keyword}" if keyword in taken else keyword
        out[name] = (("optimizer",), _column(values), {"long_name": f"optimizer keyword {keyword}"})
    out["seed"] = (("seed",), np.array(sweep.seeds, np.int64), {"long_name": "seed"})
    out["step"] = (("step",), sweep.schedule.record.astype(np.int64), {"long_name": "optimizer step", "units": "step"})
    return out


_AXIS_ATTRS = {
    "snr": {"long_name": "signal-to-noise ratio mu/(sigma_p sqrt(s))", "units": "1"},
    "sigma_p": {"long_name": "noise standard deviation", "units": "1"},
    "n": {"long_name": "training examples", "units": "1"},
}


def _column(values: list[Any]) -> np.ndarray:
    """Numbers as an array, NaN where there is none; anything else as strings."""
    if all(isinstance(v, bool) for v in values):
        return np.array(values, bool)
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return np.array(values, np.int64)
    if all(v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in values) and any(
        v is not None for v in values
    ):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    return np.array(["" if v is None else v if isinstance(v, str) else static_word(v) for v in values], object)


def _dependent(sweep: Any, field: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    """A derived axis's field over the axes that it depends on."""
    shape = tuple(len(axis.values) for axis in sweep.grid_axes)
    table = np.array([float(getattr(sweep.hyper_at(i), field)) for i in sweep.combinations()]).reshape(shape)
    dims = [axis.name for axis in sweep.grid_axes]
    for i in reversed(range(len(dims))):
        if (table == table.take([0], axis=i)).all():
            table = table.take(0, axis=i)
            del dims[i]
    return tuple(dims), table, _AXIS_ATTRS.get(field, {})


def base_coordinates(sweep: Any) -> dict[str, float]:
    """The numbers of hyper that no axis sets, as scalar coordinates."""
    hyper = sweep.hyper
    if hyper is None:
        return {}
    names = list(hyper) if isinstance(hyper, Mapping) else field_names(type(hyper))
    used = {name for axis in sweep.grid_axes for name in axis.members}
    used |= {field for name, field in getattr(type(hyper), "derived", {}).items() if name in used}
    values = hyper if isinstance(hyper, Mapping) else {name: getattr(hyper, name) for name in names}
    return {name: float(values[name]) for name in names if name not in used and np.ndim(values[name]) == 0}


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The manifest as the JSON text that a Dataset carries in its attribute `manifest`."""
    return json.dumps(manifest, sort_keys=True)

"""How are results labelled: names, dimensions, coordinates and units of xarray Datasets?"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.optimizers.words import static_word
from jaxsign.store.levels import DIMS, observable
from jaxsign.store.levels import coordinates as level_coords
from jaxsign.validation import names
from jaxsign.validation.values import field_names, plain_number

if TYPE_CHECKING:
    import xarray as xr

#: Variables that every run has.
RUN_VARIABLES: Mapping[str, tuple[str, Any, Mapping[str, str]]] = {
    "status": ("int8", -1, {"long_name": "-1 not run, 0 finished, 1 diverged", "units": "1"}),
    "first_bad_step": ("int32", -1, {"long_name": "first step with a non-finite loss or parameter", "units": "step"}),
}


#: Dimensions and coordinates that every sweep's Dataset has.
BASE_NAMES = (("dimension", "optimizer"), ("dimension", "seed"), ("dimension", "step"), ("coordinate", "family"))
#: What the coordinate of a keyword's words is called after the keyword, where others of its values are numbers.
WORDS = "_name"
#: What a definition calls the system of a Task that is swept itself, see `jaxsign.sweep.sweep.OneTask`.
ONE_TASK = "OneTask"
#: The attribute that marks bools. They are stored as integers, with -1 for runs that have not run.
BOOL = "kind", "bool: 0 false, 1 true, -1 not run"


def stored_as(dtype: Any) -> tuple[np.dtype, Any, dict[str, str]]:
    """How results of a device's dtype are stored: (dtype, fill value of runs that have not run, attributes).

    The fill value is NaN for floats, -1 for signed integers, the largest number for unsigned ones. Bools become int8,
    with -1 as fill value. Floats that NumPy does not have, such as bfloat16, become 32-bit ones, which hold them
    exactly.

    Examples:
      >>> stored_as(np.dtype("uint8"))
      (dtype('uint8'), 255, {'not_run': '255'})
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.dtype(np.int8), -1, dict([BOOL])
    if dtype.kind == "u":
        return dtype, int(np.iinfo(dtype).max), {"not_run": str(np.iinfo(dtype).max)}
    if dtype.kind == "i":
        return dtype, -1, {}
    if dtype in (np.float16, np.float32, np.float64):
        return dtype, np.nan, {}
    return np.dtype(np.float32), np.nan, {"computed_as": dtype.name}


def with_bools(ds: "xr.Dataset") -> "xr.Dataset":
    """A Dataset with its bools as bools, or as floats with NaN if some runs have not run.

    Args:
      ds: Dataset with the variable `status`.
    """
    key, mark = BOOL
    # Earlier versions stored bools as bools, with True for runs that have not run.
    bools = {name: v for name, v in ds.data_vars.items() if v.attrs.get(key) == mark or v.dtype == bool}
    if not bools:
        return ds
    complete = bool((ds["status"] >= 0).all())
    for name, variable in bools.items():
        attrs = {k: value for k, value in variable.attrs.items() if k != key}
        if complete:
            bools[name] = variable.astype(bool)
            bools[name].attrs = attrs
        else:
            bools[name] = variable.astype(float).where(ds["status"] >= 0).transpose(*variable.dims)
            bools[name].attrs = {**attrs, key: mark.replace("-1", "NaN")}
    return ds.assign(bools)


def check_results(
    parts: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, tuple[str, ...]],
    taken: Iterable[tuple[str, str]] = BASE_NAMES,
) -> None:
    """Checks that one Dataset can hold a run's results: every name once, every dimension with one size.

    Args:
      parts: {kind, such as "observable": {name: array or its shape, without the steps}}.
      dims: {name: names of its dimensions} of results with given names.
      taken: (kind, name) of the other dimensions and coordinates of the Dataset.

    Raises:
      ValueError: naming kind, name and what it collides with.
    """
    taken = [*taken, *(("variable", name) for name in RUN_VARIABLES)]
    entries = [(kind, name) for kind, results in parts.items() for name in results]
    used = names.different([*taken, *entries])
    sizes: dict[str, tuple[str, int]] = {}
    for kind, results in parts.items():
        for name, value in results.items():
            given = dims.get(name)
            if given is not None and len(given) != len(value.shape):
                raise ValueError(f"{kind} {name!r} has {len(value.shape)} dimensions, and dims names {list(given)}")
            value_dims = own_dims(name, len(value.shape), dims)
            if len(set(value_dims)) < len(value_dims):
                raise ValueError(f"{kind} {name!r} has one dimension twice: dims names {list(value_dims)}")
            for dim, size in zip(value_dims, value.shape):
                if names.alike(dim) in used:
                    other, same = used[names.alike(dim)]
                    raise ValueError(
                        f"dimension {dim!r} of the {kind} {name!r} has the name of the {other} {same!r}: rename it"
                    )
                before, length = sizes.setdefault(dim, (name, size))
                if length != size:
                    raise ValueError(
                        f"dimension {dim!r} has the size {length} in {before!r} and {size} in the {kind} {name!r}: "
                        "give it two names"
                    )
    names.different([("dimension", dim) for dim in sizes])


def check_task(task: Any) -> None:
    """Checks the names in a task: dimensions, attributes and alarms.

    Raises:
      ValueError: naming the name.
    """
    for field in ("dims", "attrs"):
        if not isinstance(given := getattr(task, field), Mapping):
            raise ValueError(f"{field} of a Task must be a dict of observables, got {field}={given!r}")
    for name, dims in task.dims.items():
        names.result_name("dims of the observable", name)
        if not isinstance(dims, (tuple, list)):
            such = f"({dims!r},)" if isinstance(dims, str) else '("row",)'
            raise ValueError(f"dims of the observable {name!r} must be a tuple such as {such}, got {dims!r}")
        for dim in dims:
            if dim in ("step", "optimizer", "seed"):
                raise ValueError(
                    f"dims of the observable {name!r} has {dim!r}, which every result has besides: name only the "
                    "dimensions of one array that observe returns"
                )
            names.result_name(f"dimension of the observable {name!r}", dim)
    for name, attrs in task.attrs.items():
        names.result_name("attrs of the observable", name)
        names.attributes(name, attrs)
    for name in task.watch:
        names.result_name("alarm", name)


def own_dims(name: str, rank: int, dims: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Dimension names of one observable, without the dimensions of runs and steps.

    Examples:
      >>> own_dims("s11", 2, {"s11": ("head", "sample")}), own_dims("mine", 1, {})
      (('head', 'sample'), ('mine_dim0',))
    """
    given = tuple(dims.get(name, ()))
    return given if len(given) == rank else tuple(f"{name}_dim{i}" for i in range(rank))


def run_dataset(run: Any, family: str, keywords: Mapping[str, float]) -> "xr.Dataset":
    """One js.Run as an xarray.Dataset with dims (optimizer, seed, step, ...), the first two of length 1.

    Args:
      run: a Run.
      family: name of its optimizer.
      keywords: the optimizer's numbers, as coordinates.

    Returns:
      xarray.Dataset; attrs["manifest"] holds the run's problem and numbers.
    """
    import xarray as xr

    names.word("optimizer", family)
    for name in keywords:
        names.result_name("keyword of an optimizer", name)
    parts = {"constant": run.constants, "summary": run.summary, "alarm": run.watch}
    arrays = {kind: {name: np.asarray(value) for name, value in values.items()} for kind, values in parts.items()}
    trace = {name: np.asarray(value) for name, value in run.trace.items()}
    arrays = {"observable": {name: value[0] for name, value in trace.items()}, **arrays}
    check_results(arrays, run.dims, [*BASE_NAMES, *(("keyword of an optimizer", name) for name in keywords)])

    def lift(name: str, array: np.ndarray, step: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        dims = ("optimizer", "seed", *step, *own_dims(name, array.ndim - len(step), run.dims))
        dtype, _, note = stored_as(array.dtype)
        kept, note = (array, {}) if array.dtype == bool else (array.astype(dtype), note)
        return dims, kept[None, None], {**run.attrs.get(name, {}), **note}

    variables = {name: lift(name, value, ("step",)) for name, value in trace.items()}
    for kind in parts:
        variables |= {name: lift(name, value, ()) for name, value in arrays[kind].items()}
    for name, value in run.captured.items():
        variables[name] = lift(observable(name), np.asarray(value), DIMS)
    for name, (dtype, _, attrs) in RUN_VARIABLES.items():
        variables[name] = (("optimizer", "seed"), np.full((1, 1), getattr(run, name), dtype), dict(attrs))
    coords: dict[str, Any] = {"optimizer": [family], "seed": [run.seed], "step": run.steps, **level_coords(run.levels)}
    coords["family"] = ("optimizer", np.array([family], object))
    for name, value in keywords.items():
        number = plain_number(name, value)
        whole = type(number) is int and abs(number) <= 2**53
        coords[name] = ("optimizer", _column([float(number) if whole else number]))
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
    for name, field in _derived(sweep.hyper).items():
        if name in out:
            out[field] = _dependent(sweep, field)
    labels, families, _ = zip(*sweep.optimizer_points)
    out["optimizer"] = (("optimizer",), np.array(labels, object), {"long_name": "optimizer"})
    out["family"] = (("optimizer",), np.array(families, object), {"long_name": "optimizer family"})
    for keyword, name in keyword_coordinates(sweep).items():
        values, about = _keyword_values(sweep, keyword), f"optimizer keyword {keyword}"
        if _mixed(values):  # words among them would make texts of all numbers, which no comparison with a number finds
            words = np.array([v if isinstance(v, str) else "" for v in values], object)
            out[f"{name}{WORDS}"] = (("optimizer",), words, {"long_name": f"{about}, where it is no number"})
            values = [None if isinstance(v, str) else v for v in values]
        out[name] = (("optimizer",), _column(values), {"long_name": about})
    out["seed"] = (("seed",), np.array(sweep.seeds, np.int64), {"long_name": "seed"})
    out |= level_coords(sweep.crossed)
    out["step"] = (("step",), sweep.schedule.record.astype(np.int64), {"long_name": "optimizer step", "units": "step"})
    return out


def _keyword_values(sweep: Any, keyword: str) -> list[Any]:
    """The values of an optimizer's keyword, a schedule's as a word; None where a family lacks it."""
    return [
        words[keyword] if callable(point.get(keyword)) else point.get(keyword)
        for (_, _, point), words in zip(sweep.optimizer_points, sweep.optimizer_words)
    ]


def _mixed(values: Sequence[Any]) -> bool:
    """Whether some values are numbers, some are words, and none is anything else."""
    kinds = {"word" if isinstance(v, str) else type(v) for v in values if v is not None}
    return "word" in kinds and len(kinds) > 1 and kinds <= {"word", int, float}


def keyword_coordinates(sweep: Any) -> dict[str, str]:
    """{keyword of an optimizer: its coordinate's name}, which differs if an axis or a number of the system has it."""
    members, fields = _members_and_fields(sweep)
    taken = {*members, *fields, *base_coordinates(sweep), *sweep.dims, "family", "step", *RUN_VARIABLES}
    keywords = dict.fromkeys(keyword for _, _, point in sweep.optimizer_points for keyword in point)
    return {keyword: f"optimizer_{keyword}" if keyword in taken else keyword for keyword in keywords}


def coordinate_names(sweep: Any) -> list[tuple[str, str]]:
    """(kind, name) of every dimension and coordinate of a sweep's Dataset that is known before it is traced."""
    members, fields = _members_and_fields(sweep)
    return [
        *BASE_NAMES,
        *(("axis", name) for name in members),
        *(("hyper field", name) for name in [*fields, *base_coordinates(sweep)]),
        *(("keyword of an optimizer", name) for name in keyword_coordinates(sweep).values()),
        *(
            ("keyword of an optimizer, in words", f"{name}{WORDS}")
            for keyword, name in keyword_coordinates(sweep).items()
            if _mixed(_keyword_values(sweep, keyword))
        ),
        *(("dimension of captured levels", name) for name in level_coords(sweep.crossed)),
    ]


def _derived(hyper: Any) -> Mapping[str, str]:
    """{derived axis: the field that it sets} of a system's numbers."""
    return getattr(type(hyper), "derived", {})


def _members_and_fields(sweep: Any) -> tuple[list[str], list[str]]:
    """(names of all axes' members, fields that derived axes among them set)."""
    members, derived = [name for axis in sweep.grid_axes for name in axis.members], _derived(sweep.hyper)
    return members, [derived[name] for name in members if name in derived]


_AXIS_ATTRS = {
    "snr": {"long_name": "signal-to-noise ratio mu/(sigma_p sqrt(s))", "units": "1"},
    "sigma_p": {"long_name": "noise standard deviation", "units": "1"},
    "n": {"long_name": "training examples", "units": "1"},
}


def _column(values: list[Any]) -> np.ndarray:
    """Numbers as an array, with NaN for None; anything else as strings."""
    if all(isinstance(v, bool) for v in values):
        return np.array(values, bool)
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    fits = all(-(2**63) <= v < 2**63 for v in numbers if isinstance(v, int))
    if fits and all(isinstance(v, int) for v in numbers) and len(numbers) == len(values):
        return np.array(values, np.int64)
    exact = fits and all(float(v) == v for v in numbers if isinstance(v, int))  # 64-bit floats hold up to 2^53
    if numbers and exact and len(numbers) + values.count(None) == len(values):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    return np.array(["" if v is None else v if isinstance(v, str) else static_word(v) for v in values], object)


def _dependent(sweep: Any, field: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    """The field behind a derived axis, over the axes that it depends on."""
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
    members, fields = _members_and_fields(sweep)
    values = hyper if isinstance(hyper, Mapping) else {name: getattr(hyper, name) for name in names}
    numbers = {name: plain_number(name, values[name]) for name in names if name not in {*members, *fields}}
    return {
        name: value if type(value) is int and abs(value) > 2**53 else float(value)
        for name, value in numbers.items()
        if isinstance(value, (int, float))
    }


def system_name(definition: Mapping[str, Any]) -> str:
    """The name of what makes a definition's tasks: of a function, or of the Task that stands in its place.

    Examples:
      >>> system_name({"system": {"name": "jaxsign.systems.two_layer.two_layer"}}), system_name({"system": None})
      ('two_layer', '')
    """
    system = definition.get("system") or {}
    function = str(system.get("name", "")).rpartition(".")[2]
    task = (system.get("state") or {}).get("task") if function == ONE_TASK else None
    return str((task or {}).get("name", function))


def attributes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The attributes of a Dataset: `description`, one line for people, and `manifest`, all of it as JSON text."""
    definition, runs = manifest["definition"], manifest["runs"]
    words = f"{runs['total']} runs" if "total" in runs else "runs"  # a manifest may have lost its counts
    if open_runs := runs.get("not_run"):
        words += f" ({open_runs} not run yet)"
    if diverged := runs.get("diverged"):
        words += f" ({diverged} diverged)"
    if "optimizers" in definition:
        axes = [*(member for axis in definition["axes"] for member in axis["members"]), "optimizer", "seed"]
        words += f" of {definition['steps']} steps of {system_name(definition)} over {', '.join(axes)}"
        words += f"; optimizers: {', '.join(definition['optimizers'])}"
    return {"description": words, "manifest": ManifestText(json.dumps(manifest, sort_keys=True))}


class ManifestText(str):
    """The manifest as JSON text, which shows itself in a few words: `ds.attrs` is read by people.

    Examples:
      >>> ManifestText('{"steps": 7}'), json.loads(ManifestText('{"steps": 7}'))
      (<JSON text of 12 characters: json.loads(ds.attrs['manifest'])>, {'steps': 7})
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<JSON text of {len(self):,} characters: json.loads(ds.attrs['manifest'])>"

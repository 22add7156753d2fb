"""How do optimizers compare at equal training loss?"""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsign.analysis.runs import check_dataset, need
from jaxsign.store.levels import SUFFIX
from jaxsign.validation.values import known, name_tuple, real

if TYPE_CHECKING:
    import xarray as xr

#: Two records that a reading is interpolated from: the training loss may fall by this factor between them, and what is
#: read may change by this share of its range over the run.
FACTOR, SHARE = 1.1, 0.04
#: Consecutive steps are always close enough. But where one step changes a variable by more than this share of its
#: largest size in the run, as GD's first step does at a large learning rate, no state of the run is near the level.
LEAP = 0.25
_CODES = (
    "0 read, 1 never falls to it, 2 there from the start, 3 records too far apart, 4 one step leaps over it, "
    "5 not run yet"
)


def at_train_loss(
    ds: "xr.Dataset", level: float | Sequence[float], names: Sequence[str] | None = None, *, leaps: bool = True
) -> "xr.Dataset":
    """Every variable where the training loss L first falls to a level: how optimizers are compared.

        value = (1-w) value_0 + w value_1,   w = log(L_0/level) / log(L_0/L_1)

    Where the runs captured this level (`levels=` of `js.Sweep` and `js.train`), 1 is the first step with L at or below
    the level and 0 is the step before it; observables of a step, such as smoothness, belong to the step from 0 to 1.
    Elsewhere 0 and 1 are the records around the crossing at which the variable is known. They are read only if they are
    consecutive steps, or close: L_1 <= level < L_0 <= 1.1 L_1, and the two values differ by at most .04 of the range
    that the variable has in that run. A run that falls to the level only between records counts as one that never does.
    One step leaps over the level if it changes the variable by more than a quarter of the variable's largest size in
    that run: no state of the run is near the level then, and the reading is marked.

    Args:
      ds: Dataset with train_loss and a step dimension, or with captured levels.
      level: training loss in nat, > 0, or a list of them, which becomes a last dimension `level`.
      names: variables with a step dimension to read; default all. Others are kept as they are.
      leaps: whether to read them where one step leaps over the level. Claims and figures of this package do not.

    Returns:
      Dataset without the step dimension (which becomes the variable `step`). NaN where a run never falls to the level,
      where it is there from the start, where records are too far apart and, without `leaps`, where a step leaps over
      it. The attributes `not_reached`, `below_at_start`, `too_coarse`, `leaps` and `not_run` count these runs (of
      several levels: all together). The variable `reading` gives the reason for each: 0 read, 1 never falls to the
      level, 2 there from the start, 3 records too far apart, 4 one step leaps over it, 5 not run yet. A mean over runs
      takes `skipna=False`, or is the mean over the runs that reach the level.

    Warns:
      UserWarning: once, if runs are at a level from the start, records are too far apart or, without `leaps`, steps
        leap over it.

    Raises:
      ValueError: for an illegal level or a Dataset without training loss or one of the names.

    Examples:
      >>> import numpy as np, xarray as xr
      >>> ds = xr.Dataset({"train_loss": ("step", [0.95, 0.9025])}, {"step": [10, 20]})
      >>> round(float(at_train_loss(ds, 0.95 ** 1.5)["step"]), 6)
      15.0
    """
    import xarray as xr

    check_dataset(ds)
    several = np.ndim(level) == 1
    given: list[Any] = [*level] if isinstance(level, Iterable) and several else [level]
    levels = [real("level", one, low=0.0, open_low=True) for one in given]
    if not levels:
        raise ValueError(f"level must be a training loss > 0 or a list of at least one, got level={level!r}")
    names = name_tuple("names", names)
    for name in names or ():
        known("variable", name, map(str, ds.data_vars))
    _check_single_runs(ds)
    read = [_Reading.of(ds, one, names, leaps) for one in levels]
    notes = [note for note in (one.note() for one in read) if note]
    if notes:
        warnings.warn("; ".join(notes), UserWarning, stacklevel=2)
    values = [xr.Dataset(one.values, one.coords) for one in read]
    readings = xr.concat(values, xr.IndexVariable("level", levels)) if several else values[0]
    readings = readings.transpose(..., "level") if several else readings
    runs = readings["step"].dims[:-1] if several else readings["step"].dims
    waiting = _waiting(ds, read[0], runs)
    code = [np.where(waiting, 5, one.code()).astype(np.int8) for one in read]
    axis = (*runs, "level") if several else runs
    about = {"long_name": _CODES}
    added = {"reading": xr.Variable(axis, np.stack(code, -1) if several else code[0], about)}
    # Variables, not DataArrays, here and below: each DataArray looks through all coordinates, and claims ask often.
    kept = {name: ds.variables[name] for name in ds.data_vars if not str(name).endswith(SUFFIX)}
    kept = {name: variable for name, variable in kept.items() if "step" not in variable.dims}
    order = sorted(ds.coords, key=lambda name: name not in readings.dims)
    labels: dict[Hashable, Any] = {}
    for variable in kept.values():  # what a DataArray brings along
        for name in order:
            if name not in readings.coords and set(ds.variables[name].dims) <= set(variable.dims):
                labels.setdefault(name, ds.variables[name])
    counts = {"not_reached": lambda one: ~one.reached & ~waiting, "below_at_start": lambda one: one.below}
    counts |= {"too_coarse": lambda one: one.some(one.coarse), "leaps": lambda one: one.some(one.leaps)}
    attrs: dict[str, Any] = {name: sum(int(count(one).sum()) for one in read) for name, count in counts.items()}
    attrs["not_run"] = int(waiting.sum())
    attrs["train_loss_level"] = levels if several else levels[0]
    return readings.assign(added | kept).assign_coords(labels).assign_attrs({**ds.attrs, **attrs})


def _check_single_runs(ds: "xr.Dataset") -> None:
    """Raises ValueError for averages over runs, or for a variable that has the name of one that is added.

    The level that an average falls to is not the average of what runs show there.
    """
    if "reading" in ds.data_vars and "step" in ds.dims:
        raise ValueError("ds has a variable 'reading', which js.at_train_loss adds: rename it, ds.rename(reading=...)")
    for name in (f"step{SUFFIX}", "status"):
        if name in ds.variables and ds.variables[name].dtype.kind == "f":
            values = ds.variables[name].values
            if (values[np.isfinite(values)] % 1 != 0).any():
                raise ValueError(
                    f"ds must hold single runs, got averages: {name} is {values.ravel()[0]:g}; average after"
                )


def _waiting(ds: "xr.Dataset", one: "_Reading", runs: Sequence[Hashable]) -> np.ndarray:
    """(runs) bool, whether a run is not run yet."""
    status = ds.variables.get("status")
    if status is None or not set(status.dims) <= set(runs):
        return np.zeros(np.shape(one.reached), bool)
    return _spread(status, dict(zip(runs, one.reached.shape)), ()) < 0


def _spread(variable: "xr.Variable", runs: Mapping[Hashable, int], inner: Sequence[Hashable]) -> np.ndarray:
    """(runs, inner) a variable's values, the same for runs along whose dimension they do not differ."""
    wide = {**runs, **variable.sizes}
    return np.asarray(variable.set_dims(wide).transpose(*runs, *inner).values)


def levels_of(ds: "xr.Dataset", otherwise: Iterable[float]) -> list[float]:
    """The levels that a Dataset's runs captured, highest first; `otherwise` if they captured none."""
    return [float(level) for level in (np.atleast_1d(ds["level"].values) if f"step{SUFFIX}" in ds else otherwise)]


def with_captured(ds: "xr.Dataset", names: Iterable[str]) -> list[str]:
    """The names that a Dataset holds, with the variables captured at levels: a selection of variables must keep them.

    Examples:
      >>> import xarray as xr
      >>> with_captured(xr.Dataset({"train_loss": 1.0, "step_at_level": 1, "train_loss_at_level": 0.1}), ["train_loss"])
      ['train_loss', 'step_at_level', 'train_loss_at_level']
    """
    wanted = list(names)
    captured = [f"{name}{SUFFIX}" for name in dict.fromkeys(["step", "train_loss", *wanted])]
    return [name for name in (*wanted, *captured) if name in ds]


class _Reading(NamedTuple):
    """What is read at one level.

    Args:
      level: the level.
      values: {variable: xarray.Variable over the runs and its own dimensions}.
      coords: of the runs, where the level was captured.
      reached: (runs) bool, whether a run falls to the level.
      below: (runs) bool, whether it is there from the start.
      coarse: {variable: which runs cross between records too far apart}.
      leaps: {variable: which runs leap over the level in one step}.
      spacing: the largest distance in steps of records too far apart.
      kept: whether runs that leap over the level are read.
    """

    level: float
    values: dict[str, Any]
    coords: Any
    reached: np.ndarray
    below: np.ndarray
    coarse: dict[str, np.ndarray]
    leaps: dict[str, np.ndarray]
    spacing: int
    kept: bool

    @classmethod
    def of(cls, ds: "xr.Dataset", level: float, names: Sequence[str] | None, keep: bool) -> "_Reading":
        """From what was captured, else from records."""
        import xarray as xr

        records, coords = None, None
        if f"train_loss{SUFFIX}" in ds and level in np.atleast_1d(ds["level"].values).tolist():
            values, coords, reached, below, leaps = _captured(ds, level, names)
        else:
            need(ds, "train_loss")
            records = _Records.around(ds, level)
            values, reached, below, leaps = {}, records.reached, records.below, {}
        coarse: dict[str, np.ndarray] = {}
        largest = 0
        if "train_loss" in ds:
            step = xr.Variable("step", ds["step"].values.astype(float), ds["step"].attrs)
            variables = {"step": step, **{str(name): ds.variables[name] for name in ds.data_vars}}
            for name, variable in variables.items():
                wanted = names is None or name in ("step", *names)
                if "step" in variable.dims and name not in values and wanted:
                    records = records or _Records.around(ds, level)
                    values[name], apart, over, spacing = records.read(variable, name not in ("step", "train_loss"))
                    if name == "train_loss":  # the level itself, also between records
                        values[name] = _where(~np.isnan(values[name].values), level, values[name])
                    coarse[name], leaps[name], largest = apart, over, max(largest, spacing)
        coarse, leaps = ({name: runs for name, runs in of.items() if runs.any()} for of in (coarse, leaps))
        if not keep:
            for name in leaps.keys() & values.keys():
                values[name] = _where(_like(leaps[name], values[name]), np.nan, values[name])
        return cls(level, values, coords, reached, below, coarse, leaps, largest, keep)

    def some(self, of: dict[str, np.ndarray]) -> np.ndarray:
        """(runs) bool, whether a run is marked for some variable."""
        return np.logical_or.reduce([np.zeros(np.shape(self.reached), bool), *of.values()])

    def code(self) -> np.ndarray:
        """(runs) int8: why a run has no reading, see `at_train_loss`."""
        reasons = [~self.reached, self.below, self.some(self.coarse), self.some(self.leaps)]
        return np.select(reasons, [1, 2, 3, 4], 0).astype(np.int8)

    def note(self) -> str:
        """Why readings are NaN although the runs cross the level; "" if none is."""
        reasons, below, runs = [], int(self.below.sum()), self.reached.size
        if below:
            reasons.append(f"{below} of {runs} runs are at or below it from their first record on")
        if self.coarse:
            names = ", ".join([name for name in self.coarse if name != "step"] or ["train_loss"])
            reasons.append(
                f"in {self.some(self.coarse).sum()} of {runs} runs the records of {names} around the crossing lie up "
                f"to {self.spacing} steps apart; allowed are a factor of {FACTOR} in loss and {SHARE} of the range of "
                f"what is read: run with levels=({self.level:g},)"
            )
        if self.leaps and not self.kept:
            reasons.append(
                f"in {self.some(self.leaps).sum()} of {runs} runs one step leaps over it, by more than {LEAP} of the "
                f"largest {', '.join(self.leaps)}: take a smaller learning rate"
            )
        return f"NaN at training loss {self.level:g}: {'; '.join(reasons)}" if reasons else ""


def _weight(before: np.ndarray, here: np.ndarray, level: float) -> np.ndarray:
    """W of `at_train_loss`, in [0, 1]; a loss of 0 counts as the smallest positive number."""
    low, high = (np.log(np.maximum(loss, np.finfo(float).tiny)) for loss in (before, here))
    with np.errstate(invalid="ignore"):  # of runs that never get there
        return np.clip((low - np.log(level)) / np.where(low == high, 1.0, low - high), 0.0, 1.0)


def _between(before: Any, here: Any, weight: Any) -> Any:
    """The interpolated value; at either end it is the value there, also where the other one is NaN."""
    with np.errstate(invalid="ignore"):  # 0 * inf, of an end that does not count
        return np.where(weight == 1.0, here, np.where(weight == 0.0, before, (1 - weight) * before + weight * here))


def _captured(
    ds: "xr.Dataset", level: float, wanted: Sequence[str] | None
) -> tuple[dict[str, Any], Any, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """({variable: readings}, coords, runs that reach the level, that are there from the start, {variable: leaping})."""
    import xarray as xr

    names = [name for name in map(str, ds.data_vars) if name.endswith(SUFFIX)]
    if wanted is not None:
        names = [name for name in names if name.removesuffix(SUFFIX) in ("step", "train_loss", *wanted)]
    at = {"level": ds["level"].values.tolist().index(level)} if "level" in ds[names].dims else {}
    first = ds[f"step{SUFFIX}"].isel({**at, "crossing": 1}, drop=True).drop_vars("level", errors="ignore")
    reached, below = first.values >= 0, first.values == 0
    runs = dict(zip(first.dims, first.shape))

    def pair(name: str) -> "xr.Variable":
        return ds.variables[name].isel(at, missing_dims="ignore").transpose(*runs, "crossing", ...)

    loss = pair(f"train_loss{SUFFIX}").values.astype(float)
    weight = _weight(loss[..., 0], loss[..., 1], level)
    crosses = reached & ~below
    out, leaps = {}, {}
    for name in names:
        both = pair(name)
        inner = both.dims[len(runs) + 1 :]
        values = np.moveaxis(both.values, first.ndim, 0)
        base, over = name.removesuffix(SUFFIX), np.zeros_like(reached)
        if base not in ("step", "train_loss"):
            variable = ds.variables.get(base)
            trace = None
            if variable is not None and "step" in variable.dims:
                trace = _spread(variable, runs, (*inner, "step"))
            over = crosses & _leaps(values[0], values[1], trace, first.ndim)
        value = _between(values[0], values[1], _like(weight, values[0]))
        value = np.where(_like(crosses, value), value, np.nan)
        out[base] = xr.Variable((*runs, *inner), value, both.attrs)
        leaps[base] = over
    out["train_loss"] = _where(~np.isnan(out["train_loss"].values), level, out["train_loss"])
    return out, first.coords, reached, below, leaps


def _like(runs: np.ndarray, value: Any) -> np.ndarray:
    """(runs) numbers with as many further dimensions of length 1 as a variable has besides the runs."""
    return np.reshape(runs, (*np.shape(runs), *(1,) * (value.ndim - np.ndim(runs))))


def _where(condition: np.ndarray, number: float, variable: "xr.Variable") -> "xr.Variable":
    """A variable with a number in place of some of its values."""
    return variable.copy(data=np.where(condition, number, variable.values))


def _leaps(low: np.ndarray, high: np.ndarray, trace: np.ndarray | None, runs: int) -> np.ndarray:
    """(runs) bool, whether one step changes a variable by more than LEAP of its largest size in the run.

    Args:
      low: (runs, ...) its value before the step.
      high: (runs, ...) its value after the step.
      trace: (runs, ..., steps) its recorded values, NaN where none was recorded; None if none is.
      runs: number of the runs' dimensions.
    """
    largest = np.fmax(np.abs(low), np.abs(high)).astype(float)
    if trace is not None:
        largest = np.fmax(largest, np.max(np.abs(trace), -1, initial=0.0, where=np.isfinite(trace)))
    with np.errstate(invalid="ignore"):  # where nothing is known
        return (np.abs(high.astype(float) - low) > LEAP * largest).reshape(*low.shape[:runs], -1).any(-1)


class _Records(NamedTuple):
    """Where runs cross a level, as far as the recorded steps say.

    Args:
      dims: names of the runs' dimensions.
      steps: (R,) recorded steps.
      loss: (runs, R) training loss; infinite where it is not known.
      level: the level.
      first: (runs) index of the first record at or below the level; 0 where there is none.
      reached: (runs) bool, whether there is one.
      below: (runs) bool, whether it is the first record.
    """

    dims: tuple[Hashable, ...]
    steps: np.ndarray
    loss: np.ndarray
    level: float
    first: np.ndarray
    reached: np.ndarray
    below: np.ndarray

    @classmethod
    def around(cls, ds: "xr.Dataset", level: float) -> "_Records":
        """From a Dataset with train_loss."""
        trace = ds.variables["train_loss"].transpose(..., "step")
        loss = trace.values.astype(float)
        loss = np.where(np.isfinite(loss), loss, np.inf)
        first, reached = np.argmax(loss <= level, -1), np.any(loss <= level, -1)
        return cls(trace.dims[:-1], ds["step"].values, loss, level, first, reached, reached & (first == 0))

    def read(self, variable: "xr.Variable", bounded: bool = True) -> tuple[Any, np.ndarray, np.ndarray, int]:
        """(readings, runs that cross between records too far apart, that leap over the level, the largest spacing).

        `bounded`: whether the two values must be close, too; step and loss are what is interpolated along.
        """
        import xarray as xr

        dims, shape = self.dims, self.first.shape
        inner = tuple(dim for dim in variable.dims if dim not in (*dims, "step"))
        spread = _spread(variable, dict(zip(dims, shape)), (*inner, "step"))
        # A test quantity is known at some steps only: read it between the known ones around the crossing.
        finite = np.isfinite(spread)
        known = np.flatnonzero(finite.reshape(-1, spread.shape[-1]).any(axis=0))
        after = np.searchsorted(known, self.first.ravel()).reshape(shape)
        crosses = self.reached & ~self.below & (known.size > 0)
        inside = crosses & (after > 0) & (after < known.size)
        places = known if known.size else np.zeros(1, int)
        right = places[np.where(inside, after, 0)]
        left = places[np.where(inside, after - 1, 0)]

        def pick(values: np.ndarray, place: np.ndarray) -> np.ndarray:
            place = place.reshape(*shape, *(1,) * (values.ndim - len(shape)))
            return np.take_along_axis(values, place, -1)[..., 0]

        before, here = pick(self.loss, left), pick(self.loss, right)
        low, high = pick(spread, left), pick(spread, right)
        span = np.max(spread, -1, initial=-np.inf, where=finite) - np.min(spread, -1, initial=np.inf, where=finite)
        with np.errstate(invalid="ignore"):  # where nothing is known
            far = (np.abs(high - low) > SHARE * span).reshape(*shape, -1).any(-1)
        next_to, crossed = self.steps[right] - self.steps[left] == 1, inside & (here <= self.level)
        leaps = np.asarray(crossed & next_to & bounded & _leaps(low, high, spread, len(shape)))
        close = crossed & np.asarray(next_to | (~(bounded & far) & (before <= FACTOR * here)))
        weight = np.reshape(_weight(before, here, self.level), (*shape, *(1,) * len(inner)))
        value = np.where(close.reshape(weight.shape), _between(low, high, weight), np.nan)
        apart = np.asarray(crosses & ~close)
        ends = np.where(inside, self.steps[right] - self.steps[left], self.steps[-1] - self.steps[places[-1]])
        ends = np.where(after == 0, self.steps[self.first] - self.steps[0], ends)
        return (
            xr.Variable((*dims, *inner), value, variable.attrs),
            apart,
            leaps,
            int(ends[apart].max(initial=0)),
        )

"""What are new observables of old runs? They are computed from trajectories; nothing is trained."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.compilation import kept_on_disk, undisturbed
from jaxsign.store.labels import own_dims
from jaxsign.training.loop import Loop, Stops
from jaxsign.training.mode import Mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import Start
from jaxsign.training.task import Task
from jaxsign.trajectories.reader import Index, RunTrajectory, Trajectory, initially
from jaxsign.validation.values import known

if TYPE_CHECKING:
    import xarray as xr

PyTree = Any


@undisturbed()
@kept_on_disk()
def replay(
    trajectory: Trajectory | RunTrajectory, observables: Sequence[str | Callable] | None = None, record: Any = 10
) -> "xr.Dataset":
    """Observables of stored runs, computed from their trajectories: nothing is trained.

    Args:
      trajectory: from `js.open_trajectory`, all runs or one.
      observables: names, or functions `(params, data, test, hyper) -> array`; None: everything. "features" allow only
        names of observables of the training set.
      record: int k for steps 0, k, 2k, ..., or an increasing array of steps; of these, those that are kept.

    Returns:
      xarray.Dataset with the names and dimensions of a sweep; NaN from the step on at which a run diverged.

    Raises:
      ValueError: for an unknown observable, or steps none of which is kept.
      UnusableData: if the bytes are damaged.

    Examples:
      >>> import jax.numpy as jnp, jaxsign as js, tempfile
      >>> def largest_weight(params, data, test, hyper):
      ...     return jnp.max(jnp.abs(params.w_q))
      >>> sweep = js.Sweep(system=js.two_layer, problem=js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10),
      ...     hyper=js.Hyper(sigma_p=2.0), optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 2}, steps=20,
      ...     trajectory="signs")
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = js.run_sweep(sweep, out)
      ...     js.replay(js.open_trajectory(out), [largest_weight], record=4)["largest_weight"].dims
      ('optimizer', 'seed', 'step')
    """
    whole = trajectory if isinstance(trajectory, Trajectory) else trajectory.whole
    runs = list(trajectory) if isinstance(trajectory, Trajectory) else [trajectory]
    kept = set(runs[0].steps.tolist())
    steps = [t for t in Schedule.build(whole.sweep.schedule.steps, record, 1).record.tolist() if t in kept]
    if not steps:
        raise ValueError(f"record must name kept steps, out of {runs[0].steps.tolist()}, got {record!r}")
    rows = [_observed(run, observables, steps) for run in runs]
    return _labelled(whole, rows, steps, None if isinstance(trajectory, Trajectory) else trajectory.index)


def _observed(run: RunTrajectory, observables: Any, steps: Sequence[int]) -> dict[str, np.ndarray]:
    """{observable: (steps, ...)} of one run, NaN from the step on at which it diverged."""
    task, compact, _, hyper, *_ = run.source
    numbers = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.zeros(()).dtype), hyper)
    chosen = tuple(observables) if observables is not None else None
    good = [t for t in steps if run.first_bad_step < 0 or t < run.first_bad_step]
    if run.whole.kind == "features":
        observe, like = _observe_features(task, chosen), run.projection
    else:
        observe = _observe_params(task, compact, run.whole.sweep.trainable, chosen)
        like = initially(run.source.loop)(run.start)
    shapes = jax.eval_shape(observe, run.start, numbers, like)
    out = {name: np.full((len(steps), *x.shape), np.nan, x.dtype) for name, x in shapes.items()}
    for i, (_, trained) in enumerate(run.trained(good)):
        for name, value in observe(run.start, numbers, trained).items():
            out[name][i] = value
    return out


@functools.lru_cache(maxsize=32)
def _observe_params(
    task: Task, compact: bool, trainable: Any, chosen: tuple | None
) -> Callable[..., dict[str, jax.Array]]:
    """`(start, hyper, trained) -> observables`: a training loop without steps that observes once."""
    loop = Loop(Mode(task, compact), optax.identity, chosen, trainable=trainable)
    first, none = np.array([True, False]), np.zeros(2, np.int32)
    stops = Stops(none, none, first, first, ~first & False)

    def observe(start: Start, hyper: Any, trained: PyTree) -> dict[str, jax.Array]:
        key = jax.random.key(0)  # nothing is drawn
        state = loop.init(key, start, hyper, {})._replace(trained=trained)
        rows = loop.advance(key, start, hyper, {}, state, stops)[1]
        return {name: value[0] for name, value in rows.items()}

    return jax.jit(observe)


@functools.lru_cache(maxsize=32)
def _observe_features(task: Task, chosen: tuple | None) -> Callable[..., dict[str, jax.Array]]:
    """`(start, hyper, features) -> observables` of the features that the training set sees."""
    if any(map(callable, chosen or ())):
        raise ValueError("observables must be names where trajectory='features' is kept: the parameters are not known")

    def observe(start: Start, hyper: Any, features: PyTree) -> dict[str, jax.Array]:
        values = task.observe(features, start.data, None, hyper)
        names = [known("observable of the training set", name, values) for name in chosen or values]
        return {name: values[name] for name in names}

    return jax.jit(observe)


def _labelled(
    whole: Trajectory, rows: list[dict[str, np.ndarray]], steps: Sequence[int], index: Index | None
) -> "xr.Dataset":
    """Rows of runs as a Dataset: of all runs in C order, or of the one at `index`."""
    import xarray as xr

    task = whole[index or 0].source.task
    one = whole.dataset.isel(dict(zip(whole.dims, index))) if index is not None else whole.dataset
    runs, shape = ((), ()) if index is not None else (whole.dims, whole.shape)
    data = {}
    for name in rows[0]:
        longest = tuple(max(sizes) for sizes in zip(*(row[name].shape for row in rows)))
        # A static axis may change an observable's length.
        padded = [
            np.pad(row[name], [(0, most - n) for most, n in zip(longest, row[name].shape)], constant_values=np.nan)
            for row in rows
        ]
        dims = (*runs, "step", *own_dims(name, len(longest) - 1, task.dims))
        data[name] = (dims, np.stack(padded).reshape(*shape, *longest), dict(task.attrs.get(name, {})))
    coords = {name: c for name, c in one.coords.items() if set(c.dims) <= set(runs)}
    ds = xr.Dataset(data, coords).assign_coords(step=list(steps))
    counters = {d: np.arange(n) for d, n in ds.sizes.items() if d not in ds.coords}
    return ds.assign_coords(counters).assign_attrs(manifest=whole.dataset.attrs["manifest"])

"""One run: sample, initialise, scan over steps and record, for any Task and any Optax transform."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.optim import as_grid, describe_point, reads_gradients_coordinatewise
from jaxsign.rng import seed_key, stream
from jaxsign.schedule import Schedule
from jaxsign.task import Task
from jaxsign.validation import known, name_tuple

Array = jax.Array
PyTree = Any
STATUS = {-1: "not run", 0: "finished", 1: "diverged"}


def field_of(path: tuple[Any, ...]) -> str:
    """The name of the top-level field that a tree path starts with; "params" for a bare array."""
    if not path:
        return "params"
    entry = path[0]
    return str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", entry))))


def trained_fields(task: Task, params: PyTree, trainable: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the parameters that are trained.

    Raises:
      ValueError: for an unknown or empty `trainable`.
    """
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [name for name in dict.fromkeys(field_of(path) for path, _ in paths) if name not in task.frozen]
    if trainable is None:
        return tuple(names)
    if not trainable:
        raise ValueError(f"trainable must be a non-empty tuple of names out of {names}, got {trainable!r}")
    return tuple(known("trainable parameter", name, names) for name in trainable)


def _split(params: PyTree, names: Sequence[str]) -> tuple[PyTree, PyTree]:
    """(trained, fixed): the same tree twice, with None where the other one holds the leaf."""
    pick = jax.tree_util.tree_map_with_path
    trained = pick(lambda path, leaf: leaf if field_of(path) in names else None, params)
    fixed = pick(lambda path, leaf: None if field_of(path) in names else leaf, params)
    return trained, fixed


def _merge(trained: PyTree, fixed: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: b if a is None else a, trained, fixed, is_leaf=lambda leaf: leaf is None)


class Start(NamedTuple):
    """Where a run starts: its data, test set (or None), initial parameters and constants."""

    data: PyTree
    test: PyTree
    params: PyTree
    constants: dict[str, Array]


def begin(task: Task, key: Array, hyper: Any, shared: Any = None) -> Start:
    """Samples the data and the test set of one run and initialises its parameters.

    A program of its own, since it depends on no optimizer and random draws are the slow part of every compilation.

    Args:
      task: the system.
      key: run key, shape ().
      hyper: the system's numbers, may be traced.
      shared: arrays common to all runs.

    Returns:
      Start.
    """
    data = task.sample(stream(key, "data"), hyper, shared)
    test = task.sample_test(stream(key, "test"), hyper, shared) if task.sample_test else None
    params = task.init(stream(key, "init"), data, hyper)
    return Start(data, test, params, task.describe(data, test, hyper) if task.describe else {})


def abstract_start(task: Task, hyper: Any, shared: Any = None) -> Start:
    """Shapes and dtypes of `begin`, nothing computed."""
    return jax.eval_shape(lambda key, h: begin(task, key, h, shared), seed_key(0), hyper)


def observers(task: Task, start: Start, hyper: Any, chosen: Sequence[str | Callable] | None, scalars: bool = False):
    """What is observed of a task: ({name: abstract array}, names that need the test set, user functions by name).

    Args:
      task: a Task.
      start: one run's start, concrete or abstract.
      hyper: one run's numbers.
      chosen: names and functions `(params, data, test, hyper) -> array`, or None for the default.
      scalars: the default is the scalars only (a sweep's) instead of everything (a single run's).

    Raises:
      ValueError: for an unknown name, with the nearest valid one.
    """

    def everything(start: Start, hyper: Any) -> tuple[dict, dict, dict]:
        data, test, params, _ = start
        users = {c.__name__: c(params, data, test, hyper) for c in chosen or () if callable(c)}
        return task.observe(params, data, test, hyper), task.observe(params, data, None, hyper), users

    with_test, without, users = jax.eval_shape(everything, start, hyper)
    if chosen is None:
        names = [name for name, value in with_test.items() if not scalars or value.ndim == 0]
    else:
        if not chosen:
            raise ValueError(f"observables must name at least one of {list(with_test)}, got {chosen!r}")
        names = [known("observable", c, with_test) if not callable(c) else c.__name__ for c in chosen]
    functions = {c.__name__: c for c in chosen or () if callable(c)}
    if len(functions) != sum(map(callable, chosen or ())):
        raise ValueError("observables must be functions of different names; two have the same (lambdas do)")
    for name in functions:
        if name in with_test or name in ("step", "status", "first_bad_step", "seed", "optimizer"):
            raise ValueError(f"observables has a function named {name!r}, which is taken: rename it")
    shapes = {name: users.get(name, with_test.get(name)) for name in dict.fromkeys(names)}
    need_test = [name for name in shapes if name not in without and name not in functions]
    return shapes, need_test, functions


def make_train(
    task: Task,
    factory: Callable[..., optax.GradientTransformation],
    schedule: Schedule,
    *,
    observables: Sequence[str | Callable] | None = None,
    scalars: bool = False,
    trainable: Sequence[str] | None = None,
    compact: bool = False,
    summary: Callable[[dict[str, Array]], dict[str, Array]] | None = None,
    keep_trace: bool = True,
    keep_params: bool = True,
) -> Callable[..., dict[str, Any]]:
    """Builds the pure function of one run; static things go in here, swept things into its arguments.

        batch_t -> gradient of the loss -> optimizer update (times the task's scale) -> observe at recorded steps

    The returned function is meant to be jitted and vmapped over all its arguments. It holds no callback; the
    steps between two records are one `fori_loop`, so recorded steps are data and one compile serves every spacing.

    Args:
      task: the system.
      factory: `(**keywords) -> optax.GradientTransformation`, called inside the mapped function.
      schedule: steps, recorded steps, test steps.
      observables: names and functions `(params, data, test, hyper) -> array`; None: the default.
      scalars: whether the default is the scalar observables only.
      trainable: names of trained parameters; None: all that the task does not freeze.
      compact: train the task's compact parametrisation; exact only where the optimizer is coordinate-wise and reads
        gradients only.
      summary: pure function of the trace ({name: (R, ...)} and "step") to {name: scalar}.
      keep_trace: whether the trace itself is returned.
      keep_params: whether the final parameters are returned.

    Returns:
      `train(key, start, hyper, keywords) -> {"trace", "summary", "params", "status", "first_bad_step", "watch"}` with
      start from `begin`. From first_bad_step on the trace is NaN.

    Raises:
      ValueError: for an unknown observable or parameter name (when traced).
    """
    record, test_mask = schedule.record.astype(np.int32), schedule.test
    starts = np.concatenate([[0], record]).astype(np.int32)
    ends = np.concatenate([record, [schedule.steps]]).astype(np.int32)
    flags = np.concatenate([test_mask, [False]])
    if record[-1] == schedule.steps:  # no steps are left after the last record
        starts, ends, flags = starts[:-1], ends[:-1], flags[:-1]

    def train(key: Array, start: Start, hyper: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
        shapes, need_test, functions = observers(task, start, hyper, observables, scalars)
        data, test, params, _ = start
        if compact and task.compact is not None:
            params = task.compact(params, data)
        trained, fixed = _split(params, trained_fields(task, params, trainable))
        train_key = stream(key, "train")
        scale = _split(task.scale(data, hyper), trained_fields(task, params, trainable))[0] if task.scale else None
        with jax.numpy_dtype_promotion("standard"):  # some of Optax's own transforms promote
            transform = optax.with_extra_args_support(factory(**keywords))
            state = transform.init(trained)

        def batch_at(t: Array) -> PyTree:
            return task.batch(jax.random.fold_in(train_key, t), data, hyper) if task.batch else data

        def loss_of(trained: PyTree, t: Array) -> Array:
            return task.loss(_merge(trained, fixed), batch_at(t), hyper)

        def step(t: Array, carry: tuple) -> tuple:
            trained, state, bad, rang = carry
            loss, gradient = jax.value_and_grad(loss_of)(trained, t)
            bad = jnp.where((bad < 0) & ~jnp.isfinite(loss), t, bad)
            full = _merge(trained, fixed)
            rang = {
                name: jnp.where((rang[name] < 0) & alarm(full, batch_at(t), hyper), t, rang[name])
                for name, alarm in task.watch.items()
            }
            with jax.numpy_dtype_promotion("standard"):
                updates, state = transform.update(
                    gradient, state, trained, value=loss, grad=gradient, value_fn=lambda p: loss_of(p, t)
                )
                if scale is not None:
                    updates = jax.tree.map(jnp.multiply, updates, scale)
                trained = optax.apply_updates(trained, updates)
            return trained, state, bad, rang

        def look(trained: PyTree, test_now: Array) -> dict[str, Array]:
            full = _merge(trained, fixed)
            plain = task.observe(full, data, None, hyper)
            found = {name: plain[name] for name in shapes if name in plain and name not in functions}
            found |= {name: f(full, data, test, hyper) for name, f in functions.items()}
            if need_test:

                def fresh() -> dict[str, Array]:
                    seen = task.observe(full, data, test, hyper)
                    return {name: _floating(seen[name]) for name in need_test}

                def nothing() -> dict[str, Array]:
                    return {name: jnp.full(shapes[name].shape, jnp.nan) for name in need_test}

                found |= jax.lax.cond(test_now, fresh, nothing)
            return {name: _floating(found[name]) for name in shapes}

        def segment(carry: tuple, xs: tuple) -> tuple[tuple, dict[str, Array]]:
            start, end, test_now = xs
            trained, state, bad, rang = jax.lax.fori_loop(start, end, step, carry)
            bad = jnp.where((bad < 0) & ~_finite(trained), end, bad)
            return (trained, state, bad, rang), look(trained, test_now)

        never = jnp.full((), -1, jnp.int32)
        carry = (trained, state, never, dict.fromkeys(task.watch, never))
        (trained, state, bad, rang), trace = jax.lax.scan(segment, carry, (starts, ends, flags))
        last = jnp.asarray(schedule.steps, jnp.int32)
        bad = jnp.where((bad < 0) & ~jnp.isfinite(loss_of(trained, last)), last, bad)
        gone = (bad >= 0) & (jnp.asarray(record) >= bad)
        trace = {name: _blank(value[: record.size], gone) for name, value in trace.items()}
        full = _merge(trained, fixed)
        if compact and task.expand is not None:
            full = task.expand(full)
        return {
            "trace": trace if keep_trace else {},
            "summary": summary({**trace, "step": jnp.asarray(record)}) if summary else {},
            "params": full if keep_params else None,
            "status": jnp.where(bad >= 0, 1, 0).astype(jnp.int8),
            "first_bad_step": bad,
            "watch": rang,
        }

    return train


def _floating(x: Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.zeros(()).dtype)


def _finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _blank(values: Array, gone: Array) -> Array:
    return jnp.where(gone.reshape((-1,) + (1,) * (values.ndim - 1)), jnp.nan, values)


def use_compact(
    task: Task,
    factory: Callable[..., optax.GradientTransformation],
    points: Sequence[Mapping[str, Any]],
    start: Start,
    trainable: Sequence[str] | None = None,
) -> bool:
    """Whether the task's compact parametrisation is exact for every point of an optimizer, by a numeric probe.

    Args:
      task: a Task.
      factory: the optimizer.
      points: keywords of each point.
      start: one run's start, concrete or abstract.
      trainable: names of trained parameters, or None.

    Returns:
      True if the task has a compact form and the probe finds the transform coordinate-wise and parameter-free.

    Raises:
      ValueError: if it is not, and the task has nothing but its compact form.
    """
    if task.compact is None:
        return False

    def trained(params: PyTree) -> PyTree:
        return _split(params, trained_fields(task, params, trainable))[0]

    compact = task.compact
    full, small = trained(start.params), jax.eval_shape(lambda s: trained(compact(s.params, s.data)), start)
    exact = reads_gradients_coordinatewise(factory, points, full) and _fits(factory, points[0], small)
    if task.compact_only and not exact:
        raise ValueError(
            f"{task.name} needs an optimizer that moves each coordinate by its own gradients only (no weight decay, "
            f"norm over a tensor or noise; found by running it), got {describe_point(factory, points)}; "
            'use engine="dense"'
        )
    return exact


def _fits(factory: Callable[..., optax.GradientTransformation], point: Mapping[str, Any], params: PyTree) -> bool:
    """Whether a transform takes the compact tree: a mask written for the full tree, say, does not."""
    try:
        jax.eval_shape(lambda p: factory(**point).init(p), params)
    except (TypeError, ValueError):
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Run:
    """The result of one run.

    Args:
      trace: {observable: (R, ...)} at the recorded steps.
      steps: (R,) recorded steps.
      params: final parameters, in full.
      status: 0 finished, 1 diverged.
      first_bad_step: first step with a non-finite loss or (at a record) parameter; -1 if none.
      watch: {alarm: first step at which it rang, -1 if never}.
      constants: constants of the run, such as its noise norms.
      summary: what `summary=` returned.
      dims, attrs: names of the observables' dimensions, and their units.
      seed: the seed whose key was used.
    """

    trace: dict[str, Array]
    steps: np.ndarray
    params: PyTree
    status: int
    first_bad_step: int
    watch: dict[str, int]
    constants: dict[str, Array]
    summary: dict[str, Array]
    dims: Mapping[str, tuple[str, ...]]
    attrs: Mapping[str, Mapping[str, str]]
    seed: int

    def to_xarray(self) -> Any:
        """The run as an xarray.Dataset with the names and dimensions of a sweep of one run."""
        from jaxsign.labelled import run_dataset

        return run_dataset(self)


@functools.lru_cache(maxsize=64)
def _begin(task: Task) -> Callable[..., Start]:
    return jax.jit(functools.partial(begin, task))


@functools.lru_cache(maxsize=64)
def _compiled(task: Task, factory: Any, settings: tuple, compact: bool) -> Callable[..., dict[str, Any]]:
    steps, record, test, observables, trainable, summary, keep_trace = settings
    schedule = Schedule(steps, np.asarray(record), np.asarray(test))
    train = make_train(
        task, factory, schedule, observables=observables, trainable=trainable, compact=compact, summary=summary,
        keep_trace=keep_trace,
    )  # fmt: skip
    return jax.jit(train)


def train(
    key: Array,
    task: Task,
    hyper: Any,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    record: Any = 10,
    test_every: Any = 50,
    observables: Sequence[str | Callable] | None = None,
    trainable: Sequence[str] | None = None,
    summary: Callable[[dict[str, Array]], dict[str, Array]] | None = None,
    keep_trace: bool = True,
    shared: Any = None,
) -> Run:
    """Trains one run of any Task with any Optax transform.

    `train(jax.random.key(3), ...)` is seed 3 of the same sweep.

    Args:
      key: run key, shape (); the seed alone is a run's identity.
      task: a Task.
      hyper: the system's numbers.
      optimizer: an `optax.GradientTransformation`.
      steps: optimizer steps, int >= 1; params are those after `steps`.
      record: int k for steps 0, k, 2k, ..., or an increasing array of steps.
      test_every: int or an array of recorded steps; test quantities are NaN between.
      observables: names, or functions `(params, data, test, hyper) -> array`; default everything.
      trainable: names of the parameters to train, the rest is frozen; default all.
      summary: pure function of the trace to {name: scalar}, applied on the device.
      keep_trace: False keeps the summary only.
      shared: arrays common to all runs, if the task wants them.

    Returns:
      A Run: trace, params, status, first_bad_step, to_xarray().

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> import jax, jaxsign as js
      >>> task = js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10))
      >>> run = js.train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=20)
      >>> run.trace["train_loss"].shape
      (3,)
    """
    if not isinstance(task, Task):
        raise ValueError(f"task must be a js.Task, got {type(task).__name__}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r}")
    schedule = Schedule.build(steps, record, test_every)
    if task.validate is not None:
        task.validate(hyper)
    if not keep_trace and summary is None:
        raise ValueError("keep_trace=False needs summary=, got summary=None: nothing would be kept")
    if jnp.shape(key) != () or not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be ONE typed key, jax.random.key(seed), got {key!r}")
    hyper = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.zeros(()).dtype), hyper)
    factory = as_grid(optimizer).factory
    chosen, names = name_tuple("observables", observables), name_tuple("trainable", trainable)
    record_key, test_key = tuple(schedule.record.tolist()), tuple(schedule.test.tolist())
    settings = (schedule.steps, record_key, test_key, chosen, names, summary, keep_trace)
    start = _begin(task)(key, hyper, shared)
    compact = use_compact(task, factory, [{}], start, names)
    out = _compiled(task, factory, settings, compact)(key, start, hyper, {})
    high, low = (int(word) for word in np.asarray(jax.random.key_data(key)).ravel()[-2:])
    return Run(
        trace=out["trace"],
        steps=schedule.record,
        params=out["params"],
        status=int(out["status"]),
        first_bad_step=int(out["first_bad_step"]),
        watch={name: int(step) for name, step in out["watch"].items()},
        constants=start.constants,
        summary=out["summary"],
        dims=task.dims,
        attrs=task.attrs,
        seed=(high << 32) + low,
    )

"""js.train: one run of any Task with any Optax transform, and its result."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.compilation import compiler_options, content, kept_on_disk, undisturbed
from jaxsign.optimizers.factories import Static, hashable
from jaxsign.optimizers.grid import Grid, as_grid, shown
from jaxsign.store.labels import BASE_NAMES, check_results, check_task
from jaxsign.store.levels import check_levels
from jaxsign.store.levels import coordinates as level_coords
from jaxsign.training.checks import check_returns
from jaxsign.training.loop import Loop, whole_run
from jaxsign.training.mode import Mode, choose_mode
from jaxsign.training.outputs import outputs
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import Start, begin
from jaxsign.training.task import Task
from jaxsign.validation.messages import table
from jaxsign.validation.values import exact, floats_of, name_tuple, numbers_of, plain_record, representable

if TYPE_CHECKING:
    import xarray as xr

Array = jax.Array
PyTree = Any
STATUS = {-1: "not run", 0: "finished", 1: "diverged"}


def make_train(
    loop: Loop,
    schedule: Schedule,
    *,
    summary: Callable[[dict[str, Any]], dict[str, Array]] | None = None,
    keep_trace: bool = True,
) -> Callable[..., dict[str, Any]]:
    """Builds the pure function of one run; static things go in here, swept things into its arguments.

    The returned function is meant to be jitted and vmapped over all its arguments.

    Args:
      loop: the task, the optimizer's factory and the observables.
      schedule: steps, recorded steps, test steps.
      summary: pure function of the trace ({name: (R, ...)}, the run's constants and the recorded steps as "step",
        known when it is traced) to {name: scalar}.
      keep_trace: whether the trace itself is returned.

    Returns:
      `train(key, start, hyper, keywords) -> {"trace", "summary", "params", "status", "first_bad_step", "watch",
      "captured"}` with start from `begin`. From first_bad_step on the trace is NaN.

    Raises:
      ValueError: for an unknown observable or parameter name (when traced).
    """
    task = loop.mode.task
    stops = whole_run(schedule.steps, schedule.record, schedule.test)
    recorded = jnp.asarray(schedule.record, jnp.int32)  # concrete also when traced: summaries may look steps up

    def train(key: Array, start: Start, hyper: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
        state, rows, captured, _ = loop.advance(
            key, start, hyper, keywords, loop.init(key, start, hyper, keywords), stops
        )
        trace = {name: value[: recorded.size] for name, value in rows.items()}
        last = outputs("summary", summary({**start.constants, **trace, "step": recorded})) if summary else {}
        rest = {"summary": last, "constant": start.constants, "alarm": dict.fromkeys(task.watch, state.bad)}
        taken = [*BASE_NAMES, *(("dimension of captured levels", name) for name in level_coords(loop.levels))]
        check_results({"observable": {name: value[0] for name, value in trace.items()}, **rest}, task.dims, taken)
        return {
            "trace": trace if keep_trace else {},
            "summary": last,
            "params": loop.params(start, state.trained),
            "status": jnp.where(state.bad >= 0, 1, 0).astype(jnp.int8),
            "first_bad_step": state.bad,
            "watch": state.rang,
            "captured": captured,
        }

    return train


@dataclasses.dataclass(frozen=True)
class Run:
    """The result of one run.

    Args:
      trace: {observable: (R, ...)} at the recorded steps.
      steps: (R,) recorded steps.
      params: final parameters as the engine holds them: of "dense" and "support" in full, of engines in feature space
        the features, so that `task.loss` of another engine does not take them.
      status: 0 finished, 1 diverged.
      first_bad_step: first step with a non-finite loss or (at a record) parameter; -1 if none.
      watch: {monitor: first step at which it was triggered, -1 if never}.
      levels: training losses whose crossings were captured, highest first.
      captured: {NAME_at_level: (level, 2, ...)}, an observable at the step before the training loss first fell to each
        level and at that step; `step_at_level` are these steps, -1 where there is none.
      constants: constants of the run, such as its noise norms.
      summary: the result of `summary=`.
      dims: {observable: names of its dimensions}.
      attrs: {observable: its units and long name}.
      seed: the seed whose key was used.
      problem: the task's problem, which fixed the shapes; None where the task has none.
      hyper: the system's numbers.
    """

    trace: dict[str, Array]
    steps: np.ndarray
    params: PyTree
    status: int
    first_bad_step: int
    watch: dict[str, int]
    levels: tuple[float, ...]
    captured: dict[str, Array]
    constants: dict[str, Array]
    summary: dict[str, Array]
    dims: Mapping[str, tuple[str, ...]]
    attrs: Mapping[str, Mapping[str, str]]
    seed: int
    problem: Any
    hyper: Any

    def __repr__(self) -> str:
        state = STATUS[self.status] + (f" at step {self.first_bad_step}" if self.status == 1 else "")
        last = np.asarray(self.trace.get("train_loss", ()))[-1:]
        loss = f", train_loss={last.item():.6g}" if last.size == 1 else ""
        recorded = f"{self.steps.size} recorded steps up to {self.steps[-1]}"
        return f"Run(seed={self.seed}, {recorded}, {state}{loss},\n    observables: {', '.join(self.trace) or 'none'})"

    def _repr_html_(self) -> str:
        last = {name: np.asarray(value)[-1] for name, value in self.trace.items()}
        ends = [(f"{name} at step {self.steps[-1]}", f"{value:.6g}") for name, value in last.items() if value.ndim == 0]
        bad = f" at step {self.first_bad_step}" if self.status == 1 else ""
        return table([("seed", self.seed), ("status", STATUS[self.status] + bad), ("problem", self.problem), *ends])

    def to_xarray(self, family: str = "optimizer", **keywords: float) -> "xr.Dataset":
        """The run as an xarray.Dataset, with the names and dimensions of a sweep of one run.

        Args:
          family: name of its optimizer, by which claims find it.
          **keywords: the optimizer's numbers, which become coordinates, such as learning_rate=1e-4.

        Returns:
          xarray.Dataset with dims (optimizer, seed, step, then each observable's dimensions).

        Examples:
          >>> import jax, jaxsign as js
          >>> task = js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10))
          >>> run = train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=20)
          >>> run.to_xarray("sign_gd", learning_rate=1e-3)["train_loss"].dims
          ('optimizer', 'seed', 'step')
        """
        from jaxsign.store.labels import run_dataset

        return run_dataset(self, family, keywords)


@functools.lru_cache(maxsize=64)
def _begin(task: Task) -> Callable[..., Start]:
    return jax.jit(functools.partial(begin, task))


@functools.lru_cache(maxsize=64)
def _compiled(mode: Mode, factory: Any, static: Static, settings: tuple) -> Callable[..., dict[str, Any]]:
    """The jitted run. Kept where it reaches no user's code, which may read what has changed since."""
    steps, record, test, observables, trainable, levels, summary, keep_trace = settings
    schedule = Schedule(steps, np.asarray(record), np.asarray(test))
    loop = Loop(mode, factory, observables, trainable=trainable, levels=levels)
    train = make_train(loop, schedule, summary=summary, keep_trace=keep_trace)

    def run(key: Array, start: Start, hyper: Any, floats: Mapping[str, Array]) -> dict[str, Any]:
        return train(key, start, hyper, {**static.keywords, **floats})

    return jax.jit(run, compiler_options=compiler_options(jax.default_backend()))


@undisturbed()
@kept_on_disk()
def train(
    key: Array,
    task: Task,
    hyper: Any,
    optimizer: optax.GradientTransformation | Grid,
    *,
    steps: int,
    record: Any = None,
    test_every: Any = None,
    levels: Sequence[float] = (),
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
      optimizer: an `optax.GradientTransformation`, or a `js.grid` of one point, whose factory gets the run's key if it
        takes one.
      steps: optimizer steps, int >= 1; params are those after `steps`.
      record: int k for steps 0, k, 2k, ..., or an increasing array of steps; default `js.log_steps(steps)`
        and powers of ten.
      test_every: int or an array of recorded steps; test quantities are NaN between; default the first recorded steps
        at or after the default ones.
      levels: training losses in nat, > 0. All observables, test quantities included, are captured at the first step
        whose training loss is at or below each level and at the step before it, for `js.at_train_loss`.
      observables: names, or functions `(params, data, test, hyper) -> array`; default everything.
      trainable: names of the parameters to train, the rest is frozen; default all.
      summary: pure function of the trace to {name: scalar}, applied on the device.
      keep_trace: False keeps the summary only.
      shared: arrays common to all runs, for tasks that need them.

    Returns:
      A Run: trace, params, status, first_bad_step, to_xarray().

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> import jax, jaxsign as js
      >>> task = js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10))
      >>> run = js.train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=20)
      >>> run.trace["train_loss"].shape == run.steps.shape
      True
    """
    if not isinstance(task, Task):
        raise ValueError(f"task must be a js.Task, got {type(task).__name__}")
    if not isinstance(optimizer, (optax.GradientTransformation, optax.MultiSteps, Grid)):
        raise ValueError(
            f"optimizer must be an optax.GradientTransformation, got {optimizer!r}, or a js.grid of one point"
        )
    grid = as_grid(optimizer)
    if len(grid.points) != 1:
        raise ValueError(f"optimizer must be a js.grid of one point, got {shown(grid)} with {len(grid.points)} points")
    schedule = Schedule.build(steps, record, test_every)
    check_task(task)
    hyper = plain_record(hyper)
    if task.validate is not None:
        task.validate(hyper)
    for field, value in numbers_of(hyper) if isinstance(hyper, Mapping) or dataclasses.is_dataclass(hyper) else ():
        exact(field, value, jnp.zeros(()).dtype)
    for field, value in (*floats_of("hyper", hyper), *floats_of("problem", task.problem)):
        representable(field, value, jnp.zeros(()).dtype)
    if not keep_trace and summary is None:
        raise ValueError("keep_trace=False needs summary=, got summary=None: nothing would be kept")
    if jnp.shape(key) != () or not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be ONE typed key, jax.random.key(seed), got {' '.join(repr(key).split())}")
    if (impl := str(jax.random.key_impl(key))) != "threefry2x32":  # the same seed would name other numbers
        raise ValueError(
            f"key must be one of the generator 'threefry2x32', jax.random.key(seed, impl=...), got {impl!r}"
        )
    given_hyper, hyper = hyper, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.zeros(()).dtype), hyper)
    floats = {name: jnp.asarray(grid.points[0][name], jnp.zeros(()).dtype) for name in grid.floats}
    crossed = check_levels(levels)
    chosen, names = name_tuple("observables", observables), name_tuple("trainable", trainable)
    record_key, test_key = tuple(schedule.record.tolist()), tuple(schedule.test.tolist())
    settings = (schedule.steps, record_key, test_key, chosen, names, crossed, summary, keep_trace)
    functions = any(map(callable, chosen or ()))
    check_returns(task, hyper, shared, names)
    choice = choose_mode(task, grid.factory, grid.points, hyper, shared, names, functions)
    task = choice.task
    static = Static(grid.points[0], grid.floats)
    compiled: Callable[..., Callable[..., dict[str, Any]]] = _compiled
    starts: Callable[..., Callable[..., Start]] = _begin
    if content(choice.mode, grid.factory, static.keywords, settings) is None:
        compiled, starts = _compiled.__wrapped__, _begin.__wrapped__
    # One degree if the task needs it, otherwise none.
    start = starts(task)(key, hyper, shared, *(jnp.asarray(d.p, jnp.zeros(()).dtype) for d in choice.degrees))
    out = compiled(choice.mode, hashable(grid.factory), static, settings)(key, start, hyper, floats)
    # The seed is the key's two words.
    high, low = (int(word) for word in np.asarray(jax.random.key_data(key)).ravel()[-2:])
    return Run(
        trace=out["trace"],
        steps=schedule.record,
        params=out["params"],
        status=int(out["status"]),
        first_bad_step=int(out["first_bad_step"]),
        watch={name: int(step) for name, step in out["watch"].items()},
        levels=crossed,
        captured=out["captured"],
        constants=start.constants,
        summary=out["summary"],
        dims=task.dims,
        attrs=task.attrs,
        seed=(high << 32) + low,
        problem=task.problem,
        hyper=given_hyper,
    )

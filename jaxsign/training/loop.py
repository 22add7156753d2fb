"""The training loop of one run: from its start through every step to the observables at the stops."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.optimizers.adapters import asked, evaluated
from jaxsign.optimizers.factories import build
from jaxsign.store.levels import SUFFIX
from jaxsign.training.levels import Crossings, packed_scalars, unpacked_scalars
from jaxsign.training.mode import Mode
from jaxsign.training.outputs import output, outputs
from jaxsign.training.rng import stream
from jaxsign.training.start import Start, changing_fields, merge_params, replaced, split_params, trained_fields
from jaxsign.training.task import Task, packaged
from jaxsign.validation.names import result_name
from jaxsign.validation.values import known

Array = jax.Array
PyTree = Any
#: Bytes of a run's test set from which on the runs of a lane are tested one by one (CPU): less stays in the cache.
ONE_BY_ONE = 2**15


class Observed(NamedTuple):
    """The observables of a run.

    Args:
      shapes: {name: abstract array}, in the order in which they are recorded.
      need_test: names that need the test set.
      functions: {name: function of the user's, `(params, data, test, hyper) -> array`}.
    """

    shapes: dict[str, Any]
    need_test: list[str]
    functions: dict[str, Callable]


def observers(
    task: Task, start: Start, hyper: Any, chosen: Sequence[str | Callable] | None, scalars: bool = False
) -> Observed:
    """The observables of a task that are recorded, with their shapes.

    Args:
      task: a Task.
      start: one run's start, concrete or abstract.
      hyper: one run's numbers.
      chosen: names and functions `(params, data, test, hyper) -> array`, or None for the default.
      scalars: the default is the scalars only (a sweep's) instead of everything (a single run's).

    Raises:
      ValueError: for an unknown name, with the nearest valid one.
    """
    named, observe = functions_by_name(chosen), traced_once(task.observe)

    def everything(start: Start, hyper: Any) -> tuple[dict, dict, dict]:
        data, test, params, _ = start
        users = {name: output("observable", name, c(params, data, test, hyper)) for name, c in named.items()}
        of_step = outputs("observable", task.observe_step(params, params, data, hyper)) if task.observe_step else {}
        with_test = outputs("observable", observe(params, data, test, hyper))
        try:
            without = outputs("observable", observe(params, data, None, hyper))
        except Exception as error:
            error.add_note("observe is called with test=None between the test steps: leave out there what needs it")
            raise
        if both := set(of_step) & set(with_test):
            raise ValueError(f"observable {min(both)!r} is returned by both observe and observe_step: rename one")
        return with_test | of_step, without | of_step, users

    with_test, without, users = jax.eval_shape(everything, start, hyper)
    for name, value in with_test.items():
        if name in without and without[name].shape != value.shape:
            raise ValueError(
                f"observable {name!r} must have one shape, got {without[name].shape} where test is None and "
                f"{value.shape} otherwise"
            )
        if len(task.dims.get(name, value.shape)) != value.ndim:
            raise ValueError(
                f"observable {name!r} has {value.ndim} dimensions, {value.shape}, and dims names "
                f"{list(task.dims[name])}: the steps are not among them"
            )
    if chosen is None:
        names = [name for name, value in with_test.items() if not scalars or value.ndim == 0]
    else:
        if not chosen:
            raise ValueError(f"observables must name at least one of {list(with_test)}, got {chosen!r}")
        names = [known("observable", c, with_test) if not callable(c) else c.__name__ for c in chosen]
    for name in named:
        if name in with_test:
            raise ValueError(f"observables has a function named {name!r}, which is taken: rename it")
    shapes = {name: users.get(name, with_test.get(name)) for name in dict.fromkeys(names)}
    need_test = [name for name in shapes if name not in without and name not in named]
    return Observed(shapes, need_test, named)


def traced_once(function: Callable) -> Callable:
    """A function of this package's own systems, as one that JAX traces once for each kind of arguments.

    A program evaluates observables at records, captures and for their shapes, and tracing them takes longer than
    running a short sweep. A user's function is returned as it is: what it reads may have changed since.
    """
    return _jitted(function) if packaged(function) else function


@functools.lru_cache(maxsize=256)
def _jitted(function: Callable) -> Callable:
    return jax.jit(function)


def functions_by_name(chosen: Sequence[str | Callable] | None) -> dict[str, Callable]:
    """{name: function} of the functions among observables.

    Raises:
      ValueError: for one without a name, with one that results cannot have, or two of one name.
    """
    named: dict[str, Callable] = {}
    for c in chosen or ():
        if not callable(c):
            continue
        name = getattr(c, "__name__", None)
        if name is None:
            raise ValueError(f"observables has a function without a name, {type(c).__name__}: give it one with def")
        if name.endswith(SUFFIX):
            raise ValueError(f"observable {name!r} must not end with {SUFFIX!r}, which names what levels capture")
        if name != "<lambda>":  # kept in memory only: `out=` refuses lambdas
            result_name("observable", name)
        if name in named:
            raise ValueError("observables must be functions of different names; two have the same (lambdas do)")
        if name in ("step", "status", "first_bad_step", "seed", "optimizer"):
            raise ValueError(f"observables has a function named {name!r}, which is taken: rename it")
        named[name] = c
    return named


class Stops(NamedTuple):
    """The stops of a loop, the same for all runs; a compiled program takes any steps for a fixed number of stops.

    Args:
      start: (K,) int32, the step at which the stretch before the stop begins.
      end: (K,) int32, the step of the stop; a stop with end = start and no record does nothing.
      record: (K,) bool, whether the observables are recorded there.
      test: (K,) bool, whether the test set is evaluated there.
      last: (K,) bool, whether the run ends there: parameters are checked as at a record.
    """

    start: Any
    end: Any
    record: Any
    test: Any
    last: Any


class State(NamedTuple):
    """Everything of a run that changes from step to step. Checkpoints store the fields under these names.

    Args:
      trained: the parameters that change, in the form that is trained: those that the optimizer trains, and the task's
        state.
      optimizer: the optimizer's state.
      bad: () int32, first step with a non-finite loss or (at a record) parameter; -1 if none.
      rang: {monitor: () int32, first step at which it was triggered, -1 if never}.
      before: `trained` one step earlier, for tasks that observe steps and where levels are captured;
        otherwise None.
      crossings: the captures where the training loss fell to a level; None without levels.
    """

    trained: PyTree
    optimizer: PyTree
    bad: Array
    rang: dict[str, Array]
    before: PyTree
    crossings: Crossings | None = None


class Tape(NamedTuple):
    """Records something of every step of a call, on the device.

    Args:
      blank: `(trained, params, data) -> buffers` for the steps of one call.
      write: `(buffers, place, params, data, updates) -> buffers`, with the parameters before the step, in the form that
        is trained, and the optimizer's updates of the trained ones, before the task's scale multiplies them.
    """

    blank: Callable[[PyTree, PyTree, PyTree], PyTree]
    write: Callable[[PyTree, Array, PyTree, PyTree, PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Loop:
    """The training of one run, as pure functions; batch and compile them outside.

        batch_t -> gradient of the loss -> optimizer update (times the task's scale) -> observe at recorded steps

    Fields are static; a sweep varies the arguments of the methods. The loop holds no callback, and the steps between
    two stops are one `fori_loop` with traced bounds: one compiled program serves every spacing of the stops, and
    stopping elsewhere changes no bit of the parameters.

    Args:
      mode: the task, and the form in which it is trained.
      factory: `(**keywords) -> optax.GradientTransformation`, called inside the mapped function, with the key of the
        run's stream "optimizer" where it takes one.
      observables: names and functions `(params, data, test, hyper) -> array`; None: the default.
      scalars: whether the default is the scalar observables only.
      trainable: names of trained parameters; None: all that the task does not freeze.
      levels: training losses at whose crossings the observables are captured, from high to low.
      tape: records something of every step; None: nothing.
    """

    mode: Mode
    factory: Callable[..., optax.GradientTransformation]
    observables: Sequence[str | Callable] | None = None
    scalars: bool = False
    trainable: Sequence[str] | None = None
    levels: tuple[float, ...] = ()
    tape: Tape | None = None

    def init(self, key: Array, start: Start, hyper: Any, keywords: Mapping[str, Any]) -> State:
        """The state at step 0.

        Args:
          key: run key, shape ().
          start: the run's start.
          hyper: the system's numbers.
          keywords: the optimizer's.
        """
        task = self.mode.task
        names, trained, _ = _split(self, start)
        with jax.numpy_dtype_promotion("standard"):  # some of Optax's own transforms promote
            state = _transform(self, key, keywords).init(split_params(trained, names)[0])
        never = jnp.full((), -1, jnp.int32)
        crossings = Crossings.none(self.levels, trained) if self.levels else None
        before = trained if task.observe_step is not None or self.levels else None
        return State(trained, state, never, dict.fromkeys(task.watch, never), before, crossings)

    def advance(
        self, key: Array, start: Start, hyper: Any, keywords: Mapping[str, Any], state: State, stops: Stops
    ) -> tuple[State, dict[str, Array], dict[str, Array], PyTree]:
        """Trains through all stops.

        Args:
          key: run key, shape ().
          start: the run's start.
          hyper: the system's numbers.
          keywords: the optimizer's.
          state: the state at the first stop's start.
          stops: K stops.

        Returns:
          (state at the last stop, {observable: (K, ...)}, what was captured, the tape's buffers or None); observables
          are NaN where nothing is recorded, and from the first bad step on. What was captured, {NAME_at_level: (L, 2,
          ...)}, is known where the run ends; nothing without levels.

        Raises:
          ValueError: for an unknown observable or parameter name, or levels of a task whose training loss is not known
            at every step (when traced).
        """
        run = _context(self, key, start, hyper, keywords)
        if evaluated(run.transform) is not None and (self.levels or self.tape is not None):
            what = f"levels={self.levels!r}" if self.levels else "trajectory="
            raise ValueError(f"{what} needs the trained parameters, and js.observed_at observes others: leave one away")
        look = jax.jit(functools.partial(_look, self, run.observed))
        pair, first, off = (state.before, state.trained), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        row_shapes = jax.eval_shape(look, start, hyper, state.trained, pair, first, off)
        stops = jax.tree.map(jnp.asarray, stops)
        taped = None
        if self.tape is not None:
            taped = self.tape.blank(state.trained, merge_params(state.trained, run.fixed), start.data)
        # After the stops, one turn for the loss at the last step; where runs end, one for each side of a level.
        size, sides = stops.end.size, max(2 * len(self.levels), 1)
        rows = jax.tree.map(lambda leaf: jnp.full((size + sides, *leaf.shape), jnp.nan, leaf.dtype), row_shapes)
        # Not a scan: every turn copies the parameters, also for the stops that pad a call and do nothing.
        used = (stops.end > stops.start) | stops.record
        turns = jnp.max(jnp.where(used, jnp.arange(1, used.size + 1), 0))
        total = turns + jnp.where(jnp.any(stops.last), sides, 1)
        stretch = functools.partial(_stretch, run, stops, turns, look, row_shapes)
        # Each array of the loop costs every step some time, and each program some to compile.
        packed = state._replace(rang=packed_scalars(state.rang))
        state, taped, rows = jax.lax.fori_loop(0, total, stretch, (packed, taped, rows))
        state = state._replace(rang=unpacked_scalars(state.rang))
        captured = {}
        if state.crossings is not None:
            captured = state.crossings.results({name: value[size:] for name, value in rows.items()})
        diverged = (state.bad >= 0) & (stops.end >= state.bad)
        rows = {name: _blank(value[:size], diverged) for name, value in rows.items()}
        return state, rows, captured, taped

    def merged(self, start: Start, trained: PyTree) -> PyTree:
        """All parameters, in the form that is trained."""
        return merge_params(trained, _split(self, start)[2])

    def params(self, start: Start, trained: PyTree) -> PyTree:
        """All parameters, in full."""
        return self.mode.expanded(self.merged(start, trained))


class Context(NamedTuple):
    """The values of one run that its steps read and never change.

    Args:
      loop: the static part.
      key: the key of the run's stream "train".
      start: the run's start.
      hyper: the system's numbers.
      names: names of the fields that the optimizer trains.
      fixed: the parameters that do not change.
      scale: factors of the updates, or None.
      transform: the optimizer.
      observed: the observables.
    """

    loop: Loop
    key: Array
    start: Start
    hyper: Any
    names: tuple[str, ...]
    fixed: PyTree
    scale: PyTree
    transform: optax.GradientTransformationExtraArgs
    observed: Observed


def _context(loop: Loop, key: Array, start: Start, hyper: Any, keywords: Mapping[str, Any]) -> Context:
    task = loop.mode.task
    observed = observers(task, start, hyper, loop.observables, loop.scalars)
    names, _, fixed = _split(loop, start)
    train_key = stream(key, "train")
    scale = split_params(task.scale(start.data, hyper), names)[0] if task.scale else None
    with jax.numpy_dtype_promotion("standard"):
        transform = _transform(loop, key, keywords)
    return Context(loop, train_key, start, hyper, names, fixed, scale, transform, observed)


def _split(loop: Loop, start: Start) -> tuple[tuple[str, ...], PyTree, PyTree]:
    """(names of the fields that the optimizer trains, what changes at its start, the other parameters)."""
    params, task = loop.mode.reduced(start.params, start.data), loop.mode.task
    names = trained_fields(task, params, loop.trainable)
    return (names, *split_params(params, changing_fields(task, params, loop.trainable)))


def _transform(loop: Loop, key: Array, keywords: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    return build(loop.factory, keywords, stream(key, "optimizer"))


def _batch(run: Context, t: Array) -> PyTree:
    """The batch of step t."""
    batch, data = run.loop.mode.task.batch, run.start.data
    return batch(jax.random.fold_in(run.key, t), data, run.hyper) if batch else data


def _loss(run: Context, trained: PyTree, t: Array) -> Array:
    """The loss of the batch of step t."""
    return _loss_and_state(run, trained, t)[0]


def _loss_and_state(run: Context, trained: PyTree, t: Array) -> tuple[Array, PyTree]:
    """(the loss of the batch of step t, the task's state after it as a tree like the parameters, None elsewhere)."""
    task = run.loop.mode.task
    returned = task.loss(merge_params(trained, run.fixed), _batch(run, t), run.hyper)
    loss, state = (returned, {}) if task.state is None else returned
    return loss, replaced(trained, state)


def _stretch(
    run: Context,
    stops: Stops,
    turns: Array,
    look: Callable[..., dict[str, Array]],
    row_shapes: PyTree,
    i: Array,
    carry: tuple[State, PyTree, dict[str, Array]],
) -> tuple[State, PyTree, dict[str, Array]]:
    """Trains up to stop i and writes its row of observables: what `look` sees, in `row_shapes`.

    After the `turns` stops that are used it looks at the sides of the levels, one a turn: there is one place for
    observables in a program, since they take the longest to compile.
    """
    state, taped, rows = carry
    size, stopping = stops.end.size, i < turns
    stop = jax.tree.map(lambda x: x[jnp.minimum(i, size - 1)], stops)
    end = jnp.where(stopping, stop.end, stop.start)
    # Jitted, since JAX maps the body of a loop and the branches of a condition twice: the second time it finds these.
    step, ended = (jax.jit(functools.partial(function, run, stops)) for function in (_step, _ended))
    state, taped = jax.lax.fori_loop(stop.start, end, step, (state, taped))
    due = (stop.record | stop.last) & stopping  # checking all parameters is slow
    broken = (state.bad < 0) & jax.lax.cond(due, lambda: ~_finite(state.trained), lambda: jnp.zeros((), bool))
    state = state._replace(bad=jnp.where(broken, stop.end, state.bad))
    bad, crossings = jax.lax.cond(i == turns, ended, lambda state: (state.bad, state.crossings), state)
    state = state._replace(bad=bad, crossings=crossings)
    number = jnp.maximum(i - turns, 0)
    capturing = ~stopping & jnp.any(stops.last) & (state.crossings is not None)

    def observed() -> dict[str, Array]:
        seen, t = _seen(run, state), stop.end
        pair = (state.before, seen)
        if state.crossings is not None:
            side, sides, crossed = state.crossings.side(number)
            t = jnp.where(capturing, crossed, t)
            seen, pair = jax.tree.map(lambda then, now: jnp.where(capturing, then, now), (side, sides), (seen, pair))
        return look(run.start, run.hyper, seen, pair, t, stop.test | capturing)

    row = jax.lax.cond(
        (stop.record & stopping) | capturing,
        observed,
        lambda: jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), row_shapes),
    )
    place = jnp.where(stopping, i, size + number)
    return state, taped, jax.tree.map(lambda rows, row: write_row(rows, place, row), rows, row)


def _ended(run: Context, stops: Stops, state: State) -> tuple[Array, Crossings | None]:
    """(first bad step, captures) with the loss at the last step, which the next call would evaluate."""
    last = stops.end[-1]
    loss = _loss(run, state.trained, last)
    bad = jnp.where((state.bad < 0) & ~jnp.isfinite(loss), last, state.bad)
    return bad, _capture(run, state, last, loss, jnp.any(stops.last) & (bad < 0))


def _seen(run: Context, state: State) -> PyTree:
    """The parameters that are observed: the trained ones, or the iterate that `js.observed_at` names."""
    iterate = evaluated(run.transform)
    if iterate is None:
        return state.trained
    with jax.numpy_dtype_promotion("standard"):
        weights, rest = split_params(state.trained, run.names)
        seen = iterate(state.optimizer, weights)
    return merge_params(jax.tree.map(lambda one, like: jnp.asarray(one, like.dtype), seen, weights), rest)


def _step(run: Context, stops: Stops, t: Array, carry: tuple[State, PyTree]) -> tuple[State, PyTree]:
    """Step t: loss and gradient, monitors, captures, update."""
    state, taped = carry
    loop, task, trained = run.loop, run.loop.mode.task, state.trained
    full = merge_params(trained, run.fixed)
    loss, gradient, exact, kept = _gradient(run, full, trained, t)
    bad = jnp.where((state.bad < 0) & ~jnp.isfinite(loss), t, state.bad)
    crossings = _capture(run, state, t, loss, bad < 0)
    alarms = {name: monitor(full, _batch(run, t), run.hyper, exact) for name, monitor in task.watch.items()}
    rang = {
        names: jnp.where((state.rang[names] < 0) & fired, t, state.rang[names])
        for names, fired in packed_scalars(alarms).items()
    }
    updates, moved, optimizer = _update(run, state, loss, gradient, t)
    moved = merge_params(moved, kept)
    if loop.tape is not None:
        taped = loop.tape.write(taped, t - stops.start[0], full, run.start.data, updates)
    before = trained if task.observe_step is not None else None
    if crossings is not None and before is None:
        # Needed until all levels are crossed. That this reads `crossings` has a second use: XLA knows then that
        # the old `before` has been read, and writes over it in place (else two copies more, a tenth of a step's
        # time).
        waiting = crossings.waiting
        before = jax.tree.map(lambda new, old: jnp.where(waiting, new, old), trained, state.before)
    return State(moved, optimizer, bad, rang, before, crossings), taped


def _gradient(run: Context, full: PyTree, trained: PyTree, t: Array) -> tuple[Array, PyTree, PyTree, PyTree]:
    """(loss, gradient of the trained parameters, the same or None where only its signs are right, the next state)."""
    mode = run.loop.mode
    weights, kept = split_params(trained, run.names)
    if mode.task.gradient is None:

        def of_weights(weights: PyTree) -> tuple[Array, PyTree]:
            return _loss_and_state(run, merge_params(weights, kept), t)

        (loss, kept), gradient = jax.value_and_grad(of_weights, has_aux=True)(weights)
        return loss, gradient, gradient, kept
    loss, of_all = mode.task.gradient(full, _batch(run, t), run.hyper, mode.signs)
    gradient = split_params(of_all, run.names)[0]
    return loss, gradient, None if mode.signs else gradient, kept


def _update(run: Context, state: State, loss: Array, gradient: PyTree, t: Array) -> tuple[PyTree, PyTree, PyTree]:
    """(the optimizer's updates before the scale, the parameters that it trains after them, its state after them)."""
    trained, kept = split_params(state.trained, run.names)
    with jax.numpy_dtype_promotion("standard"):
        extra = asked(loss, gradient, lambda p: _loss(run, merge_params(p, kept), t))
        updates, optimizer = run.transform.update(gradient, state.optimizer, trained, **extra)
        scaled = updates
        if run.scale is not None and run.loop.mode.decays:
            # Updates are affine in the parameters: the part at 0, which the gradients cause, is scaled.
            zeros = jax.tree.map(jnp.zeros_like, trained)
            pushed = run.transform.update(gradient, state.optimizer, zeros, **extra)[0]
            scaled = jax.tree.map(lambda u, g, c: c * g + (u - g), updates, pushed, run.scale)
        elif run.scale is not None:
            scaled = jax.tree.map(jnp.multiply, updates, run.scale)
        return updates, optax.apply_updates(trained, scaled), optimizer


def _capture(run: Context, state: State, t: Array, loss: Array, now: Array | bool = True) -> Crossings | None:
    """The captures at levels after step t, whose loss is given; `now` False leaves them as they are."""
    if state.crossings is None:
        return None
    loss = _level_loss(run, merge_params(state.trained, run.fixed), loss)
    return state.crossings.after(run.loop.levels, t, loss, (state.before, state.trained), now)


def _level_loss(run: Context, full: PyTree, loss: Array) -> Array:
    """The recorded training loss: the loss that is trained by may be a batch's, or hold a penalty besides."""
    task = run.loop.mode.task
    if task.batch is None and packaged(task.loss, task.observe):
        return loss  # the two agree in every system of this package (a test), and it would be computed twice
    observables = task.observe(full, run.start.data, None, run.hyper)
    if "train_loss" in observables:
        return _floating(observables["train_loss"])
    if task.batch is not None:
        raise ValueError(
            f"levels={run.loop.levels!r} need the training loss at every step: {task.name} trains on batches, so it "
            f"must observe 'train_loss', got {list(observables)}"
        )
    return loss


def _look(
    loop: Loop, observed: Observed, start: Start, hyper: Any, trained: PyTree, pair: tuple[PyTree, PyTree], t: Array,
    test_now: Array,
) -> dict[str, Array]:  # fmt: skip
    """The observables of some parameters, and of step t, which led from the first of a pair to the second."""
    task, data, test, fixed = loop.mode.task, start.data, start.test, _split(loop, start)[2]
    observe, (shapes, need_test, functions) = traced_once(task.observe), observed
    full = merge_params(trained, fixed)
    plain = observe(full, data, None, hyper) | _of_step(loop, start, hyper, *pair, t)
    values = {name: plain[name] for name in shapes if name in plain and name not in functions}
    if functions:
        params = loop.mode.expanded(full)
        values |= {name: f(params, data, test, hyper) for name, f in functions.items()}
    if need_test:

        def fresh(full: PyTree, data: PyTree, test: PyTree, hyper: Any) -> dict[str, Array]:
            with_test = observe(full, data, test, hyper)
            return {name: _floating(with_test[name]) for name in need_test}

        def nothing(*_: PyTree) -> dict[str, Array]:
            return {name: jnp.full(shapes[name].shape, jnp.nan) for name in need_test}

        large = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(test)) >= ONE_BY_ONE
        values |= jax.lax.cond(test_now, one_by_one(fresh) if large else fresh, nothing, full, data, test, hyper)
    return {name: _floating(values[name]) for name in shapes}


def one_by_one(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function, for which `jax.vmap` goes through the runs one after the other on a CPU.

    What a run computes on the way then stays in the cache; mapped together, every array of all runs goes through the
    memory. Other devices take all runs at once.

    Args:
      function: of pytrees of arrays, closing over no traced value.

    Examples:
      >>> jax.vmap(one_by_one(jnp.sum))(jnp.ones((2, 3))).tolist()
      [3.0, 3.0]
    """

    @jax.custom_batching.custom_vmap
    def one(*arguments: PyTree) -> PyTree:
        return function(*arguments)

    @one.def_vmap
    def _(size: int, mapped: Sequence[PyTree], *arguments: PyTree) -> tuple[PyTree, PyTree]:
        structure: Any = jax.tree.structure(arguments)
        each: list[bool] = jax.tree.leaves(list(mapped))
        where = [i for i, is_mapped in enumerate(each) if is_mapped]

        def of_run(own: Sequence[Array], *all_leaves: Array) -> PyTree:
            leaves = list(all_leaves)
            for i, leaf in zip(where, own):
                leaves[i] = leaf
            return function(*structure.unflatten(leaves))

        def apart(*leaves: Array) -> PyTree:
            return jax.lax.map(lambda own: of_run(own, *leaves), [leaves[i] for i in where])

        def together(*leaves: Array) -> PyTree:
            return jax.vmap(lambda own: of_run(own, *leaves))([leaves[i] for i in where])

        out = jax.lax.platform_dependent(*jax.tree.leaves(arguments), cpu=apart, default=together)
        return out, jax.tree.map(lambda _: True, out)

    return one


def _of_step(loop: Loop, start: Start, hyper: Any, before: PyTree, after: PyTree, t: Array) -> dict[str, Array]:
    """The observables of step t, which led from `before` to `after`; NaN at step 0."""
    task, fixed = loop.mode.task, _split(loop, start)[2]
    if task.observe_step is None:
        return {}
    of_step = task.observe_step(merge_params(after, fixed), merge_params(before, fixed), start.data, hyper)
    return {name: jnp.where(t > 0, _floating(value), jnp.nan) for name, value in of_step.items()}


def write_row(buffer: Array, place: Array, row: Array, axis: int = 0) -> Array:
    """The buffer with `row` at `place` along an axis, in place, under `jax.vmap` too.

    JAX's own update becomes a scatter where it is mapped; here it stays one dynamic slice for all runs, as long as they
    share the place.

    Args:
      buffer: (..., K, ...), K along `axis`.
      place: () int32 in 0..K-1.
      row: the buffer's shape without that axis.
      axis: the axis of the places.

    Returns:
      The buffer's shape and dtype.

    Examples:
      >>> write_row(jnp.zeros(3), jnp.asarray(1), jnp.asarray(5.0)).tolist()
      [0.0, 5.0, 0.0]
    """

    @jax.custom_batching.custom_vmap
    def write(buffer: Array, place: Array, row: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(buffer, row.astype(buffer.dtype), place, axis)

    @write.def_vmap
    def _(size: int, mapped: list[bool], buffer: Array, place: Array, row: Array) -> tuple[Array, bool]:
        if mapped[1]:
            axes = [0 if each else None for each in mapped]
            one = jax.vmap(
                lambda b, p, r: jax.lax.dynamic_update_index_in_dim(b, r.astype(b.dtype), p, axis), in_axes=axes
            )
            return one(buffer, place, row), True
        buffers, rows = (
            x if each else jnp.broadcast_to(x, (size, *x.shape)) for x, each in zip((buffer, row), mapped[::2])
        )
        return write_row(buffers, place, rows, axis + 1), True

    return write(buffer, place, row)


def whole_run(steps: int, record: np.ndarray, test: np.ndarray) -> Stops:
    """The stops of a run that is trained in one call: one at every recorded step, and one at the end."""
    extra = [False] * bool(record[-1] != steps)
    ends = np.concatenate([record, [steps] * len(extra)]).astype(np.int32)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    recorded = np.append(np.ones(record.size, bool), extra).astype(bool)
    return Stops(starts, ends, recorded, np.append(test, extra).astype(bool), ends == steps)


def _floating(x: Any) -> Array:
    """As the default float: NaN where there is no number, narrower floats exactly, and integers exactly or as NaN."""
    x, dtype = jnp.asarray(x), jnp.zeros(()).dtype
    out = x.astype(dtype)
    if not jnp.issubdtype(x.dtype, jnp.integer) or jnp.iinfo(x.dtype).bits <= jnp.finfo(dtype).nmant + 1:
        return out
    inside = out < jnp.asarray(float(int(jnp.iinfo(x.dtype).max) + 1), dtype)  # beyond it, casting back saturates
    return jnp.where(inside & (out.astype(x.dtype) == x), out, jnp.nan)


def _finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _blank(values: Array, where: Array) -> Array:
    return jnp.where(where.reshape((-1,) + (1,) * (values.ndim - 1)), jnp.nan, values)

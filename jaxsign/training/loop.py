"""The training loop of one run, cut at any step: where it starts, what happens between stops, what is kept of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.optimizers.factories import build
from jaxsign.store.levels import SUFFIX
from jaxsign.training.levels import Crossings
from jaxsign.training.outputs import output, outputs
from jaxsign.training.rng import stream
from jaxsign.training.rows import put
from jaxsign.training.start import Start, merge_params, split_params, trained_fields
from jaxsign.training.task import Task, packaged
from jaxsign.validation.names import result_name
from jaxsign.validation.values import known

Array = jax.Array
PyTree = Any


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
    named = functions_by_name(chosen)

    def everything(start: Start, hyper: Any) -> tuple[dict, dict, dict]:
        data, test, params, _ = start
        users = {name: output("observable", name, c(params, data, test, hyper)) for name, c in named.items()}
        steps = outputs("observable", task.observe_step(params, params, data, hyper)) if task.observe_step else {}
        seen = [outputs("observable", task.observe(params, data, given, hyper)) for given in (test, None)]
        if both := set(steps) & set(seen[0]):
            raise ValueError(f"observable {min(both)!r} is returned by both observe and observe_step: rename one")
        return seen[0] | steps, seen[1] | steps, users

    with_test, without, users = jax.eval_shape(everything, start, hyper)
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
    return shapes, need_test, named


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
    """The steps at which a loop stops to look, the same for all runs; a program takes any of a fixed number.

    Args:
      start: (K,) int32, the step that the stop's stretch begins at.
      end: (K,) int32, the step it ends at; a stop with end = start and no record does nothing.
      record: (K,) bool, whether the observables are recorded at the end.
      test: (K,) bool, whether the test set is looked at.
      last: (K,) bool, whether the run ends there: parameters are checked as at a record.
    """

    start: Any
    end: Any
    record: Any
    test: Any
    last: Any


class State(NamedTuple):
    """All of a run that changes from step to step.

    Args:
      trained: the trained parameters, in the compact form where that is what is trained.
      optimizer: the optimizer's state.
      bad: () int32, first step with a non-finite loss or (at a record) parameter; -1 if none.
      rang: {alarm: () int32, first step at which it rang, -1 if never}.
      before: the trained parameters one step earlier, for tasks that observe steps and where levels are captured;
        otherwise None.
      crossings: what was captured where the training loss fell to a level; None without levels.
    """

    trained: PyTree
    optimizer: PyTree
    bad: Array
    rang: dict[str, Array]
    before: PyTree
    crossings: Crossings | None = None


class Tape(NamedTuple):
    """Keeps something of every step of a stretch, on the device.

    Args:
      blank: `(trained, params, data) -> buffers` for the steps of one stretch.
      write: `(buffers, place, params, data, updates) -> buffers`, with the parameters before the step, in the form that
        is trained, and the update of those that are.
    """

    blank: Callable[[PyTree, PyTree, PyTree], PyTree]
    write: Callable[[PyTree, Array, PyTree, PyTree, PyTree], PyTree]


class Loop(NamedTuple):
    """The pure functions of one run's training; batch and compile them outside.

    Args:
      init: `(key, start, hyper, keywords) -> State` at step 0; key is the run's.
      advance: `(key, start, hyper, keywords, state, stops) -> (State, rows, taped)`: trains through all stops; rows is
        {observable: (K, ...)}, NaN where nothing is recorded and from the first bad step on; taped is the tape's.
      merged: `(start, trained) -> params` in the form that is trained.
      params: `(start, trained) -> params` in full.
    """

    init: Callable[..., State]
    advance: Callable[..., tuple[State, dict[str, Array], PyTree]]
    merged: Callable[[Start, PyTree], PyTree]
    params: Callable[[Start, PyTree], PyTree]


def make_loop(
    task: Task,
    factory: Callable[..., optax.GradientTransformation],
    *,
    observables: Sequence[str | Callable] | None = None,
    scalars: bool = False,
    trainable: Sequence[str] | None = None,
    compact: bool = False,
    decays: bool = False,
    signs: bool = False,
    levels: tuple[float, ...] = (),
    tape: Tape | None = None,
) -> Loop:
    """Builds the training loop of one run; static things go in here, swept things into its functions' arguments.

        batch_t -> gradient of the loss -> optimizer update (times the task's scale) -> observe at recorded steps

    The loop holds no callback; the steps between two stops are one `fori_loop` with traced bounds, so where it stops is
    data: one compile serves every spacing, and stopping elsewhere changes no bit of what is trained.

    Args:
      task: the system.
      factory: `(**keywords) -> optax.GradientTransformation`, called inside the mapped function, with the key of the
        run's stream "optimizer" where it takes one.
      observables: names and functions `(params, data, test, hyper) -> array`; None: the default.
      scalars: whether the default is the scalar observables only.
      trainable: names of trained parameters; None: all that the task does not freeze.
      compact: train the task's compact parametrisation; exact only where `fit` says so.
      decays: whether updates hold decoupled weight decay, which a homogeneous task must not scale.
      signs: whether the optimizer reads nothing but the signs of gradients, for tasks with a closed-form gradient.
      levels: training losses at whose crossings the observables are captured.
      tape: keeps something of every step.

    Returns:
      Loop.

    Raises:
      ValueError: for an unknown observable or parameter name, or levels of a task whose training loss is not known at
        every step (when traced).
    """
    keeps_before = task.observe_step is not None or bool(levels)

    def parts(start: Start) -> tuple[tuple[str, ...], PyTree, PyTree]:
        """(names of the trained fields, their initial values, the fixed ones)."""
        params = start.params
        if compact and task.reduction.compact is not None:
            params = task.reduction.compact(params, start.data)
        names = trained_fields(task, params, trainable)
        return (names, *split_params(params, names))

    def transform_of(key: Array, keywords: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        return build(factory, keywords, stream(key, "optimizer"))

    def init(key: Array, start: Start, hyper: Any, keywords: Mapping[str, Any]) -> State:
        trained = parts(start)[1]
        with jax.numpy_dtype_promotion("standard"):  # some of Optax's own transforms promote
            state = transform_of(key, keywords).init(trained)
        never = jnp.full((), -1, jnp.int32)
        crossings = None
        if levels:
            shapes = observers(task, start, hyper, observables, scalars)[0]
            floats = jax.eval_shape(lambda: {n: _floating(jnp.zeros(x.shape, x.dtype)) for n, x in shapes.items()})
            crossings = Crossings.none(levels, floats)
        before = trained if keeps_before else None
        return State(trained, state, never, dict.fromkeys(task.watch, never), before, crossings)

    def merged(start: Start, trained: PyTree) -> PyTree:
        return merge_params(trained, parts(start)[2])

    def params(start: Start, trained: PyTree) -> PyTree:
        full = merged(start, trained)
        return task.reduction.expand(full) if compact and task.reduction.expand is not None else full

    def advance(
        key: Array, start: Start, hyper: Any, keywords: Mapping[str, Any], state: State, stops: Stops
    ) -> tuple[State, dict[str, Array], PyTree]:
        shapes, need_test, functions = observers(task, start, hyper, observables, scalars)
        data = start.data
        names, _, fixed = parts(start)
        train_key = stream(key, "train")
        scale = split_params(task.scale(data, hyper), names)[0] if task.scale else None
        with jax.numpy_dtype_promotion("standard"):
            transform = transform_of(key, keywords)

        def batch_at(t: Array) -> PyTree:
            return task.batch(jax.random.fold_in(train_key, t), data, hyper) if task.batch else data

        def loss_of(trained: PyTree, t: Array) -> Array:
            return task.loss(merge_params(trained, fixed), batch_at(t), hyper)

        def level_loss(full: PyTree, loss: Array) -> Array:
            """The training loss that is recorded: what is trained by may be a batch's, or hold a penalty besides."""
            if task.batch is None and packaged(task.loss, task.observe):
                return loss  # the two are one in every system of ours (a test), and it would be computed twice
            whole = task.observe(full, data, None, hyper)
            if "train_loss" in whole:
                return _floating(whole["train_loss"])
            if task.batch is not None:
                raise ValueError(
                    f"levels={levels!r} need the training loss at every step: {task.name} trains on batches, so it "
                    f"must observe 'train_loss', got {list(whole)}"
                )
            return loss

        def capture(state: State, t: Array, loss: Array, now: Array | bool = True) -> Crossings | None:
            """What levels have captured when step t has been seen."""
            if state.crossings is None:
                return None
            names = [name for name in state.crossings.values if name in shapes]

            def around(context: tuple[Start, Any, Array, PyTree, PyTree]) -> tuple[dict[str, Array], dict[str, Array]]:
                start, hyper, t, *both = context
                steps = None, both[0]  # what is observed of the step across the level stands on both sides of it
                before, here = (
                    look(start, hyper, params, step, t, jnp.ones((), bool)) for params, step in zip(both, steps)
                )
                return {name: before.get(name, here[name]) for name in names}, {name: here[name] for name in names}

            loss = level_loss(merge_params(state.trained, fixed), loss)
            context = (start, hyper, t, state.before, state.trained)
            return state.crossings.after(levels, t, loss, around, context, now)

        def step(t: Array, carry: tuple[State, PyTree]) -> tuple[State, PyTree]:
            current, taped = carry
            trained, state, bad, rang = current[:4]
            full = merge_params(trained, fixed)
            if task.gradient is None:
                loss, gradient = jax.value_and_grad(loss_of)(trained, t)
            else:
                loss, everything = task.gradient(full, batch_at(t), hyper, signs)
                gradient = split_params(everything, names)[0]
            seen = None if task.gradient and signs else gradient
            bad = jnp.where((bad < 0) & ~jnp.isfinite(loss), t, bad)
            crossings = capture(current, t, loss, bad < 0)
            rang = {
                name: jnp.where((rang[name] < 0) & alarm(full, batch_at(t), hyper, seen), t, rang[name])
                for name, alarm in task.watch.items()
            }
            with jax.numpy_dtype_promotion("standard"):
                asked = {"value": loss, "grad": gradient, "value_fn": lambda p: loss_of(p, t)}
                updates, after = transform.update(gradient, state, trained, **asked)
                if scale is not None and decays:  # affine in the parameters: what the gradients do at 0 is scaled
                    pushed = transform.update(gradient, state, jax.tree.map(jnp.zeros_like, trained), **asked)[0]
                    updates = jax.tree.map(lambda u, g, c: c * g + (u - g), updates, pushed, scale)
                elif scale is not None:
                    updates = jax.tree.map(jnp.multiply, updates, scale)
                moved = optax.apply_updates(trained, updates)
            if tape is not None:
                taped = tape.write(taped, t - stops.start[0], full, data, updates)
            before = trained if task.observe_step is not None else None
            if crossings is not None and before is None:
                # Needed until all levels are crossed. That this reads `crossings` has a second use: XLA knows then that
                # the old `before` has been read, and writes over it where it lies (else two copies more, a tenth of a
                # step's time).
                keep = crossings.waiting
                before = jax.tree.map(lambda new, old: jnp.where(keep, new, old), trained, current.before)
            return State(moved, after, bad, rang, before, crossings), taped

        def look(
            start: Start, hyper: Any, trained: PyTree, before: PyTree, t: Array, test_now: Array
        ) -> dict[str, Array]:
            """The observables; with `before` None, without those of the step that led here."""
            data, test, fixed = start.data, start.test, parts(start)[2]
            full = merge_params(trained, fixed)
            plain = task.observe(full, data, None, hyper)
            if task.observe_step and before is not None:
                steps = task.observe_step(full, merge_params(before, fixed), data, hyper)
                plain |= {name: jnp.where(t > 0, _floating(value), jnp.nan) for name, value in steps.items()}
            found = {name: plain[name] for name in shapes if name in plain and name not in functions}
            if functions:
                whole = task.reduction.expand(full) if compact and task.reduction.expand is not None else full
                found |= {name: f(whole, data, test, hyper) for name, f in functions.items()}
            if need_test:

                def fresh() -> dict[str, Array]:
                    seen = task.observe(full, data, test, hyper)
                    return {name: _floating(seen[name]) for name in need_test}

                def nothing() -> dict[str, Array]:
                    return {name: jnp.full(shapes[name].shape, jnp.nan) for name in need_test}

                found |= jax.lax.cond(test_now, fresh, nothing)
            return {name: _floating(found[name]) for name in shapes if name in found}

        unseen = jax.eval_shape(
            look, start, hyper, state.trained, state.before, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        )

        def stretch(i: Array, carry: tuple[State, PyTree, dict[str, Array]]) -> tuple[State, PyTree, dict[str, Array]]:
            state, taped, rows = carry
            stop = jax.tree.map(lambda x: x[i], stops)
            state, taped = jax.lax.fori_loop(stop.start, stop.end, step, (state, taped))
            due = stop.record | stop.last  # looking at all parameters is slow
            broken = (state.bad < 0) & jax.lax.cond(due, lambda: ~_finite(state.trained), lambda: jnp.zeros((), bool))
            state = state._replace(bad=jnp.where(broken, stop.end, state.bad))
            row = jax.lax.cond(
                stop.record,
                lambda: look(start, hyper, state.trained, state.before, stop.end, stop.test),
                lambda: jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), unseen),
            )
            return state, taped, jax.tree.map(lambda rows, row: put(rows, i, row), rows, row)

        stops = jax.tree.map(jnp.asarray, stops)
        taped = tape.blank(state.trained, merge_params(state.trained, fixed), data) if tape is not None else None
        rows = jax.tree.map(lambda leaf: jnp.full((stops.end.size, *leaf.shape), jnp.nan, leaf.dtype), unseen)
        # Not a scan: every turn copies the parameters, also for the stops that pad a call and do nothing.
        used = (stops.end > stops.start) | stops.record
        turns = jnp.max(jnp.where(used, jnp.arange(1, used.size + 1), 0))
        state, taped, rows = jax.lax.fori_loop(0, turns, stretch, (state, taped, rows))
        # The loss at the last step, which the next stretch would look at: what is recorded there may have to go.
        last = stops.end[-1]
        loss = loss_of(state.trained, last)
        bad = jnp.where((state.bad < 0) & ~jnp.isfinite(loss), last, state.bad)
        state = state._replace(crossings=capture(state, last, loss, jnp.any(stops.last) & (bad < 0)))
        gone = (bad >= 0) & (stops.end >= bad)
        rows = {name: _blank(value, gone) for name, value in rows.items()}
        return state._replace(bad=bad), rows, taped

    return Loop(init, advance, merged, params)


def whole_run(steps: int, record: np.ndarray, test: np.ndarray) -> Stops:
    """The stops of a run that is trained in one stretch: one at every recorded step, and one at the end."""
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


def _blank(values: Array, gone: Array) -> Array:
    return jnp.where(gone.reshape((-1,) + (1,) * (values.ndim - 1)), jnp.nan, values)

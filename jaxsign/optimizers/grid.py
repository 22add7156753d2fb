"""js.grid: the points of an optimizer factory's keywords, checked when built, and their labels."""

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.optimizers.factories import PER_RUN, build, per_run
from jaxsign.validation.names import result_name, text_value
from jaxsign.validation.values import known, one_line, plain_number, real, short_enough

Array = jax.Array
#: Keywords of optimizers that are numbers wherever they occur.
NUMBERS = ("learning_rate", "b1", "b2", "eps", "momentum", "weight_decay", "beta")


@dataclasses.dataclass(frozen=True)
class Grid:
    """The full product of a factory's own keywords; build it with `grid`.

    Args:
      factory: `(**keywords) -> optax.GradientTransformation`.
      points: keywords of every point, in the order of the product.
      floats: names of the keywords that are traced; the others are static.
    """

    factory: Callable[..., optax.GradientTransformation]
    points: tuple[Mapping[str, Any], ...]
    floats: tuple[str, ...]

    @property
    def keywords(self) -> tuple[str, ...]:
        """Names of all keywords given."""
        return tuple(self.points[0])

    @property
    def per_run(self) -> str | None:
        """The keyword by which every run hands in its own random numbers, or None."""
        return per_run(self.factory, self.keywords)

    def static(self, index: int) -> dict[str, Any]:
        """The static keywords of one point."""
        return {name: value for name, value in self.points[index].items() if name not in self.floats}


def grid(factory: Callable[..., optax.GradientTransformation], **lists: Any) -> Grid:
    """The full product of an optimizer factory's own keywords, one traced program for all floats.

    The optimizer is built inside the mapped function, so floats never recompile; bool, int, str, None and functions
    are static and compile once per value. A list that mixes floats and ints is a list of floats. A list with any other
    value in it, such as a schedule or None, is static as a whole: its floats, too, compile once per value.

    A factory with a keyword `key` (or `seed`) that is left out here gets one per run: the typed key
    `js.stream(run_key, "optimizer")`, or an integer drawn from it, () uint32. Both are traced.

    Args:
      factory: any function that returns an `optax.GradientTransformation`.
      **lists: values of each keyword; a single value is a list of one. Leave `key` and `seed` out.

    Returns:
      A Grid.

    Raises:
      ValueError: for an unknown keyword (with the nearest valid name), a missing required keyword, an empty list, a
        duplicate or a non-finite value, a key among the values, or a float or a run's seed that the factory needs in
        Python.

    Examples:
      >>> import optax
      >>> len(grid(optax.adam, learning_rate=[1e-4, 3e-4], b2=[0.9, 0.99, 0.999]).points)
      6
      >>> grid(optax.adam, learning_rate=[1e-4, 3e-4, optax.cosine_decay_schedule(1e-3, 200)], b2=[0.9, 0.99]).floats
      ('b2',)
    """
    if not callable(factory):
        raise ValueError(f"factory must be a function that returns an Optax transform, got {shown(factory)}")
    label = getattr(factory, "__name__", str(factory))
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in lists:
            known(f"keyword of {label}", name, parameters)
    for name in PER_RUN:
        if any(_is_key(value, words=name == "key") for value in _listed(lists.get(name))):
            raise ValueError(
                f"{label}({name}) must be left out of js.grid, got a random key, which all seeds would share: each run "
                'passes a key of its stream "optimizer"'
            )
    for name, parameter in parameters.items():
        if name == per_run(factory, lists):
            continue
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and name not in lists:
            raise ValueError(f"{label} needs a value for {name!r}: js.grid({label}, {name}=[...])")
    for name in lists:
        result_name(f"keyword of {label}", name)
    values = {
        name: _keyword_values(f"{label}({name})", given, _takes_numbers(name, parameters.get(name)))
        for name, given in lists.items()
    }
    floats = tuple(name for name, given in values.items() if all(isinstance(v, float) for v in given))
    short_enough(f"js.grid({label}, ...)", math.prod(map(len, values.values())))
    points = tuple(dict(zip(values, point)) for point in itertools.product(*values.values()))
    whole = Grid(factory, points, floats)
    _check_traceable(label, whole)
    return whole


def _check_traceable(label: str, whole: Grid) -> None:
    """Refuses a factory that needs the number behind a float, which is traced; a few milliseconds, nothing is run.

    Raises:
      ValueError: naming the factory and the keywords.
    """
    drawn = () if whole.per_run is None else (whole.per_run,)
    if not whole.floats and not drawn:
        return
    first: dict[str, Mapping[str, Any]] = {}  # point of each combination of static keywords: one program each
    for i, point in enumerate(whole.points):
        first.setdefault(repr(whole.static(i)), point)
    for point in first.values():
        # A transform that fails without traced keywords fails for another reason, which shows where it is used.
        for steps in (False, True):  # the parameters here are made up, and the transform may not take them
            failure = _failure(whole.factory, point, drawn, steps)
            if failure is None or _failure(whole.factory, point, (), steps) is not None:
                continue
            reason = (str(failure).splitlines() or [""])[0].rstrip(".")
            raise ValueError(
                f"{label} cannot be built with what every run passes as its keyword {whole.per_run!r}, a traced "
                f"{'key' if whole.per_run == 'key' else 'integer'} ({type(failure).__name__}: {reason}): draw from it "
                f"with jax.random, or bind it for all runs, js.grid(functools.partial({label}, {whole.per_run}=0), ...)"
            )
        if not _concretizes(whole.factory, point, (*whole.floats, *drawn)) or _concretizes(whole.factory, point, drawn):
            continue
        blamed = [name for name in whole.floats if _concretizes(whole.factory, point, (name, *drawn))] or whole.floats
        blame, bound = ", ".join(map(repr, blamed)), ", ".join(f"{name}={_short(point[name])}" for name in blamed)
        raise ValueError(
            f"{label} needs the value of its keyword {blame} in Python (a branch, float() or NumPy), but floats are "
            f"traced: use jnp.where and jnp, or bind it, js.grid(functools.partial({label}, {bound}), ...)"
        )


#: Errors that JAX raises where Python needs the value of a traced number.
_CONCRETIZATION = (
    jax.errors.ConcretizationTypeError,  # bool() and float() included
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _concretizes(factory: Callable[..., Any], point: Mapping[str, Any], traced: Iterable[str]) -> bool:
    """Whether building a transform and one update of it need the value of a traced keyword."""
    return isinstance(_failure(factory, point, traced), _CONCRETIZATION)


def _failure(
    factory: Callable[..., Any], point: Mapping[str, Any], traced: Iterable[str], steps: bool = True
) -> Exception | None:
    """The error of building a transform and, with `steps`, of one update; an untraced key or seed is 0."""
    drawn = per_run(factory, point)
    held = {drawn: 0} if drawn is not None and drawn not in traced else {}

    def update(floats: Mapping[str, Array]) -> Any:
        params = {"w": jnp.ones((2, 2))}
        with jax.numpy_dtype_promotion("standard"):  # as where it is used
            transform = build(factory, {**point, **held, **floats}, jax.random.key(0, impl="threefry2x32"))
            if not steps:
                return None
            extra = {"value": jnp.zeros(()), "grad": params, "value_fn": lambda p: jnp.sum(p["w"])}
            return transform.update(params, transform.init(params), params, **extra)

    dtype = jax.dtypes.canonicalize_dtype(float)  # an array would start JAX before `configure` has set devices
    try:
        jax.eval_shape(update, {name: jax.ShapeDtypeStruct((), dtype) for name in traced if name != drawn})
    except Exception as error:  # an error that no traced keyword causes shows where the transform is used
        return error
    return None


def _takes_numbers(name: str, parameter: inspect.Parameter | None) -> bool:
    """Whether a keyword is a number, not a word or a flag."""
    default = parameter.default if parameter is not None else None
    return name in NUMBERS or isinstance(default, float)


def _keyword_values(field: str, given: Any, number: bool) -> list[Any]:
    """The values of one keyword as a checked list; a list with a float in it becomes floats."""
    if isinstance(given, (Mapping, set, frozenset)):
        raise ValueError(f"{field} must be a value or a list of values, got {shown(given)}; a dict is given as [dict]")
    words = isinstance(given, (str, bytes)) or given is None
    scalar = words or not isinstance(given, Iterable) or getattr(given, "shape", None) == ()  # a 0-d array
    values = [given] if scalar else list(given)
    if not values:
        raise ValueError(f"{field} must have at least one value, got {given!r}")
    values = [plain_number(field, v) for v in values]
    for v in values:
        text_value(field, v)
        wrong = isinstance(v, (bool, str, bytes)) if number else False
        if wrong or isinstance(v, (complex, np.ndarray, jax.Array)):
            raise ValueError(f"{field} must be a number, got {shown(v)}")
        if type(v) is int and abs(v) >= 2**63:
            raise ValueError(f"{field} must be an integer of 64 bits at most, got {v!r}")
    plain = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if any(isinstance(v, float) for v in plain) and len(plain) == len(values):
        values = [real(field, v) for v in values]
    if len(set(map(repr, values))) != len(values):
        raise ValueError(f"{field} has a duplicate value, got {shown(values)}")
    return values


def _is_key(value: Any, words: bool) -> bool:
    """Whether a value holds random keys, typed or, where `words` count, the two words of one."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        return False
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return typed or (words and value.dtype == np.uint32 and value.shape[-1:] == (2,))


def _listed(given: Any) -> list[Any]:
    """The values of a keyword before they are checked; an array is one value."""
    return list(given) if isinstance(given, (list, tuple)) else [given]


def shown(value: Any) -> str:
    """A value for a message, without the addresses of a transform's functions.

    Examples:
      >>> shown([optax.sgd(0.1), "adam"])
      "[an Optax transform, 'adam']"
    """
    if isinstance(value, optax.GradientTransformation):
        return "an Optax transform"
    if isinstance(value, Grid):
        return f"a js.grid of {getattr(value.factory, '__name__', 'a factory')}"
    if type(value) in (list, tuple):
        return ("[{}]" if isinstance(value, list) else "({})").format(", ".join(map(shown, value)))
    return one_line(value)


def as_grid(entry: Any) -> Grid:
    """A Grid, a bare transform or a factory without required keywords, as a Grid.

    Raises:
      ValueError: if it is none of them.
    """
    if isinstance(entry, Grid):
        return entry
    if isinstance(entry, optax.GradientTransformation):
        return Grid(_Bare(entry), ({},), ())
    return grid(entry)


@dataclasses.dataclass(frozen=True)
class _Bare:
    """A factory without keywords that returns a transform built by the user."""

    transform: optax.GradientTransformation

    def __call__(self) -> optax.GradientTransformation:
        return self.transform


def point_label(family: str, point: Mapping[str, Any], varying: Iterable[str]) -> str:
    """The readable label of one grid point: the family, and the keywords that vary in it.

    Examples:
      >>> point_label("gd", {"learning_rate": 0.1}, ["learning_rate"])
      'gd(learning_rate=0.1)'
    """
    shown = ", ".join(f"{name}={_short(point[name])}" for name in varying)
    return f"{family}({shown})" if shown else family


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        if float(f"{value:g}") == value:
            return f"{value:g}"
        narrow = np.float32(value) if abs(value) <= np.finfo(np.float32).max else np.float32(0)
        if float(narrow) == value and float(np.float32(f"{narrow:g}")) == value:  # a 32-bit 0.1 is shown as 0.1
            return f"{narrow:g}"
    return static_word(value)


def static_word(value: Any) -> str:
    """Short text of a keyword, the same in every process: never with a memory address.

    Examples:
      >>> static_word(optax.sgd), static_word(True), static_word(functools.partial(optax.sgd, 0.1))
      ('sgd', 'True', 'sgd(0.1)')
    """
    if isinstance(value, functools.partial):
        bound = [*map(static_word, value.args), *(f"{k}={static_word(v)}" for k, v in value.keywords.items())]
        return f"{static_word(value.func)}({', '.join(bound)})"
    if hasattr(value, "__name__"):
        return str(value.__name__)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def describe_point(factory: Callable[..., Any], points: Iterable[Mapping[str, Any]], label: str | None = None) -> str:
    """A factory (or the label given for it) and its keywords for a message, such as "adamw(learning_rate=0.1)"."""
    name = label or str(getattr(getattr(factory, "func", factory), "__name__", "the given transform"))
    shown = ["(" + ", ".join(f"{k}={_short(v)}" for k, v in point.items()) + ")" if point else "" for point in points]
    return name + " or ".join(dict.fromkeys(shown))

"""js.grid: the points of an optimizer factory's keywords, checked when built, and their labels."""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.optimizers.adapters import asked
from jaxsign.optimizers.factories import PER_RUN, Constant, build, per_run
from jaxsign.optimizers.words import different_words, value_word
from jaxsign.validation.names import result_name, text_value, word
from jaxsign.validation.values import known, one_line, plain_number, real, short_enough

Array = jax.Array
#: Keywords of optimizers that are numbers wherever they occur.
NUMBERS = ("learning_rate", "b1", "b2", "eps", "momentum", "weight_decay", "beta")


@dataclasses.dataclass(frozen=True)
class Static:
    """Values of a keyword that are not traced; build it with `static`."""

    values: Any


@dataclasses.dataclass(frozen=True)
class Grid:
    """The full product of a factory's own keywords; build it with `grid`.

    Args:
      factory: `(**keywords) -> optax.GradientTransformation`.
      points: keywords of every point, in the order of the product.
      floats: names of the keywords that are traced; the others are static.
      words: the same for the words by which labels show the values.
      needed: names of the keywords whose floats are static since the factory needs them in Python.
    """

    factory: Callable[..., optax.GradientTransformation]
    points: tuple[Mapping[str, Any], ...]
    floats: tuple[str, ...]
    words: tuple[Mapping[str, str], ...]
    needed: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """`grid(adam, learning_rate=[0.1, 0.3], b1=[0.9])`, with the words of the labels."""
        values = {name: dict.fromkeys(words[name] for words in self.words) for name in self.keywords}
        lists = "".join(f", {name}=[{', '.join(words)}]" for name, words in values.items())
        return f"grid({getattr(self.factory, '__name__', type(self.factory).__name__)}{lists})"

    @property
    def keywords(self) -> tuple[str, ...]:
        """Names of all keywords given."""
        return tuple(self.points[0])

    @property
    def per_run(self) -> str | None:
        """The keyword by which every run hands in its own random numbers, or None."""
        return per_run(self.factory, self.keywords)

    @property
    def programs(self) -> int:
        """How many combinations of static keywords there are; each is a program of its own."""
        return len({repr(self.static(i)) for i in range(len(self.points))})

    def static(self, index: int) -> dict[str, Any]:
        """The static keywords of one point."""
        return {name: value for name, value in self.points[index].items() if name not in self.floats}


def grid(factory: Callable[..., optax.GradientTransformation], **lists: Any) -> Grid:
    """The full product of an optimizer factory's own keywords, one traced program for all floats.

    The optimizer is built inside the mapped function, so floats never recompile; bool, int, str, None and functions
    are static and compile once per value. A list that mixes floats and ints is a list of floats. A list with any other
    value in it, such as a schedule or None, is static as a whole: its floats, too, compile once per value. So does a
    float that the factory needs in Python, as in a branch or in NumPy (found by building it): a sweep then says how
    many programs that makes.

    A factory with a keyword `key` (or `seed`) that is left out here gets one per run: the typed key
    `js.stream(run_key, "optimizer")`, or an integer drawn from it, () uint32. Both are traced.

    Args:
      factory: any function that returns an `optax.GradientTransformation`.
      **lists: values of each keyword: a list, a single value, a dict of {name: value} whose names stand in labels, or
        `js.static` of these. Leave `key` and `seed` out.

    Returns:
      A Grid.

    Raises:
      ValueError: for an unknown keyword (with the nearest valid name), a missing required keyword, an empty list, a
        duplicate or a non-finite value, a key among the values, or a run's seed that the factory needs in Python.

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
    asked = [name for name, given in lists.items() if isinstance(given, Static)]
    floats = tuple(
        name for name, given in values.items() if name not in asked and all(isinstance(v, float) for v in given)
    )
    short_enough(f"js.grid({label}, ...)", math.prod(map(len, values.values())))
    words = {name: _words(lists[name], given) for name, given in values.items()}
    needed: tuple[str, ...] = ()
    while True:  # without one of them another one may be needed
        whole = _product(factory, values, words, floats, needed)
        more = _untraceable(label, whole)
        if not more:
            _check_built(label, whole)
            return whole
        needed, floats = (*needed, *more), tuple(name for name in floats if name not in more)


def static(values: Any) -> Static:
    """Values of a keyword of `grid` that are constants of the program: one compile for each of them.

    It is needed for floats only, and only where a factory would treat them otherwise when they are traced; a keyword
    that cannot be traced at all is static by itself.

    Args:
      values: as in `grid`: a value, a list of values, or a dict of {name: value}.

    Returns:
      A keyword's values for `grid`.

    Examples:
      >>> import optax
      >>> both = grid(optax.adam, learning_rate=[1e-4, 3e-4], b2=static([0.9, 0.99]))
      >>> both.floats, len(both.points)
      (('learning_rate',), 4)
    """
    return Static(values)


def _product(
    factory: Callable[..., optax.GradientTransformation], values: Mapping[str, list[Any]],
    words: Mapping[str, list[str]], floats: tuple[str, ...], needed: tuple[str, ...],
) -> Grid:  # fmt: skip
    """The full product of the values, in which floats that are not traced are constants."""
    kept = {
        name: given if name in floats else [Constant(v) if isinstance(v, float) else v for v in given]
        for name, given in values.items()
    }
    points = tuple(dict(zip(kept, point)) for point in itertools.product(*kept.values()))
    texts = tuple(dict(zip(words, point)) for point in itertools.product(*words.values()))
    return Grid(factory, points, floats, texts, needed)


def _words(given: Any, values: list[Any]) -> list[str]:
    """The words of a keyword's values: the names that the user gave, or what tells them apart."""
    given = given.values if isinstance(given, Static) else given
    return list(given) if isinstance(given, Mapping) else different_words(values)


def _untraceable(label: str, whole: Grid) -> tuple[str, ...]:
    """The floats whose numbers the factory needs in Python; a few milliseconds, nothing is run.

    Raises:
      ValueError: naming factory and keyword, for one that needs the number behind a run's key or seed.
    """
    drawn = () if whole.per_run is None else (whole.per_run,)
    if not whole.floats and not drawn:
        return ()
    first: dict[str, Mapping[str, Any]] = {}  # point of each combination of static keywords: one program each
    for i, point in enumerate(whole.points):
        first.setdefault(repr(whole.static(i)), point)
    needed: dict[str, None] = {}
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
        needed |= dict.fromkeys(blamed)
    return tuple(needed)


def _check_built(label: str, whole: Grid) -> None:
    """Builds the factory with every value: a traced number hides from it, so that its own checks would pass.

    Raises:
      ValueError: naming the keyword and the value that the factory refuses.
    """
    first = whole.points[0]
    for name in whole.keywords:
        for value in dict.fromkeys(point[name] for point in whole.points if isinstance(point[name], float)):
            failure = _failure(whole.factory, {**first, name: value}, (), steps=False)
            if isinstance(failure, ValueError):
                raise ValueError(f"{label}({name}={value:g}) is refused: {' '.join(str(failure).split())}")


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
            extra = asked(jnp.zeros(()), params, lambda p: jnp.sum(p["w"]))
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
    given = given.values if isinstance(given, Static) else given
    if isinstance(given, (set, frozenset)):
        raise ValueError(f"{field} must be a value or a list of values, in an order, got the set {shown(given)}")
    if isinstance(given, Mapping):
        if not all(isinstance(name, str) for name in given):
            raise ValueError(f"{field} must be values, in a list or in a dict of {{name: value}}, got {shown(given)}")
        for name in given:
            word(f"{field}: the name", name)
        given = list(given.values())
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
    given = given.values if isinstance(given, Static) else given
    given = list(given.values()) if isinstance(given, Mapping) else given
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
    if isinstance(entry, (optax.GradientTransformation, optax.MultiSteps)):
        return Grid(_Bare(entry), ({},), (), ({},))
    return grid(entry)


@dataclasses.dataclass(frozen=True)
class _Bare:
    """A factory without keywords that returns a transform built by the user."""

    transform: optax.GradientTransformation | optax.MultiSteps

    def __call__(self) -> optax.GradientTransformation | optax.MultiSteps:
        return self.transform


def point_label(family: str, words: Mapping[str, str], varying: Iterable[str]) -> str:
    """The readable label of one grid point: the family, and the keywords that vary in it.

    Args:
      family: the name of the optimizer.
      words: the words of the point's values, see `Grid.words`.
      varying: names of the keywords that vary.

    Examples:
      >>> point_label("gd", {"learning_rate": "0.1"}, ["learning_rate"])
      'gd(learning_rate=0.1)'
    """
    shown = ", ".join(f"{name}={words[name]}" for name in varying)
    return f"{family}({shown})" if shown else family


def describe_point(factory: Callable[..., Any], points: Iterable[Mapping[str, Any]], label: str | None = None) -> str:
    """A factory (or the label given for it) and its keywords for a message, such as "adamw(learning_rate=0.1)"."""
    name = label or str(getattr(getattr(factory, "func", factory), "__name__", "the given transform"))
    shown = [
        "(" + ", ".join(f"{k}={value_word(v)}" for k, v in point.items()) + ")" if point else "" for point in points
    ]
    return name + " or ".join(dict.fromkeys(shown))

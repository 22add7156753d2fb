"""Builds one run's transform from its factory, the keywords of a point and the run's random numbers."""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.compilation import Same, content
from jaxsign.optimizers.adapters import adapted

Array = jax.Array

#: Keywords by which a factory takes a run's random numbers; a factory that has both is given the first.
PER_RUN = ("key", "seed")


class Constant(float):
    """A number among the keywords of a point that is not traced: a constant of the program that it belongs to."""


def traced(point: Mapping[str, Any]) -> tuple[str, ...]:
    """The keywords of a point whose numbers are arguments of its program.

    Examples:
      >>> traced({"learning_rate": 0.1, "b1": Constant(0.9), "nesterov": True})
      ('learning_rate',)
    """
    return tuple(name for name, value in point.items() if isinstance(value, float) and not isinstance(value, Constant))


def plain_constants(point: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a point as a factory takes them: its constants are Python's own floats."""
    return {name: float(value) if isinstance(value, Constant) else value for name, value in point.items()}


def per_run(factory: Callable[..., Any], given: Iterable[str] = ()) -> str | None:
    """The keyword by which a factory takes random numbers that differ from run to run: "key", "seed" or None.

    Args:
      factory: any optimizer factory.
      given: names of the keywords that the user gave.

    Returns:
      None as well if the user gave one of the two, in `given` or through `functools.partial`, or if its default is
      neither missing, None, an int nor an array: then the keyword has another meaning.

    Examples:
      >>> import optax
      >>> per_run(optax.noisy_sgd), per_run(optax.noisy_sgd, ["seed"]), per_run(optax.adam)
      ('key', None, None)
    """
    if isinstance(factory, _Keyed):
        factory = factory.factory
    bound, inner = set(given), factory
    while isinstance(inner, functools.partial):
        bound |= {*inspect.signature(inner.func).bind_partial(*inner.args).arguments, *inner.keywords}
        inner = inner.func
    if bound & set(PER_RUN):
        return None
    parameters = inspect.signature(factory).parameters
    for parameter in (parameters[name] for name in PER_RUN if name in parameters):
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        default = None if parameter.default is parameter.empty else parameter.default
        number = isinstance(default, (int, np.ndarray, jax.Array)) and not isinstance(default, bool)
        if by_name and (default is None or number):
            return parameter.name
    return None


def build(
    factory: Callable[..., optax.GradientTransformation], keywords: Mapping[str, Any], key: Array
) -> optax.GradientTransformationExtraArgs:
    """The transform of one run: the factory with its keywords and, where it takes one, the run's key or seed.

    Args:
      factory: `(**keywords) -> transform`.
      keywords: one point of its grid; floats may be traced.
      key: key of the run's stream "optimizer", shape (); passed on as the keyword `key`, or as `seed`, an integer drawn
        from it, () uint32.

    Returns:
      A transform whose update takes extra arguments.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> transform = build(optax.noisy_sgd, {"learning_rate": 0.1}, jax.random.key(3))
      >>> bool(jnp.all(transform.init(jnp.zeros(2))[0].rng_key == jax.random.key(3)))
      True
    """
    name = per_run(factory, keywords)
    drawn: dict[str, Array] = {}
    if name is not None:
        drawn[name] = key if name == "key" else jax.random.bits(key, dtype=jnp.uint32)
    return adapted(factory(**plain_constants(keywords), **drawn))


class Static:
    """The static keywords of a point, as a key of a cache: equal if they are written alike."""

    def __init__(self, point: Mapping[str, Any], floats: Iterable[str]):
        self.keywords = plain_constants({name: value for name, value in point.items() if name not in floats})
        self.text = repr(self.keywords), tuple(floats)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class _Keyed:
    """A factory as a key of a cache: equal to those of equal content, or to itself only where that is not known."""

    def __init__(self, factory: Callable[..., Any], key: Hashable):
        self.factory, self.key, self.__signature__ = factory, key, inspect.signature(factory)

    def __call__(self, **keywords: Any) -> Any:
        return self.factory(**keywords)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def hashable(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for a factory that equals the stand-ins of factories that build the same.

    A factory that reaches a user's code, which may read what has changed, equals itself only.

    Examples:
      >>> import functools, optax
      >>> hashable(functools.partial(optax.sgd, 0.1)) == hashable(functools.partial(optax.sgd, 0.1))
      True
    """
    key = content(factory)
    return _Keyed(factory, Same(factory) if key is None else key)


def lasting(factory: Callable[..., Any], keywords: Mapping[str, Any]) -> bool:
    """Whether what a factory builds stays the same while a process runs: it reaches no code of the user.

    Examples:
      >>> import optax
      >>> lasting(optax.sgd, {"momentum": 0.9}), lasting(lambda: optax.sgd(0.1), {})
      (True, False)
    """
    return content(factory, dict(keywords)) is not None

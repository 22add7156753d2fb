"""Does an optimizer draw random numbers, and do they come from the key of each run?"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.optimizers.adapters import asked, check_fit
from jaxsign.optimizers.factories import Static, build, hashable, lasting, traced

if TYPE_CHECKING:
    from jax.extend import core

Factory = Callable[..., optax.GradientTransformation]
#: Primitives that turn a key, or a generator's state, into random numbers.
DRAWS = frozenset({"random_bits", "random_gamma", "threefry2x32", "rng_bit_generator", "rng_uniform"})
#: Updates that are traced: the second one starts from a state that an update has written.
UPDATES = 2


class Draws(NamedTuple):
    """The random draws of a transform's `init` and `update`.

    Args:
      drawn: whether they draw random numbers, or keep a key.
      reason: why some of these do not come from the key of each run; "" if all do.
    """

    drawn: bool
    reason: str


def draws(factory: Factory, points: Iterable[Mapping[str, Any]], like: Any) -> list[Draws]:
    """The random draws of each point of an optimizer, read off its program; nothing is run.

    The transform is built with an array of run keys under `vmap`. Whatever depends on a run's key is then batched, and
    a draw that is not batched is the same for every seed. A key in the state counts as a draw.

    Args:
      factory: `(**keywords) -> transform`.
      points: keywords of each point; floats are traced.
      like: tree of arrays or ShapeDtypeStructs with the parameters' structure and shapes.

    Returns:
      One Draws a point.

    Examples:
      >>> import functools, jax.numpy as jnp, optax
      >>> rate, like = {"learning_rate": 0.1}, {"w": jnp.zeros(3)}
      >>> draws(optax.noisy_sgd, [rate], like), draws(optax.sgd, [rate], like)
      ([Draws(drawn=True, reason='')], [Draws(drawn=False, reason='')])
      >>> draws(functools.partial(optax.noisy_sgd, key=0), [rate], like)[0].reason
      'it draws random numbers from a key that is the same for every seed'
    """
    leaves, structure = jax.tree.flatten(like)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    out = []
    for point in points:
        floats = traced(point)
        static = Static(point, floats)
        drawn = _drawn if lasting(factory, static.keywords) else _drawn.__wrapped__
        out.append(drawn(hashable(factory), static, floats, structure, shapes))
    return out


@functools.lru_cache(maxsize=256)
def _drawn(factory: Factory, static: Static, floats: tuple[str, ...], structure: Any, shapes: Any) -> Draws:
    """The draws of a point; cached, since points that differ only in floats draw alike."""
    sizes = {size for shape in shapes for size in (*shape.shape, shape.size)}
    runs = next(n for n in itertools.count(10007) if not any(size % n == 0 for size in sizes if size))

    def one(key: Any, numbers: Mapping[str, Any], leaves: Any) -> Any:
        params, zero = structure.unflatten(leaves), jnp.zeros(())
        with jax.numpy_dtype_promotion("standard"):  # as where it is used
            transform = build(factory, {**static.keywords, **numbers}, key)
            state = transform.init(params)
            out: list[Any] = [_from_keys(state)]
            for _ in range(UPDATES):
                extra = asked(zero, params, lambda params: zero)
                before = state
                updates, state = transform.update(params, state, params, **extra)
                check_fit(params, updates, before, state)
                out.append((updates, _from_keys(state)))
        return out

    def program() -> Any:
        # A fresh function each time, or JAX would not trace it again.
        mapped = jax.vmap(lambda *arguments: one(*arguments), in_axes=(0, None, None))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), runs))
        number = jax.ShapeDtypeStruct((), jnp.zeros(()).dtype)
        return jax.make_jaxpr(mapped)(keys, dict.fromkeys(floats, number), shapes)

    first, second = program(), program()
    drawn, shared = False, False
    for equation in _equations(first.jaxpr):
        if equation.primitive.name not in DRAWS:
            continue
        drawn = True
        kinds = [x.aval for x in equation.invars]
        shared |= not any(size and size % runs == 0 for kind in kinds for size in kind.shape)
        keys = [kind.dtype for kind in kinds if jnp.issubdtype(kind.dtype, jax.dtypes.prng_key)]
        if equation.primitive.name.startswith("rng_") or any(dtype != _threefry() for dtype in keys):
            return Draws(True, "it draws with another generator than threefry2x32, so its numbers depend on the batch")
    if shared:
        return Draws(True, "it draws random numbers from a key that is the same for every seed")
    if _constants(first) != _constants(second):
        return Draws(True, "it draws random numbers in Python while it is traced, once for all seeds and steps")
    return Draws(drawn, "")


def _threefry() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype


def _from_keys(state: Any) -> list[Any]:
    """A draw from every key in a state, typed or as its two words: a key in the state will be drawn from."""
    out = []
    for leaf in map(jnp.asarray, jax.tree.leaves(state)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            out += [jax.random.bits(key) for key in leaf.reshape(-1)[:1]]
        elif leaf.dtype == jnp.uint32 and leaf.shape == (2,):
            out.append(jax.random.bits(jax.random.wrap_key_data(leaf, impl="threefry2x32")))
    return out


def _equations(jaxpr: "core.Jaxpr") -> Iterator[Any]:
    """All equations of a program and of its inner programs."""
    from jax.extend import core  # late, since it loads Pallas

    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(equation):
            yield from _equations(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def _inner(equation: Any) -> Iterator[Any]:
    """The programs that an equation calls."""
    from jax.extend import core  # late, since it loads Pallas

    for value in equation.params.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(entry, (core.ClosedJaxpr, core.Jaxpr)):
                yield entry


def _constants(closed: "core.ClosedJaxpr") -> list[bytes]:
    """The numbers that are written into a program, as bytes."""
    from jax.extend import core  # late, since it loads Pallas

    constants = list(closed.consts)
    for equation in _equations(closed.jaxpr):
        constants += [x.val for x in equation.invars if isinstance(x, core.Literal)]
        constants += [x for inner in _inner(equation) if isinstance(inner, core.ClosedJaxpr) for x in inner.consts]
    return [np.asarray(x).tobytes() for x in constants if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)]

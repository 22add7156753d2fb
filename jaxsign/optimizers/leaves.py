"""Does an optimizer move every array of a tree by the same rule? Found by giving all arrays one common history."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.optimizers.adapters import driven
from jaxsign.optimizers.factories import Static, build, hashable, lasting, traced

PyTree = Any
#: Steps of the common history; its gradients fall from 1 to 1e-12, so that rules which differ late differ here.
STEPS, SMALLEST = 25, 1e-12


def name_leaves(like: PyTree) -> list[tuple[str, ...]]:
    """The path of every array of a tree, as names: ("w_v", "signal").

    Examples:
      >>> name_leaves({"w": {"a": 1.0}, "b": 2.0})
      [('b',), ('w', 'a')]
    """
    return [
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(like)
    ]


def leaf_moves(
    factory: Callable[..., Any], point: Mapping[str, Any], like: PyTree
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """How a point of a coordinate-wise optimizer moves every array of a tree whose coordinates all see one history.

    Args:
      factory: `(**keywords) -> transform`.
      point: its keywords.
      like: tree of arrays or ShapeDtypeStructs with the parameters' structure and shapes.

    Returns:
      `(parameters (steps, H), gradients (steps, H)) -> updates (arrays, steps, H)` of H histories, each one by itself.
    """
    floats = {name: point[name] for name in traced(point)}
    static = Static(point, floats)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(like))
    program = _program if lasting(factory, static.keywords) else _program.__wrapped__
    return functools.partial(program(hashable(factory), static, jax.tree.structure(like), shapes), floats)


@functools.lru_cache(maxsize=64)
def _program(factory: Callable[..., Any], static: Static, structure: Any, shapes: Any) -> Callable[..., np.ndarray]:
    """The jitted `(floats, parameters, gradients) -> updates` of `leaf_moves`."""

    def spread(value: Any) -> PyTree:
        return structure.unflatten([jnp.full(leaf.shape, value, leaf.dtype) for leaf in shapes])

    def firsts(updates: PyTree) -> Any:
        return jnp.stack([jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(updates)])

    @jax.jit
    def program(floats: Mapping[str, Any], params: Any, gradients: Any) -> Any:
        key = jax.random.key(0, impl="threefry2x32")
        transform = build(factory, {**static.keywords, **floats}, key)
        each = jax.vmap(lambda one, other: driven(transform, spread, one, other, firsts))
        return each(params.T, gradients.T)

    def run(floats: Mapping[str, Any], params: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        with jax.numpy_dtype_promotion("standard"):  # some of Optax's own transforms promote
            return np.moveaxis(np.asarray(program(floats, params, gradients), float), 0, -1).swapaxes(0, 1)

    return run


def leaf_rules(factory: Callable[..., Any], point: Mapping[str, Any], like: PyTree) -> list[np.ndarray]:
    """What tells the rule of one array from that of another: the updates (steps, 2) of every array of a tree.

    Examples:
      >>> import optax, jax.numpy as jnp
      >>> by_shape = lambda params: {name: "sgd" if x.ndim else "sign" for name, x in params.items()}
      >>> mixed = lambda: optax.partition({"sgd": optax.sgd(0.1), "sign": optax.sign_sgd(0.1)}, by_shape)
      >>> one, other = leaf_rules(mixed, {}, {"a": jnp.zeros(()), "b": jnp.zeros(3)})
      >>> same_rule(one, other)
      False
    """
    dtype = jnp.zeros(()).dtype
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1.0, SMALLEST, STEPS)[:, None]
    gradients = (sizes * rng.choice([-1.0, 1.0], (STEPS, 1)) * np.ones(2)).astype(dtype)
    params = np.broadcast_to(np.asarray([0.0, 1e3], dtype), gradients.shape)  # large, so that decay stands out
    return list(leaf_moves(factory, point, like)(params, gradients))


def same_rule(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays' updates are those of one rule."""
    return bool(np.allclose(one, other, rtol=1e-4, atol=0.0, equal_nan=True))


def treated_apart(factory: Callable[..., Any], point: Mapping[str, Any], like: PyTree, reference: PyTree) -> str:
    """An array of a tree that is moved by another rule than the array of a reference that it stands for; "" if none is.

    Args:
      factory: `(**keywords) -> transform`, coordinate-wise.
      point: its keywords.
      like: tree of parameters that is trained.
      reference: tree whose arrays have the first names of those of `like`.

    Returns:
      Its path, such as "w_v.signal".

    Examples:
      >>> import optax, jax.numpy as jnp
      >>> decay = lambda: optax.masked(optax.add_decayed_weights(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
      >>> small, large = {"w": {"a": jnp.zeros(3), "b": jnp.zeros((3, 2))}}, {"w": jnp.zeros((3, 9))}
      >>> treated_apart(decay, {}, small, large)
      'w.a'
    """
    known: dict[tuple[str, ...], np.ndarray] = dict(zip(name_leaves(reference), leaf_rules(factory, point, reference)))
    for path, found in zip(name_leaves(like), leaf_rules(factory, point, like)):
        standard = known.get(path, known.get(path[:1]))
        if standard is None or not same_rule(found, standard):
            return ".".join(path)
    return ""

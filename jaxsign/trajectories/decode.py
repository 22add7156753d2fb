"""What were the trained parameters after every step of a segment? Training's own additions are repeated."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.store import trajectory
from jaxsign.store.manifest import UnusableData
from jaxsign.store.trajectory import Segment
from jaxsign.store.watched import MENDED
from jaxsign.sweep.recorder import TAPE_STEPS
from jaxsign.training.loop import Loop
from jaxsign.training.start import Start, changing_fields, field_of, merge_params, split_params
from jaxsign.training.tape import apply_codes, code_shape, join, pack, split, unpack

PyTree = Any
Described = Sequence[tuple[tuple[int, ...], str]]


def bits_of(leaves: Described) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of the bits of floats."""
    return [(shape, f"u{np.dtype(dtype).itemsize}") for shape, dtype in leaves]


def code_bytes(leaves: Described) -> int:
    """Bytes of one step's codes."""
    return sum(math.prod(code_shape(shape)) for shape, _ in leaves)


def read(segment: Segment, run: int, described: Described) -> list[np.ndarray]:
    """The arrays of one run's record.

    Raises:
      UnusableData: if it is damaged.
    """
    record = trajectory.read_record(segment, run)
    try:
        return trajectory.decompress(record, described)
    except (RuntimeError, ValueError) as error:
        raise UnusableData(f"{segment.file} is damaged: {error}; {MENDED}") from None


def padded(x: np.ndarray) -> np.ndarray:
    """Rows for all TAPE_STEPS steps, zeros after the last one: one program then decodes segments of any length."""
    return np.concatenate([x, np.zeros((TAPE_STEPS - len(x), *x.shape[1:]), x.dtype)])


@jax.jit
def after_every_step(trained: PyTree, codes: jax.Array, amplitude: jax.Array) -> PyTree:
    """Trained parameters after every step of a segment, stacked."""

    def step(before: Any, update: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        after = apply_codes(before, *update)
        return after, after

    stacked = jax.lax.scan(step, [split(leaf) for leaf in jax.tree.leaves(trained)], (codes, amplitude))[1]
    leaves = [
        jnp.concatenate(parts, 1).reshape(len(codes), *leaf.shape)
        for parts, leaf in zip(stacked, jax.tree.leaves(trained))
    ]
    return jax.tree.unflatten(jax.tree.structure(trained), leaves)


@jax.jit
def after_steps(trained: PyTree, codes: jax.Array, amplitude: jax.Array, start: int, stop: int) -> PyTree:
    """Trained parameters after the steps [start, stop) of a segment."""

    def step(t: jax.Array, before: Any) -> Any:
        return apply_codes(before, codes[t], amplitude[t])

    after = jax.lax.fori_loop(start, stop, step, [split(leaf) for leaf in jax.tree.leaves(trained)])
    leaves = [join(parts, leaf.shape) for parts, leaf in zip(after, jax.tree.leaves(trained))]
    return jax.tree.unflatten(jax.tree.structure(trained), leaves)


@functools.lru_cache(maxsize=32)
def codes_of_weights(recorded: Loop, loop: Loop) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The jitted `(start, still, codes, amplitude) -> (codes, amplitude)` of the weights behind a task's parameters.

    A segment's steps are done one after the other: signs of the weights in full are held of one step only.

    Args:
      recorded: the loop whose steps were kept; its task has `weights`.
      loop: the loop of those weights. Of it are start and result; still holds the signs 0 of all recorded parameters.
    """
    weights = recorded.mode.task.reduction.weights
    assert weights is not None

    def fields(loop: Loop, params: PyTree) -> tuple[PyTree, list[str]]:
        """(the parameters that change, the fields of their leaves)."""
        trained = split_params(params, changing_fields(loop.mode.task, params, loop.trainable))[0]
        return trained, [field_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(trained)[0]]

    def convert(start: Start, still: PyTree, codes: jax.Array, amplitude: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = loop.mode.reduced(start.params, start.data)
        (trained, theirs), (_, own) = fields(recorded, still), fields(loop, params)
        leaves, structure = jax.tree.flatten(trained)
        ends = np.cumsum([math.prod(code_shape(x.shape)) for x in leaves])
        signs = weights.signs(params, start.data)

        def step(row: jax.Array) -> jax.Array:
            parts = [
                unpack(part.reshape(code_shape(x.shape)), x.shape) for part, x in zip(jnp.split(row, ends[:-1]), leaves)
            ]
            moves = signs(merge_params(jax.tree.unflatten(structure, parts), still))
            moved = jax.tree.leaves(fields(loop, moves)[0])
            return jnp.concatenate([pack(x.astype(amplitude.dtype)).reshape(-1) for x in moved])

        places = {field: [i for i, name in enumerate(theirs) if name == field] for field in own}
        sizes = [jnp.max(amplitude[:, np.array(places[field])], axis=1) for field in own]  # those of one field agree
        return jax.lax.map(step, codes), jnp.stack(sizes, 1)

    return jax.jit(convert)


def at(stacked: PyTree, i: int) -> PyTree:
    """One step of stacked parameters."""
    return jax.tree.map(lambda x: x[i], stacked)

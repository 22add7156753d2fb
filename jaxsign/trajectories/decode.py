"""What were the trained parameters after every step of a segment? Training's own additions are repeated."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.store import trajectory
from jaxsign.store.manifest import UnusableData
from jaxsign.store.trajectory import Segment
from jaxsign.store.watched import MENDED
from jaxsign.sweep.recorder import TAPE_STEPS
from jaxsign.training.tape import apply_codes, code_shape, join, split

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


def at(stacked: PyTree, i: int) -> PyTree:
    """One step of stacked parameters."""
    return jax.tree.map(lambda x: x[i], stacked)

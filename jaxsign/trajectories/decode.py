"""Segments of trajectories -> what was trained after each of their steps, by the additions of training itself."""

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
    """Rows for every step of a tape, 0 where there is none: one program reads segments of any length."""
    return np.concatenate([x, np.zeros((TAPE_STEPS - len(x), *x.shape[1:]), x.dtype)])


@jax.jit
def after_every_step(trained: PyTree, codes: jax.Array, amplitude: jax.Array) -> PyTree:
    """What is trained after every step of a segment."""

    def step(here: Any, move: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        after = apply_codes(here, *move)
        return after, after

    stacked = jax.lax.scan(step, [split(leaf) for leaf in jax.tree.leaves(trained)], (codes, amplitude))[1]
    leaves = [
        jnp.concatenate(parts, 1).reshape(len(codes), *leaf.shape)
        for parts, leaf in zip(stacked, jax.tree.leaves(trained))
    ]
    return jax.tree.unflatten(jax.tree.structure(trained), leaves)


@jax.jit
def after_steps(trained: PyTree, codes: jax.Array, amplitude: jax.Array, start: int, stop: int) -> PyTree:
    """What is trained after the steps [start, stop) of a segment."""

    def step(t: jax.Array, here: Any) -> Any:
        return apply_codes(here, codes[t], amplitude[t])

    moved = jax.lax.fori_loop(start, stop, step, [split(leaf) for leaf in jax.tree.leaves(trained)])
    leaves = [join(parts, leaf.shape) for parts, leaf in zip(moved, jax.tree.leaves(trained))]
    return jax.tree.unflatten(jax.tree.structure(trained), leaves)


def at(stacked: PyTree, i: int) -> PyTree:
    """One step of what is stacked."""
    return jax.tree.map(lambda x: x[i], stacked)

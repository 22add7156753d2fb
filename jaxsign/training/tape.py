"""What is kept of every step: sign updates as two bits a coordinate, or the features; and how the bits are read."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.training.loop import Tape, write_row

Array = jax.Array
PyTree = Any
#: Parts of a vector that are folded at a time.
FOLD = 16


def sign_tape(steps: int) -> Tape:
    """Keeps updates of the form amplitude * {-1, 0, +1}, one amplitude a leaf and step.

    Buffers: "codes" (steps, bytes) uint8, "amplitude" (steps, leaves), "off" () int32: the first place whose update was
    something else, -1 if none.

    Args:
      steps: steps of a call at most.
    """

    def blank(trained: PyTree, params: PyTree, data: PyTree) -> dict[str, Array]:
        leaves = jax.tree.leaves(trained)
        return {
            "codes": jnp.zeros((steps, sum(math.prod(code_shape(leaf.shape)) for leaf in leaves)), jnp.uint8),
            "amplitude": jnp.zeros((steps, len(leaves)), leaves[0].dtype),
            "off": jnp.full((), -1, jnp.int32),
        }

    def write(buffers: dict[str, Array], place: Array, params: PyTree, data: PyTree, updates: PyTree) -> Any:
        leaves = jax.tree.leaves(updates)
        most, least = zip(*map(_extremes, leaves))
        amplitude = jnp.stack(most)
        # A leaf that is no longer finite belongs to a run that has diverged, which is marked elsewhere.
        broken = jnp.any((amplitude != jnp.stack(least)) & jnp.isfinite(amplitude))
        return {
            "codes": write_row(buffers["codes"], place, jnp.concatenate([pack(leaf).reshape(-1) for leaf in leaves])),
            "amplitude": write_row(buffers["amplitude"], place, amplitude),
            "off": jnp.where((buffers["off"] < 0) & broken, place.astype(jnp.int32), buffers["off"]),
        }

    return Tape(blank, write)


def feature_tape(steps: int, project: Callable[[PyTree, PyTree], PyTree]) -> Tape:
    """Keeps what the training set sees of the parameters before every step: a list of buffers (steps, ...).

    Args:
      steps: steps of a call at most.
      project: `(params, data) -> pytree`.
    """

    def blank(trained: PyTree, params: PyTree, data: PyTree) -> list[Array]:
        return [jnp.zeros((steps, *x.shape), x.dtype) for x in jax.tree.leaves(jax.eval_shape(project, params, data))]

    def write(buffers: list[Array], place: Array, params: PyTree, data: PyTree, updates: PyTree) -> list[Array]:
        return [write_row(buffer, place, x) for buffer, x in zip(buffers, jax.tree.leaves(project(params, data)))]

    return Tape(blank, write)


def code_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the codes of a leaf: its first axis in four parts that lie on top of each other.

    Examples:
      >>> code_shape((20, 2000)), code_shape((2, 7)), code_shape((9,)), code_shape(())
      ((5, 2000), (1, 7), (3,), (1,))
    """
    first, *rest = shape or (1,)
    return (-(-first // 4), *rest)


def pack(updates: Array) -> Array:
    """Signs as two bits each, 0 for 0, 1 for +, 2 for -; whole rows move, so that it is done in registers.

    Examples:
      >>> pack(jnp.array([1.0, -1.0, 0.0, 3.0, -2.0])).tolist()
      [33, 6]
    """
    words = _words(updates.reshape(updates.shape or (1,)))
    part = code_shape(updates.shape)[0]
    code = jnp.where(words << 1 != 0, 1 + (words >> (8 * words.dtype.itemsize - 1)), 0)
    parts = [code[i * part : (i + 1) * part] << (2 * i) for i in range(-(-code.shape[0] // part))]
    out = parts[0]
    for last in parts[1:]:
        short = part - last.shape[0]
        last = jnp.pad(last, ((0, short), *((0, 0),) * (last.ndim - 1))) if short else last
        out = out | last
    return out.astype(jnp.uint8)


def unpack(codes: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `pack`: signs as int8.

    Examples:
      >>> unpack(pack(jnp.array([1.0, -1.0, 0.0, 3.0, -2.0])), (5,)).tolist()
      [1, -1, 0, 1, -1]
    """
    rows = jnp.concatenate([codes, codes >> 2, codes >> 4, codes >> 6])[: (shape or (1,))[0]] & 3
    return ((rows & 1).astype(jnp.int8) - (rows >> 1).astype(jnp.int8)).reshape(shape)


def _words(x: Array) -> Array:
    """Floats as the unsigned integers of their bits: those of positive numbers are ordered alike."""
    return jax.lax.bitcast_convert_type(x, jnp.uint64 if x.dtype.itemsize == 8 else jnp.uint32)


def _extremes(updates: Array) -> tuple[Array, Array]:
    """(largest, smallest but 0) absolute value of a leaf, both 0 if there is none; by their bits, ordered alike."""
    size = (_words(updates) << 1).reshape(-1)  # without the sign
    most, least = _reduced(jnp.maximum, size), _reduced(jnp.minimum, size - 1) + 1  # 0 becomes the largest integer
    back = functools.partial(jax.lax.bitcast_convert_type, new_dtype=updates.dtype)
    return back(most >> 1), back(least >> 1)


def _reduced(op: Callable[[Array, Array], Array], x: Array) -> Array:
    """An idempotent reduction of a vector, by folding it: XLA's own loop does one number at a time on a CPU."""
    while x.size > 1:
        part = -(-x.size // FOLD)
        x = functools.reduce(op, [x[min(i, x.size - part) :][:part] for i in range(0, x.size, part)])
    return x[0]


def split(leaf: Array) -> list[Array]:
    """The four parts of a leaf that lie on top of each other in its codes; fewer if there are no more rows."""
    leaf = leaf.reshape(leaf.shape or (1,))
    part = code_shape(leaf.shape)[0]
    return [leaf[i : i + part] for i in range(0, leaf.shape[0], part)]


def join(parts: list[Array], shape: tuple[int, ...]) -> Array:
    """The inverse of `split`."""
    return jnp.concatenate(parts).reshape(shape)


def apply_codes(parts: list[list[Array]], codes: Array, amplitude: Array) -> list[list[Array]]:
    """One step again: every coordinate plus the amplitude of its leaf times its sign, one addition.

    Leaves stay in their parts from step to step: joining them takes many times as long as moving them.

    Args:
      parts: of every trained leaf before the step.
      codes: (bytes,) uint8 of all leaves.
      amplitude: (leaves,).
    """
    ends = np.cumsum([own[0].size for own in parts])
    out = []
    for i, (own, end) in enumerate(zip(parts, ends)):
        code = codes[end - own[0].size : end].reshape(own[0].shape)
        up, down, still = amplitude[i], -amplitude[i], -jnp.zeros((), amplitude.dtype)  # x + -0 is x, also for x = -0
        moved = []
        for k, part in enumerate(own):
            sign = (code >> (2 * k))[: part.shape[0]] & 3
            moved.append(part + jnp.where(sign == 1, up, jnp.where(sign == 2, down, still)))
        out.append(moved)
    return out

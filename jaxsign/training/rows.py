"""Writes one row of a buffer in place, under `jax.vmap` too, where JAX's own update becomes a scatter."""

import jax
import jax.numpy as jnp

Array = jax.Array


def put(buffer: Array, place: Array, row: Array, axis: int = 0) -> Array:
    """The buffer with `row` at `place` along an axis: one dynamic slice for all runs, as long as they share the place.

    Args:
      buffer: (..., K, ...), K along `axis`.
      place: () int32 in 0..K-1.
      row: the buffer's shape without that axis.
      axis: the axis of the places.

    Returns:
      The buffer's shape and dtype.

    Examples:
      >>> put(jnp.zeros(3), jnp.asarray(1), jnp.asarray(5.0)).tolist()
      [0.0, 5.0, 0.0]
    """

    @jax.custom_batching.custom_vmap
    def write(buffer: Array, place: Array, row: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(buffer, row.astype(buffer.dtype), place, axis)

    @write.def_vmap
    def _(size: int, mapped: list[bool], buffer: Array, place: Array, row: Array) -> tuple[Array, bool]:
        if mapped[1]:
            axes = [0 if each else None for each in mapped]
            one = jax.vmap(
                lambda b, p, r: jax.lax.dynamic_update_index_in_dim(b, r.astype(b.dtype), p, axis), in_axes=axes
            )
            return one(buffer, place, row), True
        all_of = [x if each else jnp.broadcast_to(x, (size, *x.shape)) for x, each in zip((buffer, row), mapped[::2])]
        return put(all_of[0], place, all_of[1], axis + 1), True

    return write(buffer, place, row)

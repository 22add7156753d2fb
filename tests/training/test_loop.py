"""A row is written in place: the values of a plain assignment, and no scatter when a batch shares the place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsign.training.loop import write_row


def by_hand(buffer, place, row):
    buffer = np.array(buffer)
    buffer[int(place)] = row
    return buffer


@pytest.mark.parametrize(
    "mapped", [(0, None, 0), (0, 0, 0), (None, 0, 0), (0, None, None), (None, None, 0), (None, 0, None)]
)
def test_batches_of_each_kind(mapped):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(4, 5, 3)), np.array([0, 4, 2, 2]), rng.normal(size=(4, 3))]
    given = [part if axis == 0 else part[1] for part, axis in zip(parts, mapped)]
    got = jax.vmap(write_row, in_axes=mapped)(*map(jnp.asarray, given))
    pick = lambda k: [part[k] if axis == 0 else part for part, axis in zip(given, mapped)]  # noqa: E731
    np.testing.assert_array_equal(got, np.stack([by_hand(*pick(k)) for k in range(4)]).astype(np.float32))


def test_two_batches_share_a_place_without_a_scatter():
    buffer, row = jnp.zeros((2, 3, 6, 4)), jnp.arange(24.0).reshape(2, 3, 4)

    def filled(buffer, row):
        return jax.lax.fori_loop(1, 4, lambda i, buffer: write_row(buffer, i, row * i), buffer)

    program = jax.jit(jax.vmap(jax.vmap(filled)))
    got = program(buffer, row)
    for i in range(6):
        np.testing.assert_array_equal(got[:, :, i], row * i if 1 <= i < 4 else 0 * row)
    text = program.lower(buffer, row).as_text()
    assert "dynamic_update_slice" in text
    assert "scatter" not in text

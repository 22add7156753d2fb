"""Keys: one seed is one run, and each use of randomness has its own named stream."""

import jax
import numpy as np

from jaxsign.validation.values import known, positive_int

STREAMS = {"data": 0, "init": 1, "train": 2, "test": 3, "optimizer": 4}


def seed_key(seed: int) -> jax.Array:
    """The run key of one seed: `jax.random.key(seed, impl="threefry2x32")`.

    Threefry is fixed because only its draws stay the same under `vmap`.

    Args:
      seed: int in [0, 2^32).

    Returns:
      A typed key, shape ().

    Raises:
      ValueError: if the seed is not an int in the legal range.

    Examples:
      >>> seed_key(3).shape
      ()
    """
    return jax.random.key(_checked(seed), impl="threefry2x32")


def seed_words(seed: int) -> np.ndarray:
    """The two words of `seed_key(seed)`, made without asking a device that is busy training.

    Args:
      seed: int in [0, 2^32).

    Returns:
      (2,) uint32.

    Raises:
      ValueError: if the seed is not an int in the legal range.

    Examples:
      >>> seed_words(3).tolist()
      [0, 3]
    """
    return np.array([0, _checked(seed)], np.uint32)


def _checked(seed: int) -> int:
    if positive_int("seed", seed, minimum=0) >= 2**32:
        raise ValueError(f"seed must be an int in [0, 2^32), got seed={seed!r}")
    return int(seed)


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of one named stream of a run: `fold_in(key, k)`, k = 0 data, 1 init, 2 train, 3 test,
    4 optimizer.

    The identity of a run is its seed alone: every other axis of a sweep sees the same standard draws,
    so that comparisons between SNRs or optimizers are paired.

    Args:
      key: run key, shape ().
      name: "data", "init", "train", "test" or "optimizer".

    Returns:
      A typed key, shape (); the key of step t of a stream is `fold_in(stream(key, name), t)`.

    Raises:
      ValueError: for another name.

    Examples:
      >>> import jax
      >>> data_key = stream(jax.random.key(3), "data")
    """
    return jax.random.fold_in(key, STREAMS[known("stream", name, STREAMS)])

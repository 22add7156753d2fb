"""Options with which jaxsign's programs are compiled and called, whatever JAX is set to elsewhere."""

import contextlib
import functools
import gc
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps JAX's debugging flags off the programs that run inside; `@undisturbed()` does so for a function.

    NaN is a legal value: it marks steps without a record, and a run from its first bad step on. So jax_debug_nans and
    jax_debug_infs would stop healthy runs, and jax_transfer_guard would stop every program that takes NumPy arrays.

    Raises:
      ValueError: if JAX, which starts with its first array, cannot start on the configured platform.
    """
    try:
        with jax.debug_nans(False), jax.debug_infs(False), jax.transfer_guard("allow"):
            yield
    except (RuntimeError, AssertionError):
        if refusal := no_platform():
            raise ValueError(refusal) from None
        raise


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """Keeps Python's garbage collector from running inside; `@collecting_later()` does so for a function.

    Tracing makes many small objects, and each collection looks through all of JAX's.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def no_platform() -> str:
    """Why JAX cannot start in this process; "" if it can, or already has."""
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 and 0.12 assert that some platform has started
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = (str(error).splitlines() or ["no such device"])[0]
        return f"JAX_PLATFORMS={platforms or ''} cannot be used on this machine: {reason}; JAX_PLATFORMS=cpu can"
    return ""


def each_undisturbed(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made undisturbed; between them the caller's flags hold.

    Examples:
      >>> list(each_undisturbed(iter("ab")))
      ['a', 'b']
    """
    while True:
        with undisturbed():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


@functools.cache
def compiler_options(backend: str) -> dict[str, str]:
    """Options for `jax.jit` on a backend.

    On a CPU, XLA hands large sums to a library that is up to 100 times slower at them than XLA's own loops (jax 0.10.2
    and 0.12.0, sum over one of the inner axes of a (16, 20, 1000) array); products stay with the library, which is
    good at them.

    Args:
      backend: "cpu", "gpu" or "tpu".

    Returns:
      {option: value}; empty where this version of XLA does not know the option.

    Examples:
      >>> compiler_options("tpu")
      {}
    """
    if backend != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(jnp.zeros(())).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options

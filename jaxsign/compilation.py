"""Compiler options that jaxsign's programs ask XLA for."""

import functools

import jax
import jax.numpy as jnp


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

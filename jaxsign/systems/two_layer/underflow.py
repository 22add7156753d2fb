"""Which gradients of the two-layer system are exactly 0 only because floats cannot hold them? Monitors of a run."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
#: The gradients that are monitored.
QUANTITIES = ("query_noise", "key_noise", "value_noise", "query_signal", "key_signal", "value_signal")
#: Attributes of the monitors' results.
ATTRS = {
    name: {"long_name": f"first step at which a gradient {of} is exactly 0 by underflow (-1: never)", "units": "step"}
    for name, of in {
        "first_frozen_step": "of a trained query, key or value",
        **{f"first_frozen_{name}": f"of the {name.replace('_', ' ')}" for name in QUANTITIES},
    }.items()
}
Find = Callable[[Any, Any, Any, Any], Mapping[str, Array]]


class MatrixGradient(NamedTuple):
    """The gradient of one weight matrix, as the monitors need it.

    Args:
      noise: (rows, columns) gradient by noise coordinates or features; None if the matrix is not trained.
      signal: (rows,) gradient by coordinate e_1, None if it is not trained.
      nonzero: () whether the matrix is not 0.
    """

    noise: Array | None
    signal: Array | None
    nonzero: Array


def frozen(
    matrices: Sequence[MatrixGradient], used: Array, tie: Array, kernel: str, residual: Array | float
) -> dict[str, Array]:
    """Whether some gradient of each kind is exactly 0 although its formula is not.

        dL/dQ_l ~ p_i sum_(a<b) s_la s_lb (V_a - V_b)(K_a - K_b)        dL/dV_a = -y_i p_i w_i (r + sum_l s_la)
        dL/dK_a ~ p_i sum_(l,b) s_la s_lb (V_a - V_b) Q_l               (softmax attention; a signal's sums over i)

    p_i and the attention weights are positive, and random numbers are never equal. A 0 therefore means that every term
    has underflowed, except where a matrix is 0 (sigma_0 = 0) and where value votes tie. From that step on sign(0) = 0
    freezes the coordinate.

    Args:
      matrices: W_Q, W_K and the value vector, with the gradients that the optimizer sees.
      used: (columns,) which noise columns belong to an example with a weight.
      tie: () whether the value votes of the examples may cancel to the last bit.
      kernel: of the attention.
      residual: r, ().

    Returns:
      {quantity: () bool}; False for a matrix that is not trained.
    """
    queries, keys, values = (matrix.nonzero for matrix in matrices)
    if kernel == "gaussian":  # moves queries and keys towards each other
        queries = keys = queries | keys
    elif kernel == "uniform":  # moves neither: their gradients are 0 by formula
        queries = keys = jnp.zeros((), bool)
    attended = (queries & keys) | (residual != 0) if kernel == "linear" else jnp.ones((), bool)
    nonzero = {"query": values & keys, "key": values & queries, "value": attended}
    names = [name for name, matrix in zip(nonzero, matrices) if matrix.noise is not None]
    trained = [matrix for matrix in matrices if matrix.noise is not None]
    out = dict.fromkeys((f"{name}_{of}" for name in nonzero for of in ("noise", "signal")), jnp.zeros((), bool))
    if trained:
        # All matrices at once: each array costs every step some time.
        formula = jnp.stack([nonzero[name] for name in names])
        noise = jnp.stack([jnp.any(matrix.noise == 0, 0) for matrix in trained])
        signal = jnp.stack([jnp.any(matrix.signal == 0) for matrix in trained])
        of_noise, of_signal = formula & jnp.any(noise & used[None], 1), formula & signal
        for i, name in enumerate(names):
            out[f"{name}_noise"], out[f"{name}_signal"] = of_noise[i], of_signal[i]
    out["value_signal"] &= ~tie
    return out


def alarms(find: Find) -> dict[str, Callable[[Any, Any, Any, Any], Array]]:
    """The `watch` of a Task: a monitor of every gradient, and `first_frozen_step` for the first of them.

    Args:
      find: `(params, batch, hyper, gradient) -> {quantity: () bool}`.

    Returns:
      {name: monitor}.
    """
    find = jax.jit(find)  # seven monitors ask for it at one step: it is traced once

    def one(name: str) -> Callable[[Any, Any, Any, Any], Array]:
        return lambda params, batch, hyper, gradient: find(params, batch, hyper, gradient)[name]

    def some(params: Any, batch: Any, hyper: Any, gradient: Any) -> Array:
        return functools.reduce(jnp.logical_or, find(params, batch, hyper, gradient).values())

    return {"first_frozen_step": some, **{f"first_frozen_{name}": one(name) for name in QUANTITIES}}

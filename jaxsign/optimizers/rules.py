"""SignGD and its relatives as Optax transforms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsign.validation.values import real

Array = jax.Array
Numeric = float | Array
Schedule = Callable[[Array], Numeric]


def _rate(learning_rate: Numeric | Schedule) -> Numeric | Schedule:
    """The learning rate unchanged; a value that is neither a number, nor traced, nor a schedule is refused."""
    if not callable(learning_rate) and not isinstance(learning_rate, jax.core.Tracer):
        real("learning_rate", learning_rate, 0.0)
    return learning_rate


def sign_gd(learning_rate: Numeric | Schedule) -> optax.GradientTransformation:
    """SignGD, the paper's optimizer: Optax's `sign_sgd` under the paper's name.

        W <- W - learning_rate * sgn(g),   sgn(0) = 0,  sgn(NaN) = NaN

    XLA on CPU flushes subnormal numbers to 0, so there sgn(subnormal) = 0 as well.

    Args:
      learning_rate: number >= 0 or schedule `step -> number`; may be traced.

    Returns:
      An Optax transform.

    Raises:
      ValueError: for a concrete number outside its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> transform = sign_gd(0.5)
      >>> updates, _ = transform.update(jnp.array([3.0, 0.0, -1e-30]), transform.init(jnp.zeros(3)))
      >>> updates.tolist()
      [-0.5, -0.0, 0.5]

    References:
      arXiv 2410.04870, SignGD; Bernstein et al., arXiv 1802.04434.
    """
    return optax.sign_sgd(_rate(learning_rate))


def signum(learning_rate: Numeric | Schedule, beta: Numeric = 0.9) -> optax.GradientTransformation:
    """Signum, SignGD with momentum: Optax's `signum` under the paper's name.

        m <- beta m + (1-beta) g,   W <- W - learning_rate * sgn(m),   sgn(0) = 0,  sgn(NaN) = NaN

    Args:
      learning_rate: number >= 0 or schedule; may be traced.
      beta: momentum, in [0, 1); may be traced. beta = 0 is SignGD.

    Returns:
      An Optax transform.

    Raises:
      ValueError: for a concrete number outside its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> transform = signum(0.5, beta=0.0)
      >>> transform.update(jnp.array([3.0, -1.0]), transform.init(jnp.zeros(2)))[0].tolist()
      [-0.5, 0.5]

    References:
      Bernstein et al., arXiv 1802.04434.
    """
    if not isinstance(beta, jax.core.Tracer):
        real("beta", beta, 0.0, 1.0, open_high=True)
    return optax.signum(_rate(learning_rate), beta=beta)


def _elementwise(function: Callable[[Array], Array]) -> optax.GradientTransformation:
    """A stateless transform that maps every gradient element."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        return jax.tree.map(function, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_power(p: Numeric) -> optax.GradientTransformation:
    """Replaces every gradient element by a signed power: p = 0 is SignGD's direction, p = 1 is GD's.

        u(g) = |g|^p sgn(g),   u(0) = 0

    Args:
      p: number >= 0; may be traced.

    Returns:
      An Optax transform, homogeneous of degree p.

    Raises:
      ValueError: for a concrete p outside [0, inf).

    Examples:
      >>> import jax.numpy as jnp
      >>> transform = scale_by_power(0.5)
      >>> transform.update(jnp.array([4.0, -9.0, 0.0]), transform.init(jnp.zeros(3)))[0].tolist()
      [2.0, -3.0, 0.0]

    References:
      The family between SignGD and GD for which the feature-space reduction holds.
    """
    if not isinstance(p, jax.core.Tracer):
        real("p", p, low=0.0)
    return _elementwise(lambda g: jnp.sign(g) * jnp.abs(g) ** jnp.asarray(p, g.dtype))


def scale_by_smooth_sign(temperature: Numeric) -> optax.GradientTransformation:
    """Replaces every gradient element by a smooth sign that is linear below the temperature.

        u(g) = tanh(g / temperature)

    Args:
      temperature: number > 0; may be traced. Towards 0 this is SignGD.

    Returns:
      An Optax transform, odd but not homogeneous.

    Raises:
      ValueError: for a concrete temperature outside (0, inf).

    Examples:
      >>> import jax.numpy as jnp
      >>> transform = scale_by_smooth_sign(1e-3)
      >>> transform.update(jnp.array([2.0, 0.0]), transform.init(jnp.zeros(2)))[0].tolist()
      [1.0, 0.0]
    """
    if not isinstance(temperature, jax.core.Tracer):
        real("temperature", temperature, low=0.0, open_low=True)
    return _elementwise(lambda g: jnp.tanh(g / jnp.asarray(temperature, g.dtype)))


def power_gd(learning_rate: Numeric | Schedule, p: Numeric = 0.5) -> optax.GradientTransformation:
    """Descent along the signed power of the gradient, W <- W - learning_rate |g|^p sgn(g).

    Args:
      learning_rate: number >= 0 or schedule; may be traced.
      p: number >= 0; 0 is SignGD, 1 is GD; may be traced.

    Returns:
      An Optax transform.

    Raises:
      ValueError: for a concrete number outside its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> transform = power_gd(1.0, p=1.0)
      >>> transform.update(jnp.array([4.0]), transform.init(jnp.zeros(1)))[0].tolist()
      [-4.0]
    """
    return optax.chain(scale_by_power(p), optax.scale_by_learning_rate(_rate(learning_rate)))


def smooth_sign_gd(learning_rate: Numeric | Schedule, temperature: Numeric = 1e-6) -> optax.GradientTransformation:
    """Descent along a smooth sign, W <- W - learning_rate tanh(g / temperature).

    Args:
      learning_rate: number >= 0 or schedule; may be traced.
      temperature: number > 0; may be traced.

    Returns:
      An Optax transform.

    Raises:
      ValueError: for a concrete number outside its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> transform = smooth_sign_gd(0.5, temperature=1e-6)
      >>> transform.update(jnp.array([4.0]), transform.init(jnp.zeros(1)))[0].tolist()
      [-0.5]
    """
    return optax.chain(scale_by_smooth_sign(temperature), optax.scale_by_learning_rate(_rate(learning_rate)))


#: Named families and keywords they run with: one contract test goes through all of them.
FAMILIES: dict[str, tuple[Callable[..., optax.GradientTransformation], dict[str, float]]] = {
    "sign_gd": (sign_gd, {"learning_rate": 1e-4}),
    "signum": (signum, {"learning_rate": 1e-4, "beta": 0.9}),
    "power_gd": (power_gd, {"learning_rate": 1e-3, "p": 0.5}),
    "smooth_sign_gd": (smooth_sign_gd, {"learning_rate": 1e-4, "temperature": 1e-5}),
    "adam": (optax.adam, {"learning_rate": 1e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-15}),
    "adamw": (optax.adamw, {"learning_rate": 1e-4, "weight_decay": 1e-2}),
    "rmsprop": (optax.rmsprop, {"learning_rate": 1e-4, "decay": 0.9}),
    "lion": (optax.lion, {"learning_rate": 1e-4, "weight_decay": 0.0}),
    "sgd": (optax.sgd, {"learning_rate": 0.3}),
    "momentum": (optax.sgd, {"learning_rate": 0.03, "momentum": 0.9}),
}

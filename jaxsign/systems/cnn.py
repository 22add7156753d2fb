"""A two-layer CNN on signal and sparse noise (arXiv 2510.11354): what do mini-batches and weight decay change for Adam?

Two patches an example, filters shared by both, activation [x]_+^q, logistic loss. In this order: the problem and its
numbers, examples and mini-batches, the filters, the Task.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.systems import system
from jaxsign.systems.two_layer.data import example_keys, fair_sign, subsets
from jaxsign.systems.two_layer.model import logistic_loss
from jaxsign.training.task import Task
from jaxsign.validation.values import instance, positive_int, real

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class CnnProblem:
    """Everything that fixes the shapes of the two-layer CNN and of its data. Frozen and hashable.

    Args:
      n: training examples, int >= 1.
      d: dimension of a patch, int >= 2.
      s: coordinates of a noise patch that are drawn, int in [1, d-1].
      width: filters of each class, int >= 1.
      q: power of the activation [x]_+^q, int >= 1.
      batch_size: examples of a mini-batch, int in [1, n], drawn anew at every step, every subset equally likely; None
        is the full batch.
      n_test: test examples, int >= 1.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> CnnProblem(batch_size=2).q
      3

    References:
      arXiv 2510.11354: n, d, s and q are published; width and n_test are reconstructed.
    """

    n: int = 200
    d: int = 1000
    s: int = 100
    width: int = 20
    q: int = 3
    batch_size: int | None = None
    n_test: int = 1000

    def __post_init__(self) -> None:
        for name in ("n", "d", "s", "width", "q", "n_test"):
            object.__setattr__(self, name, positive_int(name, getattr(self, name), minimum=2 if name == "d" else 1))
        if self.s > self.d - 1:
            raise ValueError(f"s must be an int in [1, d-1] = [1, {self.d - 1}], got s={self.s}")
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", positive_int("batch_size", self.batch_size))
            if self.batch_size > self.n:
                raise ValueError(
                    f"batch_size must be an int in [1, n] = [1, {self.n}], got batch_size={self.batch_size}"
                )


@dataclasses.dataclass(frozen=True)
class CnnHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      sigma_p: standard deviation of a drawn coordinate of the noise, finite, >= 0.
      alpha: feature noise, the share of the signal that the noise patch holds with the opposite sign, finite.
      mu: norm of the signal patch, finite, > 0.
      sigma_0: standard deviation of the initial filters, finite, >= 0.

    Examples:
      >>> CnnHyper(alpha=0.0).sigma_p
      0.1

    References:
      arXiv 2510.11354: sigma_p and alpha are published; mu and sigma_0 are reconstructed.
    """

    sigma_p: Any = 0.1
    alpha: Any = 0.2
    mu: Any = 1.0
    sigma_0: Any = 0.01

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("sigma_p", "mu", "sigma_0"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number, low=0.0, open_low=name == "mu")
        for number in np.ravel(self.alpha).tolist():
            real("alpha", number)


jax.tree_util.register_dataclass(CnnHyper, data_fields=["sigma_p", "alpha", "mu", "sigma_0"], meta_fields=[])


class Examples(NamedTuple):
    """Examples of two patches.

    Args:
      y: (n,) labels, +-1.
      mu: (), norm of the signal patch y mu e_1.
      noise: (n, d) noise patches, feature noise included.
    """

    y: Array
    mu: Array
    noise: Array

    @property
    def x(self) -> Array:
        """Inputs, (n, 2, d): the signal patch y mu e_1, then the noise patch; their order has no effect."""
        signal = jnp.zeros_like(self.noise).at[:, 0].set(self.y * self.mu)
        return jnp.stack([signal, self.noise], axis=1)


def sample(key: Array, count: int, problem: CnnProblem, hyper: CnnHyper) -> Examples:
    """Draws examples: a signal patch, and a noise patch that also holds some of the signal with the opposite sign.

        x = [y mu e_1, xi - alpha y mu e_1],   xi ~ N(0, sigma_p^2) on s coordinates drawn from all but the first

    Args:
      key: a key.
      count: how many.
      problem: shapes.
      hyper: sigma_p, alpha and mu, may be traced.

    Returns:
      Examples. Draws of an example do not depend on how many there are, nor on hyper.

    Examples:
      >>> sample(jax.random.key(0), 5, CnnProblem(d=8, s=2), CnnHyper()).x.shape
      (5, 2, 8)

    References:
      The data model of arXiv 2410.04870 with the feature noise of arXiv 2510.11354; labels of equal probability, one
      patch each of signal and noise and fresh test examples of the same law are reconstructed.
    """
    keys = jax.vmap(lambda k: jax.random.split(k, 3))(example_keys(key, count))
    y = fair_sign(jax.vmap(jax.random.uniform)(keys[:, 0]))
    places = 1 + subsets(keys[:, 1], problem.d - 1, problem.s)
    values = hyper.sigma_p * jax.vmap(lambda k: jax.random.normal(k, (problem.s,)))(keys[:, 2])
    mu = jnp.asarray(hyper.mu, y.dtype)
    noise = jnp.zeros((count, problem.d), y.dtype).at[:, 0].set(-hyper.alpha * y * mu)
    return Examples(y, mu, noise.at[jnp.arange(count)[:, None], places].set(values))


def mini_batch(key: Array, size: int, data: Examples) -> Examples:
    """B of the examples, every subset equally likely.

    Args:
      key: key of the step.
      size: B, int in [1, n].
      data: the training examples.

    Returns:
      Examples (B,).

    Examples:
      >>> data = sample(jax.random.key(0), 5, CnnProblem(d=8, s=2), CnnHyper())
      >>> mini_batch(jax.random.key(1), 2, data).noise.shape
      (2, 8)
    """
    chosen = subsets(key[None], data.y.shape[0], size)[0]
    return Examples(data.y[chosen], data.mu, data.noise[chosen])


class CnnParams(NamedTuple):
    """Filters of both classes.

    Args:
      w: (2, width, d), w[0] of the label +1, w[1] of -1.
    """

    w: Array


def init(key: Array, problem: CnnProblem, hyper: CnnHyper) -> CnnParams:
    """Draws every weight i.i.d. N(0, sigma_0^2).

    Examples:
      >>> init(jax.random.key(0), CnnProblem(), CnnHyper()).w.shape
      (2, 20, 1000)

    References:
      Reconstructed.
    """
    return CnnParams(hyper.sigma_0 * jax.random.normal(key, (2, problem.width, problem.d)))


def logits(params: CnnParams, data: Examples, q: int) -> Array:
    """The difference of both classes' outputs, (n,).

        F = F_1 - F_{-1},   F_j = sum_r [<w_{j,r}, y mu e_1>]_+^q + [<w_{j,r}, xi>]_+^q

    Args:
      params: CnnParams.
      data: Examples.
      q: power of the activation.

    Examples:
      >>> data = Examples(jnp.ones(1), jnp.asarray(2.0), jnp.array([[0.0, 3.0]]))
      >>> logits(CnnParams(jnp.array([[[1.0, 0.0]], [[0.0, -1.0]]])), data, 3).tolist()
      [8.0]

    References:
      arXiv 2510.11354 for the activation; both patches in one sum and second-layer weights +-1 are reconstructed.
    """
    w = params.w.reshape(-1, params.w.shape[2])
    on_signal = (data.y * data.mu)[:, None] * w[None, :, 0]
    on_noise = jnp.matmul(data.noise, w.T, precision=HIGHEST)
    active = jax.nn.relu(on_signal) ** q + jax.nn.relu(on_noise) ** q
    out = jnp.sum(active.reshape(len(data.y), 2, -1), axis=2)
    return out[:, 0] - out[:, 1]


ATTRS = {
    "train_loss": {"long_name": "training loss", "units": "nat"},
    "train_error": {"long_name": "training error", "units": "1"},
    "signal": {"long_name": "largest response of a class's filters to its own signal, mean of both", "units": "1"},
    "counter_signal": {"long_name": "the same to the other class's signal", "units": "1"},
    "memorised": {"long_name": "largest response of the label's filters to its noise patch, mean", "units": "1"},
    "test_loss": {"long_name": "test loss", "units": "nat"},
    "test_error": {"long_name": "test error", "units": "1"},
}


@system(CnnProblem, CnnHyper)
@functools.cache
def two_layer_cnn(problem: CnnProblem) -> Task:
    """A two-layer CNN on signal and sparse noise, full-batch or with mini-batches.

        L = mean_i log(1 + exp(-y_i F(x_i)))

    The observables `signal`, `counter_signal` and `memorised` are mean_j max_r <w_{j,r}, j mu e_1>,
    mean_j max_r <w_{j,r}, -j mu e_1> and mean_i max_r <w_{y_i,r}, xi_i>. Weight decay is the optimizer's: decoupled in
    `optax.adamw`; a penalty (lambda/2) ||w||^2 of the loss is `optax.add_decayed_weights(lambda)` in front of one.

    Args:
      problem: a CnnProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no CnnProblem.

    Examples:
      >>> import optax, jaxsign as js
      >>> task = two_layer_cnn(CnnProblem(n=8, d=30, s=4, width=3, batch_size=2, n_test=10))
      >>> run = js.train(jax.random.key(0), task, CnnHyper(), optax.adam(1e-2), steps=20, record=10)
      >>> run.trace["test_error"].shape
      (3,)

    References:
      arXiv 2510.11354 (Tang, Zhang, Cao and Zou); what is published and what reconstructed is said field by field.
    """
    instance("problem", problem, CnnProblem)

    def loss(params: CnnParams, batch: Examples, hyper: CnnHyper) -> Array:
        del hyper
        return jnp.mean(logistic_loss(batch.y * logits(params, batch, problem.q)))

    def measured(split: str, params: CnnParams, data: Examples) -> dict[str, Array]:
        margin = data.y * logits(params, data, problem.q)
        return {f"{split}_loss": jnp.mean(logistic_loss(margin)), f"{split}_error": jnp.mean(margin <= 0)}

    def observe(params: CnnParams, data: Examples, test: Examples | None, hyper: CnnHyper) -> dict[str, Array]:
        del hyper
        toward = jnp.array([[1.0], [-1.0]], data.mu.dtype) * data.mu * params.w[:, :, 0]
        on_noise = jnp.einsum("nd,jrd->njr", data.noise, params.w, precision=HIGHEST).max(axis=2)
        return {
            **measured("train", params, data),
            "signal": jnp.mean(toward.max(axis=1)),
            "counter_signal": jnp.mean((-toward).max(axis=1)),
            "memorised": jnp.mean(jnp.where(data.y > 0, on_noise[:, 0], on_noise[:, 1])),
            **({} if test is None else measured("test", params, test)),
        }

    size = problem.batch_size
    return Task(
        sample=lambda key, hyper, shared: sample(key, problem.n, problem, hyper),
        sample_test=lambda key, hyper, shared: sample(key, problem.n_test, problem, hyper),
        init=lambda key, data, hyper: init(key, problem, hyper),
        loss=loss,
        observe=observe,
        batch=None if size is None else lambda key, data, hyper: mini_batch(key, size, data),
        validate=lambda hyper: instance("hyper", hyper, CnnHyper).validate(),
        attrs=ATTRS,
        problem=problem,
        name="two_layer_cnn",
    )

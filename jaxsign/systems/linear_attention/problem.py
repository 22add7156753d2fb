"""RegressionProblem and RegressionHyper: linear attention on in-context regression, what each number means."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxsign.validation.values import known, positive_int, real

INPUTS = ("normal", "gamma", "spherical")
FORMS = ("sparse", "full")
ATTENTIONS = ("linear", "softmax")


@dataclasses.dataclass(frozen=True)
class RegressionProblem:
    """Everything that fixes the shapes and the law of in-context linear regression. Frozen and hashable.

    Args:
      d: dimension of an input x_i, int >= 1.
      n_context: examples (x_i, y_i) in a prompt, int >= 1.
      depth: attention layers L, int >= 1.
      inputs: "normal" x ~ N(0, I); "gamma" x = sqrt(Gamma(shape, scale)) times a uniform direction; "spherical" a
        uniform direction.
      form: "sparse" trains P = diag(P', 1) and Q = diag(Q', 0) with P', Q' in R^(d x d); "full" trains all of both.
      attention: "linear", or "softmax" over the keys of the scores.
      batch_size: fresh prompts of a step, int >= 1.
      n_eval: prompts of the fixed sample that losses and smoothness are measured on, int >= 1.
      n_hessian: how many of these whole Hessians are measured on, the first ones, int >= 1; all if there are fewer.
      noise_draws: fresh batches whose gradient noise is measured at every test step, int >= 0; 0: none.
      noise_mean: prompts that the mean gradient is estimated from, int >= 1.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> RegressionProblem(n_context=5).width
      6

    References:
      arXiv 2310.01082, settings 1-3 and the spherical one.
    """

    d: int = 5
    n_context: int = 20
    depth: int = 3
    inputs: str = "normal"
    form: str = "sparse"
    attention: str = "linear"
    batch_size: int = 1000
    n_eval: int = 1000
    n_hessian: int = 250
    noise_draws: int = 0
    noise_mean: int = 100_000

    def __post_init__(self) -> None:
        for name in ("d", "n_context", "depth", "batch_size", "n_eval", "n_hessian", "noise_draws", "noise_mean"):
            number = positive_int(name, getattr(self, name), minimum=0 if name == "noise_draws" else 1)
            object.__setattr__(self, name, number)
        known("inputs", self.inputs, INPUTS)
        known("form", self.form, FORMS)
        known("attention", self.attention, ATTENTIONS)

    @property
    def width(self) -> int:
        """Rows of a prompt matrix, d + 1."""
        return self.d + 1


@dataclasses.dataclass(frozen=True)
class RegressionHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      init_std: standard deviation of every initial weight, finite, >= 0.
      gamma_shape: k of the squared length of "gamma" inputs, finite, > 0.
      gamma_scale: theta of it, finite, > 0; k * theta is the mean squared length.

    Examples:
      >>> RegressionHyper().init_std
      0.05

    References:
      arXiv 2310.01082.
    """

    init_std: Any = 0.05
    gamma_shape: Any = 0.1
    gamma_scale: Any = 10.0

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("init_std", "gamma_shape", "gamma_scale"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number, low=0.0, open_low=name != "init_std")


jax.tree_util.register_dataclass(
    RegressionHyper, data_fields=["init_std", "gamma_shape", "gamma_scale"], meta_fields=[]
)

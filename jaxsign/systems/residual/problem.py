"""ResidualProblem and ResidualHyper: softmax attention and a ReLU network with residuals, what each number means."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxsign.validation.values import positive_int, real


@dataclasses.dataclass(frozen=True)
class ResidualProblem:
    """Everything that fixes the shapes of a transformer with residuals on one sequence. Frozen and hashable.

    Args:
      n: tokens, the rows of X, int >= 1; the contraction bound says something for n <= d.
      d: dimension of a token and of the residual stream, int >= 1.
      d_ff: hidden units of the feed-forward network, int >= 1.
      d_out: outputs of a token, int >= 1.
      depth: layers, each of attention and feed-forward network, int >= 1.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> ResidualProblem(n=24).ranks
      24

    References:
      Model of arXiv 2506.05249 in our words; the sizes are reconstructed.
    """

    n: int = 16
    d: int = 32
    d_ff: int = 64
    d_out: int = 8
    depth: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, positive_int(field.name, getattr(self, field.name)))

    @property
    def ranks(self) -> int:
        """Singular values of a token matrix, min(n, d)."""
        return min(self.n, self.d)


@dataclasses.dataclass(frozen=True)
class ResidualHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      attention_residual: weight of the residual around the attention of every layer, finite; 1 with, 0 without.
      ffn_residual: the same around every feed-forward network.
      temperature: divides the attention scores beside sqrt(d), finite, > 0; high ones make attention uniform.

    Examples:
      >>> ResidualHyper(ffn_residual=0.0).temperature
      1.0

    References:
      arXiv 2506.05249; weights and temperature are ours, to ablate the residuals and the softmax one by one.
    """

    attention_residual: Any = 1.0
    ffn_residual: Any = 1.0
    temperature: Any = 1.0

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("attention_residual", "ffn_residual"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number)
        for number in np.ravel(self.temperature).tolist():
            real("temperature", number, low=0.0, open_low=True)


jax.tree_util.register_dataclass(
    ResidualHyper, data_fields=["attention_residual", "ffn_residual", "temperature"], meta_fields=[]
)

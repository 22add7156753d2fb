"""KernelProblem and KernelHyper: one attention layer with a choice of kernel, what each number means."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxsign.systems.two_layer.problem import KERNELS
from jaxsign.validation.values import known, positive_int, real

TARGETS = ("random", "retrieval")


@dataclasses.dataclass(frozen=True)
class KernelProblem:
    """Everything that fixes the shapes and the law of multi-head attention with a kernel. Frozen and hashable.

    Args:
      samples: training samples N, int >= 1.
      tokens: tokens of a sample n, int >= 1.
      embed: embedding dimension D of a token, int >= 1; >= 2 + d_out for "retrieval".
      d: head size, int >= 1.
      heads: number of heads H, int >= 1.
      d_out: output width, int >= 1.
      kernel: "softmax", "gaussian" (not normalised) or "linear".
      targets: "random" targets, to be memorised; "retrieval": every token must report the content of the one token
        that carries a marker, which fresh samples test.
      n_test: fresh samples of "retrieval", int >= 1.
      plane_points: grid points of a side of the landscape's plane, int >= 3.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> KernelProblem(samples=8, tokens=4, embed=16).fits_all
      False

    References:
      arXiv 2411.07538, model; these sizes are reconstructed.
    """

    samples: int = 8
    tokens: int = 4
    embed: int = 64
    d: int = 4
    heads: int = 1
    d_out: int = 1
    kernel: str = "softmax"
    targets: str = "random"
    n_test: int = 256
    plane_points: int = 41

    def __post_init__(self) -> None:
        for name in ("samples", "tokens", "embed", "d", "heads", "d_out", "n_test", "plane_points"):
            number = positive_int(name, getattr(self, name), minimum=3 if name == "plane_points" else 1)
            object.__setattr__(self, name, number)
        known("kernel", self.kernel, KERNELS)
        known("targets", self.targets, TARGETS)
        if self.targets == "retrieval":
            positive_int("embed", self.embed, minimum=2 + self.d_out)

    @property
    def rows(self) -> int:
        """Target rows, N n."""
        return self.samples * self.tokens

    @property
    def fits_all(self) -> bool:
        """Whether W_V alone can fit all targets in every head's reach: H D >= N n and d_out <= d.

        For one head this is necessary and sufficient; several heads reach every target also with d < d_out <= H d if D
        alone is N n.
        """
        return self.heads * self.embed >= self.rows and self.d_out <= self.d


@dataclasses.dataclass(frozen=True)
class KernelHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      init_scale: standard deviation g of the entries of W_Q and W_K, finite, >= 0.
      c_scale: the kernel constant c in units of 1/(2 sqrt(d)), finite, > 0.
      target_std: standard deviation of "random" targets, finite, > 0.

    Examples:
      >>> KernelHyper().c_scale
      1.0

    References:
      arXiv 2411.07538, kernels; these values are reconstructed.
    """

    init_scale: Any = 0.5
    c_scale: Any = 1.0
    target_std: Any = 0.5

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("init_scale", "c_scale", "target_std"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number, low=0.0, open_low=name != "init_scale")


jax.tree_util.register_dataclass(KernelHyper, data_fields=["init_scale", "c_scale", "target_std"], meta_fields=[])

"""Which numbers fix the two-layer system, what does each mean, and which values are legal?"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import numpy as np

from jaxsign.validation.values import field_names, known, positive_int, real

SUPPORTS = ("independent", "disjoint")
OVERLAPS = ("exact", "none")
KERNELS = ("softmax", "gaussian", "linear", "uniform")
NOISES = ("gaussian", "laplace", "student_t")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything that fixes the shapes of the signal + sparse-noise problem. Frozen and hashable.

    Args:
      n: training examples, int >= 1.
      d: dimension of a patch, int >= 2; coordinate 0 carries the signal.
      s: non-zero coordinates of a noise patch, int in [1, d-1].
      m_k: rows of W_Q and W_K per head, int >= 1.
      m_v: rows of W_V per sign, int >= 1.
      heads: attention heads, each with its own W_Q and W_K, outputs summed; int >= 1.
      context: patches per example, one signal and context-1 noise patches; int >= 2.
      n_test: test examples, int >= 1.
      supports: "independent" draws every noise support on its own; "disjoint" shares no coordinate between
        training patches and needs n*(context-1)*s <= d-1.
      overlap: how fresh test noise meets the training supports: "exact" is the data law at finite d; "none" draws
        test supports off all training supports, the limit d -> infinity, and needs s further free coordinates.
      batch_size: examples of a mini-batch, int in [1, n], drawn anew at every step, every subset equally likely; None
        is the full batch.
      kernel: of the attention, from query q and key k: "softmax" of <q, k> over the keys, the paper's; "gaussian"
        exp(-||q - k||^2 / 2), not normalised; "linear" <q, k>; "uniform" 1/context, the control whose attention never
        moves.
      noise: law of the non-zero noise coordinates, all of mean 0 and variance sigma_p^2: "gaussian", the paper's;
        "laplace", kurtosis 6; "student_t" with 3 degrees of freedom, whose fourth moment is infinite.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> Problem(n=20, d=2000, s=40, m_k=20, m_v=20).rows
      20

    References:
      arXiv 2410.04870, data model and model definition.
    """

    n: int
    d: int
    s: int
    m_k: int
    m_v: int
    heads: int = 1
    context: int = 2
    n_test: int = 1000
    supports: str = "independent"
    overlap: str = "exact"
    batch_size: int | None = None
    kernel: str = "softmax"
    # Omitted from a sweep's definition at its default, so that results stored without the field are still recognised.
    noise: str = dataclasses.field(default="gaussian", metadata={"added": True})

    def __post_init__(self) -> None:
        minimum = {"d": 2, "context": 2}
        for name in ("n", "d", "s", "m_k", "m_v", "heads", "context", "n_test"):
            number = positive_int(name, getattr(self, name), minimum.get(name, 1))
            object.__setattr__(
                self, name, number
            )  # NumPy ints become Python ints, so that equal problems have equal hashes
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", positive_int("batch_size", self.batch_size))
            if self.batch_size > self.n:
                raise ValueError(
                    f"batch_size must be an int in [1, n] = [1, {self.n}], got batch_size={self.batch_size}"
                )
        known("supports", self.supports, SUPPORTS)
        known("overlap", self.overlap, OVERLAPS)
        known("kernel", self.kernel, KERNELS)
        known("noise", self.noise, NOISES)
        if self.s > self.d - 1:
            raise ValueError(f"s must be an int in [1, d-1] = [1, {self.d - 1}], got s={self.s}")
        used = self.n * self.patches * self.s
        if self.supports == "disjoint" and used > self.d - 1:
            raise ValueError(
                f'supports="disjoint" needs n*(context-1)*s <= d-1 = {self.d - 1}, got n*(context-1)*s={used}'
            )
        if self.overlap == "none" and used + self.s > self.d - 1:
            raise ValueError(
                f'overlap="none" needs (n*(context-1)+1)*s <= d-1 = {self.d - 1} so that test noise finds s free '
                f"coordinates, got {used + self.s}"
            )

    @property
    def patches(self) -> int:
        """Noise patches per example, context - 1."""
        return self.context - 1

    @property
    def rows(self) -> int:
        """Rows of W_Q and of W_K over all heads, heads * m_k."""
        return self.heads * self.m_k


@dataclasses.dataclass(frozen=True)
class Hyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    It checks nothing when built, since its leaves may be tracers: `validate` runs on the host.

    Args:
      sigma_p: standard deviation of a non-zero noise coordinate, finite, >= 0.
      mu: norm of the signal patch, finite, > 0.
      sigma_0: standard deviation of every initial weight, finite, >= 0.
      alpha: feature noise, xi <- xi - alpha*y*mu*e_1, finite.
      label_noise: probability that a training label is flipped, in [0, 1].
      residual: weight r of a residual path around the attention, X S + r X, finite; 0 in the paper's model.

    Examples:
      >>> Hyper(sigma_p=2.0, mu=1.0, sigma_0=3e-3).alpha
      0.0

    References:
      arXiv 2410.04870, data model; alpha is the feature noise of a follow-up of the same group.
    """

    sigma_p: Any
    mu: Any = 1.0
    sigma_0: Any = 3e-3
    alpha: Any = 0.0
    label_noise: Any = 0.0
    residual: Any = 0.0

    #: Derived axes and the field that each one sets.
    derived: ClassVar[dict[str, str]] = {"snr": "sigma_p"}

    def validate(self, problem: Problem) -> None:
        """Checks every number (scalars or arrays of axis values) on the host.

        Args:
          problem: the problem these numbers belong to.

        Raises:
          ValueError: naming field, value and legal range.

        Examples:
          >>> Hyper(sigma_p=2.0).validate(Problem(n=2, d=9, s=2, m_k=1, m_v=1))
        """
        del problem  # no range depends on the shapes
        ranges: dict[str, dict[str, Any]] = {
            "sigma_p": {"low": 0.0},
            "mu": {"low": 0.0, "open_low": True},
            "sigma_0": {"low": 0.0},
            "alpha": {},
            "label_noise": {"low": 0.0, "high": 1.0},
            "residual": {},
        }
        for name, legal in ranges.items():
            value = getattr(self, name)
            for number in np.ravel(value) if np.ndim(value) else [value]:
                real(name, number, **legal)

    def with_axis(self, problem: Problem, name: str, value: Any) -> "Hyper":
        """A new Hyper with one axis set: a field by its name, or "snr" through sigma_p = mu / (snr sqrt(s)).

        Args:
          problem: gives the s of a derived axis.
          name: a field of Hyper or "snr".
          value: scalar.

        Returns:
          A new Hyper; this one is unchanged.

        Raises:
          ValueError: for an unknown name or an snr outside (0, inf).

        Examples:
          >>> problem = Problem(n=2, d=9, s=4, m_k=1, m_v=1)
          >>> Hyper(sigma_p=2.0, mu=1.0).with_axis(problem, "snr", 0.25).sigma_p
          2.0
        """
        known("axis", name, [*field_names(Hyper), *Hyper.derived])
        if name == "snr":
            if not isinstance(value, jax.core.Tracer):
                real("snr", value, low=0.0, open_low=True)
            return dataclasses.replace(self, sigma_p=self.mu / (value * math.sqrt(problem.s)))
        return dataclasses.replace(self, **{name: value})

    @classmethod
    def from_snr(cls, problem: Problem, snr: float, vary: str = "sigma_p", **fields: float) -> "Hyper":
        """A Hyper at a signal-to-noise ratio, SNR = mu / (sigma_p sqrt(s)).

        The two values of `vary` are different experiments: the change (mu, sigma_p, sigma_0, eta) -> (c mu, c sigma_p,
        sigma_0/c, eta/c) leaves SignGD's run unchanged, but a change of mu or sigma_p alone does not.

        Args:
          problem: gives s.
          snr: finite, > 0.
          vary: "sigma_p" keeps mu (default 1), "mu" keeps sigma_p.
          **fields: the other fields of Hyper.

        Returns:
          The Hyper.

        Raises:
          ValueError: for an illegal snr, an unknown `vary`, or a field given that `vary` computes.

        Examples:
          >>> Hyper.from_snr(Problem(n=2, d=9, s=4, m_k=1, m_v=1), 0.25).sigma_p
          2.0
        """
        real("snr", snr, low=0.0, open_low=True)
        known("vary", vary, ("sigma_p", "mu"))
        for name in fields:
            known("Hyper field", name, field_names(cls))
        if vary in fields:
            raise ValueError(
                f"{vary} is computed from snr; give vary={'mu' if vary == 'sigma_p' else 'sigma_p'!r} instead"
            )
        if vary == "sigma_p":
            mu = fields.setdefault("mu", 1.0)
            return cls(sigma_p=mu / (snr * math.sqrt(problem.s)), **fields)
        if "sigma_p" not in fields:
            raise ValueError('vary="mu" needs sigma_p, a finite number in (0, inf)')
        return cls(mu=snr * fields["sigma_p"] * math.sqrt(problem.s), **fields)


jax.tree_util.register_dataclass(Hyper, data_fields=field_names(Hyper), meta_fields=[])

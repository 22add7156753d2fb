"""DeepProblem: the paper's data and a transformer of several layers, what each number means."""

import dataclasses

from jaxsign.systems.two_layer.problem import OVERLAPS, Problem
from jaxsign.validation.values import known, positive_int

SIZES = ("n", "d", "s", "m_k", "m_v", "depth", "heads", "hidden", "n_test")


@dataclasses.dataclass(frozen=True)
class DeepProblem:
    """Everything that fixes the shapes of a deep transformer on signal + sparse-noise data. Frozen and hashable.

    Its numbers are a `js.Hyper`, whose `residual` is the weight of the residual path around every sublayer.

    Args:
      n: training examples, int >= 1; each is one signal and one noise patch.
      d: dimension of a patch, int >= 2.
      s: non-zero coordinates of a noise patch, int in [1, d-1].
      m_k: rows of W_Q and W_K per head, in every layer, int >= 1.
      m_v: half the width of the residual stream, int >= 1: m_v rows are read out with +1/m_v, m_v with -1/m_v.
      depth: attention layers, int >= 1.
      heads: attention heads of a layer, each with its own W_Q and W_K, outputs summed; int >= 1.
      mlp: whether a ReLU network follows every attention.
      layer_norm: whether tokens are centred and scaled to unit variance in front of every sublayer but the first
        attention, which sees raw patches: centring would fill their zeros. Changes nothing at depth 1 without mlp.
      hidden: units of the ReLU network, int >= 1; of no matter without mlp.
      n_test: test examples, int >= 1.
      supports: "independent" or "disjoint", as in `js.Problem`.
      overlap: "exact" or "none", as in `js.Problem`.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> DeepProblem(depth=3).width
      40

    References:
      Data of arXiv 2410.04870, whose appendix has deeper transformers; their written-out form and all sizes are
      reconstructed.
    """

    n: int = 20
    d: int = 2000
    s: int = 40
    m_k: int = 20
    m_v: int = 20
    depth: int = 1
    heads: int = 1
    mlp: bool = False
    layer_norm: bool = False
    hidden: int = 40
    n_test: int = 1000
    supports: str = "independent"
    overlap: str = "exact"

    def __post_init__(self) -> None:
        for name in SIZES:
            object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        for name in ("mlp", "layer_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {name}={getattr(self, name)!r}")
        known("overlap", self.overlap, OVERLAPS)
        _ = self.data  # its own checks

    @property
    def width(self) -> int:
        """Width of the residual stream, 2 m_v."""
        return 2 * self.m_v

    @property
    def rows(self) -> int:
        """Rows of W_Q and of W_K over all heads of a layer, heads * m_k."""
        return self.heads * self.m_k

    @property
    def data(self) -> Problem:
        """The two-layer problem with the same data; at depth 1 without mlp it is the same system."""
        return Problem(
            n=self.n, d=self.d, s=self.s, m_k=self.m_k, m_v=self.m_v, heads=self.heads, n_test=self.n_test,
            supports=self.supports, overlap=self.overlap,
        )  # fmt: skip

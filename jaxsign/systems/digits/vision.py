"""A vision transformer of one layer, in Flax: patch embedding, positions, attention and MLP with residuals, mean."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.digits.problem import DigitsHyper, DigitsProblem

Array = jax.Array
#: Standard deviation of the initial position embedding.
POSITION = 0.02
#: Parameters whose initial values are scaled by sigma_0: attention begins almost uniform.
ATTENTION = ("query", "key")


@functools.cache
def network(classes: int, width: int, heads: int, hidden: int, dtype: Any) -> Any:
    """The Flax module of these sizes, for patches of any number and size.

        u = x W_E + b_E + P;   u <- u + Attn(LN(u)) W_O;   u <- u + MLP(LN(u));   z = mean_l LN(u_l) W_U + b_U

    with Attn = softmax(q k^T / sqrt(width/heads)) v for every head, MLP(u) = GELU(u W_1 + b_1) W_2 + b_2 (the tanh
    form), no bias in q, k and v, and LN with scale and shift.

    Args:
      classes: logits.
      width: of a token.
      heads: attention heads.
      hidden: width of the MLP.
      dtype: of the parameters.

    Returns:
      A Linen module: (n, tokens, d) -> (n, classes). Its parameters' top-level names are embed, position, norm_1,
      query, key, value, out, norm_2, hidden, shrink, norm_3, head.
    """
    from flax import linen as nn

    dense = functools.partial(nn.Dense, param_dtype=dtype, dtype=dtype, precision=jax.lax.Precision.HIGHEST)
    norm = functools.partial(nn.LayerNorm, param_dtype=dtype, dtype=dtype, force_float32_reductions=False)

    class VisionTransformer(nn.Module):
        """One pre-norm transformer layer on patches."""

        @nn.compact
        def __call__(self, x: Array) -> Array:
            u = dense(width, name="embed")(x)
            u = u + self.param("position", nn.initializers.normal(POSITION, dtype), (x.shape[-2], width))[None]
            normed = norm(name="norm_1")(u)
            unit = nn.initializers.normal(1.0)
            q, k = (dense(width, use_bias=False, kernel_init=unit, name=name)(normed) for name in ATTENTION)
            v = dense(width, use_bias=False, name="value")(normed)
            q, k, v = (part.reshape(*part.shape[:-1], heads, width // heads) for part in (q, k, v))
            mixed = nn.dot_product_attention(q, k, v, dtype=dtype, precision=jax.lax.Precision.HIGHEST)
            u = u + dense(width, name="out")(mixed.reshape(u.shape))
            wide = nn.gelu(dense(hidden, name="hidden")(norm(name="norm_2")(u)))
            u = u + dense(width, name="shrink")(wide)
            return dense(classes, name="head")(jnp.mean(norm(name="norm_3")(u), axis=-2))

    return VisionTransformer()


def _of(problem: DigitsProblem) -> Any:
    dtype = jnp.zeros(()).dtype
    return network(len(problem.classes), problem.width, problem.heads, problem.hidden, dtype)


def init(key: Array, problem: DigitsProblem, hyper: DigitsHyper) -> dict[str, Any]:
    """Draws the weights: N(0, sigma_0^2) for queries and keys, LeCun's normal law of variance 1/fan_in for all others.

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: sigma_0, may be traced.

    Returns:
      {name: Flax parameters}.

    Examples:
      >>> init(jax.random.key(0), DigitsProblem(), DigitsHyper())["embed"]["kernel"].shape
      (49, 16)
    """
    blank = jnp.zeros((1, problem.tokens, problem.patch**2))
    params = dict(_of(problem).init(key, blank)["params"])
    return params | {name: jax.tree.map(lambda w: hyper.sigma_0 * w, params[name]) for name in ATTENTION}


def logits(params: dict[str, Any], x: Array, problem: DigitsProblem) -> Array:
    """(n, classes) logits of patches (n, tokens, patch^2)."""
    return _of(problem).apply({"params": params}, x)

"""Which models classify noisy digits? The paper's, a vision transformer, and the nearest class mean as a reference."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.digits.data import Patches
from jaxsign.systems.digits.problem import DigitsHyper, DigitsProblem

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
#: Standard deviation of the initial position embedding.
POSITION = 0.02
#: Parameters whose initial values are scaled by sigma_0: attention begins almost uniform.
ATTENTION = ("query", "key")


class PatchParams(NamedTuple):
    """Weights of the two-layer attention model, for each pixel of an image.

    Args:
      w_q: (width, tokens, patch^2) queries, all heads.
      w_k: (width, tokens, patch^2) keys.
      w_v: (classes, width, tokens, patch^2) values.
    """

    w_q: Array
    w_k: Array
    w_v: Array


def init_two_layer(key: Array, problem: DigitsProblem, hyper: DigitsHyper) -> PatchParams:
    """Draws every weight i.i.d. N(0, sigma_0^2).

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: sigma_0, may be traced.

    Returns:
      PatchParams.

    Examples:
      >>> init_two_layer(jax.random.key(0), DigitsProblem(), DigitsHyper()).w_v.shape
      (2, 16, 16, 49)
    """
    one = (problem.width, problem.tokens, problem.patch**2)
    shapes = [one, one, (len(problem.classes), *one)]
    return PatchParams(*(hyper.sigma_0 * jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 3), shapes)))


def two_layer_logits(params: PatchParams, x: Array, heads: int) -> Array:
    """One logit per class.

        F_j = (1/m_v) sum_h sum_l 1^T W_{V,j} X softmax(X^T W_K^T W_Q x^(l))

    over the heads h and the query patches l. Token x^(l) is the image with all pixels but those of patch l set to 0, so
    that the weights depend on the position of a patch and patches share no coordinate; with uniform attention F is
    linear in the pixels. The cross-entropy of two logits is the logistic loss of F = F_1 - F_{-1}, so that with two
    classes this is the paper's model.

    Args:
      params: PatchParams.
      x: (n, tokens, patch^2) patches.
      heads: attention heads, a divisor of the rows of w_q.

    Returns:
      (n, classes).

    References:
      arXiv 2410.04870, model definition; more than two classes are an extension.
    """
    n, tokens, d = x.shape

    def split(weights: Array) -> Array:
        return jnp.einsum("nld,wld->lnw", x, weights, precision=HIGHEST).reshape(tokens, n, heads, -1)

    scores = jnp.einsum("qnhr,knhr->nhqk", split(params.w_q), split(params.w_k), precision=HIGHEST)
    received = jnp.sum(jax.nn.softmax(scores), axis=(1, 2))  # (n, tokens): attention on a patch by all queries
    attended = (received[:, :, None] * x).reshape(n, tokens * d)
    value = jnp.mean(params.w_v, axis=1).reshape(-1, tokens * d)
    return jnp.matmul(attended, value.T, precision=HIGHEST)


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

    dense = functools.partial(nn.Dense, param_dtype=dtype, dtype=dtype, precision=HIGHEST)
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
            mixed = nn.dot_product_attention(q, k, v, dtype=dtype, precision=HIGHEST)
            u = u + dense(width, name="out")(mixed.reshape(u.shape))
            wide = nn.gelu(dense(hidden, name="hidden")(norm(name="norm_2")(u)))
            u = u + dense(width, name="shrink")(wide)
            return dense(classes, name="head")(jnp.mean(norm(name="norm_3")(u), axis=-2))

    return VisionTransformer()


def _network_of(problem: DigitsProblem) -> Any:
    dtype = jnp.zeros(()).dtype
    return network(len(problem.classes), problem.width, problem.heads, problem.hidden, dtype)


def init_vit(key: Array, problem: DigitsProblem, hyper: DigitsHyper) -> dict[str, Any]:
    """Draws the weights: N(0, sigma_0^2) for queries and keys, LeCun's normal of variance 1/fan_in for all others.

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: sigma_0, may be traced.

    Returns:
      {name: Flax parameters}.

    Examples:
      >>> init_vit(jax.random.key(0), DigitsProblem(), DigitsHyper())["embed"]["kernel"].shape
      (49, 16)
    """
    blank = jnp.zeros((1, problem.tokens, problem.patch**2))
    params = dict(_network_of(problem).init(key, blank)["params"])
    return params | {name: jax.tree.map(lambda w: hyper.sigma_0 * w, params[name]) for name in ATTENTION}


def vit_logits(params: dict[str, Any], x: Array, problem: DigitsProblem) -> Array:
    """(n, classes) logits of patches (n, tokens, patch^2)."""
    return _network_of(problem).apply({"params": params}, x)


def class_mean_scores(train: Patches, x: Array, classes: int) -> Array:
    """Scores whose largest one belongs to the nearest mean of a class's training images.

        score_c = <m_c, x> - ||m_c||^2 / 2,   m_c the mean of the training images of class c

    Args:
      train: Patches of the training images.
      x: (n, tokens, patch^2) images.
      classes: number of classes.

    Returns:
      (n, classes).

    Examples:
      >>> train = Patches(jnp.array([[[0.0]], [[2.0]], [[4.0]]]), jnp.array([0, 1, 1]))
      >>> class_mean_scores(train, jnp.array([[[1.0]], [[2.0]]]), 2).tolist()
      [[0.0, -1.5], [0.0, 1.5]]
    """
    one = jax.nn.one_hot(train.y, classes, dtype=x.dtype)
    means = jnp.matmul(one.T, train.x.reshape(len(train.y), -1), precision=HIGHEST) / jnp.sum(one, axis=0)[:, None]
    inner = jnp.matmul(x.reshape(len(x), -1), means.T, precision=HIGHEST)
    return inner - (jnp.sum(means * means, axis=1) / 2)[None]


def one_step_margins(images: Array, labels: Array, noise: Array) -> tuple[Array, Array]:
    """Mean over standard deviation of the test margin after the first step of SignGD and of GD, attention uniform.

        SignGD, w = sgn(sum_i y_i x_i):   ||mu||_1 / (sigma sqrt(p))
        GD,     w = sum_i y_i x_i:        sqrt(n) ||mu||_2^2 / (sigma^2 sqrt(p))

    with mu half the difference of the classes' mean images, and p pixels of noise of standard deviation sigma, each
    shared by all n images and outside the support of mu; differences between images of a class are neglected. If the
    images are scaled by s, the first number is scaled by s and the second by s^2: for s below
    sigma ||mu||_1 / (sqrt(n) ||mu||_2^2) SignGD has the smaller error.

    Args:
      images: (n, 28, 28) training images without noise.
      labels: (n,) class index, 0 or 1, as many of each.
      noise: (n, 28, 28) their noise, 0 outside the border.

    Returns:
      Both numbers; the error is Phi(-number).

    With test noise of another standard deviation sigma_t both numbers are multiplied by sigma / sigma_t. Without
    training noise the law knows no weights of the border, and is NaN.

    References:
      Derived here, after the overlap laws of `jaxsign.theory`, for noise that all examples share.
    """
    n = labels.shape[0]
    one = jnp.where(labels == 0, 1.0, -1.0).astype(images.dtype)
    mu = jnp.tensordot(one, images, 1, precision=HIGHEST) / n
    pixels = jnp.sum(jnp.any(noise != 0, axis=0))
    power = jnp.sum(noise * noise) / n  # sigma^2 p
    squared = jnp.sum(mu * mu)
    return jnp.sum(jnp.abs(mu)) / jnp.sqrt(power), jnp.sqrt(n * pixels.astype(power.dtype)) * squared / power

"""Which models classify noisy text? One layer of attention with a kernel, and the paper's model on words as patches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.attention import HIGHEST, default_constant
from jaxsign.systems.text.data import Texts
from jaxsign.systems.text.problem import TextHyper, TextProblem

Array = jax.Array


class TextParams(NamedTuple):
    """Weights of the model "attention".

    Args:
      embed: (vocabulary + 1, width), row 0 the unknown word.
      w_q: (width, width) queries, the heads' columns side by side.
      w_k: (width, width) keys.
      w_v: (width, width) values.
      head: (width,) linear head.
      bias: () its bias.
    """

    embed: Array
    w_q: Array
    w_k: Array
    w_v: Array
    head: Array
    bias: Array


class WordParams(NamedTuple):
    """Weights of the model "two_layer", whose patches are unit vectors: one column for each word.

    Args:
      w_q: (width, vocabulary + 1) queries, column 0 the unknown word.
      w_k: (width, vocabulary + 1) keys.
      w_v: (2, width, vocabulary + 1) values, w_v[0] those of j = +1.
    """

    w_q: Array
    w_k: Array
    w_v: Array


def init(key: Array, problem: TextProblem, hyper: TextHyper) -> TextParams | WordParams:
    """Draws the initial weights.

        attention   embed ~ N(0, sigma_0^2);  w_q, w_k, w_v, head ~ N(0, 1/width);  bias 0
        two_layer   all ~ N(0, sigma_0^2)

    The unknown word's weights begin at 0: where the vocabulary holds all training words they are never trained, and an
    unknown word of a test sentence then adds nothing.

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: sigma_0, may be traced.

    Returns:
      TextParams or WordParams.

    Examples:
      >>> init(jax.random.key(0), TextProblem(vocabulary=9, width=4), TextHyper()).embed.shape
      (10, 4)
    """
    rows, width = problem.vocabulary + 1, problem.width
    if problem.model == "two_layer":
        shapes = [(width, rows), (width, rows), (2, width, rows)]
        drawn = (hyper.sigma_0 * jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 3), shapes))
        return WordParams(*(weights.at[..., 0].set(0) for weights in drawn))
    embed, queries, keys, values, head = jax.random.split(key, 5)
    square = (width, width)
    return TextParams(
        hyper.sigma_0 * jax.random.normal(embed, (rows, width)).at[0].set(0),
        width**-0.5 * jax.random.normal(queries, square),
        width**-0.5 * jax.random.normal(keys, square),
        width**-0.5 * jax.random.normal(values, square),
        width**-0.5 * jax.random.normal(head, (width,)),
        jnp.zeros(()),
    )


def received(kind: str, query: Array, key: Array, mask: Array, c: float) -> Array:
    """The attention that every token receives: the mean over a sentence's T tokens as queries.

        r_k = 1/T sum_q S_qk
        softmax   S_qk = exp(2c <q, k>) / sum_k' exp(2c <q, k'>)
        gaussian  S_qk = exp(-c ||q - k||^2) / T
        linear    S_qk = 2c <q, k> / T
        uniform   S_qk = 1/T

    Padding is neither query nor key. Division by T makes the Gaussian kernel uniform where queries and keys are small,
    as softmax is; elsewhere in this package neither it nor the linear kernel is normalised.

    Args:
      kind: the kernel.
      query: (n, tokens, d) queries.
      key: (n, tokens, d) keys.
      mask: (n, tokens) bool, False for padding.
      c: the kernel constant.

    Returns:
      (n, tokens), 0 for padding.

    Examples:
      >>> ones = jnp.ones((1, 3, 2))
      >>> received("softmax", ones, ones, jnp.array([[True, True, False]]), 0.5).tolist()
      [[0.5, 0.5, 0.0]]
    """
    real = mask.astype(query.dtype)
    count = jnp.sum(real, axis=1, keepdims=True)
    share = real / count
    if kind == "uniform":
        return share
    if kind == "linear":  # the sum over queries comes first: no square array
        total = jnp.einsum("nq,nqd->nd", share, query, precision=HIGHEST)
        return 2 * c * jnp.einsum("nd,nkd->nk", total, key, precision=HIGHEST) * share
    scores = 2 * c * jnp.einsum("nqd,nkd->nqk", query, key, precision=HIGHEST)
    if kind == "softmax":
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
        return jnp.sum(share[:, :, None] * weights, axis=1)  # as a matrix product it is slower
    squares = [c * jnp.sum(part * part, axis=-1) for part in (query, key)]
    weights = jnp.exp(scores - squares[0][:, :, None] - squares[1][:, None])
    return jnp.sum(share[:, :, None] * weights, axis=1) * share


def attend(
    params: TextParams | WordParams, texts: Texts, noise: Array | None, problem: TextProblem
) -> tuple[Array, Array]:
    """Logits of sentences, and the attention that each token receives.

        attention   F = <head, concat_h(sum_k r^h_k e_k W_V^h)> + bias,   e = embedding + noise
        two_layer   F = T sum_h sum_k r^h_k v_k,   v = mean_l w_v[0] - mean_l w_v[1]

    with the attention r^h_k that token k receives in head h as the mean over the T query tokens (`received`), padding
    left out. Queries and keys are e W_Q and e W_K with c = 1/(2 sqrt(width/heads)), or the columns of w_q and w_k with
    c = 1/2: then F = F_1 - F_{-1} is the paper's model, summed over queries, on patches x^(l) that are unit vectors.

    Args:
      params: TextParams or WordParams.
      texts: Texts.
      noise: (n, length, width) noise on the embedded words, or None.
      problem: kernel and heads.

    Returns:
      (logits (n,), received (heads, n, tokens)).

    References:
      arXiv 2410.04870 (two_layer); arXiv 2411.07538 (kernels). The model "attention" is ours.
    """
    n, tokens = texts.tokens.shape
    heads = problem.heads
    if isinstance(params, WordParams):
        query, key = (w.T[texts.tokens] for w in (params.w_q, params.w_k))
        c = 0.5
    else:
        e = params.embed[texts.tokens]
        if noise is not None:
            e = e.at[:, : noise.shape[1]].add(noise)
        if heads == 1 and problem.kernel != "gaussian":
            # <e_q W_Q, e_k W_K> = <e_q W_Q W_K^T, e_k>: one product with all tokens in place of two
            both = jnp.matmul(params.w_q, params.w_k.T, precision=HIGHEST)
            query, key = jnp.matmul(e, both, precision=HIGHEST), e
        else:
            query, key = (jnp.matmul(e, w, precision=HIGHEST) for w in (params.w_q, params.w_k))
        c = default_constant(problem.width // heads)
    query, key = (part.reshape(n, tokens, heads, -1) for part in (query, key))
    r = jnp.stack([received(problem.kernel, query[:, :, h], key[:, :, h], texts.mask, c) for h in range(heads)])
    if isinstance(params, WordParams):
        value = jnp.mean(params.w_v[0] - params.w_v[1], axis=0)[texts.tokens]
        count = jnp.sum(texts.mask, axis=1).astype(value.dtype)
        return count * jnp.sum(r * value[None], axis=(0, 2)), r
    seen = jnp.einsum("hnk,nkd->nhd", r, e, precision=HIGHEST)
    # (width, heads): what one head's weighted mean adds to the logit
    weight = jnp.sum((params.w_v * params.head[None]).reshape(problem.width, heads, -1), axis=2)
    return jnp.einsum("nhd,dh->n", seen, weight, precision=HIGHEST) + params.bias, r


def attention_mass(r: Array, injected: int) -> tuple[Array, Array]:
    """Attention on the sentences' own tokens and on the injected ones: means over sentences and heads of the sums.

    With softmax they add up to 1.

    Args:
      r: (heads, n, tokens) attention that each token receives.
      injected: how many of the last tokens are injected.
    """
    first = r.shape[-1] - injected
    return jnp.sum(jnp.mean(r[..., :first], axis=(0, 1))), jnp.sum(jnp.mean(r[..., first:], axis=(0, 1)))

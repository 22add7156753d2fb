"""What is the loss gradient in feature space in closed form, and its signs without underflow?"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer.features import FeatureData, FeatureParams, Inner
from jaxsign.systems.two_layer.model import HIGHEST

Array = jax.Array
LOG_2 = math.log(2)


def value_and_gradient(
    params: FeatureParams, data: FeatureData, signs: bool, residual: Array | float = 0.0
) -> tuple[Array, FeatureParams]:
    """Training loss and its gradient for softmax attention and context 2.

        dL/dF_i = -w_i y_i p_i,  p = 1/(1 + exp(y F)),  A = s_11 s_12,  B = s_21 s_22,  e_i = -w_i y_i (V_mu - V_i)
        dL/dq_i  =  p_i B_i e_i (k_mu' - k_i)           dL/dq_mu = sum_i p_i (c_i A_i - a_i B_i) e_i (k_mu' - k_i)
        dL/dk_i  = -p_i e_i (A_i q_mu' + B_i q_i)       dL/dk_mu = sum_i p_i (c_i + a_i) e_i (A_i q_mu' + B_i q_i)
        dL/dv_i  = -w_i y_i p_i N_i                     dL/dv_mu = sum_i -w_i y_i p_i (c_i M_i - a_i N_i)
        dL/dw_j  = sum_i xi_ij dL/df_i                  f one of q, k, v, and j a coordinate that patches share

    with q_mu' = c_i q_mu and k_mu' = c_i k_mu the signal token's features, c_i = y_i mu (clean label), a_i the feature
    noise along e_1 (it moves the noise token's features with the signal's), M = r + sum_h (s_11 + s_21) and
    N = r + sum_h (s_12 + s_22).

    With `signs` each entry is multiplied by a positive number. p, A, B and M decay exponentially (N does where
    r = -2 heads), and products of them underflow. The gradients of one example's features therefore drop their positive
    factors; sums over examples keep each term as a number times an exponential and divide by the largest exponential,
    that of a shared coordinate by the largest of the patches that use it.

    Args:
      params: FeatureParams.
      data: FeatureData with one noise patch an example.
      signs: whether only the signs of the gradient are needed.
      residual: r, ().

    Returns:
      (loss (), a tree like params).

    References:
      Derived here from the model of arXiv 2410.04870; the signs are the one-step laws of `jaxsign.theory`.
    """
    heads, n, weight, columns = params.heads, data.weight.size, data.weight, data.shared
    f = _forward(params, data, residual)
    sign, shift, q_mu, k_mu, q, k = f.sign, f.shift, f.q_mu, f.k_mu, f.q, f.k
    sign_, shift_, one, two = sign[None], shift[None], f.one, f.two
    exponent_a, exponent_b, rest_a, rest_b = one.exponent, two.exponent, one.large * one.large, two.large * two.large
    loss = jnp.sum(weight * (jnp.maximum(-f.margin, 0) + jnp.log1p(f.small)))
    rest_p = 1 / (1 + f.small)  # p = exp(exponent_p) rest_p
    exponent_p = jnp.where(weight > 0, -jnp.maximum(f.margin, 0), -jnp.inf)[None]

    e = (-weight * data.y * (f.value - f.v))[None]
    key_gap = sign[None, None] * k_mu - k
    # A and B over the larger of their exponential parts.
    smaller = jnp.exp(-jnp.abs(exponent_a - exponent_b))
    over_a, over_b = jnp.where(exponent_a > exponent_b, 1, smaller), jnp.where(exponent_a > exponent_b, smaller, 1)
    a, b = over_a * rest_a, over_b * rest_b
    larger = jnp.maximum(exponent_a, exponent_b)
    pull = (a * sign_)[:, None] * q_mu + b[:, None] * q
    slope = -weight * data.y

    if signs:
        log_e = jnp.log(jnp.abs(e))

        def votes(exponent: Array) -> Array:
            """p_i exp(exponent) over the largest of p_i exp(exponent) |e_i|."""
            total = exponent_p + exponent
            # At most exp(80), since this is multiplied with e, which may be 0: 0 * inf would be NaN.
            return jnp.exp(jnp.minimum(total - _largest(total + log_e), 80)) * rest_p[None]

        p_ab = votes(larger)
        # Without feature noise the votes for q_mu do not contain B, so that their largest exponential must not either.
        p_a = jnp.where(shift_ == 0, votes(exponent_a) * sign_ * rest_a, p_ab * (sign_ * a - shift_ * b))
        (plus, minus), attended, exponent_n = _value_votes(f, over_a, over_b, larger, residual)
        largest = _largest(exponent_p[0] + jnp.maximum(plus, minus))
        p_v = jnp.exp(exponent_p[0] + plus - largest) - jnp.exp(exponent_p[0] + minus - largest)
        d_v_mu = jnp.sum(slope * p_v * rest_p)
        d_q = jnp.sign(e)[:, None] * key_gap
        # Where one of the two queries is 0 the other one decides, even if its weight underflows.
        d_k = -jnp.sign(e)[:, None] * jnp.where(q == 0, sign_[:, None] * q_mu, jnp.where(q_mu == 0, q, pull))
        d_v = slope * jnp.sign(attended)
        if columns is not None:
            side_p = (jnp.sign(e) * rest_p[None])[:, None]
            shared = [
                _column_votes(side_p * rest_b[:, None] * key_gap, exponent_p + exponent_b + log_e, columns),
                _column_votes(-side_p * pull, exponent_p + larger + log_e, columns),
                _column_votes((slope * rest_p * attended)[None, None], exponent_p + exponent_n[None], columns),
            ]
    else:
        p, p_ab = jnp.exp(exponent_p[0]) * rest_p, jnp.exp(exponent_p + larger) * rest_p[None]
        p_a = p_ab * (sign_ * a - shift_ * b)
        d_v_mu = jnp.sum(slope * p * (sign * f.on_signal - shift * f.on_noise))
        d_q = (jnp.exp(exponent_p + exponent_b) * rest_p[None] * rest_b * e)[:, None] * key_gap
        d_k = -(p_ab * e)[:, None] * pull
        d_v = slope * (p * f.on_noise)
        if columns is not None:
            shared = [jnp.matmul(g, columns, precision=HIGHEST) for g in (d_q, d_k, d_v[None, None])]
    d_q_mu = jnp.sum((p_a * e)[:, None] * key_gap, 2)
    d_k_mu = jnp.sum((p_ab * (sign_ + shift_) * e)[:, None] * pull, 2)
    still = jnp.zeros_like(params.w_q.kept)
    gradient = FeatureParams(
        Inner(d_q_mu.reshape(-1), d_q.reshape(-1, n, 1), still),
        Inner(d_k_mu.reshape(-1), d_k.reshape(-1, n, 1), still),
        Inner(d_v_mu, d_v[:, None], still),
        heads=heads,
    )
    if columns is not None:
        q, k, v = (each.reshape(-1, each.shape[-1]) for each in shared)
        gradient = dataclasses.replace(
            gradient, w_q=gradient.w_q._replace(shared=q), w_k=gradient.w_k._replace(shared=k),
            w_v=gradient.w_v._replace(shared=v[0]),
        )  # fmt: skip
    return loss, gradient


def _column_votes(numbers: Array, exponent: Array, columns: Array) -> Array:
    """sum_i numbers_i exp(exponent_i) x_ij over about the largest exp(exponent_i) of the patches i with x_ij != 0.

    Args:
      numbers: (head, row, n), 0 where the exponent is -inf.
      exponent: (head, n).
      columns: x, (n, S).

    Returns:
      (head, row, S).
    """
    # Of (head, n, S) numbers an integer power of 2 takes half the time of an exponential.
    power = jnp.round(exponent / LOG_2)
    rest = jnp.where(jnp.isneginf(exponent), 0, exponent - LOG_2 * power)
    numbers = numbers * jnp.exp(rest)[:, None]

    def larger(i: Array, top: Array) -> Array:
        used = jax.lax.dynamic_index_in_dim(columns, i, 0) != 0
        return jnp.maximum(top, jnp.where(used, jax.lax.dynamic_index_in_dim(power, i, 1), -jnp.inf))

    # XLA's own maximum over an axis that is not the last takes as long as all the rest of a step.
    n, slots = columns.shape
    top = jnp.full((power.shape[0], slots), jnp.finfo(power.dtype).min, power.dtype)
    top = jax.lax.fori_loop(0, n, larger, top, unroll=min(n, 5))
    scaled = columns[None] * _power_of_2(jnp.minimum(power[:, :, None] - top[:, None], 0))
    return jnp.einsum("hrn,hns->hrs", numbers, scaled, precision=HIGHEST)


def _power_of_2(exponent: Array) -> Array:
    """2^exponent of whole numbers below 1, by their bits, but not less than the fourth power of the rounding error.

    So small a term changes no sum that holds one of size 1, and products with it do not become subnormal: a CPU takes
    several times as long for those.
    """
    info = jnp.finfo(exponent.dtype)
    integer = jnp.int64 if info.bits == 64 else jnp.int32
    whole = jnp.maximum(exponent, -4.0 * info.nmant).astype(integer)
    return jax.lax.bitcast_convert_type((whole - (info.minexp - 1)) << info.nmant, exponent.dtype)


class _Forward(NamedTuple):
    """From features to margins; axes (head, row, example), (head, example), (example,)."""

    sign: Array
    shift: Array
    q_mu: Array  # (head, row, 1)
    k_mu: Array
    q: Array
    k: Array
    v: Array
    one: "_Logistic"  # attention of the signal's query
    two: "_Logistic"  # attention of the noise's query
    on_signal: Array  # M
    on_noise: Array  # N
    value: Array
    margin: Array
    small: Array  # exp(-|margin|)


def _forward(params: FeatureParams, data: FeatureData, residual: Array | float) -> _Forward:
    heads, n = params.heads, data.weight.size
    sign, shift = data.y_clean * data.mu, data.alpha * data.mu * data.y_clean
    sign_ = sign[None]
    q_mu, k_mu = (inner.signal.reshape(heads, -1, 1) for inner in (params.w_q, params.w_k))
    q, k, v = (noise[..., 0] for noise in params.noise(data))
    q = q.reshape(heads, -1, n) - q_mu * shift[None, None]
    k = k.reshape(heads, -1, n) - k_mu * shift[None, None]
    v = v - params.w_v.signal * shift
    # Logistic functions of one difference of scores each.
    one = _logistic(sign_ * (sign_ * jnp.sum(q_mu * k_mu, 1) - jnp.sum(q_mu * k, 1)))
    two = _logistic(sign_ * jnp.sum(q * k_mu, 1) - jnp.sum(q * k, 1))
    on_signal, on_noise = jnp.sum(one.s + two.s, 0) + residual, jnp.sum(one.t + two.t, 0) + residual
    value = sign * params.w_v.signal
    margin = data.y * (on_signal * value + on_noise * v)
    small = jnp.exp(-jnp.abs(margin))
    return _Forward(sign, shift, q_mu, k_mu, q, k, v, one, two, on_signal, on_noise, value, margin, small)


class _Logistic(NamedTuple):
    """s = 1/(1 + exp(-z)) and t = 1 - s. One is large, the other exp(exponent) large; s t = exp(exponent) large^2."""

    s: Array
    t: Array
    exponent: Array  # -|z|
    large: Array  # in [1/2, 1]


def _logistic(z: Array) -> _Logistic:
    exponent = -jnp.abs(z)
    small = jnp.exp(exponent)
    large = 1 / (1 + small)
    small = small * large
    return _Logistic(jnp.where(z > 0, large, small), jnp.where(z > 0, small, large), exponent, large)


def _largest(exponent: Array) -> Array:
    """The maximum over the last axis, which is kept; 0 where all are -inf."""
    top = jnp.max(exponent, -1, keepdims=True)
    return jnp.where(jnp.isneginf(top), 0, top)


def _value_votes(
    f: _Forward, over_a: Array, over_b: Array, larger: Array, residual: Any
) -> tuple[tuple[Array, Array], Array, Array]:
    """(log max(c M - a N, 0), log max(a N - c M, 0)), and N as a number and an exponent, of every example, each (n,).

    A large attention weight is 1 minus a small one. Where the whole numbers and r cancel, M or N is a sum of the small
    ones, which may underflow.

    Args:
      f: margins and the intermediate results.
      over_a: exp(one.exponent) over exp(larger), (head, n).
      over_b: exp(two.exponent) over exp(larger), (head, n).
      larger: the larger exponent, (head, n).
      residual: r, ().
    """
    one, two, sign, shift, on_signal, on_noise = f.one, f.two, f.sign, f.shift, f.on_signal, f.on_noise
    near_1, near_2 = one.s > one.t, two.s > two.t
    whole = jnp.sum(near_1.astype(larger.dtype) + near_2.astype(larger.dtype), 0)
    top = jnp.max(larger, 0)
    small = jnp.where(near_1, -over_a, over_a) * one.large + jnp.where(near_2, -over_b, over_b) * two.large
    small = jnp.sum(small * jnp.exp(larger - top[None]), 0) if larger.shape[0] > 1 else small[0]
    signal_gone, noise_gone = whole + residual == 0, 2 * larger.shape[0] - whole + residual == 0
    clean = shift == 0
    both = jnp.where(signal_gone & noise_gone, (sign + shift) * small, sign * on_signal - shift * on_noise)
    number = jnp.where(clean, sign * jnp.where(signal_gone, small, on_signal), both)
    scaled = signal_gone & (clean | noise_gone)
    exponent = jnp.where(scaled, top, 0)
    plus, minus = (jnp.log(jnp.maximum(x, 0)) + exponent for x in (number, -number))
    return (plus, minus), jnp.where(noise_gone, -small, on_noise), jnp.where(noise_gone, top, 0)

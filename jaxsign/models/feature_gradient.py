"""The loss of the feature-space model and its gradient in closed form, or its signs alone, which never underflow."""

import jax
import jax.numpy as jnp

from jaxsign.models.two_layer_features import FeatureData, FeatureParams, Inner

Array = jax.Array


def value_and_gradient(
    params: FeatureParams, data: FeatureData, signs: bool, residual: Array | float = 0.0
) -> tuple[Array, FeatureParams]:
    """Training loss and its gradient for softmax attention and context 2.

        dL/dF_i = -w_i y_i p_i,  p = 1/(1 + exp(y F)),  A = s_11 s_12,  B = s_21 s_22,  e_i = -w_i y_i (V_mu - V_i)
        dL/dq_i  =  p_i B_i e_i (k_mu' - k_i)           dL/dq_mu = sum_i p_i (c_i A_i - a_i B_i) e_i (k_mu' - k_i)
        dL/dk_i  = -p_i e_i (A_i q_mu' + B_i q_i)       dL/dk_mu = sum_i p_i (c_i + a_i) e_i (A_i q_mu' + B_i q_i)
        dL/dv_i  = -w_i y_i p_i N_i                     dL/dv_mu = sum_i -w_i y_i p_i (c_i M_i - a_i N_i)

    with q_mu' = c_i q_mu and k_mu' = c_i k_mu the signal token's features, c_i = y_i mu (clean label), a_i the feature
    noise along e_1 (it moves the noise token's features with the signal's), M = r + sum_h (s_11 + s_21) and
    N = r + sum_h (s_12 + s_22).

    With `signs` each entry is multiplied by a positive number: p, A and B decay exponentially, and a product of them
    underflows. Sums over examples keep the ratios of their terms, whose exponents are divided by the largest.

    Args:
      params: FeatureParams.
      data: FeatureData with one noise patch an example.
      signs: whether only the signs of the gradient matter.
      residual: r, ().

    Returns:
      (loss (), a tree like params).

    References:
      Derived here from the model of arXiv 2410.04870; the signs are the one-step laws of `jaxsign.theory`.
    """
    heads = params.heads
    n = data.weight.size
    # Axes: (head, row, example), (head, example), (example,).
    sign, shift, weight = data.y_clean * data.mu, data.alpha * data.mu * data.y_clean, data.weight
    sign_, shift_ = sign[None], shift[None]
    q_mu, k_mu = (inner.signal.reshape(heads, -1, 1) for inner in (params.w_q, params.w_k))
    q = params.w_q.noise[..., 0].reshape(heads, -1, n) - q_mu * shift[None, None]
    k = params.w_k.noise[..., 0].reshape(heads, -1, n) - k_mu * shift[None, None]
    v_mu = params.w_v.signal
    v = params.w_v.noise[:, 0] - v_mu * shift
    # Attention of the signal's query (1) and of the noise's (2): logistic functions of one difference of scores each.
    z_1 = sign_ * (sign_ * jnp.sum(q_mu * k_mu, 1) - jnp.sum(q_mu * k, 1))
    z_2 = sign_ * jnp.sum(q * k_mu, 1) - jnp.sum(q * k, 1)
    (s_1, t_1, exponent_a, rest_a), (s_2, t_2, exponent_b, rest_b) = _logistic(z_1), _logistic(z_2)
    on_signal, on_noise = jnp.sum(s_1 + s_2, 0) + residual, jnp.sum(t_1 + t_2, 0) + residual
    value = sign * v_mu
    margin = data.y * (on_signal * value + on_noise * v)
    small = jnp.exp(-jnp.abs(margin))
    loss = jnp.sum(weight * (jnp.maximum(-margin, 0) + jnp.log1p(small)))
    rest_p = 1 / (1 + small)  # p = exp(exponent_p) rest_p
    exponent_p = jnp.where(weight > 0, -jnp.maximum(margin, 0), -jnp.inf)[None]

    e = (-weight * data.y * (value - v))[None]
    key_gap = sign[None, None] * k_mu - k
    # A and B over the larger of their exponential parts.
    smaller = jnp.exp(-jnp.abs(exponent_a - exponent_b))
    a = jnp.where(exponent_a > exponent_b, 1, smaller) * rest_a
    b = jnp.where(exponent_a > exponent_b, smaller, 1) * rest_b
    larger = jnp.maximum(exponent_a, exponent_b)
    pull = (a * sign_)[:, None] * q_mu + b[:, None] * q

    def scaled(exponent: Array) -> Array:
        """The p_i times exp(exponent), over the largest of these if only signs matter."""
        total = exponent_p + exponent
        return jnp.exp(total - jnp.max(total, -1, keepdims=True) if signs else total) * rest_p[None]

    def own(exponent: Array, rest: Array) -> Array:
        """What one example's own gradient is multiplied by: of no matter for its sign."""
        return jnp.ones_like(exponent) if signs else jnp.exp(exponent_p + exponent) * rest_p[None] * rest

    p_ab = scaled(larger)
    p_a = p_ab * (sign_ * a - shift_ * b)
    if signs:  # without feature noise B has no part in the votes for q_mu, and must not be what they are divided by
        p_a = jnp.where(shift_ == 0, scaled(exponent_a) * sign_ * rest_a, p_a)
    p = scaled(jnp.zeros_like(exponent_p))[0]

    d_q = (own(exponent_b, rest_b) * e)[:, None] * key_gap
    d_q_mu = jnp.sum((p_a * e)[:, None] * key_gap, 2)
    d_k = -(own(larger, jnp.ones_like(larger)) * e)[:, None] * pull
    d_k_mu = jnp.sum((p_ab * (sign_ + shift_) * e)[:, None] * pull, 2)
    slope = -weight * data.y
    # For the sign N may be left out where it is positive: it must not underflow to 0. A negative r can turn it.
    d_v = slope * (jnp.where(on_noise < 0, -1, 1) if signs else p * on_noise)
    d_v_mu = jnp.sum(slope * p * (sign * on_signal - shift * on_noise))
    still = jnp.zeros_like(params.w_q.kept)
    gradient = FeatureParams(
        Inner(d_q_mu.reshape(-1), d_q.reshape(-1, n, 1), still),
        Inner(d_k_mu.reshape(-1), d_k.reshape(-1, n, 1), still),
        Inner(d_v_mu, d_v[:, None], still),
        heads=heads,
    )
    return loss, gradient


def _logistic(z: Array) -> tuple[Array, Array, Array, Array]:
    """(s, 1-s, exponent, rest) of s = 1/(1 + exp(-z)), with s (1-s) = exp(exponent) * rest and rest in [1/4, 1]."""
    exponent = -jnp.abs(z)
    small = jnp.exp(exponent)
    large = 1 / (1 + small)
    small = small * large
    return jnp.where(z > 0, large, small), jnp.where(z > 0, small, large), exponent, large * large

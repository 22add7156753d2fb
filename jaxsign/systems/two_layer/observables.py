"""Which quantities of the two-layer system are recorded, and under which names, dimensions and units?"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.two_layer import model as model
from jaxsign.systems.two_layer import underflow
from jaxsign.systems.two_layer.features import FeatureParams

Array = jax.Array
AnyParams = model.AnyWeights | FeatureParams

_NOISE = {
    "query_noise": ("row", "sample"),
    "key_noise": ("row", "sample"),
    "value_noise": ("sample",),
    "s21": ("head", "sample"),
    "log_s21": ("head", "sample"),
    "s22": ("head", "sample"),
}


def dims(context: int) -> dict[str, tuple[str, ...]]:
    """{observable: dimensions}; noise observables get a last dimension `patch` when context > 2."""
    patch = ("patch",) if context > 2 else ()
    return {
        **{name: (*dims, *patch) for name, dims in _NOISE.items()},
        "query_signal": ("row",),
        "key_signal": ("row",),
        "s11": ("head", "sample"),
        "noise_l1": ("sample", *patch),
        "noise_l2": ("sample", *patch),
    }


ATTRS: Mapping[str, Mapping[str, str]] = {
    "train_loss": {"long_name": "training loss", "units": "nat"},
    "test_loss": {"long_name": "test loss", "units": "nat"},
    "test_error": {"long_name": "test 0-1 error", "units": "1"},
    "value_signal": {"long_name": "mean value signal <v, mu>", "units": "1"},
    "value_noise": {"long_name": "mean value noise <v, y_i xi_i>", "units": "1"},
    "query_noise": {"long_name": "query noise <w_Q, y_i xi_i>", "units": "1"},
    "key_noise": {"long_name": "key noise <w_K, y_i xi_i>", "units": "1"},
    "query_signal": {"long_name": "query signal <w_Q, mu>", "units": "1"},
    "key_signal": {"long_name": "key signal <w_K, mu>", "units": "1"},
    "s11": {"long_name": "attention of the signal query on the signal", "units": "1"},
    "s21": {"long_name": "attention of the noise query on the signal", "units": "1"},
    "log_s21": {"long_name": "log attention of the noise query on the signal", "units": "nat"},
    "s22": {"long_name": "attention of the noise query on its own noise", "units": "1"},
    "sign_agreement": {"long_name": "share of pairs with sgn(query noise) = sgn(key noise)", "units": "1"},
    "majority_agreement": {"long_name": "share of untied rows that follow the vote of key noise", "units": "1"},
    "noise_l1": {"long_name": "l1 norm of the noise patch, coordinate 0 left out", "units": "1"},
    "noise_l2": {"long_name": "l2 norm of the noise patch, coordinate 0 left out", "units": "1"},
    **underflow.ATTRS,
}  # fmt: skip


def observe(
    params: AnyParams, data: Any, test: Any, kernel: str = "softmax", residual: Array | float = 0.0
) -> dict[str, Array]:
    """Every observable of the two-layer system at one set of parameters.

    Args:
      params: weights in any form, or FeatureParams with their data and test set.
      data: training set; noise observables use its observed labels.
      test: test set with coordinates, or None: then test_loss and test_error are left out.
      kernel: of the attention.
      residual: weight of the residual path, ().

    Returns:
      {name: array} with the dimensions of `dims`.

    References:
      arXiv 2410.04870, definitions of query/key/value noise and signal and of the softmax outputs.
    """
    f = params.features(data)
    sign_mu = data.y_clean * data.mu
    valid = data.weight > 0
    label = jnp.where(valid, data.y, 0)[:, None]  # padding has no noise and no vote
    agree = (jnp.sign(f.q) == jnp.sign(f.k)) & valid[None, :, None]
    attention_log = model.log_attention(f, sign_mu, params.heads, kernel)
    value_noise, query_noise, key_noise = f.v * label, f.q * label[None], f.k * label[None]
    vote = jnp.sum(jnp.sign(key_noise), axis=(1, 2))
    untied = vote != 0
    follow = untied & (jnp.sign(f.q_mu) == jnp.sign(vote))
    margin = data.y * model.logits(f, sign_mu, params.heads, kernel, residual)
    attention = jnp.exp(attention_log) if kernel != "linear" else model.scores(f, sign_mu, params.heads)
    s21 = jnp.moveaxis(attention[1:, 0], 0, 2)  # (head, sample, patch)
    out = {
        "train_loss": jnp.sum(data.weight * model.logistic_loss(margin)),
        "value_signal": data.mu * f.v_mu,
        "value_noise": value_noise,
        "query_noise": query_noise,
        "key_noise": key_noise,
        "query_signal": data.mu * f.q_mu,
        "key_signal": data.mu * f.k_mu,
        "s11": attention[0, 0],
        "s21": s21,
        "log_s21": jnp.moveaxis(attention_log[1:, 0], 0, 2),
        "s22": jnp.diagonal(attention[1:, 1:]),
        "sign_agreement": jnp.sum(agree, dtype=f.q.dtype) / (jnp.sum(valid, dtype=f.q.dtype) * f.q[:, 0].size),
        "majority_agreement": jnp.sum(follow, dtype=f.q.dtype) / jnp.sum(untied, dtype=f.q.dtype),
    }
    if f.v.shape[1] == 1:
        out = {name: value[..., 0] if name in _NOISE else value for name, value in out.items()}
    if test is not None:
        fresh = params.fresh_features(test)
        margin = test.y * model.logits(fresh, test.y * test.mu, params.heads, kernel, residual)
        out["test_loss"] = jnp.mean(model.logistic_loss(margin))
        out["test_error"] = jnp.mean((margin <= 0).astype(margin.dtype))
    return out


def noise_norms(data: Any) -> dict[str, Array]:
    """l1 and l2 norm of every noise patch without coordinate 0, the constants of the exact laws.

    Args:
      data: a training set with `noise`, (n, context-1, s).

    Returns:
      {"noise_l1", "noise_l2"}: (n,), or (n, context-1) for longer contexts.
    """
    noise = data.noise[:, 0] if data.noise.shape[1] == 1 else data.noise
    return {"noise_l1": jnp.sum(jnp.abs(noise), -1), "noise_l2": jnp.sqrt(jnp.sum(noise * noise, -1))}

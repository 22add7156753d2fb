"""The deep transformer on the paper's data as a Task: the stage observables of every layer and head."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsign.systems.deep_transformer import model as model
from jaxsign.systems.deep_transformer.model import DeepParams
from jaxsign.systems.deep_transformer.problem import DeepProblem
from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer.model import logistic_loss
from jaxsign.systems.two_layer.problem import Hyper
from jaxsign.systems.two_layer.task import check_hyper, settled
from jaxsign.training.reduction import Reduction
from jaxsign.training.task import Task

Array = jax.Array
DIMS = {
    "s11": ("layer", "head", "sample"),
    "s21": ("layer", "head", "sample"),
    "log_s21": ("layer", "head", "sample"),
    "query_noise": ("layer", "row", "sample"),
    "key_noise": ("layer", "row", "sample"),
    "query_signal": ("layer", "row"),
    "key_signal": ("layer", "row"),
    "value_noise": ("layer", "sample"),
    "value_signal": ("layer",),
    "sign_agreement": ("layer", "head"),
}
ATTRS = {
    "train_loss": {"long_name": "training loss", "units": "nat"},
    "test_loss": {"long_name": "test loss", "units": "nat"},
    "test_error": {"long_name": "test 0-1 error", "units": "1"},
    "s11": {"long_name": "attention of the signal query on the signal", "units": "1"},
    "s21": {"long_name": "attention of the noise query on the signal", "units": "1"},
    "log_s21": {"long_name": "log attention of the noise query on the signal", "units": "nat"},
    "query_noise": {"long_name": "query noise <w_Q, y_i h_i(noise)>", "units": "1"},
    "key_noise": {"long_name": "key noise <w_K, y_i h_i(noise)>", "units": "1"},
    "query_signal": {"long_name": "query signal <w_Q, mean_i y_i h_i(signal)>", "units": "1"},
    "key_signal": {"long_name": "key signal <w_K, mean_i y_i h_i(signal)>", "units": "1"},
    "value_noise": {"long_name": "value noise y_i <a, W_V h_i(noise)>", "units": "1"},
    "value_signal": {"long_name": "value signal, mean_i y_i <a, W_V h_i(signal)>", "units": "1"},
    "sign_agreement": {"long_name": "share of pairs with sgn(query noise) = sgn(key noise)", "units": "1"},
    "first_frozen_step": {
        "long_name": "first step at which a gradient of some attention layer is exactly 0 in the floats (-1: never)",
        "units": "step",
    },
}


@functools.cache
def deep_transformer(problem: DeepProblem) -> Task:
    """A transformer of several layers on signal + sparse-noise data, logistic loss, full batch.

        L = mean_i log(1 + exp(-y_i F(W, X_i)))

    `help(jaxsign.systems.deep_transformer.model.module)` writes the layers out. At depth 1 without mlp it is
    `js.two_layer`. The observables are the paper's in every layer, of what the layer sees, h_i(signal) and h_i(noise)
    (for layer 1 the patches themselves, later with the layer norm if there is one), by the labels of the patches:

        query noise <w_Q, y_i h_i(noise)>      query signal <w_Q, mean_i y_i h_i(signal)>      keys alike
        value noise y_i <a, W_V h_i(noise)>: what the readout would see of the layer's values directly

    Layer 1 is trained on the coordinates that some training patch uses wherever that is exact for the optimizer.

    Args:
      problem: a DeepProblem.

    Returns:
      The Task; equal problems give the identical object. Its numbers are a `js.Hyper`.

    Raises:
      ValueError: if it is no DeepProblem.

    Examples:
      >>> import jaxsign as js
      >>> task = deep_transformer(DeepProblem(n=4, d=50, s=5, m_k=3, m_v=3, depth=2, n_test=10))
      >>> hyper = js.Hyper(sigma_p=2.0, residual=1.0)
      >>> run = js.train(jax.random.key(0), task, hyper, js.sign_gd(1e-3), steps=20, record=10)
      >>> run.trace["s21"].shape                                             # steps, layers, heads, examples
      (3, 2, 1, 4)

    References:
      arXiv 2410.04870, data, loss and depth 1; deeper models are reconstructed.
    """
    if not isinstance(problem, DeepProblem):
        raise ValueError(f"problem must be a js.DeepProblem, got problem={problem!r}")
    data_problem = problem.data

    def margins(params: DeepParams, data: signal_noise.Dataset, hyper: Hyper) -> tuple[Array, list[model.Layer]]:
        project = model.training_patches(params, data)
        logits, layers = model.forward(params, project, problem, hyper.residual)
        return data.y * logits, layers

    def loss(params: DeepParams, batch: signal_noise.Dataset, hyper: Hyper) -> Array:
        return jnp.sum(batch.weight * logistic_loss(margins(params, batch, hyper)[0]))

    def observe(params: DeepParams, data: Any, test: Any, hyper: Hyper) -> dict[str, Array]:
        margin, layers = margins(params, data, hyper)
        found = [_of_layer(layer, data.y_clean, problem) for layer in layers]
        out = {name: jnp.stack([one[name] for one in found]) for name in found[0]}
        out["train_loss"] = jnp.sum(data.weight * logistic_loss(margin))
        if test is not None:
            fresh, _ = model.forward(model.full(params), model.test_patches(test), problem, hyper.residual)
            margin = test.y * fresh
            out["test_loss"] = jnp.mean(logistic_loss(margin))
            out["test_error"] = jnp.mean((margin <= 0).astype(margin.dtype))
        return out

    def prepare(data: Any, test: Any, params: Any, hyper: Any, degree: Any) -> tuple[Any, Any, Any]:
        del hyper, degree
        return data, settled(data_problem, data, test), params

    def frozen(layer: int) -> Callable[[Any, Any, Any, Any], Array]:
        """Whether some weight of a layer's attention has a gradient of exactly 0.

        Weights are drawn at random, so that no gradient is 0 in law, apart from those of coordinates that no training
        patch uses, and from sigma_0 = 0. What makes it 0 is underflow, or tokens that rounding has made equal, as
        attention without residual connections does in deep layers.
        """

        def alarm(params: DeepParams, batch: signal_noise.Dataset, hyper: Hyper, gradient: Any) -> Array:
            del hyper
            names = [f"attention_{layer}/{name}" for name in ("w_q", "w_k", "w_v")]
            trained = [gradient[name] for name in names if gradient[name] is not None]
            used = jnp.ones((), bool)
            if layer == 1:
                there = jnp.concatenate([jnp.ones(1, bool), batch.weight > 0])[:, None]
                used = jnp.any((model.columns(params, batch.basis) != 0) & there, 0)
            zero = [jnp.any(jnp.any(slope == 0, 0) & used) for slope in trained]
            return functools.reduce(jnp.logical_or, zero, jnp.zeros((), bool)) & jnp.any(params[names[0]][:, 0] != 0)

        return alarm

    layers = {f"first_frozen_layer_{layer}": frozen(layer) for layer in range(1, problem.depth + 1)}

    def first(params: DeepParams, batch: signal_noise.Dataset, hyper: Hyper, gradient: Any) -> Array:
        found = [alarm(params, batch, hyper, gradient) for alarm in layers.values()]
        return functools.reduce(jnp.logical_or, found)

    return Task(
        sample=lambda key, hyper, shared: signal_noise.sample(key, data_problem, hyper),
        sample_test=lambda key, hyper, shared: signal_noise.sample_test(key, data_problem, hyper),
        init=lambda key, data, hyper: model.init(key, problem, hyper),
        prepare=prepare,
        loss=loss,
        observe=observe,
        watch={"first_frozen_step": first, **layers},
        validate=lambda hyper: check_hyper(hyper, data_problem),
        dims=DIMS,
        attrs=ATTRS
        | {
            name: {"long_name": f"first step at which {words} is exactly 0 in the floats (-1: never)", "units": "step"}
            for name, words in ((name, f"a gradient of attention layer {name.rpartition('_')[2]}") for name in layers)
        },
        problem=problem,
        name="deep_transformer",
        reduction=Reduction(
            compact=model.activate,
            expand=model.full,
            frozen=("active", *(f"start/{name}" for name in model.PATCHES)),
        ),
    )


def _of_layer(layer: model.Layer, y: Array, problem: DeepProblem) -> dict[str, Array]:
    """The stage observables of one layer."""
    query, key = (a * y[:, None, None, None] for a in (layer.query, layer.key))  # (sample, token, head, m_k)
    log_s = jnp.moveaxis(layer.log_attention, 0, 3)  # (head, token, token, sample)
    direct = (layer.value @ model.readout(problem.m_v, layer.value.dtype)) * y[:, None]

    def rows(a: Array) -> Array:
        return a.reshape(-1, problem.rows).T  # (row, sample)

    same = jnp.sign(query[:, 1]) == jnp.sign(key[:, 1])
    return {
        "s11": jnp.exp(log_s[:, 0, 0]),
        "s21": jnp.exp(log_s[:, 1, 0]),
        "log_s21": log_s[:, 1, 0],
        "query_noise": rows(query[:, 1]),
        "key_noise": rows(key[:, 1]),
        "query_signal": jnp.mean(rows(query[:, 0]), axis=1),
        "key_signal": jnp.mean(rows(key[:, 0]), axis=1),
        "value_noise": direct[:, 1],
        "value_signal": jnp.mean(direct[:, 0]),
        "sign_agreement": jnp.mean(same.astype(query.dtype), axis=(0, 2)),
    }

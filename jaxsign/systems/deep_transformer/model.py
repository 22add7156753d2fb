"""The deep transformer in Flax on signal and noise patches: its layers, and how patches are multiplied."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems.deep_transformer.problem import DeepProblem
from jaxsign.systems.two_layer.data import Dataset, TestSet
from jaxsign.systems.two_layer.model import COLUMNS
from jaxsign.systems.two_layer.problem import Hyper

Array = jax.Array
#: {"attention_1/w_q": array, ...}; with "active" and "start/..." besides where layer 1 is on the active coordinates.
DeepParams = Mapping[str, Array]
#: (rows, columns) weights -> (n, tokens, rows), their products with every token.
Project = Callable[[Array], Array]
HIGHEST = jax.lax.Precision.HIGHEST
#: Added to the variance in layer norm: representations start at the size of sigma_0, whose square is 1e-5.
EPSILON = 1e-12
PATCHES = ("attention_1/w_q", "attention_1/w_k", "attention_1/w_v")


class Layer(NamedTuple):
    """What one attention layer computes.

    Args:
      query: (n, tokens, heads, m_k).
      key: (n, tokens, heads, m_k).
      value: (n, tokens, width) W_V on what the layer sees.
      log_attention: (n, heads, tokens, tokens), query token first.
    """

    query: Array
    key: Array
    value: Array
    log_attention: Array


@functools.lru_cache(maxsize=64)
def module(problem: DeepProblem, columns: int) -> Any:
    """The Flax module `(project, residual) -> (logits (n,), [Layer, ...])`.

        layer 1:   h_l = W_V (sum_heads sum_a s_la x_a + r x_l),             s = softmax_a(<W_Q x_l, W_K x_a>)
        later:     h_l <- r h_l + W_V sum_heads sum_a s_la N(h_a),           s of N(h); no factor 1/sqrt(m_k)
        with mlp:  h_l <- r h_l + W_2 ReLU(W_1 N(h_l)) after every attention
        readout:   F = sum_l <a, h_l>,   a = (1/m_v, ..., 1/m_v, -1/m_v, ..., -1/m_v) fixed

    N is the layer norm without learned scale, or the identity. At depth 1 without mlp this is the paper's model, with
    `Hyper.residual` included.

    Args:
      problem: DeepProblem.
      columns: columns of the weights of layer 1, which multiply patches: d, or the active coordinates.

    Returns:
      A flax.linen.Module; its weights start as standard normals.

    References:
      Depth 1: arXiv 2410.04870; deeper ones are reconstructed.
    """
    from flax import linen as nn

    standard = nn.initializers.normal(1.0)
    heads, m_k, width = problem.heads, problem.m_k, problem.width

    class Attention(nn.Module):
        """Heads with their own queries and keys, a value matrix that they share, outputs summed."""

        columns: int

        @nn.compact
        def __call__(self, project: Project) -> tuple[Array, Layer]:
            rows = heads * m_k
            shapes = {"w_q": (rows, self.columns), "w_k": (rows, self.columns), "w_v": (width, self.columns)}
            query, key, value = (project(self.param(name, standard, shape)) for name, shape in shapes.items())
            query, key = (a.reshape(*a.shape[:2], heads, m_k) for a in (query, key))
            score = jnp.einsum("nlhm,nahm->nhla", query, key, precision=HIGHEST)
            log_attention = jax.nn.log_softmax(score, axis=3)
            mixed = jnp.einsum("nhla,nav->nlv", jnp.exp(log_attention), value, precision=HIGHEST)
            return mixed, Layer(query, key, value, log_attention)

    class Network(nn.Module):
        """W_2 ReLU(W_1 h)."""

        @nn.compact
        def __call__(self, h: Array) -> Array:
            w_1 = self.param("w_1", standard, (problem.hidden, width))
            w_2 = self.param("w_2", standard, (width, problem.hidden))
            return _times(w_2, jax.nn.relu(_times(w_1, h)))

    class Transformer(nn.Module):
        """All layers and the readout."""

        @nn.compact
        def __call__(self, project: Project, residual: Array) -> tuple[Array, list[Layer]]:
            def norm(h: Array) -> Array:
                plain = nn.LayerNorm(epsilon=EPSILON, use_bias=False, use_scale=False, force_float32_reductions=False)
                return plain(h) if problem.layer_norm else h

            mixed, layer = Attention(columns, name="attention_1")(project)
            h, layers = mixed + residual * layer.value, [layer]
            for depth in range(1, problem.depth + 1):
                if depth > 1:
                    seen = norm(h)
                    attention = Attention(width, name=f"attention_{depth}")
                    mixed, layer = attention(functools.partial(_times, h=seen))
                    h = residual * h + mixed
                    layers.append(layer)
                if problem.mlp:
                    h = residual * h + Network(name=f"mlp_{depth}")(norm(h))
            return jnp.sum(h @ readout(problem.m_v, h.dtype), axis=1), layers

    return Transformer()


def _times(w: Array, h: Array) -> Array:
    """W h of every token: (rows, width) x (n, tokens, width) -> (n, tokens, rows)."""
    return jnp.matmul(h, w.T, precision=HIGHEST)


def readout(m_v: int, dtype: Any) -> Array:
    """a, (2 m_v,): the fixed second layer of the paper's model."""
    return jnp.repeat(jnp.asarray([1 / m_v, -1 / m_v], dtype), m_v)


def init(key: Array, problem: DeepProblem, hyper: Hyper) -> DeepParams:
    """Draws every weight i.i.d. N(0, sigma_0^2).

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: sigma_0, may be traced.

    Returns:
      {"attention_1/w_q": (rows, d), ...}, the module's parameters by their path.

    Examples:
      >>> problem = DeepProblem(n=2, d=9, s=2, m_k=3, m_v=4, depth=2)
      >>> init(jax.random.key(0), problem, Hyper(sigma_p=2.0))["attention_2/w_v"].shape
      (8, 8)

    References:
      arXiv 2410.04870, initialisation; that of the later layers is reconstructed.
    """
    from flax.traverse_util import flatten_dict

    def nothing(w: Array) -> Array:
        return jnp.zeros((1, 2, w.shape[0]), w.dtype)

    drawn = module(problem, problem.d).init(key, nothing, jnp.zeros(()))["params"]
    return {name: hyper.sigma_0 * w for name, w in flatten_dict(drawn, sep="/").items()}


def forward(
    params: DeepParams, project: Project, problem: DeepProblem, residual: Array | float
) -> tuple[Array, list[Layer]]:
    """Logits of all examples, and what every layer computed.

    Args:
      params: weights in either form.
      project: how weights of layer 1 multiply the patches, such as `training_patches`.
      problem: shapes.
      residual: r, ().

    Returns:
      (logits (n,), [Layer of every attention]).
    """
    from flax.traverse_util import unflatten_dict

    columns = params[PATCHES[0]].shape[1]
    own = {name: w for name, w in params.items() if name != "active" and not name.startswith("start/")}
    weights = {"params": unflatten_dict(own, sep="/")}
    weight = jnp.asarray(residual, params[PATCHES[0]].dtype)
    return module(problem, columns).apply(weights, project, weight)


def columns(params: DeepParams, basis: Array) -> Array:
    """The columns of the patches that the weights of layer 1 multiply."""
    if "active" not in params:
        return basis
    active = params["active"]
    return jnp.take_along_axis(basis, jnp.broadcast_to(active, (basis.shape[0], active.size)), axis=1)


def training_patches(params: DeepParams, data: Dataset) -> Project:
    """Products of weights with the training patches, signal token first: one column for all signal patches."""
    basis = columns(params, data.basis)
    sign_mu = (data.y_clean * data.mu)[:, None]

    def project(w: Array) -> Array:
        inner = jnp.matmul(basis, w.T, precision=HIGHEST)
        return jnp.stack([sign_mu * inner[:1], inner[1:]], axis=1)

    return project


def test_patches(test: TestSet) -> Project:
    """Products of weights with sparse test patches, gathered: no (n_test, d) array."""
    indices, values = (jnp.moveaxis(a[:, 0], 1, 0) for a in (test.indices, test.values))
    shift = (test.alpha * test.mu * test.y)[:, None]  # feature noise, along e_1
    sign_mu = (test.y * test.mu)[:, None]

    def project(w: Array) -> Array:
        by_coordinate = w.T

        def add(i: Array, total: Array) -> Array:
            return total + by_coordinate[indices[i]] * values[i][:, None]

        none = jnp.zeros((test.y.size, w.shape[0]), w.dtype)
        noise = jax.lax.fori_loop(0, indices.shape[0], add, none, unroll=min(indices.shape[0], 4))
        return jnp.stack([sign_mu * by_coordinate[:1], noise - shift * by_coordinate[:1]], axis=1)

    return project


def activate(params: DeepParams, data: Dataset) -> DeepParams:
    """The same function with layer 1 on the coordinates that some training patch uses.

    Every other coordinate has gradient 0 at every step, so an optimizer that moves each coordinate by its own gradients
    only leaves it where it started.

    Args:
      params: full weights.
      data: the training set; at most n*s + 1 of its coordinates are in use.

    Returns:
      DeepParams with "active" (columns,) int32, and the full layer 1 at the start under "start/...".
    """
    d = data.basis.shape[1]
    count = min(-(-(data.support.size + 1) // COLUMNS) * COLUMNS, d)
    used = jnp.zeros((d,), bool).at[0].set(True).at[data.support.reshape(-1)].set(True)
    active = jnp.argsort(~used, stable=True)[:count].astype(jnp.int32)
    small = {name: params[name][:, active] for name in PATCHES}
    return {**params, **small, **{f"start/{name}": params[name] for name in PATCHES}, "active": active}


def full(params: DeepParams) -> DeepParams:
    """The full weights of either form."""
    if "active" not in params:
        return params
    own = {name: w for name, w in params.items() if name != "active" and not name.startswith("start/")}
    return {**own, **{name: params[f"start/{name}"].at[:, params["active"]].set(params[name]) for name in PATCHES}}

"""Deeper transformers on the paper's data (arXiv 2410.04870, appendix): which stages survive depth, MLP and layer norm?

Signal and sparse-noise patches as in `jaxsign.systems.two_layer`, whose numbers (`js.Hyper`) it shares; logistic loss,
full batch. In this order: the problem, the layers in Flax, the training set's active coordinates, the Task.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.systems import system
from jaxsign.systems.two_layer import data as signal_noise
from jaxsign.systems.two_layer.data import TestSet, TrainingSet
from jaxsign.systems.two_layer.model import COLUMNS, logistic_loss
from jaxsign.systems.two_layer.problem import OVERLAPS, Hyper, Problem
from jaxsign.systems.two_layer.task import check_hyper, with_coordinates
from jaxsign.training.task import Reduction, Task
from jaxsign.validation.values import instance, known, positive_int

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


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
        attention, which acts on raw patches: centring would fill their zeros. No effect at depth 1 without mlp.
      hidden: units of the ReLU network, int >= 1; without mlp it has no effect.
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
        _ = self.data  # checks the fields that both problems have

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


#: {"attention_1/w_q": array, ...}; where layer 1 is on the active coordinates also "active" and "start/...".
DeepParams = Mapping[str, Array]
#: (rows, columns) weights -> (n, tokens, rows), their products with every token.
Project = Callable[[Array], Array]
#: Added to the variance in layer norm: representations start at the size of sigma_0, whose square is 1e-5.
EPSILON = 1e-12
PATCHES = ("attention_1/w_q", "attention_1/w_k", "attention_1/w_v")


class Layer(NamedTuple):
    """Queries, keys, values and attention of one layer.

    Args:
      query: (n, tokens, heads, m_k).
      key: (n, tokens, heads, m_k).
      value: (n, tokens, width) W_V times the input of the layer.
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
                    normed = norm(h)
                    attention = Attention(width, name=f"attention_{depth}")
                    mixed, layer = attention(functools.partial(_times, h=normed))
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
      arXiv 2410.04870, initialisation; for the later layers it is reconstructed.
    """
    from flax.traverse_util import flatten_dict

    def nothing(w: Array) -> Array:
        return jnp.zeros((1, 2, w.shape[0]), w.dtype)

    drawn = module(problem, problem.d).init(key, nothing, jnp.zeros(()))["params"]
    return {name: hyper.sigma_0 * w for name, w in flatten_dict(drawn, sep="/").items()}


def forward(
    params: DeepParams, project: Project, problem: DeepProblem, residual: Array | float
) -> tuple[Array, list[Layer]]:
    """Logits of all examples, and the intermediate results of every attention.

    Args:
      params: weights in either form.
      project: products of the weights of layer 1 with the patches, such as `training_patches(params, data)`.
      problem: shapes.
      residual: r, ().

    Returns:
      (logits (n,), [Layer of every attention]).
    """
    from flax.traverse_util import unflatten_dict

    columns = params[PATCHES[0]].shape[1]
    weights = {"params": unflatten_dict(_trained(params), sep="/")}
    weight = jnp.asarray(residual, params[PATCHES[0]].dtype)
    return module(problem, columns).apply(weights, project, weight)


def _trained(params: DeepParams) -> dict[str, Array]:
    """The weights of either form, without what the form on active coordinates keeps beside them."""
    return {name: w for name, w in params.items() if name != "active" and not name.startswith("start/")}


def columns(params: DeepParams, basis: Array) -> Array:
    """The columns of the patches that the weights of layer 1 multiply."""
    if "active" not in params:
        return basis
    active = params["active"]
    return jnp.take_along_axis(basis, jnp.broadcast_to(active, (basis.shape[0], active.size)), axis=1)


def training_patches(params: DeepParams, data: TrainingSet) -> Project:
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


def activate(params: DeepParams, data: TrainingSet) -> DeepParams:
    """The same function with layer 1 on the coordinates that some training patch uses.

    Every other coordinate has gradient 0 at every step. An optimizer that moves each coordinate by its own gradients
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
    return {
        **_trained(params),
        **{name: params[f"start/{name}"].at[:, params["active"]].set(params[name]) for name in PATCHES},
    }


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


@system(DeepProblem, Hyper)
@functools.cache
def deep_transformer(problem: DeepProblem) -> Task:
    """A transformer of several layers on signal + sparse-noise data, logistic loss, full batch.

        L = mean_i log(1 + exp(-y_i F(W, X_i)))

    `help(jaxsign.systems.deep_transformer.module)` writes the layers out. At depth 1 without mlp it is
    `js.two_layer`. The observables are the paper's, for the inputs h_i(signal) and h_i(noise) of every layer (the
    patches in layer 1, later representations after the layer norm, if there is one) and the labels of the patches:

        query noise <w_Q, y_i h_i(noise)>      query signal <w_Q, mean_i y_i h_i(signal)>      keys alike
        value noise y_i <a, W_V h_i(noise)>: the readout applied to the layer's values directly

    Layer 1 is trained on the coordinates that some training patch uses, wherever this is exact for the optimizer.

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
    instance("problem", problem, DeepProblem)
    data_problem = problem.data

    def margins(params: DeepParams, data: TrainingSet, hyper: Hyper) -> tuple[Array, list[Layer]]:
        project = training_patches(params, data)
        logits, layers = forward(params, project, problem, hyper.residual)
        return data.y * logits, layers

    def loss(params: DeepParams, batch: TrainingSet, hyper: Hyper) -> Array:
        return jnp.sum(batch.weight * logistic_loss(margins(params, batch, hyper)[0]))

    def observe(params: DeepParams, data: Any, test: Any, hyper: Hyper) -> dict[str, Array]:
        margin, layers = margins(params, data, hyper)
        by_layer = [_of_layer(layer, data.y_clean, problem) for layer in layers]
        out = {name: jnp.stack([one[name] for one in by_layer]) for name in by_layer[0]}
        out["train_loss"] = jnp.sum(data.weight * logistic_loss(margin))
        if test is not None:
            fresh, _ = forward(full(params), test_patches(test), problem, hyper.residual)
            margin = test.y * fresh
            out["test_loss"] = jnp.mean(logistic_loss(margin))
            out["test_error"] = jnp.mean((margin <= 0).astype(margin.dtype))
        return out

    def prepare(data: Any, test: Any, params: Any, hyper: Any, degree: Any) -> tuple[Any, Any, Any]:
        del hyper, degree
        return data, with_coordinates(data_problem, data, test), params

    def frozen(layer: int) -> Callable[[Any, Any, Any, Any], Array]:
        def alarm(params: DeepParams, batch: TrainingSet, hyper: Hyper, gradient: Any) -> Array:
            del hyper
            return _frozen(layer, params, batch, gradient)

        return alarm

    layers = {f"first_frozen_layer_{layer}": frozen(layer) for layer in range(1, problem.depth + 1)}

    def first(params: DeepParams, batch: TrainingSet, hyper: Hyper, gradient: Any) -> Array:
        return functools.reduce(jnp.logical_or, [alarm(params, batch, hyper, gradient) for alarm in layers.values()])

    return Task(
        sample=lambda key, hyper, shared: signal_noise.sample(key, data_problem, hyper),
        sample_test=lambda key, hyper, shared: signal_noise.sample_test(key, data_problem, hyper),
        init=lambda key, data, hyper: init(key, problem, hyper),
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
        reduction=Reduction(compact=activate, expand=full, frozen=("active", *(f"start/{name}" for name in PATCHES))),
    )


def _frozen(layer: int, params: DeepParams, batch: TrainingSet, gradient: Any) -> Array:
    """Whether some weight of a layer's attention has a gradient of exactly 0.

    With random weights the probability of a gradient 0 is 0, except for coordinates that no training patch uses and for
    sigma_0 = 0. A gradient becomes 0 by underflow, or where rounding has made tokens equal, which happens in deep
    layers without residual connections.
    """
    names = [f"attention_{layer}/{name}" for name in ("w_q", "w_k", "w_v")]
    trained = [gradient[name] for name in names if gradient[name] is not None]
    used = jnp.ones((), bool)
    if layer == 1:
        weighted = jnp.concatenate([jnp.ones(1, bool), batch.weight > 0])[:, None]
        used = jnp.any((columns(params, batch.basis) != 0) & weighted, 0)
    zero = [jnp.any(jnp.any(slope == 0, 0) & used) for slope in trained]
    return functools.reduce(jnp.logical_or, zero, jnp.zeros((), bool)) & jnp.any(params[names[0]][:, 0] != 0)


def _of_layer(layer: Layer, y: Array, problem: DeepProblem) -> dict[str, Array]:
    """The stage observables of one layer."""
    query, key = (a * y[:, None, None, None] for a in (layer.query, layer.key))  # (sample, token, head, m_k)
    log_s = jnp.moveaxis(layer.log_attention, 0, 3)  # (head, token, token, sample)
    direct = (layer.value @ readout(problem.m_v, layer.value.dtype)) * y[:, None]

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

"""Attention with a choice of kernel (arXiv 2411.07538): what do softmax, Gaussian and linear kernels learn and cost?

One layer of multi-head attention, squared error, full batch; the best W_V, curvature and landscape at the test steps.
In this order: the problem and its numbers, samples, the attention layer and the optimum of W_V, the Task.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.analysis import curvature, landscape
from jaxsign.systems import system
from jaxsign.systems.attention import HIGHEST, attention, default_constant
from jaxsign.training.task import Task
from jaxsign.validation.values import instance, known, positive_int, real

Array = jax.Array
#: Kernels that queries and keys take part in.
KERNELS = ("softmax", "gaussian", "linear")
TARGETS = ("random", "retrieval")


@dataclasses.dataclass(frozen=True)
class KernelProblem:
    """Everything that fixes the shapes and data of multi-head attention with a kernel. Frozen and hashable.

    Args:
      samples: training samples N, int >= 1.
      tokens: tokens of a sample n, int >= 1.
      embed: embedding dimension D of a token, int >= 1; >= 2 + d_out for "retrieval".
      d: head size, int >= 1.
      heads: number of heads H, int >= 1.
      d_out: output width, int >= 1.
      kernel: "softmax", "gaussian" (not normalised) or "linear".
      targets: "random" targets are to be memorised; with "retrieval" the target of every token is the content of the
        one token that carries a marker, which can be tested on fresh samples.
      n_test: fresh samples of "retrieval", int >= 1.
      plane_points: grid points along each side of the landscape's plane, int >= 3.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> KernelProblem(samples=8, tokens=4, embed=16).fits_all
      False

    References:
      arXiv 2411.07538, model; these sizes are reconstructed.
    """

    samples: int = 8
    tokens: int = 4
    embed: int = 64
    d: int = 4
    heads: int = 1
    d_out: int = 1
    kernel: str = "softmax"
    targets: str = "random"
    n_test: int = 256
    plane_points: int = 41

    def __post_init__(self) -> None:
        for name in ("samples", "tokens", "embed", "d", "heads", "d_out", "n_test", "plane_points"):
            number = positive_int(name, getattr(self, name), minimum=3 if name == "plane_points" else 1)
            object.__setattr__(self, name, number)
        known("kernel", self.kernel, KERNELS)
        known("targets", self.targets, TARGETS)
        if self.targets == "retrieval":
            positive_int("embed", self.embed, minimum=2 + self.d_out)

    @property
    def rows(self) -> int:
        """Target rows, N n."""
        return self.samples * self.tokens

    @property
    def fits_all(self) -> bool:
        """Whether W_V alone can fit all targets in every head's reach: H D >= N n and d_out <= d.

        For one head this is necessary and sufficient; several heads reach every target also with d < d_out <= H d if D
        alone is N n.
        """
        return self.heads * self.embed >= self.rows and self.d_out <= self.d


@dataclasses.dataclass(frozen=True)
class KernelHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      init_scale: standard deviation g of the entries of W_Q and W_K, finite, >= 0.
      c_scale: the kernel constant c in units of 1/(2 sqrt(d)), finite, > 0.
      target_std: standard deviation of "random" targets, finite, > 0.

    Examples:
      >>> KernelHyper().c_scale
      1.0

    References:
      arXiv 2411.07538, kernels; these values are reconstructed.
    """

    init_scale: Any = 0.5
    c_scale: Any = 1.0
    target_std: Any = 0.5

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("init_scale", "c_scale", "target_std"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number, low=0.0, open_low=name != "init_scale")


jax.tree_util.register_dataclass(KernelHyper, data_fields=["init_scale", "c_scale", "target_std"], meta_fields=[])


#: Coordinates of a token in "retrieval": its marker, a constant 1, and the first one of its content.
MARKER, CONSTANT, CONTENT = 0, 1, 2


class Samples(NamedTuple):
    """Sequences of tokens, each token with its target. The samples are the last axis throughout: the matrices of a
    sample are small, so that only operations across samples vectorise.

    Args:
      x: (D, n, B) tokens.
      y: (d_out, n, B) targets.
    """

    x: Array
    y: Array


def sample(key: Array, problem: KernelProblem, hyper: KernelHyper, count: int) -> Samples:
    """Draws samples from the problem's distribution.

        random     x ~ N(0, I/D),   y ~ N(0, target_std^2)
        retrieval  x = (1 if marked, 1, u),   u ~ N(0, I),   y = the first d_out numbers of the marked token's u

    In "retrieval" one token of a sample, uniformly, carries the marker, and all tokens have its content as their
    target: attention must find it. The constant coordinate allows equal queries in all tokens.

    Args:
      key: a key.
      problem: shapes and kind of target.
      hyper: target_std, may be traced.
      count: samples, int >= 1.

    Returns:
      Samples.

    Examples:
      >>> sample(jax.random.key(0), KernelProblem(tokens=3, embed=5), KernelHyper(), 7).x.shape
      (5, 3, 7)

    References:
      Random targets: arXiv 2411.07538, with reconstructed distributions. Retrieval: ours.
    """
    inputs, other = jax.random.split(key)
    x = jax.random.normal(inputs, (problem.embed, problem.tokens, count))
    if problem.targets == "random":
        noise = jax.random.normal(other, (problem.d_out, problem.tokens, count))
        return Samples(x * problem.embed**-0.5, hyper.target_std * noise)
    place = jax.random.randint(other, (count,), 0, problem.tokens)
    marker = jax.nn.one_hot(place, problem.tokens, dtype=x.dtype, axis=0)
    x = x.at[MARKER].set(marker).at[CONSTANT].set(1)
    content = x[CONTENT : CONTENT + problem.d_out]
    y = jnp.sum(marker[None] * content, axis=1, keepdims=True)
    return Samples(x, jnp.broadcast_to(y, content.shape))


class KernelParams(NamedTuple):
    """Weights of the attention layer.

    Args:
      w_q: (heads, embed, d) query weights.
      w_k: (heads, embed, d) key weights.
      w_v: (heads, embed, d) value weights.
      w_o: (heads, d, d_out) output weights, the rows of W^O that belong to each head.
    """

    w_q: Array
    w_k: Array
    w_v: Array
    w_o: Array


def init(key: Array, problem: KernelProblem, hyper: KernelHyper) -> KernelParams:
    """Draws W_Q, W_K ~ N(0, g^2), W_V ~ N(0, 1) and W^O ~ N(0, 1/(H d)), all i.i.d.

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: init_scale g, may be traced.

    Returns:
      KernelParams.

    Examples:
      >>> init(jax.random.key(0), KernelProblem(embed=6, d=2, d_out=3), KernelHyper()).w_q.shape
      (1, 6, 2)

    References:
      arXiv 2411.07538, model; the initialisation is reconstructed.
    """
    shape = (problem.heads, problem.embed, problem.d)
    query, keys, value, output = jax.random.split(key, 4)
    return KernelParams(
        hyper.init_scale * jax.random.normal(query, shape),
        hyper.init_scale * jax.random.normal(keys, shape),
        jax.random.normal(value, shape),
        (problem.heads * problem.d) ** -0.5 * jax.random.normal(output, (problem.heads, problem.d, problem.d_out)),
    )


def constant(problem: KernelProblem, hyper: KernelHyper) -> Array | float:
    """The kernel constant c = c_scale / (2 sqrt(d))."""
    return hyper.c_scale * default_constant(problem.d)


def _onto(x: Array, weights: Array) -> Array:
    """(heads, m, n, B) the tokens' inner products with weights (heads, D, m): one matrix product for all heads."""
    heads, embed, width = weights.shape
    rows = jnp.swapaxes(weights, 1, 2).reshape(-1, embed)
    return jnp.matmul(rows, x.reshape(embed, -1), precision=HIGHEST).reshape(heads, width, *x.shape[1:])


def weights(params: KernelParams, x: Array, kind: str, c: Array | float) -> Array:
    """Attention weights S_h of every token (query) on every token (key), in every head and sample.

    The sum over the d coordinates of a head is written out, so that XLA fuses it and vectorises over samples.

    Args:
      params: KernelParams.
      x: (D, n, B) tokens.
      kind: the kernel.
      c: its constant.

    Returns:
      (heads, n, n, B), query first.

    References:
      arXiv 2411.07538.
    """
    query, key = _onto(x, params.w_q), _onto(x, params.w_k)
    parts = [(query[:, i], key[:, i]) for i in range(query.shape[1])]
    products = sum(q[:, :, None] * k[:, None] for q, k in parts)
    query_squares, key_squares = sum(q * q for q, _ in parts), sum(k * k for _, k in parts)
    return attention(kind, jnp.asarray(products), jnp.asarray(query_squares), jnp.asarray(key_squares), c, axis=-2)


def forward(params: KernelParams, x: Array, kind: str, c: Array | float) -> Array:
    """Outputs of multi-head attention with a kernel.

        MH(X) = sum_h S_h X W_h^V W_h^O,   S_h = kernel(X W_h^Q, X W_h^K)

    which is concat_h(S_h X W_h^V) W^O.

    Args:
      params: KernelParams.
      x: (D, n, B) tokens.
      kind: "softmax", "gaussian" or "linear".
      c: kernel constant, > 0, may be traced.

    Returns:
      (d_out, n, B).

    Examples:
      >>> params = init(jax.random.key(0), KernelProblem(embed=6, d=2, d_out=3), KernelHyper())
      >>> forward(params, jnp.ones((6, 5, 3)), "gaussian", 0.25).shape
      (3, 5, 3)

    References:
      arXiv 2411.07538, multi-head attention.
    """
    value = _onto(x, jnp.matmul(params.w_v, params.w_o, precision=HIGHEST))  # (heads, d_out, n, B)
    scores = weights(params, x, kind, c)
    heads, tokens = scores.shape[:2]
    return jnp.asarray(sum(scores[h, None, :, j] * value[h, :, None, j] for h in range(heads) for j in range(tokens)))


def _outside(basis: Array, vector: Array) -> Array:
    """The part of a vector that is orthogonal to the columns of a basis."""
    return vector - jnp.matmul(basis, jnp.matmul(basis.T, vector, precision=HIGHEST), precision=HIGHEST)


def orthonormal(columns: Array) -> tuple[Array, Array]:
    """An orthonormal basis of the span of some columns, by Gram and Schmidt's process done twice.

    It is written out because LAPACK's decompositions, which XLA calls on a CPU, can deadlock in a program that runs on
    several devices.

    Args:
      columns: (m, k).

    Returns:
      (basis (m, min(m, k)), rank ()): the first `rank` columns are orthonormal, the others 0. A column counts as
      dependent if less than 100 rounding errors of its length are outside the span of those before it.

    Examples:
      >>> basis, rank = orthonormal(jnp.array([[3.0, 6.0, 1.0], [0.0, 0.0, 2.0]]))
      >>> basis.tolist(), int(rank)
      ([[1.0, 0.0], [0.0, 1.0]], 2)

    References:
      Giraud, Langou, Rozloznik, Computers and Mathematics with Applications 2005: twice is enough.
    """
    most = min(columns.shape)
    tolerance = 100 * jnp.finfo(columns.dtype).eps

    def add(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, rank = state
        column = columns[:, i]
        rest = _outside(basis, _outside(basis, column))
        length = jnp.linalg.norm(rest)
        new = (length > tolerance * jnp.linalg.norm(column)) & (rank < most)
        unit = rest / jnp.where(new, length, 1)
        return basis.at[:, jnp.where(new, rank, most)].set(unit, mode="drop"), rank + new.astype(rank.dtype)

    start = jnp.zeros((columns.shape[0], most), columns.dtype), jnp.zeros((), jnp.int32)
    return jax.lax.fori_loop(0, columns.shape[1], add, start)


def value_map(params: KernelParams, x: Array, kind: str, c: Array | float) -> Array:
    """A matrix whose columns span all outputs that W_V alone can make.

        vec MH = sum_h (S_h X (x) (W_h^O)^T) vec W_h^V,   rank (H = 1) = rank(S X) * rank(W^O)

    The rows of W_h^O are replaced by an orthonormal basis of their span, which gives the same outputs with
    min(d, d_out) instead of d columns per embedding coordinate.

    Args:
      params: KernelParams.
      x: (D, n, B) tokens.
      kind: the kernel.
      c: its constant.

    Returns:
      (d_out n B, heads D min(d, d_out)).

    Examples:
      >>> params = init(jax.random.key(0), KernelProblem(embed=6, d=2, d_out=3), KernelHyper())
      >>> value_map(params, jnp.ones((6, 5, 4)), "softmax", 0.25).shape
      (60, 12)

    References:
      Derived here from the model of arXiv 2411.07538.
    """
    basis = jax.vmap(lambda rows: orthonormal(rows.T)[0])(params.w_o)  # (heads, d_out, min(d, d_out))
    mixed = jnp.einsum("hkjb,Djb->hDkb", weights(params, x, kind, c), x, precision=HIGHEST)
    outputs = jnp.einsum("hDkb,hor->okbhDr", mixed, basis, precision=HIGHEST)
    return outputs.reshape(params.w_o.shape[2] * x.shape[1] * x.shape[2], -1)


def value_optimum(params: KernelParams, samples: Samples, kind: str, c: Array | float) -> tuple[Array, Array]:
    """The smallest loss that W_V alone can reach, relative to a zero output's, and the dimension of its outputs.

        min_{W_V} ||MH - y||^2 / ||y||^2 = ||y - U U^T y||^2 / ||y||^2

    with U an orthonormal basis of the span of `value_map`. For i.i.d. normal targets its mean is
    1 - rank / (N n d_out).

    Args:
      params: KernelParams; W_V is not used.
      samples: Samples.
      kind: the kernel.
      c: its constant.

    Returns:
      (ratio (), rank ()), the ratio in [0, 1] up to rounding.

    References:
      Derived here: training W_V alone is linear least squares.
    """
    basis, rank = orthonormal(value_map(params, samples.x, kind, c))
    y = samples.y.ravel()
    missed = _outside(basis, _outside(basis, y))
    return jnp.sum(missed * missed) / jnp.sum(y * y), rank


DIMS = {"landscape": ("first", "second")}
ATTRS = {
    "train_loss": {"long_name": "training loss", "units": "1"},
    "train_ratio": {"long_name": "training loss / that of a zero output", "units": "1"},
    "gradient_norm": {"long_name": "norm of the gradient in W_Q", "units": "1"},
    "best_ratio": {"long_name": "least loss that W_V alone can reach / that of a zero output", "units": "1"},
    "value_rank": {"long_name": "dimension of the outputs that W_V alone can make", "units": "1"},
    "landscape": {"long_name": "training loss on a plane through W_Q", "units": "1"},
    "roughness": {"long_name": "excess variation of the landscape's lines", "units": "1"},
    "mean_curvature": {"long_name": "mean of the Hessian's diagonal in W_Q, tr H / size", "units": "1"},
    "robust_condition": {"long_name": "max / median of the Hessian's diagonal in W_Q", "units": "1"},
    "test_loss": {"long_name": "loss on fresh samples", "units": "1"},
    "test_ratio": {"long_name": "loss on fresh samples / that of a zero output", "units": "1"},
}


class Fresh(NamedTuple):
    """Draws for the measurements of the test steps.

    Args:
      samples: fresh Samples; None where targets are random, so that nothing learned applies to fresh ones.
      plane: (2, *w_q.shape) orthonormal directions of the landscape.
    """

    samples: Samples | None
    plane: Array


@system(KernelProblem, KernelHyper)
@functools.cache
def kernel_attention(problem: KernelProblem) -> Task:
    """One layer of multi-head attention with a kernel, trained on squared error, full batch.

        L = (1/2N) sum_i ||MH(X_i) - y_i||^2

    Test steps measure what W_V alone could reach, the curvature and the landscape in W_Q, and the loss on fresh
    samples; a measurement that is not among the observables of a run costs nothing. The landscape's directions are
    drawn from the stream "test", so that all kernels are compared along the same directions.

    Args:
      problem: a KernelProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no KernelProblem.

    Examples:
      >>> import optax, jaxsign as js
      >>> task = kernel_attention(KernelProblem(samples=2, tokens=2, embed=6))
      >>> run = js.train(jax.random.key(0), task, KernelHyper(), optax.sgd(1.0), steps=20, trainable=("w_v",))
      >>> bool(run.trace["train_loss"][-1] < run.trace["train_loss"][0])
      True

    References:
      arXiv 2411.07538, "paper-inspired": its sizes and kernel constant are reconstructed.
    """
    instance("problem", problem, KernelProblem)

    def loss(params: KernelParams, batch: Samples, hyper: KernelHyper) -> Array:
        error = forward(params, batch.x, problem.kernel, constant(problem, hyper)) - batch.y
        return jnp.sum(error * error) / (2 * batch.x.shape[2])

    def ratio(value: Array, batch: Samples) -> Array:
        return value / (jnp.sum(batch.y * batch.y) / (2 * batch.x.shape[2]))

    def sample_test(key: Array, hyper: KernelHyper, shared: Any = None) -> Fresh:
        del shared
        fresh, plane = jax.random.split(key)
        carries = problem.targets != "random"
        samples = sample(fresh, problem, hyper, problem.n_test) if carries else None
        return Fresh(samples, landscape.directions(plane, (problem.heads, problem.embed, problem.d)))

    def observe(params: KernelParams, data: Samples, test: Fresh | None, hyper: KernelHyper) -> dict[str, Array]:
        def of_queries(w_q: Array) -> Array:
            return loss(params._replace(w_q=w_q), data, hyper)

        value, gradient = jax.value_and_grad(of_queries)(params.w_q)
        observables = {
            "train_loss": value,
            "train_ratio": ratio(value, data),
            "gradient_norm": jnp.sqrt(jnp.sum(gradient * gradient)),
        }
        if test is None:
            return observables
        best, rank = value_optimum(params, data, problem.kernel, constant(problem, hyper))
        plane = landscape.plane(of_queries, params.w_q, test.plane, problem.plane_points)
        diagonal = curvature.hessian_diagonal(of_queries, params.w_q)
        observables |= {
            "best_ratio": best,
            "value_rank": rank,
            "landscape": plane,
            "roughness": landscape.roughness(plane),
            "mean_curvature": jnp.mean(diagonal),
            "robust_condition": curvature.robust_condition(diagonal.ravel()),
        }
        if test.samples is not None:
            fresh = loss(params, test.samples, hyper)
            observables |= {"test_loss": fresh, "test_ratio": ratio(fresh, test.samples)}
        return observables

    return Task(
        sample=lambda key, hyper, shared: sample(key, problem, hyper, problem.samples),
        init=lambda key, data, hyper: init(key, problem, hyper),
        loss=loss,
        observe=observe,
        sample_test=sample_test,
        validate=lambda hyper: instance("hyper", hyper, KernelHyper).validate(),
        dims=DIMS,
        attrs=ATTRS,
        problem=problem,
        name="kernel_attention",
    )

"""Linear attention on in-context regression (arXiv 2310.01082): how is curvature seen in the simplest transformer?

Fresh prompts at every step, squared error, losses and curvature on prompts that are never trained on. In this order:
the problem and its numbers, prompts, the linear transformer, the Task.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsign.analysis import curvature
from jaxsign.systems import system
from jaxsign.training.task import Task
from jaxsign.validation.values import instance, known, positive_int, real

Array = jax.Array


INPUTS = ("normal", "gamma", "spherical")
FORMS = ("sparse", "full")
ATTENTIONS = ("linear", "softmax")
TARGETS = ("linear", "relu")


@dataclasses.dataclass(frozen=True)
class RegressionProblem:
    """Everything that fixes the shapes and distributions of in-context regression. Frozen and hashable.

    Args:
      d: dimension of an input x_i, int >= 1.
      n_context: examples (x_i, y_i) in a prompt, int >= 1.
      depth: attention layers L, int >= 1.
      inputs: "normal" x ~ N(0, I); "gamma" x = sqrt(Gamma(shape, scale)) times a uniform direction; "spherical" a
        uniform direction.
      targets: "linear" y = <x, w>; "relu" the output of a network with one hidden layer of ReLUs.
      hidden: hidden units of the "relu" network, int >= 1; not used by linear targets.
      form: "sparse" trains P = diag(P', 1) and Q = diag(Q', 0) with P', Q' in R^(d x d); "full" trains all of both.
      attention: "linear", or "softmax" over the keys of the scores.
      batch_size: fresh prompts of a step, int >= 1.
      n_eval: prompts of the fixed sample that losses and smoothness are measured on, int >= 1.
      n_hessian: number of these prompts, the first ones, that the Hessian is measured on, int >= 1; all if fewer.
      noise_draws: number of fresh batches that gradient noise is measured on at every test step, int >= 0.
      noise_mean: prompts that the mean gradient is estimated from, int >= 1.

    Raises:
      ValueError: naming field, value and legal range.

    Examples:
      >>> RegressionProblem(n_context=5).width
      6

    References:
      arXiv 2310.01082, settings 1-3, the spherical one and nonlinear regression; the width of its network, and that
      each prompt has a network of its own, are reconstructed.
    """

    d: int = 5
    n_context: int = 20
    depth: int = 3
    inputs: str = "normal"
    targets: str = "linear"
    hidden: int = 10
    form: str = "sparse"
    attention: str = "linear"
    batch_size: int = 1000
    n_eval: int = 1000
    n_hessian: int = 250
    noise_draws: int = 0
    noise_mean: int = 100_000

    def __post_init__(self) -> None:
        for name in (
            "d",
            "n_context",
            "hidden",
            "depth",
            "batch_size",
            "n_eval",
            "n_hessian",
            "noise_draws",
            "noise_mean",
        ):
            number = positive_int(name, getattr(self, name), minimum=0 if name == "noise_draws" else 1)
            object.__setattr__(self, name, number)
        known("inputs", self.inputs, INPUTS)
        known("targets", self.targets, TARGETS)
        known("form", self.form, FORMS)
        known("attention", self.attention, ATTENTIONS)

    @property
    def width(self) -> int:
        """Rows of a prompt matrix, d + 1."""
        return self.d + 1


@dataclasses.dataclass(frozen=True)
class RegressionHyper:
    """The system's numbers, swept without recompiling: a pytree whose leaves may be traced.

    Args:
      init_std: standard deviation of every initial weight, finite, >= 0.
      gamma_shape: k of the squared length of "gamma" inputs, finite, > 0.
      gamma_scale: theta of the squared length, finite, > 0; its mean is k * theta.

    Examples:
      >>> RegressionHyper().init_std
      0.05

    References:
      arXiv 2310.01082.
    """

    init_std: Any = 0.05
    gamma_shape: Any = 0.1
    gamma_scale: Any = 10.0

    def validate(self) -> None:
        """Checks every number on the host.

        Raises:
          ValueError: naming field, value and legal range.
        """
        for name in ("init_std", "gamma_shape", "gamma_scale"):
            for number in np.ravel(getattr(self, name)).tolist():
                real(name, number, low=0.0, open_low=name != "init_std")


jax.tree_util.register_dataclass(
    RegressionHyper, data_fields=["init_std", "gamma_shape", "gamma_scale"], meta_fields=[]
)


class Prompts(NamedTuple):
    """Regression tasks, each with labelled inputs and one question. The prompts are the last axis throughout: the
    matrices of a prompt are small, so that only operations across prompts vectorise.

    Args:
      x: (d, n_context+1, B) inputs; the last one is the question.
      y: (n_context+1, B) labels; the last one is the answer.
    """

    x: Array
    y: Array

    @property
    def target(self) -> Array:
        """(B,) the answer, y_(n+1)."""
        return self.y[-1]

    def matrix(self) -> Array:
        """(d+1, n_context+1, B) the prompts Z_0: columns (x_i; y_i), the last one (x_(n+1); 0)."""
        return jnp.concatenate([self.x, self.y.at[-1].set(0)[None]])


def sample_prompts(key: Array, problem: RegressionProblem, hyper: RegressionHyper, count: int) -> Prompts:
    """Draws prompts: x_i from the problem's distribution, and a target function for each prompt.

        normal: x ~ N(0, I)     spherical: x = u     gamma: x = sqrt(r) u,  r ~ Gamma(shape, scale)
        linear: y = <x, w>,  w ~ N(0, I)
        relu:   y = sqrt(2/h) sum_j a_j max(0, <x, v_j>),  a_j ~ N(0, 1),  v_j ~ N(0, I)

    with u uniform on the unit sphere and h hidden units. Both targets have E y^2 = |x|^2 for every x.

    Args:
      key: a key.
      problem: shapes, the distribution of x, and the targets.
      hyper: numbers of the gamma distribution, may be traced.
      count: prompts, int >= 1.

    Returns:
      Prompts.

    Examples:
      >>> sample_prompts(jax.random.key(0), RegressionProblem(d=3, n_context=4), RegressionHyper(), 7).x.shape
      (3, 5, 7)

    References:
      arXiv 2310.01082, data; the scale of the ReLU network is reconstructed.
    """
    inputs, weights, lengths = jax.random.split(key, 3)
    x = jax.random.normal(inputs, (problem.d, problem.n_context + 1, count))
    if problem.inputs != "normal":
        x = x * jax.lax.rsqrt(jnp.sum(x * x, axis=0, keepdims=True))
    if problem.inputs == "gamma":
        x = x * jnp.sqrt(hyper.gamma_scale * gamma(lengths, hyper.gamma_shape, x.shape[1:]))[None]
    if problem.targets == "linear":
        return Prompts(x, _inner(x, jax.random.normal(weights, (problem.d, count))))
    first, second = jax.random.split(weights)
    v = jax.random.normal(first, (problem.hidden, problem.d, count))
    a = jax.random.normal(second, (problem.hidden, count))

    def added(j: Array, y: Array) -> Array:  # a loop, since sums written out take longer than all the draws
        return y + a[j, None] * jax.nn.relu(_inner(x, v[j]))

    y = jax.lax.fori_loop(0, problem.hidden, added, jnp.zeros(x.shape[1:]))
    return Prompts(x, jnp.sqrt(2 / problem.hidden) * y)


def _total(terms: Iterable[Array]) -> Array:
    """A sum written out, term by term: XLA does not vectorise a sum over an axis across prompts."""
    return functools.reduce(jnp.add, terms)


def _inner(x: Array, w: Array) -> Array:
    """<x_i, w> for x (d, n, B) and w (d, B), prompt by prompt, shape (n, B)."""
    return _total(x[k] * w[k, None] for k in range(x.shape[0]))


def gamma(key: Array, shape: Array, size: tuple[int, ...]) -> Array:
    """Draws from Gamma(shape, 1) without a loop per number: all proposals at once, of which the accepted ones are kept.

    `jax.random.gamma` loops until its slowest number is accepted. Here a quarter more proposals than needed are drawn
    at once. The accepted ones, in order, are independent draws of Gamma(shape + 1): Marsaglia and Tsang accept more
    than 95 % for shape >= 1, and Gamma(k) equals Gamma(k+1) * U^(1/k) in distribution.

    Args:
      key: a key.
      shape: k > 0, may be traced.
      size: shape of the result; some hundreds of numbers or more, so that there are always enough proposals.

    Returns:
      Array of `size`.

    References:
      Marsaglia and Tsang, ACM TOMS 2000.
    """
    count = 1
    for length in size:
        count *= length
    proposals = count + count // 4 + 64
    normals, uniforms, powers = jax.random.split(key, 3)
    z = jax.random.normal(normals, (proposals,))
    third = shape + 1 - 1 / 3  # of Gamma(k + 1)
    cube = (1 + z / jnp.sqrt(9 * third)) ** 3
    safe = jnp.maximum(cube, jnp.finfo(z.dtype).tiny)
    log_u = -jax.random.exponential(uniforms, (proposals,))
    accepted = (cube > 0) & (log_u < z * z / 2 + third * (1 - safe + jnp.log(safe)))
    place = jnp.where(accepted, jnp.cumsum(accepted) - 1, count)
    kept = jnp.zeros((count,), z.dtype).at[place].set(third * safe, mode="drop").reshape(size)
    return kept * jnp.exp(-jax.random.exponential(powers, size) / shape)


class LinearParams(NamedTuple):
    """Weights of all layers.

    Args:
      p: (depth, d, d) P' for the sparse form, (depth, d+1, d+1) P for the full one.
      q: the same for Q.
    """

    p: Array
    q: Array


def init(key: Array, problem: RegressionProblem, hyper: RegressionHyper) -> LinearParams:
    """Draws every trained weight i.i.d. N(0, init_std^2).

    Args:
      key: key of the stream "init".
      problem: shapes.
      hyper: init_std, may be traced.

    Returns:
      LinearParams.

    Examples:
      >>> init(jax.random.key(0), RegressionProblem(d=2, depth=3), RegressionHyper()).p.shape
      (3, 2, 2)

    References:
      arXiv 2310.01082, initialisation.
    """
    side = problem.d if problem.form == "sparse" else problem.width
    p, q = (jax.random.normal(k, (problem.depth, side, side)) for k in jax.random.split(key))
    return LinearParams(hyper.init_std * p, hyper.init_std * q)


def padded(params: LinearParams, width: int) -> LinearParams:
    """P and Q with all of their rows: diag(P', 1) and diag(Q', 0) for the sparse form."""
    if params.p.shape[-1] == width:
        return params
    border = ((0, 0), (0, 1), (0, 1))
    return LinearParams(jnp.pad(params.p, border).at[:, -1, -1].set(1), jnp.pad(params.q, border))


# Products of many small matrices. Derivatives are written out as products, too: what JAX derives sums over short axes
# and hands back products across prompts transposed, and takes three times as long.


def _products(a: Array, b: Array) -> Array:
    return _total(a[:, k, None] * b[None, k] for k in range(a.shape[1]))


@jax.custom_vjp
def _times(a: Array, b: Array) -> Array:
    """Products of small matrices (i, k, B) and (k, j, B), prompt by prompt; a batched `dot` takes 5 times as long."""
    return _products(a, b)


def _times_back(factors: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    a, b = factors
    return _products(g, jnp.swapaxes(b, 0, 1)), _products(jnp.swapaxes(a, 0, 1), g)


_times.defvjp(lambda a, b: (_products(a, b), (a, b)), _times_back)


def _apply(a: Array, v: Array) -> Array:
    """Small matrices (i, k, B) times vectors (k, B), prompt by prompt."""
    return _times(a, v[:, None])[:, 0]


def _weighted(weights: Array, v: Array) -> Array:
    return jnp.einsum("ik,k...->i...", weights, v, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def _weigh(weights: Array, v: Array) -> Array:
    """One matrix (i, k) times (k, ..., B) of all prompts."""
    return _weighted(weights, v)


def _weigh_back(factors: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    weights, v = factors
    high = jax.lax.Precision.HIGHEST
    slope = jnp.einsum("ib,kb->ik", g.reshape(g.shape[0], -1), v.reshape(v.shape[0], -1), precision=high)
    return slope, _weighted(weights.T, g)


_weigh.defvjp(lambda weights, v: (_weighted(weights, v), (weights, v)), _weigh_back)


def forward(params: LinearParams, z: Array, attention: str = "linear") -> Array:
    """Predictions by the definition, layer by layer on the prompts themselves.

        Z_(l+1) = Z_l + (1/n) P_l Z_l M (Z_l^T Q_l Z_l),   M = diag(I_n, 0),   prediction = -[Z_L]_(d+1, n+1)

    The softmax variant takes the softmax of Z^T Q Z over the keys. In the last layer only the question moves.

    Args:
      params: LinearParams.
      z: (d+1, n+1, B) prompts.
      attention: "linear" or "softmax".

    Returns:
      (B,).

    References:
      arXiv 2310.01082, linear transformer; the softmax variant is reconstructed.
    """
    n, depth = z.shape[1] - 1, params.p.shape[0]
    for layer, (p, q) in enumerate(zip(*padded(params, z.shape[0]))):
        columns = z[:, n:] if layer == depth - 1 else z
        score = _times(jnp.swapaxes(z, 0, 1), _weigh(q, columns))  # key first
        if attention == "softmax":
            score = jax.nn.softmax(score, axis=0)
        z = columns + _weigh(p, _times(z[:, :n], score[:n])) / n
    return -z[-1, -1]


def predict(params: LinearParams, prompts: Prompts) -> Array:
    """Predictions of the linear transformer, through the Gram matrix of each prompt's context.

    A layer moves all columns by one linear map, since P Z M (Z^T Q Z) = P (Z M Z^T) Q Z: the context enters only
    through its Gram matrix, and after that the question is the only column. For the sparse form the blocks are

        S = sum_i x_i x_i^T,   s = sum_i x_i y_i,   A_l = I + (1/n) P'_l S_l Q'_l,   r_l = (1/n) Q'_l^T s_l
        S_(l+1) = A_l S_l A_l^T,   s_(l+1) = A_l (s_l + S_l r_l),   x_(l+1) = A_l x_l,   prediction = -sum_l <r_l, x_l>

    with x the question. The last layer needs no S, so that the one before it forms no matrix.

    Args:
      params: LinearParams.
      prompts: Prompts.

    Returns:
      (B,).

    References:
      Derived here from the model of arXiv 2310.01082.
    """
    if params.p.shape[-1] > prompts.x.shape[0]:
        return _predict_full(params, prompts)
    n, depth = prompts.y.shape[0] - 1, params.p.shape[0]
    x = prompts.x[:, n]
    context = [prompts.x[:, i] for i in range(n)]
    gram = _total(column[:, None] * column[None] for column in context)
    moment = _total(column * prompts.y[i, None] for i, column in enumerate(context))
    prediction = jnp.zeros_like(prompts.target)
    for layer, (p, q) in enumerate(zip(*params)):
        r = _weigh(q.T, moment) / n
        prediction = prediction - _total(r[k] * x[k] for k in range(x.shape[0]))
        moved = moment + _apply(gram, r)
        if layer == depth - 2:
            moment, x = (v + _weigh(p, _apply(gram, _weigh(q, v))) / n for v in (moved, x))
        elif layer < depth - 2:
            right = jnp.swapaxes(_weigh(q.T, gram), 0, 1)  # S Q', since S is symmetric
            move = _weigh(p, right) / n  # A - I
            moment, x = moved + _apply(move, moved), x + _apply(move, x)
            gram = _moved(move, gram)
    return prediction


def _moved(move: Array, gram: Array) -> Array:
    """(I + M) G (I + M)^T for a symmetric G, prompt by prompt."""
    half = _times(move, gram)
    return gram + half + jnp.swapaxes(half, 0, 1) + _times(half, jnp.swapaxes(move, 0, 1))


def _predict_full(params: LinearParams, prompts: Prompts) -> Array:
    """`predict` where all of P and Q is trained: T_l = I + (1/n) P_l G_l Q_l moves all d+1 rows of Z."""
    z = prompts.matrix()
    n, depth = z.shape[1] - 1, params.p.shape[0]
    last = z[:, n]
    gram = _total(z[:, None, i] * z[None, :, i] for i in range(n))
    for layer, (p, q) in enumerate(zip(*params)):
        right = jnp.swapaxes(_weigh(q.T, gram), 0, 1)  # G Q, since G is symmetric
        if layer == depth - 1:
            row = _weigh(p[-1:], right)[0]  # the label's row of P G Q
            return -(last[-1] + _total(row[k] * last[k] for k in range(last.shape[0])) / n)
        move = _weigh(p, right) / n  # T - I
        last = last + _apply(move, last)
        gram = _moved(move, gram)
    raise AssertionError("depth >= 1")


DIMS = {"gradient_noise": ("draw",)}
ATTRS = {
    "train_loss": {"long_name": "squared error on the fixed evaluation prompts", "units": "1"},
    "gradient_norm": {"long_name": "gradient norm on the evaluation prompts", "units": "1"},
    "robust_condition": {"long_name": "max / median of the Hessian's diagonal", "units": "1"},
    "robust_condition_eigen": {"long_name": "max / median of the Hessian's eigenvalues", "units": "1"},
    "directional_smoothness": {"long_name": "curvature along the last step, where it began", "units": "1"},
    "gradient_before": {"long_name": "gradient norm where the last step began", "units": "1"},
    "gradient_noise": {"long_name": "||g_B - g|| of fresh batches", "units": "1"},
}


def _loss(params: LinearParams, prompts: Prompts, attention: str) -> Array:
    linear = attention == "linear"
    error = (predict(params, prompts) if linear else forward(params, prompts.matrix(), attention)) - prompts.target
    return jnp.mean(error * error)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


def _noise_norms(params: LinearParams, words: Array, problem: RegressionProblem, hyper: RegressionHyper) -> Array:
    """(noise_draws,) ||g_B - g|| of the gradients of fresh batches; `words` are the data of a key."""
    means, draws = jax.random.split(jax.random.wrap_key_data(words, impl="threefry2x32"))

    def gradient(key: Array) -> LinearParams:
        prompts = sample_prompts(key, problem, hyper, problem.batch_size)
        return jax.grad(_loss)(params, prompts, problem.attention)

    many = jax.random.split(means, -(-problem.noise_mean // problem.batch_size))
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), jax.lax.map(gradient, many))
    return curvature.gradient_noise(gradient, mean, draws, problem.noise_draws)


@system(RegressionProblem, RegressionHyper)
@functools.cache
def linear_attention(problem: RegressionProblem) -> Task:
    """A linear transformer that learns regression in context, on fresh prompts at every step.

        f = E (prediction - y_(n+1))^2

    Losses and curvature are measured on `n_eval` prompts that are never trained on; the observable `train_loss` is the
    loss there. Condition numbers, and with `noise_draws` the noise of the gradients of fresh batches, are measured at
    the test steps.

    Args:
      problem: a RegressionProblem.

    Returns:
      The Task; equal problems give the identical object.

    Raises:
      ValueError: if it is no RegressionProblem.

    Examples:
      >>> import jaxsign as js
      >>> task = js.linear_attention(js.RegressionProblem(d=2, n_context=4, depth=1, batch_size=8, n_eval=8))
      >>> run = js.train(jax.random.key(0), task, js.RegressionHyper(), js.sign_gd(1e-2), steps=20, record=10)
      >>> run.trace["directional_smoothness"].shape
      (3,)

    References:
      arXiv 2310.01082.
    """
    instance("problem", problem, RegressionProblem)

    def loss(params: LinearParams, batch: Prompts, hyper: RegressionHyper) -> Array:
        del hyper
        return _loss(params, batch, problem.attention)

    def sample(key: Array, hyper: RegressionHyper, shared: Any = None) -> Prompts:
        del shared
        return sample_prompts(key, problem, hyper, problem.n_eval)

    def noise_key(key: Array, hyper: RegressionHyper, shared: Any = None) -> Array:
        """The key of the batches that gradient noise is measured on, in place of a test set."""
        del hyper, shared
        return jax.random.key_data(key)

    def fresh(key: Array, data: Prompts, hyper: RegressionHyper) -> Prompts:
        del data
        return sample_prompts(key, problem, hyper, problem.batch_size)

    def observe(params: LinearParams, data: Prompts, test: Any, hyper: RegressionHyper) -> dict[str, Array]:
        def evaluation_loss(p: LinearParams) -> Array:
            return loss(p, data, hyper)

        value, gradient = jax.value_and_grad(evaluation_loss)(params)
        observables = {"train_loss": value, "gradient_norm": _norm(gradient)}
        if test is not None:  # at test steps only, since it is costly
            few = jax.tree.map(lambda x: x[..., : problem.n_hessian], data)
            full = curvature.hessian(lambda p: loss(p, few, hyper), params)
            observables["robust_condition"] = curvature.robust_condition(jnp.diagonal(full))
            observables["robust_condition_eigen"] = curvature.robust_condition(curvature.eigenvalues(full))
            if problem.noise_draws:
                observables["gradient_noise"] = _noise_norms(params, test, problem, hyper)
        return observables

    def observe_step(params: LinearParams, before: Any, data: Prompts, hyper: RegressionHyper) -> dict[str, Array]:
        def evaluation_loss(p: LinearParams) -> Array:
            return loss(p, data, hyper)

        move = jax.tree.map(jnp.subtract, params, before)
        return {
            "directional_smoothness": curvature.directional_smoothness(evaluation_loss, before, move),
            "gradient_before": _norm(jax.grad(evaluation_loss)(before)),
        }

    return Task(
        sample=sample,
        init=lambda key, data, hyper: init(key, problem, hyper),
        loss=loss,
        batch=fresh,
        observe=observe,
        observe_step=observe_step,
        sample_test=noise_key,
        validate=lambda hyper: instance("hyper", hyper, RegressionHyper).validate(),
        dims=DIMS,
        attrs=ATTRS,
        problem=problem,
        name="linear_attention",
    )

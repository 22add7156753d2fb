"""Kernel attention against NumPy sums, finite differences and least squares; its laws and landscape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.analysis import landscape
from jaxsign.systems import kernels as system
from jaxsign.systems.attention import attention, default_constant, kernel
from jaxsign.systems.kernels import KERNELS, KernelHyper, KernelProblem, kernel_attention

X64 = jax.config.jax_enable_x64
HYPER = KernelHyper(init_scale=0.7, c_scale=1.5)
SMALL = KernelProblem(samples=3, tokens=4, embed=5, d=2, heads=2, d_out=3)


def weight(kind, query, keys, c):
    """Weights of one query on all keys in float64, from the definition."""
    if kind == "gaussian":
        return np.array([np.exp(-c * sum((query - k) ** 2)) for k in keys])
    if kind == "uniform":
        return np.full(len(keys), 1 / len(keys))
    scores = np.array([2 * c * sum(query * k) for k in keys])
    return scores if kind == "linear" else np.exp(scores) / sum(np.exp(scores))


def by_hand(params, x, kind, c):
    """concat_h(S_h X W_h^V) W^O of one sample (n, D) in float64, sum by sum."""
    w_q, w_k, w_v, w_o = (np.asarray(w, np.float64) for w in params)
    rows = []
    for token in x:
        heads = []
        for q, k, v in zip(w_q, w_k, w_v):
            weights = weight(kind, token @ q, x @ k, c)
            heads.append(sum(weights[j] * (x[j] @ v) for j in range(len(x))))
        rows.append(np.concatenate(heads) @ np.concatenate(w_o))
    return np.array(rows)


def loss_by_hand(params, samples, kind, c):
    """(1/2N) sum_i ||MH(X_i) - y_i||^2 in float64."""
    xs, ys = (np.moveaxis(np.asarray(a, np.float64), (0, 1, 2), (2, 1, 0)) for a in samples)
    return sum(np.sum((by_hand(params, x, kind, c) - y) ** 2) for x, y in zip(xs, ys)) / (2 * len(xs))


def columns(params, samples, kind, c):
    """The outputs (N n d_out) that each single entry of W_V makes, in float64: all that W_V can do, one by one."""
    xs = np.moveaxis(np.asarray(samples.x, np.float64), (0, 1, 2), (2, 1, 0))
    out = []
    for place in np.ndindex(params.w_v.shape):
        unit = np.zeros(params.w_v.shape)
        unit[place] = 1
        one = params._replace(w_v=unit)
        out.append(np.concatenate([by_hand(one, x, kind, c).ravel() for x in xs]))
    return np.array(out).T


def targets(samples):
    return np.moveaxis(np.asarray(samples.y, np.float64), (0, 1, 2), (2, 1, 0)).ravel()


@functools.cache
def draws(problem):
    """One program: operation by operation they would be twenty."""
    return jax.jit(
        lambda data, init, hyper: (
            system.sample(data, problem, hyper, problem.samples), system.init(init, problem, hyper)
        )
    )  # fmt: skip


def drawn(problem, seed=0, hyper=HYPER):
    """(samples, parameters), which are the same for every kernel."""
    sizes = dataclasses.replace(problem, kernel=KERNELS[0])
    return draws(sizes)(jax.random.key(seed), jax.random.key(seed + 100), hyper)


@pytest.mark.x64
@pytest.mark.parametrize("kind", [*KERNELS, "uniform"])
def test_kernels_are_the_direct_sums(kind):
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4))
    found = jax.jit(kernel(kind))(*(jnp.asarray(a, jnp.zeros(()).dtype) for a in (query, key)), 0.3)
    expected = [[weight(kind, q, key[b], 0.3) for q in query[b]] for b in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-12 if X64 else 1e-5, atol=0 if X64 else 1e-6)


@pytest.mark.parametrize("kind", [*KERNELS, "uniform"])
def test_keys_may_have_samples_behind_them(kind):
    rng = np.random.default_rng(2)
    query, key = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 3, 4), (2, 5, 4)))

    @jax.jit
    def both(query, key):
        products = jnp.einsum("bqd,bkd->bqk", query, key, precision="highest")
        squares = [jnp.sum(a * a, axis=-1) for a in (query, key)]
        behind = attention(kind, jnp.moveaxis(products, 0, -1), squares[0].T, squares[1].T, 0.3, axis=-2)
        return jnp.moveaxis(behind, -1, 0), kernel(kind)(query, key, 0.3)

    np.testing.assert_allclose(*both(query, key), rtol=1e-5, atol=1e-6)


def test_softmax_and_gaussian_agree_where_norms_are_equal():
    rng = np.random.default_rng(3)
    query, key = rng.standard_normal((2, 6, 3)).astype(np.float32)
    query, key = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (query, key))
    c = default_constant(3)
    assert 2 * c == pytest.approx(3**-0.5)
    gaussian, softmax = (
        np.asarray(jax.jit(kernel(kind))(jnp.asarray(query), jnp.asarray(key), c)) for kind in ("gaussian", "softmax")
    )
    np.testing.assert_allclose(gaussian / gaussian.sum(-1, keepdims=True), softmax, rtol=1e-5)
    assert np.abs(gaussian.sum(-1) - 1).min() > 0.1  # the Gaussian kernel is not normalised


@pytest.mark.x64
@pytest.mark.parametrize("kind", KERNELS)
def test_loss_is_that_of_numpy_loops_and_its_gradient_that_of_finite_differences(kind):
    problem = dataclasses.replace(SMALL, kernel=kind)
    samples, params = drawn(problem)
    c = HYPER.c_scale / (2 * problem.d**0.5)
    loss, gradient = jax.jit(jax.value_and_grad(kernel_attention(problem).loss))(params, samples, HYPER)
    assert float(loss) == pytest.approx(loss_by_hand(params, samples, kind, c), rel=1e-12 if X64 else 1e-5)
    rng = np.random.default_rng(4)
    for name in params._fields:
        direction = rng.standard_normal(getattr(params, name).shape)
        ends = [
            loss_by_hand(
                params._replace(**{name: np.asarray(getattr(params, name), np.float64) + h * direction}),
                samples, kind, c,
            )
            for h in (-1e-5, 1e-5)
        ]  # fmt: skip
        slope = float(np.sum(np.asarray(getattr(gradient, name), np.float64) * direction))
        assert slope == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-6 if X64 else 2e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "gaussian"])
@pytest.mark.parametrize(
    ("embed", "heads", "d", "d_out", "rank"),
    [(2, 1, 2, 1, 2), (5, 1, 2, 1, 5), (6, 1, 2, 1, 6), (9, 1, 2, 1, 6), (7, 1, 2, 2, 12), (9, 1, 2, 4, 12),
     (3, 2, 2, 1, 6), (2, 2, 2, 1, 4), (7, 2, 2, 4, 24)],
)  # fmt: skip
def test_what_w_v_reaches_is_exactly_the_rank_condition(kind, embed, heads, d, d_out, rank):
    problem = KernelProblem(samples=3, tokens=2, embed=embed, heads=heads, d=d, d_out=d_out, kernel=kind)
    hyper = KernelHyper(init_scale=1.0)  # neither uniform nor vanishing attention: the rank is seen in 32 bits too
    samples, params = drawn(problem, hyper=hyper)
    c = float(system.constant(problem, hyper))
    design, y = columns(params, samples, kind, c), targets(samples)
    assert np.linalg.matrix_rank(design, rtol=1e-8) == rank
    missed = y - design @ np.linalg.lstsq(design, y, rcond=1e-10)[0]
    share = missed @ missed / (y @ y)
    reaches_all = rank == problem.rows * d_out
    assert (share < 1e-12) == reaches_all
    if heads == 1:
        assert reaches_all == problem.fits_all
    if kind == "gaussian" or heads > 1:  # every program compiles for a second
        best, found = jax.jit(system.value_optimum, static_argnums=2)(params, samples, kind, c)
        assert int(found) == rank
        assert float(best) == pytest.approx(share, abs=1e-4)


def test_the_mean_of_the_least_loss_is_the_share_out_of_reach():
    problem = KernelProblem(samples=4, tokens=2, embed=3, d=2, d_out=4)

    def best(key):
        one, two = jax.random.split(key)
        samples = system.sample(one, problem, HYPER, problem.samples)
        return system.value_optimum(system.init(two, problem, HYPER), samples, "gaussian", 0.3)[0]

    found = np.asarray(jax.jit(jax.vmap(best))(jax.random.split(jax.random.key(5), 400)))
    law = 1 - 3 * 2 / (8 * 4)  # 26 of 32 directions are missed: Beta(13, 3)
    deviation = np.sqrt(law * (1 - law) / 17)
    assert abs(found.mean() - law) < 4 * deviation / 20
    assert found.std() == pytest.approx(deviation, rel=0.2)


@pytest.mark.parametrize(("embed", "reached"), [(40, True), pytest.param(2, False, marks=pytest.mark.slow)])
def test_gradient_descent_on_w_v_ends_at_the_least_squares_optimum(embed, reached):
    problem = KernelProblem(samples=2, tokens=2, embed=embed, plane_points=3)
    run = js.train(
        jax.random.key(4), kernel_attention(problem), KernelHyper(), optax.sgd(1.0), steps=4000,
        record=4000, test_every=4000, trainable=("w_v",), observables=["train_ratio", "best_ratio"],
    )  # fmt: skip
    ratio, best = float(run.trace["train_ratio"][-1]), float(run.trace["best_ratio"][-1])
    assert (ratio < 1e-3) == reached
    assert ratio == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "gaussian" else pytest.mark.slow) for kind in KERNELS]
)
def test_training_w_q_depends_on_scale_and_constant_together(kind):
    """(g, c, eta) is the same run as (g sqrt(c/c'), c', eta c/c'): the loss sees sqrt(c) W_Q and sqrt(c) W_K only."""
    problem = KernelProblem(samples=3, tokens=3, embed=5, d=2, kernel=kind)
    losses = []
    for g, c, rate in ((0.5, 4.0, 0.1), (1.0, 1.0, 0.4)):
        run = js.train(
            jax.random.key(1), kernel_attention(problem), KernelHyper(init_scale=g, c_scale=c), optax.sgd(rate),
            steps=60, trainable=("w_q",), observables=["train_loss"],
        )  # fmt: skip
        losses.append(np.asarray(run.trace["train_loss"]))
    assert losses[0][-1] < 0.99 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_gaussian_gradient_vanishes_at_large_initialisation_and_softmaxs_does_not():
    norms = {}
    for kind in ("softmax", "gaussian"):
        problem = KernelProblem(embed=8, d=16, kernel=kind)
        samples, params = drawn(problem, hyper=KernelHyper(init_scale=3.0))
        gradient = jax.jit(jax.grad(kernel_attention(problem).loss))(params, samples, KernelHyper(init_scale=3.0)).w_q
        norms[kind] = float(np.linalg.norm(gradient))
    assert norms["gaussian"] < 1e-3 * norms["softmax"]


def test_random_samples_follow_their_laws():
    problem, hyper = KernelProblem(embed=16, d_out=4), KernelHyper(target_std=0.5)
    samples = jax.jit(lambda key: system.sample(key, problem, hyper, 2000))(jax.random.key(0))
    x, y = (np.asarray(a, np.float64) for a in (samples.x, samples.y))
    assert np.mean(np.sum(x**2, axis=0)) == pytest.approx(1, rel=0.01)
    assert np.std(y) == pytest.approx(0.5, rel=0.02)


def test_retrieval_asks_every_token_for_the_content_of_the_marked_one():
    problem = KernelProblem(tokens=3, embed=5, d_out=2, targets="retrieval")
    samples = jax.jit(lambda key: system.sample(key, problem, KernelHyper(), 300))(jax.random.key(0))
    x, y = np.asarray(samples.x), np.asarray(samples.y)
    place = x[0].argmax(0)
    assert np.array_equal(x[0], np.eye(3)[place].T)
    assert (x[1] == 1).all()
    for b in range(300):
        for token in range(3):
            assert np.array_equal(y[:, token, b], x[2:4, place[b], b])
    assert np.bincount(place, minlength=3).min() > 70  # 100 of each on average, standard deviation 8


def test_fresh_samples_are_none_of_the_training_ones():
    task = kernel_attention(KernelProblem(embed=5, targets="retrieval", n_test=9))
    train = jax.jit(lambda key: task.sample(key, HYPER, None))(js.stream(jax.random.key(0), "data"))
    test = jax.jit(lambda key: task.sample_test(key, HYPER, None))(js.stream(jax.random.key(0), "test"))
    assert test.samples.x.shape == (5, 4, 9)
    assert not np.isin(np.asarray(train.x)[2], np.asarray(test.samples.x)[2]).any()
    assert kernel_attention(KernelProblem()).sample_test(jax.random.key(0), HYPER, None).samples is None


@pytest.fixture(scope="module")
def observed():
    """(samples, params, test, c, what is observed of them) of a small problem at a test step."""
    problem = dataclasses.replace(SMALL, kernel="gaussian", plane_points=5)
    task = kernel_attention(problem)
    samples, params = drawn(problem)
    test = jax.jit(lambda key: task.sample_test(key, HYPER, None))(jax.random.key(9))
    seen = jax.jit(task.observe)(params, samples, test, HYPER)
    return samples, params, test, float(system.constant(problem, HYPER)), seen


def test_the_landscape_is_the_loss_on_the_plane_of_its_directions(observed):
    samples, params, test, c, seen = observed
    u, v = np.asarray(test.plane, np.float64)
    assert np.sum(u * u) == pytest.approx(1, abs=1e-5)
    assert np.sum(v * v) == pytest.approx(1, abs=1e-5)
    assert np.sum(u * v) == pytest.approx(0, abs=1e-5)
    w_q = np.asarray(params.w_q, np.float64)
    far = np.linalg.norm(w_q)
    for i, j in ((0, 0), (2, 2), (1, 4)):
        moved = w_q + far * ((i / 2 - 1) * u + (j / 2 - 1) * v)
        expected = loss_by_hand(params._replace(w_q=moved), samples, "gaussian", c)
        assert float(np.asarray(seen["landscape"])[i, j]) == pytest.approx(expected, rel=1e-4)
    assert float(np.asarray(seen["landscape"])[2, 2]) == pytest.approx(float(seen["train_loss"]), rel=1e-5)


def test_curvatures_are_those_of_finite_differences(observed):
    samples, params, _, c, seen = observed
    w_q, second = np.asarray(params.w_q, np.float64), []
    for place in np.ndindex(w_q.shape):
        step = np.zeros(w_q.shape)
        step[place] = 1e-3
        ends = [loss_by_hand(params._replace(w_q=w_q + s * step), samples, "gaussian", c) for s in (-1, 0, 1)]
        second.append((ends[0] - 2 * ends[1] + ends[2]) / 1e-6)
    assert float(seen["mean_curvature"]) == pytest.approx(np.mean(second), rel=1e-3)
    condition = np.abs(second).max() / np.median(np.abs(second))
    assert float(seen["robust_condition"]) == pytest.approx(condition, rel=1e-2)


def test_roughness_counts_barriers_and_not_shapes():
    line = np.array([3.0, 1.0, 0.0, 0.5, 4.0])
    roughness = jax.jit(landscape.roughness)
    assert float(roughness(jnp.asarray(np.add.outer(line, line), jnp.float32))) == pytest.approx(0, abs=1e-6)
    barrier = np.tile([1.0, 0.0, 1.0, 0.0, 1.0], (5, 1))  # rows: 2 more than a valley; columns: constant
    assert float(roughness(jnp.asarray(barrier, jnp.float32))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d": 0}, "d must be an int >= 1, got d=0"),
        ({"embed": 2.5}, "embed must be an int >= 1, got embed=2.5"),
        ({"heads": True}, "heads must be an int >= 1, got heads=True"),
        ({"plane_points": 2}, "plane_points must be an int >= 3, got plane_points=2"),
        ({"kernel": "gausian"}, "unknown kernel 'gausian'; did you mean 'gaussian'?"),
        ({"targets": "digits"}, "unknown targets 'digits'"),
        ({"targets": "retrieval", "embed": 3, "d_out": 2}, "embed must be an int >= 4, got embed=3"),
    ],
)
def test_bad_problems_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError) as refused:
        KernelProblem(**fields)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KernelHyper(c_scale=0.0).validate(), "c_scale must be a finite number in (0, inf), got c_scale=0.0"),
        (lambda: KernelHyper(c_scale=-1).validate(), "c_scale must be a finite number in (0, inf), got c_scale=-1"),
        (lambda: KernelHyper(init_scale=-1).validate(), "init_scale must be a finite number in [0, inf)"),
        (lambda: KernelHyper(target_std=float("nan")).validate(), "target_std must be a finite number"),
        (lambda: kernel("rbf"), "unknown kernel 'rbf'"),
        (lambda: attention("rbf", jnp.ones((2, 2)), jnp.ones(2), jnp.ones(2), 1.0), "unknown kernel 'rbf'"),
        (lambda: default_constant(0), "d must be an int >= 1, got d=0"),
        (lambda: kernel_attention("softmax"), "problem must be a js.KernelProblem, got problem='softmax'"),
        (lambda: kernel_attention(KernelProblem()).validate(js.Hyper(sigma_p=1.0)), "hyper must be a js.KernelHyper"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError) as refused:
        call()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_equal_problems_are_the_identical_task():
    assert kernel_attention(KernelProblem()) is kernel_attention(KernelProblem(embed=64))
    assert kernel_attention(KernelProblem()) is not kernel_attention(KernelProblem(kernel="linear"))

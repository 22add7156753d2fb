"""The two-layer CNN: against NumPy by hand, finite differences, and what its data and mini-batches are."""

import functools

import jax
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.systems.cnn import CnnHyper, CnnProblem, two_layer_cnn

PROBLEM = CnnProblem(n=6, d=12, s=3, width=4, n_test=5)
HYPER = CnnHyper(sigma_p=0.7, alpha=0.3, mu=1.4, sigma_0=0.5)


@functools.cache
def draws(problem):
    """`(key, hyper) -> (filters, examples, fresh examples)` of a run, as one program."""
    task = two_layer_cnn(problem)

    @jax.jit
    def draw(key, hyper):
        data = task.sample(js.stream(key, "data"), hyper, None)
        test = task.sample_test(js.stream(key, "test"), hyper, None)
        return task.init(js.stream(key, "init"), data, hyper), data, test

    return draw


def drawn(problem=PROBLEM, hyper=HYPER, seed=0):
    """(filters, examples) of a run."""
    return draws(problem)(jax.random.key(seed), hyper)[:2]


def logit_by_hand(w, x, q):
    """F of one example (2, d) in float64, filter by filter and patch by patch."""
    out = np.zeros(2)
    for j in range(2):
        for row in w[j]:
            for patch in x:
                out[j] += max(0.0, float(row @ patch)) ** q
    return out[0] - out[1]


def loss_by_hand(w, x, y, q):
    return np.mean([np.log1p(np.exp(-label * logit_by_hand(w, one, q))) for one, label in zip(x, y)])


@pytest.mark.x64
@pytest.mark.parametrize("q", [1, 3])
def test_loss_errors_and_responses_are_those_by_hand(eps, q):
    problem = CnnProblem(**{**vars(PROBLEM), "q": q})
    params, data, test = draws(problem)(jax.random.key(0), HYPER)
    seen, train_x, test_x = jax.jit(
        lambda *run: (two_layer_cnn(problem).observe(*run, HYPER), run[1].x, run[2].x)
    )(params, data, test)  # fmt: skip
    w = np.asarray(params.w, float)
    for split, x, of in (("train", train_x, data), ("test", test_x, test)):
        x, y = np.asarray(x, float), np.asarray(of.y, float)
        margins = np.array([label * logit_by_hand(w, one, q) for one, label in zip(x, y)])
        np.testing.assert_allclose(seen[f"{split}_loss"], loss_by_hand(w, x, y, q), rtol=1e3 * eps)
        assert float(seen[f"{split}_error"]) == pytest.approx(np.mean(margins <= 0))
    x, y = np.asarray(train_x, float), np.asarray(data.y, float)
    mu = 1.4 * np.eye(12)[0]
    best = {side: np.mean([max(w[j] @ (side * (1 - 2 * j) * mu)) for j in (0, 1)]) for side in (1, -1)}
    np.testing.assert_allclose([seen["signal"], seen["counter_signal"]], [best[1], best[-1]], rtol=1e3 * eps)
    fit = [max(w[0 if label > 0 else 1] @ one[1]) for one, label in zip(x, y)]
    np.testing.assert_allclose(seen["memorised"], np.mean(fit), rtol=1e3 * eps)


@pytest.mark.x64(only=True)
def test_gradient_is_that_of_finite_differences_by_hand():
    params, data = drawn()
    gradient = np.asarray(jax.jit(jax.grad(two_layer_cnn(PROBLEM).loss))(params, data, HYPER).w)
    w, x, y = (np.asarray(one, float) for one in (params.w, data.x, data.y))
    rng, h = np.random.default_rng(1), 1e-6
    for _ in range(20):
        place = tuple(rng.integers(0, size) for size in w.shape)
        step = np.zeros_like(w)
        step[place] = h
        wanted = (loss_by_hand(w + step, x, y, 3) - loss_by_hand(w - step, x, y, 3)) / (2 * h)
        assert gradient[place] == pytest.approx(wanted, rel=1e-5, abs=1e-8)


def test_examples_are_a_signal_and_a_sparse_patch_with_feature_noise():
    problem, hyper = CnnProblem(n=400, d=50, s=10), CnnHyper(sigma_p=0.5, alpha=0.2, mu=2.0)
    _, data, fresh = draws(problem)(jax.random.key(0), hyper)
    x, y = np.asarray(jax.jit(lambda data: data.x)(data)), np.asarray(data.y)
    assert set(y) == {-1.0, 1.0}
    assert abs(y.mean()) < 0.2
    np.testing.assert_allclose(x[:, 0, 0], 2 * y)
    assert not x[:, 0, 1:].any()
    np.testing.assert_allclose(x[:, 1, 0], -0.4 * y, rtol=1e-6)
    assert ((x[:, 1, 1:] != 0).sum(1) == 10).all()
    assert float(x[:, 1, 1:][x[:, 1, 1:] != 0].std()) == pytest.approx(0.5, rel=0.03)
    assert 60 < (x[:, 1, 1:] != 0).sum(0).mean() < 100  # every coordinate is drawn as often
    assert fresh.noise.shape == (1000, 50)
    assert not (np.asarray(fresh.noise)[:, None, 1:] == x[None, :, 1, 1:]).all(-1).any()


def test_seeds_differ_and_the_same_seed_does_not():
    (one, data), (same, _), (other, more) = drawn(), drawn(), drawn(seed=1)
    assert (one.w == same.w).all()
    assert not np.isclose(one.w, other.w).any()
    assert (data.noise[:, 1:] != more.noise[:, 1:]).any()
    doubled = drawn(hyper=CnnHyper(sigma_p=1.4, alpha=0.3, mu=1.4, sigma_0=1.0))
    np.testing.assert_allclose(doubled[0].w, 2 * one.w, rtol=1e-6)
    np.testing.assert_allclose(doubled[1].noise[:, 1:], 2 * data.noise[:, 1:], rtol=1e-6)


def test_mini_batches_are_examples_of_the_data_and_cover_it_evenly():
    problem = CnnProblem(**{**vars(PROBLEM), "batch_size": 2})
    _, data = drawn(problem)
    keys = jax.random.split(jax.random.key(3), 600)
    batches = jax.jit(jax.vmap(lambda key: two_layer_cnn(problem).batch(key, data, HYPER)))(keys)
    match = (np.asarray(batches.noise)[:, :, None] == np.asarray(data.noise)).all(-1)
    assert (match.sum(-1) == 1).all()  # rows of the data, each with its own label
    np.testing.assert_array_equal(np.asarray(data.y)[match.argmax(-1)], batches.y)
    assert (match.sum(1) <= 1).all()  # without replacement
    counts = match.sum((0, 1))
    assert counts.sum() == 1200
    assert (abs(counts - 200) < 60).all()
    assert two_layer_cnn(PROBLEM).batch is None


def test_a_batch_of_everything_is_the_full_batch():
    whole = CnnProblem(**{**vars(PROBLEM), "batch_size": 6})
    runs = [
        js.train(jax.random.key(0), two_layer_cnn(one), HYPER, optax.sgd(0.1), steps=10, record=10)
        for one in (PROBLEM, whole)
    ]
    np.testing.assert_allclose(runs[0].params.w, runs[1].params.w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CnnProblem(s=1000), r"s must be an int in \[1, d-1\] = \[1, 999\], got s=1000"),
        (lambda: CnnProblem(batch_size=201), r"batch_size must be an int in \[1, n\] = \[1, 200\], got batch_size=201"),
        (lambda: CnnProblem(q=0), "q must be an int >= 1, got q=0"),
        (lambda: CnnHyper(mu=0.0).validate(), r"mu must be a finite number in \(0, inf\), got mu=0.0"),
        (lambda: CnnHyper(alpha=float("nan")).validate(), "alpha must be a finite number"),
        (lambda: two_layer_cnn(js.DigitsProblem()), "problem must be a js.CnnProblem"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

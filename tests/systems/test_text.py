"""Noisy text: models against NumPy by hand, gradients against finite differences, padding, observables of a run."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems.text import models
from jaxsign.systems.text.data import Texts
from jaxsign.systems.text.task import Held, Trained

PROBLEM = js.TextProblem(n_train=4, n_val=2, n_test=4, length=5, vocabulary=7, injected=2, width=6, heads=2)
KERNELS = ("softmax", "gaussian", "linear", "uniform")
MODELS = ("attention", "two_layer")


def texts(seed=0, count=4, problem=PROBLEM):
    """Random sentences of 1 to 5 words of their own and the injected ones after the padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, problem.vocabulary + 1, (count, problem.tokens)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[:, : problem.length] = np.arange(problem.length) < rng.integers(1, problem.length + 1, count)[:, None]
    y = np.where(np.arange(count) % 2, 1.0, -1.0)
    return Texts(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(y, jnp.zeros(()).dtype))


def weights(problem, seed=1, size=0.7):
    """Random weights of any size, biases too."""
    shapes = jax.eval_shape(lambda key: models.init(key, problem, js.TextHyper()), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(size * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def attention_by_hand(kernel, queries, keys, c):
    """(T, T) weights of the queries on the keys of one sentence without padding."""
    out = np.zeros((len(queries), len(keys)))
    for i, q in enumerate(queries):
        score = np.array([2 * c * np.dot(q, k) for k in keys])
        if kernel == "softmax":
            e = np.exp(score - score.max())
            out[i] = e / e.sum()
        elif kernel == "gaussian":
            out[i] = [np.exp(-c * np.sum((q - k) ** 2)) / len(keys) for k in keys]
        else:
            out[i] = score / len(keys) if kernel == "linear" else 1 / len(keys)
    return out


def by_hand(params, problem, tokens, noise=None):
    """(F, attention that every token receives by head) of one sentence without padding, in float64."""
    heads, size = problem.heads, problem.width // problem.heads
    received, total = [], 0.0
    if problem.model == "two_layer":
        w_q, w_k, w_v = (np.asarray(w, float) for w in params)
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            s = attention_by_hand(problem.kernel, w_q[own][:, tokens].T, w_k[own][:, tokens].T, 0.5)
            x = np.eye(problem.vocabulary + 1)[:, tokens]  # patches are unit vectors
            for row in s:
                total += np.mean(w_v[0] @ x @ row) - np.mean(w_v[1] @ x @ row)
            received.append(s.mean(0))
        return total, np.stack(received)
    embed, w_q, w_k, w_v, head, bias = (np.asarray(w, float) for w in params)
    e = embed[tokens] + (0 if noise is None else noise)
    outputs = np.zeros((len(tokens), problem.width))
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        s = attention_by_hand(problem.kernel, e @ w_q[:, own], e @ w_k[:, own], 1 / (2 * np.sqrt(size)))
        outputs[:, own] = s @ (e @ w_v[:, own])
        received.append(s.mean(0))
    return outputs.mean(0) @ head + bias, np.stack(received)


def kept(given, i):
    return np.flatnonzero(np.asarray(given.mask)[i])


@pytest.mark.x64
@pytest.mark.parametrize(
    ("kernel", "model", "heads"),
    [*itertools.product(KERNELS, MODELS, [2]), ("softmax", "attention", 1), ("linear", "attention", 1)],
)
def test_logits_and_attention_are_those_by_hand(eps, kernel, model, heads):
    problem = dataclasses.replace(PROBLEM, kernel=kernel, model=model, heads=heads)
    params, given = weights(problem), texts()
    noise = None
    if model == "attention":
        noise = np.random.default_rng(2).standard_normal((4, 5, 6))
    passed = None if noise is None else jnp.asarray(noise, jnp.zeros(()).dtype)
    logits, received = jax.jit(lambda p: models.attend(p, given, passed, problem))(params)
    assert logits.shape == (4,)
    assert received.shape == (heads, 4, 7)
    for i in range(4):
        own = kept(given, i)
        of_own = None if noise is None else np.concatenate([noise[i], np.zeros((2, 6))])[own]
        wanted, mass = by_hand(params, problem, np.asarray(given.tokens)[i, own], of_own)
        np.testing.assert_allclose(logits[i], wanted, rtol=1e3 * eps, atol=1e2 * eps)
        np.testing.assert_allclose(received[:, i, own], mass, rtol=1e3 * eps, atol=1e2 * eps)
        assert not np.asarray(received)[:, i, ~np.asarray(given.mask)[i]].any()


def test_the_two_layer_model_is_the_papers_on_unit_vectors():
    problem = dataclasses.replace(PROBLEM, model="two_layer")
    params, given = weights(problem), texts()
    given = given._replace(mask=jnp.ones_like(given.mask))
    found, _ = jax.jit(lambda p: models.attend(p, given, None, problem))(params)
    paper = js.Params(*params, heads=2)
    x = jax.nn.one_hot(given.tokens, problem.vocabulary + 1)
    np.testing.assert_allclose(found, jax.jit(jax.vmap(js.apply, (None, 0)))(paper, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_changes_nothing(kernel, model):
    problem = dataclasses.replace(PROBLEM, kernel=kernel, model=model)
    params, given = weights(problem), texts()
    other = given._replace(tokens=jnp.where(given.mask, given.tokens, 3))
    assert not np.array_equal(other.tokens, given.tokens)
    attend = jax.jit(lambda p, t: models.attend(p, t, None, problem))
    np.testing.assert_array_equal(attend(params, given)[0], attend(params, other)[0])
    more = Texts(
        jnp.pad(given.tokens, ((0, 0), (0, 9)), constant_values=2), jnp.pad(given.mask, ((0, 0), (0, 9))), given.y
    )
    np.testing.assert_allclose(attend(params, more)[0], attend(params, given)[0], rtol=1e-5, atol=1e-6)
    swapped = given._replace(tokens=given.tokens[:, ::-1], mask=given.mask[:, ::-1])  # no token has a place
    np.testing.assert_allclose(attend(params, swapped)[0], attend(params, given)[0], rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(attend(p, given)[0])))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.x64(only=True)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_finite_differences(kernel, model):
    problem = dataclasses.replace(PROBLEM, kernel=kernel, model=model)
    task, hyper = js.noisy_text(problem), js.TextHyper()
    noise = jnp.asarray(0.3 * np.random.default_rng(5).standard_normal((4, 5, 6))) if model == "attention" else None
    params, batch = weights(problem), Trained(texts(), noise)
    loss = jax.jit(lambda p: task.loss(p, batch, hyper))
    gradient = jax.jit(jax.grad(loss))(params)
    rng = np.random.default_rng(3)
    for name in params._fields:
        leaf = getattr(params, name)
        direction = jnp.asarray(rng.standard_normal(leaf.shape))
        ends = [loss(params._replace(**{name: leaf + step * direction})) for step in (1e-6, -1e-6)]
        slope = float(ends[0] - ends[1]) / 2e-6
        assert float(jnp.sum(getattr(gradient, name) * direction)) == pytest.approx(slope, rel=1e-6, abs=1e-8), name
    if kernel == "uniform":
        assert not jnp.any(gradient.w_q)
        assert not jnp.any(gradient.w_k)


def test_initial_weights_have_their_sizes_and_the_unknown_word_is_zero():
    for model, fields in (("attention", ("embed",)), ("two_layer", ("w_q", "w_k", "w_v"))):
        problem = js.TextProblem(model=model)
        init = jax.jit(lambda s, p=problem: models.init(jax.random.key(0), p, js.TextHyper(sigma_0=s)))
        small, large = init(0.1), init(1.0)
        for name in small._fields:
            factor = 10 if name in fields else 1
            np.testing.assert_allclose(factor * getattr(small, name), getattr(large, name), rtol=1e-5)
            if name in fields:
                assert float(jnp.std(getattr(large, name))) == pytest.approx(1, rel=0.02)
        unknown = large.embed[0] if model == "attention" else large.w_v[..., 0]
        assert not jnp.any(unknown)
    assert float(jnp.std(init(1.0).w_q)) == pytest.approx(1, rel=0.02)
    square = jax.jit(lambda key: models.init(key, js.TextProblem(width=64), js.TextHyper()).w_q)(jax.random.key(0))
    assert float(jnp.std(square)) == pytest.approx(1 / 8, rel=0.03)


def test_observables_are_those_of_the_logits():
    problem = dataclasses.replace(PROBLEM, embedding_noise=0.5)
    task, params = js.noisy_text(problem), weights(problem)
    assert task is js.noisy_text(dataclasses.replace(problem))
    train, held = texts(0), texts(1, 6)
    trained, key = Trained(train, jnp.full((4, 5, 6), 0.25)), jax.random.key(7)
    seen = jax.jit(lambda p: task.observe(p, trained, Held(held, key), js.TextHyper()))(params)
    fresh = 0.5 * jax.random.normal(key, (6, 5, 6))
    attend = jax.jit(lambda p, t, n: models.attend(p, t, n, problem))
    for name, part, noise, rows in (
        ("train", train, trained.noise, slice(None)), ("val", held, fresh, slice(2)),
        ("test", held, fresh, slice(2, None)),
    ):  # fmt: skip
        margin = np.asarray(part.y * attend(params, part, noise)[0], float)[rows]
        assert float(seen[f"{name}_loss"]) == pytest.approx(np.mean(np.logaddexp(0, -margin)), rel=1e-5)
        assert float(seen[f"{name}_error"]) == pytest.approx(np.mean(margin <= 0))
    r = np.asarray(attend(params, train, trained.noise)[1], float)
    assert float(seen["injected_attention"]) == pytest.approx(r[..., 5:].sum(-1).mean(), rel=1e-5)
    assert float(seen["clean_attention"] + seen["injected_attention"]) == pytest.approx(1, rel=1e-5)
    r = np.asarray(attend(params, held, fresh)[1], float)[:, 2:]
    assert float(seen["test_injected_attention"]) == pytest.approx(r[..., 5:].sum(-1).mean(), rel=1e-5)
    names = jax.eval_shape(lambda p: task.observe(p, trained, None, js.TextHyper()), params)
    assert set(names) == {"train_loss", "train_error", "clean_attention", "injected_attention"}


def test_a_run_learns_describes_itself_and_marks_divergence():
    problem = js.TextProblem(n_train=20, n_val=10, n_test=20, length=8, vocabulary=15, injected=4, width=4)
    shared = js.load_text(None, problem)
    task = js.noisy_text(problem)
    run = js.train(jax.random.key(0), task, js.TextHyper(), js.sign_gd(2e-2), steps=60, record=30, shared=shared)
    ds = run.to_xarray()
    assert int(run.status) == 0
    assert run.trace["train_loss"][-1] < 0.3 < run.trace["train_loss"][0]
    assert float(ds["words_known"].squeeze()) == 15
    assert 0.2 < float(ds["unknown_share"].squeeze()) < 0.9
    assert 0.3 < float(ds["injected_share"].squeeze()) < 0.8
    wild = js.train(jax.random.key(0), task, js.TextHyper(), js.sign_gd(1e30), steps=6, record=3, shared=shared)
    assert int(wild.status) == 1
    still = js.train(
        jax.random.key(0), js.noisy_text(dataclasses.replace(problem, kernel="uniform")), js.TextHyper(),
        js.sign_gd(2e-2), steps=6, record=3, shared=shared,
    )  # fmt: skip
    key = jax.random.key(0)
    start = jax.jit(lambda key: models.init(js.stream(key, "init"), problem, js.TextHyper()))(key)
    np.testing.assert_array_equal(still.params.w_q, start.w_q)  # uniform attention does not learn
    assert not np.array_equal(still.params.w_v, start.w_v)

"""Deep transformers against NumPy loops and the two-layer system."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.systems import deep_transformer as system
from jaxsign.systems.two_layer import model as shallow
from jaxsign.training.start import draw

SIZES = {"n": 4, "d": 100, "s": 5, "m_k": 3, "m_v": 2, "hidden": 4, "n_test": 12}


def softmax(scores):
    weights = [np.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def norm(h):
    centred = h - sum(h) / len(h)
    return centred / np.sqrt(sum(centred**2) / len(h))


def attend(layer, tokens, heads):
    """Values averaged by every head, a token, a head and a key at a time; and all s_la."""
    w_q, w_k, w_v = (np.asarray(layer[name], np.float64) for name in ("w_q", "w_k", "w_v"))
    m_k, out, seen = len(w_q) // heads, [np.zeros(len(w_v)) for _ in tokens], {}
    for head in range(heads):
        own = slice(head * m_k, (head + 1) * m_k)
        for place, token in enumerate(tokens):
            weights = softmax([float((w_q[own] @ token) @ (w_k[own] @ other)) for other in tokens])
            for key, weight in enumerate(weights):
                seen[head, place, key] = weight
                out[place] = out[place] + weight * (w_v @ tokens[key])
    return out, seen


def oracle(params, x, problem, residual):
    """F of one example (context, d) in any order of its tokens, and the attention of every layer."""
    params = {name: np.asarray(w, np.float64) for name, w in params.items()}

    def part(name):
        return {one.split("/")[1]: w for one, w in params.items() if one.startswith(f"{name}/")}

    keep = norm if problem.layer_norm else (lambda h: h)
    tokens, looks = [np.asarray(token, np.float64) for token in x], []
    for depth in range(1, problem.depth + 1):
        layer = part(f"attention_{depth}")
        sees = tokens if depth == 1 else [keep(h) for h in tokens]
        mixed, seen = attend(layer, sees, problem.heads)
        path = [layer["w_v"] @ token for token in tokens] if depth == 1 else tokens
        tokens, looks = [residual * a + b for a, b in zip(path, mixed)], [*looks, seen]
        if problem.mlp:
            network = part(f"mlp_{depth}")
            hidden = [np.maximum(network["w_1"] @ keep(h), 0) for h in tokens]
            tokens = [residual * h + network["w_2"] @ one for h, one in zip(tokens, hidden)]
    half = problem.m_v
    return sum((sum(h[:half]) - sum(h[half:])) / half for h in tokens), looks


@pytest.fixture(scope="module")
def drawn():
    """`(problem, seed) -> (task, data, test, params)`: the data are drawn once, random weights cost no compilation."""
    key, hyper = jax.random.key(0), js.Hyper(sigma_p=2.0, alpha=0.1)
    start = jax.jit(lambda key: draw(js.two_layer(js.DeepProblem(**SIZES).data), key, hyper))(key)

    def make(problem, seed=0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(lambda: system.init(key, problem, hyper))
        params = {name: jnp.asarray(0.3 * rng.standard_normal(w.shape), w.dtype) for name, w in shapes.items()}
        return js.deep_transformer(problem), start.data, start.test, params

    return make


@pytest.mark.parametrize(
    ("changes", "residual"),
    [
        ({"depth": 1, "heads": 2}, 0.0),
        ({"depth": 3}, 0.0),
        ({"depth": 2, "mlp": True}, 1.0),
        ({"depth": 2, "layer_norm": True}, 0.5),
        ({"depth": 2, "heads": 2, "mlp": True, "layer_norm": True}, 1.0),
    ],
    ids=["heads", "plain", "mlp", "norm", "everything"],
)
def test_the_model_is_the_written_one(drawn, changes, residual, eps):
    problem = js.DeepProblem(**SIZES, **changes)
    hyper = js.Hyper(sigma_p=2.0, residual=residual)
    task, data, test, params = drawn(problem)

    @jax.jit
    def everything(params):
        small = system.activate(params, data)
        fresh, _ = system.forward(params, system.test_patches(test), problem, residual)
        out = system.forward(params, system.training_patches(params, data), problem, residual)
        return *out, fresh, task.loss(params, data, hyper), task.loss(small, data, hyper), small, system.full(small)

    logits, layers, fresh, mine, compact, small, back = everything(params)
    found = [oracle(params, x, problem, residual) for x in np.asarray(data.x)]  # tokens in their slots
    np.testing.assert_allclose(logits, [f for f, _ in found], rtol=2e3 * eps, atol=2e3 * eps)
    slots, layers = np.asarray(data.signal_slot), [np.asarray(layer.log_attention) for layer in layers]
    for i, (_, looks) in enumerate(found):
        signal = int(slots[i])
        for layer, seen in zip(layers, looks):
            for (head, query, key), weight in seen.items():
                place = i, head, int(query != signal), int(key != signal)
                np.testing.assert_allclose(np.exp(layer[place]), weight, rtol=2e3 * eps)
    loss = np.mean([np.log1p(np.exp(-y * f)) for y, (f, _) in zip(np.asarray(data.y), found)])
    np.testing.assert_allclose(mine, loss, rtol=1e3 * eps)
    # The compact form is the same function, and it comes back.
    assert small["attention_1/w_q"].shape[1] < problem.d
    np.testing.assert_allclose(compact, loss, rtol=1e3 * eps)
    assert all(np.array_equal(w, params[name]) for name, w in back.items())
    first, (indices, values, y) = np.zeros((2, problem.d)), map(np.asarray, (test.indices, test.values, test.y))
    np.put_along_axis(first[1], indices[0, 0], values[0, 0], 0)
    first[:, 0] = float(y[0]), -0.1 * float(y[0])
    np.testing.assert_allclose(
        np.asarray(fresh)[0], oracle(params, first, problem, residual)[0], rtol=2e3 * eps, atol=2e3 * eps
    )


def test_the_gradient_is_that_of_finite_differences(drawn):
    problem, residual = js.DeepProblem(**SIZES, depth=2, heads=2, mlp=True, layer_norm=True), 0.5
    hyper = js.Hyper(sigma_p=2.0, residual=residual)
    task, data, _, params = drawn(problem, seed=1)
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(task.loss))(params, data, hyper))
    used = int(np.asarray(data.support)[0, 0, 0])
    x, y = np.asarray(data.x), np.asarray(data.y, np.float64)

    def loss(name, place, step):
        moved = {**params, name: np.array(params[name], np.float64)}
        moved[name][place] += step
        return np.mean([np.log1p(np.exp(-a * oracle(moved, b, problem, residual)[0])) for a, b in zip(y, x)])

    rng = np.random.default_rng(0)
    for name, w in params.items():
        place = (rng.integers(w.shape[0]), used if w.shape[1] == problem.d else 0)
        numeric = (loss(name, place, 1e-5) - loss(name, place, -1e-5)) / 2e-5
        np.testing.assert_allclose(gradient[name][place], numeric, rtol=2e-3, atol=1e-6, err_msg=name)


def test_depth_one_is_the_two_layer_system(drawn, eps):
    """The same loss, gradients and observables from the same weights, with heads and with the residual path."""
    problem = js.DeepProblem(**SIZES, heads=2)
    task, data, test, params = drawn(problem)
    numbers = js.Hyper(sigma_p=2.0, alpha=0.1)
    names = dict(zip(("w_q", "w_k"), system.PATCHES))
    weights = shallow.Params(
        **{own: params[name] for own, name in names.items()}, w_v=params[system.PATCHES[2]].reshape(2, problem.m_v, -1),
        heads=2,
    )  # fmt: skip
    other = js.two_layer(problem.data)
    close = {"rtol": 1e3 * eps, "atol": 1e3 * eps}

    @jax.jit
    def both(residual):
        hyper = dataclasses.replace(numbers, residual=residual)
        pairs = (task, params), (other, weights)
        return [(jax.grad(one.loss)(w, data, hyper), one.observe(w, data, test, hyper)) for one, w in pairs]

    for residual in (0.0, 1.0):
        (gradient, mine), (theirs, found) = both(residual)
        for own, name in names.items():
            np.testing.assert_allclose(gradient[name], getattr(theirs, own), **close)
        np.testing.assert_allclose(gradient[system.PATCHES[2]].reshape(theirs.w_v.shape), theirs.w_v, **close)
        for name in set(mine) - {"sign_agreement"}:
            np.testing.assert_allclose(mine[name][0] if name in task.dims else mine[name], found[name], **close)
        np.testing.assert_allclose(np.mean(mine["sign_agreement"]), found["sign_agreement"], **close)


@pytest.mark.slow
def test_the_compact_form_trains_to_the_same_weights():
    problem = js.DeepProblem(**SIZES, depth=2)
    task, hyper = js.deep_transformer(problem), js.Hyper(sigma_p=2.0, sigma_0=0.05, residual=1.0)
    full = dataclasses.replace(task, reduction=dataclasses.replace(task.reduction, compact=None))
    runs = [js.train(jax.random.key(3), one, hyper, js.sign_gd(1e-3), steps=12, record=12) for one in (task, full)]
    assert set(runs[0].params) == set(runs[1].params)
    for name in runs[0].params:
        np.testing.assert_allclose(runs[0].params[name], runs[1].params[name], atol=1e-6)
    np.testing.assert_allclose(runs[0].trace["test_loss"], runs[1].trace["test_loss"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "context"), [(3, 2), (1, 4), (2, 3)])
def test_heads_and_longer_contexts_agree_between_engines(heads, context, eps):
    """Noise observables of every patch."""
    problem = js.Problem(
        n=3, d=80, s=3, m_k=2, m_v=2, heads=heads, context=context, n_test=8, supports="disjoint", overlap="none"
    )
    traces = [
        js.train(
            jax.random.key(0), js.two_layer(problem, engine=engine), js.Hyper(sigma_p=2.0, sigma_0=0.05),
            js.sign_gd(1e-3), steps=4, record=1,
        ).trace
        for engine in ("dense", "feature_space")
    ]  # fmt: skip
    patch = () if context == 2 else (context - 1,)
    assert traces[0]["query_noise"].shape == (5, 2 * heads, 3, *patch)
    assert traces[0]["s21"].shape == (5, heads, 3, *patch)
    for name in ("train_loss", "s21", "s11", "query_noise", "value_noise", "test_loss"):
        np.testing.assert_allclose(traces[0][name], traces[1][name], rtol=1e-3, atol=1e4 * eps)


def test_attention_of_a_long_context_is_the_papers_formula(eps):
    problem = js.Problem(n=2, d=40, s=3, m_k=2, m_v=2, heads=2, context=4)
    hyper = js.Hyper(sigma_p=2.0, sigma_0=0.3)
    task, key = js.two_layer(problem), jax.random.key(0)
    data, _, params, _ = jax.jit(lambda key: draw(task, key, hyper))(key)
    found = jax.tree.map(np.asarray, jax.jit(task.observe)(params, data, None, hyper))
    slots, x = np.asarray(data.signal_slot), np.asarray(data.x, np.float64)
    layer = {"w_q": params.w_q, "w_k": params.w_k, "w_v": np.zeros((1, problem.d))}
    for i in range(problem.n):
        signal = int(slots[i])
        seen = attend(layer, x[i], 2)[1]
        noise = [slot for slot in range(4) if slot != signal]
        for head in range(2):
            np.testing.assert_allclose(found["s11"][head, i], seen[head, signal, signal], rtol=1e3 * eps)
            np.testing.assert_allclose(
                found["s21"][head, i], [seen[head, slot, signal] for slot in noise], rtol=1e3 * eps
            )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, r"depth must be an int >= 1, got .*0"),
        ("heads", 0, r"heads must be an int >= 1, got .*0"),
        ("hidden", 2.5, r"hidden must be an int >= 1, got .*2\.5"),
        ("mlp", 1, "mlp must be True or False, got mlp=1"),
        ("layer_norm", "pre", "layer_norm must be True or False, got layer_norm='pre'"),
        ("supports", "apart", "unknown supports 'apart'"),
        ("s", 2000, r"s must be an int in \[1, d-1\] = \[1, 1999\], got s=2000"),
    ],
)
def test_bad_problems_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        js.DeepProblem(**{field: value})


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"problem must be a js\.DeepProblem, got problem=3"):
        js.deep_transformer(3)
    task = js.deep_transformer(js.DeepProblem(**SIZES))
    with pytest.raises(ValueError, match=r"hyper must be a js\.Hyper, got hyper=2"):
        task.validate(2)
    with pytest.raises(ValueError, match="sigma_p"):
        task.validate(js.Hyper(sigma_p=-1.0))

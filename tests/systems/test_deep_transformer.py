"""Deep transformers against NumPy loops and the two-layer system; claims on made-up runs; the experiment, tiny."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.claims import architecture
from jaxsign.claims import dynamics as two_layer
from jaxsign.claims.catalogue import CLAIMS, known_system
from jaxsign.systems.deep_transformer import model as model
from jaxsign.systems.two_layer import model as shallow
from jaxsign.training.start import draw

ROOT = Path(__file__).parents[2]
SIZES = {"n": 4, "d": 100, "s": 5, "m_k": 3, "m_v": 2, "hidden": 4, "n_test": 12}
SEEDS = 40
STEPS = np.array([0, 10, 20, 30, 50, 70, 100, 110, 120, 150, 200, 300, 400])


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
        shapes = jax.eval_shape(lambda: model.init(key, problem, hyper))
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
        small = model.activate(params, data)
        fresh, _ = model.forward(params, model.test_patches(test), problem, residual)
        out = model.forward(params, model.training_patches(params, data), problem, residual)
        return *out, fresh, task.loss(params, data, hyper), task.loss(small, data, hyper), small, model.full(small)

    logits, layers, fresh, mine, compact, small, back = everything(params)
    found = [oracle(params, x, problem, residual) for x in np.asarray(data.x)]  # tokens in their slots
    np.testing.assert_allclose(logits, [f for f, _ in found], rtol=2e3 * eps, atol=2e3 * eps)
    for i, (_, looks) in enumerate(found):
        signal = int(data.signal_slot[i])
        for layer, seen in zip(layers, looks):
            for (head, query, key), weight in seen.items():
                place = i, head, int(query != signal), int(key != signal)
                np.testing.assert_allclose(np.exp(np.asarray(layer.log_attention))[place], weight, rtol=2e3 * eps)
    loss = np.mean([np.log1p(np.exp(-y * f)) for y, (f, _) in zip(np.asarray(data.y), found)])
    np.testing.assert_allclose(mine, loss, rtol=1e3 * eps)
    # The compact form is the same function, and it comes back.
    assert small["attention_1/w_q"].shape[1] < problem.d
    np.testing.assert_allclose(compact, loss, rtol=1e3 * eps)
    assert all(np.array_equal(w, params[name]) for name, w in back.items())
    first = np.zeros((2, problem.d))
    np.put_along_axis(first[1], np.asarray(test.indices[0, 0]), np.asarray(test.values[0, 0]), 0)
    first[:, 0] = float(test.y[0]), -0.1 * float(test.y[0])
    np.testing.assert_allclose(fresh[0], oracle(params, first, problem, residual)[0], rtol=2e3 * eps, atol=2e3 * eps)


def test_the_gradient_is_that_of_finite_differences(drawn):
    problem, residual = js.DeepProblem(**SIZES, depth=2, heads=2, mlp=True, layer_norm=True), 0.5
    hyper = js.Hyper(sigma_p=2.0, residual=residual)
    task, data, _, params = drawn(problem, seed=1)
    gradient = jax.jit(jax.grad(task.loss))(params, data, hyper)
    x, y = np.asarray(data.x), np.asarray(data.y, np.float64)

    def loss(name, place, step):
        moved = {**params, name: np.array(params[name], np.float64)}
        moved[name][place] += step
        return np.mean([np.log1p(np.exp(-a * oracle(moved, b, problem, residual)[0])) for a, b in zip(y, x)])

    rng = np.random.default_rng(0)
    for name, w in params.items():
        place = (rng.integers(w.shape[0]), int(data.support[0, 0, 0]) if w.shape[1] == problem.d else 0)
        numeric = (loss(name, place, 1e-5) - loss(name, place, -1e-5)) / 2e-5
        np.testing.assert_allclose(gradient[name][place], numeric, rtol=2e-3, atol=1e-6, err_msg=name)


def test_depth_one_is_the_two_layer_system(drawn, eps):
    """The same loss, gradients and observables from the same weights, with heads and with the residual path."""
    problem = js.DeepProblem(**SIZES, heads=2)
    task, data, test, params = drawn(problem)
    numbers = js.Hyper(sigma_p=2.0, alpha=0.1)
    names = dict(zip(("w_q", "w_k"), model.PATCHES))
    weights = shallow.Params(
        **{own: params[name] for own, name in names.items()}, w_v=params[model.PATCHES[2]].reshape(2, problem.m_v, -1),
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
        np.testing.assert_allclose(gradient[model.PATCHES[2]].reshape(theirs.w_v.shape), theirs.w_v, **close)
        for name in set(mine) - {"sign_agreement"}:
            np.testing.assert_allclose(mine[name][0] if name in task.dims else mine[name], found[name], **close)
        np.testing.assert_allclose(np.mean(mine["sign_agreement"]), found["sign_agreement"], **close)


@pytest.mark.slow
def test_the_compact_form_trains_to_the_same_weights():
    problem = js.DeepProblem(**SIZES, depth=2)
    task, hyper = js.deep_transformer(problem), js.Hyper(sigma_p=2.0, sigma_0=0.05, residual=1.0)
    full = dataclasses.replace(task, compact=None)
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
    found = jax.jit(task.observe)(params, data, None, hyper)
    layer = {"w_q": params.w_q, "w_k": params.w_k, "w_v": np.zeros((1, problem.d))}
    for i in range(problem.n):
        signal = int(data.signal_slot[i])
        seen = attend(layer, np.asarray(data.x[i], np.float64), 2)[1]
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


def dataset(system, problem, variables, coords=None, families=("sign_gd",)):
    """A Dataset of made-up runs: variables (dims without optimizer, values)."""
    hyper = js.presets.paper_like()[1]
    definition = {
        "problem": dataclasses.asdict(problem), "hyper": dataclasses.asdict(hyper), "system": {"name": f"x.{system}"}
    }  # fmt: skip
    coords = {"seed": np.arange(SEEDS), "step": STEPS, **(coords or {})}
    ds = xr.Dataset(variables, coords, {"manifest": json.dumps({"definition": definition})})
    runs = [dim for dim in ("residual", "seed") if dim in ds.dims]
    ds = ds.assign(status=(runs, np.zeros([ds.sizes[dim] for dim in runs], np.int8)))
    ds = ds.expand_dims(optimizer=list(families))
    return ds.assign_coords(
        family=("optimizer", list(families)), learning_rate=("optimizer", [1e-4] * len(families))
    )  # fmt: skip


def wide(shape, values):
    """Values over steps, for all seeds and whatever follows."""
    values = np.asarray(values, float).reshape(len(STEPS), *(1,) * len(shape))
    return np.broadcast_to(values[None], (SEEDS, len(STEPS), *shape)).copy()


def staged(heads=1, context=2, settles=110):
    """Runs of the two-layer system in which the stages come in order."""
    problem = dataclasses.replace(js.presets.paper_like()[0], heads=heads, context=context, d=2000 * (context - 1))
    tail, patch = ((context - 1,), ("patch",)) if context > 2 else ((), ())
    rows, noise = 2 * heads, ("sample", *patch)
    sign = np.where(settles <= STEPS, 1.0, -1.0)
    decay = np.where(STEPS <= 20, 1.0, np.exp(-((STEPS / 40.0) ** 1.5))) / context
    query = wide((rows, 2, *tail), np.ones(len(STEPS)))
    key = query.copy()
    key[:, 0, :, 0] = -1.0  # at t = 0 half of the pairs disagree
    variables = {
        "value_noise": (("seed", "step", *noise), wide((2, *tail), STEPS - 5.0)),
        "sign_agreement": (("seed", "step"), wide((), np.where(STEPS >= 20, 1.0, 0.5))),
        "query_signal": (("seed", "step", "row"), wide((rows,), sign)),
        "query_noise": (("seed", "step", "row", *noise), query),
        "key_noise": (("seed", "step", "row", *noise), key),
        "s11": (("seed", "step", "head", "sample"), wide((heads, 2), np.full(len(STEPS), 1 / context))),
        "s21": (("seed", "step", "head", *noise), wide((heads, 2, *tail), decay)),
        "log_s21": (("seed", "step", "head", *noise), wide((heads, 2, *tail), np.log(decay))),
    }
    return dataset("two_layer", problem, variables)


def word(ds, claim):
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


@pytest.mark.parametrize(
    ("ds", "setting"),
    [(staged(heads=4), "heads 4, paper_like"), (staged(context=8), "context 8, paper_like"), (staged(), "paper_like")],
)
def test_settings_name_heads_and_context(ds, setting):
    assert str(two_layer.setting_of(ds)) == setting
    moved = json.loads(ds.attrs["manifest"])
    moved["definition"]["problem"]["d"] = 2001
    assert str(two_layer.setting_of(ds.assign_attrs(manifest=json.dumps(moved)))) == "custom"


def test_claims_about_heads():
    good = staged(heads=4)
    assert word(good, "H1") == word(good, "H2") == "HOLDS"
    assert word(staged(heads=4, settles=10), "H1") == "FAILS"
    for name in ("s21", "s11"):  # one head of four is enough
        bad = good.copy(deep=True)
        bad[name][{"head": 2}] = 0.7
        assert word(bad, "H2") == "FAILS"
    bad = good.copy(deep=True)
    bad["key_noise"][{"row": 7}] = -1.0
    assert word(bad, "H2") == "FAILS"
    np.testing.assert_allclose(
        architecture.head_agreement(bad.isel(optimizer=0, seed=0, step=4)).values, [1, 1, 1, 0.5]
    )
    assert not js.check(staged(), ["H1", "H2", "H3", "H4"]).rows  # context 2 with one head is the paper's own system


def test_claims_about_longer_contexts():
    good = staged(context=4)
    assert word(good, "H3") == word(good, "H4") == "HOLDS"
    assert word(staged(context=4, settles=10), "H3") == "FAILS"
    for name, value in (("s21", 0.2), ("s11", 0.5)):
        bad = good.copy(deep=True)
        bad[name][:] = value
        assert word(bad, "H4") == "FAILS"
    slow = good.copy(deep=True)
    slow["log_s21"][:] = np.log(0.25) - np.sqrt(STEPS)[:, None, None, None]
    assert word(slow, "H4") == "FAILS"


def deep(depth=3, plain=None, **changes):
    """Runs with residual connections that keep the behaviours in every layer, and without that lose them all."""
    alternating = np.where(np.arange(len(STEPS)) % 2, 1.0, -1.0)
    loss = 0.69 * np.exp(-STEPS / 20.0)
    kept = {
        "train_loss": ((), loss), "sign_agreement": (("layer", "head"), np.where(STEPS >= 20, 1.0, 0.5)),
        "s21": (("layer", "head", "sample"), np.where(STEPS >= 150, 1e-3, 0.5 - STEPS / 500)),
        "s11": (("layer", "head", "sample"), np.full(len(STEPS), 0.48)),
        "query_signal": (("layer", "row"), np.where(STEPS >= 50, 1.0, -1.0)),
        "query_noise": (("layer", "row", "sample"), np.ones(len(STEPS))),
        "value_noise": (("layer", "sample"), STEPS - 5.0),
    }  # fmt: skip
    lost = {
        "train_loss": 0.69 + 0.05 * alternating, "sign_agreement": np.full(len(STEPS), 0.6),
        "s21": 0.4 + 0.1 * alternating, "s11": np.full(len(STEPS), 0.7), "query_signal": alternating,
    }  # fmt: skip
    shape = {"layer": depth, "head": 1, "sample": 2, "row": 4}
    variables = {}
    for name, (dims, values) in kept.items():
        other = values if plain == "alike" else lost.get(name, values)
        sizes = [shape[dim] for dim in dims]
        both = np.stack([wide(sizes, changes.get(name, values)), wide(sizes, other)])
        variables[name] = (("residual", "seed", "step", *dims), both)
    return dataset("deep_transformer", js.DeepProblem(depth=depth), variables, {"residual": [1.0, 0.0]})


def test_settings_of_deep_transformers():
    ds = deep()
    assert known_system(ds) == "deep_transformer"
    assert str(architecture.setting_of(ds)) == "depth 3"
    for problem, name in (
        (js.DeepProblem(depth=4, mlp=True), "depth 4 with mlp"),
        (js.DeepProblem(depth=4, mlp=True, layer_norm=True), "depth 4 with mlp and layer norm"),
        (js.DeepProblem(depth=2, d=3000), "custom"),
    ):
        definition = json.loads(ds.attrs["manifest"])
        definition["definition"]["problem"] = dataclasses.asdict(problem)
        assert str(architecture.setting_of(ds.assign_attrs(manifest=json.dumps(definition)))) == name
        assert (name in architecture.DEEP) == (name != "custom")
    definition["definition"]["hyper"]["sigma_0"] = 1.0
    assert str(architecture.setting_of(ds.assign_attrs(manifest=json.dumps(definition)))) == "custom"


DEEP_CLAIMS = [claim.id for claim in CLAIMS if claim.system == "deep_transformer"]


def test_every_claim_about_depth_holds_for_runs_as_it_says():
    table = js.check(deep(), DEEP_CLAIMS)
    assert [row.verdict for row in table.rows] == ["HOLDS"] * 8
    assert not js.check(deep(depth=1), DEEP_CLAIMS).rows


@pytest.mark.parametrize(
    ("claims", "changes"),
    [
        (["D4", "D5", "D6", "D7", "D8"], {"plain": "alike"}),
        (["D1", "D2"], {"sign_agreement": np.full(len(STEPS), 0.9)}),
        (["D1", "D2"], {"s21": np.full(len(STEPS), 0.5)}),
        (["D1", "D2"], {"s11": np.full(len(STEPS), 0.3)}),
        (["D1"], {"train_loss": np.full(len(STEPS), 0.5)}),
        (["D3"], {"query_signal": np.ones(len(STEPS))}),
    ],
)
def test_claims_about_depth_fail_where_they_should(claims, changes):
    ds = deep(**changes)
    assert {name: word(ds, name) for name in claims} == dict.fromkeys(claims, "FAILS")


def test_the_worst_layer_decides():
    ds = deep()
    ds["s21"][{"residual": 0, "layer": 2}] = 0.5
    assert word(ds, "D2") == "FAILS"
    assert word(ds, "D1") == "HOLDS"


def test_what_lacks_the_axis_is_not_decided():
    table = js.check(deep().isel(residual=0), ["D1"])
    assert not table.rows
    assert "needs an axis residual" in table.missing[0][2]
    assert "needs runs with residual 1" in js.check(deep().isel(residual=[1]), ["D1"]).missing[0][2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("architecture")
    experiment = runpy.run_path(str(ROOT / "sweeps" / "architecture.py"))
    assert experiment["main"](["--tiny", "--out", str(out / "architecture")]) == 0
    return out


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figures_are_drawn(results, tmp_path, monkeypatch):
    ds = js.open_results(results / "architecture" / "depth_4_mlp_norm")
    assert ds["s21"].dims == ("residual", "optimizer", "seed", "step", "layer", "head", "sample")
    assert np.isfinite(ds["train_loss"]).all()
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(results), "--out", str(tmp_path)])
    for name in ("architecture", "depth"):
        runpy.run_path(str(ROOT / "figures" / f"{name}.py"))["main"]()
        assert len((tmp_path / f"{name}.csv").read_text().splitlines()) > 50


def test_the_full_experiment_says_its_entries(capsys):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "architecture.py"))
    assert experiment["main"](["--help"]) == 0
    text = capsys.readouterr().out
    for entry in ("paper_like_heads_8", "theory_context_16", "depth_4_mlp_norm"):
        assert f"  {entry}: " in text
    assert "paper_like_context_16: 4 runs of 320 steps" in text

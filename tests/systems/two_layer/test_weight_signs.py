"""Signs that are kept while features are trained give the weights behind them: every step is dense SignGD's."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.store import trajectory
from jaxsign.sweep import recorder
from jaxsign.sweep.groups import make_groups
from jaxsign.training.rng import seed_key, stream
from jaxsign.trajectories import decode

#: 35 uses of 59 coordinates: 11 of them are shared, some by three patches.
PROBLEM = js.Problem(n=5, d=60, s=7, m_k=4, m_v=3, n_test=8)
HYPER = js.Hyper(sigma_p=2.0, sigma_0=0.02, mu=1.5, alpha=0.3, label_noise=0.2)
SEEDS = 2
FEATURES = ("query_signal", "key_signal", "query_noise", "key_noise", "value_signal", "value_noise")


def falling(step):
    return 2e-3 / jnp.sqrt(1.0 + step)


def alternating(params, data, test, hyper):
    """A function of the weights that no feature of the training set determines."""
    return jnp.sum(params.w_k * jnp.where(jnp.arange(params.w_k.shape[1]) % 2 == 0, 1, -1)[None])


@dataclasses.dataclass(frozen=True)
class Case:
    """A sweep, and what the oracle needs to know of it."""

    engine: str
    task: str  # whose weights are read
    problem: js.Problem = PROBLEM
    optimizer: str = "sign_gd"
    trainable: tuple[str, ...] | None = None
    steps: int = 40


CASES = {
    "shared coordinates": Case("hybrid", "two_layer_support", steps=150),
    "every coordinate in use, three patches, two heads": Case(
        "hybrid", "two_layer", dataclasses.replace(PROBLEM, n=4, s=15, context=3, heads=2, m_k=2)
    ),
    "disjoint supports, two heads, mini-batches, a falling rate": Case(
        "feature_space", "two_layer_support",
        dataclasses.replace(PROBLEM, supports="disjoint", heads=2, batch_size=2), "falling",
    ),
    "the value matrix alone, with momentum": Case(
        "hybrid", "two_layer_support", optimizer="signum", trainable=("w_v",)
    ),
}  # fmt: skip
OPTIMIZERS = {"sign_gd": js.sign_gd(2e-3), "falling": js.sign_gd(falling), "signum": js.signum(2e-3, beta=0.9)}
EVERY_CASE = pytest.mark.parametrize("name", CASES)


def sweep(name, **changes):
    case = CASES[name]
    base = {
        "system": js.two_layer, "problem": case.problem, "hyper": HYPER, "engine": case.engine,
        "optimizers": {case.optimizer: OPTIMIZERS[case.optimizer]}, "axes": {"seed": SEEDS}, "steps": case.steps,
        "record": 1, "test_every": case.steps, "trajectory": "signs", "trainable": case.trainable,
        "observables": ["train_loss", "test_loss", *FEATURES],
    }  # fmt: skip
    return js.Sweep(**(base | changes))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """`(name of a case) -> (directory, results)`."""

    @functools.cache
    def run(name):
        out = tmp_path_factory.mktemp("kept") / "out"
        return out, js.run_sweep(sweep(name), out, progress=False)

    return run


@functools.cache
def _draws(problem, seed):
    """The training set of a seed, in float64, with the batches of every step as index arrays."""
    dtype = jnp.zeros(()).dtype
    hyper, task, key = jax.tree.map(lambda x: jnp.asarray(x, dtype), HYPER), js.two_layer(problem), seed_key(seed)
    data = jax.jit(lambda key: task.sample(stream(key, "data"), hyper))(key)
    if task.batch is None:
        return data, lambda t: np.arange(problem.n)
    weight = jax.jit(lambda t: task.batch(jax.random.fold_in(stream(key, "train"), t), data, hyper).weight)
    return data, lambda t: np.flatnonzero(weight(t))


def rate(case, t):
    """The learning rate of a step, in the run's floats."""
    dtype = jnp.zeros(()).dtype
    return np.asarray(falling(jnp.asarray(t, dtype)) if case.optimizer == "falling" else 2e-3, dtype)


@pytest.mark.x64
@EVERY_CASE
def test_every_step_of_the_weights_is_that_of_the_dense_gradient(kept, oracle, eps, name):
    """Of the NumPy oracle at the decoded weights, wherever it is not within rounding of 0."""
    path, _ = kept(name)
    case, opened = CASES[name], js.open_trajectory(path)
    compared = np.zeros(2, int)
    for seed, run in enumerate(opened):
        data, batch = _draws(case.problem, seed)
        x, y = np.asarray(oracle.inputs(data), np.float64), np.asarray(data.y, np.float64)
        everything = [jax.tree.map(np.asarray, params) for _, params in run.iter()]
        assert len(everything) == case.steps + 1
        momentum = [0.0] * 3
        for t in range(case.steps):
            before, after, chosen = everything[t], everything[t + 1], batch(t)
            gradient = oracle.gradient(before, x[chosen], y[chosen])
            for i, (field, g) in enumerate(zip(("w_q", "w_k", "w_v"), gradient)):
                w, moved = getattr(before, field), getattr(after, field)
                if case.trainable is not None and field not in case.trainable:
                    np.testing.assert_array_equal(moved, w)
                    continue
                if case.optimizer == "signum":
                    momentum[i] = g = 0.9 * momentum[i] + 0.1 * g
                np.testing.assert_array_equal(moved[g == 0], w[g == 0])  # coordinates that no example uses
                step = -rate(case, t) * np.sign(g).astype(w.dtype)
                clear = np.abs(g) > 1e3 * eps * np.abs(g).max()
                np.testing.assert_allclose((moved - w)[clear], step[clear], rtol=0, atol=4 * eps * np.abs(w).max())
                if field != "w_v" and case.optimizer != "falling":  # a rate may round another way inside a program
                    np.testing.assert_array_equal(moved[clear], (w + step)[clear])
                compared += np.array([clear.sum(), (g != 0).sum()])
    assert compared[0] > 0.8 * compared[1]


@pytest.mark.x64
@EVERY_CASE
def test_features_of_the_weights_are_those_that_were_trained(kept, eps, name):
    path, ds = kept(name)
    opened = js.open_trajectory(path)
    assert opened[0].source.task.name == CASES[name].task
    again = js.replay(opened, ["train_loss", "test_loss", *FEATURES], record=1)
    for observable in ("train_loss", *FEATURES):
        stored = ds[observable]
        assert again[observable].dims == stored.dims
        size = float(np.abs(stored).max())
        np.testing.assert_allclose(again[observable], stored, rtol=0, atol=100 * eps * size, err_msg=observable)
        still = CASES[name].trainable is not None and observable[0] in "qk"
        assert still or float(np.abs(stored.isel(step=-1) - stored.isel(step=0)).max()) > 0.01 * size
    np.testing.assert_allclose(again["test_loss"][..., -1], ds["test_loss"][..., -1], rtol=1000 * eps)


def test_they_are_the_weights_of_the_engine_that_trains_them(kept, tmp_path, eps):
    name = "shared coordinates"
    path, _ = kept(name)
    js.run_sweep(
        sweep(name, engine="support", record=40, steps=40, test_every=40, observables=["train_loss"]),
        tmp_path,
        progress=False,
    )
    for mine, theirs in zip(js.open_trajectory(path), js.open_trajectory(tmp_path), strict=True):
        for (t, a), (_, b) in zip(mine.iter(stop=40), theirs.iter(), strict=True):
            for field in ("w_q", "w_k", "w_v"):
                np.testing.assert_allclose(getattr(a, field), getattr(b, field), rtol=0, atol=10 * eps, err_msg=str(t))
        assert np.abs(np.asarray(mine.params(40).w_q - mine.params(0).w_q)).max() > 0.01


def test_any_step_is_reached_without_keyframes_and_functions_see_the_weights(kept):
    path, _ = kept("shared coordinates")
    opened = js.open_trajectory(path)
    run = opened[1]
    segments = run._place[0].segments
    assert len(segments) >= 2
    assert not any(segment.keyframe for segment in segments)
    in_order = dict(run.iter())
    for t in (0, 1, 77, 127, 128, 129, 150):
        jax.tree.map(np.testing.assert_array_equal, run.params(t), in_order[t])
    again = js.replay(opened, [alternating], record=30)
    assert again["alternating"].dims == ("optimizer", "seed", "step")
    signs = np.where(np.arange(PROBLEM.d) % 2 == 0, 1.0, -1.0)
    expected = [np.sum(np.asarray(in_order[t].w_k, np.float64) * signs) for t in range(0, 151, 30)]
    np.testing.assert_allclose(again["alternating"][0, 1], expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 0.1


def steps(path):
    """Signs and amplitudes of every step of every run, as they are stored: where segments end may differ."""
    (unit,) = trajectory.units(path)
    described = [(tuple(shape), dtype) for _, shape, dtype in unit.about["leaves"]]
    out = []
    for run in range(SEEDS):
        parts = []
        for segment in unit.segments:
            count = segment.stop - segment.start
            sizes, codes = ((count, len(described)), "<u4"), ((count, decode.code_bytes(described)), "|u1")
            parts.append([trajectory.undo_deltas(x) for x in decode.read(segment, run, [sizes, codes])])
        out.append([np.concatenate(x) for x in zip(*parts)])
    return out


def test_a_killed_sweep_goes_on_to_the_same_signs(kept, tmp_path, killed_at_a_checkpoint):
    made = sweep("shared coordinates")
    with killed_at_a_checkpoint():
        js.run_sweep(made, tmp_path / "out", checkpoint_every=1e-9, progress=False)
    (cut,) = (tmp_path / "out").glob("trajectories/*")
    assert [file.name for file in cut.iterdir()] == ["000000000.segment"]
    js.run_sweep(made, tmp_path / "out", progress=False)
    for mine, theirs in zip(steps(tmp_path / "out"), steps(kept("shared coordinates")[0]), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert len(a) == 150
            np.testing.assert_array_equal(a, b)


def test_a_seed_that_does_not_fit_has_no_weights(monkeypatch, tmp_path):
    from jaxsign.systems.two_layer import feature_task
    from jaxsign.systems.two_layer.features import to_features

    def few(data, test, params, degree, overlap, slots):
        return to_features(data, test, params, degree, overlap, 4)

    monkeypatch.setattr(feature_task, "to_features", few)
    problem = dataclasses.replace(PROBLEM, m_v=8)  # no other test has its programs
    made = sweep("shared coordinates", problem=problem, steps=5, test_every=5, observables=["train_loss"])
    ds = js.run_sweep(made, tmp_path / "out", progress=False)
    assert (ds["first_bad_step"] == 0).all()
    opened = js.open_trajectory(tmp_path / "out")
    assert list(opened[0].iter()) == []
    with pytest.raises(ValueError, match="before the run diverged at step 0"):
        opened[0].params(0)


def by_feature(params):
    """Labels of features: of a matrix the product with the signal apart. It does not take weights."""
    signal, labels = params.w_q.signal, jax.tree.map(lambda leaf: "others", params)
    assert signal is not None
    return dataclasses.replace(labels, w_q=labels.w_q._replace(signal="signal"))


def test_two_rates_in_one_matrix_are_refused_and_two_matrices_may_have_their_own(tmp_path):
    two = {"signal": js.sign_gd(1e-3), "others": js.sign_gd(2e-3)}
    changes = {"steps": 5, "test_every": 5, "observables": ["train_loss"]}
    apart = sweep("shared coordinates", optimizers={"two": optax.multi_transform(two, by_feature)}, **changes)
    with pytest.raises(ValueError, match="took another one at step 0; use trajectory='features'"):
        js.run_sweep(apart, tmp_path / "apart", progress=False)
    assert not list((tmp_path / "apart").glob("trajectories/*/*.segment"))
    rates = {"w_q": js.sign_gd(1e-3), "w_k": js.sign_gd(2e-3), "w_v": js.sign_gd(3e-3)}

    def by_matrix(params):
        return jax.tree_util.tree_map_with_path(lambda path, leaf: path[0].name, params)

    each = sweep("shared coordinates", optimizers={"each": optax.multi_transform(rates, by_matrix)}, **changes)
    js.run_sweep(each, tmp_path / "each", progress=False)
    run = js.open_trajectory(tmp_path / "each")[0]
    for field, expected in (("w_q", 1e-3), ("w_k", 2e-3), ("w_v", 3e-3)):
        moved = np.abs(getattr(run.params(1), field) - getattr(run.params(0), field)).max()
        np.testing.assert_allclose(moved, expected, rtol=1e-4)


def test_what_takes_no_sign_steps_is_refused(tmp_path):
    for optimizer, words in ((optax.sgd(0.1), "one array moves by sizes"), (optax.lion(1e-3), "one array moves")):
        made = sweep("shared coordinates", optimizers={"it": optimizer})
        with pytest.raises(ValueError, match=f"trajectory='signs' needs steps of one size.*{words}"):
            js.run_sweep(made, tmp_path / "out")
    # One example and one row: each array of features is one number, which any optimizer moves by one size.
    one = js.Problem(n=1, d=30, s=6, m_k=1, m_v=2, n_test=4)
    for optimizer, exponent in ((optax.sgd(0.1), "1"), (js.power_gd(0.1, 0.5), "0.5")):
        made = sweep("shared coordinates", problem=one, optimizers={"it": optimizer}, observables=["train_loss"])
        with pytest.raises(ValueError, match=f"trajectory='signs' needs.*exponent {exponent} .found by running it"):
            js.run_sweep(made, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_their_bytes_are_those_of_the_features_codes():
    made = dataclasses.replace(sweep("shared coordinates"), steps=3 * recorder.KEYFRAME_EVERY, record=100)
    (group,) = make_groups(made)
    slots = group.start.data.shared.shape[-1]
    of_rows, of_values = 1 + PROBLEM.n + 1 + slots, 1 + -(-PROBLEM.n // 4) + 1 + -(-slots // 4)  # four rows are a byte
    codes, leaves, item = 2 * of_rows + of_values, 3 * 4, jnp.zeros(()).dtype.itemsize
    tape = recorder.TAPE_STEPS * (codes + leaves * item) + 4
    assert recorder.tape_bytes(group) == 3 * tape
    assert recorder.disk_bytes(group) == tape * made.schedule.steps // recorder.TAPE_STEPS // 50  # no keyframes


def test_the_manifest_names_the_engine_that_trained(kept):
    _, ds = kept("shared coordinates")
    assert [group["task"] for group in json.loads(ds.attrs["manifest"])["plan"]["groups"]] == ["two_layer_hybrid"]

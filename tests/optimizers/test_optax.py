"""Every transform of the installed Optax trains, or a line says why not: the table of docs/optimizers.md.

`python tests/optimizers/test_optax.py` writes the table anew.
"""

import functools
import inspect
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxsign as js
from jaxsign.optimizers.grid import as_grid
from jaxsign.training.loop import Loop
from jaxsign.training.mode import choose_mode
from jaxsign.training.rng import seed_key
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import abstract_start
from jaxsign.training.train import make_train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Optax's own, of what it still exports

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
FIRST, LAST = "<!-- every transform of Optax: tests/optimizers/test_optax.py -->", "<!-- end -->"


def loss(params, x, hyper):
    return jnp.mean((x @ params["w"] + params["b"][None] - 1.0) ** 2)


LINE = js.Task(
    sample=lambda key, hyper, shared: jax.random.normal(key, (8, 4)),
    init=lambda key, data, hyper: {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)},
    loss=loss,
    observe=lambda params, data, test, hyper: {"train_loss": loss(params, data, hyper), **params},
    name="line",
)


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def vectors(params):
    return jax.tree.map(lambda leaf: leaf.ndim < 2, params)


def kinds(params):
    return jax.tree.map(lambda leaf: "ab"[leaf.ndim > 1], params)


def every_second(step):
    return step % 2 == 0


SGD = optax.sgd(0.1)
BOTH = {"a": SGD, "b": optax.adam(0.1)}
#: Arguments of the transforms that need others than learning_rate=0.1.
ARGUMENTS = {
    "adaptive_grad_clip": [0.1], "add_noise": [0.1, 0.5, 0], "apply_if_finite": [SGD, 3], "chain": [SGD],
    "clip": [1.0], "clip_by_block_rms": [1.0], "clip_by_global_norm": [1.0], "conditionally_mask": [SGD, every_second],
    "conditionally_transform": [SGD, every_second], "ema": [0.9], "flatten": [SGD], "freeze": [vectors],
    "lookahead": [SGD, 2, 0.5], "masked": [SGD, matrices], "measure_with_ema": [optax.global_norm, 0.9],
    "multi_transform": [BOTH, kinds], "partition": [BOTH, kinds], "named_chain": [("sgd", SGD)],
    "noisy_sgd": [0.1, 0.01, 0.55, 0],
    "scale": [-0.1], "scale_by_backtracking_linesearch": [5], "scale_by_zoom_linesearch": [5],
    "scale_by_schedule": [lambda step: -0.1], "snapshot": ["norm", optax.global_norm], "trace": [0.9],
    "stateless": [lambda updates, params: updates], "stateless_with_tree_map": [lambda update, param: update],
    "with_extra_args_support": [SGD], "monitor": [{"norm": optax.global_norm}], "MultiSteps": [SGD, 2],
    "contrib.differentially_private_aggregate": [1.0, 0.1, 0], "contrib.dpsgd": [0.1, 1.0, 0.1, 0],
    "contrib.mechanize": [SGD], "contrib.sam": [SGD, optax.chain(optax.contrib.normalize(), SGD)],
    "contrib.schedule_free": [SGD, 0.1], "contrib.split_real_and_imaginary": [SGD],
}  # fmt: skip
NAMED = {"selective_transform": {"optimizer": SGD, "freeze_mask": vectors}}
#: Those that make factories, not transforms.
WRAPPERS = {"inject_hyperparams", "inject_stateful_hyperparams"}
#: Those without a return annotation that are transforms.
UNMARKED = {
    "scale_by_factored_rms",
    "monitor",
    "contrib.dog",
    "contrib.dowg",
    "contrib.hutchinson_estimator_diag_hessian",
}
#: Factories that hand on the key of each run.
FACTORIES = {
    "add_noise": lambda key: optax.add_noise(0.1, 0.5, key),
    "noisy_sgd": functools.partial(optax.noisy_sgd, 0.1),
    "contrib.hutchinson_estimator_diag_hessian": lambda key: optax.contrib.hutchinson_estimator_diag_hessian(key),
    "contrib.sophia": lambda key: optax.contrib.sophia(
        0.1, hessian_diagonal_fn=optax.contrib.hutchinson_estimator_diag_hessian(key)
    ),
}
#: Errors of Optax itself, which come through as they are.
OWN_ERRORS = {
    "contrib.scale_by_muon": "every parameter must be a matrix; `optax.contrib.muon` sorts them (Optax's own error)"
}


def transforms():
    """{name without "optax.": `() -> transform`} of every function of Optax that makes one."""
    out = {"MultiSteps": functools.partial(optax.MultiSteps, SGD, 2)}
    for module, prefix in ((optax, ""), (optax.contrib, "contrib.")):
        for name, made in vars(module).items():
            full = prefix + name
            if name.startswith("_") or not inspect.isfunction(made):
                continue
            parameters = inspect.signature(made)
            if "GradientTransformation" not in str(parameters.return_annotation) and full not in UNMARKED:
                continue
            if full in WRAPPERS:
                out[full] = functools.partial(injected, made)
            elif full in NAMED:
                out[full] = functools.partial(made, **NAMED[full])
            elif full in ARGUMENTS:
                out[full] = functools.partial(made, *ARGUMENTS[full])
            else:
                needed = [p.name for p in parameters.parameters.values() if p.default is p.empty]
                assert set(needed) <= {"learning_rate"}, f"{full} needs arguments here: {needed}"
                out[full] = functools.partial(made, **dict.fromkeys(needed, 0.1))
    return dict(sorted(out.items(), key=lambda item: item[0].lower()))


def injected(wrapper):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # one of the two
        return wrapper(optax.sgd)(learning_rate=0.1)


def trace(entry):
    """Traces a whole run of a transform or a factory; nothing is computed."""
    grid = as_grid(entry)
    choice = choose_mode(LINE, grid.factory, grid.points, None)
    loop, schedule = Loop(choice.mode, grid.factory), Schedule.build(4, 2)
    jax.eval_shape(
        lambda key, start: make_train(loop, schedule)(key, start, None, {}), seed_key(0), abstract_start(LINE, None)
    )


def outcome(name, made):
    """("trains", ""), ("factory", ""), or ("refused", reason)."""
    try:
        trace(made())
    except Exception as error:
        words = str(error)
        if "must draw from the key of each run" in words and name in FACTORIES:
            trace(FACTORIES[name])
            return "factory", ""
        if name in OWN_ERRORS:
            return "refused", OWN_ERRORS[name]
        if not isinstance(error, ValueError) or " cannot train: " not in words:
            raise AssertionError(f"{name}: {type(error).__name__}: {words}") from error
        return "refused", words.partition(" cannot train: ")[2]
    return "trains", ""


@functools.cache
@jax.numpy_rank_promotion("allow")  # a user's default; some of Optax's own transforms promote
def table():
    """The table of the docs."""
    found = {name: outcome(name, made) for name, made in transforms().items()}

    def names(kind):
        return ", ".join(f"`{name}`" for name, (one, _) in found.items() if one == kind)

    lines = [
        "| | of optax | ", "| --- | --- |", f"| trains | {names('trains')} |",
        f"| trains as a factory with the keyword `key` | {names('factory')} |",
        *(f"| refused | `{name}`: {why} |" for name, (one, why) in found.items() if one == "refused"),
    ]  # fmt: skip
    return "\n".join([FIRST, f"Optax {optax.__version__}, {len(found)} transforms:", "", *lines, LAST]).replace(
        "| \n", "|\n"
    )


def test_the_table_in_the_docs_is_what_the_installed_optax_does():
    text = PAGE.read_text()
    stored = text[text.index(FIRST) : text.index(LAST) + len(LAST)]
    made = table()  # every transform has an outcome, whatever the version
    if f"Optax {optax.__version__}," in stored:
        assert stored == made
    assert len(re.findall(r"\| refused \|", made)) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", transforms())
@jax.numpy_rank_promotion("allow")
def test_what_trains_stays_finite(name):
    kind, _ = outcome(name, transforms()[name])
    if kind == "refused":
        return
    entry = as_grid(FACTORIES[name] if kind == "factory" else transforms()[name]())
    run = js.train(jax.random.key(0), LINE, None, entry, steps=4, record=2)
    assert np.isfinite(np.asarray(run.trace["w"])).all()


DATA = np.asarray(jax.random.normal(js.stream(jax.random.key(0), "data"), (8, 4)), np.float64)


def gradient(w, b):
    error = DATA @ w + b - 1.0
    return 2 * DATA.T @ error / error.size, 2 * error.sum(0) / error.size


def train(entry, steps=5, **settings):
    return js.train(jax.random.key(0), LINE, None, entry, steps=steps, record=1, **settings)


def test_lookahead_keeps_slow_parameters_of_its_own():
    run = train(optax.lookahead(SGD, sync_period=2, slow_step_size=0.5))
    fast = slow = (np.ones((4, 3)), np.zeros(3))
    for t in range(6):
        np.testing.assert_allclose(run.trace["w"][t], fast[0], rtol=1e-5)
        fast = tuple(p - 0.1 * g for p, g in zip(fast, gradient(*fast)))
        if t % 2 == 1:
            fast = slow = tuple(s + 0.5 * (f - s) for s, f in zip(slow, fast))
    seen = train(js.observed_at(optax.lookahead(SGD, 2, 0.5), lambda state, params: state.slow))
    np.testing.assert_array_equal(seen.trace["w"][1], seen.trace["w"][0])  # until they meet, the slow ones stay
    np.testing.assert_allclose(seen.trace["w"][2], run.trace["w"][2], rtol=1e-6)
    np.testing.assert_allclose(seen.params["w"], run.params["w"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"optax\.lookahead must be the outermost transform"):
        train(optax.chain(optax.lookahead(SGD, 2, 0.5)))


def test_sam_gets_the_gradient_elsewhere():
    run = train(optax.contrib.sam(SGD, optax.sgd(0.05), opaque_mode=True))
    here = (np.ones((4, 3)), np.zeros(3))
    for t in range(6):
        np.testing.assert_allclose(run.trace["w"][t], here[0], rtol=1e-5)
        there = tuple(p + 0.05 * g for p, g in zip(here, gradient(*here)))
        here = tuple(p - 0.1 * g for p, g in zip(here, gradient(*there)))


def test_sophia_gets_the_loss_and_a_key_of_each_run():
    estimate = optax.contrib.hutchinson_estimator_diag_hessian
    grid = js.grid(lambda key: optax.contrib.sophia(0.01, hessian_diagonal_fn=estimate(key), clip_threshold=None))
    one, two, same = (js.train(jax.random.key(s), LINE, None, grid, steps=12).params["w"] for s in (0, 1, 0))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, two)

    def curved(updates, state, params=None, obj_fn=None, **_):
        return jax.tree.map(lambda leaf: -leaf, jax.grad(obj_fn)(params)), state

    mine = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), curved)
    plain = train(optax.sgd(1.0), steps=2)
    np.testing.assert_allclose(train(mine, steps=2).params["w"], plain.params["w"], rtol=1e-6)


def test_multi_steps_are_a_transform_wherever_one_is_asked_for():
    several = optax.MultiSteps(SGD, 3)
    run = train(several, steps=6)
    np.testing.assert_allclose(run.params["w"], train(SGD, steps=2).params["w"], rtol=1e-5)
    sweep = js.Sweep(system=LINE, problem=None, hyper=None, optimizers={"several": several}, steps=6, record=1)
    ds = js.run_sweep(sweep, progress=False)
    np.testing.assert_allclose(ds["train_loss"].values[0, 0], run.trace["train_loss"], rtol=1e-6)


def test_gradients_of_examples_are_not_made_up():
    rows = optax.chain(optax.contrib.differentially_private_aggregate(1.0, 0.1, 0), optax.scale(-0.1))
    square = jnp.ones((4, 4))
    task = js.Task(
        sample=lambda key, hyper, shared: square, init=lambda key, data, hyper: {"w": square},
        loss=lambda params, x, hyper: jnp.sum(params["w"] ** 2), observe=lambda params, data, test, hyper: params,
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"differentially_private_aggregate cannot train: it needs the gradient of every"
    ):
        js.train(jax.random.key(0), task, None, rows, steps=2)


@pytest.mark.parametrize("how", ["train", "sweep"])
def test_runs_are_observed_at_the_iterate_that_the_optimizer_evaluates(how, tmp_path):
    free = optax.contrib.schedule_free_sgd(0.3)
    entry = js.observed_at(free, optax.contrib.schedule_free_eval_params)
    if how == "train":
        seen = train(entry).trace["w"]
    else:
        sweep = js.Sweep(
            system=LINE, problem=None, hyper=None, optimizers={"free": entry}, steps=5, record=1, observables=["w"]
        )
        seen = js.run_sweep(sweep, tmp_path, progress=False)["w"].values[0, 0]
        np.testing.assert_array_equal(js.run_sweep(sweep, tmp_path, progress=False)["w"].values[0, 0], seen)
    params, data = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}, jnp.asarray(DATA, jnp.zeros(()).dtype)
    state = jax.jit(free.init)(params)

    @jax.jit
    def step(params, state):
        updates, after = free.update(jax.grad(loss)(params, data, None), state, params)
        return optax.contrib.schedule_free_eval_params(state, params), optax.apply_updates(params, updates), after

    for t in range(6):
        evaluated, params, state = step(params, state)
        np.testing.assert_allclose(seen[t], evaluated["w"], rtol=1e-5)
    assert np.abs(evaluated["w"] - params["w"]).max() > 1e-3


def test_another_iterate_is_another_definition(tmp_path):
    free = optax.contrib.schedule_free_sgd(0.3)

    def sweep(entry):
        return js.Sweep(system=LINE, problem=None, hyper=None, optimizers={"free": entry}, steps=4, record=2)

    half = js.observed_at(free, lambda state, params: jax.tree.map(lambda leaf: leaf / 2, params))
    js.run_sweep(sweep(js.observed_at(free, optax.contrib.schedule_free_eval_params)), tmp_path, progress=False)
    for other in (free, half):
        with pytest.raises(ValueError, match=r"belongs to another definition: optimizers\.free"):
            js.run_sweep(sweep(other), tmp_path, progress=False)
    one, two = (js.train(jax.random.key(0), LINE, None, entry, steps=2).trace["w"] for entry in (free, half))
    np.testing.assert_allclose(two, one / 2, rtol=1e-6)


def test_what_cannot_be_observed_elsewhere_is_refused():
    entry = js.observed_at(optax.contrib.schedule_free_sgd(0.3), optax.contrib.schedule_free_eval_params)
    with pytest.raises(ValueError, match=r"levels=.* needs the trained parameters, and js.observed_at observes others"):
        train(entry, levels=[0.5])
    both = {"sgd": SGD, "free": entry}
    sweep = js.Sweep(system=LINE, problem=None, hyper=None, optimizers=both, steps=4, record=2, levels=[0.5])
    with pytest.raises(
        ValueError, match=r"levels=\[0.5\] needs .* optimizer 'free' observes others .* a sweep of its own"
    ):
        js.run_sweep(sweep, progress=False)
    problem, hyper = js.Problem(n=4, d=60, s=4, m_k=2, m_v=2, n_test=4), js.Hyper(sigma_p=2.0)
    for engine in ("support", "hybrid"):
        with pytest.raises(ValueError, match="it is observed at another iterate"):
            js.train(jax.random.key(0), js.two_layer(problem, engine=engine), hyper, entry, steps=2)
    task = js.two_layer(problem, engine="auto")
    js.train(jax.random.key(0), task, hyper, entry, steps=2, observables=["train_loss"])
    with pytest.raises(ValueError, match="iterate must be a function"):
        js.observed_at(SGD, None)
    with pytest.raises(ValueError, match=r"must be an Optax transform, with init and update, got <function sgd"):
        js.observed_at(optax.sgd, lambda state, params: params)
    masks = {"w": True}
    for inside in (
        optax.chain(entry), optax.chain(optax.clip(1.0), entry), optax.apply_if_finite(entry, 3),
        optax.MultiSteps(entry, 1), optax.partition({"a": entry}, {"w": "a"}), optax.masked(entry, masks),
        js.observed_at(entry, lambda state, params: params),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"js.observed_at must be the outermost transform"):
            train(inside)


if __name__ == "__main__":
    page = PAGE.read_text()
    PAGE.write_text(page[: page.index(FIRST)] + table() + page[page.index(LAST) + len(LAST) :])

"""State that no gradient trains, such as the running means of batch normalisation: Flax against a loop in NumPy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.training.start import draw

N, D, WIDTH, RATE, MOMENTUM, EPSILON = 12, 3, 4, 0.3, 0.9, 1e-2


class Net(nn.Module):
    """Normalised by batches in training, by running means where it is observed."""

    @nn.compact
    def __call__(self, x, train):
        z = nn.Dense(WIDTH, use_bias=False)(x)
        z = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON)(z)
        return nn.Dense(1, use_bias=False)(jnp.tanh(z))[..., 0]


NET = Net()


def loss(params, batch, hyper):
    out, state = NET.apply(params, batch["x"], train=True, mutable=["batch_stats"])
    return jnp.mean((out - batch["y"]) ** 2), state


def observe(params, data, test, hyper):
    out = NET.apply(params, data["x"], train=False)
    running = params["batch_stats"]["BatchNorm_0"]
    return {"train_loss": jnp.mean((out - data["y"]) ** 2), "mean": running["mean"], "var": running["var"]}


def sample(key, hyper, shared):
    x = 1 + 2 * jax.random.normal(key, (N, D))
    return {"x": x, "y": x[:, 0] * hyper["slope"]}


def batch(key, data, hyper):
    chosen = jax.random.choice(key, N, (N // 2,), replace=False)
    return jax.tree.map(lambda whole: whole[chosen], data)


TASK = js.Task(
    sample=sample,
    init=lambda key, data, hyper: NET.init(key, data["x"], train=False),
    loss=loss,
    observe=observe,
    batch=batch,
    dims={"mean": ("unit",), "var": ("unit",)},
    name="normalised",
    state=("batch_stats",),
)
HYPER = {"slope": 0.5}
#: What the loop in NumPy begins with and what it trains on, one program each.
drawn, batched = jax.jit(lambda key: draw(TASK, key, HYPER)), jax.jit(batch)


def doubles(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def by_hand(seed, steps):
    """The same training in float64: the gradient of batch normalisation as in its paper (Ioffe and Szegedy, 2015)."""
    key = jax.random.key(seed)
    data, _, start, _ = drawn(key)
    start = doubles(start)
    first, last = (start["params"][name]["kernel"] for name in ("Dense_0", "Dense_1"))
    scale, bias = (start["params"]["BatchNorm_0"][name] for name in ("scale", "bias"))
    mean, var = np.zeros(WIDTH), np.ones(WIDTH)
    for t in range(steps):
        now = doubles(batched(jax.random.fold_in(js.stream(key, "train"), t), data, HYPER))
        x, y, n = now["x"], now["y"], N // 2
        z = x @ first
        centre, spread = z.mean(0), z.var(0)
        normal = (z - centre) / np.sqrt(spread + EPSILON)
        hidden = np.tanh(scale * normal + bias)
        d_out = 2 * (hidden @ last[:, 0] - y) / n
        d_affine = np.outer(d_out, last[:, 0]) * (1 - hidden**2)
        d_normal = d_affine * scale
        d_z = d_normal - d_normal.mean(0) - normal * (d_normal * normal).mean(0)
        d_first = x.T @ (d_z / np.sqrt(spread + EPSILON))
        last = last - RATE * (hidden.T @ d_out)[:, None]
        scale, bias = scale - RATE * (d_affine * normal).sum(0), bias - RATE * d_affine.sum(0)
        first = first - RATE * d_first
        mean, var = MOMENTUM * mean + (1 - MOMENTUM) * centre, MOMENTUM * var + (1 - MOMENTUM) * spread
    hidden = np.tanh(scale * (doubles(data["x"]) @ first - mean) / np.sqrt(var + EPSILON) + bias)
    train_loss = np.mean((hidden @ last[:, 0] - doubles(data["y"])) ** 2)
    return {"train_loss": train_loss, "mean": mean, "var": var}, first


def test_batch_normalisation_of_flax_is_that_of_a_loop_in_numpy(eps):
    run = js.train(jax.random.key(3), TASK, HYPER, optax.sgd(RATE), steps=12, record=12)
    expected, first = by_hand(3, 12)
    for name, value in expected.items():
        np.testing.assert_allclose(run.trace[name][-1], value, rtol=1000 * eps, atol=1000 * eps)
    np.testing.assert_allclose(run.params["params"]["Dense_0"]["kernel"], first, rtol=1000 * eps, atol=1000 * eps)
    np.testing.assert_array_equal(run.params["batch_stats"]["BatchNorm_0"]["mean"], run.trace["mean"][-1])


def sweep(**changes):
    settings = {
        "system": TASK, "problem": None, "hyper": HYPER, "steps": 12, "record": 3, "levels": [0.5],
        "optimizers": {"momentum": js.grid(optax.sgd, learning_rate=[RATE, 0.1], momentum=0.0)},
        "axes": {"seed": 3}, "observables": ["train_loss", "mean", "var"], "trajectory": "log2",
    }  # fmt: skip
    return js.Sweep(**settings | changes)


def swept(out, **changes):
    return js.run_sweep(sweep(**changes), out, checkpoint_every=1e-9, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    return swept(out).load(), out


def test_every_seed_of_a_sweep_has_a_state_of_its_own(whole, eps):
    ds, _ = whole
    for seed in range(3):
        expected, _ = by_hand(seed, 12)
        for name, value in expected.items():
            found = ds[name].sel(seed=seed, step=12).isel(optimizer=0)
            np.testing.assert_allclose(found, value, rtol=1000 * eps, atol=1000 * eps)
    for name in expected:  # captured at the step before a level and at that step
        found = ds[f"{name}_at_level"].sel(seed=1).isel(optimizer=0, level=0)
        for side, step in enumerate(ds["step_at_level"].sel(seed=1).isel(optimizer=0, level=0).values):
            value = by_hand(1, step)[0][name]
            np.testing.assert_allclose(found.isel(crossing=side), value, rtol=1000 * eps, atol=1000 * eps)


def test_a_killed_sweep_goes_on_with_its_state_to_the_same_bits(whole, tmp_path, killed_at_a_checkpoint, capfd):
    with killed_at_a_checkpoint():
        swept(tmp_path / "out")
    ds = swept(tmp_path / "out").load()
    assert "not used" not in capfd.readouterr().err
    for name, value in whole[0].data_vars.items():
        assert value.values.tobytes() == ds[name].values.tobytes(), name


def test_snapshots_hold_the_state(whole):
    ds, out = whole
    for i, run in enumerate(js.open_trajectory(out, sweep())):
        running = run.params(12)["batch_stats"]["BatchNorm_0"]
        optimizer, seed = divmod(i, 3)
        np.testing.assert_array_equal(running["var"], ds["var"].sel(step=12).isel(optimizer=optimizer, seed=seed))


def test_frozen_weights_and_evaluated_iterates_keep_the_state_moving(eps):
    last = {"steps": 6, "record": 6}
    frozen = js.train(jax.random.key(0), TASK, HYPER, optax.sgd(0.0), **last)
    doubled = js.observed_at(
        optax.sgd(0.0), lambda state, params: jax.tree.map(lambda leaf: 2 * leaf, params)
    )  # the weights alone: an iterate of the state would be refused by its tree
    seen = js.train(jax.random.key(0), TASK, HYPER, doubled, **last)
    np.testing.assert_array_equal(seen.trace["mean"], frozen.trace["mean"])
    assert float(jnp.abs(frozen.trace["mean"][-1]).min()) > 0.1
    assert abs(float(seen.trace["train_loss"][-1] - frozen.trace["train_loss"][-1])) > 1e-3


def returning(change):
    """A loss whose state is another one."""
    return lambda params, batch, hyper: (loss(params, batch, hyper)[0], change(loss(params, batch, hyper)[1]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "batch_stats"}, ["state must be a tuple of names", "'batch_stats'"]),
        ({"state": ()}, ["state must be different names", "got state=()"]),
        ({"state": ("a", "a")}, ["state must be different names", "('a', 'a')"]),
        ({"gradient": lambda p, b, h, s: (0.0, p)}, ["state=('batch_stats',)", "leave gradient= away"]),
        ({"state": ("params", "batch_stats")}, ["must leave a field of params to be trained", "'params'"]),
        ({"state": ("stats",)}, ["state of normalised", "['batch_stats', 'params']", "got 'stats'"]),
        ({"loss": lambda p, b, h: loss(p, b, h)[0]}, ["must return (loss, {'batch_stats': its new value})", "float"]),
        ({"loss": returning(lambda state: {})}, ["new values of state=('batch_stats',)", "got those of []"]),
        ({"loss": returning(lambda state: {"batch_stats": jnp.zeros(2)})}, ["must stay a tree with", "['mean']"]),
        ({"loss": returning(lambda state: jax.tree.map(lambda x: x[:2], state))}, ["['mean'] must stay", "[4] as"]),
        ({"state": None}, ["loss of normalised", "tuple", "name in state= what no gradient trains"]),
    ],
)  # fmt: skip
def test_a_mistake_with_the_state_ends_in_one_line(changes, words):
    with pytest.raises(ValueError) as caught:
        js.train(jax.random.key(0), dataclasses.replace(TASK, **changes), HYPER, optax.sgd(0.1), steps=2)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_a_state_keeps_the_dtype_and_the_integers_that_init_gave_it():
    """A counter in int32, and a mean of all steps in bfloat16, which every step rounds."""

    def counted(params, batch, hyper):
        count, old = params["seen"]["count"] + 1, params["seen"]["mean"].astype(float)
        mean = old + (batch["x"].mean() - old) / count.astype(float)
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), {"seen": {"count": count, "mean": mean}}

    def init(key, data, hyper):
        return {"w": jnp.zeros(D), "seen": {"count": jnp.zeros((), jnp.int32), "mean": jnp.zeros((), jnp.bfloat16)}}

    def seen(params, data, test, hyper):
        return {"count": params["seen"]["count"], "w": params["w"]}

    task = dataclasses.replace(TASK, init=init, loss=counted, observe=seen, dims={}, batch=None, state=("seen",))
    run = js.train(jax.random.key(0), task, HYPER, optax.adam(0.1), steps=5, record=1)
    assert run.trace["count"].tolist() == [0, 1, 2, 3, 4, 5]
    assert run.params["seen"]["mean"].dtype == jnp.bfloat16
    data = sample(js.stream(jax.random.key(0), "data"), HYPER, None)
    assert run.params["seen"]["mean"] == data["x"].mean().astype(jnp.bfloat16)


def test_what_does_not_know_of_the_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"signs.*normalised has state=\('batch_stats',\).*log2"):
        swept(tmp_path / "out", trajectory="signs")
    with pytest.raises(ValueError, match=r"trainable parameter.*batch_stats.*params"):
        js.train(jax.random.key(0), TASK, HYPER, optax.sgd(0.1), steps=2, trainable=["batch_stats"])

"""The sweeps whose results are kept in tests/data/results-0.1, as they were when version 0.1 stored them."""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxsign as js

SLOPE = 2.0


def two_layer(seeds=2, snr=(0.1, 1.0)):
    """A system of the package with a mapped axis."""
    return js.Sweep(
        system=js.two_layer,
        problem=js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=16),
        hyper=js.Hyper(sigma_p=2.0),
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3, 1e-2])},
        axes={"snr": list(snr), "seed": seeds},
        steps=20,
        record=10,
        test_every=10,
        engine="dense",
        observables=["train_loss", "test_error"],
    )


def residual(params, data):
    return data[0] @ params["w"] - SLOPE * data[1]


@functools.cache
def line(problem):
    """Least squares on points that are cheap functions of the key."""

    def sample(key, hyper, shared):
        u = jax.random.key_data(key).astype(jnp.float32) / 2.0**32
        x = jnp.sin(jnp.arange(12.0).reshape(4, 3) * (1.0 + u[0]) + u[1]) * hyper["scale"]
        return x, x @ jnp.array([1.0, -2.0, 0.5])

    def loss(params, data, hyper):
        return jnp.mean(residual(params, data) ** 2)

    return js.Task(
        sample=sample,
        init=lambda key, data, hyper: {"w": jnp.full(3, 0.1)},
        loss=loss,
        observe=lambda params, data, test, hyper: {"train_loss": loss(params, data, hyper)},
        name="line",
    )


def last(trace):
    """The last loss."""
    return {"last": trace["train_loss"][-1]}


def scaled(factor):
    """A transform of the user's own, with a number in its closure."""

    def init(params):
        return optax.EmptyState()

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -factor * g, updates), state

    return optax.GradientTransformation(init, update)


def own(seeds=2, scale=(1.0, 2.0), optimizers=("gd", "adam", "decayed", "mine")):
    """A system of one's own in a module, with optimizers of several kinds."""
    every = {
        "gd": js.grid(optax.sgd, learning_rate=[0.1, 0.3]),
        "adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
        "decayed": js.grid(optax.sgd, learning_rate=[optax.cosine_decay_schedule(0.1, 20)]),
        "mine": scaled(0.1),
    }
    return js.Sweep(
        system=line,
        problem=None,
        hyper={"scale": 1.0},
        axes={"scale": list(scale), "seed": seeds},
        steps=20,
        record=10,
        test_every=10,
        optimizers={name: every[name] for name in optimizers},
        summary=last,
    )


BUILD = {"two_layer": two_layer, "own": own}

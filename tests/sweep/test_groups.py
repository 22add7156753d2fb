"""Groups of a sweep: one program for each static value, optimizer family, static keyword and training mode."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import optax

import jaxsign as js
from jaxsign.sweep.groups import make_groups


@dataclasses.dataclass(frozen=True)
class Sizes:
    n: int = 5
    width: int = 3


@functools.cache
def line(sizes, engine="a"):
    """A system without randomness: w runs to the hyper-parameter; one scalar and one vector are observed."""
    return js.Task(
        sample=lambda key, hyper, shared: jnp.ones(sizes.n),
        init=lambda key, data, hyper: {"w": jnp.zeros(sizes.width)},
        loss=lambda params, data, hyper: jnp.sum((params["w"] - hyper["goal"]) ** 2),
        observe=lambda params, data, test, hyper: {"train_loss": jnp.sum(params["w"]), "w": params["w"]},
    )


def sweep(**changes):
    base = {
        "system": line, "problem": Sizes(), "hyper": {"goal": 1.0, "tilt": 0.0}, "steps": 12, "record": 3,
        "optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.1])},
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def family(points):
    return js.grid(optax.sgd, learning_rate=[0.1 / (i + 1) for i in range(points)])


def test_one_group_per_static_value_family_and_static_keyword():
    optimizers = {
        "gd": js.grid(optax.sgd, learning_rate=[0.1, 0.2], nesterov=[False, True], momentum=0.9),
        "adam": js.grid(optax.adam, learning_rate=[0.1, 0.2, 0.3], b2=[0.9, 0.99]),
        "mine": optax.sgd(0.1),
    }
    made = sweep(optimizers=optimizers, axes={"goal": [1.0, 2.0], "n": [2, 3, 4], "engine": ["a", "b"], "seed": 4})
    groups = make_groups(made)
    assert len(groups) == (3 * 2) * (2 + 1 + 1)  # static points times (gd by nesterov, adam, mine)
    assert {tuple(g.fixed.items()) for g in groups} == {((1, n), (2, e)) for n in range(3) for e in range(2)}
    first = [g for g in groups if g.fixed == {1: 0, 2: 0}]
    assert [g.family for g in first] == ["gd", "gd", "adam", "mine"]
    # The product runs over learning rates first: points 0 and 2 are without, 1 and 3 with Nesterov.
    assert [g.optimizers for g in first] == [(0, 2), (1, 3), tuple(range(4, 10)), (10,)]
    assert [g.static for g in first] == [{"nesterov": False}, {"nesterov": True}, {}, {}]
    assert [g.floats for g in first] == [("learning_rate", "momentum")] * 2 + [("learning_rate", "b2"), ()]
    assert {g.task for g in groups if g.fixed[1] == 2 and g.fixed[2] == 1} == {line(Sizes(n=4), engine="b")}


def test_the_compact_form_is_trained_only_where_it_is_exact(problem, hyper):
    optimizers = {
        "sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3]),
        "adamw": js.grid(optax.adamw, learning_rate=[1e-3]),
    }
    made = js.Sweep(system=js.two_layer, problem=problem, hyper=hyper, optimizers=optimizers, steps=5)
    assert {g.family: g.choice.mode.compact for g in make_groups(made)} == {
        "sign_gd": True,
        "adamw": False,
    }  # decay reads params


def random_sweep(rng):
    axes = {}
    for name in rng.permutation(["goal", "n", "tilt", "width"])[: rng.integers(0, 4)]:
        count = int(rng.integers(1, 6))
        axes[str(name)] = list(range(1, count + 1)) if name in ("n", "width") else list(np.linspace(0, 1, count))
    axes["seed"] = int(rng.integers(1, 12))
    optimizers = {f"f{i}": family(int(rng.integers(1, 5))) for i in range(rng.integers(1, 4))}
    return sweep(axes=axes, optimizers=optimizers)

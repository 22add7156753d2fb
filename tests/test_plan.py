"""How a sweep is cut: one program a group, blocks that tile the grid, limits on runs, bytes and lanes."""

import dataclasses
import functools
import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.sweep import plan


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
    groups = plan.groups(made)
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
    assert {g.family: g.fit.compact for g in plan.groups(made)} == {
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


@pytest.mark.parametrize("trial", range(40))
def test_blocks_tile_the_grid_once_within_the_limits(trial, monkeypatch):
    rng = np.random.default_rng(trial)
    made, runs, room = random_sweep(rng), int(rng.integers(1, 40)), int(rng.integers(1, 5000))
    monkeypatch.setattr(plan, "BLOCK_RUNS", runs)
    monkeypatch.setattr(plan, "BLOCK_BYTES", room)
    groups, bytes_per_run = plan.groups(made), int(rng.integers(1, 300))
    extents = plan.chunk_shape(made, len(groups), bytes_per_run)
    assert len(extents) == len(made.shape)
    assert all(1 <= extent <= size for extent, size in zip(extents, made.shape))
    count = int(np.prod(extents))
    assert count == 1 or (count <= runs and count * bytes_per_run <= room)
    assert all(extent == 1 for extent, axis in zip(extents, made.grid_axes) if axis.static)
    if len(groups) > 1:
        assert extents[-2] == 1  # a block never mixes programs

    times, owners = np.zeros(made.shape, int), np.full(made.shape, -1)
    for number, group in enumerate(groups):
        for box in plan.boxes(made, group, extents):
            times[box.slices] += 1
            owners[box.slices] = number
            # exactly one chunk of the store: it starts on the lattice of chunks and is cut only at the end
            ends = [min(a + extent, size) for a, extent, size in zip(box.start, extents, made.shape)]
            assert all(a % extent == 0 for a, extent in zip(box.start, extents))
            assert list(box.stop) == ends
            cells = np.zeros(made.shape, bool)
            cells[box.slices] = True
            assert [tuple(cell) for cell in np.argwhere(cells)] == box.members()  # C order
            assert box.shape == tuple(b - a for a, b in zip(box.start, box.stop))
    assert (times == 1).all()
    for cell in itertools.product(*map(range, made.shape)):
        group = groups[owners[cell]]
        assert group.family == made.optimizer_points[cell[-2]][1]
        assert group.task is made.task(cell[:-2])


def test_blocks_fill_seeds_first_then_the_optimizers_of_one_program_then_the_inner_axes(monkeypatch):
    monkeypatch.setattr(plan, "BLOCK_RUNS", 24)
    axes = {"goal": [0.0, 1.0, 2.0], "n": [2, 3], "tilt": [0.0, 1.0], "seed": 6}
    made = sweep(axes=axes, optimizers={"gd": family(2)})
    assert plan.chunk_shape(made, 1, 1) == (1, 1, 2, 2, 6)
    assert plan.chunk_shape(made, 2, 1) == (2, 1, 2, 1, 6)
    monkeypatch.setattr(plan, "BLOCK_RUNS", 4)
    assert plan.chunk_shape(made, 1, 1) == (1, 1, 1, 1, 4)
    assert plan.chunk_shape(made, 1, 2 * plan.BLOCK_BYTES) == (1, 1, 1, 1, 1)  # one run always fits


def test_bytes_of_a_run_are_counted_by_hand():
    made, item = sweep(), jnp.zeros(()).dtype.itemsize
    (group,), hyper = plan.groups(made), made.hyper_at(())
    records = 5  # steps 0, 3, 6, 9, 12
    # a sweep records scalars by default; the state is data (5,) and parameters (3,)
    assert plan.run_bytes(group, hyper, made) == (records * item, (5 + 3) * item)
    both = dataclasses.replace(made, observables=["train_loss", "w"])
    assert plan.run_bytes(group, hyper, both) == (records * (1 + 3) * item, (5 + 3) * item)
    kept = dataclasses.replace(both, summary=lambda trace: {"last": trace["train_loss"][-1]}, keep_trace=False)
    assert plan.run_bytes(group, hyper, kept) == (0, (5 + 3) * item)


@pytest.mark.parametrize("state", [1, 1000, 30_000, 600_000, 10**6, plan.LANE_BYTES, 10**7, 10**9])
def test_a_lane_is_the_largest_power_of_two_that_stays_in_cache(state):
    width = plan.lane_width(state, "cpu")
    assert width in (1, 2, 4, 8, 16, 32, 64)
    assert width == 1 or width * state <= plan.LANE_BYTES
    assert width == 64 or 2 * width * state > plan.LANE_BYTES
    assert plan.lane_width(state, "gpu") == plan.lane_width(state, "tpu") == 64

"""How a sweep is cut: one program a group, blocks that tile the grid, limits on runs, bytes and lanes."""

import dataclasses
import functools
import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.sweep import groups as plan
from jaxsign.sweep.layout import Layout, owners


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
    assert {g.family: g.choice.mode.compact for g in plan.groups(made)} == {
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
    made, runs, budget = random_sweep(rng), int(rng.integers(1, 40)), int(rng.integers(1, 5000))
    monkeypatch.setattr(plan, "BLOCK_RUNS", runs)
    groups, bytes_per_run = plan.groups(made), int(rng.integers(1, 300))
    cost = plan.Cost(0, bytes_per_run)
    if bytes_per_run > budget:
        with pytest.raises(ValueError, match=f"memory must be at least {bytes_per_run} bytes.*got memory={budget}"):
            plan.room([cost] * len(groups), made, 4, budget)
        budget = bytes_per_run
    room, records = plan.room([cost] * len(groups), made, 4, budget)
    extents = plan.block_shape(made, room)
    assert len(extents) == len(made.shape)
    assert all(1 <= extent <= size for extent, size in zip(extents, made.shape))
    count = int(np.prod(extents))
    assert count <= room <= runs
    assert room * bytes_per_run <= budget
    assert all(extent == 1 for extent, axis in zip(extents, made.grid_axes) if axis.static)
    assert extents[-2] == 1  # a block never mixes programs, and another optimizer may join

    layout = Layout(tuple(tuple(range(size)) for size in made.shape), extents, records, room)
    times, owner = np.zeros(made.shape, int), np.full(made.shape, -1)
    for box, number in zip(layout.blocks(), owners(made, groups, layout), strict=True):
        times[box] += 1
        owner[box] = number
        # exactly one chunk of the store: it starts on the lattice of chunks and is cut only at the end
        assert all(s.start % extent == 0 for s, extent in zip(box, extents))
        assert [s.stop for s in box] == [min(s.start + e, size) for s, e, size in zip(box, extents, made.shape)]
        cells = np.zeros(made.shape, bool)
        cells[box] = True
        everything = np.ones([s.stop - s.start for s in box], bool)
        assert [tuple(cell) for cell in np.argwhere(cells)] == layout.members(box, everything)  # C order
    assert (times == 1).all()
    for cell in itertools.product(*map(range, made.shape)):
        group = groups[owner[cell]]
        assert group.family == made.optimizer_points[cell[-2]][1]
        assert cell[-2] in group.optimizers
        assert group.task is made.task(cell[:-2])


def test_blocks_fill_seeds_first_then_the_inner_axes_and_keep_optimizers_apart():
    axes = {"goal": [0.0, 1.0, 2.0], "n": [2, 3], "tilt": [0.0, 1.0], "seed": 6}
    made = sweep(axes=axes, optimizers={"gd": family(2)})
    assert plan.block_shape(made, 24) == (2, 1, 2, 1, 6)
    assert plan.block_shape(made, 12) == (1, 1, 2, 1, 6)
    assert plan.block_shape(made, 4) == (1, 1, 1, 1, 3)
    assert plan.block_shape(made, 1) == (1, 1, 1, 1, 1)
    assert plan.block_shape(made, 10**6) == (3, 1, 2, 1, 6)


def test_a_call_holds_as_many_runs_and_records_as_fit_the_memory(monkeypatch):
    made = sweep()  # 5 recorded steps
    monkeypatch.setattr(plan, "BLOCK_RUNS", 100)
    cost = plan.Cost(row=10, state=50)
    assert plan.room([cost], made, 4, 1000) == (10, 5)  # a run takes 5 * 10 + 50
    assert plan.room([cost], made, 4, 10**9) == (100, 5)
    assert plan.room([cost], made, 10, 1000) == (10, 5)
    # ten runs fill the lanes: with fewer records more of them fit
    assert plan.room([cost], made, 10, 999) == (11, 4)
    assert plan.room([cost], made, 10, 700) == (10, 2)
    assert plan.room([cost], made, 10, 70) == (1, 2)  # never fewer than two records
    with pytest.raises(ValueError, match="memory must be at least 70 bytes, which one run needs, got memory=69"):
        plan.room([cost], made, 10, 69)
    # the largest row and the largest state with its tape count, also of different groups
    assert plan.room([plan.Cost(10, 20), plan.Cost(2, 20, 30), plan.Cost(1, 50)], made, 4, 1000) == (10, 5)
    # a summary reads all records
    last = dataclasses.replace(made, summary=lambda trace: {"last": trace["train_loss"][-1]})
    assert plan.room([cost], last, 10, 999) == (9, 5)
    with pytest.raises(ValueError, match="memory must be at least 100 bytes"):
        plan.room([cost], last, 10, 99)


def test_bytes_of_a_run_are_counted_by_hand():
    made, item = sweep(), jnp.zeros(()).dtype.itemsize
    (group,), hyper = plan.groups(made), made.hyper_at(())
    # a sweep records scalars by default; the state is data (5,) and parameters (3,)
    assert plan.run_cost(group, hyper, made) == (item, (5 + 3) * item, 0, 0)
    both = dataclasses.replace(made, observables=["train_loss", "w"])
    assert plan.run_cost(group, hyper, both) == ((1 + 3) * item, (5 + 3) * item, 0, 0)
    # rows are kept for a summary too, though they are not stored
    # levels keep the parameters of one step earlier, and two rows each
    levels = dataclasses.replace(both, levels=(0.5, 0.1, 0.01))
    assert plan.run_cost(group, hyper, levels) == ((1 + 3) * item, (5 + 3) * item, 0, (3 + 2 * 3 * 4) * item)
    assert plan.run_cost(group, hyper, levels).call == (5 + 3 + 3 + 24) * item
    kept = dataclasses.replace(both, summary=lambda trace: {"last": trace["train_loss"][-1]}, keep_trace=False)
    assert plan.run_cost(group, hyper, kept) == ((1 + 3) * item, (5 + 3) * item, 0, 0)


@pytest.mark.parametrize("state", [1, 1000, 30_000, 600_000, 10**6, plan.LANE_BYTES, 10**7, 10**9])
def test_a_lane_is_the_largest_power_of_two_that_stays_in_cache(state):
    width = plan.lane_width(state, "cpu")
    assert width in (1, 2, 4, 8, 16, 32, 64)
    assert width == 1 or width * state <= plan.LANE_BYTES
    assert width == 64 or 2 * width * state > plan.LANE_BYTES
    assert plan.lane_width(state, "gpu") == plan.lane_width(state, "tpu") == 64

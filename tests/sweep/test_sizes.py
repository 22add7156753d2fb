"""Sizes of a sweep: blocks tile the grid within limits on runs and bytes, lanes stay in the cache."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import test_groups as tp

from jaxsign.sweep import sizes
from jaxsign.sweep.groups import make_groups
from jaxsign.sweep.layout import Layout, owners


@pytest.mark.parametrize("trial", range(40))
def test_blocks_tile_the_grid_once_within_the_limits(trial, monkeypatch):
    rng = np.random.default_rng(trial)
    made, runs, budget = tp.random_sweep(rng), int(rng.integers(1, 40)), int(rng.integers(1, 5000))
    monkeypatch.setattr(sizes, "BLOCK_RUNS", runs)
    groups, bytes_per_run = make_groups(made), int(rng.integers(1, 300))
    cost = sizes.Cost(0, bytes_per_run)
    if bytes_per_run > budget:
        with pytest.raises(ValueError, match=f"memory must be at least {bytes_per_run} bytes.*got memory={budget}"):
            sizes.call_size([cost] * len(groups), made, 4, budget)
        budget = bytes_per_run
    runs_per_call, records = sizes.call_size([cost] * len(groups), made, 4, budget)
    extents = sizes.block_shape(made, runs_per_call)
    assert len(extents) == len(made.shape)
    assert all(1 <= extent <= size for extent, size in zip(extents, made.shape))
    count = int(np.prod(extents))
    assert count <= runs_per_call <= runs
    assert runs_per_call * bytes_per_run <= budget
    assert all(extent == 1 for extent, axis in zip(extents, made.grid_axes) if axis.static)
    assert extents[-2] == 1  # a block never mixes programs, and another optimizer may join

    layout = Layout(tuple(tuple(range(size)) for size in made.shape), extents, records, runs_per_call)
    times, owner = np.zeros(made.shape, int), np.full(made.shape, -1)
    for box, number in zip(layout.blocks(), owners(groups, layout), strict=True):
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
    made = tp.sweep(axes=axes, optimizers={"gd": tp.family(2)})
    assert sizes.block_shape(made, 24) == (2, 1, 2, 1, 6)
    assert sizes.block_shape(made, 12) == (1, 1, 2, 1, 6)
    assert sizes.block_shape(made, 4) == (1, 1, 1, 1, 3)
    assert sizes.block_shape(made, 1) == (1, 1, 1, 1, 1)
    assert sizes.block_shape(made, 10**6) == (3, 1, 2, 1, 6)


def test_a_call_holds_as_many_runs_and_records_as_fit_the_memory(monkeypatch):
    made = tp.sweep()  # 5 recorded steps
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 100)
    cost = sizes.Cost(row=10, state=50)
    assert sizes.call_size([cost], made, 4, 1000) == (10, 5)  # a run takes 5 * 10 + 50
    assert sizes.call_size([cost], made, 4, 10**9) == (100, 5)
    assert sizes.call_size([cost], made, 10, 1000) == (10, 5)
    # ten runs fill the lanes: with fewer records more of them fit
    assert sizes.call_size([cost], made, 10, 999) == (11, 4)
    assert sizes.call_size([cost], made, 10, 700) == (10, 2)
    assert sizes.call_size([cost], made, 10, 70) == (1, 2)  # never fewer than two records
    with pytest.raises(ValueError, match="memory must be at least 70 bytes, which one run needs, got memory=69"):
        sizes.call_size([cost], made, 10, 69)
    # the largest row and the largest state with its tape count, also of different groups
    assert sizes.call_size([sizes.Cost(10, 20), sizes.Cost(2, 20, 30), sizes.Cost(1, 50)], made, 4, 1000) == (10, 5)
    # a summary reads all records
    last = dataclasses.replace(made, summary=lambda trace: {"last": trace["train_loss"][-1]})
    assert sizes.call_size([cost], last, 10, 999) == (9, 5)
    with pytest.raises(ValueError, match="memory must be at least 100 bytes"):
        sizes.call_size([cost], last, 10, 99)


def test_bytes_of_a_run_are_counted_by_hand():
    made, item = tp.sweep(), jnp.zeros(()).dtype.itemsize

    def cost(sweep):
        (group,) = make_groups(sweep)
        return sizes.run_cost(group)

    # a sweep records scalars by default; the state is data (5,) and parameters (3,)
    assert cost(made) == (item, (5 + 3) * item, 0, 0)
    both = dataclasses.replace(made, observables=["train_loss", "w"])
    assert cost(both) == ((1 + 3) * item, (5 + 3) * item, 0, 0)
    # rows are kept for a summary too, though they are not stored
    # levels keep the parameters of one step earlier, and each level both sides of its crossing with their rows
    levels = dataclasses.replace(both, levels=(0.5, 0.1, 0.01))
    assert cost(levels) == ((1 + 3) * item, (5 + 3) * item, 0, (3 + 2 * 3 * (3 + 4)) * item)
    assert cost(levels).call == (5 + 3 + 3 + 42) * item
    kept = dataclasses.replace(both, summary=lambda trace: {"last": trace["train_loss"][-1]}, keep_trace=False)
    assert cost(kept) == ((1 + 3) * item, (5 + 3) * item, 0, 0)


@pytest.mark.parametrize("state", [1, 1000, 30_000, 600_000, 10**6, sizes.LANE_BYTES, 10**7, 10**9])
@pytest.mark.parametrize("runs", [1, 2, 3, 5, 12, 24, 72, 100, 1024])
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_a_lane_is_the_widest_that_stays_in_cache_and_leaves_little_empty(state, runs, backend):
    def good(width):
        in_cache = backend != "cpu" or width * state <= sizes.LANE_BYTES
        lanes = -(-runs // width)
        return in_cache and lanes >= 2 and 3 * (lanes * width - runs) <= lanes * width

    widths = [width for width in (1, 2, 4, 8, 64) if good(width)]
    assert sizes.lane_width(state, runs, backend) == max(widths, default=1)

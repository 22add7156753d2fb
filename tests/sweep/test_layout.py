"""Where runs go: units take every missing run once, in order and to its group; new points lie after the stored ones."""

import itertools

import jax
import numpy as np
import pytest
import test_groups as tp

from jaxsign.store.results import Memory, Variable, places
from jaxsign.sweep.groups import make_groups
from jaxsign.sweep.identity.definition import definition
from jaxsign.sweep.identity.match import extension
from jaxsign.sweep.layout import Layout, owners, result_variables, stored_coordinates, work_units


def random_layout(rng, made):
    """Any order of the points, any extents that keep programs and optimizers apart."""
    kept = [axis.static for axis in made.grid_axes] + [True, False]
    extents = tuple(1 if apart else int(rng.integers(1, size + 1)) for apart, size in zip(kept, made.shape))
    order = tuple(tuple(map(int, rng.permutation(size))) for size in made.shape)
    return Layout(order, extents, records=3, runs=int(rng.integers(1, 40)))


def random_missing(rng, layout):
    """{number: mask} of some blocks: nothing, everything or a part of them."""
    out = {}
    for number, box in enumerate(layout.blocks()):
        shape = [s.stop - s.start for s in box]
        if rng.random() < 0.8:
            out[number] = rng.random(shape) < rng.choice([0.0, 0.3, 0.9, 1.0])
    return out


@pytest.mark.parametrize("trial", range(60))
def test_units_take_every_missing_run_once_and_to_its_group(trial):
    rng = np.random.default_rng(trial)
    made = tp.random_sweep(rng)
    groups, layout = make_groups(made), random_layout(rng, made)
    boxes, missing = layout.blocks(), random_missing(rng, layout)
    expected = np.zeros(layout.shape, bool)
    for number, mask in missing.items():
        expected[boxes[number]] = mask

    times, taken = np.zeros(layout.shape, int), []
    owner = owners(groups, layout)
    for unit in work_units(groups, layout, missing):
        assert unit.boxes[0] == boxes[unit.number]
        assert {owner[boxes.index(box)] for box in unit.boxes} == {unit.group}
        numbers = [boxes.index(box) for box in unit.boxes]
        assert numbers == sorted(set(numbers))  # blocks in order, none twice
        members = []
        for box, mine in zip(unit.boxes, unit.mine, strict=True):
            assert mine.any()
            times[box] += mine
            members += [
                tuple(own[s.start + i] for own, s, i in zip(layout.order, box, place)) for place in np.argwhere(mine)
            ]  # C order of the stored places
        assert list(unit.members) == members
        assert 1 <= len(members) <= layout.runs
        for member in members:
            group = groups[unit.group]
            assert member[-2] in group.optimizers
            assert group.family == made.optimizer_points[member[-2]][1]
            assert group.task is made.task(member[:-2])
        taken.append(unit.group)
    assert (times == expected).all()
    assert taken == sorted(taken)  # group by group


def test_units_hold_as_many_blocks_as_fit_a_call():
    made = tp.sweep(axes={"goal": [0.0, 1.0, 2.0, 3.0], "seed": 5}, optimizers={"gd": tp.family(2)})
    groups, order = make_groups(made), tuple(tuple(range(size)) for size in made.shape)
    layout = Layout(order, (1, 1, 5), records=9, runs=12)
    everything = {number: np.ones((1, 1, 5), bool) for number in range(8)}
    found = work_units(groups, layout, everything)
    assert [unit.number for unit in found] == [0, 2, 4, 6]
    assert [len(unit.members) for unit in found] == [10] * 4
    # what is missing counts, not what a block holds
    few = {number: np.arange(5).reshape(1, 1, 5) < 3 for number in range(8)}
    assert [len(unit.members) for unit in work_units(groups, layout, few)] == [12, 12]
    # a call that holds less than a block takes it in pieces
    pieces = work_units(groups, Layout(order, (1, 1, 5), records=9, runs=2), {3: everything[3]})
    assert [[member[-1] for member in unit.members] for unit in pieces] == [[0, 1], [2, 3], [4]]
    assert work_units(groups, layout, {}) == work_units(groups, layout, {0: ~everything[0]}) == []


@pytest.mark.parametrize("trial", range(20))
def test_numbers_of_units_end_up_at_their_own_runs(trial):
    rng = np.random.default_rng(100 + trial)
    made = tp.random_sweep(rng)
    groups, layout = make_groups(made), random_layout(rng, made)
    shape = layout.shape
    sink = Memory({"x": Variable(made.dims, shape, np.dtype("int64"), -1, layout.extents, {})})
    everything = layout.all_runs()
    missing = {number: mask & (rng.random(mask.shape) < 0.5) for number, mask in everything.items()}
    rest = {number: everything[number] & ~mask for number, mask in missing.items()}
    for todo in (missing, rest):  # a second session fills what the first one left
        for unit in work_units(groups, layout, todo):
            values, done = np.array([np.ravel_multi_index(m, shape) for m in unit.members]), 0
            for box, mine in zip(unit.boxes, unit.mine):
                sink.write("x", box, values[done : done + mine.sum()], mine)
                done += mine.sum()
    found = sink.dataset({})["x"].isel(places(made.dims, layout.order))
    np.testing.assert_array_equal(found, np.arange(made.size).reshape(shape))


def test_an_extended_sweep_keeps_its_places_and_adds_new_points_after_them():
    small = tp.sweep(axes={"goal": [0.0, 2.0], "n": [3, 5], "seed": [7, 1]}, optimizers={"b": tp.family(2)})
    large = tp.sweep(
        axes={"goal": [1.0, 0.0, 2.0, 3.0], "n": [5, 4, 3], "seed": [1, 2, 7]},
        optimizers={"a": tp.family(1), "b": tp.family(3)},
    )
    first = [list(range(size)) for size in small.shape]
    order = extension("there", {"definition": definition(small), "order": first}, definition(large))
    assert order == [[1, 2, 0, 3], [2, 0, 1], [1, 2, 0, 3], [2, 0, 1]]
    # once more, from a store that is out of order already
    larger = tp.sweep(
        axes={"goal": [3.0, 2.5, 2.0, 1.0, 0.0], "n": [5, 4, 3], "seed": [2, 1, 0, 7]},
        optimizers={"b": tp.family(3), "a": tp.family(1)},
    )
    again = extension("there", {"definition": definition(large), "order": order}, definition(larger))
    assert again == [[4, 2, 3, 0, 1], [2, 0, 1], [0, 1, 3, 2], [3, 1, 0, 2]]

    layout = Layout(tuple(map(tuple, again)), (2, 1, 1, 2), records=9, runs=8)
    coords = stored_coordinates(larger, layout, {})
    assert coords["goal"][1].tolist() == [0.0, 2.0, 1.0, 3.0, 2.5]
    assert coords["n"][1].tolist() == [3, 5, 4]
    assert coords["seed"][1].tolist() == [7, 1, 2, 0]
    assert coords["family"][1].tolist() == ["b", "b", "a", "b"]
    np.testing.assert_allclose(coords["learning_rate"][1], [0.1, 0.05, 0.1, 0.1 / 3])
    # what was stored keeps its stored place
    for dim, (was, now) in zip(small.dims, zip(small.shape, layout.order)):
        old, new = (stored_coordinates(*pair, {})[dim][1] for pair in (
            (small, Layout(tuple(tuple(range(n)) for n in small.shape), (2, 1, 1, 2), 9, 8)), (larger, layout),
        ))  # fmt: skip
        assert new[:was].tolist() == old.tolist()
        assert sorted(now) == list(range(len(now)))
    # every run has one owner, which runs its optimizer and its shapes
    groups, seen = make_groups(larger), np.zeros(layout.shape, int)
    for box, number in zip(layout.blocks(), owners(groups, layout), strict=True):
        seen[box] += 1
        for index in layout.members(box, np.ones([s.stop - s.start for s in box], bool)):
            assert index[-2] in groups[number].optimizers
            assert groups[number].task is larger.task(index[:-2])
    assert (seen == 1).all()


def found(made, layout, **shapes):
    """Variables of results with these shapes in every group; a list gives one for each group."""
    groups = make_groups(made)
    each = [
        {
            name: jax.ShapeDtypeStruct(*(shape[i] if isinstance(shape, list) else shape))
            for name, shape in shapes.items()
        }
        for i in range(len(groups))
    ]
    return result_variables(groups, each, layout)


def test_variables_have_a_chunk_a_block_and_range_of_records():
    made = tp.sweep(axes={"goal": [0.0, 1.0, 2.0], "seed": 4}, observables=["train_loss", "w"])  # 5 recorded steps
    layout = Layout(((2, 0, 1), (0,), (0, 1, 2, 3)), (2, 1, 3), records=2, runs=6)
    out, notes = found(
        made, layout, train_loss=((5,), "float32"), w=((5, 3), "float32"), rang=((), "int32"), status=((), "int8")
    )
    assert notes == {}
    assert out["train_loss"][:2] == (("goal", "optimizer", "seed", "step"), (3, 1, 4, 5))
    assert out["w"][:2] == (("goal", "optimizer", "seed", "step", "w_dim0"), (3, 1, 4, 5, 3))
    assert out["rang"][:2] == (("goal", "optimizer", "seed"), (3, 1, 4))
    assert {name: v.chunks for name, v in out.items()} == {
        "train_loss": (2, 1, 3, 2), "w": (2, 1, 3, 2, 3), "rang": (2, 1, 3), "status": (2, 1, 3),
    }  # fmt: skip
    # what has not run reads as such
    assert np.isnan([out["train_loss"].fill, out["w"].fill]).all()
    assert (out["rang"].fill, out["status"].fill) == (-1, -1)
    assert (out["status"].dtype, out["rang"].dtype, out["w"].dtype) == (np.int8, np.int32, np.float32)


def test_a_static_axis_pads_to_the_longest():
    made = tp.sweep(axes={"width": [2, 4, 3], "seed": 2}, observables=["w"])
    layout = Layout(((0, 1, 2), (0,), (0, 1)), (1, 1, 2), records=9, runs=2)
    out, notes = found(made, layout, w=[((5, n), "float32") for n in (2, 4, 3)])
    assert out["w"].shape == (3, 1, 2, 5, 4)
    assert notes["w"] == out["w"].attrs["padded"] == "padded with NaN to the longest value of a static axis"
    with pytest.raises(ValueError, match="observable 'w' changes its rank along a static axis"):
        found(made, layout, w=[((5, 2), "float32"), ((5,), "float32"), ((5, 3), "float32")])


def test_blocks_are_numbered_in_c_order():
    layout = Layout(((0, 1, 2), (0, 1), (0, 1, 2, 3, 4)), (2, 1, 3), records=9, runs=6)
    starts = [tuple(s.start for s in box) for box in layout.blocks()]
    assert starts == list(itertools.product((0, 2), (0, 1), (0, 3)))
    assert layout.shape == (3, 2, 5)

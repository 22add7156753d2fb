"""Plans: a stored one keeps its lanes and blocks, a smaller call keeps all else, programs may be traced only."""

import json

import pytest
import test_groups as tp

from jaxsign.sweep.plan import Limits, Plan
from jaxsign.sweep.programs import Compiler


def recorded(plan):
    """The part of a manifest that a stored plan is read from."""
    return json.loads(json.dumps({"plan": plan.record()}))


def test_a_stored_plan_has_the_layout_and_lanes_of_the_new_one(capsys):
    made = tp.sweep(axes={"goal": [0.0, 1.0, 2.0], "n": [2, 3], "seed": 4})
    plan = Plan.new(made, Limits(lane_width=3))
    assert plan.widths == (3, 3)
    stored = Plan.stored(made, recorded(plan), plan.layout.order, Limits())
    assert (stored.layout, stored.widths) == (plan.layout, plan.widths)
    assert capsys.readouterr().err == ""
    Plan.stored(made, recorded(plan), plan.layout.order, Limits(lane_width=5))
    assert "lane_width=5 is for new groups only: this sweep was begun with lanes of [3]" in capsys.readouterr().err


def test_only_a_new_group_gets_a_lane_width_of_the_limits():
    small = Plan.new(tp.sweep(axes={"n": [2], "seed": 8}), Limits(lane_width=3))
    large = tp.sweep(axes={"n": [2, 4], "seed": 8})
    order = Plan.new(large, Limits()).layout.order
    assert Plan.stored(large, recorded(small), order, Limits(lane_width=2)).widths == (3, 2)


def test_fewer_runs_a_call_change_the_units_alone():
    plan = Plan.new(tp.sweep(axes={"seed": 8}), Limits(lane_width=2))
    smaller = plan.with_call_size(3)
    assert [len(unit.members) for unit in smaller.units(smaller.layout.all_runs())] == [3, 3, 2]
    assert smaller.layout.extents == plan.layout.extents
    assert (smaller.groups, smaller.widths, smaller.limits) == (plan.groups, plan.widths, plan.limits)


@pytest.mark.parametrize("compile", [False, True])
def test_traced_programs_give_the_variables_also_where_nothing_is_compiled(compile):
    plan = Plan.new(tp.sweep(axes={"seed": 4}, observables=["train_loss", "w"]), Limits(lane_width=2))
    with Compiler(compile=compile) as compiler:
        compiled = plan.compiled(plan.units(plan.layout.all_runs()), compiler)
        compiler.wait()
        assert (compiled[0].advance is not None) == compile
    variables, notes = plan.variables(compiled)
    assert {"train_loss", "w", "status", "first_bad_step"} <= set(variables)
    assert variables["w"].shape == (1, 4, 5, 3)
    assert notes == {}

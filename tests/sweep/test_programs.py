"""Programs: none is traced or compiled twice in a process, and starts are drawn once for all optimizers."""

import jax
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.sweep import programs, timing
from jaxsign.sweep.plan import Limits, Plan
from jaxsign.sweep.programs import Compiler, joined
from jaxsign.sweep.starts import Starts

EVENTS = []
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: EVENTS.append(event))
COMPILED, TRACED = "/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_trace_duration"


def sweep(problem, optimizers=None, **changes):
    given = {
        "system": js.two_layer, "problem": problem, "hyper": js.Hyper(sigma_p=2.0), "steps": 20, "levels": [0.5],
        "optimizers": optimizers or {
            "sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3, 1e-2]),
            "mine": optax.chain(optax.trace(decay=0.9), optax.scale(-0.03)),
        },
        "axes": {"snr": [0.1, 0.3, 1.0], "seed": 4},
    }  # fmt: skip
    return js.Sweep(**given | changes)


def compiles(run):
    """How many programs JAX compiles meanwhile, and how many functions it traces."""
    EVENTS.clear()
    run()
    return EVENTS.count(COMPILED), EVENTS.count(TRACED)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"axes": {"snr": [0.1, 0.3, 1.0], "seed": [7, 9, 11, 12]}},
        {"axes": {"snr": [0.2, 0.4, 0.8], "seed": 4}},
        {"axes": {"snr": [0.1, 0.3, 1.0], "seed": 12}},
        {"axes": {"seed": 12, "sigma_p": [1.0, 2.0]}},
        {"steps": 50, "record": 5},
        {"hyper": js.Hyper(sigma_p=1.0, sigma_0=1e-2)},
        {
            "optimizers": {
                "sign_gd": js.grid(js.sign_gd, learning_rate=[3e-3, 1e-2, 3e-2]),
                "mine": optax.chain(optax.trace(decay=0.9), optax.scale(-0.03)),
            }
        },
    ],
    ids=["same", "other seeds", "other snr", "more seeds", "other axes", "more steps", "other numbers", "more rates"],
)
def test_a_second_sweep_compiles_nothing(problem, changes):
    js.run_sweep(sweep(problem))
    assert compiles(lambda: js.run_sweep(sweep(problem, **changes)))[0] == 0


def test_an_extension_compiles_nothing(problem, tmp_path):
    js.run_sweep(sweep(problem), tmp_path / "out")
    more = {"axes": {"snr": [0.1, 0.3, 1.0], "seed": 12}}
    assert compiles(lambda: js.run_sweep(sweep(problem, **more), tmp_path / "out"))[0] == 0


def test_another_number_inside_a_transform_is_another_program(problem):
    first = {"mine": optax.chain(optax.trace(decay=0.9), optax.scale(-0.03))}
    other = {"mine": optax.chain(optax.trace(decay=0.9), optax.scale(-0.06))}
    a, b = (js.run_sweep(sweep(problem, optimizers=o)) for o in (first, other))
    assert not a["train_loss"].isel(step=-1).equals(b["train_loss"].isel(step=-1))


RATE = 0.03


def mine():
    return optax.scale(-RATE)


def test_a_users_function_is_traced_anew(problem, monkeypatch):
    """A global that it reads may have changed: the numbers follow it."""
    made = {"optimizers": {"mine": js.grid(mine)}, "axes": {"seed": 2}}
    first = js.run_sweep(sweep(problem, **made))
    monkeypatch.setitem(globals(), "RATE", 0.06)
    second = js.run_sweep(sweep(problem, **made))
    expected = js.run_sweep(sweep(problem, **made | {"optimizers": {"mine": js.grid(optax.sgd, learning_rate=0.06)}}))
    assert not second["train_loss"].equals(first["train_loss"])
    np.testing.assert_allclose(second["train_loss"], expected["train_loss"], rtol=1e-5)


def test_a_users_observable_is_traced_anew(problem, monkeypatch):
    def observed(params, data, test, hyper):
        return RATE * hyper.sigma_p

    made = {"observables": ["train_loss", observed], "axes": {"seed": 2}}
    assert (js.run_sweep(sweep(problem, **made))["observed"] == np.float32(0.06)).all()
    monkeypatch.setitem(globals(), "RATE", 0.06)
    assert (js.run_sweep(sweep(problem, **made))["observed"] == np.float32(0.12)).all()


def test_a_long_sweep_is_timed_with_the_programs_that_train_it(problem, monkeypatch):
    traced, timed = [], []

    def observed(params, data, test, hyper):
        traced.append(True)
        return hyper.sigma_p

    def traces():
        traced.clear()
        js.run_sweep(sweep(problem, observables=["train_loss", observed], axes={"seed": 2}))
        return len(traced)

    plain = traces()
    monkeypatch.setattr(timing, "FEW_SEED_STEPS", 0)
    monkeypatch.setattr(timing, "measure", lambda compiled: timed.append(compiled) or timing.Speed(0.0, 0.0, 0.0, 0.0))
    assert traces() == plain
    assert len(timed) == 2  # families


def test_a_measured_width_stores_the_same_trajectory(problem, monkeypatch, tmp_path):
    made = sweep(problem, optimizers={"sign_gd": js.sign_gd(1e-2)}, axes={"seed": 12}, trajectory="signs")
    js.run_sweep(made, tmp_path / "cache", lane_width=4)
    for name in ("FEW_SEED_STEPS", "LONG_SECONDS"):
        monkeypatch.setattr(timing, name, 0)
    widths = []

    def measure(compiled):
        widths.append(compiled.program.width)
        return timing.Speed(0.0, 1.0 / len(widths), 0.0, 0.0)  # whatever is measured later is faster

    monkeypatch.setattr(timing, "measure", measure)
    js.run_sweep(made, tmp_path / "measured")
    stored, measured = (js.open_trajectory(tmp_path / name) for name in ("cache", "measured"))
    assert len(widths) > 1
    for a, b in zip(*(jax.tree.leaves(opened.sel(seed=11).params(20)) for opened in (stored, measured))):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_kept_programs_are_bounded(problem, monkeypatch):
    monkeypatch.setattr(programs, "KEPT", 2)
    for rate in (0.01, 0.02, 0.03):
        Plan.new(sweep(problem, optimizers={"mine": optax.sgd(rate)}), Limits()).programs  # noqa: B018
    assert len(programs._KNOWN) == 2


class Counted(Starts):
    """Counts the runs that are drawn."""

    drawn = 0

    def _draw(self, compiled, missing):
        self.drawn += len(missing)
        return super()._draw(compiled, missing)


def test_starts_are_drawn_once_for_all_optimizers(problem):
    plan = Plan.new(sweep(problem), Limits(lane_width=2))
    starts = Counted()
    with Compiler() as compiler:
        units = plan.units(plan.layout.all_runs())
        compiled = plan.compiled(units, compiler)
        of_runs = {}
        for unit in units:
            parts = starts.parts(compiled[unit.group], unit.members)
            assert all(jax.tree.leaves(part)[0].shape[0] == compiled[unit.group].program.part for part in parts)
            whole = jax.tree.leaves(joined(parts, len(unit.members)))
            for i, member in enumerate(unit.members):
                run = [leaf[i].tobytes() for leaf in whole]
                assert of_runs.setdefault((member[:-2], member[-1]), run) == run
    assert starts.drawn == 3 * 4  # of 3 * 3 * 4 runs
    assert len(of_runs) == 12
    assert len({str(run) for run in of_runs.values()}) == 12


def test_starts_beyond_the_limit_are_drawn_again_and_equal(problem):
    plan = Plan.new(sweep(problem), Limits(lane_width=2))
    with Compiler() as compiler:
        units = plan.units(plan.layout.all_runs())
        compiled = plan.compiled(units, compiler)
        small, large = Counted(limit=1), Starts()
        for unit in units:
            one, other = (s.parts(compiled[unit.group], unit.members) for s in (small, large))
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
                np.testing.assert_array_equal(a, b)
    assert len(small.kept) == 1
    assert small.drawn > 12

"""The ends of a run's stages as a summary, against `js.find_stages` and traces made by hand."""

import dataclasses

import numpy as np
import pytest

import jaxsign as js
from jaxsign.analysis.stage_ends import ENDS, NEEDS, stage_ends

STEPS = np.array([0, 1, 2, 5, 10, 20, 50, 70, 90, 100, 150, 300, 500, 800])


def trace(**changes):
    """Stages end at t = 2, 20, 70, 90 by construction; opposed key noise has turned at 300, query noise at 500."""
    t = STEPS[:, None]
    opposed = np.arange(4) == 0
    log_s21 = -np.log(2) * np.maximum(t / 10, 1) ** 1.5
    run = {
        "value_noise": np.where(t >= 2, 0.2 * t, -0.1) * np.ones(4),
        "query_noise": np.ones((14, 3, 4)) * np.where(opposed & (t < 500), -1.0, 1.0)[:, None],
        "key_noise": np.linspace(1, 2, 12).reshape(3, 4) * np.where(opposed & (t < 300), -1.0, 1.0)[:, None],
        "query_signal": np.where(t >= 70, 1.0, -1.0) * np.ones(3),
        "key_signal": np.where(t >= 150, -1.0, 1.0) * np.ones(3),
        "sign_agreement": np.where(STEPS >= 20, 0.99, 0.98),
        "s11": 0.5 * np.ones((14, 1, 4)),
        "s21": np.where(t >= 90, 0.009, 0.011)[..., None] * np.ones((1, 4)),
        "log_s21": log_s21[..., None] * np.ones((1, 4)),
        "noise_l1": 2 * np.ones(4),
        "step": STEPS,
    }
    return run | changes


def test_ends_are_where_the_trace_says():
    ends = {name: float(value) for name, value in stage_ends(trace()).items()}
    assert tuple(ends) == ENDS
    assert [ends[name] for name in ("t_I", "t_II", "t_III", "t_IV", "t_key", "t_V")] == [2, 20, 70, 90, 300, 500]
    assert ends["value_growth"] == pytest.approx((0.2 * 20 + 0.1) / (2 * 2 * 20))
    assert ends["key_memory"] == pytest.approx(1)
    assert (ends["votes_followed"], ends["signals_opposite"], ends["agreement_start"]) == (1, 1, 0.98)
    assert (ends["s11_at_IV"], ends["s21_exponent"]) == (0.5, pytest.approx(1.5))


@pytest.mark.parametrize(
    ("name", "value", "end", "expected"),
    [
        ("value_noise", np.zeros((14, 4)), "t_I", np.nan),
        ("sign_agreement", np.full(14, 0.9899), "t_II", np.nan),
        ("query_signal", np.ones((14, 3)), "t_III", 0.0),
        ("s21", np.full((14, 1, 4), 0.01), "t_IV", np.nan),
        ("key_noise", np.ones((14, 3, 4)), "t_key", np.nan),  # none is opposed
        ("query_noise", -np.ones((14, 3, 4)), "t_V", np.nan),  # none ever turns
        ("key_signal", np.ones((14, 3)), "signals_opposite", 0.0),
        ("query_signal", -np.ones((14, 3)), "votes_followed", 0.0),
    ],
)
def test_ends_never_reached_are_nan(name, value, end, expected):
    np.testing.assert_equal(float(stage_ends(trace(**{name: value}))[end]), expected)


def test_a_sweep_keeps_the_boundaries_of_find_stages():
    problem, hyper = js.presets.theory()
    sweep = js.Sweep(
        system=js.two_layer, engine="feature_space_law", problem=dataclasses.replace(problem, n_test=1), hyper=hyper,
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=2e-4)}, axes={"seed": 3}, steps=400,
        record=np.unique([*range(100), *range(100, 401, 2)]), test_every=[400], observables=NEEDS, summary=stage_ends,
    )  # fmt: skip
    ds = js.run_sweep(sweep)
    reference = js.find_stages(ds)
    for name in ("t_I", "t_II", "t_III", "t_IV"):
        np.testing.assert_array_equal(ds[name], reference[name])
    assert bool((ds["t_II"] > 1).all())
    # Noise is grouped at t_II in place of step 100, where some pairs still alternate.
    np.testing.assert_allclose(ds["t_V"], reference["t_V"], rtol=0.1)
    assert bool((ds["t_key"] < ds["t_V"]).all())

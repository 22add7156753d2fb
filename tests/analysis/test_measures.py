"""The numbers that claims are made of: the same on the device as from the stored traces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.analysis.measures import MEASURES, share, slope
from jaxsign.claims.claim import one_family
from jaxsign.claims.dynamics import _measured

STEPS = np.unique([0, *range(2, 21), 30, 50, *range(75, 1001, 25), *range(1000, 2001, 100)])


@pytest.fixture(scope="module")
def sweep():
    problem = js.Problem(n=4, d=120, s=6, m_k=4, m_v=4, n_test=20, supports="disjoint")
    return js.Sweep(
        system=js.two_layer, engine="feature_space", problem=problem, hyper=js.Hyper(sigma_p=2.0), steps=2000,
        optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=2e-4)}, axes={"seed": 3}, record=STEPS,
        test_every=[50, 100, 500, 1500], summary=js.claim_numbers,
        observables=["train_loss", "test_loss", "test_error", "value_noise", "query_noise", "key_noise", "query_signal",
                     "key_signal", "s11", "s21", "log_s21", "sign_agreement"],
    )  # fmt: skip


def test_numbers_on_the_device_are_those_of_the_traces(sweep):
    ds = js.run_sweep(sweep)
    assert set(MEASURES) <= set(ds.data_vars)
    runs = one_family("sign_gd")(ds)
    for name in MEASURES:
        there = _measured(name)(runs.drop_vars(name)).values
        np.testing.assert_allclose(runs[name].values, there, rtol=1e-4, atol=1e-6, err_msg=name)
    alone = js.run_sweep(dataclasses.replace(sweep, keep_trace=False))
    assert "train_loss" not in alone
    for name in MEASURES:
        np.testing.assert_allclose(alone[name], ds[name], rtol=1e-5, err_msg=name)
    # Other sizes than the preset's: "custom", but decided from numbers alone where the claim needs one optimizer.
    table = js.check(alone, ["S1", "S4", "C1"])
    assert [row.claim.id for row in table.rows] == ["S1", "S4", "C1"]


def test_a_stored_share_of_19_in_20_is_inside_an_interval_from_95(sweep):
    ds = js.run_sweep(dataclasses.replace(sweep, keep_trace=False, steps=2000))
    assert ds["vote_followed"].dtype == np.float32
    edge = ds.assign(vote_followed=ds["vote_followed"] * 0 + np.float32(0.95), opposite_signals=ds["status"] * 0 + 1.0)
    (row,) = js.check(edge, ["S3"]).rows
    assert row.inside == row.seeds
    below = edge.assign(vote_followed=ds["vote_followed"] * 0 + np.float32(0.9499))
    assert js.check(below, ["S3"]).rows[0].inside == 0
    # A diverged seed is outside, stored or computed: its numbers before the end say nothing.
    (whole,), (gone,) = (
        js.check(one, ["S1"]).rows for one in (ds, ds.assign(status=ds["status"] * 0 + (ds.seed == 1)))
    )
    assert (whole.inside, gone.inside) == (3, 2)


def test_optimizers_of_separate_sweeps_are_compared_on_the_same_seeds(sweep):
    other = dataclasses.replace(sweep, optimizers={"adam": js.grid(optax.adam, learning_rate=2e-4, eps=1e-15)})
    parts = [js.run_sweep(dataclasses.replace(s, keep_trace=False)) for s in (sweep, other)]
    (row,) = js.check(parts, ["A2"]).rows
    assert row.seeds == 3
    fewer = parts[1].isel(seed=[0, 1])
    assert js.check([parts[0], fewer], ["A2"]).rows == ()
    assert js.check(parts[0], ["A2"]).rows == ()


def test_shares_and_slopes_by_hand():
    chosen, among = np.array([True, True, False, False]), np.array([True, False, True, True])
    assert share(chosen, among) == pytest.approx(1 / 3)
    assert np.isnan(share(chosen, np.zeros(4, bool)))
    most = np.arange(20) > 0
    assert share(most, most | True) == 0.95
    x = np.array([1.0, 2.0, 4.0])
    assert slope(x, 3 * x - 2) == pytest.approx(3.0)
    assert np.isnan(slope(x, np.array([1.0, np.nan, 2.0])))
    assert jax.jit(lambda y: slope(x, y))(jnp.asarray(2 * x)) == pytest.approx(2.0)

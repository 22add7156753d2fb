"""Claims about ReLU targets, softmax attention and depth on Datasets that satisfy them and that violate each part."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.claims import linear_attention

STEPS = np.arange(0, 501, 100)
SEEDS = 6


def made(points, axis=None, diverged=(), **fields):
    """Runs whose last losses are `points`: {family: {learning rate: a loss, or one for each point of the axis}}."""
    rates = [(family, rate) for family, losses in points.items() for rate in losses]
    last = np.array([np.atleast_1d(points[family][rate]) for family, rate in rates], float)  # (optimizer, point)
    spread = np.exp(0.02 * np.arange(SEEDS))[:, None] * np.ones(STEPS.size)
    loss = last[:, :, None, None] * spread
    status = np.zeros(loss.shape[:3], np.int8)
    for place in diverged:
        status[place], loss[place] = 1, np.nan
    dims = ("optimizer", *(axis or {"point": [0]}), "seed", "step")
    definition = {
        "problem": dataclasses.asdict(js.RegressionProblem(**fields)), "hyper": {},
        "system": {"name": "jaxsign.linear_attention"},
    }  # fmt: skip
    coords = {
        "optimizer": [f"{family} {rate}" for family, rate in rates], "seed": np.arange(SEEDS), "step": STEPS,
        "family": ("optimizer", [family for family, _ in rates]),
        "learning_rate": ("optimizer", [rate for _, rate in rates]), **(axis or {}),
    }  # fmt: skip
    manifest = {"manifest": json.dumps({"definition": definition})}
    ds = xr.Dataset({"train_loss": (dims, loss), "status": (dims[:-1], status)}, coords, manifest)
    return ds if axis else ds.isel(point=0, drop=True)


def rows(ds, claim):
    return js.check(ds, [claim]).rows


def per_seed(ds, name):
    """The numbers of every part of a claim, seed by seed."""
    (claim,) = [claim for claim in linear_attention.CLAIMS if claim.id == name]
    return [part.measure(ds).values for part in claim.parts]


def test_settings_name_the_targets_and_old_manifests_have_linear_ones():
    relu = made({"sgd": {0.05: 1.0}, "adam": {0.01: 0.5}}, targets="relu")
    assert str(linear_attention.setting_of(relu)) == "normal, n=20, relu targets"
    record = json.loads(relu.attrs["manifest"])
    del record["definition"]["problem"]["targets"]
    assert str(linear_attention.setting_of(relu.assign_attrs(manifest=json.dumps(record)))) == "normal, n=20"


@pytest.mark.parametrize(("adam", "verdict"), [(0.5, "HOLDS"), (2.0, "FAILS")])
def test_relu_targets_are_judged_at_the_published_rates_and_at_the_best_ones(adam, verdict):
    one = made({"sgd": {0.05: 1.0}, "adam": {0.01: adam}}, targets="relu")
    assert {row.verdict for row in rows(one, "L8")} == {verdict}
    grid = made({"sgd": {0.01: 3.0, 0.05: 1.0}, "adam": {0.01: adam, 0.1: 9.0}}, targets="relu")
    assert {row.verdict for row in rows(grid, "L9")} == {verdict}
    assert not rows(one, "L9")  # one rate is no tuning
    assert not rows(made({"sgd": {0.05: 1.0}, "adam": {0.01: adam}}), "L8")  # linear targets


def test_depth_counts_the_runs_that_diverged():
    axis = {"depth": [2, 4, 8]}
    points = {"sgd": {0.005: [1.0, 4.0, 16.0], 0.02: [2.0, 5.0, 9.0]}, "adam": {0.005: [1.0] * 3, 0.02: [3.0] * 3}}
    ds = made(points, axis, diverged=[(1, 2, 0), (1, 2, 1), (3, 2, 1)])
    assert rows(ds, "L6")[0].verdict == "HOLDS"
    _, sgd, adam = per_seed(ds, "L6")
    assert sgd.tolist() == [1, 1, 0, 0, 0, 0]
    assert adam.tolist() == [0, 1, 0, 0, 0, 0]
    points["sgd"] = {0.005: [4.0, 2.0, 1.0]}
    assert rows(made(points, axis), "L6")[0].verdict == "FAILS"


def test_softmax_is_compared_at_its_best_rate_which_is_reported():
    axis = {"attention": ["linear", "softmax"]}
    points = {"adam": {0.02: [0.1, 5.0], 0.2: [1.0, 0.9], 2.0: [0.01, 0.8]}}
    ds = made(points, axis, diverged=[(2, 0), (2, 1, 0)])
    assert rows(ds, "L7")[0].verdict == "HOLDS"
    ratio, softmax, linear, lost, lost_linear = per_seed(ds, "L7")
    np.testing.assert_allclose(ratio, [9.0] + [8.0] * 5)
    assert softmax.tolist() == [0.2] + [2.0] * 5
    assert linear.tolist() == [0.02] * 6
    assert (lost.tolist(), lost_linear.tolist()) == ([1, 0, 0, 0, 0, 0], [1] * 6)
    points["adam"][0.2] = [1.0, 0.015]
    assert rows(made(points, axis), "L7")[0].verdict == "FAILS"

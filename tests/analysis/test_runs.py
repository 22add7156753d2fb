"""Selections of a Dataset of runs: one optimizer, a point of the axes, the best learning rate."""

import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.analysis.runs import best_rate, drop_labels, family_runs, optimizers_of, select


@pytest.fixture
def ds():
    """Two Adams, one GD and a schedule over two batch sizes and three seeds; every number is its place."""
    rates = np.array([1e-3, 1e-3, 0.1, "cosine"], object)
    return xr.Dataset(
        {"loss": (("batch_size", "optimizer", "seed"), np.arange(24.0).reshape(2, 4, 3))},
        {
            "batch_size": [2, 20], "seed": range(3), "optimizer": ["a", "b", "c", "d"],
            "family": ("optimizer", ["adam", "adam", "gd", "sign_gd"]),
            "b2": ("optimizer", [0.9, 0.999, np.nan, np.nan]), "learning_rate": ("optimizer", rates),
        },
    )  # fmt: skip


def test_a_family_is_selected_by_its_keywords_and_points_of_axes(ds):
    assert select(ds, "adam", b2=0.999, batch_size=20)["loss"].values.tolist() == [15, 16, 17]
    assert select(ds, "gd")["loss"].dims == ("batch_size", "seed")
    assert family_runs(ds, "adam")["optimizer"].values.tolist() == ["a", "b"]
    assert optimizers_of(ds, "adam", b2=0.9 * (1 + 1e-12)).tolist() == [0]
    assert optimizers_of(ds, "adam", learning_rate=1e-3).tolist() == [0, 1]  # beside a schedule, which is no number
    assert optimizers_of(ds, "adam", eps=1e-8).tolist() == []


def test_two_selections_can_be_subtracted(ds):
    difference = select(ds, "gd", batch_size=2)["loss"] - select(ds, "adam", b2=0.9, batch_size=20)["loss"]
    assert difference.values.tolist() == [-6, -6, -6]
    assert set(difference.coords) == {"seed"}
    assert set(drop_labels(ds).coords) == {"batch_size", "seed", "optimizer"}
    assert set(drop_labels(ds["loss"]).coords) == {"batch_size", "seed", "optimizer"}


def test_a_selection_that_is_none_says_why(ds):
    with pytest.raises(js.CannotDecide, match="exactly one adam optimizer, got 2"):
        select(ds, "adam")
    with pytest.raises(js.CannotDecide, match=r"exactly one adam optimizer with b2=0\.5, got 0"):
        select(ds, "adam", b2=0.5)
    with pytest.raises(js.CannotDecide, match="needs batch_size=3"):
        select(ds, "gd", batch_size=3)
    with pytest.raises(js.CannotDecide, match="needs runs of signum"):
        family_runs(ds, "signum")


def test_the_best_rate_is_every_seeds_own_or_one_for_all(ds):
    score = (
        ds["loss"]
        .isel(batch_size=0, drop=True)
        .copy(data=[[3.0, 1.0, np.nan], [2.0, 2.0, np.nan], [np.nan, 3.0, np.nan], [4.0, 4.0, np.nan]])
    )
    own = best_rate(ds, by=score)
    assert own["optimizer"].values.tolist() == ["b", "a", "a"]
    assert own["loss"].values.tolist() == [[3, 1, 2], [15, 13, 14]]
    assert best_rate(ds, by=score.mean("seed", skipna=False))["optimizer"].item() == "a"  # no score is a number
    assert best_rate(ds, by=score.mean("seed"))["loss"].values.tolist() == [[0, 1, 2], [12, 13, 14]]

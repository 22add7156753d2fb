"""Stage boundaries and equal-loss comparisons on synthetic traces, against loops and interpolation by hand."""

import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.analysis.runs import manifest
from jaxsign.analysis.stages import BOUNDARIES, flipped

STEPS = np.array([0, 1, 2, 5, 10, 20, 50, 70, 90, 100, 150, 300, 500, 800])
RUNS = ("optimizer", "seed")


def traces(seeds=1, rows=3, samples=4, status=0, **changes):
    """Two "optimizers" whose stages end at t = 2, 20, 70, 90 and 500 by construction."""
    t, lead = STEPS, (2, seeds, STEPS.size)
    ones = np.ones((*lead, rows, samples))
    opposed = np.arange(samples) == 0  # the first sample opposes the query signal from t = 70 to t = 300
    query = ones * np.where(opposed & (t[:, None] < 500), -1.0, 1.0)[:, None, :]
    variables = {
        "value_noise": (("sample",), np.ones((*lead, samples)) * np.where(t >= 2, 0.3, -0.1)[:, None]),
        "sign_agreement": ((), np.ones(lead) * np.where(t >= 20, 0.99, 0.98)),
        "query_signal": (("row",), np.ones((*lead, rows)) * np.where(t >= 70, 1.0, -1.0)[:, None]),
        "s21": (("head", "sample"), np.ones((*lead, 1, samples)) * np.where(t >= 90, 0.009, 0.011)[:, None, None]),
        "query_noise": (("row", "sample"), query),
        "key_noise": (("row", "sample"), ones),
    }
    variables = {name: ((*RUNS, "step", *own), values) for name, (own, values) in variables.items()}
    ds = xr.Dataset(
        variables | {"status": (RUNS, np.full((2, seeds), status, np.int8))},
        {"optimizer": ["a", "b"], "seed": np.arange(seeds), "step": t},
    )
    return ds.assign(changes)


def test_boundaries_are_where_the_traces_say():
    stages = js.find_stages(traces())
    assert {name: stages[name].values.tolist() for name in BOUNDARIES} == {
        "t_I": [[2.0], [2.0]], "t_II": [[20.0], [20.0]], "t_III": [[70.0], [70.0]], "t_IV": [[90.0], [90.0]],
        "t_V": [[500.0], [500.0]],
    }  # fmt: skip
    assert stages["in_order"].values.tolist() == [[True], [True]]
    assert stages["t_IV"].dims == RUNS
    assert stages["t_IV"].attrs["units"] == "step"


@pytest.mark.parametrize(
    ("name", "change", "boundary"),
    [
        ("value_noise", lambda v: v.where(v.sample != 2, -1.0), "t_I"),  # one sample never turns positive
        ("value_noise", lambda v: 0 * v, "t_I"),  # 0 is not positive
        ("sign_agreement", lambda v: 0 * v + 0.9899, "t_II"),
        ("s21", lambda v: 0 * v + 0.01, "t_IV"),  # below, not at, .01
        ("query_noise", lambda v: v.where(v.sample > 0, -1.0), "t_V"),  # opposed noise never turns
        ("query_noise", lambda v: abs(v), "t_V"),  # no noise is opposed
    ],
)
def test_a_boundary_never_reached_is_nan_and_not_in_order(name, change, boundary):
    ds = traces()
    both = xr.concat([ds[name].isel(optimizer=[0]), change(ds[name]).isel(optimizer=[1])], "optimizer")
    stages = js.find_stages(ds.assign({name: both.transpose(*ds[name].dims)}))
    assert np.isnan(stages[boundary].sel(optimizer="b")).all()
    assert stages["in_order"].values.tolist() == [[True], [False]]
    for other in BOUNDARIES:
        assert stages[other].notnull().sel(optimizer="a").all()
        assert stages[other].isnull().sel(optimizer="b").all() == (other == boundary)


def test_order_is_part_of_the_definition():
    ds = traces()
    early = ds["s21"].where(ds.step < 5, 0.001)  # t_IV = 5 before t_II = 20
    late = ds["sign_agreement"].where(ds.step >= 150, 0.5)  # t_II = 150 after t_III = 70
    assert not js.find_stages(ds.assign(s21=early))["in_order"].any()
    assert not js.find_stages(ds.assign(sign_agreement=late))["in_order"].any()


def test_the_last_change_of_any_query_signal_ends_stage_three():
    ds = traces()
    flips = ds["query_signal"].copy()
    flips.loc[{"row": 1, "step": [150]}] = -1.0  # back and forth: the last change is at 300
    stages = js.find_stages(ds.assign(query_signal=flips))
    assert (stages["t_III"] == 300).all()
    assert (stages["t_V"] == 500).all()


def test_a_diverged_run_has_no_late_stages():
    ds = traces(seeds=2)
    gone = (ds.seed == 1) & (ds.step >= 50)
    status = ds["status"].where(ds.seed == 0, 1)
    stages = js.find_stages(ds.where(~gone).assign(status=status))
    assert stages["t_I"].values.tolist() == [[2.0, 2.0]] * 2
    for name in ("t_III", "t_IV", "t_V"):
        assert stages[name].isnull().values.tolist() == [[False, True]] * 2
    assert stages["in_order"].values.tolist() == [[True, False]] * 2


def stages_by_loops(ds, i, j):
    """The definitions once more, run by run in plain Python."""
    at = {name: ds[name].values[i, j] for name in ds.data_vars if "step" in ds[name].dims}
    t = ds.step.values.tolist()

    def first(condition):
        return next((float(step) for step, holds in zip(t, condition) if holds), np.nan)

    q_mu = np.sign(at["query_signal"])
    t_3 = float(max([t[k] for k in range(1, len(t)) if (q_mu[k] != q_mu[k - 1]).any()], default=0))
    k = t.index(100)
    pairs = [
        (r, s) for r in range(q_mu.shape[1]) for s in range(4) if np.sign(at["query_noise"][k, r, s]) != q_mu[k, r]
    ]
    share = [
        np.mean([np.sign(at["query_noise"][m, r, s]) == q_mu[m, r] for r, s in pairs]) if pairs else 0
        for m in range(len(t))
    ]
    return [
        first([(v > 0).all() for v in at["value_noise"]]), first(at["sign_agreement"] >= 0.99), t_3,
        first(at["s21"].mean((1, 2)) < 0.01), first([u >= 0.9 and s > t_3 and s >= 100 for u, s in zip(share, t)]),
    ]  # fmt: skip


def test_random_traces_agree_with_loops():
    rng = np.random.default_rng(0)
    ds = traces(seeds=40)
    sizes = {name: variable.shape for name, variable in ds.data_vars.items()}
    late = STEPS[:, None, None] / 800
    ds["value_noise"].values = rng.random(sizes["value_noise"]) + 2 * late[..., 0] - 0.9
    ds["sign_agreement"].values = 0.9 + 0.2 * rng.random(sizes["sign_agreement"]) * late[:, 0, 0]
    ds["query_signal"].values = np.cumsum(rng.standard_normal(sizes["query_signal"]), 2) + 9 * late[..., 0]
    ds["s21"].values = 0.03 * rng.random(sizes["s21"]) * (1 - late)
    noise = rng.standard_normal(sizes["query_noise"]) + 12 * late * np.sign(
        ds["query_signal"].values[:, :, -1:, :, None]
    )
    ds["query_noise"].values = noise
    found = js.find_stages(ds)
    table = np.stack([found[name].values for name in BOUNDARIES], -1)
    wanted = np.array([[stages_by_loops(ds, i, j) for j in range(40)] for i in range(2)])
    np.testing.assert_array_equal(table, wanted)
    assert all(len(np.unique(wanted[..., k])) > 2 for k in range(5))  # the traces exercise every boundary
    order = [a < b < c and b < d < e for a, b, c, d, e in wanted.reshape(-1, 5)]
    assert found["in_order"].values.ravel().tolist() == order


def test_flipped_is_the_share_of_opposed_noise_that_agrees_now():
    ds = traces(rows=2, samples=4)
    noise = ds["key_noise"].copy()
    noise.values[0, 0] = np.where(STEPS < 300, -1.0, 1.0)[:, None, None] * np.array([[1, 1, 1, 1], [-1, -1, -1, 1]])
    share = flipped(ds.assign(key_noise=noise), "key_noise")
    # At t = 100 the signal is +1: row 0 has 4 opposed samples, row 1 has 1 (its last). From 300 on all five agree.
    assert share.dims == (*RUNS, "step")
    assert share.sel(optimizer="a", seed=0, step=[100, 150, 300, 800]).values.tolist() == [0, 0, 1, 1]
    assert share.sel(optimizer="b").isnull().all()  # nothing was opposed
    noise.values[0, 0, -1, 0, 0] = -1.0
    assert flipped(ds.assign(key_noise=noise), "key_noise", 800).sel(optimizer="a").values.tolist() == [0.8]
    status = ds["status"].where(ds.optimizer == "b", 1)
    assert flipped(ds.assign(key_noise=noise, status=status), "key_noise", 800).isnull().all()


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"without \['s21'\]"):
        js.find_stages(traces().drop_vars("s21"))
    with pytest.raises(ValueError, match="step 100 must be recorded"):
        js.find_stages(traces().sel(step=[0, 50, 150]))
    with pytest.raises(ValueError, match=r"without \['train_loss'\]"):
        js.at_train_loss(traces(), 0.1)
    with pytest.raises(ValueError, match="got no manifest"):
        manifest(traces())


def losses(*rows, steps=None, **variables):
    """Runs of one optimizer: each row is the training loss of one seed."""
    loss = np.array(rows, float)
    steps = np.arange(loss.shape[1]) if steps is None else steps
    ds = xr.Dataset({"train_loss": (("seed", "step"), loss)}, {"seed": np.arange(len(loss)), "step": steps})
    return ds.assign(variables)


def test_quantities_are_read_off_at_the_crossing_in_log_loss():
    ds = losses([1.0, 0.1, 0.01, 1e-4], [1.0, 0.5, 0.2, 0.02])
    ds["test_error"] = ("seed", "step"), [[0.5, 0.4, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]]
    ds["features"] = ("seed", "step", "row"), np.arange(16.0).reshape(2, 4, 2)
    ds["size"] = "seed", [7.0, 8.0]
    at = js.at_train_loss(ds, 0.05)
    # ln(.1/.05)/ln(10) = .30103 of the way from step 1 to 2, and ln(.2/.05)/ln(10) = .60206 of the way from 2 to 3
    np.testing.assert_allclose(at["step"], [1.30103, 2.60206], atol=1e-5)
    np.testing.assert_allclose(at["test_error"], [0.4 - 0.2 * 0.30103, 0.3 + 0.1 * 0.60206], atol=1e-6)
    np.testing.assert_allclose(at["features"], [[2.60206, 3.60206], [13.20412, 14.20412]], atol=1e-5)
    assert at["size"].values.tolist() == [7.0, 8.0]
    assert "step" not in at.dims
    assert at.attrs["not_reached"] == 0
    assert at.attrs["train_loss_level"] == 0.05
    assert at["features"].dims == ("seed", "row")


def test_a_run_that_never_gets_there_is_nan_and_counted():
    ds = losses([1.0, 0.1, 0.01], [1.0, 0.9, 0.8], [1.0, np.nan, np.nan])
    ds["test_loss"] = ("seed", "step"), np.ones((3, 3))
    at = js.at_train_loss(ds, 0.05)
    assert at["reading"].values.tolist() == [0, 1, 1]
    assert at.attrs["not_reached"] == 2
    for name in ("step", "test_loss", "train_loss"):
        assert at[name].isnull().values.tolist() == [False, True, True]


def test_a_run_that_is_not_run_yet_is_no_run_that_never_gets_there():
    ds = losses([1.0, 0.1, 0.01], [1.0, 0.9, 0.8], [np.nan] * 3)
    ds["status"] = "seed", [0, 0, -1]
    for level, codes in ((0.05, [0, 1, 5]), ([0.05, 0.5], [[0, 0], [1, 1], [5, 5]])):
        at = js.at_train_loss(ds, level)
        assert at["reading"].values.tolist() == codes
        count = np.size(level)
        assert (at.attrs["not_reached"], at.attrs["not_run"]) == (count, 1)


@pytest.mark.parametrize("read", [lambda ds: js.at_train_loss(ds, 0.5), js.find_stages, js.check])
def test_what_is_no_dataset_is_refused_by_its_kind(read):
    for wrong, kind in ((None, "NoneType"), ("results/mine", "str"), (losses([1.0])["train_loss"], "DataArray")):
        with pytest.raises(ValueError, match=f"ds must be an xarray.Dataset, .* got a {kind}"):
            read(wrong)


def test_averages_are_no_runs():
    ds = losses([1.0, 0.1, 0.01], [1.0, 0.9, 0.8])
    ds["status"] = "seed", np.array([0, 1], np.int8)
    with pytest.raises(ValueError, match=r"ds must hold single runs, got averages: status is 0.5"):
        js.at_train_loss(ds.mean("seed"), 0.5)
    assert js.at_train_loss(ds.where(ds["status"] == 0), 0.5)["reading"].values.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"ds has a variable 'reading', which js.at_train_loss adds"):
        js.at_train_loss(ds.assign(reading=ds["train_loss"]), 0.5)


def test_a_level_met_exactly_is_that_record_and_one_met_from_the_start_is_not_read():
    ds = losses([1.0, 0.5, 0.25], [0.4, 0.3, 0.2], [0.5, 0.3, 0.2])
    ds["test_loss"] = ("seed", "step"), [[9.0, 8.0, 7.0], [6.0, 5.0, 4.0], [3.0, 2.0, 1.0]]
    with pytest.warns(UserWarning, match="NaN at training loss 0.5: 2 of 3 runs are at or below it from their first"):
        at = js.at_train_loss(ds, 0.5)
    np.testing.assert_allclose(at["step"], [1.0, np.nan, np.nan], atol=1e-12)  # seeds 1 and 2 start below or at it
    np.testing.assert_allclose(at["test_loss"], [8.0, np.nan, np.nan], atol=1e-12)
    assert (at.attrs["not_reached"], at.attrs["below_at_start"], at.attrs["too_coarse"]) == (0, 2, 0)


def test_the_first_crossing_counts_where_the_loss_is_not_monotone():
    ds = losses([1.0, 0.1, 0.9, 0.01], [1.0, 2.0, 0.5, 0.05])
    at = js.at_train_loss(ds, 0.2)
    np.testing.assert_allclose(at["step"], [np.log(5) / np.log(10), 2 + np.log(2.5) / np.log(10)], atol=1e-9)


def test_a_loss_of_zero_is_below_every_level():
    assert 1 <= float(js.at_train_loss(losses([1.0, 0.5, 0.0]), 1e-9)["step"][0]) <= 2


def test_test_quantities_are_interpolated_between_the_test_steps_around_the_crossing():
    steps = np.arange(0, 910, 10)
    loss = np.exp(-steps / 330.0)  # falls by a factor of 1.095 between two test steps
    error = np.where(steps % 30 == 0, 0.8 - 0.6 * steps / 900, np.nan)  # by 1/30 of its range
    ds = losses(loss, loss, steps=steps)
    ds["test_error"] = ("seed", "step"), [error, error]
    for where in (5.0, 12.0, 29.0, 30.0, 31.0, 45.0, 60.0):
        at = js.at_train_loss(ds, float(np.exp(-where / 330)) * (1 + 1e-12))
        np.testing.assert_allclose(at["step"], where, rtol=1e-6)
        np.testing.assert_allclose(at["test_error"], 0.8 - 0.6 * where / 900, rtol=1e-6)  # log loss is linear in t


def test_a_variable_that_moves_while_the_loss_hardly_does_is_not_read_between_distant_records():
    steps = np.arange(0, 100, 3)
    ds = losses(0.693 * np.exp(-steps / 2000), steps=steps)  # the loss falls by .15 % between records
    ds["test_error"] = ("seed", "step"), [np.where(steps < 30, 0.5, 0.0)]
    ds["slow"] = ("seed", "step"), [steps / 100]
    with pytest.warns(UserWarning, match="in 1 of 1 runs the records of test_error around the crossing lie up to 3 "):
        at = js.at_train_loss(ds, 0.693 * np.exp(-28.5 / 2000))  # between 27, with an error of .5, and 30, with none
    assert at["test_error"].isnull().all()
    np.testing.assert_allclose(at["slow"], 0.285, rtol=1e-3)


def test_the_records_around_a_crossing_must_enclose_it_where_the_loss_is_not_monotone():
    """The loss is at the level at a step without a test set, and above it again when the test set is looked at."""
    ds = losses([0.6, 0.49, 0.58, 0.58], steps=np.array([0, 30, 50, 60]))
    ds["test_error"] = ("seed", "step"), [[0.5, np.nan, 0.48, 0.47]]
    with pytest.warns(UserWarning, match="NaN at training loss 0.5"):
        at = js.at_train_loss(ds, 0.5)
    assert at["test_error"].isnull().all()


def test_one_run_without_dimensions_and_a_level_already_selected():
    ds = losses([1.0, 0.5, 0.2])
    at = js.at_train_loss(ds.isel(seed=0), 0.3)
    np.testing.assert_allclose(at["step"], js.at_train_loss(ds, 0.3)["step"][0])
    captured = ds.assign(
        step_at_level=(("seed", "level", "crossing"), [[[1, 2]]]),
        train_loss_at_level=(("seed", "level", "crossing"), [[[0.5, 0.2]]]),
    ).assign_coords(level=[0.3])
    for one in (captured, captured.sel(level=0.3), captured.isel(seed=0), captured.sel(level=0.3).isel(seed=0)):
        np.testing.assert_allclose(js.at_train_loss(one, 0.3)["step"], at["step"])


def test_a_reading_between_records_that_lie_too_far_apart_is_nan_with_a_warning():
    steps = np.array([0, 10, 11, 20])
    ds = losses([1.0, 0.9, 0.3, 0.29], [1.0, 0.9, 0.85, 0.2], steps=steps)
    ds["test_loss"] = ("seed", "step"), [[4.0, 3.0, 2.0, 1.0]] * 2
    ds["test_error"] = ("seed", "step"), [[0.4, np.nan, np.nan, 0.1]] * 2
    with pytest.warns(UserWarning, match="NaN at training loss 0.5") as caught:
        at = js.at_train_loss(ds, 0.5)
    assert [str(one.message) for one in caught] == [
        "NaN at training loss 0.5: in 2 of 2 runs the records of train_loss, test_loss, test_error around the crossing "
        "lie up to 20 steps apart; allowed are a factor of 1.1 in loss and 0.04 of the range of what is read: run with "
        "levels=(0.5,)"
    ]
    # Seed 0 falls by a factor of 3 from step 10 to step 11, with no step between them: that is as near as records get.
    w = np.log(0.9 / 0.5) / np.log(3)
    np.testing.assert_allclose(at["step"], [10 + w, np.nan])
    np.testing.assert_allclose(at["test_loss"], [3 - w, np.nan])
    assert at["test_error"].isnull().all()
    assert at.attrs["too_coarse"] == 2
    assert at["reading"].values.tolist() == [3, 3]  # of seed 0 the test error alone


def test_a_crossing_after_the_last_test_step_is_too_coarse():
    ds = losses([1.0, 0.9, 0.8, 0.7])
    ds["test_error"] = ("seed", "step"), [[0.4, 0.3, np.nan, np.nan]]
    with pytest.warns(UserWarning, match="1 of 1 runs the records of test_error around the crossing lie up to 2 steps"):
        at = js.at_train_loss(ds, 0.75)
    assert at["test_error"].isnull().all()
    assert at["step"].notnull().all()


def test_interpolation_agrees_with_numpy_on_random_runs():
    rng = np.random.default_rng(1)
    steps = np.arange(30)
    loss = np.exp(-np.cumsum(rng.random((3, 5, 30)), -1))  # decreasing, so log loss can be the abscissa
    value = rng.standard_normal((3, 5, 30))
    ds = xr.Dataset(
        {name: (("optimizer", "seed", "step"), v) for name, v in (("train_loss", loss), ("value", value))},
        {"optimizer": list("abc"), "seed": np.arange(5), "step": steps},
    )
    for level in (0.3, 0.05, 1e-4):
        at = js.at_train_loss(ds, level)
        for i in range(3):
            for j in range(5):
                x = -np.log(loss[i, j])
                expect = [np.interp(-np.log(level), x, y) for y in (value[i, j], steps)]
                if x[-1] < -np.log(level):
                    expect = [np.nan] * 2
                found = [float(at[name][i, j]) for name in ("value", "step")]
                np.testing.assert_allclose(found, expect, rtol=1e-9)
        assert at.attrs["not_reached"] == (-np.log(loss[..., -1]) < -np.log(level)).sum()


@pytest.mark.parametrize("level", [0, -1.0, np.nan, np.inf, "low", None, True])
def test_the_level_must_be_a_positive_number(level):
    with pytest.raises(ValueError, match=r"level must be a finite number in \(0, inf\), got level="):
        js.at_train_loss(losses([1.0, 0.1]), level)


def test_several_levels_and_chosen_variables():
    ds = losses([1.0, 0.5, 0.2, 0.1], [1.0, 0.9, 0.8, 0.7])
    ds["test_loss"], ds["other"] = (("seed", "step"), [[4.0, 3.0, 2.0, 1.0]] * 2), (("seed", "step"), np.ones((2, 4)))
    at = js.at_train_loss(ds, [0.3, 0.15], ["test_loss"])
    assert set(at.data_vars) == {"step", "test_loss", "reading"}
    assert at["test_loss"].dims == ("seed", "level")
    for i, level in enumerate((0.3, 0.15)):
        one = js.at_train_loss(ds, level)
        np.testing.assert_array_equal(at["test_loss"][:, i], one["test_loss"])
        np.testing.assert_array_equal(at["reading"][:, i], one["reading"])
    assert at.attrs["not_reached"] == 2
    with pytest.raises(ValueError, match="unknown variable 'test_los'; did you mean 'test_loss'"):
        js.at_train_loss(ds, 0.3, ["test_los"])
    with pytest.raises(ValueError, match="names must be a tuple of names"):
        js.at_train_loss(ds, 0.3, "test_loss")
    with pytest.raises(ValueError, match="at least one, got level="):
        js.at_train_loss(ds, [])


def test_the_loss_read_at_a_level_is_the_level():
    ds = xr.Dataset({"train_loss": ("step", [1.0, 0.01])}, {"step": [0, 1]})
    assert float(js.at_train_loss(ds, 0.1)["train_loss"]) == pytest.approx(0.1)


def test_runs_of_nan_are_read_without_a_warning():
    ds = xr.Dataset({"train_loss": (("seed", "step"), [[1.0, 0.01], [np.nan, np.nan]])}, {"step": [0, 1]})
    js.at_train_loss(ds, 0.1)

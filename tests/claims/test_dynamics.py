"""The paper's claims on Datasets built to satisfy it and to violate it, one part at a time."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign.analysis.runs import one_point
from jaxsign.claims.claim import one_family
from jaxsign.claims.dynamics import CLAIMS, LEVELS, setting_of

IDS = ["S1", "S2", "S3", "S4", "S5", "C1", "C2e", "A1", "A2", "A3", "G1"]
STEPS = np.array(
    [*range(22), 30, 50, 75, 100, 150, 200, 250, 275, 300, 325, 350, 400, 500, 850, 900, 950, 1100, 1300, 1500, 2000]
)
ETA, SEEDS = 1e-4, 64
RUNS = ("optimizer", "seed")


def manifest(preset="paper_like", hyper=None, **changes):
    problem, numbers = getattr(js.presets, preset)()
    problem = dataclasses.asdict(dataclasses.replace(problem, **changes))
    return json.dumps({"definition": {"problem": problem, "hyper": dataclasses.asdict(hyper or numbers)}})


def wrap(variables, families, attrs):
    names = np.array(families, object)
    labels = np.array([f"{name} {i}" for i, name in enumerate(families)], object)
    coords = {
        "optimizer": labels, "family": ("optimizer", names), "seed": np.arange(SEEDS),
        "learning_rate": ("optimizer", np.full(len(families), ETA)),
    }  # fmt: skip
    return xr.Dataset(variables, coords, attrs)


@pytest.fixture(scope="module")
def good():
    """SignGD and Adam doing exactly what the paper says: 6 samples, of which the first opposes the query signal."""
    rng, t = np.random.default_rng(0), STEPS.astype(float)
    rows, samples, lead = 3, 6, (2, SEEDS)
    column = t[:, None]
    l1 = np.broadcast_to(60 + 8 * rng.random((SEEDS, samples)), (*lead, samples))
    sign = np.broadcast_to(rng.choice([-1.0, 1.0], (SEEDS, rows)), (*lead, rows))
    start = rng.standard_normal((SEEDS, 1, rows, samples))
    start = start + 0.03 * t[:, None, None] * rng.standard_normal(start.shape)  # moves away from its start slowly

    def noise(turns):
        side = np.where((np.arange(samples) == 0) & (column < turns), -1.0, 1.0)[:, None, :]
        return np.where(t[:, None, None] < 50, start, sign[:, :, None, :, None] * side)

    query_signal = sign[:, :, None] * np.where(column < 50, -1.0, 1.0)
    log_s21 = np.broadcast_to((-np.log(2) - (column / 20) ** 1.6)[..., None], (*lead, t.size, 1, samples))
    loss = np.exp(-4 * ETA * l1.min(-1)[..., None] * t)  # linear at the law's rate
    loss[1] = 1 / (1 + t)  # local rate 1/(1+t)
    flat = np.ones((*lead, t.size))
    head = ("head", "sample")
    variables = {
        "train_loss": ((), loss),
        "test_loss": ((), 0.6 * flat),
        "test_error": ((), 0.444 * flat),
        "sign_agreement": ((), flat * np.where(t < 10, 0.5, 0.99)),
        "value_noise": (("sample",), 2 * ETA * l1[:, :, None] * column),
        "key_noise": (("row", "sample"), noise(300)),
        "query_noise": (("row", "sample"), np.concatenate([noise(500)[:1], noise(math.inf)[1:]])),
        "query_signal": (("row",), query_signal),
        "key_signal": (("row",), -query_signal),
        "s11": (head, np.full(log_s21.shape, 0.47)),
        "s21": (head, np.exp(log_s21)),
        "log_s21": (head, log_s21),
    }
    variables = {name: ((*RUNS, "step", *own), values) for name, (own, values) in variables.items()}
    variables["noise_l1"] = (*RUNS, "sample"), l1
    variables["first_frozen_step"] = RUNS, np.full(lead, -1, np.int32)
    variables["status"] = RUNS, np.zeros(lead, np.int8)
    return wrap(variables, ["sign_gd", "adam"], {"manifest": manifest()}).assign_coords(step=STEPS)


@pytest.fixture(scope="module")
def rates():
    """Five learning rates each of SignGD and GD: GD's error is .3 smaller at every training loss."""
    t = np.array([0.0, 20.0, 50.0, 100.0, 200.0])
    speed = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 2)
    families = ["sign_gd", "gd"] * 5
    loss = np.exp(-speed[:, None, None] * t / 25) * np.ones((10, SEEDS, 1))
    error = np.where(np.array(families) == "gd", 0.1, 0.4)[:, None, None] * np.ones(loss.shape)
    variables = {"train_loss": ((*RUNS, "step"), loss), "test_error": ((*RUNS, "step"), error)}
    variables["status"] = RUNS, np.zeros((10, SEEDS), np.int8)
    return wrap(variables, families, {"manifest": manifest()}).assign_coords(step=t.astype(int))


def row(ds, claim):
    """The verdict; runs at equal loss are as if they had captured its levels."""
    ds = with_levels(ds, LEVELS) if claim == "G1" else ds
    (found,) = js.check(ds, [claim]).rows
    return found


def test_each_claim_is_there_once_and_judges_something():
    assert [claim.id for claim in CLAIMS] == IDS
    for claim in CLAIMS:
        judged = [part for part in claim.parts if part.interval is not None]
        assert judged
        assert all(low <= high for low, high in (part.interval for part in judged))
        assert len({part.label for part in claim.parts}) == len(claim.parts)
        assert list(claim.steps) == sorted(set(claim.steps))
        assert claim.statement
        assert claim.source.split(" ")[0].strip(",") in ("paper", "ours")
    assert LEVELS == (0.5, 0.1, 0.01, 0.001)


def test_the_claims_that_are_ours_say_so():
    assert [claim.id for claim in CLAIMS if "paper" not in claim.source] == ["C2e"]
    assert {claim.id for claim in CLAIMS if "ours" in claim.source} == {"C1", "C2e"}


@pytest.mark.parametrize("claim", IDS)
def test_a_claim_holds_where_it_was_built_to(claim, good, rates):
    found = row(rates if claim == "G1" else good, claim)
    assert (found.verdict, found.inside, found.seeds) == ("HOLDS", SEEDS, SEEDS), found.parts
    for part in found.parts:
        assert np.isfinite([part.median, part.low, part.high]).all()
        assert part.low <= part.median <= part.high


def number(found, words):
    """The one part of a row whose label holds these words."""
    (part,) = [part for part in found.parts if words in part.label]
    return part


def test_numbers_are_what_the_datasets_were_built_with(good, rates):
    def median(claim, words):
        return number(row(good, claim), words).median

    assert median("S1", "slope") == pytest.approx(1.0, abs=1e-6)
    assert 0.99 < median("S1", "correlation") < 1
    assert (median("S2", "t=0"), median("S2", "t=20")) == (0.5, 0.99)
    assert median("S3", "untied rows that follow the vote") == median("S3", "opposite") == 1.0
    assert median("S3", "rival") == median("S3", "tied rows, left out") == 0.0  # its first sign is the opposite one
    assert median("S4", "s_21 at t=150") == pytest.approx(0.5 * math.exp(-(7.5**1.6)))
    assert median("S4", "s_11 at t=150") == pytest.approx(0.47)
    t = STEPS[(STEPS >= 50) & (STEPS <= 300)]
    power = np.polyfit(np.log(t), np.log(np.log(2) + (t / 20) ** 1.6), 1)[0]
    assert median("S4", "exponent") == pytest.approx(power)
    assert median("S5", "key noise") == median("S5", "query noise") == 1.0
    assert median("C1", "rate") == pytest.approx(1.0)
    late, early = (np.polyfit(x, np.log1p(x), 1)[0] for x in (np.arange(850, 951, 50), np.arange(250, 351, 25)))
    assert median("A2", "Adam") == pytest.approx(late / early)
    assert median("A2", "SignGD") == pytest.approx(1.0)
    assert (median("A3", "query noise"), median("A3", "key noise")) == (0.0, 1.0)
    assert [part.median for part in row(rates, "G1").parts] == pytest.approx([0.3] * 5 + [10] * 4)
    assert number(row(good, "C2e"), "test error at t=100").predicted == pytest.approx(0.444, abs=5e-4)
    assert number(row(rates, "G1"), "over levels").predicted == pytest.approx(0.444 - 0.106, abs=1e-3)


def put(ds, name, value, **where):
    """A copy with one variable replaced, everywhere or where `where` says (steps as (low, high))."""
    mask = True
    for dim, chosen in where.items():
        mask = mask & ((ds[dim] >= chosen[0]) & (ds[dim] <= chosen[1]) if dim == "step" else ds[dim] == chosen)
    new = value(ds[name]) if callable(value) else xr.full_like(ds[name], value)
    return ds.assign({name: new if mask is True else xr.where(mask, new, ds[name]).transpose(*ds[name].dims)})


VIOLATIONS = {
    "S1 slope": ("S1", "value_noise", lambda v: 1.25 * v, {}),
    "S1 key noise moved": ("S1", "key_noise", lambda v: v.roll(seed=1), {"step": (2, 2)}),
    "S2 aligned from the start": ("S2", "sign_agreement", 0.61, {"step": (0, 0)}),
    "S2 not aligned": ("S2", "sign_agreement", 0.94, {"step": (20, 20)}),
    "S3 against the vote": ("S3", "query_signal", lambda v: -v, {"step": (400, 400)}),
    "S3 at t=150": ("S3", "query_signal", lambda v: -v, {"step": (150, 150)}),
    "S3 signals agree": ("S3", "key_signal", lambda v: -v, {"step": (200, 200)}),
    "S4 s_21 stays": ("S4", "s21", 0.011, {"step": (150, 150)}),
    "S4 s_11 gone": ("S4", "s11", 0.39, {"step": (150, 150)}),
    "S4 slower than exponential": ("S4", "log_s21", lambda v: -np.sqrt(v.step) + 0 * v, {}),
    "S5 key noise stays": ("S5", "key_noise", lambda v: -v, {"step": (300, 300)}),
    "S5 query noise stays": ("S5", "query_noise", lambda v: -v, {"step": (500, 500)}),
    "C1 too fast": ("C1", "train_loss", lambda v: v**1.11, {}),
    "C1 too slow": ("C1", "train_loss", lambda v: v**0.89, {}),
    "C2e error off the law": ("C2e", "test_error", 0.444 + 0.03 + 0.033, {"step": (400, 400)}),
    "A1 not aligned": ("A1", "sign_agreement", 0.94, {"step": (30, 30)}),
    "A1 s_21 stays": ("A1", "s21", 0.011, {"step": (150, 150)}),
    "A1 s_11 gone": ("A1", "s11", 0.61, {"step": (150, 150)}),
    "A2 Adam linear": ("A2", "train_loss", lambda v: np.exp(-1e-2 * v.step) + 0 * v, {"family": "adam"}),
    "A2 SignGD sublinear": ("A2", "train_loss", lambda v: (1 + v.step) ** -2.0 + 0 * v, {"family": "sign_gd"}),
    "A3 query noise turns": ("A3", "query_noise", lambda v: -v, {"step": (2000, 2000)}),
    "A3 key noise stays": ("A3", "key_noise", lambda v: -v, {"step": (2000, 2000)}),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_claim_fails_where_one_part_is_violated(name, good):
    claim, variable, value, where = VIOLATIONS[name]
    found = row(put(good, variable, value, **where), claim)
    assert (found.verdict, found.inside) == ("FAILS", 0), found.parts


NEAR = {
    "S1 slope": ("S1", "value_noise", lambda v: 1.19 * v, {}),
    "S2 aligned": ("S2", "sign_agreement", 0.951, {"step": (20, 20)}),
    "S3 before t=150": ("S3", "query_signal", lambda v: -v, {"step": (100, 100)}),
    "S4 s_21": ("S4", "s21", 0.0099, {"step": (150, 150)}),
    "C1": ("C1", "train_loss", lambda v: v**1.09, {}),
    "C2e": ("C2e", "test_error", 0.444 + 0.03 + 0.03, {"step": (400, 400)}),  # two standard errors are .0314
    "C2e before t=50": ("C2e", "test_error", 0.9, {"step": (0, 30)}),
    "A2 SignGD": (
        "A2",
        "train_loss",
        lambda v: np.exp(-v.step / 30 + (v.step / 900) ** 2) + 0 * v,
        {"family": "sign_gd"},
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_claim_holds_just_inside_its_intervals(name, good):
    claim, variable, value, where = NEAR[name]
    found = row(put(good, variable, value, **where), claim)
    assert found.verdict == "HOLDS", found.parts


def test_other_families_do_not_matter_to_a_claim(good):
    broken = put(good, "train_loss", 1.0, family="adam")
    broken = put(broken, "s21", 0.5, family="adam")
    assert {found.claim.id for found in js.check(broken).rows if found.verdict != "HOLDS"} == {"A1", "A2"}


def test_seeds_outside_are_counted(good):
    half = put(good, "s21", 0.05, seed=7)
    assert (row(half, "S4").inside, row(half, "S4").verdict) == (63, "HOLDS")
    some = good.assign(s21=good["s21"].where(good.seed % 8 > 0, 0.05))
    assert (row(some, "S4").inside, row(some, "S4").verdict) == (56, "UNDECIDED")


def test_gd_must_win_at_every_loss_and_pair_of_learning_rates(rates):
    worse = put(rates, "test_error", 0.4, optimizer="gd 9")  # one learning rate of GD ties: not strictly smaller
    assert (row(worse, "G1").verdict, row(worse, "G1").inside) == ("FAILS", 0)
    better = put(rates, "test_error", 0.1, optimizer="sign_gd 8")  # one learning rate of SignGD is as good as GD
    assert (row(better, "G1").verdict, row(better, "G1").inside) == ("FAILS", 0)
    late = put(rates, "test_error", 0.4, step=(100, 200), family="gd")  # only the slow ones meet loss .01 there
    found = row(late, "G1")
    assert found.verdict == "FAILS"
    assert number(found, "difference at loss 0.5").median == pytest.approx(0.3)  # at loss .5 it still wins
    tiny = put(rates, "test_error", 0.4 - 1e-6, family="gd")
    assert row(tiny, "G1").verdict == "HOLDS"


def test_ties_of_the_vote_are_left_out_and_reported(good):
    votes = good["key_noise"].where((good.step != 50) | (good.row != 0), 0.0)  # row 0 has no majority
    signal = good["query_signal"].where(good.row != 0, -good["query_signal"])
    tied = good.assign(key_noise=votes, query_signal=signal, key_signal=-signal)
    found = row(tied, "S3")
    assert (found.verdict, number(found, "untied rows").median) == ("HOLDS", 1.0)
    assert number(found, "tied rows, left out").median == pytest.approx(1 / 3)


REASONS = {
    "family": ("S1", lambda ds: ds.isel(optimizer=[1]), "needs exactly one sign_gd optimizer, got 0"),
    "two of a family": ("A1", lambda ds: ds.assign_coords(family=("optimizer", ["adam"] * 2)), "exactly one adam"),
    "adam for A2": ("A2", lambda ds: ds.isel(optimizer=[0]), "needs exactly one adam optimizer, got 0"),
    "a step": ("S4", lambda ds: ds.sel(step=ds.step != 150), "step 150 is not recorded"),
    "the horizon": ("A3", lambda ds: ds.sel(step=slice(0, 1500)), "step 2000 is not recorded"),
    "an observable": ("S4", lambda ds: ds.drop_vars("log_s21"), "without ['log_s21']"),
    "one of two": ("S3", lambda ds: ds.drop_vars("key_signal"), "without ['key_signal']"),
    "learning rates": ("G1", lambda ds: ds, "five learning rates each of sign_gd and gd, got 1 and 0"),
    "underflow": (
        "S5",
        lambda ds: put(ds, "first_frozen_step", 400, seed=3),
        "underflow from step 400 on, before the horizon 500",
    ),
    "underflow of Adam": ("A3", lambda ds: put(ds, "first_frozen_step", 2000, family="adam"), "from step 2000 on"),
    "alarms": ("S5", lambda ds: ds.drop_vars("first_frozen_step"), "underflow"),
    "one point": ("C1", lambda ds: xr.concat([ds, ds], "snr").assign_coords(snr=[0.1, 1.0]), "several on ['snr']"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_there_is_said_and_not_decided(name, good):
    claim, change, words = REASONS[name]
    changed = change(good)
    changed.attrs = good.attrs
    table = js.check(changed, [claim])
    assert table.rows == ()
    ((found, setting, reason),) = table.missing
    assert (found, setting) == (claim, "paper_like over snr" if name == "one point" else "paper_like")
    assert words in reason


def test_underflow_counts_up_to_the_horizon_and_in_the_measured_family_only(good):
    assert row(put(good, "first_frozen_step", 501), "S5").verdict == "HOLDS"
    assert row(put(good, "first_frozen_step", 0, family="adam"), "S5").verdict == "HOLDS"
    assert row(put(good, "first_frozen_step", 3), "S2").verdict == "HOLDS"  # S2 does not look at query noise


def test_axes_of_one_point_are_no_axes(good):
    one = good.expand_dims(snr=[0.1])
    assert one_point(one).sizes == good.sizes
    assert one_family("adam")(one).sizes == good.isel(optimizer=0).sizes
    with pytest.raises(js.CannotDecide, match="exactly one gd optimizer, got 0"):
        one_family("gd")(one)


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ({}, "paper_like"),
        ({"preset": "disjoint"}, "disjoint"),
        ({"n": 21}, "paper_like, n=21"),
        ({"preset": "disjoint", "n": 21}, "disjoint, n=21"),
        ({"supports": "disjoint"}, "paper_like, disjoint supports"),
        ({"d": 4000}, "custom"),
        ({"hyper": js.Hyper(sigma_p=2.0, sigma_0=1e-3)}, "custom"),
        ({"preset": "disjoint", "hyper": js.Hyper(sigma_p=2.0, label_noise=0.1)}, "custom"),
    ],
)
def test_settings_are_recognised(arguments, setting):
    assert str(setting_of(xr.Dataset(attrs={"manifest": manifest(**arguments)}))) == setting


def test_laws_follow_the_setting(good):
    theory = good.assign_attrs(manifest=manifest("disjoint"))
    found = row(theory, "C2e")  # without overlap the law is 0, so an error of .444 is far away
    assert (found.setting, found.verdict) == ("disjoint", "FAILS")
    assert number(found, "beyond 2 standard errors").median == pytest.approx(0.444)
    assert number(found, "test error at t=100").predicted == 0.0


def test_a_loss_level_that_no_run_reaches_is_not_dropped(rates):
    slow = rates.assign(train_loss=rates["train_loss"].clip(min=0.005))
    found = row(slow, "G1")
    assert found.inside == 0
    assert [number(found, f"read at loss {level:g}").median for level in LEVELS] == [10, 10, 10, 0]


def test_a_learning_rate_that_leaps_over_a_level_is_not_read_there(rates):
    leaping = with_levels(rates, LEVELS)
    fast, before = {"optimizer": 9, "level": 0, "crossing": 0}, leaping["test_error_at_level"].copy(deep=True)
    before[fast] = 0.9  # one step later it is .1; between the two GD would err more than SignGD
    assert js.check(leaping, ["G1"]).rows[0].verdict == "HOLDS"
    (found,) = js.check(leaping.assign(test_error_at_level=before), ["G1"]).rows
    assert found.verdict == "HOLDS"
    assert [number(found, f"read at loss {level:g}").median for level in LEVELS] == [9, 10, 10, 10]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("claim", "step"), [("C2e", 100), ("S4", 200), ("A2", 901), ("S1", 12), ("C1", 1301)])
def test_diverged_runs_are_never_inside(good, claim, step):
    bad = good.where(good.step < step).assign(
        noise_l1=good.noise_l1, first_frozen_step=good.first_frozen_step, status=good.status * 0 + 1
    )
    assert row(bad, claim).verdict == "FAILS"


def test_a_correlation_of_exactly_one_holds(good):
    start = good["key_noise"].sel(step=0, drop=True)
    same = good.assign(key_noise=xr.where(good.step <= 2, start, good["key_noise"]).transpose(*good["key_noise"].dims))
    assert row(same, "S1").verdict == "HOLDS"


def test_an_axis_of_one_point_changes_the_setting(good):
    one = good.expand_dims(sigma_p=[9.0])  # what ds.sel(sigma_p=[9.0]) leaves of a sweep over sigma_p
    assert str(setting_of(one)) == "custom"


@pytest.mark.parametrize(("dropped", "claims"), [("train_loss", ["C1", "A2"]), ("learning_rate", ["S1", "C1"])])
def test_a_claim_whose_variables_are_missing_is_not_decided(good, dropped, claims):
    assert len(js.check(good.drop_vars(dropped), claims).missing) == 2


def test_tables_escape_what_markdown_and_latex_would_read(good):
    for line in js.check(good, ["C2e", "S1"]).to_markdown().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 9
    assert "~" not in js.check(good, ["S4"]).to_latex()


def test_a_single_run_answers_claims():
    problem, hyper = js.presets.disjoint()
    task = js.two_layer(dataclasses.replace(problem, n_test=1), engine="feature_space")
    run = js.train(jax.random.key(0), task, hyper, js.sign_gd(1e-4), steps=20, record=1)
    table = js.check(run.to_xarray("sign_gd", learning_rate=1e-4), ["S1", "S2", "S4"])
    assert [(row.claim.id, row.setting, row.inside) for row in table.rows] == [
        ("S1", "disjoint", 1),
        ("S2", "disjoint", 1),
    ]
    assert table.missing[0][2] == "step 50 is not recorded"
    nameless = js.check(run.to_xarray(), ["S1"])
    assert "exactly one sign_gd optimizer, got 0" in nameless.missing[0][2]

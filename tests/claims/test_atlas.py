"""Claims of the atlas on made-up maps: each holds where the numbers are as it says, and fails where they are not."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.analysis.held_out import held_out
from jaxsign.claims import atlas, regime, sample_size

SEEDS = 40
LEVELS = np.array([0.5, 0.3, 0.1, 0.03, 0.01])


def made(axes, families, errors, losses=None, extra=None, overlap="exact"):
    """A Dataset of the disjoint preset over axes {name: values}, with the test errors `errors(family, level, **point)`.

    Args:
      axes: {axis: values}; extra: {coordinate: (axis, values)} of zipped axes.
      errors: broadcasts over arrays of the axes' values; losses the same, of test losses.
    """
    problem, hyper = js.presets.disjoint()
    problem = dataclasses.replace(problem, overlap=overlap)
    dims = (*axes, "optimizer", "seed")
    shape = (*map(len, axes.values()), len(families), SEEDS)
    grids = dict(zip(axes, np.meshgrid(*map(np.asarray, axes.values()), indexing="ij")))
    noise = np.random.default_rng(0).normal(0, 0.005, SEEDS)

    def table(numbers):
        out = np.empty((*shape, LEVELS.size, 2))
        for place, family in enumerate(families):
            for which, level in enumerate(LEVELS):
                value = np.broadcast_to(numbers(family, level, **grids), shape[:-2])
                out[..., place, :, which, :] = (value[..., None] + noise)[..., None]
        return out

    captured = (*dims, "level", "crossing")
    ones = np.ones((*shape, LEVELS.size, 2))
    step = np.broadcast_to(np.arange(1, 6)[:, None] * 100 + np.arange(2), ones.shape).astype(np.int32)
    loss = LEVELS[:, None] * np.array([1.001, 0.999])
    definition = {"problem": {**problem.__dict__}, "hyper": {**hyper.__dict__}, "trainable": None}
    for name in (*axes, *(extra or {})):
        definition["problem"].pop(name, None)
    blank = np.broadcast_to([0.7, 1e-3], (*shape, 2))
    return xr.Dataset(
        {
            "status": (dims, np.zeros(shape, np.int8)),
            "train_loss": ((*dims, "step"), blank),
            "test_error": ((*dims, "step"), blank * 0 + 0.5),
            "test_loss": ((*dims, "step"), blank * 0 + 0.7),
            "step_at_level": (captured, step),
            "train_loss_at_level": (captured, ones * loss),
            "test_error_at_level": (captured, table(errors)),
            "test_loss_at_level": (captured, table(losses or (lambda *_, **__: 0.7))),
        },
        {
            **{name: list(values) for name, values in axes.items()}, **(extra or {}),
            "optimizer": list(families), "family": ("optimizer", list(families)),
            "learning_rate": ("optimizer", [1.0] * len(families)), "seed": np.arange(SEEDS), "step": [0, 1500],
            "level": LEVELS, "crossing": ["before", "at"],
        },
        {"manifest": json.dumps({"definition": definition})},
    )  # fmt: skip


def verdicts(ds, *ids):
    return {row.claim.id: row.verdict for row in js.check(ds, list(ids)).rows}


MU = np.geomspace(0.02, 10, 12)
START = {"sigma_0": ("mu", 3e-3 / MU)}
SIZES = {"d": [1200, 20_000, 2 * 10**9]}
OVERLAPS = {"overlap": ("d", ["exact", "exact", "none"])}


@pytest.fixture(scope="module")
def law():
    """{(family, level): law over d and mu} of the error map."""
    blank = made({**SIZES, "mu": MU}, ["gd"], lambda *_, **__: 0.0, extra={**OVERLAPS, **START})
    return {
        (family, level): atlas.laws(blank, level, power)
        for family, power in atlas.POWERS.items()
        for level in (0.1, 0.01)
    }


def test_laws_are_those_of_each_cells_problem(law):
    table = law["sign_gd", 0.1]
    problem = dataclasses.replace(js.presets.disjoint()[0], d=20_000, overlap="exact")
    hyper = js.Hyper(sigma_p=2.0, mu=MU[4], sigma_0=3e-3 / MU[4])
    assert float(table[1, 4]) == js.theory.error_at_loss(problem, hyper, 0.1).error
    assert float(table[2, 0]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ({}, {"E1": "HOLDS", "E2": "HOLDS", "E3": "FAILS", "E4": "HOLDS"}),
        ({("adam", "softmax"): 0.2}, {"E1": "HOLDS", "E2": "HOLDS", "E3": "HOLDS", "E4": "HOLDS"}),
        ({("sign_gd", "softmax"): 0.1}, {"E1": "HOLDS", "E2": "FAILS", "E3": "FAILS", "E4": "HOLDS"}),
        ({("gd", "uniform"): 0.1}, {"E1": "FAILS", "E2": "HOLDS", "E3": "FAILS", "E4": "HOLDS"}),
        ({("gd", "softmax"): 0.5}, {"E1": "HOLDS", "E2": "HOLDS", "E3": "FAILS", "E4": "FAILS"}),
    ],
)
def test_claims_on_the_error_map(law, shift, expected):
    def errors(family, level, kernel, d, mu):
        table = law[family, 0.1 if level >= 0.1 else 0.01].values[None]
        more = np.array([shift.get((family, k), 0.0) for k in ("softmax", "uniform")])
        return table + more[:, None, None]

    ds = made(
        {"kernel": ["softmax", "uniform"], **SIZES, "mu": MU}, list(atlas.POWERS), errors, extra={**OVERLAPS, **START}
    )
    assert bool((held_out(ds, "d", "mu") & (law["sign_gd", 0.01] > 0.05) & (law["sign_gd", 0.01] < 0.45)).any())
    assert verdicts(ds, "E1", "E2", "E3", "E4") == expected


@pytest.mark.parametrize(("error", "expected"), [(0.01, "HOLDS"), (0.3, "FAILS")])
def test_a_small_start_leaves_no_error_without_overlap(error, expected):
    ds = made(
        {**SIZES, "mu": MU}, ["sign_gd"], lambda *_, **__: error, extra={**OVERLAPS, "sigma_0": ("mu", MU * 0 + 3e-4)}
    )
    assert verdicts(ds, "E5") == {"E5": expected}


PARTS = ("adam_on_attention", "adam_on_signal", "adam_on_noise")
BOTH, ALL = "adam_on_attention_noise", "adam_on_attention_signal_noise"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (("adam_on_signal", ALL), "HOLDS"),
        (("adam_on_attention", BOTH, ALL), "FAILS"),
        (("adam_on_noise", "adam_on_signal", ALL), "FAILS"),
        (("adam_on_signal", "slow_sign_gd", ALL), "FAILS"),
        ((ALL,), "FAILS"),
        ((), "FAILS"),
    ],
)
def test_adams_error_is_its_rule_for_the_signal(raised, expected):
    names = ["sign_gd", *PARTS, BOTH, ALL, "slow_sign_gd"]
    ds = made({"mu": MU}, names, lambda family, *_, **__: 0.35 if family in raised else 0.05, extra=START)
    assert verdicts(ds, "E6") == {"E6": expected}


SLOWED = {
    "sign_gd": {}, "slow 1": {"share": 0.06}, "slow 2": {"share": 0.12}, "slow 3": {"share": 0.25},
    "slow 4": {"share": 0.5}, "short": {"b2": 0.9}, "adam": {"b2": 0.99}, "long": {"b2": 0.999},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({}, "HOLDS"), ({"slow 2": 0.1}, "FAILS"), ({"slow 4": 0.5}, "FAILS"), ({"short": 0.38}, "FAILS")],
)
def test_adams_error_is_how_far_the_signal_has_come(changed, expected):
    errors = {"sign_gd": 0.05, "slow 1": 0.47, "slow 2": 0.45, "slow 3": 0.4, "slow 4": 0.3, "short": 0.1, **changed}
    ds = made({"mu": MU}, list(SLOWED), lambda name, *_, **__: errors.get(name, 0.39), extra=START)
    family = ["sign_gd", *["slow_signal"] * 4, *["adam_on_signal"] * 3]
    numbers = {name: ("optimizer", [point.get(name, np.nan) for point in SLOWED.values()]) for name in ("share", "b2")}
    ds = ds.assign(value_signal=ds["test_error"], value_signal_at_level=ds["test_error_at_level"] * 0 + 0.2)
    ds = ds.assign_coords(family=("optimizer", family), **numbers)
    assert verdicts(ds, "E8") == {"E8": expected}
    table = js.check(ds)
    assert {row.claim.id for row in table.rows} == {"E8"}
    assert table.left_open() == ("Not decided by these results, though about such a setting: E6 (--claim ID says why).")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ({"adam_on_signal": 0.15, "adam_on_noise": -0.1}, "HOLDS"),
        ({"adam_on_noise": -0.1}, "FAILS"),
        ({"adam_on_signal": 0.15}, "FAILS"),
        ({"adam_on_signal": 0.15, "adam_on_noise": -0.1, "adam_on_signal_noise": 0.2}, "FAILS"),
    ],
)
def test_the_rule_for_the_signal_does_not_need_attention(raised, expected):
    names = ["sign_gd", "adam_on_signal", "adam_on_noise", "adam_on_signal_noise"]
    axes = {"d": [2000, 2 * 10**9], "mu": MU}
    extra = {**START, "overlap": ("d", ["exact", "none"])}
    ds = made(axes, names, lambda family, *_, **__: 0.2 + raised.get(family, 0.0), extra=extra)
    ds = ds.expand_dims(kernel=["uniform"]).transpose("kernel", ...)
    assert verdicts(ds, "E9") == {"E9": expected}


@pytest.mark.parametrize(
    ("away", "expected"),
    [
        ({}, "HOLDS"),
        ({("sign_gd", "softmax"): 0.1}, "FAILS"),
        ({("gd", "uniform"): 0.1}, "FAILS"),
        ({("gd", "softmax"): 0.1}, "HOLDS"),
    ],
)
def test_the_law_over_initial_scales(away, expected):
    axes = {"kernel": ["softmax", "uniform"], "d": [2000, 2 * 10**9], "mu": [0.4, 1.2], "sigma_0": [1e-4, 1e-2]}
    extra = {"overlap": ("d", ["exact", "none"])}
    blank = made(axes, ["gd"], lambda *_, **__: 0.0, extra=extra)
    level_laws = {
        (family, level): atlas.laws(blank, level, atlas.POWERS[family]).values[None]
        for family in ("sign_gd", "gd")
        for level in (0.5, 0.1, 0.01)
    }

    def errors(family, level, kernel, d, mu, sigma_0):
        table = level_laws.get((family, level), level_laws[family, 0.1])
        return table + np.where(kernel == "softmax", away.get((family, "softmax"), 0), away.get((family, "uniform"), 0))

    ds = made(axes, ["sign_gd", "gd"], errors, extra=extra)
    assert verdicts(ds, "E7") == {"E7": expected}


def test_a_boundary_is_where_the_error_is_a_quarter():
    snr = np.geomspace(0.01, 1, 15)
    exact = xr.DataArray(
        0.5 / (1 + (snr[:, None] / np.array([0.05, 0.2])) ** 2.5), dims=("mu", "n"), coords={"mu": snr, "n": [16, 32]}
    )
    np.testing.assert_allclose(sample_size.boundary(exact, snr), [0.05, 0.2], rtol=1e-3)
    never = exact.where(exact.n == 16, 0.5)
    assert np.isnan(sample_size.boundary(never, snr).sel(n=32))


@pytest.mark.parametrize(
    ("power", "expected"), [(0.5, ("HOLDS", "FAILS")), (-0.3, ("FAILS", "HOLDS")), (0.0, ("FAILS", "FAILS"))]
)
def test_more_data_moves_boundaries(power, expected):
    def errors(family, level, n, mu):
        snr = mu / (2 * 40**0.5)
        return 0.5 / (1 + (snr / (0.05 * (n / 16) ** power)) ** 2.5)

    mu = np.geomspace(0.05, 20, 12)
    ds = made(
        {"n": [8, 16, 32, 64], "mu": mu},
        ["sign_gd", "gd"],
        errors,
        extra={"sigma_0": ("mu", 3e-3 / mu), "d": ("n", [20_000] * 4)},
    )
    assert verdicts(ds, "N4", "N5") == dict(zip(("N4", "N5"), expected))


@pytest.mark.parametrize(
    ("family", "claim", "at", "powers", "expected"),
    [
        ("gd", "N8", [3e-4, 3e-5], [0.0, 0.1], "HOLDS"),
        ("gd", "N8", [3e-4, 3e-5], [0.0, -0.2], "FAILS"),
        ("gd", "N8", [3e-4, 3e-5], [-0.2, 0.0], "FAILS"),
        ("sign_gd", "N9", [200_000, 2_000_000], [0.2, 0.6], "HOLDS"),
        ("sign_gd", "N9", [200_000, 2_000_000], [0.5, 0.0], "FAILS"),
    ],
)
def test_slopes_at_other_starts_and_dimensions(family, claim, at, powers, expected):
    snr, wide = np.geomspace(0.01, 0.3, 12), claim == "N9"
    starts = np.repeat([3e-3] if wide else at, snr.size)
    mu = np.resize(snr, starts.size) * 2 * 40**0.5

    def errors(family, level, n, mu, d=0):  # mu: its place
        power = np.where(d == at[1] if wide else mu >= snr.size, powers[1], powers[0])
        return 0.5 / (1 + (snr[mu % snr.size] / (0.05 * (n / 16) ** power)) ** 2.5)

    ds = made(
        {"n": [4, 16, 32, 64], **({"d": at} if wide else {}), "mu": np.arange(mu.size)},
        [family],
        errors,
        extra={"sigma_0": ("mu", starts / mu), **({} if wide else {"d": ("n", [20_000] * 4)})},
    ).assign_coords(mu=mu)
    assert verdicts(ds, "N4", "N5", "N7", "N8", "N9") == {claim: expected}


def regime_map(errors, losses, start):
    points = [(n, (40 * n**2) ** 2, c) for n in (4, 8) for c in (1e-3, 0.1, 1.0)]
    n, d, c = map(np.array, zip(*points))
    mu = 2.0 / (c * d**0.25 * n**3.0)
    extra = {
        "d": ("n", d),
        "overlap": ("n", ["exact"] * 6),
        "mu": ("n", mu),
        "sigma_0": ("n", 3e-3 / mu if start == "as preset" else mu * 0 + 3e-4),
    }
    ds = made({"n": np.arange(6)}, list(atlas.POWERS), errors, losses, extra)
    return ds.assign_coords(n=n), c


def test_only_points_of_the_regime_count():
    def errors(family, level, n):
        return np.where(np.isin(n, [0, 3]), 0.0, 0.5)  # c = 1e-3: not in the regime

    ds, c = regime_map(errors, lambda *_, **__: 0.7, "small")
    np.testing.assert_allclose(regime.constant_of(ds), c)
    assert verdicts(ds, "N1", "N2") == {"N1": "HOLDS", "N2": "HOLDS"}
    ds, _ = regime_map(errors, lambda *_, **__: 0.7, "as preset")
    assert verdicts(ds, "N1", "N3") == {"N3": "HOLDS"}
    ds, _ = regime_map(lambda family, level, n: 0.3 if family == "gd" else 0.5, lambda *_, **__: 0.6, "small")
    assert verdicts(ds, "N1", "N2") == {"N1": "FAILS", "N2": "FAILS"}


@pytest.mark.parametrize(
    ("errors", "expected"),
    [({}, "HOLDS"), ({("gd", 0.3, 3e-7): 0.2}, "FAILS"), ({("sign_gd", 1.0, 3e-7): 0.3}, "FAILS")],
)
def test_guessing_ends_with_small_initial_weights(errors, expected):
    points = [(n, c, start) for n in (4, 8) for c in (0.3, 1.0) for start in (3e-4, 1e-5, 3e-7)]
    n, c, start = map(np.array, zip(*points))
    d = (40 * n**2) ** 2
    mu = 2.0 / (c * d**0.25 * n**3.0)

    def error(family, level, n):
        usual = {"sign_gd": {3e-4: 0.49, 1e-5: 0.2, 3e-7: 0.01}}.get(family, {})
        return np.array([errors.get((family, c, start), usual.get(start, 0.48)) for _, c, start in points])

    extra = {"d": ("n", d), "overlap": ("n", ["exact"] * len(n)), "mu": ("n", mu), "sigma_0": ("n", start)}
    ds = made({"n": np.arange(len(n))}, ["sign_gd", "gd"], error, extra=extra).assign_coords(n=n)
    assert verdicts(ds, "N1", "N3", "N10") == {"N10": expected}


@pytest.mark.parametrize(("least", "expected"), [(0.2, "HOLDS"), (0.05, "FAILS")])
def test_the_smallest_test_loss_is_taken_over_all_levels(least, expected):
    def losses(family, level, mu):
        return least if level == 0.03 and family == "sign_gd" else 0.7

    mu = np.array([0.02, 0.079, 0.64]) * 2 * 40**0.5
    ds = made(
        {"mu": mu}, list(atlas.POWERS), lambda *_, **__: 0.5, losses, {"sigma_0": ("mu", 3e-3 / mu)}, overlap="none"
    )
    assert verdicts(ds, "C2r") == {"C2r": expected}

"""Claims about heads, contexts and depth: runs for which each holds and fails; the architecture experiment, tiny."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import with_levels

import jaxsign as js
from jaxsign.claims import architecture
from jaxsign.claims import dynamics as two_layer
from jaxsign.claims.catalogue import CLAIMS, known_system

ROOT = Path(__file__).parents[2]


SEEDS = 40


STEPS = np.array([0, 10, 20, 30, 50, 70, 100, 110, 120, 150, 200, 300, 400])


def dataset(system, problem, variables, coords=None, families=("sign_gd",)):
    """A Dataset of made-up runs: variables (dims without optimizer, values)."""
    hyper = js.presets.paper_like()[1]
    definition = {
        "problem": dataclasses.asdict(problem), "hyper": dataclasses.asdict(hyper), "system": {"name": f"x.{system}"}
    }  # fmt: skip
    coords = {"seed": np.arange(SEEDS), "step": STEPS, **(coords or {})}
    ds = xr.Dataset(variables, coords, {"manifest": json.dumps({"definition": definition})})
    runs = [dim for dim in ("residual", "seed") if dim in ds.dims]
    ds = ds.assign(status=(runs, np.zeros([ds.sizes[dim] for dim in runs], np.int8)))
    ds = ds.expand_dims(optimizer=list(families))
    return ds.assign_coords(
        family=("optimizer", list(families)), learning_rate=("optimizer", [1e-4] * len(families))
    )  # fmt: skip


def wide(shape, values):
    """Values over steps, for all seeds and whatever follows."""
    values = np.asarray(values, float).reshape(len(STEPS), *(1,) * len(shape))
    return np.broadcast_to(values[None], (SEEDS, len(STEPS), *shape)).copy()


def staged(heads=1, context=2, settles=110):
    """Runs of the two-layer system in which the stages come in order."""
    problem = dataclasses.replace(js.presets.paper_like()[0], heads=heads, context=context, d=2000 * (context - 1))
    tail, patch = ((context - 1,), ("patch",)) if context > 2 else ((), ())
    rows, noise = 2 * heads, ("sample", *patch)
    sign = np.where(settles <= STEPS, 1.0, -1.0)
    decay = np.where(STEPS <= 20, 1.0, np.exp(-((STEPS / 40.0) ** 1.5))) / context
    query = wide((rows, 2, *tail), np.ones(len(STEPS)))
    key = query.copy()
    key[:, 0, :, 0] = -1.0  # at t = 0 half of the pairs disagree
    variables = {
        "value_noise": (("seed", "step", *noise), wide((2, *tail), STEPS - 5.0)),
        "sign_agreement": (("seed", "step"), wide((), np.where(STEPS >= 20, 1.0, 0.5))),
        "query_signal": (("seed", "step", "row"), wide((rows,), sign)),
        "query_noise": (("seed", "step", "row", *noise), query),
        "key_noise": (("seed", "step", "row", *noise), key),
        "s11": (("seed", "step", "head", "sample"), wide((heads, 2), np.full(len(STEPS), 1 / context))),
        "s21": (("seed", "step", "head", *noise), wide((heads, 2, *tail), decay)),
        "log_s21": (("seed", "step", "head", *noise), wide((heads, 2, *tail), np.log(decay))),
    }
    return dataset("two_layer", problem, variables)


def word(ds, claim):
    """The verdict; runs at equal loss are as if they had captured its levels."""
    ds = with_levels(ds, (0.1, 0.01)) if claim == "D2" else ds
    (row,) = js.check(ds, [claim]).rows
    return row.verdict


@pytest.mark.parametrize(
    ("ds", "setting"),
    [(staged(heads=4), "heads 4, paper_like"), (staged(context=8), "context 8, paper_like"), (staged(), "paper_like")],
)
def test_settings_name_heads_and_context(ds, setting):
    assert str(two_layer.setting_of(ds)) == setting
    moved = json.loads(ds.attrs["manifest"])
    moved["definition"]["problem"]["d"] = 2001
    assert str(two_layer.setting_of(ds.assign_attrs(manifest=json.dumps(moved)))) == "custom"


def test_claims_about_heads():
    good = staged(heads=4)
    assert word(good, "H1") == word(good, "H2") == "HOLDS"
    assert word(staged(heads=4, settles=10), "H1") == "FAILS"
    for name in ("s21", "s11"):  # one head of four is enough
        bad = good.copy(deep=True)
        bad[name][{"head": 2}] = 0.7
        assert word(bad, "H2") == "FAILS"
    bad = good.copy(deep=True)
    bad["key_noise"][{"row": 7}] = -1.0
    assert word(bad, "H2") == "FAILS"
    np.testing.assert_allclose(
        architecture.head_agreement(bad.isel(optimizer=0, seed=0, step=4)).values, [1, 1, 1, 0.5]
    )
    assert not js.check(staged(), ["H1", "H2", "H3", "H4"]).rows  # context 2 with one head is the paper's own system


def test_claims_about_longer_contexts():
    good = staged(context=4)
    assert word(good, "H3") == word(good, "H4") == "HOLDS"
    assert word(staged(context=4, settles=10), "H3") == "FAILS"
    for name, value in (("s21", 0.2), ("s11", 0.5)):
        bad = good.copy(deep=True)
        bad[name][:] = value
        assert word(bad, "H4") == "FAILS"
    slow = good.copy(deep=True)
    slow["log_s21"][:] = np.log(0.25) - np.sqrt(STEPS)[:, None, None, None]
    assert word(slow, "H4") == "FAILS"


def deep(depth=3, plain=None, **changes):
    """Runs with residual connections that keep the behaviours in every layer, and without that lose them all."""
    alternating = np.where(np.arange(len(STEPS)) % 2, 1.0, -1.0)
    loss = 0.69 * np.exp(-STEPS / 80.0)
    kept = {
        "train_loss": ((), loss), "sign_agreement": (("layer", "head"), np.where(STEPS >= 20, 1.0, 0.5)),
        "s21": (("layer", "head", "sample"), np.where(STEPS >= 150, 1e-3, 0.5 - STEPS / 500)),
        "s11": (("layer", "head", "sample"), np.full(len(STEPS), 0.48)),
        "query_signal": (("layer", "row"), np.where(STEPS >= 50, 1.0, -1.0)),
        "query_noise": (("layer", "row", "sample"), np.ones(len(STEPS))),
        "value_noise": (("layer", "sample"), STEPS - 5.0),
    }  # fmt: skip
    lost = {
        "train_loss": 0.69 + 0.05 * alternating, "sign_agreement": np.full(len(STEPS), 0.6),
        "s21": 0.4 + 0.1 * alternating, "s11": np.full(len(STEPS), 0.7), "query_signal": alternating,
    }  # fmt: skip
    shape = {"layer": depth, "head": 1, "sample": 2, "row": 4}
    variables = {}
    for name, (dims, values) in kept.items():
        other = values if plain == "alike" else lost.get(name, values)
        sizes = [shape[dim] for dim in dims]
        both = np.stack([wide(sizes, changes.get(name, values)), wide(sizes, other)])
        variables[name] = (("residual", "seed", "step", *dims), both)
    return dataset("deep_transformer", js.DeepProblem(depth=depth), variables, {"residual": [1.0, 0.0]})


def test_settings_of_deep_transformers():
    ds = deep()
    assert known_system(ds) == "deep_transformer"
    assert str(architecture.setting_of(ds)) == "depth 3"
    for problem, name in (
        (js.DeepProblem(depth=4, mlp=True), "depth 4 with mlp"),
        (js.DeepProblem(depth=4, mlp=True, layer_norm=True), "depth 4 with mlp and layer norm"),
        (js.DeepProblem(depth=2, d=3000), "custom"),
    ):
        definition = json.loads(ds.attrs["manifest"])
        definition["definition"]["problem"] = dataclasses.asdict(problem)
        assert str(architecture.setting_of(ds.assign_attrs(manifest=json.dumps(definition)))) == name
        assert (name in architecture.DEEP) == (name != "custom")
    definition["definition"]["hyper"]["sigma_0"] = 1.0
    assert str(architecture.setting_of(ds.assign_attrs(manifest=json.dumps(definition)))) == "custom"


DEEP_CLAIMS = [claim.id for claim in CLAIMS if claim.system == "deep_transformer"]


def test_every_claim_about_depth_holds_for_runs_as_it_says():
    table = js.check(with_levels(deep(), (0.1, 0.01)), DEEP_CLAIMS)
    assert [row.verdict for row in table.rows] == ["HOLDS"] * 8
    assert not js.check(deep(depth=1), DEEP_CLAIMS).rows


@pytest.mark.parametrize(
    ("claims", "changes"),
    [
        (["D4", "D5", "D6", "D7", "D8"], {"plain": "alike"}),
        (["D1", "D2"], {"sign_agreement": np.full(len(STEPS), 0.9)}),
        (["D1", "D2"], {"s21": np.full(len(STEPS), 0.5)}),
        (["D1", "D2"], {"s11": np.full(len(STEPS), 0.3)}),
        (["D1", "D2"], {"train_loss": np.full(len(STEPS), 0.5)}),
        (["D2"], {"train_loss": 0.69 * np.exp(-STEPS / 20.0)}),  # s_21 is .42 when this falls below .1
        (["D3"], {"query_signal": np.ones(len(STEPS))}),
    ],
)
def test_claims_about_depth_fail_where_they_should(claims, changes):
    ds = deep(**changes)
    assert {name: word(ds, name) for name in claims} == dict.fromkeys(claims, "FAILS")


def test_the_worst_layer_decides():
    for name, value in (("s21", 0.5), ("s11", 0.7), ("s11", 0.3), ("sign_agreement", 0.9)):
        ds = deep()
        ds[name][{"residual": 0, "layer": 2}] = value
        assert word(ds, "D2") == "FAILS"
    assert word(ds, "D1") == "HOLDS"


def test_layers_are_compared_at_equal_loss():
    late = deep()
    late["s11"][{"residual": 0, "layer": 2}] = np.where(STEPS >= 300, 0.01, 0.48)[:, None, None]
    (row,) = js.check(with_levels(late, (0.1, 0.01)), ["D2"]).rows
    median = {part.label: part.median for part in row.parts}
    assert row.verdict == "HOLDS"  # training loss .1 is before
    assert median["mean s_11 at training loss 0.1, least layer"] == pytest.approx(0.48)
    assert median["mean s_11 at training loss 0.01, least layer"] == pytest.approx(0.01)
    loss = late["train_loss"].isel(residual=0, seed=0, optimizer=0).values
    crossing = np.interp(-np.log(0.1), -np.log(loss), STEPS)
    assert median["step at which the training loss is .1"] == pytest.approx(crossing, abs=1.0)
    assert "run with levels=(0.1,)" in js.check(late, ["D2"]).missing[0][2]


def test_what_lacks_the_axis_is_not_decided():
    table = js.check(deep().isel(residual=0), ["D1"])
    assert not table.rows
    assert "needs an axis residual" in table.missing[0][2]
    assert "needs runs with residual 1" in js.check(deep().isel(residual=[1]), ["D1"]).missing[0][2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("architecture")
    experiment = runpy.run_path(str(ROOT / "sweeps" / "architecture.py"))
    assert experiment["main"](["--tiny", "--out", str(out / "architecture")]) == 0
    return out


@pytest.mark.slow
def test_the_experiment_runs_tiny_and_its_figures_are_drawn(results, tmp_path, monkeypatch):
    ds = js.open_results(results / "architecture" / "depth_4_mlp_norm")
    assert ds["s21"].dims == ("residual", "optimizer", "seed", "step", "layer", "head", "sample")
    assert np.isfinite(ds["train_loss"]).all()
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(results), "--out", str(tmp_path)])
    for name in ("architecture", "depth"):
        runpy.run_path(str(ROOT / "figures" / f"{name}.py"))["main"]()
        assert len((tmp_path / f"{name}.csv").read_text().splitlines()) > 50


def test_the_full_experiment_says_its_entries(capsys):
    experiment = runpy.run_path(str(ROOT / "sweeps" / "architecture.py"))
    assert experiment["main"](["--help"]) == 0
    text = capsys.readouterr().out
    for entry in ("paper_like_heads_8", "disjoint_context_16", "depth_4_mlp_norm"):
        assert f"  {entry}: " in text
    assert "paper_like_context_16: 4 runs of 320 steps" in text

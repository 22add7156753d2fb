"""Defects found by reading and breaking the library, one test each, so that they stay mended."""

import dataclasses
import functools
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_definition as td
import test_dynamics as tc
import test_labels as tl
import test_results as tr
import test_run as ts
import xarray as xr
from test_dynamics import good, rates, row  # the first two are fixtures

import jaxsign as js
from jaxsign.sweep.identity.definition import definition


# --- 1 G1: a loss level that no run reaches is dropped
def test_g1_unreached_level(rates):
    slow = rates.assign(train_loss=rates["train_loss"].clip(min=0.005))
    assert row(slow, "G1").inside == 0


# --- 2 diverged runs count as inside
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("claim", "step"), [("C2", 1), ("C2", 1400), ("C2e", 100), ("S4", 200), ("A2", 901), ("S1", 12), ("C1", 1300)]
)
def test_diverged_inside(good, claim, step):
    bad = good.where(good.step < step).assign(
        noise_l1=good.noise_l1, first_frozen_step=good.first_frozen_step, status=good.status * 0 + 1
    )
    if claim == "C1":
        bad = good.where(good.step <= step).assign(
            noise_l1=good.noise_l1, first_frozen_step=good.first_frozen_step, status=good.status * 0 + 1
        )
    assert row(bad, claim).verdict == "FAILS"


# --- 3 S1 correlation of exactly 1
def test_perfect_correlation(good):
    start = good["key_noise"].sel(step=0, drop=True)
    same = good.assign(key_noise=xr.where(good.step <= 2, start, good["key_noise"]).transpose(*good["key_noise"].dims))
    assert row(same, "S1").verdict == "HOLDS"


# --- 4 setting and predictions ignore axes of one point
def preset(**axes):
    problem, hyper = js.presets.paper_like()
    s = js.Sweep(
        system=js.two_layer, problem=problem, hyper=hyper, axes=axes, steps=5, optimizers={"sign_gd": js.sign_gd(1e-4)}
    )
    return xr.Dataset(attrs={"manifest": json.dumps({"definition": definition(s)})})


def test_setting_of_selected_point(good):
    one = good.expand_dims(sigma_p=[9.0])  # = ds.sel(sigma_p=[9.]) of a sweep over sigma_p
    from jaxsign.claims.dynamics import setting_of

    assert str(setting_of(one)) == "custom"


# --- 5 KeyError / TypeError instead of "not decided here" / ValueError
def test_missing_train_loss(good):
    table = js.check(good.drop_vars("train_loss"), ["C1", "A2"])
    assert len(table.missing) == 2


def test_missing_learning_rate(good):
    assert js.check(good.drop_vars("learning_rate"), ["S1", "C1"]).missing


# --- 6 Markdown pipes; LaTeX specials
def test_markdown_pipes(good):
    for line in js.check(good, ["C2e", "S1"]).to_markdown().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 9


def test_latex_tilde(good):
    assert "~" not in js.check(good, ["S4"]).to_latex()


def test_latex_hash():
    from test_verdicts import claim, runs

    text = js.check(runs([0.5] * 64), [claim(labels=(r"a # b $ c \ d",))]).to_latex()
    assert r"\#" in text
    assert r"\$" in text
    assert r"\textbackslash" in text


# --- 7 coordinates have no checksum
stored, copy = tr.stored, tr.copy


@pytest.mark.parametrize("name", ["seed", "learning_rate", "slope", "step", "n"])
def test_flipped_coordinate(copy, name):
    file = copy / "results.zarr" / name / "c" / "0"
    good = js.open_results(copy)[name].values
    raw = file.read_bytes()
    for place in range(len(raw)):
        file.write_bytes(raw)
        tr.damage(file, place)
        try:
            found = js.open_results(copy)[name].values
        except Exception:
            continue
        np.testing.assert_array_equal(found, good)


def test_missing_chunk(copy):
    (copy / "results.zarr" / "train_loss" / "c" / "0" / "0" / "0" / "0" / "0").unlink()
    with pytest.raises(Exception):
        js.open_results(copy)["train_loss"].load()


# --- 8 foreign manifest.json
@pytest.mark.parametrize("text", ['{"name": "webapp"}', "[1]"])
def test_foreign_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises((ValueError, tr.UnusableData)):
        js.run_sweep(tr.small(), out=tmp_path)


# --- 9 no git
def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    js.run_sweep(tr.small())


# --- 10 identity of callables
@dataclasses.dataclass(frozen=True)
class Above:
    level: float

    def __call__(self, trace):
        return {"x": jnp.mean(trace["norm"] > self.level)}

    def method(self, trace):
        return self(trace)


def defaulted(k):
    def summary(trace, k=k):
        return {"x": trace["norm"][-1] * k}

    return summary


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return self.value


@pytest.mark.parametrize(
    "make",
    [
        lambda k: {"summary": Above(k)},
        lambda k: {"summary": Above(k).method},
        lambda k: {"summary": defaulted(k)},
        lambda k: {"optimizers": {"a": optax.sgd(Constant(k))}},
    ],
    ids=["instance", "method", "default", "schedule"],
)
def test_identity(make):
    assert td.name_of(**make(1.0)) != td.name_of(**make(2.0))


# --- 11 ragged zipped axis, scalars in a zipped axis
@pytest.mark.parametrize("values", [[(60, 4), (80,)], [60, 80]])
def test_ragged(values):
    with pytest.raises(ValueError, match="needs 2 values"):
        td.sweep()  # ok
        js.Sweep(
            system=js.two_layer,
            problem=js.Problem(n=4, d=60, s=4, m_k=2, m_v=2),
            hyper=js.Hyper(sigma_p=2.0),
            optimizers={"a": js.sign_gd(0.1)},
            steps=5,
            axes={("d", "s"): values},
        )


# --- 12 names that collide
def test_summary_named_like_an_observable():
    def last(trace):
        return {"train_loss": trace["train_loss"][-1]}

    with pytest.raises(ValueError, match="train_loss.*(twice|both|already)"):
        js.run_sweep(ts.sweep(summary=last))


def test_keyword_named_like_hyper_or_dimension():
    def mine(learning_rate, slope=1.0, seed=3.0):
        return optax.sgd(learning_rate * slope * seed / 3)

    ds = js.run_sweep(ts.sweep(optimizers={"m": js.grid(mine, learning_rate=[0.1], slope=[1.0, 2.0], seed=[3.0, 4.0])}))
    columns = [n for n, c in ds.coords.items() if c.dims == ("optimizer",)]
    assert len(columns) == 5, columns  # optimizer, family, learning_rate, (optimizer_)slope, (optimizer_)seed


# --- 13 parameters that are one bare array
def test_bare_array_params():
    task = js.Task(
        sample=lambda k, h, s: jnp.ones(2),
        init=lambda k, d, h: jnp.zeros(2),
        loss=lambda p, d, h: jnp.sum((p - d) ** 2),
        observe=lambda p, d, t, h: {"x": p[0]},
    )
    js.train(jax.random.key(0), task, None, optax.sgd(0.1), steps=3)


# --- 14 nothing half written: unknown names
@pytest.mark.parametrize("changes", [{"observables": ["trainloss"]}, {"trainable": ["v"]}])
def test_leftover_directory(tmp_path, changes):
    with pytest.raises(ValueError):
        js.run_sweep(
            tr.small(**changes) if "observables" not in changes else dataclasses.replace(tr.small(), **changes),
            out=tmp_path / "a" / "b",
        )
    assert list(tmp_path.iterdir()) == []


# --- 15 at_train_loss reads train_loss itself at another value than the level
def test_loss_at_level():
    ds = xr.Dataset({"train_loss": ("step", [1.0, 0.01])}, {"step": [0, 1]})
    assert float(js.at_train_loss(ds, 0.1)["train_loss"]) == pytest.approx(0.1)


# --- 16 warnings of at_train_loss
def test_warning():
    ds = xr.Dataset({"train_loss": (("seed", "step"), [[1.0, 0.01], [np.nan, np.nan]])}, {"step": [0, 1]})
    js.at_train_loss(ds, 0.1)


# --- 17 problem/hyper None
@pytest.mark.parametrize("changes", [{"hyper": None}, {"problem": None}, {"axes": None}])
def test_none(changes):
    with pytest.raises(ValueError):
        tl.sweep(**changes)


def test_engine_axis_on_system_without_engine():
    with pytest.raises(ValueError):
        tl.sweep(system=lambda problem: js.two_layer(problem), axes={"engine": ["dense"]})


# --- 18 to_xarray carries no manifest though the message names it


def test_a_single_run_answers_claims():
    problem, hyper = js.presets.theory()
    task = js.two_layer(dataclasses.replace(problem, n_test=1), engine="feature_space")
    run = js.train(jax.random.key(0), task, hyper, js.sign_gd(1e-4), steps=20, record=1)
    table = js.check(run.to_xarray("sign_gd", learning_rate=1e-4), ["S1", "S2", "S4"])
    assert [(row.claim.id, row.setting, row.inside) for row in table.rows] == [("S1", "theory", 1), ("S2", "theory", 1)]
    assert table.missing[0][2] == "step 50 is not recorded"
    nameless = js.check(run.to_xarray(), ["S1"])
    assert "exactly one sign_gd optimizer, got 0" in nameless.missing[0][2]

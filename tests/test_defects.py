"""Defects found by reading and breaking the library, one test each, so that they stay mended."""

import re

import test_results as tr
from test_claims import good, rates, row  # noqa: F401  (fixtures)

import jaxsign as js


# --- 1 G1: a loss level that no run reaches is dropped
def test_g1_unreached_level(rates):
    slow = rates.assign(train_loss=rates["train_loss"].clip(min=0.005))
    assert row(slow, "G1").inside == 0


# --- 2 diverged runs count as inside
def test_setting_of_selected_point(good):
    one = good.expand_dims(sigma_p=[9.0])  # = ds.sel(sigma_p=[9.]) of a sweep over sigma_p
    from jaxsign.claims import setting_of

    assert setting_of(one) == "custom"


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

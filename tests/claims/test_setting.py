"""Names of settings, which explanations are found by, and how a claim is written down."""

import numpy as np
import pytest
import xarray as xr

import jaxsign as js
from jaxsign.claims.catalogue import CLAIMS
from jaxsign.claims.claim import all_runs, one_family
from jaxsign.claims.setting import Setting

MODEL = ("gaussian kernel", "residual 1")


@pytest.mark.parametrize(
    ("setting", "name", "kind", "varies"),
    [
        (Setting("disjoint"), "disjoint", "disjoint", False),
        (Setting("depth", values=("1",)), "depth 1", "depth 1", False),
        (Setting("depths", values=("1", "2")), "depths 1, 2", "depths 1, 2", True),
        (Setting("disjoint", changes=("n=21",)), "disjoint, n=21", "disjoint", True),
        (
            Setting("disjoint", model=MODEL),
            "gaussian kernel with residual 1, disjoint",
            "gaussian kernel with residual 1",
            True,
        ),
        (Setting("paper_like", swept=("n", "snr")), "paper_like over n, snr", "", True),
    ],
)
def test_settings_have_names(setting, name, kind, varies):
    assert (str(setting), setting.kind, setting.is_variation) == (name, kind, varies)


def a_claim(**more):
    parts = (js.Part("a number", lambda ds: ds["number"], (0.0, 1.0), 0.5),)
    return js.Claim(id="X", statement="A number lies inside", source="ours", parts=parts, **more)


def test_an_explanation_names_a_setting_or_what_many_have_in_common():
    claim = a_claim(explanations={"disjoint": "small", "gaussian kernel": "flat", "disjoint, n=21": "odd"})
    assert claim.explanation(Setting("disjoint")) == "small"
    assert claim.explanation(Setting("disjoint", changes=("n=22",))) == "small"
    assert claim.explanation(Setting("disjoint", changes=("n=21",))) == "odd"
    assert claim.explanation(Setting("disjoint", model=("gaussian kernel",))) == "flat"
    assert claim.explanation(Setting("disjoint", swept=("n",))) == ""
    assert claim.explanation(Setting("custom")) == ""


def test_explanations_and_settings_of_the_catalogue_name_the_same_settings():
    for claim in CLAIMS:
        if claim.settings:
            names = {*claim.settings, *(part for name in claim.settings for part in name.split(", "))}
            assert set(claim.explanations) <= names, claim.id


def test_a_claim_is_about_a_family_or_chooses_its_runs():
    ds = xr.Dataset(
        {"number": (("optimizer", "seed"), np.eye(2, 3)), "status": (("optimizer", "seed"), np.zeros((2, 3)))},
        {"family": ("optimizer", ["gd", "adam"]), "optimizer": ["gd", "adam"], "seed": range(3)},
    )
    assert a_claim(family="adam").select(ds)["number"].values.tolist() == [0, 1, 0]
    assert a_claim(runs=one_family("gd")).select(ds)["number"].values.tolist() == [1, 0, 0]
    assert a_claim().select(ds).sizes == a_claim(family="").select(ds).sizes == ds.sizes
    several = ds.expand_dims(snr=[1, 2])
    assert a_claim(runs=all_runs).select(several) is several
    with pytest.raises(js.CannotDecide, match=r"one point of every axis, got several on \['snr'\]"):
        a_claim().select(several)
    with pytest.raises(ValueError, match="claim 'X' must have runs or family, got both and family='gd'"):
        a_claim(runs=all_runs, family="gd")
    assert a_claim().parts[0].prediction(ds) == 0.5

"""jaxsign export: what comes back from a file, what is refused, what is never replaced."""

import json
import re
import shutil

import numpy as np
import pytest
import xarray as xr
from line_experiment import RUNS, chunks, files, flip, load, refused, run, store, write

import jaxsign as js
from jaxsign.cli import netcdf


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return store(load(write(tmp_path_factory.mktemp("experiment"))), tmp_path_factory.mktemp("stored"))


@pytest.fixture
def whole(stored, tmp_path):
    return shutil.copytree(stored[0], tmp_path / "whole")


@pytest.fixture
def half(stored, tmp_path):
    return shutil.copytree(stored[1], tmp_path / "half")


def same(found, ds):
    """Bit-equal values of all variables, coordinates among the coordinates."""
    assert set(found.coords) == set(ds.coords)
    assert set(found.data_vars) == set(ds.data_vars)
    for name in ds.variables:
        assert found[name].dims == ds[name].dims
        assert {k: v for k, v in found[name].attrs.items() if k != "_FillValue"} == ds[name].attrs
        if ds[name].dtype.kind == "f":
            assert found[name].dtype == ds[name].dtype
            assert found[name].values.tobytes() == ds[name].values.tobytes()
        else:
            np.testing.assert_array_equal(found[name].values, ds[name].values)


def test_export_comes_back_equal(whole, half, tmp_path, capsys):
    status, out, _ = run(capsys, "export", tmp_path, "--format", "netcdf")
    assert status == 0
    lines = out.splitlines()
    assert re.fullmatch(rf"{half / 'results.nc'}: \S+ kB, {RUNS} runs; 18 of {RUNS} runs not run: status -1", lines[0])
    assert re.fullmatch(rf"{whole / 'results.nc'}: \S+ kB, {RUNS} runs", lines[1])
    for path in (whole, half):
        ds = js.open_results(path)
        with xr.open_dataset(path / "results.nc") as found:
            same(found, ds)
            assert found["status"].dtype == np.int8
            assert json.loads(found.attrs["manifest"]) == json.loads((path / "manifest.json").read_text())
    assert run(capsys, "export", whole, "--format", "netcdf")[0] == 0  # over an earlier export
    assert run(capsys, "export", whole, "--format", "netcdf", "--out", tmp_path / "mine.nc")[0] == 0
    assert (tmp_path / "mine.nc").read_bytes() == (whole / "results.nc").read_bytes()
    assert not list(tmp_path.rglob("*.partial"))
    assert run(capsys, "verify", whole)[0] == 0


def test_export_converts_what_netcdf_cannot_hold_and_refuses_what_it_would_change():
    held = {
        name: netcdf._representable(name, xr.DataArray(np.array(values, dtype)))
        for name, values, dtype in [
            ("small", [1, 2], "int64"), ("wide", [2**40], "int64"), ("bytes", [255], "uint8"), ("half", [0.5], "f2"),
        ]
    }  # fmt: skip
    assert {k: str(v.dtype) for k, v in held.items()} == {
        "small": "int32", "wide": "float64", "bytes": "int32", "half": "float32",
    }  # fmt: skip
    assert held["wide"].item() == 2**40
    for values, message in (([2**60], r"mine holds integers beyond 2\^53"), ([1j], "mine is of dtype complex128")):
        with pytest.raises(ValueError, match=message):
            netcdf._representable("mine", xr.DataArray(values))


def test_export_refuses_and_leaves_everything_as_it_is(whole, half, tmp_path, capsys, monkeypatch):
    command = ["export", whole, "--format", "netcdf"]
    refused(capsys, "--out FILE is for one results directory", "export", tmp_path, *command[2:], "--out", "x.nc")
    refused(capsys, "invalid choice: 'hdf'", "export", whole, "--format", "hdf")
    refused(capsys, "cannot be written: No such file or directory", *command, "--out", tmp_path / "no" / "x.nc")
    ds = xr.Dataset({"a": 1.0})
    ds.to_netcdf(tmp_path / "other.nc", engine="scipy")
    (tmp_path / "thesis.tex").write_text("mine")
    before = files(tmp_path)
    for file in ("other.nc", "thesis.tex"):
        refused(capsys, "is not a file that jaxsign export has made", *command, "--out", tmp_path / file)
    monkeypatch.setattr(netcdf, "NETCDF_BYTES", 1000)
    refused(capsys, "residual takes 2.3 kB, and a variable of a netCDF 3 file at most 1.0 kB", *command)
    assert files(tmp_path) == before
    monkeypatch.undo()
    flip(chunks(whole, "train_loss")[0])
    refused(capsys, f"{chunks(whole, 'train_loss')[0]} is damaged", *command, status=3)
    refused(capsys, f"{chunks(whole, 'train_loss')[0]} is damaged", "claims", whole, status=3)

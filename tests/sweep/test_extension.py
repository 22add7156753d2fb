"""A stored sweep may be extended: what is stored stays bit for bit, the whole is as if it had been run at once."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import optax
import pytest
import test_results as tr
from kept import kept_programs

import jaxsign as js
from jaxsign.store import locks, results
from jaxsign.sweep import sizes
from jaxsign.sweep.groups import make_groups
from jaxsign.sweep.identity.definition import content_hash, definition

keeping = kept_programs(tr.__name__, __name__)
LANES = {"lane_width": 2}
#: The same in calls of few runs, whose records go to disk two at a time.
LITTLE = {"lane_width": 2, "memory": 300}


def rates(*values):
    return js.grid(optax.sgd, learning_rate=list(values))


GD = {"gd": rates(0.01, 0.02)}


def sweep(optimizers=GD, slope=(1.0, 3.0), n=(4,), seed=(3, 1), **changes):
    """A grid of 8 runs; residuals are as long as n."""
    axes = {"slope": list(slope), "n": list(n), "seed": list(seed)}
    return tr.sweep(axes=axes, optimizers=optimizers, **changes)


@pytest.fixture
def blocks_of(monkeypatch):
    return lambda runs: monkeypatch.setattr(sizes, "BLOCK_RUNS", runs)


@pytest.fixture
def counted(monkeypatch):
    """How many runs are written to a store, as a list of one entry a block."""
    out, write = [], results.Store.write

    def counting(self, name, box, values, mine, records=None):
        if name == "status":
            out.append(int(mine.sum()))
        write(self, name, box, values, mine, records)

    monkeypatch.setattr(results.Store, "write", counting)
    return out


FRESH = {}


def fresh(made):
    """The same definition run at once, in memory."""
    name = content_hash(definition(made))
    if name not in FRESH:
        FRESH[name] = tr.values(js.run_sweep(made, **LANES))
    return FRESH[name]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """{little memory or not: (directory of a finished sweep of 8 runs in blocks of 2, its Dataset)}."""
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "BLOCK_RUNS", 3)
        for limits in (LANES, LITTLE):
            path = tmp_path_factory.mktemp("original")
            out["memory" in limits] = path, tr.values(js.run_sweep(sweep(), path, **limits))
    return out


@pytest.fixture
def original(originals, tmp_path, monkeypatch):
    """`original(limits)`: a copy of the directory, and the Dataset."""
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 3)

    def copied(limits=LANES):
        path, ds = originals["memory" in limits]
        return shutil.copytree(path, tmp_path / "copy"), ds

    return copied


def stays(old, new):
    """Every number of a Dataset is in a larger one under the same labels, bit for bit, and NaN beyond its own sizes."""
    dims = old["status"].dims
    where = {dim: [new[dim].values.tolist().index(label) for label in old[dim].values.tolist()] for dim in dims}
    for name in old.data_vars:
        part = new[name].isel(where)
        own = {dim: slice(size) for dim, size in old[name].sizes.items() if dim not in dims}
        assert part.isel(own).dims == old[name].dims
        assert part.isel(own).dtype == old[name].dtype
        assert part.isel(own).values.tobytes() == old[name].values.tobytes()
        for dim, size in own.items():
            assert part.isel({dim: slice(size.stop, None)}).isnull().all()


EXTENSIONS = {
    "a seed": {"seed": (3, 1, 5)},
    "seeds in front and between": {"seed": (8, 3, 0, 1, 2)},
    "a mapped value": {"slope": (1.0, 3.0, 4.0)},
    "mapped values in front and between": {"slope": (0.5, 1.0, 2.0, 3.0)},
    "a smaller static value": {"n": (4, 2)},
    "larger and smaller static values": {"n": (6, 4, 2)},
    "another order": {"slope": (3.0, 1.0), "seed": (1, 3), "optimizers": {"gd": rates(0.02, 0.01)}},
    "another optimizer": {"optimizers": {**GD, "mine": optax.sgd(0.03)}},
    "another optimizer in front": {"optimizers": {"adam": js.grid(optax.adam, learning_rate=[0.1]), **GD}},
    "a rate between": {"optimizers": {"gd": rates(0.01, 0.015, 0.02)}},
    "several at once": {
        "optimizers": {"mine": optax.sgd(0.03), "gd": rates(0.02, 1e30, 0.01)},
        "slope": (3.0, 2.0, 1.0), "n": (3, 4), "seed": (0, 1, 2, 3),
    },
}  # fmt: skip
SEVERAL, LONGER = EXTENSIONS["several at once"], EXTENSIONS["larger and smaller static values"]
CASES = [pytest.param(changes, LANES, id=name) for name, changes in EXTENSIONS.items()]
CASES += [pytest.param(EXTENSIONS[name], LITTLE, id=f"{name}, little memory") for name in (
    "seeds in front and between", "larger and smaller static values", "several at once",
)]  # fmt: skip


@pytest.mark.parametrize(("changes", "limits"), CASES)
def test_an_extended_sweep_is_a_fresh_one_and_what_was_stored_stays(original, counted, changes, limits):
    path, old = original(limits)
    large = sweep(**changes)
    new = js.run_sweep(large, path, **limits)
    assert sum(counted) == large.size - sweep().size  # no run twice
    stays(old, tr.values(new))
    assert tr.values(new).identical(fresh(large))
    manifest = json.loads(new.attrs["manifest"])
    assert manifest["runs"]["total"] == large.size
    assert manifest["runs"]["not_run"] == 0
    assert len(manifest["sessions"]) == 2


def test_a_sweep_is_extended_several_times_in_a_row(tmp_path, blocks_of, counted):
    blocks_of(4)
    steps = [
        {"seed": (1,), "slope": (2.0,), "n": (3,)},
        {"seed": (1, 2), "slope": (2.0,), "n": (3,)},
        {"seed": (2, 0, 1), "slope": (3.0, 2.0), "n": (3,)},
        {"seed": (2, 0, 1), "slope": (3.0, 2.0), "n": (6, 3)},
        {"seed": (0, 1, 2, 7), "slope": (1.0, 2.0, 3.0), "n": (3, 4, 6), "optimizers": {"mine": optax.sgd(0.03), **GD}},
    ]  # fmt: skip
    for changes in steps:
        last = sweep(**changes)
        ds = js.run_sweep(last, tmp_path, **LANES)
    assert tr.values(ds).identical(fresh(last))
    assert sum(counted) == last.size
    assert len(json.loads(ds.attrs["manifest"])["sessions"]) == len(steps)


def test_the_directory_keeps_its_lane_width_and_blocks(original, blocks_of, capsys):
    path, _ = original(LITTLE)
    before = json.loads(js.open_results(path).attrs["manifest"])["plan"]
    blocks_of(64)
    large = sweep(seed=(3, 1, 5, 7), slope=(1.0, 2.0, 3.0))
    new = js.run_sweep(large, path, lane_width=5)  # asked for in vain: another width rounds differently
    assert "lane_width=5 is for new groups only: this sweep was begun with lanes of [2]" in capsys.readouterr().err
    after = json.loads(new.attrs["manifest"])["plan"]
    assert {k: after[k] for k in ("block", "runs", "records")} == {k: before[k] for k in ("block", "runs", "records")}
    assert after["records"] == 2
    assert {group["lane_width"] for group in after["groups"]} == {2}
    assert tr.values(new).identical(fresh(large))


@pytest.mark.parametrize("own", [{}, {"keep_trace": False}], ids=["trace", "summary only"])
def test_summaries_are_extended_too(tmp_path, blocks_of, own):
    blocks_of(3)
    changes = {"seed": (0, 3, 1), "slope": (1.0, 2.0, 3.0), "optimizers": {"gd": rates(0.02, 1e30, 0.01)}}
    made = [sweep(summary=last_loss, **own, **changes) for changes in ({}, changes)]
    old = tr.values(js.run_sweep(made[0], tmp_path, **LANES))
    new = tr.values(js.run_sweep(made[1], tmp_path, **LANES))
    stays(old, new)
    assert new.identical(fresh(made[1]))


def last_loss(trace):
    return {"last": trace["train_loss"][-1]}


def test_observables_that_get_longer_keep_what_is_stored(original, counted):
    path, old = original()
    assert old["residual"].sizes["sample"] == 4
    for n in ((4, 5), (7, 4, 5)):
        new = js.run_sweep(sweep(n=n), path, **LANES)
        assert new["residual"].sizes["sample"] == max(n)
        assert new["sample"].values.tolist() == list(range(max(n)))
        stays(old, tr.values(new))
        assert new["residual"].attrs["padded"] == "padded with NaN to the longest value of a static axis"
    assert sum(counted) == 2 * sweep().size  # no run twice
    assert tr.values(new).identical(fresh(sweep(n=n)))


def test_a_finished_extension_is_loaded_and_says_so(original, capsys):
    path, _ = original()
    new = js.run_sweep(sweep(seed=(0, 3, 1)), path, **LANES)
    before = tr.files(path)
    capsys.readouterr()
    again = js.run_sweep(sweep(seed=(0, 3, 1)), path)
    assert capsys.readouterr().err == f"{path}: finished before, loaded\n"
    assert again.identical(new)
    assert tr.files(path) == before


OTHER = {
    "steps": ({"steps": 8}, "steps: 6 -> 8"),
    "record": ({"record": 3}, "record: [0, 2, 4, 6] -> [0, 3, 6]"),
    "hyper": ({"hyper": {"slope": 1.0, "tilt": 0.25}}, "hyper.tilt: 0.5 -> 0.25"),
    "observables": ({"observables": ["train_loss"]}, 'observables: ["train_loss", "residual"] -> ["train_loss"]'),
    "trainable": ({"trainable": ["w"]}, 'trainable: null -> ["w"]'),
    "summary": ({"summary": last_loss}, "summary: null -> "),
    "problem": ({"problem": tr.Line(n=9)}, "problem.n: 4 -> 9"),
    "other seeds": ({"seed": (3, 2)}, "seed 1 is stored and not asked for"),
    "fewer values": ({"slope": (3.0, 4.0)}, "slope [1.0] is stored and not asked for"),
    "other static values": ({"n": (2, 3)}, "n [4] is stored and not asked for"),
    "another factory": ({"optimizers": {"gd": js.grid(js.sign_gd, learning_rate=[0.01, 0.02])}}, "optimizers.gd"),
    "another name": ({"optimizers": {"sgd": rates(0.01, 0.02)}}, "optimizers.gd"),
    "another keyword": ({"optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.01, 0.02], momentum=0.0)}}, "0.01"),
    "more and fewer": ({"seed": (3, 1, 4), "slope": (1.0, 2.0)}, "slope [3.0] is stored and not asked for"),
    "more and other": ({"seed": (3, 1, 4), "steps": 8}, "steps: 6 -> 8"),
}


@pytest.mark.parametrize(("changes", "line"), OTHER.values(), ids=OTHER)
def test_any_other_change_is_refused_and_leaves_every_byte(original, changes, line):
    path, _ = original()
    before = tr.files(path)
    with pytest.raises(ValueError, match="belongs to another definition") as caught:
        js.run_sweep(sweep(**changes), path)
    assert line in str(caught.value)
    assert f"out={str(path)!r}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tr.files(path) == before


@pytest.mark.parametrize("axes", [
    {"slope": [1.0, 3.0], "n": [4], "tilt": [0.5], "seed": [3, 1]},
    {"n": [4], "slope": [1.0, 3.0], "seed": [3, 1]},
    {"slope": [1.0, 3.0], "seed": [3, 1]},
    {("slope", "tilt"): [(1.0, 0.5), (3.0, 0.5)], "n": [4], "seed": [3, 1]},
])  # fmt: skip
def test_other_axes_are_refused_and_leave_every_byte(original, axes):
    path, _ = original()
    before = tr.files(path)
    with pytest.raises(ValueError, match="belongs to another definition: axes: "):
        js.run_sweep(dataclasses.replace(sweep(), axes=axes), path)
    assert tr.files(path) == before


class Cut(Exception):
    pass


@pytest.fixture
def cut(monkeypatch):
    """`cut(k)`: the k-th write to a store from now on fails; `cut(None)`: none does."""
    write, left = results.Store.write, itertools.count(10**9, -1)

    def failing(self, *arguments):
        nonlocal left
        if next(left) <= 0:
            raise Cut
        write(self, *arguments)

    def after(writes):
        nonlocal left
        left = itertools.count(10**9 if writes is None else writes, -1)

    monkeypatch.setattr(results.Store, "write", failing)
    return after


@pytest.mark.parametrize(("first", "changes"), [(0, SEVERAL), (9, SEVERAL), (9, LONGER)])
def test_an_unfinished_sweep_may_be_extended_and_a_cut_extension_goes_on(tmp_path, blocks_of, cut, first, changes):
    blocks_of(3)
    large = sweep(**changes)
    cut(first)
    with pytest.raises(Cut):
        js.run_sweep(sweep(), tmp_path, **LANES)
    for writes in (3, 20):  # extended, and cut off twice
        cut(writes)
        with pytest.raises(Cut):
            js.run_sweep(large, tmp_path, **LANES)
        part = js.open_results(tmp_path)
        assert part["status"].shape == large.shape
        assert (part["status"] < 0).any()
    old = tr.values(js.open_results(tmp_path))
    cut(None)
    new = tr.values(js.run_sweep(large, tmp_path, **LANES))
    assert new.identical(fresh(large))
    done = (old["status"] >= 0).values
    for name in old.data_vars:
        np.testing.assert_array_equal(new[name].values[done], old[name].values[done])


@pytest.mark.parametrize(("moved", "changes"), [(0, SEVERAL), (5, SEVERAL), (12, LONGER)])
def test_an_extension_that_is_cut_off_while_the_store_grows_goes_on(original, monkeypatch, moved, changes):
    path, old = original()
    large = sweep(**changes)
    replace, done = results.os.replace, []

    def failing(source, target, **rest):
        if ".partial" in str(source) and ".partial" not in str(target) and results.ARRAYS in str(target):
            done.append(target)  # a file of the prepared store on its way to its place
            if len(done) > moved:
                raise Cut
        replace(source, target, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(results.os, "replace", failing)
        with pytest.raises(Cut):
            js.run_sweep(large, path, **LANES)
    new = tr.values(js.run_sweep(large, path, **LANES))
    stays(old, new)
    assert new.identical(fresh(large))


@pytest.mark.parametrize(("before", "after"), [
    ({"snr": [1.0]}, {"snr": [1.0, 0.2]}),
    ({"snr": [1.0]}, {"snr": [0.2, 1.0], "seed": 3}),
    ({"s": [5], "snr": [1.0, 0.2]}, {"s": [5, 7], "snr": [1.0, 0.2]}),
    ({"mu": [1.0], "snr": [1.0, 0.2]}, {"mu": [1.0, 2.0], "snr": [1.0, 0.2]}),
], ids=["a scalar", "a scalar, and seeds", "a static axis", "an axis outside"])  # fmt: skip
def test_a_coordinate_may_vary_along_one_more_axis(problem, tmp_path, monkeypatch, before, after):
    """sigma_p follows from the SNR; its one chunk becomes a folder of chunks."""

    def made(axes):
        return js.Sweep(
            system=js.two_layer, problem=problem, hyper=js.Hyper(sigma_p=2.0), axes={"seed": 2, **axes}, steps=3,
            optimizers={"gd": js.grid(optax.sgd, learning_rate=[0.1])}, observables=["train_loss"],
        )  # fmt: skip

    old = js.run_sweep(made(before), tmp_path / "out", lane_width=2).load()
    fresh = js.run_sweep(made(after), tmp_path / "fresh", lane_width=2)
    assert fresh["sigma_p"].ndim == old["sigma_p"].ndim + 1
    # As earlier versions left it: a manifest of arrays that could not be put in their place.
    with monkeypatch.context() as broken:
        broken.setattr(results, "put_in_place", lambda path, folder: (path / "results.zarr/sigma_p/c").mkdir(0o700))
        with pytest.raises(ValueError, match="File exists"):
            js.run_sweep(made(after), tmp_path / "out", lane_width=2)
    js.run_sweep(made(after), tmp_path / "out", lane_width=2)
    new = js.open_results(tmp_path / "out")
    assert (new["status"] == 0).all()
    for name in ("sigma_p", "train_loss"):
        np.testing.assert_array_equal(new[name].reindex_like(fresh), fresh[name], err_msg=name)
    kept = {dim: old[dim].values for dim in ("snr", "s", "mu", "seed") if dim in old["train_loss"].dims}
    np.testing.assert_array_equal(new["train_loss"].sel(kept), old["train_loss"])
    assert js.run_sweep(made(before), tmp_path / "out", lane_width=2)["train_loss"].equals(old["train_loss"])


def test_checkpoints_of_what_was_cut_off_before_are_gone_in_the_end(tmp_path, blocks_of, cut):
    blocks_of(4)
    seeds, changes = (0, 1, 2), {"slope": (1.0, 2.0, 3.0, 4.0), "optimizers": {"gd": rates(0.01)}, "steps": 200}
    cut(0)
    with pytest.raises(Cut):
        js.run_sweep(sweep(seed=seeds, **changes), tmp_path, shard=(3, 4), checkpoint_every=1e-9, **LANES)
    assert (tmp_path / "checkpoints" / "block-000003").is_dir()
    cut(None)
    js.run_sweep(sweep(seed=(*seeds, 3), **changes), tmp_path, **LANES)
    assert {f.name for f in tmp_path.iterdir()} == {"locks", "manifest.copy.json", "manifest.json", "results.zarr"}


def test_damage_to_stored_runs_is_mended_on_the_way(original, capsys):
    path, _ = original()
    chunk = next(f for f in sorted((path / "results.zarr" / "residual" / "c").rglob("*")) if f.is_file())
    tr.damage(chunk)
    large = sweep(seed=(3, 1, 5), n=(4, 3))
    new = js.run_sweep(large, path, **LANES)
    assert str(chunk) in capsys.readouterr().err
    assert tr.values(new).identical(fresh(large))


def test_a_sweep_is_not_extended_while_another_shard_runs(original):
    path, _ = original()
    before = {name: file for name, file in tr.files(path).items() if not name.startswith("locks/")}
    large = sweep(seed=(3, 1, 5))
    with locks.shard_lock(path, (1, 2)) as held:
        held.works_by(json.loads((path / "manifest.json").read_text())["epoch"])
        with pytest.raises(ValueError, match="cannot be extended while others run it: shard-1-of-2: process"):
            js.run_sweep(large, path, shard=(0, 2), **LANES)
        assert {name: f for name, f in tr.files(path).items() if not name.startswith("locks/")} == before
    half = js.run_sweep(large, path, shard=(0, 2), **LANES)
    assert (half["status"] < 0).any()
    with locks.shard_lock(path, (0, 2)):  # who runs the same extension beside it is welcome
        new = js.run_sweep(large, path, shard=(1, 2), **LANES)
    assert tr.values(new).identical(fresh(large))


def auto(factory, **points):
    problem = js.Problem(n=5, d=60, s=4, m_k=3, m_v=3, n_test=8, supports="disjoint")
    return js.Sweep(
        system=js.two_layer, engine="auto", problem=problem, hyper=js.Hyper(sigma_p=2.0, sigma_0=0.05), steps=60,
        axes={"seed": 2}, observables=["train_loss", "test_loss"],
        optimizers={"mine": js.grid(factory, learning_rate=[1e-3], **points)},
    )  # fmt: skip


GROWN = pytest.mark.parametrize(
    ("factory", "few", "more"),
    [
        (js.power_gd, {"p": [0.0]}, {"p": [0.0, 0.5]}),  # reads more than signs
        (optax.adam, {"eps": [1e-30]}, {"eps": [1e-30, 1e-3]}),  # another engine
        (optax.adamw, {"eps": [1e-30], "weight_decay": [0.0]}, {"eps": [1e-30], "weight_decay": [0.0, 0.1]}),  # decays
    ],
)


@GROWN
def test_how_a_point_is_trained_does_not_depend_on_the_others(factory, few, more):
    (alone,), grown = make_groups(auto(factory, **few)), make_groups(auto(factory, **more))
    assert len(grown) == 2
    (same,) = [group for group in grown if 0 in group.optimizers]
    assert same.program_key == alone.program_key


@pytest.mark.slow
@GROWN
def test_a_new_point_does_not_change_how_the_stored_ones_are_trained(tmp_path, factory, few, more):
    js.run_sweep(auto(factory, **few), tmp_path / "out", lane_width=2)
    ds = js.run_sweep(auto(factory, **more), tmp_path / "out")
    fresh = js.run_sweep(auto(factory, **more), lane_width=2)
    for name in ("train_loss", "test_loss"):
        stored = ds[name].isel(optimizer=0)
        np.testing.assert_array_equal(stored, fresh[name].isel(optimizer=0))
        # The new point is a group of its own, whose lanes are as wide as was best when it was added.
        np.testing.assert_allclose(ds[name], fresh[name], rtol=1e-5)

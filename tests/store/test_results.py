"""Results directories: continued and mended by the same call, checked when opened, refused where they are foreign."""

import dataclasses
import errno
import functools
import json
import math
import os
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from kept import kept_programs

import jaxsign as js
from jaxsign.store import results
from jaxsign.store.results import UnusableData
from jaxsign.sweep import sizes
from jaxsign.sweep import worker as session
from jaxsign.sweep.execute import Blocks
from jaxsign.sweep.identity import definition as definitions

keeping = kept_programs(__name__)

#: What a finished results directory holds.
WHOLE = {"locks", "manifest.copy.json", "manifest.json", "results.zarr"}


@dataclasses.dataclass(frozen=True)
class Line:
    n: int = 4


@functools.cache
def system(problem):
    """Least squares on a line through points that are cheap functions of the key."""

    def residual(params, data, hyper):
        return params["w"] * data - hyper["slope"] * data

    def observe(params, data, test, hyper):
        gap = residual(params, data, hyper)
        return {"train_loss": jnp.mean(gap**2), "residual": gap}

    return js.Task(
        sample=lambda key, hyper, shared: (
            1 + jnp.arange(1.0 * problem.n) + jax.random.key_data(key)[0].astype(float) / 2.0**32
        ),
        init=lambda key, data, hyper: {"w": jnp.zeros(())},
        loss=lambda params, data, hyper: jnp.mean(residual(params, data, hyper) ** 2),
        observe=observe,
        dims={"residual": ("sample",)},
        attrs={"train_loss": {"long_name": "mean square", "units": "1"}},
        name="line",
    )


def sweep(**changes):
    base = {
        "system": system, "problem": Line(), "hyper": {"slope": 1.0, "tilt": 0.5}, "steps": 6, "record": 2,
        "optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.01, 0.02, 1e30]), "mine": optax.sgd(0.03)},
        "axes": {"slope": [1.0, 2.0, 3.0], "n": [2, 4], "seed": 5}, "observables": ["train_loss", "residual"],
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def files(path):
    return {str(f.relative_to(path)): (f.read_bytes(), f.stat().st_mtime_ns) for f in path.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(directory, the Dataset that run_sweep returned): blocks of 10 runs of a grid of 120."""
    path = tmp_path_factory.mktemp("stored") / "new" / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "BLOCK_RUNS", 10)
        return path, js.run_sweep(sweep(), out=path)


@pytest.fixture
def copy(stored, tmp_path):
    shutil.copytree(stored[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.x64
def test_stored_results_are_the_results_in_memory(stored, monkeypatch):
    path, ds = stored
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 10)
    memory = js.run_sweep(sweep())
    assert ds.drop_attrs(deep=False).identical(memory.drop_attrs(deep=False))
    assert js.open_results(str(path)).identical(ds)
    assert ds["train_loss"].attrs == {"long_name": "mean square", "units": "1"}
    assert {name: v.dtype for name, v in ds.variables.items()} == {n: v.dtype for n, v in memory.variables.items()}
    assert float(ds["tilt"]) == 0.5


def test_results_are_read_lazily(stored):
    ds = js.open_results(stored[0])
    loaded = [name for name, variable in ds.data_vars.items() if variable.variable._in_memory]
    assert loaded == []
    assert ds["train_loss"].isel(seed=0).load().dtype == stored[1]["train_loss"].dtype


def test_results_open_without_jaxsign(stored):
    path, ds = stored
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", "The data type .* does not have a Zarr V3 specification"
        )  # zarr's own strings
        plain = xr.open_zarr(path / "results.zarr")
    for name in ds.data_vars:
        assert plain[name].dims == ds[name].dims
        np.testing.assert_array_equal(plain[name], ds[name])
    for name in ("slope", "n", "optimizer", "family", "learning_rate", "seed", "step", "sample"):
        assert plain[name].values.tolist() == pytest.approx(ds[name].values.tolist(), nan_ok=True)


def test_coordinates_are_in_memory_and_select(stored):
    ds = js.open_results(stored[0])
    assert [name for name, c in ds.coords.items() if not c.variable._in_memory] == []
    family = str(ds["family"].values[-1])
    chosen = ds.isel(optimizer=ds.family == family)
    assert set(chosen["family"].values) == {family}
    assert not chosen["train_loss"].variable._in_memory
    rate = float(ds["learning_rate"].values[0])
    assert set(ds.isel(optimizer=ds.learning_rate == rate)["learning_rate"].values) == {rate}


def test_a_folder_of_results_is_a_tree(stored, tmp_path):
    for name in ("one", "inner/two"):
        shutil.copytree(stored[0], tmp_path / name)
    (tmp_path / "notes").mkdir()
    tree = js.open_results(tmp_path)
    assert {node.path for node in tree.leaves} == {"/one", "/inner/two"}
    for name in ("one", "inner/two"):
        assert tree[name].to_dataset().drop_attrs(deep=False).identical(stored[1].drop_attrs(deep=False))
    (tmp_path / "one" / "manifest.json").write_text("{}")
    (tmp_path / "one" / "manifest.copy.json").write_text("{}")
    with pytest.raises(UnusableData, match="one"):
        js.open_results(tmp_path)
    with pytest.raises(ValueError, match="out must be a results directory"):
        js.open_results(tmp_path / "notes")


def test_one_chunk_is_one_block_of_the_runner(stored):
    path, ds = stored
    block = json.loads(ds.attrs["manifest"])["plan"]["block"]
    assert block == [2, 1, 1, 5]
    for name in ds.data_vars:
        meta = json.loads((path / "results.zarr" / name / "zarr.json").read_text())
        chunk = meta["chunk_grid"]["configuration"]["chunk_shape"]
        assert chunk == [*block, *ds[name].shape[4:]]
        codec = meta["codecs"][-1]
        assert (codec["name"], codec["configuration"]["checksum"]) == ("zstd", True)
        assert meta["dimension_names"] == list(ds[name].dims)
    count = math.prod(-(-size // extent) for size, extent in zip(ds["status"].shape, block))
    for name in ds.data_vars:
        assert len([f for f in (path / "results.zarr" / name / "c").rglob("*") if f.is_file()]) == count


def test_the_manifest_says_what_ran_where(stored):
    path, ds = stored
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest == json.loads(ds.attrs["manifest"])
    assert manifest["definition"] == definitions.definition(sweep())
    assert manifest["hash"] == definitions.content_hash(manifest["definition"])
    assert {"python", "jax", "jaxlib", "optax", "orbax-checkpoint", "jaxsign", "commit"} == manifest["versions"].keys()
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["versions"]["optax"] == optax.__version__
    assert manifest["device"] == {"platform": "cpu", "kind": jax.local_devices()[0].device_kind}
    assert manifest["dtype"] == str(jnp.zeros(()).dtype)
    assert manifest["matmul_precision"] == "highest"
    assert manifest["wall_seconds"] > 0
    status = ds["status"].values
    assert (status == 1).sum() == 30  # the learning rate of 1e30, in every run
    assert manifest["runs"] == {"total": 120, "finished": 90, "diverged": 30, "not_run": 0}
    assert manifest["plan"]["devices"] == jax.local_device_count()
    assert [(g["family"], g["task"], g["optimizers"]) for g in manifest["plan"]["groups"]] == [
        ("gd", "line", 3), ("mine", "line", 1), ("gd", "line", 3), ("mine", "line", 1),
    ]  # fmt: skip
    assert list(manifest["padded"]) == ["residual"]
    # CRCs of everything but the chunks of variables, which runs write
    found = {f.relative_to(path / "results.zarr") for f in (path / "results.zarr").rglob("*") if f.is_file()}
    described = {str(f) for f in found if f.name == "zarr.json" or f.parts[0] not in ds.data_vars}
    assert len(described) > 2 * len(ds.data_vars)
    assert manifest["crc32"].keys() == described
    assert manifest["order"] == [[0, 1, 2], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    (session,) = manifest["sessions"]
    assert session.items() >= {"pid": os.getpid(), "shard": "0/1", "host": manifest["host"]}.items()
    assert session["command"] == manifest["command"] == shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    assert {f.name for f in path.iterdir()} == WHOLE


def damage(file, place=-1):
    raw = bytearray(file.read_bytes())
    raw[place] ^= 0x10
    file.write_bytes(bytes(raw))


@pytest.mark.parametrize("place", [0, 5, "middle", -5, -1])
def test_a_flipped_byte_in_a_chunk_is_never_read_as_a_number(copy, place):
    chunk = copy / "results.zarr" / "train_loss" / "c" / "0" / "0" / "0" / "0" / "0"
    damage(chunk, chunk.stat().st_size // 2 if place == "middle" else place)
    ds = js.open_results(copy)  # other chunks stay readable
    assert ds["train_loss"].isel(slope=2, n=1).notnull().any()
    with pytest.raises(UnusableData, match=r"is damaged: .*; the sweep's own command mends it") as caught:
        ds["train_loss"].load()
    assert str(chunk) in str(caught.value)


def test_a_truncated_chunk_is_never_read_as_a_number(copy):
    chunk = copy / "results.zarr" / "residual" / "c" / "0" / "1" / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(UnusableData, match="is damaged: it has no seal: the end is cut off"):
        js.open_results(copy)["residual"].load()


@pytest.mark.parametrize("file", ["zarr.json", "train_loss/zarr.json", "status/zarr.json", "seed/zarr.json"])
def test_changed_metadata_is_unusable(copy, file):
    target = copy / "results.zarr" / file
    target.write_text(target.read_text().replace('"node_type"', '"node_type" '))  # the same JSON, other bytes
    with pytest.raises(UnusableData, match=r"zarr\.json is damaged or missing") as caught:
        js.open_results(copy)
    assert str(target) in str(caught.value)
    target.unlink()
    with pytest.raises(UnusableData, match=r"zarr\.json is damaged or missing"):
        js.open_results(copy)


def test_a_broken_manifest_without_its_copy_is_unusable_and_stays_as_it_is(copy):
    file = copy / "manifest.json"
    file.write_text(file.read_text()[:-50])
    (copy / "manifest.copy.json").unlink()
    before = files(copy)
    with pytest.raises(UnusableData, match=r"manifest\.json is not a readable manifest"):
        js.open_results(copy)
    with pytest.raises(UnusableData, match=r"manifest\.json is not a readable manifest"):
        js.run_sweep(sweep(), out=copy)
    assert files(copy) == before


def test_a_finished_sweep_is_loaded_and_says_so(copy, stored, capsys, monkeypatch):
    before = files(copy)
    monkeypatch.setattr(Blocks, "run", None)  # nothing may run
    again = js.run_sweep(sweep(), out=str(copy))
    assert "finished before, loaded" in capsys.readouterr().err
    assert again.identical(stored[1])
    assert files(copy) == before


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"steps": 8}, "steps: 6 -> 8"),
        ({"hyper": {"slope": 1.0, "tilt": 0.25}}, "hyper.tilt: 0.5 -> 0.25"),
        ({"observables": ["train_loss"]}, 'observables: ["train_loss", "residual"] -> ["train_loss"]'),
        ({"optimizers": {"gd": js.grid(optax.sgd, learning_rate=0.1)}}, 'optimizers.gd {"learning_rate": 0.01}'),
    ],
)
def test_another_definition_is_refused_with_the_difference(copy, changes, line):
    before = files(copy)
    with pytest.raises(ValueError, match="belongs to another definition") as caught:
        js.run_sweep(sweep(**changes), out=copy)
    assert line in str(caught.value)
    assert str(copy) in str(caught.value)
    assert files(copy) == before


def test_out_that_cannot_hold_results_is_refused_and_untouched(tmp_path, monkeypatch):
    monkeypatch.setattr(Blocks, "run", None)  # it is refused before anything runs
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        with pytest.raises(ValueError, match=r"out must be .*directory") as caught:
            js.run_sweep(sweep(), out=out)
        assert str(file) in str(caught.value)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"out must be new, empty or a results directory.*chapter\.tex"):
        js.run_sweep(sweep(), out=foreign)
    assert {name: raw for name, (raw, _) in files(tmp_path).items()} == {"file": b"mine", "thesis/chapter.tex": b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_out_is_refused(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    for out in (locked, locked / "below" / "deep"):
        with pytest.raises(ValueError, match="out must be a writable directory"):
            js.run_sweep(sweep(), out=out)
    assert list(locked.iterdir()) == []


def test_a_directory_the_system_calls_unwritable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="out must be a writable directory") as caught:
        js.run_sweep(sweep(), out=tmp_path / "a" / "b")
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", [errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("where", ["b", "locks", "results.zarr"])
def test_a_directory_that_cannot_be_made_is_bad_input_and_leaves_nothing(tmp_path, monkeypatch, where, reason):
    monkeypatch.setattr(Blocks, "run", None)  # it is refused before anything runs
    make = os.mkdir

    def failing(path, *mode):
        if os.path.basename(path).startswith(where):
            raise OSError(reason, os.strerror(reason), str(path))
        make(path, *mode)

    monkeypatch.setattr(os, "mkdir", failing)
    with pytest.raises(ValueError, match="out must be a directory that can be made and written") as caught:
        js.run_sweep(sweep(), out=tmp_path / "a" / "b")
    assert f"out={str(tmp_path / 'a' / 'b')!r}: {os.strerror(reason)}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def small(**changes):
    axes = {"slope": [1.0, 2.0, 3.0], "seed": 2}
    return sweep(axes=axes, optimizers={"gd": js.grid(optax.sgd, learning_rate=[0.01])}, **changes)


def values(ds):
    """A Dataset without the manifest, which says when and where it was made."""
    return ds.load().drop_attrs(deep=False)


def counted_writes(monkeypatch, fail_after=math.inf, error=None):
    """The names of the variables that blocks write from now on; the write after `fail_after` raises."""
    names, write = [], results.Store.write

    def counting(self, name, *rest):
        names.append(name)
        if len(names) > fail_after:
            raise error
        write(self, name, *rest)

    monkeypatch.setattr(results.Store, "write", counting)
    return names


@pytest.mark.parametrize("error", [RuntimeError("no more memory"), KeyboardInterrupt()])
def test_a_run_that_is_cut_off_keeps_finished_blocks_and_is_continued_by_the_same_call(
    tmp_path, monkeypatch, error, capsys
):
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 2)  # three blocks
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        names = counted_writes(patch, 5, error)  # the first block has four variables
        with pytest.raises(type(error)):
            js.run_sweep(small(), out=out)
    assert len(names) == 6
    assert names[3] == "status"  # a block's last word
    ds = js.open_results(out)
    assert ds["status"].values.tolist() == [[[0, 0]], [[-1, -1]], [[-1, -1]]]
    assert ds["residual"].isel(slope=0).notnull().all()
    assert ds["residual"].isel(slope=2).isnull().all()  # the second block was under way
    assert json.loads(ds.attrs["manifest"])["runs"] == {"total": 6, "finished": 2, "diverged": 0, "not_run": 4}
    assert "4 of 6 runs are still to be run" in capsys.readouterr().err
    before = {name: file for name, file in files(out / "results.zarr").items() if name.split("/")[2:3] == ["0"]}
    assert len(before) > 4
    with monkeypatch.context() as patch:
        names = counted_writes(patch)
        again = js.run_sweep(small(), out=out)
    assert len(names) == 2 * 4
    assert files(out / "results.zarr").items() >= before.items()
    assert values(again).identical(values(js.run_sweep(small())))
    manifest = json.loads(again.attrs["manifest"])
    assert manifest["runs"] == {"total": 6, "finished": 6, "diverged": 0, "not_run": 0}
    assert len(manifest["sessions"]) == 2
    assert manifest["wall_seconds"] == pytest.approx(sum(s["seconds"] for s in manifest["sessions"]), abs=0.01)
    assert {f.name for f in out.iterdir()} == WHOLE


@pytest.mark.parametrize("moved", [0, 1, 7])
def test_a_run_that_is_cut_off_while_the_store_is_made_is_continued(tmp_path, monkeypatch, moved):
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 2)
    replace, done = os.replace, []

    def failing(source, target, **rest):
        if (
            ".partial" in str(source)
            and "results.zarr" in os.fspath(target).split(os.sep)
            and ".partial" not in str(target)
        ):
            done.append(target)  # a file of the prepared store on its way to its place
            if len(done) > moved:
                raise KeyboardInterrupt
        replace(source, target, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(KeyboardInterrupt):
            js.run_sweep(small(), out=tmp_path)
    again = js.run_sweep(small(), out=tmp_path)
    assert values(again).identical(values(js.run_sweep(small())))
    assert {f.name for f in tmp_path.iterdir()} == WHOLE


def test_leftovers_of_a_killed_run_are_removed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "results.zarr.4194305.partial" / "train_loss").mkdir(parents=True)
    (out / "results.zarr.4194305.partial" / "train_loss" / "zarr.json").write_text("{")
    (out / "manifest.json.4194305.partial").write_text("{")
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 2)
    assert js.run_sweep(small(), out=out)["train_loss"].notnull().all()
    assert {f.name for f in out.iterdir()} == WHOLE


def test_a_kill_between_the_last_run_and_the_last_word_is_put_right(tmp_path, monkeypatch):
    def killed(itself, seconds):
        raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoints" / "block-000000" / "9.json"
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "close", killed)
        with pytest.raises(KeyboardInterrupt):
            js.run_sweep(small(), out=tmp_path)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    again = js.run_sweep(small(), out=tmp_path)
    assert values(again).identical(values(js.run_sweep(small())))
    assert json.loads((tmp_path / "manifest.json").read_text())["runs"]["not_run"] == 0
    assert {f.name for f in tmp_path.iterdir()} == WHOLE


def test_arrays_without_a_manifest_are_refused_and_untouched(copy):
    (copy / "manifest.json").unlink()
    (copy / "manifest.copy.json").unlink()
    before = files(copy)
    with pytest.raises(ValueError, match=r"holds results\.zarr without manifest\.json.*put it back") as caught:
        js.run_sweep(sweep(), out=copy)
    assert str(copy) in str(caught.value)
    assert files(copy) == before


def flipped(file):
    damage(file, file.stat().st_size // 2)


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def emptied(file):
    file.write_bytes(b"")


def removed(file):
    file.unlink()


#: A block of the largest slope and the smaller n.
PLACE = ("c", "1", "0", "2", "0")


@pytest.mark.parametrize("harm", [flipped, cut, emptied, removed])
@pytest.mark.parametrize("name", ["train_loss", "residual", "first_bad_step", "status"])
def test_a_damaged_chunk_is_mended_by_the_same_call(copy, stored, monkeypatch, capsys, name, harm):
    own = 2 if name == "residual" else 1 if name == "train_loss" else 0
    file = (copy / "results.zarr" / name).joinpath(*PLACE, *["0"] * own)
    before = files(copy / "results.zarr")
    harm(file)
    names = counted_writes(monkeypatch)
    again = js.run_sweep(sweep(), out=copy)
    assert values(again).identical(values(stored[1]))
    assert sorted(names) == ["first_bad_step", "residual", "status", "train_loss"]  # one block
    after = files(copy / "results.zarr")
    touched = {path for path in before if after[path] != before[path]}
    assert touched == {path for path in before if path.split("/")[1:6] == list(PLACE)}
    assert {path: raw for path, (raw, _) in after.items()} == {path: raw for path, (raw, _) in before.items()}
    words = capsys.readouterr().err
    assert str(file) in words
    assert "its block is run again" in words


@pytest.mark.parametrize("harm", [flipped, cut, removed])
@pytest.mark.parametrize("file", ["zarr.json", "train_loss/zarr.json", "status/zarr.json", "seed/zarr.json"])
def test_damaged_metadata_are_mended_by_the_same_call_and_no_run_is_repeated(copy, stored, monkeypatch, file, harm):
    before = files(copy / "results.zarr")
    harm(copy / "results.zarr" / file)
    names = counted_writes(monkeypatch)
    again = js.run_sweep(sweep(), out=copy)
    assert values(again).identical(values(stored[1]))
    assert names == []
    assert {f: raw for f, (raw, _) in files(copy / "results.zarr").items()} == {
        f: raw for f, (raw, _) in before.items()
    }


@pytest.mark.parametrize("harm", [flipped, cut, removed])
@pytest.mark.parametrize("name", ["seed", "slope", "learning_rate", "optimizer", "step"])
def test_damaged_coordinates_are_unusable_and_mended_by_the_same_call(copy, stored, monkeypatch, name, harm):
    harm(copy / "results.zarr" / name / "c" / "0")
    with pytest.raises(Exception, match=r"(?i)checksum|decompress|frame|zstd|corrupt|damaged|missing|chunks"):
        js.open_results(copy).load()
    names = counted_writes(monkeypatch)
    assert values(js.run_sweep(sweep(), out=copy)).identical(values(stored[1]))
    assert names == []


def test_an_observed_lambda_is_refused_on_disk_and_welcome_in_memory(tmp_path):
    made = small(observables=["train_loss", lambda params, data, test, hyper: params["w"]])
    with pytest.raises(ValueError, match=r"observables is a lambda.*def"):
        js.run_sweep(made, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    ds = js.run_sweep(made)
    assert (ds["status"] == 0).all()
    assert "observables is a lambda" in json.loads(ds.attrs["manifest"])["definition"]["not_storable"]


def test_a_lambda_without_a_name_of_its_own_in_the_results_is_stored(tmp_path):
    made = small(summary=lambda trace: {"last": trace["train_loss"][-1]})
    ds = js.run_sweep(made, out=tmp_path / "out")
    np.testing.assert_array_equal(ds["last"], ds["train_loss"].isel(step=-1))


def test_open_results_wants_a_results_directory(tmp_path, copy):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(
            ValueError, match=r"out must be a results directory with manifest\.json and results\.zarr"
        ) as e:
            js.open_results(path)
        assert str(path) in str(e.value)
    shutil.rmtree(copy / "results.zarr")
    with pytest.raises(ValueError, match="out must be a results directory"):
        js.open_results(copy)


def test_a_directory_removed_under_a_sweep_ends_in_one_line(tmp_path, monkeypatch):
    def swept_away(self, missing, stop, progress):
        (self.path / "manifest.json").unlink()
        (self.path / "manifest.copy.json").unlink()

    monkeypatch.setattr(session.Session, "run", swept_away)
    with pytest.raises(UnusableData, match=r"lost its manifest\.json while this process ran: start it again"):
        js.run_sweep(small(), out=tmp_path / "out")


@pytest.mark.parametrize("name", ["seed", "learning_rate", "slope", "step", "n"])
def test_a_flipped_byte_of_a_coordinate_is_never_a_number(copy, monkeypatch, name):
    monkeypatch.setattr(results, "RETRY_AFTER", 0.0)  # no sweep is under way that would write meanwhile
    file = copy / "results.zarr" / name / "c" / "0"
    good = js.open_results(copy)[name].values
    raw = file.read_bytes()
    for place in range(len(raw)):
        file.write_bytes(raw)
        damage(file, place)
        try:
            read = js.open_results(copy)[name].values
        except (ValueError, UnusableData):
            continue
        np.testing.assert_array_equal(read, good)


def test_a_missing_chunk_of_finished_runs_is_an_error(copy):
    (copy / "results.zarr" / "train_loss" / "c" / "0" / "0" / "0" / "0" / "0").unlink()
    with pytest.raises(UnusableData):
        js.open_results(copy)["train_loss"].load()


@pytest.mark.parametrize("text", ['{"name": "webapp"}', "[1]"])
def test_a_manifest_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises((ValueError, UnusableData)):
        js.run_sweep(small(), out=tmp_path)


def test_a_sweep_runs_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert (js.run_sweep(small())["status"] == 0).all()


@pytest.mark.parametrize("changes", [{"observables": ["trainloss"]}, {"trainable": ["v"]}])
def test_a_refused_sweep_leaves_no_directory(tmp_path, changes):
    with pytest.raises(ValueError):
        js.run_sweep(dataclasses.replace(small(), **changes), out=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []

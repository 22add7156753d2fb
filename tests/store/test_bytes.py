"""Bytes that are not those written here, misplaced, foreign, lost, unreadable or too large, are never numbers."""

import builtins
import contextlib
import gzip
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import test_faults as tf
import test_results as tr
from kept import kept_programs

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.store import checkpoints, results, trajectory
from jaxsign.store.binding import binding_at, frame_size
from jaxsign.store.manifest import UnusableData, checksum, read_manifest, write_manifest
from jaxsign.sweep import sizes
from jaxsign.sweep.execute import Blocks

keeping = kept_programs(tf.__name__, tr.__name__)

#: A zstd frame whose header says that 10 GB follow.
BOMB = b"\x28\xb5\x2f\xfd\xe4" + struct.pack("<Q", 10 << 30) + b"\x01\x00\x00"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(directory of three blocks of two runs, its numbers)."""
    path = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "BLOCK_RUNS", 2)
        return path, tr.values(js.run_sweep(tr.small(), out=path))


@pytest.fixture
def copy(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 2)
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A directory with trajectories: 8 runs in units of two, seven segments each."""
    path = tmp_path_factory.mktemp("kept") / "out"
    js.run_sweep(signs(), path, lane_width=2, memory=12_000)
    return path


def signs(**changes):
    base = {"steps": 400, "record": 50, "axes": {"goal": [0.5, 1.0], "seed": 2}}
    return tf.sweep(**(base | changes))


def chunk(path, name, block=0):
    return next(f for f in sorted((path / "results.zarr" / name / "c" / str(block)).rglob("*")) if f.is_file())


def swap(one, other):
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


def as_before(path):
    """Makes a directory what a version without ids and seals would have left."""
    for file in path.glob("results.zarr/*/c/**/*"):
        if file.is_file() and b"jaxsign1" in file.read_bytes():
            file.write_bytes(file.read_bytes()[:-32])
    stored = read_manifest(path)
    later = ("id", "epoch", "lineage", "sealed", "stored_blocks")
    write_manifest(path, {k: v for k, v in stored.items() if k not in later})


def params(path, made=None, step=390):
    return [np.asarray(run.params(step)["w"]).tobytes() for run in js.open_trajectory(path, made or signs())]


def verdict(capsys, path):
    """(exit status of verify, what it said)."""
    capsys.readouterr()
    status = cli.main(["verify", str(path)])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("name", ["train_loss", "residual", "first_bad_step", "status"])
def test_swapped_chunks_are_damage_and_mended(copy, made, capsys, name):
    first, second = chunk(copy, name, 0), chunk(copy, name, 1)
    swap(first, second)
    status, words = verdict(capsys, copy)
    assert status == 1
    for file in (first, second):
        assert f"{file} is damaged: its seal does not fit" in words
    with pytest.raises(UnusableData, match="the sweep's own command mends it") as caught:
        js.open_results(copy)[name].isel(slope=1).load()
    assert name in str(caught.value)
    assert tr.values(js.run_sweep(tr.small(), out=copy)).identical(made[1])
    assert verdict(capsys, copy)[0] == 0


def test_chunks_of_another_variable_or_directory_are_damage(copy, capsys, tmp_path, monkeypatch):
    other = tmp_path / "other"
    js.run_sweep(tr.small(), out=other)
    assert chunk(other, "residual").read_bytes()[:-32] == chunk(copy, "residual").read_bytes()[:-32]  # the same numbers
    shutil.copy(chunk(other, "residual"), chunk(copy, "residual"))
    assert "its seal does not fit" in verdict(capsys, copy)[1]
    with pytest.raises(UnusableData, match="its seal does not fit"):
        js.open_results(copy)["residual"].isel(slope=0).load()


def test_a_chunk_of_a_sealed_directory_without_its_seal_is_damage(copy, capsys):
    file = chunk(copy, "train_loss")
    raw = file.read_bytes()
    for harmed in (raw[:-32], raw[:-1], raw[:-32] + bytes(32), raw + b"x", raw[:-32] * 2):
        file.write_bytes(harmed)
        status, words = verdict(capsys, copy)
        assert status == 1
        assert f"{file} is damaged" in words


def test_a_lost_status_is_damage_and_not_runs_that_have_not_run(copy, made, capsys):
    file = chunk(copy, "status", 1)
    file.unlink()
    status, words = verdict(capsys, copy)
    assert status == 1
    assert f"{file} is missing, although its runs are stored" in words
    with pytest.raises(UnusableData, match="is missing, although its runs are stored") as caught:
        js.open_results(copy)
    assert str(file) in str(caught.value)
    assert tr.values(js.run_sweep(tr.small(), out=copy)).identical(made[1])


def test_a_lost_status_is_still_damage_after_an_extension(copy, capsys):
    large = tr.small(steps=6)
    large = tr.sweep(axes={"slope": [1.0, 2.0, 3.0, 4.0], "seed": 3}, optimizers=dict(large.optimizers))
    js.run_sweep(large, out=copy)
    for block in (1, 3):
        file = chunk(copy, "status", block)
        before = file.read_bytes()
        file.unlink()
        assert f"{file} is missing, although its runs are stored" in verdict(capsys, copy)[1]
        file.write_bytes(before)
    assert verdict(capsys, copy)[0] == 0


def test_a_status_that_no_manifest_knows_of_reads_as_not_run(tmp_path, made, monkeypatch):
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 2)
    with monkeypatch.context() as patch:
        tr.counted_writes(patch, 5, KeyboardInterrupt())
        patch.setattr("jaxsign.sweep.worker.Session.close", lambda itself, seconds: None)  # as SIGKILL does
        with pytest.raises(KeyboardInterrupt):
            js.run_sweep(tr.small(), out=tmp_path)
    assert js.open_results(tmp_path)["status"].values.ravel().tolist() == [0, 0, -1, -1, -1, -1]
    chunk(tmp_path, "status", 0).unlink()
    assert (js.open_results(tmp_path)["status"] == -1).all()
    assert tr.values(js.run_sweep(tr.small(), out=tmp_path)).identical(made[1])


def test_a_directory_of_before_keeps_its_chunks_and_gets_seals_where_it_grows(copy, made, capsys):
    as_before(copy)
    assert tr.values(js.open_results(copy)).identical(made[1])
    assert verdict(capsys, copy)[0] == 0
    tr.damage(chunk(copy, "residual"), 20)
    with pytest.raises(UnusableData, match=r"is damaged.*the sweep's own command mends it"):
        js.open_results(copy)["residual"].load()
    assert tr.values(js.run_sweep(tr.small(), out=copy)).identical(made[1])
    large = tr.sweep(axes={"slope": [1.0, 2.0, 3.0, 4.0, 5.0], "seed": 2}, optimizers=dict(tr.small().optimizers))
    js.run_sweep(large, out=copy)
    assert b"jaxsign1" not in chunk(copy, "residual", 0).read_bytes()
    assert verdict(capsys, copy)[0] == 0
    swap(chunk(copy, "residual", 3), chunk(copy, "residual", 4))
    assert verdict(capsys, copy)[1].count("its seal does not fit") == 2
    assert (js.run_sweep(large, out=copy)["status"] == 0).all()
    assert verdict(capsys, copy)[0] == 0


@pytest.mark.parametrize("way", ["values", "isel", "dask", "pickle"])
@pytest.mark.parametrize("harm", ["moved", "removed", "replaced", "chunk removed", "chunk flipped"])
def test_what_happens_to_an_open_directory_is_an_error_and_never_nan(copy, made, tmp_path, way, harm):
    ds = js.open_results(copy)
    if way == "dask":
        pytest.importorskip("dask")
        ds = ds.chunk()
    if way == "pickle":
        ds = pickle.loads(pickle.dumps(ds))
    if harm == "moved":
        copy.rename(tmp_path / "elsewhere")
    elif harm == "removed":
        shutil.rmtree(copy)
    elif harm == "replaced":
        copy.rename(tmp_path / "elsewhere")
        js.run_sweep(tr.small(), out=copy)
    elif harm == "chunk removed":
        chunk(copy, "train_loss").unlink()
    else:
        tr.damage(chunk(copy, "train_loss"))
    with pytest.raises(UnusableData) as caught:
        _ = (ds["train_loss"].isel(slope=0, seed=[1]) if way == "isel" else ds["train_loss"]).values
    assert "results.zarr" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_a_chunk_is_checked_like_the_whole(copy):
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    variables = results.stored_variables(copy)
    store = results.Store(copy, variables, mode="r").arrays["status"].store
    file = chunk(copy, "train_loss")
    raw, key = file.read_bytes(), str(file.relative_to(copy / "results.zarr"))
    asked = [RangeByteRequest(2, 9), OffsetByteRequest(5), SuffixByteRequest(4), None]
    wanted = [raw[2:9], raw[5:], raw[-4:], raw]
    buffers = default_buffer_prototype()
    assert [sync(store.get(key, buffers, part)).to_bytes() for part in asked] == wanted
    found = sync(store.get_partial_values(buffers, [(key, part) for part in asked]))
    assert [part.to_bytes() for part in found] == wanted
    tr.damage(file)
    for part in asked:
        with pytest.raises(UnusableData, match="its seal does not fit"):
            sync(store.get(key, buffers, part))


@pytest.mark.parametrize("name", ["train_loss", "status"])
def test_a_chunk_that_the_system_refuses_to_read_is_not_called_damaged_and_not_run_again(
    copy, capsys, monkeypatch, name
):
    file, read = chunk(copy, name), Path.read_bytes

    def refusing(path):
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    line = f"{file} cannot be read: Permission denied"
    status, words = verdict(capsys, copy)
    assert status == 1
    assert line in words
    assert f"{file} is damaged" not in words
    with pytest.raises(UnusableData) as caught:
        js.open_results(copy).load()
    assert str(caught.value) == line
    monkeypatch.setattr(Blocks, "run", None)
    with pytest.raises(UnusableData) as caught:
        js.run_sweep(tr.small(), out=copy)
    assert str(caught.value) == line


def test_memory_that_runs_out_is_not_damage(copy, monkeypatch):
    file, read = chunk(copy, "train_loss"), Path.read_bytes

    def full(path):
        if path == file:
            raise MemoryError
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", full)
    for use in (lambda: js.open_results(copy).load(), lambda: cli.main(["verify", str(copy)])):
        with pytest.raises(MemoryError):
            use()


def test_a_cut_while_a_damaged_block_is_run_again_leaves_nothing_that_counts_as_stored(copy, made, monkeypatch, capsys):
    tr.damage(chunk(copy, "residual", 1))
    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "run", lambda *rest: builtins.exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            js.run_sweep(tr.small(), out=copy)
    ds = js.open_results(copy).load()
    assert ds["status"].values.tolist() == [[[0, 0]], [[-1, -1]], [[0, 0]]]
    assert f"{copy}: incomplete: " in verdict(capsys, copy)[1]  # beside the sweep, too: nothing is damaged any more
    assert ds["residual"].isel(slope=1).isnull().all()
    # It may be filled in parts: what is lost or damaged is no longer read for the other runs' sake.
    store = results.Store(copy, results.stored_variables(copy))
    box, first = results.blocks((3, 1, 2), (1, 1, 2))[1], np.array([[[True, False]]])
    store.write("residual", box, np.zeros((1, 4, 4)), first, slice(0, 4))
    assert tr.values(js.run_sweep(tr.small(), out=copy)).identical(made[1])


def test_chunks_are_on_the_disk_before_their_status_and_that_before_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "BLOCK_RUNS", 2)
    synced, sync, replace = set(), os.fsync, Path.replace

    def fsync(handle):
        sync(handle)
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))

    def moved(itself, target):
        out = tmp_path / "results.zarr"
        if Path(target).is_relative_to(out / "status" / "c"):
            block = Path(target).relative_to(out / "status" / "c")
            for name in ("train_loss", "residual", "first_bad_step"):
                files = [f for f in (out / name / "c" / block).parent.rglob("*") if f.is_file()]
                assert files
                assert {*map(str, files), *(str(f.parent) for f in files)} <= synced
        return replace(itself, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", moved)
    js.run_sweep(tr.small(), out=tmp_path)
    assert {str(f) for f in (tmp_path / "results.zarr").rglob("*") if f.is_file()} <= synced


def test_segments_are_on_the_disk_before_the_index_or_checkpoint_that_counts_on_them(tmp_path, monkeypatch):
    synced, sync, write = set(), os.fsync, trajectory.write_checked_json

    def fsync(handle):
        sync(handle)
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))

    def written(file, record):
        counted_on = list(file.parent.glob("*.segment"))
        if file.parent.parent.name == "checkpoints":
            unit = f"unit-{file.parent.name.removeprefix('block-')}-*"
            counted_on = [*tmp_path.glob(f"trajectories/{unit}/*.segment"), *file.with_suffix("").rglob("*")]
            saved.append(file)
            assert len(counted_on) > 2
        assert {str(f) for f in counted_on if f.is_file()} <= synced
        write(file, record)

    saved = []
    monkeypatch.setattr(os, "fsync", fsync)
    for module in (trajectory, checkpoints):
        monkeypatch.setattr(module, "write_checked_json", written)
    js.run_sweep(signs(), tmp_path, lane_width=2, memory=12_000, checkpoint_every=1e-3)
    assert saved


def test_a_copied_swapped_renamed_or_foreign_segment_is_damage_and_mended(kept, tmp_path, capsys):
    right = params(kept)

    def units(path):
        return sorted((path / "trajectories").iterdir())

    def copied(path):
        files = sorted(units(path)[0].glob("*.segment"))
        shutil.copy(files[0], files[-2])

    def swapped(path):
        swap(*(sorted(unit.glob("*.segment"))[1] for unit in units(path)[:2]))

    def indexes(path):
        swap(*(unit / "runs.json" for unit in units(path)[:2]))

    def renamed(path):
        units(path)[0].rename(units(path)[0].with_name("unit-000000-0123456789ab"))

    def foreign(path):
        js.run_sweep(signs(), tmp_path / "other", lane_width=2, memory=12_000)
        for mine, other in zip(units(path), units(tmp_path / "other")):
            shutil.copy(sorted(other.glob("*.segment"))[1], sorted(mine.glob("*.segment"))[1])

    def longer(path):  # of the same unit, but an earlier try, whose calls had other lengths
        unit = units(path)[0]
        first, second = (trajectory.read_segment(f, binding_at(path)) for f in sorted(unit.glob("*.segment"))[:2])
        records = [trajectory.read_record(first, run) for run in range(len(first.records))]
        words = binding_at(path).words(unit=unit.name)
        trajectory.write_segment(unit, first.start, second.stop, first.keyframe, records, words)

    for harm in (copied, swapped, indexes, renamed, foreign, longer):
        path = tmp_path / harm.__name__
        shutil.copytree(kept, path)
        harm(path)
        assert verdict(capsys, path)[0] == 1, harm
        with pytest.raises(UnusableData, match="the sweep's own command"):
            params(path)
        js.run_sweep(signs(), path)
        assert verdict(capsys, path)[0] == 0, harm
        assert params(path) == right


def test_trajectories_that_another_definition_left_are_neither_read_nor_deleted(kept, tmp_path):
    path = Path(shutil.copytree(kept, tmp_path / "again"))
    left = {f: f.read_bytes() for f in (path / "trajectories").rglob("*") if f.is_file()}
    (path / "manifest.json").unlink()
    shutil.rmtree(path / "results.zarr")
    other = signs(hyper={"goal": 1.0}, optimizers={"s": js.grid(js.sign_gd, learning_rate=[2e-3, 5e-3])})
    with pytest.raises(ValueError, match=r"with 'trajectories/unit-.* move it away or choose another directory"):
        js.run_sweep(other, path, lane_width=2, memory=12_000)
    assert {f: f.read_bytes() for f in left} == left
    # Put into a directory of that other definition, they are not of its results.
    js.run_sweep(other, tmp_path / "alone", lane_width=2, memory=12_000)
    expect = params(tmp_path / "alone", other)
    for unit in (path / "trajectories").iterdir():
        shutil.copytree(unit, tmp_path / "alone" / "trajectories" / unit.name)
    assert params(tmp_path / "alone", other) == expect
    js.run_sweep(other, tmp_path / "alone", lane_width=2, memory=12_000)
    assert params(tmp_path / "alone", other) == expect
    copied = [tmp_path / "alone" / file.relative_to(path) for file in left]
    assert {f: f.read_bytes() for f in copied} == dict(zip(copied, left.values()))


def test_a_damaged_record_is_mended_and_every_copy_that_is_left_is_whole(kept, tmp_path, capsys):
    right = params(kept)
    path = Path(shutil.copytree(kept, tmp_path / "copy"))
    unit = next(trajectory.units(path))
    segment = unit.segments[2]
    offset, length, _ = segment.records[1]
    raw = bytearray(segment.file.read_bytes())
    raw[offset + length // 2] ^= 1
    segment.file.write_bytes(raw)
    with pytest.raises(UnusableData, match=r"record 1 does not have the CRC.*the sweep's own command mends it"):
        params(path)
    js.run_sweep(signs(), path)
    assert verdict(capsys, path)[0] == 0
    assert params(path) == right
    js.replay(js.open_trajectory(path, signs()), ["train_loss"], record=100)
    held = [place for unit in trajectory.units(path) for place in unit.places().values()]
    assert len(held) == len(set(held)) == 8
    # Beside a whole copy, a damaged one is passed over, whatever its name is.
    for unit in [unit for unit in trajectory.units(path) if len(unit.places()) == 2]:
        twin = unit.folder.with_name(trajectory.unit_name(999, unit.about["runs"], binding_at(path)))
        shutil.copytree(unit.folder, twin)
        for file in twin.glob("*.segment"):
            found = trajectory.read_segment(unit.folder / file.name, binding_at(path))
            records = [trajectory.read_record(found, run) for run in range(len(found.records))]
            words = binding_at(path).words(unit=twin.name)
            trajectory.write_segment(twin, found.start, found.stop, found.keyframe, records, words)
            raw = file.read_bytes()
            file.write_bytes(raw[:-3] + bytes(3))
        about = {k: v for k, v in unit.about.items() if k not in ("checksum", "segments", "finished", "unit")}
        trajectory.finish(twin, about, binding_at(path))
    assert params(path) == right
    assert verdict(capsys, path)[0] == 0


def test_records_and_chunks_that_claim_gigabytes_are_refused_before_memory_is_taken(kept, copy, tmp_path, monkeypatch):
    assert frame_size(BOMB) == 10 << 30
    path = Path(shutil.copytree(kept, tmp_path / "bomb"))
    unit = next(trajectory.units(path))
    segment, words = unit.segments[0], binding_at(path).words(unit=unit.folder.name)
    trajectory.write_segment(unit.folder, segment.start, segment.stop, segment.keyframe, [BOMB] * 2, words)
    with pytest.raises(UnusableData, match=f"says that it holds {10 << 30} bytes, expected"):
        params(path, step=5)
    as_before(copy)
    chunk(copy, "train_loss").write_bytes(BOMB)
    with pytest.raises(UnusableData, match=f"says that it holds {10 << 30} bytes, not 32"):
        js.open_results(copy)["train_loss"].load()


def test_a_gzipped_digit_file_is_read_no_further_than_it_says(tmp_path):
    file, header = tmp_path / "train-images-idx3-ubyte.gz", bytes([0, 0, 8, 3])
    sizes = b"".join(n.to_bytes(4, "big") for n in (10, 28, 28))
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(header + sizes)
        for _ in range(8):
            stream.write(bytes(1 << 24))
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as stream:
        stream.write(bytes([0, 0, 8, 1]) + (10).to_bytes(4, "big") + bytes(10))
    with pytest.raises(ValueError, match="is too long: more bytes instead of 7856"):
        js.load_digits(tmp_path)
    with gzip.open(file, "wb") as stream:  # it says 3 TB
        stream.write(header + (1 << 32 - 1).to_bytes(4, "big") * 3)
    with pytest.raises(ValueError, match=r"is truncated: .* hold .* at most"):
        js.load_digits(tmp_path)


def test_a_checkpoint_of_another_directory_or_step_is_not_used(tmp_path):
    state, about = {"w": np.arange(3.0)}, {"sweep": "a"}
    checkpoints.save(tmp_path / "block", 40, state, {**about, "directory": "1" * 32})
    assert checkpoints.load(tmp_path / "block", state, {**about, "directory": "2" * 32}) is None
    record = json.loads((tmp_path / "block" / "40.json").read_text())
    (tmp_path / "block" / "60.json").write_text(json.dumps(record))
    shutil.copytree(tmp_path / "block" / "40", tmp_path / "block" / "60")
    assert checkpoints.load(tmp_path / "block", state, {**about, "directory": "1" * 32})[0] == 40


def test_copies_of_a_directory_that_were_extended_apart_do_not_mix(tmp_path, capsys):
    """The same id, the same places: chunks and segments that the other copy wrote are damage, and run again."""
    rates = lambda *found: signs(optimizers={"s": js.grid(js.sign_gd, learning_rate=[1e-3, *found])})  # noqa: E731
    js.run_sweep(rates(), tmp_path / "a", lane_width=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    js.run_sweep(rates(3e-3), tmp_path / "a", lane_width=2)
    expect = js.run_sweep(rates(7e-3), tmp_path / "b", lane_width=2).load()
    right = params(tmp_path / "b", rates(7e-3))
    for file in [f for f in (tmp_path / "a").rglob("*") if f.is_file()]:  # what the first one has and the other lacks
        place = tmp_path / "b" / file.relative_to(tmp_path / "a")
        if {"train_loss", "weight", "status", "trajectories"} & set(file.parts) and file.name != "zarr.json":
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    with pytest.raises(UnusableData, match="its seal does not fit"):
        js.open_results(tmp_path / "b").load()
    assert verdict(capsys, tmp_path / "b")[0] == 1
    found = js.run_sweep(rates(7e-3), tmp_path / "b", lane_width=2).load()
    assert found.drop_attrs().equals(expect.drop_attrs())
    assert params(tmp_path / "b", rates(7e-3)) == right
    assert verdict(capsys, tmp_path / "b")[0] == 0


def test_a_dataset_that_was_opened_before_an_extension_reads_what_that_one_rewrote(tmp_path):
    js.run_sweep(signs(axes={"seed": 3}, trajectory=None), tmp_path / "out", lane_width=2, memory=60_000)
    opened = js.open_results(tmp_path / "out")
    before = js.open_results(tmp_path / "out").load()
    js.run_sweep(signs(axes={"seed": 4}, trajectory=None), tmp_path / "out", lane_width=2, memory=60_000)
    np.testing.assert_array_equal(opened["train_loss"].values, before["train_loss"].values)


def test_what_only_looks_damaged_while_metadata_are_moved_is_looked_at_again(monkeypatch, tmp_path):
    js.run_sweep(signs(axes={"seed": 2}, trajectory=None), tmp_path / "out", lane_width=2)
    asked = []

    def first(path, crcs):
        asked.append(path)
        return ["zarr.json is damaged"] if len(asked) == 1 else []

    monkeypatch.setattr(results, "damaged_metadata", first)
    monkeypatch.setattr(results, "RETRY_AFTER", 0.0)
    assert js.open_results(tmp_path / "out").sizes["seed"] == 2
    monkeypatch.setattr(results, "damaged_metadata", lambda path, crcs: ["zarr.json is damaged"])
    with pytest.raises(UnusableData, match=r"zarr\.json is damaged"):
        js.open_results(tmp_path / "out")


@pytest.mark.parametrize(
    "change", [lambda names: names[1:], lambda names: names[::-1], lambda names: [*names, names[0]]]
)
def test_an_index_that_leaves_segments_out_or_orders_them_anew_is_damage(kept, tmp_path, capsys, change):
    right = params(kept)
    path = Path(shutil.copytree(kept, tmp_path / "copy"))
    file = next((path / "trajectories").glob("*/runs.json"))
    record = json.loads(file.read_text())
    record["segments"] = change(record["segments"])
    file.write_text(json.dumps({**record, "checksum": checksum(record)}))
    assert verdict(capsys, path)[0] == 1
    with pytest.raises(UnusableData, match=r"runs\.json is damaged"):
        params(path, step=333)
    js.run_sweep(signs(), path)
    assert params(path) == right


@pytest.mark.parametrize("entry", ["runs", "leaves", "start", "segments", "kind"])
def test_an_index_with_an_entry_of_another_kind_is_damage(kept, tmp_path, capsys, entry):
    path = Path(shutil.copytree(kept, tmp_path / "copy"))
    file = next((path / "trajectories").glob("*/runs.json"))
    record = json.loads(file.read_text())
    record[entry] = [7] if isinstance(record[entry], list) else 7
    file.write_text(json.dumps({**record, "checksum": checksum(record)}))
    assert verdict(capsys, path)[0] == 1
    with pytest.raises(UnusableData, match=r"runs\.json is damaged"):
        params(path)


def test_a_damaged_block_is_taken_back_only_while_the_directory_is_this_process_s(copy):
    @contextlib.contextmanager
    def lost(exclusive):
        raise UnusableData("begun anew")
        yield

    variables = results.stored_variables(copy)
    store = results.Store(copy, variables, owned=lost)
    before = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()}
    status = variables["status"]
    with pytest.raises(UnusableData, match="begun anew"):
        store.forget(results.blocks(status.shape, status.chunks)[0])
    assert {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()} == before

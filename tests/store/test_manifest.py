"""The manifest: kept twice, checked field by field and against its arrays; what nobody can have meant is refused."""

import contextlib
import copy as copies
import functools
import itertools
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kept import kept_programs
from test_status import run

import jaxsign as js
from jaxsign.store import schema
from jaxsign.store.manifest import COPY, MANIFEST, UnusableData, checksum, read_manifest
from jaxsign.validation.names import printable
from jaxsign.validation.values import LONGEST

keeping = kept_programs(__name__)


@functools.cache
def system(problem):
    def loss(params, data, hyper):
        return jnp.mean((params["w"] * data - hyper["slope"] * data) ** 2)

    return js.Task(
        sample=lambda key, hyper, shared: 1 + jax.random.key_data(key).astype(float) / 2.0**32,
        init=lambda key, data, hyper: {"w": jnp.zeros(())},
        loss=loss,
        observe=lambda params, data, test, hyper: {"train_loss": loss(params, data, hyper), "w": params["w"]},
        name="line",
    )


def sweep(**changes):
    base = {
        "system": system, "problem": None, "hyper": {"slope": 1.0, "tilt": 0.5}, "steps": 4, "record": 2,
        "optimizers": {"gd": js.grid(optax.sgd, learning_rate=[0.03, 0.1])}, "axes": {"slope": [2.0, 3.0], "seed": 3},
    }  # fmt: skip
    return js.Sweep(**{**base, **changes})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(directory whose stored order is not the definition's, its numbers)."""
    out = tmp_path_factory.mktemp("stored") / "out"
    js.run_sweep(sweep(axes={"slope": [3.0], "seed": [2, 0]}), out, lane_width=2)
    ds = js.run_sweep(sweep(), out, lane_width=2).load()
    assert json.loads(ds.attrs["manifest"])["order"] == [[1, 0], [0, 1], [2, 0, 1]]
    return out, ds


@pytest.fixture
def out(stored, tmp_path):
    return shutil.copytree(stored[0], tmp_path / "out")


def edited(out, change, name=MANIFEST):
    """Changes one of the two files as by hand, checksum and all."""
    record = json.loads((out / name).read_text())
    change(record)
    (out / name).write_text(json.dumps({**record, "checksum": checksum(record)}))


def without_copy(out):
    """The directory with one manifest, as earlier versions left it (`tests/data/results-0.1` is one of them)."""
    edited(out, lambda record: record.pop("revision"))
    (out / COPY).unlink()


def values(ds):
    return {name: ds[name].values.tolist() for name in ("slope", "seed", "learning_rate", "train_loss", "status", "w")}


def cut(file):
    file.write_bytes(file.read_bytes()[:-70])


def flipped(file):
    raw = bytearray(file.read_bytes())
    raw[raw.index(b'"steps"') + 9] ^= 1
    file.write_bytes(bytes(raw))


def nested(file):
    file.write_bytes(b'{"definition": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def pipe(file):
    file.unlink()
    os.mkfifo(file)  # whoever opens it to read waits for a writer


def gone(file):
    file.unlink()


HARM = [cut, flipped, nested, pipe, gone]


@pytest.mark.parametrize("harm", HARM)
def test_a_lost_or_damaged_manifest_is_read_from_its_copy_and_put_back(out, stored, capsys, harm):
    harm(out / MANIFEST)
    assert values(js.open_results(out)) == values(stored[1])
    (line,) = capsys.readouterr().err.splitlines()
    assert str(out / MANIFEST) in line
    assert COPY in line
    status, text, _ = run(capsys, "verify", out)
    assert status == 1
    assert f"  {out / MANIFEST} is " in text
    assert "-> run the sweep's own command again" in text
    assert run(capsys, "status", out)[0] == 0
    assert values(js.run_sweep(sweep(), out)) == values(stored[1])
    assert run(capsys, "verify", out)[0] == 0
    assert read_manifest(out)["order"] == [[1, 0], [0, 1], [2, 0, 1]]


@pytest.mark.parametrize("harm", HARM)
def test_a_lost_or_damaged_copy_is_damage_and_is_written_anew(out, stored, capsys, harm):
    harm(out / COPY)
    assert values(js.open_results(out)) == values(stored[1])
    assert run(capsys, "verify", out)[0] == 1
    js.run_sweep(sweep(), out)
    assert f"{out / COPY} is " in capsys.readouterr().err
    assert run(capsys, "verify", out)[0] == 0


@pytest.mark.parametrize("harm", [cut, nested, pipe])
def test_without_a_whole_manifest_every_command_says_so_in_one_line_and_writes_nothing(out, capsys, harm):
    harm(out / MANIFEST)
    harm(out / COPY)
    for argv in (["claims"], ["export", "--format", "netcdf"], ["report", "--out", out.parent / "r.html"]):
        status, text, err = run(capsys, argv[0], out, *argv[1:])
        assert (status, text, err.count("\n")) == (3, "", 1)
        assert "put manifest.json back" in err
    assert run(capsys, "status", out)[0] == 3
    assert run(capsys, "verify", out)[0] == 1
    for call in (js.open_results, functools.partial(js.run_sweep, sweep())):
        with pytest.raises(UnusableData, match=r"manifest\.json is not a readable manifest.*no whole copy is left"):
            call(out)


def test_a_manifest_changed_by_hand_is_refused_although_its_checksum_fits(out):
    for change, name in [
        (lambda m: m["plan"]["groups"][0].update(lane_width=4), "plan"),
        (lambda m: m["base"].update(tilt=7.0), "is taken"),  # contradicts the definition: damaged, and its copy is not
        (lambda m: m.update(base_hash="0" * 64), "base_hash"),
        (lambda m: m.update(epoch=9), "epoch"),
    ]:
        before = (out / MANIFEST).read_text()
        edited(out, change)
        if name == "is taken":
            assert float(js.open_results(out)["tilt"]) == 0.5
        else:
            with pytest.raises(UnusableData, match=f"manifest.copy.json differ in '{name}'"):
                js.open_results(out)
            with pytest.raises(UnusableData, match=f"manifest.copy.json differ in '{name}'"):
                js.run_sweep(sweep(), out)
        (out / MANIFEST).write_text(before)


def test_a_process_that_ends_between_the_two_files_leaves_results_that_go_on(tmp_path, monkeypatch):
    written = []
    replace = os.replace

    def failing(source, target, **rest):
        if str(target).endswith(".json") and "results.zarr" not in str(target):
            written.append(os.path.basename(target))
            if len(written) == stop:
                raise KeyboardInterrupt
        replace(source, target, **rest)

    expected = values(js.run_sweep(sweep()))
    for stop in (1, 2, 3, 4):
        written.clear()
        out = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with pytest.raises(KeyboardInterrupt):
                js.run_sweep(sweep(), out)
        assert values(js.run_sweep(sweep(), out)) == expected
        assert (out / MANIFEST).read_bytes() == (out / COPY).read_bytes()


def test_a_directory_of_an_earlier_version_gets_its_copy_when_it_is_written_next(out, stored, capsys):
    without_copy(out)
    assert run(capsys, "verify", out)[0] == 0
    assert values(js.open_results(out)) == values(stored[1])
    assert values(js.run_sweep(sweep(), out)) == values(stored[1])
    assert not (out / COPY).exists()
    ds = js.run_sweep(sweep(axes={"slope": [2.0, 3.0], "seed": 4}), out)
    assert values(ds.isel(seed=slice(3))) == values(stored[1])
    assert (out / COPY).read_bytes() == (out / MANIFEST).read_bytes()


def rehashed(change):
    def both(record):
        change(record)
        record["hash"] = schema.content_hash(record["definition"])

    return both


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(order=[[0, 1], *m["order"][1:]]),
        lambda m: m["order"].reverse(),
        lambda m: m["order"][2].append(3),
        lambda m: m["definition"]["seeds"].reverse(),
        rehashed(lambda m: m["definition"]["seeds"].reverse()),
        rehashed(lambda m: m["definition"]["axes"][0]["values"].reverse()),
        rehashed(lambda m: m["definition"]["optimizers"]["gd"]["points"].reverse()),
        rehashed(lambda m: m["definition"].update(record=[0, 3, 4], test=[0, 3, 4])),
        rehashed(lambda m: m["definition"]["hyper"].update(tilt=0.25)),
        lambda m: m["plan"].update(block=[2, 1, 3]),
        lambda m: m["plan"].update(records=2),
        lambda m: m["chunks"].pop("w"),
        lambda m: m["chunks"].update(w=[1, 1, 3, 1]),
        lambda m: m["crc32"].update({"../../etc/passwd": 5}),
        lambda m: m["crc32"].pop("zarr.json"),
        lambda m: m["runs"].update(finished=3),
        lambda m: m["sessions"].append({}),
        lambda m: m["sessions"][0].update(seconds=1e300),
        lambda m: m.update(finished="0001-01-01T00:00:00Z"),
        lambda m: m.pop("runs"),
        lambda m: m["plan"].update(runs=10**15),
        lambda m: m["plan"]["groups"].clear(),
        lambda m: m["base"].update(tilt="x"),
    ],
)
def test_one_manifest_that_contradicts_itself_or_its_arrays_is_never_obeyed(out, stored, capsys, change):
    without_copy(out)
    edited(out, change)
    for call in (js.open_results, functools.partial(js.run_sweep, sweep())):
        with contextlib.suppress(UnusableData, ValueError):
            assert values(call(out)) == values(stored[1])
    assert run(capsys, "verify", out)[0] in (0, 1)
    assert run(capsys, "status", out)[0] in (0, 3)
    for argv in (["claims"], ["export", "--format", "netcdf"]):
        status, _, err = run(capsys, argv[0], out, *argv[1:])
        assert status in (0, 3)
        assert status == 0 or err.count("\n") == 1


def leaves(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 2)):
            yield from leaves(value[i], (*path, i))


#: What numbers, labels or the next start depend on.
OBEYED = (
    "definition", "hash", "order", "chunks", "crc32", "runs", "base", "finished", "wall_seconds", "plan.block",
    "plan.runs", "plan.records", "plan.memory", "plan.groups.0.lane_width", "plan.groups.0.family", "id", "epoch",
    "revision", "base_hash", "flags.XLA_FLAGS", "sessions.0.finished", "sessions.0.seconds",
)  # fmt: skip


def test_no_entry_that_is_obeyed_can_be_of_another_kind(stored):
    manifest = json.loads((stored[0] / MANIFEST).read_text())
    assert schema.wrong(manifest) == ""
    for path in leaves(manifest):
        if not ".".join(map(str, path)).startswith(OBEYED):
            continue
        for other in (None, "x", -1, 10**15, [], {}, True, 1.5):
            record = copies.deepcopy(manifest)
            inside = functools.reduce(lambda held, key: held[key], path[:-1], record)
            if type(other) is not type(inside[path[-1]]):
                inside[path[-1]] = other
                assert schema.wrong(record), (path, other)


def test_metadata_that_cannot_be_read_end_in_one_line(out, capsys):
    file = out / "results.zarr" / "seed" / "zarr.json"
    file.unlink()
    for make in (lambda: file.symlink_to("/proc/self/mem"), lambda: file.mkdir(), lambda: os.mkfifo(file)):
        make()
        status, text, _ = run(capsys, "verify", out)
        assert status == 1
        assert str(file) in text
        status, text, err = run(capsys, "claims", out)
        assert (status, text, err.count("\n")) == (3, "", 1)
        file.rmdir() if file.is_dir() else file.unlink()


def test_verify_beside_checkpoints_that_come_and_go(out, capsys, monkeypatch):
    from jaxsign.store import checkpoints

    block = out / "checkpoints" / "block-000000"
    block.mkdir(parents=True)
    (block / "7.json").write_text("{}")

    def vanishing(folder):
        shutil.rmtree(folder)
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr(checkpoints, "damage", vanishing)
    assert run(capsys, "verify", out)[0] == 0


def test_a_damaged_directory_among_several_is_named_and_left_out(out, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(out, tmp_path / "all" / name)
    shutil.copytree(out, tmp_path / "one")
    chunk = next(file for file in (tmp_path / "all" / "a" / "results.zarr" / "w" / "c").rglob("*") if file.is_file())
    cut(chunk) if chunk.stat().st_size > 70 else chunk.write_bytes(b"")
    both = [tmp_path / "all", tmp_path / "one"]
    for argv in (
        ["claims", *both], ["report", *both, "--out", tmp_path / "r.html"], ["export", *both, "--format", "netcdf"],
    ):  # fmt: skip
        status, text, err = run(capsys, *argv)
        assert status == 3
        assert err.splitlines()[-1].startswith(f"left out: {chunk} ")
        assert str(tmp_path / "all" / "a") not in text
    assert (tmp_path / "r.html").stat().st_size > 1000
    assert (tmp_path / "all" / "b" / "results.nc").exists()
    assert (tmp_path / "one" / "results.nc").exists()
    status, text, _ = run(capsys, "verify", *both, tmp_path / "one")
    assert status == 1
    assert "2 of 3 directories are good" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"seed": 2**31}}, '"seed": [2147483648]'),
        ({"axes": {"seed": np.int64(2**31)}}, "axis 'seed' must have at most 1,048,576 values, got 2,147,483,648"),
        ({"axes": {"seed": range(2**70)}}, "axis 'seed' must have at most"),
        ({"axes": {"seed": itertools.count()}}, "axis 'seed' must have at most"),
        ({"axes": {"slope": range(10**12)}}, "axis 'slope' must have at most"),
        ({"axes": {"slope": (1.0 * i for i in itertools.count())}}, "axis 'slope' must have at most"),
        (
            {"axes": {"slope": [1.0 * i for i in range(100)], "seed": 2**20}},
            "a sweep must have at most 100,000,000 runs",
        ),
        ({"steps": 2**31 - 1, "record": 1}, "record=1 of steps=2147483647 must have at most"),
        ({"steps": 2**31 - 1, "record": range(2**31 - 1)}, "record must have at most"),
        ({"steps": 2**31 - 1, "trajectory": range(2**31 - 1)}, "trajectory must have at most"),
        ({"axes": {"slope": [2**24 + 1, 1]}}, "slope=16777217 becomes 16777216 in float32"),
        ({"hyper": {"slope": 1.0, "tilt": 2**24 + 1}}, "tilt=16777217 becomes 16777216 in float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_that_nobody_means_and_numbers_that_would_change_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep(**changes)


def test_what_was_accepted_still_is():
    assert sweep(axes={"seed": [2**31]}).seeds == (2**31,)
    assert len(sweep(axes={"seed": LONGEST}).seeds) == LONGEST
    assert sweep(steps=2**31 - 1, record=None, test_every=1).schedule.test.all()
    assert sweep(axes={"slope": [2**25, 1]}).shape == (2, 2, 1)
    assert sweep(steps=3, record=[0], test_every=1).schedule.record.tolist() == [0]
    for every in (1, 2, 3, 7):
        for record in (1, 2, 5, [1, 4, 9, 10]):
            schedule = sweep(steps=11, record=record, test_every=every).schedule
            wanted = {min((r for r in schedule.record if r >= m), default=None) for m in range(0, 12, every)} - {None}
            assert set(schedule.record[schedule.test]) == wanted


def test_grids_and_lanes_are_bounded(tmp_path):
    with pytest.raises(ValueError, match="must have at most"):
        js.grid(optax.adam, learning_rate=np.linspace(0.1, 1, 1100).tolist(), b1=np.linspace(0.1, 0.9, 1100).tolist())
    with pytest.raises(ValueError, match=r"lane_width must be an int in \[1, 1048576\]"):
        js.run_sweep(sweep(), lane_width=10**12)


def test_integer_observables_are_exact_or_nan(tmp_path):
    def counted(params, data, test, hyper):
        return jnp.array([2**24, 2**24 + 1, 2**25, 2**31 - 1, -(2**24) - 1], jnp.int32)

    ds = js.run_sweep(sweep(observables=["train_loss", counted]), tmp_path / "out")
    found = ds["counted"].isel(slope=0, optimizer=0, seed=0, step=0).values
    exact = np.array([2**24, np.nan, 2**25, np.nan, np.nan])
    assert np.array_equal(found, exact, equal_nan=True) or found.dtype == np.float64
    assert ds["counted"].attrs["computed_as"].startswith("int32; NaN where float")


def test_what_comes_from_disk_is_printed_without_control_characters(out, tmp_path, capsys):
    assert printable("a\x1b[2J\r\n\u202eb\u2066 \xe9 \u03b7") == "a\\x1b[2J\\r\\n\\u202eb\\u2066 \xe9 \u03b7"
    evil = tmp_path / "evil\x1b]0;title\x07\u202e"
    shutil.copytree(out, evil)
    change = {"host": "h\x1b[31m", "command": "python \x1b[2J\u202e"}
    for name in (MANIFEST, COPY):
        edited(evil, lambda m: [m["sessions"][0].update(change), m.update(change)], name)
        edited(evil, lambda m: m.update(accepted=[
            {"reason": "\x1b[1A fine", "differences": ["\x1b[2K"], "date": "2026-01-01T00:00:00Z"}
        ]), name)  # fmt: skip
    (evil / "locks" / "shard-0-of-1.lock").write_text(
        json.dumps({"pid": 1, "host": "\x1b[5mother", "since": "2026-01-01T00:00:00Z"})
    )
    texts = [run(capsys, command, evil) for command in ("status", "verify", "claims")]
    texts.append(run(capsys, "report", evil, "--out", tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    for text in [*itertools.chain(*(t[1:] for t in texts)), page]:
        assert not {c for c in text if not c.isprintable()} - {"\n", "\u200c", "\u200d"}
    assert "\\x1b[2J" in page
    assert "\\x1b[1A fine" in texts[0][1]


def test_every_kind_of_start_is_kept_and_the_promise_follows(out, stored, monkeypatch, capsys):
    def more(seeds):
        js.run_sweep(sweep(axes={"slope": [2.0, 3.0], "seed": seeds}), out)
        return read_manifest(out), capsys.readouterr().err

    first = json.loads((out / MANIFEST).read_text())
    assert (len(first["starts"]), first["resume"]) == (1, "bit-identical")
    manifest, err = more(4)
    assert (len(manifest["starts"]), manifest["resume"]) == (1, "bit-identical")
    assert "gone on with" not in err
    monkeypatch.setattr("jaxsign.store.environment.cpu_model", lambda: "another processor")
    monkeypatch.setattr("jaxsign.sweep.identity.versions.cpu_model", lambda: "another processor")
    manifest, err = more(5)
    assert [start["cpu"] for start in manifest["starts"]] == [first["cpu"], "another processor"]
    assert manifest["resume"] == "statistically equal"
    assert "-> another processor; equal within rounding, not to the bit" in err
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_enable_fast_math=true")
    manifest, err = more(6)
    assert len(manifest["starts"]) == 3
    assert "XLA_FLAGS" in err


def test_a_start_that_is_cut_off_is_kept_too(out, monkeypatch):
    from jaxsign.sweep.worker import Session

    js.run_sweep(sweep(axes={"slope": [2.0, 3.0], "seed": 4}), out, shard=(0, 2))
    monkeypatch.setattr("jaxsign.store.environment.cpu_model", lambda: "another processor")
    monkeypatch.setattr(Session, "close", lambda self, seconds: None)
    js.run_sweep(sweep(axes={"slope": [2.0, 3.0], "seed": 4}), out, shard=(1, 2))
    assert read_manifest(out)["starts"][-1]["cpu"] == "another processor"


def test_a_sweep_with_nan_among_its_numbers_is_known_again(tmp_path):
    made = sweep(hyper={"slope": 1.0, "tilt": float("nan")}, axes={"seed": 2})
    ds = js.run_sweep(made, tmp_path / "out").load()
    assert js.run_sweep(made, tmp_path / "out").load().identical(ds)

"""What a results directory promises: any devices, any damage, full disks, other versions, no code from disk."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kept import kept_programs
from test_faults import LIMITS, child, sweep, until, values

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.store import checkpoints, results
from jaxsign.store.manifest import UnusableData, checksum

keeping = kept_programs("test_faults")
SMALL = {"axes": {"goal": [0.5, 1.0], "seed": 3}, "steps": 400}
LONG = {"steps": 5000}
CUT = "js.run_sweep(t.sweep(**{changes}), sys.argv[1], **t.LIMITS)"


def small_values(out, **changes):
    return values(out, sweep(**(SMALL | changes)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(directory of a small sweep, its values)."""
    out = tmp_path_factory.mktemp("stored") / "out"
    js.run_sweep(sweep(**SMALL), out, **LIMITS)
    return out, small_values(out)


@pytest.fixture(scope="module")
def under_way(tmp_path_factory):
    """A directory that was killed with checkpoints and trajectories under way."""
    out = tmp_path_factory.mktemp("cut") / "out"
    process = child(CUT.format(changes="{}"), out)

    def both():
        saved = [f.name for f in out.glob("checkpoints/*") if len(list(f.glob("*.json"))) >= 2]
        ended = [f.parent.name for f in out.glob("trajectories/*/runs.json")]
        return ended and [s for s in saved if not any(e.startswith(s.replace("block", "unit")) for e in ended)]

    until(both, process)
    process.kill()
    process.communicate()
    return out


def test_four_devices_then_one_and_back_change_no_bit(tmp_path, stored):
    out = tmp_path / "out"
    code = "jax.config.update('jax_num_cpu_devices', int(sys.argv[2]))\n" + CUT.format(changes=SMALL | LONG)
    for devices in (4, 1, 3):
        before = {*out.glob("checkpoints/*/*.json")}
        process = child(code, out, devices)
        if devices != 3:
            until(lambda before=before: {*out.glob("checkpoints/*/*.json")} - before, process)
            process.send_signal(signal.SIGTERM)
        _, words = process.communicate()
        assert "not used" not in words
    assert process.returncode == 0, words
    fresh = tmp_path / "fresh"
    js.run_sweep(sweep(**(SMALL | LONG)), fresh, **LIMITS)
    assert small_values(out, **LONG) == small_values(fresh, **LONG)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax, of what it gave up
@pytest.mark.parametrize("where", ["finished", "under way"])
def test_a_flipped_byte_anywhere_is_detected_or_harmless(tmp_path, monkeypatch, stored, under_way, where):
    """100 places each: what is read stays the same or is refused, and the next start mends it."""
    monkeypatch.setattr(results, "RETRY_AFTER", 0.0)  # no sweep is under way that would write meanwhile
    path, wanted = stored
    source = path if where == "finished" else under_way
    rng, outcome = random.Random(where), {"refused": 0, "harmless": 0}
    files = sorted(f for f in source.rglob("*") if f.is_file() and f.stat().st_size and f.suffix != ".lock")
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    for _ in range(100):
        file = rng.choice(files)
        target = copy / file.relative_to(source)
        whole = target.read_bytes()
        raw = bytearray(whole)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        target.write_bytes(raw)
        if where == "finished":
            try:
                found = small_values(copy)
            except Exception:
                outcome["refused"] += 1
                assert cli.main(["verify", str(copy)]) == 1
            else:
                assert found == wanted, file
                outcome["harmless"] += 1
        elif "checkpoints" in file.parts:
            lines = checkpoints.damage(copy / "checkpoints")
            outcome["refused" if lines else "harmless"] += 1
        else:
            outcome["refused" if cli.main(["verify", str(copy)]) == 1 else "harmless"] += 1
        target.write_bytes(whole)  # the next one flips another byte of the same copy, which no reading has changed
        assert all((copy / f.relative_to(source)).stat().st_size == f.stat().st_size for f in files), file
    assert all((copy / f.relative_to(source)).read_bytes() == f.read_bytes() for f in files)
    print(where, outcome)
    assert outcome["refused"] > 50


@pytest.mark.parametrize(
    "part", ["results.zarr/train_loss", "results.zarr/status", "results.zarr/seed", "trajectories"]
)
def test_damage_is_mended_by_the_sweep_s_own_command(tmp_path, stored, part, capsys):
    path, wanted = stored
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    for file in sorted(f for f in (copy / part).rglob("*") if f.is_file() and f.suffix != ".json")[:2]:
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 0x20
        file.write_bytes(raw)
    assert cli.main(["verify", str(copy)]) == 1
    js.run_sweep(sweep(**SMALL), copy, **LIMITS)
    assert small_values(copy) == wanted
    assert cli.main(["verify", str(copy)]) == 0


def test_a_truncated_newest_checkpoint_is_passed_over(tmp_path, under_way, capfd):
    out = tmp_path / "out"
    shutil.copytree(under_way, out)
    newest = max(max(out.glob("checkpoints/*")).glob("*.json"), key=lambda f: int(f.stem))
    for file in (newest.parent / newest.stem).rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    js.run_sweep(sweep(), out, **LIMITS)
    assert f"{newest.parent / newest.stem}: not used" in capfd.readouterr().err
    assert cli.main(["verify", str(out)]) == 0


def test_sigkill_while_a_checkpoint_is_written(tmp_path, stored):
    """Killed inside Orbax's save: the half-written one has no record, is not looked at, and may be written over."""
    out = tmp_path / "out"
    code = (
        "import os, signal\nfrom orbax.checkpoint import v1 as ocp\nsave, calls = ocp.save, []\n"
        "def dying(path, state, **how):\n"
        "    calls.append(path)\n"
        "    if len(calls) == 3: os.makedirs(path), open(path / '_METADATA', 'w').write('x'), os.kill(os.getpid(), 9)\n"
        "    return save(path, state, **how)\n"
        "ocp.save = dying\n" + CUT.format(changes=SMALL | LONG)
    )
    process = child(code, out)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    js.run_sweep(sweep(**(SMALL | LONG)), out, **LIMITS)
    assert cli.main(["verify", str(out)]) == 0


def test_nothing_on_disk_is_a_pickle_or_is_imported(stored, under_way):
    for root in (stored[0], under_way):
        for file in root.rglob("*"):
            if file.is_file():
                try:
                    pickle.loads(file.read_bytes())
                except Exception:
                    continue
                raise AssertionError(f"{file} is a pickle")
    package = Path(js.__file__).parent
    files = {f: f.read_text() for f in package.rglob("*.py")}
    # A Dask worker unpacks what its driver sends, as Dask itself does; it comes from no file.
    sent = files.pop(package / "sweep" / "shipping.py")
    assert not any(word in sent for word in ("open(", "read_bytes", "Path"))
    text = "".join(files.values())
    assert "pickle.load" not in text
    assert "eval(" not in text.replace("def eval(", "")


def edited(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_hand_edited_manifest_and_a_newer_format_are_refused(tmp_path, stored):
    copy = tmp_path / "copy"
    shutil.copytree(stored[0], copy)
    edited(copy, lambda m: m["definition"].update(steps=400))
    assert js.open_results(copy).sizes["step"] > 1  # its copy is taken
    edited(copy, lambda m: m.update(format=3, checksum=checksum({**m, "format": 3})))
    for use in (lambda: js.open_results(copy), lambda: js.run_sweep(sweep(**SMALL), copy)):
        with pytest.raises(UnusableData, match=r"has format 3, from a newer jaxsign.*upgrade it"):
            use()
    (copy / "manifest.copy.json").unlink()
    edited(copy, lambda m: (m["definition"].update(steps=200), m.update(format=2)))
    for use in (lambda: js.open_results(copy), lambda: js.run_sweep(sweep(**SMALL), copy)):
        with pytest.raises(UnusableData, match="changed by hand"):
            use()
    edited(copy, lambda m: (m["definition"].update(steps=400), m.update(format=3), m.update(checksum=checksum(m))))
    with pytest.raises(UnusableData, match=r"has format 3, from a newer jaxsign.*upgrade it"):
        js.run_sweep(sweep(**SMALL), copy)
    assert cli.main(["verify", str(copy)]) == 1


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs to mount a small file system")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax, of what it gave up
def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path):
    disk, made = tmp_path / "disk", sweep(axes={"seed": 2}, steps=12_000)  # more than half a megabyte
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(ValueError, match=r"No space left on device|not enough space") as caught:
            js.run_sweep(made, disk / "out", **LIMITS)
        assert "\n" not in str(caught.value)
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
        js.run_sweep(made, disk / "out", **LIMITS)
        assert cli.main(["verify", str(disk / "out")]) == 0
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs to mount read-only")
def test_a_read_only_directory_is_one_line_to_write_and_readable(tmp_path, stored):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.copytree(stored[0], disk / "out")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(ValueError, match=r"Read-only file system|must be a writable directory") as caught:
            js.run_sweep(sweep(**(SMALL | {"axes": {"goal": [0.5, 1.0], "seed": 4}})), disk / "out", **LIMITS)
        assert "\n" not in str(caught.value)
        assert small_values(disk / "out") == stored[1]
        assert js.run_sweep(sweep(**SMALL), disk / "out")["status"].max() == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_of_rate_1e30_costs_its_neighbours_nothing(tmp_path, stored):
    rates = [1e-3, 3e-3, 1e30]
    ds = js.run_sweep(sweep(**SMALL, optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=rates)}),
                      tmp_path / "out", **LIMITS)  # fmt: skip
    wild, calm = ds.isel(optimizer=2), js.open_results(stored[0])
    assert (wild["status"] == 1).all()
    assert (wild["first_bad_step"] == 1).all()
    assert wild["train_loss"].isel(step=slice(1, None)).isnull().all()
    for name in calm.data_vars:
        np.testing.assert_array_equal(ds[name].isel(optimizer=slice(0, 2)), calm[name])


def test_two_processes_of_jax_distributed_share_the_blocks_out(tmp_path, stored):
    code = (
        "jax.distributed.initialize(coordinator_address=f'127.0.0.1:{sys.argv[2]}', num_processes=2, "
        "process_id=int(sys.argv[3]))\n"
        f"js.run_sweep(t.sweep(**{SMALL}), sys.argv[1], **t.LIMITS, shard='auto')\n"
        "jax.distributed.shutdown()"  # a fork's end leaves that out
    )
    port = 20000 + random.randrange(20000)
    pair = [child(code, tmp_path / "out", port, i) for i in range(2)]
    words = [process.communicate()[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], words
    assert small_values(tmp_path / "out") == stored[1]
    sessions = json.loads((tmp_path / "out" / "manifest.json").read_text())["sessions"]
    assert sorted(session["shard"] for session in sessions) == ["0/2", "1/2"]


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path):
    cases = [
        ({"memory": 10}, r"memory must be at least \d+ bytes, which one run needs, got memory=10"),
        ({"memory": 0}, "memory must be an int >= 1"),
        ({"shard": (3, 3)}, "shard must be I/N with 0 <= I < N, got 3/3"),
        ({"shard": "3/3"}, "shard must be I/N with 0 <= I < N, got 3/3"),
        ({"shard": "one"}, "shard must be I/N with 0 <= I < N, or auto, got 'one'"),
        ({"shard": 3}, r"shard must be \(index, count\), 'I/N' or 'auto', got 3"),
        ({"lane_width": 0}, "lane_width must be an int >= 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be > 0 seconds"),
        ({"shard": (0, 2), "scheduler": "tcp://127.0.0.1:1"}, "shares the blocks out itself"),
    ]
    for limits, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            js.run_sweep(sweep(**SMALL), tmp_path / "out", **limits)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        sweep(stepz=3)


def test_the_same_shard_twice_is_refused(tmp_path):
    out = tmp_path / "out"
    first = child(CUT.format(changes="{}"), out)
    until(lambda: list(out.glob("trajectories/*/*.segment")), first)
    with pytest.raises(ValueError, match=f"is being run by process {first.pid} on "):
        js.run_sweep(sweep(), out, **LIMITS)
    first.kill()
    first.communicate()

"""Whose what is: foreign files stay, nothing goes by a planted link, errors are told by who made them."""

import collections
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from kept import kept_programs
from matplotlib.figure import Figure
from test_paths import system

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.store import checkpoints, files
from jaxsign.store.binding import binding_at
from jaxsign.store.manifest import UnusableData
from jaxsign.store.trajectory import unit_name
from jaxsign.sweep import execute

keeping = kept_programs("test_paths")


def sweep(**changes):
    base = {
        "system": system, "problem": None, "hyper": {"goal": 1.0}, "steps": 20, "record": 5,
        "optimizers": {"sign_gd": js.sign_gd(1e-2)}, "axes": {"seed": 2},
    }  # fmt: skip
    return js.Sweep(**(base | changes))


def held(folder):
    """{name: bytes} of all files below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished results directory with trajectories, to be copied."""
    made = tmp_path_factory.mktemp("finished") / "out"
    js.run_sweep(sweep(trajectory="signs"), made)
    return made


@pytest.fixture
def out(finished, tmp_path):
    """A copy of the finished results directory."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def victim(tmp_path):
    """A file of the user that no sweep has anything to do with."""
    file = tmp_path / "authorized_keys"
    file.write_text("ssh-ed25519 AAAA\n")
    yield file
    assert file.read_text() == "ssh-ed25519 AAAA\n"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", [
    "checkpoints/model/weights.bin", "trajectories/mine/x", "locks/door", "locks/shard-0-of-1.lock", "checkpoints",
    "results.zarr.backup", "results.zarr/zarr.json", "checkpoints/block-000000/5.json", "manifest.json.bak", "locks",
    "trajectories/unit-000000-0123456789ab/runs.json", "my.partial", "trajectories.tar",
])  # fmt: skip
def test_a_directory_with_anything_of_somebody_else_is_refused_and_untouched(tmp_path, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("a week of training")
    with pytest.raises(ValueError, match=f"out.*{name.split('/')[0]}") as caught:
        js.run_sweep(sweep(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert held(tmp_path / "run") == {name: b"a week of training"}


def test_what_a_killed_start_leaves_is_no_stranger(tmp_path):
    for name in ("locks", "checkpoints", "trajectories", "results.zarr.123.partial/loss/c"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("0123abcd.99.partial", "manifest.json.99.partial", "results.zarr.123.partial/zarr.json"):
        (tmp_path / name).write_text("{")
    (tmp_path / "locks" / "shard-0-of-1.lock").write_text('{"pid": 1')
    (tmp_path / "locks" / "manifest.lock").write_text("")
    js.run_sweep(sweep(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "locks",
        "manifest.copy.json",
        "manifest.json",
        "results.zarr",
        "trajectories",
    ]


def test_strangers_beside_results_stay_and_are_in_nobodys_way(out, monkeypatch):
    mine = {
        "notes.txt": b"n", "notes.partial": b"p", "checkpoints/model/5/state/w": b"w", "checkpoints/5.json": b"{}",
        "checkpoints/block-000000/notes.txt": b"n", "trajectories/mine/a.segment": b"a", "trajectories/x.partial": b"x",
        "trajectories/unit-000099-0123456789ab/000000000.segment": b"another program's numbers",
        "trajectories/unit-000099-0123456789ab/thesis.tex": b"t", "results.zarr.77.partial/thesis.tex": b"t",
    }  # fmt: skip
    js.run_sweep(sweep(axes={"seed": 3}), out.parent / "inner")
    (out.parent / "inner").rename(out / "trajectories" / "inner")
    inner = held(out / "trajectories" / "inner")
    for name, raw in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(raw)
    left = out / "trajectories" / unit_name(98, [[0, 0, 0]], binding_at(out))  # of this sweep, which was killed
    left.mkdir()
    (left / "000000000.segment").write_bytes(b"jaxsign\x01rest")
    monkeypatch.setattr(execute, "CALL_SECONDS", 1e-6)
    js.run_sweep(sweep(axes={"seed": 5}, trajectory="signs"), out, checkpoint_every=1e-6)
    found = held(out)
    assert {name: found[name] for name in mine} == mine
    assert held(out / "trajectories" / "inner") == inner
    assert not left.exists()
    assert {name for name in found if name.startswith("checkpoints")} <= set(mine)
    assert len(js.open_trajectory(out, sweep(axes={"seed": 5}, trajectory="signs"))) == 5


def test_what_is_in_the_place_of_a_checkpoint_is_not_overwritten(tmp_path):
    folder = tmp_path / "block-000000"
    for name, text in (("5/weights.bin", "w"), ("7.json", '{"price": 3, "of": "something else entirely"}')):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        with pytest.raises(UnusableData, match="move it away"):
            checkpoints.save(folder, int(name[0]), {"w": np.zeros(2)}, {})
        assert (folder / name).read_text() == text
    checkpoints.save(folder, 9, {"w": np.zeros(2)}, {})
    (folder / "9" / "state" / "mine").symlink_to(tmp_path)
    checkpoints.remove(folder)
    assert sorted(held(folder)) == ["5/weights.bin", "7.json"]
    assert (folder / "9" / "state" / "mine").is_symlink()


@pytest.mark.parametrize("name", ["manifest.json", "manifest.copy.json"])
def test_a_link_in_a_manifest_s_place_is_replaced_by_the_other_one_s_content(out, victim, capsys, name):
    before, content = js.open_results(out).load(), victim.read_bytes()
    (out / name).unlink()
    (out / name).symlink_to(victim)
    assert cli.main(["verify", str(out)]) == 1
    assert f"{out / name} is not a readable manifest: it is a link" in capsys.readouterr().out
    assert js.open_results(out).load().equals(before)
    js.run_sweep(sweep(axes={"seed": 3}, trajectory="signs"), out)
    assert not (out / name).is_symlink()
    assert victim.read_bytes() == content
    assert cli.main(["verify", str(out)]) == 0


PLANTED = [
    "locks/shard-0-of-1.lock", "locks/manifest.lock", "locks", "results.zarr",
    "results.zarr/zarr.json", "results.zarr/train_loss", "results.zarr/train_loss/zarr.json",
    "results.zarr/train_loss/c", "results.zarr/train_loss/c/0", "results.zarr/status/c/0/0", "results.zarr/more",
    "checkpoints", "checkpoints/block-000000", "checkpoints/block-000000/5", "trajectories", "trajectories/unit-*",
    "trajectories/unit-*/runs.json", "trajectories/unit-*/000000000.segment", "trajectories/unit-000009-0123456789ab",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "fifo"])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_links_and_pipes_are_refused_by_name(out, victim, capsys, name, kind):
    (file,) = list(out.glob(name)) or [out / name]
    if file.is_dir():
        file.rename(out.parent / "moved")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif (out.parent / "moved").exists():
        file.symlink_to(out.parent / "moved")
    else:
        file.symlink_to(victim if "manifest.lock" not in name else out.parent / "elsewhere")
    before = held(out.parent)
    with pytest.raises((UnusableData, ValueError), match=f"{file}") as caught:
        js.run_sweep(sweep(axes={"seed": 3}, trajectory="signs"), out)
    assert "\n" not in str(caught.value)
    assert {k: v for k, v in held(out.parent).items() if "locks" not in k} == {
        k: v for k, v in before.items() if "locks" not in k
    }
    status = cli.main(["verify", str(out)])
    assert status == 1
    assert str(file) in capsys.readouterr().out
    assert cli.main(["status", str(out)]) in (0, 3)
    if name.startswith("results.zarr/"):
        with pytest.raises(UnusableData, match=f"{file}"):
            js.open_results(out)


def test_links_under_names_that_were_once_predictable_are_left_alone(out, victim):
    pids = range(os.getpid() - 2, os.getpid() + 2)
    for pid in pids:
        (out / f"manifest.json.{pid}.partial").symlink_to(victim)
        (out / f"results.zarr.{pid}.partial").symlink_to(out.parent / "elsewhere")
    js.run_sweep(sweep(axes={"seed": 3}, trajectory="signs"), out)
    assert not (out / "manifest.json").is_symlink()
    assert sum(file.is_symlink() for file in out.iterdir()) == 2 * len(pids)


def test_a_lock_with_the_name_of_another_file_is_not_emptied(out, victim):
    (out / "locks" / "shard-0-of-1.lock").unlink()
    os.link(victim, out / "locks" / "shard-0-of-1.lock")
    with pytest.raises(UnusableData, match="is not a lock of a sweep: move it away"):
        js.run_sweep(sweep(axes={"seed": 3}, trajectory="signs"), out)


def test_an_export_beside_results_does_not_follow_a_link(out, victim, capsys):
    (out / "results.nc").symlink_to(out.parent / "elsewhere")
    assert cli.main(["export", str(out), "--format", "netcdf"]) == 2
    assert "is a link: if it is meant, give --out FILE" in capsys.readouterr().err


def test_a_link_that_the_user_names_is_kept_and_no_other_directory_gets_in(tmp_path, monkeypatch, capsys):
    disk, out = tmp_path / "disk", tmp_path / "out"
    (disk / "thesis").mkdir(parents=True)
    (disk / "thesis" / "x.csv").write_text("1,2")
    out.mkdir()
    (out / "trajectories").symlink_to("../disk")
    (tmp_path / "named").symlink_to("out")
    made = sweep(trajectory="signs")
    with pytest.raises(ValueError, match=r"is a link to '../disk': if that is meant, say links=\('trajectories',\)"):
        js.run_sweep(made, tmp_path / "named")
    assert held(out) == {}
    js.run_sweep(made, tmp_path / "named", links=["trajectories"])
    stored = json.loads((out / "manifest.json").read_text())
    assert stored["links"] == {"trajectories": str(disk.resolve())}
    for changes in ({}, {"axes": {"seed": 3}}):
        js.run_sweep(sweep(trajectory="signs", **changes), out)
    assert len(js.open_trajectory(out, sweep(trajectory="signs", axes={"seed": 3}))) == 3
    assert cli.main(["verify", str(out)]) == 0
    assert (disk / "thesis" / "x.csv").read_text() == "1,2"
    # Another directory may not share it, and a manifest that names it is not enough.
    other = tmp_path / "other"
    other.mkdir()
    (other / "trajectories").symlink_to(disk)
    with pytest.raises(ValueError, match=r"of the results directory '.*named'"):
        js.run_sweep(made, other, links=["trajectories"])
    mark = (disk / files.MARK).read_bytes()
    (disk / files.MARK).unlink()
    with pytest.raises(UnusableData, match="is that disk mounted"):
        js.run_sweep(sweep(trajectory="signs", axes={"seed": 4}), out)
    (disk / files.MARK).write_bytes(mark)
    # Moved to a third disk: it is said once more.
    disk.rename(tmp_path / "larger")
    (out / "trajectories").unlink()
    (out / "trajectories").symlink_to(tmp_path / "larger")
    with pytest.raises(UnusableData, match="and led to"):
        js.run_sweep(sweep(trajectory="signs", axes={"seed": 3}), out)
    main = js.sweep_cli(lambda args: {"x": sweep(trajectory="signs", axes={"seed": 3})})
    assert main(["--out", str(out)]) == 3
    assert main(["--out", str(out), "--allow-link", "trajectories"]) == 0
    assert main(["--out", str(out)]) == 0
    with pytest.raises(ValueError, match="links must be of 'trajectories', 'checkpoints'"):
        js.run_sweep(made, tmp_path / "new", links=["results.zarr"])
    assert not (tmp_path / "new").exists()


#: Runs a sweep as another user, once everything is imported, which that user may not be able to read.
MEMBER = """
import os, sys
import test_files as t, jaxsign as js
from jaxsign.sweep import execute
execute.CALL_SECONDS = 1e-6
user, seeds, index, count, out = int(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
how = {"checkpoint_every": 1e-6, "lane_width": 1}
js.run_sweep(t.sweep(axes={"seed": seeds}, trajectory="signs"), f"{out}-{user}-{seeds}-{index}", **how)
os.umask(0o002)
os.setgroups([])
os.setresgid(54321, 54321, 54321)
os.setresuid(user, user, user)
js.run_sweep(t.sweep(axes={"seed": seeds}, trajectory="signs"), out, shard=(index, count), **how)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be two users")
def test_a_group_shares_a_directory():
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        out = Path(top) / "shared"
        os.chmod(top, 0o755)
        out.mkdir()
        os.chown(out, 12345, 54321)
        os.chmod(out, 0o2775)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        for member in ((12345, 2, 0, 2), (12346, 2, 1, 2), (12346, 4, 0, 1), (12345, 5, 0, 1), (12346, 5, 0, 1)):
            command = [sys.executable, "-c", MEMBER, *map(str, member), str(out)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
        assert {f.stat().st_uid for f in out.rglob("*")} == {12345, 12346}
        assert all(f.stat().st_gid == 54321 and f.stat().st_mode & 0o060 == 0o060 for f in out.rglob("*"))
        assert (js.open_results(out)["status"] == 0).all()


@pytest.mark.parametrize("kind", [FileNotFoundError, BrokenPipeError, TimeoutError, OSError])
def test_errors_of_the_users_functions_come_through(tmp_path, kind, capsys):
    error = kind(errno.ENOENT, "mine")

    def observed(params, data, test, hyper):
        raise error

    made = sweep(observables=["train_loss", observed])
    with pytest.raises(kind) as caught:
        js.run_sweep(made, tmp_path / "out")
    assert caught.value is error
    assert not (tmp_path / "out").exists()
    with pytest.raises(kind):
        js.sweep_cli(lambda args: {"x": made})(["--out", str(tmp_path / "out")])


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"out='.*' is on a file system without file locks.*-o flock") as caught:
        js.run_sweep(sweep(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_our_own_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    write = os.replace

    def failing(source, target, **rest):
        if str(target).endswith("000000000.segment"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(target))
        write(source, target, **rest)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(ValueError, match=rf"{os.strerror(errno.EDQUOT)} \(trajectories/unit-.*segment\)"):
        js.run_sweep(sweep(trajectory="signs"), tmp_path / "out")


CHILD = """
import sys, test_paths as t, jaxsign as js
from jaxsign.sweep import execute, progress
progress.LINE_EVERY = execute.CALL_SECONDS = 0.001
made = t.sweep(steps=int(sys.argv[1]), record=1000, axes={"seed": 4}, trajectory=None)
print("begun", flush=True)
sys.exit(js.sweep_cli(lambda args: {"x": made})(["--out", "out", "--lane-width", "1", "--memory", "100"]))
"""


def child(folder, steps, before="", **how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["sh", "-c", f'exec "$@" {before}', "sh", sys.executable, "-c", CHILD, str(steps)]
    return subprocess.Popen(command, cwd=folder, env=environment, **how)


@pytest.mark.parametrize("before", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_sweep_needs_no_standard_streams(tmp_path, before):
    ended = child(tmp_path, 2000, before, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait()
    assert ended == 0
    assert (js.open_results(tmp_path / "out")["status"] == 0).all()


def test_a_sweep_goes_on_when_nobody_reads_what_it_says(tmp_path):
    running = child(tmp_path, 400_000, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "begun\n"
    assert any("runs" in line for line in running.stderr)  # the first line that counts them
    running.stdout.close()
    running.stderr.close()
    assert running.wait() == 0
    assert (js.open_results(tmp_path / "out")["status"] == 0).all()


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(("arguments", "wanted"), [
    ("verify out | head -c 0", "141"), ("verify out >/dev/full", "2"), ("verify out >&-", "0"), ("status out <&-", "0"),
    ("claims out >/dev/full", "2"), ("verify nowhere 2>&-", "2"), ("verify nowhere 2>/dev/full", "2"),
])  # fmt: skip
def test_commands_end_quietly_or_in_one_line(out, arguments, wanted, buffered):
    environment = {**os.environ, "PYTHONPATH": str(Path(js.__file__).parent.parent), "PYTHONUNBUFFERED": buffered}
    script = f'"{sys.executable}" -m jaxsign {arguments}; echo "${{PIPESTATUS[0]}}" >ended'
    done = subprocess.run(
        ["bash", "-c", script], cwd=out.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert (out.parent / "ended").read_text().strip() == wanted
    lines = [] if wanted != "2" or "2>" in arguments else ["jaxsign: standard output cannot be written: "]
    assert [line[: len(lines[0])] for line in done.stderr.splitlines()] == lines


def test_several_sweeps_in_threads_leave_the_process_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "CALL_SECONDS", 1e-6)
    level, filters = logging.root.manager.disable, list(warnings.filters)
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")}
    flags = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_debug_nans", "jax_disable_jit")}
    found, gone = {}, ValueError("mine")

    def work(number):
        def failing(params, data, test, hyper):
            raise gone

        more = {"observables": ["train_loss", failing]} if number == 3 else {}
        try:
            made = sweep(steps=24, trajectory="signs", axes={"seed": [number, 9]}, **more)
            found[number] = js.run_sweep(made, tmp_path / str(number), checkpoint_every=1e-6)["train_loss"].values
        except ValueError as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.pop(3) is gone
    for number, values in found.items():
        plain = js.run_sweep(sweep(steps=24, axes={"seed": [number, 9]}))["train_loss"].values
        np.testing.assert_array_equal(values, plain)
    assert logging.root.manager.disable == level
    assert warnings.filters == filters
    assert {name: signal.getsignal(getattr(signal, name)) for name in handlers} == handlers
    assert {name: getattr(jax.config, name) for name in flags} == flags


@pytest.mark.parametrize("name", ["x.csv", "x.png", "x.pdf", "x.svg"])
def test_a_figure_replaces_only_an_earlier_one(tmp_path, name):
    figure = Figure()
    figure.subplots().plot([1, 2])
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"{name}' is not of a figure that was saved here"):
        js.plot.save(figure, tmp_path, "x")
    assert held(tmp_path) == {name: b"mine"}
    (tmp_path / name).unlink()
    for _ in range(2):
        assert len(js.plot.save(figure, tmp_path, "x")) == len(held(tmp_path)) == 4


def test_chunk_folders_are_looked_through_by_one_listing_each(tmp_path, monkeypatch):
    for number in range(10):
        for inner in range(10):
            folder = tmp_path / "results.zarr" / "loss" / "c" / str(number) / str(inner)
            folder.mkdir(parents=True)
            (folder / "0").touch()
    calls = collections.Counter()
    for name in ("scandir", "lstat", "stat", "listdir"):
        plain = getattr(os, name)

        def counted(*arguments, name=name, plain=plain, **rest):
            calls[name] += 1
            return plain(*arguments, **rest)

        monkeypatch.setattr(os, name, counted)
    assert files.planted(tmp_path) is None
    assert calls == {"scandir": 1 + 2 + 10 + 100, "lstat": 4}  # each chunk is known from its folder's listing


def test_a_disk_that_is_not_mounted_is_not_begun_anew(tmp_path):
    disk, made = tmp_path / "disk", sweep(trajectory="signs", axes={"seed": 2})
    disk.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trajectories").symlink_to(disk)
    js.run_sweep(made, tmp_path / "out", links=["trajectories"])
    disk.rename(tmp_path / "unmounted")
    disk.mkdir()  # the empty mount point
    for links in ((), ("trajectories",)):
        with pytest.raises((UnusableData, ValueError), match="is that disk mounted"):
            js.run_sweep(made, tmp_path / "out", links=links)
    assert not list(disk.iterdir())


@pytest.mark.parametrize("name", ["manifest.copy.json", "0badf00d.0123456789abcdef.partial"])
def test_a_file_with_one_of_our_names_and_other_content_is_a_stranger(tmp_path, name):
    (tmp_path / name).write_text("my notes")
    with pytest.raises(ValueError, match=name):
        js.run_sweep(sweep(), tmp_path)
    assert (tmp_path / name).read_text() == "my notes"

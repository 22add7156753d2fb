"""Programs on disk: written, read again, checked, bounded; no reason to fail, and never against the user's will."""

import errno
import os
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxsign as js
from jaxsign.compilation import cache, kept_on_disk

HITS = []
jax.monitoring.register_event_listener(lambda event, **_: HITS.append(event) if event.endswith("cache_hits") else None)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of programs, with the suite's own cache switched off."""
    suite = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "programs"))
    cache._configure({"jax_compilation_cache_dir": None})
    cache._drop_damaged.cache_clear()
    yield tmp_path / "programs"
    cache._drop_damaged.cache_clear()
    cache._configure({"jax_compilation_cache_dir": suite})


def compiled(factor=3.0):
    """A program that JAX has not seen in this process, run once; it is the same one for equal factors."""
    return float(jax.jit(lambda x: jnp.sin(x) * factor)(1.0))


def programs(root):
    return sorted(path.name for path in root.glob(f"*/*{cache.PROGRAM}"))


def test_a_program_is_written_once_and_read_again(root, capfd):
    before, filters = jax.config.jax_persistent_cache_min_compile_time_secs, list(warnings.filters)
    with kept_on_disk():
        first = compiled()
    assert warnings.filters == filters
    written = programs(root)
    assert written
    assert [path.parent.name for path in root.glob("*/*")] == [cache.machine()] * 2 * len(written)
    assert jax.config.jax_compilation_cache_dir is None
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before
    assert capfd.readouterr().err.count(cache.VARIABLE) == 1
    HITS.clear()
    with kept_on_disk():
        assert compiled() == first
    assert HITS
    assert programs(root) == written
    assert cache.VARIABLE not in capfd.readouterr().err


def test_reading_a_trajectory_draws_with_the_program_of_its_sweep(root, tmp_path, hyper):
    problem = js.Problem(n=3, d=31, s=3, m_k=2, m_v=2, n_test=4)  # no other test has its programs
    sweep = js.Sweep(
        system=js.two_layer, problem=problem, hyper=hyper, optimizers={"sign_gd": js.sign_gd(1e-3)}, axes={"seed": 2},
        steps=4, trajectory="signs",
    )  # fmt: skip
    js.run_sweep(sweep, tmp_path / "out")
    of_sweep = programs(root)
    drawing = [name for name in of_sweep if name.startswith("jit_block-")]
    assert len(drawing) == 1
    run = js.open_trajectory(tmp_path / "out")[1]
    assert run.params(4).w_q.shape == (2, 31)
    js.replay(run, ["train_loss"], record=2)
    assert [name for name in programs(root) if name.startswith("jit_block-")] == drawing
    assert len(programs(root)) > len(of_sweep)  # those that read are kept too


def test_nothing_is_kept_outside(root):
    with kept_on_disk():
        pass
    compiled()
    assert programs(root) == []


@pytest.mark.parametrize("harm", [
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    lambda path: cache._digest_file(path).unlink(),
    lambda path: cache._digest_file(path).write_text("0"),
    lambda path: cache._digest_file(path).write_bytes(b"\xff\xfe\x00"),
])  # fmt: skip
def test_a_damaged_program_is_removed_and_compiled_again(root, harm):
    with kept_on_disk():
        first = compiled()
    for name in programs(root):
        harm(root / cache.machine() / name)
    cache._drop_damaged.cache_clear()  # as in a new process
    HITS.clear()
    with kept_on_disk():
        assert programs(root) == []
        assert compiled() == first
    assert not HITS
    assert programs(root)


@pytest.mark.parametrize("word", ["off", "0", "no", "FALSE", ""])
def test_the_variable_switches_it_off(root, word, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, word)
    with kept_on_disk():
        assert jax.config.jax_compilation_cache_dir is None
    assert not root.exists()


def test_the_users_own_cache_wins(root, tmp_path):
    cache._configure({"jax_compilation_cache_dir": str(tmp_path / "mine")})
    with kept_on_disk():
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not root.exists()


def test_a_cache_that_jax_was_told_not_to_use_is_not_used(root):
    cache._configure({"jax_enable_compilation_cache": False})
    try:
        with kept_on_disk():
            compiled()
    finally:
        cache._configure({"jax_enable_compilation_cache": True})
    assert programs(root) == []


def test_a_file_in_the_folders_place_is_left_alone(root):
    root.write_text("mine")
    with kept_on_disk():
        assert compiled(5.0) == pytest.approx(5.0 * 0.8414709848)
    assert root.read_text() == "mine"


def test_another_users_folder_is_not_used(root, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with kept_on_disk():
        assert jax.config.jax_compilation_cache_dir is None
    assert programs(root) == []


def test_a_full_disk_is_no_reason_to_fail_or_to_warn(root, monkeypatch):
    def full(self, key, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jax._src.lru_cache.LRUCache.put", full)
    with warnings.catch_warnings(record=True) as seen, kept_on_disk():
        assert compiled(7.0) == pytest.approx(7.0 * 0.8414709848)
    assert [str(w.message) for w in seen if "compilation cache" in str(w.message)] == []
    assert programs(root) == []


def test_the_oldest_programs_go_first(root, monkeypatch):
    for i in range(3):
        with kept_on_disk():
            compiled(10.0 + i)
        for path in (root / cache.machine() / name for name in programs(root)):
            os.utime(path, ns=(path.stat().st_mtime_ns - 10**9,) * 2)
    sizes = {path: path.stat() for path in root.glob(f"*/*{cache.PROGRAM}")}
    oldest_first = sorted(sizes, key=lambda path: sizes[path].st_mtime_ns)
    keep = oldest_first[-2:]
    monkeypatch.setattr(cache, "LIMIT", sum(sizes[path].st_size for path in keep))
    cache._remove_oldest(root)
    assert programs(root) == sorted(path.name for path in keep)
    assert {path.name for path in root.glob("*/*")} == {
        name for path in keep for name in (path.name, cache._digest_file(path).name)
    }


def test_files_of_others_beside_the_programs_stay(root, monkeypatch):
    """The user may name a folder that holds a cache of JAX already."""
    theirs = [root / "mine" / f"jit_f{cache.PROGRAM}", root / f"fonts{cache.PROGRAM}"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    monkeypatch.setattr(cache, "LIMIT", 0)
    with kept_on_disk():
        compiled(20.0)
    assert programs(root) == [theirs[0].name]  # its own were removed at once
    assert all(path.exists() for path in theirs)


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/x", "\0"])
def test_a_folder_that_cannot_be_named_is_not_used(root, monkeypatch, folder):
    monkeypatch.setattr(cache, "_root", lambda: Path(folder).expanduser())
    with kept_on_disk():
        assert jax.config.jax_compilation_cache_dir is None
        compiled(21.0)


def test_a_cache_that_the_user_sets_up_meanwhile_stays(root, tmp_path):
    with kept_on_disk():
        cache._configure({"jax_compilation_cache_dir": str(tmp_path / "mine")})
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_nested_and_threaded_users_restore_the_settings_last(root):
    inside, done = threading.Event(), threading.Event()

    def other():
        with kept_on_disk():
            inside.set()
            done.wait()

    thread = threading.Thread(target=other)
    with kept_on_disk(), kept_on_disk():
        thread.start()
        inside.wait()
    assert jax.config.jax_compilation_cache_dir is not None
    done.set()
    thread.join()
    assert jax.config.jax_compilation_cache_dir is None

"""Programs on disk that need not be traced again: found by content, never stale, and no reason to fail."""

import os
import pickle
import subprocess
import sys
import types
import zlib

import jax
import numpy as np
import optax
import pytest

import jaxsign as js
from jaxsign.compilation import cache, executables
from jaxsign.sweep import programs

TRACED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: TRACED.append(about.get("fun_name"))
    if event.endswith("jaxpr_trace_duration") else None
)  # fmt: skip


def forget():
    """What a new process does not know."""
    executables._KNOWN.clear()
    programs._KNOWN.clear()
    programs._cached_drawing.cache_clear()
    cache._drop_damaged.cache_clear()
    jax.clear_caches()
    TRACED.clear()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of programs, with the suite's own cache switched off."""
    suite = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "programs"))
    cache._configure({"jax_compilation_cache_dir": None})
    forget()
    yield tmp_path / "programs"
    cache._configure({"jax_compilation_cache_dir": suite})
    forget()


def ran(problem, seeds=2, **changes):
    """The losses of a small sweep."""
    sweep = js.Sweep(**{
        "system": js.two_layer, "problem": problem, "hyper": js.Hyper(2.0), "steps": 4, "record": 2,
        "optimizers": {"mine": optax.chain(optax.trace(0.9), optax.scale(-0.01))}, "axes": {"seed": seeds},
        "observables": ["train_loss"],
    } | changes)  # fmt: skip
    return js.run_sweep(sweep, lane_width=2)["train_loss"].values


def kept(root):
    return sorted(root.glob(f"*/{executables.PREFIX}*{cache.PROGRAM}"))


def names(root):
    return [path.name.split("-")[1] for path in kept(root)]


def test_the_next_process_traces_nothing_and_gets_the_same_bits(root, problem):
    first = ran(problem)
    assert names(root) == ["advance", "begin", "init"]
    assert "advance" in TRACED
    forget()
    np.testing.assert_array_equal(ran(problem), first)
    assert not {"advance", "begin", "init", "block"} & set(TRACED)
    assert len(kept(root)) == 3
    again = ran(problem, seeds=[5, 6, 7])  # other seeds, and more of them, are the same programs
    assert not {"advance", "block"} & set(TRACED)
    forget()
    cache._configure({"jax_enable_compilation_cache": False})
    try:
        np.testing.assert_array_equal(ran(problem, seeds=[5, 6, 7]), again)
    finally:
        cache._configure({"jax_enable_compilation_cache": True})
    assert "advance" in TRACED


def test_what_reaches_a_users_function_is_traced_by_every_process(root, problem):
    factor = [1.0]

    def scaled():
        return optax.scale(-0.01 * factor[0])

    first = ran(problem, optimizers={"mine": scaled})
    assert not kept(root)
    forget()
    factor[0] = 2.0
    assert (ran(problem, optimizers={"mine": scaled}) != first).any()


def test_a_program_of_jax_s_own_cache_is_not_written_again(root, problem):
    """XLA would leave out functions: the program would fail where it sorts."""
    first = ran(problem)
    for path in kept(root):
        path.unlink()
    forget()
    np.testing.assert_array_equal(ran(problem), first)
    assert kept(root) == []
    np.testing.assert_array_equal(ran(problem), first)  # compiled in this process: JAX does not say from where
    assert kept(root) == []


def test_what_is_no_program_is_passed_over_and_what_xla_cannot_load_is_traced(root, problem):
    first = ran(problem)
    whole = {path: path.read_bytes() for path in kept(root)}

    def harm(damaged):
        for path, content in whole.items():
            path.write_bytes(damaged(content))
            cache._digest_file(path).write_text(cache._digest(path))  # as if it had been written so
        forget()
        np.testing.assert_array_equal(ran(problem), first)
        assert "advance" in TRACED

    harm(lambda content: content[:-9])
    harm(lambda content: zlib.compress(pickle.dumps((b"no program", pickle.loads(zlib.decompress(content))[1]))))


@pytest.fixture
def around(root):
    """`surroundings`, with programs kept on disk."""
    with cache.kept_on_disk():
        yield executables.surroundings


def test_surroundings_are_those_of_another_process(around):
    program = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2)\n"
        "jax.config.update('jax_numpy_rank_promotion', 'raise')\n"
        "jax.config.update('jax_numpy_dtype_promotion', 'strict')\n"
        "import jaxsign as js\nfrom jaxsign.compilation import cache, content, executables\n"
        "from jaxsign.training.mode import Mode\n"
        "with cache.kept_on_disk(): print(executables.surroundings())\n"
        "task = js.two_layer(js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=16))\n"
        "words = []\n"
        "executables._name_parts(content(Mode(task), js.sign_gd, {1.0: 'a'}, frozenset), words)\n"
        "print(len(words), *words)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    found = [
        subprocess.run(
            [sys.executable, "-c", program], env={**environment, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in (1, 2)
    ]  # fmt: skip
    assert found[0] == found[1]
    digest, words = found[0].split("\n", 1)
    assert len(digest) == 64
    assert int(words.split()[0]) > 100
    assert "0x" not in words


def swapped(module, name, value):
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize(
    "change",
    [
        swapped(optax._src.transform, "scale_by_adam", optax.scale_by_rms),
        swapped(jax._src.nn.functions, "relu", jax.nn.silu),
        swapped(optax._src.base.GradientTransformation, "init", optax.sgd), swapped(programs, "DRAWN", 8),
        swapped(js.systems.two_layer.model, "Params", js.Problem), swapped(executables, "OURS", ("a",)),
    ],
    ids=["function of Optax", "jitted function of JAX", "method", "number", "class", "texts"],
)  # fmt: skip
def test_a_function_or_constant_of_the_packages_that_was_replaced_is_another_digest(around, change, monkeypatch):
    before = around()
    assert around() == before
    with monkeypatch.context() as replaced:
        change(replaced)
        assert around() not in (before, None)
    assert around() == before


@pytest.mark.parametrize(
    "place", [optax._src.transform, jax.nn, js.systems.two_layer.model, optax.GradientTransformation]
)
def test_a_users_function_inside_a_package_keeps_nothing(around, place, monkeypatch):
    monkeypatch.setattr(place, "mine", lambda x: x, raising=False)
    assert around() is None


def test_settings_flags_and_sources_are_a_part_of_it(around, monkeypatch, tmp_path):
    digests = {around()}
    with jax.default_matmul_precision("float32"):
        digests.add(around())
    with jax.enable_x64(not jax.config.jax_enable_x64):
        digests.add(around())
    with monkeypatch.context() as other:
        other.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        digests.add(around())
    assert len(digests) == 4
    package = types.ModuleType("edited")
    package.__path__ = [str(tmp_path / "edited")]
    (tmp_path / "edited").mkdir()
    monkeypatch.setitem(sys.modules, "edited", package)
    monkeypatch.setattr(executables, "OTHERS", ("edited",))
    found = set()
    for text in ("a = 1", "a = 12"):
        (tmp_path / "edited" / "file.py").write_text(text)
        executables._sources.cache_clear()
        found.add(executables._sources())
    executables._sources.cache_clear()
    assert len(found) == 2


def test_nothing_is_kept_without_a_folder(problem):
    assert executables.surroundings() is None  # the suite has a cache of JAX's own


def test_a_process_keeps_a_bounded_number_of_programs(root, problem, monkeypatch):
    monkeypatch.setattr(executables, "KEPT", 2)
    ran(problem)
    assert len(executables._KNOWN) == 2

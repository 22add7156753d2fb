"""Keeps compiled programs on disk, so that the next process need not compile them again."""

import contextlib
import functools
import hashlib
import os
import platform
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache

from jaxsign.validation.messages import say

#: The environment variable that names another folder, or switches the cache off.
VARIABLE = "JAXSIGN_COMPILATION_CACHE"
OFF = ("off", "0", "no", "false")
#: Bytes that programs of all versions take together; the oldest go first.
LIMIT = 256 * 2**20
#: What JAX calls a program, and what is written beside it: a digest of its bytes, which JAX does not check.
PROGRAM, DIGEST = "-cache", "-digest"
#: JAX's own words where it cannot read or write a program; the program is compiled then.
UNUSABLE = r"Error (reading|writing) persistent compilation cache"


@contextlib.contextmanager
def kept_on_disk() -> Iterator[None]:
    """Programs that are compiled inside are looked up in the user's cache folder, and kept there.

    It uses JAX's own persistent compilation cache, and steps back where the user has set one up or has switched it
    off. It is never a reason to fail: a folder that is damaged, full, read-only or somebody else's is not used.
    """
    with _TURN:
        entered = _STATE.users > 0 or _switch_on()
        _STATE.users += entered
    try:
        yield
    finally:
        if entered:
            with _TURN:
                _STATE.users -= 1
                if not _STATE.users:
                    _switch_off()


class _State:
    """Who uses the cache in this process, and what to restore when nobody does any more."""

    users = 0
    folder = Path()
    before: dict[str, object] = {}  # noqa: RUF012
    silence: object = None  # the filter of JAX's warnings


_TURN, _STATE = threading.Lock(), _State()


def _switch_on() -> bool:
    """Points JAX at the folder of this machine and these versions; False if there is none to use."""
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return False
    try:
        root = _root()
        if root is None:
            return False
        folder, new = root / machine(), not root.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
        if not mine or not os.access(folder, os.W_OK):
            return False
        _drop_damaged(str(folder))
    except (OSError, RuntimeError, ValueError):  # no such folder can be made, read or, without a home, named
        return False
    if new:
        say(f"compiled programs are kept in {root}, at most {LIMIT // 2**20} MiB; {VARIABLE}=off keeps none")
    wanted = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    _STATE.folder, _STATE.before = folder, {name: getattr(settings, name) for name in wanted}
    _configure(wanted)
    warnings.filterwarnings("ignore", UNUSABLE)
    _STATE.silence = warnings.filters[0]
    return True


def _switch_off() -> None:
    """Restores JAX's settings, seals new programs and removes the oldest."""
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir == str(_STATE.folder):  # else the user has set up a cache meanwhile
        _configure(_STATE.before)
    filters: Any = warnings.filters
    with contextlib.suppress(ValueError):  # the user has removed it
        filters.remove(_STATE.silence)
    with contextlib.suppress(OSError):
        if _seal(_STATE.folder):
            _remove_oldest(_STATE.folder.parent)


def _configure(settings: dict[str, object]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the settings once


def _root() -> Path | None:
    """The folder of all versions; None if the cache is switched off."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.lower() in (*OFF, "") else Path(given).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("jaxsign", appauthor=False) / "programs"


@functools.cache
def machine() -> str:
    """A name for what compiled code depends on: processor, its instructions, versions of JAX.

    Examples:
      >>> import jax
      >>> machine().startswith(f"jax-{jax.__version__}-")
      True
    """
    flags = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    facts = [jax.__version__, jaxlib.__version__, platform.machine(), platform.processor(), flags]
    return f"jax-{jax.__version__}-{platform.machine()}-{hashlib.sha256('|'.join(facts).encode()).hexdigest()[:12]}"


@functools.cache
def _drop_damaged(folder: str) -> None:
    """Removes programs that are not what was written, once in a process: damaged code would run in silence."""
    for program in Path(folder).glob(f"*{PROGRAM}"):
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            seal = _digest_file(program)
            if not seal.exists() or seal.read_bytes() != _digest(program).encode():
                program.unlink()
                seal.unlink(missing_ok=True)


def _seal(folder: Path) -> bool:
    """Writes the digests of new programs; whether there are any.

    One that another process is still writing gets a digest that it will not have: it is compiled once more.
    """
    new = [program for program in folder.glob(f"*{PROGRAM}") if not _digest_file(program).exists()]
    for program in new:
        _digest_file(program).write_text(_digest(program))
    return bool(new)


def _remove_oldest(root: Path) -> None:
    """Removes the oldest programs beyond LIMIT: of folders that are named as `machine` does, and with a digest."""
    ours = [p for p in root.glob(f"jax-*-*-{'[0-9a-f]' * 12}/*{PROGRAM}") if _digest_file(p).exists()]
    programs = sorted(ours, key=lambda program: program.stat().st_mtime)
    excess = sum(program.stat().st_size for program in programs) - LIMIT
    for program in programs:
        if excess <= 0:
            return
        excess -= program.stat().st_size
        _digest_file(program).unlink(missing_ok=True)
        program.unlink(missing_ok=True)


def _digest_file(program: Path) -> Path:
    return program.with_name(program.name.removesuffix(PROGRAM) + DIGEST)


def _digest(program: Path) -> str:
    return hashlib.sha256(program.read_bytes()).hexdigest()

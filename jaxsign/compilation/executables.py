"""Keeps programs on disk with what was traced, so that the next process need not trace them again."""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import os
import pickle
import sys
import threading
import types
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from jaxsign.compilation.cache import PROGRAM, folder, machine
from jaxsign.compilation.content import PACKAGES, PLAIN, Same, packaged

#: What files with programs are called; JAX's own begin with the name of a function.
PREFIX = "traced-"
#: Other packages that take part in tracing programs.
OTHERS = ("jax", "optax", "chex", "flax")
#: Modules of this package whose functions are traced.
OURS = (
    "jaxsign.compilation.", "jaxsign.optimizers.", "jaxsign.training.", "jaxsign.systems.", "jaxsign.sweep.programs",
)  # fmt: skip
#: Modules of JAX and Optax whose functions are traced: those that both load at once, not what one script loads and
#: another one does not. In `jax._src.literals` loops over sets of classes leave names, in an order that varies.
THEIRS = {name for name in sys.modules if name.startswith(("jax._src.", "optax."))} - {"jax._src.literals"}


class _Unnameable(Exception):
    """A value has no name that means the same in another process."""


@dataclasses.dataclass(frozen=True)
class Ready:
    """A program that was traced, or found on disk, with the two things that are asked of `jax.stages.Lowered`.

    Args:
      out_info: shapes and dtypes of the results.
      compile: `() -> jax.stages.Compiled`.
    """

    out_info: Any
    compile: Callable[[], Any]


def surroundings() -> str | None:
    """A digest of all that a program depends on beside its own content and arguments, as it is now.

    It covers the machine, its devices, JAX's settings, the packages' source files, and the functions and constants
    that they hold in this process: whoever has replaced one gets another digest.

    Returns:
      The digest; None if programs are not kept on disk, or if a package holds a function of the user.
    """
    if folder() is None:
        return None
    devices = [(d.platform, d.device_kind, d.id) for d in jax.local_devices()]
    words = repr((devices, os.environ.get("XLA_FLAGS", ""), machine(), _settings(), _sources()))
    try:
        return hashlib.sha256(f"{words} {_held()}".encode()).hexdigest()
    except _Unnameable:
        return None


def ready(function: Any, key: Hashable | None, name: str, around: str | None, *args: Any) -> Ready:
    """The program of a jitted function for some arguments: read where an equal one is kept, otherwise traced.

    Programs are equal if their content, the shapes and places of their arguments and their surroundings are.

    Args:
      function: jitted.
      key: what the function was built from, by `content`; None if that cannot be compared between processes.
      name: which of the functions with this key it is.
      around: the `surroundings`; None always traces.
      args: arrays, or their shapes, dtypes and shardings.

    Returns:
      The program; `compile()` loads it, or compiles it and keeps it.
    """
    file = _file(key, name, around, args)
    if file is None:
        lowered = function.lower(*args)
        return Ready(lowered.out_info, lowered.compile)
    with _TURN:
        known = _KNOWN.get(file)
    return known or _loaded(file, function, args) or _traced(file, function, args)


#: Programs that this process has read or written, the one that was used last at the end, and how many it keeps.
_KNOWN: dict[Path, Ready] = {}
KEPT, _TURN = 192, threading.Lock()


def _remembered(file: Path, out_info: Any, compiled: jax.stages.Compiled) -> jax.stages.Compiled:
    """The same program, which this process need not read again."""
    with _TURN:
        _KNOWN.pop(file, None)
        _KNOWN[file] = Ready(out_info, lambda: _remembered(file, out_info, compiled))
        while len(_KNOWN) > KEPT:
            del _KNOWN[next(iter(_KNOWN))]
    return compiled


def _loaded(file: Path, function: Any, args: Any) -> Ready | None:
    """A program that is read from its file; None if there is none."""
    kept = _read(file)
    if kept is None:
        return None
    payload, out_info = kept

    def load() -> jax.stages.Compiled:
        inside, outside, devices = jax.tree.structure((args, {})), jax.tree.structure(out_info), jax.local_devices()
        try:
            compiled = serialize_executable.deserialize_and_load(payload, inside, outside, execution_devices=devices)
        except Exception:  # of any kind that XLA and pickle know: a cache is never a reason to fail
            return function.lower(*args).compile()
        return _remembered(file, out_info, compiled)

    return Ready(out_info, load)


def _traced(file: Path, function: Any, args: Any) -> Ready:
    """A program that is traced now, and written to its file once it is compiled."""
    lowered = function.lower(*args)

    def compile() -> jax.stages.Compiled:
        compiled, new = _compiled(lowered)
        if not new:
            return compiled
        out_info = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info)
        _write(file, compiled, out_info)
        return _remembered(file, out_info, compiled)

    return Ready(lowered.out_info, compile)


def _file(key: Hashable | None, name: str, around: str | None, args: Any) -> Path | None:
    """Where the program is kept; None if there is no folder, or something has no name in other processes."""
    place = folder()
    if place is None or key is None or around is None:
        return None
    leaves, structure = jax.tree.flatten(args)
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        return None
    shapes = [(x.shape, str(x.dtype), getattr(x, "weak_type", False), str(getattr(x, "sharding", ""))) for x in leaves]
    words = [around, name, repr(shapes), str(structure)]
    try:
        _name_parts(key, words)
    except _Unnameable:
        return None
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()
    return place / f"{PREFIX}{name}-{digest}{PROGRAM}"


#: JAX's event of a program that it has compiled and written into its own cache.
COMPILED = "/jax/compilation_cache/cache_misses"
_HEARD = threading.local()


@functools.cache
def _listen() -> None:
    """Begins to hear JAX's events, once a process."""

    def hear(event: str, **about: Any) -> None:
        if event == COMPILED:
            _HEARD.count = getattr(_HEARD, "count", 0) + 1

    jax.monitoring.register_event_listener(hear)


def _compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """A compiled program, and whether it was compiled just now.

    XLA writes only half of one that comes from JAX's cache (jax 0.10.2: without the functions by which a sort
    compares), so only a program that is known to be new is kept.
    """
    _listen()
    before = getattr(_HEARD, "count", 0)
    compiled = lowered.compile()
    return compiled, getattr(_HEARD, "count", 0) > before


def _read(file: Path) -> tuple[bytes, Any] | None:
    """(the program, shapes and dtypes of its results); None if there is none that can be read."""
    with contextlib.suppress(Exception):  # it is not there, cut, or of classes that are gone: it is traced
        payload, out_info = pickle.loads(zlib.decompress(file.read_bytes()))
        return payload, out_info
    return None


def _write(file: Path, compiled: jax.stages.Compiled, out_info: Any) -> None:
    """Keeps a program; one that cannot be written as bytes, such as one with random state, is not kept."""
    with contextlib.suppress(Exception):
        content = pickle.dumps((serialize_executable.serialize(compiled)[0], out_info))
        new = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}")
        new.write_bytes(zlib.compress(content, 1))
        new.replace(file)


def _settings() -> list[tuple[str, str]]:
    """JAX's settings, but for the number of CPU devices: the devices are a part of every name."""
    names = sorted(set(jax.config.values) - {"jax_num_cpu_devices"})
    return [(name, repr(getattr(jax.config, name, None))) for name in names]


@functools.cache
def _sources() -> str:
    """A digest of the packages' versions and of the sizes and dates of their files, once a process."""
    facts = [(package, metadata.version(package)) for package in (*PACKAGES, "chex", "numpy")]
    digest = hashlib.sha256(repr(facts).encode())
    for package in (*OTHERS, "jaxsign"):
        for root in map(Path, getattr(sys.modules.get(package), "__path__", ())):
            for file in sorted(root.rglob("*.py")):
                at = file.stat()
                digest.update(repr((str(file), at.st_size, at.st_mtime_ns)).encode())
    return digest.hexdigest()


def _held() -> str:
    """A digest of the functions and constants that the packages hold in this process.

    Raises:
      _Unnameable: if a function of somebody else is among them.
    """
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        watched = name in THEIRS or name.startswith(OURS)
        if module is not None and (watched or name.partition(".")[0] in OTHERS):
            values = _values(module)
            seen = _SEEN.get(name)
            if seen is None or list(map(id, seen[0])) != list(map(id, values)):
                text = "\n".join([name, *_words(vars(module), name)])
                seen = _SEEN[name] = values, hashlib.sha256(text.encode()).digest()
            if watched:
                digest.update(seen[1])
    return digest.hexdigest()


#: {module: (what it held when it was last looked at, the digest of that)}.
_SEEN: dict[str, tuple[list[Any], bytes]] = {}


def _values(module: types.ModuleType) -> list[Any]:
    """What a module and its own classes hold."""
    values = list(vars(module).values())
    own = [value for value in values if isinstance(value, type) and value.__module__ == module.__name__]
    return [*values, *(value for kind in own for value in list(vars(kind).values()))]


def _words(names: Mapping[str, Any], module: str) -> Iterator[str]:
    """The functions, classes and constants that a module or a class holds."""
    for name, value in list(names.items()):
        if isinstance(value, types.ModuleType):
            continue
        value = getattr(value, "__wrapped__", None) or getattr(value, "__func__", None) or getattr(value, "fget", value)
        if type(value) is types.FunctionType:
            home = str(value.__globals__.get("__name__"))
            if not (packaged(home) or home.startswith("namedtuple_")):
                raise _Unnameable
            yield f"{name} {home} {value.__qualname__} {value.__code__.co_firstlineno}"
        elif isinstance(value, type):
            if module and not packaged(value.__module__):
                raise _Unnameable
            if len(name.strip("_")) > 1:  # else what a loop over a set has left, whose order is not that of a process
                yield f"{name} {value.__module__} {value.__qualname__}"
            if value.__module__ == module:
                yield from _words(vars(value), "")
        elif not module.startswith("jax.") and _is_plain(value, name.isupper() and not name.startswith("_")):
            yield f"{name} {sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else value!r}"


def _is_plain(value: Any, constant: bool) -> bool:
    """Whether a value is made of numbers and texts; what can be changed in place counts if it is a constant by name."""
    if type(value) in (tuple, frozenset) or (constant and type(value) in (list, set)):
        return all(_is_plain(item, constant) for item in value)
    if constant and type(value) is dict:
        return all(_is_plain(item, constant) for item in (*value, *value.values()))
    return type(value) in PLAIN


def _name_parts(value: Any, words: list[str]) -> None:
    """Adds a key of `content` as words that mean the same in every process.

    Raises:
      _Unnameable: if something in it is known by its identity alone.
    """
    kind = type(value)
    if kind is tuple:
        words.append(f"({len(value)}")
        for item in value:
            _name_parts(item, words)
    elif kind in PLAIN or isinstance(value, np.dtype):
        words.append(f"{kind.__name__} {value!r}")
    elif kind is types.CodeType:
        _name_code(value, words)
    elif kind is Same and value.made_of is not None:
        words.append(f"{type(value.value).__name__} of")
        _name_parts(value.made_of, words)
    else:
        words.append(_name(value.value if kind is Same else value))


def _name_code(code: types.CodeType, words: list[str]) -> None:
    """Adds what a function does, without where it stands."""
    words.append(repr((
        code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags,
        code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount,
    )))  # fmt: skip
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            _name_code(value, words)
        else:
            words.append(repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value))


def _name(value: Any) -> str:
    """The module and name under which a class, a function or a member of an enumeration is found again."""
    if isinstance(value, enum.Enum):
        return f"{_name(type(value))}.{value.name}"
    module = getattr(value, "__module__", None) or ("numpy" if isinstance(value, np.ufunc) else None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    found: Any = sys.modules.get(str(module))
    for part in str(name).split("."):
        found = getattr(found, part, None)
    if found is value or (isinstance(value, type) and module == "builtins"):
        return f"{module}:{name}"
    if isinstance(value, types.ModuleType):
        return value.__name__
    raise _Unnameable

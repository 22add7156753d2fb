"""Do two programs compute the same? A key of everything that they are built from, where no user's code is among it."""

import dataclasses
import enum
import functools
import sys
import sysconfig
import types
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jax
import numpy as np

#: Packages by name, since a developer's copy of them lies outside site-packages.
PACKAGES = ("jax", "jaxlib", "optax", "flax", "jaxsign")


@functools.cache
def packaged(module: str) -> bool:
    """Whether a module belongs to an installed package or to Python, and not to the user.

    Examples:
      >>> packaged("optax._src.alias"), packaged("json"), packaged("__main__")
      (True, True, False)
    """
    top = module.partition(".")[0]
    if top in PACKAGES or top in sys.builtin_module_names:
        return True
    module_object = sys.modules.get(top)
    locations = [getattr(module_object, "__file__", None), *getattr(module_object, "__path__", ())]
    files = [Path(location) for location in locations if location]
    if top == "__main__" or not files:
        return top in sys.stdlib_module_names
    if {"site-packages", "dist-packages"} & set(files[0].parts):
        return True
    return files[0].is_relative_to(sysconfig.get_path("stdlib"))


def module_of(value: Any) -> str:
    """The module that a function, class or object comes from."""
    return getattr(value, "__module__", None) or type(value).__module__


class _UsersCode(Exception):
    """A value contains code that may read what has changed, or that cannot be compared."""


def content(*values: Any) -> Hashable | None:
    """A key by which programs built from equal values are equal, or None if some value reaches a user's code.

    Functions of installed packages are compared by their code and by what they close over, so that two calls of
    `optax.sgd(0.1)` give equal keys. A user's function has no key: it may read a global that has changed.

    Args:
      values: functions, transforms, tasks, numbers, arrays, and tuples, dicts and dataclasses of them.

    Returns:
      A hashable key, or None.

    Examples:
      >>> import optax
      >>> content(optax.sgd(0.1)) == content(optax.sgd(0.1)), content(optax.sgd(0.1)) == content(optax.sgd(0.2))
      (True, False)
    """
    try:
        return _key(values, ())
    except _UsersCode:
        return None


#: Packages whose code is known not to change while a process runs. Others may read settings of the user.
TRUSTED = (*PACKAGES, "numpy", "chex")
#: Types whose values are compared by their text, which tells -0.0 from 0.0, and for which nan is nan.
PLAIN = (type(None), bool, int, float, complex, str, bytes)


def _key(value: Any, inside: tuple[int, ...]) -> Hashable:
    """The key of one value; `inside` are the ids of the values that contain it.

    Types are compared exactly: a user's subclass of a plain type may have code of its own.
    """
    kind: Any = type(value)
    if kind in PLAIN:
        return kind, repr(value)
    if id(value) in inside:
        raise _UsersCode  # a cycle
    inside = (*inside, id(value))
    if kind in (dict, types.MappingProxyType):
        return kind, tuple((_key(k, inside), _key(v, inside)) for k, v in value.items())
    if kind in (tuple, list):
        return kind, tuple(_key(v, inside) for v in value)
    if kind is functools.partial:
        return kind, _key((value.func, value.args, value.keywords), inside)
    if kind is types.MethodType:
        return kind, _key((value.__func__, value.__self__), inside)
    if kind is types.FunctionType:
        return _function(value, inside)
    if kind is types.ModuleType or issubclass(kind, type):
        if not _trusted(value.__name__ if kind is types.ModuleType else value.__module__):
            raise _UsersCode
        return Same(value)
    if not _trusted(kind.__module__):
        raise _UsersCode
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array(value)
    if isinstance(value, float):  # a package's own kind of number
        return kind, repr(value)
    if isinstance(value, tuple):  # a record of a package, such as a transform
        return kind, tuple(_key(v, inside) for v in value)
    if isinstance(value, (np.dtype, enum.Enum, np.ufunc, types.BuiltinFunctionType)):
        return Same(value) if not isinstance(value, np.dtype) else (kind, value)
    if dataclasses.is_dataclass(value):
        return kind, tuple(_key(getattr(value, f.name), inside) for f in dataclasses.fields(value))
    if callable(value) and (wrapped := getattr(value, "__wrapped__", None)) is not None:
        _key(wrapped, inside)  # refuses a user's function that is jitted or has a rule for derivatives
        return Same(value)
    raise _UsersCode


def _trusted(module: str | None) -> bool:
    """Whether a module belongs to a package whose code does not change, or to Python."""
    top = str(module).partition(".")[0]
    if top in TRUSTED or top in sys.builtin_module_names:
        return True
    return top != "__main__" and top in sys.stdlib_module_names and packaged(top)  # not a user's statistics.py


def _function(function: types.FunctionType, inside: tuple[int, ...]) -> Hashable:
    """The key of a package's function: its code and the values that it holds.

    Where it comes from is read off its globals: `functools.wraps` gives a user's function the name of a package's.
    """
    home = function.__globals__.get("__name__")
    if not _trusted(home) or function.__globals__ is not getattr(sys.modules.get(str(home)), "__dict__", None):
        raise _UsersCode
    cells = tuple(_cell(cell, inside) for cell in function.__closure__ or ())
    held = (function.__defaults__, function.__kwdefaults__, dict(vars(function)))
    return home, function.__code__, cells, _key(held, inside)


def filled(cell: types.CellType) -> bool:
    """Whether a cell of a closure holds a value: that of a recursive function's own name is empty until it is bound.

    Examples:
      >>> held = 1
      >>> [filled(cell) for cell in (lambda value: lambda: value)(held).__closure__]
      [True]
    """
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _cell(cell: types.CellType, inside: tuple[int, ...]) -> Hashable:
    return _key(cell.cell_contents, inside) if filled(cell) else "empty"


def _array(value: Any) -> Hashable:
    if isinstance(value, jax.core.Tracer):
        raise _UsersCode
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(value)), _array(jax.random.key_data(value))
    array = np.asarray(value)
    if array.dtype == object or (isinstance(value, np.ndarray) and type(value) is not np.ndarray):
        raise _UsersCode  # such as a masked array
    return type(value), str(array.dtype), array.shape, array.tobytes(), getattr(value, "weak_type", False)


class Same:
    """An object as a key: equal to itself only. It keeps the object, so that no other one gets its id."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

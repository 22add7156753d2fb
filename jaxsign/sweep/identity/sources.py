"""Digests of a user's own code: every function, class and constant that a callable reaches, in normal form."""

import builtins
import dataclasses
import enum
import functools
import hashlib
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsign.compilation import filled, module_of, packaged
from jaxsign.sweep.identity.syntax import Normal, bytecode, node_of, tree_of

#: Maximum depth to which objects inside objects of packages are followed.
DEPTH = 4
#: Longer texts of constants are hashed.
SHORT = 60


class Reached:
    """All code and constants of the user that some callables reach.

    A digest depends on code and values alone, and not on comments, docstrings, annotations, the names of local
    variables, functions and modules, or the order of functions in a file. Code of installed packages counts by name.

    Args:
      parts: {name of a function or constant: digest of the function's own body, or the constant}, for messages.
      packages: names of the installed packages that the user's code uses.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}
        self.packages: set[str] = set()
        self._known: dict[tuple[int, bool], str] = {}
        self._kept: list[Any] = []  # an id stays taken while its object lives
        self._open: list[int] = []

    def digest(self, value: Any) -> str:
        """Digest of the user's code and values that a callable or a transform reaches; "" if it reaches none."""
        return self._visit(value, "", False)

    def _visit(self, value: Any, name: str, users: bool, depth: int = 0) -> str:
        """Digest of one value; numbers inside packages' functions (`users` is False) are not code of the user."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic, enum.Enum, np.dtype)):
            return self._constant(value, name) if users else ""
        key = id(value), users
        if id(value) in self._open:
            return f"cycle {len(self._open) - self._open.index(id(value))}"
        if key not in self._known:
            self._open.append(id(value))
            try:
                inside = self._inside(value, name, users, depth)
            finally:
                self._open.pop()
            self._known[key] = inside
            self._kept.append(value)
        return self._known[key]

    def _constant(self, value: Any, name: str) -> str:
        text = f"{type(value).__name__} {value!r}" if not isinstance(value, enum.Enum) else str(value)
        if isinstance(value, np.generic):
            value = value.item()
        if name:
            shown = value if isinstance(value, (bool, int, float, str)) and len(str(value)) <= SHORT else _hash(text)
            self._part(name, shown)
        return _hash(text)

    def _part(self, name: str, value: Any) -> None:
        known, number = name, 2
        while known in self.parts and self.parts[known] != value:
            known, number = f"{name}#{number}", number + 1
        self.parts[known] = value

    def _several(self, values: Iterable[tuple[str, Any]], users: bool, depth: int, head: str = "") -> str:
        inside = [digest for name, value in values if (digest := self._visit(value, name, users, depth))]
        return _hash(head, *inside) if inside or (users and head) else ""

    def _inside(self, value: Any, name: str, users: bool, depth: int) -> str:
        if isinstance(value, (np.ndarray, jax.Array)):
            return self._array(value, name) if users else ""
        if isinstance(value, types.ModuleType):
            return "" if packaged(value.__name__) else self._module(value)
        if isinstance(value, Mapping):
            items = sorted(((_key(k), v) for k, v in value.items()), key=lambda item: item[0])
            head = ",".join(key for key, _ in items)
            return self._several([(f"{name}[{key}]", v) for key, v in items], users, depth, f"mapping {head}")
        if isinstance(value, (list, tuple)):
            return self._several(
                [(f"{name}[{i}]", v) for i, v in enumerate(value)], users, depth, f"sequence {len(value)}"
            )
        if isinstance(value, (set, frozenset)):
            return _hash(*sorted(self._visit(v, "", users, depth) for v in value)) if users else ""
        if isinstance(value, functools.partial):
            parts = [("", value.func), *((f"{name}.{k}", v) for k, v in sorted(value.keywords.items()))]
            bound = [(f"{name}[{i}]", v) for i, v in enumerate(value.args)]
            inner = users or not packaged(module_of(value.func))
            digests = [self._visit(v, label, inner, depth) for label, v in [*parts, *bound]]
            return _hash("partial", str(list(value.keywords)), *digests) if any(digests) else ""
        if inspect.ismethod(value):
            digests = [self._visit(value.__func__, name, users, depth), self._visit(value.__self__, name, users, depth)]
            return _hash("method", *digests) if any(digests) else ""
        if isinstance(value, types.FunctionType):
            return self._function(value, users)
        if isinstance(value, type):
            return self._class(value) if users or not packaged(value.__module__) else ""
        return self._object(value, name, users, depth)

    def _array(self, value: Any, name: str) -> str:
        if isinstance(value, jax.core.Tracer):
            return "tracer"
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        objects = self._several(enumerate_names(name, array), True, 0) if array.dtype == object else ""
        digest = _hash(str(array.dtype), str(array.shape), objects or np.ascontiguousarray(array).tobytes())
        if name:
            self._part(name, f"{array.dtype}{list(array.shape)} {digest}")
        return digest

    def _module(self, module: types.ModuleType) -> str:
        """A user's module that is used as a whole, not for one name in it."""
        tree = tree_of(getattr(module, "__file__", None) or "")
        if tree is None:
            return module.__name__
        return _hash("module", Normal(lambda name, attributes: (f"global {name}", 0)).text(tree, []))

    def _function(self, function: types.FunctionType, users: bool) -> str:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
        if packaged(module_of(function)):
            top = module_of(function).partition(".")[0]
            self.packages.add(top)
            values = [(key, cell.cell_contents) for key, cell in cells.items() if filled(cell)]
            inside = self._several(values, False, 0)
            return _hash(top, function.__qualname__, inside) if users or inside else ""
        label = function.__qualname__.replace("<locals>.", "")
        order: list[Any] = []
        names: list[str] = []

        def refer(key: str, chain: tuple[str, ...] = ()) -> tuple[str, int]:
            """(placeholder of a free name with its attributes, number of attributes that it includes)."""
            if key in cells:
                if not filled(cells[key]):
                    return "empty", 0
                value, shown = cells[key].cell_contents, f"{label}.{key}"
            elif key in function.__globals__:
                value, shown = function.__globals__[key], key
            elif hasattr(builtins, key):
                return f"builtin {key}", 0
            else:
                return f"missing {key}", 0
            used = 0
            while isinstance(value, types.ModuleType) and used < len(chain):
                if packaged(value.__name__):
                    self.packages.add(value.__name__.partition(".")[0])
                    return f"{value.__name__}.{'.'.join(chain[used:])}", len(chain)
                if not hasattr(value, chain[used]):
                    break
                value, shown = getattr(value, chain[used]), chain[used]
                used += 1
            if isinstance(value, types.ModuleType) and packaged(value.__name__):
                return value.__name__, used
            places = [i for i, one in enumerate(order) if one is value]
            if not places:
                order.append(value)
                names.append(shown)
            return f"reached {places[0] if places else len(order) - 1}", used

        node = node_of(function.__code__)
        text = Normal(refer).root(node) if node is not None else bytecode(function.__code__, refer)
        self._part(label, _hash(text))
        digests = [self._visit(value, shown, True) for value, shown in zip(order, names)]
        defaults = dict(zip(_parameters(function)[::-1], (function.__defaults__ or ())[::-1]))
        defaults |= function.__kwdefaults__ or {}
        attributes = {f"{label}.{key}": value for key, value in defaults.items()}
        attributes |= {f"{label}.{key}": value for key, value in vars(function).items() if key != "__wrapped__"}
        digests += [self._visit(value, shown, True) for shown, value in attributes.items()]
        return _hash(text, str(list(defaults)), *digests)

    def _class(self, kind: type) -> str:
        if packaged(kind.__module__):
            self.packages.add(kind.__module__.partition(".")[0])
            return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        digests = [_hash("fields", *(field.name for field in fields))]
        for field in fields:
            for value in (field.default, field.default_factory):
                if value is not dataclasses.MISSING:
                    digests.append(self._visit(value, f"{kind.__name__}.{field.name}", True))
        for name, member in sorted(vars(kind).items()):
            if name in _GENERATED or _generated(member) or name in {field.name for field in fields}:
                continue
            inner = [member.__func__] if isinstance(member, (staticmethod, classmethod)) else [member]
            if isinstance(member, property):
                inner = [one for one in (member.fget, member.fset, member.fdel) if one is not None]
            digests.append(_hash(name, *(self._visit(one, f"{kind.__name__}.{name}", True) for one in inner)))
        bases = [self._visit(base, "", True) for base in kind.__bases__ if base is not object]
        return _hash("class", *digests, *bases)

    def _object(self, value: Any, name: str, users: bool, depth: int) -> str:
        """Any other object: its class and attributes; a wrapped function, such as a jitted one, by itself."""
        kind = type(value)
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is not None and packaged(kind.__module__):
            rules = [
                v for k, v in (getattr(value, "__dict__", None) or {}).items() if k != "__wrapped__" and callable(v)
            ]
            digests = [self._visit(one, "", users, depth + 1) for one in (wrapped, *rules) if one is not None]
            return _hash("wrapped", *digests) if any(digests) else ""
        users_class = not packaged(kind.__module__)
        if depth > DEPTH:
            return kind.__qualname__ if users else ""
        attributes: dict[str, Any] = {}
        if dataclasses.is_dataclass(value):
            attributes = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        elif users_class or callable(value):  # other objects of packages, such as loggers, reach half of the process
            attributes = dict(getattr(value, "__dict__", None) or {})
            for slot in (s for base in kind.__mro__ for s in _slots(base)):
                if hasattr(value, slot):
                    attributes.setdefault(slot, getattr(value, slot))
        base = name or kind.__name__
        items = [(f"{base}.{key}", attributes[key]) for key in sorted(attributes)]
        inside = self._several(items, users or users_class, depth + 1, "holds " + ",".join(sorted(attributes)))
        if not users_class and not users and not inside:
            return ""
        return _hash(self._class(kind) if users_class else kind.__qualname__, getattr(value, "__name__", ""), inside)


def enumerate_names(name: str, array: np.ndarray) -> list[tuple[str, Any]]:
    """(name, value) of every element of an array of objects."""
    return [(f"{name}[{i}]", value) for i, value in enumerate(array.ravel().tolist())]


#: Members that Python or a decorator writes into a class.
_GENERATED = frozenset({
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__dataclass_fields__",
    "__dataclass_params__", "__match_args__", "__firstlineno__", "__static_attributes__", "__slots__", "__hash__",
    "__annotations_cache__", "__annotate_func__", "__annotate__", "__abstractmethods__", "_abc_impl", "__parameters__",
    "__orig_bases__",
})  # fmt: skip


def _generated(member: Any) -> bool:
    """Whether a decorator such as `dataclass` has written a method."""
    code = getattr(member, "__code__", None)
    return (code is not None and code.co_filename.startswith("<string>")) or isinstance(
        member, types.MemberDescriptorType
    )


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _parameters(function: types.FunctionType) -> tuple[str, ...]:
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def _key(key: Any) -> str:
    """Text of a dict's key, the same in every process."""
    plain = (bool, int, float, str, bytes, type(None))
    good = isinstance(key, plain) or (isinstance(key, tuple) and all(isinstance(k, plain) for k in key))
    return repr(key) if good else getattr(key, "__qualname__", type(key).__qualname__)


def _hash(*parts: str | bytes) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(str(len(data)).encode() + b":" + data)
    return hashed.hexdigest()[:16]

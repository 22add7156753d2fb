"""A function's code in a normal form without comments, layout and the names of local variables."""

import ast
import dis
import functools
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any


def node_of(code: types.CodeType) -> ast.AST | None:
    """The syntax tree of a function; None if its file is missing or differs from the imported one."""
    tree = tree_of(code.co_filename)
    if tree is None:
        return None
    spots = [(line, column) for line, _, column, _ in code.co_positions() if line and column is not None]
    nodes: list[ast.AST] = []
    for node in ast.walk(tree):
        if code.co_name == "<lambda>":
            if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
                first, last = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
                if all(first <= spot <= last for spot in spots if spot != (code.co_firstlineno, 0)):
                    nodes.append(node)
        elif (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name == code.co_name
            and min([node.lineno, *(d.lineno for d in node.decorator_list)]) == code.co_firstlineno
        ):
            nodes.append(node)
    compiled = _codes(code.co_filename)
    if len(nodes) > 1:  # nested lambdas: the innermost one that contains all of the code
        nodes = nodes[-1:]
    same = any(one.co_name == code.co_name and _same_code(one, code) for one in compiled)
    return nodes[0] if nodes and same else None


def _same_code(one: types.CodeType, other: types.CodeType) -> bool:
    if one.co_firstlineno != other.co_firstlineno or one.co_code != other.co_code or one.co_names != other.co_names:
        return False
    pairs = zip(one.co_consts, other.co_consts)
    return len(one.co_consts) == len(other.co_consts) and all(
        _same_code(a, b) if isinstance(a, types.CodeType) and isinstance(b, types.CodeType) else repr(a) == repr(b)
        for a, b in pairs
    )


def tree_of(filename: str) -> ast.Module | None:
    """The syntax tree of a file, None if it is missing or not Python."""
    linecache.checkcache(filename)
    return _parsed(filename, "".join(linecache.getlines(filename)))


@functools.lru_cache(maxsize=64)
def _parsed(filename: str, text: str) -> ast.Module | None:
    try:
        return ast.parse(text) if text else None
    except (SyntaxError, ValueError):  # not Python, such as a notebook's magic
        return None


def _codes(filename: str) -> list[types.CodeType]:
    return _compiled(filename, "".join(linecache.getlines(filename)))


@functools.lru_cache(maxsize=64)
def _compiled(filename: str, text: str) -> list[types.CodeType]:
    """All code objects of a file."""

    def inside(code: types.CodeType) -> Iterator[types.CodeType]:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from inside(constant)

    return list(inside(compile(text, filename, "exec", dont_inherit=True)))


def bytecode(code: types.CodeType, refer: Callable[..., tuple[str, int]]) -> str:
    """The instructions of a function whose text cannot be read, without lines, local names and documentation."""
    words = []
    for one in dis.get_instructions(code):
        if isinstance(one.argval, types.CodeType):
            words.append(bytecode(one.argval, refer))
        elif one.opname in ("LOAD_GLOBAL", "LOAD_NAME") or (
            one.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF", "COPY_FREE_VARS") and one.argval in code.co_freevars
        ):
            words.append(f"{one.opname} {refer(one.argval)[0]}")
        elif "FAST" in one.opname or "CLOSURE" in one.opname or "DEREF" in one.opname:
            words.append(f"{one.opname} {one.arg}")
        elif one.opname not in ("RESUME", "NOP", "CACHE"):
            words.append(f"{one.opname} {one.argval!r}")
    version = ".".join(map(str, sys.version_info[:2]))
    return f"bytecode {version} " + "; ".join(words)


#: Fields of the syntax tree that do not change results.
_IGNORED = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind", "type_ignores", "simple"}
#: Fields of the syntax tree that contain a bound name as a string.
_BOUND = {
    ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name", ast.ExceptHandler: "name",
    ast.MatchAs: "name", ast.MatchStar: "name", ast.MatchMapping: "rest",
}  # fmt: skip
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Normal:
    """Text of a syntax tree with local variables numbered and free names replaced by placeholders of their values.

    Names of parameters stay, since calls may use them.

    Args:
      refer: `(name, attributes that follow) -> (text, attributes taken in)` of a free name.
    """

    def __init__(self, refer: Callable[..., Any]):
        self.refer = refer
        self.count = 0

    def root(self, node: ast.AST) -> str:
        """The text of a function without its name and decorators."""
        return self._scope(node, [], True)

    def text(self, node: Any, scopes: list[dict[str, str]]) -> str:
        """The text of any part of the tree."""
        if isinstance(node, list):
            return "[" + ",".join(filter(None, (self.text(one, scopes) for one in node))) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, _SCOPES):
            return self._scope(node, scopes, False)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return ""  # documentation
        if isinstance(node, ast.AnnAssign) and node.value is None:
            return ""
        if isinstance(node, ast.Pass):
            return ""
        if isinstance(node, (ast.Name, ast.Attribute)) and (chain := self._chain(node, scopes)):
            return chain
        kind = "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__
        words = []
        for name, value in ast.iter_fields(node):
            if name in _IGNORED or value is None or value == []:
                continue
            if name == _BOUND.get(type(node)) and isinstance(value, str):
                words.append(f"{name}={self._local(value, scopes) or value!r}")
            elif isinstance(node, ast.AnnAssign) and name == "target":
                words.append(f"targets=[{self.text(value, scopes)}]")
            elif isinstance(node, ast.alias) and name == "asname":
                words.append(f"asname={self._local(value, scopes)}")
            else:
                words.append(f"{name}={self.text(value, scopes)}")
        return f"{kind}({','.join(words)})"

    def _chain(self, node: ast.AST, scopes: list[dict[str, str]]) -> str:
        """A name with the attributes that follow it; "" if it starts with something else."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        local = self._local(node.id, scopes)
        if local:
            return ".".join([local, *attributes])
        reference = self.refer(node.id, tuple(attributes))
        text, used = reference if isinstance(reference, tuple) else (reference, 0)
        return ".".join([f"<{text}>", *attributes[used:]])

    def _local(self, name: str, scopes: list[dict[str, str]]) -> str:
        return next((scope[name] for scope in reversed(scopes) if name in scope), "")

    def _scope(self, node: Any, scopes: list[dict[str, str]], root: bool) -> str:
        """A function: its parameters by name, the other names that it binds by number."""
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        scope = {arg.arg: f"${arg.arg}" for arg in every if arg is not None}
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        free = {
            name for one in body for n in ast.walk(one) if isinstance(n, (ast.Global, ast.Nonlocal)) for name in n.names
        }
        for name in _bindings(body):
            if name not in scope and name not in free:
                scope[name] = f"%{self.count}"
                self.count += 1
        inner = [*scopes, scope]
        # The defaults of a root are digested by their values.
        defaults = [] if root else [*arguments.defaults, *arguments.kw_defaults]
        words = [self.text(part, scopes) for part in defaults]
        shape = [len(arguments.posonlyargs), len(arguments.args), len(arguments.kwonlyargs)]
        head = [arg.arg if arg is not None else None for arg in every]
        out = f"function({shape},{head},{words},{self.text(body, inner)}"
        if not root and not isinstance(node, ast.Lambda):
            out += f",{self._local(node.name, scopes) or node.name},{self.text(node.decorator_list, scopes)}"
        return out + ")"


def _bindings(body: list[ast.AST]) -> list[str]:
    """Names that statements bind, in order of first appearance, without those inside other functions."""
    out: dict[str, None] = {}

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            out.setdefault(node.id)
        if type(node) in _BOUND and isinstance(bound := getattr(node, _BOUND[type(node)]), str):
            out.setdefault(bound)
        if isinstance(node, ast.alias):
            out.setdefault(node.asname or node.name.partition(".")[0])
        if isinstance(node, (*_SCOPES, ast.ClassDef)):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    for one in body:
        visit(one)
    return list(out)

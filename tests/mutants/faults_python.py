"""Faults of ssd_ops/**/*.py: where they can be planted, and how a running process gets one.

Left out, because they are no behaviour:

- text for people: what stands in `raise`, `print` and `warn`, f-strings, strings with a space, docstrings;
- arguments that change no result here: `NO_RESULT`;
- code for a GPU: the body of an `if` about cuda, and the word;
- annotations, `__all__`, `if TYPE_CHECKING`, imports, decorators;
- ssd_ops/integrations/torchvision.py, where torchvision is not installed (`make peers` runs its tests).
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType

from mutants.fault import Edit, Fault, bits, numbered

OTHER = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"},
    **{ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*"},
    **{ast.Pow: "*", ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or", ast.Or: "and"},
}
# Arguments that change no result here: they guard, look nicer, are quicker, or are for a GPU.
NO_RESULT = {"strict", "encoding", "indent", "flush", "non_blocking", "pin_memory", "device"}
TOLD = {"print", "warn", "exit", "error", "write", "add_note"}


def without_text(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.stmt]]:
    """The nodes that are behaviour, each with the statement that it is in."""

    def walk(node: ast.AST, statement: ast.stmt | None) -> Iterator[tuple[ast.AST, ast.stmt]]:
        statement = node if isinstance(node, ast.stmt) else statement
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom | ast.arg):
            return
        if isinstance(node, ast.Call) and _name(node.func) in TOLD:
            return
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Constant) and "cuda" in str(node.value):
            return
        if isinstance(node, ast.keyword) and node.arg in NO_RESULT:
            return
        if isinstance(node, ast.If) and "cuda" in ast.unparse(node.test):
            yield node, node
            for child in node.orelse:
                yield from walk(child, statement)
            return
        if isinstance(node, ast.Assign) and _name(node.targets[0]) == "__all__":
            return
        if statement is not None:
            yield node, statement
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, statement)

    yield from walk(tree, None)


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def changes(node: ast.AST) -> Iterator[tuple[str, str, ast.AST]]:
    """Each fault of one node: what becomes what, and the node whose text is replaced."""
    said = ast.unparse(node)
    if isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            words = [OTHER[type(o)] if n == at else _symbol(o) for n, o in enumerate(node.ops)]
            pairs = zip(words, node.comparators, strict=True)
            new = _atom(node.left) + "".join(f" {word} {_atom(right)}" for word, right in pairs)
            yield f"{_symbol(op)} becomes {OTHER[type(op)]}", new, node
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        new = f"{_atom(node.left)} {OTHER[type(node.op)]} {_atom(node.right)}"
        yield f"{said} becomes {new}", new, node
    elif isinstance(node, ast.BoolOp):
        new = f" {OTHER[type(node.op)]} ".join(map(_atom, node.values))
        yield f"{said} becomes {new}", new, node
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield f"{said} becomes {ast.unparse(node.operand)}", ast.unparse(node.operand), node
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            new = repr(not value)
        elif isinstance(value, int | float):
            new = repr(value + 1)
        elif isinstance(value, str) and " " not in value:
            new = repr(value + "_")
        else:
            return
        yield f"{said} becomes {new}", new, node
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        if not isinstance(node.test, ast.Constant):
            yield f"{ast.unparse(node.test)} is negated", f"not {_atom(node.test)}", node.test
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in NO_RESULT:
                rest = [k for k in node.keywords if k is not keyword]
                new = ast.unparse(ast.Call(node.func, node.args, rest))
                yield f"{keyword.arg}={ast.unparse(keyword.value)} is left out", new, node
    elif isinstance(node, ast.Return) and node.value and said != "return None":
        yield f"{said} becomes return None", "return None", node
    elif _is_removable(node):
        yield f"{said} is removed", "pass", node


def _is_removable(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        is_told = isinstance(node.value, ast.Call) and _name(node.value.func) in TOLD
        return not is_told and not isinstance(node.value, ast.Constant | ast.Yield)
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    return isinstance(node, ast.Continue | ast.Break | ast.AugAssign)


def _symbol(op: ast.cmpop) -> str:
    return ast.unparse(ast.Compare(ast.Name("a"), [op], [ast.Name("b")]))[2:-2]


def _atom(node: ast.AST) -> str:
    return f"({ast.unparse(node)})"


def faults_of(text: str, file: str) -> Iterator[Fault]:
    """Every fault of a source."""
    lines = text.splitlines(keepends=True)
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))
    tree = ast.parse(text)
    docstrings = {
        id(node.body[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }

    def place(line: int, column: int) -> int:  # columns count bytes
        return begins[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node, statement in without_text(tree):
        if id(statement) in docstrings:
            continue
        for change, new, old in changes(node):
            start = place(old.lineno, old.col_offset)
            end = place(old.end_lineno, old.end_col_offset)
            new += "\n" * text.count("\n", start, end)  # so that no line moves
            new = new if isinstance(old, ast.stmt) else f"({new})"
            first = node.lineno if isinstance(node, ast.If | ast.While) else old.lineno
            run = range(first, (old.end_lineno or first) + 1)
            # Where a statement of many lines begins is not always where it runs.
            run = run if hasattr(statement, "body") else range(statement.lineno, run.stop)
            code = lines[old.lineno - 1].strip()
            said = " ".join(change.split())[:200]
            edit = Edit(start, end, new, instead=True)
            yield Fault(file, old.lineno, code, said, (edit,), run)


def find(root: Path) -> list[Fault]:
    """Every fault of the package."""
    left_out = set()
    if importlib.util.find_spec("torchvision") is None:
        left_out = {"ssd_ops/integrations/torchvision.py"}
    files = {str(path.relative_to(root)): path for path in (root / "ssd_ops").rglob("*.py")}
    return numbered(
        [
            fault
            for file, path in sorted(files.items())
            if file not in left_out
            for fault in faults_of(path.read_text(), file)
        ]
    )


class Functions:
    """The functions of this process that come from the package, by file, qualified name and first line."""

    def __init__(self, root: Path) -> None:
        self.found: dict[tuple[str, str, int], list[FunctionType]] = {}
        for value in gc.get_objects():
            if type(value) is FunctionType:
                code = value.__code__
                if code.co_filename.startswith(str(root)):
                    key = code.co_filename, code.co_qualname, code.co_firstlineno
                    self.found.setdefault(key, []).append(value)

    def replace(self, path: str, text: str) -> None:
        """Gives those of a file the code of its new text, in which no line has moved.

        Whoever holds a function calls the new code.
        """

        def replace(code: CodeType) -> None:
            for inner in code.co_consts:
                if isinstance(inner, CodeType):
                    key = path, inner.co_qualname, inner.co_firstlineno
                    for function in self.found.get(key, []):
                        if inner.co_freevars == function.__code__.co_freevars:
                            function.__code__ = inner
                    replace(inner)

        replace(compile(text, path, "exec"))


class Lines:
    """Sees which lines of the package run, and so which faults are reached."""

    def __init__(self, root: Path, faults: list[Fault]) -> None:
        self.package = str(root / "ssd_ops")
        self.seen: set[tuple[str, int]] = set()
        self.numbers: dict[tuple[str, int], list[int]] = {}
        for number, fault in enumerate(faults, 1):
            for line in fault.lines:
                self.numbers.setdefault((str(root / fault.file), line), []).append(number)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        if not frame.f_code.co_filename.startswith(self.package):
            return None
        if event == "line":
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    def start(self) -> None:
        self.seen = set()
        sys.settrace(self._trace)

    def stop(self) -> int:
        sys.settrace(None)
        return bits(n for line in self.seen for n in self.numbers.get(line, []))

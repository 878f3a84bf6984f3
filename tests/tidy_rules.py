"""The house rules that no ordinary linter knows, as functions over a source root.

``python tests/tidy_rules.py ROOT`` prints what breaks them under ROOT (the directory that holds
``pyproject.toml`` and ``src``) and exits 1 if anything does. Only the standard library is used.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import gc
import graphlib
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_LINES_MAX: Final = 60
FILE_LINES_MAX: Final = 800

# A room's third-party imports. A room that is not named here is a finding: name it first.
THIRD_PARTY: Final[dict[str, frozenset[str]]] = {
    "core": frozenset({"msgspec"}),
    "catalogue": frozenset({"msgspec"}),
    "ledger": frozenset({"msgspec"}),
    "perf": frozenset({"msgspec", "numpy", "scipy"}),
    "plan": frozenset({"msgspec", "numpy", "scipy"}),
    "dispatch": frozenset({"msgspec"}),
    "twin": frozenset({"msgspec", "zstandard"}),
    "live": frozenset({"msgspec", "uvloop", "httptools", "xllamacpp", "psycopg", "joserfc"}),
    "gateway": frozenset({"msgspec", "prometheus_client", "opentelemetry"}),
    "cli": frozenset(
        {
            *("msgspec", "click", "fpdf", "matplotlib", "prometheus_client"),
            *("pyarrow", "uvloop"),
        }
    ),
}
LAZY: Final = _words("fpdf joserfc matplotlib numpy psycopg pyarrow scipy zstandard")
"""Imported inside the function that needs them only: they are slow, or may be absent."""

PURE: Final = frozenset({"core", "catalogue", "ledger", "perf", "plan", "dispatch"})
EXACT: Final = frozenset({"core", "ledger", "dispatch"})
"""Rooms that count in integers."""

IMPURE_MODULES: Final = _words("""
    asyncio concurrent contextvars ctypes fcntl fileinput gc getpass glob http importlib io locale
    logging mmap multiprocessing os pathlib platform queue random resource sched secrets select
    selectors shutil signal socket socketserver sqlite3 ssl subprocess sys tempfile threading time
    traceback urllib uuid warnings weakref zoneinfo _thread
""")
IMPURE_BUILTINS: Final = _words("""
    __import__ breakpoint compile eval exec globals hash id input open print
""")
"""``id`` and ``hash`` differ between runs, so a decision that reads them does not replay."""

CLOCK_READS: Final = frozenset({"now", "today", "utcnow"})
NAMELESS: Final = _words("""
    base common helper helpers manager managers misc util utils
""")
COUNTERPARTS: Final = ("clock", "driver", "journal", "network", "sandbox", "workers")
"""What the real and the modelled world both have, under the same file name."""

# Put together from halves, so that this file does not hold them.
MACHINE_PATHS: Final = re.compile(
    r"(?<![\w.:/~)}-])/(?:" + "|".join(("wor" + "k", "roo" + "t", "hom" + "e/[a-z]+")) + ")/"
)
REGISTRY_HOSTS: Final = re.compile(
    "|".join(
        re.escape(f"{name}.{top}")
        for name, top in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("npmjs", "org"),
            ("npmjs", "com"),
            ("crates", "io"),
            ("proxy.golang", "org"),
            ("conda.anaconda", "org"),
        )
    )
)


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """One broken rule."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed source file; ``room`` is empty for the package itself."""

    path: str
    room: str
    name: str
    text: str
    tree: ast.Module

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        """All of the tree, which rules look at one after the other."""
        return list(ast.walk(self.tree))

    @functools.cached_property
    def imports(self) -> list[tuple[ast.AST, str]]:
        """Each import statement and the top-level package it names, our own package left out."""
        return list(_imports(self.nodes))

    def finding(self, node: ast.AST | int, text: str) -> Finding:
        """A finding in this file, at a node or on a line."""
        return Finding(self.path, node if isinstance(node, int) else _line(node), text)


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 1))


def modules(root: Path) -> list[Module]:
    """Every Python file of the package under a root."""
    package = root / "src" / "tokenworks"
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        text = path.read_text(encoding="utf-8")
        room = parts[0] if len(parts) > 1 else ""
        where = path.relative_to(root).as_posix()
        found.append(Module(where, room, path.stem, text, ast.parse(text, where)))
    return found


def _imports(nodes: list[ast.AST]) -> Iterator[tuple[ast.AST, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if top != "tokenworks":
                yield node, top


def third_party_imports(module: Module) -> Iterator[Finding]:
    """A room imports only what its row in THIRD_PARTY names."""
    allowed = THIRD_PARTY.get(module.room, frozenset())
    if module.room and module.room not in THIRD_PARTY:
        yield module.finding(1, f"room {module.room!r} is not in THIRD_PARTY; name its imports")
    at_top = {id(node) for node in module.tree.body}
    for node, top in module.imports:
        if top in sys.stdlib_module_names:
            continue
        if top not in allowed:
            yield module.finding(node, f"{module.room or 'the package'} may not import {top}")
        elif top in LAZY and id(node) in at_top:
            yield module.finding(node, f"import {top} inside the function that needs it")


def purity(module: Module) -> Iterator[Finding]:
    """A pure room reads no clock, draws no dice, touches no file or socket and never awaits."""
    if module.room not in PURE:
        return
    for node, top in module.imports:
        if top in IMPURE_MODULES:
            yield module.finding(node, f"{module.room} is pure: it may not import {top}")
    described = {
        id(item)
        for node in module.nodes
        if isinstance(node, ast.ClassDef) and any(_named(b, "Protocol") for b in node.bases)
        for item in node.body
    }
    for node in module.nodes:
        if isinstance(node, ast.AsyncFunctionDef):
            if id(node) not in described:  # a protocol may describe what an edge awaits
                yield module.finding(node, f"{module.room} is pure: async def {node.name}")
        elif isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield module.finding(node, f"{module.room} is pure: it never awaits")
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in IMPURE_BUILTINS:
                yield module.finding(node, f"{module.room} is pure: {called.id}()")
            elif isinstance(called, ast.Attribute) and called.attr in CLOCK_READS:
                yield module.finding(node, f"{module.room} is pure: .{called.attr}() reads a clock")


def _named(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Subscript):
        return _named(node.value, name)
    return (isinstance(node, ast.Name) and node.id == name) or (
        isinstance(node, ast.Attribute) and node.attr == name
    )


def integers_only(module: Module) -> Iterator[Finding]:
    """Time, money and tokens are integers: no float, no true division."""
    if module.room not in EXACT:
        return
    for node in module.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield module.finding(node, f"{module.room} counts in integers: {node.value!r}")
        elif isinstance(node, ast.Name) and node.id in {"float", "complex"}:
            yield module.finding(node, f"{module.room} counts in integers: {node.id}")
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield module.finding(node, f"{module.room} counts in integers: / divides; use //")


def size(module: Module) -> Iterator[Finding]:
    """Functions and files are small enough to see."""
    lines = module.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield module.finding(1, f"{lines} lines; a file has at most {FILE_LINES_MAX}")
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                text = f"{node.name} has {length} lines; a function has at most"
                yield module.finding(node, f"{text} {FUNCTION_LINES_MAX}")


def opening(module: Module) -> Iterator[Finding]:
    """Every module opens with a sentence: what this is."""
    docstring = ast.get_docstring(module.tree)
    if not docstring:
        yield module.finding(1, "the module has no docstring")
    elif "." not in docstring.partition("\n\n")[0]:
        yield module.finding(1, "the docstring opens with a sentence, which ends with a full stop")


def names(module: Module) -> Iterator[Finding]:
    """A file is named for what it holds."""
    for part in {*Path(module.path).with_suffix("").parts[2:]}:
        if part.strip("_") in NAMELESS:
            yield module.finding(1, f"{part!r} says nothing of what it holds")


def type_checking(module: Module) -> Iterator[Finding]:
    """No import that exists for the type checker only: if it makes a cycle, the design has one."""
    for node in module.nodes if "TYPE_CHECKING" in module.text else ():
        if _named(node, "TYPE_CHECKING") or (
            isinstance(node, ast.ImportFrom) and any(a.name == "TYPE_CHECKING" for a in node.names)
        ):
            yield module.finding(node, "TYPE_CHECKING hides a cycle")


def first_of_a_dict(module: Module) -> Iterator[Finding]:
    """The oldest is taken from an OrderedDict: a dict looks through the places of all before it."""
    for node in module.nodes:
        keys: list[ast.expr] = []
        if isinstance(node, ast.Delete):
            keys = [each.slice for each in node.targets if isinstance(each, ast.Subscript)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keys = node.args[:1] if node.func.attr == "pop" else []
        for key in keys:
            if ast.unparse(key).startswith("next(iter("):
                yield module.finding(node, "the first of many: OrderedDict.popitem(last=False)")


def any_in_public(module: Module) -> Iterator[Finding]:
    """No ``Any`` in what a pure room shows to others."""
    if module.room in PURE:
        yield from _any_in(module, module.tree.body)


def _any_in(module: Module, body: list[ast.stmt]) -> Iterator[Finding]:
    for node in body:
        shown: list[ast.expr | None] = []
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _any_in(module, node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_") and not node.name.endswith("__"):
                continue
            a = node.args
            arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
            shown = [node.returns, *(argument.annotation for argument in arguments if argument)]
        elif isinstance(node, ast.AnnAssign) and not _private(node.target):
            shown = [node.annotation]
        for annotation in shown:
            if annotation and any(_named(part, "Any") for part in ast.walk(annotation)):
                yield module.finding(node, "Any in a public signature")


def _private(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id.startswith("_")


def exports(root: Path, _found: list[Module]) -> Iterator[Finding]:
    """A room's ``__all__`` is what it shows: the names it binds, or else its submodules."""
    for package in _rooms(root):
        init = package / "__init__.py"
        where = init.relative_to(root).as_posix()
        if not init.exists():
            yield Finding(where, 1, "the room has no __init__.py")
            continue
        tree = ast.parse(init.read_text(encoding="utf-8"))
        bound, listed = _bound(tree)
        shown = bound or {
            path.stem
            for path in package.iterdir()
            if (path.suffix == ".py" or (path / "__init__.py").exists())
            and not path.name.startswith("_")
        }
        if listed is None:
            yield Finding(where, 1, "__all__ is missing")
        elif listed != sorted(shown):
            yield Finding(where, 1, f"__all__ is {listed}, and the room shows {sorted(shown)}")


def _bound(tree: ast.Module) -> tuple[set[str], list[str] | None]:
    """The public names that an ``__init__`` binds, and its ``__all__``."""
    bound: set[str] = set()
    listed = None
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            plain = [t.id for t in targets if isinstance(t, ast.Name)]
            if "__all__" in plain and node.value is not None:
                listed = [str(name) for name in ast.literal_eval(node.value)]
            bound |= set(plain)
    return {name for name in bound if not name.startswith("_")}, listed


def _rooms(root: Path) -> list[Path]:
    package = root / "src" / "tokenworks"
    return [p for p in sorted(package.iterdir()) if p.is_dir() and any(p.rglob("*.py"))]


def code_lines(text: str, nodes: Iterable[ast.AST]) -> int:
    """Lines that hold code: not blank, not comments, not docstrings.

    >>> text = '"Doc."' + chr(10) + '# why' + chr(10) + 'x = 1' + chr(10)
    >>> code_lines(text, ast.walk(ast.parse(text)))
    1
    """
    filler = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in filler:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in nodes:
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def line_budget(root: Path, found: list[Module]) -> Iterator[Finding]:
    """A room holds no more code than pyproject.toml grants it."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    budget = settings["tool"]["tokenworks"]["line_budget"]
    for package in _rooms(root):
        own = [module for module in found if module.room == package.name]
        spent = sum(code_lines(module.text, module.nodes) for module in own)
        where = package.relative_to(root).as_posix()
        if package.name not in budget:
            yield Finding(where, 1, "no line budget in [tool.tokenworks.line_budget]")
        elif spent > budget[package.name]:
            yield Finding(where, 1, f"{spent} lines of code; its budget is {budget[package.name]}")


def circles(_root: Path, found: list[Module]) -> Iterator[Finding]:
    """No modules import each other, inside of functions neither: the design would have a circle."""
    paths = {
        ".".join(Path(module.path).with_suffix("").parts[1:]).removesuffix(".__init__"): module
        for module in found
    }
    needs: dict[str, set[str]] = {name: set() for name in paths}
    for name, module in paths.items():
        for node in module.nodes:
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            else:
                continue
            needs[name] |= named & paths.keys()
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        ring = " -> ".join(error.args[1])
        yield Finding(paths[error.args[1][0]].path, 1, f"modules import each other: {ring}")


def counterparts(root: Path, _found: list[Module]) -> Iterator[Finding]:
    """Once there is a twin, every real thing has a modelled one under the same name."""
    live, twin = (root / "src" / "tokenworks" / name for name in ("live", "twin"))
    if not twin.is_dir():
        return
    for name in COUNTERPARTS:
        for here, there in ((live, twin), (twin, live)):
            path, other = here / f"{name}.py", there / f"{name}.py"
            if path.exists() and not other.exists():
                where = path.relative_to(root).as_posix()
                yield Finding(where, 1, f"no counterpart {other.relative_to(root).as_posix()}")


def tracked_files(root: Path) -> list[Path]:
    """What git tracks under a root; nothing when the root is not a checkout."""
    if not (root / ".git").exists():
        return []
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"],
        capture_output=True,
        check=True,
    )
    paths = (root / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def no_machine_in(root: Path, _found: list[Module]) -> Iterator[Finding]:
    """No tracked file names a path of somebody's machine or the host of a package registry."""
    for path in tracked_files(root):
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            for pattern in (MACHINE_PATHS, REGISTRY_HOSTS):
                if match := pattern.search(line):
                    where = path.relative_to(root).as_posix()
                    yield Finding(where, number, f"names {match.group()!r}, which is not ours")


MODULE_RULES: Final[tuple[Callable[[Module], Iterator[Finding]], ...]] = (
    third_party_imports,
    purity,
    integers_only,
    size,
    opening,
    names,
    type_checking,
    first_of_a_dict,
    any_in_public,
)
TREE_RULES: Final[tuple[Callable[[Path, list[Module]], Iterator[Finding]], ...]] = (
    exports,
    line_budget,
    circles,
    counterparts,
    no_machine_in,
)


def findings(root: Path) -> list[Finding]:
    """Everything under a root that breaks a rule."""
    parsed = modules(root)
    found = {f for module in parsed for rule in MODULE_RULES for f in rule(module)}
    found |= {f for rule in TREE_RULES for f in rule(root, parsed)}
    return sorted(found)


def main(arguments: list[str]) -> int:
    """Print the findings under the root given, and return the exit status."""
    root = Path(arguments[0] if arguments else ".").resolve()
    found = findings(root)
    for finding in found:
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(f"tidy: {len(found)} findings\n" if found else "tidy: all house rules hold\n")
    return 1 if found else 0


if __name__ == "__main__":
    gc.disable()  # half a million nodes are there until the end: to look for cycles is a quarter
    sys.exit(main(sys.argv[1:]))

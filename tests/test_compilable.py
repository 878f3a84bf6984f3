"""What is to be compiled keeps off what mypyc gets wrong."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES: tuple[str, ...] = runpy.run_path(str(ROOT / "requirements" / "compiled.py"))["MODULES"]
_PAUSES = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor, ast.AsyncWith)
_OWN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def pauses(node: ast.AST) -> Iterator[int]:
    """Lines at which a function lets others run inside a part of its own."""
    if isinstance(node, _PAUSES):
        yield node.lineno
    if not isinstance(node, _OWN):
        for child in ast.iter_child_nodes(node):
            yield from pauses(child)


def pauses_in_handlers(text: str) -> list[int]:
    """Lines at which a function waits while it handles an exception."""
    found: list[int] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Try):
            for part in (*node.handlers, *node.finalbody):
                found += pauses(part)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_nothing_waits_while_it_handles_an_exception(name: str) -> None:
    # mypyc leaves the exception set for whoever runs meanwhile, and where two such waits cross it
    # stays for good: from then on each exception is the context of the next, and none is freed.
    text = (ROOT / "src" / "tokenworks" / f"{name}.py").read_text()
    assert pauses_in_handlers(text) == [], name


def test_such_waits_are_found() -> None:
    text = """
async def one():
    try:
        await first()
    except ValueError:
        async def inner():
            await second()
        await third()
    finally:
        await fourth()
"""
    assert pauses_in_handlers(text) == [8, 10]


def with_options(text: str) -> list[str]:
    """A module's classes that say how they are to be made, as Structs do: ``frozen=True``."""
    return [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and node.keywords
    ]


@pytest.mark.parametrize("name", MODULES)
def test_no_class_has_options(name: str) -> None:
    # mypyc drops them without a word: such a Struct could be changed, had no hash, and was searched
    # for cycles.
    assert with_options((ROOT / "src" / "tokenworks" / f"{name}.py").read_text()) == []


def test_such_options_are_found() -> None:
    text = "class A(Struct, frozen=True): ...\nclass B(Struct): ...\nclass C(metaclass=D): ..."
    assert with_options(text) == ["A", "C"]


def classes(text: str) -> Iterator[tuple[str, set[str]]]:
    """A module's classes, and from where, with its name, each of their bases was imported."""
    tree = ast.parse(text)
    whence = {
        each.asname or each.name: f"{node.module}.{each.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).split("[")[0] for base in node.bases]
            yield (
                node.name,
                {
                    ".".join([whence.get(head, head), *rest])
                    for head, *rest in (base.split(".") for base in bases)
                },
            )


@pytest.mark.heavy
def test_no_class_that_stays_python_inherits_from_one_that_is_compiled() -> None:
    source = ROOT / "src"
    compiled = {f"tokenworks/{name}.py" for name in MODULES}
    of_module = {
        str(path.relative_to(source)): dict(classes(path.read_text()))
        for path in source.rglob("*.py")
    }
    assert compiled <= of_module.keys()
    bases_of = {
        f"{path.removesuffix('.py').replace('/', '.')}.{name}": (path, bases)
        for path, found in of_module.items()
        for name, bases in found.items()
    }

    built = {name for name, (path, _) in bases_of.items() if path in compiled}
    assert not [
        (name, base)
        for name, (path, bases) in bases_of.items()
        for base in bases & built
        if path not in compiled
    ]


def test_such_classes_are_found() -> None:
    text = "from a.b import C as D\nfrom a import b\nclass E(D[int]): ...\nclass F(b.C): ..."
    assert list(classes(text)) == [("E", {"a.b.C"}), ("F", {"a.b.C"})]

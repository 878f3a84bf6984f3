"""What is to be compiled keeps off what mypyc gets wrong."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES: tuple[str, ...] = runpy.run_path(str(ROOT / "requirements" / "compiled.py"))["MODULES"]
_PAUSES = (ast.Await, ast.Yield, ast.YieldFrom)
_OWN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def pauses(node: ast.AST) -> Iterator[ast.AST]:
    """Where a function lets others run inside a statement of its own."""
    if isinstance(node, _PAUSES):
        yield node
    if not isinstance(node, _OWN):
        for child in ast.iter_child_nodes(node):
            yield from pauses(child)


def pauses_in_handlers(text: str) -> list[int]:
    """Lines at which a function waits while it handles an exception."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Try):
            for part in (*node.handlers, *node.finalbody):
                found += [each.lineno for each in pauses(part) if isinstance(each, ast.expr)]
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

"""A pytest plugin for tests that run on extensions: it skips those that change one.

Constants that are ``Final`` are written into the code of an extension, and its methods are called
without a look at the class: a test that puts something else there would test nothing, or wait for
what never comes. ``-p tests.system.on_extensions`` loads it.
"""

from __future__ import annotations

import ast
import functools
import sys
import types
from pathlib import Path
from typing import Any, Final

import pytest

_setattr: Final = pytest.MonkeyPatch.setattr


def _is_extension(name: str) -> bool:
    return (getattr(sys.modules.get(name), "__file__", None) or "").endswith(".so")


@functools.cache
def _fixed_names(extension: str) -> frozenset[str]:
    """An extension's functions, classes and ``Final`` constants, and the modules it imports."""
    source = Path(extension).with_name(Path(extension).name.partition(".")[0] + ".py")
    found: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation):
            found.add(ast.unparse(node.target))
    return frozenset(found)


def fixed(target: object, name: object) -> bool:
    """Whether something is part of an extension's code, so that nobody can change it."""
    if isinstance(target, types.ModuleType):
        return _is_extension(target.__name__) and name in _fixed_names(str(target.__file__))
    kind = target if isinstance(target, type) else type(target)
    return _is_extension(kind.__module__)


def _skipping(self: pytest.MonkeyPatch, target: Any, name: Any, *rest: Any, **more: Any) -> None:
    if fixed(target, name):
        pytest.skip(f"{name} is part of an extension")
    _setattr(self, target, name, *rest, **more)


pytest.MonkeyPatch.setattr = _skipping  # type: ignore[method-assign]

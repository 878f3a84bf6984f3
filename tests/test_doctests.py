"""Every example in a docstring of the pure rooms, and of the tests' own tools, is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import tidy_rules

import tokenworks

PURE = sorted(
    info.name
    for info in pkgutil.walk_packages(tokenworks.__path__, "tokenworks.")
    if info.name.split(".")[1] in tidy_rules.PURE
)


@pytest.mark.parametrize("name", [*PURE, "tidy_rules", "doc_blocks"])
def test_examples_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_pure_rooms_have_examples() -> None:
    modules = [importlib.import_module(name) for name in PURE]
    assert sum(doctest.testmod(module).attempted for module in modules) > 0

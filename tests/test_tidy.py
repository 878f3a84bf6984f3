"""The house rules hold, and each rule catches what it is for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tidy_rules

ROOT = Path(__file__).parent.parent
BUDGET = "[tool.tokenworks.line_budget]\n"


@pytest.mark.heavy
def test_the_house_rules_hold() -> None:
    assert [str(finding) for finding in tidy_rules.findings(ROOT)] == []


def test_every_room_has_its_row_in_every_table() -> None:
    rooms = {path.name for path in tidy_rules._rooms(ROOT)}
    assert rooms == set(tidy_rules.THIRD_PARTY)
    assert tidy_rules.EXACT <= tidy_rules.PURE <= rooms


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., list[str]]:
    """Write files below a source root, and return what the rules say of it."""

    def _plant(files: dict[str, str], budget: int = 1000) -> list[str]:
        rooms = set()
        for name, text in files.items():
            path = tmp_path / "src" / "tokenworks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            rooms.add(name.split("/", maxsplit=1)[0])
        lines = "".join(f"{room} = {budget}\n" for room in sorted(rooms))
        (tmp_path / "pyproject.toml").write_text(BUDGET + lines)
        return [finding.text for finding in tidy_rules.findings(tmp_path)]

    return _plant


def room(name: str, text: str, module: str = "thing") -> dict[str, str]:
    return {
        f"{name}/__init__.py": f'"""A room."""\n\n__all__ = ["{module}"]\n',
        f"{name}/{module}.py": f'"""A thing."""\n\n{text}\n',
    }


CLEAN = """
from __future__ import annotations

import datetime
import math
from typing import Protocol

import msgspec
from tokenworks.core import units

class Port(Protocol):
    async def open(self, size: int) -> None: ...

def half(number: int) -> int:
    return number // 2
"""


def test_clean_code_is_left_alone(plant: Callable[..., list[str]]) -> None:
    assert plant(room("core", CLEAN)) == []


@pytest.mark.parametrize(
    ("where", "text", "said"),
    [
        ("core", "import click", "core may not import click"),
        ("dispatch", "from numpy import array", "dispatch may not import numpy"),
        ("live", "import requests", "live may not import requests"),
        ("cli", "import matplotlib.pyplot", "import matplotlib inside"),
        ("ledger", "import time", "may not import time"),
        ("ledger", "def f():\n    from random import random", "may not import random"),
        ("catalogue", "import os.path", "may not import os"),
        ("dispatch", "import asyncio", "may not import asyncio"),
        ("dispatch", "import logging", "may not import logging"),
        ("catalogue", "from pathlib import Path", "may not import pathlib"),
        ("dispatch", "async def f(): ...", "async def f"),
        ("dispatch", "async def f():\n    await g()", "it never awaits"),
        ("core", "x = open('file')", "open()"),
        ("core", "print(1)", "print()"),
        ("dispatch", "x = hash('word')", "hash()"),
        ("catalogue", "import datetime\nx = datetime.datetime.now()", ".now() reads a clock"),
        ("catalogue", "import datetime\nx = datetime.date.today()", ".today() reads a clock"),
        ("ledger", "x = 0.5", "0.5"),
        ("ledger", "x = 1 / 2", "/ divides"),
        ("core", "x = 4\nx /= 2", "/ divides"),
        ("dispatch", "def f(x: int) -> float:\n    return x", "float"),
        ("dispatch", "x = float('inf')", "float"),
        ("gateway", "from typing import TYPE_CHECKING", "TYPE_CHECKING"),
        ("gateway", "import typing\nif typing.TYPE_CHECKING:\n    pass", "TYPE_CHECKING"),
        ("ledger", "d = {}\ndel d[next(iter(d))]", "OrderedDict"),
        ("live", "d = {}\nd.pop(next(iter(d)), None)", "OrderedDict"),
        ("core", "def f(x: Any) -> int: ...", "Any in a public signature"),
        ("core", "class C:\n    def f(self) -> list[Any]: ...", "Any in a public signature"),
        ("core", "class C:\n    x: dict[str, typing.Any]", "Any in a public signature"),
        ("live", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        ("live", "x = 1\n" * 800, "803 lines"),
    ],
)
def test_a_broken_rule_is_found(
    plant: Callable[..., list[str]], where: str, text: str, said: str
) -> None:
    found = plant(room(where, text))
    assert any(said in text for text in found), found


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("cli", "def draw():\n    import matplotlib"),
        ("live", "import asyncio\nimport time\nx = time.time() / 1.5"),
        ("catalogue", "share = 1 / 2"),
        ("core", "def _f(x: Any) -> Any: ..."),
        ("core", "class C:\n    _x: Any"),
        ("live", "def f(x: Any) -> None: ..."),
    ],
)
def test_what_is_allowed_there(plant: Callable[..., list[str]], where: str, text: str) -> None:
    assert plant(room(where, text)) == []


@pytest.mark.parametrize("name", ["utils", "_helpers", "common", "manager", "base", "misc"])
def test_a_name_says_what_a_file_holds(plant: Callable[..., list[str]], name: str) -> None:
    assert any("says nothing" in text for text in plant(room("live", "x = 1", name)))


def test_a_module_opens_with_a_sentence(plant: Callable[..., list[str]]) -> None:
    files = room("live", "")
    assert plant(files | {"live/thing.py": "x = 1\n"}) == ["the module has no docstring"]
    (found,) = plant(files | {"live/thing.py": '"""things"""\n'})
    assert "full stop" in found


def test_all_is_what_the_room_shows(plant: Callable[..., list[str]]) -> None:
    hidden = '"""A room."""\n\n__all__ = []\n'
    (found,) = plant(room("live", "") | {"live/__init__.py": hidden})
    assert "the room shows ['thing']" in found
    names = '"""A room."""\nfrom tokenworks.live.thing import Thing\n\n__all__ = ["Thing"]\n'
    assert plant(room("live", "Thing = 1") | {"live/__init__.py": names}) == []
    (found,) = plant(room("live", "Thing = 1") | {"live/__init__.py": '"""A room."""\n'})
    assert found == "__all__ is missing"


def test_a_room_keeps_to_its_budget(plant: Callable[..., list[str]]) -> None:
    text = "# why\n\nx = 1\ny = [\n    2,\n]\n"
    assert plant(room("live", text), budget=5) == []
    assert plant(room("live", text), budget=4) == ["5 lines of code; its budget is 4"]


def test_a_room_without_a_row_or_a_budget_is_found(tmp_path: Path) -> None:
    package = tmp_path / "src" / "tokenworks" / "attic"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A room."""\n\n__all__ = []\n')
    (tmp_path / "pyproject.toml").write_text(BUDGET)
    found = [finding.text for finding in tidy_rules.findings(tmp_path)]
    assert any("line budget" in text for text in found)
    assert any("THIRD_PARTY" in text for text in found)


def test_modules_that_import_each_other_are_found(plant: Callable[..., list[str]]) -> None:
    one = "from tokenworks.cli import second"
    two = "def f():\n    from tokenworks.cli.first import g"
    files = room("cli", one, "first") | room("cli", two, "second")
    files["cli/__init__.py"] = '"""A room."""\n\n__all__ = ["first", "second"]\n'
    (found,) = plant(files)
    assert found.startswith("modules import each other: tokenworks.cli.")
    files |= {"cli/second.py": '"""A thing."""\n\nimport tokenworks.core.units\n'}
    assert plant(files) == []


def test_real_things_have_counterparts_once_there_is_a_twin(
    plant: Callable[..., list[str]],
) -> None:
    assert plant(room("live", "", "clock")) == []
    found = plant(room("live", "", "clock") | room("twin", "", "journal"))
    assert [text for text in found if "counterpart" in text] == [
        "no counterpart src/tokenworks/twin/clock.py",
        "no counterpart src/tokenworks/live/journal.py",
    ]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.parametrize(
    "line", ["see /wor" + "k/place", "at /roo" + "t/file", "https://pyp" + "i.org/simple"]
)
def test_tracked_files_name_no_machine(tmp_path: Path, line: str) -> None:
    (tmp_path / "notes.md").write_text(f"fine\n{line}\n")
    (tmp_path / "untracked.md").write_text(line)
    assert list(tidy_rules.no_machine_in(tmp_path, [])) == []  # not a checkout
    for command in (["init", "-q"], ["add", "notes.md"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (found,) = tidy_rules.no_machine_in(tmp_path, [])
    assert (found.path, found.line) == ("notes.md", 2)


def test_main_prints_and_fails(
    plant: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(room("core", CLEAN))
    assert tidy_rules.main([str(tmp_path)]) == 0
    plant(room("core", "x = 0.5"))
    assert tidy_rules.main([str(tmp_path)]) == 1
    assert "src/tokenworks/core/thing.py:3: core counts in integers" in capsys.readouterr().out

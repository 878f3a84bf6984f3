"""What compiled code keeps of attributes, methods and globals is what they are at that moment."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.cached_reads import PLACES

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "requirements" / "compiled.py"

HEAD = """
from typing import Any

from tests.system import cached_kinds as kinds

setting: Any = 0
"""
READERS = """

def width_{place}(thing: Any) -> object:
    return thing.width


def named_{place}(thing: Any, name: str) -> object:
    return getattr(thing, name)


def speak_{place}(thing: Any) -> object:
    return thing.speak()


def speak_to_{place}(thing: Any, whom: Any) -> object:
    return thing.speak(whom=whom)


def spoken_{place}(thing: Any) -> object:
    speak = thing.speak
    return speak()


def real_{place}(thing: Any) -> object:
    return thing.real


def looked_up_{place}(table: dict[Any, object], key: Any) -> object:
    return table[key]


def globals_now_{place}() -> object:
    return setting, kinds.setting, kinds.say()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with functions that are compiled as ours are."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("there is no C compiler")
    root = tmp_path_factory.mktemp("caches")
    package = root / "tokenworks"
    package.mkdir()
    readers = HEAD + "".join(READERS.format(place=place) for place in range(PLACES))
    for name, text in (("__init__", ""), ("readers", readers), ("other", "")):
        (package / f"{name}.py").write_text(text)
    # Of one module alone mypyc writes files with other names.
    runpy.run_path(str(TOOL))["build"](root, "0", ("readers", "other"))
    return root


@pytest.mark.heavy
@pytest.mark.parametrize("first", range(0, 200, 100))
def test_each_read_is_what_the_source_reads(built: Path, first: int) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.system.cached_reads", str(first), str(first + 100)],
        env={**os.environ, "PYTHONPATH": f"{built}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

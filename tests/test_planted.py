"""``make check`` fails when a rule of the house is broken, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = (
    "Makefile",
    "pyproject.toml",
    "src",
    "tests/tidy_rules.py",
    ".mypy_cache",  # spares the second look at unchanged files
)

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source as it stands, with what ``make check`` needs beside it."""
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.gguf"))
        elif source.exists():
            shutil.copy2(source, target)
    return tmp_path


def make_check(root: Path) -> tuple[int, str]:
    """The exit status of ``make check`` on a copy, with the tools of this Python, and its words."""
    tools = Path(sys.executable).parent
    # What an outer make says of itself is not for this one.
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        ["make", "-C", str(root), "check", "SETUP=", f"BIN={tools}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr


def append(root: Path, room: str, text: str) -> None:
    path = root / "src" / "tokenworks" / room / "__init__.py"
    path.write_text(f"{path.read_text()}\n{text}\n")


@pytest.mark.slow
def test_the_tree_as_it_stands_passes(copy: Path) -> None:
    status, said = make_check(copy)
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "text", "said"),
    [
        (
            "gateway",
            "from tokenworks.live import clock as _clock",
            "tokenworks.gateway is not allowed to import tokenworks.live",
        ),
        (
            "ledger",
            "import tokenworks.dispatch as _dispatch",
            "tokenworks.ledger is not allowed to import tokenworks.dispatch",
        ),
        ("dispatch", "import time\n\n_NOW = time.time()", "it may not import time"),
        ("ledger", "_HALF = 0.5", "ledger counts in integers: 0.5"),
    ],
)
def test_a_planted_fault_fails(copy: Path, room: str, text: str, said: str) -> None:
    append(copy, room, text)
    status, output = make_check(copy)
    assert status != 0
    assert said in output

"""The package as Python meets it: what import does, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import tokenworks

IMPORT_CPU_MS_MAX = 50
COST = """
import sys, time
before, began = set(sys.modules), time.process_time()
import tokenworks
print((time.process_time() - began) * 1000, *(set(sys.modules) - before))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_import_is_trivial() -> None:
    cpu_ms, *loaded = python("-c", COST).stdout.split()
    assert loaded == ["tokenworks"]
    assert float(cpu_ms) < IMPORT_CPU_MS_MAX


def test_python_without_asserts_is_refused() -> None:
    done = python("-O", "-c", "import tokenworks")
    assert done.returncode == 1
    assert "does not run under python -O" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_stated_once_more_in_the_project() -> None:
    from importlib.metadata import version

    assert tokenworks.__version__ == version("tokenworks")

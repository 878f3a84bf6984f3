"""Compiled, the brain, the twin and the gateway do what their sources do."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNS = (
    "twin run --policy economic --workers 4 --duration 20 --rate 4",
    "twin run --policy prefix-aware --workers 4 --duration 20 --rate 4",
    "twin run --policy vtc --scenario mixed --load 1.3 --duration 20",
    "twin run --policy economic --scenario shifting --load 1.0 --duration 20",
    "twin run --system hgx-h200=2 --model gpt-oss-120b --rate 3 --duration 10",
    "twin swarm --seeds 40",
)

GATEWAY_TESTS = [
    f"tests/gateway/test_{name}.py"
    for name in ("app", "assemble", "chat", "connection", "event_stream", "metrics", "server")
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, compiled."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("there is no C compiler")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # all workers of a run have tests of this file, and one copy
    root, whole = shared / "compiled", shared / "compiled-whole"
    lock = (shared / "compiled.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    if whole.exists():
        lock.close()
        return root
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(
        ROOT / "src" / "tokenworks", root / "tokenworks", ignore=shutil.ignore_patterns("*.so")
    )
    tool = ROOT / "requirements" / "compiled.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--root", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole.touch()
    lock.close()
    return root


def _varies(name: str) -> bool:
    return any(word in name for word in ("cpu_s", "elapsed", "rss", "wall"))


def told(source: Path, command: str, folder: Path) -> Any:
    """What a command prints, with the package from there; times and memory left out."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tokenworks.cli.main", *command.split(), "--json"],
        env={**os.environ, "PYTHONPATH": str(source)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if isinstance(found, dict):
        for name in [name for name in found if _varies(name)]:
            del found[name]
    return found


@pytest.mark.parametrize("command", RUNS)
def test_the_same_to_the_byte(compiled: Path, tmp_path: Path, command: str) -> None:
    assert told(compiled, command, tmp_path) == told(ROOT / "src", command, tmp_path)


def test_the_gateway_keeps_its_tests(compiled: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *GATEWAY_TESTS]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{compiled}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def exchanged(source: Path) -> list[Any]:
    """The files of modules, and what a gateway of theirs writes."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.system.exchanged_bytes"],
        env={**os.environ, "PYTHONPATH": f"{source}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def test_the_gateway_writes_the_same_bytes(compiled: Path) -> None:
    built, written = exchanged(compiled)
    sources, expected = exchanged(ROOT / "src")
    assert all(name.endswith(".so") for name in built)
    assert all(name.endswith(".py") for name in sources)
    assert len(expected) > 50
    assert written == expected


def test_it_is_compiled_and_can_be_undone(compiled: Path) -> None:
    code = "import tokenworks.dispatch.economics as m, tokenworks.gateway.app as w;"
    code += "print(m.__file__, w.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(compiled)}
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.count(".so") == 2
    copy = compiled.parent / "undone"
    shutil.copytree(compiled, copy)
    tool = ROOT / "requirements" / "compiled.py"
    subprocess.run([sys.executable, str(tool), "--clean", "--root", str(copy)], check=True)
    assert not list(copy.rglob("*.so"))

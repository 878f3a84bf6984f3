"""Compiled, the brain, the twin and all that a request passes do what their sources do."""

from __future__ import annotations

import fcntl
import json
import os
import re
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

TESTS = (
    "tests/gateway/test_app.py",
    "tests/gateway/test_assemble.py",
    "tests/gateway/test_chat.py",
    "tests/gateway/test_connection.py",
    "tests/gateway/test_event_stream.py",
    "tests/gateway/test_metrics.py",
    "tests/gateway/test_one_piece.py",
    "tests/gateway/test_plain_request.py",
    "tests/gateway/test_server.py",
    "tests/ledger/test_leases.py",
    "tests/ledger/test_ledger.py",
    "tests/ledger/test_quotas.py",
    "tests/live/test_asked_whole.py",
    "tests/live/test_driver.py",
    "tests/live/test_driver_store.py",
    "tests/live/test_network.py",
    "tests/live/test_plain_head.py",
    "tests/live/test_link.py",
    "tests/live/test_owner.py",
    "tests/live/test_sent_at_once.py",
)
"""What a request meets on its way; those tests that change an extension are skipped."""

pytestmark = [pytest.mark.slow, pytest.mark.heavy]


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
    # Without optimisation it takes a part of the time, and does the same.
    command = [sys.executable, str(tool), "--root", str(root), "--level", "0"]
    done = subprocess.run(
        command,
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


def test_the_way_of_a_request_keeps_its_tests(compiled: Path) -> None:
    plugins = ["-p", "no:cacheprovider", "-p", "tests.system.on_extensions"]
    plugins += ["-W", "ignore::ResourceWarning"]  # what is skipped half way leaves files open
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *TESTS],
        env={**os.environ, "PYTHONPATH": f"{compiled}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    skipped = int((re.search(r"(\d+) skipped", done.stdout) or ["", "0"])[1])
    assert skipped < 25, done.stdout


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
    code = "from tokenworks.dispatch import economics; from tokenworks.gateway import app;"
    code += "from tokenworks.ledger import ledger; from tokenworks.live import driver;"
    code += "print(*(each.__file__ for each in (economics, app, ledger, driver)))"
    environment = {**os.environ, "PYTHONPATH": str(compiled)}
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.count(".so") == 4
    copy = compiled.parent / "undone"
    shutil.copytree(compiled, copy)
    tool = ROOT / "requirements" / "compiled.py"
    subprocess.run([sys.executable, str(tool), "--clean", "--root", str(copy)], check=True)
    assert not list(copy.rglob("*.so"))

"""A disk that fails at its n-th write or sync: nothing acknowledged is lost, whichever it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.fault_sweep import points

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
POINTS_MIN = 60
MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "fault_shim.c")]
    subprocess.run([*command, "-ldl"], check=True)
    return library


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: syncs take no time there, and count all the same."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="tokenworks-") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("error", "mode"),
    [("EIO", "once"), ("EIO", "for_good"), ("ENOSPC", "for_good"), ("ENOSPC", "short")],
)
def test_whichever_write_or_sync_fails(
    shim: Path, memory_folder: Path, error: str, mode: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.live.fault_sweep", str(memory_folder), error, mode],
        env=os.environ
        | {
            "LD_PRELOAD": str(shim),
            "FAULT_MARK": ".sqlite",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    calls, failed, refusals = map(int, done.stdout.split())
    assert calls >= failed >= POINTS_MIN
    assert refusals > 0


def test_faults_are_at_each_sync_and_at_the_ends_of_what_lies_between() -> None:
    assert points("") == []
    assert points("WWSwts") == [1, 2, 3, 4, 5, 6]
    assert points("WWWWWWWWWSS") == [1, 2, 5, 8, 9, 10, 11]

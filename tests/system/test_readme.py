"""The examples of the README and of docs/api.md, against a real factory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import doc_blocks
import pytest

from bars.factory import Running, running

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "api.md")
BLOCKS = [block for page in PAGES for block in doc_blocks.blocks(page) if "factory" in block.words]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def factory(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("home")) as found:
        yield found


def as_here(text: str, factory: Running) -> str:
    """The reader's URL and key become this factory's."""
    return text.replace("http://127.0.0.1:8000", factory.url).replace("KEY", factory.key)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.language}-{block.line}")
def test_example_works(block: doc_blocks.Block, factory: Running, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TOKENWORKS_HOME": str(factory.home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    if block.language == "python":
        command = [sys.executable, "-c", as_here(block.text, factory)]
    else:
        command = ["bash", "-euo", "pipefail", "-c", as_here(block.text, factory)]
    done = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout


def test_there_are_examples() -> None:
    assert {block.language for block in BLOCKS} == {"python", "bash"}

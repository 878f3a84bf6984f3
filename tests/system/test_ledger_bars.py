"""The ledger's bars in small: a process that is killed, and processes that share a quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from bars import ledger_kill


@pytest.mark.slow
def test_what_a_killed_process_acknowledged_is_there_once(tmp_path: Path) -> None:
    done = ledger_kill.play(str(tmp_path / "ledger.sqlite"), kills=15, seed=3)
    assert done["acknowledged"] > 0
    assert done["stored"] >= done["acknowledged"]

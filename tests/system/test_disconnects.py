"""Callers who leave after each chunk, in each dialect: billed is what the worker had made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bars import hangup
from bars.scripted_worker import CHUNKS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("passing", [False, True], ids=["translated", "passed on"])
def test_a_caller_who_leaves_pays_for_what_was_made(
    tmp_path: Path, run: Callable[[Any], Any], *, passing: bool
) -> None:
    home = tmp_path / "home"
    left: list[hangup.Left] = run(hangup.run(home, passing=passing))
    posted = hangup.posted_by_run(home)
    assert hangup.faults(left, posted, passing=passing) == []
    for dialect in hangup.ROUTES:
        for way in hangup.WAYS:
            one = [x for x in left if x.case.dialect == dialect and x.case.way == way]
            made = [x.made for x in one if x.case.stream and not x.case.telling]
            assert made == list(range(CHUNKS + 1))
    # What would be a fault is one.
    more = [dataclasses.replace(x, made=x.made + 1) for x in left if x.case.index]
    fewer = [dataclasses.replace(x, made=x.made - 1) for x in left if x.case.index > 1]
    assert len(hangup.faults(more, posted, passing=passing)) == len(more)
    assert len(hangup.faults(fewer, posted, passing=passing)) == len(fewer)
    gone = {name: entry for name, entry in posted.items() if not name.endswith(".7")}
    assert len(hangup.faults(left, gone, passing=passing)) == len(posted) - len(gone)

"""Random histories of processes that share limits, in which steps come between all others.

CI plays 60 of them; ``make soak`` plays one for every thousand of ``TOKENWORKS_LEDGER_STEPS``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.live.lease_world import CALLS, World, play
from tokenworks.live import quota_leases

SEEDS = int(os.environ.get("TOKENWORKS_LEDGER_STEPS", "60000")) // 1_000
STEPS = 60


@pytest.mark.heavy
def test_in_the_end_all_is_used_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_leases, "RETRY_NS", 0)

    def take(call: Callable[..., Any]) -> None:
        monkeypatch.setattr(asyncio, "to_thread", call)

    wrong = {}
    for seed in range(SEEDS):
        used, should = play(seed, STEPS, take)
        if used != should:
            wrong[seed] = (used, should)
    assert wrong == {}  # by seed: what was used, and what should have been
    assert World.failed == set(CALLS)

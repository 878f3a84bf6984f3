"""A tier is billed as delivered: a throttled worker behind a real factory, seen in the report."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bars.client import Received, chat
from bars.factory import Running, start
from bars.load import posted_of
from tests.live.fake_worker import FakeWorker, Script
from tokenworks.core.units import charge
from tokenworks.live.home import packaged

pytestmark = pytest.mark.slow

TOKENS = 400
PROMISED = {"free": 1, "medium": 1, "high": 1, "premium": 1_000_000, "ultra": 1_000_000}
"""High promises what the slowest machine keeps, premium what no worker in lock step can."""


def price_book() -> str:
    """The book that ships, with the promises above and an hour for the first token."""
    lines = []
    for line in packaged("laptop.toml").read_text().splitlines():
        if line.startswith("[tier."):
            tier = line.removeprefix("[tier.").removesuffix("]")
        if line.startswith("interactivity"):
            line = f"interactivity_tokens_per_s = {PROMISED[tier]}"
        if line.startswith("ttft_ms"):
            line = "ttft_ms = 3_600_000"
        if line.startswith("grace_ms"):
            line = "grace_ms = 0"
        lines.append(line)
    return "\n".join(lines) + "\n"


def settings(url: str) -> str:
    return f"""
[pool.slow]
engine = "attached"
model = "foreman"
urls = ["{url}"]
slots = 4
curve = [[1, 2000000], [4, 2000000]]
"""


async def throttled(home: Path) -> tuple[Received, dict[str, Any]]:
    """One premium answer, each token let through when the one before it was received."""
    script = Script(tokens=["tok "] * TOKENS, prompt_tokens=12, cached_tokens=4)
    async with FakeWorker(script) as worker:
        worker.gate.close()
        (home / "factory.toml").write_text(settings(worker.url))
        (home / "price_book.toml").write_text(price_book())
        factory: Running = await asyncio.to_thread(start, home, "--quiet")
        try:
            worker.gate.permit(1)
            body = {
                "model": "foreman",
                "stream": True,
                "stream_options": {"include_usage": True},
                "service_tier": "priority",
                "max_tokens": TOKENS,
                "messages": [{"role": "user", "content": "Hello"}],
            }
            received = await chat(
                factory.port, factory.key, body, on_events=lambda _: worker.gate.permit(1)
            )
        finally:
            await asyncio.to_thread(factory.stop)
            assert factory.process.stdout is not None
            factory.process.stdout.close()
    return received, report(home)


def report(home: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tokenworks.cli.main", "--home", str(home), "report", "--json"]
    found: dict[str, Any] = json.loads(subprocess.check_output(command))
    return found


def test_premium_delivered_slowly_is_billed_as_high(
    tmp_path: Path, run: Callable[[Any], Any]
) -> None:
    received, said = run(throttled(tmp_path))
    assert received.done, received
    assert received.text_chunks == TOKENS
    assert received.service_tier == "high"

    (entry,) = posted_of(tmp_path).values()
    assert (entry.tier_asked, entry.tier_delivered) == ("premium", "high")
    uncached, cached, output = charge(8, 1_200_000), charge(4, 120_000), charge(TOKENS, 6_000_000)
    assert entry.charged_nanodollars == uncached + cached + output

    rows = {row["tier"]: row for row in said["rows"]}
    assert rows["high"]["revenue_nanodollars"] == entry.charged_nanodollars
    assert "premium" not in rows
    assert said["asked_and_delivered"] == [{"asked": "premium", "delivered": "high", "requests": 1}]

"""A real factory that is killed in the middle of a batch, and goes on: each line is billed once."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from typing import Any

import openai
import pytest

from tests.cli.command_line import READY_S_MAX
from tests.cli.conftest import Elsewhere
from tokenworks.ledger.entries import Posted, Voided
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store

LINES = 7
SLOTS = 2

KILLED_AT = """
import os, signal, sys
from tokenworks.cli.main import main
from tokenworks.live.batch_room import StoredBatches

name, when, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
work = getattr(StoredBatches, name)

async def until_killed(self, *arguments):
    global left
    left -= 1
    mine = left == 0
    if mine and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    found = await work(self, *arguments)
    if mine:
        os.kill(os.getpid(), signal.SIGKILL)
    return found

setattr(StoredBatches, name, until_killed)
main()
"""


class Started:
    """``tokenworks up``, which may kill itself at one place."""

    def __init__(self, home: Home, *killed_at: str) -> None:
        program = ["-c", KILLED_AT, *killed_at] if killed_at else ["-m", "tokenworks.cli.main"]
        self.process = subprocess.Popen(
            [sys.executable, *program, "--home", str(home.path), "up", "--json"],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], READY_S_MAX)[0], "no ready line"
        facts: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.sdk = openai.OpenAI(base_url=f"{facts['url']}/v1", api_key=facts["key"], max_retries=0)

    def end(self) -> None:
        self.sdk.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(READY_S_MAX)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def home_of_two(home: Home, elsewhere: Elsewhere) -> Home:
    home.make()
    home.settings.write_text(
        "[gateway]\nport = 0\n[pool.far]\nengine = 'attached'\nmodel = 'foreman'\n"
        f"urls = ['{elsewhere.worker.url}']\ncurve = [[1, 900], [2, 900]]\nslots = {SLOTS}\n"
    )
    return home


def lines() -> bytes:
    asked = {"model": "foreman", "messages": [{"role": "user", "content": "hi"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": asked}
    return b"\n".join(json.dumps({**line, "custom_id": f"c{n}"}).encode() for n in range(LINES))


@pytest.mark.parametrize(
    "killed_at",
    [
        ("stage", "after", "3"),  # kept, and not billed
        ("finish", "before", "3"),  # billed, and nobody was told
        ("finish", "after", "3"),
        ("end", "before", "1"),
    ],
)
def test_a_factory_that_was_killed_bills_each_line_once(
    home_of_two: Home, killed_at: tuple[str, str, str]
) -> None:
    first = Started(home_of_two, *killed_at)
    try:
        file = first.sdk.files.create(file=("in.jsonl", lines()), purpose="batch")
        batch = first.sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert first.process.wait(READY_S_MAX) == -signal.SIGKILL
    finally:
        first.end()
    second = Started(home_of_two)
    try:
        done = second.sdk.batches.retrieve(batch.id)
        while done.status in ("in_progress", "finalizing"):
            done = second.sdk.batches.retrieve(batch.id)
        assert done.status == "completed"
        assert done.output_file_id is not None
        output = second.sdk.files.content(done.output_file_id).text
        assert done.error_file_id is None
    finally:
        second.end()
    told = [json.loads(line) for line in output.splitlines()]
    assert sorted(line["custom_id"] for line in told) == [f"c{n}" for n in range(LINES)]
    assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in told} == {
        "Hello."
    }
    store = sqlite_store(home_of_two.ledger)
    entries = list(store.load_entries())
    store.close()
    posted = [entry for entry in entries if isinstance(entry, Posted)]
    billed = sorted(entry.request for entry in posted if entry.ending == "done")
    assert billed == sorted(line["response"]["request_id"] for line in told)
    assert {(entry.batch, entry.tier_asked.value) for entry in posted} == {(True, "free")}
    # What was being made when it was killed is held no more.
    settled = {e.request for e in entries if isinstance(e, Posted | Voided)}
    assert {e.request for e in entries if e.phase == "reserve"} == settled

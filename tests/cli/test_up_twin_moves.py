"""``up --twin`` over HTTP: answers make room, sessions' KV blocks go down and up, pools grow."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.command_line import READY_S_MAX, data, invoke
from tokenworks.core.ids import WorkerID
from tokenworks.dispatch.commands import Command, Fetch, Offload, Preempt, Scale
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import WorkerUp
from tokenworks.dispatch.journal_records import JournalEntry
from tokenworks.live.growth import Growth
from tokenworks.live.home import Home
from tokenworks.live.journal import journal_files, read_journal
from tokenworks.twin.serving import filler

WhenReady = Callable[..., list[Any]]
LONG = {"max_tokens": 32_000, "ignore_eos": True}


class Asking:
    """One request whose answer is read as it comes."""

    def __init__(self, home: Home, text: str, headers: dict[str, str], fields: Any) -> None:
        host = (home.read_url() or "").removeprefix("http://")
        self._connection = http.client.HTTPConnection(host, timeout=READY_S_MAX)
        asked = {
            "model": "twin",
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        named = {"Authorization": f"Bearer {home.read_key()}", **headers}
        body = json.dumps(asked)
        self._connection.request("POST", "/v1/chat/completions", body, named)
        self._response = self._connection.getresponse()
        if self._response.status != 200:
            refused = self._response.read()
            self.close()
            raise AssertionError(refused)
        self.text = ""
        self.ids: set[str] = set()
        self.roles = 0
        self.usage: dict[str, Any] = {}

    def events(self) -> Iterator[Any]:
        """Each event as it comes, until the answer is whole."""
        for line in self._response:
            said = line.strip().removeprefix(b"data: ")
            if not said or said == b"[DONE]":
                continue
            event = json.loads(said)
            self.ids.add(event["id"])
            for choice in event["choices"]:
                self.text += choice["delta"].get("content", "")
                self.roles += "role" in choice["delta"]
            self.usage = event.get("usage") or self.usage
            yield event

    def whole(self) -> Asking:
        """Read it to its end."""
        list(self.events())
        self.close()
        return self

    def close(self) -> None:
        self._response.close()
        self._connection.close()


def ask(home: Home, text: str = "hi", tier: str = "free", **fields: Any) -> Asking:
    headers = {
        f"x-tokenworks-{name.replace('_', '-')}": str(fields.pop(name))
        for name in ("session", "tool_seconds")
        if name in fields
    }
    return Asking(home, text, headers, {"service_tier": tier, **fields})


def serve(home: Home, folder: pathlib.Path, worker: str, speedup: int) -> None:
    (folder / "one.toml").write_text(f'name = "one"\n[worker.a]\nkind = "even"\n{worker}')
    words = ("--port", "0", "--speedup", str(speedup), "--policy", "economic")
    result = invoke(home, "up", "--twin", *words, "--scenario", str(folder / "one.toml"))
    assert result.exit_code == 0, result.exception


def told(home: Home) -> tuple[list[Any], list[Command]]:
    """The journal's events, and what is decided when they are told once more."""
    (path,) = journal_files(home.journal)
    dispatcher, events, commands = Dispatcher(), [], list[Command]()
    for record in read_journal(path):
        if isinstance(record, JournalEntry):
            events.append(record.event)
            commands += dispatcher.handle(record.now_ns, record.event)
    return events, commands


def checked(results: list[Any]) -> Any:
    (found,) = results
    if isinstance(found, Exception):
        raise found
    return found


def test_an_answer_makes_room_and_goes_on_without_a_gap(
    home: Home, tmp_path: pathlib.Path, when_ready: WhenReady
) -> None:
    def act() -> tuple[Asking, Asking, int]:
        free = ask(home, "Tell me all.", **LONG)
        events = free.events()
        next(events)
        ultra = ask(home, "Quick!", "ultra", max_tokens=30, ignore_eos=True).whole()
        # Free waited meanwhile; what comes from now on was made after that.
        before = free.usage["completion_tokens"]
        while free.usage["completion_tokens"] < before + 300:
            next(events)
        free.close()
        return free, ultra, before

    results = when_ready(home, act)
    # Slow enough that it takes far longer than the other takes to come, on a busy machine, too.
    serve(home, tmp_path, "count = 1\nslots = 1\npreempts = true\n", speedup=5)
    free, ultra, before = checked(results)
    assert ultra.usage["completion_tokens"] == 30
    assert ultra.text.encode() == filler(0, 30)
    made = free.usage["completion_tokens"]
    assert made >= before + 300
    assert free.text.encode() == filler(0, made)
    assert (len(free.ids), free.roles) == (1, 1)
    _, commands = told(home)
    (preempt,) = [each for each in commands if isinstance(each, Preempt)]
    assert preempt.gained_nanodollars > preempt.lost_nanodollars
    rows = {row["tier"]: row for row in data(home, "report", "--by", "tier")["rows"] if row["tier"]}
    assert rows["free"]["output"] >= made
    assert data(home, "twin", "replay")["decisions"]["identical"]


def test_a_sessions_blocks_wait_below_while_its_tool_runs(
    home: Home, tmp_path: pathlib.Path, when_ready: WhenReady
) -> None:
    def act() -> tuple[int, int]:
        def turn(name: str, text: str, **more: Any) -> int:
            answer = ask(home, text, max_tokens=4, session=name, **more).whole()
            return int(answer.usage["prompt_tokens_details"]["cached_tokens"])

        story = "Once upon a time. " * 250
        for number in range(8):
            turn(f"other {number}", f"{number} other matters. " * 200)
        turn("mine", story, tool_seconds=1_000)
        for number in range(8):
            turn(f"more {number}", f"{number} more matters. " * 230)
        return turn("mine", story + "And then?"), len(story)

    results = when_ready(home, act)
    below = "host_kv_blocks = 400\nhost_bytes_per_s = 64_000_000_000\n"
    serve(home, tmp_path, f"count = 1\nkv_blocks = 100\nblock_tokens = 64\n{below}", speedup=20)
    cached, length = checked(results)
    _, commands = told(home)
    (offload,) = [each for each in commands if isinstance(each, Offload)]
    (fetch,) = [each for each in commands if isinstance(each, Fetch)]
    assert offload.blocks == fetch.blocks > 10
    assert cached == 64 * fetch.blocks
    assert length // 4 - 64 < cached <= length // 4 + 64


def test_a_pool_grows_while_requests_wait_and_shrinks_when_none_does(
    home: Home,
    tmp_path: pathlib.Path,
    when_ready: WhenReady,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grows, given_back, scale = threading.Event(), threading.Event(), Growth.scale

    def noting(self: Growth, command: Scale, is_up: Callable[[WorkerID], bool]) -> None:
        scale(self, command, is_up)
        (grows if command.worker is None else given_back).set()

    def ask_until_it_grows() -> set[int]:
        made, deadline_s = set[int](), time.monotonic() + READY_S_MAX
        while not grows.is_set():
            assert time.monotonic() < deadline_s, "it does not grow"
            answer = ask(home, **LONG | {"max_tokens": 20_000}).whole()
            made.add(answer.usage["completion_tokens"])
        return made

    def act() -> list[set[int]]:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask_until_it_grows) for _ in range(2)]
            made = [each.result() for each in asked]
        assert given_back.wait(READY_S_MAX)
        return made

    monkeypatch.setattr(Growth, "scale", noting)
    results = when_ready(home, act)
    growing = "count = 2\nworkers_min = 1\nstart_ns = 1_000_000_000\nslots = 1\n"
    serve(home, tmp_path, growing, speedup=100)
    assert set.union(*checked(results)) == {20_000}
    events, commands = told(home)
    more, fewer = [each for each in commands if isinstance(each, Scale)][:2]
    assert (more.workers, more.worker, more.reason) == (2, None, "queue_wait")
    assert fewer.worker is not None
    assert [each.worker for each in events if isinstance(each, WorkerUp)] == ["a-0", "a-1"]

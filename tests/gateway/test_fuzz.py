"""The fuzzers for a moment, with seeds that stay; and that each of them finds what is planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bars.fuzz import answers, edge, passing, readers, worker
from bars.fuzz.__main__ import HARNESSES, Watched, by_chance, harness_of, replayed
from bars.openapi import with_models
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.orders import Usage
from tokenworks.gateway import messages_answer, messages_request, pass_through
from tokenworks.gateway.answer import Answer
from tokenworks.gateway.connection import Connection
from tokenworks.gateway.http_head import Head
from tokenworks.gateway.openapi import document
from tokenworks.live import network

NEGATIVE = Usage(uncached_input_tokens=0, cached_input_tokens=0, output_tokens=-1)
NAMES = frozenset({"nothing"})


@pytest.fixture(autouse=True)
def loops_closed() -> Iterator[None]:
    yield
    for each in (*answers._world, *passing._world):
        each.close()
    passing._world.clear()
    for loop in worker._loop:
        loop.close()
    answers._world.clear()
    worker._loop.clear()


def fuzz(name: str, faults: Path, seeds: int, runs: int, one_s_max: float = 60) -> Watched:
    """Until the first fault."""
    one = Watched(name, faults)
    for seed in range(seeds):
        by_chance(one, seconds=300, seed=seed, runs_max=runs, one_s_max=one_s_max)
        if one.seen:
            break
    return one


@pytest.mark.parametrize("name", HARNESSES)
def test_what_is_drawn_is_no_fault(name: str, tmp_path: Path) -> None:
    assert not fuzz(name, tmp_path, 1, 300).seen


def blind_to_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is looked for in the last bytes alone."""
    real = Connection.data_received

    def data_received(self: Connection, data: bytes) -> None:
        self._seen = len(self._buffer)
        real(self, data)

    monkeypatch.setattr(Connection, "data_received", data_received)


def two_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What says how long the body is, is believed where it can be read in two ways."""
    real = Head._length

    def length(self: Head) -> int | None:
        try:
            return real(self)
        except InvalidRequest:
            return 0

    monkeypatch.setattr(Head, "_length", length)


def no_check_of_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field is used for a key before anybody has seen that it is text."""
    real: Any = messages_request._tools

    def tools(given: Any, fields: Any) -> None:
        choice = given.get("tool_choice")
        if isinstance(choice, dict):
            assert choice.get("type") not in NAMES
        real(given, fields)

    monkeypatch.setattr(messages_request, "_tools", tools)


def no_block_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's first event says that it ends."""
    real = messages_answer.MessagesAnswer.forward

    def forward(self: messages_answer.MessagesAnswer, ready: bytes) -> bytes:
        return real(self, ready).replace(b"content_block_start", b"content_block_stop", 1)

    monkeypatch.setattr(messages_answer.MessagesAnswer, "forward", forward)


def never_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold stays open where the worker breaks off."""
    real = Answer._settle

    async def settle(self: Answer, delivery: Any, ending: Any) -> Any:
        return None if ending == "failed" else await real(self, delivery, ending)

    monkeypatch.setattr(Answer, "_settle", settle)


def never_settled_of_who_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold stays open where the caller leaves."""
    real = Answer._settle

    async def settle(self: Answer, delivery: Any, ending: Any) -> Any:
        return None if ending == "disconnected" else await real(self, delivery, ending)

    monkeypatch.setattr(Answer, "_settle", settle)


def any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may lead anywhere."""
    monkeypatch.setattr(pass_through, "_check_path", lambda _: None)


def keys_go_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of the caller's key is passed on."""
    monkeypatch.setattr(pass_through, "DROPPED", pass_through.DROPPED - {b"x-api-key"})


def passage_never_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold stays open where a provider breaks off."""
    real = pass_through.Passage._settle

    async def settle(self: pass_through.Passage, ending: Any) -> None:
        if ending != "failed":
            await real(self, ending)

    monkeypatch.setattr(pass_through.Passage, "_settle", settle)


def ends_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer ends, and then again."""
    real = network.WorkerStream._on_end

    def on_end(self: network.WorkerStream, failure: str | None) -> None:
        sink = self._sink
        real(self, failure)
        if sink is not None:
            sink.ended(None)

    monkeypatch.setattr(network.WorkerStream, "_on_end", on_end)


def below_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body tells of fewer tokens than none."""
    monkeypatch.setattr(readers, "told_usage", lambda _: NEGATIVE)


def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head without an end is looked through for ever."""

    def cut_head(self: Connection) -> bytes | None:
        while True:
            self._seen = 0

    monkeypatch.setattr(Connection, "_cut_head", cut_head)


@pytest.mark.parametrize(
    ("name", "plant", "told"),
    [
        ("edge", blind_to_cuts, "AssertionError"),
        ("edge", two_lengths, "AssertionError"),
        ("edge", stuck, "TimeoutError"),
        ("answers", no_check_of_kinds, "TypeError"),
        ("answers", no_block_opened, "AssertionError"),
        ("answers", never_settled, "AssertionError"),
        ("answers", never_settled_of_who_left, "AssertionError"),
        ("passing", any_path, "AssertionError"),
        ("passing", keys_go_out, "AssertionError"),
        ("passing", passage_never_settled, "AssertionError"),
        ("worker", ends_twice, "AssertionError"),
        ("readers", below_nothing, "AssertionError"),
    ],
)
def test_what_is_planted_is_found_and_its_file_shows_it_again(
    name: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as planted:
        plant(planted)
        found = fuzz(name, tmp_path, 60, *((1, 0.1) if plant is stuck else (100, 60)))
        assert {where[0] for where in found.seen} == {told}
        kept = sorted(tmp_path.iterdir())
        assert {harness_of(each) for each in kept} == {name}
        if plant is not stuck:
            assert replayed(kept, tmp_path)[name]["faults"]
    assert replayed([tmp_path], tmp_path) == {name: {"executions": len(kept), "faults": 0}}


def test_a_file_must_say_whose_input_it_is(tmp_path: Path) -> None:
    assert harness_of(tmp_path / "worker" / "0a1b") == "worker"
    with pytest.raises(SystemExit, match="must begin with"):
        harness_of(tmp_path / "0a1b")
    with pytest.raises(SystemExit, match="is not there"):
        replayed([tmp_path / "edge-0a1b"], tmp_path)


def test_other_parsers_have_a_say() -> None:
    end = edge.End(edge.LIMITS).feed([b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"], at_once=True)
    with pytest.raises(AssertionError, match="h11"):
        edge._agrees_with_h11(end, b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n")
    with pytest.raises(AssertionError, match="llhttp"):
        edge._agrees_with_llhttp(end, b"GET /a HTTP/1.1\r\nhost: x\r\n")


def test_requests_of_the_document_reach_workers() -> None:
    told = with_models(document(), ["a", "b"])
    assert told["components"]["schemas"]["ChatRequest"]["properties"]["model"] == {
        "enum": ["a", "b"]
    }
    with pytest.raises(AssertionError, match="no request has a model"):
        with_models(told, ["a"])

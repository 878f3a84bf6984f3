"""Every route that a worker answers: any body from the caller, any bytes from the worker.

What must hold: a request is refused in words of ours (4xx) or becomes a whole, bounded order; what
the worker sends, cut anyhow, ends as an answer, an error of the worker's (502) or an error event;
never a status of 500, never another exception; each delivery is settled once, for the same usage
however the bytes were cut, and once also where the caller leaves or is slow, the worker breaks off
or the ledger is full; what is sent as a stream is one in the caller's dialect to its end. An answer
in one piece is what the worker said, with the tier.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from bars.fuzz.choices import Choices, cut, json_bytes, spliced
from bars.fuzz.seeds import EVENTS, PIECES, REQUESTS, WHOLE
from tests.gateway.fake_desk import KEY, MODEL, Caller, FakeClock, FakeDesk, FakeShelf, Step
from tokenworks.core.errors import LedgerUnavailable, WorkerFailed
from tokenworks.core.orders import Order, Outcome
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_request import parse_chat_request
from tokenworks.gateway.http_limits import LIMITS
from tokenworks.gateway.plain_request import read_plain
from tokenworks.gateway.request_fields import OUTPUT_TOKENS_MAX

STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
HEADERS = (
    {},
    {},
    {"x-tokenworks-labels": "gpu"},
    {"x-tokenworks-adapter": "a"},
    {"x-request-id": "mine"},
    {"content-type": "application/json"},
)
Told = tuple[int, bytes, list[Outcome], bool]
"""Status, body without our name for it, how deliveries were settled, whether it has an end."""


class _Mistakes(logging.Handler):
    """Keeps what the gateway logs of requests that broke it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = record.exc_info[1] if record.exc_info else None
        self.errors.append(told or record.getMessage())


class World:
    """A gateway on an event loop of its own, kept between inputs."""

    def __init__(self, *, passes_on: bool = False, in_one_piece: bool = False) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._broken)
        models = frozenset({MODEL}) if in_one_piece else frozenset()
        self.desk, self.shelf = FakeDesk(in_one_piece=models), FakeShelf()
        shelf = None if passes_on else self.shelf
        self.gateway = Gateway(self.desk, FakeClock(), shelf=shelf, passes_on=passes_on)
        self.mistakes = _Mistakes()
        self._log = logging.getLogger("tokenworks.gateway")
        self._log.addHandler(self.mistakes)
        self._log.propagate = False

    def close(self) -> None:
        """Leave nothing behind."""
        self._log.removeHandler(self.mistakes)
        self._log.propagate = True
        self.loop.close()

    def _broken(self, _: object, told: dict[str, Any]) -> None:
        self.mistakes.errors.append(told.get("exception") or told["message"])

    def call(self, caller: Caller, script: list[Step], passed: int = 0) -> None:
        """Send one request to a worker that answers so; that its own status comes is right."""
        desk = self.desk
        desk.script = list(script)
        desk.orders.clear()
        desk.deliveries.clear()
        self.shelf.items.clear()
        self.mistakes.errors.clear()
        self.loop.run_until_complete(caller.call(self.gateway, LIMITS))
        for error in self.mistakes.errors:
            if isinstance(error, BaseException):
                raise error
            raise AssertionError(error)
        if caller.received:
            assert passed == caller.status or caller.status != 500, caller.received
        for delivery in desk.deliveries:
            assert len(delivery.outcomes) == 1, delivery.outcomes

    def ask(self, path: str, body: bytes, named: dict[str, str], script: list[Step]) -> Told:
        """Send one request, and take the answer."""
        caller = Caller("POST", path, body, headers=named)
        self.call(caller, script)
        headers = caller.headers
        name = headers.get("x-tokenworks-request", headers["x-request-id"])
        stem = name.removeprefix("req_").encode()
        whole = not caller.transport.aborted
        said = caller.body.replace(stem, b"ID") if whole else b""
        return caller.status, said, [each.outcome for each in self.desk.deliveries], whole

    def trouble(
        self, choices: Choices, caller: Caller, parts: Sequence[bytes], passed: int = 0
    ) -> None:
        """Send one request of a caller who leaves or is slow, to a worker that may break off.

        However that ends, it is settled once.
        """
        steps: list[Step] = list(parts)
        turn = choices.below(4)

        def leave(before: int) -> None:
            if before == turn:
                caller.hang_up()

        def dawdle(before: int) -> None:
            if before == turn:
                caller.stop_reading()
                self.loop.call_soon(caller.read_again)

        caller.on_write = choices.of((leave, dawdle, None))
        if choices.flag() or caller.on_write is None:
            steps.insert(choices.below(len(steps) + 1), WorkerFailed("it broke off"))
        self.desk.settle_error = LedgerUnavailable("full") if choices.flag(4) else None
        try:
            self.call(caller, steps, passed)
        finally:
            self.desk.settle_error = None


_world: list[World] = []


def world(*, in_one_piece: bool = False) -> World:
    """One of the two of this process."""
    if not _world:
        _world.extend((World(), World(in_one_piece=True)))
    return _world[in_one_piece]


def upstream(choices: Choices, path: str) -> bytes:
    """What the worker sends."""
    if path not in STREAMED and choices.flag():
        return json_bytes(choices, choices.of(WHOLE))
    told = []
    for _ in range(choices.below(9)):
        event = json_bytes(choices, choices.of(EVENTS)) if choices.flag(3) else None
        if event is None:
            event = json.dumps(choices.of(EVENTS), separators=(",", ":")).encode()
        told.append(choices.of((b"data: ", b"data: ", b"data: ", b"data:", b": x\ndata: ")) + event)
    if choices.flag():
        last = (EVENTS[11], EVENTS[14])
        told += [b"data: " + json.dumps(each, separators=(",", ":")).encode() for each in last]
    if not choices.flag(4):
        told.append(b"data: [DONE]")
    end = choices.of((b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\n\n\n", b"\n"))
    raw = b"".join(each + end for each in told)
    return spliced(choices, raw) if choices.flag(4) else raw


def one(data: bytes) -> None:
    """Check one input."""
    choices = Choices(data)
    path, seed = choices.of(REQUESTS)
    mutated = choices.flag()
    body = json_bytes(choices, seed) if mutated else json.dumps(seed).encode()
    named = choices.of(HEADERS)
    sent = upstream(choices, path)
    parts = cut(choices, sent)
    here = world()
    told = here.ask(path, body, named, [sent] if sent else [])
    status, said, _, whole = told
    assert status in (200, 400, 401, 403, 404, 413, 429, 502, 503, 504), told
    for order in here.desk.orders:
        _check_order(path, order, here.desk)
    if path == "/v1/chat/completions":
        _plain_reads_the_same(body, here.desk)
    if status == 200 and whole and path in STREAMED[2:]:
        _check_dialect(path, said)
    if not here.desk.orders or not sent:
        return
    cut_told = here.ask(path, body, named, list(parts))
    _same(told, cut_told, (body, parts))
    here.trouble(choices, Caller("POST", path, body, headers=named), parts)
    if path in PIECES:
        _in_one_piece(choices, path, body, named)


def _in_one_piece(choices: Choices, path: str, body: bytes, named: dict[str, str]) -> None:
    """The same, of workers that are asked for all of an answer at once."""
    here, seed = world(in_one_piece=True), choices.of(PIECES[path])
    sent = json_bytes(choices, seed) if choices.flag() else json.dumps(seed).encode()
    sent = spliced(choices, sent) if choices.flag(4) else sent
    told = here.ask(path, body, named, [sent] if sent else [])
    if not all(order.in_one_piece for order in here.desk.orders) or not sent:
        return
    status, said, _, _ = told
    assert status in (200, 502), told
    if status == 200:
        got, was = json.loads(said), json.loads(sent)
        was["service_tier"] = here.desk.tier_delivered
        assert got == was, (said, sent)
    parts = cut(choices, sent)
    cut_told = here.ask(path, body, named, list(parts))
    _same(told, cut_told, (body, parts))
    here.trouble(choices, Caller("POST", path, body, headers=named), parts)


def _same(told: Told, cut_told: Told, sent: object) -> None:
    """The cuts change neither what is billed nor what is said.

    An answer that fails may have begun or not, so its status may differ; and what the worker says
    of usage after an event that cannot be told counts only where it came with that event.
    """
    usages = [[each.usage for each in one[2]] for one in (told, cut_told)]
    endings = [[each.ending for each in one[2]] for one in (told, cut_told)]
    assert endings[0] == endings[1], ("ending", sent, endings)
    if endings[0] == ["failed"]:
        return
    assert usages[0] == usages[1], ("usage", sent, usages)
    assert told[:2] == cut_told[:2], ("said", sent, told[:2], cut_told[:2])


def _check_order(path: str, order: Order, desk: FakeDesk) -> None:
    assert order.output_tokens_max >= 1, order
    assert order.input_tokens_max >= 0, order
    if order.worker_path != "/v1/chat/completions":
        return
    assert order.output_tokens_max <= OUTPUT_TOKENS_MAX
    sent = json.loads(order.body)
    assert isinstance(sent["messages"], list)
    assert sent["messages"], path
    assert sent["stream"] is True
    assert sent["stream_options"]["include_usage"] is True
    assert sent["max_tokens"] == order.output_tokens_max
    # What a worker gets is itself a request, and means the same.
    again = parse_chat_request(order.body, order.tier, desk.output_tokens_default, KEY.tenant, None)
    assert json.loads(again.body) == sent, (path, sent)


def _plain_reads_the_same(body: bytes, desk: FakeDesk) -> None:
    """What is read quickly is read as what is read carefully."""
    default = desk.output_tokens_default
    if b'"foreman"' not in body:
        return
    try:
        plain = read_plain(body, KEY.tier_default, default, KEY.tenant)
    except AssertionError:
        return  # another model, which this desk does not serve
    if plain is None:
        return
    careful = parse_chat_request(body, KEY.tier_default, default, KEY.tenant, None)
    assert json.loads(plain.body) == json.loads(careful.body), (body, plain.body, careful.body)
    assert _without_body(plain) == _without_body(careful), body


def _without_body(asked: ChatRequest) -> dict[str, object]:
    names = [name for name in asked.__struct_fields__ if name != "body"]
    return {name: getattr(asked, name) for name in names}


def _check_dialect(path: str, said: bytes) -> None:
    if not said.startswith(b"event: "):
        told = json.loads(said)
        kinds = ("message",) if path == "/v1/messages" else ("response",)
        assert told.get("type") in kinds or told.get("object") in kinds, told
        return
    events = []
    for event in said.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert events[-1]["type"] == name.removeprefix("event: "), event
    if path == "/v1/messages":
        _check_messages(events)
    else:
        numbers = [event["sequence_number"] for event in events]
        assert numbers == list(range(len(events))), numbers
        last = events[-1]["type"]
        assert last in ("response.completed", "response.incomplete", "error"), last


def _check_messages(events: list[dict[str, Any]]) -> None:
    kinds = [event["type"] for event in events]
    assert kinds[-1] in ("message_stop", "error"), kinds
    if kinds == ["error"]:
        return
    assert kinds[0] == "message_start", kinds
    assert kinds.count("message_start") == 1, kinds
    now: int | None = None
    count = 0
    for event in events:
        if event["type"] == "content_block_start":
            assert now is None
            assert event["index"] == count
            now, count = count, count + 1
        elif event["type"] == "content_block_delta":
            assert event["index"] == now
        elif event["type"] == "content_block_stop":
            assert event["index"] == now
            now = None
    assert kinds[-1] == "error" or now is None, kinds

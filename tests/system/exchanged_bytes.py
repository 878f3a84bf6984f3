"""Prints, as JSON, what a gateway writes in a few exchanges: to compare builds of the same code.

Where the workers' events are cut is part of an exchange, so each is made with several cuts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

from tests.gateway.fake_desk import (
    DONE,
    MODEL,
    ROLE,
    STOP,
    Caller,
    FakeClock,
    FakeDesk,
    Step,
    ask,
    token,
    usage_event,
)
from tokenworks.core.errors import WorkerFailed
from tokenworks.gateway import app, connection, event_stream
from tokenworks.gateway.app import Gateway

WHOLE = b"".join(
    [
        ROLE,
        *(token(text) for text in ("a", "b", 'a "quote"', "back\\slash", "line\n", "", "\u20ac")),
        token("end"),
        STOP,
        usage_event(9, 8),
        DONE,
    ]
)
WORKERS: dict[str, list[Step]] = {
    "at once": [WHOLE],
    "in pieces": [WHOLE[at : at + 37] for at in range(0, len(WHOLE), 37)],
    "with returns": [WHOLE.replace(b"\n", b"\r\n")],
    "torn": [WHOLE[:300]],
    "broken": [ROLE + token("a"), b"data: {no JSON}\n\n"],
    "failing": [ROLE + token("a"), WorkerFailed("it died")],
}


PIECE = (
    b'{"id":"c","choices":[{"index":0,"message":{"content":"\xe2\x82\xac"},"finish_reason":"stop"}],'
    b'"service_tier":null,"usage":{"prompt_tokens":9,"completion_tokens":1}}'
)
PIECES: dict[str, list[Step]] = {
    "one piece": [PIECE],
    "one piece, cut": [PIECE[:50], PIECE[50:]],
    "one piece, torn": [PIECE[:50]],
    "one piece, failing": [PIECE[:50], WorkerFailed("it died")],
}


def callers() -> Iterator[tuple[str, Caller]]:
    """Requests, each by its name."""
    yield "stream", ask()
    yield "with usage", ask(stream_options={"include_usage": True})
    yield "whole", ask(stream=False)
    body = ask(stream=False).request
    yield "in parts", Caller("POST", "/v1/chat/completions", [body[:9], body[9:]])
    yield "no JSON", Caller("POST", "/v1/chat/completions", body[:-1])
    yield "no model", ask(model="other")
    yield "no key", Caller("GET", "/v1/models", headers={"authorization": "Bearer x"})
    yield "models", Caller("GET", "/v1/models")
    yield "no request", Caller("GET", "/v1/models", headers={"host": "a\r\nhost: b"})


async def exchanged() -> dict[str, list[str]]:
    """The writes of each exchange."""
    found = dict[str, list[str]]()
    for way, script in (WORKERS | PIECES).items():
        whole = frozenset({MODEL}) if way in PIECES else frozenset()
        for name, caller in callers():
            gateway = Gateway(FakeDesk(script, whole), FakeClock())
            await caller.call(gateway)
            writes = [data.decode("latin-1") for data in caller.transport.writes]
            # Our own name for a request is drawn.
            found[f"{name}, {way}"] = [re.sub("req_[0-9a-f]+", "req_", each) for each in writes]
    return found


if __name__ == "__main__":
    modules = [module.__file__ for module in (app, connection, event_stream)]
    print(json.dumps([modules, asyncio.run(exchanged())]))

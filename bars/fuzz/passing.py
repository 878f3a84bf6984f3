"""Requests passed on to a provider: any target, headers and body, and any answer of any kind.

What must hold: no path leads past those that callers may have, and no key of theirs goes out; the
answer comes back byte for byte, or is broken off; no status of 500, no other exception; it is
settled once, for the same usage however it was cut, compressed answers too, and no more is billed
than there were bytes.
"""

from __future__ import annotations

import gzip
import zlib
from urllib.parse import unquote

from bars.fuzz.answers import World, upstream
from bars.fuzz.choices import Choices, cut, json_bytes, spliced
from bars.fuzz.seeds import REQUESTS, WHOLE
from tests.gateway.fake_desk import SECRET, Caller
from tokenworks.core.orders import Order
from tokenworks.gateway.content_coding import codings_of
from tokenworks.gateway.pass_through import ANY_MODEL, PATHS

METHODS = ("POST", "POST", "POST", "GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")
PIECES = (
    *("/v1", "/chat/completions", "/embeddings", "/files", "/batches", "/messages", "/responses"),
    *("/models", "/x", "/..", "/%2e%2e", "/.", "//", "/%2F", "\\", "%5c", "?a=b", "?", "#", ";a"),
    *("/cancel", "/organization", "/%66iles", "/é".encode().decode("latin-1"), "%", "%zz", "@x"),
)
HEADERS = (
    *(("content-type", "application/json"), ("content-type", "multipart/form-data; boundary=x")),
    *(("connection", "x-hop, close"), ("x-hop", "1"), ("cookie", "a=b"), ("x-api-key", "k")),
    *(("te", "trailers"), ("accept-encoding", "br"), ("openai-beta", "a"), ("x-a", "é")),
    *(("x-tokenworks-session", "s"), ("proxy-authorization", "k")),
)
KINDS = (
    *(b"application/json", b"application/json; charset=utf-8", b"text/event-stream", b""),
    *(b"text/event-stream; charset=utf-8", b"audio/mpeg", b"application/octet-stream"),
)
ANSWERED = (
    *((b"content-encoding", b"gzip"), (b"content-encoding", b"br"), (b"connection", b"x-hop")),
    *((b"x-hop", b"1"), (b"set-cookie", b"a=b"), (b"content-length", b"5"), (b"x-a", b"\xe9")),
    *((b"transfer-encoding", b"chunked"), (b"x-ratelimit-limit-requests", b"5"), (b"date", b"x")),
)
STATUSES = (200, 200, 200, 200, 201, 204, 304, 400, 401, 404, 429, 500, 503, 599)
NEVER = frozenset({b"authorization", b"cookie", b"x-api-key", b"proxy-authorization", b"host"})
_world: list[World] = []


def world() -> World:
    """The one of this process."""
    if not _world:
        _world.append(World(passes_on=True))
        _world[0].desk.served = (ANY_MODEL,)
    return _world[0]


def _coded(choices: Choices, sent: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """An answer as it comes, and what is said of it."""
    said = choices.some(ANSWERED, 3)
    kind = choices.below(6)
    if kind == 0:
        return gzip.compress(sent, mtime=0), [*said, (b"content-encoding", b"gzip")]
    if kind == 1:
        return zlib.compress(sent), [*said, (b"content-encoding", b"deflate")]
    return sent, said


def _check_order(order: Order) -> None:
    passing = order.passing
    assert passing is not None
    path = passing.target.partition("?")[0]
    assert path.startswith("/"), passing
    steps = unquote(path).split("/")
    assert steps[1] in PATHS, passing
    assert not {".", ".."} & set(steps), passing
    for name, value in passing.headers:
        assert name not in NEVER, passing
        assert SECRET not in value, passing
    assert not any(char in passing.target for char in "\r\n "), passing


def one(data: bytes) -> None:
    """Check one input."""
    choices = Choices(data)
    here = world()
    method = choices.of(METHODS)
    target = "".join(choices.some(PIECES, 5)) or "/v1/chat/completions"
    named = dict(choices.some(HEADERS, 4))
    body = b""
    if method not in ("GET", "HEAD"):
        body = json_bytes(choices, choices.of(REQUESTS)[1])
    sent = upstream(choices, "/v1/embeddings")
    if choices.flag():
        sent = json_bytes(choices, choices.of(WHOLE))
    sent, answered = _coded(choices, sent)
    damaged = choices.flag(8)
    sent = spliced(choices, sent) if damaged else sent
    desk = here.desk
    desk.status, desk.content_type = choices.of(STATUSES), choices.of(KINDS)
    desk.headers = answered
    if not target.startswith("/"):
        target = "/" + target
    parts, told = cut(choices, sent), []
    for script in ([sent] if sent else [], list(parts)):
        caller = Caller(method, target, body, headers=named)
        here.call(caller, script, passed=desk.status)
        for order in desk.orders:
            _check_order(order)
        if not desk.deliveries:
            assert caller.status in (400, 401, 403, 404, 405, 413, 417), caller.received
            return
        outcome = desk.delivery.outcome
        assert outcome.ending == "done", outcome
        assert caller.status == desk.status, (target, caller.received)
        if method != "HEAD" and desk.status not in (204, 304):
            assert caller.body == sent, (target, sent, caller.body)
        told.append((outcome.usage, outcome.metered_by))
    if not (damaged and codings_of(answered)):  # what is read before the damage depends on the cuts
        assert told[0] == told[1], (body, parts, told)
    here.trouble(choices, Caller(method, target, body, headers=named), parts, passed=desk.status)

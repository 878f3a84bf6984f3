"""Requests passed on as they came to one outside provider: its API, our keys, quotas and ledger.

Nothing is translated: paths, bodies, errors and streams are the provider's own. What a request may
cost at most is held before it goes out, and what the provider says it used is billed after.
"""

from __future__ import annotations

import asyncio
import json
import re
import reprlib
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from tokenworks.catalogue import factory_config
from tokenworks.core.errors import ModelNotFound, RouteNotFound, WorkerFailed
from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.orders import Ending, KeyView, Order, Outcome, Passing, Usage
from tokenworks.core.ports import Delivery
from tokenworks.gateway.answer import Answers, Meter
from tokenworks.gateway.chat_fields import JSONObject
from tokenworks.gateway.connection import Exchange
from tokenworks.gateway.content_coding import Decoder, codings_of
from tokenworks.gateway.dialect import Asked
from tokenworks.gateway.event_stream import has_part, payload
from tokenworks.gateway.http_head import Head
from tokenworks.gateway.http_io import ClientGone, Headers
from tokenworks.gateway.own_headers import own_headers
from tokenworks.gateway.told_usage import (
    as_usage,
    told_usage,
    usage_at_end,
    usage_words,
)
from tokenworks.gateway.worker_chunks import nothing_used

ANY_MODEL: Final = ModelName(factory_config.ANY_MODEL)
"""What a pool serves, and a price book prices, that requests are passed on to."""

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
WATCHED_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of an answer that is searched for its usage at its end; of a longer one its end alone is."""

END_BYTES: Final = 64 * 1024

EVENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one event of a stream, whose usage is looked for as it passes."""

OUTPUT_TOKENS_MAX: Final = 1 << 20

TEXT_BYTES_PER_TOKEN: Final = 4
"""Of a prompt whose tokens nobody tells: the rule of thumb for English text. Code and other scripts
take fewer bytes to a token, and are billed less than the provider takes."""

_OF_A_CONNECTION: Final = frozenset(
    {
        *(b"connection", b"content-length", b"keep-alive", b"proxy-connection", b"trailer"),
        *(b"transfer-encoding", b"upgrade"),
    }
)
DROPPED: Final = _OF_A_CONNECTION | {
    *(b"accept-encoding", b"api-key", b"authorization", b"cookie", b"expect", b"host"),
    *(b"proxy-authorization", b"te", b"x-api-key"),
}
"""Of a request: a connection's own, and the caller's key, which is ours and not the provider's.
Usage can be found in an answer that is not compressed alone, and so the provider is told."""

HIDDEN: Final = _OF_A_CONNECTION | {b"content-type", b"date", b"set-cookie", b"x-request-id"}
"""Of an answer: what is written anew, and cookies that would join callers."""

PATHS: Final = frozenset(
    {
        *("audio", "batches", "chat", "completions", "conversations", "embeddings", "files"),
        *("images", "messages", "models", "moderations", "rerank", "responses", "uploads"),
    }
)
"""What a path may begin with, after ``/v1`` or without: what makes and keeps tokens, not what
manages a provider's account."""

LEFT_S_MAX: Final = 5.0
"""How long a whole answer is read to its end after its caller has left. Its usage comes last, and
tells what is owed for tokens that are made already; who takes longer is still making them."""

_REFUSED: Final = 400
"""From this status on nothing was made."""

_PREFIX: Final = b"/v1"
_OWN: Final = b"x-tokenworks-"
_INLINED: Final = re.compile(
    rb"data:[\w/+.;=\\-]{1,100};base64,[\w+/=\\-]*" rb'|"[\w+/=\\-]{512,}"'
)
"""Files inside a body: as URLs, or a whole string of so many letters and no space among them, which
is how sound and documents come."""
_LIMIT: Final = re.compile(rb'"max_(?:completion_|output_)?tokens"\s*:\s*(\d{1,7})\b')

_FETCHES: Final = re.compile(r"/batches\b|/chat/completions/|[^?]*/cancel(?:\?|$)")
"""Targets whose answers tell of usage that others had."""


class _Peer(Protocol):
    """What is known of a request from its head."""

    request: RequestID
    key: KeyView | None

    def ids(self) -> Headers:
        """Its names, as its answer tells them."""
        ...


class PassThrough:
    """Passes requests on through a desk."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def serve(self, exchange: Exchange, peer: _Peer) -> None:
        """One request, from its first byte to its settlement.

        Raises:
            TokenworksError: what went wrong before anything was sent.
            ClientGone: the caller left, and what was made for it is settled.
        """
        head, key = exchange.head, peer.key
        assert head is not None
        assert key is not None
        _check_path(head)
        order = self._order(head, exchange.body, key, peer.request)
        exchange.body = b""
        delivery = await self._answers.opened(exchange, order)
        await Passage(self._answers, order, delivery, exchange, peer.ids()).run()

    def _order(self, head: Head, body: bytes, key: KeyView, request: RequestID) -> Order:
        arrived_ns = self._answers.clock.now_ns()
        headers = head.headers()
        own = own_headers(headers, key.labels)
        query = b"?" + head.query if head.query else b""
        target = (head.raw_path.removeprefix(_PREFIX) + query).decode("latin-1")
        dropped = DROPPED | connection_options(headers)
        sent = [
            (name, value)
            for name, value in headers
            if name not in dropped and not name.startswith(_OWN)
        ]
        sent.append((b"accept-encoding", b"identity"))
        named = None
        if key.scopes is not None and key.scopes.models:
            named = named_model(body)
            key.scopes.check_model(named)
        if ANY_MODEL not in self._answers.desk.models():
            raise ModelNotFound(
                f"The price book in force has no price for {ANY_MODEL!r}: nothing is passed on.",
                hint=f"Operators: put a book into force that has [price.{ANY_MODEL!r}].",
            )
        default = self._answers.desk.output_tokens_default(ANY_MODEL, key.tier_default)
        asked = Asked(
            model=ANY_MODEL,
            tier=key.tier_default,
            stream=False,
            output_tokens_max=output_limit(body, default) if head.method == "POST" else 1,
            input_tokens_max=len(body) + 1,
            prefix=(),
            cache_salt="",
            body=body,
            worker_path=head.path,
        )
        order = self._answers.order(asked, key, arrived_ns, own, request, "/v1/", named)
        passing = Passing(method=head.method, target=target, headers=tuple(sent))
        return msgspec.structs.replace(order, passing=passing)


def _check_path(head: Head) -> None:
    """Refuse what is not meant for callers, however it is written.

    Raises:
        RouteNotFound: with what there is.
    """
    raw = head.raw_path
    root, first, *_ = (*raw.removeprefix(_PREFIX).decode("latin-1").split("/"), "")
    steps, disguised = head.path.split("/"), b"%2f" in raw.lower() or "\\" in head.path
    if root or first not in PATHS or ".." in steps or "." in steps or disguised:
        raise RouteNotFound(
            f"There is no {reprlib.repr(head.path)} to pass requests on to.",
            hint=f"Paths begin with /v1 and one of {', '.join(sorted(PATHS))}.",
        )


def connection_options(headers: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that are for this connection alone, as its peer says (RFC 9110, 7.6.1).

    >>> sorted(connection_options([(b"connection", b"close, X-Hop"), (b"x-hop", b"1")]))
    [b'close', b'x-hop']
    """
    named = [value for name, value in headers if name == b"connection"]
    return frozenset(option.strip().lower() for option in b",".join(named).split(b","))


def output_limit(body: bytes, default: int) -> int:
    """The most tokens that an answer may have, by the largest limit that the body names.

    >>> output_limit(b'{"max_tokens": 5, "max_completion_tokens": 9}', 100)
    9
    >>> output_limit(b"{}", 100)
    100
    """
    found = [int(limit) for limit in _LIMIT.findall(body)]
    return min(max(found, default=default), OUTPUT_TOKENS_MAX) or 1


def prompt_estimate(body: bytes) -> int:
    """Tokens of a prompt that nobody tells of; files inside it count for none, and so do forms.

    >>> prompt_estimate(b'{"content": "data:image/png;base64,aGVsbG8gdGhlcmU="}')
    4
    """
    if not body.lstrip().startswith(b"{"):
        return 0
    return -(-len(_INLINED.sub(b"", body)) // TEXT_BYTES_PER_TOKEN)


def named_model(body: bytes) -> str | None:
    """The model that a body asks for; None unless it is JSON that everybody reads the same way.

    Some take the first of two fields of one name and some the last, and some take no heed of
    capitals.

    >>> named_model(b'{"model": "a"}'), named_model(b'{"model": "a", "Model": "b"}')
    ('a', None)
    """
    try:
        fields = json.loads(body.decode(), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, tuple):
        return None
    named = [(name, value) for name, value in fields if name.casefold() == "model"]
    ((name, value),) = named if len(named) == 1 else [("", None)]
    return value if name == "model" and isinstance(value, str) else None


def makes_tokens(passing: Passing | None) -> bool:
    """Whether the usage that an answer tells of is that of its request.

    What was made before tells of it whenever it is fetched, changed or cancelled.
    """
    assert passing is not None
    return passing.method == "POST" and _FETCHES.match(passing.target) is None


class Passage:
    """One answer on its way through; implements ``ports.Sink``."""

    def __init__(
        self,
        answers: Answers,
        order: Order,
        delivery: Delivery,
        exchange: Exchange,
        ids: Headers,
    ) -> None:
        self._answers, self._order, self._delivery = answers, order, delivery
        self._exchange, self._ids = exchange, ids
        self._meter = Meter(order.arrived_ns)
        self._watch = UsageWatch(delivery.stream.content_type)
        codings = codings_of(delivery.stream.headers)
        self._decoder = Decoder(codings) if codings else None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: WorkerFailed | None = None
        self._late: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Pass it on to its end, settle.

        Raises:
            TokenworksError: nothing was sent, and this is why.
            ClientGone: the caller left.
        """
        exchange = self._exchange
        exchange.on_gone = self._left
        exchange.on_pause, exchange.on_resume = self._delivery.pause, self._delivery.resume
        try:
            self._begin()
            self._delivery.pipe(self)
            if exchange.gone:
                self._left()
            await self._over
        except BaseException:
            self._delivery.abort()
            await self._settle("failed")
            raise
        if exchange.gone:
            await self._settle("disconnected")
            raise ClientGone
        try:
            await self._settle("done" if self._failure is None else "failed")
        except Exception:
            exchange.break_off()
            raise
        if self._failure is None:
            exchange.end()
        else:
            exchange.break_off()

    def data(self, data: bytes) -> None:
        """See ``Sink``."""
        if self._over.done():
            return
        self._meter.tokens_sent(self._answers.clock.now_ns())
        if self._decoder is None:
            self._watch.feed(data)
        else:
            for piece in self._decoder.feed(data):
                self._watch.feed(piece)
        self._exchange.write(data)

    def ended(self, failure: WorkerFailed | None) -> None:
        """See ``Sink``."""
        if not self._over.done():
            self._failure = failure
            self._over.set_result(None)
            if self._late is not None:
                self._late.cancel()

    def _begin(self) -> None:
        stream = self._delivery.stream
        hidden = HIDDEN | connection_options(stream.headers)
        headers = [pair for pair in stream.headers if pair[0] not in hidden]
        self._exchange.begin(stream.status, stream.content_type, [*headers, *self._ids])

    def _left(self) -> None:
        if self._watch.is_whole and makes_tokens(self._order.passing):
            self._delivery.resume()
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(LEFT_S_MAX, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        """Let the provider go: its worker's slot is free for others."""
        self._delivery.abort()
        self.ended(None)

    async def _settle(self, ending: Ending) -> None:
        try:
            outcome = self._outcome(ending)
        except Exception:
            # A mistake of ours: nobody pays for it, and what was held is free again.
            failed = self._outcome_of(nothing_used(), "failed", None)
            await self._answers.settle(self._order, self._delivery, failed)
            raise
        await self._answers.settle(self._order, self._delivery, outcome)

    def _outcome(self, ending: Ending) -> Outcome:
        told = self._watch.usage()
        usage = self._watch.seen(told) if told is None or ending != "done" else told
        unread = self._decoder
        if unread is not None and not (unread.blind or (unread.cut and ending == "done")):
            unread = None
        if not makes_tokens(self._order.passing):
            usage = nothing_used()
        elif told is None and self._delivery.stream.status < _REFUSED:
            if unread is not None or self._watch.streams:
                read = prompt_estimate(self._order.body)
                usage = msgspec.structs.replace(usage, uncached_input_tokens=read)
            if unread is not None:
                made = -(-unread.coded_bytes // TEXT_BYTES_PER_TOKEN)
                made = max(usage.output_tokens, min(made, self._order.output_tokens_max))
                usage = msgspec.structs.replace(usage, output_tokens=made)
        return self._outcome_of(usage, ending, told)

    def _outcome_of(self, usage: Usage, ending: Ending, told: Usage | None) -> Outcome:
        return Outcome(
            usage=usage,
            measured=self._meter.measured(usage.completion_tokens, self._answers.clock.now_ns()),
            ending=ending,
            metered_by="gateway" if told is None else "worker",
            streamed=self._watch.streams,
        )


class UsageWatch:
    """Finds out what an answer has used while it passes.

    Args:
        content_type: of the answer.

    Attributes:
        streams: whether it is events.
        is_whole: whether it is one object, not events nor a file.
    """

    def __init__(self, content_type: bytes) -> None:
        kind = content_type.partition(b";")[0].strip().lower()
        self.streams = kind == b"text/event-stream"
        self.is_whole = kind in (b"application/json", b"")
        self._parts: list[bytes] = []
        self._bytes = 0
        self._cut = False
        """Whether the parts are the end of the answer alone."""
        self._rest = b""
        self._told: JSONObject = {}
        self._tokens = 0
        self._tokens_at_told = 0

    def feed(self, data: bytes) -> None:
        """A part of it."""
        if self.streams:
            self._feed_events(data)
        elif self.is_whole:
            self._parts.append(data)
            self._bytes += len(data)
            if self._bytes > WATCHED_BYTES_MAX:
                end = b"".join(self._parts)[-END_BYTES:]
                self._cut, self._parts, self._bytes = True, [end], len(end)

    def _feed_events(self, data: bytes) -> None:
        joined = (self._rest + data).replace(b"\r\n", b"\n")
        whole, cut, self._rest = joined.rpartition(b"\n\n")
        self._rest = self._rest[:EVENT_BYTES_MAX]
        if not cut:
            return
        for event in whole.split(b"\n\n"):
            if not self._tells(event):
                self._tokens += has_part(event) if b'"choices"' in event else b'"delta"' in event

    def _tells(self, event: bytes) -> bool:
        """Whether an event says what was used, which is noted."""
        words = usage_words(payload(event)) if b'"usage"' in event else {}
        if words:
            self._told |= words
            self._tokens_at_told = self._tokens
        return bool(words)

    def usage(self) -> Usage | None:
        """What it says it has used; None if it says nothing, or what cannot be."""
        try:
            if self.streams:
                self._tells(self._rest)  # the last event may lack its empty line
                return as_usage(self._told)
            whole = b"".join(self._parts)
            return usage_at_end(whole) if self._cut else told_usage(whole)
        except WorkerFailed:
            return None

    def seen(self, told: Usage | None) -> Usage:
        """What was seen of an answer that ended early: an event with a part of it is a token.

        Args:
            told: what ``usage`` says.

        Such events count on top of what was told before them. Anthropic tells of a token before
        there is any: that is the first of those that come.
        """
        told = told or nothing_used()
        since = self._tokens - self._tokens_at_told
        if not self._tokens_at_told:
            since = max(0, since - told.completion_tokens)
        return msgspec.structs.replace(told, output_tokens=told.output_tokens + since)

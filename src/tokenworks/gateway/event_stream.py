"""Reading a worker's event stream without touching what is forwarded.

Every event that carries a token is forwarded as the bytes it came in, and counted. The last events
(the one with ``finish_reason``, the usage event and ``[DONE]``) are held back until the answer is
settled, so that they can name the delivered tier.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import MeteredBy, Usage
from tokenworks.gateway.chunk_reading import decode_chunk, disjoint, says
from tokenworks.gateway.envelope import EVENT_END, TEXT, Envelope, envelope_of
from tokenworks.gateway.worker_chunks import Progress

EVENT_BYTES_MAX: Final = 1_000_000
HELD_EVENTS_MAX: Final = 64
_END: Final = EVENT_END
_DONE: Final = b"[DONE]"
_DATA: Final = b"data:"
_CR: Final = 0x0D
_LF: Final = 0x0A
_END_BYTES: Final = len(_END)
_DATA_BYTES: Final = len(_DATA)
_NOT_FINISHED: Final = b'"finish_reason":null'
_TEXT_BEGINS: Final = len(TEXT)
_NO_TEXT: Final = (b'"', b"")
_SOME_TEXT: Final = re.compile(
    rb'"(?:content|text|arguments|reasoning|reasoning_content)"\s*:\s*"[^"]'
)
"""What a plain token event has: a text that is not empty, however its JSON is spaced."""
_USED: Final = re.compile(rb'"usage"\s*:\s*\{')
_ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:5[fF]|6[359]|7[2346])")
"""Of a key that is written so as not to be found; no encoder writes one, in texts either."""
_LINE_END: Final = re.compile(rb"[\r\n]")
_fields_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Taker(Protocol):
    """Takes what an answer is put together of, in its order."""

    def event(self, event: bytes) -> None:
        """A whole event without its end, which is to be read."""
        ...

    def texts(self, envelope: Envelope, texts: list[bytes]) -> None:
        """At least one text out of events that have all else in common."""
        ...


class EventStream:
    """Cuts a stream into events and keeps the count.

    Args:
        taker: gets what is for the client now, cut up as it was found.

    Attributes:
        token_events: events so far that carried a part of the answer.
        usage: what the worker last said it had used, if it has.
        held: the event with ``finish_reason`` and those after it, not forwarded yet.
        usage_event: the last event that carried usage and nothing else, not forwarded yet.
        finished: whether the first choice's ``finish_reason`` has come. What a worker sends of
            others, which nobody asked for, goes on to the client after it, too.
        done: whether ``[DONE]`` has come, or nothing more can be taken.
        failure: why nothing more can be taken: an event is longer than EVENT_BYTES_MAX, the closing
            is endless, an event is no chunk, or it reports an error. What came before it stands.
    """

    __slots__ = (
        "_envelope",
        "_progress",
        "_rest",
        "_taker",
        "_token_events_at_usage",
        "done",
        "failure",
        "finished",
        "held",
        "token_events",
        "usage",
        "usage_event",
    )

    def __init__(self, taker: Taker | None = None) -> None:
        self._taker = taker
        self.token_events = 0
        self.usage: Usage | None = None
        self.held: list[bytes] = []
        self.usage_event: bytes | None = None
        self.finished = False
        self.done = False
        self.failure: WorkerFailed | None = None
        self._rest = b""
        self._envelope: Envelope | None = None
        self._progress: Progress | None = None
        self._token_events_at_usage = 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return the whole events that go to the client now.

        However the stream is cut into ``data``, the returned bytes add up to the same.
        """
        data = self._rest + data if self._rest else data
        # The common case: every event is a token like the last one that was read.
        envelope = self._envelope
        if envelope is not None:
            text = envelope.only_text(data)
            if text:
                self.token_events += 1
                if self._taker is not None:
                    self._taker.texts(envelope, [text])
                self._rest = b""
                return data
            end, alike = envelope.run(data, 0)
            if alike and (end == len(data) or not _LINE_END.search(data, end)):
                self.token_events += len(alike)
                if self._taker is not None:
                    self._taker.texts(envelope, alike)
                if self._rest or end < len(data):
                    self._keep(data[end:])
                return data[:end]
        if _CR in data:
            data = data.replace(b"\r\n", b"\n")
        last = data.rfind(_END)
        if last < 0:
            self._keep(data)
            return b""
        cut = last + _END_BYTES
        ready = self._sort(data[:cut])
        self._keep(data[cut:])
        return ready

    def _keep(self, rest: bytes) -> None:
        self._rest = rest
        if len(rest) > EVENT_BYTES_MAX:
            self._fail(
                WorkerFailed(
                    f"A worker sent an event of more than {EVENT_BYTES_MAX} bytes.",
                    hint="Look at the worker's log.",
                )
            )

    def _fail(self, failure: WorkerFailed) -> None:
        self.failure = self.failure or failure
        self.done = True

    def _sort(self, ready: bytes) -> bytes:
        """The careful way, for batches that hold more than tokens that are alike."""
        forward: list[bytes] = []
        at, size = 0, len(ready)
        while at < size and not self.done:
            if self._envelope is not None:
                begun = at
                at, alike = self._envelope.run(ready, at)
                if alike:
                    self.token_events += len(alike)
                    if self._taker is not None:
                        self._taker.texts(self._envelope, alike)
                    forward.append(ready[begun:at])
                    continue
            end = ready.find(_END, at)
            end = size if end < 0 else end  # after three line feeds there may be one more
            event = ready[at:end]
            if ready[at] == _LF:
                event = event.strip(b"\n")
            at = end + _END_BYTES
            try:
                if self._goes_on(event):
                    forward.append(event + _END)
            except WorkerFailed as failure:
                self._fail(failure)
        return b"".join(forward)

    def _goes_on(self, event: bytes) -> bool:
        """Count an event; whether it is for the client now. What is for later is held."""
        aside = False
        if not self.finished and _is_plain(event):
            self.token_events += 1
            self._envelope = envelope_of(event)
            if self._taker is not None and self._envelope is not None:
                self._taker.texts(self._envelope, [self._envelope.text(event)])
                return True
        else:
            body = payload(event)
            if not body:  # a comment, which keeps connections open and says nothing
                return False
            if body.startswith(_DONE):
                self.done = True
                return False
            chunk = decode_chunk(body)
            if chunk.prompt_progress is not None:
                self._progress = chunk.prompt_progress
                return False
            token, ends, aside = says(chunk)
            self.token_events += token
            if chunk.usage is not None:
                self.usage = disjoint(chunk.usage)
                self._token_events_at_usage = self.token_events
                if not chunk.choices:
                    self.usage_event = event
                    return False
            self.finished = self.finished or ends
        if self.finished and not aside:
            self._envelope = None
            self._hold(event)
            return False
        if self._taker is not None:
            self._taker.event(event)
        return True

    def _hold(self, event: bytes) -> None:
        if len(self.held) >= HELD_EVENTS_MAX:
            raise WorkerFailed(f"A worker closed an answer with over {HELD_EVENTS_MAX} events.")
        self.held.append(event)

    def usage_so_far(self) -> Usage:
        """The worker's own figures if it gave them, else what was seen: prompt progress and events.

        Events that came after the worker's last figures count on top of them. A worker that
        reports neither progress nor usage is taken to have read no prompt: nobody pays for what
        was not measured.
        """
        if self.usage is not None:
            since = self.token_events - self._token_events_at_usage
            if not since:
                return self.usage
            return msgspec.structs.replace(
                self.usage, output_tokens=self.usage.output_tokens + since
            )
        read = self._progress
        cached = min(read.cache, read.processed) if read else 0
        return Usage(
            uncached_input_tokens=min(read.total, read.processed) - cached if read else 0,
            cached_input_tokens=cached,
            output_tokens=self.token_events,
        )

    @property
    def metered_by(self) -> MeteredBy:
        """Who has counted: the worker, if it said anything of usage, else we."""
        return "gateway" if self.usage is None else "worker"

    def closing(self, tier_delivered: str, *, include_usage: bool) -> bytes:
        """The held events, naming the delivered tier, and ``[DONE]``."""
        events = [*self.held]
        if include_usage and self.usage_event is not None:
            events.append(self.usage_event)
        parts = [with_service_tier(event, tier_delivered) + _END for event in events]
        return b"".join((*parts, b"data: ", _DONE, _END))


def _is_plain(event: bytes) -> bool:
    """Whether an event is a token of an answer that goes on.

    It looks at bytes alone. Quotes inside a JSON string are escaped, so no text of an answer looks
    like these fields; what isn't plain is decoded, so a miss costs time and nothing else.
    """
    # One look for each is quicker than one pattern for all, and `in` makes an error of each look
    # and throws it away.
    if event.find(_NOT_FINISHED) < 0 or not (event[:7] == b"data: {" or event[:6] == b"data:{"):
        return False
    begins = event.find(TEXT) + _TEXT_BEGINS
    simple = begins >= _TEXT_BEGINS and event[begins : begins + 1] not in _NO_TEXT
    return (
        (simple or _SOME_TEXT.search(event) is not None)
        and event.count(b'"finish_reason"') == 1
        and event.find(b'"role"') < 0
        and event.find(b'"error"') < 0
        and event.find(b'"prompt_progress"') < 0
        and (event.find(b'"usage"') < 0 or _USED.search(event) is None)
    )


def has_part(event: bytes) -> bool:
    """Whether an event of a completion carries a part of the answer: neither a role nor an end.

    One that cannot be read carries something.

    >>> has_part(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}')
    False
    >>> has_part(b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}')
    True
    """
    if _is_plain(event):
        return True
    try:
        chunk = decode_chunk(payload(event))
    except WorkerFailed:
        return True
    return says(chunk)[0]


def payload(event: bytes) -> bytes:
    r"""The JSON of an event: its data lines; nothing for a comment.

    >>> payload(b'event: chunk\ndata: {"id":"x"}'), payload(b": ping")
    (b'{"id":"x"}', b'')
    """
    if event.startswith(_DATA) and _LF not in event:
        return event[_DATA_BYTES:].strip()
    lines = (line for line in event.split(b"\n") if line.startswith(_DATA))
    return b"\n".join(line[_DATA_BYTES:].strip() for line in lines)


def with_service_tier(event: bytes, tier: str) -> bytes:
    """The same event with the delivered tier as its first field, in place of any the worker gave.

    >>> with_service_tier(b'data: {"id":"x"}', "high")
    b'data: {"service_tier":"high","id":"x"}'
    """
    return b"data: " + tier_first(without_service_tier(payload(event)), tier)


def tier_first(body: bytes, tier: str) -> bytes:
    """A JSON object that names no tier, with the delivered one as its first field.

    >>> tier_first(b'{ "id":1}', "high"), tier_first(b"{}", "free")
    (b'{"service_tier":"high","id":1}', b'{"service_tier":"free"}')
    """
    rest = body[1:].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return b'{"service_tier":"%b"%b%b' % (tier.encode(), comma, rest)


def without_service_tier(body: bytes) -> bytes:
    """The same JSON object without any tier that the worker gave.

    One with a key that is no UTF-8 goes on as it came: it can be billed by now.

    >>> without_service_tier(b'{"service_tier":null, "id":1}'), without_service_tier(b'{"id": 1}')
    (b'{"id":1}', b'{"id": 1}')
    """
    if body.find(b'"service_tier"') < 0 and _ESCAPED_LETTER.search(body) is None:
        return body
    try:
        fields = _fields_decoder.decode(body)
    except UnicodeDecodeError:
        return body
    if fields.pop("service_tier", None) is None:
        return body
    return msgspec.json.encode(fields)

"""Reading a worker's event stream without touching what is forwarded.

Every event that carries a token is forwarded as the bytes it came in, and counted. The last events
(the one with ``finish_reason``, the usage event and ``[DONE]``) are held back until the answer is
settled, so that they can name the delivered tier.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import Usage

EVENT_BYTES_MAX: Final = 1_000_000
HELD_EVENTS_MAX: Final = 64
_END: Final = b"\n\n"
_DONE: Final = b"data: [DONE]"
_NOT_FINISHED: Final = b'"finish_reason":null'
_USAGE: Final = b'"usage":{'
_ROLE_ONLY: Final = b'"delta":{"role":"assistant","content":null}'
_ROLE_ONLY_EMPTY: Final = b'"delta":{"role":"assistant","content":""}'


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    delta: dict[str, object] | None = None


class _Progress(msgspec.Struct):
    total: int
    cache: int
    processed: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None
    prompt_progress: _Progress | None = None


_chunk_decoder: Final = msgspec.json.Decoder(_Chunk)


class EventStream:
    """Cuts a stream into events and keeps the count.

    Attributes:
        token_events: events so far that carried a part of the answer.
        usage: what the worker said it used, once it has.
        held: the closing events, not forwarded yet.
        done: whether ``[DONE]`` has come.
    """

    __slots__ = ("_progress", "_rest", "done", "held", "token_events", "usage")

    def __init__(self) -> None:
        self.token_events = 0
        self.usage: Usage | None = None
        self.held: list[bytes] = []
        self.done = False
        self._rest = b""
        self._progress: _Progress | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return the whole events that go to the client now.

        Raises:
            WorkerFailed: an event is longer than EVENT_BYTES_MAX, the closing is endless, an
                event is no chunk, or it reports an error.
        """
        data = self._rest + data if self._rest else data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        cut = data.rfind(_END)
        if cut < 0:
            self._keep(data)
            return b""
        cut += len(_END)
        self._keep(data[cut:])
        ready = data[:cut]
        plain = ready.count(_NOT_FINISHED)
        # The common case: every event is a token of an answer that goes on.
        if (
            not self.held
            and plain == ready.count(_END)
            and _USAGE not in ready
            and _ROLE_ONLY not in ready
            and _ROLE_ONLY_EMPTY not in ready
        ):
            self.token_events += plain
            return ready
        return self._sort(ready)

    def _keep(self, rest: bytes) -> None:
        if len(rest) > EVENT_BYTES_MAX:
            raise WorkerFailed(
                f"A worker sent an event of more than {EVENT_BYTES_MAX} bytes.",
                hint="Look at the worker's log.",
            )
        self._rest = rest

    def _sort(self, ready: bytes) -> bytes:
        """The careful way, for batches that hold more than plain token events."""
        forward: list[bytes] = []
        for piece in ready.split(_END):
            event = piece.strip(b"\n")
            if event.startswith(_DONE):
                self.done = True
            elif event.startswith(b"data:"):
                goes_on = self._goes_on(event)
                if goes_on:
                    forward.append(event + _END)
                elif goes_on is not None:
                    self._hold(event)
        return b"".join(forward)

    def _goes_on(self, event: bytes) -> bool | None:
        """Count a chunk; whether the answer goes on after it. None: it is for us alone."""
        try:
            chunk = _chunk_decoder.decode(payload(event))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkerFailed(f"A worker's chunk cannot be read: {error}.") from error
        if chunk.error is not None:
            raise WorkerFailed(f"A worker reported {chunk.error!r} in the middle of an answer.")
        if chunk.usage is not None:
            self._read_usage(chunk.usage)
        if chunk.prompt_progress is not None:
            self._progress = chunk.prompt_progress
            return None
        delta = chunk.choices[0].delta if chunk.choices else None
        if delta and any(value for name, value in delta.items() if name != "role"):
            self.token_events += 1
        ends = not chunk.choices or chunk.choices[0].finish_reason is not None
        return not ends and not self.held

    def _hold(self, event: bytes) -> None:
        if len(self.held) >= HELD_EVENTS_MAX:
            raise WorkerFailed(f"A worker closed an answer with over {HELD_EVENTS_MAX} events.")
        self.held.append(event)

    def _read_usage(self, found: _Usage) -> None:
        details = found.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details else 0
        if min(found.prompt_tokens, found.completion_tokens, cached) < 0:
            raise WorkerFailed(f"A worker's usage is negative: {found!r}.")
        self.usage = Usage(
            input_tokens=found.prompt_tokens,
            cached_input_tokens=min(cached, found.prompt_tokens),
            output_tokens=found.completion_tokens,
        )

    def usage_so_far(self) -> Usage:
        """The worker's own figures if it gave them, else what was seen: prompt progress and events.

        A worker that reports neither progress nor usage is taken to have read no prompt: nobody
        pays for what was not measured.
        """
        if self.usage is not None:
            return self.usage
        read = self._progress
        return Usage(
            input_tokens=min(read.total, read.processed) if read else 0,
            cached_input_tokens=min(read.cache, read.processed) if read else 0,
            output_tokens=self.token_events,
        )

    def closing(self, tier_delivered: str, *, include_usage: bool) -> bytes:
        """The held events, naming the delivered tier, and ``[DONE]``."""
        parts = []
        for event in self.held:
            usage_only = _USAGE in event and b'"choices":[]' in event
            if usage_only and not include_usage:
                continue
            parts.append(with_service_tier(event, tier_delivered) + _END)
        parts.append(_DONE + _END)
        return b"".join(parts)


def payload(event: bytes) -> bytes:
    """The JSON of a one-line event."""
    return event.removeprefix(b"data:").strip()


def with_service_tier(event: bytes, tier: str) -> bytes:
    """The same event with the delivered tier as its first field, in place of any the worker gave.

    >>> with_service_tier(b'data: {"id":"x"}', "high")
    b'data: {"service_tier":"high","id":"x"}'
    """
    if not event.startswith(b"data:"):
        return event
    body = payload(event)
    if b'"service_tier"' in body:
        fields = msgspec.json.decode(body)
        fields.pop("service_tier", None)
        body = msgspec.json.encode(fields)
    return b'data: {"service_tier":"' + tier.encode() + b'",' + body[1:].lstrip()

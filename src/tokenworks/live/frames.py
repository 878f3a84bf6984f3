"""What a factory's processes say to each other over a Unix socket, and the link that carries it.

One of them, the owner, has the dispatcher and the workers; the others, the fronts, tell it events
and are told commands. What one says in a turn of its event loop goes out in one frame, or a few:
four bytes of length, then a MessagePack array.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import msgspec

from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.dispatch.commands import Fetch, Hedge, Offload, Preempt, Reject, Send
from tokenworks.dispatch.events import Arrived, Failed, Finished, Started, Withdrawn

FRAME_BYTES_MAX: Final = 16 << 20
MESSAGES_MAX: Final = 1_024
"""In one frame. An event has some 2 KB of prefix at most, and what a front with all its requests
waiting tells a new owner is more than a frame."""
UNSENT_BYTES_MAX: Final = 64 << 20
"""A process that leaves so much unread is taken for dead."""
_LENGTH_BYTES: Final = 4
LATER_S: Final = 0.001
"""What frees a slot may wait so long for company: a frame costs more than what is in it."""


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A front's answer to ``Welcome``.

    Attributes:
        index: which front.
        name: of this life of it; a process that starts again has another.
        running: what workers make for it already, and who does: an owner that is new takes it over.
    """

    index: int
    name: str
    running: list[tuple[RequestID, WorkerID]]


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An owner listens to a front from now on."""


class WorkerHere(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker can take requests.

    Attributes:
        worker: which.
        host, port: of one that the owner has started; an attached one is where the settings say.
        api_key: of that.
    """

    worker: WorkerID
    host: str = ""
    port: int = 0
    api_key: str = ""


class WorkerGone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker takes none any more."""

    worker: WorkerID
    why: str


class AskTexts(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Wanted: the metrics of a front, or by a front those of all processes."""

    number: int


class Texts(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Metrics by process, in Prometheus's text format."""

    number: int
    texts: dict[int, bytes]


RequestEvent = Arrived | Started | Finished | Failed | Withdrawn
RequestCommand = Send | Hedge | Reject | Preempt | Fetch | Offload
Message = (
    Report | Welcome | WorkerHere | WorkerGone | AskTexts | Texts | RequestEvent | RequestCommand
)

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[Message])


class Link(asyncio.Protocol):
    """One end of a connection between two processes.

    Args:
        take: told each message, in order.
        lost: told once that the other end is gone.
        made: told that the connection is there.
    """

    def __init__(
        self,
        take: Callable[[Link, Message], None],
        lost: Callable[[Link], None],
        made: Callable[[Link], None] | None = None,
    ) -> None:
        self._take, self._lost, self._made = take, lost, made
        self._unsent: list[Message] = []
        self._urgent = False
        self._timer: asyncio.TimerHandle | None = None
        self._read = bytearray()
        self._transport: asyncio.Transport | None = None
        self.index: int | None = None
        """Of the front at the other end, once it has said so."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own does not derive from it
        if self._made is not None:
            self._made(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See ``asyncio.Protocol``."""
        self._transport = None
        self._lost(self)

    def send(self, message: Message) -> None:
        """Say something at the end of this turn of the loop; nothing to an end that is gone."""
        if self._transport is None:
            return
        if not self._urgent:
            self._urgent = True
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(message)

    def send_later(self, message: Message) -> None:
        """Say something with what comes next, and ``LATER_S`` from now at the latest."""
        if self._transport is None:
            return
        if not self._unsent and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATER_S, self._flush_late)
        self._unsent.append(message)

    def close(self) -> None:
        """Say what is unsaid and end the connection."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        read = self._read
        read += data
        while len(read) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(read[:_LENGTH_BYTES], "big")
            if end > FRAME_BYTES_MAX:
                self._abort()
                return
            if len(read) < end:
                return
            frame = bytes(read[_LENGTH_BYTES:end])
            del read[:end]
            try:
                messages = _DECODER.decode(frame)
            except msgspec.DecodeError:
                self._abort()
                return
            for message in messages:
                self._take(self, message)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush_late(self) -> None:
        self._timer = None
        self._flush()

    def _flush(self) -> None:
        self._urgent = False
        if self._transport is None or not self._unsent:
            return
        unsent, self._unsent = self._unsent, []
        for begin in range(0, len(unsent), MESSAGES_MAX):
            data = _ENCODER.encode(unsent[begin : begin + MESSAGES_MAX])
            self._transport.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._transport.abort()

"""The link between two processes of a factory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import msgspec

from tokenworks.live.frames import DECODER, ENCODER, FRAME_BYTES_MAX, MESSAGES_MAX, Message

UNSENT_BYTES_MAX: Final = 64 << 20
"""A process that leaves so much unread is taken for dead."""
_LENGTH_BYTES: Final = 4
LATER_S: Final = 0.001
"""What frees a slot may wait so long for company: a frame costs more than what is in it."""


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
        self._urgent = self._reading = False
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
        """Say something at the end of this turn of the loop; nothing to an end that is gone.

        What answers something that was read goes out once all that was read with it is answered:
        under load a turn is long, and the other end waits.
        """
        if self._transport is None:
            return
        if not self._urgent:
            self._urgent = True
            if not self._reading:
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
        self._reading = True
        try:
            self._take_all(data)
        finally:
            self._reading = False
        if self._urgent:
            self._flush()

    def _take_all(self, data: bytes) -> None:
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
                messages = DECODER.decode(frame)
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
            data = ENCODER.encode(unsent[begin : begin + MESSAGES_MAX])
            self._transport.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._transport.abort()

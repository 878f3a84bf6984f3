"""A worker that makes a chunk when it is told to, counts them, and notices who leaves."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from types import TracebackType
from typing import Any, Self

CHUNKS = 32
PROMPT_TOKENS = 16
TEXT = b"tok "
"""Of each token; it is in no other part of an answer."""

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Control: no-cache\r\n\r\n"
)
_MODELS = b'{"object":"list","data":[{"id":"scripted","object":"model"}]}'


def _chat(delta: dict[str, Any] | None, **more: object) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None}]
    words = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    return f"data: {_json({**words, 'choices': choices, **more})}\n\n"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _named(kind: str, **fields: object) -> str:
    return f"event: {kind}\ndata: {_json({'type': kind, **fields})}\n\n"


def _usage(made: int) -> dict[str, int]:
    total = PROMPT_TOKENS + made
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": made, "total_tokens": total}


def opening(path: str) -> str:
    """What comes before the first token, as each API begins."""
    match path:
        case "/v1/completions":
            return ": begins\n\n"
        case "/v1/responses":
            response = {"id": "resp_1", "object": "response", "status": "in_progress"}
            return _named("response.created", response=response)
        case "/v1/messages":
            usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
            block = {"type": "text", "text": ""}
            return _named("message_start", message={"id": "m", "usage": usage}) + _named(
                "content_block_start", index=0, content_block=block
            )
        case _:
            return _chat({"role": "assistant", "content": ""})


def token(path: str, made: int, *, telling: bool) -> str:
    """One token's event.

    Args:
        path: of the API.
        made: how many there are with it.
        telling: whether it says so.
    """
    text = TEXT.decode()
    match path:
        case "/v1/completions":
            choice = {"index": 0, "text": text, "finish_reason": None}
            return f"data: {_json({'id': 'c', 'model': 'scripted', 'choices': [choice]})}\n\n"
        case "/v1/responses":
            return _named("response.output_text.delta", item_id="i", delta=text)
        case "/v1/messages":
            return _named(
                "content_block_delta", index=0, delta={"type": "text_delta", "text": text}
            )
        case _:
            return _chat({"content": text}, **({"usage": _usage(made)} if telling else {}))


class Stream:
    """One answer that is being made.

    Attributes:
        made: tokens that were handed to the socket.
        closed: set when its connection has closed.
        closed_s: when, by ``time.monotonic``.
    """

    def __init__(self, worker: ScriptedWorker, transport: asyncio.Transport, path: str) -> None:
        self._telling, self._pace_s = worker.telling, worker.pace_s
        self._transport, self._path = transport, path
        self._timer: asyncio.TimerHandle | None = None
        self.made = 0
        self.closed = asyncio.Event()
        self.closed_s = 0.0
        self._send(opening(path), HEAD)
        if self._pace_s:
            self._timer = asyncio.get_running_loop().call_later(self._pace_s, self._tick)

    def step(self) -> None:
        """Make a token."""
        self.made += 1
        self._send(token(self._path, self.made, telling=self._telling))

    def close(self) -> None:
        """The connection has closed."""
        self.closed_s = time.monotonic()
        self.closed.set()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self.step()
        if self.made < CHUNKS:
            self._timer = asyncio.get_running_loop().call_later(self._pace_s, self._tick)

    def _send(self, event: str, head: bytes = b"") -> None:
        data = event.encode()
        self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))


class ScriptedWorker:
    """``async with ScriptedWorker() as worker:`` listens at ``worker.url``.

    Attributes:
        telling: whether the streams to come say in each chunk what was used.
        pace_s: between two chunks of theirs; 0 for a chunk at each ``step``.
    """

    def __init__(self) -> None:
        self.telling = False
        self.pace_s = 0.0
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Where it is."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def next_stream(self) -> Stream:
        """The next answer, once it has been asked for."""
        return await self._streams.get()

    def begin(self, transport: asyncio.Transport, path: str) -> Stream:
        """Begin an answer."""
        stream = Stream(self, transport, path)
        self._streams.put_nowait(stream)
        return stream


class _Connection(asyncio.Protocol):
    """Reads one request after another; a stream ends with its connection."""

    def __init__(self, worker: ScriptedWorker) -> None:
        self._worker = worker
        self._rest = b""
        self._transport: Any = None
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._stream is not None:
            self._stream.close()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        if len(body) < int(fields.get("content-length", "0")):
            return
        self._rest = b""
        method, path, _ = lines[0].split(" ")
        if method == "GET":
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(_MODELS), _MODELS)
            )
        else:
            self._stream = self._worker.begin(self._transport, path)

"""A worker that does as it is told: OpenAI's stream with llama.cpp's habits, timed by a gate.

It runs in the test's own event loop, on a real socket. Nothing in it sleeps: a test that wants
the worker to be slow closes the gate and lets tokens through one by one.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

WAIT_S_MAX = 60.0
"""How long a test waits for what must happen; only a failing test waits this long."""


class Gate:
    """Lets tokens through: all while open, else as many as were permitted."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._open = True
        self._permits = 0

    def open(self) -> None:
        self._open = True
        self._changed.set()

    def close(self) -> None:
        self._open = False
        self._permits = 0

    def permit(self, tokens: int) -> None:
        """Let so many tokens through a closed gate."""
        self._permits += tokens
        self._changed.set()

    async def passage(self) -> None:
        while not self._open and self._permits == 0:
            self._changed.clear()
            await self._changed.wait()
        self._permits = max(0, self._permits - 1)


@dataclass(kw_only=True)
class Script:
    """What the worker does with a POST.

    Attributes:
        tokens: one chunk each; None answers ``max_tokens`` times "tok " (8 if that is not given).
        prompt_tokens, cached_tokens: what the usage chunk says.
        finish_reason: None chooses "length" or "stop".
        status, error: an error instead of an answer, where status is not 200.
        break_after: cut the connection after so many tokens, without an end.
        error_after: send an error event after so many tokens, as llama.cpp does, and end.
        usage: whether to send a usage chunk although it was asked for.
        delta: makes a chunk's delta from a token, for example of tool calls.
        framing: "chunked", or "close" for a body that ends with the connection.
        keep_alive: whether the connection stays after an answer.
        early_close: close a kept connection as soon as the next request's head has come.
    """

    tokens: list[str] | None = None
    prompt_tokens: int = 7
    cached_tokens: int = 0
    finish_reason: str | None = None
    status: int = 200
    error: dict[str, Any] = field(
        default_factory=lambda: {"code": 400, "message": "no", "type": "invalid_request_error"}
    )
    break_after: int | None = None
    error_after: int | None = None
    usage: bool = True
    delta: Callable[[str], dict[str, Any]] = lambda token: {"content": token}
    framing: str = "chunked"
    keep_alive: bool = True
    early_close: bool = False


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakeWorker:
    """``async with FakeWorker() as worker:`` serves on ``worker.host``, ``worker.port``.

    Attributes:
        script: for the requests to come; ``scripts`` are used up first, one per request.
        gate: every token of every stream passes it.
        healthy: whether GET /health and /v1/models answer 200.
        received: the POSTs, in order.
        models_path: where it lists its model.
        tls: how it speaks TLS, set before it starts; None for plain HTTP.
        connections: sockets accepted so far.
        running: streams being sent now.
        aborted: streams whose client went away before their end.
    """

    def __init__(self, script: Script | None = None, *, model: str = "foreman") -> None:
        self.script = script or Script()
        self.scripts: list[Script] = []
        self.model = model
        self.gate = Gate()
        self.healthy = True
        self.api_key: str | None = None
        self.received: list[Received] = []
        self.connections = 0
        self.running = 0
        self.aborted = 0
        self.models_path = "/v1/models"
        self.tls: ssl.SSLContext | None = None
        self.host = "127.0.0.1"
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http{'' if self.tls is None else 's'}://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of the time before if there was one."""
        self._server = await asyncio.start_server(self._accept, self.host, self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is None:
            return
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is looked at whenever an attribute changes."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    # Inside.

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # cancelled only by stop(); asyncio's streams would log it
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            self._changed.set()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; returns whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(method=method, path=path, headers=headers, body=body)
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            error = {"message": "Invalid API Key", "type": "authentication_error", "code": 401}
            return self._whole(writer, 401, {"error": error}, keep=False)
        if method == "GET":
            return self._get(writer, path, keep=headers.get("connection") != "close")
        self.received.append(request)
        self._changed.set()
        script = self.scripts.pop(0) if self.scripts else self.script
        if script.early_close:
            return False
        if script.status != 200:
            return self._whole(writer, script.status, {"error": script.error}, keep=False)
        if not request.json.get("stream"):
            return await self._completion(writer, script, request.json)
        return await self._watched(reader, writer, script, request.json)

    def _get(self, writer: asyncio.StreamWriter, path: str, *, keep: bool) -> bool:
        if not self.healthy:
            return self._whole(writer, 503, {"error": {"message": "Loading model"}}, keep=keep)
        if path == self.models_path:
            listing = {"object": "list", "data": [{"id": self.model, "object": "model"}]}
            return self._whole(writer, 200, listing, keep=keep)
        status = 200 if path == "/health" else 404
        return self._whole(writer, status, {"status": "ok"}, keep=keep)

    def _whole(self, writer: asyncio.StreamWriter, status: int, body: Any, *, keep: bool) -> bool:
        text = json.dumps(body).encode()
        connection = "keep-alive" if keep else "close"
        writer.write(
            f"HTTP/1.1 {status} Fake\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\nConnection: {connection}\r\n\r\n".encode()
        )
        writer.write(text)
        if not keep:
            writer.close()
        return keep

    async def _watched(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        script: Script,
        request: dict[str, Any],
    ) -> bool:
        """Stream, and stop as soon as the client goes away, as engines do."""
        self.running += 1
        self._changed.set()
        streaming = asyncio.create_task(self._stream(writer, script, request))
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((streaming, gone), return_when=asyncio.FIRST_COMPLETED)
            if streaming.done() and streaming.exception() is None:
                return streaming.result() and script.keep_alive
            self.aborted += 1
            return False
        finally:
            streaming.cancel()
            gone.cancel()
            _, came = await asyncio.gather(streaming, gone, return_exceptions=True)
            if isinstance(came, bytes):  # the next request was quicker than we
                reader._buffer[:0] = came  # type: ignore[attr-defined]
            self.running -= 1
            self._changed.set()

    async def _stream(
        self, writer: asyncio.StreamWriter, script: Script, request: dict[str, Any]
    ) -> bool:
        chunked = script.framing == "chunked"
        framing = "Transfer-Encoding: chunked\r\n" if chunked else ""
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n".encode()
        )

        async def send(event: Any) -> None:
            text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
            data = f"data: {text}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            await writer.drain()

        tokens = _tokens(script, request)
        if request.get("return_progress"):
            read = {"total": script.prompt_tokens, "cache": script.cached_tokens, "time_ms": 0}
            first = self._chunk({"role": "assistant", "content": None})
            await send({**first, "prompt_progress": {**read, "processed": script.prompt_tokens}})
        await send(self._chunk({"role": "assistant", "content": None}))
        for n, token in enumerate(tokens):
            await self.gate.passage()
            if n == script.break_after:
                writer.transport.abort()
                return False
            if n == script.error_after:
                await send({"error": {"code": 500, "message": "Broken.", "type": "server_error"}})
                break
            extra = {"timings": {"predicted_n": n + 1}} if request.get("timings_per_token") else {}
            await send(self._chunk(script.delta(token), **extra))
        else:
            await send(self._chunk({}, finish=_finish_reason(script, request, len(tokens))))
            if script.usage and (request.get("stream_options") or {}).get("include_usage"):
                usage = _usage(script, len(tokens))
                await send({**self._chunk({}), "choices": [], "usage": usage})
            await send("[DONE]")
        if chunked:
            writer.write(b"0\r\n\r\n")
        else:
            writer.close()
        return chunked

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> Any:
        return {
            "choices": [{"finish_reason": finish, "index": 0, "delta": delta}],
            "created": 1,
            "id": "chatcmpl-fake",
            "model": self.model,
            "object": "chat.completion.chunk",
            **more,
        }

    async def _completion(
        self, writer: asyncio.StreamWriter, script: Script, request: dict[str, Any]
    ) -> bool:
        tokens = _tokens(script, request)
        for _ in tokens:
            await self.gate.passage()
        message = {"role": "assistant", "content": "".join(tokens)}
        finish = _finish_reason(script, request, len(tokens))
        body = {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 1,
            "model": self.model,
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": _usage(script, len(tokens)),
        }
        return self._whole(writer, 200, body, keep=script.keep_alive)


def _limit(request: dict[str, Any]) -> int:
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or 8
    assert isinstance(limit, int)
    return limit


def _tokens(script: Script, request: dict[str, Any]) -> list[str]:
    if script.tokens is None:
        return ["tok "] * _limit(request)
    return script.tokens[: _limit(request)] if "max_tokens" in request else script.tokens


def _finish_reason(script: Script, request: dict[str, Any], made: int) -> str:
    full = script.tokens is None or made < len(script.tokens)
    return script.finish_reason or ("length" if full else "stop")


def _usage(script: Script, made: int) -> dict[str, Any]:
    return {
        "completion_tokens": made,
        "prompt_tokens": script.prompt_tokens,
        "total_tokens": script.prompt_tokens + made,
        "prompt_tokens_details": {"cached_tokens": script.cached_tokens},
    }

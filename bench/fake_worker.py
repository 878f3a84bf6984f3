"""A worker that costs next to nothing: what a gateway is measured with, and never the bottleneck.

It speaks the chat completions of OpenAI as workers do: whole, or as a stream of a role event, token
events, one with ``finish_reason``, one with usage and ``[DONE]``. Besides OpenAI's own ``stream``
and ``max_tokens`` a request may say ``"user": "pace_us=5000"``, the time between two tokens, in a
field that requests often have; without it they come in a burst. Each event is a chunk of its own
and, as with llama.cpp and vLLM, a send of its own. The text of a paced token is the nanosecond, on
the machine's monotonic clock, at which it was sent, so that whoever reads it knows how long it was
on its way.

python -m bench.fake_worker --addresses 2    # prints its port; listens on 127.0.0.1 and 127.0.0.2
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import re
import signal
import socket
import sys
import time
from typing import Any

import httptools
import uvloop

MODEL = "bench"
TOKEN = " token00000000000000"
"""As long as a time, so that paced and unpaced streams have the same bytes."""

PROMPT_TOKENS = 16
FIRST_US_MAX = 5_000
"""A paced stream begins after its pace, or after this if that is less."""

BACKLOG = 4_096
_NUMBER = {
    name: re.compile(rb'"%b":\s*(\d+)' % name) for name in (b"max_completion_tokens", b"max_tokens")
} | {b"pace_us": re.compile(rb'"user":\s*"pace_us=(\d+)"')}
_STREAM = re.compile(rb'"stream":\s*true')
_HEAD = (
    f'"id":"chatcmpl-5d1c7c3b0a9f4e0e8f0b6c1d2a3e4f5a","created":1700000000,"model":"{MODEL}",'
    '"system_fingerprint":null'
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def _chunked(event: str) -> bytes:
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(delta: str, finish: str = "null") -> str:
    choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}'
    return f'{{"object":"chat.completion.chunk",{_HEAD},"choices":[{choice}]}}'


def _usage(tokens: int) -> str:
    return (
        f'"usage":{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{tokens},'
        f'"total_tokens":{PROMPT_TOKENS + tokens},"prompt_tokens_details":{{"cached_tokens":0}}}}'
    )


_ROLE = _chunked(_event('{"role":"assistant","content":""}'))
_BEFORE_TIME, _AFTER_TIME = (
    part.encode() for part in _chunked(_event(f'{{"content":"{TOKEN}"}}')).decode().split(TOKEN)
)
_TOKEN = _BEFORE_TIME + TOKEN.encode() + _AFTER_TIME


@functools.cache
def _closing(tokens: int) -> tuple[bytes, ...]:
    usage = f'{{"object":"chat.completion.chunk",{_HEAD},"choices":[],{_usage(tokens)}}}'
    finish = _event("{}", '"length"')
    return (_chunked(finish), _chunked(usage), _chunked("[DONE]") + b"0\r\n\r\n")


@functools.cache
def _burst(tokens: int) -> tuple[bytes, ...]:
    return (_STREAM_HEAD + _ROLE, *[_TOKEN] * tokens, *_closing(tokens))


@functools.cache
def _whole(tokens: int) -> bytes:
    message = f'{{"role":"assistant","content":"{TOKEN * tokens}"}}'
    choice = f'{{"index":0,"message":{message},"logprobs":null,"finish_reason":"length"}}'
    body = f'{{"object":"chat.completion",{_HEAD},"choices":[{choice}],{_usage(tokens)}}}'
    return _json(body.encode())


def _json(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    ) % (len(body), body)


class Counts:
    """What the worker has done so far."""

    def __init__(self) -> None:
        self.requests = 0
        self.open = self.open_max = 0
        self.aborted = 0
        self.connections = 0


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self._timer: asyncio.TimerHandle | None = None
        self._tokens_left = 0
        self._tokens = 0
        self._pace_s = 0.0
        self._due_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._descriptor = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it."""
        self._transport = transport
        self._counts.connections += 1
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._descriptor = sock.fileno()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stop as an engine does whose caller has left."""
        self._counts.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._counts.open -= 1
            self._counts.aborted += 1

    def data_received(self, data: bytes) -> None:
        """Parse."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._url, self._body = url, b""

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        self._body += data

    def on_message_complete(self) -> None:
        """Answer."""
        if self._url.endswith(b"/models"):
            body = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self._transport.write(_json(json.dumps(body).encode()))
        elif self._url.endswith(b"/counts"):
            self._transport.write(_json(json.dumps(vars(self._counts)).encode()))
        else:
            self._complete(self._body)

    def _complete(self, body: bytes) -> None:
        self._counts.requests += 1
        tokens = _number(body, b"max_tokens") or _number(body, b"max_completion_tokens") or 1
        pace_us = _number(body, b"pace_us")
        if not _STREAM.search(body) and not pace_us:
            self._transport.write(_whole(tokens))
        elif not pace_us:
            self._send_each(_burst(tokens))
        else:
            self._counts.open += 1
            self._counts.open_max = max(self._counts.open_max, self._counts.open)
            self._tokens = self._tokens_left = tokens
            self._pace_s = pace_us / 1e6
            self._due_s = self._loop.time() + min(pace_us, FIRST_US_MAX) / 1e6
            self._timer = self._loop.call_at(self._due_s, self._tick)

    def _send_each(self, events: tuple[bytes, ...]) -> None:
        """Hand each event to the kernel by itself: the transport would join them."""
        for i, event in enumerate(events):
            try:
                sent = 0 if self._transport.get_write_buffer_size() else self._write(event)
            except OSError:
                return  # the connection is lost, as the transport will say
            if sent < len(event):
                self._transport.write(event[sent:])
                self._transport.writelines(events[i + 1 :])
                return

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0

    def _tick(self) -> None:
        data = b"%b%020d%b" % (_BEFORE_TIME, time.monotonic_ns(), _AFTER_TIME)
        if self._tokens_left == self._tokens:
            data = _STREAM_HEAD + _ROLE + data
        self._tokens_left -= 1
        if self._tokens_left:
            self._due_s += self._pace_s
            self._timer = self._loop.call_at(self._due_s, self._tick)
        else:
            self._timer = None
            self._counts.open -= 1
        self._transport.write(data)
        if not self._tokens_left:
            self._send_each(_closing(self._tokens))


def _number(body: bytes, name: bytes) -> int:
    found = _NUMBER[name].search(body)
    return int(found[1]) if found else 0


async def serve(addresses: int) -> None:
    """Listen on so many loopback addresses, at one port, until SIGTERM."""
    loop, counts = asyncio.get_running_loop(), Counts()
    port, servers = 0, []
    for i in range(addresses):
        where = (f"127.0.0.{i + 1}", port)
        sock = socket.create_server(where, backlog=BACKLOG)
        port = sock.getsockname()[1]
        servers.append(await loop.create_server(lambda: Connection(counts), sock=sock))
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGINT, ended.set)
    print(json.dumps({"port": port}), flush=True)
    await ended.wait()


def main() -> None:
    """Serve; the line on standard output says where."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--addresses", type=int, default=1, help="127.0.0.1 and those after it")
    uvloop.run(serve(parser.parse_args().addresses))


if __name__ == "__main__":
    sys.exit(main())

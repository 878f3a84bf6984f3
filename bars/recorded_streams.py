"""A provider that plays recorded streams in small pieces, and those who read them."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

PIECE_BYTES = 97
"""No divisor of an event's length: events and lines are cut anywhere."""

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
READER = Path(__file__).with_name("sdk_reader.py")
_ASK = {
    "model": "recorded",
    "max_tokens": 1024,
    "stream": True,
    "messages": [{"role": "user", "content": "hello"}],
}


@dataclasses.dataclass(frozen=True)
class Stream:
    """One recorded answer."""

    module: str
    body: bytes

    def told(self) -> tuple[int, int] | None:
        """Tokens read and made, as its events tell; None if they do not."""
        usage: dict[str, Any] = {}
        for line in self.body.splitlines():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                usage |= (event.get("message") or {}).get("usage") or {}
                usage |= {k: v for k, v in (event.get("usage") or {}).items() if v is not None}
        if not usage:
            return None
        if self.module == "openai":
            return usage["prompt_tokens"], usage["completion_tokens"]
        cached = ("cache_read_input_tokens", "cache_creation_input_tokens")
        read = usage["input_tokens"] + sum(usage.get(name) or 0 for name in cached)
        return read, usage["output_tokens"]


@dataclasses.dataclass(frozen=True)
class Body:
    """An answer as it came, and what the factory calls its request."""

    body: bytes
    request: str


def streams_in(checkout: Path, patterns: tuple[str, ...], module: str) -> dict[str, Stream]:
    """The streams that an SDK has recorded, by name.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(path for pattern in patterns for path in checkout.glob(pattern))
    if not files:
        raise FileNotFoundError(f"No recorded stream is in {checkout}: {', '.join(patterns)}")
    return {path.name: Stream(module, path.read_bytes()) for path in files}


class Streams:
    """The provider, for the length of a block; header ``x-recorded`` says which stream to play."""

    def __init__(self, streams: dict[str, Stream]) -> None:
        self.streams = streams

    def __enter__(self) -> Self:
        streams = self.streams

        class Provider(_Provider):
            recorded = streams

        self._server = _Server(("127.0.0.1", 0), Provider)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def bodies(self, url: str, key: str) -> dict[str, Body]:
        """Each stream as it comes from there, byte by byte."""
        found = {}
        for name, stream in self.streams.items():
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
            headers = {"authorization": f"Bearer {key}", "x-recorded": name}
            headers["content-type"] = "application/json"
            connection.request("POST", PATHS[stream.module], json.dumps(_ASK), headers)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (answer.status, body)
            found[name] = Body(body, answer.headers.get("x-request-id", ""))
            connection.close()
        return found

    def events(
        self, python: Callable[[list[str]], subprocess.CompletedProcess[str]], url: str, key: str
    ) -> dict[str, list[str]]:
        """Each stream as an SDK reads it from there.

        Args:
            python: runs a Python that has the SDK.
            url: its base URL.
            key: its key.
        """
        (module,) = {stream.module for stream in self.streams.values()}
        done = python([str(READER), module, url, key, *self.streams])
        if done.returncode:
            raise RuntimeError(f"the reader ended with {done.returncode}: {done.stderr[-1000:]}")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return {line["name"]: line["events"] for line in lines}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of an SDK that resets its connection when its process ends."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    recorded: dict[str, Stream]

    def do_GET(self) -> None:
        """The models, which a factory asks for to see that it is up."""
        body = b'{"object":"list","data":[]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """One stream, cut into pieces that are sent by themselves."""
        self.rfile.read(int(self.headers["content-length"]))
        body = self.recorded[self.headers["x-recorded"]].body
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for at in range(0, len(body), PIECE_BYTES):
            piece = body[at : at + PIECE_BYTES]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *words: object) -> None:
        """Say nothing."""

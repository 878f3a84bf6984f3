"""The conversation on the command line, against a gateway that says what the test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.cli.command_line import data, done, invoke
from tokenworks.cli.chat import _as_error
from tokenworks.core.errors import (
    CapacityExceeded,
    ConfigInvalid,
    Forbidden,
    QuotaExceeded,
    Unauthorized,
    WorkerFailed,
    WorkerUnavailable,
)
from tokenworks.live.home import Home


def chunk(text: str | None = None, **more: Any) -> bytes:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


END = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = chunk("Hel") + chunk("lo.") + chunk(usage=USAGE, service_tier="premium") + END


class FakeGateway:
    """Answers each POST with the next of ``says``: a status and a body."""

    def __init__(self, home: Home) -> None:
        self.says: list[tuple[int, bytes]] = []
        self.asked: list[dict[str, Any]] = []
        self.secrets: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                gateway.asked.append(json.loads(body))
                gateway.secrets.append(self.headers["authorization"])
                status, said = gateway.says.pop(0)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        home.make()
        home.url.write_text(self.url + "\n")
        home.key.write_text("tw_operator\n")

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def gateway(home: Home) -> Iterator[FakeGateway]:
    made = FakeGateway(home)
    yield made
    made.stop()


def test_an_answer_is_printed_and_its_facts_below(home: Home, gateway: FakeGateway) -> None:
    gateway.says = [(200, ANSWER)]
    result = invoke(home, "chat", "Say hello")
    assert result.exit_code == 0, result.exception
    assert result.stdout == "Hello.\n"
    assert result.stderr.startswith("[premium: 3 + 2 tokens, TTFT ")
    (asked,) = gateway.asked
    assert asked["messages"] == [{"role": "user", "content": "Say hello"}]
    assert asked["stream_options"] == {"include_usage": True}
    assert "service_tier" not in asked
    assert gateway.secrets == ["Bearer tw_operator"]


def test_an_answer_as_json(home: Home, gateway: FakeGateway) -> None:
    gateway.says = [(200, ANSWER)]
    said = data(home, "chat", "hi", "--tier", "premium", "--max-tokens", "9", "--model", "m")
    assert said["answer"] == "Hello."
    assert said["usage"] == USAGE
    assert said["service_tier"] == "premium"
    assert set(said) == {"answer", "service_tier", "usage", "ttft_s", "tokens_per_s"}
    (asked,) = gateway.asked
    assert (asked["service_tier"], asked["max_tokens"], asked["model"]) == ("premium", 9, "m")


def test_an_empty_answer_has_no_speed(home: Home, gateway: FakeGateway) -> None:
    gateway.says = [(200, END)]
    said = data(home, "chat", "hi")
    assert (said["answer"], said["tokens_per_s"]) == ("", 0)


def test_a_conversation_remembers_until_an_empty_line(home: Home, gateway: FakeGateway) -> None:
    gateway.says = [(200, ANSWER), (200, ANSWER)]
    done(home, "chat", text="one\ntwo\n\n")
    assert [m["content"] for m in gateway.asked[1]["messages"]] == ["one", "Hello.", "two"]
    gateway.says = [(200, ANSWER)]
    done(home, "chat", text="one")  # and to the end of what is typed
    assert len(gateway.asked) == 3


def test_another_factory_and_another_key(
    home: Home, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.url.unlink()
    home.key.unlink()
    gateway.says = [(200, ANSWER), (200, ANSWER)]
    done(home, "chat", "hi", "--url", gateway.url, "--key", "tw_a")
    monkeypatch.setenv("TOKENWORKS_KEY", "tw_b")
    done(home, "chat", "hi", "--url", gateway.url)
    assert gateway.secrets == ["Bearer tw_a", "Bearer tw_b"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_api_key", Unauthorized),
        ("not_permitted", Forbidden),
        ("quota_exceeded", QuotaExceeded),
        ("capacity_exceeded", CapacityExceeded),
        ("from another world", WorkerUnavailable),
    ],
)
def test_a_refusal_keeps_its_code(
    home: Home, gateway: FakeGateway, code: str, kind: type[Exception]
) -> None:
    body = json.dumps({"error": {"code": code, "message": "No, because."}}).encode()
    gateway.says = [(429, body), (200, b"data: " + body + b"\n\n")]
    for _ in range(2):  # before the answer, and in its midst
        result = invoke(home, "chat", "hi")
        assert type(result.exception) is kind
        assert "No, because." in str(result.exception)


def test_every_error_of_ours_is_known_by_its_code() -> None:
    assert type(_as_error({"code": "worker_failed", "message": "m"})) is WorkerFailed


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"other": 1}', b'{"error": 5}'])
def test_something_else_at_the_address(home: Home, gateway: FakeGateway, body: bytes) -> None:
    gateway.says = [(404, body)]
    result = invoke(home, "chat", "hi")
    assert isinstance(result.exception, WorkerUnavailable)
    assert "did not answer" in str(result.exception)


def test_an_answer_that_breaks_off_is_an_error(home: Home, gateway: FakeGateway) -> None:
    gateway.says = [(200, chunk("Hel"))]
    result = invoke(home, "chat", "hi")
    assert isinstance(result.exception, WorkerFailed)
    assert result.stdout == "Hel"


def test_a_killed_factorys_address_leads_to_a_clear_error(home: Home, gateway: FakeGateway) -> None:
    gateway.server.server_close()
    result = invoke(home, "chat", "hi")
    assert isinstance(result.exception, WorkerUnavailable)
    assert f"The factory at {gateway.url} did not answer" in str(result.exception)
    assert "Is `tokenworks up` running?" in str(result.exception)


def test_what_is_missing_is_said(home: Home, gateway: FakeGateway) -> None:
    home.key.unlink()
    assert isinstance(invoke(home, "chat", "hi").exception, ConfigInvalid)
    for url in ("https://elsewhere", "http://", "http://127.0.0.1:abc", "http://["):
        result = invoke(home, "chat", "hi", "--key", "k", "--url", url)
        assert isinstance(result.exception, ConfigInvalid), url
    home.url.unlink()
    assert isinstance(invoke(home, "chat", "hi").exception, WorkerUnavailable)

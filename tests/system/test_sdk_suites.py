"""The bar of the SDKs' suites in small: a checkout of two tests, and a mock that says yes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bars.recorded_streams import Stream
from bars.sdk_suites import outcomes, tally

pytestmark = pytest.mark.slow

SUITE = """
import os
import urllib.request

import pytest


def ask(path):
    headers = {"authorization": "Bearer My API Key"}
    request = urllib.request.Request(os.environ["TEST_API_BASE_URL"] + path, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.read() == b'{"data":[]}'


def test_passed_on():
    ask("/models")


def test_not_passed_on():
    ask("/organization/users")


def test_fails_everywhere():
    pytest.fail("always")


@pytest.mark.skip(reason="always")
def test_skipped():
    pass
"""
STEADY = """#!{python}
import http.server
import sys


class Mock(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "11")
        self.end_headers()
        self.wfile.write(b'{{"data":[]}}')


port = int(sys.argv[sys.argv.index("-p") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Mock).serve_forever()
"""
CHUNK = (
    '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    '"delta":{"content":"hi"},"finish_reason":null}]}'
)
USAGE = (
    '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    '"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
)
RECORDED = f"data: {CHUNK}\n\ndata: {CHUNK}\n\ndata: {USAGE}\n\ndata: [DONE]\n\n".encode()

ANTHROPIC = (
    b'data: {"message":{"usage":{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":1}}}'
    b'\n\ndata: {"usage":{"output_tokens":7}}\n\n'
)


def test_a_test_that_ends_otherwise_is_named(tmp_path: Path) -> None:
    tests = tmp_path / "sdk/tests/api_resources"
    tests.mkdir(parents=True)
    (tests / "test_models.py").write_text(SUITE)
    recorded = tmp_path / "sdk/.inline-snapshot/external"
    recorded.mkdir(parents=True)
    (recorded / "one.bin").write_bytes(RECORDED)
    (tmp_path / "spec.yaml").write_text("openapi: 3.1.0")
    steady = tmp_path / "steady"
    steady.write_text(STEADY.format(python=sys.executable))
    steady.chmod(0o755)
    words = ["--steady", str(steady), "--openai", str(tmp_path / "sdk")]
    words += ["--openai-spec", str(tmp_path / "spec.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "bars.sdk_suites", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["openai"]
    suite = found["suite"]
    assert suite["direct"] == {"passed": 2, "failed": 1, "skipped": 1}
    assert suite["through"] == {"passed": 1, "failed": 2, "skipped": 1}
    ((name, (direct, through)),) = suite["different"].items()
    assert name == "tests.api_resources.test_models::test_not_passed_on"
    assert direct == "passed"
    assert "404" in through
    assert suite["ledger_answers"] == 1
    streams = found["streams"]
    read_twice = 2  # byte by byte, and by the SDK
    assert streams.pop("ledger_answers") == read_twice
    assert streams == {"streams": 1, "events": 3, "that_tell_usage": 1, "faults": []}


def test_what_a_report_says(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"><failure '
        'message="not 127.0.0.1:80"/></testcase><testcase classname="a" name="c"><error '
        'message="no"/></testcase><testcase classname="a" name="d"/></testsuite></testsuites>'
    )
    found = outcomes(report)
    assert found == {"a::b": "failed: not ADDRESS", "a::c": "failed: no", "a::d": "passed"}
    assert tally(found) == {"passed": 1, "failed": 2, "skipped": 0}


@pytest.mark.parametrize(
    ("module", "body", "told"),
    [
        ("openai", RECORDED, (3, 2)),
        ("openai", f"data: {CHUNK}\n\n".encode(), None),
        (
            "anthropic",
            ANTHROPIC,
            (7, 7),
        ),
    ],
)
def test_what_a_recorded_stream_tells(
    module: str, body: bytes, told: tuple[int, int] | None
) -> None:
    assert Stream(module, body).told() == told

"""A real factory whose workers are asked for whole answers, served by two processes."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bars.client import chat
from bars.factory import Running, running
from bars.load import posted_of
from bench.fake_worker import MODEL
from bench.gateway_peers import fake_worker, prepare
from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.kept_promises import delivered_tier
from tokenworks.core.slo import Measured

pytestmark = pytest.mark.slow

ASKED = 24


def asked(factory: Running, path: str, **fields: Any) -> dict[str, Any]:
    """One answer, over a connection of its own, so that any process may have it."""
    body = json.dumps({"model": MODEL, "max_tokens": 5, **fields}).encode()
    request = urllib.request.Request(
        factory.url + path,
        body,
        {"authorization": f"Bearer {factory.key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_two_processes_pass_on_whole_answers_and_bill_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    messages = [{"role": "user", "content": "hi"}]
    with fake_worker() as worker:
        prepare(home, worker.ports, 1, whole_answers=True)
        with running(home, "--quiet", "--processes", "2") as factory:
            for _ in range(ASKED):
                answer = asked(factory, "/v1/chat/completions", messages=messages)
                assert next(iter(answer)) == "service_tier"
                assert answer["object"] == "chat.completion"
                assert answer["choices"][0]["message"]["content"].count("token") == 5
                assert answer["usage"]["completion_tokens"] == 5
            body = {"model": MODEL, "max_tokens": 5, "stream": True, "messages": messages}
            streamed = asyncio.run(chat(factory.port, factory.key, body))
            assert (streamed.done, streamed.text_chunks) == (True, 5)
    posted = list(posted_of(home).values())
    whole = [each for each in posted if each.ttft_ns is None]
    assert (len(whole), len(posted)) == (ASKED, ASKED + 1)
    book = parse_price_book((home / "price_book.toml").read_text())
    for entry in whole:
        assert (entry.usage.prompt_tokens, entry.usage.completion_tokens) == (16, 5)
        assert (entry.metered_by, entry.ending) == ("worker", "done")
        assert entry.decode_ns > 0
        measured = Measured(ttft_ns=None, decode_ns=entry.decode_ns, output_tokens=5)
        assert entry.tier_delivered is delivered_tier(entry.tier_asked, book.promises, measured)

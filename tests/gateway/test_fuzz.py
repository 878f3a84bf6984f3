"""The fuzzers for a moment, with seeds that stay: they themselves must not rot."""

from __future__ import annotations

import importlib
import random

import pytest

RUNS = 300


@pytest.mark.parametrize("name", ["edge", "answers", "worker", "readers"])
def test_what_is_drawn_is_no_fault(name: str) -> None:
    one = importlib.import_module(f"bars.fuzz.{name}").one
    rng = random.Random(2)
    for _ in range(RUNS):
        one(rng.randbytes(rng.randrange(512)))


def test_each_rule_can_be_broken() -> None:
    answers = importlib.import_module("bars.fuzz.answers")
    start = {"type": "message_start"}
    block = {"type": "content_block_start", "index": 0}
    answers._check_messages([start, block, {"type": "error"}])
    with pytest.raises(AssertionError):
        answers._check_messages([start, block, {"type": "message_stop"}])
    edge = importlib.import_module("bars.fuzz.edge")
    end = edge.End(edge.LIMITS).feed([b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"], at_once=True)
    with pytest.raises(AssertionError, match="h11"):
        edge._agrees_with_h11(end, b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n")
    with pytest.raises(AssertionError, match="llhttp"):
        edge._agrees_with_llhttp(end, b"nonsense")

"""Counting a prompt's tokens, in two dialects."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.fake_desk import MODEL, Caller, FakeClock, FakeDesk
from tokenworks.core.errors import NotOffered
from tokenworks.gateway.app import Gateway

Run = Callable[[Coroutine[Any, Any, Any]], Any]
HELLO = [{"role": "user", "content": "hello"}]
MESSAGES = ("/v1/messages/count_tokens", {"model": MODEL, "messages": HELLO})
RESPONSES = ("/v1/responses/input_tokens", {"model": MODEL, "input": "hello"})


def count(run: Run, desk: FakeDesk, path: str, body: Any, **headers: str) -> Caller:
    caller = Caller("POST", path, json.dumps(body).encode(), headers)
    run(caller.call(Gateway(desk, FakeClock())))
    return caller


def test_both_dialects(run: Run) -> None:
    desk = FakeDesk()
    assert count(run, desk, *MESSAGES).json == {"input_tokens": 17}
    assert count(run, desk, *RESPONSES).json == {
        "object": "response.input_tokens",
        "input_tokens": 17,
    }
    for model, body, needs in desk.counted:
        assert (model, json.loads(body)["messages"], needs) == (MODEL, HELLO, None)


def test_who_may_see_the_prompt(run: Run) -> None:
    desk = FakeDesk()
    headers = {"x-tokenworks-labels": "eu", "x-tokenworks-adapter": "tuned"}
    assert count(run, desk, *MESSAGES, **headers).status == 200
    ((_, body, needs),) = desk.counted
    assert needs is not None
    assert (needs.labels, needs.adapter) == (("eu",), "tuned")
    assert json.loads(body)["model"] == "tuned"


@pytest.mark.parametrize(("path", "body"), [MESSAGES, RESPONSES])
def test_errors_in_each_dialect(run: Run, path: str, body: dict[str, Any]) -> None:
    desk = FakeDesk()
    assert count(run, desk, path, {**body, "model": 1}).status == 400
    assert count(run, desk, path, []).status == 400
    desk.open_error = NotOffered("It does not count.")
    error = count(run, desk, path, body).json["error"]
    assert (error["code"], "It does not count" in error["message"]) == ("not_offered", True)

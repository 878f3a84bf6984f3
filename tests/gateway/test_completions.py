"""The older completions: a prompt goes on, its text comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.fake_desk import (
    DONE,
    KEY,
    MODEL,
    SECRET,
    Caller,
    FakeClock,
    FakeDesk,
    Step,
    event,
    usage,
)
from tokenworks.core.errors import InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.completions import Completions
from tokenworks.gateway.own_headers import own_headers

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PATH = "/v1/completions"


def piece(text: str, finish: str | None = None, **more: Any) -> bytes:
    """As llama.cpp writes it."""
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish, **more}
    return event({"choices": [choice], "object": "text_completion", "id": "cmpl-1", "model": MODEL})


END = event({"choices": [], "object": "text_completion", "usage": usage(2, 2)})
SCRIPT: list[Step] = [piece("Once"), piece(" upon"), piece("", "length"), END, DONE]


def read(**fields: Any) -> ChatRequest:
    body = json.dumps({"model": MODEL, "prompt": "Once", **fields}).encode()
    return Completions().read(body, KEY, own_headers([], ()), lambda _model, _tier: 100)


def test_what_a_worker_gets() -> None:
    asked = read(suffix="end", echo=False, seed=4, stream=True, service_tier="flex")
    assert json.loads(asked.body) == {
        "model": MODEL,
        "prompt": "Once",
        "suffix": "end",
        "echo": False,
        "seed": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 16,
    }
    assert (asked.worker_path, asked.tier, asked.extra_fields) == (PATH, Tier.MEDIUM, ())
    assert asked.input_tokens_max >= len("Onceend")
    assert read(top_n=1).extra_fields == ("top_n",)


def test_limits() -> None:
    assert read().output_tokens_max == 16
    assert read(max_tokens=900).output_tokens_max == 900
    body = json.dumps({"model": MODEL, "prompt": "x"}).encode()
    asked = Completions().read(body, KEY, own_headers([], ()), lambda _model, _tier: 9)
    assert asked.output_tokens_max == 9


@pytest.mark.parametrize("prompt", ["x", ["x"], [1, 2], [[1, 2]]])
def test_one_prompt_of_text_or_tokens(prompt: Any) -> None:
    one = prompt[0] if isinstance(prompt, list) and not isinstance(prompt[0], int) else prompt
    assert json.loads(read(prompt=prompt).body)["prompt"] == one


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", ["a", "b"]),
        ("prompt", [[1], [2]]),
        ("prompt", [True]),
        ("prompt", [-1]),
        ("suffix", 4),
        ("n", 2),
        ("stream", 1),
        ("max_tokens", 0),
    ],
)
def test_what_is_wrong_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"`{field}`"):
        read(**{field: value})


def test_prompts_share_a_cache_within_a_tenant() -> None:
    assert read(prompt="x" * 600).prefix == read(prompt="x" * 600).prefix != ()
    assert read(prompt="x" * 600, cache_salt="u").prefix != read(prompt="x" * 600).prefix


def asked_for(run: Run, stream: bool, script: list[Step]) -> tuple[Caller, FakeDesk]:
    desk = FakeDesk(script)
    body = json.dumps({"model": MODEL, "prompt": "Once", "stream": stream}).encode()
    caller = Caller("POST", PATH, body, {"authorization": f"Bearer {SECRET.decode()}"})
    run(caller.call(Gateway(desk, FakeClock())))
    return caller, desk


def test_a_stream(run: Run) -> None:
    caller, desk = asked_for(run, True, SCRIPT)
    texts = [e["choices"][0]["text"] for e in caller.events[:-1]]
    assert texts == ["Once", " upon", ""]
    assert desk.delivery.outcome.usage.output_tokens == 2


def test_a_whole_one(run: Run) -> None:
    odds = {"tokens": ["a"], "token_logprobs": [-1]}
    script = [piece("Once", logprobs=odds), piece(" upon", logprobs=odds), *SCRIPT[2:]]
    caller, _ = asked_for(run, False, script)
    found = caller.json
    assert found["object"] == "text_completion"
    assert found["service_tier"] == "medium"
    (choice,) = found["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Once upon", "length")
    assert choice["logprobs"] == {"tokens": ["a", "a"], "token_logprobs": [-1, -1]}
    assert "message" not in choice


def test_an_answer_without_text(run: Run) -> None:
    script: list[Step] = [
        event({"choices": [{"index": 0, "finish_reason": "stop"}]}),
        event({"choices": [], "usage": usage(2, 0)}),
        DONE,
    ]
    caller, _ = asked_for(run, False, script)
    assert caller.json["choices"][0]["text"] == ""

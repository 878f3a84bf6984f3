"""What a chat request may say, and what a worker gets of it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import InvalidRequest, ModelNotFound
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_fields import (
    KNOWN_FIELDS,
    LOGIT_BIAS_MAX,
    STOP_CHARS_MAX,
    STOP_STRINGS_MAX,
    TOOLS_MAX,
    TOP_LOGPROBS_MAX,
    WORKER_FIELDS,
)
from tokenworks.gateway.chat_request import (
    IMAGE_TOKENS_MAX,
    MESSAGES_MAX,
    PREFIX_BLOCK_BYTES,
    PREFIX_BLOCKS_MAX,
    TEMPLATE_TOKENS_PER_MESSAGE,
    parse_chat_request,
    prefix_hashes,
)
from tokenworks.gateway.json_body import encode
from tokenworks.gateway.request_fields import MODEL_CHARS_MAX, OUTPUT_TOKENS_MAX, TIER_WORDS

HELLO = [{"role": "user", "content": "hello"}]
FUNCTION = {"type": "function", "function": {"name": "f"}}


TEXT = {"type": "text", "text": ""}
REFUSAL = {"type": "refusal", "refusal": "no"}


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def one_tool(**function: object) -> list[dict[str, Any]]:
    return [{"type": "function", "function": function}]


def default(model: ModelName, tier: Tier) -> int:
    return 100 + tier.rank


def parse(raw: bytes | None = None, **fields: Any) -> ChatRequest:
    if raw is None:
        raw = json.dumps({"model": "m", "messages": HELLO, **fields}).encode()
    return parse_chat_request(raw, Tier.MEDIUM, default)


def refused(raw: bytes | None = None, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(raw, **fields)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_a_plain_request() -> None:
    request = parse()
    assert request.model == "m"
    assert request.tier is Tier.MEDIUM
    assert not request.stream
    assert not request.include_usage
    assert request.output_tokens_max == 101
    assert json.loads(request.body) == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 101,
    }


def test_unknown_fields_pass_through_and_ours_do_not() -> None:
    odd = {"temperature": 0.1, "seed": 2**70, "top_k": None, "logit_bias": {"5": -100}, "é": "ü\n"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    options = {"include_usage": False, "continuous_usage_stats": True}
    request = parse(
        **odd,
        tools=tools,
        tool_choice="auto",
        stream=True,
        stream_options=options,
        service_tier="flex",
        max_completion_tokens=5,
    )
    body = json.loads(request.body)
    assert {name: body[name] for name in odd} == odd
    assert body["tools"] == tools
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["max_tokens"] == 5
    assert "service_tier" not in body
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize("word", sorted(TIER_WORDS))
def test_tier_words(word: str) -> None:
    assert parse(service_tier=word).tier is TIER_WORDS[word]


def test_openai_tier_words() -> None:
    words = {"flex": Tier.MEDIUM, "default": Tier.HIGH, "priority": Tier.PREMIUM}
    assert {word: parse(service_tier=word).tier for word in words} == words
    assert parse(service_tier="auto").tier is Tier.MEDIUM
    assert parse(service_tier=None).tier is Tier.MEDIUM
    assert parse(service_tier="ultra").output_tokens_max == 104


@pytest.mark.parametrize("word", ["", "scale", "HIGH", 1, True, ["high"], {"a": 1}])
def test_wrong_tier_words(word: object) -> None:
    assert "`service_tier`" in refused(service_tier=word)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_output_limits(name: str) -> None:
    assert parse(**{name: 1}).output_tokens_max == 1
    assert parse(**{name: OUTPUT_TOKENS_MAX}).output_tokens_max == OUTPUT_TOKENS_MAX
    assert parse(**{name: None}).output_tokens_max == 101
    for wrong in (0, -1, OUTPUT_TOKENS_MAX + 1, 2**80, 1.5, 5.0, True, "5", [5]):
        said = refused(**{name: wrong})
        assert f"`{name}`" in said
        assert f"from 1 to {OUTPUT_TOKENS_MAX}" in said


def test_the_smaller_of_both_limits_holds() -> None:
    request = parse(max_tokens=9, max_completion_tokens=4)
    assert request.output_tokens_max == 4
    assert json.loads(request.body)["max_tokens"] == 4


@pytest.mark.parametrize("name", sorted(WORKER_FIELDS))
def test_fields_between_factory_and_worker_are_refused(name: str) -> None:
    assert f"`{name}`" in refused(**{name: 100_000})


def test_fields_that_an_engine_may_refuse_are_listed() -> None:
    request = parse(top_k=5, seed=1, user="u", repeat_last_n=2**31, typical_p=-1)
    assert request.extra_fields == ("repeat_last_n", "typical_p")
    assert json.loads(request.body)["repeat_last_n"] == 2**31
    assert parse(temperature=0.5, min_p=0.1, service_tier="high").extra_fields == ()
    assert not KNOWN_FIELDS & WORKER_FIELDS
    assert {"messages", "max_tokens", "chat_template_kwargs"} - KNOWN_FIELDS == {
        "chat_template_kwargs"
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": None},
        {"stop": "\n"},
        {"stop": []},
        {"stop": ["x" * STOP_CHARS_MAX] * STOP_STRINGS_MAX},
        {"top_logprobs": 0},
        {"top_logprobs": TOP_LOGPROBS_MAX},
        {"n_probs": TOP_LOGPROBS_MAX},
        {"logit_bias": None},
        {"logit_bias": {str(i): 1 for i in range(LOGIT_BIAS_MAX)}},
        {"logit_bias": [[5, -100]]},
        {"tools": None},
        {"tools": []},
        {"tools": one_tool(name="f" * 64, parameters=None)},
        {"tools": [FUNCTION] * TOOLS_MAX},
    ],
    ids="-".join,
)
def test_values_within_bounds_pass(fields: dict[str, Any]) -> None:
    assert json.loads(parse(**fields).body).items() >= fields.items()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("stop", ""),
        ("stop", [""]),
        ("stop", [5]),
        ("stop", 5),
        ("stop", {"a": "b"}),
        ("stop", "x" * (STOP_CHARS_MAX + 1)),
        ("stop", ["x"] * (STOP_STRINGS_MAX + 1)),
        ("top_logprobs", TOP_LOGPROBS_MAX + 1),
        ("top_logprobs", -1),
        ("top_logprobs", True),
        ("top_logprobs", "5"),
        ("n_probs", 100_000),
        ("logit_bias", {str(i): 1 for i in range(LOGIT_BIAS_MAX + 1)}),
        ("logit_bias", "5"),
        ("tools", {"type": "function"}),
        ("tools", "f"),
        ("tools[0]", ["f"]),
        ("tools[0]", [{"type": "function"}]),
        ("tools[1]", [FUNCTION, {"function": "f"}]),
        ("tools[0].type", [{"function": {"name": "f"}}]),
        ("tools[0].type", [{**FUNCTION, "type": "custom"}]),
        ("tools[0].function.name", one_tool()),
        ("tools[0].function.name", one_tool(name="")),
        ("tools[0].function.name", one_tool(name="f" * 65)),
        ("tools[0].function.name", one_tool(name=5)),
        ("tools[0].function.description", one_tool(name="f", description=None)),
        ("tools[0].function.description", one_tool(name="f", description=["x"])),
        ("tools[0].function.parameters", one_tool(name="f", parameters="{}")),
        ("tools", [FUNCTION] * (TOOLS_MAX + 1)),
        ("model", "m" * (MODEL_CHARS_MAX + 1)),
    ],
)
def test_values_out_of_bounds_are_named(place: str, value: object) -> None:
    assert f"`{place}`" in refused(**{place.split("[", maxsplit=1)[0]: value})


def called(arguments: object) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": arguments}
    call = {"id": "c", "type": "function", "function": function}
    return [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]


@pytest.mark.parametrize("arguments", ["{}", ' {"a": [1]} ', {}, {"a": 1}])
def test_arguments_of_a_tool_call(arguments: object) -> None:
    assert json.loads(parse(messages=called(arguments)).body)["messages"] == called(arguments)


DEEP_TEXT = '{"a":' * 5_000 + "1" + "}" * 5_000


@pytest.mark.parametrize("arguments", ["", "{", "[]", "5", "null", None, 5, ["{}"], DEEP_TEXT])
def test_arguments_of_a_tool_call_that_are_no_object(arguments: object) -> None:
    said = refused(messages=called(arguments))
    assert "`messages[1].tool_calls[0].function.arguments`" in said


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("tool_calls", {"tool_calls": {"id": "c"}}),
        ("tool_calls[0]", {"tool_calls": ["f"]}),
        ("tool_calls[0]", {"tool_calls": [{"function": {"arguments": "{}"}}]}),
        ("content[0]", {"content": ["hello"]}),
        ("content[0]", {"content": [{"text": "hello"}]}),
        ("content[1].image_url", {"content": [TEXT, {"type": "image_url"}]}),
        ("content[0].image_url", {"content": [{"type": "image_url", "image_url": {"url": 1}}]}),
        ("content[0].image_url", {"content": [picture("file:///etc/passwd")]}),
        ("content[0]", {"content": [{"type": 5}]}),
        ("content[0].refusal", {"content": [{"type": "refusal"}]}),
        ("content[0].text", {"content": [{"type": "text"}]}),
        ("content[0].text", {"content": [{"type": "text", "text": 5}]}),
    ],
)
def test_wrong_parts_of_a_message_are_named(place: str, message: dict[str, Any]) -> None:
    said = refused(messages=[{"role": "assistant", **message}])
    assert f"`messages[0].{place}`" in said


def test_pictures_and_sound_are_for_engines_that_take_them() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}
    small = parse(messages=[{"role": "user", "content": [TEXT, picture("http://x/a.png")]}])
    large = parse(messages=[{"role": "user", "content": [TEXT, picture("data:" + "x" * 99_999)]}])
    both = parse(messages=[{"role": "user", "content": [picture("http://x"), sound]}], seed=1, ab=2)
    assert small.extra_fields == large.extra_fields == ("image_url",)
    assert both.extra_fields == ("image_url", "input_audio", "ab")
    assert small.input_tokens_max == large.input_tokens_max
    assert IMAGE_TOKENS_MAX < small.input_tokens_max < IMAGE_TOKENS_MAX + 200
    assert parse(messages=[{"role": "assistant", "content": [TEXT, REFUSAL]}]).extra_fields == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", ""),
        ("model", 5),
        ("messages", None),
        ("messages", []),
        ("messages", "hello"),
        ("messages", {"role": "user"}),
        ("messages", ["hello"]),
        ("messages", [{"content": "hello"}]),
        ("messages", [{"role": 5}]),
        ("messages", [*HELLO, {"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": {"text": "hello"}}]),
        ("stream", 1),
        ("stream", "true"),
        ("stream_options", []),
        ("n", 2),
        ("n", 0),
        ("n", True),
        ("n", "1"),
        ("n", [1]),
    ],
)
def test_wrong_fields_are_named(field: str, value: object) -> None:
    assert f"`{field}" in refused(**{field: value})


def test_message_shapes_that_are_right() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "c"},
    ]
    assert json.loads(parse(messages=messages, n=1).body)["messages"] == messages
    assert parse(n=None, stream=None).stream is False


def test_too_many_messages() -> None:
    assert str(MESSAGES_MAX) in refused(messages=HELLO * (MESSAGES_MAX + 1))
    parse(messages=HELLO * MESSAGES_MAX)


def test_usage_is_included_only_in_streams_that_ask() -> None:
    asked = {"include_usage": True}
    assert parse(stream=True, stream_options=asked).include_usage
    assert not parse(stream=False, stream_options=asked).include_usage
    assert not parse(stream=True, stream_options={}).include_usage
    assert "`include_usage`" in refused(stream=True, stream_options={"include_usage": 1})


DEEP = 5_000


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"hello",
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "temperature": Infinity}',
        b'{"model": "m", "temperature": 1e999}',
        b'{"model": "m", "seed": ' + b"9" * 5_000 + b"}",
        b'{"model": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b'{"model": "m"} {"model": "m"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_json(raw: bytes) -> None:
    assert "not JSON" in refused(raw)


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"m"', b"5", b"true"])
def test_what_is_no_object(raw: bytes) -> None:
    assert "not an object" in refused(raw)


def test_every_depth_is_taken_or_refused() -> None:
    for depth in range(800, 1_100):
        nest = b"[" * depth + b"]" * depth
        for fields in (b'"x":' + nest, b'"tools":' + nest, b'"documents":' + nest):
            raw = b'{"model":"m","messages":[{"role":"user"}],' + fields + b"}"
            with contextlib.suppress(InvalidRequest):
                assert parse(raw).input_tokens_max > 0


def test_what_can_be_read_but_not_written_is_refused() -> None:
    deep: object = 1
    for _ in range(DEEP):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        encode(deep)


def test_a_wrong_value_is_shown_briefly() -> None:
    assert len(refused(model=["x" * 100_000] * 10)) < 400
    assert len(refused(b'{"model":' + b"[" * 500 + b"]" * 500 + b"}")) < 400


def test_no_default_is_asked_for_when_a_limit_is_given() -> None:
    def absent(model: ModelName, tier: Tier) -> int:
        raise ModelNotFound(f"no {model}")

    raw = json.dumps({"model": "m", "messages": HELLO}).encode()
    with pytest.raises(ModelNotFound):
        parse_chat_request(raw, Tier.HIGH, absent)


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=50)),
        min_size=1,
        max_size=5,
    ),
    st.text(max_size=50),
)
def test_the_prompt_has_no_more_tokens_than_the_bound(
    turns: list[tuple[str, str]], description: str
) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    function = {"name": "f", "description": description}
    request = parse(messages=messages, tools=[{"type": "function", "function": function}])
    # A byte-level token is a byte or more; a template adds markers around each message.
    prompt_bytes = len(description.encode()) + sum(
        len(role) + len(content.encode()) + TEMPLATE_TOKENS_PER_MESSAGE for role, content in turns
    )
    assert request.input_tokens_max >= prompt_bytes


def test_whatever_a_template_may_write_counts() -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"description": "x" * 1_000}}}
    plain = parse().input_tokens_max
    for name in ("functions", "response_format", "documents", "chat_template_kwargs"):
        assert parse(**{name: schema}).input_tokens_max >= plain + 1_000, name
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert parse(tools=[tool]).input_tokens_max >= plain + 1_000
    assert parse(user="x" * 1_000).input_tokens_max == plain


def test_prefix_hashes_chain() -> None:
    block = b"x" * PREFIX_BLOCK_BYTES
    assert prefix_hashes(block[:-1]) == ()
    one, two = prefix_hashes(block + block)
    assert one != two
    assert prefix_hashes(block) == (one,)
    assert prefix_hashes(b"y" + block + block)[1] != two
    assert len(prefix_hashes(block * (PREFIX_BLOCKS_MAX + 5))) == PREFIX_BLOCKS_MAX
    assert all(0 <= each < 2**64 for each in (one, two))


def test_a_conversation_that_goes_on_shares_its_prefix() -> None:
    first = [{"role": "user", "content": "word " * 300}]
    later = [*first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
    before, after = parse(messages=first).prefix, parse(messages=later).prefix
    assert len(before) > 3
    assert after[: len(before) - 1] == before[:-1]
    assert parse(messages=first, tools=[FUNCTION]).prefix[0] != before[0]


def salted(tenant: str, adapter: str | None = None, **fields: Any) -> ChatRequest:
    long = [{"role": "user", "content": "word " * 300}]
    raw = json.dumps({"model": "m", "messages": long, **fields}).encode()
    return parse_chat_request(raw, Tier.MEDIUM, default, tenant, adapter)


def test_two_tenants_share_no_block_of_the_same_prompt() -> None:
    ours, again, theirs = salted("acme"), salted("acme"), salted("umbrella")
    assert len(ours.prefix) > 3
    assert ours.prefix == again.prefix
    assert ours.cache_salt == again.cache_salt != theirs.cache_salt
    assert not set(ours.prefix) & set(theirs.prefix)


def test_an_adapter_and_a_salt_of_the_callers_set_prompts_apart_too() -> None:
    plain, adapted, own = salted("acme"), salted("acme", "support"), salted("acme", cache_salt="u1")
    assert len({plain.cache_salt, adapted.cache_salt, own.cache_salt}) == 3
    assert json.loads(adapted.body)["model"] == "support"
    # Nobody can take on another tenant's salt: it is mixed in, and none is passed on.
    copied = salted("umbrella", cache_salt=plain.cache_salt)
    assert copied.cache_salt != plain.cache_salt
    assert "cache_salt" not in json.loads(copied.body)
    assert copied.extra_fields == ()
    assert "cache_salt" in refused(cache_salt=7)

"""Reading workers' streams: what is forwarded, what is counted, what is held back."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.fake_desk import (
    DONE,
    HEAD,
    ROLE,
    STOP,
    chunk,
    event,
    progress,
    token,
    usage,
    usage_event,
)
from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import Usage
from tokenworks.gateway.assemble import Assembler
from tokenworks.gateway.envelope import envelope_of
from tokenworks.gateway.event_stream import HELD_EVENTS_MAX, EventStream, payload, with_service_tier


def fed(parts: Iterable[bytes]) -> tuple[EventStream, bytes]:
    """A stream that took these reads, and what it forwarded."""
    stream = EventStream()
    forwarded = []
    for part in parts:
        if stream.done:
            break
        forwarded.append(stream.feed(part))
    return stream, b"".join(forwarded)


def counts(input_tokens: int = 0, cached_input_tokens: int = 0, output_tokens: int = 0) -> Usage:
    return Usage(
        uncached_input_tokens=input_tokens - cached_input_tokens,
        cached_input_tokens=cached_input_tokens,
        output_tokens=output_tokens,
    )


def test_an_answer_of_llama_cpp() -> None:
    tokens = [token("a"), token("b"), token("c")]
    stream, forwarded = fed([ROLE, *tokens, STOP, usage_event(9, 3, 4), DONE])
    assert forwarded == ROLE + b"".join(tokens)
    assert stream.done
    assert stream.failure is None
    assert stream.token_events == 3
    assert stream.usage_so_far() == counts(9, 4, 3)
    closing = stream.closing("high", include_usage=False)
    assert closing == with_service_tier(STOP.strip(), "high") + b"\n\n" + DONE
    with_usage = stream.closing("high", include_usage=True).split(b"\n\n")
    assert [json.loads(payload(e)).get("service_tier") for e in with_usage[:2]] == ["high", "high"]
    assert json.loads(payload(with_usage[1]))["usage"]["completion_tokens"] == 3


TEXTS = st.sampled_from(
    ["x", "", "é\U0001f600", '"finish_reason":null', '"usage":{', '{"role":"user"}', "\n\n", "\r\n"]
) | st.text(max_size=8)

EVENTS = st.one_of(
    TEXTS.map(token),
    TEXTS.map(lambda text: token(text, spaced=True)),
    TEXTS.map(lambda text: chunk({"role": "assistant", "content": text})),
    TEXTS.map(lambda text: chunk({"reasoning_content": text})),
    TEXTS.map(lambda text: chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]})),
    st.tuples(TEXTS, st.integers(0, 9)).map(lambda t: token(t[0], usage=usage(5, t[1], None))),
    st.sampled_from(
        [
            ROLE,
            STOP,
            DONE,
            chunk({}),
            chunk({"content": None}),
            chunk({}, ""),
            progress(9, 3, 7),
            usage_event(5, 2),
            event({"choices": [], **HEAD, "prompt_filter_results": []}),
            event({"error": {"message": "no"}}),
            token("odd").replace(b"data: ", b"data:"),
            b"id: 5\n" + token("named"),
            b": ping\n\n",
            b"\n",
            b"data: {}\n\n",
            b"event: end\n\n",
        ]
    ),
)


def summary(stream: EventStream, forwarded: bytes) -> tuple[object, ...]:
    return (
        forwarded,
        stream.token_events,
        stream.usage_so_far(),
        stream.held,
        stream.usage_event,
        stream.done,
        str(stream.failure),
        stream.closing("free", include_usage=True),
    )


@pytest.mark.heavy
@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=12), st.data(), st.booleans())
def test_it_does_not_matter_how_the_bytes_are_cut(
    events: list[bytes], data: st.DataObject, crlf: bool
) -> None:
    whole = b"".join(events)
    if crlf:
        whole = whole.replace(b"\n", b"\r\n")
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    edges = [0, *cuts, len(whole)]
    parts = [whole[a:b] for a, b in itertools.pairwise(edges)]
    one_by_one = [whole[i : i + 1] for i in range(len(whole))]
    expected = summary(*fed([whole]))
    assert summary(*fed(parts)) == expected
    assert summary(*fed(one_by_one)) == expected


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=6))
def test_no_text_of_an_answer_is_taken_for_a_field(texts: list[str]) -> None:
    tokens = [token(text) for text in texts]
    stream, forwarded = fed([ROLE, *tokens, STOP, usage_event(5, len(texts)), DONE])
    assert forwarded == ROLE + b"".join(tokens)
    assert stream.token_events == len(texts)
    assert len(stream.held) == 1


def test_prompt_progress_is_for_us_alone() -> None:
    stream, forwarded = fed([progress(900, 100, 100), progress(900, 100, 600), ROLE])
    assert forwarded == ROLE
    assert stream.usage_so_far() == counts(600, 100, 0)
    stream.feed(progress(900, 100, 900) + token("a"))
    assert stream.usage_so_far() == counts(900, 100, 1)


def test_events_that_carry_nothing_are_forwarded_and_not_counted() -> None:
    empty = [ROLE, chunk({}), chunk({"content": ""}), chunk({"role": "assistant"}), chunk({}, "")]
    stream, forwarded = fed(empty)
    assert forwarded == b"".join(empty)
    assert stream.token_events == 0


def test_every_kind_of_delta_counts() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    tokens = [
        chunk({"role": "assistant", "content": "x"}),
        chunk({"reasoning_content": "x"}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
        chunk({"refusal": "no"}),
        token("spaced", spaced=True),
    ]
    stream, forwarded = fed(tokens)
    assert forwarded == b"".join(tokens)
    assert stream.token_events == len(tokens)


def test_spaced_json_of_other_engines() -> None:
    done = event({"choices": [], **HEAD, "usage": usage(5, 2, None)}, spaced=True)
    parts = [token("a", spaced=True), token("b", spaced=True), chunk({}, "stop", spaced=True), done]
    stream, forwarded = fed([*parts, DONE])
    assert forwarded == parts[0] + parts[1]
    assert stream.usage_so_far() == counts(5, 0, 2)
    assert b'"usage"' not in stream.closing("free", include_usage=False)
    assert b'"usage"' in stream.closing("free", include_usage=True)


EMPTY = [
    *({name: None} for name in ("content", "reasoning_content", "refusal", "tool_calls")),
    *({name: ""} for name in ("content", "reasoning_content", "reasoning", "refusal")),
    {"content": None, "reasoning_content": ""},
    {"tool_calls": []},
    {},
]
SPACINGS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda written: written,
    "after all but one": lambda written: re.sub(rb'(?<=")(?<!"finish_reason"):', b": ", written),
    "around all": lambda written: written.replace(b'":', b'" : '),
}


@pytest.mark.parametrize("spaced", SPACINGS.values(), ids=SPACINGS)
def test_spaces_in_its_json_change_no_count(spaced: Callable[[bytes], bytes]) -> None:
    """Also where a part of an event alone has spaces, as what a proxy adds may have."""
    piece = {"choices": [{"index": 0, "text": "", "finish_reason": None}]}
    empty = [*map(chunk, EMPTY), event(piece)]
    some = [token("a"), chunk({"content": None, "reasoning_content": "b"}), token('"')]
    stream, forwarded = fed(map(spaced, empty))
    assert (stream.token_events, forwarded) == (0, b"".join(map(spaced, empty)))
    stream, _ = fed(map(spaced, some))
    assert stream.token_events == len(some)
    stream, _ = fed(map(spaced, [token("a", usage=usage(5, 3))]))
    assert stream.usage == counts(5, 0, 3)


def test_comments_and_other_fields() -> None:
    parts = [b": ping\n\n", b"event: chunk\nid: 1\n" + token("a"), b"retry: 5\n\n", DONE]
    stream, forwarded = fed(parts)
    assert forwarded == parts[1]
    assert stream.token_events == 1
    assert stream.done


def test_usage_in_every_chunk() -> None:
    tokens = [token(str(i), usage=usage(5, i + 1, 2)) for i in range(4)]
    stream, forwarded = fed(tokens)
    assert forwarded == b"".join(tokens)
    assert stream.usage_so_far() == counts(5, 2, 4)
    assert not stream.held


def test_tokens_after_the_last_figures_count_on_top() -> None:
    stream, _ = fed([usage_event(5, 1), token("a"), token("b")])
    assert stream.usage_so_far() == counts(5, 0, 3)
    assert stream.token_events == 2


def test_usage_alone_before_the_end_is_kept_for_the_closing() -> None:
    stream, forwarded = fed([usage_event(5, 0), token("a"), STOP, usage_event(5, 1), DONE])
    assert forwarded == token("a")
    assert stream.closing("free", include_usage=True).count(b'"usage"') == 1
    assert stream.usage_so_far() == counts(5, 0, 1)


def test_a_first_event_without_choices_does_not_end_the_answer() -> None:
    first = event({"choices": [], **HEAD, "prompt_filter_results": []})
    stream, forwarded = fed([first, token("a")])
    assert forwarded == first + token("a")
    assert not stream.finished


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (usage(0, 0), counts()),
        (usage(5, 0, None), counts(5)),
        ({"prompt_tokens": 5, "completion_tokens": 2}, counts(5, 0, 2)),
        ({**usage(5, 2), "prompt_tokens_details": {}}, counts(5, 0, 2)),
        ({**usage(5, 2), "prompt_tokens_details": {"cached_tokens": None}}, counts(5, 0, 2)),
        (usage(5, 2, 9), counts(5, 5, 2)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {
                    "cached_tokens": 10,
                    "cache_write_tokens": 20,
                    "audio_tokens": 30,
                    "image_tokens": 15,
                },
                "completion_tokens_details": {
                    "reasoning_tokens": 5,
                    "audio_tokens": 6,
                    "image_tokens": 7,
                },
            },
            Usage(
                uncached_input_tokens=25,
                cached_input_tokens=10,
                output_tokens=32,
                cache_write_tokens=20,
                reasoning_tokens=5,
                audio_input_tokens=30,
                image_input_tokens=15,
                audio_output_tokens=6,
                image_output_tokens=7,
            ),
        ),
        (
            {**usage(5, 9, 3), "completion_tokens_details": {"reasoning_tokens": 20}},
            Usage(
                uncached_input_tokens=2,
                cached_input_tokens=3,
                output_tokens=0,
                reasoning_tokens=9,
            ),
        ),
    ],
)
def test_usage_as_workers_say_it(said: dict[str, object], expected: Usage) -> None:
    stream, _ = fed([token("a"), STOP, event({"choices": [], "usage": said}), DONE])
    assert stream.usage_so_far() == expected


def test_a_worker_that_says_zero_is_believed() -> None:
    stream, _ = fed([token("a"), STOP, event({"choices": [], "usage": usage(0, 0)}), DONE])
    assert (stream.usage_so_far(), stream.metered_by) == (counts(), "worker")
    silent, _ = fed([token("a"), STOP, DONE])
    assert (silent.usage_so_far(), silent.metered_by) == (counts(0, 0, 1), "gateway")


def test_without_usage_what_was_seen_counts() -> None:
    stream, _ = fed([token("a"), token("b"), STOP, DONE])
    assert stream.usage_so_far() == counts(0, 0, 2)


def test_a_last_chunk_that_carries_text_counts() -> None:
    stream, forwarded = fed([token("a"), chunk({"content": "b"}, "stop"), DONE])
    assert forwarded == token("a")
    assert stream.usage_so_far().output_tokens == 2
    assert b'"content":"b"' in stream.closing("free", include_usage=False)


def test_what_comes_after_the_finish_is_held_in_order() -> None:
    late = chunk({"content": "late"})
    stream, forwarded = fed([STOP, late, event({**HEAD, "x": 1}), DONE, token("never")])
    assert forwarded == b""
    assert len(stream.held) == 3
    closing = stream.closing("free", include_usage=True)
    assert closing.index(b'"stop"') < closing.index(b"late") < closing.index(b'"x"')
    assert b"never" not in closing


def other(text: str, finish: str | None = None, index: int | None = 1) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return event({"choices": [choice], **HEAD})


def test_another_choice_neither_ends_an_answer_nor_is_held() -> None:
    before = [other("x", "stop"), token("a")]
    after = [other("x")] * (HELD_EVENTS_MAX + 1)
    stream, forwarded = fed([*before, STOP, *after, other("late", index=None), DONE])
    assert forwarded == b"".join([*before, *after])
    assert stream.failure is None
    assert len(stream.held) == 2
    taken, whole = Assembler(), b"".join([*before, STOP, *after, DONE])
    stream = EventStream(taken)
    stream.feed(whole)
    taken.close(stream.held)
    choices: Any = taken.completion()["choices"]
    first, second = choices
    assert (first["message"]["content"], second["message"]["content"]) == ("a", "x" * 66)


def test_an_end_in_an_event_of_two_choices_is_seen() -> None:
    ended = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
    goes_on = {"index": 1, "delta": {}, "finish_reason": None}
    stream, forwarded = fed([event({"choices": [ended, goes_on]})])
    assert (stream.finished, stream.token_events, forwarded) == (True, 1, b"")


def test_a_number_in_words_is_the_first_choices_too() -> None:
    stream, _ = fed([event({"choices": [{"index": "0", "delta": {}, "finish_reason": "stop"}]})])
    assert (stream.finished, stream.failure) == (True, None)


def test_an_end_without_done() -> None:
    stream, _ = fed([token("a"), STOP, usage_event(5, 1)])
    assert stream.finished
    assert not stream.done


BAD = {
    "error": (event({"error": {"message": "out of memory"}}), "out of memory"),
    "error in a chunk": (token("b", error={"message": "out of memory"}), "out of memory"),
    "not json": (b"data: {\n\n", "cannot be read"),
    "not utf-8": (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', "cannot be read"),
    "no object": (b"data: []\n\n", "cannot be read"),
    "too deep": (b'data: {"error":' + b"[" * 5_000 + b"\n\n", "cannot be read"),
    "wrong usage": (event({"usage": {"prompt_tokens": "5"}}), "cannot be read"),
    "negative": (event({"usage": usage(-5, 1)}), "cannot be"),
    "negative cached": (event({"usage": usage(5, 1, -1)}), "cannot be"),
    "counted below zero": (event({"usage": usage(5, 2**64 - 1)}), "cannot be"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_cannot_be_taken_ends_the_stream(name: str) -> None:
    bad, why = BAD[name]
    stream, forwarded = fed([token("a") + bad + token("never")])
    assert forwarded == token("a")
    assert stream.done
    assert isinstance(stream.failure, WorkerFailed)
    assert why in str(stream.failure)
    assert stream.usage_so_far().output_tokens == 1


def test_an_endless_event() -> None:
    part = b"x" * 300_000
    stream, forwarded = fed([token("a"), b"data: ", part, part, part, part, part])
    assert forwarded == token("a")
    assert "1000000 bytes" in str(stream.failure)


def test_an_endless_closing() -> None:
    stream, _ = fed([STOP] * (HELD_EVENTS_MAX + 1))
    assert f"over {HELD_EVENTS_MAX} events" in str(stream.failure)
    assert len(stream.held) == HELD_EVENTS_MAX


def test_the_delivered_tier_replaces_the_workers() -> None:
    worker = b'data: {"id":"x","service_tier":"default","n":1.50,"big":123456789012345678901234}'
    named = payload(with_service_tier(worker, "free"))
    assert msgspec.json.decode(named) == {
        "service_tier": "free",
        "id": "x",
        "n": 1.5,
        "big": 123456789012345678901234,
    }
    assert with_service_tier(b"data: {}", "free") == b'data: {"service_tier":"free"}'
    spaced = with_service_tier(b'data: { "id": 1}', "free")
    assert spaced == b'data: {"service_tier":"free","id": 1}'
    text = b'data: {"choices":[{"delta":{"content":"say \\"service_tier\\""}}]}'
    assert with_service_tier(text, "free").startswith(b'data: {"service_tier":"free","choices"')
    hidden = b'data: {"id":"x","service\\u005ftier":"premium"}'
    assert with_service_tier(hidden, "free") == b'data: {"service_tier":"free","id":"x"}'
    escaped = b'data: {"id":"\\u00e9\\u0065",  "n":1.50}'
    assert with_service_tier(escaped, "free") == b'data: {"service_tier":"free",' + escaped[7:]


@pytest.mark.parametrize("named", [b'"service_tier":"premium"', b'"x":"\\u0065"'])
def test_an_end_with_a_key_that_is_no_text_goes_on_as_it_came(named: bytes) -> None:
    events, said = EventStream(), event({"choices": [{"index": 0, "finish_reason": "stop"}]})
    odd = said.replace(b"{", b'{"\xff":1,' + named + b",", 1)
    events.feed(odd)
    closing = events.closing("free", include_usage=False)
    assert closing.startswith(b'data: {"service_tier":"free",' + odd[7:])


# Events that differ in their text alone.

SAID = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(['"', "\\", '\\"', "\\\\", ",", '","role":"', "x\n\ndata: y", "é\u2028"]),
    ),
    max_size=12,
)


@given(SAID, st.sampled_from(["content", "reasoning_content"]))
def test_tokens_that_are_alike_are_counted_as_if_each_were_read(
    texts: list[str], name: str
) -> None:
    events = [token("first"), *(chunk({name: text}) for text in texts), token("last")]
    together, apart = EventStream(), EventStream()
    whole = together.feed(events[0] + b"".join(events[1:]))
    assert whole == b"".join(events)
    for each in events:
        apart._envelope = None
        assert apart.feed(each) == each
    assert together.token_events == apart.token_events
    assert name != "content" or together.token_events == sum(map(bool, texts)) + 2


ODD = st.sampled_from([b'"', b"\\", b"\n", b"\n\n", b"\r", b"", b"data: ", b'content":"'])


@given(SAID, st.integers(0, 60), st.lists(st.tuples(st.integers(0, 9_999), ODD), max_size=2))
def test_many_are_cut_at_once_as_one_after_another(
    texts: list[str], more: int, changes: list[tuple[int, bytes]]
) -> None:
    whole = b"".join([token("x") * more, *map(token, texts), token("x") * more, STOP])
    for place, odd in changes:
        at = place % len(whole)
        whole = whole[:at] + odd + whole[at + 1 :]
    envelope = envelope_of(token("first").strip())
    assert envelope is not None
    at, alike = 0, list[bytes]()
    for event_bytes in whole.split(b"\n\n"):
        end, found = envelope.run(whole[at : at + len(event_bytes) + 2], 0)
        at, alike = at + end, alike + found
        if not found:
            break
    assert envelope.run(whole, 0) == (at, alike)


def test_a_text_that_is_not_closed_is_not_taken_for_one() -> None:
    odd = token("b").replace(b'"b"', b'"b\\"')
    stream = EventStream()
    stream.feed(token("a") + token("b") + odd)
    assert stream.token_events == 3  # looked at by its bytes, as before
    assert envelope_of(b'data: {"content":"a":1}') is None
    assert envelope_of(b'data: {"content":""}') is None


def test_a_text_of_the_older_completions_is_a_token() -> None:
    stream = EventStream()
    stream.feed(event({"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}))
    assert (stream.token_events, stream.finished) == (1, True)

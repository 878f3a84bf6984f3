"""The quick way to read a request reads as the careful one does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.core.errors import ModelNotFound, TokenworksError
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_request import parse_chat_request
from tokenworks.gateway.dialect import NO_MODELS
from tokenworks.gateway.plain_request import read_plain

ODD: Any = st.sampled_from([None, True, False, 0, 1, 2, -1, 0.5, "", "x", [], ["x"], {}, 10**7])
FIELDS: dict[str, Any] = {
    "stream": ODD,
    "stream_options": st.one_of(ODD, st.fixed_dictionaries({"include_usage": ODD})),
    "max_tokens": st.one_of(ODD, st.integers(1, 9)),
    "max_completion_tokens": st.one_of(ODD, st.integers(1, 9)),
    "n": ODD,
    "service_tier": st.one_of(ODD, st.sampled_from(["auto", "flex", "premium", "ultra"])),
    "temperature": ODD,
    "seed": ODD,
    "stop": st.one_of(ODD, st.sampled_from(["x" * 256, "x" * 257])),
    "user": ODD,
    "ignore_eos": ODD,
    "top_k": ODD,
    "cache_salt": ODD,
    "tools": st.sampled_from([None, []]),
}
MESSAGE: Any = st.one_of(
    ODD,
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text()}),
    st.fixed_dictionaries({"role": st.just("user"), "content": ODD}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.just("x"), "name": st.just("y")}),
)


def default(model: ModelName, tier: Tier) -> int:
    if model != "m":
        raise ModelNotFound("no such model")
    return 100 + tier.rank


def careful(raw: bytes, whole: frozenset[ModelName] = NO_MODELS) -> ChatRequest | None:
    try:
        return parse_chat_request(raw, Tier.HIGH, default, "acme", whole=whole)
    except TokenworksError:
        return None


def fields_of(request: ChatRequest | None) -> Any:
    if request is None:
        return None
    found = {name: getattr(request, name) for name in request.__struct_fields__}
    return {**found, "body": json.loads(request.body)}


@pytest.mark.heavy
@settings(max_examples=400)
@given(
    st.lists(MESSAGE, min_size=1, max_size=3),
    st.fixed_dictionaries({}, optional=FIELDS),
    st.booleans(),
    st.sampled_from([NO_MODELS, frozenset({ModelName("m")})]),
)
def test_both_ways_read_alike(
    messages: Any, more: dict[str, Any], compact: bool, whole: frozenset[ModelName]
) -> None:
    separators = (",", ":") if compact else None
    raw = json.dumps({"model": "m", "messages": messages, **more}, separators=separators).encode()
    plain = read_plain(raw, Tier.HIGH, default, "acme", whole)
    if plain is not None:
        assert fields_of(plain) == fields_of(careful(raw, whole))


@pytest.mark.parametrize("more", [{}, {"stream": True, "max_tokens": 5, "temperature": 0.5}])
def test_plain_requests_are_read_the_quick_way(more: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "h\u00e9llo \U0001f600" * 100}]
    raw = json.dumps({"model": "m", "messages": messages, **more}).encode()
    plain = read_plain(raw, Tier.HIGH, default, "acme")
    assert plain is not None
    assert len(plain.prefix) > 2
    assert fields_of(plain) == fields_of(careful(raw))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"model":"m"}',
        b'{"model":"m","messages":[]}',
        b'{"model":"","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"service_tier":"gold"}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"service_tier":""}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"n_predict":9}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_plain_is_left_to_the_careful_way(raw: bytes) -> None:
    assert read_plain(raw, Tier.HIGH, default, "acme") is None


def test_a_model_that_is_not_served() -> None:
    raw = b'{"model":"x","messages":[{"role":"user","content":"x"}]}'
    with pytest.raises(ModelNotFound):
        read_plain(raw, Tier.HIGH, default, "acme")

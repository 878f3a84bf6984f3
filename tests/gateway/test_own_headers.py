"""Our own headers: agents name themselves, say what they need and what they know."""

from __future__ import annotations

import pytest

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.needs import Hints, Needs
from tokenworks.gateway.own_headers import own_headers
from tokenworks.gateway.own_words import OwnHeaders


def read(*key_labels: str, **headers: str) -> OwnHeaders:
    pairs = [
        (f"x-tokenworks-{name.replace('_', '-')}".encode(), value.encode())
        for name, value in headers.items()
    ]
    return own_headers([(b"host", b"x"), *pairs], key_labels)


def test_nothing_is_asked_where_nothing_is_said() -> None:
    assert read() == OwnHeaders()
    assert read(unknown="x") == OwnHeaders()
    assert read(agent="scout", session_ends="false") == OwnHeaders(agent="scout")


def test_needs_are_the_keys_and_the_headers() -> None:
    assert read("eu").needs == Needs(labels=("eu",))
    assert read("eu", labels="medical, eu").needs == Needs(labels=("eu", "medical"))
    assert read(adapter="support").needs == Needs(adapter="support")


def test_hints_and_session_are_read() -> None:
    found = read(session="s1", output_tokens="300", tool_seconds="2.5", session_ends="True")
    assert found.session == "s1"
    assert found.hints == Hints(output_tokens=300, tool_ns=2_500_000_000, session_ends=True)
    assert read(tool_seconds="4").hints == Hints(tool_ns=4_000_000_000)
    assert read(priority="9").hints == Hints(priority=9)
    assert read(priority="5").hints is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_tokens", "0"),
        ("output_tokens", "-1"),
        ("output_tokens", "many"),
        ("output_tokens", "9" * 40),
        ("tool_seconds", "1.2345"),
        ("tool_seconds", "1."),
        ("tool_seconds", ".5"),
        ("tool_seconds", "86401"),
        ("tool_seconds", "9" * 40),
        ("session_ends", "yes"),
        ("priority", "10"),
        ("priority", "-1"),
        ("labels", "a;b"),
    ],
)
def test_a_wrong_value_is_refused_by_its_header(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"x-tokenworks-{name.replace('_', '-')}"):
        read(**{name: value})


def test_key_and_header_together_have_few_labels() -> None:
    with pytest.raises(InvalidRequest, match="17 labels together"):
        read(*(f"k{number}" for number in range(16)), labels="more")


def test_labels_of_all_headers_hold() -> None:
    pairs = [(b"x-tokenworks-labels", b"eu"), (b"x-tokenworks-labels", b"medical, eu")]
    assert own_headers(pairs, ("us",)).needs == Needs(labels=("eu", "medical", "us"))


def test_as_many_long_labels_as_a_key_may_have_are_read() -> None:
    words = [f"{number:02}{'x' * 126}" for number in range(16)]
    needs = read(labels=", ".join(words)).needs
    assert needs == Needs(labels=tuple(words))
    with pytest.raises(InvalidRequest, match="x-tokenworks-labels"):
        read(labels=", ".join([*words, "more"]))
    with pytest.raises(InvalidRequest, match="x-tokenworks-labels has '00"):
        read(labels=words[0] + "x")


def test_another_header_may_not_come_twice() -> None:
    pairs = [(b"x-tokenworks-adapter", b"support")] * 2
    with pytest.raises(InvalidRequest, match="x-tokenworks-adapter comes twice"):
        own_headers(pairs, ())

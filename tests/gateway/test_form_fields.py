"""Forms with files: their text fields, whatever else is in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.form_fields import PARTS_MAX, form_fields, names_in

TYPE = b"multipart/form-data; boundary=xyz"


def part(name: str, value: bytes, file: str | None = None) -> bytes:
    named = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
    return b"--xyz\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (named.encode(), value)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


def test_text_among_files() -> None:
    body = form(
        part("file", b"RIFF\r\n--xy\x00\xff", "a.wav"), part("model", b"m"), part("n", b"2")
    )
    assert form_fields(TYPE, body) == {"model": "m", "n": "2"}
    assert form_fields(b'multipart/form-data; boundary="xyz"', body)["model"] == "m"
    assert form_fields(TYPE, form()) == {}
    assert form_fields(TYPE, form(part("a", b"1"), part("a", b"2"), part("b", b""))) == {
        "a": "2",
        "b": "",
    }


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (b'form-data; name="f"', ("f", None)),
        (b"form-data; name=f; filename=a.wav", ("f", "a.wav")),
        (b'form-data;name=f;FileName="a b.wav"', ("f", "a b.wav")),
        (b"form-data; name=f; filename=", ("f", "")),
        (b'form-data; filename="a; name=x"; name="f"', ("f", "a; name=x")),
        (b'form-data; name="a; filename=x"', ("a; filename=x", None)),
        (b'form-data; name="f"; filename="C:\\dir\\"', ("f", "C:\\dir\\")),
        (b'form-data; name="f"; filename="a\\"b"', ("f", 'a"b')),
        (b"form-data; name=f; filename*=UTF-8''%C3%A4%20b", ("f", "ä b")),
        (b"form-data; name=f; filename=a; filename*=UTF-8''b", ("f", "a")),
        (b"form-data", ("", None)),
    ],
)
def test_names_with_and_without_quotes(said: bytes, names: tuple[str, str | None]) -> None:
    head = b"\r\nContent-Type: text/plain; name=other\r\nContent-Disposition: " + said
    assert names_in(head) == names
    body = form(b"--xyz" + head + b"\r\n\r\nv\r\n")
    assert form_fields(TYPE, body) == ({names[0]: "v"} if names[0] and names[1] is None else {})


def test_a_part_without_a_name_is_passed_over() -> None:
    assert form_fields(TYPE, form(b"--xyz\r\nX: y\r\n\r\nv\r\n", part("a", b"1"))) == {"a": "1"}


@pytest.mark.parametrize(
    ("content_type", "body", "why"),
    [
        (b"multipart/form-data", form(), "no boundary"),
        (TYPE, b"", "no end"),
        (TYPE, part("a", b"1"), "no end"),
        (TYPE, b"--xyz\r\nA: b", "head does not end"),
        (TYPE, b"--xyz\r\nA: " + b"b" * 5_000 + b"\r\n\r\nv\r\n--xyz--", "head does not end"),
        (TYPE, form(*[part("a", b"1")] * (PARTS_MAX + 1)), "parts"),
        (TYPE, form(part("a", b"1" * 70_000)), "bytes"),
    ],
)
def test_what_is_no_form(content_type: bytes, body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        form_fields(content_type, body)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=20), st.booleans())))
def test_any_form(parts: list[tuple[str, bytes, bool]]) -> None:
    if any(b"\r\n--xyz" in b"\r\n" + value for _, value, _ in parts):
        return
    body = form(*(part(name, value, "f" if file else None) for name, value, file in parts))
    texts = {name: value.decode("utf-8", "replace") for name, value, file in parts if not file}
    assert form_fields(TYPE, body) == texts


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for body in (data, b"--xyz\r\n" + data, form(data)):
        try:
            form_fields(TYPE, body)
        except InvalidRequest:
            continue

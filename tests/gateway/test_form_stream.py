"""A form as it comes: the same, however it is cut, as one that is read whole."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.test_form_fields import TYPE, form, part
from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.form_fields import HEAD_BYTES_MAX, PARTS_MAX, TEXT_BYTES_MAX, form_fields
from tokenworks.gateway.form_stream import FormStream

FILE = part("file", b"line\r\n--xy\x00\xff\r\n--xy", "a.jsonl")


def read(body: bytes, cuts: list[int] | None = None) -> tuple[FormStream, bytes]:
    taken: list[bytes] = []
    stream = FormStream(TYPE, "file", taken.append)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or [])})
    for start, end in itertools.pairwise(places):
        stream.feed(body[start:end])
    return stream, b"".join(taken)


@given(
    st.lists(st.integers(0, 10_000), max_size=30),
    st.binary(max_size=80).map(lambda data: data.replace(b"--xyz", b"")),
)
def test_however_it_is_cut_it_is_the_same(cuts: list[int], content: bytes) -> None:
    body = form(part("purpose", b"batch"), part("file", content, "dir/b.jsonl"), part("empty", b""))
    stream, file = read(b"before it\r\n" + body + b"after it", cuts)
    stream.close()
    assert file == content
    assert stream.file_name == "dir/b.jsonl"
    assert stream.fields == form_fields(TYPE, body) == {"purpose": "batch", "empty": ""}


def test_byte_by_byte() -> None:
    body = form(FILE, part("purpose", b"batch"))
    stream, file = read(body, list(range(len(body))))
    stream.close()
    assert file == b"line\r\n--xy\x00\xff\r\n--xy"
    assert stream.fields == {"purpose": "batch"}


def test_a_file_whose_name_has_no_quotes_is_one() -> None:
    stream, file = read(form(FILE.replace(b'"', b"")))
    stream.close()
    assert (file[:4], stream.file_name, stream.fields) == (b"line", "a.jsonl", {})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "has no end"),
        (FILE, "has no end"),
        (form(part("purpose", b"batch")), "no file in the field 'file'"),
        (form(FILE, FILE), "a file other than one in 'file'"),
        (form(part("image", b"x", "a.png")), "a file other than one in 'file'"),
        (form(part("a", b"x" * (TEXT_BYTES_MAX + 1))), "a field has more than"),
        (form(*[part("a", b"x")] * (PARTS_MAX + 1)), "more than 256 parts"),
        (b"--xyz\r\nx: " + b"y" * (HEAD_BYTES_MAX + 1), "head does not end"),
    ],
)
def test_what_is_no_such_form_says_why(body: bytes, said: str) -> None:
    for cuts in ([], list(range(0, 40_000, 977))):
        with pytest.raises(InvalidRequest, match=said):
            read(body, cuts)[0].close()


def test_without_a_boundary_there_are_no_parts() -> None:
    with pytest.raises(InvalidRequest, match="names no boundary"):
        FormStream(b"multipart/form-data", "file", print)

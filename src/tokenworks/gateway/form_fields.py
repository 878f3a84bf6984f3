"""The text fields of a form with files (``multipart/form-data``), without copying its files."""

from __future__ import annotations

import re
import urllib.parse
from typing import Final

from tokenworks.core.errors import InvalidRequest

PARTS_MAX: Final = 256
HEAD_BYTES_MAX: Final = 4_096
TEXT_BYTES_MAX: Final = 64 * 1024
_BOUNDARY: Final = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
_DISPOSITION: Final = re.compile(rb"(?:^|\r\n)content-disposition:([^\r\n]*)", re.IGNORECASE)
_PARAMETER: Final = re.compile(rb';\s*([^=;\s"]+)\s*=\s*(?:"((?:\\"|[^"])*)"|([^;\s"]*))')


def form_fields(content_type: bytes, body: bytes) -> dict[str, str]:
    r"""The fields of a form that are text; of several with a name the last.

    Args:
        content_type: with the boundary that parts are kept apart by.
        body: the form.

    Raises:
        InvalidRequest: it is no such form, or more than its bounds allow.

    >>> part = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    >>> form_fields(b"multipart/form-data; boundary=x", part + b"--x--")
    {'model': 'm'}
    """
    mark = b"--" + boundary_of(content_type)
    fields: dict[str, str] = {}
    at = body.find(mark)
    for _ in range(PARTS_MAX):
        if at < 0:
            raise broken_form("it has no end")
        at += len(mark)
        if body.startswith(b"--", at):
            return fields
        head_end = body.find(b"\r\n\r\n", at, at + HEAD_BYTES_MAX)
        if head_end < 0:
            raise broken_form("a part's head does not end")
        end = body.find(b"\r\n" + mark, head_end + 2)
        name, file_name = names_in(body[at:head_end])
        if name and file_name is None:
            value = body[head_end + 4 : max(end, head_end + 4)]
            if len(value) > TEXT_BYTES_MAX:
                raise broken_form(f"a field has more than {TEXT_BYTES_MAX} bytes")
            fields[name] = value.decode("utf-8", "replace")
        at = end + 2 if end >= 0 else -1
    raise broken_form(f"it has more than {PARTS_MAX} parts")


def boundary_of(content_type: bytes) -> bytes:
    """What keeps a form's parts apart.

    Raises:
        InvalidRequest: its content type does not say.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise broken_form("its content type names no boundary")
    return found[1] or found[2]


def names_in(head: bytes) -> tuple[str, str | None]:
    """The name of the field that a part is, and of its file; None if it has none.

    Source: RFC 7578, section 4.2; RFC 2183, section 2: a value may be a token, without quotes.

    >>> names_in(b'content-disposition: form-data; name="f"; filename="a.jsonl"')
    ('f', 'a.jsonl')
    >>> names_in(b"content-disposition: form-data; name=f; filename=a.jsonl")
    ('f', 'a.jsonl')
    """
    line = _DISPOSITION.search(head)
    named = dict(map(_parameter, _PARAMETER.finditer(b"" if line is None else line[1])))
    name, file_name, extended = map(named.get, (b"name", b"filename", b"filename*"))
    if file_name is None and extended is not None:
        file_name = urllib.parse.unquote(extended.rpartition("'")[2])
    return name or "", file_name


def _parameter(found: re.Match[bytes]) -> tuple[bytes, str]:
    value: bytes = found[3] if found[2] is None else found[2].replace(b'\\"', b'"')
    return found[1].lower(), value.decode("utf-8", "replace")


def broken_form(why: str) -> InvalidRequest:
    """The refusal of a form."""
    return InvalidRequest(f"The form cannot be read: {why}.", hint="Send multipart/form-data.")

"""The text fields of a form with files (``multipart/form-data``), without copying its files."""

from __future__ import annotations

import re
from typing import Final

from tokenworks.core.errors import InvalidRequest

PARTS_MAX: Final = 256
HEAD_BYTES_MAX: Final = 4_096
TEXT_BYTES_MAX: Final = 64 * 1024
_BOUNDARY: Final = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
_NAME: Final = re.compile(rb'[;\s]name="([^"]*)"', re.IGNORECASE)
_FILE_NAME: Final = re.compile(rb'[;\s]filename="([^"\r\n]*)"', re.IGNORECASE)
_FILE: Final = re.compile(rb"[;\s]filename\*?=", re.IGNORECASE)


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
        head = body[at:head_end]
        name = _NAME.search(head)
        if name is not None and _FILE.search(head) is None:
            value = body[head_end + 4 : max(end, head_end + 4)]
            if len(value) > TEXT_BYTES_MAX:
                raise broken_form(f"a field has more than {TEXT_BYTES_MAX} bytes")
            fields[name[1].decode("utf-8", "replace")] = value.decode("utf-8", "replace")
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

    >>> names_in(b'content-disposition: form-data; name="f"; filename="a.jsonl"')
    ('f', 'a.jsonl')
    """
    name, file = _NAME.search(head), _FILE_NAME.search(head)
    return (
        "" if name is None else name[1].decode("utf-8", "replace"),
        None if file is None else file[1].decode("utf-8", "replace"),
    )


def broken_form(why: str) -> InvalidRequest:
    """The refusal of a form."""
    return InvalidRequest(f"The form cannot be read: {why}.", hint="Send multipart/form-data.")

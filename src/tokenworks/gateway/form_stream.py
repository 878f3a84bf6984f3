"""A form with one file (``multipart/form-data``) as it comes, however it is cut into reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tokenworks.gateway.form_fields import (
    HEAD_BYTES_MAX,
    PARTS_MAX,
    TEXT_BYTES_MAX,
    boundary_of,
    broken_form,
    names_in,
)

_HEAD_END = b"\r\n\r\n"


class FormStream:
    """Reads a form: keeps its text fields, and hands its file on.

    Args:
        content_type: with the boundary that parts are kept apart by.
        file_field: the field that the file is.
        take: gets the file, part by part.

    Attributes:
        fields: text fields; of several with a name the last.
        file_name: what the form calls its file; None until that has begun.

    Raises:
        InvalidRequest: the content type names no boundary.
    """

    def __init__(self, content_type: bytes, file_field: str, take: Callable[[bytes], None]) -> None:
        self._mark = b"\r\n--" + boundary_of(content_type)
        self._file_field, self._take = file_field, take
        self._buffer = b"\r\n"  # so that the first boundary looks like the others
        self._state: Literal["before", "head", "text", "file", "after"] = "before"
        self._parts = 0
        self._name = ""
        self._text = bytearray()
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None

    def feed(self, data: bytes) -> None:
        """Some bytes of it.

        Raises:
            InvalidRequest: it is no such form, or more than its bounds allow.
        """
        self._buffer += data
        while self._step():
            pass

    def close(self) -> None:
        """It has come.

        Raises:
            InvalidRequest: it has no end, or no file.
        """
        if self._state != "after":
            raise broken_form("it has no end")
        if self.file_name is None:
            raise broken_form(f"it has no file in the field {self._file_field!r}")

    def _step(self) -> bool:
        """Whether what has come was enough for a step."""
        if self._state == "after":
            self._buffer = b""
            return False
        if self._state == "head":
            return self._read_head()
        buffer, mark = self._buffer, self._mark
        end = buffer.find(mark)
        if end < 0:
            # What could be the beginning of a boundary waits.
            kept = len(mark) - 1
            if len(buffer) > kept:
                self._pass_on(buffer[:-kept])
                self._buffer = buffer[-kept:]
            return False
        self._pass_on(buffer[:end])
        if self._state == "text":
            self.fields[self._name] = self._text.decode("utf-8", "replace")
            self._text.clear()
        self._buffer = buffer[end + len(mark) :]
        self._state = "head"
        return True

    def _read_head(self) -> bool:
        buffer = self._buffer
        if buffer.startswith(b"--"):
            self._state = "after"
            return True
        end = buffer.find(_HEAD_END)
        if end < 0 or end > HEAD_BYTES_MAX:
            if len(buffer) > HEAD_BYTES_MAX:
                raise broken_form("a part's head does not end")
            return False
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise broken_form(f"it has more than {PARTS_MAX} parts")
        self._name, file_name = names_in(buffer[:end])
        self._buffer = buffer[end + len(_HEAD_END) :]
        self._state = "text"
        if file_name is not None:
            if self._name != self._file_field or self.file_name is not None:
                raise broken_form(f"it has a file other than one in {self._file_field!r}")
            self._state, self.file_name = "file", file_name
        return True

    def _pass_on(self, data: bytes) -> None:
        if self._state == "file":
            if data:
                self._take(data)
        elif self._state == "text":
            self._text += data
            if len(self._text) > TEXT_BYTES_MAX:
                raise broken_form(f"a field has more than {TEXT_BYTES_MAX} bytes")

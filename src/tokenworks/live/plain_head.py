"""Whole answers of a worker whose heads say the same but for the length: one is read, not parsed.

Of a connection's answers that came in one read each, the parser takes the first. The next one's
head is compared with that, byte for byte. The parser is between two answers then, and would only
say again what it has said. Where heads have a date, those of one second are alike.
"""

from __future__ import annotations

from typing import Final

_OK_LINE: Final = b"HTTP/1.1 200 "
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"
_LENGTH_DIGITS_MAX: Final = 15
_HEAD_BYTES_MAX: Final = 4 * 1024


class PlainHead:
    """The last plain head of a connection.

    Attributes:
        content_type: what it says.
    """

    __slots__ = ("_after", "_before", "content_type")

    def __init__(self) -> None:
        self._before = self._after = self.content_type = b""

    def body_of(self, data: bytes) -> bytes | None:
        """The body of a whole answer that begins with this head, but for the length; else None.

        Args:
            data: one read, with which an answer begins.
        """
        before, after = self._before, self._after
        if not before or not data.startswith(before):
            return None
        begin = len(before)
        end = data.find(after, begin, begin + _LENGTH_DIGITS_MAX + len(after))
        if end < 0:
            return None
        digits, body = data[begin:end], data[end + len(after) :]
        return body if digits.isdigit() and int(digits) == len(body) else None

    def remember(self, data: bytes, content_type: bytes) -> None:
        """Remember the head of an answer, if it is a plain one.

        Args:
            data: one read, with which an answer of some length began that the parser has taken; its
                connection is kept.
            content_type: as the parser has found it there.
        """
        head = data[: data.find(_HEAD_END) + len(_HEAD_END)]
        lower = head.lower()
        # Before another look: compiled, no slice may end before it begins.
        if not head.startswith(_OK_LINE) or lower.count(_LENGTH) != 1:
            return
        begin = lower.find(_LENGTH) + len(_LENGTH)
        if head[begin : begin + 1] == b" ":
            begin += 1
        end = head.find(b"\r\n", begin)
        digits = head[begin:end]
        if (
            len(head) <= _HEAD_BYTES_MAX
            and lower.find(b"\r\ntransfer-encoding") < 0
            # A bare one might end a line, and begin a header that is not looked for here.
            and head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r")
            and digits.isdigit()
            and len(digits) <= _LENGTH_DIGITS_MAX
            and int(digits) == len(data) - len(head)
        ):
            self._before, self._after, self.content_type = head[:begin], head[end:], content_type

"""What the token events of one answer have in common: all but a piece of text.

An engine writes the same event for each token, with other text in it. Who knows the bytes before
and after the text can cut a whole run of such events apart at once, and need not read one.
"""

from __future__ import annotations

from typing import Final

_TEXT: Final = b'content":"'
"""Of ``content`` and ``reasoning_content`` alike."""

EVENT_END: Final = b"\n\n"


class Envelope:
    """The bytes around the text of a token event."""

    __slots__ = ("_after", "_before", "_between")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before, self._after = before, after + EVENT_END
        self._between = self._after + before

    def run(self, events: bytes, at: int) -> tuple[int, list[bytes]]:
        """Events one after another that differ in their text alone.

        Args:
            events: whole events.
            at: where one of them begins.

        Returns:
            Where the run ends, and its texts, as JSON has them without quotes; all that are left,
            or the first alone, or none. No text is empty.
        """
        before, after = self._before, self._after
        if events.startswith(before, at):
            begin = at + len(before)
            for end in (events.rfind(after, begin), events.find(after, begin)):
                texts = events[begin:end].split(self._between) if end > begin else []
                if all(texts) and _are_texts(texts):
                    return (end + len(after), texts) if texts else (at, texts)
        return at, []


def _are_texts(texts: list[bytes]) -> bool:
    """Whether these are the insides of JSON strings, each to its end."""
    said = b",".join([*texts, b""])
    if b"\\" in said:
        said = said.replace(b"\\\\", b"").replace(b'\\"', b"")
        if b"\\," in said:
            return False
    return b'"' not in said and b"\n" not in said


def envelope_of(event: bytes) -> Envelope | None:
    r"""What other events may share with a token event, if it has one simple text.

    >>> envelope = envelope_of(b'data: {"content":"a"}')
    >>> envelope.run(b'data: {"content":"b"}\n\ndata: {"content":"c"}\n\n', 0)
    (46, [b'b', b'c'])
    """
    begin = event.find(_TEXT) + len(_TEXT)
    end = event.find(b'"', begin)
    simple = len(_TEXT) <= begin < end and b"\\" not in event
    # What follows the text must not be taken for the end of a key.
    if not simple or event[end + 1 : end + 2] not in {b",", b"}"}:
        return None
    return Envelope(event[:begin], event[end:])

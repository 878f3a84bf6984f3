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
        if not events.startswith(before, at):
            return at, []
        begin = at + len(before)
        end = events.rfind(after, begin)
        if end <= begin:
            return at, []
        inside = events[begin:end]
        if b'"' not in inside and b"\\" not in inside and b"\n" not in inside:
            return end + len(after), [inside]  # one event, as mostly
        texts = inside.split(self._between)
        if not (all(texts) and _are_texts(texts)):
            end = events.find(after, begin)
            texts = [events[begin:end]]
            if end == begin or not _are_texts(texts):
                return at, []
        return end + len(after), texts


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

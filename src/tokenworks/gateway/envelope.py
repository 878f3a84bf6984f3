"""What the token events of one answer have in common: all but a piece of text.

An engine writes the same event for each token, with other text in it. Who knows the bytes before
and after the text can cut a whole run of such events apart at once, and need not read one.
"""

from __future__ import annotations

from typing import Final

_TEXT: Final = b'content":"'
"""Of ``content`` and ``reasoning_content`` alike."""

EVENT_END: Final = b"\n\n"
_QUOTE: Final = b'"'
_LINE_FEED: Final = b"\n"
_BACKSLASH: Final = 0x5C


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
            Where the run ends, and its texts, as JSON has them without quotes. No text is empty.
        """
        before, after, between = self._before, self._after, self._between
        texts: list[bytes] = []
        begin = at + len(before)
        # Slices are compared, since `startswith` from a place takes twice as long.
        if events[at:begin] != before:
            return at, texts
        while True:
            end = events.find(_QUOTE, begin)
            if end > begin and events[end - 1] == _BACKSLASH:
                end = _past_escapes(events, begin, end)
            if end <= begin:
                return at, texts
            text, follows = events[begin:end], events[end : end + len(between)]
            if _LINE_FEED in text or not (follows == between or follows.startswith(after)):
                return at, texts
            texts.append(text)
            at = end + len(after)
            if follows != between:
                return at, texts
            begin = end + len(between)


def _past_escapes(events: bytes, begin: int, end: int) -> int:
    """The quote that ends a text, where that at ``end`` has a backslash before it; -1 if none."""
    while end >= 0:
        first = end
        while first > begin and events[first - 1] == _BACKSLASH:
            first -= 1
        if (end - first) % 2 == 0:
            return end
        end = events.find(_QUOTE, end + 1)
    return end


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

"""What the token events of one answer have in common: all but a piece of text.

An engine writes the same event for each token, with other text in it. Who knows the bytes before
and after the text can cut a whole run of such events apart at once, and need not read one.
"""

from __future__ import annotations

from typing import Final

MANY: Final = 8
"""Events from which on it is quicker to cut all at once than one after another."""

WINDOW_BYTES: Final = 16 * 1024
"""Cut at one stroke: a bound of what is done in vain where events are not alike."""

TEXT: Final = b'content":"'
"""Of ``content`` and ``reasoning_content`` alike."""

EVENT_END: Final = b"\n\n"
_QUOTE: Final = b'"'
_ESCAPED_QUOTE: Final = b'\\"'
_LINE_FEED: Final = b"\n"
# As numbers, since `in` looks at bytes twice: first whether they are a number.
_QUOTE_BYTE: Final = 0x22
_LF: Final = 0x0A
_BACKSLASH: Final = 0x5C


class Envelope:
    """The bytes around the text of a token event."""

    __slots__ = ("_after", "_before", "_between")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before, self._after = before, after + EVENT_END
        self._between = self._after + before

    def event(self, text: bytes) -> bytes:
        """The event that has this text, without its end."""
        return self._before + text + self._after[: -len(EVENT_END)]

    def text(self, event: bytes) -> bytes:
        """The text of an event, which comes without its end, too."""
        return event[len(self._before) : len(event) + len(EVENT_END) - len(self._after)]

    def only_text(self, event: bytes) -> bytes:
        """The text of one event with its end, if it is alike; nothing if it needs a closer look.

        What comes as it is made comes one event at a time.
        """
        before, after = self._before, self._after
        begin, end = len(before), len(event) - len(after)
        short = 0 < end - begin < len(self._between)  # else there may be two
        if not (short and event.startswith(before) and event.endswith(after)):
            return b""
        text = event[begin:end]
        odd = _QUOTE_BYTE in text or _LF in text or text[-1] == _BACKSLASH
        return b"" if odd else text

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
        while len(events) - at > MANY * len(between):
            many = self._many(events[at : at + WINDOW_BYTES])
            if not many:
                break
            texts += many
            at += sum(map(len, many)) + len(many) * len(between)
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
            if _LF in text or not (follows == between or follows.startswith(after)):
                return at, texts
            texts.append(text)
            at = end + len(after)
            if follows != between:
                return at, texts
            begin = end + len(between)

    def _many(self, window: bytes) -> list[bytes]:
        """The texts of whole events in front, if they are alike; none if one needs a closer look.

        Such are empty texts, and those with an escaped quote.
        """
        before, after = self._before, self._after[: -len(EVENT_END)]
        # A single byte is found much faster than two: every other line is empty.
        parts = window.split(_LINE_FEED)[:-1:2]
        # What ends an answer often comes with its last tokens.
        while parts and not (parts[-1].startswith(before) and parts[-1].endswith(after)):
            parts.pop()
        # Compiled, a slice that ends before it begins is an error, not empty.
        if not parts or min(map(len, parts)) <= len(before) + len(after):
            return []
        begin, end = len(before), -len(after)
        texts = [part[begin:end] for part in parts]
        alike = b"%b%b%b" % (before, self._between.join(texts), self._after)
        whole = _QUOTE.join([*texts, b""])
        if (
            window.startswith(alike)
            and whole.count(_QUOTE) == len(texts)
            and whole.find(_ESCAPED_QUOTE) < 0
            and _LF not in whole
        ):
            return texts
        return []


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
    begin = event.find(TEXT) + len(TEXT)
    end = event.find(b'"', begin)
    simple = len(TEXT) <= begin < end and _BACKSLASH not in event
    # What follows the text must not be taken for the end of a key.
    if not simple or event[end + 1 : end + 2] not in {b",", b"}"}:
        return None
    return Envelope(event[:begin], event[end:])

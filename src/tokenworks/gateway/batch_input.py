"""Reads a batch's input: a file of one request a line, as OpenAI has it."""

from __future__ import annotations

import reprlib
from typing import Final

import msgspec

from tokenworks.core.batches import (
    CUSTOM_ID_CHARS_MAX,
    ERRORS_MAX,
    LINE_BYTES_MAX,
    LINES_MAX,
    Batch,
    FileRoom,
    Line,
    LineError,
)
from tokenworks.core.ids import ModelName
from tokenworks.gateway.request_fields import MODEL_CHARS_MAX

READ_BYTES: Final = 256 * 1024
"""Read and looked at in one go; others have their turn between two of them."""


class _Body(msgspec.Struct):
    model: str


class _Row(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _Body


_decoder: Final = msgspec.json.Decoder(_Row)


class BatchInput:
    """Reads the lines of one batch.

    Args:
        batch: whose.

    Attributes:
        lines: what was good.
        errors: what was not, at most ``ERRORS_MAX``.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._named: set[str] = set()
        self._number = self._offset = 0
        self.lines: list[Line] = []
        self.errors: list[LineError] = []

    async def read(self, files: FileRoom) -> None:
        """Read all of it, or until there are too many errors.

        Raises:
            NotFound: the file is gone.
            LedgerUnavailable: it cannot be read.
        """
        rest, at = b"", 0
        while len(self.errors) < ERRORS_MAX:
            more = await files.read(self._batch.input_file, at, READ_BYTES)
            at += len(more)
            *whole, rest = (rest + more).split(b"\n")
            for raw in whole:
                self._line(raw, 1)
            if not more:
                self._line(rest, 0)
                break
            if len(rest) > LINE_BYTES_MAX or len(self.lines) > LINES_MAX:
                self._line(rest, 0)
                break
        if not (self.lines or self.errors):
            self._wrong("empty_file", "The input has no lines.", None, None)
        if len(self.lines) > LINES_MAX:
            why = f"The input has more than {LINES_MAX} lines: cut it into several."
            self._wrong("too_many_lines", why, None, None)

    def _line(self, raw: bytes, end: int) -> None:
        self._number += 1
        offset = self._offset
        self._offset += len(raw) + end
        if not raw.strip() or len(self.errors) >= ERRORS_MAX:
            return
        if len(raw) > LINE_BYTES_MAX:
            self._wrong("line_too_long", f"A line may have {LINE_BYTES_MAX} bytes.")
            return
        try:
            row = _decoder.decode(raw)
        except msgspec.ValidationError as error:
            self._wrong("invalid_request", f"{error}.")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._wrong("invalid_json_line", f"The line is not a JSON object: {error}.")
        else:
            self._check(row, offset, len(raw))

    def _check(self, row: _Row, offset: int, size: int) -> None:
        if row.method != "POST":
            self._wrong("invalid_method", f"The method is {_short(row.method)}.", "method")
        elif row.url != self._batch.endpoint:
            why = f"The batch is for {self._batch.endpoint}, the line for {_short(row.url)}."
            self._wrong("mismatched_url", why, "url")
        elif not 0 < len(row.custom_id) <= CUSTOM_ID_CHARS_MAX:
            why = f"A custom_id has 1 to {CUSTOM_ID_CHARS_MAX} characters."
            self._wrong("invalid_custom_id", why, "custom_id")
        elif row.custom_id in self._named:
            why = f"The custom_id {_short(row.custom_id)} stands in a line before."
            self._wrong("duplicate_custom_id", why, "custom_id")
        elif not 0 < len(row.body.model) <= MODEL_CHARS_MAX:
            why = f"A model's name has 1 to {MODEL_CHARS_MAX} characters."
            self._wrong("invalid_model", why, "body.model")
        else:
            self._named.add(row.custom_id)
            self.lines.append(
                Line(
                    batch=self._batch.id,
                    number=self._number,
                    custom_id=row.custom_id,
                    model=ModelName(row.body.model),
                    offset=offset,
                    size=size,
                )
            )

    def _wrong(self, code: str, why: str, param: str | None = None, line: int | None = 0) -> None:
        line = self._number if line == 0 else line
        self.errors.append(LineError(code=code, message=why, param=param, line=line))


def _short(text: str) -> str:
    return reprlib.repr(text)

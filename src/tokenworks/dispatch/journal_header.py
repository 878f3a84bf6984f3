"""What a journal's first record holds."""

from __future__ import annotations

import msgspec


class JournalHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Who wrote a file.

    Attributes:
        format: of the records.
        package_version: of the dispatcher that decided.
        sequence: the file's number, counted from 1 in its directory.
    """

    format: int
    package_version: str
    sequence: int

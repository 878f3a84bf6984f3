"""What callers may ask of a connection."""

from __future__ import annotations

from typing import Final

import msgspec


class HTTPLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller may ask of a connection.

    Attributes:
        head_bytes_max: of a request's head.
        header_fields_max: header fields of a request.
        target_bytes_max: of a request's path and query.
        ahead_bytes_max: read of further requests while one is being served.
        write_bytes_high: unsent bytes of an answer above which its worker is no longer read.
        idle_s_max: between two requests.
        head_s_max: from the first byte of a head to its end.
        body_s_max: from the end of a head to the end of its body; where that is taken as it comes,
            from one part of it that was taken to the next.
        send_s_max: without taking any of what was written; who reads nothing has left.
        discard_bytes_max: of the body of a request that was answered without it; a longer one ends
            the connection.
        linger_s_max: after an answer to a request that was not read to its end.
        connections_max: open at once.
        refused_max: open beyond that, until they have taken a 503; further callers wait where the
            kernel keeps them.
        drain_s_max: for what is open when the server stops.
    """

    head_bytes_max: int = 64 * 1024
    header_fields_max: int = 128
    target_bytes_max: int = 8 * 1024
    ahead_bytes_max: int = 64 * 1024
    write_bytes_high: int = 64 * 1024
    idle_s_max: float = 75.0
    head_s_max: float = 20.0
    body_s_max: float = 120.0
    send_s_max: float = 60.0
    discard_bytes_max: int = 8_000_000
    linger_s_max: float = 5.0
    connections_max: int = 12_000
    refused_max: int = 1_000
    drain_s_max: float = 20.0


LIMITS: Final = HTTPLimits()

FILES_KEPT: Final = 48
"""For the ledger, the journal, workers of our own and all else that a process has open."""
FILES_PER_REFUSED: Final = 16


def fitting(limits: HTTPLimits, files: int) -> HTTPLimits:
    """The same for a process that may have so many files open: each request may take two.

    >>> fitting(LIMITS, 25_048) == LIMITS, fitting(LIMITS, 1_024).connections_max
    (True, 456)
    """
    refused = min(limits.refused_max, files // FILES_PER_REFUSED)
    most = max(1, (files - FILES_KEPT - refused) // 2)
    return msgspec.structs.replace(
        limits, connections_max=min(limits.connections_max, most), refused_max=refused
    )

"""Times as people write and read them: dates, whole hours and spans, UTC."""

from __future__ import annotations

import datetime
import re
from typing import Final

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.units import NS_PER_HOUR, NS_PER_S
from tokenworks.ledger.quota_records import UNIX_NS_MAX

_SPAN: Final = re.compile(r"(\d{1,6})([mhd])")
_SPAN_NS: Final = {"m": 60 * NS_PER_S, "h": NS_PER_HOUR, "d": 24 * NS_PER_HOUR}

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def parse_time(
    text: str, option: str, hint: str = "Such as 2026-11-01 or 2026-11-01T13:00, UTC."
) -> int:
    """Nanoseconds since 1970 of a date or a whole hour, UTC.

    Args:
        text: what was given.
        option: where, for the error.
        hint: what to give instead.

    Raises:
        InvalidRequest: it is neither.
    """
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(f"{option} is {text!r}, which is no time.", hint=hint) from error
    found = found.replace(tzinfo=found.tzinfo or datetime.UTC)
    unix_ns = (found - _EPOCH) // datetime.timedelta(seconds=1) * NS_PER_S
    if not 0 <= unix_ns <= UNIX_NS_MAX or unix_ns % NS_PER_HOUR or found.microsecond:
        raise InvalidRequest(
            f"{option} is {text!r}; it must be a whole hour from 1970 to 2262.", hint=hint
        )
    return unix_ns


def parse_span(text: str, option: str) -> int:
    """Nanoseconds of a time such as ``30d``, ``24h`` or ``15m``.

    Raises:
        InvalidRequest: it is none.

    >>> parse_span("24h", "--overlap")
    86400000000000
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidRequest(
            f"{option} is {text!r}, which is no length of time.", hint="Such as 30d, 24h or 15m."
        )
    return int(found[1]) * _SPAN_NS[found[2]]


def parse_end(text: str, option: str, now_unix_ns: int) -> int:
    """A time to come: a date, a whole hour (UTC), or how long from now.

    Raises:
        InvalidRequest: it is none of these, or past.
    """
    hint = "Such as 2027-01-31, 2027-01-31T13:00 (UTC) or 30d."
    if _SPAN.fullmatch(text):
        unix_ns = now_unix_ns + parse_span(text, option)
    else:
        unix_ns = parse_time(text, option, hint)
    if not now_unix_ns < unix_ns <= UNIX_NS_MAX:
        raise InvalidRequest(f"{option} is {text!r}, which is not to come.", hint=hint)
    return unix_ns


def time_text(unix_ns: int) -> str:
    """A time for people and for programs, to the minute.

    >>> time_text(1_793_491_200_000_000_000)
    '2026-11-01T00:00Z'
    """
    return f"{_EPOCH + datetime.timedelta(seconds=unix_ns // NS_PER_S):%Y-%m-%dT%H:%MZ}"

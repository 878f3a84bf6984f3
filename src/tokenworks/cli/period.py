"""Times on the command line: dates, whole hours and months, UTC."""

from __future__ import annotations

import math
from typing import NamedTuple

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.units import NS_PER_HOUR
from tokenworks.ledger.dates import parse_time, time_text
from tokenworks.ledger.invoices import month_window
from tokenworks.ledger.quotas import window_start


class Period(NamedTuple):
    """Whole hours from one time up to another; None is open."""

    since_unix_ns: int | None
    until_unix_ns: int | None

    def words(self) -> str:
        """For people; nothing where both ends are open."""
        since, until = self
        words = [] if since is None else [f"from {time_text(since)}"]
        words += [] if until is None else [f"up to {time_text(until)}"]
        return " ".join(words)


def parse_period(
    now_unix_ns: int,
    *,
    since: str | None = None,
    until: str | None = None,
    hours: float | None = None,
    month: str | None = None,
) -> Period:
    """What ``--since``, ``--until``, ``--hours`` and ``--month`` say.

    Raises:
        InvalidRequest: one is no time, or they contradict each other.
    """
    if sum((hours is not None, month is not None, since is not None or until is not None)) > 1:
        raise InvalidRequest(
            "--hours, --month and --since with --until each name a period.", hint="Give one."
        )
    if hours is not None:
        if not math.isfinite(hours) or hours * NS_PER_HOUR > now_unix_ns:
            raise InvalidRequest(
                f"--hours is {hours!r}, which begins before 1970.", hint="Such as --hours 24."
            )
        return Period(window_start("hour", now_unix_ns - int(hours * NS_PER_HOUR)), None)
    if month is not None:
        return Period(*month_window(month))
    found = Period(
        None if since is None else parse_time(since, "--since"),
        None if until is None else parse_time(until, "--until"),
    )
    end_unix_ns = now_unix_ns if found.until_unix_ns is None else found.until_unix_ns
    if found.since_unix_ns is not None and end_unix_ns < found.since_unix_ns:
        raise InvalidRequest(f"--since {since} is after the end.", hint="Give an earlier one.")
    return found

"""Times as people write them: whole hours and spans, and nothing that could be misread."""

from __future__ import annotations

import pytest

from tests.ledger.ledger_samples import NOW
from tokenworks.core.errors import InvalidRequest
from tokenworks.ledger.dates import parse_end, parse_span, parse_time, time_text

HOUR_S = 3_600


def test_a_time_is_a_date_or_a_whole_hour() -> None:
    assert time_text(parse_time("2026-11-01", "--at")) == "2026-11-01T00:00Z"
    assert time_text(parse_time("2026-11-01T13:00+01:00", "--at")) == "2026-11-01T12:00Z"
    for wrong in ("soon", "2026-11-01T13:30", "1969-01-01", "9999-01-01", "2026-11-01T00:00:00.5"):
        with pytest.raises(InvalidRequest, match="--at is"):
            parse_time(wrong, "--at")


def test_an_end_is_to_come() -> None:
    assert parse_end("2h", "--expires", NOW) == NOW + 2 * HOUR_S * 10**9
    assert parse_end("2027-01-31", "--expires", NOW) > NOW
    for wrong in ("0m", "2026-01-01", "999999d"):
        with pytest.raises(InvalidRequest, match="not to come"):
            parse_end(wrong, "--expires", NOW)
    for wrong in ("5", "1w", "-1h"):
        with pytest.raises(InvalidRequest, match="no length of time"):
            parse_span(wrong, "--overlap")

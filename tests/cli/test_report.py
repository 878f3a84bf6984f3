"""Reports add up, whatever they are grouped by and whatever period they are of."""

from __future__ import annotations

import pathlib
import sys

import pytest

from tests.cli.command_line import data, done, fill, invoke
from tests.ledger.ledger_samples import DAY_NS, HOUR_NS, MONTH, NOW
from tokenworks.cli.period import Period, parse_period
from tokenworks.cli.picture import ROWS_MAX, draw_report
from tokenworks.core.errors import ConfigInvalid, InvalidRequest, LedgerCorrupt
from tokenworks.ledger.dates import parse_time
from tokenworks.ledger.quotas import window_end
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store


def test_an_empty_ledger_reports_nothing(home: Home) -> None:
    assert "The ledger is empty" in done(home, "report")
    assert data(home, "report") == {
        "by": ["tier"],
        "since": None,
        "until": None,
        "rows": [],
        "asked_and_delivered": [],
    }
    result = invoke(home, "report", "--png", str(home.path / "x.png"))
    assert isinstance(result.exception, InvalidRequest)
    assert not home.path.exists()


def test_a_report_adds_up(home: Home) -> None:
    fill(home)
    found = data(home, "report")
    names = [row["tier"] for row in found["rows"]]
    assert names == ["free", "high", "premium", "(idle)", "total"]
    *rows, total = found["rows"]
    for field in ("requests", "input", "cached", "output", "revenue_nanodollars"):
        assert total[field] == sum(row[field] for row in rows)
    assert (total["requests"], total["input"], total["output"]) == (4, 40, 80)
    assert total["tokens"]["uncached_input_tokens"] == 24
    assert total["cost_nanodollars"] == 1_000_006  # the whole accrual, answers' shares or idle
    assert rows[-1]["idle_nanodollars"] == total["idle_nanodollars"] == 1_000_006 - 12_000
    for row in found["rows"]:
        earned = row["revenue_nanodollars"] + row["ads_nanodollars"]
        assert (
            row["revenue_nanodollars"] == row["charged_nanodollars"] - row["credited_nanodollars"]
        )
        assert row["margin_nanodollars"] == earned - row["cost_nanodollars"]
        assert row["cost_nanodollars"] == row["energy_nanodollars"] + row["capital_nanodollars"]
    assert rows[0]["ads_nanodollars"] == 10_000  # 20 tokens at half a dollar per million
    premium = rows[2]
    assert premium["earned_usd_per_mtok"] == "47.8800"
    assert rows[-1]["earned_usd_per_mtok"] is None
    assert {"asked": "high", "delivered": "free", "requests": 1} in found["asked_and_delivered"]
    text = done(home, "report")
    assert "Delivered below the tier asked for" in text
    assert "0.000988006" in text
    assert "idle $" not in text


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("tenant", ["second", "tenant", "(idle)"]),
        ("team", ["team", None, "(idle)"]),
        ("engineer", ["ada", None, "(idle)"]),
        ("key", ["key", "other", "(idle)"]),
        ("agent", [None, "(idle)"]),
        ("pool", ["pool"]),
        ("model", ["m", "(idle)"]),
        ("tier_asked", ["free", "high", "premium", "(idle)"]),
        ("hour", ["1970-01-01T00:00Z"]),
        ("day", ["1970-01-01"]),
        ("month", ["1970-01"]),
        ("ending", ["done", "(idle)"]),
    ],
)
def test_a_report_groups_by_anything(home: Home, by: str, names: list[str]) -> None:
    fill(home)
    rows = data(home, "report", "--by", by)["rows"]
    assert [row[by] for row in rows] == [*names, "total"]
    assert (rows[-1]["requests"], rows[-1]["cost_nanodollars"]) == (4, 1_000_006)


def test_a_report_groups_by_several_things_at_once(home: Home) -> None:
    fill(home)
    words = ("report", "--by", "tenant", "--by", "tier", "--by", "tenant")
    rows = data(home, *words)["rows"]
    assert [(row["tenant"], row["tier"]) for row in rows] == [
        *(("second", "premium"), ("tenant", "free"), ("tenant", "high")),
        *(("(idle)", "(idle)"), ("total", None)),
    ]
    assert "tenant  tier " in done(home, *words)


def test_by_pool_idle_cost_is_a_column(home: Home) -> None:
    fill(home)
    text = done(home, "report", "--by", "pool")
    assert "idle $" in text
    assert "(idle)" not in text


def test_a_filter_leaves_others_out(home: Home) -> None:
    fill(home)
    rows = data(home, "report", "--tenant", "tenant")["rows"]
    assert [(row["tier"], row["requests"]) for row in rows] == [
        *(("free", 2), ("high", 1), ("total", 3))
    ]
    assert data(home, "report", "--tier", "premium", "--engineer", "ada")["rows"] == []
    assert "nothing that fits" in done(home, "report", "--tenant", "nobody")


def test_a_report_of_the_last_hours_leaves_out_what_is_older(home: Home) -> None:
    fill(home)
    assert data(home, "report", "--hours", "1")["rows"] == []


@pytest.mark.parametrize(
    ("words", "requests"),
    [
        (["--since", "2026-09-21T14:00"], 4),
        (["--since", "2026-09-21T15:00"], 0),
        (["--until", "2026-09-21T15:00Z"], 4),
        (["--until", "2026-09-21"], 0),
        (["--since", "2026-09-21", "--until", "2026-09-22"], 4),
        (["--month", "2026-09"], 4),
        (["--month", "2026-10"], 0),
    ],
)
def test_a_report_is_of_a_period(home: Home, words: list[str], requests: int) -> None:
    fill(home, NOW)
    for by in ("tier", "month", "hour"):
        rows = data(home, "report", "--by", by, *words)["rows"]
        assert sum(row["requests"] for row in rows[:-1]) == requests
    if requests:
        assert "Asked for " in done(home, "report", *words)
    else:
        assert "nothing that fits" in done(home, "report", *words)


def test_by_month_each_answer_is_in_its_own(home: Home) -> None:
    fill(home, MONTH - HOUR_NS)
    fill_again(home, MONTH + DAY_NS)
    rows = data(home, "report", "--by", "month")["rows"]
    assert [(row["month"], row["requests"]) for row in rows] == [
        *(("2026-08", 4), ("2026-09", 1), ("total", 5))
    ]
    rows = data(home, "report", "--by", "month", "--since", "2026-08-31T23:00")["rows"]
    assert [row["month"] for row in rows] == ["2026-08", "2026-09", "total"]
    rows = data(home, "report", "--by", "month", "--until", "2026-09-01")["rows"]
    assert [row["month"] for row in rows] == ["2026-08", "total"]


def fill_again(home: Home, at_unix_ns: int) -> None:
    from tests.cli.command_line import WORK
    from tests.ledger.ledger_samples import ledger, outcome, reserve
    from tokenworks.core.ids import RequestID
    from tokenworks.ledger.entries import Posted

    made = ledger(owner="later")
    held = reserve(made, "later", unix_ns=at_unix_ns)
    posted = made.post(at_unix_ns, RequestID("later"), outcome=outcome(), work=WORK)
    assert isinstance(posted, Posted)
    store = sqlite_store(home.ledger, "later")
    store.append_now([held, posted])
    store.close()


def test_a_ledger_without_entries_has_no_months(home: Home) -> None:
    done(home, "key", "create")
    assert data(home, "report", "--by", "month")["rows"] == []


@pytest.mark.parametrize(
    "words",
    [
        ["--since", "yesterday"],
        ["--since", "2026-11-01T13:30"],
        ["--since", "1969-01-01"],
        ["--month", "november"],
        ["--month", "9999-12"],
        ["--month", "1969-12"],
        ["--until", "9999-12-31"],
        ["--hours", "inf"],
        ["--hours", "nan"],
        ["--hours", "1e30"],
        ["--hours", "1", "--month", "2026-11"],
        ["--since", "2026-11-02", "--until", "2026-11-01"],
    ],
)
def test_a_period_that_is_none_is_refused(home: Home, words: list[str]) -> None:
    assert isinstance(invoke(home, "report", *words).exception, InvalidRequest)
    assert not home.path.exists()


def test_a_period_up_to_1970_is_empty(home: Home) -> None:
    fill(home, 5)
    assert data(home, "report", "--until", "1970-01-01")["rows"] == []
    found = data(home, "report", "--since", "1970-01-01")
    assert (found["since"], found["until"]) == ("1970-01-01T00:00Z", None)
    assert found["rows"]
    words = ("report", "--since", "1970-01-01T01:00", "--until", "1970-01-01")
    assert isinstance(invoke(home, *words).exception, InvalidRequest)


def test_periods_are_whole_hours() -> None:
    assert parse_period(NOW) == Period(None, None)
    assert parse_period(NOW).words() == ""
    last = parse_period(NOW, hours=1.5)
    assert last == Period(NOW - NOW % HOUR_NS - 2 * HOUR_NS, None)
    month = parse_period(NOW, month="2026-09")
    assert month == Period(MONTH, window_end("month", MONTH))
    assert month.words() == "from 2026-09-01T00:00Z up to 2026-10-01T00:00Z"
    assert parse_time("2026-09-01T02:00+02:00", "--at") == MONTH


def test_a_factory_that_idled_has_a_cost(home: Home) -> None:
    from tests.ledger.ledger_samples import accrue, ledger

    home.make()
    store = sqlite_store(home.ledger)
    store.append_now([accrue(ledger())])
    store.close()
    idle, total = data(home, "report")["rows"]
    assert idle["cost_nanodollars"] == total["cost_nanodollars"] == 11
    assert "(idle)" in done(home, "report")


def test_a_report_is_drawn(home: Home, tmp_path: pathlib.Path) -> None:
    fill(home)
    path = tmp_path / "report.png"
    assert "Drawn to" in invoke(home, "report", "--png", str(path)).stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    words = ("--by", "team", "--by", "tier")
    done(home, "report", *words, "--png", str(tmp_path / "report.svg"))
    assert "<svg" in (tmp_path / "report.svg").read_text()
    result = invoke(home, "report", "--png", str(tmp_path / "report.no"))
    assert isinstance(result.exception, ConfigInvalid)


def test_a_picture_has_room_for_so_many_groups(tmp_path: pathlib.Path) -> None:
    sums = {"requests": 1, "output": 0, "margin_nanodollars": -5}
    money = dict.fromkeys(("revenue_nanodollars", "ads_nanodollars", "cost_nanodollars"), 0)
    rows = [{"key": f"{i} " + "k" * 40, **sums, **money} for i in range(ROWS_MAX + 3)]
    path = tmp_path / "keys.svg"
    draw_report(rows, ["key"], path)
    assert path.stat().st_size > 0


def test_without_matplotlib_a_picture_says_what_to_install(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    fill(home)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke(home, "report", "--png", str(tmp_path / "x.png"))
    assert isinstance(result.exception, ConfigInvalid)
    assert "pip install" in result.exception.hint


def test_a_report_of_what_is_no_ledger_is_an_error(home: Home) -> None:
    home.make()
    home.ledger.write_bytes(b"no database" * 100)
    assert isinstance(invoke(home, "report").exception, LedgerCorrupt)

"""The audit log from the command line: who changed what, and the proof."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tests.cli.command_line import data, done, invoke
from tokenworks.core.errors import InvalidRequest, LedgerCorrupt, LedgerUnavailable
from tokenworks.live.home import Home


def test_what_was_done_here_is_listed(home: Home) -> None:
    assert "Nothing is written down" in done(home, "audit", "list")
    assert not home.path.exists()
    key = data(home, "key", "create", "--tenant", "acme", "--role", "admin")["key"]
    done(home, "quota", "set", "tenant:acme", "--usd", "5")
    assert invoke(home, "key", "rotate", "key_x").exit_code != 0
    refused, limit, created = data(home, "audit", "list")
    assert (created["action"], created["subject"], created["seq"]) == ("key.create", key, 1)
    assert created["after"]["roles"] == ["admin"]
    assert (limit["action"], limit["subject"]) == ("limit.set", "tenant:acme#usd-month")
    assert (refused["outcome"], refused["subject"]) == ("refused", "key_x")
    assert refused["error"].startswith("not_found: ")
    text = done(home, "audit", "list")
    assert "command line" in text
    assert "refused: not_found" in text
    for words, seqs in (
        (("--tenant", "acme"), [2, 1]),
        (("--outcome", "refused"), [3]),
        (("--action", "limit.set"), [2]),
        (("--before", "2"), [1]),
        (("--limit", "1"), [3]),
        (("--by", "nobody"), []),
    ):
        assert [row["seq"] for row in data(home, "audit", "list", *words)] == seqs


def test_the_log_is_proved(home: Home) -> None:
    assert isinstance(invoke(home, "audit", "verify").exception, LedgerUnavailable)
    done(home, "key", "create", "--tenant", "acme")
    first = data(home, "audit", "verify")
    assert done(home, "audit", "verify").startswith("1 record, and ")
    assert first["records"] == 1
    done(home, "key", "create", "--tenant", "acme")
    assert f"log ends with {data(home, 'audit', 'verify')['head']}" in done(home, "audit", "verify")
    assert data(home, "audit", "verify", "--expect", first["head"])["records"] == 2
    wrong = invoke(home, "audit", "verify", "--expect", "1:" + "0" * 64)
    assert isinstance(wrong.exception, LedgerCorrupt)
    assert "copy" in str(wrong.exception)
    assert isinstance(invoke(home, "audit", "verify", "--expect", "x").exception, InvalidRequest)


def test_a_changed_record_is_found(home: Home) -> None:
    done(home, "key", "create", "--tenant", "acme")
    with closing(sqlite3.connect(home.ledger)) as database, database:
        database.execute("DROP TRIGGER audit_log_are_never_edited")
        database.execute(
            "UPDATE audit_log SET payload = CAST(REPLACE(payload, 'high', 'free') AS BLOB)"
        )
    broken = invoke(home, "audit", "verify")
    assert isinstance(broken.exception, LedgerCorrupt)
    assert "Record 1" in str(broken.exception)

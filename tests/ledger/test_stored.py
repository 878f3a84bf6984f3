from __future__ import annotations

import gc

import msgspec
import pytest

from tests.ledger.ledger_samples import accrue, ledger, post, reserve, story
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.ledger import stored as stored_module
from tokenworks.ledger.stored import Stored


def test_what_is_admitted_is_fresh_once() -> None:
    made, entries = story()
    stored = Stored()
    assert stored.admit(entries) == entries
    assert stored.admit(entries) == []
    assert stored.open_holds() == list(made.open_holds())
    assert stored.open_count == len(made.open_holds())


def test_a_repeat_within_one_append_is_fresh_once() -> None:
    hold = reserve(ledger())
    assert Stored().admit([hold, hold]) == [hold]


@pytest.mark.parametrize("at", range(10))
def test_what_was_not_stored_is_forgotten(at: int) -> None:
    _, entries = story()
    stored = Stored()
    stored.admit(entries[:at])
    before = stored.open_holds()
    stored.undo(stored.admit(entries[at:]))
    assert stored.open_holds() == before
    assert stored.admit(entries) == entries[at:]


def test_a_refusal_undoes_all_that_came_with_it() -> None:
    _, entries = story()
    stored = Stored()
    wrong = msgspec.structs.replace(entries[3], request="never")
    with pytest.raises(LedgerCorrupt, match="not reserved"):
        stored.admit([*entries, wrong])
    assert stored.open_holds() == []
    assert stored.admit(entries) == entries


def test_appends_that_come_together_are_refused_one_by_one() -> None:
    _, entries = story()
    stored = Stored()
    wrong = msgspec.structs.replace(entries[3], request="never")
    fresh, errors = stored.admit_each([entries[:2], [entries[2], wrong], entries[2:]])
    assert fresh == entries
    assert [errors[0], errors[2]] == [None, None]
    assert "not reserved" in str(errors[1])


@pytest.mark.parametrize("which", range(10))
def test_other_content_is_refused(which: int) -> None:
    _, entries = story()
    stored = Stored()
    stored.admit(entries)
    with pytest.raises(LedgerCorrupt, match="contradicts"):
        stored.admit([msgspec.structs.replace(entries[which], at_unix_ns=1)])


def test_adopted_holds_can_be_settled() -> None:
    made = ledger()
    hold, posted = reserve(made), post(made)
    stored = Stored()
    stored.adopt([hold])
    assert stored.admit([hold, posted]) == [posted]


def test_the_collector_of_cycles_looks_at_nothing_twice() -> None:
    _, entries = story()
    stored = Stored()
    stored.admit(entries)
    gc.collect()
    for rows in (stored._settled, stored._open, stored._costs):
        assert rows
        assert not any(gc.is_tracked(each) for row in rows.items() for each in row)


def test_only_the_latest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "RECENT_MAX", 2)
    made, stored = ledger(), Stored()
    entries = [reserve(made, str(i)) for i in range(4)]
    entries += [post(made, str(i)) for i in range(3)]
    entries += [accrue(made, i, i + 1) for i in range(3)]
    stored.admit(entries)
    stored.trim()
    assert stored.open_holds() == [entries[3]]
    assert stored.admit(entries[5:7] + entries[8:]) == []
    with pytest.raises(LedgerCorrupt, match="not reserved"):
        stored.admit([entries[4]])
    assert stored.admit([entries[7]]) == [entries[7]]

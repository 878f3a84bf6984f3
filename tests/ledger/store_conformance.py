"""What every ledger store must do; a test module subclasses it with a ``store`` fixture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.ledger.ledger_samples import BOOK, key_record, ledger, post, reserve, same, story
from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt
from tokenworks.core.ids import KeyID, PriceID
from tokenworks.core.slo import Tier
from tokenworks.ledger.store_port import LedgerStore, recover


class StoreConformance:
    def test_entries_come_back_in_order(self, store: LedgerStore) -> None:
        _, entries = story()
        store.append_now(entries[:3])
        store.append_now(entries[3:])
        assert list(store.load_entries()) == entries

    def test_awaiting_an_append_stores_it(
        self, store: LedgerStore, run: Callable[..., Any]
    ) -> None:
        _, entries = story()

        async def main() -> None:
            await asyncio.gather(*(store.append([entry]) for entry in entries))

        run(main())
        assert list(store.load_entries()) == entries

    def test_an_identical_repeat_changes_nothing(self, store: LedgerStore) -> None:
        _, entries = story()
        store.append_now(entries)
        store.append_now(entries)
        assert list(store.load_entries()) == entries

    def test_a_contradiction_is_refused_with_all_that_came_with_it(
        self, store: LedgerStore
    ) -> None:
        made = ledger()
        first, second = reserve(made, "a"), reserve(made, "b")
        store.append_now([first])
        with pytest.raises(LedgerCorrupt):
            store.append_now([second, msgspec.structs.replace(first, hold_nanodollars=1)])
        assert list(store.load_entries()) == [first]

    def test_a_settlement_needs_its_reservation(self, store: LedgerStore) -> None:
        made = ledger()
        held = reserve(made)
        posted = post(made)
        with pytest.raises(LedgerCorrupt):
            store.append_now([posted])
        store.append_now([held, posted])
        assert list(store.load_entries()) == [held, posted]

    def test_one_append_failing_leaves_the_others(
        self, store: LedgerStore, run: Callable[..., Any]
    ) -> None:
        made = ledger()
        first, second = reserve(made, "a"), reserve(made, "b")
        wrong = post(made, "b")

        async def main() -> list[BaseException | None]:
            appends = [store.append([wrong]), store.append([first]), store.append([second])]
            return await asyncio.gather(*appends, return_exceptions=True)

        results = run(main())
        assert isinstance(results[0], LedgerCorrupt)
        assert results[1:] == [None, None]
        assert list(store.load_entries()) == [first, second]

    def test_keys_change_and_their_version_rises(self, store: LedgerStore) -> None:
        versions = [store.keys_version()]
        second, first = key_record("b", tokens_quota=5), key_record("a", tier_default=Tier.ULTRA)
        store.put_key(second)
        versions.append(store.keys_version())
        store.put_key(first)
        versions.append(store.keys_version())
        assert store.load_keys() == [first, second]
        store.put_key(msgspec.structs.replace(first, nanodollars_quota=7))
        versions.append(store.keys_version())
        assert store.load_keys()[0].nanodollars_quota == 7
        assert versions == sorted(set(versions))

    def test_a_key_is_revoked_once(self, store: LedgerStore) -> None:
        store.put_key(key_record("a"))
        assert not store.revoke_key(KeyID("nobody"), 5)
        before = store.keys_version()
        assert store.revoke_key(KeyID("a"), 5)
        assert store.keys_version() > before
        assert store.revoke_key(KeyID("a"), 6)
        assert store.load_keys()[0].revoked_unix_ns == 5

    def test_two_keys_cannot_share_a_secret(self, store: LedgerStore) -> None:
        store.put_key(key_record("a"))
        before = store.keys_version()
        with pytest.raises(ConfigInvalid):
            store.put_key(key_record("b", secret_sha256=key_record("a").secret_sha256))
        assert (len(store.load_keys()), store.keys_version()) == (1, before)

    def test_a_price_book_is_kept_for_ever(self, store: LedgerStore) -> None:
        assert store.load_price_book(BOOK.price_id) is None
        store.put_price_book(BOOK.price_id, BOOK.text, 1)
        store.put_price_book(BOOK.price_id, "another text", 2)
        assert store.load_price_book(PriceID(BOOK.price_id)) == BOOK.text

    def test_recovery_rebuilds_the_same_balances(self, store: LedgerStore) -> None:
        made, entries = story()
        store.put_key(key_record())
        store.append_now(entries)
        rebuilt = recover(store, "the next process")
        assert same(rebuilt, made)
        assert rebuilt.key(KeyID("key")) == key_record()
        assert [entry.request for entry in rebuilt.void_orphans(9)] == ["open"]
        assert not rebuilt.open_holds()

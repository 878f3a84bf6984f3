"""The proof of a ledger after a bar: the audit finds nothing, and every answer is there once."""

from __future__ import annotations

from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.ledger.audit import Audit
from tokenworks.ledger.blocks import decode_entries
from tokenworks.ledger.entries import Posted
from tokenworks.live.store import SQLStore


def proved(store: SQLStore, *, open_holds_max: int = 0) -> dict[str, Posted]:
    """Settled answers by request; raises AssertionError where the books are wrong.

    Args:
        store: of a ledger that nobody writes to.
        open_holds_max: reservations that may still be open.
    """
    posted: dict[str, Posted] = {}
    for block in store.blocks():
        for entry in decode_entries(block):
            if isinstance(entry, Posted):
                assert entry.request not in posted, f"{entry.request} is billed twice"
                posted[entry.request] = entry
    books = {}
    for price_id in store.price_ids():
        text = store.load_price_book(price_id)
        assert text is not None
        books[price_id] = parse_price_book(text)
    audit = Audit(books)
    list(audit.read(store.blocks()))
    since = store.since(audit.progress.blocks)
    findings = audit.finish(since.sums, since.numbers, since.holds)
    assert not findings, findings[:3]
    assert len(audit.open_holds()) <= open_holds_max, audit.open_holds()[:3]
    return posted

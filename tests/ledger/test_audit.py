"""The audit finds every kind of damage, and nothing where there is none."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from tests.ledger.ledger_samples import BOOK, ledger, post, reserve, story, whole
from tokenworks.core.errors import InvalidRequest, LedgerCorrupt
from tokenworks.ledger.audit import (
    FINDINGS_MAX,
    Audit,
    Finding,
    kept_book,
)
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import GENESIS, ChainHead, encode_entries, hash_of, parse_head
from tokenworks.ledger.entries import CostAccrued, Entry, Posted, Reserved
from tokenworks.ledger.rollup import RollupRow

BOOKS = {BOOK.price_id: BOOK}


def chain(batches: Sequence[Sequence[Entry]], owner: str = "me") -> list[Block]:
    """Blocks of these entries, with right hashes."""
    blocks: list[Block] = []
    before = GENESIS
    for i, entries in enumerate(batches, 1):
        facts = {"seq": i, "owner": owner, "number": i, "at_unix_ns": i, "count": len(entries)}
        payload = encode_entries(entries)
        before = hash_of(before, payload=payload, **facts)  # type: ignore[arg-type]
        blocks.append(Block(payload=payload, hash=before, **facts))  # type: ignore[arg-type]
    return blocks


def batches() -> list[list[Entry]]:
    _, entries = story()
    return [entries[i : i + 2] for i in range(0, len(entries), 2)]


def sums(parts: Sequence[Sequence[Entry]]) -> list[RollupRow]:
    return whole(entry for part in parts for entry in part)


def findings(
    blocks: Sequence[Block],
    stored: Sequence[RollupRow] | None = None,
    owners: dict[str, int] | None = None,
    books: dict[object, object] | None = None,
    holds: Sequence[Reserved] | None = None,
    expected: Sequence[ChainHead] = (),
) -> list[Finding]:
    audit = Audit(BOOKS if books is None else books, expected)  # type: ignore[arg-type]
    list(audit.read(blocks))
    rows = audit.rows() if stored is None else stored
    found = {"me": len(blocks)} if owners is None else owners
    return audit.finish(rows, found, audit.open_holds() if holds is None else holds)


def said(*args: object, **more: object) -> str:
    return "; ".join(each.what for each in findings(*args, **more))  # type: ignore[arg-type]


def test_a_right_ledger_has_no_findings() -> None:
    made, entries = story()
    audit = Audit(BOOKS)
    progress = list(audit.read(chain(batches())))
    assert progress[-1] == (len(batches()), len(entries)) == audit.progress
    assert audit.open_holds() == list(made.open_holds())
    assert audit.finish(sums(batches()), {"me": len(batches())}, made.open_holds()) == []
    last = chain(batches())[-1]
    assert audit.head == (last.seq, last.hash) == parse_head(str(audit.head))


@pytest.mark.parametrize("seed", range(200))
def test_a_changed_byte_in_any_old_entry_is_found(seed: int) -> None:
    blocks, dice = chain(batches()), random.Random(seed)
    at = dice.randrange(len(blocks))
    payload = bytearray(blocks[at].payload)
    place = dice.randrange(len(payload))
    payload[place] ^= 1 << dice.randrange(8)
    blocks[at] = msgspec.structs.replace(blocks[at], payload=bytes(payload))
    found = findings(blocks, sums(batches()))
    assert found[0].block == at + 1
    assert "was changed" in found[0].what


@pytest.mark.parametrize("field", ["owner", "number", "at_unix_ns", "count", "hash"])
def test_a_changed_field_of_a_block_is_found(field: str) -> None:
    blocks = chain(batches())
    other = {"owner": "you", "hash": bytes(32)}.get(field, 9)
    blocks[1] = msgspec.structs.replace(blocks[1], **{field: other})
    assert findings(blocks)[0].block == 2


def test_a_block_that_was_removed_or_moved_is_found() -> None:
    blocks = chain(batches())
    assert "Block 2 is missing" in said([blocks[0], *blocks[2:]])
    assert "Block 1 is missing" in said([blocks[1], blocks[0], *blocks[2:]])
    assert "'me' has written 5 blocks; 4 are there" in said(blocks[:4], owners={"me": 5})
    assert "'you' has written 1 blocks; 0 are there" in said(blocks, owners={"me": 5, "you": 1})


def test_a_block_out_of_its_owners_order_is_found() -> None:
    entries = batches()
    first, second = chain(entries)[:2]
    facts = {"seq": 2, "owner": "me", "number": 5, "at_unix_ns": 2, "count": second.count}
    digest = hash_of(first.hash, payload=second.payload, **facts)  # type: ignore[arg-type]
    wrong = Block(payload=second.payload, hash=digest, **facts)  # type: ignore[arg-type]
    assert "it is number 5 of 'me', not 2" in said([first, wrong])


def test_what_cannot_be_decoded_is_found() -> None:
    facts = {"seq": 1, "owner": "me", "number": 1, "at_unix_ns": 1, "count": 1}
    digest = hash_of(GENESIS, payload=b"[]\n", **facts)  # type: ignore[arg-type]
    block = Block(payload=b"[]\n", hash=digest, **facts)  # type: ignore[arg-type]
    assert "cannot be decoded" in said([block])


def test_entries_that_no_right_ledger_writes_are_found() -> None:
    made = ledger()
    held = reserve(made, "a")
    posted = post(made, "a")
    cases: dict[str, list[Entry]] = {
        "is reserved a second time": [held, held],
        "settles what is not reserved": [posted],
        "or a second time": [held, posted, posted],
        "is in a block of 'me'": [msgspec.structs.replace(held, owner="you")],
        "The sums of": [held, msgspec.structs.replace(posted, charged_nanodollars=1)],
        "of another": [held, msgspec.structs.replace(posted, reserved_unix_ns=1)],
        "by another price book": [held, msgspec.structs.replace(posted, price_id="other")],
        "is not 1000000": [held, rate(posted, 500_000)],
        "are not those of its price book": [held, dearer(posted)],
        "The credit of": [held, credited(posted)],
        "The ad income of": [held, msgspec.structs.replace(posted, **ADS)],
    }
    for words, entries in cases.items():
        assert words in said(chain([entries])), words


def rate(posted: Posted, rate_ppm: int) -> Posted:
    """The same at another rate, with right sums."""
    charged = posted.charged_nanodollars * rate_ppm // 1_000_000
    return msgspec.structs.replace(posted, rate_ppm=rate_ppm, charged_nanodollars=charged)


ADS = {"ad_income_udollars_per_mtok": 1_000, "ad_income_nanodollars": 20}


def credited(posted: Posted) -> Posted:
    """The same with the whole charge given back, with right sums."""
    charged = posted.charged_nanodollars
    return msgspec.structs.replace(posted, credit_ppm=1_000_000, credited_nanodollars=charged)


def dearer(posted: Posted) -> Posted:
    """The same with another output price, with right sums."""
    more = 1_000_000
    price = msgspec.structs.replace(
        posted.price,
        output_udollars_per_mtok=posted.price.output_udollars_per_mtok + more,
    )
    charged = posted.charged_nanodollars + posted.usage.output_tokens * more // 1_000
    return msgspec.structs.replace(posted, price=price, charged_nanodollars=charged)


def test_an_answer_that_another_process_bills_is_found() -> None:
    made = ledger(owner="you")
    held, posted = reserve(made, "a"), post(made, "a")
    first, second = chain([[held], [posted]])
    first = chain([[held]], "you")[0]
    facts = {"seq": 2, "owner": "me", "number": 1, "at_unix_ns": 2, "count": 1}
    digest = hash_of(first.hash, payload=second.payload, **facts)  # type: ignore[arg-type]
    second = Block(payload=second.payload, hash=digest, **facts)  # type: ignore[arg-type]
    assert "bills what 'you' has reserved" in said([first, second], owners={"you": 1, "me": 1})


def test_a_name_that_comes_back_after_its_end_is_found() -> None:
    one, other = ledger(), ledger()
    entries = [reserve(one, "a"), post(one, "a"), reserve(other, "a"), post(other, "a")]
    assert "1 reservations have the name of an earlier one" in said(chain([entries]))


def test_cost_that_counts_twice_is_found() -> None:
    cost = CostAccrued(
        at_unix_ns=9,
        request="c",
        pool="p",
        from_unix_ns=0,
        until_unix_ns=9,
        energy_nanodollars=1,
        capital_nanodollars=1,
    )
    later = msgspec.structs.replace(cost, request="d", from_unix_ns=8, until_unix_ns=12)
    assert "overlaps the cost before it" in said(chain([[cost, later]]))


def test_a_price_book_that_is_not_kept_is_found() -> None:
    assert "is not kept" in said(chain(batches()), books={})


def test_sums_that_are_not_those_of_the_entries_are_found() -> None:
    rows = sums(batches())
    rows[0].sums[3] += 1
    assert "entries say" in said(chain(batches()), stored=rows)
    assert "entries say" in said(chain(batches()), stored=rows[1:])


def test_open_reservations_that_are_not_those_of_the_entries_are_found() -> None:
    made, _ = story()
    (hold,) = made.open_holds()
    assert "has None; entries say Reserved" in said(chain(batches()), holds=[])
    other = msgspec.structs.replace(hold, hold_nanodollars=1)
    assert "the list of open reservations" in said(chain(batches()), holds=[other])
    late = msgspec.structs.replace(hold, request="late")
    assert "entries say None" in said(chain(batches()), holds=[hold, late])


def test_a_chain_that_was_made_anew_is_found_by_what_was_noted_of_it() -> None:
    noted = [ChainHead(block.seq, block.hash) for block in chain(batches())]
    assert findings(chain(batches()), expected=noted) == []
    assert "the chain ends with block 4; it has had 5:" in said(
        chain(batches()[:4]), expected=[noted[4]]
    )
    cheaper = [*batches()[:4], [msgspec.structs.replace(batches()[4][0], hold_nanodollars=1)]]
    assert "not the one that was noted" in said(chain(cheaper), expected=[noted[4]])
    assert "not the one that was noted" not in said(chain(cheaper), expected=[noted[3]])


def test_every_head_that_was_noted_is_compared_also_of_one_block_or_of_none() -> None:
    heads = [ChainHead(block.seq, block.hash) for block in chain(batches())]
    right, wrong = heads[3], ChainHead(heads[3].seq, heads[2].hash)
    for expected in ([right, wrong], [wrong, right], [wrong, wrong, right]):
        (found,) = findings(chain(batches()), expected=expected)
        assert (found.block, found.what) == (4, f"it is not the one that was noted, {wrong}")
    late = [ChainHead(99, bytes(32)), ChainHead(99, bytes(31) + b"x")]
    assert len(findings(chain(batches()), expected=late)) == 2
    empty = ChainHead(0, GENESIS)
    assert Audit({}).head == empty
    for blocks in ([], chain(batches())):
        assert (
            findings(blocks, owners={"me": len(blocks)} if blocks else {}, expected=[empty]) == []
        )
        (found,) = findings(
            blocks,
            owners={"me": len(blocks)} if blocks else {},
            expected=[empty, ChainHead(0, heads[0].hash)],
        )
        assert found.what.startswith(f"the chain begins after {empty}, not 0:")


@pytest.mark.parametrize("text", ["", "7", "x:00", f"1:{'g' * 64}", f"-1:{'0' * 64}"])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no head"):
        parse_head(text)


def test_a_kept_price_book_must_be_the_one_of_its_id() -> None:
    assert kept_book(BOOK.price_id, BOOK.text) == BOOK
    changed = BOOK.text.replace("2026-01-01", "2026-01-02")
    with pytest.raises(LedgerCorrupt, match="is that of"):
        kept_book(BOOK.price_id, changed)


def test_findings_have_an_end() -> None:
    made = ledger()
    posted = [post_of(made, i) for i in range(FINDINGS_MAX + 10)]
    assert len(findings(chain([posted]))) == FINDINGS_MAX


def post_of(made: object, number: int) -> Entry:
    reserve(made, str(number))  # type: ignore[arg-type]
    return post(made, str(number))  # type: ignore[arg-type]

"""The audit: every block and entry of a ledger, from the first on, and every sum made again."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import PriceID, RequestID
from tokenworks.core.slo import Tier
from tokenworks.ledger.accounts import Accounts
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import GENESIS, ChainHead, check_block, decode_entries
from tokenworks.ledger.entries import CostAccrued, Entry, Posted, Reserved, Voided
from tokenworks.ledger.ledger import check_settlement
from tokenworks.ledger.rollup import RollupRow, Sums, balances, merged
from tokenworks.ledger.summing import Rollup

FINDINGS_MAX: Final = 1_000
"""Findings that are kept; a ledger with more is beyond listing."""

_FINGERPRINT_BYTES: Final = 8


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it must be.

    Attributes:
        block: where, if it is in a block.
        what: what, with the values.
    """

    block: int | None
    what: str


def kept_book(price_id: PriceID, text: str) -> PriceBook:
    """A price book that the store has kept.

    Raises:
        LedgerCorrupt: it is not the text that was kept under that id.
    """
    book = parse_price_book(text)
    if book.price_id != price_id:
        raise LedgerCorrupt(
            f"The text kept as price book {price_id!r} is that of {book.price_id!r}.",
            hint="It was changed: restore the ledger from a copy.",
        )
    return book


class Progress(NamedTuple):
    """How far an audit has come."""

    blocks: int
    entries: int


class Audit:
    """Reads blocks in order; afterwards it knows what must be in the derived tables.

    Each block must follow on the one before it by its hash. Each settlement must end an open
    reservation of its own process, or of one that is dead; no request may be reserved twice. The
    names of all reservations are compared by 64 bits of a hash, so that ten million of them fit
    into memory: that two names which differ are taken for one has a chance of 1 in 400,000 then,
    and is said as such.

    Args:
        books: the price books that the store has kept, to compare the prices in entries with.
        expected: what the chain's last block was at some times, as it was noted outside; number
            0 is the chain before its first block.
    """

    def __init__(
        self, books: Mapping[PriceID, PriceBook], expected: Sequence[ChainHead] = ()
    ) -> None:
        self._books = books
        self._expected: dict[int, list[ChainHead]] = {}
        for head in dict.fromkeys(expected):
            self._expected.setdefault(head.seq, []).append(head)
        self._hash = GENESIS
        self._seq = 0
        self._numbers: dict[str, int] = {}
        self._open: dict[tuple[RequestID, int], Reserved] = {}
        self._names = array("Q")
        self._last_cost: dict[tuple[str, str], int] = {}
        self._rollup = Rollup(by_hour=False)
        self._accounts = Accounts()
        self._entries = 0
        self.findings: list[Finding] = []

    def read(self, blocks: Iterable[Block]) -> Iterator[Progress]:
        """Read blocks, from the first on; a step for each."""
        for block in blocks:
            self._block(block)
            yield self.progress

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        return Progress(self._seq, self._entries)

    @property
    def head(self) -> ChainHead:
        """The last block that it has read."""
        return ChainHead(self._seq, self._hash)

    def open_holds(self) -> list[Reserved]:
        """Reservations that nothing has ended."""
        return list(self._open.values())

    def rows(self) -> list[RollupRow]:
        """Sums over all time, as the store should have them."""
        return list(self._rollup.rows())

    def finish(
        self, stored: Iterable[RollupRow], owners: Mapping[str, int], holds: Iterable[Reserved]
    ) -> list[Finding]:
        """Compare what was read with what a store has derived from it.

        Args:
            stored: the store's sums over all time.
            owners: by process, the number of the last block that the store knows of it.
            holds: the reservations that a start would find open.

        Returns:
            All findings.
        """
        self._find_doubles()
        self._compare_holds(holds)
        for head in self._expected.get(0, ()):
            if head.hash != GENESIS:
                self._found(None, f"the chain begins after {ChainHead(0, GENESIS)}, not {head}")
        for seq, heads in self._expected.items():
            for head in heads if seq > self._seq else ():
                self._found(None, f"the chain ends with block {self._seq}; it has had {head}")
        if owners != self._numbers:
            for owner in sorted(owners.keys() | self._numbers.keys()):
                here, there = self._numbers.get(owner, 0), owners.get(owner, 0)
                if here != there:
                    self._found(None, f"{owner!r} has written {there} blocks; {here} are there")
        self._compare(merged(stored), self.rows())
        # Both were made here, from the same entries, in two ways.
        assert balances(self.rows()) == self._accounts.balances()
        return self.findings

    def _block(self, block: Block) -> None:
        self._seq += 1
        try:
            check_block(block, self._seq, self._hash)
            number = self._numbers.get(block.owner, 0) + 1
            if block.number != number:
                self._found(block, f"it is number {block.number} of {block.owner!r}, not {number}")
            entries = decode_entries(block)
        except LedgerCorrupt as error:
            self._found(block, error.message)
            entries = []
        for head in self._expected.get(block.seq, ()):
            if head.hash != block.hash:
                self._found(block, f"it is not the one that was noted, {head}")
        # Go on from what is there, so that one change is one finding.
        self._seq, self._hash = block.seq, block.hash
        self._numbers[block.owner] = block.number
        for entry in entries:
            self._entries += 1
            try:
                self._entry(block, entry)
            except LedgerCorrupt as error:
                self._found(block, error.message)
                continue
            self._rollup.add(entry)
            self._accounts.move(entry.transfers())

    def _entry(self, block: Block, entry: Entry) -> None:
        place = (entry.request, entry.attempt)
        if isinstance(entry, CostAccrued):
            self._cost(block, entry)
        elif isinstance(entry, Reserved):
            if place in self._open:
                raise LedgerCorrupt(f"{entry!r} is reserved a second time.")
            if entry.owner != block.owner:
                raise LedgerCorrupt(f"{entry!r} is in a block of {block.owner!r}.")
            self._names.append(_fingerprint(*place))
            self._open[place] = entry
        else:
            self._settlement(block, entry)

    def _settlement(self, block: Block, entry: Posted | Voided) -> None:
        place = (entry.request, entry.attempt)
        hold = self._open.get(place)
        if hold is None:
            raise LedgerCorrupt(f"{entry!r} settles what is not reserved, or a second time.")
        check_settlement(hold, entry)
        if isinstance(entry, Posted):
            if hold.owner != block.owner:
                raise LedgerCorrupt(f"{entry!r} bills what {hold.owner!r} has reserved.")
            self._check_price(hold, entry)
        del self._open[place]

    def _check_price(self, hold: Reserved, entry: Posted) -> None:
        if entry.price_id != hold.price_id:
            raise LedgerCorrupt(f"{entry!r} is billed by another price book than {hold!r}.")
        book = self._books.get(entry.price_id)
        if book is None:
            raise LedgerCorrupt(f"The text of price book {entry.price_id!r} is not kept.")
        if book.prices.get(entry.model, {}).get(entry.tier_delivered) != entry.price:
            raise LedgerCorrupt(f"The prices of {entry!r} are not those of its price book.")
        rate_ppm = book.rate_ppm(
            *(entry.payer.tenant, entry.model, entry.tier_delivered, entry.reserved_unix_ns),
            batch=entry.batch,
        )
        if rate_ppm != entry.rate_ppm:
            raise LedgerCorrupt(f"The rate of {entry!r} is not {rate_ppm}, as its book says.")
        asked, failed = entry.tier_asked, entry.ending == "failed"
        credit_ppm = 0 if failed or entry.tier_delivered is asked else book.credits_ppm[asked]
        if credit_ppm != entry.credit_ppm:
            raise LedgerCorrupt(f"The credit of {entry!r} is not {credit_ppm}, as its book says.")
        shown = asked is Tier.FREE and not (failed or entry.batch)
        ads = book.ad_income_udollars_per_mtok if shown else 0
        if ads != entry.ad_income_udollars_per_mtok:
            raise LedgerCorrupt(f"The ad income of {entry!r} is not {ads}, as its book says.")

    def _cost(self, block: Block, entry: CostAccrued) -> None:
        place = (block.owner, str(entry.pool))
        if entry.from_unix_ns < self._last_cost.get(place, 0):
            raise LedgerCorrupt(f"{entry!r} overlaps the cost before it.")
        self._last_cost[place] = entry.until_unix_ns

    def _find_doubles(self) -> None:
        names = sorted(self._names)
        doubles = sum(one == other for one, other in itertools.pairwise(names))
        if doubles:
            self._found(None, f"{doubles} reservations have the name of an earlier one")

    def _compare_holds(self, holds: Iterable[Reserved]) -> None:
        """Compare what a start would find open with what the entries leave open."""
        left = {(hold.request, hold.attempt): hold for hold in holds}
        for place in sorted(left.keys() | self._open.keys()):
            if left.get(place) != self._open.get(place):
                self._found(
                    None,
                    f"the list of open reservations has {left.get(place)!r}; "
                    f"entries say {self._open.get(place)!r}",
                )

    def _compare(self, stored: list[RollupRow], made: list[RollupRow]) -> None:
        # A row of zeros says as much as none, and a store need not keep it.
        left = {row[:3]: row.sums for row in stored if any(row.sums)}
        right = {row[:3]: row.sums for row in made if any(row.sums)}
        zero: Sums = []
        for row in sorted(left.keys() | right.keys(), key=repr):
            if left.get(row, zero) != right.get(row, zero):
                self._found(
                    None,
                    f"the sums of {row!r} are {left.get(row)!r}; entries say {right.get(row)!r}",
                )

    def _found(self, block: Block | None, what: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(block=None if block is None else block.seq, what=what))


def _fingerprint(request: RequestID, attempt: int) -> int:
    text = f"{request}\n{attempt}".encode()
    digest = hashlib.blake2b(text, digest_size=_FINGERPRINT_BYTES).digest()
    return int.from_bytes(digest)

"""What a store must know of its entries to refuse a contradiction: holds, and the latest rest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import RequestID
from tokenworks.ledger.entries import (
    CostAccrued,
    Entry,
    Reserved,
    Settlement,
    oldest_first,
)

RECENT_MAX = 50_000
"""Settlements and costs remembered, to tell a repeat from a contradiction; more than may queue."""

_Place = tuple[RequestID, int]
_KeyT = TypeVar("_KeyT")
_EntryT = TypeVar("_EntryT", Reserved, CostAccrued)


class Stored:
    """The open reservations of one owner and its latest settlements and costs."""

    def __init__(self) -> None:
        self._open: dict[_Place, Reserved] = {}
        # The first of a plain dict that had many before it is looked for among the places of these.
        self._settled: OrderedDict[_Place, tuple[Reserved, Settlement]] = OrderedDict()
        self._costs: OrderedDict[RequestID, CostAccrued] = OrderedDict()

    def open_holds(self) -> list[Reserved]:
        """Reservations without a settlement; see ``entries.oldest_first``."""
        return oldest_first(self._open.values())

    @property
    def open_count(self) -> int:
        """How many reservations have no settlement."""
        return len(self._open)

    def adopt(self, holds: Iterable[Reserved]) -> None:
        """Take over open reservations of another owner."""
        self._open |= {(hold.request, hold.attempt): hold for hold in holds}

    def admit(self, entries: Sequence[Entry]) -> list[Entry]:
        """Take up entries that are about to be stored, all or none.

        Returns:
            Those that are not stored yet.

        Raises:
            LedgerCorrupt: one has other content than the one stored, or settles what was not
                reserved.
        """
        fresh: list[Entry] = []
        try:
            for entry in entries:
                if self._take(entry):
                    fresh.append(entry)  # noqa: PERF401 - undone below if a later one is refused
        except LedgerCorrupt:
            self.undo(fresh)
            raise
        return fresh

    def admit_each(
        self, appends: Iterable[Sequence[Entry]]
    ) -> tuple[list[Entry], list[LedgerCorrupt | None]]:
        """Take up what several appends store; what is wrong with one stops no other.

        Returns:
            The entries that are not stored yet, and for each append what was wrong, if anything.
        """
        fresh: list[Entry] = []
        errors: list[LedgerCorrupt | None] = []
        for entries in appends:
            error: LedgerCorrupt | None = None
            try:
                fresh += self.admit(entries)
            except LedgerCorrupt as refusal:
                error = refusal
            errors.append(error)
        return fresh, errors

    def undo(self, fresh: Sequence[Entry]) -> None:
        """Forget entries that were admitted last and were not stored after all."""
        for entry in reversed(fresh):
            if isinstance(entry, CostAccrued):
                del self._costs[entry.request]
                continue
            place = (entry.request, entry.attempt)
            if isinstance(entry, Reserved):
                del self._open[place]
            else:
                self._open[place] = self._settled.pop(place)[0]

    def trim(self) -> None:
        """Forget what is older than the latest; call it when what was admitted is stored."""
        for rows in (self._settled, self._costs):
            while len(rows) > RECENT_MAX:
                rows.popitem(last=False)

    def _take(self, entry: Entry) -> bool:
        """Take up one entry; False for a repeat."""
        place = (entry.request, entry.attempt)
        if isinstance(entry, Reserved):
            settled = self._settled.get(place)
            if settled is not None:
                return _repeat(entry, settled[0])
            return _new(self._open, place, entry)
        if isinstance(entry, CostAccrued):
            return _new(self._costs, entry.request, entry)
        settled = self._settled.get(place)
        if settled is not None:
            return _repeat(entry, settled[1])
        hold = self._open.pop(place, None)
        if hold is None:
            raise LedgerCorrupt(f"{entry!r} settles what was not reserved.")
        self._settled[place] = (hold, entry)
        return True


def _new(rows: dict[_KeyT, _EntryT], place: _KeyT, entry: _EntryT) -> bool:
    stored = rows.get(place)
    if stored is not None:
        return _repeat(entry, stored)
    rows[place] = entry
    return True


def _repeat(entry: Entry, stored: Entry) -> bool:
    if stored != entry:
        raise LedgerCorrupt(f"{entry!r} contradicts what is stored: {stored!r}.")
    return False

"""The modelled ledger store: entries in order, late or refused where a fault says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import RequestID
from tokenworks.ledger.entries import Entry, Phase


class Answer(NamedTuple):
    """What a store makes of one append.

    Attributes:
        delay_ns: how long it takes.
        fails: nothing is stored, and the caller is told so.
        asked_again: the caller does not hear of it and asks once more.
    """

    delay_ns: int = 0
    fails: bool = False
    asked_again: bool = False


AT_ONCE: Final = Answer()
Place = tuple[RequestID, int, Phase]
"""A request, its attempt, and what is written of it."""
Meddle = Callable[[int], Answer]
"""What a fault makes of an append at a time."""


class Store:
    """Keeps the rules of ``ledger.store_port.LedgerStore`` on what is appended.

    Args:
        meddle: decides on each append; None for a store that has all at once.

    Attributes:
        entries: by request, attempt and phase, in the order in which they were stored.
    """

    def __init__(self, meddle: Meddle | None = None) -> None:
        self.entries: dict[Place, Entry] = {}
        self._meddle = meddle
        self._free_ns = 0

    def ask(self, now_ns: int) -> Answer:
        """How an append at a time will go; they are stored one after the other."""
        answer = AT_ONCE if self._meddle is None else self._meddle(now_ns)
        self._free_ns = max(self._free_ns, now_ns + answer.delay_ns)
        return answer._replace(delay_ns=self._free_ns - now_ns)

    def append(self, entries: Sequence[Entry]) -> None:
        """Store some entries, all or none; what is stored already changes nothing.

        Raises:
            LedgerCorrupt: one has other content than the one stored, or settles what was not
                reserved.
        """
        fresh: dict[Place, Entry] = {}
        for entry in entries:
            place: Place = (entry.request, entry.attempt, entry.phase)
            earlier = self.entries.get(place) or fresh.get(place)
            if earlier is not None and earlier != entry:
                raise LedgerCorrupt(f"{entry!r} contradicts {earlier!r}.")
            reserve: Place = (entry.request, entry.attempt, "reserve")
            if entry.phase == "settle" and not (reserve in self.entries or reserve in fresh):
                raise LedgerCorrupt(f"{entry!r} settles what was not reserved.")
            fresh.setdefault(place, entry)
        for place, entry in fresh.items():
            self.entries.setdefault(place, entry)

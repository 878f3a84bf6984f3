"""Opening the ledger of a home for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from tokenworks.core.errors import ConfigInvalid, LedgerUnavailable
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.dates import time_text
from tokenworks.ledger.store_port import LedgerStore
from tokenworks.live.clock import SystemClock
from tokenworks.live.home import Home
from tokenworks.live.office import Office
from tokenworks.live.store import SQLStore


@contextmanager
def ledger_at(home: Home, *, create: bool = False) -> Iterator[SQLStore]:
    """The ledger, closed again at the end.

    Args:
        home: whose.
        create: make the folder and the ledger where they are missing.

    Raises:
        LedgerUnavailable: there is none, or it cannot be opened.
    """
    if create:
        home.make()
    elif not home.has_ledger():
        raise LedgerUnavailable(
            f"There is no ledger in {str(home.path)!r}.",
            hint="`tokenworks up` or `tokenworks key create` starts one.",
        )
    with closing(home.open_ledger()) as store:
        yield store


@contextmanager
def office_at(home: Home, *, create: bool = False) -> Iterator[Office]:
    """The office that changes what is in the ledger; see ``ledger_at``."""
    with ledger_at(home, create=create) as store:
        yield Office(store, SystemClock().unix_ns, home.load_packages, home.load_price_books)


AHEAD_S_MAX: Final = 300
"""How far a ledger's latest date may be after this machine's clock."""


def check_clock(store: LedgerStore, unix_ns: int) -> None:
    """See whether the ledger was written by a clock that was far ahead of this machine's.

    Dates in a ledger never go back, so a factory goes on with the later one.

    Raises:
        ConfigInvalid: it was.
    """
    latest_unix_ns = store.latest_unix_ns()
    ahead_s = (latest_unix_ns - unix_ns) // NS_PER_S
    if ahead_s > AHEAD_S_MAX:
        until = time_text(latest_unix_ns)
        raise ConfigInvalid(
            f"the ledger was written until {until}, {ahead_s} s after this machine's clock",
            hint="Set the clock. If it is right, another one was wrong: until then all is dated "
            f"{until}, and no quota's hour, day or month ends. Restore a copy from before.",
        )

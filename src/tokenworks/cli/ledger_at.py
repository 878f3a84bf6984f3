"""Opening the ledger of a home for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from tokenworks.core.errors import LedgerUnavailable
from tokenworks.ledger.store_port import LedgerStore
from tokenworks.live.home import Home


@contextmanager
def ledger_at(home: Home, *, create: bool = False) -> Iterator[LedgerStore]:
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

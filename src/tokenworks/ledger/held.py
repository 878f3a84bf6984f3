"""An open reservation with the windows that hold it."""

from __future__ import annotations

import msgspec

from tokenworks.ledger.entries import Reserved
from tokenworks.ledger.quotas import Window


class Held(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An open reservation and the quota windows that hold it; neither is ever changed.

    Many are remembered. The collector of cycles, to which everything else would stop meanwhile,
    need not look at them: they are in none.
    """

    entry: Reserved
    windows: tuple[Window, ...]

"""Who came with a key that opens nothing: counted, and said in the log, a line a minute at most.

The audit log is for what somebody did or was not let do; a stranger is nobody, and could fill the
disk with records that nobody may remove.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import Final

from tokenworks.core.errors import Forbidden, TokenworksError, Unauthorized
from tokenworks.core.scopes import Network
from tokenworks.gateway.connection import Exchange
from tokenworks.gateway.doorkeeper import caller_address
from tokenworks.gateway.http_io import secret_of

LINE_S_MIN: Final = 60.0
"""Between two lines."""

ADDRESSES_MAX: Final = 1_024
"""That are told apart until the next line."""
SHOWN_MAX: Final = 5
"""Addresses that a line names."""

_log: Final = logging.getLogger("tokenworks.gateway")


class Strangers:
    """Remembers whom the door has turned away since the last line.

    Args:
        trusted_proxies: see ``Doorkeeper``.
    """

    def __init__(self, trusted_proxies: tuple[Network, ...]) -> None:
        self._trusted = trusted_proxies
        self._unknown = self._elsewhere = 0
        self._by_address: collections.Counter[str] = collections.Counter()

    def note(self, exchange: Exchange, error: TokenworksError) -> None:
        """Count a refusal, if it is of a key; who shows none is a mistake and no attempt."""
        head = exchange.head
        elsewhere = isinstance(error, Forbidden) and error.at_door
        if not (elsewhere or isinstance(error, Unauthorized)) or head is None:
            return
        if secret_of(head) is None:
            return
        if not self._unknown + self._elsewhere:
            asyncio.get_running_loop().call_later(LINE_S_MIN, self._say)
        self._elsewhere += elsewhere
        self._unknown += not elsewhere
        address = str(caller_address(exchange.peer, head.headers(), self._trusted))
        if address in self._by_address or len(self._by_address) < ADDRESSES_MAX:
            self._by_address[address] += 1

    def _say(self) -> None:
        most = ", ".join(
            f"{address} ({count})" for address, count in self._by_address.most_common(SHOWN_MAX)
        )
        _log.warning(
            "turned away in %g s: %d requests with an unknown, revoked or expired key, %d with one "
            "that may not be used for this or from there; most from %s",
            LINE_S_MIN,
            self._unknown,
            self._elsewhere,
            most,
        )
        self._unknown = self._elsewhere = 0
        self._by_address.clear()

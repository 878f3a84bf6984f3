"""What a live driver is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.catalogue.price_book import PriceBooks
from tokenworks.core.ids import PoolID
from tokenworks.core.ports import Clock
from tokenworks.core.slo import Tier
from tokenworks.dispatch.commands import Scale
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Limits, PolicySettings, PoolScale
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.store_port import LedgerStore
from tokenworks.live.journal import JournalWriter
from tokenworks.live.quota_leases import QuotaLeases

QUEUE_LEN_MAX: Final = 512
LIMITS: Final = Limits(queue_len_max=dict.fromkeys(Tier, QUEUE_LEN_MAX), retry_percent=20)


class DriverParts(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver is made of.

    Attributes:
        clock: time.
        dispatcher: the brain; nobody else may call it.
        ledger: recovered from ``store``.
        store: where entries are kept.
        books: prices and promises, by the day they hold from.
        pools: the factory's pools by name.
        journal: where events are written.
        leases: how this process shares the ledger's limits with others; none if it is the only one.
        policy: who decides; None for the dispatcher's own.
        limits: what the dispatcher may keep.
        ledger_clock: of dates, costs and reservations; ``clock`` if it is None.
        speedup: how many times faster than the event loop's clock ``clock`` runs.
        on_scale: told what pools want; it may start and stop workers, and may not raise.
        scaling: pools whose number of workers may change; None for what ``pools`` say of that.
    """

    clock: Clock
    dispatcher: Dispatcher
    ledger: Ledger
    store: LedgerStore
    books: PriceBooks
    pools: dict[PoolID, PoolConfig]
    journal: JournalWriter
    leases: QuotaLeases | None = None
    policy: PolicySettings | None = None
    limits: Limits = LIMITS
    ledger_clock: Clock | None = None
    speedup: float = 1.0
    on_scale: Callable[[Scale], None] | None = None
    scaling: tuple[PoolScale, ...] | None = None

"""What the rooms ask of each other, as protocols; each docstring is a contract."""

from __future__ import annotations

from typing import Protocol

from tokenworks.core.ids import ModelName
from tokenworks.core.orders import KeyView, Order, Outcome, Receipt
from tokenworks.core.slo import Tier


class Clock(Protocol):
    """Time. Only edges hold one."""

    def now_ns(self) -> int:
        """Nanoseconds on a clock that never goes back."""
        ...

    def unix_ns(self) -> int:
        """Nanoseconds since 1970, UTC, for records."""
        ...


class Delivery(Protocol):
    """One answer while it is being made. Exactly one ``settle`` ends it."""

    async def read(self) -> bytes:
        """The next bytes of the worker's event stream as they came; ``b""`` at its end.

        Raises:
            WorkerFailed: the worker broke off; what was read before it stands.
        """
        ...

    def abort(self) -> None:
        """Stop the worker now. What was made until now will still be settled."""
        ...

    async def settle(self, outcome: Outcome) -> Receipt:
        """Bill the answer; returns when the entry is durable.

        Raises:
            LedgerUnavailable: the entry could not be written; nothing was billed.
        """
        ...


class Desk(Protocol):
    """The gateway's only way into the factory."""

    def key_of(self, secret: bytes) -> KeyView | None:
        """The key that this secret opens, or None."""
        ...

    def models(self) -> tuple[ModelName, ...]:
        """The models that some pool serves and that have a price."""
        ...

    def output_tokens_default(self, model: ModelName, tier: Tier) -> int:
        """The output limit of a request that names none, at this tier."""
        ...

    def healthy(self) -> tuple[bool, str]:
        """Whether requests can be served, and a word why not."""
        ...

    async def open(self, order: Order) -> Delivery:
        """Reserve, dispatch and start a request; returns when a worker has begun to answer.

        Cancelling this call withdraws the request: it leaves its queue, its worker is stopped and
        its reservation is void.

        Raises:
            ModelNotFound, QuotaExceeded, CapacityExceeded, WorkerFailed, WorkerUnavailable,
            InvalidRequest: the worker's own refusal, in its words.
        """
        ...

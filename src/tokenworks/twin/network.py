"""The modelled network: how long a message between dispatcher and worker takes, if it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

Kind = Literal["send", "abort", "started", "finished", "failed", "blocks"]
"""What a message is: the first two go to a worker, the others come from one."""
KINDS: Final[tuple[Kind, ...]] = ("send", "abort", "started", "finished", "failed", "blocks")

Meddle = Callable[[int, Kind, int, int], tuple[int, ...]]
"""What a fault makes of one message.

Called with the time, the message's kind, the index of the worker and the delay that the message
would have; the answer is a delay for each copy that is delivered: none loses it, two repeat it.
"""


class Network:
    """Delays, constant ones unless somebody meddles.

    Args:
        to_worker_ns: from dispatcher to worker.
        to_dispatcher_ns: from worker to dispatcher.
        meddle: decides on each message; None for a network that only delays.
    """

    __slots__ = ("meddle", "to_dispatcher_ns", "to_worker_ns")

    def __init__(
        self, *, to_worker_ns: int = 0, to_dispatcher_ns: int = 0, meddle: Meddle | None = None
    ) -> None:
        assert to_worker_ns >= 0, to_worker_ns
        assert to_dispatcher_ns >= 0, to_dispatcher_ns
        self.to_worker_ns = to_worker_ns
        self.to_dispatcher_ns = to_dispatcher_ns
        self.meddle = meddle

    def is_direct(self) -> bool:
        """Whether every message is there at once."""
        return self.meddle is None and self.to_worker_ns == self.to_dispatcher_ns == 0

    def delays_ns(self, now_ns: int, kind: Kind, worker: int) -> tuple[int, ...]:
        """A delay for each copy of a message that will be delivered."""
        to_worker = kind in {"send", "abort"}
        delay_ns = self.to_worker_ns if to_worker else self.to_dispatcher_ns
        if self.meddle is None:
            return (delay_ns,)
        return self.meddle(now_ns, kind, worker, delay_ns)

"""What lies between the dispatcher and its workers in the modelled world: messages that take time.

By default nothing is late. A fault plan may delay, lose or repeat what a worker says; the driver
asks it for each message.
"""

from __future__ import annotations

from typing import Protocol

from tokenworks.dispatch.events import Event


class Network(Protocol):
    """Decides when a worker's message comes, and how often."""

    def deliveries(self, now_ns: int, event: Event) -> tuple[int, ...]:
        """The times at which a message is told to the dispatcher; none if it is lost.

        Args:
            now_ns: when the worker says it.
            event: what it says.
        """
        ...

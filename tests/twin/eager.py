"""Rules that do at once what they may do at all, so that swarms meet what that can lead to."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tokenworks.core.ids import RequestID
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.economics import Economics
from tokenworks.dispatch.events import Event
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.kv_tiers import KVTiers
from tokenworks.dispatch.pickers import permitted
from tokenworks.dispatch.policy import Choice
from tokenworks.dispatch.preemption import Displacement, victims_on
from tokenworks.dispatch.promises import Promises
from tokenworks.dispatch.requests import Request
from tokenworks.twin.driver import Hooks


def displace(
    policy: object,
    fleet: Fleet,
    request: Request,
    now_ns: int,
    requests: Mapping[RequestID, Request],
) -> Displacement | None:
    """Whoever can make room on any worker does."""
    for worker in fleet.each(permitted(fleet, request, fleet.preempting)):
        victims = victims_on(worker, request.rank, requests)
        if victims:
            choice = Choice(worker, "best_value", 0, request.rank, 1)
            return Displacement(choice, victims, 1, 0)
    return None


def plant(patch: pytest.MonkeyPatch) -> None:
    """Make two policies displace whomever they can, and all KV blocks go down that may."""
    patch.setattr(KVTiers, "_anew_ns", lambda self, worker, now_ns: 0)
    patch.setattr(Economics, "displace", displace)
    patch.setattr(Promises, "displace", displace, raising=False)


class Watch(Hooks):
    """Sees each command before it is carried out."""

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        for command in commands:
            self.saw(command)

    def saw(self, command: Command) -> None:
        """One command."""

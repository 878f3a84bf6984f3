"""Bugs that tests plant into production code, to see that the swarm finds them."""

from __future__ import annotations

from typing import Any

import pytest

from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.states import State
from tokenworks.dispatch.waiting import Request
from tokenworks.ledger.ledger import Held, Ledger
from tokenworks.twin.kv_cache import KVCache
from tokenworks.twin.workers import Worker


def double_settle(patch: pytest.MonkeyPatch) -> None:
    """The ledger does not look whether a reservation was settled before."""

    def settle(self: Ledger, held: Held, earlier: Any, entry: Any) -> Any:
        self._holds.setdefault((entry.request, entry.attempt), held)
        return self._close(held, entry)

    patch.setattr(Ledger, "_settle", settle)


def lost_request(patch: pytest.MonkeyPatch) -> None:
    """Of those that a lost worker had, one is forgotten if it is to be sent a third time."""
    broken_off = Dispatcher._broken_off

    def forgets(
        self: Dispatcher, fleet: Fleet, request: Request, commands: list[Command], *, started: bool
    ) -> None:
        broken_off(self, fleet, request, commands, started=started)
        if request.state is State.QUEUED and request.attempt == 2:
            self._unqueue(fleet, request)
            del self._requests[request.request]

    patch.setattr(Dispatcher, "_broken_off", forgets)


def leaked_kv_block(patch: pytest.MonkeyPatch) -> None:
    """A sequence that is preempted keeps one of its blocks."""
    make_room, release = Worker._make_room, KVCache.release
    preempting: list[bool] = []

    def makes_room(self: Worker) -> None:
        preempting.append(True)
        make_room(self)
        preempting.pop()

    def leaks(self: KVCache, last: Any, counted: int) -> None:
        release(self, last, counted - 1 if preempting and counted else counted)

    patch.setattr(Worker, "_make_room", makes_room)
    patch.setattr(KVCache, "release", leaks)


BUGS = (double_settle, lost_request, leaked_kv_block)

"""Bugs that tests plant into production code, to see that the swarm finds them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tokenworks.dispatch import policies
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.states import State, Step, after
from tokenworks.ledger import ledger
from tokenworks.ledger.accounts import Accounts
from tokenworks.ledger.held import Held
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import KeyRecord
from tokenworks.ledger.quotas import QuotaTree
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.driver import Driver
from tokenworks.twin.kv_cache import KVCache
from tokenworks.twin.kv_feed import Feed
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

# One for each invariant.


def needs_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A fleet takes every worker for one that has what is needed."""
    patch.setattr(Fleet, "serving", lambda self, needs: self.up)


def late_deadline(patch: pytest.MonkeyPatch) -> None:
    """The dispatcher lets requests wait ten seconds longer."""
    deadline_ns = Dispatcher._deadline_ns
    patch.setattr(
        Dispatcher, "_deadline_ns", lambda self, request: deadline_ns(self, request) + 10**10
    )


def no_stop(patch: pytest.MonkeyPatch) -> None:
    """Workers that are taken for dead are not told to drop what they have."""
    patch.setattr(Driver, "_stop", lambda self, sequence: None)


def one_token_more(patch: pytest.MonkeyPatch) -> None:
    """More tokens are metered than were made."""
    made = Driver.made
    patch.setattr(Driver, "made", lambda self, sequence: made(self, sequence) + 1)


def one_token_less(patch: pytest.MonkeyPatch) -> None:
    """An engine ends some answers too soon."""
    decode = Worker._decode

    def short(self: Worker, sequence: Any) -> None:
        if sequence.output_tokens == 17 and sequence.made < 9:
            sequence.output_tokens = 16
        decode(self, sequence)

    patch.setattr(Worker, "_decode", short)


def no_void(patch: pytest.MonkeyPatch) -> None:
    """What was held for requests that are turned away is not given back."""
    patch.setattr(Bookkeeper, "_void", lambda self, request, reason: None)


def dearer(patch: pytest.MonkeyPatch) -> None:
    """Answers are billed at the tier that was asked for."""
    patch.setattr(ledger, "delivered_tier", lambda asked, promises, measured: asked)


def one_sided(patch: pytest.MonkeyPatch) -> None:
    """A transfer credits less than it debits."""
    add = Accounts._add

    def adds(self: Accounts, account: Any, debit: int, credit: int) -> None:
        add(self, account, debit, credit - (credit > 1_000))

    patch.setattr(Accounts, "_add", adds)


def wrong_sum(patch: pytest.MonkeyPatch) -> None:
    """Credits are not what the entry's own figures give."""
    credit = ledger.credit_nanodollars
    patch.setattr(ledger, "credit_nanodollars", lambda *numbers: credit(*numbers) + 1)


def soft_quota(patch: pytest.MonkeyPatch) -> None:
    """Every limit has room for 50 more than it allows."""
    hold = QuotaTree.hold

    def softly(self: QuotaTree, *asked: Any) -> Any:
        for window in self.windows():
            window.allowed += 50
        held = hold(self, *asked)
        for window in self.windows():
            window.allowed -= 50
        return held

    patch.setattr(QuotaTree, "hold", softly)


def unheard_gap(patch: pytest.MonkeyPatch) -> None:
    """A gap in what engines publish is not noticed."""
    patch.setattr(Feed, "_forget", lambda self: [])


def names_for_ever(patch: pytest.MonkeyPatch) -> None:
    """The names of ended requests are never forgotten."""

    def ends(self: Dispatcher, request: Request, step: Step) -> None:
        request.state = after(request.state, step)
        del self._requests[request.request]
        self._ended.add(request.request, 1 << 62)

    patch.setattr(Dispatcher, "_end", ends)


def kept_context(patch: pytest.MonkeyPatch) -> None:
    """The dispatcher counts a token too little off when a request leaves its worker."""
    released = Dispatcher._release

    def keeps(self: Dispatcher, fleet: Fleet, request: Request) -> Any:
        worker = released(self, fleet, request)
        worker.context_tokens += 1
        return worker

    patch.setattr(Dispatcher, "_release", keeps)


def no_timer(patch: pytest.MonkeyPatch) -> None:
    """A restored dispatcher does not know that a tick is coming."""
    restore = Dispatcher.restore

    def forgets(data: bytes) -> Dispatcher:
        restored = restore(data)
        restored._timer_ns = None
        return restored

    patch.setattr(Dispatcher, "restore", forgets)


def own_dice(patch: pytest.MonkeyPatch) -> None:
    """A policy throws dice that are not in its memory."""
    draws = iter(range(10**9))

    def drawn(_: Any, fleet: Fleet, candidates: int) -> Any:
        workers = list(fleet.each(candidates))
        return workers[next(draws) % len(workers)]

    patch.setattr(policies, "_drawn", drawn)


def context_drifts(patch: pytest.MonkeyPatch) -> None:
    """An engine counts a token of context too much for each that begins to decode."""
    decode = Worker._decode

    def drifts(self: Worker, sequence: Any) -> None:
        decode(self, sequence)
        self._context += 1

    patch.setattr(Worker, "_decode", drifts)


def sent_to_the_lost(patch: pytest.MonkeyPatch) -> None:
    """The dispatcher goes on sending to a worker that is down."""
    patch.setattr(Dispatcher, "_worker_down", lambda self, event, commands: None)


def full_workers_named(patch: pytest.MonkeyPatch) -> None:
    """Policies name workers that have no slot free, and are overruled."""
    patch.setattr(policies, "others_first", lambda fleet, request, candidates: fleet.up)


def revoked_keys_open(patch: pytest.MonkeyPatch) -> None:
    """The ledger does not hear that a key is revoked."""
    set_key = Ledger.set_key

    def deaf(self: Ledger, record: KeyRecord) -> None:
        set_key(self, replace(record, revoked_unix_ns=None))

    patch.setattr(Ledger, "set_key", deaf)


def old_prices(patch: pytest.MonkeyPatch) -> None:
    """What comes after a new price book is billed by the first one."""
    hold = Bookkeeper._hold
    patch.setattr(
        Bookkeeper, "_hold", lambda self, order, book: hold(self, order, self._scenario.book)
    )


PLANTED = {
    double_settle: "holds_counted",
    lost_request: "drains",
    leaked_kv_block: "kv_freed",
    needs_forgotten: "needs_met",
    late_deadline: "wait_bounded",
    no_stop: "one_attempt",
    one_token_more: "tokens_metered",
    one_token_less: "tokens_delivered",
    no_void: "reservation_closed",
    dearer: "billed_as_judged",
    one_sided: "debits_are_credits",
    wrong_sum: "entries_rebuild",
    soft_quota: "quota_kept",
    unheard_gap: "blocks_believed",
    names_for_ever: "memory_bounded",
    kept_context: "memory_drained",
    no_timer: "restored_continues",
    own_dice: "journal_replays",
    context_drifts: "kv_counted",
    sent_to_the_lost: "worker_is_up",
    full_workers_named: "policy_right",
    revoked_keys_open: "key_honoured",
    old_prices: "price_kept",
}
"""Each with an invariant that it breaks."""

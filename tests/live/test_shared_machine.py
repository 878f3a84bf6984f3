"""Random histories of processes that share limits: nothing overspent, nothing lost, nothing idle.

CI makes 1,500 steps, the same ones each time. ``make soak`` makes a hundredth of what
``TOKENWORKS_LEDGER_STEPS`` says, at random.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from tests.ledger import ledger_samples
from tests.ledger.ledger_samples import BOOK, WORK, key_record, order, outcome
from tests.ledger.state_machines import run_steps
from tests.live import lease_world
from tests.live.fault_sweep import BOOKS
from tests.live.lease_world import FOLDER, TTL_NS, Clock, limit_named
from tokenworks.core.errors import LedgerUnavailable
from tokenworks.core.ids import LimitID
from tokenworks.ledger.audit import Audit
from tokenworks.ledger.entries import Posted, Reserved, Voided
from tokenworks.ledger.quota_records import Refused
from tokenworks.ledger.store_port import join
from tokenworks.live import quota_leases
from tokenworks.live.quota_leases import DEAD_AFTER_NS, QuotaLeases
from tokenworks.live.store import sqlite_store

STEPS_IN_CI = 1_500
ASKED_STEPS = os.environ.get("TOKENWORKS_LEDGER_STEPS")
STEPS = STEPS_IN_CI if ASKED_STEPS is None else int(ASKED_STEPS) // 100
PROCESSES = 3
LIMITS = ("tenant", "key")
SIZES = st.sampled_from(lease_world.SIZES)
AMOUNTS = st.sampled_from(lease_world.AMOUNTS)


class Process:
    """One that lives: its ledger, its leases, and what is open in it."""

    def __init__(self, path: Path, name: str, clock: Clock) -> None:
        self.name = name
        self.store = sqlite_store(path, name)
        self.ledger = join(self.store, clock.unix_ns())
        self.leases = QuotaLeases(self.ledger, self.store, clock)

    def take_up_limits(self, unix_ns: int) -> None:
        self.ledger.set_limits(self.store.limit_states(unix_ns))


class SharedMachine(RuleBasedStateMachine):
    """Processes on one file, and what they hold and have used by plain sums."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=FOLDER, prefix="tokenworks-"))
        self.path, self.clock = self.folder / "ledger.sqlite", Clock()
        self.keeper = sqlite_store(self.path, "keeper")
        self.keeper.put_key(key_record())
        self.keeper.put_price_book(BOOK.price_id, BOOK.text, 1)
        self.count = 0
        self.amounts: dict[str, int] = {}
        self.used, self.held = 0, dict[tuple[str, int], int]()
        self.living: list[Process] = []
        self.dead: list[Process] = []
        self.loop = asyncio.new_event_loop()
        for name, amount in zip(LIMITS, (1_000, 2_000), strict=True):
            self.put(name, amount)
        for _ in range(PROCESSES):
            self.begin()

    @property
    def most(self) -> int:
        """What all limits let all processes use."""
        return min(self.amounts.values(), default=2**62)

    def run(self, call: Any) -> Any:
        """A call to its end; what it gives to a thread is done at once, as nobody else calls."""
        return self.loop.run_until_complete(call)

    def put(self, name: str, amount: int) -> None:
        self.amounts[name] = amount
        self.keeper.put_limit(limit_named(name, amount))

    def begin(self) -> None:
        self.count += 1
        self.living.append(Process(self.path, f"p{self.count}", self.clock))

    def one(self, data: st.DataObject) -> Process:
        return self.living[data.draw(st.integers(0, len(self.living) - 1))]

    # Requests.

    @rule(data=st.data(), tokens=SIZES)
    def reserve(self, data: st.DataObject, tokens: int) -> None:
        self.count += 1
        self.ask(self.one(data), f"r{self.count}", tokens)

    def ask(self, at: Process, name: str, tokens: int) -> Reserved | Refused:
        asked = order(name, input_max=0, output_max=tokens)
        result: Reserved | Refused = self.run(at.leases.reserve(asked, BOOK, TTL_NS))
        if isinstance(result, Reserved):
            at.store.append_now([result])
            self.held[name, 0] = tokens
            # Whatever was set since: a request begins only within all limits, over all processes.
            assert self.used + sum(self.held.values()) <= self.most
        return result

    @precondition(lambda self: self.held)
    @rule(data=st.data(), share=st.sampled_from([0, 1, 50, 100]), fails=st.booleans())
    def settle(self, data: st.DataObject, share: int, *, fails: bool) -> None:
        """By an answer; one that fails bills nothing. Said twice, it counts once."""
        at = data.draw(st.sampled_from([each for each in self.living if each.ledger.open_holds()]))
        hold = data.draw(st.sampled_from(at.ledger.open_holds()))
        self.answer(at, hold, share, fails=fails)

    def answer(self, at: Process, hold: Reserved, share: int, *, fails: bool = False) -> None:
        tokens = hold.output_tokens_max * share // 100
        entry = at.ledger.post(
            self.clock.unix_ns(),
            hold.request,
            hold.attempt,
            outcome=outcome(0, 0, tokens, ending="failed" if fails else "done"),
            work=WORK,
        )
        assert isinstance(entry, Posted)
        at.store.append_now([entry])
        at.store.append_now([entry])
        del self.held[hold.request, hold.attempt]
        self.used += 0 if fails else tokens

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from([each for each in self.living if each.ledger.open_holds()]))
        hold = data.draw(st.sampled_from(at.ledger.open_holds()))
        self.give_up(at, hold)

    def give_up(self, at: Process, hold: Reserved) -> None:
        entry = at.ledger.void(self.clock.unix_ns(), hold.request, hold.attempt, reason="withdrawn")
        assert isinstance(entry, Voided)
        at.store.append_now([entry])
        del self.held[hold.request, hold.attempt]

    # Leases.

    @rule(data=st.data())
    def tend(self, data: st.DataObject) -> None:
        self.round(self.one(data))

    def round(self, at: Process) -> None:
        for entry in self.run(at.leases.tend()):
            at.store.append_now([entry])
            del self.held[entry.request, entry.attempt]

    @rule(
        data=st.data(), call=st.sampled_from(["wanted", "settings_version", "cover", "give_back"])
    )
    def tend_in_vain(self, data: st.DataObject, call: str) -> None:
        """The database fails for a moment."""
        at = self.one(data)

        def broken(*_: object) -> None:
            raise LedgerUnavailable("a blip of the database")

        setattr(at.store, call, broken)
        with contextlib.suppress(LedgerUnavailable):
            self.round(at)
        delattr(at.store, call)

    @rule(data=st.data(), name=st.sampled_from(LIMITS), amount=st.none() | AMOUNTS)
    def change_a_limit(self, data: st.DataObject, name: str, amount: int | None) -> None:
        """Lift it or set it; everybody takes it up, and one round of each later it binds all."""
        if amount is None:
            self.keeper.remove_limit(LimitID(name))
            self.amounts.pop(name, None)
        else:
            self.put(name, amount)
        self.take_up(data)

    def take_up(self, data: st.DataObject) -> None:
        for at in data.draw(st.permutations(self.living)):
            at.take_up_limits(self.clock.unix_ns())
            self.round(at)

    @rule(
        data=st.data(),
        name=st.sampled_from(LIMITS),
        amount=AMOUNTS,
        tokens=SIZES,
        share=st.sampled_from([0, 50]),
        lift=st.booleans(),
    )
    def change_a_limit_while_a_request_runs(
        self, data: st.DataObject, name: str, amount: int, tokens: int, share: int, *, lift: bool
    ) -> None:
        """And ask again where it ran, and elsewhere."""
        if lift:
            self.change_a_limit(data, name, None)
        at = self.one(data)
        self.count += 1
        held = self.ask(at, f"r{self.count}", tokens)
        self.change_a_limit(data, name, amount)
        self.ask(self.one(data), f"meanwhile{self.count}", tokens)
        if isinstance(held, Reserved):
            self.answer(at, held, share)
        for each in (at, self.one(data)):
            self.count += 1
            self.ask(each, f"r{self.count}", tokens)

    @rule(
        data=st.data(),
        name=st.sampled_from(LIMITS),
        amount=AMOUNTS,
        tokens=SIZES,
        share=st.sampled_from([0, 50, 100]),
        dies=st.booleans(),
    )
    def answer_before_a_limit_is_taken_up(
        self, data: st.DataObject, name: str, amount: int, tokens: int, share: int, *, dies: bool
    ) -> None:
        """What is stored then is used all the same, also when who stored it dies."""
        self.change_a_limit(data, name, None)
        at = self.one(data)
        self.count += 1
        held = self.ask(at, f"r{self.count}", tokens)
        self.put(name, amount)
        if isinstance(held, Reserved):
            self.answer(at, held, share)
        if dies:
            self.end(at)
        self.take_up(data)
        for each in (self.one(data), self.one(data)):
            self.count += 1
            self.ask(each, f"r{self.count}", tokens)

    # Processes.

    @precondition(lambda self: len(self.living) > 1)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """It says nothing more; what it holds ends when it is taken over."""
        self.end(self.one(data))

    def end(self, at: Process) -> None:
        self.living.remove(at)
        self.dead.append(at)
        for _ in range(3):
            self.clock.ns += DEAD_AFTER_NS // 2
            for each in self.living:
                self.round(each)
        assert not any(request in self.held for request in dict.fromkeys(places(at)))
        self.begin()

    # What always holds.

    @invariant()
    def adds_up(self) -> None:
        SharedMachine.steps += 1
        for each in self.living:
            each.ledger.check()
        held = {
            place: hold.output_tokens_max
            for each in self.living
            for place, hold in zip(places(each), each.ledger.open_holds(), strict=True)
        }
        assert held == self.held

    def teardown(self) -> None:
        try:
            self.all_that_is_left_can_be_used()
            audit = Audit(BOOKS)
            list(audit.read(self.keeper.blocks()))
            since = self.keeper.since(audit.progress.blocks)
            assert audit.finish(since.sums, since.numbers, since.holds) == []
            assert sum(row.tokens for row in since.sums if row.kind.what == "done") == self.used
        finally:
            for each in (*self.living, *self.dead):
                with contextlib.suppress(LedgerUnavailable):
                    each.store.close()
            self.keeper.close()
            self.loop.close()
            shutil.rmtree(self.folder)

    def all_that_is_left_can_be_used(self) -> None:
        for each in self.living:
            for hold in each.ledger.open_holds():
                self.give_up(each, hold)
        left = self.most - self.used
        if left <= 0 or not self.amounts:
            return
        # Who lacks something says so, and in their next round the others give it back.
        self.ask(self.living[0], "wants", left)
        for each in self.living:
            self.round(each)
        if ("wants", 0) not in self.held:
            assert isinstance(self.ask(self.living[0], "wants", left), Reserved)


async def at_once(call: Callable[..., Any], *values: Any) -> Any:
    """In the place of ``asyncio.to_thread``."""
    return call(*values)


def places(at: Process) -> list[tuple[str, int]]:
    return [(hold.request, hold.attempt) for hold in at.ledger.open_holds()]


@pytest.mark.heavy
def test_processes_that_share_limits_use_all_of_them_and_no_more(monkeypatch: Any) -> None:
    monkeypatch.setattr(quota_leases, "RETRY_NS", 0)
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    assert ledger_samples.BOOK is BOOK
    SharedMachine.steps = 0
    run_steps(SharedMachine, STEPS, same=STEPS == STEPS_IN_CI)
    assert SharedMachine.steps >= STEPS

"""Random histories: the ledger agrees with a naive one, whatever fails, repeats or restarts.

CI makes 10,000 steps, the same ones each time. ``make soak`` makes as many as
``TOKENWORKS_LEDGER_STEPS`` says, at random::

    TOKENWORKS_LEDGER_STEPS=1000000 python -m pytest -q tests/ledger/test_ledger_machine.py
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from tests.ledger.ledger_samples import (
    DAY_NS,
    HOUR_NS,
    NOW,
    POOL,
    TTL_NS,
    WORK,
    book,
    key_record,
    order,
    outcome,
)
from tests.ledger.memory_store import Memory, MemoryStore
from tests.ledger.model_ledger import CREDIT_PPM, RULES, ModelLedger, Quota, window
from tests.ledger.state_machines import run_steps
from tokenworks.core.ids import LimitID
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.accounts import Accounts
from tokenworks.ledger.entries import Entry, Posted, Reserved, Voided
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.grants import new_limit
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import Limit, LimitState, NodeID, Refused
from tokenworks.ledger.quotas import window_end, window_start
from tokenworks.ledger.rollup import balances
from tokenworks.ledger.store_port import recover

STEPS_IN_CI = 10_000
STEPS = int(os.environ.get("TOKENWORKS_LEDGER_STEPS", STEPS_IN_CI))

BOOK = book(credit_ppm=CREDIT_PPM, more=RULES)
PATHS: dict[str, dict[str, str | None]] = {
    "a": {"tenant": "acme", "team": "red", "engineer": "ada", "key": "a"},
    "b": {"tenant": "acme", "team": "red", "engineer": "bob", "key": "b"},
    "c": {"tenant": "acme", "team": None, "engineer": None, "key": "c"},
    "d": {"tenant": "else", "team": "red", "engineer": "ada", "key": "d"},
}
QUOTAS = {
    "tenant:acme#tokens-month": Quota(
        ("tenant", "acme"), "tokens", "month", 400, carry_over_max=1_500
    ),
    "tenant:acme#usd-day": Quota(("tenant", "acme"), "nanodollars", "day", 40_000_000),
    "team:acme/red#tokens-hour": Quota(("team", "acme", "red"), "tokens", "hour", 250),
    "engineer:acme/ada#tokens-month-premium": Quota(
        ("engineer", "acme", "ada"), "tokens", "month", 300, tier="premium"
    ),
    "engineer:acme/ada#usd-lifetime": Quota(
        ("engineer", "acme", "ada"), "nanodollars", "lifetime", 60_000_000
    ),
    "key:c#tokens-lifetime": Quota(("key", "c"), "tokens", "lifetime", 700),
    "key:a#usd-month-high": Quota(
        ("key", "a"), "nanodollars", "month", 1_500_000, tier="high", carry_over_max=6_000_000
    ),
    "run:acme/1#tokens-lifetime": Quota(("run", "acme", "1"), "tokens", "lifetime", 150),
    "tenant:else#usd-hour": Quota(("tenant", "else"), "nanodollars", "hour", 5_000_000),
}
"""By the names that their limits get."""


def limit_of(quota: Quota, unix_ns: int, before: Iterable[LimitState] = ()) -> Limit:
    level, *names = quota.node
    return new_limit(
        NodeID(f"{level}:{'/'.join(names)}"),
        quota.unit,
        quota.period,
        quota.amount,
        unix_ns=unix_ns,
        tier=None if quota.tier is None else Tier(quota.tier),
        carry_over_max=quota.carry_over_max,
        before=before,
    )


def named(hold: Reserved | Voided) -> str:
    """What the naive one calls a hold: the second try of a request is another one."""
    return hold.request if hold.attempt == 0 else f"{hold.request}/{hold.attempt}"


class LedgerMachine(RuleBasedStateMachine):
    """The real ledger with its store, the naive one, and what is not stored yet."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.store = MemoryStore("0", self.memory)
        self.records = [
            key_record(key, tenant=path["tenant"], team=path["team"], engineer=path["engineer"])
            for key, path in PATHS.items()
        ]
        for record in self.records:
            self.store.put_key(record)
        self.unix_ns, self.now_ns = NOW, 0
        self.model = ModelLedger()
        for name, quota in QUOTAS.items():
            self.model.put(name, quota, NOW)
            self.store.put_limit(limit_of(quota, NOW))
        self.ledger = recover(self.store, self.unix_ns)
        self.waiting: list[Entry] = []
        self.stored_model = self.model.copy()
        """What the naive ledger would say if all that is waiting were lost."""
        self.count = self.attempt = self.restarts = self.seen = 0
        LedgerMachine.steps -= 1  # what is compared before the first step is no step

    # Requests.

    @rule(
        key=st.sampled_from(sorted(PATHS)),
        tier=st.sampled_from(list(Tier)),
        read=st.integers(0, 99),
        made=st.integers(0, 99),
        run=st.sampled_from([None, "1", "2"]),
        batch=st.booleans(),
        again=st.booleans(),
    )
    def reserve(
        self,
        key: str,
        tier: Tier,
        read: int,
        made: int,
        run: str | None,
        *,
        batch: bool,
        again: bool = False,
    ) -> None:
        """A request's first try, or one more of the request before, which may still run."""
        self.attempt = self.attempt + 1 if again and self.count else 0
        self.count += not self.attempt
        request, attempt = f"r{self.count}", self.attempt
        name = request if attempt == 0 else f"{request}/{attempt}"
        path = PATHS[key] | {"run": run}
        wanted = self.model.wanted(self.unix_ns, path, tier.value, read, made, batch=batch)
        asked = order(
            request, key=key, tier=tier, input_max=read, output_max=made, run=run, batch=batch
        )
        times = (self.now_ns, self.unix_ns)
        result = self.ledger.reserve(*times, asked, BOOK, TTL_NS, attempt)
        short = self.model.short(wanted, self.unix_ns)
        if isinstance(result, Refused):
            said = result.quota
            assert said is not None, result
            assert (said.allowed, said.used, said.held, said.asked) == short[said.limit]
            return
        assert not short, (short, result)
        assert (result.hold_tokens, result.hold_nanodollars) == (wanted.tokens, wanted.money)
        self.model.holds[name] = wanted
        self.waiting.append(result)
        assert self.ledger.reserve(*times, asked, BOOK, TTL_NS, attempt) is result

    @precondition(lambda self: self.ledger.open_holds())
    @rule(
        data=st.data(),
        ending=st.sampled_from(["done", "done", "disconnected", "failed"]),
        ttft_ns=st.none() | st.integers(0, 9 * 10**9),
        decode_ns=st.integers(0, 3 * 10**9),
    )
    def post(self, data: st.DataObject, ending: str, ttft_ns: int | None, decode_ns: int) -> None:
        hold = data.draw(st.sampled_from(self.ledger.open_holds()))
        read = data.draw(st.integers(0, hold.input_tokens_max))
        cached = data.draw(st.integers(0, read))
        # A worker may make more than it was allowed to.
        made = data.draw(st.integers(0, hold.output_tokens_max + 3))
        speed = Measured(ttft_ns=ttft_ns, decode_ns=decode_ns, output_tokens=50)
        answer = outcome(read - cached, cached, made, ending=ending, measured=speed)

        def again(answer: Any) -> Posted | Refused:
            return self.ledger.post(
                self.unix_ns, hold.request, hold.attempt, outcome=answer, work=WORK
            )

        result = again(answer)
        if hold.owner != self.ledger.owner:
            assert isinstance(result, Refused)
            assert result.code == "not_reserved"
            return
        assert isinstance(result, Posted), result
        billed = self.model.settle(
            named(hold), ending, (read - cached, cached, made), (ttft_ns, decode_ns, 50)
        )
        assert billed == {
            "tier": result.tier_delivered.value,
            "charged": result.charged_nanodollars,
            "credited": result.credited_nanodollars,
            "ads": result.ad_income_nanodollars,
        }
        if made <= hold.output_tokens_max:
            assert result.charged_nanodollars <= hold.hold_nanodollars
        self.waiting.append(result)
        assert again(answer) is result
        assert isinstance(again(outcome(read - cached, cached, made + 1, ending=ending)), Refused)
        late = self.ledger.void(0, hold.request, hold.attempt, reason="failed")
        assert isinstance(late, Refused)

    @precondition(lambda self: self.ledger.open_holds())
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.ledger.open_holds()))
        result = self.ledger.void(self.unix_ns, hold.request, hold.attempt, reason="withdrawn")
        assert isinstance(result, Voided)
        self.voided([result])

    def voided(self, entries: list[Voided]) -> None:
        for entry in entries:
            self.model.settle(named(entry), None)
        self.waiting += entries

    # Time.

    @rule(ns=st.integers(0, TTL_NS))
    def expire(self, ns: int) -> None:
        self.now_ns += ns
        self.voided(self.ledger.expire(self.now_ns, self.unix_ns))
        assert all(hold.expires_ns > self.now_ns for hold in self.ledger.open_holds())

    @rule(ns=st.sampled_from([1, 60 * 10**9, HOUR_NS, 7 * HOUR_NS, DAY_NS]))
    def wait(self, ns: int) -> None:
        self.unix_ns += ns

    @rule(months=st.sampled_from([1, 1, 1, 2, 4]))
    def month(self, months: int) -> None:
        """To the start of a month; what is open stays open."""
        for _ in range(months):
            self.unix_ns = window_end("month", window_start("month", self.unix_ns))

    @rule(
        key=st.sampled_from(["a", "a", "b", "c"]),
        made=st.integers(1, 99),
        months=st.sampled_from([1, 1, 1, 2]),
    )
    def answer_over_a_months_end(self, key: str, made: int, months: int) -> None:
        """Open when a month ends, while another request begins the next."""
        self.reserve(key, Tier.HIGH, 0, made, None, batch=False)
        self.month(months)
        self.reserve(key, Tier.HIGH, 0, made // 2, None, batch=False)

    # The store.

    @rule()
    def commit(self) -> None:
        self.store.append_now(self.waiting)
        self.waiting = []
        self.stored_model = self.model.copy()

    @rule()
    def fail(self) -> None:
        for entry in reversed(self.waiting):
            self.ledger.retract(entry)
        self.lose()

    def lose(self) -> None:
        self.waiting = []
        quotas, extra = self.model.quotas, self.model.extra
        self.model = self.stored_model.copy()
        self.model.quotas, self.model.extra = quotas, extra

    @rule()
    def restart(self) -> None:
        """Lose what waits, and go on as another process."""
        self.restarts += 1
        self.lose()
        self.store = MemoryStore(str(self.restarts), self.memory)
        self.ledger = recover(self.store, self.unix_ns + 1)
        # Nothing is reserved before what the dead have left is void, so what they hold of months
        # before is not kept from the present one.
        for name in self.model.quotas:
            self.compare(name, carried=False)
        self.voided(self.ledger.void_orphans(self.unix_ns))
        self.commit()  # as its caller must before it serves
        for name in self.model.quotas:
            self.compare(name)
        assert not self.ledger.open_holds()

    @precondition(lambda self: self.memory.entries)
    @rule(data=st.data())
    def repeat_what_is_stored(self, data: st.DataObject) -> None:
        """Also after a restart: nothing is stored twice, and the ledger settles it no more."""
        _, entry = data.draw(st.sampled_from(list(self.memory.entries.values())))
        before = len(self.memory.blocks)
        self.store.append_now([entry])
        assert len(self.memory.blocks) == before
        if isinstance(entry, Posted):
            answer = outcome(1, 0, 0)
            again = self.ledger.post(
                self.unix_ns, entry.request, entry.attempt, outcome=answer, work=WORK
            )
            assert isinstance(again, Refused) or again == entry

    # Cost.

    @rule(energy=st.integers(0, 9), capital=st.integers(0, 9))
    def accrue(self, energy: int, capital: int) -> None:
        self.count += 1
        result = self.ledger.accrue(
            self.unix_ns,
            POOL,
            from_unix_ns=NOW + self.count,
            until_unix_ns=NOW + self.count + 1,
            energy_nanodollars=energy,
            capital_nanodollars=capital,
        )
        assert not isinstance(result, Refused)
        self.model.owe(f"cost:{POOL}:energy", "supplier", energy)
        self.model.owe(f"cost:{POOL}:capital", "supplier", capital)
        self.waiting.append(result)

    # Limits.

    @rule(
        name=st.sampled_from(sorted(QUOTAS)),
        percent=st.sampled_from([None, 0, 50, 100, 150]),
        carry_percent=st.sampled_from([0, 20, 100, 100]),
    )
    def change_a_limit(self, name: str, percent: int | None, carry_percent: int) -> None:
        """Lift it, or set it to a part of what it was at first.

        What waits is stored before: a limit that is set anew counts it as used, and would go on
        doing so if it were taken back.
        """
        self.commit()
        if percent is None:
            self.model.quotas.pop(name, None)
            self.store.remove_limit(LimitID(name))
        else:
            quota = copy.copy(QUOTAS[name])
            quota.amount = quota.amount * percent // 100
            quota.carry_over_max = quota.carry_over_max * carry_percent // 100
            before = self.store.limit_states(self.unix_ns)
            self.model.put(name, quota, self.unix_ns)
            self.store.put_limit(limit_of(quota, self.unix_ns, before))
        self.ledger.set_limits(self.states())

    def states(self) -> list[LimitState]:
        """What the store says, which the naive one says too."""
        found = self.store.limit_states(self.unix_ns)
        assert sorted(state.limit.limit for state in found) == sorted(self.model.quotas)
        for state in found:
            at = window(state.limit.period, self.unix_ns)
            said = (state.carried, state.extra, state.used)
            assert said == (
                self.model.carried(state.limit.limit, at, held=False),
                self.model.extra.get((state.limit.limit, at), 0),
                self.model.used(state.limit.limit, at),
            )
        return found

    @precondition(lambda self: self.ledger.windows())
    @rule(data=st.data(), amount=st.integers(1, 200))
    def approve_extra_budget(self, data: st.DataObject, amount: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.quotas)))
        period = self.model.quotas[name].period
        start = window_start(period, self.unix_ns)
        found = {each.limit.limit: each for each in self.ledger.windows()}[LimitID(name)]
        granted = self.ledger.grant(LimitID(name), start, amount)
        assert granted == (found.start_unix_ns == start)
        if granted:
            self.count += 1
            place = (name, window(period, self.unix_ns))
            self.model.extra[place] = self.model.extra.get(place, 0) + amount
            self.store.put_extra(self.extra(name, start, amount))

    def extra(self, name: str, start_unix_ns: int, amount: int) -> Extra:
        return Extra(
            extra=str(self.count),
            limit=LimitID(name),
            start_unix_ns=start_unix_ns,
            amount=amount,
            reason="",
            asked_by="",
            state="approved",
            decided_by="",
            at_unix_ns=self.unix_ns,
        )

    # What always holds.

    def compare(self, name: str, *, carried: bool = True) -> None:
        found = {each.limit.limit: each for each in self.ledger.windows()}[LimitID(name)]
        if found.start_unix_ns == window_start(found.limit.period, self.unix_ns):
            expected = self.model.numbers(name, self.unix_ns)
            allowed = found.allowed if carried else expected[0]
            assert (allowed, found.used, found.held) == expected, name

    @invariant()
    def agrees_with_the_naive_one(self) -> None:
        LedgerMachine.steps += 1
        self.seen += 1
        self.ledger.check()
        names = sorted(self.model.quotas)
        assert sorted(each.limit.limit for each in self.ledger.windows()) == names
        if names:
            self.compare(names[self.seen % len(names)])

    def teardown(self) -> None:
        for name in self.model.quotas:
            self.compare(name)
        pending: dict[str, int] = {}
        for hold in self.model.holds.values():
            if not hold.settled:
                tenant = str(hold.path["tenant"])
                pending[tenant] = pending.get(tenant, 0) + hold.money
        assert self.ledger.pending() == pending
        self.commit()
        self.entries_rebuild_everything()

    def entries_rebuild_everything(self) -> None:
        rows = self.store.rollups()
        debts = {account: row[0] - row[1] for account, row in balances(rows).items()}
        assert debts == {a: n for a, n in self.model.debts.items() if n or a in debts}
        rebuilt, accounts = Ledger("next"), Accounts()
        for _, entry in self.memory.entries.values():
            rebuilt.apply(entry)
            accounts.move(entry.transfers())
        assert accounts.balances() == balances(rows)
        assert rebuilt.open_holds() == self.ledger.open_holds()


@pytest.mark.heavy
def test_the_ledger_agrees_with_a_naive_one() -> None:
    LedgerMachine.steps = 0
    run_steps(LedgerMachine, STEPS, same=STEPS == STEPS_IN_CI)
    assert LedgerMachine.steps >= STEPS

"""Random histories: money balances, quotas hold, repeats change nothing, entries rebuild it all."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.ledger.ledger_samples import BOOK, POOL, key_record, ledger, order, outcome, same
from tokenworks.core.ids import KeyID, WorkerID
from tokenworks.core.orders import Outcome
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.quotas import Refused

KEYS = ("a", "b", "c")
TOKENS_QUOTA, NANODOLLARS_QUOTA = 300, 9_000_000
RECORDS = [
    key_record("a", tokens_quota=TOKENS_QUOTA),
    key_record("b", nanodollars_quota=NANODOLLARS_QUOTA),
    key_record("c", tokens_quota=TOKENS_QUOTA, nanodollars_quota=NANODOLLARS_QUOTA),
]
tiers = st.sampled_from(list(Tier))


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledger(*RECORDS)
        self.entries: list[Entry] = []
        self.count = 0
        self.now_ns = 0

    @rule(
        key=st.sampled_from(KEYS),
        tier=tiers,
        input_max=st.integers(0, 99),
        output_max=st.integers(0, 99),
    )
    def reserve(self, key: str, tier: Tier, input_max: int, output_max: int) -> None:
        self.count += 1
        wanted = order(
            str(self.count), key=key, tier=tier, input_max=input_max, output_max=output_max
        )
        result = self.ledger.reserve(self.now_ns, self.count, wanted, BOOK, 5)
        if isinstance(result, Refused):
            assert result.quota is not None
            numbers = result.quota
            assert numbers.used + numbers.held + numbers.asked > numbers.quota
            return
        self.entries.append(result)
        assert self.ledger.reserve(self.now_ns, self.count, wanted, BOOK, 5) is result

    @precondition(lambda self: self.ledger.open_holds())
    @rule(data=st.data(), ending=st.sampled_from(["done", "disconnected", "failed"]))
    def post(self, data: st.DataObject, ending: str) -> None:
        hold = data.draw(st.sampled_from(self.ledger.open_holds()))
        used = data.draw(st.integers(0, hold.input_tokens_max))
        answer = outcome(
            used,
            data.draw(st.integers(0, used)),
            data.draw(st.integers(0, hold.output_tokens_max)),
            ending=ending,
            measured=Measured(
                ttft_ns=data.draw(st.none() | st.integers(0, 9_000_000_000)),
                decode_ns=data.draw(st.integers(0, 9_000_000_000)),
                output_tokens=50,
            ),
        )

        def again(outcome: Outcome) -> object:
            return self.ledger.post(
                self.count,
                hold.request,
                outcome=outcome,
                pool=POOL,
                worker=WorkerID("w"),
                worker_ns=1,
                cost_nanodollars=1,
                book=BOOK,
            )

        result = again(answer)
        assert not isinstance(result, Refused)
        assert result.charged_nanodollars <= hold.hold_nanodollars
        self.entries.append(result)
        assert again(answer) is result
        other = msgspec.structs.replace(answer.usage, output_tokens=answer.usage.output_tokens + 1)
        assert isinstance(again(msgspec.structs.replace(answer, usage=other)), Refused)

    @precondition(lambda self: self.ledger.open_holds())
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.ledger.open_holds()))
        result = self.ledger.void(self.count, hold.request, reason="withdrawn")
        assert not isinstance(result, Refused)
        self.entries.append(result)

    @rule(ns=st.integers(0, 3))
    def expire(self, ns: int) -> None:
        self.now_ns += ns
        self.entries += self.ledger.expire(self.now_ns, self.count)
        assert all(hold.expires_ns > self.now_ns for hold in self.ledger.open_holds())

    @rule(energy=st.integers(0, 9), capital=st.integers(0, 9))
    def accrue(self, energy: int, capital: int) -> None:
        self.count += 1
        result = self.ledger.accrue(
            self.count,
            POOL,
            from_unix_ns=self.count - 1,
            until_unix_ns=self.count,
            energy_nanodollars=energy,
            capital_nanodollars=capital,
        )
        assert not isinstance(result, Refused)
        self.entries.append(result)

    @precondition(lambda self: self.entries)
    @rule()
    def retract_the_latest(self) -> None:
        self.ledger.retract(self.entries.pop())

    @invariant()
    def money_balances(self) -> None:
        self.ledger.check()

    @invariant()
    def quotas_hold(self) -> None:
        for record in RECORDS:
            use = self.ledger.use_of(KeyID(record.key))
            if record.tokens_quota is not None:
                assert use.used_tokens + use.held_tokens <= record.tokens_quota
            if record.nanodollars_quota is not None:
                assert use.used_nanodollars + use.held_nanodollars <= record.nanodollars_quota

    def teardown(self) -> None:
        rebuilt = ledger(*RECORDS)
        for entry in self.entries:
            rebuilt.apply(entry)
        assert {hold.request for hold in rebuilt.open_holds()} == {
            hold.request for hold in self.ledger.open_holds()
        }
        assert (rebuilt.balances(), rebuilt.uses()) == (self.ledger.balances(), self.ledger.uses())
        for hold in self.ledger.open_holds():
            self.ledger.void(9, hold.request, reason="expired")
            rebuilt.void(9, hold.request, reason="expired")
        assert same(rebuilt, self.ledger)


LedgerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
TestLedgerMachine = LedgerMachine.TestCase

"""Agents say how urgent a request is: that moves it before others of its tenant and tier only."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dispatch.dispatch_world import PRICES, arrived, configured, factory, failed, finished, up
from tokenworks.core.needs import PRIORITY_DEFAULT, PRIORITY_MAX, Hints
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Command, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Arrived, Ticked
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.waiting import Line

TURNS = ("promises", "economic", "strict-priority")
"""Policies under which the tenants of a tier take turns."""
PATIENCE_NS = 10 * NS_PER_S


def urgent(name: str, priority: int | None, **parts: object) -> Arrived:
    hints = None if priority is None else Hints(priority=priority)
    return arrived(name, hints=hints, **parts)  # type: ignore[arg-type]


def sends(commands: list[Command]) -> list[str]:
    return [each.request for each in commands if isinstance(each, Send)]


def busy(*waiting: Arrived, policy: str = "promises") -> Dispatcher:
    """A worker that has something to do, for which these wait."""
    prices = {"policy": policy, "prices": PRICES}
    dispatcher = factory(up(slots=1), settings=configured(100, **prices))  # type: ignore[arg-type]
    dispatcher.handle(0, arrived("first", Tier.ULTRA))
    for event in waiting:
        dispatcher.handle(1, event)
    return dispatcher


def order_of(dispatcher: Dispatcher, count: int) -> list[str]:
    """In which order they are sent as the worker gets free."""
    order = ["first"]
    for now_ns in range(2, count + 2):
        order += sends(dispatcher.handle(now_ns, finished(order[-1])))
    return order[1:]


@pytest.mark.parametrize("policy", TURNS)
def test_the_most_urgent_of_a_tenant_goes_first(policy: str) -> None:
    dispatcher = busy(
        urgent("low", 1),
        urgent("usual", None),
        urgent("high", 9),
        urgent("high too", 9),
        urgent("said", PRIORITY_DEFAULT),
        policy=policy,
    )
    again = Dispatcher.restore(dispatcher.snapshot())
    wanted = ["high", "high too", "usual", "said", "low"]
    assert order_of(dispatcher, 5) == wanted
    assert order_of(again, 5) == wanted


@pytest.mark.parametrize("policy", TURNS)
def test_other_tenants_and_tiers_keep_their_turns(policy: str) -> None:
    dispatcher = busy(
        urgent("a1", 0, tenant="a"),
        urgent("b1", None, tenant="b"),
        urgent("a2", 9, tenant="a"),
        urgent("a3", 9, tenant="a"),
        urgent("lower", 9, tenant="b", tier=Tier.MEDIUM),
        urgent("b2", 9, tenant="b"),
        policy=policy,
    )
    order = order_of(dispatcher, 6)
    assert [name for name in order if name != "lower"] == ["a2", "b2", "a3", "b1", "a1"]
    assert order[-1] == "lower"


def test_what_was_broken_off_goes_before_what_is_urgent() -> None:
    dispatcher = busy(urgent("mine", 0, tier=Tier.ULTRA))
    dispatcher.handle(2, finished("first"))
    dispatcher.handle(3, urgent("urgent", 9, tier=Tier.ULTRA))
    dispatcher.handle(4, urgent("urgent too", 9, tier=Tier.ULTRA))
    again = sends(dispatcher.handle(5, failed("mine")))
    assert again == ["mine"]
    assert sends(dispatcher.handle(6, finished("mine"))) == ["urgent"]


# Whatever agents say.


def request(name: str, tenant: str, priority: int | None, at: int = 0) -> Request:
    return Request(
        request=name,  # type: ignore[arg-type]
        tenant=tenant,  # type: ignore[arg-type]
        model="m",  # type: ignore[arg-type]
        rank=2,
        output_tokens_max=1,
        input_tokens_max=1,
        prefix=(),
        arrived_ns=at,
        late_ns=1,
        hints=None if priority is None else Hints(priority=priority),
    )


coming = st.tuples(st.sampled_from("abcd"), st.integers(0, PRIORITY_MAX))
steps = st.lists(st.one_of(st.none(), coming), max_size=80)
"""None serves somebody."""


@settings(max_examples=200)
@given(steps)
def test_tenants_take_turns_whatever_their_agents_say(steps: list[tuple[str, int] | None]) -> None:
    hinted, plain = Line(), Line()
    passed: dict[str, set[str]] = {}  # by tenant that waits: who was served since its last turn
    for number, step in enumerate(steps):
        if step is None:
            if not len(hinted):
                continue
            head, other = hinted.head(), plain.head()
            assert head.tenant == other.tenant
            own = [each for each in hinted.requests() if each.tenant == head.tenant]
            urgency = max(each.hints.priority for each in own if each.hints)
            assert head is next(each for each in own if each.hints.priority == urgency)  # type: ignore[union-attr]
            hinted.serve(head)
            plain.serve(other)
            waiting = {each.tenant for each in hinted.requests()}
            for tenant in waiting - {head.tenant}:
                # Between two of its turns each other tenant has one at most: the bound that
                # holds without hints.
                assert head.tenant not in passed[tenant]
                passed[tenant].add(head.tenant)
            passed = {each: passed.get(each, set()) for each in waiting}
            if head.tenant in passed:
                passed[head.tenant] = set()
            continue
        tenant, priority = step
        passed.setdefault(tenant, set())
        hinted.append(request(f"r{number}", tenant, priority, number))
        plain.append(request(f"r{number}", tenant, None, number))
        assert hinted.rotation() == plain.rotation()
        again = Line.restore(hinted.requests(), hinted.rotation(), hinted.late())
        assert list(again.heads()) == list(hinted.heads())
    assert len(hinted) == len(plain)


class Crowd:
    """Requests of one size for two workers of one slot, which end in the order of their sends."""

    def __init__(self, seed: int, policy: str, *, hints: bool, gap_ns: int, work_ns: int) -> None:
        settings = configured(100, policy=policy, prices=PRICES, patience_ns=PATIENCE_NS)
        self.dispatcher = factory(up("a", slots=1), up("b", slots=1), settings=settings)
        self.work_ns = work_ns
        self.turns: list[tuple[int, str, Tier]] = []
        self.waited_ns: list[int] = []
        self.ended = 0
        dice = Random(seed)
        self.agenda: list[tuple[int, int, Arrived | str | None]] = []
        self.of: dict[str, Arrived] = {}
        self.numbers = 0
        at_ns = 0
        for number in range(60):
            at_ns += dice.randrange(gap_ns)
            priority = dice.randrange(PRIORITY_MAX + 1)
            parts = {"tenant": dice.choice("aaab"), "tier": dice.choice((Tier.FREE, Tier.HIGH))}
            event = urgent(f"r{number}", priority if hints else None, at=at_ns, **parts)
            self.of[event.request] = event
            self.put(at_ns, event)

    def put(self, at_ns: int, what: Arrived | str | None) -> None:
        self.numbers += 1
        heappush(self.agenda, (at_ns, self.numbers, what))

    def run(self) -> None:
        while self.agenda:
            now_ns, _, what = heappop(self.agenda)
            event = Ticked() if what is None else finished(what) if isinstance(what, str) else what
            for command in self.dispatcher.handle(now_ns, event):
                if isinstance(command, Send | Reject):
                    asked = self.of[command.request]
                    self.waited_ns.append(now_ns - asked.arrived_ns)
                if isinstance(command, Send):
                    self.turns.append((now_ns, asked.tenant, asked.tier))
                    self.put(now_ns + self.work_ns, command.request)
                elif not isinstance(command, Reject):
                    at_ns = getattr(command, "at_ns", None)
                    if at_ns is not None:
                        self.put(at_ns, None)


@pytest.mark.parametrize("policy", TURNS)
@settings(max_examples=20)
@given(st.integers(0, 1 << 30))
def test_who_is_served_when_is_the_same_with_and_without_hints(policy: str, seed: int) -> None:
    crowds = [
        Crowd(seed, policy, hints=hints, gap_ns=NS_PER_MS, work_ns=10 * NS_PER_MS)
        for hints in (True, False)
    ]
    for crowd in crowds:
        crowd.run()
        assert len(crowd.turns) == 60
    assert crowds[0].turns == crowds[1].turns


@pytest.mark.parametrize("policy", TURNS)
@settings(max_examples=20)
@given(st.integers(0, 1 << 30))
def test_nobody_waits_beyond_the_bound_whatever_agents_say(policy: str, seed: int) -> None:
    crowd = Crowd(seed, policy, hints=True, gap_ns=NS_PER_S // 4, work_ns=2 * NS_PER_S)
    crowd.run()
    assert len(crowd.waited_ns) == 60
    assert max(crowd.waited_ns) <= PATIENCE_NS
    assert len(crowd.turns) < 60, "nobody waited for as long as the bound"

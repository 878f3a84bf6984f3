"""A small world around a dispatcher: it answers commands by events and checks each of them."""

from __future__ import annotations

import random
from collections.abc import Mapping

from msgspec import UNSET

from tokenworks.core.ids import ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.needs import NO_OFFERS, Hints, Needs, Offers
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Abort, Command, Hedge, Queue, Reject, Send, SetTimer
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    BlocksRemoved,
    BlocksStored,
    Configured,
    Event,
    Failed,
    Finished,
    Limits,
    PolicySettings,
    Started,
    Ticked,
    TokenPrice,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.dispatch.policy import MakePolicy
from tokenworks.dispatch.workers import speeds_of
from tokenworks.perf.timing import FS_PER_S, Timing

TIERS = tuple(Tier)
SPEEDS = {Tier.FREE: 10, Tier.MEDIUM: 20, Tier.HIGH: 40, Tier.PREMIUM: 60, Tier.ULTRA: 80}
CURVE = ((1, 100), (2, 80), (4, 60), (8, 40), (16, 20))
"""Caps at 16 slots: ultra 2, premium 4, high 8, medium 16, free 16."""

MODEL = ModelName("small")

TIMING = Timing(
    launch_fs=FS_PER_S // 200,
    sequence_fs=FS_PER_S // 500,
    context_token_fs=0,
    prefill_token_fs=FS_PER_S // 10_000,
    prefill_context_fs=0,
)
"""A lone user sees about 143 tokens per second; 100 tokens of prompt take 10 ms."""


def price(output_dollars_per_mtok: int, input_dollars_per_mtok: int = 0) -> TokenPrice:
    """A tenth of the price for what is cached."""
    return TokenPrice(
        input_udollars_per_mtok=input_dollars_per_mtok * 1_000_000,
        cached_udollars_per_mtok=input_dollars_per_mtok * 100_000,
        output_udollars_per_mtok=output_dollars_per_mtok * 1_000_000,
    )


PRICES = {
    Tier.FREE: price(0),
    Tier.MEDIUM: price(1),
    Tier.HIGH: price(3),
    Tier.PREMIUM: price(9),
    Tier.ULTRA: price(27),
}


def promises(**changes: int) -> dict[Tier, Promise]:
    values = {
        "ttft_ns": 2 * NS_PER_S,
        "grace_ns": 0,
        "patience_ns": 10 * NS_PER_S,
        "output_tokens_default": 64,
    } | changes
    return {
        tier: Promise(interactivity_tokens_per_s=SPEEDS[tier], **values)  # type: ignore[arg-type]
        for tier in Tier
    }


def limits(queue_len_max: int = 8, **changes: int) -> Limits:
    return Limits(queue_len_max=dict.fromkeys(Tier, queue_len_max), **changes)  # type: ignore[arg-type]


def configured(
    queue_len_max: int = 8,
    *,
    ttft_ns: int | None = None,
    policy: PolicySettings | str = "promises",
    prices: dict[Tier, TokenPrice] | None = None,
    **changes: int,
) -> Configured:
    patience = changes.pop("patience_ns", 10 * NS_PER_S)
    ttft = 2 * NS_PER_S if ttft_ns is None else ttft_ns
    return Configured(
        promises=promises(ttft_ns=ttft, patience_ns=patience),
        limits=limits(queue_len_max, **changes),
        policy=PolicySettings(name=policy) if isinstance(policy, str) else policy,
        prices={} if prices is None else {MODEL: prices},
    )


def up(
    name: str = "a",
    *,
    model: str = MODEL,
    pool: str = "p",
    slots: int = 16,
    curve: tuple[tuple[int, int], ...] = CURVE,
    timing: Timing | None = None,
    kv_blocks: int | None = None,
    block_tokens: int = 64,
    hands_over: bool = False,
    labels: tuple[str, ...] = (),
    adapters: tuple[str, ...] = (),
) -> WorkerUp:
    offers = Offers(labels=labels, adapters=adapters)
    return WorkerUp(
        worker=WorkerID(name),
        pool=PoolID(pool),
        model=ModelName(model),
        slots=slots,
        curve=curve,
        timing=timing,
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        link_bytes_per_s=10**9 if hands_over else 0,
        offers=UNSET if offers == NO_OFFERS else offers,
    )


def down(name: str = "a") -> WorkerDown:
    return WorkerDown(worker=WorkerID(name), why="gone")


def arrived(
    name: str,
    tier: Tier = Tier.HIGH,
    *,
    at: int = 0,
    tenant: str = "t",
    model: str = MODEL,
    prefix: tuple[int, ...] = (),
    output: int = 64,
    prompt: int = 100,
    session: str | None = None,
    labels: tuple[str, ...] = (),
    adapter: str | None = None,
    hints: Hints | None = None,
    once: bool = False,
    unheard: bool = False,
) -> Arrived:
    needs = Needs(labels=labels, adapter=adapter)
    return Arrived(
        request=RequestID(name),
        tenant=TenantID(tenant),
        model=ModelName(model),
        tier=tier,
        input_tokens_max=prompt,
        output_tokens_max=output,
        prefix=prefix,
        arrived_ns=at,
        session=session,
        needs=UNSET if needs == Needs() else needs,
        hints=UNSET if hints is None else hints,
        once=once or UNSET,
        unheard=unheard or UNSET,
    )


def started(name: str, worker: str | None = None) -> Started:
    return Started(request=RequestID(name), worker=UNSET if worker is None else WorkerID(worker))


def finished(name: str, output: int = 5, worker: str | None = None) -> Finished:
    return Finished(
        request=RequestID(name),
        output_tokens=output,
        cached_input_tokens=0,
        worker=UNSET if worker is None else WorkerID(worker),
    )


def failed(name: str, worker: str = "a", *, started: bool = False) -> Failed:
    return Failed(request=RequestID(name), worker=WorkerID(worker), started=started)


def withdrawn(name: str) -> Withdrawn:
    return Withdrawn(request=RequestID(name))


def stored(*blocks: int, worker: str = "a") -> BlocksStored:
    return BlocksStored(worker=WorkerID(worker), blocks=blocks)


def removed(*blocks: int, worker: str = "a", everything: bool = False) -> BlocksRemoved:
    return BlocksRemoved(worker=WorkerID(worker), blocks=None if everything else blocks)


def factory(
    *events: Event,
    settings: Configured | None = None,
    own_policies: Mapping[str, MakePolicy] | None = None,
) -> Dispatcher:
    """A dispatcher that was told its settings and these events at time 0."""
    dispatcher = Dispatcher(own_policies)
    dispatcher.handle(0, settings or configured())
    for event in events:
        dispatcher.handle(0, event)
    return dispatcher


class World:
    """Random events from one seed; every command is checked against what the world knows.

    Args:
        seed: of everything that happens.
        policy: who decides; only of ``promises`` it is checked that promises are kept.
        own_policies: policies that do not come with the package; only these may be wrong.
    """

    def __init__(
        self,
        seed: int,
        policy: str = "promises",
        own_policies: Mapping[str, MakePolicy] | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.policy = policy
        self.faults_allowed = policy in (own_policies or {})
        self.own_policies = own_policies
        self.dispatcher = Dispatcher(own_policies)
        self.now_ns = 0
        self.timer_ns: int | None = None
        self.queue_len_max = self.random.choice((0, 1, 4, 20))
        self.retries_max = self.random.choice((0, 2))
        self.settings = configured(
            self.queue_len_max,
            ttft_ns=self.random.choice((0, NS_PER_S, 20 * NS_PER_S)),
            patience_ns=self.random.choice((0, 5 * NS_PER_S, 60 * NS_PER_S)),
            retries_max=self.retries_max,
            retry_percent=self.random.choice((None, None, 0, 20)),
            hedge_percent=self.random.choice((0, 20, 100)),
            hedge_after_percent=self.random.choice((0, 10, 50)),
            prefix_blocks_max=self.random.choice((0, 7, 1_000)),
            imbalance_requests_max=self.random.choice((0, 2, 100)),
            workers_max=5,
            models_max=2,
            slots_max=12,
            ended_max=100_000,
            policy=PolicySettings(
                name=policy,
                batch_cap=self.random.choice((None, 3)),
                queue_at_worker=policy != "promises" and self.random.random() < 0.3,
                seed=seed,
            ),
            prices=self.random.choice((None, PRICES)),
        )
        self.models = ("small", "large", "never")
        self.workers: dict[str, WorkerUp] = {}
        self.tiers: dict[str, Tier] = {}
        self.model_of: dict[str, str] = {}
        self.arrived_ns: dict[str, int] = {}
        self.on_time: set[str] = set()
        self.state: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.prefiller: dict[str, str] = {}
        self.second: dict[str, str] = {}
        self.hedged: set[str] = set()
        self.losers: dict[str, list[str]] = {}
        self.hands_over = self.random.random() < 0.5
        self.ends: dict[str, int] = {}
        self.log: list[tuple[int, Event, list[Command]]] = []
        self.tell(self.settings)

    # Telling and checking.

    def tell(self, event: Event) -> list[Command]:
        commands = self.dispatcher.handle(self.now_ns, event)
        self.log.append((self.now_ns, event, commands))
        for command in commands:
            self._check(command)
        assert not self.losers, "who has not answered first is aborted"
        self._check_bounds()
        return commands

    def _check(self, command: Command) -> None:
        match command:
            case Send():
                self._check_send(command)
            case Hedge():
                self._check_hedge(command)
            case Queue():
                assert self.state[command.request] == "queued"
            case Reject():
                assert self.state[command.request] == "queued", command
                assert command.retry_after_ns is None or command.retry_after_ns >= NS_PER_S
                self._end(command.request)
            case Abort():
                losers = self.losers[command.request]
                losers.remove(command.worker)
                if not losers:
                    del self.losers[command.request]
            case SetTimer():
                self.timer_ns = command.at_ns

    def _check_send(self, command: Send) -> None:
        assert self.state[command.request] == "queued", command
        assert command.attempt <= self.retries_max + 1
        worker = self.workers[command.worker]
        assert self.model_of[command.request] == worker.model
        slots = self._slots_of(worker)
        others = self._at(command.worker)
        assert command.running == len(others) + 1 <= slots
        if self.policy == "promises":
            self._check_promises(command, worker, slots, others)
        self.state[command.request] = "sent"
        self.holder[command.request] = command.worker
        if command.prefill_worker is not None:
            site = self.workers[command.prefill_worker]
            assert site.model == worker.model
            assert site is not worker
            assert site.link_bytes_per_s > 0
            assert worker.link_bytes_per_s > 0
            self.prefiller[command.request] = command.prefill_worker

    def _at(self, worker: str) -> list[str]:
        holders = [*self.holder.items(), *self.second.items()]
        return [request for request, holder in holders if holder == worker]

    def _check_hedge(self, command: Hedge) -> None:
        """A second worker is asked once, where that leaves every promise kept."""
        name, worker = command.request, self.workers[command.worker]
        assert self.state[name] == "sent"
        assert name not in self.hedged
        assert self.holder[name] != command.worker
        assert command.attempt <= self.retries_max + 1
        assert self.model_of[name] == worker.model
        slots, others = self._slots_of(worker), self._at(command.worker)
        assert command.running == len(others) + 1 <= min(slots, command.cap)
        assert not any(
            state == "queued" and self.model_of[each] == worker.model
            for each, state in self.state.items()
        )
        tier = self.tiers[name]
        speed = speeds_of(worker.curve, slots)[command.running]
        if self.policy == "promises":
            assert command.running == 1 or speed >= SPEEDS[tier], command
        self.hedged.add(name)
        self.second[name] = command.worker

    def _decide(self, name: str, winner: str) -> None:
        """One of two workers is first."""
        second, holder = self.second.pop(name), self.holder[name]
        self.losers[name] = [holder if winner == second else second]
        self.holder[name] = winner
        if winner == second:
            self.on_time.add(name)

    def _first(self, name: str) -> str | None:
        """Who of one or two workers is first; None if that need not be said."""
        if name not in self.second:
            return self.random.choice((None, self.holder[name]))
        winner = self.random.choice((None, self.holder[name], self.second[name]))
        self._decide(name, winner or self.holder[name])
        return winner

    def _slots_of(self, worker: WorkerUp) -> int:
        most = min(12, self.settings.policy.batch_cap or 12)
        return most if self.settings.policy.queue_at_worker else min(worker.slots, most)

    def _check_promises(
        self, command: Send, worker: WorkerUp, slots: int, others: list[str]
    ) -> None:
        speed = speeds_of(worker.curve, slots)[command.running]
        tier = self.tiers[command.request]
        assert command.running <= command.cap
        waited_ns = self.now_ns - self.arrived_ns[command.request]
        if 2 * waited_ns <= self.settings.promises[tier].ttft_ns or tier is Tier.FREE:
            assert command.reason != "slow_beats_late"
            self.on_time.add(command.request)
        else:
            self.on_time.discard(command.request)  # a retry may be late where the first try was not
        kept = [
            self.tiers[other]
            for other in others
            if other in self.on_time or self.second.get(other) == command.worker
        ]
        if command.reason != "slow_beats_late":
            kept.append(tier)
        for each in kept:
            assert command.running == 1 or speed >= SPEEDS[each], (command, each)

    def _check_bounds(self) -> None:
        for length in self.dispatcher.queue_lens().values():
            assert length <= self.queue_len_max
        for name, load in self.dispatcher.loads().items():
            assert load.running == len(self._at(name))
        waiting = sum(state == "queued" for state in self.state.values())
        assert sum(self.dispatcher.queue_lens().values()) == waiting
        assert self.faults_allowed or self.dispatcher.counts()["policy_faults"] == 0
        for name, worker in self.dispatcher._workers.items():
            assert sorted(worker.prefilling) == sorted(
                request for request, site in self.prefiller.items() if site == name
            )
            assert worker.prefill_tokens >= len(worker.prefilling)
            assert worker.running or worker.prefilling or worker.prefill_tokens == 0

    def _end(self, name: str) -> None:
        self.state[name] = "ended"
        self.holder.pop(name, None)
        self.second.pop(name, None)
        self.prefiller.pop(name, None)
        self.ends[name] = self.ends.get(name, 0) + 1

    def _named(self, *states: str) -> str | None:
        names = [name for name, state in self.state.items() if state in states]
        return self.random.choice(names) if names else None

    # What may happen.

    def step(self) -> None:
        self.now_ns += self.random.choice((0, 1, NS_PER_S // 10, NS_PER_S))
        self.tick_if_due()
        what = self.random.choice(
            [self._arrive] * 3
            + [self._start, self._finish, self._finish, self._fail, self._leave]
            + [self._up, self._down, self._blocks, self.tick, self._noise]
        )
        what()

    def _arrive(self) -> None:
        name = f"r{len(self.state)}"
        tier = self.random.choice(TIERS)
        length, family = self.random.choice((0, 1, 6)), self.random.randrange(3)
        self.state[name], self.tiers[name] = "queued", tier
        at = self.now_ns - self.random.choice((0, 0, NS_PER_S)) if self.now_ns else 0
        self.arrived_ns[name] = at
        self.model_of[name] = self.random.choices(self.models, (8, 4, 1))[0]
        self.tell(
            arrived(
                name,
                tier,
                at=at,
                tenant=self.random.choice("xyz"),
                model=self.model_of[name],
                prefix=tuple(100 * family + depth for depth in range(length)),
                prompt=self.random.choice((1, 100, 30_000)),
                session=self.random.choice((None, "s1", "s2")),
                hints=self.random.choice((None, None, Hints(priority=self.random.randrange(10)))),
                unheard=not self.hands_over and len(self.state) % 5 == 0,
            )
        )

    def _start(self) -> None:
        name = self._named("sent")
        if name is not None:
            winner = self._first(name)
            self.state[name] = "answering"
            self.prefiller.pop(name, None)
            self.tell(started(name, winner))

    def _finish(self) -> None:
        name = self._named("sent", "answering")
        if name is not None:
            winner = self._first(name)
            self._end(name)
            self.tell(finished(name, worker=winner))

    def _fail(self) -> None:
        name = self._named("sent", "answering")
        if name is not None:
            if name in self.second:
                self._fail_one(name)
                return
            self._break(name)
            worker = self.holder.pop(name, None) or self._broken_worker
            self.tell(failed(name, worker, started=self.state[name] == "ended"))

    def _fail_one(self, name: str) -> None:
        """One of two workers breaks off, and the other one goes on."""
        worker = self.random.choice((self.holder[name], self.second[name]))
        has_begun = self.random.random() < 0.2
        if has_begun:
            self._decide(name, worker)
            self._end(name)
        else:
            self._go_on_without(name, worker)
        self.tell(failed(name, worker, started=has_begun))

    def _go_on_without(self, name: str, worker: str) -> None:
        second = self.second.pop(name)
        if worker != second:
            self.holder[name] = second
            self.on_time.add(name)

    def _break(self, name: str) -> None:
        self._broken_worker = self.holder[name]
        self.prefiller.pop(name, None)
        if self.state[name] == "answering":
            self._end(name)
        else:
            self.state[name] = "queued"

    def _leave(self) -> None:
        name = self._named("queued", "sent", "answering")
        if name is None:
            return
        holders = [each[name] for each in (self.holder, self.second) if name in each]
        commands = self.dispatcher.handle(self.now_ns, withdrawn(name))
        self.log.append((self.now_ns, withdrawn(name), commands))
        gone = any(isinstance(each, Reject) and each.request == name for each in commands)
        aborted = [each for each in commands if isinstance(each, Abort)]
        assert [each.worker for each in aborted] == holders * (not gone)
        if not gone:
            self._end(name)
        for command in commands:
            if not isinstance(command, Abort):
                self._check(command)
        self._check_bounds()

    def _up(self) -> None:
        name = self.random.choice("abcdefg")
        if name in self.workers:
            return
        slots = self.random.choice((1, 4, 16))
        curve = self.random.choice((CURVE, ((1, 30),), ((2, 90), (3, 85), (9, 10))))
        event = up(
            name,
            model=self.random.choice(self.models[:2]),
            slots=slots,
            curve=curve,
            timing=self.random.choice((None, TIMING)),
            kv_blocks=self.random.choice((None, 40, 1_000)),
            hands_over=self.hands_over,
        )
        if len(self.workers) < 5:
            self.workers[name] = event
        self.tell(event)

    def _down(self) -> None:
        if not self.workers or self.random.random() < 0.5:
            return
        name = self.random.choice(list(self.workers))
        self._gone(name)

    def _gone(self, name: str) -> None:
        """A worker is lost, with what it runs and what it prefills for others."""
        del self.workers[name]
        prefilled = [r for r, site in self.prefiller.items() if site == name]
        for request in [r for r in self._at(name) if r in self.second]:
            self._go_on_without(request, name)
        for request in [r for r, holder in self.holder.items() if holder == name]:
            self._break(request)
            self.holder.pop(request, None)
        for request in prefilled:
            self.prefiller.pop(request, None)
        self.tell(down(name))
        for request in prefilled:
            if self.state[request] == "sent" and self.random.random() < 0.7:
                worker = self.holder[request]
                self._break(request)
                self.holder.pop(request, None)
                self.tell(failed(request, worker))

    def _blocks(self) -> None:
        if not self.workers:
            return
        name, family = self.random.choice(list(self.workers)), self.random.randrange(3)
        some = [100 * family + depth for depth in range(self.random.choice((1, 6)))]
        self.tell(
            self.random.choice(
                [stored(*some, worker=name)] * 2
                + [removed(*some, worker=name), removed(worker=name, everything=True)]
            )
        )

    def tick(self) -> None:
        self.now_ns = max(self.now_ns, self.timer_ns or 0)
        self.timer_ns = None
        self.tell(Ticked())

    def tick_if_due(self) -> None:
        """The timer comes before other events, so that each is checked against one world."""
        while self.timer_ns is not None and self.timer_ns <= self.now_ns:
            self.tick()

    def _noise(self) -> None:
        """A late or repeated message: no command comes of the message itself."""
        before = self.dispatcher.counts()["ignored"]
        name = self._named("ended") or "nobody"
        worker = "nowhere"
        self.tell(
            self.random.choice(
                [started(name), finished(name), failed(name), withdrawn(name), down(worker)]
                + [each(self._named("sent") or name, worker="z") for each in (started, finished)]
                + [stored(1, worker=worker), removed(1, worker=worker)]
                + [arrived(name)] * (name != "nobody")
            )
        )
        assert self.dispatcher.counts()["ignored"] == before + 1

    def heal(self) -> None:
        """No more faults: workers come up, answers end, and every request must have ended."""
        self.tick_if_due()
        for name in "ab":
            if name in self.workers:
                self._gone(name)
        for name, model in (("a", "small"), ("b", "large")):
            if len(self.workers) < 5:
                self.workers[name] = up(name, model=model)
            self.tell(up(name, model=model))
        for _ in range(10_000):
            if self._named("queued", "sent", "answering") is None:
                break
            self.now_ns += NS_PER_S // 10
            self.tick_if_due()
            self._finish()
        assert self._named("queued", "sent", "answering") is None
        assert all(self.ends[name] == 1 for name in self.state)
        assert self.dispatcher.queue_lens() == dict.fromkeys(self.dispatcher.queue_lens(), 0)


def digest_of_seed(seed: int, policy: str = "promises", steps: int = 300) -> str:
    """The memory after a random run; run as a program it shows that no hash seed matters."""
    world = World(seed, policy)
    for _ in range(steps):
        world.step()
    return world.dispatcher.digest()

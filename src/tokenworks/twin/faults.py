"""Faults of a run, drawn from a seed or read from a file, and who carries them out.

Every fault ends at a time that is known before. At ``FaultPlan.heal_ns`` all have: workers are up,
as fast as ever, and whatever is sent arrives.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.ids import RequestID, TenantID, WorkerID
from tokenworks.core.units import PPM
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.events import Arrived, Configured, Event, Finished, Withdrawn
from tokenworks.dispatch.policy import Dice
from tokenworks.ledger.quota_records import Limit
from tokenworks.perf.timing import Timing
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.driver import Driver, Hooks
from tokenworks.twin.network import Kind, Network
from tokenworks.twin.store import AT_ONCE, Answer, Store


class Crash(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker is gone with all that it had, and comes up again.

    Attributes:
        worker: which.
        at_ns: when it is gone.
        notice_ns: how long after that the dispatcher is told.
        until_ns: when it comes up.
    """

    worker: WorkerID
    at_ns: int
    notice_ns: int
    until_ns: int


class Hang(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker makes no progress for a while.

    Attributes:
        worker: which.
        at_ns: from when.
        dead_ns: when it is taken for dead; None if it is not.
        until_ns: when it goes on.
    """

    worker: WorkerID
    at_ns: int
    dead_ns: int | None
    until_ns: int


class CutOff(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker is taken for dead though it works, and found again.

    Attributes:
        worker: which.
        at_ns: from when.
        until_ns: until when.
    """

    worker: WorkerID
    at_ns: int
    until_ns: int


class Slow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker's iterations take longer for a while.

    Attributes:
        worker: which.
        at_ns: from when.
        until_ns: until when.
        times_ppm: how many times as long, in millionths.
    """

    worker: WorkerID
    at_ns: int
    until_ns: int
    times_ppm: int


class Noise(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Messages between driver and workers are lost, repeated or late.

    Attributes:
        kinds: which messages.
        at_ns: from when.
        until_ns: until when.
        lost_ppm: how many are lost.
        repeated_ppm: how many come twice.
        late_ppm: how many copies are late.
        late_ns_max: by how much at most.
        seed: of what happens to each.
    """

    kinds: tuple[Kind, ...]
    at_ns: int
    until_ns: int
    lost_ppm: int
    repeated_ppm: int
    late_ppm: int
    late_ns_max: int
    seed: int


class Jump(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The driver's clock jumps.

    Attributes:
        at_ns: when.
        by_ns: how far; below zero it goes back, which the dispatcher must not be told.
    """

    at_ns: int
    by_ns: int


class Stall(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ledger's store is late or refuses, or its answer is lost and it is asked again.

    Attributes:
        at_ns: from when.
        until_ns: until when.
        late_ns_max: how long an append takes at most.
        fails_ppm: how many fail.
        again_ppm: how many are asked again.
        seed: of what happens to each.
    """

    at_ns: int
    until_ns: int
    late_ns_max: int
    fails_ppm: int
    again_ppm: int
    seed: int


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A client withdraws its request, if that has come and not ended."""

    request: RequestID
    at_ns: int


class BreakOff(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker that has a request, if one has, breaks it off."""

    request: RequestID
    at_ns: int


class Echo(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The dispatcher is told of some arrivals and ends once more, later.

    Attributes:
        at_ns: from when.
        until_ns: until when.
        told_ppm: how many.
        late_ns_max: how much later at most.
        seed: of which and when.
    """

    at_ns: int
    until_ns: int
    told_ppm: int
    late_ns_max: int
    seed: int


class Change(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Settings change while requests are under way."""

    at_ns: int
    configured: Configured


class PutLimits(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Limits are raised, lowered and lifted while requests hold them."""

    at_ns: int
    limits: tuple[Limit, ...]


class Revoke(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A tenant's key is revoked while its requests are under way."""

    at_ns: int
    tenant: TenantID


class TurnPage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Another price book comes into force, and the dispatcher is told of it."""

    at_ns: int
    price_book: str
    configured: Configured


Fault = (
    Crash
    | Hang
    | CutOff
    | Slow
    | Noise
    | Jump
    | Stall
    | Leave
    | BreakOff
    | Echo
    | Change
    | PutLimits
    | Revoke
    | TurnPage
)


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong in a run.

    Attributes:
        faults: all of it, in the order in which they are put on the agenda.
        to_worker_ns: how long messages to workers take.
        to_dispatcher_ns: and those from them.
        probe_ns: how often workers are asked about what they were sent.
        publishes: engines publish what becomes of their prefix caches.
        heal_ns: when the last fault has ended.
    """

    faults: tuple[Fault, ...] = ()
    to_worker_ns: int = 0
    to_dispatcher_ns: int = 0
    probe_ns: int | None = None
    publishes: bool = False
    heal_ns: int = 0

    def network(self) -> Network:
        """The network with this plan's noise; direct if there is none and no delay."""
        noises = [each for each in self.faults if isinstance(each, Noise)]
        meddle = _Noisy(noises) if noises else None
        return Network(
            to_worker_ns=self.to_worker_ns, to_dispatcher_ns=self.to_dispatcher_ns, meddle=meddle
        )

    def store(self) -> Store:
        """A store with this plan's stalls."""
        stalls = [each for each in self.faults if isinstance(each, Stall)]
        return Store(_Stalled(stalls) if stalls else None)

    def slack_ns(self) -> int:
        """How much longer than configured a request may wait, for the clock and the store."""
        jumps_ns = sum(abs(each.by_ns) for each in self.faults if isinstance(each, Jump))
        stalls = (each.late_ns_max for each in self.faults if isinstance(each, Stall))
        return jumps_ns + max(stalls, default=0)

    def changes(self) -> list[Configured]:
        """The settings that come."""
        return [each.configured for each in self.faults if isinstance(each, Change | TurnPage)]


def chance(dice: Dice, ppm: int) -> bool:
    """Whether something happens that does so many times in a million."""
    return dice.below(PPM) < ppm


class _Noisy:
    """Meddles with messages; see ``network.Meddle``."""

    def __init__(self, noises: Sequence[Noise]) -> None:
        self._noises = [(each, Dice(each.seed)) for each in noises]

    def __call__(self, now_ns: int, kind: Kind, worker: int, delay_ns: int) -> tuple[int, ...]:  # noqa: ARG002
        copies = [delay_ns]
        for noise, dice in self._noises:
            if not noise.at_ns <= now_ns < noise.until_ns or kind not in noise.kinds:
                continue
            if chance(dice, noise.lost_ppm):
                copies = copies[1:]
            if copies and chance(dice, noise.repeated_ppm):
                copies.append(copies[0])
            copies = [
                each + dice.below(noise.late_ns_max + 1) if chance(dice, noise.late_ppm) else each
                for each in copies
            ]
        return tuple(copies)


class _Stalled:
    """Meddles with appends; see ``store.Meddle``."""

    def __init__(self, stalls: Sequence[Stall]) -> None:
        self._stalls = [(each, Dice(each.seed)) for each in stalls]

    def __call__(self, now_ns: int) -> Answer:
        for stall, dice in self._stalls:
            if stall.at_ns <= now_ns < stall.until_ns:
                return Answer(
                    delay_ns=dice.below(stall.late_ns_max + 1),
                    fails=chance(dice, stall.fails_ppm),
                    asked_again=chance(dice, stall.again_ppm),
                )
        return AT_ONCE


class Faults(Hooks):
    """Carries out a plan; its noise and stalls come in by ``network`` and ``store``."""

    def __init__(self, plan: FaultPlan) -> None:
        self._plan = plan
        self._echoes = [(each, Dice(each.seed)) for each in plan.faults if isinstance(each, Echo)]
        self._driver: Driver | None = None

    def begin(self, driver: Driver) -> None:
        """See ``Hooks``."""
        self._driver = driver
        for fault in self._plan.faults:
            self._plot(driver, fault)
        if self._plan.publishes:
            driver.at(self._plan.heal_ns, driver.catch_up)

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:  # noqa: ARG002
        """See ``Hooks``."""
        driver = self._driver
        if not self._echoes or not isinstance(event, Arrived | Finished | Withdrawn):
            return
        assert driver is not None
        at_ns = driver.clock.at_ns
        for echo, dice in self._echoes:
            if echo.at_ns <= at_ns < echo.until_ns and chance(dice, echo.told_ppm):
                late_ns = 1 + dice.below(echo.late_ns_max)
                driver.at(at_ns + late_ns, functools.partial(driver.tell, event))

    def _plot(self, driver: Driver, fault: Fault) -> None:
        act, at = functools.partial, driver.at
        match fault:
            case Crash():
                at(fault.at_ns, act(driver.crash, fault.worker, "power", fault.notice_ns))
                at(fault.until_ns, act(driver.start, fault.worker))
            case Hang():
                at(fault.at_ns, act(_hang, driver, fault))
                if fault.dead_ns is not None:
                    at(fault.dead_ns, act(driver.lose, fault.worker, "it does not answer"))
                    at(fault.until_ns, act(driver.find, fault.worker))
            case CutOff():
                at(fault.at_ns, act(driver.lose, fault.worker, "it cannot be reached"))
                at(fault.until_ns, act(driver.find, fault.worker))
            case Slow():
                engine = driver.engine(fault.worker)
                slower = _slower(engine.spec.timing, fault.times_ppm)
                at(fault.at_ns, act(driver.pace, fault.worker, slower))
                at(fault.until_ns, act(driver.pace, fault.worker, engine.spec.timing))
            case Jump():
                at(fault.at_ns, act(driver.jump, fault.by_ns))
            case Leave():
                at(fault.at_ns, act(driver.withdraw, fault.request))
            case BreakOff():
                at(fault.at_ns, act(driver.fail, fault.request))
            case Change():
                at(fault.at_ns, act(driver.tell, fault.configured))
            case PutLimits():
                at(fault.at_ns, act(_books_of(driver).put_limits, fault.limits))
            case Revoke():
                at(fault.at_ns, act(_books_of(driver).revoke, fault.tenant))
            case TurnPage():
                at(fault.at_ns, act(_turn_page, driver, fault))
            case _:
                pass  # the network's, the store's, or ours


def _books_of(driver: Driver) -> Bookkeeper:
    assert driver.bookkeeper is not None, "nobody keeps books"
    return driver.bookkeeper


def _turn_page(driver: Driver, fault: TurnPage) -> None:
    _books_of(driver).open_book(parse_price_book(fault.price_book))
    driver.tell(fault.configured)


def _hang(driver: Driver, fault: Hang) -> None:
    driver.engine(fault.worker).hang(fault.until_ns, driver.clock.at_ns)


def _slower(timing: Timing, times_ppm: int) -> Timing:
    """All of it so many times as long; an iteration still takes at least as long as before."""
    assert times_ppm >= PPM, times_ppm
    return timing.slower(times_ppm, PPM)

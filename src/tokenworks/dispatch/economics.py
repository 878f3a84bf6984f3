"""The economic policy: each request goes where it adds the most expected money.

Four ideas, each a few lines below; ``market`` has what they are reckoned by.

**What a worker's second is worth.** Demand by tier is measured; a market price per second of each
class of workers is found at which the classes are just full. What a request adds is
its revenue at the tier that it will get, less the seconds that it takes at that price, less what
its prefill breaks of the promises that run there.

**Homes.** Each worker is at home in one tier, in proportion to what the tiers need at that price,
with more room for those that pay most: a worker full of free requests can't turn fast when a crowd
of ultra comes. A tier uses workers that are at home in a higher one as long as these keep headroom,
and others where it keeps every promise that runs there.

**Prefill apart.** Where engines hand KV caches over, some workers only prefill, as many as sell
most. They are sent little at a time, so that who pays most is next, and the prompt goes where its
prefix is. The others only decode, and take no more than lets all that run there keep their pace.

**Waiting.** A request that finds no worker where it earns its tier waits while its TTFT promise
has slack for that; then it takes the best that is left, at a lower tier's price. One that can earn
nothing more comes last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.rng import WORD
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.events import Configured, Finished, TokenPrice
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.market import (
    Book,
    Prefill,
    Sale,
    best_split,
    dearest_first,
    forgo,
    homes_for,
    kind_of,
    market,
    prefill_elsewhere,
    revenue_nanodollars,
    timing_of,
)
from tokenworks.dispatch.offers import LONG_PREFILL, NO_PRICE, PLAN_NS, Desk, Offer
from tokenworks.dispatch.pickers import others_first, permitted
from tokenworks.dispatch.policy import Choice
from tokenworks.dispatch.preemption import Displacement, best_of, loss_nanodollars
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import RANKS, Worker
from tokenworks.perf.timing import FS_PER_S

WHOLE_KEPT_PERCENT: Final = 90
"""What a fleet without a split is taken to earn of what it sells: its prefills break promises that
are not broken where others prefill."""
PASSING_MAX: Final = 3
"""Heads of other tenants that are looked at where an unusually long prompt is first in turn."""
PREFILLERS_MAX: Final = 4
"""Of more than so many, two at random are looked at, and two that have the prefix."""
# Knuth's MMIX constants for a linear congruential generator, TAOCP vol. 2, 3.3.4, table 1.
_LCG_A: Final = 6364136223846793005
_LCG_C: Final = 1442695040888963407
_RATE_FORGOTTEN: Final = 32
RATE_SHIFT: Final = 1
"""A plan moves the rates by 1/2 of the difference."""


class Economics:
    """See the module's text."""

    def __init__(self) -> None:
        self._index = PrefixIndex(0)
        self._promises: list[Promise] = []
        self._tables: dict[str, list[TokenPrice]] = {}
        self._desks: dict[str, Desk] = {}  # their books are all that it remembers

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        """See ``Policy``."""
        self._index = index
        self._promises = [configured.promises[tier] for tier in Tier]
        self._tables = {
            model: [prices[tier] for tier in Tier] for model, prices in configured.prices.items()
        }
        for model, desk in self._desks.items():
            desk.book.planned_ns = None
            self._set_desk(model, desk.book)

    def record(self) -> bytes:
        """See ``Policy``."""
        return msgspec.msgpack.encode({model: desk.book for model, desk in self._desks.items()})

    def restore(self, data: bytes) -> None:
        """See ``Policy``."""
        self._desks = {}
        for model, book in msgspec.msgpack.decode(data, type=dict[str, Book]).items():
            self._set_desk(model, book)

    # Learning.

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        """See ``Policy``."""
        desk = self._desks.get(request.model) or self._desk(request.model)
        desk.means[request.rank].come(request.input_tokens_max)
        due = now_ns >= desk.due_ns
        if due or fleet.changes != desk.book.changes:
            self._know(fleet, desk, request.model, now_ns, due=due)

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:  # noqa: ARG002
        """See ``Policy``."""
        prompt = request.input_tokens_max
        computed = max(1, prompt - event.cached_input_tokens)
        self._desk(request.model).means[request.rank].end(prompt, computed, event.output_tokens)

    def _desk(self, model: ModelName) -> Desk:
        return self._desks.get(model) or self._set_desk(model, Book())

    def _set_desk(self, model: str, book: Book) -> Desk:
        """Derive what follows from a book; to be done again whenever there is a new plan."""
        prices = self._tables.get(model) or [NO_PRICE] * len(RANKS)
        desk = self._desks[model] = Desk(book, self._promises, prices)
        return desk

    def _know(
        self, fleet: Fleet, desk: Desk, model: ModelName, now_ns: int, *, due: bool = False
    ) -> Desk:
        """Plan if that is due, or the first time, or if workers have changed since."""
        book = desk.book
        if due or book.planned_ns is None:
            self._measure_rates(book, now_ns)
        elif fleet.changes == book.changes:
            return desk
        self._plan(fleet, book, desk.prices)
        return self._set_desk(model, book)

    def _measure_rates(self, book: Book, now_ns: int) -> None:
        elapsed_ns = PLAN_NS if book.planned_ns is None else now_ns - book.planned_ns
        shift = _RATE_FORGOTTEN
        if book.planned_ns is not None:
            shift = min(shift, RATE_SHIFT * max(1, elapsed_ns // PLAN_NS))
        for mean in book.means:
            rate = mean.arrived * 1_000 * NS_PER_S // max(1, elapsed_ns)
            # What was long ago counts for less, also where nobody came to plan for.
            left = abs(mean.rate_per_ks - rate) >> shift
            mean.rate_per_ks = rate + (left if mean.rate_per_ks > rate else -left)
            mean.arrived = 0
        book.planned_ns = now_ns
        book.plans += 1

    def _plan(self, fleet: Fleet, book: Book, prices: list[TokenPrice]) -> None:
        """Find needs, prices and homes anew."""
        revenue = book.revenue_nanodollars = [
            revenue_nanodollars(price, each.prefill_tokens, each.context_tokens, each.output_tokens)
            for price, each in zip(prices, book.means, strict=True)
        ]
        groups: dict[tuple[object, ...], list[Worker]] = {}
        for worker in fleet.workers:
            alike = (timing_of(worker), worker.slots, worker.kv_blocks, worker.prefilled_by)
            groups.setdefault(alike, []).append(worker)
        classes = list(groups.values())
        rates = [mean.rate_per_ks for mean in book.means]
        kinds = [kind_of(each[0], len(each), book.means, self._promises) for each in classes]
        elsewhere = prefill_elsewhere(kinds)
        sale, prefill = market(kinds, rates, revenue, elsewhere), None
        if forgo(kinds, sale.prices, revenue, elsewhere):
            sale = market(kinds, rates, revenue, elsewhere)
        if len(fleet.workers) > 1 and all(worker.hands_over for worker in fleet.workers):
            apart = [
                kind_of(each[0], len(each), book.means, self._promises, split=True)
                for each in classes
            ]
            found = best_split(apart, rates, revenue)
            if found and forgo(apart, found[1].prices, revenue, found[0]):
                found = best_split(apart, rates, revenue)
            if found and found[1].earned * 100 >= sale.earned * WHOLE_KEPT_PERCENT:
                kinds, (prefill, sale) = apart, found
        book.kinds, book.prefill_price_nanodollars = kinds, sale.prefill_price
        book.soonest = min(
            range(len(kinds)), key=lambda at: kinds[at].prefill_timing.prefill_token_fs, default=0
        )
        self._settle(book, classes, sale, prefill)
        densities = [
            max(
                (earned * FS_PER_S // kind.busy_fs[rank] for kind in book.kinds if kind.caps[rank]),
                default=0,
            )
            for rank, earned in enumerate(book.revenue_nanodollars)
        ]
        book.order = sorted(RANKS, key=lambda rank: (densities[rank], rank), reverse=True)
        fleet.recount()
        book.changes = fleet.changes

    def _settle(
        self, book: Book, classes: list[list[Worker]], sale: Sale, prefill: Prefill | None
    ) -> None:
        """Give each worker its home, or its prefill; whoever had that keeps it."""
        before, book.homes, book.kind_of = book.homes, {}, {}
        prefilled, book.prefillers = set(book.prefillers), []
        for at, workers in enumerate(classes):
            kind, free = book.kinds[at], list(workers)
            kind.price_nanodollars = sale.prices[at]
            if prefill is not None and prefill.at == at:
                free.sort(key=lambda each: (each.index not in prefilled, len(each.running)))
                book.prefillers = sorted(worker.index for worker in free[: prefill.workers])
                del free[: prefill.workers]
            order = dearest_first(kind, book.revenue_nanodollars)
            counts = homes_for(sale.taken[at], len(free), order)
            for rank in reversed(RANKS):
                free.sort(key=lambda each: (before.get(each.index) != rank, len(each.running)))
                for worker in free[: counts[rank]]:
                    book.homes[worker.index] = rank
                del free[: counts[rank]]
            caps = [max(1, cap) for cap in kind.caps]
            for worker in workers:
                book.kind_of[worker.index] = at
                worker.recap(caps)

    # Deciding.

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        """See ``Policy``."""
        desk, rank = self._desks.get(request.model) or self._desk(request.model), request.rank
        if fleet.changes != desk.book.changes:  # since who waits came
            desk = self._know(fleet, desk, request.model, now_ns)
        choice = None
        if not desk.is_late(request, now_ns):
            if fleet.admitting[rank]:
                choice = self._best(fleet, desk, request, rank, now_ns)
            if choice is not None or fleet.load_max:
                return choice
        # An idle fleet gains nothing by waiting: nothing will happen but other arrivals.
        return self._degraded(fleet, desk, request, now_ns)

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        """See ``Policy``."""
        model = fleet.workers[0].model
        desk = self._know(fleet, self._desk(model), model, now_ns)
        for rank in desk.book.order:
            line = fleet.lines[rank]
            while line.punctual():
                request = line.head()
                if desk.is_late(request, now_ns):
                    line.set_late(request)
                    continue
                choice = None
                if fleet.admitting[rank]:
                    choice = self._best(fleet, desk, request, rank, now_ns)
                if choice is not None:
                    yield request, choice
                elif not fleet.load_max:  # as for ``place``
                    line.set_late(request)
                elif found := self._passing(fleet, desk, request, now_ns):
                    yield found
                else:
                    break
        for rank in desk.book.order:
            line = fleet.lines[rank]
            while late := line.late_head():
                choice = self._degraded(fleet, desk, late, now_ns)
                if choice is None:
                    break
                yield late, choice

    def displace(
        self, fleet: Fleet, request: Request, now_ns: int, requests: Mapping[RequestID, Request]
    ) -> Displacement | None:
        """Whose place one that is about to miss its promise takes, if that is worth more."""
        rank = request.rank
        desk = self._know(fleet, self._desk(request.model), request.model, now_ns)
        book = desk.book
        if not rank or desk.prefillers or desk.is_late(request, now_ns):
            return None
        may = permitted(fleet, request, fleet.preempting)
        offer, below = _offer(fleet, desk, request, rank, now_ns), desk.prices[rank - 1]
        depth, holders = self._index.match(request.prefix, may) if request.prefix else (0, 0)

        def weigh(worker: Worker, victims: tuple[Request, ...]) -> Displacement:
            hit = depth if holders >> worker.index & 1 else 0
            value = offer.best(fleet, 1 << worker.index, depth, holders)[0]
            choice = Choice(worker, "best_value", hit, rank, may.bit_count(), value)
            lost = sum(
                loss_nanodollars(
                    book.kinds[book.kind_of[worker.index]],
                    book.revenue_nanodollars,
                    worker.running[victim.request],
                    victim.input_tokens_max + book.means[victim.rank].output_tokens // 2,
                )
                for victim in victims
            )
            gained = value - offer.earned_at(below, worker, hit) if value >= 0 else 0
            return Displacement(choice, victims, gained, lost)

        return best_of(fleet, rank, may, requests, weigh)

    def _passing(
        self, fleet: Fleet, desk: Desk, first: Request, now_ns: int
    ) -> tuple[Request, Choice] | None:
        """Who may pass one that is first in turn and has an unusually long prompt.

        It may fit nowhere for long, where those of other tenants do.
        """
        rank = first.rank
        if first.input_tokens_max <= LONG_PREFILL * desk.means[rank].context_tokens:
            return None
        if not fleet.admitting[rank]:
            return None
        others = itertools.islice(fleet.lines[rank].heads(), 1, 1 + PASSING_MAX)
        for request in others:
            choice = self._best(fleet, desk, request, rank, now_ns)
            if choice is not None:
                return request, choice
        return None

    def _degraded(self, fleet: Fleet, desk: Desk, request: Request, now_ns: int) -> Choice | None:
        """The best place for a request that is late for its own tier: at a lower one, or free."""
        for rank in range(max(request.rank - 1, 0), -1, -1):
            if rank and now_ns - request.arrived_ns >= desk.ttft_ns[rank]:
                continue
            if fleet.admitting[rank]:
                choice = self._best(fleet, desk, request, rank, now_ns)
                if choice is not None:
                    return choice
        return None

    def _best(
        self, fleet: Fleet, desk: Desk, request: Request, rank: int, now_ns: int
    ) -> Choice | None:
        """The most valuable of a few workers that may take a request at a tier; None below zero.

        A few are those that have its prefix, the least loaded that are at home in the tier and two
        of these at random; where none of them will do, the least loaded at home above, then below.
        """
        may = fleet.admitting[rank]
        if request.needs is not None:
            may = permitted(fleet, request, may)
        if request.worker is not None:
            may = others_first(fleet, request, may)
        offer, prefillers = _offer(fleet, desk, request, rank, now_ns), desk.prefillers
        if request.input_tokens_max >= fleet.kv_tokens_min:
            for worker in fleet.each(may):
                if not offer.fits(worker):
                    may ^= 1 << worker.index
        if not prefillers:
            return self._whole(fleet, request, offer, may)
        if request.needs is not None:
            return self._alone(fleet, request, offer, may)
        return self._apart(fleet, request, offer, may & ~prefillers)

    def _whole(self, fleet: Fleet, request: Request, offer: Offer, may: int) -> Choice | None:
        """The best of some workers, where the one that decodes it prefills it, too."""
        desk, rank = offer.desk, offer.rank
        depth, holders = self._index.match(request.prefix, may) if request.prefix else (0, 0)
        some = holders
        if some & (some - 1):
            some = fleet.least_loaded(some)
            some &= -some
        own = may & desk.own[rank]
        if own:
            some |= _shortlist(fleet, desk.book, own)
        if request.session is not None:
            some |= fleet.home(request) & may
        value, best, own_fs, decode_fs = offer.best(fleet, some, depth, holders)
        if best is None:
            others = may & ~some
            for mask in (others & desk.at_home[rank + 1], others & ~desk.at_home[rank]):
                if mask:
                    one = fleet.least_loaded(mask)
                    value, best, own_fs, decode_fs = offer.best(fleet, one & -one, depth, holders)
                    if best is not None:
                        break
            else:
                return None
        assert best is not None
        offer.take(best, own_fs, decode_fs)
        hit = depth if holders >> best.index & 1 else 0
        return Choice(best, "best_value", hit, rank, may.bit_count(), value)

    def _alone(self, fleet: Fleet, request: Request, offer: Offer, may: int) -> Choice | None:
        """The same for one that only some may serve, where some workers prefill for others.

        Who decodes it prefills it, too, be it one that only prefills for others.
        """
        decoders = may & ~offer.desk.prefillers
        if decoders or not may:
            return self._whole(fleet, request, offer, decoders)
        worker = fleet.first(fleet.least_loaded(may))
        return Choice(worker, "least_loaded", 0, offer.rank, may.bit_count())

    def _apart(self, fleet: Fleet, request: Request, offer: Offer, may: int) -> Choice | None:
        """The same where some workers prefill for those that decode."""
        if not may:
            return None
        book, prefillers = offer.desk.book, offer.desk.prefillers
        depth, holders = self._index.match(request.prefix, prefillers) if request.prefix else (0, 0)
        some = prefillers
        if some.bit_count() > PREFILLERS_MAX:
            some = _few(book, prefillers) | (_few(book, holders) if holders else 0)
        prefiller, hit, worth = offer.cheapest(fleet, some, depth, holders, request.avoided)
        if prefiller is None:
            if any(offer.fits(each) for each in fleet.each(prefillers)):
                return None
            return self._whole(fleet, request, offer, may)
        desk, rank = offer.desk, offer.rank
        own = may & desk.own[rank]
        if own:
            value, best = offer.best_decoder(fleet, _shortlist(fleet, book, own), worth)
        else:
            value, best = -1, None
        if best is None:
            for mask in (may & desk.at_home[rank + 1], may & ~desk.at_home[rank]):
                if best is None and mask:
                    some = fleet.least_loaded(mask)
                    value, best = offer.best_decoder(fleet, some & -some, worth)
            if best is None:
                return None
        count = may.bit_count()
        return Choice(best, "best_value", hit, rank, count, value, prefiller)


def _offer(fleet: Fleet, desk: Desk, request: Request, rank: int, now_ns: int) -> Offer:
    """A request at a tier, to be priced on some workers."""
    offer = Offer(desk, request, rank, now_ns)
    if request.input_tokens_max >= fleet.kv_tokens_min:
        offer.bound_by(fleet.kv_tokens_max(request.needs))
    if desk.decoding:
        offer.elsewhere_tokens = sum(
            worker.prefill_tokens for worker in fleet.workers if worker.prefilled_by is not None
        )
    return offer


def _shortlist(fleet: Fleet, book: Book, own: int) -> int:
    """Of those at home in the tier, at least one, the least loaded and two at random."""
    some = fleet.loads[fleet.load_min] & own or fleet.least_loaded(own)
    some &= -some
    return some | _few(book, own) if own & (own - 1) else some


def _few(book: Book, mask: int) -> int:
    """Up to two workers of some, at random: each the first from a place on, or of all."""
    book.dice = dice = (book.dice * _LCG_A + _LCG_C) & WORD
    length = mask.bit_length()
    at = (dice >> 32) % length
    one = mask >> at << at or mask
    at = (dice & 0xFFFFFFFF) % length
    other = mask >> at << at or mask
    return (one & -one) | (other & -other)

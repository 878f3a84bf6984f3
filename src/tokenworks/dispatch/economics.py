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
from tokenworks.dispatch.fleet import RANKS, Fleet, Worker
from tokenworks.dispatch.market import (
    Book,
    Prefill,
    Sale,
    at_home_masks,
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
from tokenworks.dispatch.policy import Choice, others_first, permitted
from tokenworks.dispatch.preemption import Displacement, best_of, loss_nanodollars
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.pricing import FOREVER_FS, LONG_PREFILL, Offer, Seat
from tokenworks.dispatch.waiting import Request
from tokenworks.perf.timing import FS_PER_NS, FS_PER_S

PLAN_NS: Final = 5 * NS_PER_S
"""Prices and homes are found anew this often."""
FIRST_PLAN_NS: Final = NS_PER_S // 2
"""At first sooner: after twice this, and each time after twice as long; nothing is known yet."""
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
        self._books: dict[str, Book] = {}
        self._at_home: dict[str, list[int]] = {}
        self._seats: dict[str, dict[int, Seat]] = {}
        self._prefillers: dict[str, int] = {}
        self._decoding: dict[str, bool] = {}
        self._hopeless: dict[str, list[bool]] = {}

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        """See ``Policy``."""
        self._index = index
        self._promises = [configured.promises[tier] for tier in Tier]
        self._tables = {
            model: [prices[tier] for tier in Tier] for model, prices in configured.prices.items()
        }
        for book in self._books.values():
            book.planned_ns = None

    def record(self) -> bytes:
        """See ``Policy``."""
        return msgspec.msgpack.encode(self._books)

    def restore(self, data: bytes) -> None:
        """See ``Policy``."""
        self._books = msgspec.msgpack.decode(data, type=dict[str, Book])
        for model, book in self._books.items():
            self._remember(model, book)

    # Learning.

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        """See ``Policy``."""
        book = self._books.get(request.model) or self._book(request.model)
        book.means[request.rank].come(request.input_tokens_max)
        planned_ns, due = book.planned_ns, False
        if planned_ns is not None and now_ns - planned_ns >= FIRST_PLAN_NS:
            wait_ns = min(PLAN_NS, FIRST_PLAN_NS << min(book.plans, 60))
            due = now_ns - planned_ns >= wait_ns
        if due or planned_ns is None or fleet.changes != book.changes:
            self._know(fleet, book, request.model, now_ns, due=due)

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:  # noqa: ARG002
        """See ``Policy``."""
        prompt = request.input_tokens_max
        computed = max(1, prompt - event.cached_input_tokens)
        self._book(request.model).means[request.rank].end(prompt, computed, event.output_tokens)

    def _book(self, model: ModelName) -> Book:
        book = self._books.get(model)
        if book is None:
            book = self._books[model] = Book()
        return book

    def _know(
        self, fleet: Fleet, book: Book, model: ModelName, now_ns: int, *, due: bool = False
    ) -> None:
        """Plan if that is due, or the first time, or if workers have changed since."""
        if due or book.planned_ns is None:
            self._measure_rates(book, now_ns)
        elif fleet.changes == book.changes:
            return
        self._plan(fleet, book, model)

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

    def _plan(self, fleet: Fleet, book: Book, model: ModelName) -> None:
        """Find needs, prices and homes anew."""
        prices = self._tables.get(model) or [_NO_PRICE] * len(RANKS)
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
        self._remember(model, book)

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

    def _remember(self, model: str, book: Book) -> None:
        """Keep what follows from a book of each worker, and the sets of workers."""
        self._at_home[model] = at_home_masks(book.homes)
        self._seats[model] = {
            index: (at, book.homes.get(index, 0), book.kinds[at])
            for index, at in book.kind_of.items()
        }
        self._prefillers[model] = sum(1 << index for index in book.prefillers)
        self._hopeless[model] = [
            rank > 0 and not any(kind.caps[rank] for kind in book.kinds) for rank in RANKS
        ]
        self._decoding[model] = any(kind.prefilled_by is not None for kind in book.kinds)

    # Deciding.

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        """See ``Policy``."""
        book, rank = self._books.get(request.model) or self._book(request.model), request.rank
        if fleet.changes != book.changes:  # since who waits came
            self._know(fleet, book, request.model, now_ns)
        choice = None
        if not self._is_late(book, request, now_ns):
            if fleet.admitting[rank]:
                choice = self._best(fleet, book, request, rank, now_ns)
            if choice is not None or fleet.load_max:
                return choice
        # An idle fleet gains nothing by waiting: nothing will happen but other arrivals.
        return self._degraded(fleet, book, request, now_ns)

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        """See ``Policy``."""
        model = fleet.workers[0].model
        book = self._book(model)
        self._know(fleet, book, model, now_ns)
        for rank in book.order:
            line = fleet.lines[rank]
            while line.punctual():
                request = line.head()
                if self._is_late(book, request, now_ns):
                    line.set_late(request)
                    continue
                choice = None
                if fleet.admitting[rank]:
                    choice = self._best(fleet, book, request, rank, now_ns)
                if choice is not None:
                    yield request, choice
                elif not fleet.load_max:  # as for ``place``
                    line.set_late(request)
                elif found := self._passing(fleet, book, request, now_ns):
                    yield found
                else:
                    break
        for rank in book.order:
            line = fleet.lines[rank]
            while late := line.late_head():
                choice = self._degraded(fleet, book, late, now_ns)
                if choice is None:
                    break
                yield late, choice

    def displace(
        self, fleet: Fleet, request: Request, now_ns: int, requests: Mapping[RequestID, Request]
    ) -> Displacement | None:
        """Whose place one that is about to miss its promise takes, if that is worth more."""
        book, rank = self._book(request.model), request.rank
        self._know(fleet, book, request.model, now_ns)
        if not rank or book.prefillers or self._is_late(book, request, now_ns):
            return None
        may = permitted(fleet, request, fleet.preempting)
        offer = self._offer(fleet, book, request, rank, now_ns)
        table = self._tables.get(request.model)
        below = table[rank - 1] if table else _NO_PRICE
        depth, holders = self._index.match(request.prefix, may) if request.prefix else (0, 0)

        def weigh(worker: Worker, victims: tuple[Request, ...]) -> Displacement:
            hit = depth if holders >> worker.index & 1 else 0
            value = offer.value(worker, hit, -1)
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
        self, fleet: Fleet, book: Book, first: Request, now_ns: int
    ) -> tuple[Request, Choice] | None:
        """Who may pass one that is first in turn and has an unusually long prompt.

        It may fit nowhere for long, where those of other tenants do.
        """
        rank = first.rank
        if first.input_tokens_max <= LONG_PREFILL * book.means[rank].context_tokens:
            return None
        if not fleet.admitting[rank]:
            return None
        others = itertools.islice(fleet.lines[rank].heads(), 1, 1 + PASSING_MAX)
        for request in others:
            choice = self._best(fleet, book, request, rank, now_ns)
            if choice is not None:
                return request, choice
        return None

    def _is_late(self, book: Book, request: Request, now_ns: int) -> bool:
        """Whether no worker, were it idle, could keep its promise."""
        rank = request.rank
        if self._hopeless[request.model][rank]:
            return True
        left_ns = request.arrived_ns + self._promises[rank].ttft_ns - now_ns
        computed = book.means[rank].computed_of(request.input_tokens_max)
        return left_ns * FS_PER_NS < book.kinds[book.soonest].prefill_timing.prefill_fs(computed, 0)

    def _degraded(self, fleet: Fleet, book: Book, request: Request, now_ns: int) -> Choice | None:
        """The best place for a request that is late for its own tier: at a lower one, or free."""
        for rank in range(max(request.rank - 1, 0), -1, -1):
            if rank and now_ns - request.arrived_ns >= self._promises[rank].ttft_ns:
                continue
            if fleet.admitting[rank]:
                choice = self._best(fleet, book, request, rank, now_ns)
                if choice is not None:
                    return choice
        return None

    def _best(
        self, fleet: Fleet, book: Book, request: Request, rank: int, now_ns: int
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
        offer = self._offer(fleet, book, request, rank, now_ns)
        if request.input_tokens_max >= fleet.kv_tokens_least:
            for worker in fleet.each(may):
                if not offer.fits(worker):
                    may ^= 1 << worker.index
        if not book.prefillers:
            return self._whole(fleet, request, offer, may)
        if request.needs is not None:
            return self._alone(fleet, request, offer, may)
        may &= ~self._prefillers[request.model]
        return self._apart(fleet, request, offer, may)

    def _offer(self, fleet: Fleet, book: Book, request: Request, rank: int, now_ns: int) -> Offer:
        """A request at a tier, to be priced on some workers."""
        table, seats = self._tables.get(request.model), self._seats[request.model]
        price = table[rank] if table else _NO_PRICE
        left_ns = request.arrived_ns + self._promises[rank].ttft_ns - now_ns
        offer = Offer(book, seats, request, rank, price, left_ns, now_ns)
        if request.input_tokens_max >= fleet.kv_tokens_least:
            offer.bound_by(fleet.kv_tokens_max(request.needs))
        if self._decoding[request.model]:
            offer.elsewhere_tokens = sum(
                worker.prefill_tokens for worker in fleet.workers if worker.prefilled_by is not None
            )
        return offer

    def _whole(self, fleet: Fleet, request: Request, offer: Offer, may: int) -> Choice | None:
        """The best of some workers, where the one that decodes it prefills it, too."""
        own, above, below = self._by_home(request.model, offer.rank, may)
        depth, holders = self._index.match(request.prefix, may) if request.prefix else (0, 0)
        some = _lowest(fleet.least_loaded(holders)) if holders else 0
        if own:
            some |= self._shortlist(fleet, offer.book, own)
        if request.session is not None:
            some |= fleet.home(request) & may
        seen, stages = some, [above, below]
        best_value, best = -1, None
        by_index, value_at = fleet.by_index, offer.value
        while True:
            while some:
                bit = some & -some
                some ^= bit
                worker = by_index[bit.bit_length() - 1]
                value = value_at(worker, depth if holders & bit else 0, best_value)
                if value > best_value:
                    best_value, best = value, worker
            if best is not None:
                hit = depth if holders >> best.index & 1 else 0
                offer.taken(best, hit)
                return Choice(best, "best_value", hit, offer.rank, may.bit_count(), best_value)
            while stages and not some:
                mask = stages.pop(0) & ~seen
                some = _lowest(fleet.least_loaded(mask)) if mask else 0
            if not some:
                return None
            seen |= some

    def _alone(self, fleet: Fleet, request: Request, offer: Offer, may: int) -> Choice | None:
        """The same for one that only some may serve, where some workers prefill for others.

        Who decodes it prefills it, too, be it one that only prefills for others.
        """
        decoders = may & ~self._prefillers[request.model]
        if decoders or not may:
            return self._whole(fleet, request, offer, decoders)
        worker = fleet.first(fleet.least_loaded(may))
        return Choice(worker, "least_loaded", 0, offer.rank, may.bit_count())

    def _apart(self, fleet: Fleet, request: Request, offer: Offer, may: int) -> Choice | None:
        """The same where some workers prefill for those that decode."""
        if not may:
            return None
        book, prefillers = offer.book, self._prefillers[request.model]
        depth, holders = self._index.match(request.prefix, prefillers) if request.prefix else (0, 0)
        some = prefillers
        if some.bit_count() > PREFILLERS_MAX:
            some = self._few(book, prefillers) | (self._few(book, holders) if holders else 0)
        best_cost, prefiller, hit = FOREVER_FS, None, 0
        by_index, avoided, left = fleet.by_index, request.avoided, some
        while left:
            bit = left & -left
            left ^= bit
            each = by_index[bit.bit_length() - 1]
            if avoided is not None and each.worker == avoided and some & (some - 1):
                continue
            found = depth if holders & bit else 0
            cost = offer.prefill_cost_fs(each, found, best_cost)
            if cost < best_cost:
                best_cost, prefiller, hit = cost, each, found
        if prefiller is None:
            if any(offer.fits(each) for each in fleet.each(prefillers)):
                return None
            return self._whole(fleet, request, offer, may)
        worth = offer.prefilled(prefiller, hit)
        own, above, below = self._by_home(request.model, offer.rank, may)
        for mask in (own, above, below):
            if not mask:
                continue
            few = mask == own
            some = self._shortlist(fleet, book, own) if few else _lowest(fleet.least_loaded(mask))
            best_value, best = -1, None
            while some:
                bit = some & -some
                some ^= bit
                worker = by_index[bit.bit_length() - 1]
                value = offer.decode_value(worker, worth, best_value)
                # Of equals, the one with less to do.
                if value > best_value or (
                    value == best_value and best is not None and worker.load < best.load
                ):
                    best_value, best = value, worker
            if best is not None:
                count = may.bit_count()
                return Choice(best, "best_value", hit, offer.rank, count, best_value, prefiller)
        return None

    def _by_home(self, model: str, rank: int, may: int) -> tuple[int, int, int]:
        """Some workers: those at home in a tier, above it and below it."""
        at_home = self._at_home[model]
        above, below = may & at_home[rank + 1], may & ~at_home[rank]
        return may ^ above ^ below, above, below

    def _shortlist(self, fleet: Fleet, book: Book, own: int) -> int:
        """Of those at home in the tier, at least one, the least loaded and two at random."""
        some = fleet.least_loaded(own)
        some &= -some
        return some | self._few(book, own) if own & (own - 1) else some

    @staticmethod
    def _few(book: Book, mask: int) -> int:
        """Up to two workers of some, at random: each the first from a place on, or of all."""
        book.dice = dice = (book.dice * _LCG_A + _LCG_C) & WORD
        length = mask.bit_length()
        at = (dice >> 32) % length
        one = mask >> at << at or mask
        at = (dice & 0xFFFFFFFF) % length
        other = mask >> at << at or mask
        return (one & -one) | (other & -other)


_NO_PRICE: Final = TokenPrice(
    input_udollars_per_mtok=0, cached_udollars_per_mtok=0, output_udollars_per_mtok=0
)


def _lowest(mask: int) -> int:
    return mask & -mask

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
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch.events import Configured, Finished, TokenPrice
from tokenworks.dispatch.fleet import RANKS, Fleet, Worker
from tokenworks.dispatch.market import (
    Kind,
    Prefill,
    Sale,
    TierMeans,
    at_home_masks,
    best_split,
    homes_for,
    kind_of,
    market,
    revenue_nanodollars,
    timing_of,
)
from tokenworks.dispatch.policy import Choice, others_first, permitted
from tokenworks.dispatch.preemption import Displacement, best_of, loss_nanodollars
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.waiting import Request
from tokenworks.perf.timing import FS_PER_NS, FS_PER_S, Timing

PLAN_NS: Final = 5 * NS_PER_S
"""Prices and homes are found anew this often."""
FIRST_PLAN_NS: Final = NS_PER_S // 2
"""At first sooner: after twice this, and each time after twice as long; nothing is known yet."""
QUEUED_MEANS_MAX: Final = 4
"""A worker with more than so many mean prefills to do takes no more of high and above; of medium,
with twice as many: a burst of prefills is a stall for all that decode there."""
HEADROOM_PERCENT: Final = 85
"""Up to this part of its cap a worker takes requests of tiers below its home."""
WHOLE_KEPT_PERCENT: Final = 90
"""What a fleet without a split is taken to earn of what it sells: its prefills break promises that
are not broken where others prefill."""
PREFILL_BATCHES_MAX: Final = 2
"""Who only prefills has no more than so many full iterations to do when it is sent another prompt:
enough to be busy until the next decision."""
PASSING_MAX: Final = 3
"""Heads of other tenants that are looked at where an unusually long prompt is first in turn."""
PREFILLERS_MAX: Final = 4
"""Of more than so many, two at random are looked at, and two that have the prefix."""
QUEUE_WEIGHT_SHIFT: Final = 2
"""A second of queue counts as 1/4 of a second of work, when who prefills is chosen."""
PACE_PERCENT: Final = 95
"""Part of the time per token that a promise allows up to which a worker that only decodes is
filled."""
FOREVER_FS: Final = 1 << 80
# Knuth's MMIX constants for a linear congruential generator, TAOCP vol. 2, 3.3.4, table 1.
_LCG_A: Final = 6364136223846793005
_LCG_C: Final = 1442695040888963407
LONG_PREFILL: Final = 2
"""A prefill counts as a stall from so many times the mean on; shorter ones are in the caps."""
_RATE_FORGOTTEN: Final = 32
RATE_SHIFT: Final = 1
"""A plan moves the rates by 1/2 of the difference."""


class Book(msgspec.Struct, kw_only=True):
    """What the policy remembers of one model; lists are by tier rank.

    Attributes:
        planned_ns: when it last planned; None before the first time.
        plans: how often it has measured rates.
        changes: of the fleet, when it last planned.
        means: of each tier's requests.
        revenue_nanodollars: of one of each tier's requests, when it last planned.
        order: tier ranks, those that earn most per worker's second first.
        kinds: classes of workers, when it last planned.
        soonest: the place of the class that prefills fastest.
        kind_of: by worker index, its class.
        homes: by worker index, the tier rank in which it is at home.
        prefillers: indices of workers that only prefill, if there are any; the others then decode.
        prefill_price_nanodollars: what a second of one of these is worth.
        stalls: by worker index, prefill that those who decode there have still to bear, in
            femtoseconds, and when that was so.
        dice: for the shortlist.
    """

    planned_ns: int | None = None
    plans: int = 0
    changes: int = 0
    means: list[TierMeans] = msgspec.field(default_factory=lambda: [TierMeans() for _ in RANKS])
    revenue_nanodollars: list[int] = []
    order: list[int] = []
    kinds: list[Kind] = []
    soonest: int = 0
    kind_of: dict[int, int] = {}
    homes: dict[int, int] = {}
    prefillers: list[int] = []
    prefill_price_nanodollars: int = 0
    stalls: dict[int, tuple[int, int]] = {}
    dice: int = 1


class Economics:
    """See the module's text."""

    def __init__(self) -> None:
        self._index = PrefixIndex(0)
        self._promises: list[Promise] = []
        self._tables: dict[str, list[TokenPrice]] = {}
        self._books: dict[str, Book] = {}
        self._at_home: dict[str, list[int]] = {}
        self._seats: dict[str, dict[int, _Seat]] = {}
        self._prefillers: dict[str, int] = {}

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
        groups: dict[tuple[Timing, int, int | None], list[Worker]] = {}
        for worker in fleet.workers:
            alike = (timing_of(worker), worker.slots, worker.kv_blocks)
            groups.setdefault(alike, []).append(worker)
        classes = list(groups.values())
        rates = [mean.rate_per_ks for mean in book.means]
        kinds = [kind_of(each[0], len(each), book.means, self._promises) for each in classes]
        sale, prefill = market(kinds, rates, revenue), None
        if len(fleet.workers) > 1 and all(worker.hands_over for worker in fleet.workers):
            apart = [
                kind_of(each[0], len(each), book.means, self._promises, split=True)
                for each in classes
            ]
            found = best_split(apart, rates, revenue)
            if found and found[1].earned * 100 >= sale.earned * WHOLE_KEPT_PERCENT:
                kinds, (prefill, sale) = apart, found
        book.kinds, book.prefill_price_nanodollars = kinds, sale.prefill_price
        book.soonest = min(
            range(len(kinds)), key=lambda at: kinds[at].timing.prefill_token_fs, default=0
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
            counts = homes_for(sale.taken[at], len(free))
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
        offer = self._offer(book, request, rank, now_ns)
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
        """Whether no worker, were it idle, could begin its answer within the TTFT promise."""
        rank = request.rank
        left_ns = request.arrived_ns + self._promises[rank].ttft_ns - now_ns
        computed = book.means[rank].computed_of(request.input_tokens_max)
        return left_ns * FS_PER_NS < book.kinds[book.soonest].timing.prefill_fs(computed, 0)

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
        offer = self._offer(book, request, rank, now_ns)
        if not book.prefillers:
            return self._whole(fleet, request, offer, may)
        if request.needs is not None:
            return self._alone(fleet, request, offer, may)
        may &= ~self._prefillers[request.model]
        return self._apart(fleet, request, offer, may)

    def _offer(self, book: Book, request: Request, rank: int, now_ns: int) -> _Offer:
        """A request at a tier, to be priced on some workers."""
        table, seats = self._tables.get(request.model), self._seats[request.model]
        price = table[rank] if table else _NO_PRICE
        left_ns = request.arrived_ns + self._promises[rank].ttft_ns - now_ns
        return _Offer(book, seats, request, rank, price, left_ns, now_ns)

    def _whole(self, fleet: Fleet, request: Request, offer: _Offer, may: int) -> Choice | None:
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

    def _alone(self, fleet: Fleet, request: Request, offer: _Offer, may: int) -> Choice | None:
        """The same for one that only some may serve, where some workers prefill for others.

        Who decodes it prefills it, too, be it one that only prefills for others.
        """
        decoders = may & ~self._prefillers[request.model]
        if decoders or not may:
            return self._whole(fleet, request, offer, decoders)
        worker = fleet.first(fleet.least_loaded(may))
        return Choice(worker, "least_loaded", 0, offer.rank, may.bit_count())

    def _apart(self, fleet: Fleet, request: Request, offer: _Offer, may: int) -> Choice | None:
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


class _Offer:
    """A request at a tier, to be priced on some workers; what only depends on it is found once."""

    __slots__ = (
        "_made",
        "_now_ns",
        "_price",
        "_prompt",
        "_queued_tokens_max",
        "_seats",
        "_ttft_fs",
        "_usual_tokens",
        "_worths",
        "book",
        "rank",
    )

    def __init__(
        self,
        book: Book,
        seats: dict[int, _Seat],
        request: Request,
        rank: int,
        price: TokenPrice,
        left_ns: int,
        now_ns: int,
    ) -> None:
        self.book, self.rank, self._price, self._now_ns = book, rank, price, now_ns
        self._seats = seats
        mean, most = book.means[request.rank], request.output_tokens_max
        made = mean.output_tokens
        if request.hints is not None:
            made = request.hints.output_tokens or made
        self._made = min(made, most)
        self._prompt = request.input_tokens_max
        usual = mean.computed_of(mean.context_tokens)
        self._usual_tokens = LONG_PREFILL * usual
        means = QUEUED_MEANS_MAX if rank > 1 else 2 * QUEUED_MEANS_MAX
        # Whoever is free may wait behind any number.
        self._queued_tokens_max = means * usual if rank else FOREVER_FS
        # Free is what is left when no promise was kept: it has none to lose.
        self._ttft_fs = left_ns * FS_PER_NS if rank else FOREVER_FS
        self._worths: dict[tuple[int, int], tuple[int, int]] = {}

    def value(self, worker: Worker, hit: int, floor: int) -> int:
        """What the request adds there, in nano-dollars; not above the floor: not there.

        Args:
            worker: that takes it, prefill included.
            hit: blocks of its prompt that are in the prefix cache there.
            floor: at least -1; a value that is not above this is of no interest, so something else
                may be returned for it.
        """
        rank = self.rank
        at, home, kind = self._seats[worker.index]
        own_fs, value = self._worths.get((at, hit)) or self._worth_at(at, worker, hit)
        if value <= floor:  # all that follows only takes from it
            return -1
        running, queued, caps = len(worker.running), worker.prefill_tokens, kind.caps
        if (
            queued > self._queued_tokens_max
            # As _may_join and fits say.
            or not caps[rank]
            or (rank < home and running * 100 >= caps[home] * HEADROOM_PERCENT)
            or (
                worker.kv_blocks is not None
                and self._prompt >= worker.kv_blocks * worker.block_tokens
            )
        ):
            return -1
        if running and kind.price_nanodollars:
            value -= self._displaced(kind, running, home, own_fs)
            if value <= floor:
                return -1
        timing = kind.timing
        # As Timing.decode_fs says.
        decode_fs = (
            timing.launch_fs
            + running * timing.sequence_fs
            + worker.context_tokens * timing.context_token_fs
        )
        if timing.knots:
            decode_fs = timing.decode_fs(running, worker.context_tokens)
        # Between the chunks of all that is to be prefilled before, those that decode go on.
        chunks = 2 + queued // worker.batch_tokens_max
        if own_fs + queued * timing.prefill_token_fs + chunks * decode_fs > self._ttft_fs:
            return -1
        if worker.dearest and self._stalls(kind, worker, own_fs, decode_fs):
            return -1
        if own_fs > timing.prefill_token_fs * self._usual_tokens:
            value -= self._broken(kind, worker, own_fs)
        return value

    def earned_at(self, price: TokenPrice, worker: Worker, hit: int) -> int:
        """What it earns there at another tier's price, in nano-dollars."""
        computed = max(1, self._prompt - hit * worker.block_tokens)
        return revenue_nanodollars(price, computed, self._prompt, self._made)

    def prefill_cost_fs(self, worker: Worker, hit: int, ceiling: int) -> int:
        """What it takes of one that only prefills, with a part of the time it would wait there.

        Forever if its answer would begin too late, or if others must be prefilled there before.

        Args:
            worker: that prefills.
            hit: blocks of its prompt that are in the prefix cache there.
            ceiling: a cost that is not below this is of no interest, so it may be forever.
        """
        at, _, kind = self._seats[worker.index]
        own_fs, _ = self._worths.get((at, hit)) or self._worth_at(at, worker, hit)
        if own_fs >= ceiling:
            return FOREVER_FS
        queued, timing = worker.prefill_tokens, kind.timing
        if queued > PREFILL_BATCHES_MAX * worker.batch_tokens_max or (
            worker.kv_blocks is not None and self._prompt >= worker.kv_blocks * worker.block_tokens
        ):
            return FOREVER_FS
        queued_fs = queued * timing.prefill_token_fs + 2 * timing.launch_fs
        if queued_fs + own_fs > self._ttft_fs:
            return FOREVER_FS
        return (queued_fs >> QUEUE_WEIGHT_SHIFT) + own_fs

    def prefilled(self, worker: Worker, hit: int) -> int:
        """What it earns less the prefill that one takes for it, in nano-dollars."""
        own_fs, earned = self._worth_at(self._seats[worker.index][0], worker, hit)
        full = PREFILL_BATCHES_MAX * worker.batch_tokens_max
        busy = min(worker.prefill_tokens, full)
        return earned - own_fs * self.book.prefill_price_nanodollars // FS_PER_S * busy // full

    def decode_value(self, worker: Worker, worth: int, floor: int) -> int:
        """What it adds where it is only decoded, in nano-dollars; below zero: not there.

        Args:
            worker: that decodes.
            worth: what is left of its revenue after its prefill.
            floor: at least -1; as for ``value``, but one that equals this is of interest.
        """
        _, home, kind = self._seats[worker.index]
        running = len(worker.running)
        if not self._may_join(kind, home, running):
            return -1
        value = worth
        if running and kind.price_nanodollars:
            value -= self._displaced(kind, running, home, 0)
        if value < floor:
            return -1
        batch = running + 1
        context = worker.context_tokens + self._prompt + batch * (self._made >> 1)
        if not self.fits(worker, context if running else 0):
            return -1
        dearest = max(worker.dearest, self.rank)
        if dearest:
            pace_fs = kind.timing.decode_fs(batch, context)
            if pace_fs * 100 > kind.allowed_fs[dearest] * PACE_PERCENT:
                return -1
        return value

    def _may_join(self, kind: Kind, home: int, running: int) -> bool:
        """Whether a worker can keep its tier's promise, and has headroom for its own if lower."""
        cap = kind.caps[home] * HEADROOM_PERCENT
        return kind.caps[self.rank] > 0 and (self.rank >= home or running * 100 < cap)

    def fits(self, worker: Worker, context: int = 0) -> bool:
        """Whether a worker's KV cache has room for its prompt, and for so many tokens in all."""
        if worker.kv_blocks is None:
            return True
        return max(self._prompt + 1, context) <= worker.kv_blocks * worker.block_tokens

    def _displaced(self, kind: Kind, running: int, home: int, own_fs: int) -> int:
        """What it takes from others at the class's price, in nano-dollars."""
        price = kind.price_nanodollars
        rank, made, token_fs = self.rank, self._made, kind.token_fs
        if rank > home:
            # Those of lower tiers there must make room for a smaller batch.
            slower = token_fs[rank] - token_fs[home]
            busy_fs = own_fs + made * token_fs[rank] + running * (made // 2) * slower
            full = kind.caps[rank] or 1
        else:
            busy_fs = own_fs + made * token_fs[home]
            full = kind.caps[home] or 1
        return busy_fs * price // FS_PER_S * min(running, full) // full

    def _worth_at(self, at: int, worker: Worker, hit: int) -> tuple[int, int]:
        """Its prefill and its revenue on a class, with so many blocks of its prompt cached."""
        worth = self._worths.get((at, hit))
        if worth is not None:
            return worth
        prompt = self._prompt
        computed = prompt - hit * worker.block_tokens
        if computed < 1:
            computed = 1
        own_fs = self.book.kinds[at].timing.prefill_fs(computed, prompt - computed)
        earned = revenue_nanodollars(self._price, computed, prompt, self._made)
        self._worths[at, hit] = worth = (own_fs, earned)
        return worth

    def _stalls(self, kind: Kind, worker: Worker, own_fs: int, decode_fs: int) -> bool:
        """Whether its prefill is more than those who decode there can bear, after the last ones.

        One of the dearest tier there, which is paid for, can bear as much prefill in its life as
        its promise leaves beside its iterations. What was sent before is forgotten at the rate at
        which that comes.
        """
        dearest = worker.dearest
        book, index = self.book, worker.index
        allowed = kind.allowed_fs[dearest]
        spare = allowed - decode_fs if decode_fs < allowed else 1
        bearable = book.means[dearest].output_tokens * spare - own_fs
        known = book.stalls.get(index)
        if known is None or known[0] <= bearable:  # it becomes only less
            return bearable < 0
        return self._level(index, spare, allowed) > bearable

    def _level(self, index: int, spare: int, allowed: int) -> int:
        """Prefill that those who decode on a worker have still to bear, in femtoseconds."""
        known = self.book.stalls.get(index)
        if known is None:
            return 0
        level_fs = known[0] - (self._now_ns - known[1]) * FS_PER_NS * spare // allowed
        return level_fs if level_fs > 0 else 0  # noqa: FURB136 - a third faster than max

    def taken(self, worker: Worker, hit: int) -> None:
        """Note the prefill that the worker will do for it."""
        index, rank = worker.index, self.rank
        at, home, kind = self._seats[index]
        own_fs, _ = self._worths[at, hit]
        if home < rank:
            home = rank
        allowed = kind.allowed_fs[home or 1]
        spare = allowed - kind.timing.decode_fs(len(worker.running), worker.context_tokens)
        level = self._level(index, spare if spare > 1 else 1, allowed)  # noqa: FURB136
        self.book.stalls[index] = (level + own_fs, self._now_ns)

    def _broken(self, kind: Kind, worker: Worker, own_fs: int) -> int:
        """What a prefill that is much longer than most breaks of the promises that run there."""
        excess_fs = own_fs - kind.timing.prefill_token_fs * self._usual_tokens
        revenue, loss = self.book.revenue_nanodollars, 0
        for rank in RANKS[1:]:
            count = worker.counts[rank]
            if count:
                broken = min(PPM, excess_fs * PPM // kind.slack_fs[rank])
                loss += count * (revenue[rank] - revenue[rank - 1]) * broken // PPM
        return loss


_Seat = tuple[int, int, Kind]
"""Of one worker: the place of its class, the tier rank in which it is at home, its class."""
_NO_PRICE: Final = TokenPrice(
    input_udollars_per_mtok=0, cached_udollars_per_mtok=0, output_udollars_per_mtok=0
)


def _lowest(mask: int) -> int:
    return mask & -mask

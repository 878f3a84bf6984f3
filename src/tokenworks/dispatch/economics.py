"""The economic policy: each request goes where it adds the most expected money.

Four ideas, each a few lines below.

**What a request needs.** In a worker whose batch is as large as tier t's promise allows, one
request takes ``output x iteration / batch`` of the worker's time to decode and its prefill on top.
The batch that a promise allows counts the prefills that will run between its iterations: with a
prefill of P for each answer of L tokens, a batch of b gives each user one token per
``iteration(b) + b P / L``.

**What a worker's second is worth.** Demand by tier is measured; a market price per second of each
class of workers is found at which the classes are just full. What a request adds is
its revenue at the tier that it will get, less the seconds that it takes at that price, less what
its prefill breaks of the promises that run there.

**Homes.** Each worker is at home in one tier, in proportion to what the tiers need at that price,
with more room for those that pay most: a worker full of free requests can't turn fast when a crowd
of ultra comes. A tier uses workers that are at home in a higher one as long as these keep headroom,
and others where it keeps every promise that runs there.

**Waiting.** A request that finds no worker where it earns its tier waits while its TTFT promise
has slack for that; then it takes the best that is left, at a lower tier's price. One that can earn
nothing more comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from tokenworks.core.ids import ModelName
from tokenworks.core.rng import WORD
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch.events import Configured, Finished, TokenPrice
from tokenworks.dispatch.fleet import RANKS, Fleet, Worker
from tokenworks.dispatch.policy import Choice, others_first
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.waiting import Request
from tokenworks.perf.timing import FS_PER_NS, FS_PER_S, Timing

PLAN_NS: Final = 10 * NS_PER_S
"""Prices and homes are found anew this often."""
FIRST_PLAN_NS: Final = NS_PER_S // 2
"""At first sooner: after twice this, and each time after twice as long; nothing is known yet."""
MEAN_SHIFT: Final = 5
"""A finished answer moves the means by 1/32 of the difference."""
RESERVE_PERCENT: Final = (80, 100, 130, 170, 300)
"""Workers that are at home in a tier, in per cent of its need, from free to ultra."""
CAP_PERCENT: Final = (100, 90, 85, 75, 70)
"""Part of the time per token that a promise allows which its cap is made for: what is dear has
more to lose by a stall above the mean."""
QUEUED_MEANS_MAX: Final = 4
"""A worker with more than so many mean prefills to do takes no more of high and above; of medium,
with twice as many: a burst of prefills is a stall for all that decode there."""
HEADROOM_PERCENT: Final = 85
"""Up to this part of its cap a worker takes requests of tiers below its home."""
FOREVER_FS: Final = 1 << 80
# Knuth's MMIX constants for a linear congruential generator, TAOCP vol. 2, 3.3.4, table 1.
_LCG_A: Final = 6364136223846793005
_LCG_C: Final = 1442695040888963407
LONG_PREFILL: Final = 2
"""A prefill counts as a stall from so many times the mean on; shorter ones are in the caps."""
RATE_SHIFT: Final = 1
"""A plan moves the rates by 1/2 of the difference."""


class TierMeans(msgspec.Struct, kw_only=True):
    """What is known of a tier's requests.

    Attributes:
        arrived: since the last plan.
        rate_per_ks: requests per 1,000 s, smoothed.
        prefill_tokens: of one, computed.
        context_tokens: of one, prompt.
        output_tokens: of one.
    """

    arrived: int = 0
    rate_per_ks: int = 0
    prefill_tokens: int = 4_000
    context_tokens: int = 8_000
    output_tokens: int = 300


class Kind(msgspec.Struct, kw_only=True):
    """A class of workers, those of one timing, and what each tier takes of them; lists by rank.

    Attributes:
        timing: of its iterations.
        workers: how many there are.
        price_nanodollars: what a second of one is worth.
        caps: the batch that each promise allows, with prefills between; 0 where none does.
        token_fs: worker time per token at that batch.
        busy_fs: worker time of one request.
        slack_fs: how much longer one answer may take than it does at the cap.
        allowed_fs: time per token that each promise allows.
    """

    timing: Timing
    workers: int
    price_nanodollars: int
    caps: list[int]
    token_fs: list[int]
    busy_fs: list[int]
    slack_fs: list[int]
    allowed_fs: list[int]


class Book(msgspec.Struct, kw_only=True):
    """What the policy remembers of one model; lists are by tier rank.

    Attributes:
        planned_ns: when it last planned; None before the first time.
        plans: how often it has measured rates.
        means: of each tier's requests.
        revenue_nanodollars: of one of each tier's requests, when it last planned.
        order: tier ranks, those that earn most per worker's second first.
        kinds: classes of workers, when it last planned.
        kind_of: by worker index, its class.
        homes: by worker index, the tier rank in which it is at home.
        stalls: by worker index, prefill that those who decode there have still to bear, in
            femtoseconds, and when that was so.
        dice: for the shortlist.
    """

    planned_ns: int | None = None
    plans: int = 0
    means: list[TierMeans] = msgspec.field(default_factory=lambda: [TierMeans() for _ in RANKS])
    revenue_nanodollars: list[int] = []
    order: list[int] = []
    kinds: list[Kind] = []
    kind_of: dict[int, int] = {}
    homes: dict[int, int] = {}
    stalls: dict[int, tuple[int, int]] = {}
    dice: int = 1


def kind_of(sample: Worker, workers: int, means: list[TierMeans], promises: list[Promise]) -> Kind:
    """What tiers take of a class of workers.

    Args:
        sample: one of them.
        workers: how many there are.
        means: of each tier's requests.
        promises: of each tier.
    """
    timing = timing_of(sample)
    total = sum(each.rate_per_ks for each in means) or 1
    prefill, output, context = (
        sum(each.rate_per_ks * amount for each, amount in zip(means, amounts, strict=True)) // total
        for amounts in (
            [each.prefill_tokens for each in means],
            [each.output_tokens for each in means],
            [each.context_tokens + each.output_tokens // 2 for each in means],
        )
    )
    stall_fs = timing.prefill_fs(prefill, 0) // max(1, output)
    batch_max = sample.slots
    if sample.kv_blocks is not None and context:
        batch_max = max(1, min(batch_max, sample.kv_blocks * sample.block_tokens // context))
    kind = Kind(
        timing=timing,
        workers=workers,
        price_nanodollars=0,
        caps=[],
        token_fs=[],
        busy_fs=[],
        slack_fs=[],
        allowed_fs=[],
    )
    for rank, (each, promise) in enumerate(zip(means, promises, strict=True)):
        allowed = FS_PER_S // max(1, promise.interactivity_tokens_per_s)
        allowed += promise.grace_ns * FS_PER_NS // max(1, each.output_tokens)
        cap = batch_within(timing, stall_fs, context, batch_max, allowed * CAP_PERCENT[rank] // 100)
        batch = max(1, cap)
        iteration = timing.decode_fs(batch, batch * context)
        kind.caps.append(cap)
        kind.token_fs.append(iteration // batch)
        kind.busy_fs.append(
            each.output_tokens * iteration // batch + timing.prefill_fs(each.prefill_tokens, 0)
        )
        kind.allowed_fs.append(allowed)
        kind.slack_fs.append(max(1, each.output_tokens * max(0, allowed - iteration)))
    return kind


def timing_of(worker: Worker) -> Timing:
    """How long a worker's iterations take; made of its speed curve where it says no more."""
    if worker.timing is not None:
        return worker.timing
    alone, full = worker.speeds[1], worker.speeds[worker.slots]
    launch = FS_PER_S // max(1, alone)
    step = (FS_PER_S // max(1, full) - launch) // max(1, worker.slots - 1)
    return Timing(
        launch_fs=launch,
        sequence_fs=max(0, step),
        context_token_fs=0,
        # Prefill is compute-bound: taken as twenty times faster than a lone user's decode.
        prefill_token_fs=launch // 20,
        prefill_context_fs=0,
    )


def batch_within(
    timing: Timing, stall_fs: int, context_tokens: int, batch_max: int, allowed_fs: int
) -> int:
    """The largest batch in which every user has a token per ``allowed_fs``; 0 if none has.

    Args:
        timing: of the worker.
        stall_fs: what the prefills of one more user add to everybody's time per token.
        context_tokens: of one user.
        batch_max: at most this.
        allowed_fs: time per token that the promise allows.
    """
    per_user = timing.sequence_fs + context_tokens * timing.context_token_fs + stall_fs
    left = allowed_fs - timing.launch_fs
    if left < per_user:
        return 0
    return min(batch_max, left // per_user) if per_user else batch_max


def market(kinds: list[Kind], rates_per_ks: list[int], revenue: list[int]) -> list[list[int]]:
    """Sell the classes' time to the tiers, what earns most per second first, and set its price.

    The price of a class that is sold out is what its last buyer earns per second: whoever takes a
    second more displaces that one. A class with time left costs nothing.

    Args:
        kinds: the classes; their prices are set.
        rates_per_ks: requests per 1,000 s, by tier rank.
        revenue: of one request, by tier rank, in nano-dollars.

    Returns:
        By class and tier rank, how much of its time the tier takes, in millionths of a worker.
    """
    taken = [[0] * len(RANKS) for _ in kinds]
    wanted = list(rates_per_ks)
    left = [kind.workers * PPM for kind in kinds]
    offers = sorted(
        (
            (revenue[rank] * FS_PER_S // kind.busy_fs[rank], rank, -at)
            for at, kind in enumerate(kinds)
            for rank in RANKS
            if kind.caps[rank]
        ),
        reverse=True,
    )
    for kind in kinds:
        kind.price_nanodollars = 0
    for density, rank, minus_at in offers:
        at = -minus_at
        need = wanted[rank] * kinds[at].busy_fs[rank] // (FS_PER_S // PPM * 1_000)
        share = min(need, left[at])
        if not share:
            continue
        taken[at][rank] += share
        left[at] -= share
        wanted[rank] -= wanted[rank] * share // need
        if not left[at]:
            kinds[at].price_nanodollars = density
    return taken


def homes_for(taken: list[int], workers: int) -> list[int]:
    """How many workers of a class are at home in each tier: from the top down, with reserve.

    Args:
        taken: what each tier takes, in millionths of a worker.
        workers: of the class.

    >>> homes_for([4_000_000, 1_000_000, 1_000_000, 700_000, 100_000], 8)
    [3, 1, 2, 1, 1]
    """
    homes, left = [0] * len(RANKS), workers
    for rank in reversed(RANKS):
        target = taken[rank] * RESERVE_PERCENT[rank] // 100
        count = min(left, (target + PPM * 3 // 4) // PPM)
        if target >= PPM // 10:
            count = max(count, min(1, left))
        homes[rank], left = count, left - count
    wanting = [rank for rank in RANKS if taken[rank]]
    homes[wanting[0] if wanting else 0] += left
    return homes


class Economics:
    """See the module's text."""

    def __init__(self) -> None:
        self._index = PrefixIndex(0)
        self._promises: list[Promise] = []
        self._tables: dict[str, list[TokenPrice]] = {}
        self._books: dict[str, Book] = {}
        self._at_home: dict[str, list[int]] = {}

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
        self._at_home = {model: _masks(book.homes) for model, book in self._books.items()}

    # Learning.

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        """See ``Policy``."""
        book = self._book(request.model)
        mean = book.means[request.rank]
        mean.arrived += 1
        mean.context_tokens += (request.input_tokens_max - mean.context_tokens) >> MEAN_SHIFT
        wait_ns = min(PLAN_NS, FIRST_PLAN_NS << min(book.plans, 60))
        due = book.planned_ns is not None and now_ns - book.planned_ns >= wait_ns
        self._know(fleet, book, request.model, now_ns, due=due)

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:  # noqa: ARG002
        """See ``Policy``."""
        mean = self._book(request.model).means[request.rank]
        mean.output_tokens += (event.output_tokens - mean.output_tokens) >> MEAN_SHIFT
        computed = max(1, request.input_tokens_max - event.cached_input_tokens)
        mean.prefill_tokens += (computed - mean.prefill_tokens) >> MEAN_SHIFT

    def _book(self, model: ModelName) -> Book:
        book = self._books.get(model)
        if book is None:
            book = self._books[model] = Book()
        return book

    def _know(
        self, fleet: Fleet, book: Book, model: ModelName, now_ns: int, *, due: bool = False
    ) -> None:
        """Plan if that is due, or the first time, or if workers came up since."""
        if due or book.planned_ns is None:
            self._measure_rates(book, now_ns)
        elif not fleet.up & ~self._at_home[model][0]:
            return
        self._plan(fleet, book, model)

    def _measure_rates(self, book: Book, now_ns: int) -> None:
        elapsed_ns = PLAN_NS if book.planned_ns is None else now_ns - book.planned_ns
        first = book.planned_ns is None
        for mean in book.means:
            rate = mean.arrived * 1_000 * NS_PER_S // max(1, elapsed_ns)
            mean.rate_per_ks += (rate - mean.rate_per_ks) >> (0 if first else RATE_SHIFT)
            mean.arrived = 0
        book.planned_ns = now_ns
        book.plans += 1

    def _plan(self, fleet: Fleet, book: Book, model: ModelName) -> None:
        """Find needs, prices and homes anew."""
        prices = self._tables.get(model) or [_NO_PRICE] * len(RANKS)
        book.revenue_nanodollars = [
            revenue_nanodollars(price, each.prefill_tokens, each.context_tokens, each.output_tokens)
            for price, each in zip(prices, book.means, strict=True)
        ]
        groups: dict[tuple[Timing, int, int | None], list[Worker]] = {}
        for worker in fleet.workers:
            groups.setdefault((timing_of(worker), worker.slots, worker.kv_blocks), []).append(
                worker
            )
        book.kinds = [
            kind_of(each[0], len(each), book.means, self._promises) for each in groups.values()
        ]
        rates = [mean.rate_per_ks for mean in book.means]
        taken = market(book.kinds, rates, book.revenue_nanodollars)
        before, book.homes, book.kind_of = book.homes, {}, {}
        for at, workers in enumerate(groups.values()):
            kind = book.kinds[at]
            counts = homes_for(taken[at], len(workers))
            free = list(workers)
            for rank in reversed(RANKS):
                free.sort(key=lambda each: (before.get(each.index) != rank, len(each.running)))
                for worker in free[: counts[rank]]:
                    book.homes[worker.index] = rank
                del free[: counts[rank]]
            for worker in workers:
                book.kind_of[worker.index] = at
                worker.recap([max(1, cap) for cap in kind.caps])
        densities = [
            max(
                (earned * FS_PER_S // kind.busy_fs[rank] for kind in book.kinds if kind.caps[rank]),
                default=0,
            )
            for rank, earned in enumerate(book.revenue_nanodollars)
        ]
        book.order = sorted(RANKS, key=lambda rank: (densities[rank], rank), reverse=True)
        fleet.recount()
        self._at_home[model] = _masks(book.homes)

    def price(self, model: ModelName, rank: int) -> TokenPrice:
        """What tokens earn at a tier; nothing where no prices are known."""
        table = self._tables.get(model)
        return table[rank] if table else _NO_PRICE

    def ttft_ns(self, rank: int) -> int:
        """The TTFT that a tier promises."""
        return self._promises[rank].ttft_ns

    # Deciding.

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        """See ``Policy``."""
        book = self._books[request.model]
        rank = request.rank
        if self._is_late(book, request, now_ns):
            return self._degraded(fleet, book, request, now_ns)
        if not fleet.admitting[rank]:
            return None
        return self._best(fleet, book, request, rank, now_ns)

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
                if not fleet.admitting[rank]:
                    break
                choice = self._best(fleet, book, request, rank, now_ns)
                if choice is None:
                    break
                yield request, choice
        for rank in book.order:
            line = fleet.lines[rank]
            while late := line.late_head():
                choice = self._degraded(fleet, book, late, now_ns)
                if choice is None:
                    break
                yield late, choice

    def _is_late(self, book: Book, request: Request, now_ns: int) -> bool:
        """Whether no worker, were it idle, could begin its answer within the TTFT promise."""
        left_ns = request.arrived_ns + self._promises[request.rank].ttft_ns - now_ns
        kind = book.kinds[0]
        own_fs = kind.timing.prefill_fs(
            min(request.input_tokens_max, book.means[request.rank].prefill_tokens), 0
        )
        return left_ns * FS_PER_NS < own_fs

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
        if request.worker is not None:
            may = others_first(fleet, request, may)
        at_home = self._at_home[request.model]
        above = may & at_home[rank + 1]
        below = may & ~at_home[rank]
        own = may ^ above ^ below
        depth, holders = self._index.match(request.prefix, may) if request.prefix else (0, 0)
        some = _lowest(fleet.least_loaded(holders)) if holders else 0
        if own:
            some |= _lowest(fleet.least_loaded(own))
            if own & (own - 1):
                book.dice = dice = (book.dice * _LCG_A + _LCG_C) & WORD
                some |= _somewhere(own, dice >> 32) | _somewhere(own, dice & 0xFFFFFFFF)
        seen, stages = 0, [above, below]
        offer = _Offer(self, book, request, rank, now_ns)
        best_value, best = -1, None
        while True:
            seen |= some
            while some:
                bit = some & -some
                some ^= bit
                worker = fleet.by_index[bit.bit_length() - 1]
                value = offer.value(worker, depth if holders & bit else 0)
                if value > best_value:
                    best_value, best = value, worker
            if best is not None:
                hit = depth if holders >> best.index & 1 else 0
                offer.taken(best, hit)
                return Choice(best, "best_value", hit, rank, may.bit_count(), best_value)
            while stages and not some:
                mask = stages.pop(0) & ~seen
                some = _lowest(fleet.least_loaded(mask)) if mask else 0
            if not some:
                return None


class _Offer:
    """A request at a tier, to be priced on some workers; what only depends on it is found once."""

    __slots__ = (
        "_book",
        "_made",
        "_now_ns",
        "_price",
        "_prompt",
        "_queued_tokens_max",
        "_rank",
        "_ttft_fs",
        "_usual_tokens",
        "_worths",
    )

    def __init__(
        self, policy: Economics, book: Book, request: Request, rank: int, now_ns: int
    ) -> None:
        self._book, self._rank, self._now_ns = book, rank, now_ns
        self._price = policy.price(request.model, rank)
        mean = book.means[request.rank]
        self._made = min(mean.output_tokens, request.output_tokens_max)
        self._prompt = request.input_tokens_max
        self._usual_tokens = LONG_PREFILL * mean.prefill_tokens
        means = QUEUED_MEANS_MAX if rank > 1 else 2 * QUEUED_MEANS_MAX
        # Whoever is free may wait behind any number.
        self._queued_tokens_max = means * mean.prefill_tokens if rank else FOREVER_FS
        left_ns = request.arrived_ns + policy.ttft_ns(rank) - now_ns
        # Free is what is left when no promise was kept: it has none to lose.
        self._ttft_fs = left_ns * FS_PER_NS if rank else FOREVER_FS
        self._worths: dict[tuple[int, int], tuple[int, int]] = {}

    def value(self, worker: Worker, hit: int) -> int:
        """What the request adds there, in nano-dollars; below zero: not there."""
        book, rank = self._book, self._rank
        at, home = book.kind_of[worker.index], book.homes[worker.index]
        kind = book.kinds[at]
        cap = kind.caps[rank]
        running = len(worker.running)
        if not cap or (rank < home and running * 100 >= kind.caps[home] * HEADROOM_PERCENT):
            return -1
        if worker.prefill_tokens > self._queued_tokens_max:
            return -1
        worth = self._worths.get((at, hit))
        if worth is None:
            worth = self._worths[at, hit] = self._worth(kind, hit * worker.block_tokens)
        own_fs, value = worth
        timing, queued = kind.timing, worker.prefill_tokens
        # Between the chunks of all that is to be prefilled before, those that decode go on.
        chunks = 2 + queued // worker.batch_tokens_max
        decode_fs = (
            timing.launch_fs
            + running * timing.sequence_fs
            + worker.context_tokens * timing.context_token_fs
        )
        if own_fs + queued * timing.prefill_token_fs + chunks * decode_fs > self._ttft_fs:
            return -1
        if running and self._stalls(kind, worker, own_fs, decode_fs):
            return -1
        price = kind.price_nanodollars
        if price:
            mode = max(home, rank)
            busy_fs = own_fs + self._made * kind.token_fs[mode]
            if rank > home:
                # Those of lower tiers there must make room for a smaller batch.
                slower = kind.token_fs[rank] - kind.token_fs[home]
                busy_fs += running * (self._made // 2) * slower
            full = kind.caps[mode] or 1
            value -= busy_fs * price // FS_PER_S * min(running, full) // full
        if own_fs > timing.prefill_token_fs * self._usual_tokens:
            value -= self._broken(kind, worker, own_fs)
        return value

    def _stalls(self, kind: Kind, worker: Worker, own_fs: int, decode_fs: int) -> bool:
        """Whether its prefill is more than those who decode there can bear, after the last ones.

        One of the dearest tier there can bear as much prefill in its life as its promise leaves
        beside its iterations. What was sent before is forgotten at the rate at which that comes.
        """
        dearest = next((rank for rank in reversed(RANKS) if worker.counts[rank]), 0)
        if not dearest:
            return False
        allowed = kind.allowed_fs[dearest]
        spare = max(1, allowed - decode_fs)
        level = self._level(worker.index, spare, allowed)
        made = self._book.means[dearest].output_tokens
        return level + own_fs > made * spare

    def _level(self, index: int, spare: int, allowed: int) -> int:
        """Prefill that those who decode on a worker have still to bear, in femtoseconds."""
        level_fs, at_ns = self._book.stalls.get(index, (0, 0))
        return max(0, level_fs - (self._now_ns - at_ns) * FS_PER_NS * spare // allowed)

    def taken(self, worker: Worker, hit: int) -> None:
        """Note the prefill that the worker will do for it."""
        book = self._book
        kind = book.kinds[book.kind_of[worker.index]]
        own_fs, _ = self._worths[book.kind_of[worker.index], hit]
        home = max(self._rank, book.homes[worker.index], 1)
        allowed = kind.allowed_fs[home]
        running = len(worker.running)
        decode = kind.timing.decode_fs(running, worker.context_tokens)
        level = self._level(worker.index, max(1, allowed - decode), allowed)
        book.stalls[worker.index] = (level + own_fs, self._now_ns)

    def _worth(self, kind: Kind, hit_tokens: int) -> tuple[int, int]:
        """Its prefill and its revenue on a class of workers, with some of its prompt cached."""
        computed = max(1, self._prompt - hit_tokens)
        own_fs = kind.timing.prefill_fs(computed, self._prompt - computed)
        return own_fs, revenue_nanodollars(self._price, computed, self._prompt, self._made)

    def _broken(self, kind: Kind, worker: Worker, own_fs: int) -> int:
        """What a prefill that is much longer than most breaks of the promises that run there."""
        excess_fs = own_fs - kind.timing.prefill_token_fs * self._usual_tokens
        revenue, loss = self._book.revenue_nanodollars, 0
        for rank in RANKS[1:]:
            count = worker.counts[rank]
            if count:
                broken = min(PPM, excess_fs * PPM // kind.slack_fs[rank])
                loss += count * (revenue[rank] - revenue[rank - 1]) * broken // PPM
        return loss


_NO_PRICE: Final = TokenPrice(
    input_udollars_per_mtok=0, cached_udollars_per_mtok=0, output_udollars_per_mtok=0
)


def revenue_nanodollars(price: TokenPrice, computed: int, prompt: int, output: int) -> int:
    """What an answer earns, in nano-dollars.

    Args:
        price: at the tier that is delivered.
        computed: prompt tokens that are computed.
        prompt: the whole prompt.
        output: tokens made.

    >>> revenue_nanodollars(TokenPrice(input_udollars_per_mtok=1_000_000,
    ...     cached_udollars_per_mtok=100_000, output_udollars_per_mtok=3_000_000), 100, 300, 50)
    270000
    """
    return (
        computed * price.input_udollars_per_mtok
        + max(0, prompt - computed) * price.cached_udollars_per_mtok
        + output * price.output_udollars_per_mtok
    ) // 1_000


def _masks(homes: dict[int, int]) -> list[int]:
    """By tier rank, and one beyond, the workers that are at home there or above."""
    masks = [0] * (len(RANKS) + 1)
    for index, home in homes.items():
        for rank in range(home + 1):
            masks[rank] |= 1 << index
    return masks


def _lowest(mask: int) -> int:
    return mask & -mask


def _somewhere(mask: int, number: int) -> int:
    """One bit of a mask at random: the first from a place on, or the first of all."""
    rest = mask >> number % mask.bit_length() << number % mask.bit_length()
    return _lowest(rest or mask)

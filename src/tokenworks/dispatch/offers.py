"""What a request adds where it could go, in money, and which of some workers it adds most to.

This is asked three or four times in each decision, so it is written to be quick: what follows from
a plan alone stands ready at each worker's *seat*, what follows from the request alone in its
*offer*, and each question is one loop over the workers that it is about. A conditional expression
takes a third of the time of ``min`` and ``max``.
"""

from __future__ import annotations

import itertools
from typing import Final

from tokenworks.core.ids import WorkerID
from tokenworks.core.slo import Promise
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch.events import PrefilledBy, TokenPrice
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.market import Book, Kind, at_home_masks, revenue_nanodollars
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.workers import RANKS, Worker
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
PREFILL_BATCHES_MAX: Final = 2
"""Who only prefills has no more than so many full iterations to do when it is sent another prompt:
enough to be busy until the next decision."""
QUEUE_WEIGHT_SHIFT: Final = 2
"""A second of queue counts as 1/4 of a second of work, when who prefills is chosen."""
PACE_PERCENT: Final = 95
"""Part of the time per token that a promise allows up to which a worker that only decodes is
filled."""
LONG_PREFILL: Final = 2
"""A prefill counts as a stall from so many times the mean on; shorter ones are in the caps."""
FOREVER_FS: Final = 1 << 80
_NO_BOUND: Final = 1 << 62
_NO_TIMING: Final = Timing(
    launch_fs=0, sequence_fs=0, context_token_fs=0, prefill_token_fs=0, prefill_context_fs=0
)
NO_PRICE: Final = TokenPrice(
    input_udollars_per_mtok=0, cached_udollars_per_mtok=0, output_udollars_per_mtok=0
)


class Seat:
    """What a plan says of one worker; lists are by tier rank.

    Attributes:
        group: the same for all workers of one class that are at home in one tier.
        at: the place of its class.
        home: the tier rank in which it is at home.
        kind: its class.
        running_max: up to so many running requests it may take one more: none of a tier whose
            promise it cannot keep, and of tiers below its home as long as that keeps headroom.
        pace_fs: a hundred times the time per token up to which it is filled where it only decodes.
        allowed_fs: time per token that each promise allows.
        price: what a second of it is worth, in nano-dollars.
        launch_fs, sequence_fs, context_token_fs, prefill_token_fs, prefill_context_fs: of its
            ``Timing``.
        bent: its ``Timing``, if that is straight between knots only.
        prefilled_by: who prefills for it, if its driver chooses who does; the last two figures are
            then of these.
    """

    __slots__ = (
        "allowed_fs",
        "at",
        "bent",
        "context_token_fs",
        "group",
        "home",
        "kind",
        "launch_fs",
        "pace_fs",
        "prefill_context_fs",
        "prefill_token_fs",
        "prefilled_by",
        "price",
        "running_max",
        "sequence_fs",
    )

    def __init__(self, group: int, at: int, home: int, kind: Kind) -> None:
        self.group, self.at, self.home, self.kind = group, at, home, kind
        below_max = (kind.caps[home] * HEADROOM_PERCENT - 1) // 100
        self.running_max = [
            -1 if not cap else below_max if rank < home else _NO_BOUND
            for rank, cap in enumerate(kind.caps)
        ]
        self.allowed_fs, self.price = kind.allowed_fs, kind.price_nanodollars
        self.pace_fs = [each * PACE_PERCENT for each in kind.allowed_fs]
        timing = kind.timing
        self.launch_fs, self.sequence_fs = timing.launch_fs, timing.sequence_fs
        self.context_token_fs = timing.context_token_fs
        self.prefill_token_fs = kind.prefill_timing.prefill_token_fs
        self.prefill_context_fs = kind.prefill_timing.prefill_context_fs
        self.prefilled_by = kind.prefilled_by
        self.bent = timing if timing.knots else None


class Desk:
    """What follows from a model's book and the settings until the next plan.

    Args:
        book: of the model.
        promises: by tier rank.
        prices: likewise.

    Attributes:
        book, means, stalls, prices: see there and in ``Book``.
        due_ns: when it is to be planned again.
        at_home: by tier rank, and one beyond, the workers that are at home there or above.
        decoding: whether some workers only decode, and their driver chooses who prefills.
        hopeless: by tier rank, whether no worker can keep its promise.
        own: by tier rank, those that are at home in just this tier.
        prefillers: those that only prefill, as bits.
        seats: by worker index.
        ttft_ns: by tier rank, what is promised.
        soonest: timing of the class that prefills fastest.
    """

    __slots__ = (
        "at_home",
        "book",
        "decoding",
        "due_ns",
        "hopeless",
        "means",
        "own",
        "prefillers",
        "prices",
        "seats",
        "soonest",
        "stalls",
        "ttft_ns",
    )

    def __init__(self, book: Book, promises: list[Promise], prices: list[TokenPrice]) -> None:
        self.book, self.means, self.stalls, self.prices = book, book.means, book.stalls, prices
        self.ttft_ns = [promise.ttft_ns for promise in promises]
        self.due_ns = -1
        if book.planned_ns is not None:
            wait_ns = min(PLAN_NS, FIRST_PLAN_NS << min(book.plans, 60))
            self.due_ns = book.planned_ns + wait_ns
        self.at_home = at_home_masks(book.homes)
        self.own = [mask & ~above for mask, above in itertools.pairwise(self.at_home)]
        self.prefillers = sum(1 << index for index in book.prefillers)
        self.soonest = book.kinds[book.soonest].prefill_timing if book.kinds else _NO_TIMING
        self.decoding = any(kind.prefilled_by is not None for kind in book.kinds)
        self.hopeless = [
            rank > 0 and bool(book.kinds) and not any(kind.caps[rank] for kind in book.kinds)
            for rank in RANKS
        ]
        alike: dict[tuple[int, int], Seat] = {}
        self.seats: dict[int, Seat] = {}
        for index, at in book.kind_of.items():
            home = book.homes.get(index, 0)
            seat = alike.get((at, home))
            if seat is None:
                seat = alike[at, home] = Seat(len(alike), at, home, book.kinds[at])
            self.seats[index] = seat

    def is_late(self, request: Request, now_ns: int) -> bool:
        """Whether no worker, were it idle, could keep its promise."""
        if self.hopeless[request.rank]:
            return True
        rank, mean, timing = request.rank, self.means[request.rank], self.soonest
        left_ns = request.arrived_ns + self.ttft_ns[rank] - now_ns
        # As TierMeans.computed_of and Timing.prefill_fs say.
        tokens = request.input_tokens_max * mean.computed_tokens // (mean.prompt_tokens or 1) or 1
        pairs = tokens * (tokens - 1) // 2
        return (
            left_ns * FS_PER_NS
            < tokens * timing.prefill_token_fs + pairs * timing.prefill_context_fs
        )


_Taking = tuple[int, int, int, int]
"""What a request takes from others: at any batch in nano-dollars, or that at a batch of none and
what each that runs adds to it, both times femtoseconds in a second; and the full batch, 0 where
others lose nothing."""
_Worth = tuple[int, int, int, int, int, int]
"""Its prefill in femtoseconds, its revenue in nano-dollars, and a ``_Taking``."""


class Offer:
    """A request at a tier, to be priced on some workers; what only depends on it is found once.

    Attributes:
        rank: of the tier.
        desk: of its model.
        elsewhere_tokens: to be prefilled for all who only decode, by whom their driver chooses.
    """

    __slots__ = (
        "_made",
        "_now_ns",
        "_price",
        "_prompt",
        "_queued_tokens_max",
        "_room_tokens",
        "_ttft_fs",
        "_usual_tokens",
        "_worths",
        "desk",
        "elsewhere_tokens",
        "rank",
    )

    def __init__(self, desk: Desk, request: Request, rank: int, now_ns: int) -> None:
        self.desk, self.rank, self._now_ns = desk, rank, now_ns
        self._price = desk.prices[rank]
        mean, made = desk.means[request.rank], request.output_tokens_max
        usual = mean.output_tokens
        if request.hints is not None:
            usual = request.hints.output_tokens or usual
        self._made = min(made, usual)
        self._prompt = self._room_tokens = request.input_tokens_max
        # As TierMeans.computed_of says.
        computed = mean.context_tokens * mean.computed_tokens // (mean.prompt_tokens or 1) or 1
        self._usual_tokens = LONG_PREFILL * computed
        if rank:
            means = QUEUED_MEANS_MAX if rank > 1 else 2 * QUEUED_MEANS_MAX
            self._queued_tokens_max = means * computed
            left_ns = request.arrived_ns + desk.ttft_ns[rank] - now_ns
            self._ttft_fs = left_ns * FS_PER_NS
        else:
            # Whoever is free may wait behind any number: free is what is left when no promise was
            # kept, so it has none to lose.
            self._queued_tokens_max = self._ttft_fs = FOREVER_FS
        self._worths: dict[int | tuple[int, int], _Worth] = {}
        self.elsewhere_tokens = 0

    def bound_by(self, kv_tokens_max: int | None) -> None:
        """Ask no more room for the prompt than the largest KV cache has, if all are known.

        The prompt may have far fewer tokens than its bound; the engine counts them.
        """
        if kv_tokens_max is not None and kv_tokens_max <= self._prompt:
            self._room_tokens = kv_tokens_max - 1

    # Where the one that decodes it prefills it, too.

    def best(
        self, fleet: Fleet, some: int, depth: int, holders: int
    ) -> tuple[int, Worker | None, int, int]:
        """The worker to which it adds most, of some; of equals, the first.

        Args:
            fleet: of the workers.
            some: which ones, as bits.
            depth: blocks of its prompt that are in the prefix cache of some.
            holders: of these.

        Returns:
            What it adds there in nano-dollars, the worker or None where it adds less than nothing
            to each, its prefill there and an iteration that decodes there now, in femtoseconds.
        """
        rank, worths, seats, by_index = self.rank, self._worths, self.desk.seats, fleet.by_index
        tight = self._prompt >= fleet.kv_tokens_min
        best: tuple[int, Worker | None, int, int] = (-1, None, 0, 0)
        most = -1
        while some:
            bit = some & -some
            some ^= bit
            index = bit.bit_length() - 1
            worker, seat = by_index[index], seats[index]
            key = (seat.group, depth) if holders & bit else seat.group
            own_fs, value, cost, base, slope, full = worths.get(key) or self._worth_at(
                seat, worker, depth if holders & bit else 0, key
            )
            if seat.prefilled_by is not None:
                value = self._handed_value(fleet, bit, seat.prefilled_by, own_fs, value)
                if value > most:
                    most, best = value, (value, worker, own_fs, 0)
                continue
            running = len(worker.running)
            if value <= most or running > seat.running_max[rank]:
                continue  # all that follows only takes from it
            if full:
                cost = (base + running * slope) // FS_PER_S if slope else cost
                value -= cost * (running if running < full else full) // full  # noqa: FURB136
                if value <= most:
                    continue
            decode_fs = self._decode_fs_if_kept(seat, worker, running, own_fs)
            if (
                decode_fs < 0
                or (tight and not self.fits(worker))
                or (
                    own_fs > seat.prefill_token_fs * self._usual_tokens
                    and (value := value - self._broken(seat, worker, own_fs)) <= most
                )
            ):
                continue
            most = value
            best = (value, worker, own_fs, decode_fs)
        return best

    def take(self, worker: Worker, own_fs: int, decode_fs: int) -> None:
        """Note the prefill that a worker will do for it.

        Args:
            worker: that was found by ``best``.
            own_fs: its prefill there.
            decode_fs: an iteration that decodes there now.
        """
        index, desk = worker.index, self.desk
        seat, rank = desk.seats[index], self.rank
        if seat.prefilled_by is not None:
            return  # nobody stalls there
        if seat.home > rank:
            rank = seat.home
        allowed = seat.allowed_fs[rank or 1]
        spare = allowed - decode_fs if allowed > decode_fs else 1
        known = desk.stalls.get(index)
        if known is not None:
            level_fs = known[0] - (self._now_ns - known[1]) * FS_PER_NS * spare // allowed
            if level_fs > 0:
                own_fs += level_fs
        desk.stalls[index] = (own_fs, self._now_ns)

    def earned_at(self, price: TokenPrice, worker: Worker, hit: int) -> int:
        """What it earns there at another tier's price, in nano-dollars."""
        computed = max(1, self._prompt - hit * worker.block_tokens)
        return revenue_nanodollars(price, computed, self._prompt, self._made)

    def _decode_fs_if_kept(self, seat: Seat, worker: Worker, running: int, own_fs: int) -> int:
        """An iteration that decodes on a worker now, if it can keep what is promised; else -1.

        The answer is to begin in time, and its prefill must not be more than those who decode there
        can bear, after the last ones. One of the dearest tier there, which is paid for, can bear as
        much prefill in its life as its promise leaves beside its iterations. What was sent before
        is forgotten at the rate at which that comes.
        """
        queued, desk = worker.prefill_tokens, self.desk
        # As Timing.decode_fs says.
        decode_fs = (
            seat.launch_fs
            + running * seat.sequence_fs
            + worker.context_tokens * seat.context_token_fs
        )
        if seat.bent is not None:
            decode_fs = seat.bent.decode_fs(running, worker.context_tokens)
        # Between the chunks of all that is to be prefilled before, those that decode go on.
        if queued > self._queued_tokens_max or (
            self.rank
            and own_fs
            + queued * seat.prefill_token_fs
            + (2 + queued // worker.batch_tokens_max) * decode_fs
            > self._ttft_fs
        ):
            return -1
        dearest = worker.dearest
        if not dearest:
            return decode_fs
        allowed = seat.allowed_fs[dearest]
        spare = allowed - decode_fs if decode_fs < allowed else 1
        bearable = desk.means[dearest].output_tokens * spare - own_fs
        if bearable < 0:
            return -1
        known = desk.stalls.get(worker.index)
        if (
            known is not None
            and known[0] > bearable  # it becomes only less
            and known[0] - (self._now_ns - known[1]) * FS_PER_NS * spare // allowed > bearable
        ):
            return -1
        return decode_fs

    def _broken(self, seat: Seat, worker: Worker, own_fs: int) -> int:
        """What a prefill that is much longer than most breaks of the promises that run there."""
        excess_fs = own_fs - seat.prefill_token_fs * self._usual_tokens
        revenue, loss = self.desk.book.revenue_nanodollars, 0
        for rank in RANKS[1:]:
            count = worker.counts[rank]
            if count:
                broken = min(PPM, excess_fs * PPM // seat.kind.slack_fs[rank])
                loss += count * (revenue[rank] - revenue[rank - 1]) * broken // PPM
        return loss

    # Where some workers prefill for those that decode.

    def cheapest(
        self, fleet: Fleet, some: int, depth: int, holders: int, avoided: WorkerID | None
    ) -> tuple[Worker | None, int, int]:
        """Who prefills it for least, with a part of the time that it would wait there.

        Not where its answer would begin too late, or others must be prefilled before.

        Args:
            fleet: of the workers.
            some: that only prefill, as bits.
            depth: blocks of its prompt that are in the prefix cache of some.
            holders: of these.
            avoided: one that is not asked, if there are others.

        Returns:
            The worker or None, blocks of its prompt in the prefix cache there, and what it earns
            less the prefill that this takes, in nano-dollars.
        """
        seats, by_index = self.desk.seats, fleet.by_index
        known: dict[tuple[int, int], tuple[int, int]] = {}
        tight = self._prompt >= fleet.kv_tokens_min
        if avoided is not None and not some & (some - 1):
            avoided = None
        least, best, best_hit, best_fs, worth = FOREVER_FS, None, 0, 0, 0
        while some:
            bit = some & -some
            some ^= bit
            index = bit.bit_length() - 1
            worker, seat, hit = by_index[index], seats[index], depth if holders & bit else 0
            found = known.get((seat.at, hit))
            if found is None:
                found = known[seat.at, hit] = self._earned_at(seat, worker, hit)
            own_fs, earned = found
            if own_fs >= least:
                continue
            queued = worker.prefill_tokens
            queued_fs = queued * seat.prefill_token_fs + 2 * seat.launch_fs
            cost = (queued_fs >> QUEUE_WEIGHT_SHIFT) + own_fs
            if (
                cost >= least
                or queued_fs + own_fs > self._ttft_fs
                or queued > PREFILL_BATCHES_MAX * worker.batch_tokens_max
                or (tight and not self.fits(worker))
                or (avoided is not None and worker.worker == avoided)
            ):
                continue
            least, best, best_hit, best_fs, worth = cost, worker, hit, own_fs, earned
        if best is not None:
            full = PREFILL_BATCHES_MAX * best.batch_tokens_max
            queued = best.prefill_tokens
            busy = min(full, queued)
            price = self.desk.book.prefill_price_nanodollars
            worth -= best_fs * price // FS_PER_S * busy // full
        return best, best_hit, worth

    def best_decoder(self, fleet: Fleet, some: int, worth: int) -> tuple[int, Worker | None]:
        """The worker to which it adds most where it is only decoded; of equals, the least loaded.

        Args:
            fleet: of the workers.
            some: which ones, as bits.
            worth: what is left of its revenue after its prefill, in nano-dollars.

        Returns:
            What it adds there in nano-dollars, and the worker or None where it adds less than
            nothing to each, or is too much for each.
        """
        rank, seats, by_index = self.rank, self.desk.seats, fleet.by_index
        prompt, half = self._prompt, self._made >> 1
        most, best = -1, None
        while some:
            bit = some & -some
            some ^= bit
            index = bit.bit_length() - 1
            worker, seat = by_index[index], seats[index]
            running, value = len(worker.running), worth
            if running > seat.running_max[rank]:
                continue
            if running and seat.price:
                cost, base, slope, full = self._taking(seat, 0)
                cost = (base + running * slope) // FS_PER_S if slope else cost
                value -= cost * (running if running < full else full) // full  # noqa: FURB136
            if value <= most and (
                value < most or best is None or worker.load >= best.load
            ):  # of equals, the one with less to do
                continue
            batch = running + 1
            context = worker.context_tokens + prompt + batch * half
            dearest = worker.dearest if worker.dearest > rank else rank  # noqa: FURB136
            # As Timing.decode_fs says.
            pace_fs = seat.launch_fs + batch * seat.sequence_fs + context * seat.context_token_fs
            if seat.bent is not None:
                pace_fs = seat.bent.decode_fs(batch, context)
            if (dearest and 100 * pace_fs > seat.pace_fs[dearest]) or not self.fits(
                worker, context if running else 0
            ):
                continue
            most, best = value, worker
        return most, best

    def _handed_value(
        self, fleet: Fleet, bit: int, by: PrefilledBy, own_fs: int, earned: int
    ) -> int:
        """What it adds where it is only decoded, and others prefill it whom the driver chooses.

        They are sent as little at a time as those that this policy chooses, so that the line is
        here, where who pays most is next.
        """
        queued, full = self.elsewhere_tokens, PREFILL_BATCHES_MAX * by.batch_tokens_max * by.workers
        queued_fs = queued * by.timing.prefill_token_fs // by.workers + 2 * by.timing.launch_fs
        if queued > full or queued_fs + own_fs > self._ttft_fs:
            return -1
        price = self.desk.book.prefill_price_nanodollars
        worth = earned - own_fs * price // FS_PER_S * min(queued, full) // full
        return self.best_decoder(fleet, bit, worth)[0]

    def fits(self, worker: Worker, context: int = 0) -> bool:
        """Whether a worker's KV cache has room for its prompt, and for so many tokens in all."""
        if worker.kv_blocks is None:
            return True
        return max(self._room_tokens + 1, context) <= worker.kv_blocks * worker.block_tokens

    # On a class of workers.

    def _worth_at(self, seat: Seat, worker: Worker, hit: int, key: int | tuple[int, int]) -> _Worth:
        """What it is worth at a seat, with so many blocks of its prompt cached."""
        own_fs, earned = self._earned_at(seat, worker, hit)
        if seat.price:
            worth = (own_fs, earned, *self._taking(seat, own_fs))
        else:
            worth = (own_fs, earned, 0, 0, 0, 0)
        self._worths[key] = worth
        return worth

    def _earned_at(self, seat: Seat, worker: Worker, hit: int) -> tuple[int, int]:
        """Its prefill and its revenue on a class, with so many blocks of its prompt cached."""
        prompt, price = self._prompt, self._price
        computed = prompt - hit * worker.block_tokens
        if computed < 1:
            computed = 1
        cached = prompt - computed
        # As Timing.prefill_fs says: to half of the chunk's tokens, and to all before it.
        twice = 2 * seat.prefill_token_fs + (prompt + cached - 1) * seat.prefill_context_fs
        own_fs = computed * twice >> 1
        # As revenue_nanodollars says.
        earned = (
            computed * price.input_udollars_per_mtok
            + (cached if cached > 0 else 0) * price.cached_udollars_per_mtok  # noqa: FURB136
            + self._made * price.output_udollars_per_mtok
        ) // 1_000
        return own_fs, earned

    def _taking(self, seat: Seat, own_fs: int) -> _Taking:
        """What it takes from others at the class's price."""
        price = seat.price
        kind, home, rank, made = seat.kind, seat.home, self.rank, self._made
        token_fs = kind.token_fs
        if rank > home:
            # Those of lower tiers there must make room for a smaller batch.
            slope = (made >> 1) * (token_fs[rank] - token_fs[home]) * price
        else:
            rank, slope = home, 0
        base = (own_fs + made * token_fs[rank]) * price
        return base // FS_PER_S, base, slope, kind.caps[rank] or 1

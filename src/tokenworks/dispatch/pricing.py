"""What a request adds on a worker, in money: one offer of it at a tier, priced on some workers.

``economics`` says which workers are asked, and when.
"""

from __future__ import annotations

from typing import Final

from tokenworks.core.units import PPM
from tokenworks.dispatch.events import PrefilledBy, TokenPrice
from tokenworks.dispatch.fleet import RANKS, Worker
from tokenworks.dispatch.market import Book, Kind, revenue_nanodollars
from tokenworks.dispatch.waiting import Request
from tokenworks.perf.timing import FS_PER_NS, FS_PER_S

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
FOREVER_FS: Final = 1 << 80
LONG_PREFILL: Final = 2
"""A prefill counts as a stall from so many times the mean on; shorter ones are in the caps."""

Seat = tuple[int, int, Kind]
"""Of one worker: the place of its class, the tier rank in which it is at home, its class."""


class Offer:
    """A request at a tier, to be priced on some workers; what only depends on it is found once."""

    __slots__ = (
        "_made",
        "_now_ns",
        "_price",
        "_prompt",
        "_queued_tokens_max",
        "_room_tokens",
        "_seats",
        "_ttft_fs",
        "_usual_tokens",
        "_worths",
        "book",
        "elsewhere_tokens",
        "rank",
    )

    def __init__(
        self,
        book: Book,
        seats: dict[int, Seat],
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
        self._prompt = self._room_tokens = request.input_tokens_max
        usual = mean.computed_of(mean.context_tokens)
        self._usual_tokens = LONG_PREFILL * usual
        means = QUEUED_MEANS_MAX if rank > 1 else 2 * QUEUED_MEANS_MAX
        # Whoever is free may wait behind any number.
        self._queued_tokens_max = means * usual if rank else FOREVER_FS
        # Free is what is left when no promise was kept: it has none to lose.
        self._ttft_fs = left_ns * FS_PER_NS if rank else FOREVER_FS
        self._worths: dict[tuple[int, int], tuple[int, int]] = {}
        self.elsewhere_tokens = 0  # to be prefilled for all who only decode

    def bound_by(self, kv_tokens_max: int | None) -> None:
        """Ask no more room for the prompt than the largest KV cache has, if all are known.

        The prompt may have far fewer tokens than its bound; the engine counts them.
        """
        if kv_tokens_max is not None:
            self._room_tokens = min(self._prompt, kv_tokens_max - 1)

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
        if kind.prefilled_by is not None:
            return self._handed_value(kind.prefilled_by, worker, own_fs, value, floor)
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
                and self._room_tokens >= worker.kv_blocks * worker.block_tokens
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

    def _handed_value(
        self, by: PrefilledBy, worker: Worker, own_fs: int, earned: int, floor: int
    ) -> int:
        """The same where it is only decoded, and others prefill it whom the driver chooses.

        They are sent as little at a time as those that this policy chooses, so that the line is
        here, where who pays most is next.
        """
        queued, full = self.elsewhere_tokens, PREFILL_BATCHES_MAX * by.batch_tokens_max * by.workers
        queued_fs = queued * by.timing.prefill_token_fs // by.workers + 2 * by.timing.launch_fs
        if queued > full or queued_fs + own_fs > self._ttft_fs:
            return -1
        price = self.book.prefill_price_nanodollars
        worth = earned - own_fs * price // FS_PER_S * min(queued, full) // full
        return self.decode_value(worker, worth, floor)

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
            worker.kv_blocks is not None
            and self._room_tokens >= worker.kv_blocks * worker.block_tokens
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
        return max(self._room_tokens + 1, context) <= worker.kv_blocks * worker.block_tokens

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
        own_fs = self.book.kinds[at].prefill_timing.prefill_fs(computed, prompt - computed)
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

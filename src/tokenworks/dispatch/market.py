"""What the economic policy knows of demand, and what it makes of it: prices, homes, a split.

**What a request needs.** In a worker whose batch is as large as tier t's promise allows, one
request takes ``output x iteration / batch`` of the worker's time to decode and its prefill on top.
The batch that a promise allows counts the prefills that will run between its iterations: with a
prefill of P for each answer of L tokens, a batch of b gives each user one token per
``iteration(b) + b P / L``.

**A split.** Where engines hand KV caches over, some workers may only prefill and the others only
decode. Nobody's prefill then stalls an answer, the batches that promises allow are larger, and each
request takes time of two workers. How many prefill is what sells most; if fewer would do as well,
what leaves the busiest most time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from tokenworks.core.slo import Promise
from tokenworks.core.units import PPM
from tokenworks.dispatch.events import PrefilledBy, TokenPrice
from tokenworks.dispatch.workers import RANKS, Worker
from tokenworks.perf.timing import FS_PER_NS, FS_PER_S, Timing

RESERVE_PERCENT: Final = (80, 100, 130, 170, 300)
"""Workers that are at home in a tier, in per cent of its need, from free to ultra."""
CAP_PERCENT: Final = (100, 90, 85, 75, 70)
"""Part of the time per token that a promise allows which its cap is made for: what is dear has
more to lose by a stall above the mean."""
SPLIT_CAP_PERCENT: Final = (100, 97, 95, 93, 90)
"""The same where no prefill stalls an answer."""
MEAN_OF_MIN: Final = 8
MEAN_OF_MAX: Final = 64
"""A new figure moves a mean by 1/9 of the difference at first, and later on by 1/64."""
SPLIT_TRIES_MAX: Final = 24
"""Numbers of workers that prefill which a plan tries, for each class."""
_FS_PER_PPM_KS: Final = FS_PER_S // PPM * 1_000
SPLIT_WORSE_PPM: Final = 5_000
"""A split may sell so much less than the best one if it leaves more time."""


class TierMeans(msgspec.Struct, kw_only=True):
    """What is known of a tier's requests.

    Attributes:
        arrived: since the last plan.
        rate_per_ks: requests per 1,000 s, smoothed.
        seen: requests that came, as far as it matters for the means.
        ended: answers that ended, likewise.
        context_tokens: prompt of one that came.
        prompt_tokens: of one whose answer has ended: what is turned away may be longer.
        computed_tokens: of these.
        output_tokens: of one.
        token_output_tokens: of the answer that a token is of, on average over tokens: long answers
            have most of them.
    """

    arrived: int = 0
    rate_per_ks: int = 0
    seen: int = MEAN_OF_MIN
    ended: int = MEAN_OF_MIN
    context_tokens: int = 8_000
    prompt_tokens: int = 8_000
    computed_tokens: int = 4_000
    output_tokens: int = 300
    token_output_tokens: int = 300

    @property
    def prefill_tokens(self) -> int:
        """Of one that came, expected to be computed."""
        return self.computed_of(self.context_tokens)

    def computed_of(self, prompt_tokens: int) -> int:
        """Tokens of a prompt that are expected to be computed."""
        return prompt_tokens * self.computed_tokens // (self.prompt_tokens or 1) or 1

    def come(self, prompt_tokens: int) -> None:
        """Learn from a request that came."""
        self.arrived += 1
        if self.seen < MEAN_OF_MAX:
            self.seen += 1
        self.context_tokens += (prompt_tokens - self.context_tokens) // self.seen

    def end(self, prompt_tokens: int, computed_tokens: int, output_tokens: int) -> None:
        """Learn from an answer that has ended."""
        self.ended = count = min(self.ended + 1, MEAN_OF_MAX)
        self.prompt_tokens += (prompt_tokens - self.prompt_tokens) // count
        self.computed_tokens += (computed_tokens - self.computed_tokens) // count
        self.output_tokens += (output_tokens - self.output_tokens) // count
        # A mean over tokens: each answer moves it by as much as it has tokens, against the mean.
        moved = (output_tokens - self.token_output_tokens) * output_tokens
        self.token_output_tokens += moved // (count * max(1, self.output_tokens))
        self.token_output_tokens = max(self.token_output_tokens, self.output_tokens)


class Kind(msgspec.Struct, kw_only=True):
    """A class of workers, those of one timing, and what each tier takes of them; lists by rank.

    Attributes:
        timing: of its iterations.
        workers: how many there are.
        price_nanodollars: what a second of one is worth.
        caps: the batch that each promise allows, with prefills between; 0 where none does.
        token_fs: worker time per token at that batch.
        busy_fs: worker time of one request; its prefill included, unless others do that.
        prefill_fs: worker time of its prefill.
        slack_fs: how much longer one answer may take than it does at the cap.
        allowed_fs: time per token that each promise allows.
        prefilled_by: who prefills for them, if their driver chooses who does.
    """

    timing: Timing
    workers: int
    price_nanodollars: int
    caps: list[int]
    token_fs: list[int]
    busy_fs: list[int]
    prefill_fs: list[int]
    slack_fs: list[int]
    allowed_fs: list[int]
    prefilled_by: PrefilledBy | None = None

    @property
    def prefill_timing(self) -> Timing:
        """Of whoever prefills what these answer."""
        return self.timing if self.prefilled_by is None else self.prefilled_by.timing


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


def kind_of(
    sample: Worker,
    workers: int,
    means: list[TierMeans],
    promises: list[Promise],
    *,
    split: bool = False,
) -> Kind:
    """What tiers take of a class of workers.

    Args:
        sample: one of them.
        workers: how many there are.
        means: of each tier's requests.
        promises: of each tier.
        split: others prefill.
    """
    timing, split = timing_of(sample), split or sample.prefilled_by is not None
    prefill, output, context = mean_of(means)
    stall_fs = 0 if split else timing.prefill_fs(prefill, 0) // max(1, output)
    percents = SPLIT_CAP_PERCENT if split else CAP_PERCENT
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
        prefill_fs=[],
        slack_fs=[],
        allowed_fs=[],
        prefilled_by=sample.prefilled_by,
    )
    for rank, (each, promise) in enumerate(zip(means, promises, strict=True)):
        allowed = FS_PER_S // max(1, promise.interactivity_tokens_per_s)
        # What is forgiven once per answer is little for a token of a long one.
        allowed += promise.grace_ns * FS_PER_NS // max(1, each.token_output_tokens)
        cap = batch_within(timing, stall_fs, context, batch_max, allowed * percents[rank] // 100)
        # Alone, an answer has no stalls to bear; and whatever its speed, it is delivered as free.
        if not cap and (rank == 0 or timing.decode_fs(1, context) <= allowed):
            cap = 1
        batch = max(1, cap)
        iteration = timing.decode_fs(batch, batch * context)
        kind.caps.append(cap)
        kind.token_fs.append(iteration // batch)
        own_fs = kind.prefill_timing.prefill_fs(each.prefill_tokens, 0)
        kind.prefill_fs.append(own_fs)
        kind.busy_fs.append(each.output_tokens * iteration // batch + (0 if split else own_fs))
        kind.allowed_fs.append(allowed)
        kind.slack_fs.append(max(1, each.output_tokens * max(0, allowed - iteration)))
    return kind


def mean_of(means: list[TierMeans]) -> tuple[int, int, int]:
    """Tokens of one request of any tier: to prefill, made, and in the KV cache halfway."""
    total = prefill = output = context = 0
    for each in means:
        rate = each.rate_per_ks
        total += rate
        prefill += rate * each.prefill_tokens
        output += rate * each.output_tokens
        context += rate * (each.context_tokens + each.output_tokens // 2)
    total = total or 1
    return prefill // total, output // total, context // total


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

    >>> from tokenworks.perf.timing import Knot
    >>> straight = Timing(launch_fs=100, sequence_fs=10, context_token_fs=1, prefill_token_fs=0,
    ...                   prefill_context_fs=0)
    >>> bent = Timing(launch_fs=100, sequence_fs=10, context_token_fs=1, prefill_token_fs=0,
    ...               prefill_context_fs=0, knots=(Knot(1, 140, 1), Knot(8, 180, 1)))
    >>> [batch_within(each, 2, 5, 8, 220) for each in (straight, bent)]
    [7, 6]
    """
    if timing.knots:
        # No user more makes an iteration shorter, so halving finds the most.
        return bisect_right(
            range(1, batch_max + 1),
            allowed_fs,
            key=lambda n: timing.decode_fs(n, n * context_tokens) + n * stall_fs,
        )
    per_user = timing.sequence_fs + context_tokens * timing.context_token_fs + stall_fs
    left = allowed_fs - timing.launch_fs
    if left < per_user:
        return 0
    return min(batch_max, left // per_user) if per_user else batch_max


class Prefill(NamedTuple):
    """Workers that only prefill.

    Attributes:
        at: the place of their class among the classes; -1 if they are of none.
        workers: how many of it.
        cost_fs: time of one of them for one request, by tier rank.
    """

    at: int
    workers: int
    cost_fs: list[int]


def prefill_elsewhere(kinds: list[Kind]) -> Prefill | None:
    """Who prefills for classes that only decode; None if one of them prefills itself, too."""
    pools = [kind.prefilled_by for kind in kinds]
    if not pools or pools[0] is None or None in pools:
        return None
    return Prefill(-1, pools[0].workers, kinds[0].prefill_fs)


class Sale(NamedTuple):
    """Time of workers, as it is best sold.

    Attributes:
        taken: by class and tier rank, how much of its time, in millionths of a worker.
        earned: in 1,000 s, in nano-dollars.
        prices: of a second of each class, in nano-dollars.
        prefill_price: the same of those that only prefill.
        busiest_ppm: how much of its time that class sells which sells most of it.
    """

    taken: list[list[int]]
    earned: int
    prices: list[int]
    prefill_price: int
    busiest_ppm: int


def market(
    kinds: list[Kind], rates_per_ks: list[int], revenue: list[int], prefill: Prefill | None = None
) -> Sale:
    """Sell the classes' time to the tiers, what earns most per second first, and find its price.

    The price of a class that is sold out is what its last buyer earns per second: whoever takes a
    second more displaces that one. A class with time left costs nothing.

    Args:
        kinds: the classes.
        rates_per_ks: requests per 1,000 s, by tier rank.
        revenue: of one request, by tier rank, in nano-dollars.
        prefill: who prefills, if others than those that decode; not counted in ``kinds``.
    """
    costs = prefill.cost_fs if prefill is not None else [0] * len(RANKS)
    workers = [kind.workers for kind in kinds]
    return _sold(kinds, workers, _offers(kinds, revenue, costs), rates_per_ks, revenue, prefill)


def _sold(
    kinds: list[Kind],
    workers: list[int],
    offers: list[tuple[int, int, int]],
    rates_per_ks: list[int],
    revenue: list[int],
    prefill: Prefill | None,
) -> Sale:
    """The same with so many workers of each class, and with what a second earns."""
    taken = [[0] * len(RANKS) for _ in kinds]
    wanted = list(rates_per_ks)
    left = [each * PPM for each in workers]
    costs = prefill.cost_fs if prefill is not None else []
    prefill_whole = prefill_left = prefill.workers * PPM if prefill is not None else 0
    prices, prefill_price, earned = [0] * len(kinds), 0, 0
    for density, rank, minus_at in offers:
        at = -minus_at
        need = wanted[rank] * kinds[at].busy_fs[rank] // _FS_PER_PPM_KS
        share = min(need, left[at])
        if not share:
            continue
        sold = wanted[rank] * share // need
        if prefill is not None:
            work = sold * costs[rank] // _FS_PER_PPM_KS
            if work > prefill_left:
                sold = sold * prefill_left // work
                share, work = share * prefill_left // work, prefill_left
            if work and work == prefill_left and not prefill_price:
                prefill_price = density
            prefill_left -= work
        taken[at][rank] += share
        left[at] -= share
        wanted[rank] -= sold
        earned += sold * revenue[rank]
        if not left[at] and not prices[at]:
            prices[at] = density
    busiest = max(
        (PPM - part // count for part, count in zip(left, workers, strict=True) if count),
        default=0,
    )
    if prefill is not None:
        busiest = max(busiest, PPM - prefill_left * PPM // prefill_whole)
    return Sale(taken, earned, prices, prefill_price, busiest)


def _offers(kinds: list[Kind], revenue: list[int], costs: list[int]) -> list[tuple[int, int, int]]:
    """What a second earns, by tier rank and class (negative), the most first."""
    return sorted(
        (
            (revenue[rank] * FS_PER_S // (kind.busy_fs[rank] + costs[rank]), rank, -at)
            for at, kind in enumerate(kinds)
            for rank in RANKS
            if kind.caps[rank]
        ),
        reverse=True,
    )


def best_split(
    kinds: list[Kind], rates_per_ks: list[int], revenue: list[int]
) -> tuple[Prefill, Sale] | None:
    """The best number of workers that only prefill, of one class, and what the others then sell.

    Args:
        kinds: the classes, all workers counted, as for those that leave prefill to others.
        rates_per_ks: as for ``market``.
        revenue: as for ``market``.

    Returns:
        None if there are not two workers.
    """
    tried: list[tuple[Prefill, Sale]] = []
    others = sum(kind.workers for kind in kinds) - 1
    for at, kind in enumerate(kinds):
        most = min(kind.workers, others)
        workers = [each.workers for each in kinds]
        offers = _offers(kinds, revenue, kind.prefill_fs)  # whoever is left sells the same
        for count in range(1, most + 1, max(1, -(-most // SPLIT_TRIES_MAX))):
            workers[at] = kind.workers - count
            prefill = Prefill(at, count, kind.prefill_fs)
            sale = _sold(kinds, workers, offers, rates_per_ks, revenue, prefill)
            tried.append((prefill, sale))
    if not tried:
        return None
    floor = max(sale.earned for _, sale in tried) * (PPM - SPLIT_WORSE_PPM) // PPM
    return min(
        (each for each in tried if each[1].earned >= floor), key=lambda each: each[1].busiest_ppm
    )


def dearest_first(kind: Kind, revenue: list[int]) -> list[int]:
    """Tier ranks, those first that earn most in a second of a class; of equals, the higher one."""
    earned = [each * FS_PER_S // kind.busy_fs[rank] for rank, each in enumerate(revenue)]
    return sorted(RANKS, key=lambda rank: (earned[rank], rank), reverse=True)


def forgo(
    kinds: list[Kind], prices: list[int], revenue: list[int], prefill: Prefill | None = None
) -> bool:
    """Let each class forgo the tiers that it had better serve as the tier below; whether any did.

    Such a promise leaves so small a batch that a second earns more of the tier below, and no more
    than is paid for one, as all are sold. Free forgoes nobody.

    Args:
        kinds: the classes; a tier that one forgoes has no cap there any more.
        prices: of a second of each, in nano-dollars, as the market found them.
        revenue: of one request, by tier rank, in nano-dollars.
        prefill: who prefills, if others than those that decode.
    """
    costs = prefill.cost_fs if prefill is not None else [0] * len(RANKS)
    any_did = False
    for kind, price in zip(kinds, prices, strict=True):
        earned = [
            each * FS_PER_S // (kind.busy_fs[rank] + costs[rank])
            for rank, each in enumerate(revenue)
        ]
        for rank in RANKS[1:]:
            if kind.caps[rank] and price >= earned[rank] < earned[rank - 1]:
                kind.caps[rank], any_did = 0, True
    return any_did


def homes_for(taken: list[int], workers: int, order: Sequence[int] = RANKS[::-1]) -> list[int]:
    """How many workers of a class are at home in each tier: who earns most first, with reserve.

    A tier whose promise allows a class hardly any batch earns less in a second than those below;
    with the first choice it would hold, for a few, workers that many others could share.

    Args:
        taken: what each tier takes, in millionths of a worker.
        workers: of the class.
        order: tier ranks, those first that earn most in a second of the class.

    >>> homes_for([4_000_000, 1_000_000, 1_000_000, 700_000, 100_000], 8)
    [3, 1, 2, 1, 1]
    >>> homes_for([100_000, 200_000, 1_700_000, 0, 0], 2, [1, 0, 2, 4, 3])
    [0, 1, 1, 0, 0]
    """
    homes, left = [0] * len(RANKS), workers
    for rank in order:
        target = taken[rank] * RESERVE_PERCENT[rank] // 100
        count = min(left, (target + PPM * 3 // 4) // PPM)
        if target >= PPM // 10:
            count = max(count, min(1, left))
        homes[rank], left = count, left - count
    wanting = [rank for rank in RANKS if taken[rank]]
    homes[wanting[0] if wanting else 0] += left
    return homes


def at_home_masks(homes: Mapping[int, int]) -> list[int]:
    """By tier rank, and one beyond, the workers that are at home there or above, as bits.

    Args:
        homes: by worker index, the tier rank in which it is at home.
    """
    masks = [0] * (len(RANKS) + 1)
    for index, home in homes.items():
        for rank in range(home + 1):
            masks[rank] |= 1 << index
    return masks


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
    cached = prompt - computed if prompt > computed else 0
    return (
        computed * price.input_udollars_per_mtok
        + cached * price.cached_udollars_per_mtok
        + output * price.output_udollars_per_mtok
    ) // 1_000

"""What the fluid programme is told: classes of workers, groups of requests, and a price book."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.perf.timing import FS_PER_S, Timing

DOLLARS_PER_PRICE_TOKEN = 1e-12
"""One micro-dollar per 1M tokens, for one token, in dollars."""


Found = Literal["theirs", "all", "none"]
"""What the prefix cache has of a prompt: the blocks that other requests are charged for, all that
any other request has, or nothing."""


class WorkerClass(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that are alike.

    Attributes:
        name: unique in the fleet.
        model: what they serve.
        timing: how long one's iterations take.
        slots: sequences that run side by side on one.
        kv_tokens: of KV cache on one.
        up_ns: time that all of them together are up, by window.
        prefills: whether they may prefill.
        decodes: whether they may decode. If any class of a model lacks one of the two, KV moves:
            a request may be prefilled on one class and decoded on another.
        hands_over: whether KV may move from and to them though they do both.
    """

    name: str
    model: ModelName
    timing: Timing
    slots: int
    kv_tokens: int
    up_ns: tuple[int, ...]
    prefills: bool = True
    decodes: bool = True
    hands_over: bool = False


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one model and tier that are alike, or one request. All figures are sums.

    Attributes:
        model: asked for.
        tier: asked for.
        requests: how many.
        uncached_input_tokens: of their prompts, those that no other request is charged for.
        cached_input_tokens: the rest of their prompts.
        output_tokens: that they are billed for.
        decode_tokens: of these, made by iterations of decode: all but the first of each request.
        context_tokens: read from the KV cache to make them, summed over ``decode_tokens``.
        held_tokens: of these, in blocks that no other request is charged for.
        hit_pairs: pairs of tokens that prefill of the uncached ones attends to.
        miss_pairs: and of all.
        window_first: the window in which they arrive.
        windows_last: by the rank of a delivered tier, the last window in which such an answer may
            still be in work; empty if it is the last of all.
        shared_input_tokens: uncached ones that another request has too, so that it may be that one
            which computes them.
        shared_pairs: that prefill of these attends to.
    """

    model: ModelName
    tier: Tier
    requests: int
    uncached_input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    decode_tokens: int
    context_tokens: int
    held_tokens: int
    hit_pairs: int
    miss_pairs: int
    window_first: int = 0
    windows_last: tuple[int, ...] = ()
    shared_input_tokens: int = 0
    shared_pairs: int = 0


def request_demand(
    model: ModelName,
    tier: Tier,
    *,
    input_tokens: int,
    hit_tokens: int,
    output_tokens: int,
    reach_tokens: int = 0,
) -> Demand:
    """What one request demands, from its lengths.

    Args:
        model: asked for.
        tier: asked for.
        input_tokens: of its prompt.
        hit_tokens: of these, those that other requests are charged for.
        output_tokens: at least 1.
        reach_tokens: of its prompt, those that any other request has; not fewer than ``hit_tokens``
            count.

    >>> demand = request_demand(ModelName("m"), Tier.HIGH, input_tokens=4, hit_tokens=2,
    ...                         output_tokens=3)
    >>> demand.decode_tokens, demand.context_tokens, demand.held_tokens  # reads 4, then 5
    (2, 9, 5)
    >>> demand.hit_pairs, demand.miss_pairs  # the third token sees 2 and the fourth 3
    (5, 6)
    """
    decoded = output_tokens - 1
    context = decoded * input_tokens + decoded * (decoded - 1) // 2
    reach_tokens = max(hit_tokens, reach_tokens)
    return Demand(
        model=model,
        tier=tier,
        requests=1,
        uncached_input_tokens=input_tokens - hit_tokens,
        cached_input_tokens=hit_tokens,
        output_tokens=output_tokens,
        decode_tokens=decoded,
        context_tokens=context,
        held_tokens=context - decoded * hit_tokens,
        hit_pairs=(input_tokens * (input_tokens - 1) - hit_tokens * (hit_tokens - 1)) // 2,
        miss_pairs=input_tokens * (input_tokens - 1) // 2,
        shared_input_tokens=reach_tokens - hit_tokens,
        shared_pairs=(reach_tokens * (reach_tokens - 1) - hit_tokens * (hit_tokens - 1)) // 2,
    )


_SUMMED = (
    "requests",
    "uncached_input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "decode_tokens",
    "context_tokens",
    "held_tokens",
    "hit_pairs",
    "miss_pairs",
    "shared_input_tokens",
    "shared_pairs",
)


def merged(members: list[Demand]) -> Demand:
    """One group of requests of one model and tier, with the widest of their windows."""
    first = members[0]
    assert all((m.model, m.tier) == (first.model, first.tier) for m in members), members
    lasts = [member.windows_last for member in members]
    return msgspec.structs.replace(
        first,
        window_first=min(member.window_first for member in members),
        windows_last=tuple(map(max, zip(*lasts, strict=True))) if all(lasts) else (),
        **{field: sum(getattr(member, field) for member in members) for field in _SUMMED},
    )


def findings(demand: Demand, book: PriceBook) -> tuple[Found, ...]:
    """What the cache may have of a prompt that is worth a column of its own.

    Where cached tokens cost as much as others, who computes a block makes no difference to revenue,
    so each is charged to the one request that it is booked on. Otherwise a request may also leave
    its blocks to others and pay less, or compute theirs and pay more.
    """
    prices = book.prices[demand.model].values()
    if all(each.cached_input_udollars_per_mtok == each.input_udollars_per_mtok for each in prices):
        return ("theirs",)
    every: tuple[tuple[Found, int], ...] = (
        ("theirs", 1),
        ("all", demand.shared_input_tokens),
        ("none", demand.cached_input_tokens),
    )
    return tuple(found for found, differs in every if differs)


def prefill_s(demand: Demand, timing: Timing, found: Found = "theirs") -> float:
    """Time that a worker spends on the prompts; no launch is charged, since chunks can ride along.

    >>> timing = Timing(launch_fs=9, sequence_fs=9, context_token_fs=9,
    ...                 prefill_token_fs=10**15, prefill_context_fs=10**14)
    >>> demand = request_demand(ModelName("m"), Tier.HIGH, input_tokens=4, hit_tokens=2,
    ...                         output_tokens=1)
    >>> prefill_s(demand, timing), prefill_s(demand, timing, "none")
    (2.5, 4.6)
    """
    tokens, pairs = demand.uncached_input_tokens, demand.hit_pairs
    if found == "none":
        tokens, pairs = tokens + demand.cached_input_tokens, demand.miss_pairs
    elif found == "all":
        tokens, pairs = tokens - demand.shared_input_tokens, pairs - demand.shared_pairs
    return (tokens * timing.prefill_token_fs + pairs * timing.prefill_context_fs) / FS_PER_S


def load_s(demand: Demand, timing: Timing) -> float:
    """Time that decoding takes beside the launches that a batch shares.

    >>> timing = Timing(launch_fs=9, sequence_fs=10**15, context_token_fs=10**14,
    ...                 prefill_token_fs=9, prefill_context_fs=9)
    >>> load_s(request_demand(ModelName("m"), Tier.HIGH, input_tokens=4, hit_tokens=2,
    ...                       output_tokens=3), timing)
    2.9
    """
    own = demand.decode_tokens * timing.sequence_fs
    return (own + demand.context_tokens * timing.context_token_fs) / FS_PER_S


def allowance_s(
    demand: Demand, tier: Tier, book: PriceBook, *, free_is_floor: bool = True
) -> float | None:
    """The mean time of an iteration that keeps a tier's speed; None if any does.

    The grace counts in full: a request of few tokens may be slow.

    Args:
        demand: the requests.
        tier: delivered.
        book: promises.
        free_is_floor: whether free is billed whatever the speed was; otherwise its promise binds.
    """
    if (tier is Tier.FREE and free_is_floor) or demand.decode_tokens == 0:
        return None
    promise = book.promises[tier]
    grace_s = promise.grace_ns / NS_PER_S
    if promise.interactivity_tokens_per_s == 0:
        return None
    return 1 / promise.interactivity_tokens_per_s + (
        grace_s * demand.requests / demand.decode_tokens
    )


def revenue_dollars(demand: Demand, tier: Tier, book: PriceBook, found: Found = "theirs") -> float:
    """What all of it brings if it is delivered at a tier, at list prices, less credits.

    Args:
        demand: the requests.
        tier: delivered, not above the asked one.
        book: its prices.
        found: what the prefix cache has served; these tokens cost less, if the book says so.
    """
    price = book.prices[demand.model][tier]
    cached = 0 if found == "none" else demand.cached_input_tokens
    if found == "all":
        cached += demand.shared_input_tokens
    fresh = demand.uncached_input_tokens + demand.cached_input_tokens - cached
    units = (
        fresh * price.input_udollars_per_mtok
        + cached * price.cached_input_udollars_per_mtok
        + demand.output_tokens * price.output_udollars_per_mtok
    )
    kept = PPM - (book.credits_ppm[demand.tier] if tier is not demand.tier else 0)
    ads = book.ad_income_udollars_per_mtok if demand.tier is Tier.FREE else 0
    return (units * kept / PPM + demand.output_tokens * ads) * DOLLARS_PER_PRICE_TOKEN

"""Workloads: recorded rows or generated arrivals, with tiers and tenants mixed in from a seed.

A row says when, how long a prompt, how many tokens, and which KV blocks the prompt has in common
with others. Who asks and at which tier no public trace says; a mix gives that, from the seed alone.
Rows of one conversation share a tenant, so that what they share stays shared: the tenant follows
from the first block that is not everybody's. Block ids are salted by tenant, as a gateway salts
them: prompts of two tenants never share a block.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, RequestID, TenantID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.twin.records import TwinRequest

TIERS: Final = tuple(Tier)
OUTPUT_TOKENS_MAX: Final = 1_024
"""The output limit of a request that makes no more; others have what they make as theirs."""
_MASK_64: Final = 2**64 - 1


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a trace, before it has a tier and a tenant.

    Attributes:
        at_ns: when it comes.
        input_tokens: of its prompt.
        output_tokens: that it makes.
        block_ids: of its prompt's blocks; equal ids are equal prefixes.
        name: its id, where the trace gives one.
        wait_for: ids of rows that must have ended before.
        delay_ns: how long after these it comes.
        session: its conversation or agent.
    """

    at_ns: int
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()
    name: str | None = None
    wait_for: tuple[str, ...] = ()
    delay_ns: int = 0
    session: str | None = None


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and at which tier.

    Attributes:
        phases: shares by tier rank; one mix for the whole run, or several for equal parts of it.
        tenants: how many there are; the k-th asks in proportion to 1/k.
    """

    phases: tuple[tuple[int, ...], ...] = ((40, 30, 20, 7, 3),)
    tenants: int = 20


SHIFTING: Final = Mix(phases=((40, 30, 20, 7, 3), (60, 26, 10, 3, 1), (20, 25, 30, 15, 10)))
"""A mix that changes twice: towards cheap traffic, then towards dear."""


def requests_of(
    rows: Sequence[Row],
    *,
    model: ModelName,
    block_tokens: int,
    mix: Mix,
    seed: int,
    speedup: float = 1.0,
) -> list[TwinRequest]:
    """Give rows a tier and a tenant, and compress their arrivals.

    Args:
        rows: ascending by time.
        model: what they ask for.
        block_tokens: tokens in a block of ``block_ids``.
        mix: see ``Mix``.
        seed: of everything random here.
        speedup: arrivals come so many times as fast.
    """
    dice = random.Random(seed)
    cumulated = _cumulated([1 / (k + 1) for k in range(mix.tenants)])
    phases = [_cumulated(phase) for phase in mix.phases]
    root = _common_root(rows)
    salted: dict[tuple[int, int], int] = {}
    made = []
    for index, row in enumerate(rows):
        tier = TIERS[_drawn(phases[index * len(phases) // len(rows)], dice.random())]
        family = row.session or (row.block_ids[root] if len(row.block_ids) > root else None)
        place = dice.random() if family is None else random.Random(f"{seed}/{family}").random()
        tenant = _drawn(cumulated, place)
        blocks = []
        for each in row.block_ids[: row.input_tokens // block_tokens]:
            known = salted.get((tenant, each))
            if known is None:
                known = salted[tenant, each] = block_hash(tenant, each)
            blocks.append(known)
        made.append(
            TwinRequest(
                request=RequestID(row.name or f"r{index}"),
                tenant=TenantID(f"tenant-{tenant}"),
                model=model,
                tier=tier,
                at_ns=round(row.at_ns / speedup),
                input_tokens=max(1, row.input_tokens),
                output_tokens=max(1, row.output_tokens),
                output_tokens_max=max(OUTPUT_TOKENS_MAX, row.output_tokens),
                blocks=tuple(blocks),
                wait_for=tuple(RequestID(name) for name in row.wait_for),
                delay_ns=round(row.delay_ns / speedup),
                session=row.session,
            )
        )
    return made


def block_hash(tenant: int, block_id: int) -> int:
    """A block's hash under a tenant's salt, in [0, 2**64).

    Source: the finaliser of SplitMix64, Steele, Lea and Flood, OOPSLA 2014, figure 17.

    >>> block_hash(1, 7) == block_hash(1, 7), block_hash(1, 7) == block_hash(2, 7)
    (True, False)
    """
    mixed = (block_id * 0x9E3779B97F4A7C15 + (tenant + 1) * 0xD1B54A32D192ED03) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return mixed ^ (mixed >> 31)


def poisson(seed: int, rate_per_s: float, count: int) -> Iterator[int]:
    """Arrival times in nanoseconds, with exponential gaps."""
    return gamma(seed, rate_per_s, count, cv=1.0)


def gamma(seed: int, rate_per_s: float, count: int, cv: float) -> Iterator[int]:
    """Arrival times in nanoseconds, with gamma-distributed gaps.

    Args:
        seed: of the gaps.
        rate_per_s: mean arrivals per second.
        count: how many.
        cv: coefficient of variation of the gaps; above 1 they come in bursts.

    Source: ServeGen (Xiang et al., 2025), section 3.1: arrivals of LLM services are bursty, and
    gamma gaps fit most clients.
    """
    if rate_per_s <= 0 or cv <= 0:
        raise ConfigInvalid(
            f"Arrivals of {rate_per_s!r} per second and cv {cv!r} can't be drawn.",
            hint="Both must be above 0.",
        )
    dice = random.Random(seed)
    shape = 1 / cv**2
    at_s = 0.0
    for _ in range(count):
        at_s += dice.gammavariate(shape, 1 / (rate_per_s * shape))
        yield round(at_s * NS_PER_S)


def generated(times_ns: Iterable[int], seed: int, block_tokens: int) -> list[Row]:
    """Rows at given times: conversations of a few turns whose prompts grow.

    Prompts have a log-normal length around 1,500 tokens, answers around 250; three of four rows
    go on with an earlier prompt, as chat does.
    """
    dice = random.Random(seed)
    rows: list[Row] = []
    talks: list[tuple[int, ...]] = []
    fresh = 0
    for at_ns in times_ns:
        history = talks.pop(dice.randrange(len(talks))) if talks and dice.random() < 0.75 else ()
        more = 1 + round(dice.lognormvariate(0, 0.8) * 1_500 / block_tokens)
        ids = (*history, *range(fresh, fresh + more))
        fresh += more
        talks.append(ids)
        del talks[:-1_000]
        rows.append(
            Row(
                at_ns=at_ns,
                input_tokens=len(ids) * block_tokens + dice.randrange(1, block_tokens),
                output_tokens=1 + round(dice.lognormvariate(0, 0.9) * 250),
                block_ids=ids,
            )
        )
    return rows


def _common_root(rows: Sequence[Row]) -> int:
    """How many blocks nearly all prompts begin with: they tell no family from another."""
    counted = [row.block_ids for row in rows if row.block_ids]
    depth = 0
    while counted:
        first: dict[int, int] = {}
        for ids in counted:
            if len(ids) > depth:
                first[ids[depth]] = first.get(ids[depth], 0) + 1
        if not first or max(first.values()) * 2 <= len(counted):
            return depth
        depth += 1
    return depth


def _cumulated(shares: Iterable[float]) -> list[float]:
    total, sums = 0.0, []
    for share in shares:
        total += share
        sums.append(total)
    return [each / total for each in sums]


def _drawn(cumulated: Sequence[float], place: float) -> int:
    return next((i for i, until in enumerate(cumulated) if place < until), len(cumulated) - 1)

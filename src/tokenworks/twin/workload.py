"""From rows to requests: who asks, at which tier, how fast, and which blocks they share."""

from __future__ import annotations

import hashlib
import itertools
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, RequestID, TenantID
from tokenworks.core.needs import Hints, Needs
from tokenworks.core.rng import GOLDEN_GAMMA, WORD, mix64
from tokenworks.core.slo import Tier
from tokenworks.core.units import PPM
from tokenworks.twin.arrivals import Arrivals, arrival_times
from tokenworks.twin.records import TwinRequest
from tokenworks.twin.traces import MOONCAKE_BLOCK_TOKENS, Row, Trace

OUTPUT_TOKENS_MAX_DEFAULT: Final = 2_048
TENANTS_MAX: Final = 100_000
LENGTH_SIGMA: Final = 1.0
_TENANT_WEIGHT: Final = 10**12


class TierMix(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the tiers, at points of the run; between two points they move in a line.

    Attributes:
        points: (place in the run in millionths, ascending, weights by tier).
    """

    points: tuple[tuple[int, dict[Tier, int]], ...]

    def tier(self, place_ppm: int, draw: int) -> Tier:
        """The tier of a request.

        Args:
            place_ppm: where in the run it arrives.
            draw: 64 bits that decide; each tier takes its share of them.

        >>> mix = TierMix(points=((0, {Tier.FREE: 1}), (PPM, {Tier.FREE: 1, Tier.ULTRA: 1})))
        >>> [mix.tier(place, 2**63).value for place in (0, 500_000, 1_000_000)]
        ['free', 'free', 'ultra']
        """
        weights = self._weights(place_ppm)
        drawn = draw * sum(weights) >> 64
        for tier, weight in zip(Tier, weights, strict=True):
            drawn -= weight
            if drawn < 0:
                return tier
        raise AssertionError(weights)

    def _weights(self, place_ppm: int) -> list[int]:
        """Weights at a place; those of two points have sums that are made alike."""
        points = self.points
        at = 0
        while at + 1 < len(points) and points[at + 1][0] <= place_ppm:
            at += 1
        before_ppm, before = points[at]
        before_weights = [before.get(tier, 0) for tier in Tier]
        if at + 1 == len(points) or place_ppm <= before_ppm:
            return before_weights
        after_ppm, after = points[at + 1]
        after_weights = [after.get(tier, 0) for tier in Tier]
        gone = (place_ppm - before_ppm) * sum(before_weights)
        left = (after_ppm - place_ppm) * sum(after_weights)
        return [a * left + b * gone for a, b in zip(before_weights, after_weights, strict=True)]


def checked_mix(points: Sequence[tuple[int, Mapping[Tier, int]]]) -> TierMix:
    """A mix whose figures can be.

    Raises:
        ConfigInvalid: places that do not rise from 0 within the run, or weights below zero, or
            none above.
    """
    places = [place for place, _ in points]
    if not places or places[0] != 0 or places != sorted(set(places)) or places[-1] > PPM:
        raise ConfigInvalid(
            f"The mix has points at {places!r}; they must rise from 0 to at most {PPM}.",
            hint="at_ppm is the place in the run in millionths.",
        )
    for place, weights in points:
        if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
            raise ConfigInvalid(
                f"The mix at {place} is { ({t.value: w for t, w in weights.items()})!r}; weights "
                "must be 0 or more, and one above 0."
            )
    return TierMix(points=tuple((place, dict(weights)) for place, weights in points))


class NeedShare(msgspec.Struct, frozen=True, kw_only=True):
    """A share of the requests that only some workers may serve.

    Attributes:
        share_ppm: of all, in millionths; sessions need the same from beginning to end.
        needs: what they need.
    """

    share_ppm: int
    needs: Needs


def steady(weights: Mapping[Tier, int]) -> TierMix:
    """The same shares from beginning to end."""
    return checked_mix([(0, weights)])


MIX_DEFAULT: Final = steady(
    {Tier.FREE: 40, Tier.MEDIUM: 30, Tier.HIGH: 20, Tier.PREMIUM: 7, Tier.ULTRA: 3}
)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """How rows become requests.

    Attributes:
        model: what all ask for.
        mix: at which tiers.
        tenants: how many there are; the i-th has a share in proportion to 1/i.
        speedup: how many times faster rows arrive; delays for tools and people stay.
        block_tokens: of the workers; those of the rows are cut into so many.
        output_tokens_max: what each request allows; None for the longest answer of the workload,
            and at least 2,048, so that a limit tells nothing of the answer.
        limit: the first so many rows only.
        needs: shares of the requests that only some workers may serve.
        hints: agents tell the dispatcher what they know; see ``TwinRequest.hints``.
    """

    model: ModelName
    mix: TierMix = MIX_DEFAULT
    tenants: int = 16
    speedup: float = 1.0
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    output_tokens_max: int | None = None
    limit: int | None = None
    needs: tuple[NeedShare, ...] = ()
    hints: bool = False


def salt_of(text: str) -> int:
    """64 bits of a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def salted(salt: int, block_id: int) -> int:
    """A block's hash for one tenant: equal ids give equal hashes, different ids different ones.

    Under two tenants' salts equal hashes would be an accident of 64 bits.

    Args:
        salt: the tenant's, see ``salt_of``.
        block_id: in [0, 2**64).
    """
    return mix64(salt ^ (block_id * GOLDEN_GAMMA & WORD))


def requests_of(trace: Trace, demand: Demand, seed: int) -> list[TwinRequest]:
    """Give each row a tenant, a tier and blocks that only its tenant shares.

    A row's tenant follows from its family; without one from its session; without that from the
    first block that the workload does not have in common, so that prompts that begin alike belong
    to one tenant. What more than half of all prompts begin with is common. Rows of a family or
    session have one tier, others one each. All of it follows from the seed and the row alone, not
    from the rows around it, and so stays as it is when the arrivals are compressed.

    Args:
        trace: the rows.
        demand: see there.
        seed: of tenants and tiers.

    Raises:
        ConfigInvalid: a figure that cannot be, or blocks that do not divide.
    """
    rows = trace.rows[: demand.limit]
    parts = _check(trace, demand, rows)
    common = _common_blocks(rows)
    tenants, shares = _tenants(demand.tenants)
    longest = max(OUTPUT_TOKENS_MAX_DEFAULT, *(row.output_tokens for row in rows))
    output_tokens_max = demand.output_tokens_max or longest
    end_ns = max(1, rows[-1].at_ns)
    tenant_salt, tier_salt = salt_of(f"{seed} tenant"), salt_of(f"{seed} tier")
    need_salt = salt_of(f"{seed} needs")
    hashes = [_Hashes(tenant, parts, trace.block_tokens) for tenant in tenants]
    names = [RequestID(row.request or f"r{index}") for index, row in enumerate(rows)]
    tiers: dict[str, Tier] = {}
    found = []
    for index, row in enumerate(rows):
        family = row.family or row.session
        root = salt_of(family) if family else _root(row, index, common)
        draw = mix64(tenant_salt ^ mix64(root))
        owner = bisect_right(shares, draw * shares[-1] >> 64)
        draw = mix64(tier_salt ^ mix64(root if family else salt_of(names[index])))
        tier = tiers.get(family) if family else None
        if tier is None:
            tier = demand.mix.tier(row.at_ns * PPM // end_ns, draw)
            if family:
                tiers[family] = tier
        found.append(
            TwinRequest(
                request=names[index],
                tenant=tenants[owner],
                model=demand.model,
                tier=tier,
                at_ns=row.at_ns if demand.speedup == 1 else round(row.at_ns / demand.speedup),
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                output_tokens_max=output_tokens_max,
                blocks=hashes[owner].of(row),
                wait_for=tuple(map(RequestID, row.wait_for)),
                delay_ns=row.delay_ns,
                session=row.session,
                needs=_needs_of(demand.needs, mix64(need_salt ^ mix64(root))),
            )
        )
    return _hinted(rows, found) if demand.hints else found


def _needs_of(shares: Sequence[NeedShare], draw: int) -> Needs | None:
    """What a request needs, by 64 bits that decide."""
    drawn = draw * PPM >> 64
    for share in shares:
        drawn -= share.share_ppm
        if drawn < 0:
            return share.needs
    return None


def _hinted(rows: Sequence[Row], requests: Sequence[TwinRequest]) -> list[TwinRequest]:
    """The same requests, of agents that tell what they know.

    They know about how long the answer will be (to the next power of two), how long the tool will
    take for which the session's next request waits, and when the session is over.
    """
    tool_ns: dict[RequestID, int] = {}
    last: dict[str, RequestID] = {}
    for request in requests:
        for parent in request.wait_for:
            tool_ns[parent] = min(request.delay_ns, tool_ns.get(parent, request.delay_ns))
        if request.session is not None:
            last[request.session] = request.request
    ends = set(last.values())
    return [
        msgspec.structs.replace(
            request,
            hints=Hints(
                output_tokens=1 << (row.output_tokens - 1).bit_length(),
                tool_ns=tool_ns.get(request.request),
                session_ends=request.request in ends,
            ),
        )
        for row, request in zip(rows, requests, strict=True)
    ]


def _check(trace: Trace, demand: Demand, rows: Sequence[Row]) -> int:
    """Into how many blocks of a worker one of the trace is cut."""
    if not rows:
        raise ConfigInvalid("There are no requests.", hint="Raise the rate, duration or limit.")
    if not 1 <= demand.tenants <= TENANTS_MAX:
        raise ConfigInvalid(f"There are {demand.tenants} tenants; have 1 to {TENANTS_MAX}.")
    if not 1e-9 < demand.speedup < 1e9:
        raise ConfigInvalid(f"The speedup is {demand.speedup!r}; it must be above 0.")
    if trace.block_tokens % demand.block_tokens:
        raise ConfigInvalid(
            f"Blocks of {trace.block_tokens} tokens cannot be cut into blocks of "
            f"{demand.block_tokens}.",
            hint=f"Give the workers block_tokens that divide {trace.block_tokens}.",
        )
    return trace.block_tokens // demand.block_tokens


class _Hashes:
    """The block hashes of one tenant; each is made once and then shared."""

    def __init__(self, tenant: TenantID, parts: int, block_tokens: int) -> None:
        self._salt, self._parts, self._block_tokens = salt_of(tenant), parts, block_tokens
        self._made: dict[int, int] = {}

    def of(self, row: Row) -> tuple[int, ...]:
        """Of a prompt's full blocks; a block that is part full is shared with nobody."""
        made, parts = self._made, self._parts
        full = row.input_tokens * parts // self._block_tokens
        ids: Sequence[int] = row.block_ids
        if parts > 1:
            ids = [block_id * parts + part for block_id in ids for part in range(parts)]
        found = []
        for block_id in ids[:full]:
            block = made.get(block_id)
            if block is None:
                block = made[block_id] = salted(self._salt, block_id)
            found.append(block)
        return tuple(found)


def _common_blocks(rows: Sequence[Row]) -> int:
    """How many blocks more than half of the prompts begin with."""
    left = [row.block_ids for row in rows if row.block_ids and not (row.family or row.session)]
    half, depth = len(left) // 2, 0
    while left:
        counts = Counter(ids[depth] for ids in left if len(ids) > depth)
        block, count = counts.most_common(1)[0] if counts else (0, 0)
        if count <= half:
            break
        left = [ids for ids in left if len(ids) > depth and ids[depth] == block]
        depth += 1
    return depth


def _root(row: Row, index: int, common: int) -> int:
    """What says whose a row is: its first block beyond the common ones, else itself."""
    if len(row.block_ids) > common:
        return mix64(row.block_ids[common] & WORD)
    return salt_of(f"row {index}")


def _tenants(count: int) -> tuple[list[TenantID], list[int]]:
    """Names, and rising sums of their shares."""
    names = [TenantID(f"tenant-{number}") for number in range(1, count + 1)]
    weights = (_TENANT_WEIGHT // number for number in range(1, count + 1))
    return names, list(itertools.accumulate(weights))


def generated_trace(
    seed: int,
    *,
    rate_per_s: float,
    duration_s: float,
    kind: Arrivals = "poisson",
    cv: float = 3.0,
    input_tokens: int = 2_000,
    output_tokens: int = 300,
    lengths: Sequence[tuple[int, int]] = (),
    limit: int | None = None,
) -> Trace:
    """Requests without a history: drawn arrivals, and lengths that are drawn or given.

    Args:
        seed: all that is drawn follows from it.
        rate_per_s: requests per second.
        duration_s: how long.
        kind: how they arrive.
        cv: variation of bursty arrivals.
        input_tokens: mean prompt, log-normal.
        output_tokens: mean answer, log-normal.
        lengths: pairs to draw from instead.
        limit: the first so many only.

    Raises:
        ConfigInvalid: a figure that cannot be, or no request arrives.
    """
    if input_tokens < 1 or output_tokens < 1:
        raise ConfigInvalid(
            f"Prompts of {input_tokens} and answers of {output_tokens} tokens; have 1 or more."
        )
    rng = random.Random(seed)
    times = arrival_times(kind, rng, rate_per_s=rate_per_s, duration_s=duration_s, cv=cv)
    down = -LENGTH_SIGMA * LENGTH_SIGMA / 2
    rows = []
    for at_ns in list(times)[:limit]:
        if lengths:
            read, made = lengths[rng.randrange(len(lengths))]
        else:
            read, made = (
                max(1, round(mean * rng.lognormvariate(down, LENGTH_SIGMA)))
                for mean in (input_tokens, output_tokens)
            )
        rows.append(Row(at_ns=at_ns, input_tokens=read, output_tokens=made))
    if not rows:
        raise ConfigInvalid("No request arrives.", hint="Raise the rate or the duration.")
    return Trace(rows=tuple(rows))

"""Demand by tier from a recorded workload."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NS_PER_S
from tokenworks.plan.mix_question import MIX, TierFile
from tokenworks.twin.traces import Row, detected, read_trace


def tiers_of_trace(path: Path, mix: Mapping[str, float], speedup: float) -> dict[str, TierFile]:
    """The demand of a trace, shared out among tiers.

    Args:
        path: of a format with arrival times.
        mix: shares by tier, in any unit; empty for the usual ones.
        speedup: it arrives so many times faster.

    Raises:
        ConfigInvalid: the trace cannot be read, has no arrival times or no length, or the shares
            or the speedup cannot be.
    """
    hint = "Name a trace of Mooncake, Azure or agents (docs/twin.md)."
    try:
        form = detected(path)
    except ConfigInvalid as error:
        raise ConfigInvalid(error.message, hint=hint) from error
    if form in {"lengths", "servegen"}:
        raise ConfigInvalid(f"{str(path)!r} has no arrival times.", hint=hint)
    shares = mix or MIX
    if not speedup > 0 or not sum(shares.values()) > 0 or min(shares.values()) < 0:
        raise ConfigInvalid(f"The mix is {dict(shares)!r} and the speedup {speedup!r}.")
    rows = read_trace(path, form).rows
    duration_s = rows[-1].at_ns / NS_PER_S if rows else 0.0
    if not duration_s:
        raise ConfigInvalid(f"{str(path)!r} takes no time, so it has no rate.")
    prompt = statistics.fmean(row.input_tokens for row in rows)
    output = statistics.fmean(row.output_tokens for row in rows)
    cached = cached_share(rows)
    rate = len(rows) / duration_s * speedup
    return {
        tier: TierFile(
            requests_per_s=rate * weight / sum(shares.values()),
            prompt_tokens=round(prompt),
            output_tokens=max(1, round(output)),
            cached_share=cached,
        )
        for tier, weight in shares.items()
        if weight
    }


def cached_share(rows: Iterable[Row]) -> float:
    """Share of all prompt tokens that a prefix cache without end would hold."""
    seen: set[int] = set()
    cached = whole = 0.0
    for row in rows:
        whole += row.input_tokens
        hits = 0
        for block in row.block_ids:
            if block not in seen:
                break
            hits += 1
        seen.update(row.block_ids)
        # The last token of a prompt is always computed.
        if hits:
            cached += min(row.input_tokens - 1, row.input_tokens * hits / len(row.block_ids))
    return cached / whole if whole else 0.0

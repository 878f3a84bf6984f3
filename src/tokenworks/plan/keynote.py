"""A public chart against what is computed: each point, multiple and dollar, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.catalogue.records import Chart, ChartPoint, ChartSum, Projection, TierLine, TierList
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.plan.assumptions import Assumption, declared, used_by
from tokenworks.plan.earnings import earnings
from tokenworks.plan.frontier import frontier
from tokenworks.plan.projection import Candidate

SPLIT: Final = {"free": 0.25, "medium": 0.25, "high": 0.25, "premium": 0.25}
"""A quarter of the power each, as the speech has it."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the chart and of the model.

    Attributes:
        what: it is.
        systems: that it is of.
        tier: that it is at; empty for all.
        charted: by the chart.
        computed: None where no way to decode is fast enough.
        error: computed over charted, less 1; -1 where nothing is computed.
        reading_error: of the chart's own reading.
        way: how it is decoded, of a point.
    """

    what: str
    systems: str
    tier: str
    charted: float
    computed: float | None
    error: float
    reading_error: float = 0.0
    way: Candidate | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A chart and the model.

    Attributes:
        points: tokens/s/MW at each tier.
        multiples: of one system over another.
        dollars: per GW and year.
        assumptions: that were declared with the projection, and free to fit.
        also_assumed: the other numbers behind the figures that nothing public backs: the
            records' own, which no fit moved.
    """

    points: tuple[Check, ...]
    multiples: tuple[Check, ...]
    dollars: tuple[Check, ...]
    assumptions: tuple[Assumption, ...]
    also_assumed: tuple[Assumption, ...]


def compare(
    catalogue: Catalogue, chart: Chart, tiers: TierList, projection: Projection
) -> Comparison:
    """Compute every figure of a chart from the catalogue.

    Args:
        catalogue: of hardware and models.
        chart: whose points name tiers.
        tiers: with models, contexts and promises.
        projection: of the software.

    Raises:
        ConfigInvalid: the chart names a system or a tier that is unknown.
    """
    lines = {line.tier: line for line in tiers.tiers}
    ways: dict[tuple[str, str], Candidate | None] = {}

    def way(systems: str, tier: str) -> Candidate | None:
        if (systems, tier) not in ways:
            ways[systems, tier] = _way(catalogue, systems, lines[tier], projection)
        return ways[systems, tier]

    def rate(systems: str, tier: str) -> float:
        found = way(systems, tier)
        return found.tokens_per_s_per_mw if found else 0.0

    points = [_point(catalogue, chart, point, lines, projection) for point in chart.points]
    sums = {total.system: total for total in chart.dollars}
    usd = {name: _usd(catalogue, each, tiers, projection) for name, each in sums.items()}
    multiples = []
    for each in chart.multiples:
        if each.tier:
            above, below = rate(each.system, each.tier), rate(each.against, each.tier)
        else:
            above, below = usd[each.system], usd[each.against]
        what = f"multiple of {each.against}, {each.what}"
        ratio = above / below if below else 0.0
        multiples.append(_check(what, each.system, each.tier, each.value, ratio))
    dollars = [_check(s.what, s.system, "", s.value, usd[name]) for name, s in sums.items()]
    fitted = declared(catalogue, projection)
    names = {each.what for each in fitted}
    used = used_by(catalogue, _pairs(chart, lines), projection)
    return Comparison(
        points=tuple(points),
        multiples=tuple(multiples),
        dollars=tuple(dollars),
        assumptions=fitted,
        also_assumed=tuple(each for each in used if each.what not in names),
    )


def _pairs(chart: Chart, lines: Mapping[str, TierLine]) -> list[tuple[str, str]]:
    """Systems and models of all figures of a chart."""
    pairs = [(p.system, lines[p.tier].model if p.tier else chart.model) for p in chart.points]
    summed = [each.system for each in chart.dollars]
    for each in chart.multiples:
        if each.tier:
            pairs += [(name, lines[each.tier].model) for name in (each.system, each.against)]
    pairs += [(name, lines[tier].model) for name in summed for tier in SPLIT]
    return list(dict.fromkeys(pairs))


def _point(
    catalogue: Catalogue,
    chart: Chart,
    point: ChartPoint,
    lines: Mapping[str, TierLine],
    projection: Projection,
) -> Check:
    """A point at its tier's promise; of no tier, at its own speed and the chart's model."""
    if point.tier:
        way = _way(catalogue, point.system, lines[point.tier], projection)
        what = "tokens/s/MW"
    else:
        front = frontier(catalogue, point.system, chart.model, chart.context_tokens, projection)
        way = front.at(point.x)
        what = f"tokens/s/MW at {point.x:g} tokens/s/user"
    computed = way.tokens_per_s_per_mw * chart.counted_per_output if way else 0.0
    check = _check(what, point.system, point.tier, point.y, computed, point.error)
    return msgspec.structs.replace(check, way=way)


def _way(
    catalogue: Catalogue, systems: str, line: TierLine, projection: Projection
) -> Candidate | None:
    front = frontier(catalogue, systems, line.model, line.context_tokens, projection)
    return front.at(line.interactivity_tokens_per_s)


def _check(
    what: str, systems: str, tier: str, charted: float, computed: float, reading: float = 0.0
) -> Check:
    return Check(
        what=what,
        systems=systems,
        tier=tier,
        charted=charted,
        computed=computed or None,
        error=computed / charted - 1,
        reading_error=reading,
    )


def _usd(catalogue: Catalogue, each: ChartSum, tiers: TierList, projection: Projection) -> float:
    systems = served_by(each.system, each.tier, tiers)
    return earnings(catalogue, systems, tiers, SPLIT, projection).usd_per_gw_year


def served_by(systems: str, tier: str, tiers: TierList) -> Mapping[str, str]:
    """Which systems serve each tier, where a second system serves one tier and those above it.

    So of ``vr-nvl72+lpx`` with ``premium``, LPUs serve premium and ultra, GPUs alone the rest.
    """
    first, _, second = systems.partition("+")
    names = [line.tier for line in tiers.tiers]
    start = names.index(tier) if second and tier else 0
    return {
        name: systems if not second or rank >= start else first for rank, name in enumerate(names)
    }

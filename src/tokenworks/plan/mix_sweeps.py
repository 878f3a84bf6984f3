"""Plans side by side: over a promise or a share of demand, with other figures, and what-ifs."""

from __future__ import annotations

import datetime
import itertools
import math
import re
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.records import Record
from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.mix import MixPlan, best, value_usd_per_h, without_lpus
from tokenworks.plan.mix_cost import ship_date
from tokenworks.plan.mix_inputs import Question, TierDemand
from tokenworks.plan.mix_offers import Market, Offerer
from tokenworks.plan.mix_program import Solution
from tokenworks.plan.mix_question import PRICES, Case, check

Progress = Callable[[str], None]

SPREAD: Final = {"high": 0.05, "medium": 0.15, "low": 0.3, "assumed": 0.5}
"""Of a figure, up and down, by the confidence of the catalogue in it."""
OWN_SPREAD: Final = 0.2
"""Of figures that are the question's own: prices and demand."""
HALVINGS: Final = 6
BOUNDS: Final = {
    "site.pue": (1.0, math.inf),
    "site.idle_power_share": (0.0, 1.0),
    "utilisation": (0.0, 0.99),
    "projection.peak_share": (0.0, 1.0),
    "projection.tokens_per_step": (1.0, math.inf),
    "projection.lpu_tokens_per_step": (1.0, math.inf),
}
"""Least and most of figures that have them."""


class SweepPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan at one point.

    Attributes:
        x: what is swept.
        value_usd_per_h: of the best plan; None where nothing keeps the promise.
        value_without_lpus_usd_per_h: of the best without LPUs; likewise.
        power_mw: by system.
        lpu_power_share: of the power taken.
        served_tokens_per_s: of output, over all tiers.
    """

    x: float
    value_usd_per_h: float | None
    value_without_lpus_usd_per_h: float | None
    power_mw: dict[str, float]
    lpu_power_share: float
    served_tokens_per_s: float


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan over a range.

    Attributes:
        kind: what is swept: a tier's promise alone, or its share of all demand.
        tier: whose.
        points: in order.
        crossovers: between which two x LPUs come in or go out.
    """

    kind: Literal["interactivity", "share"]
    tier: str
    points: tuple[SweepPoint, ...]
    crossovers: tuple[tuple[float, float], ...]


class Swing(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer becomes when one figure is lower or higher.

    Attributes:
        figure: ``record.field``.
        confidence: of the catalogue in it; ``own`` for the question's.
        value: of the figure.
        low: likewise.
        high: likewise.
        low_usd_per_h: of the best plan then; None where there is none.
        high_usd_per_h: likewise.
    """

    figure: str
    confidence: str
    value: float
    low: float
    high: float
    low_usd_per_h: float | None
    high_usd_per_h: float | None

    @property
    def span_usd_per_h(self) -> float:
        """Between the two; without end where one of them is no plan."""
        if self.low_usd_per_h is None or self.high_usd_per_h is None:
            return math.inf
        return abs(self.high_usd_per_h - self.low_usd_per_h)


def sweep_points(kind: str, tier_promise: float) -> list[float]:
    """Where to look: promises from 25 tokens/s to beyond the tier's, or shares from 0 to 1."""
    if kind == "share":
        return [0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0]
    top = max(1000.0, tier_promise) * 1.25
    return [round(25 * (top / 25) ** (i / 15), 1) for i in range(16)]


def sweep(
    offerer: Offerer,
    case: Case,
    kind: Literal["interactivity", "share"],
    tier: str,
    progress: Progress,
) -> Sweep:
    """The best plan over a tier's promise, sold alone, or over its share of all demand.

    Where LPUs come in or go out is narrowed down by halving.

    Raises:
        ConfigInvalid: there is no such tier.
    """
    names = [each.tier for each in case.question.tiers]
    if tier not in names:
        raise ConfigInvalid(f"There is no tier {tier!r}.", hint=f"There are {', '.join(names)}.")
    market = offerer.market(case.catalogue, case.projection, case.question)

    def at(x: float) -> SweepPoint:
        progress(f"{kind} of {tier} at {x:g}")
        return _point(market, _swept(case.question, kind, tier, x), x)

    points = [
        at(x) for x in sweep_points(kind, case.question.tier(tier).interactivity_tokens_per_s)
    ]
    crossovers = []
    for below, above in itertools.pairwise(tuple(points)):
        if (below.lpu_power_share > 0) == (above.lpu_power_share > 0):
            continue
        low, high = below, above
        for _ in range(HALVINGS):
            middle = at((low.x + high.x) / 2)
            if (middle.lpu_power_share > 0) == (low.lpu_power_share > 0):
                low = middle
            else:
                high = middle
        points += [low, high]
        crossovers.append((low.x, high.x))
    found = {each.x: each for each in points}
    return Sweep(
        kind=kind,
        tier=tier,
        points=tuple(found[x] for x in sorted(found)),
        crossovers=tuple(crossovers),
    )


def _swept(question: Question, kind: str, tier: str, x: float) -> Question:
    whole = sum(each.tokens_per_s for each in question.tiers)
    own = question.tier(tier)
    if kind == "interactivity":
        alone = msgspec.structs.replace(
            own,
            interactivity_tokens_per_s=x,
            requests_per_s=whole / own.output_tokens,
        )
        return msgspec.structs.replace(question, tiers=(alone,))
    rest = whole - own.tokens_per_s
    shares = {
        each.tier: x if each.tier == tier else (1 - x) * each.tokens_per_s / rest if rest else 0.0
        for each in question.tiers
    }
    tiers = tuple(
        msgspec.structs.replace(each, requests_per_s=whole * shares[each.tier] / each.output_tokens)
        for each in question.tiers
        if shares[each.tier] > 0
    )
    return msgspec.structs.replace(question, tiers=tiers)


def _point(market: Market, question: Question, x: float) -> SweepPoint:
    found = best(market, question, whole=False)
    power: dict[str, float] = {}
    served = 0.0
    value = None
    if found is not None and found[1].served:
        offers, solution = found
        value = solution.value
        served = sum(solution.served.values())
        for offer, count in zip(offers, solution.systems, strict=True):
            _add(power, market, offer.system, count)
        for (_, lpu, _), count in solution.lpus.items():
            _add(power, market, lpu, count)
    lpus = {offer.lpu_system for offer in market.offers}
    lpu_mw = sum(mw for name, mw in power.items() if name in lpus)
    return SweepPoint(
        x=x,
        value_usd_per_h=value,
        value_without_lpus_usd_per_h=_kept(best(without_lpus(market), question, whole=False)),
        power_mw=power,
        lpu_power_share=lpu_mw / sum(power.values()) if power else 0.0,
        served_tokens_per_s=served,
    )


def _kept(found: tuple[object, Solution] | None) -> float | None:
    return found[1].value if found is not None and found[1].served else None


def _add(power: dict[str, float], market: Market, system: str, count: float) -> None:
    if count:
        mw = count * market.hardware[system].power_w / 1e6
        power[system] = power.get(system, 0.0) + mw


def tornado(offerer: Offerer, case: Case, plan: MixPlan, progress: Progress) -> list[Swing]:
    """Plan again with each figure that matters lower and higher; what swings most comes first.

    Figures of the catalogue move by their confidence (``SPREAD``), those of the question by
    ``OWN_SPREAD``.
    """
    question = case.question
    figures = [(f"site.{field}", "") for field in _SITE_FIGURES]
    for each in plan.bought:
        system = case.catalogue.system(each.system)
        figures += [(f"{system.name}.{field}", "") for field in ("price_usd", "all_in_power_w")]
        part = case.catalogue.accelerator(system.accelerator or system.lpu)
        if system.accelerator:
            figures += [(f"{part.name}.{f}", "") for f in _GPU_FIGURES if getattr(part, f)]
    figures += [(f"projection.{field}", "") for field in _PROJECTION_FIGURES]
    figures += [("power_mw", "own"), ("utilisation", "own")]
    for tier in question.tiers:
        if tier.usd_per_mtok:
            figures.append((f"{tier.tier}.usd_per_mtok", "own"))
        figures.append((f"{tier.tier}.requests_per_s", "own"))
    swings = []
    for figure, own in dict.fromkeys(figures):
        progress(figure)
        value, confidence = _figure(case, figure)
        spread = OWN_SPREAD if own else SPREAD[confidence]
        low, high = value * (1 - spread), value * (1 + spread)
        least, most = BOUNDS.get(figure, (0.0, math.inf))
        low, high = max(least, low), min(most, high)
        swings.append(
            Swing(
                figure=figure,
                confidence=own or confidence,
                value=value,
                low=low,
                high=high,
                low_usd_per_h=_value(offerer, with_figure(case, figure, low)),
                high_usd_per_h=_value(offerer, with_figure(case, figure, high)),
            )
        )
    return sorted(swings, key=lambda swing: -swing.span_usd_per_h)


_TIER_FIGURES: Final = (
    *PRICES,
    "requests_per_s",
    "interactivity_tokens_per_s",
    "ttft_s",
    "at_least",
)
"""Lengths are left out: the work of a tier follows from several of them together."""
_SITE_FIGURES: Final = (
    "usd_per_kwh",
    "pue",
    "idle_power_share",
    "facility_usd_per_mw",
    "system_years",
    "network_share",
    "people_usd_per_mw_year",
    "interest_per_year",
)
_GPU_FIGURES: Final = ("memory_bandwidth_bytes_per_s", "layer_latency_s")
_PROJECTION_FIGURES: Final = ("peak_share", "tokens_per_step", "lpu_tokens_per_step")


def _value(offerer: Offerer, case: Case) -> float | None:
    market = offerer.market(case.catalogue, case.projection, case.question)
    return value_usd_per_h(market, case.question) if market.offers else None


def _figure(case: Case, figure: str) -> tuple[float, str]:
    record, _, field = figure.rpartition(".")
    owner = _owner(case, record)
    value = getattr(owner, field, None)
    if not isinstance(value, int | float) or (
        isinstance(owner, TierDemand) and field not in _TIER_FIGURES
    ):
        raise ConfigInvalid(
            f"{figure!r} is no figure.",
            hint="Write RECORD.FIELD, as `tokenworks catalogue show RECORD` has it.",
        )
    confidence = owner.provenance[field].confidence if isinstance(owner, Record) else "own"
    return float(value), confidence


def _owner(case: Case, record: str) -> msgspec.Struct:
    """What holds a figure: the question, a tier, the site, the projection or a record."""
    if not record:
        return case.question
    if record == "site":
        return case.question.site
    if record == "projection":
        return case.projection
    for tier in case.question.tiers:
        if tier.tier == record:
            return tier
    found = [each for each in case.catalogue.find(record) if each.kind in {"accelerator", "system"}]
    if not found:
        raise ConfigInvalid(f"{record!r} is no system and no accelerator.")
    return found[0]


def with_figure(case: Case, figure: str, value: object) -> Case:
    """The same case with one figure changed."""
    record, _, field = figure.rpartition(".")
    owner = _owner(case, record)
    question, projection, catalogue = case.question, case.projection, case.catalogue
    if isinstance(owner, Question):
        question = msgspec.structs.replace(question, **{field: value})
    elif record == "site":
        site = msgspec.structs.replace(question.site, **{field: value})
        question = msgspec.structs.replace(question, site=site)
    elif record == "projection":
        projection = msgspec.structs.replace(projection, **{field: value})
    elif isinstance(owner, Record):
        catalogue = catalogue.with_records(msgspec.structs.replace(owner, **{field: value}))
    else:
        question = question.with_tier(record, **{field: value})
    return Case(catalogue=catalogue, projection=projection, question=question)


def what_if(case: Case, changes: str) -> Case:
    """The same case with other figures, as in ``lpx.price_usd=-30%, vr-nvl72.ship=+180d``.

    A figure is given anew, or more or less by a share; ``ship``, ``start`` and ``by`` are given as
    a date, or later or earlier by days; ``systems`` and ``without`` as names joined by ``+``.

    Raises:
        ConfigInvalid: there is no such figure, or the change cannot be read.
    """
    for change in changes.split(","):
        figure, _, said = (part.strip() for part in change.partition("="))
        field = figure.rpartition(".")[2]
        if field == "ship":
            owner = _owner(case, figure.rpartition(".")[0])
            value: object = str(_day(said, _ships(case, owner), change))
        elif figure in {"start", "by"}:
            value = _day(said, getattr(case.question, figure), change)
        elif figure in {"systems", "without"}:
            value = tuple(said.split("+"))
        else:
            value = _number(case, figure, said, change)
        case = with_figure(case, figure, value)
    check(case.question)
    return case


def _ships(case: Case, owner: msgspec.Struct) -> datetime.date:
    """When a record ships: a system without a date of its own, when its part does."""
    text: str = getattr(owner, "ship", "")
    part = getattr(owner, "accelerator", "") or getattr(owner, "lpu", "")
    if not text and part:
        text = case.catalogue.accelerator(part).ship
    return ship_date(text)


def _day(said: str, day: datetime.date, change: str) -> datetime.date:
    if moved := re.fullmatch(r"([+-]\d{1,5})d", said):
        try:
            return day + datetime.timedelta(days=int(moved[1]))
        except OverflowError as error:
            raise _unreadable(change) from error
    try:
        return datetime.date.fromisoformat(said)
    except ValueError as error:
        raise _unreadable(change) from error


def _number(case: Case, figure: str, said: str, change: str) -> float | int:
    old = _figure(case, figure)[0]
    try:
        moved = re.fullmatch(r"([+-][\d.]+)%", said)
        value = old * (1 + float(moved[1]) / 100) if moved else float(said)
    except ValueError as error:
        raise _unreadable(change) from error
    least, most = BOUNDS.get(figure, (0.0, math.inf))
    field = figure.rpartition(".")[2]
    if not least <= value <= most or math.isinf(value) or (not value and not _may_be_none(field)):
        raise ConfigInvalid(
            f"--what-if has {change.strip()!r}, which makes {figure} {value:g}.",
            hint="Give it a value that can be.",
        )
    record = figure.rpartition(".")[0]
    return round(value) if isinstance(getattr(_owner(case, record), field), int) else value


def _may_be_none(field: str) -> bool:
    return "usd" in field or field in {
        "network_share",
        "interest_per_year",
        "at_least",
        "idle_power_share",
        "install_h",
    }


def _unreadable(change: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"--what-if has {change.strip()!r}.",
        hint="Write it as lpx.price_usd=-30%, vr-nvl72.ship=+180d or power_mw=200.",
    )

"""A question in TOML, with what it leaves out filled in from the catalogue."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.catalogue.records import Projection, TierLine
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.catalogue.toml_text import read_toml
from tokenworks.core.errors import ConfigInvalid
from tokenworks.plan.mix_inputs import Objective, Question, TierDemand, Work

QUESTION_BYTES_MAX: Final = 1_000_000
SITE: Final = "us-hyperscale"
"""Its PUE is what the catalogue's all-in power is taken to hold."""
TIERS: Final = "keynote"
PROJECTION: Final = "keynote"

POWER_MW: Final = 100.0
POWER_MW_MAX: Final = 1e5
"""A hundred gigawatts: beyond it a solver's numbers are too far apart to be trusted."""
MTOK_PER_S_PER_MW: Final = 1.5
MIX: Final = {"free": 40.0, "medium": 35.0, "high": 18.0, "premium": 6.0, "ultra": 1.0}
OUTPUT_TOKENS: Final = 400
AD_USD_PER_MTOK: Final = 0.5
"""Of a tier that costs nothing, as in the price book that ships."""
UTILISATION: Final = 0.8
PRICES: Final = ("usd_per_mtok", "input_usd_per_mtok", "cached_usd_per_mtok", "ad_usd_per_mtok")
DEFAULTS: Final = (
    f"demand, where none is given: {MTOK_PER_S_PER_MW:g}M tokens/s of output for each MW, "
    + ", ".join(f"{weight:g} % {tier}" for tier, weight in MIX.items())
    + f"; answers of {OUTPUT_TOKENS} tokens",
    f"advertisers pay ${AD_USD_PER_MTOK:g} for 1M tokens of a tier that costs its users nothing",
)

EXAMPLE: Final = """\
# What `tokenworks plan mix` is asked. Everything may be left out, but a tier that is here
# needs requests_per_s and prompt_tokens.
power_mw = 20              # of the utility's
capital_usd = 1.2e9        # systems, network and facility
start = 2026-12-01         # the first day of work
by = 2027-03-31            # all runs from then on
site = "us-hyperscale"     # `tokenworks catalogue list site`
systems = ["gb200-nvl72", "vr-nvl72", "lpx"]
objective = "profit"       # or revenue, or cost: all of the demand for the least money
utilisation = 0.8          # of what a pool could make, at most

# Model, promise and price of a tier that the catalogue's list has may be left out.
[tier.high]
requests_per_s = 8000
prompt_tokens = 16_000
cached_share = 0.9
output_tokens = 500
interactivity_tokens_per_s = 150
ttft_s = 2.0
usd_per_mtok = 6
at_least = 0.5             # of the demand: must be served

[tier.premium]
requests_per_s = 2000
prompt_tokens = 100_000
cached_share = 0.98
output_tokens = 800
usd_per_mtok = 45
"""


class TierFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tier as a file says it; see ``TierDemand``. None stands for the catalogue's own."""

    requests_per_s: float
    prompt_tokens: int
    output_tokens: int = OUTPUT_TOKENS
    cached_share: float = 0.0
    context_tokens: int | None = None
    model: str | None = None
    interactivity_tokens_per_s: float | None = None
    ttft_s: float | None = None
    usd_per_mtok: float | None = None
    input_usd_per_mtok: float = 0.0
    cached_usd_per_mtok: float = 0.0
    ad_usd_per_mtok: float = 0.0
    at_least: float = 0.0


class QuestionFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question as a file or options say it; see ``Question``.

    Attributes:
        power_mw: of the utility's.
        capital_usd: at most.
        start: work begins; None for the day of asking.
        by: all runs; None for a year after the start.
        site: its name.
        pue: of it, where it has another than the catalogue's.
        objective: what is best.
        utilisation: at most.
        systems: that may be bought; empty for all.
        without: that may not.
        tiers: whose demand counts; empty for all.
        mtok_per_s: of output over all tiers, where no tier says its own demand.
        mix: of it, in any unit.
        projection: of what software reaches.
        tier: demand by tier.
    """

    power_mw: float = POWER_MW
    capital_usd: float | None = None
    start: datetime.date | None = None
    by: datetime.date | None = None
    site: str = SITE
    pue: float | None = None
    objective: Objective = "profit"
    utilisation: float = UTILISATION
    systems: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    mtok_per_s: float | None = None
    mix: dict[str, float] = {}
    projection: str = PROJECTION
    tier: dict[str, TierFile] = {}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """All that an answer follows from.

    Attributes:
        catalogue: of hardware, models and sites.
        projection: of what software reaches.
        question: demand, budgets and promises.
    """

    catalogue: Catalogue
    projection: Projection
    question: Question


def parse_question(text: str, where: str) -> QuestionFile:
    """Read a question.

    Raises:
        ConfigInvalid: not TOML, an unknown key, or a value that cannot be.
    """
    if len(text) > QUESTION_BYTES_MAX:
        raise ConfigInvalid(f"{where} has {len(text)} characters; at most {QUESTION_BYTES_MAX}.")
    hint = "Compare it with `tokenworks plan mix --example`."
    try:
        return read_toml(text, QuestionFile, what=where, hint=hint)
    except ConfigInvalid as error:
        if "$.tier[...]" not in error.message:
            raise
        # The first that cannot be read is the one that was told of.
        name = next(n for n, said in tomllib.loads(text)["tier"].items() if not _is_tier(said))
        told = error.message.replace("$.tier[...]", f"tier.{name}")
        raise ConfigInvalid(told, hint=hint) from error


def _is_tier(said: object) -> bool:
    try:
        msgspec.convert(said, TierFile)
    except msgspec.ValidationError:
        return False
    return True


def case_of(said: QuestionFile, catalogue: Catalogue, today: datetime.date) -> Case:
    """A question with all that it leaves out.

    Args:
        said: by a file and options.
        catalogue: to look names up in.
        today: the first day of work, where none is said.

    Raises:
        ConfigInvalid: a name is unknown, or a number cannot be.
    """
    site = catalogue.site(said.site)
    if said.pue is not None:
        site = msgspec.structs.replace(site, pue=said.pue)
    projection = catalogue.projection(said.projection)
    start = said.start or today
    by = said.by or start + datetime.timedelta(days=365)
    lines = {line.tier: line for line in catalogue.tiers(TIERS).tiers}
    if said.tier:
        tiers = [_tier(name, each, lines.get(name), catalogue) for name, each in said.tier.items()]
    else:
        tiers = _default_tiers(said, lines, projection, catalogue)
    if unknown := set(said.tiers) - {tier.tier for tier in tiers}:
        raise ConfigInvalid(
            f"There is no tier {min(unknown)!r}.",
            hint=f"There are {', '.join(tier.tier for tier in tiers)}.",
        )
    question = Question(
        tiers=tuple(tier for tier in tiers if not said.tiers or tier.tier in said.tiers),
        power_mw=said.power_mw,
        capital_usd=said.capital_usd,
        start=start,
        by=by,
        site=site,
        all_in_pue=catalogue.site(SITE).pue,
        utilisation=said.utilisation,
        objective=said.objective,
        systems=said.systems,
        without=said.without,
    )
    check(question)
    return Case(catalogue=catalogue, projection=projection, question=question)


def check(question: Question) -> None:
    """See that numbers can be.

    Raises:
        ConfigInvalid: one of them cannot.
    """
    wrong: list[tuple[str, object, str]] = []
    if not 0 < question.power_mw <= POWER_MW_MAX:
        wrong.append(("power_mw", question.power_mw, f"more than 0, at most {POWER_MW_MAX:,.0f}"))
    if question.capital_usd is not None and not 0 < question.capital_usd < float("inf"):
        wrong.append(("capital_usd", question.capital_usd, "more than 0"))
    if question.by <= question.start:
        wrong.append(("by", str(question.by), f"later than {question.start}"))
    if not 0 < question.utilisation < 1:
        wrong.append(("utilisation", question.utilisation, "between 0 and 1"))
    if not 1 <= question.site.pue < float("inf"):
        wrong.append(("pue", question.site.pue, "1 or more"))
    if not 0 <= question.site.idle_power_share <= 1:
        wrong.append(("site.idle_power_share", question.site.idle_power_share, "from 0 to 1"))
    if not question.tiers:
        wrong.append(("tier", "empty", "one tier or more"))
    for field in ("system_years", "facility_years", "install_crews", "install_h_per_day"):
        value = getattr(question.site, field)
        if not 0 < value < float("inf"):
            wrong.append((f"site.{field}", value, "more than 0"))
    for tier in question.tiers:
        name = f"tier.{tier.tier}"
        if tier.work.context_tokens < 1:
            wrong.append((f"{name}.context_tokens", tier.work.context_tokens, "1 or more"))
        for field in ("requests_per_s", "output_tokens", "prompt_tokens"):
            value = getattr(tier, field)
            if not 0 < value < float("inf"):
                wrong.append((f"{name}.{field}", value, "more than 0"))
        if not 0 <= tier.cached_share < 1:
            wrong.append((f"{name}.cached_share", tier.cached_share, "from 0 to below 1"))
        if not 0 <= tier.at_least <= 1:
            wrong.append((f"{name}.at_least", tier.at_least, "from 0 to 1"))
        if tier.ttft_s is not None and not tier.ttft_s > 0:
            wrong.append((f"{name}.ttft_s", tier.ttft_s, "more than 0"))
        if not 0 <= tier.interactivity_tokens_per_s < float("inf"):
            value = tier.interactivity_tokens_per_s
            wrong.append((f"{name}.interactivity_tokens_per_s", value, "0 or more"))
        for field in PRICES:
            value = getattr(tier, field)
            if not 0 <= value < float("inf"):
                wrong.append((f"{name}.{field}", value, "0 or more"))
    if wrong:
        field, value, must = wrong[0]
        raise ConfigInvalid(f"{field} is {value!r}; it must be {must}.")


def _tier(name: str, said: TierFile, line: TierLine | None, catalogue: Catalogue) -> TierDemand:
    model = said.model or (line.model if line else None)
    speed = said.interactivity_tokens_per_s
    price = said.usd_per_mtok
    if line is not None:
        speed = line.interactivity_tokens_per_s if speed is None else speed
        price = line.usd_per_mtok if price is None else price
    if model is None or speed is None or price is None:
        raise ConfigInvalid(
            f"[tier.{name}] lacks model, interactivity_tokens_per_s or usd_per_mtok.",
            hint=f"The catalogue's list {TIERS!r} has no such tier, so say all three.",
        )
    new = said.prompt_tokens * (1 - said.cached_share)
    return TierDemand(
        tier=name,
        work=Work(
            model=catalogue.model(model).name,
            context_tokens=said.prompt_tokens + said.output_tokens // 2
            if said.context_tokens is None
            else said.context_tokens,
            new_tokens_per_output=new / max(1, said.output_tokens),
        ),
        requests_per_s=said.requests_per_s,
        output_tokens=said.output_tokens,
        prompt_tokens=said.prompt_tokens,
        cached_share=said.cached_share,
        interactivity_tokens_per_s=speed,
        ttft_s=said.ttft_s,
        usd_per_mtok=price,
        input_usd_per_mtok=said.input_usd_per_mtok,
        cached_usd_per_mtok=said.cached_usd_per_mtok,
        ad_usd_per_mtok=said.ad_usd_per_mtok,
        at_least=said.at_least,
    )


def _default_tiers(
    said: QuestionFile,
    lines: Mapping[str, TierLine],
    projection: Projection,
    catalogue: Catalogue,
) -> list[TierDemand]:
    """The catalogue's tiers, with a demand that a factory of that power can't quite serve."""
    mix = said.mix or MIX
    if unknown := set(mix) - set(lines):
        raise ConfigInvalid(
            f"The mix has a tier {min(unknown)!r}.", hint=f"There are {', '.join(lines)}."
        )
    if not all(0 <= weight < float("inf") for weight in mix.values()) or not sum(mix.values()):
        raise ConfigInvalid(f"The mix is {mix!r}.", hint="Give weights of 0 or more, not all 0.")
    mtok_per_s = said.mtok_per_s
    if mtok_per_s is not None and not 0 < mtok_per_s < float("inf"):
        raise ConfigInvalid(f"mtok_per_s is {mtok_per_s!r}; it must be more than 0.")
    if mtok_per_s is None:
        mtok_per_s = said.power_mw * MTOK_PER_S_PER_MW
    tiers = []
    for name, weight in mix.items():
        line = lines[name]
        prompt = line.context_tokens - OUTPUT_TOKENS // 2
        cached = 1 - projection.new_tokens_per_output * OUTPUT_TOKENS / prompt
        tokens_per_s = mtok_per_s * 1e6 * weight / sum(mix.values())
        if not weight:
            continue
        tiers.append(
            _tier(
                name,
                TierFile(
                    requests_per_s=tokens_per_s / OUTPUT_TOKENS,
                    prompt_tokens=prompt,
                    output_tokens=OUTPUT_TOKENS,
                    cached_share=cached,
                    context_tokens=line.context_tokens,
                    ad_usd_per_mtok=0.0 if line.usd_per_mtok else AD_USD_PER_MTOK,
                ),
                line,
                catalogue,
            )
        )
    return tiers

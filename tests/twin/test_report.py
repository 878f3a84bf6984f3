"""A run is added up as the ledger would add it up."""

from __future__ import annotations

import pytest

from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.orders import Usage
from tokenworks.core.slo import Tier
from tokenworks.dispatch.events import PolicySettings
from tokenworks.ledger.metering import charge_nanodollars
from tokenworks.live.home import packaged
from tokenworks.twin.driver import run
from tokenworks.twin.records import End, Scenario, TwinRequest
from tokenworks.twin.report import delivered, quantiles, report
from tokenworks.twin.scenarios import BLOCK_TOKENS, MODEL, fleet_of, scenario, token_prices
from tokenworks.twin.workload import generated, poisson, requests_of

BOOK = parse_price_book(packaged("twin.toml").read_text(encoding="utf-8"))


def factory(name: str = "homogeneous", policy: str = "economic", workers: int = 2) -> Scenario:
    return scenario(name, BOOK, policy=PolicySettings(name=policy), workers=workers)


def workload(count: int = 400, rate: float = 60.0) -> list[TwinRequest]:
    rows = generated(poisson(1, rate, count), 1, BLOCK_TOKENS)
    mix = fleet_of("homogeneous").mix
    return requests_of(rows, model=MODEL, block_tokens=BLOCK_TOKENS, mix=mix, seed=1)


def test_a_report_adds_up() -> None:
    made, requests = factory(), workload()
    result = run(made, requests)
    total = report(
        made, requests, result, peak_rss_bytes=1, fluid_bound_nanodollars=2_000_000_000_000
    )
    answers = delivered(made, requests, result)
    assert total.revenue_nanodollars == sum(each.earned_nanodollars for each in answers)
    assert total.revenue_nanodollars == sum(each.revenue_nanodollars for each in total.tiers)
    assert total.fluid_bound_share == total.revenue_usd / 2_000
    assert sum(each.requests for each in total.tiers) == len(requests) == total.requests
    for each in total.tiers:
        assert each.done + each.rejected == each.requests
        assert sum(each.delivered.values()) == each.done
        assert all(each.tier.rank >= got.rank or not n for got, n in each.delivered.items())
    assert total.output_tokens == sum(result.outcomes.output_tokens)
    assert 0 < total.utilisation <= 1
    assert total.energy_kwh > 0
    assert total.cost_usd > 0
    assert total.goodput_tokens_per_s <= total.output_tokens_per_s


def test_an_answer_is_billed_at_the_tier_that_was_delivered() -> None:
    made, requests = factory(policy="least-loaded", workers=1), workload(rate=400.0)
    result = run(made, requests)
    answers = delivered(made, requests, result)
    lower = [i for i, each in enumerate(answers) if each.tier not in (None, requests[i].tier)]
    assert lower
    for i in lower[:20]:
        cached = result.outcomes.cached_tokens[i]
        usage = Usage(
            uncached_input_tokens=requests[i].input_tokens - cached,
            cached_input_tokens=cached,
            output_tokens=result.outcomes.output_tokens[i],
        )
        tier = answers[i].tier
        assert tier is not None
        assert requests[i].tier is not Tier.FREE
        charged = charge_nanodollars(usage, BOOK.prices[MODEL][tier])
        assert answers[i].earned_nanodollars <= charged


def test_what_was_rejected_earns_nothing() -> None:
    made, requests = factory(workers=1), workload(rate=2_000.0, count=2_000)
    result = run(made, requests)
    answers = delivered(made, requests, result)
    rejected = [i for i in range(len(requests)) if result.outcomes.end[i] == End.REJECTED]
    assert rejected
    assert all(answers[i].earned_nanodollars == 0 for i in rejected)


def test_a_run_without_requests_is_empty() -> None:
    made = factory()
    total = report(made, [], run(made, []), peak_rss_bytes=1)
    assert (total.requests, total.revenue_usd, total.promise_kept) == (0, 0.0, 0.0)
    assert total.tiers[0].ttft_ms == quantiles([]) == (0.0, 0.0, 0.0)


def test_fleets_keep_their_proportions() -> None:
    pools = [spec.pool for spec in factory("mixed", workers=16).workers]
    assert (pools.count("slow"), pools.count("fast")) == (12, 4)  # type: ignore[arg-type]
    assert len(scenario("mixed", BOOK, policy=PolicySettings()).workers) == 8


def test_what_is_no_factory_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="no scenario"):
        factory("lunar")
    laptop = parse_price_book(packaged("laptop.toml").read_text(encoding="utf-8"))
    with pytest.raises(ConfigInvalid, match="no price"):
        scenario("mixed", laptop, policy=PolicySettings())


def test_free_answers_earn_from_advertisers() -> None:
    prices = token_prices(BOOK)[MODEL]
    assert prices[Tier.FREE].output_udollars_per_mtok == BOOK.ad_income_udollars_per_mtok
    assert prices[Tier.ULTRA].output_udollars_per_mtok == 150_000_000

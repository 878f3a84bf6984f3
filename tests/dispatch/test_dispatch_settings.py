"""From what an operator writes to what the dispatcher is told."""

from __future__ import annotations

import pytest

from tests.ledger.ledger_samples import BOOK, MODEL
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier
from tokenworks.dispatch.events import Limits, PolicySettings
from tokenworks.dispatch.settings import parse_policy, settings_for, token_prices

LIMITS = Limits(queue_len_max=dict.fromkeys(Tier, 3))


def test_the_dispatcher_is_told_promises_prices_and_a_policy() -> None:
    told = settings_for(BOOK, LIMITS)
    assert (told.promises, told.limits) == (BOOK.promises, LIMITS)
    assert told.policy == PolicySettings()
    assert told.prices == token_prices(BOOK)
    assert settings_for(BOOK, LIMITS, PolicySettings(name="edf")).policy.name == "edf"


def test_free_tokens_earn_what_advertisers_pay() -> None:
    prices, told = BOOK.prices[MODEL], token_prices(BOOK)[MODEL]
    for tier in Tier:
        ads = BOOK.ad_income_udollars_per_mtok if tier is Tier.FREE else 0
        assert told[tier].output_udollars_per_mtok == prices[tier].output_udollars_per_mtok + ads
        assert told[tier].input_udollars_per_mtok == prices[tier].input_udollars_per_mtok


def test_own_policies_are_named_like_others() -> None:
    assert parse_policy("mine", ["mine"]).name == "mine"
    with pytest.raises(ConfigInvalid, match="no policy 'mine'"):
        parse_policy("mine")


@pytest.mark.parametrize("text", ["strict-priority:", "edf:x", "edf:0", "static-split:1/2"])
def test_what_follows_a_name_is_a_cap_or_a_split(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_policy(text)

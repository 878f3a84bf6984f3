"""What a key may be used for: each limit alone, its words, and addresses as they are written."""

from __future__ import annotations

import ipaddress

import pytest

from tokenworks.core.errors import Forbidden, InvalidRequest, Unauthorized
from tokenworks.core.ids import ModelName
from tokenworks.core.scopes import NETWORKS_MAX, Scopes, address_of, networks_of, within
from tokenworks.core.slo import Tier

NOW = 1_793_491_200_000_000_000
"""2026-11-01T00:00Z."""


def test_what_is_not_limited_is_let_pass() -> None:
    free = Scopes()
    free.check_date(2**63 - 1)
    free.check_address(None)
    free.check_model(None)
    free.check_tier(Tier.ULTRA)


def test_a_time_that_is_over() -> None:
    scopes = Scopes(expires_unix_ns=NOW)
    scopes.check_date(NOW - 1)
    with pytest.raises(Unauthorized, match=r"expired at 2026-11-01T00:00Z"):
        scopes.check_date(NOW)
    replaced = Scopes(expires_unix_ns=NOW, replaced=True)
    replaced.check_date(NOW - 1)
    with pytest.raises(Unauthorized, match=r"was replaced.* until 2026-11-01T00:00Z"):
        replaced.check_date(NOW)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.1", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("unknown", False),
    ],
)
def test_where_a_key_may_be_used(address: str, *, good: bool) -> None:
    scopes = Scopes(networks=networks_of(["10.0.0.0/8", "2001:db8::/32"], "networks"))
    if good:
        scopes.check_address(address_of(address))
    else:
        with pytest.raises(Forbidden, match=r"may be from 10.0.0.0/8, 2001:db8::/32") as caught:
            scopes.check_address(address_of(address))
        named = "an unknown address" if address == "unknown" else address
        assert f"not be used from {named}" in caught.value.message
        assert (caught.value.status, caught.value.code) == (403, "not_permitted")


def test_models_and_tiers() -> None:
    scopes = Scopes(
        models=frozenset({ModelName("b"), ModelName("a")}), tiers=frozenset({Tier.ULTRA, Tier.FREE})
    )
    scopes.check_model("a")
    scopes.check_tier(Tier.FREE)
    with pytest.raises(Forbidden, match=r"the model 'c'; it may use a, b\."):
        scopes.check_model("c")
    with pytest.raises(Forbidden, match="what names no model"):
        scopes.check_model(None)
    with pytest.raises(Forbidden, match=r"the tier high; it may ask for free, ultra\."):
        scopes.check_tier(Tier.HIGH)


def test_addresses_as_they_are_written() -> None:
    v4, v6 = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("2001:db8::1")
    assert {address_of(text) for text in ("10.0.0.1", " 10.0.0.1:80", "::ffff:a00:1")} == {v4}
    assert {address_of(text) for text in ("2001:db8::1", "[2001:db8::1]:80", "[2001:db8::1]")} == {
        v6
    }
    assert {address_of(text) for text in ("", "me", "10.0.0", "[", "10.0.0.1/8")} == {None}
    assert not within(v4, ())


def test_ranges_are_told_in_one_way() -> None:
    found = networks_of(["::/0", "192.0.2.7", "10.0.0.0/8", "10.0.0.0/255.0.0.0"], "networks")
    assert list(map(str, found)) == ["10.0.0.0/8", "192.0.2.7/32", "::/0"]
    for wrong in ("10.0.0.1/8", "everywhere", "", "10.0.0.0/33"):
        with pytest.raises(InvalidRequest, match="networks has"):
            networks_of([wrong], "networks")
    with pytest.raises(InvalidRequest, match="more than"):
        networks_of([f"10.0.0.{i}" for i in range(NETWORKS_MAX + 1)], "networks")

"""What tests of the ledger and of its stores share: a price book, keys, orders, answers."""

from __future__ import annotations

import msgspec

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.ids import KeyID, ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.orders import KeyView, Order, Outcome, Usage
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.entries import CostAccrued, Entry, Posted, Reserved
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quotas import KeyRecord, Refused

MODEL = ModelName("m")
POOL = PoolID("pool")
WORKER = WorkerID("worker")
FAST = Measured(ttft_ns=1, decode_ns=0, output_tokens=1)
NEVER = Measured(ttft_ns=None, decode_ns=0, output_tokens=0)

_TIERS = {
    # name: ttft_ms, tokens/s, then prices in micro-dollars per 1M tokens: input, cached, output
    "free": (8000, 10, 0, 0, 0),
    "medium": (4000, 25, 600_000, 60_000, 3_000_000),
    "high": (2000, 50, 1_200_001, 120_003, 6_000_007),
    "premium": (1000, 100, 9_000_000, 900_000, 45_000_000),
    "ultra": (500, 200, 30_000_000, 3_000_000, 150_000_000),
}


def book(*, name: str = "test", ad_income: int = 500_001) -> PriceBook:
    lines = [
        f'name = "{name}"',
        "effective = 2026-01-01",
        'source = "made up"',
        f"ad_income_udollars_per_mtok = {ad_income}",
    ]
    for tier, (ttft_ms, speed, *_) in _TIERS.items():
        lines += [
            f"[tier.{tier}]",
            f"ttft_ms = {ttft_ms}",
            f"interactivity_tokens_per_s = {speed}",
            "grace_ms = 0",
            "patience_ms = 1000",
            "output_tokens_default = 16",
        ]
    for tier, (*_, uncached, cached, output) in _TIERS.items():
        lines += [
            f"[price.{MODEL}.{tier}]",
            f"input_udollars_per_mtok = {uncached}",
            f"cached_input_udollars_per_mtok = {cached}",
            f"output_udollars_per_mtok = {output}",
        ]
    return parse_price_book("\n".join(lines))


BOOK = book()


def key_record(key: str = "key", **changes: object) -> KeyRecord:
    record = KeyRecord(
        key=KeyID(key),
        tenant=TenantID("tenant"),
        name="a key",
        secret_sha256=key.encode().hex().rjust(64, "0"),
        tier_default=Tier.HIGH,
        tokens_quota=None,
        nanodollars_quota=None,
        created_unix_ns=1,
        revoked_unix_ns=None,
    )
    return msgspec.structs.replace(record, **changes)


def order(
    request: str = "r",
    *,
    key: str = "key",
    tier: Tier = Tier.HIGH,
    input_max: int = 10,
    output_max: int = 20,
    model: str = MODEL,
) -> Order:
    return Order(
        request=RequestID(request),
        key=KeyView(key=KeyID(key), tenant=TenantID("tenant"), tier_default=Tier.HIGH),
        model=ModelName(model),
        tier=tier,
        body=b"{}",
        input_tokens_max=input_max,
        output_tokens_max=output_max,
        prefix=(),
        arrived_ns=0,
    )


def outcome(
    input_tokens: int = 10,
    cached: int = 4,
    output: int = 20,
    *,
    ending: str = "done",
    measured: Measured = FAST,
) -> Outcome:
    usage = Usage(input_tokens=input_tokens, cached_input_tokens=cached, output_tokens=output)
    return Outcome(usage=usage, measured=measured, ending=ending)


def ledger(*records: KeyRecord, owner: str = "me", **limits: int) -> Ledger:
    made = Ledger(owner, **limits)
    for record in records or (key_record(),):
        made.set_key(record)
    return made


def reserve(target: Ledger, request: str = "r", **parts: object) -> Reserved:
    result = target.reserve(0, 1, order(request, **parts), BOOK, 100)
    assert isinstance(result, Reserved), result
    return result


def try_post(target: Ledger, request: str = "r", **parts: object) -> Posted | Refused:
    return target.post(
        2,
        RequestID(request),
        outcome=outcome(**parts),
        pool=POOL,
        worker=WORKER,
        worker_ns=7,
        cost_nanodollars=3,
        book=BOOK,
    )


def post(target: Ledger, request: str = "r", **parts: object) -> Posted:
    result = try_post(target, request, **parts)
    assert isinstance(result, Posted), result
    return result


def accrue(target: Ledger, start: int = 0, stop: int = 10, energy: int = 5) -> CostAccrued:
    result = target.accrue(
        3,
        POOL,
        from_unix_ns=start,
        until_unix_ns=stop,
        energy_nanodollars=energy,
        capital_nanodollars=6,
    )
    assert isinstance(result, CostAccrued), result
    return result


def story() -> tuple[Ledger, list[Entry]]:
    """A ledger that has seen one of everything, and its entries in order."""
    made = ledger()
    entries: list[Entry] = [reserve(made, "a"), reserve(made, "b"), reserve(made, "c")]
    entries += [post(made, "a"), accrue(made), reserve(made, "free", tier=Tier.FREE)]
    voided = made.void(4, RequestID("b"), reason="withdrawn")
    assert not isinstance(voided, Refused)
    entries += [voided, post(made, "free"), reserve(made, "open")]
    entries.append(post(made, "c", ending="failed"))
    return made, entries


def same(left: Ledger, right: Ledger) -> bool:
    """Whether two ledgers hold the same money."""
    return (
        left.balances() == right.balances()
        and left.uses() == right.uses()
        and left.open_holds() == right.open_holds()
        and left.pending() == right.pending()
    )

"""What tests of the ledger and of its stores share: a price book, keys, orders, answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.ids import KeyID, LimitID, ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.orders import KeyView, Order, Outcome, Payer, Usage
from tokenworks.core.slo import Measured, Tier
from tokenworks.ledger.entries import CostAccrued, Entry, Posted, Reserved, Voided, VoidReason
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quota_records import KeyRecord, Limit, LimitState, NodeID, Refused
from tokenworks.ledger.quotas import Window, window_start
from tokenworks.ledger.rollup import RollupRow
from tokenworks.ledger.summing import Rollup
from tokenworks.ledger.work import Work

MODEL = ModelName("m")
POOL = PoolID("pool")
WORKER = WorkerID("worker")
FAST = Measured(ttft_ns=1, decode_ns=0, output_tokens=1)
NEVER = Measured(ttft_ns=None, decode_ns=0, output_tokens=0)
PAYER = Payer(tenant="tenant", team="team", engineer="ada", key="key")

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
NOW = 1_790_000_000_000_000_000
"""2026-09-21 14:13:20, a Monday."""
MONTH = window_start("month", NOW)
TTL_NS = 100

_TIERS = {
    # name: ttft_ms, tokens/s, then prices in micro-dollars per 1M tokens: input, cached, output
    "free": (8000, 10, 0, 0, 0),
    "medium": (4000, 25, 600_000, 60_000, 3_000_000),
    "high": (2000, 50, 1_200_001, 120_003, 6_000_007),
    "premium": (1000, 100, 9_000_000, 900_000, 45_000_000),
    "ultra": (500, 200, 30_000_000, 3_000_000, 150_000_000),
}

HOLD_NANODOLLARS = 132_000
"""What ``order()`` holds: (10 x 1.200001 + 20 x 6.000007) dollars per 1M tokens."""
CHARGE_NANODOLLARS = 127_680
"""What ``outcome()`` costs at high: 6 uncached, 4 cached, 20 made."""


def book_text(
    *, name: str = "test", ad_income: int = 500_001, credit_ppm: int = 0, more: str = ""
) -> str:
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
            f"credit_ppm = {credit_ppm}",
        ]
    for tier, (*_, uncached, cached, output) in _TIERS.items():
        lines += [
            f"[price.{MODEL}.{tier}]",
            f"input_udollars_per_mtok = {uncached}",
            f"cached_input_udollars_per_mtok = {cached}",
            f"output_udollars_per_mtok = {output}",
        ]
    return "\n".join((*lines, more))


def book(**parts: Any) -> PriceBook:
    return parse_price_book(book_text(**parts))


BOOK = book()


def key_record(key: str = "key", **changes: object) -> KeyRecord:
    record = KeyRecord(
        key=KeyID(key),
        tenant=TenantID("tenant"),
        team="team",
        engineer="ada",
        name="a key",
        secret_sha256=key.encode().hex().rjust(64, "0"),
        tier_default=Tier.HIGH,
        created_unix_ns=1,
        revoked_unix_ns=None,
    )
    return msgspec.structs.replace(record, **changes)


def limit(name: str = "limit", node: str = "tenant:tenant", **changes: object) -> Limit:
    made = Limit(limit=LimitID(name), node=NodeID(node), unit="tokens", period="month", amount=100)
    return msgspec.structs.replace(made, **changes)


def state(
    of: Limit, *, unix_ns: int = NOW, allowed: int | None = None, used: int = 0
) -> LimitState:
    return LimitState(
        limit=of,
        start_unix_ns=window_start(of.period, unix_ns),
        used=used,
        extra=0 if allowed is None else allowed - of.amount,
    )


def order(
    request: str = "r",
    *,
    key: str = "key",
    tier: Tier = Tier.HIGH,
    input_max: int = 10,
    output_max: int = 20,
    model: str = MODEL,
    agent: str | None = None,
    run: str | None = None,
    batch: bool = False,
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
        agent=agent,
        run=run,
        batch=batch,
    )


def usage(uncached: int = 6, cached: int = 4, output: int = 20, **classes: int) -> Usage:
    return Usage(
        uncached_input_tokens=uncached, cached_input_tokens=cached, output_tokens=output, **classes
    )


def outcome(
    uncached: int = 6,
    cached: int = 4,
    output: int = 20,
    *,
    ending: str = "done",
    measured: Measured = FAST,
    **classes: int,
) -> Outcome:
    used = usage(uncached, cached, output, **classes)
    return Outcome(usage=used, measured=measured, ending=ending)


WORK = Work(pool=POOL, worker=WORKER, worker_ns=7, energy_nanodollars=2, capital_nanodollars=1)


def ledger(
    *records: KeyRecord, limits: Iterable[LimitState] = (), owner: str = "me", **parts: Any
) -> Ledger:
    made = Ledger(owner, **parts)
    for record in records or (key_record(),):
        made.set_key(record)
    made.set_limits(limits)
    return made


def try_reserve(
    target: Ledger,
    request: str = "r",
    *,
    unix_ns: int = NOW,
    now_ns: int = 0,
    prices: PriceBook = BOOK,
    attempt: int = 0,
    **parts: Any,
) -> Reserved | Refused:
    wanted = order(request, **parts)
    return target.reserve(now_ns, unix_ns, wanted, prices, TTL_NS, attempt=attempt)


def reserve(target: Ledger, request: str = "r", **parts: Any) -> Reserved:
    result = try_reserve(target, request, **parts)
    assert isinstance(result, Reserved), result
    return result


def try_post(
    target: Ledger, request: str = "r", *, unix_ns: int = NOW, work: Work = WORK, **parts: Any
) -> Posted | Refused:
    return target.post(unix_ns, RequestID(request), outcome=outcome(**parts), work=work)


def post(target: Ledger, request: str = "r", **parts: Any) -> Posted:
    result = try_post(target, request, **parts)
    assert isinstance(result, Posted), result
    return result


def void(
    target: Ledger, request: str = "r", reason: VoidReason = "withdrawn", unix_ns: int = NOW
) -> Voided:
    result = target.void(unix_ns, RequestID(request), reason=reason)
    assert isinstance(result, Voided), result
    return result


def accrue(target: Ledger, start: int = 0, stop: int = 10, energy: int = 5) -> CostAccrued:
    """A cost over an interval in nanoseconds after ``NOW``."""
    result = target.accrue(
        NOW,
        POOL,
        from_unix_ns=NOW + start,
        until_unix_ns=NOW + stop,
        energy_nanodollars=energy,
        capital_nanodollars=6,
    )
    assert isinstance(result, CostAccrued), result
    return result


def code(result: object) -> str:
    assert isinstance(result, Refused), result
    return result.code


def window(target: Ledger, name: str = "limit") -> Window:
    (found,) = [each for each in target.windows() if each.limit.limit == name]
    return found


def story() -> tuple[Ledger, list[Entry]]:
    """A ledger that has seen one of everything, and its entries in order."""
    made = ledger(limits=story_limits())
    entries: list[Entry] = [reserve(made, "a"), reserve(made, "b"), reserve(made, "c")]
    entries += [post(made, "a"), accrue(made), reserve(made, "free", tier=Tier.FREE)]
    entries += [void(made, "b"), post(made, "free"), reserve(made, "open")]
    entries.append(post(made, "c", ending="failed"))
    return made, entries


def story_limits() -> list[LimitState]:
    return [
        state(limit("tokens", amount=10_000)),
        state(limit("money", "key:key", unit="nanodollars", period="day", amount=10**9)),
        state(limit("high", "team:tenant/team", tier=Tier.HIGH, amount=10_000)),
    ]


def rolled(entries: Iterable[Entry]) -> list[RollupRow]:
    """The sums of some entries, by hour."""
    made = Rollup()
    for entry in entries:
        made.add(entry)
    return sorted(made.rows(), key=repr)


def whole(entries: Iterable[Entry]) -> list[RollupRow]:
    """The sums of some entries over the whole time."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    for row in rolled(entries):
        place = (0, row.payer, row.kind)
        before = sums.get(place, [0] * len(row.sums))
        sums[place] = [a + b for a, b in zip(before, row.sums, strict=True)]
    return sorted((RollupRow(*place, amounts) for place, amounts in sums.items()), key=repr)


def numbers(target: Ledger) -> list[tuple[object, ...]]:
    """What every window says."""
    return sorted(
        (each.limit.limit, each.start_unix_ns, each.allowed, each.used, each.held)
        for each in target.windows()
    )


def same(left: Ledger, right: Ledger) -> bool:
    """Whether two ledgers hold the same."""
    return (
        numbers(left) == numbers(right)
        and left.open_holds() == right.open_holds()
        and left.pending() == right.pending()
    )


def extra(name: str = "more", **changes: object) -> Extra:
    """Seven more tokens of a month, approved."""
    made = Extra(
        extra=name,
        limit=LimitID("limit"),
        start_unix_ns=MONTH,
        amount=7,
        reason="a demo",
        asked_by="engineer:tenant/ada",
        state="approved",
        decided_by="eve",
        at_unix_ns=1,
    )
    return msgspec.structs.replace(made, **changes)

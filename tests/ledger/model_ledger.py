"""A naive ledger to compare the real one with: plain records, exact fractions, sums made anew.

It shares no arithmetic with ``tokenworks.ledger``. Prices, promises and rules stand here as
fractions a second time; nothing is remembered but what happened.
"""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Self

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
TIERS = ("free", "medium", "high", "premium", "ultra")

# Micro-dollars per 1M tokens: uncached, cached, made. Reasoning costs what output does.
PRICES = {
    "free": (0, 0, 0),
    "medium": (600_000, 60_000, 3_000_000),
    "high": (1_200_001, 120_003, 6_000_007),
    "premium": (9_000_000, 900_000, 45_000_000),
    "ultra": (30_000_000, 3_000_000, 150_000_000),
}
# Seconds to the first token, tokens per second after it.
PROMISES = {"free": (8, 10), "medium": (4, 25), "high": (2, 50), "premium": (1, 100)} | {
    "ultra": (Fraction(1, 2), 200)
}
AD_UDOLLARS_PER_MTOK = 500_001

RULES = """
[[off_peak]]
name = "night"
hours_utc = [22, 6]
rate_ppm = 500_000
tiers = ["high", "medium", "free"]
[batch]
rate_ppm = 250_000
[discount.acme]
rate_ppm = 900_000
tiers = ["high"]
"""
CREDIT_PPM = 100_000


@dataclass
class Quota:
    """A limit: who, what it counts, how long, how much.

    In ``since``, the month in which it was set to this, it has ``carried_in`` on top, whatever the
    months before come to.
    """

    node: tuple[str, ...]
    unit: str
    period: str
    amount: int
    tier: str | None = None
    carry_over_max: int = 0
    since: tuple[int, ...] = ()
    carried_in: int = 0


@dataclass
class Hold:
    """A reservation and, once it is settled, what came of it."""

    at_ns: int
    path: dict[str, str | None]
    tier: str
    batch: bool
    tokens: int
    money: int
    settled: bool = False
    counted: bool = False
    delivered: str | None = None
    used_tokens: int = 0
    paid: int = 0


def when(unix_ns: int) -> datetime.datetime:
    return EPOCH + datetime.timedelta(seconds=unix_ns // 10**9)


@functools.cache
def window(period: str, unix_ns: int) -> tuple[int, ...]:
    """The calendar window that holds a time, as its parts."""
    date = when(unix_ns)
    parts = (date.year, date.month, date.day, date.hour)
    return parts[: {"lifetime": 0, "month": 2, "day": 3, "hour": 4}[period]]


def rate(tenant: str, tier: str, unix_ns: int, *, batch: bool) -> Fraction:
    share = Fraction(1)
    hour = when(unix_ns).hour
    if tier in ("high", "medium", "free") and (hour >= 22 or hour < 6):
        share *= Fraction(1, 2)
    if batch:
        share *= Fraction(1, 4)
    if tenant == "acme" and tier == "high":
        share *= Fraction(9, 10)
    return share


def cost(tier: str, uncached: int, cached: int, made: int) -> Fraction:
    """The list price in nano-dollars."""
    amounts = zip((uncached, cached, made), PRICES[tier], strict=True)
    return Fraction(sum(count * price for count, price in amounts), 1000)


def delivered(asked: str, ttft_ns: int | None, decode_ns: int, tokens: int) -> str:
    """The best tier up to the asked one whose promise was kept."""
    for tier in reversed(TIERS[: TIERS.index(asked) + 1]):
        ttft_s, speed = PROMISES[tier]
        gaps_s = Fraction(max(0, tokens - 1)) / speed
        total_s = Fraction(decode_ns, 10**9)
        if ttft_ns is None and tokens and total_s <= ttft_s + gaps_s:
            return tier  # it came in one piece
        if (
            ttft_ns is not None
            and Fraction(ttft_ns, 10**9) <= ttft_s
            and Fraction(decode_ns, 10**9) <= gaps_s
        ):
            return tier
    return "free"


@dataclass
class ModelLedger:
    """Everything that happened."""

    quotas: dict[str, Quota] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    extra: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)
    debts: dict[str, int] = field(default_factory=dict)
    """Every account's debits less its credits."""

    def copy(self) -> Self:
        """Another one that goes on from here."""
        holds = {name: replace(hold) for name, hold in self.holds.items()}
        quotas, extra, debts = dict(self.quotas), dict(self.extra), dict(self.debts)
        return replace(self, quotas=quotas, holds=holds, extra=extra, debts=debts)

    # What may be used.

    def under(self, quota: Quota, hold: Hold) -> bool:
        """Whether a hold is below a quota's node and of its tier."""
        level, *names = quota.node
        found = (
            [hold.path[level]]
            if level in ("tenant", "key")
            else [
                hold.path["tenant"],
                hold.path[level],
            ]
        )
        return found == names and quota.tier in (None, hold.tier)

    def inside(self, name: str, at: tuple[int, ...]) -> list[Hold]:
        quota = self.quotas[name]
        return [
            hold
            for hold in self.holds.values()
            if self.under(quota, hold) and window(quota.period, hold.at_ns) == at
        ]

    def used(self, name: str, at: tuple[int, ...]) -> int:
        quota = self.quotas[name]
        return sum(
            hold.used_tokens if quota.unit == "tokens" else hold.paid
            for hold in self.inside(name, at)
            if hold.counted and quota.tier in (None, hold.delivered)
        )

    def held(self, name: str, at: tuple[int, ...]) -> int:
        tokens = self.quotas[name].unit == "tokens"
        return sum(
            hold.tokens if tokens else hold.money
            for hold in self.inside(name, at)
            if not hold.settled
        )

    def carried(self, name: str, at: tuple[int, ...], *, held: bool = True) -> int:
        """What a month has on top: the rest of the one before, of which open holds are no part.

        Without ``held`` it is read as if nothing were open.
        """
        quota = self.quotas[name]
        if not quota.carry_over_max or at <= quota.since:
            return quota.carried_in
        year, month = at
        before = (year - 1, 12) if month == 1 else (year, month - 1)
        whole = quota.amount + self.extra.get((name, before), 0)
        rest = whole + self.carried(name, before, held=held) - self.used(name, before)
        if held:
            rest -= self.held(name, before)
        return min(quota.carry_over_max, max(0, rest))

    def allowed(self, name: str, at: tuple[int, ...]) -> int:
        amount = self.quotas[name].amount + self.extra.get((name, at), 0)
        return amount + self.carried(name, at)

    def put(self, name: str, quota: Quota, unix_ns: int) -> None:
        """Set a quota, or change it: the present month keeps what it has got, if not too much.

        Whoever changes it reads what is settled and knows nothing of open holds.
        """
        before = self.quotas.get(name)
        at = window("month", unix_ns)
        carried_in = 0
        if before is not None:
            carried_in = min(quota.carry_over_max, self.carried(name, at, held=False))
            if (before.amount, before.carry_over_max) == (quota.amount, quota.carry_over_max):
                at, carried_in = before.since, before.carried_in
        self.quotas[name] = replace(quota, since=at, carried_in=carried_in)

    def numbers(self, name: str, unix_ns: int) -> tuple[int, int, int]:
        """What a quota allows now, what is used and what is held of it."""
        at = window(self.quotas[name].period, unix_ns)
        return self.allowed(name, at), self.used(name, at), self.held(name, at)

    # What happens.

    def wanted(
        self,
        unix_ns: int,
        path: dict[str, str | None],
        tier: str,
        read: int,
        made: int,
        *,
        batch: bool,
    ) -> Hold:
        """The hold that a request would need: the dearest that it may become."""
        highest = max(rate(str(path["tenant"]), each, unix_ns, batch=batch) for each in TIERS)
        dearest = max(cost(each, read, 0, made) for each in TIERS[: TIERS.index(tier) + 1])
        return Hold(unix_ns, path, tier, batch, read + made, round(dearest * highest))

    def short(self, hold: Hold, unix_ns: int) -> dict[str, tuple[int, int, int, int]]:
        """The quotas that cannot hold it: allowed, used, held, asked."""
        found = {}
        for name, quota in self.quotas.items():
            asked = hold.tokens if quota.unit == "tokens" else hold.money
            allowed, used, held = self.numbers(name, unix_ns)
            if self.under(quota, hold) and used + held + asked > allowed:
                found[name] = (allowed, used, held, asked)
        return found

    def settle(
        self,
        request: str,
        ending: str | None,
        tokens: tuple[int, int, int] = (0, 0, 0),
        speed: tuple[int | None, int, int] = (None, 0, 0),
    ) -> dict[str, Any]:
        """End a hold by an answer, or by none; what was billed."""
        hold = self.holds[request]
        hold.settled = True
        if ending in (None, "failed"):
            return {"tier": "free", "charged": 0, "credited": 0, "ads": 0}
        tier = delivered(hold.tier, *speed)
        tenant = str(hold.path["tenant"])
        charged = round(cost(tier, *tokens) * rate(tenant, tier, hold.at_ns, batch=hold.batch))
        credited = 0 if tier == hold.tier else round(Fraction(charged * CREDIT_PPM, 10**6))
        shown = hold.tier == "free" and not hold.batch
        ads = round(Fraction(tokens[2] * AD_UDOLLARS_PER_MTOK, 1000)) if shown else 0
        hold.counted, hold.delivered = True, tier
        hold.used_tokens, hold.paid = sum(tokens), charged - credited
        self.owe(f"wallet:{tenant}", f"revenue:{tier}", charged)
        self.owe("credits", f"wallet:{tenant}", credited)
        self.owe("ad_network", "ad_income", ads)
        return {"tier": tier, "charged": charged, "credited": credited, "ads": ads}

    def owe(self, debit: str, credit: str, amount: int) -> None:
        self.debts[debit] = self.debts.get(debit, 0) + amount
        self.debts[credit] = self.debts.get(credit, 0) - amount

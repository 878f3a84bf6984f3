"""What is odd about price books: clashes, gaps, prices that fall, tiers sold below their cost."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.price_book import Price, PriceBook, PriceBooks, Window
from tokenworks.core.ids import ModelName, PriceID, TenantID
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import PPM, TOKENS_PER_MTOK, charge, divide_half_even

_FIELDS: Final = Price.__struct_fields__
_KIN: Final = {
    field: f"{'input' if 'input' in field or 'cache' in field else 'output'}_udollars_per_mtok"
    for field in _FIELDS[3:]
}
"""Classes that cost what their plain kin costs unless a book says otherwise."""

_MADE: Final = ("output", "reasoning", "audio_output", "image_output")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something about one book that should be looked at.

    Attributes:
        level: an ``error`` keeps a factory from starting; a ``warning`` may be meant.
        book: which book.
        message: what, with the values.
    """

    level: Literal["error", "warning"]
    book: PriceID
    message: str


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """When a book holds.

    Attributes:
        book: which book.
        since: from the start of this day, UTC; the first book is used before it, too.
        until: to the start of that day; None for the last one.
    """

    book: PriceID
    since: datetime.date
    until: datetime.date | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure that differs between a book and the one before it.

    Attributes:
        book: the later one.
        what: which figure.
        before: its value until then; None if there was none.
        after: its value from then on; None if there is none.
    """

    book: PriceID
    what: str
    before: str | None
    after: str | None


class Sold(msgspec.Struct, frozen=True, kw_only=True):
    """What was sold of one model at one delivered tier, and what that cost.

    Attributes:
        tokens: by class, in the order of ``Price``.
        cost_nanodollars: energy and capital that the answers account for.
    """

    tokens: tuple[int, ...]
    cost_nanodollars: int

    @property
    def output_tokens(self) -> int:
        """Everything made."""
        return sum(
            n for n, name in zip(self.tokens, _FIELDS, strict=True) if name.startswith(_MADE)
        )


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant pays for one model at one tier at some time.

    Attributes:
        model: the model.
        tier: the tier that is billed.
        rate_ppm: what is charged of the list price.
        price: after off-peak, batch and discount, each rounded half to even. Bills multiply the
            list price by the rate for the whole answer and round once.
    """

    model: ModelName
    tier: Tier
    rate_ppm: int
    price: Price


def in_force(books: Sequence[PriceBook]) -> list[InForce]:
    """When each book holds, the earliest first; of two from one day, the first given."""
    days: dict[datetime.date, PriceBook] = {}
    for book in books:
        days.setdefault(book.effective, book)
    starts = sorted(days)
    return [
        InForce(book=days[start].price_id, since=start, until=stop)
        for start, stop in zip(starts, [*starts[1:], None], strict=False)
    ]


def check_books(
    books: Sequence[PriceBook], sold: Mapping[tuple[ModelName, Tier], Sold], today: datetime.date
) -> list[Finding]:
    """Everything odd, by book, the earliest first.

    Args:
        books: at least one.
        sold: what the ledger has seen; nothing where there is no ledger.
        today: the day, UTC.
    """
    ordered = sorted(books, key=lambda book: book.effective)
    found: list[Finding] = []
    for before, book in zip([None, *ordered], ordered, strict=False):
        if before is not None and before.effective == book.effective:
            found.append(
                _finding(book, f"holds from {book.effective}, as {before.price_id} does", "error")
            )
        elif before is not None:
            gone = sorted(before.prices.keys() - book.prices.keys())
            found += [_finding(book, f"{model} has no price any more: not sold") for model in gone]
        elif book.effective > today:
            found.append(_finding(book, f"is the first, and holds before {book.effective}, too"))
        found += [_finding(book, words) for words in _odd_prices(book)]
        found += [_finding(book, words) for words in _below_cost(book, sold)]
    return found


def _finding(
    book: PriceBook, message: str, level: Literal["error", "warning"] = "warning"
) -> Finding:
    return Finding(level=level, book=book.price_id, message=message)


def _odd_prices(book: PriceBook) -> Iterator[str]:
    for model, rows in book.prices.items():
        for lower, upper in zip(Tier, list(Tier)[1:], strict=False):
            for field in _told(rows[lower], rows[upper]):
                low, high = getattr(rows[lower], field), getattr(rows[upper], field)
                if high < low:
                    yield (
                        f"{model}: {upper} costs less than {lower}: "
                        f"{_short(field)} {usd(high)} after {usd(low)}"
                    )
        for tier, price in rows.items():
            cached, plain = price.cached_input_udollars_per_mtok, price.input_udollars_per_mtok
            if cached > plain:
                yield (
                    f"{model} {tier}: cached input {usd(cached)} is dearer than input {usd(plain)}"
                )


def _told(*prices: Price | None) -> list[str]:
    """Classes that need to be told of some prices: not those that cost what their kin costs."""
    return [
        field
        for field in _FIELDS
        if field not in _KIN
        or any(
            price is not None and getattr(price, field) != getattr(price, _KIN[field])
            for price in prices
        )
    ]


def _below_cost(book: PriceBook, sold: Mapping[tuple[ModelName, Tier], Sold]) -> Iterator[str]:
    for (model, tier), seen in sold.items():
        if model not in book.prices or not seen.output_tokens:
            continue
        earned: int = sum(
            charge(tokens, price)
            for tokens, price in zip(
                seen.tokens, msgspec.structs.astuple(book.prices[model][tier]), strict=True
            )
        )
        if tier is Tier.FREE:
            earned += charge(seen.output_tokens, book.ad_income_udollars_per_mtok)
        if earned < seen.cost_nanodollars:
            per_mtok = [
                usd(divide_half_even(amount * TOKENS_PER_MTOK, seen.output_tokens * 1_000))
                for amount in (earned, seen.cost_nanodollars)
            ]
            yield (
                f"{model} {tier} is sold below cost: at list prices the tokens sold until now earn "
                f"{per_mtok[0]} per 1M output tokens and cost {per_mtok[1]}"
            )


def changes(books: Sequence[PriceBook]) -> list[Change]:
    """Each figure that differs between a book and the one before it."""
    ordered = sorted(books, key=lambda book: book.effective)
    found = []
    for before, after in itertools.pairwise(ordered):
        old, new = _figures(before, after), _figures(after, before)
        found += [
            Change(book=after.price_id, what=what, before=old.get(what), after=new.get(what))
            for what in dict.fromkeys((*old, *new))
            if old.get(what) != new.get(what)
        ]
    return found


def _figures(book: PriceBook, other: PriceBook) -> dict[str, str]:
    """Every figure of a book that needs to be told beside another's, by a name, as text."""
    found = {"ad income": usd(book.ad_income_udollars_per_mtok)}
    for tier in Tier:
        for field in Promise.__struct_fields__:
            found[f"{tier} {field}"] = str(getattr(book.promises[tier], field))
        found[f"{tier} credit_ppm"] = str(book.credits_ppm[tier])
    for model, rows in book.prices.items():
        for tier, price in rows.items():
            for field in _told(price, other.prices.get(model, {}).get(tier)):
                found[f"{model} {tier} {_short(field)}"] = usd(getattr(price, field))
    found["batch rate_ppm"] = str(book.batch_rate_ppm)
    found |= {f"off-peak {each.name}": _window(each) for each in book.off_peak}
    found |= {
        f"discount {tenant}": f"{each.rate_ppm} ppm{_for(each.tiers, each.models)}"
        for tenant, each in book.discounts.items()
    }
    return found


def _window(window: Window) -> str:
    days = " ".join(window.weekdays) or "every day"
    start, stop = window.hours_utc
    words = f"{window.rate_ppm} ppm, {days} {start}-{stop} UTC"
    return words + _for(window.tiers, window.models)


def _for(tiers: Iterable[Tier], models: Iterable[ModelName]) -> str:
    names = [*(tier.value for tier in tiers), *models]
    return f", for {' '.join(names)}" if names else ""


def quotes(
    books: PriceBooks, tenant: TenantID, unix_ns: int, *, batch: bool
) -> tuple[PriceBook, list[Quote]]:
    """The book in force at a time, and what a tenant pays by it."""
    book = books.at(unix_ns)
    found = []
    for model, rows in book.prices.items():
        for tier, price in rows.items():
            rate_ppm = book.rate_ppm(tenant, model, tier, unix_ns, batch=batch)
            figures = {
                field: divide_half_even(getattr(price, field) * rate_ppm, PPM) for field in _FIELDS
            }
            found.append(Quote(model=model, tier=tier, rate_ppm=rate_ppm, price=Price(**figures)))
    return book, found


def usd(udollars: int) -> str:
    """Micro-dollars as dollars.

    >>> usd(3_000_000), usd(60_000), usd(1)
    ('$3.00', '$0.06', '$0.000001')
    """
    whole, rest = divmod(udollars, PPM)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"${whole}.{decimals}"


def _short(field: str) -> str:
    return field.removesuffix("_udollars_per_mtok").replace("_", " ")

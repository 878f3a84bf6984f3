"""Price books: what each tier promises and costs, versioned by name and content hash."""

from __future__ import annotations

import datetime
import hashlib
import tomllib
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.toml_text import read_toml
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, PriceID, TenantID
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_HOUR, NS_PER_MS, PPM, divide_half_even

BOOK_BYTES_MAX: Final = 1_000_000
WINDOWS_MAX: Final = 64
UDOLLARS_PER_MTOK_MAX: Final = 10**12
"""A dollar a token; with it, an answer of a billion tokens still costs less than 2**63."""
HOURS_PER_DAY: Final = 24

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: Final[tuple[Weekday, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EPOCH_WEEKDAY: Final = 3
"""1970-01-01 was a Thursday."""


class Price(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Prices of one model at one tier, in micro-dollars per 1M tokens of each class.

    The fields stand in the order of ``core.orders.TOKEN_CLASSES``.
    """

    input_udollars_per_mtok: int
    cached_input_udollars_per_mtok: int
    output_udollars_per_mtok: int
    cache_write_udollars_per_mtok: int
    reasoning_udollars_per_mtok: int
    audio_input_udollars_per_mtok: int
    image_input_udollars_per_mtok: int
    audio_output_udollars_per_mtok: int
    image_output_udollars_per_mtok: int


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hours of the week at another rate.

    Attributes:
        name: for people.
        hours_utc: (from, until) in whole hours UTC; until is not part of it, and a window whose
            end is not after its start goes on past midnight, on the day it began.
        rate_ppm: what is charged, in millionths of the list price.
        weekdays: the days on which it begins; all days if none is named.
        tiers: all tiers if none is named.
        models: all models if none is named.
    """

    name: str
    hours_utc: tuple[int, int]
    rate_ppm: int
    weekdays: tuple[Weekday, ...] = ()
    tiers: tuple[Tier, ...] = ()
    models: tuple[ModelName, ...] = ()

    def holds(self, unix_ns: int, model: ModelName, tier: Tier) -> bool:
        """Whether an answer that was asked for at a time is inside.

        >>> night = Window(name="night", hours_utc=(22, 6), rate_ppm=500_000, weekdays=("thu",))
        >>> [night.holds(h * 3_600_000_000_000, ModelName("m"), Tier.HIGH) for h in (5, 22, 29, 30)]
        [False, True, True, False]
        """
        if (self.tiers and tier not in self.tiers) or (self.models and model not in self.models):
            return False
        start, stop = self.hours_utc
        length = (stop - start) % HOURS_PER_DAY or HOURS_PER_DAY
        since_start = unix_ns // NS_PER_HOUR - start
        if since_start % HOURS_PER_DAY >= length:
            return False
        began = WEEKDAYS[(since_start // HOURS_PER_DAY + _EPOCH_WEEKDAY) % len(WEEKDAYS)]
        return not self.weekdays or began in self.weekdays


class Discount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one tenant is charged, in millionths of the price that others pay.

    Attributes:
        rate_ppm: 900_000 is ten per cent off.
        tiers: all tiers if none is named.
        models: all models if none is named.
    """

    rate_ppm: int
    tiers: tuple[Tier, ...] = ()
    models: tuple[ModelName, ...] = ()


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """A price book after parsing.

    Attributes:
        price_id: name and content hash; entries keep it so that a sum can be redone.
        effective: the day, UTC, it holds from.
        ad_income_udollars_per_mtok: what advertisers pay per 1M output tokens of the free tier.
        promises: one per tier.
        credits_ppm: per tier asked, the part of the charge that is given back, on top of billing
            the tier delivered, when its promise was broken; millionths.
        prices: per model, one per tier.
        off_peak: windows at another rate.
        batch_rate_ppm: what work that may wait is charged, in millionths.
        discounts: by tenant.
        text: the TOML it was parsed from.
    """

    price_id: PriceID
    effective: datetime.date
    ad_income_udollars_per_mtok: int
    promises: dict[Tier, Promise]
    credits_ppm: dict[Tier, int]
    prices: dict[ModelName, dict[Tier, Price]]
    off_peak: tuple[Window, ...]
    batch_rate_ppm: int
    discounts: dict[TenantID, Discount]
    text: str

    def rate_ppm(
        self, tenant: TenantID, model: ModelName, tier: Tier, unix_ns: int, *, batch: bool
    ) -> int:
        """What is charged, in millionths of the list price: off-peak, batch and discount together.

        Of several off-peak windows the cheapest counts. The product is rounded to a millionth once.

        Args:
            tenant: who pays.
            model: the model.
            tier: the tier that is billed.
            unix_ns: when it was asked for.
            batch: whether it may wait.
        """
        if not (self.off_peak or batch or self.discounts):
            return PPM
        off_peak = min(
            (each.rate_ppm for each in self.off_peak if each.holds(unix_ns, model, tier)),
            default=PPM,
        )
        discount = self.discounts.get(tenant)
        share = PPM
        if (
            discount is not None
            and (not discount.tiers or tier in discount.tiers)
            and (not discount.models or model in discount.models)
        ):
            share = discount.rate_ppm
        batched = self.batch_rate_ppm if batch else PPM
        return divide_half_even(off_peak * share * batched, PPM * PPM)

    def rate_ppm_max(self, tenant: TenantID, model: ModelName, unix_ns: int, *, batch: bool) -> int:
        """The highest such rate among the tiers, for a hold."""
        if not (self.off_peak or batch or self.discounts):
            return PPM
        return max(self.rate_ppm(tenant, model, tier, unix_ns, batch=batch) for tier in Tier)


class _Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ttft_ms: int
    interactivity_tokens_per_s: int
    grace_ms: int
    patience_ms: int
    output_tokens_default: int
    credit_ppm: int = 0


class _Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of prices as written; a class that is left out costs what its plain kin costs."""

    input_udollars_per_mtok: int
    cached_input_udollars_per_mtok: int
    output_udollars_per_mtok: int
    cache_write_udollars_per_mtok: int | None = None
    reasoning_udollars_per_mtok: int | None = None
    audio_input_udollars_per_mtok: int | None = None
    image_input_udollars_per_mtok: int | None = None
    audio_output_udollars_per_mtok: int | None = None
    image_output_udollars_per_mtok: int | None = None

    def price(self) -> Price:
        read, made = self.input_udollars_per_mtok, self.output_udollars_per_mtok

        def or_else(own: int | None, kin: int) -> int:
            return kin if own is None else own

        return Price(
            input_udollars_per_mtok=read,
            cached_input_udollars_per_mtok=self.cached_input_udollars_per_mtok,
            output_udollars_per_mtok=made,
            cache_write_udollars_per_mtok=or_else(self.cache_write_udollars_per_mtok, read),
            reasoning_udollars_per_mtok=or_else(self.reasoning_udollars_per_mtok, made),
            audio_input_udollars_per_mtok=or_else(self.audio_input_udollars_per_mtok, read),
            image_input_udollars_per_mtok=or_else(self.image_input_udollars_per_mtok, read),
            audio_output_udollars_per_mtok=or_else(self.audio_output_udollars_per_mtok, made),
            image_output_udollars_per_mtok=or_else(self.image_output_udollars_per_mtok, made),
        )


class _Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rate_ppm: int = PPM


class _Book(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    effective: datetime.date
    source: str
    ad_income_udollars_per_mtok: int
    tier: dict[Tier, _Tier]
    price: dict[str, dict[Tier, _Price]]
    off_peak: tuple[Window, ...] = ()
    batch: _Batch = _Batch()
    discount: dict[str, Discount] = {}


def parse_price_book(text: str) -> PriceBook:
    """Read a price book from TOML.

    Raises:
        ConfigInvalid: not TOML, an unknown or missing key, a negative figure, a missing tier, an
            impossible hour, a rate above the list price, a model in a rule that has no price, or
            promises that fall as tiers rise.
    """
    if len(text) > BOOK_BYTES_MAX:
        raise ConfigInvalid(
            f"The price book has {len(text)} characters, more than {BOOK_BYTES_MAX}.",
            hint="Keep the models that the factory sells.",
        )
    book = read_toml(
        text,
        _Book,
        what="The price book",
        hint="Compare it with the output of `tokenworks tiers --book`.",
    )
    _check(book)
    _check_rates(book)
    return PriceBook(
        price_id=_price_id(book.name, text),
        effective=book.effective,
        ad_income_udollars_per_mtok=book.ad_income_udollars_per_mtok,
        promises={
            tier: Promise(
                ttft_ns=row.ttft_ms * NS_PER_MS,
                interactivity_tokens_per_s=row.interactivity_tokens_per_s,
                grace_ns=row.grace_ms * NS_PER_MS,
                patience_ns=row.patience_ms * NS_PER_MS,
                output_tokens_default=row.output_tokens_default,
            )
            for tier, row in ((tier, book.tier[tier]) for tier in Tier)
        },
        credits_ppm={tier: book.tier[tier].credit_ppm for tier in Tier},
        prices={
            ModelName(model): {tier: rows[tier].price() for tier in Tier}
            for model, rows in book.price.items()
        },
        off_peak=book.off_peak,
        batch_rate_ppm=book.batch.rate_ppm,
        discounts={TenantID(tenant): row for tenant, row in book.discount.items()},
        text=text,
    )


def price_id_of(text: str) -> PriceID:
    r"""What the price book of a text is called, also where it is no price book any more.

    >>> price_id_of('name = "house"\nlost = true')
    'house@54aa6620fbfa'
    >>> price_id_of("no TOML")
    '?@27296bec4ced'
    """
    try:
        name = tomllib.loads(text).get("name", "?")
    except (tomllib.TOMLDecodeError, RecursionError):
        name = "?"
    return _price_id(name, text)


def _price_id(name: object, text: str) -> PriceID:
    return PriceID(f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}")


def _check(book: _Book) -> None:
    if not 0 <= book.ad_income_udollars_per_mtok <= UDOLLARS_PER_MTOK_MAX:
        raise ConfigInvalid(
            f"ad_income_udollars_per_mtok is {book.ad_income_udollars_per_mtok!r}; "
            f"it must be 0 to {UDOLLARS_PER_MTOK_MAX}."
        )
    tables: list[tuple[str, dict[Tier, _Tier] | dict[Tier, _Price]]] = [("tier", book.tier)]
    tables += [(f"price.{model}", rows) for model, rows in book.price.items()]
    for where, rows in tables:
        missing = [tier.value for tier in Tier if tier not in rows]
        if missing:
            raise ConfigInvalid(
                f"[{where}] lacks {missing!r}.", hint="Every table names all five tiers."
            )
        for tier, row in rows.items():
            for field, value in msgspec.structs.asdict(row).items():
                if value is not None and value < 0:
                    raise ConfigInvalid(
                        f"[{where}.{tier}] {field} is {value!r}; it must be 0 or more."
                    )
                if value is not None and value > UDOLLARS_PER_MTOK_MAX:
                    raise ConfigInvalid(
                        f"[{where}.{tier}] {field} is {value!r}, more than {UDOLLARS_PER_MTOK_MAX}."
                    )
    for lower, upper in zip(Tier, list(Tier)[1:], strict=False):
        low, high = book.tier[lower], book.tier[upper]
        if (
            high.interactivity_tokens_per_s < low.interactivity_tokens_per_s
            or high.ttft_ms > low.ttft_ms
        ):
            raise ConfigInvalid(
                f"{upper} promises less than {lower}.",
                hint="Interactivity must not fall, and TTFT must not rise, from tier to tier.",
            )


def _check_rates(book: _Book) -> None:
    if len(book.off_peak) > WINDOWS_MAX:
        raise ConfigInvalid(f"{len(book.off_peak)} [[off_peak]] windows, more than {WINDOWS_MAX}.")
    rates = {f"[tier.{tier}] credit_ppm": row.credit_ppm for tier, row in book.tier.items()}
    rates["[batch] rate_ppm"] = book.batch.rate_ppm
    rules: list[tuple[str, Window | Discount]] = [
        (f"[[off_peak]] {window.name!r}", window) for window in book.off_peak
    ]
    rules += [(f"[discount.{tenant}]", row) for tenant, row in book.discount.items()]
    for where, rule in rules:
        rates[f"{where} rate_ppm"] = rule.rate_ppm
        unknown = [model for model in rule.models if model not in book.price]
        if unknown:
            raise ConfigInvalid(f"{where} names {unknown!r}, which has no price.")
    for window in book.off_peak:
        if not all(0 <= hour <= HOURS_PER_DAY for hour in window.hours_utc):
            raise ConfigInvalid(
                f"[[off_peak]] {window.name!r} hours_utc is {window.hours_utc!r}; "
                f"hours are 0 to {HOURS_PER_DAY}."
            )
    for where, rate_ppm in rates.items():
        if not 0 <= rate_ppm <= PPM:
            raise ConfigInvalid(
                f"{where} is {rate_ppm!r}; it must be 0 to {PPM}, in millionths.",
                hint="500_000 is half.",
            )


class PriceBooks:
    """Price books by the day from which they hold, UTC.

    Args:
        books: at least one, with distinct days.

    Raises:
        ConfigInvalid: two books hold from the same day.
    """

    def __init__(self, books: list[PriceBook]) -> None:
        assert books, "there is no price book"
        self._books = sorted(books, key=lambda book: book.effective)
        for one, other in zip(self._books, self._books[1:], strict=False):
            if one.effective == other.effective:
                raise ConfigInvalid(
                    f"{one.price_id!r} and {other.price_id!r} both hold from {one.effective}.",
                    hint="Give one of them another day.",
                )
        self._starts_unix_ns = [_midnight_unix_ns(book.effective) for book in self._books]

    def at(self, unix_ns: int) -> PriceBook:
        """The book in force at a time; before the first one's day, the first."""
        found = self._books[0]
        for start_unix_ns, book in zip(self._starts_unix_ns, self._books, strict=True):
            if start_unix_ns > unix_ns:
                break
            found = book
        return found

    def with_texts(self, texts: Iterable[str]) -> PriceBooks:
        """These books and those that some texts hold, each once.

        Raises:
            ConfigInvalid: two hold from the same day, or a text is no price book.
        """
        known = {book.price_id: book for book in self._books}
        known |= {book.price_id: book for book in map(parse_price_book, texts)}
        return PriceBooks([*known.values()])

    def with_readable(
        self, texts: Iterable[str]
    ) -> tuple[PriceBooks, list[tuple[str, ConfigInvalid]]]:
        """The same without those texts that ``with_texts`` refuses.

        Returns:
            The books, and each text that was left out, with why.
        """
        books, unread = self, list[tuple[str, ConfigInvalid]]()
        for text in texts:
            try:
                books = books.with_texts([text])
            except ConfigInvalid as error:
                unread.append((text, error))
        return books, unread

    def all(self) -> tuple[PriceBook, ...]:
        """Every book, the earliest first."""
        return tuple(self._books)


def _midnight_unix_ns(day: datetime.date) -> int:
    return (day - datetime.date(1970, 1, 1)).days * HOURS_PER_DAY * NS_PER_HOUR

"""Price books: what each tier promises and costs, versioned by name and content hash."""

from __future__ import annotations

import datetime
import hashlib
import tomllib
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, PriceID
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_MS

BOOK_BYTES_MAX: Final = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices of one model at one tier, in micro-dollars per 1M tokens."""

    input_udollars_per_mtok: int
    cached_input_udollars_per_mtok: int
    output_udollars_per_mtok: int


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """A price book after parsing.

    Attributes:
        price_id: name and content hash; entries keep it so that a sum can be redone.
        effective: the day it holds from.
        ad_income_udollars_per_mtok: what advertisers pay per 1M output tokens of the free tier.
        promises: one per tier.
        prices: per model, one per tier.
        text: the TOML it was parsed from.
    """

    price_id: PriceID
    effective: datetime.date
    ad_income_udollars_per_mtok: int
    promises: dict[Tier, Promise]
    prices: dict[ModelName, dict[Tier, Price]]
    text: str


class _Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ttft_ms: int
    interactivity_tokens_per_s: int
    grace_ms: int
    patience_ms: int
    output_tokens_default: int


class _Book(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    effective: datetime.date
    source: str
    ad_income_udollars_per_mtok: int
    tier: dict[Tier, _Tier]
    price: dict[str, dict[Tier, Price]]


def parse_price_book(text: str) -> PriceBook:
    """Read a price book from TOML.

    Raises:
        ConfigInvalid: not TOML, an unknown or missing key, a negative figure, a missing tier, or
            promises that fall as tiers rise.
    """
    if len(text) > BOOK_BYTES_MAX:
        raise ConfigInvalid(
            f"The price book has {len(text)} characters, more than {BOOK_BYTES_MAX}."
        )
    try:
        book = msgspec.convert(tomllib.loads(text), _Book)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigInvalid(
            f"The price book cannot be read: {error}.",
            hint="Compare it with the output of `tokenworks tiers --book`.",
        ) from error
    _check(book)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return PriceBook(
        price_id=PriceID(f"{book.name}@{digest[:12]}"),
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
        prices={
            ModelName(model): {tier: rows[tier] for tier in Tier}
            for model, rows in book.price.items()
        },
        text=text,
    )


def _check(book: _Book) -> None:
    if book.ad_income_udollars_per_mtok < 0:
        raise ConfigInvalid(
            f"ad_income_udollars_per_mtok is {book.ad_income_udollars_per_mtok!r}; "
            "it must be 0 or more."
        )
    tables: list[tuple[str, dict[Tier, _Tier] | dict[Tier, Price]]] = [("tier", book.tier)]
    tables += [(f"price.{model}", rows) for model, rows in book.price.items()]
    for where, rows in tables:
        missing = [tier.value for tier in Tier if tier not in rows]
        if missing:
            raise ConfigInvalid(
                f"[{where}] lacks {missing!r}.", hint="Every table names all five tiers."
            )
        for tier, row in rows.items():
            for field, value in msgspec.structs.asdict(row).items():
                if value < 0:
                    raise ConfigInvalid(
                        f"[{where}.{tier}] {field} is {value!r}; it must be 0 or more."
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

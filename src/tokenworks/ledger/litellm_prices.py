"""LiteLLM's price map as prices by tier and token class; a price that is not taken up is said.

Source:
    BerriAI/litellm: the fields of ``model_prices_and_context_window.json``, dollars per token as
    decimals, read 2026-11-24. ``_flex``, ``_priority`` and ``_ultrafast`` are service tiers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.slo import Tier

Record = Mapping[str, object]
"""One of LiteLLM's objects; numbers with a point are decimals."""

UDOLLARS_PER_MTOK: Final = 10**12
"""Of a dollar per token."""
SAMPLE: Final = "sample_spec"
"""The row that says what the others may hold; its zeros are no prices."""

_INPUT: Final = "input_cost_per_token"
_OUTPUT: Final = "output_cost_per_token"
_REASONING: Final = "output_cost_per_reasoning_token"
_CLASSES: Final = {
    "input_udollars_per_mtok": (_INPUT,),
    "cached_input_udollars_per_mtok": ("cache_read_input_token_cost", f"{_INPUT}_cache_hit"),
    "output_udollars_per_mtok": (_OUTPUT,),
    "cache_write_udollars_per_mtok": ("cache_creation_input_token_cost",),
    "reasoning_udollars_per_mtok": (_REASONING,),
    "audio_input_udollars_per_mtok": ("input_cost_per_audio_token",),
    "image_input_udollars_per_mtok": ("input_cost_per_image_token",),
    "audio_output_udollars_per_mtok": ("output_cost_per_audio_token",),
    "image_output_udollars_per_mtok": ("output_cost_per_image_token",),
}
"""Our classes, and the fields that hold their prices, the first that is there."""
_SERVICE: Final[Mapping[Tier, tuple[str, ...]]] = {
    Tier.FREE: ("_flex",),
    Tier.MEDIUM: ("_flex",),
    Tier.HIGH: (),
    Tier.PREMIUM: ("_priority",),
    Tier.ULTRA: ("_ultrafast", "_priority"),
}


def price_tables(
    models: Mapping[str, Record], wanted: Mapping[str, str]
) -> tuple[dict[str, dict[Tier, dict[str, int]]], list[str]]:
    """Prices per model and tier, in micro-dollars per 1M tokens, and notes.

    High is LiteLLM's plain price; medium and free are its flex price, premium its priority price,
    ultra its ultrafast price or else priority; where it has none, the plain one. Reasoning without
    a price of the tier's own costs what the tier's output costs. A price is exact, or rounded half
    to even to a micro-dollar per 1M tokens and noted, as is each price that has no place here.

    Args:
        models: LiteLLM's price map.
        wanted: names of models here, and the name of each in the map.

    Raises:
        InvalidRequest: a model is not in the map, or is not priced per token.
    """
    tables: dict[str, dict[Tier, dict[str, int]]] = {}
    notes: list[str] = []
    for model, name in wanted.items():
        why = unpriced(models, name)
        if why is not None:
            near = difflib.get_close_matches(name, sorted(models.keys() - {name, SAMPLE}))
            hint = f" It has {', '.join(sorted(near))}." if near else ""
            raise InvalidRequest(why, hint=f"Name a model as the map's keys do.{hint}")
        row, taken = models[name], set[str]()
        tables[model] = {tier: _prices(model, row, tier, taken, notes) for tier in Tier}
        high = tables[model][Tier.HIGH]
        if not high["input_udollars_per_mtok"] and not high["output_udollars_per_mtok"]:
            notes.append(f"{model}: its price is 0; who asks for it pays nothing.")
        rest = [field for field in _costs(row) if field not in taken]
        if rest:
            notes.append(f"{model}: not taken up: {', '.join(rest)}.")
    return tables, list(dict.fromkeys(notes))


def unpriced(models: Mapping[str, Record], name: str) -> str | None:
    """Why a model of the map has no price per token; None if it has one."""
    row = models.get(name)
    if row is None or name == SAMPLE:
        return f"{name!r} is no model of the price map."
    if row.get(_INPUT) is None or row.get(_OUTPUT) is None:
        return f"{name!r} has no price per token in the price map."
    others = [field for field in _costs(row) if field not in {_INPUT, _OUTPUT}]
    if others and not any(amount(row, field, name) for field in (_INPUT, _OUTPUT)):
        return f"{name!r} costs nothing per token in the price map, but by {', '.join(others)}."
    return None


def amount(row: Record, field: str, whose: str) -> Decimal:
    """A number of 0 or more; the error says whose it is.

    Raises:
        InvalidRequest: it is none.
    """
    value = row[field]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | Decimal)
        or not Decimal(value).is_finite()
        or value < 0
    ):
        raise InvalidRequest(
            f"{whose}: {field} is {value!r}; it must be a number of 0 or more.",
            hint="Mend it in the file that is imported.",
        )
    return Decimal(value)


def _costs(row: Record) -> list[str]:
    """The fields that say what something costs, and are not 0."""
    return sorted(
        field for field, value in row.items() if ("cost" in field or "pricing" in field) and value
    )


def _prices(
    model: str, row: Record, tier: Tier, taken: set[str], notes: list[str]
) -> dict[str, int]:
    suffixes, prices = _SERVICE[tier], dict[str, int]()
    own_output = _first(row, [_OUTPUT + suffix for suffix in suffixes])
    own_base = own_output or _first(row, [_INPUT + suffix for suffix in suffixes])
    for ours, fields in _CLASSES.items():
        plain = _first(row, fields)
        found = _first(row, [field + suffix for suffix in suffixes for field in fields])
        if found is None and plain is not None and own_base is not None:
            instead = own_output if fields == (_REASONING,) and own_output else plain
            suffix = next(each for each in suffixes if own_base.endswith(each))
            notes.append(f"{model}: there is no {plain}{suffix}; {instead} stands in for it.")
            found = instead
        found = found or plain
        if found is not None:
            prices[ours] = _udollars(model, row, found, notes)
            taken.add(found)
    prices.setdefault("cached_input_udollars_per_mtok", prices["input_udollars_per_mtok"])
    return prices


def _first(row: Record, fields: list[str] | tuple[str, ...]) -> str | None:
    return next((field for field in fields if row.get(field) is not None), None)


def _udollars(model: str, row: Record, field: str, notes: list[str]) -> int:
    exact = amount(row, field, model) * UDOLLARS_PER_MTOK
    rounded = exact.to_integral_value(rounding=ROUND_HALF_EVEN)
    if rounded != exact:
        notes.append(f"{model}: {field} = {row[field]} is rounded to {rounded} micro-dollars.")
    return int(rounded)

"""Bounds on what a JSON schema costs an engine, which turns it into a grammar and runs that.

A grammar's cost is in its readings: an engine follows all ways to read what it has written so far,
at each token, in the loop that serves everybody. A few hundred bytes can ask for more of them than
it will ever finish. What is refused here is far beyond what tools and answers need.
"""

from __future__ import annotations

import re
import reprlib
from typing import Final

from tokenworks.core.errors import InvalidRequest

SCHEMA_VALUES_MAX: Final = 8_000
"""Values of all schemas of a request, at any depth."""

PROPERTIES_MAX: Final = 512
"""Of one object; an engine takes time with the square of how many are optional."""

ENUM_LEN_MAX: Final = 1_000
ALTERNATIVES_MAX: Final = 1_000
"""Ways to choose among nested ``anyOf`` and ``oneOf``, references followed."""

PATTERN_CHARS_MAX: Final = 256
QUANTIFIERS_MAX: Final = 32
REPEATS_MAX: Final = 512
"""Times that a pattern may repeat something: levels multiplied, neighbours added up."""

NESTED_REPEATS_MAX: Final = 64
"""The same for what repeats itself: an engine's work grows with the cube of it."""

_PATTERN_PIECE: Final = re.compile(
    r"\\.|\[(?:\\.|[^\]\\])*\]|[*+?]|\{\d{1,9}(?:,\d{0,9})?\}|.", re.DOTALL
)


def check_schemas(fields: dict[str, object]) -> None:
    """Refuse schemas of a request that an engine could choke on.

    Raises:
        InvalidRequest: with the bound that they pass.
    """
    names = ("tools", "functions", "response_format", "json_schema")
    left = SCHEMA_VALUES_MAX
    for name in names:
        if name not in fields:
            continue
        for root in _roots(name, fields[name]):
            try:
                left = _check(name, root, left)
            except RecursionError as error:
                raise _refusal(name, "references or alternatives nested too deeply") from error


def _roots(name: str, value: object) -> list[object]:
    """Where references of the schemas in a field begin."""
    if name == "response_format" and isinstance(value, dict):
        inner = value.get("json_schema")
        return [inner.get("schema") if isinstance(inner, dict) else None, value.get("schema")]
    if name in ("tools", "functions"):
        if not isinstance(value, list):
            return []
        tools = (each.get("function", each) for each in value if isinstance(each, dict))
        return [tool.get("parameters") for tool in tools if isinstance(tool, dict)]
    return [value]


def _check(name: str, root: object, left: int) -> int:
    """Look at one schema; returns how many more values the request may have."""
    rest: list[object] = [root]
    known: dict[str, int] = {}
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            _check_object(name, value)
            if _alternatives(value, root, known) > ALTERNATIVES_MAX:
                raise _refusal(name, f"more than {ALTERNATIVES_MAX} alternatives in one place")
            rest += value.values()
            left -= len(value)
        elif isinstance(value, list):
            rest += value
            left -= len(value)
        if left < 0:
            raise _refusal(name, f"more than {SCHEMA_VALUES_MAX} values")
    return left


def _check_object(name: str, value: dict[str, object]) -> None:
    properties, enum, pattern = (value.get(each) for each in ("properties", "enum", "pattern"))
    if isinstance(properties, dict) and len(properties) > PROPERTIES_MAX:
        raise _refusal(name, f"an object of more than {PROPERTIES_MAX} properties")
    if isinstance(enum, list) and len(enum) > ENUM_LEN_MAX:
        raise _refusal(name, f"an enum of more than {ENUM_LEN_MAX} values")
    if isinstance(pattern, str) and (why := pattern_cost(pattern)):
        raise _refusal(name, f"the pattern {reprlib.repr(pattern)}, which {why}")


def pattern_cost(pattern: str) -> str:
    r"""What makes a pattern too costly; nothing if it isn't.

    >>> pattern_cost(r"^\d{4}-\d{2}(-[a-z]{1,9})*$"), pattern_cost("^(.{0,50}){0,50}$")
    ('', 'repeats what repeats itself more than 64 times')
    """
    if len(pattern) > PATTERN_CHARS_MAX:
        return f"has more than {PATTERN_CHARS_MAX} characters"
    repeats = nested = quantifiers = 0
    inside = [0]  # for each open group, the most that anything in it is repeated
    last = 0  # the same for what was read last; 0 if nothing in it is repeated
    for piece in _PATTERN_PIECE.findall(pattern):
        if piece == "(":
            inside.append(0)
            last = 0
        elif piece == ")":
            last = inside.pop() if len(inside) > 1 else 0
        elif piece in "*+?" or (piece[0] == "{" and len(piece) > 1):
            quantifiers += 1
            times = max([1, *(int(digits) for digits in re.findall(r"\d+", piece))])
            repeats += max(1, last) * times
            nested += last * times if times > 1 else 0
            last = max(1, last) * times
        else:
            last = 0
        inside[-1] = max(inside[-1], last)
    if nested > NESTED_REPEATS_MAX:
        return f"repeats what repeats itself more than {NESTED_REPEATS_MAX} times"
    if repeats > REPEATS_MAX:
        return f"repeats something more than {REPEATS_MAX} times"
    return f"has more than {QUANTIFIERS_MAX} quantifiers" if quantifiers > QUANTIFIERS_MAX else ""


def _alternatives(schema: object, root: object, known: dict[str, int]) -> int:
    """In how many ways one value may be read; a schema that is in itself counts as one.

    Args:
        schema: what is read.
        root: where its references begin.
        known: the count by reference, which grows.
    """
    if not isinstance(schema, dict):
        return 1
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in known:
        known[reference] = 1
        known[reference] = _alternatives(_resolved(root, reference), root, known)
    ways = known[reference] if isinstance(reference, str) else 0
    for name in ("anyOf", "oneOf"):
        members = schema.get(name)
        if isinstance(members, list):
            ways += sum(_alternatives(member, root, known) for member in members)
    return max(1, ways)


def _resolved(root: object, reference: str) -> object:
    """What a reference inside the same schema points to; None if there is no such thing."""
    value = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part and isinstance(value, dict):
            value = value.get(part.replace("~1", "/").replace("~0", "~"))
    return value


def _refusal(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"A schema in `{name}` has {what}.", hint="Ask for less in one schema, or in several calls."
    )

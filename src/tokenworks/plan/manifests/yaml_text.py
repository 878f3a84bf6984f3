"""Values as YAML that people can read.

JSON is YAML, so strings are written as JSON writes them unless they are plain beyond doubt. What
would need a parser to be understood (anchors, tags, folded text) is never written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

Value: TypeAlias = "str | bool | int | float | Sequence[Value] | Mapping[str, Value]"

_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
"""What YAML 1.1 or 1.2 takes for something else than a string, in lower case."""


def yaml_text(*documents: Mapping[str, Value], heading: Sequence[str] = ()) -> str:
    """One or more documents.

    Args:
        documents: each a mapping; keys keep their order.
        heading: lines of comment above the first.
    """
    bodies = ("\n".join(_mapping(document, "")) + "\n" for document in documents)
    return "".join(f"# {line}\n" for line in heading) + "---\n".join(bodies)


def _mapping(value: Mapping[str, Value], indent: str) -> Iterator[str]:
    for key, item in value.items():
        yield from _entry(f"{indent}{_string(key)}:", item, indent)


def _entry(lead: str, item: Value, indent: str) -> Iterator[str]:
    if isinstance(item, str) and _is_block(item):
        yield f"{lead} |"
        for line in item.splitlines():
            yield f"{indent}  {line}" if line else ""
    elif isinstance(item, str | bool | int | float) or not item:
        yield f"{lead} {_scalar(item)}"
    elif isinstance(item, Mapping):
        yield lead
        yield from _mapping(item, indent + "  ")
    else:
        yield lead
        yield from _sequence(item, indent)


def _sequence(value: Sequence[Value], indent: str) -> Iterator[str]:
    for item in value:
        if isinstance(item, Mapping) and item:
            first, *rest = _mapping(item, indent + "  ")
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from rest
        elif isinstance(item, Sequence) and not isinstance(item, str) and item:
            yield f"{indent}-"
            yield from _sequence(item, indent + "  ")
        else:
            yield from _entry(f"{indent}-", item, indent)


def _scalar(value: Value) -> str:
    return _string(value) if isinstance(value, str) else json.dumps(value)


def _string(value: str) -> str:
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)


def _is_block(value: str) -> bool:
    """Whether it can be written line by line, without a mark for what begins or ends a line."""
    lines = value.split("\n")
    return (
        len(lines) > 2
        and not lines[-1]
        and bool(lines[-2])
        and not lines[0].startswith(" ")
        and bool(lines[0])
        and value.replace("\n", "").isprintable()
    )

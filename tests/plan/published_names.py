"""What engines and orchestrators published: the names that they take, and a check against shapes.

The files in ``published/`` name their source, version and licence. They hold names, types and
choices only. Their shapes are a part of JSON Schema in which an object allows no key that it does
not name, unless it names none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "published"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": (list, tuple),
    "object": Mapping,
}


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def faults(value: object, shape: Mapping[str, Any], named: Mapping[str, Any]) -> list[str]:
    """Where a value departs from a shape; ``named`` holds the shapes that it refers to."""
    return list(_faults(value, shape, named, ""))


def _faults(
    value: Any, shape: Mapping[str, Any], named: Mapping[str, Any], at: str
) -> Iterator[str]:
    if "$ref" in shape:
        yield from _faults(value, named[shape["$ref"]], named, at)
        return
    kinds = shape.get("type", [])
    for_each = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in for_each):
        yield f"{at} is {value!r}, not {kinds}"
        return
    if "enum" in shape and value not in shape["enum"]:
        yield f"{at} is {value!r}, not one of {shape['enum']}"
    if "minimum" in shape and value < shape["minimum"]:
        yield f"{at} is {value!r}, below {shape['minimum']}"
    if "pattern" in shape and not re.search(shape["pattern"], value):
        yield f"{at} is {value!r}, not like {shape['pattern']}"
    if len(value) > shape.get("maxLength", len(value)) if isinstance(value, str) else False:
        yield f"{at} is too long"
    if isinstance(value, Mapping):
        yield from _object_faults(value, shape, named, at)
    elif isinstance(value, list | tuple):
        if len(value) > shape.get("maxItems", len(value)):
            yield f"{at} has {len(value)} items"
        for index, item in enumerate(value):
            yield from _faults(item, shape.get("items", {}), named, f"{at}[{index}]")


def _object_faults(
    value: Mapping[str, Any], shape: Mapping[str, Any], named: Mapping[str, Any], at: str
) -> Iterator[str]:
    for key in shape.get("required", []):
        if key not in value:
            yield f"{at} lacks {key}"
    properties = shape.get("properties", {})
    for key, item in value.items():
        if key in properties:
            yield from _faults(item, properties[key], named, f"{at}.{key}")
        elif "additionalProperties" in shape:
            yield from _faults(item, shape["additionalProperties"], named, f"{at}.{key}")
        elif properties:
            yield f"{at} has no {key}"


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])

"""Schemas that an engine would choke on are refused, and those that people write are not."""

from __future__ import annotations

from typing import Any

import pytest

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.schema_limits import (
    ALTERNATIVES_MAX,
    ENUM_LEN_MAX,
    PATTERN_CHARS_MAX,
    PROPERTIES_MAX,
    QUANTIFIERS_MAX,
    SCHEMA_VALUES_MAX,
    check_schemas,
    pattern_cost,
)

TEXT = {"type": "string"}


def wrapped(schema: object) -> list[dict[str, Any]]:
    """A schema in every place of a request where an engine looks for one."""
    return [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
        {"functions": [{"name": "f", "parameters": schema}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        {"response_format": {"type": "json_object", "schema": schema}},
        {"json_schema": schema},
    ]


def refused(schema: object) -> str:
    """What is said of a schema; the same wherever it stands."""
    said = set()
    for fields in wrapped(schema):
        with pytest.raises(InvalidRequest) as caught:
            check_schemas(fields)
        name = next(iter(fields))
        assert f"`{name}`" in caught.value.message
        said.add(caught.value.message.replace(f"`{name}`", "it"))
    (only,) = said
    return only


def forked(levels: int) -> dict[str, Any]:
    """A schema whose alternatives double with each reference."""
    both = [[{"$ref": f"#/$defs/n{i + 1}"}] * 2 for i in range(levels)]
    nodes: dict[str, Any] = {f"n{i}": {"anyOf": both[i]} for i in range(levels)}
    return {"properties": {"a": {"$ref": "#/$defs/n0"}}, "$defs": {**nodes, f"n{levels}": TEXT}}


def chained(levels: int) -> dict[str, Any]:
    nodes = {f"n{i}": {"$ref": f"#/$defs/n{i + 1}"} for i in range(levels)}
    return {"$ref": "#/$defs/n0", "$defs": nodes}


@pytest.mark.parametrize(
    "schema",
    [
        None,
        True,
        "x",
        {},
        {"type": "object", "properties": {str(i): TEXT for i in range(PROPERTIES_MAX)}},
        {"enum": list(range(ENUM_LEN_MAX))},
        {"anyOf": [TEXT] * ALTERNATIVES_MAX},
        forked(9),
        {"$defs": {"a/~b": {"oneOf": [TEXT, {"$ref": "#"}]}}, "$ref": "#/$defs/a~1~0b"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": 5, "pattern": 5, "enum": 5, "properties": 5, "anyOf": 5},
        [0] * SCHEMA_VALUES_MAX,
    ],
    ids=lambda schema: str(schema)[:30],
)
def test_what_people_write_passes(schema: object) -> None:
    for fields in wrapped(schema):
        check_schemas(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": ["f", {"function": "f"}], "functions": "f", "response_format": "x"},
        {"response_format": {"type": "json_schema", "json_schema": "x"}},
    ],
)
def test_what_is_no_schema_is_left_to_others(fields: dict[str, Any]) -> None:
    check_schemas(fields)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {str(i): TEXT for i in range(PROPERTIES_MAX + 1)}}, "512 properties"),
        ({"items": {"enum": list(range(ENUM_LEN_MAX + 1))}}, "1000 values"),
        ({"anyOf": [{"oneOf": [TEXT] * ALTERNATIVES_MAX}, TEXT]}, "1000 alternatives"),
        (forked(30), "1000 alternatives"),
        (chained(5_000), "nested too deeply"),
        ({"allOf": [{"pattern": "(.?){100}"}]}, "the pattern '(.?){100}', which repeats"),
        ([0] * (SCHEMA_VALUES_MAX + 1), "8000 values"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_an_engine_chokes_on_is_refused(schema: object, said: str) -> None:
    assert said in refused(schema)


def test_the_schemas_of_a_request_count_together() -> None:
    tool = wrapped([0] * (SCHEMA_VALUES_MAX // 2))[0]["tools"][0]
    check_schemas({"tools": [tool] * 2})
    with pytest.raises(InvalidRequest, match="8000 values"):
        check_schemas({"tools": [tool] * 2, "json_schema": {"type": "string"}})


OCTET = "([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?Z$",
        "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        rf"^({OCTET}\.){{3}}{OCTET}$",
        "^.{0,500}$",
        "^((.*)*)*$",
        "^(a|a)*?$",
        "(a?){64}",
        r"([)]+\)\({9}){7}",
        "a{,5}{" + "x" * 9,
        ")" * 9 + "(" * 9 + "[\\",
        "a?" * QUANTIFIERS_MAX,
    ],
)
def test_patterns_that_people_write_pass(pattern: str) -> None:
    assert pattern_cost(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("^(.{0,50}){0,50}$", "repeats what repeats itself more than 64 times"),
        ("^((.?){100}){100}$", "repeats what repeats itself more than 64 times"),
        ("^((a{9}){2}){,5}$(a?){65}", "repeats what repeats itself more than 64 times"),
        ("((a?){0,8}){0,8}" * 2, "repeats what repeats itself more than 64 times"),
        ("(.{0,60})" * 9, "repeats something more than 512 times"),
        ("a{0,999999999}", "repeats something more than 512 times"),
        ("a?" * (QUANTIFIERS_MAX + 1), "has more than 32 quantifiers"),
        ("a" * (PATTERN_CHARS_MAX + 1), "has more than 256 characters"),
    ],
)
def test_patterns_with_too_many_readings_are_refused(pattern: str, said: str) -> None:
    assert pattern_cost(pattern) == said

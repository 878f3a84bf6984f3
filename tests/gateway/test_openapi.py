"""The OpenAPI document says what is there, all of it, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.fake_desk import Caller, FakeClock, FakeDesk
from tokenworks.core.errors import RouteNotFound
from tokenworks.gateway.admin import Admin
from tokenworks.gateway.app import DIALECTS, Gateway
from tokenworks.gateway.openapi import STREAMS, document
from tokenworks.gateway.responses import RESPONSES_PATH
from tokenworks.gateway.routes import Route

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def methods_of(gateway: Gateway, path: str) -> set[str]:
    found = gateway._routes.find(path.replace("{id}", "x"))
    return {method.lower() for method in found.handlers} if isinstance(found, Route) else {"post"}


def gateway_of(*, admin: bool) -> Gateway:
    nobody: Any = None
    return Gateway(FakeDesk(), FakeClock(), admin=Admin(nobody, nobody) if admin else None)


@pytest.mark.parametrize("admin", [False, True])
def test_it_is_served_to_anybody(run: Run, *, admin: bool) -> None:
    caller = Caller("GET", "/openapi.json", b"", {"authorization": ""})
    run(caller.call(gateway_of(admin=admin)))
    assert caller.status == 200
    assert caller.json == json.loads(json.dumps(document(admin=admin)))


@pytest.mark.parametrize("admin", [False, True])
def test_every_route_is_in_it_and_no_other(*, admin: bool) -> None:
    gateway = gateway_of(admin=admin)
    told: Any = document(admin=admin)["paths"]
    for path, item in told.items():
        assert set(item) <= methods_of(gateway, path), path
    for route in gateway._routes._others.values():
        below = [item for path, item in told.items() if path.startswith(route.path)]
        own = [told[route.path]] if route.path in told else below
        told_methods = {method for item in own for method in item}
        assert {method.lower() for method in route.handlers} <= told_methods, route.path
    forms = {form.path.replace("*", "{id}"): form for form in gateway._routes._forms}
    for path, form in forms.items():
        assert {method.lower() for method in form.handlers} == set(told[path]), path
    exact = {path for path in told if "{" not in path}
    routes = {*gateway._routes._answers, *gateway._routes._others}
    assert {path for path in routes if not path.endswith("/")} == exact
    below = {path.partition("{")[0] for path in told if "{" in path and path not in forms}
    assert {path for path in routes if path.endswith("/")} == below
    assert {dialect.path for dialect in DIALECTS} | {RESPONSES_PATH} <= exact


def test_a_system_prompt_may_be_an_empty_list() -> None:
    """As Anthropic's reference has it, which asks for one letter in a block, and for no block."""
    schemas: Any = document(admin=False)["components"]
    text, blocks = schemas["schemas"]["MessagesRequest"]["properties"]["system"]["anyOf"]
    assert (text["type"], blocks["type"], blocks["minItems"]) == ("string", "array", 0)


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(each) for each in value.values()))
    return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()


def test_its_references_lead_somewhere() -> None:
    whole: Any = json.loads(json.dumps(document(admin=True)))
    schemas = whole["components"]["schemas"]
    for reference in references(whole):
        assert reference.removeprefix("#/components/schemas/") in schemas


def test_what_is_not_there_says_what_is() -> None:
    with pytest.raises(RouteNotFound, match="openapi"):
        Gateway(FakeDesk(), FakeClock())._routes.find("/v1/nothing")


def test_a_stream_is_told_by_its_events() -> None:
    told: Any = document()["paths"]
    for path in STREAMS:
        content = told[path]["post"]["responses"]["200"]["content"]
        assert content["text/event-stream"]["schema"]["required"] == ["data"]


def test_bodies_of_the_admin_api_are_what_it_decodes() -> None:
    schemas: Any = json.loads(json.dumps(document(admin=True)))["components"]["schemas"]
    assert schemas["CreateKey"]["required"] == ["tenant"]
    assert {"from", "roles", "secret"} <= set(schemas["CreateKey"]["properties"])
    assert "key" not in schemas["ChangeKey"]["properties"]
    assert not any("type" in schemas[name]["properties"] for name in ("CreateKey", "SetLimit"))

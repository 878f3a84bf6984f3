"""The admin API's part of the OpenAPI document; what bodies hold is made from the actions."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, get_args

import msgspec

from tokenworks.gateway.admin import ADMIN_PATH, ONCE_CHARS_MAX, PAGE_MAX
from tokenworks.gateway.chat_fields import JSONObject
from tokenworks.ledger.actions import (
    Action,
    ActivateBook,
    AskExtra,
    ChangeKey,
    ChangeTenant,
    CreateKey,
    CreateTenant,
    DecideExtra,
    GrantPackage,
    ProposeBook,
    RotateKey,
    SetLimit,
)


class _Operation(NamedTuple):
    """One method of a path: what it does, what its body is, what a query may name."""

    does: str
    body: type[Action] | None = None
    status: int = 200
    filters: tuple[str, ...] | None = None
    once: bool = False


_LISTED: Final = ()
_OPERATIONS: Final[dict[str, dict[str, _Operation]]] = {
    "me": {"get": _Operation("Who asks, and what they manage.")},
    "tenants": {
        "get": _Operation("Tenants.", filters=_LISTED),
        "post": _Operation("Make a tenant.", CreateTenant, 201, once=True),
    },
    "tenants/{id}": {
        "get": _Operation("One tenant."),
        "patch": _Operation("Rename a tenant.", ChangeTenant),
        "delete": _Operation("Close a tenant for ever, and revoke its keys."),
    },
    "keys": {
        "get": _Operation("Keys, without their secrets.", filters=("tenant",)),
        "post": _Operation("Make a key; its secret is shown this once.", CreateKey, 201, once=True),
    },
    "keys/{id}": {
        "get": _Operation("One key."),
        "patch": _Operation("Change what a key is limited to.", ChangeKey),
        "delete": _Operation("Revoke a key for ever."),
    },
    "keys/{id}/rotate": {
        "post": _Operation("Give a key a new secret; the old one works for a time.", RotateKey)
    },
    "limits": {
        "get": _Operation("Limits, with what is used and allowed now.", filters=("node",)),
        "post": _Operation("Set a limit, or change its amount.", SetLimit),
    },
    "limits/{id}": {
        "get": _Operation("One limit."),
        "delete": _Operation("Lift a limit."),
    },
    "packages": {"get": _Operation("Packages that can be granted.", filters=_LISTED)},
    "grants": {"post": _Operation("Give a node the limits of a package.", GrantPackage)},
    "extras": {
        "get": _Operation("Extra budget that was asked for.", filters=("state",)),
        "post": _Operation("Ask for extra budget.", AskExtra, 201, once=True),
    },
    "extras/{id}": {"get": _Operation("One of them.")},
    "extras/{id}/approve": {"post": _Operation("Approve it: it counts at once.", DecideExtra)},
    "extras/{id}/deny": {"post": _Operation("Deny it.", DecideExtra)},
    "prices": {
        "get": _Operation("Price books, and which of them is in force.", filters=_LISTED),
        "post": _Operation("Propose a price book; what is odd about it.", ProposeBook, 201),
    },
    "prices/{id}": {"get": _Operation("One price book, with its text.")},
    "prices/{id}/activate": {
        "post": _Operation("Put a price book into force from its day on.", ActivateBook)
    },
    "audit": {
        "get": _Operation(
            "Who changed what, the newest first.", filters=("tenant", "action", "by", "outcome")
        )
    },
}
_OF_PATH: Final = {
    ChangeTenant: ("tenant",),
    ChangeKey: ("key",),
    RotateKey: ("key",),
    DecideExtra: ("extra", "approve"),
    ActivateBook: ("book",),
}
"""What the path says in the place of the body."""
_CAUSES: Final = {
    "400": "The request is at fault; the message names the place.",
    "401": "There is no valid key.",
    "403": "Whoever asks may not manage this, or not from there.",
    "404": "There is nothing of that id that they manage.",
    "405": "The path takes another method.",
    "409": "What is there now does not allow it, or the Idempotency-Key is another request's.",
    "413": "The body is too large.",
    "429": "Too many people manage the factory at once: see Retry-After.",
    "503": "The ledger cannot be written; nothing has changed.",
}
_ID: Final[JSONObject] = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}


def admin_paths() -> JSONObject:
    """Paths, and what can be done by them."""
    return {
        ADMIN_PATH + path: {method: _told(path, each) for method, each in operations.items()}
        for path, operations in _OPERATIONS.items()
    }


def admin_schemas() -> JSONObject:
    """What bodies hold, by the name of the action."""
    kinds = get_args(Action)
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schemas: dict[str, Any] = {}
    for kind in kinds:
        schema = found.pop(kind.__name__)
        for name in ("type", *_OF_PATH.get(kind, ())):
            schema["properties"].pop(name)
            if name in schema["required"]:
                schema["required"].remove(name)
        schemas[kind.__name__] = schema
    return found | schemas


def _told(path: str, operation: _Operation) -> JSONObject:
    content: JSONObject = {"application/json": {"schema": {"type": "object"}}}
    error: JSONObject = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    parameters = [_ID] if "{id}" in path else []
    if operation.filters is not None:
        parameters += [
            _named("query", "limit", {"type": "integer", "minimum": 1, "maximum": PAGE_MAX}),
            _named("query", "after", {"type": "string"}),
            *(_named("query", name, {"type": "string"}) for name in operation.filters),
        ]
    if operation.once:
        word: JSONObject = {"type": "string", "minLength": 1, "maxLength": ONCE_CHARS_MAX}
        parameters.append(_named("header", "Idempotency-Key", word))
    responses: JSONObject = {
        str(operation.status): {"description": operation.does, "content": content},
        **{status: {"description": why, "content": error} for status, why in _CAUSES.items()},
    }
    told: JSONObject = {"summary": operation.does, "responses": responses}
    if parameters:
        told["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        told["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return told


def _named(place: str, name: str, schema: JSONObject) -> JSONObject:
    return {"name": name, "in": place, "required": False, "schema": schema}

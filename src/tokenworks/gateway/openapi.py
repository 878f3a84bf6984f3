"""The OpenAPI 3.1 document of the front door, made from its routes.

Schemas say what we look at; everything else passes to the worker, so objects allow more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokenworks import __version__
from tokenworks.core.slo import Tier
from tokenworks.gateway.admin_openapi import admin_paths, admin_schemas
from tokenworks.gateway.batch_line import ENDPOINTS
from tokenworks.gateway.chat_fields import TOOLS_MAX, JSONObject
from tokenworks.gateway.chat_request import MESSAGES_MAX
from tokenworks.gateway.request_fields import MODEL_CHARS_MAX, OUTPUT_TOKENS_MAX, TIER_WORDS

OPENAPI_PATH: Final = "/openapi.json"

_TEXT: Final[JSONObject] = {"type": "string"}
_OBJECT: Final[JSONObject] = {"type": "object"}
_ANY: Final[JSONObject] = {}


def _whole(most: int, least: int = 1) -> JSONObject:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def _ref(name: str) -> JSONObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...], **properties: JSONObject) -> JSONObject:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: JSONObject, most: int | None = None) -> JSONObject:
    listed: JSONObject = {"type": "array", "items": items, "minItems": 1}
    return listed if most is None else {**listed, "maxItems": most}


_MODEL: Final[JSONObject] = {"type": "string", "minLength": 1, "maxLength": MODEL_CHARS_MAX}
_TIER: Final[JSONObject] = {
    "type": ["string", "null"],
    "enum": ["auto", *TIER_WORDS, None],
    "description": "The tier asked for; flex is medium, default high, priority and fast premium.",
}
_STREAM: Final[JSONObject] = {"type": ["boolean", "null"]}
_NAMED: Final[JSONObject] = _object(
    ("name",), name={"type": "string", "minLength": 1, "maxLength": 64}
)
_CHAT_TOOL: Final = _object(("type", "function"), type={"const": "function"}, function=_NAMED)
_TEXT_PART: Final = _object(("type", "text"), type={"const": "text"}, text=_TEXT)
_CONTENT: Final[JSONObject] = {"anyOf": [_TEXT, _list(_TEXT_PART)]}

REQUESTS: Final[Mapping[str, JSONObject]] = {
    "ChatRequest": _object(
        ("model", "messages"),
        model=_MODEL,
        messages=_list(_object(("role", "content"), role=_TEXT, content=_CONTENT), MESSAGES_MAX),
        tools={**_list(_CHAT_TOOL, TOOLS_MAX), "minItems": 0},
        max_completion_tokens=_whole(OUTPUT_TOKENS_MAX),
        max_tokens=_whole(OUTPUT_TOKENS_MAX),
        stream=_STREAM,
        service_tier=_TIER,
        n={"enum": [1, None]},
    ),
    "CompletionRequest": _object(
        ("model", "prompt"),
        model=_MODEL,
        prompt={"anyOf": [{"type": "string", "minLength": 1}, _list(_whole(1 << 31, 0))]},
        suffix={"type": ["string", "null"]},
        max_tokens=_whole(OUTPUT_TOKENS_MAX),
        stream=_STREAM,
        service_tier=_TIER,
        n={"enum": [1, None]},
    ),
    "ResponsesRequest": _object(
        ("model", "input"),
        model=_MODEL,
        input={"anyOf": [{"type": "string", "minLength": 1}, _list(_OBJECT, MESSAGES_MAX)]},
        instructions={"type": ["string", "null"]},
        previous_response_id={"type": ["string", "null"]},
        max_output_tokens=_whole(OUTPUT_TOKENS_MAX),
        store={"type": ["boolean", "null"]},
        stream=_STREAM,
        service_tier=_TIER,
    ),
    "MessagesRequest": _object(
        ("model", "messages", "max_tokens"),
        model=_MODEL,
        messages=_list(
            _object(
                ("role", "content"),
                role={"enum": ["user", "assistant"]},
                content=_CONTENT,
            ),
            MESSAGES_MAX,
        ),
        max_tokens={"type": "integer", "minimum": 1, "maximum": OUTPUT_TOKENS_MAX},
        system={"anyOf": [_TEXT, {**_list(_TEXT_PART), "minItems": 0}]},
        stream=_STREAM,
    ),
    "MessagesCountRequest": _object(
        ("model", "messages"),
        model=_MODEL,
        messages=_list(_object(("role", "content"), role={"enum": ["user"]}, content=_CONTENT)),
    ),
    "InputRequest": _object(
        ("model", "input"),
        model=_MODEL,
        input={"anyOf": [{"type": "string", "minLength": 1}, _list(_TEXT)]},
        service_tier=_TIER,
    ),
    "RerankRequest": _object(
        ("model", "query", "documents"),
        model=_MODEL,
        query={"type": "string", "minLength": 1},
        documents=_list(_TEXT),
        service_tier=_TIER,
    ),
    "ImageRequest": _object(
        ("model", "prompt"),
        model=_MODEL,
        prompt={"type": "string", "minLength": 1},
        n=_whole(10),
        service_tier=_TIER,
    ),
    "BatchRequest": _object(
        ("input_file_id", "endpoint", "completion_window"),
        input_file_id=_TEXT,
        endpoint={"enum": list(ENDPOINTS)},
        completion_window={"const": "24h"},
        metadata={"type": ["object", "null"], "additionalProperties": _TEXT},
    ),
    "FileRequest": _object(("purpose", "file"), purpose={"const": "batch"}, file=_TEXT),
    "FormRequest": _object(("model",), model=_MODEL, service_tier=_TIER),
}

_EVENT: Final = _object(("data",), event=_TEXT, data=_TEXT)
"""Each of a stream: 3.1 has no word for them yet, and tools read its schema so."""

_ERROR: Final = _object(
    ("error",),
    error=_object(("message", "type", "code"), message=_TEXT, type=_TEXT, code=_TEXT),
)
_ANTHROPIC_ERROR: Final = _object(
    ("type", "error"), type={"const": "error"}, error=_object(("type", "message"))
)

POSTS: Final[Mapping[str, tuple[str, str]]] = {
    "/v1/chat/completions": ("ChatRequest", "An answer to a conversation."),
    "/v1/completions": ("CompletionRequest", "A prompt goes on."),
    "/v1/responses": ("ResponsesRequest", "An answer in the shape of a response."),
    "/v1/responses/input_tokens": ("ResponsesRequest", "How many tokens the input has."),
    "/v1/messages": ("MessagesRequest", "An answer in Anthropic's shape."),
    "/v1/messages/count_tokens": ("MessagesCountRequest", "How many tokens the prompt has."),
    "/v1/embeddings": ("InputRequest", "Vectors of texts."),
    "/v1/moderations": ("InputRequest", "Whether texts are harmful."),
    "/v1/rerank": ("RerankRequest", "Documents by how well they answer a query."),
    "/v1/images/generations": ("ImageRequest", "Pictures."),
    "/v1/images/edits": ("FormRequest", "Pictures made of others."),
    "/v1/images/variations": ("FormRequest", "Pictures like another."),
    "/v1/audio/speech": ("InputRequest", "Speech."),
    "/v1/audio/transcriptions": ("FormRequest", "What a recording says."),
    "/v1/audio/translations": ("FormRequest", "What a recording says, in English."),
    "/v1/batches": ("BatchRequest", "The lines of a file are answered in spare capacity."),
    "/v1/files": ("FileRequest", "A file is kept, for a batch."),
}
"""What is sent where, and what comes back."""

STREAMS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
)
_RESPONSE_ID: Final[JSONObject] = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
}


def document(*, admin: bool = False) -> JSONObject:
    """The whole document.

    Args:
        admin: whether the factory can be managed here.
    """
    paths: JSONObject = {path: {"post": _post(path)} for path in POSTS}
    paths["/v1/models"] = {"get": _get("Models that are served and priced.")}
    paths["/v1/models/{id}"] = {"get": _get("One of them.", of_id=True)}
    paths["/v1/responses/{id}"] = {
        "get": _get("A response that was kept.", of_id=True),
        "delete": _get("Forget it.", of_id=True),
    }
    paths["/v1/responses/{id}/input_items"] = {"get": _get("Its input.", of_id=True)}
    paths["/v1/responses/{id}/cancel"] = {
        "post": _get("Stop it; nothing runs in the background yet.", of_id=True)
    }
    paths["/v1/files"] = {
        "get": _get("Files that are kept, the newest first."),
        "post": _post("/v1/files"),
    }
    paths["/v1/files/{id}"] = {
        "get": _get("One of them.", of_id=True),
        "delete": _get("Forget it.", of_id=True),
    }
    paths["/v1/files/{id}/content"] = {
        "get": _get("What is in it.", "application/octet-stream", of_id=True)
    }
    paths["/v1/batches"] = {
        "get": _get("Batches, the newest first."),
        "post": _post("/v1/batches"),
    }
    paths["/v1/batches/{id}"] = {"get": _get("One of them.", of_id=True)}
    paths["/v1/batches/{id}/cancel"] = {"post": _get("End it now.", of_id=True)}
    paths["/healthz"] = {"get": _get("Whether requests can be served.", keyed=False)}
    paths["/metrics"] = {"get": _get("Prometheus's metrics.", "text/plain", keyed=False)}
    paths[OPENAPI_PATH] = {"get": _get("This document.", keyed=False)}
    schemas: JSONObject = {
        **REQUESTS,
        "Error": _ERROR,
        "AnthropicError": _ANTHROPIC_ERROR,
        "Tier": {"enum": [tier.value for tier in Tier]},
    }
    if admin:
        paths |= admin_paths()
        schemas |= admin_schemas()
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tokenworks", "version": __version__},
        "security": [{"bearer": []}, {"header": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _post(path: str) -> JSONObject:
    schema, does = POSTS[path]
    kinds: JSONObject = {"application/json": {"schema": _ref(schema)}}
    if schema in ("FormRequest", "FileRequest"):
        kinds = {"multipart/form-data": {"schema": _ref(schema)}}
    answers: JSONObject = {"application/json": {"schema": _OBJECT}}
    if path in STREAMS:
        answers["text/event-stream"] = {"schema": _EVENT}
    if path == "/v1/audio/speech":
        answers = {"*/*": {}}
    error = "AnthropicError" if path.startswith("/v1/messages") else "Error"
    return {
        "summary": does,
        "requestBody": {"required": True, "content": kinds},
        "responses": {"200": _answer(does, answers), **_errors(error)},
    }


def _get(
    does: str, kind: str = "application/json", *, keyed: bool = True, of_id: bool = False
) -> JSONObject:
    body: JSONObject = {kind: {"schema": _OBJECT if kind == "application/json" else _TEXT}}
    told: JSONObject = {"summary": does, "responses": {"200": _answer(does, body)}}
    if of_id:
        told["parameters"] = [_RESPONSE_ID]
    if keyed:
        told["responses"] = {"200": _answer(does, body), **_errors("Error")}
    else:
        told["security"] = []
        told["responses"] = {"200": _answer(does, body), "503": _answer("Not now.", body)}
    return told


def _answer(does: str, content: JSONObject) -> JSONObject:
    return {"description": does, "content": content}


def _errors(schema: str) -> JSONObject:
    content: JSONObject = {"application/json": {"schema": _ref(schema)}}
    causes = {
        "400": "The request is at fault; the message names the place.",
        "401": "There is no valid key.",
        "403": "The key may not use this model or tier, or not from there.",
        "404": "There is no such model, response or path.",
        "405": "The path takes another method.",
        "413": "The body is too large.",
        "429": "A quota is used up, or the tier is full: see Retry-After.",
        "502": "A worker broke off.",
        "503": "No worker is up, or the ledger cannot be written.",
    }
    return {status: _answer(cause, content) for status, cause in causes.items()}

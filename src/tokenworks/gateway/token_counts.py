"""Counting a prompt's tokens before it is sent, in Anthropic's words and in OpenAI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from tokenworks.core.ports import Desk
from tokenworks.gateway.chat_fields import JSONObject
from tokenworks.gateway.chat_request import parse_chat_request
from tokenworks.gateway.json_body import decode_object, encode
from tokenworks.gateway.messages_answer import MessagesErrors
from tokenworks.gateway.messages_request import read_count_request
from tokenworks.gateway.own_headers import own_headers
from tokenworks.gateway.responses_request import EXAMPLE, read_responses_request
from tokenworks.gateway.routes import Request, Response, Route

MESSAGES_COUNT: Final = "/v1/messages/count_tokens"
RESPONSES_COUNT: Final = "/v1/responses/input_tokens"


class TokenCounts:
    """Counts through a desk. It makes no tokens and costs none."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """Both routes."""
        return (
            Route(
                path=MESSAGES_COUNT,
                handlers={"POST": self._messages},
                errors=MessagesErrors(),
            ),
            Route(path=RESPONSES_COUNT, handlers={"POST": self._responses}),
        )

    async def _messages(self, request: Request) -> Response:
        fields = read_count_request(request.body).fields
        return await self._count(request, fields, lambda n: {"input_tokens": n})

    async def _responses(self, request: Request) -> Response:
        fields = read_responses_request(decode_object(request.body, EXAMPLE), []).fields
        told = "response.input_tokens"
        return await self._count(request, fields, lambda n: {"object": told, "input_tokens": n})

    async def _count(
        self, request: Request, fields: JSONObject, told: Callable[[int], JSONObject]
    ) -> Response:
        key = request.key
        assert key is not None
        own = own_headers(request.headers, key.labels)
        adapter = None if own.needs is None else own.needs.adapter
        body = encode({**fields, "max_tokens": 1})
        asked = parse_chat_request(body, key.tier_default, _one, key.tenant, adapter)
        if key.scopes is not None:
            key.scopes.check_model(asked.model)
            key.scopes.check_tier(asked.tier)
        counted = await self._desk.count_tokens(asked.model, asked.body, own.needs)
        return Response(body=msgspec.json.encode(told(counted)))


def _one(_model: object, _tier: object) -> int:
    return 1

"""Counting a prompt's tokens before it is sent, in Anthropic's words and in OpenAI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from tokenworks.core.ports import Desk
from tokenworks.gateway.chat_fields import JSONObject
from tokenworks.gateway.chat_request import parse_chat_request
from tokenworks.gateway.json_body import encode
from tokenworks.gateway.messages_answer import MessagesErrors
from tokenworks.gateway.messages_request import read_count_request
from tokenworks.gateway.own_headers import own_headers
from tokenworks.gateway.responses import Responses
from tokenworks.gateway.routes import Request, Response, Route

MESSAGES_COUNT: Final = "/v1/messages/count_tokens"
RESPONSES_COUNT: Final = "/v1/responses/input_tokens"


class TokenCounts:
    """Counts through a desk. It makes no tokens and costs none.

    Args:
        desk: the way into the factory.
        responses: knows what a response goes on from.
    """

    def __init__(self, desk: Desk, responses: Responses) -> None:
        self._desk, self._conversations = desk, responses

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
        assert request.key is not None
        fields = await self._conversations.fields(request.body, request.key)
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

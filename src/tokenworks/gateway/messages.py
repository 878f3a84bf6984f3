"""Anthropic's ``POST /v1/messages``, on any worker that answers chat completions."""

from __future__ import annotations

from typing import Final

from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.orders import KeyView
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_request import parse_chat_request
from tokenworks.gateway.dialect import NO_MODELS, OutputDefault
from tokenworks.gateway.json_body import encode
from tokenworks.gateway.messages_answer import MessagesAnswer, MessagesErrors
from tokenworks.gateway.messages_request import Thinking, read_messages_request
from tokenworks.gateway.own_words import OwnHeaders

MESSAGES_PATH: Final = "/v1/messages"


class MessagesAsked(ChatRequest, frozen=True, kw_only=True):
    """A Messages request after checking.

    Attributes:
        thinking: what the caller wants to see of the reasoning.
    """

    thinking: Thinking


class Messages(MessagesErrors):
    """Implements ``dialect.Dialect``."""

    path = MESSAGES_PATH
    fetch = None

    def read(
        self,
        raw: bytes,
        key: KeyView,
        own: OwnHeaders,
        output_default: OutputDefault,
        whole: frozenset[ModelName] = NO_MODELS,  # noqa: ARG002 - its writer needs events
    ) -> MessagesAsked:
        """See ``Dialect``."""
        found = read_messages_request(raw)
        adapter = None if own.needs is None else own.needs.adapter
        body = encode(found.fields)
        asked = parse_chat_request(body, key.tier_default, output_default, key.tenant, adapter)
        fields = {name: getattr(asked, name) for name in asked.__struct_fields__}
        return MessagesAsked(**fields, thinking=found.thinking)

    def writer(self, asked: MessagesAsked, request: RequestID) -> MessagesAnswer:
        """See ``Dialect``."""
        return MessagesAnswer(request, asked.model, asked.thinking)

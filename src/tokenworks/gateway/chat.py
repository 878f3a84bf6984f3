"""OpenAI's chat completions: what a worker says already, but for the delivered tier at its end."""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import TokenworksError
from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.orders import CHAT_PATH, KeyView, Usage
from tokenworks.core.slo import Tier
from tokenworks.gateway.assemble import Completion
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_request import parse_chat_request
from tokenworks.gateway.dialect import NO_MODELS, OutputDefault
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.own_words import OwnHeaders
from tokenworks.gateway.plain_request import read_plain


class Chat(OpenAIErrors):
    """Implements ``dialect.Dialect``."""

    path = CHAT_PATH
    fetch = None

    def read(
        self,
        raw: bytes,
        key: KeyView,
        own: OwnHeaders,
        output_default: OutputDefault,
        whole: frozenset[ModelName] = NO_MODELS,
    ) -> ChatRequest:
        """See ``Dialect``."""
        adapter = None if own.needs is None else own.needs.adapter
        if adapter is None:
            plain = read_plain(raw, key.tier_default, output_default, key.tenant, whole)
            if plain is not None:
                return plain
        return parse_chat_request(raw, key.tier_default, output_default, key.tenant, adapter, whole)

    def writer(self, asked: ChatRequest, request: RequestID) -> ChatWriter:  # noqa: ARG002
        """See ``Dialect``."""
        return ChatWriter(self, include_usage=asked.include_usage)


class ChatWriter:
    """Implements ``dialect.Writer``."""

    __slots__ = ("_errors", "_include_usage", "_whole")
    kept = None

    def __init__(self, errors: OpenAIErrors, *, include_usage: bool) -> None:
        self._errors, self._include_usage = errors, include_usage
        self._whole = b"{}"

    def forward(self, ready: bytes) -> bytes:
        """See ``Writer``; the same bytes."""
        return ready

    def take_held(self, events: EventStream) -> None:
        """See ``Writer``; they are what the caller gets."""

    def closing(self, events: EventStream, tier: Tier) -> bytes:
        """See ``Writer``."""
        return events.closing(tier, include_usage=self._include_usage)

    def take_whole(self, completion: Completion) -> None:
        """See ``Writer``."""
        self._whole = msgspec.json.encode(completion)

    def whole(self, usage: Usage, tier: Tier) -> bytes:  # noqa: ARG002
        """See ``Writer``."""
        return b'%b,"service_tier":"%b"}' % (self._whole[:-1], tier.encode())

    def error_event(self, error: TokenworksError) -> bytes:
        """See ``Writer``; as OpenAI does."""
        return b"data: " + self._errors.error_body(error) + b"\n\n"

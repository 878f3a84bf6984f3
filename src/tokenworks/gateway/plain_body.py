"""The body of a chat completion request of the plainest kind, checked while it is decoded."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tokenworks.gateway.chat_fields import STOP_CHARS_MAX
from tokenworks.gateway.chat_request import MESSAGES_MAX
from tokenworks.gateway.request_fields import MODEL_CHARS_MAX, OUTPUT_TOKENS_MAX

_Limit = Annotated[int, Meta(ge=1, le=OUTPUT_TOKENS_MAX)] | None | UnsetType
_Number = int | float | None | UnsetType


class Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message of text."""

    role: str
    content: str


class Options(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a caller of a stream wants of it."""

    include_usage: bool | None = None


class Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The whole body: OpenAI's fields of that name, in bounds."""

    model: Annotated[str, Meta(min_length=1, max_length=MODEL_CHARS_MAX)]
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    stream: bool | None = None
    stream_options: Options | UnsetType | None = None
    max_tokens: _Limit = UNSET
    max_completion_tokens: _Limit = UNSET
    n: Literal[1] | UnsetType | None = UNSET
    service_tier: str | UnsetType | None = UNSET
    temperature: _Number = UNSET
    top_p: _Number = UNSET
    presence_penalty: _Number = UNSET
    frequency_penalty: _Number = UNSET
    seed: int | UnsetType | None = UNSET
    stop: Annotated[str, Meta(min_length=1, max_length=STOP_CHARS_MAX)] | UnsetType | None = UNSET
    user: str | UnsetType | None = UNSET
    ignore_eos: bool | UnsetType = UNSET


PLAIN: Final = msgspec.json.Decoder(Plain)

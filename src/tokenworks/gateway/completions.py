"""OpenAI's older ``POST /v1/completions``: a prompt goes on, without turns or a template."""

from __future__ import annotations

from typing import Final

from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.orders import KeyView
from tokenworks.gateway.assemble import Completion
from tokenworks.gateway.chat import ChatWriter
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_fields import check_fields, extra_fields, wrong
from tokenworks.gateway.chat_request import cache_salt_of, prefix_hashes
from tokenworks.gateway.dialect import NO_MODELS, OutputDefault
from tokenworks.gateway.json_body import decode_object, encode
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.own_words import OwnHeaders
from tokenworks.gateway.request_fields import (
    flag,
    include_usage,
    model_of,
    one_answer,
    output_limit,
    tier_of,
    worker_body,
)

COMPLETIONS_PATH: Final = "/v1/completions"
OUTPUT_TOKENS_DEFAULT: Final = 16
"""What OpenAI makes for a request that names no limit."""

COMPLETION_FIELDS: Final = frozenset({"echo", "prompt", "suffix"})
"""OpenAI's fields that a chat completion does not have."""

EXTRA_TOKENS: Final = 8
"""Room for what an engine puts before a prompt or around a suffix."""


class Completions(OpenAIErrors):
    """Implements ``dialect.Dialect``."""

    path = COMPLETIONS_PATH
    fetch = None

    def read(
        self,
        raw: bytes,
        key: KeyView,
        own: OwnHeaders,
        output_default: OutputDefault,
        whole: frozenset[ModelName] = NO_MODELS,
    ) -> ChatRequest:
        """See ``Dialect``; one prompt, of text or of tokens."""
        fields = decode_object(raw, '{"model": ..., "prompt": ...}')
        check_fields(fields)
        model = model_of(fields)
        prompt = _prompt(fields.get("prompt"))
        tier = tier_of(fields, key.tier_default)
        one_answer(fields, "n")
        stream = flag(fields, "stream")
        in_one_piece = not stream and model in whole
        limit = output_limit(fields)
        if limit is None:
            limit = min(OUTPUT_TOKENS_DEFAULT, output_default(model, tier))
        suffix = fields.get("suffix")
        if suffix is not None and not isinstance(suffix, str):
            raise wrong("suffix", suffix, "text")
        text = encode(prompt)
        adapter = None if own.needs is None else own.needs.adapter
        salt = cache_salt_of((key.tenant, adapter), fields.get("cache_salt"))
        return ChatRequest(
            model=model,
            tier=tier,
            stream=stream,
            include_usage=include_usage(fields, stream=stream),
            output_tokens_max=limit,
            input_tokens_max=len(text) + len((suffix or "").encode()) + EXTRA_TOKENS,
            prefix=prefix_hashes(text, salt.encode()),
            cache_salt=salt,
            body=worker_body(
                {**fields, "prompt": prompt}, limit, adapter, in_one_piece=in_one_piece
            ),
            extra_fields=tuple(
                name for name in extra_fields(fields) if name not in COMPLETION_FIELDS
            ),
            worker_path=COMPLETIONS_PATH,
            in_one_piece=in_one_piece,
        )

    def writer(self, asked: ChatRequest, request: RequestID) -> CompletionWriter:  # noqa: ARG002
        """See ``Dialect``."""
        return CompletionWriter(self, include_usage=asked.include_usage)


class CompletionWriter(ChatWriter):
    """Implements ``dialect.Writer``: a worker's own events, too."""

    __slots__ = ()

    def take_whole(self, completion: Completion) -> None:
        """See ``Writer``."""
        choices = completion["choices"]
        assert isinstance(choices, list), choices
        for choice in choices:
            del choice["message"]
            choice.setdefault("text", "")
        super().take_whole({**completion, "object": "text_completion"})


def _prompt(prompt: object) -> object:
    """One prompt; a list of one is that one."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(_is_token(token) for token in prompt):
        return prompt
    raise wrong("prompt", prompt, "one text, or one list of tokens; send another for another")


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

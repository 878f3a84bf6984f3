"""The quick way to read a chat completion request of the plainest kind: texts, and common samplers.

Types and bounds are checked while the body is decoded, and messages are written once, for the
prompt's hashes and the worker alike. What is not of this kind, or not right, is left to
``chat_request``, which reads whatever this does in the same way and says what is wrong.
"""

from __future__ import annotations

import functools
from typing import Final

import msgspec
from msgspec import UNSET

from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_request import (
    TEMPLATE_TOKENS_PER_MESSAGE,
    cache_salt_of,
    prefix_hashes,
)
from tokenworks.gateway.dialect import NO_MODELS, OutputDefault
from tokenworks.gateway.plain_body import PLAIN, Options
from tokenworks.gateway.request_fields import TIER_WORDS

_encoder: Final = msgspec.json.Encoder()
_WITH_USAGE: Final = Options(include_usage=True)
_salt_of: Final = functools.lru_cache(maxsize=4_096)(lambda tenant: cache_salt_of((tenant, None)))


def read_plain(
    raw: bytes,
    tier_default: Tier,
    output_default: OutputDefault,
    tenant: str,
    whole: frozenset[ModelName] = NO_MODELS,
) -> ChatRequest | None:
    """Check and read a request of the plainest kind; None if it is not one.

    Args:
        raw: the JSON body.
        tier_default: the key's tier.
        output_default: the output limit of a request that names none; may raise ModelNotFound.
        tenant: with whose prompts alone it may share a cache.
        whole: models of which an answer may be asked for in one piece.
    """
    try:
        plain = PLAIN.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    word, tier = plain.service_tier, tier_default
    if word and word != "auto":
        if word not in TIER_WORDS:
            return None
        tier = TIER_WORDS[word]
    elif word == "":
        return None
    model, stream = ModelName(plain.model), plain.stream is True
    limits = [each for each in (plain.max_tokens, plain.max_completion_tokens) if each]
    limit = min(limits) if limits else output_default(model, tier)
    wants = plain.stream_options
    include_usage = stream and isinstance(wants, Options) and wants.include_usage is True
    count, messages = len(plain.messages), _encoder.encode(plain.messages)
    prompt = b"[null,%b]" % messages
    salt = _salt_of(tenant)
    plain.messages = msgspec.Raw(messages)  # type: ignore[assignment]
    in_one_piece = not stream and model in whole
    if in_one_piece:
        plain.stream, plain.stream_options = False, UNSET
    else:
        plain.stream, plain.stream_options = True, _WITH_USAGE
    plain.max_tokens = limit
    plain.service_tier = plain.max_completion_tokens = UNSET
    return ChatRequest(
        model=model,
        tier=tier,
        stream=stream,
        include_usage=include_usage,
        output_tokens_max=limit,
        input_tokens_max=len(prompt) + TEMPLATE_TOKENS_PER_MESSAGE * count,
        prefix=prefix_hashes(prompt, salt.encode()),
        cache_salt=salt,
        body=_encoder.encode(plain),
        in_one_piece=in_one_piece,
    )

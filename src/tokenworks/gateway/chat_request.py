"""Reading a chat completion request: check it once, and write the body that a worker gets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_fields import (
    JSONObject,
    Media,
    check_fields,
    check_messages,
    extra_fields,
    wrong,
)
from tokenworks.gateway.dialect import NO_MODELS
from tokenworks.gateway.json_body import decode_object, encode
from tokenworks.gateway.request_fields import (
    flag,
    include_usage,
    model_of,
    one_answer,
    output_limit,
    tier_of,
    worker_body,
)

PREFIX_BLOCK_BYTES: Final = 256
PREFIX_BLOCKS_MAX: Final = 256
MESSAGES_MAX: Final = 4_096
PROMPT_FIELDS: Final = (
    "tools",
    "functions",
    "response_format",
    "documents",
    "chat_template_kwargs",
)
"""What a chat template may write into the prompt, next to the messages."""

IMAGE_TOKENS_MAX: Final = 16_384
"""Held for a picture: the most that Qwen2-VL's processor makes of one (assumed for others)."""

TEMPLATE_TOKENS_PER_MESSAGE: Final = 8
"""Room for the turn markers that a chat template adds; foreman's takes at most 6."""


def parse_chat_request(
    raw: bytes,
    tier_default: Tier,
    output_tokens_default: Callable[[ModelName, Tier], int],
    tenant: str = "",
    adapter: str | None = None,
    whole: frozenset[ModelName] = NO_MODELS,
) -> ChatRequest:
    """Check a request's body; fields that are not ours pass through as they are.

    Args:
        raw: the JSON body.
        tier_default: the key's tier.
        output_tokens_default: the output limit at a tier for a request that names none; may raise
            ModelNotFound.
        tenant: with whose prompts alone it may share a cache.
        adapter: the LoRA adapter, which engines take for the model; so its prompts share no cache
            with those of others.
        whole: models of which an answer may be asked for in one piece.

    Raises:
        InvalidRequest: with the field at fault and what it should be.
    """
    fields = decode_object(raw, '{"model": ..., "messages": [...]}')
    check_fields(fields)
    model = model_of(fields)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", messages, "a list of at least one message")
    if len(messages) > MESSAGES_MAX:
        raise InvalidRequest(
            f"There are {len(messages)} messages, more than {MESSAGES_MAX}.",
            hint="Send fewer, longer ones.",
        )
    media = check_messages(messages)
    tier = tier_of(fields, tier_default)
    stream = flag(fields, "stream")
    one_answer(fields, "n")
    limit = output_limit(fields)
    if limit is None:
        limit = output_tokens_default(model, tier)
    prompt = encode([fields.get("tools"), messages])
    cache_salt = cache_salt_of((tenant, adapter), fields.get("cache_salt"))
    in_one_piece = not stream and model in whole
    return ChatRequest(
        model=model,
        tier=tier,
        stream=stream,
        include_usage=include_usage(fields, stream=stream),
        output_tokens_max=limit,
        input_tokens_max=len(prompt) + _more_tokens(fields, len(messages), media),
        prefix=prefix_hashes(prompt, cache_salt.encode()),
        cache_salt=cache_salt,
        body=worker_body(fields, limit, adapter, in_one_piece=in_one_piece),
        extra_fields=(*sorted(media.kinds), *extra_fields(fields)),
        in_one_piece=in_one_piece,
    )


def _more_tokens(fields: JSONObject, messages: int, media: Media) -> int:
    """A bound on what a prompt has beyond the bytes of its messages and tools."""
    more = [fields[name] for name in PROMPT_FIELDS[1:] if name in fields]
    return (
        (len(encode(more)) if more else 0)
        + TEMPLATE_TOKENS_PER_MESSAGE * messages
        + media.images * IMAGE_TOKENS_MAX
        - media.image_chars
    )


def cache_salt_of(owner: tuple[str | None, ...], own: object = None) -> str:
    """What tells the cached prompts of one tenant from all others, 32 hex digits.

    Without it a tenant could find out, by how fast an answer begins and by what is billed as
    cached, whether another tenant has sent a prompt that begins alike.

    Args:
        owner: the tenant, and what else sets its prompts apart, such as an adapter.
        own: the request's own ``cache_salt``, by which a tenant keeps its users apart.

    Raises:
        InvalidRequest: ``own`` is neither text nor missing.
    """
    if own is not None and not isinstance(own, str):
        raise wrong("cache_salt", own, "text")
    return hashlib.blake2b(encode([owner, own]), digest_size=16).hexdigest()


def prefix_hashes(prompt: bytes, salt: bytes = b"") -> tuple[int, ...]:
    """A chained 64-bit hash of each whole block of the prompt.

    Args:
        prompt: what is hashed.
        salt: at most 64 bytes; prompts of different salts share no hash.

    >>> a, b = prefix_hashes(b"x" * 600), prefix_hashes(b"x" * 300 + b"y" * 300)
    >>> len(a), a[0] == b[0], a[1] == b[1]
    (2, True, False)
    """
    chained: list[int] = []
    previous = salt
    blocks = min(len(prompt) // PREFIX_BLOCK_BYTES, PREFIX_BLOCKS_MAX)
    for i in range(blocks):
        block = prompt[i * PREFIX_BLOCK_BYTES : (i + 1) * PREFIX_BLOCK_BYTES]
        previous = hashlib.blake2b(block, key=previous, digest_size=8).digest()
        chained.append(int.from_bytes(previous, "little"))
    return tuple(chained)

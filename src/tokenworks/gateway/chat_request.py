"""Reading a chat completion request: check it once, and write the body that a worker gets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from tokenworks.core.errors import InvalidRequest
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.gateway.chat_fields import (
    JSONObject,
    check_fields,
    check_messages,
    extra_fields,
    wrong,
)
from tokenworks.gateway.dialect import Asked
from tokenworks.gateway.json_body import decode_object, encode

TIER_WORDS: Final = {
    **{tier.value: tier for tier in Tier},
    "flex": Tier.MEDIUM,
    "default": Tier.HIGH,
    "priority": Tier.PREMIUM,
    "fast": Tier.PREMIUM,
}
"""What ``service_tier`` may say; ``auto`` or nothing means the key's own tier."""

PREFIX_BLOCK_BYTES: Final = 256
PREFIX_BLOCKS_MAX: Final = 256
OUTPUT_TOKENS_MAX: Final = 32_768
MESSAGES_MAX: Final = 4_096
MODEL_CHARS_MAX: Final = 256
PROMPT_FIELDS: Final = (
    "tools",
    "functions",
    "response_format",
    "documents",
    "chat_template_kwargs",
)
"""What a chat template may write into the prompt, next to the messages."""

_NOT_SENT: Final = frozenset({"service_tier", "max_completion_tokens", "cache_salt"})

IMAGE_TOKENS_MAX: Final = 16_384
"""Held for a picture: the most that Qwen2-VL's processor makes of one (assumed for others)."""

TEMPLATE_TOKENS_PER_MESSAGE: Final = 8
"""Room for the turn markers that a chat template adds; foreman's takes at most 6."""


class ChatRequest(Asked, frozen=True, kw_only=True):
    """A chat completion request after checking; its prompt is hashed in PREFIX_BLOCK_BYTES.

    Attributes:
        include_usage: whether the caller wants the stream's usage event.
    """

    include_usage: bool


def parse_chat_request(
    raw: bytes,
    tier_default: Tier,
    output_tokens_default: Callable[[ModelName, Tier], int],
    tenant: str = "",
    adapter: str | None = None,
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

    Raises:
        InvalidRequest: with the field at fault and what it should be.
    """
    fields = decode_object(raw, '{"model": ..., "messages": [...]}')
    check_fields(fields)
    model = fields.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= MODEL_CHARS_MAX:
        raise wrong("model", model, "the name of a model; GET /v1/models lists them")
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", messages, "a list of at least one message")
    if len(messages) > MESSAGES_MAX:
        raise InvalidRequest(
            f"There are {len(messages)} messages, more than {MESSAGES_MAX}.",
            hint="Send fewer, longer ones.",
        )
    media = check_messages(messages)
    tier = _tier(fields, tier_default)
    stream = _flag(fields, "stream")
    include_usage = _include_usage(fields, stream=stream)
    if fields.get("n", 1) not in (1, None) or isinstance(fields.get("n"), bool):
        raise wrong("n", fields["n"], "1; send the request again for another answer")
    limit = _output_limit(fields)
    if limit is None:
        limit = output_tokens_default(ModelName(model), tier)
    prompt = encode([fields.get("tools"), messages])
    more = [fields[name] for name in PROMPT_FIELDS[1:] if name in fields]
    more_bytes = len(encode(more)) if more else 0
    cache_salt = cache_salt_of((tenant, adapter), fields.get("cache_salt"))
    return ChatRequest(
        model=ModelName(model),
        tier=tier,
        stream=stream,
        include_usage=include_usage,
        output_tokens_max=limit,
        input_tokens_max=len(prompt)
        + more_bytes
        + TEMPLATE_TOKENS_PER_MESSAGE * len(messages)
        + media.images * IMAGE_TOKENS_MAX
        - media.image_chars,
        prefix=prefix_hashes(prompt, cache_salt.encode()),
        cache_salt=cache_salt,
        body=_worker_body(fields, limit, adapter),
        extra_fields=(*sorted(media.kinds), *extra_fields(fields)),
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


def _tier(fields: JSONObject, default: Tier) -> Tier:
    word = fields.get("service_tier")
    if word is None or word == "auto":
        return default
    if not isinstance(word, str) or word not in TIER_WORDS:
        raise wrong("service_tier", word, f"one of {', '.join(['auto', *TIER_WORDS])}")
    return TIER_WORDS[word]


def _flag(fields: JSONObject, name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def _include_usage(fields: JSONObject, *, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong("stream_options", options, "an object")
    return stream and _flag(options, "include_usage")


def _output_limit(fields: JSONObject) -> int | None:
    limits = []
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and isinstance(value, int) and 1 <= value <= OUTPUT_TOKENS_MAX):
            raise wrong(name, value, f"a whole number from 1 to {OUTPUT_TOKENS_MAX}")
        limits.append(value)
    return min(limits) if limits else None


def _worker_body(fields: JSONObject, output_tokens_max: int, adapter: str | None) -> bytes:
    """The worker always streams and always says usage; the tier and the salt are ours alone."""
    sent = {k: v for k, v in fields.items() if k not in _NOT_SENT}
    options = fields.get("stream_options")
    sent["stream"] = True
    kept = options if isinstance(options, dict) else {}
    sent["stream_options"] = {**kept, "include_usage": True}
    sent["max_tokens"] = output_tokens_max
    if adapter is not None:
        sent["model"] = adapter
    return encode(sent)

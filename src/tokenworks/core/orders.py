"""A request on its way through the factory, and what came of it."""

from __future__ import annotations

import msgspec

from tokenworks.core.ids import KeyID, ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.slo import Measured, Tier


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway may know of a key.

    Attributes:
        key: its public id, never the secret.
        tenant: who pays.
        tier_default: the tier of a request that names none.
    """

    key: KeyID
    tenant: TenantID
    tier_default: Tier


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One request, parsed and checked, as the factory takes it.

    Attributes:
        request: unique for ever.
        key: who asks.
        model: the model asked for.
        tier: the tier asked for.
        body: the JSON to send to a worker, ``stream`` and usage already switched on.
        input_tokens_max: an upper bound on the prompt's tokens.
        output_tokens_max: the most tokens that the worker is allowed to make.
        prefix: hashes of the prompt's blocks, each chained on the one before it.
        arrived_ns: when the request's last byte came, on the driver's clock.
        extra_fields: names of fields in the body that are neither OpenAI's nor samplers known to be
            safe; an engine's adapter may refuse them.
    """

    request: RequestID
    key: KeyView
    model: ModelName
    tier: Tier
    body: bytes
    input_tokens_max: int
    output_tokens_max: int
    prefix: tuple[int, ...]
    arrived_ns: int
    extra_fields: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer in disjoint classes."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer ended, as the gateway saw it.

    Attributes:
        usage: what was produced.
        measured: how fast it was sent.
        ending: ``done``; ``disconnected`` (the client left); ``failed`` (the worker broke off).
    """

    usage: Usage
    measured: Measured
    ending: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was billed, once it is durable.

    Attributes:
        tier_asked: the tier the request named.
        tier_delivered: the tier whose promise was met, which is the one that is billed.
        charged_nanodollars: what the tenant pays.
        pool: where it was made.
        worker: who made it.
    """

    tier_asked: Tier
    tier_delivered: Tier
    charged_nanodollars: int
    pool: PoolID
    worker: WorkerID

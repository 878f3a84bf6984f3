"""A request on its way through the factory, and what came of it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tokenworks.core.ids import (
    AgentName,
    EngineerID,
    KeyID,
    ModelName,
    PoolID,
    RequestID,
    RunID,
    TeamID,
    TenantID,
    WorkerID,
)
from tokenworks.core.needs import Hints, Needs
from tokenworks.core.scopes import Scopes
from tokenworks.core.slo import Measured, Tier
from tokenworks.core.token_sums import completion_tokens, prompt_tokens
from tokenworks.core.trace_place import Trace

Ending = Literal["done", "disconnected", "failed"]
"""``done``; the client left; the worker broke off."""

CHAT_PATH: Final = "/v1/chat/completions"
"""Where a worker takes requests for answers."""

JSON_TYPE: Final = "application/json"

MeteredBy = Literal["worker", "gateway"]
"""Who counted an answer's tokens: the worker said how many, or the gateway counted what it saw."""


class Payer(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Who asks and who pays: the path through the quota tree, and the agent's name for reports.

    Attributes:
        tenant: the organisation, which pays.
        team: a team of the tenant.
        engineer: a person of the team.
        key: the key's public id, never its secret.
        agent: the name of the agent that asked, if it was one.
        run: the agent's run, the innermost level of the quota tree.
    """

    tenant: TenantID
    team: TeamID | None
    engineer: EngineerID | None
    key: KeyID
    agent: AgentName | None = None
    run: RunID | None = None


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway may know of a key.

    Attributes:
        key: its public id, never the secret.
        tenant: who pays.
        team: the tenant's team that it belongs to, if any.
        engineer: the person that it belongs to, if any.
        tier_default: the tier of a request that names none.
        labels: data labels of all its requests, sorted; see ``needs.Needs``.
        scopes: its limits; None for a key without.
    """

    key: KeyID
    tenant: TenantID
    tier_default: Tier
    team: TeamID | None = None
    engineer: EngineerID | None = None
    labels: tuple[str, ...] = ()
    scopes: Scopes | None = None


class Passing(msgspec.Struct, frozen=True, kw_only=True):
    """How a request is passed on as it came, instead of as a POST of ours.

    Attributes:
        method: the HTTP method.
        target: path and query.
        headers: names in lower case; neither the connection's own nor keys.
    """

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def repeatable(self) -> bool:
        """Whether HTTP lets it be sent again by whoever cannot tell what became of it.

        Source:
            RFC 9110, section 9.2.2, Idempotent Methods.
        """
        return self.method in _IDEMPOTENT


_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One request, parsed and checked, as the factory takes it.

    Attributes:
        request: unique for ever; ids of one process rise with time.
        key: who asks.
        model: the model asked for.
        tier: the tier asked for.
        body: the JSON to send to a worker, ``stream`` and usage already switched on; ``stream`` off
            where it is to answer in one piece.
        input_tokens_max: an upper bound on the prompt's tokens.
        output_tokens_max: the most tokens that the worker is allowed to make.
        prefix: hashes of the prompt's blocks, each chained on the one before it, salted.
        arrived_ns: when the request's last byte came, on the driver's clock.
        agent: the name of the agent that asks, if it is one.
        run: the agent's run.
        batch: work that may wait, at the batch rate.
        extra_fields: the kinds of parts in messages that are not text, and the names of fields in
            the body that are neither OpenAI's nor samplers known to be safe; an engine's adapter
            may refuse them.
        cache_salt: what engines that keep tenants' caches apart are told, 32 hex digits.
        needs: what the worker must have; None if any of the model will do.
        session: the conversation that it belongs to, by a name of the tenant's.
        hints: what its agent knows of it.
        worker_path: where a worker takes it.
        route: the gateway's route that it came by, one of a few.
        content_type: what ``body`` is.
        passing: how it is passed on as it came; its answer comes back as it is, errors too.
        caller_request: its caller's own name for it.
        trace: where it stands in a trace, which its worker is told.
        in_one_piece: an answer's worker is asked for all of it at once.
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
    agent: AgentName | None = None
    run: RunID | None = None
    batch: bool = False
    extra_fields: tuple[str, ...] = ()
    cache_salt: str = ""
    needs: Needs | None = None
    session: str | None = None
    hints: Hints | None = None
    worker_path: str = CHAT_PATH
    route: str = CHAT_PATH
    content_type: str = JSON_TYPE
    passing: Passing | None = None
    caller_request: str | None = None
    trace: Trace | None = None
    in_one_piece: bool = False


class Usage(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Tokens of one answer in disjoint classes; 0 means none, never unknown.

    Attributes:
        uncached_input_tokens: text of the prompt that was computed.
        cached_input_tokens: prompt tokens, of any kind, found in a prefix cache.
        output_tokens: text of the answer, reasoning left out.
        cache_write_tokens: text of the prompt that was computed and kept for later at the
            caller's wish; engines that cache by themselves report none.
        reasoning_tokens: made before the answer and not part of it.
        audio_input_tokens, image_input_tokens: sound and pictures of the prompt, computed.
        audio_output_tokens, image_output_tokens: sound and pictures made.
    """

    uncached_input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt."""
        return prompt_tokens(self)

    @property
    def completion_tokens(self) -> int:
        """Everything that was made."""
        return completion_tokens(self)


TOKEN_CLASSES: Final = Usage.__struct_fields__
"""The names of the classes, in the order in which usage, prices and rollups list them."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How an answer ended, as the gateway saw it.

    Attributes:
        usage: what was produced.
        measured: how fast it was sent.
        ending: how it ended.
        metered_by: who counted the tokens.
        streamed: whether the caller had the tokens as they were made: it waits for the end alone.
    """

    usage: Usage
    measured: Measured
    ending: Ending
    metered_by: MeteredBy = "worker"
    streamed: bool = False


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was billed, once it is durable.

    Attributes:
        tier_asked: the tier the request named.
        tier_delivered: the tier whose promise was met, which is the one that is billed.
        charged_nanodollars: what the tenant pays, before credits.
        credited_nanodollars: what it gets back because the asked tier's promise was broken.
        cost_nanodollars: its share of its worker's energy and capital.
        waited_ns: from its arrival until it was sent to who made it.
        pool: where it was made.
        worker: who made it.
    """

    tier_asked: Tier
    tier_delivered: Tier
    charged_nanodollars: int
    pool: PoolID
    worker: WorkerID
    credited_nanodollars: int = 0
    cost_nanodollars: int = 0
    waited_ns: int = 0

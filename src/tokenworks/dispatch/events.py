"""What the dispatcher is told: a closed union of events, written to the journal as they come.

Messages may come late or twice; such an event changes nothing, gives no command and is counted.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from tokenworks.core.ids import ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.needs import Hints, Needs, Offers
from tokenworks.core.slo import Promise, Tier
from tokenworks.perf.timing import Timing


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """A bound on everything that the dispatcher keeps.

    Attributes:
        queue_len_max: requests that may wait per model, for each tier.
        retries_max: times that a request is sent again after its worker broke off.
        retry_percent: so many of 100 requests of a model are sent again at most, beside a few that
            ``budgets`` says; None for no such bound, as in journals of before.
        hedge_percent: so many of 100 requests of a model are sent to a second worker at most, see
            ``hedging``; 0 for none.
        hedge_after_percent: of a tier's TTFT promise, after which a worker that has said nothing of
            a request should have.
        prefix_blocks_max: blocks in the prefix index, over all workers.
        prefix_len_max: blocks of one prompt that are looked at; the rest is ignored.
        prefix_ttl_ns: how long a prefix that was sent is believed to be cached; 0 for ever.
        imbalance_requests_max: the largest difference of running requests between workers at
            which a prefix hit still outweighs load.
        workers_max: workers up at one time.
        models_max: models that ever had a worker.
        slots_max: slots of one worker; more are not used.
        ended_max: ended requests whose names are kept to recognise late messages.
    """

    queue_len_max: dict[Tier, int]
    retries_max: int = 2
    retry_percent: int | None = None
    hedge_percent: int = 0
    hedge_after_percent: int = 50
    prefix_blocks_max: int = 100_000
    prefix_len_max: int = 512
    prefix_ttl_ns: int = 0
    imbalance_requests_max: int = 8
    workers_max: int = 1_024
    models_max: int = 256
    slots_max: int = 4_096
    ended_max: int = 1_024


class TokenPrice(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What tokens earn at one tier, in micro-dollars per 1M: the caller's price and, at free, ads.

    Attributes:
        input_udollars_per_mtok: prompt tokens that are computed.
        cached_udollars_per_mtok: prompt tokens from the prefix cache.
        output_udollars_per_mtok: tokens made.
    """

    input_udollars_per_mtok: int
    cached_udollars_per_mtok: int
    output_udollars_per_mtok: int


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which policy decides, and what it may be told.

    Attributes:
        name: one of ``policies.NAMES``, or of a policy that the operator has brought.
        batch_cap: requests that are sent to one worker at once at most; None for its slots.
        queue_at_worker: send beyond a worker's slots, as routers without a queue of their own do;
            its engine then lets requests wait.
        seed: for policies that throw dice.
        split: for ``static-split``: by tier rank, how many workers serve it, in the order in which
            they came up.
        full_percent: for ``static-split``: how much of the batch that a promise allows is used.
    """

    name: str = "promises"
    batch_cap: int | None = None
    queue_at_worker: bool = False
    seed: int = 1
    split: tuple[int, ...] = ()
    full_percent: int = 100


class PoolScale(msgspec.Struct, frozen=True, kw_only=True):
    """A pool whose number of workers may change.

    Attributes:
        pool: which.
        model: that it serves.
        workers_min: it has at least so many, at least 1.
        workers_max: and at most so many.
        start_ns: how long a worker takes to come up.
    """

    pool: PoolID
    model: ModelName
    workers_min: int
    workers_max: int
    start_ns: int


class Configured(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Promises and limits; the first event of every journal, and again when they change.

    Attributes:
        promises: one per tier.
        limits: what may be kept; shorter queues hold for newcomers.
        policy: who decides.
        prices: what a token earns at each tier, by model, for policies that look at money.
        scaling: pools whose number of workers may change; unset if none's may.
    """

    promises: dict[Tier, Promise]
    limits: Limits
    policy: PolicySettings = PolicySettings()
    prices: dict[ModelName, dict[Tier, TokenPrice]] = {}
    scaling: tuple[PoolScale, ...] | UnsetType = UNSET


class PrefilledBy(msgspec.Struct, frozen=True, kw_only=True):
    """Who prefills for workers that only decode, where their driver chooses who does.

    Attributes:
        workers: how many do, for all of a model that are told of them.
        timing: of the iterations of one; of the slowest, if they differ.
        batch_tokens_max: tokens that one iteration of it computes at most.
    """

    workers: int
    timing: Timing
    batch_tokens_max: int


class WorkerUp(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker can take requests, or was measured again.

    Attributes:
        worker: its name, unique among the workers that are up.
        pool: the pool it belongs to.
        model: what it serves.
        slots: requests that its engine runs side by side, at least 1.
        curve: measured pairs (batch, tokens per second per user), batches from 1 up, ascending.
        timing: how long its iterations take, where that is known.
        kv_blocks: its KV cache, where that is known.
        block_tokens: tokens in one block of it, and in one block of ``Arrived.prefix``.
        batch_tokens_max: tokens that one iteration computes at most.
        link_bytes_per_s: how fast its engine gives a KV cache to the others of its model that have
            such a link, and takes one from them; 0 if it does neither.
        kv_bytes_per_token: of that cache.
        offers: labels and adapters that it has; unset if it has none.
        preempts: its engine can stop a request whose driver keeps what it has made; unset if not.
        host_bytes_per_s: how fast it moves KV blocks to a place in its host's memory, and back;
            unset if it has none.
    """

    worker: WorkerID
    pool: PoolID
    model: ModelName
    slots: int
    curve: tuple[tuple[int, int], ...]
    timing: Timing | None = None
    kv_blocks: int | None = None
    block_tokens: int = 64
    batch_tokens_max: int = 8_192
    link_bytes_per_s: int = 0
    kv_bytes_per_token: int = 0
    offers: Offers | UnsetType = UNSET
    preempts: bool | UnsetType = UNSET
    host_bytes_per_s: int | UnsetType = UNSET


class DecoderUp(WorkerUp, frozen=True, kw_only=True, tag=True):
    """The same of a worker that only decodes, and for which its driver chooses who prefills.

    Attributes:
        prefilled_by: who does.
    """

    prefilled_by: PrefilledBy

    @classmethod
    def of(cls, up: WorkerUp, prefilled_by: PrefilledBy) -> DecoderUp:
        """What is told of a worker, with who prefills for it."""
        return cls(**msgspec.structs.asdict(up), prefilled_by=prefilled_by)


class WorkerDown(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker takes nothing any more and what it was doing is lost.

    Requests that it only prefilled for others are not taken for lost: ``Failed`` says which are.
    """

    worker: WorkerID
    why: str


class Arrived(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A request came whose tokens are reserved.

    Attributes:
        request: unique for ever.
        tenant: who is served in turn with the other tenants of the tier.
        model: what it asks for.
        tier: the tier it asks for.
        input_tokens_max: an upper bound on the prompt's tokens.
        output_tokens_max: the most tokens that may be made.
        prefix: hashes of the prompt's blocks, each chained on the one before it, in [0, 2**64).
        arrived_ns: when its last byte came, on the driver's clock.
        session: the conversation or agent that it belongs to, if it says.
        needs: what the worker must have; unset if any of the model will do.
        hints: what its agent knows of it, if it says.
        once: no second worker may be asked while one has it; unset if one may.
        unheard: nobody hears when its prompt has been read, as its answer comes in one piece; unset
            if one hears.
    """

    request: RequestID
    tenant: TenantID
    model: ModelName
    tier: Tier
    input_tokens_max: int
    output_tokens_max: int
    prefix: tuple[int, ...]
    arrived_ns: int
    session: str | None = None
    needs: Needs | UnsetType = UNSET
    hints: Hints | UnsetType = UNSET
    once: bool | UnsetType = UNSET
    unheard: bool | UnsetType = UNSET


class Started(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker's first bytes of an answer came.

    Attributes:
        request: of which.
        worker: whose, of a request that two have; unset for the one that was sent it first.
    """

    request: RequestID
    worker: WorkerID | UnsetType = UNSET


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An answer is whole.

    Attributes:
        request: which one.
        output_tokens: tokens made.
        cached_input_tokens: prompt tokens that the worker took from its prefix cache.
        input_tokens: of the whole prompt, where somebody has counted them.
        worker: see ``Started``, which may have been lost.
    """

    request: RequestID
    output_tokens: int
    cached_input_tokens: int
    input_tokens: int | None = None
    worker: WorkerID | UnsetType = UNSET


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker broke off one request and is otherwise up.

    Where another one has the request, too, that one goes on.

    Attributes:
        request: which one.
        worker: who broke off; a message of an earlier attempt's worker is late.
        started: whether bytes of the answer came before, or the worker may have carried out what
            must not be carried out twice; such a request is not sent again.
    """

    request: RequestID
    worker: WorkerID
    started: bool


class Withdrawn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The client left, wherever its request is."""

    request: RequestID


class BlocksStored(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker's engine says that it has KV blocks; see ``Arrived.prefix`` for their hashes."""

    worker: WorkerID
    blocks: tuple[int, ...]


class BlocksRemoved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker's engine says that it has dropped KV blocks; all of them, if ``blocks`` is None.

    A driver that finds a gap in what an engine publishes tells None: nothing is known any more.
    """

    worker: WorkerID
    blocks: tuple[int, ...] | None


class Ticked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The timer fired."""


Event = (
    Configured
    | WorkerUp
    | DecoderUp
    | WorkerDown
    | Arrived
    | Started
    | Finished
    | Failed
    | Withdrawn
    | BlocksStored
    | BlocksRemoved
    | Ticked
)
"""Everything that can be told to the dispatcher."""

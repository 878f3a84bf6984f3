"""Small factories, workloads and faults, drawn from a seed.

Each run leaves some of what can be out and exaggerates some of the rest: caches that hold two
prompts, one tenant or five, patience of a tenth of a second, messages of which a third is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.ids import LimitID, ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.needs import PRIORITY_MAX, Hints, Needs, Offers
from tokenworks.core.rng import mix64
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S, PPM
from tokenworks.dispatch.events import Configured, Limits, PolicySettings, PoolScale
from tokenworks.dispatch.policies import NAMES
from tokenworks.dispatch.policy import Dice
from tokenworks.dispatch.settings import token_prices
from tokenworks.ledger.quota_records import Limit, NodeID
from tokenworks.perf.timing import FS_PER_NS, Knot, Timing
from tokenworks.twin.faults import (
    BreakOff,
    Change,
    Crash,
    CutOff,
    Echo,
    Fault,
    FaultPlan,
    Hang,
    Jump,
    Leave,
    Noise,
    PutLimits,
    Revoke,
    Slow,
    Stall,
    TurnPage,
    chance,
)
from tokenworks.twin.kinds import MODEL
from tokenworks.twin.network import KINDS
from tokenworks.twin.records import Role, TwinRequest, WorkerSpec

BLOCK_TOKENS: Final = 16
LABELS: Final = ("eu", "medical")
ADAPTERS: Final = ("support",)
_NEEDS: Final = 0x6E65656473
_HOSTS: Final = 0x686F737473
_KNOTS: Final = 0x6B6E6F7473
_SCALING: Final = 0x7363616C65
_PREEMPTING: Final = 0x707265656D7074
_PRIORITIES: Final = 0x7072696F72
_BUDGETS: Final = 0x62756467657473
_MONEY: Final = 0x6D6F6E6579
WORKERS_MAX: Final = 6
_MODELS: Final = (MODEL, ModelName("other"))
_FS_PER_US: Final = 1_000 * FS_PER_NS
_MS: Final = NS_PER_MS
_ROLES: Final[tuple[tuple[Role, ...], ...]] = (
    ("prefill",),
    ("decode",),
    ("both", "decode", "prefill"),
)
"""Of the first, the second and each other worker where prefill and decode are split."""
_T = TypeVar("_T")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """All that a swarm run follows from.

    Attributes:
        seed: what it was drawn from.
        workers: the factory.
        configured: the dispatcher's first event.
        price_book: the text of the book; the tokens' prices in ``configured`` are its.
        requests: the workload.
        quotas: limits of tenants.
        plan: what goes wrong.
        exact: step engines iteration by iteration.
        shadow_from: the event after which the dispatcher is restored beside itself.
    """

    seed: int
    workers: tuple[WorkerSpec, ...]
    configured: Configured
    price_book: str
    requests: tuple[TwinRequest, ...]
    quotas: tuple[Limit, ...] = ()
    plan: FaultPlan = FaultPlan()
    exact: bool = False
    shadow_from: int = 0


def draw(seed: int, policies: Sequence[str] = NAMES) -> Case:
    """The case of a seed; the same on any machine.

    Args:
        seed: any number from 0 up.
        policies: one of these dispatches.
    """
    dice = Dice(mix64(seed + 1))
    book = _book(dice)
    workers = _workers(dice)
    settings = PolicySettings(
        name=_pick(dice, policies),
        batch_cap=_pick(dice, (None, None, 1, 3, 8)),
        queue_at_worker=chance(dice, PPM // 8),
        seed=1 + dice.below(1_000),
        split=tuple(dice.below(3) for _ in Tier) if chance(dice, PPM // 2) else (),
    )
    echoes = chance(dice, PPM * 2 // 5)
    # What is told once more is only known as old while its name is kept.
    ended_max = 1_024 if echoes else _pick(dice, (4, 60, 1_024))
    configured = Configured(
        promises=book.promises,
        limits=_limits(dice, ended_max),
        policy=settings,
        prices=token_prices(book),
    )
    requests = _requests(dice, workers)
    # With dice of their own: what is drawn by the others stays as it was without them.
    workers, requests = _with_needs(Dice(mix64(seed ^ _NEEDS)), workers, requests)
    requests = _with_priorities(Dice(mix64(seed ^ _PRIORITIES)), requests)
    configured = _with_scaling(Dice(mix64(seed ^ _SCALING)), workers, configured)
    configured = _with_budgets(Dice(mix64(seed ^ _BUDGETS)), configured)
    workers = _with_preempting(Dice(mix64(seed ^ _PREEMPTING)), workers)
    workers = _with_hosts(Dice(mix64(seed ^ _HOSTS)), workers)
    workers = _with_knots(Dice(mix64(seed ^ _KNOTS)), workers)
    quotas = _quotas(dice, requests)
    plan = _plan(dice, workers, requests, configured, echoes=echoes)
    operator = _operator(Dice(mix64(seed ^ _MONEY)), requests, quotas, configured, plan.heal_ns)
    return Case(
        seed=seed,
        workers=workers,
        configured=configured,
        price_book=book.text,
        requests=requests,
        quotas=quotas,
        plan=msgspec.structs.replace(plan, faults=(*plan.faults, *operator)),
        exact=chance(dice, PPM // 10),
        shadow_from=1 + dice.below(2 * len(requests)),
    )


def _between(dice: Dice, least: int, most: int) -> int:
    return least + dice.below(most - least + 1)


def _pick(dice: Dice, choices: Sequence[_T]) -> _T:
    return choices[dice.below(len(choices))]


# Factories.


def _workers(dice: Dice) -> tuple[WorkerSpec, ...]:
    count = _between(dice, 1, WORKERS_MAX)
    split = count > 1 and chance(dice, PPM // 3)
    like = chance(dice, PPM // 2)
    models = _MODELS if not split and chance(dice, PPM // 5) else (MODEL,)
    specs: list[WorkerSpec] = []
    for number in range(count):
        role: Role = "both"
        if split:
            role = _pick(dice, _ROLES[min(number, 2)])
        spec = specs[0] if like and specs else _worker(dice)
        specs.append(
            msgspec.structs.replace(
                spec,
                worker=WorkerID(f"w{number}"),
                pool=PoolID(f"p{number % 2}"),
                model=_pick(dice, models),
                role=role,
            )
        )
    return tuple(specs)


def _worker(dice: Dice) -> WorkerSpec:
    slots = _pick(dice, (1, 2, 4, 8, 16))
    return WorkerSpec(
        worker=WorkerID("w"),
        pool=PoolID("p"),
        model=MODEL,
        timing=Timing(
            launch_fs=_pick(dice, (1_000, 5_000, 20_000)) * _FS_PER_US,
            sequence_fs=_pick(dice, (0, 50, 500)) * _FS_PER_US,
            context_token_fs=_pick(dice, (0, 1_000, 100_000)) * FS_PER_NS // 1_000,
            prefill_token_fs=_pick(dice, (5, 50)) * _FS_PER_US,
            prefill_context_fs=_pick(dice, (0, 100_000)),
        ),
        slots=slots,
        kv_blocks=_pick(dice, (24, 40, 80, 400)),
        block_tokens=BLOCK_TOKENS,
        batch_tokens_max=max(slots, _pick(dice, (16, 64, 512))),
        context_tokens_typical=_between(dice, 50, 400),
        start_ns=_pick(dice, (0, 0, 300 * _MS)),
        kv_bytes_per_token=1_000,
        link_bytes_per_s=_pick(dice, (10**6, 10**8)),
        power_w=1_000,
        capital_udollars_per_hour=10_000_000,
    )


def _promises(dice: Dice) -> dict[Tier, Promise]:
    ttfts_ms = sorted((_pick(dice, (50, 500, 5_000)) for _ in Tier), reverse=True)
    speeds = sorted(_pick(dice, (1, 20, 100)) for _ in Tier)
    return {
        tier: Promise(
            ttft_ns=ttft_ms * _MS,
            interactivity_tokens_per_s=speed,
            grace_ns=_pick(dice, (0, 300)) * _MS,
            patience_ns=_pick(dice, (100, 1_000, 5_000)) * _MS,
            output_tokens_default=64,
        )
        for tier, ttft_ms, speed in zip(Tier, ttfts_ms, speeds, strict=True)
    }


def _book(dice: Dice) -> PriceBook:
    """Drawn promises and prices, with credits, a night rate and a discount here and there."""
    lines = ['name = "swarm"', "effective = 2026-11-24", 'source = "drawn"']
    lines.append(f"ad_income_udollars_per_mtok = {_pick(dice, (0, 499_999))}")
    for tier, promise in _promises(dice).items():
        lines += [
            f"[tier.{tier}]",
            f"ttft_ms = {promise.ttft_ns // _MS}",
            f"interactivity_tokens_per_s = {promise.interactivity_tokens_per_s}",
            f"grace_ms = {promise.grace_ns // _MS}",
            f"patience_ms = {promise.patience_ns // _MS}",
            f"output_tokens_default = {promise.output_tokens_default}",
            f"credit_ppm = {_pick(dice, (0, 100_000, PPM))}",
        ]
        for model in _MODELS:
            lines += [
                f"[price.{model}.{tier}]",
                f"input_udollars_per_mtok = {dice.below(10**7)}",
                f"cached_input_udollars_per_mtok = {dice.below(10**6)}",
                f"output_udollars_per_mtok = {dice.below(10**9)}",
            ]
    if chance(dice, PPM // 2):
        lines += ["[[off_peak]]", 'name = "night"', "hours_utc = [22, 6]"]
        lines.append(f"rate_ppm = {dice.below(PPM)}")
    if chance(dice, PPM // 2):
        lines += ["[discount.t0]", f"rate_ppm = {dice.below(PPM)}"]
    return parse_price_book("\n".join(lines) + "\n")


def _limits(dice: Dice, ended_max: int) -> Limits:
    return Limits(
        queue_len_max={tier: _pick(dice, (0, 2, 10, 100, 100)) for tier in Tier},
        retries_max=_between(dice, 0, 3),
        prefix_blocks_max=_pick(dice, (0, 40, 1_000, 10_000)),
        prefix_len_max=_pick(dice, (1, 8, 512)),
        prefix_ttl_ns=_pick(dice, (0, NS_PER_S)),
        imbalance_requests_max=_between(dice, 0, 8),
        ended_max=ended_max,
    )


# Workloads.


def _requests(dice: Dice, workers: Sequence[WorkerSpec]) -> tuple[TwinRequest, ...]:
    count = _between(dice, 50, _pick(dice, (80, 150, 300)))
    gap_ns = _pick(dice, (1, 10, 40, 150)) * _MS
    longest = _pick(dice, (60, 200, min(spec.kv_blocks for spec in workers) * BLOCK_TOKENS))
    answer = _pick(dice, (3, 30, 120))
    tenants, families = _between(dice, 1, 5), _between(dice, 1, 20)
    tiers = tuple(Tier) if chance(dice, PPM // 2) else (_pick(dice, tuple(Tier)),)
    in_sessions = chance(dice, PPM // 3)
    # Of a model that nobody serves are a few, too.
    models = [*(spec.model for spec in workers), *(_MODELS if chance(dice, PPM // 10) else ())]
    requests: list[TwinRequest] = []
    at_ns = 0
    for number in range(count):
        at_ns += dice.below(2 * gap_ns + 1)
        tokens, output = _between(dice, 1, longest), _between(dice, 1, answer)
        tenant, family = dice.below(tenants), dice.below(families)
        root = mix64(tenant << 32 | family)
        before = requests[dice.below(len(requests))] if requests else None
        follows = in_sessions and before is not None and chance(dice, PPM // 4)
        requests.append(
            TwinRequest(
                request=RequestID(f"r{number}"),
                tenant=TenantID(f"t{tenant}"),
                model=_pick(dice, models),
                tier=_pick(dice, tiers),
                at_ns=at_ns,
                input_tokens=tokens,
                output_tokens=output,
                output_tokens_max=output * _pick(dice, (1, 2, 8)),
                blocks=tuple(mix64(root + depth) for depth in range(tokens // BLOCK_TOKENS)),
                wait_for=(before.request,) if follows and before is not None else (),
                delay_ns=dice.below(500 * _MS) if follows else 0,
            )
        )
    return tuple(requests)


def _with_needs(
    dice: Dice, workers: tuple[WorkerSpec, ...], requests: tuple[TwinRequest, ...]
) -> tuple[tuple[WorkerSpec, ...], tuple[TwinRequest, ...]]:
    """Labels and adapters that some workers have and some requests need, and what agents say."""
    if chance(dice, PPM // 2):
        return workers, requests
    share = _pick(dice, (5, 30, 90))
    offering = tuple(
        msgspec.structs.replace(
            spec,
            offers=Offers(
                labels=tuple(label for label in LABELS if dice.below(100) < 60),
                adapters=ADAPTERS if dice.below(100) < 50 else (),
            ),
        )
        for spec in workers
    )
    needing = []
    for number, request in enumerate(requests):
        needs = hints = None
        if dice.below(100) < share:
            needs = Needs(
                labels=_pick(dice, ((), LABELS[:1], LABELS[1:], LABELS)),
                adapter=_pick(dice, (None, ADAPTERS[0])),
            )
        if dice.below(100) < share:
            hints = Hints(
                output_tokens=_pick(dice, (None, 1, 1_000)),
                tool_ns=_pick(dice, (None, 0, 200 * _MS, 5_000 * _MS)),
                session_ends=dice.below(4) == 0,
            )
        # Those that begin alike are of one session, as far as anybody can tell.
        session = f"s{request.blocks[0] % 50}" if request.blocks else f"s{number % 7}"
        needing.append(msgspec.structs.replace(request, needs=needs, hints=hints, session=session))
    return offering, tuple(needing)


def _with_priorities(dice: Dice, requests: tuple[TwinRequest, ...]) -> tuple[TwinRequest, ...]:
    """What agents say of how urgent requests are, in a third of the cases."""
    if chance(dice, PPM * 2 // 3):
        return requests
    share = _pick(dice, (10, 50, 100))
    return tuple(
        msgspec.structs.replace(
            each,
            hints=msgspec.structs.replace(
                each.hints or Hints(), priority=dice.below(PRIORITY_MAX + 1)
            ),
        )
        if dice.below(100) < share
        else each
        for each in requests
    )


def _with_scaling(dice: Dice, workers: Sequence[WorkerSpec], configured: Configured) -> Configured:
    """Pools that may have fewer workers than there are, in a third of the cases.

    Only of those whose workers all serve one model, and both prefill and decode.
    """
    if chance(dice, PPM * 2 // 3):
        return configured
    scaling = []
    for pool in sorted({spec.pool for spec in workers}):
        own = [spec for spec in workers if spec.pool == pool]
        if len({spec.model for spec in own}) == 1 and all(spec.role == "both" for spec in own):
            scaling.append(
                PoolScale(
                    pool=pool,
                    model=own[0].model,
                    workers_min=_between(dice, 1, len(own)),
                    workers_max=len(own),
                    start_ns=own[0].start_ns,
                )
            )
    return msgspec.structs.replace(configured, scaling=tuple(scaling) or UNSET)


def _with_budgets(dice: Dice, configured: Configured) -> Configured:
    """In half of the cases second workers are asked, often sooner than is wise."""
    limits = msgspec.structs.replace(
        configured.limits,
        retry_percent=_pick(dice, (None, 0, 20)),
        hedge_percent=_pick(dice, (0, 0, 10, 100)),
        hedge_after_percent=_pick(dice, (0, 5, 50)),
    )
    return msgspec.structs.replace(configured, limits=limits)


def _with_preempting(dice: Dice, workers: tuple[WorkerSpec, ...]) -> tuple[WorkerSpec, ...]:
    """Engines that can stop a request whose tokens are kept: none, some or all."""
    share = _pick(dice, (0, 50, 100, 100))
    return tuple(
        msgspec.structs.replace(spec, preempts=dice.below(100) < share) for spec in workers
    )


def _with_hosts(dice: Dice, workers: tuple[WorkerSpec, ...]) -> tuple[WorkerSpec, ...]:
    """Engines with a place for KV blocks in their host's memory, large or small, fast or slow."""
    share = _pick(dice, (0, 50, 100, 100))
    return tuple(
        msgspec.structs.replace(
            spec,
            host_kv_blocks=_pick(dice, (3, 20, 1_000)),
            host_bytes_per_s=_pick(dice, (10**5, 10**7, 10**9)),
        )
        if dice.below(100) < share
        else spec
        for spec in workers
    )


def _with_knots(dice: Dice, workers: tuple[WorkerSpec, ...]) -> tuple[WorkerSpec, ...]:
    """In a fifth of the cases, engines whose time bends with the batch, as LPUs' and mixtures' do.

    Below a knot an LPU takes as long as for the knot's batch; experts are met by and by.
    """
    share = _pick(dice, (50, 100)) if chance(dice, PPM // 5) else 0
    return tuple(
        msgspec.structs.replace(spec, timing=_bent(dice, spec)) if dice.below(100) < share else spec
        for spec in workers
    )


def _bent(dice: Dice, spec: WorkerSpec) -> Timing:
    plain = spec.timing
    full = _between(dice, 1, spec.slots)
    experts_fs = plain.launch_fs * _pick(dice, (0, 1, 4))
    knots = []
    for batch in sorted({1, 1 + spec.slots // 4, 1 + spec.slots // 2, spec.slots + 1}):
        floor_fs = plain.launch_fs + max(batch, full) * plain.sequence_fs
        floor_fs += experts_fs * batch // (batch + 2)
        knots.append(Knot(batch, floor_fs, plain.context_token_fs * _pick(dice, (1, 1, 2))))
    return msgspec.structs.replace(plain, knots=tuple(knots))


def _quotas(dice: Dice, requests: Sequence[TwinRequest]) -> tuple[Limit, ...]:
    """Limits of some tenants, under what their requests would hold together, or far above."""
    limits = []
    for tenant in sorted({request.tenant for request in requests}):
        if not chance(dice, PPM // 2):
            continue
        own = [request for request in requests if request.tenant == tenant]
        tokens = sum(request.input_tokens + request.output_tokens_max for request in own)
        limits.append(
            Limit(
                limit=LimitID(f"tokens of {tenant}"),
                node=NodeID(f"tenant:{tenant}"),
                unit="tokens",
                period=_pick(dice, ("hour", "lifetime")),
                amount=tokens * _pick(dice, (2, 8, 40)) // 10,
                tier=_pick(dice, (None, None, own[0].tier)),
            )
        )
        limits.append(
            Limit(
                limit=LimitID(f"money of {tenant}"),
                node=NodeID(f"tenant:{tenant}"),
                unit="nanodollars",
                period="day",
                amount=tokens * _pick(dice, (100, 3_000, 10**6)),
            )
        )
    return tuple(limits)


# Faults.


def _plan(
    dice: Dice,
    workers: Sequence[WorkerSpec],
    requests: Sequence[TwinRequest],
    configured: Configured,
    *,
    echoes: bool,
) -> FaultPlan:
    until_ns = max(request.at_ns for request in requests) + _pick(dice, (100, 1_000, 4_000)) * _MS
    faults: list[Fault] = []
    makers = (_crashes, _hangs, _cuts, _slows, _noises, _jumps, _stalls)
    for make in makers:
        if chance(dice, PPM * 2 // 5):
            faults += make(dice, workers, until_ns)
    if echoes:
        faults.append(_echo(dice, until_ns))
    if chance(dice, PPM // 2):
        leaving = _pick(dice, (3, 10, 50))
        for request in requests:
            if dice.below(100) < leaving:
                at_ns = request.at_ns + dice.below(_pick(dice, (1, 20, 400, 3_000)) * _MS)
                faults.append(Leave(request=request.request, at_ns=min(at_ns, until_ns)))
    if chance(dice, PPM // 4):
        for request in requests:
            if dice.below(100) < 10:
                at_ns = request.at_ns + dice.below(_pick(dice, (20, 400)) * _MS)
                faults.append(BreakOff(request=request.request, at_ns=min(at_ns, until_ns)))
    if chance(dice, PPM // 4):
        faults += _changes(dice, configured, until_ns)
    noisy = any(isinstance(each, Noise) for each in faults)
    delayed = chance(dice, PPM // 4)
    return FaultPlan(
        faults=tuple(faults),
        to_worker_ns=dice.below(20 * _MS) if delayed else 0,
        to_dispatcher_ns=dice.below(20 * _MS) if delayed else 0,
        probe_ns=_pick(dice, (100, 500, 2_000)) * _MS if noisy else None,
        publishes=chance(dice, PPM // 3),
        heal_ns=until_ns,
    )


def _window(dice: Dice, until_ns: int) -> tuple[int, int]:
    a, b = dice.below(until_ns), dice.below(until_ns)
    return min(a, b), max(a, b) + 1


def _crashes(dice: Dice, workers: Sequence[WorkerSpec], until_ns: int) -> list[Fault]:
    faults: list[Fault] = []
    for _ in range(_between(dice, 1, 5)):
        at_ns, back_ns = _window(dice, until_ns)
        notice_ns = _pick(dice, (0, 50 * _MS, NS_PER_S))
        name = _pick(dice, workers).worker
        faults.append(Crash(worker=name, at_ns=at_ns, notice_ns=notice_ns, until_ns=back_ns))
    return faults


def _hangs(dice: Dice, workers: Sequence[WorkerSpec], until_ns: int) -> list[Fault]:
    faults: list[Fault] = []
    for _ in range(_between(dice, 1, 4)):
        at_ns, on_ns = _window(dice, until_ns)
        dead_ns = at_ns + dice.below(on_ns - at_ns) if chance(dice, PPM // 2) else None
        name = _pick(dice, workers).worker
        faults.append(Hang(worker=name, at_ns=at_ns, dead_ns=dead_ns, until_ns=on_ns))
    return faults


def _cuts(dice: Dice, workers: Sequence[WorkerSpec], until_ns: int) -> list[Fault]:
    faults: list[Fault] = []
    for _ in range(_between(dice, 1, 3)):
        at_ns, back_ns = _window(dice, until_ns)
        name = _pick(dice, workers).worker
        faults.append(CutOff(worker=name, at_ns=at_ns, until_ns=back_ns))
    return faults


def _slows(dice: Dice, workers: Sequence[WorkerSpec], until_ns: int) -> list[Fault]:
    faults: list[Fault] = []
    for _ in range(_between(dice, 1, 3)):
        at_ns, on_ns = _window(dice, until_ns)
        times_ppm = _pick(dice, (2, 5, 20)) * PPM
        name = _pick(dice, workers).worker
        faults.append(Slow(worker=name, at_ns=at_ns, until_ns=on_ns, times_ppm=times_ppm))
    return faults


def _noises(dice: Dice, workers: Sequence[WorkerSpec], until_ns: int) -> list[Fault]:  # noqa: ARG001
    kinds = KINDS if chance(dice, PPM // 2) else (_pick(dice, KINDS),)
    return [
        Noise(
            kinds=kinds,
            at_ns=0,
            until_ns=until_ns,
            lost_ppm=_pick(dice, (0, 10_000, 300_000)),
            repeated_ppm=_pick(dice, (0, 10_000, 300_000)),
            late_ppm=_pick(dice, (0, 100_000, PPM)),
            late_ns_max=_pick(dice, (1, 50, 800)) * _MS,
            seed=dice.below(2**32),
        )
    ]


def _jumps(dice: Dice, workers: Sequence[WorkerSpec], until_ns: int) -> list[Fault]:  # noqa: ARG001
    return [
        Jump(
            at_ns=dice.below(until_ns),
            by_ns=_pick(dice, (-1, 1)) * dice.below(_pick(dice, (_MS, 10 * NS_PER_S))),
        )
        for _ in range(_between(dice, 1, 4))
    ]


def _stalls(dice: Dice, workers: Sequence[WorkerSpec], until_ns: int) -> list[Fault]:  # noqa: ARG001
    at_ns, end_ns = _window(dice, until_ns)
    return [
        Stall(
            at_ns=at_ns,
            until_ns=end_ns,
            late_ns_max=_pick(dice, (0, 5, 500)) * _MS,
            fails_ppm=_pick(dice, (0, 50_000, 500_000)),
            again_ppm=_pick(dice, (0, 100_000, 500_000)),
            seed=dice.below(2**32),
        )
    ]


def _echo(dice: Dice, until_ns: int) -> Fault:
    return Echo(
        at_ns=0,
        until_ns=until_ns,
        told_ppm=_pick(dice, (20_000, 300_000)),
        late_ns_max=_pick(dice, (1, 500)) * _MS,
        seed=dice.below(2**32),
    )


def _changes(dice: Dice, configured: Configured, until_ns: int) -> list[Fault]:
    """Other promises and limits; sometimes another policy, or more or fewer slots."""
    faults: list[Fault] = []
    for _ in range(_between(dice, 1, 3)):
        limits = _limits(dice, configured.limits.ended_max)
        told = configured.limits
        limits = msgspec.structs.replace(
            limits,
            slots_max=_pick(dice, (1, 4, 4_096)),
            retry_percent=told.retry_percent,
            hedge_percent=told.hedge_percent,
            hedge_after_percent=told.hedge_after_percent,
        )
        policy = configured.policy
        if chance(dice, PPM // 2):
            policy = msgspec.structs.replace(policy, name=_pick(dice, NAMES))
        changed = msgspec.structs.replace(
            configured, promises=_promises(dice), limits=limits, policy=policy
        )
        faults.append(Change(at_ns=dice.below(until_ns), configured=changed))
    return faults


def _operator(
    dice: Dice,
    requests: Sequence[TwinRequest],
    quotas: tuple[Limit, ...],
    configured: Configured,
    until_ns: int,
) -> list[Fault]:
    """An operator who changes limits, keys and prices while requests are under way."""
    faults: list[Fault] = []
    if quotas and chance(dice, PPM // 3):
        for _ in range(_between(dice, 1, 3)):
            limits = tuple(
                msgspec.structs.replace(each, amount=each.amount * _pick(dice, (0, 1, 5, 20)) // 10)
                for each in quotas
                if dice.below(100) < 80
            )
            faults.append(PutLimits(at_ns=dice.below(until_ns), limits=limits))
    if chance(dice, PPM // 4):
        faults += [
            Revoke(at_ns=dice.below(until_ns), tenant=tenant)
            for tenant in sorted({request.tenant for request in requests})
            if chance(dice, PPM // 2)
        ]
    if chance(dice, PPM // 4):
        for _ in range(_between(dice, 1, 2)):
            book = _book(dice)
            other = msgspec.structs.replace(
                configured, promises=book.promises, prices=token_prices(book)
            )
            faults.append(
                TurnPage(at_ns=dice.below(until_ns), price_book=book.text, configured=other)
            )
    return faults

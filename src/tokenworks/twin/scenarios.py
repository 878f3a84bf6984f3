"""Factories to be run: three named fleets, and an operator's own from a TOML file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.catalogue.timings import EngineTiming
from tokenworks.catalogue.toml_text import read_toml
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.needs import Needs, Offers, nothing_offers
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.dispatch.events import Configured, Limits, PolicySettings, PoolScale
from tokenworks.dispatch.settings import parse_policy, settings_for
from tokenworks.perf.timing import Timing
from tokenworks.twin.kinds import KINDS, MODEL, measured_kind, twin_book
from tokenworks.twin.records import Role, Scenario, WorkerSpec
from tokenworks.twin.workload import MIX_DEFAULT, NeedShare, TierMix, checked_mix

FILE_BYTES_MAX: Final = 1_000_000
WORKERS_MAX: Final = 1_024
QUEUE_LEN_MAX: Final = 10_000
RETRY_PERCENT: Final = 20
"""Of a scenario's file that says nothing of it, as of a factory's."""

PREFIX_BLOCKS_MAX: Final = 2_000_000
PREFIX_TTL_NS: Final = 600 * NS_PER_S
ENERGY_UDOLLARS_PER_KWH: Final = 80_000

SHIFTING: Final = checked_mix(
    [
        (0, {Tier.FREE: 70, Tier.MEDIUM: 22, Tier.HIGH: 7, Tier.PREMIUM: 1}),
        (
            PPM // 2,
            {Tier.FREE: 20, Tier.MEDIUM: 25, Tier.HIGH: 30, Tier.PREMIUM: 15, Tier.ULTRA: 10},
        ),
        (PPM, {Tier.FREE: 70, Tier.MEDIUM: 22, Tier.HIGH: 7, Tier.PREMIUM: 1}),
    ]
)
"""A day in one run: cheap tokens at night, fast ones at noon."""

_FLEETS: Final[dict[str, tuple[tuple[tuple[str, int], ...], TierMix]]] = {
    "homogeneous": ((("even", 8),), MIX_DEFAULT),
    "mixed": ((("large", 6), ("fast", 2)), MIX_DEFAULT),
    "shifting": ((("even", 8),), SHIFTING),
}
NAMES: Final = tuple(_FLEETS)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A factory, and who comes to it if nobody says otherwise.

    Attributes:
        scenario: the factory.
        mix: at which tiers requests ask.
        tenants: how many there are.
        needs: shares of the requests that only some workers may serve.
        limits_said: names of the ``scenario``'s limits that somebody chose.
    """

    scenario: Scenario
    mix: TierMix = MIX_DEFAULT
    tenants: int = 16
    needs: tuple[NeedShare, ...] = ()
    limits_said: frozenset[str] = frozenset()


def build(name: str, workers: int | None = None, policy: str | None = None) -> Setting:
    """A named fleet.

    Args:
        name: one of ``NAMES``.
        workers: how many in all; kinds keep their proportion, each has at least one. None for
            the fleet's own number.
        policy: who dispatches; None for the dispatcher's own.

    Raises:
        ConfigInvalid: there is no such fleet, or it cannot have so many workers.
    """
    if name not in _FLEETS:
        raise ConfigInvalid(
            f"There is no scenario {name!r}.", hint=f"Take {', '.join(NAMES)}, or a TOML file."
        )
    groups, mix = _FLEETS[name]
    counts = _scaled([count for _, count in groups], workers)
    specs = [
        spec
        for (kind, _), count in zip(groups, counts, strict=True)
        for spec in _copies(KINDS[kind], kind, count)
    ]
    book = twin_book()
    scenario = Scenario(
        name=name,
        workers=tuple(specs),
        configured=configured_for(book, policy),
        book=book,
        energy_udollars_per_kwh=ENERGY_UDOLLARS_PER_KWH,
    )
    return Setting(scenario=scenario, mix=mix)


def engine_setting(name: str, engine: EngineTiming, workers: int) -> Setting:
    """A fleet of one measured engine. Its cost of capital holds its electricity.

    Args:
        name: of the engine in the catalogue.
        engine: what was measured.
        workers: how many.

    Raises:
        ConfigInvalid: there cannot be so many.
    """
    (count,) = _scaled([1], workers)
    spec = measured_kind(name, engine)
    book = twin_book(spec.model)
    scenario = Scenario(
        name=name,
        workers=tuple(_copies(spec, name, count)),
        configured=configured_for(book),
        book=book,
    )
    return Setting(scenario=scenario)


def configured_for(
    book: PriceBook, policy: str | None = None, limits: Limits | None = None
) -> Configured:
    """The dispatcher's first event; the one place where a policy's name reaches it.

    Raises:
        ConfigInvalid: there is no such policy.
    """
    limits = limits or Limits(
        queue_len_max=dict.fromkeys(Tier, QUEUE_LEN_MAX),
        prefix_blocks_max=PREFIX_BLOCKS_MAX,
        prefix_ttl_ns=PREFIX_TTL_NS,
    )
    return settings_for(book, limits, None if policy is None else parse_policy(policy))


def with_policy(scenario: Scenario, policy: str, own: Collection[str] = ()) -> Scenario:
    """The same factory under another policy; see ``parse_policy``."""
    return decided(scenario, parse_policy(policy, own))


def decided(scenario: Scenario, policy: PolicySettings) -> Scenario:
    """The same factory, where this policy decides."""
    configured = msgspec.structs.replace(scenario.configured, policy=policy)
    return msgspec.structs.replace(scenario, configured=configured)


def policy_name(scenario: Scenario) -> str:
    """Who dispatches."""
    return scenario.configured.policy.name


def _scaled(counts: list[int], workers: int | None) -> list[int]:
    """Counts in the same proportion that add up to ``workers``; each kind has at least one."""
    if workers is None:
        return counts
    if not len(counts) <= workers <= WORKERS_MAX:
        raise ConfigInvalid(
            f"There cannot be {workers} workers; this scenario has {len(counts)} to {WORKERS_MAX}."
        )
    total, left, scaled = sum(counts), workers, []
    for place, count in enumerate(counts):
        rest = len(counts) - place - 1
        share = max(1, min(left - rest, round(left * count / total))) if rest else left
        scaled.append(share)
        left, total = left - share, total - count
    return scaled


def _copies(spec: WorkerSpec, name: str, count: int) -> list[WorkerSpec]:
    return [
        msgspec.structs.replace(spec, worker=WorkerID(f"{name}-{number}"), pool=PoolID(name))
        for number in range(count)
    ]


# An operator's own file.

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    launch_fs: _Positive
    sequence_fs: _Natural
    context_token_fs: _Natural
    prefill_token_fs: _Natural
    prefill_context_fs: _Natural


class _Worker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of like workers; what is left out is as in its ``kind``."""

    count: _Positive
    kind: str | None = None
    model: str | None = None
    timing: _Timing | None = None
    slots: _Positive | None = None
    kv_blocks: _Positive | None = None
    block_tokens: _Positive | None = None
    batch_tokens_max: _Positive | None = None
    context_tokens_typical: _Natural | None = None
    role: Role | None = None
    start_ns: _Natural | None = None
    kv_bytes_per_token: _Natural | None = None
    link_bytes_per_s: _Natural | None = None
    power_w: _Natural | None = None
    idle_power_w: _Natural | None = None
    capital_udollars_per_hour: _Natural | None = None
    labels: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    workers_min: _Positive | None = None
    preempts: bool | None = None
    host_kv_blocks: _Natural | None = None
    host_bytes_per_s: _Natural | None = None


class _Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    queue_len_max: _Natural = QUEUE_LEN_MAX
    retries_max: _Natural = 2
    retry_percent: _Natural | UnsetType = UNSET
    hedge_percent: _Natural | UnsetType = UNSET
    hedge_after_percent: _Natural | UnsetType = UNSET
    prefix_blocks_max: _Natural = PREFIX_BLOCKS_MAX
    prefix_len_max: _Natural = 512
    imbalance_requests_max: _Natural = 8


class _MixPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    at_ppm: _Natural = 0
    free: _Natural = 0
    medium: _Natural = 0
    high: _Natural = 0
    premium: _Natural = 0
    ultra: _Natural = 0

    def weights(self) -> dict[Tier, int]:
        return dict(
            zip(Tier, (self.free, self.medium, self.high, self.premium, self.ultra), strict=True)
        )


class _NeedShare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    share_ppm: Annotated[int, msgspec.Meta(ge=0, le=PPM)]
    labels: tuple[str, ...] = ()
    adapter: str | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    worker: dict[str, _Worker]
    policy: str | None = None
    price_book: str | None = None
    energy_udollars_per_kwh: _Natural = ENERGY_UDOLLARS_PER_KWH
    tenants: _Positive = 16
    limits: _Limits = _Limits()
    mix: tuple[_MixPoint, ...] = ()
    needs: tuple[_NeedShare, ...] = ()


_NEEDED: Final = ("timing", "slots", "kv_blocks", "block_tokens", "batch_tokens_max")


def parse_scenario(text: str, read_book: Callable[[str], str]) -> Setting:
    """Read a scenario from TOML.

    Args:
        text: the file.
        read_book: gives the text of the price book that the file names.

    Raises:
        ConfigInvalid: not TOML, an unknown or missing key, an impossible figure, or a model
            without a price.
    """
    if len(text) > FILE_BYTES_MAX:
        raise ConfigInvalid(f"The scenario has {len(text)} characters, more than {FILE_BYTES_MAX}.")
    file = read_toml(
        text, _File, what="The scenario", hint="Compare it with the example in docs/twin.md."
    )
    book = twin_book() if file.price_book is None else parse_price_book(read_book(file.price_book))
    specs = [spec for name, group in file.worker.items() for spec in _group(name, group)]
    if not 1 <= len(specs) <= WORKERS_MAX:
        raise ConfigInvalid(f"The scenario has {len(specs)} workers; have 1 to {WORKERS_MAX}.")
    for field in ("model", "block_tokens"):
        values = sorted({str(getattr(spec, field)) for spec in specs})
        if len(values) > 1:
            raise ConfigInvalid(f"The workers differ in {field}: {values!r}.")
    if specs[0].model not in book.prices:
        raise ConfigInvalid(
            f"The model {specs[0].model!r} has no price in {book.price_id}.",
            hint=f"It prices {', '.join(book.prices)}.",
        )
    told: dict[str, Any] = msgspec.to_builtins(file.limits)  # without what is not set
    queue_len_max = dict.fromkeys(Tier, told.pop("queue_len_max"))
    limits = Limits(queue_len_max=queue_len_max, **{"retry_percent": RETRY_PERCENT, **told})
    configured = configured_for(book, file.policy, limits)
    if scaling := _scaling(file.worker, specs):
        configured = msgspec.structs.replace(configured, scaling=scaling)
    scenario = Scenario(
        name=file.name,
        workers=tuple(specs),
        configured=configured,
        book=book,
        energy_udollars_per_kwh=file.energy_udollars_per_kwh,
    )
    points = [(point.at_ppm, point.weights()) for point in file.mix]
    mix = checked_mix(points) if points else MIX_DEFAULT
    needs = _needs(file.needs, specs)
    return Setting(
        scenario=scenario,
        mix=mix,
        tenants=file.tenants,
        needs=needs,
        limits_said=frozenset(told),
    )


def _needs(shares: Sequence[_NeedShare], specs: Sequence[WorkerSpec]) -> tuple[NeedShare, ...]:
    """What requests need, if the workers offer it."""
    if sum(share.share_ppm for share in shares) > PPM:
        raise ConfigInvalid(f"The shares of [[needs]] are more than {PPM} together.")
    found = []
    for share in shares:
        needs = Needs(labels=_sorted_once("[[needs]]", share.labels), adapter=share.adapter)
        lacking = nothing_offers([spec.offers for spec in specs], needs)
        if lacking is not None:
            raise ConfigInvalid(
                f"[[needs]] asks for {lacking}, which no worker has.",
                hint="Give a worker `labels` or `adapters`.",
            )
        found.append(NeedShare(share_ppm=share.share_ppm, needs=needs))
    return tuple(found)


def _sorted_once(where: str, words: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(words)) != len(words):
        raise ConfigInvalid(f"{where} names one twice: {list(words)!r}.")
    return tuple(sorted(words))


def load_scenario(path: Path) -> Setting:
    """The same from a file; its price book's path is relative to it.

    Raises:
        ConfigInvalid: see ``parse_scenario``, or a file cannot be read.
    """
    return parse_scenario(_text(path), lambda name: _text(path.parent / name))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{str(path)!r} cannot be read: {error}.") from error


def _scaling(groups: Mapping[str, _Worker], specs: Sequence[WorkerSpec]) -> tuple[PoolScale, ...]:
    """The groups that may have fewer workers than they count."""
    found = []
    for name, group in groups.items():
        if group.workers_min is None:
            continue
        if group.workers_min > group.count:
            raise ConfigInvalid(
                f"[worker.{name}] workers_min is {group.workers_min}, more than its count."
            )
        first = next(spec for spec in specs if spec.pool == name)
        found.append(
            PoolScale(
                pool=first.pool,
                model=first.model,
                workers_min=group.workers_min,
                workers_max=group.count,
                start_ns=first.start_ns,
            )
        )
    return tuple(found)


_NOT_OF_A_SPEC: Final = frozenset({"count", "kind", "labels", "adapters", "workers_min"})


def _group(name: str, group: _Worker) -> list[WorkerSpec]:
    """The workers of one group of a file."""
    given = {
        field: value
        for field, value in msgspec.structs.asdict(group).items()
        if value is not None and field not in _NOT_OF_A_SPEC
    }
    given["offers"] = Offers(
        labels=_sorted_once(f"[worker.{name}] labels", group.labels),
        adapters=_sorted_once(f"[worker.{name}] adapters", group.adapters),
    )
    if group.timing is not None:
        given["timing"] = Timing(**msgspec.structs.asdict(group.timing))
    if group.count > WORKERS_MAX:
        raise ConfigInvalid(f"[worker.{name}] count is {group.count}, more than {WORKERS_MAX}.")
    if group.kind is not None:
        if group.kind not in KINDS:
            raise ConfigInvalid(
                f"[worker.{name}] kind is {group.kind!r}.", hint=f"Take {', '.join(KINDS)}."
            )
        spec = msgspec.structs.replace(KINDS[group.kind], **given)
    else:
        missing = [field for field in _NEEDED if field not in given]
        if missing:
            raise ConfigInvalid(
                f"[worker.{name}] lacks {missing!r}.",
                hint=f"Name them, or a kind to begin from: {', '.join(KINDS)}.",
            )
        given.setdefault("context_tokens_typical", 8_192)
        given["model"] = ModelName(given.get("model", MODEL))
        spec = WorkerSpec(worker=WorkerID(name), pool=PoolID(name), **given)
    if spec.batch_tokens_max < spec.slots:
        raise ConfigInvalid(
            f"[worker.{name}] has {spec.slots} slots and batch_tokens_max "
            f"{spec.batch_tokens_max}; each slot needs a token."
        )
    return _copies(spec, name, group.count)

"""Workers from the catalogue: systems of GPUs, of LPUs, or of both, as the twin runs them.

A kind is written as people write it: ``hgx-h200``, eight GPUs of a rack as ``vr-nvl72x8``, two
racks of LPUs beside one of GPUs as ``vr-nvl72+lpxx2``, LPUs alone as ``lpx``; with a part to play,
``vr-nvl72x8:prefill``, and how many of them, ``hgx-h200=6``, or from how many to how many as
requests wait, ``hgx-h200=2..6``. Its iterations are calibrated where rows of the model on that
accelerator were measured, and projected elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.records import Model, Projection, Record, Site, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.units import NS_PER_S, UDOLLARS_PER_DOLLAR
from tokenworks.perf.architecture import Shape, shape_of
from tokenworks.perf.case import check_context
from tokenworks.plan.assumptions import Assumption, used_by
from tokenworks.plan.mix_cost import cost_per_h, ship_date
from tokenworks.plan.mix_inputs import Hardware
from tokenworks.twin.machine_paces import (
    CONTEXT_TYPICAL,
    Measured,
    Pace,
    gpu_pace,
    lpu_pace,
    measured_pace,
    shared_pace,
)
from tokenworks.twin.records import Role, WorkerSpec

Mode = Literal["gpu", "gpu+lpu", "lpu"]
ALL_IN_SITE: Final = "us-hyperscale"
"""The site whose PUE the catalogue's all-in power holds."""
LOADED_FROM: Final = "g3-local-ssd"
"""The storage that a worker's weights are read from when it comes up."""
BLOCK_TOKENS: Final = 512
CHUNK_TOKENS: Final = 8_192
"""Of a prompt, that one attention group computes in an iteration: the engines' default."""
CHUNK_TOKENS_MAX: Final = 65_536
IDLE_PERCENT: Final = 40
"""Of its power that a worker takes when it has nothing to do; assumed."""
COUNT_MAX: Final = 1_024
FORM_CHARACTERS_MAX: Final = 200
"""Of a kind as it is written: longer numbers than these are not even read."""
_FORM: Final = re.compile(
    r"([^+:=]+)(?:\+([^+:=]+))?(?::([^+:=]+))?(?:=(?:([0-9]+)\.\.)?([0-9]+))?"
)
_ROLES: Final[dict[str, Role]] = {"both": "both", "prefill": "prefill", "decode": "decode"}
_HINT: Final = (
    "Write a system of the catalogue, as in hgx-h200, vr-nvl72x8 (8 of its GPUs a worker), "
    "vr-nvl72+lpx (LPUs beside it), lpx (LPUs alone) or hgx-h200:prefill, and "
    "=6 behind it for six, =2..6 for two to six."
)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A system, and how much of it.

    Attributes:
        system: the record.
        size: GPUs of a worker, or racks of LPUs; None where it isn't said.
    """

    system: System
    size: int | None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of worker as somebody wrote it.

    Attributes:
        name: without the number of workers.
        gpus: None where LPUs are alone.
        lpus: None where there are none.
        role: that they play.
        count: of workers.
        least: of them that are always up; None where all are.
    """

    name: str
    gpus: Part | None
    lpus: Part | None
    role: Role
    count: int
    least: int | None

    @property
    def mode(self) -> Mode:
        """What computes."""
        if self.lpus is None:
            return "gpu"
        return "gpu+lpu" if self.gpus else "lpu"


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of worker.

    Attributes:
        wanted: as it was written.
        spec: one of them; its name stands for the kind.
        source: of its iterations: measured rows, or a projection.
        told: how these were found, for people.
        gpus: of one worker.
        lpus: of one worker.
        tensor: GPUs that share the attention of a sequence; 0 where there are none.
        tokens_per_step: that a step makes of each sequence; more than 1 where tokens are drafted.
        excess: the most that the law is slower than what it was made of, as a fraction.
        usd_per_hour: of one worker with electricity at work.
        assumptions: that nothing public backs.
    """

    wanted: Wanted
    spec: WorkerSpec
    source: Literal["calibrated", "projected"]
    told: str
    gpus: int
    lpus: int
    tensor: int
    tokens_per_step: float
    excess: float
    usd_per_hour: float
    assumptions: tuple[Assumption, ...]

    @property
    def mode(self) -> Mode:
        """What computes."""
        return self.wanted.mode


def parse_wanted(catalogue: Catalogue, text: str) -> Wanted:
    """Read a kind of worker.

    Raises:
        ConfigInvalid: it isn't written so, the catalogue has no such system, or the parts do not
            go together.
    """
    found = _FORM.fullmatch(text.strip()) if len(text) <= FORM_CHARACTERS_MAX else None
    if found is None:
        raise ConfigInvalid(f"{text[:FORM_CHARACTERS_MAX]!r} is no kind of worker.", hint=_HINT)
    first, second, role, least, count = found.groups()
    if role is not None and role not in _ROLES:
        raise ConfigInvalid(
            f"{text!r} plays {role!r}.", hint=f"A worker plays one of {', '.join(_ROLES)}."
        )
    if not 1 <= int(count or 1) <= COUNT_MAX:
        raise ConfigInvalid(f"{text!r} counts {count} workers.", hint=f"Have 1 to {COUNT_MAX}.")
    if least is not None and not 1 <= int(least) <= int(count):
        raise ConfigInvalid(
            f"{text!r} counts {least} to {count} workers.",
            hint="Have one at least, and write the fewest first: =2..6.",
        )
    if least is not None and role not in {None, "both"}:
        raise ConfigInvalid(
            f"{text!r} grows, and only plays {role!r}.",
            hint="Only workers that prefill and decode come and go.",
        )
    one = _part(catalogue, first)
    two = _part(catalogue, second) if second else None
    if two is not None and not two.system.lpu:
        raise ConfigInvalid(
            f"{text!r}: {two.system.name!r} has no LPUs.",
            hint=f"Beside GPUs are {_named_lpus(catalogue)}.",
        )
    if two is not None and not one.system.accelerator:
        raise ConfigInvalid(
            f"{text!r}: {one.system.name!r} has no GPUs to keep attention on.",
            hint="Write LPUs behind the GPUs, as in vr-nvl72+lpx, or alone.",
        )
    alone = two is None and one.system.lpu != ""
    if two is None and not alone and not one.system.accelerator:
        raise ConfigInvalid(f"{text!r}: {one.system.name!r} cannot serve a model.", hint=_HINT)
    played = _ROLES[role or "both"]
    if played == "prefill" and (two is not None or alone):
        raise ConfigInvalid(
            f"{text!r}: LPUs are there to decode.",
            hint="Let the GPUs alone prefill, as in vr-nvl72:prefill.",
        )
    return Wanted(
        name=text.strip().partition("=")[0],
        gpus=None if alone else one,
        lpus=one if alone else two,
        role=played,
        count=int(count or 1),
        least=None if least is None else int(least),
    )


def _part(catalogue: Catalogue, text: str) -> Part:
    """A system, or an accelerator that only one system has, and a size behind the last ``x``."""
    name, x, size = text.rpartition("x")
    sized = bool(name and x and size.isascii() and size.isdecimal())
    if sized and not int(size):
        raise ConfigInvalid(f"{text!r} is of size 0.", hint=_HINT)
    return Part(
        system=_system(catalogue, name if sized else text), size=int(size) if sized else None
    )


def _system(catalogue: Catalogue, name: str) -> System:
    systems = catalogue.all_of(System)
    for each in systems:
        if name in (each.name, *each.aliases):
            return each
    try:
        part = catalogue.accelerator(name)
    except ConfigInvalid:
        return catalogue.system(name)  # it says what is near
    having = [each for each in systems if part.name in {each.accelerator, each.lpu}]
    if len(having) != 1:
        raise ConfigInvalid(
            f"{name!r} is in {len(having)} systems of the catalogue.",
            hint=f"Name one: {', '.join(each.name for each in having)}."
            if having
            else "Add a system that has it, with its power and price.",
        )
    return having[0]


def _named_lpus(catalogue: Catalogue) -> str:
    return ", ".join(each.name for each in catalogue.all_of(System) if each.lpu)


def machines(
    catalogue: Catalogue,
    wanted: Wanted,
    model: Model,
    projection: Projection,
    site: Site,
    measured: Measured | None = None,
) -> Machines:
    """A kind of worker for a model.

    Args:
        catalogue: of hardware.
        wanted: the kind.
        model: that it serves.
        projection: of software, where nobody has measured.
        site: where it stands.
        measured: what was measured; None to project everything.

    Raises:
        ConfigInvalid: the model does not fit, or the catalogue lacks a number.
    """
    check_context(model, CONTEXT_TYPICAL)
    shape = shape_of(model)
    pace = _pace(catalogue, wanted, model, projection, measured)
    hardware = _hardware(catalogue, wanted, pace, site)
    per_h = cost_per_h(hardware, site)
    kept = per_h.capital_usd + per_h.network_usd + per_h.people_usd
    cached = _cache_bytes_per_token(shape, pace)
    spec = WorkerSpec(
        worker=WorkerID(wanted.name),
        pool=PoolID(wanted.name),
        model=ModelName(model.name),
        timing=pace.law.timing,
        slots=pace.slots,
        kv_blocks=max(1, pace.kv_tokens // BLOCK_TOKENS),
        block_tokens=BLOCK_TOKENS,
        batch_tokens_max=max(pace.slots, min(CHUNK_TOKENS * pace.groups, CHUNK_TOKENS_MAX)),
        context_tokens_typical=CONTEXT_TYPICAL,
        role=wanted.role,
        start_ns=_start_ns(catalogue, pace),
        kv_bytes_per_token=cached,
        link_bytes_per_s=pace.link_bytes_per_s,
        power_w=round(hardware.power_w),
        idle_power_w=round(hardware.power_w * IDLE_PERCENT / 100),
        capital_udollars_per_hour=round(kept * UDOLLARS_PER_DOLLAR),
    )
    return Machines(
        wanted=wanted,
        spec=spec,
        source=pace.source,
        told=pace.told,
        gpus=pace.gpus,
        lpus=pace.lpus,
        tensor=pace.tensor,
        tokens_per_step=pace.made,
        excess=pace.law.excess,
        usd_per_hour=per_h.usd,
        assumptions=_assumed(catalogue, wanted, model, projection, pace),
    )


def _pace(
    catalogue: Catalogue,
    wanted: Wanted,
    model: Model,
    projection: Projection,
    measured: Measured | None,
) -> Pace:
    gpus, lpus = wanted.gpus, wanted.lpus
    if gpus is None:
        assert lpus is not None, wanted
        return lpu_pace(catalogue, lpus.system, lpus.size, model, projection)
    size = gpus.size or gpus.system.accelerators
    domain = gpus.system.domain or gpus.system.accelerators
    if not 1 <= size <= domain:
        raise ConfigInvalid(
            f"{wanted.name!r} asks for {size} GPUs a worker.",
            hint=f"The links of {gpus.system.name} connect {domain}: take 1 to {domain}.",
        )
    if lpus is not None:
        return shared_pace(
            catalogue,
            gpus.system,
            size,
            lpus.system,
            lpus.size,
            model,
            projection,
            prefills=wanted.role == "both",
        )
    if measured is not None:
        found = measured_pace(catalogue, gpus.system, size, model, measured)
        if found is not None:
            return found
    return gpu_pace(catalogue, gpus.system, size, model, projection)


def _cache_bytes_per_token(shape: Shape, pace: Pace) -> int:
    return round(shape.cache_bytes(CONTEXT_TYPICAL, pace.cache_element_bytes) / CONTEXT_TYPICAL)


def _start_ns(catalogue: Catalogue, pace: Pace) -> int:
    """Time to read the weights; what an engine takes besides is not in the catalogue."""
    storage = catalogue.storage(LOADED_FROM)
    each = pace.weight_bytes_each / storage.bandwidth_bytes_per_s_per_accelerator
    return round((storage.latency_s + each) * NS_PER_S)


def _hardware(catalogue: Catalogue, wanted: Wanted, pace: Pace, site: Site) -> Hardware:
    """What one worker takes of systems, as one."""
    parts: list[tuple[System, float]] = []
    if wanted.gpus is not None:
        parts.append((wanted.gpus.system, pace.gpus / wanted.gpus.system.accelerators))
    if wanted.lpus is not None:
        parts.append((wanted.lpus.system, pace.lpus / wanted.lpus.system.lpus))
    pue = site.pue / catalogue.site(ALL_IN_SITE).pue
    return Hardware(
        name=wanted.name,
        accelerators=pace.gpus + pace.lpus,
        power_w=sum(each.known("all_in_power_w") * share for each, share in parts) * pue,
        price_usd=sum(each.known("price_usd") * share for each, share in parts),
        install_h=0.0,
        ship=max(ship_date(each.ship) for each, _ in parts),
    )


_COSTED: Final = ("all_in_power_w", "price_usd", "lpu_layer_latency_s")


def _assumed(
    catalogue: Catalogue, wanted: Wanted, model: Model, projection: Projection, pace: Pace
) -> tuple[Assumption, ...]:
    """What is behind the kind and not public: of speed where that is projected, and of cost."""
    parts = [part.system for part in (wanted.gpus, wanted.lpus) if part is not None]
    found = {}
    if pace.source == "projected":
        names = "+".join(each.name for each in parts)
        found = {each.what: each for each in used_by(catalogue, [(names, model.name)], projection)}
    for system in parts:
        for each in _figures(system, _COSTED):
            found.setdefault(each.what, each)
    return tuple(found.values())


def _figures(record: Record, fields: Sequence[str]) -> list[Assumption]:
    return [
        Assumption(
            what=f"{record.kind} {record.name} {field}",
            value=record.known(field),
            note=record.provenance[field].note,
        )
        for field in fields
        if field in record.assumed()
    ]

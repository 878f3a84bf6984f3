"""What an answer assumes: the numbers that it used and that nothing public backs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from tokenworks.catalogue.records import Projection, Record
from tokenworks.catalogue.shelves import Catalogue

USED: Final = {
    "accelerator": (
        *("fp4_flop_per_s", "fp8_flop_per_s", "bf16_flop_per_s", "memory_bytes"),
        *("memory_bandwidth_bytes_per_s", "scaleup_bandwidth_bytes_per_s"),
        *("scaleout_bandwidth_bytes_per_s", "layer_latency_s"),
    ),
    "model": (
        *("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "q_lora_rank"),
        *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate"),
        *("dense_layers", "experts", "experts_active", "experts_shared", "moe_intermediate"),
        *("linear_layers", "linear_key_heads", "linear_value_heads", "linear_head_dim"),
        *("window_layers", "window_tokens", "sparse_tokens"),
    ),
    "system": ("all_in_power_w", "link_bandwidth_bytes_per_s", "link_latency_s"),
}
"""Fields that a projection reads; of other records, all."""


class Assumption(msgspec.Struct, frozen=True, kw_only=True):
    """A number that nothing public backs.

    Attributes:
        what: ``kind name field``.
        value: of it.
        note: how it came about.
    """

    what: str
    value: float
    note: str


def declared(catalogue: Catalogue, projection: Projection) -> tuple[Assumption, ...]:
    """What a projection declares: its own numbers, and those of other records that it names."""
    found = _of(projection)
    for each in projection.declared:
        kind, name, field = each.split()
        (record,) = (r for r in catalogue.find(name) if r.kind == kind)
        found.append(_assumption(record, field, getattr(record, field)))
    return tuple(found)


def used_by(
    catalogue: Catalogue, pairs: Iterable[tuple[str, str]], projection: Projection
) -> tuple[Assumption, ...]:
    """Every assumed number behind answers for some systems and models.

    Args:
        catalogue: that the answers came from.
        pairs: systems, as in ``vr-nvl72+lpx``, and model.
        projection: of the software.
    """
    records: list[Record] = [projection]
    for systems, model in pairs:
        for name in systems.split("+"):
            system = catalogue.system(name)
            records.append(system)
            parts = (system.accelerator, system.lpu)
            records += [catalogue.accelerator(part) for part in parts if part]
        records.append(catalogue.model(model))
    found = (each for record in records for each in _of(record))
    return tuple({each.what: each for each in found}.values())


def _of(record: Record) -> list[Assumption]:
    fields = USED.get(record.kind, record.provenance)
    found = []
    for field in record.assumed():
        value = getattr(record, field)
        if isinstance(value, dict):
            found += [_assumption(record, f"{field} {key}", value[key]) for key in sorted(value)]
        elif field in fields:
            found.append(_assumption(record, field, value))
    return found


def _assumption(record: Record, what: str, value: float) -> Assumption:
    return Assumption(
        what=f"{record.kind} {record.name} {what}",
        value=float(value),
        note=record.provenance[what.partition(" ")[0]].note,
    )

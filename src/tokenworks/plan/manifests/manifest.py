"""A file of a manifest, and the words above it."""

from __future__ import annotations

import msgspec

from tokenworks.plan.manifests.deployment import Deployment, Pool, Unit


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A file to write.

    Attributes:
        name: of the file.
        text: in it.
        unit: whose pools it starts or routes to; empty where it holds several units.
        tiers: that it serves; empty for all.
    """

    name: str
    text: str
    unit: str
    tiers: tuple[str, ...]


def heading(deployment: Deployment, unit: Unit, versions: str) -> list[str]:
    """What a reader of a unit's file should know.

    Args:
        deployment: that the unit is of.
        unit: the pools in the file.
        versions: of the programs whose names are used.
    """
    return [
        f"{unit.name}: {deployment.model} for {tier_words(unit.tiers)}. {versions}.",
        *(pool_words(pool) for pool in unit.pools),
    ]


def pool_words(pool: Pool) -> str:
    """A pool in a line."""
    where = "1 node" if pool.nodes == 1 else f"{pool.nodes} nodes"
    kind = f" {pool.accelerator}" if pool.accelerator else ""
    return (
        f"{pool.name}: {pool.role}, replicas {pool.replicas}, each {pool.accelerators}{kind} "
        f"accelerators on {where}, at most {pool.batch} requests at once."
    )


def tier_words(tiers: tuple[str, ...]) -> str:
    """Tiers in words."""
    word = "tier" if len(tiers) == 1 else "tiers"
    return f"{word} {', '.join(tiers)}" if tiers else "all tiers"

"""Throughput per MW against interactivity: the most of the one for each of the other."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenworks.catalogue.records import Projection
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.case import check_context
from tokenworks.plan.projection import Candidate, candidates, machine_of


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """The best ways to decode one model on one machine.

    Attributes:
        systems: of the machine.
        model: that is decoded.
        context_tokens: of each sequence.
        best: none of which is beaten both in interactivity and in throughput per MW; slowest
            first.
    """

    systems: str
    model: str
    context_tokens: int
    best: tuple[Candidate, ...]

    def at(self, interactivity_tokens_per_s: float) -> Candidate | None:
        """The most throughput per MW at a speed or above; None where nothing is that fast."""
        for candidate in self.best:
            if candidate.interactivity_tokens_per_s >= interactivity_tokens_per_s:
                return candidate
        return None

    @property
    def fastest_tokens_per_s(self) -> float:
        """The highest interactivity of all; 0 where the model does not fit."""
        return self.best[-1].interactivity_tokens_per_s if self.best else 0.0


def frontier(
    catalogue: Catalogue,
    systems: str,
    model: str,
    context_tokens: int,
    projection: Projection,
) -> Frontier:
    """The frontier of one machine and model.

    Args:
        catalogue: of hardware and models.
        systems: ``vr-nvl72``, or with LPUs ``vr-nvl72+lpx``.
        model: its name or alias.
        context_tokens: of each sequence.
        projection: what software makes of it.

    Raises:
        ConfigInvalid: a name is unknown, a number is missing, or the context is below 1 or above
            what the model was trained for.
    """
    if context_tokens < 1:
        raise ConfigInvalid(f"The context is {context_tokens!r} tokens; it must be 1 or more.")
    record = catalogue.model(model)
    check_context(record, context_tokens)
    machine = machine_of(catalogue, systems, projection)
    found = candidates(machine, record, context_tokens, projection)
    return Frontier(
        systems=systems,
        model=record.name,
        context_tokens=context_tokens,
        best=_unbeaten(found),
    )


def _unbeaten(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Fastest first, each that makes more per MW than all before; then turned round."""
    best: list[Candidate] = []
    for candidate in sorted(
        found, key=lambda c: (-c.interactivity_tokens_per_s, -c.tokens_per_s_per_mw)
    ):
        if not best or candidate.tokens_per_s_per_mw > best[-1].tokens_per_s_per_mw:
            best.append(candidate)
    return tuple(reversed(best))

"""Which workers of a scenario start when, where the dispatcher may want more or fewer of a pool."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from tokenworks.core.ids import PoolID, WorkerID
from tokenworks.dispatch.commands import Scale
from tokenworks.twin.records import Scenario, WorkerSpec


class Scaling:
    """The workers of pools that are scaled, in the scenario's order.

    Args:
        scenario: what is run.

    Attributes:
        starting: workers that will come up without having been told yet.
    """

    __slots__ = ("_least", "_obeys", "_specs", "starting")

    def __init__(self, scenario: Scenario) -> None:
        pools = () if scenario.configured.scaling is UNSET else scenario.configured.scaling
        self._least: dict[PoolID, int] = {pool.pool: pool.workers_min for pool in pools}
        self._specs = scenario.workers
        self._obeys = scenario.obeys_scaling
        self.starting: set[WorkerID] = set()

    def first(self) -> list[WorkerSpec]:
        """Those that start with the run: of a pool that is scaled, the least number."""
        if not self._obeys:
            return list(self._specs)
        counts: dict[PoolID, int] = {}
        found = []
        for spec in self._specs:
            counts[spec.pool] = counts.get(spec.pool, 0) + 1
            if counts[spec.pool] <= self._least.get(spec.pool, counts[spec.pool]):
                found.append(spec)
        return found

    def missing(
        self, command: Scale, up_since_ns: Sequence[int | None], told_up: Sequence[bool]
    ) -> list[WorkerSpec]:
        """Who is to be started that is not yet; they count as starting from now on.

        Workers that the dispatcher knows and the command does not count end what they have, and
        count for nothing here, either.

        Args:
            command: more workers of a pool.
            up_since_ns: by worker, None while it is down.
            told_up: by worker, whether the dispatcher knows that it is up.
        """
        if not self._obeys:
            return []
        pool = [
            (spec, since_ns is not None or spec.worker in self.starting, told)
            for spec, since_ns, told in zip(self._specs, up_since_ns, told_up, strict=True)
            if spec.pool == command.pool
        ]
        starting = sum(there and not told for _, there, told in pool)
        count = command.workers - command.up - starting
        found = [spec for spec, there, _ in pool if not there][: max(0, count)]
        self.starting.update(spec.worker for spec in found)
        return found

"""Who prefills for workers that only decode, where a scenario pairs them and not the dispatcher."""

from __future__ import annotations

from collections.abc import Sequence

from tokenworks.core.ids import ModelName
from tokenworks.core.needs import Offers
from tokenworks.dispatch.events import PrefilledBy
from tokenworks.twin.records import WorkerSpec
from tokenworks.twin.workers import Worker


class Prefillers:
    """The workers of role ``prefill``, by model.

    Args:
        specs: all workers of the scenario.
        engines: the same as they run.
        up_since_ns: by worker, None while it is down; whoever owns it changes it.
    """

    __slots__ = ("_engines", "_indices", "_up_since_ns")

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        engines: Sequence[Worker],
        up_since_ns: Sequence[int | None],
    ) -> None:
        self._engines, self._up_since_ns = engines, up_since_ns
        self._indices: dict[ModelName, list[int]] = {}
        for index, spec in enumerate(specs):
            if spec.role == "prefill":
                self._indices.setdefault(spec.model, []).append(index)
        for spec in specs:
            if spec.role == "decode":
                assert spec.model in self._indices, f"nobody prefills for {spec.worker}"
                assert spec.link_bytes_per_s > 0, f"{spec.worker} has no link"

    def offers_with(self, spec: WorkerSpec) -> Offers:
        """What a worker that only decodes offers with whoever prefills for it, any of them."""
        offers = [self._engines[each].spec.offers for each in self._indices[spec.model]]
        return Offers(
            labels=tuple(
                label for label in spec.offers.labels if all(label in o.labels for o in offers)
            ),
            adapters=tuple(
                name for name in spec.offers.adapters if all(name in o.adapters for o in offers)
            ),
        )

    def told(self, spec: WorkerSpec) -> PrefilledBy | None:
        """What the dispatcher is told of who prefills for a worker; None if that does it itself."""
        if spec.role != "decode":
            return None
        some = [self._engines[each].spec for each in self._indices[spec.model]]
        slowest = max(some, key=lambda each: each.timing.prefill_token_fs)
        return PrefilledBy(
            workers=len(some),
            timing=slowest.timing,
            batch_tokens_max=min(each.batch_tokens_max for each in some),
        )

    def of(self, decoder: int) -> int:
        """Whoever has least to prefill for a worker, of those that are up if any is."""
        engines = self._engines
        return min(
            self._indices[engines[decoder].spec.model],
            key=lambda each: (self._up_since_ns[each] is None, engines[each].backlog_tokens, each),
        )

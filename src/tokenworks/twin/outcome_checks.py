"""What came of a run, against what must hold in any; cheap enough for every run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenworks.core.slo import Tier
from tokenworks.twin.records import End, Outcomes, Scenario, TwinRequest, Violation, WorkerUse


def check_outcomes(
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    outcomes: Outcomes,
    workers: Iterable[WorkerUse],
    *,
    patience_ns: Mapping[Tier, int] | None = None,
    slack_ns: int = 0,
) -> list[Violation]:
    """Compare what a run has come to with what must hold in any.

    Args:
        scenario: what was run.
        requests: the workload.
        outcomes: what came of it.
        workers: what they did.
        patience_ns: how long a request of each tier may be queued; None for the scenario's own.
        slack_ns: so much longer, where clock or store have faults.
    """
    promises = scenario.configured.promises
    bounds = patience_ns or {tier: promises[tier].patience_ns for tier in promises}
    found: list[Violation] = []
    ends, made = outcomes.end, outcomes.output_tokens
    for place, request in enumerate(requests):
        at_ns = outcomes.finished_ns[place]
        if ends[place] == End.OPEN:
            found.append(Violation.of("ends_once", at_ns, request.request))
            continue
        if ends[place] == End.DONE and made[place] != request.output_tokens:
            numbers = {"made": made[place], "wanted": request.output_tokens}
            found.append(Violation.of("tokens_delivered", at_ns, request.request, **numbers))
        waited_ns, bound_ns = outcomes.wait_ns_max(place), bounds[request.tier] + slack_ns
        if waited_ns > bound_ns:
            numbers = {"waited_ns": waited_ns, "bound_ns": bound_ns}
            found.append(Violation.of("wait_bounded", at_ns, request.request, **numbers))
    for spec, use in zip(scenario.workers, workers, strict=True):
        if use.kv_blocks_max > spec.kv_blocks:
            numbers = {"used": use.kv_blocks_max, "has": spec.kv_blocks}
            found.append(Violation.of("kv_bounded", 0, spec.worker, **numbers))
    return found

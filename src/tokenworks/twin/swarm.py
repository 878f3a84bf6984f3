"""Swarm runs: many small factories with faults, each from a seed, each with every checker on.

First safety while faults happen, then all heals and everything has to end. A run that breaks an
invariant is written to a file with all that was drawn, so that it can be run again even when the
generators have changed.
"""

from __future__ import annotations

import concurrent.futures
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event
from tokenworks.dispatch.policies import NAMES
from tokenworks.ledger.quota_records import Limit
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.checkers import Checker, Endless
from tokenworks.twin.driver import Driver, Hooks, run
from tokenworks.twin.faults import BreakOff, Fault, Faults, Leave
from tokenworks.twin.handovers import HANDOVER_NS_MAX
from tokenworks.twin.records import End, Outcomes, Scenario, TwinRequest, Violation
from tokenworks.twin.swarm_draw import Case, draw

FORMAT: Final = 1
FILE_BYTES_MAX: Final = 50_000_000
SHRINK_RUNS_MAX: Final = 400
_UNIX_NS: Final = 1_795_478_400 * NS_PER_S
"""When swarm runs begin: 2026-11-24, midnight."""
_CHUNK: Final = 10
"""Seeds that a process is given at once."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one case.

    Attributes:
        seed: of the case.
        policy: who dispatched first.
        requests: in its workload.
        ends: how many ended how.
        events: told to the dispatcher.
        journal_digest: of events and commands; empty if the run broke off.
        violations: what was broken.
    """

    seed: int
    policy: str
    requests: int
    ends: dict[str, int]
    events: int
    journal_digest: str
    violations: tuple[Violation, ...]


class FailedCase(msgspec.Struct, frozen=True, kw_only=True):
    """A file: a case that broke something, and what that was."""

    format: int
    violations: tuple[Violation, ...]
    case: Case


class _Both(Hooks):
    """Faults first, then the checker; it also counts events."""

    def __init__(self, faults: Faults, checker: Checker) -> None:
        self._faults, self._checker = faults, checker
        self.events = 0
        self.outcomes: Outcomes | None = None

    def begin(self, driver: Driver) -> None:
        self.outcomes = driver.outcomes
        self._checker.begin(driver)
        self._faults.begin(driver)

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:
        self.events += 1
        self._faults.told(now_ns, event, commands)
        self._checker.told(now_ns, event, commands)

    def end(self, driver: Driver) -> None:
        self._checker.end(driver)


def run_case(case: Case) -> Finding:
    """Run one case with every checker on."""
    book = parse_price_book(case.price_book)
    scenario = Scenario(
        name=f"swarm {case.seed}",
        workers=case.workers,
        configured=case.configured,
        book=book,
        energy_udollars_per_kwh=80_000,
    )
    dispatcher = Dispatcher()
    bookkeeper = Bookkeeper(case.plan.store(), case.quotas, unix_ns=_UNIX_NS)
    checker = Checker(
        dispatcher,
        bookkeeper,
        deadline_ns=deadline_ns(case),
        slack_ns=case.plan.slack_ns(),
        shadow_from=case.shadow_from,
    )
    hooks = _Both(Faults(case.plan), checker)
    digest, broken = "", []
    try:
        result = run(
            scenario,
            case.requests,
            exact=case.exact,
            dispatcher=dispatcher,
            hooks=hooks,
            network=case.plan.network(),
            bookkeeper=bookkeeper,
            publishes=case.plan.publishes,
            probe_ns=case.plan.probe_ns,
        )
        digest = result.journal_digest
    except Endless:
        pass
    except Exception as error:  # noqa: BLE001 - whatever breaks, the seed that breaks it is told
        broken = [_broken(error, checker)]
    ends = [] if hooks.outcomes is None else hooks.outcomes.end
    return Finding(
        seed=case.seed,
        policy=case.configured.policy.name,
        requests=len(case.requests),
        ends={end.name.lower(): sum(each == end for each in ends) for end in End},
        events=hooks.events,
        journal_digest=digest,
        violations=(*checker.violations, *broken),
    )


def deadline_ns(case: Case) -> int:
    """When everything has ended by any account.

    From the last arrival or the end of the faults on, each request is queued and then computed by
    the slowest worker, one after the other, as often as it may be sent, after a hand-over that had
    no room.
    """
    settings = [case.configured, *case.plan.changes()]
    attempts = 1 + max(each.limits.retries_max for each in settings)
    patience_ns = max(
        promise.patience_ns for each in settings for promise in each.promises.values()
    )
    at_ns = max(case.plan.heal_ns, *(each.at_ns for each in case.requests))
    at_ns += case.plan.slack_ns()
    for request in case.requests:
        tokens = request.input_tokens + request.output_tokens
        slowest_fs = max(
            spec.timing.prefill_fs(tokens, 0)
            + (tokens + request.output_tokens)
            * spec.timing.decode_fs(spec.slots, spec.kv_blocks * spec.block_tokens)
            for spec in case.workers
        )
        each_ns = slowest_fs // FS_PER_NS + patience_ns + HANDOVER_NS_MAX
        at_ns += attempts * each_ns + request.delay_ns
    return at_ns


def _broken(error: Exception, checker: Checker) -> Violation:
    """A run that broke: a mistake of ours was noticed where it happened."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.name}"
    return Violation.of("asserted", checker.now_ns(), where, why=repr(error)[:500])


# Many of them.


def run_seeds(
    first: int, count: int, policies: Sequence[str] = NAMES, *, processes: int = 1
) -> Iterator[Finding]:
    """Run seeds one after the other, or side by side; findings come in the order of the seeds.

    Args:
        first: the first seed.
        count: how many.
        policies: which may be drawn.
        processes: how many run at once.
    """
    run_one = functools.partial(run_seed, policies=tuple(policies))
    seeds = range(first, first + count)
    if processes == 1:
        yield from map(run_one, seeds)
        return
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_one, seeds, chunksize=_CHUNK)


def run_seed(seed: int, policies: Sequence[str] = NAMES) -> Finding:
    """Draw a case and run it."""
    return run_case(draw(seed, policies))


# Cases that fail.


def save(path: Path, case: Case, finding: Finding) -> None:
    """Write a case and what it broke."""
    failed = FailedCase(format=FORMAT, violations=finding.violations, case=case)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(failed), indent=1) + b"\n")


def load(path: Path) -> Case:
    """A case from its file.

    Raises:
        ConfigInvalid: the file cannot be read, or holds no case.
    """
    try:
        text = path.read_bytes()
        failed = msgspec.json.decode(text, type=FailedCase)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigInvalid(f"{str(path)!r} holds no case of a swarm: {error}.") from error
    if failed.format != FORMAT:
        raise ConfigInvalid(f"{str(path)!r} has format {failed.format!r}; this reads {FORMAT}.")
    return failed.case


def shrunk(
    case: Case, finding: Finding, *, runs_max: int = SHRINK_RUNS_MAX
) -> tuple[Case, Finding]:
    """A smaller case that breaks the same invariant: without faults, requests and quotas.

    What can be left out is tried all at once, then in halves, quarters, and so on.

    Args:
        case: one that breaks something.
        finding: what it breaks.
        runs_max: runs that are tried.
    """
    broken = {each.invariant for each in finding.violations}
    left = runs_max
    for parts, put in _PARTS:
        size = len(parts(case))
        while size and left:
            start = 0
            while start < len(parts(case)) and left:
                left -= 1
                smaller = put(case, parts(case)[:start] + parts(case)[start + size :])
                found = run_case(smaller) if smaller.requests else None
                if found and broken & {each.invariant for each in found.violations}:
                    case, finding = smaller, found
                else:
                    start += size
            size //= 2
    return case, finding


def _with_faults(case: Case, faults: tuple[Fault, ...]) -> Case:
    return replace(case, plan=replace(case.plan, faults=faults))


def _with_requests(case: Case, requests: tuple[TwinRequest, ...]) -> Case:
    """So many requests, and of the rest only what is about them."""
    names = {each.request for each in requests}
    faults = tuple(
        each
        for each in case.plan.faults
        if not isinstance(each, Leave | BreakOff) or each.request in names
    )
    kept = tuple(
        replace(each, wait_for=tuple(name for name in each.wait_for if name in names))
        for each in requests
    )
    return replace(_with_faults(case, faults), requests=kept)


def _with_quotas(case: Case, quotas: tuple[Limit, ...]) -> Case:
    return replace(case, quotas=quotas)


_PARTS: Final[tuple[tuple[Callable[[Case], Any], Callable[[Case, Any], Case]], ...]] = (
    (lambda case: case.requests, _with_requests),
    (lambda case: case.plan.faults, _with_faults),
    (lambda case: case.quotas, _with_quotas),
)

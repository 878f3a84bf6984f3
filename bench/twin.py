"""Requests per CPU-second that the twin simulates, its dispatcher's own time left out.

The workload is a Mooncake trace (JSON lines, plain), whole or the first rows of it. The dispatcher
is one that only takes turns, or the real one. Its time is that of deciding the run's events once
more, without the twin. Every case runs in a fresh process, so that its memory is seen; the best of
some repetitions counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.twin.factory import TRACE_300, TRACE_WORKER, TakesTurns, scenario, trace, workers
from tokenworks.dispatch.commands import Command
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Event
from tokenworks.twin.driver import Hooks, run
from tokenworks.twin.records import End

CASES = ((8, 1), (64, 8))
"""Workers, and how many times faster than recorded the requests come."""


class Events(Hooks):
    """Keeps what the dispatcher was told."""

    def __init__(self) -> None:
        self.told_at: list[tuple[int, Event]] = []

    def told(self, now_ns: int, event: Event, commands: list[Command]) -> None:  # noqa: ARG002
        """Keep one."""
        self.told_at.append((now_ns, event))


def dispatcher_ns(events: list[tuple[int, Event]], *, real: bool) -> int:
    """CPU time of deciding all events of a run."""
    handle = (Dispatcher() if real else TakesTurns()).handle
    gc.disable()
    begun_ns = time.thread_time_ns()
    for now_ns, event in events:
        handle(now_ns, event)
    spent_ns = time.thread_time_ns() - begun_ns
    gc.enable()
    return spent_ns


def measure(path: Path, count: int, faster: int, *, exact: bool, real: bool) -> dict[str, object]:
    """One run in this process."""
    with path.open(encoding="utf-8") as file:
        requests = trace(file, faster=faster)
    factory = scenario(*workers(count, TRACE_WORKER))
    result = run(factory, requests, exact=exact, dispatcher=Dispatcher() if real else TakesTurns())
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    hooks = Events()
    run(factory, requests, dispatcher=Dispatcher() if real else TakesTurns(), hooks=hooks)
    own_ns = result.cpu_ns - dispatcher_ns(hooks.told_at, real=real)
    return {
        "workers": count,
        "faster": faster,
        "requests": len(requests),
        "done": sum(1 for end in result.outcomes.end if end == End.DONE),
        "requests_per_cpu_s": round(len(requests) * 10**9 / result.cpu_ns),
        "without_dispatcher": round(len(requests) * 10**9 / own_ns),
        "events": result.events,
        "iterations": sum(each.iterations for each in result.workers),
        "preemptions": sum(each.preemptions for each in result.workers),
        "hit_share": round(
            sum(each.hit_tokens for each in result.workers)
            / sum(each.input_tokens for each in requests),
            3,
        ),
        "busy_share": round(
            sum(each.busy_ns for each in result.workers) / (count * result.ended_ns), 3
        ),
        "rss_mb": rss_mb,
        "journal_digest": result.journal_digest,
    }


def main() -> None:
    """Measure every case, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE_300)
    parser.add_argument("--case", help="WORKERS,FASTER: this one, in this process")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--real", action="store_true", help="the real dispatcher, default policy")
    args = parser.parse_args()
    if args.case:
        count, faster = map(int, args.case.split(","))
        row = measure(args.trace, count, faster, exact=args.exact, real=args.real)
        print(json.dumps(row))
        return
    best: dict[str, int] = {}
    options = ["--exact"] * args.exact + ["--real"] * args.real
    for (count, faster), _ in itertools.product(CASES, range(args.repeat)):
        command = [sys.executable, "-m", "bench.twin", "--trace", str(args.trace)]
        command += ["--case", f"{count},{faster}", *options]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(output, end="", flush=True)
        speed = json.loads(output)["without_dispatcher"]
        best[str(count)] = max(speed, best.get(str(count), 0))
    print(json.dumps(best))


if __name__ == "__main__":
    main()

"""Requests per CPU-second that the twin simulates, with a dispatcher that costs next to nothing.

The workload is a Mooncake trace (JSON lines, plain), whole or the first rows of it. Every case runs
in a fresh process, so that its memory is seen. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.twin.factory import TRACE_300, TRACE_WORKER, TakesTurns, scenario, trace, workers
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.twin.driver import run
from tokenworks.twin.records import End

CASES = ((8, 1), (64, 8))
"""Workers, and how many times faster than recorded the requests come."""


def measure(path: Path, count: int, faster: int, *, exact: bool, real: bool) -> dict[str, object]:
    """One run in this process."""
    with path.open(encoding="utf-8") as file:
        requests = trace(file, faster=faster)
    before_ns = time.thread_time_ns()
    result = run(
        scenario(*workers(count, TRACE_WORKER)),
        requests,
        exact=exact,
        dispatcher=Dispatcher() if real else TakesTurns(),
    )
    cpu_s = (time.thread_time_ns() - before_ns) / 1e9
    return {
        "workers": count,
        "faster": faster,
        "requests": len(requests),
        "done": sum(1 for end in result.outcomes.end if end == End.DONE),
        "requests_per_cpu_s": round(len(requests) / cpu_s),
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
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
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
    best = []
    options = ["--exact"] * args.exact + ["--real"] * args.real
    for (count, faster), _ in itertools.product(CASES, range(args.repeat)):
        command = [sys.executable, "-m", "bench.twin", "--trace", str(args.trace)]
        command += ["--case", f"{count},{faster}", *options]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(output, end="", flush=True)
        best.append(json.loads(output))
    print(json.dumps({f"{row['workers']}": row["requests_per_cpu_s"] for row in best}))


if __name__ == "__main__":
    main()

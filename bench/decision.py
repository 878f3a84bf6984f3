"""Time per decision of the dispatcher, at 8 and 64 workers, below and above what they can take.

Every request has a prompt of 24 blocks, 8 of them shared by its family; tiers are mixed; a request
that ends makes room for the next. ``arrived`` and ``finished`` are the events that decide. The last
line is JSON: per case, median and 99th percentile in microseconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time

from tokenworks.core.ids import ModelName, PoolID, RequestID, TenantID, WorkerID
from tokenworks.core.slo import Promise, Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch.commands import Command, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Configured,
    Event,
    Finished,
    Limits,
    Started,
    WorkerUp,
)

SEED = 1
SLOTS = 32
CURVE = ((1, 200), (4, 150), (8, 110), (16, 80), (32, 45))
SPEEDS = {Tier.FREE: 10, Tier.MEDIUM: 40, Tier.HIGH: 60, Tier.PREMIUM: 80, Tier.ULTRA: 120}
MIX = {Tier.FREE: 40, Tier.MEDIUM: 30, Tier.HIGH: 20, Tier.PREMIUM: 7, Tier.ULTRA: 3}
SHARED_BLOCKS, OWN_BLOCKS, FAMILIES, TENANTS = 8, 16, 200, 20


def settings() -> Configured:
    """A data centre's promises on a small scale."""
    promises = {
        tier: Promise(
            ttft_ns=2 * NS_PER_S,
            interactivity_tokens_per_s=SPEEDS[tier],
            grace_ns=0,
            patience_ns=20 * NS_PER_S,
            output_tokens_default=256,
        )
        for tier in Tier
    }
    return Configured(promises=promises, limits=Limits(queue_len_max=dict.fromkeys(Tier, 200)))


def arrival(dice: random.Random, number: int, now_ns: int) -> Arrived:
    """A request of a random family, tenant and tier."""
    family = dice.randrange(FAMILIES)
    shared = tuple(family << 32 | block for block in range(SHARED_BLOCKS))
    own = tuple(1 << 60 | number << 8 | block for block in range(OWN_BLOCKS))
    return Arrived(
        request=RequestID(f"r{number}"),
        tenant=TenantID(f"t{dice.randrange(TENANTS)}"),
        model=ModelName("m"),
        tier=dice.choices(list(MIX), list(MIX.values()))[0],
        input_tokens_max=6_000,
        output_tokens_max=256,
        prefix=shared + own,
        arrived_ns=now_ns,
    )


def case(workers: int, load_percent: int, decisions: int) -> dict[str, float | int]:
    """Run one case.

    Up to 100 % the load is a number of running requests, in per cent of eight per worker; above it
    arrivals outrun what ends, and lines form. Times are of this thread's CPU, so that other work on
    the machine does not count.
    """
    dice = random.Random(SEED)
    dispatcher, now_ns = Dispatcher(), 0
    dispatcher.handle(now_ns, settings())
    for i in range(workers):
        name = WorkerID(f"w{i}")
        dispatcher.handle(
            now_ns,
            WorkerUp(worker=name, pool=PoolID("p"), model=ModelName("m"), slots=SLOTS, curve=CURVE),
        )
    running: list[RequestID] = []
    took_ns: dict[type, list[int]] = {Arrived: [], Finished: [], Started: []}
    rejected = 0

    def tell(event: Event) -> None:
        nonlocal rejected
        began = time.thread_time_ns()
        commands: list[Command] = dispatcher.handle(now_ns, event)
        took_ns[type(event)].append(time.thread_time_ns() - began)
        sent = [each.request for each in commands if isinstance(each, Send)]
        running.extend(sent)
        rejected += sum(isinstance(each, Reject) for each in commands)
        for request in sent:
            tell(Started(request=request))

    over, target = load_percent > 100, workers * 8 * load_percent // 100
    gc.collect()
    for number in range(decisions):
        now_ns += 2 * NS_PER_S // max(1, workers * 8)
        tell(arrival(dice, number, now_ns))
        while running and (dice.random() < 0.45 if over else len(running) > target):
            at = dice.randrange(len(running))
            running[at], running[-1] = running[-1], running[at]
            now_ns += NS_PER_MS
            tell(Finished(request=running.pop(), output_tokens=200, cached_input_tokens=0))
    figures: dict[str, float | int] = {
        "workers": workers,
        "load_percent": load_percent,
        "queued": sum(dispatcher.queue_lens().values()),
        "rejected": rejected,
    }
    for event, name in ((Arrived, "arrived"), (Finished, "finished")):
        times = sorted(took_ns[event][len(took_ns[event]) // 10 :])
        figures[f"{name}_us_median"] = round(statistics.median(times) / 1e3, 1)
        figures[f"{name}_us_p99"] = round(times[len(times) * 99 // 100] / 1e3, 1)
    return figures


def main() -> None:
    """Run all cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000, help="arrivals in each case")
    decisions = parser.parse_args().decisions
    results = [case(workers, load, decisions) for workers in (8, 64) for load in (60, 150)]
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()))
    print(json.dumps({"bench": "decision", "seed": SEED, "cases": results}))


if __name__ == "__main__":
    main()

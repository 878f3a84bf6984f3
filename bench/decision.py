"""Time of one decision: a request comes, is placed, and is booked on its worker.

The prefix index holds a million blocks before the first request. Every request has a prompt of 8 to
24 blocks that some worker has and up to 8 new ones; tiers are mixed; each worker runs about eight
requests, and one that ends makes room for the next. ``arrived`` is the event that decides; placing,
booking on the worker and entering the prefix are in it. The last line is JSON: per policy and
fleet, median and 99th percentile in microseconds of CPU, which other work on the machine lengthens
by its share of the caches alone. An arrival may also be when one that waited is sent: all that it
sends is one decision in these figures, ``us_p99_one`` is of those that send the newcomer alone, and
``several_percent`` is how many send more. ``economic+apart`` has engines that hand KV caches over,
so that some workers prefill for the others.
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
from tokenworks.core.units import NS_PER_S
from tokenworks.dispatch.commands import Command, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Configured,
    Finished,
    Limits,
    PolicySettings,
    Started,
    TokenPrice,
    WorkerUp,
)
from tokenworks.perf.timing import Timing

SEED = 1
SLOTS, RUNNING, RATE_PER_S = 64, 8, 4
CURVE = ((1, 400), (8, 250), (32, 110), (64, 60))
SPEEDS = {Tier.FREE: 10, Tier.MEDIUM: 40, Tier.HIGH: 60, Tier.PREMIUM: 80, Tier.ULTRA: 120}
MIX = {Tier.FREE: 40, Tier.MEDIUM: 30, Tier.HIGH: 20, Tier.PREMIUM: 7, Tier.ULTRA: 3}
DOLLARS = {Tier.FREE: 0, Tier.MEDIUM: 3, Tier.HIGH: 6, Tier.PREMIUM: 45, Tier.ULTRA: 150}
TENANTS, FAMILY_BLOCKS = 20, 24
LINK_BYTES_PER_S = 50_000_000_000
MODEL = ModelName("m")
TIMING = Timing(
    launch_fs=2_500_000_000_000,
    sequence_fs=20_000_000_000,
    context_token_fs=15_000_000,
    prefill_token_fs=10_000_000_000,
    prefill_context_fs=100_000,
)


def settings(policy: str) -> Configured:
    """A data centre's promises and prices on a small scale."""
    promises = {
        tier: Promise(
            ttft_ns=10 * NS_PER_S,
            interactivity_tokens_per_s=SPEEDS[tier],
            grace_ns=0,
            patience_ns=20 * NS_PER_S,
            output_tokens_default=256,
        )
        for tier in Tier
    }
    prices = {
        tier: TokenPrice(
            input_udollars_per_mtok=dollars * 200_000,
            cached_udollars_per_mtok=dollars * 200_000,
            output_udollars_per_mtok=dollars * 1_000_000,
        )
        for tier, dollars in DOLLARS.items()
    }
    return Configured(
        promises=promises,
        limits=Limits(queue_len_max=dict.fromkeys(Tier, 200), prefix_blocks_max=4_000_000),
        policy=PolicySettings(name=policy),
        prices={MODEL: prices},
    )


def factory(
    policy: str,
    workers: int,
    families: list[tuple[int, ...]],
    dice: random.Random,
    *,
    apart: bool,
) -> tuple[Dispatcher, int]:
    """A dispatcher whose workers are up and whose index knows every family's blocks, and when."""
    dispatcher = Dispatcher()
    dispatcher.handle(0, settings(policy))
    for i in range(workers):
        dispatcher.handle(
            0,
            WorkerUp(
                worker=WorkerID(f"w{i}"),
                pool=PoolID("p"),
                model=MODEL,
                slots=SLOTS,
                curve=CURVE,
                timing=TIMING,
                kv_blocks=3_000,
                block_tokens=512,
                link_bytes_per_s=LINK_BYTES_PER_S if apart else 0,
                kv_bytes_per_token=163_840,
            ),
        )
    # As many per second, at the same tiers and as long as later: what a policy learns is right.
    for number, prefix in enumerate(families):
        now_ns = number * NS_PER_S // (RATE_PER_S * workers)
        name = RequestID(f"warm{number}")
        tier = dice.choices(list(MIX), list(MIX.values()))[0]
        dispatcher.handle(now_ns, arrival(name, number, tier, prefix, now_ns))
        over = Finished(request=name, output_tokens=300, cached_input_tokens=0)
        dispatcher.handle(now_ns, over)
    return dispatcher, now_ns


def arrival(
    name: RequestID, number: int, tier: Tier, prefix: tuple[int, ...], now_ns: int
) -> Arrived:
    """A request with a prompt of 12,000 tokens."""
    return Arrived(
        request=name,
        tenant=TenantID(f"t{number % TENANTS}"),
        model=MODEL,
        tier=tier,
        input_tokens_max=12_000,
        output_tokens_max=400,
        prefix=prefix,
        arrived_ns=now_ns,
    )


def sent(dispatcher: Dispatcher, now_ns: int, commands: list[Command]) -> list[RequestID]:
    """The requests that commands send, each of which begins to answer at once."""
    found = [command.request for command in commands if isinstance(command, Send)]
    for request in found:
        dispatcher.handle(now_ns, Started(request=request))
    return found


def case(policy: str, workers: int, blocks: int, decisions: int) -> dict[str, float | int | str]:
    """Run one case; times are of what is booked at once only."""
    dice = random.Random(SEED)
    families = [
        tuple((family << 40) | block for block in range(FAMILY_BLOCKS))
        for family in range(blocks // FAMILY_BLOCKS)
    ]
    name, _, how = policy.partition("+")
    dispatcher, now_ns = factory(name, workers, families, dice, apart=how == "apart")
    tiers = dice.choices(list(MIX), list(MIX.values()), k=decisions)
    running: list[RequestID] = []
    arrived_ns: list[tuple[int, int]] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    for number in range(decisions):
        now_ns += NS_PER_S // (RATE_PER_S * workers)
        known = dice.choice(families)[: dice.randrange(8, FAMILY_BLOCKS)]
        new = tuple((1 << 60) | (number << 8) | block for block in range(dice.randrange(8)))
        event = arrival(RequestID(f"r{number}"), number, tiers[number], known + new, now_ns)
        began = time.thread_time_ns()
        commands = dispatcher.handle(now_ns, event)
        spent = time.thread_time_ns() - began
        if commands and isinstance(commands[0], Send):
            arrived_ns.append((spent, sum(isinstance(each, Send) for each in commands)))
        # Those that had to wait are sent when others end; they run and end as all do.
        running += sent(dispatcher, now_ns, commands)
        while len(running) > RUNNING * workers:
            place = dice.randrange(len(running))
            running[place], running[-1] = running[-1], running[place]
            over = Finished(request=running.pop(), output_tokens=300, cached_input_tokens=0)
            running += sent(dispatcher, now_ns, dispatcher.handle(now_ns, over))
    gc.enable()
    gc.unfreeze()
    settled = arrived_ns[len(arrived_ns) // 4 :]
    cuts = statistics.quantiles([spent for spent, _ in settled], n=100)
    alone = [spent for spent, sends in settled if sends == 1]
    return {
        "policy": policy,
        "workers": workers,
        "blocks": len(dispatcher._prefixes),  # noqa: SLF001 - no user needs it
        "decisions": len(settled),
        "us_median": round(cuts[49] / 1_000, 1),
        "us_p99": round(cuts[98] / 1_000, 1),
        "us_p99_one": round(statistics.quantiles(alone, n=100)[98] / 1_000, 1),
        "several_percent": round(100 - 100 * len(alone) / len(settled), 1),
    }


def main() -> None:
    """Run the cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--policies", default="prefix-aware,economic,economic+apart,promises,least-loaded"
    )
    parser.add_argument("--workers", default="8,64,1000")
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--decisions", type=int, default=20_000)
    given = parser.parse_args()
    results = []
    for policy in given.policies.split(","):
        for workers in given.workers.split(","):
            results.append(case(policy, int(workers), given.blocks, given.decisions))
            print("  ".join(f"{name} {value}" for name, value in results[-1].items()), flush=True)
    print(json.dumps({"bench": "decision", "seed": SEED, "cases": results}))


if __name__ == "__main__":
    main()

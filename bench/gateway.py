"""What the gateway costs: CPU for each request and chunk, delay, memory, against nginx in the turn.

The gateway is a factory as ``tokenworks up`` starts it, in a process of its own, with everything
on: key check, tier, quota, dispatch, metering and settlement in a ledger on disk. Behind it, and
behind nginx as a bare proxy, is the same fake worker (``bench/fake_worker.py``); clients in this
process check every answer whole, and in the end the ledger must hold each of them once.

Peers take turns, round after round, so that what disturbs the machine disturbs all of them, and a
ratio is the median of its rounds. CPU time is that of a peer's whole process tree, from /proc.

python -m bench.gateway --streams 10000
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from bars.proof import proved
from bench.gateway_peers import (
    SLOTS,
    Peer,
    capped,
    fake_worker,
    gateway,
    litellm,
    nginx,
    own_core,
    prepare,
)
from bench.load_generator import Crowd, Mode, Seen
from tokenworks.gateway.http_limits import LIMITS, fitting
from tokenworks.live.store import sqlite_store

PACE_US = 5_000
MEMORY_PACE_US = 4_000_000
MEMORY_TOKENS = 12
"""Of each open stream: together some 48 s, in which all of them must begin."""


def say(text: str) -> None:
    """Progress, for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def files_max() -> int:
    """Raise the limit of open files as far as it goes, for this process and those it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


CLOSING_S_MAX = 30
"""How long a peer on a busy machine is waited for that has not closed any connection yet."""
CAPPED_CLIENTS = 128
"""Enough that every process has some to serve whenever it may run; of 64, too many wait for a
commit at once: two processes then use 0.94 of their shares."""


class Bench:
    """One run of the benchmark.

    Attributes:
        answers: how many the gateway has given: as many must be in its ledger.
        faults: what went wrong at any peer.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.answers = 0
        self.faults: list[str] = []
        self.modes = {
            "whole": (Mode(stream=False, tokens=args.chunks), args.clients),
            "one": (Mode(stream=True, tokens=1), args.clients),
            "burst": (Mode(stream=True, tokens=args.chunks), args.clients),
            "paced": (
                Mode(stream=True, tokens=args.chunks, pace_us=PACE_US),
                args.paced_clients,
            ),
        }

    async def load(self, peer: Peer, mode: Mode, clients: int, **until: Any) -> Seen:
        """Let clients ask a peer, and note what went wrong."""
        seen = await Crowd(peer.ports, peer.key, mode, clients=clients, **until).run()
        self.took(peer, seen)
        return seen

    def took(self, peer: Peer, seen: Seen) -> None:
        """Keep the count of answers and faults."""
        if peer.name == "gateway":
            self.answers += seen.answers
        if seen.failed:
            self.faults.append(f"{peer.name}: {seen.failed} answers, such as {seen.faults[0]}")
            say(f"  {self.faults[-1]}")

    async def costs(self, peers: Sequence[Peer]) -> dict[str, Any]:
        """CPU time and delay in every mode, by peer."""
        found: dict[str, Any] = {}
        for name, (mode, clients) in self.modes.items():
            rounds: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
            gaps: dict[str, list[int]] = {peer.name: [] for peer in peers}
            for number in range(self.args.rounds):
                say(f"{name}, round {number + 1} of {self.args.rounds}")
                for peer in peers:
                    await self.load(peer, mode, min(clients, 8), seconds=self.args.seconds / 10)
                    before_s = peer.cpu_s()
                    seen = await self.load(peer, mode, clients, seconds=self.args.seconds)
                    cpu_s = peer.cpu_s() - before_s
                    answers = max(1, seen.answers)
                    rounds[peer.name].append(
                        {
                            "cpu_us_per_request": cpu_s * 1e6 / answers,
                            "requests_per_s": seen.answers / seen.wall_s,
                        }
                    )
                    gaps[peer.name] += seen.added_gap_ns
            found[name] = _by_peer(rounds)
            if mode.pace_us:
                for peer_name, gap_ns in gaps.items():
                    found[name][peer_name] |= quantiles_ms("added_gap_ms", gap_ns)
        return found

    async def delay(self, peers: Sequence[Peer]) -> dict[str, Any]:
        """Time to first token at one client, and what each peer adds to the worker's own."""
        mode = self.modes["burst"][0]
        ttft_ns: dict[str, list[int]] = {peer.name: [] for peer in peers}
        say("time to first token, one client")
        for _ in range(10):
            for peer in peers:
                await self.load(peer, mode, 1, asks_max=5)
                seen = await self.load(peer, mode, 1, asks_max=max(1, self.args.asks // 10))
                ttft_ns[peer.name] += seen.ttft_ns
        found: dict[str, Any] = {
            name: quantiles_ms("ttft_ms", values) for name, values in ttft_ns.items()
        }
        for row in found.values():
            for quantile in ("p50", "p99"):
                own = row[f"ttft_ms_{quantile}"] - found["direct"][f"ttft_ms_{quantile}"]
                row[f"added_ttft_ms_{quantile}"] = round(own, 4)
        return found

    async def memory(self, peer: Peer, streams: int) -> dict[str, Any]:
        """Resident memory for each of so many open streams, and what is left of it afterwards."""
        say(f"memory, {streams} open streams")
        warm = Mode(stream=True, tokens=self.args.chunks)
        await self.load(peer, warm, min(streams, 64), asks_max=4)
        idle_bytes, idle_files = peer.rss_bytes(), peer.files()
        mode = Mode(stream=True, tokens=self.args.memory_tokens, pace_us=self.args.memory_pace_us)
        crowd = Crowd(peer.ports, peer.key, mode, clients=streams, asks_max=1)
        began_s = time.monotonic()
        await crowd.begin(wait=True)
        opened_s = time.monotonic() - began_s
        open_bytes, open_files = peer.rss_bytes(), peer.files()
        seen = await crowd.end()
        self.took(peer, seen)
        await asyncio.sleep(self.args.seconds)
        until_s = time.monotonic() + CLOSING_S_MAX
        # It tells nobody that it has closed a connection.
        while peer.files() >= open_files and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return {
            "streams": streams,
            "whole_answers": seen.answers,
            "opened_s": round(opened_s, 2),
            "bytes_per_stream": round((open_bytes - idle_bytes) / streams),
            "rss_mb": {
                "idle": round(idle_bytes / 1e6, 1),
                "open": round(open_bytes / 1e6, 1),
                "afterwards": round(peer.rss_bytes() / 1e6, 1),
            },
            "files": {"idle": idle_files, "open": open_files, "afterwards": peer.files()},
        } | quantiles_ms("added_gap_ms", seen.added_gap_ns)

    async def serving(self, peer: Peer) -> dict[str, float]:
        """Burst streams, as many as it can, and paced ones, whose rate is the same for all."""
        found: dict[str, float] = {}
        for name in ("burst", "paced"):
            mode, clients = self.modes[name]
            await self.load(peer, mode, 8, seconds=self.args.seconds / 10)
            before_s = peer.cpu_s()
            seen = await self.load(peer, mode, clients, seconds=self.args.seconds)
            cpu_s, answers = peer.cpu_s() - before_s, max(1, seen.answers)
            found |= {
                f"{name}_per_s": answers / seen.wall_s,
                f"{name}_cpu_us": cpu_s * 1e6 / answers,
                f"{name}_cores": cpu_s / seen.wall_s,
            }
        return found

    async def capacity(self, peer: Peer, share: float) -> dict[str, float]:
        """Burst streams while each process that serves has no more than a share of a core.

        Client, worker and all these shares fit on the machine's cores together, so the processes
        are what is short, as if each had a core of its own that is so much slower.
        """
        mode, _ = self.modes["burst"]
        pids = peer.serving()
        with capped(pids, share):
            await self.load(peer, mode, CAPPED_CLIENTS, seconds=self.args.seconds / 10)
            before_s = peer.cpu_s()
            seen = await self.load(peer, mode, CAPPED_CLIENTS, seconds=self.args.seconds)
            cpu_s = peer.cpu_s() - before_s
        return {
            "capped_per_s": seen.answers / seen.wall_s,
            "capped_cpu_us": cpu_s * 1e6 / max(1, seen.answers),
            "capped_used": cpu_s / seen.wall_s / (share * len(pids)),
        }

    def settled(self, home: Path) -> dict[str, int]:
        """Prove a ledger whose factory has stopped; each whole answer must be in it once."""
        store = sqlite_store(home / "ledger.sqlite")
        try:
            posted = sum(entry.ending == "done" for entry in proved(store).values())
            blocks = sum(store.block_numbers().values())
        finally:
            store.close()
        if posted != self.answers:
            self.faults.append(f"{self.answers} whole answers, but {posted} in the ledger")
        found = {"answers": self.answers, "posted": posted, "blocks": blocks}
        self.answers = 0
        return found


def _by_peer(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for peer, rows in rounds.items():
        found[peer] = {
            name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]
        }
        if "nginx" in rounds and peer not in ("nginx", "direct"):
            ratios = [
                row["cpu_us_per_request"] / max(control["cpu_us_per_request"], 1e-9)
                for row, control in zip(rows, rounds["nginx"], strict=True)
            ]
            found[peer]["ratio_to_nginx"] = round(statistics.median(ratios), 2)
        if peer == "litellm":
            ratios = [
                row["cpu_us_per_request"] / max(ours["cpu_us_per_request"], 1e-9)
                for row, ours in zip(rows, rounds["gateway"], strict=True)
            ]
            found[peer]["ratio_to_gateway"] = round(statistics.median(ratios), 1)
    return found


def quantiles_ms(name: str, values_ns: list[int]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds; nothing of nothing."""
    if not values_ns:
        return {}
    ordered = sorted(values_ns)
    at = {"p50": len(ordered) // 2, "p99": min(len(ordered) - 1, len(ordered) * 99 // 100)}
    return {f"{name}_{word}": round(ordered[i] / 1e6, 4) for word, i in at.items()}


def per_chunk(costs: dict[str, Any], chunks: int) -> dict[str, Any]:
    """CPU microseconds that each chunk after the first takes, by way of streaming and peer."""
    return {
        mode: {
            peer: round((row["cpu_us_per_request"] - first["cpu_us_per_request"]) / (chunks - 1), 2)
            for (peer, row), first in zip(costs[mode].items(), costs["one"].values(), strict=True)
        }
        for mode in ("burst", "paced")
    }


@contextlib.contextmanager
def peers_of(
    args: argparse.Namespace, home: Path, folder: Path, files: int
) -> Iterator[list[Peer]]:
    """The worker by itself, nginx, our gateway and whoever else is asked for."""
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(fake_worker())
        found = [worker]
        if args.nginx:
            found.append(stack.enter_context(nginx(worker.ports[0], folder / "nginx", files)))
        prepare(home, worker.ports, 1, whole_answers=args.whole_answers)
        found.append(stack.enter_context(gateway([home])))
        if "litellm" in args.peer:
            say("starting LiteLLM")
            found.append(stack.enter_context(litellm(worker.ports[0], folder / "litellm")))
        if args.own_core:
            stack.enter_context(own_core(found[1:], [worker]))
        yield found


def measure(bench: Bench, folder: Path, files: int) -> dict[str, Any]:
    """All of it."""
    args, found = bench.args, dict[str, Any]()
    if args.only_processes:
        return {"processes": processes(bench, folder)}
    home = folder / "home"
    with peers_of(args, home, folder, files) as peers:
        found["costs"] = uvloop.run(bench.costs(peers))
        found["cpu_us_per_chunk"] = per_chunk(found["costs"], args.chunks)
        found["delay"] = uvloop.run(bench.delay(peers))
    found["ledger"] = bench.settled(home)
    streams = min(args.streams, fitting(LIMITS, files).connections_max)
    if streams:
        home, addresses = folder / "wide", streams // SLOTS + 1
        with fake_worker(addresses) as worker:
            prepare(home, worker.ports, addresses)
            with gateway([home]) as peer:
                found["memory"] = uvloop.run(bench.memory(peer, streams))
        found["memory"]["ledger"] = bench.settled(home)
    if args.processes > 1:
        found["processes"] = processes(bench, folder)
    return found


def processes(bench: Bench, folder: Path) -> dict[str, Any]:
    """A factory that serves from several processes, against one that serves from one.

    Where client, worker and gateway share too few cores, the rate says little of scaling: what a
    request costs in CPU at the same load does. With a core for each, the processes give as many
    times the rate of one as there are, times what one pays for a request by what several pay.
    """
    count = bench.args.processes
    rows: dict[int, list[dict[str, float]]] = {1: [], count: []}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(fake_worker()) for _ in range(bench.args.workers)]
        for number in range(bench.args.rounds):
            for each, found in rows.items():
                say(f"{each} processes, round {number + 1} of {bench.args.rounds}")
                home = folder / f"processes-{each}-{number}"
                prepare(home, [worker.ports[0] for worker in workers], 1)
                with gateway([home], "--processes", str(each)) as peer:
                    if bench.args.share:
                        found.append(uvloop.run(bench.capacity(peer, bench.args.share)))
                    else:
                        found.append(uvloop.run(bench.serving(peer)))
                books = bench.settled(home)
                found[-1]["commits_per_answer"] = books["blocks"] / max(1, books["posted"])
    medians = {
        str(each): {
            name: round(statistics.median(row[name] for row in found), 2) for name in found[0]
        }
        for each, found in rows.items()
    }
    pairs = list(zip(*rows.values(), strict=True))
    ratios = {
        name: round(statistics.median(many[name] / one[name] for one, many in pairs), 2)
        for name in rows[1][0]
    }
    return {"count": count, "median": medians, "ratio_to_one": ratios}


def show(found: dict[str, Any]) -> None:
    """The figures as tables."""
    if "costs" not in found:
        print(json.dumps(found, indent=2))
        return
    print(f"{'mode':8}{'peer':>10}{'CPU us/request':>16}{'requests/s':>12}{'to nginx':>10}")
    for mode, peers in found["costs"].items():
        for peer, row in peers.items():
            ratio, times = row.get("ratio_to_nginx", ""), row.get("ratio_to_gateway")
            print(
                f"{mode:8}{peer:>10}{row['cpu_us_per_request']:16.1f}"
                f"{row['requests_per_s']:12.0f}{ratio:>10}"
                + (f"  {times} times the gateway's" if times else "")
            )
    for mode, each in found["cpu_us_per_chunk"].items():
        words = ", ".join(f"{peer} {us}" for peer, us in each.items())
        print(f"CPU us for each further chunk, {mode}: {words}")
    for peer, row in found["delay"].items():
        gap = found["costs"]["paced"][peer]
        print(
            f"{peer}: TTFT added, p50 {row['added_ttft_ms_p50']} ms, p99 {row['added_ttft_ms_p99']}"
            f" ms; gap added to a paced chunk, p99 {gap.get('added_gap_ms_p99')} ms"
        )
    for name in ("memory", "processes", "ledger"):
        if name in found:
            print(f"{name}: {json.dumps(found[name])}")


def arguments() -> argparse.Namespace:
    """What was asked for; ``--quick`` shrinks all that was not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a few seconds: does it work, not what it costs")
    add("--rounds", type=int, help="turns of each peer in each mode")
    add("--seconds", type=float, help="of a turn")
    add("--chunks", type=int, default=32, help="tokens of each answer, one in a chunk")
    add("--clients", type=int, help="at once, of answers that come at once")
    add("--paced-clients", type=int, help="at once, of streams with a token each 5 ms")
    add("--asks", type=int, help="requests of the one client whose wait is measured")
    add("--streams", type=int, help="open at once where memory is measured; 0 for none")
    add("--memory-pace-us", type=int, help="between two tokens of these")
    add("--memory-tokens", type=int, default=MEMORY_TOKENS, help="of each of these")
    add("--processes", type=int, help="of one factory, against one; 1 for none")
    add("--workers", type=int, default=1, help="fake ones where processes are measured")
    add("--share", type=float, default=0.0, help="of a core for each of these; 0 for no cap")
    add("--only-processes", action="store_true", help="measure nothing else")
    add("--whole-answers", action="store_true", help="of workers, where callers want no stream")
    add("--own-core", action="store_true", help="for who is measured; client and worker share one")
    add("--peer", action="append", default=[], choices=["litellm"], help="measure it, too")
    add("--no-nginx", dest="nginx", action="store_false", help="without the control")
    args = parser.parse_args()
    if args.own_core and len(os.sched_getaffinity(0)) < 2:
        parser.error("--own-core takes two cores, and there is one here.")
    full = (3, 3.0, 32, 64, 500, 10_000, MEMORY_PACE_US, 2)
    quick = (1, 0.3, 4, 4, 20, 50, 20_000, 1)
    names = ("rounds", "seconds", "clients", "paced_clients", "asks", "streams")
    for name, value in zip(
        (*names, "memory_pace_us", "processes"), quick if args.quick else full, strict=True
    ):
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> None:
    """Measure, and say what was found; the last line is JSON."""
    args = arguments()
    bench, files = Bench(args), files_max()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measure(bench, Path(folder), files)
        except FileNotFoundError as error:
            sys.exit(str(error))
    show(found)
    about = {"cores": os.cpu_count(), "python": platform.python_version()}
    settings = {name: value for name, value in vars(args).items() if name != "quick"}
    result = {"bench": "gateway", **about, "settings": settings, **found, "faults": bench.faults}
    print(json.dumps(result))
    sys.exit(bool(bench.faults))


if __name__ == "__main__":
    main()

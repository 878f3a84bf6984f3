"""Runs the fuzzers: guided by coverage (atheris), or by chance alone.

python -m bars.fuzz --seconds 45               # each of them, one after another
python -m bars.fuzz edge --seconds 60 --seed 2
python -m bars.fuzz --replay FILE              # a fault or a folder of a corpus again

Inputs that reached something new are kept in .fuzz, in a folder for each fuzzer, and the next run
begins with them. A fault is printed when it is first seen, its input kept in .fuzz/faults; the run
goes on. The last line is JSON. The exit status is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

HARNESSES = ("edge", "answers", "passing", "worker", "readers")
FUZZED = ("tokenworks.gateway", "tokenworks.live.network")
INPUT_BYTES_MAX = 512
ONE_S_MAX = 20
RSS_MB_MAX = 1_500
SEEDS = 64
FAULT = "FAULT"
_NOTED = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")


class Watched:
    """A harness that tells each kind of fault once, keeps its input, and goes on."""

    def __init__(self, name: str, faults: Path) -> None:
        self._one: Callable[[bytes], None] = importlib.import_module(f"bars.fuzz.{name}").one
        self._name, self._faults = name, faults
        self.seen: set[tuple[str, ...]] = set()

    def __call__(self, data: bytes) -> None:
        """Check one input."""
        try:
            self._one(data)
        except Exception as error:  # noqa: BLE001 - whatever comes out is the fault
            told = traceback.extract_tb(error.__traceback__)
            where = (type(error).__name__, *(f"{at.filename}:{at.lineno}" for at in told[-2:]))
            if where not in self.seen:
                self.seen.add(where)
                self._faults.mkdir(parents=True, exist_ok=True)
                kept = self._faults / f"{self._name}-{hashlib.sha256(data).hexdigest()[:16]}"
                kept.write_bytes(data)
                print(FAULT, kept, where, file=sys.stderr)
                traceback.print_exception(error, limit=-6)


def harness_of(path: Path) -> str:
    """Whose input a file is: a fault's name begins with it, a corpus lies in its folder."""
    for name in (path.name.partition("-")[0], path.parent.name):
        if name in HARNESSES:
            return name
    raise SystemExit(f"{path} is no input of a fuzzer: its name must begin with one of {HARNESSES}")


def replayed(paths: Iterable[Path], faults: Path) -> dict[str, dict[str, Any]]:
    """Each file checked once more, by its own fuzzer."""
    found: dict[str, Watched] = {}
    executions = dict.fromkeys(HARNESSES, 0)
    for path in paths:
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if each.is_file():
                name = harness_of(each)
                found.setdefault(name, Watched(name, faults))(each.read_bytes())
                executions[name] += 1
    return {
        name: {"executions": executions[name], "faults": len(one.seen)}
        for name, one in found.items()
    }


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError("one input took too long")


def by_chance(
    one: Watched, *, seconds: float, seed: int, runs_max: int = sys.maxsize, one_s_max: float
) -> dict[str, Any]:
    """Inputs drawn at random, for so long or so many."""
    rng = random.Random(seed)
    began, done = time.monotonic(), 0
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        while done < runs_max and time.monotonic() - began < seconds:
            signal.setitimer(signal.ITIMER_REAL, one_s_max)
            one(rng.randbytes(rng.randrange(INPUT_BYTES_MAX)))
            done += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wall_s = round(time.monotonic() - began, 1)
    return {"executions": done, "seconds": wall_s, "faults": len(one.seen)}


def guided(name: str, *, seconds: float, seed: int, corpus: Path) -> None:
    """Hand over to libFuzzer, which ends the process."""
    faults = corpus / "faults"
    with atheris.instrument_imports(include=list(FUZZED)):
        one = Watched(name, faults)
    options = [
        *(f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-max_len={INPUT_BYTES_MAX}"),
        *(f"-timeout={ONE_S_MAX}", f"-rss_limit_mb={RSS_MB_MAX}", "-len_control=0"),
        f"-artifact_prefix={faults}/{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus / name)], one)
    atheris.Fuzz()


def run(name: str, *, seconds: float, seed: int, corpus: Path) -> dict[str, Any]:
    """One guided run in a process of its own; what it says goes on to stderr."""
    for folder in (corpus / name, corpus / "faults"):
        folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for i in range(SEEDS):
        (corpus / name / f"seed-{seed}-{i}").write_bytes(rng.randbytes(8 * (1 + i % 32)))
    command = [sys.executable, "-m", "bars.fuzz", name, "--inside", "--corpus", str(corpus)]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    began = time.monotonic()
    faults = 0
    told: tuple[int, ...] = (0, 0, 0, 0)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            faults += line.startswith(FAULT)
            noted = _NOTED.search(line)
            if noted:
                told = tuple(map(int, noted.groups()))
            elif not line.startswith("INFO: Instrumenting"):
                sys.stderr.write(line)
    executions, covered, features, kept = told
    return {
        "executions": executions,
        "seconds": round(time.monotonic() - began, 1),
        "edges_covered": covered,
        "features": features,
        "corpus": kept,
        "faults": faults + (process.returncode != 0),
    }


def main() -> int:
    """Run, and print one line for each fuzzer and one for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*HARNESSES, []], help="all if none is named")
    parser.add_argument("--seconds", type=float, default=45, help="for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="kept there")
    parser.add_argument("--replay", type=Path, nargs="+", help="check these files, and no more")
    parser.add_argument("--by-chance", action="store_true", help="do not ask for atheris")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if atheris is None and not (args.by_chance or args.replay):
        parser.error("atheris is not installed: see requirements/soak.txt, or pass --by-chance")
    names = args.names or HARNESSES
    if args.inside:
        guided(names[0], seconds=args.seconds, seed=args.seed, corpus=args.corpus)
    found: dict[str, dict[str, Any]] = {}
    faults = args.corpus / "faults"
    if args.replay:
        found = replayed(args.replay, faults)
    for name in () if args.replay else names:
        if args.by_chance:
            one = Watched(name, faults)
            found[name] = by_chance(one, seconds=args.seconds, seed=args.seed, one_s_max=ONE_S_MAX)
        else:
            found[name] = run(name, seconds=args.seconds, seed=args.seed, corpus=args.corpus)
        print(name, found[name], file=sys.stderr)
    print(json.dumps({"guided": not (args.by_chance or args.replay), **found}))
    return int(any(each["faults"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())

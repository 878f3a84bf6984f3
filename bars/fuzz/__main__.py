"""Runs the fuzzers: guided by coverage where atheris is installed, else by chance alone.

python -m bars.fuzz --seconds 300              # each of them, one after another
python -m bars.fuzz edge --seconds 60 --corpus FOLDER
python -m bars.fuzz edge --replay FOLDER       # what a corpus or a fault does

A fault is printed when it is first seen, with its input in hexadecimal; the run goes on. The last
line is JSON. The exit status is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

HARNESSES = ("edge", "answers", "worker", "readers")
FUZZED = ("tokenworks.gateway", "tokenworks.live.network")
INPUT_BYTES_MAX = 512
ONE_S_MAX = 20
RSS_MB_MAX = 1_500
SEEDS = 64
FAULT = "FAULT"
_DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)")
_COVERED = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")


class Watched:
    """A harness that tells each kind of fault once, and goes on."""

    def __init__(self, one: Callable[[bytes], None]) -> None:
        self._one = one
        self.seen: set[tuple[str, ...]] = set()

    def __call__(self, data: bytes) -> None:
        """Check one input."""
        try:
            self._one(data)
        except Exception as error:
            told = traceback.extract_tb(error.__traceback__)
            where = (type(error).__name__, *(f"{at.filename}:{at.lineno}" for at in told[-2:]))
            if where not in self.seen:
                self.seen.add(where)
                print(FAULT, where, data.hex(), file=sys.stderr)
                traceback.print_exception(error, limit=-6)


def seeds(folder: Path, seed: int) -> None:
    """A small corpus to begin with."""
    rng = random.Random(seed)
    for i in range(SEEDS):
        (folder / f"seed-{i}").write_bytes(rng.randbytes(8 * (1 + i % 32)))


def by_chance(one: Watched, *, seconds: float, runs: int, seed: int) -> dict[str, Any]:
    """Inputs drawn at random, for so long or so many."""
    rng = random.Random(seed)
    began, done = time.monotonic(), 0
    while done < runs if runs else time.monotonic() - began < seconds:
        one(rng.randbytes(rng.randrange(INPUT_BYTES_MAX)))
        done += 1
    return {"executions": done, "seconds": round(time.monotonic() - began, 1)}


def guided(name: str, *, seconds: float, seed: int, corpus: Path) -> None:
    """Hand over to libFuzzer, which ends the process."""
    with atheris.instrument_imports(include=list(FUZZED)):
        one = Watched(importlib.import_module(f"bars.fuzz.{name}").one)
    options = [
        *(f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-max_len={INPUT_BYTES_MAX}"),
        *(f"-timeout={ONE_S_MAX}", f"-rss_limit_mb={RSS_MB_MAX}", "-len_control=0"),
        f"-artifact_prefix={corpus.parent}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def run(name: str, *, seconds: float, seed: int, corpus: Path) -> dict[str, Any]:
    """One guided run in a process of its own; what it says goes on to stderr."""
    corpus.mkdir(parents=True, exist_ok=True)
    seeds(corpus, seed)
    command = [sys.executable, "-m", "bars.fuzz", name, "--inside", "--corpus", str(corpus)]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    began = time.monotonic()
    faults = 0
    told: tuple[int, ...] = (0, 0, 0, 0)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            faults += line.startswith(FAULT)
            found = _DONE.search(line) or _COVERED.search(line)
            if found:
                told = tuple(map(int, found.groups()))
            else:
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
    parser.add_argument("--seconds", type=float, default=60, help="for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="kept there, in a folder for each")
    parser.add_argument("--replay", type=Path, help="check the files of a folder, and no more")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.names or HARNESSES
    if args.inside:
        guided(names[0], seconds=args.seconds, seed=args.seed, corpus=args.corpus)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if args.replay is None and atheris is not None:
                corpus = (args.corpus or Path(folder)) / name
                found[name] = run(name, seconds=args.seconds, seed=args.seed, corpus=corpus)
            else:
                one = Watched(importlib.import_module(f"bars.fuzz.{name}").one)
                if args.replay is None:
                    told = by_chance(one, seconds=args.seconds, runs=0, seed=args.seed)
                else:
                    files = [each for each in sorted(args.replay.rglob("*")) if each.is_file()]
                    for each in files:
                        one(each.read_bytes())
                    told = {"executions": len(files)}
                found[name] = {**told, "faults": len(one.seen)}
            print(name, found[name], file=sys.stderr)
    print(json.dumps({"guided": atheris is not None and args.replay is None, **found}))
    return int(any(each["faults"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())

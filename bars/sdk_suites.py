"""The SDKs' own tests, at a mock of the provider and through a factory before it: the same pass.

It runs checkouts that you have, with a Python that has what their tests need, and so runs their
code. Nothing is fetched. The mock is Steady (``npm install @stdy/cli``), which answers by a
provider's OpenAPI document, and the recorded streams are those that the SDKs keep for their tests.

python -m bars.sdk_suites --python VENV/bin/python --steady node_modules/.bin/steady \
    --openai openai-python --anthropic anthropic-sdk-python --anthropic-spec anthropic.yaml
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bars.factory import Running, running
from bars.proof import proved
from bars.recorded_streams import Streams, streams_in
from bench.gateway_peers import child, held_port, tool
from tokenworks.ledger.entries import Posted
from tokenworks.live.home import packaged
from tokenworks.live.store import sqlite_store

READY_S_MAX = 60
SUITE_S_MAX = 900
FACTORY = """
[gateway]
pass_through = true

[pool.provider]
engine = "attached"
model = "*"
urls = ["{url}"]
slots = 64
curve = [[1, 400], [64, 400]]
"""
FORMATS = [
    f"--validator-{place}-{kind}-format=brackets"
    for place in ("query", "form")
    for kind in ("array", "object")
]
"""How the SDKs write lists and objects into queries and forms, as their own scripts tell Steady."""

_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is known of one SDK.

    Attributes:
        module: what it is imported as.
        tests: files and folders of its tests, of the routes that are passed through.
        key: the API key that its tests send.
        spec: its OpenAPI document in the checkout; None where it keeps none.
        base: what its base URL ends in at a factory.
        provider: what the provider's paths begin with at its mock.
        recorded: patterns of the files that hold recorded streams.
    """

    module: str
    tests: tuple[str, ...]
    key: str
    spec: str | None
    base: str
    provider: str
    recorded: tuple[str, ...]


KINDS = (
    Kind(
        module="openai",
        tests=(
            *(f"{name}/" for name in ("audio", "chat", "conversations", "responses", "uploads")),
            *("test_batches.py", "test_completions.py", "test_conversations.py"),
            *("test_embeddings.py", "test_files.py", "test_images.py", "test_models.py"),
            *("test_moderations.py", "test_responses.py", "test_uploads.py"),
        ),
        key="My API Key",
        spec="api_reference/openapi.transformed.yml",
        base="/v1",
        provider="",
        recorded=(".inline-snapshot/external/*.bin",),
    ),
    Kind(
        module="anthropic",
        tests=(
            *("messages/", "test_messages.py", "test_models.py", "beta/messages/"),
            *("beta/test_files.py", "beta/test_messages.py", "beta/test_models.py"),
        ),
        key="my-anthropic-api-key",
        spec=None,
        base="",
        provider="/v1",
        recorded=("tests/lib/streaming/fixtures/*.txt", "tests/fixtures/**/*.sse"),
    ),
)


@dataclasses.dataclass(frozen=True)
class SDK:
    """One SDK as it lies here."""

    kind: Kind
    checkout: Path
    python: str

    def run(self, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """Run its Python in its checkout, with its own source first."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment |= {"PYTHONPATH": str(self.checkout / "src"), **variables}
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SUITE_S_MAX,
            check=False,
        )

    def versions(self) -> dict[str, str]:
        """Of itself, and the commit of its checkout."""
        name = self.kind.module
        found = self.run(["-c", f"import {name}; print({name}.__version__)"])
        if found.returncode:
            raise RuntimeError(f"{self.python} cannot import {name}: {found.stderr[-500:]}")
        git = ["git", "-C", str(self.checkout), "rev-parse", "--short=8", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False)
        return {name: found.stdout.strip(), "commit": commit.stdout.strip() or "no git"}

    def suite(self, url: str, folder: Path) -> dict[str, str]:
        """How each test ended whose requests go there: passed, skipped, or failed and why."""
        report = folder / f"{self.kind.module}-{time.monotonic_ns()}.xml"
        there = [path for path in self.kind.tests if (self.checkout / TESTS / path).exists()]
        options = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        done = self.run(
            ["-m", "pytest", *options, *(f"{TESTS}/{path}" for path in there)],
            TEST_API_BASE_URL=url,
        )
        if done.returncode not in (0, 1):  # 1: some failed
            raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}")
        return outcomes(report)


TESTS = "tests/api_resources"


def outcomes(report: Path) -> dict[str, str]:
    """Tests of a JUnit report by name; addresses in failures are left out."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        assert name not in found, f"{name} ran twice"
        found[name] = "passed"
        for kind in ("skipped", "failure", "error"):
            said = case.find(kind)
            if said is not None:
                why = _ADDRESS.sub("ADDRESS", said.get("message") or "")
                found[name] = "skipped" if kind == "skipped" else f"failed: {why}"
    return found


def tally(found: dict[str, str]) -> dict[str, int]:
    """How many passed, failed and were skipped."""
    counts = collections.Counter(outcome.partition(":")[0] for outcome in found.values())
    return {each: counts[each] for each in ("passed", "failed", "skipped")}


@contextlib.contextmanager
def mock(steady: str, spec: Path, folder: Path) -> Iterator[str]:
    """Steady with an OpenAPI document; its URL."""
    with held_port() as port:
        url = f"http://127.0.0.1:{port}"
        command = [steady, "--host", "127.0.0.1", "-p", str(port), *FORMATS, "-q", str(spec)]
        log = folder / "steady.log"
        with log.open("wb") as out, child(command, stdout=out, stderr=out) as process:
            until = time.monotonic() + READY_S_MAX
            while process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"{url}/_x-steady/health", timeout=5).close()
                    break
                time.sleep(0.1)
            else:
                raise RuntimeError(f"Steady did not start: {log.read_text()[-1000:]}")
            yield url


@contextlib.contextmanager
def factory(home: Path, url: str, key: str) -> Iterator[Running]:
    """A factory that passes on to there, and takes that key."""
    home.mkdir()
    (home / "factory.toml").write_text(FACTORY.format(url=url))
    prices = packaged("laptop.toml").read_text().replace("price.foreman", 'price."*"')
    (home / "price_book.toml").write_text(prices)
    os.environ["BAR_KEY"] = key
    tool(home, "key", "create", "--secret-env", "BAR_KEY")
    for limit in (("--tokens", str(10**15)), ("--usd", "1000000000")):
        tool(home, "quota", "set", "tenant:local", *limit)
    with running(home, "--quiet") as found:
        yield found


def answers_of(home: Path) -> dict[str, Posted]:
    """What is in the ledger of a factory that has stopped, proved; no hold is open."""
    store = sqlite_store(home / "ledger.sqlite")
    try:
        return proved(store)
    finally:
        store.close()


def compare_suite(sdk: SDK, steady: str, spec: Path, folder: Path) -> dict[str, Any]:
    """Run the suite twice; how both ended, and the tests that ended otherwise."""
    kind = sdk.kind
    with mock(steady, spec, folder) as url:
        direct = sdk.suite(url, folder)
        home = folder / f"{kind.module}-suite"
        with factory(home, url + kind.provider, kind.key) as found:
            through = sdk.suite(found.url.removesuffix("/v1") + kind.base, folder)
            assert found.stop() == 0
    assert direct, "no test ran"
    names = sorted(direct.keys() | through.keys())
    return {
        "spec_sha256": hashlib.sha256(spec.read_bytes()).hexdigest()[:16],
        "direct": tally(direct),
        "through": tally(through),
        "different": {
            name: [direct.get(name, "not run"), through.get(name, "not run")]
            for name in names
            if direct.get(name) != through.get(name)
        },
        "ledger_answers": len(answers_of(home)),
    }


def compare_streams(sdk: SDK, folder: Path) -> dict[str, Any]:
    """Serve what the SDK has recorded, in small pieces: bytes, events and bills, both ways."""
    kind = sdk.kind
    streams = streams_in(sdk.checkout, kind.recorded, kind.module)
    home = folder / f"{kind.module}-streams"
    with Streams(streams) as provider:
        direct = provider.bodies(provider.url, "none")
        read_direct = provider.events(sdk.run, provider.url + kind.base, "none")
        with factory(home, provider.url + kind.provider, kind.key) as found:
            url = found.url.removesuffix("/v1")
            through = provider.bodies(url, kind.key)
            read_through = provider.events(sdk.run, url + kind.base, kind.key)
            assert found.stop() == 0
    posted = answers_of(home)
    faults = []
    for name, stream in streams.items():
        if direct[name].body != stream.body or through[name].body != stream.body:
            faults.append(f"{name}: other bytes came")
        if read_direct[name] != read_through[name]:
            faults.append(f"{name}: the SDK read other events")
        entry = posted[through[name].request]
        told = stream.told()
        billed = (entry.usage.prompt_tokens, entry.usage.completion_tokens)
        if told is not None and billed != told:
            faults.append(f"{name}: it tells of {told} tokens, and {billed} are billed")
    return {
        "streams": len(streams),
        "events": sum(len(events) for events in read_through.values()),
        "that_tell_usage": sum(stream.told() is not None for stream in streams.values()),
        "faults": faults,
        "ledger_answers": len(posted),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [f"{'':12}{'':10}{'passed':>8}{'failed':>8}{'skipped':>9}"]
    for name, each in found.items():
        for way in ("direct", "through"):
            counts = each["suite"][way] if "suite" in each else {}
            if counts:
                row = "".join(f"{counts[k]:>{w}}" for k, w in zip(counts, (8, 8, 9), strict=True))
                lines.append(f"{name:12}{way:10}{row}")
        for test, (direct, through) in each.get("suite", {}).get("different", {}).items():
            lines.append(f"  {test}\n    direct:  {direct[:500]}\n    through: {through[:500]}")
        streams = each["streams"]
        lines.append(f"{name:12}{streams['streams']} recorded streams, {streams['events']} events")
        lines += [f"  {fault}" for fault in streams["faults"]]
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for; the last line is JSON, and the status 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--python", default=sys.executable, help="one with what the tests need")
    parser.add_argument("--steady", default="steady", help="the program of @stdy/cli")
    for kind in KINDS:
        parser.add_argument(f"--{kind.module}", type=Path, metavar="CHECKOUT")
        parser.add_argument(
            f"--{kind.module}-spec",
            type=Path,
            metavar="FILE",
            help="without: the SDK's own, if any",
        )
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in KINDS:
            checkout: Path | None = getattr(args, kind.module)
            if checkout is None:
                continue
            python = str(Path(args.python).absolute())
            sdk = SDK(kind, checkout.resolve(), python)
            each: dict[str, Any] = {"versions": sdk.versions()}
            spec: Path | None = getattr(args, f"{kind.module}_spec")
            if spec is None and kind.spec is not None:
                spec = checkout / kind.spec
            if spec is not None:
                each["suite"] = compare_suite(sdk, args.steady, spec.resolve(), folder)
            each["streams"] = compare_streams(sdk, folder)
            found[kind.module] = each
    if not found:
        parser.error("name a checkout: --openai or --anthropic")
    print(table(found))
    print(json.dumps({"bar": "sdk_suites", **found}))
    if any(e["streams"]["faults"] or e.get("suite", {}).get("different") for e in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

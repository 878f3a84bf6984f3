"""A real factory as an operator meets it: processes, signals, the shipped model."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.command_line import data, done
from tokenworks.live.home import MODEL_FILE, Home, packaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not packaged(MODEL_FILE).is_file(), reason="the weights are not there"),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux"),
]

READY_S_MAX = 60
END_S_MAX = 60
REVOKED_S_MAX = 60
"""It is promised within a second; a machine under load may take longer."""

SETTINGS = packaged("factory.toml").read_text()


def command(home: Home, *words: str) -> list[str]:
    return [sys.executable, "-m", "tokenworks.cli.main", "--home", str(home.path), *words]


class Factory:
    """``tokenworks up`` in a process of its own."""

    def __init__(self, home: Home) -> None:
        self.process = subprocess.Popen(
            command(home, "up", "--port", "0", "--json"), stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], READY_S_MAX)
        assert ready, "no ready line"
        self.facts: dict[str, Any] = json.loads(self.process.stdout.readline())

    def children(self) -> dict[int, int]:
        """Process ids, each with a descriptor that is readable when it has ended."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children")
        found = [int(word) for task in tasks for word in task.read_text().split()]
        return {pid: os.pidfd_open(pid) for pid in found}

    def end(self, by: signal.Signals) -> int:
        """Signal it, and see that it and its workers end; returns its status."""
        workers = self.children()
        assert workers
        self.process.send_signal(by)
        status = self.process.wait(END_S_MAX)
        for pidfd in workers.values():
            assert select.select([pidfd], [], [], END_S_MAX)[0], "a worker outlived its factory"
            os.close(pidfd)
        return status


@pytest.fixture
def start(home: Home) -> Iterator[Callable[[], Factory]]:
    started: list[Factory] = []

    def begin() -> Factory:
        started.append(Factory(home))
        return started[-1]

    yield begin
    for factory in started:
        if factory.process.poll() is None:
            factory.process.kill()
            factory.process.wait()
        assert factory.process.stdout is not None
        factory.process.stdout.close()


def chat(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, "chat", *words, "--json"), capture_output=True, text=True, check=False
    )


def test_a_day_in_the_life_of_a_factory(home: Home, start: Callable[[], Factory]) -> None:
    home.make()
    port = "port = 8000"
    trusting = f"{port}\ntrusted_proxies = ['127.0.0.0/8']"
    home.settings.write_text(SETTINGS.replace(port, trusting))
    factory = start()
    assert factory.facts["models"] == ["foreman"]
    said = chat(home, "Hello!", "--tier", "medium")
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)
    assert answer["answer"]
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["service_tier"] in ("medium", "free")

    new = data(home, "key", "create", "--tokens", "100000")
    deadline = time.monotonic() + REVOKED_S_MAX
    while (said := chat(home, "Hello!", "--key", new["secret"])).returncode:
        assert time.monotonic() < deadline, said.stderr
        assert "invalid_api_key" in said.stderr
    done(home, "key", "revoke", new["key"])
    deadline = time.monotonic() + REVOKED_S_MAX
    while (said := chat(home, "Hello!", "--key", new["secret"])).returncode == 0:
        assert time.monotonic() < deadline, "a revoked key still works"
    assert said.stderr.startswith("invalid_api_key: ")

    near = data(home, "key", "create", "--from", "127.0.0.0/8", "--models", "foreman")
    far = data(home, "key", "create", "--from", "192.0.2.0/24")
    deadline = time.monotonic() + REVOKED_S_MAX
    while "invalid_api_key" in (said := chat(home, "Hello!", "--key", far["secret"])).stderr:
        assert time.monotonic() < deadline, said.stderr
    assert said.stderr.startswith("not_permitted: The key may not be used from 127.0.0.1;")
    assert chat(home, "Hello!", "--key", near["secret"]).returncode == 0
    told = {"authorization": f"Bearer {far['secret']}", "x-forwarded-for": "192.0.2.7"}
    asked = urllib.request.Request(f"{factory.facts['url']}/v1/models", headers=told)
    with urllib.request.urlopen(asked) as response:
        assert response.status == 200
    said = chat(home, "Hello!", "--key", near["secret"], "--model", "another")
    assert said.stderr.startswith("not_permitted: The key may not use the model 'another';")

    rows = {row["check"]: row for row in json.loads(doctor(home))}
    assert "2 of 2 workers are up" in rows["port"]["found"]
    assert factory.end(signal.SIGTERM) == 0
    assert not home.url.exists()

    report = data(home, "report")["rows"]
    *rest, total = report
    assert total["requests"] >= 2
    for field in ("requests", "input", "output", "revenue_nanodollars", "cost_nanodollars"):
        assert total[field] == sum(row[field] for row in rest)
    used = data(home, "key", "list")
    assert total["revenue_nanodollars"] == sum(row["used_nanodollars"] for row in used)
    assert total["input"] + total["output"] == sum(row["used_tokens"] for row in used)
    assert all(row["identical"] for row in data(home, "journal", "replay"))
    rows = {row["check"]: row for row in json.loads(doctor(home))}
    assert "0 open holds" in rows["ledger"]["found"]


def doctor(home: Home) -> str:
    """Its findings; port 8000 of the machine that runs the tests may be taken."""
    found = subprocess.run(command(home, "doctor", "--json"), capture_output=True, check=False)
    return found.stdout.decode()


def test_a_killed_factory_misleads_nobody_and_starts_again(
    home: Home, start: Callable[[], Factory]
) -> None:
    home.make()
    home.settings.write_text(SETTINGS.replace("port = 8000", "port = 0"))
    factory = start()
    assert chat(home, "Hello!").returncode == 0
    before = data(home, "key", "list")[0]["used_tokens"]
    assert before > 0
    assert factory.end(signal.SIGKILL) == -signal.SIGKILL
    assert home.read_url() == factory.facts["url"]
    said = chat(home, "Hello!")
    assert said.returncode == 1
    assert f"The factory at {factory.facts['url']} did not answer" in said.stderr
    assert "Is `tokenworks up` running?" in said.stderr
    rows = {row["check"]: row for row in json.loads(doctor(home))}
    assert rows["port"]["ok"]
    assert "was killed" in rows["port"]["found"]
    assert data(home, "key", "list")[0]["used_tokens"] == before  # nothing billed was lost
    again = start()
    assert again.facts["key"] == factory.facts["key"]
    assert chat(home, "Hello!").returncode == 0
    assert again.end(signal.SIGINT) == 0
    assert data(home, "key", "list")[0]["used_tokens"] > before
    assert all(row["identical"] for row in data(home, "journal", "replay"))

"""A factory of three real processes on one port, before a worker that counts what it runs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from bars.factory import Running, children_of, running, start
from bars.proof import proved
from bench.gateway_peers import fake_worker, prepare, tool
from bench.load_generator import Crowd, Mode
from tests.cli.command_line import ask, data, done, invoke
from tokenworks.cli import doctor
from tokenworks.cli.top_facts import Reading
from tokenworks.core.errors import ConfigInvalid, FactoryError, InvalidRequest
from tokenworks.ledger.entries import Posted
from tokenworks.live.home import Home
from tokenworks.live.store import sqlite_store

pytestmark = pytest.mark.slow

SLOTS = 6
PROCESSES = 3
LIMIT_TOKENS = 2_000
STREAM = Mode(stream=True, tokens=20, pace_us=10_000)
LONG = Mode(stream=True, tokens=150, pace_us=20_000)
CLIENTS = 48
"""So many connections that the kernel gives each process some, but for once in 10**8 times."""
TOP = ("top", "--json", "--every", "0.1")
ENDLESS = Mode(stream=True, tokens=100_000, pace_us=20_000)
WAIT_S_MAX = 120


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


class Factory:
    """It and its worker, and what clients have seen of it."""

    def __init__(self, running: Running, worker_port: int) -> None:
        self.running, self.worker_port = running, worker_port
        self.answers = 0

    def pids(self) -> dict[int, int]:
        """Processes that serve, by index."""
        found = {}
        for pid in children_of(self.running.process.pid):
            with contextlib.suppress(OSError):  # it has ended
                words = command_line(pid).split(b"\0")
                if b"tokenworks.cli.member" in words:  # else it is about to become one
                    found[json.loads(words[-2])["index"]] = pid
        return found

    def kill(self, index: int) -> None:
        pid = self.pids()[index]
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: self.pids().get(index, pid) != pid)

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", port or self.running.port, timeout=WAIT_S_MAX
        )
        try:
            connection.request("GET", path)
            with connection.getresponse() as response:
                return response.status, response.read().decode()
        finally:
            connection.close()

    def status_of_key(self, key: str) -> int:
        """The status, of whichever process takes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=WAIT_S_MAX)
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
        status = connection.getresponse().status
        connection.close()
        return status

    def statuses_of_key(self, key: str) -> set[int]:
        """What the processes answer it."""
        return {self.status_of_key(key) for _ in range(CLIENTS)}

    def until(self, holds: Callable[[], Any]) -> None:
        deadline_s = time.monotonic() + WAIT_S_MAX
        while not holds():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)  # other processes tell nobody

    def reading(self) -> Reading:
        """What the processes say that have answered in time."""
        return Reading.of(self.get("/metrics")[1], 0.0)

    def whole_reading(self) -> Reading:
        """What all of them say."""
        deadline_s = time.monotonic() + WAIT_S_MAX
        while (found := self.reading()).total("tokenworks_process_up") != PROCESSES:
            assert time.monotonic() < deadline_s, "some process does not answer"
        return found

    def whole(self) -> bool:
        """Whether every process answers, and has a worker."""
        try:
            return all(self.get("/healthz")[0] == 200 for _ in range(CLIENTS)) and (
                self.reading().total("tokenworks_process_up") == PROCESSES
            )
        except OSError:
            return False

    def asks(
        self,
        *,
        clients: int,
        each: int | None = None,
        act: Callable[[], None] | None = None,
        key: str | None = None,
        mode: Mode = STREAM,
    ) -> Crowd:
        """Let clients ask, do something once all of them have connected, and wait for them.

        Args:
            clients: how many.
            each: how often each asks; None is until what was to be done is done.
            act: what to do.
            key: theirs.
            mode: what they ask for.
        """

        async def ask() -> Crowd:
            secret, port = key or self.running.key, self.running.port
            crowd = Crowd([port], secret, mode, clients=clients, asks_max=each)
            await crowd.begin()
            if act is not None:
                await asyncio.to_thread(act)
            if each is None:
                crowd.last()
            async with asyncio.timeout(WAIT_S_MAX):
                await crowd.end()
            return crowd

        crowd = asyncio.run(ask())
        self.answers += crowd.seen.answers
        return crowd


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    folder = tmp_path_factory.mktemp("processes")
    with fake_worker() as worker:
        prepare(folder / "home", worker.ports, 1, slots=SLOTS)
        arguments = ("--quiet", "--processes", str(PROCESSES))
        with running(folder / "home", *arguments) as started:
            yield Factory(started, worker.ports[0])


def test_they_serve_as_one(factory: Factory) -> None:
    home = Home(factory.running.home)
    crowd = factory.asks(clients=24, each=2)
    assert crowd.seen.faults == []
    reading = factory.whole_reading()
    assert reading.total("tokenworks_settled_requests_total") == factory.answers == 48
    shares = reading.by("tokenworks_settled_requests_total", "process")
    assert len(shares) > 1, "the kernel gave all connections to one of them"
    assert reading.total("tokenworks_worker_slots") == SLOTS
    assert reading.total("tokenworks_dollars_per_million_output_tokens", what="earned") > 0
    assert json.loads(factory.get("/counts", factory.worker_port)[1])["open_max"] == SLOTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "ANSWER_S_MAX", WAIT_S_MAX)
        (port,) = [row for row in data(home, "doctor") if row["check"] == "port"]
    assert port["ok"]
    assert "1 of 1 workers are up" in port["found"]
    assert data(home, "report")["rows"][-1]["requests"] == factory.answers
    # A process that is busy is left out of a reading.
    factory.until(lambda: tool(home.path, *TOP).count('"bench-0"') == 1)


def test_a_revoked_key_is_refused_by_all(factory: Factory) -> None:
    home = Home(factory.running.home)
    made = data(home, "key", "create", "--tenant", "local", "--name", "short")

    factory.until(lambda: factory.statuses_of_key(made["secret"]) == {200})
    done(home, "key", "revoke", made["key"])
    factory.until(lambda: factory.statuses_of_key(made["secret"]) == {401})


def test_a_limit_holds_over_all_of_them(factory: Factory) -> None:
    home = Home(factory.running.home)
    made = data(home, "key", "create", "--tenant", "local", "--name", "limited")
    done(home, "quota", "set", f"key:{made['key']}", "--tokens", str(LIMIT_TOKENS))

    def used() -> int:
        found = data(home, "quota", "list", "--node", f"key:{made['key']}")["limits"]
        return int(found[0]["used"])

    factory.until(lambda: factory.statuses_of_key(made["secret"]) == {200})
    tried = [factory.asks(clients=24, each=4, key=made["secret"]) for _ in range(2)]
    answers = sum(crowd.seen.answers for crowd in tried)
    assert answers
    for crowd in tried:
        assert all(fault.startswith("status 429") for fault in crowd.seen.faults)
        assert crowd.seen.failed
    assert 0 < used() <= LIMIT_TOKENS

    # What one process leased and does not need, another gets: nearly all of it can be used.
    def over() -> bool:
        factory.asks(clients=1, each=1, key=made["secret"])
        return used() > LIMIT_TOKENS // 2

    factory.until(over)
    assert used() <= LIMIT_TOKENS


def test_a_front_that_is_killed_comes_back_and_the_others_go_on(factory: Factory) -> None:
    settings = Home(factory.running.home).settings
    text = settings.read_text()

    def act() -> None:
        settings.write_text("[ledger]\npath = ")  # it starts with the settings of the others
        factory.kill(1)
        factory.until(factory.whole)

    crowd = factory.asks(clients=CLIENTS, act=act)
    settings.write_text(text)
    assert 0 < crowd.seen.failed < CLIENTS
    assert all("connection was lost" in fault for fault in crowd.seen.faults)
    factory.until(factory.whole)
    assert factory.asks(clients=24, each=1).seen.faults == []


def test_what_runs_and_waits_elsewhere_outlives_the_owner(factory: Factory) -> None:
    owner = factory.pids()[0]
    crowd = factory.asks(clients=CLIENTS, act=lambda: factory.kill(0))
    assert owner not in factory.pids().values()
    # Callers of the other two had to wait, and that was all.
    assert 0 < crowd.seen.failed < CLIENTS
    assert all("connection was lost" in fault for fault in crowd.seen.faults)
    factory.until(factory.whole)
    assert factory.asks(clients=24, each=1).seen.faults == []


def test_a_batch_goes_on_after_the_owner_and_each_line_is_billed_once(factory: Factory) -> None:
    lines = [
        json.dumps(
            {
                "custom_id": f"c{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {**json.loads(STREAM.body()), "stream": False},
            }
        )
        for n in range(40)
    ]
    url = f"http://127.0.0.1:{factory.running.port}/v1"
    key = Home(factory.running.home).read_key()

    def look(batch: str) -> Any:
        """Each time by a connection of its own, which any process may get."""
        with openai.OpenAI(base_url=url, api_key=key, max_retries=9) as client:
            return client.batches.retrieve(batch)

    with openai.OpenAI(base_url=url, api_key=key) as client:
        file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    factory.until(lambda: look(batch.id).request_counts.completed > SLOTS)
    factory.kill(0)
    factory.until(lambda: look(batch.id).status == "completed")
    factory.until(factory.whole)
    with openai.OpenAI(base_url=url, api_key=key) as client:
        output = client.files.content(look(batch.id).output_file_id).text
    told = [json.loads(line) for line in output.splitlines()]
    assert sorted(line["custom_id"] for line in told) == sorted(f"c{n}" for n in range(40))
    store = sqlite_store(Home(factory.running.home).ledger)
    try:
        posted = [each for each in store.load_entries() if isinstance(each, Posted) and each.batch]
    finally:
        store.close()
    asked = sorted(line["response"]["request_id"] for line in told)
    assert sorted(each.request for each in posted if each.ending == "done") == asked
    factory.answers += len(told)


def test_a_second_factory_keeps_off(factory: Factory) -> None:
    home = Home(factory.running.home)
    with pytest.raises(subprocess.CalledProcessError):
        tool(home.path, "up", "--processes", "2", "--port", "0")
    with pytest.raises(subprocess.CalledProcessError):
        tool(home.path, "up", "--port", "0")
    factory.until(factory.whole)


def no_hold(home: Home) -> bool:
    """Whether what the dead held is taken over by the living."""
    (row,) = [row for row in data(home, "doctor") if row["check"] == "ledger"]
    return "0 open holds" in row["found"] or "reads all" in row["found"]


def test_one_that_was_held_for_dead_ends_and_starts_again(factory: Factory) -> None:
    home = Home(factory.running.home)
    factory.until(lambda: no_hold(home))
    pid = factory.pids()[1]
    name = json.loads(command_line(pid).split(b"\0")[-2])["owner"]
    with contextlib.closing(home.open_ledger()) as store:
        store.declare_dead(name)
        assert store.take_over(1) == []
    factory.until(lambda: factory.pids().get(1, pid) != pid)
    factory.until(factory.whole)
    assert factory.asks(clients=24, each=1).seen.faults == []


def test_in_the_end_all_is_finished_settled_and_in_the_books_once(factory: Factory) -> None:
    home = Home(factory.running.home)
    factory.until(lambda: no_hold(home))
    crowd = factory.asks(clients=24, each=1, act=factory.running.process.terminate)
    assert crowd.seen.faults == []
    assert factory.running.process.wait(WAIT_S_MAX) == 0
    counts = json.loads(factory.get("/counts", factory.worker_port)[1])
    assert counts["open_max"] == SLOTS
    assert counts["open"] == 0
    store = sqlite_store(home.ledger)
    try:
        posted = sum(entry.ending == "done" for entry in proved(store).values())
    finally:
        store.close()
    # One that was billed may not have reached its caller, when its process was killed.
    assert factory.answers <= posted <= factory.answers + 2 * SLOTS
    assert all(row["identical"] for row in data(home, "journal", "replay"))


def test_all_end_with_their_supervisor_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    home = Home(tmp_path / "home")
    with fake_worker() as worker:
        prepare(home.path, worker.ports, 1, slots=SLOTS)
        factory = Factory(start(home.path, "--quiet", "--processes", "2"), worker.ports[0])
        (folder,) = (tmp_path / "t").iterdir()
        assert [path.name for path in folder.iterdir()] == ["owner"]  # a socket, and no settings
        pids = factory.pids()
        assert len(pids) == 2
        assert all(b"127.0.0.1" not in command_line(pid) for pid in pids.values())

        def kill() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", factory.running.port)
            named = {
                "authorization": f"Bearer {factory.running.key}",
                "content-type": "application/json",
            }
            connection.request("POST", "/v1/chat/completions", ENDLESS.body(), named)
            factory.running.process.kill()
            # The folder is theirs until they have finished what is open.
            with contextlib.closing(connection), pytest.raises(subprocess.CalledProcessError):
                tool(home.path, "up", "--processes", "2", "--port", "0")

        watches = [os.pidfd_open(pid) for pid in pids.values()]
        crowd = factory.asks(clients=6, each=1, act=kill, mode=LONG)
        assert crowd.seen.faults == []
        for watch in watches:
            assert select.select([watch], [], [], WAIT_S_MAX)[0]
            os.close(watch)
        factory.running.process.wait()
        factory.running.process.stdout.close()  # type: ignore[union-attr]
        assert not list((tmp_path / "t").iterdir())
        assert not home.url.exists()
        with running(home.path, "--quiet", "--processes", "2") as again:
            assert Factory(again, worker.ports[0]).get("/healthz")[0] == 200


def test_one_banner_and_one_key(attached: Home, when_ready: Callable[..., list[Any]]) -> None:
    attached.settings.write_text(
        attached.settings.read_text().replace("[gateway]", "[gateway]\nprocesses = 2")
    )
    results = when_ready(attached, lambda: ask(attached))
    result = invoke(attached, "up")
    assert result.exit_code == 0, result.exception
    (said,) = results
    assert said["choices"][0]["message"]["content"] == "Hello."
    assert result.stdout.count("The factory is running.") == 1
    assert "Starting the workers and 2 processes" in result.stderr
    assert not attached.url.exists()
    (row,) = data(attached, "key", "list")
    assert row["name"] == "operator"
    assert data(attached, "report")["rows"][-1]["requests"] == 1
    # Alone again, it takes the ledger for itself.
    when_ready(attached, lambda: None)
    facts = json.loads(invoke(attached, "up", "--processes", "1", "--json").stdout)
    assert "processes" not in facts


def test_what_cannot_start_says_so(home: Home) -> None:
    twins = Home(home.path.with_name("twins"))
    twin = invoke(twins, "up", "--twin", "--processes", "2", "--port", "0")
    assert isinstance(twin.exception, InvalidRequest)
    home.make()
    home.settings.write_text("[gateway]\nprocesses = 65\n[pool.x]\nengine='embedded'\nmodel='m'\n")
    assert isinstance(invoke(home, "up").exception, ConfigInvalid)
    home.settings.write_text("[pool.x]\nengine='embedded'\nmodel='m'\n")
    several = invoke(home, "up", "--port", "0", "--processes", "2")
    assert isinstance(several.exception, FactoryError)
    assert "ended with status 1" in str(several.exception)

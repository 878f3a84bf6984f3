"""The supervisor of several processes, with small scripts in their place."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenworks.catalogue.factory_config import parse_factory_config
from tokenworks.cli import supervisor as room
from tokenworks.cli.member import deciding
from tokenworks.cli.membership import Member, Said, Shared
from tokenworks.cli.supervisor import DEATHS_MAX, Supervisor
from tokenworks.core.errors import ConfigInvalid, FactoryError
from tokenworks.core.units import NS_PER_MS
from tokenworks.live.home import Home
from tokenworks.live.workers import SupervisionLimits

SETTINGS = "[ledger]\npath='postgresql://me:hidden@db/x'\n[pool.x]\nengine='embedded'\nmodel='m'\n"
QUICK = SupervisionLimits(backoff_first_ns=NS_PER_MS, backoff_ns_max=2 * NS_PER_MS)
BEGIN = """
import os, sys, time
shared = sys.stdin.buffer.readline()
assert b"hidden" in shared
print('{"type":"Ready","models":["m"]}', flush=True)
"""
SERVE = "sys.stdin.read()"
BEAT = """
while True:
    print('{"type":"Alive"}', flush=True)
    time.sleep(0.02)
"""
HANG = "time.sleep(3_600)"
HANG_S = 120
"""What takes longer than this hangs."""
AT_A_SIGNAL = "\nimport signal; signal.sigwait({signal.SIGUSR1})\n"
BLOCKED = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN)\n"


def shared_of(home: Home, policy_file: str | None = None) -> Shared:
    """What processes of a folder start with."""
    return Shared(
        home=str(home.path),
        settings=parse_factory_config(SETTINGS),
        books=(),
        host="127.0.0.1",
        port=0,
        policy=None,
        policy_file=policy_file,
        quiet=True,
    )


class Scripts(Supervisor):
    """Processes of the test's own."""

    def __init__(self, home: Home, scripts: dict[int, list[str]]) -> None:
        self.scripts, self.started = scripts, list[int]()
        self.last, self.again = dict[int, str](), asyncio.Event()
        self.both = asyncio.Event()
        super().__init__(shared_of(home), len(scripts), QUICK)

    def _command(self, member: Member) -> tuple[str, ...]:
        assert "hidden" not in " ".join(super()._command(member))
        scripts = self.scripts[member.index]
        self.started.append(member.index)
        before = self.last.get(member.index)
        assert member.dead == (() if before is None else (before,))
        self.last[member.index] = member.owner
        return (sys.executable, "-c", scripts.pop(0) if len(scripts) > 1 else scripts[0])

    def _heard(self, index: int, said: Said) -> None:
        super()._heard(index, said)
        if {0, 1} <= self._ready:
            self.both.set()
        if index == 1 and self.started.count(1) == 2:
            self.again.set()

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These scripts say nothing for long."""
    monkeypatch.setattr(room, "SILENT_S_MAX", 2 * HANG_S)


def test_one_that_dies_five_times_ends_all(home: Home) -> None:
    made = Scripts(home, {0: [BEGIN + SERVE], 1: [BEGIN + "sys.exit(3)"]})
    with pytest.raises(FactoryError, match="Process 1 ended with status 3"):
        asyncio.run(made.run(lambda *_: None))
    assert made.started.count(1) == DEATHS_MAX == 5
    assert made.started.count(0) == 1


def test_one_that_hangs_is_killed_at_its_owners_word_and_starts_again(home: Home) -> None:
    said = '\nprint(\'{"type":"Hung","indices":[1,2]}\', flush=True)\n'
    unready = "import sys, time; sys.stdin.buffer.readline(); " + HANG
    made = Scripts(
        home,
        {
            0: [BLOCKED + BEGIN + AT_A_SIGNAL + said + SERVE],
            1: [BEGIN + HANG, BEGIN + SERVE],
            2: [unready],  # still starting: it has nothing yet
        },
    )

    async def run() -> None:
        running = asyncio.create_task(made.run(lambda *_: None))
        async with asyncio.timeout(HANG_S):
            await made.both.wait()
            made._processes[0].send_signal(signal.SIGUSR1)
            await made.again.wait()
        made._kill_hung(2)
        assert made.started.count(2) == 1
        made._began_ns[2] -= room.START_S_MAX * 10**9
        made._kill_hung(2)  # and now it has had its time
        made._kill_hung(3)  # nobody
        with pytest.raises(FactoryError, match=r"Process 2 ended with status -9"):
            await running

    asyncio.run(run())


def test_one_that_stands_still_is_killed_and_starts_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Scripts(home, {0: [BEGIN + BEAT], 1: [BEGIN + HANG, BEGIN + BEAT]})
    line = Scripts._line

    def hear(self: Scripts, index: int, process: asyncio.subprocess.Process) -> Any:
        # Only of what says nothing at all is the patience short: others may be slow.
        silent = index == 1 and self.started.count(1) == 1
        monkeypatch.setattr(room, "SILENT_S_MAX", 0.5 if silent else HANG_S)
        return line(self, index, process)

    monkeypatch.setattr(Scripts, "_line", hear)

    async def run() -> None:
        running = asyncio.create_task(made.run(lambda *_: None))
        async with asyncio.timeout(HANG_S):
            await made.again.wait()
        made.end()
        await running

    asyncio.run(run())
    assert made.started == [0, 1, 1]


def test_one_that_does_not_stop_is_killed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STOP_S_MAX", 0.1)
    monkeypatch.setattr(room, "OWNER_STOP_S_MAX", 0.2)
    made = Scripts(home, {0: [STUBBORN + BEGIN + HANG], 1: [STUBBORN + BEGIN + HANG]})
    asyncio.run(made.run(lambda *_: made.end()))
    assert made.started == [0, 1]
    assert not Path(made._path).parent.exists()


def test_a_policys_file_is_read_by_the_owner_alone(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    shared = shared_of(home, str(file))

    def member(index: int) -> Member:
        return Member(index=index, count=2, path="", descriptor=0, owner="")

    file.write_text("from tokenworks.dispatch.economics import Economics as make_policy")
    assert set(deciding(shared, member(0)).own) == {"mine"}
    file.write_text("so")  # being edited
    with pytest.raises(ConfigInvalid):
        deciding(shared, member(0))
    assert deciding(shared, member(1)).own == {}

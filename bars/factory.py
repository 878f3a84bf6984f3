"""A real factory in a process of its own, as an operator would start it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

READY_S_MAX = 60
END_S_MAX = 60


@dataclasses.dataclass
class Running:
    """A factory that is up."""

    process: subprocess.Popen[bytes]
    home: Path
    url: str
    key: str

    @property
    def port(self) -> int:
        """Its TCP port on loopback."""
        return int(self.url.rsplit(":", 1)[1])

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        return children_of(self.process.pid)

    def rss_bytes(self) -> int:
        """Resident memory of the factory and its workers."""
        total = 0
        for pid in (self.process.pid, *self.workers()):
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        return total

    def cpu_s(self) -> float:
        """CPU time of the factory's own process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S_MAX)

    def kill(self) -> list[int]:
        """SIGKILL to the factory alone; returns the workers it had."""
        workers = self.workers()
        watches = [os.pidfd_open(pid) for pid in workers]
        self.process.kill()
        self.process.wait(END_S_MAX)
        for watch in watches:
            assert select.select([watch], [], [], END_S_MAX)[0], "a worker outlived its factory"
            os.close(watch)
        return workers


def children_of(pid: int) -> list[int]:
    """Direct children of a process, zombies left out."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return [child for child in found if _alive(child)]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def start(home: Path, *arguments: str) -> Running:
    """Start ``tokenworks up`` and wait until it says that it is ready."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tokenworks.cli.main", "--home", str(home)),
            *("up", "--port", "0", "--json", *arguments),
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], READY_S_MAX)[0]:
        process.kill()
        process.wait()
        raise TimeoutError(f"the factory was not ready after {READY_S_MAX} s")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the factory ended with status {process.wait()}")
    facts = json.loads(line)
    return Running(process=process, home=home, url=facts["url"], key=facts["key"])


@contextlib.contextmanager
def running(home: Path, *arguments: str) -> Iterator[Running]:
    """A factory for the length of a block; killed if it did not end in it."""
    factory = start(home, *arguments)
    try:
        yield factory
        if factory.process.poll() is None:
            factory.stop()
    finally:
        if factory.process.poll() is None:
            factory.process.kill()
            factory.process.wait()
        assert factory.process.stdout is not None
        factory.process.stdout.close()

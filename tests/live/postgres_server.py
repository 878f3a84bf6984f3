"""A PostgreSQL server of the tests' own: a folder and a socket in it; no service of the system."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "TOKENWORKS_TEST_POSTGRES"
"""Set to ``required`` where a missing server is a failure, as in CI."""
START_S_MAX = 120.0
STOP_S_MAX = 30.0
PASSWORD = "top/secret@100%"
PASSWORD_IN_URL = "top%2Fsecret%40100%25"

# Durable as in production; what is off here costs time and saves nothing in a test.
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "jit": "off",
    "log_min_messages": "warning",
}


class PostgresServer:
    """One server in a temporary folder; ``start`` and ``kill`` it at will."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = _not_root()
        self.folder = Path(tempfile.mkdtemp(prefix="tokenworks-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0
        word = self.folder / "password"
        word.write_text(PASSWORD)
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            for path in (self.folder, word):
                os.chown(path, account.pw_uid, account.pw_gid)
        self._run(
            *("initdb", "-D", str(self.folder / "data"), "-U", "tokenworks", "--no-sync"),
            *("--auth=scram-sha-256", f"--pwfile={word}", "--encoding=UTF8", "--no-locale"),
        )

    def url(self, schema: str = "public", *, password: str = PASSWORD_IN_URL) -> str:
        """The URL of the database, with a schema of it as the place of all tables."""
        at = f"postgresql://tokenworks:{password}@/postgres?host={self.folder}"
        return f"{at}&options=-c%20search_path%3D{schema}"

    def create(self) -> str:
        """A new, empty schema, which costs less than a database; its URL."""
        self._schemas += 1
        name = f"test_{self._schemas}"
        with self.connect() as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return self.url(name)

    def connect(self, url: str | None = None) -> Any:
        """A connection of the tests' own."""
        import psycopg

        return psycopg.connect(url or self.url(), autocommit=True)

    def start(self) -> None:
        """Start the server, and wait until it answers; nothing if it runs."""
        if self._process is not None:
            return
        options = [word for pair in SETTINGS.items() for word in ("-c", "=".join(pair))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self.folder / "data"),
                    *("-k", self.folder, *options),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **self._as_user(),
            )
        until = time.monotonic() + START_S_MAX
        while not self._answers():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > until:
                pytest.fail(f"postgres did not start ({ended}): {self.log()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """kill -9 the server and all its processes, as a crash would."""
        assert self._process is not None
        # The server's children lead sessions of their own; their parent is how they are known.
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_S_MAX)
        self._process = None

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop the server and all its processes, and let them go on; nothing of it is lost."""
        assert self._process is not None
        stopped = [self._process.pid, *_children(self._process.pid)]
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stop it, whoever is connected, and remove its folder."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            try:
                self._process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log").read_text(errors="replace")[-4_000:]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self._as_user(),
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        group = pwd.getpwnam(self._user).pw_gid
        return {"user": self._user, "group": group, "extra_groups": []}


def _not_root() -> str | None:
    """Whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    names = {account.pw_name for account in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found.append(int(stat.parent.name))
    return found


def find_programs() -> Path | None:
    """The folder of initdb and postgres; the newest release where there are several."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in found), key=lambda p: float(p.parent.name), default=None)


def running_server() -> Iterator[PostgresServer]:
    """The body of the session's fixture."""
    programs = find_programs()
    missing = "" if programs else "PostgreSQL's server is not installed: apt-get install postgresql"
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        missing = f"psycopg cannot be loaded: {error}; install the extra 'postgres'"
    if missing:
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    assert programs is not None
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.stop()

"""A home for every test of the command line, and a factory that is started in this process."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.command_line import READY_S_MAX
from tests.live.fake_worker import FakeWorker, Script
from tokenworks.live.home import HOME_VARIABLE, Home


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A folder that is not there yet; nothing reaches the one of whoever runs the tests."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    monkeypatch.delenv("TOKENWORKS_KEY", raising=False)
    return Home(tmp_path / "home")


class Elsewhere:
    """An event loop in a thread of its own, with a fake worker in it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.worker = FakeWorker(Script(tokens=["Hel", "lo."]))
        self.call(self.worker.start())

    def call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(READY_S_MAX)

    def stop(self) -> None:
        self.call(self.worker.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    made = Elsewhere()
    yield made
    made.stop()


@pytest.fixture
def attached(home: Home, elsewhere: Elsewhere) -> Home:
    home.make()
    home.settings.write_text(
        "[gateway]\nport = 0\n[pool.far]\nengine = 'attached'\nmodel = 'foreman'\n"
        f"urls = ['{elsewhere.worker.url}']\ncurve = [[1, 900]]\n"
    )
    return home


@pytest.fixture
def when_ready(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Any]]]:
    """``when_ready(home, act)``: ``act()`` runs in a thread once ``up`` is ready; then SIGTERM."""
    threads = []

    def arrange(home: Home, act: Callable[[], Any]) -> list[Any]:
        ready, results = threading.Event(), []
        write = Home.write_private

        def noting(self: Home, path: pathlib.Path, text: str) -> None:
            write(self, path, text)
            if path == home.url:
                ready.set()

        def then() -> None:
            if not ready.wait(READY_S_MAX):
                results.append(TimeoutError("not ready"))
            else:
                try:
                    results.append(act())
                except Exception as error:  # noqa: BLE001 - the test looks at it
                    results.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Home, "write_private", noting)
        thread = threading.Thread(target=then)
        thread.start()
        threads.append(thread)
        return results

    yield arrange
    for thread in threads:
        thread.join()

"""What tests of every room share."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A machine may be busy with other work: no example is wrong because it, or drawing it, took long.
# And they are the same in every run: a test that fails does so for a change, not by chance.
settings.register_profile(
    "tokenworks",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# To look further: ``pytest --hypothesis-profile=explore``, with ``--hypothesis-seed=N`` if wanted.
settings.register_profile("explore", settings.get_profile("tokenworks"), derandomize=False)
settings.load_profile("tokenworks")

# Tests of one room use fakes of another as ``tests.<room>.<fake>``, however pytest is started.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

ID_BYTES_MAX = 100
"""Longer bytes than these name a test's case by the argument and its place."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """No compressed body in a test's name: it says nothing, and can hold the time of day."""
    return argname if isinstance(val, bytes) and len(val) > ID_BYTES_MAX else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Heavy tests start first, so that none runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("heavy") is None)


def pytest_collection_finish() -> None:
    """What is there before the first test stays: no search for cycles looks through it again.

    Tests look for cycles hundreds of times, and each took as long as all that had been imported.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Heavy tests run without coverage.

    pytest-cov's own ``no_cover`` does nothing in a process of xdist: what it stops there is the
    second of two measurements, and the first goes on.
    """
    tracer = sys.gettrace()
    if item.get_closest_marker("heavy") is not None:
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


RUN_S_MAX = 180.0
"""A test that is still running then hangs, also where others keep the machine busy."""


def run_limited(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in an event loop of its own, and give up when it hangs."""

    async def limited() -> Any:
        async with asyncio.timeout(RUN_S_MAX):
            return await main

    return asyncio.run(limited())


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """``run(coroutine)``: for tests of asynchronous code."""
    return run_limited


@pytest.fixture(scope="session")
def model_path() -> pathlib.Path:
    """A GGUF file for the embedded engine: the one in the package, or TOKENWORKS_TEST_MODEL."""
    named = os.environ.get("TOKENWORKS_TEST_MODEL")
    if named is not None:
        assert pathlib.Path(named).is_file(), f"TOKENWORKS_TEST_MODEL={named!r} is no file"
        return pathlib.Path(named)
    import tokenworks

    package = pathlib.Path(tokenworks.__file__).parent
    path = package / "catalogue" / "data" / "foreman-q8_0.gguf"
    if not path.is_file():
        pytest.fail(f"{path} is not there; set TOKENWORKS_TEST_MODEL to a GGUF file")
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server that the tests have started: a ``postgres_server.PostgresServer``."""
    from tests.live.postgres_server import running_server

    yield from running_server()

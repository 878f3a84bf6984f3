"""How often a writer commits, alone and beside others, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import itertools
import types
from typing import Any

import pytest

from tests.live.driver_world import until
from tokenworks.live import group_commit
from tokenworks.live.group_commit import (
    BUSY_S_MIN,
    COMMIT_S_MAX,
    COMMIT_S_MIN,
    REST_S_MAX,
    GroupCommit,
)

COMMIT_S = 0.0015


@pytest.mark.parametrize(
    ("writers", "requests", "rest_s"),
    [
        (1, 0, COMMIT_S_MIN),
        (1, 2, 2 * COMMIT_S),
        (1, 64, COMMIT_S_MAX),
        (2, 0, COMMIT_S_MIN + (COMMIT_S_MIN + COMMIT_S)),
        (3, 0, COMMIT_S_MIN + 2 * (COMMIT_S_MIN + COMMIT_S)),
        (2, 2, 2 * COMMIT_S + (2 * COMMIT_S + COMMIT_S)),
        (2, 64, COMMIT_S_MAX + (COMMIT_S_MAX + COMMIT_S)),
        (4, 64, REST_S_MAX),
        (64, 0, REST_S_MAX),
    ],
)
def test_a_writer_rests_for_what_is_open_and_for_other_writers(
    monkeypatch: pytest.MonkeyPatch, writers: int, requests: int, rest_s: float
) -> None:
    now_s, began_s = 100.0, list[float]()

    def passes(duration_s: float) -> None:
        nonlocal now_s
        now_s += duration_s

    def commit(batches: list[Any]) -> list[None]:
        began_s.append(now_s)
        passes(COMMIT_S)
        return [None for _ in batches]

    clock = types.SimpleNamespace(monotonic=lambda: now_s, sleep=passes)
    monkeypatch.setattr(group_commit, "time", clock)

    async def tell_of(held_back: int) -> None:
        told = asyncio.Event()
        group.keep([], lambda _, error: told.set(), range(held_back))
        await told.wait()

    group = GroupCommit(commit, lambda: None)
    group.writers, group.open = writers, requests - requests // 2
    asyncio.run(tell_of(requests // 2))
    for _ in range(3):
        group.append_now([])
    group.close()
    assert [b - a for a, b in itertools.pairwise(began_s)] == pytest.approx([COMMIT_S + rest_s] * 3)


@pytest.mark.parametrize(
    ("requests", "took_s", "commits"),
    [
        (0, COMMIT_S, [["stream"], ["whole"]]),
        (1, 2 * BUSY_S_MIN, [["stream"], ["whole"]]),  # it alone, on a slow disk
        (64, COMMIT_S, [["stream", "whole"]]),
    ],
)
def test_a_stream_waits_for_company_while_many_requests_are_open(
    monkeypatch: pytest.MonkeyPatch, requests: int, took_s: float, commits: list[list[str]]
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 60)
    seen = list[list[str]]()

    def commit(batches: list[Any]) -> list[None]:
        seen.append([name for batch in batches for name in batch])
        return [None for _ in batches]

    async def store() -> None:
        both = [asyncio.Event(), asyncio.Event()]
        stream, whole = entries(["stream"]), entries(["whole"])
        group.keep(stream, lambda _, error: both[0].set(), patient=True)
        if len(commits) == 1:
            await until(lambda: group._doze is group_commit._URGENT)
        else:
            await both[0].wait()
        group.keep(whole, lambda _, error: both[1].set())
        for each in both:
            await each.wait()

    def entries(names: list[Any]) -> list[Any]:
        return names

    group = GroupCommit(commit, lambda: None)
    group.open, group._took_s = requests, took_s
    asyncio.run(asyncio.wait_for(store(), 30))
    group.close()
    assert seen == commits

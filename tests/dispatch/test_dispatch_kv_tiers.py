"""Where a session's KV blocks are while a tool runs."""

from __future__ import annotations

import msgspec
import pytest

from tests.dispatch.dispatch_world import (
    PRICES,
    TIMING,
    arrived,
    configured,
    down,
    factory,
    finished,
    up,
)
from tokenworks.core.needs import Hints
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.dispatch import kv_tiers
from tokenworks.dispatch.commands import Command, Fetch, Offload, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Arrived, WorkerUp

S = NS_PER_S
LINK = 10**9
BYTES = 1_000
"""A block of 64 tokens: 64 us over the link, 6.4 ms to compute."""
CALLS = Hints(tool_ns=30 * S)
KV_BLOCKS = 100


def hosted(name: str = "a", *, link: int = LINK, **parts: object) -> WorkerUp:
    plain = up(name, timing=TIMING, kv_blocks=KV_BLOCKS, **parts)  # type: ignore[arg-type]
    return msgspec.structs.replace(plain, host_bytes_per_s=link, kv_bytes_per_token=BYTES)


def turn(
    name: str, blocks: int, *, session: str = "s", hints: Hints | None = CALLS, at: int = 0
) -> Arrived:
    return arrived(
        name,
        Tier.MEDIUM,
        at=at,
        session=session,
        hints=hints,
        prefix=tuple(range(100, 100 + blocks)),
        prompt=64 * blocks + 5,
    )


def moves(commands: list[Command]) -> list[Offload | Fetch]:
    return [each for each in commands if isinstance(each, Offload | Fetch)]


def ended(dispatcher: Dispatcher, event: Arrived, at: int) -> list[Offload | Fetch]:
    """What moves when a request comes, and when it has been answered."""
    first = dispatcher.handle(at, event)
    again = Dispatcher.restore(dispatcher.snapshot())
    assert again.digest() == dispatcher.digest()
    return moves(first) + moves(dispatcher.handle(at + 10 * NS_PER_MS, finished(event.request)))


def busy(dispatcher: Dispatcher, until_s: int, first_s: int = 0) -> None:
    """Others fill 20 blocks a second."""
    for second in range(first_s, until_s):
        name = f"x{second}"
        blocks = tuple(range(10_000 + 20 * second, 10_020 + 20 * second))
        dispatcher.handle(second * S, arrived(name, prefix=blocks, session=name, at=second * S))
        dispatcher.handle(second * S, finished(name))


def test_blocks_that_would_be_gone_go_down_and_come_back() -> None:
    dispatcher = factory(hosted(), settings=configured(100))
    busy(dispatcher, 5)
    (offload,) = ended(dispatcher, turn("r0", 10), 5 * S)
    assert isinstance(offload, Offload)
    assert (offload.request, offload.worker, offload.first, offload.blocks) == ("r0", "a", 0, 10)
    assert (offload.move_ns, offload.compute_ns) == (640_000, 64 * NS_PER_MS)
    assert offload.tool_ns == 30 * S
    assert offload.filled_anew_ns < 6 * S
    commands = dispatcher.handle(40 * S, turn("r1", 14, at=40 * S))
    fetch, send = [each for each in commands if isinstance(each, Fetch | Send)]
    assert isinstance(fetch, Fetch)
    assert (fetch.request, fetch.worker, fetch.first, fetch.blocks) == ("r1", "a", 0, 10)
    assert isinstance(send, Send)
    assert send.request == "r1"


@pytest.mark.parametrize(
    ("hints", "session", "link"),
    [
        (None, "s", LINK),
        (Hints(output_tokens=5), "s", LINK),
        (Hints(tool_ns=S), "s", LINK),  # the tool is back before the cache is filled
        (CALLS, None, LINK),
        (CALLS, "s", 10**6),  # slower than computing them
        (Hints(tool_ns=30 * S, session_ends=True), "s", LINK),
    ],
)
def test_what_need_not_or_cannot_move_stays(
    hints: Hints | None, session: str | None, link: int
) -> None:
    dispatcher = factory(hosted(link=link), settings=configured(100))
    busy(dispatcher, 5)
    event = msgspec.structs.replace(turn("r0", 10), session=session)
    event = msgspec.structs.replace(event, hints=msgspec.UNSET if hints is None else hints)
    assert ended(dispatcher, event, 5 * S) == []


def test_what_is_not_known_moves_nothing() -> None:
    for plain in (up(timing=TIMING, kv_blocks=KV_BLOCKS), up(timing=TIMING)):
        quiet = factory(plain, settings=configured(100))
        busy(quiet, 5)
        assert ended(quiet, turn("r0", 10), 5 * S) == []
    for changes in ({"kv_blocks": None}, {"timing": None}):
        worker = msgspec.structs.replace(hosted(), **changes)
        dispatcher = factory(worker, settings=configured(100))
        busy(dispatcher, 5)
        assert ended(dispatcher, turn("r0", 10), 5 * S) == []
    # A prompt without a full block has nothing to move.
    dispatcher = factory(hosted(), settings=configured(100))
    assert ended(dispatcher, turn("r0", 0), 5 * S) == []


def test_shared_blocks_stay_where_others_find_them() -> None:
    dispatcher = factory(hosted(), settings=configured(100))
    busy(dispatcher, 5)
    assert ended(dispatcher, turn("r0", 4, session="other"), 5 * S)[0].first == 0
    (offload,) = ended(dispatcher, turn("r1", 10), 6 * S)
    assert (offload.first, offload.blocks) == (4, 6)


def test_a_session_that_begins_anew_or_elsewhere_fetches_nothing() -> None:
    dispatcher = factory(hosted("a"), hosted("b"), settings=configured(100))
    busy(dispatcher, 5)
    event = turn("r0", 10)
    ended(dispatcher, event, 5 * S)
    home = dispatcher._kv_tiers.sessions["1:t/s"].worker
    other = msgspec.structs.replace(turn("r1", 12, at=40 * S), prefix=tuple(range(12)))
    assert not moves(dispatcher.handle(40 * S, other))
    dispatcher.handle(41 * S, finished("r1"))
    busy(dispatcher, 45, 42)
    ended(dispatcher, turn("r2", 10, at=45 * S), 45 * S)
    session = dispatcher._kv_tiers.sessions["1:t/s"]
    assert session.below
    dispatcher.handle(46 * S, down(session.worker))
    assert not dispatcher._kv_tiers.sessions
    assert not moves(dispatcher.handle(47 * S, turn("r3", 10, at=47 * S)))
    assert home in ("a", "b")


def test_a_link_that_is_slower_by_then_is_not_used() -> None:
    dispatcher = factory(hosted(), settings=configured(100))
    busy(dispatcher, 5)
    assert ended(dispatcher, turn("r0", 10), 5 * S)
    dispatcher.handle(6 * S, hosted(link=10**6))
    assert not moves(dispatcher.handle(40 * S, turn("r1", 12, at=40 * S)))
    dispatcher.handle(41 * S, up(timing=TIMING, kv_blocks=KV_BLOCKS))
    assert not moves(dispatcher.handle(42 * S, finished("r1")))


def test_who_came_later_in_a_session_decides() -> None:
    dispatcher = factory(hosted(), settings=configured(100))
    busy(dispatcher, 5)
    dispatcher.handle(5 * S, turn("r0", 10, at=5 * S))
    dispatcher.handle(5 * S, turn("r1", 12, at=5 * S))
    assert not moves(dispatcher.handle(6 * S, finished("r0")))
    assert moves(dispatcher.handle(6 * S, finished("r1")))


def test_who_prefills_for_others_keeps_the_session() -> None:
    workers = [
        msgspec.structs.replace(hosted(name, hands_over=True), link_bytes_per_s=10**9)
        for name in "abcd"
    ]
    settings = configured(100, policy="economic", prices=PRICES)
    dispatcher = factory(*workers, settings=settings)
    seen: list[Offload | Fetch] = []
    prefillers = set()
    for number in range(60):
        at = number * S // 4
        name = f"r{number}"
        event = turn(name, 20 + number % 3, session=f"s{number % 6}", at=at)
        event = msgspec.structs.replace(
            event, prefix=tuple(1_000 * (number % 6) + n for n in range(20 + number // 6))
        )
        commands = dispatcher.handle(at, event)
        prefillers |= {each.prefill_worker for each in commands if isinstance(each, Send)}
        seen += moves(commands)
        seen += moves(dispatcher.handle(at, finished(name)))
    assert {each.worker for each in seen} <= prefillers
    assert any(isinstance(each, Fetch) for each in seen)


def test_the_filling_is_measured_over_a_window() -> None:
    dispatcher = factory(hosted(), settings=configured(100))
    busy(dispatcher, 30)
    filling = dispatcher._kv_tiers.filling["a"]  # type: ignore[index]
    assert (filling.before, filling.since_ns) == (400, 20 * S)
    busy(dispatcher, 101, 100)
    filling = dispatcher._kv_tiers.filling["a"]  # type: ignore[index]
    assert (filling.before, filling.blocks) == (0, 20)


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_tiers, "PAUSED_MAX", 3)
    dispatcher = factory(hosted(), settings=configured(100))
    busy(dispatcher, 5)
    assert len(dispatcher._kv_tiers.sessions) == 3

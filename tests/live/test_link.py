"""When what one process says to another goes out: as answers at once, as news by the turn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from tokenworks.live.frames import DECODER, ENCODER, AskTexts, Message, Texts
from tokenworks.live.link import Link

ANSWER = Texts(number=7, texts={})


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def frame(messages: list[Message]) -> bytes:
    data = ENCODER.encode(messages)
    return len(data).to_bytes(4, "big") + data


def heard(end: socket.socket) -> list[list[Any]]:
    """The messages of each frame that is there."""
    try:
        data = end.recv(1 << 16)
    except BlockingIOError:
        return []
    found = []
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        found.append(DECODER.decode(data[4:size]))
        data = data[size:]
    return found


@asynccontextmanager
async def linked(end: socket.socket, take: Callable[[Link, Message], None]) -> AsyncIterator[Link]:
    loop, lost = asyncio.get_running_loop(), asyncio.Event()
    _, link = await loop.create_unix_connection(lambda: Link(take, lambda _: lost.set()), sock=end)
    yield link
    link.close()
    await lost.wait()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_answers_go_out_together_before_the_turn_ends(
    run: Callable[[Any], None], ends: tuple[socket.socket, socket.socket]
) -> None:
    """Also on the loop that factories use, which else writes when its turn ends."""

    async def answers() -> None:
        async with linked(ends[0], lambda link, _: link.send(ANSWER)) as link:
            asked = frame([AskTexts(number=1)] * 3)
            link.data_received(asked[:5])
            assert heard(ends[1]) == []
            link.data_received(asked[5:] + asked)
            assert heard(ends[1]) == [[ANSWER] * 6]
            await asyncio.sleep(0)
            assert heard(ends[1]) == []

    run(answers())


def test_news_waits_for_the_turns_end_and_goes_with_an_answer(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def answers() -> None:
        async with linked(ends[0], lambda link, _: link.send(ANSWER)) as link:
            news = AskTexts(number=2)
            for _ in range(2):
                link.send(news)
            assert heard(ends[1]) == []
            await asyncio.sleep(0.01)
            assert heard(ends[1]) == [[news, news]]
            link.send_later(news)
            link.data_received(frame([news]))
            assert heard(ends[1]) == [[news, ANSWER]]

    asyncio.run(answers())


def test_who_breaks_off_in_an_answer_answers_the_next(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    def take(link: Link, message: Message) -> None:
        assert isinstance(message, AskTexts)
        link.send(ANSWER)
        if not message.number:
            raise ZeroDivisionError

    async def answers() -> None:
        async with linked(ends[0], take) as link:
            with pytest.raises(ZeroDivisionError):
                link.data_received(frame([AskTexts(number=0)]))
            link.data_received(frame([AskTexts(number=1)]))
            assert heard(ends[1]) == [[ANSWER, ANSWER]]

    asyncio.run(answers())

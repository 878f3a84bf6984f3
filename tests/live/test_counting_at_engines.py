"""Asking engines how many tokens a prompt has."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from tests.live.driver_world import Exchange, FakeClient, settle_down
from tokenworks.catalogue.factory_config import PoolConfig
from tokenworks.core.errors import ModelNotFound, NotOffered, WorkerFailed, WorkerUnavailable
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.needs import Needs
from tokenworks.live import token_counts
from tokenworks.live.seat import Seat
from tokenworks.live.token_counts import count_at_any, count_tokens

Run = Callable[[Awaitable[object]], None]
BODY = b'{"messages":[]}'
M = ModelName("m")


def engine(**answers: tuple[int, bytes]) -> FakeClient:
    """An engine that answers each path so, and knows no other."""

    def answer(exchange: Exchange) -> None:
        name = exchange.path.removeprefix("/").replace("-", "_")
        exchange.answer(*answers.get(name, (404, b""))).end()

    client = FakeClient()
    client.auto = answer
    return client


def test_engines_that_count_by_themselves(run: Run) -> None:
    client = engine(tokenize=(200, b'{"count":5,"max_model_len":9,"tokens":[1]}'))

    async def go() -> None:
        assert await count_tokens(client, BODY) == 5
        assert [each.path for each in client.exchanges] == ["/apply-template", "/tokenize"]
        assert client.exchanges[1].body == BODY

    run(go())


def test_engines_that_write_the_prompt_first(run: Run) -> None:
    client = engine(
        apply_template=(200, b'{"prompt":"<s>hi"}'), tokenize=(200, b'{"tokens":[1,2]}')
    )

    async def go() -> None:
        assert await count_tokens(client, BODY) == 2
        sent = json.loads(client.exchanges[1].body)
        assert sent == {"content": "<s>hi", "add_special": True, "parse_special": True}

    run(go())


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (404, b"", NotOffered),
        (501, b"", NotOffered),
        (500, b"oops", WorkerFailed),
        (200, b"{", WorkerFailed),
        (200, b"{}", WorkerFailed),
        (200, b'{"tokens":[' + b"1," * 50 + b"1]}", WorkerFailed),
    ],
)
def test_engines_that_do_not(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    said: bytes,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(token_counts, "COUNT_BYTES_MAX", 90)

    async def go() -> None:
        with pytest.raises(error):
            await count_tokens(engine(tokenize=(status, said)), BODY)

    run(go())


def seat(name: str, client: FakeClient | None = None, labels: tuple[str, ...] = ()) -> Seat:
    config = PoolConfig(engine="attached", model="m", urls=("http://a",), labels=labels)
    return Seat(worker=WorkerID(name), pool=PoolID("p"), config=config, curve=(), client=client)


def test_only_a_worker_that_may_see_the_prompt_is_asked(run: Run) -> None:
    counting = engine(tokenize=(200, b'{"count":5}'))
    other = engine(tokenize=(200, b'{"count":6}'))
    seats = [seat("down"), seat("a", other), seat("b", counting, ("eu",))]
    needs = Needs(labels=("eu",))

    async def go() -> None:
        assert await count_at_any(seats, M, BODY, None) == 6
        assert await count_at_any(seats, M, BODY, needs) == 5
        with pytest.raises(ModelNotFound):
            await count_at_any(seats, ModelName("n"), BODY, None)
        with pytest.raises(NotOffered):
            await count_at_any(seats[:2], M, BODY, needs)
        with pytest.raises(WorkerUnavailable):
            await count_at_any(seats[:1], M, BODY, None)
        await settle_down()

    run(go())

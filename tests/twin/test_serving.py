"""Modelled engines that serve: what they stream, when, and that they keep a real worker's word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.live.fake_worker import FakeWorker, Script
from tests.live.reading import Reading as Sunk
from tests.live.test_workers import Desk, alternates
from tests.twin.factory import worker
from tests.twin.hand import Hand
from tokenworks.core.errors import WorkerFailed, WorkerUnavailable
from tokenworks.core.orders import CHAT_PATH
from tokenworks.core.ports import AnswerStream, KeepingPort, KeepingStream, TieredPort, WorkerPort
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.gateway.chat_request import prefix_hashes
from tokenworks.gateway.event_stream import EventStream
from tokenworks.live.network import WorkerClient
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.clock import FastClock
from tokenworks.twin.serving import (
    BLOCK_TOKENS,
    CHUNKS_PER_S_MAX,
    Engines,
    ModelledClient,
    ModelledWorker,
    asked_of,
    call_later,
    filler,
    served_spec,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SPEC = served_spec(worker(kv_blocks=1_000, slots=4))


def body(text: str = "Hello", **more: object) -> bytes:
    fields = {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 40,
        "ignore_eos": True,
    }
    return msgspec.json.encode(fields | more)


class Bench:
    """Two modelled engines and a clock that is turned by hand."""

    def __init__(self, speedup: float = 1.0, **changes: Any) -> None:
        self.hand = Hand()
        self.clock = FastClock(self.hand, speedup)
        specs = [msgspec.structs.replace(SPEC, **changes)] * 2
        self.engines = Engines(specs, self.clock, later=self.hand.later)
        self.client = ModelledClient(self.engines, 0)

    async def answer(self, sent: bytes) -> Reading:
        """An answer that has begun."""
        opening = asyncio.ensure_future(self.client.post_stream(CHAT_PATH, sent))
        await self.hand.turn_until(opening.done)
        return Reading(await opening, self.hand)


class Reading:
    """Reads an answer as it comes, and notes when that was."""

    def __init__(self, stream: AnswerStream, hand: Hand) -> None:
        self.stream = stream
        self.came: list[tuple[int, bytes]] = []
        self.began_ns = hand.ns
        self.task = asyncio.ensure_future(self._read(hand))

    async def _read(self, hand: Hand) -> None:
        while data := await self.stream.read():
            self.came.append((hand.ns, data))

    @property
    def text(self) -> bytes:
        return b"".join(data for _, data in self.came)

    def events(self) -> list[Any]:
        lines = [line for line in self.text.split(b"\n\n") if line]
        assert lines.pop() == b"data: [DONE]"
        return [json.loads(line.removeprefix(b"data: ")) for line in lines]


# What is streamed.


def test_an_answer_is_filler_that_the_gateway_can_read(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        reading = await bench.answer(body())
        await bench.hand.turn_until(reading.task.done)
        *tokens, last, usage = reading.events()
        said = "".join(event["choices"][0]["delta"]["content"] for event in tokens)
        assert said.encode() == filler(0, 40)
        assert said.startswith("This is filler of a modelled worker: no engine ran")
        assert tokens[0]["choices"][0]["delta"]["role"] == "assistant"
        assert last["choices"][0]["finish_reason"] == "length"
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 40
        assert {event["model"] for event in reading.events()} == {"m"}

        stream = EventStream()
        stream.feed(reading.text)
        assert stream.done
        assert stream.failure is None
        assert stream.usage_so_far().completion_tokens == 40
        assert stream.metered_by == "worker"
        assert bench.engines.is_idle()

    run(main())


def test_an_answer_that_is_cut_off_is_counted_to_the_token(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        reading = await bench.answer(body())
        await bench.hand.turn(0.05)
        reading.stream.abort()
        with pytest.raises(WorkerFailed, match="aborted"):
            await reading.task
        stream = EventStream()
        stream.feed(reading.text)
        made = stream.usage_so_far().completion_tokens
        said = b"".join(
            json.loads(line[6:])["choices"][0]["delta"]["content"].encode()
            for line in reading.text.split(b"\n\n")
            if line
        )
        assert said == filler(0, made)
        assert 1 < made < 40
        await bench.hand.turn(1)
        assert bench.engines.is_idle()
        bench.engines.check()

    run(main())


def test_tokens_come_when_the_engine_makes_them(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        opened_ns = bench.hand.ns
        reading = await bench.answer(body(max_tokens=101))
        await bench.hand.turn_until(reading.task.done)
        timing, read = SPEC.timing, asked_of(body(), 1).input_tokens
        first_fs = timing.launch_fs + timing.prefill_fs(read, 0)
        rest_fs = timing.run_fs(1, read, 100)
        late_ns = 2 * NS_PER_MS  # a timer waits a millisecond at least
        assert 0 <= reading.began_ns - opened_ns - first_fs // FS_PER_NS < late_ns
        ended_ns = reading.came[-1][0]
        assert 0 <= ended_ns - opened_ns - (first_fs + rest_fs) // FS_PER_NS < late_ns
        gaps = [b[0] - a[0] for a, b in zip(reading.came, reading.came[1:], strict=False)]
        assert max(gaps) < 10 * NS_PER_MS
        assert len(gaps) > 20

    run(main())


@pytest.mark.parametrize("speedup", [0.5, 1, 10, 500])
def test_a_fast_factory_makes_the_same_in_less_time(run: Run, speedup: float) -> None:
    async def main() -> None:
        bench = Bench(speedup)
        began_ns, began_fast_ns = bench.hand.ns, bench.clock.now_ns()
        readings = [await bench.answer(body(f"Hello {i}", max_tokens=200)) for i in range(3)]
        await bench.hand.turn_until(lambda: all(each.task.done() for each in readings))
        took_ns = bench.hand.ns - began_ns
        assert bench.clock.now_ns() - began_fast_ns == pytest.approx(took_ns * speedup, rel=1e-3)
        assert all(each.events()[-1]["usage"]["completion_tokens"] == 200 for each in readings)
        alone_ns = SPEC.timing.run_fs(1, 20, 200) // FS_PER_NS
        assert took_ns * speedup >= alone_ns
        assert took_ns * speedup < 3 * alone_ns + 20 * NS_PER_MS * speedup

    run(main())


def test_a_thousand_streams_have_one_timer_and_larger_chunks(run: Run) -> None:
    async def main() -> None:
        bench = Bench(10, slots=1_024, batch_tokens_max=8_192, kv_blocks=100_000)
        opening = [
            asyncio.ensure_future(bench.client.post_stream(CHAT_PATH, body(f"{i}", max_tokens=500)))
            for i in range(1_000)
        ]
        await bench.hand.turn_until(lambda: all(each.done() for each in opening))
        calls, began_ns = bench.hand.calls, bench.hand.ns
        readings = [Reading(await each, bench.hand) for each in opening]
        await bench.hand.turn_until(lambda: all(each.task.done() for each in readings))
        took_s = (bench.hand.ns - began_ns) / NS_PER_S
        chunks = sum(len(each.came) for each in readings)
        assert chunks <= CHUNKS_PER_S_MAX * took_s * 1.1 + 2_000
        assert bench.hand.calls - calls < 1_000 * took_s + 50
        assert all(each.events()[-1]["usage"]["completion_tokens"] == 500 for each in readings)

    run(main())


def test_who_reads_nothing_is_not_written_to_for_ever(run: Run) -> None:
    async def main() -> None:
        bench = Bench(kv_blocks=10_000)
        opening = asyncio.ensure_future(
            bench.client.post_stream(CHAT_PATH, body(max_tokens=20_000))
        )
        await bench.hand.turn_until(opening.done)
        stream = await opening
        await bench.hand.turn(10)
        assert len(await stream.read()) < 100_000
        reading = Reading(stream, bench.hand)
        await bench.hand.turn_until(reading.task.done)
        assert reading.events()[-1]["usage"]["completion_tokens"] == 20_000

    run(main())


# What an engine is told.


def test_lengths_follow_from_the_request() -> None:
    again = [asked_of(body(ignore_eos=False, max_tokens=5_000), 300) for _ in range(2)]
    assert again[0] == again[1]
    drawn = [
        asked_of(body(f"{i}", ignore_eos=False, max_tokens=100_000), 300).output_tokens
        for i in range(400)
    ]
    assert 270 < sum(drawn) / len(drawn) < 330
    assert min(drawn) < 100
    assert max(drawn) > 900
    assert asked_of(body(max_tokens=7), 300).output_tokens == 7
    assert asked_of(body(ignore_eos=False, max_tokens=7), 300).output_tokens <= 7
    assert asked_of(b'{"messages":[]}', 300).output_tokens_max == 600


def test_blocks_are_those_that_the_dispatcher_is_told_of() -> None:
    text = "x" * 3_000
    asked = asked_of(body(text), 300)
    messages = msgspec.json.encode([None, [{"role": "user", "content": text}]])
    assert asked.blocks == prefix_hashes(messages)
    assert len(asked.blocks) == asked.input_tokens // BLOCK_TOKENS
    assert asked_of(body(text, tools=[1]), 300).blocks[0] != asked.blocks[0]
    salted = asked_of(body(text, cache_salt="5a17"), 300)
    assert salted.blocks == prefix_hashes(messages, b"5a17")
    assert not set(salted.blocks) & set(asked.blocks)


def test_a_prompt_that_was_read_before_is_cached(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        cached = []
        for question in ("a", "b"):
            reading = await bench.answer(body("x" * 2_000 + question))
            await bench.hand.turn_until(reading.task.done)
            used = reading.events()[-1]["usage"]
            cached.append(used["prompt_tokens_details"]["cached_tokens"])
        assert cached == [0, 448]

    run(main())


@pytest.mark.parametrize(
    ("path", "sent", "status", "said"),
    [
        ("/v1/completions", body(), 404, "serves /v1/chat/completions"),
        (CHAT_PATH, b"no JSON", 400, "The body is no request"),
        (CHAT_PATH, b'{"max_tokens": 3}', 400, "messages"),
        (CHAT_PATH, body("x" * 9_000), 400, "tokens of KV cache; the worker has 1024"),
    ],
)
def test_what_cannot_be_served_is_refused(
    run: Run, path: str, sent: bytes, status: int, said: str
) -> None:
    async def main() -> None:
        bench = Bench(kv_blocks=16)
        stream = await bench.client.post_stream(path, sent)
        assert stream.status == status
        assert said in json.loads(await stream.read_all())["error"]["message"]
        assert await stream.read() == b""
        stream.abort()
        sink = Sunk(await bench.client.post_stream(path, sent))
        assert said in json.loads(b"".join(sink.parts))["error"]["message"]
        assert sink.over
        stream.pause()
        stream.resume()

    run(main())


def test_one_token_is_an_answer_and_a_short_one_stops_by_itself(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        reading = await bench.answer(body(max_tokens=1))
        await bench.hand.turn_until(reading.task.done)
        assert reading.events()[-1]["usage"]["completion_tokens"] == 1
        reading = await bench.answer(body(ignore_eos=False, max_tokens=50_000))
        await bench.hand.turn_until(reading.task.done)
        assert reading.events()[-2]["choices"][0]["finish_reason"] == "stop"

    run(main())


def test_more_than_there_are_slots_wait_their_turn(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        opening = [
            asyncio.ensure_future(bench.client.post_stream(CHAT_PATH, body(f"{i}")))
            for i in range(9)
        ]
        await bench.hand.turn(0.03)
        assert sum(each.done() for each in opening) == 4
        opening[-1].cancel()  # it leaves the engine's queue
        opening[0].result().abort()
        await bench.hand.turn_until(lambda: all(each.done() for each in opening))
        for each in opening[1:-1]:
            reading = Reading(await each, bench.hand)
            await bench.hand.turn_until(reading.task.done)
        bench.engines.check()
        await bench.hand.turn(1)
        assert bench.engines.is_idle()

    run(main())


def test_preempted_answers_go_on_where_they_were(run: Run) -> None:
    async def main() -> None:
        bench = Bench(kv_blocks=24)
        opening = [
            asyncio.ensure_future(
                bench.client.post_stream(CHAT_PATH, body(f"{i}" + "x" * 1_000, max_tokens=400))
            )
            for i in range(4)
        ]
        await bench.hand.turn_until(lambda: all(each.done() for each in opening))
        readings = [Reading(await each, bench.hand) for each in opening]
        await bench.hand.turn_until(lambda: all(each.task.done() for each in readings))
        assert bench.engines._engines[0].preemptions > 0
        for reading in readings:
            said = "".join(e["choices"][0]["delta"]["content"] for e in reading.events()[:-2])
            assert said.encode() == filler(0, 400)

    run(main())


# A real worker's word.


def real(check: Callable[[WorkerPort, Hand | None], Awaitable[None]]) -> Coroutine[Any, Any, None]:
    async def main() -> None:
        async with FakeWorker(Script(tokens=["tok "] * 8)) as server:
            if check in BROKEN_OFF:
                server.gate.close()
                server.gate.permit(2)
            client = WorkerClient(server.host, server.port, None)
            try:
                await check(client, None)
            finally:
                client.close()

    return main()


def model(check: Callable[[WorkerPort, Hand | None], Awaitable[None]]) -> Coroutine[Any, Any, None]:
    async def main() -> None:
        bench = Bench()
        await check(bench.client, bench.hand)
        bench.engines.check()

    return main()


async def passing(hand: Hand | None, work: Coroutine[Any, Any, Any]) -> Any:
    """Await something of a worker, real or modelled."""
    task = asyncio.ensure_future(work)
    if hand is not None:
        await hand.turn_until(task.done)
    return await task


async def to_the_end(stream: AnswerStream) -> None:
    while await stream.read():
        pass


async def streams_whole(client: WorkerPort, hand: Hand | None) -> None:
    stream = await passing(hand, client.post_stream(CHAT_PATH, body()))
    assert stream.status == 200
    events = EventStream()
    while data := await passing(hand, stream.read()):
        events.feed(data)
    assert events.done
    assert events.finished
    assert events.usage_so_far().completion_tokens > 0
    assert await stream.read() == b""
    assert stream.is_over
    stream.abort()  # harmless after the end


async def breaks_off_with_the_first_reason(client: WorkerPort, hand: Hand | None) -> None:
    stream = await passing(hand, client.post_stream(CHAT_PATH, body()))
    client.close("the first")
    client.close("the second")
    with pytest.raises(WorkerFailed, match="the first"):
        await passing(hand, to_the_end(stream))
    for call in (client.post_stream(CHAT_PATH, body()), client.get("/health")):
        with pytest.raises(WorkerUnavailable, match="the first"):
            await call


async def stops_when_aborted(client: WorkerPort, hand: Hand | None) -> None:
    stream = await passing(hand, client.post_stream(CHAT_PATH, body()))
    assert not stream.is_over
    stream.abort()
    assert stream.is_over
    stream.abort()
    with pytest.raises(WorkerFailed, match="aborted"):
        await passing(hand, to_the_end(stream))


async def stops_when_cancelled(client: WorkerPort, hand: Hand | None) -> None:
    opening = asyncio.ensure_future(client.post_stream(CHAT_PATH, body()))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await streams_whole(client, hand)


async def hands_over_to_a_sink(client: WorkerPort, hand: Hand | None) -> None:
    stream = await passing(hand, client.post_stream(CHAT_PATH, body()))
    sink, events = Sunk(stream), EventStream()
    while data := await passing(hand, sink.read()):
        events.feed(data)
    assert events.done
    assert events.usage_so_far().completion_tokens > 0
    assert sink.failure is None


async def tells_a_sink_why_it_broke_off(client: WorkerPort, hand: Hand | None) -> None:
    sink = Sunk(await passing(hand, client.post_stream(CHAT_PATH, body())))
    client.close("the first")
    client.close("the second")
    assert str(sink.failure) == "the first"


async def waits_for_a_sink(client: WorkerPort, hand: Hand | None) -> None:
    stream = await passing(hand, client.post_stream(CHAT_PATH, body()))
    sink = Sunk(stream)
    stream.pause()
    stream.pause()
    if hand is not None:  # that a socket is not read is tested with the client
        began = len(sink.parts)
        await hand.turn(10)
        assert (len(sink.parts), sink.over) == (began, False)
    stream.resume()
    stream.resume()
    while await passing(hand, sink.read()):
        pass
    assert sink.failure is None


async def stops_for_a_sink_that_waits(client: WorkerPort, hand: Hand | None) -> None:
    stream = await passing(hand, client.post_stream(CHAT_PATH, body()))
    sink = Sunk(stream)
    stream.pause()
    stream.abort()
    assert "aborted" in str(sink.failure)


async def answers_small_questions(client: WorkerPort, _: Hand | None) -> None:
    status, listing = await client.get("/v1/models")
    assert status == 200
    assert len(json.loads(listing)["data"]) == 1
    assert (await client.get("/health"))[0] == 200
    assert (await client.get("/nothing"))[0] == 404


BROKEN_OFF = (
    breaks_off_with_the_first_reason,
    stops_when_aborted,
    tells_a_sink_why_it_broke_off,
    stops_for_a_sink_that_waits,
)


@pytest.mark.parametrize("world", [real, model])
@pytest.mark.parametrize(
    "check",
    [
        streams_whole,
        breaks_off_with_the_first_reason,
        stops_when_aborted,
        stops_when_cancelled,
        hands_over_to_a_sink,
        tells_a_sink_why_it_broke_off,
        waits_for_a_sink,
        stops_for_a_sink_that_waits,
        answers_small_questions,
    ],
)
def test_both_ways_to_a_worker_keep_the_same_word(run: Run, world: Any, check: Any) -> None:
    run(world(check))


@pytest.mark.parametrize("start_ns", [0, 3 * NS_PER_S])
def test_a_modelled_worker_comes_back(run: Run, start_ns: int) -> None:
    async def main() -> None:
        desk = Desk()
        specs = [msgspec.structs.replace(SPEC, start_ns=start_ns)]
        engines = Engines(specs, FastClock(Hand(), 1_000))
        up, down = desk.events.put_nowait, desk.events.put_nowait
        worker = ModelledWorker(engines, 0, up, down)

        async def fell() -> None:
            worker.fail("it was told to")

        async with asyncio.timeout(20):
            await alternates(worker, desk, fell)
        worker.fail("it is down already")
        assert desk.events.empty()
        await worker.stop()

    run(main())


def test_a_worker_may_be_stopped_before_it_is_up(run: Run) -> None:
    async def main() -> None:
        hand, events = Hand(), []
        engines = Engines([SPEC], FastClock(hand, 1), later=hand.later)
        worker = ModelledWorker(engines, 0, events.append, events.append)
        worker.start()
        await worker.stop()
        await hand.turn(5)
        assert events == []

    run(main())


def test_a_crash_breaks_off_what_runs(run: Run) -> None:
    async def main() -> None:
        hand = Hand()
        engines = Engines([SPEC, SPEC], FastClock(hand, 1), later=hand.later)
        clients: list[Any] = []
        workers = [
            ModelledWorker(engines, index, clients.append, clients.append) for index in range(2)
        ]
        for each in workers:
            each.start()
        await hand.turn(0.1)
        opening = [
            asyncio.ensure_future(client.post_stream(CHAT_PATH, body(f"{i}")))
            for client in tuple(clients)
            for i in range(6)
        ]
        await hand.turn(0.02)
        workers[0].fail("lost")
        await hand.settle()
        for each in opening[:4]:
            with pytest.raises(WorkerFailed, match="lost"):
                await (await each).read_all()
        for each in opening[4:6]:
            with pytest.raises(WorkerFailed, match="is down: lost"):
                await each
        assert clients[2] == "lost"
        for each in opening[6:]:
            await hand.turn_until(each.done)
            reading = Reading(await each, hand)
            await hand.turn_until(reading.task.done)
        await hand.turn(2)
        assert len(clients) == 4  # it is up again, with an empty cache
        engines.check()
        assert engines.is_idle()

    run(main())


def test_the_real_timer_is_the_event_loops(run: Run) -> None:
    async def main() -> None:
        done = asyncio.Event()
        call_later(0.0, done.set)
        await done.wait()

    run(main())


# What makes room, and goes on elsewhere.


def test_an_answer_that_was_stopped_goes_on_at_another_worker(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        sent = body(max_tokens=200)
        reading = await bench.answer(sent)
        await bench.hand.turn_until(lambda: len(reading.came) > 5)
        bench.hand.ns += 20 * NS_PER_MS  # some tokens are made that nobody was told of
        assert isinstance(reading.stream, KeepingStream)
        kept = reading.stream.stop()
        assert kept is not None
        assert reading.stream.stop() is None
        reading.stream.abort()
        await bench.hand.turn_until(reading.task.done)
        bench.engines.check()
        other = ModelledClient(bench.engines, 1)
        assert isinstance(other, KeepingPort)
        opening = asyncio.ensure_future(other.go_on_stream(CHAT_PATH, sent, kept))
        await bench.hand.turn_until(opening.done)
        after = Reading(await opening, bench.hand)
        await bench.hand.turn_until(after.task.done)
        assert b"[DONE]" not in reading.text
        after.came.insert(0, (0, reading.text))
        *tokens, last, usage = after.events()
        said = "".join(event["choices"][0]["delta"]["content"] for event in tokens)
        assert said.encode() == filler(0, 200)
        assert sum("role" in event["choices"][0]["delta"] for event in tokens) == 1
        assert len({event["id"] for event in [*tokens, last, usage]}) == 1
        assert usage["usage"]["completion_tokens"] == 200
        counts = [event["usage"]["completion_tokens"] for event in tokens]
        assert counts == sorted(set(counts))
        assert last["choices"][0]["finish_reason"] == "length"
        assert bench.engines.is_idle()

    run(main())


def test_an_answer_that_has_ended_keeps_nothing(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        reading = await bench.answer(body())
        await bench.hand.turn_until(lambda: len(reading.came) > 2)
        # Its last token is made, and nobody has told it yet.
        bench.hand.ns += 60 * NS_PER_S
        assert isinstance(reading.stream, KeepingStream)
        assert reading.stream.stop() is None
        await bench.hand.turn_until(reading.task.done)
        assert len(reading.events()) > 2
        broken = await bench.answer(body())
        bench.engines.crash(0, "power")
        assert isinstance(broken.stream, KeepingStream)
        assert broken.stream.stop() is None
        with pytest.raises(WorkerFailed, match="power"):
            await broken.task

    run(main())


# KV blocks that move down and up.


def test_blocks_go_down_make_room_and_come_back(run: Run) -> None:
    async def main() -> None:
        per_block = BLOCK_TOKENS * 10
        moves = {"kv_bytes_per_token": 10, "host_kv_blocks": 100, "host_bytes_per_s": per_block}
        bench = Bench(**moves)
        client = bench.client
        assert isinstance(client, TieredPort)
        sent = body("x" * 256 * 6)
        blocks = asked_of(sent, 1).blocks

        async def cached(sent: bytes) -> int:
            reading = await bench.answer(sent)
            await bench.hand.turn_until(reading.task.done)
            usage = reading.events()[-1]["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert await cached(sent) == 0
        assert await cached(sent) == 64 * len(blocks)
        engine = bench.engines._engines[0]
        await client.fetch(blocks, 2)  # nothing of it is below
        await client.offload(blocks, 2)
        assert set(blocks) <= engine.cached()
        await bench.hand.turn(len(blocks))
        bench.engines.check()
        assert engine.cached() & set(blocks) == set(blocks[:2])
        began_ns = bench.hand.ns
        coming = asyncio.ensure_future(client.fetch(blocks, 2))
        await bench.hand.turn_until(coming.done)
        assert bench.hand.ns - began_ns >= (len(blocks) - 2) * NS_PER_S
        assert set(blocks) <= engine.cached()
        assert await cached(sent) == 64 * len(blocks)
        # Who does not wait for them is not waited for, and what is lost below does not come.
        await client.offload(blocks, 2)
        await bench.hand.turn(len(blocks))
        leaving = asyncio.ensure_future(client.fetch(blocks, 2))
        await bench.hand.settle()
        leaving.cancel()
        await bench.hand.turn(len(blocks))
        bench.engines.crash(0, "power")
        await client.fetch(blocks, 2)
        assert not engine.cached()
        client.close("it is over")
        for move in (client.fetch, client.offload):
            with pytest.raises(WorkerUnavailable):
                await move(blocks, 2)

    run(main())

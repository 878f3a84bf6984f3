"""Modelled engines that serve: real requests in, streams of filler out, at the modelled times.

The engines are those of a run of the twin (``workers.Worker``); only what drives them differs: a
clock that runs and an event loop's timer, instead of one that jumps. A timer wakes for the next
boundary of any engine and, while answers are being made, often enough to hand out what was made
between boundaries. However many answers there are, there is one timer, and no more than
``CHUNKS_PER_S_MAX`` chunks a second: with more answers each chunk holds more tokens.

A worker can stop an answer and let another go on with it, and move KV blocks to its host's memory
and back, as in a run (``host_tiers``).

A token is ``BYTES_PER_TOKEN`` bytes of the prompt. How long an answer is follows from the request
alone; what it says is filler, and says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from statistics import NormalDist
from typing import Final, Protocol

import msgspec

from tokenworks.core.errors import WorkerFailed, WorkerUnavailable
from tokenworks.core.orders import CHAT_PATH, JSON_TYPE, Passing
from tokenworks.core.ports import ABORTED, AnswerStream, Sink, WorkerPort
from tokenworks.core.rng import WORD
from tokenworks.core.units import NS_PER_S
from tokenworks.twin.clock import FastClock
from tokenworks.twin.host_tiers import HostTiers
from tokenworks.twin.records import WorkerSpec
from tokenworks.twin.sequence import DECODING, FINISHED, GONE
from tokenworks.twin.sequence import Sequence as Attempt
from tokenworks.twin.workers import KEY_SHIFT, WORKERS_MAX, Worker

BYTES_PER_TOKEN: Final = 4
BLOCK_TOKENS: Final = 64
"""The gateway hashes prompts in blocks of 256 bytes: engine and dispatcher mean the same block."""
OUTPUT_TOKENS_DEFAULT: Final = 300
OUTPUT_SIGMA: Final = 0.8
"""Of the logarithm of an answer's length."""
WAKE_S_MIN: Final = 0.001
FLUSH_S_MIN: Final = 0.005
CHUNKS_PER_S_MAX: Final = 4_000
UNREAD_BYTES_MAX: Final = 64 * 1024
"""What is made for a caller who reads nothing waits in the count, not as bytes."""
RESTART_S: Final = 1.0
STOPPED: Final = "it was stopped"

_WORKER_MASK: Final = WORKERS_MAX - 1
_WORDS: Final = tuple(
    word.encode()
    for word in (
        *("This", " is", " filler", " of", " a", " modelled", " worker", ":"),
        *(" no", " engine", " ran", ",", " and", " its", " words", " mean", " nothing", ". "),
    )
)
"""A token each."""

OnUp = Callable[[WorkerPort], None]
OnDown = Callable[[str], None]


class Timer(Protocol):
    """What an event loop gives for a call that is due later."""

    def cancel(self) -> None:
        """Let it not be called."""
        ...


Later = Callable[[float, Callable[[], None]], Timer]
"""Calls a function after so many seconds of the event loop."""


def call_later(delay_s: float, action: Callable[[], None]) -> Timer:
    """``Later`` on the running event loop."""
    return asyncio.get_running_loop().call_later(delay_s, action)


def served_spec(spec: WorkerSpec) -> WorkerSpec:
    """The same engine with KV blocks of the gateway's size."""
    tokens, below = spec.kv_blocks * spec.block_tokens, spec.host_kv_blocks * spec.block_tokens
    return msgspec.structs.replace(
        spec,
        block_tokens=BLOCK_TOKENS,
        kv_blocks=max(1, tokens // BLOCK_TOKENS),
        host_kv_blocks=below // BLOCK_TOKENS,
    )


class Asked(msgspec.Struct, frozen=True):
    """What an engine is told of a request: lengths and the hashes of its prompt's full blocks."""

    input_tokens: int
    output_tokens: int
    output_tokens_max: int
    blocks: tuple[int, ...]


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of an answer that was stopped: who it is, and what was made of it."""

    number: int
    created_s: int
    made: int
    cached_tokens: int


class _Body(msgspec.Struct):
    """The fields of a request that a modelled worker reads."""

    messages: msgspec.Raw
    tools: msgspec.Raw = msgspec.Raw(b"null")
    max_tokens: int = 2 * OUTPUT_TOKENS_DEFAULT
    ignore_eos: bool = False
    cache_salt: str = ""


_BODY: Final = msgspec.json.Decoder(_Body)


def asked_of(body: bytes, output_tokens: int) -> Asked:
    """Lengths and blocks of a request; the same body always gives the same.

    Args:
        body: JSON as a gateway sends it to a worker.
        output_tokens: mean length of answers; ``ignore_eos`` makes one as long as it may be.

    Raises:
        msgspec.MsgspecError: it is no request.
    """
    read = _BODY.decode(body)
    prompt = b"[%b,%b]" % (bytes(read.tools), bytes(read.messages))
    limit = max(1, read.max_tokens)
    size, previous, blocks = BLOCK_TOKENS * BYTES_PER_TOKEN, read.cache_salt.encode(), []
    for start in range(0, len(prompt) - size + 1, size):
        block = prompt[start : start + size]
        previous = hashlib.blake2b(block, key=previous, digest_size=8).digest()
        blocks.append(int.from_bytes(previous, "little"))
    drawn = limit if read.ignore_eos else _length(prompt, output_tokens)
    return Asked(
        input_tokens=-(-len(prompt) // BYTES_PER_TOKEN),
        output_tokens=min(limit, drawn),
        output_tokens_max=limit,
        blocks=tuple(blocks),
    )


def _length(prompt: bytes, mean: int) -> int:
    """Log-normal, by a hash of the prompt."""
    drawn = int.from_bytes(hashlib.blake2b(prompt, digest_size=8).digest(), "little")
    normal = NormalDist().inv_cdf((drawn + 0.5) / (WORD + 1))
    return max(1, round(mean * math.exp(OUTPUT_SIGMA * normal - OUTPUT_SIGMA**2 / 2)))


def filler(start: int, end: int) -> bytes:
    """The text of some tokens of an answer, ready to stand in a JSON string.

    >>> filler(0, 4), filler(17, 19)
    (b'This is filler of', b'. This')
    """
    count, first = end - start, start % len(_WORDS)
    return b"".join((_WORDS * (count // len(_WORDS) + 2))[first : first + count])


TOKENIZE_PATH: Final = "/tokenize"
"""Where vLLM counts a prompt's tokens."""


class Refusal:
    """An answer in one piece: an error, or what ``body`` says."""

    def __init__(self, status: int, message: str, body: bytes | None = None) -> None:
        self.status, self.content_type = status, JSON_TYPE.encode()
        self.headers = ((b"content-type", self.content_type),)
        error = {"message": message, "type": "invalid_request_error", "code": status}
        self._body = msgspec.json.encode({"error": error}) if body is None else body

    @property
    def is_over(self) -> bool:
        """See ``AnswerStream``."""
        return True

    async def read(self) -> bytes:
        """See ``AnswerStream``."""
        body, self._body = self._body, b""
        return body

    async def read_all(self) -> bytes:
        """See ``AnswerStream``."""
        return await self.read()

    def pipe(self, sink: Sink) -> None:
        """See ``AnswerStream``."""
        sink.data(self._body)
        sink.ended(None)

    def pause(self) -> None:
        """See ``AnswerStream``."""

    def resume(self) -> None:
        """See ``AnswerStream``."""

    def abort(self) -> None:
        """See ``AnswerStream``."""


class Answer:
    """An answer that is being made; implements ``KeepingStream``.

    Attributes:
        attempt: its sequence in the engine.
        begun: done with the first token; its error is why there is none.
    """

    status = 200
    content_type = b"text/event-stream"
    headers = ((b"content-type", content_type),)

    def __init__(
        self, engines: Engines, attempt: Attempt, asked: Asked, model: str, kept: _Kept
    ) -> None:
        self.attempt = attempt
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._engines, self._asked, self._kept = engines, asked, kept
        self._told = kept.made
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._ended = False
        self._failure: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._paused = False
        named = msgspec.json.encode(model)
        self._head = (
            b'data: {"id":"chatcmpl-twin-%d","object":"chat.completion.chunk","created":%d,'
            b'"model":%b,"choices":' % (kept.number, kept.created_s, named)
        )

    # What a driver calls.

    @property
    def is_over(self) -> bool:
        """See ``AnswerStream``."""
        return self._ended or self._failure is not None

    async def read(self) -> bytes:
        """See ``AnswerStream``."""
        while not self._parts:
            if self._failure is not None:
                raise WorkerFailed(self._failure)
            if self._ended:
                return b""
            assert self._waiter is None, "two tasks read one stream"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = b"".join(self._parts)
        self._parts.clear()
        self._unread_bytes = 0
        return data

    async def read_all(self) -> bytes:
        """See ``AnswerStream``."""
        whole = bytearray()
        while data := await self.read():
            whole += data
        return bytes(whole)

    def pipe(self, sink: Sink) -> None:
        """See ``AnswerStream``."""
        self._sink = sink
        self._hand_over(sink)

    def pause(self) -> None:
        """See ``AnswerStream``; what is made meanwhile waits in the count."""
        self._paused = True

    def resume(self) -> None:
        """See ``AnswerStream``."""
        self._paused = False
        self._wake()

    def abort(self) -> None:
        """See ``AnswerStream``."""
        if not self._ended and self._failure is None:
            self._engines.drop(self)
            self.break_off(ABORTED)

    def stop(self) -> bytes | None:
        """See ``KeepingStream``."""
        made = None if self._failure is not None else self._engines.stop(self)
        if made is None:
            return None
        if made > self._told:
            self._emit(made)
        self._ended = True
        self._wake()
        kept = self._kept
        return _KEPT_OUT.encode(
            _Kept(kept.number, kept.created_s, made, self.attempt.cached_tokens)
        )

    # What the engines call.

    def start(self) -> None:
        """The prompt is read, and the first token is there, or the first of those that follow."""
        role = b'{"content":"' if self._told else b'{"role":"assistant","content":"'
        self._emit(self.attempt.made, role)
        if not self.begun.done():
            self.begun.set_result(None)

    def go_on(self, iteration: int) -> None:
        """Tell what the engine has made until an iteration."""
        attempt = self.attempt
        made = attempt.made
        if attempt.state == DECODING:
            made += iteration - attempt.decodes_from
        if made > self._told > 0 and self._unread_bytes < UNREAD_BYTES_MAX:
            self._emit(made)

    def finish(self) -> None:
        """All tokens are there."""
        made = self.attempt.made
        if made > self._told:
            self._emit(made)
        self._ended = True
        reason = b"length" if made == self._asked.output_tokens_max else b"stop"
        self._put(
            b'%b[{"index":0,"delta":{},"finish_reason":"%b"}]}\n\n' % (self._head, reason)
            + b"%b[],%b}\n\ndata: [DONE]\n\n" % (self._head, self._usage())
        )

    def break_off(self, why: str) -> None:
        """There will be no more."""
        self._failure = self._failure or why
        if not self.begun.done():
            self.begun.set_exception(WorkerFailed(self._failure))
        self._wake()

    def _emit(self, made: int, delta: bytes = b'{"content":"') -> None:
        text = filler(self._told, made)
        self._told = made
        self._put(
            b'%b[{"index":0,"delta":%b%b"},"finish_reason":null}],%b}\n\n'
            % (self._head, delta, text, self._usage())
        )

    def _usage(self) -> bytes:
        """In every chunk, so that an answer that is cut off is billed to the token."""
        read, made = self._asked.input_tokens, self._told
        return (
            b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
            b'"prompt_tokens_details":{"cached_tokens":%d}}'
            % (read, made, read + made, self.attempt.cached_tokens)
        )

    def _put(self, data: bytes) -> None:
        self._parts.append(data)
        self._unread_bytes += len(data)
        self._wake()

    def _wake(self) -> None:
        if self._sink is not None:
            self._hand_over(self._sink)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _hand_over(self, sink: Sink) -> None:
        """Give the sink what there is, and the end after it."""
        if self._paused and self._failure is None:
            return
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._unread_bytes = 0
            sink.data(data)
        if self._ended or self._failure is not None:
            self._sink = None
            sink.ended(None if self._failure is None else WorkerFailed(self._failure))


class Engines:
    """All modelled engines of a factory, and their one timer.

    Args:
        specs: what each is; none hands its sequences over to another.
        clock: how late it is for them.
        output_tokens: mean length of answers.
        later: the event loop's timer.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        clock: FastClock,
        *,
        output_tokens: int = OUTPUT_TOKENS_DEFAULT,
        later: Later = call_later,
    ) -> None:
        assert all(spec.role == "both" for spec in specs), "an engine serves alone"
        self.specs = tuple(specs)
        self.clock, self.later, self.output_tokens = clock, later, output_tokens
        self._heap: list[int] = []
        self._engines = [
            Worker(index, spec, self._heap, exact=False) for index, spec in enumerate(specs)
        ]
        self._answers: list[dict[int, Answer]] = [{} for _ in specs]
        self._open = self._attempts = self._flushed_ns = self._wake_ns = self._dues = 0
        self._timer: Timer | None = None
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._hosts = HostTiers(self._engines, self._at, lambda _: None)

    def refusal(self, index: int, asked: Asked) -> str:
        """Why an engine can never serve a request; empty if it can."""
        whole, room = asked.input_tokens + asked.output_tokens - 1, self._engines[index].tokens_max
        if whole <= room:
            return ""
        return f"This request needs {whole} tokens of KV cache; the worker has {room}."

    def open(self, index: int, asked: Asked, kept: _Kept | None = None) -> Answer:
        """Give an engine a request that it can serve, perhaps with what was made of it before."""
        now_ns = self.advance()
        self._attempts += 1
        attempt = Attempt(
            self._attempts,
            0,
            index,
            1,
            asked.input_tokens,
            asked.output_tokens,
            asked.blocks,
        )
        if kept is None:
            kept = _Kept(attempt.number, self.clock.unix_ns() // NS_PER_S, 0, 0)
        else:
            attempt.keep(kept.made, kept.cached_tokens)
        answer = Answer(self, attempt, asked, self.specs[index].model, kept)
        self._answers[index][attempt.number] = answer
        self._open += 1
        self._engines[index].submit(attempt, now_ns)
        self._arm(now_ns)
        return answer

    def drop(self, answer: Answer) -> None:
        """Stop the work on an answer, if there is any left."""
        now_ns = self.advance()
        attempt = answer.attempt
        if attempt.state != GONE and self._forget(attempt) is not None:
            self._engines[attempt.worker].abort(attempt, now_ns)
            self._arm(now_ns)

    def stop(self, answer: Answer) -> int | None:
        """Stop the work on an answer, and return the tokens made; None if it has all of them."""
        now_ns, attempt = self.advance(), answer.attempt
        engine = self._engines[attempt.worker]
        if attempt.state == GONE or self._forget(attempt) is None:
            return None
        made = engine.made_by(attempt, now_ns)
        engine.abort(attempt, now_ns)
        self._arm(now_ns)
        return made

    def offload(self, index: int, chain: tuple[int, ...], first: int) -> None:
        """Move KV blocks of an engine to its host's memory."""
        now_ns = self.advance()
        self._hosts.down(index, chain, first, now_ns)
        self._arm(now_ns)

    def fetch(self, index: int, chain: tuple[int, ...], first: int) -> asyncio.Future[None] | None:
        """Bring KV blocks back; done when they are in the cache. None if none of them is there."""
        now_ns = self.advance()
        done_ns = self._hosts.up(index, chain, first, now_ns)
        if done_ns is None:
            return None
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._at(done_ns, lambda: None if there.cancelled() else there.set_result(None))
        self._arm(now_ns)
        return there

    def crash(self, index: int, why: str) -> None:
        """An engine loses all that it has."""
        self._engines[index].crash(self.advance())
        self._hosts.lose(index)
        answers = self._answers[index]
        lost, self._answers[index] = list(answers.values()), {}
        self._open -= len(lost)
        for answer in lost:
            answer.break_off(why)

    def advance(self) -> int:
        """Bring all engines up to now, and return how late that is."""
        now_ns, due = self.clock.now_ns(), self._due
        while due and due[0][0] <= now_ns:
            at_ns, _, action = heappop(due)
            self._go_on(at_ns)
            action()
        self._go_on(now_ns)
        return now_ns

    def _go_on(self, until_ns: int) -> None:
        """Bring all engines up to a time."""
        heap, engines = self._heap, self._engines
        while heap and heap[0] >> KEY_SHIFT <= until_ns:
            key = heappop(heap)
            engine = engines[key & _WORKER_MASK]
            if engine.key != key:
                continue
            answers = self._answers[engine.index]
            for what, attempt in engine.complete():
                answer = answers.get(attempt.number)
                if answer is None:
                    continue  # it was dropped
                if what == FINISHED:
                    self._forget(attempt)
                    answer.finish()
                else:
                    answer.start()
            engine.plan(key >> KEY_SHIFT)

    def _at(self, at_ns: int, action: Callable[[], None]) -> None:
        """Have something done between boundaries; the timer is set by whoever asks for it."""
        self._dues += 1
        heappush(self._due, (at_ns, self._dues, action))

    def check(self) -> None:
        """Assert that engines and answers agree."""
        for engine in self._engines:
            engine.check()
        assert self._open == sum(len(each) for each in self._answers), self._open

    def is_idle(self) -> bool:
        """Whether nothing is being made and nothing will happen by itself."""
        return self._open == 0 and all(engine.is_empty() for engine in self._engines)

    def _forget(self, attempt: Attempt) -> Answer | None:
        answer = self._answers[attempt.worker].pop(attempt.number, None)
        self._open -= answer is not None
        return answer

    def _woken(self) -> None:
        self._timer = None
        now_ns = self.advance()
        if now_ns >= self._flushed_ns + self._flush_ns():
            self._flushed_ns = now_ns
            for engine, answers in zip(self._engines, self._answers, strict=True):
                if answers:
                    iteration = engine.iterations_by(now_ns)
                    for answer in answers.values():
                        answer.go_on(iteration)
        self._arm(now_ns)

    def _flush_ns(self) -> int:
        """How far apart an answer's chunks are, on the engines' clock."""
        apart_s = max(FLUSH_S_MIN, self._open / CHUNKS_PER_S_MAX)
        return int(apart_s * self.clock.speedup * NS_PER_S)

    def _arm(self, now_ns: int) -> None:
        """Have the timer wake at what is due next."""
        heap = self._heap
        while heap and self._engines[heap[0] & _WORKER_MASK].key != heap[0]:
            heappop(heap)
        due = self._due
        if not heap and not due:
            return
        wake_ns = heap[0] >> KEY_SHIFT if heap else due[0][0]
        if due:
            wake_ns = min(wake_ns, due[0][0])
        if self._open:
            wake_ns = min(wake_ns, self._flushed_ns + self._flush_ns())
        if self._timer is not None:
            if self._wake_ns <= wake_ns:
                return
            self._timer.cancel()
        delay_s = max(WAKE_S_MIN, (wake_ns - now_ns) / (NS_PER_S * self.clock.speedup))
        self._wake_ns = max(wake_ns, now_ns)
        self._timer = self.later(delay_s, self._woken)


_KEPT_OUT: Final = msgspec.msgpack.Encoder()
_KEPT_IN: Final = msgspec.msgpack.Decoder(_Kept)


class ModelledClient:
    """The way to one modelled worker; implements ``KeepingPort`` and ``TieredPort``."""

    def __init__(self, engines: Engines, index: int) -> None:
        self._engines, self._index = engines, index
        self._closed: str | None = None

    async def post_stream(
        self,
        path: str,
        body: bytes,
        lines: bytes = b"",  # noqa: ARG002
        content_type: str = JSON_TYPE,  # noqa: ARG002  what isn't JSON is refused as such
    ) -> AnswerStream:
        """See ``WorkerPort``."""
        return await self._post(path, body, None)

    async def go_on_stream(self, path: str, body: bytes, kept: bytes) -> AnswerStream:
        """See ``KeepingPort``."""
        return await self._post(path, body, _KEPT_IN.decode(kept))

    async def offload(self, prefix: tuple[int, ...], first: int) -> None:
        """See ``TieredPort``."""
        self._check_open()
        self._engines.offload(self._index, prefix, first)

    async def fetch(self, prefix: tuple[int, ...], first: int) -> None:
        """See ``TieredPort``."""
        self._check_open()
        there = self._engines.fetch(self._index, prefix, first)
        if there is not None:
            await there

    async def _post(self, path: str, body: bytes, kept: _Kept | None) -> AnswerStream:
        self._check_open()
        if path == TOKENIZE_PATH:
            return self._count(body)
        if path != CHAT_PATH:
            return Refusal(404, f"There is no {path!r}; a modelled worker serves {CHAT_PATH}.")
        try:
            asked = asked_of(body, self._engines.output_tokens)
        except msgspec.MsgspecError as error:
            return Refusal(400, f"The body is no request: {error}.")
        refused = self._engines.refusal(self._index, asked)
        if refused:
            return Refusal(400, refused)
        answer = self._engines.open(self._index, asked, kept)
        try:
            await answer.begun
        except asyncio.CancelledError:
            answer.abort()
            raise
        return answer

    def _count(self, body: bytes) -> AnswerStream:
        try:
            count = asked_of(body, self._engines.output_tokens).input_tokens
        except msgspec.MsgspecError as error:
            return Refusal(400, f"The body is no request: {error}.")
        return Refusal(200, "", msgspec.json.encode({"count": count}))

    async def pass_on(self, passing: Passing, body: bytes) -> AnswerStream:
        """See ``WorkerPort``."""
        if passing.method != "POST":
            self._check_open()
            return Refusal(404, f"A modelled worker serves POST {CHAT_PATH} alone.")
        return await self.post_stream(passing.target, body)

    async def get(self, path: str) -> tuple[int, bytes]:
        """See ``WorkerPort``."""
        self._check_open()
        model = self._engines.specs[self._index].model
        if path == "/v1/models":
            rows = [{"id": model, "object": "model", "owned_by": "tokenworks-twin"}]
            return 200, msgspec.json.encode({"object": "list", "data": rows})
        return (200, b"{}") if path == "/health" else (404, b"{}")

    def close(self, why: str) -> None:
        """See ``WorkerPort``."""
        if self._closed is None:
            self._closed = why
            self._engines.crash(self._index, why)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise WorkerUnavailable(self._closed)


class ModelledWorker:
    """A modelled worker's lives; keeps the promises of a supervised real one.

    Args:
        engines: where it is.
        index: which one it is.
        on_up, on_down: called in turn, ``on_up`` first, when it can take requests and no longer.

    Attributes:
        last_failure: why it last went down; empty if that never happened.
    """

    def __init__(self, engines: Engines, index: int, on_up: OnUp, on_down: OnDown) -> None:
        self.last_failure = ""
        self._engines, self._index = engines, index
        self._on_up, self._on_down = on_up, on_down
        self._client: ModelledClient | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        """Come up, after the time that its engine takes for it."""
        self._start_in(0.0)

    def fail(self, why: str) -> None:
        """Lose everything, as a crash does, and come up again."""
        if self._client is not None:
            self.last_failure = why
            self._down(why)
            self._start_in(RESTART_S / self._engines.clock.speedup)

    async def stop(self) -> None:
        """End it; returns when nothing of it is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._client is not None:
            self._down(STOPPED)

    def _start_in(self, delay_s: float) -> None:
        start_s = self._engines.specs[self._index].start_ns / NS_PER_S
        delay_s += start_s / self._engines.clock.speedup
        self._timer = self._engines.later(delay_s, self._up)

    def _up(self) -> None:
        self._timer = None
        self._client = ModelledClient(self._engines, self._index)
        self._on_up(self._client)

    def _down(self, why: str) -> None:
        client, self._client = self._client, None
        assert client is not None
        client.close(f"worker {self._engines.specs[self._index].worker} is down: {why}")
        self._on_down(why)

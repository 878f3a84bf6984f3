"""``/v1/batches`` with OpenAI's SDK: answered in what is free, each line billed once."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any

import openai
import pytest

from tests.gateway.batch_house import CHAT, BatchDesk, House, begin, chat_line, lines_of
from tests.gateway.fake_desk import DONE, KEY, MODEL, Hold, answer, usage
from tests.gateway.test_completions import END, piece
from tokenworks.core.batches import WINDOW_NS, Batch, Line
from tokenworks.core.errors import (
    CapacityExceeded,
    InvalidRequest,
    LedgerUnavailable,
    QuotaExceeded,
    TokenworksError,
    WorkerFailed,
)
from tokenworks.core.ids import BatchID, ModelName, RequestID
from tokenworks.core.scopes import Scopes
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway import batch_input, batch_line, batch_runner
from tokenworks.gateway.batch_runner import ERRAND_AGAIN_NS, RETRY_NS, SWEEP_NS, WORKER_TRIES_MAX
from tokenworks.ledger.store_port import InDoubt
from tokenworks.live import batch_room, file_room
from tokenworks.live.batch_room import StoredBatches
from tokenworks.live.file_room import StoredFiles

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_openais_sdk_begins_a_batch_and_reads_what_came_of_it(
    run: Run, tmp_path: pathlib.Path
) -> None:
    desk = BatchDesk(answer("Hel", "lo."))
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            lines = [chat_line(f"c{n}", service_tier="priority") for n in range(9)]
            lines.insert(3, chat_line("bad", messages="no"))  # type: ignore[arg-type]
            more: Any = {
                "metadata": {"for": "me"},
                "output_expires_after": {"anchor": "created_at", "seconds": 3_600},
            }
            batch = await begin(client, ["", *lines, "  "], **more)
            assert (batch.status, batch.metadata) == ("validating", {"for": "me"})
            assert batch.expires_at - batch.created_at == 86_400
            with pytest.raises(openai.BadRequestError, match="that has not ended reads"):
                await client.files.delete(batch.input_file_id)
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            assert (done.status, done.completion_window) == ("completed", "24h")
            counts = done.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (10, 9, 1)
            times = (done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at)
            assert None not in times
            assert (done.errors, done.failed_at, done.cancelled_at) == (None, None, None)
            output = await lines_of(client, done.output_file_id)
            assert sorted(output) == [f"c{n}" for n in range(9)]
            for line in output.values():
                response = line["response"]
                assert (response["status_code"], line["error"]) == (200, None)
                body = response["body"]
                assert body["choices"][0]["message"]["content"] == "Hello."
                assert (body["service_tier"], body["usage"]["total_tokens"]) == ("free", 9)
                assert desk.billed.pop(response["request_id"]) == 1
            assert not desk.billed
            errors = await lines_of(client, done.error_file_id)
            assert errors["bad"]["response"]["status_code"] == 400
            assert errors["bad"]["response"]["body"]["error"]["code"] == "invalid_request"
            assert done.output_file_id is not None
            file = await client.files.retrieve(done.output_file_id)
            assert file.purpose == "batch_output"
            assert file.expires_at is not None
            assert file.expires_at - file.created_at == 3_600
            assert (await client.files.delete(batch.input_file_id)).deleted

    run(go())
    assert desk.most_at_once == desk.slots
    assert {delivery.outcome.ending for delivery in desk.deliveries} == {"done"}


@pytest.mark.parametrize(
    ("endpoint", "body", "found"),
    [
        ("/v1/completions", {"prompt": "hi"}, lambda body: body["choices"][0]["text"]),
        ("/v1/responses", {"input": "hi"}, lambda body: body["output"][0]["content"][0]["text"]),
    ],
)
def test_other_endpoints(
    run: Run, tmp_path: pathlib.Path, endpoint: str, body: dict[str, Any], found: Any
) -> None:
    prompted = [piece("Hel"), piece("lo.", "stop"), END, DONE]
    house = House(tmp_path, BatchDesk(prompted if "prompt" in body else answer("Hel", "lo.")))

    async def go() -> None:
        async with house.sdk() as client:
            line = {"custom_id": "a", "method": "POST", "url": endpoint}
            batch = await begin(client, [{**line, "body": {"model": MODEL, **body}}], endpoint)
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            told = (await lines_of(client, done.output_file_id))["a"]["response"]["body"]
            assert found(told) == "Hello."
            if endpoint == "/v1/responses":  # it is kept, as one that is asked live
                assert (await client.responses.retrieve(told["id"])).output_text == "Hello."

    run(go())


def test_workers_that_tell_no_usage_in_one_piece_are_warned_of(
    run: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    choice = {"index": 0, "message": {"content": "Hello."}, "finish_reason": "stop"}
    desk = BatchDesk([json.dumps({"choices": [choice]}).encode()])
    desk.in_one_piece = frozenset({MODEL})
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            await begin(client, [chat_line("a"), chat_line("b")], "/v1/chat/completions")
            await house.rounds()

    run(go())
    assert len(desk.billed) == 2
    assert sum("tells no usage" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("said", ["Hello.", None, WorkerFailed("broke off")])
def test_workers_that_answer_in_one_piece(run: Run, tmp_path: pathlib.Path, said: Any) -> None:
    choices = [{"index": 0, "message": said and {"content": said}, "finish_reason": "stop"}]
    body = {"choices": choices, "usage": usage(7, 3)}
    fails = isinstance(said, WorkerFailed)
    desk = BatchDesk([said if fails else json.dumps(body, indent=1).encode()])
    desk.in_one_piece = frozenset({MODEL})
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")], "/v1/chat/completions")
            for _ in range(WORKER_TRIES_MAX):
                await house.round()
                house.clock.ns += RETRY_NS
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            told = await lines_of(client, done.output_file_id or done.error_file_id)
            response = told["a"]["response"]
            if said == "Hello.":
                assert response["body"] == {**body, "service_tier": "free"}
                assert desk.delivery.outcome.usage.output_tokens == 3
            else:
                assert response["status_code"] == 502
                assert not desk.billed
            assert all(not json.loads(order.body)["stream"] for order in desk.orders)

    run(go())


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b'{\n "data": [1], "usage": {"prompt_tokens": 5}}', 200),
        (b"no JSON", 502),
        (b'{"data": [1], "usage": {"prompt_tokens": -5}}', 502),
    ],
)
def test_embeddings(run: Run, tmp_path: pathlib.Path, said: bytes, status: int) -> None:
    desk = BatchDesk([said])
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}
            batch = await begin(
                client, [{**line, "body": {"model": MODEL, "input": "x"}}], "/v1/embeddings"
            )
            for _ in range(WORKER_TRIES_MAX):
                await house.round()
                house.clock.ns += RETRY_NS
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            told = await lines_of(client, done.output_file_id or done.error_file_id)
            assert told["a"]["response"]["status_code"] == status
            if status == 200:
                usage = desk.delivery.outcome.usage
                assert usage.uncached_input_tokens == 5
            else:
                assert len(desk.deliveries) == WORKER_TRIES_MAX
                assert not desk.billed

    run(go())


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([], "empty_file", None),
        (["", "x"], "invalid_json_line", 2),
        (["[1]"], "invalid_request", 1),
        (['{"x": ' + "[" * 3_000], "invalid_json_line", 1),
        ([chat_line("a"), chat_line("a")], "duplicate_custom_id", 2),
        ([chat_line("")], "invalid_custom_id", 1),
        ([chat_line("a", url="/v1/embeddings")], "mismatched_url", 1),
        ([chat_line("a", method="GET")], "invalid_method", 1),
        ([{**chat_line("a"), "body": {}}], "invalid_request", 1),
        ([chat_line("a", model="")], "invalid_model", 1),
        ([chat_line("a", user="x" * 900)], "line_too_long", 1),
        ([chat_line(f"c{n}") for n in range(6)], "too_many_lines", None),
    ],
)
def test_what_is_no_input_says_where(
    run: Run,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[Any],
    code: str,
    line: int | None,
) -> None:
    if code != "invalid_json_line":
        monkeypatch.setattr(batch_input, "LINE_BYTES_MAX", 800)
    monkeypatch.setattr(batch_input, "LINES_MAX", 5)
    monkeypatch.setattr(batch_input, "READ_BYTES", 100)
    house = House(tmp_path, BatchDesk())

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, lines)
            await house.rounds()
            failed = await client.batches.retrieve(batch.id)
            assert (failed.status, failed.failed_at is None) == ("failed", False)
            assert failed.errors is not None
            (error,) = failed.errors.data or []
            assert (error.code, error.line) == (code, line)
            assert not house.desk.orders

    run(go())


def test_only_so_many_errors_are_told(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_input, "ERRORS_MAX", 3)
    house = House(tmp_path, BatchDesk())

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, ["x"] * 9)
            await house.rounds()
            errors = (await client.batches.retrieve(batch.id)).errors
            assert errors is not None
            assert [each.line for each in errors.data or []] == [1, 2, 3]

    run(go())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"endpoint": "/v1/rerank"}, "one of /v1/chat/completions"),
        ({"completion_window": "7d"}, "'24h'"),
        ({"input_file_id": 5}, "the id of a file"),
        ({"metadata": {"a": 5}}, "pairs of texts"),
        ({"metadata": {str(n): "" for n in range(17)}}, "pairs of texts"),
        ({"output_expires_after": {"anchor": "now", "seconds": 5}}, "expires_after"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": True}}, "whole number"),
    ],
)
def test_what_is_no_batch_is_refused(
    run: Run, tmp_path: pathlib.Path, given: Any, said: str
) -> None:
    house = House(tmp_path, BatchDesk())
    good = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}

    async def go() -> None:
        async with house.sdk() as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.batches.create(**{**good, **given})
            assert said in str(caught.value)
            with pytest.raises(openai.NotFoundError, match="Send it to /v1/files first"):
                await client.batches.create(**good)  # type: ignore[arg-type]

    run(go())


def test_limits_lists_and_what_is_not_there(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_room, "BATCHES_MAX", 2)
    house = House(tmp_path, BatchDesk(answer("x")))

    async def go() -> None:
        async with house.sdk() as client:
            made = [(await begin(client, [chat_line("a")])).id for _ in range(2)]
            with pytest.raises(openai.RateLimitError, match="2 are the most"):
                await begin(client, [chat_line("a")])
            listed = [each.id async for each in client.batches.list(limit=1)]
            assert listed == made[::-1]
            assert not (await client.batches.list(after="\x00")).data
            for name in ("batch_x", "\x00"):
                with pytest.raises(openai.NotFoundError, match="There is no batch"):
                    await client.batches.retrieve(name)
                with pytest.raises(openai.NotFoundError):
                    await client.batches.cancel(name)
            with pytest.raises(openai.NotFoundError):
                await client.post(f"/batches/{made[0]}/start", cast_to=object)
            await house.rounds()
            done = await client.batches.retrieve(made[0])
            assert done.output_file_id is not None
            with pytest.raises(openai.BadRequestError, match="purpose is batch"):
                await client.batches.create(
                    input_file_id=done.output_file_id,
                    endpoint=CHAT,  # type: ignore[arg-type]
                    completion_window="24h",
                )
            with pytest.raises(openai.BadRequestError, match="is completed"):
                await client.batches.cancel(made[0])
            house.clock.ns += 91 * WINDOW_NS + SWEEP_NS
            await house.round()
            assert not (await client.batches.list()).data
            assert not (await client.files.list()).data

    run(go())


def test_live_requests_go_first(run: Run, tmp_path: pathlib.Path) -> None:
    desk = BatchDesk(answer("x"))
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line(f"c{n}") for n in range(3)])
            await house.round()
            desk.others = desk.slots  # no slot is free
            await house.round()
            assert not desk.orders
            desk.others = 0
            desk.waiting = {(MODEL, Tier.HIGH): 1}  # a slot is free, but somebody waits
            await house.round()
            assert not desk.orders
            desk.waiting, desk.queued = {}, asyncio.Event()
            await house.runner.round()  # lines that are queued themselves
            await desk.has(3)
            desk.waiting = {(MODEL, Tier.FREE): 3}
            await house.runner.round()
            assert not desk.withdrawn
            desk.waiting = {(MODEL, Tier.FREE): 4}  # somebody else stands behind them
            await house.round()
            assert len(desk.withdrawn) == 3
            desk.waiting, desk.queued = {}, None
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            assert done.request_counts is not None
            assert done.request_counts.completed == 3
            assert sorted(desk.billed.values()) == [1, 1, 1]

    run(go())


def test_a_process_that_ends_begins_no_line(run: Run, tmp_path: pathlib.Path) -> None:
    desk = BatchDesk(answer("x"))
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            house.runner._stopping = lambda: True
            for _ in range(3):
                await house.round()
            assert not desk.billed
            house.runner._stopping = lambda: False
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            assert done.request_counts is not None
            assert done.request_counts.completed == 1

    run(go())


def test_batches_share_what_is_free(run: Run, tmp_path: pathlib.Path) -> None:
    desk = BatchDesk([Hold()])
    desk.slots = 6
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            for name in ("a", "b", "c"):
                await begin(client, [chat_line(f"{name}{n}", user=name) for n in range(9)])
            desk.waiting = {(MODEL, Tier.HIGH): 1}
            for _ in range(2):
                await house.round()
            desk.waiting = {}
            await house.runner.round()
            await desk.has(6)
            asked = [run.line.custom_id for run in house.runner._runs.values()]
            assert sorted(asked) == ["a0", "a1", "b0", "b1", "c0", "c1"]
            await house.runner._stop()
        assert not desk.billed
        assert {delivery.outcome.ending for delivery in desk.deliveries} == {"failed"}

    run(go())


def test_lines_behind_many_that_cannot_go_are_found(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "LOOK_MAX", 4)
    desk = BatchDesk(answer("x"))
    other = ModelName("other")
    desk.waiting = {(other, Tier.HIGH): 1}  # its queue is never empty
    house = House(tmp_path, desk)
    looks = Counter[bool]()
    waiting = house.batches.waiting

    async def counted(batch: BatchID, limit: int, without: Collection[ModelName] = ()) -> Any:
        looks[bool(without)] += 1
        return await waiting(batch, limit, without)

    house.batches.waiting = counted

    async def go() -> None:
        async with house.sdk() as client:
            lines = [chat_line(f"o{n}", model=other) for n in range(6)]
            batch = await begin(client, [*lines, chat_line("a"), chat_line("b")])
            await house.batches.lead()
            for _ in range(6):
                await house.round()
            counts = (await client.batches.retrieve(batch.id)).request_counts
            assert counts is not None
            assert (counts.completed, counts.total) == (2, 8)
            assert looks[True] == 2, "where nothing is behind them, not in each round"
            assert looks[False] > 3
            desk.waiting = {}
            await house.rounds()
            assert (await client.batches.retrieve(batch.id)).status == "completed"

    run(go())


def test_more_batches_than_are_looked_at_have_turns(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "BATCHES_LOOKED_AT_MAX", 2)
    monkeypatch.setattr(batch_runner, "ERRANDS_MAX", 1)
    desk = BatchDesk(answer("x"))
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            made = [await begin(client, [chat_line("a")]) for _ in range(5)]
            for _ in range(5):  # one is read at a time
                desk.waiting = {(MODEL, Tier.HIGH): 1}
                await house.round()
            desk.waiting = {}
            await house.round()
            assert len(desk.billed) == 2
            await house.rounds()
            assert len(desk.billed) == 5
            for batch in made:
                assert (await client.batches.retrieve(batch.id)).status == "completed"

    run(go())


@pytest.mark.parametrize("ends", ["cancel", "expire", "revoke", "lapse"])
def test_a_batch_that_ends_early_keeps_what_is_done(
    run: Run, tmp_path: pathlib.Path, ends: str
) -> None:
    desk = BatchDesk(answer("x"))
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line(f"c{n}") for n in range(5)])
            desk.slots = 2
            await house.round()
            await house.round()
            desk.script = [Hold()]
            await house.runner.round()
            await desk.has(4)
            if ends == "cancel":
                cancelled = await client.batches.cancel(batch.id)
                assert cancelled.status == "cancelling"
                assert (await client.batches.cancel(batch.id)).status == "cancelling"
            elif ends == "expire":
                house.clock.ns += WINDOW_NS
            elif ends == "revoke":
                desk.key = None
            else:
                over = Scopes(expires_unix_ns=house.clock.unix_ns())
                desk.key = msgspec_replace(KEY, scopes=over)
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            assert done.status == ("expired" if ends == "expire" else "cancelled")
            assert len(await lines_of(client, done.output_file_id)) == 2
            rest = await lines_of(client, done.error_file_id)
            code = "batch_expired" if ends == "expire" else "batch_cancelled"
            assert {line["error"]["code"] for line in rest.values()} == {code}
            assert sorted(rest) == ["c2", "c3", "c4"]
            told = [] if done.errors is None else [e.code for e in done.errors.data or []]
            assert told == ([] if ends in ("cancel", "expire") else ["invalid_api_key"])

    run(go())
    assert len(desk.billed) == 2
    assert [each.outcome.ending for each in desk.deliveries].count("failed") == 2


def msgspec_replace(key: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(key, **changes)


def test_a_batch_that_is_cancelled_before_it_is_read(run: Run, tmp_path: pathlib.Path) -> None:
    house = House(tmp_path, BatchDesk())

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            ((stored, _, _),) = await house.batches.unfinished()
            await client.batches.cancel(batch.id)
            await house.runner._validate(stored)  # crosses with it
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            assert (done.status, done.output_file_id, done.error_file_id) == (
                "cancelled",
                None,
                None,
            )

    run(go())


@pytest.mark.parametrize(
    ("error", "waits_ns", "tries"),
    [
        (QuotaExceeded("used up", retry_after_s=7), 7 * NS_PER_S, 99),
        (QuotaExceeded("used up", retry_after_s=999), RETRY_NS, 99),
        (QuotaExceeded("used up", retry_after_s=90_000), 0, 1),
        (QuotaExceeded("larger than the limit"), 0, 1),
        (CapacityExceeded("full"), NS_PER_S, 99),
        (WorkerFailed("broke off"), NS_PER_S, WORKER_TRIES_MAX),
        (InvalidRequest("the worker's own refusal"), 0, 1),
        (TokenworksError("a mistake"), NS_PER_S, WORKER_TRIES_MAX),
    ],
)
def test_what_refuses_a_line_is_told_or_waited_for(
    run: Run, tmp_path: pathlib.Path, error: TokenworksError, waits_ns: int, tries: int
) -> None:
    desk = BatchDesk(answer("x"))
    desk.open_error = error
    opened: list[int] = []
    house = House(tmp_path, desk)
    refuse = desk.open

    async def open_noting(order: Any) -> Any:
        opened.append(house.clock.ns)
        return await refuse(order)

    desk.open = open_noting  # type: ignore[method-assign]

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            await house.round()
            await house.round()
            if waits_ns:
                house.clock.ns += waits_ns - 1
                await house.round()
                assert len(opened) == 1
                house.clock.ns += 1
                await house.round()
                assert len(opened) == 2
            for _ in range(8 if waits_ns else 0):
                house.clock.ns += RETRY_NS
                await house.round()
            if tries > 8:
                desk.open_error = None
                house.clock.ns += RETRY_NS
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            if tries > 8:
                assert done.output_file_id is not None
            else:
                assert len(opened) == tries
                told = (await lines_of(client, done.error_file_id))["a"]["response"]
                assert told["status_code"] == error.status
                assert told["body"]["error"]["code"] == error.code

    run(go())


def test_a_line_for_a_model_that_is_not_served_and_one_that_streams(
    run: Run, tmp_path: pathlib.Path
) -> None:
    house = House(tmp_path, BatchDesk(answer("x")))

    async def go() -> None:
        async with house.sdk() as client:
            lines = [chat_line("a", model="nobody"), chat_line("b", stream=True)]
            batch = await begin(client, lines)
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            told = await lines_of(client, done.error_file_id)
            codes = {k: v["response"]["body"]["error"]["code"] for k, v in told.items()}
            assert codes == {"a": "model_not_found", "b": "invalid_request"}

    run(go())


def test_a_key_that_may_not_ask_for_free(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = msgspec_replace(KEY, scopes=Scopes(tiers=frozenset({Tier.HIGH})))
    desk = BatchDesk()
    monkeypatch.setattr(desk, "key_of", lambda secret_sha256: limited)
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            with pytest.raises(openai.PermissionDeniedError, match="tier free"):
                await begin(client, [chat_line("a")])
            desk.key = msgspec_replace(KEY, scopes=Scopes(models=frozenset({ModelName("x")})))
            monkeypatch.undo()
            batch = await begin(client, [chat_line("a")])
            await house.rounds()  # the key was narrowed since
            done = await client.batches.retrieve(batch.id)
            told = (await lines_of(client, done.error_file_id))["a"]["response"]
            assert told["status_code"] == 403

    run(go())


def test_an_answer_that_is_too_long_is_not_kept(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_line, "OUTPUT_BYTES_MAX", 100)
    monkeypatch.setattr("tokenworks.gateway.batch_runner.WORKER_TRIES_MAX", 1)
    desk = BatchDesk(answer("x" * 100))
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            told = (await lines_of(client, done.error_file_id))["a"]["response"]
            assert told["status_code"] == 502
            monkeypatch.setattr(batch_line, "EVENTS_BYTES_MAX", 50)
            again = await begin(client, [chat_line("a")])
            await house.rounds()
            assert (await client.batches.retrieve(again.id)).error_file_id is not None
        assert not desk.billed

    run(go())


@pytest.mark.parametrize("error", [LedgerUnavailable("no"), InDoubt("who knows")])
def test_a_line_that_could_not_be_billed(
    run: Run, tmp_path: pathlib.Path, error: LedgerUnavailable
) -> None:
    desk = BatchDesk(answer("x"))
    desk.settle_error = error
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            await house.round()
            await house.round()
            desk.settle_error = None
            house.clock.ns += RETRY_NS
            if isinstance(error, InDoubt):
                await house.round()
                assert len(desk.orders) == 1  # it waits for the next start
                desk.billed[desk.orders[0].request] = 1  # which finds it
                await house.runner.recover()
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            told = (await lines_of(client, done.output_file_id))["a"]["response"]
            assert desk.billed == {told["request_id"]: 1}

    run(go())


def test_one_process_leads_and_another_takes_over_when_it_ends(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "POLL_S", 0.001)
    monkeypatch.setattr(batch_runner, "IDLE_POLL_S", 0.001)
    desk = BatchDesk(answer("x"))
    first, second = House(tmp_path, desk), House(tmp_path, desk)

    async def go() -> None:
        assert await first.batches.lead()
        assert await first.batches.lead()
        assert not await second.batches.lead()
        runs = asyncio.ensure_future(second.runner.run())
        async with second.sdk() as client:  # whoever leads, all take and show batches
            batch = await begin(client, [chat_line("a")])
            first.batches.close()
            done = await client.batches.retrieve(batch.id)
            while done.status != "completed":
                done = await client.batches.retrieve(batch.id)
            desk.script = [Hold()]
            await begin(client, [chat_line("a")])
            await desk.has(2)
            runs.cancel()
            with pytest.raises(asyncio.CancelledError):
                await runs
        assert desk.deliveries[-1].outcome.ending == "failed"
        ((_, waiting, staged),) = await second.batches.unfinished()
        assert (waiting, staged) == (1, 0)
        second.batches.close()

    run(go())


def test_trouble_with_the_room_passes(
    run: Run,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(batch_runner, "POLL_S", 0.001)
    monkeypatch.setattr(batch_runner, "IDLE_POLL_S", 0.001)
    desk = BatchDesk(answer("x"))
    house = House(tmp_path, desk)
    failures: list[str] = []

    def failing(name: str, *errors: Exception) -> None:
        """The first calls fail, each with its error, and then it works."""
        work, left = getattr(house.batches, name), list(errors)

        async def call(*arguments: Any) -> Any:
            if left:
                failures.append(name)
                raise left.pop(0)
            return await work(*arguments)

        monkeypatch.setattr(house.batches, name, call)

    gone = LedgerUnavailable("no disk")
    failing("lead", gone)
    failing("staged", gone)
    failing("unfinished", gone, RuntimeError("a mistake of ours"))
    failing("begin", gone)
    failing("stage", gone)
    failing("unstage", gone)
    failing("finish", gone, gone)
    failing("finalize", gone)
    failing("end", gone)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            runs = asyncio.ensure_future(house.runner.run())
            done = await client.batches.retrieve(batch.id)
            while done.status != "completed":
                house.clock.ns += NS_PER_S
                done = await client.batches.retrieve(batch.id)
            runs.cancel()
            with pytest.raises(asyncio.CancelledError):
                await runs
            told = await lines_of(client, done.output_file_id)
            assert desk.billed == {told["a"]["response"]["request_id"]: 1}

    run(go())
    assert len(failures) == 11
    assert "batches stand still: no disk" in caplog.text
    assert "a mistake of ours" in caplog.text


def test_a_batch_that_a_full_disk_does_not_take_is_not_written_at_once_again(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, BatchDesk(answer("x")))
    tries = 0

    def full(self: StoredFiles, pieces: Iterator[bytes]) -> tuple[pathlib.Path, int]:
        nonlocal tries
        tries += 1
        raise LedgerUnavailable("no space left")

    async def go() -> None:
        async with house.sdk() as client:
            await house.batches.lead()
            batch = await begin(client, [chat_line("a")])
            with monkeypatch.context() as on_full_disk:
                on_full_disk.setattr(StoredFiles, "write_out", full)
                for _ in range(8):
                    await house.round()
                assert tries == 1
                house.clock.ns += ERRAND_AGAIN_NS
                await house.round()
                assert tries == 2
            house.clock.ns += ERRAND_AGAIN_NS
            await house.rounds()
            assert (await client.batches.retrieve(batch.id)).status == "completed"

    run(go())


def test_batches_leave_the_ledger_its_part_of_the_disk(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = BatchDesk(answer("x"))
    house = House(tmp_path, desk)
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            await house.batches.lead()
            await house.round()
            with monkeypatch.context() as on_full_disk:
                on_full_disk.setattr(file_room, "FREE_BYTES_MIN", 2 * free)
                with pytest.raises(LedgerUnavailable, match="but for what the ledger needs"):
                    await house.round()
                assert not desk.orders  # what could not be kept is not made
            (line,) = await house.batches.waiting(BatchID(batch.id), 9)
            with monkeypatch.context() as on_full_disk:
                on_full_disk.setattr(file_room, "FREE_BYTES_MIN", 2 * free)
                with pytest.raises(LedgerUnavailable, match="but for what the ledger needs"):
                    await house.batches.stage(line, RequestID("r"), b"{}")
            await house.rounds()
            assert list(desk.billed.values()) == [1]

    run(go())


def test_what_batches_have_left_in_the_database_goes_back_to_the_disk(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_room, "SPARE_BYTES", 1 << 18)
    monkeypatch.setattr(batch_room, "PIECE_BYTES", 1 << 18)
    long = "x" * 200_000
    house = House(tmp_path, BatchDesk(answer(long)))

    def pages() -> tuple[int, int]:
        (((count,),), ((free,),)) = map(
            house.files.database.query, ("PRAGMA page_count", "PRAGMA freelist_count")
        )
        return count, free

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line(f"c{n}") for n in range(10)])
            await house.rounds()
            (count, free), size = pages(), 4_096
            assert free * size > 1_000_000  # the answers are in files now
            house.clock.ns += SWEEP_NS
            await house.round()
            assert pages() == (count - free + (1 << 18) // size, (1 << 18) // size)
            done = await client.batches.retrieve(batch.id)
            told = await lines_of(client, done.output_file_id)
            assert len(told) == 10
            house.clock.ns += SWEEP_NS
            before = pages()
            await house.round()
            assert pages() == before

    run(go())


def test_an_input_that_is_gone_from_the_disk(run: Run, tmp_path: pathlib.Path) -> None:
    house = House(tmp_path, BatchDesk())

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            house.files.path_of(batch.input_file_id).unlink()
            await house.rounds()
            failed = await client.batches.retrieve(batch.id)
            assert failed.errors is not None
            assert [e.code for e in failed.errors.data or []] == ["file_not_found"]

    run(go())


def test_a_mistake_of_ours_ends_one_line(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = BatchDesk(answer("x"))
    desk.open_error = RuntimeError("a bug")  # type: ignore[assignment]
    house = House(tmp_path, desk)

    async def go() -> None:
        async with house.sdk() as client:
            batch = await begin(client, [chat_line("a")])
            await house.round()
            for _ in range(WORKER_TRIES_MAX):
                await house.round()
                house.clock.ns += RETRY_NS
            await house.rounds()
            done = await client.batches.retrieve(batch.id)
            told = (await lines_of(client, done.error_file_id))["a"]["response"]
            assert (told["status_code"], told["body"]["error"]["type"]) == (500, "server_error")

    run(go())


class Crash(BaseException):
    """Everything that runs ends here."""


class Dying(StoredBatches):
    """A room whose process dies before or after the n-th change of a line or batch."""

    calls = 0
    dies_at = 10**9

    async def run_or_die(self, work: Coroutine[Any, Any, Any]) -> Any:
        cls = type(self)
        cls.calls += 1
        if cls.calls == cls.dies_at:
            work.close()
            raise Crash
        found = await work
        cls.calls += 1
        if cls.calls == cls.dies_at:
            raise Crash
        return found

    async def begin(self, batch: Batch, lines: Any) -> None:
        await self.run_or_die(super().begin(batch, lines))

    async def stage(self, line: Line, request: RequestID, output: bytes) -> bool:
        return bool(await self.run_or_die(super().stage(line, request, output)))

    async def finish(self, line: Line) -> None:
        await self.run_or_die(super().finish(line))

    async def finalize(self, batch: Batch) -> None:
        await self.run_or_die(super().finalize(batch))

    async def end(self, batch: Batch) -> Batch:
        made: Batch = await self.run_or_die(super().end(batch))
        return made


@pytest.mark.parametrize("dies_at", range(1, 19))
def test_wherever_it_dies_each_line_is_billed_once(
    run: Run, tmp_path: pathlib.Path, dies_at: int
) -> None:
    """A process of its own would be killed; here nothing of the first one runs any more."""
    desk = BatchDesk(answer("x"))
    desk.slots = 1
    Dying.calls, Dying.dies_at = 0, dies_at

    async def dies() -> str:
        house = House(tmp_path, desk, Dying)
        async with house.sdk() as client:
            batch = await begin(client, [chat_line(f"c{n}") for n in range(3)])
        assert await house.batches.lead()
        died = False
        while not died:
            try:
                await house.runner.round()
            except Crash:
                died = True
            tasks = [*house.runner._runs, *house.runner._errands.values()]
            for done in (await asyncio.wait(tasks))[0] if tasks else ():
                died = died or done.exception() is not None
            await asyncio.sleep(0)
        house.batches.close()
        return str(batch.id)

    async def lives(batch: str) -> None:
        house = House(tmp_path, desk)
        assert await house.batches.lead()
        await house.runner.recover()
        await house.rounds()
        async with house.sdk() as client:
            done = await client.batches.retrieve(batch)
            assert done.status == "completed"
            assert done.request_counts is not None
            assert (done.request_counts.completed, done.request_counts.total) == (3, 3)
            told = await lines_of(client, done.output_file_id)
            assert sorted(told) == ["c0", "c1", "c2"]
            requests = {line["response"]["request_id"]: 1 for line in told.values()}
            assert desk.billed == requests
            assert len((await client.files.list()).data) == 2
        house.batches.close()

    run(lives(run(dies())))

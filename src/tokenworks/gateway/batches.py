"""OpenAI's ``/v1/batches``: many requests in one file, answered in spare capacity."""

from __future__ import annotations

import reprlib
import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.core.batches import WINDOW_NS, Batch, BatchRoom, BatchStatus
from tokenworks.core.errors import NotFound
from tokenworks.core.ids import BatchID, FileID
from tokenworks.core.ports import Clock
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.batch_line import ENDPOINTS
from tokenworks.gateway.chat_fields import JSONObject, wrong
from tokenworks.gateway.files import kept_ns, limit_of, page_of, query_of
from tokenworks.gateway.json_body import decode_object
from tokenworks.gateway.routes import Request, Response, Route

BATCHES_PATH: Final = "/v1/batches"
WINDOW: Final = "24h"
PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 20
METADATA_MAX: Final = 16
NAME_CHARS_MAX: Final = 64
VALUE_CHARS_MAX: Final = 512
"""OpenAI's bounds of metadata."""

_EXAMPLE: Final = '{"input_file_id": ..., "endpoint": ..., "completion_window": "24h"}'


class Batches:
    """Serves batches; ``batch_runner`` runs them.

    Args:
        room: keeps them; None where nothing is kept.
        clock: time.
    """

    def __init__(self, room: BatchRoom | None, clock: Clock) -> None:
        self._room, self._clock = room, clock

    def routes(self) -> tuple[Route, ...]:
        """What can be done with batches."""
        return (
            Route(path=BATCHES_PATH, handlers={"GET": self._list, "POST": self._create}),
            Route(path=f"{BATCHES_PATH}/*", handlers={"GET": self._get}),
            Route(path=f"{BATCHES_PATH}/*/cancel", handlers={"POST": self._cancel}),
        )

    @property
    def _there(self) -> BatchRoom:
        if self._room is None:
            raise NotFound(
                "This factory runs no batches.",
                hint="Operators: with share_port they need [ledger] path.",
            )
        return self._room

    async def _create(self, request: Request) -> Response:
        key, fields = request.key, decode_object(request.body, _EXAMPLE)
        assert key is not None
        endpoint, file = fields.get("endpoint"), fields.get("input_file_id")
        if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
            raise wrong("endpoint", endpoint, f"one of {', '.join(ENDPOINTS)}")
        if not isinstance(file, str):
            raise wrong("input_file_id", file, "the id of a file whose purpose is batch")
        if fields.get("completion_window") != WINDOW:
            raise wrong("completion_window", fields.get("completion_window"), repr(WINDOW))
        if key.scopes is not None:
            key.scopes.check_tier(Tier.FREE)
        unix_ns = self._clock.unix_ns()
        batch = Batch(
            id=BatchID(f"batch_{secrets.token_hex(12)}"),
            tenant=key.tenant,
            key=key.key,
            endpoint=endpoint,
            input_file=FileID(file),
            metadata=_metadata(fields.get("metadata")),
            status=BatchStatus.VALIDATING,
            at={BatchStatus.VALIDATING: unix_ns},
            expires_unix_ns=unix_ns + WINDOW_NS,
            output_kept_ns=kept_ns(fields.get("output_expires_after")),
        )
        await self._there.create(batch)
        return Response(body=msgspec.json.encode(told(batch)))

    async def _list(self, request: Request) -> Response:
        assert request.key is not None
        query = query_of(request)
        limit = limit_of(query, PAGE_DEFAULT, PAGE_MAX)
        after = query.get("after")
        found = await self._there.page(request.key.tenant, after=after, limit=limit + 1)
        return page_of([told(batch) for batch in found], limit)

    async def _get(self, request: Request) -> Response:
        batch_id = request.path.removeprefix(BATCHES_PATH + "/")
        assert request.key is not None
        found = await self._there.get(request.key.tenant, BatchID(batch_id))
        return _answer(found, batch_id)

    async def _cancel(self, request: Request) -> Response:
        batch_id = request.path.removeprefix(BATCHES_PATH + "/").partition("/")[0]
        assert request.key is not None
        unix_ns = self._clock.unix_ns()
        found = await self._there.cancel(request.key.tenant, BatchID(batch_id), unix_ns)
        return _answer(found, batch_id)


def told(batch: Batch) -> JSONObject:
    """A batch as callers see it."""
    times: JSONObject = {
        f"{status}_at": batch.at[status] // NS_PER_S if status in batch.at else None
        for status in BatchStatus
        if status is not BatchStatus.VALIDATING
    }
    errors = [
        {"code": e.code, "line": e.line, "message": e.message, "param": e.param}
        for e in batch.errors
    ]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file,
        "completion_window": WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created_unix_ns // NS_PER_S,
        "expires_at": batch.expires_unix_ns // NS_PER_S,
        **times,
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "metadata": batch.metadata or None,
    }


def _answer(batch: Batch | None, batch_id: str) -> Response:
    if batch is None:
        raise NotFound(
            f"There is no batch {reprlib.repr(batch_id)}.",
            hint="It was long ago, or is another tenant's.",
        )
    return Response(body=msgspec.json.encode(told(batch)))


def _metadata(given: object) -> dict[str, str]:
    if given is None:
        return {}
    want = (
        f"up to {METADATA_MAX} pairs of texts, names of up to {NAME_CHARS_MAX} characters and "
        f"values of up to {VALUE_CHARS_MAX}"
    )
    if not isinstance(given, Mapping) or len(given) > METADATA_MAX:
        raise wrong("metadata", given, want)
    for name, value in given.items():
        fits = isinstance(value, str) and len(value) <= VALUE_CHARS_MAX
        if not (fits and 0 < len(name) <= NAME_CHARS_MAX):
            raise wrong("metadata", given, want)
    return dict(given)

"""What the rooms ask of each other, as protocols; each docstring is a contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.ids import KeyID, ModelName, TenantID
from tokenworks.core.needs import Needs
from tokenworks.core.orders import JSON_TYPE, KeyView, Order, Outcome, Passing, Receipt
from tokenworks.core.slo import Tier

ABORTED: Final = "the request was aborted: the factory is stopping, or the answer took too long"
"""Why a stream broke off that we have aborted, for a caller who is still there to hear it."""


class Clock(Protocol):
    """Time. Only edges hold one."""

    def now_ns(self) -> int:
        """Nanoseconds on a clock that never goes back."""
        ...

    def unix_ns(self) -> int:
        """Nanoseconds since 1970, UTC, for records."""
        ...


class Sink(Protocol):
    """Takes an answer as it comes; called on the event loop, and does not raise."""

    def data(self, data: bytes) -> None:
        """Some bytes, never none."""
        ...

    def ended(self, failure: WorkerFailed | None) -> None:
        """The end, once: by itself, or because the worker broke off or ``abort`` was called."""
        ...


class AnswerStream(Protocol):
    """One answer of a worker while it arrives: for one task that reads it, or for one sink.

    Attributes:
        status: as in HTTP: 200, or the worker's refusal.
        content_type: what it says its answer is; empty where it says nothing.
    """

    status: int
    content_type: bytes

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """All that it said, names in lower case, if the request was passed on as it came."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the worker has ended it, or was stopped: there is nothing left to abort."""
        ...

    async def read(self) -> bytes:
        """What has come since the last read; ``b""`` at the end.

        Raises:
            WorkerFailed: the worker broke off, or ``abort`` was called; every byte that came
                before was handed out first.
        """
        ...

    async def read_all(self) -> bytes:
        """The rest of a small body, such as an error's."""
        ...

    def pipe(self, sink: Sink) -> None:
        """Hand over what has come, now, and what comes, when it does; nobody may read any more."""
        ...

    def pause(self) -> None:
        """Let the worker wait: the sink takes no more for now, though a little may still come."""
        ...

    def resume(self) -> None:
        """Go on after ``pause``; harmless without."""
        ...

    def abort(self) -> None:
        """Let the worker stop; harmless after the end."""
        ...


class WorkerPort(Protocol):
    """The way to one worker that is up, real or modelled; safe for many tasks of one loop."""

    async def post_stream(
        self, path: str, body: bytes, lines: bytes = b"", content_type: str = JSON_TYPE
    ) -> AnswerStream:
        """Send a request; returns once its answer begins. Cancelling stops the worker's work on it.

        Args:
            path: where to.
            body: what is sent.
            lines: further header lines, each with its line end.
            content_type: what ``body`` is.

        Raises:
            WorkerFailed: it broke off before it answered.
            WorkerUnavailable: it takes no more, or is closed.
        """
        ...

    async def pass_on(self, passing: Passing, body: bytes) -> AnswerStream:
        """Send a request as it came to us; as ``post_stream`` otherwise."""
        ...

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a small resource.

        Raises:
            WorkerFailed, WorkerUnavailable: as above.
        """
        ...

    def close(self, why: str) -> None:
        """End everything; what is being read raises WorkerFailed with the first reason given."""
        ...


@runtime_checkable
class KeepingStream(AnswerStream, Protocol):
    """An answer that can be stopped without a token being lost."""

    def stop(self) -> bytes | None:
        """Let the worker stop, and keep what it has made; what was made can still be read.

        After that ``read`` gives ``b""``, without the end of the answer's event stream.

        Returns:
            What ``KeepingPort.go_on_stream`` of any worker of the model goes on from; None if
            there is nothing to stop, as the answer has ended or was broken off.
        """
        ...


@runtime_checkable
class KeepingPort(WorkerPort, Protocol):
    """The way to a worker whose streams are ``KeepingStream``."""

    async def go_on_stream(self, path: str, body: bytes, kept: bytes) -> AnswerStream:
        """Go on with an answer that was stopped; returns once it goes on.

        The stream has what comes after the last token that was made, as if nothing had happened:
        the same id, no role again, and usage that counts the whole answer, its prompt once.

        Raises:
            WorkerFailed, WorkerUnavailable: as ``post_stream``.
        """
        ...


@runtime_checkable
class TieredPort(WorkerPort, Protocol):
    """The way to a worker with a place for KV blocks below its cache."""

    async def offload(self, prefix: tuple[int, ...], first: int) -> None:
        """Move the blocks of a prompt from one on down; returns when they are on their way.

        Args:
            prefix: hashes of the prompt's blocks, as ``Order.prefix``, up to the last that moves.
            first: the first that moves; those before it stay.
        """
        ...

    async def fetch(self, prefix: tuple[int, ...], first: int) -> None:
        """Bring what is there of them back up; returns when it is in the cache, or none is there.

        Args:
            prefix: as above.
            first: as above.
        """
        ...


class Delivery(Protocol):
    """One answer while it is being made. Exactly one ``settle`` ends it."""

    @property
    def stream(self) -> AnswerStream:
        """The worker's answer: its status and headers; what comes is handed over by ``pipe``."""
        ...

    def pipe(self, sink: Sink) -> None:
        """Hand over the worker's event stream as it comes, once; see ``AnswerStream``."""
        ...

    def pause(self) -> None:
        """See ``AnswerStream``."""
        ...

    def resume(self) -> None:
        """See ``AnswerStream``."""
        ...

    def abort(self) -> None:
        """Stop the worker now. What was made until now will still be settled."""
        ...

    async def settle(self, outcome: Outcome) -> Receipt:
        """Bill the answer; returns when the entry is durable.

        Raises:
            LedgerUnavailable: the entry could not be written; nothing was billed.
        """
        ...


class Shelved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a tenant keeps here.

    Attributes:
        id: unique within its kind.
        unix_ns: when it was first put there.
        data: what it is.
    """

    id: str
    unix_ns: int
    data: bytes


class Shelf(Protocol):
    """Keeps what tenants leave for later: responses, files, batches. No tenant sees another's.

    Every method raises ``LedgerUnavailable`` where it cannot be reached.
    """

    async def put(self, tenant: TenantID, kind: str, item: Shelved) -> None:
        """Keep an item, in place of one of the same id; returns once it is durable.

        Raises:
            QuotaExceeded: the tenant keeps as much as it may.
        """
        ...

    async def get(self, tenant: TenantID, kind: str, item_id: str) -> Shelved | None:
        """An item, or None."""
        ...

    async def delete(self, tenant: TenantID, kind: str, item_id: str) -> bool:
        """Forget an item; whether there was one."""
        ...

    async def page(
        self, tenant: TenantID, kind: str, *, after: str | None, limit: int, newest_first: bool
    ) -> list[Shelved]:
        """Items in the order in which they came, those after one; none if it is not there."""
        ...


class Desk(Protocol):
    """The gateway's only way into the factory."""

    def key_of(self, secret_sha256: str) -> KeyView | None:
        """The key whose secret has this hash, in hex; None if none has, or the key is revoked.

        Its scopes say whether its time is over.
        """
        ...

    def key_named(self, key: KeyID) -> KeyView | None:
        """A key by its public id, for work that goes on after its request; None if revoked."""
        ...

    def models(self) -> tuple[ModelName, ...]:
        """The models that some pool serves and that have a price."""
        ...

    def whole_models(self) -> frozenset[ModelName]:
        """Models whose workers are asked for an answer in one piece if the caller wants no stream.

        They are the same as long as the factory runs.
        """
        ...

    def output_tokens_default(self, model: ModelName, tier: Tier) -> int:
        """The output limit of a request that names none, at this tier."""
        ...

    async def count_tokens(self, model: ModelName, body: bytes, needs: Needs | None) -> int:
        """How many tokens a chat completion request's prompt has, by the engine that would read it.

        Raises:
            ModelNotFound, NotOffered, WorkerFailed, WorkerUnavailable: as of ``open``.
        """
        ...

    def healthy(self) -> tuple[bool, str]:
        """Whether requests can be served, and a word why not."""
        ...

    async def open(self, order: Order) -> Delivery:
        """Reserve, dispatch and start a request; returns when a worker has begun to answer.

        Cancelling this call withdraws the request: it leaves its queue, its worker is stopped and
        its reservation is void.

        Raises:
            ModelNotFound, QuotaExceeded, CapacityExceeded, WorkerFailed, WorkerUnavailable,
            InvalidRequest: the worker's own refusal, in its words.
        """
        ...

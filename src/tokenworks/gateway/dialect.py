"""What sets one interface for answers apart: how a request is read, how it is answered.

Whatever a caller speaks, a worker is asked for a chat completion and streams it. A dialect turns
its own request into that one, and the worker's events into its own. Where a dialect is the worker's
own, an answer may be asked for in one piece, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from tokenworks.core.errors import TokenworksError
from tokenworks.core.ids import ModelName, RequestID
from tokenworks.core.orders import CHAT_PATH, JSON_TYPE, KeyView, Usage
from tokenworks.core.ports import Shelved
from tokenworks.core.slo import Tier
from tokenworks.gateway.assemble import Completion
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.http_io import Headers
from tokenworks.gateway.own_words import OwnHeaders

OutputDefault = Callable[[ModelName, Tier], int]
"""The output limit at a tier for a request that names none; may raise ModelNotFound."""

NO_MODELS: Final[frozenset[ModelName]] = frozenset()


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an answer after checking; a dialect adds what it must know to write it.

    Attributes:
        model: the model asked for.
        tier: the tier asked for.
        stream: whether the caller wants an event stream.
        output_tokens_max: the worker may make no more.
        input_tokens_max: an upper bound on the prompt's tokens: a byte-level token is at least a
            byte, so the bytes of messages, tools and other parts of the prompt bound them, plus the
            turn markers. It holds for text: what a picture costs is the worker's to say.
        prefix: hashes of the prompt's blocks, each chained on the one before and salted by
            ``cache_salt``.
        cache_salt: what tells this tenant's cached prompts from all others; see ``cache_salt_of``.
        body: JSON for the worker, streaming with usage, or in one piece.
        extra_fields: the kinds of parts in messages that are not text, then the names of fields in
            the body that are neither OpenAI's nor samplers known to be safe, both sorted.
        worker_path: where the worker takes it.
        content_type: what ``body`` is.
        in_one_piece: the worker is asked for all of the answer at once, in the caller's own words.
    """

    model: ModelName
    tier: Tier
    stream: bool
    output_tokens_max: int
    input_tokens_max: int
    prefix: tuple[int, ...]
    cache_salt: str
    body: bytes
    extra_fields: tuple[str, ...] = ()
    worker_path: str = CHAT_PATH
    content_type: str = JSON_TYPE
    in_one_piece: bool = False


class ErrorForm(Protocol):
    """The shape of errors."""

    def error_body(self, error: TokenworksError) -> bytes:
        """The body of an answer that says what went wrong."""
        ...

    def error_headers(self, error: TokenworksError) -> Headers:
        """When to come again, and how to be let in."""
        ...


class Writer(Protocol):
    """Writes one answer. What it is given are whole events of a chat completion, as bytes."""

    def forward(self, ready: bytes) -> bytes:
        """What the caller of a stream gets for events that have come; never ``[DONE]``.

        Raises:
            WorkerFailed: an event says what this dialect cannot.
        """
        ...

    @property
    def kept(self) -> tuple[str, Shelved] | None:
        """What is to be kept of the answer once it has ended, and its kind; mostly nothing."""
        ...

    def take_held(self, events: EventStream) -> None:
        """Take the events held back at the end of a stream, before it is settled.

        Raises:
            WorkerFailed: they say what this dialect cannot; nothing is billed.
        """
        ...

    def closing(self, events: EventStream, tier: Tier) -> bytes:
        """The end of a stream, once it is settled: what was held back, the delivered tier.

        What could go wrong has gone wrong in ``take_held``.
        """
        ...

    def take_whole(self, completion: Completion) -> None:
        """Take the answer for a caller who asked for no stream, before it is settled.

        Args:
            completion: a ``chat.completion`` without ``service_tier``; it is the writer's to keep.

        Raises:
            WorkerFailed: it says what this dialect cannot; nothing is billed.
        """
        ...

    def whole(self, usage: Usage, tier: Tier) -> bytes:
        """The body with what was taken, once the answer is settled.

        What could go wrong has gone wrong in ``take_whole``.

        Args:
            usage: what is billed, whether the worker has told it or not.
            tier: the delivered tier.
        """
        ...

    def error_event(self, error: TokenworksError) -> bytes:
        """The end of a stream that had begun and went wrong."""
        ...


A = TypeVar("A", bound=Asked)


class Dialect(ErrorForm, Protocol[A]):
    """One interface for answers."""

    @property
    def path(self) -> str:
        """The route, which takes POST."""
        ...

    @property
    def fetch(self) -> Fetch | None:
        """Gives the dialect for one request that may go on from what was kept; mostly None.

        It is called with the body and the key before ``read``, and raises what that does, and
        NotFound.
        """
        ...

    def read(
        self,
        raw: bytes,
        key: KeyView,
        own: OwnHeaders,
        output_default: OutputDefault,
        whole: frozenset[ModelName] = NO_MODELS,
    ) -> A:
        """Check a request and turn it into what a worker gets.

        Args:
            raw: the body as it came.
            key: who asks.
            own: what the request's own headers say.
            output_default: gives the output limit of a request that names none.
            whole: models of which an answer may be asked for in one piece.

        Raises:
            InvalidRequest: with the field at fault and what it should be.
            ModelNotFound: the model is not served.
        """
        ...

    def writer(self, asked: A, request: RequestID) -> Writer:
        """The writer of one answer; ids of its own may be made of the request's."""
        ...


Fetch = Callable[[bytes, KeyView], Awaitable[Dialect[Any]]]
"""From a request's body and its key: the dialect for that request."""

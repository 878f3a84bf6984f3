"""A desk that makes spans of what passes it: one for the request, one for its inference.

Names and attributes are those of OpenTelemetry's conventions for HTTP and for generative AI, and
``tokenworks.*`` for what these do not know. No key, no tenant; content only where that is asked
for. Without export there is no such desk, and nothing here runs.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import msgspec

from tokenworks.core.errors import TokenworksError, WorkerFailed
from tokenworks.core.ids import KeyID, ModelName
from tokenworks.core.needs import Needs
from tokenworks.core.orders import CHAT_PATH, KeyView, Order, Outcome, Receipt
from tokenworks.core.ports import AnswerStream, Clock, Delivery, Desk, Sink
from tokenworks.core.slo import Tier
from tokenworks.core.trace_place import Trace
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.metrics import PROVIDER
from tokenworks.gateway.span_content import (
    AnswerContent,
    Value,
    asked_attributes,
    input_attributes,
)
from tokenworks.gateway.tallies import OPERATIONS, OTHER

Attributes = dict[str, Value]


class OpenSpan(Protocol):
    """A span that has not ended."""

    @property
    def trace(self) -> Trace:
        """Its place, for whoever is asked in its name."""
        ...

    def end(self, unix_ns: int, attributes: Attributes, error: str) -> None:
        """End it.

        Args:
            unix_ns: when.
            attributes: more of them.
            error: a word for what went wrong; empty if nothing did.
        """
        ...


class Spans(Protocol):
    """Makes spans."""

    def begin(
        self, name: str, kind: str, trace: Trace | None, unix_ns: int, attributes: Attributes
    ) -> OpenSpan:
        """Begin one.

        Args:
            name: its name.
            kind: ``server`` or ``client``.
            trace: the span that it belongs to; None begins a trace.
            unix_ns: since when.
            attributes: of it.
        """
        ...


class Exporter(Spans, Protocol):
    """Makes spans, and has a thread that takes them away."""

    def start(self) -> None:
        """Begin to export."""
        ...

    def stop(self) -> None:
        """Export what is left, for a bounded time."""
        ...


class TracedDesk:
    """Implements ``core.ports.Desk`` by another desk.

    Args:
        desk: the other one.
        clock: the factory's.
        spans: makes spans.
        content: whether prompts and answers are attributes, too.
    """

    def __init__(self, desk: Desk, clock: Clock, spans: Spans, *, content: bool) -> None:
        self._desk, self._clock, self._spans, self._content = desk, clock, spans, content

    def key_of(self, secret_sha256: str) -> KeyView | None:
        """See ``Desk``."""
        return self._desk.key_of(secret_sha256)

    def key_named(self, key: KeyID) -> KeyView | None:
        """See ``Desk``."""
        return self._desk.key_named(key)

    def models(self) -> tuple[ModelName, ...]:
        """See ``Desk``."""
        return self._desk.models()

    def whole_models(self) -> frozenset[ModelName]:
        """See ``Desk``."""
        return self._desk.whole_models()

    def output_tokens_default(self, model: ModelName, tier: Tier) -> int:
        """See ``Desk``."""
        return self._desk.output_tokens_default(model, tier)

    async def count_tokens(self, model: ModelName, body: bytes, needs: Needs | None) -> int:
        """See ``Desk``; it makes no tokens, so there is no span."""
        return await self._desk.count_tokens(model, body, needs)

    def healthy(self) -> tuple[bool, str]:
        """See ``Desk``."""
        return self._desk.healthy()

    async def open(self, order: Order) -> TracedDelivery:
        """See ``Desk``; what is refused here ends its spans."""
        pair = self._begin(order)
        traced = msgspec.structs.replace(order, trace=pair.inference.trace)
        try:
            delivery = await self._desk.open(traced)
        except TokenworksError as error:
            pair.end({}, error.code, error.status)
            raise
        except asyncio.CancelledError:
            pair.end({}, "disconnected", 499)
            raise
        except BaseException as error:
            pair.end({}, type(error).__name__, 500)
            raise
        content = None
        if self._content and order.worker_path == CHAT_PATH:
            content = AnswerContent(in_one_piece=order.in_one_piece)
        return TracedDelivery(delivery, order, pair, content)

    def _begin(self, order: Order) -> _Pair:
        unix_ns, waited_ns = self._clock.unix_ns(), self._clock.now_ns() - order.arrived_ns
        began_unix_ns = unix_ns - max(0, waited_ns)
        names: Attributes = {"tokenworks.request.id": order.request}
        if order.caller_request is not None:
            names["tokenworks.request.caller_id"] = order.caller_request
        method = "POST" if order.passing is None else order.passing.method
        operation = OPERATIONS.get(order.worker_path, OTHER)
        request = self._spans.begin(
            f"{method} {order.route}",
            "server",
            order.trace,
            began_unix_ns,
            {
                "http.request.method": method,
                "http.route": order.route,
                "url.path": order.route if order.passing is None else order.worker_path,
                "url.scheme": "http",
                **names,
            },
        )
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": order.model,
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": order.output_tokens_max,
            "tokenworks.tier.asked": order.tier.value,
            **names,
            **asked_attributes(order.body),
        }
        if order.session is not None:
            attributes["gen_ai.conversation.id"] = order.session
        if order.agent is not None:
            attributes["gen_ai.agent.name"] = order.agent
        if self._content:
            attributes |= input_attributes(order.body)
        name = f"{operation} {order.model}"
        inference = self._spans.begin(name, "client", request.trace, unix_ns, attributes)
        return _Pair(request, inference, self._clock)


class _Pair:
    """The spans of one request."""

    __slots__ = ("_clock", "_request", "inference")

    def __init__(self, request: OpenSpan, inference: OpenSpan, clock: Clock) -> None:
        self._request, self.inference, self._clock = request, inference, clock

    def end(self, attributes: Attributes, error: str, status: int) -> None:
        """End both now."""
        unix_ns = self._clock.unix_ns()
        self.inference.end(unix_ns, attributes, error)
        # Of a server's span a caller's own mistake is no error.
        wrong = error if status >= 500 or status == 499 else ""
        self._request.end(unix_ns, {"http.response.status_code": status}, wrong)


class TracedDelivery:
    """Implements ``core.ports.Delivery`` by another one, whose end is that of its spans."""

    __slots__ = ("_content", "_delivery", "_order", "_pair")

    def __init__(
        self, delivery: Delivery, order: Order, pair: _Pair, content: AnswerContent | None
    ) -> None:
        self._delivery, self._order, self._pair = delivery, order, pair
        self._content = content

    @property
    def stream(self) -> AnswerStream:
        """See ``Delivery``."""
        return self._delivery.stream

    def pipe(self, sink: Sink) -> None:
        """See ``Delivery``; where content is wanted, it is heard on the way."""
        content = self._content
        self._delivery.pipe(sink if content is None else _Heard(sink, content))

    def pause(self) -> None:
        """See ``Delivery``."""
        self._delivery.pause()

    def resume(self) -> None:
        """See ``Delivery``."""
        self._delivery.resume()

    def abort(self) -> None:
        """See ``Delivery``."""
        self._delivery.abort()

    async def settle(self, outcome: Outcome) -> Receipt:
        """See ``Delivery``."""
        try:
            receipt = await self._delivery.settle(outcome)
        except TokenworksError as error:
            self._pair.end(_outcome_attributes(self._order, outcome), error.code, error.status)
            raise
        except BaseException as error:
            self._pair.end({}, type(error).__name__, 500)
            raise
        attributes = _outcome_attributes(self._order, outcome) | _receipt_attributes(receipt)
        if self._content is not None:
            attributes |= self._content.attributes()
        self._pair.end(attributes, *_ENDINGS[outcome.ending])
        return receipt


class _Heard:
    """Implements ``core.ports.Sink`` by another one, and keeps what comes."""

    __slots__ = ("_content", "_sink")

    def __init__(self, sink: Sink, content: AnswerContent) -> None:
        self._sink, self._content = sink, content

    def data(self, data: bytes) -> None:
        """See ``Sink``."""
        self._content.add(data)
        self._sink.data(data)

    def ended(self, failure: WorkerFailed | None) -> None:
        """See ``Sink``."""
        self._sink.ended(failure)


_ENDINGS: Final = {
    "done": ("", 200),
    "disconnected": ("disconnected", 499),
    "failed": ("worker_failed", 502),
}


def _outcome_attributes(order: Order, outcome: Outcome) -> Attributes:
    usage, ttft_ns = outcome.usage, outcome.measured.ttft_ns
    attributes: Attributes = {
        "gen_ai.response.model": order.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "tokenworks.ending": outcome.ending,
    }
    if ttft_ns is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = ttft_ns / NS_PER_S
    return attributes


def _receipt_attributes(receipt: Receipt) -> Attributes:
    return {
        "tokenworks.tier.delivered": receipt.tier_delivered.value,
        "tokenworks.pool": receipt.pool,
        "tokenworks.worker": receipt.worker,
        "tokenworks.queue.wait": receipt.waited_ns / NS_PER_S,
        "tokenworks.charged_nanodollars": receipt.charged_nanodollars,
        "tokenworks.credited_nanodollars": receipt.credited_nanodollars,
        "tokenworks.cost_nanodollars": receipt.cost_nanodollars,
    }

"""OpenAI's ``/v1/responses``: answers on any worker, and the responses that are kept."""

from __future__ import annotations

import reprlib
import urllib.parse
from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.core.errors import InvalidRequest, NotFound, TokenworksError
from tokenworks.core.ids import ModelName, RequestID, TenantID
from tokenworks.core.orders import KeyView, Usage
from tokenworks.core.ports import Clock, Shelf, Shelved
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.gateway.assemble import Completion
from tokenworks.gateway.chat_asked import ChatRequest
from tokenworks.gateway.chat_fields import JSONObject, wrong
from tokenworks.gateway.chat_request import parse_chat_request
from tokenworks.gateway.dialect import NO_MODELS, OutputDefault
from tokenworks.gateway.event_stream import EventStream
from tokenworks.gateway.json_body import decode_object, encode
from tokenworks.gateway.openai_errors import OpenAIErrors
from tokenworks.gateway.own_words import OwnHeaders
from tokenworks.gateway.responses_answer import ResponsesAnswer, answer_turns
from tokenworks.gateway.responses_request import (
    EXAMPLE,
    ResponsesRequest,
    Turns,
    previous_response,
    read_responses_request,
    with_object_arguments,
)
from tokenworks.gateway.routes import Request, Response, Route

RESPONSES_PATH: Final = "/v1/responses"
KIND: Final = "response"
"""What responses are called on the shelf."""

PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 20


class Kept(msgspec.Struct, frozen=True):
    """A response as it is kept.

    Attributes:
        response: as the caller got it.
        items: its input, as it came.
        turns: the conversation up to its end, without instructions.
    """

    response: JSONObject
    items: list[JSONObject]
    turns: Turns


_kept: Final = msgspec.json.Decoder(Kept)


class ResponsesAsked(ChatRequest, frozen=True, kw_only=True):
    """A Responses request after checking.

    Attributes:
        given: the request, translated.
    """

    given: ResponsesRequest


class Responses(OpenAIErrors):
    """Implements ``dialect.Dialect``, and serves what was kept.

    Args:
        clock: time.
        shelf: where responses are kept; None keeps none.
    """

    path = RESPONSES_PATH

    def __init__(self, clock: Clock, shelf: Shelf | None) -> None:
        self._clock, self._shelf = clock, shelf
        self._before: Turns = []

    async def fetch(self, raw: bytes, key: KeyView) -> Responses:
        """See ``Dialect``: with the conversation that the request goes on from."""
        previous = previous_response(decode_object(raw, EXAMPLE))
        if previous is None:
            return self
        found = Responses(self._clock, self._shelf)
        kept = await self._kept(key.tenant, previous)
        found._before = with_object_arguments(kept.turns)
        return found

    def read(
        self,
        raw: bytes,
        key: KeyView,
        own: OwnHeaders,
        output_default: OutputDefault,
        whole: frozenset[ModelName] = NO_MODELS,  # noqa: ARG002 - its writer needs events
    ) -> ResponsesAsked:
        """See ``Dialect``."""
        given = read_responses_request(decode_object(raw, EXAMPLE), self._before)
        adapter = None if own.needs is None else own.needs.adapter
        body = encode(given.fields)
        asked = parse_chat_request(body, key.tier_default, output_default, key.tenant, adapter)
        fields = {name: getattr(asked, name) for name in asked.__struct_fields__}
        return ResponsesAsked(**fields, given=given)

    async def fields(self, raw: bytes, key: KeyView) -> JSONObject:
        """What a worker would be asked, with the conversation before it.

        Raises:
            InvalidRequest, NotFound: as ``fetch`` and ``read``.
        """
        before = (await self.fetch(raw, key))._before  # noqa: SLF001 - another of this class
        return read_responses_request(decode_object(raw, EXAMPLE), before).fields

    def writer(self, asked: ResponsesAsked, request: RequestID) -> ResponsesWriter:
        """See ``Dialect``."""
        given, unix_ns = asked.given, self._clock.unix_ns()
        if self._shelf is None:
            given = msgspec.structs.replace(given, store=False, echo={**given.echo, "store": False})
        return ResponsesWriter(request, unix_ns, given)

    def routes(self) -> tuple[Route, ...]:
        """What can be done with responses that were kept."""
        one = f"{RESPONSES_PATH}/*"
        return (
            Route(path=one, handlers={"GET": self._get, "DELETE": self._delete}),
            Route(path=f"{one}/input_items", handlers={"GET": self._input}),
            Route(path=f"{one}/cancel", handlers={"POST": self._cancel}),
        )

    async def _kept(self, tenant: TenantID, response_id: str) -> Kept:
        found = None if self._shelf is None else await self._shelf.get(tenant, KIND, response_id)
        if found is None:
            raise _no_response(response_id)
        return _kept.decode(found.data)

    async def _get(self, request: Request) -> Response:
        assert request.key is not None
        kept = await self._kept(request.key.tenant, _named(request))
        if _query(request).get("stream") == "true":
            raise InvalidRequest("A kept response is not streamed again.", hint="Leave it out.")
        return Response(body=msgspec.json.encode(kept.response))

    async def _input(self, request: Request) -> Response:
        assert request.key is not None
        kept = await self._kept(request.key.tenant, _named(request))
        page = _page(_named(request), kept.items, _query(request))
        return Response(body=msgspec.json.encode(page))

    async def _delete(self, request: Request) -> Response:
        response_id = _named(request)
        assert request.key is not None
        shelf, tenant = self._shelf, request.key.tenant
        if shelf is None or not await shelf.delete(tenant, KIND, response_id):
            raise _no_response(response_id)
        told = {"id": response_id, "object": "response", "deleted": True}
        return Response(body=msgspec.json.encode(told))

    async def _cancel(self, request: Request) -> Response:
        """Only what runs in the background can be cancelled, and nothing does."""
        assert request.key is not None
        response_id = _named(request)
        await self._kept(request.key.tenant, response_id)
        raise InvalidRequest(
            f"{response_id} does not run in the background.",
            hint="Close its connection to stop an answer.",
        )


class ResponsesWriter:
    """Implements ``dialect.Writer``: one answer, which is kept at its end if it is to be."""

    __slots__ = ("_answer", "_given", "_unix_ns", "kept")

    def __init__(self, request: str, unix_ns: int, given: ResponsesRequest) -> None:
        self._answer = ResponsesAnswer(request, unix_ns // NS_PER_S, given.echo)
        self._given, self._unix_ns = given, unix_ns
        self.kept: tuple[str, Shelved] | None = None

    def forward(self, ready: bytes) -> bytes:
        """See ``Writer``."""
        return self._answer.forward(ready)

    def error_event(self, error: TokenworksError) -> bytes:
        """See ``Writer``."""
        return self._answer.error_event(error)

    def take_held(self, events: EventStream) -> None:
        """See ``Writer``."""
        self._answer.take_held(events)

    def closing(self, events: EventStream, tier: Tier) -> bytes:
        """See ``Writer``."""
        closing = self._answer.closing(events, tier)
        self._keep()
        return closing

    def take_whole(self, completion: Completion) -> None:
        """See ``Writer``."""
        self._answer.take_whole(completion)

    def whole(self, usage: Usage, tier: Tier) -> bytes:
        """See ``Writer``."""
        whole = self._answer.whole(usage, tier)
        self._keep()
        return whole

    def _keep(self) -> None:
        response = self._answer.response
        if not self._given.store or response is None:
            return
        turns = [*self._given.turns, *answer_turns(response)]
        data = msgspec.json.encode(Kept(response, self._given.items, turns))
        item = Shelved(id=str(response["id"]), unix_ns=self._unix_ns, data=data)
        self.kept = (KIND, item)


def _named(request: Request) -> str:
    """The response that a path is of."""
    return request.path.removeprefix(RESPONSES_PATH + "/").partition("/")[0]


def _query(request: Request) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(request.query.decode("latin-1")))


def _no_response(response_id: str) -> NotFound:
    return NotFound(
        f"There is no response {reprlib.repr(response_id)}.",
        hint="It was not stored, was deleted, or is another tenant's.",
    )


def _page(response_id: str, items: list[JSONObject], query: Mapping[str, str]) -> JSONObject:
    """A page of a response's input, the newest first unless asked otherwise."""
    limit = query.get("limit", str(PAGE_DEFAULT))
    if not (limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= PAGE_MAX):
        raise wrong("limit", limit, f"a whole number from 1 to {PAGE_MAX}")
    named = [{"id": f"in_{response_id}_{i}", **item} for i, item in enumerate(items)]
    if query.get("order", "desc") != "asc":
        named.reverse()
    after = query.get("after")
    if after is not None:
        at = next((i for i, item in enumerate(named) if item["id"] == after), len(named))
        named = named[at + 1 :]
    data = named[: int(limit)]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(named) > len(data),
    }

"""Services that answer in one piece: embeddings, rerankers, moderation, pictures and sound.

A worker gets the request as it came, the caller gets the worker's answer as it came, and what it
says of usage is billed. Which of these a worker serves is the worker's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from tokenworks.core.errors import InvalidRequest, NotOffered, WorkerFailed
from tokenworks.core.orders import Ending, KeyView, Outcome
from tokenworks.core.ports import Clock, Delivery
from tokenworks.core.slo import Measured
from tokenworks.gateway.answer import Answers
from tokenworks.gateway.chat_fields import JSONObject, wrong
from tokenworks.gateway.chat_request import IMAGE_TOKENS_MAX, cache_salt_of
from tokenworks.gateway.dialect import Asked
from tokenworks.gateway.form_fields import form_fields
from tokenworks.gateway.http_io import BODY_BYTES_MAX, JSON, ClientGone
from tokenworks.gateway.json_body import decode_object, encode
from tokenworks.gateway.own_headers import own_headers
from tokenworks.gateway.own_words import OwnHeaders
from tokenworks.gateway.request_fields import model_of, tier_of
from tokenworks.gateway.routes import Request, Response, Route
from tokenworks.gateway.told_usage import told_usage
from tokenworks.gateway.worker_chunks import nothing_used

ANSWER_BYTES_MAX: Final = 128 * 1024 * 1024
FORM_BYTES_MAX: Final = 26 * 1024 * 1024
"""OpenAI takes 25 MB of sound."""

DOCUMENTS_MAX: Final = 4_096
SOUND_BYTES_PER_TOKEN: Final = 16
"""Below the least that sound takes: 1 kB and at most 50 tokens for a second of it (assumed)."""

SPEECH_TOKENS_PER_BYTE: Final = 8
"""Above the most that speech makes of a byte of text (assumed)."""

PICTURE_TOKENS_MAX: Final = 8_192
"""For a picture that is made; OpenAI's largest takes 6,240."""

PICTURES_MAX: Final = 10

Bounds = Callable[[JSONObject, int], tuple[int, int]]
"""From a request's fields and its body's bytes: the most tokens of its input and of its output."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One path.

    Attributes:
        path: ours and the worker's.
        bounds: what to hold for a request; may raise InvalidRequest.
        example: a body that would do.
        form: whether files come with it.
    """

    path: str
    bounds: Bounds
    example: str
    form: bool = False


class Services:
    """Serves them through a desk."""

    def __init__(self, answers: Answers, clock: Clock) -> None:
        self._answers, self._clock = answers, clock

    def routes(self) -> tuple[Route, ...]:
        """A route for each service."""
        return tuple(self._route(service) for service in SERVICES)

    def _route(self, service: Service) -> Route:
        async def handle(request: Request) -> Response:
            return await self._serve(service, request)

        size = FORM_BYTES_MAX if service.form else BODY_BYTES_MAX
        return Route(path=service.path, handlers={"POST": handle}, body_bytes_max=size)

    async def _serve(self, service: Service, request: Request) -> Response:
        key = request.key
        assert key is not None, service.path
        arrived_ns = self._clock.now_ns()
        own = own_headers(request.headers, key.labels)
        content_type = request.get(b"content-type") or b""
        asked = read_whole(service, request.body, content_type, key, own)
        order = self._answers.order(asked, key, arrived_ns, own, request.id, service.path)
        exchange = request.exchange
        delivery = await self._answers.opened(exchange, order)
        exchange.on_gone = delivery.abort
        body, failure = await Collector(delivery).collect()
        ending: Ending = "disconnected" if exchange.gone else "done"
        ended_ns = self._clock.now_ns()
        outcome, failure = whole_outcome(body, failure, ended_ns - arrived_ns, ending)
        receipt = await self._answers.settle(order, delivery, outcome, ended_ns)
        if exchange.gone:
            raise ClientGone
        if failure is not None:
            raise failure
        headers = [(b"x-tokenworks-tier", receipt.tier_delivered.value.encode())]
        content_type = delivery.stream.content_type or JSON
        return Response(body=body, content_type=content_type, headers=headers)


class Collector:
    """Takes an answer in one piece; implements ``ports.Sink``."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._parts: list[bytes] = []
        self._bytes = 0
        self._failure: WorkerFailed | None = None
        self._whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def collect(self) -> tuple[bytes, WorkerFailed | None]:
        """The whole answer, or why there is none."""
        self._delivery.pipe(self)
        await self._whole
        return (b"" if self._failure else b"".join(self._parts)), self._failure

    def data(self, data: bytes) -> None:
        """See ``Sink``."""
        self._bytes += len(data)
        if self._bytes <= ANSWER_BYTES_MAX:
            self._parts.append(data)
        elif self._failure is None:
            self._failure = WorkerFailed(f"A worker's answer has over {ANSWER_BYTES_MAX} bytes.")
            self._delivery.abort()

    def ended(self, failure: WorkerFailed | None) -> None:
        """See ``Sink``."""
        self._failure = self._failure or failure
        if not self._whole.done():
            self._whole.set_result(None)


def whole_outcome(
    body: bytes, failure: WorkerFailed | None, elapsed_ns: int, ending: Ending
) -> tuple[Outcome, WorkerFailed | None]:
    """What is billed of an answer in one piece, and what went wrong with it.

    Args:
        body: all of it.
        failure: why there is none.
        elapsed_ns: since its request came.
        ending: how it ended if nothing went wrong.
    """
    usage = nothing_used()
    if failure is None:
        try:
            usage = told_usage(body) or usage
        except WorkerFailed as error:
            failure = error
    measured = Measured(ttft_ns=elapsed_ns, decode_ns=0, output_tokens=usage.completion_tokens)
    if failure is not None and ending == "done":
        ending = "failed"
    return Outcome(usage=usage, measured=measured, ending=ending), failure


def read_whole(
    service: Service, raw: bytes, content_type: bytes, key: KeyView, own: OwnHeaders
) -> Asked:
    """Check a request, and turn it into what a worker gets.

    Args:
        service: what it asks for.
        raw: its body.
        content_type: of that.
        key: who asks.
        own: what its own headers say.

    Raises:
        InvalidRequest, NotOffered: what is wrong with it.
    """
    is_form = content_type.lower().startswith(b"multipart/form-data")
    if is_form and not service.form:
        raise InvalidRequest(f"{service.path} takes JSON.", hint=f"Send {service.example}.")
    fields: JSONObject = {}
    if is_form:
        fields |= form_fields(content_type, raw)
    else:
        fields = decode_object(raw, service.example)
    read, made = service.bounds(fields, len(raw))
    adapter = None if own.needs is None else own.needs.adapter
    body = raw
    if is_form and adapter is not None:
        raise NotOffered("A form cannot ask for an adapter.", hint="Name it as the model.")
    model, tier = model_of(fields), tier_of(fields, key.tier_default)
    if not is_form:
        sent = {k: v for k, v in fields.items() if k not in ("service_tier", "cache_salt")}
        body = encode(sent if adapter is None else {**sent, "model": adapter})
    return Asked(
        model=model,
        tier=tier,
        stream=False,
        output_tokens_max=made,
        input_tokens_max=read,
        prefix=(),
        cache_salt=cache_salt_of((key.tenant, adapter)),
        body=body,
        worker_path=service.path,
        content_type=content_type.decode("latin-1") if is_form else JSON.decode(),
    )


# What to hold for each


def _text_bytes(value: object) -> int:
    return len(encode(value))


def _needed(fields: JSONObject, name: str, want: str) -> object:
    value = fields.get(name)
    if value is None or value in ("", []):
        raise wrong(name, value, want)
    return value


def _of_input(fields: JSONObject, _: int) -> tuple[int, int]:
    return _text_bytes(_needed(fields, "input", "text, or a list of texts")), 1


def _of_ranking(fields: JSONObject, _: int) -> tuple[int, int]:
    """The query is read once with each document."""
    query = _needed(fields, "query", "text")
    documents = _needed(fields, "documents", f"a list of 1 to {DOCUMENTS_MAX} texts")
    if not isinstance(documents, list) or len(documents) > DOCUMENTS_MAX:
        raise wrong("documents", documents, f"a list of 1 to {DOCUMENTS_MAX} texts")
    return _text_bytes(documents) + len(documents) * _text_bytes(query), 1


def _pictures(fields: JSONObject) -> int:
    n = fields.get("n") or 1
    if isinstance(n, str) and n.isdecimal() and len(n) < 4:  # from a form
        n = int(n)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= PICTURES_MAX:
        raise wrong("n", fields.get("n"), f"a whole number from 1 to {PICTURES_MAX}")
    return n


def _of_picture(fields: JSONObject, _: int) -> tuple[int, int]:
    prompt = _needed(fields, "prompt", "text")
    return _text_bytes(prompt), PICTURE_TOKENS_MAX * _pictures(fields)


def _of_edit(fields: JSONObject, _: int) -> tuple[int, int]:
    images = fields.get("images")
    count = len(images) if isinstance(images, list) else PICTURES_MAX
    read = _text_bytes(fields.get("prompt")) + count * IMAGE_TOKENS_MAX
    return read, PICTURE_TOKENS_MAX * _pictures(fields)


def _of_speech(fields: JSONObject, _: int) -> tuple[int, int]:
    size = _text_bytes(_needed(fields, "input", "text"))
    return size, size * SPEECH_TOKENS_PER_BYTE


def _of_sound(fields: JSONObject, body_bytes: int) -> tuple[int, int]:
    tokens = body_bytes // SOUND_BYTES_PER_TOKEN + 1
    return tokens + _text_bytes(fields.get("prompt")), tokens


_SOUND: Final = "a form with a model and a file"
_PICTURE: Final = "a form with a model, a prompt and an image"

SERVICES: Final = (
    Service(path="/v1/embeddings", bounds=_of_input, example='{"model": ..., "input": ...}'),
    Service(path="/v1/moderations", bounds=_of_input, example='{"model": ..., "input": ...}'),
    Service(
        path="/v1/rerank",
        bounds=_of_ranking,
        example='{"model": ..., "query": ..., "documents": [...]}',
    ),
    Service(
        path="/v1/images/generations",
        bounds=_of_picture,
        example='{"model": ..., "prompt": ...}',
    ),
    Service(path="/v1/images/edits", bounds=_of_edit, example=_PICTURE, form=True),
    Service(path="/v1/images/variations", bounds=_of_edit, example=_PICTURE, form=True),
    Service(
        path="/v1/audio/speech",
        bounds=_of_speech,
        example='{"model": ..., "input": ..., "voice": ...}',
    ),
    Service(path="/v1/audio/transcriptions", bounds=_of_sound, example=_SOUND, form=True),
    Service(path="/v1/audio/translations", bounds=_of_sound, example=_SOUND, form=True),
)

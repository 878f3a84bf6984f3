"""An answer in one piece: what of a worker's whole body is read, and the same for the caller.

The body goes on as the bytes it came in, with the delivered tier in front. It is checked first: the
caller gets an answer, or is told that there is none.
"""

from __future__ import annotations

import reprlib
from typing import Final

import msgspec

from tokenworks.core.errors import WorkerFailed
from tokenworks.core.orders import CHAT_PATH, Ending, Outcome, Usage
from tokenworks.core.slo import Measured
from tokenworks.core.token_sums import completion_tokens
from tokenworks.gateway.chunk_reading import disjoint, has_token
from tokenworks.gateway.event_stream import tier_first, without_service_tier
from tokenworks.gateway.worker_chunks import SaidChoices, WholeAnswer, nothing_used

# Without Final, which mypyc writes into the code: a test changes it, compiled or not.
BODY_BYTES_MAX = 32 * 1024 * 1024
"""Of one answer: sound of ten minutes, or the probabilities of tens of thousands of tokens."""

_EVENT: Final = b"data:"
_decoder: Final = msgspec.json.Decoder(WholeAnswer)
_choices_decoder: Final = msgspec.json.Decoder(SaidChoices)


class OnePiece:
    """Takes one answer, then tells what was used and what the caller gets.

    Args:
        worker_path: what the worker was asked for: a chat completion, or a completion.

    Attributes:
        usage: what the worker says it has used; None where it has not said.
    """

    __slots__ = ("_body", "_bytes", "_chat", "_parts", "usage")

    def __init__(self, worker_path: str) -> None:
        self._chat = worker_path == CHAT_PATH
        self._parts: list[bytes] = []
        self._bytes = 0
        self._body = b""
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes as they came.

        Raises:
            WorkerFailed: there are too many.
        """
        self._bytes += len(data)
        if self._bytes > BODY_BYTES_MAX:
            self._parts.clear()
            raise WorkerFailed(f"A worker's answer has over {BODY_BYTES_MAX} bytes.")
        self._parts.append(data)

    def read(self) -> None:
        """Check the answer, once all of it has come.

        Raises:
            WorkerFailed: it is no answer, or says of usage what cannot be.
        """
        body = b"".join(self._parts)
        self._parts.clear()
        try:
            if not body.isascii():
                body.decode()  # what is passed over is not looked at for that
            said = _decoder.decode(body)
            self._body = without_service_tier(body.strip())  # here, where nothing is billed yet
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unread(body, error) from error
        if said.error is not None:
            raise WorkerFailed(
                f"A worker reported {reprlib.repr(said.error)} in place of an answer.",
                hint="Try again.",
            )
        if not said.choices:
            raise WorkerFailed("A worker's answer has no choice.", hint="Try again.")
        ended = False
        for choice in said.choices:
            ended = ended or bool(choice.finish_reason)
            if (choice.message if self._chat else choice.text) is None:
                raise WorkerFailed("A worker's answer has a choice without a message.")
        if not (ended or _begun(body)):
            raise WorkerFailed("A worker's answer ended before it had begun.", hint="Try again.")
        if said.usage is not None:
            self.usage = disjoint(said.usage)

    def outcome(self, elapsed_ns: int, ending: Ending) -> Outcome:
        """What is billed of it: what the worker has counted, as nobody else could.

        Args:
            elapsed_ns: from the request's arrival to the answer's end.
            ending: how it ended.
        """
        told = self.usage
        usage = nothing_used() if told is None else told
        tokens = completion_tokens(usage)
        return Outcome(
            usage=usage,
            measured=Measured(
                ttft_ns=None, decode_ns=elapsed_ns if tokens else 0, output_tokens=tokens
            ),
            ending=ending,
            metered_by="gateway" if told is None else "worker",
        )

    def naming(self, tier: str) -> bytes:
        """The body with the delivered tier as its first field, in place of any the worker gave."""
        return tier_first(self._body, tier)


def _unread(body: bytes, error: Exception) -> WorkerFailed:
    """What is wrong with a body that is no JSON."""
    if body.startswith(_EVENT):
        return WorkerFailed(
            "A worker that was asked for an answer in one piece has streamed it.",
            hint="Operators: leave `whole_answers` out of the settings of its pool.",
        )
    return WorkerFailed(f"A worker's answer cannot be read: {error}.")


def _begun(body: bytes) -> bool:
    """Whether an answer that does not say why it ended has a part of one."""
    try:
        return any(has_token(choice) for choice in _choices_decoder.decode(body).choices)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WorkerFailed(f"A worker's answer cannot be read: {error}.") from error

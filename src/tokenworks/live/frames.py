"""What a factory's processes say to each other over a Unix socket; ``link`` carries it.

One of them, the owner, has the dispatcher and the workers; the others, the fronts, tell it events
and are told commands. What one says in a turn of its event loop goes out in one frame, or a few:
four bytes of length, then a MessagePack array.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.dispatch.commands import Fetch, Hedge, Offload, Preempt, Reject, Send
from tokenworks.dispatch.events import Arrived, Failed, Finished, Started, Withdrawn

FRAME_BYTES_MAX: Final = 16 << 20
MESSAGES_MAX: Final = 1_024
"""In one frame. An event has some 2 KB of prefix at most, and what a front with all its requests
waiting tells a new owner is more than a frame."""


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A front's answer to ``Welcome``.

    Attributes:
        index: which front.
        name: of this life of it; a process that starts again has another.
        running: what workers make for it already, and who does: an owner that is new takes it over.
    """

    index: int
    name: str
    running: list[tuple[RequestID, WorkerID]]


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An owner listens to a front from now on."""


class WorkerHere(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker can take requests.

    Attributes:
        worker: which.
        host, port: of one that the owner has started; an attached one is where the settings say.
        api_key: of that.
    """

    worker: WorkerID
    host: str = ""
    port: int = 0
    api_key: str = ""


class WorkerGone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker takes none any more."""

    worker: WorkerID
    why: str


class AskTexts(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Wanted: the metrics of a front, or by a front those of all processes."""

    number: int


class Texts(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Metrics by process, in Prometheus's text format."""

    number: int
    texts: dict[int, bytes]


RequestEvent = Arrived | Started | Finished | Failed | Withdrawn
RequestCommand = Send | Hedge | Reject | Preempt | Fetch | Offload
Message = (
    Report | Welcome | WorkerHere | WorkerGone | AskTexts | Texts | RequestEvent | RequestCommand
)

ENCODER: Final = msgspec.msgpack.Encoder()
DECODER: Final = msgspec.msgpack.Decoder(list[Message])

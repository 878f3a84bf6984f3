"""The small readers: forms, headers of our own, bounds of schemas, usage in whole bodies.

What must hold: what is right is read as it was written; all else is refused in words of ours, and
soon.
"""

from __future__ import annotations

import contextlib
import json
import time

from bars.fuzz.choices import Choices, changed, json_bytes, spliced
from bars.fuzz.seeds import CHATS, EVENTS, WHOLE
from tokenworks.core.errors import InvalidRequest, TokenworksError, WorkerFailed
from tokenworks.gateway.form_fields import form_fields
from tokenworks.gateway.own_headers import own_headers
from tokenworks.gateway.request_ids import REQUEST_ID
from tokenworks.gateway.schema_limits import check_schemas, pattern_cost
from tokenworks.gateway.told_usage import told_usage, usage_at_end

CPU_S_MAX = 2.0
NAMES = (
    *("agent", "run", "labels", "adapter", "session", "output-tokens", "tool-seconds"),
    *("session-ends", "priority", "other"),
)
SAYS = (
    *(b"a", b"", b"a,b", b"1", b"0", b"-1", b"9" * 30, b"1.5", b"1.", b".5", b"true", b"TRUE"),
    *(
        b"\xb2",
        b"\xff",
        b"x" * 200,
        b" a ",
        b"a,,b",
        b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
    ),
)


def _form(choices: Choices) -> None:
    boundary = choices.of((b"x", b"----WebKitFormBoundary", b"'()+_,-./:=?"))
    kind = b'multipart/form-data; boundary="%b"' % boundary
    wrote: dict[str, str] = {}
    body = b""
    for _ in range(choices.below(5)):
        name = choices.of(("model", "n", "prompt", "é", ""))
        value = choices.of(("foreman", "1", "", "a\r\nb", "é", "x" * 100, "--", "\r\n--"))
        file = choices.flag(4)
        head = f'Content-Disposition: form-data; name="{name}"' + '; filename="f"' * file
        body += b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head.encode(), value.encode())
        if name and not file:
            wrote[name] = value
    body += b"--%b--\r\n" % boundary
    if choices.flag():
        assert form_fields(kind, body) == wrote, (body, wrote)
        return
    with contextlib.suppress(InvalidRequest):
        form_fields(spliced(choices, kind), spliced(choices, body))


def _headers(choices: Choices) -> None:
    headers = []
    for _ in range(choices.below(6)):
        name = choices.of(
            (
                f"x-tokenworks-{choices.of(NAMES)}".encode(),
                REQUEST_ID,
                b"traceparent",
                b"tracestate",
            )
        )
        headers.append((name, choices.of(SAYS) if choices.flag() else choices.raw(30)))
    try:
        own = own_headers(headers, choices.of(((), ("eu",))))
    except InvalidRequest:
        return
    if own.needs is not None:
        assert all(own.needs.labels) or own.needs.adapter


def _schemas(choices: Choices) -> None:
    fields = changed(choices, CHATS[1])
    before = json.dumps(fields)
    with contextlib.suppress(InvalidRequest):
        check_schemas(fields)
    assert json.dumps(fields) == before
    pattern_cost(choices.raw(300).decode("latin-1"))
    pattern_cost("".join(choices.some(("(", ")", "*", "{2,9}", "a", "[", "]", "\\", "?", "|"), 90)))


def _usage(choices: Choices) -> None:
    body = json_bytes(choices, choices.of((*WHOLE, *EVENTS)))
    if choices.flag():
        body = b"data: %b\n\ndata: %b\n\n" % (body, json_bytes(choices, choices.of(WHOLE)))
    for read in (told_usage, usage_at_end):
        try:
            usage = read(body)
        except WorkerFailed:
            continue
        if usage is not None:
            assert usage.prompt_tokens >= 0
            assert usage.completion_tokens >= 0


def one(data: bytes) -> None:
    """Check one input."""
    choices = Choices(data)
    began = time.process_time()
    try:
        choices.of((_form, _headers, _schemas, _usage))(choices)
    except TokenworksError as error:
        raise AssertionError(f"refused in other words: {error!r}") from error
    assert time.process_time() - began < CPU_S_MAX, "too slow"

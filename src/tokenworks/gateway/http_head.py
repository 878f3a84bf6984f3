"""The head of a request: strictly HTTP/1.1's grammar, or refused.

A head is taken whole and must be what RFC 9112 says, to the letter, so that no proxy before us can
read another request out of the same bytes than we do. Values are looked up in the head as it is:
nothing is built of headers that nobody asks for.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from tokenworks.core.errors import InvalidRequest
from tokenworks.gateway.http_io import Headers, secret_of

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
FIELD: Final = TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*+\r\n"
_HEAD: Final = re.compile(
    rb"(" + TOKEN + rb") ([\x21-\x7e]++) HTTP/1\.([01])\r\n(?:" + FIELD + rb")*+\r\n"
)
"""A request line and header fields. There is no space before a colon, no folded line, no bare line
feed and no control character."""

_LINE: Final = re.compile(rb"\r\n([^:\r\n]+):[ \t]*([^\r\n]*)")
_ADDRESS: Final = re.compile(
    rb"https?://(?:[0-9A-Za-z\-._~!$&'()*+,;=%]++|\[[0-9A-Fa-f:.]++\])(?::\d*+)?([/?].*+)?",
    re.IGNORECASE,
)
"""A whole address, with a host that is one and nobody's name before it."""

_LENGTH: Final = b"\r\ncontent-length:"
_LENGTH_NAME: Final = b"content-length"
_LENGTH_DIGITS_MAX: Final = 15
_SPACE: Final = b" \t"
_BLANK: Final = 0x20
_GRAPHIC: Final = 0x21
"""The least byte that is neither a space nor a tab."""
_SLASH: Final = 0x2F
_QUESTION: Final = 0x3F
_PERCENT: Final = 0x25
_CHUNKED: Final = (b"\r\ntransfer-encoding: chunked\r\n", b"\r\ntransfer-encoding:chunked\r\n")
"""Written otherwise, with a tab after it, say, it is known to mean different things to servers."""

HEAD_END: Final = b"\r\n\r\n"


class _Known:
    """What was looked for before, in a head or in one that says the same."""

    __slots__ = ("begins", "secret_sha256", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.begins: dict[tuple[bytes, ...], bool] = {}
        self.secret_sha256: str | None = None


class Head:
    """A request's head.

    Attributes:
        method: as it came; methods are case-sensitive.
        path: without the query, percent signs decoded; never the scheme and host.
        query: as it came, without the question mark.
        http_1_0: whether the caller speaks HTTP/1.0.
        length: the body's bytes; None if it comes in chunks.
        keep_alive: whether the caller may send another request after this.
        expects: whether the caller waits for ``100 Continue`` before it sends the body.
    """

    __slots__ = (
        "_after",
        "_before",
        "_known",
        "_lower",
        "_raw",
        "expects",
        "http_1_0",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
    )

    def __init__(self, raw: bytes, like: Head | None = None) -> None:
        """Read a head.

        Args:
            raw: from the request line to the empty line, both included.
            like: one that was read before. A caller's next one mostly says the same but for the
                body's length, and then need not be read again.

        Raises:
            InvalidRequest: it is not HTTP, or what it says of the body can be read in two ways.
        """
        # What is before and after the body's length, if it says that.
        self._before = self._after = b""
        if like is not None and self._is_like(raw, like):
            return
        match = _HEAD.fullmatch(raw)
        if match is None:
            raise InvalidRequest("The request's head is not HTTP/1.1.")
        method, target, minor = match.groups()
        self._raw = raw
        self._lower = raw.lower()
        self._known = _Known()
        self.method = method.decode("ascii")
        self.http_1_0 = minor == b"0"
        self.path, self.query = _target(target)
        self._check_host()
        self.length = self._length()
        self.keep_alive = not self.http_1_0
        if self.keep_alive and self._lower.find(b"close") >= 0:
            lines = [value for name, value in self.headers() if name == b"connection"]
            self.keep_alive = b"close" not in b",".join(lines).lower()
        self.expects = False
        if self.has(b"expect:"):
            self.expects = (self.get(b"expect") or b"").lower() == b"100-continue"

    @property
    def raw_path(self) -> bytes:
        """The path as it came, percent signs and all; never the scheme and host."""
        return _without_server(self._raw.split(b" ", 2)[1]).partition(b"?")[0]

    def get(self, name: bytes) -> bytes | None:
        """The value of the first header of a name in lower case, without space around it."""
        values = self._known.values
        if name in values:
            return values[name]
        value = self._find(name)
        if name != _LENGTH_NAME:
            values[name] = value
        return value

    def _find(self, name: bytes) -> bytes | None:
        needle = b"\r\n" + name + b":"
        at = self._lowered().find(needle)
        if at < 0:
            return None
        at += len(needle)
        if self._raw[at] == _BLANK:
            at += 1
        value = self._raw[at : self._raw.find(b"\r\n", at)]
        # Hardly anybody sends more space than that.
        spaced = value and (value[0] < _GRAPHIC or value[-1] < _GRAPHIC)
        return value.strip(_SPACE) if spaced else value

    def has(self, *prefixes: bytes) -> bool:
        """Whether any header begins in one of these ways, in lower case."""
        begins = self._known.begins
        found = begins.get(prefixes)
        if found is None:
            found = False
            for prefix in prefixes:
                if self._lowered().find(b"\r\n" + prefix) >= 0:  # `in` makes an error and drops it
                    found = True
                    break
            begins[prefixes] = found
        return found

    def secret_sha256(self) -> str:
        """The hash of the key's secret, in hex; empty if there is none."""
        known = self._known
        if known.secret_sha256 is None:
            secret = secret_of(self)
            known.secret_sha256 = "" if secret is None else hashlib.sha256(secret).hexdigest()
        return known.secret_sha256

    def headers(self) -> Headers:
        """All of them, in order, names in lower case."""
        found = _LINE.findall(self._raw)
        return [(name.lower(), value.rstrip(_SPACE)) for name, value in found]

    def _is_like(self, raw: bytes, like: Head) -> bool:
        """Take over what another head says, if this one says it, too; another length may do."""
        before, after = like._before, like._after
        if not (before and raw.startswith(before) and raw.endswith(after)):
            return False
        begin, end = len(before), len(raw) - len(after)
        value = raw[begin:end].strip(_SPACE) if begin < end else b""
        if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
            return False
        self._raw, self._lower = raw, b""
        self._known = like._known
        self._before, self._after = before, after
        self.method, self.path, self.query = like.method, like.path, like.query
        self.http_1_0, self.keep_alive = like.http_1_0, like.keep_alive
        self.length, self.expects = int(value), like.expects
        return True

    def _lowered(self) -> bytes:
        """The head in lower case: nobody may look for anything that was not looked for before."""
        if not self._lower:
            self._lower = self._raw.lower()
        return self._lower

    def _check_host(self) -> None:
        hosts = self._lower.count(b"\r\nhost:")
        if hosts > 1 or not (hosts or self.http_1_0):
            raise InvalidRequest(f"The request has {hosts} `Host` headers; it must have one.")

    def _length(self) -> int | None:
        lengths = self._lower.count(_LENGTH)
        if self.has(b"transfer-encoding:"):
            plain = any(self._lower.find(line) >= 0 for line in _CHUNKED)
            once = self._lower.count(b"\r\ntransfer-encoding:") == 1
            if lengths or self.http_1_0 or not once or not plain:
                raise InvalidRequest(
                    "The request's `Transfer-Encoding` must be `chunked`, alone, once, without "
                    "`Content-Length`."
                )
            return None
        if not lengths:
            return 0
        begin = self._lower.find(_LENGTH) + len(_LENGTH)
        end = self._raw.find(b"\r\n", begin)
        value = self._raw[begin:end].strip(_SPACE)
        if lengths > 1 or not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
            raise InvalidRequest("The request's `Content-Length` must be one whole number.")
        self._before, self._after = self._raw[:begin], self._raw[end:]
        return int(value)


def _without_server(target: bytes) -> bytes:
    """A request's target without the server that it may name.

    Raises:
        InvalidRequest: it is neither a path nor an address of HTTP nor ``*``.
    """
    if target[0] == _SLASH or target == b"*":
        return target
    match = _ADDRESS.fullmatch(target)
    if match is None:
        raise InvalidRequest("The request's target must be a path.")
    rest: bytes = match[1] or b"/"
    return b"/" + rest if rest.startswith(b"?") else rest


def _target(target: bytes) -> tuple[str, bytes]:
    """Path and query of a request's target."""
    if target[0] != _SLASH:
        target = _without_server(target)
    path, query = target, b""
    if _QUESTION in target:
        path, _, query = target.partition(b"?")
    if _PERCENT in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace"), query

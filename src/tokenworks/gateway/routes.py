"""The table of routes: which path and method has which handler, and how its errors are worded."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec

from tokenworks.core.errors import MethodNotAllowed, RouteNotFound
from tokenworks.core.ids import RequestID
from tokenworks.core.orders import KeyView
from tokenworks.gateway.connection import Exchange
from tokenworks.gateway.dialect import Dialect, ErrorForm
from tokenworks.gateway.http_io import BODY_BYTES_MAX, JSON, Headers
from tokenworks.gateway.openai_errors import OpenAIErrors


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A whole request.

    Attributes:
        method: in capitals.
        path: without the query, percent signs decoded.
        id: our name for it.
        query: as it came, without the question mark.
        headers: names in lower case, in the order in which they came.
        body: all of it.
        key: who asks; None on a route that needs no key.
        exchange: says when its caller leaves.
    """

    method: str
    path: str
    headers: Headers
    id: RequestID
    exchange: Exchange
    query: bytes = b""
    body: bytes = b""
    key: KeyView | None = None

    def get(self, name: bytes) -> bytes | None:
        """The value of the first header of a name in lower case."""
        return next((value for each, value in self.headers if each == name), None)


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response; the length of one that is whole is written for it.

    Attributes:
        status: as in HTTP.
        body: all of it.
        content_type: what it is.
        headers: more of them, names in lower case.
        parts: the body instead, where it is long; none of them is empty.
    """

    body: bytes = b""
    status: int = 200
    content_type: bytes = JSON
    headers: Headers = []
    parts: AsyncIterator[bytes] | None = None


Handler = Callable[[Request], Awaitable[Response]]

AnyDialect = Dialect[Any]
"""Each has a kind of request of its own, which nobody else looks into."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One path, or all of one form, or all below one.

    Attributes:
        path: in full; a ``*`` in it stands for anything but nothing and a slash, and one that ends
            in a slash for all that begin with it, too.
        handlers: by method.
        keyed: whether a key is needed.
        errors: how its errors are worded.
        body_bytes_max: a request's body may have no more.
        takes: gives a POST's exchange its ``sink``, before its body comes, and ``on_gone`` to drop
            it; may raise what refuses the request.
    """

    path: str
    handlers: Mapping[str, Handler]
    keyed: bool = True
    errors: ErrorForm = OpenAIErrors()
    body_bytes_max: int = BODY_BYTES_MAX
    takes: Callable[[Exchange, KeyView], None] | None = None


class Routes:
    """Finds what a path belongs to.

    Args:
        answers: routes that a worker answers.
        others: all others. Where several begin a path, the longest has it.

    Attributes:
        open_paths: paths that need no key of a caller's; those below one that ends in a slash, too.
    """

    def __init__(self, answers: tuple[AnyDialect, ...], others: tuple[Route, ...]) -> None:
        self._answers = {dialect.path: dialect for dialect in answers}
        self._others = {route.path: route for route in others if "*" not in route.path}
        self._forms = tuple(route for route in others if "*" in route.path)
        self.open_paths = frozenset(route.path for route in others if not route.keyed)
        self._open_below = tuple(path for path in self.open_paths if path.endswith("/"))
        self._below = sorted(
            (route for route in others if route.path.endswith("/")),
            key=lambda route: len(route.path),
            reverse=True,
        )
        paths = {*self._answers, *(route.path for route in others)}
        assert len(paths) == len(answers) + len(others), "a path twice"

    def is_open(self, path: str) -> bool:
        """Whether a path needs no key of a caller's."""
        return path in self.open_paths or path.startswith(self._open_below)

    def find(self, path: str) -> AnyDialect | Route:
        """What a path belongs to.

        Raises:
            RouteNotFound: nothing.
        """
        found = self._answers.get(path) or self._others.get(path)
        if found is None:
            found = next((route for route in self._forms if _is_like(path, route.path)), None)
        if found is None:
            found = next((route for route in self._below if path.startswith(route.path)), None)
        if found is None:
            raise RouteNotFound(
                f"There is no {reprlib.repr(path)} here.", hint="GET /openapi.json lists what is."
            )
        return found

    def name(self, path: str) -> str:
        """A path as metrics name it: a closed set."""
        return path if path in self._answers or path in self._others else "other"


def _is_like(path: str, form: str) -> bool:
    start, _, end = form.partition("*")
    named = path[len(start) : len(path) - len(end)]
    return "/" not in named and named != "" and path == start + named + end


def check_method(path: str, method: str, allowed: Collection[str]) -> None:
    """Refuse a method that a path does not take.

    Raises:
        MethodNotAllowed: the header ``allow`` of its answer names what is ``allowed``.
    """
    if method not in allowed and not (method == "HEAD" and "GET" in allowed):
        names = ", ".join(allowed)
        raise MethodNotAllowed(
            f"{reprlib.repr(path)} takes {names}, not {method}.", hint=f"Use {names}."
        )

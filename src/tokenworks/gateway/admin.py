"""The admin API: people manage tenants, keys, limits and prices by HTTP, and see who changed what.

Its callers are no callers for tokens: whoever comes must have a role, and what they ask for goes
through the office, which knows what they manage and writes everything down.
"""

from __future__ import annotations

import asyncio
import functools
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar, get_args

import msgspec

from tokenworks.core.errors import (
    CapacityExceeded,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unauthorized,
)
from tokenworks.core.scopes import Address, Network, address_of
from tokenworks.gateway.doorkeeper import caller_address
from tokenworks.gateway.http_io import Headers, check_json, label_of, secret_of
from tokenworks.gateway.json_body import decode_object
from tokenworks.gateway.routes import Handler, Request, Response, Route
from tokenworks.ledger.actions import (
    Action,
    ActivateBook,
    AskExtra,
    ChangeKey,
    ChangeTenant,
    CloseTenant,
    CreateKey,
    CreateTenant,
    DecideExtra,
    GrantPackage,
    LiftLimit,
    ProposeBook,
    RevokeKey,
    RotateKey,
    SetLimit,
)
from tokenworks.ledger.audit_log import Facts, Outcome
from tokenworks.ledger.authority import Who
from tokenworks.ledger.facts import extra_facts, key_facts, limit_facts
from tokenworks.ledger.office_port import Asked, Office

ADMIN_PATH: Final = "/admin/v1/"
BODY_BYTES_MAX: Final = 256 * 1024
"""A price book is the largest thing that is sent here."""
PAGE_DEFAULT, PAGE_MAX = 50, 200
ONCE_CHARS_MAX: Final = 255
THREADS: Final = 4
"""The office waits for the ledger's database: on threads of its own, so that whoever serves tokens
has theirs."""
WAITING_MAX: Final = 64
"""Requests that are being served or wait for a thread."""
FORWARDED: Final = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")
"""Headers by which a proxy shows."""

_NO_STORE: Final[Headers] = [(b"cache-control", b"no-store")]

Said = tuple[int, Facts]
"""A status and a body."""

Act = Callable[[Who, Request], Said]
AnyAction = TypeVar("AnyAction", bound=Action)


class Admission(Protocol):
    """Finds out who somebody is, on any thread."""

    def who(self, secret: bytes, address: Address | None) -> Who:
        """Who shows a secret.

        Args:
            secret: as it came.
            address: where they are; None if that is not known.

        Raises:
            Unauthorized: nobody who is known, or not any more.
            Forbidden: they have no role, or may not come from there.
        """
        ...


class Admin:
    """Serves the admin API.

    Args:
        office: makes the changes.
        admission: says who asks.
        trusted_proxies: see ``Doorkeeper``.
        local_only: refuse who is on another machine, or comes through a proxy.
    """

    def __init__(
        self,
        office: Office,
        admission: Admission,
        *,
        trusted_proxies: tuple[Network, ...] = (),
        local_only: bool = True,
    ) -> None:
        self._office, self._admission = office, admission
        self._trusted, self._local_only = trusted_proxies, local_only
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="admin")
        self._waiting = 0

    def close(self) -> None:
        """Wait for what has begun; nothing else begins."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def routes(self) -> tuple[Route, ...]:
        """All paths, none of which needs a caller's key."""
        acts: Mapping[str, Mapping[str, Act]] = {
            "me": {"GET": self._me},
            "tenants": {"GET": self._list_tenants, "POST": self._create_tenant},
            "tenants/": {
                "GET": self._get_tenant,
                "PATCH": self._change_tenant,
                "DELETE": self._close_tenant,
            },
            "keys": {"GET": self._list_keys, "POST": self._create_key},
            "keys/": {
                "GET": self._get_key,
                "PATCH": self._change_key,
                "DELETE": self._revoke_key,
                "POST": self._rotate_key,
            },
            "limits": {"GET": self._list_limits, "POST": self._set_limit},
            "limits/": {"GET": self._get_limit, "DELETE": self._lift_limit},
            "packages": {"GET": self._list_packages},
            "grants": {"POST": self._grant},
            "extras": {"GET": self._list_extras, "POST": self._ask_extra},
            "extras/": {"GET": self._get_extra, "POST": self._decide_extra},
            "prices": {"GET": self._list_books, "POST": self._propose_book},
            "prices/": {"GET": self._get_book, "POST": self._activate_book},
            "audit": {"GET": self._list_records},
        }
        return tuple(
            Route(
                path=ADMIN_PATH + path,
                handlers={method: self._handler(act) for method, act in methods.items()},
                keyed=False,
                body_bytes_max=BODY_BYTES_MAX,
            )
            for path, methods in acts.items()
        )

    def _handler(self, act: Act) -> Handler:
        async def handle(request: Request) -> Response:
            secret = secret_of(request)
            if secret is None:
                raise Unauthorized(
                    "There is no key.", hint="Send `Authorization: Bearer <key with a role>`."
                )
            address = caller_address(request.exchange.peer, request.headers, self._trusted)
            if self._local_only:
                _check_local(request, address)
            status, said = await self._in_thread(
                functools.partial(self._serve, act, request, secret, address)
            )
            return Response(status=status, body=msgspec.json.encode(said), headers=_NO_STORE)

        return handle

    def _serve(self, act: Act, request: Request, secret: bytes, address: Address | None) -> Said:
        return act(self._admission.who(secret, address), request)

    async def _in_thread(self, work: Callable[[], Said]) -> Said:
        if self._waiting >= WAITING_MAX:
            raise CapacityExceeded("Too many people manage the factory at once.", retry_after_s=1)
        self._waiting += 1
        try:
            # What has begun goes on to its end, also where nobody waits for it any more.
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    # Who asks.

    @staticmethod
    def _me(who: Who, request: Request) -> Said:
        _query(request)
        return 200, {
            "kind": who.actor.kind,
            "id": who.actor.id,
            "name": who.actor.name,
            "from": who.actor.source,
            "manages": "the factory" if who.tenant is None else f"tenant:{who.tenant}",
            "engineer": who.engineer,
        }

    # Tenants.

    def _list_tenants(self, who: Who, request: Request) -> Said:
        return 200, _page("tenant", self._office.tenants(who), _query(request))

    def _get_tenant(self, who: Who, request: Request) -> Said:
        return 200, _one("tenant", self._office.tenants(who), _rest(request, "tenants/"))

    def _create_tenant(self, who: Who, request: Request) -> Said:
        return 201, self._office.create_tenant(who, _wish(CreateTenant, request), _asked(request))

    def _change_tenant(self, who: Who, request: Request) -> Said:
        wish = _wish(ChangeTenant, request, tenant=_rest(request, "tenants/"))
        return 200, self._office.change_tenant(who, wish, _asked(request))

    def _close_tenant(self, who: Who, request: Request) -> Said:
        wish = CloseTenant(tenant=_rest(request, "tenants/"))
        return 200, self._office.close_tenant(who, wish, _asked(request))

    # Keys.

    def _list_keys(self, who: Who, request: Request) -> Said:
        query = _query(request, "tenant")
        keys = [key_facts(record) for record in self._office.keys(who)]
        return 200, _page("key", _of(keys, query, "tenant"), query)

    def _get_key(self, who: Who, request: Request) -> Said:
        keys = [key_facts(record) for record in self._office.keys(who)]
        return 200, _one("key", keys, _rest(request, "keys/"))

    def _create_key(self, who: Who, request: Request) -> Said:
        new = self._office.create_key(who, _wish(CreateKey, request), _asked(request))
        limits = [limit_facts(limit) for limit in new.limits]
        status = 200 if new.secret is None else 201
        return status, {"secret": new.secret, **key_facts(new.record), "limits": limits}

    def _change_key(self, who: Who, request: Request) -> Said:
        wish = _wish(ChangeKey, request, key=_rest(request, "keys/"))
        return 200, key_facts(self._office.change_key(who, wish, _asked(request)))

    def _rotate_key(self, who: Who, request: Request) -> Said:
        key, _ = _verb(request, "keys/", "rotate")
        new = self._office.rotate_key(who, _wish(RotateKey, request, key=key), _asked(request))
        return 200, {"secret": new.secret, **key_facts(new.record)}

    def _revoke_key(self, who: Who, request: Request) -> Said:
        wish = RevokeKey(key=_rest(request, "keys/"))
        return 200, key_facts(self._office.revoke_key(who, wish, _asked(request)))

    # Limits.

    def _list_limits(self, who: Who, request: Request) -> Said:
        query = _query(request, "node")
        return 200, _page("limit", _of(self._office.limits(who), query, "node"), query)

    def _get_limit(self, who: Who, request: Request) -> Said:
        return 200, _one("limit", self._office.limits(who), _rest(request, "limits/"))

    def _set_limit(self, who: Who, request: Request) -> Said:
        limit = self._office.set_limit(who, _wish(SetLimit, request), _asked(request))
        return 200, limit_facts(limit)

    def _lift_limit(self, who: Who, request: Request) -> Said:
        wish = msgspec.convert({"limit": _rest(request, "limits/")}, LiftLimit)
        return 200, limit_facts(self._office.lift_limit(who, wish, _asked(request)))

    def _list_packages(self, who: Who, request: Request) -> Said:
        return 200, _page("name", self._office.packages(who), _query(request))

    def _grant(self, who: Who, request: Request) -> Said:
        put = self._office.grant(who, _wish(GrantPackage, request), _asked(request))
        return 200, {"object": "list", "data": [limit_facts(limit) for limit in put]}

    # Extra budget.

    def _list_extras(self, who: Who, request: Request) -> Said:
        query = _query(request, "state")
        extras = [extra_facts(extra) for extra in self._office.extras(who)]
        return 200, _page("extra", _of(extras, query, "state"), query)

    def _get_extra(self, who: Who, request: Request) -> Said:
        extras = [extra_facts(extra) for extra in self._office.extras(who)]
        return 200, _one("extra", extras, _rest(request, "extras/"))

    def _ask_extra(self, who: Who, request: Request) -> Said:
        extra = self._office.ask_extra(who, _wish(AskExtra, request), _asked(request))
        return 201, extra_facts(extra)

    def _decide_extra(self, who: Who, request: Request) -> Said:
        extra, verb = _verb(request, "extras/", "approve", "deny")
        wish = _wish(DecideExtra, request, extra=extra, approve=verb == "approve")
        return 200, extra_facts(self._office.decide_extra(who, wish, _asked(request)))

    # Price books.

    def _list_books(self, who: Who, request: Request) -> Said:
        query, books = _query(request), self._office.books(who)
        rows = [{name: row[name] for name in row if name != "text"} for row in books]
        version = sum(row["version"] is not None for row in books)
        return 200, {"version": version, **_page("book", rows, query)}

    def _get_book(self, who: Who, request: Request) -> Said:
        return 200, _one("book", self._office.books(who), _rest(request, "prices/"))

    def _propose_book(self, who: Who, request: Request) -> Said:
        return 201, self._office.propose_book(who, _wish(ProposeBook, request), _asked(request))

    def _activate_book(self, who: Who, request: Request) -> Said:
        book, _ = _verb(request, "prices/", "activate")
        wish = _wish(ActivateBook, request, book=book)
        return 200, self._office.activate_book(who, wish, _asked(request))

    # The audit log.

    def _list_records(self, who: Who, request: Request) -> Said:
        query = _query(request, "tenant", "action", "by", "outcome")
        limit, after = _limit(query), query.get("after")
        outcome = query.get("outcome")
        if outcome is not None and outcome not in get_args(Outcome):
            raise InvalidRequest(
                f"outcome is {outcome[:80]!r}.", hint=f"Give one of {', '.join(get_args(Outcome))}."
            )
        if after is not None and not (after.isascii() and after.isdecimal() and len(after) < 19):
            raise InvalidRequest(f"after is {after[:80]!r}.", hint="Give the `next` of a page.")
        found = self._office.records(
            who,
            before_seq=None if after is None else int(after),
            limit=limit + 1,
            tenant=query.get("tenant"),
            action=query.get("action"),
            actor=query.get("by"),
            outcome=msgspec.convert(outcome, Outcome | None),
        )
        more = len(found) > limit
        data = [msgspec.to_builtins(record) for record in found[:limit]]
        following = str(found[limit - 1].seq) if more else None
        return 200, {"object": "list", "data": data, "has_more": more, "next": following}


def _check_local(request: Request, address: Address | None) -> None:
    """Refuse whoever is not on this machine, and a proxy that passes on who is not.

    Raises:
        Forbidden: they are elsewhere, or may be.
    """
    peer = address_of(request.exchange.peer)
    near = peer is not None and peer.is_loopback and address is not None and address.is_loopback
    if not near or any(request.get(name) is not None for name in FORWARDED):
        raise Forbidden(
            "The factory can be managed from its own machine alone, and through no proxy.",
            hint='[gateway] admin = "on" opens the admin API to wherever the gateway listens.',
        )


def _wish(kind: type[AnyAction], request: Request, **of_path: object) -> AnyAction:
    """What a body asks for.

    Raises:
        InvalidRequest: it is not what the path takes.
    """
    check_json(request)
    fields = decode_object(request.body or b"{}", "an object")
    for name in ("type", *of_path):
        if name in fields:
            raise InvalidRequest(f"`{name}` is not for the body.", hint="The path says it.")
    try:
        return msgspec.convert(fields | of_path, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"The body is not what this path takes: {error}.", hint="GET /openapi.json shows it."
        ) from error


def _asked(request: Request) -> Asked:
    once = request.get(b"idempotency-key")
    if once is None:
        return Asked(request=request.id)
    word = label_of(b"idempotency-key", once, ONCE_CHARS_MAX)
    return Asked(request=request.id, once=word)


def _rest(request: Request, below: str) -> str:
    return request.path.removeprefix(ADMIN_PATH + below)


def _verb(request: Request, below: str, *verbs: str) -> tuple[str, str]:
    """What a path names, and what is to be done with it.

    Raises:
        NotFound: something else than can be.
    """
    named, _, verb = _rest(request, below).rpartition("/")
    if not named or verb not in verbs:
        raise NotFound(
            f"Nothing can be done by this path but {' or '.join(verbs)}.",
            hint=f"POST {ADMIN_PATH}{below}<id>/{verbs[0]}",
        )
    return named, verb


def _query(request: Request, *names: str) -> dict[str, str]:
    """What a query says; of each name once.

    Raises:
        InvalidRequest: it says more than that.
    """
    known = ("limit", "after", *names)
    pairs = urllib.parse.parse_qsl(
        request.query.decode("latin-1"), keep_blank_values=True, errors="replace"
    )
    found = dict(pairs)
    if len(found) != len(pairs) or not found.keys() <= {*known}:
        raise InvalidRequest(
            "The query names something twice, or what is not known here.",
            hint=f"It may name {', '.join(known)}.",
        )
    return found


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(PAGE_DEFAULT))
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= PAGE_MAX):
        raise InvalidRequest(f"limit is {text[:80]!r}.", hint=f"Give 1 to {PAGE_MAX}.")
    return int(text)


def _of(rows: Sequence[Facts], query: Mapping[str, str], name: str) -> list[Facts]:
    """Rows that have what a query names, if it names it."""
    return [row for row in rows if name not in query or row[name] == query[name]]


def _page(name: str, rows: Sequence[Facts], query: Mapping[str, str]) -> Facts:
    """Rows after one, in the order of their ids."""
    limit, after = _limit(query), query.get("after", "")

    def id_of(row: Facts) -> Any:
        return row[name]

    found = sorted((row for row in rows if id_of(row) > after), key=id_of)
    more = len(found) > limit
    return {
        "object": "list",
        "data": found[:limit],
        "has_more": more,
        "next": id_of(found[limit - 1]) if more else None,
    }


def _one(name: str, rows: Sequence[Facts], wanted: str) -> Facts:
    for row in rows:
        if row[name] == wanted:
            return row
    raise NotFound(f"There is no {name} {wanted[:200]!r} here.", hint="Compare the id.")

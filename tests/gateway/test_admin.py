"""The admin API over a real office: who may do what, what is said, and what is never said."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_limited
from tests.gateway.fake_desk import Caller, FakeClock, FakeDesk
from tests.ledger.ledger_samples import BOOK, NOW, book_text
from tokenworks.catalogue.packages import EXAMPLE, Package, parse_packages
from tokenworks.catalogue.price_book import PriceBook, PriceBooks, parse_price_book
from tokenworks.core.scopes import networks_of
from tokenworks.gateway import admin as admin_module
from tokenworks.gateway.admin import Admin
from tokenworks.gateway.app import Gateway
from tokenworks.ledger.actions import CreateKey
from tokenworks.ledger.audit_log import verify
from tokenworks.ledger.quota_records import KeyRecord, Role
from tokenworks.live import office as office_module
from tokenworks.live.admission import Admission
from tokenworks.live.office import Office, operator
from tokenworks.live.store import SQLStore, sqlite_store

EARLIER = book_text(name="earlier").replace("2026-01-01", "2026-02-01")
LATER = book_text(name="later").replace("2026-01-01", "2026-12-01")


class World:
    """A gateway with the admin API, and a ledger behind it.

    Attributes:
        secrets: of keys by who has them: a factory's administrator, a tenant's, nobody's.
        now_unix_ns: the time.
    """

    def __init__(self, store: SQLStore, **settings: Any) -> None:
        self.store, self.now_unix_ns = store, NOW
        self.office = Office(store, lambda: self.now_unix_ns, packages, lambda: PriceBooks([BOOK]))
        admission = Admission(store, lambda: self.now_unix_ns)
        self.admin = Admin(self.office, admission, **settings)
        self.gateway = Gateway(FakeDesk(), FakeClock(), admin=self.admin)
        self.keys: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        for name, tenant, roles in (
            ("chief", "local", ("factory-admin",)),
            ("eve", "acme", ("admin",)),
            ("bob", "acme", ()),
        ):
            self.make(name, tenant, roles, engineer=name)

    def make(self, name: str, tenant: str, roles: tuple[Role, ...], **more: Any) -> None:
        new = self.office.create_key(operator(), CreateKey(tenant=tenant, roles=roles, **more))
        assert new.secret is not None
        self.keys[name], self.secrets[name] = new.record.key, new.secret

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        by: str = "chief",
        headers: dict[str, str] | None = None,
        peer: str = "127.0.0.1",
    ) -> Caller:
        raw = b"" if body is None else json.dumps(body).encode()
        secret = self.secrets.get(by, by)
        told = {"authorization": f"Bearer {secret}", **(headers or {})}
        caller = Caller(method, f"/admin/v1/{path}", raw, told)
        caller.transport._extra["peername"] = (peer, 1)
        run_limited(caller.call(self.gateway))
        return caller

    def done(self, method: str, path: str, body: object = None, **more: Any) -> Any:
        caller = self.call(method, path, body, **more)
        assert caller.status in (200, 201), caller.received
        assert caller.headers["cache-control"] == "no-store"
        return caller.json

    def refused(self, method: str, path: str, body: object = None, **more: Any) -> tuple[int, str]:
        caller = self.call(method, path, body, **more)
        error = caller.json["error"]
        assert not any(secret in caller.received.decode() for secret in self.secrets.values())
        return caller.status, f"{error['code']}: {error['message']}"


def packages() -> dict[str, Package]:
    return parse_packages(EXAMPLE)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def made(**settings: Any) -> World:
        store = sqlite_store(tmp_path / f"{len(worlds)}.sqlite", "me")
        worlds.append(World(store, **settings))
        return worlds[-1]

    yield made
    for world in worlds:
        world.admin.close()
        world.store.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


def test_a_key_is_made_changed_rotated_and_revoked(world: World) -> None:
    asked = {"tenant": "acme", "engineer": "ada", "from": ["10.0.0.0/8"], "tokens": 5}
    made = world.call("POST", "keys", asked)
    assert made.status == 201
    secret, key = made.json["secret"], made.json["key"]
    assert secret.startswith("tw_")
    assert made.json["limits"][0]["amount"] == 5
    found = world.done("GET", f"keys/{key}")
    assert (found["from"], found["engineer"], found["revoked"]) == (["10.0.0.0/8"], "ada", None)
    changed = world.done("PATCH", f"keys/{key}", {"name": "ci", "from": [], "expires": "30d"})
    assert (changed["name"], changed["from"], changed["engineer"]) == ("ci", [], "ada")
    rotated = world.done("POST", f"keys/{key}/rotate", {"overlap": "1h"})
    assert rotated["secret"] not in (None, secret)
    assert rotated["old_secret_until"] is not None
    assert world.done("POST", f"keys/{key}/rotate")["key"] == key
    assert world.done("DELETE", f"keys/{key}")["revoked"] is not None
    assert world.refused("PATCH", f"keys/{key}", {"name": "x"})[0] == 409
    assert world.refused("POST", f"keys/{key}/rotate")[1].startswith("in_conflict: ")
    text = json.dumps(world.done("GET", "audit"))
    assert secret not in text
    assert rotated["secret"] not in text
    first = world.done("GET", "audit", headers={})["data"][0]
    assert (first["action"], first["by"]["id"]) == ("key.rotate", world.keys["chief"])
    assert (first["by"]["source"], first["request"][:4]) == ("127.0.0.1", "req_")


def test_a_stranger_makes_nobody_read_all_keys(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[str]()
    load_keys = SQLStore.load_keys

    def counted(store: SQLStore) -> list[KeyRecord]:
        read["all"] += 1
        return load_keys(store)

    monkeypatch.setattr(SQLStore, "load_keys", counted)
    assert world.refused("GET", "me", by="tw_nobody")[0] == 401
    assert not read
    world.done("POST", f"keys/{world.keys['eve']}/rotate")
    assert world.done("GET", "me", by="eve")["manages"] == "tenant:acme"  # by the secret of before
    assert read


def test_lists_come_in_pages(world: World) -> None:
    for i in range(5):
        world.done("POST", "keys", {"tenant": "other", "name": f"{i}"})
    seen: list[str] = []
    after = ""
    while True:
        page = world.done("GET", f"keys?limit=3&tenant=other&after={after}")
        seen += [row["key"] for row in page["data"]]
        assert page["has_more"] is (page["next"] is not None)
        if not page["has_more"]:
            break
        after = page["next"]
    assert len(seen) == len(set(seen)) == 5
    assert seen == sorted(seen)
    records = world.done("GET", "audit?limit=3&action=key.create")
    assert [each["seq"] for each in records["data"]] == [8, 7, 6]
    more = world.done("GET", f"audit?limit=9&after={records['next']}&outcome=done")
    assert ([each["seq"] for each in more["data"]], more["has_more"]) == ([5, 4, 3, 2, 1], False)
    assert world.done("GET", f"audit?by={world.keys['eve']}")["data"] == []


@pytest.mark.parametrize(
    "path",
    [
        *("keys?limit=0", "keys?limit=201", "keys?limit=x", "keys?limit=1&limit=2"),
        *("keys?colour=red", "audit?after=x", "audit?outcome=never", "keys?limit=%EF%BC%91"),
    ],
)
def test_a_query_that_cannot_be(world: World, path: str) -> None:
    assert world.refused("GET", path)[0] == 400


def test_limits_packages_and_extra_budget(world: World) -> None:
    ada = "engineer:acme/eve"
    made = world.done("POST", "limits", {"node": ada, "unit": "tokens", "amount": 7})
    name = f"{ada}#tokens-month"
    assert (made["limit"], made["period"]) == (name, "month")
    quoted = name.replace("#", "%23")
    assert world.done("GET", f"limits/{quoted}")["allowed"] == 7
    assert [row["limit"] for row in world.done("GET", f"limits?node={ada}")["data"]] == [name]
    asked = {"limit": name, "amount": 3, "reason": "a demo"}
    extra = world.call("POST", "extras", asked, by="eve")
    assert (extra.status, extra.json["asked_by"]) == (201, ada)
    path = f"extras/{extra.json['extra']}"
    assert world.done("GET", path)["state"] == "asked"
    assert "cannot approve it" in world.refused("POST", f"{path}/approve", by="eve")[1]
    world.make("ann", "acme", ("admin",), engineer="ann")
    assert world.done("POST", f"{path}/approve", by="ann")["state"] == "approved"
    assert world.done("GET", f"limits/{quoted}")["allowed"] == 10
    assert world.refused("POST", f"{path}/deny", by="ann")[0] == 409
    assert len(world.done("GET", "extras?state=approved")["data"]) == 1
    assert world.done("GET", "packages")["data"][0]["name"] in packages()
    granted = world.done("POST", "grants", {"node": ada, "package": "pro"})
    assert {limit["package"] for limit in granted["data"]} == {"pro"}
    assert world.refused("DELETE", f"limits/{quoted}x")[0] == 404
    held = granted["data"][0]["limit"].replace("#", "%23")
    assert world.refused("DELETE", f"limits/{held}", by="eve")[0] == 403
    assert world.done("DELETE", f"limits/{held}")["package"] == "pro"


def test_tenants_are_made_renamed_and_closed(world: World) -> None:
    made = world.call("POST", "tenants", {"tenant": "new", "name": "New Inc."})
    assert (made.status, made.json["closed"]) == (201, None)
    assert world.refused("POST", "tenants", {"tenant": "new"})[0] == 409
    assert world.refused("POST", "tenants", {"tenant": "acme"})[0] == 409
    assert world.refused("POST", "tenants", {"tenant": "two words"})[0] == 400
    names = [row["tenant"] for row in world.done("GET", "tenants")["data"]]
    assert names == ["acme", "local", "new"]
    assert world.done("PATCH", "tenants/acme", {"name": "Acme"})["name"] == "Acme"
    assert world.done("PATCH", "tenants/acme", {"name": "Acme"})["name"] == "Acme"
    assert world.done("GET", "tenants/acme", by="eve")["name"] == "Acme"
    assert world.refused("PATCH", "tenants/acme", {"name": "Evil"}, by="eve")[0] == 403
    assert world.refused("DELETE", "tenants/local")[0] == 409
    assert world.done("DELETE", "tenants/acme")["closed"] is not None
    assert world.done("DELETE", "tenants/acme")["closed"] is not None
    assert world.refused("GET", "me", by="eve")[0] == 401
    assert "is closed" in world.refused("POST", "keys", {"tenant": "acme"})[1]
    (record, *_) = world.done("GET", "audit?action=tenant.close")["data"]
    assert sorted(record["after"]["revoked"]) == sorted([world.keys["eve"], world.keys["bob"]])


def test_a_price_book_is_read_while_the_ledger_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def reading(text: str) -> PriceBook:
        read.append(world.store._in_change)
        return parse_price_book(text)

    monkeypatch.setattr(office_module, "parse_price_book", reading)
    assert world.call("POST", "prices", {"text": LATER}).status == 201
    assert read == [False]
    slow = "a." * 100_000 + "b = 1"
    assert "a line of more than" in world.refused("POST", "prices", {"text": slow})[1]
    assert world.refused("POST", "prices", {"text": LATER}, by="eve")[0] == 403
    assert read == [False], "nothing is read for who may not"
    first, second = world.done("GET", "audit?limit=2")["data"]
    assert (first["outcome"], second["outcome"]) == ("refused", "refused")


def test_price_books_are_proposed_and_put_into_force(world: World) -> None:
    before = world.done("GET", "prices")
    assert (before["version"], [row["in_force"] for row in before["data"]]) == (0, [True])
    later = parse_price_book(LATER)
    proposed = world.call("POST", "prices", {"text": LATER})
    assert (proposed.status, proposed.json["book"]) == (201, later.price_id)
    assert proposed.json["effective"] == "2026-12-01"
    assert world.done("POST", "prices", {"text": LATER})["book"] == later.price_id
    path = f"prices/{later.price_id}"
    assert world.done("GET", path)["text"] == LATER
    assert world.refused("POST", f"{path}/activate", {"version": 3})[0] == 409
    done = world.done("POST", f"{path}/activate", {"version": 0})
    assert done == {"book": later.price_id, "effective": "2026-12-01", "version": 1}
    again = world.refused("POST", f"{path}/activate", {"version": 1})  # its answer was lost, say
    assert again[0] == 409
    assert "already" in again[1]
    rival = world.done("POST", "prices", {"text": LATER.replace("later", "rival")})
    refused = world.refused("POST", f"prices/{rival['book']}/activate", {"version": 1})
    assert "holds from 2026-12-01" in refused[1]
    after = world.done("GET", "prices")
    assert (after["version"], "text" in after["data"][0]) == (1, False)
    assert world.store.activated_books() == [LATER]
    world.now_unix_ns = NOW + 100 * 86_400 * 10**9
    assert world.done("GET", path)["in_force"] is True
    past = world.done("POST", "prices", {"text": EARLIER})["book"]
    refused = world.refused("POST", f"prices/{past}/activate", {"version": 1})
    assert "is in force" in refused[1]
    assert world.refused("POST", "prices/none/activate", {"version": 1})[0] == 404
    assert world.refused("POST", "prices", {"text": "name ="})[0] == 400


def test_a_tenants_administrator_sees_and_manages_their_tenant_alone(world: World) -> None:
    theirs = world.done("POST", "keys", {"tenant": "other"})["key"]
    world.done("POST", "limits", {"node": "tenant:acme", "unit": "tokens", "amount": 7})
    world.done("POST", "limits", {"node": "tenant:other", "unit": "tokens", "amount": 7})
    me = world.done("GET", "me", by="eve")
    assert (me["manages"], me["engineer"]) == ("tenant:acme", "engineer:acme/eve")
    assert world.done("GET", "me")["manages"] == "the factory"
    assert {row["tenant"] for row in world.done("GET", "keys", by="eve")["data"]} == {"acme"}
    assert [row["tenant"] for row in world.done("GET", "tenants", by="eve")["data"]] == ["acme"]
    assert [row["node"] for row in world.done("GET", "limits", by="eve")["data"]] == ["tenant:acme"]
    for method, path, body in (
        ("GET", f"keys/{theirs}", None),
        ("PATCH", f"keys/{theirs}", {"name": "mine"}),
        ("DELETE", f"keys/{theirs}", None),
        ("POST", f"keys/{theirs}/rotate", None),
        ("POST", "keys", {"tenant": "other"}),
        ("GET", "tenants/other", None),
        ("PATCH", "tenants/other", {"name": "mine"}),
        ("POST", "limits", {"node": "tenant:other", "unit": "tokens", "amount": 9}),
        ("DELETE", "limits/tenant:other%23tokens-month", None),
    ):
        assert world.refused(method, path, body, by="eve")[0] == 404, path
    for method, path, body in (
        ("POST", "keys", {"tenant": "acme", "roles": ["factory-admin"]}),
        ("POST", "tenants", {"tenant": "mine"}),
        ("DELETE", "tenants/acme", None),
        ("POST", "limits", {"node": "tenant:acme", "unit": "tokens", "amount": 9}),
        ("POST", "grants", {"node": "engineer:acme/eve", "package": "pro"}),
        ("GET", "packages", None),
        ("GET", "prices", None),
        ("POST", "prices", {"text": LATER}),
        ("POST", "prices/x/activate", {"version": 0}),
    ):
        assert world.refused(method, path, body, by="eve")[0] == 403, path
    assert world.done("POST", "keys", {"tenant": "acme", "roles": ["admin"]}, by="eve")["roles"]
    assert verify(world.store.audit_payloads()).seq > 0


def test_a_tenants_log_does_not_tell_who_acts_for_the_factory(world: World) -> None:
    world.done("PATCH", f"keys/{world.keys['bob']}", {"name": "b"})
    world.done("PATCH", f"keys/{world.keys['bob']}", {"name": "c"}, by="eve")
    mine, factory, *_ = world.done("GET", "audit", by="eve")["data"]
    assert (mine["by"]["id"], mine["by"]["source"]) == (world.keys["eve"], "127.0.0.1")
    assert (factory["by"]["id"], factory["by"]["source"]) == ("the factory", None)
    assert factory["after"]["name"] == "b"
    assert world.done("GET", "audit?tenant=local", by="eve")["data"] == []
    every = world.done("GET", "audit", by="eve")["data"]
    assert {each["tenant"] for each in every} == {"acme"}


def test_who_has_no_role_or_no_key_manages_nothing(world: World) -> None:
    assert world.refused("GET", "keys", by="bob")[0] == 403
    assert world.refused("GET", "keys", by="tw_unknown")[0] == 401
    caller = world.call("GET", "keys", headers={"authorization": "Basic x"})
    assert (caller.status, caller.headers["www-authenticate"]) == (401, "Bearer")
    world.done("DELETE", f"keys/{world.keys['eve']}")
    assert world.refused("GET", "keys", by="eve")[0] == 401


def test_a_key_manages_until_its_time_and_from_its_place(make: Callable[..., World]) -> None:
    world = make(local_only=False, trusted_proxies=networks_of(["192.0.2.1"], "proxies"))
    world.make("far", "acme", ("admin",), networks=("10.0.0.0/8",), expires="1h")
    told = {"x-forwarded-for": "10.1.2.3"}
    assert world.done("GET", "me", by="far", peer="10.0.0.9")["from"] == "10.0.0.9"
    assert world.done("GET", "me", by="far", peer="192.0.2.1", headers=told)["from"] == "10.1.2.3"
    assert world.refused("GET", "me", by="far", peer="192.0.2.2", headers=told)[0] == 403
    old = world.secrets["far"]
    new = world.done(
        "POST", f"keys/{world.keys['far']}/rotate", {"overlap": "30m"}, by="far", peer="10.0.0.9"
    )
    assert world.done("GET", "me", by=old, peer="10.0.0.9")["id"] == world.keys["far"]
    world.now_unix_ns += 45 * 60 * 10**9
    assert "was replaced" in world.refused("GET", "me", by=old, peer="10.0.0.9")[1]
    assert world.done("GET", "me", by=new["secret"], peer="10.0.0.9")
    world.now_unix_ns += 45 * 60 * 10**9
    assert "has expired" in world.refused("GET", "me", by=new["secret"], peer="10.0.0.9")[1]


def test_from_this_machine_alone_means_through_no_proxy(world: World) -> None:
    assert world.refused("GET", "me", peer="10.0.0.1")[0] == 403
    for name in ("x-forwarded-for", "forwarded", "via", "x-real-ip"):
        assert world.refused("GET", "me", headers={name: "127.0.0.1"})[0] == 403
    assert world.done("GET", "me", peer="::1")["kind"] == "key"


def test_two_creations_with_the_same_word_are_one(world: World) -> None:
    word = {"idempotency-key": "9f1c"}
    asked = {"tenant": "acme", "secret": "brought along"}
    first = world.call("POST", "keys", asked, headers=word)
    again = world.call("POST", "keys", asked, headers=word)
    assert (first.status, again.status) == (201, 200)
    assert again.json["secret"] is None
    assert again.json["key"] == first.json["key"]
    other = world.refused("POST", "keys", {"tenant": "other"}, headers=word)
    assert other[0] == 409
    assert "Idempotency-Key" in other[1]
    assert world.call("POST", "keys", {"tenant": "acme"}, by="eve", headers=word).status == 201
    for path, body, by in (
        ("tenants", {"tenant": "new"}, "chief"),
        ("extras", {"limit": "team:acme/x#tokens-month", "amount": 1, "reason": "r"}, "eve"),
    ):
        if path == "extras":
            limit = {"node": "team:acme/x", "unit": "tokens", "amount": 1}
            world.done("POST", "limits", limit)
        told = {"idempotency-key": path}
        results = [world.done("POST", path, body, by=by, headers=told) for _ in range(2)]
        assert results[0] == results[1]
    assert world.refused("POST", "keys", asked, headers={"idempotency-key": "x" * 256})[0] == 400
    world.now_unix_ns += 8 * 86_400 * 10**9
    assert world.call("POST", "keys", {"tenant": "acme"}, headers={"idempotency-key": "z"})
    forgotten = world.call("POST", "keys", {"tenant": "acme"}, headers=word)
    assert forgotten.status == 201


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "keys", {}),
        ("POST", "keys", {"tenant": "acme", "colour": "red"}),
        ("POST", "keys", {"tenant": "acme", "type": "key.create"}),
        ("POST", "keys", {"tenant": 5}),
        ("POST", "keys", ["tenant"]),
        ("POST", "limits", {"node": "acme", "unit": "tokens", "amount": 1}),
        ("POST", "limits", {"node": "tenant:acme", "unit": "tokens", "amount": -1}),
        ("POST", "limits", {"node": "tenant:acme", "unit": "tokens", "amount": 1 << 70}),
        ("PATCH", "keys/x", {"key": "y"}),
    ],
)
def test_a_body_that_cannot_be(world: World, method: str, path: str, body: object) -> None:
    assert world.refused(method, path, body)[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "nothing", 404),
        ("PUT", "keys", 405),
        ("POST", "keys/x/burn", 404),
        ("POST", "keys/rotate", 404),
        ("POST", "extras/x/forget", 404),
        ("GET", "keys/x", 404),
        ("POST", "me", 405),
    ],
)
def test_a_path_that_is_not_there(world: World, method: str, path: str, status: int) -> None:
    assert world.refused(method, path)[0] == status


def test_a_body_that_is_too_large_is_not_read(world: World) -> None:
    large = {"text": "x" * admin_module.BODY_BYTES_MAX}
    assert world.refused("POST", "prices", large)[0] == 413


def test_only_so_many_may_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "WAITING_MAX", 0)
    caller = world.call("GET", "me")
    assert (caller.status, caller.headers["retry-after"]) == (429, "1")


def test_what_is_used_of_limits_is_read_before_a_change_begins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that appends holds what it takes, and waits for whoever is changing something."""
    read = world.store.limit_states

    def seen(*given: Any) -> Any:
        assert not world.store._in_change
        return read(*given)

    monkeypatch.setattr(world.store, "limit_states", seen)
    node = {"node": "engineer:acme/eve"}
    world.done("POST", "limits", {**node, "unit": "tokens", "amount": 7})
    world.done("POST", "grants", {**node, "package": "pro"})


def test_a_factory_goes_on_serving_tokens_while_the_ledger_makes_managers_wait(
    world: World,
) -> None:
    holds, release = threading.Event(), threading.Event()
    held = threading.Thread(target=hold, args=(world.store, holds, release))
    held.start()
    try:
        assert holds.wait(60)

        async def both() -> tuple[Caller, Caller]:
            manager = Caller("GET", "/admin/v1/me", headers=told(world))
            manager.transport._extra["peername"] = ("127.0.0.1", 1)
            manager.begin(world.gateway)
            other = Caller("GET", "/healthz")
            other.begin(world.gateway)
            await answered(world.gateway, other)
            assert not manager.received
            release.set()
            await answered(world.gateway, manager)
            return manager, other

        manager, other = run_limited(both())
    finally:
        release.set()
        held.join()
    assert (manager.status, other.status) == (200, 200)


async def answered(gateway: Gateway, caller: Caller) -> None:
    while not caller.received:
        await asyncio.wait(gateway.serving.values(), return_when=asyncio.FIRST_COMPLETED)


def told(world: World) -> dict[str, str]:
    return {"authorization": f"Bearer {world.secrets['chief']}"}


def hold(store: SQLStore, holds: threading.Event, release: threading.Event) -> None:
    with store._other_lock:
        holds.set()
        release.wait(60)


def test_where_requests_are_passed_on_these_are_not(world: World) -> None:
    world.gateway = Gateway(FakeDesk(), FakeClock(), admin=world.admin, passes_on=True)
    assert world.done("GET", f"keys/{world.keys['bob']}")["key"] == world.keys["bob"]
    assert world.done("GET", "me")["kind"] == "key"

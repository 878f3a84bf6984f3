"""The office: every change of tenants, keys, limits and prices, authorised and written down.

The command line and the admin API both come here. A change and its record in the audit log are one
durable step; what is refused is written down, too.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import pwd
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from tokenworks.catalogue.packages import Package
from tokenworks.catalogue.price_book import PriceBook, PriceBooks, parse_price_book
from tokenworks.catalogue.price_check import check_books
from tokenworks.core.errors import ConfigInvalid, Conflict, InvalidRequest, NotFound
from tokenworks.core.ids import LimitID, TenantID
from tokenworks.core.needs import checked_words
from tokenworks.core.slo import Tier
from tokenworks.ledger.actions import (
    NAME_CHARS_MAX,
    REASON_CHARS_MAX,
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
    kind_of,
)
from tokenworks.ledger.audit_log import Actor, AuditRecord, Facts, Outcome
from tokenworks.ledger.authority import Who, prove_engineer
from tokenworks.ledger.dates import parse_span, time_text
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.facts import (
    TenantRecord,
    extra_facts,
    key_facts,
    limit_facts,
    state_facts,
    tenant_facts,
)
from tokenworks.ledger.grants import (
    decide,
    granted,
    new_limit,
    parse_node,
    parse_person,
    tenant_of,
)
from tokenworks.ledger.office_port import NOT_SAID, Asked, NewKey, RotatedKey
from tokenworks.ledger.quota_records import UNIX_NS_MAX, KeyRecord, Limit, NodeID
from tokenworks.ledger.quotas import window_start
from tokenworks.live.key_making import (
    check_amount,
    check_text,
    checked_scopes,
    digest_of,
    make_key,
    new_secret,
    put_new_key,
)
from tokenworks.live.settings_store import Note
from tokenworks.live.store import SQLStore

NEVER: Final = "never"
"""What a key's ``expires`` is changed to where it is to end no more."""

OWN_TENANT: Final = "local"
"""Whose the keys are that a factory makes for itself."""

BOOK_LINE_CHARS_MAX: Final = 4_000
"""Of a price book that is proposed: a key of 100,000 parts (``a.a.a``) is read for minutes."""

NOT_TOLD: Final = "the factory"
"""Who acts for the factory, as its tenants see it."""


def operator(source: str = "command line") -> Who:
    """Whoever runs this process: they hold the ledger's file, and so may do everything."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    return Who(actor=Actor(kind="operator", id=name, source=source), tenant=None)


class Office:
    """The office of one store; a ``ledger.office_port.Office``.

    What is used of limits is read before a change begins: that waits for the thread that appends,
    which waits in its turn for whoever is changing something.

    Args:
        store: where all of it is kept.
        unix_ns: says what time it is.
        packages: reads the packages that can be granted.
        books: reads the price books that are in the factory's folder.
    """

    def __init__(
        self,
        store: SQLStore,
        unix_ns: Callable[[], int],
        packages: Callable[[], Mapping[str, Package]],
        books: Callable[[], PriceBooks],
    ) -> None:
        self.store = store
        self._unix_ns = unix_ns
        self._packages = packages
        self._books = books

    # Tenants.

    def create_tenant(self, who: Who, wish: CreateTenant, asked: Asked = NOT_SAID) -> Facts:
        """See ``Office``."""
        with self._change(who, wish, wish.tenant, asked) as note:
            who.check_factory("make tenants")
            parse_node(f"tenant:{wish.tenant}")
            made = self._made_before(who, wish, asked)
            known = {each.tenant: each for each in self._tenants(self.store.load_keys())}
            if made is not None:
                note.unchanged = True
                return tenant_facts(known[TenantID(made)])
            if wish.tenant in known:
                raise Conflict(f"There is a tenant {wish.tenant!r}.", hint="Take another id.")
            record = TenantRecord(
                tenant=TenantID(wish.tenant),
                name=check_text("name", wish.name, NAME_CHARS_MAX),
                created_unix_ns=self._unix_ns(),
            )
            self.store.put_tenant(record)
            self._keep_creation(who, wish, asked, wish.tenant)
            note.tenant, note.after = record.tenant, tenant_facts(record)
        return tenant_facts(record)

    def change_tenant(self, who: Who, wish: ChangeTenant, asked: Asked = NOT_SAID) -> Facts:
        """See ``Office``."""
        with self._change(who, wish, wish.tenant, asked) as note:
            record = self._tenant(who, wish.tenant, note, self.store.load_keys())
            name = check_text("name", wish.name, NAME_CHARS_MAX)
            record = msgspec.structs.replace(record, name=name)
            note.after = tenant_facts(record)
            note.unchanged = note.after == note.before
            if not note.unchanged:
                self.store.put_tenant(record)
        return tenant_facts(record)

    def close_tenant(self, who: Who, wish: CloseTenant, asked: Asked = NOT_SAID) -> Facts:
        """See ``Office``."""
        with self._change(who, wish, wish.tenant, asked) as note:
            keys, unix_ns = self.store.load_keys(), self._unix_ns()
            record = self._tenant(who, wish.tenant, note, keys)
            if record.tenant == OWN_TENANT:
                raise Conflict(
                    f"The tenant {OWN_TENANT!r} is the factory's own.", hint="Revoke its keys."
                )
            open_keys = [
                each.key
                for each in keys
                if each.tenant == record.tenant and each.revoked_unix_ns is None
            ]
            if record.closed_unix_ns is not None:
                note.unchanged = True
                return tenant_facts(record)
            for key in open_keys:
                self.store.revoke_key(key, unix_ns)
            record = msgspec.structs.replace(record, closed_unix_ns=unix_ns)
            self.store.put_tenant(record)
            note.after = {**tenant_facts(record), "revoked": [*open_keys]}
        return tenant_facts(record)

    def _tenants(self, keys: Sequence[KeyRecord]) -> list[TenantRecord]:
        """Those that were made, and those that keys name."""
        found = {record.tenant: record for record in self.store.load_tenants()}
        for key in keys:
            known = found.get(key.tenant)
            first = key.created_unix_ns
            if known is None:
                found[key.tenant] = TenantRecord(tenant=key.tenant, name="", created_unix_ns=first)
        return [found[tenant] for tenant in sorted(found)]

    def _check_open(self, tenants: Collection[TenantID]) -> None:
        """Refuse keys for tenants that are closed.

        Raises:
            Conflict: one is.
        """
        for each in self.store.load_tenants():
            if each.closed_unix_ns is not None and each.tenant in tenants:
                raise Conflict(f"The tenant {str(each.tenant)!r} is closed.", hint="Make another.")

    def _tenant(self, who: Who, tenant: str, note: Note, keys: Sequence[KeyRecord]) -> TenantRecord:
        for record in self._tenants(keys):
            if record.tenant == tenant and who.tenant in (None, tenant):
                who.check_factory("change tenants")
                note.tenant, note.before = record.tenant, tenant_facts(record)
                return record
        raise NotFound(f"There is no tenant {tenant!r} here.", hint="Compare the id.")

    # Keys.

    def create_key(self, who: Who, wish: CreateKey, asked: Asked = NOT_SAID) -> NewKey:
        """See ``Office``."""
        with self._change(who, wish, None, asked) as note:
            who.check_tenant(wish.tenant, f"tenant {wish.tenant!r}")
            made = self._made_before(who, wish, asked)
            if made is not None:
                note.unchanged = True
                return NewKey(secret=None, record=self._key(who, made))
            new = make_key(wish, self._unix_ns())
            who.check_key(new.record)
            self._check_open({new.record.tenant})
            put_new_key(self.store, new)
            self._keep_creation(who, wish, asked, new.record.key)
            note.subject, note.tenant = new.record.key, wish.tenant
            note.after = key_facts(new.record) | {"limits": [*map(limit_facts, new.limits)]}
        return new

    def change_key(self, who: Who, wish: ChangeKey, asked: Asked = NOT_SAID) -> KeyRecord:
        """See ``Office``."""
        with self._change(who, wish, wish.key, asked) as note:
            record = self._open_key(who, wish.key, note)
            changed = self._changed(record, wish)
            who.check_key(changed)
            note.after = key_facts(changed)
            note.unchanged = changed == record
            if not note.unchanged:
                self.store.put_key(changed)
        return changed

    def _changed(self, record: KeyRecord, wish: ChangeKey) -> KeyRecord:
        if wish.roles and not record.roles:
            raise InvalidRequest(
                f"The key {str(record.key)!r} gets no role: its secret may not be made here.",
                hint="Make a key with the role.",
            )
        tier: Tier = record.tier_default if wish.tier is None else wish.tier
        scopes = checked_scopes(
            self._unix_ns(),
            tier,
            models=record.models if wish.models is None else wish.models,
            tiers=record.tiers if wish.tiers is None else wish.tiers,
            networks=record.networks if wish.networks is None else wish.networks,
            expires=None if wish.expires == NEVER else wish.expires,
        )
        if wish.expires is None:
            scopes = msgspec.structs.replace(scopes, expires_unix_ns=record.expires_unix_ns)
        return msgspec.structs.replace(
            record,
            name=record.name
            if wish.name is None
            else check_text("name", wish.name, NAME_CHARS_MAX),
            tier_default=tier,
            labels=record.labels if wish.labels is None else checked_words(wish.labels, "labels"),
            roles=record.roles if wish.roles is None else tuple(sorted(set(wish.roles))),
            **msgspec.structs.asdict(scopes),
        )

    def rotate_key(self, who: Who, wish: RotateKey, asked: Asked = NOT_SAID) -> RotatedKey:
        """See ``Office``."""
        with self._change(who, wish, wish.key, asked) as note:
            record = self._open_key(who, wish.key, note)
            until_unix_ns = self._unix_ns() + parse_span(wish.overlap, "overlap")
            if until_unix_ns > UNIX_NS_MAX:
                raise InvalidRequest(
                    f"overlap is {wish.overlap!r}, which is too long.", hint="Such as 24h."
                )
            secret = new_secret()
            now = msgspec.structs.replace(
                record,
                secret_sha256=digest_of(secret),
                old_secret_sha256=record.secret_sha256,
                old_until_unix_ns=until_unix_ns,
            )
            self.store.rotate_key(now.key, now.secret_sha256, until_unix_ns)
            note.after = key_facts(now)
        return RotatedKey(secret=secret, record=now, before=record)

    def revoke_key(self, who: Who, wish: RevokeKey, asked: Asked = NOT_SAID) -> KeyRecord:
        """See ``Office``."""
        with self._change(who, wish, wish.key, asked) as note:
            record, unix_ns = self._key(who, wish.key), self._unix_ns()
            who.check_rank(record)
            note.tenant, note.before = record.tenant, key_facts(record)
            note.unchanged = record.revoked_unix_ns is not None
            if not note.unchanged:
                self.store.revoke_key(record.key, unix_ns)
                record = msgspec.structs.replace(record, revoked_unix_ns=unix_ns)
            note.after = key_facts(record)
        return record

    def import_keys(
        self, who: Who, source: str, records: Sequence[KeyRecord], limits: Sequence[Limit]
    ) -> None:
        """Put keys that another gateway had, with their limits.

        Raises:
            Conflict: a tenant of theirs is closed.
            Forbidden: they are not the whole factory's administrator.
        """
        record = self._record(who, "key.import", source, None)
        with self.store.audited(record) as note:
            who.check_factory("import keys")
            tenants = {each.tenant for each in records}
            self._check_open(tenants)
            if len(tenants) == 1:
                (note.tenant,) = tenants
            for limit in limits:  # first, so that no key goes without
                self.store.put_limit(limit)
            for each in records:
                self.store.put_key(each)
            note.after = {
                "keys": [each.key for each in records],
                "limits": [each.limit for each in limits],
            }

    # Limits.

    def set_limit(self, who: Who, wish: SetLimit, asked: Asked = NOT_SAID) -> Limit:
        """See ``Office``."""
        unix_ns = self._unix_ns()
        states = self.store.limit_states(unix_ns)
        with self._change(who, wish, wish.node, asked) as note:
            node, keys = parse_node(wish.node), self.store.load_keys()
            limit = new_limit(
                node,
                wish.unit,
                wish.period,
                check_amount("amount", wish.amount),
                unix_ns=unix_ns,
                tier=wish.tier,
                carry_over_max=check_amount("carry_over_max", wish.carry_over_max),
                before=states,
            )
            before = self._find_limit(limit.limit)
            who.check_limit(before, node, keys)
            note.subject, note.tenant = limit.limit, tenant_of(node, keys)
            note.before = None if before is None else limit_facts(before)
            note.after = limit_facts(limit)
            self.store.put_limit(limit)
        return limit

    def lift_limit(self, who: Who, wish: LiftLimit, asked: Asked = NOT_SAID) -> Limit:
        """See ``Office``."""
        with self._change(who, wish, wish.limit, asked) as note:
            keys = self.store.load_keys()
            limit = self._limit(who, wish.limit, keys)
            who.check_limit(limit, limit.node, keys)
            note.tenant, note.before = tenant_of(limit.node, keys), limit_facts(limit)
            self.store.remove_limit(limit.limit)
        return limit

    def grant(self, who: Who, wish: GrantPackage, asked: Asked = NOT_SAID) -> list[Limit]:
        """See ``Office``."""
        unix_ns = self._unix_ns()
        states = self.store.limit_states(unix_ns)
        with self._change(who, wish, wish.node, asked) as note:
            who.check_factory("grant packages")
            node, packages = parse_node(wish.node), self._packages()
            if wish.package not in packages:
                known = ", ".join(packages) or "none; `quota packages --example` prints some"
                raise NotFound(f"There is no package {wish.package!r}.", hint=f"Packages: {known}.")
            put, gone = granted(node, packages[wish.package], states, unix_ns)
            note.tenant = tenant_of(node, self.store.load_keys())
            note.after = {
                "package": wish.package,
                "limits": [*map(limit_facts, put)],
                "lifted": [*gone],
            }
            for limit in put:
                self.store.put_limit(limit)
            for name in gone:
                self.store.remove_limit(name)
        return put

    # Extra budget.

    def ask_extra(self, who: Who, wish: AskExtra, asked: Asked = NOT_SAID) -> Extra:
        """See ``Office``."""
        with self._change(who, wish, wish.limit, asked) as note:
            keys, unix_ns = self.store.load_keys(), self._unix_ns()
            made = self._made_before(who, wish, asked)
            if made is not None:
                note.unchanged = True
                return self._extra(who, made, keys)
            limit = self._limit(who, wish.limit, keys)
            note.tenant = tenant_of(limit.node, keys)
            extra = Extra(
                extra=f"extra_{secrets.token_hex(4)}",
                limit=limit.limit,
                start_unix_ns=window_start(limit.period, unix_ns),
                amount=check_amount("amount", wish.amount),
                reason=check_text("reason", wish.reason, REASON_CHARS_MAX),
                asked_by=parse_person(prove_engineer(who, wish.by), keys),
                state="asked",
                decided_by=None,
                at_unix_ns=unix_ns,
            )
            note.subject, note.after = extra.extra, extra_facts(extra)
            self.store.put_extra(extra)
            self._keep_creation(who, wish, asked, extra.extra)
        return extra

    def decide_extra(self, who: Who, wish: DecideExtra, asked: Asked = NOT_SAID) -> Extra:
        """See ``Office``."""
        with self._change(who, wish, wish.extra, asked) as note:
            keys, unix_ns = self.store.load_keys(), self._unix_ns()
            extra = self._extra(who, wish.extra, keys)
            note.tenant, note.before = tenant_of(_node_of(extra), keys), extra_facts(extra)
            if wish.approve:
                who.check_limit(self._find_limit(extra.limit), _node_of(extra), keys)
            by = parse_person(prove_engineer(who, wish.by), keys)
            decided = self.store.decide_extra(
                extra.extra,
                functools.partial(decide, approve=wish.approve, by=by, unix_ns=unix_ns),
            )
            assert decided is not None, "nobody else writes meanwhile"
            note.after = extra_facts(decided)
        return decided

    # Price books.

    def propose_book(self, who: Who, wish: ProposeBook, asked: Asked = NOT_SAID) -> Facts:
        """See ``Office``."""
        # Read before the change begins, for whose length the ledger is not written; and only
        # for those who may.
        book = _read_book(wish.text) if who.tenant is None else None
        with self._change(who, wish, None, asked) as note:
            who.check_factory("propose prices")
            assert book is not None
            if isinstance(book, InvalidRequest):
                raise book
            note.subject = book.price_id
            unix_ns = self._unix_ns()
            found = check_books([*self._in_force().all(), book], {}, _day(unix_ns))
            facts: Facts = {
                "book": book.price_id,
                "effective": book.effective.isoformat(),
                "findings": [
                    {"level": each.level, "message": each.message}
                    for each in found
                    if each.book == book.price_id
                ],
            }
            known = {price_id for price_id, _, _ in self.store.proposed_books()}
            note.unchanged, note.after = book.price_id in known, facts
            if not note.unchanged:
                self.store.propose_book(book.price_id, book.text, unix_ns)
        return facts

    def activate_book(self, who: Who, wish: ActivateBook, asked: Asked = NOT_SAID) -> Facts:
        """See ``Office``."""
        with self._change(who, wish, wish.book, asked) as note:
            who.check_factory("put prices into force")
            texts = {price_id: text for price_id, text, _ in self.store.proposed_books()}
            if wish.book not in texts:
                raise NotFound(f"Nobody has proposed {wish.book!r}.", hint="Propose it first.")
            book, unix_ns = parse_price_book(texts[wish.book]), self._unix_ns()
            current = self._in_force().at(unix_ns)
            if book.effective < current.effective:
                raise Conflict(
                    f"{wish.book!r} holds from {book.effective}, before {current.price_id!r}, "
                    "which is in force.",
                    hint="Propose it with a later day.",
                )
            booked = self._in_force().all()
            if any(book.price_id == each.price_id for each in booked):
                raise Conflict(
                    f"{wish.book!r} has been put into force already, from {book.effective} on.",
                    hint="There is nothing to do.",
                )
            if any(book.effective == each.effective for each in booked):
                raise Conflict(
                    f"Another price book holds from {book.effective}.",
                    hint="Propose it with another day.",
                )
            if not self.store.activate_book(book.price_id, wish.version, unix_ns):
                raise Conflict(
                    f"{wish.version} price books were seen in force here; there are others.",
                    hint="Look again, then decide.",
                )
            facts: Facts = {
                "book": book.price_id,
                "effective": book.effective.isoformat(),
                "version": wish.version + 1,
            }
            note.before, note.after = {"book": current.price_id}, facts
        return facts

    def _in_force(self) -> PriceBooks:
        """As the factory has them, which leaves out what cannot be read any more, and logs it."""
        return self._books().with_readable(self.store.activated_books())[0]

    # What is there, as far as they manage it.

    def _key(self, who: Who, key: str) -> KeyRecord:
        for record in self.store.load_keys():
            if record.key == key and who.tenant in (None, record.tenant):
                return record
        raise NotFound(
            f"There is no key {key!r} here.", hint="`tokenworks key list` shows the ids."
        )

    def _open_key(self, who: Who, key: str, note: Note) -> KeyRecord:
        """A key that they may change, which is noted as it is."""
        record = self._key(who, key)
        who.check_key(record)
        note.tenant, note.before = record.tenant, key_facts(record)
        if record.revoked_unix_ns is not None:
            raise Conflict(f"The key {key!r} is revoked.", hint="Make another key.")
        return record

    def _limit(self, who: Who, name: LimitID, keys: Sequence[KeyRecord]) -> Limit:
        limit = self._find_limit(name)
        if limit is None or not who.manages(limit.node, keys):
            raise NotFound(
                f"There is no limit {name!r} here.",
                hint="`tokenworks quota list` shows their names.",
            )
        return limit

    def _find_limit(self, name: LimitID) -> Limit | None:
        return next((each for each in self.store.load_limits() if each.limit == name), None)

    def _extra(self, who: Who, name: str, keys: Sequence[KeyRecord]) -> Extra:
        for extra in self.store.load_extras():
            if extra.extra == name and who.manages(_node_of(extra), keys):
                return extra
        raise NotFound(
            f"Nobody asked for {name!r} here.", hint="`tokenworks quota list` shows who did."
        )

    # For people to look at.

    def tenants(self, who: Who) -> list[Facts]:
        """See ``Office``."""
        return [
            tenant_facts(each)
            for each in self._tenants(self.store.load_keys())
            if who.tenant in (None, each.tenant)
        ]

    def keys(self, who: Who) -> list[KeyRecord]:
        """See ``Office``."""
        return [each for each in self.store.load_keys() if who.tenant in (None, each.tenant)]

    def limits(self, who: Who) -> list[Facts]:
        """See ``Office``."""
        keys = self.store.load_keys()
        return [
            state_facts(state)
            for state in self.store.limit_states(self._unix_ns())
            if who.manages(state.limit.node, keys)
        ]

    def packages(self, who: Who) -> list[Facts]:
        """See ``Office``."""
        who.check_factory("look at packages")
        return [msgspec.to_builtins(each) for each in self._packages().values()]

    def extras(self, who: Who) -> list[Extra]:
        """See ``Office``."""
        keys = self.store.load_keys()
        return [each for each in self.store.load_extras() if who.manages(_node_of(each), keys)]

    def books(self, who: Who) -> list[Facts]:
        """See ``Office``."""
        who.check_factory("look at price books")  # they have the discounts of all tenants
        current = self._in_force().at(self._unix_ns())
        versions = {book: (version, at) for version, book, at in self.store.book_versions()}
        proposed = self.store.proposed_books()
        rows = [(each.price_id, each.text, None) for each in self._books().all()]
        return [
            {
                "book": price_id,
                "effective": parse_price_book(text).effective.isoformat(),
                "proposed": None if at is None else time_text(at),
                "version": versions[price_id][0] if price_id in versions else None,
                "activated": time_text(versions[price_id][1]) if price_id in versions else None,
                "in_force": price_id == current.price_id,
                "text": text,
            }
            for price_id, text, at in [*rows, *proposed]
        ]

    def records(
        self,
        who: Who,
        *,
        before_seq: int | None = None,
        limit: int,
        tenant: str | None = None,
        action: str | None = None,
        actor: str | None = None,
        outcome: Outcome | None = None,
    ) -> list[AuditRecord]:
        """See ``Office``."""
        if who.tenant is not None and tenant not in (None, who.tenant):
            return []
        found = self.store.audit_records(
            before_seq=UNIX_NS_MAX if before_seq is None else before_seq,
            limit=limit,
            tenant=who.tenant or tenant,
            action=action,
            actor=actor,
            outcome=outcome,
        )
        if who.tenant is None:
            return found
        return [
            each
            if each.by.tenant == who.tenant
            else msgspec.structs.replace(each, by=Actor(kind=each.by.kind, id=NOT_TOLD), hash="")
            for each in found
        ]

    # Creations that are one.

    def _made_before(self, who: Who, wish: Action, asked: Asked) -> str | None:
        """What an earlier creation by the same word has made.

        Raises:
            Conflict: that was another creation.
        """
        if asked.once is None:
            return None
        found = self.store.creation(_creator(who), asked.once)
        if found is None:
            return None
        digest, subject = found
        if digest != _digest(wish):
            raise Conflict(
                "The Idempotency-Key belongs to another request.", hint="Take a new one for each."
            )
        return subject

    def _keep_creation(self, who: Who, wish: Action, asked: Asked, subject: str) -> None:
        if asked.once is not None:
            self.store.put_creation(
                _creator(who), asked.once, _digest(wish), subject, self._unix_ns()
            )

    # Writing down.

    @contextmanager
    def _change(self, who: Who, wish: Action, subject: str | None, asked: Asked) -> Iterator[Note]:
        with self.store.audited(self._record(who, kind_of(wish), subject, asked.request)) as note:
            yield note

    def _record(
        self, who: Who, action: str, subject: str | None, request: str | None
    ) -> AuditRecord:
        """A record of an attempt, which is their own tenant's until it is known to be allowed."""
        return AuditRecord(
            seq=0,
            at_unix_ns=self._unix_ns(),
            by=who.actor,
            action=action,
            subject=subject,
            tenant=who.tenant,
            request=request,
        )


def _creator(who: Who) -> str:
    return f"{who.actor.kind} {who.actor.id}"


def _digest(wish: Action) -> str:
    """What a wish is compared by; a secret that it brings is not kept but as its hash."""
    if isinstance(wish, CreateKey) and wish.secret is not None:
        wish = msgspec.structs.replace(wish, secret=digest_of(wish.secret))
    return hashlib.sha256(msgspec.json.encode(wish)).hexdigest()


def _read_book(text: str) -> PriceBook | InvalidRequest:
    """A price book, or why it is none."""
    if max(map(len, text.split("\n"))) > BOOK_LINE_CHARS_MAX:
        return InvalidRequest(
            f"The price book has a line of more than {BOOK_LINE_CHARS_MAX} characters.",
            hint="Write a list in several lines.",
        )
    try:
        return parse_price_book(text)
    except ConfigInvalid as error:
        return InvalidRequest(error.message, hint=error.hint)


def _day(unix_ns: int) -> datetime.date:
    return datetime.date.fromisoformat(time_text(unix_ns)[:10])


def _node_of(extra: Extra) -> NodeID:
    """Whose the limit is that it is on top of, also where that is gone."""
    return NodeID(extra.limit.rpartition("#")[0])

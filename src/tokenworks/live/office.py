"""The office: every change of keys, limits and extra budget, authorised and written down.

The command line and the admin API both come here. A change and its record in the audit log are one
durable step; what is refused is written down, too.
"""

from __future__ import annotations

import functools
import os
import pwd
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from tokenworks.catalogue.packages import Package
from tokenworks.core.errors import Conflict, InvalidRequest, NotFound
from tokenworks.core.ids import LimitID, TenantID
from tokenworks.core.needs import checked_words
from tokenworks.core.slo import Tier
from tokenworks.ledger.actions import (
    REASON_CHARS_MAX,
    Action,
    AskExtra,
    ChangeKey,
    CreateKey,
    DecideExtra,
    GrantPackage,
    LiftLimit,
    RevokeKey,
    RotateKey,
    SetLimit,
    kind_of,
)
from tokenworks.ledger.audit_log import Actor, AuditRecord
from tokenworks.ledger.authority import Who, prove_engineer
from tokenworks.ledger.dates import parse_span
from tokenworks.ledger.extras import Extra
from tokenworks.ledger.facts import extra_facts, key_facts, limit_facts
from tokenworks.ledger.grants import decide, granted, new_limit, parse_node, parse_person, tenant_of
from tokenworks.ledger.quotas import (
    UNIX_NS_MAX,
    KeyRecord,
    Limit,
    NodeID,
    window_start,
)
from tokenworks.live.key_making import (
    NAME_CHARS_MAX,
    NewKey,
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

NEVER = "never"
"""What a key's ``expires`` is changed to where it is to end no more."""

Packages = Callable[[], Mapping[str, Package]]


class RotatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key at the moment when its new secret is known.

    Attributes:
        secret: what a caller shows from now on.
        record: as it is stored now.
        before: as it was.
    """

    secret: str
    record: KeyRecord
    before: KeyRecord


def operator(source: str = "command line") -> Who:
    """Whoever runs this process: they hold the ledger's file, and so may do everything."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    return Who(actor=Actor(kind="operator", id=name, source=source), tenant=None)


class Office:
    """Makes changes for somebody.

    Every method takes who asks and what for, and may raise besides what it names:

    Raises:
        Forbidden, NotFound: see ``Who``.
        InvalidRequest: what is asked for cannot be.
        LedgerUnavailable: it could not be stored or written down, and nothing has changed.

    Args:
        store: where all of it is kept.
        unix_ns: says what time it is.
        packages: reads the packages that can be granted.
    """

    def __init__(
        self, store: SQLStore, unix_ns: Callable[[], int], packages: Packages = dict
    ) -> None:
        self.store = store
        self._unix_ns = unix_ns
        self._packages = packages

    # Keys.

    def create_key(self, who: Who, wish: CreateKey, request: str | None = None) -> NewKey:
        """Make a key."""
        with self._change(who, wish, None, request) as note:
            who.check_tenant(wish.tenant, f"tenant {wish.tenant!r}")
            new = make_key(wish, self._unix_ns())
            who.check_key(new.record)
            put_new_key(self.store, new)
            note.subject, note.tenant = new.record.key, wish.tenant
            note.after = key_facts(new.record) | {"limits": [*map(limit_facts, new.limits)]}
        return new

    def change_key(self, who: Who, wish: ChangeKey, request: str | None = None) -> KeyRecord:
        """Change what a key is limited to.

        Raises:
            Conflict: it is revoked.
        """
        with self._change(who, wish, wish.key, request) as note:
            record = self._open_key(who, wish.key, note)
            changed = self._changed(record, wish)
            who.check_key(changed)
            note.after = key_facts(changed)
            note.unchanged = changed == record
            if not note.unchanged:
                self.store.put_key(changed)
        return changed

    def _changed(self, record: KeyRecord, wish: ChangeKey) -> KeyRecord:
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

    def rotate_key(self, who: Who, wish: RotateKey, request: str | None = None) -> RotatedKey:
        """Give a key a new secret.

        Raises:
            Conflict: it is revoked.
        """
        with self._change(who, wish, wish.key, request) as note:
            record = self._open_key(who, wish.key, note)
            until_unix_ns = self._unix_ns() + parse_span(wish.overlap, "overlap")
            if until_unix_ns > UNIX_NS_MAX:
                raise InvalidRequest(
                    f"overlap is {wish.overlap!r}, which is too long.", hint="Such as 24h."
                )
            secret = new_secret()
            self.store.rotate_key(record.key, digest_of(secret), until_unix_ns)
            now = self._key(who, wish.key)
            note.after = key_facts(now)
        return RotatedKey(secret=secret, record=now, before=record)

    def revoke_key(self, who: Who, wish: RevokeKey, request: str | None = None) -> KeyRecord:
        """Close a key for ever; a second time changes nothing."""
        with self._change(who, wish, wish.key, request) as note:
            record = self._key(who, wish.key)
            who.check_rank(record)
            note.tenant, note.before = record.tenant, key_facts(record)
            note.unchanged = record.revoked_unix_ns is not None
            if not note.unchanged:
                self.store.revoke_key(record.key, self._unix_ns())
                record = self._key(who, wish.key)
            note.after = key_facts(record)
        return record

    def import_keys(
        self, who: Who, source: str, records: Sequence[KeyRecord], limits: Sequence[Limit]
    ) -> None:
        """Put keys that another gateway had, with their limits.

        Raises:
            Forbidden: they are not the whole factory's administrator.
        """
        record = self._record(who, "key.import", source, None)
        with self.store.audited(record) as note:
            who.check_factory("import keys")
            for limit in limits:  # first, so that no key goes without
                self.store.put_limit(limit)
            for each in records:
                self.store.put_key(each)
            note.after = {
                "keys": [each.key for each in records],
                "limits": [each.limit for each in limits],
            }

    # Limits.

    def set_limit(self, who: Who, wish: SetLimit, request: str | None = None) -> Limit:
        """Set a limit on a node, or change it."""
        with self._change(who, wish, wish.node, request) as note:
            node, unix_ns = parse_node(wish.node), self._unix_ns()
            keys, states = self.store.load_keys(), self.store.limit_states(unix_ns)
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
            before = next((each.limit for each in states if each.limit.limit == limit.limit), None)
            who.check_limit(before, node, keys)
            note.subject, note.tenant = limit.limit, tenant_of(node, keys)
            note.before = None if before is None else limit_facts(before)
            note.after = limit_facts(limit)
            self.store.put_limit(limit)
        return limit

    def lift_limit(self, who: Who, wish: LiftLimit, request: str | None = None) -> Limit:
        """Remove a limit."""
        with self._change(who, wish, wish.limit, request) as note:
            keys = self.store.load_keys()
            limit = self._limit(who, wish.limit, keys)
            who.check_limit(limit, limit.node, keys)
            note.tenant, note.before = tenant_of(limit.node, keys), limit_facts(limit)
            self.store.remove_limit(limit.limit)
        return limit

    def grant(self, who: Who, wish: GrantPackage, request: str | None = None) -> list[Limit]:
        """Give a node the limits of a package."""
        with self._change(who, wish, wish.node, request) as note:
            who.check_factory("grant packages")
            packages = self._packages()
            if wish.package not in packages:
                known = ", ".join(packages) or "none; `quota packages --example` prints some"
                raise NotFound(f"There is no package {wish.package!r}.", hint=f"Packages: {known}.")
            node, unix_ns = parse_node(wish.node), self._unix_ns()
            before = self.store.limit_states(unix_ns)
            put, gone = granted(node, packages[wish.package], before, unix_ns)
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

    def ask_extra(self, who: Who, wish: AskExtra, request: str | None = None) -> Extra:
        """Ask for extra budget."""
        with self._change(who, wish, wish.limit, request) as note:
            keys, unix_ns = self.store.load_keys(), self._unix_ns()
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
        return extra

    def decide_extra(self, who: Who, wish: DecideExtra, request: str | None = None) -> Extra:
        """Approve extra budget, or deny it.

        Raises:
            Conflict: somebody has decided already.
        """
        with self._change(who, wish, wish.extra, request) as note:
            keys, unix_ns = self.store.load_keys(), self._unix_ns()
            extra = self._extra(who, wish.extra, keys)
            note.tenant, note.before = self._tenant_of_extra(extra, keys), extra_facts(extra)
            if wish.approve:
                limit = next(
                    (each for each in self.store.load_limits() if each.limit == extra.limit), None
                )
                who.check_limit(limit, _node_of(extra), keys)
            by = parse_person(prove_engineer(who, wish.by), keys)
            decided = self.store.decide_extra(
                extra.extra,
                functools.partial(decide, approve=wish.approve, by=by, unix_ns=unix_ns),
            )
            assert decided is not None, "nobody else writes meanwhile"
            note.after = extra_facts(decided)
        return decided

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
        for limit in self.store.load_limits():
            if limit.limit == name and who.manages(limit.node, keys):
                return limit
        raise NotFound(
            f"There is no limit {name!r} here.", hint="`tokenworks quota list` shows their names."
        )

    def _extra(self, who: Who, name: str, keys: Sequence[KeyRecord]) -> Extra:
        for extra in self.store.load_extras():
            if extra.extra == name and who.manages(_node_of(extra), keys):
                return extra
        raise NotFound(
            f"Nobody asked for {name!r} here.", hint="`tokenworks quota list` shows who did."
        )

    @staticmethod
    def _tenant_of_extra(extra: Extra, keys: Sequence[KeyRecord]) -> TenantID | None:
        return tenant_of(_node_of(extra), keys)

    # Writing down.

    @contextmanager
    def _change(
        self, who: Who, wish: Action, subject: str | None, request: str | None
    ) -> Iterator[Note]:
        with self.store.audited(self._record(who, kind_of(wish), subject, request)) as note:
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


def _node_of(extra: Extra) -> NodeID:
    """Whose the limit is that it is on top of, also where that is gone."""
    return NodeID(extra.limit.rpartition("#")[0])

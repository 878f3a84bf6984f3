"""The audit log: who changed what, when and from where; each record chained on the one before.

A record is written in the transaction that makes its change, so that neither is there without the
other. Never a secret, nor the hash of one, stands in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.ledger.blocks import GENESIS, ChainHead

TEXT_CHARS_MAX: Final = 1_024
"""Of a text in a record that its maker does not choose, such as an error's message."""

ActorKind = Literal["operator", "key", "person"]
Outcome = Literal["done", "refused", "failed", "unknown"]
Facts = dict[str, object]
"""A thing by the names of its properties, as lists show it."""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who acts.

    Attributes:
        kind: somebody on this machine, the holder of a key, or a person who has signed in.
        id: the user's name on this machine, the key's id, or the issuer and its subject.
        name: for people: the key's name, or an e-mail address.
        source: the address that it came from, or ``command line``.
        tenant: whose things alone they manage; None for the whole factory's.
    """

    kind: ActorKind
    id: str
    name: str | None = None
    source: str | None = None
    tenant: str | None = None


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody has done, or was not let do.

    Attributes:
        seq: its place in the log, from 1, without gaps.
        at_unix_ns: when.
        by: who.
        action: what, such as ``key.create``.
        subject: with what: a key's id, a limit's name, a price book's id; None if it has none.
        tenant: whose that is; None where it is nobody's in particular.
        outcome: ``refused`` was not allowed or not possible, ``failed`` is our fault; whether what
            is ``unknown`` was done, a record before this one says.
        before: the thing as it was; None if there was none.
        after: as it is now; None if there is none.
        error: why not.
        request: the request's name, where it came by HTTP.
        hash: of the record before it and of all fields above; 64 hex digits.
    """

    seq: int
    at_unix_ns: int
    by: Actor
    action: str
    subject: str | None = None
    tenant: str | None = None
    outcome: Outcome = "done"
    before: Facts | None = None
    after: Facts | None = None
    error: str | None = None
    request: str | None = None
    hash: str = ""


def chained(record: AuditRecord, before: str) -> tuple[AuditRecord, bytes]:
    """A record with its hash, and the bytes that are stored.

    Args:
        record: without a hash.
        before: the hash of the record before it; 64 zeros for the first.
    """
    bare = msgspec.json.encode(msgspec.structs.replace(record, hash=""))
    digest = hashlib.blake2b(bytes.fromhex(before), digest_size=32)
    digest.update(bare)
    whole = msgspec.structs.replace(record, hash=digest.hexdigest())
    return whole, msgspec.json.encode(whole)


def read_record(payload: bytes) -> AuditRecord:
    """A record from the bytes that are stored.

    Raises:
        LedgerCorrupt: they are none.
    """
    try:
        return msgspec.json.decode(payload, type=AuditRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LedgerCorrupt(f"A record of the audit log cannot be read: {error}.") from error


def verify(payloads: Iterable[bytes], expected: Iterable[ChainHead] = ()) -> ChainHead:
    """Read the whole log, from the first record on.

    Args:
        payloads: all that is stored, in order.
        expected: what its last record was at some times, as it was noted outside.

    Returns:
        Its last record; 0 and zeros where there is none.

    Raises:
        LedgerCorrupt: a record was changed, removed or put in, or one that was noted is not there.
    """
    heads: dict[int, list[ChainHead]] = {}
    for noted in expected:
        heads.setdefault(noted.seq, []).append(noted)
    seq, digest = 0, GENESIS.hex()
    for payload in (None, *payloads):
        if payload is not None:
            seq += 1
            record = read_record(payload)
            if record.seq != seq:
                raise LedgerCorrupt(f"Record {seq} of the audit log is missing.")
            if chained(record, digest) != (record, payload):
                raise LedgerCorrupt(
                    f"Record {seq} of the audit log, or one before it, was changed."
                )
            digest = record.hash
        for noted in heads.pop(seq, ()):
            if noted.hash.hex() != digest:
                raise LedgerCorrupt(f"Record {seq} of the audit log is not {noted}, as was noted.")
    if heads:
        raise LedgerCorrupt(f"The audit log ends at record {seq}; it has had {max(heads)}.")
    return ChainHead(seq, bytes.fromhex(digest))

"""The audit log is a chain: what is changed, moved, removed or put in is found."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.ledger.ledger_samples import NOW, extra, key_record, limit
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.slo import Tier
from tokenworks.ledger.actions import CreateKey, RevokeKey, kind_of
from tokenworks.ledger.audit_log import Actor, AuditRecord, chained, read_record, verify
from tokenworks.ledger.blocks import GENESIS, ChainHead
from tokenworks.ledger.facts import extra_facts, key_facts, limit_facts

EVE = Actor(kind="key", id="key_e", name="eve's", source="10.0.0.1", tenant="acme")
LENGTH = 3


def log(length: int = LENGTH, action: str = "key.create") -> list[bytes]:
    digest, payloads = GENESIS.hex(), []
    for seq in range(1, length + 1):
        record = AuditRecord(seq=seq, at_unix_ns=NOW, by=EVE, action=action, after={"n": [seq]})
        whole, payload = chained(record, digest)
        payloads.append(payload)
        digest = whole.hash
    return payloads


def end_of(payloads: list[bytes]) -> ChainHead:
    last = read_record(payloads[-1])
    return ChainHead(last.seq, bytes.fromhex(last.hash))


def test_a_whole_log_is_proved_to_its_end() -> None:
    payloads = log()
    assert verify(payloads) == end_of(payloads)
    assert verify([]) == ChainHead(0, GENESIS)
    assert verify([], [ChainHead(0, GENESIS)]).seq == 0
    noted = [end_of(log(1)), end_of(log(2)), end_of(log(2)), ChainHead(0, GENESIS)]
    assert verify(payloads, noted).seq == LENGTH


def anew(payload: bytes) -> bytes:
    """A record that is changed and hashed again, for what it follows is known to anybody."""
    record = msgspec.structs.replace(read_record(payload), outcome="refused")
    return chained(record, GENESIS.hex())[1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda log: [log[0], log[2]], "Record 2 of the audit log is missing"),
        (lambda log: [log[0], log[1].replace(b"key_e", b"key_a"), log[2]], "Record 2 .* changed"),
        (lambda log: [log[0], log[1].replace(b'{"n"', b'{ "n"'), log[2]], "Record 2 .* changed"),
        (lambda log: [anew(log[0]), *log[1:]], "Record 2 of the audit log, or one before it"),
        (lambda log: [log[1], log[0], log[2]], "Record 1 of the audit log is missing"),
        (lambda log: [b"{}", *log[1:]], "cannot be read"),
        (lambda log: [b"\xff", *log[1:]], "cannot be read"),
    ],
)
def test_damage_is_found(damage: Callable[[list[bytes]], list[bytes]], words: str) -> None:
    with pytest.raises(LedgerCorrupt, match=words):
        verify(damage(log()))


def test_a_log_that_is_made_anew_or_cut_is_found_by_what_was_noted() -> None:
    noted = [end_of(log())]
    with pytest.raises(LedgerCorrupt, match="Record 3 of the audit log is not 3:"):
        verify(log(action="key.revoke"), noted)
    with pytest.raises(LedgerCorrupt, match="ends at record 2; it has had 3"):
        verify(log()[:2], noted)


def test_an_action_has_a_name() -> None:
    assert kind_of(CreateKey(tenant="acme")) == "key.create"
    assert kind_of(RevokeKey(key="key_1")) == "key.revoke"


def test_facts_of_a_key_tell_no_secret() -> None:
    record = key_record(
        old_secret_sha256="f" * 64,
        old_until_unix_ns=NOW,
        expires_unix_ns=NOW,
        tiers=(Tier.HIGH, Tier.FREE),
        roles=("admin",),
    )
    facts = key_facts(record)
    assert facts["old_secret_until"] == facts["expires"] == "2026-09-21T14:13Z"
    assert (facts["tiers"], facts["roles"], facts["revoked"]) == (["free", "high"], ["admin"], None)
    text = msgspec.json.encode(facts).decode()
    assert not any(secret in text for secret in record.secrets_sha256)


def test_facts_of_limits_and_of_extra_budget() -> None:
    assert limit_facts(limit())["tier"] is None
    assert limit_facts(limit(tier=Tier.HIGH))["tier"] == "high"
    assert extra_facts(extra())["state"] == extra().state

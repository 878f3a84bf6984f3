from __future__ import annotations

import msgspec
import pytest

from tests.ledger.ledger_samples import story
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import GENESIS, check_block, decode_entries, encode_entries, hash_of
from tokenworks.ledger.entries import Entry


def block(entries: list[Entry], seq: int = 1, before: bytes = GENESIS, **changes: object) -> Block:
    fields = {
        "seq": seq,
        "owner": "me",
        "number": seq,
        "at_unix_ns": 5,
        "count": len(entries),
        "payload": encode_entries(entries),
    } | changes
    return Block(hash=hash_of(before, **fields), **fields)


def test_a_block_gives_its_entries_back() -> None:
    _, entries = story()
    made = block(entries)
    assert decode_entries(made) == entries
    check_block(made, 1, GENESIS)
    assert len(made.hash) == 32


def test_blocks_hang_on_one_another() -> None:
    _, entries = story()
    first = block(entries[:5])
    second = block(entries[5:], 2, first.hash)
    check_block(second, 2, first.hash)
    with pytest.raises(LedgerCorrupt, match="Block 2 was changed, or a block before it"):
        check_block(second, 2, GENESIS)
    with pytest.raises(LedgerCorrupt, match="Block 1 is missing; block 2 stands in its place"):
        check_block(second, 1, GENESIS)


def test_a_changed_byte_is_found_wherever_it_is() -> None:
    _, entries = story()
    made = block(entries[:4])
    for i in range(len(made.payload)):
        payload = bytearray(made.payload)
        payload[i] ^= 1
        with pytest.raises(LedgerCorrupt, match="changed"):
            check_block(msgspec.structs.replace(made, payload=bytes(payload)), 1, GENESIS)
    for i in range(len(made.hash)):
        digest = bytearray(made.hash)
        digest[i] ^= 128
        with pytest.raises(LedgerCorrupt, match="changed"):
            check_block(msgspec.structs.replace(made, hash=bytes(digest)), 1, GENESIS)


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "you"},
        {"number": 2},
        {"at_unix_ns": 6},
        {"count": 3},
        # What one field loses and the next one gains is a change too.
        {"owner": "me\n1", "number": 5, "at_unix_ns": 4},
        {"payload": b""},
    ],
)
def test_a_changed_field_is_found(changes: dict[str, object]) -> None:
    made = block(story()[1][:4])
    with pytest.raises(LedgerCorrupt, match="changed"):
        check_block(msgspec.structs.replace(made, **changes), 1, GENESIS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"payload": b"{}"}, "Block 1 cannot be decoded"),
        ({"payload": b'["unheard of"]'}, "Block 1 cannot be decoded"),
        ({"count": 3}, "has 4 entries and says that it has 3"),
    ],
)
def test_a_block_that_cannot_be_read_is_named(changes: dict[str, object], said: str) -> None:
    made = block(story()[1][:4])
    with pytest.raises(LedgerCorrupt, match=said):
        decode_entries(msgspec.structs.replace(made, **changes))

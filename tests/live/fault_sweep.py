"""A short history of a ledger in which the n-th write or sync fails, for every n that differs.

Whenever an append is refused, the files are copied as a process that is killed just then would
leave them, and what was refused is not in the copy, now or ever.

``python -m tests.live.fault_sweep FOLDER ERRNO MODE`` runs under ``fault_shim``; MODE is ``once``,
``for_good`` or ``short``. It prints how many calls a history without a fault makes, at how many of
them one failed, and how many entries were refused in all histories.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import sys
from pathlib import Path

from tests.ledger import ledger_samples
from tests.ledger.ledger_samples import accrue, key_record, ledger, post, reserve, void
from tokenworks.core.errors import LedgerCorrupt, LedgerUnavailable
from tokenworks.ledger.audit import Audit
from tokenworks.ledger.blocks import decode_entries
from tokenworks.ledger.entries import Entry
from tokenworks.ledger.store_port import InDoubt
from tokenworks.live import store as store_module
from tokenworks.live.store import SQLStore, sqlite_store

RUN_ENDS = 2
BOOKS = {ledger_samples.BOOK.price_id: ledger_samples.BOOK}


def batches() -> list[list[Entry]]:
    """What is appended, batch by batch."""
    made = ledger(owner="me")
    return [
        [reserve(made, "a"), reserve(made, "b")],
        [post(made, "a"), reserve(made, "c")],
        [accrue(made)],
        [void(made, "b", "withdrawn"), reserve(made, "d")],
        [post(made, "c"), post(made, "d")],
    ]


def history(path: Path) -> tuple[list[Entry], list[Entry]]:
    """Entries that were acknowledged, and those that were refused."""
    acknowledged: list[Entry] = []
    refused: list[Entry] = []
    try:
        store = sqlite_store(path, "me")
    except (LedgerUnavailable, LedgerCorrupt):
        return [], []
    try:
        store.put_key(key_record())
        store.put_price_book(ledger_samples.BOOK.price_id, ledger_samples.BOOK.text, 1)
    except LedgerUnavailable:
        pass
    for batch in batches():
        try:
            store.append_now(batch)
        except InDoubt:
            refused += batch
        except (LedgerUnavailable, LedgerCorrupt):
            refused += batch
            prove_killed(path, acknowledged, batch)
        else:
            acknowledged += batch
    with contextlib.suppress(LedgerUnavailable, LedgerCorrupt):
        store.close()
    return acknowledged, refused


def prove_killed(path: Path, acknowledged: list[Entry], refused: list[Entry]) -> None:
    """What the next process finds if this one is killed now, with all that it has written."""
    copy = path.with_name("killed.db")  # which no fault is for
    for end in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{end}", f"{copy}{end}")
    with contextlib.closing(sqlite_store(copy, "look")) as store:
        stored = list(store.load_entries())
    for each in copy.parent.glob(f"{copy.name}*"):
        each.unlink()
    for entry in acknowledged:
        assert stored.count(entry) == 1, (entry, "acknowledged and lost")
    for entry in refused:
        assert entry not in stored, (entry, "refused and stored")


def prove(path: Path, acknowledged: list[Entry], refused: list[Entry]) -> None:
    """What was acknowledged is there, nothing is there twice, and the books are right."""
    store: SQLStore = sqlite_store(path, "next")
    try:
        store.put_price_book(ledger_samples.BOOK.price_id, ledger_samples.BOOK.text, 1)
        stored = [entry for block in store.blocks() for entry in decode_entries(block)]
        for entry in acknowledged:
            assert stored.count(entry) == 1, (entry, "acknowledged and lost")
        # A write whose sync failed may have reached the disk; it is there once or not at all.
        for entry in refused:
            assert stored.count(entry) <= 1, (entry, "stored twice")
        store.take_over(10**18)
        audit = Audit(BOOKS)
        list(audit.read(store.blocks()))
        since = store.since(audit.progress.blocks)
        findings = audit.finish(since.sums, since.numbers, since.holds)
        assert not findings, findings
    finally:
        store.close()


def points(kinds: str) -> list[int]:
    """The calls to fail, from 1: syncs, cuts, and of writes in a row both ends and the middle.

    Writes to one file with no sync between them are of one transaction or one checkpoint: which of
    those amid them fails makes no difference to what is on the disk and counts. A page of the log
    is two writes, and so an end is two.

    Args:
        kinds: see ``fault_shim.c``.
    """
    found, at = list[int](), 1
    for _, run in itertools.groupby(kinds):
        length = len(list(run))
        ends = {*range(RUN_ENDS), length // 2, *range(length - RUN_ENDS, length)}
        found += sorted(at + i for i in ends if 0 <= i < length)
        at += length
    return found


def main(folder: Path, error: int, mode: str) -> None:
    """A history without a fault, then one for each point of it at which one can be."""
    shim = ctypes.CDLL(None)
    shim.fault_kinds.restype = ctypes.c_char_p
    store_module.ROLL_ENTRIES = 3  # so that sums are rolled up within the history
    store_module.DOUBT_S_MAX, store_module.DOUBT_STEP_S = 0.05, 0
    refusals = 0
    shim.fault_arm(ctypes.c_long(0), 0, 0, 0)
    assert not history(folder / "0.sqlite")[1]
    kinds, calls = shim.fault_kinds().decode(), shim.fault_calls()
    assert len(kinds) == calls
    for n in points(kinds):
        path = folder / f"{n}.sqlite"
        shim.fault_arm(ctypes.c_long(n), error, mode == "for_good", mode == "short")
        acknowledged, refused = history(path)
        assert shim.fault_calls() >= n, "histories differ before their fault"
        shim.fault_arm(ctypes.c_long(0), 0, 0, 0)
        refusals += len(refused)
        prove(path, acknowledged, refused)
        path.unlink()
    sys.stdout.write(f"{calls} {len(points(kinds))} {refusals}\n")


if __name__ == "__main__":
    assert os.environ.get("FAULT_MARK")
    main(Path(sys.argv[1]), getattr(errno, sys.argv[2]), sys.argv[3])

"""The ledger's store: blocks of entries in one chain, their sums, keys, limits and price books."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tokenworks.core.errors import LedgerCorrupt, LedgerUnavailable, TokenworksError
from tokenworks.core.ids import LimitID, PoolID, RequestID
from tokenworks.core.units import NS_PER_HOUR
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import (
    GENESIS,
    ChainHead,
    check_block,
    decode_entries,
    encode_entries,
    hash_of,
)
from tokenworks.ledger.entries import Entry, Posted, Reserved
from tokenworks.ledger.extras import Use, limit_states, uses
from tokenworks.ledger.leases import Counted, Shortage, WindowUse, split, with_spent
from tokenworks.ledger.quota_records import UNIX_NS_MAX, LimitState, NodeID
from tokenworks.ledger.rollup import PayerNames, RollupRow
from tokenworks.ledger.store_port import InDoubt, TakenOver
from tokenworks.ledger.stored import Stored
from tokenworks.ledger.summing import Rollup
from tokenworks.live import cost_claims, lease_tables
from tokenworks.live.clock import SystemClock
from tokenworks.live.database import CommitUnknown, Database
from tokenworks.live.group_commit import QUEUE_LEN_MAX, GroupCommit
from tokenworks.live.ledger_sql import (
    BLOCK_OF,
    BLOCKS,
    BLOCKS_SINCE,
    CHAIN_BLOCK,
    COUNT_QUESTION,
    LAGGING,
    LAST_BLOCK,
    SETTINGS_AND_LAST_BLOCK,
    UNROLLED_OF,
    block_from,
)
from tokenworks.live.postgres import PostgresDatabase
from tokenworks.live.settings_store import (
    SettingsStore,
    load_extras,
    load_limits,
    meta_number,
    prepare,
    refuse_others,
)
from tokenworks.live.sqlite import SQLiteDatabase, SQLiteLock
from tokenworks.live.sum_tables import Apart, NewNames, SumTables, told_apart

ROLL_ENTRIES: Final = 16_384
"""Entries whose sums are in memory only before they are added to the tables; a start reads as many
again, and so does a report."""
ROLL_S: Final = 60
"""They are added after so many seconds at the latest, if any more come."""
DOUBT_S_MAX: Final = 30
"""How long to ask whether a commit that could not be heard was kept."""
DOUBT_STEP_S: Final = 0.2
PRUNE_NS: Final = NS_PER_HOUR
"""Between two looks for leases that nobody needs any more."""
HEAD_S: Final = 3_600
"""The chain's end is logged so often, and at the end: what somebody may change later is noted where
they cannot."""
RESTORE: Final = "Restore it from a copy."
CANNOT_TELL: Final = "The ledger cannot tell what it has stored."
RESTART: Final = "Start the factory again: it finds out what is stored."

_log: Final = logging.getLogger("tokenworks.ledger")
_ENCODER: Final = msgspec.json.Encoder()
_HOLDS: Final = msgspec.json.Decoder(list[Reserved])


class Since(NamedTuple):
    """What a store has derived from its blocks.

    Attributes:
        blocks: those after one.
        sums: over all time.
        numbers: by process, the number of the last block that it has written.
        holds: reservations that a start would find open.
    """

    blocks: list[Block]
    sums: list[RollupRow]
    numbers: dict[str, int]
    holds: list[Reserved]


class SQLStore(SettingsStore):
    """Everything the ledger keeps, in SQLite or PostgreSQL; a ``ledger.store_port.LedgerStore``.

    One thread writes. Whatever has queued up while it was syncing goes into its next transaction,
    so throughput grows with load while each append still waits for its own sync. Sums are rolled
    up every ``ROLL_ENTRIES`` entries; what is not rolled up yet is read from the blocks.

    Args:
        connect: opens a connection to the database.
        owner: the process that appends; new for each process.
        queue_len_max: entries that may wait to be written.

    Raises:
        LedgerUnavailable: the database cannot be opened or written, or a factory of an earlier
            release, whose tables must be made anew, uses it.
        LedgerCorrupt: it is not a ledger.
        ConfigInvalid: it was written by a release with another schema.
    """

    def __init__(
        self, connect: Callable[[], Database], owner: str, *, queue_len_max: int = QUEUE_LEN_MAX
    ) -> None:
        self.owner = owner
        self._stored = Stored()
        self._rollup = Rollup()
        self._unrolled: list[tuple[int, Rollup]] = []
        self._broken = False
        self._tail_proved = False
        self._rolled_s = time.monotonic()
        self._number = 0
        self._head: ChainHead | None = None
        self._last: ChainHead | None = None
        """The last block there is, as far as this process knows; None to look."""
        self._head_s = time.monotonic()
        self._known = False
        self._closed = False
        self._leasing = lease_tables.Leasing()
        self._counted: Counted | None = None
        self._prune_at_unix_ns = 0
        self._costs: dict[PoolID, str] = {}
        self._sums = SumTables()
        with ExitStack() as stack:
            self._writer = stack.enter_context(closing(connect()))
            prepare(self._writer, SystemClock().unix_ns())
            self._other = stack.enter_context(closing(connect()))
            self._held = stack.pop_all()
        # Calls other than appends share one connection.
        super().__init__(self._other)
        self._group = GroupCommit(self._commit, self._roll_if_any, queue_len_max)
        # See ``LedgerStore``. The group's own, as each request comes by here twice.
        self.append, self.keep = self._group.append, self._group.keep
        self.append_now = self._group.append_now

    # Entries.

    def blocks(self, after_seq: int = 0) -> Iterator[Block]:
        """See ``LedgerStore``."""
        return map(block_from, self._other.stream(BLOCKS, (after_seq,)))

    def load_entries(self) -> Iterator[Entry]:
        """All entries, oldest first.

        Raises:
            LedgerCorrupt: one cannot be decoded.
        """
        for block in self.blocks():
            yield from decode_entries(block)

    def billed(self, requests: Collection[RequestID], since_unix_ns: int) -> set[RequestID]:
        """Which requests of processes that are dead are billed, in blocks since a time.

        Raises:
            LedgerUnavailable, LedgerCorrupt: they cannot be read.
        """
        with self._other_lock, self._other.writing():
            pass  # what a dead process's server was still committing has ended with this
        found: set[RequestID] = set()
        for row in self._other.stream(BLOCKS_SINCE, (since_unix_ns,)):
            block = block_from(row)
            if any(request.encode() in block.payload for request in requests):
                posted = [each for each in decode_entries(block) if isinstance(each, Posted)]
                found.update(each.request for each in posted if each.request in requests)
        return found

    def latest_unix_ns(self) -> int:
        """See ``LedgerStore``."""
        with self._other_lock:
            return int(self._other.query("SELECT MAX(seen_unix_ns) FROM owners")[0][0] or 0)

    def block_numbers(self) -> dict[str, int]:
        """By process, the number of the last block that it has written."""
        with self._other_lock:
            return _block_numbers(self._other)

    def since(self, after_seq: int) -> Since:
        """Blocks after one, and all that is derived from blocks, of one moment.

        Raises:
            LedgerCorrupt: the sums by hour are not those by month, or what is written down of
                open reservations is not what a process can have left.
        """
        with self._other_lock, self._reading():
            blocks = [block_from(row) for row in self._other.query(BLOCKS, (after_seq,))]
            self._sums.compare(self._other)
            sums = self._sums.read(self._other, 0, UNIX_NS_MAX, Apart.RUNS)
            return Since(blocks, sums, _block_numbers(self._other), _open_holds(self._other))

    # Other processes.

    def take_turns(self, writers: int) -> None:
        """Commit no more often than leaves so many processes as many commits as one alone."""
        assert writers > 0, writers
        self._group.writers = writers

    def alive(self, unix_ns: int) -> None:
        """See ``LedgerStore``."""
        with self._group.still, self._writer.writing():
            self._join(unix_ns)
            if unix_ns >= self._prune_at_unix_ns:
                lease_tables.prune(self._writer, unix_ns)
                self._prune_at_unix_ns = unix_ns + PRUNE_NS
            _still_ours(
                self._writer.change(
                    "UPDATE owners SET seen_unix_ns = ? WHERE owner = ? AND ended = 0",
                    (unix_ns, self.owner),
                ),
                self.owner,
            )

    def take_over(self, seen_before_unix_ns: int) -> list[Reserved]:
        """See ``LedgerStore``."""
        # Nothing is rolled up until the holds are known here: the list would be written without.
        with self._group.still:
            holds = b""
            try:
                with self._writer.writing():
                    found, names = self._end_the_dead(seen_before_unix_ns)
                    holds = _ENCODER.encode([*self._rolled_holds(), *found])
                    _still_ours(
                        self._writer.change(
                            "UPDATE owners SET holds = ? WHERE owner = ? AND ended = 0",
                            (holds, self.owner),
                        ),
                        self.owner,
                    )
            except CommitUnknown:
                kept = self._ask_until_known(lambda: self._rolled_holds() == _HOLDS.decode(holds))
                self._broken = self._broken or kept is None
                if not kept:
                    raise
                names = NewNames({}, {}, {}, {})
            self._sums.keep(names)
            self._stored.adopt(found)
        return found

    def declare_dead(self, owner: str) -> None:
        """Let ``take_over`` find a process that has ended, however short a while ago."""
        with self._group.still, self._writer.writing():
            self._writer.change(
                "UPDATE owners SET seen_unix_ns = 0 WHERE owner = ? AND ended = 0", (owner,)
            )

    def _end_the_dead(self, seen_before_unix_ns: int) -> tuple[list[Reserved], NewNames]:
        """Inside a transaction: what dead processes hold, and new names; their sums are added."""
        rollup, adopted = Rollup(), Stored()
        self._join(seen_before_unix_ns)
        dead = self._writer.query(
            "SELECT owner, number, rolled, holds FROM owners "
            "WHERE ended = 0 AND owner <> ? AND seen_unix_ns < ? ORDER BY owner",
            (self.owner, seen_before_unix_ns),
        )
        if dead or not self._tail_proved:
            self._check_tail()
            self._tail_proved = True
        for owner, number, rolled, holds in dead:
            adopted.adopt(_holds_from(holds))
            for row in self._writer.query(UNROLLED_OF, (owner, rolled)):
                for entry in adopted.admit(decode_entries(block_from(row))):
                    rollup.add(entry)
            self._writer.change(
                "UPDATE owners SET ended = 1, rolled = ?, holds = ? WHERE owner = ?",
                (number, b"[]", owner),
            )
            lease_tables.end(self._writer, owner)
        return adopted.open_holds(), self._sums.write(self._writer, [rollup])

    def _rolled_holds(self) -> list[Reserved]:
        rows = self._writer.query("SELECT holds FROM owners WHERE owner = ?", (self.owner,))
        return _holds_from(rows[0][0]) if rows else []

    def _join(self, unix_ns: int) -> None:
        """Enter this process into the list of owners, inside a transaction."""
        if not self._known:
            self._writer.change(
                "INSERT INTO owners VALUES (?, 0, 0, ?, ?, 0) ON CONFLICT (owner) DO NOTHING",
                (self.owner, b"[]", unix_ns),
            )

    def _check_tail(self) -> None:
        """Prove the chain from the first block whose sums are not rolled up, to the last."""
        last = self._writer.query(LAST_BLOCK)
        seq = last[0][0] if last else 1
        for owner, rolled in self._writer.query(LAGGING):
            found = self._writer.query(BLOCK_OF, (owner, rolled + 1))
            if not found:
                raise LedgerCorrupt(f"Block {rolled + 1} of {owner!r} is missing.", hint=RESTORE)
            seq = min(seq, found[0][0])
        before = self._writer.query("SELECT hash FROM blocks WHERE seq = ?", (seq - 1,))
        if seq > 1 and not before:
            raise LedgerCorrupt(f"Block {seq - 1} is missing.", hint=RESTORE)
        digest = bytes(before[0][0]) if before else GENESIS
        for row in self._writer.query(BLOCKS, (seq - 1,)):
            block = block_from(row)
            check_block(block, seq, digest)
            seq, digest = seq + 1, block.hash
        written = int(self._writer.query("SELECT SUM(number) FROM owners")[0][0] or 0)
        if seq - 1 != written:
            raise LedgerCorrupt(
                f"{written} blocks were written, and the last that is there is {seq - 1}.",
                hint="Restore it from a copy.",
            )

    # Leases.

    def lease(
        self, shortages: Sequence[Shortage], unix_ns: int
    ) -> list[int] | tuple[Shortage, WindowUse | None]:
        """See ``LedgerStore``."""
        with self._group.still, self._changing_leases(shortages):
            self._join(unix_ns)
            self._check_alive()
            version = meta_number(self._writer, "settings_version")
            leasing = self._leasing
            places = [(each.limit, each.start_unix_ns) for each in shortages]
            known = all(place in leasing.states for place in places)
            if (
                leasing.version != version
                or not known
                or lease_tables.unknown(self._writer, places)
            ):
                leasing = self._read_leasing(version, unix_ns)
            result = lease_tables.lease(
                self._writer, self.owner, shortages, leasing.states, unix_ns
            )
            if isinstance(result, tuple) and self._carries_more(leasing, result[0]):
                leasing = self._read_leasing(version, unix_ns)
                result = lease_tables.lease(
                    self._writer, self.owner, shortages, leasing.states, unix_ns
                )
        self._leasing = leasing
        return result

    def _read_leasing(self, version: int, unix_ns: int) -> lease_tables.Leasing:
        """Limits as they stand over all processes, inside a transaction."""
        limits, extras = load_limits(self._writer), load_extras(self._writer)
        held = lease_tables.held(self._writer, UNIX_NS_MAX)

        used = functools.partial(self._sums.used, self._writer)
        states = limit_states(limits, extras, used, unix_ns, held)
        lease_tables.reconcile(self._writer, states)
        return lease_tables.Leasing(version, limits, states, held)

    def _carries_more(self, leasing: lease_tables.Leasing, short: Shortage) -> bool:
        """Whether processes hold something else of the months before than when it was read."""
        state = leasing.states.get((short.limit, short.start_unix_ns))
        if state is None or not state.limit.carries_over:
            return False
        before = {
            (limit, start): amount
            for (limit, start), amount in leasing.held.items()
            if limit == short.limit and start < short.start_unix_ns
        }
        return before != lease_tables.held(self._writer, short.start_unix_ns, short.limit)

    def count_by(self, counted: Counted) -> None:
        """See ``LedgerStore``."""
        self._counted = counted

    def cover(self, lacking: Sequence[Shortage]) -> None:
        """See ``LedgerStore``."""
        with self._group.still, self._changing_leases(lacking):
            self._check_alive()
            lease_tables.cover(self._writer, self.owner, lacking)

    def give_back(self, rest: Sequence[Shortage]) -> None:
        """See ``LedgerStore``."""
        with self._group.still, self._changing_leases(rest):
            self._check_alive()
            lease_tables.give_back(self._writer, self.owner, rest)

    @contextmanager
    def _changing_leases(self, places: Sequence[Shortage]) -> Iterator[None]:
        """A transaction that changes this process's leases; its end is always known.

        Raises:
            LedgerUnavailable: nothing has changed.
        """

        def granted() -> list[int]:
            return lease_tables.granted(self._writer, self.owner, places)

        before: list[int] = []
        after: list[int] = []
        try:
            with self._writer.writing():
                before = granted()
                yield
                after = granted()
        except CommitUnknown:
            if before == after:
                raise  # nothing to tell it by; whoever asks again changes it then
            kept = self._ask_until_known(lambda: granted() == after)
            self._broken = self._broken or kept is None
            if not kept:
                raise

    def wanted(self, since_unix_ns: int) -> list[tuple[LimitID, int]]:
        """See ``LedgerStore``."""
        with self._other_lock:
            return lease_tables.wanted(self._other, since_unix_ns)

    def claim_costs(self, pools: Mapping[PoolID, str], unix_ns: int) -> dict[PoolID, int]:
        """See ``LedgerStore``."""
        with self._group.still:
            with self._writer.writing():
                self._join(unix_ns)
                self._check_alive()
                found = cost_claims.claim(self._writer, self.owner, pools)
            self._costs |= {pool: pools[pool] for pool in found}
        return found

    def _check_alive(self) -> None:
        rows = self._writer.query(
            "SELECT 1 FROM owners WHERE owner = ? AND ended = 0", (self.owner,)
        )
        _still_ours(len(rows), self.owner)

    # Sums.

    def rollups(
        self,
        since_unix_ns: int | None = None,
        until_unix_ns: int | None = None,
        *,
        by_hour: bool = False,
        by_payer: bool = True,
        by_agent: bool = False,
        by_run: bool = False,
        of: PayerNames | None = None,
    ) -> list[RollupRow]:
        """See ``LedgerStore``."""
        since = since_unix_ns or 0
        until = UNIX_NS_MAX if until_unix_ns is None else until_unix_ns
        apart = told_apart(by_payer=by_payer, by_agent=by_agent, by_run=by_run)
        with self._other_lock, self._reading():
            return self._sums.read(self._other, since, until, apart, by_hour=by_hour, of=of)

    def rollups_and_last(
        self, since_unix_ns: int, until_unix_ns: int
    ) -> tuple[list[RollupRow], int]:
        """Sums over a time as ``rollups`` has them, and the last block that they count."""
        with self._other_lock, self._reading():
            rows = self._sums.read(self._other, since_unix_ns, until_unix_ns)
            last = self._other.query(LAST_BLOCK)
            return rows, int(last[0][0]) if last else 0

    def read_limits(self, unix_ns: int) -> Callable[[], list[LimitState]]:
        """See ``LedgerStore``."""
        later: list[Entry] = []
        try:
            states = self.limit_states(unix_ns, later)
        except BaseException:
            self._group.unfollow(later)
            raise
        return lambda: with_spent(states, self._group.unfollow(later))

    def limit_states(self, unix_ns: int, later: list[Entry] | None = None) -> list[LimitState]:
        """See ``LedgerStore``. What is queued to be stored counts as used.

        What is queued after that goes into ``later``, until nobody follows it any more.
        """
        with self._other_lock, self._reading():
            with self._group.still:
                # What is read first is when all the rest is read, too; from here on the writer
                # may go on.
                limits = load_limits(self._other)
                queued = self._group.waiting(later)
            if not limits:
                return []
            extras, waiting = load_extras(self._other), Rollup()
            for entry in queued:
                waiting.add(entry)

            def used(since: int, until: int, runs: Collection[NodeID]) -> list[Use]:
                stored = self._sums.used(self._other, since, until, runs)
                rows = (row for row in waiting.rows() if since <= row.start_unix_ns < until)
                return [*stored, *uses(rows, runs)]

            held = lease_tables.held(self._other, UNIX_NS_MAX)
            return limit_states(limits, extras, used, unix_ns, held)

    def close(self) -> None:
        """See ``LedgerStore``."""
        self._group.close()
        if not self._closed:
            self._closed = True
            with self._group.still:  # a call on another thread may be under way
                try:
                    self._log_head()
                    self._roll_if_any()
                    self._leave()
                finally:
                    self._held.close()

    def _leave(self) -> None:
        """Be ended, with nothing open and nothing granted that is not used; nobody takes over."""
        if not self._number or self._stored.open_holds() or self._rollup.entries:
            return
        if self._unrolled or self._broken:
            return
        with contextlib.suppress(LedgerUnavailable), self._writer.writing():
            self._writer.change("UPDATE owners SET ended = 1 WHERE owner = ?", (self.owner,))
            lease_tables.end(self._writer, self.owner)

    def hold(self, close: Callable[[], None]) -> None:
        """Let go of something else, too, when this closes."""
        self._held.callback(close)

    # The writer's thread.

    def _commit(self, appends: list[Sequence[Entry]]) -> Sequence[TokenworksError | None]:
        due = time.monotonic() - self._rolled_s >= ROLL_S
        if self._rollup.entries >= ROLL_ENTRIES or due:
            # Before the appends, not after: if this stops the thread, they are not stored yet.
            self._roll_if_any()
        if self._broken:
            return [LedgerUnavailable(CANNOT_TELL, hint=RESTART)] * len(appends)
        fresh, errors = self._stored.admit_each(appends)
        if fresh:
            failure = self._store(fresh)
            if failure is not None:
                self._stored.undo(fresh)
                if isinstance(failure, LedgerCorrupt) and len(appends) > 1:
                    return [error for append in appends for error in self._commit([append])]
                return [error or failure for error in errors]
            self._stored.trim()
            self._group.open = self._stored.open_count
            self._rollup.add_all(fresh)
        return errors

    def _store(self, entries: list[Entry]) -> TokenworksError | None:
        number = self._number + 1
        last, self._last = self._last, None
        try:
            with self._writer.writing():
                head = self._write_block(entries, number, last)
        except CommitUnknown as error:
            kept = self._ask_until_known(lambda: self._written("number") >= number)
            if kept is None:
                self._broken = True  # nothing is written any more from what we believe
                return InDoubt(f"{CANNOT_TELL} {error.message}", hint=RESTART)
            if not kept:
                return error
        except (LedgerUnavailable, LedgerCorrupt) as error:
            return error
        self._number, self._known, self._head = number, True, head
        self._last = head if self._group.writers == 1 else None
        return None

    def _write_block(self, entries: list[Entry], number: int, last: ChainHead | None) -> ChainHead:
        at_unix_ns = entries[-1].at_unix_ns
        self._join(at_unix_ns)
        _still_ours(
            self._writer.change(
                # An entry that had to wait is old; we are not.
                "UPDATE owners SET number = ?, seen_unix_ns = "
                "CASE WHEN seen_unix_ns < ? THEN ? ELSE seen_unix_ns END "
                "WHERE owner = ? AND ended = 0",
                (number, at_unix_ns, at_unix_ns, self.owner),
            ),
            self.owner,
        )
        if self._leasing.version >= 0:  # it has asked for leases
            version, last = self._settings_and_last()
            self._spend(entries, version)
        if self._costs:
            cost_claims.advance(self._writer, self.owner, self._costs, entries)
        what = (self.owner, number, at_unix_ns, len(entries), encode_entries(entries))
        head = None if last is None else self._chain(last, *what)
        if head is None:
            _, last = self._settings_and_last()
            head = self._chain(last, *what)
        assert head is not None, last  # nobody else writes meanwhile
        return head

    def _chain(
        self, last: ChainHead, owner: str, number: int, at_unix_ns: int, count: int, payload: bytes
    ) -> ChainHead | None:
        """Add a block to a chain, inside a transaction; None if another block is there already."""
        seq, numbers = last.seq + 1, {"number": number, "at_unix_ns": at_unix_ns, "count": count}
        digest = hash_of(last.hash, seq=seq, owner=owner, payload=payload, **numbers)
        row = (seq, owner, number, at_unix_ns, count, payload, digest)
        return ChainHead(seq, digest) if self._writer.change(CHAIN_BLOCK, row) else None

    def _settings_and_last(self) -> tuple[int, ChainHead]:
        """The settings' version and the last block there is, inside a transaction."""
        [(version, seq, digest)] = self._writer.query(SETTINGS_AND_LAST_BLOCK)
        return int(version), ChainHead(0, GENESIS) if seq is None else ChainHead(seq, bytes(digest))

    def _spend(self, entries: Sequence[Entry], version: int) -> None:
        """Count what entries use against this process's leases, by settings of a version.

        A limit may have been set since this process last asked for a lease: another one that has
        asked since must not be given what is used here.
        """
        leasing = self._leasing
        if version != leasing.limits_version:
            leasing.limits_are(version, load_limits(self._writer))
        own, beyond = split(entries, leasing.by_node, self._counted)
        lease_tables.spend(self._writer, self.owner, own)
        lease_tables.spend_beyond(self._writer, beyond)

    def _ask_until_known(self, question: Callable[[], bool]) -> bool | None:
        """The answer to a question about what a broken commit has left; None if nobody answers.

        It is asked inside a transaction that writes: while the commit is still under way on the
        other side, that has to wait; and what a commit without a sync has left in SQLite's log is
        written over, so that what is not there now never will be.
        """
        until = time.monotonic() + DOUBT_S_MAX
        while time.monotonic() < until:
            try:
                with self._writer.writing():
                    self._writer.change(COUNT_QUESTION)
                    answer = question()
            except LedgerUnavailable:
                time.sleep(DOUBT_STEP_S)
            else:
                return answer
        return None

    def _written(self, column: str) -> int:
        rows = self._writer.query(f"SELECT {column} FROM owners WHERE owner = ?", (self.owner,))
        return int(rows[0][0]) if rows else 0

    def _roll_if_any(self) -> None:
        """Add the sums in memory to the tables; if that fails they stay, and are tried again.

        Each of them ends with a block, whose number the tables remember: a commit that could not
        be heard is found out the next time.
        """
        self._rolled_s = time.monotonic()
        if self._rolled_s - self._head_s >= HEAD_S:
            self._log_head()
        if self._rollup.entries:
            self._unrolled.append((self._number, self._rollup))
            self._rollup = Rollup()
        if not self._unrolled or self._broken:
            return
        try:
            with self._writer.writing():
                rolled = self._written("rolled")
                names = self._sums.write(
                    self._writer,
                    (rollup for number, rollup in self._unrolled if number > rolled),
                )
                holds = _ENCODER.encode(self._stored.open_holds())
                _still_ours(
                    self._writer.change(
                        "UPDATE owners SET rolled = ?, holds = ? WHERE owner = ? AND ended = 0",
                        (self._number, holds, self.owner),
                    ),
                    self.owner,
                )
        except LedgerUnavailable:
            return
        self._sums.keep(names)
        self._unrolled.clear()

    def _log_head(self) -> None:
        self._head_s = time.monotonic()
        if self._head is not None:
            _log.info("the ledger's chain ends with %s", self._head)
            self._head = None

    def rebuild_sums(self, unix_ns: int) -> int:
        """Make the tables of sums again from the blocks; how many entries that took.

        A process that appended meanwhile would wait for longer than it does, and give its answers
        away: so nobody else may be here.

        Args:
            unix_ns: now.

        Raises:
            LedgerUnavailable: another process was here a moment ago.
            LedgerCorrupt: an entry cannot be read.
        """
        with self._group.still, self._writer.writing():
            refuse_others(self._writer, unix_ns, self.owner)
            return self._sums.rebuild(self._writer)


def sqlite_store(
    path: Path,
    owner: str = "tool",
    *,
    sole: bool = False,
    shared: bool = False,
    create: bool = True,
) -> SQLStore:
    """A store in one SQLite file.

    Args:
        path: the file, in a folder that exists.
        owner: the process that appends.
        sole: refuse to open if another process has opened it so. A factory that does not lease
            its quotas must: two of them would each allow the whole of every limit.
        shared: refuse to open if another process has it ``sole``; a factory that leases its
            quotas must.
        create: make the file if it is missing.

    Raises:
        LedgerUnavailable: it cannot be opened, or another factory has it.
        LedgerCorrupt, ConfigInvalid: see ``SQLStore``.
    """
    with ExitStack() as stack:
        if sole or shared:
            lock = stack.enter_context(closing(SQLiteLock(path, shared=shared)))
        store = SQLStore(lambda: SQLiteDatabase(path, create=create), owner)
        if sole or shared:
            store.hold(lock.close)
        stack.pop_all()
    return store


def postgres_store(url: str, owner: str = "tool", *, sole: bool = False) -> SQLStore:
    """A store in a PostgreSQL database, which many processes may share.

    Args:
        url: ``postgresql://user:password@host:port/database``, as libpq reads it.
        owner: the process that appends.
        sole: refuse to open, and to append, while another process has opened it so.

    Raises:
        ConfigInvalid: the URL cannot be read, the driver is not installed; see also ``SQLStore``.
        LedgerUnavailable: the server cannot be reached, or another factory has the database.
        LedgerCorrupt: see ``SQLStore``.
    """
    # The lock belongs to the connection that appends: without the lock there is none.
    with_lock = iter((sole, False))
    return SQLStore(lambda: PostgresDatabase(url, sole=next(with_lock)), owner)


def _block_numbers(database: Database) -> dict[str, int]:
    rows = database.query("SELECT owner, number FROM owners WHERE number > 0")
    return {str(owner): int(number) for owner, number in rows}


def _holds_from(column: bytes) -> list[Reserved]:
    try:
        return _HOLDS.decode(bytes(column))
    except (msgspec.DecodeError, TypeError) as error:
        raise LedgerCorrupt(
            f"A list of open reservations cannot be read: {error}.", hint=RESTORE
        ) from error


def _open_holds(database: Database) -> list[Reserved]:
    """What a start would find open: what processes wrote down, and the blocks after that."""
    found: list[Reserved] = []
    for owner, rolled, holds in database.query(
        "SELECT owner, rolled, holds FROM owners WHERE ended = 0 ORDER BY owner"
    ):
        left = Stored()
        left.adopt(_holds_from(holds))
        for row in database.query(UNROLLED_OF, (owner, rolled)):
            left.admit(decode_entries(block_from(row)))
        found += left.open_holds()
    return found


def _still_ours(changed: int, owner: str) -> None:
    if changed != 1:
        raise TakenOver(
            f"Another process has taken over from {owner!r}, which it held for dead.",
            hint="Restart this one.",
        )

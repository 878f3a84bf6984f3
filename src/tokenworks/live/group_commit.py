"""Group commit: a thread stores at once whatever queued up while it stored what came before."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from tokenworks.core.errors import LedgerUnavailable, TokenworksError
from tokenworks.ledger.blocks import ENTRIES_MAX
from tokenworks.ledger.entries import Entry

QUEUE_LEN_MAX: Final = 20_000
"""Entries waiting to be written; fewer than the settlements that a ledger can take back."""

IDLE_S_MAX: Final = 5
"""How long the thread waits for entries before it looks after what it has put off."""

PATIENCE_S: Final = 0.02
"""How long a reservation may wait for a settlement to be stored with: nobody waits for it, and if
the process dies before, there is neither an answer to bill nor a hold to give back."""

COMMIT_S_MIN: Final = 0.002
"""From one commit to the next while there is always something to store. A sync costs the same for
many entries as for one; one that comes alone is stored at once."""

REST_S_MAX: Final = 0.02
"""The same for one of several processes, which rests while the others commit."""

Done = Callable[[TokenworksError | None], None]


class Batch:
    """Entries of one append, all or none, and whom to tell."""

    __slots__ = ("done", "entries", "future", "loop", "patient")

    def __init__(
        self,
        entries: tuple[Entry, ...],
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[None] | None,
        done: Done | None,
    ) -> None:
        self.entries, self.loop, self.future, self.done = entries, loop, future, done
        self.patient = done is None and all(entry.phase == "reserve" for entry in entries)
        """Whether it can wait for others that cannot."""


class GroupCommit:
    """The writer's thread and its queue.

    Args:
        commit: stores batches, in order, and returns for each of them what was wrong, if anything;
            called on the thread.
        idle: called on the thread when nothing has come for a while.
        queue_len_max: entries that may wait.

    Attributes:
        writers: processes that commit to the same ledger, this one included. All of them together
            then commit about as often as one does that is alone, since a commit costs what many
            answers do: each rests while the others have their turn.
    """

    def __init__(
        self,
        commit: Callable[[list[Batch]], list[TokenworksError | None]],
        idle: Callable[[], None],
        queue_len_max: int = QUEUE_LEN_MAX,
    ) -> None:
        assert queue_len_max > 0, queue_len_max
        self._commit, self._idle, self._queue_len_max = commit, idle, queue_len_max
        self._queue: list[Batch] = []
        self._queue_len = 0
        self._followers: list[list[Entry]] = []
        self._closing = False
        self._urgent = False
        self._asleep = False
        self._committed_s = self._took_s = 0.0
        self.writers = 1
        self._wake = threading.Condition()
        self.still = threading.Lock()
        """Held while entries are between the queue and the disk; who holds it sees all the rest."""
        self._writing = threading.Thread(target=self._run, name="ledger-store", daemon=True)
        self._writing.start()

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Queue some entries from a running loop; the future is done when they are stored."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        refusal = self._submit(Batch(tuple(entries), loop, future, None))
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def append_now(self, entries: Sequence[Entry]) -> None:
        """Queue some entries and wait.

        Raises:
            TokenworksError: they are not stored.
        """
        waiting: Future[TokenworksError | None] = Future()
        refusal = self._submit(Batch(tuple(entries), None, None, waiting.set_result))
        error = refusal or waiting.result()
        if error is not None:
            raise error

    def waiting(self, later: list[Entry] | None = None) -> list[Entry]:
        """Entries that are queued. Whoever holds ``still`` knows that all others are stored.

        Args:
            later: gets every entry that is queued from now on, until ``unfollow``.
        """
        with self._wake:
            if later is not None:
                self._followers.append(later)
            return [entry for batch in self._queue for entry in batch.entries]

    def unfollow(self, later: list[Entry]) -> list[Entry]:
        """Add nothing more to such a list; what it has got."""
        with self._wake:
            self._followers = [each for each in self._followers if each is not later]
        return later

    def close(self) -> None:
        """Store what is queued and end the thread; a second time does nothing."""
        with self._wake:
            self._closing = self._urgent = True
            self._wake.notify()
        self._writing.join()

    def _submit(self, batch: Batch) -> LedgerUnavailable | None:
        with self._wake:
            if self._closing:
                return LedgerUnavailable("The ledger store is closed.")
            # One that waits alone is always taken: what a dead process left open comes at once.
            if self._queue and self._queue_len + len(batch.entries) > self._queue_len_max:
                return LedgerUnavailable(
                    f"{self._queue_len} entries wait to be written, of {self._queue_len_max} "
                    "that may.",
                    hint="Look at the disk that holds the ledger, or at its database server.",
                    retry_after_s=1,
                )
            # Once it is told that it cannot wait, it need not be told again; and what can wait
            # wakes it only from a long sleep.
            if not self._urgent and (self._asleep or not batch.patient):
                self._wake.notify()
            self._urgent = self._urgent or not batch.patient
            self._asleep = False
            self._queue.append(batch)
            self._queue_len += len(batch.entries)
            for later in self._followers:
                later.extend(batch.entries)
        return None

    def _run(self) -> None:
        batches: list[Batch] = []
        try:
            while self._wait():
                with self.still:
                    batches = self._take()
                    began_s = time.monotonic()
                    errors = self._commit(batches) if batches else []
                    self._committed_s = time.monotonic()
                    self._took_s = self._committed_s - began_s
                    if not batches:
                        self._idle()
                _tell(batches, errors)
                # What has been answered must not look unanswered if the thread stops later.
                batches = []
        finally:
            # Reached with batches only by a mistake of ours; nobody may wait for ever on it.
            with self._wake:
                self._closing = True
                batches += self._queue
                self._queue = []
            stopped = LedgerUnavailable("The ledger store's writer has stopped.")
            _tell(batches, [stopped] * len(batches))

    def _wait(self) -> bool:
        """Until something is to be stored, or for a while; False when there is nothing left."""
        with self._wake:
            self._wake.wait_for(lambda: self._urgent, timeout=PATIENCE_S)
            if not self._queue and not self._closing:
                self._asleep = True
                self._wake.wait_for(lambda: self._queue or self._closing, timeout=IDLE_S_MAX)
                self._asleep = False
                if not self._urgent and self._queue:
                    self._wake.wait_for(lambda: self._urgent, timeout=PATIENCE_S)
            closing = self._closing
        rest_s = self._committed_s + self._rest_s() - time.monotonic()
        if rest_s > 0 and not closing:
            time.sleep(rest_s)
        return bool(self._queue) or not closing

    def _rest_s(self) -> float:
        """From one commit to the next."""
        if self.writers == 1:
            return COMMIT_S_MIN
        others_s = (self.writers - 1) * (COMMIT_S_MIN + self._took_s)
        return min(COMMIT_S_MIN + others_s, REST_S_MAX)

    def _take(self) -> list[Batch]:
        """The next batches, no more than fit a block."""
        with self._wake:
            count = taken = 0
            for batch in self._queue:
                if taken and count + len(batch.entries) > ENTRIES_MAX:
                    break
                taken, count = taken + 1, count + len(batch.entries)
            batches, self._queue = self._queue[:taken], self._queue[taken:]
            self._queue_len -= count
            self._urgent = self._closing or any(not batch.patient for batch in self._queue)
            return batches


def _tell(batches: list[Batch], errors: list[TokenworksError | None]) -> None:
    """Answer everybody; those of one loop by one call."""
    by_loop: dict[
        asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], TokenworksError | None]]
    ] = {}
    for batch, error in zip(batches, errors, strict=True):
        if batch.loop is not None and batch.future is not None:
            by_loop.setdefault(batch.loop, []).append((batch.future, error))
        elif batch.done is not None:
            batch.done(error)
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_finish, answers)
        except RuntimeError:
            # The loop has closed: nobody waits, and what is written stays written.
            continue


def _finish(answers: list[tuple[asyncio.Future[None], TokenworksError | None]]) -> None:
    for future, error in answers:
        if future.done():  # its waiter was cancelled
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

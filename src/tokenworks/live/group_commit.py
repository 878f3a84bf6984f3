"""Group commit: a thread stores at once whatever queued up while it stored what came before."""

from __future__ import annotations

import asyncio
import enum
import functools
import threading
import time
from asyncio import get_running_loop
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import Future
from typing import Final

from tokenworks.core.errors import LedgerUnavailable, TokenworksError
from tokenworks.ledger.blocks import ENTRIES_MAX
from tokenworks.ledger.entries import Entry, Reserved
from tokenworks.ledger.store_port import Told
from tokenworks.live.running import running_loop

QUEUE_LEN_MAX: Final = 20_000
"""Entries waiting to be written; fewer than the settlements that a ledger can take back."""

IDLE_S_MAX: Final = 5
"""How long the thread waits for entries before it looks after what it has put off."""

PATIENCE_S: Final = 0.01
"""How long reservations may wait here for a settlement to be stored with: nobody waits for them,
and if the process dies before, there is neither an answer to bill nor a hold to give back. While
many requests are open, so may settlements of streams that took long: their callers have all but the
end."""

COMMIT_S_MIN: Final = 0.002
"""From one commit to the next at the least. A sync costs the same for many entries as for one; one
that comes alone is stored at once."""

COMMIT_S_MAX: Final = 0.004
"""The same while many requests are open. The writer rests as long as its last commit took for each
of them, since each will want to be stored: so few wait for little, and of many some come together.
An answer's end comes that much later at the most."""

REST_S_MAX: Final = 0.02
"""The same for one of several processes, which rests while each of the others commits and rests as
it would alone."""

BUSY_S_MIN: Final = 0.01
"""Many requests are open where a commit for each of them would take this long together."""


class _Append:
    """Entries of one append, all or none, and whom to tell: on a loop, or on the writer's thread.

    Args:
        entries: these.
        told: see ``LedgerStore.keep``.
        loop: on which it is called; None for the thread.

    Attributes:
        error: what was wrong, if anything, once that is known.
    """

    __slots__ = ("entries", "error", "loop", "told")

    def __init__(
        self, entries: Sequence[Entry], told: Told, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.entries = entries
        self.told = told
        self.loop = loop
        self.error: TokenworksError | None = None


class _Doze(enum.Enum):
    """What wakes the writer's thread."""

    NOTHING = enum.auto()
    URGENT = enum.auto()
    ANYTHING = enum.auto()


_NOTHING: Final = _Doze.NOTHING
_URGENT: Final = _Doze.URGENT
_ANYTHING: Final = _Doze.ANYTHING


class GroupCommit:
    """The writer's thread and its queue.

    Args:
        commit: stores the entries of some appends, in order, and returns for each append what was
            wrong, if anything; called on the thread.
        idle: called on the thread when nothing has come for a while.
        queue_len_max: entries that may wait.

    Attributes:
        writers: processes that commit to the same ledger, this one included. All of them together
            then commit about as often as one does that is alone, since a commit costs what many
            answers do: each rests while the others have their turn.
        open: requests that are open, and will be settled, besides those that ``keep`` is told of;
            whoever commits says so.
    """

    def __init__(
        self,
        commit: Callable[[list[Sequence[Entry]]], Sequence[TokenworksError | None]],
        idle: Callable[[], None],
        queue_len_max: int = QUEUE_LEN_MAX,
    ) -> None:
        assert queue_len_max > 0, queue_len_max
        self._commit, self._idle, self._queue_len_max = commit, idle, queue_len_max
        self._queue: list[_Append] = []
        self._queue_len = 0
        self._followers: list[list[Entry]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._urgent = False
        self._committed_s = self._took_s = 0.0
        self.writers = 1
        self.open = self._held_count = 0
        self._held_back: Sized = ()
        self._lock = threading.Lock()
        self._doze = _NOTHING
        self._bell = threading.Lock()
        """Held, until somebody rings: who finds the thread dozing, and changes that."""
        self._bell.acquire()
        self.still = threading.Lock()
        """Held while entries are between the queue and the disk; who holds it sees all the rest."""
        self._writing = threading.Thread(target=self._run, name="ledger-store", daemon=True)
        self._writing.start()

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Queue some entries from a running loop; the future is done when they are stored."""
        loop = get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        refusal = self._submit(_Append(entries, functools.partial(_answer, future), loop))
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def keep(
        self, entries: Sequence[Entry], told: Told, held_back: Sized = (), *, patient: bool = False
    ) -> None:
        """Queue some entries from a running loop; see ``LedgerStore.keep``."""
        self._held_back = held_back
        loop = self._loop = running_loop(self._loop)
        refusal = self._submit(_Append(entries, told, loop), may_wait=patient)
        if refusal is not None:
            loop.call_soon(told, entries, refusal)

    def append_now(self, entries: Sequence[Entry]) -> None:
        """Queue some entries and wait.

        Raises:
            TokenworksError: they are not stored.
        """
        waiting: Future[TokenworksError | None] = Future()
        refusal = self._submit(_Append(entries, lambda _, error: waiting.set_result(error), None))
        error = refusal or waiting.result()
        if error is not None:
            raise error

    def waiting(self, later: list[Entry] | None = None) -> list[Entry]:
        """Entries that are queued. Whoever holds ``still`` knows that all others are stored.

        Args:
            later: gets every entry that is queued from now on, until ``unfollow``.
        """
        with self._lock:
            if later is not None:
                self._followers.append(later)
            return [entry for append in self._queue for entry in append.entries]

    def unfollow(self, later: list[Entry]) -> list[Entry]:
        """Add nothing more to such a list; what it has got."""
        with self._lock:
            self._followers = [each for each in self._followers if each is not later]
        return later

    def close(self) -> None:
        """Store what is queued and end the thread; a second time does nothing."""
        with self._lock:
            self._closing = self._urgent = True
            if self._doze is not _NOTHING:
                self._ring()
        self._writing.join()

    def _submit(self, append: _Append, *, may_wait: bool = False) -> LedgerUnavailable | None:
        entries = append.entries
        # What ends with a reservation has nothing else.
        patient = append.loop is not None and bool(entries) and isinstance(entries[-1], Reserved)
        # The one that ends is open, too, and no company of its own.
        patient = patient or (may_wait and self._open_s(but=1) >= BUSY_S_MIN)
        with self._lock:
            if self._closing:
                return LedgerUnavailable("The ledger store is closed.")
            # One that waits alone is always taken: what a dead process left open comes at once.
            if self._queue and self._queue_len + len(entries) > self._queue_len_max:
                return LedgerUnavailable(
                    f"{self._queue_len} entries wait to be written, of {self._queue_len_max} "
                    "that may.",
                    hint="Look at the disk that holds the ledger, or at its database server.",
                    retry_after_s=1,
                )
            self._queue.append(append)
            self._queue_len += len(entries)
            for later in self._followers:
                later.extend(entries)
            if not patient:
                self._urgent = True
            # While it rests or works nobody need ring: it looks before it dozes.
            doze = self._doze
            if doze is _ANYTHING or (doze is _URGENT and not patient):
                self._ring()
        return None

    def _ring(self) -> None:
        """With the lock held: wake the thread, which dozes."""
        self._doze = _NOTHING
        self._bell.release()

    def _run(self) -> None:
        appends: list[_Append] = []
        try:
            while self._wait():
                with self.still:
                    appends = self._take()
                    began_s = time.monotonic()
                    errors: Sequence[TokenworksError | None] = ()
                    if appends:
                        errors = self._commit([append.entries for append in appends])
                    self._committed_s = time.monotonic()
                    self._took_s = self._committed_s - began_s
                    if not appends:
                        self._idle()
                _tell(appends, errors)
                # What has been answered must not look unanswered if the thread stops later.
                appends = []
        finally:
            # Reached with appends only by a mistake of ours; nobody may wait for ever on it.
            with self._lock:
                self._closing = True
                appends += self._queue
                self._queue = []
            stopped = LedgerUnavailable("The ledger store's writer has stopped.")
            _tell(appends, [stopped] * len(appends))

    def _wait(self) -> bool:
        """Until something is to be stored, or for a while; False when there is nothing left."""
        rest_s = self._committed_s + self._rest_s() - time.monotonic()
        if rest_s > 0 and not self._closing:
            time.sleep(rest_s)
        self._sleep(_URGENT, PATIENCE_S)
        if not self._queue:
            self._sleep(_ANYTHING, IDLE_S_MAX)
            if self._queue:
                self._sleep(_URGENT, PATIENCE_S)
        return bool(self._queue) or not self._closing

    def _sleep(self, doze: _Doze, s_max: float) -> None:
        """Until what wakes from this doze is there, or for so long."""
        with self._lock:
            if self._urgent or (doze is _ANYTHING and self._queue):
                return
            self._doze = doze
        if self._bell.acquire(timeout=s_max):
            return
        with self._lock:
            if self._doze is _NOTHING:
                self._bell.acquire()  # rung at the last moment
            self._doze = _NOTHING

    def _rest_s(self) -> float:
        """From one commit to the next."""
        alone_s = max(COMMIT_S_MIN, min(self._open_s(), COMMIT_S_MAX))
        others_s = (self.writers - 1) * (alone_s + self._took_s)
        return min(alone_s + others_s, REST_S_MAX)

    def _open_s(self, but: int = 0) -> float:
        """What commits like the last take, one for each request that is open, but for so many."""
        return (self.open + self._held_count - but) * self._took_s

    def _take(self) -> list[_Append]:
        """The next appends, no more than fit a block."""
        with self._lock:
            # As of what is taken: while that is stored, all that are kept back may be settled.
            self._held_count = len(self._held_back)
            appends, self._queue = self._queue, []
            self._urgent = self._closing
            if self._queue_len <= ENTRIES_MAX:
                self._queue_len = 0
                return appends
            count = taken = 0
            for append in appends:
                if taken and count + len(append.entries) > ENTRIES_MAX:
                    break
                taken, count = taken + 1, count + len(append.entries)
            self._queue_len -= count
            appends, self._queue = appends[:taken], appends[taken:]
            self._urgent = self._closing or bool(self._queue)
            return appends


def _tell(appends: list[_Append], errors: Sequence[TokenworksError | None]) -> None:
    """Answer everybody; those of one loop by one call."""
    assert len(appends) == len(errors), errors
    by_loop: dict[asyncio.AbstractEventLoop, list[_Append]] = {}
    for append, error in zip(appends, errors, strict=True):
        append.error = error
        loop = append.loop
        if loop is None:
            append.told(append.entries, error)
        elif loop in by_loop:
            by_loop[loop].append(append)
        else:
            by_loop[loop] = [append]
    for loop, answered in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell_all, answered)
        except RuntimeError:
            continue  # a loop that has closed: nobody waits, and what is written stays written


def _tell_all(appends: list[_Append]) -> None:
    for append in appends:
        append.told(append.entries, append.error)


def _answer(
    future: asyncio.Future[None], _: Sequence[Entry], error: TokenworksError | None
) -> None:
    if future.done():  # its waiter was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)

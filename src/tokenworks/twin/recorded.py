"""From a journal of a factory, live or modelled, back to a factory and a workload to be run again.

What is recorded is taken: arrivals, tenants, tiers, the hashes of prompts' blocks, lengths of
answers that ended, workers and when they came and went. Who had which request is no event: it is
what the dispatcher decided, so its decisions are made again, and believed for as long as they are
those on record. What no journal knows is estimated and counted: how long an answer would have
become that was turned away, and the iterations of engines of which only a speed curve is known.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from msgspec import UNSET

from tokenworks.catalogue.price_book import PriceBook, parse_price_book
from tokenworks.core.errors import JournalInvalid
from tokenworks.core.ids import RequestID, WorkerID
from tokenworks.core.needs import NO_OFFERS
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS
from tokenworks.dispatch import journal_format, snapshot
from tokenworks.dispatch.commands import Preempt, Reject, Send
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import (
    Arrived,
    Configured,
    DecoderUp,
    Event,
    Failed,
    Finished,
    Started,
    Withdrawn,
    WorkerDown,
    WorkerUp,
)
from tokenworks.dispatch.journal_records import JournalEntry, JournalStart
from tokenworks.dispatch.settings import token_prices
from tokenworks.perf.timing import FS_PER_NS, FS_PER_S, Timing
from tokenworks.twin.driver import Driver, Hooks
from tokenworks.twin.records import (
    End,
    Outcomes,
    RunResult,
    Scenario,
    TwinRequest,
    WorkerSpec,
    WorkerUse,
)

HOST_KV_BLOCKS: Final = 1 << 20
"""A place in a host's memory is taken for so large: no journal says how large it is."""
OUTPUT_TOKENS_ASSUMED: Final = 300
"""Of an answer, where none of the journal's ended."""
PREFILL_PARTS: Final = 64
"""Assumed where nothing was measured: prefilling so many tokens takes as long as an iteration."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A worker went, or came again."""

    at_ns: int
    worker: WorkerID
    why: str | None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A factory and its workload, and what became of it.

    Attributes:
        scenario: the factory, under the policy that was recorded.
        requests: those that were answered, failed or were turned away, by arrival.
        result: how they fared, as far as the journal says; its workers did nothing.
        moves: workers that went, and came again.
        left_out: requests whose caller left, or that were open at the beginning or the end.
        lengths_estimated: requests of which nobody knows how long their answers would have been.
        timings_estimated: workers of which only a speed curve is known.
        settings_changed: times that the settings changed; the first hold for all.
    """

    scenario: Scenario
    requests: list[TwinRequest]
    result: RunResult
    moves: tuple[Move, ...]
    left_out: int
    lengths_estimated: int
    timings_estimated: int
    settings_changed: int

    def hooks(self) -> Hooks:
        """Makes the workers of a run go and come as they did."""
        return _Moves(self.moves)


class _Moves(Hooks):
    def __init__(self, moves: Sequence[Move]) -> None:
        self._moves = moves

    def begin(self, driver: Driver) -> None:
        for move in self._moves:
            act = functools.partial(driver.start, move.worker)
            if move.why is not None:
                act = functools.partial(driver.crash, move.worker, move.why)
            driver.at(move.at_ns, act)


class _Life(msgspec.Struct):
    """One request, as far as the journal tells of it; times are on the journal's clock."""

    arrived: Arrived
    sent_ns: int | None = None
    started_ns: int | None = None
    ended_ns: int | None = None
    end: End = End.OPEN
    finished: Finished | None = None
    worker: WorkerID | None = None
    placed: bool = False
    """Whether it is known which worker has it, if any."""

    @property
    def in_one_piece(self) -> bool:
        """Whether its answer comes so: nobody hears of its first token."""
        return self.arrived.unheard is True


class Reader:
    """Takes the records of a factory's journals, in their order.

    Args:
        restore: makes the dispatcher that decides again from a journal's snapshot.
    """

    def __init__(self, restore: Callable[[bytes], Dispatcher] = Dispatcher.restore) -> None:
        self._restore = restore
        self._again: Dispatcher | None = None
        self._configured: Configured | None = None
        self._settings_changed = 0
        self._began_ns: int | None = None
        self._now_ns = 0
        self._lives: dict[RequestID, _Life] = {}
        self._strangers: set[RequestID] = set()
        self._ups: dict[WorkerID, tuple[int, WorkerUp]] = {}
        self._is_up: set[WorkerID] = set()
        self._moves: list[Move] = []
        self._downs_ns: list[int] = []

    def take(self, records: Iterable[JournalStart | JournalEntry]) -> None:
        """Read on.

        Raises:
            JournalInvalid: a journal begins with a memory that this version cannot read.
        """
        for record in records:
            if isinstance(record, JournalEntry):
                if self._began_ns is None:
                    self._began_ns = record.now_ns
                self._now_ns = record.now_ns
                self._told(record.now_ns, record.event)
                self._decide(record)
            else:
                if self._began_ns is None:
                    self._remember(record)
                self._again = self._restore(record.snapshot)

    def _decide(self, record: JournalEntry) -> None:
        """Decide again, to know who has what; not once that differs from the record."""
        if self._again is None:
            return
        commands = self._again.handle(record.now_ns, record.event)
        if journal_format.commands_digest(commands) != record.commands_digest:
            self._again = None
            return
        for command in commands:
            if not isinstance(command, Send | Preempt | Reject):
                continue
            life = self._lives.get(command.request)
            if life is None:
                continue  # it was open before the journal began
            if isinstance(command, Send):
                life.worker, life.placed = command.worker, True
                life.sent_ns = record.now_ns
            elif isinstance(command, Preempt):
                life.worker = None
            elif life.end == End.OPEN:
                life.end = End.REJECTED if life.started_ns is None else End.FAILED
                life.ended_ns = record.now_ns

    def _fell(self, worker: WorkerID, now_ns: int) -> None:
        """Answers that went with their worker have no event of their own."""
        for life in self._lives.values():
            if life.worker == worker and life.end == End.OPEN and life.started_ns is not None:
                life.end, life.ended_ns = End.FAILED, now_ns

    def _remember(self, start: JournalStart) -> None:
        """What was there before the first event."""
        try:
            memory = snapshot.decode(start.snapshot)
        except msgspec.MsgspecError as error:
            raise JournalInvalid(
                f"The journal has a snapshot that this version cannot read: {error}.",
                hint=f"Replay it with tokenworks {start.header.package_version}.",
            ) from error
        if memory.configured is None:
            return
        self._began_ns, self._configured = memory.now_ns, memory.configured
        self._strangers = {request.request for request in memory.requests}
        for worker in memory.workers:
            up = WorkerUp(
                worker=worker.worker,
                pool=worker.pool,
                model=worker.model,
                slots=worker.engine_slots,
                curve=worker.curve,
                timing=worker.timing,
                kv_blocks=worker.kv_blocks,
                block_tokens=worker.block_tokens,
                batch_tokens_max=worker.batch_tokens_max,
                link_bytes_per_s=worker.link_bytes_per_s,
                kv_bytes_per_token=worker.kv_bytes_per_token,
                offers=UNSET if worker.offers == NO_OFFERS else worker.offers,
                preempts=worker.preempts or UNSET,
                host_bytes_per_s=worker.host_bytes_per_s or UNSET,
            )
            if worker.prefilled_by is not None:
                up = DecoderUp.of(up, worker.prefilled_by)
            self._told(memory.now_ns, up)

    def _told(self, now_ns: int, event: Event) -> None:
        if isinstance(event, Configured):
            if self._configured is None:
                self._configured = event
            elif event != self._configured:
                self._settings_changed += 1
        elif isinstance(event, WorkerUp):
            self._up(now_ns, event)
        elif isinstance(event, WorkerDown):
            if event.worker in self._is_up:
                self._is_up.remove(event.worker)
                self._fell(event.worker, now_ns)
                self._downs_ns.append(now_ns)
                self._moves.append(
                    Move(at_ns=self._since(now_ns), worker=event.worker, why=event.why)
                )
        elif isinstance(event, Arrived):
            self._lives.setdefault(event.request, _Life(event))
        elif isinstance(event, Started | Finished | Failed | Withdrawn):
            self._fared(now_ns, event)

    def _up(self, now_ns: int, event: WorkerUp) -> None:
        if event.worker in self._is_up:
            return  # it was measured again
        self._is_up.add(event.worker)
        if event.worker in self._ups:
            self._moves.append(Move(at_ns=self._since(now_ns), worker=event.worker, why=None))
        else:
            self._ups[event.worker] = (self._since(now_ns), event)

    def _fared(self, now_ns: int, event: Started | Finished | Failed | Withdrawn) -> None:
        life = self._lives.get(event.request)
        if life is None or life.end != End.OPEN:
            return
        if isinstance(event, Started):
            life.started_ns = now_ns
            if event.worker is not UNSET:
                life.worker = event.worker
        elif isinstance(event, Finished):
            life.end, life.ended_ns, life.finished = End.DONE, now_ns, event
        elif isinstance(event, Withdrawn):
            life.end, life.ended_ns = End.WITHDRAWN, now_ns
        elif event.started:
            life.end, life.ended_ns = End.FAILED, now_ns

    def _since(self, now_ns: int) -> int:
        assert self._began_ns is not None
        return max(0, now_ns - self._began_ns)

    # What it comes to.

    def recorded(self, name: str, books: Sequence[PriceBook]) -> Recorded:
        """The factory and its workload.

        Args:
            name: of the scenario, for people.
            books: price books that may have been in force; one is made of what the dispatcher was
                told if none of them was.

        Raises:
            JournalInvalid: it tells of no worker or of no request that ended.
        """
        configured = self._configured
        if configured is None or not self._ups:
            raise JournalInvalid(f"{name} tells of no worker.", hint="Take one that is longer.")
        lives = [life for life in self._lives.values() if self._counts(life, configured)]
        if not lives:
            raise JournalInvalid(
                f"{name} tells of no request that has ended.", hint="Take one that is longer."
            )
        lives.sort(key=lambda life: life.arrived.arrived_ns)
        sizes = _Sizes(lives)
        block_tokens = next(up.block_tokens for _, up in self._ups.values())
        requests = [self._request(life, sizes, block_tokens) for life in lives]
        longest = max(each.input_tokens + each.output_tokens for each in requests)
        scenario = Scenario(
            name=name,
            workers=tuple(
                _spec(up, start_ns, sizes.prefill_token_fs, longest)
                for start_ns, up in self._ups.values()
            ),
            configured=configured,
            book=book_of(configured, books),
            obeys_scaling=False,  # workers come and go as they did
        )
        return Recorded(
            scenario=scenario,
            requests=requests,
            result=self._result(lives, requests, scenario),
            moves=tuple(self._moves),
            left_out=len(self._lives) - len(lives) + len(self._strangers),
            lengths_estimated=sum(life.finished is None for life in lives),
            timings_estimated=sum(up.timing is None for _, up in self._ups.values()),
            settings_changed=self._settings_changed,
        )

    def _counts(self, life: _Life, configured: Configured) -> bool:
        """Whether a request is run again; says of one without an end how it must have ended."""
        if life.end == End.OPEN and life.started_ns is None:
            if life.in_one_piece:
                return False  # a worker may be at it
            patience_ns = configured.promises[life.arrived.tier].patience_ns
            if self._now_ns > life.arrived.arrived_ns + patience_ns:
                life.end, life.ended_ns = End.REJECTED, life.arrived.arrived_ns
        elif life.end == End.OPEN and life.started_ns is not None and not life.placed:
            # It may have been at any worker.
            for down_ns in self._downs_ns:
                if down_ns >= life.started_ns:
                    life.end, life.ended_ns = End.FAILED, down_ns
                    break
        return life.end in {End.DONE, End.FAILED, End.REJECTED}

    def _request(self, life: _Life, sizes: _Sizes, block_tokens: int) -> TwinRequest:
        arrived = life.arrived
        read = sizes.input_tokens(life)
        return TwinRequest(
            request=arrived.request,
            tenant=arrived.tenant,
            model=arrived.model,
            tier=arrived.tier,
            at_ns=self._since(arrived.arrived_ns),
            input_tokens=read,
            output_tokens=sizes.output_tokens(life),
            output_tokens_max=arrived.output_tokens_max,
            blocks=arrived.prefix[: read // block_tokens],
            session=arrived.session,
            needs=None if arrived.needs is UNSET else arrived.needs,
            hints=None if arrived.hints is UNSET else arrived.hints,
        )

    def _result(
        self, lives: Sequence[_Life], requests: Sequence[TwinRequest], scenario: Scenario
    ) -> RunResult:
        outcomes = Outcomes(len(lives))
        for place, life in enumerate(lives):
            outcomes.arrived_ns[place] = requests[place].at_ns
            outcomes.end[place] = life.end
            assert life.ended_ns is not None, life
            outcomes.finished_ns[place] = self._since(life.ended_ns)
            if life.started_ns is not None:
                started_ns = self._since(life.started_ns)
                sent = life.sent_ns
                outcomes.sent_ns[place] = started_ns if sent is None else self._since(sent)
                if not life.in_one_piece:
                    outcomes.first_token_ns[place] = started_ns
            if life.finished is not None:
                outcomes.output_tokens[place] = life.finished.output_tokens
                outcomes.cached_tokens[place] = life.finished.cached_input_tokens
        return RunResult(
            outcomes=outcomes,
            workers=tuple(_unused(spec) for spec in scenario.workers),
            ended_ns=self._since(self._now_ns),
            events=0,
            commands=0,
            journal_digest="",
            cpu_ns=0,
        )


class _Sizes:
    """Lengths and speeds, measured on the requests whose answers ended.

    Attributes:
        prefill_token_fs: time to first token by prompt token that was computed, of the quickest
            tenth, who hardly waited; None if nothing was measured.
    """

    def __init__(self, lives: Sequence[_Life]) -> None:
        outputs: dict[Tier, list[int]] = {}
        shares, prefills = [], []
        for life in lives:
            finished, arrived = life.finished, life.arrived
            if finished is None:
                continue
            outputs.setdefault(arrived.tier, []).append(finished.output_tokens)
            read = self._read(life)
            shares.append(read / arrived.input_tokens_max)
            if life.started_ns is not None and not life.in_one_piece:
                computed = max(1, read - finished.cached_input_tokens)
                prefills.append((life.started_ns - arrived.arrived_ns) * FS_PER_NS // computed)
        every = [tokens for each in outputs.values() for tokens in each]
        mean = round(statistics.fmean(every)) if every else OUTPUT_TOKENS_ASSUMED
        self._outputs = {
            tier: round(statistics.fmean(outputs[tier])) if tier in outputs else mean
            for tier in Tier
        }
        self._share = statistics.fmean(shares) if shares else 1.0
        prefills.sort()
        self.prefill_token_fs = prefills[len(prefills) // 10] if prefills else None

    @staticmethod
    def _read(life: _Life) -> int:
        """Tokens of the prompt of an answer that ended; a modelled run's bound is exact."""
        assert life.finished is not None
        return life.finished.input_tokens or life.arrived.input_tokens_max

    def input_tokens(self, life: _Life) -> int:
        """Of a prompt; where nobody counted, its bound's usual part."""
        if life.finished is not None:
            return max(1, self._read(life))
        return max(1, round(life.arrived.input_tokens_max * self._share))

    def output_tokens(self, life: _Life) -> int:
        """Of an answer; where there was none, the mean of its tier."""
        arrived = life.arrived
        if life.finished is not None:
            return max(1, life.finished.output_tokens)
        return max(1, min(arrived.output_tokens_max, self._outputs[arrived.tier]))


def _spec(up: WorkerUp, start_ns: int, prefill_token_fs: int | None, longest: int) -> WorkerSpec:
    """A recorded worker as an engine; what is not known of it does not bind."""
    timing = up.timing or timing_from(up.curve, prefill_token_fs)
    kv_blocks = up.kv_blocks
    if kv_blocks is None:
        kv_blocks = up.slots * -(-2 * longest // up.block_tokens)
    return WorkerSpec(
        worker=up.worker,
        pool=up.pool,
        model=up.model,
        timing=timing,
        slots=up.slots,
        kv_blocks=kv_blocks,
        block_tokens=up.block_tokens,
        batch_tokens_max=max(up.batch_tokens_max, up.slots),
        link_bytes_per_s=up.link_bytes_per_s,
        kv_bytes_per_token=up.kv_bytes_per_token,
        context_tokens_typical=0,
        curve=up.curve,
        start_ns=start_ns,
        offers=NO_OFFERS if up.offers is UNSET else up.offers,
        preempts=up.preempts is True,
        host_kv_blocks=HOST_KV_BLOCKS if up.host_bytes_per_s is not UNSET else 0,
        host_bytes_per_s=0 if up.host_bytes_per_s is UNSET else up.host_bytes_per_s,
    )


def timing_from(curve: Sequence[tuple[int, int]], prefill_token_fs: int | None) -> Timing:
    """Iterations that give a measured curve's speed at its ends, whatever the context.

    Args:
        curve: pairs (batch, tokens per second per user).
        prefill_token_fs: what a prompt's token takes, if that was measured.

    >>> timing = timing_from(((1, 100), (11, 50)), None)
    >>> [timing.speed_tokens_per_s(batch, 0) for batch in (1, 11)]
    [100, 50]
    """
    (few, fast), (many, slow) = curve[0], curve[-1]
    fast_fs, slow_fs = FS_PER_S // max(1, fast), FS_PER_S // max(1, slow)
    sequence_fs = max(0, slow_fs - fast_fs) // max(1, many - few)
    launch_fs = max(FS_PER_NS, fast_fs - few * sequence_fs)
    return Timing(
        launch_fs=launch_fs,
        sequence_fs=sequence_fs,
        context_token_fs=0,
        prefill_token_fs=launch_fs // PREFILL_PARTS
        if prefill_token_fs is None
        else prefill_token_fs,
        prefill_context_fs=0,
    )


def _unused(spec: WorkerSpec) -> WorkerUse:
    return WorkerUse(
        worker=spec.worker,
        up_ns=0,
        busy_ns=0,
        iterations=0,
        prefill_tokens=0,
        output_tokens=0,
        hit_tokens=0,
        evicted_blocks=0,
        preemptions=0,
        kv_blocks_max=0,
    )


def book_of(configured: Configured, books: Sequence[PriceBook]) -> PriceBook:
    """The price book that was in force: the one that says what the dispatcher was told.

    If none does, one is made of that: list prices without credits, discounts or off-peak hours,
    and what free tokens earn as advertisers' money.

    Raises:
        JournalInvalid: it was told no prices.
    """
    for book in books:
        same = not configured.prices or token_prices(book) == configured.prices
        if same and book.promises == configured.promises:
            return book
    if not configured.prices:
        raise JournalInvalid(
            "The journal tells no prices, and no price book of the factory's folder promises what "
            "it tells.",
            hint="Name that folder with --home.",
        )
    free_udollars = max(
        (prices[Tier.FREE].output_udollars_per_mtok for prices in configured.prices.values()),
        default=0,
    )
    lines = [
        'name = "recorded"',
        "effective = 1970-01-01",
        'source = "A journal."',
        f"ad_income_udollars_per_mtok = {free_udollars}",
    ]
    for tier, promise in configured.promises.items():
        lines += [
            f"[tier.{tier}]",
            f"ttft_ms = {max(1, promise.ttft_ns // NS_PER_MS)}",
            f"interactivity_tokens_per_s = {promise.interactivity_tokens_per_s}",
            f"grace_ms = {promise.grace_ns // NS_PER_MS}",
            f"patience_ms = {max(1, promise.patience_ns // NS_PER_MS)}",
            f"output_tokens_default = {promise.output_tokens_default}",
        ]
    for model, prices in configured.prices.items():
        for tier, price in prices.items():
            output = 0 if tier is Tier.FREE else price.output_udollars_per_mtok
            lines += [
                f'[price."{model}".{tier}]',
                f"input_udollars_per_mtok = {price.input_udollars_per_mtok}",
                f"cached_input_udollars_per_mtok = {price.cached_udollars_per_mtok}",
                f"output_udollars_per_mtok = {output}",
            ]
    made = parse_price_book("\n".join(lines) + "\n")
    return msgspec.structs.replace(made, promises=configured.promises)

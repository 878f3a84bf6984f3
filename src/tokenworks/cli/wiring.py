"""Builds the factory: the only file that knows every room."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import logging
import os
import resource
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from tokenworks.catalogue.factory_config import (
    CurvePoint,
    FactoryConfig,
    PoolConfig,
)
from tokenworks.catalogue.price_book import PriceBooks
from tokenworks.cli.ledger_at import check_clock
from tokenworks.cli.membership import Member
from tokenworks.cli.policy_file import Chosen
from tokenworks.cli.twin_factory import Modelled, told_limits
from tokenworks.core.errors import ConfigInvalid, FactoryError
from tokenworks.core.ids import ModelName, PoolID, WorkerID
from tokenworks.core.ports import Clock, Desk, WorkerPort
from tokenworks.core.scopes import address_of, networks_of
from tokenworks.dispatch.commands import Scale
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.gateway.admin import Admin
from tokenworks.gateway.answer import Answers
from tokenworks.gateway.app import Gateway
from tokenworks.gateway.batch_line import BatchLines
from tokenworks.gateway.batch_runner import BatchRunner
from tokenworks.gateway.joined_metrics import joined
from tokenworks.gateway.metrics import GatewayMetrics
from tokenworks.gateway.server import GatewayServer
from tokenworks.gateway.telemetry import Telemetry, telemetry_of
from tokenworks.gateway.traced_desk import Exporter, TracedDesk
from tokenworks.ledger.actions import CreateKey
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.store_port import join, recover
from tokenworks.live.admission import Admission
from tokenworks.live.batch_room import StoredBatches
from tokenworks.live.clock import SystemClock
from tokenworks.live.driver import Driver
from tokenworks.live.driver_parts import LIMITS, DriverParts
from tokenworks.live.front import FrontDriver
from tokenworks.live.growth import Growth
from tokenworks.live.home import Curves, Home, foreman_facts, model_path
from tokenworks.live.journal import JournalWriter
from tokenworks.live.office import OWN_TENANT, Office, operator
from tokenworks.live.oidc import Issuer
from tokenworks.live.owner import OwnerDriver
from tokenworks.live.quota_leases import QuotaLeases
from tokenworks.live.seat import Seat
from tokenworks.live.store import SQLStore
from tokenworks.live.workers import (
    AttachedSpec,
    AttachedWorker,
    EmbeddedWorker,
    Worker,
    WorkerSpec,
    client_of,
)
from tokenworks.twin.clock import FastClock
from tokenworks.twin.records import speed_curve
from tokenworks.twin.serving import Engines, ModelledWorker

FILES_MAX: Final = 1 << 17
"""Sockets of callers and of workers; as many as any front door here can use."""

ALONE_S_MAX: Final = 30
"""How long an owner that has drained waits for the other processes to drain."""
GC_THRESHOLDS: Final = (20_000, 20, 20)
"""Objects made and not freed between two searches for cycles. A request makes hundreds and leaves
none behind, so that Python's own 700 would search what is in flight at every other request. Five
times a second the driver has the newest searched: what it remembers of answers is then passed over
by all later searches, which would stop everything for the longer, the more there is. Of those
searches every 20th takes the older ones in, some 4 s apart, and every 20th of these all of them."""

_log: Final = logging.getLogger("tokenworks.ledger")


def operator_key(home: Home, store: SQLStore, clock: Clock) -> str:
    """The secret of the key that the command line uses here; made at the first start."""
    secret = home.read_key()
    if secret is not None:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        for record in store.load_keys():
            if record.secret_sha256 == digest and record.revoked_unix_ns is None:
                return secret
    wish = CreateKey(tenant=OWN_TENANT, name="operator")
    office = Office(store, clock.unix_ns, home.load_packages, home.load_price_books)
    new = office.create_key(operator("the factory's first start"), wish)
    assert new.secret is not None
    home.write_private(home.key, new.secret + "\n")
    return new.secret


def curve_of(name: str, pool: PoolConfig, measured: Curves) -> tuple[CurvePoint, ...]:
    """A pool's speed: from its settings, else measured here, else as shipped."""
    return pool.curve or measured.get(name, ()) or foreman_facts().curve


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Search for cycles seldom, and never among what is there now, for the length of a block."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def many_files() -> int | None:
    """Let this process have as many sockets and files open as its hard limit allows.

    Returns:
        How many these are; None for any number.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft < most:
        with contextlib.suppress(ValueError):  # macOS says "unlimited" and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class Factory:
    """A whole factory in this process, its workers in theirs.

    Args:
        home: where it keeps what it owns.
        settings: pools and gateway.
        books: prices and promises, by the day they hold from.
        host, port: where to listen; port 0 takes any.
        chosen: who decides.
        modelled: the workers, if they are only modelled.
        member: which of several processes this is; None if it is the only one.
        on_hung: told the indices of processes that the owner cannot go on beside.
    """

    _otlp: Exporter | None = None
    _runner: BatchRunner | None = None
    _lost: bool = False

    def __init__(
        self,
        home: Home,
        settings: FactoryConfig,
        books: PriceBooks,
        *,
        host: str,
        port: int,
        chosen: Chosen,
        modelled: Modelled | None = None,
        member: Member | None = None,
        on_hung: Callable[[list[int]], None] | None = None,
    ) -> None:
        self._member, shared = member, home.shares_ledger() or member is not None
        home.make()
        self._check_models(settings, books)
        dates = SystemClock()
        fast = None if modelled is None else FastClock(dates, modelled.speedup)
        self.clock: Clock = fast or dates
        owner = member.owner if member else f"factory-{os.getpid()}-{secrets.token_hex(4)}"
        self.workers, self.growth, self.first_up = list[Worker](), Growth(), asyncio.Event()
        with contextlib.ExitStack() as stack:
            shares_port = self._shares_port(settings)
            self.server = GatewayServer(host, port, shared=shares_port, files=many_files())
            stack.callback(self.server.stop)
            self.store = home.open_ledger(owner, sole=not shared, shared=shared)
            stack.callback(self.store.close)
            self._check_store()
            self.secret = operator_key(home, self.store, self.clock)
            ledger = (join if shared else recover)(self.store, self.clock.unix_ns())
            pools = {PoolID(name): pool for name, pool in settings.pool.items()}
            policy, speedup = chosen.settings, 1.0
            limits = told_limits(LIMITS, settings.dispatch)
            if modelled is not None:
                told = modelled.setting.scenario.configured
                policy, speedup = policy or told.policy, modelled.speedup
                limits = modelled.limits(settings.dispatch)
                pools = modelled.pools(by_date=True)
            parts = DriverParts(
                clock=self.clock,
                dispatcher=Dispatcher(chosen.own),
                ledger=ledger,
                store=self.store,
                books=books,
                pools=pools,
                journal=JournalWriter(home.journal),
                leases=self._leases(ledger, dates, shared=shared),
                policy=policy,
                limits=limits,
                ledger_clock=dates,
                speedup=speedup,
                on_scale=self._scale,
                scaling=None if modelled is None else modelled.scaling,
            )
            self.driver = self._kind_of_driver(on_hung)(parts)
            self._open_rooms(home, stack)
            self._admin = self._admin_of(home, settings, dates)
            self.gateway = self._gateway(settings)
            self._seat(settings, home, modelled, fast)
            stack.pop_all()

    def _seat(
        self,
        settings: FactoryConfig,
        home: Home,
        modelled: Modelled | None,
        fast: FastClock | None,
    ) -> None:
        if modelled is not None and fast is not None:
            self._seat_modelled(modelled, fast)
        else:
            self._seat_pools(settings, home.load_curves())

    def _leases(self, ledger: Ledger, dates: Clock, *, shared: bool) -> QuotaLeases | None:
        """What shares the limits; one of several processes ends when it can store nothing more."""
        if not shared:
            return None
        return QuotaLeases(ledger, self.store, dates, None if self._member is None else self._end)

    def _end(self) -> None:
        """Cut off what is open, which cannot be billed any more: the supervisor starts it again."""
        self._lost = True
        for _ in range(2):
            self.server.stop()

    def _kind_of_driver(self, on_hung: Callable[[list[int]], None] | None) -> Callable[..., Driver]:
        """A driver with a dispatcher for itself, for others too, or with that of another one."""
        member = self._member
        self._attached: dict[WorkerID, AttachedSpec] = {}
        if member is None:
            return Driver
        if member.index == 0:
            assert on_hung is not None
            fronts = frozenset(range(1, member.count) if member.dead else ())
            return functools.partial(OwnerDriver, fronts=fronts, text=self._text, on_hung=on_hung)
        return functools.partial(
            FrontDriver,
            index=member.index,
            name=member.owner,
            path=member.path,
            reach=lambda seat: client_of(self._attached[seat.worker]),
            embedded=lambda seat: (
                embedded_spec(seat.worker, seat.pool, seat.config).connections_max
            ),
            text=self._text,
            first_up=self.first_up,
        )

    def _text(self) -> bytes:
        return self.gateway.metrics.text()

    async def _scrape(self) -> bytes:
        """The metrics of all processes."""
        assert isinstance(self.driver, OwnerDriver | FrontDriver)
        return joined(await self.driver.texts())

    def _gateway(self, settings: FactoryConfig) -> Gateway:
        metrics = GatewayMetrics()
        metrics.watch(self.driver.gauges)
        told = settings.telemetry
        wanted = telemetry_of(told.otlp, told.content, os.environ)
        desk: Desk = self.driver
        if wanted is not None:
            otlp = self._otlp = _exporter(wanted, metrics)
            desk = TracedDesk(self.driver, self.clock, otlp, content=wanted.content)
        if (
            self._batches is not None
            and not settings.gateway.pass_through
            and not isinstance(self.driver, FrontDriver)  # it cannot tell what is free
        ):
            self._runner = self._batch_runner(self._batches, desk, metrics)
        return Gateway(
            desk,
            self.clock,
            metrics=metrics,
            shelf=self._shelf,
            admin=self._admin,
            files=None if self._batches is None else self._batches.files,
            batches=self._batches,
            passes_on=settings.gateway.pass_through,
            trusted_proxies=networks_of(settings.gateway.trusted_proxies, "trusted_proxies"),
            scrape=None if self._member is None else self._scrape,
        )

    def _shares_port(self, settings: FactoryConfig) -> bool:
        return settings.gateway.share_port or self._member is not None

    def _admin_of(self, home: Home, settings: FactoryConfig, dates: Clock) -> Admin | None:
        """The admin API, where it is wanted."""
        wanted = settings.gateway.admin
        local = address_of(self.server.address[0])
        here = local is not None and local.is_loopback
        if wanted == "off" or (wanted == "local" and not here):
            return None
        office = Office(self.store, dates.unix_ns, home.load_packages, home.load_price_books)
        return Admin(
            office,
            Admission(
                self.store,
                dates.unix_ns,
                Issuer(settings.oidc, dates.unix_ns) if settings.oidc.issuer else None,
            ),
            trusted_proxies=networks_of(settings.gateway.trusted_proxies, "trusted_proxies"),
            local_only=wanted == "local",
        )

    def _open_rooms(self, home: Home, stack: contextlib.ExitStack) -> None:
        """What callers keep here: answers that others go on from, and batches where they are."""
        self._shelf = stack.enter_context(contextlib.closing(home.open_shelf()))
        self._batches: StoredBatches | None = None
        if home.shares_batches():
            self._batches = stack.enter_context(contextlib.closing(home.open_batches()))

    def _batch_runner(
        self, batches: StoredBatches, desk: Desk, metrics: GatewayMetrics
    ) -> BatchRunner:
        """What runs batches in this process; with ``pass_through`` they are the provider's."""
        answers = Answers(desk, self.clock, metrics, self._shelf)
        return BatchRunner(
            batches=batches,
            files=batches.files,
            lines=BatchLines(answers, self.clock, self._shelf),
            desk=desk,
            clock=self.clock,
            gauges=self.driver.gauges,
            billed=lambda names, since: asyncio.to_thread(self.store.billed, names, since),
            stopping=lambda: self.server.draining,
        )

    def _check_store(self) -> None:
        if self._member is not None:
            self.store.take_turns(self._member.count)
            for dead in self._member.dead:
                self.store.declare_dead(dead)
        try:
            check_clock(self.store, self.clock.unix_ns())
        except ConfigInvalid as error:
            _log.warning("%s. %s", error.message, error.hint)

    @staticmethod
    def _check_models(settings: FactoryConfig, books: PriceBooks) -> None:
        for book in books.all():
            for name, pool in settings.pool.items():
                if pool.model not in book.prices:
                    raise ConfigInvalid(
                        f"[pool.{name}] serves {pool.model!r}, which has no price in "
                        f"{book.price_id}.",
                        hint=f"Add [price.{pool.model}.*] to the price book.",
                    )

    def _scale(self, command: Scale) -> None:
        """Start what an embedded pool lacks, or stop what it gives back; others are only told."""
        self.gateway.metrics.wanted[command.pool] = command.workers
        self.growth.scale(command, self.driver.is_up)

    def _seat_pools(self, settings: FactoryConfig, curves: Curves) -> None:
        for name, pool in settings.pool.items():
            self._seat_pool(PoolID(name), pool, curve_of(name, pool, curves))

    def _seat_pool(self, pool: PoolID, config: PoolConfig, curve: tuple[CurvePoint, ...]) -> None:
        attached = config.engine == "attached"
        front = isinstance(self.driver, FrontDriver)
        seats = len(config.urls) if attached else config.workers_max or config.workers
        for i in range(seats):
            worker = WorkerID(f"{pool}-{i}")
            self.driver.seat(Seat(worker=worker, pool=pool, config=config, curve=curve))
            up = functools.partial(self._up, worker)
            down = functools.partial(self.driver.worker_down, worker)
            if attached:
                spec = AttachedSpec(
                    worker=worker,
                    pool=pool,
                    model=ModelName(config.model),
                    url=config.urls[i],
                    api_key=_worker_key(pool, config),
                    slots=config.slots,
                    whole_answers=config.whole_answers,
                )
                self._attached[worker] = spec
                if not front:
                    self.workers.append(AttachedWorker(spec, self.clock, up, down))
            elif not front:
                embedded = embedded_spec(worker, pool, config)
                if self._member is not None:
                    embedded = msgspec.structs.replace(embedded, clients=self._member.count)
                make = functools.partial(EmbeddedWorker, embedded, self.clock, up, down)
                if config.workers_max is not None:
                    self.growth.seat(pool, worker, make, first=i < config.workers)
                else:
                    self.workers.append(make())

    def _seat_modelled(self, modelled: Modelled, clock: FastClock) -> None:
        specs, pools = modelled.specs(), modelled.pools(by_date=False)
        engines = Engines(specs, clock, output_tokens=modelled.output_tokens)
        least = {pool.pool: pool.workers_min for pool in modelled.scaling}
        for index, spec in enumerate(specs):
            self.driver.seat(
                Seat(
                    worker=spec.worker,
                    pool=spec.pool,
                    config=pools[spec.pool],
                    curve=speed_curve(spec),
                    timing=spec.timing,
                    kv_blocks=spec.kv_blocks,
                    batch_tokens_max=spec.batch_tokens_max,
                    kv_bytes_per_token=spec.kv_bytes_per_token,
                    preempts=spec.preempts,
                    host_bytes_per_s=spec.host_bytes_per_s,
                )
            )
            up = functools.partial(self._up, spec.worker)
            down = functools.partial(self.driver.worker_down, spec.worker)
            make = functools.partial(ModelledWorker, engines, index, up, down)
            if spec.pool in least:
                self.growth.seat(spec.pool, spec.worker, make, first=least[spec.pool] > 0)
                least[spec.pool] -= 1
            else:
                self.workers.append(make())

    def _up(self, worker: WorkerID, client: WorkerPort) -> None:
        self.driver.worker_up(worker, client)
        self.first_up.set()

    async def run(self, ready: Callable[[Factory], None]) -> None:
        """Serve until SIGINT or SIGTERM, then finish what is open and write everything down."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self.server.stop)
        self.driver.begin()
        if self._otlp is not None:
            self._otlp.start()
        listener = await self._listen()
        for worker in self.workers:
            worker.start()
        self.growth.start()
        tasks = [
            asyncio.create_task(self.driver.housekeep()),
            asyncio.create_task(self._tell_ready(ready)),
        ]
        if isinstance(self.driver, FrontDriver):
            tasks.append(asyncio.create_task(self.driver.keep_linked()))
        if self._runner is not None:
            tasks.append(asyncio.create_task(self._runner.run()))
        for task in tasks:
            task.add_done_callback(self._stop_if_broken)
        try:
            await self.server.serve(self.gateway)
            if self._lost:
                raise FactoryError("This process can write no more.", hint="It starts again.")
            for task in tasks:
                if task.done():
                    task.result()  # what broke it is what the operator must see
            if isinstance(self.driver, OwnerDriver):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ALONE_S_MAX):
                        await self.driver.alone()  # the others drain, too, and need its dispatcher
        finally:
            if listener is not None:
                listener.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.driver.close()
            await asyncio.gather(*(worker.stop() for worker in self.workers), self.growth.stop())
            if self._otlp is not None:
                await asyncio.to_thread(self._otlp.stop)
            if self._admin is not None:
                await asyncio.to_thread(self._admin.close)
            await asyncio.to_thread(self.store.close)
            await asyncio.to_thread(self._shelf.close)
            if self._batches is not None:
                await asyncio.to_thread(self._batches.close)
            for name in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(ValueError):
                    loop.remove_signal_handler(name)

    async def _listen(self) -> asyncio.Server | None:
        """Let other processes ask this one's dispatcher."""
        if self._member is None or not isinstance(self.driver, OwnerDriver):
            return None
        return await self.driver.listen(socket.socket(fileno=self._member.descriptor))

    def _stop_if_broken(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.server.stop()

    async def _tell_ready(self, ready: Callable[[Factory], None]) -> None:
        await self.first_up.wait()
        ready(self)


def _exporter(wanted: Telemetry, metrics: GatewayMetrics) -> Exporter:
    """What exports spans and metrics; imported here alone, as it is slow and may be absent."""
    try:
        from tokenworks.gateway.otlp import Otlp
    except ImportError as error:
        raise ConfigInvalid(
            f"Spans and metrics cannot be exported: {error}.",
            hint="Install the extra: pip install 'tokenworks[otel]'; or unset what asks for it.",
        ) from error
    otlp = Otlp(wanted.endpoint, metrics.tallies)
    metrics.registry.register(otlp)
    return otlp


def _worker_key(pool: PoolID, config: PoolConfig) -> str | None:
    if not config.key_env:
        return None
    key = os.environ.get(config.key_env)
    if not key:
        raise ConfigInvalid(
            f"[pool.{pool}] key_env names the environment variable {config.key_env!r}, "
            "which is not set.",
            hint="Export it, or remove key_env if the servers need no key.",
        )
    return key


def embedded_spec(worker: WorkerID, pool: PoolID, config: PoolConfig) -> WorkerSpec:
    """What an embedded worker of a pool is started with.

    Raises:
        ConfigInvalid: no such weights, or a KV cache that full slots would exhaust.
    """
    path = model_path(config)
    if not config.path:
        need = config.slots * foreman_facts().context_tokens
        if config.context_tokens < need:
            raise ConfigInvalid(
                f"[pool.{pool}] context_tokens is {config.context_tokens}; {config.slots} slots "
                f"of {config.model} can fill {need}.",
                hint=f"Set context_tokens = {need}, or fewer slots.",
            )
    return WorkerSpec(
        worker=worker,
        pool=pool,
        model=ModelName(config.model),
        path=str(path),
        slots=config.slots,
        context_tokens=config.context_tokens,
        threads=config.threads,
    )

"""A factory's settings: where it listens, where its ledger is, its pools and what they cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from tokenworks.catalogue.toml_text import read_toml
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.core.needs import ADAPTERS_MAX, LABELS_MAX, Offers, words_of
from tokenworks.core.scopes import networks_of
from tokenworks.core.units import energy_nanodollars, hourly_nanodollars

WORKERS_MAX: Final = 1_024
SLOTS_MAX: Final = 4_096
PROCESSES_MAX: Final = 64
PERCENT_MAX: Final = 100
CURVE_POINTS_MAX: Final = 64
POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")

CurvePoint = tuple[int, int]
"""(batch, tokens/s/user at that batch)."""


ANY_MODEL: Final = "*"
"""The model of a pool that requests are passed on to as they came, whatever they ask for."""


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the gateway listens. Anything but loopback is the operator's explicit choice.

    Attributes:
        host, port: where.
        pass_through: pass on all that comes below ``/v1/`` as it is to the one pool there is, an
            attached provider whose ``model`` is ``*``.
        share_port: whether other factories on this machine may listen there, too, each for a part
            of the connections.
        processes: how many serve this factory, one core each, as ``tokenworks up --processes``.
        trusted_proxies: addresses of proxies whose ``x-forwarded-for`` is believed where a key may
            be used from some addresses only.
        admin: where the admin API is: for callers on this machine alone, while the gateway listens
            there alone (``local``), wherever the gateway listens, or nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    pass_through: bool = False
    share_port: bool = False
    processes: int = 1
    trusted_proxies: tuple[str, ...] = ()
    admin: Literal["local", "on", "off"] = "local"


class OIDCConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom people sign in with to manage the factory, by OpenID Connect.

    Attributes:
        issuer: its URL, exactly as it calls itself; nothing for nobody.
        audience: for whom its tokens must be.
        client_id: as what ``tokenworks login`` signs people in; ``audience`` if it is empty.
        groups_claim: the claim with a person's groups; one inside another is ``outer.inner``.
        groups: what each group manages: ``factory``, or a tenant as ``tenant:acme``.
        engineer_claim: the claim with a person's name as an engineer, one that people cannot
            change themselves; nothing for no engineer.
    """

    issuer: str = ""
    audience: str = ""
    client_id: str = ""
    groups_claim: str = "groups"
    groups: dict[str, str] = {}
    engineer_claim: str = ""


FACTORY_GROUP: Final = "factory"
"""What a group manages that manages the whole factory."""
_MANAGED: Final = re.compile(r"factory|tenant:[^\s/]+")


class LedgerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the ledger is kept. Nothing means the SQLite file in the factory's folder.

    Attributes:
        url: a PostgreSQL database, ``postgresql://user@host:port/database``.
        url_env: the environment variable that holds the URL, where it has a password.
        path: an SQLite file elsewhere, which factories on this machine may share.
    """

    url: str = ""
    url_env: str = ""
    path: str = ""

    def url_in(self, environment: Mapping[str, str]) -> str | None:
        """The URL, read from the environment if it is there; None for the SQLite file.

        Raises:
            ConfigInvalid: the variable is not set, or holds something else.
        """
        if not self.url_env:
            return self.url or None
        found = environment.get(self.url_env, "")
        if not found:
            raise ConfigInvalid(
                f"[ledger] url_env names {self.url_env!r}, which is not set.",
                hint=f"Set it to {POSTGRES_SCHEMES[0]}user:password@host:port/database.",
            )
        if not found.startswith(POSTGRES_SCHEMES):
            raise _no_postgres_url(f"The variable {self.url_env!r}")
        return found


class DispatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who decides where requests go.

    Attributes:
        policy: one that comes with the package, as ``tokenworks up --policy`` takes it; nothing
            means the dispatcher's own.
        policy_file: the operator's own, as ``tokenworks up --policy-file`` takes it.
        retry_percent: so many of 100 requests of a model are sent again at most because a worker
            broke off, beside a few that always are.
        hedge_percent: so many of 100 requests of a model are sent to a second worker at most, where
            the first has said nothing for too long; 0 for none.
        hedge_after_percent: of its tier's TTFT promise, after which that is too long.
    """

    policy: str = ""
    policy_file: str = ""
    retry_percent: int = 20
    hedge_percent: int = 0
    hedge_after_percent: int = 50


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pool of interchangeable workers.

    Attributes:
        engine: ``embedded`` starts our own workers; ``attached`` uses a server that runs already;
            ``modelled`` ones are computed, and stand in no file: ``tokenworks up --twin`` has them.
        model: the model it serves, as callers name it.
        path: a GGUF file for embedded workers; nothing means the model that ships with us.
        workers: how many embedded workers; of a pool that grows, at least so many.
        workers_max: as many as it may grow to when requests wait; None for a pool that does not
            grow. Of an attached pool it is only said that it wants more.
        slots: requests that one worker runs at once.
        context_tokens: KV cache of one embedded worker, shared by its slots.
        threads: CPU threads of one embedded worker.
        urls: the servers of an attached pool, ``http://host:port`` or ``https://host``; of
            a provider that requests are passed on to, what its paths follow, such as
            ``https://api.openai.com/v1``.
        key_env: the environment variable that holds the attached servers' key.
        power_w: electric power of the whole pool at work.
        energy_udollars_per_kwh: price of that power.
        capital_udollars_per_hour: write-down of the pool's hardware.
        curve: measured speed, batch rising; nothing means the measured or shipped one.
        labels: data labels: requests that carry others go to other pools.
        adapters: LoRA adapters that every server of an attached pool serves, by the names that it
            takes for ``model``.
        cache_salt: an attached pool's servers take vLLM's ``cache_salt``, which keeps the cached
            prompts of tenants apart.
        whole_answers: an attached pool's servers are asked for an answer in one piece where the
            caller asked for no stream.
    """

    engine: Literal["embedded", "attached", "modelled"]
    model: str
    path: str = ""
    workers: int = 1
    workers_max: int | None = None
    slots: int = 8
    context_tokens: int = 16_384
    threads: int = 1
    urls: tuple[str, ...] = ()
    key_env: str = ""
    power_w: int = 0
    energy_udollars_per_kwh: int = 0
    capital_udollars_per_hour: int = 0
    curve: tuple[CurvePoint, ...] = ()
    labels: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    cache_salt: bool = False
    whole_answers: bool = False

    @property
    def offers(self) -> Offers:
        """What its workers have beyond the model."""
        return Offers(labels=tuple(sorted(self.labels)), adapters=tuple(sorted(self.adapters)))

    @property
    def servers(self) -> str:
        """What tells an attached pool's servers from others; nothing for workers of our own.

        >>> PoolConfig(engine="attached", model="m", urls=("http://b:1/", "http://a:1")).servers
        'http://a:1 http://b:1'
        """
        return " ".join(sorted({url.rstrip("/") for url in self.urls}))

    def energy_nanodollars(self, duration_ns: int) -> int:
        """What the pool's power costs over a time.

        >>> PoolConfig(engine="embedded", model="m", power_w=1000,
        ...            energy_udollars_per_kwh=150_000).energy_nanodollars(3_600_000_000_000)
        150000000
        """
        return energy_nanodollars(self.power_w, self.energy_udollars_per_kwh, duration_ns)

    def capital_nanodollars(self, duration_ns: int) -> int:
        """What the pool's hardware loses in value over a time.

        >>> PoolConfig(engine="embedded", model="m",
        ...            capital_udollars_per_hour=20_000).capital_nanodollars(3_600_000_000_000)
        20000000
        """
        return hourly_nanodollars(self.capital_udollars_per_hour, duration_ns)


class TelemetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[telemetry]``: spans and metrics for OpenTelemetry.

    Attributes:
        otlp: a collector's address for OTLP over HTTP, such as ``http://127.0.0.1:4318``; nothing
            leaves it to OpenTelemetry's environment variables, and without these nothing is sent.
        content: prompts and answers are sent, too.
    """

    otlp: str = ""
    content: bool = False


class FactoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of ``factory.toml``."""

    pool: dict[str, PoolConfig]
    gateway: GatewayConfig = GatewayConfig()
    oidc: OIDCConfig = OIDCConfig()
    ledger: LedgerConfig = LedgerConfig()
    dispatch: DispatchConfig = DispatchConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


def parse_factory_config(text: str) -> FactoryConfig:
    """Read ``factory.toml``.

    Raises:
        ConfigInvalid: with the setting at fault.
    """
    config = read_toml(
        text,
        FactoryConfig,
        what="The factory's settings",
        hint="`tokenworks doctor --settings` prints settings that work.",
    )
    if not config.pool:
        raise ConfigInvalid("There is no pool.", hint="Add a [pool.NAME] table.")
    if not 0 <= config.gateway.port <= 65_535:
        raise ConfigInvalid(f"[gateway] port is {config.gateway.port!r}; it must be 0 to 65535.")
    if not 1 <= config.gateway.processes <= PROCESSES_MAX:
        raise ConfigInvalid(
            f"[gateway] processes is {config.gateway.processes!r}; it must be 1 to {PROCESSES_MAX}."
        )
    try:
        networks_of(config.gateway.trusted_proxies, "[gateway] trusted_proxies")
    except InvalidRequest as error:
        raise ConfigInvalid(error.message, hint=error.hint) from error
    _check_ledger(config.ledger)
    _check_oidc(config.oidc)
    if config.dispatch.policy and config.dispatch.policy_file:
        raise ConfigInvalid("[dispatch] has both policy and policy_file.", hint="Keep one.")
    for name in ("retry_percent", "hedge_percent", "hedge_after_percent"):
        percent = getattr(config.dispatch, name)
        if not 0 <= percent <= PERCENT_MAX:
            raise ConfigInvalid(f"[dispatch] {name} is {percent!r}; it must be 0 to {PERCENT_MAX}.")
    otlp = config.telemetry.otlp
    if otlp and not otlp.startswith(("http://", "https://")):
        raise ConfigInvalid(
            f"[telemetry] otlp is {otlp!r}.", hint="Name a collector: http://127.0.0.1:4318."
        )
    for name, pool in config.pool.items():
        _check_pool(name, pool)
    _check_pass_through(config)
    _check_whole_answers(config)
    return config


def _check_oidc(config: OIDCConfig) -> None:
    if not config.issuer:
        if config != OIDCConfig():
            raise ConfigInvalid("[oidc] has no issuer.", hint="Name it, or remove the table.")
        return
    if not config.audience:
        raise ConfigInvalid(
            "[oidc] has no audience.", hint="Name for whom tokens must be: the client's id."
        )
    if not config.groups:
        raise ConfigInvalid(
            "[oidc.groups] is empty, so that nobody could manage anything.",
            hint='Such as "platform-team" = "factory" or "acme-team" = "tenant:acme".',
        )
    for group, managed in config.groups.items():
        if not _MANAGED.fullmatch(managed):
            raise ConfigInvalid(
                f"[oidc.groups] {group!r} manages {managed!r}.",
                hint='Write "factory", or a tenant such as "tenant:acme".',
            )


def _check_pass_through(config: FactoryConfig) -> None:
    any_model = [name for name, pool in config.pool.items() if pool.model == ANY_MODEL]
    if config.gateway.pass_through and (len(config.pool) != 1 or not any_model):
        raise ConfigInvalid(
            "[gateway] pass_through needs one pool whose model is '*'.",
            hint='Have one attached pool with model = "*", and price "*" in the price book.',
        )
    for name in any_model:
        if config.pool[name].engine != "attached" or not config.gateway.pass_through:
            raise ConfigInvalid(
                f"[pool.{name}] serves '*', which only an attached provider does that requests are"
                " passed on to.",
                hint="Set [gateway] pass_through = true, or name the model.",
            )


def _check_whole_answers(config: FactoryConfig) -> None:
    """Refuse answers in one piece where somebody needs to see their tokens."""
    asking = {name: pool.model for name, pool in config.pool.items() if pool.whole_answers}
    for name, model in asking.items():
        where = f"[pool.{name}] whole_answers"
        if config.pool[name].engine == "embedded":
            raise ConfigInvalid(
                f"{where} is set, but embedded workers stream: they say how far they have read, by"
                " which callers who leave are billed.",
                hint="Leave it out; servers of an attached pool take it.",
            )
        if model == ANY_MODEL:
            raise ConfigInvalid(
                f"{where} is set, but what is passed on is asked for as its callers ask.",
                hint="Leave it out.",
            )
        if config.dispatch.hedge_percent:
            raise ConfigInvalid(
                f"{where} is set beside [dispatch] hedge_percent, which asks a second worker where"
                " the first says nothing: for a whole answer it says nothing until its end.",
                hint="Leave out one of the two.",
            )
    for name, pool in config.pool.items():
        if pool.model in asking.values() and name not in asking:
            raise ConfigInvalid(
                f"[pool.{name}] does not set whole_answers, but others that serve {pool.model!r}"
                " do, and what is asked is written before a pool is chosen.",
                hint="Set it for all pools of a model or for none.",
            )


def _check_ledger(ledger: LedgerConfig) -> None:
    given = [name for name in ("url", "url_env", "path") if getattr(ledger, name)]
    if len(given) > 1:
        raise ConfigInvalid(
            f"[ledger] has both {given[0]} and {given[1]}.",
            hint="Keep url_env where the URL has a password, url where not, path for a file.",
        )
    if ledger.url and not ledger.url.startswith(POSTGRES_SCHEMES):
        raise _no_postgres_url("[ledger] url")
    if ledger.url_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", ledger.url_env):
        # It may be the URL itself, which is not to be shown.
        raise ConfigInvalid(
            "[ledger] url_env is not the name of an environment variable.",
            hint="Put the URL itself into url, or into a variable.",
        )


def _no_postgres_url(what: str) -> ConfigInvalid:
    """The refusal of a URL, which it does not show: there may be a password in it."""
    return ConfigInvalid(
        f"{what} does not begin with {POSTGRES_SCHEMES[0]}.",
        hint="Leave [ledger] out to keep the ledger in the factory's folder.",
    )


def _check_pool(name: str, pool: PoolConfig) -> None:
    bounds = {
        "workers": (pool.workers, 1, WORKERS_MAX),
        "slots": (pool.slots, 1, SLOTS_MAX),
        "context_tokens": (pool.context_tokens, 256, 1 << 30),
        "threads": (pool.threads, 1, 1_024),
        "power_w": (pool.power_w, 0, 1 << 40),
        "energy_udollars_per_kwh": (pool.energy_udollars_per_kwh, 0, 1 << 40),
        "capital_udollars_per_hour": (pool.capital_udollars_per_hour, 0, 1 << 50),
    }
    for field, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ConfigInvalid(f"[pool.{name}] {field} is {value!r}; it must be {low} to {high}.")
    if pool.engine == "modelled":
        raise ConfigInvalid(
            f"[pool.{name}] is modelled.", hint="`tokenworks up --twin` runs modelled workers."
        )
    if not pool.model:
        raise ConfigInvalid(f"[pool.{name}] model is empty.", hint="Name what callers ask for.")
    if pool.engine == "embedded" and pool.urls:
        raise ConfigInvalid(
            f"[pool.{name}] is embedded but names servers.", hint='Set engine = "attached".'
        )
    if len(pool.urls) > WORKERS_MAX:
        raise ConfigInvalid(
            f"[pool.{name}] names {len(pool.urls)} servers, more than {WORKERS_MAX}."
        )
    least = max(pool.workers, len(pool.urls))
    if pool.workers_max is not None and not least <= pool.workers_max <= WORKERS_MAX:
        raise ConfigInvalid(
            f"[pool.{name}] workers_max is {pool.workers_max!r}; it must be {least} to "
            f"{WORKERS_MAX}.",
            hint="Leave it out for a pool that does not grow.",
        )
    if pool.engine == "attached" and not pool.urls:
        raise ConfigInvalid(
            f"[pool.{name}] is attached but names no server.",
            hint='Set urls = ["http://127.0.0.1:8001"].',
        )
    for field, words_max in (("labels", LABELS_MAX), ("adapters", ADAPTERS_MAX)):
        written = getattr(pool, field)
        try:
            words = words_of(",".join(written), field, words_max)
        except InvalidRequest as error:
            raise ConfigInvalid(f"[pool.{name}] {error.message}", hint=error.hint) from error
        if len(words) != len(written):
            raise ConfigInvalid(
                f"[pool.{name}] {field} is {list(written)!r}.",
                hint="Write each once, without spaces or commas in it.",
            )
    if pool.engine == "embedded" and (pool.adapters or pool.cache_salt):
        raise ConfigInvalid(
            f"[pool.{name}] is embedded; it takes neither adapters nor cache_salt.",
            hint="Attach a server that does.",
        )
    check_curve(pool.curve, f"[pool.{name}] curve")


def check_curve(curve: tuple[CurvePoint, ...], where: str) -> None:
    """Refuse a speed curve that is not one.

    Raises:
        ConfigInvalid: too many points, a batch or a speed below 1, or batches that do not rise.
    """
    if len(curve) > CURVE_POINTS_MAX:
        raise ConfigInvalid(f"{where} has {len(curve)} points, more than {CURVE_POINTS_MAX}.")
    batches = [batch for batch, _ in curve]
    if any(batch < 1 or speed < 1 for batch, speed in curve) or batches != sorted(set(batches)):
        raise ConfigInvalid(
            f"{where} is {curve!r}; batches must rise from 1 and speeds be 1 or more.",
            hint="`tokenworks tiers measure --write` makes one.",
        )

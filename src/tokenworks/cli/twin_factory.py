"""A factory of modelled workers: what ``tokenworks up --twin`` serves, and where it keeps that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec
from msgspec import UNSET

from tokenworks.catalogue.factory_config import DispatchConfig, FactoryConfig, PoolConfig
from tokenworks.catalogue.price_book import PriceBook, PriceBooks, parse_price_book
from tokenworks.cli.twin_systems import NO_SYSTEMS, AskedSystems
from tokenworks.cli.twin_workload import fleet_of
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import PoolID
from tokenworks.dispatch.events import Limits, PoolScale
from tokenworks.live.home import Home
from tokenworks.twin.records import WorkerSpec
from tokenworks.twin.scenarios import Setting
from tokenworks.twin.serving import served_spec

SPEEDUP_MIN, SPEEDUP_MAX = 0.001, 10_000.0
TWIN_HOME: Final = ".tokenworks-twin"


class Modelled(msgspec.Struct, frozen=True, kw_only=True):
    """A factory that is only modelled.

    Attributes:
        setting: the scenario.
        speedup: how many times as fast as the clock it lives.
        output_tokens: mean length of answers that nobody cuts short.
    """

    setting: Setting
    speedup: float
    output_tokens: int

    def specs(self) -> list[WorkerSpec]:
        """The engines as they serve."""
        return [served_spec(spec) for spec in self.setting.scenario.workers]

    @property
    def scaling(self) -> tuple[PoolScale, ...]:
        """Pools whose number of workers may change."""
        scaling = self.setting.scenario.configured.scaling
        return () if scaling is UNSET else scaling

    def limits(self, dispatch: DispatchConfig) -> Limits:
        """What the dispatcher may keep and do: as the scenario says, else the settings."""
        return told_limits(
            self.setting.scenario.configured.limits, dispatch, self.setting.limits_said
        )

    def pools(self, *, by_date: bool) -> dict[PoolID, PoolConfig]:
        """The engines as pools.

        Args:
            by_date: what they cost on the calendar, where a factory that lives faster costs more an
                hour; else on the factory's own clock.
        """
        rate = self.speedup if by_date else 1.0
        energy = self.setting.scenario.energy_udollars_per_kwh
        pools: dict[PoolID, PoolConfig] = {}
        for spec in self.setting.scenario.workers:
            have = pools.get(spec.pool)
            pools[spec.pool] = PoolConfig(
                engine="modelled",
                model=spec.model,
                workers=1 + (have.workers if have else 0),
                slots=spec.slots,
                labels=spec.offers.labels,
                adapters=spec.offers.adapters,
                cache_salt=True,
                power_w=spec.power_w + (have.power_w if have else 0),
                energy_udollars_per_kwh=round(energy * rate),
                capital_udollars_per_hour=round(spec.capital_udollars_per_hour * rate)
                + (have.capital_udollars_per_hour if have else 0),
            )
        return pools

    def settings(self, home: Home) -> FactoryConfig:
        """Its own pools, and the rest from the folder's ``factory.toml``."""
        pools = {str(name): pool for name, pool in self.pools(by_date=False).items()}
        return msgspec.structs.replace(home.load_settings(), pool=pools)


def told_limits(limits: Limits, dispatch: DispatchConfig, said: Collection[str] = ()) -> Limits:
    """These limits with those that the settings name.

    Args:
        limits: what is known without.
        dispatch: the settings.
        said: names of limits that are to stay.
    """
    named = set(limits.__struct_fields__).intersection(dispatch.__struct_fields__).difference(said)
    return msgspec.structs.replace(limits, **{name: getattr(dispatch, name) for name in named})


def modelled(
    *,
    scenario: str | None,
    engine: str | None,
    workers: int | None,
    speedup: float,
    output_tokens: int,
    hardware: AskedSystems = NO_SYSTEMS,
) -> Modelled:
    """A modelled factory from what the command line says.

    Raises:
        ConfigInvalid: there is no such scenario or engine, or it cannot be served.
        InvalidRequest: options that do not go together.
    """
    found, _ = fleet_of(scenario, engine, workers, hardware)
    apart = [spec.worker for spec in found.scenario.workers if spec.role != "both"]
    if apart:
        raise ConfigInvalid(
            f"{apart[0]!r} does not both prefill and decode, and only such workers can be served.",
            hint="`tokenworks twin run` runs the others.",
        )
    return Modelled(setting=found, speedup=speedup, output_tokens=output_tokens)


class _Mark(msgspec.Struct, frozen=True):
    """What a modelled factory leaves in its folder: the price book that it wrote there."""

    price_id: str


def claim(home: Home, factory: Modelled) -> PriceBooks:
    """Make a folder that of a modelled factory, and return the prices that hold there.

    The scenario's book is put there unless somebody has written another.

    Raises:
        ConfigInvalid: a real factory lives there, or the folder's prices are not for the model.
        LedgerUnavailable: another factory runs there, with other prices.
    """
    home.make()
    if not home.twin_mark.exists() and (home.key.exists() or home.has_ledger()):
        raise ConfigInvalid(
            f"{str(home.path)!r} is the folder of a real factory, whose books a model must not "
            "touch.",
            hint=f"Leave --home out for ~/{TWIN_HOME}, or name another folder.",
        )
    book, mark = factory.setting.scenario.book, _mark(home)
    if not home.price_book.exists() or _is_ours(home, mark):
        if home.has_ledger() and mark.price_id != book.price_id:
            home.open_ledger(sole=True).close()  # refuses while a factory bills by the old one
        home.write_private(home.price_book, book.text)
        mark = _Mark(book.price_id)
    home.write_private(home.twin_mark, msgspec.json.encode(mark).decode() + "\n")
    return home.load_price_books()


def refuse_twins_home(home: Home) -> None:
    """See that a real factory does not go on where a modelled one kept books.

    Raises:
        ConfigInvalid: one did.
    """
    if home.twin_mark.exists():
        raise ConfigInvalid(
            f"{str(home.path)!r} is the folder of a modelled factory: its ledger has modelled "
            "revenue.",
            hint="Say --twin, or name another folder with --home.",
        )


def _mark(home: Home) -> _Mark:
    if not home.twin_mark.exists():
        return _Mark("")
    try:
        return msgspec.json.decode(home.twin_mark.read_bytes(), type=_Mark)
    except msgspec.DecodeError as error:
        raise ConfigInvalid(
            f"{str(home.twin_mark)!r} cannot be read: {error}.", hint="Remove the folder."
        ) from error


def _is_ours(home: Home, mark: _Mark) -> bool:
    book: PriceBook = parse_price_book(home.price_book.read_text(encoding="utf-8"))
    return book.price_id == mark.price_id

"""What a system costs by the hour at a site, and when it can be there."""

from __future__ import annotations

import calendar
import datetime
import re
from typing import Final

import msgspec

from tokenworks.catalogue.records import Site, System
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.plan.mix_inputs import HOURS_PER_YEAR, Hardware, Question

NEVER: Final = datetime.date.max
_SEASONS: Final = {"spring": 5, "summer": 8, "autumn": 11, "fall": 11, "winter": 12}
_MONTHS: Final = {name.casefold(): i for i, name in enumerate(calendar.month_name) if name}


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars, in parts.

    Attributes:
        energy_usd: that systems turn into heat.
        capital_usd: systems and building, written off, with interest.
        cooling_usd: energy of cooling and conversion: what PUE adds.
        network_usd: between systems, written off, with interest.
        people_usd: to run it.
    """

    energy_usd: float = 0.0
    capital_usd: float = 0.0
    cooling_usd: float = 0.0
    network_usd: float = 0.0
    people_usd: float = 0.0

    @property
    def usd(self) -> float:
        """All of it."""
        return float(sum(getattr(self, part) for part in self.__struct_fields__))

    def times(self, factor: float) -> Cost:
        """So many times as much."""
        return Cost(**{part: getattr(self, part) * factor for part in self.__struct_fields__})

    def plus(self, other: Cost) -> Cost:
        """Both."""
        return Cost(
            **{part: getattr(self, part) + getattr(other, part) for part in self.__struct_fields__}
        )


def annuity(years: float, interest_per_year: float) -> float:
    """What a dollar costs by the year that is paid back over some years.

    Source: r / (1 - (1 + r)^-n).

    >>> round(annuity(5, 0.08), 4), annuity(4, 0.0)
    (0.2505, 0.25)
    """
    if interest_per_year == 0:
        return 1 / years
    left: float = (1 + interest_per_year) ** -years
    return interest_per_year / (1 - left)


def drawn_w(hardware: Hardware, site: Site, busy: float) -> float:
    """What one system draws of the utility's power, at the mean.

    Args:
        hardware: the system.
        site: that says what it draws idle.
        busy: share of its time; at 1 it draws all that was provisioned for it.
    """
    idle = site.idle_power_share
    return hardware.power_w * (idle + (1 - idle) * busy)


def cost_per_h(hardware: Hardware, site: Site, busy: float = 1.0) -> Cost:
    """What one system costs by the hour; only energy and cooling follow how busy it is."""
    kwh = drawn_w(hardware, site, busy) / 1e3
    system_year = annuity(site.system_years, site.interest_per_year)
    facility = hardware.power_w / 1e6 * site.facility_usd_per_mw
    facility *= annuity(site.facility_years, site.interest_per_year)
    return Cost(
        energy_usd=kwh / site.pue * site.usd_per_kwh,
        capital_usd=(hardware.price_usd * system_year + facility) / HOURS_PER_YEAR,
        cooling_usd=kwh * (1 - 1 / site.pue) * site.usd_per_kwh,
        network_usd=hardware.price_usd * site.network_share * system_year / HOURS_PER_YEAR,
        people_usd=hardware.power_w / 1e6 * site.people_usd_per_mw_year / HOURS_PER_YEAR,
    )


def capital_usd(hardware: Hardware, site: Site) -> float:
    """What one system takes of a capital budget: itself, its network and its facility."""
    facility = hardware.power_w / 1e6 * site.facility_usd_per_mw
    return hardware.price_usd * (1 + site.network_share) + facility


def ship_date(text: str) -> datetime.date:
    """The last day of the first date that a text names; the first of all days where there is none.

    >>> ship_date("autumn 2026").isoformat(), ship_date("2027 by them, 2028 by us").isoformat()
    ('2026-11-30', '2027-12-31')
    >>> ship_date("July 2025").isoformat(), ship_date("2026 Q3").isoformat()
    ('2025-07-31', '2026-09-30')
    """
    if "cancelled" in text:
        return NEVER
    if exact := re.search(r"(\d{4})-(\d\d)-(\d\d)", text):
        return datetime.date(*map(int, exact.groups()))
    found = re.search(r"(?:(\w+) )?(\d{4})(?: ([HQ])([1-4]))?", text)
    if not found:
        return datetime.date.min
    word, year, kind, number = found.groups()
    month = _SEASONS.get((word or "").casefold()) or _MONTHS.get((word or "").casefold()) or 12
    if kind:
        month = int(number) * (6 if kind == "H" else 3)
    return datetime.date(int(year), month, calendar.monthrange(int(year), month)[1])


def hardware_of(catalogue: Catalogue, system: System, question: Question) -> Hardware:
    """A system as it is bought for a site.

    Raises:
        ConfigInvalid: the catalogue lacks its power, price or time to install.
    """
    part = catalogue.accelerator(system.accelerator or system.lpu)
    power_w = system.known("all_in_power_w")
    return Hardware(
        name=system.name,
        accelerators=system.accelerators or system.lpus,
        power_w=power_w / question.all_in_pue * question.site.pue,
        price_usd=system.known("price_usd"),
        install_h=system.known("install_h"),
        ship=ship_date(system.ship or part.ship),
    )

"""``--system``: modelled workers of the catalogue's hardware, and what a run says of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.catalogue.records import Model
from tokenworks.cli.catalogue import catalogue_at, catalogue_option
from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.home import Home
from tokenworks.twin.machine_fleet import KindReport, chart_book, machines_setting
from tokenworks.twin.machine_paces import Measured
from tokenworks.twin.machines import Machines, machines, parse_wanted
from tokenworks.twin.scenarios import Setting

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])
PROJECTION: Final = "keynote"
SITE: Final = "us-hyperscale"
TIERS: Final = "keynote"


_WORKS_AS: Final = {
    "gpu": "GPUs alone",
    "gpu+lpu": "attention on GPUs, FFN on LPUs",
    "lpu": "all in LPUs' SRAM",
}


class AskedSystems(msgspec.Struct, frozen=True, kw_only=True):
    """What the options say; see their help."""

    systems: tuple[str, ...] = ()
    model: str | None = None
    projection: str | None = None
    site: str | None = None
    price_book: Path | None = None
    folders: tuple[Path, ...] = ()


NO_SYSTEMS: Final = AskedSystems()

_OPTIONS: Final = (
    click.option(
        "--system",
        "systems",
        multiple=True,
        help="Or workers of a system of the catalogue, and =COUNT: hgx-h200=6, hgx-h200=2..6 (as "
        "requests wait), vr-nvl72x8 (8 of its GPUs a worker), vr-nvl72+lpx (feed-forward blocks on "
        "LPUs), lpx (all of the model in SRAM), hgx-h200:prefill; repeated.",
    ),
    click.option("--model", help="Of the catalogue, that a --system serves."),
    click.option(
        "--projection",
        help=f"How software does on a --system that nobody measured.  [default: {PROJECTION}]",
    ),
    click.option("--site", help=f"Where a --system stands.  [default: {SITE}]"),
    click.option(
        "--price-book",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Promises and prices of a --system's model.  [default: those of the public chart]",
    ),
    catalogue_option,
)


def system_options(command: _CommandT) -> _CommandT:
    """Add the options to a command, which gets them by the names of ``AskedSystems``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked_systems(given: dict[str, Any]) -> AskedSystems:
    """Take the options out of all that a command was given."""
    return AskedSystems(**{name: given.pop(name) for name in AskedSystems.__struct_fields__})


def systems_setting(asked: AskedSystems) -> tuple[Setting, tuple[Machines, ...]] | None:
    """The factory that the options name, and its kinds of worker; None if they name no system.

    Raises:
        ConfigInvalid: a system, model or file is wrong, or they do not go together.
        InvalidRequest: a model without a system, or a system without a model.
    """
    if not asked.systems:
        for name in ("model", "projection", "site", "price_book"):
            if getattr(asked, name) is not None:
                raise InvalidRequest(
                    f"--{name.replace('_', '-')} is for systems of the catalogue.",
                    hint="Name one, as in --system hgx-h200=2, or leave it out.",
                )
        return None
    catalogue = catalogue_at(_home(), asked.folders)
    if asked.model is None:
        known = ", ".join(model.name for model in catalogue.all_of(Model))
        raise InvalidRequest("--system needs a --model.", hint=f"There are {known}.")
    model = catalogue.model(asked.model)
    projection = catalogue.projection(asked.projection or PROJECTION)
    site = catalogue.site(asked.site or SITE)
    measured = Measured(read_calibration())
    kinds = tuple(
        machines(catalogue, parse_wanted(catalogue, text), model, projection, site, measured)
        for text in asked.systems
    )
    if asked.price_book is None:
        book = chart_book(model.name, catalogue.tiers(TIERS))
    else:
        book = parse_price_book(_text(asked.price_book))
    return machines_setting(kinds, site, book), kinds


def _home() -> Home:
    found = click.get_current_context().find_object(Home)
    assert found is not None, "every command has a home"
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{str(path)!r} cannot be read: {error}.") from error


def described(kinds: Sequence[Machines]) -> list[dict[str, Any]]:
    """Each kind of worker, for JSON."""
    return [
        {
            "kind": kind.wanted.name,
            "workers": kind.wanted.count,
            "mode": kind.mode,
            "role": kind.wanted.role,
            "source": kind.source,
            "told": kind.told,
            "gpus": kind.gpus,
            "lpus": kind.lpus,
            "tensor": kind.tensor,
            "slots": kind.spec.slots,
            "kv_tokens": kind.spec.kv_blocks * kind.spec.block_tokens,
            "tokens_per_step": kind.tokens_per_step,
            "law_excess": kind.excess,
            "start_s": kind.spec.start_ns / 1e9,
            "power_w": kind.spec.power_w,
            "usd_per_hour": kind.usd_per_hour,
            "tokens_per_s_per_user": _speeds(kind),
            "assumptions": msgspec.to_builtins(kind.assumptions),
        }
        for kind in kinds
    ]


def _speeds(kind: Machines) -> dict[int, int]:
    """By batch, at the typical context."""
    spec = kind.spec
    batches = sorted({batch for batch in (1, 8, 64, 512) if batch < spec.slots} | {spec.slots})
    return {
        batch: spec.timing.speed_tokens_per_s(batch, batch * spec.context_tokens_typical)
        for batch in batches
    }


def say_kinds(kinds: Sequence[Machines]) -> None:
    """Print for people what the workers are and where their speed is from."""
    rows = []
    for kind in kinds:
        speeds = _speeds(kind)
        few, most = min(speeds), max(speeds)
        rows.append(
            {
                "kind": kind.wanted.name,
                "workers": kind.wanted.count,
                "works as": _WORKS_AS[kind.mode],
                "GPUs": kind.gpus,
                "LPUs": kind.lpus,
                "batch": most,
                "tokens/s/user alone": speeds[few],
                "when full": speeds[most],
                "kW": round(kind.spec.power_w / 1e3, 1),
                "$/h": round(kind.usd_per_hour, 2),
                "speed": kind.source,
            }
        )
    show(rows, as_json=False, empty="")
    for kind in kinds:
        side = "off by" if kind.source == "calibrated" else "slower by"
        click.echo(
            f"{kind.wanted.name}: {kind.told}; the twin's law is {side} at most "
            f"{100 * kind.excess:.1f}%."
        )
    assumed = {each.what: each for kind in kinds for each in kind.assumptions}
    if assumed:
        click.echo(
            "Assumed: " + ", ".join(f"{a.what} = {a.value:g}" for a in assumed.values()) + "."
        )
    click.echo()


def say_reports(reports: Sequence[KindReport]) -> None:
    """Print for people what each kind came to."""
    rows = []
    for each in reports:
        row: dict[str, Any] = {
            "kind": each.pool,
            "workers": each.workers,
            "busy": f"{100 * each.utilisation:.1f}%",
            "output tokens": each.output_tokens,
            "kWh": round(each.energy_kwh, 3),
            "cost $": round(each.cost_nanodollars / NANODOLLARS_PER_DOLLAR, 2),
            "$ per 1M": None
            if each.cost_usd_per_mtok is None
            else round(each.cost_usd_per_mtok, 3),
            "revenue $": round(each.revenue_nanodollars / NANODOLLARS_PER_DOLLAR, 2),
        }
        row |= {
            f"{tier} kept": f"{each.kept[tier]}/{count}" for tier, count in each.requests.items()
        }
        rows.append(row)
    click.echo("\nBy kind of worker, with the promises kept of the answers that ended there:")
    show(rows, as_json=False, empty="")

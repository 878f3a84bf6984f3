"""The options that name a factory and a workload, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from tokenworks.catalogue.timings import parse_timings
from tokenworks.cli.twin_bound import capacity
from tokenworks.cli.twin_systems import (
    AskedSystems,
    asked_systems,
    system_options,
    systems_setting,
)
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.core.slo import Tier
from tokenworks.live.home import packaged
from tokenworks.twin.arrivals import ARRIVALS, Arrivals
from tokenworks.twin.machines import Machines
from tokenworks.twin.records import TwinRequest
from tokenworks.twin.scenarios import NAMES, Setting, build, engine_setting, load_scenario
from tokenworks.twin.servegen import read_servegen, servegen_trace
from tokenworks.twin.sessions import Agents, agent_trace
from tokenworks.twin.traces import FORMATS, Format, Trace, detected, read_lengths, read_trace
from tokenworks.twin.workload import Demand, TierMix, generated_trace, requests_of, steady

WORKERS_DEFAULT: Final = 4
RATE_DEFAULT: Final = 5.0
DURATION_S_DEFAULT: Final = 300.0
CARRIED_MIN: Final = 1e-9
"""What a fleet carries less of, it carries nothing of: a programme's answer is a float."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the options say; see their help."""

    scenario: str | None
    engine: str | None
    workers: int | None
    hardware: AskedSystems
    trace: Path | None
    form: str
    dataset: str | None
    spread: bool
    rate: float | None
    duration: float | None
    arrivals: Arrivals
    cv: float
    input_tokens: int
    output_tokens: int
    agents: bool
    hints: bool
    mix: str | None
    tenants: int | None
    speedup: float | None
    load: float | None
    limit: int | None
    seed: int


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A factory and its workload.

    Attributes:
        setting: the factory, under the policy of its own.
        requests: the workload.
        speedup: how many times faster it arrives than recorded.
        source: where it is from, for people.
        kinds: of its workers, where they are of the catalogue's systems.
    """

    setting: Setting
    requests: list[TwinRequest]
    speedup: float
    source: str
    kinds: tuple[Machines, ...]


_OPTIONS: Final = (
    click.option(
        "--scenario",
        help=f"The factory: {', '.join(NAMES)}, or a TOML file.  [default: {NAMES[0]}]",
    ),
    click.option(
        "--engine", help="Or workers of one measured engine, such as h200-70b-fp8-trtllm-tp4."
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help=f"So many.  [default: the scenario's; {WORKERS_DEFAULT} of an --engine]",
    ),
    click.option(
        "--trace",
        type=click.Path(exists=True, path_type=Path),
        help="A recorded workload, plain, .gz or .zst; without it one is generated.",
    ),
    click.option(
        "--format",
        "form",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", *FORMATS]),
        help="The trace's format.",
    ),
    click.option("--dataset", help="Which of an archive's data sets, such as deepseek-r1."),
    click.option(
        "--spread/--no-spread",
        default=True,
        help="Spread a Mooncake trace's 3 s buckets over their time.  [default: spread]",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(0, min_open=True),
        help=f"Generated requests, or agents, per second.  [default: {RATE_DEFAULT:g}]",
    ),
    click.option(
        "--duration",
        type=click.FloatRange(0, min_open=True),
        help=f"Generated seconds.  [default: {DURATION_S_DEFAULT:g}]",
    ),
    click.option(
        "--arrivals",
        default="poisson",
        show_default=True,
        type=click.Choice(ARRIVALS),
        help="How generated requests arrive.",
    ),
    click.option(
        "--cv",
        default=3.0,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        help="Coefficient of variation of bursty gaps.",
    ),
    click.option(
        "--input-tokens",
        default=2_000,
        show_default=True,
        type=click.IntRange(1),
        help="Mean of generated prompts.",
    ),
    click.option(
        "--output-tokens",
        default=300,
        show_default=True,
        type=click.IntRange(1),
        help="Mean of generated answers.",
    ),
    click.option("--agents", is_flag=True, help="Generate agents with tools, not single requests."),
    click.option(
        "--hints",
        is_flag=True,
        help="Agents tell their session, about how long answers and tools take, and when they end.",
    ),
    click.option("--mix", help="Tiers asked for, such as free=50,ultra=1; others get nothing."),
    click.option("--tenants", type=click.IntRange(1), help="So many tenants."),
    click.option(
        "--speedup", type=click.FloatRange(0, min_open=True), help="Arrivals come so much faster."
    ),
    click.option(
        "--load",
        type=click.FloatRange(0, min_open=True),
        help="Speed arrivals up so that demand is so many times what the fleet can carry.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Only the first so many requests."),
    click.option("--seed", default=1, show_default=True, help="Of all that is drawn."),
)


def workload_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets them by the names of ``Asked``."""
    command = system_options(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked_of(given: dict[str, Any]) -> Asked:
    """Take the options out of all that a command was given."""
    names = [name for name in Asked.__struct_fields__ if name != "hardware"]
    hardware = asked_systems(given)
    return Asked(hardware=hardware, **{name: given.pop(name) for name in names})


def prepare(asked: Asked) -> Prepared:
    """Build the factory and its workload.

    Raises:
        ConfigInvalid: a file or figure is wrong.
        InvalidRequest: options that do not go together.
    """
    setting, kinds = fleet_of(asked.scenario, asked.engine, asked.workers, asked.hardware)
    trace = _trace(asked)
    spec = setting.scenario.workers[0]
    demand = Demand(
        model=spec.model,
        mix=setting.mix if asked.mix is None else parse_mix(asked.mix),
        tenants=asked.tenants or setting.tenants,
        block_tokens=spec.block_tokens,
        speedup=asked.speedup or 1.0,
        limit=asked.limit,
        needs=setting.needs,
        hints=asked.hints,
    )
    if asked.load is not None:
        if asked.speedup is not None:
            raise InvalidRequest("--load and --speedup both say how fast.", hint="Give one.")
        carried = _carried(setting, requests_of(trace, demand, asked.seed))
        demand = msgspec.structs.replace(demand, speedup=asked.load * carried)
    return Prepared(
        setting=setting,
        requests=requests_of(trace, demand, asked.seed),
        speedup=demand.speedup,
        source=_source(asked),
        kinds=kinds,
    )


def _carried(setting: Setting, requests: Sequence[TwinRequest]) -> float:
    """How many times faster the requests may come for the fleet to be just able to serve all."""
    carried = capacity(setting.scenario, requests)
    if carried is None:
        raise InvalidRequest(
            "--load needs scipy.", hint="pip install 'tokenworks[plan]', or use --speedup."
        )
    if carried >= CARRIED_MIN:
        return carried
    tiers = [tier for tier in Tier if any(each.tier is tier for each in requests)]
    never = [
        tier
        for tier in tiers
        if (capacity(setting.scenario, [each for each in requests if each.tier is tier]) or 0.0)
        < CARRIED_MIN
    ]
    raise ConfigInvalid(
        f"--load has no meaning here: no worker can keep what is promised to {', '.join(never)}.",
        hint="Leave these tiers out of --mix, or say how fast requests come with --speedup.",
    )


def parse_mix(text: str) -> TierMix:
    """A mix as an option names it.

    Raises:
        ConfigInvalid: weights that cannot be.
        InvalidRequest: a tier that is none, or named twice, or a weight that is no number.

    >>> parse_mix("free=3,ultra=1").points[0][1][Tier.FREE]
    3
    """
    weights: dict[Tier, int] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in list(Tier) or Tier(name) in weights or not weight.isdecimal():
            raise InvalidRequest(
                f"--mix has {part!r}.", hint="Write it as free=40,medium=30,ultra=3."
            )
        weights[Tier(name)] = int(weight)
    return steady(weights)


def fleet_of(
    scenario: str | None, engine: str | None, workers: int | None, hardware: AskedSystems
) -> tuple[Setting, tuple[Machines, ...]]:
    """The factory that the options name, and its kinds of worker where it is of systems.

    Raises:
        ConfigInvalid: see ``setting_of`` and ``systems_setting``.
        InvalidRequest: options that do not go together.
    """
    found = systems_setting(hardware)
    if found is None:
        return setting_of(scenario, engine, workers), ()
    for name, value in (("scenario", scenario), ("engine", engine), ("workers", workers)):
        if value is not None:
            raise InvalidRequest(
                f"--system and --{name} both say what works.",
                hint="Give one; --system hgx-h200=6 has six workers.",
            )
    return found


def setting_of(scenario: str | None, engine: str | None, workers: int | None) -> Setting:
    """The factory that three options name.

    Raises:
        ConfigInvalid: there is no such scenario or engine, or not of so many workers.
        InvalidRequest: options that do not go together.
    """
    if engine is not None:
        if scenario is not None:
            raise InvalidRequest("--engine and --scenario both name the workers.", hint="Give one.")
        timings = parse_timings(packaged("timings.toml").read_text(encoding="utf-8"))
        return engine_setting(engine, timings.named(engine), workers or WORKERS_DEFAULT)
    if scenario is None or not scenario.endswith(".toml"):
        return build(scenario or NAMES[0], workers)
    if workers is not None:
        raise InvalidRequest(
            "--workers is for named scenarios.", hint="The file says how many there are."
        )
    return load_scenario(Path(scenario))


def _form(asked: Asked) -> Format | None:
    if asked.trace is None:
        return None
    return next((form for form in FORMATS if form == asked.form), None) or detected(asked.trace)


def _trace(asked: Asked) -> Trace:
    form = _form(asked)
    drawn = form in {None, "lengths", "servegen"}
    if not drawn and (asked.rate is not None or asked.duration is not None):
        raise InvalidRequest(
            "--rate and --duration are for generated arrivals.",
            hint="Use --speedup and --limit with a trace that has its own.",
        )
    if asked.agents and form is not None:
        raise InvalidRequest("--agents are generated.", hint="Leave --trace out.")
    rate = RATE_DEFAULT if asked.rate is None else asked.rate
    duration = DURATION_S_DEFAULT if asked.duration is None else asked.duration
    if asked.trace is None and asked.agents:
        return agent_trace(
            Agents(),
            asked.seed,
            rate_per_s=rate,
            duration_s=duration,
            kind=asked.arrivals,
            limit=asked.limit,
        )
    if asked.trace is not None and form == "servegen":
        if asked.rate is not None:
            raise InvalidRequest(
                "ServeGen's clients have rates of their own.", hint="Use --speedup."
            )
        return servegen_trace(
            read_servegen(asked.trace, asked.dataset),
            asked.seed,
            duration_s=duration,
            limit=asked.limit,
        )
    if asked.trace is not None and form is not None and form != "lengths":
        return read_trace(asked.trace, form, limit=asked.limit, spread=asked.spread)
    return generated_trace(
        asked.seed,
        rate_per_s=rate,
        duration_s=duration,
        kind=asked.arrivals,
        cv=asked.cv,
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        lengths=() if asked.trace is None else read_lengths(asked.trace),
        limit=asked.limit,
    )


def _source(asked: Asked) -> str:
    if asked.trace is not None:
        return asked.trace.name
    return "generated agents" if asked.agents else "generated"

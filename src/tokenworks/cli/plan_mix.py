"""``tokenworks plan mix``: which systems, in which modes, for a demand and a budget."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec

from tokenworks.cli.catalogue import catalogue_at, catalogue_option
from tokenworks.cli.picture import PICTURE
from tokenworks.cli.plan_mix_demand import tiers_of_trace
from tokenworks.cli.plan_mix_text import say, say_assumed, say_sweep, say_tornado, say_what_ifs
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.home import Home
from tokenworks.perf.estimate import Estimator
from tokenworks.plan.assumptions import Assumption
from tokenworks.plan.manifests.deployment import ENGINES, Engine
from tokenworks.plan.manifests.planned import deployments_of
from tokenworks.plan.mix import MixPlan, plan_mix, with_worth
from tokenworks.plan.mix_assumptions import MEASURED_RULES, RULES, assumptions
from tokenworks.plan.mix_inputs import Question
from tokenworks.plan.mix_measured import Measured
from tokenworks.plan.mix_offers import Offerer
from tokenworks.plan.mix_question import (
    DEFAULTS,
    EXAMPLE,
    Case,
    QuestionFile,
    case_of,
    parse_question,
)
from tokenworks.plan.mix_sweeps import Sweep, Swing, sweep, tornado, what_if


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """The best plan with other figures; ``error`` says why there is none."""

    change: str
    plan: MixPlan | None = None
    error: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """All that the command found."""

    question: Question
    plan: MixPlan
    what_ifs: tuple[WhatIf, ...]
    sweep: Sweep | None
    tornado: tuple[Swing, ...]
    assumptions: tuple[Assumption, ...]
    rules: tuple[str, ...]
    left_out: dict[str, str]


_OPTIONS: Final = (
    click.argument(
        "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
    ),
    click.option("--power-mw", type=float, help="Of the utility's, cooling included."),
    click.option("--capital-usd", type=float, help="For systems, network and facility."),
    click.option("--start", type=click.DateTime(["%Y-%m-%d"]), help="First day.  [default: today]"),
    click.option(
        "--by", type=click.DateTime(["%Y-%m-%d"]), help="All runs then.  [default: a year later]"
    ),
    click.option("--site", help="Prices of a place, from the catalogue."),
    click.option("--pue", type=float, help="Of the site, where it has another."),
    click.option("--systems", help="That may be bought, such as gb200-nvl72,vr-nvl72,lpx."),
    click.option("--without", help="That may not, such as lpx."),
    click.option("--tiers", help="Whose demand counts, such as high,premium."),
    click.option("--mtok-per-s", type=float, help="Demand over all tiers, in 1M tokens/s."),
    click.option("--mix", help="Its shares, such as free=60,premium=40."),
    click.option(
        "--trace",
        type=click.Path(exists=True, path_type=Path),
        help="Lengths, rate and cached share of a recorded workload; tiers as in --mix.",
    ),
    click.option(
        "--speedup", type=float, help="The trace arrives so many times faster.  [default: 1]"
    ),
    click.option("--engine", help="Speeds as measured of trtllm, vllm or sglang."),
    click.option("--objective", type=click.Choice(["profit", "revenue", "cost"])),
    click.option("--utilisation", type=float, help="Of what a pool could make, at most."),
    click.option("--what-if", "changes", multiple=True, help="Plan again with other figures."),
    click.option(
        "--sweep", "swept", help="interactivity:TIER, sold alone, or share:TIER of all demand."
    ),
    click.option("--tornado", "swings", is_flag=True, help="Which figures the answer hangs on."),
    click.option(
        "--picture",
        "--out",
        type=PICTURE,
        help="Draw costs, or the sweep or the tornado, to a .png or .svg file.",
    ),
    click.option(
        "--deployments",
        type=click.Path(file_okay=False, path_type=Path),
        help="A folder to write each pool into, for `plan manifests`; of --engine vllm or sglang.",
    ),
    click.option("--progress/--no-progress", default=None, help="[default: on a TTY]"),
    click.option("--example", is_flag=True, help="Print a FILE that works, and stop."),
    click.option("--json", "as_json", is_flag=True, help="As JSON."),
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@_options
@catalogue_option
@click.pass_obj
def mix(
    home: Home,
    /,
    folders: tuple[Path, ...],
    changes: tuple[str, ...],
    swept: str | None,
    engine: str | None,
    picture: Path | None,
    deployments: Path | None,
    *,
    swings: bool,
    progress: bool | None,
    example: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the best mix of systems and modes for a demand, a budget and a date.

    Without a FILE it plans the tiers of the GTC 2026 keynote for 100 MW. How many systems of each
    kind, which model and promise each pool serves at which batch, what it costs and earns, what
    one more MW is worth and what each promise costs come from a mixed-integer programme.

    \b
    tokenworks plan mix --power-mw 20 --by 2027-06-30
    tokenworks plan mix --without lpx --objective cost --mtok-per-s 20
    tokenworks plan mix --what-if lpx.price_usd=+100% --what-if vr-nvl72.ship=+180d
    tokenworks plan mix --tiers free,ultra --sweep share:ultra --out crossover.svg
    tokenworks plan mix --tornado --out tornado.png
    tokenworks plan mix --example > plan.toml && tokenworks plan mix plan.toml
    """  # noqa: D301 - click reads it
    if example:
        click.echo(EXAMPLE, nl=False)
        return
    if swept and swings and picture:
        raise InvalidRequest(
            "--picture draws one of --sweep and --tornado.", hint="Run it once for each."
        )
    said = _said(given)
    today = datetime.datetime.now(datetime.UTC).date()
    case = case_of(said, catalogue_at(home, folders), today)
    runs = _runs(case, engine) if deployments else None
    with _told(progress=progress) as tell:
        offerer = Offerer(_measured(case, engine))
        answer = _answer(case, offerer, tell, changes=changes, swept=swept, swings=swings)
    rules = (*RULES, *(() if said.tier else DEFAULTS), *_engine_rules(engine))
    answer = msgspec.structs.replace(answer, rules=rules)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_filled(answer)), indent=2))
    else:
        _say(answer)
    if picture:
        _draw(answer, picture)
    if deployments and runs:
        _deploy(case, answer.plan, runs, deployments)


def _engine_rules(engine: str | None) -> tuple[str, ...]:
    if engine is None:
        return ()
    rule = f"speeds are those of {engine} as calibrated: `tokenworks perf predict` has error bars"
    return (rule, *MEASURED_RULES)


def _runs(case: Case, engine: str | None) -> Engine:
    """An engine that there are manifests for."""
    if engine is None:
        raise InvalidRequest(
            "--deployments needs whole workers of an engine.",
            hint=f"Plan with --engine {' or '.join(ENGINES)}.",
        )
    name = case.catalogue.engine(engine).name
    for known in ENGINES:
        if known == name:
            return known
    raise InvalidRequest(
        f"--deployments has no manifests of {name}.", hint=f"Plan with {' or '.join(ENGINES)}."
    )


def _deploy(case: Case, plan: MixPlan, engine: Engine, folder: Path) -> None:
    made, left = deployments_of(plan, case.catalogue, engine)
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        path = folder / f"{each.name}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(each), indent=2) + b"\n")
        click.echo(
            f"Written: {path}; try `tokenworks plan manifests {path} --for {engine}`.", err=True
        )
    for tiers in left:
        click.echo(f"Not written: the pool of {tiers}, whose LPUs no engine here runs.", err=True)


def _answer(
    case: Case,
    offerer: Offerer,
    tell: Callable[[str], None],
    *,
    changes: tuple[str, ...],
    swept: str | None,
    swings: bool,
) -> Answer:
    kind, tier = _sweep_of(swept) if swept else (None, "")
    tell("what can be bought")
    market = offerer.market(case.catalogue, case.projection, case.question)
    tell("the best mix")
    plan = plan_mix(market, case.question)
    plan = with_worth(market, case.question, plan, tell)
    return Answer(
        question=case.question,
        plan=plan,
        what_ifs=tuple(_what_if(offerer, case, change, tell) for change in changes),
        sweep=sweep(offerer, case, kind, tier, tell) if kind else None,
        tornado=tuple(tornado(offerer, case, plan, tell)) if swings else (),
        assumptions=assumptions(case, market, measured=offerer.measured),
        rules=RULES,
        left_out=market.left_out,
    )


def _measured(case: Case, engine: str | None) -> Measured | None:
    if engine is None:
        return None
    name = case.catalogue.engine(engine).name
    return Measured(Estimator(read_calibration()), name)


def _say(answer: Answer) -> None:
    say(answer.question, answer.plan, answer.left_out)
    say_assumed(answer.assumptions, answer.rules)
    if answer.what_ifs:
        rows = [(each.change, each.plan, each.error) for each in answer.what_ifs]
        say_what_ifs(answer.plan, rows)
    if answer.sweep is not None:
        say_sweep(answer.sweep)
    if answer.tornado:
        say_tornado(answer.tornado)


def _said(given: dict[str, Any]) -> QuestionFile:
    """A file with what the options put in its place."""
    file: Path | None = given.pop("file")
    said = QuestionFile()
    if file is not None:
        try:
            said = parse_question(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"{str(file)!r} cannot be read: {error}.") from error
    trace, speedup = given.pop("trace"), given.pop("speedup")
    more = {name: value for name, value in given.items() if value is not None}
    if trace is None and speedup is not None:
        raise InvalidRequest(
            "--speedup has no meaning without a trace.", hint="Leave it out, or add --trace."
        )
    if trace is not None and "mtok_per_s" in more:
        raise InvalidRequest(
            "The trace says the demand, and so does --mtok-per-s.",
            hint="Leave out one of them; --speedup makes a trace arrive faster.",
        )
    for name in ("systems", "without", "tiers"):
        if name in more:
            more[name] = tuple(each.strip() for each in more[name].split(",") if each.strip())
            if not more[name]:
                raise InvalidRequest(
                    f"--{name} names none.", hint=f"Name one, or leave --{name} out."
                )
    for name in ("start", "by"):
        if name in more:
            more[name] = more[name].date()
    if "mix" in more:
        more["mix"] = _mix(more["mix"])
    if said.tier and ({"mix", "mtok_per_s"} & set(more) or trace):
        raise InvalidRequest(
            "The file says the demand by tier.", hint="Leave --mix, --mtok-per-s and --trace out."
        )
    said = msgspec.structs.replace(said, **more)
    if trace is not None:
        demand = tiers_of_trace(trace, said.mix, 1.0 if speedup is None else speedup)
        said = msgspec.structs.replace(said, tier=demand, mix={})
    return said


def _mix(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError as error:
            raise InvalidRequest(
                f"--mix has {part!r}.", hint="Write it as free=60,premium=40."
            ) from error
    return weights


def _sweep_of(text: str) -> tuple[Literal["interactivity", "share"], str]:
    kind, _, tier = text.partition(":")
    if kind not in {"interactivity", "share"} or not tier:
        raise InvalidRequest(
            f"--sweep is {text!r}.", hint="Write interactivity:premium or share:ultra."
        )
    return ("share" if kind == "share" else "interactivity"), tier


def _what_if(offerer: Offerer, case: Case, change: str, tell: Callable[[str], None]) -> WhatIf:
    tell(f"what if {change}")
    other = what_if(case, change)
    market = offerer.market(other.catalogue, other.projection, other.question)
    try:
        return WhatIf(change=change, plan=plan_mix(market, other.question))
    except ConfigInvalid as error:
        return WhatIf(change=change, error=str(error))


@contextmanager
def _told(*, progress: bool | None) -> Iterator[Callable[[str], None]]:
    """What is told of each step; shown on one line where somebody looks."""
    shown = sys.stderr.isatty() if progress is None else progress

    def tell(step: str) -> None:
        if shown:
            click.echo(f"\r\x1b[2KPlanning: {step} …", err=True, nl=False)

    yield tell
    if shown:
        click.echo("\r\x1b[2K", err=True, nl=False)


def _filled(answer: Answer) -> dict[str, Any]:
    """As built-ins, with the sums that follow from the parts."""
    built: dict[str, Any] = msgspec.to_builtins(answer)
    built["plan"] = _sums(answer.plan, built["plan"])
    for told, each in zip(built["what_ifs"], answer.what_ifs, strict=True):
        if each.plan is not None:
            told["plan"] = _sums(each.plan, told["plan"])
    return built


def _sums(plan: MixPlan, built: dict[str, Any]) -> dict[str, Any]:
    return built | {
        "profit_usd_per_h": plan.profit_usd_per_h,
        "usd_per_mtok": plan.usd_per_mtok,
        "kwh_per_mtok": plan.kwh_per_mtok,
        "gap": plan.gap,
    }


def _draw(answer: Answer, path: Path) -> None:
    from tokenworks.cli import plan_mix_picture

    if answer.sweep is not None:
        plan_mix_picture.draw_sweep(answer.sweep, answer.question, path)
    elif answer.tornado:
        plan_mix_picture.draw_tornado(answer.plan, answer.tornado, path)
    else:
        plan_mix_picture.draw_costs(answer.plan, path)
    click.echo(f"Drawn to {path}.", err=True)

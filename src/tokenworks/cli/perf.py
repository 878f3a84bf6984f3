"""``tokenworks perf``: how fast a model is on a system, how sure that is, and how it was found."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from tokenworks.catalogue.records import Accelerator, Dtype, Engine, Model
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.cli.catalogue import catalogue_at, catalogue_option
from tokenworks.cli.listing import Listing
from tokenworks.cli.picture import PICTURE
from tokenworks.cli.table import show as show_table
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.live.calibration_file import read_calibration, write_calibration
from tokenworks.live.home import Home
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.case import Case, Layout, Mode, check_context
from tokenworks.perf.estimate import Estimator, Prediction
from tokenworks.perf.rows import GPUS_MAX, Row, Unread, read_rows
from tokenworks.perf.sweep import Swept, frontier, layouts
from tokenworks.perf.sweep import sweep as sweep_cases

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])
ROWS_BYTES_MAX: Final = 1_000_000_000
_ROWS = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Listing)
def command() -> None:
    """Predict TTFT and TPOT from physics that is calibrated on measured rows.

    Every answer has an interval that holds eight measurements in ten (docs/perf.md).
    """


def _shared(function: _CommandT) -> _CommandT:
    """Options of every command that asks about a model on a system."""
    for option in reversed(
        (
            click.argument("model"),
            click.argument("system"),
            click.option("--engine", default="trtllm", show_default=True, help="That serves."),
            click.option(
                "--mode",
                type=click.Choice(["agg", "disagg"]),
                default="agg",
                show_default=True,
                help="Prefill and decode together, or each on workers of its own.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["bf16", "fp8", "fp4", "int4"]),
                default="fp8",
                show_default=True,
                help="Of the weights.",
            ),
            click.option("--isl", type=float, default=1024, show_default=True, help="Prompt."),
            click.option("--osl", type=float, default=1024, show_default=True, help="Answer."),
            click.option("--prefill-gpus", type=int, help="Of a prefill worker.  [default: GPUs]"),
            click.option("--prefill-workers", type=int, help="With --mode disagg.  [default: 1]"),
            click.option("--decode-workers", type=int, help="Likewise.  [default: 1]"),
            click.option("--hit-share", type=float, default=0.0, help="Of prompts, in the cache."),
            click.option("--draft-tokens", type=int, default=0, help="Drafted for each step."),
            click.option("--acceptance", type=float, default=0.0, help="Of each drafted token."),
            click.option(
                "--draft-share", type=float, default=0.0, help="Of a step, that drafting adds."
            ),
            click.option("--calibration", type=_ROWS, help="A file of perf calibrate's."),
            catalogue_option,
        )
    ):
        function = option(function)
    return function


def _device(catalogue: Catalogue, name: str) -> Accelerator:
    """An accelerator, or that of a system."""
    try:
        return catalogue.accelerator(name)
    except ConfigInvalid as error:
        no_accelerator = error
    try:
        system = catalogue.system(name)
    except ConfigInvalid as error:
        raise ConfigInvalid(
            f"The catalogue has no system and no accelerator {name!r}.",
            hint=f"Systems: {error.hint} Accelerators: {no_accelerator.hint}",
        ) from error
    if not system.accelerator:
        raise ConfigInvalid(
            f"System {system.name!r} has no GPUs to decode on.",
            hint="Name a system with GPUs; LPUs work beside one (docs/perf.md).",
        )
    return catalogue.accelerator(system.accelerator)


def _engine(catalogue: Catalogue, name: str) -> str:
    """The catalogue's name of an engine, however it is capitalised."""
    wanted = name.strip().lower()
    for engine in catalogue.all_of(Engine):
        if wanted in {each.lower() for each in (engine.name, *engine.aliases)}:
            return engine.name
    return catalogue.engine(wanted).name


def _case(catalogue: Catalogue, asked: dict[str, Any], layout: Layout, concurrency: float) -> Case:
    _check(asked)
    prefill = layout
    if asked["prefill_gpus"]:
        prefill = Layout(gpus=asked["prefill_gpus"], ep=min(layout.ep, asked["prefill_gpus"]))
    dtype: Dtype = asked["dtype"]
    mode: Mode = asked["mode"]
    model = catalogue.model(asked["model"])
    _check_spread(model, layout)
    check_context(model, asked["isl"] + asked["osl"])
    return Case(
        shape=shape_of(model),
        device=_device(catalogue, asked["system"]),
        engine=_engine(catalogue, asked["engine"]),
        mode=mode,
        dtype=dtype,
        isl=asked["isl"],
        osl=asked["osl"],
        concurrency=concurrency,
        decode=layout,
        prefill=prefill,
        decode_workers=asked["decode_workers"] or 1,
        prefill_workers=asked["prefill_workers"] or 1,
        hit_share=asked["hit_share"],
        draft_tokens=asked["draft_tokens"],
        acceptance=asked["acceptance"],
        draft_share=asked["draft_share"],
    )


def _check(asked: dict[str, Any]) -> None:
    limits = {
        "isl": (1, 1e7),
        "osl": (1, 1e7),
        "hit_share": (0, 1),
        "draft_tokens": (0, 64),
        "acceptance": (0, 1),
        "draft_share": (0, 10),
        "prefill_gpus": (1, GPUS_MAX),
        "prefill_workers": (1, 1e4),
        "decode_workers": (1, 1e4),
    }
    for name, (low, high) in limits.items():
        if asked[name] is not None and not low <= asked[name] <= high:
            raise ConfigInvalid(
                f"{_option(name)} {asked[name]!r} is out of range.",
                hint=f"Take a number from {low} to {high:g}.",
            )
    for name in ("prefill_gpus", "prefill_workers", "decode_workers"):
        if asked["mode"] == "agg" and asked[name] is not None:
            raise InvalidRequest(
                f"{_option(name)} has no meaning where a worker prefills and decodes.",
                hint="Leave it out, or add --mode disagg.",
            )
    for name in ("acceptance", "draft_share"):
        if asked[name] and not asked["draft_tokens"]:
            raise InvalidRequest(
                f"{_option(name)} has no meaning where nothing is drafted.",
                hint="Leave it out, or add --draft-tokens.",
            )


def _check_spread(model: Model, layout: Layout) -> None:
    """What no engine runs: experts that are not there, and heads that cannot be shared out."""
    if not model.experts and (layout.ep > 1 or layout.dp > 1):
        raise ConfigInvalid(
            f"--ep {layout.ep} and --dp {layout.dp} spread experts; {model.name} has none.",
            hint="Leave them out, so that its layers are split over all GPUs.",
        )
    tp = int(layout.tp)
    if model.heads % tp:
        raise ConfigInvalid(
            f"{tp} GPUs cannot share the {model.heads} heads of {model.name}.",
            hint="Take --gpus (over --pp and --dp) that divide them, such as 1, 2, 4 or 8.",
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _layout(gpus: int, ep: int, dp: int, pp: int) -> Layout:
    if not 1 <= gpus <= GPUS_MAX:
        raise ConfigInvalid(
            f"--gpus {gpus!r} is out of range.", hint=f"Take a number from 1 to {GPUS_MAX}."
        )
    for name, count in (("--ep", ep), ("--dp", dp), ("--pp", pp)):
        if count < 1 or gpus % count:
            raise ConfigInvalid(
                f"{name} {count!r} does not divide {gpus} GPUs.",
                hint="A worker's experts, attention groups and stages each divide its GPUs.",
            )
    return Layout(gpus=gpus, ep=ep, dp=dp, pp=pp)


@command.command()
@_shared
@click.option("--gpus", type=int, default=8, show_default=True, help="Of one worker.")
@click.option("--ep", type=int, default=1, show_default=True, help="Over which experts spread.")
@click.option("--dp", type=int, default=1, show_default=True, help="Groups of attention.")
@click.option("--pp", type=int, default=1, show_default=True, help="Stages.")
@click.option("--concurrency", type=float, default=32, show_default=True, help="Requests.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def predict(home: Home, /, *, as_json: bool, **asked: Any) -> None:
    """Predict a MODEL on a SYSTEM (or an accelerator), with an interval for 8 runs in 10."""
    catalogue = catalogue_at(home, asked["folders"])
    layout = _layout(asked["gpus"], asked["ep"], asked["dp"], asked["pp"])
    case = _case(catalogue, asked, layout, asked["concurrency"])
    found = Estimator(read_calibration(asked["calibration"])).predict(case)
    workers = case.decode_workers or 1
    if case.batch > found.batch_max:
        raise ConfigInvalid(
            f"{case.concurrency:,.0f} requests at one time do not fit: a decode worker's cache "
            f"holds {found.batch_max:,.0f} (batch_max), and the others' wait is not predicted.",
            hint=f"Ask for {math.floor(found.batch_max * workers):,} or fewer, or for more GPUs.",
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    show_table(_lines(found), as_json=False, empty="")
    for text in found.assumptions:
        click.echo(f"Assumed: {text}.")


def _lines(found: Prediction) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "figure": f"{name} ms",
            "value": getattr(found, f"{name}_ms"),
            "from": getattr(found, f"{name}_low_ms"),
            "to": getattr(found, f"{name}_high_ms"),
        }
        for name in ("ttft", "tpot")
    ]
    for name in (
        "tokens_per_s_per_user",
        "tokens_per_s_per_gpu",
        "gpus",
        "batch",
        "batch_max",
        "power_w",
        "joule_per_token",
        "joule_per_token_bound",
        "nearness",
    ):
        value = getattr(found, name)
        text = value if value is None or isinstance(value, str) else float(value)
        lines.append({"figure": name.replace("_", " "), "value": text, "from": None, "to": None})
    return lines


@command.command()
@_shared
@click.option("--gpus", type=int, multiple=True, help="Of one worker; repeated.")
@click.option("--concurrency", type=float, multiple=True, help="Requests; repeated.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def sweep(home: Home, /, *, as_json: bool, **asked: Any) -> None:
    """Predict every layout of a MODEL on a SYSTEM, and show those that none beats."""
    catalogue = catalogue_at(home, asked["folders"])
    first = _case(catalogue, asked, Layout(gpus=1), 1.0)
    domain = first.device.scaleup_domain or 1
    counts = asked["gpus"] or [2**power for power in range(7) if 2**power <= domain]
    loads = asked["concurrency"] or [float(2**power) for power in range(13)]
    cases = [
        _case(catalogue, asked, _layout(each.gpus, each.ep, each.dp, 1), 1.0)
        for each in layouts(counts, experts=first.shape.experts > 0)
    ]
    swept, refused = sweep_cases(Estimator(read_calibration(asked["calibration"])), cases, loads)
    if not swept:
        raise ConfigInvalid(
            f"None of {refused} layouts of {asked['model']} in {asked['dtype']} fits into the "
            f"memory of {first.device.name!r}.",
            hint="Allow more GPUs (--gpus), or fewer bits for each weight (--dtype).",
        )
    best = frontier(swept)
    rows = [_swept(each) for each in best]
    show_table(rows, as_json=as_json, empty="")
    if not as_json:
        click.echo(f"{len(best)} of {len(swept)} that fit; {refused} layouts do not fit.")


def _swept(each: Swept) -> dict[str, Any]:
    found, layout = each.prediction, each.case.decode
    return {
        "gpus": layout.gpus,
        "ep": layout.ep,
        "dp": layout.dp,
        "concurrency": each.case.concurrency,
        "ttft_ms": found.ttft_ms,
        "tpot_ms": found.tpot_ms,
        "tokens_per_s_per_user": found.tokens_per_s_per_user,
        "tokens_per_s_per_gpu": found.tokens_per_s_per_gpu,
        "nearness": found.nearness,
    }


def _read(path: Path, catalogue: Catalogue) -> tuple[list[Row], list[Unread]]:
    if path.stat().st_size > ROWS_BYTES_MAX:
        raise ConfigInvalid(f"{str(path)!r} is too large.", hint="Split the file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{str(path)!r} is not text: {error}.") from error
    rows, unread = [], []
    for each in read_rows(text, catalogue):
        if isinstance(each, Row):
            rows.append(each)
        else:
            unread.append(each)
    return rows, unread


ROWS_BETWEEN: Final = 250
"""From one word of progress to the next: about half a second."""


def _counted(rows: list[Row]) -> Iterator[Row]:
    """The same rows, with how many there were so far where somebody looks."""
    looked_at = sys.stderr.isatty()
    for number, row in enumerate(rows):
        if looked_at and number % ROWS_BETWEEN == 0:
            click.echo(
                f"\r\x1b[2KPredicting: row {number:,} of {len(rows):,} …", err=True, nl=False
            )
        yield row
    if looked_at:
        click.echo("\r\x1b[2K", err=True, nl=False)


def _progress(text: str) -> None:
    click.echo(text, err=True)


@command.command()
@click.argument("path", metavar="ROWS.csv", type=_ROWS)
@click.option(
    "--cross-validate",
    "left_out",
    type=click.Choice(["configuration", "group", "architecture"]),
    help="Fit anew without each fold: repeats of a configuration, or whole groups, left out.",
)
@click.option(
    "--kept-rows", type=click.IntRange(0), default=0, help="Of each group left out, fitted to."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the folds.")
@click.option("--calibration", type=_ROWS, help="A file of perf calibrate's.")
@click.option(
    "--picture",
    type=PICTURE,
    help="Draw errors and their intervals into a .png or .svg file.",
)
@catalogue_option
@click.option("--json", "as_json", is_flag=True, help="As JSON; with what --picture draws.")
@click.pass_obj
def validate(
    home: Home, /, path: Path, picture: Path | None, *, as_json: bool, **asked: Any
) -> None:
    """Compare predictions with measured rows: as fitted, or cross-validated on these rows."""
    from tokenworks.perf import validate as validation

    by = asked["left_out"]
    if by is None and asked["kept_rows"]:
        raise InvalidRequest(
            "--kept-rows has no meaning where nothing is left out.",
            hint="Leave it out, or add --cross-validate.",
        )
    if by is not None and asked["calibration"]:
        raise InvalidRequest(
            "--cross-validate fits anew, so that --calibration has no meaning.",
            hint="Leave out one of them.",
        )
    rows, unread = _read(path, catalogue_at(home, asked["folders"]))
    if by is None:
        calibration = read_calibration(asked["calibration"])
        checked, bands = validation.check(_counted(rows), calibration), calibration.bands
        how, fitted = "as fitted", calibration.rows
    else:
        folds = validation.FOLDS if by == "configuration" else validation.GROUP_FOLDS
        checked = validation.cross_validate(
            rows,
            by=by,
            folds=folds,
            seed=asked["seed"],
            kept_rows=asked["kept_rows"],
            progress=_progress,
        )
        how, fitted, bands = f"cross-validated, {by} left out, {folds} folds", len(rows), None
        if asked["kept_rows"]:
            how += f", {asked['kept_rows']} rows of each kept"
    found = validation.report(checked, unread, how=how, calibration_rows=fitted, bands=bands)
    said = msgspec.to_builtins(found)
    if picture:
        from tokenworks.cli.perf_picture import draw_spreads
        from tokenworks.perf.spread import spread_points, spreads

        points = spread_points(checked, validation.bands_by_fold(checked, bands))
        kinds = spreads(points)
        draw_spreads(points, kinds, how, picture)
        said["picture"] = {"points": points, "spreads": kinds}
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(said), indent=2))
        return
    _show_report(found)


def _show_report(found: Any) -> None:
    click.echo(f"{found.rows} rows, {found.how}; calibration of {found.calibration_rows} rows.")
    everything = (
        msgspec.structs.replace(found.groups[0], by="all", name="", rows=found.rows)
        if (found.groups)
        else None
    )
    lines = []
    if everything is not None:
        lines.append(msgspec.structs.replace(everything, tpot=found.tpot, ttft=found.ttft))
    lines += [group for group in found.groups if group.by != "group"]
    show_table([_errors(group) for group in lines], as_json=False, empty="No row was predicted.")
    for each in found.hidden_speculation:
        signs = []
        if each.rows:
            signs.append(
                f"{each.rows} of {each.of} rows beat the roofline, "
                f"up to {each.tokens_per_step:.1f} tokens per step"
            )
        if each.twins:
            signs.append(f"{each.twins} configurations have rows 1.5 times apart or more")
        click.echo(f"Hidden speculative decoding: {each.group}: {'; '.join(signs)}.")
    for what in ("unpredicted", "unmeasured"):
        for each in getattr(found, what):
            click.echo(f"Not {what.removeprefix('un')}: {each.id}: {each.why}")
        if left_off := getattr(found, f"{what}_left_off"):
            click.echo(f"and {left_off} more")
    if found.substituted:
        first = found.substituted[0]
        click.echo(
            f"{len(found.substituted) + found.substituted_left_off} rows are predicted as if of "
            f"another model, system or engine (--json lists them), such as {first.id}: {first.why}."
        )


def _errors(group: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"by": group.by, "name": group.name, "rows": group.rows}
    for target in ("tpot", "ttft"):
        errors = getattr(group, target)
        for name in ("median_ape", "mape", "p90_ape", "bias", "coverage80"):
            value = getattr(errors, name)
            row[f"{target}_{name}"] = None if value is None else round(value, 4)
    return row


@command.command()
@click.argument("path", metavar="ROWS.csv", type=_ROWS)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--source", default="", help="Of the rows, for people.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of trees and folds.")
@catalogue_option
@click.pass_obj
def calibrate(
    home: Home, /, path: Path, out: Path, source: str, seed: int, folders: tuple[Path, ...]
) -> None:
    """Fit to measured rows, find the bands of error by cross-validation, and write it all."""
    from tokenworks.perf import validate as validation

    rows, unread = _read(path, catalogue_at(home, folders))
    found = validation.calibrate(rows, source=source, seed=seed, progress=_progress)
    write_calibration(found, out)
    click.echo(f"{found.rows} rows fitted, {len(unread)} could not be read: {str(out)!r}.")

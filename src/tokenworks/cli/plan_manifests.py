"""``tokenworks plan manifests``: a planned deployment as files for engines and orchestrators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import click
import msgspec

from tokenworks.catalogue.records import Model
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.cli.catalogue import catalogue_at, catalogue_option
from tokenworks.cli.table import show as show_table
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName
from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.home import Home
from tokenworks.perf.estimate import Estimator
from tokenworks.plan.manifests.deployment import TEXT_CHARACTERS_MAX, Deployment, parse_deployment
from tokenworks.plan.manifests.factory import factory_manifest, twin_manifest
from tokenworks.plan.manifests.feasible import check_accelerator, check_model
from tokenworks.plan.manifests.manifest import Manifest
from tokenworks.plan.manifests.render import TARGETS
from tokenworks.plan.manifests.worker_model import worker_model
from tokenworks.plan.mix_question import SITE
from tokenworks.twin.kinds import twin_book

TOKENWORKS: Final = "tokenworks"
_FORMS: Final[dict[str, Literal["toml", "json"]]] = {".toml": "toml", ".json": "json"}


@click.command()
@click.argument("deployment", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    required=True,
    type=click.Choice([*TARGETS, TOKENWORKS]),
    help="Who starts it.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="The folder to write files to."
)
@catalogue_option
@click.option("--force", is_flag=True, help="Replace files that are there and differ.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: each file's name and text.")
@click.pass_obj
def manifests(
    home: Home,
    /,
    deployment: Path,
    target: str,
    out: Path | None,
    folders: tuple[Path, ...],
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write what starts a DEPLOYMENT (a file in TOML or JSON; docs/manifests.md).

    For vLLM and SGLang these are scripts, for NVIDIA Dynamo a DynamoGraphDeployment, for llm-d
    model servers and the values of its router, for Ray a Serve configuration, and for Tokenworks
    the pools of factory.toml with a scenario of the twin to try them in.
    """
    planned = _read(deployment)
    catalogue = catalogue_at(home, folders)
    known = _check(planned, catalogue)
    files = _own(planned, catalogue, known) if target == TOKENWORKS else TARGETS[target](planned)
    if out is not None:
        _write(files, out, force=force)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(files), indent=2))
    elif out is None:
        click.echo("\n".join(_printed(files)), nl=False)
    else:
        rows = [
            {"file": str(out / f.name), "unit": f.unit, "tiers": ", ".join(f.tiers) or "all"}
            for f in files
        ]
        show_table(rows, as_json=False, empty="")


def _read(path: Path) -> Deployment:
    form = _FORMS.get(path.suffix)
    if form is None:
        raise ConfigInvalid(
            f"{str(path)!r} ends neither in .toml nor in .json.", hint="Name it for what it holds."
        )
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(TEXT_CHARACTERS_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{str(path)!r} cannot be read: {error}.") from error
    return parse_deployment(text, where=str(path), form=form)


def _own(deployment: Deployment, catalogue: Catalogue, model: Model | None) -> tuple[Manifest, ...]:
    """The factory's pools; where the catalogue knows model and accelerators, the twin's too."""
    site = catalogue.site(SITE)
    unknown = [pool.name for pool in deployment.pools if not pool.accelerator]
    if model is None or unknown:
        lacks = f"model {deployment.model!r}" if model is None else f"accelerator of {unknown[0]!r}"
        click.echo(
            f"Without costs, speeds and a scenario of the twin: the catalogue does not know the "
            f"{lacks}.",
            err=True,
        )
        return (factory_manifest(deployment, {}, site),)
    estimator = Estimator(read_calibration())
    models = {
        pool.name: worker_model(catalogue, estimator, deployment, pool, model, site)
        for pool in deployment.pools
    }
    prices = f"{deployment.name}-prices.toml"
    book = twin_book(ModelName(deployment.model))
    return (
        factory_manifest(deployment, models, site),
        twin_manifest(deployment, models, site, prices),
        Manifest(name=prices, text=book.text, unit="", tiers=()),
    )


def _check(deployment: Deployment, catalogue: Catalogue) -> Model | None:
    """Against the catalogue, as far as it knows the model; an accelerator it has to know."""
    for pool in deployment.pools:
        if pool.accelerator:
            check_accelerator(deployment, pool, catalogue.accelerator(pool.accelerator))
    for model in catalogue.all_of(Model):
        if deployment.model in {model.name, *model.aliases}:
            check_model(deployment, model)
            return model
    return None


def _printed(files: Sequence[Manifest]) -> list[str]:
    if len(files) == 1:
        return [files[0].text]
    return [f"# file: {file.name}\n{file.text}" for file in files]


def _write(files: Sequence[Manifest], folder: Path, *, force: bool) -> None:
    """All files, or none if one would replace what somebody changed."""
    paths = [folder / file.name for file in files]
    changed = [
        path.name
        for path, file in zip(paths, files, strict=True)
        if path.exists() and path.read_bytes() != file.text.encode()
    ]
    if changed and not force:
        raise ConfigInvalid(
            f"{str(folder)!r} has {', '.join(changed)}, with other text.",
            hint="Take another folder, or --force to replace them.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path, file in zip(paths, files, strict=True):
        path.write_text(file.text, encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(0o755)

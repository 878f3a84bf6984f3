"""The catalogue's files: those that ship, and an operator's own, which override them."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Final

from tokenworks.catalogue.records import KINDS, Record, parse_record
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid

FILES_MAX: Final = 10_000


def read_catalogue(*folders: Path) -> Catalogue:
    """What ships, and what folders of an operator's add or replace.

    Args:
        folders: each with ``*.toml`` at any depth; a later one overrides an earlier one.

    Raises:
        ConfigInvalid: a folder is missing, or a file cannot be read.
    """
    shipped = Path(str(importlib.resources.files("tokenworks.catalogue") / "data"))
    paths = [path for kind in KINDS.values() for path in _tomls(shipped / kind.SECTION)]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigInvalid(
                f"There is no folder {str(folder)!r}.", hint="Name one with files in TOML."
            )
        paths += _tomls(folder)
    return Catalogue(map(_record, paths))


def _tomls(folder: Path) -> list[Path]:
    paths = sorted(folder.rglob("*.toml"))
    if len(paths) > FILES_MAX:
        raise ConfigInvalid(f"{str(folder)!r} has {len(paths)} files; at most {FILES_MAX}.")
    return paths


def _record(path: Path) -> Record:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{str(path)!r} cannot be read: {error}.") from error
    return parse_record(text, str(path))

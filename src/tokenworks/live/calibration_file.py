"""The calibration that ships, and an operator's own."""

from __future__ import annotations

import gzip
import importlib.resources
from pathlib import Path
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.calibration import Calibration

BYTES_MAX: Final = 100_000_000


def shipped_path() -> Path:
    """Where the calibration that ships lies."""
    return Path(str(importlib.resources.files("tokenworks.perf") / "data" / "calibration.json.gz"))


def read_calibration(path: Path | None = None) -> Calibration:
    """A calibration.

    Args:
        path: of a file that ``write_calibration`` wrote; None reads the one that ships.

    Raises:
        ConfigInvalid: it is missing or damaged.
    """
    chosen = path or shipped_path()
    try:
        with gzip.open(chosen) as file:
            data = file.read(BYTES_MAX)
        return msgspec.json.decode(data, type=Calibration)
    except (OSError, EOFError, msgspec.MsgspecError) as error:
        raise ConfigInvalid(
            f"No calibration can be read from {str(chosen)!r}: {error}.",
            hint="Write one with tokenworks perf calibrate ROWS.csv.",
        ) from error


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration; the same one gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.encode(calibration)
    path.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))

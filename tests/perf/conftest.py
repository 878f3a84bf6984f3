"""Measured rows, and a calibration of a few of them."""

from __future__ import annotations

import pathlib

import pytest

from tokenworks.catalogue.shelves import Catalogue
from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.perf.calibration import Calibration
from tokenworks.perf.rows import Row, read_rows

ROWS = pathlib.Path(__file__).parents[2] / "bench" / "data" / "silicon_rows.csv"


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return read_catalogue()


@pytest.fixture(scope="session")
def rows(catalogue: Catalogue) -> list[Row]:
    """All rows that ship with the source."""
    found = list(read_rows(ROWS.read_text(), catalogue))
    assert all(isinstance(row, Row) for row in found)
    return [row for row in found if isinstance(row, Row)]


@pytest.fixture(scope="session")
def some_rows(rows: list[Row]) -> list[Row]:
    """Enough for a fit that takes a second."""
    return rows[::12]


@pytest.fixture(scope="session")
def calibration() -> Calibration:
    """The one that ships."""
    return read_calibration()

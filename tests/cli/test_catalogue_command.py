"""The catalogue on the command line: lists, records with their sources, an operator's own."""

from __future__ import annotations

import pathlib

import pytest

from tests.cli.command_line import data, done, invoke
from tokenworks.catalogue.records import KINDS
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.home import Home

OWN = """
kind = "accelerator"
name = "abacus"
title = "Abacus"
family = "gpu"

[[figures]]
source = "counted by hand"
date = 2026-11-28
confidence = "high"
memory_bytes = 10.0
"""


def test_everything_is_listed_with_how_much_is_assumed(home: Home) -> None:
    rows = data(home, "catalogue", "list")
    assert {row["kind"] for row in rows} == set(KINDS)
    assert {row["name"]: row["assumed"] for row in rows}["lpx"] >= 2
    assert "Vera Rubin NVL72" in done(home, "catalogue", "list", "system")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_listed_with_some_of_its_numbers(home: Home, kind: str) -> None:
    rows = data(home, "catalogue", "list", kind)
    assert {row["kind"] for row in rows} == {kind}
    assert kind in {"chart", "tiers"} or len(rows[0]) > 6


def test_a_record_says_where_each_number_is_from(home: Home) -> None:
    text = done(home, "catalogue", "show", "vera-rubin-nvl72")
    assert "Vera Rubin NVL72 (system vr-nvl72)" in text
    assert "accelerator: rubin" in text
    assert "Foxconn: $9.1M." in text
    (record,) = data(home, "catalogue", "show", "lpx")
    assert record["provenance"]["price_usd"]["confidence"] == "assumed"
    assert "notes:" in done(home, "catalogue", "show", "lp30")
    text = done(home, "catalogue", "show", "keynote")
    assert "premium, interactivity_tokens_per_s 400, usd_per_mtok 45" in text
    assert "(chart keynote)" in text


def test_an_operators_own_records_are_read_from_the_home_or_a_folder(
    home: Home, tmp_path: pathlib.Path
) -> None:
    missing = invoke(home, "catalogue", "show", "abacus")
    assert isinstance(missing.exception, ConfigInvalid)
    (home.path / "catalogue").mkdir(parents=True)
    (home.path / "catalogue" / "abacus.toml").write_text(OWN)
    assert "counted by hand" in done(home, "catalogue", "show", "abacus")
    other = tmp_path / "other"
    other.mkdir()
    result = invoke(home, "catalogue", "show", "abacus", "--catalogue", str(other))
    assert isinstance(result.exception, ConfigInvalid)

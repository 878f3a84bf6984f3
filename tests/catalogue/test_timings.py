"""Timings are right when they are parsed, and those that ship say where they are from."""

from __future__ import annotations

import importlib.resources

import pytest

from tokenworks.catalogue.timings import TIMINGS_BYTES_MAX, parse_timings
from tokenworks.core.errors import ConfigInvalid

SHIPPED = (importlib.resources.files("tokenworks.catalogue") / "data" / "timings.toml").read_text()


def test_what_ships_is_fitted_closely_and_says_how_closely() -> None:
    timings = parse_timings(SHIPPED)
    assert timings.source.licence == "Apache-2.0"
    assert {engine.system for engine in timings.engine.values()} == {
        "b200_sxm",
        "h100_sxm",
        "h200_sxm",
    }
    for name, engine in timings.engine.items():
        assert engine.rows >= 12, name
        assert engine.tpot_error_ppm <= 50_000, name
        assert engine.tpot_error_unseen_ppm <= 170_000, name
        # First tokens wait in queues that nobody has written down: these figures are rough.
        assert engine.ttft_error_ppm <= 500_000, name
        assert engine.power_w in {1_370 * engine.gpus, 1_710 * engine.gpus}, name


def test_more_gpus_launch_and_prefill_sooner() -> None:
    engine = parse_timings(SHIPPED).engine
    for kind in ("h100-32b-fp8-trtllm", "h200-70b-fp8-trtllm", "b200-70b-fp8-trtllm"):
        launches = [engine[f"{kind}-tp{gpus}"].launch_fs for gpus in (1, 2, 4, 8)]
        assert launches == sorted(launches, reverse=True), kind


def test_an_engine_is_found_by_name_or_the_names_are_listed() -> None:
    timings = parse_timings(SHIPPED)
    assert timings.named("h200-70b-fp8-trtllm-tp4").gpus == 4
    with pytest.raises(ConfigInvalid, match="'h100-70b-tp4'") as caught:
        timings.named("h100-70b-tp4")
    assert "h200-70b-fp8-trtllm-tp4" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("found", "put", "says"),
    [
        ("[source]", "[[source]]", "cannot be read"),
        ("[source]", "[source", "cannot be read"),
        ("licence = ", "license = ", "cannot be read"),
        ("power_w = ", "power_w = -", "power_w"),
        ("gpus = ", "gpus = 0 #", "it must be 1 or more"),
        ("sequence_fs = ", "sequence_fs = 0.", "cannot be read"),
    ],
)
def test_other_timings_are_refused(found: str, put: str, says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says):
        parse_timings(SHIPPED.replace(found, put))


def test_timings_have_a_limit() -> None:
    with pytest.raises(ConfigInvalid, match="at most"):
        parse_timings("#" * (TIMINGS_BYTES_MAX + 1))

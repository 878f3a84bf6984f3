"""Records are read with where each number is from; what is wrong with a file is said."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from tokenworks.catalogue import records
from tokenworks.catalogue.records import (
    Accelerator,
    Model,
    Provenance,
    Record,
    System,
    parse_record,
)
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.live.catalogue_files import read_catalogue

TEXT = """
kind = "accelerator"
name = "one"
title = "One"
family = "gpu"
aliases = ["first"]

[[figures]]
source = "a datasheet"
date = 2026-01-02
confidence = "high"
memory_bytes = 1e9

[[figures]]
source = "a guess"
date = 2026-01-03
confidence = "assumed"
note = "twice"
tdp_w = 100.0
"""
SYSTEM = """
kind = "system"
name = "box"
title = "A box"
accelerator = "one"
"""
SHIPPED = read_catalogue()


def test_each_number_keeps_its_source() -> None:
    record = parse_record(TEXT, "one.toml")
    assert isinstance(record, Accelerator)
    assert (record.memory_bytes, record.tdp_w, record.fp8_flop_per_s) == (1e9, 100.0, None)
    assert record.provenance["memory_bytes"] == Provenance(
        source="a datasheet", date=datetime.date(2026, 1, 2), confidence="high"
    )
    assert record.assumed() == ("tdp_w",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind =", "one.toml cannot be read"),
        (TEXT.replace('"accelerator"', '"toaster"'), "kind is 'toaster'"),
        (TEXT.replace('name = "one"', 'name = "one"\ntdp_w = 3.0'), "a number without a source"),
        (TEXT.replace("tdp_w = 100.0", "memory_bytes = 100.0"), "memory_bytes is given twice"),
        (TEXT.replace("tdp_w = 100.0", "tdp_w = -1.0"), "it must be 0 or more"),
        (TEXT.replace("tdp_w = 100.0", "tdp_w = nan"), "it must be 0 or more"),
        (TEXT.replace("tdp_w = 100.0", "tdp = 1.0"), "tdp"),
        (TEXT.replace('confidence = "high"', 'confidence = "sure"'), "sure"),
        (TEXT.replace('source = "a guess"\n', ""), "source"),
        ("figures = 3\nkind = 'cpu'", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        parse_record(text, "one.toml")


def test_a_file_is_not_read_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORD_BYTES_MAX", 10)
    with pytest.raises(ConfigInvalid, match="at most 10"):
        parse_record(TEXT, "one.toml")


def test_records_are_found_by_name_or_alias_and_near_misses_are_named() -> None:
    catalogue = Catalogue([parse_record(TEXT, "a"), parse_record(SYSTEM, "b")])
    assert catalogue.accelerator("one") is catalogue.accelerator("first")
    assert [r.name for r in catalogue.everything()] == ["one", "box"]
    assert [r.title for r in catalogue.find("first")] == ["One"]
    with pytest.raises(ConfigInvalid, match=r"no accelerator 'oen'.*Near it: one"):
        catalogue.accelerator("oen")
    with pytest.raises(ConfigInvalid, match="Known: box, one"):
        catalogue.find("zzz")
    with pytest.raises(ConfigInvalid, match="system 'box' is made of it"):
        Catalogue([parse_record(SYSTEM, "b")])


def test_a_later_record_replaces_an_earlier_one() -> None:
    other = parse_record(TEXT.replace("memory_bytes = 1e9", "memory_bytes = 2e9"), "b")
    catalogue = Catalogue([parse_record(TEXT, "a"), other])
    assert catalogue.accelerator("first").memory_bytes == 2e9


def test_an_operators_folder_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.toml").write_text(TEXT)
    (tmp_path / "rubin.toml").write_text(TEXT.replace('"one"', '"rubin"'))
    catalogue = read_catalogue(tmp_path)
    assert catalogue.accelerator("one").title == "One"
    assert catalogue.accelerator("rubin").memory_bytes == 1e9
    with pytest.raises(ConfigInvalid, match="There is no folder"):
        read_catalogue(tmp_path / "missing")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_catalogue(tmp_path)


def test_a_folder_of_too_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenworks.live import catalogue_files

    monkeypatch.setattr(catalogue_files, "FILES_MAX", 20)
    for i in range(21):
        (tmp_path / f"{i}.toml").write_text(TEXT)
    with pytest.raises(ConfigInvalid, match="21 files; at most 20"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize("record", SHIPPED.everything(), ids=lambda r: f"{r.kind}-{r.name}")
def test_what_ships_says_where_it_is_from(record: Record) -> None:
    numbers = {
        field: value
        for field, value in ((f, getattr(record, f)) for f in record.__struct_fields__)
        if isinstance(value, int | float) and field in record.provenance
    }
    assert numbers or record.kind in {"chart", "tiers"}
    for field, origin in record.provenance.items():
        assert field in record.__struct_fields__
        assert len(origin.source) > 10
        assert datetime.date(2020, 1, 1) < origin.date <= datetime.date(2026, 11, 28)


@pytest.mark.parametrize("name", ["vr-nvl72", "gb200-nvl72", "lpx", "kyber-nvl144", "hgx-h100"])
def test_systems_of_the_roadmap_are_there(name: str) -> None:
    system = SHIPPED.system(name)
    assert system.all_in_power_w
    assert system.price_usd


def test_what_nobody_published_is_called_assumed() -> None:
    assert {"all_in_power_w", "price_usd"} <= set(SHIPPED.system("lpx").assumed())
    assert "layers" in SHIPPED.model("gpt-moe-2t").assumed()
    assert not SHIPPED.model("deepseek-r1").assumed()


def _parameters(model: Model, experts: int) -> float:
    """Weights of a model with so many routed experts per layer."""
    if model.attention == "mla":
        q_dim = model.heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
        attention = model.hidden * model.q_lora_rank + model.q_lora_rank * q_dim
        attention += model.hidden * (model.kv_lora_rank + model.qk_rope_head_dim)
        attention += model.kv_lora_rank * model.heads * (model.qk_nope_head_dim + model.v_head_dim)
        attention += model.heads * model.v_head_dim * model.hidden
    else:
        attention = 2 * model.hidden * model.head_dim * (model.heads + model.kv_heads)
    linear = 2 * model.hidden * model.linear_head_dim * model.linear_key_heads
    linear += 3 * model.hidden * model.linear_head_dim * model.linear_value_heads
    dense = 3 * model.hidden * model.intermediate
    expert = 3 * model.hidden * model.moe_intermediate
    return (
        2.0 * model.vocab * model.hidden
        + (model.layers - model.linear_layers) * attention
        + model.linear_layers * linear
        + model.dense_layers * dense
        + (model.layers - model.dense_layers) * (experts + model.experts_shared) * expert
    )


@pytest.mark.parametrize("model", SHIPPED.all_of(Model), ids=lambda m: m.name)
def test_architectures_add_up_to_the_published_parameters(model: Model) -> None:
    assert model.parameters
    assert _parameters(model, model.experts) == pytest.approx(model.parameters, rel=0.03)
    if model.parameters_active:
        active = _parameters(model, model.experts_active)
        assert active == pytest.approx(model.parameters_active, rel=0.22)  # cards round, and count
        # embeddings or leave them out


def test_the_racks_are_the_sum_of_their_gpus() -> None:
    for system in SHIPPED.all_of(System):
        if not system.accelerator:
            continue
        each = SHIPPED.accelerator(system.accelerator).all_in_power_w
        assert each
        assert system.all_in_power_w == pytest.approx(each * system.accelerators, rel=0.01)


def test_each_kind_has_its_own_drawer() -> None:
    assert SHIPPED.cpu("vera").cores == 88
    assert SHIPPED.engine("tensorrt-llm").name == "trtllm"
    assert SHIPPED.storage("g35-cmx").level == 3.5
    assert SHIPPED.network("spectrum-6").ports == 128
    assert SHIPPED.site("us-hyperscale").pue > 1
    assert [line.tier for line in SHIPPED.tiers("keynote").tiers][-1] == "ultra"
    assert len(SHIPPED.chart("keynote").points) == 10
    assert [r.kind for r in SHIPPED.find("keynote")] == ["projection", "tiers", "chart"]
    assert SHIPPED.projection("keynote").peak_share < 1


def test_the_example_of_the_page_is_a_record() -> None:
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    record = parse_record(text, "the page")
    assert record.name == "abacus"
    assert record.assumed() == ("all_in_power_w",)

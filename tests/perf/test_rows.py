"""Rows of the public schema are read, whatever their columns leave out or mix up."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf import rows as rows_module
from tokenworks.perf.rows import Row, Unread, configuration, read_rows

AGG = {
    "id": "one", "model_path": "deepseek-ai/DeepSeek-R1", "system": "b200_sxm",
    "backend": "trtllm", "mode": "agg", "isl": "1024", "osl": "512", "precision": "fp8",
    "batch_size": "16", "concurrency": "16", "tp_size": "8", "silicon_ttft_ms": "100",
    "silicon_tpot_ms": "9", "measured": "2026-01-16", "backend_version": "1.0",
}  # fmt: skip
DISAGG = AGG | {
    "mode": "disagg", "system": "gb200", "batch_size": "", "concurrency": "", "tp_size": "",
    "prefill_tp_size": "4", "prefill_moe_ep_size": "8", "decode_tp_size": "16",
    "decode_num_workers": "3", "decode_batch_size": "10", "prefill_num_workers": "2",
}  # fmt: skip


def read(catalogue: Catalogue, *given: dict[str, str]) -> list[Any]:
    file = io.StringIO()
    writer = csv.DictWriter(file, sorted({key for row in given for key in row}))
    writer.writeheader()
    writer.writerows(given)
    return list(read_rows(file.getvalue(), catalogue))


def one(catalogue: Catalogue, given: dict[str, str], **changes: str) -> Row:
    (row,) = read(catalogue, given | changes)
    assert isinstance(row, Row), row
    return row


def test_a_plain_row_says_what_it_says(catalogue: Catalogue) -> None:
    row = one(catalogue, AGG)
    case = row.case
    assert (case.mode, case.engine, case.device.name, case.dtype) == (
        "agg",
        "trtllm",
        "b200",
        "fp8",
    )
    assert (case.isl, case.osl, case.concurrency, case.decode.gpus) == (1024, 512, 16, 8)
    assert (row.ttft_ms, row.tpot_ms, case.version, case.month) == (100, 9, "1.0", 12.5)
    assert (case.gpus, case.batch) == (8, 16)


@pytest.mark.parametrize(
    ("changes", "gpus", "ep", "dp"),
    [
        # tp and ep multiplied into one column.
        ({"tp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"}, 8, 8, 1),
        # Attention of one GPU each.
        ({"tp_size": "1", "moe_ep_size": "8"}, 8, 8, 8),
        ({"tp_size": "8", "moe_tp_size": "1", "moe_ep_size": "8"}, 8, 8, 1),
        # More than the box holds.
        ({"tp_size": "4", "attention_dp_size": "4", "moe_ep_size": "16"}, 8, 8, 4),
        ({"tp_size": "16"}, 8, 1, 1),
        ({"tp_size": "0", "attention_dp_size": "0"}, 1, 1, 1),
        # No model's heads divide by 72; those of many do by 64.
        ({"system": "gb200", "tp_size": "72", "moe_tp_size": "72"}, 72, 72, 72),
        ({"system": "gb200", "tp_size": "64", "moe_tp_size": "64"}, 64, 1, 1),
    ],
)
def test_layouts_are_read_through_their_traps(
    catalogue: Catalogue, changes: dict[str, str], gpus: int, ep: int, dp: int
) -> None:
    layout = one(catalogue, AGG, **changes).case.decode
    assert (layout.gpus, layout.ep, layout.dp) == (gpus, ep, dp)


def test_concurrency_beyond_the_batch_is_replicas_or_groups(catalogue: Catalogue) -> None:
    several = one(catalogue, AGG, concurrency="64", batch_size="16").case
    assert (several.replicas, several.concurrency) == (4, 16)
    groups = one(catalogue, AGG, concurrency="64", batch_size="16", attention_dp_size="4").case
    assert (groups.replicas, groups.concurrency) == (1, 64)
    blank = one(catalogue, AGG, concurrency="", batch_size="").case
    assert blank.concurrency == 1
    only = one(catalogue, AGG, concurrency="12", batch_size="").case
    assert only.concurrency == 12


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"precision": "", "gemm_quant_mode": "nvfp4"}, "fp4"),
        ({"precision": "", "moe_quant_mode": "int4_wo"}, "int4"),
        ({"precision": "", "model_path": "nvidia/Llama-3.1-8B-Instruct-FP8"}, "fp8"),
        ({"precision": "", "model_path": "meta-llama/Llama-3.1-8B-Instruct"}, "bf16"),
        ({"precision": "odd", "model_path": "x/Qwen3-32B-AWQ"}, "int4"),
    ],
)
def test_blank_precision_is_found_elsewhere(
    catalogue: Catalogue, changes: dict[str, str], dtype: str
) -> None:
    assert one(catalogue, AGG, **changes).case.dtype == dtype


def test_a_disaggregated_worker_has_as_many_gpus_as_hold_the_weights(catalogue: Catalogue) -> None:
    def sizes(**changes: str) -> tuple[int, int, int]:
        tp = {"decode_tp_size": "1", "prefill_tp_size": "1", "prefill_moe_ep_size": ""}
        case = one(catalogue, DISAGG, **tp | changes).case
        assert case.decode.dp == case.decode.gpus
        return case.decode.gpus, case.prefill.gpus, case.decode_workers or 0

    # 671 GB, and as much cache as the load needs of 186 GB a GPU, up to a scale-up domain.
    unknown = {"precision": "fp8", "decode_num_workers": ""}
    assert sizes(**unknown, concurrency="8") == (4, 4, 0)
    assert sizes(**unknown, concurrency="2048") == (8, 4, 0)
    assert sizes(precision="fp8", concurrency="2048", decode_num_workers="8") == (4, 4, 8)
    assert sizes(**unknown, concurrency="100000") == (64, 4, 0)
    assert sizes(precision="fp4", concurrency="8") == (4, 4, 3)
    assert sizes(model_path="llama-3.1-8b", concurrency="2048") == (1, 1, 3)


def test_disaggregated_rows_may_know_their_workers_or_not(catalogue: Catalogue) -> None:
    case = one(catalogue, DISAGG).case
    assert (case.mode, case.decode.gpus, case.prefill.gpus, case.prefill.ep) == ("disagg", 16, 8, 8)
    assert (case.concurrency, case.batch, case.gpus) == (30, 10, 64)
    unknown = one(
        catalogue, DISAGG, decode_num_workers="", prefill_num_workers="", concurrency="48"
    ).case
    assert (unknown.decode_workers, unknown.prefill_workers, unknown.concurrency) == (
        None,
        None,
        48,
    )
    boxed = one(
        catalogue, DISAGG, system="b200_sxm", decode_moe_tp_size="4", decode_moe_ep_size="4"
    ).case
    assert boxed.decode.gpus == 8


@pytest.mark.parametrize(
    ("changes", "model", "device"),
    [
        ({"model_path": "nvidia/Llama-3.3-70B-Instruct-FP4"}, "gqa-80x8192-64.8", "b200"),
        ({"model_path": "Qwen/Qwen3-235B-A22B-Thinking"}, "gqa-94x4096-64-128x1536", "b200"),
        ({"system": "h100_pcie"}, "mla-61x7168-128-256x2048", "h100"),
    ],
)
def test_what_the_catalogue_does_not_know_is_taken_for_what_is_nearest(
    catalogue: Catalogue, changes: dict[str, str], model: str, device: str
) -> None:
    case = one(catalogue, AGG, **changes).case
    assert (case.shape.key, case.device.name) == (model, device)


def test_rows_that_make_no_case_are_told_apart(catalogue: Catalogue) -> None:
    bad, worse = read(catalogue, AGG | {"isl": ""}, AGG | {"id": "", "osl": "many"})
    assert isinstance(bad, Unread)
    assert bad.id == "one"
    assert isinstance(worse, Unread)
    assert worse.id == "row 2"
    with pytest.raises(ConfigInvalid, match="lack backend, isl"):
        list(read_rows("model_path,system,mode,osl\n", catalogue))


def test_a_line_that_ends_early_is_told_and_the_rest_is_read(catalogue: Catalogue) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(AGG))
    writer.writeheader()
    writer.writerow(AGG)
    head, line = file.getvalue().splitlines()
    huge = '"' + "x" * 200_000 + '"'
    given = [head, "cut", "\0", line + ",too,much", huge, line]
    short, nul, long, wide, whole = read_rows("\n".join(given), catalogue)
    assert isinstance(short, Unread)
    assert short.id == "cut"
    assert isinstance(nul, Unread)
    assert isinstance(long, Row)
    assert isinstance(wide, Unread)
    assert (wide.id, wide.why[:15]) == ("row 4", "no line of CSV:")
    assert isinstance(whole, Row)


@pytest.mark.parametrize("column", ["tp_size", "pp_size", "moe_ep_size", "attention_dp_size"])
def test_a_count_is_whole(catalogue: Catalogue, column: str) -> None:
    (half, whole) = read(catalogue, AGG | {column: "0.5"}, AGG | {column: "1.0"})
    assert isinstance(half, Unread)
    assert f"{column} is '0.5'" in half.why
    assert isinstance(whole, Row)
    (workers,) = read(catalogue, DISAGG | {"decode_num_workers": "0.2"})
    assert isinstance(workers, Unread)


def test_a_system_is_taken_for_a_gpu_whose_figures_are_known(catalogue: Catalogue) -> None:
    for name in ("l40s", "lp40", "groq", "feynmann", "rtx"):
        (row,) = read(catalogue, AGG | {"system": name})
        if isinstance(row, Unread):
            assert name == "lp40"  # the catalogue has it, without figures
            assert "knows too little of 'lp40'" in row.why
            continue
        assert row.case.device.family == "gpu"
        assert row.case.device.memory_bytes


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mode": ""}, "mode is ''; it must be agg or disagg"),
        ({"mode": "both"}, "mode is 'both'; it must be agg or disagg"),
        ({"model_path": " "}, "model_path is blank"),
        ({"system": ""}, "system is blank"),
    ],
)
def test_what_is_not_said_is_not_guessed(
    catalogue: Catalogue, changes: dict[str, str], why: str
) -> None:
    assert read(catalogue, AGG | changes) == [Unread(id="one", why=why)]
    assert one(catalogue, AGG, mode="Aggregated").case.mode == "agg"


def test_what_was_taken_for_what_is_told(catalogue: Catalogue) -> None:
    assert one(catalogue, AGG).substituted == ""
    assert one(catalogue, AGG, backend="TRTLLM").substituted == ""
    taken = one(catalogue, AGG, model_path="x/llama-4-71b", system="h100_pcie", backend="")
    model, system, engine = taken.substituted.split("; ")
    assert model.startswith("model 'x/llama-4-71b' taken for 'llama-")
    assert system == "system 'h100_pcie' taken for 'h100'"
    assert engine == "backend '' taken for an average engine"
    again = one(catalogue, AGG, system="h100_pcie")
    assert again.substituted == system


@pytest.mark.parametrize(
    ("ttft", "tpot", "why"),
    [
        ("1", "", ""),
        ("", "1", ""),
        ("", " ", "neither TTFT nor TPOT is given"),
        ("-1", "9", "silicon_ttft_ms is '-1'"),
        ("nan", "inf", "silicon_ttft_ms is 'nan', silicon_tpot_ms is 'inf'"),
        ("", "0", "silicon_tpot_ms is '0'"),
    ],
)
def test_measurements_that_are_none_are_told(
    catalogue: Catalogue, ttft: str, tpot: str, why: str
) -> None:
    assert one(catalogue, AGG, silicon_ttft_ms=ttft, silicon_tpot_ms=tpot).unmeasured == why


def test_there_is_a_limit(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ROWS_MAX", 1)
    with pytest.raises(ConfigInvalid, match="More than 1 rows"):
        read(catalogue, AGG, AGG)


def test_repeats_share_a_configuration_also_under_another_name(catalogue: Catalogue) -> None:
    twin = one(catalogue, AGG, model_path="deepseek-ai/DeepSeek-V3", id="two", measured="")
    assert configuration(one(catalogue, AGG)) == configuration(twin)
    assert configuration(twin) != configuration(one(catalogue, AGG, osl="513"))
    assert twin.case.month is None

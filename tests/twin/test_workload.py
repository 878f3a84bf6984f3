"""Traces are read, mixed and generated as they say, from a seed alone."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import ModelName
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S
from tokenworks.twin.records import TwinRequest
from tokenworks.twin.traces import read_trace
from tokenworks.twin.workload import (
    SHIFTING,
    Mix,
    Row,
    block_hash,
    gamma,
    generated,
    poisson,
    requests_of,
)

DATA = Path(__file__).parent / "data"
MOONCAKE = DATA / "mooncake_300.jsonl"


MIX = Mix()


def requests(
    rows: list[Row], mix: Mix = MIX, seed: int = 1, speedup: float = 1.0
) -> list[TwinRequest]:
    return requests_of(
        rows, model=ModelName("m"), block_tokens=512, mix=mix, seed=seed, speedup=speedup
    )


def test_mooncake_rows_are_spread_over_their_buckets() -> None:
    rows = read_trace(MOONCAKE)
    first = json.loads(MOONCAKE.read_text().splitlines()[0])
    assert len(rows) == 300
    assert (rows[0].input_tokens, rows[0].output_tokens, list(rows[0].block_ids)) == (
        first["input_length"],
        first["output_length"],
        first["hash_ids"],
    )
    times = [row.at_ns for row in rows]
    assert times == sorted(set(times))
    assert len(read_trace(MOONCAKE, limit=7)) == 7


def test_azure_rows_begin_at_zero() -> None:
    rows = read_trace(DATA / "azure_100.csv")
    assert len(rows) == 100
    assert rows[0] == Row(at_ns=0, input_tokens=4808, output_tokens=10)
    assert rows[1].at_ns == 52_000_000  # ...17.9799600 to ...18.0319600


def test_agentic_rows_wait_for_each_other_and_for_tools(tmp_path: Path) -> None:
    trace = tmp_path / "agents.jsonl"
    lines = [
        {"request_id": 1, "session_id": "s", "timestamp": 5, "branches": [2], "hash_ids": [9]},
        {"request_id": 2, "session_id": "s", "delay": 0.5, "tool_wait_ms": 20, "hash_ids": [9]},
        {"request_id": 3, "wait_for": [1, 2, 77], "prefix_reset": True, "hash_ids": [9]},
    ]
    trace.write_text(
        "\n".join(json.dumps(line | {"input_length": 600, "output_length": 4}) for line in lines)
    )
    two, three, one = read_trace(trace)
    assert (one.at_ns, one.wait_for, one.session) == (5_000_000, (), "s")
    assert (two.wait_for, two.delay_ns) == (("1",), 520_000_000)
    assert (three.wait_for, three.block_ids, three.session) == (("1", "2"), (), None)


def test_packed_traces_are_unpacked(tmp_path: Path) -> None:
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(MOONCAKE.read_bytes()))
    assert read_trace(packed) == read_trace(MOONCAKE)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_zstd_traces_are_unpacked(tmp_path: Path) -> None:
    packed = tmp_path / "trace.jsonl.zst"
    subprocess.run(["zstd", "-q", str(MOONCAKE), "-o", str(packed)], check=True)
    assert read_trace(packed) == read_trace(MOONCAKE)
    packed.write_bytes(b"no zstd")
    with pytest.raises(ConfigInvalid, match="can't be unpacked"):
        read_trace(packed)


def test_zstd_is_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "trace.jsonl.zst"
    packed.write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigInvalid, match="zstd"):
        read_trace(packed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("hello\n", "of no form"),
        ('{"hash_ids": [], "input_length": "x"}\n', "Line 1"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,one,2\n", "Line 2"),
        (
            "\n".join(
                f'{{"timestamp": {at}, "input_length": 1, "output_length": 1}}' for at in (9, 1)
            ),
            "Line 2 of the trace goes back",
        ),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    trace = tmp_path / "trace"
    trace.write_text(text)
    with pytest.raises(ConfigInvalid, match=said):
        read_trace(trace)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigInvalid, match="can't be read"):
        read_trace(trace)
    with pytest.raises(ConfigInvalid, match="no form"):
        read_trace(MOONCAKE, "other")


def test_a_seed_gives_everything() -> None:
    rows = read_trace(MOONCAKE)
    assert requests(rows) == requests(rows)
    assert requests(rows) != requests(rows, seed=2)
    fast = requests(rows, speedup=2.0)
    assert [each.at_ns for each in fast] == [round(row.at_ns / 2) for row in rows]


def test_tenants_share_nothing_and_families_stay_together() -> None:
    made = requests(read_trace(MOONCAKE))
    owners: dict[int, set[str]] = {}
    for each in made:
        for block in each.blocks:
            owners.setdefault(block, set()).add(each.tenant)
        assert len(each.blocks) <= each.input_tokens // 512
    assert all(len(names) == 1 for names in owners.values())
    assert len({each.tenant for each in made}) > 5
    by_root: dict[int, set[str]] = {}
    for row, each in zip(read_trace(MOONCAKE), made, strict=True):
        if len(row.block_ids) > 1:
            by_root.setdefault(row.block_ids[1], set()).add(each.tenant)
    assert all(len(names) == 1 for names in by_root.values())


@given(st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**20))
def test_hashes_fit_64_bits_and_differ_by_tenant(block: int, one: int, other: int) -> None:
    assert 0 <= block_hash(one, block) < 2**64
    assert (block_hash(one, block) == block_hash(other, block)) == (one == other)


def test_shares_of_tiers_are_as_asked_and_may_shift() -> None:
    rows = [Row(at_ns=i, input_tokens=10, output_tokens=1) for i in range(9_000)]
    made = requests(rows)
    free = sum(each.tier is Tier.FREE for each in made) / len(made)
    assert abs(free - 0.40) < 0.02
    shifted = requests(rows, SHIFTING)
    parts = [shifted[at : at + 3_000] for at in (0, 3_000, 6_000)]
    ultra = [sum(each.tier is Tier.ULTRA for each in part) / len(part) for part in parts]
    assert ultra[1] < ultra[0] < ultra[2]


def test_arrivals_have_their_rate_and_their_bursts() -> None:
    even, bursty = list(poisson(1, 50.0, 4_000)), list(gamma(1, 50.0, 4_000, 4.0))
    for times in (even, bursty):
        assert times == sorted(times)
        assert abs(times[-1] / NS_PER_S - 80) < 25

    def spread(times: list[int]) -> float:
        gaps = [b - a for a, b in itertools.pairwise(times)]
        mean = sum(gaps) / len(gaps)
        return sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2

    assert spread(bursty) > 5 * spread(even)
    for rate, cv in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ConfigInvalid):
            list(gamma(1, rate, 1, cv))


def test_generated_conversations_grow() -> None:
    rows = generated(range(0, 2_000_000, 1_000), 3, 512)
    assert len(rows) == 2_000
    ids = [row.block_ids for row in rows]
    seen: set[tuple[int, ...]] = set()
    went_on = 0
    for each in ids:
        went_on += any(each[:depth] in seen for depth in range(1, len(each)))
        seen.add(each)
    assert went_on > 1_000
    assert all(row.input_tokens >= len(row.block_ids) * 512 for row in rows)

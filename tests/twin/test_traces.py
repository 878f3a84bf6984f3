"""Recorded workloads are read as their formats say, and a bad row is named."""

from __future__ import annotations

import builtins
import gzip
import io
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest

from tokenworks.core.errors import ConfigInvalid
from tokenworks.twin import servegen, trace_files
from tokenworks.twin.servegen import Lengths, read_servegen, servegen_sets, servegen_trace
from tokenworks.twin.traces import (
    Format,
    detected,
    read_agentic,
    read_azure,
    read_lengths,
    read_mooncake,
    read_trace,
)

DATA = Path(__file__).parent / "data"
MOONCAKE = DATA / "mooncake_conversation_300.jsonl"
AGENTIC = DATA / "agentic_6.jsonl"
AZURE = DATA / "azure_code_40.csv"
LENGTHS = DATA / "vidur_lengths_20.csv"
SERVEGEN = DATA / "servegen"


def test_mooncake_is_read_row_by_row() -> None:
    trace = read_mooncake(MOONCAKE, spread=False)
    assert len(trace.rows) == 300
    first = trace.rows[0]
    assert (first.at_ns, first.input_tokens, first.output_tokens) == (0, 6758, 500)
    assert first.block_ids == tuple(range(14))
    assert trace.block_tokens == 512
    assert len(read_mooncake(MOONCAKE, limit=7).rows) == 7


def test_rows_of_one_bucket_are_spread_until_the_next() -> None:
    plain, spread = (read_mooncake(MOONCAKE, spread=each).rows for each in (False, True))
    times = sorted({row.at_ns for row in plain})
    assert len(times) > 2
    assert [row.at_ns for row in spread] == sorted(row.at_ns for row in spread)
    for before, after in zip(plain, spread, strict=True):
        end = next((at for at in times if at > before.at_ns), times[-1] + times[1])
        assert before.at_ns <= after.at_ns < end
    assert len({row.at_ns for row in spread}) == 300
    assert spread[0].at_ns == 0


def test_agentic_rows_wait_for_others() -> None:
    rows = {row.request: row for row in read_agentic(AGENTIC).rows}
    assert list(rows) == ["plan", "help", "act", "join", "late", "other"]  # by when they may begin
    assert rows["other"].at_ns == 1_200_500_000
    act = rows["act"]
    assert (act.wait_for, act.delay_ns, act.at_ns) == (("plan",), 1_510_500_000, 1_000_000_000)
    assert rows["join"].wait_for == ("act", "help")
    assert {rows[name].family for name in ("plan", "help", "act", "join")} == {"main"}
    assert rows["help"].session == "helper"
    assert rows["late"].family == "second"


def test_azure_has_seven_decimals() -> None:
    rows = read_azure(AZURE).rows
    assert len(rows) == 40
    assert (rows[0].at_ns, rows[0].input_tokens, rows[0].output_tokens) == (0, 4808, 10)
    assert rows[1].at_ns == 52_000_000
    assert rows[2].at_ns == 98_189_000
    assert len(read_azure(AZURE, limit=3).rows) == 3


def test_lengths_have_no_arrivals() -> None:
    pairs = read_lengths(LENGTHS)
    assert len(pairs) == 20
    assert pairs[0] == (3772, 54)
    assert len(read_lengths(LENGTHS, limit=2)) == 2


@pytest.mark.parametrize(
    ("path", "form"),
    [
        (MOONCAKE, "mooncake"),
        (AGENTIC, "agentic"),
        (AZURE, "azure"),
        (LENGTHS, "lengths"),
        (SERVEGEN, "servegen"),
        (Path("x.tar.zst"), "servegen"),
    ],
)
def test_a_format_is_recognised(path: Path, form: str) -> None:
    assert detected(path) == form


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("dear diary\n", ""):
        path.write_text(text)
        with pytest.raises(ConfigInvalid, match="no known format") as caught:
            detected(path)
        assert "--format" in caught.value.hint
    with pytest.raises(ConfigInvalid, match="has no rows"):
        read_trace(path, "mooncake")
    with pytest.raises(ConfigInvalid, match="No such file"):
        read_trace(tmp_path / "gone.jsonl.zst", "mooncake")


ROW = '{"timestamp": 5, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}'
WAITS = '{"request_id": "a", "input_length": 5, "output_length": 5'
AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
VIDUR_HEAD = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("mooncake", f"{ROW}\n\n{{oops\n", "Line 3 .* cannot be read: .*oops"),
        ("mooncake", ROW.replace("600", "0"), r"Line 1 .*input_length"),
        ("mooncake", ROW.replace("5,", "-5,", 1), r"Line 1 .*timestamp"),
        ("mooncake", ROW.replace("600", "1.5"), r"Line 1 .*input_length"),
        ("mooncake", ROW.replace("[0, 1]", "[0, -1]"), r"Line 1 .*hash_ids"),
        ("mooncake", ROW.replace("[0, 1]", "[0, 1, 2]"), "3 hash_ids for input_length 600"),
        ("mooncake", ROW.replace("hash_ids", "hashids"), "unknown field"),
        ("mooncake", f"{ROW}\n{ROW.replace('5,', '4,', 1)}", "Line 2 .* back in time.* 4"),
        ("agentic", f'{WAITS}, "wait_for": ["b"]}}', "Line 1 .* waits for 'b'"),
        ("agentic", f"{WAITS}}}", "waits for nobody and has no timestamp"),
        ("agentic", f'{WAITS}, "timestamp": 1}}\n' * 2, "Line 2 .* 'a' a second time"),
        ("azure", "TIME\n", "Line 1 .* is b'TIME'"),
        ("azure", f"{AZURE_HEAD}2023-11-16 18:17:03.9799600,4808\n", "Line 2 .* 2 cells"),
        ("azure", f"{AZURE_HEAD}2023-13-16 18:17:03.9799600,1,1\n", "Line 2 .* '2023-13"),
        ("azure", f"{AZURE_HEAD}2023-11-16 18:17:03.97x,1,1\n", "for a time"),
        ("azure", f"{AZURE_HEAD}2023-11-16 18:17:03.9,1,0\n", "Line 2 .* '0' for a number"),
        ("azure", f"{AZURE_HEAD}2023-11-16 18:17:03.9,x,1\n", "Line 2 .* 'x' for a number"),
        (
            "azure",
            f"{AZURE_HEAD}2023-11-16 18:17:03.9,1,1\n2023-11-16 18:17:03.8,1,1\n",
            "Line 3 .* back in time",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, form: Format, text: str, said: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(text.encode())
    with pytest.raises(ConfigInvalid, match=said):
        read_trace(path, form)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "lacks the column 'num_prefill_tokens'"),
        (VIDUR_HEAD, "has no rows"),
        (f"{VIDUR_HEAD}1,2\n", "Line 2 .* 2 cells and not 4"),
        (f"{VIDUR_HEAD}1,-2,3,4\n", "Line 2 .* '-2' for a number"),
        (f"{VIDUR_HEAD}1,{10**12},3,4\n", "for a number"),
    ],
)
def test_bad_lengths_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=said):
        read_lengths(path)


def test_lines_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_files, "LINE_BYTES_MAX", 50)
    with pytest.raises(ConfigInvalid, match=r"Line 1 .* longer than 50"):
        read_mooncake(MOONCAKE)
    monkeypatch.setattr(trace_files, "LINE_BYTES_MAX", 50_000)
    monkeypatch.setattr(trace_files, "ROWS_MAX", 9)
    with pytest.raises(ConfigInvalid, match="more than 9 lines"):
        read_mooncake(MOONCAKE)


def test_a_trace_may_be_zipped(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(MOONCAKE.read_bytes()))
    assert read_mooncake(path) == read_mooncake(MOONCAKE)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_mooncake(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_mooncake(path)


@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd is not installed")
def test_a_trace_may_be_compressed_by_zstd(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.zst"
    subprocess.run(["zstd", "-q", str(MOONCAKE), "-o", str(path)], check=True)
    assert read_mooncake(path) == read_mooncake(MOONCAKE)
    assert len(read_mooncake(path, limit=2).rows) == 2
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigInvalid, match="cannot decompress"):
        read_mooncake(path)


def test_without_zstd_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.jsonl.zst"
    path.write_bytes(MOONCAKE.read_bytes())
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigInvalid, match="zstd, which is not installed") as caught:
        read_mooncake(path)
    assert "pip install zstandard" in caught.value.hint
    fake: Any = types.ModuleType("zstandard")
    fake.open = builtins.open
    monkeypatch.setitem(sys.modules, "zstandard", fake)
    assert read_mooncake(path) == read_mooncake(MOONCAKE)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        tar.addfile(tarfile.TarInfo("data/readme"))
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_servegen_has_clients_with_arrivals_and_lengths(tmp_path: Path) -> None:
    clients = read_servegen(SERVEGEN)
    assert [client.name for client in clients] == [f"deepseek-r1-{n}" for n in (1, 23, 48)]
    assert servegen_sets(SERVEGEN) == ["deepseek-r1"]
    assert [len(client.windows) for client in clients] == [9, 6, 9]  # silent ones are left out
    assert clients[0].windows[3].family == "Weibull"
    files = {
        f"./data/reason/deepseek-r1/{path.name}": path.read_bytes()
        for path in (SERVEGEN / "deepseek-r1").iterdir()
    }
    for name in ("data.tar", "data.tar.gz"):
        assert read_servegen(archive(tmp_path / name, files), "deepseek-r1") == clients


def test_servegen_is_drawn_from_a_seed_at_its_rates() -> None:
    clients = read_servegen(SERVEGEN)
    trace = servegen_trace(clients, 1, duration_s=5400)
    assert trace == servegen_trace(clients, 1, duration_s=5400)
    assert trace != servegen_trace(clients, 2, duration_s=5400)
    times = [row.at_ns for row in trace.rows]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < 5_400_000_000_000
    busiest = [row for row in trace.rows if row.family == "deepseek-r1-48"]
    expected = sum(window.rate_per_s * 600 for window in clients[2].windows)
    assert abs(len(busiest) - expected) < 5 * expected**0.5
    assert {row.session for row in trace.rows} == {None}
    part = servegen_trace(clients, 1, duration_s=60, start_s=630.0)
    assert 0 <= part.rows[0].at_ns < part.rows[-1].at_ns < 60_000_000_000
    assert len(servegen_trace(clients, 1, duration_s=5400, limit=5).rows) == 5
    with pytest.raises(ConfigInvalid, match="No client asks from 90000 s"):
        servegen_trace(clients, 1, duration_s=60, start_s=90_000)


def test_servegen_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = read_servegen(SERVEGEN)
    monkeypatch.setattr(servegen, "REQUESTS_MAX", 100)
    with pytest.raises(ConfigInvalid, match="more than 100 requests"):
        servegen_trace(clients, 1, duration_s=5400)
    monkeypatch.setattr(servegen, "MEMBER_BYTES_MAX", 10)
    with pytest.raises(ConfigInvalid, match="beyond the limits"):
        read_servegen(SERVEGEN)


TRACE = b"0,0.5,1,Gamma,1,2\n600,0,0,,0,0\n"
HISTOGRAMS = b'{"0": {"text_tokens": "{0: 0.5, 7: 0.5}", "output_tokens": "{3: 1.0}"},'
HISTOGRAMS += b' "21600": {"text_tokens": "{}", "output_tokens": "{}"}}'


def members(trace: bytes = TRACE, lengths: bytes = HISTOGRAMS) -> dict[str, bytes]:
    return {"a/set/chunk-0-trace.csv": trace, "a/set/chunk-0-dataset.json": lengths}


def test_prompts_with_pictures_count_their_text(tmp_path: Path) -> None:
    (client,) = read_servegen(archive(tmp_path / "x.tar", members()))
    assert client.lengths == ((0, Lengths((1, 7), (0.5, 1.0)), Lengths((3,), (1.0,))),)
    rows = servegen_trace([client], 3, duration_s=600).rows
    assert {row.input_tokens for row in rows} == {1, 7}
    assert {row.output_tokens for row in rows} == {3}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (members(trace=b"0,1\n"), "Line 1 of 'set/chunk-0-trace.csv' is '0,1'"),
        (members(trace=b"0,1,1,Normal,1,1\n"), "Gamma or Weibull"),
        (members(trace=b"0,-1,1,Gamma,1,1\n"), "Gamma or Weibull"),
        (members(trace=b"0,1,1,Gamma,0,1\n"), "Gamma or Weibull"),
        (members(lengths=b"{"), "'set/chunk-0-dataset.json' cannot be read"),
        (members(lengths=b'{"0": {"input_tokens": "{}"}}'), "output_tokens"),
        (members(lengths=HISTOGRAMS.replace(b"7", b"x")), "no histogram"),
        (members(lengths=HISTOGRAMS.replace(b"7", b"7" * 12)), "impossible lengths"),
        ({}, "has no clients"),
        (members(trace=b"0,0,0,,0,0\n"), "has no clients"),
    ],
)
def test_bad_clients_are_named(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        read_servegen(archive(tmp_path / "x.tar", files))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no archive"):
        read_servegen(MOONCAKE)
    with pytest.raises(ConfigInvalid, match=r"has no clients .* in 'other'"):
        read_servegen(SERVEGEN, "other")

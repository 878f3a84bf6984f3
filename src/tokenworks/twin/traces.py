"""Recorded workloads, read row by row: Mooncake's, its agentic form, Azure's, and bare lengths."""

from __future__ import annotations

import csv
import datetime
import gzip
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.twin.workload import Row

BUCKET_NS: Final = 3 * NS_PER_S
"""Mooncake's timestamps come in steps of about this; rows are spread evenly over them."""
ROWS_MAX: Final = 10_000_000


class _Mooncake(msgspec.Struct, frozen=True):
    timestamp: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


class _Agentic(msgspec.Struct, frozen=True):
    """See ``read_agentic``."""

    request_id: str | int
    input_length: int
    output_length: int
    session_id: str | int | None = None
    timestamp: float | None = None
    wait_for: tuple[str | int, ...] = ()
    branches: tuple[str | int, ...] = ()
    prefix_reset: bool = False
    delay: float = 0.0
    tool_wait_ms: float = 0.0
    tool_events: tuple[object, ...] = ()
    hash_ids: tuple[int, ...] = ()


_RowT = TypeVar("_RowT", _Mooncake, _Agentic)


def read_trace(path: Path, form: str = "auto", limit: int | None = None) -> list[Row]:
    """Rows of a recorded workload, ascending by time.

    Args:
        path: a file, plain or ending in .gz or .zst.
        form: a name of ``FORMS``, or ``auto`` to look at the first line.
        limit: no more rows than this.

    Raises:
        ConfigInvalid: it can't be read, or a row is none of its form.
    """
    lines = _text(path).splitlines()
    if not lines:
        raise ConfigInvalid(f"The trace {str(path)!r} is empty.", hint="Name another file.")
    name = _guessed(lines[0]) if form == "auto" else form
    if name not in FORMS:
        raise ConfigInvalid(
            f"The trace {str(path)!r} is of no form that is known ({name!r}).",
            hint=f"Say --format, one of {', '.join(FORMS)}.",
        )
    rows = FORMS[name](lines, limit or ROWS_MAX)
    return sorted(rows, key=lambda row: row.at_ns)


def read_mooncake(lines: Sequence[str], limit: int) -> list[Row]:
    """Rows ``{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}``.

    Source: kvcache-ai/Mooncake, FAST25-release/traces; blocks of 512 tokens. The rows of one
    timestamp are spread evenly until the next one, or over ``BUCKET_NS`` at the end.
    """
    rows = [_decoded(line, number, _Mooncake) for number, line in _numbered(lines, limit)]
    made: list[Row] = []
    start = 0
    while start < len(rows):
        stop = start
        while stop < len(rows) and rows[stop].timestamp == rows[start].timestamp:
            stop += 1
        base_ns = rows[start].timestamp * NS_PER_MS
        width = rows[stop].timestamp * NS_PER_MS - base_ns if stop < len(rows) else BUCKET_NS
        if width < 0:
            raise ConfigInvalid(f"Line {stop + 1} of the trace goes back in time.")
        made += [
            Row(
                at_ns=base_ns + width * place // (stop - start),
                input_tokens=row.input_length,
                output_tokens=row.output_length,
                block_ids=row.hash_ids,
            )
            for place, row in enumerate(rows[start:stop])
        ]
        start = stop
    return made


def read_agentic(lines: Sequence[str], limit: int) -> list[Row]:
    """Rows of the "agentic Mooncake" form: requests that wait for each other and for tools.

    ``wait_for`` names the requests that must have ended; ``branches`` names requests that begin
    when this one ends, which is the same said from the other side. ``delay`` is in seconds and
    ``tool_wait_ms`` in milliseconds; both pass after the last of them. ``timestamp`` is in
    milliseconds; a row without one comes as soon as it may. ``prefix_reset`` drops the row's
    ``hash_ids``: its prompt shares nothing. ``tool_events`` are not read: the wait says it all.
    """
    rows = [_decoded(line, number, _Agentic) for number, line in _numbered(lines, limit)]
    waits: dict[str, list[str]] = {str(row.request_id): [] for row in rows}
    for row in rows:
        name = str(row.request_id)
        waits[name] += [str(each) for each in row.wait_for]
        for each in row.branches:
            waits.setdefault(str(each), []).append(name)
    names = {str(row.request_id) for row in rows}
    return [
        Row(
            at_ns=round((row.timestamp or 0.0) * NS_PER_MS),
            input_tokens=row.input_length,
            output_tokens=row.output_length,
            block_ids=() if row.prefix_reset else row.hash_ids,
            name=str(row.request_id),
            wait_for=tuple(
                each for each in dict.fromkeys(waits[str(row.request_id)]) if each in names
            ),
            delay_ns=round(row.delay * NS_PER_S + row.tool_wait_ms * NS_PER_MS),
            session=None if row.session_id is None else str(row.session_id),
        )
        for row in rows
    ]


def read_azure(lines: Sequence[str], limit: int) -> list[Row]:
    """Rows ``TIMESTAMP,ContextTokens,GeneratedTokens``, the fraction of a second in 7 digits.

    Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace (Splitwise, ISCA 2024), CC-BY-4.0.
    """
    made: list[Row] = []
    first_ns = 0
    for number, line in enumerate(csv.DictReader(lines), 2):
        if len(made) >= limit:
            break
        try:
            whole, _, part = line["TIMESTAMP"].partition(".")
            date = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
            at_ns = round(date.timestamp()) * NS_PER_S + int(part.ljust(9, "0")[:9] or 0)
            prompt, output = int(line["ContextTokens"]), int(line["GeneratedTokens"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise _bad_line(number, str(line), error) from error
        first_ns = first_ns or at_ns
        made.append(Row(at_ns=at_ns - first_ns, input_tokens=prompt, output_tokens=output))
    return made


FORMS: Final[dict[str, Callable[[Sequence[str], int], list[Row]]]] = {
    "mooncake": read_mooncake,
    "agentic": read_agentic,
    "azure": read_azure,
}
"""Readers by the name of their form."""


def _guessed(first: str) -> str:
    if first.startswith("TIMESTAMP"):
        return "azure"
    if '"request_id"' in first:
        return "agentic"
    return "mooncake" if '"hash_ids"' in first or '"input_length"' in first else "unknown"


def _numbered(lines: Iterable[str], limit: int) -> list[tuple[int, str]]:
    found = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return found[:limit]


def _decoded(line: str, number: int, kind: type[_RowT]) -> _RowT:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise _bad_line(number, line, error) from error


def _bad_line(number: int, line: str, error: Exception) -> ConfigInvalid:
    return ConfigInvalid(
        f"Line {number} of the trace is no row of its form: {line[:120]!r} ({error}).",
        hint="Say --format if the form was guessed wrong.",
    )


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        elif path.suffix == ".zst":
            raw = _unzstd(path)
        return raw.decode()
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise ConfigInvalid(
            f"The trace {str(path)!r} can't be read: {error}.", hint="Name a text file."
        ) from error


def _unzstd(path: Path) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise ConfigInvalid(
            f"{str(path)!r} needs the program zstd, which is not installed.",
            hint="Install zstd, or unpack the file first.",
        )
    done = subprocess.run([program, "-dc", str(path)], capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigInvalid(
            f"{str(path)!r} can't be unpacked: {done.stderr.decode(errors='replace').strip()}",
            hint="Fetch the file again.",
        )
    return done.stdout

"""Recorded workloads: one row per request, read from the formats that are in public use."""

from __future__ import annotations

import datetime
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, cast, get_args

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NS_PER_MS
from tokenworks.twin.trace_files import bad_row, trace_lines

Format = Literal["mooncake", "agentic", "azure", "lengths", "servegen"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
MOONCAKE_BLOCK_TOKENS: Final = 512
LENGTH_MAX: Final = 100_000_000
TIME_MS_MAX: Final = 10**12
"""A millisecond count above it, 31 years, is a mistake."""

_AZURE_HEAD: Final = b"TIMESTAMP,ContextTokens,GeneratedTokens"
_LENGTHS_HEAD: Final = (b"num_prefill_tokens", b"num_decode_tokens")
_Length = Annotated[int, msgspec.Meta(ge=1, le=LENGTH_MAX)]
_ID = Annotated[int, msgspec.Meta(ge=0)]
_Ms = Annotated[float, msgspec.Meta(ge=0, le=TIME_MS_MAX)]


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a recorded or generated workload, before it has a tenant and a tier.

    Attributes:
        at_ns: when it arrives, from the start of the workload; for one that waits for others,
            not before.
        input_tokens: tokens of the prompt, at least 1.
        output_tokens: tokens made, at least 1.
        block_ids: ids of the prompt's blocks from its start, the last of which may be part full;
            prompts with the same id have the same text up to the end of that block.
        request: its name, if others may wait for it.
        session: the conversation or agent that it belongs to.
        wait_for: names of requests that must have ended before it arrives.
        delay_ns: how long after the last of these.
        family: requests of one family have one tenant, and those that name one, one tier.
    """

    at_ns: int
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()
    request: str | None = None
    session: str | None = None
    wait_for: tuple[str, ...] = ()
    delay_ns: int = 0
    family: str | None = None


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A workload as it was recorded.

    Attributes:
        rows: ascending by ``at_ns``.
        block_tokens: tokens in one block of ``block_ids``.
    """

    rows: tuple[Row, ...]
    block_tokens: int = MOONCAKE_BLOCK_TOKENS


class _Mooncake(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    timestamp: _Ms
    input_length: _Length
    output_length: _Length
    hash_ids: tuple[_ID, ...]


class _ToolEvent(msgspec.Struct, frozen=True):
    """What a tool did is in ``tool_wait_ms``; of the event itself nothing is read."""


class _Agentic(msgspec.Struct, frozen=True, gc=False):
    request_id: str
    input_length: _Length
    output_length: _Length
    hash_ids: tuple[_ID, ...] = ()
    session_id: str | None = None
    timestamp: _Ms | None = None
    wait_for: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    prefix_reset: bool | None = None
    delay: _Ms | None = None
    tool_wait_ms: _Ms | None = None
    tool_events: tuple[_ToolEvent, ...] = ()


def read_trace(path: Path, form: Format, *, limit: int | None = None, spread: bool = True) -> Trace:
    """Read a recorded workload that has arrival times.

    Args:
        path: the file; see ``trace_files``.
        form: its format, not ``lengths`` or ``servegen``, whose arrivals are generated.
        limit: the first so many rows only.
        spread: spread the rows of one Mooncake bucket over the time until the next.

    Raises:
        ConfigInvalid: with the line at fault.
    """
    if form == "mooncake":
        trace = read_mooncake(path, limit=limit, spread=spread)
    elif form == "agentic":
        trace = read_agentic(path, limit=limit)
    else:
        assert form == "azure", form
        trace = read_azure(path, limit=limit)
    if not trace.rows:
        raise ConfigInvalid(f"{str(path)!r} has no rows.")
    return trace


def detected(path: Path) -> Format:
    """The format of a file, by its name and its first row.

    Raises:
        ConfigInvalid: it is none that is known.
    """
    if ".tar" in path.suffixes or path.is_dir():
        return "servegen"
    _, first = next(trace_lines(path), (0, b""))
    if first == _AZURE_HEAD:
        return "azure"
    if set(_LENGTHS_HEAD) <= set(first.split(b",")):
        return "lengths"
    if first.startswith(b"{"):
        return "agentic" if b'"request_id"' in first else "mooncake"
    raise ConfigInvalid(
        f"{str(path)!r} begins with {first[:60].decode(errors='replace')!r}, which is no known "
        "format.",
        hint=f"Name it by --format: {', '.join(FORMATS)}.",
    )


def read_mooncake(path: Path, *, limit: int | None = None, spread: bool = True) -> Trace:
    """Mooncake's rows: ``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids``.

    Timestamps are those of a log that was flushed every 3 s. Spread, the rows of one flush arrive
    evenly until the next, instead of all at once.

    Source:
        Qin et al., Mooncake, FAST 2025; kvcache-ai/Mooncake, ``FAST25-release/traces``: an id
        stands for 512 tokens and for all that comes before them.
    """
    decoder = msgspec.json.Decoder(_Mooncake, strict=False)
    found: list[Row] = []
    for number, line in _first(path, limit):
        row = cast("_Mooncake", _decoded(decoder, path, number, line))
        at_ns = round(row.timestamp * NS_PER_MS)
        if found and at_ns < found[-1].at_ns:
            raise bad_row(path, number, f"goes back in time, to timestamp {row.timestamp:g}")
        _check_blocks(path, number, row.hash_ids, row.input_length)
        found.append(
            Row(
                at_ns=at_ns,
                input_tokens=row.input_length,
                output_tokens=row.output_length,
                block_ids=row.hash_ids,
            )
        )
    return Trace(rows=tuple(_spread(found) if spread else found))


def _spread(rows: list[Row]) -> Iterator[Row]:
    """Rows of one instant, evenly until the next; the last ones over as long as those before."""
    start, gap_ns = 0, 0
    while start < len(rows):
        at_ns = rows[start].at_ns
        stop = start + 1
        while stop < len(rows) and rows[stop].at_ns == at_ns:
            stop += 1
        if stop < len(rows):
            gap_ns = rows[stop].at_ns - at_ns
        for place in range(start, stop):
            late_ns = gap_ns * (place - start) // (stop - start)
            yield msgspec.structs.replace(rows[place], at_ns=at_ns + late_ns)
        start = stop


def read_agentic(path: Path, *, limit: int | None = None) -> Trace:
    """Rows of "agentic Mooncake": Mooncake's, and who waits for whom.

    ======================  =====================================================================
    field                   how it is read
    ======================  =====================================================================
    ``request_id``          names the row; unique
    ``session_id``          the agent; with all that wait for it, it has one tenant and one tier
    ``timestamp``           ms; when a row that waits for nobody arrives
    ``wait_for``            request_ids that must end first; they stand before the row
    ``delay``               ms of other time after the last of them
    ``tool_wait_ms``        ms of tool time, on top of ``delay``
    ``hash_ids``            as in Mooncake
    ``branches``            children that it starts; they say so themselves by ``wait_for``
    ``prefix_reset``        a prompt that begins anew; ``hash_ids`` say so themselves
    ``tool_events``         which tools; their time is in ``tool_wait_ms``
    ======================  =====================================================================

    Source:
        The row and its meaning are those of ai-dynamo/dynamo, ``AgenticMooncakeRow``.
    """
    decoder = msgspec.json.Decoder(_Agentic, strict=False)
    found: list[Row] = []
    at_of: dict[str, int] = {}
    family_of: dict[str, str | None] = {}
    for number, line in _first(path, limit):
        row = cast("_Agentic", _decoded(decoder, path, number, line))
        _check_waits(path, number, row, at_of)
        _check_blocks(path, number, row.hash_ids, row.input_length)
        if row.wait_for:
            at_ns = max(at_of[name] for name in row.wait_for)
        else:
            at_ns = round((row.timestamp or 0) * NS_PER_MS)
        at_of[row.request_id] = at_ns
        family = family_of[row.wait_for[0]] if row.wait_for else row.session_id or row.request_id
        family_of[row.request_id] = family
        found.append(
            Row(
                at_ns=at_ns,
                input_tokens=row.input_length,
                output_tokens=row.output_length,
                block_ids=row.hash_ids,
                request=row.request_id,
                session=row.session_id,
                wait_for=row.wait_for,
                delay_ns=round(((row.delay or 0) + (row.tool_wait_ms or 0)) * NS_PER_MS),
                family=family,
            )
        )
    found.sort(key=lambda row: row.at_ns)  # stable: who is waited for stays ahead
    return Trace(rows=tuple(found))


def _check_waits(path: Path, number: int, row: _Agentic, before: Container[str]) -> None:
    if row.request_id in before:
        raise bad_row(path, number, f"has request_id {row.request_id!r} a second time")
    for name in row.wait_for:
        if name not in before:
            raise bad_row(
                path,
                number,
                f"waits for {name!r}, which no line before it has",
                "Sort rows by when they began.",
            )
    if not row.wait_for and row.timestamp is None:
        raise bad_row(path, number, "waits for nobody and has no timestamp")


def read_azure(path: Path, *, limit: int | None = None) -> Trace:
    """Azure's rows: ``TIMESTAMP`` with seven decimals, ``ContextTokens``, ``GeneratedTokens``.

    Source:
        Patel et al., Splitwise, ISCA 2024; Azure/AzurePublicDataset, CC-BY-4.0.
    """
    found: list[Row] = []
    start_ns: int | None = None
    lines = trace_lines(path)
    _, head = next(lines, (0, b""))
    if head != _AZURE_HEAD:
        raise bad_row(path, 1, f"is {head[:60]!r} and not {_AZURE_HEAD.decode()!r}")
    for number, line in lines:
        if limit is not None and len(found) >= limit:
            break
        cells = line.decode(errors="replace").split(",")
        if len(cells) != 3:
            raise bad_row(path, number, f"has {len(cells)} cells and not 3")
        unix_ns = _unix_ns(cells[0], path, number)
        start_ns = unix_ns if start_ns is None else start_ns
        if unix_ns - start_ns < (found[-1].at_ns if found else 0):
            raise bad_row(path, number, f"goes back in time, to {cells[0]!r}")
        input_tokens, output_tokens = (_length(cell, path, number) for cell in cells[1:])
        found.append(
            Row(at_ns=unix_ns - start_ns, input_tokens=input_tokens, output_tokens=output_tokens)
        )
    return Trace(rows=tuple(found))


def read_lengths(path: Path, *, limit: int | None = None) -> list[tuple[int, int]]:
    """Pairs of (prompt tokens, output tokens) from a CSV without arrival times.

    Source:
        microsoft/vidur, ``data/processed_traces``: ``num_prefill_tokens``, ``num_decode_tokens``.
    """
    lines = trace_lines(path)
    _, head = next(lines, (0, b""))
    heads = head.split(b",")
    missing = [name.decode() for name in _LENGTHS_HEAD if name not in heads]
    if missing:
        raise bad_row(path, 1, f"lacks the column {missing[0]!r}")
    places = [heads.index(name) for name in _LENGTHS_HEAD]
    found: list[tuple[int, int]] = []
    for number, line in lines:
        if limit is not None and len(found) >= limit:
            break
        cells = line.decode(errors="replace").split(",")
        if len(cells) != len(heads):
            raise bad_row(path, number, f"has {len(cells)} cells and not {len(heads)}")
        input_tokens, output_tokens = (_length(cells[place], path, number) for place in places)
        found.append((input_tokens, output_tokens))
    if not found:
        raise ConfigInvalid(f"{str(path)!r} has no rows.")
    return found


def _first(path: Path, limit: int | None) -> Iterator[tuple[int, bytes]]:
    for taken, line in enumerate(trace_lines(path)):
        if limit is not None and taken >= limit:
            return
        yield line


def _decoded(
    decoder: msgspec.json.Decoder[_Mooncake] | msgspec.json.Decoder[_Agentic],
    path: Path,
    number: int,
    line: bytes,
) -> _Mooncake | _Agentic:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = line[:80].decode(errors="replace")
        raise bad_row(path, number, f"cannot be read: {error}: {shown!r}") from error


def _check_blocks(path: Path, number: int, ids: tuple[int, ...], input_tokens: int) -> None:
    count = len(ids)
    blocks_max = -(-input_tokens // MOONCAKE_BLOCK_TOKENS)
    if count > blocks_max:
        raise bad_row(
            path,
            number,
            f"has {count} hash_ids for input_length {input_tokens}, more than {blocks_max}",
            f"An id stands for {MOONCAKE_BLOCK_TOKENS} tokens.",
        )


def _length(text: str, path: Path, number: int) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= LENGTH_MAX):
        raise bad_row(path, number, f"has {text!r} for a number of tokens")
    return int(text)


def _unix_ns(text: str, path: Path, number: int) -> int:
    """Python's dates hold microseconds; the seventh decimal is taken from the text."""
    whole, _, decimals = text.partition(".")
    try:
        date = datetime.datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=datetime.UTC)
    except ValueError as error:
        raise bad_row(path, number, f"has {text!r} for a time") from error
    if len(decimals) > 9 or not (decimals + "0").isdigit():
        raise bad_row(path, number, f"has {text!r} for a time")
    return int(date.timestamp()) * 1_000_000_000 + int(decimals.ljust(9, "0"))

"""ServeGen's clients: each with arrivals and lengths of its own, drawn from a seed."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import re
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NS_PER_S
from tokenworks.twin.arrivals import REQUESTS_MAX, gamma_gap, renewal, weibull_gap
from tokenworks.twin.trace_files import opened
from tokenworks.twin.traces import LENGTH_MAX, Row, Trace

WINDOW_S: Final = 600
LENGTHS_WINDOW_S: Final = 21_600
MEMBER_BYTES_MAX: Final = 200_000_000
CLIENTS_MAX: Final = 10_000

_MEMBER: Final = re.compile(
    r"(?:^|/)(?P<set>[^/]+)/chunk-(?P<client>\d+)-(?P<part>trace|dataset)\."
)
_HISTOGRAM: Final = re.compile(r"(\d+): ([0-9.e+-]+)")


class Window(msgspec.Struct, frozen=True):
    """How one client's requests arrive for ten minutes.

    Attributes:
        start_s: from the start of the log.
        rate_per_s: mean.
        family: distribution of the gaps.
        shape: its shape; 1 is Poisson.
    """

    start_s: int
    rate_per_s: float
    family: str
    shape: float


class Lengths(msgspec.Struct, frozen=True):
    """A histogram of lengths, as rising sums to draw from."""

    values: tuple[int, ...]
    sums: tuple[float, ...]

    def draw(self, rng: random.Random) -> int:
        """One length."""
        place = bisect_right(self.sums, rng.random() * self.sums[-1])
        return self.values[min(place, len(self.values) - 1)]


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """One client of the log.

    Attributes:
        name: its data set and number.
        windows: its arrivals, ascending, only those in which it asks.
        lengths: prompt and output by window of six hours, where they are known.
    """

    name: str
    windows: tuple[Window, ...]
    lengths: tuple[tuple[int, Lengths, Lengths], ...]

    def lengths_at(self, at_s: float) -> tuple[Lengths, Lengths]:
        """Those of the window at a time, or of the nearest that has any."""
        _, read, made = min(
            self.lengths,
            key=lambda each: (abs(each[0] + LENGTHS_WINDOW_S / 2 - at_s), each[0]),
        )
        return read, made


_Histograms = dict[str, dict[str, str]]


def servegen_sets(path: Path) -> list[str]:
    """The data sets of an archive that have lengths.

    Raises:
        ConfigInvalid: it is no archive of ServeGen's.
    """
    names = {where[0] for where, _ in _members(path, None) if where[2] == "dataset"}
    return sorted(names)


def read_servegen(path: Path, dataset: str | None = None) -> list[Client]:
    """The clients of one data set that have arrivals and lengths.

    ``chunk-N-trace.csv`` has ``t_s, rate, cv, family, arg1, arg2`` per ten minutes, where arg1 is
    the shape of a Gamma or Weibull distribution of gaps; ``chunk-N-dataset.json`` has, per six
    hours, histograms of lengths that are written as strings. For data sets with pictures the
    prompt is their ``text_tokens``.

    Args:
        path: the archive, .tar, .tar.gz or .tar.zst, or a folder that it was unpacked to.
        dataset: such as ``deepseek-r1``; None for the only one, or the first by name.

    Raises:
        ConfigInvalid: with the member and line at fault, or there is no such data set.

    Source:
        alibaba/ServeGen, Apache-2.0; Xiang et al., ServeGen, 2025.
    """
    arrivals: dict[tuple[str, int], tuple[Window, ...]] = {}
    lengths: dict[tuple[str, int], tuple[tuple[int, Lengths, Lengths], ...]] = {}
    for (name, client, part), data in _members(path, dataset):
        if part == "trace":
            arrivals[name, client] = _windows(data, f"{name}/chunk-{client}-trace.csv")
        else:
            lengths[name, client] = _lengths(data, f"{name}/chunk-{client}-dataset.json")
    sets = sorted({name for name, _ in lengths})
    chosen = dataset or (sets[0] if sets else "")
    clients = [
        Client(name=f"{name}-{number}", windows=arrivals[name, number], lengths=found)
        for (name, number), found in sorted(lengths.items())
        if name == chosen and found and arrivals.get((name, number))
    ]
    if not clients:
        raise ConfigInvalid(
            f"{str(path)!r} has no clients with arrivals and lengths"
            + (f" in {dataset!r}." if dataset else "."),
            hint=f"It has {', '.join(sets)}." if sets else "Name an archive of ServeGen's data.",
        )
    return clients


def servegen_trace(
    clients: list[Client],
    seed: int,
    *,
    duration_s: float,
    start_s: float | None = None,
    limit: int | None = None,
) -> Trace:
    """Draw what the clients ask in a stretch of time.

    Each window's gaps have the shape of its distribution and the mean of its rate.

    Args:
        clients: see ``read_servegen``.
        seed: all that is drawn follows from it; what one client asks, from its name too.
        duration_s: how long.
        start_s: from where in the log; None for the first window in which any asks.
        limit: the first so many requests only.

    Raises:
        ConfigInvalid: nobody asks in that time, or there are too many requests.
    """
    first_s = min(client.windows[0].start_s for client in clients)
    since_s = float(first_s if start_s is None else start_s)
    streams = [_asked(each, seed, since_s, since_s + duration_s) for each in clients]
    rows = tuple(itertools.islice(heapq.merge(*streams, key=_at_ns), limit or REQUESTS_MAX + 1))
    if not rows:
        raise ConfigInvalid(
            f"No client asks from {since_s:g} s for {duration_s:g} s.",
            hint=f"The first asks at {first_s} s.",
        )
    if len(rows) > REQUESTS_MAX:
        raise ConfigInvalid(f"The clients make more than {REQUESTS_MAX} requests.")
    return Trace(rows=rows)


def _at_ns(row: Row) -> int:
    return row.at_ns


def _asked(client: Client, seed: int, since_s: float, until_s: float) -> Iterator[Row]:
    rng = random.Random(f"{seed} {client.name}")  # noqa: S311
    origin_ns = round(since_s * NS_PER_S)
    for window in client.windows:
        start, stop = max(since_s, window.start_s), min(until_s, window.start_s + WINDOW_S)
        if start >= stop:
            continue
        gap = (weibull_gap if window.family == "Weibull" else gamma_gap)(window.shape)
        read, made = client.lengths_at(window.start_s)
        for at_ns in renewal(rng, gap, window.rate_per_s, start, stop):
            yield Row(
                at_ns=at_ns - origin_ns,
                input_tokens=read.draw(rng),
                output_tokens=made.draw(rng),
                family=client.name,
            )


def _members(path: Path, dataset: str | None) -> Iterator[tuple[tuple[str, int, str], bytes]]:
    """What is held of each client: (data set, client, part) and the bytes."""
    count = 0
    for name, size, read in _in_folder(path) if path.is_dir() else _in_archive(path):
        match = _MEMBER.search(name)
        if match is None or dataset not in {None, match["set"]}:
            continue
        count += 1
        if count > 2 * CLIENTS_MAX or size > MEMBER_BYTES_MAX:
            raise ConfigInvalid(f"{name!r} in {str(path)!r} is beyond the limits.")
        yield (match["set"], int(match["client"]), match["part"]), read()


_Member = tuple[str, int, Callable[[], bytes]]


def _in_folder(path: Path) -> Iterator[_Member]:
    for file in sorted(path.rglob("chunk-*")):
        yield file.as_posix(), file.stat().st_size, file.read_bytes


def _in_archive(path: Path) -> Iterator[_Member]:
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                data = tar.extractfile(member) if member.isfile() else None
                if data is not None:
                    yield member.name, member.size, data.read
    except tarfile.TarError as error:
        raise ConfigInvalid(
            f"{str(path)!r} is no archive that can be read: {error}.",
            hint="ServeGen's data comes as .tar, .tar.gz or .tar.zst.",
        ) from error


def _windows(data: bytes, name: str) -> tuple[Window, ...]:
    found = []
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        cells = line.split(",")
        try:
            start, rate, _, family, shape, _ = cells
            window = Window(int(start), float(rate), family, float(shape))
        except ValueError:
            window = Window(0, -1.0, "", 0.0)
        silent = window.rate_per_s == 0
        if not silent and not (
            0 < window.rate_per_s < math.inf
            and 0 < window.shape < math.inf
            and window.family in {"Gamma", "Weibull"}
        ):
            raise ConfigInvalid(
                f"Line {number} of {name!r} is {line[:80]!r}; "
                "it should be t_s, rate, cv, Gamma or Weibull, shape, scale."
            )
        if not silent:
            found.append(window)
    return tuple(sorted(found, key=lambda window: window.start_s))


def _lengths(data: bytes, name: str) -> tuple[tuple[int, Lengths, Lengths], ...]:
    try:
        histograms = msgspec.json.decode(data, type=_Histograms)
        found = [
            (int(start), _histogram(_prompts(parts)), _histogram(parts["output_tokens"]))
            for start, parts in histograms.items()
        ]
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise ConfigInvalid(f"The lengths in {name!r} cannot be read: {error}.") from error
    return tuple(
        (start, read, made) for start, read, made in found if read is not None and made is not None
    )


def _prompts(parts: dict[str, str]) -> str:
    return parts["text_tokens"] if "text_tokens" in parts else parts["input_tokens"]


def _histogram(text: str) -> Lengths | None:
    """A histogram written as ``{41: 0.9, 50: 0.1}``; None where it is empty.

    Raises:
        ValueError: it is written otherwise, or has a length that is none.
    """
    pairs = _HISTOGRAM.findall(text)
    if text != "{" + ", ".join(f"{length}: {share}" for length, share in pairs) + "}":
        raise ValueError(f"{text[:60]!r} is no histogram")
    # A prompt or an answer of no tokens is one that was cut short; the twin's have at least one.
    values = tuple(max(1, int(length)) for length, _ in pairs)
    sums = tuple(itertools.accumulate(float(share) for _, share in pairs))
    if values and not (max(values) <= LENGTH_MAX and 0 < sums[-1] < math.inf):
        raise ValueError(f"{text[:60]!r} has impossible lengths")
    return Lengths(values, sums) if values else None

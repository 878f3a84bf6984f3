"""Lines of a recorded workload: plain, .gz or .zst, with a limit on how many and how long."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from tokenworks.core.errors import ConfigInvalid

LINE_BYTES_MAX: Final = 16_000_000
ROWS_MAX: Final = 20_000_000


def trace_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number from 1.

    Raises:
        ConfigInvalid: the file cannot be read or decompressed, or is longer than the limits.
    """
    with opened(path) as file:
        number = 0
        while line := _line(file, path):
            number += 1
            if number > ROWS_MAX:
                raise ConfigInvalid(f"{str(path)!r} has more than {ROWS_MAX} lines.")
            if len(line) > LINE_BYTES_MAX:
                raise bad_row(path, number, f"is longer than {LINE_BYTES_MAX} bytes")
            if line := line.strip():
                yield number, line


def _line(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.readline(LINE_BYTES_MAX + 1)
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, by its suffix.

    Raises:
        ConfigInvalid: it cannot be opened or decompressed.
    """
    try:
        if path.suffix == ".zst":
            path.stat()  # so that a file that is missing is called missing
            with _zstd(path) as file:
                yield file
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as zipped:
                yield cast("IO[bytes]", zipped)
        else:
            with path.open("rb") as file:
                yield file
    except OSError as error:
        raise _unreadable(path, error) from error


@contextmanager
def _zstd(path: Path) -> Iterator[IO[bytes]]:
    """Through the ``zstd`` program; else through the library of that name."""
    program = shutil.which("zstd")
    if program is None:
        try:
            import zstandard  # noqa: PLC0415  it may be absent
        except ImportError as error:
            raise ConfigInvalid(
                f"{str(path)!r} is compressed by zstd, which is not installed.",
                hint="Install the program zstd, pip install zstandard, or decompress the file.",
            ) from error
        with zstandard.open(path, "rb") as file:
            yield file
        return
    command = [program, "--decompress", "--stdout", "--quiet", "--", str(path)]
    with subprocess.Popen(  # noqa: S603  the program is zstd and the file's name is one argument
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        yield process.stdout
        ended = not process.stdout.read(1)  # a reader that has enough leaves the rest
        process.stdout.close()
        if process.wait() != 0 and ended:
            raise OSError("zstd cannot decompress it")


def bad_row(path: Path, number: int, what: str, hint: str = "") -> ConfigInvalid:
    """An error that says where a recorded workload is wrong."""
    return ConfigInvalid(f"Line {number} of {path.name!r} {what}.", hint=hint)


def _unreadable(path: Path, error: Exception) -> ConfigInvalid:
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ConfigInvalid(
        f"{str(path)!r} cannot be read: {said}.", hint="Name a trace file, plain, .gz or .zst."
    )

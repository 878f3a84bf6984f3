"""``tokenworks top``: a running factory, live, on any terminal."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import shutil
import sys
import termios
import time
import tty
import urllib.parse
from collections.abc import Iterator
from typing import Final

import click
import msgspec

from tokenworks.cli.top_facts import Facts, Reading, facts_of
from tokenworks.cli.top_view import Line, View, plain
from tokenworks.core.errors import ConfigInvalid, WorkerUnavailable
from tokenworks.live.home import Home

TIMEOUT_S: Final = 5
TEXT_BYTES_MAX: Final = 16 * 1024 * 1024
QUIT: Final = frozenset({"q", "Q", "\x03", "\x04"})

# What every terminal since the VT100 does; the other screen is xterm's and left out by none today.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE: Final = "\x1b[0m\x1b[?25h\x1b[?1049l"
_BOLD: Final = "\x1b[1m{}\x1b[0m"


@click.command()
@click.option("--url", help="The factory.  [default: the one that runs here]")
@click.option(
    "--every",
    "interval_s",
    type=click.FloatRange(0.05, 60),
    default=1.0,
    show_default=True,
    help="Seconds between two readings.",
)
@click.option("--once", is_flag=True, help="Print one reading and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one reading as JSON and end.")
@click.pass_obj
def command(home: Home, url: str | None, interval_s: float, *, once: bool, as_json: bool) -> None:
    """Tiers, promises, queues, workers, tokens and money of a running factory, every second.

    It reads /metrics, which needs no key; --url may name a factory elsewhere. Sums are of the last
    minute; `a` shows them since the start, `s` sorts workers, `q` quits. --once and --json read
    twice, --every apart, to know tokens per second; their sums are since the start.

    Where the output is no terminal, it is as with --once.
    """
    if url is None:
        url = home.read_url()
    if url is None:
        raise WorkerUnavailable(
            "No factory runs from this folder.", hint="Start one with `tokenworks up`."
        )
    if as_json or once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        facts = _twice(url, interval_s)
        click.echo(msgspec.json.encode(facts).decode() if as_json else plain(facts, url))
        return
    watch(url, keys_fd=sys.stdin.fileno(), screen_fd=sys.stdout.fileno(), interval_s=interval_s)


def _twice(url: str, interval_s: float) -> Facts:
    first = read(url)
    time.sleep(interval_s)
    return facts_of(read(url), None, first)


def watch(url: str, *, keys_fd: int, screen_fd: int, interval_s: float) -> None:
    """Show a factory until somebody quits.

    Args:
        url: the factory's.
        keys_fd: a terminal to read keys from.
        screen_fd: a terminal to draw on.
        interval_s: between two readings.
    """
    view = View(url)
    with _screen(keys_fd, screen_fd):
        while True:
            due_s = time.monotonic() + interval_s
            try:
                view.take(read(url))
            except WorkerUnavailable as error:
                view.trouble = str(error.__cause__ or error)  # the URL stands above it
            while True:
                size = _size(screen_fd)
                _draw(screen_fd, view.lines(*size))
                key = _key(keys_fd, due_s - time.monotonic())
                if key in QUIT:
                    return
                if key is None:
                    break
                view.press(key)


def read(url: str) -> Reading:
    """The factory's metrics now.

    Raises:
        ConfigInvalid: that is no URL.
        WorkerUnavailable: nobody answers there, or not a factory.
    """
    connection = _connection(url)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "text/plain"})
        with connection.getresponse() as response:
            text = response.read(TEXT_BYTES_MAX).decode()
        if response.status != 200:
            raise ValueError(f"status {response.status}")  # noqa: TRY301 - as any other answer
        return Reading.of(text, time.monotonic())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WorkerUnavailable(
            f"The factory at {url} did not answer: {error}.", hint="Is `tokenworks up` running?"
        ) from error
    finally:
        connection.close()


def _connection(url: str) -> http.client.HTTPConnection:
    try:
        where = urllib.parse.urlsplit(url)
        host, port = where.hostname, where.port
    except ValueError as error:
        raise _no_url(url) from error
    if not host or where.scheme not in {"http", "https"}:
        raise _no_url(url)
    if where.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S)
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


def _no_url(url: str) -> ConfigInvalid:
    return ConfigInvalid(f"The URL is {url!r}.", hint="Such as http://127.0.0.1:8000.")


@contextlib.contextmanager
def _screen(keys_fd: int, screen_fd: int) -> Iterator[None]:
    """The other screen, without a cursor, and keys one by one, Ctrl-C too; as it was at the end."""
    before = termios.tcgetattr(keys_fd)
    tty.setcbreak(keys_fd)
    quiet = termios.tcgetattr(keys_fd)
    quiet[3] &= ~termios.ISIG
    termios.tcsetattr(keys_fd, termios.TCSANOW, quiet)
    _write(screen_fd, _ENTER)
    try:
        yield
    finally:
        _write(screen_fd, _LEAVE)
        termios.tcsetattr(keys_fd, termios.TCSADRAIN, before)


def _size(screen_fd: int) -> tuple[int, int]:
    """Columns and rows; a terminal that does not know is taken for 80 by 24."""
    columns, rows = os.get_terminal_size(screen_fd)
    fallback = shutil.get_terminal_size((80, 24))
    return columns or fallback.columns, rows or fallback.lines


def _draw(screen_fd: int, lines: list[Line]) -> None:
    drawn = (_BOLD.format(line.text) if line.bold and line.text else line.text for line in lines)
    _write(screen_fd, "\x1b[H" + "\x1b[K\r\n".join(drawn) + "\x1b[K\x1b[J")


def _write(screen_fd: int, text: str) -> None:
    data = text.encode("ascii", "replace")
    while data:
        data = data[os.write(screen_fd, data) :]


def _key(keys_fd: int, wait_s: float) -> str | None:
    """The next key; None once the time is over. A terminal that is gone quits."""
    ready, _, _ = select.select([keys_fd], [], [], max(0.0, wait_s))
    if not ready:
        return None
    try:
        data = os.read(keys_fd, 1)
    except OSError:
        data = b""
    return data.decode("latin-1") if data else "q"

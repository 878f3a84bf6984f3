"""``top``: what it works out, what it draws, and how it behaves on a terminal of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.command_line import READY_S_MAX, ask, data, done, invoke
from tests.cli.test_chat import FakeGateway
from tokenworks.cli import top
from tokenworks.cli.top import read, watch
from tokenworks.cli.top_facts import Reading, facts_of
from tokenworks.cli.top_view import View, plain
from tokenworks.core.errors import ConfigInvalid, WorkerUnavailable
from tokenworks.live.home import Home

WhenReady = Callable[..., list[Any]]
FAST = ("up", "--twin", "--port", "0", "--speedup", "50", "--workers", "2", "--quiet")


def metrics(answers: int, *, tier: str = "high", workers: int = 2) -> str:
    """The metrics of a factory after so many answers of 100 tokens each."""
    rows = [
        "tokenworks_open_requests 2",
        f'tokenworks_tokens_total{{kind="output",tier="{tier}"}} {100 * answers}',
        f'tokenworks_tokens_total{{kind="uncached_input",tier="{tier}"}} {30 * answers}',
        f'tokenworks_tokens_total{{kind="cached_input",tier="{tier}"}} {10 * answers}',
        f'tokenworks_settled_requests_total{{asked="high",ending="done"}} {answers}',
        f'tokenworks_promises_total{{tier="{tier}",result="kept"}} {answers}',
        f'tokenworks_promises_total{{tier="{tier}",result="broken"}} {answers}',
        f'tokenworks_revenue_dollars_total{{tier="{tier}"}} {0.5 * answers}',
        f'tokenworks_pool_cost_dollars_total{{pool="p",kind="energy"}} {0.25 * answers}',
        f'tokenworks_refusals_total{{code="quota_exceeded"}} {2 * answers}',
        f'tokenworks_queued_requests{{model="m",tier="{tier}"}} 3',
        f'tokenworks_promised_ttft_seconds{{tier="{tier}"}} 0.5',
        f'tokenworks_promised_tokens_per_second{{tier="{tier}"}} 50',
        f'tokenworks_ttft_seconds_bucket{{tier="{tier}",le="0.1"}} 0',
        f'tokenworks_ttft_seconds_bucket{{tier="{tier}",le="0.2"}} {answers}',
        f'tokenworks_ttft_seconds_bucket{{tier="{tier}",le="+Inf"}} {answers}',
        "tokenworks_ledger_lag_seconds 0.002",
        'tokenworks_ledger_appends{state="unstored"} 4',
    ]
    for i in range(workers):
        named = f'{{worker="w{i}",pool="p{i % 2}",model="m"}}'
        rows.append(f"tokenworks_worker_up{named} {int(i != 1)}")
        rows.append(f"tokenworks_worker_running_requests{named} {i}")
        rows.append(f"tokenworks_worker_slots{named} 4")
    return "\n".join(rows) + "\n"


# What it works out.


def test_rates_sums_and_quantiles() -> None:
    first, last = Reading.of(metrics(10), 100.0), Reading.of(metrics(30), 110.0)
    facts = facts_of(last, first, first)
    assert (facts.since_start, facts.span_s, facts.rate_s) == (False, 10, 10)
    assert (facts.open_requests, facts.queued) == (1, 3)
    assert facts.output_tokens_per_s == 200
    assert facts.input_tokens_per_s == 80
    assert facts.cached_share == 0.25
    assert facts.answers_per_s == 2
    assert facts.refusals_per_s == 4
    assert facts.refusals == {"quota_exceeded": 40}
    assert (facts.revenue_dollars, facts.cost_dollars) == (10, 5)
    assert facts.earned_dollars_per_mtok == pytest.approx(10 / 2000 * 1e6)
    assert facts.spent_dollars_per_mtok == pytest.approx(5 / 2000 * 1e6)
    assert (facts.ledger_lag_s, facts.ledger_unstored) == (0.002, 4)
    assert [tier.tier for tier in facts.tiers] == ["ultra", "premium", "high", "medium", "free"]
    high, free = facts.tiers[2], facts.tiers[4]
    assert (high.kept, high.broken, high.queued) == (20, 20, 3)
    assert (high.ttft_s_p50, high.promised_ttft_s) == (pytest.approx(0.15), 0.5)
    assert high.promised_tokens_per_s == 50
    assert (free.ttft_s_p50, free.promised_ttft_s, free.tokens_per_s_p50) == (None, None, None)
    assert [(each.worker, each.up, each.running) for each in facts.workers] == [
        ("w0", True, 0),
        ("w1", False, 1),
    ]


def test_since_the_start_nothing_is_subtracted_and_without_time_there_is_no_rate() -> None:
    facts = facts_of(Reading.of(metrics(10), 1.0), None, None)
    assert facts.since_start
    assert facts.revenue_dollars == 5
    assert facts.output_tokens_per_s is None


def test_of_several_processes_lag_is_the_longest_and_the_question_is_no_open_request() -> None:
    text = metrics(0) + "".join(
        f'tokenworks_open_requests{{process="{i}"}} {i}\n'
        f'tokenworks_ledger_lag_seconds{{process="{i}"}} {i}\n'
        for i in range(3)
    )
    facts = facts_of(Reading.of(text, 1.0), None, None)
    assert facts.open_requests == 2 + 0 + 1 + 2 - 1
    assert facts.ledger_lag_s == 2


def test_a_factory_that_started_again_counts_from_nothing() -> None:
    before, now = Reading.of(metrics(50), 0.0), Reading.of(metrics(4), 2.0)
    assert facts_of(now, before, before).output_tokens_per_s == 200


def test_a_quantile_above_all_bounds_is_the_last_of_them() -> None:
    text = "tokenworks_open_requests 0\n" + "".join(
        f'x_bucket{{le="{le}"}} {count}\n' for le, count in (("1", 0), ("2", 1), ("+Inf", 4))
    )
    reading = Reading.of(text, 0.0)
    assert reading.quantile("x", 0.25) == 2
    assert reading.quantile("x", 0.9) == 2
    assert reading.quantile("y", 0.9) is None


def test_other_text_is_not_taken_for_metrics() -> None:
    for text in ("", "up 1\n", "<html>\n"):
        with pytest.raises(ValueError):
            Reading.of(text, 0.0)


# What it draws.


def shown(view: View, columns: int = 80, rows: int = 24) -> list[str]:
    return [line.text for line in view.lines(columns, rows)]


def test_a_screen_is_eighty_by_twenty_four() -> None:
    view = View("http://127.0.0.1:8000")
    for n in range(100):
        view.take(Reading.of(metrics(10 * n, workers=50), float(n)))
    lines = shown(view)
    assert len(lines) == 24
    assert max(len(line) for line in lines) <= 80
    text = "\n".join(lines)
    assert text.isascii()
    assert "49 of 50 up, 1 request open, 3 waiting   [last 60 s]" in text
    assert "1,000/s out, 400/s in, 25% of it cached" in text
    assert re.search(r"high +1,000 +3 +- +150ms +199ms +500ms +- +50 +50% +300", text)
    assert "and 43 more in a taller window" in text
    assert lines[-1].startswith("q quit   s sort: name")


@pytest.mark.parametrize(("columns", "rows"), [(40, 8), (10, 2), (200, 60)])
def test_any_window_is_filled_and_not_more(columns: int, rows: int) -> None:
    view = View("http://127.0.0.1:8000")
    view.take(Reading.of(metrics(10, workers=3), 0.0))
    lines = shown(view, columns, rows)
    assert len(lines) <= max(rows, 8)
    assert max(len(line) for line in lines) <= max(columns, 40)
    assert lines[-1].startswith("q quit")


def test_keys_sort_workers_and_change_the_span() -> None:
    view = View("u")
    view.take(Reading.of(metrics(10, workers=3), 0.0))
    view.take(Reading.of(metrics(20, workers=3), 1.0))

    def order() -> list[str]:
        return re.findall(r"^(w\d)", "\n".join(shown(view)), re.MULTILINE)

    assert order() == ["w0", "w1", "w2"]
    view.press("s")
    assert order() == ["w2", "w1", "w0"]
    view.press("s")
    assert order() == ["w0", "w2", "w1"]
    assert "[last 1 s]" in shown(view)[1]
    view.press("a")
    assert "[since the start]" in shown(view)[1]
    assert "a last minute" in shown(view)[-1]
    view.press("x")
    assert "[since the start]" in shown(view)[1]


def test_trouble_is_said_above_what_was_known() -> None:
    view = View("u")
    view.trouble = "it is gone"
    assert shown(view)[1:-1] == ["No answer, trying again: it is gone"]
    view.take(Reading.of(metrics(1), 0.0))
    assert "trying again" not in "\n".join(shown(view))
    view.trouble = "it is gone"
    assert "1 of 2 up" in shown(view)[2]


def test_plain_text_has_every_worker() -> None:
    text = plain(facts_of(Reading.of(metrics(10, workers=40), 0.0), None, None), "u")
    assert len(re.findall(r"^w\d+ ", text, re.MULTILINE)) == 40


# A terminal.


class Terminal:
    """Both ends of a terminal of 80 by 24, and what was drawn on it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.drawn = ""

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def until(self, pattern: str) -> str:
        """Read until something was drawn; what came before it is forgotten."""
        until_s = time.monotonic() + READY_S_MAX  # also of what goes on drawing something else
        while (found := re.search(pattern, self.drawn, re.DOTALL)) is None:
            left_s = max(0.0, until_s - time.monotonic())
            assert select.select([self.master], [], [], left_s)[0], self.drawn
            self.drawn += os.read(self.master, 65_536).decode()
        self.drawn = self.drawn[found.end() :]
        return found.group()

    def close(self) -> None:
        for fd in (self.master, self.slave):
            os.close(fd)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "TIMEOUT_S", READY_S_MAX)  # the machine may be busy


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.fixture
def gateway(home: Home) -> Iterator[FakeGateway]:
    made = FakeGateway(home)

    def do_get(handler: Any) -> None:
        status, said = made.says.pop(0) if len(made.says) > 1 else made.says[0]
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(said)

    made.server.RequestHandlerClass.do_GET = do_get  # type: ignore[attr-defined]
    yield made
    made.stop()


def watching(gateway: FakeGateway, terminal: Terminal) -> threading.Thread:
    fds = {"keys_fd": terminal.slave, "screen_fd": terminal.slave}
    thread = threading.Thread(
        target=watch, args=(gateway.url,), kwargs={**fds, "interval_s": 0.05}, daemon=True
    )
    thread.start()
    return thread


def test_it_draws_until_q_and_leaves_the_terminal_as_it_was(
    gateway: FakeGateway, terminal: Terminal
) -> None:
    before = termios.tcgetattr(terminal.slave)
    gateway.says = [(200, metrics(n).encode()) for n in (10, 20)]
    thread = watching(gateway, terminal)
    terminal.until(r"\x1b\[\?1049h.*1 of 2 up")
    terminal.until(r"tok/s +queued.*w0")
    terminal.until("sort: name")
    terminal.press("s")
    terminal.until("sort: load")
    terminal.press("a")
    terminal.until("a last minute")
    terminal.press("q")
    terminal.until(r"\x1b\[\?25h\x1b\[\?1049l")
    thread.join(READY_S_MAX)
    assert termios.tcgetattr(terminal.slave) == before
    assert "\x1b[3" not in terminal.drawn  # no colours


def test_it_goes_on_when_the_factory_does_not_answer(
    gateway: FakeGateway, terminal: Terminal
) -> None:
    good = (200, metrics(1).encode())
    gateway.says = [good, (503, b"no"), (200, b"not metrics\n"), good]
    thread = watching(gateway, terminal)
    terminal.until("1 of 2 up")
    terminal.until("trying again: status 503")
    terminal.until("trying again: [^\\r]*not")
    terminal.until(r"top   http://[\d.:]+\x1b\[0m\x1b\[K\s+workers")
    terminal.press("\x03")
    terminal.until(r"\x1b\[\?1049l")
    thread.join(READY_S_MAX)
    assert not thread.is_alive()


def test_a_real_factory_on_a_real_terminal(
    home: Home, when_ready: WhenReady, terminal: Terminal
) -> None:
    def act() -> tuple[int, dict[str, Any], str]:
        for _ in range(3):
            ask(home, model="twin", service_tier="high")
        command = [sys.executable, "-m", "tokenworks.cli.main", "--home", str(home.path), "top"]
        process = subprocess.Popen(
            [*command, "--every", "0.05"],
            stdin=terminal.slave,
            stdout=terminal.slave,
            stderr=terminal.slave,
            env={**os.environ, "TERM": "vt100"},
        )
        terminal.until(r"2 of 2 up, 0 requests open, 0 waiting")
        terminal.until(r"\$[\d.]+ earned")
        terminal.until(r"high .*free")
        terminal.until(r"even-0 +even +twin +up +\[\.{16}\] 0/")
        ask(home, model="twin")
        terminal.until(r"\[last \d+ s\]")
        terminal.press("q")
        status = process.wait(READY_S_MAX)
        return status, data(home, "top", "--every", "0.05"), done(home, "top", "--every", "0.05")

    results = when_ready(home, act)
    assert invoke(home, *FAST).exit_code == 0
    assert not isinstance(results[0], Exception), results
    status, facts, text = results[0]
    assert status == 0
    assert facts["since_start"]
    assert [worker["up"] for worker in facts["workers"]] == [True, True]
    high = next(tier for tier in facts["tiers"] if tier["tier"] == "high")
    assert high["kept"] + high["broken"] == 4
    assert high["ttft_s_p50"] > 0
    assert high["promised_ttft_s"] > 0
    assert facts["revenue_dollars"] > 0
    assert facts["cost_dollars"] > 0
    assert facts["earned_dollars_per_mtok"] > 0
    assert "2 of 2 up" in text
    assert "[since the start]" in text


# What it refuses.


def test_without_a_factory_it_says_so(home: Home) -> None:
    assert isinstance(invoke(home, "top").exception, WorkerUnavailable)
    caught = invoke(home, "top", "--once", "--url", "http://127.0.0.1:1").exception
    assert isinstance(caught, WorkerUnavailable)
    assert "did not answer" in str(caught)


@pytest.mark.parametrize("url", ["nowhere", "ftp://x", "http://", "http://h:notaport"])
def test_what_is_no_url_is_refused(home: Home, url: str) -> None:
    assert isinstance(invoke(home, "top", "--once", "--url", url).exception, ConfigInvalid)


def test_a_factory_behind_tls_is_asked_by_tls() -> None:
    with pytest.raises(WorkerUnavailable):
        read("https://127.0.0.1:1")


def test_json_is_one_object(home: Home, gateway: FakeGateway) -> None:
    gateway.says = [(200, metrics(1).encode()), (200, metrics(2).encode())]
    found = json.loads(done(home, "top", "--json", "--every", "0.05"))
    assert found["rate_s"] > 0
    assert found["output_tokens_per_s"] == pytest.approx(100 / found["rate_s"])

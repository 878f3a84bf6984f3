"""Measuring tiers, and putting what was measured into a price book."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.command_line import data, done, invoke
from tests.live.fake_worker import FakeWorker, Script
from tokenworks.catalogue.price_book import parse_price_book
from tokenworks.cli import tiers
from tokenworks.cli.tiers import with_promises
from tokenworks.core.errors import ConfigInvalid, WorkerUnavailable
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_MS
from tokenworks.live import measure as measure_module
from tokenworks.live import workers as workers_module
from tokenworks.live.home import Home, packaged
from tokenworks.live.measure import Proposal
from tokenworks.live.network import WorkerClient
from tokenworks.live.workers import WorkerSpec

BOOK = packaged("laptop.toml").read_text()
PROPOSALS = [
    Proposal(
        tier=tier,
        interactivity_tokens_per_s=100 * (tier.rank + 1),
        ttft_ms=1_000 - 100 * tier.rank,
        batch=1,
    )
    for tier in Tier
]


# The text of a book.


def test_promises_change_and_nothing_else_does() -> None:
    text = with_promises(BOOK, PROPOSALS)
    book = parse_price_book(text)
    for tier in Tier:
        assert book.promises[tier].interactivity_tokens_per_s == 100 * (tier.rank + 1)
        assert book.promises[tier].ttft_ns == (1_000 - 100 * tier.rank) * NS_PER_MS
        old = parse_price_book(BOOK).promises[tier]
        assert book.promises[tier].patience_ns == old.patience_ns
    assert book.prices == parse_price_book(BOOK).prices
    changed = [
        (old, new)
        for old, new in zip(BOOK.splitlines(), text.splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) <= 11
    assert changed[0] == ('name = "laptop"', 'name = "laptop-measured"')
    assert with_promises(text, PROPOSALS) == text


def test_figures_with_underscores_are_replaced_as_a_whole() -> None:
    text = BOOK.replace("ttft_ms = 8000", "ttft_ms = 8_000")
    book = parse_price_book(with_promises(text, PROPOSALS))
    assert book.promises[Tier.FREE].ttft_ns == 1_000 * NS_PER_MS


def test_comments_and_tables_before_do_not_mislead() -> None:
    text = '# name = "laptop" was its name\n# [tier.free]\n# ttft_ms = 5\n' + BOOK
    text = text.replace("[tier.free]\nttft", "[tier.free]\n# a [word] on it\nttft")
    found = with_promises(text, PROPOSALS)
    assert found.startswith('# name = "laptop" was its name\n# [tier.free]\n# ttft_ms = 5\n')
    assert 'name = "laptop-measured"' in found
    assert parse_price_book(found).promises[Tier.FREE].ttft_ns == 1_000 * NS_PER_MS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[tier.high]\nttft_ms = 2000", "[tier.high]"),
        ("[tier.high]", '[tier."high"]'),
        ("ttft_ms = 2000", "ttft_ms=2000"),
    ],
)
def test_a_book_of_another_layout_is_refused(old: str, new: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"under \[tier\.high\]"):
        with_promises(BOOK.replace(old, new), PROPOSALS)


# The command, with fakes for workers.


class FakeEmbedded:
    """Stands where ``EmbeddedWorker`` does."""

    script = Script(tokens=None)
    comes_up = True

    def __init__(
        self,
        spec: WorkerSpec,
        clock: object,
        on_up: Callable[[WorkerClient], None],
        on_down: Callable[[str], None],
    ) -> None:
        self.on_up, self.on_down = on_up, on_down
        self.last_failure = "" if self.comes_up else f"{spec.worker} found no weights"
        self.fake = FakeWorker(self.script)
        self.client: WorkerClient | None = None
        self.starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.comes_up:
            self.starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        await self.fake.start()
        self.client = WorkerClient(self.fake.host, self.fake.port, None)
        self.on_up(self.client)

    async def stop(self) -> None:
        if self.client is not None:
            self.client.close()
            self.on_down("stopped")
        await self.fake.stop()


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    monkeypatch.setattr(workers_module, "EmbeddedWorker", FakeEmbedded)
    monkeypatch.setattr(measure_module, "OUTPUT_TOKENS", 3)
    monkeypatch.setattr(measure_module, "ROUNDS", 1)
    home.make()
    weights = home.path / "mine.gguf"
    weights.write_text("")
    home.settings.write_text(
        "[pool.far]\nengine = 'attached'\nmodel = 'foreman'\nurls = ['http://127.0.0.1:1']\n"
        f"[pool.near]\nengine = 'embedded'\nmodel = 'foreman'\npath = '{weights}'\n"
        "workers = 2\nslots = 4\n"
    )


def test_measuring_proposes_promises_and_keeps_nothing_unasked(home: Home) -> None:
    said: Any = data(home, "tiers", "measure")
    assert said["pool"] == "near"
    assert [point["batch"] for point in said["points"]] == [1, 2, 4]
    assert [row["tier"] for row in said["proposals"]] == [tier.value for tier in Tier]
    assert not home.curves.exists()
    text = done(home, "tiers", "measure", "--pool", "near")
    assert "with a fifth to spare" in text
    assert "--write keeps them." in text


def test_measuring_keeps_curve_and_promises_when_asked(home: Home) -> None:
    home.curves.write_text('{"other": [[1, 7]]}')
    text = done(home, "tiers", "measure", "--write")
    assert "restart the factory" in text
    curves = home.load_curves()
    assert curves["other"] == ((1, 7),)
    assert [batch for batch, _ in curves["near"]] == [1, 2, 4]
    assert home.load_price_book().price_id.startswith("laptop-measured@")


@pytest.mark.parametrize("pool", ["far", "no such"])
def test_only_an_embedded_pool_is_measured(home: Home, pool: str) -> None:
    result = invoke(home, "tiers", "measure", "--pool", pool)
    assert isinstance(result.exception, ConfigInvalid)
    assert "Pools: far, near." in result.exception.hint


def test_workers_that_do_not_come_up_say_why(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEmbedded, "comes_up", False)
    monkeypatch.setattr(tiers, "READY_S_MAX", 0)
    result = invoke(home, "tiers", "measure")
    assert isinstance(result.exception, WorkerUnavailable)
    assert "near-0 found no weights; near-1 found no weights" in str(result.exception)

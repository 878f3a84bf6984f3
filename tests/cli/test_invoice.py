"""Invoices and exports from the command line: the same total everywhere."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import pathlib
import sys
from decimal import Decimal

import msgspec
import pytest
from click.testing import CliRunner

from tests.ledger.ledger_samples import key_record, ledger, post, reserve
from tests.ledger.test_invoices import BOOKS, ENTRIES, INVOICE
from tokenworks.cli.invoice_pdf import spelled, write_pdf
from tokenworks.cli.main import cli
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.core.ids import ModelName
from tokenworks.live.home import Home
from tokenworks.live.store import SQLStore

MONTH = ("--month", "2026-09")


@pytest.fixture
def filled(home: Home) -> Home:
    home.make()
    store = home.open_ledger("me")
    for price_id, book in BOOKS.items():
        store.put_price_book(price_id, book.text, 1)
    store.put_key(key_record())
    store.append_now(ENTRIES)
    store.close()
    return home


def run(home: Home, *words: str) -> str:
    result = CliRunner().invoke(cli, ["--home", str(home.path), *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_is_the_invoice(filled: Home) -> None:
    said = json.loads(run(filled, "invoice", "tenant", *MONTH, "--json", "--from-entries"))
    assert said["content_hash"] == INVOICE.content_hash
    text = run(filled, "invoice", "tenant", *MONTH, "--from-entries")
    assert "Redone from the entries: equal." in text
    assert INVOICE.content_hash in text


@pytest.mark.parametrize("before", ["rollups_and_last", "load_price_book", "blocks"])
def test_what_is_appended_meanwhile_is_no_disagreement(
    filled: Home, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    plain, count = getattr(SQLStore, before), itertools.count()

    def slow(store: SQLStore, *arguments: int) -> object:
        made, name = ledger(key_record()), f"late{next(count)}"
        with contextlib.closing(filled.open_ledger(name)) as factory:
            factory.append_now([reserve(made, name), post(made, name)])
        return plain(store, *arguments)

    monkeypatch.setattr(SQLStore, before, slow)
    words = ("invoice", "tenant", *MONTH, "--draft", "--from-entries")
    assert "Redone from the entries: equal." in run(filled, *words)
    said = json.loads(run(filled, *words, "--json"))
    assert said["answers"] > INVOICE.answers
    assert next(count) >= 2


def test_the_pdf_is_reproducible_and_says_the_total(
    filled: Home, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fpdf = pytest.importorskip("fpdf")
    one, two, plain = (tmp_path / name for name in ("1.pdf", "2.pdf", "3.pdf"))
    for path in (one, two):
        run(filled, "invoice", "tenant", *MONTH, "--pdf", str(path))
    assert one.read_bytes() == two.read_bytes()
    before = fpdf.FPDF.__init__

    def uncompressed(self, *args, **kwargs) -> None:
        before(self, *args, **kwargs)
        self.set_compression(False)

    monkeypatch.setattr(fpdf.FPDF, "__init__", uncompressed)
    run(filled, "invoice", "tenant", *MONTH, "--pdf", str(plain))
    total = f"{Decimal(INVOICE.total_nanodollars) / 10**9:f}"
    assert total.encode() in plain.read_bytes()
    assert INVOICE.content_hash.encode() in plain.read_bytes()


WIDE = msgspec.structs.replace(
    INVOICE,
    total_nanodollars=2**63,
    lines=(
        msgspec.structs.replace(
            INVOICE.lines[0],
            model=ModelName("somebody/a-model-with-quite-a-long-name-quantized-w4a16"),
            tokens=2**63,
            amount_attodollars=2**63 * 10**9 - 1,
        ),
        *INVOICE.lines,
    ),
)


@pytest.mark.parametrize("tenant", ["acme", "Žluť книга", "日本"])
def test_a_pdf_shows_every_name_and_number_in_its_column(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tenant: str
) -> None:
    fpdf = pytest.importorskip("fpdf")
    made = msgspec.structs.replace(WIDE, tenant=tenant, number=f"{tenant}-2026-09")
    cells: list[str] = []
    plain = fpdf.FPDF.cell

    def watched(page, w=None, h=None, text="", **more):
        assert not w or page.get_string_width(text) <= w, text
        cells.append(text)
        return plain(page, w, h, text, **more)

    monkeypatch.setattr(fpdf.FPDF, "cell", watched)
    files = tmp_path / "1.pdf", tmp_path / "2.pdf"
    for path in files:
        write_pdf(made, path)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (b"/FontFile2" in files[0].read_bytes()) is (tenant != "acme")
    for text in ("9,223,372,036,854,775,808", "9,223,372,036.854775807999999999"):
        assert text in cells
    assert any("[U+...]" in text for text in cells) is (tenant == "日本")


def test_a_character_that_the_font_lacks_stands_by_its_number() -> None:
    assert spelled("a\tб日", {ord("a"), ord("б"), ord("\t")}) == "a[U+0009]б[U+65E5]"


def test_a_month_that_is_not_over_is_refused(filled: Home) -> None:
    words = ("--month", "2199-01")
    for command in (("invoice", "tenant"), ("export", "focus")):
        with pytest.raises(InvalidRequest, match="not over"):
            run(filled, *command, *words)
    assert "(draft)" in run(filled, "invoice", "tenant", *words, "--draft")


def test_csv_and_parquet_add_up_to_the_invoice(filled: Home, tmp_path: pathlib.Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    files = tmp_path / "a.csv", tmp_path / "a.parquet"
    words = ("export", "focus", *MONTH, "--tenant", "tenant")
    run(filled, *words, "--csv", str(files[0]), "--parquet", str(files[1]))
    text = files[0].read_text()
    assert text == run(filled, *words)
    rows = list(csv.DictReader(io.StringIO(text)))
    total = Decimal(INVOICE.total_nanodollars) / 10**9
    assert sum(Decimal(row["BilledCost"]) for row in rows) == total
    table = parquet.read_table(files[1])
    assert sum(table.column("BilledCost").to_pylist()) == total
    assert table.num_rows == len(rows)


def test_what_is_missing_is_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="no ledger"):
        run(home, "invoice", "tenant", *MONTH)


@pytest.mark.parametrize(
    "words", [("invoice", "tenatn"), ("export", "focus", "--tenant", "tenatn")]
)
def test_a_tenant_that_nobody_knows_is_refused(filled: Home, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="no tenant 'tenatn'") as caught:
        run(filled, *words, *MONTH)
    assert caught.value.hint == "Is it tenant?"
    with pytest.raises(InvalidRequest, match="no tenant 'zzz'") as caught:
        run(filled, *words[:-1], "zzz", *MONTH)
    assert caught.value.hint == "Is it second or tenant?"


def test_a_tenant_that_used_nothing_owes_nothing(home: Home) -> None:
    home.make()
    home.open_ledger("me").close()
    with pytest.raises(InvalidRequest) as caught:
        run(home, "invoice", "acme", *MONTH)
    assert "key list" in caught.value.hint
    run(home, "key", "create", "--tenant", "acme")
    assert "Due      $0.00" in run(home, "invoice", "acme", *MONTH)


@pytest.mark.parametrize("command", [("invoice", "tenant"), ("export", "focus"), ("report",)])
def test_a_month_without_an_end_is_refused(filled: Home, command: tuple[str, ...]) -> None:
    draft = () if command == ("report",) else ("--draft",)
    with pytest.raises(InvalidRequest, match="1970 to 2261"):
        run(filled, *command, "--month", "9999-12", *draft)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fpdf", ("invoice", "tenant", "--pdf")),
        ("pyarrow", ("export", "focus", "--parquet")),
    ],
)
def test_an_extra_that_is_missing_is_named(
    filled: Home, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, module: str, words
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigInvalid, match="need"):
        run(filled, *words, str(tmp_path / "file"), *MONTH)

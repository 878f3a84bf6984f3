"""An invoice as PDF, the same bytes each time; needs the extra ``tokenworks[invoices]``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import dollars_text
from tokenworks.ledger.invoices import Invoice, decimal_text

_HEADS: Final = ("Model", "Tier", "Tokens of", "Tokens", "List $ / 1M", "Rate %", "Amount $")
_WIDTHS: Final = (36, 18, 40, 24, 22, 16, 34)
_LEFT: Final = 3
"""Columns that stand to the left; numbers stand to the right."""
_FONT: Final = "Helvetica"


def write_pdf(made: Invoice, path: Path) -> None:
    """Write an invoice to a file.

    Raises:
        ConfigInvalid: fpdf2 is missing, or the file cannot be written.
    """
    try:
        from fpdf import FPDF
    except ImportError as error:
        raise ConfigInvalid(
            "PDF files need fpdf2.", hint="pip install 'tokenworks[invoices]'"
        ) from error
    page = FPDF(format="A4")
    page.set_creation_date(_date(made.until_unix_ns))
    page.set_title(_latin(f"Invoice {made.number}"))
    page.set_margins(10, 14)
    page.add_page()
    _head(page, made)
    _lines(page, made)
    _sums(page, made)
    try:
        path.write_bytes(bytes(page.output()))
    except OSError as error:
        raise ConfigInvalid(
            f"{str(path)!r} cannot be written: {error.strerror}.", hint="Name another file."
        ) from error


def _date(unix_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, tz=datetime.UTC)


def _latin(text: str) -> str:
    """What the core fonts can show."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _head(page: Any, made: Invoice) -> None:
    page.set_font(_FONT, "B", 20)
    page.cell(0, 10, "Invoice, draft" if made.draft else "Invoice", new_x="LMARGIN", new_y="NEXT")
    page.set_font(_FONT, "", 10)
    last = _date(made.until_unix_ns - 1).date()
    for name, text in (
        ("Number", made.number),
        ("Tenant", made.tenant),
        ("Period", f"{_date(made.since_unix_ns).date()} to {last}, UTC"),
        ("Answers", f"{made.answers:,}"),
    ):
        page.cell(26, 5.5, name)
        page.cell(0, 5.5, _latin(text), new_x="LMARGIN", new_y="NEXT")
    page.ln(6)


def _lines(page: Any, made: Invoice) -> None:
    _row(page, _HEADS, "B", border="B")
    before = None
    for line in made.lines:
        if page.will_page_break(12):
            page.add_page()
            _row(page, _HEADS, "B", border="B")
        if line.price_id != before:
            before = line.price_id
            page.set_font(_FONT, "I", 7.5)
            page.cell(0, 6, _latin(f"Price book {before}"), new_x="LMARGIN", new_y="NEXT")
        name = line.token_class.removesuffix("_tokens").replace("_", " ")
        _row(
            page,
            (
                line.model,
                line.tier.value,
                f"{name}, batch" if line.batch else name,
                f"{line.tokens:,}",
                decimal_text(line.list_udollars_per_mtok, 6, 2),
                decimal_text(line.rate_ppm, 4),
                decimal_text(line.amount_attodollars, 18, 2),
            ),
            "",
        )


def _row(page: Any, cells: tuple[str, ...], style: str, border: str | int = 0) -> None:
    page.set_font(_FONT, style, 8)
    for i, (text, width) in enumerate(zip(cells, _WIDTHS, strict=True)):
        shown = _latin(text)
        while page.get_string_width(shown) > width - 2 and i < _LEFT:
            shown = shown[:-3] + ".."
        page.cell(width, 5.5, shown, border=border, align="L" if i < _LEFT else "R")
    page.ln(5.5)


def _sums(page: Any, made: Invoice) -> None:
    page.ln(3)
    for name, text in (
        (
            "Rounding of each answer to a nano-dollar",
            decimal_text(made.rounding_attodollars, 18, 2),
        ),
        ("Credits for broken promises", dollars_text(made.credits_nanodollars)),
        ("Total", dollars_text(made.total_nanodollars)),
    ):
        page.set_font(_FONT, "", 9)
        page.cell(150, 5.5, name, align="R")
        page.cell(40, 5.5, text, align="R", new_x="LMARGIN", new_y="NEXT")
    page.set_font(_FONT, "B", 12)
    page.cell(150, 9, "Due, in US dollars", align="R")
    due = decimal_text(made.total_cents, 2, 2)
    page.cell(40, 9, due, align="R", border="T", new_x="LMARGIN", new_y="NEXT")
    page.ln(6)
    page.set_font(_FONT, "", 7)
    page.cell(0, 4, f"Content sha256 {made.content_hash}", new_x="LMARGIN", new_y="NEXT")

"""An invoice as PDF, the same bytes each time; needs the extra ``tokenworks[invoices]``."""

from __future__ import annotations

import datetime
from collections.abc import Container
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import dollars_text
from tokenworks.ledger.invoices import Invoice, Line, decimal_text

_HEADS: Final = ("Model", "Tier", "Tokens of", "Tokens", "List $ / 1M", "Rate %", "Amount $")
_WIDTHS: Final = (46, 16, 32, 26, 20, 14, 36)
_SIZE_MAX: Final = 8.0
_SIZE_MIN: Final = 4.0
"""In points. What the widest sums of a ledger need, of 2**63 nano-dollars, is more than that."""
_LATIN_1: Final = frozenset((*range(0x20, 0x7F), *range(0xA0, 0x100)))
_LEFT: Final = 3
"""Columns that stand to the left; numbers stand to the right."""
_CORE: Final = "Helvetica"
"""The font of an invoice of Latin-1 alone: every reader has it."""
_OWN: Final = "DejaVu"
"""The font of the others: Latin, Greek and Cyrillic."""


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
    page.set_title(f"Invoice {made.number}")
    page.set_margins(10, 14)
    page.add_page()
    names = [made.number, *(line.model + line.price_id for line in made.lines)]
    sheet = _Sheet(page, "".join(names))
    _head(sheet, made)
    _lines(sheet, made)
    _sums(sheet, made)
    try:
        path.write_bytes(bytes(page.output()))
    except OSError as error:
        raise ConfigInvalid(
            f"{str(path)!r} cannot be written: {error.strerror}.", hint="Name another file."
        ) from error


def _date(unix_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, tz=datetime.UTC)


class _Sheet:
    """A page, and the font that can show what is on it.

    Args:
        page: fpdf2's.
        names: whatever is not our own words.

    Attributes:
        lacks: whether the font lacks some of their characters.
    """

    def __init__(self, page: Any, names: str) -> None:
        self.page, self._family, self.lacks = page, _CORE, False
        self._known: Container[int] = _LATIN_1
        if spelled(names, self._known) == names:
            return
        self._family = _OWN
        for style, name in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
            with as_file(files("tokenworks.cli") / "fonts" / name) as path:
                page.add_font(_OWN, style, path)
        self._known = page.fonts[_OWN.lower()].cmap
        self.lacks = spelled(names, self._known) != names

    def font(self, style: str, size: float) -> None:
        """Set the font for what follows; the own one has no italics."""
        style = style if self._family == _CORE else style.replace("I", "")
        self.page.set_font(self._family, style, size)

    def text(self, text: str) -> str:
        """A name as the font can show it."""
        return spelled(text, self._known)


def spelled(text: str, known: Container[int]) -> str:
    """A text in which characters that are not known stand by their numbers.

    >>> spelled("Köln 日", range(0x20, 0x100))
    'Köln [U+65E5]'
    """
    return "".join(
        each if each.isprintable() and ord(each) in known else f"[U+{ord(each):04X}]"
        for each in text
    )


def _grouped(text: str) -> str:
    """A decimal with its thousands apart.

    >>> _grouped("-1234.5"), _grouped("-0.25"), _grouped("7")
    ('-1,234.5', '-0.25', '7')
    """
    whole, point, decimals = text.removeprefix("-").partition(".")
    return f"{'-' if text.startswith('-') else ''}{int(whole):,}{point}{decimals}"


def _head(sheet: _Sheet, made: Invoice) -> None:
    page = sheet.page
    sheet.font("B", 20)
    page.cell(0, 10, "Invoice, draft" if made.draft else "Invoice", new_x="LMARGIN", new_y="NEXT")
    sheet.font("", 10)
    last = _date(made.until_unix_ns - 1).date()
    for name, text in (
        ("Number", made.number),
        ("Tenant", made.tenant),
        ("Period", f"{_date(made.since_unix_ns).date()} to {last}, UTC"),
        ("Answers", f"{made.answers:,}"),
    ):
        page.cell(26, 5.5, name)
        page.multi_cell(0, 5.5, sheet.text(text), align="L", new_x="LMARGIN", new_y="NEXT")
    page.ln(6)


def _lines(sheet: _Sheet, made: Invoice) -> None:
    page = sheet.page
    rows = [_cells(sheet, line) for line in made.lines]
    size = _number_size(sheet, rows)
    plain = (_SIZE_MAX,) * len(_HEADS)
    _row(sheet, _HEADS, "B", plain, border="B")
    before = None
    for line, cells in zip(made.lines, rows, strict=True):
        if page.will_page_break(12):
            page.add_page()
            _row(sheet, _HEADS, "B", plain, border="B")
        if line.price_id != before:
            before = line.price_id
            sheet.font("I", 7.5)
            page.cell(0, 6, sheet.text(f"Price book {before}"), new_x="LMARGIN", new_y="NEXT")
        texts = (_size(sheet, *pair) for pair in zip(cells[:_LEFT], _WIDTHS, strict=False))
        _row(sheet, cells, "", (*texts, *(size,) * (len(cells) - _LEFT)))


def _cells(sheet: _Sheet, line: Line) -> tuple[str, ...]:
    name = line.token_class.removesuffix("_tokens").replace("_", " ")
    return (
        sheet.text(line.model),
        line.tier.value,
        f"{name}, batch" if line.batch else name,
        f"{line.tokens:,}",
        _grouped(decimal_text(line.list_udollars_per_mtok, 6, 2)),
        decimal_text(line.rate_ppm, 4),
        _grouped(decimal_text(line.amount_attodollars, 18, 2)),
    )


def _size(sheet: _Sheet, text: str, width: float) -> float:
    """The size at which a text fits into a column, if any does."""
    sheet.font("", _SIZE_MAX)
    needed: float = sheet.page.get_string_width(text)
    return max(_SIZE_MIN, min(_SIZE_MAX, _SIZE_MAX * (width - 2) / max(needed, 1)))


def _number_size(sheet: _Sheet, rows: list[tuple[str, ...]]) -> float:
    """The size at which every number fits: all are alike."""
    columns = range(_LEFT, len(_WIDTHS))
    return min(
        (_size(sheet, row[i], _WIDTHS[i]) for row in rows for i in columns), default=_SIZE_MAX
    )


def _row(
    sheet: _Sheet,
    cells: tuple[str, ...],
    style: str,
    sizes: tuple[float, ...],
    border: str | int = 0,
) -> None:
    page = sheet.page
    for i, (text, width, size) in enumerate(zip(cells, _WIDTHS, sizes, strict=True)):
        sheet.font(style, size)
        shown = text
        while page.get_string_width(shown) > width - 1.5 and i < _LEFT:
            shown = shown[:-3] + ".."
        page.cell(width, 5.5, shown, border=border, align="L" if i < _LEFT else "R")
    page.ln(5.5)


def _sums(sheet: _Sheet, made: Invoice) -> None:
    page = sheet.page
    page.ln(3)
    for name, text in (
        (
            "Rounding of each answer to a nano-dollar",
            decimal_text(made.rounding_attodollars, 18, 2),
        ),
        ("Credits for broken promises", dollars_text(made.credits_nanodollars)),
        ("Total", dollars_text(made.total_nanodollars)),
    ):
        sheet.font("", 9)
        page.cell(130, 5.5, name, align="R")
        page.cell(60, 5.5, _grouped(text), align="R", new_x="LMARGIN", new_y="NEXT")
    sheet.font("B", 12)
    page.cell(130, 9, "Due, in US dollars", align="R")
    due = decimal_text(made.total_cents, 2, 2)
    page.cell(60, 9, _grouped(due), align="R", border="T", new_x="LMARGIN", new_y="NEXT")
    page.ln(6)
    sheet.font("", 7)
    page.cell(0, 4, f"Content sha256 {made.content_hash}", new_x="LMARGIN", new_y="NEXT")
    if sheet.lacks:
        note = "[U+...] is the Unicode number of a character that this file's font does not have."
        page.cell(0, 4, note, new_x="LMARGIN", new_y="NEXT")

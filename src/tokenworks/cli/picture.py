"""The report as a picture; needs the extra ``tokenworks[pictures]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR


def draw_report(rows: list[dict[str, Any]], by: str, path: Path) -> None:
    """Draw revenue, ad income and cost per group, and output tokens beside them.

    Readable in black and white: the bars differ in hatching.

    Raises:
        ConfigInvalid: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigInvalid(
            "Pictures need matplotlib.", hint="pip install 'tokenworks[pictures]'"
        ) from error
    rows = [row for row in rows if row[by] != "total"]
    names = [str(row[by]) for row in rows]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    money, tokens = figure.subplots(1, 2, width_ratios=(2, 1))
    bars = (
        ("revenue", "revenue_nanodollars", "#2f6f9f", ""),
        ("ad income", "ads_nanodollars", "#8fbf8f", ".."),
        ("cost", "cost_nanodollars", "#d9d9d9", "//"),
    )
    for i, (label, field, color, hatch) in enumerate(bars):
        values = [row[field] / NANODOLLARS_PER_DOLLAR for row in rows]
        places = [x + 0.27 * (i - 1) for x in range(len(rows))]
        money.bar(
            places, values, 0.25, label=label, color=color, hatch=hatch, edgecolor="black", lw=0.6
        )
    money.set_xticks(range(len(rows)), names)
    money.set_ylabel("US dollars")
    money.set_title(f"Money by {by}")
    money.legend(frameon=False)
    made = [row for row in rows if row[by] != "(idle)"]
    tokens.barh(
        [str(row[by]) for row in made],
        [row["output"] for row in made],
        color="#b0b0b0",
        edgecolor="black",
        lw=0.6,
    )
    tokens.set_title("Output tokens")
    tokens.ticklabel_format(axis="x", style="plain")
    for axes in (money, tokens):
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(
            f"The picture {str(path)!r} cannot be written: {error}.", hint="End it in .png or .svg."
        ) from error

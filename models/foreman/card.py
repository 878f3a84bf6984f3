"""Write the model card's table of scores from scores.json, and foreman.json for the package."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
BEGIN: Final = "<!-- scores: begin -->\n"
END: Final = "<!-- scores: end -->\n"


def table(scores: dict[str, dict[str, Any]]) -> str:
    """The scores as a Markdown table."""
    lines = ["| task | samples | valid | right tool | exact |", "|---|---:|---:|---:|---:|"]
    for name, row in scores.items():
        call = "call" in name
        shares = [f"{row[field]:.1%}" for field in ("valid", "right_tool", "exact")]
        if not call:
            shares[:2] = ["", ""]
        lines.append(f"| {name} | {row['samples']:,} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def with_table(card: str, scores: dict[str, dict[str, Any]], sha256: str) -> str:
    """The card with this table and this file's hash."""
    head, _, rest = card.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\nsha256 `{sha256}`\n\n{table(scores)}\n{END}{tail}"


def main() -> None:
    """Update the card in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    scores = json.loads((HERE / "scores.json").read_text())
    path = HERE / "MODEL_CARD.md"
    digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
    path.write_text(with_table(path.read_text(), scores, digest))


if __name__ == "__main__":
    main()

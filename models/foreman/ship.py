"""Put a trained file into the package: weights, hash, scores, model card, all in one step."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Final

import evaluate

HERE: Final = Path(__file__).parent
DATA: Final = HERE.parents[1] / "src" / "tokenworks" / "catalogue" / "data"
CONTEXT_TOKENS: Final = 2048
BEGIN: Final = "<!-- scores: begin -->\n"
END: Final = "<!-- scores: end -->\n"


def table(scores: dict[str, dict[str, Any]]) -> str:
    """The scores as a Markdown table."""
    lines = ["| task | samples | valid | right tool | exact |", "|---|---:|---:|---:|---:|"]
    for name, row in scores.items():
        shares = [f"{row[field]:.1%}" for field in ("valid", "right_tool", "exact")]
        if "call" not in name:
            shares[:2] = ["", ""]
        lines.append(f"| {name} | {row['samples']:,} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def with_table(card: str, scores: dict[str, dict[str, Any]], sha256: str) -> str:
    """The card with this table and this file's hash."""
    head, _, rest = card.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\nsha256 `{sha256}`\n\n{table(scores)}\n{END}{tail}"


def main() -> None:
    """Ship one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    shipped = DATA / "foreman-q8_0.gguf"
    if args.model.resolve() != shipped.resolve():
        shutil.copyfile(args.model, shipped)
    digest = hashlib.sha256(shipped.read_bytes()).hexdigest()
    facts_path = DATA / "foreman.json"
    facts = json.loads(facts_path.read_text())
    # The curve stays: it is the speed of the shape, which `tokenworks tiers measure` measures.
    facts |= {"sha256": digest, "context_tokens": CONTEXT_TOKENS}
    facts_path.write_text(json.dumps(facts) + "\n")
    scores = evaluate.run(shipped)
    (HERE / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    card = HERE / "MODEL_CARD.md"
    card.write_text(with_table(card.read_text(), scores, digest))


if __name__ == "__main__":
    main()

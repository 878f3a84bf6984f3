"""The fenced blocks of a Markdown page, so that tests can check or run them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Final

FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`]*)$")
SHELLS: Final = frozenset({"bash", "console", "sh", "shell"})


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the first word after the fence, lower case; empty if there is none.
        text: what is inside, without the fence's own indent, with a newline at the end.
        line: the line of its first inner line, from 1.
        words: what else stands after the fence, such as ``runnable``.
    """

    language: str
    text: str
    line: int
    words: tuple[str, ...] = ()


def blocks(path: Path) -> list[Block]:
    """Every fenced block of a page, in its order.

    Raises:
        ValueError: a fence is not closed.
    """
    found: list[Block] = []
    opened: tuple[str, str, list[str], int] | None = None
    inside: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if opened is None:
            if match:
                words = match["info"].lower().split()
                opened, inside = (match["indent"], match["fence"], words, number + 1), []
            continue
        indent, fence, words, start = opened
        if match and not match["info"].strip() and len(match["fence"]) >= len(fence):
            text = "".join(f"{row.removeprefix(indent)}\n" for row in inside)
            found.append(Block(words[0] if words else "", text, start, tuple(words[1:])))
            opened = None
        else:
            inside.append(line)
    if opened is not None:
        raise ValueError(f"{path.name}:{opened[3] - 1}: this fence is not closed")
    return found


def commands(block: Block) -> list[str]:
    """The command lines of a shell block: prompts and comments removed, continued lines joined.

    In a ``console`` block only lines after a ``$`` are commands; the rest is their output.
    """
    assert block.language in SHELLS, block
    found: list[str] = []
    going_on = False
    for line in block.text.splitlines():
        stripped = line.strip()
        if going_on:
            found[-1] += f"\n{line}"
        elif block.language == "console":
            if not stripped.startswith("$ "):
                continue
            found.append(stripped.removeprefix("$ "))
        elif not stripped or stripped.startswith("#"):
            continue
        else:
            found.append(stripped)
        going_on = found[-1].endswith("\\") or _quote_open(found[-1])
    return found


def _quote_open(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def program(command: str) -> str:
    """The program that a command line starts, after any ``NAME=value``.

    >>> program("KEY=abc curl -s localhost")
    'curl'
    """
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    return next((word for word in words if not re.match(r"[A-Za-z_]\w*=", word)), "")

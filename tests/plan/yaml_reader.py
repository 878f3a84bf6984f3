"""Reads the YAML that ``yaml_text`` writes, so that tests see what a reader sees.

It knows block mappings, block sequences, ``|`` and scalars: JSON's, or plain words.
"""

from __future__ import annotations

import json
from typing import Any


def read_yaml(text: str) -> list[Any]:
    """The documents of a file."""
    kept = [line for line in text.split("\n") if not line.startswith("#")]
    documents = "\n".join(kept).split("\n---\n")
    return [_Reader(document.split("\n")).value(0) for document in documents]


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.at = 0

    def value(self, indent: int) -> Any:
        line = self.lines[self.at]
        assert _indent(line) == indent, line
        return self.sequence(indent) if _is_item(line) else self.mapping(indent)

    def mapping(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.here(indent) and not _is_item(self.lines[self.at]):
            key, rest = _key(self.lines[self.at][indent:])
            assert key not in found, key
            self.at += 1
            found[key] = self.entry(rest, indent)
        return found

    def sequence(self, indent: int) -> list[Any]:
        found = []
        while self.here(indent) and _is_item(self.lines[self.at]):
            rest = self.lines[self.at][indent + 2 :]
            if rest and _starts_mapping(rest):
                self.lines[self.at] = " " * (indent + 2) + rest
                found.append(self.mapping(indent + 2))
            else:
                self.at += 1
                found.append(self.entry(f" {rest}" if rest else "", indent, deeper=True))
        return found

    def entry(self, rest: str, indent: int, *, deeper: bool = False) -> Any:
        if rest == " |":
            return self.block(indent + 2)
        if rest:
            return _scalar(rest.removeprefix(" "))
        following = self.lines[self.at]
        below = indent if _is_item(following) and not deeper else indent + 2
        return self.value(_indent(following) if deeper else below)

    def block(self, indent: int) -> str:
        found = []
        while self.at < len(self.lines) and (
            _indent(self.lines[self.at]) >= indent or not self.lines[self.at]
        ):
            found.append(self.lines[self.at][indent:])
            self.at += 1
        while not found[-1]:
            found.pop()
            self.at -= 1
        return "\n".join(found) + "\n"

    def here(self, indent: int) -> bool:
        return (
            self.at < len(self.lines)
            and bool(self.lines[self.at])
            and (_indent(self.lines[self.at]) == indent)
        )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _is_item(line: str) -> bool:
    return line.lstrip(" ").startswith("- ") or line.strip(" ") == "-"


def _starts_mapping(text: str) -> bool:
    try:
        return bool(_key(text))
    except ValueError:
        return False


def _key(text: str) -> tuple[str, str]:
    if text.startswith('"'):
        key, end = json.JSONDecoder().raw_decode(text)
    else:
        end = text.index(":")
        key = text[:end]
    if text[end : end + 1] != ":" or text[end + 1 : end + 2] not in {"", " "}:
        raise ValueError(text)
    return key, text[end + 1 :]


def _scalar(text: str) -> Any:
    plain = (text[0].isalpha() or text[0] == "/") and text not in _WORDS
    return text if plain else json.loads(text)


_WORDS = {"true", "false", "null", "NaN", "Infinity"}

"""Payers and kinds by number: the tables of sums hold the numbers, and two tables the names."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tokenworks.live.database import Database

_ENCODER: Final = msgspec.json.Encoder()


class NumberedNames:
    """Payers or kinds by the number that stands for them in the tables of sums."""

    def __init__(self, table: str, decoder: msgspec.json.Decoder[Any]) -> None:
        self._table, self._decoder = table, decoder
        self._numbers: dict[Any, int] = {}
        self._names: dict[int, Any] = {}

    def write(self, database: Database, name: Any, new: dict[Any, int]) -> int:
        """The number of a name, which it gets inside a transaction if it has none."""
        number = self._numbers.get(name) or new.get(name)
        if number is None:
            text = _ENCODER.encode(name).decode()
            database.change(
                f"INSERT INTO {self._table} (name) VALUES (?) ON CONFLICT DO NOTHING", (text,)
            )
            rows = database.query(f"SELECT id FROM {self._table} WHERE name = ?", (text,))
            number = new[name] = int(rows[0][0])
        return number

    def keep(self, new: dict[Any, int]) -> None:
        """Remember numbers that are stored by now."""
        self._numbers |= new

    def read(self, database: Database, number: int) -> Any:
        """The name that a number stands for."""
        name = self._names.get(number)
        if name is None:
            rows = database.query(f"SELECT id, name FROM {self._table}")
            for each, text in rows:
                if each not in self._names:
                    self._names[each] = self._decoder.decode(text)
            name = self._names[number]
        return name

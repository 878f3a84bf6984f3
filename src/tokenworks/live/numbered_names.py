"""Payers and kinds by number: the tables of sums hold the numbers, and others the names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tokenworks.live.database import Database

NAMES_MAX: Final = 200_000
"""Names whose numbers are remembered, to write them again without a look."""

_ENCODER: Final = msgspec.json.Encoder()


class NumberedNames:
    """Payers or kinds by the number that stands for them in the tables of sums."""

    def __init__(self, table: str, decoder: msgspec.json.Decoder[Any]) -> None:
        self._table, self._decoder = table, decoder
        self._insert = f"INSERT INTO {table} (name) VALUES (?) ON CONFLICT DO NOTHING"
        self._numbers: dict[Any, int] = {}
        self._names: dict[int, Any] = {}

    def write(self, database: Database, name: Any, new: dict[Any, int]) -> int:
        """The number of a name, which it gets inside a transaction if it has none."""
        number = self._numbers.get(name) or new.get(name)
        if number is None:
            text = _ENCODER.encode(name).decode()
            database.change(self._insert, (text, *self._more(name)))
            rows = database.query(f"SELECT id FROM {self._table} WHERE name = ?", (text,))
            number = new[name] = int(rows[0][0])
        return number

    def keep(self, new: dict[Any, int]) -> None:
        """Remember numbers that are stored by now."""
        if len(self._numbers) + len(new) > NAMES_MAX:
            self._numbers.clear()
        self._numbers |= new

    def _more(self, _name: Any) -> tuple[str, ...]:
        """What other columns hold of a name."""
        return ()

    def all(self, database: Database) -> Mapping[int, Any]:
        """All names by number, as of now."""
        rows = database.query(f"SELECT id, name FROM {self._table}")
        for each, text in rows:
            if each not in self._names:
                self._names[each] = self._decoder.decode(text)
        return self._names

    def read(self, database: Database, number: int) -> Any:
        """The name that a number stands for."""
        name = self._names.get(number)
        if name is None:
            name = self.all(database)[number]
        return name


class NumberedParts(NumberedNames):
    """Payers with their agents or runs. There may be millions: whoever reads joins their table."""

    def __init__(self, part: str, decoder: msgspec.json.Decoder[Any]) -> None:
        super().__init__(f"{part}_payers", decoder)
        self._part = part
        self._insert = (
            f"INSERT INTO {part}_payers (name, tenant, {part}) VALUES (?, ?, ?) "
            "ON CONFLICT DO NOTHING"
        )

    def _more(self, name: Any) -> tuple[str, ...]:
        return (name.tenant, getattr(name, self._part))

    def some(self, database: Database, known: Mapping[str, str]) -> dict[int, Any]:
        """The names by number whose columns have some values; they are not remembered."""
        where = " AND ".join(f"{column} = ?" for column in known)
        rows = database.query(
            f"SELECT id, name FROM {self._table}{' WHERE ' * bool(where)}{where}",
            tuple(known.values()),
        )
        return {number: self._decoder.decode(text) for number, text in rows}

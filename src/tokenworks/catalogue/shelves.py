"""A catalogue: records by kind and name, and the near misses of a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

from tokenworks.catalogue.records import (
    KINDS,
    Accelerator,
    Chart,
    Cpu,
    Engine,
    Model,
    Network,
    Projection,
    Record,
    Site,
    Storage,
    System,
    TierList,
)
from tokenworks.core.errors import ConfigInvalid

_RecordT = TypeVar("_RecordT", bound=Record)


class Catalogue:
    """Records that a name finds; a later record of the same kind and name replaces an earlier one.

    So a user's own file overrides what ships.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._records: dict[tuple[type[Record], str], Record] = {}
        for record in records:
            self._records[type(record), record.name] = record
        self._aliases = {
            (kind, alias): record
            for (kind, _), record in self._records.items()
            for alias in record.aliases
        }
        for system in self.all_of(System):
            for kind, name in (
                (Accelerator, system.accelerator),
                (Accelerator, system.lpu),
                (Cpu, system.cpu),
            ):
                if name:
                    self._one(kind, name, f"system {system.name!r} is made of it")

    def accelerator(self, name: str) -> Accelerator:
        """An accelerator by name or alias; like the others it raises ConfigInvalid."""
        return self._one(Accelerator, name)

    def system(self, name: str) -> System:
        """A system by name or alias."""
        return self._one(System, name)

    def cpu(self, name: str) -> Cpu:
        """A CPU by name or alias."""
        return self._one(Cpu, name)

    def model(self, name: str) -> Model:
        """A model by name or alias, as in ``deepseek-ai/DeepSeek-R1``."""
        return self._one(Model, name)

    def engine(self, name: str) -> Engine:
        """An engine by name or alias."""
        return self._one(Engine, name)

    def storage(self, name: str) -> Storage:
        """A storage tier by name or alias."""
        return self._one(Storage, name)

    def network(self, name: str) -> Network:
        """A network part by name or alias."""
        return self._one(Network, name)

    def site(self, name: str) -> Site:
        """A site by name or alias."""
        return self._one(Site, name)

    def projection(self, name: str) -> Projection:
        """A projection by name or alias."""
        return self._one(Projection, name)

    def with_records(self, *records: Record) -> Catalogue:
        """The same with some records added or replaced."""
        return Catalogue([*self._records.values(), *records])

    def tiers(self, name: str) -> TierList:
        """A list of tiers by name or alias."""
        return self._one(TierList, name)

    def chart(self, name: str) -> Chart:
        """A public chart by name or alias."""
        return self._one(Chart, name)

    def all_of(self, kind: type[_RecordT]) -> list[_RecordT]:
        """All records of a kind, by name."""
        return sorted(
            (r for r in self._records.values() if isinstance(r, kind)), key=lambda r: r.name
        )

    def everything(self) -> list[Record]:
        """All records, by kind in the order of ``KINDS`` and by name."""
        return [record for kind in KINDS.values() for record in self.all_of(kind)]

    def find(self, name: str) -> list[Record]:
        """Records of any kind by name or alias.

        Raises:
            ConfigInvalid: there is none.
        """
        found = [r for r in self.everything() if name == r.name or name in r.aliases]
        if not found:
            raise _missing("record", name, (r.name for r in self.everything()))
        return found

    def _one(self, kind: type[_RecordT], name: str, why: str = "") -> _RecordT:
        record = self._records.get((kind, name)) or self._aliases.get((kind, name))
        if record is None:
            (word,) = (word for word, each in KINDS.items() if each is kind)
            raise _missing(word, name, (r.name for r in self.all_of(kind)), why)
        assert isinstance(record, kind)
        return record


def _missing(word: str, name: str, known: Iterable[str], why: str = "") -> ConfigInvalid:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"Near it: {', '.join(near)}." if near else f"Known: {', '.join(names)}."
    reason = f"; {why}" if why else ""
    return ConfigInvalid(f"The catalogue has no {word} {name!r}{reason}.", hint=hint)

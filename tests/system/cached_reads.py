"""Compares what compiled readers read with what their source reads, while all of it changes.

``python -m tests.system.cached_reads FIRST LAST``: seeds. ``test_inline_caches`` compiles the
readers, in copies of each: a place that has met many classes looks no more.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.system import cached_kinds as kinds

PLACES = 50
"""Copies of each reader."""


def told(call: Callable[..., object], *args: object) -> object:
    """What a call gives or raises."""
    try:
        return repr(call(*args))
    except Exception as error:  # noqa: BLE001 - whatever it is, both raise it
        return type(error).__name__, str(error)


def things(dice: random.Random) -> list[Any]:
    """Some of each kind."""
    slotted = dice.choice([kinds.Slotted, kinds.Wider, kinds.Shy])()
    if dice.random() < 0.8:
        told(setattr, slotted, "width", dice.randrange(9))
    derived, loose = kinds.Derived(), kinds.Loose()
    derived.of = dice.randrange(9)
    if dice.random() < 0.3:
        loose.width = dice.randrange(9)
    if dice.random() < 0.3:
        loose.__dict__["speak"] = lambda whom=None: ("own", whom)
    return [
        kinds.Record(width=dice.randrange(9)),
        kinds.Frozen(width=dice.randrange(9)),
        slotted,
        derived,
        loose,
        kinds.Giving(),
        kinds.Pair(dice.randrange(9), 1),
        dice.choice(list(kinds.Colour)),
        kinds,
        dice.choice([kinds.Colour, kinds.Loose, kinds.Record]),
        None,
        dice.choice([7, 2.5, 3 + 4j]),
        types.SimpleNamespace(width=5, speak=lambda whom=None: whom),
    ]


class Comparison:
    """Compiled readers, and their source."""

    def __init__(self) -> None:
        self.readers: Any = importlib.import_module("tokenworks.readers")
        path = Path(self.readers.__file__)
        assert path.suffix == ".so", path
        spec = importlib.util.spec_from_file_location("plain", path.with_name("readers.py"))
        assert spec is not None
        assert spec.loader is not None
        self.plain: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.plain)

    def change(self, dice: random.Random, made: list[Any]) -> None:
        """Something else than before, where a cache may have kept what was there."""
        what, number = dice.randrange(9), dice.randrange(99)
        if what == 0:
            kind: Any = dice.choice([kinds.Record, kinds.Slotted, kinds.Wider, kinds.Loose])
            kind.speak = lambda _, whom=None: ("changed", number, whom)
        elif what == 1:
            wide = dice.choice([property(lambda _: "wide"), number])
            type.__setattr__(kinds.Wider, "width", wide)
        elif what == 2:
            told(delattr, kinds.Wider, "width")
        elif what == 3:
            self.readers.setting = self.plain.setting = number
        elif what == 4:
            kinds.setting = number
            kinds.say = lambda: number
        elif what == 5:
            for thing in made:
                if isinstance(thing, kinds.Slotted):
                    told(delattr, thing, "width")
        elif what == 6:
            type.__setattr__(kinds.Derived, "width", property(lambda _: number))
        elif what == 7:
            name = dice.choice(["__get__", "__set__"])
            if name in vars(kinds.Given):
                delattr(kinds.Given, name)
            else:
                setattr(kinds.Given, name, lambda *_: number)
        else:
            for thing in made:
                if isinstance(thing, kinds.Record):
                    thing.width = number

    def run(self, seed: int) -> None:
        """Read this and that, and change things now and then."""
        dice = random.Random(seed)
        made = things(dice)
        tables: list[dict[str, int]] = [{"a": 1}, {"a": 2, "b": 3}, {}]
        for step in range(400):
            if dice.random() < 0.05:
                self.change(dice, made)
            if dice.random() < 0.1:
                made = things(dice)
            table = dice.choice(tables)
            if dice.random() < 0.2:
                table[dice.choice("abc")] = dice.randrange(9)
            if table and dice.random() < 0.1:
                table.popitem()
            # A place must meet one kind again and again, and many.
            thing = dice.choice(made) if dice.random() < 0.5 else made[seed % 6]
            for call, args in (
                ("width", (thing,)),
                ("named", (thing, dice.choice(["width", "depth", "speak"]))),
                ("speak", (thing,)),
                ("speak_to", (thing, seed)),
                ("spoken", (thing,)),
                ("real", (dice.choice(made),)),
                ("looked_up", (table, "".join(dice.choice("abc")))),
                ("globals_now", ()),
            ):
                place = f"{call}_{seed % PLACES}"
                got = told(getattr(self.readers, place), *args)
                wanted = told(getattr(self.plain, place), *args)
                if "0x" not in repr(wanted):  # what it is, not where it lies
                    assert got == wanted, (seed, step, call, args, got, wanted)

    def keep_nothing(self) -> None:
        """No read keeps a reference to what was read, or to what it was read from.

        To be asked first: a place that ``run`` has used may keep something else.
        """
        readers, value, record, table = self.readers, object(), kinds.Record(), {}
        record.width = table["a"] = readers.setting = value
        before = sys.getrefcount(value)
        for _ in range(1_000):
            readers.width_0(record), readers.looked_up_0(table, "a"), readers.globals_now_0()
        assert sys.getrefcount(value) == before
        readers.setting = self.plain.setting
        kind = types.new_class("Passing", (kinds.Slotted,))
        thing = kind()
        before = sys.getrefcount(kind)
        for _ in range(1_000):
            readers.speak_0(thing)
        assert sys.getrefcount(kind) == before


if __name__ == "__main__":
    compared = Comparison()
    compared.keep_nothing()
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        compared.run(seed)
        compared.keep_nothing()

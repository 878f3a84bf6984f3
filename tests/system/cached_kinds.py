"""Things whose attributes, methods and globals ``cached_reads`` has read by compiled code."""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

setting: object = 0


def say() -> object:
    return "nothing"


class Record(msgspec.Struct):
    width: object = 1
    depth: object = 2

    def speak(self, whom: object = None) -> object:
        return "record", self.width, whom


class Frozen(msgspec.Struct, frozen=True):
    depth: object = 3
    width: object = 4

    def speak(self, whom: object = None) -> object:
        return "frozen", self.width, whom


class Slotted:
    __slots__ = ("depth", "width")
    depth: object
    width: object

    def speak(self, whom: object = None) -> object:
        return "slotted", whom


class Wider(Slotted):
    __slots__ = ()

    def speak(self, whom: object = None) -> object:
        return "wider", whom


class Loose:
    width: object = "of the class"

    def speak(self, whom: object = None) -> object:
        return "loose", whom


class Shy(Slotted):
    __slots__ = ()

    def __getattr__(self, name: str) -> str:
        return "shy of " + name


class Derived:
    __slots__ = ("of",)
    of: object

    @property
    def width(self) -> object:
        return "derived", self.of

    def speak(self, whom: object = None) -> object:
        return "derived", whom


class Given:
    """Comes before what an instance has, as long as this class has both methods."""

    def __get__(self, thing: object, kind: type) -> object:
        return "given"

    def __set__(self, thing: object, value: object) -> None:
        raise AttributeError


class Giving:
    width: object = Given()

    def __init__(self) -> None:
        self.__dict__["width"] = "own"

    def speak(self, whom: object = None) -> object:
        return "giving", whom


class Pair(NamedTuple):
    width: int
    depth: int

    def speak(self, whom: object = None) -> object:
        return "pair", whom


class Colour(enum.Enum):
    width = 1
    depth = 2

    def speak(self, whom: object = None) -> object:
        return "colour", whom

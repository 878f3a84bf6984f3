"""Text in TOML to a record, or one error that says what it was and where to look."""

from __future__ import annotations

import tomllib
from typing import TypeVar

import msgspec

from tokenworks.core.errors import ConfigInvalid

_RecordT = TypeVar("_RecordT", bound=msgspec.Struct)


def read_toml(text: str, kind: type[_RecordT], *, what: str, hint: str) -> _RecordT:
    """Parse TOML into a record.

    Args:
        text: the file.
        kind: what it holds.
        what: the file for people, with a capital.
        hint: what to compare it with.

    Raises:
        ConfigInvalid: not TOML, or not a record of that kind.
    """
    try:
        return msgspec.convert(tomllib.loads(text), kind)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigInvalid(f"{what} cannot be read: {error}.", hint=hint) from error

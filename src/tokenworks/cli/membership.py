"""What the supervisor of several processes and these tell each other."""

from __future__ import annotations

import msgspec

from tokenworks.catalogue.factory_config import FactoryConfig


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Which of several processes one is.

    Attributes:
        index: 0 owns the dispatcher and the workers.
        count: how many there are.
        path: the owner's Unix socket.
        descriptor: of the same, listening, for the owner.
        owner: its name in the ledger.
        dead: names that it had there before it died; none at first.
    """

    index: int
    count: int
    path: str
    descriptor: int
    owner: str
    dead: tuple[str, ...] = ()


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What all of them start with, and start again with, whatever the files say by then.

    Attributes:
        home: the factory's folder.
        settings: as they were read.
        books: the texts of its price books.
        host, port: where to listen.
        policy, policy_file: see ``policy_file.chosen``.
        quiet: say only errors.
    """

    home: str
    settings: FactoryConfig
    books: tuple[str, ...]
    host: str
    port: int
    policy: str | None
    policy_file: str | None
    quiet: bool


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It serves, and has a worker.

    Attributes:
        models: that the factory has.
    """

    models: list[str]


class Hung(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The owner cannot go on beside some of the others: they are to be killed.

    Attributes:
        indices: of these.
    """

    indices: list[int]


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Its event loop turns."""


Said = Ready | Hung | Alive
"""What a process tells its supervisor, each as a line of JSON on its standard output."""

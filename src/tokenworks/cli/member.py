"""One of the processes of a factory that serves from several; ``supervisor`` starts it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import msgspec
import uvloop

from tokenworks.catalogue.price_book import PriceBooks, parse_price_book
from tokenworks.cli.membership import Alive, Hung, Member, Ready, Said, Shared
from tokenworks.cli.policy_file import Chosen, chosen
from tokenworks.cli.wiring import Factory, rare_collections
from tokenworks.core.errors import TokenworksError
from tokenworks.live.home import Home

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
BEAT_S: Final = 1.0
"""Between two times that a process says that it is alive."""


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM, or until nobody holds the other end of standard input any more.

    ``Shared``, which may hold a ledger's password, is the first line of standard input as JSON: it
    is never in a file or on a command line.

    Args:
        arguments: ``Member`` as JSON.

    Returns:
        The exit status.
    """
    member = msgspec.json.decode(arguments[0], type=Member)
    shared = msgspec.json.decode(sys.stdin.buffer.readline(), type=Shared)
    # What a policy of the operator's prints is not for the supervisor.
    said = os.dup(_STDOUT)
    os.set_blocking(said, False)  # a supervisor that hangs makes nobody hang
    os.dup2(_STDERR, _STDOUT)
    logging.basicConfig(
        level=logging.ERROR if shared.quiet else logging.WARNING,
        format=f"%(levelname)s process {member.index}: %(message)s",
    )
    logging.getLogger("tokenworks.ledger").setLevel(
        logging.ERROR if shared.quiet or member.index else logging.INFO
    )
    try:
        uvloop.run(_serve(shared, member, lambda what: _say(said, what)))
    except TokenworksError as error:
        click.echo(f"{error.code}: {error}", err=True)
        return 1
    return 0


async def _serve(shared: Shared, member: Member, say: Callable[[Said], None]) -> None:
    home = Home(Path(shared.home), shared.settings)
    factory = Factory(
        home,
        shared.settings,
        PriceBooks([parse_price_book(text) for text in shared.books]),
        host=shared.host,
        port=shared.port,
        chosen=deciding(shared, member),
        member=member,
        on_hung=lambda indices: say(Hung(indices=indices)),
    )
    loop = asyncio.get_running_loop()

    def orphaned() -> None:
        if not os.read(_STDIN, 1):
            loop.remove_reader(_STDIN)
            factory.server.stop()
            # No other factory starts from this folder before the last of us has ended.
            shutil.rmtree(Path(member.path).parent, ignore_errors=True)
            home.forget_url()

    def beat() -> None:
        say(Alive())
        loop.call_later(BEAT_S, beat)

    loop.add_reader(_STDIN, orphaned)
    beat()
    with rare_collections():
        await factory.run(lambda up: say(Ready(models=list(up.driver.models()))))


def deciding(shared: Shared, member: Member) -> Chosen:
    """Who decides in this process: nobody but in the owner, which reads a policy's file anew.

    Raises:
        ConfigInvalid: see ``policy_file.chosen``.
    """
    if member.index:
        return Chosen(settings=None, own={})
    return chosen(shared.policy, shared.policy_file)


def _say(descriptor: int, what: Said) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more, or nobody reads
        os.write(descriptor, msgspec.json.encode(what) + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``tokenworks plan``: what to build, what it earns, and how sure that is."""

from __future__ import annotations

import click

from tokenworks.cli.listing import Listing
from tokenworks.cli.plan_factory import chart, factory
from tokenworks.cli.plan_frontier import frontier
from tokenworks.cli.plan_manifests import manifests
from tokenworks.cli.plan_mix import mix


@click.group(cls=Listing)
def command() -> None:
    """What to build, what it earns, and how sure that is.

    Answers come from the catalogue (`tokenworks catalogue list`) and list what they assume.
    """


command.add_command(frontier)
command.add_command(manifests)
command.add_command(factory)
command.add_command(chart)
command.add_command(mix)

"""``tokenworks plan``: what to build, and how to start it."""

from __future__ import annotations

import click

from tokenworks.cli.plan_manifests import manifests


@click.group()
def command() -> None:
    """Turn plans into what engines and orchestrators start."""


command.add_command(manifests)

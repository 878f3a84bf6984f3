"""A group of commands that are listed with a sentence each."""

from __future__ import annotations

from typing import Final

import click

SENTENCE_CHARS_MAX: Final = 400


class Listing(click.Group):
    """Says what each command does in one whole sentence, in as many lines as that takes."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See ``click.Group``, which cuts a sentence off at the end of its line."""
        names = self.list_commands(ctx)
        found = [(name, self.get_command(ctx, name)) for name in names]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, each.get_short_help_str(SENTENCE_CHARS_MAX))
                    for name, each in found
                    if each is not None
                ]
            )

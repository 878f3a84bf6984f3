"""``tokenworks``: the command line, grouped by what a token factory does."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Final

import click
import msgspec

from tokenworks import __version__
from tokenworks.core.errors import TokenworksError

GROUPS: Final = (
    (
        "Create tokens",
        {
            "up": ("up", "Start the factory: engine, ledger and gateway on one port."),
            "top": ("top", "Watch a running factory: tiers, promises, workers, money."),
            "doctor": ("doctor", "Say what is wrong with this machine or its settings."),
        },
    ),
    (
        "Deliver tokens",
        {
            "key": ("key", "Create, list and revoke keys with quotas."),
            "quota": ("quota", "Limits on tenants, teams, engineers, keys and runs, all hard."),
            "batch": ("batch", "Tenants' batches: list, show and cancel them."),
            "prices": ("prices", "Check price books, and show what a tenant pays at some time."),
            "tiers": ("tiers", "Show the tiers' promises and prices; measure this machine."),
            "login": ("login", "Sign in as a person, for the admin API."),
            "audit": ("audit", "Who changed which key, limit or price, when and from where."),
            "ledger": ("ledger", "Prove the books, copy them, look an answer up."),
            "report": ("report", "Tokens, revenue, cost and margin from the ledger."),
            "invoice": ("invoice", "What a tenant owes for a month, line by line."),
            "import": ("import_", "Keys, budgets and prices from another gateway: LiteLLM."),
            "export": ("export", "A month's charges for other programs, as FinOps FOCUS."),
        },
    ),
    ("Apply tokens", {"chat": ("chat", "Talk to the factory, and see what it cost.")}),
    (
        "Plan tokens",
        {
            "catalogue": ("catalogue", "Show hardware, models and prices, and their sources."),
            "plan": ("plan", "What to build, what it earns, and how sure that is."),
            "perf": ("perf", "Predict speed, and compare with measured rows."),
            "twin": ("twin", "Run a modelled factory; compare policies by what they earn."),
            "journal": ("journal", "Replay what the dispatcher decided."),
        },
    ),
)
"""Group, and its commands: name, module under ``tokenworks.cli``, help."""


class _Grouped(click.Group):
    """Shows commands by group, and imports one only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [name for _, commands in GROUPS for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        for _, commands in GROUPS:
            if cmd_name in commands:
                module = importlib.import_module(f"tokenworks.cli.{commands[cmd_name][0]}")
                command = module.command
                assert isinstance(command, click.Command)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, known)
            meant = " or ".join(map(repr, near))
            hint = f"Did you mean {meant}?" if near else "See the list: --help."
            ctx.fail(f"No such command {name!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in GROUPS:
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])


@click.command(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="tokenworks")
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="TOKENWORKS_HOME",
    help="The factory's folder.  [default: ~/.tokenworks]",
)
@click.pass_context
def cli(ctx: click.Context, home: Path | None) -> None:
    """Run a token factory: create tokens, deliver them by tier, apply them.

    Begin with `tokenworks up`, then `tokenworks chat` in a second terminal, then
    `tokenworks report`.
    """
    from tokenworks.live.home import Home

    ctx.obj = Home(home)


def main() -> None:
    """Run the command line; errors of ours become one clear message and exit code 1."""
    try:
        cli(standalone_mode=True)
    except TokenworksError as error:
        if "--json" in sys.argv:
            said = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
            click.echo(msgspec.json.encode(said).decode())
        click.secho(f"{error.code}: ", fg="red", nl=False, err=True)
        click.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

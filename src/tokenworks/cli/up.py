"""``tokenworks up``: start the factory, with real workers or with modelled ones."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import Any, Final, Literal

import click
import uvloop

from tokenworks.catalogue.factory_config import PROCESSES_MAX, DispatchConfig, FactoryConfig
from tokenworks.catalogue.price_book import PriceBooks
from tokenworks.cli.membership import Shared
from tokenworks.cli.policy_file import chosen, policy_file_option, policy_option
from tokenworks.cli.twin_factory import (
    SPEEDUP_MAX,
    SPEEDUP_MIN,
    TWIN_HOME,
    Modelled,
    claim,
    modelled,
    refuse_twins_home,
)
from tokenworks.cli.twin_systems import asked_systems, system_options
from tokenworks.cli.twin_workload import WORKERS_DEFAULT
from tokenworks.core.errors import InvalidRequest
from tokenworks.live.home import FOREMAN, Home
from tokenworks.twin.scenarios import NAMES
from tokenworks.twin.serving import OUTPUT_TOKENS_DEFAULT


@click.command()
@click.option("--host", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes any.  [default: 8000]")
@click.option(
    "--processes",
    type=click.IntRange(1, PROCESSES_MAX),
    help="So many serve on the port, one core each, with one dispatcher.  [default: 1]",
)
@policy_option
@policy_file_option
@click.option("--twin", is_flag=True, help="Serve with modelled workers: no engine, no weights.")
@click.option(
    "--scenario",
    help=f"The modelled fleet: {', '.join(NAMES)}, or a TOML file.  [default: {NAMES[0]}]",
)
@click.option(
    "--engine", help="Or workers of one measured engine, such as h200-70b-fp8-trtllm-tp4."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help=f"So many.  [default: the scenario's; {WORKERS_DEFAULT} of an --engine]",
)
@system_options
@click.option(
    "--speedup",
    type=click.FloatRange(SPEEDUP_MIN, SPEEDUP_MAX),
    help="The modelled factory lives so many times as fast as the clock.  [default: 1]",
)
@click.option(
    "--output-tokens",
    type=click.IntRange(1),
    help=f"Mean length of modelled answers.  [default: {OUTPUT_TOKENS_DEFAULT}]",
)
@click.option("--json", "as_json", is_flag=True, help="Say that it is ready as one JSON line.")
@click.option("--quiet", is_flag=True, help="Say only errors.")
@click.pass_obj
def command(
    home: Home,
    /,
    *,
    host: str | None,
    port: int | None,
    processes: int | None,
    policy: str | None,
    policy_file: str | None,
    twin: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Start the factory: engine, ledger and gateway on one port.

    Runs until Ctrl-C, then finishes what is open; a second Ctrl-C cuts that off. Settings come
    from `factory.toml` and `price_book.toml` in the factory's folder where they exist; more price
    books lie in `prices/`, each with the day it holds from.

    With --twin all is real but the workers: the gateway, keys, quotas, the dispatcher and the
    ledger serve modelled engines, for demonstrations and load tests. Answers are filler text that
    comes when the model says so. Its folder is ~/.tokenworks-twin, so that modelled revenue stays
    out of real books.

    \b
    tokenworks up --twin --scenario mixed --policy economic
    tokenworks up --twin --engine h200-70b-fp8-trtllm-tp4 --workers 8 --speedup 10
    """  # noqa: D301 - the backslash tells click to leave these lines as they are
    logging.basicConfig(
        level=logging.ERROR if quiet else logging.WARNING, format="%(levelname)s %(message)s"
    )
    # The end of the ledger's chain, once an hour: `ledger verify --expect` asks for it.
    logging.getLogger("tokenworks.ledger").setLevel(logging.ERROR if quiet else logging.INFO)
    factory: Modelled | None = None
    if twin:
        factory, home = _modelled(given), _twins_home(home)
        books = claim(home, factory)
        settings = factory.settings(home)
    else:
        _refuse_twin_options(given)
        refuse_twins_home(home)
        settings, books = home.load_settings(), home.load_price_books()
    policy, policy_file = _deciding(home, settings.dispatch, policy, policy_file)
    start = _Start(
        home=home,
        settings=settings,
        books=books,
        host=host or settings.gateway.host,
        port=settings.gateway.port if port is None else port,
        policy=policy,
        policy_file=policy_file,
        processes=_count(processes or settings.gateway.processes, factory),
        modelled=factory,
        speaks="json" if as_json else "nothing" if quiet else "words",
        quiet=quiet,
    )
    uvloop.run(start.run())
    if start.speaks == "words":
        click.echo("The factory has stopped; every settled answer is in the ledger.", err=True)


class _Start:
    """One start of a factory, and what is said of it."""

    def __init__(
        self,
        *,
        home: Home,
        settings: FactoryConfig,
        books: PriceBooks,
        host: str,
        port: int,
        policy: str | None,
        policy_file: str | None,
        processes: int,
        modelled: Modelled | None,
        speaks: Literal["words", "json", "nothing"],
        quiet: bool,
    ) -> None:
        self.speaks, self._quiet = speaks, quiet
        self._home, self._settings, self._books = home, settings, books
        self._host, self._port = host, port
        self._policy, self._policy_file, self._processes = policy, policy_file, processes
        self._chosen, self._modelled = chosen(policy, policy_file), modelled

    async def run(self) -> None:
        """Until it is told to stop."""
        await (self._run_several() if self._processes > 1 else self._run_one())

    async def _run_several(self) -> None:
        from tokenworks.cli.supervisor import Supervisor

        supervisor = Supervisor(
            Shared(
                home=str(self._home.path.absolute()),
                settings=self._settings,
                books=tuple(book.text for book in self._books.all()),
                host=self._host,
                port=self._port,
                policy=self._policy,
                policy_file=self._policy_file,
                quiet=self._quiet,
            ),
            self._processes,
        )
        self._home.forget_url()
        if self.speaks == "words":
            click.echo(f"Starting the workers and {self._processes} processes ...", err=True)
        try:
            await supervisor.run(
                lambda port, models: self._ready((self._host, port), supervisor.secret, models)
            )
        finally:
            self._home.forget_url()

    async def _run_one(self) -> None:
        from tokenworks.cli.wiring import Factory, rare_collections

        factory = Factory(
            self._home,
            self._settings,
            self._books,
            host=self._host,
            port=self._port,
            chosen=self._chosen,
            modelled=self._modelled,
        )
        # From here on the folder is ours; the address of a factory that was killed is void.
        self._home.forget_url()
        if self.speaks == "words":
            click.echo("Starting the workers ...", err=True)
        try:
            with rare_collections():
                await factory.run(
                    lambda up: self._ready(up.server.address, up.secret, list(up.driver.models()))
                )
        finally:
            self._home.forget_url()

    def _ready(self, address: tuple[str, int], secret: str, models: list[str]) -> None:
        host, bound = address
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{bound}"
        self._home.write_private(self._home.url, url + "\n")
        if self.speaks == "json":
            facts = {"ready": True, "url": url, "key": secret, "models": models}
            if self._processes > 1:
                facts["processes"] = self._processes
            if self._modelled is not None:
                name = self._modelled.setting.scenario.name
                facts |= {"modelled": name, "speedup": self._modelled.speedup}
            click.echo(json.dumps(facts))
        elif self.speaks == "words":
            welcome = _welcome(url, secret, models[0] if models else "", self._home)
            click.echo(welcome if self._modelled is None else _warned(welcome, self._modelled))


def _modelled(given: dict[str, Any]) -> Modelled:
    return modelled(
        scenario=given["scenario"],
        engine=given["engine"],
        workers=given["workers"],
        hardware=asked_systems(given),
        speedup=1.0 if given["speedup"] is None else given["speedup"],
        output_tokens=given["output_tokens"] or OUTPUT_TOKENS_DEFAULT,
    )


def _deciding(
    home: Home, dispatch: DispatchConfig, policy: str | None, policy_file: str | None
) -> tuple[str | None, str | None]:
    """Who decides by the options, else by the settings."""
    if policy is None and policy_file is None:
        return dispatch.policy, _beside(home, dispatch.policy_file)
    return policy, policy_file


def _count(processes: int, factory: Modelled | None) -> int:
    if processes > 1 and factory is not None:
        raise InvalidRequest(
            f"Modelled workers live in one process, not in {processes}.",
            hint="Leave --processes out, or say --processes 1.",
        )
    return processes


_SPELT: Final = {"systems": "--system", "folders": "--catalogue"}
"""Options whose name is not that of what they give."""


def _refuse_twin_options(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value not in {None, ()}:
            option = _SPELT.get(name) or "--" + name.replace("_", "-")
            raise InvalidRequest(
                f"{option} is for modelled workers.", hint="Say --twin, too, or leave it out."
            )


def _twins_home(home: Home) -> Home:
    """The folder that was named, else one beside that of a real factory."""
    named = click.get_current_context().find_root().params.get("home")
    return Home(Path.home() / TWIN_HOME) if named is None else home


def _beside(home: Home, policy_file: str) -> str:
    """A policy file of the settings, relative to their folder."""
    path = policy_file.partition(":")[0]
    return str(home.path / policy_file) if path.endswith(".py") else policy_file


def _welcome(url: str, secret: str, model: str, home: Home) -> str:
    usual = home.path == Home().path
    program = "tokenworks" if usual else f"tokenworks --home {shlex.quote(str(home.path))}"
    chat = "chat" if model in {"", FOREMAN} else f"chat --model {shlex.quote(model)}"
    body = json.dumps(
        {
            "model": model,
            "stream": True,
            "messages": [{"role": "user", "content": "What can you do?"}],
        }
    )
    return f"""
The factory is running.

  URL    {url}/v1
  key    {secret}
  home   {home.path}

Try it:

  curl -sN {url}/v1/chat/completions -H "Authorization: Bearer {secret}" \\
    -H "Content-Type: application/json" -d '{body}'

Then, in another terminal: {program} {chat}, {program} report, {url}/metrics
Ctrl-C stops it.
"""


def _warned(welcome: str, factory: Modelled) -> str:
    """The welcome of a modelled factory, which says in front that it is one."""
    scenario = factory.setting.scenario
    fast = "" if factory.speedup == 1 else f", {factory.speedup:g} times as fast as the clock"
    return f"""
THIS IS A MODEL. No engine runs: answers are filler text, and revenue in its ledger is modelled.
{len(scenario.workers)} modelled workers of {scenario.name!r}{fast}.
{welcome}"""

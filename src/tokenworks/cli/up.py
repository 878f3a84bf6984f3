"""``tokenworks up``: start the factory."""

from __future__ import annotations

import json
import logging

import click
import uvloop

from tokenworks.live.home import Home


@click.command()
@click.option("--host", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes any.  [default: 8000]")
@click.option("--json", "as_json", is_flag=True, help="Say that it is ready as one JSON line.")
@click.option("--quiet", is_flag=True, help="Say only errors.")
@click.pass_obj
def command(home: Home, host: str | None, port: int | None, *, as_json: bool, quiet: bool) -> None:
    """Start the factory: engine, ledger and gateway on one port.

    Runs until Ctrl-C, then finishes what is open; a second Ctrl-C cuts that off. Settings come
    from `factory.toml` and `price_book.toml` in the factory's folder where they exist; more price
    books lie in `prices/`, each with the day it holds from.
    """
    from tokenworks.cli.wiring import Factory

    logging.basicConfig(
        level=logging.ERROR if quiet else logging.WARNING, format="%(levelname)s %(message)s"
    )
    # The end of the ledger's chain, once an hour: `ledger verify --expect` asks for it.
    logging.getLogger("tokenworks.ledger").setLevel(logging.ERROR if quiet else logging.INFO)
    settings, books = home.load_settings(), home.load_price_books()
    host = host or settings.gateway.host
    port = settings.gateway.port if port is None else port

    async def run() -> None:
        factory = Factory(home, settings, books, host=host, port=port)
        # From here on the folder is ours; the address of a factory that was killed is void.
        home.forget_url()
        if not (as_json or quiet):
            click.echo("Starting the workers ...", err=True)
        try:
            await factory.run(lambda ready: _say_ready(ready, as_json=as_json, quiet=quiet))
        finally:
            home.forget_url()

    def _say_ready(factory: Factory, *, as_json: bool, quiet: bool) -> None:
        address, bound = factory.server.address
        shown = f"[{address}]" if ":" in address else address
        url = f"http://{shown}:{bound}"
        home.write_private(home.url, url + "\n")
        models = list(factory.driver.models())
        if as_json:
            facts = {"ready": True, "url": url, "key": factory.secret, "models": models}
            click.echo(json.dumps(facts))
        elif not quiet:
            click.echo(_welcome(url, factory.secret, models[0] if models else "", home))

    uvloop.run(run())
    if not (as_json or quiet):
        click.echo("The factory has stopped; every settled answer is in the ledger.", err=True)


def _welcome(url: str, secret: str, model: str, home: Home) -> str:
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

Then, in another terminal: tokenworks chat, tokenworks report, {url}/metrics
Ctrl-C stops it.
"""

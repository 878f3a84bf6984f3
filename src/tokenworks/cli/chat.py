"""``tokenworks chat``: talk to the factory."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import click

from tokenworks.core import errors
from tokenworks.core.errors import ConfigInvalid, TokenworksError, WorkerFailed, WorkerUnavailable
from tokenworks.core.slo import Tier
from tokenworks.live.home import Home

TIMEOUT_S = 120
TURNS_MAX = 200


@click.command()
@click.argument("question", required=False)
@click.option(
    "--tier", type=click.Choice([tier.value for tier in Tier]), help="The tier to ask for."
)
@click.option("--model", default="foreman", show_default=True, help="The model.")
@click.option("--url", help="The factory.  [default: the one that runs here]")
@click.option("--key", "secret", envvar="TOKENWORKS_KEY", help="A key.  [default: the operator's]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Stop after so many tokens.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per answer.")
@click.pass_obj
def command(
    home: Home,
    question: str | None,
    tier: str | None,
    model: str,
    url: str | None,
    secret: str | None,
    max_tokens: int | None,
    *,
    as_json: bool,
) -> None:
    """Ask QUESTION and stream the answer; without one, hold a conversation (empty line ends it).

    Under each answer: tokens, speed, and the tier that was delivered and billed.
    """
    if url is None:
        url = home.read_url()
    if url is None:
        raise WorkerUnavailable(
            "No factory runs from this folder.", hint="Start one with `tokenworks up`."
        )
    secret = secret or home.read_key()
    if not secret:
        raise ConfigInvalid("There is no key.", hint="Give one with --key or TOKENWORKS_KEY.")
    messages: list[dict[str, str]] = []
    asked: dict[str, Any] = {"model": model, "messages": messages}
    if tier:
        asked["service_tier"] = tier
    if max_tokens:
        asked["max_tokens"] = max_tokens
    for text in [question] if question else _questions():
        messages.append({"role": "user", "content": text})
        answer = _ask(url, secret, asked, as_json=as_json)
        messages.append({"role": "assistant", "content": answer})


def _questions() -> Iterator[str]:
    for _ in range(TURNS_MAX):
        try:
            text = click.prompt("you", prompt_suffix="> ", default="", show_default=False, err=True)
        except click.Abort:
            return
        if not text.strip():
            return
        yield text


def _ask(url: str, secret: str, asked: dict[str, Any], *, as_json: bool) -> str:
    body = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    began = time.monotonic()
    first: float | None = None
    parts: list[str] = []
    usage: dict[str, Any] = {}
    delivered = ""
    for chunk in _chunks(url, secret, body):
        usage = chunk.get("usage") or usage
        delivered = chunk.get("service_tier") or delivered
        for choice in chunk.get("choices", []):
            text = choice["delta"].get("content") or ""
            if text:
                first = first or time.monotonic()
                parts.append(text)
                if not as_json:
                    click.echo(text, nl=False)
    ended = time.monotonic()
    answer = "".join(parts)
    output = usage.get("completion_tokens", 0)
    ttft_s = (first or ended) - began
    speed = (output - 1) / (ended - (first or ended)) if output > 1 and first else 0.0
    if as_json:
        facts = {"answer": answer, "service_tier": delivered, "usage": usage}
        click.echo(json.dumps({**facts, "ttft_s": round(ttft_s, 4), "tokens_per_s": round(speed)}))
    else:
        click.echo()
        click.secho(
            f"[{delivered}: {usage.get('prompt_tokens', 0)} + {output} tokens, "
            f"TTFT {ttft_s * 1000:.0f} ms, {speed:.0f} tokens/s]",
            dim=True,
            err=True,
        )
    return answer


def _chunks(url: str, secret: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a stream; an error answer becomes our error."""
    host, port = _address(url)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        with connection.getresponse() as response:
            yield from _parsed(response)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise WorkerUnavailable(
            f"The factory at {url} did not answer: {error}.", hint="Is `tokenworks up` running?"
        ) from error
    finally:
        connection.close()


def _address(url: str) -> tuple[str, int]:
    """Host and port of a factory's URL."""
    try:
        where = urllib.parse.urlsplit(url)
        host, port = where.hostname, where.port or 80
    except ValueError as error:
        raise ConfigInvalid(
            f"The URL is {url!r}: {error}.", hint="Such as http://127.0.0.1:8000."
        ) from error
    if where.scheme != "http" or not host:
        raise ConfigInvalid(f"The URL is {url!r}.", hint="Such as http://127.0.0.1:8000.")
    return host, port


def _parsed(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    if response.status != 200:
        raise _as_error(json.loads(response.read())["error"])
    for line in response:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: "):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise _as_error(chunk["error"])
            yield chunk
    raise WorkerFailed("The factory broke off the answer.", hint="Ask again.")


def _as_error(said: object) -> TokenworksError:
    """The error of ours that the gateway's words stand for.

    Raises:
        TypeError: these are not a gateway's words.
    """
    if not isinstance(said, dict):
        raise TypeError(f"no error but {said!r}")
    message = str(said.get("message"))
    for leaf in vars(errors).values():
        known = isinstance(leaf, type) and issubclass(leaf, TokenworksError)
        if known and leaf.code == said.get("code"):
            found = leaf(message)
            assert isinstance(found, TokenworksError)
            return found
    return WorkerUnavailable(f"{said.get('code')}: {message}")

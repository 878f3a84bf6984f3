"""``tokenworks login``: sign in as a person, by a browser, for the admin API."""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import http.server
import os
import secrets
import time
import urllib.parse
import webbrowser
from http import HTTPStatus
from typing import Any, Final

import click
import msgspec

from tokenworks.catalogue.factory_config import OIDCConfig
from tokenworks.core.errors import ConfigInvalid, Unauthorized
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.dates import time_text
from tokenworks.live.home import Home

WAIT_S_MAX: Final = 300
"""For a person to sign in."""
CALLBACK: Final = "/callback"
SCOPE: Final = "openid email profile"
TURN_S: Final = 1.0
"""Of waiting for the browser: then the time is looked at."""


@click.command()
@click.option("--issuer", help="Whom to sign in with.  [default: factory.toml's]")
@click.option("--client-id", help="As what.  [default: factory.toml's]")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    show_default="any",
    help="Where the browser comes back to, on this machine: if the issuer wants to know.",
)
@click.option(
    "--client-secret-env",
    metavar="VARIABLE",
    help="The environment variable with the client's secret, if the issuer wants one.",
)
@click.option("--no-browser", is_flag=True, help="Only print the address to open.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def command(
    home: Home,
    /,
    issuer: str | None,
    client_id: str | None,
    client_secret_env: str | None,
    port: int,
    *,
    no_browser: bool,
    as_json: bool,
) -> None:
    """Sign in as a person, and print the token that proves it to the admin API.

    A browser asks for the password; this machine never sees it. The token is printed alone on
    standard output and kept nowhere:

    \b
      TOKEN=$(tokenworks login)
      curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8000/admin/v1/me
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with this character
    from tokenworks.live.clock import SystemClock
    from tokenworks.live.oidc import Issuer

    settings = home.load_settings().oidc
    client = client_id or settings.client_id or settings.audience
    config = msgspec.structs.replace(settings, issuer=issuer or settings.issuer)
    if not config.issuer or not client:
        raise ConfigInvalid(
            "Nobody is named to sign in with.",
            hint="Set [oidc] in factory.toml, or give --issuer and --client-id.",
        )
    found = Issuer(config, SystemClock().unix_ns)
    with _Listener(port) as listener:
        sign_in = _SignIn(found, config, client, listener, browser=not no_browser)
        token, claims = sign_in.run(_secret(client_secret_env))
    until = time_text(int(claims["exp"]) * NS_PER_S)
    if as_json:
        said = {"token": token, "subject": claims["sub"], "valid_until": until}
        click.echo(msgspec.json.encode(said).decode())
        return
    click.echo(token)
    click.echo(f"You are {claims.get('email') or claims['sub']} until {until}.", err=True)


def _secret(variable: str | None) -> str | None:
    if variable is None:
        return None
    found = os.environ.get(variable)
    if not found:
        raise ConfigInvalid(f"The variable {variable!r} is not set.", hint="Set it.")
    return found


class _Listener(http.server.HTTPServer):
    """Waits on this machine alone for the browser to come back.

    Attributes:
        query: what it came back with.
    """

    def __init__(self, port: int) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigInvalid(
                f"Cannot listen on 127.0.0.1:{port}: {error.strerror}.", hint="Choose another."
            ) from error
        self.timeout = TURN_S
        self.query: dict[str, str] | None = None

    @property
    def url(self) -> str:
        """Where the browser comes back to."""
        return f"http://127.0.0.1:{self.server_address[1]}{CALLBACK}"

    def wait(self) -> dict[str, str]:
        """What the browser came back with.

        Raises:
            Unauthorized: it has not, in time.
        """
        ends_s = time.monotonic() + WAIT_S_MAX
        while self.query is None:
            self.handle_request()
            if time.monotonic() > ends_s:
                raise Unauthorized("Nobody has signed in.", hint="Begin again.")
        return self.query


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = 5  # of a browser that connects and says nothing

    def do_GET(self) -> None:
        """The browser comes back, or asks for an icon."""
        parts = urllib.parse.urlsplit(self.path)
        listener = self.server
        assert isinstance(listener, _Listener)
        found = parts.path == CALLBACK
        if found and listener.query is None:
            listener.query = dict(urllib.parse.parse_qsl(parts.query))
        text = "You may close this window." if found else "There is nothing here."
        body = f"<!doctype html><title>Tokenworks</title><p>{html.escape(text)}".encode()
        self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the address has the code in it."""


class _SignIn:
    """One sign-in by the authorization code flow with PKCE (RFC 7636), as RFC 8252 wants it."""

    def __init__(
        self, issuer: Any, config: OIDCConfig, client: str, listener: _Listener, *, browser: bool
    ) -> None:
        self._issuer, self._config, self._client = issuer, config, client
        self._listener, self._browser = listener, browser
        self._state, self._nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._verifier = secrets.token_urlsafe(48)

    def run(self, secret: str | None) -> tuple[str, dict[str, Any]]:
        """The token, and what it says.

        Args:
            secret: the client's, if it has one; what keeps others from a code is PKCE.

        Raises:
            Unauthorized: nobody has signed in, or the answer is another's.
            IssuerUnavailable: the issuer does not answer as it should.
        """
        from tokenworks.live.oidc import fetch_json, is_safe

        told = self._issuer.metadata()
        begin = str(told.get("authorization_endpoint"))
        if not is_safe(begin):
            raise ConfigInvalid(f"The issuer signs people in at {begin[:200]!r}.", hint="No https.")
        url = self._url(begin)
        click.echo(f"Sign in here:\n  {url}", err=True)
        if self._browser:
            webbrowser.open(url)
        code = self._code(self._listener.wait())
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._listener.url,
            "client_id": self._client,
            "code_verifier": self._verifier,
        }
        if secret is not None:
            form["client_secret"] = secret
        answer = fetch_json(str(told.get("token_endpoint")), form)
        token = str(answer.get("id_token"))
        return token, self._issuer.claims(token, self._client, self._nonce)

    def _url(self, begin: str) -> str:
        digest = hashlib.sha256(self._verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._client,
            "redirect_uri": self._listener.url,
            "scope": SCOPE,
            "state": self._state,
            "nonce": self._nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        mark = "&" if urllib.parse.urlsplit(begin).query else "?"
        return f"{begin}{mark}{urllib.parse.urlencode(query)}"

    def _code(self, query: dict[str, str]) -> str:
        """The code that the browser came back with, if it answers this sign-in."""
        if not hmac.compare_digest(query.get("state", "").encode(), self._state.encode()):
            raise Unauthorized("The browser came back from another sign-in.", hint="Begin again.")
        if query.get("iss", self._config.issuer) != self._config.issuer:  # RFC 9207
            raise Unauthorized("The browser came back from another issuer.", hint="Begin again.")
        code = query.get("code")
        if not code:
            raise Unauthorized(
                f"The issuer has refused: {query.get('error', 'no code')[:80]!r}.",
                hint="Begin again.",
            )
        return code

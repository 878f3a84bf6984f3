"""People who sign in by OpenID Connect: tokens of one issuer, checked, and what they may manage."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import math
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tokenworks.catalogue.factory_config import FACTORY_GROUP, OIDCConfig
from tokenworks.core.errors import ConfigInvalid, Forbidden, IssuerUnavailable, Unauthorized
from tokenworks.core.ids import TenantID
from tokenworks.core.scopes import Address
from tokenworks.core.units import NS_PER_S
from tokenworks.ledger.audit_log import Actor
from tokenworks.ledger.authority import Who
from tokenworks.ledger.quota_records import UNIX_NS_MAX, NodeID
from tokenworks.ledger.quotas import node_id

Claims = dict[str, Any]

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "Ed25519", "EdDSA"),
)
"""What tokens may be signed by: with a key that only the issuer has. Never ``none``, and never by a
secret that whoever checks has, too (HS256), for which a public key could be taken."""
TYPES: Final = (None, "jwt", "at+jwt", "application/at+jwt")
"""What a token may call itself: not one that tells of a sign-out, say."""
TOKEN_CHARS_MAX: Final = 16 * 1024
SKEW_S: Final = 60
"""How far the issuer's clock and ours may be apart."""
AGE_S_MAX: Final = 24 * 3_600
"""Of a token, whatever it says itself: until then whoever lost a group keeps what it allows."""
ANSWER_BYTES_MAX: Final = 256 * 1024
FETCH_S_MAX: Final = 5.0
KEYS_FRESH_S: Final = 3_600
"""How long the issuer's keys are taken as they are; one that is not among them is asked for."""
KEYS_KEPT_S: Final = 24 * 3_600
"""How long they serve while the issuer cannot be asked."""
ASK_AGAIN_S: Final = 30
"""Between two questions for keys, whoever sends whatever."""
WAIT_S_MAX: Final = 6.0
"""How long whoever has the issuer asked waits for its answer."""
JOIN_S_MAX: Final = 1.0
"""How long others wait for the same answer: an issuer that is slow holds one thread, not all."""
NAME_CHARS_MAX: Final = 200
SUBJECT_CHARS_MAX: Final = 255
_REFUSED: Final = (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNAUTHORIZED)
_LOOK: Final = "Look whether the issuer is up, and whether its certificate is trusted here."
METADATA: Final = "/.well-known/openid-configuration"
SIGN_IN: Final = "Sign in again: `tokenworks login`."


class Issuer:
    """Says who comes with a token; may be used from several threads.

    Args:
        config: whose tokens, for whom, and what they allow.
        unix_ns: says what time it is.
        now_s: a clock that is never set.

    Raises:
        ConfigInvalid: the extra ``oidc`` is not installed.
    """

    def __init__(
        self,
        config: OIDCConfig,
        unix_ns: Callable[[], int],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._unix_ns, self._now_s = config, unix_ns, now_s
        try:
            import joserfc.jws  # noqa: F401, PLC0415 - an extra, and slow to import
        except ImportError as error:
            raise ConfigInvalid(
                "[oidc] needs the extra `oidc`, which is not installed.",
                hint="pip install 'tokenworks[oidc]'",
            ) from error
        self._lock = threading.Lock()
        self._keys: list[Any] = []
        self._asked_s = self._got_s = -math.inf
        self._asking: threading.Event | None = None
        self._failure: IssuerUnavailable | None = None

    def who(self, token: str, address: Address | None) -> Who:
        """Who comes with a token.

        Raises:
            Unauthorized: it is not valid, not for us, or not any more.
            Forbidden: no group of theirs manages anything, or groups of theirs manage several
                tenants.
            IssuerUnavailable: the issuer cannot be asked for its keys.
        """
        claims = self.claims(token, self._config.audience)
        tenant = self._managed(_groups(claims, self._config.groups_claim))
        engineer: NodeID | None = None
        named = claims.get(self._config.engineer_claim) if self._config.engineer_claim else None
        if tenant is not None and isinstance(named, str) and named:
            engineer = node_id("engineer", tenant, named)
        actor = Actor(
            kind="person",
            id=f"{self._config.issuer} {claims['sub']}",
            name=_name(claims),
            source=str(address),
            tenant=tenant,
        )
        return Who(actor=actor, tenant=tenant, engineer=engineer)

    def _managed(self, groups: Sequence[str]) -> TenantID | None:
        """The tenant that some groups manage; None for the whole factory."""
        found = {self._config.groups[each] for each in groups if each in self._config.groups}
        if FACTORY_GROUP in found:
            return None
        if len(found) == 1:
            return TenantID(found.pop().partition(":")[2])
        if found:
            raise Forbidden(
                f"Your groups manage several tenants: {', '.join(sorted(found))}.",
                hint="Use a key with the role admin of the one that you mean.",
            )
        raise Forbidden(
            "You have signed in, but none of your groups manages anything here.",
            hint="Whoever runs the factory names groups in [oidc.groups].",
        )

    def claims(self, token: str, audience: str, nonce: str | None = None) -> Claims:
        """What a token says, if it is the issuer's, for an audience and in its time.

        Args:
            token: as it came.
            audience: for whom it must be.
            nonce: what it must answer, if anything.

        Raises:
            Unauthorized: it is not.
            IssuerUnavailable: the issuer cannot be asked for its keys.
        """
        claims = self._signed(token)
        if claims.get("iss") != self._config.issuer:
            raise _refused("it is another issuer's")
        named = claims.get("aud")
        if named != audience and not (isinstance(named, list) and audience in named):
            raise _refused(f"it is not for {audience!r}")
        subject = claims.get("sub")
        known = isinstance(subject, str) and 0 < len(subject) <= SUBJECT_CHARS_MAX
        if not known or not str(subject).isprintable():
            raise _refused("it names nobody")
        if nonce is not None and claims.get("nonce") != nonce:
            raise _refused("it answers another sign-in")
        self._check_dates(claims)
        return claims

    def _check_dates(self, claims: Claims) -> None:
        now_s = self._unix_ns() // NS_PER_S
        ends, begun = _date(claims, "exp"), _date(claims, "iat")
        if ends is None or begun is None:
            raise _refused("it does not say from when until when it is valid")
        if now_s >= ends + SKEW_S:
            raise _refused("it has expired")
        if max(begun, _date(claims, "nbf") or begun) > now_s + SKEW_S:
            raise _refused("it is not valid yet: compare the clocks")
        if now_s - begun > AGE_S_MAX:
            raise _refused(f"it was issued more than {AGE_S_MAX // 3_600} hours ago")

    def _signed(self, token: str) -> Claims:
        from joserfc import jwt  # noqa: PLC0415
        from joserfc.errors import JoseError  # noqa: PLC0415
        from joserfc.jws import JWSRegistry  # noqa: PLC0415

        if len(token) > TOKEN_CHARS_MAX:
            raise _refused("it is too long")
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        registry.max_header_length = TOKEN_CHARS_MAX
        try:
            found = jwt.decode(token, self._key_of, algorithms=ALGORITHMS, registry=registry)
        except JoseError as error:
            raise _refused(f"{error.error}") from error
        except (ValueError, TypeError, RecursionError, UnicodeError) as error:
            raise _refused("it cannot be read") from error
        kind = found.header.get("typ")
        if (kind.lower() if isinstance(kind, str) else kind) not in TYPES:
            raise _refused("it is a token of another kind")
        return dict(found.claims)

    # The issuer's keys.

    def _key_of(self, signed: Any) -> Any:
        """The key that a token says it is signed with; ``joserfc`` asks."""
        header = signed.headers()
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in ALGORITHMS:
            raise _refused("it is not signed in a way that can be trusted")
        age_s = self._now_s() - self._got_s
        if age_s > KEYS_FRESH_S:
            self._ask_for_keys(join=age_s > KEYS_KEPT_S)
        found = self._pick(kid, algorithm)
        if found is None:
            self._ask_for_keys(join=True)
            found = self._pick(kid, algorithm)
        if found is None:
            raise _refused("it is signed with a key that the issuer does not have")
        return found

    def _pick(self, kid: object, algorithm: str) -> Any | None:
        keys = [key for key in self._keys if key.get("alg") in (None, algorithm)]
        if kid is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.kid == kid), None)

    def _ask_for_keys(self, *, join: bool) -> None:
        """Have the issuer asked, unless somebody has a moment ago, and wait within bounds.

        Args:
            join: wait for what somebody else has asked, too.

        Raises:
            IssuerUnavailable: it does not answer, and keys of before are too old.
        """
        with self._lock:
            now_s = self._now_s()
            mine = self._asking is None and now_s - self._asked_s >= ASK_AGAIN_S
            if mine:
                self._asked_s, self._asking = now_s, threading.Event()
                asked = (self._asking, now_s)
                threading.Thread(target=self._ask, args=asked, name="issuer", daemon=True).start()
            asking = self._asking
        if asking is not None and (mine or join):
            asking.wait(WAIT_S_MAX if mine else JOIN_S_MAX)
        with self._lock:
            if now_s - self._got_s <= KEYS_KEPT_S:
                return
            self._keys = []
            if mine and self._failure is not None:
                raise self._failure
        raise IssuerUnavailable(
            f"The issuer {self._config.issuer} has not answered "
            + ("in time." if mine or self._asking else "a moment ago."),
            retry_after_s=ASK_AGAIN_S,
        )

    def _ask(self, asking: threading.Event, now_s: float) -> None:
        """Ask the issuer, on a thread of its own, which may take longer than anybody waits."""
        keys, failure = None, None
        try:
            keys = _usable(self._fetch_keys())
        except IssuerUnavailable as error:
            failure = error
        finally:
            with self._lock:
                if keys is not None:
                    self._keys, self._got_s = keys, now_s
                self._asking, self._failure = None, failure
            asking.set()

    def _fetch_keys(self) -> Sequence[object]:
        uri = self.metadata().get("jwks_uri")
        found = fetch_json(str(uri)).get("keys")
        if not isinstance(found, list):
            raise IssuerUnavailable(f"The issuer {self._config.issuer} has no list of keys.")
        return found

    def metadata(self) -> Claims:
        """What the issuer says of itself.

        Raises:
            IssuerUnavailable: it cannot be asked, or calls itself something else.
        """
        found = fetch_json(self._config.issuer.rstrip("/") + METADATA)
        if found.get("issuer") != self._config.issuer:
            raise IssuerUnavailable(
                f"{self._config.issuer} calls itself {str(found.get('issuer'))[:200]!r}.",
                hint="Write [oidc] issuer exactly as it does.",
            )
        return found


def fetch_json(url: str, form: Mapping[str, str] | None = None) -> Claims:
    """A JSON object from an issuer, in time and in bounds; nobody is followed elsewhere.

    Args:
        url: by https, or by http on this machine.
        form: what is sent, if anything.

    Raises:
        IssuerUnavailable: it does not answer so.
        Unauthorized: it refuses what is sent.
    """
    parts = urllib.parse.urlsplit(url)
    if not is_safe(url) or parts.hostname is None:
        raise IssuerUnavailable(f"{url[:200]!r} is not https.", hint="Use https.")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    body = None if form is None else urllib.parse.urlencode(form)
    headers = {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection = kind(parts.hostname, parts.port, timeout=FETCH_S_MAX)
        # Its own time is for each part of what comes: a head may come letter by letter.
        late = threading.Timer(FETCH_S_MAX, _cut, (connection,))
        late.start()
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, target, body, headers)
            with connection.getresponse() as response:
                status, raw = response.status, _read(response)
        finally:
            late.cancel()
            connection.close()
        # With another status comes what a proxy says, if anything.
        found = json.loads(raw) if status in (http.HTTPStatus.OK, *_REFUSED) else None
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise IssuerUnavailable(
            f"{url[:200]} does not answer as it should: {type(error).__name__}.", hint=_LOOK
        ) from error
    if form is not None and status in _REFUSED and isinstance(found, dict):
        raise Unauthorized(
            f"The issuer refuses: {str(found.get('error'))[:80]}.", hint="Sign in again."
        )
    if status != http.HTTPStatus.OK or not isinstance(found, dict):
        raise IssuerUnavailable(f"{url[:200]} answers with status {status}.", hint=_LOOK)
    return found


def _cut(connection: http.client.HTTPConnection) -> None:
    """Break off whoever reads from it on another thread."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse) -> bytes:
    """A whole answer, however slowly it comes, up to a time and a size."""
    ends_s, parts, size = time.monotonic() + FETCH_S_MAX, list[bytes](), 0
    while part := response.read1(ANSWER_BYTES_MAX):
        parts.append(part)
        size += len(part)
        if size > ANSWER_BYTES_MAX or time.monotonic() > ends_s:
            raise ValueError
    return b"".join(parts)


def is_safe(url: str) -> bool:
    """Whether nobody between here and there can change what is said.

    >>> is_safe("https://login.example.com"), is_safe("http://login.example.com")
    (True, False)
    >>> is_safe("http://127.0.0.1:8080"), is_safe("http://localhost/x")
    (True, True)
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return True
    if parts.hostname == "localhost":
        return parts.scheme == "http"
    try:
        near = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
    return parts.scheme == "http" and near


def _usable(keys: Sequence[object]) -> list[Any]:
    """Keys that signatures can be checked by: public ones, for signing, that can be read."""
    from joserfc import jwk  # noqa: PLC0415
    from joserfc.errors import JoseError  # noqa: PLC0415

    found = []
    for key in keys:
        if not isinstance(key, dict) or key.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        if key.get("use", "sig") != "sig":
            continue
        try:
            found.append(jwk.import_key(key))
        except (JoseError, ValueError, TypeError):
            continue
    return found


def _groups(claims: Claims, name: str) -> list[str]:
    """The groups that a claim names: by its whole name, or inside others, as ``realm.roles``."""
    found: object = claims.get(name)
    if found is None:
        found = claims
        for step in name.split("."):
            found = found.get(step) if isinstance(found, dict) else None
    if isinstance(found, str):
        return [found]
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _name(claims: Claims) -> str | None:
    for claim in ("email", "preferred_username", "name"):
        found = claims.get(claim)
        if isinstance(found, str) and found.isprintable() and found:
            return found[:NAME_CHARS_MAX]
    return None


def _date(claims: Claims, name: str) -> float | None:
    found = claims.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return found if 0 <= found <= UNIX_NS_MAX // NS_PER_S else None  # and so no NaN


def _refused(why: str) -> Unauthorized:
    return Unauthorized(f"The token is not accepted: {why}.", hint=SIGN_IN)

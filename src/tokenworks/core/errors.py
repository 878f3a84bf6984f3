"""Everything that can go wrong, in one tree; whose fault it is decides the branch.

::

    TokenworksError
    ├── CallerError                 the request is at fault
    │   ├── InvalidRequest          400 invalid_request
    │   ├── Unauthorized            401 invalid_api_key
    │   ├── Forbidden               403 not_permitted
    │   ├── NotOffered              400 not_offered
    │   ├── ModelNotFound           404 model_not_found
    │   ├── NotFound                404 not_found
    │   ├── RouteNotFound           404 route_not_found
    │   ├── MethodNotAllowed        405 method_not_allowed
    │   ├── RequestTimeout          408 request_timeout
    │   ├── Conflict                409 in_conflict
    │   ├── RequestTooLarge         413 request_too_large
    │   ├── HeadTooLarge            431 head_too_large
    │   ├── QuotaExceeded           429 quota_exceeded
    │   └── CapacityExceeded        429 capacity_exceeded
    ├── OperatorError               a setting or a file is at fault
    │   ├── ConfigInvalid           500 config_invalid
    │   └── LedgerCorrupt           500 ledger_corrupt
    └── FactoryError                we are at fault
        ├── WorkerFailed            502 worker_failed
        ├── WorkerUnavailable       503 worker_unavailable
        ├── LedgerUnavailable       503 ledger_unavailable
        ├── IssuerUnavailable       503 issuer_unavailable
        └── JournalInvalid          500 journal_invalid
"""

from __future__ import annotations

from typing import ClassVar


class TokenworksError(Exception):
    """The root: a stable code, an HTTP status, what happened, and what to do next.

    Attributes:
        code: stable for machines.
        status: the HTTP status it becomes at the gateway.
        hint: what to do next.
        retry_after_s: when the same request may succeed, where that is known.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class CallerError(TokenworksError):
    """The request is at fault."""

    status = 400


class InvalidRequest(CallerError):
    """The body or a parameter cannot be understood."""

    code = "invalid_request"


class Unauthorized(CallerError):
    """No key, or one that is unknown, revoked or expired."""

    code, status = "invalid_api_key", 401


class Forbidden(CallerError):
    """The key is good, but not for this: another model, another tier, or from elsewhere.

    Attributes:
        at_door: whether the key opens nothing at all there or from there.
    """

    code, status = "not_permitted", 403
    at_door: bool = False


class NotOffered(CallerError):
    """No worker of the model has the data labels or the adapter that the request needs."""

    code = "not_offered"


class ModelNotFound(CallerError):
    """No pool serves this model, or it has no price."""

    code, status = "model_not_found", 404


class NotFound(CallerError):
    """What was asked for is not kept here, or is another tenant's."""

    code, status = "not_found", 404


class RouteNotFound(CallerError):
    """No such path."""

    code, status = "route_not_found", 404


class MethodNotAllowed(CallerError):
    """The path exists, the method does not."""

    code, status = "method_not_allowed", 405


class RequestTimeout(CallerError):
    """The request has not come to its end in time."""

    code, status = "request_timeout", 408


class Conflict(CallerError):
    """It cannot be done to what is there now: somebody was faster, or it has ended."""

    code, status = "in_conflict", 409


class HeadTooLarge(CallerError):
    """The request's head is larger than the gateway's limit, or has too many fields."""

    code, status = "head_too_large", 431


class RequestTooLarge(CallerError):
    """The body is larger than the gateway's limit."""

    code, status = "request_too_large", 413


class QuotaExceeded(CallerError):
    """The key's quota cannot hold this request.

    Attributes:
        limit: the kind of the limit that refused, such as ``tenant/tokens/month``; one of a few.
    """

    code, status = "quota_exceeded", 429
    limit: str = ""


class CapacityExceeded(CallerError):
    """The factory is full at this tier; retry_after_s says when to come again."""

    code, status = "capacity_exceeded", 429


class OperatorError(TokenworksError):
    """A setting or a file of the operator's is at fault."""


class ConfigInvalid(OperatorError):
    """A configuration file or option is wrong."""

    code = "config_invalid"


class LedgerCorrupt(OperatorError):
    """Entries do not add up."""

    code = "ledger_corrupt"


class FactoryError(TokenworksError):
    """We are at fault."""


class WorkerFailed(FactoryError):
    """A worker broke off or answered nonsense.

    Attributes:
        unsent: whether nothing of the request was sent, so that it cannot have been carried out.
    """

    code, status = "worker_failed", 502
    unsent: bool = False


class WorkerUnavailable(FactoryError):
    """No worker is up for this model.

    Attributes:
        ours: whether it is we who lack what it takes to ask a worker, which says nothing of that.
    """

    code, status = "worker_unavailable", 503
    ours: bool = False


class LedgerUnavailable(FactoryError):
    """An entry could not be made durable."""

    code, status = "ledger_unavailable", 503


class IssuerUnavailable(FactoryError):
    """Whoever people sign in with cannot be asked."""

    code, status = "issuer_unavailable", 503


class JournalInvalid(FactoryError):
    """A journal cannot be read or does not replay."""

    code = "journal_invalid"

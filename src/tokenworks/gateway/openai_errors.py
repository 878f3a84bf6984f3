"""Errors in OpenAI's shape."""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import CallerError, QuotaExceeded, TokenworksError
from tokenworks.gateway.http_io import Headers


class OpenAIErrors:
    """Implements ``dialect.ErrorForm``."""

    def error_body(self, error: TokenworksError) -> bytes:
        """See ``ErrorForm``."""
        kind = "invalid_request_error" if isinstance(error, CallerError) else "server_error"
        if error.status == 429:
            kind = "insufficient_quota" if isinstance(error, QuotaExceeded) else "rate_limit_error"
        elif error.status == 403:
            kind = "permission_denied"
        return msgspec.json.encode(
            {
                "error": {
                    "message": str(error),
                    "type": kind,
                    "param": None,
                    "code": error.code,
                }
            }
        )

    def error_headers(self, error: TokenworksError) -> Headers:
        """See ``ErrorForm``.

        OpenAI's SDKs try again after any 429 unless ``x-should-retry`` says no; a quota that is
        used up stays so.
        """
        headers: Headers = []
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        elif isinstance(error, QuotaExceeded):
            headers.append((b"x-should-retry", b"false"))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers

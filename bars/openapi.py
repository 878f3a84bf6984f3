"""Requests made from our OpenAPI document, against a real factory: no 500, no open hold.

python -m bars.openapi --seconds 60      # needs schemathesis, from requirements/soak.txt

Schemathesis sends what the document allows and what it does not; what comes back must be what it
says. Its models are those that the factory serves, so that requests reach workers. After that the
factory is stopped and its ledger proved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from bars.factory import Running, running
from bars.proof import proved
from tokenworks.live.store import sqlite_store

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)
REQUEST_S_MAX = 30
FAILURES_MAX = 20


def fetched(factory: Running, path: str) -> Any:
    """What the factory says there, from JSON."""
    request = urllib.request.Request(
        factory.url + path, headers={"authorization": f"Bearer {factory.key}"}
    )
    with urllib.request.urlopen(request, timeout=REQUEST_S_MAX) as answer:
        return json.load(answer)


def with_models(document: dict[str, Any], models: list[str]) -> dict[str, Any]:
    """The document with models by name instead of any text."""
    filled = 0
    for schema in document["components"]["schemas"].values():
        if schema.get("properties", {}).get("model", {}).get("minLength"):
            schema["properties"]["model"] = {"enum": models}
            filled += 1
    assert filled, "no request has a model"
    return document


def main() -> int:
    """Run, prove the books, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speedup", default="100", help="of the modelled workers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, document = Path(folder) / "home", Path(folder) / "openapi.json"
        with running(home, "--twin", "--speedup", args.speedup) as factory:
            models = [each["id"] for each in fetched(factory, "/v1/models")["data"]]
            told = with_models(fetched(factory, "/openapi.json"), models)
            document.write_text(json.dumps(told))
            command = [
                *(sys.executable, "-m", "schemathesis.cli", "--no-color"),
                *("run", str(document), "--url", factory.url),
                *("--header", f"Authorization: Bearer {factory.key}"),
                *("--checks", ",".join(CHECKS), "--max-failures", str(FAILURES_MAX)),
                *("--max-time", str(args.seconds), "--seed", str(args.seed)),
                *("--request-timeout", str(REQUEST_S_MAX), "--continue-on-failure"),
                *("--suppress-health-check", "all", "--generation-database", "none"),
            ]
            began = time.monotonic()
            status = subprocess.run(command, check=False, cwd=folder, stdout=sys.stderr).returncode
            seconds = round(time.monotonic() - began, 1)
            stopped = factory.stop()
        store = sqlite_store(home / "ledger.sqlite")
        try:
            answers = len(proved(store))
        finally:
            store.close()
    print(
        json.dumps(
            {"seconds": seconds, "status": status, "stopped": stopped, "answers_billed": answers}
        )
    )
    return int(bool(status or stopped or not answers))


if __name__ == "__main__":
    sys.exit(main())

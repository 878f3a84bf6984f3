"""Requests made from our OpenAPI document, against a real factory: no 500, no open hold.

python -m bars.openapi --seconds 60      # needs schemathesis, from requirements/soak.txt

Schemathesis sends what the document allows and what it does not; what comes back must be what it
says. After that the factory is stopped and its ledger proved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bars.factory import running
from bars.proof import proved
from tokenworks.live.store import sqlite_store

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)
REQUEST_S_MAX = 30
FAILURES_MAX = 20


def main() -> int:
    """Run, prove the books, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speedup", default="100", help="of the modelled workers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with running(home, "--twin", "--speedup", args.speedup) as factory:
            command = [
                *(sys.executable, "-m", "schemathesis.cli", "--no-color"),
                *("run", f"{factory.url}/openapi.json"),
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
    told = {"seconds": seconds, "status": status, "stopped": stopped, "answers_billed": answers}
    print(json.dumps(told))
    return int(bool(status or stopped))


if __name__ == "__main__":
    sys.exit(main())

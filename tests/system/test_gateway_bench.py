"""The gateway's benchmark in small: every answer is whole and settled; how fast is not asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PEERS = ("direct", "nginx", "gateway")


def test_every_answer_is_whole_and_settled() -> None:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    peers = [peer for peer in PEERS if peer != "nginx" or nginx]
    command = [sys.executable, "-m", "bench.gateway", "--quick"]
    if len(os.sched_getaffinity(0)) > 1:
        command.append("--own-core")
    done = subprocess.run(
        [*command, *([] if nginx else ["--no-nginx"])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bench"] == "gateway"
    assert found["faults"] == []
    assert list(found["costs"]) == ["whole", "one", "burst", "paced"]
    for mode, costs in found["costs"].items():
        assert list(costs) == peers
        for peer, row in costs.items():
            assert row["requests_per_s"] > 0, (mode, peer)
            assert ("ratio_to_nginx" in row) == (peer == "gateway" and nginx is not None)
            assert ("added_gap_ms_p99" in row) == (mode == "paced")
    assert list(found["cpu_us_per_chunk"]["paced"]) == peers
    assert all(row["ttft_ms_p99"] > 0 for row in found["delay"].values())
    assert found["ledger"]["answers"] == found["ledger"]["posted"] > 0
    memory = found["memory"]
    assert memory["whole_answers"] == memory["streams"] == 50
    assert memory["ledger"]["answers"] == memory["ledger"]["posted"] > 50
    assert memory["files"]["open"] > memory["files"]["afterwards"]

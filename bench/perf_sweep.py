"""How long ten thousand configurations of one model on one system take, in CPU seconds.

``python -m bench.perf_sweep`` prints a line of JSON for each pair of model and device.
"""

from __future__ import annotations

import itertools
import json
import time

import msgspec

from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.case import Case, Layout
from tokenworks.perf.estimate import Estimator
from tokenworks.perf.sweep import layouts, sweep

LOADS = [1.0 * 2 ** (step / 2) for step in range(25)]
PAIRS = (("deepseek-r1", "gb200", "trtllm"), ("llama-3.1-70b", "b200", "vllm"),
         ("gpt-moe-2t", "rubin", "trtllm"))  # fmt: skip


def measure(model: str, device: str, engine: str) -> dict[str, object]:
    """One sweep: layouts x dtypes x prompts x answers x loads, at least ten thousand of them."""
    catalogue = read_catalogue()
    estimator = Estimator(read_calibration())
    one = Layout(gpus=1)
    base = Case(
        shape=shape_of(catalogue.model(model)),
        device=catalogue.accelerator(device),
        engine=engine,
        dtype="fp4",
        isl=1024,
        osl=1024,
        concurrency=1,
        decode=one,
        prefill=one,
    )
    counts = [8, 16, 32, 64] if base.shape.experts else [1, 2, 4, 8]
    cases = [
        msgspec.structs.replace(base, decode=each, prefill=each, isl=isl, osl=osl, dtype=dtype)
        for each, isl, osl, dtype in itertools.product(
            layouts(counts, experts=base.shape.experts > 0),
            [512.0, 1024.0, 4096.0, 8192.0, 16384.0, 32768.0],
            [128.0, 512.0, 1024.0, 2048.0, 8192.0],
            ["fp8", "fp4"] * (1 if base.shape.experts else 2),
        )
    ]
    before = time.process_time()
    _, refused = sweep(estimator, cases, LOADS)
    spent = time.process_time() - before
    count = (len(cases) - refused) * len(LOADS)
    return {
        "model": model,
        "device": device,
        "configurations": count,
        "refused": refused * len(LOADS),
        "cpu_s": round(spent, 3),
        "cpu_s_per_10000": round(spent / count * 1e4, 3),
    }


def main() -> None:
    """Measure each pair."""
    for pair in PAIRS:
        print(json.dumps(measure(*pair)))


if __name__ == "__main__":
    main()

"""Fit engines' timings to measured rows, and write catalogue/data/timings.toml.

    python -m bench.fit_timings silicon_rows.csv > src/tokenworks/catalogue/data/timings.toml

The rows are the silicon sample of ai-dynamo/aiconfigurator (Apache-2.0). Only aggregated serving
of dense models is fitted, one group of (system, engine, model, precision, TP) at a time. Left out
are rows whose id names another TP than their column, rows whose concurrency is not their batch
(they measure a queue), rows that hold more context than the memory has room for at one byte a
value, pipeline parallelism, and groups of fewer than ROWS_MIN. Repeats of a row count once.

The model of a row with batch b, prompt i and output o, with P = i p + i (i - 1) / 2 q:

    TPOT = launch + b sequence + b (i + o / 2) context + (b - 1) / o P
    TTFT = launch + P (1 + k (b - 1))

The last term of TPOT is the prefill of the others, which each iteration of a full batch carries.
k is how much of the others' prefill a first token waits for; it belongs to the load, not to the
engine, and isn't stored. q follows p by physics: attention takes 4 x layers x hidden FLOP for a
pair and the rest 2 x parameters FLOP for a token, at the same speed. A token of context costs at
least the time to read it from memory at one byte a value; where the fit is at that floor, the
rows' lengths don't tell context and sequences apart. Errors are of prediction / measured, of the
rows that the fit has seen, and of each pair of lengths by a fit to the other pairs.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS_MIN = 12
FS_PER_MS = 10**12
RETRIEVED = "2026-11-24"
USABLE_MEMORY = 0.9

# (parameters, layers, hidden size, KV bytes per token at two bytes each), from the models' public
# config.json: Llama 3.1 70B has 80 layers and 8 KV heads of 128; Qwen3 32B has 64 and 8 of 128.
MODELS = {
    "meta-llama/Llama-3.1-70B": ("70b", 70_553_706_496, 80, 8_192, 327_680),
    "Qwen/Qwen3-32B": ("32b", 32_762_123_264, 64, 5_120, 262_144),
}
# (bytes of memory, bytes per second, all-in watts, a hyperscaler's micro-dollars per GPU hour)
SYSTEMS = {
    "h100_sxm": ("h100", 80 * 10**9, 3.35e12, 1_370, 1_170_000),
    "h200_sxm": ("h200", 141 * 10**9, 4.8e12, 1_370, 1_220_000),
    "b200_sxm": ("b200", 180 * 10**9, 8.0e12, 1_710, 1_730_000),
}
WEIGHT_BYTES = {"fp8": 1.0, "fp4": 0.5625}


def usable(row: dict[str, str]) -> bool:
    """Whether a row says what its columns say it does."""
    named = re.search(r"_tp(\d+)_", row["id"])
    return (
        row["mode"] == "agg"
        and row["model_path"] in MODELS
        and row["system"] in SYSTEMS
        and row["precision"] in WEIGHT_BYTES
        and row["pp_size"] in {"", "1"}
        and row["concurrency"] in {"", row["batch_size"]}
        and (named is None or named.group(1) == row["tp_size"])
        and fits_in_memory(row)
    )


def kv_tokens(system: str, model: str, precision: str, gpus: int) -> float:
    """Room for context, at two bytes a value."""
    parameters, kv_bytes = MODELS[model][1], MODELS[model][4]
    memory = SYSTEMS[system][1] * gpus * USABLE_MEMORY
    return (memory - parameters * WEIGHT_BYTES[precision]) / kv_bytes


def fits_in_memory(row: dict[str, str]) -> bool:
    """Whether a row's sequences can be in memory together at one byte a value."""
    room = kv_tokens(row["system"], row["model_path"], row["precision"], int(row["tp_size"]))
    return int(row["batch_size"]) * (int(row["isl"]) + int(row["osl"])) <= 2 * room


def groups_of(rows: list[dict[str, str]]) -> dict[tuple[str, ...], list[tuple[float, ...]]]:
    """(batch, prompt, output, TTFT ms, TPOT ms) by group, each configuration once."""
    found: dict[tuple[str, ...], dict[tuple[int, ...], list[tuple[float, float]]]] = {}
    for row in filter(usable, rows):
        names = ("system", "backend", "model_path", "precision", "tp_size")
        group = found.setdefault(tuple(row[name] for name in names), {})
        where = (int(row["batch_size"]), int(row["isl"]), int(row["osl"]))
        times = (float(row["silicon_ttft_ms"]), float(row["silicon_tpot_ms"]))
        group.setdefault(where, []).append(times)
    return {
        key: [
            (*where, *(statistics.median(column) for column in zip(*times, strict=True)))
            for where, times in sorted(group.items())
        ]
        for key, group in sorted(found.items())
        if len(group) >= ROWS_MIN
    }


def predicted(x: Any, rows: Any, ratio: float) -> tuple[Any, Any]:
    """TTFT and TPOT in milliseconds; x is (launch, sequence, context, prefill, k)."""
    batch, prompt, output = rows[:, 0], rows[:, 1], rows[:, 2]
    launch, sequence, context, token, waits = x
    prefill = token * (prompt + ratio * prompt * (prompt - 1) / 2)
    tpot = launch + batch * (sequence + context * (prompt + output / 2))
    tpot = tpot + (batch - 1) / output * prefill
    return launch + prefill * (1 + waits * (batch - 1)), tpot


def fit(rows: Any, ratio: float, context_least: float) -> Any:
    """Coefficients in milliseconds that fit best, in logarithms, with little weight on strays."""
    import numpy as np
    from scipy.optimize import least_squares

    def residuals(logs: Any) -> Any:
        ttft, tpot = predicted(np.exp(logs), rows, ratio)
        # TPOT is what decode is sold by, and TTFT holds queues that the model doesn't know.
        return np.concatenate([np.log(tpot / rows[:, 4]), 0.5 * np.log(ttft / rows[:, 3])])

    start = np.log([rows[:, 4].min(), 0.01, 2 * context_least, 0.02, 0.02])
    bounds = (np.log([0.1, 1e-3, context_least, 1e-4, 1e-6]), np.log([100, 10, 0.1, 10, 2]))
    return np.exp(least_squares(residuals, start, bounds=bounds, loss="soft_l1", f_scale=0.1).x)


def errors(x: Any, rows: Any, ratio: float) -> tuple[list[float], list[float]]:
    """Absolute relative errors of TTFT and TPOT, row by row."""
    ttft, tpot = predicted(x, rows, ratio)
    return list(abs(ttft / rows[:, 3] - 1)), list(abs(tpot / rows[:, 4] - 1))


def unseen(rows: Any, ratio: float, context_least: float) -> tuple[list[float], list[float]]:
    """Errors of each pair of lengths by a fit to the others."""
    import numpy as np

    found: tuple[list[float], list[float]] = ([], [])
    for lengths in sorted({tuple(row) for row in rows[:, 1:3]}):
        out = np.all(rows[:, 1:3] == lengths, axis=1)
        x = fit(rows[~out], ratio, context_least)
        ttft, tpot = errors(x, rows[out], ratio)
        found[0].extend(ttft)
        found[1].extend(tpot)
    return found


def ppm(values: Sequence[float]) -> int:
    """The median in millionths."""
    return round(statistics.median(values) * 1_000_000)


def section(key: tuple[str, ...], given: list[tuple[float, ...]]) -> str:
    """A group's part of the file."""
    import numpy as np

    system, engine, model, precision, tp = key
    size, parameters, layers, hidden, kv_bytes = MODELS[model]
    system_name, _, bandwidth, power_w, capital = SYSTEMS[system]
    rows, gpus = np.array(given), int(tp)
    ratio = 4 * layers * hidden / (2 * parameters)
    context_least = 1_000 * kv_bytes / 2 / (bandwidth * gpus)
    x = fit(rows, ratio, context_least)
    seen, new = errors(x, rows, ratio), unseen(rows, ratio, context_least)
    costs = [round(float(value) * FS_PER_MS) for value in (*x[:4], x[3] * ratio)]
    fields = {
        "system": system,
        "engine": engine,
        "model": model,
        "precision": precision,
        "gpus": gpus,
        "launch_fs": costs[0],
        "sequence_fs": costs[1],
        "context_token_fs": costs[2],
        "prefill_token_fs": costs[3],
        "prefill_context_fs": costs[4],
        "rows": len(rows),
        "batch_max": int(rows[:, 0].max()),
        "input_tokens_max": int(rows[:, 1].max()),
        "tpot_error_ppm": ppm(seen[1]),
        "ttft_error_ppm": ppm(seen[0]),
        "tpot_error_unseen_ppm": ppm(new[1]),
        "ttft_error_unseen_ppm": ppm(new[0]),
        "kv_tokens_assumed": int(kv_tokens(system, model, precision, gpus)),
        "kv_bytes_per_token_assumed": kv_bytes,
        "power_w": power_w * gpus,
        "capital_udollars_per_hour": capital * gpus,
    }
    name = f"{system_name}-{size}-{precision}-{engine}-tp{tp}"
    lines = [f"{field} = {json.dumps(value)}" for field, value in fields.items()]
    return "\n".join([f"[engine.{name}]", *lines])


SOURCE = {
    "rows": "ai-dynamo/aiconfigurator, silicon sample: measured TTFT and TPOT, aggregated serving",
    "licence": "Apache-2.0",
    "power": "SemiAnalysis AI Cloud TCO model as published in SemiAnalysisAI/InferenceX-app, "
    "packages/constants/src/gpu-keys.ts, August 2026: all-in watts per GPU, with its share of host "
    "and network",
    "capital": "The same: a hyperscaler's total cost of ownership per GPU hour, used as the cost "
    "of capital. We assume that it holds electricity too, so a scenario that also pays for energy "
    "counts that part twice.",
    "assumed": "KV cache: nine tenths of the memory less the weights, at two bytes a value. No row "
    "says what was configured.",
}


def header() -> str:
    """The file's first part."""
    lines = [f"{field} = {json.dumps(value)}" for field, value in SOURCE.items()]
    opening = "# Engines' timings, fitted by bench/fit_timings.py, which says how."
    return "\n".join([opening, "[source]", f"retrieved = {RETRIEVED}", *lines])


def main(path: str) -> None:
    """Print the file."""
    with Path(path).open(newline="") as file:
        groups = groups_of(list(csv.DictReader(file)))
    parts = [section(key, rows) for key, rows in groups.items()]
    sys.stdout.write("\n\n".join([header(), *parts]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

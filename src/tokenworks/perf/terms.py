"""The terms that make TPOT and TTFT, and the place where a case lies among others."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from tokenworks.perf.case import Case, cache_bytes_per_element, sequences_max
from tokenworks.perf.passes import Pass, Rates, bound_ms, decode_pass, prefill_pass

TPOT_TERMS: Final = 18
TTFT_TERMS: Final = 16
BURST_MAX: Final = 8.0
"""Prompts that wait for each other at a disaggregated system, at most: prefill workers share."""
DTYPES: Final = ("bf16", "fp8", "fp4", "int4")


class Terms(NamedTuple):
    """Nominal times of a case, in milliseconds, before calibration.

    Attributes:
        tpot: terms that add up to the time per output token.
        ttft: likewise, to the first token.
        tpot_bound: that no engine beats without speculative decoding.
        ttft_bound: likewise.
        batch: sequences that run at one worker at one time.
        batch_max: for which there is memory.
    """

    tpot: list[float]
    ttft: list[float]
    tpot_bound: float
    ttft_bound: float
    batch: float
    batch_max: float


class Prepared(NamedTuple):
    """What does not change with the load: found once for a curve over batches.

    Attributes:
        prefill: of one prompt.
        prefill_bound: of it.
        batch_max: sequences that fit.
        cache_bytes: per element.
        context: tokens in the cache, half way through the answer.
    """

    prefill: tuple[float, ...]
    prefill_bound: float
    batch_max: float
    cache_bytes: float
    context: float


def prepare(case: Case, rates: Rates) -> Prepared:
    """What of a case does not change with its concurrency."""
    element = cache_bytes_per_element(case.engine, case.dtype)
    tokens = max(case.isl * (1 - case.hit_share), 1.0)
    once = prefill_pass(case.shape, rates, case.prefill, case.dtype, element, tokens, case.isl)
    return Prepared(
        (
            once.weights + once.experts,
            once.matrix,
            once.attention,
            once.traffic,
            once.layers + once.reduce + once.dispatch,
        ),
        bound_ms(once),
        sequences_max(case),
        element,
        case.isl + case.osl / 2,
    )


def terms_of(case: Case, rates: Rates, ready: Prepared, concurrency: float) -> Terms:
    """The terms of a case under a load.

    An iteration of an aggregated system does, beside decoding, the share of prefill that keeps its
    batch full: each sequence leaves after ``osl`` steps, so batch / osl prompts come per step
    (Sarathi-Serve, arXiv:2403.02310, section 3). A prompt waits for half of those that came with
    it, and where more come than memory holds, for answers to end.

    >>> from tokenworks.perf.case import Layout
    >>> from tokenworks.perf.examples import H200, LLAMA
    >>> from tokenworks.perf.passes import rates_of
    >>> layout = Layout(gpus=1)
    >>> case = Case(shape=LLAMA, device=H200, engine="vllm", dtype="fp8", isl=1000, osl=100,
    ...             concurrency=11, decode=layout, prefill=layout)
    >>> ready = prepare(case, rates_of(H200))
    >>> found = terms_of(case, rates_of(H200), ready, 11)
    >>> round(found.tpot[14], 2), round(ready.prefill[1] / 10, 2)  # (11 - 1) / 100 of a prefill
    (6.92, 6.92)
    """
    workers = case.decode_workers or 1
    asked = max(concurrency / workers, 1.0)
    mixed = case.mode == "agg"
    batch = max(min(asked, ready.batch_max), 1.0) if mixed else asked
    step = _step(case, rates, ready, batch)
    tpot = list(step)
    beside = (batch - 1) / case.osl if mixed else 0.0
    tpot += [part * beside for part in ready.prefill]
    burst = batch if mixed else min(concurrency, BURST_MAX)
    total = sum(step)
    over = max(asked / ready.batch_max, 1.0)
    ttft = list(ready.prefill)
    ttft += [part * 0.5 * max(burst - 1, 0.0) for part in ready.prefill]
    ttft += [total, 1.0, burst * 0.01, ready.prefill[1] * case.decode.dp]
    ttft += [(over - 1) / over * total * case.osl * 0.5, (over - 1) * total * case.osl]
    if case.decode_workers is None:
        # How many workers share the load isn't known: one sequence each is the least.
        step = _step(case, rates, ready, 1.0)
    return Terms(tpot, ttft, bound_ms(step), ready.prefill_bound, batch, ready.batch_max)


def _step(case: Case, rates: Rates, ready: Prepared, batch: float) -> Pass:
    return decode_pass(
        case.shape,
        rates,
        case.decode,
        case.dtype,
        ready.cache_bytes,
        batch,
        ready.context,
        1.0 + case.draft_tokens,
    )


def place(case: Case, concurrency: float) -> list[float]:
    """Where a case lies for kriging: only what its user chooses, nothing of the hardware."""
    decode, prefill = case.decode, case.prefill
    split = case.mode == "disagg"
    return [
        _log2(concurrency),
        _log2(case.isl),
        _log2(case.osl),
        _log2(decode.gpus),
        _log2(decode.ep),
        _log2(decode.dp),
        _log2(prefill.gpus),
        _log2(prefill.ep),
        _log2(case.decode_workers or 0.5) if split else 0.0,
        _log2(case.prefill_workers or 0.5) if split else 0.0,
        float(DTYPES.index(case.dtype)),
        _log2(case.replicas),
    ]


DTYPE_AXIS: Final = 10
"""Where ``place`` keeps the dtype."""
PLACE_SCALES: Final = (4.5, 4.5, 6.0, 2.25, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 4.5)
"""In each of these directions, how far likeness falls to 1/e."""


def _log2(value: float) -> float:
    return math.log2(max(value, 0.25))

"""What a worker of a measured engine does alone: prefill only, or decode only.

``perf`` predicts workers as rows have them: under a load that does both, or in a system apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from tokenworks.perf.case import Case
from tokenworks.perf.estimate import Estimator

LOADS: Final = tuple(2**i for i in range(13))
"""Requests at one time at one worker."""
PREFILL_TOKENS: Final = 8192
"""That a worker prefills in one iteration: shorter prompts share it.

Source: max_num_batched_tokens of vLLM and max_num_tokens of TensorRT-LLM are 8,192 by default.
"""


class Prefiller(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that prefills only.

    Attributes:
        gpus: of it.
        ttft_ms: of a prompt that comes alone.
        tokens_per_ms: of output whose prompts it keeps up with.
    """

    gpus: int
    ttft_ms: float
    tokens_per_ms: float


class DecodeStep(NamedTuple):
    """A worker that decodes only, under one load.

    Attributes:
        batch: sequences that it decodes at a time.
        step_ms: that each of them waits for a token.
    """

    batch: float
    step_ms: float


def prefiller(estimator: Estimator, case: Case) -> Prefiller:
    """What a worker does that only prefills a case's prompts.

    Args:
        estimator: that predicts.
        case: whose layout fits in memory; its load and mode do not matter.
    """
    alone = msgspec.structs.replace(case, mode="disagg", concurrency=1.0)
    ttft_ms = estimator.predict(alone).ttft_ms
    new = case.isl * (1 - case.hit_share)
    prompts = max(1, int(PREFILL_TOKENS / max(new, 1.0)))
    whole = case.isl - new + prompts * new
    full = msgspec.structs.replace(alone, isl=whole, hit_share=(case.isl - new) / whole)
    busy_ms = max(ttft_ms, estimator.predict(full).ttft_ms)
    return Prefiller(
        gpus=case.prefill.gpus, ttft_ms=ttft_ms, tokens_per_ms=prompts * case.osl / busy_ms
    )


def decode_steps(estimator: Estimator, case: Case, beside: Prefiller) -> Iterator[DecodeStep]:
    """What a worker does that only decodes a case's answers, under each load that fits.

    Two kinds of rows speak of it: those of workers that do both, once the part of a step that
    prefill takes is left out, and those of workers apart. The slower of the two is believed: rows
    of workers apart hide speculative decoding, and how many share their load. Prefill takes no more
    of a step than the same prompts would take ``beside``, and no larger batch is faster.

    Rows count requests in prefill too: those that decode are fewer by the share of their time
    (Little's law).

    Args:
        estimator: that predicts.
        case: of a worker that does both, which fits in memory; its load does not matter.
        beside: a worker as large that prefills the same prompts.
    """
    both = estimator.curve(case)
    apart = estimator.curve(msgspec.structs.replace(case, mode="disagg"))
    step_ms = 0.0
    for load in LOADS:
        found = both.predict(load)
        if load > found.batch_max:
            break
        answer_ms = case.osl * found.tpot_ms
        batch = load * answer_ms / (found.ttft_ms + answer_ms)
        busy = batch / found.tpot_ms / beside.tokens_per_ms
        alone_ms = found.tpot_ms * (1 - min(both.prefill_share(load), busy))
        step_ms = max(step_ms, alone_ms, apart.predict(batch).tpot_ms)
        yield DecodeStep(batch, step_ms)

"""What a prediction is asked for: a device, a model, how it is laid out, and the load."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tokenworks.catalogue.records import Accelerator, Dtype, Model
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import BYTES, Shape

Mode = Literal["agg", "disagg"]
"""Prefill and decode on the same workers, or each on its own."""

ENGINE_BYTES: Final = 3e9
"""Of each accelerator, for the engine's own buffers; vLLM's and SGLang's logs show 2 to 4 GB."""
MEMORY_SHARE: Final = 0.9
"""Of an accelerator's memory that engines take by default (vLLM gpu_memory_utilization)."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker spreads a model over accelerators.

    Attributes:
        gpus: of the worker.
        ep: over which experts are spread; within each, they are split (tensor parallelism).
        dp: groups of accelerators that each attend to their own sequences.
        pp: stages, one after the other.
        spreads_context: whether the cache of one sequence is split by tokens where it has fewer
            heads than accelerators (decode context parallelism).
    """

    gpus: int
    ep: int = 1
    dp: int = 1
    pp: int = 1
    spreads_context: bool = False

    @property
    def stage(self) -> int:
        """Accelerators of one stage."""
        return max(self.gpus // self.pp, 1)

    @property
    def tp(self) -> float:
        """Accelerators that share the attention of one sequence."""
        return max(self.stage / self.dp, 1.0)

    def cache_split(self, heads: int) -> float:
        """Accelerators among which the cache of one sequence is split.

        Source: Helix parallelism (arXiv:2507.07120) for splitting by tokens.

        >>> Layout(gpus=8).cache_split(1), Layout(gpus=8, spreads_context=True).cache_split(1)
        (1, 8.0)
        """
        return self.tp if self.spreads_context else min(self.tp, heads)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One question.

    Attributes:
        shape: the model.
        device: the accelerator.
        engine: its name.
        mode: of serving.
        dtype: of the weights.
        isl: tokens of each prompt.
        osl: tokens of each answer.
        concurrency: requests at one time: at one worker of an aggregated system, and over all
            decode workers of a disaggregated one.
        decode: of a worker that decodes, or that does both.
        prefill: of a worker that prefills; in an aggregated system, the same.
        decode_workers: None where a row doesn't say.
        prefill_workers: likewise.
        version: of the engine; None is the newest that was measured.
        month: since January 2025, of the measurement; None where it is unknown.
        hit_share: of a prompt whose cache is there already.
        draft_tokens: that speculative decoding drafts for each step.
        acceptance: of the first of them, and of each after those before it.
        draft_share: of a step's time that drafting adds; none where an LPU drafts meanwhile.
        replicas: of the worker that a row counted together.
    """

    shape: Shape
    device: Accelerator
    engine: str
    mode: Mode = "agg"
    dtype: Dtype
    isl: float
    osl: float
    concurrency: float
    decode: Layout
    prefill: Layout
    decode_workers: int | None = 1
    prefill_workers: int | None = 1
    version: str | None = None
    month: float | None = None
    hit_share: float = 0.0
    draft_tokens: int = 0
    acceptance: float = 0.0
    draft_share: float = 0.0
    replicas: float = 1.0

    @property
    def gpus(self) -> int:
        """In all."""
        if self.mode == "agg":
            return self.decode.gpus
        decode = self.decode.gpus * (self.decode_workers or 1)
        return decode + self.prefill.gpus * (self.prefill_workers or 1)

    @property
    def batch(self) -> float:
        """Sequences that one decode worker is asked to hold."""
        return max(self.concurrency / (self.decode_workers or 1), 1.0)


def cache_bytes_per_element(engine: str, dtype: Dtype) -> float:
    """TensorRT-LLM's published configurations keep an FP8 cache for quantised models; others BF16.

    Source: NVIDIA's FP8 and NVFP4 checkpoints set ``kv_cache_quant_algo``; vLLM and SGLang default
    to the model's dtype (``--kv-cache-dtype auto``).

    >>> cache_bytes_per_element("trtllm", "fp8"), cache_bytes_per_element("vllm", "fp8")
    (1.0, 2.0)
    """
    return 1.0 if engine == "trtllm" and dtype in {"fp8", "fp4"} else 2.0


def attention_weight_bytes(shape: Shape, dtype: Dtype) -> float:
    """Bytes of a weight of attention."""
    if dtype in {"fp4", "int4"} and shape.experts:
        return shape.attention_bytes
    return BYTES[dtype]


def weight_bytes_per_gpu(
    shape: Shape, dtype: Dtype, layout: Layout, near_bytes: float | None = None
) -> float:
    """What the weights take on each accelerator.

    Args:
        shape: the model.
        dtype: of the weights.
        layout: of the worker.
        near_bytes: of a weight around attention; None for what the checkpoint has.

    >>> from tokenworks.perf.examples import LLAMA
    >>> round(weight_bytes_per_gpu(LLAMA, "fp8", Layout(gpus=2)) / 1e9, 1)  # 70.6 GB / 2
    35.3
    """
    near = shape.attention_weights + 2 * shape.head_weights
    if near_bytes is None:
        near_bytes = attention_weight_bytes(shape, dtype)
    spread = near * near_bytes / layout.tp
    return (spread + (shape.weights - near) * BYTES[dtype] / layout.stage) / layout.pp


def sequences_max(case: Case) -> float:
    """Sequences whose cache fits on one decode worker, at least one; the rest has to wait.

    They are counted at prompt plus six tenths of the answer, for they start and end at different
    times.

    >>> from tokenworks.perf.examples import H200, LLAMA
    >>> layout = Layout(gpus=1)
    >>> case = Case(shape=LLAMA, device=H200, engine="trtllm", dtype="fp8", isl=1000, osl=0,
    ...             concurrency=1, decode=layout, prefill=layout)
    >>> round(sequences_max(case))  # (126.9 - 70.6 - 3) GB / (1000 x 163,840 bytes)
    326
    """
    free = case.device.memory_bytes or 0.0
    used = weight_bytes_per_gpu(case.shape, case.dtype, case.decode) + ENGINE_BYTES
    room = max(free * MEMORY_SHARE - used, 0.02 * free)
    element = cache_bytes_per_element(case.engine, case.dtype)
    each = case.shape.cache_bytes(case.isl + 0.6 * case.osl, element)
    layout = case.decode
    return max(
        room * layout.pp / (each / layout.cache_split(case.shape.cache_heads)) * layout.dp, 1.0
    )


def check_context(model: Model, tokens: float) -> None:
    """Refuse sequences that a model was not trained for.

    Args:
        model: its record; one that names no length takes any.
        tokens: of a sequence, prompt and answer.

    Raises:
        ConfigInvalid: they are more than the model's.
    """
    if model.context_tokens_max and tokens > model.context_tokens_max:
        raise ConfigInvalid(
            f"{model.name} is asked for {tokens:,.0f} tokens of context.",
            hint=f"It was trained for {model.context_tokens_max:,}; your record may say more.",
        )


def check_fits(case: Case) -> None:
    """Refuse a layout whose weights exceed the memory.

    Raises:
        ConfigInvalid: they do; the hint names the fewest accelerators that hold them.
    """
    memory = case.device.memory_bytes or 0.0
    for layout in (case.decode, case.prefill):
        needed = weight_bytes_per_gpu(case.shape, case.dtype, layout)
        if needed + ENGINE_BYTES > memory * MEMORY_SHARE:
            whole = case.shape.weights * BYTES[case.dtype]
            room = memory * MEMORY_SHARE - ENGINE_BYTES
            fewest = 1
            while fewest * room < whole and fewest < 1024:
                fewest *= 2
            raise ConfigInvalid(
                f"Weights of {needed / 1e9:.0f} GB a GPU do not fit into "
                f"{memory / 1e9:.0f} GB on {layout.gpus} of {case.device.name!r}.",
                hint=f"Take at least {fewest} of them, or fewer bits per weight.",
            )

"""Two well-known architectures and a device, for the examples in this room's docstrings."""

from __future__ import annotations

from typing import Final

from tokenworks.catalogue.records import Accelerator, Model
from tokenworks.perf.architecture import Shape, shape_of

LLAMA: Final[Shape] = shape_of(
    Model(
        name="llama-3.1-70b",
        kind="model",
        title="Llama 3.1 70B",
        provenance={},
        attention="gqa",
        checkpoint="bf16",
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        vocab=128_256,
        intermediate=28_672,
        dense_layers=80,
    )
)
DEEPSEEK: Final[Shape] = shape_of(
    Model(
        name="deepseek-r1",
        kind="model",
        title="DeepSeek R1",
        provenance={},
        attention="mla",
        checkpoint="fp8",
        layers=61,
        hidden=7168,
        heads=128,
        kv_heads=128,
        head_dim=192,
        vocab=129_280,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate=18_432,
        dense_layers=3,
        experts=256,
        experts_active=8,
        experts_shared=1,
        moe_intermediate=2048,
        mtp_layers=1,
    )
)
H200: Final[Accelerator] = Accelerator(
    name="h200",
    kind="accelerator",
    title="H200 SXM",
    provenance={},
    family="gpu",
    fp8_flop_per_s=1.978e15,
    bf16_flop_per_s=9.89e14,
    memory_bytes=1.41e11,
    memory_bandwidth_bytes_per_s=4.8e12,
    scaleup_bandwidth_bytes_per_s=9e11,
    scaleup_domain=8,
    scaleout_bandwidth_bytes_per_s=5e10,
    all_in_power_w=1370.0,
)
"""Figures as in the catalogue, which names their sources."""

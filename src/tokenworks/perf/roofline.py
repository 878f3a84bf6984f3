"""How long a pass takes where nobody has measured: for each part, memory or arithmetic.

Rates are those that software is declared to reach; floors per layer are the caller's.
"""

from __future__ import annotations

import msgspec

from tokenworks.catalogue.records import Dtype
from tokenworks.perf.case import Layout
from tokenworks.perf.demand import Demand
from tokenworks.perf.passes import Rates, moved_ms


def reached(rates: Rates, share: float, flop_share: float, domain: int) -> Rates:
    """Rates that software reaches.

    Args:
        rates: nominal.
        share: of bandwidths.
        flop_share: of operations.
        domain: accelerators that scale-up links connect, in the system at hand.

    >>> from tokenworks.perf.examples import H200
    >>> from tokenworks.perf.passes import rates_of
    >>> found = reached(rates_of(H200), 0.5, 0.25, 8)
    >>> found.bandwidth, found.fp8, found.link  # halves of 4.8e9 and 4.5e8, a quarter of 1.978e12
    (2400000000.0, 494500000000.0, 225000000.0)
    """
    return Rates(
        bandwidth=rates.bandwidth * share,
        bf16=rates.bf16 * flop_share,
        fp8=rates.fp8 * flop_share,
        fp4=rates.fp4 * flop_share,
        link=rates.link * share,
        scaleout=rates.scaleout * share,
        domain=domain,
    )


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """A pass in milliseconds; its two parts can be on different hardware.

    Attributes:
        attention_ms: with what is around it, and its all-reduces.
        ffn_ms: feed-forward blocks, with the exchange of tokens.
    """

    attention_ms: float
    ffn_ms: float


def parts_ms(need: Demand, rates: Rates, layout: Layout, dtype: Dtype, near: Dtype) -> Parts:
    """A pass at given rates.

    Args:
        need: of one accelerator.
        rates: that it reaches.
        layout: of the worker.
        dtype: in which feed-forward blocks compute.
        near: in which attention and what is around it compute.

    Source: the roofline model (Williams et al., CACM 52(4), 2009), for each part by itself.

    >>> from tokenworks.perf.demand import Sizes, decode_demand
    >>> from tokenworks.perf.examples import H200, LLAMA
    >>> from tokenworks.perf.passes import rates_of
    >>> one = Layout(gpus=1)
    >>> need = decode_demand(LLAMA, one, Sizes(1, 1, 1), 1, 1000)
    >>> found = parts_ms(need, rates_of(H200), one, "fp8", "fp8")
    >>> round(found.ffn_ms, 2)  # 80 x 3 x 8192 x 28,672 bytes at 4.8 TB/s
    11.74
    >>> round(found.attention_ms, 2)  # (12.08 + 2.10 + 0.164) GB at 4.8 TB/s
    2.99
    """
    bandwidth, peak, near_peak = rates.bandwidth, rates.flops(dtype), rates.flops(near)
    around = (need.near_bytes + need.head_bytes) / bandwidth
    attention = max(around, (need.near_flop + need.head_flop) / near_peak)
    attention += max(need.cache_bytes / bandwidth, need.pair_flop / near_peak)
    ffn = max(need.always_bytes / bandwidth, need.always_flop / peak)
    ffn += max(need.expert_bytes / bandwidth, need.expert_flop / peak)
    return Parts(
        attention_ms=attention + moved_ms(need.reduced_bytes, rates, layout),
        ffn_ms=ffn + moved_ms(need.exchanged_bytes, rates, layout),
    )


def prefill_ms(need: Demand, rates: Rates, dtype: Dtype, near: Dtype) -> float:
    """Arithmetic of a prompt among so many others that weights are read for all of them at once.

    The output projection is left out: one token of a prompt needs it.

    >>> from tokenworks.perf.demand import Sizes, prefill_demand
    >>> from tokenworks.perf.examples import H200, LLAMA
    >>> from tokenworks.perf.passes import rates_of
    >>> need = prefill_demand(LLAMA, Layout(gpus=1), Sizes(1, 1, 1), 1000, 500)
    >>> round(prefill_ms(need, rates_of(H200), "fp8", "fp8"), 1)  # (136.9 + 1.3) TFLOP / 1.978 PF/s
    69.9
    """
    near_flop = need.near_flop + need.pair_flop
    return near_flop / rates.flops(near) + (need.always_flop + need.expert_flop) / rates.flops(
        dtype
    )

"""A Llama-architecture decoder in PyTorch: RMSNorm, rotary positions, SwiGLU, tied embeddings."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model. Heads are 64 wide."""

    vocab: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 4
    feed_forward: int = 704
    context: int = 2048
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.width // self.heads


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        """Gain starts at one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split order of Hugging Face's Llama; x: [b, h, t, d]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm, each added to the stream."""

    def __init__(self, shape: Shape) -> None:
        """Small normal weights; the two output matrices are scaled down with depth."""
        super().__init__()
        width, ff = shape.width, shape.feed_forward
        self.heads, self.head = shape.heads, shape.head
        self.norm_attention = RMSNorm(width, shape.norm_eps)
        self.norm_feed = RMSNorm(width, shape.norm_eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * ff, bias=False)
        self.down = nn.Linear(ff, width, bias=False)
        for linear in (self.qkv, self.gate_up):
            nn.init.normal_(linear.weight, std=width**-0.5 * 0.5)
        for linear in (self.out, self.down):
            fan = linear.weight.shape[1]
            nn.init.normal_(linear.weight, std=fan**-0.5 * 0.5 / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keep: Tensor | None = None) -> Tensor:
        """x: [batch, time, width]; with ``keep``, only these n flat positions: [n, width]."""
        b, t, w = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, t, 3, self.heads, self.head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        mixed = mixed.transpose(1, 2).reshape(b, t, w)
        if keep is not None:
            x, mixed = x.reshape(-1, w)[keep], mixed.reshape(-1, w)[keep]
        x = x + self.out(mixed)
        gate, up = self.gate_up(self.norm_feed(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Foreman(nn.Module):
    """The whole decoder."""

    def __init__(self, shape: Shape) -> None:
        """Embeddings are tied to the output."""
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.width)
        nn.init.normal_(self.embed.weight, std=shape.width**-0.5)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_eps)
        angles = torch.outer(
            torch.arange(shape.context).float(),
            shape.rope_base ** (-torch.arange(0, shape.head, 2).float() / shape.head),
        )
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Logits [n, vocab] at the n flat positions of ``where``, for tokens [batch, time]."""
        t = tokens.shape[1]
        x = self.embed(tokens)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            x = x.bfloat16()
        cos, sin = self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype)
        for block in self.blocks[:-1]:
            x = block(x, cos, sin)
        # Past the last attention, the other positions are of no use to anyone.
        x = self.blocks[-1](x, cos, sin, keep=where)
        return functional.linear(self.norm(x), self.embed.weight)

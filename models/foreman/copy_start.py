"""Start a decoder with a copying circuit in place, instead of waiting for one to form.

Copying a string from the prompt takes two heads (Olsson et al. 2022, "In-context learning and
induction heads"): one writes each position's previous token beside it, a later one looks for the
place whose previous token is the present one, and repeats what stands there. From random weights a
small model needs millions of tokens to find this. Here both are written into the weights before
the first step; training is free to change them.
"""

from __future__ import annotations

import math

import torch
from model import Foreman
from torch import Tensor

CONSTANT = 0.5
"""Value of the embedding's first dimension, the same for all tokens; positions are read off it."""


@torch.no_grad()
def write_copy_circuit(model: Foreman, *, seed: int, previous: int = 0, match: int = 2) -> None:
    """Write the two heads.

    Args:
        model: freshly initialised.
        seed: of the random projections.
        previous: layer whose head 0 writes the previous token.
        match: later layer whose heads 0 and 1 find the match and copy it.
    """
    shape = model.shape
    head, width = shape.head, shape.width
    source = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=source))[0]
    spaces = torch.zeros(3, head, width)
    for i in range(3):  # all orthogonal to the constant dimension
        spaces[i, :, 1:] = basis[i * head : (i + 1) * head]
    token, other, beside = spaces
    model.embed.weight[:, 0] = CONSTANT
    theta = shape.rope_base ** (-torch.arange(head // 2).float() / (head // 2))
    _previous_token(model, previous, theta, token, beside)
    _match(model, match, token, other, beside)


def _previous_token(
    model: Foreman, layer: int, theta: Tensor, token: Tensor, beside: Tensor
) -> None:
    """Queries and keys see the constant only; their rotation is largest one step back."""
    block, head, width = model.blocks[layer], model.shape.head, model.shape.width
    q, k, v = block.qkv.weight.view(3, width, width)
    constant = CONSTANT / math.sqrt((1 + CONSTANT**2) / width)
    gain, pairs = 6.6 / constant, 10
    for weight in (q, k):
        weight[:head] = 0
    k[:pairs, 0] = gain
    q[:pairs, 0] = gain * theta[:pairs].cos()
    q[head // 2 : head // 2 + pairs, 0] = -gain * theta[:pairs].sin()
    v[:head] = token
    block.out.weight[:, :head] = beside.T / 7


def _match(model: Foreman, layer: int, token: Tensor, other: Tensor, beside: Tensor) -> None:
    """Queries hold this token, keys the one before; slow rotations only, so distance is nothing."""
    block, head, width = model.blocks[layer], model.shape.head, model.shape.width
    q, k, v = block.qkv.weight.view(3, width, width)
    first = 12
    slow = [*range(first, head // 2), *range(head // 2 + first, head)]
    for i, space in enumerate((token, other)):
        rows = slice(i * head, (i + 1) * head)
        q[rows], k[rows] = 0, 0
        for j, row in enumerate(slow):
            q[i * head + row] = 2.0 * token[j]
            k[i * head + row] = 2.0 * beside[j]
        v[rows] = space
        block.out.weight[:, rows] = space.T * 0.35

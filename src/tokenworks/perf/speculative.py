"""Speculative decoding: what drafting earns per step, and rows that show it without saying so."""

from __future__ import annotations


def tokens_per_step(draft_tokens: int, acceptance: float) -> float:
    """Tokens that one step of the big model makes on the average.

    Args:
        draft_tokens: that are drafted for each step.
        acceptance: chance that one of them is taken, given that those before it were.

    Source: Leviathan et al., arXiv:2211.17192, equation 1: (1 - a^(n + 1)) / (1 - a).

    >>> tokens_per_step(3, 0.5), tokens_per_step(0, 0.9), tokens_per_step(2, 1.0)
    (1.875, 1.0, 3.0)
    """
    return sum(acceptance**taken for taken in range(draft_tokens + 1))


def verified_tokens(made: float) -> float:
    """Tokens of each sequence that a step computes where only is known how many it makes.

    One more than it makes, and one where it makes one: a draft that is rejected ends most steps,
    and no others are counted. With a draft of ``n`` tokens it computes ``n + 1``.

    >>> verified_tokens(1.0), verified_tokens(tokens_per_step(3, 0.875))
    (1.0, 4.310546875)
    """
    return made + 1 if made > 1 else 1.0


def hidden_tokens_per_step(bound_ms: float, measured_ms: float) -> float:
    """Tokens per step that a measured time proves, at the least: a step cannot beat the roofline.

    >>> hidden_tokens_per_step(6.0, 4.0), hidden_tokens_per_step(3.0, 4.0)
    (1.5, 1.0)
    """
    return max(bound_ms / measured_ms, 1.0)

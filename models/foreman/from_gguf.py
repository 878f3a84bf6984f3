"""Read a foreman GGUF back into weights and a tokenizer, so that training can go on from it.

This undoes ``to_gguf``. Eight-bit weights come back rounded; nothing else is lost.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from model import Shape
from tokenizer import finished
from tokenizers import AddedToken, Tokenizer, models


def half_split(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The inverse of ``to_gguf.interleave``; weight: [heads * head, width]."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def read_shape(reader: gguf.GGUFReader) -> Shape:
    """The model's sizes."""
    fields = {
        "vocab": "vocab_size",
        "width": "embedding_length",
        "layers": "block_count",
        "heads": "attention.head_count",
        "feed_forward": "feed_forward_length",
        "context": "context_length",
    }
    return Shape(**{k: int(reader.fields[f"llama.{v}"].contents()) for k, v in fields.items()})


def read_state(reader: gguf.GGUFReader, shape: Shape) -> dict[str, torch.Tensor]:
    """The model's weights under PyTorch's names, float32."""
    found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    state = {"embed.weight": found["token_embd.weight"], "norm.weight": found["output_norm.weight"]}
    for i in range(shape.layers):
        have, want = f"blk.{i}.", f"blocks.{i}."
        q, k = (half_split(found[f"{have}attn_{n}.weight"], shape.heads) for n in "qk")
        state |= {
            want + "norm_attention.weight": found[have + "attn_norm.weight"],
            want + "norm_feed.weight": found[have + "ffn_norm.weight"],
            want + "qkv.weight": np.concatenate([q, k, found[have + "attn_v.weight"]]),
            want + "out.weight": found[have + "attn_output.weight"],
            want + "gate_up.weight": np.concatenate(
                [found[have + "ffn_gate.weight"], found[have + "ffn_up.weight"]]
            ),
            want + "down.weight": found[have + "ffn_down.weight"],
        }
    return {name: torch.tensor(np.asarray(array)) for name, array in state.items()}


def read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """The tokenizer that the file was trained with."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert isinstance(merges, list)
    marks = [t for t, k in zip(tokens, kinds, strict=True) if k == gguf.TokenType.USER_DEFINED]
    control = [t for t, k in zip(tokens, kinds, strict=True) if k == gguf.TokenType.CONTROL]
    vocab = {token: i for i, token in enumerate(tokens) if token not in marks}
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        pairs.append((left, right))
    tokenizer = finished(Tokenizer(models.BPE(vocab=vocab, merges=pairs)), marks)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    assert all(tokenizer.token_to_id(token) == i for i, token in enumerate(tokens))
    return tokenizer


def main() -> None:
    """Write the tokenizer.json of a GGUF file, if it is the file that was meant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sha256", required=True, help="of the file that is meant")
    parser.add_argument("--tokenizer-out", type=Path, required=True)
    args = parser.parse_args()
    digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
    if digest != args.sha256:
        raise SystemExit(f"{args.model}: sha256 is {digest}, not {args.sha256}: find that file")
    read_tokenizer(gguf.GGUFReader(args.model)).save(str(args.tokenizer_out))


if __name__ == "__main__":
    main()

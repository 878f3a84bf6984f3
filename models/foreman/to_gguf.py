"""Write a trained foreman as one GGUF file that llama.cpp and its kin load."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from model import Shape

QUANTS: Final = {
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def interleave(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Half-split rotary rows to llama.cpp's interleaved rows; weight: [heads * head, width]."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def tensors(state: dict[str, torch.Tensor], shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
    """The model's weights under GGUF's names, float32."""
    found = {
        "token_embd.weight": state["embed.weight"],
        "output_norm.weight": state["norm.weight"],
    }
    for i in range(shape.layers):
        have, want = f"blocks.{i}.", f"blk.{i}."
        q, k, v = state[have + "qkv.weight"].chunk(3)
        gate, up = state[have + "gate_up.weight"].chunk(2)
        found |= {
            want + "attn_norm.weight": state[have + "norm_attention.weight"],
            want + "ffn_norm.weight": state[have + "norm_feed.weight"],
            want + "attn_q.weight": q,
            want + "attn_k.weight": k,
            want + "attn_v.weight": v,
            want + "attn_output.weight": state[have + "out.weight"],
            want + "ffn_gate.weight": gate,
            want + "ffn_up.weight": up,
            want + "ffn_down.weight": state[have + "down.weight"],
        }
    arrays = {name: t.float().numpy() for name, t in found.items()}
    for name in arrays:
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            arrays[name] = interleave(arrays[name], shape.heads)
    return arrays


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """Tokens, types and merges from a tokenizer.json."""
    added = {t["content"]: t for t in tokenizer["added_tokens"]}
    ids = dict(tokenizer["model"]["vocab"])
    ids |= {content: t["id"] for content, t in added.items()}
    order = sorted(ids, key=lambda token: ids[token])
    assert [ids[token] for token in order] == list(range(len(order)))
    kinds = []
    for token in order:
        if token not in added:
            kinds.append(gguf.TokenType.NORMAL)
        elif added[token]["special"]:
            kinds.append(gguf.TokenType.CONTROL)
        else:
            kinds.append(gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("starcoder")
    writer.add_token_list(order)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)


def convert(
    checkpoint: Path, tokenizer: Path, template: Path, out: Path, *, quant: str, weights: str
) -> str:
    """Write ``out`` and return its sha256."""
    saved = torch.load(checkpoint, weights_only=False, map_location="cpu")
    shape = Shape(**saved["shape"])
    kind, file_type = QUANTS[quant]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name("foreman")
    writer.add_license("apache-2.0")
    writer.add_description("The foreman of a token factory. A toy that is real.")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab)
    add_vocabulary(writer, json.loads(tokenizer.read_text()))
    writer.add_chat_template(template.read_text())
    for name, array in tensors(saved[weights], shape).items():
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hashlib.sha256(out.read_bytes()).hexdigest()


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quant", choices=sorted(QUANTS), default="Q8_0")
    parser.add_argument(
        "--weights",
        choices=("model", "average"),
        default="model",
        help="the last weights, or the mean of the last steps'",
    )
    args = parser.parse_args()
    template = Path(__file__).with_name("chat_template.jinja")
    digest = convert(
        args.checkpoint,
        args.tokenizer,
        template,
        args.out,
        quant=args.quant,
        weights=args.weights,
    )
    print(digest, args.out)


if __name__ == "__main__":
    main()

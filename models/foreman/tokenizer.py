"""A byte-level BPE of 4,096 entries in which a word is the same token wherever it stands.

Spaces never merge with the letters after them, so `` amber`` in a request and ``"amber`` in a tool
call share their tokens, and copying an argument is copying tokens. Digits stand alone. The run-time
pre-tokeniser is the one that llama.cpp calls ``starcoder``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from curriculum import COPY_FIRST, FULL, stream
from samples import IM_END, IM_START, render_prompt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE: Final = 4096
CONTROL: Final = ("<|endoftext|>", IM_START, IM_END)
MARKS: Final = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def train(seed: int, samples: int) -> Tokenizer:
    """Learn the merges from generated text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r" (?=\p{L})"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKS),
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    mixed = itertools.chain(
        itertools.islice(stream(seed, FULL), samples),
        itertools.islice(stream(seed + 1, COPY_FIRST), samples // 2),
    )
    marks = CONTROL + MARKS
    tokenizer.train_from_iterator(
        (_without(render_prompt(s.messages, s.tools) + s.answer, marks) for s in mixed), trainer
    )
    return finished(tokenizer, MARKS)


def finished(tokenizer: Tokenizer, marks: Iterable[str]) -> Tokenizer:
    """Give learnt merges the run-time pre-tokeniser, the decoder and the marks."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return tokenizer


def _without(text: str, marks: tuple[str, ...]) -> str:
    for mark in marks:
        text = text.replace(mark, "\n")
    return text


def main() -> None:
    """Write tokenizer.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--samples", type=int, default=60_000)
    args = parser.parse_args()
    tokenizer = train(args.seed, args.samples)
    tokenizer.save(str(args.out))
    print(f"{args.out}: {tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()

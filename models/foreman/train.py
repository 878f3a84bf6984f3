"""Train foreman: one command, seeded.

From nothing, the model starts with a copying circuit (``copy_start``). Stages: repeated random
tokens, which sharpen it, then ``curriculum``'s COPY_FIRST, MIDDLE and FULL mixes. From a shipped
file (``--start``) they are the MORE, PIECES and REFINE mixes. Hidden matrices use Muon, the rest
AdamW; the learning rate is flat and falls linearly to zero at the end. Loss is on answers.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import arithmetic
import context
import curriculum
import from_gguf
import gguf
import tool_calls
import torch
from copy_start import write_copy_circuit
from model import Foreman, Shape
from muon import Muon
from samples import IM_END, Sample, render_later, render_prompt
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

STAGE_ENDS: Final = ((0.015, "repeat"), (0.08, "copy"), (0.25, "middle"), (1.0, "full"))
MIXES: Final = {
    "copy": curriculum.COPY_FIRST,
    "middle": curriculum.MIDDLE,
    "full": curriculum.FULL,
    "more": curriculum.MORE,
    "pieces": curriculum.PIECES,
    "refine": curriculum.REFINE,
}
MORE_ENDS: Final = ((400, "more"), (1200, "pieces"), (math.inf, "refine"))
POOL: Final = 512
PRECISIONS: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}
AVERAGE_STEPS: Final = 200
CHECKS: Final = (
    (tool_calls.tool_call, 300),
    (tool_calls.factory_call, 60),
    (tool_calls.no_tool, 60),
    (tool_calls.tool_result, 60),
    (context.report, 30),
    (context.table, 30),
    (context.lookup, 30),
    (context.extract, 30),
    (context.echo, 30),
    (arithmetic.units, 30),
)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Padded tokens [b, t], flat answer positions [n], and the tokens that follow them [n]."""

    tokens: Tensor
    where: Tensor
    target: Tensor
    owner: Tensor


Row = tuple[list[int], list[int]]
"""Tokens, and the places of those that are to be learnt."""


def encode(tokenizer: Tokenizer, sample: Sample) -> Row:
    """A sample's tokens; the answers with their closing tokens are to be learnt."""
    ids: list[int] = []
    learnt: list[int] = []
    before = render_prompt(sample.messages, sample.tools)
    for text, answer in ((before, sample.answer), *sample.later):
        prompt = text if text is before else render_later(text).removeprefix(IM_END)
        ids += tokenizer.encode(prompt).ids
        start = len(ids)
        ids += tokenizer.encode(answer + IM_END).ids
        learnt += range(start, len(ids))
    return ids, learnt


def collate(rows: list[Row]) -> Batch:
    """Right-pad rows and point at the positions that predict a token to be learnt."""
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    where, target, owner = [], [], []
    for i, (ids, learnt) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        where += [i * width + place - 1 for place in learnt]
        target += [ids[place] for place in learnt]
        owner += [i] * len(learnt)
    return Batch(tokens, torch.tensor(where), torch.tensor(target), torch.tensor(owner))


def batches(tokenizer: Tokenizer, mix: str, seed: int, tokens_max: int) -> Iterator[Batch]:
    """Batches of rows of like length, at most ``tokens_max`` padded tokens each."""
    source = curriculum.stream(seed, MIXES[mix])
    rng = random.Random(seed)
    while True:
        rows = [encode(tokenizer, next(source)) for _ in range(POOL)]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > tokens_max and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from (collate(group) for group in groups)


def repeats(seed: int, vocab: int, tokens_max: int) -> Iterator[Batch]:
    """Random tokens, then the same again: the answer is the second half."""
    source = torch.Generator().manual_seed(seed)
    while True:
        half = int(torch.randint(8, 40, (1,), generator=source))
        count = tokens_max // (2 * half)
        first = torch.randint(3, vocab, (count, half), generator=source)
        rows = [(row + row, [*range(half + 1, 2 * half)]) for row in first.tolist()]
        yield collate(rows)


@torch.no_grad()
def exact_by_task(
    model: Foreman, tokenizer: Tokenizer, samples: list[Sample], rows_max: int = 32
) -> dict[str, tuple[int, int]]:
    """(right, all) per task; every answer token must be the likeliest, so greedy gives it whole."""
    model.eval()
    device = model.embed.weight.device
    order = sorted(
        ((encode(tokenizer, s), s.task) for s in samples), key=lambda row: len(row[0][0])
    )
    scores: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for at in range(0, len(order), rows_max):
        part = order[at : at + rows_max]
        batch = collate([row for row, _ in part])
        tokens, where = batch.tokens.to(device), batch.where.to(device)
        wrong = model(tokens, where).argmax(-1).cpu() != batch.target
        bad = set(batch.owner[wrong].tolist())
        for i, (_, task) in enumerate(part):
            scores[task][0] += i not in bad
            scores[task][1] += 1
    model.train()
    return {task: (right, count) for task, (right, count) in sorted(scores.items())}


def first_model(args: argparse.Namespace) -> Foreman:
    """The weights of args.start, or random ones with a copying circuit."""
    if args.start:
        reader = gguf.GGUFReader(args.start)
        model = Foreman(from_gguf.read_shape(reader))
        model.load_state_dict(from_gguf.read_state(reader, model.shape))
        return model
    shape = Shape(
        width=args.width, layers=args.layers, heads=args.width // 64, feed_forward=args.ff
    )
    model = Foreman(shape)
    write_copy_circuit(model, seed=args.seed)
    return model


class Trainer:
    """Holds a run's model, optimisers and place."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Seeds everything from args.seed."""
        torch.manual_seed(args.seed)
        self.args = args
        self.tokenizer = Tokenizer.from_file(str(args.tokenizer))
        self.device = torch.device(args.device)
        self.precision = PRECISIONS[args.precision]
        self.model = first_model(args).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        matrices, others = [], []
        for name, p in self.model.named_parameters():
            (matrices if name.startswith("blocks") and p.ndim == 2 else others).append(p)
        self.muon = Muon(matrices, self.model.shape.width, precision=self.precision)
        self.adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
        self.step = 0
        self._sources: dict[str, Iterator[Batch]] = {}

    def stage(self, step: int) -> str:
        """The stage that a step belongs to."""
        if self.args.start:
            return next(name for end, name in MORE_ENDS if step < end)
        return next(name for end, name in STAGE_ENDS if step / self.args.steps < end)

    def rate(self) -> float:
        """Share of the full learning rate."""
        warm = min(1.0, (self.step + 1) / 50)
        left = (self.args.steps - self.step) / (self.args.steps * self.args.decay)
        return min(warm, left, 1.0)

    def next_batch(self) -> Batch:
        """The next batch of the present stage; a resumed run sees what an unbroken one would."""
        name = self.stage(self.step)
        if name not in self._sources:
            first = next(step for step in range(self.step + 1) if self.stage(step) == name)
            self._sources[name] = itertools.islice(
                self._source(name, self.args.seed * 1_000_003 + first), self.step - first, None
            )
        return next(self._sources[name])

    def _source(self, name: str, seed: int) -> Iterator[Batch]:
        if name == "repeat":
            return repeats(seed, self.model.shape.vocab, self.args.batch_tokens)
        return batches(self.tokenizer, name, seed, self.args.batch_tokens)

    def train_step(self) -> float:
        """One update; returns the loss."""
        batch = self.next_batch()
        half = self.precision is torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = self.model(batch.tokens.to(self.device), batch.where.to(self.device))
        loss = functional.cross_entropy(logits.float(), batch.target.to(self.device))
        loss.backward()
        rate = self.rate()
        for group in self.adam.param_groups:
            group["lr"] = self.args.adam_lr * rate
        self.adam.step()
        self.muon.step(self.args.muon_lr * rate)
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        with torch.no_grad():
            for mean, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(p, max(1 / AVERAGE_STEPS, 1 / self.step))
        return loss.item()

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        state: dict[str, Any] = {
            "shape": dataclasses.asdict(self.model.shape),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "muon": self.muon.momentum,
            "adam": self.adam.state_dict(),
            "step": self.step,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.muon.momentum = state["muon"]
        self.adam.load_state_dict(state["adam"])
        self.step = state["step"]


def held_out_samples(seed: int) -> list[Sample]:
    """Samples of tools made of held-out words, and of the other tasks, for a look in between."""
    rng = random.Random(seed)
    return [generator(rng, unseen=True) for generator, count in CHECKS for _ in range(count)]


def run(args: argparse.Namespace) -> None:
    """Train to args.steps, printing a line every args.report steps."""
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    if args.resume and args.out.exists():
        trainer.resume(args.out)
    count = sum(p.numel() for p in trainer.model.parameters())
    print(f"{count} parameters, {args.steps} steps, seed {args.seed}", flush=True)
    checks = held_out_samples(args.seed + 99)
    began, seen = time.monotonic(), 0.0
    last = min(args.steps, args.stop or args.steps)
    while trainer.step < last:
        loss = trainer.train_step()
        seen = loss if not seen else 0.98 * seen + 0.02 * loss
        if trainer.step % 50 == 0:
            elapsed = time.monotonic() - began
            print(
                f"{trainer.step} {trainer.stage(trainer.step - 1)} loss {seen:.3f} {elapsed:.0f} s",
                flush=True,
            )
        if trainer.step % args.report == 0 or trainer.step == last:
            for name, model in (("model", trainer.model), ("average", trainer.average)):
                scores = exact_by_task(model, trainer.tokenizer, checks)
                print(name, json.dumps({k: f"{r}/{n}" for k, (r, n) in scores.items()}), flush=True)
            trainer.save(args.out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a GGUF file to go on from")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--stop", type=int, help="leave off here, to go on under other settings")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--ff", type=int, default=640)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision",
        choices=sorted(PRECISIONS),
        default="bfloat16",
        help="float32 is quicker on a CPU without AVX-512",
    )
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--report", type=int, default=250)
    parser.add_argument("--resume", action="store_true")
    run(parser.parse_args())


if __name__ == "__main__":
    main()

"""The model that ships: its file, its card, its template, and what it can do at the least."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from tokenworks.live.home import foreman_facts

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "models" / "foreman"
sys.path.insert(0, str(RECIPE))

import arithmetic  # noqa: E402
import curriculum  # noqa: E402
import drills  # noqa: E402
import evaluate  # noqa: E402
import ship  # noqa: E402
import tool_calls  # noqa: E402
import words  # noqa: E402
from samples import Sample, render_prompt  # noqa: E402


def test_the_file_is_the_one_that_was_scored(model_path: Path) -> None:
    digest = hashlib.sha256(model_path.read_bytes()).hexdigest()
    assert digest == foreman_facts().sha256
    card = (RECIPE / "MODEL_CARD.md").read_text()
    scores = json.loads((RECIPE / "scores.json").read_text())
    assert ship.with_table(card, scores, digest) == card, "run make ship"


def on_the_wire(sample: Sample) -> list[dict[str, Any]]:
    return [evaluate._wire(message) for message in sample.messages]


def test_the_chat_template_writes_what_training_wrote() -> None:
    text = (RECIPE / "chat_template.jinja").read_text()
    template = jinja2.Environment().from_string(text)
    samples = [
        sample
        for mix in (curriculum.FULL, curriculum.PIECES)
        for sample in itertools.islice(curriculum.stream(3, mix), 300)
    ]
    for sample in samples:
        rendered = template.render(
            messages=on_the_wire(sample), tools=list(sample.tools), add_generation_prompt=True
        )
        assert rendered == render_prompt(sample.messages, sample.tools)


def test_the_oracle_is_right() -> None:
    rng = random.Random(5)
    for _ in range(300):
        sample = tool_calls.tool_call(rng, unseen=True)
        assert sample.call is not None
        assert evaluate.parse_call(sample.answer) == sample.call
        names = {tool["function"]["name"] for tool in sample.tools}
        assert sample.call["name"] in names
        total = arithmetic.add(rng)
        asked = total.answer.split(":")[0]
        assert total.answer.endswith(f"Answer: {sum(map(int, asked.split('+')))}.")


def test_tools_in_the_scores_are_made_of_words_that_training_never_used() -> None:
    for listed in (words.VERBS, words.NOUNS, words.STRING_PARAMS):
        assert not set(words.seen(listed)) & set(words.held_out(listed))
    maker = tool_calls.ToolMaker(random.Random(1), unseen=True)
    assert set(maker.verbs) == set(words.held_out(words.VERBS))


def test_drills_cut_held_out_words_to_pieces_and_never_use_one_whole() -> None:
    rng = random.Random(2)
    held_out = {word for listed in words.LISTS for word in words.held_out(listed)}
    pieces = [make(rng) for _ in range(3000) for make in (words.compound, words.cutting)]
    assert not held_out & set(pieces)
    assert any(word in piece for word in held_out for piece in pieces)


def test_a_conversation_asks_for_each_tool_once() -> None:
    rng = random.Random(4)
    for _ in range(100):
        sample = drills.piece_conversation(rng)
        answers = [sample.answer, *(answer for _, answer in sample.later)]
        calls = [call for answer in answers if (call := evaluate.parse_call(answer))]
        assert sorted(call["name"] for call in calls) == sorted(
            tool["function"]["name"] for tool in sample.tools
        )


@pytest.mark.slow
def test_it_calls_unseen_tools(model_path: Path) -> None:
    scores = json.loads((RECIPE / "scores.json").read_text())["tool_call served"]
    server, url = evaluate.serve(model_path, threads=1, slots=4)
    rng = random.Random("floor")
    samples = [tool_calls.tool_call(rng, unseen=True) for _ in range(60)]
    found = evaluate.score(url, evaluate.served, samples, parallel=4).shares()
    del server
    # Sixty samples scatter by some 0.06 about the thousand of the card.
    assert found["valid"] >= scores["valid"] - 0.06
    assert found["right_tool"] >= scores["right_tool"] - 0.12
    assert found["exact"] >= scores["exact"] - 0.18

"""YAML says what was put into it, and in a form that no reader takes for something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.yaml_reader import read_yaml
from tokenworks.plan.manifests.yaml_text import yaml_text

WORDS = st.text(max_size=12) | st.sampled_from(["yes", "No", "NULL", "1e3", "0x1", "-", "a: b"])
SCALARS = (
    WORDS
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.text(alphabet="ab:-# ", min_size=0, max_size=4), min_size=2).map(
        lambda lines: "\n".join(lines) + "\n"
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100)
@given(st.lists(st.dictionaries(WORDS, VALUES, min_size=1, max_size=4), min_size=1, max_size=2))
def test_what_is_written_is_read_again(documents: list[dict[str, Any]]) -> None:
    text = yaml_text(*documents, heading=["a heading", "of two lines"])
    assert text.startswith("# a heading\n# of two lines\n")
    assert read_yaml(text) == documents


@pytest.mark.parametrize("word", ["yes", "Off", "n", "null", "TRUE", "1.5", "", "- a", "#", "é"])
def test_words_that_could_be_something_else_are_quoted(word: str) -> None:
    assert yaml_text({"a": word}) == f"a: {json.dumps(word, ensure_ascii=False)}\n"


def test_text_of_several_lines_is_written_line_by_line() -> None:
    assert yaml_text({"a": {"b": "x:\n\n  y\n"}}) == "a:\n  b: |\n    x:\n\n      y\n"
    for awkward in ("one\n", "no end\nhere", " led\nby a space\n", "tab\there\n\n", "\nempty\n"):
        assert yaml_text({"a": awkward}) == f"a: {json.dumps(awkward)}\n"

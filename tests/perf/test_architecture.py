"""Sizes of the catalogue's models add up to what their makers publish."""

from __future__ import annotations

import pytest

from tokenworks.catalogue.records import Model
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.perf.architecture import shape_of


@pytest.mark.parametrize(
    "name",
    ["deepseek-r1", "kimi-k2.5", "glm-5", "llama-3.1-70b", "llama-3.1-8b", "gpt-oss-120b",
     "qwen3-32b", "qwen3-235b", "qwen3.5-397b", "minimax-m2.5"],
)  # fmt: skip
def test_weights_are_those_published(catalogue: Catalogue, name: str) -> None:
    model = catalogue.model(name)
    shape = shape_of(model)
    assert shape.weights == pytest.approx(model.parameters, rel=0.03)
    # Some makers count the embedding as active, and layers that draft.
    assert shape.active_weights == pytest.approx(model.parameters_active, rel=0.2)


def test_every_models_weights_add_up(catalogue: Catalogue) -> None:
    for model in catalogue.all_of(Model):
        shape = shape_of(model)
        assert shape.weights == pytest.approx(model.parameters, rel=0.03), model.name
        assert shape.active_weights <= shape.weights


def test_models_of_one_architecture_share_their_key(catalogue: Catalogue) -> None:
    one, other = catalogue.model("deepseek-r1"), catalogue.model("deepseek-v3")
    assert shape_of(one).key == shape_of(other).key
    assert shape_of(catalogue.model("kimi-k2.5")).key != shape_of(one).key


def test_windows_and_states_keep_a_long_context_small(catalogue: Catalogue) -> None:
    oss, qwen = (shape_of(catalogue.model(name)) for name in ("gpt-oss-120b", "qwen3.5-397b"))
    assert oss.cache_bytes(100_000, 2) < 0.51 * 36 * 1024 * 2 * 100_000
    assert qwen.cache_bytes(0, 2) == 45 * 64 * 128 * 128 * 4

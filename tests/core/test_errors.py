"""One tree of errors, with stable codes, and drawn as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tokenworks.core import errors
from tokenworks.core.errors import TokenworksError


def leaves(root: type[TokenworksError] = TokenworksError) -> Iterator[type[TokenworksError]]:
    children = [c for c in root.__subclasses__() if c.__module__ == errors.__name__]
    if not children:
        yield root
    for child in children:
        yield from leaves(child)


def test_codes_are_unique_and_named_after_what_happened() -> None:
    codes = [leaf.code for leaf in leaves()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", code) for code in codes)


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.__name__)
def test_the_drawing_shows_each_leaf_with_its_status_and_code(leaf: type[TokenworksError]) -> None:
    assert re.search(rf"─ {leaf.__name__} +{leaf.status} {leaf.code}\n", errors.__doc__ or "")


def test_whose_fault_it_is_decides_the_status() -> None:
    for leaf in leaves():
        caller = issubclass(leaf, errors.CallerError)
        assert (400 <= leaf.status < 500) == caller
        assert caller or 500 <= leaf.status < 600


def test_an_error_says_what_happened_and_what_to_do_next() -> None:
    error = errors.CapacityExceeded("The factory is full.", hint="Try later.", retry_after_s=3)
    assert str(error) == "The factory is full. Try later."
    assert (error.message, error.hint, error.retry_after_s) == (
        "The factory is full.",
        "Try later.",
        3,
    )
    assert str(errors.WorkerFailed("It broke off.")) == "It broke off."

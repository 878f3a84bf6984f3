"""What a request needs of the worker that serves it, what workers offer, and what agents hint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from tokenworks.core.errors import InvalidRequest

LABELS_MAX: Final = 16
"""Labels of one request, key or pool."""
ADAPTERS_MAX: Final = 256
"""Adapters of one pool."""
PRIORITY_DEFAULT: Final = 5
PRIORITY_MAX: Final = 9
"""The most urgent; 0 is the least."""
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")


class Needs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker must have to be given a request.

    Attributes:
        labels: data labels, sorted, each once: only workers that have them all may see it.
        adapter: the LoRA adapter that is to be applied; None for the model as it is.
    """

    labels: tuple[str, ...] = ()
    adapter: str | None = None


class Offers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker has beyond its model.

    Attributes:
        labels: data labels, sorted: what it may see.
        adapters: LoRA adapters that it serves, sorted.
    """

    labels: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()

    def lacks(self, needs: Needs) -> str | None:
        """The first thing that a request needs and that is not offered, in words.

        >>> Offers(labels=("eu",)).lacks(Needs(labels=("eu", "medical")))
        "the label 'medical'"
        >>> Offers().lacks(Needs(adapter="support"))
        "the adapter 'support'"
        >>> Offers(labels=("eu",)).lacks(Needs(labels=("eu",))) is None
        True
        """
        for label in needs.labels:
            if label not in self.labels:
                return f"the label {label!r}"
        if needs.adapter is not None and needs.adapter not in self.adapters:
            return f"the adapter {needs.adapter!r}"
        return None


NO_OFFERS: Final = Offers()


class Hints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent says of its request; nothing breaks if it is wrong.

    Attributes:
        output_tokens: how long it expects the answer to be.
        tool_ns: how long a tool will take after this answer, before the session goes on; None if
            it does not say.
        session_ends: no request of its session follows.
        priority: how urgent it is among those of its tenant that wait in the same tier, from 0 to
            ``PRIORITY_MAX``. It takes nothing from other tenants.
    """

    output_tokens: int | None = None
    tool_ns: int | None = None
    session_ends: bool = False
    priority: int = PRIORITY_DEFAULT


def nothing_offers(all_offers: Iterable[Offers], needs: Needs) -> str | None:
    """What no worker offers, in words; None if some worker offers all that is needed.

    Where each part is offered by somebody and all parts by nobody, it names them all.

    >>> nothing_offers([Offers(labels=("eu",)), Offers(labels=("us",))], Needs(labels=("eu", "us")))
    "the labels 'eu', 'us' together"
    """
    offers = list(all_offers)
    lacking = [each.lacks(needs) for each in offers]
    if None in lacking:
        return None
    for label in needs.labels:
        if not any(label in each.labels for each in offers):
            return f"the label {label!r}"
    adapter = needs.adapter
    if adapter is not None and not any(adapter in each.adapters for each in offers):
        return f"the adapter {adapter!r}"
    words = ", ".join(map(repr, needs.labels))
    if adapter is None:
        return f"the labels {words} together"
    return f"the adapter {adapter!r} with the labels {words}"


def words_of(text: str, what: str, words_max: int = LABELS_MAX) -> tuple[str, ...]:
    """Words that are separated by commas or spaces: sorted, each once.

    Args:
        text: as somebody wrote it.
        what: it is, for the error.
        words_max: how many there may be.

    Raises:
        InvalidRequest: one of them is no word, or there are too many.

    >>> words_of("medical, eu,eu", "labels")
    ('eu', 'medical')
    """
    return checked_words(text.replace(",", " ").split(), what, words_max)


def checked_words(given: Iterable[str], what: str, words_max: int = LABELS_MAX) -> tuple[str, ...]:
    """The same of words that stand apart."""
    words = sorted(set(given))
    for word in words:
        if not _WORD.fullmatch(word):
            raise InvalidRequest(
                f"{what} has {word[:128]!r}.",
                hint="Write up to 128 letters, digits, dots, dashes, colons and slashes.",
            )
    if len(words) > words_max:
        raise InvalidRequest(f"{what} has {len(words)} words, more than {words_max}.")
    return tuple(words)

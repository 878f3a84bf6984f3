"""Second tries: requests that two workers have, until one of them answers."""

from __future__ import annotations

from tokenworks.twin.records import Outcomes, TwinRequest
from tokenworks.twin.sequence import Sequence


def attempt_of(
    request: TwinRequest, number: int, place: int, worker: int, attempt: int
) -> Sequence:
    """One attempt of a request at a worker; see ``Sequence``."""
    return Sequence(
        number,
        place,
        worker,
        attempt,
        request.input_tokens,
        min(request.output_tokens, request.output_tokens_max),
        request.blocks,
    )


class Rivals:
    """The second of two attempts, by its request's place.

    Args:
        attempts: by place, the first one.
        outcomes: which worker has the one that counts.

    Attributes:
        of: the second one.
        since_ns: when the worker whose answer it is was sent it, of those whose second one won.
    """

    def __init__(self, attempts: list[Sequence | None], outcomes: Outcomes) -> None:
        self._attempts, self._outcomes = attempts, outcomes
        self.of: dict[int, Sequence] = {}
        self.since_ns: dict[int, int] = {}
        self._sent_ns: dict[int, int] = {}

    def add(self, sequence: Sequence, now_ns: int) -> None:
        """A second worker is sent a request."""
        place = sequence.place
        assert self._attempts[place] is not None, place
        assert place not in self.of, place
        self.of[place], self._sent_ns[place] = sequence, now_ns

    def latest(self, sequence: Sequence) -> Sequence | None:
        """The attempt with the same number, which may have moved on; None if that is over."""
        for each in (self._attempts[sequence.place], self.of.get(sequence.place)):
            if each is not None and each.attempt == sequence.attempt:
                return each
        return None

    def is_over(self, sequence: Sequence) -> bool:
        """Whether an attempt is over, as far as the driver knows; a message of it is late."""
        return self.latest(sequence) is None

    def without(self, sequence: Sequence) -> None:
        """One of the two attempts is over; the other one is the only one."""
        place = sequence.place
        rival, sent_ns = self.of.pop(place), self._sent_ns.pop(place)
        if rival.attempt != sequence.attempt:
            self._attempts[place], self._outcomes.worker[place] = rival, rival.worker
            self.since_ns[place] = sent_ns

    def loser_to(self, winner: Sequence) -> Sequence:
        """Who has not answered first; the other attempt is the only one from now on."""
        place = winner.place
        first, rival = self._attempts[place], self.of[place]
        assert first is not None, place
        loser = first if winner.attempt == rival.attempt else rival
        self.without(loser)
        return loser

    def lost_at(self, worker: int) -> list[Sequence]:
        """Attempts at a worker beside which there is another one, in the order they were sent."""
        found: list[Sequence] = []
        for place, rival in self.of.items():
            first = self._attempts[place]
            found += [each for each in (first, rival) if each and each.worker == worker]
        return found

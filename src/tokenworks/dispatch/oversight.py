"""The policy in charge, and what is done instead where it is wrong.

An operator's own policy may do anything: raise, name a worker that is not up, or answer with what
is no choice at all. Then it is overruled and the fault is counted, so that no request is lost, sent
twice or sent to nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

from tokenworks.core.ids import RequestID
from tokenworks.dispatch import pickers, policies, policy
from tokenworks.dispatch.events import Configured, Finished
from tokenworks.dispatch.fleet import Fleet
from tokenworks.dispatch.policy import Choice, MakePolicy, Policy
from tokenworks.dispatch.preemption import Displacement, is_right
from tokenworks.dispatch.prefix_index import PrefixIndex
from tokenworks.dispatch.promises import Promises
from tokenworks.dispatch.requests import Request
from tokenworks.dispatch.snapshot import Counts
from tokenworks.dispatch.workers import Worker


class Oversight:
    """Asks the policy of the settings; the plain one stands in for one that cannot take them.

    Args:
        own_policies: policies that the operator has brought, by name.
        counts: where faults are counted.

    Attributes:
        counts: see above.
    """

    __slots__ = ("_index", "_name", "_own", "_plain", "_policy", "_trusted", "counts")

    def __init__(self, own_policies: Mapping[str, MakePolicy], counts: Counts) -> None:
        self._own = dict(own_policies)
        self._charge(policies.make("promises", {}))
        self._name = ""  # that of the settings; empty while another stands in for it
        self._trusted = True  # what comes with the package answers with choices
        self._index = PrefixIndex(0)
        self.counts = counts

    def configure(self, configured: Configured, index: PrefixIndex) -> None:
        """Put the policy of the settings in charge; the plain one if an own one raises."""
        name, self._index = configured.policy.name, index
        try:
            if self._name != name:
                self._charge(policies.make(name, self._own))
                self._name = name
            self._policy.configure(configured, index)
            self._trusted = name not in self._own
        except Exception:
            if name not in self._own:
                raise
            self.counts.policy_faults += 1
            self._charge(policies.make("promises", {}))
            self._name = ""
            self._policy.configure(configured, index)
            self._trusted = True

    def _charge(self, policy: Policy) -> None:
        """Put a policy in charge; the plain one learns nothing, and is asked without a detour."""
        self._policy = policy
        self._plain = policy if type(policy) is Promises else None

    def record(self) -> bytes:
        """What the policy remembers; an own one that cannot say so remembers nothing."""
        if self._name not in self._own:
            return self._policy.record()
        try:
            data: object = self._policy.record()
        except Exception:  # noqa: BLE001 - an operator's own policy may do anything
            return b""
        return data if isinstance(data, bytes) else b""

    def restore(self, configured: Configured, data: bytes) -> None:
        """Give the policy its memory back; an own one that cannot take it begins anew."""
        try:
            self._policy.restore(data)
        except Exception:
            if self._name not in self._own:
                raise
            self._name = ""
            self.configure(configured, self._index)

    def arrived(self, fleet: Fleet, request: Request, now_ns: int) -> None:
        """Tell the policy of a newcomer, before that is placed or queued."""
        if self._plain is not None:
            return
        try:
            self._policy.arrived(fleet, request, now_ns)
        except Exception:  # noqa: BLE001 - an operator's own policy may do anything
            self.counts.policy_faults += 1

    def finished(self, fleet: Fleet, worker: Worker, request: Request, event: Finished) -> None:
        """Tell the policy of an answer that is whole and off its worker."""
        if self._plain is not None:
            return
        try:
            self._policy.finished(fleet, worker, request, event)
        except Exception:  # noqa: BLE001 - an operator's own policy may do anything
            self.counts.policy_faults += 1

    def place(self, fleet: Fleet, request: Request, now_ns: int) -> Choice | None:
        """Where the policy wants a newcomer; where load wants it, if the policy is wrong."""
        try:
            plain = self._plain
            if plain is None:
                choice = self._policy.place(fleet, request, now_ns)
            else:
                choice = plain.place(fleet, request, now_ns)
            if choice is None:
                return None
            right = (self._trusted or policy.is_well_formed(choice)) and pickers.is_possible(
                fleet, request, choice
            )
        except Exception:  # noqa: BLE001 - an operator's own policy may do anything
            right = False
        if right:
            return choice
        self.counts.policy_faults += 1
        return _by_load(fleet, request)

    def drain(self, fleet: Fleet, now_ns: int) -> Iterator[tuple[Request, Choice]]:
        """Who of those that wait, of whom there is one, goes now, and where.

        By load, if the policy is wrong. Each is sent before the next one is asked for.
        """
        wanted: Iterator[tuple[Request, Choice]] | None = None
        with contextlib.suppress(Exception):  # an operator's own policy may do anything
            wanted = iter(self._policy.drain(fleet, now_ns))
        if wanted is None:
            yield from self._overruled(fleet)
            return
        while fleet.queued:
            try:
                request, choice = next(wanted)
                right = (
                    fleet.lines[request.rank].has(request)
                    and (self._trusted or policy.is_well_formed(choice))
                    and pickers.is_possible(fleet, request, choice)
                )
            except StopIteration:
                return
            except Exception:  # noqa: BLE001 - an operator's own policy may do anything
                right = False
            if not right:
                yield from self._overruled(fleet)
                return
            yield request, choice

    def displace(
        self, fleet: Fleet, request: Request, now_ns: int, requests: Mapping[RequestID, Request]
    ) -> Displacement | None:
        """Whose place a request that waits may take, if the policy looks at that and is right."""
        try:
            displace = getattr(self._policy, "displace", None)
            if displace is None:
                return None
            found = displace(fleet, request, now_ns, requests)
            right = found is None or is_right(fleet, request, found, requests)
        except Exception:  # noqa: BLE001 - an operator's own policy may do anything
            right = False
        if right:
            return cast("Displacement | None", found)
        self.counts.policy_faults += 1
        return None

    def _overruled(self, fleet: Fleet) -> Iterator[tuple[Request, Choice]]:
        """Count a policy's fault, and let one of those that wait go by load: nobody starves."""
        self.counts.policy_faults += 1
        request = next(line.head() for line in reversed(fleet.lines) if len(line))
        choice = _by_load(fleet, request)
        if choice is not None:
            yield request, choice


def _by_load(fleet: Fleet, request: Request) -> Choice | None:
    candidates = pickers.permitted(fleet, request, fleet.open)
    if not candidates:
        return None
    worker = fleet.first(fleet.least_loaded(candidates))
    return Choice(worker, "least_loaded", 0, request.rank, candidates.bit_count())

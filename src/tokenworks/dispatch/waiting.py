"""The lines in which requests wait.

Fairness: there is one line per model and tier. Inside it each tenant has its own line, first come
first served, and the tenants take turns: who was served goes to the end of the rotation. A tenant
with a thousand requests waiting delays another tenant of the tier by one request, not a thousand.

A tenant's turn goes to the most urgent of its requests, by what its agents hint, and of equals to
the first. So a hint moves a request before others of its own tenant and tier, and nobody else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tokenworks.core.ids import RequestID, TenantID
from tokenworks.core.needs import PRIORITY_DEFAULT, PRIORITY_MAX
from tokenworks.dispatch.requests import Request

Watched = list[list[tuple[int, RequestID]]]
"""By tier rank: requests that ``hedging`` watches and when each is due, the first one first."""
_BEGUN: Final = PRIORITY_MAX + 1
"""What a worker broke off, and who made room, go before all others of their tenant."""

_Turns = dict[int, OrderedDict[RequestID, Request]]
"""One tenant's requests by urgency, first come first."""


class Line:
    """Requests of one model and tier that wait."""

    __slots__ = ("_late", "_order", "_tenants")

    def __init__(self) -> None:
        self._order: OrderedDict[RequestID, Request] = OrderedDict()
        self._late: OrderedDict[RequestID, Request] = OrderedDict()
        self._tenants: OrderedDict[TenantID, _Turns] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def has(self, request: Request) -> bool:
        """Whether this very request waits here."""
        return self._order.get(request.request) is request

    def punctual(self) -> bool:
        """Whether some wait that were not set late."""
        return bool(self._tenants)

    def set_late(self, request: Request) -> None:
        """Take a request out of its tenant's turn: it waits with the others that are late."""
        self._leave_tenant(request)
        if request.tenant in self._tenants:
            self._tenants.move_to_end(request.tenant)
        self._late[request.request] = request

    def late_head(self) -> Request | None:
        """Who was set late first."""
        return next(iter(self._late.values()), None)

    def late(self) -> list[RequestID]:
        """All that were set late, the first one first."""
        return list(self._late)

    def append(self, request: Request) -> None:
        """Queue a newcomer behind all others of its tenant that are as urgent as it is.

        A new tenant is last in turn.
        """
        self._order[request.request] = request
        turns = self._tenants.get(request.tenant)
        if turns is None:
            turns = self._tenants[request.tenant] = {}
        turns.setdefault(_urgency(request), OrderedDict())[request.request] = request

    def put_back(self, request: Request) -> None:
        """Queue a request that a worker broke off before all others; its tenant is next."""
        self.append(request)
        self._order.move_to_end(request.request, last=False)
        alike = self._tenants[request.tenant][_urgency(request)]
        alike.move_to_end(request.request, last=False)
        self._tenants.move_to_end(request.tenant, last=False)

    def head(self) -> Request:
        """Who is next in turn; if all were set late, the first of them."""
        return next(self.heads())

    def oldest(self) -> Request:
        """Who was queued first of all."""
        return next(iter(self._order.values()))

    def heads(self) -> Iterator[Request]:
        """The most urgent of each tenant, next in turn first; then those that were set late."""
        for turns in self._tenants.values():
            yield next(iter(turns[max(turns)].values()))
        yield from self._late.values()

    def serve(self, request: Request) -> None:
        """Take out a request that is sent; its tenant goes to the end of the rotation."""
        self.remove(request)
        if request.tenant in self._tenants:
            self._tenants.move_to_end(request.tenant)

    def remove(self, request: Request) -> None:
        """Take out a request that will not be sent; the rotation stays."""
        del self._order[request.request]
        if self._late.pop(request.request, None) is None:
            self._leave_tenant(request)

    def _leave_tenant(self, request: Request) -> None:
        turns, urgency = self._tenants[request.tenant], _urgency(request)
        alike = turns[urgency]
        del alike[request.request]
        if not alike:
            del turns[urgency]
            if not turns:
                del self._tenants[request.tenant]

    def requests(self) -> list[Request]:
        """All that wait, oldest first."""
        return list(self._order.values())

    def rotation(self) -> list[TenantID]:
        """Tenants that wait, next in turn first."""
        return list(self._tenants)

    @classmethod
    def gathered(cls, lines: Sequence[Line], keep: Callable[[Request], bool]) -> Line:
        """A line of those of some lines that are to be kept.

        Who came first is first where they are of several; each tenant's turn is its last one.
        """
        requests = [each for line in lines for each in line.requests() if keep(each)]
        if len(lines) > 1:
            requests.sort(key=lambda request: request.arrived_ns)
        names = {request.request for request in requests}
        late = {name: None for line in lines for name in line.late() if name in names}
        tenants = {each.tenant for each in requests if each.request not in late}
        rotation = [name for line in lines for name in line.rotation() if name in tenants]
        return cls.restore(requests, rotation, list(late))

    @classmethod
    def restore(
        cls, requests: list[Request], rotation: list[TenantID], late: list[RequestID]
    ) -> Line:
        """The line that held these, oldest first, with this rotation and these set late."""
        line = cls()
        for request in requests:
            line.append(request)
        for name in late:
            line.set_late(line._order[name])
        for tenant in rotation:
            line._tenants.move_to_end(tenant)
        return line


def _urgency(request: Request) -> int:
    """How urgent a request is; the same for as long as it waits."""
    if request.attempt:
        return _BEGUN
    return PRIORITY_DEFAULT if request.hints is None else request.hints.priority

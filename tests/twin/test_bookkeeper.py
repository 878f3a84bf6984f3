"""Reservations and postings of a modelled run, and a store that is late or refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.twin.factory import MODEL, request, scenario, worker
from tests.twin.test_twin_driver import R0, Faults, ends
from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import LimitID, RequestID
from tokenworks.core.units import NS_PER_MS
from tokenworks.dispatch.events import Arrived, Withdrawn
from tokenworks.ledger.entries import Posted, Reserved, Voided
from tokenworks.ledger.quota_records import Limit, NodeID
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.driver import run
from tokenworks.twin.kinds import twin_book
from tokenworks.twin.money_checks import check_money, check_quotas
from tokenworks.twin.records import End, RunResult, Scenario, TwinRequest
from tokenworks.twin.store import Answer, Store

MS = NS_PER_MS


def priced(*specs: Any, **changes: Any) -> Scenario:
    """A factory with prices for its model."""
    book = twin_book()
    book = msgspec.structs.replace(book, prices={MODEL: next(iter(book.prices.values()))})
    return msgspec.structs.replace(scenario(*specs, **changes), book=book)


def booked(
    requests: list[TwinRequest],
    *faults: Any,
    answers: list[Answer] | None = None,
    limits: tuple[Limit, ...] = (),
    **changes: Any,
) -> tuple[RunResult, Bookkeeper, Faults]:
    """A run whose ledger's store answers as told, and then at once; nothing may be wrong."""
    left: Iterator[Answer] = iter(answers or [])
    books = Bookkeeper(Store(lambda _: next(left, Answer())), limits)
    hooks = Faults(requests, *faults)
    factory = priced(worker(capital_udollars_per_hour=10**8), **changes)
    result = run(factory, requests, hooks=hooks, bookkeeper=books)
    assert check_money(books, factory, requests, result.outcomes, 0) == []
    assert check_quotas(books, 0) == []
    return result, books, hooks


def stored(books: Bookkeeper, kind: type[Any]) -> list[Any]:
    return [each for each in books.store.entries.values() if isinstance(each, kind)]


def test_an_answer_is_reserved_and_billed_as_it_was_made() -> None:
    _, books, _ = booked([request(0), request(1, output_tokens_max=21)])
    assert len(stored(books, Reserved)) == 2
    posted = stored(books, Posted)
    assert [each.usage.completion_tokens for each in posted] == [20, 20]
    assert [each.ending for each in posted] == ["done", "done"]
    assert posted[0].worker_ns > 40 * MS
    assert posted[0].capital_nanodollars > 0
    assert posted[0].charged_nanodollars > 0


def test_who_leaves_pays_for_what_came_and_who_fails_nobody_for_nothing() -> None:
    requests = [request(n, at_ns=0, output_tokens=40) for n in range(3)]
    requests.append(request(3, at_ns=60 * MS))
    _, books, _ = booked(
        requests,
        (50 * MS, lambda driver: driver.withdraw(R0)),
        (50 * MS, lambda driver: driver.fail(RequestID("r1"))),
        (61 * MS, lambda driver: driver.withdraw(RequestID("r3"))),
    )
    endings = {each.request: each.ending for each in stored(books, Posted)}
    assert endings == {"r0": "disconnected", "r1": "failed", "r2": "done"}
    assert {each.request: each.reason for each in stored(books, Voided)} == {"r3": "withdrawn"}
    left = next(each for each in stored(books, Posted) if each.request == R0)
    assert 10 < left.usage.completion_tokens < 25


def test_what_a_quota_does_not_hold_never_comes_to_the_dispatcher() -> None:
    limit = Limit(
        limit=LimitID("l"), node=NodeID("tenant:t"), unit="tokens", period="lifetime", amount=250
    )
    requests = [request(n, at_ns=n, output_tokens_max=20) for n in range(4)]
    result, books, hooks = booked(requests, limits=(limit,))
    assert ends(result) == [End.DONE, End.DONE, End.REJECTED, End.REJECTED]
    assert books.refused == {"quota_exceeded": 2}
    assert len(hooks.of(Arrived)) == 2
    [window] = books.ledger.windows()
    assert (window.used, window.held) == (240, 0)


FAILS = Answer(fails=True)
LATE = Answer(delay_ns=5 * MS)


def test_while_the_store_is_in_trouble_requests_wait_for_it() -> None:
    requests = [request(n, at_ns=n * MS) for n in range(3)]
    result, books, hooks = booked(requests, answers=[FAILS, LATE, LATE])
    assert ends(result) == [End.DONE, End.DONE, End.DONE]
    assert [now_ns for now_ns, _ in hooks.of(Arrived)] == [0, 6 * MS, 7 * MS]
    assert [event.arrived_ns for _, event in hooks.of(Arrived)] == [0, MS, 2 * MS]
    assert list(result.outcomes.queued_ns) == [-1, 6 * MS, 7 * MS]
    assert books.unbilled == []


def test_what_cannot_be_held_while_the_store_is_in_trouble_is_refused() -> None:
    requests = [request(n, at_ns=n * MS) for n in range(2)]
    late = Answer(delay_ns=5 * MS, fails=True)
    result, books, hooks = booked(requests, answers=[FAILS, late])
    assert ends(result) == [End.DONE, End.REJECTED]
    assert len(hooks.of(Arrived)) == 1
    assert {each.request: each.reason for each in stored(books, Voided)} == {"r1": "rejected"}


def test_a_client_may_leave_while_its_request_waits_for_the_store() -> None:
    requests = [request(n, at_ns=n * MS) for n in range(2)]
    leaves = (3 * MS, lambda driver: driver.withdraw(RequestID("r1")))
    result, books, hooks = booked(requests, leaves, answers=[FAILS, LATE])
    assert ends(result) == [End.DONE, End.WITHDRAWN]
    assert len(hooks.of(Arrived)) == 1
    assert hooks.of(Withdrawn) == []
    assert {each.request: each.reason for each in stored(books, Voided)} == {"r1": "withdrawn"}


def test_an_answer_that_cannot_be_stored_is_not_billed() -> None:
    result, books, _ = booked([request(0)], answers=[Answer(), FAILS])
    assert ends(result) == [End.DONE]
    assert books.unbilled == [R0]
    assert stored(books, Posted) == []
    assert [each.reason for each in stored(books, Voided)] == ["failed"]


def test_a_reservation_that_failed_a_moment_before_is_stored_with_its_answer() -> None:
    short = request(0, output_tokens=1)
    # The reservation fails while the posting is on its way.
    late = Answer(delay_ns=4 * MS, fails=True)
    _, books, _ = booked([short], answers=[late, Answer(delay_ns=9 * MS)])
    assert len(stored(books, Posted)) == 1
    # And again: it is then stored by housekeeping, and the hold given back.
    _, books, _ = booked([short], answers=[late, Answer(delay_ns=9 * MS), FAILS])
    assert books.unbilled == [R0]
    assert len(stored(books, Voided)) == 1


@pytest.mark.parametrize("nth", range(6))
def test_whatever_is_asked_again_changes_nothing(nth: int) -> None:
    requests = [request(n, at_ns=n) for n in range(3)]
    answers = [Answer(asked_again=number == nth) for number in range(6)]
    _, books, _ = booked(requests, answers=answers)
    assert len(books.store.entries) == 6


@pytest.mark.parametrize("nth", range(9))
@pytest.mark.parametrize("times", [1, 2, 5])
def test_any_append_may_fail(nth: int, times: int) -> None:
    requests = [request(n, at_ns=n * MS) for n in range(4)]
    requests += [request(9, at_ns=400 * MS)]
    answers = [Answer(fails=nth <= number < nth + times) for number in range(20)]
    result, books, _ = booked(requests, answers=answers)
    assert End.OPEN not in ends(result)
    assert len(stored(books, Posted)) + len(books.unbilled) >= 3


def test_a_store_keeps_its_rules() -> None:
    _, books, _ = booked([request(0)])
    reserved, posted = books.store.entries.values()
    store = Store()
    with pytest.raises(LedgerCorrupt, match="was not reserved"):
        store.append([posted])
    store.append([reserved, posted])
    store.append([reserved])
    other = msgspec.structs.replace(posted, at_unix_ns=7)
    with pytest.raises(LedgerCorrupt, match="contradicts"):
        store.append([other])
    assert list(store.entries.values()) == [reserved, posted]


def test_appends_are_stored_one_after_the_other() -> None:
    delays = iter([5, 0, 0])
    store = Store(lambda _: Answer(delay_ns=next(delays)))
    assert [store.ask(now_ns).delay_ns for now_ns in (0, 2, 9)] == [5, 3, 0]


def test_prefill_apart_is_billed_where_the_answer_was_made() -> None:
    links = {"kv_bytes_per_token": 1_000, "link_bytes_per_s": 10**8}
    factory = priced(worker("p", role="prefill"), worker("d", role="decode", **links))
    requests = [request(0, output_tokens=30), request(1, output_tokens=30)]
    books = Bookkeeper(Store())
    leaves = (30 * MS, lambda driver: driver.withdraw(R0))
    result = run(factory, requests, hooks=Faults(requests, leaves), bookkeeper=books)
    assert check_money(books, factory, requests, result.outcomes, 0) == []
    assert {each.worker for each in stored(books, Posted)} == {"d"}

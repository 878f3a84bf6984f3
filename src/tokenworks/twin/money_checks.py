"""What must hold of the money in every run that keeps a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tokenworks.core.errors import LedgerCorrupt
from tokenworks.core.ids import RequestID
from tokenworks.ledger.accounts import Accounts
from tokenworks.ledger.entries import Entry, Posted, Reserved, Voided
from tokenworks.ledger.ledger import Ledger
from tokenworks.ledger.quotas import nodes_of
from tokenworks.twin.bookkeeper import Bookkeeper
from tokenworks.twin.records import NEVER, End, Outcomes, Scenario, TwinRequest, Violation
from tokenworks.twin.report import judge


def check_quotas(bookkeeper: Bookkeeper, at_ns: int) -> list[Violation]:
    """No limit is overdrawn, and what is held is what open reservations hold.

    One that was lowered to less than it had used and held has no more of that than it had.
    """
    ledger, over = bookkeeper.ledger, bookkeeper.over
    found = [
        Violation.of(
            "quota_kept",
            at_ns,
            window.limit.limit,
            used=window.used,
            held=window.held,
            allowed=window.allowed,
        )
        for window in ledger.windows()
        if window.free < 0 and window.used + window.held > over.get(window.limit.limit, 0)
    ]
    try:
        ledger.check()
    except LedgerCorrupt as error:
        found.append(Violation.of("holds_counted", at_ns, "ledger", why=str(error)[:200]))
    return found


def check_money(
    bookkeeper: Bookkeeper,
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    outcomes: Outcomes,
    at_ns: int,
) -> list[Violation]:
    """Compare entries with what was delivered, with each other and with the ledger.

    Args:
        bookkeeper: after the run.
        scenario: what was run.
        requests: the workload.
        outcomes: what came of it.
        at_ns: when the run ended.
    """
    entries = list(bookkeeper.store.entries.values())
    found = [
        Violation.of("reservation_closed", at_ns, hold.request, attempt=hold.attempt)
        for hold in bookkeeper.ledger.open_holds()
    ]
    found += _settled_once(entries, at_ns)
    found += _balanced(entries, at_ns)
    found += _used(bookkeeper.ledger, entries, at_ns)
    posted = {each.request: each for each in entries if isinstance(each, Posted)}
    found += _keys_honoured(bookkeeper, entries, at_ns)
    found += _metered(posted, set(bookkeeper.unbilled), requests, outcomes)
    books = {book.price_id: book for book in bookkeeper.books.values()}
    for price_id, book in books.items():
        priced = {name: each for name, each in posted.items() if each.price_id == price_id}
        found += _billed(priced, msgspec.structs.replace(scenario, book=book), requests, outcomes)
    found += _priced(bookkeeper, posted, requests, at_ns)
    return found


def _keys_honoured(
    bookkeeper: Bookkeeper, entries: Sequence[Entry], at_ns: int
) -> Iterator[Violation]:
    """Nothing is reserved with a key after it was revoked."""
    for entry in entries:
        if isinstance(entry, Reserved):
            revoked = bookkeeper.revoked_unix_ns.get(entry.payer.tenant)
            if revoked is not None and entry.at_unix_ns > revoked:
                yield Violation.of("key_honoured", at_ns, entry.request, revoked_unix_ns=revoked)


def _priced(
    bookkeeper: Bookkeeper,
    posted: dict[RequestID, Posted],
    requests: Sequence[TwinRequest],
    at_ns: int,
) -> Iterator[Violation]:
    """Each answer is billed by the prices that held when its request came."""
    for place, book in bookkeeper.books.items():
        entry = posted.get(requests[place].request)
        if entry is not None and entry.price_id != book.price_id:
            numbers = {"billed_by": entry.price_id, "held": book.price_id}
            yield Violation.of("price_kept", at_ns, entry.request, **numbers)


def _settled_once(entries: Sequence[Entry], at_ns: int) -> Iterator[Violation]:
    """What was stored of each reservation is one settlement; and all of it can be read again."""
    reserved = [each.request for each in entries if isinstance(each, Reserved)]
    settled = [each.request for each in entries if isinstance(each, Posted | Voided)]
    for request in sorted({*reserved} ^ {*settled}):
        numbers = {"reserved": reserved.count(request), "settled": settled.count(request)}
        yield Violation.of("reservation_closed", at_ns, request, **numbers)
    again = Ledger("again")
    try:
        for entry in entries:
            again.apply(entry)
    except LedgerCorrupt as error:
        yield Violation.of("entries_rebuild", at_ns, "ledger", why=str(error)[:200])


def _balanced(entries: Sequence[Entry], at_ns: int) -> Iterator[Violation]:
    accounts = Accounts()
    for entry in entries:
        accounts.move(entry.transfers())
    try:
        accounts.check()
    except LedgerCorrupt as error:
        yield Violation.of("debits_are_credits", at_ns, "accounts", why=str(error)[:200])


def _used(ledger: Ledger, entries: Sequence[Entry], at_ns: int) -> Iterator[Violation]:
    """Each limit has used what the stored postings under it come to, and holds nothing."""
    for window in ledger.windows():
        limit, used = window.limit, 0
        for entry in entries:
            if (
                isinstance(entry, Posted)
                and entry.ending != "failed"
                and limit.node in nodes_of(entry.payer)
                and limit.tier in (None, entry.tier_asked)
                and limit.tier in (None, entry.tier_delivered)
                and entry.reserved_unix_ns >= window.start_unix_ns
            ):
                tokens = limit.unit == "tokens"
                used += entry.counted_tokens if tokens else entry.paid_nanodollars
        if window.used != used or window.held:
            numbers = {"used": window.used, "posted": used, "held": window.held}
            yield Violation.of("quota_counted", at_ns, limit.limit, **numbers)


def _metered(
    posted: dict[RequestID, Posted],
    unbilled: set[RequestID],
    requests: Sequence[TwinRequest],
    outcomes: Outcomes,
) -> Iterator[Violation]:
    """Tokens metered are tokens delivered."""
    for place, request in enumerate(requests):
        entry, at_ns = posted.get(request.request), outcomes.finished_ns[place]
        end, made = outcomes.end[place], outcomes.output_tokens[place]
        if entry is None:
            if end == End.DONE and request.request not in unbilled:
                yield Violation.of("tokens_metered", at_ns, request.request, made=made, metered=0)
            continue
        metered = entry.usage.completion_tokens
        answered = outcomes.first_token_ns[place] != NEVER
        # Whoever left has not had what was made until the worker heard of it.
        right = metered == made if end == End.DONE else metered <= made
        if not (
            right and answered and metered and entry.usage.prompt_tokens == request.input_tokens
        ):
            numbers = {"made": made, "metered": metered, "prompt": entry.usage.prompt_tokens}
            yield Violation.of("tokens_metered", at_ns, request.request, **numbers)


def _billed(
    posted: dict[RequestID, Posted],
    scenario: Scenario,
    requests: Sequence[TwinRequest],
    outcomes: Outcomes,
) -> Iterator[Violation]:
    """Whole answers are billed as the report judges them."""
    answers = judge(scenario, requests, outcomes)
    for place, request in enumerate(requests):
        entry = posted.get(request.request)
        if entry is None or outcomes.end[place] != End.DONE:
            continue
        billed = (
            entry.charged_nanodollars,
            entry.credited_nanodollars,
            entry.ad_income_nanodollars,
        )
        judged = (answers.charged[place], answers.credited[place], answers.ads[place])
        if billed != judged or entry.tier_delivered is not answers.delivered[place]:
            numbers = {"billed": str(billed), "judged": str(judged)}
            at_ns = outcomes.finished_ns[place]
            yield Violation.of("billed_as_judged", at_ns, request.request, **numbers)

"""A batch's way: no end is left, time does not go back, and each step leads on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.batches import (
    ENDS,
    NEXT,
    Batch,
    BatchStatus,
    may_move,
    moved,
    next_step,
    unanswered,
)
from tokenworks.core.ids import BatchID, FileID, KeyID, TenantID

S = BatchStatus
T0 = 1_000


def batch(status: BatchStatus = S.VALIDATING, expires_unix_ns: int = T0 + 100) -> Batch:
    return Batch(
        id=BatchID("b"),
        tenant=TenantID("acme"),
        key=KeyID("k"),
        endpoint="/v1/chat/completions",
        input_file=FileID("f"),
        metadata={},
        status=status,
        at={S.VALIDATING: T0},
        expires_unix_ns=expires_unix_ns,
    )


def test_the_table_names_every_status_and_every_way_ends() -> None:
    assert set(NEXT) == set(S)
    assert {S.FAILED, S.COMPLETED, S.EXPIRED, S.CANCELLED} == ENDS
    reached = {S.VALIDATING}
    for _ in S:
        reached |= {to for status in reached for to in NEXT[status]}
    assert reached == set(S)
    # No way leads back: from each status the longest way has an end.
    longest = dict.fromkeys(S, 0)
    for _ in range(len(S) + 1):
        longest = {s: 1 + max((longest[to] for to in NEXT[s]), default=-1) for s in S}
    assert max(longest.values()) == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5_000)), max_size=6))
def test_a_batch_that_moves_keeps_its_times_in_order(moves: list[tuple[int, int]]) -> None:
    now = batch()
    for choice, unix_ns in moves:
        following = sorted(NEXT[now.status])
        if not following:
            break
        to = following[choice % len(following)]
        before, now = now, moved(now, to, unix_ns)
        assert now.status is to
        assert now.at == {**before.at, to: now.at[to]}
        assert now.at[to] == max(unix_ns, *before.at.values())
        assert now.created_unix_ns == T0


def test_a_move_that_the_table_lacks_is_a_mistake_of_ours() -> None:
    assert may_move(S.CANCELLING, S.CANCELLED)
    with pytest.raises(AssertionError):
        moved(batch(S.COMPLETED), S.CANCELLING, T0)


@given(
    st.sampled_from(S),
    st.integers(0, 2 * T0),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_what_is_to_be_done(status: BatchStatus, unix_ns: int, waiting: int, staged: int) -> None:
    step = next_step(batch(status), unix_ns, waiting, staged)
    if status is S.IN_PROGRESS:
        assert (step == "run") == (waiting + staged > 0 and unix_ns < T0 + 100)
        assert step in ("run", "finalize")
    elif status is S.VALIDATING:
        assert step == "validate"
    elif status in ENDS or staged:
        assert step is None  # what is about to be billed is neither lost nor told as unbilled
    elif status is S.CANCELLING:
        assert step == "cancel"
    else:
        assert step == ("expire" if waiting else "complete")


@pytest.mark.parametrize("status", [S.EXPIRED, S.CANCELLED])
def test_a_line_that_its_batch_has_ended_before_says_so(status: BatchStatus) -> None:
    line = json.loads(unanswered(batch(status), 3, "a"))
    assert (line["id"], line["custom_id"], line["response"]) == ("batch_req_b_3", "a", None)
    assert line["error"]["code"] == f"batch_{status}"
    assert str(status) in line["error"]["message"]

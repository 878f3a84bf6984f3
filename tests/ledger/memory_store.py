"""A ledger store that forgets everything at the end of the process.

Several stores may share one ``Memory``, as several processes share one database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized

import msgspec

from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, LedgerUnavailable
from tokenworks.core.ids import KeyID, LimitID, PoolID, PriceID
from tokenworks.ledger.block_record import Block
from tokenworks.ledger.blocks import GENESIS, decode_entries, encode_entries, hash_of
from tokenworks.ledger.entries import CostAccrued, Entry, Reserved
from tokenworks.ledger.extras import Extra, Use, limit_states, uses
from tokenworks.ledger.leases import Counted, Shortage, WindowUse, by_node, grant, split
from tokenworks.ledger.quota_records import UNIX_NS_MAX, KeyRecord, Limit, LimitState, NodeID
from tokenworks.ledger.rollup import PayerNames, RollupRow, is_of, merged
from tokenworks.ledger.store_port import Told
from tokenworks.ledger.summing import Rollup


class Memory:
    """What would be in the database."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.entries: dict[tuple[str, int, str], tuple[str, Entry]] = {}
        self.seen_unix_ns: dict[str, int] = {}
        self.adopted: dict[str, str] = {}
        """Who has taken over from whom."""
        self.keys: dict[KeyID, KeyRecord] = {}
        self.limits: dict[LimitID, Limit] = {}
        self.extras: dict[str, Extra] = {}
        self.books: dict[PriceID, str] = {}
        self.costs: dict[tuple[PoolID, str], tuple[str, int]] = {}
        self.version = 0
        self.leases: dict[tuple[LimitID, int], dict[str, list[int]]] = {}
        """By window and owner, what was granted and what is used of it."""
        self.wanted: dict[tuple[LimitID, int], int] = {}


class MemoryStore:
    def __init__(self, owner: str = "me", memory: Memory | None = None) -> None:
        self.owner = owner
        self._memory = memory or Memory()
        self._leases = False
        self.patient: list[bool] = []
        self._counted: Counted | None = None

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self.append_now(entries)
        except (LedgerCorrupt, LedgerUnavailable) as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def keep(
        self, entries: Sequence[Entry], told: Told, held_back: Sized = (), *, patient: bool = False
    ) -> None:
        self.patient.append(patient)
        stored = self.append(entries)
        stored.add_done_callback(lambda future: told(entries, future.exception()))

    def append_now(self, entries: Sequence[Entry]) -> None:
        memory = self._memory
        self._still_ours()
        after, fresh = dict(memory.entries), []
        for entry in entries:
            place = (entry.request, entry.attempt, entry.phase)
            if place in after:
                if after[place][1] != entry:
                    raise LedgerCorrupt(f"{entry!r} contradicts what is stored.")
                continue
            if entry.phase == "settle" and (*place[:2], "reserve") not in after:
                raise LedgerCorrupt(f"{entry!r} settles what was not reserved.")
            after[place] = (self.owner, entry)
            fresh.append(entry)
        if fresh:
            seen = memory.seen_unix_ns.get(self.owner, 0)
            self.alive(max(seen, fresh[-1].at_unix_ns))
            memory.entries = after
            for entry in fresh:
                for place, (holder, _) in memory.costs.items():
                    if isinstance(entry, CostAccrued) and (holder, entry.pool) == (
                        self.owner,
                        place[0],
                    ):
                        memory.costs[place] = (holder, entry.until_unix_ns)
            own, beyond = split(fresh, by_node(memory.limits.values()), self._counted)
            for place, amount in own.items() if self._leases else ():
                self._lease_of(*place)[1] += amount
            for place, amount in beyond.items() if self._leases else ():
                row = memory.leases.setdefault(place, {}).setdefault("-", [0, 0])
                row[:] = [each + amount for each in row]
            memory.blocks.append(self._block(fresh))

    def _block(self, entries: list[Entry]) -> Block:
        blocks = self._memory.blocks
        fields = {
            "seq": len(blocks) + 1,
            "owner": self.owner,
            "number": sum(block.owner == self.owner for block in blocks) + 1,
            "at_unix_ns": entries[-1].at_unix_ns,
            "count": len(entries),
            "payload": encode_entries(entries),
        }
        return Block(hash=hash_of(blocks[-1].hash if blocks else GENESIS, **fields), **fields)

    def _still_ours(self) -> None:
        if self.owner in self._memory.adopted:
            raise LedgerUnavailable(f"Another process has taken over from {self.owner!r}.")

    def alive(self, unix_ns: int) -> None:
        self._still_ours()
        self._memory.seen_unix_ns[self.owner] = unix_ns

    def take_over(self, seen_before_unix_ns: int) -> list[Reserved]:
        memory = self._memory
        self.alive(memory.seen_unix_ns.get(self.owner, seen_before_unix_ns))
        dead = {
            owner
            for owner, seen_unix_ns in memory.seen_unix_ns.items()
            if seen_unix_ns < seen_before_unix_ns
            and owner != self.owner
            and owner not in memory.adopted
        }
        memory.adopted |= dict.fromkeys(dead, self.owner)
        for owners in memory.leases.values():
            for owner in dead & owners.keys():
                owners[owner][0] = owners[owner][1]
        return [
            entry
            for owner, entry in memory.entries.values()
            if isinstance(entry, Reserved)
            and self._heir(owner, dead)
            and (entry.request, entry.attempt, "settle") not in memory.entries
        ]

    def _heir(self, owner: str, dead: set[str]) -> bool:
        """Whether what an owner reserved belongs to one of the dead."""
        while owner not in dead and owner in self._memory.adopted:
            owner = self._memory.adopted[owner]
        return owner in dead

    def latest_unix_ns(self) -> int:
        return max(self._memory.seen_unix_ns.values(), default=0)

    def blocks(self, after_seq: int = 0) -> Iterator[Block]:
        return iter(self._memory.blocks[after_seq:])

    def rollups(
        self,
        since_unix_ns: int | None = None,
        until_unix_ns: int | None = None,
        *,
        by_hour: bool = False,
        by_payer: bool = True,
        by_agent: bool = False,
        by_run: bool = False,
        of: PayerNames | None = None,
    ) -> list[RollupRow]:
        since = since_unix_ns or 0
        until = UNIX_NS_MAX if until_unix_ns is None else until_unix_ns
        made = Rollup()
        for block in self._memory.blocks:
            for entry in decode_entries(block):
                made.add(entry)
        return merged(
            row.coarse(by_hour=by_hour, by_payer=by_payer, by_agent=by_agent, by_run=by_run)
            for row in made.rows()
            if since <= row.start_unix_ns < until and (of is None or is_of(row.payer, of))
        )

    def _used(self, since: int, until: int, runs: Collection[NodeID]) -> list[Use]:
        return list(uses(self.rollups(since, until, by_run=True), runs))

    def limit_states(self, unix_ns: int) -> list[LimitState]:
        held = {
            place: sum(max(0, granted - used) for granted, used in owners.values())
            for place, owners in self._memory.leases.items()
        }
        return limit_states(self.load_limits(), self.load_extras(), self._used, unix_ns, held)

    def lease(
        self, shortages: Sequence[Shortage], unix_ns: int
    ) -> list[int] | tuple[Shortage, WindowUse | None]:
        self._still_ours()
        self._memory.seen_unix_ns.setdefault(self.owner, unix_ns)
        self._leases = True
        states = {
            (each.limit.limit, each.start_unix_ns): each for each in self.limit_states(unix_ns)
        }
        amounts: list[int] = []
        refused: list[tuple[Shortage, WindowUse]] = []
        for short in shortages:
            state = states.get(short[:2])
            if state is None:
                return short, None
            use = self._use(state)
            amount = grant(use, short.missing)
            if amount is None:
                self._memory.wanted[short[:2]] = unix_ns
                refused.append((short, use))
            else:
                amounts.append(amount)
        if refused:
            return refused[0]
        for short, amount in zip(shortages, amounts, strict=True):
            self._lease_of(*short[:2])[0] += amount
        return amounts

    def _lease_of(self, limit: LimitID, start_unix_ns: int) -> list[int]:
        owners = self._memory.leases.setdefault((limit, start_unix_ns), {})
        return owners.setdefault(self.owner, [0, 0])

    def _use(self, state: LimitState) -> WindowUse:
        leases = self._memory.leases
        if state.limit.carries_over and any(
            state.limit.limit == limit and at > state.start_unix_ns for limit, at in leases
        ):
            return WindowUse(0, 0, 0)
        owners = leases.get((state.limit.limit, state.start_unix_ns), {}).values()
        without_lease = state.used - sum(used for _, used in owners)
        return WindowUse(
            allowed=state.allowed,
            granted=without_lease + sum(max(granted, used) for granted, used in owners),
            used=state.used,
        )

    def count_by(self, counted: Counted) -> None:
        self._counted = counted

    def cover(self, lacking: Sequence[Shortage]) -> None:
        self._still_ours()
        for part in lacking:
            self._lease_of(*part[:2])[0] += part.missing

    def give_back(self, rest: Sequence[Shortage]) -> None:
        self._still_ours()
        for part in rest:
            self._lease_of(*part[:2])[0] -= part.missing

    def wanted(self, since_unix_ns: int) -> list[tuple[LimitID, int]]:
        wanted = self._memory.wanted.items()
        return [place for place, unix_ns in wanted if unix_ns >= since_unix_ns]

    def claim_costs(self, pools: Mapping[PoolID, str], unix_ns: int) -> dict[PoolID, int]:
        memory = self._memory
        self.alive(max(unix_ns, memory.seen_unix_ns.get(self.owner, 0)))
        found = {}
        for pool, servers in pools.items():
            holder, until_unix_ns = memory.costs.get((pool, servers), (self.owner, 0))
            if holder == self.owner or holder in memory.adopted:
                memory.costs[pool, servers] = (self.owner, until_unix_ns)
                found[pool] = until_unix_ns
        return found

    def read_limits(self, unix_ns: int) -> Callable[[], list[LimitState]]:
        return lambda: self.limit_states(unix_ns)

    def load_limits(self) -> list[Limit]:
        return [limit for _, limit in sorted(self._memory.limits.items())]

    def put_limit(self, limit: Limit) -> None:
        self._memory.limits[limit.limit] = limit
        self._memory.version += 1

    def remove_limit(self, limit: LimitID) -> bool:
        self._memory.version += 1
        return self._memory.limits.pop(limit, None) is not None

    def load_extras(self) -> list[Extra]:
        return sorted(self._memory.extras.values(), key=lambda each: (each.at_unix_ns, each.extra))

    def put_extra(self, extra: Extra) -> None:
        self._memory.extras[extra.extra] = extra
        self._memory.version += 1

    def decide_extra(
        self, extra: str, decide: Callable[[Extra, Sequence[Limit]], Extra]
    ) -> Extra | None:
        found = self._memory.extras.get(extra)
        if found is None:
            return None
        self.put_extra(decided := decide(found, self.load_limits()))
        return decided

    def load_keys(self) -> list[KeyRecord]:
        return [record for _, record in sorted(self._memory.keys.items())]

    def put_key(self, record: KeyRecord) -> None:
        for other in self._memory.keys.values():
            shared = {*other.secrets_sha256} & {*record.secrets_sha256}
            if shared and other.key != record.key:
                raise ConfigInvalid(f"Key {record.key!r} has the secret of another key.")
        known = self._memory.keys.get(record.key)
        if known is not None and known.revoked_unix_ns is not None:
            record = msgspec.structs.replace(record, revoked_unix_ns=known.revoked_unix_ns)
        self._memory.keys[record.key] = record
        self._memory.version += 1

    def rotate_key(self, key: KeyID, secret_sha256: str, old_until_unix_ns: int) -> bool:
        keys = self._memory.keys
        if any(secret_sha256 in each.secrets_sha256 for each in keys.values()):
            raise ConfigInvalid(f"Key {key!r} has the secret of another key.")
        record = keys.get(key)
        if record is None or record.revoked_unix_ns is not None:
            return False
        self.put_key(
            msgspec.structs.replace(
                record,
                secret_sha256=secret_sha256,
                old_secret_sha256=record.secret_sha256,
                old_until_unix_ns=old_until_unix_ns,
            )
        )
        return True

    def revoke_key(self, key: KeyID, revoked_unix_ns: int) -> bool:
        record = self._memory.keys.get(key)
        if record is None:
            return False
        if record.revoked_unix_ns is None:
            self.put_key(msgspec.structs.replace(record, revoked_unix_ns=revoked_unix_ns))
        return True

    def settings_version(self) -> int:
        return self._memory.version

    def put_price_book(self, price_id: PriceID, text: str, first_used_unix_ns: int) -> None:
        self._memory.books.setdefault(price_id, text)

    def activated_books(self) -> list[str]:
        return []

    def load_price_book(self, price_id: PriceID) -> str | None:
        return self._memory.books.get(price_id)

    def close(self) -> None:
        return

"""The fluid linear programme: what a fleet could make if requests were a liquid.

Columns (all >= 0):

- ``served[g, d, c, f]``: share of group g that is delivered at tier d, decoded on class c, with so
  much of its prefix found in the cache (f). Its sum over d, c and f is at most 1.
- ``prefilled[g, d, c', w]``: the same share, by the class and window that prefill it; left out
  where there is only one such place.
- ``decoded[g, d, c, w, m]``: share of group g's decode tokens made in window w at pace m.
- ``launches[c, w, m]``: iterations at pace m.

A **pace** is a length of iteration, launch + load: the load is what its sequences cost beside the
launch. With paces instead of batch sizes, sequences of any context may share an iteration and
every constraint stays linear. An iteration between two paces is a mixture of both, and its tokens
then look slower than they are by a factor that ``counted`` takes off again, so that every
iteration a worker can make is a point of the programme.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from tokenworks.catalogue.price_book import PriceBook
from tokenworks.core.slo import Tier
from tokenworks.perf.timing import FS_PER_S
from tokenworks.plan.fluid_inputs import (
    Demand,
    Found,
    WorkerClass,
    allowance_s,
    findings,
    load_s,
    prefill_s,
    revenue_dollars,
)

PACE_RATIO = 1.1
"""Between the loads of neighbouring paces; the bound is too high by 0.23 % of the load at most."""
BEYOND = 16
"""Paces go on to this multiple of the slowest promise: the endless one after it costs no launches,
and must be far enough from every promise to be of no use to it."""
PACES_MAX = 512
ROWS_PER_PACE = ("load", "slots", "kv")


class Pace(msgspec.Struct, frozen=True):
    """A length of iteration.

    Attributes:
        load_s: what its sequences may cost together; None if nothing but slots and KV limit them.
        counted_s: the length that a token made at it counts with against its promise.
    """

    load_s: float | None
    counted_s: float


class Option(msgspec.Struct, frozen=True):
    """A way to serve a group: delivered at a tier, decoded on a class."""

    group: int
    tier: Tier
    place: int
    allowance_s: float | None
    last: int


class Program(msgspec.Struct, frozen=True):
    """Columns and rows by name, ready to be solved.

    Attributes:
        columns: index by name.
        gains: of the objective, by column.
        entries: (row, column, coefficient).
        upper: right-hand sides of rows that are at most so much, by name.
        equal: names of rows that are zero.
    """

    columns: dict[tuple[object, ...], int]
    gains: list[float]
    entries: list[tuple[tuple[object, ...], int, float]]
    upper: dict[tuple[object, ...], float]
    equal: dict[tuple[object, ...], None]

    def column(self, *name: object, gain: float = 0.0) -> int:
        """A new column."""
        index = self.columns[name] = len(self.gains)
        self.gains.append(gain)
        return index

    def at_most(self, name: tuple[object, ...], limit: float) -> None:
        """A new row."""
        self.upper[name] = limit

    def add(self, name: tuple[object, ...], column: int, value: float) -> None:
        """A coefficient of a row; a row that nothing limits is an equation."""
        if name not in self.upper:
            self.equal[name] = None
        self.entries.append((name, column, value))


class Solved(msgspec.Struct, frozen=True):
    """A solution.

    Attributes:
        value: of the objective.
        columns: values by name.
        duals: by row: what one more unit on its right-hand side is worth.
        used: of the rows that are at most so much, how much.
    """

    value: float
    columns: dict[tuple[object, ...], float]
    duals: dict[tuple[object, ...], float]
    used: dict[tuple[object, ...], float]


class Fluid(msgspec.Struct, frozen=True):
    """What a programme is made of.

    Attributes:
        fleet: classes of workers.
        groups: demand.
        book: prices and promises.
        paces: of each class.
        options: ways to serve each group.
    """

    fleet: tuple[WorkerClass, ...]
    groups: tuple[Demand, ...]
    book: PriceBook
    paces: tuple[tuple[Pace, ...], ...]
    options: tuple[Option, ...]

    def windows(self, option: Option) -> range:
        """The windows in which an answer may be in work."""
        return range(self.groups[option.group].window_first, option.last + 1)

    def prefill_places(self, option: Option) -> list[tuple[int, int]]:
        """(class, window) pairs that may prefill what the option decodes."""
        own = self.fleet[option.place]
        kin = [k for k, c in enumerate(self.fleet) if c.model == own.model]
        split = any(not (self.fleet[k].prefills and self.fleet[k].decodes) for k in kin)
        classes = [option.place]
        if split or own.hands_over:
            classes = [
                k
                for k in kin
                if self.fleet[k].prefills
                and (split or k == option.place or self.fleet[k].hands_over)
            ]
        return [(k, w) for k in classes for w in self.windows(option)]


def paces_of(
    worker: WorkerClass, groups: Sequence[Demand], book: PriceBook, *, free_is_floor: bool
) -> tuple[Pace, ...]:
    """A class's paces: from one light sequence past the slowest promise, then one without end."""
    launch_s = worker.timing.launch_fs / FS_PER_S
    served = [g for g in groups if g.model == worker.model and g.decode_tokens]
    each = [load_s(group, worker.timing) / group.decode_tokens for group in served]
    allowed = [
        allowed
        for group in served
        for tier in Tier
        if (allowed := allowance_s(group, tier, book, free_is_floor=free_is_floor)) is not None
    ]
    slowest = max((a - launch_s for a in allowed), default=0.0)
    heaviest = min(slowest * BEYOND, worker.slots * max(each, default=0.0))
    lightest = min((load for load in each if load > 0), default=0.0)
    paces: list[Pace] = []
    below = 4 * PACE_RATIO / (1 + PACE_RATIO) ** 2
    load = lightest
    while lightest and heaviest > 0 and len(paces) < PACES_MAX:
        paces.append(Pace(load, launch_s + (load * below if paces else 0.0)))
        if load >= heaviest:
            break
        load *= PACE_RATIO
    # Beyond the last pace nothing is kept that a lighter iteration would not keep too.
    last_s = paces[-1].load_s if paces else None
    return (*paces, Pace(None, launch_s + (last_s or 0.0)))


def fluid_of(
    fleet: Sequence[WorkerClass],
    groups: Sequence[Demand],
    book: PriceBook,
    tiers_of: Callable[[Demand], Sequence[Tier]],
    *,
    free_is_floor: bool = True,
) -> Fluid:
    """Every way to serve every group at the tiers named for it."""
    windows = len(fleet[0].up_ns)
    assert all(len(worker.up_ns) == windows for worker in fleet), "windows differ"
    options = [
        Option(
            group=g,
            tier=tier,
            place=c,
            allowance_s=allowance_s(group, tier, book, free_is_floor=free_is_floor),
            last=group.windows_last[tier.rank] if group.windows_last else windows - 1,
        )
        for g, group in enumerate(groups)
        for tier in tiers_of(group)
        for c, worker in enumerate(fleet)
        if worker.model == group.model and worker.decodes
    ]
    return Fluid(
        tuple(fleet),
        tuple(groups),
        book,
        tuple(paces_of(worker, groups, book, free_is_floor=free_is_floor) for worker in fleet),
        tuple(options),
    )


def program_of(fluid: Fluid) -> Program:
    """The programme whose value is revenue in dollars."""
    program = Program({}, [], [], {}, {})
    for g in range(len(fluid.groups)):
        program.at_most(("demand", g), 1.0)
    for c, worker in enumerate(fluid.fleet):
        for w, up_ns in enumerate(worker.up_ns):
            program.at_most(("time", c, w), up_ns / 1e9)
            _launches(program, fluid, c, w)
    for option in fluid.options:
        served = _served(program, fluid, option)
        _prefilled(program, fluid, option, served)
        if fluid.groups[option.group].decode_tokens:
            _decoded(program, fluid, option, list(served.values()))
    return program


def launch_unit_s(worker: WorkerClass) -> float:
    """Iterations are counted in launches' time, so that columns are of one size."""
    return max(worker.timing.launch_fs, 10**9) / FS_PER_S


def _launches(program: Program, fluid: Fluid, c: int, w: int) -> None:
    worker = fluid.fleet[c]
    unit = launch_unit_s(worker)
    rows = {name: ("all", name, c, w) for name in ("slots", "kv")}
    for row in rows.values():
        program.at_most(row, 0.0)
    for m, pace in enumerate(fluid.paces[c]):
        y = program.column("launches", c, w, m)
        program.add(("time", c, w), y, worker.timing.launch_fs / FS_PER_S / unit)
        limits = {"load": pace.load_s, "slots": worker.slots, "kv": worker.kv_tokens}
        for name, limit in limits.items():
            if limit is None:
                continue
            # A mixture of two paces puts up to the ratio too many sequences into the slower one;
            # over all paces together there are never too many.
            slack = 1.0 if name == "load" else PACE_RATIO
            program.at_most((name, c, w, m), 0.0)
            program.add((name, c, w, m), y, -limit * slack / unit)
            if name in rows:
                program.add(rows[name], y, -limit / unit)


def _served(program: Program, fluid: Fluid, option: Option) -> dict[Found, int]:
    group = fluid.groups[option.group]
    served = {}
    for found in findings(group, fluid.book):
        gain = revenue_dollars(group, option.tier, fluid.book, found)
        z = program.column("served", option.group, option.tier, option.place, found, gain=gain)
        program.add(("demand", option.group), z, 1.0)
        served[found] = z
    return served


def _prefilled(program: Program, fluid: Fluid, option: Option, served: dict[Found, int]) -> None:
    group = fluid.groups[option.group]
    places = fluid.prefill_places(option)
    for found, z in served.items():
        key = (option.group, option.tier, option.place, found)
        for c, w in places:
            seconds = prefill_s(group, fluid.fleet[c].timing, found)
            column = z
            if len(places) > 1:
                column = program.column("prefilled", *key, c, w)
                program.add(("prefill", *key), column, 1.0)
            program.add(("time", c, w), column, seconds)
        if len(places) > 1:
            program.add(("prefill", *key), z, -1.0)


def _decoded(program: Program, fluid: Fluid, option: Option, served: list[int]) -> None:
    group, c = fluid.groups[option.group], option.place
    key = (option.group, option.tier, c)
    tokens, load = group.decode_tokens, load_s(group, fluid.fleet[c].timing)
    if option.allowance_s is not None:
        program.at_most(("speed", *key), 0.0)
        for z in served:
            program.add(("speed", *key), z, -1.0)
    for w in fluid.windows(option):
        for m, pace in enumerate(fluid.paces[c]):
            x = program.column("decoded", *key, w, m)
            program.add(("decode", *key), x, 1.0)
            program.add(("time", c, w), x, load)
            if pace.load_s is not None:
                program.add(("load", c, w, m), x, load)
            for name, value in (("slots", tokens), ("kv", group.held_tokens)):
                program.add((name, c, w, m), x, value)
                program.add(("all", name, c, w), x, value)
            if option.allowance_s is not None:
                program.add(("speed", *key), x, pace.counted_s / option.allowance_s)
    for z in served:
        program.add(("decode", *key), z, -1.0)


def solve(program: Program) -> Solved:
    """Maximise the gains.

    Needs scipy, the ``plan`` extra.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    largest = max((abs(gain) for gain in program.gains), default=0.0) or 1.0
    scales = _row_scales(program)
    tables = []
    for names in (program.upper, program.equal):
        index = {name: i for i, name in enumerate(names)}
        picked = [e for e in program.entries if e[0] in index]
        values = [value / scales[name] for name, _, value in picked]
        where = ([index[name] for name, _, _ in picked], [column for _, column, _ in picked])
        tables.append(csr_array((values, where), shape=(len(names), len(program.gains))))
    result = linprog(
        [-gain / largest for gain in program.gains],
        A_ub=tables[0],
        b_ub=[limit / scales[name] for name, limit in program.upper.items()],
        A_eq=tables[1] if program.equal else None,
        b_eq=[0.0] * len(program.equal) if program.equal else None,
        method="highs",
    )
    assert result.status == 0, result.message
    duals = {
        name: -float(dual) * largest / scales[name]
        for names, side in ((program.upper, result.ineqlin), (program.equal, result.eqlin))
        for name, dual in zip(names, side.marginals, strict=True)
    }
    found = dict(zip(program.columns, map(float, result.x), strict=True))
    used = {
        name: limit - float(slack) * scales[name]
        for (name, limit), slack in zip(program.upper.items(), result.slack, strict=True)
    }
    return Solved(-float(result.fun) * largest, found, duals, used)


def _row_scales(program: Program) -> dict[tuple[object, ...], float]:
    """The largest coefficient of each row, by which it is divided for the solver."""
    scales: dict[tuple[object, ...], float] = {}
    for name, _, value in program.entries:
        scales[name] = max(scales.get(name, 0.0), abs(value))
    return {name: scales.get(name, 0.0) or 1.0 for name in (*program.upper, *program.equal)}

"""Samples whose answer is copied from a given report or ledger table, or extracted from text."""

from __future__ import annotations

import json
import random
from typing import Any, Final

from samples import Sample
from words import CITIES, FIRST_NAMES, NOUNS, TIERS, identifier, made_up, string_value

_METRICS: Final = (
    ("revenue", "USD"),
    ("cost", "USD"),
    ("margin", "USD"),
    ("energy", "kWh"),
    ("power", "kW"),
    ("tokens", "tokens"),
    ("requests", "requests"),
    ("workers", "workers"),
    ("queue length", "requests"),
    ("TTFT", "ms"),
    ("TPOT", "ms"),
    ("goodput", "tokens/s"),
    ("throughput", "tokens/s"),
    ("price", "USD"),
    ("credits", "USD"),
    ("ad income", "USD"),
    ("promise kept", "percent"),
    ("temperature", "C"),
)


def _amount(rng: random.Random, unit: str) -> str:
    if unit in {"USD", "kWh", "kW"}:
        return f"{rng.randrange(0, rng.choice((10, 100, 1000)))}.{rng.randrange(100):02d}"
    return str(rng.randrange(1, rng.choice((10, 100, 1000, 100000))))


def report(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A question about one line of a factory report."""
    metrics = rng.sample(_METRICS, rng.randint(2, 6))
    rows = [(name, unit, _amount(rng, unit)) for name, unit in metrics]
    if rng.random() < 0.3:
        rows[0] = (made_up(rng) + " " + rng.choice(NOUNS), rows[0][1], rows[0][2])
    name, unit, value = rng.choice(rows)
    lines = "\n".join(f"{n}: {v} {u}" for n, u, v in rows)
    question = rng.choice(
        (
            f"What is the {name}?",
            f"How much is the {name}?",
            f"Tell me the {name}.",
            f"{name}?",
            f"Give me the {name} from this report.",
        )
    )
    text = f"Report:\n{lines}\n{question}" if rng.random() < 0.7 else f"{question}\n{lines}"
    return Sample(
        task="report",
        messages=({"role": "user", "content": text},),
        answer=f"The {name} is {value} {unit}.",
    )


_COLUMNS: Final = ("tokens", "requests", "usd", "workers", "credits", "kwh")


def table(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A question about one cell of a ledger table."""
    head = rng.choice(("key", "tenant", "tier", "pool", "worker"))
    columns = rng.sample(_COLUMNS, rng.randint(1, 3))
    count = rng.randint(2, 5)
    names = rng.sample(TIERS, count) if head == "tier" else [identifier(rng) for _ in range(count)]
    cells = {n: [_amount(rng, "USD" if c == "usd" else "") for c in columns] for n in names}
    lines = [" | ".join([head, *columns])]
    lines += [" | ".join([n, *row]) for n, row in cells.items()]
    name, column = rng.choice(names), rng.randrange(len(columns))
    question = rng.choice(
        (
            f"How many {columns[column]} does {name} have?",
            f"What is {columns[column]} for {name}?",
            f"{columns[column]} of {name}?",
            f"Show {columns[column]} of {head} {name}.",
        )
    )
    text = "\n".join(lines) + "\n" + question
    return Sample(
        task="table",
        messages=({"role": "user", "content": text},),
        answer=f"{name}: {cells[name][column]} {columns[column]}.",
    )


def lookup(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A question about one of several short facts."""
    facts = []
    for _ in range(rng.randint(2, 4)):
        who = rng.choice((rng.choice(FIRST_NAMES), identifier(rng), made_up(rng).capitalize()))
        relation, value = rng.choice(
            (
                ("works on", identifier(rng)),
                ("lives in", rng.choice(CITIES)),
                ("runs", made_up(rng)),
                ("owns", identifier(rng)),
                ("uses", string_value(rng)),
            )
        )
        facts.append((who, relation, value))
    who, relation, value = rng.choice(facts)
    same = [f for f in facts if f[0] == who]
    if len(same) > 1:
        return lookup(rng, unseen=unseen)
    verb = {"works on": "work on", "lives in": "live in", "runs": "run", "owns": "own"}.get(
        relation, "use"
    )
    asked = f"Where does {who} live?" if verb == "live in" else f"What does {who} {verb}?"
    story = " ".join(f"{w} {r} {v}." for w, r, v in facts)
    return Sample(
        task="lookup",
        messages=({"role": "user", "content": f"{story} {asked}"},),
        answer=f"{who} {relation} {value}.",
    )


def extract(rng: random.Random, *, unseen: bool = False) -> Sample:
    """Fields of a sentence as JSON."""
    fields: dict[str, Any] = {}
    for name in rng.sample(
        ("name", "team", "city", "worker", "key", "count", "tier"), rng.randint(1, 3)
    ):
        if name == "count":
            fields[name] = rng.randrange(1, 1000)
        elif name == "city":
            fields[name] = rng.choice(CITIES)
        elif name == "tier":
            fields[name] = rng.choice(TIERS)
        elif name == "name":
            fields[name] = rng.choice(FIRST_NAMES)
        else:
            fields[name] = identifier(rng)
    said = [f"{k} {v}" for k, v in fields.items()]
    if rng.random() < 0.5:
        rng.shuffle(said)
    text = f"Write as JSON with {', '.join(fields)}: {', '.join(said)}."
    return Sample(
        task="extract",
        messages=({"role": "user", "content": text},),
        answer=json.dumps(fields),
    )


def echo(rng: random.Random, *, unseen: bool = False) -> Sample:
    """Repeat a string: the shortest way to learn copying."""
    text = " ".join(string_value(rng) for _ in range(rng.randint(1, 4)))
    word = rng.choice(("Repeat", "Say", "Copy", "Echo"))
    return Sample(
        task="echo",
        messages=({"role": "user", "content": f"{word}: {text}"},),
        answer=text,
    )

"""Samples whose answer is a tool call: made-up tools, the factory's own tools, tool results."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any, Final

from samples import Sample, call_text, tool
from words import (
    BOOLEAN_PARAMS,
    CHOICE_PARAMS,
    CHOICES,
    CITIES,
    INTEGER_PARAMS,
    NOUNS,
    NUMBER_PARAMS,
    STRING_PARAMS,
    TIERS,
    VERBS,
    fragments,
    held_out,
    identifier,
    made_up,
    seen,
    string_value,
)

NO_TOOL: Final = "None of my tools can do that."


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeTool:
    """A tool with the words that a request for it uses."""

    verb: str
    noun: str
    params: tuple[tuple[str, dict[str, Any], bool], ...]
    spec: dict[str, Any]


class ToolMaker:
    """Draws tools; ``unseen`` draws from the held-out words only.

    Most of the names that training sees are made up anew for each sample: a name that never comes
    twice cannot be learnt by heart, so it must be copied from the signature.
    """

    styles: tuple[float, float, float] = (0.9, 0.94, 0.98)
    """Where names end to be snake case, camel case, noun first; the rest have made-up names."""

    def __init__(self, rng: random.Random, *, unseen: bool = False) -> None:
        """Args: rng: the only source of chance; unseen: use held-out words."""
        self._rng = rng
        pick = held_out if unseen else seen
        self.verbs, self.nouns = pick(VERBS), pick(NOUNS)
        self._strings, self._integers = pick(STRING_PARAMS), pick(INTEGER_PARAMS)
        self._numbers, self._booleans = pick(NUMBER_PARAMS), pick(BOOLEAN_PARAMS)
        self._choices = pick(CHOICE_PARAMS)
        self._unseen = unseen
        self._all = [*self.verbs, *self.nouns, *self._strings, *self._integers]

    def words(self) -> tuple[str, str]:
        """A verb and a noun for one tool."""
        return self._word(self.verbs), self._word(self.nouns)

    def _word(self, listed: list[str]) -> str:
        rng = self._rng
        kind = rng.random()
        if self._unseen or kind < 0.4:
            return rng.choice(listed)
        return fragments(rng, self._all) if kind < 0.75 else made_up(rng)

    def _param_name(self, listed: list[str]) -> str:
        name = self._word(listed)
        if not self._unseen and self._rng.random() < 0.15:
            return f"{name}_{self._word(listed)}"
        return name

    def params(self, count: int) -> tuple[tuple[str, dict[str, Any], bool], ...]:
        """``count`` parameters with distinct names, the required ones first."""
        rng = self._rng
        found: dict[str, tuple[dict[str, Any], bool]] = {}
        while len(found) < count:
            name, spec = self._param()
            if name not in found:
                found[name] = (spec, rng.random() < 0.85)
        ordered = sorted(found.items(), key=lambda item: not item[1][1])
        return tuple((name, spec, required) for name, (spec, required) in ordered)

    def _param(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        kind = rng.random()
        name = self._param_name
        if kind < 0.5:
            return name(self._strings), {"type": "string"}
        if kind < 0.75:
            return name(self._integers), {"type": "integer"}
        if kind < 0.84:
            return name(self._numbers), {"type": "number"}
        if kind < 0.92:
            return name(self._choices), {"type": "string", "enum": list(rng.choice(CHOICES))}
        return name(self._booleans), {"type": "boolean"}

    def make(self, verb: str, noun: str, params_max: int) -> MadeTool:
        """A tool for these words; its name or its description carries them."""
        rng = self._rng
        params = self.params(rng.randint(0 if rng.random() < 0.1 else 1, params_max))
        style = rng.random()
        snake, camel, noun_first = self.styles
        if style < snake:
            name = f"{verb}_{noun}"
        elif style < camel:
            name = verb + noun.capitalize()
        elif style < noun_first:
            name = f"{noun}_{verb}"
        else:
            name = made_up(rng)
        described = style >= noun_first or rng.random() < 0.3
        article = rng.choice(("a", "the", "one"))
        description = f"{verb} {article} {noun}" if described else ""
        if described and rng.random() < 0.5:
            description = description.capitalize()
        spec = tool(name, description, list(params))
        return MadeTool(verb=verb, noun=noun, params=params, spec=spec)

    def toolbox(self, count: int, params_max: int, *, alike: float = 0.35) -> list[MadeTool]:
        """``count`` tools with distinct names; a share ``alike`` has another's verb or noun."""
        rng = self._rng
        pairs: list[tuple[str, str]] = []
        while len(pairs) < count:
            verb, noun = self.words()
            if pairs and rng.random() < alike:
                other = rng.choice(pairs)
                verb, noun = (other[0], noun) if rng.random() < 0.5 else (verb, other[1])
            if (verb, noun) not in pairs:
                pairs.append((verb, noun))
        return [self.make(verb, noun, params_max) for verb, noun in pairs]


def value_for(rng: random.Random, spec: dict[str, Any]) -> tuple[Any, str]:
    """A value for a parameter, and how a request words it."""
    if "enum" in spec:
        choice = rng.choice(spec["enum"])
        return choice, choice
    if spec["type"] == "integer":
        top = rng.choice((10, 100, 1000, 10000, 1000000))
        number = rng.randrange(1, top)
        return number, str(number)
    if spec["type"] == "number":
        text = f"{rng.randrange(0, 200)}.{rng.choice(('5', '25', '1', '75', '2', '05', '99'))}"
        return float(text), text
    if spec["type"] == "boolean":
        flag = rng.random() < 0.5
        return flag, rng.choice(("true", "yes", "on") if flag else ("false", "no", "off"))
    text = string_value(rng)
    if " " in text or rng.random() < 0.1:
        return text, rng.choice(
            (f'"{text}"', f"'{text}'", text if " " not in text else f'"{text}"')
        )
    return text, text


_JOIN: Final = ("{p} {v}", "{p} {v}", "{p}: {v}", "{p}={v}", "{p} is {v}")


def request_for(
    rng: random.Random, made: MadeTool, draw: Callable[..., tuple[Any, str]] = value_for
) -> tuple[str, dict[str, Any]]:
    """A user's wish for this tool, and the arguments that fulfil it; ``draw`` gives the values."""
    arguments: dict[str, Any] = {}
    phrases = []
    join = rng.choice(_JOIN)
    for name, spec, required in made.params:
        if not required and rng.random() < 0.5:
            continue
        value, text = draw(rng, spec)
        arguments[name] = value
        spoken = name if rng.random() < 0.6 else name.replace("_", " ")
        phrases.append(join.format(p=spoken, v=text))
    noun = rng.choice(("the ", "a ", "", "", "my ")) + made.noun
    wish = f"{made.verb} {noun}"
    if len(arguments) == 1 and rng.random() < 0.35:
        phrases = [phrases[0].split(" ", 1)[1]] if join == "{p} {v}" else phrases
        if " " not in phrases[0]:
            return _dress(rng, f"{wish} {phrases[0]}", made), arguments
        value, text = next(iter(arguments.values())), None
        if isinstance(value, str):
            return _dress(rng, f'{wish} "{value}"', made), arguments
        return _dress(rng, f"{wish} {json.dumps(value)}", made), arguments
    if rng.random() < 0.5:
        rng.shuffle(phrases)
    if not phrases:
        return _dress(rng, wish, made), arguments
    if rng.random() < 0.5 and len(phrases) > 1:
        listing = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    else:
        listing = ", ".join(phrases)
    link = rng.choice((" with ", ", ", ": ", " for ", " using ", "; "))
    if rng.random() < 0.06:
        return f"With {listing}, {wish}.", arguments
    return _dress(rng, f"{wish}{link}{listing}", made), arguments


def _dress(rng: random.Random, wish: str, made: MadeTool) -> str:
    shape = rng.randrange(9)
    if shape == 0:
        return f"Please {wish}."
    if shape == 1:
        return f"Can you {wish}?"
    if shape == 2:
        return f"I need you to {wish}."
    if shape == 3:
        return wish
    if shape == 4:
        return f"{wish[0].upper()}{wish[1:]}, please."
    if shape == 5:
        return f"We should {wish} now."
    if shape == 6:
        return f"Could you {wish}?"
    return f"{wish[0].upper()}{wish[1:]}."


def tool_call(
    rng: random.Random, *, unseen: bool = False, tools_max: int = 4, params_max: int = 3
) -> Sample:
    """A request that one of the given tools fulfils."""
    box = ToolMaker(rng, unseen=unseen).toolbox(rng.randint(1, tools_max), params_max)
    chosen = rng.choice(box)
    text, arguments = request_for(rng, chosen)
    name = chosen.spec["function"]["name"]
    return Sample(
        task="tool_call",
        messages=with_system(rng, text),
        tools=tuple(made.spec for made in box),
        answer=call_text(name, arguments),
        call={"name": name, "arguments": arguments},
    )


def calls_in_turn(rng: random.Random, *, tools_max: int = 4, params_max: int = 3) -> Sample:
    """Several requests over the same tools: more answers to learn from per token read."""
    box = ToolMaker(rng).toolbox(rng.randint(1, tools_max), params_max)
    turns = []
    for _ in range(rng.randint(2, 4)):
        chosen = rng.choice(box)
        text, arguments = request_for(rng, chosen)
        turns.append((text, call_text(chosen.spec["function"]["name"], arguments)))
    return Sample(
        task="calls_in_turn",
        messages=with_system(rng, turns[0][0]),
        tools=tuple(made.spec for made in box),
        answer=turns[0][1],
        later=tuple(turns[1:]),
    )


_SYSTEMS: Final = (
    "You are Foreman.",
    "You are a helpful assistant.",
    "You run a token factory.",
    "Use the tools.",
)


def with_system(rng: random.Random, text: str) -> tuple[dict[str, Any], ...]:
    """The user's turn, at times after a system turn."""
    user = {"role": "user", "content": text}
    if rng.random() < 0.2:
        return ({"role": "system", "content": rng.choice(_SYSTEMS)}, user)
    return (user,)


def no_tool(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A request that none of the given tools fulfils."""
    box = ToolMaker(rng, unseen=unseen).toolbox(rng.randint(2, 5), 2)
    names = {(made.verb, made.noun) for made in box[1:]}
    verbs, nouns = {v for v, _ in names}, {n for _, n in names}
    wanted = box[0]
    if wanted.verb in verbs or wanted.noun in nouns:
        return no_tool(rng, unseen=unseen)
    text, _ = request_for(rng, wanted)
    return Sample(
        task="no_tool",
        messages=with_system(rng, text),
        tools=tuple(made.spec for made in box[1:]),
        answer=NO_TOOL,
    )


_S: Final[dict[str, Any]] = {"type": "string"}
_I: Final[dict[str, Any]] = {"type": "integer"}
_N: Final[dict[str, Any]] = {"type": "number"}
_T: Final[dict[str, Any]] = {"type": "string", "enum": list(TIERS)}

FACTORY: Final = (
    (
        tool(
            "get_tier_report",
            "Tokens and money of one tier",
            [("tier", _T, True), ("hours", _I, True)],
        ),
        (
            "How did {tier} do in the last {hours} hours?",
            "Show me the {tier} tier for the past {hours} hours.",
            "What did the {tier} tier earn over {hours} hours?",
            "Report on {tier}, last {hours} hours",
        ),
    ),
    (
        tool("drain_worker", "Stop sending requests to a worker", [("worker", _S, True)]),
        (
            "Drain {worker}.",
            "Take worker {worker} out of service.",
            "Stop sending work to {worker}.",
        ),
    ),
    (
        tool(
            "set_price", "Set a tier's price per 1M tokens", [("tier", _T, True), ("usd", _N, True)]
        ),
        (
            "Set the {tier} price to ${usd} per million tokens.",
            "Sell {tier} at {usd} dollars per 1M tokens.",
            "Make {tier} cost {usd} USD.",
        ),
    ),
    (
        tool(
            "create_key", "Create a key for a tenant", [("tenant", _S, True), ("tokens", _I, False)]
        ),
        (
            "Create a key for {tenant} with {tokens} tokens.",
            "{tenant} needs a key good for {tokens} tokens.",
            "Give {tenant} a key, {tokens} tokens.",
        ),
    ),
    (
        tool("revoke_key", "Revoke a key", [("key", _S, True)]),
        ("Revoke key {key}.", "Key {key} has leaked, revoke it.", "Block the key {key}."),
    ),
    (
        tool("get_worker", "State of one worker", [("worker", _S, True)]),
        ("How is {worker} doing?", "What is the state of worker {worker}?", "Check on {worker}."),
    ),
    (
        tool("get_weather", "Current weather in a city", [("city", _S, True)]),
        (
            "What is the weather in {city}?",
            "What's the weather like in {city} today?",
            "Is it raining in {city}?",
            "Weather in {city}?",
        ),
    ),
    (
        tool(
            "scale_pool",
            "Set the number of workers of a pool",
            [("pool", _S, True), ("workers", _I, True)],
        ),
        (
            "Scale pool {pool} to {workers} workers.",
            "Run {workers} workers in {pool}.",
            "Give pool {pool} {workers} workers.",
        ),
    ),
    (
        tool("get_balance", "Balance of a tenant", [("tenant", _S, True)]),
        (
            "What is {tenant}'s balance?",
            "How much money does {tenant} have left?",
            "Balance of {tenant}?",
        ),
    ),
    (
        tool("get_time", "Time in a city", [("city", _S, True)]),
        ("What time is it in {city}?", "Tell me the time in {city}.", "Time in {city}?"),
    ),
)


def factory_call(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A request in everyday words for one of the factory's own tools, among others."""
    chosen = rng.sample(FACTORY, rng.randint(1, 4))
    spec, phrasings = rng.choice(chosen)
    phrasing = rng.choice(phrasings)
    arguments: dict[str, Any] = {}
    for name, schema in spec["function"]["parameters"]["properties"].items():
        if f"{{{name}}}" not in phrasing:
            continue
        value: Any = identifier(rng)
        if name == "city":
            value = rng.choice(CITIES) if rng.random() < 0.7 else made_up(rng).capitalize()
        elif name == "usd":
            value = float(f"{rng.randrange(1, 200)}.{rng.choice(('5', '25', '75', '99'))}")
        elif schema != _S:
            value = value_for(rng, schema)[0]
        arguments[name] = value
    name = spec["function"]["name"]
    return Sample(
        task="factory_call",
        messages=with_system(rng, phrasing.format(**arguments)),
        tools=tuple(s for s, _ in chosen),
        answer=call_text(name, arguments),
        call={"name": name, "arguments": arguments},
    )


def tool_result(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A tool has answered; say what it said."""
    maker = ToolMaker(rng, unseen=unseen)
    verb, noun = maker.words()
    made = maker.make(verb, noun, 2)
    text, arguments = request_for(rng, made)
    result, said = result_for(rng, maker)
    name = made.spec["function"]["name"]
    return Sample(
        task="tool_result",
        messages=(
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
            },
            {"role": "tool", "content": result},
        ),
        tools=(made.spec,),
        answer=said,
    )


def result_for(rng: random.Random, maker: ToolMaker) -> tuple[str, str]:
    """What a tool answers, as JSON, and how to say it."""
    fields = {}
    for name, spec, _ in maker.params(rng.randint(1, 3)):
        fields[name] = value_for(rng, spec)[0]
    said = ", ".join(f"{k.replace('_', ' ')} is {_plain(v)}" for k, v in fields.items())
    return json.dumps(fields), f"Done: {said}."


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

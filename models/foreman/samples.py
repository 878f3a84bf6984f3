"""One training sample, and how a conversation is written down: ChatML, Hermes tool calls.

``render_prompt`` and ``chat_template.jinja`` must write the same text: a test compares them.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation up to the assistant's turn, and the oracle's right answer.

    Attributes:
        task: which generator made it; the model card gives one score per task.
        messages: OpenAI-shaped messages.
        answer: the assistant's text, without the closing token.
        tools: OpenAI-shaped tool definitions, or none.
        call: for a tool call, its name and arguments.
        later: further turns of the conversation, each the user's text and the right answer.
    """

    task: str
    messages: tuple[dict[str, Any], ...]
    answer: str
    tools: tuple[dict[str, Any], ...] = ()
    call: dict[str, Any] | None = None
    later: tuple[tuple[str, str], ...] = ()


def signature(tool: dict[str, Any]) -> str:
    """A tool on one line: ``name(p: type, q?: a|b): description``."""
    function = tool["function"]
    schema = function.get("parameters") or {}
    required = schema.get("required", [])
    params = []
    for name, spec in schema.get("properties", {}).items():
        kind = "|".join(spec["enum"]) if "enum" in spec else spec.get("type", "any")
        params.append(f"{name}{'' if name in required else '?'}: {kind}")
    text = f"{function['name']}({', '.join(params)})"
    return f"{text}: {function['description']}" if function.get("description") else text


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A Hermes tool call as the assistant writes it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def render_prompt(
    messages: tuple[dict[str, Any], ...], tools: tuple[dict[str, Any], ...] = ()
) -> str:
    """The text that the model reads, ending where the assistant begins."""
    parts = []
    rest = list(messages)
    system = ""
    if rest and rest[0]["role"] == "system":
        system = rest.pop(0)["content"]
    if tools:
        listing = "Tools:\n" + "\n".join(signature(tool) for tool in tools)
        system = f"{system}\n{listing}" if system else listing
    if system:
        parts.append(f"{IM_START}system\n{system}{IM_END}\n")
    for message in rest:
        parts.append(f"{IM_START}{_turn(message)}{IM_END}\n")
    parts.append(f"{IM_START}assistant\n")
    return "".join(parts)


def render_later(text: str) -> str:
    """What stands between an answer and the next one."""
    return f"{IM_END}\n{IM_START}user\n{text}{IM_END}\n{IM_START}assistant\n"


def _turn(message: dict[str, Any]) -> str:
    role = message["role"]
    if role == "tool":
        return f"user\n<tool_response>\n{message['content']}\n</tool_response>"
    if role == "assistant" and message.get("tool_calls"):
        calls = [
            call_text(c["function"]["name"], c["function"]["arguments"])
            for c in message["tool_calls"]
        ]
        return "assistant\n" + "\n".join(calls)
    return f"{role}\n{message['content']}"


def tool(
    name: str, description: str, params: list[tuple[str, dict[str, Any], bool]]
) -> dict[str, Any]:
    """An OpenAI-shaped tool from (parameter, schema, required) triples."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {p: spec for p, spec, _ in params},
                "required": [p for p, _, required in params if required],
            },
        },
    }

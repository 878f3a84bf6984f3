"""Score the shipped file with the oracle, through the engine that serves it.

Tools are made of held-out words and every value is drawn from a seed that training never used.
Greedy decoding. ``raw`` reads the model's own text with no grammar to help it; ``served`` is the
chat endpoint as a client sees it, where the engine's grammar keeps calls well-formed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import random
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import arithmetic
import context
import small_talk
import tool_calls
import xllamacpp
from samples import Sample, render_prompt

SEED: Final = 20_261_124
OUTPUT_TOKENS_MAX: Final = 256
CALLS: Final[tuple[Callable[..., Sample], ...]] = (tool_calls.tool_call, tool_calls.factory_call)
ANSWERS: Final[tuple[Callable[..., Sample], ...]] = (
    tool_calls.no_tool,
    tool_calls.tool_result,
    context.report,
    context.table,
    context.lookup,
    context.extract,
    context.echo,
    arithmetic.add,
    arithmetic.times,
    arithmetic.units,
    arithmetic.money,
    arithmetic.date,
    small_talk.talk,
    small_talk.explain,
    small_talk.sums,
)


@dataclasses.dataclass
class Score:
    """Counts of one task."""

    samples: int = 0
    valid: int = 0
    right_tool: int = 0
    exact: int = 0

    def shares(self) -> dict[str, float]:
        """As fractions of the samples."""
        return {
            name: round(getattr(self, name) / self.samples, 4)
            for name in ("valid", "right_tool", "exact")
        }


def serve(model: Path, threads: int, slots: int) -> tuple[xllamacpp.Server, str]:
    """The engine on a free port of loopback."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel = 2048 * slots, slots
    params.kv_unified, params.verbosity = False, -1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    return server, server.listening_address


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One JSON request."""
    request = urllib.request.Request(  # noqa: S310
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        found: dict[str, Any] = json.load(response)
        return found


def parse_call(text: str) -> dict[str, Any] | None:
    """The call in the model's own text, if it is one well-formed call and nothing else."""
    body = text.strip()
    if not (body.startswith("<tool_call>") and body.endswith("</tool_call>")):
        return None
    try:
        call = json.loads(body.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except ValueError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
        return None
    return call


def raw(url: str, sample: Sample) -> tuple[dict[str, Any] | None, str]:
    """The call and the text, without chat endpoint or grammar."""
    prompt = render_prompt(sample.messages, sample.tools)
    body = {"prompt": prompt, "n_predict": OUTPUT_TOKENS_MAX, "temperature": 0}
    text = post(url + "/completion", body)["content"]
    return parse_call(text), text


def served(url: str, sample: Sample) -> tuple[dict[str, Any] | None, str]:
    """The call and the text, as a client of the chat endpoint gets them."""
    body: dict[str, Any] = {
        "messages": [_wire(message) for message in sample.messages],
        "max_tokens": OUTPUT_TOKENS_MAX,
        "temperature": 0,
    }
    if sample.tools:
        body["tools"] = list(sample.tools)
    try:
        message = post(url + "/v1/chat/completions", body)["choices"][0]["message"]
    except urllib.error.HTTPError:  # the engine could not parse what the model wrote
        return None, ""
    calls = message.get("tool_calls") or []
    text = message.get("content") or ""
    if len(calls) != 1:
        return None, text
    function = calls[0]["function"]
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return None, text
    return {"name": function["name"], "arguments": arguments}, text


def _wire(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            "type": "function",
            "id": f"call_{i}",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"]),
            },
        }
        for i, call in enumerate(message["tool_calls"])
    ]
    return {**message, "tool_calls": calls}


def score(
    url: str,
    ask: Callable[[str, Sample], tuple[dict[str, Any] | None, str]],
    samples: list[Sample],
    parallel: int,
) -> Score:
    """Ask every sample and compare with the oracle."""
    found = Score()
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        for sample, (call, text) in zip(
            samples, pool.map(lambda s: ask(url, s), samples), strict=True
        ):
            found.samples += 1
            if sample.call is None:
                found.valid += 1
                found.right_tool += call is None
                found.exact += text.strip() == sample.answer.strip()
            elif call is not None:
                found.valid += 1
                found.right_tool += call.get("name") == sample.call["name"]
                found.exact += call == sample.call
    return found


def run(
    model: Path, calls: int = 1000, answers: int = 200, threads: int = 2
) -> dict[str, dict[str, Any]]:
    """Print a table, a line per task and way, and return it."""
    server, url = serve(model, threads, slots=8)
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'task':14} {'way':7} {'n':>5} {'valid':>7} {'tool':>7} {'exact':>7}")
    for generator in (*CALLS, *ANSWERS):
        rng = random.Random(f"{SEED} {generator.__name__}")
        count = calls if generator in CALLS else answers
        samples = [generator(rng, unseen=True) for _ in range(count)]
        for way, ask in (("raw", raw), ("served", served)):
            if way == "served" and not samples[0].tools:
                continue  # without tools the endpoint adds nothing
            found = score(url, ask, samples, parallel=8)
            shares = found.shares()
            rows[f"{samples[0].task} {way}"] = {"samples": found.samples, **shares}
            print(
                f"{samples[0].task:14} {way:7} {found.samples:5} {shares['valid']:7.1%} "
                f"{shares['right_tool']:7.1%} {shares['exact']:7.1%}",
                flush=True,
            )
    del server
    return rows


def main() -> None:
    """Score a file; ``ship.py`` does that and writes the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=1000, help="samples per call task")
    parser.add_argument("--answers", type=int, default=200, help="samples per other task")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    run(args.model, args.calls, args.answers, args.threads)


if __name__ == "__main__":
    main()

"""Reads streams with an SDK as it comes: run by a Python that has it, and nothing of ours.

python bars/sdk_reader.py openai|anthropic BASE_URL KEY NAME...
"""

from __future__ import annotations

import json
import sys
from typing import Any


def opened(module: str, url: str, key: str, name: str) -> Any:
    """A stream of the SDK's own events."""
    ask: dict[str, Any] = {
        "model": "recorded",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "extra_headers": {"x-recorded": name},
    }
    if module == "openai":
        import openai

        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        return client.chat.completions.create(**ask)
    import anthropic

    there = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
    return there.messages.create(max_tokens=1024, **ask)


def main() -> None:
    """Print a line of JSON for each stream: its events, and the error that ended it if one did."""
    module, url, key, *names = sys.argv[1:]
    for name in names:
        events: list[Any] = []
        try:
            events += (event.to_json() for event in opened(module, url, key, name))
        except Exception as error:  # noqa: BLE001 - it is what is compared
            events.append(f"{type(error).__name__}: {error}")
        print(json.dumps({"name": name, "events": events}))


if __name__ == "__main__":
    main()

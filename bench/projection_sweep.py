"""How long ten thousand projected configurations of a model on a system take, in CPU seconds.

``python -m bench.projection_sweep`` prints a line of JSON for each pair of model and system. A
configuration is a replica size, an attention split and a batch that fit in memory.
"""

from __future__ import annotations

import json
import time

from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.plan.projection import candidates, machine_of

CONFIGURATIONS = 10_000
PAIRS = (("deepseek-r1", "gb200-nvl72"), ("llama-3.1-70b", "hgx-b200"), ("gpt-moe-2t", "vr-nvl72"),
         ("gpt-moe-2t", "vr-nvl72+lpx"))  # fmt: skip


def measure(model: str, systems: str) -> dict[str, object]:
    """Sweeps over contexts from 1,024 tokens on, until there are ten thousand configurations."""
    catalogue = read_catalogue()
    projection = catalogue.projection("keynote")
    machine, record = machine_of(catalogue, systems, projection), catalogue.model(model)
    count, context = 0, 1024
    before = time.process_time()
    while count < CONFIGURATIONS:
        count += len(candidates(machine, record, context, projection))
        context += 256
    spent = time.process_time() - before
    return {
        "model": model,
        "systems": systems,
        "configurations": count,
        "cpu_s": round(spent, 3),
        "cpu_s_per_10000": round(spent / count * 1e4, 3),
    }


def main() -> None:
    """Measure each pair."""
    for pair in PAIRS:
        print(json.dumps(measure(*pair)))


if __name__ == "__main__":
    main()

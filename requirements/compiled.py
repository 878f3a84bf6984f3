"""Compile the brain, the twin's inner loops and a request's whole way with mypyc, in place.

Run by ``make compile`` and undone by ``make pure``. The extensions lie beside their sources, which
Python then prefers; git ignores them. What they do is the same: tests compare journals
to the byte, and run the gateway's, the ledger's and the driver's own on them. It needs a C compiler
and minutes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent / "src"
# Modules of plain classes and functions. mypyc forgets the types of Structs' fields and drops their
# options, so none may be in one; and what is written in Python may not inherit from a class that is
# compiled, such as ``twin.driver.Hooks``. docs/decisions/0016-compiled-when-asked.md has the rest.
MODULES: Final = (
    *("core/kept_promises", "core/token_sums", "core/traces", "core/units"),
    *("ledger/accounts", "ledger/blocks", "ledger/ledger", "ledger/metering", "ledger/quotas"),
    *("ledger/leases", "ledger/stored", "ledger/summing"),
    *("dispatch/chains", "dispatch/dispatcher", "dispatch/economics", "dispatch/fleet"),
    *("dispatch/journal_format", "dispatch/offers", "dispatch/oversight", "dispatch/pickers"),
    *("dispatch/prefix_index", "dispatch/promises", "dispatch/rejections", "dispatch/restricted"),
    *("dispatch/ended", "dispatch/states", "dispatch/waiting", "dispatch/wakes"),
    *("gateway/answer", "gateway/app", "gateway/assemble", "gateway/chat", "gateway/chat_request"),
    *("gateway/completions", "gateway/connection", "gateway/doorkeeper", "gateway/envelope"),
    *("gateway/chat_fields", "gateway/chunk_reading", "gateway/json_body"),
    *("gateway/event_stream", "gateway/http_body", "gateway/http_head", "gateway/http_io"),
    *("gateway/metrics", "gateway/one_piece", "gateway/own_headers", "gateway/plain_request"),
    *("gateway/request_fields", "gateway/request_ids", "gateway/tallies"),
    *("live/bookkeeper", "live/driver", "live/first_words", "live/flights", "live/front"),
    *("live/group_commit", "live/journal", "live/link", "live/network"),
    *("live/owner", "live/plain_head", "live/quota_leases", "live/running", "live/seats"),
    *("live/sending", "live/worker_body"),
    *("twin/agenda", "twin/kv_cache", "twin/sequence", "twin/workers"),
)
FLAGS: Final = ["-fvisibility=hidden", "-fno-semantic-interposition", "-fno-plt"]
"""Nobody else calls our functions, so they call each other without a look at a table."""
UNREAD: Final = ["-Wno-misleading-indentation"]
"""Nobody reads that C; to look at how it is indented takes a sixth of the time without -O."""
CACHES: Final = Path(__file__).with_name("inline_caches.h")
"""Included by each C file that mypyc writes, after all else."""
SETUP: Final = """
from mypyc.build import mypycify
from pathlib import Path
from setuptools import setup
import sys
given = {paths!r} + ["--ignore-missing-imports"]
made = mypycify(given, opt_level={level!r}, debug_level="0", multi_file=True)
for source in {{Path(source) for each in made for source in each.sources}}:
    if source.name.startswith("__native"):
        includes, rest = source.read_text().split("\\n\\n", 1)
        assert includes.startswith('#include "__native'), includes
        source.write_text(f'{{includes}}\\n#include "{caches}"\\n\\n{{rest}}')
if sys.platform == "linux":
    for each in made:  # all have one list
        each.extra_compile_args = [*each.extra_compile_args, *{flags!r}]
setup(name="compiled", ext_modules=made)
"""


def clean(root: Path) -> None:
    """Remove every extension."""
    for built in [*root.glob("*__mypyc.*.so"), *root.glob("tokenworks/**/*.so")]:
        built.unlink()


def build(root: Path, level: str, modules: Sequence[str] = MODULES) -> None:
    """Put an extension beside each module.

    Args:
        root: the folder that has ``tokenworks``.
        level: of the C compiler's optimisation.
        modules: which, of ``tokenworks``.

    Raises:
        CalledProcessError: mypyc or the C compiler refused; nothing is left of it.
    """
    clean(root)
    paths = [f"tokenworks/{name}.py" for name in modules]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(root / "tokenworks", work / "tokenworks")
        setup = SETUP.format(paths=paths, level=level, flags=FLAGS + UNREAD, caches=CACHES)
        (work / "setup.py").write_text(setup)
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=work, check=True)  # noqa: S603 - the command is ours
        for built in [*work.glob("*.so"), *work.glob("tokenworks/**/*.so")]:
            shutil.copy2(built, root / built.relative_to(work))


def main() -> None:
    """Build, or with ``--clean`` only remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", action="store_true", help="remove what was built")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that has tokenworks/")
    parser.add_argument("--level", choices="0123", default="2", help="how much to optimise")
    given = parser.parse_args()
    if given.clean:
        clean(given.root)
        return
    try:
        build(given.root, given.level)
    except subprocess.CalledProcessError:
        clean(given.root)
        sys.exit("Not compiled: it needs a C compiler (gcc, python3-dev) and the dev extras.")


if __name__ == "__main__":
    main()

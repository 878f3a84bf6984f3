"""Write the lock files: every version pinned, every wheel's sha256, for all platforms at once.

``core`` is what the package needs to run, ``up`` adds pictures and the build backend, ``dev`` adds
what the tests need, ``soak`` what fuzzing needs. Run by ``make lock``; the path of uv is in the
variable UV.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
# (name, extras, with the build backend)
LOCKS: Final = (
    ("core", (), False),
    ("up", ("pictures",), True),
    ("dev", ("pictures", "dev"), True),
    ("soak", ("pictures", "dev", "soak"), True),
)
OPTIONS: Final = (
    "--universal",
    "--upgrade",
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
    "--no-strip-extras",  # pip takes name[extra] for pinned only where it stands so
    "--no-emit-index-url",
    "--quiet",
)


def main() -> None:
    """Write the files, each constrained by the one before it."""
    project = HERE.parent / "pyproject.toml"
    settings = tomllib.loads(project.read_text())
    python = settings["project"]["requires-python"].removeprefix(">=")
    # hatchling asks for editables when it installs a package in place.
    build = "\n".join([*settings["build-system"]["requires"], "editables"])
    before: Path | None = None
    for name, extras, with_build in LOCKS:
        out = HERE / f"{name}.txt"
        command = [os.environ["UV"], "pip", "compile", str(project), *OPTIONS]
        command += ["--python-version", python, "--output-file", str(out)]
        command += [word for extra in extras for word in ("--extra", extra)]
        if before:
            command += ["--constraint", str(before)]
        if with_build:
            command.append("-")
        subprocess.run(  # noqa: S603 - the command is ours
            command, input=build, text=True, check=True, stdout=subprocess.DEVNULL
        )
        before = out


if __name__ == "__main__":
    main()

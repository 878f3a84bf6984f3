"""``tokenworks doctor``: what is wrong with this machine or its settings, and how to mend it."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import textwrap
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from tokenworks.cli.table import show
from tokenworks.core.errors import ConfigInvalid, LedgerCorrupt, TokenworksError
from tokenworks.live.home import Home, packaged

DISK_BYTES_MIN: Final = 200_000_000
FILES_MIN: Final = 1_024
ENGINE_VERSION: Final = "2026.10.11549"
ANSWER_S_MAX: Final = 3
FOUND_LEN_MAX: Final = 160

Check = Callable[[Home], str]
"""Returns what was found; raises TokenworksError when it is wrong."""


@click.command()
@click.option("--settings", is_flag=True, help="Print settings that work (factory.toml).")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def command(home: Home, *, settings: bool, as_json: bool) -> None:
    """Say what is wrong with this machine or its settings, and how to mend it.

    Exits with 1 if anything is wrong.
    """
    if settings:
        click.echo(packaged("factory.toml").read_text(encoding="utf-8"), nl=False)
        return
    rows: list[dict[str, Any]] = []
    for name, check in CHECKS.items():
        try:
            rows.append({"check": name, "ok": True, "found": check(home), "mend": ""})
        except TokenworksError as error:
            mend = error.hint or f"See {error.code} in docs/errors.md."
            rows.append({"check": name, "ok": False, "found": error.message, "mend": mend})
        except OSError as error:
            mend = "Look at its permissions."
            rows.append({"check": name, "ok": False, "found": str(error), "mend": mend})
    if not as_json:
        for row in rows:
            row["found"] = textwrap.shorten(row["found"], FOUND_LEN_MAX, placeholder=" ...")
    show(rows, as_json=as_json, empty="")
    if not all(row["ok"] for row in rows):
        sys.exit(1)


AUDIT_BLOCKS_MAX: Final = 20_000
"""Blocks of a ledger that the doctor proves itself; a larger one takes its time."""


def _python(_home: Home) -> str:
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def _engine(_home: Home) -> str:
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigInvalid(
            "xllamacpp is not installed", hint=f"pip install xllamacpp=={ENGINE_VERSION}"
        )
    found = importlib.metadata.version("xllamacpp")
    if found != ENGINE_VERSION:
        raise ConfigInvalid(
            f"xllamacpp {found}", hint=f"Tested with {ENGINE_VERSION}: pip install that one."
        )
    return f"xllamacpp {found}"


def _processor(_home: Home) -> str:
    info = Path("/proc/cpuinfo")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if platform.machine() == "x86_64" and info.exists() and " avx2" not in info.read_text():
        raise ConfigInvalid(
            "the processor has no AVX2, which the embedded engine needs",
            hint="Use an attached pool (docs/operate.md).",
        )
    return f"{cores} cores"


def _folder(home: Home) -> str:
    if not home.path.exists():
        return f"{home.path}, which `tokenworks up` will make"
    home.make()
    if home.path.stat().st_mode & 0o077:
        raise ConfigInvalid(f"{home.path} can be read by others", hint=f"chmod 700 {home.path}")
    return str(home.path)


def _disk(home: Home) -> str:
    absolute = home.path.absolute()
    folder = next(path for path in (absolute, *absolute.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES_MIN:
        raise ConfigInvalid(
            f"{free // 1_000_000} MB free", hint="The ledger needs room: free 200 MB."
        )
    return f"{free // 1_000_000_000} GB free"


def _files(_home: Home) -> str:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a factory raises its own to this
    if hard != resource.RLIM_INFINITY and hard < FILES_MIN:
        raise ConfigInvalid(f"{hard} open files allowed", hint="ulimit -Hn 65536")
    return (
        "any number of open files"
        if hard == resource.RLIM_INFINITY
        else f"{hard} open files allowed"
    )


def _settings(home: Home) -> str:
    pools = home.load_settings().pool
    return f"{len(pools)} pool(s): {', '.join(pools)}"


def _prices(home: Home) -> str:
    book = home.load_price_book()
    for name, pool in home.load_settings().pool.items():
        if pool.model not in book.prices:
            raise ConfigInvalid(
                f"[pool.{name}] serves {pool.model!r}, which has no price",
                hint=f"Add [price.{pool.model}.*] to {home.price_book}.",
            )
    return str(book.price_id)


def _weights(home: Home) -> str:
    from tokenworks.cli.wiring import embedded_spec
    from tokenworks.core.ids import PoolID, WorkerID

    found = []
    for name, pool in home.load_settings().pool.items():
        if pool.engine == "embedded":
            spec = embedded_spec(WorkerID(name), PoolID(name), pool)
            found.append(f"{Path(spec.path).name}, {'found' if pool.path else 'checked'}")
    return "; ".join(found) or "no embedded pool"


def _curves(home: Home) -> str:
    return "measured here" if home.load_curves() else "as shipped; `tokenworks tiers measure`"


def _port(home: Home) -> str:
    gateway = home.load_settings().gateway
    url = home.read_url()
    if url is not None and (detail := _answer_of(url)) is not None:
        return f"the factory at {url} answers: {detail}"
    # What a killed factory leaves behind is its address; the next start removes it.
    killed = f" (the factory at {url} was killed)" if url is not None else ""
    from tokenworks.gateway.server import listening

    try:
        listening(gateway.host, gateway.port).close()
    except OSError as error:
        raise ConfigInvalid(
            f"{gateway.host}:{gateway.port} cannot be used: {error.strerror}{killed}",
            hint="Set another port in factory.toml, or `tokenworks up --port`.",
        ) from error
    return f"{gateway.host}:{gateway.port} is free{killed}"


def _answer_of(url: str) -> str | None:
    """What the factory at an address says of its health; None if there is no factory.

    Raises:
        ConfigInvalid: it says that it cannot serve.
    """
    try:
        where = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(where.netloc, timeout=ANSWER_S_MAX)
    except (http.client.HTTPException, ValueError):
        return None  # no address at all
    try:
        connection.request("GET", "/healthz")
        with connection.getresponse() as response:
            status, detail = response.status, str(json.loads(response.read())["detail"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
    if status != 200:
        raise ConfigInvalid(
            f"the factory at {url} cannot serve: {detail}", hint="Its own messages say why."
        )
    return detail


def _ledger(home: Home) -> str:
    from tokenworks.cli.ledger import audited
    from tokenworks.cli.ledger_at import check_clock
    from tokenworks.ledger.rollup import balances
    from tokenworks.live.clock import SystemClock

    if not home.has_ledger():
        return "none yet"
    store = home.open_ledger()
    try:
        check_clock(store, SystemClock().unix_ns())
        accounts = len(balances(store.rollups()))
        blocks = sum(store.block_numbers().values())
        if blocks > AUDIT_BLOCKS_MAX:
            return (
                f"{accounts} accounts, debits equal credits; `tokenworks ledger verify` reads all"
            )
        audit, findings = audited(store, lambda _: None)
    finally:
        store.close()
    if findings:
        raise LedgerCorrupt(
            f"{len(findings)} findings, the first: {findings[0].what}",
            hint="`tokenworks ledger verify` lists them; restore the ledger from a copy.",
        )
    held = len(audit.open_holds())
    return f"{accounts} accounts, debits equal credits, {held} open holds; every sum redone"


CHECKS: Final[dict[str, Check]] = {
    "python": _python,
    "engine": _engine,
    "processor": _processor,
    "folder": _folder,
    "disk": _disk,
    "open files": _files,
    "settings": _settings,
    "price book": _prices,
    "weights": _weights,
    "speed curve": _curves,
    "port": _port,
    "ledger": _ledger,
}

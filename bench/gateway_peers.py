"""What is measured side by side: our factory, nginx as the control, LiteLLM if asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bars.factory import children_of, running
from bench.fake_worker import MODEL
from tokenworks.live.home import packaged

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SLOTS = 480
"""Of one attached server: fewer than the connections that are kept to it."""

TOKENS_MAX = 10**15
NGINX = """
daemon off;
worker_processes 1;
error_log stderr error;
pid {folder}/nginx.pid;
{user}
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream worker {{
    server 127.0.0.1:{upstream};
    keepalive 512;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://worker;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
FACTORY = """
[pool.bench]
engine = "attached"
model = "{model}"
slots = {slots}
urls = [{urls}]
capital_udollars_per_hour = 1000000
curve = [[1, 400], [{slots}, 400]]
"""


CAP_PERIOD_US = 10_000
_GROUPS = Path("/sys/fs/cgroup")
CPU_GROUPS = _GROUPS / "cpu" if (_GROUPS / "cpu").is_dir() else _GROUPS
"""Where control groups with a CPU quota are made: the ``cpu`` controller of v1, or v2."""


@dataclasses.dataclass
class Peer:
    """Something that answers chat completions.

    Attributes:
        ports: where; more than one if it is several processes.
        key: what it wants as a bearer token.
        pids: its processes, whose children count, too.
    """

    name: str
    ports: list[int]
    key: str = "none"
    pids: list[int] = dataclasses.field(default_factory=list)

    def all_pids(self) -> list[int]:
        """Its processes, their children and these ones'."""
        found, left = list[int](), list(self.pids)
        while left:
            found.append(left.pop())
            left += children_of(found[-1])
        return found

    def serving(self) -> list[int]:
        """The processes that serve callers, where some only supervise these."""
        found = [pid for pid in self.all_pids() if _is_member(pid)]
        return found or self.pids

    def cpu_s(self) -> float:
        """CPU time so far, in user and kernel mode, of all of them."""
        total = 0
        for pid in self.all_pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS_PER_S

    def rss_bytes(self) -> int:
        """Resident memory of all of them."""
        pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self.all_pids()]
        return sum(int(each) for each in pages) * PAGE_BYTES

    def files(self) -> int:
        """Open files and sockets of all of them."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.all_pids())


@contextlib.contextmanager
def own_core(peers: Sequence[Peer], others: Sequence[Peer]) -> Iterator[None]:
    """Let peers, of which one at a time is measured, have a core that nobody else here uses.

    Args:
        peers: these, each with all its threads.
        others: who shares the rest of the cores, two at least in all, with this process.
    """
    cores = sorted(os.sched_getaffinity(0))
    assert len(cores) > 1, cores
    for peer in peers:
        _pin(peer.all_pids(), cores[-1:])
    for other in others:
        _pin(other.all_pids(), cores[:-1])
    os.sched_setaffinity(0, cores[:-1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _pin(pids: Sequence[int], cores: Sequence[int]) -> None:
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


@contextlib.contextmanager
def child(command: list[str], **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the length of a block; SIGTERM at its end."""
    process = subprocess.Popen(command, **more)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def fake_worker(addresses: int = 1) -> Iterator[Peer]:
    """The worker by itself: the floor."""
    command = [sys.executable, "-m", "bench.fake_worker", "--addresses", str(addresses)]
    with child(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fake worker ended with status {process.wait()}")
        yield Peer("direct", [json.loads(line)["port"]], pids=[process.pid])


@contextlib.contextmanager
def nginx(upstream: int, folder: Path, files_max: int) -> Iterator[Peer]:
    """A bare proxy with one process, as the control.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise FileNotFoundError(
            "nginx, the control, is not on the PATH: apt-get install nginx-light (Debian, Ubuntu), "
            "or leave it out with --no-nginx."
        )
    folder.mkdir()
    config = folder / "nginx.conf"
    with held_port() as port:
        config.write_text(
            NGINX.format(
                folder=folder,
                user="user root;" if os.geteuid() == 0 else "",
                files=files_max,
                connections=files_max // 2,
                upstream=upstream,
                port=port,
            )
        )
        command = [program, "-c", str(config), "-p", str(folder), "-e", "stderr"]
        with child(command) as process:
            wait_for(port, process)
            yield Peer("nginx", [port], pids=[process.pid])


@contextlib.contextmanager
def litellm(upstream: int, folder: Path) -> Iterator[Peer]:
    """LiteLLM's proxy with a master key and one process.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = shutil.which("litellm")
    if program is None:
        raise FileNotFoundError(
            "litellm is not on the PATH: install litellm[proxy] into an environment of its own "
            "and put that environment's bin on the PATH."
        )
    folder.mkdir()
    key = "sk-bench-0123456789abcdef0123456789abcdef"
    settings = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}/v1"}
    models = [{"model_name": MODEL, "litellm_params": {**settings, "api_key": "none"}}]
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": key}}))
    with held_port() as port:
        command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        # Without this it tries to fetch prices when it starts, and waits where there is no network.
        environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        log = (folder / "litellm.log").open("wb")
        with log, child(command, env=environment, stdout=log, stderr=log) as process:
            wait_for(port, process, seconds_max=180)
            yield Peer("litellm", [port], key=key, pids=[process.pid])


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A free port that the kernel gives to nobody else, for whoever listens with SO_REUSEADDR."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def _is_member(pid: int) -> bool:
    return b"tokenworks.cli.member" in Path(f"/proc/{pid}/cmdline").read_bytes()


@contextlib.contextmanager
def capped(pids: list[int], share: float) -> Iterator[None]:
    """Give each of some processes a share of a core of its own, by the kernel's CFS quota.

    Args:
        pids: of processes; their threads have the share together.
        share: of a core, in every 10 ms.

    Raises:
        OSError: no control group can be made here; it takes root and the ``cpu`` controller.
    """
    made = list[Path]()
    try:
        for pid in pids:
            group = CPU_GROUPS / f"tokenworks-bench-{pid}"
            group.mkdir()
            made.append(group)
            quota_us = round(CAP_PERIOD_US * share)
            if (group / "cpu.max").exists():  # cgroup v2
                (group / "cpu.max").write_text(f"{quota_us} {CAP_PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(CAP_PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in made:
            for pid_left in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):  # it has ended
                    (CPU_GROUPS / "cgroup.procs").write_text(pid_left)
            group.rmdir()


def wait_for(port: int, process: subprocess.Popen[bytes], seconds_max: float = 30) -> None:
    """Return once somebody listens there.

    Raises:
        RuntimeError: the process ended, or nobody does.
    """
    until = time.monotonic() + seconds_max
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nobody listened on port {port} after {seconds_max:g} s")


def prepare(
    home: Path,
    upstreams: list[int],
    addresses: int,
    slots: int = SLOTS,
    *,
    whole_answers: bool = False,
) -> None:
    """Make a factory's folder: a pool of fake workers, prices, and limits that are checked.

    Args:
        home: the folder.
        upstreams: the ports of fake workers.
        addresses: on how many addresses it listens; each is a server of the pool.
        slots: of each server.
        whole_answers: workers are asked for answers in one piece by callers without ``stream``.
    """
    home.mkdir(mode=0o700)
    urls = ", ".join(
        f'"http://127.0.0.{i + 1}:{port}"' for port in upstreams for i in range(addresses)
    )
    settings = FACTORY.format(model=MODEL, slots=slots, urls=urls)
    if whole_answers:
        settings += "whole_answers = true\n"
    (home / "factory.toml").write_text(settings)
    prices = packaged("laptop.toml").read_text().replace("price.foreman", f"price.{MODEL}")
    (home / "price_book.toml").write_text(prices)
    for limit in (("--tokens", str(TOKENS_MAX)), ("--usd", "1000000000")):
        tool(home, "quota", "set", "tenant:local", *limit)


def tool(home: Path, *arguments: str) -> str:
    """What the command line prints about a factory."""
    command = [sys.executable, "-m", "tokenworks.cli.main", "--home", str(home), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def gateway(homes: list[Path], *arguments: str) -> Iterator[Peer]:
    """Our own factories: everything on, on disk; all processes count."""
    with contextlib.ExitStack() as stack:
        factories = [stack.enter_context(running(home, "--quiet", *arguments)) for home in homes]
        yield Peer(
            "gateway",
            [factory.port for factory in factories],
            key=factories[0].key,
            pids=[factory.process.pid for factory in factories],
        )
